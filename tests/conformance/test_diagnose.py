"""Diagnosis: a wrong output is named when it equals a planted bug up to rounding, and only then."""

import numpy as np
import pytest
from toy import backends
from toy.contracts.centre import CONTRACT, centre

from refattn.conformance.backend import Backend
from refattn.conformance.diagnose import diagnose
from refattn.conformance.precision import round_to
from refattn.conformance.trial import Bench

ENTRY = CONTRACT.entries[0]


def outcomes(function, dtype="float64"):
    bench = Bench(Backend(backends.backend(function), "f"), CONTRACT)
    tried = [bench.try_case(ENTRY, make("normal", dtype, s)) for make in ENTRY.scenarios.values() for s in range(2)]
    return [outcome for outcome in tried if outcome.status == "fail"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("bug", ENTRY.bugs, ids=lambda bug: bug.name)
def test_every_planted_bug_is_recognised_through_rounding(bug, dtype):
    """A bug computed in a low dtype is named, and named alone."""

    def rounded_wrong(x, **options):
        return bug.wrong(np.asarray(x, np.float64), **options).astype(x.dtype)

    assert diagnose(ENTRY, outcomes(rounded_wrong, dtype)) == (bug.name,)


def test_a_mistake_of_another_kind_gets_no_name():
    """Something wrong that is no planted bug matches none."""
    assert diagnose(ENTRY, outcomes(lambda x, **_: np.full_like(x, 0.3))) == ()


def test_a_right_output_gets_no_name():
    """A bug that does not act on a case cannot be its diagnosis."""
    bench = Bench(Backend(backends.right, "right"), CONTRACT)
    outcome = bench.try_case(ENTRY, ENTRY.scenarios["plain"]("normal", "float64", 0))

    assert diagnose(ENTRY, [outcome]) == ()


def test_a_mixture_is_named_by_the_majority():
    """A kernel that makes one mistake on most cases is named after it."""
    calls = iter(range(100))

    def mostly(x, **options):
        return x if next(calls) else np.zeros_like(x)

    assert diagnose(ENTRY, outcomes(mostly)) == ("no_mean",)


def test_rounding_of_the_reference_is_not_a_bug():
    """The right result, rounded, fails nothing and needs no name."""
    assert not outcomes(lambda x, **options: round_to(centre(x, **{"gain": 1.0, **options}), "float64"))
