"""What the dtypes can hold, and the precision classes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.conformance.precision import (
    DTYPES,
    overflow_threshold,
    precision_class,
    round_to,
    smallest_normal,
    smallest_subnormal,
    unit_roundoff,
)

NARROW = DTYPES[1:]


def plain(dtype):
    return np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)


def by_definition(x, dtype):
    """Round by the definition: to a multiple of the spacing at x, ties to even, infinite from the threshold on."""
    bits = {"float32": 24, "float16": 11, "bfloat16": 8}[dtype]
    _, exponent = np.frexp(x)
    spacing = np.ldexp(1.0, np.maximum(exponent, np.log2(smallest_normal(dtype)).astype(int) + 1) - bits)
    rounded = np.rint(x / spacing) * spacing
    return np.where(np.abs(x) >= overflow_threshold(dtype), np.copysign(np.inf, x), rounded)


@pytest.mark.parametrize("dtype", NARROW)
@given(x=st.floats(allow_nan=False, width=64))
def test_rounding_follows_the_definition(dtype, x):
    """Every float64, subnormal or too large, is rounded to the nearest number of the dtype, ties to even."""
    with np.errstate(all="ignore"):
        expected = by_definition(x, dtype) if np.isfinite(x) else x
    assert round_to(np.array(x), dtype) == expected


@pytest.mark.parametrize("dtype", NARROW)
def test_numbers_of_the_dtype_stay(dtype):
    """A number that the dtype holds is not changed, whatever its bits."""
    bits = np.random.default_rng(0).integers(0, 2**16, 4096, dtype=np.uint16)
    wide = np.repeat(bits, plain(dtype).itemsize // 2)
    with np.errstate(all="ignore"):
        values = wide.view(plain(dtype)).astype(np.float64)
    assert np.array_equal(round_to(values, dtype), values, equal_nan=True)


def test_bfloat16_agrees_with_ml_dtypes_on_float32_bits():
    """Random float32 bit patterns round to bfloat16 as in ml_dtypes."""
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    with np.errstate(all="ignore"):
        values = bits.view(np.float32)
        assert np.array_equal(
            round_to(values.astype(np.float64), "bfloat16"),
            values.astype(ml_dtypes.bfloat16).astype(np.float64),
            equal_nan=True,
        )


def test_bfloat16_is_rounded_once():
    """A number just above the middle of two bfloat16 numbers goes up, although its float32 neighbour is the middle."""
    middle = 1.0 + 2.0**-8
    assert round_to(np.array(middle), "bfloat16") == 1.0
    assert round_to(np.array(middle + 2.0**-40), "bfloat16") == 1.0 + 2.0**-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_constants_describe_the_dtype(dtype):
    """Unit roundoff, smallest normal and smallest subnormal number are those of the dtype itself."""
    info = ml_dtypes.finfo(plain(dtype)) if dtype == "bfloat16" else np.finfo(dtype)
    assert unit_roundoff(dtype) == float(info.eps) / 2
    assert smallest_normal(dtype) == float(info.smallest_normal)
    assert smallest_subnormal(dtype) == float(info.smallest_subnormal)


@pytest.mark.parametrize("dtype", NARROW)
def test_overflow_starts_at_the_threshold(dtype):
    """The threshold rounds to infinity and the number below it does not."""
    threshold = overflow_threshold(dtype)
    assert round_to(np.array(threshold), dtype) == np.inf
    assert np.isfinite(round_to(np.array(np.nextafter(threshold, 0)), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_keeps_shape_and_input(dtype):
    """Any shape and stride comes back as float64 of the same shape, and the input is not written to."""
    x = np.random.default_rng(2).standard_normal((4, 6))[::2, ::-3].T
    before = x.copy()
    assert round_to(x, dtype).shape == x.shape
    assert round_to(x, dtype).dtype == np.float64
    assert round_to(np.float64(1.5), dtype).shape == ()
    assert np.array_equal(x, before)


def test_classes_are_those_of_the_sheet():
    """The six unit roundoffs of every class stand as the attention sheet gives them."""
    u, single = 2.0**-8, 2.0**-24
    assert precision_class("fused", "bfloat16")[2:8] == (0.0, single, single, u, single, u)
    assert precision_class("eager", "bfloat16")[2:8] == (u, u, single, u, single, u)
    assert precision_class("low", "bfloat16")[2:8] == (u,) * 6
    assert precision_class("tf32", "float32")[2:8] == (2.0**-11, single, single, 2.0**-11, single, single)
    assert precision_class(None, "float64")[2:8] == (2.0**-53,) * 6


def test_default_class_is_eager_in_sixteen_bits():
    """Without a declaration, 16-bit kernels are framework expressions and wide ones compute in their dtype."""
    assert precision_class(None, "float16").name == "eager"
    assert precision_class(None, "float32").name == "float32"
    assert precision_class("fused", "float32") == precision_class(None, "float32")


def test_accumulators_decide_what_is_lost_near_zero():
    """Wide accumulators have the subnormals of float32; those of the class low have the dtype's own."""
    assert precision_class("fused", "float16").eta_a == smallest_subnormal("float32")
    assert precision_class("low", "float16").eta_a == smallest_subnormal("float16")


@pytest.mark.parametrize(("name", "dtype"), [("quick", "float32"), (None, "float8"), ("float32", "float64")])
def test_unknown_names_are_refused(name, dtype):
    """An unknown class or dtype is a ValueError."""
    with pytest.raises(ValueError, match="is not one of"):
        precision_class(name, dtype)
