"""Mistakes that people make with random-feature attention, each one exchanged step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr

from refattn.conformance.contract import Mistake
from refattn.contracts.random_feature_heads.plain import (
    attention,
    features,
    fit,
    kernel,
    mlp,
    prediction,
    rectified,
)

if TYPE_CHECKING:
    from refattn.conformance.contract import Case

__all__ = ["ATTENTION_BUGS", "FEATURE_BUGS", "FIT_BUGS", "KERNEL_BUGS", "MLP_BUGS", "PREDICTION_BUGS"]


def _keys_summed(weight: np.ndarray, keys: np.ndarray) -> Any:
    return weight @ keys


def _root_of_keys(weight: np.ndarray, keys: np.ndarray) -> Any:
    return weight @ keys / np.sqrt(keys.shape[-2])


def _weights_normalised(weight: np.ndarray, keys: np.ndarray) -> Any:
    return weight @ keys / (weight.sum(axis=-1, keepdims=True) + 1e-30)


def _keys_averaged_first(weight: np.ndarray, keys: np.ndarray) -> Any:
    return weight.mean(axis=-1)[..., None] * keys.mean(axis=-2)[..., None, :]


def _softmax(s: np.ndarray) -> Any:
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return s.shape[-1] * e / e.sum(axis=-1, keepdims=True)


def _smooth_activation(s: np.ndarray) -> Any:
    return s * ndtr(s)


def _no_activation(s: np.ndarray) -> Any:
    return s


def _roles_exchanged(query: np.ndarray, keys: np.ndarray, w: np.ndarray) -> Any:
    return np.einsum("nc,mec,nie->nmi", query, w, keys)


def _scores_scaled(query: np.ndarray, keys: np.ndarray, w: np.ndarray) -> Any:
    return np.einsum("nc,mce,nie->nmi", query, w, keys) / np.sqrt(keys.shape[-1])


def _one_in_front(x: np.ndarray) -> Any:
    return np.concatenate([np.ones((*x.shape[:-1], 1)), x], axis=-1)


def _query_without_one(x: np.ndarray) -> Any:
    return np.concatenate([x, np.zeros((*x.shape[:-1], 1))], axis=-1)


def _values_without_one(keys: np.ndarray) -> Any:
    return keys * np.append(np.ones(keys.shape[-1] - 1), 0.0)


def _last_key_unseen(x: np.ndarray) -> Any:
    return x[:, : max(x.shape[1] - 1, 1)]


def _heads_averaged(phi: np.ndarray, v: np.ndarray) -> Any:
    return np.sum(phi * v, axis=(-2, -1)) / len(v)


def _values_rectified(phi: np.ndarray, v: np.ndarray) -> Any:
    return np.sum(rectified(np.sum(phi * v, axis=-1)), axis=-1)


def _keys_first(x0: np.ndarray, x: np.ndarray) -> Any:
    return np.concatenate([x.reshape(len(x), x.shape[1] * x.shape[2]), x0, np.ones((len(x0), 1))], axis=1)


def _coordinates_before_tokens(x0: np.ndarray, x: np.ndarray) -> Any:
    by_coordinate = np.swapaxes(x, 1, 2).reshape(len(x), x.shape[1] * x.shape[2])
    return np.concatenate([x0, by_coordinate, np.ones((len(x0), 1))], axis=1)


def _no_constant(x0: np.ndarray, x: np.ndarray) -> Any:
    return np.concatenate([x0, x.reshape(len(x), x.shape[1] * x.shape[2]), np.zeros((len(x0), 1))], axis=1)


def _keys_pooled(x0: np.ndarray, x: np.ndarray) -> Any:
    pooled = np.repeat(x.mean(axis=1, keepdims=True), x.shape[1], axis=1)
    return np.concatenate([x0, pooled.reshape(len(x), x.shape[1] * x.shape[2]), np.ones((len(x0), 1))], axis=1)


def _angle_unturned(rho: np.ndarray) -> Any:
    theta = np.arccos(rho)
    return (np.sin(theta) + theta * np.cos(theta)) / (2.0 * np.pi)


def _step_instead_of_ramp(rho: np.ndarray) -> Any:
    return (np.pi - np.arccos(rho)) / (2.0 * np.pi)


def _product_of_means(alpha: np.ndarray, beta: np.ndarray, rho: np.ndarray) -> Any:
    def ramp(z: np.ndarray) -> Any:
        return z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)

    return ramp(alpha) * ramp(beta) + 0.0 * rho


def _first_order_only(alpha: np.ndarray, beta: np.ndarray, rho: np.ndarray) -> Any:
    return _product_of_means(alpha, beta, rho) + rho * ndtr(alpha) * ndtr(beta)


def _one_spread_for_all(a: np.ndarray, b: np.ndarray) -> Any:
    return a[:, None, :, None], np.full((1, len(b), 1, b.shape[1]), b.mean())


def _variance_for_deviation(query: np.ndarray, keys: np.ndarray, std: float) -> Any:
    return std**2 * np.linalg.norm(query, axis=-1)[:, None] * np.linalg.norm(keys, axis=-1)


def _bias_on_constant(bias: Any, d: int) -> Any:
    if isinstance(bias, str):
        return np.eye(d + 1) if bias == "identity" else None
    return bias


def _bias_forgotten(bias: Any, d: int) -> Any:
    del bias, d


def _value_product_forgotten(inner: np.ndarray) -> Any:
    return np.ones_like(inner)


def _same_places_only(pairs: np.ndarray) -> Any:
    places = range(min(pairs.shape[2:]))
    return np.mean([pairs[:, :, i, i] for i in places], axis=0)


def _mean_key(x: np.ndarray) -> Any:
    return x.mean(axis=1, keepdims=True)


def _without_one(x: np.ndarray) -> Any:
    return np.concatenate([x, np.full((*x.shape[:-1], 1), 1e-9)], axis=-1)


def _ridge_absolute(ridge_rel: float, gram: np.ndarray) -> Any:
    del gram
    return ridge_rel


def _ridge_of_the_trace(ridge_rel: float, gram: np.ndarray) -> Any:
    return ridge_rel * np.trace(gram)


def _no_intercept(y: np.ndarray) -> Any:
    return 0.0 * y.mean()


def _median_intercept(y: np.ndarray) -> Any:
    return np.median(y)


def _targets_not_centred(y: np.ndarray, mean: Any) -> Any:
    del mean
    return y


def _gram_centred(gram: np.ndarray) -> Any:
    return gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()


def _leverage_not_squared(alpha: np.ndarray, inverse: np.ndarray) -> Any:
    return alpha @ alpha / np.trace(inverse)


def _training_error(alpha: np.ndarray, inverse: np.ndarray) -> Any:
    del inverse
    return np.mean(alpha**2)


def _each_leverage_its_own(alpha: np.ndarray, inverse: np.ndarray) -> Any:
    return np.mean((alpha / np.diag(inverse)) ** 2)


def _intercept_left_out(alpha: np.ndarray, intercept: np.ndarray, cross_gram: np.ndarray) -> Any:
    del intercept
    return cross_gram @ alpha


def _weights_averaged(alpha: np.ndarray, intercept: np.ndarray, cross_gram: np.ndarray) -> Any:
    return intercept + cross_gram @ alpha / len(alpha)


def _any(case: Case) -> bool:
    return bool(case.arrays["x0"].shape[0])


def _keys(case: Case, least: int = 2) -> bool:
    return _any(case) and bool(case.arrays["x"].shape[1] >= least)


def _biased(case: Case) -> bool:
    return case.options.get("bias", "none") == "identity" or "bias" in case.arrays


def _crossed(case: Case) -> bool:
    return len(case.arrays["x0"]) > 0 and len(case.arrays["y0"]) > 0


_HEAD_MISTAKES = (
    Mistake(
        "average",
        _keys_summed,
        "The keys are summed, not averaged.",
        "Divide by the number of keys: the layer is a mean over keys.",
        _keys,
    ),
    Mistake(
        "average",
        _root_of_keys,
        "The sum over keys is divided by the root of their number.",
        "Divide by N itself; the root would keep the variance of independent keys, not their mean.",
        _keys,
    ),
    Mistake(
        "average",
        _weights_normalised,
        "The rectified scores are normalised to sum to one.",
        "Nothing is normalised but by N; a head whose scores are all negative gives zero.",
        _any,
    ),
    Mistake(
        "average",
        _keys_averaged_first,
        "Weights and keys are averaged apart from each other.",
        "Each key is weighed with its own score before the mean is taken.",
        _keys,
    ),
    Mistake(
        "activate",
        _softmax,
        "Scores pass a softmax over the keys.",
        "Scores pass a ReLU, each for itself.",
        _any,
    ),
    Mistake(
        "activate",
        _smooth_activation,
        "The smooth GELU stands for the ReLU.",
        "σ is max(0, s), which alone is homogeneous: twice the score gives twice the weight.",
        _any,
    ),
    Mistake("activate", _no_activation, "The activation is left out.", "Rectify the scores.", _any),
    Mistake(
        "scores",
        _roles_exchanged,
        "The head is transposed: the key stands on the left, the query on the right.",
        "s = x̃_0ᵀ W x̃_i, the query on the left.",
        _any,
    ),
    Mistake(
        "scores",
        _scores_scaled,
        "Scores are divided by the root of the width.",
        "The scale is in the heads: entries of standard deviation ½.",
        _any,
    ),
    Mistake(
        "seen",
        _last_key_unseen,
        "The last key is left out.",
        "All keys count, in any order.",
        _keys,
    ),
    Mistake(
        "carried",
        _values_without_one,
        "The values see the key without its constant coordinate.",
        "The values are applied to x̃_i = [x_i; 1] as well.",
        _any,
    ),
    Mistake(
        "extend_query",
        _query_without_one,
        "The query is not extended by a one.",
        "Both query and keys carry a one, so that a head may depend on the key alone.",
        _any,
    ),
)

FEATURE_BUGS = (
    *(mistake.planted(features) for mistake in _HEAD_MISTAKES),
    Mistake(
        "extend_keys",
        _one_in_front,
        "The one stands in front of the key.",
        "The one is the last coordinate.",
        _any,
    ).planted(features),
)

ATTENTION_BUGS = (
    *(mistake.planted(attention, "attention_") for mistake in _HEAD_MISTAKES),
    Mistake(
        "read",
        _heads_averaged,
        "The heads are averaged.",
        "The heads are summed; what is small is the values.",
        lambda case: _any(case) and len(case.arrays["v"]) > 1,
    ).planted(attention),
    Mistake(
        "read",
        _values_rectified,
        "What a head returns is rectified once more.",
        "The layer is linear in its values.",
        _any,
    ).planted(attention),
)

MLP_BUGS = (
    Mistake(
        "lay",
        _keys_first,
        "The keys come before the query.",
        "The order is query, keys, constant.",
        _any,
    ).planted(mlp),
    Mistake(
        "lay",
        _coordinates_before_tokens,
        "The keys are laid out coordinate by coordinate.",
        "One key after another, each with all its coordinates.",
        lambda case: _keys(case) and bool(case.arrays["x"].shape[2] > 1),
    ).planted(mlp),
    Mistake("lay", _no_constant, "The constant is missing.", "The last column of w meets a one.", _any).planted(mlp),
    Mistake(
        "lay",
        _keys_pooled,
        "All keys are replaced by their mean.",
        "Every key has weights of its own; that is what makes the perceptron slow to learn.",
        _keys,
    ).planted(mlp),
    Mistake("activate", _smooth_activation, "The smooth GELU stands for the ReLU.", "σ is max(0, z).", _any).planted(
        mlp, "mlp_"
    ),
)

KERNEL_BUGS = (
    Mistake(
        "arc",
        _angle_unturned,
        "The angle itself stands where its supplement belongs.",
        "sin θ + (π − θ) cos θ: for equal inputs, θ = 0, the result is ½.",
        lambda case: _crossed(case) and not _biased(case),
    ).planted(kernel),
    Mistake(
        "arc",
        _step_instead_of_ramp,
        "The kernel of order 0, that of step functions, is taken.",
        "The ReLU has the kernel of order 1.",
        lambda case: _crossed(case) and not _biased(case),
    ).planted(kernel),
    Mistake(
        "shifted",
        _product_of_means,
        "The two scores are taken as independent.",
        "Both scores come from the same head and are correlated.",
        lambda case: _crossed(case) and _biased(case),
    ).planted(kernel),
    Mistake(
        "shifted",
        _first_order_only,
        "The mean of the product is expanded to first order in the correlation.",
        "Add the integral of (ρ − r) times the density at the corner.",
        lambda case: _crossed(case) and _biased(case),
    ).planted(kernel),
    Mistake(
        "both_spreads",
        _one_spread_for_all,
        "One number stands for the spreads of the second set.",
        "Each pair of query and key has its own spread, in both sets.",
        lambda case: _crossed(case) and case.arrays["y"].shape[:2] != (1, 1),
    ).planted(kernel),
    Mistake(
        "spread",
        _variance_for_deviation,
        "The spread of a score uses the variance of the entries.",
        "The spread is std times the norms; the variance appears in the covariance.",
        _crossed,
    ).planted(kernel),
    Mistake(
        "mean_matrix",
        _bias_on_constant,
        "The identity reaches over the constant coordinate.",
        "W_0 is the identity on the tokens and 0 for the constant.",
        lambda case: _crossed(case) and case.options.get("bias") == "identity",
    ).planted(kernel),
    Mistake(
        "mean_matrix",
        _bias_forgotten,
        "The mean of the heads is left out.",
        "With a mean the scores are not centred: use the shifted formula.",
        lambda case: _crossed(case) and _biased(case),
    ).planted(kernel),
    Mistake(
        "key_weight",
        _value_product_forgotten,
        "The inner product of the keys is left out of the mean.",
        "Features are weights times keys, so their inner product has ⟨x̃_i, ỹ_j⟩.",
        _crossed,
    ).planted(kernel),
    Mistake(
        "pairs_averaged",
        _same_places_only,
        "Only keys at the same place are compared.",
        "Every key meets every key: the kernel is a double mean.",
        lambda case: _crossed(case) and case.arrays["x"].shape[1] * case.arrays["y"].shape[1] > 1,
    ).planted(kernel),
    Mistake(
        "seen",
        _mean_key,
        "The keys are averaged before the kernel is taken.",
        "The score is not linear in the key once it is rectified: average afterwards.",
        lambda case: _crossed(case) and max(case.arrays["x"].shape[1], case.arrays["y"].shape[1]) > 1,
    ).planted(kernel),
    Mistake(
        "extend",
        _without_one,
        "The constant coordinate is missing.",
        "Norms and inner products are those of x̃ = [x; 1].",
        _crossed,
    ).planted(kernel, "kernel_"),
)

FIT_BUGS = (
    Mistake(
        "ridge",
        _ridge_absolute,
        "The ridge is taken as it is given.",
        "λ = λ_rel tr(K)/n: relative to the mean eigenvalue, so the scale of the features does not matter.",
    ).planted(fit),
    Mistake(
        "ridge",
        _ridge_of_the_trace,
        "The ridge is relative to the trace, n times too large.",
        "Divide the trace by n.",
    ).planted(fit),
    Mistake("intercept", _no_intercept, "The targets are not centred.", "Take off their mean, add it back.").planted(
        fit
    ),
    Mistake(
        "intercept",
        _median_intercept,
        "The median stands for the mean.",
        "The intercept is the mean of the targets.",
        lambda case: len(case.arrays["y"]) > 2,
    ).planted(fit),
    Mistake(
        "centre",
        _targets_not_centred,
        "The intercept is returned but not taken off the targets.",
        "What the kernel fits is y − ȳ.",
    ).planted(fit),
    Mistake(
        "prepare",
        _gram_centred,
        "The Gram matrix is centred too.",
        "Only the targets are centred here; the constant coordinate is part of the features.",
    ).planted(fit),
    Mistake(
        "cross_validated",
        _leverage_not_squared,
        "The trace enters once and not squared.",
        "n yᵀ(K + λ)⁻² y over the square of the trace of (K + λ)⁻¹.",
    ).planted(fit),
    Mistake(
        "cross_validated",
        _training_error,
        "The leverages are left out.",
        "Residuals λ α are divided by the mean of 1 − leverage, λ tr (K + λ)⁻¹ / n.",
    ).planted(fit),
    Mistake(
        "cross_validated",
        _each_leverage_its_own,
        "Each residual is divided by its own leverage: leave-one-out, not generalised cross-validation.",
        "The mean leverage stands for all of them; rotations of the data then change nothing.",
        lambda case: len(case.arrays["y"]) > 2,
    ).planted(fit),
)

PREDICTION_BUGS = (
    Mistake(
        "predict",
        _intercept_left_out,
        "The intercept is left out.",
        "Add ȳ.",
        lambda case: len(case.arrays["cross_gram"]) > 0,
    ).planted(prediction),
    Mistake(
        "predict",
        _weights_averaged,
        "The weighted kernels are averaged over the training inputs.",
        "They are summed.",
        lambda case: bool(case.arrays["cross_gram"].size) and case.arrays["cross_gram"].shape[1] > 1,
    ).planted(prediction),
)
