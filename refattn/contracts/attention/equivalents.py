"""Packed and paged cases as cases of `attention`, and its outputs laid out as theirs.

Equation source: the attention sheet, R28 and R29. The laws, the error budgets and the planted bugs of the two packed
entries all rest on these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.budget import Budget
    from refattn.conformance.contract import Case

__all__ = ["dense", "gathered", "padded", "restored", "unpadded"]


def padded(x: np.ndarray, cu: np.ndarray) -> np.ndarray:
    """Lay packed sequences out as a batch, padded with zeros: (T, H, channels) to (N, H, longest, channels)."""
    lengths = np.diff(cu)
    out = np.zeros((len(lengths), x.shape[1], int(lengths.max(initial=0)), x.shape[2]))
    for entry, start, n in zip(out, cu[:-1].tolist(), lengths.tolist(), strict=True):
        entry[:, :n] = x[start : start + n].swapaxes(0, 1)
    return out


def unpadded(x: np.ndarray, cu: np.ndarray) -> np.ndarray:
    """Pack a batch (N, H, longest, ...) end to end, lengths first: (T, H, ...)."""
    parts = [entry[:, :n].swapaxes(0, 1) for entry, n in zip(x, np.diff(cu).tolist(), strict=True)]
    return np.concatenate([np.zeros((0, x.shape[1], *x.shape[3:]), x.dtype), *parts])


def gathered(pages: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Read every page that a table names, in its order: (B, Hkv, n · page, channels); entries < 0 read page 0."""
    found = pages[np.maximum(table, 0)]  # (B, n, page, Hkv, channels)
    return np.asarray(found.reshape(len(table), -1, *pages.shape[2:]).swapaxes(1, 2))


def dense(case: Case) -> Case:
    """Return the case of `attention` that computes the same as a packed or paged case.

    Parameters
    ----------
    case : Case
        Of any entry of the contract that attends; one of `attention` or `attention_vjp` is returned as it is.
    """
    a, options = dict(case.arrays), {"align": "bottom_right", **case.options}
    if case.entry == "attention_varlen":
        cu_q, cu_k = a.pop("cu_q"), a.pop("cu_k")
        lengths = {"q_lengths": np.diff(cu_q), "kv_lengths": np.diff(cu_k)}
        packed = {"q": padded(a["q"], cu_q), "k": padded(a["k"], cu_k), "v": padded(a["v"], cu_k)}
        return replace(case, entry="attention", arrays={**a, **packed, **lengths}, options=options)
    if case.entry == "attention_paged":
        table = a.pop("block_table")
        found = {name[0]: gathered(a.pop(name), table) for name in ("k_pages", "v_pages")}
        return replace(case, entry="attention", arrays={**a, **found}, options=options)
    return case


def restored(case: Case, name: str, x: np.ndarray) -> np.ndarray:
    """Return output ``name`` of the dense case (or any array with its row axes) laid out as that of ``case``."""
    if case.entry != "attention_varlen" or x.ndim < 3:
        return x
    rows = unpadded(x, case.arrays["cu_q"])
    return rows.swapaxes(0, 1) if name == "lse" else rows


def restored_budget(case: Case, name: str, budget: Budget) -> Budget:
    """Return the budget of the dense case laid out as that of ``case``."""
    row_axes = 0 if name == "lse" else 1

    def move(field: Any, axes: int) -> Any:
        full = np.shape(budget.expected)[: np.ndim(budget.expected) - (row_axes - axes)]
        return field if np.ndim(field) == 0 else restored(case, name, np.broadcast_to(field, full))

    elementwise = {field: move(getattr(budget, field), row_axes) for field in ("expected", "bound", "sigma", "flush")}
    by_row: dict[str, Any] = {field: move(getattr(budget, field), 0) for field in ("twin", "empty", "open")}
    return budget._replace(**elementwise, **by_row)


def dense_budgets(
    model: Callable[[Case, str | None], dict[str, Budget]], case: Case, precision: str | None
) -> dict[str, Budget]:
    """Return the budgets of ``case`` by an error model that knows `attention` only."""
    budgets = model(dense(case), precision)
    return {name: restored_budget(case, name, budget) for name, budget in budgets.items()}
