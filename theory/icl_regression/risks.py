"""What the estimators that heads can imitate cost, exactly: gradient descent, with and without the mean, and ridge.

Every risk is ``E(ŷ − y_q)²`` with the query's noise in it, so nothing is below σ²; rules are N(0, I/d), as in
`theory.icl_regression.samplers.sample_prompts`. Throughout, ``m`` counts the degrees of freedom of the sample
covariance: L as it stands, L − 1 once the mean is removed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_one_of, require_shape
from theory.icl_regression.samplers import require_covariance, require_problem
from theory.icl_regression.wishart import mean_inverse_trace

__all__ = [
    "best_debiased_gd_step",
    "best_gd_step",
    "best_scalar_step",
    "debiased_gd_limit",
    "debiased_gd_risk",
    "gd_risk",
    "linear_attention_risk",
    "paper_single_head",
    "preconditioned_risk",
    "resolvent_limit",
    "ridge_limit",
    "ridge_risk",
]


def gd_risk(step: Any, dim: int, length: int, noise_var: float) -> np.ndarray:
    """Return the risk of ``ŷ = (η/L) Σ y_i x_i·x_q``, one step of gradient descent from zero.

    Parameters
    ----------
    step : array_like
        Step size η, any shape.
    dim, length : int
        Dimension d and number of examples L.
    noise_var : float
        Variance of the noise.

    Returns
    -------
    ndarray, shape of ``step``
        The risk.

    Notes
    -----
    [derived]
    """
    require_problem(dim, length, noise_var)
    step = as_float("step", step)
    require_finite("step", step)
    # eq: icl-gd-risk
    return np.asarray(1 + noise_var - 2 * step + step**2 * (1 + (dim + 1 + noise_var * dim) / length))


def debiased_gd_risk(step: Any, dim: int, length: int, noise_var: float) -> np.ndarray:
    """Return the risk of ``ŷ = (η/L) Σ y_i (x_i − x̄)·x_q``, the same step after removing the mean.

    Parameters and result are those of `gd_risk`; [derived].
    """
    require_problem(dim, length, noise_var)
    step = as_float("step", step)
    require_finite("step", step)
    m = length - 1
    # eq: icl-dgd-risk
    square = m * (m + dim + 1) + noise_var * dim * m
    return np.asarray(1 + noise_var - 2 * step * m / length + (step / length) ** 2 * square)


def best_gd_step(dim: int, length: int, noise_var: float) -> float:
    """Return the step that minimises `gd_risk`; the risk there is ``1 + σ² − η*``."""
    require_problem(dim, length, noise_var)
    return 1 / (1 + (dim + 1 + noise_var * dim) / length)


def best_debiased_gd_step(dim: int, length: int, noise_var: float) -> float:
    """Return the step that minimises `debiased_gd_risk`; the risk there is ``1 + σ² − η* (L − 1)/L``."""
    require_problem(dim, length, noise_var)
    return length / (length + dim + noise_var * dim)


def debiased_gd_limit(ratio: Any, noise_var: float) -> np.ndarray:
    """Return the best risk of debiased gradient descent for d, L → ∞ with ``d/L = ratio``."""
    ratio = _checked_ratio(ratio, noise_var)
    cost = ratio * (1 + noise_var)
    return np.asarray(noise_var + cost / (1 + cost))


def linear_attention_risk(step: Any, dim: int, length: int, noise_var: float, *, train_length: int) -> np.ndarray:
    """Return the risk of linear attention that goes on dividing by the length it was trained at.

    Parameters
    ----------
    step : array_like
        Step size η that fits ``train_length``.
    dim, length, noise_var
        As for `gd_risk`; ``length`` is the prompt's.
    train_length : int
        What the sum over tokens is divided by.
    """
    require(train_length >= 1, f"train_length={train_length} must be >= 1")
    # eq: icl-linear-length
    return gd_risk(as_float("step", step) * (length / train_length), dim, length, noise_var)


def ridge_risk(dim: int, length: int, noise_var: float, *, method: str = "wishart") -> float:
    """Return the Bayes risk: that of ridge regression with penalty σ²d.

    Parameters
    ----------
    dim, length : int
        Dimension d and number of examples L.
    noise_var : float
        Variance of the noise.
    method : {"wishart", "mp"}
        Exact for this size, or the Marchenko-Pastur limit at the same d/L.

    Raises
    ------
    ValueError
        If an argument is out of range or ``method`` unknown.
    """
    require_problem(dim, length, noise_var)
    require_one_of("method", method, ("wishart", "mp"))
    if method == "mp":
        return float(ridge_limit(dim / length, noise_var))
    if noise_var == 0:
        return max(dim - length, 0) / dim  # only what no example touched stays unknown
    # eq: icl-ridge
    return noise_var + noise_var * mean_inverse_trace(dim, length, noise_var * dim)


def ridge_limit(ratio: Any, noise_var: float) -> np.ndarray:
    """Return the Bayes risk for d, L → ∞ with ``d/L = ratio``.

    Notes
    -----
    As in the official code (``ridge_loss``); equal to ``σ² (1 + ξ m(−σ²ξ))`` with `resolvent_limit` (Dobriban and
    Wager 2018) [recalled].
    """
    ratio = _checked_ratio(ratio, noise_var)
    excess = (ratio - 1) / ratio
    # eq: icl-ridge-limit
    return np.asarray(0.5 * (noise_var + excess + np.sqrt(4 * noise_var + (noise_var - excess) ** 2)))


def resolvent_limit(ratio: Any, shift: float) -> np.ndarray:
    """Return the Marchenko-Pastur limit of ``(1/d) E tr(X^T X / L + λI)^{-1}`` at ``d/L = ratio``, λ > 0."""
    ratio = _checked_ratio(ratio, 0.0)
    require(shift > 0, f"shift={shift} must be > 0")
    gap = 1 - ratio + shift
    # eq: icl-marchenko-pastur
    return np.asarray((-gap + np.sqrt(gap**2 + 4 * ratio * shift)) / (2 * ratio * shift))


def preconditioned_risk(matrix: Any, cov: Any, length: int, noise_var: float, *, debiased: bool = True) -> float:
    """Return the risk of ``ŷ = x_q^T G b̂`` for covariates N(0, Σ), with ``b̂ = (1/L) Σ y_i (x_i − x̄)``.

    Parameters
    ----------
    matrix : array_like, (d, d)
        Preconditioner G; a scalar step is a multiple of the identity.
    cov : array_like, (d, d)
        Covariance Σ.
    length : int
        Number of examples L.
    noise_var : float
        Variance of the noise.
    debiased : bool
        Whether the mean is removed; otherwise ``b̂ = (1/L) Σ y_i x_i``.

    Notes
    -----
    [derived]; `refattn.layers.icl_regression.preconditioner` returns the matrix of least risk.
    """
    cov = require_covariance(cov)
    require_problem(len(cov), length, noise_var)
    matrix = as_float("matrix", matrix, ndim=2)
    require_shape("matrix", matrix, cov.shape)
    require_finite("matrix", matrix)
    first, second = _moments(cov, length, noise_var, debiased)
    # eq: icl-preconditioned-risk
    linear = np.trace(cov @ matrix @ first)
    return float(noise_var + np.trace(cov) / len(cov) - 2 * linear + np.trace(cov @ matrix @ second @ matrix.T))


def best_scalar_step(cov: Any, length: int, noise_var: float, *, debiased: bool = True) -> float:
    """Return the step η for which ``G = ηI`` has the least `preconditioned_risk`."""
    cov = require_covariance(cov)
    require_problem(len(cov), length, noise_var)
    first, second = _moments(cov, length, noise_var, debiased)
    return float(np.trace(cov @ first) / np.trace(cov @ second))


def paper_single_head(dim: int, length: int, noise_var: float) -> tuple[float, float, float]:
    """Return ω, μ and the loss of the best single head under the paper's approximation, in closed form."""
    require_problem(dim, length, noise_var)
    cost = 1 + (1 + noise_var) * dim / length * np.e
    # eq: icl-paper-single
    return 1 / float(np.sqrt(dim)), float(np.sqrt(dim) / cost), float(1 + noise_var - 1 / cost)


def _moments(cov: np.ndarray, length: int, noise_var: float, debiased: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return ``E[b̂ β^T]`` and ``E[b̂ b̂^T]``, (d, d) each."""
    m, dim = length - bool(debiased), len(cov)
    first = m / length * cov / dim
    second = m / length**2 * (((m + 1) * cov @ cov + np.trace(cov) * cov) / dim + noise_var * cov)
    return first, second


def _checked_ratio(ratio: Any, noise_var: float) -> np.ndarray:
    ratio = as_float("ratio", ratio)
    require_finite("ratio", ratio)
    require(np.all(ratio > 0), f"ratio={ratio!r} must be > 0")
    require_problem(1, 1, noise_var)
    return np.asarray(ratio)
