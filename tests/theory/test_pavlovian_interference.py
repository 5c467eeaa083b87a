"""Interference of stored pairs: the fast simulation, exact means, and published numbers."""

import numpy as np
import pytest

from refattn.layers.pavlovian import linear_memory_read, linear_memory_write
from theory.pavlovian.interference import (
    decay_error,
    delta_single_pass_error,
    hebb_error,
    interference_curve,
    least_squares_error,
    read_errors,
)
from theory.pavlovian.keys import (
    cumulative_squared_error,
    draw_keys,
    mean_absolute_overlap,
    mean_squared_overlap,
    uniform_on_sphere,
    worst_absolute_error,
)


def test_one_gram_matrix_gives_the_error_of_every_count():
    """The cumulative sum over overlaps equals the error of separate memories, averaged over many values."""
    rng = np.random.default_rng(0)
    keys = draw_keys(rng, 1, 6, 4, "gaussian")[0]
    fast = cumulative_squared_error(keys)
    for n in (1, 3, 6):
        values = rng.standard_normal((40000, n, 2)) / np.sqrt(2)
        S = linear_memory_write(keys[:n], values)
        errors = np.sum((linear_memory_read(S, keys[:n]) - values) ** 2, axis=-1).mean(axis=-1)
        assert abs(errors.mean() - fast[n - 1]) < 4 * errors.std() / 200


def test_the_worst_values_reach_the_worst_error():
    """Values v_i = sign(c_ij) v make the error of the worst item the sum of absolute overlaps."""
    keys = uniform_on_sphere(np.random.default_rng(1), (7, 5))
    overlap = keys @ keys.T - np.eye(7)
    j = np.abs(overlap).sum(axis=0).argmax()
    values = np.sign(overlap[j])[:, None]
    values[j] = 0.5
    error = abs(linear_memory_read(linear_memory_write(keys, values), keys[j : j + 1])[0, 0] - 0.5)
    np.testing.assert_allclose(error, worst_absolute_error(keys)[-1], rtol=1e-12)
    assert (np.diff(worst_absolute_error(keys)) >= 0).all()


@pytest.mark.parametrize("law", ["sphere", "gaussian", "correlated"])
def test_overlaps_have_their_exact_moments(law):
    """Mean squares of overlaps and of lengths are those of the law, within four standard errors."""
    keys = draw_keys(np.random.default_rng(2), 20000, 2, 6, law)
    cross = np.sum(keys[:, 0] * keys[:, 1], axis=-1) ** 2
    own = (np.sum(keys[:, 0] ** 2, axis=-1) - 1) ** 2
    for samples, exact in zip((cross, own), mean_squared_overlap(6, law), strict=True):
        assert abs(samples.mean() - exact) <= 4 * samples.std() / np.sqrt(20000) + 1e-12


def test_mean_absolute_overlap():
    """In two dimensions it is 2/π, and √(2/(πd)) for large d."""
    np.testing.assert_allclose(mean_absolute_overlap(2), 2 / np.pi, rtol=1e-12)
    np.testing.assert_allclose(mean_absolute_overlap(4000), np.sqrt(2 / (np.pi * 4000)), rtol=1e-3)


def test_published_numbers():
    """Gaussian keys add 2/d; one pass of delta has the means .2875, .5958, 1.0581 and .0507."""
    np.testing.assert_allclose([hebb_error(5, 16), hebb_error(5, 16, "gaussian")], [4 / 16, 6 / 16])
    means = [delta_single_pass_error(n, d, 1.0).mean() for n, d in ((16, 32), (32, 32), (64, 32), (20, 200))]
    np.testing.assert_allclose(means, [0.2875, 0.5958, 1.0581, 0.0507], atol=6e-5)
    assert least_squares_error(64, 32) == 0.5
    assert least_squares_error(20, 32) == 0.0


@pytest.mark.parametrize("rate", [0.3, 1.0, 1.5])
def test_one_pass_of_delta_item_by_item(rate):
    """Every item's error is within five standard errors of the recursion; the newest is exact at rate one."""
    errors = read_errors(np.random.default_rng(3), 1500, 12, 6, "delta", rate=rate)
    predicted = delta_single_pass_error(12, 6, rate)
    assert (np.abs(errors.mean(0) - predicted) <= 5 * errors.std(0) / np.sqrt(1500) + 1e-12).all()
    assert rate != 1.0 or predicted[-1] == 0.0


def test_decay_by_age():
    """Measured errors of every age are within five standard errors of the formula."""
    errors = read_errors(np.random.default_rng(4), 1500, 10, 8, "decay", decay=0.8)[:, ::-1]
    assert (np.abs(errors.mean(0) - decay_error(np.arange(10), 10, 8, 0.8)) <= 5 * errors.std(0) / np.sqrt(1500)).all()


def test_curves_hold_measured_beside_predicted():
    """Each count has its exact value and a mean within four standard errors, for Hebb and for delta."""
    rng = np.random.default_rng(5)
    for rule in ("hebb", "delta"):
        table = interference_curve([8, 16], [2, 9], 400, rule, rng=rng)
        assert len(table.where(metric="rel_error2", source="simulation")) == 4
        for row in table.where(metric="rel_error2", source="simulation"):
            exact = table.value(metric="rel_error2", source="exact", dim=row["dim"], n=row["n"])
            assert abs(row["value"] - exact) <= 4 * row["stderr"]
    assert not interference_curve([4], [3], 2, "oja", rng=rng).where(source="exact").rows


def test_bad_arguments_are_refused():
    """Sizes below one, unknown laws, and rates and ages out of range are refused by name."""
    rng = np.random.default_rng(0)
    for call, rule in (
        (lambda: interference_curve([0], [3], 2, rng=rng), "dims="),
        (lambda: interference_curve([3], [3], 0, rng=rng), "trials=0"),
        (lambda: draw_keys(rng, 1, 1, 1, "cube"), "key_law='cube'"),
        (lambda: delta_single_pass_error(3, 3, 2.0), "rate=2.0"),
        (lambda: decay_error(5, 5, 3, 0.5), "age="),
        (lambda: decay_error(1, 5, 3, 1.0), "decay=1.0"),
    ):
        with pytest.raises(ValueError, match=rule):
            call()
