"""Test errors from theory: from the spectrum of any kernel, and in closed form for two models with double descent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

__all__ = [
    "Moments",
    "RiskParts",
    "mei_montanari_risk",
    "omniscient_risk",
    "relu_moments",
    "resolvent_pair",
    "ridgeless_risk",
    "width_law",
]


class RiskParts(NamedTuple):
    """An expected test error, less the label noise, and the two parts that it is the sum of."""

    bias: float
    variance: float
    total: float


class Moments(NamedTuple):
    """How an activation splits on standard normal input: constant, linear and other part.

    Attributes
    ----------
    mu0, mu1 : float
        E σ(G) and E Gσ(G).
    mu_star : float
        Root of E σ(G)² − μ₀² − μ₁².
    """

    mu0: float
    mu1: float
    mu_star: float


def relu_moments() -> Moments:
    """Return the moments of the ReLU: 1/√(2π), ½ and √(¼ − 1/(2π))."""
    return Moments(1 / np.sqrt(2 * np.pi), 0.5, float(np.sqrt(0.25 - 1 / (2 * np.pi))))


def omniscient_risk(eigenvalues: np.ndarray, coefficients: np.ndarray, n: int, ridge: float, noise: float) -> float:
    """Return the test error of kernel ridge regression, from the spectrum of the kernel and of the target.

    Parameters
    ----------
    eigenvalues : ndarray, shape (k,)
        λ_i ≥ 0 of the kernel's integral operator, the covariance of the features.
    coefficients : ndarray, shape (k,)
        c_i ≥ 0, the squares of the target's coefficients along the normalised eigenfunctions.
    n : int
        Training inputs.
    ridge : float
        δ ≥ 0, added to the Gram matrix; 0 needs n below the number of eigenvalues.
    noise : float
        τ², variance of the label noise and of what lies outside the span.

    Returns
    -------
    float
        Expected mean square error on new noisy labels.

    Raises
    ------
    ValueError
        If ``n`` is below 1, ``ridge`` negative, or 0 with no fewer inputs than eigenvalues.

    Notes
    -----
    κ solves n = Σ λ_i/(λ_i + κ) + δ/κ; L_i = λ_i/(λ_i + κ) is what is learned of eigenfunction i. Knowing the whole
    spectrum makes it omniscient; for finitely many inputs it is an approximation.

    References
    ----------
    Bordelon, Canatar, Pehlevan (2020), 2002.02561; Simon et al. (2021), 2110.03922 [recalled].
    """
    positive = eigenvalues[eigenvalues > 0]
    if n < 1 or ridge < 0 or (ridge == 0 and n >= len(positive)):
        raise ValueError(f"n={n!r} and ridge={ridge!r}: expected n >= 1 and ridge > 0, or n < {len(positive)}")

    def excess(log_kappa: float) -> float:
        kappa = np.exp(log_kappa)
        return float(np.sum(positive / (positive + kappa)) + ridge / kappa - n)

    top = np.log((positive.sum() + ridge) / n) + 1e-9  # there the left side is below n
    kappa = np.exp(brentq(excess, top - 60, top, xtol=1e-13))
    learned = eigenvalues / (eigenvalues + kappa)
    return float(n / (n - np.sum(learned**2)) * (np.sum((1 - learned) ** 2 * coefficients) + noise))


def ridgeless_risk(ratio: float, signal: float, noise_var: float) -> RiskParts:
    """Return the risk of least squares, of least norm where it is under-determined, for isotropic inputs.

    Parameters
    ----------
    ratio : float
        γ = d/n, coordinates per input, not 1.
    signal : float
        ‖β‖.
    noise_var : float
        σ², the variance of the label noise, not part of the risk itself.

    Returns
    -------
    RiskParts
        γ < 1: σ² γ/(1 − γ), all variance. γ > 1: bias ‖β‖² (1 − 1/γ), variance σ²/(γ − 1).

    Raises
    ------
    ValueError
        If γ is not positive or equals 1, where the risk is infinite.

    References
    ----------
    Hastie, Montanari, Rosset, Tibshirani (2019), 1903.08560, Theorem 1 [recalled].
    """
    if not ratio > 0 or ratio == 1:
        raise ValueError(f"ratio={ratio!r} must be positive and not 1")
    if ratio < 1:
        variance = noise_var * ratio / (1 - ratio)
        return RiskParts(0.0, variance, variance)
    bias, variance = signal**2 * (1 - 1 / ratio), noise_var / (ratio - 1)
    return RiskParts(bias, variance, bias + variance)


def resolvent_pair(psi1: float, psi2: float, ridge_scaled: float, zeta: float) -> tuple[complex, complex]:
    """Return the fixed point (ν₁, ν₂) at ξ = i √(ψ₁ ψ₂ λ̄), continued from ξ = 100 i.

    Parameters
    ----------
    psi1, psi2 : float
        Features and inputs per coordinate.
    ridge_scaled : float
        λ̄ = λ/μ⋆² > 0.
    zeta : float
        μ₁/μ⋆.

    Raises
    ------
    ValueError
        If the iteration does not settle.

    Notes
    -----
    Far up the imaginary axis ν ≈ −ψ/ξ and the iteration contracts. Stepping down, each solution starts the next, so
    that the branch with positive imaginary parts is never left.
    """
    end = np.sqrt(psi1 * psi2 * ridge_scaled)
    path = np.geomspace(max(100.0, 10 * end), end, 60)
    nu1, nu2 = 1j * psi1 / path[0], 1j * psi2 / path[0]
    for height in path:
        nu1, nu2 = _settled(1j * height, nu1, nu2, psi1=psi1, psi2=psi2, zeta=zeta)
    return nu1, nu2


def mei_montanari_risk(
    psi1: float,
    psi2: float,
    ridge: float,
    f1: float,
    noise_var: float,
    activation_moments: Moments,
    nonlinear_var: float = 0.0,
) -> RiskParts:
    """Return the risk of ridge regression on random features, in the limit of many coordinates.

    Inputs x and weights θ_a are uniform on the sphere of radius √d, features are σ(⟨θ_a, x⟩/√d), and targets are
    ⟨β, x⟩ plus noise. The fit minimises the mean square error plus (N_f λ/d) ‖a‖².

    Parameters
    ----------
    psi1, psi2 : float
        N_f/d and n/d.
    ridge : float
        λ > 0.
    f1 : float
        ‖β‖, the size of the linear part of the target.
    noise_var : float
        τ².
    activation_moments : Moments
        See `relu_moments`.
    nonlinear_var : float
        F⋆², variance of a part of the target that is not linear; it acts as noise, and stays.

    Returns
    -------
    RiskParts
        bias = F₁² E₁/E₀, variance = (τ² + F⋆²) E₂/E₀, total = bias + variance + F⋆².

    References
    ----------
    Mei and Montanari (2019), 1908.05355, Theorem 2 [recalled].
    """
    zeta = activation_moments.mu1 / activation_moments.mu_star
    nu1, nu2 = resolvent_pair(psi1, psi2, ridge / activation_moments.mu_star**2, zeta)
    x, z, a, b = (nu1 * nu2).real, zeta**2, psi1, psi2  # χ, ζ²
    high = x**5 * z**3 - 3 * x**4 * z**2
    low = -2 * x**3 * z**2 - 3 * x**3 * z
    e0 = (
        -high
        + (a * b - b - a + 1) * x**3 * z**3
        + low
        + (a + b - 3 * a * b + 1) * x**2 * z**2
        + 2 * x**2 * z
        + x**2
        + 3 * a * b * x * z
        - a * b
    )
    e1 = b * x**3 * z**2 - b * x**2 * z + a * b * x * z - a * b
    e2 = high + (a - 1) * x**3 * z**3 - low + (-a - 1) * x**2 * z**2 - 2 * x**2 * z - x**2
    bias, variance = f1**2 * e1 / e0, (noise_var + nonlinear_var) * e2 / e0
    return RiskParts(float(bias), float(variance), float(bias + variance + nonlinear_var))


def width_law(widths: np.ndarray, risks: np.ndarray) -> tuple[float, float]:
    """Return risk(∞) and C of the best line risk(M) = risk(∞) + C/M, in relative error.

    Parameters
    ----------
    widths, risks : ndarray, shape (k,)
        At least two different widths, well beyond the number of training inputs.
    """
    design = np.stack([np.ones(len(widths)), 1 / widths], axis=1) / risks[:, None]
    limit, slope = np.linalg.lstsq(design, np.ones(len(widths)), rcond=None)[0]
    return float(limit), float(slope)


def _settled(
    xi: complex, nu1: complex, nu2: complex, *, psi1: float, psi2: float, zeta: float
) -> tuple[complex, complex]:
    """Iterate ν₁ = ψ₁/(−ξ − ν₂ − ζ²ν₂/(1 − ζ²ν₁ν₂)) and its mirror image, halfway each time, until nothing moves."""
    for _ in range(20000):
        shared = 1 + zeta**2 / (1 - zeta**2 * nu1 * nu2)
        new1, new2 = psi1 / (-xi - nu2 * shared), psi2 / (-xi - nu1 * shared)
        moved = abs(new1 - nu1) / abs(nu1) + abs(new2 - nu2) / abs(nu2)
        nu1, nu2 = (nu1 + new1) / 2, (nu2 + new2) / 2
        if moved < 1e-13:
            return nu1, nu2
    raise ValueError(f"the fixed point at xi={xi!r} is not reached in 20000 steps")
