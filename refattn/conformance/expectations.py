"""The adopter's own file: failures that are expected, with reasons, and how many checks there must be.

A TOML file in the adopter's repository::

    checks = 812                                    # at least so many must have been judged

    [expected]
    "attention/attention/scenario/softcap@*" = "this kernel has no softcap yet, issue 12"

Patterns are shell patterns over check identities. An entry that matches no failing check is an error: what was mended
must leave the list.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from refattn.conformance.records import Record

__all__ = ["Expectations", "read_expectations"]

_JUDGED = ("passed", "acceptable", "expected", "failed")


@dataclass(frozen=True)
class Expectations:
    """What an adopter expects of a run.

    Attributes
    ----------
    expected : mapping of str to str
        Pattern over check identities to the reason.
    checks : int
        The least number of checks that must be judged.
    """

    expected: Mapping[str, str] = field(default_factory=dict)
    checks: int = 0

    def apply(self, records: Iterable[Record]) -> tuple[list[Record], list[str]]:
        """Return the records with expected failures marked, and what is wrong with the expectations."""
        used: set[str] = set()
        marked = [self._mark(record, used) for record in records]
        problems = [
            f"expected failure {pattern!r} matches no failing check" for pattern in self.expected if pattern not in used
        ]
        judged = sum(record.status in _JUDGED for record in marked)
        if judged < self.checks:
            problems.append(f"{judged} checks were judged, {self.checks} are on file: say why some are gone")
        return marked, problems

    def _mark(self, record: Record, used: set[str]) -> Record:
        for pattern, reason in self.expected.items():
            if record.status == "failed" and fnmatchcase(str(record.check), pattern):
                used.add(pattern)
                return record.having(status="expected", reason=f"{reason} ({record.reason})")
        return record


def read_expectations(path: Path) -> Expectations:
    """Read an adopter's file.

    Raises
    ------
    ValueError
        If it is not TOML, holds unknown keys, or gives a pattern without a reason.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"expected-failures={str(path)!r}: {error}") from error
    unknown = set(content) - {"expected", "checks"}
    if unknown:
        raise ValueError(f"expected-failures={str(path)!r}: unknown key {min(unknown)!r}")
    for pattern, reason in content.get("expected", {}).items():
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"expected-failures={str(path)!r}: {pattern!r} needs a reason")
    return Expectations(content.get("expected", {}), int(content.get("checks", 0)))
