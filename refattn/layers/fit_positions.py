"""Position codes of FIT: sines first, then cosines, over one axis or over a grid (2305.12689).

Equation labels (fit-9) and (fit-10) are those of the page.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_one_of

__all__ = ["POSITION_CODES", "position_table", "sincos_1d", "sincos_2d", "sincos_code"]

POSITION_CODES = ("learned", "sin_cos", "sin_cos2d")


def sincos_code(positions: Any, dim: int) -> np.ndarray:
    """Return the code of real positions: the sines of every second frequency, then the cosines of the others.

    Parameters
    ----------
    positions : array_like, shape (...)
        Any reals; they need not be integers.
    dim : int
        The width d ≥ 1 of the code.

    Returns
    -------
    ndarray, shape (..., d)
        In the dtype of ``positions``.

    Raises
    ------
    ValueError
        If ``dim`` is less than 1.

    Notes
    -----
    Channel j has the frequency 10000^(−2⌊j/2⌋/d). The published code computes frequencies and angles in float32.
    """
    positions = as_float("positions", positions)
    require(dim >= 1, f"dim={dim!r} must be >= 1")
    frequencies = 10000.0 ** (-2.0 * (np.arange(dim) // 2) / dim)  # (d,)
    # eq: fit-9
    angles = positions[..., None] * frequencies.astype(positions.dtype)  # (..., d)
    return np.concatenate([np.sin(angles[..., 0::2]), np.cos(angles[..., 1::2])], axis=-1)


def sincos_1d(length: int, dim: int, *, max_position: float | None = 1000.0) -> np.ndarray:
    """Return the code of a row of positions, spread evenly from 0 to ``max_position``.

    Parameters
    ----------
    length : int
        The number of positions N.
    dim : int
        The width d of the code.
    max_position : float or None
        Where the last position lies; None leaves the integers 0 … N − 1.

    Returns
    -------
    ndarray, shape (N, d)
        Float64.

    Raises
    ------
    ValueError
        If a size is out of range or ``max_position`` is not finite.

    Notes
    -----
    A single position lies at 0; the published code divides 0 by 0 there [our definition].
    """
    require(length >= 0, f"length={length!r} must be >= 0")
    if max_position is None:
        return sincos_code(np.arange(float(length)), dim)
    require(np.isfinite(max_position), f"max_position={max_position!r} must be finite")
    return sincos_code(np.arange(length) * (max_position / max(length - 1, 1)), dim)


def sincos_2d(height: int, width: int, dim: int, *, max_position: float | None = 1000.0) -> np.ndarray:
    """Return the code of a grid: half of the channels say the row, the other half the column.

    Parameters
    ----------
    height, width : int
        The sides H and W of the grid.
    dim : int
        The width d of the code, even.
    max_position : float or None
        As in `sincos_1d`, for either side.

    Returns
    -------
    ndarray, shape (H, W, d)
        Float64.

    Raises
    ------
    ValueError
        If ``dim`` is odd, and as `sincos_1d`.
    """
    require(dim % 2 == 0, f"dim={dim!r} must be even for a code over a grid")
    rows = sincos_1d(height, dim // 2, max_position=max_position)[:, None]  # (H, 1, d/2)
    columns = sincos_1d(width, dim // 2, max_position=max_position)[None]  # (1, W, d/2)
    grid = (height, width, dim // 2)
    # eq: fit-10
    return np.concatenate([np.broadcast_to(rows, grid), np.broadcast_to(columns, grid)], axis=-1)  # (H, W, d)


def position_table(
    code: str, rows: int, columns: int, dim: int, *, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Return the positions that a model starts with, one row for each cell of a grid.

    Parameters
    ----------
    code : {"learned", "sin_cos", "sin_cos2d"}
        ``learned`` draws from a normal of deviation 0.02 cut at two deviations. ``sin_cos`` is the code of the grid,
        one-dimensional if a side is 1. ``sin_cos2d`` lays rows · columns cells out as a square first.
    rows, columns : int
        The sides of the grid: (t, m) for latents, (n, 1) for tokens.
    dim : int
        The width d of the code.
    rng : numpy.random.Generator, optional
        The source of randomness, for ``learned``.

    Returns
    -------
    ndarray, shape (rows · columns, d)
        Float64.

    Raises
    ------
    ValueError
        If the code is unknown, ``learned`` has no generator, or ``sin_cos2d`` no square number of cells.
    """
    require_one_of("code", code, POSITION_CODES)
    cells = rows * columns
    if code == "learned":
        require(rng is not None, "rng=None: learned positions are drawn from a generator")
        return _truncated_normal(rng, (cells, dim))
    if code == "sin_cos2d":
        rows = columns = isqrt(cells)
        require(rows * columns == cells, f"tokens per group {cells} must be a square number for code='sin_cos2d'")
    if 1 in (rows, columns):
        return sincos_1d(cells, dim)
    return sincos_2d(rows, columns, dim).reshape(cells, dim)


def _truncated_normal(rng: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Draw from a normal of deviation 0.02, again wherever a number lies beyond two deviations."""
    x = rng.standard_normal(shape)
    while (far := np.abs(x) > 2).any():
        x[far] = rng.standard_normal(int(far.sum()))
    return np.asarray(0.02 * x)
