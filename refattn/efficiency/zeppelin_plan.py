"""The planner of Zeppelin: which sequence of a batch runs on which GPUs (2509.21841).

Short sequences stay whole on one GPU, longer ones are split over some GPUs of a node, the longest over nodes: three
zones, filled from the outside in. What it costs to move bytes and to even out tokens is in
`refattn.efficiency.zeppelin_transfer`, the time of a whole layer in `refattn.efficiency.zeppelin_simulator`. Equation
labels are those of the page.
"""

from __future__ import annotations

from itertools import chain
from math import ceil, inf, isfinite
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_integer, require

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ZONES",
    "Cluster",
    "Job",
    "LayerCost",
    "Plan",
    "check_cluster",
    "check_layer",
    "check_lengths",
    "checked_capacity",
    "default_capacity",
    "partition_hierarchical",
]

ZONES = ("inter-node", "intra-node", "local")

# shares of tokens are quotients: a bucket may be over its capacity by their rounding
ROUNDING = 1 + 1e-12


class Cluster(NamedTuple):
    """Machines, all alike: GPUs joined by NVLink inside a node, by network cards (NICs) across nodes.

    Attributes
    ----------
    nodes, gpus, nics : int
        Nodes N, GPUs a node P, network cards a node M.
    intra_bandwidth, inter_bandwidth : float
        Bytes a second out of one GPU inside a node, and through one NIC.
    attention_flops, linear_flops : float
        Operations a second of one GPU in attention and in matrix products.
    intra_latency, inter_latency : float
        Seconds before the first byte, inside a node and across.
    """

    nodes: int = 2
    gpus: int = 8
    nics: int = 4
    intra_bandwidth: float = 200e9
    inter_bandwidth: float = 25e9
    attention_flops: float = 150e12
    linear_flops: float = 190e12
    intra_latency: float = 5e-6
    inter_latency: float = 15e-6

    @property
    def ranks(self) -> int:
        """Number R of GPUs; rank g is GPU g mod P of node ⌊g / P⌋."""
        return self.nodes * self.gpus


class LayerCost(NamedTuple):
    """What one layer of a model costs in its forward pass.

    Attributes
    ----------
    hidden, kv, ffn : int
        Width h of the hidden state, of all keys of a token, and of the gated feed-forward layer.
    number_bytes : int
        Bytes of a number.
    """

    hidden: int = 4096
    kv: int = 4096
    ffn: int = 11008
    number_bytes: int = 2

    @property
    def kv_bytes(self) -> int:
        """Bytes of the key and the value of a token."""
        return 2 * self.kv * self.number_bytes

    @property
    def hidden_bytes(self) -> int:
        """Bytes of the hidden state of a token."""
        return self.hidden * self.number_bytes

    @property
    def linear_flops(self) -> int:
        """Operations for a token outside attention: four projections and a gated feed-forward layer."""
        return 2 * self.hidden * (2 * self.hidden + 2 * self.kv + 3 * self.ffn)

    def attention_flops(self, length: float) -> float:
        """Operations of causal attention over a sequence: half of the 4 h L² for all pairs."""
        # eq: zep-flops
        return 2.0 * self.hidden * length * length


class Job(NamedTuple):
    """One sequence and the GPUs that share it.

    Attributes
    ----------
    zone : {"inter-node", "intra-node", "local"}
        Which links its ring uses.
    ranks : tuple of int
        The GPUs, ascending: node after node. One GPU: no ring.
    length : int
        Tokens of the sequence.
    """

    zone: str
    ranks: tuple[int, ...]
    length: int


class Plan(NamedTuple):
    """A batch, planned.

    Attributes
    ----------
    jobs : list of Job
        Zone by zone as in ``ZONES``, the order in which GPUs run them.
    tokens_per_gpu : ndarray, shape (R,)
        Tokens that each GPU holds during attention. A GPU's share of a split sequence is the ideal L / G; chunks of
        whole tokens differ from it by less than one.
    """

    jobs: list[Job]
    tokens_per_gpu: np.ndarray


Placed = list[tuple[int, tuple[int, ...]]]  # lengths, and the buckets that share each


def partition_hierarchical(lengths: Any, cluster: Cluster, capacity: int | None = None) -> Plan:
    """Decide which GPUs share which sequence: first nodes, then GPUs inside each node.

    1. Place sequences on nodes. One that is longer than the threshold, at first what a node can hold, is split over
       several nodes and runs on all their GPUs.
    2. Inside each node place the rest on GPUs in the same way, beside what the split sequences take already.
    3. Where something does not fit, lower the threshold and place again: more sequences are split, or more finely.

    Parameters
    ----------
    lengths : array_like of int, shape (B,)
        Tokens of each sequence.
    cluster : Cluster
        The machines.
    capacity : int, optional
        Tokens that one GPU can hold; 5 % more than the mean of the batch, rounded up, if not given.

    Returns
    -------
    Plan
        ``(jobs, tokens_per_gpu)``.

    Raises
    ------
    ValueError
        If there are no sequences, a length is no positive integer, the capacity is below 1 or the batch does not fit,
        or the cluster has no machines or a rate that is not positive.

    Notes
    -----
    The two levels and the three zones are the paper's; the rule of placement is *[our definition]*. The result does
    not depend on the order of the sequences.

    References
    ----------
    2509.21841, algorithms 1 and 2, as a public reading note describes them.
    """
    check_cluster(cluster)
    batch = check_lengths(lengths)
    capacity = checked_capacity(batch, cluster, capacity)
    P = cluster.gpus
    on_nodes = _place(batch, P * capacity, [0.0] * cluster.nodes)  # 1
    crossing = [(L, nodes) for L, nodes in on_nodes if len(nodes) > 1]
    jobs = [Job("inter-node", tuple(chain(*(range(P * a, P * a + P) for a in nodes))), L) for L, nodes in crossing]
    for node in range(cluster.nodes):  # 2
        share = sum(L / (P * len(nodes)) for L, nodes in crossing if node in nodes)
        own = [L for L, nodes in on_nodes if nodes == (node,)]
        for L, gpus in _place(own, capacity, [share] * P):
            zone = "intra-node" if len(gpus) > 1 else "local"
            jobs.append(Job(zone, tuple(P * node + p for p in gpus), L))
    jobs.sort(key=lambda job: ZONES.index(job.zone))  # stable: inside a zone as they were placed
    return Plan(jobs, _tokens_of(jobs, cluster.ranks))


def _tokens_of(jobs: Sequence[Job], n_ranks: int) -> np.ndarray:
    tokens = np.zeros(n_ranks)
    for _, ranks, length in jobs:
        # eq: zep-share
        tokens[list(ranks)] += length / len(ranks)
    return tokens


def _place(lengths: Sequence[int], capacity: int, start_tokens: list[float]) -> Placed:
    """Place descending lengths on buckets, lowering the threshold until everything fits.

    Below a threshold of 1 every sequence is split over all buckets, and then nothing can fail; so this ends.
    """
    threshold = capacity
    while (placed := _attempt(lengths, capacity, start_tokens, threshold)) is None:  # 3
        # eq: zep-lower
        threshold = next((L - 1 for L in lengths if threshold >= L), threshold // 2)
    return placed


def _attempt(lengths: Sequence[int], capacity: int, start_tokens: list[float], threshold: int) -> Placed | None:
    """Place descending lengths under one threshold; None if one does not fit."""
    room, tokens, load = capacity * ROUNDING, list(start_tokens), [0.0] * len(start_tokens)
    placed: Placed = []
    for L in lengths:
        buckets = _split(L, load, threshold) if threshold < L else _whole(L, room, tokens, load)
        share = L / max(len(buckets), 1)
        if not buckets or (threshold >= 1 and any(tokens[b] + share > room for b in buckets)):
            return None
        for b in buckets:
            tokens[b] += share
            load[b] += L * share
        placed.append((L, buckets))
    return placed


def _split(length: int, load: list[float], threshold: int) -> tuple[int, ...]:
    """Return the least loaded buckets, as many as the threshold asks for; load is the sum of L²/k."""
    # eq: zep-split
    k = len(load) if threshold < 1 else min(len(load), max(2, ceil(length / threshold)))
    return tuple(sorted(sorted(range(len(load)), key=load.__getitem__)[:k]))


def _whole(length: int, room: float, tokens: list[float], load: list[float]) -> tuple[int, ...]:
    """Return the least loaded bucket that has room, the emptier of two equals; nothing if none has."""
    # eq: zep-whole
    best: tuple[int, ...] = ()
    least = (inf, inf)
    for b, held in enumerate(tokens):
        if held + length <= room and (load[b], held) < least:
            best, least = (b,), (load[b], held)
    return best


def check_lengths(lengths: Any) -> list[int]:
    """Return the lengths of a batch as descending integers, or raise ``ValueError``.

    Parameters
    ----------
    lengths : array_like of int, shape (B,)
        Tokens of each sequence.

    Returns
    -------
    list of int
        The longest first.

    Raises
    ------
    ValueError
        If there are none, or one is no positive integer.
    """
    array = as_integer("lengths", lengths, ndim=1)
    require(array.size > 0, "lengths is empty, expected at least one sequence")
    require(array.min() >= 1, f"lengths={array} must be positive")
    return sorted(array.tolist(), reverse=True)


def default_capacity(total: int, cluster: Cluster) -> int:
    """Return the tokens that a GPU may hold if nothing else is said: 5 % more than the mean, rounded up.

    Parameters
    ----------
    total : int
        Tokens T of the batch.
    cluster : Cluster
        The machines.

    Returns
    -------
    int
        ⌈1.05 T / R⌉.
    """
    # eq: zep-capacity
    return -(-105 * total // (100 * cluster.ranks))


def checked_capacity(batch: list[int], cluster: Cluster, capacity: int | None) -> int:
    """Return the capacity, or the default one; raise ``ValueError`` unless the batch fits."""
    total = sum(batch)
    capacity = default_capacity(total, cluster) if capacity is None else index(capacity)
    require(capacity >= 1, f"capacity={capacity} must be at least 1")
    room = cluster.ranks * capacity
    require(total <= room, f"batch does not fit: {total} tokens, capacity {room}")
    return capacity


def check_cluster(cluster: Cluster) -> None:
    """Raise ``ValueError`` unless a cluster has machines, positive rates and no negative latency."""
    for name in ("nodes", "gpus", "nics"):
        value = getattr(cluster, name)
        require(index(value) >= 1, f"cluster.{name}={value} must be at least 1")
    for name in ("intra_bandwidth", "inter_bandwidth", "attention_flops", "linear_flops"):
        value = getattr(cluster, name)
        require(0 < value < inf, f"cluster.{name}={value} must be positive and finite")
    for name in ("intra_latency", "inter_latency"):
        value = getattr(cluster, name)
        require(isfinite(value) and value >= 0, f"cluster.{name}={value} must be finite and not negative")


def check_layer(layer: LayerCost) -> None:
    """Raise ``ValueError`` unless all sizes of a layer are positive."""
    for name, value in layer._asdict().items():
        require(value > 0, f"layer.{name}={value} must be positive")
