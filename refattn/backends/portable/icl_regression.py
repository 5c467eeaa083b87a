"""Attention for in-context linear regression in the array-API standard.

Derived from the equations by another route than the reference: the layer works with merged matrices, its gradient is
taken factor by factor through keys and values, descent weighs responses by scores instead of averaging a gradient, and
ridge regression is solved for the question instead of for the rule, among the examples where they are few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.backends.pointwise import softmax
from refattn.layers.icl_regression import ICLAttentionWeights, IclOutput

__all__ = [
    "debiased_gd_estimator",
    "double_softmax_attention",
    "gd_estimator",
    "icl_attention",
    "icl_attention_vjp",
    "linear_attention",
    "preconditioner",
    "ridge_estimator",
    "softmax_estimator",
]


def icl_attention(z_q: Any, z: Any, weights: Any, *, biases: Any = None) -> IclOutput:
    """Attend by merged matrices: the examples are projected by none of them before they have been averaged."""
    xp = array_namespace(z)
    w_k, w_q, w_v, w_o = weights
    t = z_q @ _t(w_q)  # (H, B, D)
    if biases is not None:
        t = t + biases.b_q[:, None, :]
    t = xp.permute_dims(t @ w_k, (1, 0, 2))  # what each head asks of a token, (B, H, D); a key's bias shifts all alike
    p = softmax(t @ _t(z) / w_k.shape[-1] ** 0.5)  # (B, H, L)
    z_bar = p @ z  # (B, H, D)
    y_hat = _from_heads(z_bar, _t(w_o @ w_v))  # (B, n_out)
    if biases is not None:
        y_hat = y_hat + xp.sum((w_o @ biases.b_v[..., None])[..., 0], axis=0) + biases.b_o
    return IclOutput(y_hat, p)


def icl_attention_vjp(z_q: Any, z: Any, weights: Any, dy_hat: Any) -> ICLAttentionWeights:
    """Pull back through projected queries, keys and values, one matrix at a time."""
    xp = array_namespace(z)
    w_k, w_q, w_v, w_o = weights
    root = w_k.shape[-1] ** 0.5
    tokens = z[:, None, :, :]
    q = xp.permute_dims(z_q @ _t(w_q), (1, 0, 2))[:, :, None, :]  # (B, H, 1, D)
    k, v = tokens @ _t(w_k), tokens @ _t(w_v)  # (B, H, L, D)
    p = softmax(q @ _t(k) / root)  # (B, H, 1, L)
    o = p @ v  # (B, H, 1, D)
    d_o = dy_hat[:, None, None, :] @ w_o  # (B, H, 1, D)
    d_p = d_o @ _t(v)  # (B, H, 1, L)
    d_s = p * (d_p - xp.sum(p * d_p, axis=-1, keepdims=True)) / root  # (B, H, 1, L)
    d_q, d_k, d_v = d_s @ k, _t(d_s) @ q, _t(p) @ d_o
    return ICLAttentionWeights(
        xp.sum(_t(d_k) @ tokens, axis=0),
        xp.sum(_t(d_q) @ z_q[:, None, None, :], axis=0),
        xp.sum(_t(d_v) @ tokens, axis=0),
        xp.sum(dy_hat[:, None, :, None] @ o, axis=0),
    )


def softmax_estimator(x: Any, y: Any, x_q: Any, omega: Any, mu: Any) -> Any:
    """Smooth the responses head by head; a kernel of one number or of a diagonal never becomes a matrix."""
    xp = array_namespace(x)
    if omega.ndim == 3:
        asked = xp.permute_dims(x_q @ _t(omega), (1, 0, 2))  # (B, H, d)
    else:
        asked = x_q[:, None, :] * (omega if omega.ndim == 2 else omega[:, None])
    p = softmax(asked @ _t(x))  # (B, H, L)
    if mu.ndim == 1:
        combined = xp.sum(mu[:, None] * p, axis=1)  # (B, L)
        return xp.sum(combined * y, axis=-1)
    combined = xp.sum(mu[:, :, None] * p[:, None, :, :], axis=2)  # (B, N, L)
    return xp.sum(combined * _t(y), axis=-1)


def gd_estimator(x: Any, y: Any, x_q: Any, step: Any) -> Any:
    """Average the responses by their scores."""
    xp = array_namespace(x)
    return xp.mean(_scores(x, x_q, step) * y, axis=-1)


def debiased_gd_estimator(x: Any, y: Any, x_q: Any, step: Any) -> Any:
    """Average the responses, less their mean, by their scores, less their mean."""
    xp = array_namespace(x)
    s = _scores(x, x_q, step)
    return xp.mean((s - xp.mean(s, axis=-1, keepdims=True)) * (y - xp.mean(y, axis=-1, keepdims=True)), axis=-1)


def ridge_estimator(x: Any, y: Any, x_q: Any, ridge: float) -> Any:
    """Solve among examples, x_qᵀ Xᵀ (X Xᵀ + ridge·I)⁻¹ y, where they are fewer than the covariates."""
    xp = array_namespace(x)
    narrow = x.dtype
    x, y, x_q = (_at_least_float32(a) for a in (x, y, x_q))
    L, d = x.shape[1:]
    if ridge == 0:
        found = x_q[:, None, :] @ (xp.linalg.pinv(x) @ y[..., None])
    elif d > L:
        gram = x @ _t(x) + ridge * xp.eye(L, dtype=x.dtype, device=device(x))  # (B, L, L)
        found = (x_q[:, None, :] @ _t(x)) @ xp.linalg.solve(gram, y[..., None])
    else:
        gram = _t(x) @ x + ridge * xp.eye(d, dtype=x.dtype, device=device(x))  # (B, d, d)
        found = _t(xp.linalg.solve(gram, x_q[..., None])) @ (_t(x) @ y[..., None])
    return xp.astype(found[:, 0, 0], narrow)


def preconditioner(cov: Any, length: int, noise_var: float, *, debiased: bool = True) -> Any:
    """Solve for the inverse."""
    xp = array_namespace(cov)
    wide = _at_least_float32(cov)
    eye = xp.eye(wide.shape[0], dtype=wide.dtype, device=device(wide))
    total = xp.sum(eye * wide)
    scaled = wide if debiased else wide * ((length + 1) / length)
    return xp.astype(xp.linalg.solve(scaled + eye * ((total + wide.shape[0] * noise_var) / length), eye), cov.dtype)


def linear_attention(z_q: Any, z: Any, kq: Any, ov: Any, *, length: int | None = None) -> Any:
    """Form the second moments of the examples first; no score is ever computed."""
    moments = _t(z) @ z / (z.shape[1] if length is None else length)  # (B, D, D)
    xp = array_namespace(z)
    asked = xp.permute_dims(z_q @ _t(kq), (1, 0, 2))  # (B, H, D)
    return _from_heads(asked @ moments, ov)


def double_softmax_attention(x: Any, weights: Any) -> Any:
    """Normalise over all positions, then the exponentials of the weights over those that may be seen."""
    xp = array_namespace(x)
    w_k, w_q, w_v, w_o = weights
    tokens = x[:, None, :, :]
    N, D = x.shape[1:]
    if N == 0:
        return x @ xp.sum(_t(w_o @ w_v), axis=0)
    p = softmax((tokens @ _t(w_q)) @ _t(tokens @ _t(w_k)) / D**0.5)  # (B, H, N, N)
    seen = xp.asarray(np.tri(N), dtype=x.dtype, device=device(x))
    e = xp.exp(p) * seen  # weights lie in [0, 1]: nothing to guard against
    return xp.sum(((e / xp.sum(e, axis=-1, keepdims=True)) @ tokens) @ _t(w_o @ w_v), axis=1)


def _t(a: Any) -> Any:
    return array_namespace(a).matrix_transpose(a)


def _from_heads(z_bar: Any, ov: Any) -> Any:
    """Sum over heads and entries: (B, H, D) and (H, D, n_out) to (B, n_out), as one matrix product."""
    xp = array_namespace(z_bar)
    B, H, D = z_bar.shape
    return xp.reshape(z_bar, (B, H * D)) @ xp.reshape(ov, (H * D, ov.shape[-1]))


def _scores(x: Any, x_q: Any, step: Any) -> Any:
    """Return x_qᵀ Γ x_i of every example, (B, L)."""
    moved = x_q * step if getattr(step, "ndim", 0) == 0 else x_q @ step
    return (x @ moved[..., None])[..., 0]


def _at_least_float32(a: Any) -> Any:
    """Widen 16-bit arrays: solvers do not take them."""
    xp = array_namespace(a)
    return a if a.dtype in (xp.float32, xp.float64) else xp.astype(a, xp.float32)
