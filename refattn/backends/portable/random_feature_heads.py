"""Random-feature attention in the array-API standard.

Derived from the equations by another route than the reference: a score is the inner product of a head with the outer
product of query and key, the values are applied to the keys before the sum over heads, the perceptron reads one token
after another, the kernel integrates along r itself instead of an angle, and the ridge fit solves instead of
diagonalising.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.layers.random_feature_heads import RandomHeads, RidgeFit

__all__ = [
    "RandomHeads",
    "feature_gram",
    "fit_ridge",
    "infinite_head_kernel",
    "predict",
    "random_head_attention",
    "random_head_features",
    "random_mlp_features",
]

_RUN = 0.5 * np.pi * np.sinh(np.arange(-60, 61) / 18.0)
_NEAR_ONE = 1.0 / (1.0 + np.exp(2.0 * _RUN))  # 1 − t of the tanh-sinh nodes t on (0, 1)
_NODE_WEIGHTS = 0.25 * np.pi / 18.0 * np.cosh(np.arange(-60, 61) / 18.0) / np.cosh(_RUN) ** 2
_NORMAL_NODES, _NORMAL_WEIGHTS = np.polynomial.legendre.leggauss(64)


def random_head_features(x0: Any, x: Any, heads: Any) -> Any:
    """Return the mean over keys of rectified score times key."""
    xp = array_namespace(x0, x)
    keys = _with_one(x)
    return xp.matrix_transpose(_rectified_scores(x0, keys, heads)) @ keys / x.shape[-2]


def random_head_attention(x0: Any, x: Any, heads: Any, v: Any) -> Any:
    """Return the mean over keys of what all heads together read from the key."""
    xp = array_namespace(x0, x)
    keys = _with_one(x)
    read = keys @ xp.matrix_transpose(v)  # (..., N, M)
    return xp.sum(_rectified_scores(x0, keys, heads) * read, axis=(-2, -1)) / x.shape[-2]


def random_mlp_features(x0: Any, x: Any, w: Any) -> Any:
    """Return the hidden layer, its input read token by token."""
    xp = array_namespace(x0, x)
    d = x0.shape[-1]
    z = x0 @ xp.matrix_transpose(w[:, :d]) + w[:, -1]
    for i in range(x.shape[-2]):
        z = z + x[..., i, :] @ xp.matrix_transpose(w[:, (i + 1) * d : (i + 2) * d])
    return xp.maximum(z, xp.zeros_like(z))


def infinite_head_kernel(x0: Any, x: Any, y0: Any, y: Any, *, bias: Any = "none", std: float = 0.5) -> Any:
    """Return the kernel of infinitely many heads, all pairs of keys laid out in two axes."""
    xp = array_namespace(x0, x, y0, y)
    (n, N, _), (m, N2, _) = x.shape, y.shape
    a, b = _outer(_with_one(x0), _with_one(x)), _outer(_with_one(y0), _with_one(y))  # (n N, (d+1)²)
    keys, others = (xp.reshape(_with_one(z), (-1, z.shape[-1] + 1)) for z in (x, y))
    s_a, s_b = std * _length(a), std * _length(b)[:, 0]
    rho = xp.clip(std**2 * (a @ xp.matrix_transpose(b)) / (s_a * s_b), -1.0, 1.0)
    if isinstance(bias, str) and bias == "none":
        product = (rho * (0.5 * np.pi + xp.asin(rho)) + xp.cos(xp.asin(rho))) / (2.0 * np.pi)
    else:
        mean = xp.reshape(_mean(bias, x0), (-1, 1))
        product = _shifted(a @ mean / s_a, (b @ mean)[:, 0] / s_b, rho)
    pairs = (keys @ xp.matrix_transpose(others)) * s_a * s_b * product
    return xp.mean(xp.reshape(pairs, (n, N, m, N2)), axis=(1, 3))


def feature_gram(features: Any, others: Any) -> Any:
    """Return the sum over heads of their inner products, divided by their number."""
    xp = array_namespace(features, others)
    axes = list(range(1, features.ndim))
    return xp.tensordot(features, others, axes=(axes, axes)) / features.shape[1]


def fit_ridge(gram: Any, y: Any, ridge_rel: float = 1e-5) -> RidgeFit:
    """Solve (K + λ I) [α, A] = [y − ȳ, I] for a positive ridge."""
    xp = array_namespace(gram, y)
    n = y.shape[0]
    intercept = xp.mean(y)
    identity = xp.eye(n, dtype=gram.dtype, device=device(gram))
    ridge = ridge_rel * xp.linalg.trace(gram) / n
    right = xp.concat([(y - intercept)[:, None], identity], axis=1)
    solved = xp.linalg.solve(gram + ridge * identity, right)
    alpha, inverse = solved[:, 0], solved[:, 1:]
    return RidgeFit(alpha, intercept, n * xp.sum(alpha * alpha) / xp.linalg.trace(inverse) ** 2)


def predict(fit: RidgeFit, cross_gram: Any) -> Any:
    """Return the intercept plus the weighted kernels."""
    xp = array_namespace(cross_gram)
    return fit.intercept + xp.sum(cross_gram * fit.alpha, axis=-1)


def _with_one(x: Any) -> Any:
    xp = array_namespace(x)
    return xp.concat([x, xp.ones((*x.shape[:-1], 1), dtype=x.dtype, device=device(x))], axis=-1)


def _rectified_scores(x0: Any, keys: Any, heads: Any) -> Any:
    """Return σ(⟨W_m, x̃_0 x̃_iᵀ⟩) as (..., N, M)."""
    xp = array_namespace(x0, keys)
    w = heads[0]
    pairs = _with_one(x0)[..., None, :, None] * keys[..., :, None, :]  # (..., N, d+1, d+1)
    flat = xp.reshape(pairs, (*keys.shape[:-1], keys.shape[-1] ** 2))
    s = flat @ xp.matrix_transpose(xp.reshape(w, (w.shape[0], keys.shape[-1] ** 2)))
    return xp.maximum(s, xp.zeros_like(s))


def _outer(query: Any, keys: Any) -> Any:
    """Return x̃_0 x̃_iᵀ of every pair, flat."""
    xp = array_namespace(query, keys)
    return xp.reshape(query[:, None, :, None] * keys[:, :, None, :], (-1, query.shape[-1] ** 2))


def _length(a: Any) -> Any:
    xp = array_namespace(a)
    return xp.sqrt(xp.sum(a * a, axis=-1, keepdims=True))


def _mean(bias: Any, x0: Any) -> Any:
    """Return W_0 as a matrix."""
    xp = array_namespace(x0)
    if not isinstance(bias, str):
        return bias
    d = x0.shape[-1]
    return xp.asarray(np.diag([1.0] * d + [0.0]), dtype=x0.dtype, device=device(x0))


def _shifted(alpha: Any, beta: Any, rho: Any) -> Any:
    """Return E σ(α + a) σ(β + b): its value and slope at ρ = 0, and the integral of its curvature along r = ρ t."""
    xp = array_namespace(rho)
    sign = xp.sign(rho)
    size = xp.abs(rho)
    toward, away = 0.25 * (alpha - sign * beta) ** 2, 0.25 * (alpha + sign * beta) ** 2
    near_one, weight = (xp.asarray(table, dtype=rho.dtype, device=device(rho)) for table in (_NEAR_ONE, _NODE_WEIGHTS))
    left = (1.0 - size)[..., None] + size[..., None] * near_one  # 1 − |r| (..., nodes)
    right = 1.0 + size[..., None] * (1.0 - near_one)  # 1 + |r|
    density = xp.exp(-(toward[..., None] / left + away[..., None] / right)) / xp.sqrt(left * right)
    curved = xp.sum(weight * near_one * density, axis=-1)
    curved = rho * rho * curved / (2.0 * np.pi)
    positive_a, positive_b = _positive(alpha), _positive(beta)
    ramp_a, ramp_b = alpha * positive_a + _density(alpha), beta * positive_b + _density(beta)
    return ramp_a * ramp_b + rho * positive_a * positive_b + curved


def _density(z: Any) -> Any:
    return array_namespace(z).exp(-0.5 * z * z) / (2.0 * np.pi) ** 0.5


def _positive(z: Any) -> Any:
    """Return Φ(z) as ½ plus the integral from 0, whose tails beyond 8.3 rounding cannot see."""
    xp = array_namespace(z)
    z = xp.clip(z, -8.3, 8.3)
    node, weight = (xp.asarray(table, dtype=z.dtype, device=device(z)) for table in (_NORMAL_NODES, _NORMAL_WEIGHTS))
    area = xp.sum(0.5 * weight * _density(0.5 * (1.0 + node) * z[..., None]), axis=-1)
    return 0.5 + z * area
