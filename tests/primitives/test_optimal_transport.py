"""Optimal transport: marginals, optimality, limits, and POT."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.optimal_transport import (
    emd_plan,
    pairwise_sq_cost,
    sinkhorn_plan,
    sinkhorn_potentials,
    transport_map,
)
from refattn.primitives.softmax import softmax


def draw(seed=0, n=5, m=7, d=3, *, uniform=False):
    """Return masses of two clouds, and the clouds."""
    rng = np.random.default_rng(seed)
    a, b = (np.full(k, 1.0) if uniform else rng.random(k) + 0.1 for k in (n, m))
    return a / a.sum(), b / b.sum(), rng.standard_normal((n, d)), rng.standard_normal((m, d)) + 0.5


def close(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def test_costs_are_squared_distances():
    """Each cost is the sum of squared differences, by one loop a number; divisors are their largest and median."""
    _, _, x, y = draw()
    naive = np.array([[sum((p - q) ** 2 for p, q in zip(xi, yj, strict=True)) for yj in y] for xi in x])
    close(pairwise_sq_cost(x, y), naive)
    close(pairwise_sq_cost(x, y, normalize="max"), naive / naive.max())
    close(pairwise_sq_cost(x, y, normalize="median"), naive / np.median(naive))
    assert not pairwise_sq_cost(np.ones((2, 3)), np.ones((4, 3)), normalize="max").any()


@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_plans_keep_to_their_masses(seed, n, m, uniform):
    """Plans are not negative; rows sum to a and columns to b, exactly for EMD and to its tolerance for Sinkhorn."""
    a, b, x, y = draw(seed, n, m, uniform=uniform)
    cost = pairwise_sq_cost(x, y, normalize="max")
    for plan, atol in ((emd_plan(a, b, cost), 1e-12), (sinkhorn_plan(a, b, cost, 0.1), 1e-9)):
        assert (plan >= 0).all()
        close(plan.sum(1), a, atol)
        close(plan.sum(0), b, 1e-12)


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("solve", [emd_plan, lambda a, b, c: sinkhorn_plan(a, b, c, 0.5, tol=1e-12)])
def test_plans_have_no_order_and_no_direction(solve, uniform):
    """Permuting both sides permutes the plan; exchanging the sides transposes it."""
    a, b, x, y = draw(n=6, m=6, uniform=uniform)
    cost = pairwise_sq_cost(x, y, normalize="max")
    plan = solve(a, b, cost)
    i, j = np.random.default_rng(1).permuted(np.tile(np.arange(6), (2, 1)), axis=1)
    close(solve(a[i], b[j], cost[np.ix_(i, j)]), plan[np.ix_(i, j)], 1e-10)
    close(solve(b, a, cost.T), plan.T, 1e-10)


def test_the_exact_plan_is_the_best_of_all_assignments():
    """With equal masses and n = m, n P is a permutation matrix, and no permutation costs less."""
    from itertools import permutations

    a, b, x, y = draw(n=5, m=5, uniform=True)
    cost = pairwise_sq_cost(x, y)
    plan = emd_plan(a, b, cost)
    close(np.sort(5 * plan, axis=1), np.tile([0.0, 0.0, 0.0, 0.0, 1.0], (5, 1)))
    best = min(sum(cost[i, j] for i, j in enumerate(p)) for p in permutations(range(5))) / 5
    close(np.sum(plan * cost), best)
    close(np.sort(transport_map(plan, y), axis=0), np.sort(y, axis=0))


def test_a_linear_program_and_an_assignment_agree():
    """Masses that are equal up to rounding go through the linear program and give the same plan."""
    a, b, x, y = draw(n=6, m=6, uniform=True)
    cost = pairwise_sq_cost(x, y)
    nearly = a * (1 + 1e-15 * np.arange(6))
    close(emd_plan(nearly, b, cost), emd_plan(a, b, cost), 1e-12)


def test_entropy_costs_and_the_cost_grows_with_it():
    """0 ≤ ⟨P_ε, C⟩ − ⟨P*, C⟩ ≤ ε log(nm), without decreasing in ε; a large ε ends at the product of the masses."""
    a, b, x, y = draw()
    cost = pairwise_sq_cost(x, y, normalize="max")
    exact = np.sum(emd_plan(a, b, cost) * cost)
    regs = (0.02, 0.05, 0.1, 0.5, 2.0)
    gaps = np.array([np.sum(sinkhorn_plan(a, b, cost, reg) * cost) - exact for reg in regs])
    assert (gaps >= -1e-9).all()
    assert (np.diff(gaps) >= -1e-9).all()
    assert (gaps <= np.array(regs) * np.log(35)).all()
    close(sinkhorn_plan(a, b, cost, 1e4), np.outer(a, b), 1e-3)
    far, near = (np.abs(sinkhorn_plan(a, b, cost, reg) - emd_plan(a, b, cost)).max() for reg in (0.1, 0.01))
    assert near < far / 2


def test_a_shift_is_found_exactly():
    """A target that is the source, shifted, is where every source token goes; no shift leaves them in place."""
    a, _, x, _ = draw(n=8, uniform=True)
    for shift in (0.0, np.array([5.0, -3.0, 1.0])):
        plan = emd_plan(a, a, pairwise_sq_cost(x, x + shift))
        close(transport_map(plan, x + shift), x + shift)


def test_half_a_step_is_attention():
    """Rows made right, columns not yet: with uniform masses the plan is the softmax of −C/ε, over n."""
    a, b, x, y = draw(uniform=True)
    cost = pairwise_sq_cost(x, y)
    f, _, _, _ = sinkhorn_potentials(a, b, cost, 0.7, tol=None, max_iter=1)
    half = np.exp((f[:, None] - cost) / 0.7)
    close(half / half.sum(1, keepdims=True), softmax(-cost / 0.7))
    close(half.sum(1), a)


def test_mixtures_stay_among_their_targets():
    """Every coordinate of a mapped point lies between the least and the largest of the targets."""
    a, b, x, y = draw()
    mapped = transport_map(sinkhorn_plan(a, b, pairwise_sq_cost(x, y), 0.5), y)
    assert (mapped >= y.min(0) - 1e-12).all()
    assert (mapped <= y.max(0) + 1e-12).all()


def test_points_without_mass_take_no_part():
    """A source or target of mass 0 leaves the other entries as they are without it."""
    a, b, x, y = draw()
    cost = pairwise_sq_cost(x, y)
    more_a, more_b = np.append(a, 0.0), np.append(b, 0.0)
    more = np.pad(cost, (0, 1), constant_values=0.3)
    for solve in (emd_plan, lambda *problem: sinkhorn_plan(*problem, 0.5)):
        plan = solve(more_a, more_b, more)
        close(plan[:-1, :-1], solve(a, b, cost), 1e-8)
        assert not plan[-1].any()
        assert not plan[:, -1].any()


def test_batches_are_solved_one_by_one():
    """Leading axes hold problems of their own, and broadcast."""
    a, b, x, y = draw()
    costs = np.stack([pairwise_sq_cost(x, y), pairwise_sq_cost(x, -y)])
    for solve in (emd_plan, lambda *problem: sinkhorn_plan(*problem, 1.0, tol=None, max_iter=5)):
        close(solve(a, b, costs), np.stack([solve(a, b, c) for c in costs]))


def test_a_small_eps_does_not_overflow():
    """C/ε of 10 000 still gives finite plans with the right columns."""
    a, b, x, y = draw()
    cost = pairwise_sq_cost(x, y, normalize="max")
    plan = sinkhorn_plan(a, b, cost, 1e-4, tol=None, max_iter=200)
    close(plan.sum(0), b)


def test_the_dtype_is_kept():
    """float32 in, float32 out; the tolerance is reached all the same."""
    a, b, x, y = (t.astype(np.float32) for t in draw())
    cost = pairwise_sq_cost(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = sinkhorn_plan(a, b, cost, 1.0)
    assert plan.dtype == emd_plan(a, b, cost).dtype == transport_map(plan, y).dtype == np.float32


def test_no_convergence_is_never_silent():
    """What ``max_iter`` steps do not reach is a warning and a plan; a fixed number of steps is neither."""
    a, b, x, y = draw()
    cost = pairwise_sq_cost(x, y)
    with pytest.warns(RuntimeWarning, match="max_iter=2 steps: rows are off by"):
        plan = sinkhorn_plan(a, b, cost, 0.1, max_iter=2)
    close(plan, sinkhorn_plan(a, b, cost, 0.1, tol=None, max_iter=2))
    assert sinkhorn_potentials(a, b, cost, 0.1, tol=None, max_iter=2).steps == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b, c: sinkhorn_plan(a, b, c, 0.0), "reg=0.0 must be > 0"),
        (lambda a, b, c: sinkhorn_plan(a, b, c, 1.0, max_iter=0), "max_iter=0 must be >= 1"),
        (lambda a, b, c: sinkhorn_plan(a, b, c, 1.0, tol=0.0), "tol=0.0 must be > 0"),
        (lambda a, b, c: sinkhorn_plan(-a, b, c, 1.0), "a must be finite and >= 0"),
        (lambda a, b, c: emd_plan(a, -b, c), "b must be finite and >= 0"),
        (lambda a, b, c: emd_plan(a, b * 1.1, c), "totals of a and b differ by 1.0e-01"),
        (lambda a, b, c: emd_plan(0 * a, 0 * b, c), "a has no mass to move"),
        (lambda a, b, c: emd_plan(a, b, c * np.nan), "must be finite"),
        (lambda a, b, c: emd_plan(a, b, c.T), "cost has shape"),
        (lambda a, b, c: transport_map(0 * c, np.ones((7, 2))), "row without mass"),
        (lambda a, b, c: transport_map(-c, np.ones((7, 2))), "negative entry"),
        (lambda a, b, c: transport_map(c, np.ones((6, 2))), "target has 6 points"),
        (lambda a, b, c: pairwise_sq_cost(c, c.T), "y has width"),
        (lambda a, b, c: pairwise_sq_cost(c, c, normalize="mean"), "normalize='mean'"),
        (lambda a, b, c: pairwise_sq_cost(c[:0], c), "no point has no cost"),
    ],
)
def test_bad_problems_are_refused(call, message):
    """Arguments out of range are refused by name."""
    a, b, x, y = draw()
    with pytest.raises(ValueError, match=message):
        call(a, b, pairwise_sq_cost(x, y))


@pytest.mark.parametrize(
    ("n", "m", "uniform"), [(5, 7, False), (6, 6, True), (4, 4, False), (1, 3, False), (3, 1, True)]
)
def test_pot_agrees(n, m, uniform, monkeypatch):
    """Costs, both plans and the exact map are those of POT."""
    for library in ("PYTORCH", "JAX", "CUPY", "TENSORFLOW"):  # importing them takes long
        monkeypatch.setenv(f"POT_BACKEND_DISABLE_{library}", "1")
    ot = pytest.importorskip("ot")
    a, b, x, y = draw(3, n, m, uniform=uniform)
    cost = pairwise_sq_cost(x, y)
    close(cost, ot.dist(x, y))
    close(emd_plan(a, b, cost), ot.emd(a, b, cost))
    ours = sinkhorn_plan(a, b, cost, 0.5, tol=1e-14)
    close(
        ours, ot.sinkhorn(a, b, cost, 0.5, method="sinkhorn_log", stopThr=1e-13, numItermax=10_000, warn=False), 1e-10
    )
    if uniform:
        mapped = ot.da.EMDTransport().fit(Xs=x, Xt=y).transform(Xs=x)
        close(transport_map(emd_plan(a, b, cost), y), mapped)
