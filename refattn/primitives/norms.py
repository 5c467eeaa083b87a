"""Normalisation: bring activations to a common scale by their own, or by recorded, statistics.

Equation source: LayerNorm 1607.06450, RMSNorm 1910.07467, batch normalisation 1502.03167.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape

__all__ = ["batch_norm", "layer_norm", "rms_norm"]


def rms_norm(x: Any, weight: Any, *, eps: float = 1e-6) -> np.ndarray:
    """Divide by the root mean square of the last axis: x / sqrt(mean(x²) + eps) · weight.

    Parameters
    ----------
    x : array_like, shape (..., D)
        Activations.
    weight : array_like, shape (D,), or None
        Scale of each channel; it multiplies as it is, not as 1 + weight. None leaves it out.
    eps : float
        Added to the mean square.

    Returns
    -------
    ndarray, shape (..., D)
        In the dtype of ``x``; float16 and bfloat16 are computed in float32.

    Raises
    ------
    ValueError
        If the weight does not have shape (D,), D = 0, or ``eps`` is negative.

    References
    ----------
    1910.07467, eq. 4.
    """
    x, wide = _widened(x, eps)
    mean_square = np.mean(np.square(wide), axis=-1, keepdims=True)  # (..., 1)
    normalised = wide / np.sqrt(mean_square + eps)  # (..., D)
    return _affine(normalised, weight, None).astype(x.dtype, copy=False)


def layer_norm(x: Any, weight: Any, bias: Any, *, eps: float = 1e-6) -> np.ndarray:
    """Subtract the mean of the last axis and divide by its standard deviation, then scale and shift.

    Parameters
    ----------
    x : array_like, shape (..., D)
        Activations.
    weight, bias : array_like, shape (D,), or None
        Scale and shift of each channel; None leaves either out.
    eps : float
        Added to the variance.

    Returns
    -------
    ndarray, shape (..., D)
        In the dtype of ``x``; float16 and bfloat16 are computed in float32.

    Raises
    ------
    ValueError
        If weight or bias do not have shape (D,), D = 0, or ``eps`` is negative.

    Notes
    -----
    The variance is that of the population (divided by D), taken from the centred values: mean(x²) − mean(x)² would
    cancel for activations far from zero.

    References
    ----------
    1607.06450, eq. 4.
    """
    x, wide = _widened(x, eps)
    centred = wide - np.mean(wide, axis=-1, keepdims=True)  # (..., D)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)  # (..., 1)
    normalised = centred / np.sqrt(variance + eps)  # (..., D)
    return _affine(normalised, weight, bias).astype(x.dtype, copy=False)


def batch_norm(
    x: Any,
    mean: Any,
    variance: Any,
    weight: Any,
    bias: Any,
    *,
    eps: float = 1e-5,
    axis: int = -1,
) -> np.ndarray:
    """Normalise each channel by recorded statistics, the form used at inference.

    Parameters
    ----------
    x : array_like
        Activations with C channels on ``axis``.
    mean, variance : array_like, shape (C,)
        Running statistics; the variance is not negative.
    weight, bias : array_like, shape (C,), or None
        Scale and shift of each channel; None leaves either out.
    eps : float
        Added to the variance.
    axis : int
        Where the channels are: −1 for channels last, 1 for (B, C, height, width).

    Returns
    -------
    ndarray, shape of ``x``
        In the dtype of ``x``; float16 and bfloat16 are computed in float32.

    Raises
    ------
    ValueError
        If a statistic or parameter does not have shape (C,), a variance or ``eps`` is negative, or ``x`` has no such
        axis.

    References
    ----------
    1502.03167, algorithm 2.
    """
    x = as_float("x", x)
    require(-x.ndim <= axis < x.ndim, f"axis={axis} does not exist in x of shape {x.shape}")
    require(eps >= 0, f"eps={eps!r} must be >= 0")
    channels_last = np.moveaxis(x, axis, -1)  # (..., C)
    width = channels_last.shape[-1]
    mean, variance = _parameter("mean", mean, width), _parameter("variance", variance, width)
    require(np.all(variance >= 0), "variance must be >= 0 in every channel")
    wide = channels_last.astype(_wide(x.dtype), copy=False)
    normalised = (wide - mean.astype(wide.dtype)) / np.sqrt(variance.astype(wide.dtype) + eps)  # (..., C)
    return np.moveaxis(_affine(normalised, weight, bias).astype(x.dtype, copy=False), -1, axis)


def _widened(x: Any, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return ``x`` as given and in the dtype of the statistics: squares of float16 overflow from 256 on."""
    x = as_float("x", x)
    require(x.ndim >= 1 and x.shape[-1] >= 1, f"x has shape {x.shape}, expected at least one channel on the last axis")
    require(eps >= 0, f"eps={eps!r} must be >= 0")
    return x, x.astype(_wide(x.dtype), copy=False)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.promote_types(dtype, np.float32)


def _affine(normalised: np.ndarray, weight: Any, bias: Any) -> np.ndarray:
    width = normalised.shape[-1]
    if weight is not None:
        normalised = normalised * _parameter("weight", weight, width).astype(normalised.dtype, copy=False)
    if bias is not None:
        normalised = normalised + _parameter("bias", bias, width).astype(normalised.dtype, copy=False)
    return normalised


def _parameter(name: str, value: Any, width: int) -> np.ndarray:
    array: np.ndarray = as_float(name, value)
    require_shape(name, array, (width,))
    return array
