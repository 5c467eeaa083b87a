"""Zeppelin in the array-API standard: `ring` computes what the ring computes, `planner` what the planner decides."""

from refattn.backends.portable.zeppelin.planner import lower_bound, partition_hierarchical, plan_remap, transfer_time
from refattn.backends.portable.zeppelin.ring import (
    attention_block,
    merge_partial,
    pair_counts,
    partition_positions,
    ring_attention,
    ring_attention_gradient,
)

__all__ = [
    "attention_block",
    "lower_bound",
    "merge_partial",
    "pair_counts",
    "partition_hierarchical",
    "partition_positions",
    "plan_remap",
    "ring_attention",
    "ring_attention_gradient",
    "transfer_time",
]
