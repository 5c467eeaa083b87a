"""Processes that hang, die or cannot start cost one check each, never the run."""

import pytest
from toy.contracts.centre import CONTRACT

from refattn.conformance.checks import plan
from refattn.conformance.runner import Target, run_isolated
from refattn.conformance.settings import Settings

CHECKS = [check for check in plan([CONTRACT], ["float64"]) if check.kind in ("scenario", "exact")]


def run(spec, jobs=1, timeout=60.0):
    settings = Settings(examples=5, shrink_seconds=0.2, timeout=timeout)
    return run_isolated(CHECKS, Target(spec, package="toy.contracts"), settings, jobs=jobs)


def test_records_come_in_the_order_of_the_checks():
    """Two workers return the same records in the same order as one."""
    one, two = run("toy.backends:right"), run("toy.backends:right", jobs=2)

    assert [r.check for r in one] == [r.check for r in two] == CHECKS
    assert {r.status for r in one} == {"passed"}


def test_a_process_that_dies_fails_its_check_only():
    """A backend that kills its process fails each check with the exit code, and every check has a record."""
    records = run("toy.backends:die")

    assert [r.check for r in records] == CHECKS
    assert all(r.reason == "the process died (exit code 7)" for r in records)


def test_a_backend_that_hangs_is_ended_in_time():
    """A check without an answer is ended and recorded."""
    records = run("toy.backends:hang", jobs=2, timeout=1.0)

    assert {r.reason for r in records} == {"no answer within 1 s"}


@pytest.mark.parametrize("spec", ["no.such.module", "toy.backends:no_such_attribute", "missing.py"])
def test_a_backend_that_cannot_be_loaded_fails_once(spec):
    """The first check says why the backend cannot be loaded, the others are skipped."""
    first, *others = run(spec)

    assert first.status == "failed"
    assert first.reason.startswith("cannot be loaded")
    assert {r.status for r in others} == {"skipped"}
