"""The checks themselves, one module a kind; `perform` runs one by its identity, `plan` names them all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from refattn.conformance.backend import NotSupportedError
from refattn.conformance.checks import grades, gradients, laws, safety, values
from refattn.conformance.records import CheckId, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refattn.conformance.contract import Contract, Entry
    from refattn.conformance.settings import Settings
    from refattn.conformance.trial import Bench

__all__ = ["KINDS", "perform", "plan"]

KINDS = {
    "scenario": values.scenario,
    "random": values.random,
    "exact": values.exact,
    "golden": values.golden,
    "law": laws.law,
    "safety": safety.safety,
    "gradient": gradients.directional,
    "grade": grades.grade,
}


def perform(check: CheckId, bench: Bench, settings: Settings) -> Record:
    """Run one check and return its record; only the backend's own exits and hangs escape."""
    begin = time.perf_counter()
    entry = bench.contract.entry(check.entry)
    try:
        _require_offered(bench, entry)
        record = KINDS[check.kind](check, bench, entry, settings)
    except NotSupportedError as error:
        record = Record(check, "skipped", str(error))
    bench.backend.library.release()
    return record.having(backend=bench.backend.name, seconds=round(time.perf_counter() - begin, 4))


def _require_offered(bench: Bench, entry: Entry) -> None:
    """Refuse at once what the backend has no function for: to draw cases for it would only take time."""
    if not any(bench.backend.provides(name) for name in (entry.name, entry.gradient_of) if name):
        raise NotSupportedError(f"no function {entry.name}")


def plan(contracts: Iterable[Contract], dtypes: Iterable[str]) -> list[CheckId]:
    """Return the identity of every check of the contracts in the dtypes."""
    return [
        CheckId(contract.slug, entry.name, kind, name, dtype)
        for contract in contracts
        for entry in contract.entries
        for dtype in dtypes
        for kind, name in _of_entry(entry, dtype)
    ]


def _of_entry(entry: Entry, dtype: str) -> list[tuple[str, str]]:
    differentiable = entry.differentiable if dtype in gradients.DTYPES else ()
    return [
        *(("scenario", name) for name in entry.scenarios),
        ("random", "drawn"),
        ("golden", "frozen"),
        *(("exact", name) for name in entry.exact),
        *(("law", law.name) for law in entry.laws),
        *(("safety", name) for name in safety.NAMES),
        *(("gradient", name) for name in differentiable),
        *(("grade", name) for name in grades.NAMES),
    ]
