"""The attention engine of Zeppelin: ring attention over ranks that each hold a part of every sequence (2509.21841).

Zeppelin balances a batch of unequal sequences by splitting long ones over many GPUs and leaving short ones whole. It
may do so because a split sequence gives the same result: keys and values travel round the ring of ranks, and what
each block contributes is merged exactly. Blocks and merging are in `refattn.efficiency.zeppelin_blocks`, the same ring
between real processes in `refattn.efficiency.zeppelin_distributed`. Equation labels are those of the page.
"""

from __future__ import annotations

from itertools import pairwise
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.efficiency.zeppelin_blocks import (
    RingGradients,
    attention_block,
    attention_block_gradient,
    check_heads,
    empty_partial,
    merge_partial,
    packed_block,
    packed_block_gradient,
)
from refattn.primitives.arguments import as_float, as_integer, require, require_one_of, require_shape
from refattn.primitives.attention_ring import ring_placement

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "LAYOUTS",
    "RingGradients",
    "attention_block",
    "attention_block_gradient",
    "checked_shards",
    "merge_partial",
    "pair_counts",
    "partition_positions",
    "ring_attention",
    "ring_attention_gradient",
    "saved_for_gradient",
    "shard_positions",
]

LAYOUTS = ("zigzag", "contiguous", "striped")


def partition_positions(length: int, n_ranks: int, layout: str = "zigzag") -> list[np.ndarray]:
    """Return the positions of a sequence that each rank holds, ascending.

    Parameters
    ----------
    length : int
        Number of tokens n.
    n_ranks : int
        Number of ranks G.
    layout : {"zigzag", "contiguous", "striped"}
        ``zigzag``: of 2G chunks rank r holds r and 2G − 1 − r. ``contiguous``: chunk r of G. ``striped``: the
        positions r, r + G, ….

    Returns
    -------
    list of ndarray of int
        One array a rank; empty for some ranks if there are fewer tokens than chunks.

    Raises
    ------
    ValueError
        If ``length`` is negative, ``n_ranks`` is below 1, or ``layout`` is unknown.

    Notes
    -----
    Chunks that cannot be equal differ by one token, the longer ones first [our definition].
    """
    require(index(length) >= 0, f"length={length} must not be negative")
    _check_ranks(n_ranks, layout)
    # eq: zep-zigzag
    return ring_placement(length, world=n_ranks, placement=layout)


def shard_positions(cu_seqlens: Any, n_ranks: int, layout: str = "zigzag") -> list[list[np.ndarray]]:
    """Return which tokens of a packed batch each rank holds: its part of every sequence.

    Parameters
    ----------
    cu_seqlens : array_like of int, shape (S + 1,)
        Where the sequences begin, and the total: increasing from 0.
    n_ranks, layout
        As in `partition_positions`.

    Returns
    -------
    list of list of ndarray of int
        ``[rank][sequence]``: rows of the packed arrays.

    Raises
    ------
    ValueError
        If ``cu_seqlens`` does not increase from 0, and as `partition_positions`.
    """
    _check_ranks(n_ranks, layout)
    cu = as_integer("cu_seqlens", cu_seqlens, ndim=1)
    require(len(cu) >= 2 and cu[0] == 0, f"cu_seqlens={cu} must begin at 0 and hold a sequence")
    require((np.diff(cu) > 0).all(), f"cu_seqlens={cu} must increase: no sequence is empty")
    return _shards([int(start) for start in cu], n_ranks, layout)


def pair_counts(length: int, n_ranks: int, *, layout: str = "zigzag", causal: bool = True) -> np.ndarray:
    """Count the query–key pairs that each rank computes at each step of the ring.

    Parameters
    ----------
    length, n_ranks, layout
        As in `partition_positions`.
    causal : bool
        Do not count keys that stand behind the query.

    Returns
    -------
    ndarray of int, shape (G, G)
        ``[rank, step]``.

    Raises
    ------
    ValueError
        As `partition_positions`.
    """
    positions = partition_positions(length, n_ranks, layout)
    counts = np.zeros((n_ranks, n_ranks), dtype=np.int64)
    for r, t in np.ndindex(n_ranks, n_ranks):
        queries, keys = positions[r], positions[(r - t) % n_ranks]
        # eq: zep-pairs
        # positions ascend: a query sees as many keys of the block as there are up to its own position
        counts[r, t] = np.searchsorted(keys, queries, side="right").sum() if causal else len(queries) * len(keys)
    return counts


def ring_attention(
    q: Any,
    k: Any,
    v: Any,
    n_ranks: int,
    *,
    layout: str = "zigzag",
    causal: bool = True,
    cu_seqlens: Any = None,
    scale: float | None = None,
) -> tuple[Any, Any]:
    """Compute attention on a ring of ranks, step by step, as the ranks would.

    1. Deal the tokens out: rank r holds queries, keys and values of its own positions, and (0, −∞) as its result.
    2. At step t every rank attends to the keys that it holds, which came from rank (r − t) mod G, and merges.
    3. Then it hands keys and values on to rank r + 1.
    4. After G steps every query has met every key once: put the tokens back in order.

    Parameters
    ----------
    q : array_like, shape (n, h, d)
        Queries of the whole batch.
    k, v : array_like, shape (n, h_kv, d), (n, h_kv, d_v)
        Keys and values; query head j reads head ⌊j / (h / h_kv)⌋ of them.
    n_ranks : int
        Number of ranks G.
    layout : {"zigzag", "contiguous", "striped"}
        Which tokens of a sequence a rank holds, see `partition_positions`.
    causal : bool
        Hide the keys that stand behind the query.
    cu_seqlens : array_like of int, shape (S + 1,), optional
        Where packed sequences begin, and the total n; one sequence if not given. Sequences do not see each other.
    scale : float, optional
        Multiplies every score; 1/√d if not given.

    Returns
    -------
    out : ndarray, shape (n, h, d_v)
        In the dtype of ``q``.
    lse : ndarray, shape (n, h)
        Logarithm of the sum of exponentials of each query's scores.

    Raises
    ------
    ValueError
        If shapes do not fit, ``n_ranks`` is below 1, ``layout`` is unknown, or ``cu_seqlens`` does not increase from 0
        to n.

    Notes
    -----
    `refattn.primitives.attention_ring` states the outcome for all of attention's options; here the schedule is carried
    out, and each merge takes place when its block has arrived. Public code differs in two conventions: one
    implementation lets query head j read head j mod h_kv, and clamps the sums of its blocks at 1e-10.

    References
    ----------
    2509.21841; the ring 2310.01889 [recalled]; the zig-zag as ring-flash-attention deals it out.
    """
    q, k, v, rule = check_heads(q, k, v, scale=scale, causal=causal)
    shards = checked_shards(q, k, cu_seqlens, n_ranks, layout)
    rows = [np.concatenate(parts) for parts in shards]
    held = [(k[own], v[own]) for own in rows]  # 1: (n_r, h_kv, d), (n_r, h_kv, d_v) a rank
    results = [empty_partial(q[own], v) for own in rows]  # (n_r, h, d_v), (n_r, h) a rank
    for t in range(n_ranks):
        for r in range(n_ranks):
            # eq: zep-ring
            source = shards[(r - t) % n_ranks]
            block = packed_block(q[rows[r]], *held[r], shards[r], source, rule)  # 2
            results[r] = merge_partial(*results[r], *block)
        held = held[-1:] + held[:-1]  # 3
    out, lse = (_in_order(parts, rows) for parts in zip(*results, strict=True))  # 4
    return out, lse


def ring_attention_gradient(
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    out: Any,
    lse: Any,
    n_ranks: int,
    *,
    layout: str = "zigzag",
    causal: bool = True,
    cu_seqlens: Any = None,
    scale: float | None = None,
) -> RingGradients:
    """Pull a cotangent of the output back to queries, keys and values, on the same ring.

    Queries stay where they are and gather their gradient; the gradients of keys and values travel with them, every
    rank adds its part, and after G steps they are back at home.

    Parameters
    ----------
    q, k, v, n_ranks, layout, causal, cu_seqlens, scale
        As in `ring_attention`.
    d_out : array_like, shape (n, h, d_v)
        Cotangent of the output.
    out, lse : array_like, shape (n, h, d_v), (n, h)
        What `ring_attention` returned. With them no block needs to know another: the weights are e^(S − lse).

    Returns
    -------
    RingGradients
        dq, dk and dv, in the shapes of q, k and v and in the dtype of ``q``.

    Raises
    ------
    ValueError
        As in `ring_attention`, or if ``d_out``, ``out`` or ``lse`` has another shape than the results.
    """
    q, k, v, rule = check_heads(q, k, v, scale=scale, causal=causal)
    shards = checked_shards(q, k, cu_seqlens, n_ranks, layout)
    rows = [np.concatenate(parts) for parts in shards]
    saved = saved_for_gradient(q, v, d_out, out, lse)
    held = [(k[own], v[own], np.zeros_like(k[own]), np.zeros_like(v[own])) for own in rows]
    dq = [np.zeros_like(q[own]) for own in rows]
    for t in range(n_ranks):
        for r, own in enumerate(rows):
            keys, values, dk, dv = held[r]
            parts = (shards[r], shards[(r - t) % n_ranks])
            block = packed_block_gradient(q[own], keys, values, tuple(x[own] for x in saved), parts, rule)
            dq[r] = dq[r] + block.dq
            held[r] = (keys, values, dk + block.dk, dv + block.dv)
        held = held[-1:] + held[:-1]  # after G steps everything is where it came from
    _, _, dk_home, dv_home = zip(*held, strict=True)
    return RingGradients(*(_in_order(parts, rows) for parts in (dq, dk_home, dv_home)))


def saved_for_gradient(q: Any, v: Any, d_out: Any, out: Any, lse: Any) -> tuple[Any, ...]:
    """Return the cotangent, its product with the output, and the log-sum-exp: all that the way back needs.

    Parameters
    ----------
    q, v : ndarray, shape (n, h, d), (n, h_kv, d_v)
        Checked.
    d_out, out, lse
        As in `ring_attention_gradient`.

    Returns
    -------
    d_out, delta, lse : ndarray, shape (n, h, d_v), (n, h), (n, h)
        In the dtype of ``q``.

    Raises
    ------
    ValueError
        If a shape does not fit.
    """
    d_out, out, lse = (
        as_float(name, x).astype(q.dtype, copy=False) for name, x in (("d_out", d_out), ("out", out), ("lse", lse))
    )
    require_shape("d_out", d_out, (*q.shape[:2], v.shape[-1]))
    require_shape("out", out, d_out.shape)
    require_shape("lse", lse, q.shape[:2])
    # eq: zep-delta
    return d_out, (d_out * out).sum(axis=-1), lse


def _check_ranks(n_ranks: int, layout: str) -> None:
    require(index(n_ranks) >= 1, f"n_ranks={n_ranks} must be at least 1")
    require_one_of("layout", layout, LAYOUTS)


def checked_shards(q: Any, k: Any, cu_seqlens: Any, n_ranks: int, layout: str) -> list[list[np.ndarray]]:
    """Return who holds which tokens, once queries, keys and sequences are known to fit together."""
    require_shape("k", k, (len(q), *k.shape[1:]))
    if cu_seqlens is None:
        _check_ranks(n_ranks, layout)
        return _shards([0, len(q)], n_ranks, layout)
    shards = shard_positions(cu_seqlens, n_ranks, layout)
    require(cu_seqlens[-1] == len(q), f"cu_seqlens={cu_seqlens} must end at the number of tokens, {len(q)}")
    return shards


def _shards(cu: Sequence[int], n_ranks: int, layout: str) -> list[list[np.ndarray]]:
    parts = [
        [start + part for part in partition_positions(end - start, n_ranks, layout)] for start, end in pairwise(cu)
    ]
    return [list(of_rank) for of_rank in zip(*parts, strict=True)]


def _in_order(parts: Sequence[Any], rows: Sequence[np.ndarray]) -> Any:
    """Put what the ranks hold back into the order of the batch."""
    return np.concatenate(parts)[np.argsort(np.concatenate(rows))]
