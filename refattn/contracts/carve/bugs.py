"""Mistakes that people make with CARVE, each one exchanged step of the plain implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.carve.plain import (
    coloring,
    contrasting,
    fusing,
    labelling,
    looking,
    masking,
    resizing,
    spreading,
    texturing,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refattn.conformance.contract import Bug, Case

__all__ = [
    "COLOR_BUGS",
    "CONTRAST_BUGS",
    "ENTROPY_BUGS",
    "FUSE_BUGS",
    "IMAGE_BUGS",
    "LABEL_BUGS",
    "MASK_BUGS",
    "RESIZE_BUGS",
    "TEXTURE_BUGS",
]

WIDE = ("float64", "float32", "float16")
DECIDED = ("float64", "float32")  # in narrower dtypes rounding itself decides which pixels are edges


def _mean_over_queries(weights: np.ndarray) -> Any:
    return weights.mean(axis=-2)


def _first_query(weights: np.ndarray) -> Any:
    return weights[..., 0, :]


def _heads_summed(rows: np.ndarray) -> Any:
    return rows.sum(axis=-2)


def _strongest_head(rows: np.ndarray) -> Any:
    return rows.max(axis=-2)


def _renormalised(row: np.ndarray, start: int, stop: int) -> Any:
    return row[..., start:stop] / row[..., start:stop].sum(axis=-1, keepdims=True)


def _one_too_early(row: np.ndarray, start: int, stop: int) -> Any:
    return np.roll(row, 1, axis=-1)[..., start:stop]


def _outside(a: np.ndarray, b: np.ndarray, lam: float) -> Any:
    return a / b + lam


def _upside_down(a: np.ndarray, b: np.ndarray, lam: float) -> Any:
    return b / (a + lam)


def _difference(a: np.ndarray, b: np.ndarray, lam: float) -> Any:
    return a - b / (1.0 + lam)


def _forgotten(a: np.ndarray, b: np.ndarray, lam: float) -> Any:
    del lam
    return a / b


def _tikhonov(a: np.ndarray, b: np.ndarray, lam: float) -> Any:
    return a * b / (b * b + lam)


def _each_its_share(a: np.ndarray, b: np.ndarray, lam: float) -> Any:
    return (a / a.sum(axis=-1, keepdims=True)) / (b / b.sum(axis=-1, keepdims=True) + lam)


def _paired_from_the_end(task: np.ndarray, general: np.ndarray) -> Any:
    S = min(len(task), len(general))
    return task[-S:], general[-S:]


def _averaged_general(task: np.ndarray, general: np.ndarray) -> Any:
    return task, np.broadcast_to(general.mean(axis=0), task.shape)


def _quotient_of_layer_means(task: np.ndarray, general: np.ndarray, lam: float) -> Any:
    quotient = task.mean(axis=1, keepdims=True) / (general.mean(axis=1, keepdims=True) + lam)
    return np.broadcast_to(quotient, task.shape)


def _difference_of_maps(task: np.ndarray, general: np.ndarray, lam: float) -> Any:
    return task - general / (1.0 + lam)


def _counted_from_zero(t: int) -> float:
    return float(t)


def _all_alike(t: int) -> float:
    del t
    return 1.0


def _layer_mean(maps: np.ndarray) -> Any:
    return maps.mean(axis=0)


def _counted_from_one(layers: list[int]) -> list[int]:
    return [max(l - 1, 0) for l in layers]


def _column_by_column(x: np.ndarray, rows: int, columns: int) -> Any:
    return x.reshape(columns, rows).T


def _corners_on_corners(o: int, n: int, m: int) -> float:
    return 0.5 + o * (n - 1) / max(m - 1, 1)


def _corner_of_the_pixel(o: int, n: int, m: int) -> float:
    return o * n / m + 0.5


def _two_taps(n: int, m: int) -> float:
    del n, m
    return 1.0


def _wide_always(n: int, m: int) -> float:
    return max(n / m, 1.0) + 0.5


def _box(x: np.ndarray) -> Any:
    return 1.0 * ((x > -0.5) & (x <= 0.5))


def _as_they_are(w: np.ndarray) -> Any:
    return w


def _other_tail(scores: np.ndarray, p: float) -> Any:
    return np.quantile(scores, p)


def _share_of_the_range(scores: np.ndarray, p: float) -> Any:
    return scores.min() + (1.0 - p) * (scores.max() - scores.min())


def _tau_of_the_appendix(scores: np.ndarray, p: float) -> Any:
    del scores, p
    return 0.05


def _next_pixel_above(scores: np.ndarray, p: float) -> Any:
    return np.quantile(scores, 1.0 - p, method="higher") + 1e-9 * scores.max()


def _strictly(scores: np.ndarray, tau: float) -> Any:
    return scores > tau


def _diagonals_too(y: int, x: int) -> Iterable[tuple[int, int]]:
    return [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def _never_upwards(y: int, x: int) -> Iterable[tuple[int, int]]:
    return [(y, x + 1), (y + 1, x), (y, x - 1)]


def _along_rows_only(y: int, x: int) -> Iterable[tuple[int, int]]:
    return [(y, x + 1), (y, x - 1)]


def _by_columns(h: int, w: int) -> Iterable[tuple[int, int]]:
    return [(y, x) for x in range(w) for y in range(h)]


def _backwards(h: int, w: int) -> Iterable[tuple[int, int]]:
    return [(y, x) for y in reversed(range(h)) for x in reversed(range(w))]


def _from_zero(k: int) -> int:
    return k


def _mean_of_the_region(scores: np.ndarray) -> Any:
    return scores.mean()


def _peak_of_the_region(scores: np.ndarray) -> Any:
    return scores.max()


def _smallest_first(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda r: scores[r])


def _later_wins(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda r: (-scores[r], -r))


def _at_most_max_regions(K: int, n: int, p: float, rule: str) -> int:
    return min(K, int(n * p)) if rule == "code" else K


def _always_max_regions(K: int, n: int, p: float, rule: str) -> int:
    del n, p, rule
    return K


def _share_rounded_up(K: int, n: int, p: float, rule: str) -> int:
    return max(K, -int(-n * p // 1)) if rule == "code" else K


def _percent_as_a_share(area: int, total: int, percent: float) -> bool:
    return area >= int(total * percent)


def _larger_only(area: int, total: int, percent: float) -> bool:
    return area > int(total * percent / 100)


def _of_the_largest(a: np.ndarray) -> Any:
    return a / a.max(axis=-1, keepdims=True)


def _softmax_again(a: np.ndarray) -> Any:
    return np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True)


def _unnormalised(a: np.ndarray) -> Any:
    return a


def _in_bits(a: np.ndarray) -> Any:
    return -np.log2(np.where(a > 0, a, 1.0))


def _plus_epsilon(a: np.ndarray) -> Any:
    return -np.log(a + 1e-3)


def _zero_times_log_zero(a: np.ndarray) -> Any:
    with np.errstate(divide="ignore"):
        return -np.log(a)


def _plain_mean(a: np.ndarray, s: np.ndarray) -> Any:
    return (a * s).mean(axis=-1)


def _ahead_of_log_n(a: np.ndarray, s: np.ndarray) -> Any:
    return (a * s).sum(axis=-1) / np.log(a.shape[-1] + 1.0)


def _mean_of_channels(image: np.ndarray) -> Any:
    return image if image.ndim == 2 else image.mean(axis=-1)


def _dark_beyond(x: np.ndarray, width: int) -> Any:
    return np.pad(x, width)


def _only_across(wide: np.ndarray) -> Any:
    down = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    slope = down[:, 2:] - down[:, :-2]
    return np.zeros_like(slope), slope


def _prewitt(wide: np.ndarray) -> Any:
    across = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    down = wide[:-2] + wide[1:-1] + wide[2:]
    return across[2:] - across[:-2], down[:, 2:] - down[:, :-2]


def _along_the_edge(gy: np.ndarray, gx: np.ndarray) -> Any:
    return np.rint(np.degrees(np.arctan2(gx, -gy)) / 45).astype(int) % 4


def _quarters(gy: np.ndarray, gx: np.ndarray) -> Any:
    return np.where(np.abs(gy) > np.abs(gx), 2, 0)


def _unscaled(m: np.ndarray) -> Any:
    return m


def _edges_only(y: int, x: int) -> Iterable[tuple[int, int]]:
    return [(y, x + 1), (y + 1, x), (y, x - 1), (y - 1, x)]


def _no_strong_needed(best: float) -> bool:
    del best
    return True


def _mirrored_hue(r: float, g: float, b: float) -> float:
    top, spread = max(r, g, b), max(r, g, b) - min(r, g, b)
    if spread == 0:
        return 0.0
    if top == r:
        return 60 * abs((g - b) / spread)
    return 60 * ((b - r) / spread + 2) if top == g else 60 * ((r - g) / spread + 4)


def _hue_without_spread(r: float, g: float, b: float) -> float:
    top = max(r, g, b)
    if max(r, g, b) == min(r, g, b):
        return 0.0
    if top == r:
        return 60 * ((g - b) % 6)
    return 60 * ((b - r) + 2) if top == g else 60 * ((r - g) + 4)


def _six_degrees(degrees: float) -> int:
    return int(degrees / 6)


def _whole_degrees(degrees: float) -> int:
    return int(degrees) % 180


def _most_of_256(counts: np.ndarray) -> float:
    del counts
    return float(np.log(256))


def _most_of_those_seen(counts: np.ndarray) -> float:
    return float(np.log(max(int(np.count_nonzero(counts)), 2)))


def _has_lam(case: Case) -> bool:
    return bool(case.options.get("lam", 1e-8) >= 1e-3)


def _some(case: Case) -> bool:
    return all(a.size > 0 for a in case.arrays.values())


def _weighted(case: Case) -> bool:
    return bool(case.options.get("steps", "all") == "all")


IMAGE_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(looking, "image_")
    for mistake in (
        Mistake("last_row", _mean_over_queries, "all queries are averaged", "Only the last query generates the token."),
        Mistake("last_row", _first_query, "the first query is taken", "Take the last one: it generates the token."),
        Mistake("average", _heads_summed, "heads are added up", "Average over heads."),
        Mistake("average", _strongest_head, "the strongest head speaks for all", "Average over heads."),
        Mistake(
            "cut",
            _renormalised,
            "the image tokens are made to sum to 1",
            "Keep the softmax over all keys: how much goes to the image is part of the map.",
        ),
        Mistake("cut", _one_too_early, "the slice begins a token too early", "Token start is the first of the image."),
    )
)

CONTRAST_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(contrasting, "contrast_")
    for mistake in (
        Mistake("divide", _outside, "λ is added to the quotient", "λ belongs in the denominator.", _has_lam),
        Mistake("divide", _upside_down, "the general map is divided by the task's", "Divide A_Q by A_G.", _some),
        Mistake(
            "divide",
            _difference,
            "the maps are subtracted",
            "Visual noise multiplies attention, so it is divided out: A_Q / (A_G + λ).",
        ),
        Mistake("divide", _forgotten, "λ is forgotten", "Add λ to the denominator.", _has_lam),
        Mistake(
            "divide",
            _tikhonov,
            "λ is added to the square of the denominator",
            "The penalty is λ x² A_G, not λ x²: the optimum is A_Q / (A_G + λ).",
            _has_lam,
        ),
        Mistake(
            "divide", _each_its_share, "both maps are made to sum to 1 first", "Divide the maps as they come.", _some
        ),
    )
)

_SAMPLING = (
    Mistake(
        "centre",
        _corners_on_corners,
        "first and last pixels are laid on one another",
        "Pixels are areas: the centre of output o is at (o + 0.5) n/m.",
    ),
    Mistake(
        "centre",
        _corner_of_the_pixel,
        "half pixels are forgotten: output o reads at o n/m",
        "The centre of output o is at (o + 0.5) n/m.",
    ),
    Mistake(
        "reach",
        _two_taps,
        "the triangle keeps its width when it shrinks, so inputs are skipped",
        "Shrinking by s widens the triangle by s.",
    ),
    Mistake("tent", _box, "the nearest pixel is copied", "Weigh the neighbours by their distance."),
    Mistake("shares", _as_they_are, "weights at the border do not sum to 1", "Divide the weights by their sum."),
)
RESIZE_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(resizing, "resize_")
    for mistake in (
        *_SAMPLING,
        Mistake(
            "reach",
            _wide_always,
            "the triangle is wide even where nothing shrinks",
            "The half width is max(n/m, 1): the same size leaves the image as it is.",
        ),
    )
)

FUSE_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(fusing, "fuse_")
    for mistake in (
        Mistake(
            "paired", _paired_from_the_end, "runs of unequal length are aligned at their ends", "Pair steps by index."
        ),
        Mistake(
            "paired",
            _averaged_general,
            "the general run is averaged over its steps",
            "Step t of one run is divided by step t of the other.",
        ),
        Mistake(
            "contrasts",
            _quotient_of_layer_means,
            "layers are averaged before the division",
            "Divide layer by layer, then add the quotients.",
        ),
        Mistake("contrasts", _difference_of_maps, "the maps are subtracted", "Divide: A_Q / (A_G + λ)."),
        Mistake("step_weight", _counted_from_zero, "the first step weighs 0", "Step t weighs t, from 1.", _weighted),
        Mistake("step_weight", _all_alike, "every step weighs the same", "Later steps weigh more: w = t.", _weighted),
        Mistake("layer_sum", _layer_mean, "layers are averaged", "Layers are added up."),
        Mistake("counted", _counted_from_one, "layers are counted from 1", "Layers are counted from 0."),
        Mistake("lay", _column_by_column, "tokens fill the grid column by column", "Tokens come row by row."),
        _SAMPLING[0],
        _SAMPLING[2],
        _SAMPLING[4],
    )
)

LABEL_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(labelling, "label_")
    for mistake in (
        Mistake("around", _diagonals_too, "pixels that touch at a corner are one region", "Only edges connect."),
        Mistake(
            "around",
            _never_upwards,
            "a region never grows upwards, so a U falls apart",
            "Regions grow in all four directions; labels that meet must be merged.",
        ),
        Mistake("around", _along_rows_only, "runs of a row stay apart", "Pixels above one another touch too."),
        Mistake("reading_order", _by_columns, "regions are numbered column by column", "Read row by row."),
        Mistake("reading_order", _backwards, "regions are numbered from the end", "Read from the top left."),
        Mistake("numbered", _from_zero, "the first region gets 0, as the ground does", "Number regions from 1."),
    )
)


def _ranks(case: Case) -> bool:
    return bool(case.options.get("strategy", "attention_sum") != "remove_small")


def _sums(case: Case) -> bool:
    return bool(case.options.get("strategy", "attention_sum") == "attention_sum")


def _counts_as_code(case: Case) -> bool:
    return _ranks(case) and case.options.get("count_rule", "code") == "code"


def _removes(case: Case) -> bool:
    return not _ranks(case)


MASK_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(masking, "mask_")
    for mistake in (
        Mistake("threshold", _other_tail, "the quantile p is taken", "τ is the quantile 1 − p: a share p passes."),
        Mistake(
            "threshold",
            _share_of_the_range,
            "p is a share of the range of scores",
            "p is a share of the pixels: τ is a quantile.",
        ),
        Mistake(
            "threshold",
            _tau_of_the_appendix,
            "τ is 0.05, as an appendix says",
            "τ is a quantile of this map; what size its scores have does not matter.",
        ),
        Mistake(
            "threshold",
            _next_pixel_above,
            "the threshold lies above the pixel that should just pass",
            "Interpolate between the two pixels around the quantile.",
        ),
        Mistake("passes", _strictly, "pixels at the threshold fail", "S ≥ τ: a constant map passes whole."),
        Mistake("around", _diagonals_too, "pixels that touch at a corner are one region", "Only edges connect."),
        Mistake("worth", _mean_of_the_region, "regions are ranked by their mean", "Rank by the sum.", _sums),
        Mistake("worth", _peak_of_the_region, "regions are ranked by their peak", "Rank by the sum.", _sums),
        Mistake("ranked", _smallest_first, "the weakest regions stay", "Keep those of the largest score.", _ranks),
        Mistake("ranked", _later_wins, "among equals the later region wins", "The smaller number wins.", _ranks),
        Mistake(
            "allowed",
            _at_most_max_regions,
            "K bounds the number of regions from above",
            "K' = max(K, ⌊n p⌋) in the code.",
            _counts_as_code,
        ),
        Mistake(
            "allowed",
            _always_max_regions,
            "never more than K regions",
            "K' = max(K, ⌊n p⌋) in the code; K alone is the paper's rule.",
            _counts_as_code,
        ),
        Mistake(
            "allowed",
            _share_rounded_up,
            "the share of regions is rounded up",
            "⌊n p⌋: round down.",
            _counts_as_code,
        ),
        Mistake(
            "survives",
            _percent_as_a_share,
            "the percentage is not divided by 100",
            "outlier_percent is in percent of the area of all regions.",
            _removes,
        ),
        Mistake(
            "survives",
            _larger_only,
            "a region of just the smallest area is dropped",
            "Drop what is below the smallest area.",
            _removes,
        ),
    )
)


def _normalises(case: Case) -> bool:
    return bool(case.options.get("normalize", True)) and _some(case)


def _has_zeros(case: Case) -> bool:
    return bool(np.any(case.arrays["a"] == 0))


ENTROPY_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(spreading, "entropy_")
    for mistake in (
        Mistake(
            "normalised", _unnormalised, "attention to the image does not sum to 1", "Divide by the sum.", _normalises
        ),
        Mistake("normalised", _of_the_largest, "divided by the largest entry", "Divide by the sum.", _normalises),
        Mistake("normalised", _softmax_again, "a second softmax", "Attention is a share already.", _normalises),
        Mistake("surprise", _in_bits, "bits", "Nats: the natural logarithm."),
        Mistake(
            "surprise", _plus_epsilon, "something is added inside the logarithm", "0 ln 0 = 0 needs no ε.", _some, WIDE
        ),
        Mistake("surprise", _zero_times_log_zero, "0 ln 0 becomes NaN", "0 ln 0 = 0.", _has_zeros),
        Mistake("expected", _plain_mean, "the terms are averaged", "The terms are added up."),
        Mistake("expected", _ahead_of_log_n, "divided by a logarithm of N", "H is in nats, up to ln N."),
    )
)

TEXTURE_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(texturing, "texture_")
    for mistake in (
        Mistake(
            "grey",
            _mean_of_channels,
            "grey is the mean of the channels",
            "Weigh red, green and blue by 0.299, 0.587 and 0.114.",
            lambda case: bool(case.arrays["image"].ndim == 3),
            DECIDED,
        ),
        Mistake("bordered", _dark_beyond, "beyond the border it is dark", "Repeat the pixel at the border."),
        Mistake(
            "gradient",
            _only_across,
            "only slopes along a row count",
            "Both slopes count: m = hypot(gx, gy).",
            dtypes=DECIDED,
        ),
        Mistake(
            "gradient",
            _prewitt,
            "the middle row weighs no more than its neighbours",
            "Sobel weighs 1, 2, 1.",
            dtypes=DECIDED,
        ),
        Mistake(
            "eighth",
            _along_the_edge,
            "edges are thinned along themselves",
            "Compare along the gradient, which lies across the edge.",
            dtypes=DECIDED,
        ),
        Mistake(
            "eighth",
            _quarters,
            "only two directions are told apart",
            "Round to 0, 45, 90 and 135 degrees.",
            dtypes=DECIDED,
        ),
        Mistake("strength", _unscaled, "thresholds meet Sobel's unscaled sum", "Divide by 4: n = m/4."),
        Mistake("holds", _no_strong_needed, "weak edges stay by themselves", "A group needs a strong pixel."),
    )
)

COLOR_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(coloring, "color_")
    for mistake in (
        Mistake(
            "hue",
            _mirrored_hue,
            "purplish red is folded onto orange",
            "Hues below 0 turn round: (g − b)/spread mod 6.",
            dtypes=WIDE,
        ),
        Mistake("hue", _hue_without_spread, "pale colours lose their hue", "Divide by the spread of the channels."),
        Mistake("bin_of", _six_degrees, "sixty bins of six degrees", "180 bins of two degrees."),
        Mistake("bin_of", _whole_degrees, "degrees beyond 180 wrap round", "Halve the degrees: 0 … 179."),
        Mistake("most", _most_of_256, "divided by ln 256", "There are 180 bins: divide by ln 180."),
        Mistake("most", _most_of_those_seen, "divided by what the hues present could reach", "Divide by ln 180."),
    )
)
