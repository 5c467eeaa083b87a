"""Quantise a whole transformer, block after block: RTN, GPTQ, BoA and TurboBoA over real checkpoints.

Equation sources: TurboBoA 2602.04929, BoA 2406.13474, GPTQ 2210.17323.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.efficiency.quantise_hessians import block_moments, run_block
from refattn.efficiency.quantise_matrices import (
    Recipe,
    as_rows,
    check_recipe,
    from_rows,
    matrix_loss,
    quantised_matrix,
)
from refattn.primitives.arguments import require
from refattn.transformer.forward import checked_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.efficiency.quantise_hessians import Moments
    from refattn.efficiency.turboboa import QuantResult
    from refattn.transformer.weights import BlockWeights, Transformer

__all__ = ["MatrixLoss", "Quantised", "quantise"]


class MatrixLoss(NamedTuple):
    """What quantising one matrix costs on the calibration data.

    Attributes
    ----------
    layer : int
        Of the block.
    matrix : str
        Its name in `BlockWeights`.
    rows, columns : int
        d_out and d_in.
    loss : float
        Σ_h tr(H_out ΔW H_in ΔWᵀ), undamped, without residual; the same moments for every method, so that methods
        compare. Only queries and keys have an H_out.
    error : float
        The loss over that of ΔW = W: 0 is perfect, 1 is a matrix of zeros.
    """

    layer: int
    matrix: str
    rows: int
    columns: int
    loss: float
    error: float


class Quantised(NamedTuple):
    """A quantised model and what it cost.

    Attributes
    ----------
    model : Transformer
        With dequantised weights.
    losses : tuple of MatrixLoss
        In the order in which matrices were quantised.
    drift : tuple of float, length L
        After each block, the squared distance of the residual stream from the original one, over the latter's square.
    results : dict of str to QuantResult
        Integers and grids by ``blocks.{i}.{matrix}``; rows are outputs, head after head.
    """

    model: Transformer
    losses: tuple[MatrixLoss, ...]
    drift: tuple[float, ...]
    results: dict[str, QuantResult]


def quantise(
    model: Transformer,
    ids: Any,
    *,
    bits: int,
    method: str = "turboboa",
    grid: str = "hessian",
    block_rows: int = 16,
    alpha: float = 0.25,
    adaptive_grid: bool = True,
    refine_sweeps: int = 1,
    act_order_rows: bool = False,
    act_order_cols: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Quantised:
    """Round the matrices of every block to a few bits such that attention and MLPs change least on real text.

    Parameters
    ----------
    model : Transformer
        Of any family.
    ids : array_like of int, shape (B, T)
        Calibration text: B ≥ 1 sequences of T ≥ 1 tokens, no padding.
    bits : int
        1 to 16.
    method : str
        ``rtn`` rounds to nearest; ``gptq`` lets later columns make up for the error of earlier ones; ``boa`` lets later
        rows of a head do so, too; ``turboboa`` does that for many rows at a time, corrects for the error of what was
        quantised before, and refines scales.
    grid : str
        ``minmax``, ``mmse`` or ``hessian``: how the scale of a row is found.
    block_rows, alpha, adaptive_grid, refine_sweeps
        Of ``turboboa``, the others ignore them: rows at a time N; the weight α ≥ 0 of the residual (0: no correction);
        whether a grid is found when its rows are reached; how often scales are refined.
    act_order_rows, act_order_cols : bool
        Whether rows (``boa``, ``turboboa``) and columns (all but ``rtn``) with large Hessians come first.
    progress : callable, optional
        Called with the name of each matrix when it is done.

    Returns
    -------
    Quantised

    Raises
    ------
    ValueError
        For ids that are no integers, outside the vocabulary, or none; an option out of range; and a Hessian that is not
        positive definite even when damped: then the message names the matrix.

    Notes
    -----
    What is quantised: W_Q, W_K, W_V, W_O and the matrices of the MLP. Embeddings, unembedding, norms and biases stay.

    All moments of a block are measured before any of its matrices is quantised, on the stream that the quantised blocks
    before it produce; the original stream runs along, for the residual R. Then the data goes through the quantised
    block. RTN and GPTQ see the common input of queries, keys and values; BoA and TurboBoA the attention-weighted one
    for values, as the released code does by its option ``block_v``.

    The moment of an input that is always 0 is set to 1/T and its weights to 0; damping adds a hundredth of the mean.

    H_out counts every query with every key: the factor 1/√e, windows and causality are left out, as in the papers.
    Rotation and the norms of queries and keys are pulled back, see `refattn.efficiency.quantise_pull_back`.

    References
    ----------
    2602.04929; 2406.13474; 2210.17323. The order of steps is that of the released code of TurboBoA (``quantize.py``).
    """
    recipe = Recipe(bits, method, grid, block_rows, alpha, adaptive_grid, refine_sweeps, act_order_rows, act_order_cols)
    check_recipe(recipe)
    config, weights = model
    ids = checked_ids("ids", ids, config)
    require(ids.size, f"ids has shape {ids.shape}, expected at least one token of calibration text")
    x = x_full = _embedded(model, ids)
    done = Quantised(model, (), (), {})
    blocks: list[BlockWeights] = []
    for layer, block in enumerate(weights.blocks):
        moments, x_full_after = block_moments(x, x_full, block, config, layer)
        results = _quantised_block(block, layer, moments, recipe, 1.0 / ids.shape[1], progress)
        losses, quantised = _replaced(block, layer, moments, results)
        blocks.append(quantised)
        x, x_full = run_block(x, quantised, config, layer), x_full_after
        named = {f"blocks.{layer}.{name}": result for name, result in results.items()}
        whole = float(np.sum(np.square(x_full)))
        drift = float(np.sum(np.square(x - x_full))) / whole if whole else 0.0
        done = done._replace(losses=done.losses + losses, drift=(*done.drift, drift), results=done.results | named)
    return done._replace(model=model._replace(weights=weights._replace(blocks=tuple(blocks))))


def _embedded(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """Return the residual stream before the first block (B, T, d)."""
    config, weights = model
    x = np.asarray(weights.W_E)[ids]
    if config.positions == "learned":
        longest = ids.shape[1]
        require(longest <= config.n_ctx, f"ids has sequences of {longest} tokens, beyond {config.n_ctx} positions")
        x = x + np.asarray(weights.W_pos)[:longest]
    return np.asarray(x)


def _quantised_block(
    block: BlockWeights,
    layer: int,
    moments: dict[str, Moments],
    recipe: Recipe,
    dead_value: float,
    progress: Callable[[str], None] | None,
) -> dict[str, QuantResult]:
    """Quantise every matrix of a block from moments that were measured before."""
    attentive = recipe.method in ("boa", "turboboa")
    results = {}
    for name, own in moments.items():
        moment = own if attentive or name != "W_V" else moments["W_Q"]
        try:
            results[name] = quantised_matrix(as_rows(name, getattr(block, name)), moment, recipe, dead_value)
        except ValueError as error:
            raise ValueError(f"blocks.{layer}.{name}: {error}") from None
        if progress is not None:
            progress(f"blocks.{layer}.{name}")
    return results


def _replaced(
    block: BlockWeights, layer: int, moments: dict[str, Moments], results: dict[str, QuantResult]
) -> tuple[tuple[MatrixLoss, ...], BlockWeights]:
    """Return what quantising cost, and the block with dequantised matrices."""
    losses, weights = [], {}
    for name, result in results.items():
        original = getattr(block, name)
        before = as_rows(name, original)
        after = np.reshape(result.weight, before.shape)
        loss, error = matrix_loss(before, after, moments[name])
        losses.append(MatrixLoss(layer, name, len(before), before.shape[1], loss, error))
        weights[name] = from_rows(name, after, original)
    return tuple(losses), block._replace(**weights)
