"""Pooling inside regions and depth-wise convolution; average pooling is a product with a constant matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

__all__ = ["constant", "depthwise_conv2d", "pool_regions", "zeros_around"]


def depthwise_conv2d(x: Any, w: Any, b: Any = None) -> Any:
    """Convolve every channel with a kernel of its own; see `refattn.primitives.convolution.depthwise_conv2d`."""
    xp = array_namespace(x)
    *_, H, W, C = x.shape
    _, kh, kw = w.shape
    x = zeros_around(xp, x, -3, kh // 2, kh // 2)
    x = zeros_around(xp, x, -2, kw // 2, kw // 2)
    taps = xp.reshape(xp.permute_dims(w, (1, 2, 0)), (kh, kw, C))
    rows = [
        sum(
            (x[..., i : i + H, j : j + W, :] * taps[i, j, :] for j in range(1, kw)),
            x[..., i : i + H, :W, :] * taps[i, 0, :],
        )
        for i in range(kh)
    ]
    out = sum(rows[1:], rows[0])
    return out if b is None else out + b


def pool_regions(kv: Any, *, mode: str = "identity", ratio: int = 4, per_region: int = 4) -> Any:
    """Reduce the tokens of each region; see `refattn.layers.biformer_routing.pool_regions`."""
    xp = array_namespace(kv)
    B, R, h, w, C = kv.shape
    if mode == "identity":
        return xp.reshape(kv, (B, R, h * w, C))
    if mode.startswith("ada_"):
        rows, columns = _spread_bins(h, per_region), _spread_bins(w, per_region)
    else:
        rows, columns = _window_bins(h, ratio), _window_bins(w, ratio)
    if mode.endswith("avgpool"):
        # one bin is a row of the Kronecker product of two averaging matrices
        average = np.kron(_averaging(h, rows), _averaging(w, columns))  # (n_kv, h w)
        return constant(xp, average, kv) @ xp.reshape(kv, (B, R, h * w, C))
    kv = xp.stack([xp.max(kv[:, :, r, :, :], axis=2) for r in rows], axis=2)  # (B, R, P, w, C)
    kv = xp.stack([xp.max(kv[:, :, :, c, :], axis=3) for c in columns], axis=3)  # (B, R, P, P, C)
    return xp.reshape(kv, (B, R, len(rows) * len(columns), C))


def zeros_around(xp: Any, x: Any, axis: int, before: int, after: int) -> Any:
    """Add zeros before and after along an axis."""

    def zeros(count: int) -> Any:
        shape = list(x.shape)
        shape[axis] = count
        return xp.zeros(tuple(shape), dtype=x.dtype, device=device(x))

    parts = [zeros(before)] * (before > 0) + [x] + [zeros(after)] * (after > 0)
    return x if len(parts) == 1 else xp.concat(parts, axis=axis)


def constant(xp: Any, values: np.ndarray, like: Any) -> Any:
    """Return a table computed from sizes as an array of the library, of the dtype and device of ``like``."""
    return xp.asarray(values.tolist(), dtype=like.dtype, device=device(like))


def _spread_bins(length: int, count: int) -> list[slice]:
    return [slice(a * length // count, math.ceil((a + 1) * length / count)) for a in range(count)]


def _window_bins(length: int, size: int) -> list[slice]:
    return [slice(a, a + size) for a in range(0, length - size + 1, size)]


def _averaging(length: int, bins: list[slice]) -> np.ndarray:
    matrix = np.zeros((len(bins), length))
    for row, where in zip(matrix, bins, strict=True):
        row[where] = 1.0 / (where.stop - where.start)
    return matrix
