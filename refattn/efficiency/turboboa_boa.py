"""BoA: round row after row by GPTQ, and let the rows of a head that are still to come make up for the error.

Shapes: H heads, r rows of each, d columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.efficiency.turboboa_gptq import (
    QuantResult,
    both_axes,
    check_hessian,
    check_residual,
    column_loop,
    damped,
    descending,
    inverse_cholesky_upper,
    prepare,
    reordered,
)
from refattn.efficiency.turboboa_grid import QuantGrid, check_bits, check_grid, make_grid
from refattn.efficiency.turboboa_hessians import reconstruction_loss
from refattn.primitives.arguments import as_float, require, require_finite, require_shape

__all__ = ["HeadProblem", "boa", "head_problem", "head_result"]


class HeadProblem(NamedTuple):
    """What is to be quantised, damped, dead inputs dropped, in the order in which it is done.

    Weights (H, r, d); Hessians of input (d, d) or (H, d, d) and output (H, r, r) or None; R or None; the orders of
    columns (1 or H, d) and rows (1 or H, r).
    """

    w: np.ndarray
    h_in: np.ndarray
    h_out: np.ndarray | None
    residual: np.ndarray | None
    columns: np.ndarray
    rows: np.ndarray


def boa(
    w: Any,
    h_in: Any,
    h_out: Any,
    bits: int,
    *,
    n_heads: int,
    grid: str | QuantGrid = "hessian",
    symmetric: bool = False,
    group_size: int | None = None,
    act_order_rows: bool = False,
    act_order_cols: bool = False,
    dead_value: float = 1.0,
) -> QuantResult:
    """Quantise a projection of attention so that what attention makes of it changes least, one row at a time.

    Parameters
    ----------
    w : array_like, shape (H·r, d)
        Weights, one head below the other.
    h_in : array_like, shape (d, d) or (H, d, d)
        Hessian of the input, undamped.
    h_out : array_like, shape (H, r, r), or None
        Hessian of the output, undamped. Without it rows do not know of each other, and this is GPTQ.
    bits : int
        1 to 16.
    n_heads : int
        H.
    grid : {"hessian", "mmse", "minmax"} or QuantGrid
        Found for the original weights, or given as (H, r, g, 1) in the order of the weights.
    symmetric, group_size
        Of the grid.
    act_order_rows, act_order_cols : bool
        Whether rows, and columns, with large diagonal entries come first.
    dead_value : float
        See `prepare`.

    Returns
    -------
    QuantResult

    Raises
    ------
    ValueError
        As `gptq`, and for heads that do not divide the rows or an ``h_out`` of another shape.

    References
    ----------
    BoA 2406.13474.
    """
    check_bits(bits)
    problem = head_problem(w, h_in, h_out, None, n_heads, act_order_rows, act_order_cols, dead_value)
    grid = grid_of(problem, grid, bits, symmetric, group_size)
    upper = inverse_cholesky_upper(problem.h_in)
    upper_out = None if problem.h_out is None else inverse_cholesky_upper(problem.h_out)
    left = problem.w.copy()
    weight, codes = np.empty_like(left), np.empty(left.shape, np.int64)
    for k in range(left.shape[1]):
        row = left[:, k : k + 1]
        of_row = QuantGrid(*(part[:, k : k + 1] for part in grid))
        weight[:, k : k + 1], codes[:, k : k + 1] = column_loop(row, upper, of_row, bits)
        if upper_out is not None:
            # eq: tb-boa
            share = upper_out[:, k, k + 1 :] / upper_out[:, k, k, None]  # (H, rows left)
            left[:, k + 1 :] -= share[..., None] * (row - weight[:, k : k + 1])
    return head_result(problem, weight, codes, grid)


def head_problem(
    w: Any,
    h_in: Any,
    h_out: Any,
    residual: Any,
    n_heads: int,
    act_order_rows: bool,
    act_order_cols: bool,
    dead_value: float,
) -> HeadProblem:
    """Check the arguments, damp the Hessians, drop dead inputs, and put columns and rows in order."""
    w = as_float("w", w)
    require(w.ndim == 2 and w.size > 0, f"w has shape {w.shape}, expected (d_out, d_in) without an empty axis")
    require_finite("w", w)
    fits = n_heads >= 1 and len(w) % n_heads == 0
    require(fits, f"n_heads={n_heads!r} must divide the {len(w)} rows of w")
    h_in = check_hessian("h_in", h_in, w.shape[1])
    require(h_in.ndim == 2 or len(h_in) == n_heads, f"h_in has shape {h_in.shape}, expected {n_heads} heads")
    r = check_residual(residual, h_in)
    rows, hessian, r = prepare(w.reshape(n_heads, -1, w.shape[1]), h_in, r, dead_value=dead_value)
    columns = descending(hessian, reorder=act_order_cols)
    rows, hessian, r = reordered(rows, hessian, r, columns)
    if h_out is None:
        return HeadProblem(rows, hessian, None, r, columns, np.arange(rows.shape[1])[None])
    h_out = check_hessian("h_out", h_out, rows.shape[1])
    require_shape("h_out", h_out, (n_heads, rows.shape[1], rows.shape[1]))
    h_out = damped(h_out)
    order = descending(h_out, reorder=act_order_rows)
    rows = np.take_along_axis(rows, order[..., None], axis=1)
    return HeadProblem(rows, hessian, both_axes(h_out, order), r, columns, order)


def grid_of(
    problem: HeadProblem, grid: str | QuantGrid, bits: int, symmetric: bool, group_size: int | None
) -> QuantGrid:
    """Return the grid of the original weights, rows in the order of the problem."""
    if isinstance(grid, str):
        return make_grid(grid, problem.w, bits, hessian=problem.h_in, symmetric=symmetric, group_size=group_size)
    grid = check_grid(grid, problem.w.shape)
    return QuantGrid(*(np.take_along_axis(part, problem.rows[..., None, None], axis=1) for part in grid))


def head_result(problem: HeadProblem, weight: np.ndarray, codes: np.ndarray, grid: QuantGrid) -> QuantResult:
    """Return weights, codes and grid in the order in which they came, with the loss."""
    loss = reconstruction_loss(problem.w, weight, problem.h_in, problem.h_out, problem.residual)
    rows = np.argsort(problem.rows, axis=-1)
    columns = np.argsort(problem.columns, axis=-1)[:, None]

    def back(x: np.ndarray) -> np.ndarray:
        return np.take_along_axis(np.take_along_axis(x, columns, axis=-1), rows[..., None], axis=1)

    scale, zero = (np.take_along_axis(part, rows[..., None, None], axis=1) for part in grid)
    return QuantResult(back(weight), back(codes), QuantGrid(scale, zero), loss)
