"""Records as people and machines read them: a table, the failures in full, JSON, JUnit, a matrix for the docs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from refattn.conformance.records import STATUSES, tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from refattn.conformance.records import Record

__all__ = ["WIDTH", "as_json", "as_junit", "as_markdown", "failures_text", "summary_line", "table_text"]

WIDTH = 100
_LABEL, _DTYPE = 28, 8
_COLUMNS = ("scenario", "random", "exact", "golden", "law", "safety", "gradient", "grade")
_MARKS = {"failed": "F", "inconclusive": "?", "acceptable": "a", "expected": "x", "passed": "ok", "skipped": "-"}


def _cell(records: Sequence[Record]) -> str:
    """Return a table cell: the worst status, with how many of how many."""
    if not records:
        return ""
    counts = tally(records)
    judged = len(records) - counts["skipped"]
    if counts["failed"]:
        return f"{counts['failed']}F/{judged}"
    if not judged:
        return "-"
    marks = "".join(f" {counts[s]}{_MARKS[s]}" for s in ("acceptable", "expected", "inconclusive") if counts[s])
    return f"{counts['passed']}{marks}"


def _rows(records: Iterable[Record]) -> dict[tuple[str, str, str, str], list[Record]]:
    rows = defaultdict(list)
    for record in records:
        rows[record.backend, record.check.mechanism, record.check.entry, record.check.dtype].append(record)
    return dict(rows)


def table_text(records: Sequence[Record]) -> str:
    """Return the matrix of checks, entry by kind, within 100 columns."""
    kinds = [kind for kind in _COLUMNS if any(r.check.kind == kind and r.status != "skipped" for r in records)]
    width = (WIDTH - _LABEL - _DTYPE) // max(1, len(kinds), 6)
    head = f"{'':<{_LABEL}}{'dtype':<{_DTYPE}}" + "".join(f"{kind:>{width}}" for kind in kinds)
    lines: list[str] = []
    group = ("", "")
    for (backend, mechanism, entry, dtype), row in _rows(records).items():
        if backend != group[0]:
            lines += ["", f"backend {backend}", head]
        if (backend, mechanism) != group:
            lines.append(mechanism)
            group = (backend, mechanism)
        lines.append(f"{_label(entry):<{_LABEL}}{dtype:<{_DTYPE}}{_cells(row, kinds, width)}")
    return "\n".join(line.rstrip()[:WIDTH] for line in lines).lstrip("\n")


def _cells(row: Sequence[Record], kinds: Sequence[str], width: int) -> str:
    if all(record.status == "skipped" for record in row):
        return f"  not offered: {row[0].reason}"
    return "".join(f"{_cell([r for r in row if r.check.kind == kind]):>{width}}" for kind in kinds)


def _label(entry: str) -> str:
    text = f"  {entry}"
    return text if len(text) < _LABEL else f"{text[: _LABEL - 2]}…"


def failures_text(records: Iterable[Record], most: int = 10) -> str:
    """Return each failure in full: what broke, the bound's derivation, the shrunk case, the likely bug, the replay."""
    failed = [record for record in records if record.status == "failed"]
    blocks = [_failure_text(record) for record in failed[:most]]
    if len(failed) > most:
        blocks.append(f"… and {len(failed) - most} more failures; --json holds them all")
    return "\n\n".join(blocks)


def _failure_text(record: Record) -> str:
    lines = [f"FAILED {record.check}  [{record.backend}]", f"  {record.reason}"]
    lines += [f"  {line}" for line in record.detail.splitlines()]
    if record.matches:
        lines.append(f"  matches planted bug: {', '.join(record.matches[:3])}")
    if record.replay:
        lines.append(f"  again: refattn replay {record.replay}")
    return "\n".join(lines)


def summary_line(records: Sequence[Record]) -> str:
    """Return the closing line: counts by status, and how many cases were judged."""
    counts = tally(records)
    parts = [f"{counts[s]} {s}" for s in STATUSES if counts[s] or s in ("passed", "failed")]
    return f"{len(records)} checks, {sum(r.cases for r in records)} cases: " + ", ".join(parts)


def as_json(records: Sequence[Record], problems: Sequence[str] = ()) -> dict[str, Any]:
    """Return the whole run as JSON values."""
    return {
        "schema": "refattn-report/1",
        "summary": tally(records),
        "problems": list(problems),
        "records": [record.as_json() for record in records],
    }


def as_junit(records: Sequence[Record]) -> str:
    """Return the run as JUnit XML."""
    counts = tally(records)
    suite = ET.Element(
        "testsuite",
        name="refattn",
        tests=str(len(records)),
        failures=str(counts["failed"]),
        skipped=str(counts["skipped"] + counts["inconclusive"] + counts["expected"]),
        time=f"{sum(record.seconds for record in records):.3f}",
    )
    for record in records:
        check = record.check
        case = ET.SubElement(
            suite,
            "testcase",
            classname=f"{record.backend}.{check.mechanism}.{check.entry}",
            name=f"{check.kind}/{check.name}@{check.dtype}",
            time=f"{record.seconds:.3f}",
        )
        if record.status == "failed":
            ET.SubElement(case, "failure", message=record.reason).text = _failure_text(record)
        elif record.status not in ("passed", "acceptable"):
            ET.SubElement(case, "skipped", message=f"{record.status}: {record.reason}")
    return ET.tostring(suite, encoding="unicode", xml_declaration=True)


def as_markdown(records: Sequence[Record]) -> str:
    """Return the matrix as a Markdown table, a row for each backend, entry and dtype."""
    kinds = [kind for kind in _COLUMNS if any(r.check.kind == kind and r.status != "skipped" for r in records)]
    lines = [f"| backend | entry | dtype | {' | '.join(kinds)} |", "| --- " * (3 + len(kinds)) + "|"]
    for (backend, mechanism, entry, dtype), row in _rows(records).items():
        if all(record.status == "skipped" for record in row):
            continue
        cells = [_cell([r for r in row if r.check.kind == kind]) for kind in kinds]
        lines.append(f"| `{backend}` | {mechanism} · `{entry}` | {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)
