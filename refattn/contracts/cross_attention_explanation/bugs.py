"""Mistakes that people make with occlusion maps and their comparison, each one exchanged step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.cross_attention_explanation import plain
from refattn.contracts.cross_attention_explanation.plain import (
    accumulating,
    aggregating,
    comparing,
    correlating,
    deleting,
    difference,
    divergence,
    min_max,
    pooling,
    standardising,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = [
    "ACCUMULATE_BUGS",
    "AGGREGATE_BUGS",
    "DELETE_BUGS",
    "DIFFERENCE_BUGS",
    "DIVERGENCE_BUGS",
    "MIN_MAX_BUGS",
    "PEARSON_BUGS",
    "POOL_BUGS",
    "SHARE_BUGS",
    "STANDARDISE_BUGS",
]


# --- scores


def directions_swapped(p: np.ndarray, q: np.ndarray) -> Any:
    """Return the terms of the divergence."""
    return np.where(p > 0, q * np.log(q / np.where(p > 0, p, 1.0)), 0.0)


def ratio_upside_down(p: np.ndarray, q: np.ndarray) -> Any:
    """Return the terms of the divergence."""
    return p * np.log(q / np.where(p > 0, p, 1.0) + (p == 0))


def cross_entropy(p: np.ndarray, q: np.ndarray) -> Any:
    """Return the terms of the divergence."""
    return -p * np.log(q)


def bits(p: np.ndarray, q: np.ndarray) -> Any:
    """Return the terms of the divergence."""
    return p * np.log2(np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0))


def epsilon_inside(p: np.ndarray, q: np.ndarray) -> Any:
    """Return the terms of the divergence."""
    return p * (np.log(p + 1e-8) - np.log(q + 1e-8))


def mean_over_vocabulary(t: np.ndarray) -> Any:
    """Return the scores."""
    return t.mean(axis=-1)


def gain_counted(p: np.ndarray, q: np.ndarray, target: np.ndarray) -> Any:
    """Return the scores."""
    i = np.arange(len(target))
    return q[:, i, target] - p[i, target]


def logarithms_compared(p: np.ndarray, q: np.ndarray, target: np.ndarray) -> Any:
    """Return the scores."""
    i = np.arange(len(target))
    return np.log(np.maximum(p[i, target], 1e-9)) - np.log(q[:, i, target])


def likeliest_instead_of_written(p: np.ndarray, q: np.ndarray, target: np.ndarray) -> Any:
    """Return the scores."""
    i = np.arange(len(target))
    top = p.argmax(axis=-1)
    return p[i, top] - q[:, i, top]


def size_of_the_change(p: np.ndarray, q: np.ndarray, target: np.ndarray) -> Any:
    """Return the scores."""
    i = np.arange(len(target))
    return np.abs(p[i, target] - q[:, i, target])


# --- accumulation


def kept_for_hidden(m: np.ndarray) -> Any:
    """Return what a mask counts for each element."""
    return 1.0 * m


def divided_by_all_masks(s: np.ndarray, h: np.ndarray) -> Any:
    """Return the map."""
    return (s.T @ h) / max(len(h), 1)


def not_divided(s: np.ndarray, h: np.ndarray) -> Any:
    """Return the map."""
    return s.T @ h


def weighted_by_scores(s: np.ndarray, h: np.ndarray) -> Any:
    """Return the map."""
    return (s.T @ h) / (np.abs(s).sum(axis=0)[:, None] + 1e-30)


def floor_taken_away(s: np.ndarray, h: np.ndarray) -> Any:
    """Return the map."""
    return ((s - s.mean(axis=0)).T @ h) / np.maximum(h.sum(axis=0), 1.0)


def own_word_unseen(saliency: np.ndarray, *, causal: bool) -> Any:
    """Return what each word may see."""
    return np.tril(saliency, k=-1) if causal else saliency


def later_words_seen(saliency: np.ndarray, *, causal: bool) -> Any:
    """Return what each word may see."""
    return np.triu(saliency) if causal else saliency


def all_words_seen(saliency: np.ndarray, *, causal: bool) -> Any:
    """Return what each word may see."""
    del causal
    return saliency


def causal_unasked(saliency: np.ndarray, *, causal: bool) -> Any:
    """Return what each word may see."""
    square = saliency.shape[0] == saliency.shape[1]
    return np.tril(saliency) if causal or square else saliency


# --- normalisers


def population_deviation(row: np.ndarray) -> Any:
    """Return the row, standardised."""
    return (row - row.mean()) / row.std() if row.max() > row.min() else 0.0 * row


def variance_divides(row: np.ndarray) -> Any:
    """Return the row, standardised."""
    return (row - row.mean()) / row.var(ddof=1) if row.max() > row.min() else 0.0 * row


def mean_stays(row: np.ndarray) -> Any:
    """Return the row, standardised."""
    return row / row.std(ddof=1) if row.max() > row.min() else 0.0 * row


def words_together(rows: np.ndarray, one: Callable[..., Any]) -> Any:
    """Return the standardised rows."""
    return one(rows.reshape(-1)).reshape(rows.shape)


def across_words(rows: np.ndarray, one: Callable[..., Any]) -> Any:
    """Return the standardised rows."""
    return np.stack([one(column) for column in rows.T], axis=-1)


def invisible_words_counted(rows: np.ndarray, one: Callable[..., Any]) -> Any:
    """Return the standardised rows of the decoder map."""
    return np.tril(np.stack([one(row) for row in rows]))


def zeros_counted(rows: np.ndarray, one: Callable[..., Any]) -> Any:
    """Return the standardised rows of the decoder map."""
    return np.stack([one(row) for row in np.tril(rows)])


def each_map_by_itself(row: np.ndarray, words: np.ndarray) -> tuple[Any, Any]:
    """Return the two ends of a word."""
    del words
    return row.min(), row.max()


def from_zero(row: np.ndarray, words: np.ndarray) -> tuple[Any, Any]:
    """Return the two ends of a word."""
    return 0.0, np.abs(np.concatenate([row, words])).max()


def divided_by_the_maximum(row: np.ndarray, low: Any, high: Any) -> Any:
    """Return the row between its ends."""
    return (row - low) / high if high != 0 and high > low else 0.0 * row


def from_minus_one(row: np.ndarray, low: Any, high: Any) -> Any:
    """Return the row between its ends."""
    return 2.0 * (row - low) / (high - low) - 1.0 if high > low else 0.0 * row


def all_words_shown(words: np.ndarray, i: int) -> Any:
    """Return the words that word i sees."""
    del i
    return words


def itself_not_shown(words: np.ndarray, i: int) -> Any:
    """Return the words that word i sees."""
    return words[:i]


# --- comparison


def summed_over_heads(chosen: np.ndarray) -> Any:
    """Return one map."""
    return chosen.sum(axis=-3).mean(axis=-3)


def largest_over_heads(chosen: np.ndarray) -> Any:
    """Return one map."""
    return chosen.max(axis=(-4, -3))


def layers_multiplied(chosen: np.ndarray) -> Any:
    """Return one map."""
    return chosen.mean(axis=-3).prod(axis=-3)


def geometric_mean(chosen: np.ndarray) -> Any:
    """Return one map."""
    return np.exp(np.log(np.maximum(chosen, 1e-30)).mean(axis=(-4, -3)))


def choice_ignored(attention: np.ndarray, layers: list[int], heads: list[int]) -> Any:
    """Return the chosen part."""
    del layers, heads
    return attention


def axes_confused(attention: np.ndarray, layers: list[int], heads: list[int]) -> Any:
    """Return the chosen part."""
    swapped = np.swapaxes(attention, -4, -3)
    inside = [
        [n % count for n in numbers] for numbers, count in zip((layers, heads), swapped.shape[-4:-2], strict=True)
    ]
    return swapped[..., inside[0], :, :, :][..., inside[1], :, :]


def tail_dropped(T: int, n: int) -> list[tuple[int, int]]:
    """Return where windows begin and end."""
    r = T // n
    return [(j * r, (j + 1) * r) for j in range(n)]


def tail_in_the_last_window(T: int, n: int) -> list[tuple[int, int]]:
    """Return where windows begin and end."""
    r = T // n
    return [(j * r, (j + 1) * r if j < n - 1 else T) for j in range(n)]


def windows_never_share(T: int, n: int) -> list[tuple[int, int]]:
    """Return where windows begin and end."""
    return [(j * T // n, (j + 1) * T // n) for j in range(n)]


def mean_for_maximum(window: np.ndarray, how: str) -> Any:
    """Return the pooled window."""
    del how
    return window.mean(axis=(-2, -1))


def maximum_for_mean(window: np.ndarray, how: str) -> Any:
    """Return the pooled window."""
    del how
    return window.max(axis=(-2, -1))


def sum_for_mean(window: np.ndarray, how: str) -> Any:
    """Return the pooled window."""
    return window.max(axis=(-2, -1)) if how == "max" else window.sum(axis=(-2, -1))


def maximum_of_sizes(window: np.ndarray, how: str) -> Any:
    """Return the pooled window."""
    return np.abs(window).max(axis=(-2, -1)) if how == "max" else window.mean(axis=(-2, -1))


def bands_averaged_first(window: np.ndarray, how: str) -> Any:
    """Return the pooled window."""
    bands = window.mean(axis=-1)
    return bands.max(axis=-1) if how == "max" else bands.mean(axis=-1)


def rows_as_they_are(a: np.ndarray) -> Any:
    """Return the rows, levelled."""
    return a - a.mean(axis=(-2, -1), keepdims=True)


def rows_only_centred(a: np.ndarray) -> Any:
    """Return the rows, levelled."""
    return a - a.mean(axis=-1, keepdims=True)


def rows_only_scaled(a: np.ndarray) -> Any:
    """Return the rows, levelled."""
    norm = np.linalg.norm(a, axis=-1, keepdims=True)
    return a / np.where(norm > 0, norm, 1.0)


def frames_levelled(a: np.ndarray) -> Any:
    """Return the rows, levelled."""
    spread = a.std(axis=-2, ddof=1, keepdims=True) if a.shape[-2] > 1 else np.ones_like(a)
    return (a - a.mean(axis=-2, keepdims=True)) / np.where(spread > 0, spread, 1.0)


def ranks(a: np.ndarray) -> Any:
    """Return the rows, levelled."""
    return plain.level(a.argsort(axis=-1).argsort(axis=-1).astype(float))


def mean_of_products(x: np.ndarray, y: np.ndarray) -> Any:
    """Return the correlation."""
    return (x * y).mean(axis=(-2, -1))


def size_of_agreement(x: np.ndarray, y: np.ndarray) -> Any:
    """Return the correlation."""
    norms = np.sqrt((x * x).sum(axis=(-2, -1)) * (y * y).sum(axis=(-2, -1)))
    return np.abs((x * y).sum(axis=(-2, -1))) / np.where(norms > 0, norms, 1.0)


def constant_rows_averaged(x: np.ndarray, y: np.ndarray) -> Any:
    """Return the correlation."""
    norms = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return ((x * y).sum(axis=-1) / np.where(norms > 0, norms, 1.0)).mean(axis=-1)


def not_squared(rho: Any) -> Any:
    """Return the explained variance."""
    return rho


def sign_kept(rho: Any) -> Any:
    """Return the explained variance."""
    return rho * np.abs(rho)


def not_shifted(a: np.ndarray) -> Any:
    """Return the histograms."""
    total = np.abs(a).sum(axis=-1, keepdims=True)
    return np.abs(a) / np.where(total > 0, total, 1.0)


def scaled_to_one_peak(a: np.ndarray) -> Any:
    """Return the histograms."""
    above = a - a.min(axis=-1, keepdims=True)
    peak = above.max(axis=-1, keepdims=True)
    return above / np.where(peak > 0, peak, 1.0)


def words_share_one_sum(a: np.ndarray) -> Any:
    """Return the histograms."""
    above = a - a.min(axis=-1, keepdims=True)
    total = above.sum(axis=(-2, -1), keepdims=True) / a.shape[-2]
    return above / np.where(total > 0, total, 1.0)


def union_for_overlap(f: np.ndarray, g: np.ndarray) -> Any:
    """Return what both histograms have."""
    return np.maximum(f, g).sum(axis=-1).mean(axis=-1)


def summed_over_words(f: np.ndarray, g: np.ndarray) -> Any:
    """Return what both histograms have."""
    return np.minimum(f, g).sum(axis=(-2, -1))


# --- deletion


def first_word_alone(saliency: np.ndarray) -> Any:
    """Return the sentence's map."""
    return saliency[0]


def loudest_word(saliency: np.ndarray) -> Any:
    """Return the sentence's map."""
    return saliency.max(axis=0)


def frames_go_whole(saliency: np.ndarray) -> Any:
    """Return the sentence's map."""
    mean = saliency.mean(axis=0)
    return np.broadcast_to(mean.mean(axis=-1, keepdims=True), mean.shape).copy()


def high_to_low(flat: np.ndarray) -> Any:
    """Return the order of deletion, read from its end."""
    return np.argsort(-flat, kind="stable")


def by_size(flat: np.ndarray) -> Any:
    """Return the order of deletion, read from its end."""
    return np.argsort(np.abs(flat), kind="stable")


def ties_turned(flat: np.ndarray) -> Any:
    """Return the order of deletion, read from its end."""
    return np.argsort(-flat, kind="stable")[::-1]


def rounded_up(N: int, percent: int) -> int:
    """Return how many elements a percentage is."""
    return -(-N * percent // 100)


def insertion_deletes(order: np.ndarray, n: int, *, insertion: bool) -> Any:
    """Return what is kept."""
    del insertion
    last = np.zeros(len(order), dtype=bool)
    last[order[len(order) - n :]] = True
    return ~last


def deletion_keeps(order: np.ndarray, n: int, *, insertion: bool) -> Any:
    """Return what is kept."""
    del insertion
    last = np.zeros(len(order), dtype=bool)
    last[order[len(order) - n :]] = True
    return last


# --- where mistakes can act


def _scores(case: Case) -> bool:
    return bool(case.arrays["q"].size) and case.arrays["p"].shape[-1] > 1


def _unseen(case: Case) -> bool:
    return _scores(case) and bool(np.all(case.arrays["p"] > 0))


def _masked(case: Case) -> bool:
    return bool(case.arrays["scores"].size) and bool(case.arrays["masks"].size)


def _causal(case: Case) -> bool:
    return _masked(case) and bool(case.options.get("causal")) and case.arrays["scores"].shape[1] > 1


def _square(case: Case) -> bool:
    shape = case.arrays["masks"].shape
    return _masked(case) and not case.options.get("causal") and shape[1:] == (case.arrays["scores"].shape[1],)


def _words(case: Case, least: int = 2) -> bool:
    return bool(case.arrays["saliency"].shape[0] >= least)


def _heads(case: Case) -> bool:
    attention = case.arrays["attention"]
    return bool(attention.size) and attention.shape[-3] * attention.shape[-4] > 1


def _chosen(case: Case) -> bool:
    return _heads(case) and bool({"layers", "heads"} & set(case.options))


def _how(how: str, case: Case) -> bool:
    return bool(case.options.get("how", "max") == how)


def _sentences(case: Case) -> bool:
    return bool(case.arrays["a"].size)


def _compared(how: str) -> Callable[[Case], bool]:
    return lambda case: bool(case.options["how"] == how)


_KL = "KL(p ‖ q) = Σ p (ln p − ln q), over the vocabulary."
_DIFFERENCE = "P(y) − P⁽ᵏ⁾(y), the probability that the occlusion takes from the written word."
_ACCUMULATE = "Divide Σ s (1 − m) by Σ (1 − m), element by element."
_CAUSAL = "Entry (i, j) of the decoder map is kept for j ≤ i, and only that map is cut."
_STANDARD = "For each word subtract the mean and divide by the deviation with n − 1."
_VISIBLE = "Use the i + 1 visible entries of row i; the others are 0."
_PAIRED = "Take minimum and maximum over both maps of a word; (a − min)/(max − min)."
_MEAN = "Take the plain mean over the chosen layers and heads."
_WINDOWS = "Window j covers frames ⌊jT/T'⌋ to ⌈(j + 1)T/T'⌉ − 1."
_POOL = "Pool over the window and all bands at once, by the maximum unless the mean is asked for."
_LEVEL = "Standardise each word's row over the frames, then correlate."
_OVERLAP = "Shift each row to begin at 0, scale it to sum to 1, and average Σ min over words."
_ORDER = "Sort the mean map from low to high with a stable sort, and delete from the end."

DIVERGENCE_BUGS = tuple(
    mistake.planted(divergence)
    for mistake in (
        Mistake("terms", directions_swapped, "The other direction is taken: KL(q ‖ p).", _KL, _scores),
        Mistake("terms", ratio_upside_down, "The ratio stands upside down: the score is −KL.", _KL, _scores),
        Mistake("terms", cross_entropy, "The entropy of p is left in: cross-entropy.", _KL, _scores),
        Mistake("terms", bits, "The logarithm is to base 2.", "Scores are in nats: use ln.", _scores),
        Mistake(
            "terms",
            epsilon_inside,
            "A small number is added to both probabilities.",
            "Add nothing: where p is 0 the term is 0, and q = 0 where p > 0 is an error.",
            _unseen,
            ("float64",),
        ),
        Mistake("gather", mean_over_vocabulary, "Terms are averaged over the vocabulary.", _KL, _scores),
    )
)
DIFFERENCE_BUGS = tuple(
    mistake.planted(difference)
    for mistake in (
        Mistake("lost", gain_counted, "What the word gains is counted.", _DIFFERENCE, _scores),
        Mistake("lost", logarithms_compared, "Log-probabilities are compared.", _DIFFERENCE, _scores),
        Mistake("lost", likeliest_instead_of_written, "The likeliest word is followed.", _DIFFERENCE, _scores),
        Mistake("lost", size_of_the_change, "The sign is dropped.", _DIFFERENCE, _scores),
    )
)
ACCUMULATE_BUGS = tuple(
    mistake.planted(accumulating)
    for mistake in (
        Mistake("hidden", kept_for_hidden, "Scores count where the mask keeps.", "1 keeps: count 1 − m.", _masked),
        Mistake("average", divided_by_all_masks, "Sums are divided by the number of masks.", _ACCUMULATE, _masked),
        Mistake("average", not_divided, "Sums are not divided.", _ACCUMULATE, _masked),
        Mistake("average", weighted_by_scores, "Sums are divided by the sum of the scores.", _ACCUMULATE, _masked),
        Mistake("average", floor_taken_away, "The mean score is taken away first.", _ACCUMULATE, _masked),
        Mistake("seen", own_word_unseen, "A word does not see itself.", _CAUSAL, _causal),
        Mistake("seen", later_words_seen, "The upper triangle is kept.", _CAUSAL, _causal),
        Mistake("seen", all_words_seen, "Later words stay in the decoder map.", _CAUSAL, _causal),
        Mistake("seen", causal_unasked, "Every square map is cut.", _CAUSAL, _square),
    )
)
STANDARDISE_BUGS = tuple(
    mistake.planted(standardising)
    for mistake in (
        Mistake("standard", population_deviation, "The deviation divides by n.", _STANDARD),
        Mistake("standard", variance_divides, "Rows are divided by the variance.", _STANDARD),
        Mistake("standard", mean_stays, "The mean is not taken away.", _STANDARD),
        Mistake("each_word", words_together, "All words are standardised together.", _STANDARD, _words),
        Mistake("each_word", across_words, "Elements are standardised across words.", _STANDARD, _words),
        Mistake("visible_words", invisible_words_counted, "Invisible words enter the mean.", _VISIBLE, _words),
        Mistake("visible_words", zeros_counted, "Invisible entries count as zeros.", _VISIBLE, _words),
    )
)
MIN_MAX_BUGS = tuple(
    mistake.planted(min_max)
    for mistake in (
        Mistake("ends", each_map_by_itself, "The words are left out of the ends.", _PAIRED),
        Mistake("ends", from_zero, "The lower end is 0.", _PAIRED),
        Mistake("scaled", divided_by_the_maximum, "The range is taken to be the maximum.", _PAIRED),
        Mistake("scaled", from_minus_one, "The lower end becomes −1.", _PAIRED),
        Mistake("see_words", all_words_shown, "Invisible words count and stay.", _VISIBLE, _words),
        Mistake("see_words", itself_not_shown, "A word does not see itself.", _VISIBLE),
    )
)
AGGREGATE_BUGS = tuple(
    mistake.planted(aggregating)
    for mistake in (
        Mistake("merge", summed_over_heads, "Heads are summed.", _MEAN, _heads),
        Mistake("merge", largest_over_heads, "The largest head counts.", _MEAN, _heads),
        Mistake("merge", layers_multiplied, "Layers are multiplied, as if in a rollout.", _MEAN, _heads),
        Mistake("merge", geometric_mean, "The geometric mean is taken.", _MEAN, _heads),
        Mistake("choose", choice_ignored, "The choice is ignored.", "Take the layers and heads asked for.", _chosen),
        Mistake("choose", axes_confused, "Layers are chosen among heads.", "The first axis holds layers.", _chosen),
    )
)
POOL_BUGS = tuple(
    mistake.planted(pooling)
    for mistake in (
        Mistake("windows", tail_dropped, "Windows have ⌊T/T'⌋ frames, and the last frames are lost.", _WINDOWS),
        Mistake("windows", tail_in_the_last_window, "The last window takes what is left.", _WINDOWS),
        Mistake("windows", windows_never_share, "A frame on a border belongs to one window only.", _WINDOWS),
        Mistake("pool", mean_for_maximum, "The mean is always taken.", _POOL, lambda case: _how("max", case)),
        Mistake("pool", maximum_for_mean, "The maximum is always taken.", _POOL, lambda case: _how("mean", case)),
        Mistake("pool", sum_for_mean, "Windows are summed.", _POOL, lambda case: _how("mean", case)),
        Mistake("pool", maximum_of_sizes, "Sizes are compared.", _POOL, lambda case: _how("max", case)),
        Mistake("pool", bands_averaged_first, "Bands are averaged first.", _POOL, lambda case: _how("max", case)),
    )
)
_LEVELS = (
    Mistake("level", rows_as_they_are, "Rows are not standardised.", _LEVEL, _sentences),
    Mistake("level", rows_only_centred, "Rows are centred and not scaled.", _LEVEL, _sentences),
    Mistake("level", rows_only_scaled, "Rows are scaled and not centred.", _LEVEL, _sentences),
    Mistake("level", frames_levelled, "Frames are standardised over words.", _LEVEL, _sentences),
    Mistake("level", ranks, "Ranks are correlated.", _LEVEL, _sentences),
    Mistake("agreement", mean_of_products, "Products are averaged over n, deviations over n − 1.", _LEVEL, _sentences),
    Mistake("agreement", size_of_agreement, "The sign is dropped.", "ρ runs from −1 to 1.", _sentences),
    Mistake(
        "agreement",
        constant_rows_averaged,
        "The correlations of the words are averaged, constant rows with them.",
        "Constant rows add nothing to the product and nothing to the norms.",
        _sentences,
    ),
)
PEARSON_BUGS = tuple(mistake.planted(correlating) for mistake in _LEVELS)
SHARE_BUGS = tuple(
    mistake.planted(comparing)
    for mistake in (
        Mistake("squared", not_squared, "The correlation is not squared.", "The share is ρ².", _compared("squared")),
        Mistake("squared", sign_kept, "The sign is kept.", "ρ² is not negative.", _compared("squared")),
        Mistake("histogram", not_shifted, "Histograms do not begin at 0.", _OVERLAP, _compared("overlap")),
        Mistake("histogram", scaled_to_one_peak, "Peaks are scaled to 1.", _OVERLAP, _compared("overlap")),
        Mistake("histogram", words_share_one_sum, "Words share one sum.", _OVERLAP, _compared("overlap")),
        Mistake("common", union_for_overlap, "The larger share is counted.", _OVERLAP, _compared("overlap")),
        Mistake("common", summed_over_words, "Words are summed.", _OVERLAP, _compared("overlap")),
    )
)
DELETE_BUGS = tuple(
    mistake.planted(deleting)
    for mistake in (
        Mistake("sentence", first_word_alone, "The first word's map orders the elements.", _ORDER, _words),
        Mistake("sentence", loudest_word, "The largest word counts.", _ORDER, _words),
        Mistake("sentence", frames_go_whole, "Frames go as a whole.", _ORDER),
        Mistake("low_to_high", high_to_low, "The least salient go first.", _ORDER),
        Mistake("low_to_high", by_size, "Sizes are sorted.", _ORDER),
        Mistake("low_to_high", ties_turned, "Of equal elements the earlier goes first.", _ORDER),
        Mistake("how_many", rounded_up, "Counts are rounded up.", "n = ⌊TF q/100⌋."),
        Mistake(
            "keep",
            insertion_deletes,
            "Insertion deletes.",
            "Insertion keeps the n most salient elements alone.",
            lambda case: bool(case.options.get("insertion")),
        ),
        Mistake(
            "keep",
            deletion_keeps,
            "Deletion keeps the n most salient elements alone.",
            "Deletion keeps all the others.",
            lambda case: not case.options.get("insertion"),
        ),
    )
)
