"""AdamW over the weights of a transformer, which lie side by side in one vector.

Equation source: Adam 1412.6980, algorithm 1; its decoupled weight decay 1711.05101, algorithm 2.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import require
from refattn.transformer.weights import BlockWeights, TransformerWeights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.transformer.weights import Transformer

__all__ = ["AdamWState", "adamw_step", "begin_adamw", "decay_mask", "pack", "unpack"]


class AdamWState(NamedTuple):
    """Steps so far, and the running means (P,) of the gradient and of its square."""

    steps: int
    mean: np.ndarray
    square: np.ndarray


def begin_adamw(parameters: np.ndarray) -> AdamWState:
    """Return the state before the first step."""
    return AdamWState(0, np.zeros_like(parameters), np.zeros_like(parameters))


def adamw_step(
    parameters: np.ndarray,
    gradient: np.ndarray,
    state: AdamWState,
    *,
    learning_rate: float,
    decayed: Any = True,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
) -> tuple[np.ndarray, AdamWState]:
    """Take one step against the gradient, each number scaled by the size its gradient usually has.

    Parameters
    ----------
    parameters, gradient : ndarray, shape (P,)
        From `pack`. Neither is written to.
    state : AdamWState
        From `begin_adamw` or the step before.
    learning_rate : float
        η ≥ 0.
    decayed : bool or ndarray of bool, shape (P,)
        Which numbers shrink, see `decay_mask`.
    betas : (float, float)
        How much of the running mean and of the running square stays, each in [0, 1).
    eps : float
        ε > 0.
    weight_decay : float
        λ ≥ 0.
    clip : float, optional
        The largest norm of the whole gradient; a longer one is scaled to it. None: no limit.

    Returns
    -------
    parameters : ndarray, shape (P,)
    state : AdamWState

    Raises
    ------
    ValueError
        For vectors of different shapes, or a number outside its range.

    Notes
    -----
    The mean m and the square s are divided by 1 − β^t, as they start at 0. Order as in PyTorch: decay first, then the
    step: θ ← θ − ηλθ on the decayed, then θ ← θ − η m̂ / (√ŝ + ε). With ``clip`` the factor is clip/norm where the norm
    is above it (PyTorch adds 1e-6 to the norm).

    References
    ----------
    1412.6980, algorithm 1; 1711.05101, algorithm 2.
    """
    _check(parameters, gradient, state, learning_rate, betas, eps, weight_decay, clip)
    first, second = betas
    steps = state.steps + 1
    norm = sqrt(float(np.dot(gradient, gradient)))
    factor = 1.0 if clip is None or norm <= clip else clip / norm
    # eq: moments
    mean = first * state.mean
    mean += (1 - first) * factor * gradient
    square = gradient * gradient
    square *= (1 - second) * factor**2
    square += second * state.square
    # eq: step
    moved = np.sqrt(square)
    moved *= 1 / sqrt(1 - second**steps)
    moved += eps
    np.divide(mean, moved, out=moved)
    moved *= -learning_rate / (1 - first**steps)
    moved += parameters * (1 - np.multiply(decayed, learning_rate * weight_decay, dtype=parameters.dtype))
    return moved, AdamWState(steps, mean, square)


def _check(
    parameters: np.ndarray,
    gradient: np.ndarray,
    state: AdamWState,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: float | None,
) -> None:
    for name, value in (("gradient", gradient), ("state.mean", state.mean), ("state.square", state.square)):
        require(value.shape == parameters.shape, f"{name} has shape {value.shape}, expected {parameters.shape}")
    require(learning_rate >= 0, f"learning_rate={learning_rate} must not be negative")
    require(all(0 <= beta < 1 for beta in betas), f"betas={betas} must lie in [0, 1)")
    require(eps > 0, f"eps={eps} must be positive")
    require(weight_decay >= 0, f"weight_decay={weight_decay} must not be negative")
    require(clip is None or clip > 0, f"clip={clip} must be positive")


def pack(weights: TransformerWeights, *, tied: bool) -> np.ndarray:
    """Copy all weights into one vector (P,); with ``tied`` the unembedding is left out, it is the embedding."""
    return np.concatenate([leaf.reshape(-1) for _, leaf in _leaves(weights, tied=tied)])


def unpack(vector: np.ndarray, like: Transformer) -> Transformer:
    """Return a model shaped as another whose weights are views of a vector (P,)."""
    config, weights = like
    stem: dict[str, Any] = dict.fromkeys(TransformerWeights._fields)
    blocks: list[dict[str, Any]] = [dict.fromkeys(BlockWeights._fields) for _ in weights.blocks]
    begin = 0
    for (layer, name), leaf in _leaves(weights, tied=config.tied):
        view = vector[begin : begin + leaf.size].reshape(leaf.shape)
        (stem if layer is None else blocks[layer])[name] = view
        begin += leaf.size
    require(begin == vector.size, f"vector has {vector.size} numbers, the model {begin}")
    if config.tied:
        stem["W_U"] = stem["W_E"].T
    stem["blocks"] = tuple(BlockWeights(**fields) for fields in blocks)
    return like._replace(weights=TransformerWeights(**stem))


def decay_mask(model: Transformer) -> np.ndarray:
    """Return which numbers of the packed vector decay (P,): those of matrices and embeddings, not biases or norms."""
    leaves = _leaves(model.weights, tied=model.config.tied)
    return np.concatenate([np.full(leaf.size, name.startswith("W_")) for (_, name), leaf in leaves])


def _leaves(weights: TransformerWeights, *, tied: bool) -> Iterator[tuple[tuple[int | None, str], np.ndarray]]:
    """Yield every array with its block, None for those outside, and its name, in the order of the vector."""
    holders: list[tuple[int | None, Any]] = [(None, weights), *enumerate(weights.blocks)]
    for layer, holder in holders:
        for name, leaf in zip(holder._fields, holder, strict=True):
            if leaf is not None and name != "blocks" and not (tied and name == "W_U"):
                yield (layer, name), leaf
