"""The ring of `refattn.efficiency.zeppelin_ring` between real processes, over ``torch.distributed``.

Every process holds its own tokens and nothing else. While it attends to the keys that it holds, they are on their way
to the next rank, and the keys of the rank before are arriving. The arithmetic is the NumPy blocks of
`refattn.efficiency.zeppelin_blocks`; PyTorch carries the messages, and its tensors share the memory of the arrays.
Needs the extra ``torch``; it is imported when a function is called.
"""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.efficiency.zeppelin_blocks import (
    BlockRule,
    RingGradients,
    check_heads,
    empty_partial,
    merge_partial,
    packed_block,
    packed_block_gradient,
)
from refattn.efficiency.zeppelin_ring import saved_for_gradient, shard_positions
from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["distributed_ring_attention", "distributed_ring_attention_gradient", "launch", "own_rows"]

Shards = list[list[np.ndarray]]


def own_rows(cu_seqlens: Any, *, layout: str = "zigzag", group: Any = None) -> np.ndarray:
    """Return which tokens of a packed batch this process holds, in the order in which it holds them.

    Parameters
    ----------
    cu_seqlens, layout
        As in `refattn.efficiency.zeppelin_ring.shard_positions`.
    group : ProcessGroup, optional
        The ring; all processes if not given.

    Returns
    -------
    ndarray of int
        Rows of the packed arrays: this rank's part of every sequence, sequence after sequence.
    """
    rank, n_ranks = _place(group)
    return np.concatenate(shard_positions(cu_seqlens, n_ranks, layout)[rank])


def distributed_ring_attention(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens: Any,
    *,
    layout: str = "zigzag",
    causal: bool = True,
    scale: float | None = None,
    group: Any = None,
) -> tuple[Any, Any]:
    """Attend from this process's tokens to those of all processes of the ring; every process must call it.

    Parameters
    ----------
    q, k, v : array_like, shape (n_r, h, d), (n_r, h_kv, d), (n_r, h_kv, d_v)
        This process's own tokens, in the order of `own_rows`.
    cu_seqlens : array_like of int, shape (S + 1,)
        Where the sequences of the whole batch begin, and their total; the same on all processes.
    layout, causal, scale
        As in `refattn.efficiency.zeppelin_ring.ring_attention`.
    group : ProcessGroup, optional
        The ring; all processes if not given.

    Returns
    -------
    out, lse : ndarray, shape (n_r, h, d_v), (n_r, h)
        Of this process's queries.

    Raises
    ------
    ValueError
        If shapes do not fit, or the number of tokens is not that of `own_rows`.
    """
    q, k, v, rule = check_heads(q, k, v, scale=scale, causal=causal)
    rank, shards = _checked(q, k, cu_seqlens, layout, group)
    held, result = (k, v), empty_partial(q, v)
    for t in range(len(shards)):
        last = t + 1 == len(shards)
        arriving = [] if last else _pass_on(held, _count(shards, rank, t + 1), group)
        block = packed_block(q, *held, shards[rank], shards[(rank - t) % len(shards)], rule)
        result = merge_partial(*result, *block)
        held = held if last else _received(arriving)
    return result


def distributed_ring_attention_gradient(
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    out: Any,
    lse: Any,
    cu_seqlens: Any,
    *,
    layout: str = "zigzag",
    causal: bool = True,
    scale: float | None = None,
    group: Any = None,
) -> RingGradients:
    """Pull a cotangent of this process's outputs back, and gather the gradients of its keys and values from all.

    Parameters
    ----------
    q, k, v, cu_seqlens, layout, causal, scale, group
        As in `distributed_ring_attention`.
    d_out : array_like, shape (n_r, h, d_v)
        Cotangent of this process's outputs.
    out, lse : array_like, shape (n_r, h, d_v), (n_r, h)
        What `distributed_ring_attention` returned here.

    Returns
    -------
    RingGradients
        Of this process's queries, keys and values; the last two came round the ring.

    Raises
    ------
    ValueError
        As `distributed_ring_attention`, or if a saved array has another shape than the results.
    """
    q, k, v, rule = check_heads(q, k, v, scale=scale, causal=causal)
    rank, shards = _checked(q, k, cu_seqlens, layout, group)
    saved = saved_for_gradient(q, v, d_out, out, lse)
    return _gradient_ring(q, (k, v), saved, rank, shards, rule, group)


def launch(worker: Callable[..., Iterable[Any]], n_ranks: int, *arguments: Any) -> list[list[np.ndarray]]:
    """Run a function in local processes that form a ring, and return what each of them found.

    Parameters
    ----------
    worker : callable
        Called as ``worker(*arguments)`` in every process, with the process group ready; returns arrays. It must be a
        function of an importable module, for the processes are started afresh.
    n_ranks : int
        Number of processes.
    *arguments
        Whatever pickle can carry.

    Returns
    -------
    list of list of ndarray
        ``[rank]``: the arrays of that process.

    Raises
    ------
    ValueError
        If ``n_ranks`` is below 1.
    torch.multiprocessing.ProcessRaisedException
        If a worker raised; the message holds its traceback.

    Notes
    -----
    The processes find each other through a file, so no port is needed. They import the script that starts them: let it
    call this function under ``if __name__ == "__main__":``.
    """
    require(n_ranks >= 1, f"n_ranks={n_ranks} must be at least 1")
    multiprocessing: Any = import_module("torch.multiprocessing")  # it types nothing of what it offers
    with TemporaryDirectory() as folder:
        multiprocessing.spawn(_member, (worker, n_ranks, folder, arguments), nprocs=n_ranks)
        return [_results(_file_of(folder, rank)) for rank in range(n_ranks)]


def _gradient_ring(
    q: Any, held: tuple[Any, ...], saved: tuple[Any, ...], rank: int, shards: Shards, rule: BlockRule, group: Any
) -> RingGradients:
    dq, travelling = np.zeros_like(q), tuple(np.zeros_like(x) for x in held)
    for t in range(len(shards)):
        last, coming = t + 1 == len(shards), _count(shards, rank, t + 1)
        arriving = [] if last else _pass_on(held, coming, group)
        parts = (shards[rank], shards[(rank - t) % len(shards)])
        block = packed_block_gradient(q, held[0], held[1], saved, parts, rule)
        dq += block.dq
        # the gradients can leave only now, and make one step more than the keys: the one that brings them home
        sums = (travelling[0] + block.dk, travelling[1] + block.dv)
        travelling = _received(_pass_on(sums, coming, group))
        held = held if last else _received(arriving)
    return RingGradients(dq, *travelling)


def _pass_on(arrays: Sequence[Any], coming: int, group: Any) -> list[tuple[Any, Any]]:
    """Begin to send arrays to the next rank and to receive as many from the one before: buffers, what to wait for."""
    import torch
    import torch.distributed as dist

    rank, n_ranks = _place(group)
    arriving = [np.empty((coming, *x.shape[1:]), x.dtype) for x in arrays]
    if n_ranks == 1:
        return list(zip(arrays, [()] * len(arrays), strict=True))
    after, before = (_global_rank((rank + step) % n_ranks, group) for step in (1, -1))
    waits = []
    for going, buffer in zip(arrays, arriving, strict=True):
        # ranks without tokens have nothing to send, and both sides know it
        sends = [dist.P2POp(dist.isend, torch.from_numpy(_sendable(going)), after, group)] if going.size else []
        receives = [dist.P2POp(dist.irecv, torch.from_numpy(buffer), before, group)] if buffer.size else []
        waits.append(dist.batch_isend_irecv(sends + receives) if sends or receives else ())
    return list(zip(arriving, waits, strict=True))


def _received(arriving: Sequence[tuple[Any, Any]]) -> tuple[Any, ...]:
    """Wait until everything is here, and what was sent is gone."""
    for _, works in arriving:
        for work in works:
            work.wait()
    return tuple(buffer for buffer, _ in arriving)


def _sendable(x: Any) -> Any:
    """Return the array itself if PyTorch can share its memory, else a copy."""
    return np.require(x, requirements=("C_CONTIGUOUS", "WRITEABLE"))


def _checked(q: Any, k: Any, cu_seqlens: Any, layout: str, group: Any) -> tuple[int, Shards]:
    rank, n_ranks = _place(group)
    shards = shard_positions(cu_seqlens, n_ranks, layout)
    own = _count(shards, rank, 0)
    require(len(q) == len(k) == own, f"q and k hold {len(q)} and {len(k)} tokens; rank {rank} has {own} of this batch")
    return rank, shards


def _count(shards: Shards, rank: int, t: int) -> int:
    """Return how many tokens reach the rank at step t."""
    return sum(map(len, shards[(rank - t) % len(shards)]))


def _place(group: Any) -> tuple[int, int]:
    import torch.distributed as dist

    return dist.get_rank(group), dist.get_world_size(group)


def _global_rank(rank: int, group: Any) -> int:
    import torch.distributed as dist

    return rank if group is None else int(dist.get_global_rank(group, rank))


def _member(rank: int, worker: Any, n_ranks: int, folder: str, arguments: tuple[Any, ...]) -> None:
    """Be one process of a ring: find the others, work, leave the results in a file."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(Path(folder) / "rendezvous").as_uri(),
        rank=rank,
        world_size=n_ranks,
        timeout=timedelta(seconds=120),
    )
    try:
        np.savez(_file_of(folder, rank), *worker(*arguments))
    finally:
        dist.destroy_process_group()


def _file_of(folder: str, rank: int) -> Path:
    return Path(folder) / f"{rank}.npz"


def _results(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]
