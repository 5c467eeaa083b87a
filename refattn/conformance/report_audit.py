"""The audit as text and JSON: the catch matrix, the score, and what got through."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from refattn.conformance.audit import AuditRow

__all__ = ["audit_json", "audit_markdown", "audit_text"]


def _by_entry(rows: Sequence[AuditRow]) -> dict[tuple[str, str, str], list[AuditRow]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row.mechanism, row.entry, row.dtype].append(row)
    return dict(groups)


def _mark(row: AuditRow, scenario: str) -> str:
    """Return ``#`` if every case on which the bug acts rejects it, ``+`` if some do, ``o`` if none, ``·`` if idle."""
    effective, caught = row.effective.get(scenario, 0), row.caught.get(scenario, 0)
    if not effective:
        return "·"
    return "#" if caught == effective else "+" if caught else "o"


def audit_text(rows: Sequence[AuditRow], toothless: Mapping[str, str], missing: Sequence[str], *, laws: int) -> str:
    """Return the catch matrix, planted bug by vector set, and the score."""
    lines = ["# every case rejects it   + some do   o acts and passes   · does not act"]
    for (mechanism, entry, dtype), group in _by_entry(rows).items():
        scenarios = sorted({s for row in group for s in row.effective})
        lines += ["", f"{mechanism} · {entry} · {dtype}"]
        lines += (
            [f"  {chr(ord('A') + i % 26)}{i // 26 or ''} {name}" for i, name in enumerate(scenarios)]
            if scenarios
            else []
        )
        head = " ".join(f"{chr(ord('A') + i % 26)}" for i in range(len(scenarios)))
        lines.append(f"  {'':<32}{head}")
        for row in group:
            marks = " ".join(_mark(row, scenario) for scenario in scenarios)
            lines.append(f"  {row.bug:<32}{marks}" + ("" if row.is_caught else "  NOT CAUGHT"))
    lines += ["", *(f"TOOTHLESS LAW {name}: {why}" for name, why in toothless.items()), *missing]
    caught = sum(row.is_caught for row in rows)
    lines.append(
        f"{caught} of {len(rows)} planted bugs caught; {laws - len(toothless)} of {laws} laws broken by their witness"
    )
    return "\n".join(lines)


def audit_json(rows: Sequence[AuditRow], toothless: Mapping[str, str], missing: Sequence[str]) -> dict[str, Any]:
    """Return the audit as JSON values."""
    return {
        "schema": "refattn-audit/1",
        "caught": sum(row.is_caught for row in rows),
        "planted": len(rows),
        "toothless_laws": dict(toothless),
        "missing": list(missing),
        "bugs": [
            {
                "bug": f"{row.mechanism}/{row.entry}/{row.bug}",
                "dtype": row.dtype,
                "caught": row.caught,
                "effective": row.effective,
            }
            for row in rows
        ],
    }


def audit_markdown(rows: Sequence[AuditRow], toothless: Mapping[str, str]) -> str:
    """Return the audit as a page: the score, then a table for each entry."""
    caught = sum(row.is_caught for row in rows)
    how = (
        "Printed by `refattn audit --dtype all --markdown docs/audit.md`. Each planted bug is a wrong version that "
        "people write; a vector set catches it if the kit rejects its output there. *Effective* counts the cases on "
        "which the rounded wrong output differs from the right one at all."
    )
    score = (
        f"**{caught} of {len(rows)}** planted bugs caught (each counted once for every dtype that can resolve it), "
        f"**{len(toothless)}** laws that their witness does not break."
    )
    blocks = ["# The kit's own score", how, score]
    for (mechanism, entry, dtype), group in _by_entry(rows).items():
        head = "| planted bug | caught / effective | vector sets that catch it |\n| --- | --- | --- |"
        lines = [f"\n| `{row.bug}` | {_score(row)} | {_catching(row)} |" for row in group]
        if group:
            blocks.append(f"## {mechanism} · {entry} · {dtype}\n\n{head}{''.join(lines)}")
    return "\n\n".join(blocks) + "\n"


def _score(row: AuditRow) -> str:
    return f"{sum(row.caught.values())} / {sum(row.effective.values())}"


def _catching(row: AuditRow) -> str:
    return ", ".join(name for name, count in row.caught.items() if count) or "**none**"
