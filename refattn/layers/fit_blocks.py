"""What FIT is built of: pre-norm attention with biases, and the transformer and cross layers around it (2305.12689).

Every layer reads a normalised copy of its stream and adds what it found to the stream. Equation labels (fit-1) to
(fit-3) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_bool, as_float, require, require_shape
from refattn.primitives.norms import layer_norm
from refattn.primitives.softmax import softmax

__all__ = [
    "CrossWeights",
    "KeysValues",
    "LayerWeights",
    "MHAWeights",
    "MLPWeights",
    "NormWeights",
    "attention_layer",
    "average",
    "cross_layer",
    "fit_cross_attention",
    "keys_and_values",
    "mlp_layer",
    "normalised",
    "queries",
    "self_layer",
    "transformer_layer",
]

EPS = 1e-6


class NormWeights(NamedTuple):
    """Scale and shift of a LayerNorm.

    Attributes
    ----------
    gamma, beta : ndarray, shape (d,)
        The scale, as it is and not as 1 + gamma, and the shift.
    """

    gamma: np.ndarray
    beta: np.ndarray


class MHAWeights(NamedTuple):
    """Multi-head attention from a query stream of width d to a source of width e: h heads of width κ, with biases.

    Attributes
    ----------
    w_q, b_q : ndarray, shape (d, h, κ) and (h, κ)
        Queries.
    w_k, b_k, w_v, b_v : ndarray, shape (e, h, κ) and (h, κ)
        Keys and values.
    w_o, b_o : ndarray, shape (h, κ, d) and (d,)
        Back to the query stream.
    """

    w_q: np.ndarray
    b_q: np.ndarray
    w_k: np.ndarray
    b_k: np.ndarray
    w_v: np.ndarray
    b_v: np.ndarray
    w_o: np.ndarray
    b_o: np.ndarray


class MLPWeights(NamedTuple):
    """The two linear maps of an MLP layer with its norm; r is the ratio of their widths.

    Attributes
    ----------
    norm : NormWeights
        Of width d.
    w_1, b_1 : ndarray, shape (d, r d) and (r d,)
        Up.
    w_2, b_2 : ndarray, shape (r d, d) and (d,)
        Down.
    """

    norm: NormWeights
    w_1: np.ndarray
    b_1: np.ndarray
    w_2: np.ndarray
    b_2: np.ndarray


class LayerWeights(NamedTuple):
    """A transformer layer.

    Attributes
    ----------
    norm : NormWeights or None
        Before the attention.
    attention : MHAWeights or None
        None leaves self-attention out (``x_self_attention=False`` of the denoiser); then ``norm`` is None too.
    mlp : MLPWeights
        The second half of the layer.
    """

    norm: NormWeights | None
    attention: MHAWeights | None
    mlp: MLPWeights


class CrossWeights(NamedTuple):
    """A cross layer.

    Attributes
    ----------
    norm : NormWeights
        Of the query stream.
    source_norm : NormWeights or None
        Of the source; None leaves it as it is (``xattn_enc_ln=False`` of the denoiser).
    attention : MHAWeights
        From the query stream to the source.
    mlp : MLPWeights or None
        An MLP layer after it (``xattn_with_mlp=True`` of the denoiser).
    """

    norm: NormWeights
    source_norm: NormWeights | None
    attention: MHAWeights
    mlp: MLPWeights | None


class KeysValues(NamedTuple):
    """What a layer of attention needs of the tokens that are attended to.

    Attributes
    ----------
    k, v : ndarray, shape (..., h, N, κ)
        Keys and values of each head.
    """

    k: np.ndarray
    v: np.ndarray


def transformer_layer(x: Any, weights: LayerWeights, mask: Any = None) -> np.ndarray:
    """Let tokens look at each other, then let each think for itself; both are added to the stream.

    Parameters
    ----------
    x : array_like, shape (..., N, d)
        The stream.
    weights : LayerWeights
        The layer; without attention only the MLP is left.
    mask : array_like of bool, shape (N, N), optional
        True = may attend; no row may be empty.

    Returns
    -------
    ndarray, shape (..., N, d)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If the mask is not boolean or not (N, N), a row of it is empty, or the widths of ``x`` and weights differ.
    """
    x = as_float("x", x)
    require(x.ndim >= 2, f"x has shape {x.shape}, expected (..., N, d)")
    _require_width("x", x, weights.mlp.w_1)
    if mask is not None:
        mask = as_bool("mask", mask)
        require_shape("mask", mask, (x.shape[-2], x.shape[-2]))
        require(mask.any(axis=-1).all(), "mask must let every token see something")
    return self_layer(x, weights, mask)


def fit_cross_attention(a: Any, e: Any, weights: CrossWeights) -> np.ndarray:
    """Let a query stream read a source, and add what it read.

    READ (a latents, e tokens), WRITE (a tokens, e latents) and the conditioning of the denoiser are all this layer.

    Parameters
    ----------
    a : array_like, shape (..., N, d)
        The stream that reads.
    e : array_like, shape (..., M, e)
        The source, of another width and length; its leading axes broadcast with those of ``a``.
    weights : CrossWeights
        The layer.

    Returns
    -------
    ndarray, shape (..., N, d)
        In the dtype of ``a``.

    Raises
    ------
    ValueError
        If the source is empty, or a width does not fit the weights.
    """
    a, e = as_float("a", a), as_float("e", e)
    require(a.ndim >= 2, f"a has shape {a.shape}, expected (..., N, d)")
    require(e.ndim >= 2 and e.shape[-2] >= 1, f"e has shape {e.shape}, expected (..., M, width) with M >= 1")
    _require_width("a", a, weights.attention.w_q)
    _require_width("e", e, weights.attention.w_k)
    return cross_layer(a, e.astype(a.dtype, copy=False), weights)


def self_layer(x: np.ndarray, weights: LayerWeights, mask: np.ndarray | None = None) -> np.ndarray:
    """Return `transformer_layer`; it checks nothing.

    Parameters
    ----------
    x, weights, mask
        As there, all of them floating or boolean arrays of fitting shapes.

    Returns
    -------
    ndarray, shape (..., N, d)
    """
    if weights.attention is not None:
        x = attention_layer(x, weights, mask)  # (..., N, d)
    return mlp_layer(x, weights.mlp)


def attention_layer(x: np.ndarray, weights: LayerWeights, mask: np.ndarray | None = None) -> np.ndarray:
    """Return the first half of a transformer layer, x + MHA(LN(x)); it checks nothing.

    Parameters
    ----------
    x : ndarray, shape (..., N, d)
        The stream.
    weights : LayerWeights
        A layer with attention.
    mask : ndarray of bool, shape (N, N), optional
        True = may attend.

    Returns
    -------
    ndarray, shape (..., N, d)
    """
    w: Any = weights.attention
    found = normalised(x, weights.norm)  # (..., N, d)
    # eq: fit-2
    changed: np.ndarray = x + average(queries(found, w), keys_and_values(found, w), w, mask)  # (..., N, d)
    return changed


def cross_layer(a: np.ndarray, e: np.ndarray, weights: CrossWeights) -> np.ndarray:
    """Return `fit_cross_attention`; it checks nothing.

    Parameters
    ----------
    a, e, weights
        As there, all of them floating arrays of fitting shapes.

    Returns
    -------
    ndarray, shape (..., N, d)
    """
    source = normalised(e, weights.source_norm)  # (..., M, e)
    q = queries(normalised(a, weights.norm), weights.attention)  # (..., h, N, κ)
    # eq: fit-3
    a = a + average(q, keys_and_values(source, weights.attention), weights.attention)  # (..., N, d)
    return a if weights.mlp is None else mlp_layer(a, weights.mlp)


def mlp_layer(x: np.ndarray, weights: MLPWeights) -> np.ndarray:
    """Return x + W₂ GELU(W₁ LN(x) + b₁) + b₂, with the exact GELU; it checks nothing.

    Parameters
    ----------
    x : ndarray, shape (..., d)
        The stream.
    weights : MLPWeights
        The layer.

    Returns
    -------
    ndarray, shape (..., d)
    """
    hidden = gelu(normalised(x, weights.norm) @ weights.w_1 + weights.b_1)  # (..., r d)
    changed: np.ndarray = x + hidden @ weights.w_2 + weights.b_2  # (..., d)
    return changed


def normalised(x: np.ndarray, weights: NormWeights | None) -> np.ndarray:
    """Return LN(x) with ε = 1e-6 and the population variance, ``x`` itself without weights; it checks nothing.

    Parameters
    ----------
    x : ndarray, shape (..., d)
        The stream.
    weights : NormWeights or None
        Scale and shift.

    Returns
    -------
    ndarray, shape (..., d)
    """
    return x if weights is None else layer_norm(x, weights.gamma, weights.beta, eps=EPS)


def queries(x: np.ndarray, weights: MHAWeights) -> np.ndarray:
    """Return the queries of each head, divided by √κ; it checks nothing.

    Parameters
    ----------
    x : ndarray, shape (..., N, d)
        The normalised query stream.
    weights : MHAWeights
        The attention.

    Returns
    -------
    ndarray, shape (..., h, N, κ)
    """
    scaled: np.ndarray = _heads(x, weights.w_q, weights.b_q) / weights.w_q.shape[-1] ** 0.5
    return scaled


def keys_and_values(x: np.ndarray, weights: MHAWeights) -> KeysValues:
    """Return the keys and values of each head; it checks nothing.

    Parameters
    ----------
    x : ndarray, shape (..., N, e)
        The normalised source.
    weights : MHAWeights
        The attention.

    Returns
    -------
    KeysValues
        Of shape (..., h, N, κ).
    """
    return KeysValues(_heads(x, weights.w_k, weights.b_k), _heads(x, weights.w_v, weights.b_v))


def average(q: np.ndarray, memory: KeysValues, weights: MHAWeights, mask: np.ndarray | None = None) -> np.ndarray:
    """Return what the queries find, back in the width of their stream; it checks nothing.

    Parameters
    ----------
    q : ndarray, shape (..., h, N, κ)
        Queries.
    memory : KeysValues
        Keys and values, (..., h, M, κ).
    weights : MHAWeights
        Its output map is used.
    mask : ndarray of bool, shape (N, M), optional
        True = may attend.

    Returns
    -------
    ndarray, shape (..., N, d)
    """
    # eq: fit-1
    s = q @ np.swapaxes(memory.k, -1, -2)  # (..., h, N, M)
    o = softmax(s, axis=-1, where=mask) @ memory.v  # (..., h, N, κ)
    merged = np.swapaxes(o, -3, -2)  # (..., N, h, κ)
    h, k, d = weights.w_o.shape
    found: np.ndarray = (
        merged.reshape(*merged.shape[:-2], h * k) @ weights.w_o.reshape(h * k, d) + weights.b_o
    )  # (..., N, d)
    return found


def _heads(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Project to heads: (..., N, d) to (..., h, N, κ)."""
    d, h, k = w.shape
    flat = x @ w.reshape(d, h * k)  # (..., N, h κ)
    return np.swapaxes(flat.reshape(*x.shape[:-1], h, k) + b, -3, -2)


def _require_width(name: str, x: np.ndarray, w: np.ndarray) -> None:
    require(x.shape[-1] == w.shape[0], f"{name} has shape {x.shape}, expected width {w.shape[0]} on the last axis")
