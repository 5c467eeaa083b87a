"""Predicted test errors against each other and against limits that are known."""

import numpy as np
import pytest

from theory.random_feature_heads.experiments_risks import finite_risk, least_squares_risk, random_feature_risk
from theory.random_feature_heads.risks import (
    mei_montanari_risk,
    omniscient_risk,
    relu_moments,
    resolvent_pair,
    ridgeless_risk,
    width_law,
)


def test_relu_moments_are_those_of_a_sample():
    """Constant, linear and other part of the ReLU, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    ramp = np.maximum(nodes, 0)
    mu0, mu1, mu_star = relu_moments()
    np.testing.assert_allclose([weights @ ramp, weights @ (nodes * ramp)], [mu0, mu1], atol=3e-3)
    np.testing.assert_allclose(weights @ ramp**2 - mu0**2 - mu1**2, mu_star**2, atol=3e-3)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 2.0, 5.0])
def test_an_isotropic_spectrum_gives_the_ridgeless_risk(ratio):
    """Equal eigenvalues: the prediction from the spectrum is the risk of least squares in large sizes."""
    n = 2000
    d = round(ratio * n)
    predicted = omniscient_risk(np.ones(d), np.full(d, 1 / d), n, 1e-9 * n, 0.3) - 0.3
    np.testing.assert_allclose(predicted, ridgeless_risk(ratio, 1.0, 0.3).total, rtol=1e-5)


def test_the_spectrum_says_what_no_data_and_all_data_give():
    """One input learns next to nothing of many equal directions; many inputs leave the noise."""
    eigenvalues, coefficients = np.ones(500), np.full(500, 1 / 500)
    assert 0.99 < omniscient_risk(eigenvalues, coefficients, 1, 1.0, 0.0) <= 1.0
    np.testing.assert_allclose(omniscient_risk(eigenvalues, coefficients, 10**7, 1e-6, 0.2), 0.2, rtol=1e-3)


@pytest.mark.parametrize(
    ("psi1", "psi2", "ridge", "risk"),
    [(1, 2, 0.01, 0.965), (3, 2, 0.01, 0.579), (2, 2, 0.1, 0.515), (5, 3, 0.001, 0.579), (2, 4, 1e-4, 0.702)],
)
def test_random_feature_risks_have_their_known_values(psi1, psi2, ridge, risk):
    """Noise ¼, ‖β‖ = 1: the limit, to three digits."""
    found = mei_montanari_risk(psi1, psi2, ridge, 1.0, 0.25, relu_moments())
    np.testing.assert_allclose(found.total, risk, atol=1e-3)
    np.testing.assert_allclose(found.bias + found.variance, found.total, rtol=1e-14)


def test_random_feature_risk_has_the_limits_of_heavy_ridge_and_many_inputs():
    """A heavy ridge leaves the target's own variance; features without end and many inputs leave nothing."""
    heavy = mei_montanari_risk(2.0, 2.0, 1e5, 1.0, 0.25, relu_moments())
    np.testing.assert_allclose(heavy.total, 1.0, rtol=1e-3)
    rich = mei_montanari_risk(2000.0, 2000.0, 1e-2, 1.0, 0.25, relu_moments())
    assert rich.total < 0.02


def test_the_fixed_point_solves_its_equations():
    """ν₁ and ν₂ satisfy both equations at ξ = i√(ψ₁ψ₂λ̄), with positive imaginary parts and a real product."""
    psi1, psi2, ridge, zeta = 3.0, 2.0, 0.1, 1.6
    nu1, nu2 = resolvent_pair(psi1, psi2, ridge, zeta)
    xi = 1j * np.sqrt(psi1 * psi2 * ridge)
    shared = zeta**2 / (1 - zeta**2 * nu1 * nu2)
    assert abs(nu1 * (-xi - nu2 - shared * nu2) - psi1) < 1e-10
    assert abs(nu2 * (-xi - nu1 - shared * nu1) - psi2) < 1e-10
    assert nu1.imag > 0
    assert nu2.imag > 0
    assert abs((nu1 * nu2).imag) < 1e-12


def test_the_peak_of_random_features_is_where_features_and_inputs_are_equally_many():
    """Small ridge: the risk at ψ₁ = ψ₂ exceeds that on both sides by far."""
    low, peak, high = (mei_montanari_risk(a, 3.0, 1e-6, 1.0, 0.25, relu_moments()).total for a in (1.5, 3.0, 6.0))
    assert peak > 10 * max(low, high)


def test_one_draw_of_random_features_is_near_its_limit():
    """Eight draws at 60 coordinates lie within five standard errors of the limit."""
    rng = np.random.default_rng(0)
    draws = [
        random_feature_risk(60, psi1=2.0, psi2=2.0, ridge=0.1, noise_var=0.25, rng=rng, n_test=1000) for _ in range(8)
    ]
    limit = mei_montanari_risk(2.0, 2.0, 0.1, 1.0, 0.25, relu_moments()).total
    assert abs(np.mean(draws) - limit) < 5 * np.std(draws, ddof=1) / np.sqrt(8)


@pytest.mark.parametrize("d", [10, 60])
def test_least_squares_has_its_exact_mean(d):
    """Thirty inputs: the mean over 200 draws lies within four standard errors of the mean over all."""
    rng = np.random.default_rng(0)
    draws = [least_squares_risk(30, d, signal=1.0, noise_var=0.25, rng=rng) for _ in range(200)]
    assert abs(np.mean(draws) - finite_risk(30, d, 1.0, 0.25)) < 4 * np.std(draws, ddof=1) / np.sqrt(200)


def test_the_width_law_finds_its_own_numbers():
    """The line a + C/M gives back a and C."""
    widths = np.array([100.0, 300.0, 1000.0])
    np.testing.assert_allclose(width_law(widths, 0.02 + 3.0 / widths), (0.02, 3.0), rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: ridgeless_risk(1.0, 1.0, 0.1), "ratio=1.0 must be positive and not 1"),
        (lambda: omniscient_risk(np.ones(3), np.ones(3), 0, 1.0, 0.0), "n=0"),
        (lambda: omniscient_risk(np.ones(3), np.ones(3), 3, 0.0, 0.0), "n < 3"),
    ],
)
def test_points_without_a_risk_are_refused(call, rule):
    """Where the risk is infinite or undefined, the message says why."""
    with pytest.raises(ValueError, match=rule):
        call()
