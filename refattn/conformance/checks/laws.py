"""Laws: what must hold between a backend's own results, reference or no reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import reject
from hypothesis.errors import Unsatisfiable

from refattn.conformance.backend import NotSupportedError
from refattn.conformance.cases import generator
from refattn.conformance.checks.values import draw_cases
from refattn.conformance.contract import Claim
from refattn.conformance.diagnose import diagnose, row_norm
from refattn.conformance.failures import failure
from refattn.conformance.records import CheckId, Record
from refattn.conformance.trial import Bench, Outcome
from refattn.conformance.verdict import Verdict

if TYPE_CHECKING:
    from refattn.conformance.contract import Case, Entry, Law, Outputs
    from refattn.conformance.settings import Settings

__all__ = ["BenchProbe", "broken_claim", "law", "law_outcome"]

_SCENARIOS_PER_LAW = 4


class _BrokenError(Exception):
    """A drawn case broke the law; hypothesis shrinks what raised it."""


@dataclass(frozen=True)
class BenchProbe:
    """A `Probe` over a bench."""

    bench: Bench
    rough: bool = False

    def __call__(self, case: Case) -> Outputs:
        """Return the backend's named outputs."""
        if self.bench.expect(case) is not case:
            raise NotSupportedError("the law compares with another convention than the declared one")
        return self.bench.outputs(self.bench.contract.entry(case.entry), case)

    def raw(self, case: Case) -> Any:
        """Return the backend's own result, its arrays as NumPy."""
        entry = self.bench.contract.entry(case.entry)
        return self.bench.backend.numpy(self.bench.native_result(entry, case))

    def slack(self, case: Case) -> Outputs:
        """Return the row-wise error that rounding may cause."""
        return self.bench.slack(self.bench.contract.entry(case.entry), case, rough=self.rough)

    def provides(self, *entries: str) -> bool:
        """Whether the backend has these functions."""
        return self.bench.backend.provides(*entries)


class _LawTrial:
    """One law against one bench: what was tried, what the backend does not offer, what broke."""

    def __init__(self, rule: Law, bench: Bench, seed: int) -> None:
        self.rule, self.bench, self.seed = rule, bench, seed
        self.tried = 0
        self.refusal = ""
        self.broken: Outcome | None = None

    def hold(self, case: Case) -> bool:
        """Try one case; False if the law or the backend has nothing to say about it."""
        case = self.bench.expect(case)  # a law holds within the declared conventions
        if not self.rule.applies(case):
            return False
        try:
            claim = broken_claim(self.rule, self.bench, case, self.seed)
        except NotSupportedError as error:
            self.refusal = str(error)
            return False
        self.tried += 1
        if claim is not None:
            self.broken = _outcome(self.rule, case, claim)
            raise _BrokenError
        return True

    def hold_drawn(self, case: Case) -> None:
        """Try a drawn case; hypothesis draws another where there is nothing to say."""
        if not self.hold(case):
            reject()


def law(check: CheckId, bench: Bench, entry: Entry, options: Settings) -> Record:
    """Check one law on some scenarios and on drawn cases."""
    rule = next(rule for rule in entry.laws if rule.name == check.name)
    if not bench.backend.provides(*rule.needs):
        raise NotSupportedError(f"needs {', '.join(rule.needs)}")
    trial = _LawTrial(rule, bench, options.seed)
    try:
        held = (trial.hold(case) for case in entry.plain_cases(check.dtype, options.seed))
        for _ in zip(range(_SCENARIOS_PER_LAW), filter(None, held), strict=False):
            pass
        draw_cases(
            entry.cases(check.dtype),
            trial.hold_drawn,
            examples=max(2, options.examples // 5),
            seed_number=options.seed,
        )
    except _BrokenError:
        return _failed(check, bench, entry, options, trial)
    except Unsatisfiable:
        pass
    if trial.tried:
        return Record(check, "passed", cases=trial.tried)
    if trial.refusal:
        raise NotSupportedError(trial.refusal)
    return Record(check, "inconclusive", "no case to which the law applies was drawn")


def broken_claim(rule: Law, bench: Bench, case: Case, seed: int) -> Claim | None:
    """Return the first claim of the law that does not hold, or None; an exception of the backend is such a claim.

    Where every claim holds within half of a rough estimate of rounding, the whole estimate is spared.
    """
    if _first_broken(rule, BenchProbe(bench, rough=True), case, seed) is None:
        return None
    return _first_broken(rule, BenchProbe(bench), case, seed)


def _first_broken(rule: Law, probe: BenchProbe, case: Case, seed: int) -> Claim | None:
    rng = generator(seed, rule.name, case.label)
    try:
        return next((c for c in rule.holds(probe, case, rng) if not _claim_holds(c)), None)
    except NotSupportedError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a backend raises is its result
        return Claim(np.zeros(1), np.zeros(0), what=f"raised {type(error).__name__}: {error}")


def _claim_holds(claim: Claim) -> bool:
    left, right = np.atleast_1d(claim.left), np.atleast_1d(claim.right)
    if left.shape != right.shape or not np.array_equal(np.isfinite(left), np.isfinite(right)):
        return False
    if left.size == 0:
        return True
    return bool(np.all(_row_difference(left, right, claim.slack) <= np.asarray(claim.slack)))


def _row_difference(left: np.ndarray, right: np.ndarray, slack: Any) -> np.ndarray:
    both = np.isfinite(left) & np.isfinite(right)
    difference = np.where(both, left, 0.0) - np.where(both, right, 0.0)
    same = both | (left == right) | (np.isnan(left) & np.isnan(right))
    return row_norm(np.where(same, difference, np.inf), np.asarray(slack))


def _outcome(rule: Law, case: Case, claim: Claim) -> Outcome:
    left, right = np.atleast_1d(claim.left), np.atleast_1d(claim.right)
    if left.shape == right.shape and left.size:
        errors = _row_difference(left, right, claim.slack)
        excess = errors - np.asarray(claim.slack)
        where = np.unravel_index(int(np.argmax(excess)), errors.shape)
        measured, limit = float(errors[where]), float(np.broadcast_to(claim.slack, errors.shape)[where])
    else:
        where, measured, limit = (), float("nan"), 0.0
    reason = f"law {rule.name}" + (f" ({claim.what})" if claim.what else "")
    verdict = Verdict("fail", reason, measured, limit, tuple(map(int, where)), {})
    return Outcome("fail", reason, case, "", verdict)


def law_outcome(bench: Bench, entry: Entry, name: str, case: Case, seed: int) -> Outcome:
    """Run one law on one case."""
    rule = next(rule for rule in entry.laws if rule.name == name)
    claim = broken_claim(rule, bench, case, seed)
    return Outcome("pass", "", case) if claim is None else _outcome(rule, case, claim)


def _failed(check: CheckId, bench: Bench, entry: Entry, options: Settings, trial: _LawTrial) -> Record:
    rule, outcome = trial.rule, trial.broken
    assert outcome is not None  # what raised _BrokenError was noted first

    def still_broken(case: Case) -> bool:
        return rule.applies(case) and broken_claim(rule, bench, case, options.seed) is not None

    record = failure(
        check, bench, entry, options, [outcome], cases=trial.tried, fails=still_broken, sentence=rule.sentence
    )
    judged = bench.try_case(entry, outcome.case)
    return record.having(matches=diagnose(entry, [judged])) if judged.status == "fail" else record
