"""Encoder and decoder of OAT: the standard transformer, normalised after each residual sum.

Equation source: 1706.03762 as in torch ``nn.TransformerEncoder`` and ``nn.TransformerDecoder``, which the released code
of 2407.13335 uses without dropout at test time and without a final norm. Linear maps are stored (in, out) and used as
``x @ w``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_bool, as_float, require, require_shape
from refattn.primitives.masks import causal_mask
from refattn.primitives.norms import layer_norm
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "NORM_EPS",
    "AttentionWeights",
    "DecoderLayer",
    "EncoderLayer",
    "multi_head_attention",
    "oat_decode",
    "oat_encode",
]

NORM_EPS = 1e-5


class AttentionWeights(NamedTuple):
    """Parameters of one attention: queries, keys, values, output.

    Attributes
    ----------
    w_q, w_k, w_v, w_o : ndarray, shape (E, E)
        Head h owns columns h·E/H … (h + 1)·E/H − 1 of the first three.
    b_q, b_k, b_v, b_o : ndarray, shape (E,)
        Biases.
    """

    w_q: np.ndarray
    b_q: np.ndarray
    w_k: np.ndarray
    b_k: np.ndarray
    w_v: np.ndarray
    b_v: np.ndarray
    w_o: np.ndarray
    b_o: np.ndarray


class EncoderLayer(NamedTuple):
    """Parameters of one encoder layer.

    Attributes
    ----------
    attention : AttentionWeights
        Self-attention.
    w_1, b_1, w_2, b_2 : ndarray, shapes (E, F), (F,), (F, E), (E,)
        The feed-forward network.
    norm1_w, norm1_b, norm2_w, norm2_b : ndarray, shape (E,)
        The norms after either.
    """

    attention: AttentionWeights
    norm1_w: np.ndarray
    norm1_b: np.ndarray
    w_1: np.ndarray
    b_1: np.ndarray
    w_2: np.ndarray
    b_2: np.ndarray
    norm2_w: np.ndarray
    norm2_b: np.ndarray


class DecoderLayer(NamedTuple):
    """Parameters of one decoder layer.

    Attributes
    ----------
    self_attention, cross_attention : AttentionWeights
        Among the tokens of the scanpath, and from them to the objects.
    w_1, b_1, w_2, b_2 : ndarray, shapes (E, F), (F,), (F, E), (E,)
        The feed-forward network.
    norm1_w, norm1_b, norm2_w, norm2_b, norm3_w, norm3_b : ndarray, shape (E,)
        The norms after each of the three.
    """

    self_attention: AttentionWeights
    norm1_w: np.ndarray
    norm1_b: np.ndarray
    cross_attention: AttentionWeights
    norm2_w: np.ndarray
    norm2_b: np.ndarray
    w_1: np.ndarray
    b_1: np.ndarray
    w_2: np.ndarray
    b_2: np.ndarray
    norm3_w: np.ndarray
    norm3_b: np.ndarray


def oat_encode(tokens: Any, layers: Sequence[EncoderLayer], *, n_heads: int) -> np.ndarray:
    """Let all objects and the target look at one another.

    Parameters
    ----------
    tokens : array_like, shape (..., n + 1, E)
        [appearance ; position] of each object, then of the target.
    layers : sequence of EncoderLayer
        One after the other; none returns the tokens.
    n_heads : int
        H, a divisor of E.

    Returns
    -------
    ndarray, shape (..., n + 1, E)

    Raises
    ------
    ValueError
        If shapes disagree or the heads do not divide E.

    Notes
    -----
    Nothing here knows an order: shuffled tokens come out as they went in, shuffled.
    """
    x = _tokens("tokens", tokens, n_heads)
    for layer in layers:
        # eq: oat-9
        x = layer_norm(x + _attend(x, x, layer.attention, n_heads), layer.norm1_w, layer.norm1_b, eps=NORM_EPS)
        x = layer_norm(x + _feed_forward(x, layer), layer.norm2_w, layer.norm2_b, eps=NORM_EPS)  # (..., n + 1, E)
    return np.asanyarray(x)


def oat_decode(
    tokens: Any, memory: Any, layers: Sequence[DecoderLayer], *, n_heads: int, pad_mask: Any = None
) -> np.ndarray:
    """Let each token of the scanpath look back over the path, then at the scene.

    Parameters
    ----------
    tokens : array_like, shape (..., T, E)
        [appearance ; position] + time of the start and each fixation.
    memory : array_like, shape (..., n + 1, E)
        From `oat_encode`.
    layers : sequence of DecoderLayer
        One after the other.
    n_heads : int
        H, a divisor of E.
    pad_mask : array_like of bool, shape (..., T), optional
        True = padding, which no token looks at.

    Returns
    -------
    ndarray, shape (..., T, E)

    Raises
    ------
    ValueError
        If shapes disagree or the heads do not divide E.

    Notes
    -----
    A token that can look at nothing, because all up to it are padding, gets zero from self-attention.
    """
    x, memory = _tokens("tokens", tokens, n_heads), as_float("memory", memory)
    require_shape("memory", memory, (*x.shape[:-2], *memory.shape[-2:-1], x.shape[-1]))
    T = x.shape[-2]
    visible = causal_mask(T, T)  # (T, T)
    if pad_mask is not None:
        pad_mask = as_bool("pad_mask", pad_mask)
        require_shape("pad_mask", pad_mask, x.shape[:-1])
        visible = visible & ~pad_mask[..., None, :]  # (..., T, T)
    for layer in layers:
        # eq: oat-10
        seen = _attend(x, x, layer.self_attention, n_heads, visible)
        x = layer_norm(x + seen, layer.norm1_w, layer.norm1_b, eps=NORM_EPS)
        scene = _attend(x, memory, layer.cross_attention, n_heads)
        x = layer_norm(x + scene, layer.norm2_w, layer.norm2_b, eps=NORM_EPS)
        x = layer_norm(x + _feed_forward(x, layer), layer.norm3_w, layer.norm3_b, eps=NORM_EPS)  # (..., T, E)
    return np.asanyarray(x)


def multi_head_attention(
    x: Any, context: Any, weights: AttentionWeights, *, n_heads: int, visible: Any = None
) -> np.ndarray:
    """Attend from each token of ``x`` to the visible ones of ``context``, each head in its own channels.

    Parameters
    ----------
    x : array_like, shape (..., T, E)
        Where queries come from.
    context : array_like, shape (..., S, E)
        Where keys and values come from.
    weights : AttentionWeights
        Parameters.
    n_heads : int
        H, a divisor of E.
    visible : array_like of bool, shape (..., T, S), optional
        True = may be looked at.

    Returns
    -------
    ndarray, shape (..., T, E)

    Raises
    ------
    ValueError
        If shapes disagree or the heads do not divide E.
    """
    x, context = _tokens("x", x, n_heads), as_float("context", context)
    require_shape("context", context, (*x.shape[:-2], *context.shape[-2:-1], x.shape[-1]))
    return np.asanyarray(_attend(x, context, weights, n_heads, visible))


def _attend(x: Any, context: Any, weights: AttentionWeights, n_heads: int, visible: Any = None) -> Any:
    E = x.shape[-1]
    require_shape("weights.w_q", np.asanyarray(weights.w_q), (E, E))
    q = x @ weights.w_q + weights.b_q  # (..., T, E)
    k = context @ weights.w_k + weights.b_k  # (..., S, E)
    v = context @ weights.w_v + weights.b_v  # (..., S, E)
    d, found = E // n_heads, []
    for h in range(n_heads):
        own = slice(h * d, (h + 1) * d)
        # eq: oat-11
        scores = q[..., own] @ np.swapaxes(k[..., own], -1, -2) / math.sqrt(d)  # (..., T, S)
        found.append(softmax(scores, where=visible) @ v[..., own])  # (..., T, E/H)
    return np.concatenate(found, axis=-1) @ weights.w_o + weights.b_o  # (..., T, E)


def _feed_forward(x: Any, layer: EncoderLayer | DecoderLayer) -> Any:
    return np.maximum(x @ layer.w_1 + layer.b_1, 0) @ layer.w_2 + layer.b_2


def _tokens(name: str, x: Any, n_heads: int) -> Any:
    x = as_float(name, x)
    require(x.ndim >= 2, f"{name} has shape {x.shape}, expected at least two axes")
    E = x.shape[-1]
    require(n_heads >= 1 and E % n_heads == 0, f"n_heads={n_heads!r} must divide the width E = {E} of {name}")
    return x
