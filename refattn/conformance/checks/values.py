"""Values against the reference: named scenarios, drawn cases, bit-exact vectors, frozen vectors."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisWarning

from refattn.conformance.backend import NotSupportedError
from refattn.conformance.failures import failure
from refattn.conformance.golden import same_result, vectors_of
from refattn.conformance.records import CheckId, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hypothesis.strategies import SearchStrategy

    from refattn.conformance.contract import Case, Entry
    from refattn.conformance.settings import Settings
    from refattn.conformance.trial import Bench, Outcome

__all__ = ["draw_cases", "exact", "golden", "random", "scenario"]


class _FoundError(Exception):
    """A drawn case failed; hypothesis shrinks what raised it."""


def scenario(check: CheckId, bench: Bench, entry: Entry, options: Settings) -> Record:
    """Judge one named scenario in every value family."""
    turn = list(entry.scenarios).index(check.name)
    families = [*entry.families[turn % len(entry.families) :], *entry.families][: len(entry.families)]
    chosen = families[: options.families]
    cases = (entry.scenario_case(check.name, family, check.dtype, options.seed) for family in chosen)
    return summarise(check, bench, entry, options, [bench.try_case(entry, case) for case in cases])


def random(check: CheckId, bench: Bench, entry: Entry, options: Settings) -> Record:
    """Judge cases of drawn sizes, options and values; hypothesis makes a failing one small."""
    outcomes: list[Outcome] = []

    def judge_one(case: Case) -> None:
        outcomes.append(bench.try_case(entry, case))
        if outcomes[-1].status == "fail":
            raise _FoundError

    try:
        draw_cases(entry.cases(check.dtype), judge_one, examples=options.examples, seed_number=options.seed)
    except _FoundError:
        return failure(check, bench, entry, options, [outcomes[-1]], cases=len(outcomes))
    return summarise(check, bench, entry, options, outcomes)


def draw_cases(strategy: SearchStrategy[Case], use: Callable[[Case], None], *, examples: int, seed_number: int) -> None:
    """Call ``use`` on drawn cases; the exception of the smallest failing one comes out."""

    @seed(seed_number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: Case) -> None:
        use(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)
        run()


def exact(check: CheckId, bench: Bench, entry: Entry, options: Settings) -> Record:
    """Demand every bit of a vector whose arithmetic is exact."""
    del options
    case, expected = entry.exact[check.name](check.dtype)
    outputs = bench.outputs(entry, case)
    wrong = [name for name, value in expected.items() if not np.array_equal(outputs.get(name, np.nan), value)]
    if not wrong:
        return Record(check, "passed", cases=1)
    error = float(np.max(np.abs(np.asarray(outputs.get(wrong[0], np.nan)) - expected[wrong[0]])))
    return Record(check, "failed", f"{wrong[0]} is not bit-exact", 1, error, 0.0)


def golden(check: CheckId, bench: Bench, entry: Entry, options: Settings) -> Record:
    """Judge the frozen vectors of this entry and dtype."""
    vectors = vectors_of(bench.contract, entry, check.dtype)
    if not vectors:
        return Record(check, "skipped", "no vectors frozen for this entry and dtype")
    outcomes: list[Outcome] = []
    for vector in vectors:
        outcome = bench.try_case(entry, vector.case)
        expected = entry.expected(vector.case)
        if not all(same_result(expected[name], frozen) for name, frozen in vector.outputs.items()):
            return Record(check, "failed", f"the reference no longer gives vector {vector.id}", len(outcomes) + 1)
        outcomes.append(outcome)
    return summarise(check, bench, entry, options, outcomes)


def summarise(check: CheckId, bench: Bench, entry: Entry, options: Settings, outcomes: Iterable[Outcome]) -> Record:
    """Return one record for many outcomes: a failure if any failed, conclusive if any was."""
    outcomes = list(outcomes)
    failed = [outcome for outcome in outcomes if outcome.status == "fail"]
    if failed:
        return failure(check, bench, entry, options, failed, cases=len(outcomes))
    by_status = {
        status: [o for o in outcomes if o.status == status] for status in ("acceptable", "pass", "inconclusive", "skip")
    }
    judged = len(by_status["pass"]) + len(by_status["acceptable"])
    if by_status["acceptable"]:
        return Record(check, "acceptable", by_status["acceptable"][0].reason, judged, report=_worst(outcomes))
    if by_status["pass"]:
        return Record(check, "passed", "", judged, report=_worst(outcomes))
    if by_status["inconclusive"]:
        return Record(check, "inconclusive", by_status["inconclusive"][0].reason, len(outcomes))
    if by_status["skip"]:
        raise NotSupportedError(by_status["skip"][0].reason)
    return Record(check, "inconclusive", "no case was drawn")


def _worst(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Return the largest error ratios seen, for the table of errors."""
    worst: dict[str, float] = {}
    for outcome in outcomes:
        if outcome.verdict is not None:
            for name, value in outcome.verdict.report.items():
                if name in ("element", "row", "pooled") and isinstance(value, float):
                    worst[name] = max(value, worst.get(name, 0.0))
    return worst
