"""Attention taken apart: seven variants of one block, each of which gives up one of its principles (2510.11602).

Standard attention mixes tokens, through a softmax of queries and keys, which depend on the sequence, and on this
layer's own state. A variant gives up one of the four and keeps the rest, the four matrices included. The recurrent
forms are in `refattn.layers.deconstructed_recurrent`, stacks in `refattn.layers.deconstructed_stack`, what to read off
the maps in `refattn.layers.deconstructed_indicators`. Equation labels (dec-…) are those of the page.
"""

from __future__ import annotations

import math
from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.activations import silu
from refattn.primitives.arguments import as_float, require, require_one_of, require_shape
from refattn.primitives.masks import causal_mask
from refattn.primitives.rotary_embedding import rotary_embedding
from refattn.primitives.softmax import softmax

__all__ = [
    "FIXED",
    "FORMS",
    "VARIANTS",
    "AttentionWeights",
    "MLPWeights",
    "apply_attention",
    "attend",
    "attention_map",
    "gated_mlp",
]

FIXED = ("random_fixed", "text_fixed")
VARIANTS = ("standard", "mlp", "approximate", "non_approximate", *FIXED, "static_emb")
FORMS = ("joint", "per_order")


class AttentionWeights(NamedTuple):
    """The four matrices of a layer, each (d, d), input first; ``mlp`` uses them as gate, up, down and output."""

    W_Q: Any
    W_K: Any
    W_V: Any
    W_O: Any


class MLPWeights(NamedTuple):
    """A gated MLP: (d, f), (d, f), (f, d)."""

    gate: Any
    up: Any
    down: Any


def attention_map(
    source: Any,
    weights: AttentionWeights,
    *,
    variant: str,
    n_heads: int,
    form: str = "joint",
    eps: float = 0.0,
    rotary_base: float | None = None,
) -> np.ndarray:
    """Return who reads from whom: one causal map for each head.

    Parameters
    ----------
    source : array_like, shape (..., L, d)
        What queries and keys are made of. For ``random_fixed`` and ``text_fixed`` that is the reference stream, for
        ``static_emb`` the embeddings, for the others the hidden state.
    weights : AttentionWeights
        W_Q and W_K are used.
    variant : str
        One of `VARIANTS` other than ``mlp``, which has no map.
    n_heads : int
        h; it divides d.
    form : {"joint", "per_order"}
        For ``approximate``: one denominator for the polynomial, or one for each of its orders, with squares channel by
        channel.
    eps : float
        For ``approximate``: added to the denominators.
    rotary_base : float, optional
        Turn queries and keys by their positions, at this base. Nothing turns if not given. ``non_approximate`` compares
        only what stands at one position, where turning both changes nothing.

    Returns
    -------
    ndarray, shape (..., h, L, L)
        Lower triangular, rows sum to one; with ``per_order`` they sum to three.

    Raises
    ------
    ValueError
        For an unknown or unfitting name, L = 0, shapes that do not fit, or heads that do not divide the width.

    Notes
    -----
    The paper writes joint normalisation in its body and separate ones in its appendix; a separate first-order
    denominator Σ q·k can vanish, and the map is then not finite. Biases are left out and rotary positions are off
    [our definition].

    References
    ----------
    2510.11602, equations 1–3, 6–13 and 14–17.
    """
    _check_options(variant, form, eps)
    require(variant != "mlp", "variant='mlp' mixes no tokens and has no map")
    source = _tokens("source", source, weights, n_heads)
    return _map(source, weights, variant, n_heads, form, eps, rotary_base)


def apply_attention(
    hidden: Any,
    weights: AttentionWeights,
    *,
    variant: str,
    n_heads: int,
    reference: Any = None,
    static: Any = None,
    form: str = "joint",
    eps: float = 0.0,
    rotary_base: float | None = None,
) -> np.ndarray:
    """Run the attention of one layer, or what stands in its place.

    Parameters
    ----------
    hidden : array_like, shape (..., L, d)
        H, the normalised input of the layer.
    weights : AttentionWeights
        The layer's matrices; every variant uses all four.
    variant : str
        One of `VARIANTS`.
    n_heads : int
        h; it divides d.
    reference : array_like, shape (..., at least L, d)
        The normalised reference stream at this layer, for ``random_fixed`` and ``text_fixed``; its first L tokens
        count. Without leading axes one map serves the whole batch.
    static : array_like, shape (..., L, d)
        The input embeddings, for ``static_emb``.
    form, eps, rotary_base
        As in `attention_map`.

    Returns
    -------
    ndarray, shape (..., L, d)
        In the common dtype of the arrays.

    Raises
    ------
    ValueError
        As `attention_map`; for a reference that is missing or too short; for embeddings that are missing or unlike H.

    References
    ----------
    2510.11602, section 3.
    """
    _check_options(variant, form, eps)
    hidden = _tokens("hidden", hidden, weights, n_heads)
    if variant == "mlp":
        # eq: dec-mlp
        return np.asanyarray(gated_mlp(hidden, MLPWeights(*weights[:3])) @ weights.W_O)  # (..., L, d)
    source = hidden
    if variant in FIXED:
        source = _covering(variant, reference, hidden.shape[-2], weights, n_heads)
    elif variant == "static_emb":
        require(static is not None, "static=None, but variant='static_emb' needs the input embeddings")
        source = _tokens("static", static, weights, n_heads)
        require_shape("static", source, hidden.shape)
    return attend(_map(source, weights, variant, n_heads, form, eps, rotary_base), hidden, weights)


def attend(maps: Any, hidden: Any, weights: AttentionWeights) -> np.ndarray:
    """Read the values of ``hidden`` through given maps: the part that all mixing variants share.

    Parameters
    ----------
    maps : array_like, shape (..., h, L, L)
        From `attention_map`; leading axes broadcast.
    hidden : array_like, shape (..., L, d)
        H, the normalised input of the layer.
    weights : AttentionWeights
        W_V and W_O are used.

    Returns
    -------
    ndarray, shape (..., L, d)

    Raises
    ------
    ValueError
        If the maps do not fit the tokens, or the heads the width.
    """
    maps, hidden = as_float("maps", maps), as_float("hidden", hidden)
    require(
        maps.ndim >= 3 and hidden.ndim >= 2 and maps.shape[-2:] == (hidden.shape[-2],) * 2,
        f"maps has shape {maps.shape}, expected (..., h, L, L) for hidden of shape {hidden.shape}",
    )
    hidden = _tokens("hidden", hidden, weights, maps.shape[-3])
    V = _split_heads(hidden @ weights.W_V, maps.shape[-3])  # (..., h, L, dh)
    # eq: dec-read
    O = maps @ V  # (..., h, L, dh)
    return np.asanyarray(_merge_heads(O) @ weights.W_O)  # (..., L, d)


def gated_mlp(hidden: Any, weights: MLPWeights) -> np.ndarray:
    """Transform each token by itself: FC_dn(SiLU(FC_gate(H)) · FC_up(H)).

    Parameters
    ----------
    hidden : array_like, shape (..., d)
        H.
    weights : MLPWeights
        The three matrices. As a variant of attention they are (d, d) each, so that the parameters stay as many
        [inferred from the paper's table of FLOPs]; in a block they are its feed-forward network.

    Returns
    -------
    ndarray, shape (..., d)

    Raises
    ------
    ValueError
        If the widths do not fit.

    References
    ----------
    2510.11602, equations 4 and 5.
    """
    hidden = as_float("hidden", hidden)
    require(hidden.ndim >= 1, f"hidden has shape {hidden.shape}, expected (..., d)")
    d, f = hidden.shape[-1], weights.gate.shape[-1]
    for name, shape in (("gate", (d, f)), ("up", (d, f)), ("down", (f, d))):
        require_shape(f"weights.{name}", getattr(weights, name), shape)
    return np.asanyarray((silu(hidden @ weights.gate) * (hidden @ weights.up)) @ weights.down)


def _map(
    source: np.ndarray,
    weights: AttentionWeights,
    variant: str,
    n_heads: int,
    form: str,
    eps: float,
    rotary_base: float | None,
) -> np.ndarray:
    # eq: dec-qkv
    q, k = (_split_heads(source @ W, n_heads) for W in (weights.W_Q, weights.W_K))  # (..., h, L, dh)
    if variant == "non_approximate":
        return _gate_map(silu(q), k)
    if rotary_base is not None:
        positions = np.arange(q.shape[-2])
        q, k = (rotary_embedding(x, positions, theta=rotary_base) for x in (q, k))
    if variant == "approximate":
        return _taylor_map(q, k, eps) if form == "joint" else _map_per_order(q, k, eps)
    # eq: dec-std dec-fixed dec-static
    return softmax(_scores(q, k), where=causal_mask(*_square(q)))  # (..., h, L, L)


def _taylor_map(q: np.ndarray, k: np.ndarray, eps: float) -> np.ndarray:
    """Return the map whose exponential is cut after the second order."""
    x = _scores(q, k)  # (..., h, L, L)
    # eq: dec-taylor
    return _normalised(1 + x + x**2 / 2, eps)


def _map_per_order(q: np.ndarray, k: np.ndarray, eps: float) -> np.ndarray:
    """Return the sum of three maps, one for each order; scales cancel."""
    x = q @ np.swapaxes(k, -1, -2)
    # eq: dec-order
    orders = (np.ones_like(x), x, q**2 @ np.swapaxes(k**2, -1, -2))
    return np.asanyarray(sum(_normalised(order, eps) for order in orders))  # (..., h, L, L)


def _gate_map(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return the map whose columns each token sets for itself."""
    # eq: dec-gate
    s = np.sum(q * k, axis=-1) / math.sqrt(q.shape[-1])  # (..., h, L)
    rows = np.broadcast_to(s[..., None, :], (*s.shape, s.shape[-1]), subok=True)
    return softmax(rows, where=causal_mask(*_square(q)))  # (..., h, L, L)


def _scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.asanyarray(q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1]))


def _square(q: np.ndarray) -> tuple[int, int]:
    return q.shape[-2], q.shape[-2]


def _normalised(x: np.ndarray, eps: float) -> np.ndarray:
    """Divide the lower triangle by the sums of its rows."""
    x = np.tril(x)
    return np.asanyarray(x / (np.sum(x, axis=-1, keepdims=True) + eps))


def _split_heads(x: np.ndarray, n_heads: int) -> np.ndarray:
    """Turn (..., L, d) into (..., h, L, dh)."""
    return np.moveaxis(x.reshape(*x.shape[:-1], n_heads, x.shape[-1] // n_heads), -2, -3)


def _merge_heads(x: np.ndarray) -> np.ndarray:
    """Turn (..., h, L, dh) into (..., L, d)."""
    x = np.moveaxis(x, -3, -2)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _check_options(variant: str, form: str, eps: float) -> None:
    require_one_of("variant", variant, VARIANTS)
    require_one_of("form", form, FORMS)
    require(np.isfinite(eps) and eps >= 0, f"eps={eps!r} must be finite and >= 0")


def _tokens(name: str, value: Any, weights: AttentionWeights, n_heads: int) -> Any:
    """Return at least one token of a width that heads and weights fit."""
    array = as_float(name, value)
    require(
        array.ndim >= 2 and array.shape[-2] > 0, f"{name} has shape {array.shape}, expected (..., L, d) with L >= 1"
    )
    d = array.shape[-1]
    require(index(n_heads) >= 1 and d % n_heads == 0, f"n_heads={n_heads!r} must divide the width d = {d}")
    for field, W in zip(weights._fields, weights, strict=True):
        require_shape(f"weights.{field}", W, (d, d))
    return array


def _covering(variant: str, reference: Any, length: int, weights: AttentionWeights, n_heads: int) -> Any:
    """Return as much of the reference stream as there is input."""
    require(reference is not None, f"reference=None, but variant={variant!r} needs a reference stream")
    reference = _tokens("reference", reference, weights, n_heads)
    require(
        reference.shape[-2] >= length,
        f"reference has length {reference.shape[-2]}: the reference sequence must cover the input length {length}",
    )
    return reference[..., :length, :]
