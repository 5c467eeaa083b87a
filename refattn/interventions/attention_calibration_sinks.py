"""Finding attention sinks: what each column receives, which receive too much, and which of them are calibrated.

The first half of attention calibration (2406.15765); the second is `refattn.interventions.attention_calibration`.
Equation labels (act-…) are those of the page.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_bool, as_float, require, require_one_of

__all__ = [
    "PROTECT",
    "as_attention",
    "calibrated_sinks",
    "detect_sinks",
    "received_attention",
    "require_distributions",
]

PROTECT = ("first_detected", "token0")


def received_attention(weights: Any, *, causal: bool = False) -> np.ndarray:
    """Return the mean attention that each column receives from the queries that can see it.

    Parameters
    ----------
    weights : array_like, shape (..., T, T)
        Causal attention weights after the softmax, row = query, column = key. Rows sum to 1, or are all zero.
    causal : bool
        Return instead, for each row i, the mean over the queries j … i so far; 0 for the columns after i.

    Returns
    -------
    ndarray, shape (..., T), or (..., T, T) with ``causal``
        In the dtype of ``weights``. Late columns average over few queries, the last over one.

    Raises
    ------
    ValueError
        If the weights are not square, not causal, negative, or have a row that does not sum to 1.
    """
    weights = as_attention(weights)
    T = weights.shape[-1]
    if causal:
        queries = np.maximum(np.arange(T)[:, None] - np.arange(T) + 1, 1)  # (T, T): how many of j … i
        # eq: act-causal
        return np.asanyarray(np.cumsum(weights, axis=-2) / queries.astype(weights.dtype))  # (..., T, T)
    # eq: act-1
    return np.asanyarray(np.sum(weights, axis=-2) / np.arange(T, 0, -1).astype(weights.dtype))  # (..., T)


def detect_sinks(
    weights: Any, *, threshold: float | None = None, alpha: float | None = None, causal: bool = False
) -> np.ndarray:
    """Say which columns are sinks: those that receive more than a threshold.

    Parameters
    ----------
    weights : array_like, shape (..., T, T)
        Causal attention weights after the softmax, row = query, column = key. Rows sum to 1, or are all zero.
    threshold : float, optional
        The mean attention above which a column is a sink. From 1 on there is none; below 0 every column is one.
    alpha : float, optional
        The threshold in units of the equal share: α/T, and α/(i + 1) for row i with ``causal``. Exactly one of
        ``threshold`` and ``alpha`` is given.
    causal : bool
        Decide for each row from the queries so far.

    Returns
    -------
    ndarray of bool, shape (..., T), or (..., T, T) with ``causal``
        S, as a mask.

    Raises
    ------
    ValueError
        For weights that `received_attention` refuses; unless exactly one of ``threshold``, a number, and ``alpha``,
        above 0, is given.
    """
    require(
        (threshold is None) != (alpha is None),
        f"exactly one of threshold={threshold!r} and alpha={alpha!r} must be given",
    )
    require(alpha is None or 0 < alpha < np.inf, f"alpha={alpha!r} must be finite and > 0")
    require(threshold is None or not np.isnan(threshold), f"threshold={threshold!r} must be a number")
    received = received_attention(weights, causal=causal)  # (..., T) or (..., T, T)
    T = received.shape[-1]
    share = 1.0 / np.arange(1, T + 1)[:, None] if causal else 1.0 / max(T, 1)  # (T, 1) or a number
    limit = np.asarray(threshold if alpha is None else alpha * share, received.dtype)
    # eq: act-2
    found = received > limit
    return np.asarray(found & np.tri(T, dtype=bool)) if causal else np.asarray(found)


def calibrated_sinks(is_sink: Any, *, protect: str = "first_detected") -> np.ndarray:
    """Return the sinks that are calibrated: all but one.

    Parameters
    ----------
    is_sink : array_like of bool, shape (..., T)
        S, from `detect_sinks`.
    protect : {"first_detected", "token0"}
        Which column is spared: the first of S, whatever it is, as in the released code; or column 0 only [our
        definition]. They differ where token 0 is not detected.

    Returns
    -------
    ndarray of bool, shape (..., T)
        S'. Column 0 is never in it.

    Raises
    ------
    ValueError
        If ``is_sink`` is not boolean or ``protect`` is unknown.
    """
    is_sink = as_bool("is_sink", is_sink)
    require(is_sink.ndim >= 1, f"is_sink has shape {is_sink.shape}, expected (..., T)")
    require_one_of("protect", protect, PROTECT)
    # eq: act-3
    if protect == "token0":
        return np.asarray(is_sink & (np.arange(is_sink.shape[-1]) > 0))
    return np.asarray(is_sink & (np.cumsum(is_sink, axis=-1) > 1))


def as_attention(weights: Any) -> Any:
    """Return ``weights`` as a floating array of causal attention maps, rows of zeros among them.

    Parameters
    ----------
    weights : array_like, shape (..., T, T)
        The argument.

    Returns
    -------
    ndarray
        Perhaps the caller's own, so it must not be written to.

    Raises
    ------
    ValueError
        If it is not square, has negative or NaN entries, a row that does not sum to 1, or mass above the diagonal.
    """
    weights = as_float("weights", weights)
    square = weights.ndim >= 2 and weights.shape[-1] == weights.shape[-2]
    require(square, f"weights has shape {weights.shape}: attention must be square: prefill only")
    require_distributions("weights", weights)
    later = np.abs(np.triu(np.asarray(weights), 1)).max(initial=0)
    require(later <= 1e-12, f"weights has {later:.3g} above the diagonal: attention must be causal")
    return weights


def require_distributions(name: str, rows: np.ndarray) -> None:
    """Raise ``ValueError`` unless rows (..., T) are not negative and sum to 1; rows of zeros pass."""
    plain = np.asarray(rows)
    require(np.all(plain >= 0), f"{name} has negative or NaN entries: attention weights must be >= 0")
    sums = np.sum(plain, axis=-1, dtype=np.float64)
    # a float32 or narrower softmax cannot do better than a few of its own units
    tolerance = max(1e-6, 16 * float(np.spacing(plain.dtype.type(1))))
    off = np.abs(sums - (sums > 0))
    require(
        off.max(initial=0) <= tolerance,
        f"{name} has a row whose sum is off by {off.max(initial=0):.3g}: rows must sum to 1",
    )
