"""What Zeppelin pays to move bytes: routing over all network cards, overlap with compute, remapping (2509.21841).

Equation labels are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.efficiency.zeppelin_plan import LayerCost, check_cluster, check_layer
from refattn.primitives.arguments import as_float, require, require_finite, require_shape

if TYPE_CHECKING:
    from refattn.efficiency.zeppelin_plan import Cluster

__all__ = [
    "dispatch_time",
    "overlap_threshold",
    "plan_remap",
    "remap_time",
    "transfer_time",
]

# surplus, in tokens, that is an error of rounding and no message
NEGLIGIBLE = 1e-6


def transfer_time(n_bytes: Any, cluster: Cluster, *, routed: bool | None = None) -> Any:
    """Return how long a message takes from a GPU of one node to a GPU of another.

    Direct: through the sender's own network card. Routed: spread the message over the node, send it through all cards
    at once, collect it at the other side.

    Parameters
    ----------
    n_bytes : array_like, any shape
        Sizes of messages.
    cluster : Cluster
        The machines.
    routed : bool, optional
        Which way. Whichever is faster if not given, which is Zeppelin's rule.

    Returns
    -------
    ndarray
        Seconds, in the shape of ``n_bytes``.

    Raises
    ------
    ValueError
        If a size is negative, or the cluster has no machines or a rate that is not positive.

    Notes
    -----
    The three steps are the paper's, the formula is *[our definition]*. With one network card there is nothing to
    spread, and both ways are the same.
    """
    check_cluster(cluster)
    n = as_float("n_bytes", n_bytes)
    require((n >= 0).all(), "n_bytes must not be negative")
    M = cluster.nics
    # eq: zep-direct
    direct = cluster.inter_latency + n / cluster.inter_bandwidth
    # eq: zep-routed
    spread = dispatch_time(n, cluster) + cluster.inter_latency + n / (M * cluster.inter_bandwidth)
    both = spread + dispatch_time(n, cluster)
    if routed is None:
        # eq: zep-choice
        return np.minimum(direct, both)
    return both if routed else direct


def dispatch_time(n_bytes: Any, cluster: Cluster) -> Any:
    """Return how long a GPU takes to hand all but its own part of a message to the proxies of the other cards.

    Parameters
    ----------
    n_bytes : array_like, any shape
        Sizes of messages.
    cluster : Cluster
        The machines, with M network cards a node.

    Returns
    -------
    ndarray or float
        Seconds: (M − 1)/M of the message over NVLink. To collect it takes as long.
    """
    M = cluster.nics
    # eq: zep-dispatch
    return (M - 1) / M * n_bytes / cluster.intra_bandwidth + (cluster.intra_latency if M > 1 else 0.0)


def overlap_threshold(n_ranks: int, bandwidth: float, cluster: Cluster, layer: LayerCost | None = None) -> float:
    """Return the length from which a ring hides its communication behind its arithmetic.

    Parameters
    ----------
    n_ranks : int
        Ranks G of the ring.
    bandwidth : float
        Bytes a second over the slowest link of the ring.
    cluster : Cluster
        The machines: their rate in attention counts.
    layer : LayerCost, optional
        The model.

    Returns
    -------
    float
        The tokens s* at which a round of compute takes as long as a round of transfer, latency apart.

    Raises
    ------
    ValueError
        If ``n_ranks`` is below 1, or a rate or a size is not positive.
    """
    layer = layer or LayerCost()
    check_cluster(cluster)
    check_layer(layer)
    require(n_ranks >= 1, f"n_ranks={n_ranks} must be at least 1")
    require(bandwidth > 0, f"bandwidth={bandwidth} must be positive")
    # eq: zep-overlap
    return layer.kv_bytes * n_ranks * cluster.attention_flops / (2 * layer.hidden * bandwidth)


def plan_remap(tokens: Any, cluster: Cluster) -> Any:
    """Say who gives tokens to whom until all GPUs hold the same number: inside nodes first, then across.

    Parameters
    ----------
    tokens : array_like, shape (R,)
        Tokens that each GPU holds.
    cluster : Cluster
        The machines, R GPUs in all.

    Returns
    -------
    ndarray, shape (R, R)
        What rank i gives to rank j, in the dtype of ``tokens``. Rows sum to the surpluses, columns to the deficits.

    Raises
    ------
    ValueError
        If ``tokens`` has another shape, or holds something negative or infinite.

    Notes
    -----
    Moving a token costs 1/B_intra inside a node and 1/B_nic across. As long as the network is not the faster of the
    two, no plan is cheaper: what a node has over its target must leave it, and nothing else does. So the greedy plan
    is a solution of the transport problem. Which token of equal cost goes where is *[our definition]*: both sides in
    the order of their ranks.
    """
    check_cluster(cluster)
    held = as_float("tokens", tokens, ndim=1)
    N, P, R = cluster.nodes, cluster.gpus, cluster.ranks
    require_shape("tokens", held, (R,))
    require_finite("tokens", held)
    require((held >= 0).all(), f"tokens={held} must not be negative")
    # eq: zep-surplus
    rest = held - held.mean()
    surplus, deficit = np.maximum(rest, 0), np.maximum(-rest, 0)  # (R,)
    # eq: zep-remap
    inside = _match(surplus.reshape(N, P), deficit.reshape(N, P))  # (N, P, P)
    over = np.maximum(surplus - inside.sum(axis=-1).reshape(R), 0)
    short = np.maximum(deficit - inside.sum(axis=-2).reshape(R), 0)
    plan = _match(over, short)  # (R, R)
    for a in range(N):
        node = slice(P * a, P * a + P)
        plan[node, node] += inside[a]
    return plan


def remap_time(tokens: Any, cluster: Cluster, layer: LayerCost | None = None) -> float:
    """Return how long it takes to even out tokens once; a layer does it twice, there and back.

    Parameters
    ----------
    tokens : array_like, shape (R,)
        Tokens that each GPU holds.
    cluster : Cluster
        The machines.
    layer : LayerCost, optional
        The model: hidden states are what moves.

    Returns
    -------
    float
        Seconds: of the GPU that gives most, and then of the node that gives most, through all its network cards.

    Raises
    ------
    ValueError
        As `plan_remap`, or if a size of the layer is not positive.
    """
    layer = layer or LayerCost()
    check_cluster(cluster)
    check_layer(layer)
    held = as_float("tokens", tokens, ndim=1)
    require_shape("tokens", held, (cluster.ranks,))
    rest = held - held.mean()
    most = float(rest.max())
    most_of_node = float(rest.reshape(cluster.nodes, cluster.gpus).sum(axis=1).max())
    # eq: zep-remap-time
    seconds = 0.0
    if most > NEGLIGIBLE:
        seconds += most * layer.hidden_bytes / cluster.intra_bandwidth + cluster.intra_latency
    if most_of_node > NEGLIGIBLE:
        seconds += most_of_node * layer.hidden_bytes / (cluster.nics * cluster.inter_bandwidth) + cluster.inter_latency
    return seconds


def _match(supply: Any, demand: Any) -> Any:
    """Hand out supplies to demands in their order: lay both end to end and see which pieces overlap.

    The part of supply i that lies over demand j goes there: (..., n), (..., m) to (..., n, m). What one side has more
    than the other stays where it is.
    """
    given, taken = np.cumsum(supply, axis=-1)[..., :, None], np.cumsum(demand, axis=-1)[..., None, :]
    begin = np.maximum(given - supply[..., :, None], taken - demand[..., None, :])
    return np.maximum(np.minimum(given, taken) - begin, 0)
