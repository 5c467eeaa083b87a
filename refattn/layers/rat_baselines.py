"""What RAT is compared with, in the same clothes: the gated RNN and causal attention (2507.04416).

Both have the norm in front and the residual around them, as the RAT layer has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.rat_attention import chunk_rope, merge_heads, split_heads
from refattn.primitives.activations import sigmoid
from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.norms import rms_norm
from refattn.primitives.scan import gated_scan
from refattn.primitives.softmax import softmax

__all__ = ["AttentionWeights", "RNNWeights", "causal_attention_layer", "rnn_layer"]


class RNNWeights(NamedTuple):
    """What the recurrent layer learns.

    Attributes
    ----------
    w_in : ndarray, shape (D, 3 D)
        Columns in this order: output gate, value, forget gate.
    gate_bias : ndarray, shape (D,)
        Bias of the forget gate.
    w_out : ndarray, shape (D, D)
        Output projection.
    norm : ndarray, shape (D,)
        Scale of the norm in front.
    """

    w_in: np.ndarray
    gate_bias: np.ndarray
    w_out: np.ndarray
    norm: np.ndarray


class AttentionWeights(NamedTuple):
    """What the attention layer learns.

    Attributes
    ----------
    w_in : ndarray, shape (D, 3 D)
        Columns in this order: values, queries, keys.
    w_out : ndarray, shape (D, D)
        Output projection.
    norm : ndarray, shape (D,)
        Scale of the norm in front.
    """

    w_in: np.ndarray
    w_out: np.ndarray
    norm: np.ndarray


def rnn_layer(
    x: Any,
    weights: RNNWeights,
    *,
    norm_eps: float = 1e-6,
    initial_state: Any | None = None,
    return_state: bool = False,
) -> Any:
    """Run the gated recurrence over the whole sequence: RAT with a single chunk, without queries and keys.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Activations.
    weights : RNNWeights
        See there.
    norm_eps : float
        Added to the mean square in the norm.
    initial_state : array_like, shape (B, D), optional
        State ṽ before the first token; zero if not given.
    return_state : bool
        Return the state after the last token too, from which a next call goes on.

    Returns
    -------
    y : ndarray, shape (B, T, D)
        In the dtype of ``x``.
    state : ndarray, shape (B, D)
        With ``return_state`` only.

    Raises
    ------
    ValueError
        If a weight has not the shape it must have, or ``x`` holds integers.

    References
    ----------
    The baselines released with 2507.04416, labels rat-rnn and rat-local.
    """
    x, weights = _checked(x, weights)
    u = (rms_norm(x, weights.norm, eps=norm_eps) @ weights.w_in).astype(x.dtype, copy=False)  # (B, T, 3 D)
    z, v, gate = np.split(u, 3, axis=-1)  # (B, T, D) each
    # eq: rat-rnn
    states = gated_scan(sigmoid(gate + weights.gate_bias), v, initial_state=initial_state)  # (B, T, D)
    y = x + ((sigmoid(z) * states) @ weights.w_out).astype(x.dtype, copy=False)  # (B, T, D)
    return (y, _last(states, initial_state)) if return_state else y


def causal_attention_layer(
    x: Any,
    weights: AttentionWeights,
    *,
    num_heads: int,
    window: int | None = None,
    rope_base: float | None = 10000.0,
    norm_eps: float = 1e-6,
) -> np.ndarray:
    """Run causal softmax attention, over all earlier tokens or over a window of them.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Activations.
    weights : AttentionWeights
        See there.
    num_heads : int
        H; divides D.
    window : int, optional
        How far back a token sees: i − j ≤ window, which is window + 1 keys with its own. None: to the beginning.
    rope_base : float, optional
        Base of the rotary frequencies, at token positions; None leaves positions out.
    norm_eps : float
        Added to the mean square in the norm.

    Returns
    -------
    ndarray, shape (B, T, D)
        In the dtype of ``x``; the attention is computed in float64.

    Raises
    ------
    ValueError
        If D is not a multiple of H, the window is negative, a weight has not the shape it must have, a head has an odd
        width and is to be rotated, or ``x`` holds integers.

    References
    ----------
    The baselines released with 2507.04416, labels rat-rnn and rat-local.
    """
    x, weights = _checked(x, weights)
    *_, length, width = x.shape
    require(
        num_heads >= 1 and width % num_heads == 0,
        f"d_model must be divisible by num_heads: d_model={width}, num_heads={num_heads}",
    )
    require(window is None or window >= 0, f"window={window} must be >= 0")
    u = rms_norm(x, weights.norm, eps=norm_eps) @ weights.w_in  # (B, T, 3 D)
    v, q, k = (split_heads(a.astype(np.float64, copy=False), num_heads) for a in np.split(u, 3, axis=-1))
    position = np.arange(length)  # (T,)
    q, k = (chunk_rope(a, position, base=rope_base) for a in (q, k))  # (B, H, T, dh)

    # eq: rat-local
    distance = position[:, None] - position  # (T, T), i − j
    seen = (distance >= 0) & (distance <= (length if window is None else window))
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(width // num_heads)  # (B, H, T, T)
    out = merge_heads(softmax(scores, where=seen) @ v).astype(x.dtype, copy=False)  # (B, T, D)
    y: np.ndarray = x + (out @ weights.w_out).astype(x.dtype, copy=False)
    return y


def _last(states: np.ndarray, initial_state: Any | None) -> np.ndarray:
    """Return the state after the last token, the initial one for an empty sequence."""
    if states.shape[-2]:
        return states[..., -1, :]
    return (
        np.zeros_like(states, shape=(*states.shape[:-2], states.shape[-1])) if initial_state is None else initial_state
    )


def _checked(x: Any, weights: Any) -> tuple[np.ndarray, Any]:
    """Return activations and weights in one dtype, or say what does not fit."""
    x = as_float("x", x, refuse_integers=ValueError)
    require(x.ndim >= 2, f"x has shape {x.shape}, expected (B, T, D)")
    width = x.shape[-1]
    shapes = {"w_in": (width, 3 * width), "gate_bias": (width,), "w_out": (width, width), "norm": (width,)}
    arrays = {name: as_float(f"weights.{name}", array) for name, array in weights._asdict().items()}
    for name, array in arrays.items():
        require_shape(f"weights.{name}", array, shapes[name])
    return x, type(weights)(**{name: array.astype(x.dtype, copy=False) for name, array in arrays.items()})
