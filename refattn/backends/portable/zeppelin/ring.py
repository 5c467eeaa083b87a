"""Ring attention in the array-API standard, by another route than the reference: no ring at all.

A ring of ranks computes attention, so here attention is computed: each sequence in one piece, densely, whatever the
ranks and the layout. The gradient is that of the dense matrix. Partial results are merged by a sigmoid, and who
holds a token is a formula of its position.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.efficiency.zeppelin_blocks import RingGradients

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "attention_block",
    "merge_partial",
    "pair_counts",
    "partition_positions",
    "ring_attention",
    "ring_attention_gradient",
]


def attention_block(
    q: Any, k: Any, v: Any, q_pos: Any, k_pos: Any, *, scale: float | None = None, causal: bool = True
) -> tuple[Any, Any]:
    """Attend with the weights e^(S − l), l known first."""
    xp = array_namespace(q)
    if k.shape[0] == 0:
        unseen = xp.full(q.shape[:2], -xp.inf, dtype=q.dtype, device=device(q))
        return xp.zeros((*q.shape[:2], v.shape[-1]), dtype=q.dtype, device=device(q)), unseen
    S = _scores(q, k, _hidden(q_pos, k_pos) if causal else None, scale)  # (h, n_q, n_k)
    m = xp.max(S, axis=-1, keepdims=True)
    m = xp.where(m == -xp.inf, xp.zeros_like(m), m)  # (h, n_q, 1)
    e = xp.exp(S - m)
    total = xp.sum(e, axis=-1, keepdims=True)
    seen = total > 0
    safe = xp.where(seen, total, xp.ones_like(total))
    lse = xp.where(seen, m + xp.log(safe), xp.full_like(m, -xp.inf))[..., 0]  # (h, n_q)
    return _turned((e / safe) @ _turned(_each(q, v))), xp.matrix_transpose(lse)


def merge_partial(out_a: Any, lse_a: Any, out_b: Any, lse_b: Any) -> tuple[Any, Any]:
    """Share the weight out by the sigmoid of the difference, σ(x) = (1 + tanh(x/2))/2."""
    xp = array_namespace(out_a)
    some = (lse_a > -xp.inf) | (lse_b > -xp.inf)
    nothing = xp.zeros_like(lse_a)
    ahead = xp.tanh((xp.where(some, lse_b, nothing) - xp.where(some, lse_a, nothing)) / 2)[..., None]
    return (1 - ahead) / 2 * out_a + (1 + ahead) / 2 * out_b, xp.logaddexp(lse_a, lse_b)


def ring_attention(
    q: Any,
    k: Any,
    v: Any,
    n_ranks: int,
    *,
    layout: str = "zigzag",
    causal: bool = True,
    cu_seqlens: Sequence[int] | None = None,
    scale: float | None = None,
) -> tuple[Any, Any]:
    """Attend within each sequence at once: the ranks cancel."""
    del n_ranks, layout

    def alone(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
        return attention_block(q, k, v, *_places(q), scale=scale, causal=causal)

    out, lse = _by_sequence(alone, cu_seqlens, q, k, v)
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
    cu_seqlens: Sequence[int] | None = None,
    scale: float | None = None,
) -> RingGradients:
    """Pull back through the dense matrix of each sequence."""
    del n_ranks, layout

    def alone(*arrays: Any) -> tuple[Any, Any, Any]:
        return _pulled_back(*arrays, causal=causal, scale=scale)

    dq, dk, dv = _by_sequence(alone, cu_seqlens, q, k, v, d_out, out, lse)
    return RingGradients(dq, dk, dv)


def partition_positions(length: int, n_ranks: int, layout: str = "zigzag") -> list[np.ndarray]:
    """Ask every position for its owner."""
    owner = _owners(length, n_ranks, layout)
    return [np.flatnonzero(owner == rank) for rank in range(n_ranks)]


def pair_counts(length: int, n_ranks: int, *, layout: str = "zigzag", causal: bool = True) -> np.ndarray:
    """Sort all pairs by who computes them and when."""
    owner = _owners(length, n_ranks, layout)
    queries, keys = np.nonzero(np.tri(length) if causal else np.ones((length, length)))
    when = owner[queries] * n_ranks + (owner[queries] - owner[keys]) % n_ranks
    return np.bincount(when, minlength=n_ranks**2).reshape(n_ranks, n_ranks)


def _owners(length: int, n_ranks: int, layout: str) -> np.ndarray:
    """Return the rank that holds each position: of the longer chunks first, then of the others."""
    place = np.arange(length)
    if layout == "striped":
        return place % n_ranks
    count = n_ranks if layout == "contiguous" else 2 * n_ranks
    size, longer = divmod(length, count)
    rest = longer * (size + 1)  # tokens in longer chunks
    chunk = np.where(place < rest, place // (size + 1), longer + (place - rest) // max(size, 1))
    return chunk if layout == "contiguous" else np.minimum(chunk, 2 * n_ranks - 1 - chunk)


def _by_sequence(alone: Callable[..., tuple[Any, ...]], cu_seqlens: Any, *arrays: Any) -> list[Any]:
    """Run every packed sequence on its own, and pack the results."""
    xp = array_namespace(arrays[0])
    bounds = [0, arrays[0].shape[0]] if cu_seqlens is None else cu_seqlens
    parts = [alone(*(x[start:end, ...] for x in arrays)) for start, end in pairwise(bounds)]
    return [xp.concat(list(results), axis=0) for results in zip(*parts, strict=True)]


def _pulled_back(
    q: Any, k: Any, v: Any, d_out: Any, out: Any, lse: Any, *, causal: bool, scale: float | None
) -> tuple[Any, Any, Any]:
    """Return the gradients of one sequence, heads summed where they share a key head."""
    xp = array_namespace(q)
    if q.shape[0] == 0:
        return xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)
    P = xp.exp(_scores(q, k, _hidden(*_places(q)) if causal else None, scale) - xp.matrix_transpose(lse)[..., None])
    dO = _turned(d_out)  # (h, n, d_v)
    dP = dO @ xp.matrix_transpose(_turned(_each(q, v)))  # (h, n, n)
    dS = P * (dP - xp.sum(dO * _turned(out), axis=-1, keepdims=True)) * _scale(q, scale)
    transposed = xp.matrix_transpose
    dk, dv = (_gathered(_turned(x), k.shape[1]) for x in (transposed(dS) @ _turned(q), transposed(P) @ dO))
    return _turned(dS @ _turned(_each(q, k))), dk, dv


def _scores(q: Any, k: Any, hidden: Any, scale: float | None) -> Any:
    """Return the scaled scores (h, n_q, n_k), −∞ where hidden."""
    xp = array_namespace(q)
    S = _turned(q * _scale(q, scale)) @ xp.permute_dims(_each(q, k), (1, 2, 0))
    return S if hidden is None else xp.where(hidden, xp.asarray(-xp.inf, dtype=S.dtype, device=device(S)), S)


def _scale(q: Any, scale: float | None) -> float:
    return float(q.shape[-1] ** -0.5) if scale is None else scale


def _hidden(q_pos: Any, k_pos: Any) -> Any:
    return k_pos[None, :] > q_pos[:, None]


def _places(q: Any) -> tuple[Any, Any]:
    places = array_namespace(q).arange(q.shape[0], device=device(q))
    return places, places


def _each(q: Any, x: Any) -> Any:
    """Give each query head the key or value head that it reads."""
    xp = array_namespace(x)
    n, h_kv, width = x.shape
    group = q.shape[1] // h_kv
    return xp.reshape(xp.broadcast_to(x[:, :, None, :], (n, h_kv, group, width)), (n, h_kv * group, width))


def _gathered(x: Any, h_kv: int) -> Any:
    n, h, width = x.shape
    return array_namespace(x).sum(array_namespace(x).reshape(x, (n, h_kv, h // h_kv, width)), axis=2)


def _turned(x: Any) -> Any:
    """Exchange tokens and heads."""
    return array_namespace(x).permute_dims(x, (1, 0, 2))
