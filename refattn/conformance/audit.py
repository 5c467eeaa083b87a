"""The kit judged by its own measure: every planted bug against every vector set, and every law against its witness.

Passes: (1) what a contract holds against what is on file, so that nothing leaves unnoticed; (2) each bug on the smoke
vectors, and on all of them until one catches it; (3) each law, run on its witness bug without reference values, must
break; (4) each law must have a witness.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.backend import Backend
from refattn.conformance.cases import rounded
from refattn.conformance.checks.laws import broken_claim
from refattn.conformance.diagnose import bug_outputs
from refattn.conformance.storage import read_json
from refattn.conformance.trial import Bench, budgets_of
from refattn.conformance.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from refattn.conformance.contract import Bug, Case, Contract, Entry, Law

__all__ = ["AuditRow", "audit_entry", "audit_laws", "inventory", "missing_from_inventory"]

_LAW_CASES = 40


@dataclass
class AuditRow:
    """One planted bug: on how many cases of each scenario it acted, and on how many it was caught.

    Attributes
    ----------
    mechanism, entry, bug, dtype : str
        Which.
    caught, effective : dict of str to int
        By scenario. A bug is effective on a case where its rounded output differs from the reference's.
    """

    mechanism: str
    entry: str
    bug: str
    dtype: str
    caught: dict[str, int] = field(default_factory=dict)
    effective: dict[str, int] = field(default_factory=dict)

    @property
    def is_caught(self) -> bool:
        """Whether some vector rejects the bug."""
        return any(self.caught.values())


def audit_entry(contract: Contract, entry: Entry, dtype: str, *, full: bool = False, seed: int = 0) -> list[AuditRow]:
    """Run every planted bug of an entry that ``dtype`` can resolve against the vector sets.

    Parameters
    ----------
    contract, entry
        What is audited.
    dtype : str
        Of the vectors; wrong outputs are rounded to it.
    full : bool
        All scenarios and families instead of the smoke set.
    seed : int
        Of the vectors.
    """
    bugs = [bug for bug in entry.bugs if dtype in bug.dtypes]
    rows = {bug.name: AuditRow(contract.slug, entry.name, bug.name, dtype) for bug in bugs}
    pairs = [(scenario, family) for scenario in entry.scenarios for family in entry.families]
    smoke = [pair for pair in pairs if full or not entry.smoke or pair in entry.smoke]
    for pair in smoke:
        _try_pair(entry, pair, dtype, bugs, rows, seed)
    for pair in (pair for pair in pairs if pair not in smoke):
        missing = [bug for bug in bugs if not rows[bug.name].is_caught]
        if not missing:
            break
        _try_pair(entry, pair, dtype, missing, rows, seed)
    return list(rows.values())


def _try_pair(
    entry: Entry, pair: tuple[str, str], dtype: str, bugs: Iterable[Bug], rows: dict[str, AuditRow], seed: int
) -> None:
    scenario, family = pair
    case = entry.scenario_case(scenario, family, dtype, seed)
    acting = [bug for bug in bugs if bug.applies(case)]
    if not acting:
        return
    budgets = budgets_of(entry, case)
    for bug in acting:
        outputs = _rounded_outputs(entry, bug, case)
        row = rows[bug.name]
        if any(not _same(outputs.get(name), rounded(budget.expected, dtype)) for name, budget in budgets.items()):
            row.effective[scenario] = row.effective.get(scenario, 0) + 1
            caught = any(name not in outputs or judge(outputs[name], b).status == "fail" for name, b in budgets.items())
            row.caught[scenario] = row.caught.get(scenario, 0) + caught


def _rounded_outputs(entry: Entry, bug: Bug, case: Case) -> Mapping[str, Any]:
    try:
        outputs = bug_outputs(entry, bug, case)
    except (ValueError, IndexError, TypeError):
        return {}  # the mistake cannot even run here, which any user notices
    with np.errstate(all="ignore"):
        return {name: rounded(np.asarray(value), case.dtype) for name, value in outputs.items()}


def _same(actual: Any, expected: np.ndarray) -> bool:
    return actual is not None and np.array_equal(actual, expected, equal_nan=expected.dtype.kind == "f")


def audit_laws(contract: Contract, entry: Entry, *, seed: int = 0) -> dict[str, str]:
    """Return for each law of an entry why it is toothless, or an empty string if its witness breaks it."""
    return {law.name: _toothless(contract, entry, law, seed) for law in entry.laws}


def _toothless(contract: Contract, entry: Entry, law: Law, seed: int) -> str:
    bugs = {bug.name: (owner, bug) for owner in contract.entries for bug in owner.bugs}
    if law.witness not in bugs:
        return f"witness {law.witness!r} is no planted bug"
    owner, bug = bugs[law.witness]
    others = {other.name: other.reference for other in contract.entries}
    backend = Backend(SimpleNamespace(**{**others, owner.name: bug.wrong}), "planted")
    bench = Bench(backend, contract)
    pairs = [(scenario, family) for scenario in entry.scenarios for family in entry.families[:3]]
    cases = (case for pair in pairs if law.applies(case := entry.scenario_case(*pair, "float64", seed)))
    with np.errstate(all="ignore"):
        for _, case in zip(range(_LAW_CASES), cases, strict=False):
            if _breaks(law, bench, case, seed):
                return ""
    return f"witness {law.witness!r} does not break it"


def _breaks(law: Law, bench: Bench, case: Case, seed: int) -> bool:
    try:
        return broken_claim(law, bench, case, seed) is not None
    except (ValueError, IndexError, TypeError):
        return False  # the mistake cannot be made on a case of this shape


def inventory(contracts: Iterable[Contract]) -> dict[str, Any]:
    """Return what the contracts hold, as it is kept on file."""
    return {
        contract.slug: {
            entry.name: {
                "scenarios": list(entry.scenarios),
                "families": list(entry.families),
                "exact": list(entry.exact),
                "laws": [law.name for law in entry.laws],
                "bugs": [bug.name for bug in entry.bugs],
            }
            for entry in contract.entries
        }
        for contract in contracts
    }


def missing_from_inventory(contracts: Iterable[Contract], package: str = "refattn.contracts") -> list[str]:
    """Return everything that is on file and no longer in the contracts."""
    on_file = read_json((resources.files(package) / "inventory.json").read_text(encoding="utf-8"))
    now = inventory(contracts)
    return [
        f"{slug}/{entry}: {kind.rstrip('s')} {name!r} is on file and gone from the contract"
        for slug, entries in on_file.items()
        if slug in now
        for entry, kinds in entries.items()
        for kind, names in kinds.items()
        for name in names
        if name not in now[slug].get(entry, {}).get(kind, [])
    ]
