"""Which periods a window holds, and how it is cut into segments of one period.

From MSGNet (2401.00423); equation labels (msgnet-3), (msgnet-4) and (msgnet-9) are those of the page. Equation source:
``models/MSGNet.py`` of the released code, commit 953b833.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite
from refattn.primitives.selection import top_k

__all__ = ["ScaleSelection", "check_windows", "fold_segments", "identify_scales", "select_scales", "unfold_segments"]


class ScaleSelection(NamedTuple):
    """The k strongest frequencies of a batch of windows, the strongest first.

    Attributes
    ----------
    freqs : ndarray of int, shape (k,)
        Whole oscillations in a window.
    periods : ndarray of int, shape (k,)
        The scales, T // freqs; two of them may be equal.
    amplitudes : ndarray, shape (B, k)
        How strong each frequency is in each window, averaged over features.
    spectrum : ndarray, shape (T//2 + 1,)
        What the selection rests on: amplitudes averaged over features and windows, 0 for the constant part.
    """

    freqs: np.ndarray
    periods: np.ndarray
    amplitudes: np.ndarray
    spectrum: np.ndarray


def identify_scales(x: Any, *, k: int) -> ScaleSelection:
    """Find the k strongest frequencies of a batch, and the period of each.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Windows of T times.
    k : int
        How many, between 1 and T//2.

    Returns
    -------
    ScaleSelection
        Frequencies, periods, and amplitudes in the dtype of ``x``.

    Raises
    ------
    ValueError
        If ``x`` is not three-dimensional or not finite, holds no window or no feature, or k is out of range.

    Notes
    -----
    The windows of a batch choose together, so what a window is given depends on its batch, as in the released code.
    Among equal amplitudes the lower frequency comes first [our definition]; the released code leaves it open.

    References
    ----------
    2401.00423, Eq. 3.
    """
    x = as_float("x", x, ndim=3)
    check_windows(x, k)
    require_finite("x", x)
    return select_scales(x, k)


def check_windows(x: np.ndarray, k: int) -> None:
    """Refuse windows (B, T, D) that have no k frequencies to choose."""
    B, T, D = x.shape
    require(B >= 1, f"x has shape {x.shape}: a mean over an empty batch is undefined")
    require(D >= 1, f"x has shape {x.shape}: it has no features")
    require(1 <= index(k) <= T // 2, f"k={k!r}: top_k must be between 1 and T//2 = {T // 2}")


def select_scales(x: np.ndarray, k: int) -> ScaleSelection:
    """Do the work of `identify_scales`; it checks nothing."""
    T = x.shape[1]
    F = np.abs(np.fft.rfft(x, axis=1)).astype(x.dtype, copy=False)  # (B, T//2 + 1, D)
    # eq: msgnet-3
    spectrum = np.mean(F, axis=(0, 2)) * (np.arange(F.shape[1]) > 0)  # (T//2 + 1,), no constant part
    freqs = 1 + top_k(spectrum[1:], k=k)[1]  # (k,)
    # eq: msgnet-4
    periods = T // freqs  # (k,)
    amplitudes = np.mean(F[:, freqs], axis=-1)  # (B, k)
    return ScaleSelection(freqs, periods, amplitudes, spectrum)


def fold_segments(x: Any, *, period: int) -> np.ndarray:
    """Cut windows into consecutive segments of one period, after padding the end with zeros.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Windows.
    period : int
        The length s of a segment, at least 1.

    Returns
    -------
    ndarray, shape (B · ceil(T/s), s, D)
        The segments, those of a window side by side.

    Raises
    ------
    ValueError
        If ``x`` is not three-dimensional or the period is less than 1.
    """
    x = as_float("x", x, ndim=3)
    require(index(period) >= 1, f"period={period!r} must be >= 1")
    B, T, D = x.shape
    segments = -(-T // period)
    # eq: msgnet-9
    padded = np.concatenate([x, np.zeros((B, segments * period - T, D), x.dtype)], axis=1)
    return padded.reshape(B * segments, period, D)


def unfold_segments(z: Any, *, length: int) -> np.ndarray:
    """Put segments back side by side and drop the padding: the inverse of `fold_segments`.

    Parameters
    ----------
    z : array_like, shape (B · ceil(T/s), s, D)
        Segments.
    length : int
        The number of times T.

    Returns
    -------
    ndarray, shape (B, T, D)
        The windows.

    Raises
    ------
    ValueError
        If the segments do not make whole windows.
    """
    z = as_float("z", z, ndim=3)
    R, s, D = z.shape
    segments = -(-index(length) // max(s, 1))
    whole = segments >= 1 and R % segments == 0
    require(whole, f"z has shape {z.shape}: its segments make no whole windows of {length} times")
    windows: np.ndarray = z.reshape(R // segments, segments * s, D)[:, :length]
    return windows
