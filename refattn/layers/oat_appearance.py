"""What an object looks like, as a vector: a small convolutional network, with or without spatial pyramid pooling.

Optional front end of OAT (2407.13335); equation source ``model/models.py`` lines 22-54 and 127-180 of the released
code, commit 0c48c3e. Images are channels-last; kernels are stored (out, in, height, width).
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.convolution import conv2d
from refattn.primitives.pooling import max_pool2d

__all__ = ["AppearanceWeights", "object_appearance", "spatial_pyramid_pool"]


class AppearanceWeights(NamedTuple):
    """Parameters of the appearance network.

    Attributes
    ----------
    conv1_w, conv1_b : ndarray, shapes (16, 3, 5, 5) and (16,)
        First convolution.
    conv2_w, conv2_b : ndarray, shapes (32, 16, 3, 3) and (32,)
        Second convolution.
    w, b : ndarray, shapes (features, E/2) and (E/2,)
        Map to the appearance vector.
    """

    conv1_w: np.ndarray
    conv1_b: np.ndarray
    conv2_w: np.ndarray
    conv2_b: np.ndarray
    w: np.ndarray
    b: np.ndarray


def object_appearance(crops: Any, weights: AppearanceWeights, *, n_levels: int = 0) -> np.ndarray:
    """Describe crops of objects.

    Parameters
    ----------
    crops : array_like, shape (..., h, w, 3)
        RGB in [0, 1]; 150 × 93 in the paper.
    weights : AppearanceWeights
        Parameters.
    n_levels : int
        0 pools 3 × 3 and keeps the map's layout, so all crops must have one size; L > 0 pools a pyramid of L levels,
        whose number of features, 32·(1 + 4 + 16 + …), does not depend on the size.

    Returns
    -------
    ndarray, shape (..., E/2)

    Raises
    ------
    ValueError
        If the crops are too small, shapes disagree, or ``n_levels`` is negative.
    """
    crops = as_float("crops", crops)
    require(crops.ndim >= 3, f"crops has shape {crops.shape}, expected (..., h, w, 3)")
    require(index(n_levels) >= 0, f"n_levels={n_levels!r} must be >= 0")
    # eq: oat-15
    x = np.maximum(conv2d(crops, weights.conv1_w, weights.conv1_b), 0)  # (..., h − 4, w − 4, 16)
    x = max_pool2d(x, kernel=5)
    x = np.maximum(conv2d(x, weights.conv2_w, weights.conv2_b), 0)  # (..., h', w', 32)
    features = spatial_pyramid_pool(x, n_levels=n_levels) if n_levels else _flat(max_pool2d(x, kernel=3))
    require_shape("weights.w", np.asanyarray(weights.w), (features.shape[-1], *np.shape(weights.w)[1:]))
    return np.asanyarray(features @ weights.w + weights.b)  # (..., E/2)


def spatial_pyramid_pool(x: Any, *, n_levels: int) -> np.ndarray:
    """Take maxima over the whole map, its quarters, its sixteenths, …, and put them side by side.

    Parameters
    ----------
    x : array_like, shape (..., H, W, C)
        Feature maps without negative numbers, as after a ReLU: the padding is zero.
    n_levels : int
        L ≥ 1; level l has 2^l × 2^l windows of ⌈H/2^l⌉ × ⌈W/2^l⌉ tokens.

    Returns
    -------
    ndarray, shape (..., C·(4^L − 1)/3)
        Level after level, in each channel after channel, in each row after row.

    Raises
    ------
    ValueError
        If the map is empty, has a negative entry, or ``n_levels`` is below 1.

    References
    ----------
    1406.4729.
    """
    x = as_float("x", x)
    require(x.ndim >= 3 and min(x.shape[-3:-1]) >= 1, f"x has shape {x.shape}, expected (..., H, W, C), not empty")
    require(index(n_levels) >= 1, f"n_levels={n_levels!r} must be >= 1")
    require(np.all(x >= 0), "x must not be negative: windows at the edge are filled up with zeros")
    # eq: oat-16
    return np.concatenate([_flat(_windows(x, 2**level)) for level in range(n_levels)], axis=-1)


def _windows(x: Any, per_side: int) -> np.ndarray:
    """Return the maxima of ``per_side``² windows, the map filled up evenly on all sides."""
    kernel = tuple(-(-size // per_side) for size in x.shape[-3:-1])
    missing = [k * per_side - size for k, size in zip(kernel, x.shape[-3:-1], strict=True)]
    edges = [(0, 0)] * (x.ndim - 3) + [(m // 2, m - m // 2) for m in missing] + [(0, 0)]
    return max_pool2d(np.pad(x, edges), kernel=(kernel[0], kernel[1]))


def _flat(x: Any) -> Any:
    """Put the channels first and everything in one row, (..., C·H·W)."""
    *lead, H, W, C = x.shape
    return np.moveaxis(x, -1, -3).reshape(*lead, C * H * W)
