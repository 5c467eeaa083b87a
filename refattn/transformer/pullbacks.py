"""The steps of a transformer, each with its vector-Jacobian product beside it.

Every function returns its value and its pullback: a function that takes the gradient of a loss with respect to the
value and returns the gradients with respect to the arguments, in their order. The forward half says the same as
`refattn.transformer.block`, without hook points; what the backward half needs again it keeps in the closure.

Shapes: B batch, T tokens, H query heads, G key/value heads, e head width; N stands for any leading axes.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse, special

from refattn.primitives.rotary import rope

if TYPE_CHECKING:
    from collections.abc import Callable

    Pullback = Callable[[np.ndarray], Any]

__all__ = ["ACTIVATIONS", "attention", "cross_entropy", "embedding", "heads_linear", "linear", "norm", "rotation"]


def embedding(table: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, Pullback]:
    """Look ids (N) up in a table (V, d): (N, d). Rows that are looked up twice gather both gradients."""
    # eq: embed

    def pull(d_out: np.ndarray) -> np.ndarray:
        flat = ids.reshape(-1)
        chosen = sparse.csr_array(
            (np.ones(flat.size, table.dtype), (flat, np.arange(flat.size))), (len(table), flat.size)
        )
        return np.asarray(chosen @ d_out.reshape(flat.size, -1))

    return table[ids], pull


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, Pullback]:
    """Return x W + b: (N, i) with (i, o) to (N, o); as one product of matrices."""
    flat = x.reshape(-1, x.shape[-1])
    out = flat @ weight
    if bias is not None:
        out += bias

    def pull(d_out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        d_flat = d_out.reshape(-1, d_out.shape[-1])
        return (d_flat @ weight.T).reshape(x.shape), flat.T @ d_flat, np.sum(d_flat, axis=0)

    return out.reshape(*x.shape[:-1], weight.shape[-1]), pull


def heads_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, Pullback]:
    """Return x W + b for every head: (B, T, d) with (H, d, e) and (H, e) to (B, T, H, e)."""
    # eq: qkv
    heads, d, e = weight.shape
    side_by_side = weight.swapaxes(0, 1).reshape(d, heads * e)
    out, pull_linear = linear(x, side_by_side, bias.reshape(-1))

    def pull(d_out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        d_x, d_weight, d_bias = pull_linear(d_out.reshape(*x.shape[:-1], heads * e))
        return d_x, d_weight.reshape(d, heads, e).swapaxes(0, 1), d_bias.reshape(heads, e)

    return out.reshape(*x.shape[:-1], heads, e), pull


def norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, *, centred: bool, eps: float
) -> tuple[np.ndarray, Pullback]:
    """Return LayerNorm (centred) or RMSNorm of the last axis, with n = (x − mean) r and out = n w + b."""
    # eq: norm
    shifted = x - np.mean(x, axis=-1, keepdims=True) if centred else x
    r = 1 / np.sqrt(_mean_product(shifted, shifted) + np.asarray(eps, x.dtype))  # (N, 1)
    n = shifted * r
    out = n * weight

    def pull(d_out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lead = tuple(range(x.ndim - 1))
        d_n = d_out * weight
        # eq: norm-gradient
        d_x = n * _mean_product(d_n, n)
        np.subtract(d_n, d_x, out=d_x)
        if centred:
            d_x -= np.mean(d_n, axis=-1, keepdims=True)
        d_x *= r
        return d_x, np.sum(d_out * n, axis=lead), np.sum(d_out, axis=lead)

    return out if bias is None else out + bias, pull


def _mean_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the mean of a ⊙ b over the last axis, which stays."""
    return np.asarray(np.einsum("...i,...i->...", a, b)[..., None] / np.asarray(a.shape[-1], a.dtype))


def rotation(x: np.ndarray, angles: np.ndarray | None) -> tuple[np.ndarray, Pullback]:
    """Turn channel pairs of (B, T, H, e) by angles (B or 1, T, r/2); a gradient turns back. None turns nothing."""
    if angles is None:
        return x, lambda d_out: d_out
    # eq: rope
    return rope(x, angles[:, :, None]), lambda d_out: rope(d_out, angles[:, :, None], inverse=True)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray, scale: float
) -> tuple[np.ndarray, Pullback]:
    """Return softmax(scale q kᵀ) v per head: queries (B, T, H, e), keys and values (B, T, G, e), output like queries.

    ``visible`` is (T, T), and each query sees itself, so that no row is empty. Query head j reads key/value head
    j // (H/G), whose gradient sums over the H/G heads that share it.
    """
    batch, t, _, e = q.shape
    groups = k.shape[2]
    scale = q.dtype.type(scale)
    grouped = np.ascontiguousarray(q.reshape(batch, t, groups, -1, e).transpose(0, 2, 3, 1, 4))  # (B, G, H/G, T, e)
    keys, values = (np.ascontiguousarray(x.transpose(0, 2, 1, 3))[:, :, None] for x in (k, v))  # (B, G, 1, T, e)
    # eq: scores, pattern
    weights = grouped @ np.swapaxes(keys, -1, -2)  # (B, G, H/G, T, T)
    weights *= scale
    weights += np.where(visible, q.dtype.type(0), q.dtype.type(-np.inf))
    weights -= np.max(weights, axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= np.sum(weights, axis=-1, keepdims=True)

    def apart(grouped: np.ndarray) -> np.ndarray:
        return grouped.transpose(0, 3, 1, 2, 4).reshape(batch, t, -1, e)

    def pull(d_z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        d_out = np.ascontiguousarray(d_z.reshape(batch, t, groups, -1, e).transpose(0, 2, 3, 1, 4))
        # eq: softmax-gradient
        d_scores = d_out @ np.swapaxes(values, -1, -2)
        d_scores -= np.einsum("...i,...i->...", weights, d_scores)[..., None]
        d_scores *= weights
        d_scores *= scale
        d_k = np.swapaxes(d_scores, -1, -2) @ grouped
        d_v = np.swapaxes(weights, -1, -2) @ d_out
        d_k, d_v = (apart(np.sum(d, axis=2, keepdims=True)) for d in (d_k, d_v))
        return apart(d_scores @ keys), d_k, d_v

    # eq: z
    return apart(weights @ values), pull


def _silu(x: np.ndarray) -> tuple[np.ndarray, Pullback]:
    sigma = special.expit(x)
    return x * sigma, lambda d_out: d_out * sigma * (1 + x * (1 - sigma))


def _gelu(x: np.ndarray) -> tuple[np.ndarray, Pullback]:
    chance = special.ndtr(x)
    return x * chance, lambda d_out: d_out * (chance + x * np.exp(-0.5 * x * x) * x.dtype.type(1 / sqrt(2 * pi)))


def _gelu_tanh(x: np.ndarray) -> tuple[np.ndarray, Pullback]:
    root, cubic = x.dtype.type(sqrt(2 / pi)), x.dtype.type(0.044715)
    square = x * x
    tanh = root * x
    tanh *= 1 + cubic * square
    np.tanh(tanh, out=tanh)
    half = 1 + tanh
    half *= 0.5

    def pull(d_out: np.ndarray) -> np.ndarray:
        # d_out (half + x/2 (1 − tanh²) √(2/π) (1 + 3 · 0.044715 x²)), in place: this is memory traffic
        factor = tanh * tanh
        np.subtract(1, factor, out=factor)
        slope = 0.5 * x
        slope *= factor
        slope *= root
        np.multiply(square, 3 * cubic, out=factor)
        factor += 1
        slope *= factor
        slope += half
        slope *= d_out
        return slope

    return x * half, pull


ACTIVATIONS = {"gelu_new": _gelu_tanh, "gelu": _gelu, "silu": _silu}
"""The point-wise functions of MLPs, by the names that configurations use."""


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[float, Callable[[], np.ndarray]]:
    """Return the mean of −log softmax(logits)[target] over tokens (N, V) and (N); its pullback takes nothing."""
    shifted = logits - np.max(logits, axis=-1, keepdims=True)
    chances = np.exp(shifted)
    total = np.sum(chances, axis=-1, keepdims=True)
    at = targets[..., None]
    # eq: loss
    loss = np.mean(np.log(total) - np.take_along_axis(shifted, at, axis=-1))

    def pull() -> np.ndarray:
        # eq: loss-gradient
        d_logits = chances / total
        np.put_along_axis(d_logits, at, np.take_along_axis(d_logits, at, axis=-1) - 1, axis=-1)
        d_logits /= targets.size
        return np.asarray(d_logits)

    return float(loss), pull
