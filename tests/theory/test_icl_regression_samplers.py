"""Prompts of linear regression: their moments, their shapes, and what is refused."""

import numpy as np
import pytest

from theory.icl_regression.samplers import ar1_covariance, sample_multitask_prompts, sample_prompts


def generator():
    return np.random.default_rng(3)


def mean_is(values, expected, z=4.5):
    """Assert that a sample mean is what is expected, up to its standard error."""
    stderr = values.std(0, ddof=1) / np.sqrt(len(values))
    assert np.all(np.abs(values.mean(0) - expected) <= z * stderr)


def test_prompts_have_the_covariance_that_was_asked_for():
    """Covariates of context and query have covariance Σ, a rule has I/d."""
    cov = ar1_covariance(3, 0.7)
    prompts = sample_prompts(20_000, 2, 3, 0.1, generator(), cov=cov)
    mean_is(prompts.x[:, 1, :, None] * prompts.x[:, 1, None, :], cov)
    mean_is(prompts.x_q[:, :, None] * prompts.x_q[:, None, :], cov)
    mean_is(prompts.beta[:, :, None] * prompts.beta[:, None, :], np.eye(3) / 3)


def test_noise_is_on_every_response_the_querys_included():
    """What the rule does not explain has variance σ², in the context and at the query."""
    prompts = sample_prompts(20_000, 2, 3, 0.4, generator())
    mean_is((prompts.y - np.einsum("bld,bd->bl", prompts.x, prompts.beta)) ** 2, 0.4)
    mean_is((prompts.y_q - np.sum(prompts.x_q * prompts.beta, -1)) ** 2, 0.4)


def test_without_noise_the_rule_explains_everything():
    """With σ² = 0 the responses are exactly linear."""
    prompts = sample_prompts(5, 4, 3, 0.0, generator())
    np.testing.assert_allclose(prompts.y, np.einsum("bld,bd->bl", prompts.x, prompts.beta), rtol=0, atol=1e-14)


def test_tasks_look_at_their_own_coordinates():
    """A rule is zero outside its support, of unit variance inside, and the query has no noise."""
    prompts = sample_multitask_prompts(20_000, 2, 4, ((0, 1), (1, 2, 3)), 0.3, generator())
    assert prompts.y.shape == (20_000, 2, 2)
    assert np.all(prompts.beta[:, 0, 2:] == 0)
    assert np.all(prompts.beta[:, 1, 0] == 0)
    mean_is(prompts.beta[:, 0, :2] ** 2, 1.0)
    np.testing.assert_allclose(prompts.y_q, np.einsum("bnd,bd->bn", prompts.beta, prompts.x_q), atol=1e-13)
    noise = prompts.y - np.einsum("bld,bnd->bln", prompts.x, prompts.beta)
    mean_is(noise**2, 0.3 * np.array([2, 3]))


def test_a_seed_fixes_the_prompts():
    """Equal generators give equal prompts, bit for bit; the global state is not touched."""
    first, second = (sample_prompts(3, 4, 2, 0.1, generator()) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept(dtype):
    """All five arrays have the dtype that was asked for."""
    single = sample_prompts(3, 4, 2, 0.1, generator(), dtype=dtype, cov=ar1_covariance(2, 0.5))
    many = sample_multitask_prompts(3, 4, 2, ((0,), (1,)), 0.1, generator(), dtype=dtype)
    assert {a.dtype for a in (*single, *many)} == {np.dtype(dtype)}


def test_empty_batches_and_single_tokens_work():
    """Zero prompts give empty arrays, and one token, one dimension are enough."""
    assert sample_prompts(0, 3, 2, 0.1, generator()).x.shape == (0, 3, 2)
    assert sample_prompts(2, 1, 1, 0.0, generator()).y.shape == (2, 1)


def test_ar1_covariance_is_the_official_one(oracle):
    """Covariances and their eigenvalues agree with the official helper."""
    found = 0
    for path in oracle("22-icl-linear-regression"):
        with np.load(path) as case:
            if str(case["kind"]) != "ridge_limit_and_covariance":
                continue
            for name in (n for n in case.files if n.startswith("cov_")):
                dim, rho = name.removeprefix("cov_d").split("_rho")
                cov = ar1_covariance(int(dim), float(rho))
                np.testing.assert_allclose(cov, case[name], rtol=0, atol=1e-15)
                eig = np.sort(case[name.replace("cov", "eig", 1)])
                np.testing.assert_allclose(np.linalg.eigvalsh(cov), eig, rtol=0, atol=1e-13)
                found += 1
    if not found:
        pytest.skip("the official covariances are not among the vectors beside this checkout")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": -1}, "batch=-1"),
        ({"length": 0}, "length must be >= 1"),
        ({"dim": 0}, "dim must be >= 1"),
        ({"noise_var": -0.1}, "noise_var=-0.1"),
        ({"noise_var": np.nan}, "noise_var=nan"),
        ({"cov": np.eye(3)}, r"cov has shape \(3, 3\), expected \(2, 2\)"),
        ({"cov": np.array([[1.0, 2.0], [2.0, 1.0]])}, "positive definite"),
        ({"cov": np.array([[1.0, 0.5], [0.0, 1.0]])}, "symmetric"),
    ],
)
def test_bad_problems_are_refused(change, message):
    """The message names the argument, its value and the rule."""
    with pytest.raises(ValueError, match=message):
        sample_prompts(**{"batch": 2, "length": 3, "dim": 2, "noise_var": 0.1, "rng": generator()} | change)


@pytest.mark.parametrize("rho", [1.0, -1.0, 1.5, np.nan])
def test_correlations_beyond_one_are_refused(rho):
    """ρ must lie strictly between −1 and 1."""
    with pytest.raises(ValueError, match="rho must be between -1 and 1"):
        ar1_covariance(3, rho)


@pytest.mark.parametrize(
    ("supports", "message"),
    [
        ((), "at least one task"),
        (((0, 2),), r"must lie in \[0, 2\)"),
        (((-1,),), r"must lie in \[0, 2\)"),
        (((0, 0),), "repeats an index"),
        (((),), "must not be empty"),
    ],
)
def test_bad_supports_are_refused(supports, message):
    """A support names coordinates that exist, each once."""
    with pytest.raises(ValueError, match=message):
        sample_multitask_prompts(2, 3, 2, supports, 0.1, generator())
