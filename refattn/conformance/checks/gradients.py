"""Derivatives by a framework's autodiff against central differences of the float64 reference.

For a random direction D in one argument, ⟨vjp(dO), D⟩ must equal ⟨dO, (f(x + hD) − f(x − hD)) / 2h⟩.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.backend import NotSupportedError
from refattn.conformance.cases import generator
from refattn.conformance.failures import failure
from refattn.conformance.records import CheckId, Record
from refattn.conformance.trial import Outcome
from refattn.conformance.verdict import Verdict

if TYPE_CHECKING:
    from refattn.conformance.contract import Case, Entry
    from refattn.conformance.settings import Settings
    from refattn.conformance.trial import Bench

__all__ = ["DTYPES", "directional"]

DTYPES = ("float64", "float32")  # differences of rounded 16-bit results say nothing
_TOLERANCE = {"float64": 1e-6, "float32": 2e-3}  # central differences in float64; a float32 backward pass
_STEP = 1e-5
_DIRECTIONS = 3
_CASES = 3


def directional(check: CheckId, bench: Bench, entry: Entry, options: Settings) -> Record:
    """Check the derivative with respect to the argument that names the check."""
    judged, refusal = 0, "no scenario to try"
    for case in entry.plain_cases(check.dtype, options.seed):
        target = case.arrays.get(check.name)
        if not isinstance(target, np.ndarray) or target.size == 0:
            continue
        try:
            outcome = _compare(bench, entry, case, check, options.seed)
        except NotSupportedError as error:
            refusal = str(error)
            continue
        judged += 1
        if outcome is not None:
            return failure(check, bench, entry, options, [outcome], cases=judged, fails=lambda _: False)
        if judged == _CASES:
            break
    if not judged:
        raise NotSupportedError(refusal)
    return Record(check, "passed", cases=judged)


def _main(entry: Entry, case: Case) -> np.ndarray:
    return next(iter(entry.expected(case).values()))


def _sent(bench: Bench, case: Case, name: str, origin: np.ndarray) -> np.ndarray:
    """Return the direction as the backend sees it: what is sent depends on the argument by an affine map."""
    with np.errstate(invalid="ignore"):
        moved = bench.send(case).arrays[name] - origin
    return np.where(np.isfinite(moved), moved, 0.0)  # a bias of −∞ stays where it is


def _compare(bench: Bench, entry: Entry, case: Case, check: CheckId, seed: int) -> Outcome | None:
    case = bench.expect(case)
    rng = generator(seed, str(check), case.label)
    target: Any = case.arrays[check.name]
    cotangent = rng.standard_normal(_main(entry, case).shape)
    beside = f"d{entry.outputs[0]}"  # sent along, so that it arrives in the backend's layout too
    sent = bench.send(case.having(**{beside: cotangent}))
    if check.name not in sent.arrays:
        raise NotSupportedError(f"{check.name} is handed over as something else")
    gradient = bench.backend.gradient(entry, sent.without(beside), (check.name,), sent.arrays[beside])[f"d{check.name}"]
    for _ in range(_DIRECTIONS):
        direction = rng.standard_normal(target.shape)
        moved = _sent(bench, case.having(**{check.name: target + direction}), check.name, sent.arrays[check.name])
        ahead, behind = (_main(entry, case.having(**{check.name: target + s * _STEP * direction})) for s in (1, -1))
        slope = (ahead - behind) / (2 * _STEP)
        expected, actual = float(np.sum(cotangent * slope)), float(np.sum(gradient * moved))
        size = float(np.sqrt(np.sum(cotangent**2) * np.sum(slope**2))) + 1e-30
        limit = _TOLERANCE[check.dtype] * size
        if not abs(actual - expected) <= limit:
            reason = f"derivative with respect to {check.name}"
            verdict = Verdict("fail", reason, abs(actual - expected), limit, (), {})
            return Outcome("fail", reason, case, "", verdict)
    return None
