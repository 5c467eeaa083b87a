"""Zeppelin: balance sequences of unequal lengths over many GPUs, with attention that stays exact (2509.21841).

A planner decides which GPUs share which sequence, a ring on those GPUs computes its attention, and `execute_plan` joins
the two: whatever was planned, nothing changes. What a plan costs is simulated. The parts stand in files of their own:
blocks, ring, ring between processes (`refattn.efficiency.zeppelin_distributed`), plan, transfers, events, simulator.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.efficiency.zeppelin_blocks import attention_block, check_heads, merge_partial
from refattn.efficiency.zeppelin_plan import Cluster, Job, LayerCost, partition_hierarchical
from refattn.efficiency.zeppelin_ring import (
    checked_shards,
    partition_positions,
    ring_attention,
    ring_attention_gradient,
)
from refattn.efficiency.zeppelin_simulator import Timeline, lower_bound, sample_lengths, simulate_layer
from refattn.efficiency.zeppelin_transfer import plan_remap, transfer_time
from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Cluster",
    "Job",
    "LayerCost",
    "Timeline",
    "attention_block",
    "execute_plan",
    "lower_bound",
    "merge_partial",
    "partition_hierarchical",
    "partition_positions",
    "plan_remap",
    "ring_attention",
    "ring_attention_gradient",
    "sample_lengths",
    "simulate_layer",
    "transfer_time",
]


def execute_plan(
    q: Any, k: Any, v: Any, cu_seqlens: Any, jobs: Sequence[Job], *, layout: str = "zigzag", causal: bool = True
) -> Any:
    """Run every job of a plan as ring attention on its own ranks: whatever the planner decided, nothing changes.

    Parameters
    ----------
    q, k, v : array_like, shape (n, h, d), (n, h_kv, d), (n, h_kv, d_v)
        Queries, keys and values of the batch, sequences packed end to end.
    cu_seqlens : array_like of int, shape (S + 1,)
        Where the sequences begin, and the total n.
    jobs : sequence of Job
        As from `partition_hierarchical`: each with its zone, its ranks and its length, in any order.
    layout, causal
        As in `ring_attention`.

    Returns
    -------
    ndarray, shape (n, h, d_v)
        In the dtype of ``q``.

    Raises
    ------
    ValueError
        If the jobs are not exactly one for each sequence, a job has no ranks or one twice, and as `ring_attention`.

    Notes
    -----
    A job is known by its length. Sequences of equal length are interchangeable in a plan: the first job of a length
    takes the first sequence of that length [our definition].
    """
    q, k, v, _ = check_heads(q, k, v, scale=None, causal=causal)
    checked_shards(q, k, cu_seqlens, 1, layout)
    waiting: dict[int, list[slice]] = {}
    for start, end in pairwise(int(x) for x in cu_seqlens):
        waiting.setdefault(end - start, []).append(slice(start, end))
    out = np.zeros((*q.shape[:2], v.shape[-1]), q.dtype)
    for _, ranks, length in jobs:
        require(waiting.get(length), f"jobs holds a job of length {length} for which there is no sequence left")
        require(len(set(ranks)) == len(ranks) > 0, f"jobs holds a job on ranks {ranks}; they must be some, each once")
        rows = waiting[length].pop(0)
        out[rows], _ = ring_attention(q[rows], k[rows], v[rows], len(ranks), layout=layout, causal=causal)
    left = [length for length, rows in waiting.items() if rows]
    require(not left, f"jobs holds no job for sequences of lengths {left}")
    return out
