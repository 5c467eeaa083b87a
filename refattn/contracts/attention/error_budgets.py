"""From bounds to budgets: what all error models of attention share when they hand their numbers to the judge.

Equation source: the attention sheet, section 2.8, Step E; packed heads share a row there [our definition].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.conformance.budget import Budget, row_norm

if TYPE_CHECKING:
    from refattn.conformance.precision import Precision
    from refattn.contracts.attention.error_steps import Exact

__all__ = ["Fields", "finished", "in_layout", "open_rows"]

OPEN_SPREAD = 0.25  # ν: logits that err by more than this, weighted, leave a row uncertain


class Fields(NamedTuple):
    """What a budget is made of before the twin joins: y, B, σ, empty and open rows, whether elements are rows."""

    y: np.ndarray
    bound: np.ndarray
    sigma: np.ndarray
    empty: np.ndarray
    open: np.ndarray
    row_axes: int
    lines: str


def finished(f: Fields, low: np.ndarray, u: Precision, n: int) -> Budget:
    """Join a twin's output and the common constants to the fields of a budget."""
    both = np.isfinite(f.y) & np.isfinite(low)
    distance = np.subtract(low, f.y, out=np.zeros_like(f.y), where=both)
    row_errors = row_norm(distance) if f.row_axes else np.abs(distance)
    sigma = np.sqrt(2.0) * f.sigma if u.dtype == "float64" else f.sigma
    live = ~np.asarray(f.empty)[..., None] if f.row_axes else ~np.asarray(f.empty)
    return Budget(
        f.y,
        np.where(live, f.bound, 0.0),
        np.where(live, sigma, 0.0),
        row_errors,
        f.empty,
        f.open,
        u.flush_floor(n),
        n,
        u,
        f"precision class {u.name} of {u.dtype}: u_x {u.u_x:.3g}, u_s {u.u_s:.3g}, u_e {u.u_e:.3g}, u_p {u.u_p:.3g}, "
        f"u_a {u.u_a:.3g}, u_o {u.u_o:.3g}; sums of up to {n} keys\n{f.lines}\n"
        "row limit = max(1.5 (|sigma| + sqrt(2 ln(rows / 1e-6)) max sigma), 4 times the low-precision twin's error)\n"
        f"open rows (logits uncertain by more than {OPEN_SPREAD}, or sums that may stagnate): "
        f"{float(np.mean(f.open)) if f.open.size else 0.0:.1%}",
        f.row_axes,
    )


def open_rows(x: Exact, spread: np.ndarray, u: Precision) -> np.ndarray:
    """Return the rows that the class cannot certify: uncertain logits, or sums long enough to stagnate."""
    return np.asarray(((spread > OPEN_SPREAD) | (x.n[..., 0] * u.u_a > 0.5)) & ~x.empty)


def in_layout(budget: Budget, layout: str) -> Budget:
    """Return a budget (B, H, S, channels) in the layout of the case; packed heads share a row."""
    if layout == "bhsd":
        return budget

    def moved(array: Any) -> Any:
        return np.swapaxes(array, 1, 2) if np.ndim(array) else array

    per_element = {name: moved(getattr(budget, name)) for name in ("expected", "bound", "sigma")}
    per_row = {name: moved(getattr(budget, name)) for name in ("twin", "empty", "open")}
    if layout == "bs(hd)":
        per_element = {name: array.reshape(*array.shape[:2], -1) for name, array in per_element.items()}
        per_row = {
            "twin": np.sqrt(np.sum(per_row["twin"] ** 2, axis=-1)),
            "empty": np.all(per_row["empty"], axis=-1),
            "open": np.any(per_row["open"], axis=-1),
        }
    return budget._replace(**per_element, **per_row)
