"""Grades that are reported and never failed: determinism, and independence of what else is in the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.backend import NotSupportedError
from refattn.conformance.records import CheckId, Record

if TYPE_CHECKING:
    from refattn.conformance.contract import Case, Entry, Outputs
    from refattn.conformance.settings import Settings
    from refattn.conformance.trial import Bench

__all__ = ["NAMES", "grade"]

NAMES = ("determinism", "batch_invariance")
_RUNS = 3


def grade(check: CheckId, bench: Bench, entry: Entry, options: Settings) -> Record:
    """Grade a backend: ``bitwise``, or ``within rounding`` with the largest difference."""
    way = _determinism if check.name == "determinism" else _batch_invariance
    refusal = "no scenario has a batch to take apart"
    for case in entry.plain_cases(check.dtype, options.seed):
        try:
            differences = way(bench, entry, case)
        except NotSupportedError as error:
            refusal = str(error)
            continue
        except Exception:  # noqa: BLE001, S112  # a grade never fails: other checks report what a backend raises
            continue
        if differences is not None:
            worst = max(differences, default=0.0)
            level = "bitwise" if worst == 0 else f"within rounding, largest difference {worst:.1e}"
            return Record(check, "passed", level, 1, report={"grade": level})
    raise NotSupportedError(refusal)


def _distance(left: Outputs, right: Outputs) -> float:
    return max(
        (float(np.max(np.abs(left[n] - right[n]), initial=0.0)) for n in left if left[n].dtype.kind == "f"), default=0.0
    )


def _determinism(bench: Bench, entry: Entry, case: Case) -> list[float] | None:
    first = bench.outputs(entry, case)
    return [_distance(first, bench.outputs(entry, case)) for _ in range(_RUNS - 1)]


def _batch_invariance(bench: Bench, entry: Entry, case: Case) -> list[float] | None:
    """Compare batch entry 0 alone with batch entry 0 in company; only where the axes are declared."""
    batched = [name for name, axes in entry.axes.items() if axes[:1] == ("B",) and name in case.arrays]
    sizes = {np.shape(case.arrays[name])[0] for name in batched}
    if not batched or max(sizes) < 2:  # company takes two
        return None
    alone = case.having(**{name: case.arrays[name][:1] for name in batched})
    together, single = bench.outputs(entry, case), bench.outputs(entry, alone)
    return [_distance({"out": next(iter(together.values()))[:1]}, {"out": next(iter(single.values()))})]
