"""The mechanism once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.random_feature_heads import RandomHeads, RidgeFit
from refattn.layers.random_feature_heads_kernel import rectified_product_mean, shifted_rectified_product_mean

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["attention", "extended", "features", "fit", "kernel", "mlp", "prediction", "rectified"]


def extended(x: np.ndarray) -> np.ndarray:
    """Append the one."""
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def rectified(s: np.ndarray) -> np.ndarray:
    """Keep what is positive."""
    return np.asarray(np.maximum(s, 0.0))


def scores(query: np.ndarray, keys: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return query times head times key, (n, M, N)."""
    return np.asarray(np.einsum("nc,mce,nie->nmi", query, w, keys))


def averaged(weight: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Average the weighted keys."""
    return np.asarray(weight @ keys / keys.shape[-2])


def seen(keys: np.ndarray) -> np.ndarray:
    """Look at all keys."""
    return keys


def read(phi: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Sum over heads what their values read."""
    return np.asarray(np.sum(phi * v, axis=(-2, -1)))


class HeadSteps(NamedTuple):
    """The steps of the features and of the layer that can be exchanged."""

    extend_query: Callable[..., Any] = extended
    extend_keys: Callable[..., Any] = extended
    seen: Callable[..., Any] = seen
    scores: Callable[..., Any] = scores
    activate: Callable[..., Any] = rectified
    average: Callable[..., Any] = averaged
    carried: Callable[..., Any] = seen
    read: Callable[..., Any] = read


def _head_features(steps: HeadSteps, x0: np.ndarray, x: np.ndarray, heads: RandomHeads) -> np.ndarray:
    query, keys = steps.extend_query(x0), steps.extend_keys(steps.seen(x))
    weight = steps.activate(steps.scores(query, keys, heads.w))
    return np.asarray(steps.average(weight, steps.carried(keys)))


def features(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the features with these steps exchanged."""
    return lambda x0, x, heads: _head_features(HeadSteps(**changes), x0, x, heads)


def attention(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the layer with these steps exchanged."""
    steps = HeadSteps(**changes)
    return lambda x0, x, heads, v: steps.read(_head_features(steps, x0, x, heads), v)


def flat(x0: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Lay the query, the keys and a one in a line."""
    return np.concatenate([x0, x.reshape(len(x), x.shape[1] * x.shape[2]), np.ones((len(x0), 1))], axis=1)


def mlp(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the perceptron with these steps exchanged."""
    lay: Callable[..., Any] = changes.get("lay", flat)
    activate: Callable[..., Any] = changes.get("activate", rectified)

    def wrong(x0: np.ndarray, x: np.ndarray, w: np.ndarray) -> Any:
        return activate(lay(x0, x) @ w.T)

    return wrong


def spread(query: np.ndarray, keys: np.ndarray, std: float) -> np.ndarray:
    """Return the standard deviation of each score, (n, N)."""
    return np.asarray(std * np.linalg.norm(query, axis=-1)[:, None] * np.linalg.norm(keys, axis=-1))


def both_spreads(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay the two spreads out over (n, m, N, N')."""
    return a[:, None, :, None], b[None, :, None, :]


def covariance(query_pairs: np.ndarray, key_pairs: np.ndarray, std: float) -> np.ndarray:
    """Multiply the inner products of queries and of keys."""
    return np.asarray(std**2 * query_pairs[:, :, None, None] * key_pairs)


def mean_matrix(bias: Any, d: int) -> Any:
    """Return W_0, None for none."""
    if isinstance(bias, str):
        return np.diag([1.0] * d + [0.0]) if bias == "identity" else None
    return bias


def all_pairs(pairs: np.ndarray) -> np.ndarray:
    """Average over all pairs of keys."""
    return np.asarray(pairs.mean(axis=(2, 3)))


class KernelSteps(NamedTuple):
    """The steps of the kernel that can be exchanged."""

    extend: Callable[..., Any] = extended
    seen: Callable[..., Any] = seen
    spread: Callable[..., Any] = spread
    both_spreads: Callable[..., Any] = both_spreads
    covariance: Callable[..., Any] = covariance
    mean_matrix: Callable[..., Any] = mean_matrix
    arc: Callable[..., Any] = rectified_product_mean
    shifted: Callable[..., Any] = shifted_rectified_product_mean
    key_weight: Callable[..., Any] = seen
    pairs_averaged: Callable[..., Any] = all_pairs


def kernel(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel with these steps exchanged."""
    steps = KernelSteps(**changes)

    def wrong(x0: Any, x: Any, y0: Any, y: Any, bias: Any = "none", std: float = 0.5) -> np.ndarray:
        query, query2, keys, keys2 = (steps.extend(z) for z in (x0, y0, steps.seen(x), steps.seen(y)))
        inner = np.einsum("nic,mjc->nmij", keys, keys2)
        s_a, s_b = steps.both_spreads(steps.spread(query, keys, std), steps.spread(query2, keys2, std))
        rho = np.clip(steps.covariance(query @ query2.T, inner, std) / (s_a * s_b), -1.0, 1.0)
        mean = steps.mean_matrix(bias, x0.shape[1])
        if mean is None:
            product = steps.arc(rho)
        else:
            alpha = np.einsum("nc,ce,nie->ni", query, mean, keys)[:, None, :, None] / s_a
            beta = np.einsum("nc,ce,nie->ni", query2, mean, keys2)[None, :, None, :] / s_b
            product = steps.shifted(alpha, beta, rho)
        return np.asarray(steps.pairs_averaged(steps.key_weight(inner) * s_a * s_b * product))

    return wrong


def ridge(ridge_rel: float, gram: np.ndarray) -> Any:
    """Return the ridge, relative to the mean eigenvalue."""
    return ridge_rel * np.trace(gram) / len(gram)


def intercept(y: np.ndarray) -> Any:
    """Return the mean of the targets."""
    return y.mean()


def cross_validated(alpha: np.ndarray, inverse: np.ndarray) -> Any:
    """Return the mean square of the residuals, each divided by the mean leverage left."""
    return len(alpha) * alpha @ alpha / np.trace(inverse) ** 2


def centred(y: np.ndarray, mean: Any) -> np.ndarray:
    """Take the intercept off the targets."""
    return np.asarray(y - mean)


class FitSteps(NamedTuple):
    """The steps of the fit that can be exchanged."""

    ridge: Callable[..., Any] = ridge
    intercept: Callable[..., Any] = intercept
    centre: Callable[..., Any] = centred
    prepare: Callable[..., Any] = seen
    cross_validated: Callable[..., Any] = cross_validated


def fit(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the fit with these steps exchanged."""
    steps = FitSteps(**changes)

    def wrong(gram: np.ndarray, y: np.ndarray, ridge_rel: float = 1e-5) -> RidgeFit:
        K = steps.prepare(gram)
        inverse = np.linalg.inv(K + steps.ridge(ridge_rel, K) * np.eye(len(y)))
        mean = steps.intercept(y)
        alpha = inverse @ steps.centre(y, mean)
        return RidgeFit(alpha, np.asarray(mean), np.asarray(steps.cross_validated(alpha, inverse)))

    return wrong


def prediction(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the prediction with its only step exchanged."""
    return lambda fit, cross_gram: changes["predict"](fit.alpha, fit.intercept, cross_gram)
