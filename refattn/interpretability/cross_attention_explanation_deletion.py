"""Is a map faithful? Delete what it calls most salient, and watch the words go (xai_metrics of FBK-fairseq).

One order of all elements for the whole sentence; a growing share of them is deleted, or alone kept. A map that knows
where the words are makes them suffer early. `size_curve` says how compact a map is. Equation labels (ce-12) to (ce-14)
are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interpretability.cross_attention_explanation_occlusion import predictions
from refattn.primitives.arguments import as_float, as_integer, require, require_shape

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DeletionCurve", "SizeCurve", "deletion_curve", "deletion_masks", "size_curve", "spread_over_input"]


class DeletionCurve(NamedTuple):
    """How words suffer as more and more is deleted, or how they recover as more and more is kept.

    Attributes
    ----------
    percent : ndarray, shape (n,)
        0, step, …, 100.
    quality : ndarray, shape (n,)
        1 − mean over words of P(y)/P_full(y): what is lost.
    auc : float
        The area under the curve by trapezoids, over percent: from 0 to 100 for qualities from 0 to 1.
    """

    percent: np.ndarray
    quality: np.ndarray
    auc: float


class SizeCurve(NamedTuple):
    """How much of a map lies above a threshold.

    Attributes
    ----------
    threshold, share : ndarray, shape (n,)
        Thresholds 0, step/100, …, 1, and the share of entries that reach them.
    auc : float
        The area under the curve by trapezoids; the smaller, the more compact.
    """

    threshold: np.ndarray
    share: np.ndarray
    auc: float


def deletion_masks(saliency: Any, *, step: int = 5, insertion: bool = False) -> np.ndarray:
    """Return what is kept at each percentage: all but the n most salient elements, or they alone.

    Parameters
    ----------
    saliency : array_like, shape (I, T, F)
        One map for each word; their mean orders the elements.
    step : int
        Percentages are 0, step, …, 100; a divisor of 100.
    insertion : bool
        Keep the n most salient elements instead of deleting them.

    Returns
    -------
    ndarray of bool, shape (100/step + 1, T, F)
        True keeps. At q percent, n = ⌊TF q/100⌋.

    Raises
    ------
    ValueError
        If the map is empty or not three-dimensional, or step does not divide 100.

    Notes
    -----
    Elements are sorted from low to high, and of equal ones the later counts as higher (a stable sort); the order of
    ties in the official code is unspecified.
    """
    saliency = as_float("saliency", saliency, ndim=3)
    require(saliency.size > 0, f"saliency has shape {saliency.shape}: I = 0 words, or no elements, are no map")
    percent = _percentages(step)
    flat = saliency.mean(axis=0).reshape(-1)  # (N,), the sentence's map
    N = flat.size
    rank = np.empty(N, dtype=np.int64)
    rank[np.argsort(flat, kind="stable")] = np.arange(N)
    # eq: ce-12
    highest = rank >= N - (N * percent // 100)[:, None]  # (n, N)
    return np.asarray(highest if insertion else ~highest).reshape(-1, *saliency.shape[1:])


def deletion_curve(
    model_fn: Callable[[np.ndarray], Any],
    x: Any,
    saliency: Any,
    targets: Any,
    *,
    step: int = 5,
    insertion: bool = False,
    batch: int = 256,
) -> DeletionCurve:
    """Return how the probabilities of the written words fall as the most salient elements are deleted.

    Parameters
    ----------
    model_fn : callable
        (B, T, F) to distributions (B, I, V).
    x : array_like, shape (T, F)
        The input.
    saliency : array_like, shape (I, T, F)
        The map that is judged; see `spread_over_input` for maps over frames.
    targets : array_like of int, shape (I,)
        The words that are written.
    step, insertion
        See `deletion_masks`.
    batch : int
        How many inputs the model is given at once.

    Returns
    -------
    DeletionCurve
        Deletion: the higher the area, the better the map. Insertion: the lower.

    Raises
    ------
    ValueError
        If shapes do not fit, step does not divide 100, or a word has probability 0 on the whole input.

    Notes
    -----
    The official quality is the word error rate, or BLEU, of the text that is decoded anew from each input. Here nothing
    is decoded anew: the quality is the share of its probability that a written word loses [our definition].
    """
    x, saliency = as_float("x", x, ndim=2), as_float("saliency", saliency, ndim=3)
    require_shape("saliency", saliency, (len(saliency), *x.shape))
    targets = as_integer("targets", targets, ndim=1)  # (I,)
    require_shape("targets", targets, saliency.shape[:1])
    require(index(batch) >= 1, f"batch={batch!r} must be at least 1")
    kept = deletion_masks(saliency, step=step, insertion=insertion)  # (n, T, F)
    parts = (predictions(model_fn, x * kept[begin : begin + batch]) for begin in range(0, len(kept), batch))
    written = np.concatenate([_written(P, targets) for P in parts])  # (n, I)
    full = written[-1 if insertion else 0]  # (I,), where all is kept
    require(np.all(full > 0), "targets holds a word that has probability 0 on the whole of x: nothing can be lost")
    # eq: ce-13
    quality = 1 - np.mean(written / full, axis=-1)  # (n,)
    percent = _percentages(step)
    return DeletionCurve(percent, quality, float(np.trapezoid(quality, percent)))


def size_curve(saliency: Any, *, step: int = 5) -> SizeCurve:
    """Return which share of a normalised map reaches each threshold.

    Parameters
    ----------
    saliency : array_like
        A map of any shape with entries in [0, 1], as from ``paired_min_max``.
    step : int
        Thresholds are 0, step/100, …, 1; a divisor of 100.

    Returns
    -------
    SizeCurve

    Raises
    ------
    ValueError
        If an entry is outside [0, 1], there is none, or step does not divide 100.

    References
    ----------
    ``xai_metrics/size_score.py`` of FBK-fairseq.
    """
    saliency = as_float("saliency", saliency)
    require(saliency.size > 0, f"saliency has shape {saliency.shape}: a map without elements has no size")
    require(np.all((saliency >= 0) & (saliency <= 1)), "saliency must lie in [0, 1]: normalise it first")
    threshold = _percentages(step) / 100
    # eq: ce-14
    share = np.array([np.mean(saliency >= t) for t in threshold])  # (n,)
    return SizeCurve(threshold, share, float(np.trapezoid(share, threshold)))


def spread_over_input(frames: Any, n_frames: int, n_bands: int) -> np.ndarray:
    """Give every element of the input the value of its window, so that a map over frames can be deleted by.

    Parameters
    ----------
    frames : array_like, shape (..., T')
        A map over the encoder's frames, such as attention.
    n_frames, n_bands : int
        T ≥ T' and F of the input.

    Returns
    -------
    ndarray, shape (..., T, F)
        Input frame t takes the value of frame ⌊t T'/T⌋.

    Raises
    ------
    ValueError
        If T < T', or F < 1.
    """
    frames = as_float("frames", frames)
    count = frames.shape[-1] if frames.ndim else 0
    require(1 <= count <= index(n_frames), f"n_frames={n_frames!r} must be at least T' = {count}, and that at least 1")
    require(index(n_bands) >= 1, f"n_bands={n_bands!r} must be at least 1")
    wide = frames[..., np.arange(n_frames) * count // n_frames]  # (..., T)
    return np.repeat(wide[..., None], n_bands, axis=-1)


def _written(P: np.ndarray, targets: np.ndarray) -> Any:
    """Return the probabilities of the written words: (B, I, V) to (B, I)."""
    I, V = P.shape[1:]
    require(len(targets) == I, f"targets has {len(targets)} words, model_fn returned {I}")
    require(np.all((targets >= 0) & (targets < V)), f"targets={targets.tolist()!r} must lie in 0 … V − 1 = {V - 1}")
    return P[:, np.arange(I), targets]


def _percentages(step: int) -> np.ndarray:
    require(index(step) >= 1 and 100 % step == 0, f"step={step!r} must divide 100")
    return np.arange(0, 101, step)
