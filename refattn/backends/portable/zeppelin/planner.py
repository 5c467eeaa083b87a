"""The planner in the array-API standard, by another route than the reference.

Thresholds are listed before they are tried, and buckets are chosen by sorting. What a rank gives to another is a mixed
difference: of min(S, D), the tokens that the first givers and the first takers have in common. Planning itself is
decided by the lengths, which are options; nothing of it is traced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["lower_bound", "partition_hierarchical", "plan_remap", "transfer_time"]

Placed = list[tuple[int, np.ndarray]]


def partition_hierarchical(
    lengths: Sequence[int], cluster: Sequence[Any], capacity: int | None = None
) -> dict[str, np.ndarray]:
    """Place on nodes, then on each node's GPUs; the tokens of each GPU, for jobs are no arrays."""
    nodes, gpus = int(cluster[0]), int(cluster[1])
    room = -(-105 * sum(lengths) // (100 * nodes * gpus)) if capacity is None else capacity
    on_nodes = _placed(sorted(lengths, reverse=True), nodes, gpus * room, 0.0)
    tokens = np.zeros((nodes, gpus))
    for length, where in on_nodes:
        if len(where) > 1:
            tokens[where] += length / (len(where) * gpus)
    for node in range(nodes):
        own = [length for length, where in on_nodes if where.tolist() == [node]]
        for length, where in _placed(own, gpus, room, tokens[node, 0]):
            tokens[node, where] += length / len(where)
    return {"tokens_per_gpu": tokens.reshape(-1)}


def transfer_time(n_bytes: Any, cluster: Sequence[Any], *, routed: bool | None = None) -> Any:
    """Add up latencies and seconds a byte: both ways are straight lines."""
    xp = array_namespace(n_bytes)
    nics, (nvlink, nic, _, _, inside, across) = int(cluster[2]), cluster[3:]
    straight = n_bytes * (1 / nic) + across
    hops = 2 if nics > 1 else 0
    by_byte = 1 / (nics * nic) + 2 * (1 - 1 / nics) / nvlink
    round_about = n_bytes * by_byte + (across + hops * inside)
    if routed is None:
        return xp.where(straight < round_about, straight, round_about)
    return round_about if routed else straight


def plan_remap(tokens: Any, cluster: Sequence[Any]) -> Any:
    """Level inside nodes, then across."""
    xp = array_namespace(tokens)
    nodes, gpus = int(cluster[0]), int(cluster[1])
    rest = tokens - xp.mean(tokens)
    give, take = xp.clip(rest, 0, None), xp.clip(-rest, 0, None)
    near = _common(xp.reshape(give, (nodes, gpus)), xp.reshape(take, (nodes, gpus)))  # (N, P, P)
    give = xp.clip(give - xp.reshape(xp.sum(near, axis=2), (-1,)), 0, None)
    take = xp.clip(take - xp.reshape(xp.sum(near, axis=1), (-1,)), 0, None)
    own = xp.eye(nodes, dtype=tokens.dtype, device=device(tokens))[:, None, :, None]  # (N, 1, N, 1)
    return _common(give, take) + xp.reshape(own * near[:, :, None, :], (nodes * gpus, nodes * gpus))


def lower_bound(
    lengths: Sequence[int], cluster: Sequence[Any], layer: Sequence[int] = (4096, 4096, 11008, 2)
) -> np.ndarray:
    """Give every token its own seconds: those of its module weights and, on average, of L keys at half price."""
    hidden, kv, ffn, _ = layer
    attention, linear = cluster[5:7]
    L = np.asarray(lengths, dtype=np.float64)
    each = 2 * hidden * (L / attention + (2 * (hidden + kv) + 3 * ffn) / linear)
    return np.asarray(L @ each / (cluster[0] * cluster[1]))


def _common(give: Any, take: Any) -> Any:
    """Return what lies over what, givers and takers laid end to end: the mixed difference of min(S, D)."""
    xp = array_namespace(give)
    before, behind = (_sums(x) for x in (give, take))  # (..., n + 1)
    least = xp.minimum(before[..., :, None], behind[..., None, :])
    down = least[..., 1:, :] - least[..., :-1, :]
    return xp.clip(down[..., :, 1:] - down[..., :, :-1], 0, None)


def _sums(x: Any) -> Any:
    return array_namespace(x).cumulative_sum(x, axis=-1, include_initial=True)


def _thresholds(lengths: Sequence[int], room: int) -> Iterator[int]:
    """List the thresholds to try: the room, one less than each length within it, then halves down to nothing."""
    yield room
    lowest = room
    for length in sorted({n for n in lengths if n <= room}, reverse=True):
        lowest = length - 1
        yield lowest
    while lowest:
        lowest //= 2
        yield lowest


def _placed(lengths: Sequence[int], buckets: int, room: int, taken: float) -> Placed:
    tries = (_tried(lengths, np.full(buckets, float(taken)), room, limit) for limit in _thresholds(lengths, room))
    return next(placed for placed in tries if placed is not None)


def _tried(lengths: Sequence[int], held: np.ndarray, room: int, limit: int) -> Placed | None:
    """Place descending lengths, those above the limit in parts; None if one does not fit."""
    load, placed = np.zeros_like(held), []
    for length in lengths:
        parts = 1 if length <= limit else len(held) if limit < 1 else min(len(held), max(2, -(-length // limit)))
        full = held + length / parts > room
        if length <= limit:
            where = np.lexsort((np.arange(len(held)), held, load, full))[:1]
        else:
            where = np.sort(np.argsort(load, kind="stable")[:parts])
        if limit >= 1 and full[where].any():
            return None
        held[where] += length / parts
        load[where] += length * (length / parts)
        placed.append((length, where))
    return placed
