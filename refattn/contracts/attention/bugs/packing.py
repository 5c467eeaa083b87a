"""Mistakes of packed sequences and paged caches, and mistakes of `attention` as they look there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug, Case
from refattn.contracts.attention.bugs.plant import always
from refattn.contracts.attention.equivalents import dense, restored
from refattn.primitives.attention import AttentionResult, attention

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PAGED", "VARLEN", "as_paged", "as_varlen"]

_POSITIONAL = {
    "attention_varlen": ("q", "k", "v", "cu_q", "cu_k"),
    "attention_paged": ("q", "k_pages", "v_pages", "block_table", "kv_lengths"),
}


def _case(entry: str, values: tuple[Any, ...], keywords: dict[str, Any]) -> Case:
    arrays = dict(zip(_POSITIONAL[entry], values, strict=True))
    arrays |= {name: x for name, x in keywords.items() if isinstance(x, np.ndarray)}
    return Case(entry, arrays, {name: x for name, x in keywords.items() if name not in arrays})


def _run(function: Callable[..., AttentionResult], case: Case) -> AttentionResult:
    """Run an attention on the dense form of a packed or paged case."""
    like = dense(case)
    found = function(**like.arrays, **like.options)._asdict()
    return AttentionResult(**{name: restored(case, name, x) for name, x in found.items() if x is not None})


def _transferred(bug: Bug, entry: str, prefix: str) -> Bug:
    def wrong(*values: np.ndarray, **keywords: Any) -> AttentionResult:
        return _run(bug.wrong, _case(entry, values, keywords))

    return replace(bug, name=f"{prefix}_{bug.name}", wrong=wrong, applies=lambda case: bug.applies(dense(case)))


def as_varlen(bug: Bug) -> Bug:
    """Return a bug of `attention` as one of `attention_varlen`, by padding the sequences to a batch."""
    return _transferred(bug, "attention_varlen", "varlen")


def as_paged(bug: Bug) -> Bug:
    """Return a bug of `attention` as one of `attention_paged`, by reading the pages first."""
    return _transferred(bug, "attention_paged", "paged")


def _planted(
    entry: str,
    name: str,
    description: str,
    remedy: str,
    misread: Callable[[Case], dict[str, Any]],
    applies: Callable[[Case], bool] = always,
) -> Bug:
    """Return the bug of an entry that computes rightly on arrays that it misreads."""

    def wrong(*values: np.ndarray, **keywords: Any) -> AttentionResult:
        case = _case(entry, values, keywords)
        return _run(attention, case.having(**misread(case)))

    return Bug(name, description, wrong, applies, source=misread, remedy=remedy)


def paged_identity(case: Case) -> dict[str, Any]:
    table = case.arrays["block_table"]
    return {"block_table": np.arange(table.size).reshape(table.shape) % len(case.arrays["k_pages"])}


def paged_batch0(case: Case) -> dict[str, Any]:
    table = case.arrays["block_table"]
    return {"block_table": np.broadcast_to(table[:1], table.shape)}


def paged_tail(case: Case) -> dict[str, Any]:
    page = case.arrays["k_pages"].shape[1]
    return {"kv_lengths": -(-case.arrays["kv_lengths"] // page) * page}


def _several(case: Case) -> bool:
    return len(case.arrays["block_table"]) > 1


def _partly_filled(case: Case) -> bool:
    return bool((case.arrays["kv_lengths"] % case.arrays["k_pages"].shape[1]).any())


PAGED = (
    _planted(
        "attention_paged",
        "paged_identity",
        "block table ignored: pages read in physical order",
        "Logical page n of entry b is physical page block_table[b, n].",
        paged_identity,
    ),
    _planted(
        "attention_paged",
        "paged_batch0",
        "block table of batch 0 used for every batch",
        "Each batch entry has its own row of the table.",
        paged_batch0,
        _several,
    ),
    _planted(
        "attention_paged",
        "paged_tail",
        "valid length rounded up to a whole page",
        "Hide the slots of the last page from n_k on.",
        paged_tail,
        _partly_filled,
    ),
)


def varlen_one_sequence(case: Case) -> dict[str, Any]:
    return {name: case.arrays[name][[0, -1]] for name in ("cu_q", "cu_k")}


def varlen_first_boundary(case: Case) -> dict[str, Any]:
    return {name: case.arrays[name][[0, 1, -1]] for name in ("cu_q", "cu_k")}


def varlen_boundary_late(case: Case) -> dict[str, Any]:
    late = {name: case.arrays[name].copy() for name in ("cu_q", "cu_k")}
    for cu in late.values():
        cu[1:-1] = np.minimum(cu[1:-1] + 1, cu[-1])
    return late


def varlen_cu_q_for_keys(case: Case) -> dict[str, Any]:
    keys = np.minimum(case.arrays["cu_q"], case.arrays["cu_k"][-1])
    keys[-1] = case.arrays["cu_k"][-1]
    return {"cu_k": keys}


def _sequences(count: int) -> Callable[[Case], bool]:
    def applies(case: Case) -> bool:
        return len(case.arrays["cu_q"]) > count

    return applies


def _different_bounds(case: Case) -> bool:
    return not np.array_equal(case.arrays["cu_q"], case.arrays["cu_k"])


VARLEN = (
    _planted(
        "attention_varlen",
        "varlen_one_sequence",
        "all sequences taken for one",
        "Every sequence attends among its own tokens.",
        varlen_one_sequence,
        _sequences(2),
    ),
    _planted(
        "attention_varlen",
        "varlen_first_boundary",
        "only the first boundary respected",
        "Every entry of cu begins a sequence.",
        varlen_first_boundary,
        _sequences(3),
    ),
    _planted(
        "attention_varlen",
        "varlen_boundary_late",
        "sequences begin one token late",
        "Sequence a holds the tokens cu[a] to cu[a + 1] − 1.",
        varlen_boundary_late,
        _sequences(2),
    ),
    _planted(
        "attention_varlen",
        "varlen_cu_q_for_keys",
        "keys cut by the bounds of the queries",
        "Queries and keys have bounds of their own.",
        varlen_cu_q_for_keys,
        _different_bounds,
    ),
)
