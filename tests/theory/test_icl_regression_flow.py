"""The gradient flow: official steps, conserved symmetries, laws of its phases, and the trap."""

import numpy as np
import pytest

from theory.icl_regression.flow import (
    euler_flow,
    exact_pair_flow,
    first_phase,
    gradient_flow,
    gradient_flows,
    limit_step,
    pair_power_law,
    same_sign,
)
from theory.icl_regression.losses import optimal_pair, population_grad
from theory.icl_regression.risks import paper_single_head

PROBLEM = (5, 40, 0.1)
PAIR = np.array([1e-3, -1e-3])


def test_fixed_steps_are_the_official_ones(oracle):
    """Fifty Euler steps of the official code are met to 1e-12, loss included."""
    for path in oracle("22-icl-linear-regression"):
        with np.load(path) as case:
            if str(case["kind"]) != "reduced_parameters":
                continue
            problem = int(case["d"]), int(case["L"]), float(case["sigma2"])
            steps = len(case["flow_mu"]) - 1
            start = case["flow_mu"][0], case["flow_omega"][0]
            flow = euler_flow(*start, *problem, step=float(case["flow_lr"]), steps=steps)
            for ours, theirs in ((flow.mu, "flow_mu"), (flow.omega, "flow_omega"), (flow.loss / 2, "flow_half_loss")):
                np.testing.assert_allclose(ours, case[theirs], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["paper", "order1"])
def test_the_solver_follows_small_fixed_steps(method):
    """The adaptive solver and Euler steps meet as the step shrinks, at first order."""
    start = (np.array([0.2, -0.1]), np.array([0.1, -0.2]))
    exact = gradient_flow(*start, *PROBLEM, [2.0], method=method)
    gaps = []
    for steps in (200, 400):
        euler = euler_flow(*start, *PROBLEM, step=2.0 / steps, steps=steps, method=method)
        gaps.append(np.max(np.abs(euler.mu[-1] - exact.mu[-1])))
    assert gaps[0] < 0.01
    assert 1.9 < gaps[0] / gaps[1] < 2.1


def test_landmarks_of_the_three_phases():
    """The pair leaves, bends and drifts where an independent prototype says."""
    flow = gradient_flow(PAIR, PAIR, *PROBLEM, [5.5, 7.5, 12, 1e4, 1e6])
    np.testing.assert_allclose(flow.mu[:, 0], [0.2295, 0.617, 0.797, 3.151, 6.803], atol=5e-4)
    np.testing.assert_allclose(flow.omega[[1, 2, 3], 0], [0.575, 0.504, 0.1394], atol=5e-4)
    np.testing.assert_allclose(flow.loss[[1, 2]] / 2, [0.145, 0.1266], atol=2e-4)


def test_laws_of_the_first_and_the_last_phase():
    """Exponential growth with its bend to 1 %, and powers ±1/6 of time to 0.3 %."""
    times = [3.0, 5.0, 1e4, 1e5, 1e6]
    flow = gradient_flow(PAIR, PAIR, *PROBLEM, times)
    np.testing.assert_allclose(flow.mu[:2, 0], first_phase(1e-3, times[:2]), rtol=0.01)
    mu, omega = pair_power_law(times[2:], *PROBLEM)
    np.testing.assert_allclose(flow.mu[2:, 0], mu, rtol=0.003)
    np.testing.assert_allclose(flow.omega[2:, 0], omega, rtol=0.003)
    assert flow.mu[-1] @ flow.omega[-1] == pytest.approx(limit_step(*PROBLEM), rel=1e-4)


def test_opposite_heads_stay_opposite():
    """The flow of a pair keeps μ₁ = −μ₂ and ω₁ = −ω₂."""
    flow = gradient_flow(PAIR, PAIR, *PROBLEM, [7.5, 1e3])
    np.testing.assert_allclose(flow.mu[:, 0], -flow.mu[:, 1], rtol=1e-9)
    np.testing.assert_allclose(flow.omega[:, 0], -flow.omega[:, 1], rtol=1e-9)


def test_the_loss_falls_along_the_flow():
    """Each report is at most the one before."""
    rng = np.random.default_rng(1)
    flow = gradient_flow(*rng.normal(0, 0.1, (2, 4)), *PROBLEM, np.geomspace(0.1, 1e4, 60))
    assert np.all(np.diff(flow.loss) <= 1e-12)


def test_four_heads_share_one_sharpness():
    """From a random start |ω| ends equal to 1 %, Σμ below 0.01, Σμω at the limit step."""
    rng = np.random.default_rng(0)
    flow = gradient_flow(*rng.normal(0, 0.1, (2, 4)), *PROBLEM, [1e4])
    mu, omega = flow.mu[0], flow.omega[0]
    assert not same_sign(flow.omega)[0]
    assert np.ptp(np.abs(omega)) < 0.01 * np.abs(omega).mean()
    assert abs(mu.sum()) < 0.01
    assert mu @ omega == pytest.approx(limit_step(*PROBLEM), rel=0.01)
    assert np.all(mu * omega > 0)


def test_the_exact_pair_flow_follows_the_exact_gradient():
    """Its velocity is half the negative gradient, head by head."""
    times = np.array([6.0, 6.001])
    flow = exact_pair_flow(1e-3, *PROBLEM, times)
    _, d_mu, d_omega = population_grad(flow.mu[0], flow.omega[0], *PROBLEM)
    np.testing.assert_allclose((flow.mu[1] - flow.mu[0]) / 0.001, -d_mu / 2, rtol=0.01)
    np.testing.assert_allclose((flow.omega[1] - flow.omega[0]) / 0.001, -d_omega / 2, rtol=0.01)


def test_the_exact_flow_ends_at_the_true_optimum():
    """It stops drifting at ω* = 0.0712, where the paper's flow goes on towards zero."""
    flow = exact_pair_flow(1e-3, *PROBLEM, [1e8])
    best = optimal_pair(*PROBLEM)
    np.testing.assert_allclose([flow.omega[0, 0], flow.mu[0, 0], flow.loss[0]], best, rtol=1e-3)
    assert pair_power_law(1e8, *PROBLEM)[1] < best.omega / 2


def test_the_flow_of_a_sample_keeps_its_sample():
    """``mc`` draws once: the same generator gives the same path, near the exact one."""
    options = {"method": "mc", "n_samples": 1000, "rtol": 1e-4}
    start = 300 * PAIR
    paths = [gradient_flow(start, start, *PROBLEM, [1.0], **options, rng=np.random.default_rng(4)) for _ in range(2)]
    np.testing.assert_array_equal(paths[0].mu, paths[1].mu)
    exact = exact_pair_flow(0.3, *PROBLEM, [1.0])
    np.testing.assert_allclose(paths[0].mu, exact.mu, rtol=0.1)


def test_many_flows_at_once_are_the_single_ones():
    """Stacked flows end where each of them ends alone."""
    start = np.random.default_rng(2).normal(0, 0.1, (2, 3, 2))
    many = gradient_flows(*start, *PROBLEM, 20.0)
    for r in range(3):
        one = gradient_flow(start[0, r], start[1, r], *PROBLEM, [20.0])
        np.testing.assert_allclose(many.mu[r], one.mu[0], rtol=1e-2, atol=1e-4)
        assert many.loss[r] == pytest.approx(one.loss[0], rel=1e-3)


def test_heads_of_one_sign_are_trapped_at_one_heads_loss():
    """Every flow whose heads all take one sign stops at the single-head optimum, and no other does."""
    start = np.random.default_rng(0).normal(0, 0.01, (2, 60, 2))
    flow = gradient_flows(*start, *PROBLEM, 200.0)
    trapped = same_sign(flow.omega)
    assert 0.2 < trapped.mean() < 0.65
    np.testing.assert_allclose(flow.loss[trapped], paper_single_head(*PROBLEM)[2], atol=1e-4)
    assert np.all(flow.loss[~trapped] < 0.24)


def test_time_zero_is_the_start():
    """The only report may be at time 0."""
    flow = gradient_flow(PAIR, PAIR, *PROBLEM, [0.0])
    np.testing.assert_array_equal(flow.mu[0], PAIR)


@pytest.mark.parametrize(
    ("times", "message"),
    [([], "at least one time"), ([-1.0], "increasing"), ([2.0, 1.0], "increasing"), ([np.nan], "finite")],
)
def test_bad_times_are_refused(times, message):
    """Times increase from 0 on."""
    with pytest.raises(ValueError, match=message):
        gradient_flow(PAIR, PAIR, *PROBLEM, times)


def test_bad_starts_and_methods_are_refused():
    """Messages name the argument, its value and the rule."""
    with pytest.raises(ValueError, match="method 'mc' needs"):
        gradient_flow(PAIR, PAIR, *PROBLEM, [1.0], method="mc")
    with pytest.raises(ValueError, match="has no Euler flow"):
        euler_flow(PAIR, PAIR, *PROBLEM, step=0.1, steps=2, method="mc")
    with pytest.raises(ValueError, match="step=0"):
        euler_flow(PAIR, PAIR, *PROBLEM, step=0, steps=2)
    with pytest.raises(ValueError, match="steps=-1"):
        euler_flow(PAIR, PAIR, *PROBLEM, step=0.1, steps=-1)
    with pytest.raises(ValueError, match="mu has shape"):
        gradient_flow(PAIR[:1], PAIR, *PROBLEM, [1.0])
    with pytest.raises(ValueError, match="start=0"):
        first_phase(0, [1.0])
    with pytest.raises(ValueError, match="start=5"):
        exact_pair_flow(5, *PROBLEM, [1.0])
