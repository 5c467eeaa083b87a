"""Softmax and log-sum-exp that can leave entries out: exp(x − max) over its sum, and max + log of that sum.

Equation source: the safe softmax of Milakov and Gimelshein, 1805.02867 [recalled]; rules R1, R21 and R25 of the
attention page.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_bool, as_float, require

__all__ = ["log_sum_exp", "normalise", "shifted_exponentials", "softmax"]


@np.errstate(under="ignore")
def softmax(x: Any, *, axis: int = -1, where: Any = None) -> np.ndarray:
    """Return the weights e^x / Σ e^x along an axis, over the entries that are not hidden.

    Parameters
    ----------
    x : array_like, shape (..., N, ...)
        Logits. Hidden entries may hold anything, NaN included.
    axis : int
        The axis whose weights sum to 1.
    where : array_like of bool, optional
        True = takes part; broadcasts to the shape of ``x``. A logit of −∞ is hidden too.

    Returns
    -------
    ndarray, shape of ``x``
        In the dtype of ``x``. Hidden entries are 0; a slice without any visible entry is all 0.

    Raises
    ------
    ValueError
        If ``axis`` is out of range, or ``where`` is not boolean or does not broadcast to ``x``.
    """
    x, where = _checked(x, axis, where)
    e, l, _ = shifted_exponentials(x, axis=axis, where=where)
    return normalise(e, l, where=where)


@np.errstate(under="ignore", divide="ignore")
def log_sum_exp(x: Any, *, axis: int = -1, where: Any = None, keepdims: bool = False) -> np.ndarray:
    """Return log Σ e^x along an axis, natural, over the entries that are not hidden.

    Parameters
    ----------
    x : array_like, shape (..., N, ...)
        Logits. Hidden entries may hold anything, NaN included.
    axis : int
        The axis that is summed over.
    where : array_like of bool, optional
        True = takes part; broadcasts to the shape of ``x``. A logit of −∞ is hidden too.
    keepdims : bool
        Keep the summed axis with length 1.

    Returns
    -------
    ndarray, shape of ``x`` without ``axis``
        In the dtype of ``x``; −∞ for a slice without any visible entry.

    Raises
    ------
    ValueError
        If ``axis`` is out of range, or ``where`` is not boolean or does not broadcast to ``x``.
    """
    x, where = _checked(x, axis, where)
    _, l, m = shifted_exponentials(x, axis=axis, where=where)
    result = m + np.log(l)  # log 0 = −∞ where nothing is visible
    return np.asanyarray(result if keepdims else result.squeeze(axis))


def shifted_exponentials(x: np.ndarray, *, axis: int = -1, where: Any = None) -> tuple[Any, Any, Any]:
    """Return e = exp(x − m), l = Σ e and the shift m, the largest visible entry (0 where nothing is visible).

    The common part of `softmax` and `log_sum_exp`, for callers that need both. It checks nothing, and takes complex
    arrays, for which m is the largest real part.

    Parameters
    ----------
    x : ndarray, shape (..., N, ...)
        Logits.
    axis : int
        The axis that is summed over.
    where : ndarray of bool, optional
        True = takes part.

    Returns
    -------
    e : ndarray, shape (..., N, ...)
        0 at hidden entries, but for a slice with a visible NaN, which is NaN.
    l, m : ndarray, shape (..., 1, ...)
        Sum and shift; the softmax is e / l and the log-sum-exp m + log l.
    """
    if where is not None:
        x = np.where(where, x, x.dtype.type(-np.inf))  # select, do not add: hidden NaN + −∞ would stay NaN
    m = np.max(np.real(x), axis=axis, keepdims=True, initial=-np.inf)
    m = np.where(m == -np.inf, 0, m)  # −∞ − (−∞) is NaN; −∞ − 0 gives the weight 0 that is meant
    e = np.exp(x - m)
    return e, np.sum(e, axis=axis, keepdims=True), m


def normalise(e: Any, l: Any, *, where: Any = None) -> np.ndarray:
    """Return e / l, the second half of `softmax`; it checks nothing.

    Parameters
    ----------
    e, l : ndarray, shape (..., N, ...) and (..., 1, ...)
        As from `shifted_exponentials`.
    where : ndarray of bool, optional
        True = takes part.

    Returns
    -------
    ndarray, shape (..., N, ...)
        0 at hidden entries, also beside a visible NaN, which poisons the visible weights of its slice.
    """
    # a slice with nothing visible has l = 0: dividing by 1 leaves its weights 0
    weights = e / (l + (l == 0))
    if where is not None and np.isnan(l).any():
        weights = np.where(where, weights, e.dtype.type(0))
    return np.asanyarray(weights)


def _checked(x: Any, axis: int, where: Any) -> tuple[np.ndarray, np.ndarray | None]:
    x = as_float("x", x)
    require(-x.ndim <= axis < x.ndim, f"axis={axis} is out of range for {x.ndim} axes")
    if where is None:
        return x, None
    where = as_bool("where", where)
    try:
        return x, np.broadcast_to(where, x.shape)
    except ValueError:
        raise ValueError(f"where has shape {where.shape}, which does not broadcast to {x.shape} of x") from None
