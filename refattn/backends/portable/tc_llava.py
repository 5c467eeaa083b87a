"""Temporal-aware dual RoPE and the frame-wise block causal mask in the array-API standard.

Derived from the equations by another route than the reference: times are counted by what a frame saves instead of by
walking the segments, the two rotations are two complex factors, and, because every visual block is a run of tokens,
the mask is one number a query: the last key that it reaches. Whole columns beyond that are never computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.backends.pointwise import softmax
from refattn.layers.tc_llava_streaming import TCCache

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "dual_positions",
    "dual_rope_attention",
    "frame_block_causal_mask",
    "tc_append",
    "tc_prefill",
    "temporal_position_ids",
]

BLOCK = 256  # queries that are scored at once: bounds memory, and skips the keys that none of them reaches


def temporal_position_ids(length: int, segments: Sequence[Sequence[int]], *, tail: str = "continue") -> Any:
    """Return the time of each token: its index less the tokens before it that shared a frame with their predecessor."""
    n = np.arange(length)
    saved = np.zeros_like(n)
    for start, n_frames, m in segments:
        seen = np.clip(n + 1 - start, 0, n_frames * m)  # tokens of the segment up to this one
        saved += seen - -(-seen // m)  # less the frames that have begun
        saved += (tail == "eq5") & (n >= start + n_frames * m)
    return n - saved


def dual_positions(
    length: int, segments: Sequence[Sequence[int]], *, gamma: float = 1.0, tail: str = "continue"
) -> Any:
    """Return place plus γ times time."""
    return np.arange(length) + gamma * temporal_position_ids(length, segments, tail=tail)


def frame_block_causal_mask(length: int, segments: Sequence[Sequence[int]], *, variant: str = "fwbc") -> Any:
    """Return which keys each query sees: all up to the last one that it reaches."""
    return np.arange(length) <= _reach(length, segments, variant)[:, None]


def dual_rope_attention(
    x: Any,
    weights: Any,
    segments: Sequence[Sequence[int]],
    *,
    n_heads: int,
    gamma: float = 1.0,
    variant: str = "fwbc",
    base: float = 10000.0,
    tail: str = "continue",
    return_weights: bool = False,
) -> Any:
    """Attend over the whole sequence at once."""
    q, k, v = _project(x, weights, n_heads)
    turns = _turns(x.shape[1], segments, q.shape[-1], gamma=gamma, base=base, tail=tail)
    reach = _reach(x.shape[1], segments, variant)
    out, a = _attend(_turned(q, turns), _turned(k, turns), v, reach, keep=return_weights)
    out = _merged(out) @ weights[3]
    return (out, a) if return_weights else out


def tc_prefill(
    x: Any,
    weights: Any,
    segments: Sequence[Sequence[int]],
    *,
    n_heads: int,
    gamma: float = 1.0,
    variant: str = "fwbc",
    base: float = 10000.0,
    tail: str = "continue",
) -> tuple[Any, TCCache]:
    """Attend over a prompt and keep its turned keys and its values."""
    q, k, v = _project(x, weights, n_heads)
    turns = _turns(x.shape[1], segments, q.shape[-1], gamma=gamma, base=base, tail=tail)
    k = _turned(k, turns)
    out, _ = _attend(_turned(q, turns), k, v, _reach(x.shape[1], segments, variant))
    return _merged(out) @ weights[3], TCCache(k, v)


def tc_append(
    x: Any,
    cache: TCCache,
    weights: Any,
    segments: Sequence[Sequence[int]],
    *,
    n_heads: int,
    gamma: float = 1.0,
    variant: str = "fwbc",
    base: float = 10000.0,
    tail: str = "continue",
) -> tuple[Any, TCCache]:
    """Attend from new tokens to a cache and to one another."""
    xp = array_namespace(x)
    q, k, v = _project(x, weights, n_heads)
    past = cache.k.shape[2]
    length = past + x.shape[1]
    turns = _turns(length, segments, q.shape[-1], gamma=gamma, base=base, tail=tail)[past:]
    k = xp.concat([cache.k, _turned(k, turns)], axis=2)
    v = xp.concat([cache.v, v], axis=2)
    out, _ = _attend(_turned(q, turns), k, v, _reach(length, segments, variant)[past:])
    return _merged(out) @ weights[3], TCCache(k, v)


def _reach(length: int, segments: Sequence[Sequence[int]], variant: str) -> np.ndarray:
    """Return the last key that each query sees: itself, or the end of its frame or video."""
    n = np.arange(length)
    reach = n
    for start, n_frames, m in segments:
        size = {"causal": 1, "fwbc": m, "full_visual": n_frames * m}[variant]
        inside = (n >= start) & (n < start + n_frames * m)
        reach = np.where(inside, start + ((n - start) // size + 1) * size - 1, reach)
    return reach


def _turns(
    length: int, segments: Sequence[Sequence[int]], d: int, *, gamma: float, base: float, tail: str
) -> np.ndarray:
    """Return the complex unit numbers (length, d/2) of the rotation by place followed by the one by time."""
    freqs = base ** -(np.arange(0, d, 2) / d)
    by_place = np.exp(1j * np.outer(np.arange(length), freqs))
    by_time = np.exp(1j * gamma * np.outer(temporal_position_ids(length, segments, tail=tail), freqs))
    return np.asarray(by_place * by_time)


def _turned(x: Any, turns: np.ndarray) -> Any:
    """Multiply each pair (i, i + d/2), read as a complex number, by its turn."""
    xp = array_namespace(x)
    cos, sin = (xp.asarray(part.copy(), dtype=x.dtype, device=device(x)) for part in (turns.real, turns.imag))
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return xp.concat([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _project(x: Any, weights: Any, n_heads: int) -> tuple[Any, Any, Any]:
    """Return queries, keys and values as (B, H, N, d)."""
    xp = array_namespace(x)
    B, N, D = x.shape
    q, k, v = (xp.permute_dims(xp.reshape(x @ w, (B, N, n_heads, D // n_heads)), (0, 2, 1, 3)) for w in weights[:3])
    return q, k, v


def _merged(out: Any) -> Any:
    """Put the heads back side by side: (B, H, N, d) to (B, N, D)."""
    xp = array_namespace(out)
    B, H, N, d = out.shape
    return xp.reshape(xp.permute_dims(out, (0, 2, 1, 3)), (B, N, H * d))


def _attend(q: Any, k: Any, v: Any, reach: np.ndarray, *, keep: bool = False) -> tuple[Any, Any]:
    """Average the values by blocks of queries; the weights too where they are kept."""
    xp = array_namespace(q)
    outs, rows = [q[:, :, :0, :]], []
    for begin in range(0, len(reach), BLOCK):
        end = min(begin + BLOCK, len(reach))
        seen = int(reach[begin:end].max()) + 1
        allowed = xp.asarray(np.arange(seen) <= reach[begin:end, None], device=device(q))
        s = q[:, :, begin:end, :] @ xp.matrix_transpose(k[:, :, :seen, :]) / q.shape[-1] ** 0.5
        a = softmax(s, allowed)
        outs.append(a @ v[:, :, :seen, :])
        if keep:
            unseen = xp.zeros((*a.shape[:3], k.shape[2] - seen), dtype=a.dtype, device=device(q))
            rows.append(xp.concat([a, unseen], axis=-1))
    if keep and not rows:
        rows = [q @ xp.matrix_transpose(k)]  # no query: no row
    return xp.concat(outs, axis=2), xp.concat(rows, axis=2) if keep else None
