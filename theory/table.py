"""Results as a tidy table: one row is one number, with what it is, where it comes from, and under which parameters."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["FIXED", "SOURCES", "ResultTable", "Row"]

Row = dict[str, Any]

FIXED = ("experiment", "figure", "source", "metric", "value", "stderr", "n_samples", "seed", "seconds")
"""The columns that every table may have; one column for each parameter follows them."""

SOURCES = ("simulation", "exact", "order1", "theory", "paper", "official")
"""Where a number comes from: measured here; exact, first-order or other theory; or printed elsewhere."""


class ResultTable:
    """Rows of numbers, in the order in which they were added.

    Parameters
    ----------
    rows : iterable of mapping
        Each with at least ``metric``, ``source`` and ``value``. Values are numbers, strings, booleans or None.

    Raises
    ------
    ValueError
        If a row lacks one of the three, has an unknown source, or holds something other than a scalar.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.rows: list[Row] = []
        self.extend(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same rows, to the last bit; a NaN equals a NaN."""
        return isinstance(other, ResultTable) and [*map(_line, self.rows)] == [*map(_line, other.rows)]

    __hash__ = None  # type: ignore[assignment]  # a table can grow

    def __repr__(self) -> str:
        return f"ResultTable({len(self)} rows: {', '.join(self.columns)})"

    def add(self, source: str, metric: str, value: float, **others: Any) -> None:
        """Add one row."""
        self.extend([{"source": source, "metric": metric, "value": value, **others}])

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, each checked; nothing is added if one of them is refused."""
        self.rows += [_checked(row) for row in rows]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that occur: the fixed ones first, then parameters in the order of their appearance."""
        found = dict.fromkeys(name for row in self.rows for name in row)
        return (*(name for name in FIXED if name in found), *(name for name in found if name not in FIXED))

    def column(self, name: str) -> np.ndarray:
        """Return one column; numbers as floats, NaN where a row has none.

        Raises
        ------
        ValueError
            If no row has the column.
        """
        if name not in self.columns:
            raise ValueError(f"column {name!r} is not one of {', '.join(self.columns)}")
        values = [row.get(name) for row in self.rows]
        if all(value is None or isinstance(value, (int, float)) for value in values):
            return np.array([np.nan if value is None else value for value in values], dtype=float)
        return np.array(values, dtype=object)

    def where(self, **equal: Any) -> ResultTable:
        """Return the rows whose columns have the given values."""
        chosen = ResultTable()
        chosen.rows = [row for row in self.rows if all(row.get(name) == value for name, value in equal.items())]
        return chosen

    def one(self, **equal: Any) -> Row:
        """Return the only row whose columns have the given values.

        Raises
        ------
        ValueError
            If there is none, or more than one.
        """
        found = self.where(**equal).rows
        if len(found) != 1:
            raise ValueError(f"{len(found)} rows have {equal!r}, expected one")
        return found[0]

    def value(self, **equal: Any) -> float:
        """Return ``value`` of the only row whose columns have the given values."""
        return float(self.one(**equal)["value"])

    def to_csv(self, path: Path | str) -> None:
        """Write the table as CSV, floats with all their digits."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: "" if v is None else v for name, v in row.items()} for row in self.rows)

    def to_jsonl(self, path: Path | str) -> None:
        """Write the table as JSON lines; reading it back gives an equal table."""
        Path(path).write_text("".join(map(_line, self.rows)), encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: Path | str) -> ResultTable:
        """Read what `to_jsonl` wrote."""
        return cls(json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines())

    def to_pandas(self) -> Any:
        """Return the table as a pandas ``DataFrame``, where pandas is installed."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.columns))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _checked(row: Mapping[str, Any]) -> Row:
    for name in ("source", "metric", "value"):
        if name not in row:
            raise ValueError(f"row {dict(row)!r} has no {name!r}")
    if row["source"] not in SOURCES:
        raise ValueError(f"source={row['source']!r} is not one of {', '.join(SOURCES)}")
    return {name: _scalar(name, value) for name, value in row.items()}


def _scalar(name: str, value: Any) -> Any:
    """Return a value as the plain number, string, boolean or None that JSON knows."""
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) and np.ndim(value) == 0 else value
    if not (value is None or isinstance(value, (bool, int, float, str))):
        raise ValueError(f"column {name!r} holds {value!r}, expected a number, string, boolean or None")
    return value
