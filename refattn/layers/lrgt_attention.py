"""Multi-head attention as every part of LRGT uses it, and the weights that the parts share.

From the Long-Range Grouping Transformer (2308.08724); equation source ``models/transformer_base`` of the released code,
commit a09fc43. Linear maps are stored (in, out) and used as ``x @ w``.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.norms import layer_norm
from refattn.primitives.softmax import softmax

__all__ = [
    "BlockWeights",
    "GroupAttentionWeights",
    "affine",
    "as_weights",
    "attend",
    "check_attention",
    "mlp",
    "multi_head_attention",
    "project",
    "transformer_block",
]


class GroupAttentionWeights(NamedTuple):
    """Parameters of one attention layer.

    Attributes
    ----------
    w_q, w_k, w_v, w_o : ndarray, shape (D, D)
        Queries, keys, values, output. Head h owns columns h·d … (h + 1)·d − 1 of the first three.
    b_q, b_k, b_v : ndarray, shape (D,), optional
        Biases of the first three; only the encoder has them.
    b_o : ndarray, shape (D,)
        Bias of the output.
    ifs_w, ifs_b : ndarray, shapes (D, 3, 3) and (D,), optional
        The inter-view feature signature, one kernel for each channel; only the encoder has it.
    """

    w_q: np.ndarray
    w_k: np.ndarray
    w_v: np.ndarray
    w_o: np.ndarray
    b_o: np.ndarray
    b_q: np.ndarray | None = None
    b_k: np.ndarray | None = None
    b_v: np.ndarray | None = None
    ifs_w: np.ndarray | None = None
    ifs_b: np.ndarray | None = None


class BlockWeights(NamedTuple):
    """Parameters of one transformer block.

    Attributes
    ----------
    norm1_w, norm1_b, norm2_w, norm2_b : ndarray, shape (D,)
        The two layer normalisations.
    attn : GroupAttentionWeights
        The attention.
    w_1, b_1, w_2, b_2 : ndarray, shapes (D, E), (E,), (E, D), (D,)
        The MLP; E / D is the MLP ratio.
    """

    norm1_w: np.ndarray
    norm1_b: np.ndarray
    attn: GroupAttentionWeights
    norm2_w: np.ndarray
    norm2_b: np.ndarray
    w_1: np.ndarray
    b_1: np.ndarray
    w_2: np.ndarray
    b_2: np.ndarray


def multi_head_attention(
    x: Any,
    context: Any,
    weights: GroupAttentionWeights,
    *,
    num_heads: int,
    scale: float | None = None,
    key_bias: Any = None,
) -> np.ndarray:
    """Attend from each token of ``x`` to all tokens of ``context``: softmax(q kᵀ·scale + bias) v, projected.

    Parameters
    ----------
    x : array_like, shape (..., N, D)
        Where queries come from.
    context : array_like, shape (..., M, D)
        Where keys and values come from; ``x`` itself for self-attention.
    weights : GroupAttentionWeights
        Parameters; the signature is not used.
    num_heads : int
        The number of heads H, a divisor of D.
    scale : float, optional
        Factor of the logits; (D/H)^(−1/2) if not given.
    key_bias : array_like, shape (..., M), optional
        Added to the logits of each key, the same for all heads and queries.

    Returns
    -------
    ndarray, shape (..., N, D)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If shapes disagree, the heads do not divide D, or the scale is not finite.
    """
    x, context = as_float("x", x), as_float("context", context)
    require(x.ndim >= 2, f"x has shape {x.shape}, expected (..., N, D)")
    D = x.shape[-1]
    require_shape("context", context, (*x.shape[:-2], *context.shape[-2:-1], D))
    weights = as_weights("weights", weights, x.dtype)
    check_attention(weights, D, num_heads, scale)
    if key_bias is not None:
        key_bias = as_float("key_bias", key_bias)
        require_shape("key_bias", key_bias, context.shape[:-1])
    q, k, v = project(x, context.astype(x.dtype, copy=False), weights)
    out, _ = attend(q, k, v, num_heads=num_heads, scale=scale, key_bias=key_bias)
    return affine(out, weights.w_o, weights.b_o)


def transformer_block(
    x: np.ndarray, weights: BlockWeights, *, num_heads: int, eps: float, scale: float | None = None
) -> np.ndarray:
    """Exchange information between all tokens of ``x`` (..., N, D), then transform each token; it checks the widths."""
    # eq: lrgt-6
    normed = layer_norm(x, weights.norm1_w, weights.norm1_b, eps=eps)
    x = x + multi_head_attention(normed, normed, weights.attn, num_heads=num_heads, scale=scale)
    y: np.ndarray = x + mlp(layer_norm(x, weights.norm2_w, weights.norm2_b, eps=eps), weights)
    return y


def project(x: np.ndarray, context: np.ndarray, weights: GroupAttentionWeights) -> tuple[np.ndarray, ...]:
    """Return queries (..., N, D) of ``x``, and keys and values (..., M, D) of ``context``; it checks nothing."""
    # eq: lrgt-2
    return (
        affine(x, weights.w_q, weights.b_q),
        affine(context, weights.w_k, weights.b_k),
        affine(context, weights.w_v, weights.b_v),
    )


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    num_heads: int,
    scale: float | None = None,
    key_bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the averaged values (..., N, D) and the weights (..., H, N, M) of their averages; it checks nothing."""
    q, k, v = (_split_heads(t, num_heads) for t in (q, k, v))  # (..., H, N | M, d)
    s = q @ np.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)  # (..., H, N, M)
    if key_bias is not None:
        s = s + key_bias[..., None, None, :]
    # eq: lrgt-3
    a = softmax(s, axis=-1)  # (..., H, N, M)
    out = np.swapaxes(a @ v, -2, -3)  # (..., N, H, d)
    return out.reshape(*out.shape[:-2], out.shape[-2] * out.shape[-1]), a


def affine(x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """Return ``x @ w``, plus a bias where there is one."""
    y: np.ndarray = x @ w if b is None else x @ w + b
    return y


def mlp(x: np.ndarray, weights: Any) -> np.ndarray:
    """Return GELU(x W₁ + b₁) W₂ + b₂ for weights with these four names."""
    return affine(gelu(affine(x, weights.w_1, weights.b_1)), weights.w_2, weights.b_2)


def as_weights(name: str, tree: Any, dtype: np.dtype[Any]) -> Any:
    """Return a tree of weights as floating arrays of one dtype; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        pairs = zip(tree._fields, tree, strict=True)
        return type(tree)(*(as_weights(f"{name}.{field}", branch, dtype) for field, branch in pairs))
    if isinstance(tree, (tuple, list)):
        return tuple(as_weights(f"{name}[{i}]", branch, dtype) for i, branch in enumerate(tree))
    return as_float(name, tree).astype(dtype, copy=False)


def check_attention(weights: GroupAttentionWeights, D: int, num_heads: int, scale: float | None) -> None:
    """Refuse maps that are not (D, D), biases that are not (D,), heads that do not divide D, and infinite scales."""
    require(index(num_heads) >= 1 and D % num_heads == 0, f"num_heads={num_heads!r} must divide the width D={D}")
    require(D >= 1, "x has no channels: the width D must be at least 1")
    require(scale is None or np.isfinite(scale), f"scale={scale!r} must be finite")
    for name, array in zip(weights._fields, weights, strict=True):
        if array is not None:
            shape = (D, 3, 3) if name == "ifs_w" else (D, D) if name.startswith("w") else (D,)
            require_shape(f"weights.{name}", array, shape)


def _split_heads(x: np.ndarray, num_heads: int) -> np.ndarray:
    """Give each head a run of neighbouring channels: (..., N, D) to (..., H, N, d)."""
    return np.swapaxes(x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads), -2, -3)
