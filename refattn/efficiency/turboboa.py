"""TurboBoA: quantise weights so that attention changes least, many rows at a time, and mend the grid afterwards.

BoA takes the rows of a head one after the other, since an error in one can be made good by those that come after.
TurboBoA takes N at once, corrects for what earlier layers have lost, looks for each block's grid when its turn comes,
and last refines every row's step with the codes held fixed.

Shapes: H heads, r rows of each, d columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.efficiency.turboboa_boa import HeadProblem, boa, grid_of, head_problem, head_result
from refattn.efficiency.turboboa_gptq import (
    QuantResult,
    check_hessian,
    check_residual,
    column_loop,
    gptq,
    inverse_cholesky_upper,
    prepare,
    propagation,
    rtn,
)
from refattn.efficiency.turboboa_grid import (
    QuantGrid,
    check_bits,
    dequantize,
    make_grid,
    minmax_grid,
    quantize_codes,
    search_grid,
)
from refattn.efficiency.turboboa_hessians import (
    AttentionHessians,
    attention_hessians,
    input_hessian,
    reconstruction_loss,
    residual_correlation,
)
from refattn.primitives.arguments import as_float, require, require_shape

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "AttentionHessians",
    "QuantGrid",
    "QuantResult",
    "attention_hessians",
    "boa",
    "dequantize",
    "gptq",
    "input_hessian",
    "inverse_cholesky_upper",
    "minmax_grid",
    "prepare",
    "quantize_codes",
    "reconstruction_loss",
    "refine_scales",
    "residual_correlation",
    "rtn",
    "search_grid",
    "turboboa",
]


def turboboa(
    w: Any,
    h_in: Any,
    h_out: Any,
    bits: int,
    *,
    n_heads: int,
    block_rows: int = 16,
    residual: Any = None,
    grid: str | QuantGrid = "hessian",
    adaptive_grid: bool = True,
    refine_sweeps: int = 1,
    symmetric: bool = False,
    group_size: int | None = None,
    act_order_rows: bool = False,
    act_order_cols: bool = False,
    dead_value: float = 1.0,
) -> QuantResult:
    """Quantise a projection of attention so that what attention makes of it changes least, a block of rows at a time.

    Parameters
    ----------
    w : array_like, shape (H·r, d)
        Weights, one head below the other.
    h_in : array_like, shape (d, d) or (H, d, d)
        Hessian of the input, undamped.
    h_out : array_like, shape (H, r, r), or None
        Hessian of the output, undamped; without it rows do not know of each other.
    bits : int
        1 to 16.
    n_heads : int
        H.
    block_rows : int
        N, the rows of a head that are rounded together. With N = 1, a fixed grid and no refinement this is BoA.
    residual : array_like, like ``h_in``, optional
        R = α · `residual_correlation`.
    grid : {"hessian", "mmse", "minmax"} or QuantGrid
        How the grid is found, or the grid itself, (H, r, g, 1), which is then fixed.
    adaptive_grid : bool
        Whether a block's grid is that of its weights when its turn comes, not of the original ones.
    refine_sweeps : int
        Sweeps of `refine_scales` at the end; 0 for groups of columns, which it does not know.
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
        As `boa`, and for ``block_rows`` below 1, negative sweeps, or sweeps with groups of columns.

    Notes
    -----
    The released code always adapts the grid, whatever its flag says.

    References
    ----------
    TurboBoA 2602.04929.
    """
    check_bits(bits)
    counts = isinstance(block_rows, (int, np.integer)) and block_rows >= 1
    require(counts, f"block_rows={block_rows!r} must be an integer of at least 1")
    require(refine_sweeps >= 0, f"refine_sweeps={refine_sweeps!r} must not be negative")
    grouped = group_size is not None and group_size != np.shape(w)[-1]
    require(not (grouped and refine_sweeps), f"refine_sweeps={refine_sweeps} must be 0 with group_size={group_size}")
    problem = head_problem(w, h_in, h_out, residual, n_heads, act_order_rows, act_order_cols, dead_value)

    def adapted(block: np.ndarray, _rows: slice) -> QuantGrid:
        return make_grid(str(grid), block, bits, hessian=problem.h_in, symmetric=symmetric, group_size=group_size)

    def fixed(_block: np.ndarray, rows: slice) -> QuantGrid:
        return QuantGrid(*(part[:, rows] for part in whole))

    adapts = adaptive_grid and isinstance(grid, str)
    whole = () if adapts else grid_of(problem, grid, bits, symmetric, group_size)
    weight, codes, found = _blocks(problem, bits, block_rows, adapted if adapts else fixed)
    if refine_sweeps:
        found = refine_scales(problem.w, codes, found, problem.h_in, problem.h_out, problem.residual, refine_sweeps)
        weight = dequantize(codes, found)
    return head_result(problem, weight, codes, found)


def _blocks(
    problem: HeadProblem, bits: int, block_rows: int, grid_for: Callable[[np.ndarray, slice], QuantGrid]
) -> tuple[np.ndarray, np.ndarray, QuantGrid]:
    """Round block after block of rows, and move the rows to come against the error."""
    upper = inverse_cholesky_upper(problem.h_in)
    upper_out = None if problem.h_out is None else inverse_cholesky_upper(problem.h_out)
    propagated = propagation(problem.residual, upper)
    inverse = np.swapaxes(upper, -1, -2) @ upper  # of H_in
    left = problem.w.copy()
    weights, codes, grids = [], [], []
    for begin in range(0, left.shape[1], block_rows):
        rows, rest = slice(begin, begin + block_rows), slice(begin + block_rows, None)
        block = left[:, rows]
        grids.append(grid_for(block, rows))
        rounded, code = column_loop(block, upper, grids[-1], bits, propagated)
        weights.append(rounded)
        codes.append(code)
        if upper_out is None or left.shape[1] <= rest.start:
            continue
        error = block - rounded
        if problem.residual is not None:
            # eq: tb-row-error
            error = error + block @ problem.residual @ inverse
        # eq: tb-joint-rows
        share = np.linalg.solve(upper_out[:, rows, rows], upper_out[:, rows, rest])  # (H, N, rows left)
        left[:, rest] -= np.swapaxes(share, -1, -2) @ error
    scale, zero = (np.concatenate(parts, axis=1) for parts in zip(*grids, strict=True))
    return np.concatenate(weights, axis=1), np.concatenate(codes, axis=1), QuantGrid(scale, zero)


def refine_scales(
    w: Any, codes: Any, grid: QuantGrid, h_in: Any, h_out: Any = None, residual: Any = None, sweeps: int = 1
) -> QuantGrid:
    """Set every row's step to what is best while all others stay, row after row, codes held fixed.

    Parameters
    ----------
    w : array_like, shape (H, r, d)
        The original weights.
    codes : array_like of int, shape (H, r, d)
        What they were rounded to.
    grid : QuantGrid
        Of (H, r, 1, 1): one step a row.
    h_in, h_out, residual
        As in `reconstruction_loss`, damped.
    sweeps : int
        How often all rows are visited.

    Returns
    -------
    QuantGrid
        New steps, zero points as they were. A row whose codes are all at zero keeps its step.

    Raises
    ------
    ValueError
        For shapes that do not fit, or a grid of groups.

    Notes
    -----
    The loss falls or stays with every step: it is a parabola in each.
    """
    w, codes = as_float("w", w), np.asarray(codes)
    require(sweeps >= 0, f"sweeps={sweeps!r} must not be negative")
    require_shape("codes", codes, w.shape)
    require_shape("grid.scale", grid.scale, (*w.shape[:2], 1, 1))
    h_in = check_hessian("h_in", h_in, w.shape[-1])
    residual = check_residual(residual, h_in)
    h_out = np.eye(w.shape[1])[None] if h_out is None else check_hessian("h_out", h_out, w.shape[1])
    units = codes.astype(w.dtype) - grid.zero[..., 0]  # T: weights in steps (H, r, d)
    weighed = units @ h_in
    size = np.diagonal(h_out, axis1=-2, axis2=-1) * np.sum(weighed * units, axis=-1)  # (H, r)
    drift = np.zeros(w.shape[:2]) if residual is None else np.sum((h_out @ w @ residual) * units, axis=-1)
    scale = grid.scale[..., 0].copy()  # (H, r, 1)
    error = w - scale * units
    for _ in range(sweeps):
        for j in range(w.shape[1]):
            # eq: tb-refine
            slope = np.sum(weighed[:, j] * (h_out[:, j, None] @ error)[:, 0], axis=-1)
            slope = slope + drift[:, j]
            fixed = size[:, j] == 0
            scale[:, j, 0] += np.where(fixed, 0.0, slope / np.where(fixed, 1.0, size[:, j]))
            error[:, j] = w[:, j] - scale[:, j] * units[:, j]
    return QuantGrid(scale[..., None], grid.zero)
