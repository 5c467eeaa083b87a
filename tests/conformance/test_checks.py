"""The kit on a toy mechanism: right backends pass, and each kind of wrong one is caught for the right reason."""

from dataclasses import replace

import pytest
from toy import backends
from toy.contracts.centre import CONTRACT

from refattn.conformance.backend import Backend
from refattn.conformance.checks import perform, plan
from refattn.conformance.checks.laws import law_outcome
from refattn.conformance.records import CheckId
from refattn.conformance.settings import Settings
from refattn.conformance.trial import Bench, budgets_of
from refattn.conformance.verdict import judge

SETTINGS = Settings(examples=15, shrink_seconds=1.0)


def run(name, kind, check_name, dtype="float64", settings=SETTINGS):
    bench = Bench(Backend(getattr(backends, name), name), CONTRACT)
    return perform(CheckId("centre", "centre", kind, check_name, dtype), bench, settings)


def test_what_is_not_offered_is_skipped_without_drawing_cases():
    """No case is made for a function that the backend does not have: every check of it is refused at once."""

    def never(*_arguments):
        raise AssertionError("a case was made")

    entry = replace(CONTRACT.entries[0], cases=never, scenarios=dict.fromkeys(CONTRACT.entries[0].scenarios, never))
    bench = Bench(Backend(backends.nothing, "nothing"), replace(CONTRACT, entries=(entry,)))
    records = [perform(check, bench, SETTINGS) for check in plan([CONTRACT], ["float64"])]

    assert {(r.status, r.reason) for r in records} == {("skipped", f"no function {entry.name}")}


@pytest.mark.parametrize(("kind", "name"), [("scenario", "plain"), ("law", "shift")])
def test_a_right_backend_is_spared_the_whole_budget(kind, name):
    """Results well within what a few erring runs allow pass on those: no eight runs are made for them."""
    budgets_of.cache_clear()

    assert run("right", kind, name, "float32").status == "passed"
    assert budgets_of.cache_info().misses == 0


@pytest.mark.parametrize("share", [0.3, 0.9, 1.1])
def test_what_is_near_a_limit_is_judged_by_the_whole_budget(share):
    """The verdict on one element in error by a share of its bound is that of the whole budget, pass or fail."""
    bench, entry = Bench(Backend(backends.right, "right"), CONTRACT), CONTRACT.entries[0]
    case = entry.scenario_case("plain", "normal", "float32", 0)
    budget = budgets_of(entry, case)["out"]
    out = budget.expected.copy()
    out.flat[0] += share * budget.bound.flat[0]

    assert bench.judge(entry, case, {"out": out}).status == judge(out, budget).status


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_a_right_backend_passes_every_check(dtype):
    """A correct backend fails nothing, in any dtype."""
    bench = Bench(Backend(backends.right, "right"), CONTRACT)
    records = [perform(check, bench, SETTINGS) for check in plan([CONTRACT], [dtype])]

    assert {r.status for r in records} <= {"passed", "skipped"}, [r for r in records if r.status == "failed"]


@pytest.mark.parametrize(
    ("name", "kind", "check", "reason"),
    [
        ("zeros", "scenario", "plain", "element"),
        ("no_mean", "random", "drawn", "element"),
        ("no_mean", "law", "shift", "law shift"),
        ("no_mean", "exact", "integers", "bit-exact"),
        ("in_place", "safety", "inputs_unchanged", "written to"),
        ("in_place", "safety", "read_only_inputs", "raised ValueError"),
        ("identity_view", "safety", "fresh_output", "view of an input"),
        ("one_buffer", "safety", "fresh_output", "second call"),
        ("remembering", "safety", "not_remembered", "element"),
        ("unwritten", "safety", "complete_output", "finite"),
        ("wrong_shape", "scenario", "plain", "shape"),
        ("wrong_dtype", "scenario", "plain", "dtype float16"),
        ("not_an_array", "scenario", "plain", "returned str"),
        ("raising", "scenario", "plain", "raised ArithmeticError: no such luck"),
        ("raising", "law", "shift", "raised ArithmeticError"),
        ("nan_for_empty", "scenario", "hollow", "finite"),
    ],
)
def test_each_kind_of_wrong_backend_fails_and_says_why(name, kind, check, reason):
    """A wrong backend fails the check made for its fault, and the record names the fault."""
    record = run(name, kind, check)

    assert record.status == "failed"
    assert reason in record.reason


def test_the_likely_bug_is_named():
    """A failure that equals a planted bug carries the bug's name."""
    assert run("no_mean", "scenario", "plain").matches == ("no_mean",)


def test_a_declared_convention_is_acceptable():
    """What differs by a declared convention is neither passed nor failed."""
    assert run("nan_declared", "scenario", "hollow").status == "acceptable"
    assert run("nan_declared", "scenario", "plain").status == "passed"


def test_a_missing_feature_is_skipped_with_its_name():
    """A keyword that a function lacks, and NotImplementedError, skip the case and say what is missing."""
    assert run("no_gain_keyword", "scenario", "gain").reason == "takes no keyword gain"
    assert run("refuses_gain", "scenario", "gain").reason == "not offered: gain"
    assert run("nothing", "scenario", "plain").reason == "no function centre"


def test_an_unknown_convention_is_refused():
    """A declared convention outside the known choices is an error that lists the choices."""
    with pytest.raises(ValueError, match=r"CONVENTIONS\['empty'\]='three' is not one of 'zero', 'nan'"):
        Bench(Backend(backends.unknown_convention, "unknown"), CONTRACT)


def test_the_shrinker_keeps_what_the_fault_needs():
    """A fault that needs rows of four is shown on rows of four, with everything else cut to one."""
    record = run("late_zero", "scenario", "plain")

    assert "x (1, 1, 4)" in record.detail


def test_grades_never_fail():
    """A backend that raises is not failed by a grade."""
    assert run("raising", "grade", "determinism").status == "skipped"
    assert run("right", "grade", "determinism").reason == "bitwise"


def test_a_law_that_a_backend_raises_under_fails_in_a_replay_too():
    """Running one law again on one case reports an exception of the backend as the failure that it is."""
    bench = Bench(Backend(backends.raising, "raising"), CONTRACT)
    entry = CONTRACT.entry("centre")
    outcome = law_outcome(bench, entry, "shift", entry.scenario_case("plain", "normal", "float64", 0), 0)

    assert outcome.status == "fail"
    assert "raised" in outcome.reason
