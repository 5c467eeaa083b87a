"""Mistakes that people make with sentence attention, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.sentence_attention.plain import (
    heading,
    logistic,
    merging,
    normed,
    positive,
    sensing,
    shared,
    squeezing,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["BLOCK_BUGS", "HEAD_BUGS", "MERGE_BUGS", "SQUEEZE_BUGS"]

FINE = ("float64", "float32", "float16")  # bfloat16 rounds by as much as these change


def opens_each_alone(logits: np.ndarray) -> Any:
    """Return the gate (B, C)."""
    return logistic(logits)


def shares_over_batch(logits: np.ndarray) -> Any:
    """Return the gate (B, C)."""
    e = np.exp(logits - logits.max(axis=0, keepdims=True, initial=-1e300))
    return e / e.sum(axis=0, keepdims=True)


def shares_nothing(logits: np.ndarray) -> Any:
    """Return the gate (B, C)."""
    return np.exp(logits - logits.max(axis=1, keepdims=True))


def shares_by_halves(logits: np.ndarray) -> Any:
    """Return the gate (B, C)."""
    half = logits.shape[1] // 2
    return np.concatenate([shared(logits[:, :half]), shared(logits[:, half:])], axis=1)


def gives_back_channels(logits: np.ndarray) -> Any:
    """Return the gate (B, C)."""
    return logits.shape[1] * shared(logits)


def leaves_as_it_is(a: np.ndarray, scale: np.ndarray, shift: np.ndarray, _eps: float) -> Any:
    """Return the normalised hidden units (B, E)."""
    return a * scale + shift


def leaves_mean_in(a: np.ndarray, scale: np.ndarray, shift: np.ndarray, eps: float) -> Any:
    """Return the normalised hidden units (B, E)."""
    return a / np.sqrt(np.mean(a**2, axis=1, keepdims=True) + eps) * scale + shift


def divides_by_one_less(a: np.ndarray, scale: np.ndarray, shift: np.ndarray, eps: float) -> Any:
    """Return the normalised hidden units (B, E)."""
    variance = a.var(axis=1, ddof=1, keepdims=True)
    return (a - a.mean(axis=1, keepdims=True)) / np.sqrt(variance + eps) * scale + shift


def eps_beside_deviation(a: np.ndarray, scale: np.ndarray, shift: np.ndarray, eps: float) -> Any:
    """Return the normalised hidden units (B, E)."""
    return (a - a.mean(axis=1, keepdims=True)) / (a.std(axis=1, keepdims=True) + eps) * scale + shift


def normalises_across_sentences(a: np.ndarray, scale: np.ndarray, shift: np.ndarray, eps: float) -> Any:
    """Return the normalised hidden units (B, E)."""
    return normed(a.T, np.ones(1), np.zeros(1), eps).T * scale + shift


def cuts_first(a: np.ndarray, norm: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Return the hidden layer (B, E)."""
    return norm(positive(a))


def cuts_nothing(a: np.ndarray, norm: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Return the hidden layer (B, E)."""
    return norm(a)


def looks_at_picture(z: np.ndarray, w2: np.ndarray, b2: np.ndarray, features: np.ndarray) -> Any:
    """Return one logit for each channel (B, C)."""
    return z @ w2 + b2 + features.mean(axis=(2, 3))


def adds_to_picture(features: np.ndarray, g: np.ndarray) -> Any:
    """Return the scaled feature maps."""
    return features * (1.0 + g[:, :, None, None])


def takes_maximum(features: np.ndarray) -> Any:
    """Return one number for each channel (B, C)."""
    return features.max(axis=(2, 3))


def takes_first_pixel(features: np.ndarray) -> Any:
    """Return one number for each channel (B, C)."""
    return features[:, :, 0, 0]


def takes_sum(features: np.ndarray) -> Any:
    """Return one number for each channel (B, C)."""
    return features.sum(axis=(2, 3))


def stays_linear(x: np.ndarray) -> Any:
    """Return the hidden layer."""
    return x


def softly_shared(x: np.ndarray) -> Any:
    """Return the gate (B, C)."""
    return shared(x)


def corner_to_corner(n_out: int, n_in: int) -> Any:
    """Return where each new centre falls, (n_out,)."""
    return np.arange(n_out) * (n_in - 1) / max(n_out - 1, 1)


def without_half_pixels(n_out: int, n_in: int) -> Any:
    """Return where each new centre falls, (n_out,)."""
    return np.minimum(np.arange(n_out) * n_in / n_out, n_in - 1.0)


def nearest(n_out: int, n_in: int) -> Any:
    """Return where each new centre falls, (n_out,)."""
    return np.floor((np.arange(n_out) + 0.5) * n_in / n_out)


def fades_at_border(n_out: int, n_in: int) -> Any:
    """Return where each new centre falls, (n_out,)."""
    return (np.arange(n_out) + 0.5) * n_in / n_out - 0.5


def keeps_statistics_out(
    y: np.ndarray, scale: np.ndarray, shift: np.ndarray, _mean: np.ndarray, _var: np.ndarray
) -> Any:
    """Return the normalised map (B, H, W, C)."""
    return y * scale + shift


def divides_by_variance(y: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, var: np.ndarray) -> Any:
    """Return the normalised map (B, H, W, C)."""
    return (y - mean) / var * scale + shift


def shifts_before_scale(y: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, var: np.ndarray) -> Any:
    """Return the normalised map (B, H, W, C)."""
    return ((y - mean) / np.sqrt(var) + shift) * scale


def cuts_coarse_only(coarse: np.ndarray, fine: np.ndarray) -> Any:
    """Return the merged map."""
    return positive(coarse) + fine


def averages(coarse: np.ndarray, fine: np.ndarray) -> Any:
    """Return the merged map."""
    return positive((coarse + fine) / 2.0)


def multiplies(coarse: np.ndarray, fine: np.ndarray) -> Any:
    """Return the merged map."""
    return positive(coarse * fine)


def merges_without_question(_gated: np.ndarray, ungated: np.ndarray) -> Any:
    """Return the finer map that the coarse one is added to."""
    return ungated


def asks_again(merged: np.ndarray, g: np.ndarray) -> Any:
    """Return the merged map."""
    return merged * g[:, :, None, None]


def coarsest_without_question(_gated: np.ndarray, ungated: np.ndarray) -> Any:
    """Return the map to begin with."""
    return ungated


def answers_by_probability(logits: np.ndarray) -> Any:
    """Return what the head returns."""
    return logistic(logits)


def _softmax(case: Case) -> bool:
    return case.options.get("activation", "softmax") == "softmax" and bool(case.arrays["text"].size)


def _many(case: Case) -> bool:
    return _softmax(case) and case.arrays["features"].shape[1] > 1


def _normed(case: Case) -> bool:
    """Whether a changed LayerNorm shows: a single channel under softmax is always fully open."""
    return bool(case.options.get("layer_norm", True)) and _cuts(case)


def _cuts(case: Case) -> bool:
    return bool(case.arrays["text"].size) and (_many(case) or not _softmax(case))


def _crowd(case: Case) -> bool:
    return _normed(case) and len(case.arrays["text"]) > 1


def _full(case: Case) -> bool:
    return bool(case.arrays["features"].size)


def _pixels(case: Case) -> bool:
    return _full(case) and case.arrays["features"][0, 0].size > 1


def _merges(case: Case) -> bool:
    return bool(case.arrays["low"].size)


def _resizes(case: Case) -> bool:
    low, high = case.arrays["low"], case.arrays["high"]
    return _merges(case) and any(1 < i != o > 1 for i, o in zip(low.shape[2:], high.shape[2:], strict=True))


def _grows(case: Case) -> bool:
    low, high = case.arrays["low"], case.arrays["high"]
    return _merges(case) and any(1 < i < o for i, o in zip(low.shape[2:], high.shape[2:], strict=True))


def _scales(case: Case) -> bool:
    return len(case.arrays["features"]) > 1 and bool(case.arrays["text"].size)


_SHARE = "Take a softmax over the channels."
_NORM = "Subtract the mean of a sentence's hidden units, divide by √(variance + eps), then scale and shift."
_HALF = "A new centre o + ½ falls on (o + ½) n_in / n_out − ½, kept within the map."
_BATCH = "(y − mean) / √(var + eps) · scale + shift."
_JOIN = "Add the two maps, then cut off what is negative."

_SHARES = (
    Mistake("share", opens_each_alone, "The gate is a sigmoid.", _SHARE, _softmax),
    Mistake(
        "share",
        shares_over_batch,
        "The sentences of a batch share the unit.",
        _SHARE,
        lambda case: _many(case) or (_softmax(case) and len(case.arrays["text"]) > 1),
    ),
    Mistake("share", shares_nothing, "The exponentials are not divided by their sum.", _SHARE, _many),
    Mistake("share", shares_by_halves, "Each half of the channels shares a unit.", _SHARE, _many),
    Mistake(
        "share",
        gives_back_channels,
        "The gate is multiplied by C, so that it is 1 on average.",
        "The gate sums to 1; the next normalisation restores the size.",
        _many,
    ),
)
BLOCK_BUGS = (
    *(mistake.planted(sensing) for mistake in _SHARES),
    Mistake("norm", leaves_as_it_is, "Hidden units are not normalised.", _NORM, _normed).planted(sensing),
    Mistake("norm", leaves_mean_in, "RMSNorm in place of LayerNorm.", _NORM, _normed).planted(sensing),
    Mistake("norm", divides_by_one_less, "The variance is divided by E − 1.", "Divide by E.", _normed, FINE).planted(
        sensing
    ),
    Mistake(
        "norm",
        eps_beside_deviation,
        "eps is added to the deviation.",
        "Add eps to the variance, inside the root.",
        lambda case: _normed(case) and case.options.get("eps", 0.0) >= 0.1,
        FINE,
    ).planted(sensing),
    Mistake(
        "norm", normalises_across_sentences, "Each hidden unit is normalised over the batch.", _NORM, _crowd
    ).planted(sensing),
    Mistake("hidden", cuts_first, "ReLU comes before the LayerNorm.", "Normalise, then cut off.", _normed).planted(
        sensing
    ),
    Mistake("hidden", cuts_nothing, "There is no ReLU.", "Cut off what is negative.", _cuts).planted(sensing),
    Mistake(
        "logits",
        looks_at_picture,
        "The means of the channels are added to the logits.",
        "The gate depends on the sentence only.",
        _cuts,
    ).planted(sensing),
    Mistake(
        "scale",
        adds_to_picture,
        "The scaled map is added to the map.",
        "Multiply, and add nothing: there is no residual.",
        _full,
    ).planted(sensing),
)
_SQUEEZE = "Take the mean over all pixels."
SQUEEZE_BUGS = (
    Mistake("squeeze", takes_maximum, "Channels are squeezed to their maximum.", _SQUEEZE, _pixels).planted(squeezing),
    Mistake("squeeze", takes_first_pixel, "Channels are squeezed to a corner.", _SQUEEZE, _pixels).planted(squeezing),
    Mistake("squeeze", takes_sum, "Channels are squeezed to their sum.", _SQUEEZE, _pixels).planted(squeezing),
    Mistake("relu", stays_linear, "There is no ReLU.", "Cut off what is negative.", _full).planted(squeezing),
    Mistake(
        "open",
        softly_shared,
        "The gate is a softmax, as in the block that came of this one.",
        "Squeeze-and-excitation opens each channel by a sigmoid.",
        _full,
    ).planted(squeezing),
)
_MERGING = (
    Mistake("positions", corner_to_corner, "The corners' centres are aligned.", _HALF, _resizes),
    Mistake("positions", without_half_pixels, "Half pixels are forgotten.", _HALF, _grows),
    Mistake("positions", nearest, "The nearest pixel is taken.", "Interpolate between the two nearest.", _grows),
    Mistake("positions", fades_at_border, "Beyond the last centre the map fades to zero.", _HALF, _grows),
    Mistake("batch_norm", keeps_statistics_out, "Recorded statistics are not used.", _BATCH, _merges),
    Mistake("batch_norm", divides_by_variance, "The variance is taken for the deviation.", _BATCH, _merges),
    Mistake("batch_norm", shifts_before_scale, "The shift is scaled too.", _BATCH, _merges),
    Mistake("join", cuts_coarse_only, "ReLU acts on the coarse map only.", _JOIN, _merges),
    Mistake("join", averages, "The mean of the two maps is taken.", _JOIN, _merges),
    Mistake("join", multiplies, "The two maps are multiplied.", _JOIN, _merges),
)
MERGE_BUGS = tuple(mistake.planted(merging) for mistake in _MERGING)
HEAD_BUGS = (
    _MERGING[8]._replace(applies=_scales).planted(heading, "head_"),
    Mistake(
        "fine",
        merges_without_question,
        "Only the coarsest map is gated.",
        "Gate every map before it is merged.",
        _scales,
    ).planted(heading),
    Mistake(
        "coarsest",
        coarsest_without_question,
        "The coarsest map is not gated.",
        "Gate every map, the coarsest too.",
        lambda case: bool(case.arrays["text"].size),
    ).planted(heading),
    Mistake(
        "merged",
        asks_again,
        "Merged maps are gated once more.",
        "Gate what comes from the backbone, not what has been merged.",
        _scales,
    ).planted(heading),
    Mistake(
        "answer",
        answers_by_probability,
        "Probabilities are returned.",
        "Return logits.",
        lambda case: bool(case.arrays["text"].size),
    ).planted(heading),
)
