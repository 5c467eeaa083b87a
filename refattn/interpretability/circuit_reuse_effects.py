"""The numbers of circuit analysis: logit differences, effects, the heads that matter, overlaps, forced attention.

Arrays in, arrays out; no model is run here. Shapes: B prompts, T tokens, V words, L layers, H heads. Equation labels
(cr-…) are those of the page.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_finite, require_one_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "OverlapResult",
    "above",
    "circuit",
    "circuit_overlap",
    "effect_overlap",
    "force_rows",
    "head_mask",
    "logit_difference",
    "patch_effect",
    "top_fraction",
]

Heads = frozenset[tuple[int, int]]


class OverlapResult(NamedTuple):
    """What two circuits share: heads, as frozensets or boolean masks (..., L, H), and two measures (...)."""

    shared: Any
    only_a: Any
    only_b: Any
    overlap: Any
    jaccard: Any


def logit_difference(logits: Any, answers: Any, *, position: int = -1, reduce: str = "mean") -> np.ndarray:
    """How much a model prefers the right word to the wrong one: the difference of their logits.

    Parameters
    ----------
    logits : array_like, shape (B, T, V)
        What the model says after each token.
    answers : array_like of int, shape (B, 2)
        The right and the wrong word of each prompt.
    position : int
        Where to look; the last token if not given.
    reduce : {"mean", "none"}
        Whether prompts are averaged.

    Returns
    -------
    ndarray, shape () or (B,)
        LD, in the dtype of the logits.

    Raises
    ------
    ValueError
        For answers of another shape or outside the vocabulary, a position outside the prompt, an unknown ``reduce``,
        or the mean of no prompt.

    References
    ----------
    2310.08744; Wang et al. 2022, 2211.00593.
    """
    logits = as_float("logits", logits, ndim=3)
    batch, length, vocabulary = logits.shape
    answers = checked_answers(answers, batch, vocabulary)
    require(-length <= position < length, f"position={position!r} is outside the {length} tokens of logits")
    require_one_of("reduce", reduce, ("mean", "none"))
    require(reduce == "none" or batch > 0, "logits has no prompt to average over")
    at = logits[:, position]  # (B, V)
    chosen = np.take_along_axis(at, answers, axis=-1)  # (B, 2)
    difference = chosen[:, 0] - chosen[:, 1]  # (B,)
    # eq: cr-ld
    return np.asanyarray(np.mean(difference) if reduce == "mean" else difference)


def patch_effect(patched: Any, clean: Any, corrupt: Any) -> np.ndarray:
    """Say how far a patch moves the logit difference from the clean run (0) to the corrupt one (1).

    Parameters
    ----------
    patched, clean, corrupt : array_like, shapes that broadcast
        LD_p, LD_0 and LD_1.

    Returns
    -------
    ndarray
        (LD_p − LD_0)/(LD_1 − LD_0): 1 if the patch does all that the corruption does, negative if it does the
        opposite, beyond 1 if other heads held it back.

    Raises
    ------
    ValueError
        Where clean and corrupt are equal, or a value is not finite.

    Notes
    -----
    The scripts of the paper print −100 times this number.
    """
    values = [as_float(*pair) for pair in (("patched", patched), ("clean", clean), ("corrupt", corrupt))]
    for name, value in zip(("patched", "clean", "corrupt"), values, strict=True):
        require_finite(name, value)
    after, before, other = values
    require(np.all(other != before), "clean and corrupt logit differences are equal")
    # eq: cr-effect
    return np.asanyarray((after - before) / (other - before))


def head_mask(effect: Any, *, fraction: float = 0.02, threshold: float | None = None) -> np.ndarray:
    """Mark the heads with the largest effects, of either sign.

    Parameters
    ----------
    effect : array_like, shape (..., L, H)
        One number for each head.
    fraction : float
        The share of all heads to keep, in (0, 1]: k = max(1, ⌈fraction·L·H⌉) heads, of equal ones the first by layer,
        then by head.
    threshold : float, optional
        If given, keep the heads with |effect| above it instead, however many they are.

    Returns
    -------
    ndarray of bool, shape (..., L, H)

    Raises
    ------
    ValueError
        For an effect that is not finite or has fewer than two axes, a fraction outside (0, 1], no head to choose
        from, or a negative threshold.

    Notes
    -----
    The paper keeps two per cent per stage; how it rounds and breaks ties is not said, this is [our definition].
    """
    effect = as_float("effect", effect)
    require(effect.ndim >= 2, f"effect has shape {effect.shape}, expected (..., L, H)")
    require_finite("effect", effect)
    size = np.abs(effect)
    if threshold is not None:
        require(threshold >= 0, f"threshold={threshold!r} must not be negative")
        return np.asarray(size > threshold)
    require(0 < fraction <= 1, f"fraction={fraction!r} must lie in (0, 1]")
    heads = effect.shape[-2] * effect.shape[-1]
    require(heads > 0, f"effect has shape {effect.shape}: no head to choose from")
    # eq: cr-top
    count = max(1, math.ceil(fraction * heads - 1e-9))  # 0.07 · 100 is a little more than 7
    flat = size.reshape(*effect.shape[:-2], heads)
    order = np.argsort(-flat, axis=-1, kind="stable")  # largest first, of equal ones the earlier head
    mask = np.zeros(flat.shape, bool)
    np.put_along_axis(mask, order[..., :count], values=True, axis=-1)
    return np.asarray(mask.reshape(effect.shape))


def effect_overlap(effect_a: Any, effect_b: Any, *, fraction: float = 0.02, threshold: float | None = None) -> Any:
    """Compare the heads that matter for two tasks, given their effects.

    Parameters
    ----------
    effect_a, effect_b : array_like, shape (..., L, H)
        The effects of each head on either task.
    fraction, threshold
        Which heads matter, as in `head_mask`.

    Returns
    -------
    OverlapResult
        With masks (..., L, H) and measures (...) in the dtype of ``effect_a``. Two circuits without heads are equal:
        both measures are 1.

    Raises
    ------
    ValueError
        As `head_mask`, and for shapes that differ.
    """
    effect_a, effect_b = as_float("effect_a", effect_a), as_float("effect_b", effect_b)
    require(
        effect_a.shape == effect_b.shape,
        f"effect_b has shape {effect_b.shape}, expected that of effect_a, {effect_a.shape}",
    )
    a = head_mask(effect_a, fraction=fraction, threshold=threshold)
    b = head_mask(effect_b, fraction=fraction, threshold=threshold)
    shared = a & b
    counts = [np.sum(mask, axis=(-2, -1)) for mask in (shared, a, b, a | b)]
    both, in_a, in_b, either = (count.astype(effect_a.dtype) for count in counts)
    larger = np.maximum(in_a, in_b)
    # eq: cr-overlap
    overlap = np.where(larger > 0, both / np.maximum(larger, 1), 1).astype(effect_a.dtype)
    jaccard = np.where(either > 0, both / np.maximum(either, 1), 1).astype(effect_a.dtype)
    return OverlapResult(shared, a & ~b, b & ~a, overlap, jaccard)


def force_rows(pattern: Any, rows: Any, targets: Any, *, heads: Sequence[int], weight: float = 1.0) -> np.ndarray:
    """Make some heads look where they are told to, from one query of each prompt.

    Parameters
    ----------
    pattern : array_like, shape (B, H, T, S)
        Attention weights of one layer; the queries are the last T of the S positions.
    rows : array_like of int, shape (B,)
        The query of each prompt; negative ones count from the end.
    targets : array_like of int, shape (B, K)
        The keys it has to look at, to the same part each; −1 where a prompt has fewer than K.
    heads : sequence of int
        Which heads.
    weight : float
        How much of the row is replaced, from 0 to 1: (1 − w)·row + w·uniform over the targets.

    Returns
    -------
    ndarray, shape (B, H, T, S)
        The other rows and heads are as they were.

    Raises
    ------
    ValueError
        For shapes that do not fit, a head or row out of range, a prompt without target, a target beyond its query or
        named twice, or a weight outside [0, 1].

    Notes
    -----
    The paper replaces the row (w = 1); the part in between is [our definition].
    """
    pattern = as_float("pattern", pattern, ndim=4)
    batch, count, t, s = pattern.shape
    rows, targets = as_integer("rows", rows, ndim=1), as_integer("targets", targets, ndim=2)
    require(rows.shape == (batch,), f"rows has shape {rows.shape}, expected {(batch,)}")
    require(len(targets) == batch, f"targets has {len(targets)} rows, expected {batch}")
    require(np.all((rows >= -t) & (rows < t)), f"rows={rows} must lie in the {t} queries")
    rows = np.where(rows < 0, rows + t, rows)
    _check_targets(targets, rows + s - t)
    for head in heads:
        require(0 <= head < count, f"head={head!r} must lie in 0..{count - 1}")
    require(0 <= weight <= 1, f"weight={weight!r} must lie in [0, 1]")
    forced: np.ndarray = pattern.copy()
    for b in range(batch):
        told = targets[b][targets[b] >= 0]
        aim = np.zeros(s, pattern.dtype)
        aim[told] = 1 / len(told)
        for head in heads:
            # eq: cr-force
            forced[b, head, rows[b]] = (1 - weight) * pattern[b, head, rows[b]] + weight * aim
    return forced


def _check_targets(targets: np.ndarray, last: np.ndarray) -> None:
    require(np.all(targets >= -1), f"targets={targets.min(initial=0)} must be keys, or -1 for none")
    for row, end in zip(targets, last, strict=True):
        told = row[row >= 0]
        require(told.size > 0, "targets is empty for a prompt: its attention has to go somewhere")
        require(told.max() <= end, f"target {told.max()} lies beyond the query at {end}, which cannot see it")
        require(len(set(told.tolist())) == told.size, f"targets {told.tolist()} name a key twice")


def checked_answers(answers: Any, batch: int, vocabulary: int) -> np.ndarray:
    """Return the answers (B, 2) if they are words of the vocabulary."""
    checked = as_integer("answers", answers)
    require(checked.shape == (batch, 2), f"answers has shape {checked.shape}, expected (B, 2) = {(batch, 2)}")
    outside = checked[(checked < 0) | (checked >= vocabulary)]
    require(outside.size == 0, f"answers holds {outside[:1].sum()}, outside the vocabulary of {vocabulary}")
    return checked


def top_fraction(effect: Any, fraction: float = 0.02) -> Heads:
    """Return the (layer, head) pairs of the largest effects: see `head_mask`."""
    return _pairs(head_mask(as_float("effect", effect, ndim=2), fraction=fraction))


def above(effect: Any, threshold: float) -> Heads:
    """Return the (layer, head) pairs whose effect is above the threshold in size."""
    return _pairs(head_mask(as_float("effect", effect, ndim=2), threshold=threshold))


def circuit(stages: Iterable[Iterable[tuple[int, int]]]) -> Heads:
    """Return all heads that were found at any stage."""
    # eq: cr-circuit
    return frozenset(head for stage in stages for head in stage)


def circuit_overlap(a: Iterable[tuple[int, int]], b: Iterable[tuple[int, int]]) -> OverlapResult:
    """Compare two circuits.

    Parameters
    ----------
    a, b : iterable of (layer, head)
        Their heads.

    Returns
    -------
    OverlapResult
        With frozensets; ``overlap`` is |A ∩ B| / max(|A|, |B|), ``jaccard`` |A ∩ B| / |A ∪ B|. Both are 1 for two
        circuits without heads.

    Notes
    -----
    The paper speaks of 78 % overlap for 25 shared heads of 32; that the larger circuit is the divisor is
    [our definition].
    """
    a, b = frozenset(a), frozenset(b)
    larger, either = max(len(a), len(b)), len(a | b)
    overlap = len(a & b) / larger if larger else 1.0
    return OverlapResult(a & b, a - b, b - a, overlap, len(a & b) / either if either else 1.0)


def _pairs(mask: np.ndarray) -> Heads:
    return frozenset((int(layer), int(head)) for layer, head in np.argwhere(mask))
