"""Root-mean-square, layer and batch normalisation."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.norms import batch_norm, layer_norm, rms_norm

seeds = st.integers(0, 2**16)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@given(seeds, st.integers(1, 9), st.sampled_from([1e-6, 0.1]))
def test_rms_norm_is_its_formula_row_by_row(seed, width, eps):
    """Each row is divided by the square root of its mean square plus eps, then scaled."""
    x, weight = draw(seed, 2, 3, width), draw(seed + 1, width)
    y = rms_norm(x, weight, eps=eps)

    for row, out in zip(x.reshape(-1, width), y.reshape(-1, width), strict=True):
        size = np.sqrt(sum(float(v) ** 2 for v in row) / width + eps)
        np.testing.assert_allclose(out, row / size * weight, rtol=1e-13, atol=0)


@given(seeds, st.integers(1, 9))
def test_layer_norm_gives_mean_zero_and_variance_one(seed, width):
    """Before scale and shift, rows have mean 0 and population variance v / (v + eps)."""
    x = draw(seed, 4, width)
    y = layer_norm(x, None, None, eps=0.5)
    variance = x.var(axis=-1)

    np.testing.assert_allclose(y.mean(axis=-1), 0.0, atol=1e-14)
    np.testing.assert_allclose(y.var(axis=-1), variance / (variance + 0.5), rtol=1e-12, atol=1e-14)


@given(seeds, st.floats(-1e3, 1e3))
def test_layer_norm_forgets_where_zero_is(seed, shift):
    """Adding a constant to all channels changes nothing; root-mean-square normalisation does notice."""
    x, weight, bias = draw(seed, 3, 6), draw(seed + 1, 6), draw(seed + 2, 6)

    np.testing.assert_allclose(layer_norm(x + shift, weight, bias), layer_norm(x, weight, bias), rtol=0, atol=1e-9)
    assert abs(shift) < 1e-3 or not np.allclose(rms_norm(x + shift, weight), rms_norm(x, weight), atol=1e-9)


@given(seeds, st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**20]))
def test_rms_norm_forgets_size_exactly_when_eps_is_zero(seed, size):
    """Without eps, multiplying the input by a power of two changes no bit."""
    x, weight = draw(seed, 3, 5), draw(seed + 1, 5)

    assert np.array_equal(rms_norm(size * x, weight, eps=0.0), rms_norm(x, weight, eps=0.0))


def test_layer_norm_does_not_cancel_far_from_zero():
    """At 1e8 the variance comes from centred values: a difference of mean squares would give noise."""
    x = 1e8 + np.array([[1.0, 2.0, 3.0, 4.0]])

    np.testing.assert_allclose(layer_norm(x, None, None), layer_norm(x - 1e8, None, None), rtol=1e-9)


@given(seeds, st.sampled_from([-1, 0, 1, 2]))
def test_batch_norm_is_an_affine_map_of_each_channel(seed, axis):
    """Channel c becomes (x − mean_c) / sqrt(variance_c + eps) · weight_c + bias_c, wherever the channels are."""
    x = draw(seed, 2, 3, 4)
    width = x.shape[axis]
    mean, variance, weight, bias = draw(seed + 1, 4, width)
    variance = variance**2
    y = batch_norm(x, mean, variance, weight, bias, eps=1e-3, axis=axis)

    for c in range(width):
        expected = (np.take(x, c, axis) - mean[c]) / np.sqrt(variance[c] + 1e-3) * weight[c] + bias[c]
        np.testing.assert_allclose(np.take(y, c, axis), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_dtype_is_kept_and_half_precision_does_not_overflow(dtype):
    """Each dtype comes back; the squares of 300 overflow float16 but not the norm."""
    x = np.full((2, 4), 300.0).astype(dtype)
    ones = np.ones(4, dtype)

    for y in (rms_norm(x, ones), layer_norm(x, ones, ones), batch_norm(x, ones, ones, ones, ones)):
        assert y.dtype == dtype
        assert np.isfinite(y.astype(np.float64)).all()
    np.testing.assert_allclose(rms_norm(x, ones).astype(np.float64), 1.0, rtol=1e-10)


def test_no_rows_give_no_rows():
    """An empty batch passes through all three."""
    x, ones = np.zeros((0, 3)), np.ones(3)

    assert rms_norm(x, ones).shape == (0, 3)
    assert layer_norm(x, ones, ones).shape == (0, 3)
    assert batch_norm(x, ones, ones, ones, ones).shape == (0, 3)


def test_inputs_are_left_alone():
    """Read-only, strided inputs work and keep their values."""
    x = draw(0, 4, 6)[::2, ::-1]
    x.flags.writeable = False
    kept = x.copy()

    np.testing.assert_array_equal(rms_norm(x, np.ones(6)), rms_norm(kept, np.ones(6)))
    np.testing.assert_array_equal(layer_norm(x, None, None), layer_norm(kept, None, None))
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(np.ones((2, 3)), np.ones(2)), r"weight has shape \(2,\), expected \(3,\)"),
        (lambda: rms_norm(np.ones((2, 3)), np.ones(3), eps=-1.0), r"eps=-1.0 must be >= 0"),
        (lambda: rms_norm(np.ones((2, 0)), np.ones(0)), "at least one channel"),
        (lambda: layer_norm(np.ones((2, 3)), None, np.ones((1, 3))), r"bias has shape \(1, 3\), expected \(3,\)"),
        (lambda: layer_norm(np.array(1.0), None, None), "at least one channel"),
        (lambda: batch_norm(np.ones((2, 3)), np.ones(3), -np.ones(3), None, None), "variance must be >= 0"),
        (lambda: batch_norm(np.ones((2, 3)), np.ones(2), np.ones(3), None, None), "mean has shape"),
        (lambda: batch_norm(np.ones((2, 3)), np.ones(3), np.ones(3), None, None, axis=2), "axis=2 does not exist"),
        (lambda: batch_norm(np.ones((2, 3)), np.ones(3), np.ones(3), None, None, eps=-1.0), "eps=-1.0 must be >= 0"),
    ],
)
def test_bad_input_is_named(call, message):
    """What does not fit is refused with the argument's name and the rule."""
    with pytest.raises(ValueError, match=message):
        call()
