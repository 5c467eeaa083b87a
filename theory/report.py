"""What the command line prints: tables of rows, and checks as one aligned line each."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from theory.experiment import Experiment
    from theory.table import ResultTable
    from theory.verdict import Check

__all__ = [
    "WIDTH",
    "Outcome",
    "check_cells",
    "check_lines",
    "filed_check",
    "outcome_json",
    "summary_line",
    "table_lines",
]

WIDTH = 110
"""Columns of the longest line."""

_FIRST = ("metric", "source", "value", "stderr")
_NAME = 53


@dataclass(frozen=True)
class Outcome:
    """What became of one experiment: its checks, or why there are none."""

    experiment: Experiment
    checks: tuple[Check, ...] = ()
    error: str = ""

    @property
    def failed(self) -> int:
        """How many predictions fell out; an experiment that stopped counts as one."""
        return sum(not check.holds for check in self.checks) + bool(self.error)


def number(value: Any, digits: int = 4) -> str:
    """Return a value in a few digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def check_cells(check: Check) -> tuple[str, str, str, str, str, str]:
    """Return name, measured, predicted, standard error, distance of its bound or the range, and verdict."""
    bound = number(check.bound)
    predicted, between = {
        "z": (number(check.predicted), f"z {check.distance:.2f} of {bound}"),
        "relative": (number(check.predicted), f"{100 * check.distance:.2g} % of {100 * check.bound:.2g} %"),
        "absolute": (number(check.predicted), f"{number(check.distance, 3)} of {bound}"),
        "range": ("", f"{check.predicted - check.bound:.3g} to {check.predicted + check.bound:.3g}"),
        "above": (f"≥ {number(check.predicted)}", ""),
        "below": (f"≤ {number(check.predicted)}", ""),
    }[check.unit]
    return check.name, number(check.measured), predicted, number(check.stderr, 2), between, check.verdict


def check_lines(outcome: Outcome) -> list[str]:
    """Return an experiment's checks under its name, one line each; a long name is cut unless its check fails."""
    lines = [_cut(f"{outcome.experiment.name}: {outcome.experiment.title}", WIDTH)]
    for check in outcome.checks:
        name, measured, predicted, stderr, between, verdict = check_cells(check)
        lines.append(f"  {_cut(name, _NAME):<{_NAME}}{measured:>10}{predicted:>11}{stderr:>9}{between:>18}  {verdict}")
        if len(name) > _NAME and not check.holds:
            lines.append(f"    {name}")
    if outcome.error:
        lines.append(f"  FAILS: {outcome.error}")
    return lines


def heading() -> str:
    """Return the line that stands above all checks."""
    return f"  {'prediction':<{_NAME}}{'measured':>10}{'predicted':>11}{'stderr':>9}{'distance of bound':>18}"


def summary_line(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Return the sentence that stands below all checks."""
    failed = sum(outcome.failed for outcome in outcomes)
    count = sum(len(outcome.checks) + bool(outcome.error) for outcome in outcomes)
    verdict = f"{failed} failed" if failed else "all hold"
    of = "1 experiment" if len(outcomes) == 1 else f"{len(outcomes)} experiments"
    return f"{count} predictions of {of}: {verdict} ({seconds:.1f} s)"


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return an experiment's checks as JSON; numbers that are not finite are null."""
    checks = [{**asdict(check), "verdict": check.verdict} for check in outcome.checks]
    return {
        "experiment": outcome.experiment.name,
        "title": outcome.experiment.title,
        "error": outcome.error,
        "checks": [{name: _finite(value) for name, value in check.items()} for check in checks],
    }


def filed_check(filed: dict[str, Any]) -> Check:
    """Return a check from the JSON of `outcome_json`."""
    from theory.verdict import Check

    numbers = ("measured", "predicted", "stderr", "distance", "bound")
    return Check(
        name=filed["name"], unit=filed["unit"], **{n: math.nan if filed[n] is None else filed[n] for n in numbers}
    )


def table_lines(table: ResultTable, limit: int = 20) -> list[str]:
    """Return the first rows of a table, without the columns that are the same in each row."""
    varying = [name for name in table.columns if len({repr(row.get(name)) for row in table}) > 1]
    names = [name for name in _FIRST if name in table.columns]
    names += [name for name in varying if name not in names]
    rows = [names, *([number(row.get(name)) for name in names] for row in table.rows[:limit])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    rest = len(table) - limit
    return [_cut(line, WIDTH) for line in lines] + ([f"… and {rest} rows more"] if rest > 0 else [])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
