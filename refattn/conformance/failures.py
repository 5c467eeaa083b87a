"""From a failing case to a record that a reader can act on: shrink it, name it, keep it, say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import map_arrays
from refattn.conformance.diagnose import diagnose
from refattn.conformance.records import CheckId, Record
from refattn.conformance.replay import Replay, write_replay
from refattn.conformance.shrink import shrink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refattn.conformance.contract import Case, Entry
    from refattn.conformance.settings import Settings
    from refattn.conformance.trial import Bench, Outcome

__all__ = ["describe_case", "failure"]

_SHOWN_NUMBERS = 24


def failure(
    check: CheckId,
    bench: Bench,
    entry: Entry,
    settings: Settings,
    outcomes: Sequence[Outcome],
    *,
    cases: int,
    fails: Callable[[Case], bool] | None = None,
    sentence: str = "",
) -> Record:
    """Return the record of a failed check.

    Parameters
    ----------
    check, bench, entry, settings
        What failed, with whom, and how much time there is.
    outcomes : sequence of Outcome
        The failing ones; the first is shrunk, all are diagnosed.
    cases : int
        How many were judged.
    fails : callable, optional
        What must stay true while shrinking; that the case is judged a failure if None.
    sentence : str
        The law that broke.
    """

    def still_fails(case: Case) -> bool:
        outcome = bench.try_case(entry, case)
        # a case that could not even certify the reference itself shows nothing
        return (
            outcome.status == "fail" and bench.judge(entry, case, entry.expected(bench.expect(case))).status == "pass"
        )

    first = outcomes[0]
    small = shrink(
        first.case,
        _guarded(fails or still_fails),
        positional=entry.positional,
        axes=entry.axes,
        seconds=settings.shrink_seconds,
    )
    outcome = first if fails else bench.try_case(entry, small)
    replay = Replay(check, small, bench.backend.name, settings.seed)
    path = str(write_replay(settings.replays, replay)) if settings.replays else ""
    verdict = outcome.verdict or first.verdict
    matches = diagnose(entry, [*outcomes[:4]])
    return Record(
        check,
        "failed",
        first.reason,
        cases,
        None if verdict is None else _finite(verdict.measured),
        None if verdict is None else _finite(verdict.limit),
        _detail(outcome if outcome.status == "fail" else first, small, sentence),
        matches,
        path,
        report={} if verdict is None else dict(verdict.report),
    )


def _guarded(fails: Callable[[Case], bool]) -> Callable[[Case], bool]:
    def guarded(case: Case) -> bool:
        try:
            return fails(case)
        except Exception:  # noqa: BLE001  # the reference refuses the smaller case: it shows nothing
            return False

    return guarded


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def _detail(outcome: Outcome, small: Case, sentence: str) -> str:
    lines = [f"law: {sentence}"] if sentence else []
    lines.append(f"broken: {outcome.reason}")
    verdict = outcome.verdict
    if verdict is not None:
        where = f"output {outcome.output!r} at {verdict.where}" if outcome.output else f"row {verdict.where}"
        lines.append(f"{where}: measured {verdict.measured:.3g}, limit {verdict.limit:.3g}")
    if outcome.output in outcome.budgets:
        lines += [f"  {line}" for line in outcome.budgets[outcome.output].derivation.splitlines()]
    lines.append("smallest case found:")
    lines += [f"  {line}" for line in describe_case(small)]
    if outcome.output in outcome.outputs and outcome.verdict is not None and outcome.case is small:
        lines.append(f"  expected {_numbers(np.asarray(outcome.budgets[outcome.output].expected))}")
        lines.append(f"  returned {_numbers(outcome.outputs[outcome.output])}")
    return "\n".join(lines)


def describe_case(case: Case) -> list[str]:
    """Return a case as lines: the call, then each array with its shape and, if few, its numbers."""
    options = ", ".join(f"{name}={value!r}" for name, value in case.options.items())
    lines = [f"{case.entry}({', '.join(case.arrays)}{', ' + options if options else ''})  {case.dtype}  {case.label}"]
    for name, tree in case.arrays.items():
        lines += [f"{path} {_numbers(array)}" for path, array in _flat(name, tree)]
    return lines


def _flat(path: str, tree: Any) -> list[tuple[str, np.ndarray]]:
    found: list[tuple[str, np.ndarray]] = []
    names = getattr(tree, "_fields", None)
    if isinstance(tree, np.ndarray):
        return [(path, tree)]
    if isinstance(tree, (tuple, list)):
        for name, branch in zip(names or map(str, range(len(tree))), tree, strict=True):
            found += _flat(f"{path}.{name}", branch)
        return found
    map_arrays(lambda array: found.append((path, array)), tree)
    return found


def _numbers(array: np.ndarray) -> str:
    if array.size > _SHOWN_NUMBERS:
        return f"{array.shape} {array.dtype}"
    return f"{array.shape} {np.array2string(array, precision=5, threshold=100, separator=', ').replace(chr(10), '')}"
