"""Confidence that can be trusted: a loss that does not ask for certainty, and measures of how wrong certainty is.

Labels (cta-15) … (cta-18) are those of the page. Bins are closed on the left, the last one on both sides, as in netcal;
Guo et al. close them on the right, which differs for confidences on an edge only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_one_of, require_shape
from refattn.primitives.softmax import log_sum_exp

__all__ = [
    "Reliability",
    "adaptive_calibration_error",
    "adaptive_calibration_errors",
    "average_calibration_error",
    "expected_calibration_error",
    "label_smoothing_cross_entropy",
    "maximum_calibration_error",
    "reliability",
]


class Reliability(NamedTuple):
    """A reliability diagram: what happens in each bin of confidence.

    Attributes
    ----------
    edges : ndarray, shape (M + 1,)
        Borders of the bins.
    samples : ndarray of int, shape (M,)
        How many fall into each.
    accuracy, confidence : ndarray, shape (M,)
        Share of hits, and mean confidence; 0 in empty bins.
    """

    edges: np.ndarray
    samples: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray


def label_smoothing_cross_entropy(logits: Any, labels: Any, *, alpha: float = 0.1) -> Any:
    """Return the mean cross-entropy against targets that keep α of their mass for all classes alike.

    Parameters
    ----------
    logits : array_like, shape (N, K)
        One row a sample, N ≥ 1 and K ≥ 2.
    labels : array_like of int, shape (N,)
        0 … K − 1.
    alpha : float
        α in [0, 1]; 0 is the plain cross-entropy, 1 forgets the labels. 0.1 is our choice.

    Returns
    -------
    ndarray, shape ()
        In the dtype of ``logits``.

    Raises
    ------
    ValueError
        If shapes do not fit, a label is no class, ``alpha`` is out of range, or there is no sample or only one class.

    Notes
    -----
    The convention of torch: (1 − α)·onehot + α/K. THUMT spreads α over the other K − 1 classes, which is this with
    α_torch = α_thumt K/(K − 1).
    """
    logits = as_float("logits", logits, ndim=2)
    N, K = logits.shape
    labels = _labels(labels, N, K)
    require(0 <= alpha <= 1, f"alpha={alpha!r} must lie in [0, 1]")
    # eq: cta-15
    target = (1 - alpha) * (labels[:, None] == np.arange(K)) + alpha / K  # (N, K)
    log_p = logits - log_sum_exp(logits, keepdims=True)  # (N, K)
    return np.asanyarray(-np.mean(np.sum(target.astype(logits.dtype) * log_p, axis=-1)))


def reliability(probs: Any, labels: Any, *, bins: int = 10) -> Reliability:
    """Sort predictions by the confidence in the most probable class, into bins of equal width.

    Parameters
    ----------
    probs : array_like, shape (N, K)
        Rows that sum to 1, N ≥ 1 and K ≥ 2.
    labels : array_like of int, shape (N,)
        0 … K − 1.
    bins : int
        M, their number.

    Returns
    -------
    Reliability
        See there; float64.

    Raises
    ------
    ValueError
        If rows do not sum to 1 within 1e-6, a label is no class, ``bins`` < 1, or there is no sample or only one class.
    """
    probs, labels = _checked(probs, labels, bins)
    return _binned(*_top(probs, labels), np.linspace(0.0, 1.0, bins + 1))


def expected_calibration_error(probs: Any, labels: Any, *, bins: int = 10) -> float:
    """Return the gap between accuracy and confidence, averaged over samples: ECE.

    Parameters
    ----------
    probs, labels, bins
        As in `reliability`.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        As `reliability`.
    """
    r = reliability(probs, labels, bins=bins)
    # eq: cta-16
    return float(np.sum(r.samples * np.abs(r.accuracy - r.confidence)) / np.sum(r.samples))


def maximum_calibration_error(probs: Any, labels: Any, *, bins: int = 10) -> float:
    """Return the gap of the worst bin: MCE.

    Parameters
    ----------
    probs, labels, bins
        As in `reliability`.

    Returns
    -------
    float
        In [0, 1]; empty bins have no gap.

    Raises
    ------
    ValueError
        As `reliability`.
    """
    r = reliability(probs, labels, bins=bins)
    # eq: cta-17
    return float(np.max(np.abs(r.accuracy - r.confidence)))


def average_calibration_error(probs: Any, labels: Any, *, bins: int = 10) -> float:
    """Return the gap between accuracy and confidence, averaged over the bins that are not empty.

    Parameters
    ----------
    probs, labels, bins
        As in `reliability`.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        As `reliability`.
    """
    return _mean_gap(reliability(probs, labels, bins=bins))


def adaptive_calibration_error(probs: Any, labels: Any, *, bins: int = 10, of: str = "classes") -> float:
    """Return the gap averaged over bins that hold equally many samples: ACE.

    Parameters
    ----------
    probs, labels, bins
        As in `reliability`.
    of : {"classes", "top"}
        The probabilities of each class by themselves, averaged over classes, or the top confidence only.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        As `reliability`, and for another ``of``.
    """
    require_one_of("of", of, ("classes", "top"))
    # eq: cta-18
    if of == "classes":
        return float(np.mean(adaptive_calibration_errors(probs, labels, bins=bins)))
    confidence, hit = _top(*_checked(probs, labels, bins))
    return _mean_gap(_binned(confidence, hit, _equal_mass(confidence, bins)))


def adaptive_calibration_errors(probs: Any, labels: Any, *, bins: int = 10) -> np.ndarray:
    """Return the adaptive error of each class's own probabilities.

    Parameters
    ----------
    probs, labels, bins
        As in `reliability`.

    Returns
    -------
    ndarray, shape (K,)
        Their mean is the `adaptive_calibration_error`.

    Raises
    ------
    ValueError
        As `reliability`.
    """
    probs, labels = _checked(probs, labels, bins)
    gaps = [_mean_gap(_binned(p, labels == k, _equal_mass(p, bins))) for k, p in enumerate(probs.T)]
    return np.array(gaps)


def _binned(confidence: np.ndarray, hit: np.ndarray, edges: np.ndarray) -> Reliability:
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = np.maximum(count, 1)
    accuracy = np.bincount(place, weights=hit, minlength=bins) / filled
    return Reliability(edges, count, accuracy, np.bincount(place, weights=confidence, minlength=bins) / filled)


def _equal_mass(p: np.ndarray, bins: int) -> np.ndarray:
    """Return borders between which equally many of ``p`` lie, from 0 to 1."""
    return np.concatenate([[0.0], np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]), [1.0]])


def _mean_gap(r: Reliability) -> float:
    return float(np.mean(np.abs(r.accuracy - r.confidence)[r.samples > 0]))


def _top(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence in the most probable class, and whether it is the right one."""
    return probs.max(axis=-1), probs.argmax(axis=-1) == labels


def _checked(probs: Any, labels: Any, bins: int) -> tuple[np.ndarray, np.ndarray]:
    probs = as_float("probs", probs, ndim=2).astype(np.float64)
    require(bins >= 1, f"bins={bins!r} must be >= 1")
    labels = _labels(labels, *probs.shape)
    require(np.all(probs >= 0), "probs has a negative entry, expected none")
    off = np.max(np.abs(probs.sum(axis=-1) - 1))
    require(off <= 1e-6, f"probs has a row whose sum is {off:.1e} away from 1, expected at most 1e-6")
    return probs, labels


def _labels(labels: Any, N: int, K: int) -> np.ndarray:
    labels = as_integer("labels", labels)
    require(N >= 1, "there is no sample, expected at least one")
    require(K >= 2, f"there are K={K} classes, expected at least 2")
    require_shape("labels", labels, (N,))
    require(np.all((labels >= 0) & (labels < K)), f"labels must lie in 0 … {K - 1}")
    return np.asarray(labels)
