"""The idea of MSGNet with nothing else around it: split series into periods, mix them linearly, period by period.

[our definition] A least-squares caricature of the paper's Figure 1, to be solved in closed form: what a series takes
from another may have one sign at one period and the other at another. The equation label (msgnet-13) is that of the
page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["linear_multiscale_forecast", "linear_multiscale_graph", "periodic_extension"]


def periodic_extension(x: Any, *, periods: Sequence[int], horizon: int) -> np.ndarray:
    """Take the oscillation of each period out of a window, and let it go on.

    Parameters
    ----------
    x : array_like, shape (B, T, N)
        Windows.
    periods : sequence of int
        k different divisors of T, at least 2.
    horizon : int
        How many times P follow.

    Returns
    -------
    ndarray, shape (k, B, P, N)
        The continued oscillations, in the dtype of ``x``.

    Raises
    ------
    ValueError
        If ``x`` is not three-dimensional or not finite, a period is less than 2, no divisor of T or given twice, or
        the horizon is negative.
    """
    x = as_float("x", x, ndim=3)
    require_finite("x", x)
    T = x.shape[1]
    fits = all(index(s) >= 2 and T % s == 0 for s in periods) and len(set(periods)) == len(periods) >= 1
    require(fits, f"periods={periods!r} must be different divisors of T = {T}, at least 2")
    require(index(horizon) >= 0, f"horizon={horizon!r} must be >= 0")
    known, coming = np.arange(T), np.arange(T, T + horizon)
    bands = []
    for s in periods:
        lag = 2 * np.pi * (coming[:, None] - known) / s  # (P, T)
        weight = (1 if s == 2 else 2) / T  # the fastest oscillation is its own mirror image
        bands.append((weight * np.cos(lag)).astype(x.dtype) @ x)  # (B, P, N)
    return np.stack(bands)


def linear_multiscale_graph(x: Any, y: Any, *, periods: Sequence[int], shared: bool = False) -> np.ndarray:
    """Fit, by least squares, how series mix into each series' future: a matrix for each period, or one for all.

    Parameters
    ----------
    x : array_like, shape (B, T, N)
        Windows of N series.
    y : array_like, shape (B, P, M)
        The times that follow, of M series.
    periods : sequence of int
        See `periodic_extension`.
    shared : bool
        One matrix for all periods.

    Returns
    -------
    ndarray, shape (k, M, N)
        Entry (i, m, n): how series m takes the oscillation of period i from series n.

    Raises
    ------
    ValueError
        If ``y`` does not fit ``x``, or as `periodic_extension`.
    """
    y = as_float("y", y, ndim=3)
    bands = periodic_extension(x, periods=periods, horizon=y.shape[1])  # (k, B, P, N)
    k, B, _, N = bands.shape
    require_shape("y", y, (B, *y.shape[1:]))
    require_finite("y", y)
    bands = np.sum(bands, axis=0, keepdims=True) if shared else bands
    # eq: msgnet-13
    inputs = np.moveaxis(bands, 0, 2).reshape(-1, len(bands) * N)  # (B · P, k · N)
    mixing = np.linalg.lstsq(inputs, y.reshape(-1, y.shape[2]), rcond=None)[0]  # (k · N, M)
    matrices = np.swapaxes(mixing.reshape(len(bands), N, y.shape[2]), 1, 2)  # (k or 1, M, N)
    return np.repeat(matrices, k, axis=0) if shared else matrices


def linear_multiscale_forecast(x: Any, mixing: Any, *, periods: Sequence[int], horizon: int) -> np.ndarray:
    """Forecast with the matrices of `linear_multiscale_graph`.

    Parameters
    ----------
    x : array_like, shape (B, T, N)
        Windows.
    mixing : array_like, shape (k, M, N)
        A matrix for each period.
    periods, horizon
        See `periodic_extension`.

    Returns
    -------
    ndarray, shape (B, P, M)
        The sum over periods of the mixed oscillations.

    Raises
    ------
    ValueError
        If ``mixing`` does not fit, or as `periodic_extension`.
    """
    bands = periodic_extension(x, periods=periods, horizon=horizon)  # (k, B, P, N)
    mixing = as_float("mixing", mixing, ndim=3)
    require_shape("mixing", mixing, (len(bands), mixing.shape[1], bands.shape[3]))
    forecast: np.ndarray = np.einsum("imn,ibpn->bpm", mixing, bands, optimize=True)
    return forecast
