"""The grid on which a weight may lie: how wide a step is and where zero falls, for every row or group of columns.

Shapes: r rows (out-channels), d columns (inputs), g groups of d/g columns; any leading axes, such as heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_one_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "GRIDS",
    "QuantGrid",
    "check_bits",
    "check_grid",
    "dequantize",
    "make_grid",
    "minmax_grid",
    "nearest_codes",
    "quantize_codes",
    "search_grid",
]

GRIDS = ("minmax", "mmse", "hessian")
_WORST = 1e10  # a score has to stay below


class QuantGrid(NamedTuple):
    """Step s and zero point z of every group: (..., r, g, 1) each. A weight is s (code − z)."""

    scale: np.ndarray
    zero: np.ndarray


def quantize_codes(x: Any, grid: QuantGrid, bits: int) -> np.ndarray:
    """Return the code of the grid point nearest to each weight: clip(rint(x/s) + z, 0, 2^b − 1).

    Parameters
    ----------
    x : array_like, shape (..., r, d)
        Weights.
    grid : QuantGrid
        Of (..., r, g, 1).
    bits : int
        b, 1 to 16.

    Returns
    -------
    ndarray of int64, shape (..., r, d)
        Halves round to even.

    Raises
    ------
    ValueError
        For bits out of range, or groups that do not divide the columns.
    """
    x, most = as_float("x", x), check_bits(bits)
    require(grid.scale.shape[-2] and x.shape[-1] % grid.scale.shape[-2] == 0, _no_groups(x.shape[-1], grid))
    # eq: tb-code
    codes = nearest_codes(_grouped(x, grid.scale.shape[-2]), grid, most)
    return np.asarray(codes.reshape(x.shape)).astype(np.int64)


def nearest_codes(x: np.ndarray, grid: QuantGrid, most: int) -> np.ndarray:
    """Return clip(rint(x/s) + z, 0, most), whole numbers as floats, for a grid that broadcasts with the weights."""
    codes = np.clip(np.rint(x / grid.scale) + grid.zero, 0, most)
    # rint once more: where sums of whole numbers err too (the kit's erring arithmetic), a code is still a whole number
    return np.asanyarray(np.rint(codes))


def dequantize(codes: Any, grid: QuantGrid) -> np.ndarray:
    """Return the weights that codes (..., r, d) stand for: s (code − z), in the dtype of the grid."""
    codes = np.asarray(codes)
    require(grid.scale.shape[-2] and codes.shape[-1] % grid.scale.shape[-2] == 0, _no_groups(codes.shape[-1], grid))
    # eq: tb-value
    steps = _grouped(codes.astype(grid.scale.dtype), grid.scale.shape[-2]) - grid.zero
    return np.asanyarray((grid.scale * steps).reshape(codes.shape))


def _no_groups(columns: int, grid: QuantGrid) -> str:
    return f"grid has {grid.scale.shape[-2]} groups, which do not divide {columns} columns"


def check_bits(bits: Any) -> int:
    """Return the largest code, 2^bits − 1; refuse bits that are no integer in 1..16."""
    whole = isinstance(bits, (int, np.integer)) and not isinstance(bits, bool)
    require(whole and 1 <= bits <= 16, f"bits={bits!r} must be an integer in 1..16")
    return int(2 ** int(bits) - 1)


def _grouped(x: np.ndarray, groups: int) -> np.ndarray:
    return np.asanyarray(x.reshape(*x.shape[:-1], groups, -1))  # (..., r, g, d/g)


def minmax_grid(w: Any, bits: int, *, symmetric: bool = False, group_size: int | None = None) -> QuantGrid:
    """Spread the codes evenly from the smallest to the largest weight of each group, zero always among them.

    Parameters
    ----------
    w : array_like, shape (..., r, d)
        Weights.
    bits : int
        b, 1 to 16.
    symmetric : bool
        Reach equally far to both sides, with zero at (2^b)/2.
    group_size : int, optional
        Columns that share a step; all if not given.

    Returns
    -------
    QuantGrid

    Raises
    ------
    ValueError
        For bits out of range, weights that are not finite, or a group size that does not divide the columns.
    """
    w, most = _checked(w, group_size), check_bits(bits)
    low, high = _range(_in_groups(w, group_size), symmetric=symmetric)
    # eq: tb-minmax
    scale = (high - low) / most
    zero = np.full_like(scale, (most + 1) / 2) if symmetric else np.rint(-low / scale)
    return QuantGrid(scale, zero)


def search_grid(
    w: Any,
    bits: int,
    *,
    hessian: Any = None,
    symmetric: bool = False,
    n_shrink: int = 100,
    norm: float = 2.4,
    group_size: int | None = None,
) -> QuantGrid:
    """Shrink the range of each group step by step and keep what costs least: a few large weights may not be worth it.

    Parameters
    ----------
    w : array_like, shape (..., r, d)
        Weights.
    bits : int
        b, 1 to 16.
    hessian : array_like, shape (d, d) or (..., d, d), optional
        Judges an error e as eᵀ H e; without it Σ|e|^norm does.
    symmetric : bool
        As in `minmax_grid`.
    n_shrink : int
        Ranges tried: 1, 1 − 1/n, …, 1/n of the whole, each with the zero point rounded down and up.
    norm : float
        Exponent without a Hessian.
    group_size : int, optional
        As in `minmax_grid`.

    Returns
    -------
    QuantGrid
        The first of the cheapest.

    Raises
    ------
    ValueError
        As `minmax_grid`, and for ``n_shrink`` below 1 or a Hessian of another shape.

    Notes
    -----
    The rounded zero point of `minmax_grid` is not among those tried, as in the official code.
    """
    w, most = _checked(w, group_size), check_bits(bits)
    require(n_shrink >= 1, f"n_shrink={n_shrink!r} must be at least 1")
    grouped = _in_groups(w, group_size)
    score = _power_score(norm) if hessian is None else _hessian_score(_blocks(hessian, w.shape, grouped.shape[-1]))
    low, high = _range(grouped, symmetric=symmetric)
    best_score = np.full(low.shape, _WORST)
    best = minmax_grid(w, bits, symmetric=symmetric, group_size=group_size)
    scale, zero = best.scale.copy(), best.zero.copy()
    for step in range(n_shrink):
        share = 1 - step / n_shrink
        # eq: tb-search
        s = (share * high - share * low) / most
        for to_integer in (np.floor, np.ceil):
            z = np.full_like(s, (most + 1) / 2) if symmetric else to_integer(-(share * low) / s)
            error = s * (np.clip(np.rint(grouped / s) + z, 0, most) - z) - grouped
            cost = score(error)
            better = cost < best_score
            best_score = np.where(better, cost, best_score)
            scale, zero = np.where(better, s, scale), np.where(better, z, zero)
    return QuantGrid(scale, zero)


def check_grid(grid: QuantGrid, shape: tuple[int, ...]) -> QuantGrid:
    """Return a grid if it is one of weights (H, r, d): both its parts (H, r, g, 1), with g dividing d."""
    for name, part in grid._asdict().items():
        groups = np.shape(part)[-2] if np.ndim(part) == 4 else 0
        fits = np.shape(part) == (*shape[:2], groups, 1) and groups and shape[-1] % groups == 0
        expected = f"{(*shape[:2], 'g', 1)} with g dividing {shape[-1]}"
        require(fits, f"grid.{name} has shape {np.shape(part)}, expected {expected}")
    return grid


def make_grid(
    kind: str, w: np.ndarray, bits: int, *, hessian: np.ndarray, symmetric: bool, group_size: int | None
) -> QuantGrid:
    """Return the grid of a name: ``minmax``, ``mmse`` or ``hessian``."""
    require_one_of("grid", kind, GRIDS)
    if kind == "minmax":
        return minmax_grid(w, bits, symmetric=symmetric, group_size=group_size)
    judge = hessian if kind == "hessian" else None
    return search_grid(w, bits, hessian=judge, symmetric=symmetric, group_size=group_size)


def _checked(w: Any, group_size: int | None) -> np.ndarray:
    w = as_float("w", w)
    require(w.ndim >= 2, f"w has shape {w.shape}, expected (..., rows, columns)")
    require_finite("w", w)
    if group_size is not None:
        fits = group_size >= 1 and w.shape[-1] % group_size == 0
        require(fits, f"group_size={group_size!r} must divide the {w.shape[-1]} columns")
    return np.asanyarray(w)


def _in_groups(w: np.ndarray, group_size: int | None) -> np.ndarray:
    return _grouped(w, 1 if group_size is None else w.shape[-1] // group_size)


def _range(grouped: np.ndarray, *, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest value (..., r, g, 1) that a group must reach: zero is between them."""
    # eq: tb-range
    low = np.minimum(np.min(grouped, axis=-1, keepdims=True), 0)
    high = np.maximum(np.max(grouped, axis=-1, keepdims=True), 0)
    if symmetric:
        high = np.maximum(np.abs(low), high)
        low = np.where(low < 0, -high, low)
    nothing = (low == 0) & (high == 0)
    return np.where(nothing, -1, low), np.where(nothing, 1, high)


def _power_score(norm: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda error: np.sum(np.abs(error) ** norm, axis=-1, keepdims=True)


def _hessian_score(blocks: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return eᵀ H e for errors (..., r, g, m), with the diagonal blocks (..., g, m, m) of the Hessian."""

    def score(error: np.ndarray) -> np.ndarray:
        by_group = np.swapaxes(error, -3, -2)  # (..., g, r, m)
        cost = np.sum((by_group @ blocks) * by_group, axis=-1, keepdims=True)
        return np.asanyarray(np.swapaxes(cost, -3, -2))

    return score


def _blocks(hessian: Any, shape: tuple[int, ...], width: int) -> np.ndarray:
    """Return the diagonal blocks (..., g, m, m) of a Hessian (..., d, d)."""
    hessian, d = as_float("hessian", hessian), shape[-1]
    require(hessian.shape[-2:] == (d, d), f"hessian has shape {hessian.shape}, expected (..., {d}, {d})")
    starts = range(0, d, width)
    return np.stack([hessian[..., k : k + width, k : k + width] for k in starts], axis=-3)
