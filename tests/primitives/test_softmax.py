"""Softmax and log-sum-exp with hidden entries."""

import ml_dtypes
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.softmax import log_sum_exp, softmax

FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


@given(seed=st.integers(0, 2**32 - 1), axis=st.sampled_from([0, 1, -1]))
def test_agrees_with_scipy(seed, axis):
    """Without a mask both functions equal SciPy's."""
    x = 20 * np.random.default_rng(seed).normal(size=(3, 4, 5))
    np.testing.assert_allclose(softmax(x, axis=axis), scipy.special.softmax(x, axis=axis), rtol=1e-13)
    np.testing.assert_allclose(log_sum_exp(x, axis=axis), scipy.special.logsumexp(x, axis=axis), rtol=1e-13)


@given(seed=st.integers(0, 2**32 - 1))
def test_hidden_entries_never_matter(seed):
    """A masked slice equals the slice of its visible entries, whatever the hidden ones hold."""
    rng = np.random.default_rng(seed)
    x, where = rng.normal(size=(4, 6)), rng.random((4, 6)) < 0.5
    spoiled = np.where(where, x, rng.choice([np.nan, np.inf, -np.inf, 1e308], size=x.shape))
    with np.errstate(all="raise"):
        weights, lse = softmax(spoiled, where=where), log_sum_exp(spoiled, where=where)
    for row, seen, w, total in zip(x, where, weights, lse, strict=True):
        assert (w[~seen] == 0).all()
        if seen.any():
            np.testing.assert_allclose(w[seen], scipy.special.softmax(row[seen]), rtol=1e-13)
            np.testing.assert_allclose(total, scipy.special.logsumexp(row[seen]), rtol=1e-13)


@pytest.mark.parametrize("where", [[False, False], None])
def test_slice_with_nothing_visible(where):
    """Weights are 0 and the log-sum-exp −∞ where all entries are hidden or −∞, without a warning."""
    x = np.array([-np.inf, -np.inf] if where is None else [1.0, 2.0])
    with np.errstate(all="raise"):
        assert softmax(x, where=where).tolist() == [0, 0]
        assert log_sum_exp(x, where=where) == -np.inf


def test_large_and_small_logits_raise_no_flag():
    """Logits of ±1e4, and beyond the range of exp, neither overflow nor warn."""
    with np.errstate(all="raise"):
        assert softmax(np.array([1e4, -1e4, 1e4])).tolist() == [0.5, 0, 0.5]
        assert log_sum_exp(np.array([1e300, -1e300])) == 1e300


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_is_kept(dtype):
    """Both compute and return in the dtype that they are given, with a mask and without."""
    x, where = np.array([[1.0, 2.0, 3.0]], dtype), np.array([True, False, True])
    for mask in (None, where):
        assert softmax(x, where=mask).dtype == dtype
        assert log_sum_exp(x, where=mask).dtype == dtype


def test_visible_nan_poisons_its_slice_only():
    """A visible NaN makes its slice NaN where visible; hidden weights and other slices stay."""
    x, where = np.array([[np.nan, 1.0, 2.0], [1.0, 1.0, 2.0]]), np.array([True, True, False])
    np.testing.assert_array_equal(softmax(x, where=where), [[np.nan, np.nan, 0], [0.5, 0.5, 0]])
    assert np.isnan(log_sum_exp(x, where=where)).tolist() == [True, False]


def test_empty_axis_and_keepdims():
    """A softmax over no entries is empty, its log-sum-exp −∞; keepdims keeps the axis."""
    assert softmax(np.ones((2, 0))).shape == (2, 0)
    assert log_sum_exp(np.ones((2, 0))).tolist() == [-np.inf, -np.inf]
    assert log_sum_exp(np.ones((2, 3)), axis=0, keepdims=True).shape == (1, 3)


def test_subclasses_pass_through():
    """An ndarray subclass comes back as itself, so that models of rounding survive."""

    class Tagged(np.ndarray):
        pass

    x = np.ones((2, 3)).view(Tagged)
    assert type(softmax(x)) is Tagged
    assert type(log_sum_exp(x)) is Tagged


@pytest.mark.parametrize("function", [softmax, log_sum_exp])
def test_bad_arguments_are_named(function):
    """An axis out of range, a mask of the wrong dtype and one of the wrong shape are refused by name."""
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match="axis=2"):
        function(x, axis=2)
    with pytest.raises(ValueError, match="where has dtype int64"):
        function(x, where=[1, 0, 1])
    with pytest.raises(ValueError, match=r"where has shape \(2,\)"):
        function(x, where=[True, False])
    with pytest.raises(TypeError, match="complex"):
        function(x * 1j)


def test_input_is_unchanged():
    """Read-only and strided inputs work and are not written to."""
    x = np.arange(12.0).reshape(3, 4)[::-1, ::2]
    x.flags.writeable = False
    np.testing.assert_array_equal(softmax(x), softmax(x.copy()))
