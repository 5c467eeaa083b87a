"""The time of a layer under Zeppelin and under what it is compared with, from a simulation of events (2509.21841).

Costs and all parts that the abstract does not state are *[our definition]*: a simple model of a cluster, made to
explain and to compare, not to predict seconds. Clocks and rings are in `refattn.efficiency.zeppelin_events`. Equation
labels are those of the page.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.efficiency.zeppelin_events import Span, idle_clocks, run_alone, run_ring
from refattn.efficiency.zeppelin_plan import (
    Cluster,
    Job,
    LayerCost,
    check_cluster,
    check_layer,
    check_lengths,
    checked_capacity,
    partition_hierarchical,
)
from refattn.efficiency.zeppelin_transfer import remap_time
from refattn.primitives.arguments import require, require_one_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DISTRIBUTIONS", "POLICIES", "Timeline", "lower_bound", "sample_lengths", "simulate_layer"]

POLICIES = ("zeppelin", "even_ring", "allgather", "hybrid", "packing")
DISTRIBUTIONS = ("arxiv", "github", "prolong", "uniform")


class Timeline(NamedTuple):
    """What a layer took, in seconds where nothing else is said.

    Attributes
    ----------
    total : float
        Until the last GPU is done with the layer: the sum of the next three, but for micro-batches, which wait for
        their slowest GPU one by one.
    attention, remap, linear : float
        Until the slowest GPU is done with attention; moving tokens, twice; the linear modules.
    compute_busy : ndarray, shape (R,)
        Arithmetic of attention on each GPU.
    inter_bytes : float
        Bytes of keys and values that went from a node to another.
    jobs : list of Job
        Who ran what.
    spans : list of Span
        Every engine's busy times, if they were asked for.
    """

    total: float
    attention: float
    remap: float
    linear: float
    compute_busy: np.ndarray
    inter_bytes: float
    jobs: list[Job]
    spans: list[Span]


class _Attention(NamedTuple):
    """Attention of some jobs: clocks of the GPUs, their arithmetic, blocks between nodes in bytes."""

    finished: np.ndarray
    busy: np.ndarray
    inter_bytes: float


def simulate_layer(
    lengths: Any,
    cluster: Cluster | None = None,
    layer: LayerCost | None = None,
    policy: str = "zeppelin",
    *,
    routing: bool | None = None,
    remap: bool = True,
    capacity: int | None = None,
    record: bool = False,
) -> Timeline:
    """Simulate the forward pass of one layer over a batch.

    Parameters
    ----------
    lengths : array_like of int, shape (B,)
        Tokens of each sequence.
    cluster : Cluster, optional
        The machines; two nodes of eight GPUs if not given.
    layer : LayerCost, optional
        The model; a layer of 7-billion-parameter size if not given.
    policy : {"zeppelin", "even_ring", "allgather", "hybrid", "packing"}
        ``zeppelin``: jobs of `partition_hierarchical`. ``even_ring``: every sequence split over all GPUs, one ring.
        ``allgather``: every sequence split over all GPUs, which first gather all keys and values. ``hybrid``: each
        sequence on as many GPUs as it needs, in micro-batches. ``packing``: an even ring over one packed sequence,
        whose parts see each other.
    routing : bool, optional
        Send between nodes through all network cards where that is faster. Zeppelin does and the others do not, if not
        given.
    remap : bool
        Let Zeppelin even out tokens for the linear modules; the others are even, or do not.
    capacity : int, optional
        Tokens that a GPU can hold; 5 % more than the mean, rounded up, if not given.
    record : bool
        Keep the busy times of all engines.

    Returns
    -------
    Timeline
        The times, and who was busy.

    Raises
    ------
    ValueError
        If there are no sequences, a length is no positive integer, the batch does not fit, the policy is unknown, or
        the cluster or the layer has a size or a rate that is not positive.
    """
    cluster, layer = cluster or Cluster(), layer or LayerCost()
    require_one_of("policy", policy, POLICIES)
    check_cluster(cluster)
    check_layer(layer)
    batch = check_lengths(lengths)
    capacity = checked_capacity(batch, cluster, capacity)
    routing = policy == "zeppelin" if routing is None else routing
    spans: list[Span] | None = [] if record else None
    if policy == "zeppelin":
        return _zeppelin(batch, cluster, layer, capacity, spans, routing=routing, remap=remap)
    if policy == "hybrid":
        return _hybrid(batch, cluster, layer, capacity, spans, routing=routing)
    if policy == "allgather":
        return _allgather(batch, cluster, layer, spans)
    flops = layer.attention_flops(float(sum(batch))) if policy == "packing" else _flops(batch, layer)
    return _even_ring(batch, cluster, layer, flops, spans, routing=routing)


def _zeppelin(
    batch: list[int],
    cluster: Cluster,
    layer: LayerCost,
    capacity: int,
    spans: list[Span] | None,
    *,
    routing: bool,
    remap: bool,
) -> Timeline:
    jobs, tokens = partition_hierarchical(batch, cluster, capacity)
    done = _run_jobs(jobs, cluster, layer, spans, routing=routing)
    attention = float(done.finished.max())
    moving = 2 * remap_time(tokens, cluster, layer) if remap else 0.0
    linear = _linear(float(tokens.mean() if remap else tokens.max()), cluster, layer)
    # eq: zep-total
    total = attention + moving + linear
    return Timeline(total, attention, moving, linear, done.busy, done.inter_bytes, jobs, spans or [])


def _run_jobs(
    jobs: Sequence[Job], cluster: Cluster, layer: LayerCost, spans: list[Span] | None, *, routing: bool
) -> _Attention:
    """Run jobs in their order: that of the zones, so that the slowest transfers begin first."""
    clocks, busy, blocks = idle_clocks(cluster), np.zeros(cluster.ranks), 0.0
    for number, (_, ranks, length) in enumerate(jobs):
        G, seconds = len(ranks), layer.attention_flops(float(length)) / cluster.attention_flops
        if G == 1:
            busy[ranks[0]] += seconds
            run_alone(clocks, ranks[0], seconds, job=number, record=spans)
            continue
        busy[list(ranks)] += seconds / G
        size = length / G * layer.kv_bytes
        # eq: zep-step
        step = seconds / G**2
        blocks += size * run_ring(clocks, cluster, ranks, size, step, routing=routing, job=number, record=spans)
    return _Attention(clocks.compute, busy, blocks)


def _even_ring(
    batch: list[int], cluster: Cluster, layer: LayerCost, flops: float, spans: list[Span] | None, *, routing: bool
) -> Timeline:
    """Split everything over everybody: one ring whose blocks hold a part of each sequence."""
    R, total = cluster.ranks, sum(batch)
    seconds, size, clocks = flops / cluster.attention_flops, total / R * layer.kv_bytes, idle_clocks(cluster)
    # eq: zep-even
    blocks = run_ring(clocks, cluster, range(R), size, seconds / R**2, routing=routing, record=spans)
    attention, linear = float(clocks.compute.max()), _linear(total / R, cluster, layer)
    busy = np.full(R, seconds / R)
    jobs = _over_all(batch, cluster)
    return Timeline(attention + linear, attention, 0.0, linear, busy, blocks * size, jobs, spans or [])


def _allgather(batch: list[int], cluster: Cluster, layer: LayerCost, spans: list[Span] | None) -> Timeline:
    """Let every GPU fetch all keys and values, and only then compute its part."""
    N, R, total = cluster.nodes, cluster.ranks, sum(batch)
    everything = total * layer.kv_bytes
    # eq: zep-gather
    across = (N - 1) / N * everything / (cluster.nics * cluster.inter_bandwidth) + (cluster.inter_latency * (N > 1))
    inside = (R - 1) / R * everything / cluster.intra_bandwidth + (cluster.intra_latency * (R > 1))
    seconds = _flops(batch, layer) / (R * cluster.attention_flops)
    attention, linear = across + inside + seconds, _linear(total / R, cluster, layer)
    if spans is not None:
        M, waits = cluster.nics, across + inside
        spans.extend(Span("nic", card, 0.0, across, 0) for card in range(N * M) if N > 1)
        spans.extend(Span("port", rank, across, waits, 0) for rank in range(R) if R > 1)
        spans.extend(Span("compute", rank, waits, attention, 0) for rank in range(R))
    busy, jobs = np.full(R, seconds), _over_all(batch, cluster)
    return Timeline(attention + linear, attention, 0.0, linear, busy, (N - 1.0) * everything, jobs, spans or [])


def _hybrid(
    batch: list[int],
    cluster: Cluster,
    layer: LayerCost,
    capacity: int,
    spans: list[Span] | None,
    *,
    routing: bool,
) -> Timeline:
    """Give each sequence as many GPUs as it needs; what has no room waits for the next micro-batch."""
    total = attention = inter_bytes = 0.0
    busy = np.zeros(cluster.ranks)
    jobs: list[Job] = []
    for micro in _micro_batches(batch, cluster, capacity):
        own: list[Span] | None = None if spans is None else []
        done = _run_jobs(micro.jobs, cluster, layer, own, routing=routing)
        if spans is not None and own is not None:
            spans.extend(Span(e, p, total + start, total + end, len(jobs) + job) for e, p, start, end, job in own)
        # eq: zep-hybrid
        total += float((done.finished + micro.tokens * _linear(1.0, cluster, layer)).max())
        attention += float(done.finished.max())
        busy, inter_bytes, jobs = busy + done.busy, inter_bytes + done.inter_bytes, jobs + micro.jobs
    return Timeline(total, attention, 0.0, total - attention, busy, inter_bytes, jobs, spans or [])


class _MicroBatch(NamedTuple):
    """Jobs that run together, and by rank (R,) their tokens and their L²/k."""

    jobs: list[Job]
    tokens: np.ndarray
    load: np.ndarray


def _micro_batches(batch: list[int], cluster: Cluster, capacity: int) -> list[_MicroBatch]:
    """Put descending sequences on groups of 1, 2, 4, … neighbouring GPUs, each into the first batch with room."""
    batches: list[_MicroBatch] = []
    for length in batch:
        # eq: zep-group
        k = min(cluster.ranks, 1 << (-(-length // capacity) - 1).bit_length())
        found = ((micro, _group(micro, k, capacity - length / k)) for micro in batches)
        micro, group = next(((micro, group) for micro, group in found if group is not None), (None, 0))
        if micro is None:
            micro = _MicroBatch([], np.zeros(cluster.ranks), np.zeros(cluster.ranks))
            batches.append(micro)
        ranks = range(group * k, group * k + k)
        micro.tokens[ranks] += length / k
        micro.load[ranks] += length * length / k
        micro.jobs.append(Job(_zone(ranks, cluster.gpus), tuple(ranks), length))
    return batches


def _group(micro: _MicroBatch, k: int, room: float) -> int | None:
    """Return the least loaded group of k GPUs none of which holds more than ``room`` tokens, if there is one."""
    whole = len(micro.tokens) // k * k
    fullest, busiest = (x[:whole].reshape(-1, k).max(axis=1) for x in (micro.tokens, micro.load))
    if fullest.min() > room:
        return None
    return int(np.where(fullest <= room, busiest, np.inf).argmin())


def _zone(ranks: Sequence[int], gpus: int) -> str:
    if len(ranks) == 1:
        return "local"
    return "intra-node" if ranks[0] // gpus == ranks[-1] // gpus else "inter-node"


def _over_all(batch: list[int], cluster: Cluster) -> list[Job]:
    ranks = tuple(range(cluster.ranks))
    return [Job(_zone(ranks, cluster.gpus), ranks, length) for length in batch]


def _flops(batch: list[int], layer: LayerCost) -> float:
    return float(sum(layer.attention_flops(float(length)) for length in batch))


def _linear(tokens: float, cluster: Cluster, layer: LayerCost) -> float:
    return tokens * layer.linear_flops / cluster.linear_flops


def lower_bound(lengths: Any, cluster: Cluster | None = None, layer: LayerCost | None = None) -> float:
    """Return the time that no plan can beat: all arithmetic, spread evenly, and nothing else.

    Parameters
    ----------
    lengths : array_like of int, shape (B,)
        Tokens of each sequence.
    cluster, layer
        As in `simulate_layer`.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    ValueError
        If there are no sequences, a length is no positive integer, or a size or a rate is not positive.
    """
    cluster, layer = cluster or Cluster(), layer or LayerCost()
    check_cluster(cluster)
    check_layer(layer)
    batch = check_lengths(lengths)
    # eq: zep-bound
    attention = _flops(batch, layer) / (cluster.ranks * cluster.attention_flops)
    return attention + _linear(sum(batch) / cluster.ranks, cluster, layer)


def sample_lengths(name: str, rng: np.random.Generator, budget: int, max_len: int | None = None) -> list[int]:
    """Draw the lengths of a batch until its tokens are used up.

    Parameters
    ----------
    name : {"arxiv", "github", "prolong", "uniform"}
        Stand-ins for data sets: log-normal about 9000 tokens; log-normal about 1000, with a heavy tail; nine tenths
        log-normal about 2000 and one tenth between 32768 and 65536; always 4096.
    rng : Generator
        Where the randomness comes from.
    budget : int
        Tokens T of the batch.
    max_len : int, optional
        No sequence is longer; the budget if not given.

    Returns
    -------
    list of int
        They sum to the budget. Each has at least 64 tokens, but for the last, which takes what is left.

    Raises
    ------
    ValueError
        If the name is unknown, or the budget or the longest length is below 1.
    """
    require_one_of("name", name, DISTRIBUTIONS)
    require(budget >= 1, f"budget={budget} must be at least 1")
    max_len = budget if max_len is None else max_len
    require(max_len >= 1, f"max_len={max_len} must be at least 1")
    lengths, left = [], budget
    while left > 0:
        length = min(max(int(_draw(name, rng)), 64), max_len, left)
        lengths.append(length)
        left -= length
    return lengths


def _draw(name: str, rng: np.random.Generator) -> float:
    if name == "uniform":
        return 4096.0
    if name == "arxiv":
        return rng.lognormal(log(9000), 0.8)
    if name == "github":
        return rng.lognormal(log(1000), 1.7)
    return rng.uniform(32768, 65536) if rng.random() < 0.1 else rng.lognormal(log(2000), 1.0)
