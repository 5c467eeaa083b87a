"""Pooling of channels-last feature maps: every output cell averages, or takes the maximum of, one rectangular bin.

A kind of pooling is a choice of bins: a sliding window, or as many bins as wanted spread evenly over the map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.primitives.arguments import as_float, require

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d"]

Pair = int | tuple[int, int]


def avg_pool2d(x: np.ndarray, *, kernel: Pair, stride: Pair | None = None, ceil_mode: bool = False) -> np.ndarray:
    """Average a sliding window.

    Parameters
    ----------
    x : ndarray, shape (..., H, W, C)
        Feature maps.
    kernel : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        Steps of the window; the kernel's size if not given.
    ceil_mode : bool
        Whether windows that reach over the lower or right edge count; they average the tokens that they contain.

    Returns
    -------
    ndarray, shape (..., H', W', C)
        One mean for each window.

    Raises
    ------
    ValueError
        If the kernel or the stride is below 1, or the kernel exceeds the map and ``ceil_mode`` is off.
    """
    return _pool(x, _window_bins(x, kernel, stride, ceil_mode=ceil_mode), np.mean)


def max_pool2d(x: np.ndarray, *, kernel: Pair, stride: Pair | None = None, ceil_mode: bool = False) -> np.ndarray:
    """Take the maximum of a sliding window.

    Parameters
    ----------
    x, kernel, stride, ceil_mode
        As for `avg_pool2d`; a window that reaches over the edge takes the largest of the tokens that it contains.

    Returns
    -------
    ndarray, shape (..., H', W', C)
        One maximum for each window.

    Raises
    ------
    ValueError
        As for `avg_pool2d`.
    """
    return _pool(x, _window_bins(x, kernel, stride, ceil_mode=ceil_mode), np.max)


def adaptive_avg_pool2d(x: np.ndarray, *, size: Pair) -> np.ndarray:
    """Average ``size`` bins that cover the map evenly.

    Parameters
    ----------
    x : ndarray, shape (..., H, W, C)
        Feature maps.
    size : int or (int, int)
        Number of bins along the height and the width.

    Returns
    -------
    ndarray, shape (..., P, P, C)
        Bin a covers the rows ⌊a H / P⌋ to ⌈(a + 1) H / P⌉ − 1, so bins overlap where P does not divide H.

    Raises
    ------
    ValueError
        If the size is below 1 or the map is empty.
    """
    return _pool(x, _adaptive_bins(x, size), np.mean)


def adaptive_max_pool2d(x: np.ndarray, *, size: Pair) -> np.ndarray:
    """Take the maximum of ``size`` bins that cover the map evenly.

    Parameters
    ----------
    x, size
        As for `adaptive_avg_pool2d`.

    Returns
    -------
    ndarray, shape (..., P, P, C)
        One maximum for each bin; the bins are those of `adaptive_avg_pool2d`.

    Raises
    ------
    ValueError
        As for `adaptive_avg_pool2d`.
    """
    return _pool(x, _adaptive_bins(x, size), np.max)


Bins = tuple[list[slice], list[slice]]


def _pool(x: np.ndarray, bins: Bins, reduce: Callable[..., np.ndarray]) -> np.ndarray:
    x = as_float("x", x)
    rows = [np.stack([reduce(x[..., r, c, :], axis=(-3, -2)) for c in bins[1]], axis=-2) for r in bins[0]]
    return np.stack(rows, axis=-3)


def _window_bins(x: np.ndarray, kernel: Pair, stride: Pair | None, *, ceil_mode: bool) -> Bins:
    kernels = _pair("kernel", kernel)
    strides = kernels if stride is None else _pair("stride", stride)
    H, W = _extent(x)
    fits = ceil_mode or (kernels[0] <= H and kernels[1] <= W)
    require(fits, f"kernel={kernel} exceeds the feature map of {H} × {W}: the pooling is empty")

    def along(length: int, size: int, step: int) -> list[slice]:
        last = max(length - size, 0)
        count = (-(-last // step) if ceil_mode else last // step) + 1
        # a window that would begin behind the edge holds no token
        return [slice(a * step, min(a * step + size, length)) for a in range(count) if a * step < length]

    return along(H, kernels[0], strides[0]), along(W, kernels[1], strides[1])


def _adaptive_bins(x: np.ndarray, size: Pair) -> Bins:
    rows, columns = _pair("size", size)
    H, W = _extent(x)

    def along(length: int, count: int) -> list[slice]:
        return [slice(a * length // count, -(-(a + 1) * length // count)) for a in range(count)]

    return along(H, rows), along(W, columns)


def _pair(name: str, value: Pair) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple) else (value, value)
    require(first >= 1 and second >= 1, f"{name}={value} must be at least 1")
    return first, second


def _extent(x: np.ndarray) -> tuple[int, int]:
    shape = np.shape(x)
    require(len(shape) >= 3, f"x has {len(shape)} axes (shape {shape}), expected at least 3: (..., H, W, C)")
    require(min(shape[-3:-1]) >= 1, f"x has shape {shape}: an empty feature map cannot be pooled")
    return shape[-3], shape[-2]
