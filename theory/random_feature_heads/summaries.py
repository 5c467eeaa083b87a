"""Means over replicas, as checks and figures read them from a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from theory.table import ResultTable

__all__ = ["Mean", "best_mean", "levels", "mean_of"]


class Mean(NamedTuple):
    """A mean and its standard error; NaN for a single number."""

    value: float
    stderr: float
    draws: int


def mean_of(table: ResultTable, **equal: Any) -> Mean:
    """Return the mean over the rows whose columns have the given values.

    Raises
    ------
    ValueError
        If there is no such row.
    """
    values = [float(row["value"]) for row in table.where(**equal)]
    if not values:
        raise ValueError(f"no row has {equal!r}")
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan
    return Mean(float(np.mean(values)), spread, len(values))


def best_mean(table: ResultTable, **equal: Any) -> Mean:
    """Return the mean at the ridge at which it is smallest."""
    ridges = sorted({row["ridge_rel"] for row in table.where(**equal)})
    if not ridges:
        raise ValueError(f"no row has {equal!r}")
    return min((mean_of(table, ridge_rel=ridge, **equal) for ridge in ridges), key=lambda mean: mean.value)


def levels(table: ResultTable, column: str, **equal: Any) -> list[Any]:
    """Return the values that occur in a column, in the order in which they first do."""
    return list(dict.fromkeys(row[column] for row in table.where(**equal) if column in row))
