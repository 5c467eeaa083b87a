"""Capacity, depth, conditioning, and the published memories."""

import numpy as np
import pytest

from theory.pavlovian.capacity import DEFINITIONS, capacity, capacity_theory, decoding_accuracy
from theory.pavlovian.conditioning import Phase, blocked, conditioning_experiment, overshadowed, strengths
from theory.pavlovian.depth import (
    any_of_failure,
    chain_reliability,
    depth_error,
    depth_error_theory,
    majority_failure,
    redundancy,
    required_width,
)
from theory.pavlovian.memory_models import (
    MODELS,
    cover_probability,
    dense_bit_error,
    hopfield_bit_error,
    hopfield_bit_error_exact,
    memory_model_capacity,
    modern_base,
    modern_one_step_bound,
    polynomial_error,
    softmax_crosstalk,
)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_measured_capacity_is_near_its_theory(definition):
    """Each definition's measured capacity is within a quarter of the prediction at moderate width."""
    epsilon = {"average": 0.5, "error_free": 1.0, "bits": 0.5, "decode": 0.1}[definition]
    table = capacity([96], epsilon, definition, 16, rng=np.random.default_rng(0))
    np.testing.assert_allclose(table.value(source="simulation"), table.value(source="theory"), rtol=0.25)


def test_capacities_of_the_two_abstracts():
    """On average the capacity is 1 + ε² d; without error it grows like √d up to a logarithm."""
    assert capacity_theory(1024, 0.5) == 257.0
    worst = [capacity_theory(d, 1.0, "error_free") for d in (32, 64, 128, 256, 512, 1024, 2048)]
    np.testing.assert_allclose(worst, [5.3, 7.3, 10.2, 14.6, 21.0, 30.4, 44.1], atol=0.06)
    np.testing.assert_allclose(capacity_theory(2048, 1.0, "error_free", leading=True), 57.7, atol=0.05)


def test_decoding_is_certain_for_one_pair_and_hopeless_for_many():
    """The accuracy falls from 1 to about 1/n."""
    assert decoding_accuracy(1, 16, 16) == pytest.approx(1.0)
    assert decoding_accuracy(4000, 4, 4) < 0.05


def test_chains():
    """The four chains of the depth figure have the exact errors .515, 2.47, .577 and 9.70."""
    chains = ((8, 64, 1, 4), (8, 64, 1, 12), (16, 64, 4, 8), (32, 64, 1, 6))
    np.testing.assert_allclose([depth_error_theory(*c) for c in chains], [0.515, 2.475, 0.577, 9.697], atol=6e-4)
    measured = depth_error(8, 32, 2, 3, 400, rng=np.random.default_rng(0)).one(source="simulation")
    assert abs(measured["value"] - depth_error_theory(8, 32, 2, 3)) <= 4 * measured["stderr"]


def test_required_width_is_what_the_error_asks_for():
    """A chain of the required width has just the error ε², whatever the number of heads."""
    for heads in (1, 4):
        width = required_width(20, 6, 0.5, heads)
        np.testing.assert_allclose((1 + 19 / (width * heads)) ** 6 - 1, 0.25, rtol=1e-12)


def test_votes_and_redundancy():
    """Three heads fail by majority with 3p² − 2p³; redundancy keeps the chain's failure below δ."""
    p = 0.1
    np.testing.assert_allclose(majority_failure(p, 3), 3 * p**2 - 2 * p**3, rtol=1e-12)
    heads = redundancy(p, 10, 0.01)
    assert 1 - chain_reliability(any_of_failure(p, heads), 10) <= 0.01
    assert redundancy(p, 100, 0.01) - heads == pytest.approx(1.0)


def test_cleanup_follows_the_vote():
    """The failure of a chain with clean-up is that of L votes, within four standard errors."""
    table = depth_error(30, 16, 3, 3, 500, cleanup=True, rng=np.random.default_rng(1))
    measured, predicted = (table.value(metric="chain_failure", source=s) for s in ("simulation", "theory"))
    assert abs(measured - predicted) <= 4 * np.sqrt(predicted * (1 - predicted) / 500)


def test_blocking_in_numbers():
    """After 50 trials alone at αβ = 0.2, A leaves B the strength 7.136238e-6; Hebb gives B all the same η a trial."""
    phases = [Phase((0,), 1.0, 50), Phase((0, 1), 1.0, 200)]
    V = strengths(phases, (1.0, 1.0))[-1]
    np.testing.assert_allclose(V[1], 7.136238e-6, rtol=1e-6)
    np.testing.assert_allclose(V, [1 - blocked(50, 0.2), blocked(50, 0.2)], rtol=1e-9)
    np.testing.assert_allclose(strengths(phases, (1.0, 1.0), "hebb")[-1, 1], 0.2 * 200, rtol=1e-12)


def test_conditioning_tables_and_saliences():
    """The table holds every trial of every cue; cues shown together share by salience."""
    table = conditioning_experiment([Phase((0, 1), 1.0, 200)], (1.0, 0.5))
    assert len(table) == 2 * 201
    final = [table.value(trial=200, stimulus=x) for x in (0, 1)]
    np.testing.assert_allclose(final, overshadowed((1.0, 0.5)), atol=1e-6)


def test_published_memories():
    """Bit errors, Cover's count, kernels and the Ramsauer bases have their published values."""
    np.testing.assert_allclose(
        [modern_base(20, 1, 3, 0.001), modern_base(75, 1, 1, 0.001)], [3.1546, 1.3719], atol=6e-5
    )
    np.testing.assert_allclose(
        [cover_probability(n, 10) for n in (15, 20, 25, 30)], [0.910, 0.5, 0.154, 0.031], atol=5e-4
    )
    np.testing.assert_allclose([hopfield_bit_error(20, 100), hopfield_bit_error(50, 200)], [0.0112, 0.0219], atol=6e-5)
    np.testing.assert_allclose(hopfield_bit_error_exact(20, 100), hopfield_bit_error(20, 100), rtol=0.02)
    np.testing.assert_allclose([dense_bit_error(200, 30, 3), dense_bit_error(600, 60, 3)], [0.1103, 0.0786], atol=6e-5)
    np.testing.assert_allclose([polynomial_error(100, 20, 2), polynomial_error(300, 20, 3)], [0.675, 0.4247], atol=6e-5)
    crosstalk = [softmax_crosstalk(*c) for c in ((200, 16, 8.0), (2000, 16, 16.0), (500, 32, 10.0))]
    np.testing.assert_allclose(crosstalk, [0.413, 0.102, 0.101], atol=6e-4)


def test_capacities_of_published_memories():
    """The order is that of the literature at d = 100; a separated pattern is retrieved within the bound."""
    counts = {model: memory_model_capacity(model, 100) for model in MODELS}
    assert counts["hopfield"] < counts["pinv"] < counts["dense"] < counts["exponential"]
    assert counts["cover"] == 200.0
    assert memory_model_capacity("hopfield", 100, demand="small_error") == pytest.approx(13.8)
    patterns = 4.0 * np.eye(5)
    step = np.exp(patterns @ patterns[0])
    retrieved = step / step.sum() @ patterns
    assert np.linalg.norm(retrieved - patterns[0]) <= modern_one_step_bound(patterns, 1.0, 0.0)[0]


def test_bad_arguments_are_refused():
    """Sizes, probabilities and names out of range are refused by name."""
    rng = np.random.default_rng(0)
    for call, rule in (
        (lambda: capacity([8], 0.5, "typical", rng=rng), "definition='typical'"),
        (lambda: capacity([8], 0.5, trials=0, rng=rng), "trials=0"),
        (lambda: capacity_theory(8, 0.0), "epsilon=0.0"),
        (lambda: capacity_theory(8, 1.0, "bits"), "epsilon=1.0"),
        (lambda: depth_error(4, 4, 2, 2, 5, cleanup=True, rng=rng), "heads=2 must be odd"),
        (lambda: depth_error(4, 4, 1, 0, 5, rng=rng), "layers=0"),
        (lambda: required_width(4, 2, 0.0), "epsilon=0.0"),
        (lambda: redundancy(1.0, 2, 0.1), "failure=1.0"),
        (lambda: memory_model_capacity("willshaw", 9), "model='willshaw'"),
        (lambda: memory_model_capacity("exponential", 9, exponent=0.4), "exponent=0.4"),
        (lambda: memory_model_capacity("dense", 9, degree=1), "degree=1"),
        (lambda: strengths([Phase((2,), 1.0, 1)], (1.0,)), "cs="),
        (lambda: strengths([Phase((0,), 1.0, 0)], (1.0,)), "trials=0"),
        (lambda: strengths([Phase((0,), 1.0, 1)], (0.0,)), "saliences="),
    ):
        with pytest.raises(ValueError, match=rule):
            call()
