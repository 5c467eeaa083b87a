"""CARVE once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "Steps",
    "around",
    "coloring",
    "contrasting",
    "fusing",
    "grown",
    "labelling",
    "looking",
    "masking",
    "resizing",
    "spreading",
    "texturing",
]


def last_row(weights: np.ndarray) -> Any:
    """Take the last query."""
    return weights[..., -1, :]


def average(rows: np.ndarray) -> Any:
    """Average over heads."""
    return rows.mean(axis=-2)


def cut(row: np.ndarray, start: int, stop: int) -> Any:
    """Keep the image tokens."""
    return row[..., start:stop]


def divide(a_task: np.ndarray, a_general: np.ndarray, lam: float) -> Any:
    """Divide, with a little in the denominator."""
    return a_task / (a_general + lam)


def paired(task: np.ndarray, general: np.ndarray) -> Any:
    """Pair the steps from the first one on."""
    S = min(len(task), len(general))
    return task[:S], general[:S]


def contrasts(task: np.ndarray, general: np.ndarray, lam: float) -> Any:
    """Divide step by step and layer by layer, (S, L, N)."""
    return task / (general + lam)


def step_weight(t: int) -> float:
    """Weigh step t, the first being 0."""
    return t + 1.0


def layer_sum(maps: np.ndarray) -> Any:
    """Add up the layers."""
    return maps.sum(axis=0)


def counted(layers: list[int]) -> list[int]:
    """Count layers from 0."""
    return layers


def lay(contrast: np.ndarray, rows: int, columns: int) -> Any:
    """Lay tokens on the grid, row by row."""
    return contrast.reshape(rows, columns)


def centre(o: int, n: int, m: int) -> float:
    """Return where output o lies among the inputs, whose pixels have width 1."""
    return (o + 0.5) * n / m


def reach(n: int, m: int) -> float:
    """Return the half width of the triangle."""
    return max(n / m, 1.0)


def tent(x: np.ndarray) -> Any:
    """Fall off linearly."""
    return np.maximum(0.0, 1.0 - np.abs(x))


def shares(w: np.ndarray) -> Any:
    """Make the weights sum to 1."""
    return w / w.sum()


def threshold(scores: np.ndarray, p: float) -> Any:
    """Return the score that a share p of the pixels reaches."""
    return np.quantile(scores, 1.0 - p)


def passes(scores: np.ndarray, tau: float) -> Any:
    """Say which pixels reach it."""
    return scores >= tau


def around(y: int, x: int) -> Iterable[tuple[int, int]]:
    """Return the pixels that touch along an edge."""
    return [(y, x + 1), (y + 1, x), (y, x - 1), (y - 1, x)]


def reading_order(h: int, w: int) -> Iterable[tuple[int, int]]:
    """Read row by row."""
    return [(y, x) for y in range(h) for x in range(w)]


def numbered(k: int) -> int:
    """Return the number of region k, the first being 1."""
    return k + 1


def worth(scores: np.ndarray) -> Any:
    """Add up the scores of a region."""
    return scores.sum()


def ranked(scores: list[float]) -> list[int]:
    """Order regions by score, the earlier first among equals."""
    return sorted(range(len(scores)), key=lambda r: -scores[r])


def allowed(K: int, n: int, p: float, rule: str) -> int:
    """Return how many regions stay."""
    return max(K, int(n * p)) if rule == "code" else K


def survives(area: int, total: int, percent: float) -> bool:
    """Say whether a region is large enough."""
    return area >= int(total * percent / 100)


def normalised(a: np.ndarray) -> Any:
    """Divide by the sum over the tokens."""
    return a / a.sum(axis=-1, keepdims=True)


def surprise(a: np.ndarray) -> Any:
    """Return −ln a, 0 at 0."""
    return -np.log(np.where(a > 0, a, 1.0))


def expected(a: np.ndarray, s: np.ndarray) -> Any:
    """Average with the attention as weights."""
    return (a * s).sum(axis=-1)


def grey(image: np.ndarray) -> Any:
    """Weigh red, green and blue as the eye does."""
    return image if image.ndim == 2 else image @ np.array([0.299, 0.587, 0.114])


def bordered(x: np.ndarray, width: int) -> Any:
    """Continue the picture beyond its border with the pixel at the border."""
    return np.pad(x, width, mode="edge")


def gradient(wide: np.ndarray) -> Any:
    """Differentiate, smoothing across: down and to the right."""
    across = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    down = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    return across[2:] - across[:-2], down[:, 2:] - down[:, :-2]


def eighth(gy: np.ndarray, gx: np.ndarray) -> Any:
    """Round the direction to a multiple of 45 degrees, opposite ones being one."""
    return np.rint(np.degrees(np.arctan2(gy, gx)) / 45).astype(int) % 4


def strength(m: np.ndarray) -> Any:
    """Scale Sobel's sum to a difference of grey."""
    return m / 4


def corners(y: int, x: int) -> Iterable[tuple[int, int]]:
    """Return all eight neighbours."""
    return [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def holds(best: float) -> bool:
    """Say whether the strongest pixel of a group is strong enough for all."""
    return best >= 0.2


def hue(r: float, g: float, b: float) -> float:
    """Return the hue in degrees."""
    top, spread = max(r, g, b), max(r, g, b) - min(r, g, b)
    if spread == 0:
        return 0.0
    if top == r:
        return 60 * (((g - b) / spread) % 6)
    return 60 * ((b - r) / spread + 2) if top == g else 60 * ((r - g) / spread + 4)


def bin_of(degrees: float) -> int:
    """Return the bin of two degrees."""
    return int(degrees / 2)


def most(counts: np.ndarray) -> float:
    """Return the largest entropy that there can be."""
    return float(np.log(len(counts)))


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    last_row: Callable[..., Any] = last_row
    average: Callable[..., Any] = average
    cut: Callable[..., Any] = cut
    divide: Callable[..., Any] = divide
    paired: Callable[..., Any] = paired
    contrasts: Callable[..., Any] = contrasts
    step_weight: Callable[..., Any] = step_weight
    layer_sum: Callable[..., Any] = layer_sum
    counted: Callable[..., Any] = counted
    lay: Callable[..., Any] = lay
    centre: Callable[..., Any] = centre
    reach: Callable[..., Any] = reach
    tent: Callable[..., Any] = tent
    shares: Callable[..., Any] = shares
    threshold: Callable[..., Any] = threshold
    passes: Callable[..., Any] = passes
    around: Callable[..., Any] = around
    reading_order: Callable[..., Any] = reading_order
    numbered: Callable[..., Any] = numbered
    worth: Callable[..., Any] = worth
    ranked: Callable[..., Any] = ranked
    allowed: Callable[..., Any] = allowed
    survives: Callable[..., Any] = survives
    normalised: Callable[..., Any] = normalised
    surprise: Callable[..., Any] = surprise
    expected: Callable[..., Any] = expected
    grey: Callable[..., Any] = grey
    bordered: Callable[..., Any] = bordered
    gradient: Callable[..., Any] = gradient
    eighth: Callable[..., Any] = eighth
    strength: Callable[..., Any] = strength
    corners: Callable[..., Any] = corners
    holds: Callable[..., Any] = holds
    hue: Callable[..., Any] = hue
    bin_of: Callable[..., Any] = bin_of
    most: Callable[..., Any] = most


def looking(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the attention to the image with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(weights: np.ndarray, image_slice: list[int]) -> Any:
        return steps.cut(steps.average(steps.last_row(weights)), *image_slice)

    return wrong


def contrasting(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the contrast with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(a_task: np.ndarray, a_general: np.ndarray, lam: float = 1e-8) -> Any:
        return steps.divide(a_task, a_general, lam)

    return wrong


def resized(steps: Steps, image: np.ndarray, size: list[int]) -> Any:
    """Resize rows, then columns."""
    for axis, m in enumerate(size):
        n = image.shape[axis]
        at = np.arange(n) + 0.5
        table = [steps.shares(steps.tent((at - steps.centre(o, n, m)) / steps.reach(n, m))) for o in range(m)]
        image = np.moveaxis(np.tensordot(np.array(table), image, axes=(1, axis)), 0, axis)
    return image


def resizing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the resize with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(image: np.ndarray, size: list[int]) -> Any:
        return resized(steps, image, size)

    return wrong


def fusing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the fusion with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        task_maps: np.ndarray,
        general_maps: np.ndarray,
        grid: list[int],
        size: list[int],
        *,
        layers: list[int] | None = None,
        lam: float = 1e-8,
        steps_mode: str = "all",
        ignore_missing: bool = False,
    ) -> Any:
        del ignore_missing
        task, general = steps.paired(task_maps, general_maps)
        S, L = task.shape[:2]
        chosen = [l for l in steps.counted(list(range(L) if layers is None else layers)) if l < L]
        contrast = steps.contrasts(task, general, lam)[:, chosen]
        weight = {
            "all": [steps.step_weight(t) for t in range(S)],
            "equal": [1.0] * S,
            "first": [1.0] + [0.0] * (S - 1),
            "last": [0.0] * (S - 1) + [1.0],
        }[steps_mode]
        total: Any = np.zeros(size)
        for w, layered in zip(weight, contrast, strict=True):
            maps = [resized(steps, steps.lay(x, *grid), size) for x in layered]
            total = total + w * steps.layer_sum(np.array(maps)) if maps else total
        return total

    def renamed(*arrays: Any, steps: str = "all", **options: Any) -> Any:
        return wrong(*arrays, steps_mode=steps, **options)

    return renamed


def grown(steps: Steps, mask: np.ndarray, touching: Callable[..., Any]) -> list[list[tuple[int, int]]]:
    """Grow every region from its first pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    for start in steps.reading_order(*mask.shape):
        if start not in left:
            continue
        left.remove(start)
        region = [start]
        for pixel in region:  # grows while it is walked
            fresh = [q for q in touching(*pixel) if q in left]
            left -= set(fresh)
            region += fresh
        regions.append(region)
    return regions


def drawn(shape: tuple[int, ...], regions: list[list[tuple[int, int]]]) -> Any:
    """Return the union of regions as a mask."""
    mask = np.zeros(shape, dtype=bool)
    for region in regions:
        mask[tuple(np.transpose(region))] = True
    return mask


def labelling(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the numbering with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(mask: np.ndarray) -> Any:
        labels = np.zeros(mask.shape, dtype=np.int64)
        regions = grown(steps, mask, steps.around)
        for k, region in enumerate(regions):
            labels[tuple(np.transpose(region))] = steps.numbered(k)
        return labels, len(regions)

    return wrong


def masking(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the mask with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        score_map: np.ndarray,
        top_p: float = 0.2,
        max_regions: int = 3,
        *,
        strategy: str = "attention_sum",
        count_rule: str = "code",
        outlier_percent: float = 0.1,
    ) -> Any:
        above = steps.passes(score_map, steps.threshold(score_map, top_p))
        regions = grown(steps, above, steps.around)
        if strategy == "remove_small":
            kept = [r for r in regions if steps.survives(len(r), int(above.sum()), outlier_percent)]
            return drawn(score_map.shape, kept)
        areas = [float(len(r)) for r in regions]
        sums = [float(steps.worth(score_map[tuple(np.transpose(r))])) for r in regions]
        order = steps.ranked(areas if strategy == "size" else sums)
        count = steps.allowed(max_regions, len(regions), top_p, count_rule)
        return drawn(score_map.shape, [regions[r] for r in order[:count]])

    return wrong


def spreading(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the entropy with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(a: np.ndarray, normalize: bool = True) -> Any:
        a = steps.normalised(a) if normalize else a
        return steps.expected(a, steps.surprise(a))

    return wrong


def texturing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the share of edges with these steps exchanged."""
    steps = Steps(**changes)
    bell = np.exp(-(np.arange(-6, 7) ** 2) / (2 * 1.4**2))

    def wrong(image: np.ndarray) -> Any:
        wide = steps.bordered(steps.grey(image), 6)
        windows = np.lib.stride_tricks.sliding_window_view(wide, (13, 13))
        smooth = np.einsum("yxij,i,j->yx", windows, bell, bell) / bell.sum() ** 2
        gy, gx = steps.gradient(steps.bordered(smooth, 1))
        m, direction = np.hypot(gy, gx), steps.eighth(gy, gx)
        wide = np.pad(m, 1)
        dy, dx = np.choose(direction, [0, 1, 1, 1]), np.choose(direction, [1, 1, 0, -1])
        y, x = np.indices(m.shape) + 1
        thin = (m >= wide[y + dy, x + dx]) & (m > wide[y - dy, x - dx])
        n = np.where(thin, steps.strength(m), 0.0)
        groups = grown(steps, n >= 0.1, steps.corners)
        kept = [group for group in groups if steps.holds(max(n[p] for p in group))]
        return np.mean(drawn(m.shape, kept))

    return wrong


def coloring(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the entropy of hues with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(image: np.ndarray) -> Any:
        bins = [steps.bin_of(steps.hue(*pixel)) % 180 for pixel in image.reshape(-1, 3).tolist()]
        counts = np.bincount(bins, minlength=180)
        share = counts / counts.sum()
        return steps.expected(share, steps.surprise(share)) / steps.most(counts)

    return wrong
