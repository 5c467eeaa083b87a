"""Self-attention whose queries and keys are mixed with a context before they meet (Yang et al., 1902.05766).

A context is a vector for the whole sequence, or one for each token; a gate of each token says how much of it enters.
Labels (cta-1) … (cta-6) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.activations import sigmoid
from refattn.primitives.arguments import as_bool, as_float, require, require_shape
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ContextAttentionResult",
    "ContextAttentionWeights",
    "context_attention_flops",
    "context_aware_attention",
    "context_gates",
    "deep_context",
    "deep_global_context",
    "global_context",
    "token_mask",
]


class ContextAttentionWeights(NamedTuple):
    """The weights of one layer, used as ``x @ w + b``; head h owns columns h·d … (h + 1)·d − 1 of wq, wk and wv.

    Attributes
    ----------
    wq, bq, wk, bk, wv, bv : ndarray, shape (D, D) and (D,)
        Projections to queries, keys and values.
    uq, uk : ndarray, shape (d_c, D)
        From the context into the spaces of queries and keys, without biases.
    vq_h, vq_c, bq_gate : ndarray, shape (D,), (D,) and ()
        The gate of the queries: what it reads from the query, from the projected context, and its bias.
    vk_h, vk_c, bk_gate : ndarray, shape (D,), (D,) and ()
        The gate of the keys.
    wo, bo : ndarray, shape (D, D) and (D,)
        Output projection.

    Notes
    -----
    Without a context the eight fields from ``uq`` to ``bk_gate`` are not read and may be None.
    """

    wq: np.ndarray
    bq: np.ndarray
    wk: np.ndarray
    bk: np.ndarray
    wv: np.ndarray
    bv: np.ndarray
    uq: np.ndarray | None
    uk: np.ndarray | None
    vq_h: np.ndarray | None
    vq_c: np.ndarray | None
    bq_gate: np.ndarray | None
    vk_h: np.ndarray | None
    vk_c: np.ndarray | None
    bk_gate: np.ndarray | None
    wo: np.ndarray
    bo: np.ndarray


class ContextAttentionResult(NamedTuple):
    """What the layer computed on its way.

    Attributes
    ----------
    out : ndarray, shape (..., N, D)
        The output.
    lambda_q, lambda_k : ndarray, shape (..., N, 1), or None
        The gates; None without a context.
    weights : ndarray, shape (..., H, N, N)
        The attention weights.
    """

    out: np.ndarray
    lambda_q: np.ndarray | None
    lambda_k: np.ndarray | None
    weights: np.ndarray


def global_context(x: Any, mask: Any = None) -> np.ndarray:
    """Return the mean of the real tokens, one vector that stands for the whole sequence.

    Parameters
    ----------
    x : array_like, shape (..., N, D)
        Tokens.
    mask : array_like of bool, shape (..., N), optional
        True = real token.

    Returns
    -------
    ndarray, shape (..., 1, D)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If a sequence has no real token or the mask does not fit.
    """
    x = as_float("x", x)
    m = token_mask(mask, x)[..., None]  # (..., N, 1)
    # eq: cta-1
    total, count = np.sum(np.where(m, x, 0), axis=-2, keepdims=True), np.sum(m, axis=-2, keepdims=True)
    return np.asanyarray(total / count.astype(x.dtype))  # (..., 1, D)


def deep_context(layers: Sequence[Any]) -> np.ndarray:
    """Lay the outputs of the lower layers side by side, token by token.

    Parameters
    ----------
    layers : sequence of array_like, shape (..., N, D) each
        H¹ … H^{l−1}, at least one.

    Returns
    -------
    ndarray, shape (..., N, (l − 1)·D)
        A context of its own for each token.

    Raises
    ------
    ValueError
        If there is no layer, or shapes differ.
    """
    # eq: cta-2
    return np.asanyarray(np.concatenate(_same_shape(layers), axis=-1))


def deep_global_context(layers: Sequence[Any], mask: Any = None) -> np.ndarray:
    """Lay the means of the inputs of all layers so far side by side.

    Parameters
    ----------
    layers : sequence of array_like, shape (..., N, D) each
        The inputs of layers 1 … l, at least one; with one it is `global_context`.
    mask : array_like of bool, shape (..., N), optional
        True = real token.

    Returns
    -------
    ndarray, shape (..., 1, l·D)
        In the dtype of the layers.

    Raises
    ------
    ValueError
        If there is no layer, shapes differ, or a sequence has no real token.
    """
    # eq: cta-3
    return np.asanyarray(np.concatenate([global_context(x, mask) for x in _same_shape(layers)], axis=-1))


def context_gates(q: Any, k: Any, context: Any, weights: ContextAttentionWeights) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of the context each token lets into its query and into its key.

    Parameters
    ----------
    q, k : array_like, shape (..., N, D)
        Queries and keys before heads are split.
    context : array_like, shape (..., 1, d_c) or (..., N, d_c)
        One context for all tokens, or one for each.
    weights : ContextAttentionWeights
        Only the fields of context and gates are read.

    Returns
    -------
    lambda_q, lambda_k : ndarray, shape (..., N, 1)
        Between 0 (the token alone) and 1 (the context alone).

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    q, k = as_float("q", q), as_float("k", k)
    require(q.ndim >= 2 and q.shape == k.shape, f"q and k have shapes {q.shape} and {k.shape}, expected equal ones")
    context, weights = _checked_context(context, weights, q)
    return _gates(q, k, context @ weights.uq, context @ weights.uk, weights)


def context_aware_attention(
    x: Any,
    weights: ContextAttentionWeights,
    context: Any = None,
    *,
    n_heads: int,
    mask: Any = None,
    return_aux: bool = False,
) -> Any:
    """Attend with queries and keys that carry some of the context.

    1. Project the tokens to Q, K, V, and the context into the spaces of Q and K.
    2. Gate: mix each query and each key with its context; values stay as they are.
    3. Split into H heads, take the softmax over real tokens, average, merge, project.

    Parameters
    ----------
    x : array_like, shape (..., N, D)
        Tokens.
    weights : ContextAttentionWeights
        See there.
    context : array_like, shape (..., 1, d_c) or (..., N, d_c), optional
        None is standard multi-head attention.
    n_heads : int
        H, a divisor of D.
    mask : array_like of bool, shape (..., N), optional
        True = real token. Padded tokens are seen by none; what they see themselves is computed like the rest.
    return_aux : bool
        Return a `ContextAttentionResult` instead of the output.

    Returns
    -------
    ndarray, shape (..., N, D)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If D is no multiple of H, a weight or the context has the wrong shape, or a sequence has no real token.

    Notes
    -----
    The gate is one number per token, shared by all heads, because heads are split after the mixing. The released code
    gives the gates a bias, the paper's formula has none [recalled]: ``bq_gate = bk_gate = 0`` is the formula. The
    code adds −1e9 to the scores of padded keys; here they are left out.

    References
    ----------
    1902.05766, and `layers/attention_new.py` of its authors.
    """
    x, weights, mask = _checked(x, weights, n_heads, mask)
    q, k, v = x @ weights.wq + weights.bq, x @ weights.wk + weights.bk, x @ weights.wv + weights.bv  # 1
    lambda_q = lambda_k = None
    if context is not None:
        context, weights = _checked_context(context, weights, x)
        c_q, c_k = context @ weights.uq, context @ weights.uk  # (..., 1 or N, D)
        lambda_q, lambda_k = _gates(q, k, c_q, c_k, weights)  # (..., N, 1)
        # eq: cta-5
        q = (1 - lambda_q) * q + lambda_q * c_q  # (..., N, D)
        k = (1 - lambda_k) * k + lambda_k * c_k  # (..., N, D)
    q, k, v = (_split(t, n_heads) for t in (q, k, v))  # (..., H, N, d)
    # eq: cta-6
    a = softmax(q @ np.swapaxes(k, -1, -2) / q.shape[-1] ** 0.5, where=mask[..., None, None, :])  # (..., H, N, N)
    out = np.swapaxes(a @ v, -2, -3).reshape(x.shape) @ weights.wo + weights.bo  # (..., N, D)
    return ContextAttentionResult(out, lambda_q, lambda_k, a) if return_aux else out


def context_attention_flops(length: int, width: int, context_width: int = 0, *, per_token: bool = False) -> int:
    """Return the floating-point operations of one layer on one sequence, multiplications and additions apart.

    Parameters
    ----------
    length, width, context_width : int
        N, D and d_c; 0 is standard attention.
    per_token : bool
        Whether every token has a context of its own, as in `deep_context`.

    Returns
    -------
    int
        8ND² + 4N²D, and with a context 4 c d_c D for its projections, 4(N + c)D for the gates and 6ND for the mixing,
        where c is 1 or N.

    Raises
    ------
    ValueError
        If a size is negative.
    """
    sizes = length, width, context_width
    require(min(sizes) >= 0, f"sizes {sizes!r} must be >= 0")
    plain = 8 * length * width**2 + 4 * length**2 * width
    if context_width == 0:
        return plain
    contexts = length if per_token else 1
    return plain + 4 * contexts * context_width * width + 4 * (length + contexts) * width + 6 * length * width


def token_mask(mask: Any, x: np.ndarray) -> np.ndarray:
    """Return which tokens of ``x`` are real, refusing sequences without any.

    Parameters
    ----------
    mask : array_like of bool, shape (..., N), or None
        None = all.
    x : ndarray, shape (..., N, D)
        The tokens.

    Returns
    -------
    ndarray of bool, shape (..., N)
        Broadcast to the tokens.

    Raises
    ------
    ValueError
        If the mask is not boolean, does not fit, or hides a whole sequence.
    """
    require(x.ndim >= 2, f"x has shape {x.shape}, expected (..., N, D)")
    mask = np.ones(x.shape[:-1], bool) if mask is None else as_bool("mask", mask)
    require(mask.shape == x.shape[:-1], f"mask has shape {mask.shape}, expected {x.shape[:-1]}, one truth a token")
    seen = np.all(np.any(mask, axis=-1))
    require(seen, "mask hides a whole sequence: every sequence needs at least one unmasked token")
    return np.asarray(mask)


def _gates(q: Any, k: Any, c_q: Any, c_k: Any, weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both gates for contexts that are projected already."""
    # eq: cta-4
    lambda_q = sigmoid((q @ weights.vq_h + c_q @ weights.vq_c + weights.bq_gate)[..., None])  # (..., N, 1)
    lambda_k = sigmoid((k @ weights.vk_h + c_k @ weights.vk_c + weights.bk_gate)[..., None])  # (..., N, 1)
    return lambda_q, lambda_k


def _split(t: np.ndarray, n_heads: int) -> np.ndarray:
    """Give each head its columns: (..., N, D) to (..., H, N, d)."""
    return np.swapaxes(t.reshape(*t.shape[:-1], n_heads, t.shape[-1] // n_heads), -2, -3)


def _same_shape(layers: Sequence[Any]) -> list[np.ndarray]:
    arrays = [as_float(f"layers[{i}]", x) for i, x in enumerate(layers)]
    require(len(arrays) > 0, "layers is empty, expected at least one")
    for i, x in enumerate(arrays):
        require_shape(f"layers[{i}]", x, arrays[0].shape)
    return arrays


def _checked(x: Any, weights: ContextAttentionWeights, n_heads: int, mask: Any) -> tuple[Any, Any, np.ndarray]:
    """Return tokens, the weights that every layer has, and the mask."""
    x = as_float("x", x)
    mask = token_mask(mask, x)
    D = x.shape[-1]
    require(index(n_heads) >= 1 and D % n_heads == 0, f"n_heads={n_heads!r} must divide the width D={D} of x")
    shapes: dict[str, tuple[int, ...]]
    shapes = {name: (D, D) if name[0] == "w" else (D,) for name in ("wq", "bq", "wk", "bk", "wv", "bv", "wo", "bo")}
    return x, _cast(weights, shapes, x.dtype), mask


def _checked_context(context: Any, weights: ContextAttentionWeights, x: np.ndarray) -> tuple[Any, Any]:
    """Return the context and the weights that read it."""
    context = as_float("context", context)
    *lead, N, D = x.shape
    require(context.ndim >= 2, f"context has shape {context.shape}, expected (..., 1 or {N}, d_c)")
    *batch, tokens, d_c = context.shape
    require(tokens in (1, N), f"context has {tokens} tokens, expected 1 or {N}")
    fits = len(batch) == len(lead) and all(own in (1, given) for own, given in zip(batch, lead, strict=True))
    require(fits, f"context has shape {context.shape}, whose batch does not broadcast to {tuple(lead)}")
    shapes: dict[str, tuple[int, ...]] = {"uq": (d_c, D), "uk": (d_c, D), "bq_gate": (), "bk_gate": ()}
    shapes |= dict.fromkeys(("vq_h", "vq_c", "vk_h", "vk_c"), (D,))
    for name in shapes:
        require(getattr(weights, name) is not None, f"weights.{name} is None, but there is a context")
    return context.astype(x.dtype, copy=False), _cast(weights, shapes, x.dtype)


def _cast(weights: ContextAttentionWeights, shapes: dict[str, tuple[int, ...]], dtype: Any) -> ContextAttentionWeights:
    """Return the weights with the named ones checked and in the dtype of the tokens."""
    cast = {}
    for name, shape in shapes.items():
        value = as_float(f"weights.{name}", getattr(weights, name))
        require_shape(f"weights.{name}", value, shape)
        cast[name] = value.astype(dtype, copy=False)
    return weights._replace(**cast)
