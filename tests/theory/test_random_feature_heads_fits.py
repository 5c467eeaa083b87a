"""The fast fits of random heads against one fit at a time."""

import numpy as np
import pytest

from refattn.layers.random_feature_heads import fit_ridge, predict
from theory.random_feature_heads.experiments_widths import token_curve, width_curve
from theory.random_feature_heads.fits import MODELS, fit_leading, gcv, gram_of, learning_curve
from theory.random_feature_heads.samplers import Dims, sample_task, sphere, target_values, turned

DIMS = Dims(4, 3, 20)


def problem(model="rfa", n=60, m=15, targets=("f1:1", "f2:2"), seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    task = sample_task(n + m, DIMS, targets, rng)
    return gram_of(model, DIMS, task, n, rng, dtype), task


def test_leading_blocks_give_the_fits_of_smaller_training_sets():
    """One factor fits all sizes: errors and cross-validation are those of a fit of its own with the same ridge."""
    gram, task = problem()
    whole = np.trace(gram[:60]) / 60
    for found in fit_leading(gram, task.y, (20, 60), (1e-3, 0.1)):
        K, n = gram[: found.n, : found.n], found.n
        relative = found.ridge_rel * whole / (np.trace(K) / n)
        for t in range(2):
            fit = fit_ridge(K, task.y[:n, t], relative)
            test = np.mean((task.y[60:, t] - predict(fit, gram[60:, :n])) ** 2)
            train = np.mean((task.y[:n, t] - predict(fit, K)) ** 2)
            np.testing.assert_allclose(found.test[t], test, rtol=1e-7)
            np.testing.assert_allclose(found.train[t], train, rtol=1e-6)
            np.testing.assert_allclose(found.gcv[t], fit.gcv, rtol=1e-7)
            np.testing.assert_allclose(gcv(K, task.y[:n, t], found.ridge_rel * whole), fit.gcv, rtol=1e-7)


@pytest.mark.parametrize("model", ["rfa", "brfa", "rfmlp"])
def test_single_precision_features_change_the_errors_by_less_than_a_hundredth(model):
    """At λ_rel = 1e-5 the test errors from float32 features are those from float64."""
    errors = []
    for dtype in (np.float32, np.float64):
        gram, task = problem(model, dtype=dtype)
        (found,) = fit_leading(gram, task.y, (60,), (1e-5,))
        errors.append(found.test)
    np.testing.assert_allclose(*errors, rtol=0.01)


def test_many_heads_have_the_kernel_of_infinitely_many():
    """The Gram matrices of both kinds of heads are near that of their limits."""
    for model, limit in (("rfa", "kernel"), ("brfa", "biased_kernel")):
        rng = np.random.default_rng(0)
        task = sample_task(20, DIMS, ["f1:1"], rng)
        exact = gram_of(limit, DIMS, task, 12, rng)
        near = gram_of(model, DIMS._replace(M=20000), task, 12, rng)
        assert exact.shape == (20, 12)
        assert np.linalg.norm(near - exact) / np.linalg.norm(exact) < 0.03


def test_targets_are_what_their_names_say():
    """f1, f2 and f3 by loops over the keys; γ = 0 makes f3 the correlation target of power 2."""
    rng = np.random.default_rng(0)
    x0, x, beta = sphere(rng, 5, 4), sphere(rng, 5, 3, 4), sphere(rng, 4)
    first = [np.mean([np.dot(beta, x[n, i]) ** 3 for i in range(3)]) for n in range(5)]
    second = [np.mean([np.dot(x0[n], x[n, i]) ** 2 * np.dot(beta, x[n, i]) for i in range(3)]) for n in range(5)]
    np.testing.assert_allclose(target_values("f1:3", x0, x, beta), first, rtol=1e-12)
    np.testing.assert_allclose(target_values("f2:2", x0, x, beta), second, rtol=1e-12)
    np.testing.assert_allclose(target_values("f3:0", x0, x, beta), second, rtol=1e-12)
    np.testing.assert_allclose(turned(np.eye(3), np.pi / 2), np.roll(np.eye(3), 1, axis=1), atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1.0)


@pytest.mark.parametrize("name", ["f4:1", "f1:0", "f2:x", "f1"])
def test_unknown_targets_are_refused(name):
    """A wrong name or power is refused by name."""
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="target="):
        target_values(name, sphere(rng, 2, 3), sphere(rng, 2, 2, 3), sphere(rng, 3))


def test_unknown_models_are_refused():
    """The message lists the models."""
    with pytest.raises(ValueError, match="model='mlp' is not one of rfa"):
        learning_curve("mlp", "f1:1", DIMS, [10], 1e-3, [0])
    assert MODELS[0] == "rfa"


def test_learning_curves_are_tables_that_repeat():
    """The same seeds give the same table; more examples give a smaller error; the first metric is the test error."""
    one, two = (learning_curve("rfa", "f1:1", DIMS._replace(M=100), [20, 80], 1e-4, [0, 1]) for _ in range(2))
    assert one == two
    assert {row["metric"] for row in one} == {"test_error", "train_error", "gcv"}
    errors = [one.where(metric="test_error", n=n).column("value").mean() for n in (20, 80)]
    assert errors[1] < 0.5 * errors[0]


def test_curves_over_heads_and_keys_have_a_row_for_each():
    """`width_curve` holds each number of heads and the limit, `token_curve` each number of keys."""
    heads = width_curve([5, 20], 40, dims=DIMS)
    assert {row["n_heads"] for row in heads if "n_heads" in row} == {0, 5, 20}
    keys = token_curve([1, 3], 30, d=3, n_heads=10)
    assert {(row["model"], row["n_keys"]) for row in keys} == {(m, N) for m in ("rfa", "rfmlp") for N in (1, 3)}
