"""Attention and occlusion saliency compared, in the array-API standard.

Derived from the equations by another route than the reference: the correlation of maps is the mean of the words' own
correlations, windows are one gather (maximum) or one matrix (mean), histograms overlap by what their difference leaves,
and an element's rank is where the sorting permutation sends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "accumulate_saliency",
    "aggregate_attention",
    "deletion_masks",
    "kl_scores",
    "mean_std_normalize",
    "paired_min_max",
    "pool_saliency",
    "row_pearson",
    "saliency_share",
    "target_difference",
]


def kl_scores(p: Any, q: Any) -> Any:
    """Return the mean log ratio of p and q under p."""
    xp = array_namespace(p)
    seen = xp.broadcast_to(p > 0, q.shape)
    one = xp.ones_like(q)
    ratio = xp.where(seen, xp.broadcast_to(p, q.shape), one) / xp.where(seen, q, one)
    return xp.sum(p * xp.log(ratio), axis=-1)


def target_difference(p: Any, q: Any, target: Any) -> Any:
    """Return what is lost of the probabilities that a one-hot mask of the targets picks."""
    xp = array_namespace(p)
    vocabulary = xp.arange(p.shape[-1], dtype=target.dtype, device=device(p))
    chosen = vocabulary == target[:, None]
    return xp.sum(xp.where(chosen, p - q, xp.zeros_like(q)), axis=-1)


def accumulate_saliency(scores: Any, masks: Any, *, causal: bool = False) -> Any:
    """Return the mean score of the masks that hide an element."""
    xp = array_namespace(scores)
    flat = xp.reshape(masks, (masks.shape[0], int(np.prod(masks.shape[1:]))))
    hidden = xp.astype(~xp.astype(flat, xp.bool), scores.dtype)  # (K, N)
    count = xp.sum(hidden, axis=0)
    mean = xp.matrix_transpose(scores) @ (hidden / xp.where(count > 0, count, xp.ones_like(count)))
    saliency = xp.reshape(mean, (scores.shape[1], *masks.shape[1:]))
    if not causal:
        return saliency
    words = saliency.shape[0]
    visible = np.tri(words, dtype=bool).reshape(words, words, *(1,) * (saliency.ndim - 2))
    return xp.where(_constant(visible, saliency), saliency, xp.zeros_like(saliency))


def mean_std_normalize(saliency: Any, decoder_map: Any = None) -> Any:
    """Standardise each word's map, and what each word sees of the decoder map."""
    xp = array_namespace(saliency)
    words = saliency.shape[0]
    rows = xp.reshape(saliency, (words, -1))
    out = xp.reshape(_standardised(rows, _constant(np.ones(rows.shape, dtype=bool), rows)), saliency.shape)
    if decoder_map is None:
        return out
    rows = xp.reshape(decoder_map, (words, words))
    seen = _constant(np.tri(words, dtype=bool), rows)
    return out, xp.reshape(_standardised(rows, seen), decoder_map.shape)


def paired_min_max(saliency: Any, decoder_map: Any) -> tuple[Any, Any]:
    """Bring both maps of a word to [0, 1] together."""
    xp = array_namespace(saliency)
    words = saliency.shape[0]
    rows = xp.reshape(saliency, (words, -1))
    seen = _constant(np.tri(words, dtype=bool), rows)
    # what is invisible repeats what is visible, and so changes neither end
    decoder = xp.where(seen, xp.reshape(decoder_map, (words, words)), rows[:, :1])
    both = xp.concat([rows, decoder], axis=1)
    both = both - xp.min(both, axis=1, keepdims=True)
    high = xp.max(both, axis=1, keepdims=True)
    both = both / xp.where(high > 0, high, xp.ones_like(high))
    decoder = xp.where(seen, both[:, rows.shape[1] :], xp.zeros_like(both[:, rows.shape[1] :]))
    return xp.reshape(both[:, : rows.shape[1]], saliency.shape), xp.reshape(decoder, decoder_map.shape)


def aggregate_attention(
    attention: Any, *, layers: int | Sequence[int] | None = None, heads: int | Sequence[int] | None = None
) -> Any:
    """Return the mean over the chosen layers and heads: a sum with weights that are 0 elsewhere."""
    xp = array_namespace(attention)
    *lead, L, H, I, T = attention.shape
    weights = np.outer(_share(layers, L), _share(heads, H)).reshape(1, L * H)
    flat = xp.reshape(attention, (*lead, L * H, I * T))
    return xp.reshape(_constant(weights, attention, attention.dtype) @ flat, (*lead, I, T))


def pool_saliency(saliency: Any, n_frames: int, *, how: str = "max") -> Any:
    """Pool bands, then gather or average the frames of each window."""
    xp = array_namespace(saliency)
    T = saliency.shape[-2]
    begin = np.arange(n_frames) * T // n_frames
    length = -(-(np.arange(n_frames) + 1) * T // n_frames) - begin
    steps = np.arange(int(length.max()))
    if how == "max":
        frames = begin[:, None] + np.minimum(steps, length[:, None] - 1)  # (T', w), the last frame repeated
        loudest = xp.max(saliency, axis=-1)
        gathered = xp.take(loudest, _constant(frames.reshape(-1), saliency), axis=-1)
        return xp.max(xp.reshape(gathered, (*loudest.shape[:-1], *frames.shape)), axis=-1)
    inside = (np.arange(T) >= begin[:, None]) & (np.arange(T) < (begin + length)[:, None])
    window = _constant((inside / length[:, None]).T, saliency, saliency.dtype)  # (T, T')
    return xp.mean(saliency, axis=-1) @ window


def row_pearson(a: Any, b: Any) -> Any:
    """Return the sum of the words' correlations over the root of how many words vary in a and in b."""
    xp = array_namespace(a, b)
    (a, varies_a), (b, varies_b) = _unit_rows(a), _unit_rows(b)
    total = xp.sum(xp.sum(a * b, axis=-1), axis=-1)
    many_a, many_b = (xp.sum(xp.astype(varies[..., 0], a.dtype), axis=-1) for varies in (varies_a, varies_b))
    pairs = xp.sqrt(many_a * many_b)
    return total / xp.where(pairs > 0, pairs, xp.ones_like(pairs))


def saliency_share(attention: Any, saliency: Any, *, how: str = "pearson") -> Any:
    """Return ρ, ρ² or the overlap of the words' histograms."""
    xp = array_namespace(attention, saliency)
    if how != "overlap":
        rho = row_pearson(attention, saliency)
        return rho if how == "pearson" else rho**2
    a, b = _histogram(attention), _histogram(saliency)
    return xp.mean(xp.sum((a + b - xp.abs(a - b)) / 2, axis=-1), axis=-1)


def deletion_masks(saliency: Any, *, step: int = 5, insertion: bool = False) -> Any:
    """Return what is kept at each percentage, by rank."""
    xp = array_namespace(saliency)
    flat = xp.reshape(xp.mean(saliency, axis=0), (-1,))
    N = flat.shape[0]
    rank = xp.argsort(xp.argsort(flat, stable=True))  # the inverse of the sorting permutation
    first = np.array([N - N * percent // 100 for percent in range(0, 101, step)])
    highest = rank >= xp.astype(_constant(first, rank), rank.dtype)[:, None]
    return xp.reshape(highest if insertion else ~highest, (len(first), *saliency.shape[1:]))


def _constant(table: np.ndarray, like: Any, dtype: Any = None) -> Any:
    """Bring a static table to where ``like`` is."""
    xp = array_namespace(like)
    return xp.asarray(table.copy(), dtype=dtype, device=device(like))


def _share(numbers: int | Sequence[int] | None, count: int) -> np.ndarray:
    """Return equal weights that sum to 1, on the chosen numbers."""
    weights = np.zeros(count)
    weights[list(range(count)) if numbers is None else numbers] = 1.0
    return np.asarray(weights / weights.sum())


def _standardised(rows: Any, seen: Any) -> Any:
    """Standardise what each row shows; the rest, and rows that show one value, are 0."""
    xp = array_namespace(rows)
    zero = xp.zeros_like(rows)
    n = xp.sum(xp.astype(seen, rows.dtype), axis=-1, keepdims=True)
    first = rows[:, :1]  # every row shows its first entry
    shown = xp.where(seen, rows - first, zero)  # spread is the same from any origin; this one is exact for constants
    size = xp.max(xp.abs(shown), axis=-1, keepdims=True)
    shown = shown / xp.where(size > 0, size, xp.ones_like(size))
    centred = xp.where(seen, shown - xp.sum(shown, axis=-1, keepdims=True) / n, zero)
    square = xp.sum(centred * centred, axis=-1, keepdims=True)
    return centred * xp.sqrt((n - 1) / xp.where(square > 0, square, xp.ones_like(square)))


def _unit_rows(a: Any) -> tuple[Any, Any]:
    """Return rows less their mean, of norm 1, or of 0 where nothing varies; and which vary."""
    xp = array_namespace(a)
    centred = a - xp.mean(a, axis=-1, keepdims=True)
    varies = xp.max(a, axis=-1, keepdims=True) > xp.min(a, axis=-1, keepdims=True)
    size = xp.max(xp.abs(centred), axis=-1, keepdims=True)
    centred = xp.where(varies, centred / xp.where(varies, size, xp.ones_like(size)), xp.zeros_like(centred))
    square = xp.sum(centred * centred, axis=-1, keepdims=True)
    return centred / xp.sqrt(xp.where(varies, square, xp.ones_like(square))), varies


def _histogram(a: Any) -> Any:
    xp = array_namespace(a)
    above = a - xp.min(a, axis=-1, keepdims=True)
    total = xp.sum(above, axis=-1, keepdims=True)
    return above / xp.where(total > 0, total, xp.ones_like(total))
