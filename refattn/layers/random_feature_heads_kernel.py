"""Infinitely many random heads: the kernel that ridge regression on ever more heads tends to.

Two tokens give a normal score, so the limit asks for one number only, the mean of the product of two rectified normal
numbers. Equation labels (rf-6) … (rf-8) are those of the page, where they are derived.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr

from refattn.layers.random_feature_heads_inputs import checked_bias, checked_tokens, with_one
from refattn.primitives.arguments import as_float, require

__all__ = ["infinite_head_kernel", "rectified_product_mean", "shifted_rectified_product_mean"]

_STEPS = 0.1 * np.arange(-32, 33)
_RUN = 0.5 * np.pi * np.sinh(_STEPS)
NODES = 1.0 / (1.0 + np.exp(-2.0 * _RUN))  # tanh-sinh quadrature on (0, 1)
WEIGHTS = 0.1 * 0.25 * np.pi * np.cosh(_STEPS) / np.cosh(_RUN) ** 2


def rectified_product_mean(rho: Any) -> np.ndarray:
    """Return E[σ(a) σ(b)] for standard normal a and b of correlation ρ, σ the ReLU.

    Parameters
    ----------
    rho : array_like
        Correlations in [−1, 1], any shape.

    Returns
    -------
    ndarray
        Same shape and dtype; from 0 at ρ = −1 over 1/(2π) at 0 to ½ at 1.

    Raises
    ------
    ValueError
        If a correlation lies outside [−1, 1].

    Notes
    -----
    sin θ is taken of θ = arccos ρ and not as √(1 − ρ²): the two terms then share the rounding error of θ, and near
    ρ = 1, where θ is uncertain, their sum does not depend on θ to first order.

    References
    ----------
    Cho and Saul, Kernel methods for deep learning (2009), arc-cosine kernel of order 1 [recalled].
    """
    rho = _checked_correlation(rho)
    theta = np.arccos(rho)
    # eq: rf-6
    mean: np.ndarray = (np.sin(theta) + (np.pi - theta) * rho) / (2.0 * np.pi)
    return mean


def shifted_rectified_product_mean(alpha: Any, beta: Any, rho: Any) -> np.ndarray:
    """Return E[σ(α + a) σ(β + b)] for standard normal a and b of correlation ρ, σ the ReLU.

    Parameters
    ----------
    alpha, beta : array_like
        Means, shapes that broadcast.
    rho : array_like
        Correlations in [−1, 1].

    Returns
    -------
    ndarray
        Of the common shape, in the dtype of ``rho``.

    Raises
    ------
    ValueError
        If a correlation lies outside [−1, 1].

    Notes
    -----
    The derivative of the wanted mean by ρ is the probability that both numbers are positive, and the derivative of
    that is the density at the corner; so the mean at ρ follows from the mean at 0, where the two are independent, by
    one integral of a bounded function. The closed form that the page also derives has the same integral inside the
    bivariate normal distribution, and divides by √(1 − ρ²), which is 0 where two inputs are equal. The quadrature
    crowds its 65 nodes where the corner comes near: it is accurate to 1e-15 for all means and correlations that
    ``identity`` heads of standard deviation ½ can have, and to 2e-10 for any others between −2 and 2.
    """
    rho = _checked_correlation(rho)
    alpha, beta = (as_float(name, z).astype(rho.dtype, copy=False) for name, z in (("alpha", alpha), ("beta", beta)))
    start = _ramp_mean(alpha) * _ramp_mean(beta)  # ρ = 0
    slope = _positive(alpha) * _positive(beta)
    # eq: rf-7
    mean: np.ndarray = start + rho * slope + _corner_integral(alpha, beta, rho)
    return mean


def infinite_head_kernel(x0: Any, x: Any, y0: Any, y: Any, *, bias: Any = "none", std: float = 0.5) -> np.ndarray:
    """Return the limit of ⟨φ(x), φ(y)⟩ / M for infinitely many random heads.

    1. Correlate the scores of every pair of keys.
    2. Take the mean of the product of the two rectified scores.
    3. Weigh by the inner products of the keys and average over the pairs.

    Parameters
    ----------
    x0, x : array_like, shapes (n, d) and (n, N, d)
        Queries and their keys, N ≥ 1.
    y0, y : array_like, shapes (m, d) and (m, N′, d)
        The others; N′ may differ from N.
    bias : {"none", "identity"} or array_like, shape (d + 1, d + 1)
        Mean W_0 of the head matrices.
    std : float
        Standard deviation of their entries.

    Returns
    -------
    ndarray, shape (n, m)
        In the dtype of ``x0``.

    Raises
    ------
    ValueError
        If shapes disagree, there is no key, a number is not finite, ``std`` is not positive, or ``bias`` is unknown.

    Notes
    -----
    Takes n m N N′ evaluations and as many numbers of memory, with a mean 65 times as many: cut the rows into blocks.
    A kernel of pairs (query, key), averaged: what the layer learns is a mean over keys.
    """
    x0, x = checked_tokens(as_float("x0", x0, ndim=2), x)
    y0, y = checked_tokens(as_float("y0", y0, ndim=2), y, ("y0", "y"))
    require(y0.shape[-1] == x0.shape[-1], f"x0 has shape {x0.shape} and y0 {y0.shape}, expected equal dimensions d")
    require(np.isfinite(std) and std > 0, f"std={std!r} must be finite and > 0")
    dtype = np.dtype(np.float64) if x0.dtype.itemsize < 4 else x0.dtype  # half precision holds no node near 0
    tokens = (z.astype(dtype, copy=False) for z in (x0, x, y0, y))
    kernel = _mean_over_pairs(*map(with_one, tokens), mean=_kernel_mean(bias, x0.shape[-1], dtype), std=std)
    return kernel.astype(x0.dtype, copy=False)


def _kernel_mean(bias: Any, dim: int, dtype: Any) -> np.ndarray | None:
    """Return W_0, or None where the formula for zero means holds."""
    mean = checked_bias(bias, dim)
    return None if isinstance(bias, str) and bias == "none" else mean.astype(dtype, copy=False)


def _mean_over_pairs(
    query: np.ndarray, keys: np.ndarray, query2: np.ndarray, keys2: np.ndarray, *, mean: np.ndarray | None, std: float
) -> np.ndarray:
    """Return the kernel of tokens that carry their one."""
    s_a = _score_spread(query, keys, std)[:, None, :, None]  # (n, 1, N, 1)
    s_b = _score_spread(query2, keys2, std)[None, :, None, :]  # (1, m, 1, N')
    inner = np.einsum("nic,mjc->nmij", keys, keys2)  # ⟨x̃_i, ỹ_j⟩ (n, m, N, N')
    covariance = std**2 * (query @ query2.T)[:, :, None, None] * inner  # c (n, m, N, N')
    rho = np.clip(covariance / (s_a * s_b), -1.0, 1.0)
    if mean is None:
        product = rectified_product_mean(rho)
    else:
        alpha = np.einsum("nc,ce,nie->ni", query, mean, keys)[:, None, :, None] / s_a
        beta = np.einsum("mc,ce,mje->mj", query2, mean, keys2)[None, :, None, :] / s_b
        product = shifted_rectified_product_mean(alpha, beta, rho)
    # eq: rf-8
    kernel: np.ndarray = np.mean(inner * s_a * s_b * product, axis=(-2, -1))  # (n, m)
    return kernel


def _score_spread(query: np.ndarray, keys: np.ndarray, std: float) -> np.ndarray:
    """Return the standard deviation s ‖x̃_0‖ ‖x̃_i‖ of each score, (n, N)."""
    spread: np.ndarray = std * np.sqrt(np.sum(query**2, axis=-1))[:, None] * np.sqrt(np.sum(keys**2, axis=-1))
    return spread


def _corner_integral(alpha: np.ndarray, beta: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Return ∫_0^ρ (ρ − r) φ₂(α, β; r) dr, φ₂ the bivariate normal density.

    With r = cos ω the density at the corner loses its root; half angles keep 1 − r and 1 + r exact near their zeros.
    """
    rho, omega = rho[..., None], np.arccos(rho)[..., None] + np.arcsin(rho)[..., None] * NODES  # arccos ρ to π/2
    apart, together = ((alpha - beta) ** 2 / 8.0)[..., None], ((alpha + beta) ** 2 / 8.0)[..., None]
    with np.errstate(over="ignore", under="ignore"):  # an infinite exponent is a density of 0
        density = np.exp(-apart * np.sin(0.5 * omega) ** -2.0 - together * np.cos(0.5 * omega) ** -2.0)  # (..., nodes)
    area = ((rho - np.cos(omega)) * density) @ WEIGHTS.astype(rho.dtype)
    integral: np.ndarray = np.arcsin(rho[..., 0]) * area / (2.0 * np.pi)
    return integral


def _ramp_mean(z: np.ndarray) -> np.ndarray:
    """Return E σ(z + a) = z Φ(z) + φ(z) for a standard normal a."""
    mean: np.ndarray = z * _positive(z) + np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    return mean


def _positive(z: np.ndarray) -> np.ndarray:
    """Return Φ(z), the probability that z + a is positive."""
    chance: np.ndarray = ndtr(z).astype(z.dtype, copy=False)  # SciPy widens float16
    return chance


def _checked_correlation(rho: Any) -> Any:
    rho = as_float("rho", rho)
    require(np.all(np.abs(rho) <= 1), "rho must lie in [-1, 1]")
    return rho
