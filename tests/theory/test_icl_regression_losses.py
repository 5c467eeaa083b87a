"""The population loss: official numbers, integrals against sampling, derivatives, symmetries, and the true optimum."""

import numpy as np
import pytest

from refattn.layers.icl_regression import softmax_estimator
from theory.icl_regression import integrals
from theory.icl_regression.integrals import pair_moments, pair_moments_slope
from theory.icl_regression.losses import (
    mean_square_weight,
    optimal_mu,
    optimal_pair,
    optimal_single_head,
    population_grad,
    population_loss,
    quadratic_form,
)
from theory.icl_regression.reduced import prompt_gradients, prompt_losses, sample_scores
from theory.icl_regression.risks import debiased_gd_risk, paper_single_head
from theory.icl_regression.samplers import sample_prompts

CLOSED = ("exact", "order1", "paper")
MU, OMEGA = np.array([1.2, -2.1, 0.4]), np.array([0.31, -0.22, 0.4])


def reduced_cases(oracle):
    """Yield the official vectors of the reduced parameters."""
    for path in oracle("22-icl-linear-regression"):
        with np.load(path) as case:
            if str(case["kind"]) == "reduced_parameters":
                yield dict(case)


def problem(case):
    return int(case["d"]), int(case["L"]), float(case["sigma2"])


def slopes(function, point, step=1e-6):
    """Return central differences of a scalar function."""
    moves = step * np.eye(len(point))
    return np.array([(function(point + move) - function(point - move)) / (2 * step) for move in moves])


def test_the_papers_loss_and_gradient_are_the_official_ones(oracle):
    """Loss, half loss and both half gradients agree with the official code to 1e-12."""
    for case in reduced_cases(oracle):
        value, d_mu, d_omega = population_grad(case["mu"], case["omega"], *problem(case), method="paper")
        np.testing.assert_allclose(value, case["approx_loss"], rtol=1e-12)
        np.testing.assert_allclose(value / 2, case["half_approx_loss"], rtol=1e-12)
        scale = np.max(np.abs(case["half_grad_mu"])) + 1
        np.testing.assert_allclose(d_mu / 2, case["half_grad_mu"], rtol=0, atol=1e-12 * scale)
        scale = np.max(np.abs(case["half_grad_omega"])) + 1
        np.testing.assert_allclose(d_omega / 2, case["half_grad_omega"], rtol=0, atol=1e-12 * scale)


def test_optimal_mu_is_the_official_one(oracle):
    """Output weights agree to 1e-6 of the largest; where the official code found none, ours refuses."""
    for case in reduced_cases(oracle):
        if np.any(np.isnan(case["mu_star"])):
            with pytest.raises(np.linalg.LinAlgError):
                optimal_mu(case["omega"], *problem(case), method="paper")
        else:
            mu = optimal_mu(case["omega"], *problem(case), method="paper")
            np.testing.assert_allclose(mu, case["mu_star"], rtol=0, atol=1e-6 * np.max(np.abs(case["mu_star"])))


def test_official_predictions_average_to_the_loss(oracle):
    """The model that the loss is about is the one whose predictions the official code prints."""
    for case in reduced_cases(oracle):
        y_hat = softmax_estimator(case["X"], case["y"], case["x_q"], case["omega"], case["mu"])
        np.testing.assert_allclose(y_hat, case["pred_softmax"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_sampling_agrees_with_the_integrals(seed):
    """Random heads, lengths and dimensions: the sampled loss lies within 4 standard errors of the exact one."""
    rng = np.random.default_rng(seed)
    n_head, length, dim = int(rng.integers(1, 4)), int(rng.integers(2, 61)), int(rng.integers(1, 9))
    mu, omega = rng.normal(0, 2, n_head), rng.uniform(-0.5, 0.5, n_head)
    exact = population_loss(mu, omega, dim, length, 0.2)
    sampled = population_loss(mu, omega, dim, length, 0.2, method="mc", n_samples=20_000, rng=rng)
    assert exact.stderr == 0
    assert abs(sampled.value - exact.value) <= 4 * sampled.stderr


def test_the_reduced_loss_is_that_of_whole_prompts():
    """Averaging rule and noise by hand changes the mean of the squared error by nothing but chance."""
    prompts = sample_prompts(20_000, 8, 3, 0.2, np.random.default_rng(5))
    errors = (softmax_estimator(prompts.x, prompts.y, prompts.x_q, OMEGA, MU) - prompts.y_q) ** 2
    exact = population_loss(MU, OMEGA, 3, 8, 0.2).value
    assert abs(errors.mean() - exact) <= 4 * errors.std() / np.sqrt(len(errors))


@pytest.mark.parametrize("length", [2, 5, 40, 500])
def test_steins_identity_holds_for_the_integrals(length):
    """E[u·p] = s (1 − E‖p‖²), with the left side from its own one-dimensional integral over t."""
    s = 0.9
    g, mass = np.polynomial.hermite_e.hermegauss(80)
    mass = mass / mass.sum()
    tau = np.linspace(-30, 20, 1001) - np.log(length)
    t = np.exp(tau)[:, None]
    inner = np.exp(-t * np.exp(s * g)) * mass
    others = np.sum(inner, -1) ** (length - 1)
    left = length * np.sum(np.sum(g * np.exp(s * g) * inner, -1) * others * t[:, 0]) * (tau[1] - tau[0])
    overlap = pair_moments(np.array([s]), np.array([s]), length).overlap[0]
    assert abs(left - s * (1 - overlap)) < 1e-6


def test_even_attention_is_integrated_exactly():
    """At ω = 0 the weights are 1/L: E‖p‖² = 1/L and E[(u·p)²] = 1/L."""
    for length in (2, 3, 40, 1000):
        moments = pair_moments(np.zeros(1), np.zeros(1), length)
        np.testing.assert_allclose([moments.overlap[0] * length, moments.product[0] * length], 1.0, atol=1e-8)


@pytest.mark.parametrize("length", [2, 10, 500])
def test_finer_grids_change_nothing(length, monkeypatch):
    """Up to a sharpness of one, twice the nodes on every axis move the moments by less than 1e-8."""
    s, other = np.array([0.05, 0.4, 1.0, 1.0]), np.array([-0.05, 0.4, -0.7, 1.0])
    coarse = pair_moments(s, other, length)
    monkeypatch.setattr(integrals, "NORMAL_NODES", 128)
    monkeypatch.setattr(integrals, "LAPLACE_NODES", 112)
    integrals._normal_nodes.cache_clear()
    fine = pair_moments(s, other, length)
    integrals._normal_nodes.cache_clear()
    np.testing.assert_allclose(coarse, fine, rtol=0, atol=1e-8)


def test_integrals_of_long_prompts_meet_the_gaussian_tilt():
    """As L grows, (u·p)(u·p') tends to s s'."""
    s, other = np.array([0.7]), np.array([-0.4])
    gaps = [pair_moments(s, other, n).product[0] + 0.28 for n in (1000, 10_000)]
    assert 9 < gaps[0] / gaps[1] < 11


def test_moments_of_exchanged_and_negated_heads_are_equal():
    """Both moments are symmetric in the heads and even in the sign of both."""
    s, other = np.array([0.8, 0.1]), np.array([-0.3, 0.5])
    for pair in ((other, s), (-s, -other)):
        np.testing.assert_allclose(pair_moments(*pair, 20), pair_moments(s, other, 20), rtol=0, atol=1e-9)


def test_slopes_of_moments_are_finite_differences():
    """The step into the complex plane gives the derivative by the first head's sharpness."""
    s, other = np.array([0.6]), np.array([-0.3])
    slope = pair_moments_slope(s, other, 20)
    ahead, behind = pair_moments(s + 1e-4, other, 20), pair_moments(s - 1e-4, other, 20)
    for value, high, low in zip(slope, ahead, behind, strict=True):
        np.testing.assert_allclose(value, (high - low) / 2e-4, rtol=1e-5)


@pytest.mark.parametrize("method", CLOSED)
def test_gradients_are_finite_differences(method):
    """Both gradients of each closed method agree with central differences to 1e-7."""
    args = (5, 40, 0.1)
    value, d_mu, d_omega = population_grad(MU, OMEGA, *args, method=method)
    assert value == pytest.approx(population_loss(MU, OMEGA, *args, method=method).value, rel=1e-14)
    by_mu = slopes(lambda mu: population_loss(mu, OMEGA, *args, method=method).value, MU)
    by_omega = slopes(lambda omega: population_loss(MU, omega, *args, method=method).value, OMEGA)
    np.testing.assert_allclose(d_mu, by_mu, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(d_omega, by_omega, rtol=1e-7, atol=1e-7)


def test_gradients_of_prompts_are_finite_differences():
    """The gradient of a sampled prompt agrees with central differences to 1e-7."""
    r, u = sample_scores(4, 3, 6, np.random.default_rng(0))
    d_mu, d_omega = prompt_gradients(MU, OMEGA, r, u, 3, 0.2)
    for b in range(4):
        one = (r[b : b + 1], u[b : b + 1], 3, 0.2)
        by_mu = slopes(lambda mu, one=one: prompt_losses(mu, OMEGA, *one)[0], MU)
        by_omega = slopes(lambda omega, one=one: prompt_losses(MU, omega, *one)[0], OMEGA)
        np.testing.assert_allclose(d_mu[b], by_mu, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(d_omega[b], by_omega, rtol=1e-7, atol=1e-7)


def test_the_sampled_gradient_is_the_gradient_of_the_sampled_loss():
    """With one seed, ``mc`` value and gradient belong to one function."""
    options = {"method": "mc", "n_samples": 500}

    def loss(mu):
        return population_loss(mu, OMEGA, 3, 6, 0.2, **options, rng=np.random.default_rng(9)).value

    value, d_mu, _ = population_grad(MU, OMEGA, 3, 6, 0.2, **options, rng=np.random.default_rng(9))
    assert value == loss(MU)
    np.testing.assert_allclose(d_mu, slopes(loss, MU), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", [*CLOSED, "mc"])
def test_symmetries_of_the_loss(method):
    """Negating all parameters, exchanging heads and splitting a head change nothing."""

    def loss(mu, omega):
        rng = np.random.default_rng(2)
        return population_loss(mu, omega, 3, 6, 0.2, method=method, n_samples=200, rng=rng).value

    tolerance = 1e-12
    if method == "exact":
        tolerance = 1e-9  # negated heads have their own quadrature
    if method != "mc":
        assert loss(-MU, -OMEGA) == pytest.approx(loss(MU, OMEGA), abs=tolerance)
    assert loss(MU[::-1], OMEGA[::-1]) == pytest.approx(loss(MU, OMEGA), abs=1e-12)
    split = np.array([0.7, 0.5, *MU[1:]]), np.array([OMEGA[0], *OMEGA])
    assert loss(*split) == pytest.approx(loss(MU, OMEGA), abs=1e-12)


def test_one_prompt_and_its_negative_see_negated_parameters_alike():
    """The sampled loss of (−μ, −ω) on scores u is that of (μ, ω) on −u."""
    r, u = sample_scores(5, 3, 6, np.random.default_rng(0))
    left, right = prompt_losses(-MU, -OMEGA, r, u, 3, 0.2), prompt_losses(MU, OMEGA, r, -u, 3, 0.2)
    np.testing.assert_allclose(left, right, rtol=1e-12)


@pytest.mark.parametrize("method", CLOSED)
def test_a_head_without_output_does_not_move(method):
    """μ = 0 gives a zero gradient by ω."""
    _, _, d_omega = population_grad([1.0, 0.0], [0.3, -0.2], 5, 40, 0.1, method=method)
    assert d_omega[1] == 0


def test_a_small_pair_costs_what_debiased_gradient_descent_costs():
    """At ω = 0.001 and 2μω = η the exact loss is the risk of the debiased step, to 1e-4."""
    for step in (0.5, 0.879, 1.1):
        mu = step / 0.002
        loss = population_loss([mu, -mu], [0.001, -0.001], 5, 40, 0.1).value
        assert loss == pytest.approx(float(debiased_gd_risk(step, 5, 40, 0.1)), abs=1e-4)


def test_the_true_optimum_is_that_of_an_independent_prototype():
    """Best single heads and pairs agree with a coarser search, their losses to 2e-5."""
    known = {
        (5, 20): ((0.6443, 1.098, 0.54854), (0.1234, 3.197, 0.354614)),
        (5, 40): ((0.5179, 1.4972, 0.40396), (0.0711, 6.186, 0.242823)),
    }
    for (dim, length), (single, pair) in known.items():
        np.testing.assert_allclose(optimal_single_head(dim, length, 0.1), single, rtol=1e-3)
        found = optimal_pair(dim, length, 0.1)
        np.testing.assert_allclose(found, pair, rtol=5e-3)
        assert found.loss == pytest.approx(pair[2], abs=2e-6)
        assert found.loss < 1.1 - (length - 1) / (length + dim + 0.1 * dim)


def test_trained_numbers_come_out_of_the_exact_theory():
    """σ² = 1e-4: the best head has ω = 0.518, and the pair at ω = 0.1407 has μ = 3.170."""
    assert optimal_single_head(5, 40, 1e-4).omega == pytest.approx(0.518, abs=5e-4)
    assert optimal_mu([0.1407, -0.1407], 5, 40, 1e-4)[0] == pytest.approx(3.170, abs=5e-4)


def test_the_papers_single_head_has_a_closed_form():
    """The search over ω finds 1/√d, and the loss of the formula."""
    found, formula = optimal_single_head(5, 40, 0.1, method="paper"), paper_single_head(5, 40, 0.1)
    np.testing.assert_allclose(found, formula, rtol=1e-5)


def test_the_papers_pair_has_no_optimum_above_zero():
    """Its best ω is the small end of the search, its loss the limit 1 + σ² − 1/(1 + (1 + σ²) d/L)."""
    found = optimal_pair(5, 40, 0.1, method="paper")
    assert found.omega < 0.01
    assert found.loss == pytest.approx(1.1 - 1 / (1 + 1.1 * 5 / 40), abs=1e-6)


def test_mean_square_weights_are_the_known_ones():
    """E‖p‖² at (L, d, ω) = (40, 5, .5), (40, 5, .35), (500, 5, .5)."""
    values = [mean_square_weight(w, 5, n) for n, w in ((40, 0.5), (40, 0.35), (500, 0.5))]
    np.testing.assert_allclose(values, [0.0731, 0.0452, 0.0085], atol=5e-5)


def test_degenerate_problems_work():
    """One token is sampled (its weight is 1 whatever ω is); one dimension, one head, no noise are integrated."""
    one = [population_loss([0.5], [w], 2, 1, 0.1, method="mc", rng=np.random.default_rng(0)).value for w in (0, 3)]
    assert one[0] == one[1]
    assert np.isfinite(population_loss([0.5], [0.3], 1, 2, 0.0).value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "guess"}, "method='guess'"),
        ({"mu": [1.0]}, r"mu has shape \(1,\), expected \(2,\)"),
        ({"mu": [1.0, np.nan]}, "mu=.*must be finite"),
        ({"omega": [np.inf, 0.0]}, "omega=.*must be finite"),
        ({"mu": [], "omega": []}, "at least one head"),
        ({"length": 0}, "length must be >= 1"),
        ({"length": 1}, "needs length >= 2"),
        ({"dim": 0}, "dim must be >= 1"),
        ({"noise_var": -1.0}, "noise_var=-1.0"),
        ({"method": "order1", "omega": [0.71, 0.1]}, "needs omega² < 1/2"),
        ({"method": "mc"}, "method 'mc' needs"),
        ({"method": "mc", "n_samples": 1, "rng": np.random.default_rng(0)}, "n_samples=1"),
    ],
)
def test_bad_input_is_refused(change, message):
    """The message names the argument, its value and the rule, for loss and gradient alike."""
    arguments = {"mu": [1.0, -1.0], "omega": [0.1, -0.1], "dim": 5, "length": 40, "noise_var": 0.1} | change
    for function in (population_loss, population_grad):
        with pytest.raises(ValueError, match=message):
            function(**arguments)


@pytest.mark.parametrize("method", CLOSED)
def test_heads_of_equal_omega_have_no_unique_weights(method):
    """A singular B is refused, not solved."""
    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        optimal_mu([0.2, 0.2], 5, 40, 0.1, method=method)


def test_sampling_has_no_quadratic_form():
    """The quadratic form is for the methods that do not sample."""
    with pytest.raises(ValueError, match="method='mc'"):
        quadratic_form([0.1], 5, 40, 0.1, method="mc")
