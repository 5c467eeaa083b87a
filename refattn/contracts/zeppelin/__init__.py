"""The contract of Zeppelin (2509.21841): the ring, its blocks, its layouts and its way back; the planner's numbers.

What a rank computes for data that it does not hold is no function of arrays: the ring between processes is tested in
``tests/efficiency``. `ring_attention` takes ranks, layout and sequence bounds as options, because they set the shapes.
A plan is decided by the lengths, which are options too: nothing of it is traced. The simulator has no entry, for a
clock of events is no array function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Convention, Entry
from refattn.contracts.zeppelin import bugs, cases, laws
from refattn.contracts.zeppelin.planner import PLANNER_ENTRIES
from refattn.efficiency.zeppelin_ring import (
    attention_block,
    merge_partial,
    pair_counts,
    partition_positions,
    ring_attention,
    ring_attention_gradient,
)

if TYPE_CHECKING:
    from refattn.conformance.contract import Case, Outputs

__all__ = ["CONTRACT"]

_HEADED = ("q", "d_out", "out", "lse", "dq")  # arrays with an axis of query heads


def _dealt(case: Case) -> np.ndarray:
    """Return which query head stands where, if head j reads key head j mod h_kv and all read what they should."""
    h, h_kv = case.arrays["q"].shape[1], case.arrays["k"].shape[1]
    return np.arange(h).reshape(h_kv, -1).T.reshape(-1)


def _send_heads(case: Case, _value: str) -> Case:
    if "q" not in case.arrays:
        return case
    order = _dealt(case)
    return case.having(**{name: x[:, order] for name, x in case.arrays.items() if name in _HEADED})


def _receive_heads(outputs: Outputs, case: Case, _value: str) -> Outputs:
    if "q" not in case.arrays:
        return outputs
    order = np.argsort(_dealt(case))
    return {name: x[:, order] if name in _HEADED else x for name, x in outputs.items()}


_HEADS = Convention(
    "kv_head_order",
    {
        "grouped": "Query head j reads key head ⌊j / (h / h_kv)⌋.",
        "interleaved": "Query head j reads key head j mod h_kv, as in ring-attention-pytorch.",
    },
    send=_send_heads,
    receive=_receive_heads,
)
_TOKENS = {"q": ("n", "h", "d"), "k": ("n", "h_kv", "d"), "v": ("n", "h_kv", "d_v")}

_RING = Entry(
    "ring_attention",
    ring_attention,
    ("q", "k", "v"),
    cases.RING.scenarios(cases.RING_SCENARIOS),
    cases.FAMILIES,
    cases.RING.cases(cases.ring_sizes()),
    smoke=smoke("zigzag", "packed"),
    outputs=("out", "lse"),
    laws=laws.RING_LAWS,
    bugs=bugs.RING_BUGS,
    differentiable=("q", "k", "v"),
    axes=_TOKENS,
)
_GRADIENT = Entry(
    "ring_attention_gradient",
    ring_attention_gradient,
    ("q", "k", "v", "d_out", "out", "lse"),
    cases.GRADIENT.scenarios(cases.GRADIENT_SCENARIOS),
    cases.GRADIENT.families,
    cases.GRADIENT.cases(cases.ring_sizes()),
    smoke=smoke("zigzag", "packed"),
    outputs=("dq", "dk", "dv"),
    laws=laws.GRADIENT_LAWS,
    bugs=bugs.GRADIENT_BUGS,
)
_BLOCK = Entry(
    "attention_block",
    attention_block,
    ("q", "k", "v", "q_pos", "k_pos"),
    cases.BLOCK.scenarios(cases.BLOCK_SCENARIOS),
    cases.FAMILIES,
    cases.BLOCK.cases(cases.block_sizes()),
    smoke=smoke("zigzag", "unordered", "own"),
    outputs=("out", "lse"),
    laws=laws.BLOCK_LAWS,
    bugs=bugs.BLOCK_BUGS,
    differentiable=("q", "k", "v"),
    axes={
        "q": ("n_q", "h", "d"),
        "k": ("n_k", "h_kv", "d"),
        "v": ("n_k", "h_kv", "d_v"),
        "q_pos": ("n_q",),
        "k_pos": ("n_k",),
    },
)
_PARTS = {f"{name}_{side}": ("n", "h", "d_v")[:axes] for name, axes in (("out", 3), ("lse", 2)) for side in "ab"}
_MERGE = Entry(
    "merge_partial",
    merge_partial,
    ("out_a", "lse_a", "out_b", "lse_b"),
    cases.MERGE.scenarios(cases.MERGE_SCENARIOS),
    cases.MERGE.families,
    cases.MERGE.cases(cases.merge_sizes),
    smoke=smoke("alike", "both_empty"),
    outputs=("out", "lse"),
    laws=laws.MERGE_LAWS,
    bugs=bugs.MERGE_BUGS,
    axes=_PARTS,
)
_PARTITION = Entry(
    "partition_positions",
    partition_positions,
    (),
    cases.PARTITION.scenarios(cases.PARTITION_SCENARIOS),
    cases.PARTITION.families,
    cases.PARTITION.cases(cases.partition_sizes()),
    outputs=tuple(f"rank_{rank}" for rank in range(cases.MOST_RANKS)),
    laws=laws.PARTITION_LAWS,
    bugs=bugs.PARTITION_BUGS,
)
_PAIRS = Entry(
    "pair_counts",
    pair_counts,
    (),
    cases.PAIRS.scenarios(cases.PARTITION_SCENARIOS),
    cases.PAIRS.families,
    cases.PAIRS.cases(cases.partition_sizes()),
    laws=laws.PAIR_LAWS,
    bugs=bugs.PAIR_BUGS,
)

CONTRACT = Contract(
    "zeppelin",
    "Zeppelin: unequal sequences over many ranks",
    "2509.21841",
    "efficiency",
    (_RING, _GRADIENT, _BLOCK, _MERGE, _PARTITION, _PAIRS, *PLANNER_ENTRIES),
    (_HEADS,),
)
