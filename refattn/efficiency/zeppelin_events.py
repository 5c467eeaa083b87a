"""The event simulation behind Zeppelin's cost model: when each GPU, each NVLink port and each network card is busy.

An engine does one thing at a time, in the order in which it was asked: a GPU ends a ring before its next job, and no
work fills the time in which it waits for a block. A ring is simulated round by round, all ranks at once. That is exact:
in a round every rank sends once, and every node has one edge to another node, so no two transfers of a round wait for
each other. Equation labels are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.efficiency.zeppelin_transfer import dispatch_time, transfer_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from refattn.efficiency.zeppelin_plan import Cluster

__all__ = ["Clocks", "Span", "idle_clocks", "run_alone", "run_ring"]


class Clocks(NamedTuple):
    """When each engine is free again, in seconds; the simulation moves them on in place.

    Attributes
    ----------
    compute, port : ndarray, shape (R,)
        Arithmetic and outgoing NVLink of each GPU.
    nic : ndarray, shape (N, M)
        Outgoing network cards of each node.
    """

    compute: np.ndarray
    port: np.ndarray
    nic: np.ndarray


class Span(NamedTuple):
    """A time during which an engine works on a job: one bar of a Gantt chart.

    Attributes
    ----------
    engine : {"compute", "port", "nic"}
        What is busy.
    place : int
        Whose: a rank, or for network cards M · node + card.
    start, end : float
        Seconds.
    job : int
        Number of the job.
    """

    engine: str
    place: int
    start: float
    end: float
    job: int


class Edges(NamedTuple):
    """The links of a ring: edge i leads from rank r_i to rank r_{i+1}.

    Attributes
    ----------
    ranks : ndarray of int, shape (G,)
        Where the edges begin.
    crossing : ndarray of int, shape (X,)
        Those that lead to another node.
    nodes, cards : ndarray of int, shape (X,)
        The node where each of them begins, and the network card that its GPU uses.
    routed : bool
        Whether they are spread over all cards of the node.
    """

    ranks: np.ndarray
    crossing: np.ndarray
    nodes: np.ndarray
    cards: np.ndarray
    routed: bool


class Rounds(NamedTuple):
    """Everything that happens in a ring.

    Attributes
    ----------
    arrived : ndarray, shape (G, G)
        ``[t, i]``: when rank r_i has the block of step t.
    sent : ndarray, shape (G − 1, G)
        When edge i has sent the block of step t; for a routed edge: dispatched it.
    crossed : ndarray, shape (G − 1, X)
        When the cards have sent it; unused unless routed.
    sending : ndarray, shape (G,)
        How long an edge is busy with a block.
    crossing : float
        How long the cards are, if routed.
    """

    arrived: np.ndarray
    sent: np.ndarray
    crossed: np.ndarray
    sending: np.ndarray
    crossing: float


def idle_clocks(cluster: Cluster) -> Clocks:
    """Return clocks at zero."""
    return Clocks(np.zeros(cluster.ranks), np.zeros(cluster.ranks), np.zeros((cluster.nodes, cluster.nics)))


def run_alone(clocks: Clocks, rank: int, seconds: float, *, job: int = 0, record: list[Span] | None = None) -> None:
    """Let one GPU compute, as soon as it is free.

    Parameters
    ----------
    clocks : Clocks
        Moved on.
    rank : int
        The GPU.
    seconds : float
        How long.
    job : int
        Number of the job, for the record.
    record : list of Span, optional
        What happens is appended to it.
    """
    start = float(clocks.compute[rank])
    clocks.compute[rank] = start + seconds
    if record is not None:
        record.append(Span("compute", rank, start, start + seconds, job))


def run_ring(
    clocks: Clocks,
    cluster: Cluster,
    ranks: Sequence[int],
    block_bytes: float,
    step_seconds: float,
    *,
    routing: bool,
    job: int = 0,
    record: list[Span] | None = None,
) -> int:
    """Let a ring of GPUs compute: at each of G steps on the block that it has, while that block goes on to the next.

    Parameters
    ----------
    clocks : Clocks
        Moved on.
    cluster : Cluster
        The machines.
    ranks : sequence of int
        The ring; ranks of the same node must stand together.
    block_bytes : float
        Size of the keys and values of one rank.
    step_seconds : float
        Arithmetic of one step on one rank.
    routing : bool
        Send through all network cards of a node where that is faster.
    job : int
        Number of the job, for the record.
    record : list of Span, optional
        What happens is appended to it.

    Returns
    -------
    int
        How many blocks went from a node to another.
    """
    edges = _edges(cluster, ranks, block_bytes, routing=routing)
    rounds = _run_rounds(clocks, cluster, edges, block_bytes)
    if record is not None:
        record.extend(_compute_spans(clocks, edges, rounds, step_seconds, job))
        record.extend(_transfer_spans(cluster, edges, rounds, job))
    _move_on(clocks, edges, rounds, step_seconds)
    return len(edges.crossing) * len(rounds.sent)


def _edges(cluster: Cluster, ranks: Sequence[int], block_bytes: float, *, routing: bool) -> Edges:
    ring = np.asarray(ranks)  # (G,)
    node = ring // cluster.gpus
    crossing = np.flatnonzero(node != np.roll(node, -1))
    # eq: zep-card
    cards = ring[crossing] % cluster.gpus * cluster.nics // cluster.gpus
    faster = routing and crossing.size > 0 and _routed_is_faster(block_bytes, cluster)
    return Edges(ring, crossing, node[crossing], cards, faster)


def _routed_is_faster(block_bytes: float, cluster: Cluster) -> bool:
    return bool(transfer_time(block_bytes, cluster, routed=True) < transfer_time(block_bytes, cluster, routed=False))


def _run_rounds(clocks: Clocks, cluster: Cluster, edges: Edges, block_bytes: float) -> Rounds:
    G, x, after = len(edges.ranks), edges.crossing, (edges.crossing + 1) % len(edges.ranks)
    dispatch = dispatch_time(block_bytes, cluster)
    free, sending = clocks.port[edges.ranks], np.full(G, cluster.intra_latency + block_bytes / cluster.intra_bandwidth)
    if edges.routed:
        sending[x] = dispatch
    else:
        free[x] = clocks.nic[edges.nodes, edges.cards]
        sending[x] = cluster.inter_latency + block_bytes / cluster.inter_bandwidth
    crossing = cluster.inter_latency + block_bytes / (cluster.nics * cluster.inter_bandwidth)
    shared = clocks.nic[edges.nodes].max(axis=1, initial=0.0)  # (X,)
    arrived, sent, crossed = np.zeros((G, G)), np.empty((G - 1, G)), np.empty((G - 1, len(x)))
    for t in range(G - 1):
        # eq: zep-send
        free = np.add(np.maximum(arrived[t], free, out=sent[t]), sending, out=sent[t])  # (G,)
        arrived[t + 1, 1:], arrived[t + 1, 0] = free[:-1], free[-1]
        if edges.routed:
            # eq: zep-send-routed
            shared = np.add(np.maximum(free[x], shared), crossing, out=crossed[t])  # (X,)
            arrived[t + 1, after] = shared + dispatch
    return Rounds(arrived, sent, crossed, sending, crossing)


def _move_on(clocks: Clocks, edges: Edges, rounds: Rounds, step_seconds: float) -> None:
    G = len(edges.ranks)
    left = (G - np.arange(G)) * step_seconds  # at step t so much arithmetic is still to come
    # eq: zep-compute
    # unrolled: the last step ends when the slowest of "free, all G steps" and "block t, the steps from t on" does
    waited = (rounds.arrived + left[:, None]).max(axis=0)  # (G,)
    clocks.compute[edges.ranks] = np.maximum(clocks.compute[edges.ranks] + left[0], waited)
    if G == 1:
        return
    on_port = np.ones(G, dtype=bool)
    if edges.routed:
        clocks.nic[edges.nodes] = rounds.crossed[-1][:, None]
    else:
        on_port[edges.crossing] = False
        clocks.nic[edges.nodes, edges.cards] = rounds.sent[-1, edges.crossing]
    clocks.port[edges.ranks[on_port]] = rounds.sent[-1, on_port]


def _compute_spans(clocks: Clocks, edges: Edges, rounds: Rounds, step_seconds: float, job: int) -> Iterator[Span]:
    free = clocks.compute[edges.ranks]
    for arrived in rounds.arrived:
        start = np.maximum(free, arrived)
        free = start + step_seconds
        for rank, begin, end in zip(edges.ranks.tolist(), start.tolist(), free.tolist(), strict=True):
            yield Span("compute", rank, begin, end, job)


def _transfer_spans(cluster: Cluster, edges: Edges, rounds: Rounds, job: int) -> Iterator[Span]:
    M, number = cluster.nics, {int(i): n for n, i in enumerate(edges.crossing)}
    for sent, crossed in zip(rounds.sent, rounds.crossed, strict=True):
        for i, rank in enumerate(edges.ranks.tolist()):
            busy = (float(sent[i] - rounds.sending[i]), float(sent[i]), job)
            if i not in number or edges.routed:
                yield Span("port", rank, *busy)
            else:
                yield Span("nic", M * int(edges.nodes[number[i]]) + int(edges.cards[number[i]]), *busy)
            if i in number and edges.routed:
                end, node = float(crossed[number[i]]), int(edges.nodes[number[i]])
                yield from (Span("nic", M * node + m, end - rounds.crossing, end, job) for m in range(M))
