"""Bilinear resizing by a triangle filter that widens when it shrinks, as Pillow does it.

Part of CARVE (2509.06461); equation label (carve-7) is that of the page. Rows and columns are resized independently,
each by one small matrix whose rows sum to 1.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_float, require

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["bilinear_resize", "nearest_resize", "resize_weights"]


def resize_weights(n: int, m: int) -> np.ndarray:
    """Return the matrix that makes m samples of n by a triangle filter with pixel centres.

    Parameters
    ----------
    n, m : int
        Samples before and after, both at least 1.

    Returns
    -------
    ndarray, shape (m, n)
        Float64; rows sum to 1. The identity for m = n.

    Raises
    ------
    ValueError
        If a size is below 1.

    References
    ----------
    Pillow, ``Image.resize`` with ``BILINEAR``.
    """
    require(index(n) >= 1 and index(m) >= 1, f"n={n!r}, m={m!r} must be at least 1")
    s = n / m  # input pixels per output pixel
    f = max(s, 1.0)  # half width of the triangle: shrinking widens it, so that no input pixel is skipped
    c = (np.arange(m)[:, None] + 0.5) * s  # centres of the output pixels, (m, 1)
    # eq: carve-7
    w = np.maximum(0.0, 1.0 - np.abs((np.arange(n) - c + 0.5) / f))  # (m, n)
    return np.asarray(w / w.sum(axis=1, keepdims=True))


def bilinear_resize(image: Any, size: Sequence[int]) -> np.ndarray:
    """Resize a map or an image bilinearly.

    Parameters
    ----------
    image : array_like, shape (h, w) or (h, w, c)
        What is resized.
    size : (int, int)
        Height and width h', w' of the result.

    Returns
    -------
    ndarray, shape (h', w') or (h', w', c)
        In the dtype of ``image``. Each number is a weighted mean of inputs, so it lies between their extremes.

    Raises
    ------
    ValueError
        If ``image`` has neither two nor three axes or no pixel, or a size is below 1.

    Notes
    -----
    The released code resizes in float32; this one works in the dtype that it is given.
    """
    image, (height, width) = _checked(image, size)
    rows, columns = (
        resize_weights(n, m).astype(image.dtype) for n, m in zip(image.shape, (height, width), strict=False)
    )  # (h', h), (w', w)
    return np.asanyarray(np.einsum("ai,ij...->aj...", rows, np.einsum("bj,ij...->ib...", columns, image)))


def nearest_resize(image: Any, size: Sequence[int]) -> np.ndarray:
    """Resize by copying, to each new pixel, the old one in which its centre lies [our definition].

    Parameters
    ----------
    image : array_like, shape (h, w) or (h, w, c)
        What is resized.
    size : (int, int)
        Height and width h', w' of the result.

    Returns
    -------
    ndarray, shape (h', w') or (h', w', c)
        In the dtype of ``image``.

    Raises
    ------
    ValueError
        As for `bilinear_resize`.
    """
    image, (height, width) = _checked(image, size)
    # (2o + 1) n / 2m in whole numbers: the centre of pixel o, without rounding
    rows, columns = ((2 * np.arange(m) + 1) * n // (2 * m) for n, m in zip(image.shape, (height, width), strict=False))
    return np.asanyarray(image[rows][:, columns])


def _checked(image: Any, size: Sequence[int]) -> tuple[Any, tuple[int, int]]:
    image = as_float("image", image)
    require(image.ndim in (2, 3), f"image has shape {image.shape}, expected (h, w) or (h, w, c)")
    require(min(image.shape[:2]) >= 1, f"image has shape {image.shape}: there is no pixel to resize")
    require(len(size) == 2 and min(map(index, size)) >= 1, f"size={size!r} must be two integers, at least 1")
    return image, (index(size[0]), index(size[1]))
