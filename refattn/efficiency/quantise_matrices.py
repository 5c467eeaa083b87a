"""Quantise one matrix of a block by any of the four methods, and say what it cost.

Weights of the transformer are in the row convention y = x @ W; the quantisers take (d_out, d_in), heads one below the
other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.efficiency.turboboa import boa, gptq, prepare, reconstruction_loss, rtn, turboboa
from refattn.efficiency.turboboa_grid import GRIDS, check_bits, make_grid
from refattn.primitives.arguments import require, require_one_of

if TYPE_CHECKING:
    from refattn.efficiency.quantise_hessians import Moments
    from refattn.efficiency.turboboa import QuantResult

__all__ = ["METHODS", "Recipe", "as_rows", "check_recipe", "from_rows", "matrix_loss", "quantised_matrix"]

METHODS = ("rtn", "gptq", "boa", "turboboa")


class Recipe(NamedTuple):
    """How to quantise: the options of `refattn.efficiency.quantise.quantise`."""

    bits: int
    method: str = "turboboa"
    grid: str = "hessian"
    block_rows: int = 16
    alpha: float = 0.25
    adaptive_grid: bool = True
    refine_sweeps: int = 1
    act_order_rows: bool = False
    act_order_cols: bool = False


def check_recipe(recipe: Recipe) -> None:
    """Raise ``ValueError`` for an option out of range."""
    rows, sweeps = recipe.block_rows, recipe.refine_sweeps
    check_bits(recipe.bits)
    require_one_of("method", recipe.method, METHODS)
    require_one_of("grid", recipe.grid, GRIDS)
    require(_is_integer(rows) and rows >= 1, f"block_rows={rows!r} must be an integer of at least 1")
    require(_is_integer(sweeps) and sweeps >= 0, f"refine_sweeps={sweeps!r} must be an integer of at least 0")
    require(np.isfinite(recipe.alpha) and recipe.alpha >= 0, f"alpha={recipe.alpha!r} must be finite and >= 0")


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def as_rows(name: str, weight: np.ndarray) -> np.ndarray:
    """Return a weight of a block as (d_out, d_in): rows are outputs, head after head."""
    if name in ("W_Q", "W_K", "W_V"):  # (heads, d, e)
        return np.swapaxes(weight, 1, 2).reshape(-1, weight.shape[1])
    return weight.reshape(-1, weight.shape[-1]).T  # W_O (H, e, d), MLP (d_in, d_out)


def from_rows(name: str, rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return rows (d_out, d_in) as a weight of the shape and dtype of another."""
    if name in ("W_Q", "W_K", "W_V"):
        heads, d, e = like.shape
        weight = np.swapaxes(rows.reshape(heads, e, d), 1, 2)
    else:
        weight = rows.T.reshape(like.shape)
    return np.ascontiguousarray(weight, dtype=like.dtype)


def quantised_matrix(rows: np.ndarray, moment: Moments, recipe: Recipe, dead_value: float) -> QuantResult:
    """Quantise a matrix (d_out, d_in) by the method of a recipe.

    Parameters
    ----------
    rows : ndarray, shape (d_out, d_in)
        Outputs, head after head where the moments are per head.
    moment : Moments
        Of its input, output and residual.
    recipe : Recipe
        How to quantise.
    dead_value : float
        Stands in for the moment of an input that is always 0.

    Returns
    -------
    QuantResult

    Raises
    ------
    ValueError
        For a moment that is not positive definite even when damped.
    """
    rows, bits, grid = np.asarray(rows, np.float64), recipe.bits, recipe.grid
    if recipe.method == "rtn":
        rows, hessian, _ = prepare(rows, moment.input, dead_value=dead_value)
        found = make_grid(grid, rows[None], bits, hessian=hessian, symmetric=False, group_size=None)
        return rtn(rows, bits, grid=found)
    if recipe.method == "gptq" or (recipe.method == "boa" and moment.output is None):  # then rows are independent
        act_order = recipe.act_order_cols
        return gptq(rows, moment.input, bits, grid=grid, act_order=act_order, dead_value=dead_value)
    heads = next((len(part) for part in (moment.output, moment.input) if part is not None and part.ndim == 3), 1)
    if recipe.method == "boa":
        return boa(
            rows,
            moment.input,
            moment.output,
            bits,
            n_heads=heads,
            grid=grid,
            dead_value=dead_value,
            act_order_rows=recipe.act_order_rows,
            act_order_cols=recipe.act_order_cols,
        )
    corrects = moment.residual is not None and recipe.alpha > 0
    return turboboa(
        rows,
        moment.input,
        moment.output,
        bits,
        n_heads=heads,
        block_rows=len(rows) if moment.output is None else recipe.block_rows,  # rows are independent: all at once
        residual=recipe.alpha * moment.residual if corrects else None,
        grid=grid,
        adaptive_grid=recipe.adaptive_grid,
        refine_sweeps=recipe.refine_sweeps,
        dead_value=dead_value,
        act_order_rows=recipe.act_order_rows,
        act_order_cols=recipe.act_order_cols,
    )


def matrix_loss(before: np.ndarray, after: np.ndarray, moment: Moments) -> tuple[float, float]:
    """Return the reconstruction loss of a matrix (d_out, d_in), and its share of that of a matrix of zeros."""
    before = np.asarray(before, np.float64)
    loss = float(reconstruction_loss(before, after, moment.input, moment.output))
    whole = float(reconstruction_loss(before, np.zeros_like(before), moment.input, moment.output))
    return loss, loss / whole if whole else 0.0
