"""Rounding to nearest, and GPTQ: round column by column, and let the columns to come make up for the error.

Shapes: H heads (1 where rows do not fall into heads), r rows of each, d columns. Hessians of the input (d, d), or one
a head (H, d, d).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.efficiency.turboboa_grid import (
    QuantGrid,
    check_bits,
    check_grid,
    dequantize,
    make_grid,
    minmax_grid,
    nearest_codes,
    quantize_codes,
)
from refattn.efficiency.turboboa_hessians import reconstruction_loss
from refattn.primitives.arguments import as_float, require, require_finite, require_shape

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "QuantResult",
    "check_hessian",
    "column_loop",
    "gptq",
    "inverse_cholesky_upper",
    "prepare",
    "propagation",
    "reordered",
    "rtn",
]

DAMPING = 0.01
_REPEATS = 10
_LAZY = 32  # columns whose updates are gathered before they reach the rest


class QuantResult(NamedTuple):
    """Weights on their grid (H, r, d), their codes (int64, same shape), the grid, and the reconstruction loss."""

    weight: np.ndarray
    codes: np.ndarray
    grid: QuantGrid
    loss: float


def rtn(w: Any, bits: int, *, grid: QuantGrid | None = None) -> QuantResult:
    """Round every weight (d_out, d_in) to the nearest point of the grid; without one, of the min-max grid.

    Returns
    -------
    QuantResult
        With one head; its loss is the squared error.

    Raises
    ------
    ValueError
        For weights that are no finite matrix, or bits out of range.
    """
    rows = _matrix(w)[None]
    chosen = minmax_grid(rows, bits) if grid is None else check_grid(grid, rows.shape)
    codes = quantize_codes(rows, chosen, bits)
    weight = dequantize(codes, chosen)
    return QuantResult(weight, codes, chosen, np.sum((weight - rows) ** 2)[()])


def prepare(
    w: Any, h_in: Any, r: Any = None, *, dead_value: float, damping: float = DAMPING
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Drop inputs that are always zero, and add a little to the diagonal of the Hessian.

    Parameters
    ----------
    w : array_like, shape (..., r, d)
        Weights; columns of dead inputs become 0.
    h_in : array_like, shape (d, d) or (H, d, d)
        Hessian of the input.
    r : array_like, like ``h_in``, optional
        Residual correlation R; columns of dead inputs become 0.
    dead_value : float
        Takes the place of a diagonal entry of 0.
    damping : float
        Share of the mean diagonal entry that is added to each.

    Returns
    -------
    w, h_in, r : ndarray
        None where ``r`` is None.
    """
    w, h_in = as_float("w", w), as_float("h_in", h_in)
    diagonal = np.diagonal(h_in, axis1=-2, axis2=-1)  # (d,) or (H, d)
    dead = diagonal == 0
    w = np.where(dead[..., None, :], 0, w)
    # eq: tb-damping
    h_in = damped(_with_diagonal(h_in, np.where(dead, dead_value, diagonal)), damping)
    return w, h_in, None if r is None else np.where(dead[..., None, :], 0, as_float("residual", r))


def damped(h: np.ndarray, share: float = DAMPING) -> np.ndarray:
    """Return H + share · mean(diag H) · I, for one matrix or a stack."""
    diagonal = np.diagonal(h, axis1=-2, axis2=-1)
    return _with_diagonal(h, diagonal + share * np.mean(diagonal, axis=-1, keepdims=True))


def _with_diagonal(h: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    return np.asanyarray(np.where(np.eye(h.shape[-1], dtype=bool), diagonal[..., None], h))


def inverse_cholesky_upper(h: Any) -> np.ndarray:
    """Return the upper triangular U with H⁻¹ = Uᵀ U: (..., d, d).

    Raises
    ------
    ValueError
        Where H is not positive definite, even after it was damped ten times.
    """
    h = as_float("h", h)
    for _ in range(_REPEATS + 1):
        try:
            # eq: tb-inverse-cholesky
            return np.asanyarray(np.swapaxes(np.linalg.cholesky(np.linalg.inv(h)), -1, -2))
        except np.linalg.LinAlgError:
            h = damped(h)
    raise ValueError("Hessian is not positive definite after damping")


def propagation(residual: np.ndarray | None, upper: np.ndarray) -> np.ndarray | None:
    """Return P = triu(R Uᵀ, 1) U: how the error of earlier layers moves a column's successors."""
    # eq: tb-propagation
    return None if residual is None else np.triu(residual @ np.swapaxes(upper, -1, -2), 1) @ upper


def column_loop(
    w: np.ndarray,
    upper: np.ndarray,
    grid: QuantGrid,
    bits: int,
    propagated: np.ndarray | None = None,
    *,
    lazy: int = _LAZY,
    grid_at: Callable[[np.ndarray], QuantGrid] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Round the columns of all rows in turn; what a column loses, the columns after it are moved to make up for.

    Parameters
    ----------
    w : ndarray, shape (H, r, d)
        Weights.
    upper : ndarray, shape (d, d) or (H, d, d)
        U of `inverse_cholesky_upper`.
    grid : QuantGrid
        Of the rows.
    bits : int
        b.
    propagated : ndarray, like ``upper``, optional
        P of `propagation`.
    lazy : int
        Updates within so many columns are made at once, those of what comes after when these are done: the same sums in
        another order.
    grid_at : callable, optional
        Finds the grid (H, r, 1, 1) of a group as its turn comes, from its weights with the updates of the finished
        blocks of ``lazy`` columns; ``grid`` then only says how many groups there are, and is written over.

    Returns
    -------
    weight, codes : ndarray, shape (H, r, d)
    """
    moved, d = w.copy(), w.shape[-1]
    weight, codes = np.empty_like(w), np.empty(w.shape, np.int64)
    width = d // grid.scale.shape[-2]
    for begin in range(0, d, lazy):
        end = min(begin + lazy, d)
        block = moved[..., begin:end].copy()
        errors, seen = np.empty_like(block), np.empty_like(block)
        for c in range(begin, end):
            column = block[..., c - begin].copy()  # (H, r)
            if grid_at is not None and c % width == 0:
                for whole, part in zip(grid, grid_at(moved[..., c : c + width]), strict=True):
                    whole[..., c // width, :] = part[..., 0, :]
            of_column = QuantGrid(grid.scale[..., c // width, 0], grid.zero[..., c // width, 0])
            codes[..., c], weight[..., c] = _rounded(column, of_column, bits)
            # eq: tb-gptq
            error = (column - weight[..., c]) / upper[..., c, c, None]
            block[..., c - begin :] -= error[..., None] * upper[..., c, None, c:end]
            if propagated is not None:
                block[..., c - begin :] += column[..., None] * propagated[..., c, None, c:end]
            errors[..., c - begin], seen[..., c - begin] = error, column
        moved[..., end:] -= errors @ upper[..., begin:end, end:]
        if propagated is not None:
            moved[..., end:] += seen @ propagated[..., begin:end, end:]
    return weight, codes


def _rounded(column: np.ndarray, grid: QuantGrid, bits: int) -> tuple[np.ndarray, np.ndarray]:
    codes = nearest_codes(column, grid, 2**bits - 1)
    return codes, grid.scale * (codes - grid.zero)


def gptq(
    w: Any,
    h_in: Any,
    bits: int,
    *,
    residual: Any = None,
    grid: str | QuantGrid = "hessian",
    symmetric: bool = False,
    group_size: int | None = None,
    act_order: bool = False,
    block_columns: int | None = None,
    dead_value: float = 1.0,
) -> QuantResult:
    """Quantise a matrix column by column, each error made good by the columns that follow.

    Parameters
    ----------
    w : array_like, shape (d_out, d_in)
        Weights.
    h_in : array_like, shape (d_in, d_in) or (H, d_in, d_in)
        Hessian of the input, undamped; one a head where heads read different inputs.
    bits : int
        1 to 16.
    residual : array_like, like ``h_in``, optional
        R = α · `residual_correlation`: errors of earlier layers are corrected too (GPTAQ).
    grid : {"hessian", "mmse", "minmax"} or QuantGrid
        Found for the original weights, or given as (H, r, g, 1).
    symmetric, group_size
        Of the grid.
    act_order : bool
        Whether columns with large diagonal entries come first.
    block_columns : int, optional
        If given, the grid of each group is found as its turn comes, from weights with the updates of the blocks of so
        many columns that are finished: the way of the official code, which takes 128.
    dead_value : float
        See `prepare`.

    Returns
    -------
    QuantResult

    Raises
    ------
    ValueError
        For arguments that do not fit each other, are not finite, or a Hessian that is not symmetric or cannot be made
        positive definite.

    Notes
    -----
    The grid is that of the weights as they are given, those of dead inputs included, as in the official code.

    References
    ----------
    GPTQ 2210.17323, algorithm 1; the correction is that of GPTAQ, 2504.02692.
    """
    check_bits(bits)
    w, h_in = _matrix(w), check_hessian("h_in", h_in, np.shape(w)[1])
    heads = len(h_in) if h_in.ndim == 3 else 1
    require(len(w) % heads == 0, f"w has {len(w)} rows, not a multiple of the {heads} heads of h_in")
    residual = check_residual(residual, h_in)
    given = w.reshape(heads, -1, w.shape[1])
    rows, hessian, r = prepare(given, h_in, residual, dead_value=dead_value)
    order = descending(hessian, reorder=act_order)
    rows, hessian, r = reordered(rows, hessian, r, order)
    later: dict[str, Any] = {}
    if isinstance(grid, str):
        given = np.take_along_axis(given, order[:, None], axis=-1)
        kind, grid = grid, make_grid(grid, given, bits, hessian=hessian, symmetric=symmetric, group_size=group_size)
        if block_columns is not None:
            require(kind != "hessian", "block_columns: a grid found on the way is 'minmax' or 'mmse', not 'hessian'")
            common: dict[str, Any] = {"hessian": hessian, "symmetric": symmetric, "group_size": None}
            later = {"lazy": block_columns, "grid_at": lambda part: make_grid(kind, part, bits, **common)}
    check_grid(grid, rows.shape)
    upper = inverse_cholesky_upper(hessian)
    weight, codes = column_loop(rows, upper, grid, bits, propagation(r, upper), **later)
    loss = reconstruction_loss(rows, weight, hessian, None, r)
    back = np.argsort(order, axis=-1)[..., None, :]
    return QuantResult(np.take_along_axis(weight, back, -1), np.take_along_axis(codes, back, -1), grid, loss)


def descending(hessian: np.ndarray, *, reorder: bool) -> np.ndarray:
    """Return the order (1 or H, d) of falling diagonal entries, earlier ones first among equals; or the given order."""
    diagonal = np.atleast_2d(np.diagonal(hessian, axis1=-2, axis2=-1))
    if not reorder:
        return np.broadcast_to(np.arange(diagonal.shape[-1]), diagonal.shape)
    return np.argsort(-np.asarray(diagonal), axis=-1, kind="stable")


def reordered(
    rows: np.ndarray, hessian: np.ndarray, residual: np.ndarray | None, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return weights, Hessian and R with their columns in an order (1 or H, d)."""
    rows = np.take_along_axis(rows, order[:, None], axis=-1)
    return rows, both_axes(hessian, order), None if residual is None else both_axes(residual, order)


def both_axes(matrix: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return a matrix, or one a head, with rows and columns in an order (1 or H, d)."""
    if matrix.ndim == 2:
        return np.asanyarray(matrix[order[0]][:, order[0]])
    return np.asanyarray(np.take_along_axis(np.take_along_axis(matrix, order[:, None], -1), order[..., None], -2))


def _matrix(w: Any) -> np.ndarray:
    w = as_float("w", w)
    require(w.ndim == 2 and w.size > 0, f"w has shape {w.shape}, expected (d_out, d_in) without an empty axis")
    require_finite("w", w)
    return np.asanyarray(w)


def check_hessian(name: str, h: Any, width: int) -> np.ndarray:
    """Return a Hessian (width, width) or (H, width, width) if it is finite and symmetric."""
    h = as_float(name, h)
    expected = f"({width}, {width}) or (heads, {width}, {width})"
    require(h.ndim in (2, 3) and h.shape[-2:] == (width, width), f"{name} has shape {h.shape}, expected {expected}")
    require_finite(name, h)
    skew = np.max(np.abs(h - np.swapaxes(h, -1, -2)), initial=0.0)
    require(skew <= 1e-8 * np.max(np.abs(h), initial=0.0), f"{name} is not symmetric: off by {skew:.3g}")
    return np.asanyarray(h)


def check_residual(residual: Any, h_in: np.ndarray) -> np.ndarray | None:
    """Return R if it is finite and shaped as the Hessian of the input."""
    if residual is None:
        return None
    residual = as_float("residual", residual)
    require_shape("residual", residual, h_in.shape)
    require_finite("residual", residual)
    checked: np.ndarray = residual
    return checked
