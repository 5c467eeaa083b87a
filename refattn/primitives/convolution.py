"""Two-dimensional convolution of channels-last feature maps, as neural networks mean it: cross-correlation.

The sum over the kernel's taps is the outer loop; each tap multiplies the whole map, shifted, by one matrix or vector.
"""

from __future__ import annotations

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape

__all__ = ["conv2d", "depthwise_conv2d"]


def conv2d(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, stride: int = 1, padding: int = 0
) -> np.ndarray:
    """Convolve feature maps with dense kernels.

    Parameters
    ----------
    x : ndarray, shape (..., H, W, C)
        Feature maps.
    w : ndarray, shape (D, C, kh, kw)
        One kernel for each pair of an output and an input channel.
    b : ndarray, shape (D,), optional
        Added to every token.
    stride : int
        Step between output tokens, in both directions.
    padding : int
        Rows and columns of zeros added on each side.

    Returns
    -------
    ndarray, shape (..., H', W', D)
        ``out[y, x, d] = b[d] + Σ_{i, j, c} w[d, c, i, j] · x[y·stride + i − padding, x·stride + j − padding, c]``;
        H' = ⌊(H + 2·padding − kh) / stride⌋ + 1.

    Raises
    ------
    ValueError
        If shapes disagree, the stride is below 1, the padding is negative or the kernel exceeds the padded map.
    """
    x, w, b = _arguments(x, w, b)
    require(w.ndim == 4, f"w has shape {w.shape}, expected (D, C, kh, kw)")
    D, C, kh, kw = w.shape
    require(
        x.shape[-1] == C, f"w has shape {w.shape}, x has {x.shape[-1]} channels: expected (D, {x.shape[-1]}, kh, kw)"
    )
    require(stride >= 1, f"stride={stride} must be at least 1")
    require(padding >= 0, f"padding={padding} must not be negative")
    x = _zero_pad(x, padding, padding)
    H, W = x.shape[-3:-1]
    require(min(kh, kw) >= 1 and kh <= H and kw <= W, f"a kernel of {kh} × {kw} does not fit a map of {H} × {W}")
    rows, columns = H - kh + 1, W - kw + 1
    out = np.zeros((1, 1, D), dtype=x.dtype) if b is None else b
    for i in range(kh):
        for j in range(kw):
            shifted = x[..., i : i + rows : stride, j : j + columns : stride, :]  # (..., H', W', C)
            out = out + shifted @ w[:, :, i, j].T  # (..., H', W', D)
    return out


def depthwise_conv2d(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Convolve every channel with a kernel of its own; the map keeps its size, zeros surround it.

    Parameters
    ----------
    x : ndarray, shape (..., H, W, C)
        Feature maps.
    w : ndarray, shape (C, kh, kw)
        One kernel for each channel, of odd height and width.
    b : ndarray, shape (C,), optional
        Added to every token.

    Returns
    -------
    ndarray, shape (..., H, W, C)
        ``out[y, x, c] = b[c] + Σ_{i, j} w[c, i, j] · x[y + i − ⌊kh/2⌋, x + j − ⌊kw/2⌋, c]``, zero outside the map.

    Raises
    ------
    ValueError
        If shapes disagree or the kernel has an even side.
    """
    x, w, b = _arguments(x, w, b)
    require(w.ndim == 3, f"w has shape {w.shape}, expected (C, kh, kw)")
    C, kh, kw = w.shape
    require(x.shape[-1] == C, f"w has shape {w.shape}, x has {x.shape[-1]} channels: expected ({x.shape[-1]}, kh, kw)")
    require(kh % 2 == 1 and kw % 2 == 1, f"w has a kernel of {kh} × {kw}: both sides must be odd")
    H, W = x.shape[-3:-1]
    x = _zero_pad(x, kh // 2, kw // 2)
    out = np.zeros((1, 1, C), dtype=x.dtype) if b is None else b
    for i in range(kh):
        for j in range(kw):
            out = out + x[..., i : i + H, j : j + W, :] * w[:, i, j]  # (..., H, W, C)
    return out


def _arguments(x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    x, w = as_float("x", x), as_float("w", w)
    require(x.ndim >= 3, f"x has {x.ndim} axes (shape {x.shape}), expected at least 3: (..., H, W, C)")
    if b is not None:
        b = as_float("b", b)
        require_shape("b", b, w.shape[:1])
    return x, w, b


def _zero_pad(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    edges = [(0, 0)] * (x.ndim - 3) + [(rows, rows), (columns, columns), (0, 0)]
    return np.pad(x, edges)
