"""Context-aware attention, gates, transport, fusion and label smoothing in the array-API standard.

Derived from the equations by another route than the reference: gates are exp(−softplus(−z)); the gate model scales
scores instead of vectors; a transport plan is balanced by products with the plan of the first step, where the
reference takes two logarithms of sums in every step; the smoothed loss is the sum of its two parts.

Under ``jax.jit`` Sinkhorn runs a fixed number of steps, ``tol=None``: its test of convergence depends on data. Exact
plans (EMD) need a solver that the standard does not have; `refattn.primitives.optimal_transport.emd_plan` is NumPy
and SciPy only. Measures of calibration sort numbers into bins, once for each evaluation, and have no twin either.
"""

from __future__ import annotations

import warnings
from typing import Any

from array_api_compat import array_namespace, device

from refattn.backends.pointwise import softmax
from refattn.layers.context_aware_attention import ContextAttentionResult

__all__ = [
    "context_aware_attention",
    "deep_global_context",
    "fuse_attention",
    "gated_self_attention",
    "label_smoothing_cross_entropy",
    "ot_cross_attention",
    "ot_kernel_attention",
    "sinkhorn_plan",
]

BLOCK = 8  # steps between two looks at the rows, where convergence is asked for


def deep_global_context(layers: Any, mask: Any = None) -> Any:
    """Return the means of the layers, side by side: a product with the row of weights 1/count."""
    xp = array_namespace(*layers)
    x = layers[0]
    real = xp.ones(x.shape[:-1], dtype=x.dtype, device=device(x)) if mask is None else xp.astype(mask, x.dtype)
    row = (real / xp.sum(real, axis=-1, keepdims=True))[..., None, :]  # (..., 1, N)
    hidden = None if mask is None else mask[..., None]
    return xp.concat([row @ (t if hidden is None else xp.where(hidden, t, 0 * x)) for t in layers], axis=-1)


def context_aware_attention(
    x: Any, weights: Any, context: Any = None, *, n_heads: int, mask: Any = None, return_aux: bool = False
) -> Any:
    """Attend with queries and keys moved towards the context by what their gates let in."""
    xp = array_namespace(x)
    W = weights
    q, k, v = x @ W.wq + W.bq, x @ W.wk + W.bk, x @ W.wv + W.bv
    lambda_q = lambda_k = None
    if context is not None:
        c_q, c_k = context @ W.uq, context @ W.uk
        lambda_q = _sigmoid(xp.sum(q * W.vq_h, axis=-1) + xp.sum(c_q * W.vq_c, axis=-1) + W.bq_gate)[..., None]
        lambda_k = _sigmoid(xp.sum(k * W.vk_h, axis=-1) + xp.sum(c_k * W.vk_c, axis=-1) + W.bk_gate)[..., None]
        q, k = q + lambda_q * (c_q - q), k + lambda_k * (c_k - k)
    d = x.shape[-1] // n_heads

    def split(t: Any) -> Any:
        return xp.moveaxis(xp.reshape(t, (*t.shape[:-1], n_heads, d)), -2, -3)

    a = softmax(split(q / d**0.5) @ xp.matrix_transpose(split(k)), None if mask is None else mask[..., None, None, :])
    out = xp.reshape(xp.moveaxis(a @ split(v), -3, -2), x.shape) @ W.wo + W.bo
    return ContextAttentionResult(out, lambda_q, lambda_k, a) if return_aux else out


def gated_self_attention(q: Any, k: Any, v: Any, weights: Any, *, mask: Any = None) -> Any:
    """Attend with scores multiplied by the gate of their query and by the gate of their key."""
    xp = array_namespace(q, k, v)
    W = weights
    gates = _sigmoid(((q @ W.w_gq + W.b_gq) * (k @ W.w_gk + W.b_gk)) @ W.w_g + W.b_g)
    s = gates[..., :, :1] * (q @ xp.matrix_transpose(k)) * xp.matrix_transpose(gates[..., :, 1:])
    return softmax(s / q.shape[-1] ** 0.5, None if mask is None else mask[..., None, None, :]) @ v


def sinkhorn_plan(a: Any, b: Any, cost: Any, reg: float, *, tol: float | None = 1e-9, max_iter: int = 10_000) -> Any:
    """Balance the kernel exp(−C/ε); with ``tol``, look at the rows every few steps. Float32 reaches about 1e-7.

    Scalings are numbers here, not logarithms as in the reference: an ε so small that they leave the dtype's range
    cannot be balanced.
    """
    return _balanced(-cost / reg, a, b, tol=tol, steps=max_iter)


def ot_cross_attention(
    source: Any,
    target: Any,
    *,
    reg: float,
    normalize: str | None = "max",
    tol: float | None = 1e-9,
    max_iter: int = 10_000,
) -> Any:
    """Return the mixture of target tokens that each source token is transported to."""
    xp = array_namespace(source, target)
    difference = source[..., :, None, :] - target[..., None, :, :]
    cost = xp.sum(difference * difference, axis=-1)
    if normalize is not None:
        scale = xp.max(cost, axis=(-2, -1), keepdims=True) if normalize == "max" else _median(cost)
        cost = cost / xp.where(scale > 0, scale, xp.ones_like(scale))
    n, m = cost.shape[-2:]
    a, b = (xp.full((count,), 1.0 / count, dtype=cost.dtype, device=device(cost)) for count in (n, m))
    plan = _balanced(-cost / reg, a, b, tol=tol, steps=max_iter)
    return (plan / xp.sum(plan, axis=-1, keepdims=True)) @ target


def ot_kernel_attention(
    x: Any, reference: Any, *, eps: float, n_iter: int = 100, mask: Any = None, return_weights: bool = False
) -> Any:
    """Balance exp(x·w/ε) between tokens of mass p/n and references of mass 1."""
    xp = array_namespace(x, reference)
    heads, p, d = reference.shape
    logits = x[..., None, :, :] @ xp.matrix_transpose(reference) / eps  # (..., H, n, p)
    real = xp.ones(x.shape[:-1], dtype=x.dtype, device=device(x)) if mask is None else xp.astype(mask, x.dtype)
    share = (p * real / xp.sum(real, axis=-1, keepdims=True))[..., None, :]
    ones = xp.ones((p,), dtype=x.dtype, device=device(x))
    plan = _balanced(logits, share, ones, tol=None, steps=n_iter)
    weights = xp.matrix_transpose(plan)
    if mask is not None:
        x = xp.where(mask[..., None], x, xp.zeros_like(x))
    out = xp.moveaxis(weights @ x[..., None, :, :], -3, -2)  # (..., p, H, d)
    out = xp.reshape(out, (*x.shape[:-2], p, heads * d))
    return (out, weights) if return_weights else out


def fuse_attention(parts: Any, w_hidden: Any, b_hidden: Any, w_score: Any) -> tuple[Any, Any]:
    """Average the parts, each scored by itself."""
    xp = array_namespace(*parts)
    scores = xp.stack([xp.sum(xp.tanh(f @ w_hidden + b_hidden) * w_score, axis=-1) for f in parts], axis=-1)
    alpha = softmax(scores)
    fused = alpha[..., :1] * parts[0]
    for i, part in enumerate(parts[1:], start=1):
        fused = fused + alpha[..., i : i + 1] * part
    return fused, alpha


def label_smoothing_cross_entropy(logits: Any, labels: Any, *, alpha: float = 0.1) -> Any:
    """Return (1 − α) times the cross-entropy plus α times the mean of −log p over classes."""
    xp = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    surprise = xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True)) - shifted  # −log p (N, K)
    classes = xp.arange(logits.shape[-1], dtype=labels.dtype, device=device(logits))
    own = xp.sum(xp.where(labels[:, None] == classes, surprise, xp.zeros_like(surprise)), axis=-1)
    return xp.mean((1 - alpha) * own + alpha * xp.mean(surprise, axis=-1))


def _balanced(logits: Any, a: Any, b: Any, *, tol: float | None, steps: int) -> Any:
    """Return the plan after so many steps; the first in the log domain, the others by products with its plan."""
    xp = array_namespace(logits, a, b)
    rows = logits - _log_sum_exp(logits, -1)
    log_a = xp.where(a > 0, xp.log(xp.where(a > 0, a, xp.ones_like(a))), xp.full_like(a, -xp.inf))
    plan = softmax(xp.matrix_transpose(rows + log_a[..., None]))  # (..., m, n): each row a column of the plan
    plan = xp.matrix_transpose(plan) * b[..., None, :]  # (..., n, m)
    v = xp.ones_like(plan[..., :1, :])  # (..., 1, m)
    u = xp.ones_like(plan[..., :, :1])  # (..., n, 1)
    for step in range(1, steps):
        u = a[..., None] / _positive(plan @ xp.matrix_transpose(v))
        v = b[..., None, :] / _positive(xp.matrix_transpose(u) @ plan)
        if tol is not None and step % BLOCK == 0:
            error = xp.max(xp.abs(u * (plan @ xp.matrix_transpose(v)) - a[..., None]))
            if float(error) <= tol:
                break
    else:
        _complain(u * (plan @ xp.matrix_transpose(v)) - a[..., None], tol, steps)
    return u * plan * v


def _complain(error: Any, tol: float | None, steps: int) -> None:
    """Warn if the rows are not right after the last step."""
    if tol is not None and float(array_namespace(error).max(abs(error))) > tol:
        warnings.warn(f"Sinkhorn did not reach tol={tol:.1e} in max_iter={steps} steps", RuntimeWarning, stacklevel=3)


def _positive(x: Any) -> Any:
    """Replace zeros, which stand where there is no mass, by ones."""
    xp = array_namespace(x)
    return xp.where(x > 0, x, xp.ones_like(x))


def _median(cost: Any) -> Any:
    """Return the median of each matrix, (..., 1, 1)."""
    xp = array_namespace(cost)
    size = cost.shape[-2] * cost.shape[-1]
    ranked = xp.sort(xp.reshape(cost, (*cost.shape[:-2], size)), axis=-1)
    middle = ranked[..., (size - 1) // 2] + ranked[..., size // 2]
    return (middle / 2)[..., None, None]


def _sigmoid(z: Any) -> Any:
    xp = array_namespace(z)
    return xp.exp(-xp.logaddexp(xp.zeros_like(z), -z))


def _log_sum_exp(x: Any, axis: int) -> Any:
    xp = array_namespace(x)
    m = xp.max(x, axis=axis, keepdims=True)
    return m + xp.log(xp.sum(xp.exp(x - m), axis=axis, keepdims=True))
