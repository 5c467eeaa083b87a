"""The shrinker: small where it may be, never smaller than the fault, never past its time."""

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refattn.conformance.contract import Case
from refattn.conformance.shrink import shrink

AXES = {"q": ("B", "H", "Sq", "d"), "k": ("B", "H", "Sk", "d"), "mask": ("B", "H", "Sq", "Sk")}


def case(**options):
    rng = np.random.default_rng(0)
    arrays = {
        "q": rng.standard_normal((2, 4, 6, 8)),
        "k": rng.standard_normal((2, 4, 7, 8)),
        "mask": rng.random((2, 1, 6, 7)) < 0.5,
    }
    return Case("attention", arrays, options, "float64")


def small(fails, start=None, seconds=5.0):
    return shrink(start or case(causal=True, scale=0.3), fails, positional=("q", "k"), axes=AXES, seconds=seconds)


def test_a_fault_that_is_always_there_shrinks_to_one_of_everything():
    """With nothing to hold it, every axis goes to one, every number to zero, every option away."""
    result = small(lambda _: True)

    assert result.arrays["q"].shape == result.arrays["k"].shape == (1, 1, 1, 1)
    assert not result.options
    assert set(result.arrays) == {"q", "k"}
    assert not result.arrays["q"].any()


@given(st.integers(1, 6), st.integers(1, 7))
def test_an_axis_stops_at_the_length_that_the_fault_needs(queries, keys):
    """The smallest lengths that still fail are found exactly, broadcast axes left alone."""
    result = small(lambda c: c.arrays["q"].shape[2] >= queries and c.arrays["k"].shape[2] >= keys)

    assert result.arrays["q"].shape[2] == queries
    assert result.arrays["k"].shape[2] == keys


def test_an_option_that_matters_stays():
    """Only the option that the fault needs is kept."""
    assert dict(small(lambda c: "scale" in c.options).options) == {"scale": 0.3}


def test_arrays_that_share_an_axis_are_cut_together():
    """A case stays consistent: the mask follows queries and keys."""
    result = small(lambda c: "mask" in c.arrays and c.arrays["q"].shape[2] >= 3)

    assert result.arrays["mask"].shape == (1, 1, 3, 1)


def test_a_single_number_that_matters_stays():
    """One large number is enough, and is all that is left."""

    def fails(c):
        return bool(np.any(np.abs(c.arrays["q"]) > 2.0))

    result = small(fails)

    assert fails(result)
    assert np.count_nonzero(result.arrays["q"]) == 1


def test_the_result_always_fails():
    """Whatever the predicate, the returned case satisfies it: a shrinker that returns a passing case is fooled."""

    def fickle(c):
        return c.arrays["q"].size % 3 == 0 and c.arrays["k"].shape[1] == c.arrays["q"].shape[1]

    assert fickle(small(fickle))


def test_time_is_kept():
    """A slow predicate does not keep the shrinker much beyond its time."""
    begin = time.monotonic()

    small(lambda _: time.sleep(0.05) is None, seconds=0.2)

    assert time.monotonic() - begin < 5.0


def test_the_case_given_is_not_changed():
    """Shrinking leaves the original case as it was."""
    start = case(causal=True)
    before = start.arrays["q"].copy()

    small(lambda _: True, start)

    np.testing.assert_array_equal(start.arrays["q"], before)
