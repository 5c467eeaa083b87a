"""The point-wise non-linearities."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.activations import gelu, sigmoid, silu

ALL = [gelu, sigmoid, silu]
finite = st.floats(-700.0, 700.0)


@given(finite)
def test_sigmoid_is_its_formula_to_the_last_digits(x):
    """The relative error is of the order of rounding on both sides, where 1 − σ would cancel too."""
    exact = 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))

    assert float(sigmoid(np.array(x))) == pytest.approx(exact, rel=1e-14)


@given(st.floats(-30.0, 30.0))
def test_gelu_is_the_erf_form_and_keeps_its_digits_on_the_left(x):
    """GELU is x Φ(x); far left it equals x/2 erfc(−x/√2), which does not cancel."""
    exact = 0.5 * x * math.erfc(-x / math.sqrt(2.0))

    assert float(gelu(np.array(x))) == pytest.approx(exact, rel=1e-13)


def test_gelu_is_not_the_tanh_approximation():
    """The two common forms differ by more than 1e-4 near 2, so that one cannot pass for the other."""
    approximate = 0.5 * 2.0 * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (2.0 + 0.044715 * 8.0)))

    assert abs(float(gelu(np.array(2.0))) - approximate) > 5e-5


@given(finite)
def test_silu_and_gelu_gain_exactly_their_argument_from_left_to_right(x):
    """f(x) − f(−x) = x for both, because their weights on x and −x sum to 1."""
    for f in (gelu, silu):
        assert float(f(np.array(x)) - f(np.array(-x))) == pytest.approx(x, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("f", ALL)
def test_extreme_arguments_raise_no_warning(f):
    """±1e4 and ±1e300 give limits, without overflow, in arithmetic that raises on any exception."""
    with np.errstate(all="raise"):
        values = f(np.array([-1e300, -1e4, 1e4, 1e300]))

    assert values[:2].tolist() == [0.0, 0.0]
    assert values[2:].tolist() == ([1.0, 1.0] if f is sigmoid else [1e4, 1e300])


@pytest.mark.parametrize("f", ALL)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_dtype_and_shape_are_kept(f, dtype):
    """Each dtype comes back as it went in, any shape, and is within one rounding of the float64 value."""
    x = np.linspace(-4.0, 4.0, 24).reshape(2, 3, 4).astype(dtype)
    y = f(x)

    assert y.dtype == dtype
    assert y.shape == x.shape
    unit = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(y.astype(np.float64), f(x.astype(np.float64)), rtol=4 * unit, atol=0)


@pytest.mark.parametrize("f", ALL)
def test_other_dtypes_are_converted_or_refused(f):
    """Integers become float64; complex numbers are refused by name."""
    assert f([1, 2]).dtype == np.float64
    with pytest.raises(TypeError, match="x has dtype complex"):
        f(np.array([1j]))
