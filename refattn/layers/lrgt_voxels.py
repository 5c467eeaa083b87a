"""Grids of voxels: a transposed convolution that doubles them, and folding small cubes into channels.

Equation source: ``models/decoder/decoder.py`` of the released LRGT code (2308.08724), commit a09fc43. Grids are
channels first, (B, C, h, w, l), and their cells row-major in (h, w, l).
"""

from __future__ import annotations

from itertools import product
from operator import index
from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape

__all__ = ["conv_transpose3d", "cube_side", "fold_voxels", "unfold_voxels"]


def conv_transpose3d(x: Any, w: Any, *, stride: int = 2, padding: int = 1) -> np.ndarray:
    """Spread every cell over a cube of the output: the adjoint of a strided convolution.

    Parameters
    ----------
    x : array_like, shape (B, C, h, w, l)
        The coarse grid.
    w : array_like, shape (C, O, k, k, k)
        One kernel for each pair of an input and an output channel.
    stride : int
        Cells of the output from one cell of the input to the next.
    padding : int
        Cells that are cut off on every side.

    Returns
    -------
    ndarray, shape (B, O, h', w', l')
        ``out[:, o, stride·y + i − padding] += x[:, c, y] · w[c, o, i]``, in each direction;
        h' = stride·(h − 1) + k − 2·padding.

    Raises
    ------
    ValueError
        If channels disagree, the stride is below 1, the padding negative, or nothing is left of the output.
    """
    x, w = as_float("x", x, ndim=5), as_float("w", w, ndim=5)
    require(w.shape[0] == x.shape[1], f"w has shape {w.shape}, expected {x.shape[1]} input channels as x")
    require(index(stride) >= 1, f"stride={stride!r} must be at least 1")
    require(index(padding) >= 0, f"padding={padding!r} must not be negative")
    w = w.astype(x.dtype, copy=False)
    sizes, taps = x.shape[2:], w.shape[2:]
    full = [stride * (n - 1) + k for n, k in zip(sizes, taps, strict=True)]
    require(min(full) > 2 * padding, f"padding={padding} leaves nothing of an output of {tuple(full)} cells")
    out = np.zeros_like(x, shape=(x.shape[0], w.shape[1], *full))  # (B, O, *full)
    cells = np.moveaxis(x, 1, -1)  # (B, h, w, l, C)
    # eq: lrgt-13
    for tap in product(*map(range, taps)):
        where = tuple(slice(i, i + stride * (n - 1) + 1, stride) for i, n in zip(tap, sizes, strict=True))
        out[(slice(None), slice(None), *where)] += np.moveaxis(cells @ w[(..., *tap)], -1, 1)
    kept = tuple(slice(padding, n - padding) for n in full)
    cut: np.ndarray = out[(slice(None), slice(None), *kept)]
    return cut


def fold_voxels(x: Any, *, r: int) -> np.ndarray:
    """Make one token of every r × r × r cells.

    Parameters
    ----------
    x : array_like, shape (B, C, h, w, l)
        A grid.
    r : int
        Cells per side of a token, a divisor of h, w and l.

    Returns
    -------
    ndarray, shape (B, h·w·l / r³, C·r³)
        Tokens row-major; channels in the order (c, y, x, z) of channel and place in the cube.

    Raises
    ------
    ValueError
        If r is below 1 or does not divide the grid.
    """
    x = as_float("x", x, ndim=5)
    require(index(r) >= 1, f"r={r!r} must be at least 1")
    require(all(n % r == 0 for n in x.shape[2:]), f"r={r} must divide the grid {x.shape[2:]} of x")
    B, C, h, w, l = x.shape
    # eq: lrgt-14
    cubes = x.reshape(B, C, h // r, r, w // r, r, l // r, r).transpose(0, 2, 4, 6, 1, 3, 5, 7)
    tokens: np.ndarray = cubes.reshape(B, h * w * l // r**3, C * r**3)
    return tokens


def unfold_voxels(tokens: Any, *, channels: int, r: int) -> np.ndarray:
    """Undo `fold_voxels` for a cubic grid.

    Parameters
    ----------
    tokens : array_like, shape (B, n³, channels·r³)
        One token for every r × r × r cells.
    channels : int
        C.
    r : int
        Cells per side of a token.

    Returns
    -------
    ndarray, shape (B, C, n·r, n·r, n·r)
        The grid.

    Raises
    ------
    ValueError
        If the number of tokens is no cube, or their width is not C·r³.
    """
    tokens = as_float("tokens", tokens, ndim=3)
    n = cube_side(tokens.shape[1])
    require(index(channels) >= 1 and index(r) >= 1, f"channels={channels!r} and r={r!r} must be at least 1")
    B = len(tokens)
    require_shape("tokens", tokens, (B, n**3, channels * r**3))
    cubes = tokens.reshape(B, n, n, n, channels, r, r, r).transpose(0, 4, 1, 5, 2, 6, 3, 7)
    grid: np.ndarray = cubes.reshape(B, channels, n * r, n * r, n * r)
    return grid


def cube_side(tokens: int) -> int:
    """Return n of n³ tokens; refuse other numbers."""
    n: int = round(tokens ** (1 / 3))
    require(n >= 1 and n**3 == tokens, f"tokens has {tokens} tokens, which is no cube")
    return n
