"""Name the mistake: compare what came with what every planted bug would have given."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import unpack
from refattn.conformance.verdict import judge, row_limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from refattn.conformance.contract import Bug, Case, Entry, Outputs
    from refattn.conformance.trial import Outcome
    from refattn.conformance.verdict import Budget

__all__ = ["bug_outputs", "diagnose", "matches", "row_norm"]


def bug_outputs(entry: Entry, bug: Bug, case: Case) -> Outputs:
    """Return what a planted bug gives for a case, in float64; its own warnings are part of the mistake."""
    with np.errstate(all="ignore"):
        return unpack(entry.invoke(bug.wrong, case), entry.outputs)


def matches(outputs: Outputs, wrong: Outputs, budgets: Mapping[str, Budget]) -> bool:
    """Whether ``outputs`` equal a wrong version's up to rounding, and that version is visibly wrong here."""
    names = [name for name in budgets if name in wrong and name in outputs]
    return (
        bool(names)
        and all(_close(outputs[name], wrong[name], budgets[name]) for name in names)
        and any(judge(wrong[name], budgets[name]).status == "fail" for name in names)
    )


def _close(actual: np.ndarray, wrong: np.ndarray, budget: Budget) -> bool:
    if actual.shape != wrong.shape or not np.array_equal(np.isfinite(actual), np.isfinite(wrong)):
        return False
    finite = np.isfinite(wrong)
    limits = row_limits(budget)
    difference = row_norm(np.where(finite, actual, 0.0) - np.where(finite, wrong, 0.0), limits)
    size = row_norm(np.where(finite, wrong, 0.0), limits)
    right = row_norm(np.where(np.isfinite(budget.expected), budget.expected, 0.0), limits)
    if size.shape != right.shape:
        return False
    # a wrong result may be larger than the right one, and its rounding with it
    growth = np.maximum(1.0, size / np.where(right > 0, right, np.inf))
    typical = float(np.max(limits, initial=0.0))
    return bool(np.all(difference <= 2.0 * growth * np.where(limits > 0, limits, typical)))


def row_norm(array: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return the L2 norm of each row; ``limits`` tells whether rows are the last axis or single elements."""
    if np.shape(limits) == array.shape:
        return np.asarray(np.abs(array))
    norms: np.ndarray = np.sqrt(np.sum(np.square(np.atleast_1d(array)), axis=-1))
    return norms


def diagnose(entry: Entry, outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """Return the planted bugs whose output equals the backend's in most of its failing cases, best first."""
    votes: Counter[str] = Counter()
    tried = 0
    for outcome in outcomes:
        if not outcome.outputs:
            continue
        tried += 1
        for bug in entry.bugs:
            if bug.applies(outcome.case) and _matches_bug(entry, bug, outcome):
                votes[bug.name] += 1
    best = max(votes.values(), default=0)
    return tuple(name for name, count in votes.most_common() if count == best) if best else ()


def _matches_bug(entry: Entry, bug: Bug, outcome: Outcome) -> bool:
    try:
        wrong = bug_outputs(entry, bug, outcome.case)
    except (ValueError, IndexError, TypeError):
        return False  # the mistake cannot be made on a case of this shape
    return matches(dict(outcome.outputs), wrong, outcome.budgets)
