"""Training `refattn.layers.icl_regression` by hand: gradient descent, Adam and AdamW as pure functions.

An update takes weights and gradients, NamedTuples of arrays of one shape each, and returns new weights; nothing is
written to. Equation labels (icl-7) to (icl-9) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np

from refattn.layers.icl_regression import ICLAttentionWeights, icl_attention_grad, kq_matrix, ov_matrix
from refattn.primitives.arguments import as_float, require, require_one_of

__all__ = ["AdamState", "Trajectory", "adam_start", "adam_step", "sgd_step", "train_on_stream"]

Weights = TypeVar("Weights", bound=tuple[Any, ...])

METHODS = ("sgd", "adam", "adamw")
ADAMW_DECAY = 0.01  # what torch.optim.AdamW does if nothing is said


class AdamState(NamedTuple):
    """What Adam remembers between two steps.

    Attributes
    ----------
    step : int
        The number t of steps taken.
    mean, square : tuple of ndarray
        Running means of the gradients and of their squares, one array for each field of the weights.
    """

    step: int
    mean: tuple[np.ndarray, ...]
    square: tuple[np.ndarray, ...]


class Trajectory(NamedTuple):
    """What happened in a training run of T steps.

    Attributes
    ----------
    weights : ICLAttentionWeights
        After the last step.
    losses : ndarray, shape (T,)
        On each batch, before the step that it causes.
    kq : ndarray, shape (T, H, D, D)
        The merged query-key matrices after each step.
    ov : ndarray, shape (T, H, D, n_out)
        The merged output-value matrices after each step.
    """

    weights: ICLAttentionWeights
    losses: np.ndarray
    kq: np.ndarray
    ov: np.ndarray


def sgd_step(weights: Weights, grads: Weights, *, lr: float) -> Weights:
    """Go a step of length ``lr`` against the gradient.

    Parameters
    ----------
    weights, grads : NamedTuple of ndarray
        The same fields with the same shapes.
    lr : float
        The learning rate.

    Returns
    -------
    NamedTuple of ndarray
        The new weights.
    """
    # eq: icl-7
    return _like(weights, [w - lr * g for w, g in zip(weights, grads, strict=True)])


def adam_start(weights: tuple[Any, ...]) -> AdamState:
    """Return the state of Adam before its first step: all means are zero.

    Parameters
    ----------
    weights : NamedTuple of ndarray
        What will be trained.

    Returns
    -------
    AdamState
        At step 0.
    """
    return AdamState(0, tuple(np.zeros_like(w) for w in weights), tuple(np.zeros_like(w) for w in weights))


def adam_step(
    weights: Weights,
    grads: Weights,
    state: AdamState,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Weights, AdamState]:
    """Go a step whose length is ``lr`` in every coordinate, whatever the size of the gradient.

    Parameters
    ----------
    weights, grads : NamedTuple of ndarray
        The same fields with the same shapes.
    state : AdamState
        From `adam_start` or the step before.
    lr : float
        The learning rate.
    betas : pair of float
        How much of the running means of g and of g² is kept.
    eps : float
        Added to the root of the mean square.
    weight_decay : float
        Before the step every weight shrinks by the factor 1 − lr · weight_decay, which is AdamW; 0 is Adam.

    Returns
    -------
    weights : NamedTuple of ndarray
        The new weights.
    state : AdamState
        For the next step.
    """
    keep_mean, keep_square = betas
    t = state.step + 1
    # eq: icl-8
    mean = tuple(keep_mean * m + (1 - keep_mean) * g for m, g in zip(state.mean, grads, strict=True))
    square = tuple(keep_square * v + (1 - keep_square) * g**2 for v, g in zip(state.square, grads, strict=True))
    grown_mean, grown_square = 1 - keep_mean**t, 1 - keep_square**t  # the weight that the means have gathered so far
    # eq: icl-9
    new = [
        (1 - lr * weight_decay) * w - lr * (m / grown_mean) / (np.sqrt(v / grown_square) + eps)
        for w, m, v in zip(weights, mean, square, strict=True)
    ]
    return _like(weights, new), AdamState(t, mean, square)


def train_on_stream(
    z_q: Any, z: Any, y: Any, weights: ICLAttentionWeights, *, lr: float, method: str = "adam"
) -> Trajectory:
    """Train on one fresh batch after the other.

    Parameters
    ----------
    z_q : array_like, shape (T, B, D)
        The query tokens of T batches of B prompts.
    z : array_like, shape (T, B, L, D)
        Their context tokens.
    y : array_like, shape (T, B, n_out)
        What should be predicted.
    weights : ICLAttentionWeights
        Where to start.
    lr : float
        The learning rate.
    method : {"adam", "sgd", "adamw"}
        The optimiser; ``adamw`` decays by 0.01, as the official configuration does by leaving PyTorch's default.

    Returns
    -------
    Trajectory
        Final weights, losses, merged matrices after each step.

    Raises
    ------
    ValueError
        If ``method`` is unknown, ``lr`` is not finite and positive, the batches are empty, or shapes disagree.
    """
    require_one_of("method", method, METHODS)
    require(np.isfinite(lr) and lr > 0, f"lr={lr!r} must be finite and > 0")
    z_q, z, y = as_float("z_q", z_q, ndim=3), as_float("z", z, ndim=4), as_float("y", y, ndim=3)
    require(
        len(z_q) == len(z) == len(y) >= 1,
        f"z_q, z and y hold {len(z_q)}, {len(z)} and {len(y)} batches; expected one number, at least 1",
    )
    state, losses, kq, ov = adam_start(weights), [], [], []
    decay = ADAMW_DECAY if method == "adamw" else 0.0
    for batch in zip(z_q, z, y, strict=True):
        loss, grads = icl_attention_grad(*batch, weights)
        if method == "sgd":
            weights = sgd_step(weights, grads, lr=lr)
        else:
            weights, state = adam_step(weights, grads, state, lr=lr, weight_decay=decay)
        losses.append(loss)
        kq.append(kq_matrix(weights))
        ov.append(ov_matrix(weights))
    return Trajectory(weights, np.stack(losses), np.stack(kq), np.stack(ov))


def _like(weights: Weights, arrays: list[Any]) -> Weights:
    """Return the arrays in the NamedTuple that the weights came in."""
    make = getattr(type(weights), "_make", type(weights))
    new: Weights = make(arrays)
    return new
