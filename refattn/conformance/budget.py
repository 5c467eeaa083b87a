"""What one output should be and how far rounding may move it: the budget that a verdict is measured against.

Equation source: the attention sheet, section 2.8, Step E, rule 4, for the limits of rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.conformance.precision import Precision, precision_class

__all__ = ["Budget", "Rows", "in_rows", "limits_of", "row_limits", "row_norm"]

SAFETY = 1.5  # on the Gaussian concentration bound of a row
TWIN_FACTOR = 4.0  # how much worse than the low-precision twin a row may be
POOLED_LIMIT = 2.0
CASE_ALARM = 1e-6  # probability, split over the rows of a case, that a correct row leaves the concentration bound


class Budget(NamedTuple):
    """What one output should be, and how far rounding may move it.

    A row is the last axis; outputs of one axis are one row, and with ``row_axes=0`` every element is a row of its own
    (log-sum-exp, losses). Per-row fields have the shape of the output without the row, or broadcast to it.

    Attributes
    ----------
    expected : ndarray
        The reference's output y in float64, or integers or booleans, which are compared exactly.
    bound, sigma : ndarray
        Elementwise: the largest error B of a correct kernel, and its statistical scale.
    twin : ndarray
        Per row: the L2 error of the worst low-precision twin.
    empty, open : ndarray of bool
        Per row: sees nothing, so the policy decides; cannot be certified in the declared precision.
    flush : ndarray
        Elementwise, or one number: what flushing subnormals to zero may add to an error.
    terms : int
        n, the longest sum.
    precision : Precision
        The declared precision class.
    derivation : str
        What the bound is made of, in lines for people; printed when a verdict is not a pass.
    row_axes : int
        1, or 0 if every element is a row.
    coherent : ndarray
        Per row: standard deviation of the error that all its elements share; 0 where roundings are independent.
    pooled_limit : float
        What rule 5 allows; 2 where rows err independently.
    """

    expected: np.ndarray
    bound: np.ndarray
    sigma: np.ndarray
    twin: np.ndarray | float = 0.0
    empty: np.ndarray | bool = False
    open: np.ndarray | bool = False
    flush: np.ndarray | float = 0.0
    terms: int = 1
    precision: Precision = precision_class(None, "float64")
    derivation: str = ""
    row_axes: int = 1
    coherent: np.ndarray | float = 0.0
    pooled_limit: float = POOLED_LIMIT


class Rows(NamedTuple):
    """A budget laid out as rows: (R, C) elementwise and (R,) per row; ``shape`` is that of the rows in the output."""

    y: np.ndarray
    bound: np.ndarray
    sigma: np.ndarray
    flush: np.ndarray
    twin: np.ndarray
    empty: np.ndarray
    open: np.ndarray
    coherent: np.ndarray
    pooled_limit: float
    shape: tuple[int, ...]


def _row_shape(budget: Budget) -> tuple[int, ...]:
    shape = np.shape(budget.expected)
    return shape if budget.row_axes == 0 else shape[:-1]


def in_rows(budget: Budget) -> Rows:
    """Lay a budget out as rows; what is not finite in the reference is matched by place, and has no bound."""
    full, rows = np.shape(budget.expected), _row_shape(budget)
    count = int(np.prod(rows, dtype=int))
    width = full[-1] if len(full) > len(rows) else 1

    def elements(values: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(values, np.float64), full).reshape(count, width)

    y, bound = elements(budget.expected), elements(budget.bound)
    finite = np.isfinite(y)
    unbounded = np.any(~np.isfinite(bound) & finite, axis=1)
    return Rows(
        y,
        np.where(finite, bound, 0.0),
        np.where(finite & np.isfinite(bound), elements(budget.sigma), 0.0),
        np.where(finite, elements(budget.flush), 0.0),
        np.broadcast_to(np.asarray(budget.twin, np.float64), rows).reshape(count),
        np.broadcast_to(budget.empty, rows).reshape(count),
        np.broadcast_to(budget.open, rows).reshape(count) | unbounded,
        np.broadcast_to(np.asarray(budget.coherent, np.float64), rows).reshape(count),
        budget.pooled_limit,
        rows,
    )


def row_norm(x: np.ndarray) -> np.ndarray:
    """L2 norm of each row, without overflow or underflow of the squares."""
    if not x.shape[-1]:
        return np.zeros(x.shape[:-1])
    scale = np.max(np.abs(x), axis=-1, keepdims=True)
    unit = np.divide(x, scale, out=np.zeros_like(x), where=(scale > 0) & np.isfinite(scale))
    return np.asarray(np.squeeze(scale, -1) * np.sqrt(np.sum(unit * unit, axis=-1)))


def limits_of(rows: Rows) -> np.ndarray:
    """Rule 4's T, one number a row."""
    t = np.sqrt(2.0 * np.log(max(rows.y.shape[0], 1) / CASE_ALARM))
    largest = np.maximum(np.max(rows.sigma, axis=1, initial=0.0), rows.coherent)
    return np.asarray(np.maximum(SAFETY * (row_norm(rows.sigma) + t * largest), TWIN_FACTOR * rows.twin))


@np.errstate(all="ignore")
def row_limits(budget: Budget) -> np.ndarray:
    """Return the L2 error along the last axis that rounding may cause: shape of the output less that axis.

    T of rule 4; for open rows the norm of the bound B, which holds there too; 0 for empty rows.
    """
    rows = in_rows(budget)
    flat: np.ndarray = np.where(rows.empty, 0.0, np.where(rows.open, row_norm(rows.bound), limits_of(rows)))
    limits = flat.reshape(rows.shape)
    return limits if budget.row_axes == 1 or not limits.ndim else row_norm(limits)
