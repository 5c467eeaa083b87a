"""What a check leaves behind: an identity, a status with its reason, and what a reader needs to go on."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["STATUSES", "CheckId", "Record", "tally"]

STATUSES = ("passed", "acceptable", "expected", "inconclusive", "skipped", "failed")


class CheckId(NamedTuple):
    """Stable name of a check: ``mechanism/entry/kind/name@dtype``."""

    mechanism: str
    entry: str
    kind: str
    name: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.mechanism}/{self.entry}/{self.kind}/{self.name}@{self.dtype}"

    @classmethod
    def parse(cls, text: str) -> CheckId:
        """Return the identity that ``str`` printed."""
        path, _, dtype = text.rpartition("@")
        mechanism, entry, kind, name = path.split("/", 3)
        return cls(mechanism, entry, kind, name, dtype)


@dataclass(frozen=True)
class Record:
    """The outcome of one check.

    Attributes
    ----------
    check : CheckId
        Which check.
    status : str
        ``passed``; ``acceptable``, a declared convention differs; ``expected``, a failure that the adopter listed;
        ``inconclusive``, the arithmetic cannot certify it; ``skipped``, the backend does not offer it; ``failed``.
    reason : str
        Why, in a line.
    cases : int
        How many cases were judged.
    measured, limit : float
        The deciding error and its bound, in the same unit.
    detail : str
        Lines for a reader: the law or bound, the derivation, the shrunk case.
    matches : tuple of str
        Planted bugs with the same output.
    replay : str
        The file from which ``refattn replay`` runs the failure again.
    backend : str
        On trial.
    report : dict
        Further numbers of the verdict.
    seconds : float
        How long it took.
    """

    check: CheckId
    status: str
    reason: str = ""
    cases: int = 0
    measured: float | None = None
    limit: float | None = None
    detail: str = ""
    matches: tuple[str, ...] = ()
    replay: str = ""
    backend: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def having(self, **changes: Any) -> Record:
        """Return this record with some attributes replaced."""
        return replace(self, **changes)

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        report = {key: None if isinstance(v, float) and not isfinite(v) else v for key, v in self.report.items()}
        return {**asdict(self), "check": str(self.check), "matches": list(self.matches), "report": report}


def tally(records: Iterable[Record]) -> dict[str, int]:
    """Count the records by status; every status is a key."""
    counts = Counter(record.status for record in records)
    return {status: counts[status] for status in STATUSES}
