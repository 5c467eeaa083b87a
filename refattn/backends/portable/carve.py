"""CARVE in the array-API standard: the quotient, its fusion, the mask and the measures.

Derived from the equations by another route than the reference: layers and steps are added up before the one resize,
whose filter is laid out tap by tap; the filters of the edge detector are two matrices a side; and regions are found in
parallel, by joining neighbours in logarithmically many rounds, so that no loop waits for the data. The crop and its
magnification are not here: their shape depends on the mask.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "attention_entropy",
    "attention_mask",
    "bilinear_resize",
    "color_complexity",
    "connected_regions",
    "contrast_attention",
    "fuse_contrastive_attention",
    "image_attention",
    "texture_complexity",
]

EDGES = ((0, 1), (1, 0), (0, -1), (-1, 0))
CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def image_attention(weights: Any, image_slice: Sequence[int]) -> Any:
    """Return the last query's attention to the image tokens, averaged over heads."""
    xp = array_namespace(weights)
    return xp.sum(weights[..., -1, image_slice[0] : image_slice[1]], axis=-2) / weights.shape[-3]


def contrast_attention(a_task: Any, a_general: Any, lam: float = 1e-8) -> Any:
    """Divide attention for the task by attention in general."""
    return a_task / (a_general + lam)


def fuse_contrastive_attention(
    task_maps: Any,
    general_maps: Any,
    grid: Sequence[int],
    size: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    lam: float = 1e-8,
    steps: str = "all",
    ignore_missing: bool = False,
) -> Any:
    """Add up the contrasts of all layers and steps by one product, and resize the sum once."""
    del ignore_missing  # missing layers get no weight below in any case
    xp = array_namespace(task_maps)
    S, L = min(task_maps.shape[0], general_maps.shape[0]), task_maps.shape[1]
    times = {"all": np.arange(1, S + 1), "equal": np.ones(S), "first": np.eye(S)[0], "last": np.eye(S)[-1]}[steps]
    chosen = range(L) if layers is None else [l for l in layers if l < L]
    weights = np.outer(times, np.bincount(np.array(chosen, dtype=int), minlength=L)).reshape(S * L)
    weights = _constant(task_maps, weights)
    contrast = contrast_attention(task_maps[:S, ...], general_maps[:S, ...], lam)
    # a step or layer that does not count may hold anything: select, do not multiply by 0
    contrast = xp.where(weights[:, None] > 0, xp.reshape(contrast, (S * L, -1)), xp.zeros_like(contrast[0, 0, :]))
    return bilinear_resize(xp.reshape(weights @ contrast, tuple(grid)), size)


def bilinear_resize(image: Any, size: Sequence[int]) -> Any:
    """Resize columns, then rows, by Pillow's filter."""
    xp = array_namespace(image)
    h, w = image.shape[:2]
    rows, columns = (_constant(image, _taps(n, m)) for n, m in ((h, size[0]), (w, size[1])))
    down = xp.reshape(rows @ xp.reshape(image, (h, -1)), (size[0], *image.shape[1:]))
    if image.ndim == 2:
        return down @ columns.T
    return columns @ down  # the channels are the columns of each row's matrix


def connected_regions(mask: Any) -> tuple[Any, Any]:
    """Find the regions and number them by their first pixels."""
    xp = array_namespace(mask)
    flat, roots = _regions(mask, EDGES)
    is_root = flat & (roots == _indices(mask))
    number = xp.cumulative_sum(xp.astype(is_root, xp.int64))
    labels = xp.where(flat, xp.take(number, roots), xp.zeros_like(number))
    return xp.reshape(labels, mask.shape), number[-1]


def attention_mask(
    score_map: Any,
    top_p: float = 0.2,
    max_regions: int = 3,
    *,
    strategy: str = "attention_sum",
    count_rule: str = "code",
    outlier_percent: float = 0.1,
) -> Any:
    """Keep the best regions of the best pixels, or drop the smallest."""
    xp = array_namespace(score_map)
    n = score_map.shape[0] * score_map.shape[1]
    flat, roots = _regions(score_map >= _quantile(score_map, 1.0 - top_p), EDGES)
    is_root = flat & (roots == _indices(score_map))
    area = _sums(xp.astype(flat, xp.int64), roots)
    if strategy == "remove_small":
        smallest = _looked_up([int(k * outlier_percent / 100) for k in range(n + 1)], xp.sum(xp.astype(flat, xp.int64)))
        kept = area >= smallest
    else:
        scores = xp.reshape(score_map, (n,))
        scores = _sums(scores, roots) if strategy == "attention_sum" else xp.astype(area, score_map.dtype)
        worst = xp.asarray(-xp.inf, dtype=scores.dtype, device=device(scores))
        order = xp.argsort(-xp.where(is_root, scores, worst), stable=True)
        share = [max(max_regions, int(k * top_p)) if count_rule == "code" else max_regions for k in range(n + 1)]
        kept = xp.argsort(order) < _looked_up(share, xp.sum(xp.astype(is_root, xp.int64)))
    return xp.reshape(flat & xp.take(kept & is_root, roots), score_map.shape)


def attention_entropy(a: Any, normalize: bool = True) -> Any:
    """Return the entropy of the last axis."""
    xp = array_namespace(a)
    if normalize:
        a = a / xp.sum(a, axis=-1, keepdims=True)
    return xp.sum(xp.where(a > 0, -a * xp.log(xp.where(a > 0, a, xp.ones_like(a))), xp.zeros_like(a)), axis=-1)


def texture_complexity(image: Any) -> Any:
    """Return the share of Canny's edge pixels."""
    xp = array_namespace(image)
    grey = image if image.ndim == 2 else 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    (slope_y, rise_y), (slope_x, rise_x) = (_filters(n) for n in grey.shape)
    gx = _constant(grey, rise_y) @ grey @ _constant(grey, slope_x).T
    gy = _constant(grey, slope_y) @ grey @ _constant(grey, rise_x).T
    m = xp.sqrt(gx * gx + gy * gy)
    thin = _ridge(m, gx, gy)
    flat, roots = _regions(thin & (m >= 0.4), EDGES + CORNERS)
    strong = xp.reshape(thin & (m >= 0.8), flat.shape)
    anchored = _least(xp.astype(~strong, xp.int64), roots) == 0
    return xp.mean(xp.astype(flat & xp.take(anchored, roots), image.dtype))


def color_complexity(image: Any) -> Any:
    """Return the entropy of the histogram of hues, as a share of ln 180."""
    xp = array_namespace(image)
    r, g, b = (xp.reshape(image[..., c], (-1,)) for c in range(3))
    top, low = xp.maximum(xp.maximum(r, g), b), xp.minimum(xp.minimum(r, g), b)
    spread = xp.where(top > low, top - low, xp.ones_like(top))
    third = xp.where(top == r, (g - b) / spread, xp.where(top == g, 2 + (b - r) / spread, 4 + (r - g) / spread))
    sixth = xp.where(third < 0, third + 6, third)
    bins = xp.astype(xp.floor(30 * sixth), xp.int64) % 180
    hues = _constant(bins, np.arange(180), dtype=bins.dtype)
    share = xp.mean(xp.astype(bins[:, None] == hues, image.dtype), axis=0)
    return attention_entropy(share, normalize=False) / math.log(180)


def _constant(like: Any, values: Any, dtype: Any = None) -> Any:
    return array_namespace(like).asarray(values, dtype=dtype or like.dtype, device=device(like))


def _indices(grid: Any) -> Any:
    xp = array_namespace(grid)
    return xp.arange(grid.shape[0] * grid.shape[1], dtype=xp.int64, device=device(grid))


def _taps(n: int, m: int) -> np.ndarray:
    """Lay out the filter output by output: which inputs it sees, from the first to the last, and how much of each."""
    table = np.zeros((m, n))
    scale = n / m
    reach = max(scale, 1.0)
    for o in range(m):
        centre = (o + 0.5) * scale
        first, end = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), n)
        for j in range(first, end):
            table[o, j] = max(0.0, 1.0 - abs(j - centre + 0.5) / reach)
        table[o] /= math.fsum(table[o])
    return table


def _quantile(score_map: Any, q: float) -> Any:
    """Interpolate linearly between two order statistics, exactly where they are equal."""
    xp = array_namespace(score_map)
    n = score_map.shape[0] * score_map.shape[1]
    ordered = xp.sort(xp.reshape(score_map, (n,)))
    place = (n - 1) * (q * 100 / 100)
    below = int(place)
    low, high = ordered[below], ordered[min(below + 1, n - 1)]
    return low + (high - low) * (place - below)


def _looked_up(table: Sequence[int], place: Any) -> Any:
    """Read a table of whole numbers that was made in double precision."""
    xp = array_namespace(place)
    return xp.take(xp.asarray(table, dtype=xp.int64, device=device(place)), xp.reshape(place, (1,)))[0]


def _regions(mask: Any, neighbours: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
    """Return the mask as a row, and for each pixel the first pixel of its region; other pixels are alone.

    Each round hangs every region on the smallest region that touches it. A region that finds no smaller one takes over
    a neighbour, or gets a smaller neighbour by the takeover: two rounds halve the regions that are not whole.
    """
    xp = array_namespace(mask)
    h, w = mask.shape
    flat, ids = xp.reshape(mask, (h * w,)), _indices(mask)
    around = _constant(ids, _neighbours(h, w, neighbours).reshape(-1), dtype=ids.dtype)
    nothing = ids[:1] + h * w
    roots = ids
    doublings = max(h * w - 1, 1).bit_length()
    for _ in range(2 * doublings):
        visible = xp.concat([xp.where(flat, roots, nothing), nothing])
        touching = xp.min(xp.reshape(xp.take(visible, around), (-1, h * w)), axis=0)
        parents = _least(xp.where(flat, touching, roots), roots)
        parents = xp.where(parents < ids, parents, ids)
        for _ in range(doublings):
            parents = xp.take(parents, parents)
        roots = xp.take(parents, roots)
    return flat, roots


def _neighbours(h: int, w: int, steps: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return, for each step and pixel, the pixel there, or h w beyond the border; first the pixel itself."""
    number = np.pad(np.arange(h * w).reshape(h, w), 1, constant_values=h * w)
    return np.stack([number[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy, dx in ((0, 0), *steps)])


def _moved(grid: Any, dy: int, dx: int, beyond: float) -> Any:
    """Return the grid of the neighbours dy rows below and dx columns to the right."""
    xp = array_namespace(grid)
    h, w = grid.shape
    side = xp.zeros((h, 1), dtype=grid.dtype, device=device(grid)) + beyond
    wide = xp.concat([side, grid, side], axis=1)
    lid = xp.zeros((1, w + 2), dtype=grid.dtype, device=device(grid)) + beyond
    return xp.concat([lid, wide, lid], axis=0)[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]


def _least(values: Any, roots: Any) -> Any:
    """Return, at each root, the least value in its region; elsewhere what comes."""
    xp = array_namespace(values)
    order = xp.argsort(values)
    order = xp.take(order, xp.argsort(xp.take(roots, order), stable=True))
    begin = xp.searchsorted(xp.take(roots, order), _places(roots))
    return xp.take(xp.take(values, order), xp.minimum(begin, _places(roots)[-1]))


def _sums(values: Any, roots: Any) -> Any:
    """Return, at each root, the sum over its region: pixels sorted by region, added up over growing distances."""
    xp = array_namespace(values)
    order = xp.argsort(roots, stable=True)
    sums, owners = xp.take(values, order), xp.take(roots, order)
    reach = 1
    while reach < roots.shape[0]:
        same = owners[reach:] == owners[:-reach]
        added = xp.where(same, sums[:-reach], xp.zeros_like(sums[reach:]))
        sums = xp.concat([sums[:reach], sums[reach:] + added])
        reach *= 2
    end = xp.searchsorted(owners, _places(roots), side="right")
    return xp.take(sums, xp.maximum(end - 1, 0 * end))


def _places(row: Any) -> Any:
    xp = array_namespace(row)
    return xp.arange(row.shape[0], dtype=row.dtype, device=device(row))


def _filters(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices that smooth and then differentiate, and smooth and then smooth, n samples."""
    gauss = np.exp(-((np.arange(-6, 7) / 1.4) ** 2) / 2)
    smooth = _banded(n, gauss / gauss.sum())
    return _banded(n, np.array([-1.0, 0.0, 1.0])) @ smooth, _banded(n, np.array([1.0, 2.0, 1.0])) @ smooth


def _banded(n: int, kernel: np.ndarray) -> np.ndarray:
    """Write a correlation as a matrix; what reaches beyond an end counts at the end."""
    matrix = np.zeros((n, n))
    for k, weight in enumerate(kernel, start=-(len(kernel) // 2)):
        matrix[np.arange(n), np.clip(np.arange(n) + k, 0, n - 1)] += weight
    return matrix


def _ridge(m: Any, gx: Any, gy: Any) -> Any:
    """Return where m does not grow ahead, and falls behind; the direction by comparing the two slopes."""
    xp = array_namespace(m)
    steep = math.tan(math.pi / 8)
    flat_wise, upright = xp.abs(gy) <= steep * xp.abs(gx), xp.abs(gx) < steep * xp.abs(gy)
    falling = gx * gy > 0

    def pick(sign: int) -> Any:
        moved: Callable[[int, int], Any] = lambda y, x: _moved(m, sign * y, sign * x, 0.0)  # noqa: E731
        slanted = xp.where(falling, moved(1, 1), moved(1, -1))
        return xp.where(flat_wise, moved(0, 1), xp.where(upright, moved(1, 0), slanted))

    return (m >= pick(1)) & (m > pick(-1))
