"""HyLRA in the array-API standard: key sets, both kinds of layers, profiles and policies.

Derived from the equations by another route than the reference. The k-th largest block is a threshold, and ties at it
are filled from the left; sets are sorted positions. What a layer loses is computed from the keys that it drops. A
policy is a shortest path over whole runs [f, g) of layers that read the set of f, not layer by layer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.interventions.hylra import Distortion
from refattn.interventions.hylra_policy import LayerPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "attend_full",
    "attend_reuse",
    "critical_blocks",
    "hash_ratio",
    "layer_overlap",
    "policy_max_min",
    "policy_min_full",
    "sensitive_by_hash_ratio",
    "topk_distortion",
]


def attend_full(
    q: Any,
    k: Any,
    v: Any,
    *,
    n_keep: int,
    block_size: int = 1,
    sink: int = 0,
    recent: int = 0,
    share_heads: bool = False,
    refresh: str = "dense",
    mask: Any = None,
    scale: float | None = None,
) -> tuple[Any, Any]:
    """Attend to all keys, or with ``refresh="sparse"`` to the kept ones; return the kept ones too."""
    xp = array_namespace(q, k, v)
    z, visible = _logits(xp, q, k, mask, scale)  # (B, H, G, Tq, T) each
    e, total = _exponentials(xp, z, visible)
    kept = _kept(
        xp, e / total, visible, n_keep, block_size=block_size, sink=sink, recent=recent, share_heads=share_heads
    )  # (B, H, 1, Tq, T)
    if refresh == "sparse":
        e, total = _exponentials(xp, z, visible & kept)
    out = xp.reshape(e @ v[:, :, None, :, :] / total, q.shape)
    T = k.shape[2]
    return out, _positions(xp, kept[:, :, 0, :, :], min(n_keep // block_size * block_size, T))


def attend_reuse(q: Any, k: Any, v: Any, indices: Any, *, mask: Any = None, scale: float | None = None) -> Any:
    """Attend to the fetched keys only."""
    xp = array_namespace(q, k, v)
    (B, Hq, Tq, d), (H, T) = q.shape, k.shape[1:3]
    if indices.ndim == 3:
        indices = xp.broadcast_to(indices[:, :, None, :], (*indices.shape[:2], Tq, indices.shape[-1]))
    n = indices.shape[-1]
    scale = d**-0.5 if scale is None else scale
    there = indices >= 0
    at = xp.where(there, indices, xp.zeros_like(indices))
    row = xp.reshape(xp.arange(B * H, dtype=at.dtype, device=device(at)) * T, (B, H, 1, 1))
    flat = xp.reshape(at + row, (-1,))
    K, V = (
        xp.reshape(xp.take(xp.reshape(x, (B * H * T, d)), flat, axis=0), (B, H, 1, Tq, n, d)) for x in (k, v)
    )  # (B, H, 1, Tq, n, d) each
    query = xp.reshape(q, (B, H, Hq // H, Tq, 1, d))
    z = xp.sum(query * K, axis=-1) * scale  # (B, H, G, Tq, n)
    usable = xp.broadcast_to(there[:, :, None, :, :], z.shape)
    if mask is not None:
        seen = xp.reshape(xp.broadcast_to(mask, (B, Hq, Tq, T)), (B, H, Hq // H, Tq, T))
        where = xp.broadcast_to(at[:, :, None, :, :], z.shape)
        usable = usable & xp.take_along_axis(seen, where, axis=-1)
    e, total = _exponentials(xp, z, usable)
    return xp.reshape(xp.sum(e[..., None] * V, axis=-2) / total, q.shape)


def critical_blocks(
    weights: Any, k: int, *, block_size: int = 1, sink: int = 0, recent: int = 0, visible: Any = None
) -> Any:
    """Return the numbers of the critical blocks, ascending."""
    xp = array_namespace(weights)
    visible = xp.ones(weights.shape, dtype=xp.bool, device=device(weights)) if visible is None else visible
    chosen = _critical(xp, weights, visible, k, block_size=block_size, sink=sink, recent=recent)
    return _positions(xp, chosen, min(k // block_size, chosen.shape[-1]))


def layer_overlap(masks: Any, *, per_head: bool = False) -> Any:
    """Return the share of a layer's set that an earlier one holds, averaged over steps; masks hold 0 and 1."""
    xp = array_namespace(masks)
    L = masks.shape[0]
    both = xp.sum(xp.minimum(masks[:, None, ...], masks[None, ...]), axis=-1)  # (L, L, S, H)
    own = xp.sum(masks, axis=-1)  # (L, S, H)
    M = xp.permute_dims(xp.mean(both / own, axis=2), (2, 0, 1))  # (H, L, L)
    upper = xp.asarray(~np.tri(L, dtype=bool), device=device(masks))
    one = xp.asarray(np.eye(L), dtype=masks.dtype, device=device(masks))
    M = xp.where(upper, M, xp.broadcast_to(one, M.shape))
    return M if per_head else xp.mean(M, axis=0)


def hash_ratio(weights: Any, block_size: int, mass: float = 0.9) -> Any:
    """Return the share of blocks whose running total stays within a part of the whole."""
    xp = array_namespace(weights)
    B = xp.sort(xp.sum(_in_blocks(xp, weights, block_size), axis=-1), axis=-1, descending=True)
    running = xp.cumulative_sum(B, axis=-1)
    inside = running <= mass * running[..., -1:]
    return xp.mean(xp.astype(inside, weights.dtype), axis=-1)


def sensitive_by_hash_ratio(ratios: Any, sparsity: float) -> Any:
    """Return the layers with the largest mean ratio after outliers are pulled in."""
    xp = array_namespace(ratios)
    L = ratios.shape[-1]
    low, high = (_quantile(xp, ratios, share) for share in (0.25, 0.75))
    reach = 1.5 * (high - low)
    clipped = xp.minimum(xp.maximum(ratios, low - reach), high + reach)
    stat = xp.mean(xp.mean(clipped, axis=1), axis=0)  # (L,)
    later = xp.asarray(np.arange(L)[:, None] < np.arange(L), device=device(ratios))
    beaten = (stat[None, :] > stat[:, None]) | ((stat[None, :] == stat[:, None]) & later)
    count = math.ceil(L * (1 - sparsity))
    return _positions(xp, xp.sum(xp.astype(beaten, xp.int64), axis=-1) < count, count)


def topk_distortion(
    q: Any,
    k: Any,
    v: Any,
    n_keep: int,
    *,
    block_size: int = 1,
    sink: int = 0,
    recent: int = 0,
    lengths: Any = None,
    scale: float | None = None,
) -> Distortion:
    """Return what a layer loses: (1 − m) times the distance of what it drops from what it keeps."""
    xp = array_namespace(q, k, v)
    steps = q[None, ...] if q.ndim == 2 else q  # (S, Hq, d)
    T = k.shape[1]
    mask = None
    if lengths is not None:
        mask = xp.arange(T, dtype=lengths.dtype, device=device(lengths)) < lengths[:, None]
        mask = mask[None, None, :, :]
    z, visible = _logits(xp, xp.permute_dims(steps, (1, 0, 2))[None, ...], k[None, ...], mask, scale)
    e, total = _exponentials(xp, z, visible)  # (1, H, G, S, T)
    kept = _kept(xp, e / total, visible, n_keep, block_size=block_size, sink=sink, recent=recent)
    inside, outside = (xp.where(x, e, xp.zeros_like(e)) for x in (kept, ~kept))
    kept_sum, lost_sum = (xp.sum(x, axis=-1, keepdims=True) for x in (inside, outside))
    values = v[None, :, None, :, :]
    here = inside @ values / kept_sum
    there = outside @ values / xp.where(lost_sum > 0, lost_sum, xp.ones_like(lost_sum))
    change, out = lost_sum / total * (there - here), e @ values / total
    size = xp.sum(out * out)
    rnmse = xp.sqrt(xp.sum(change * change) / xp.where(size > 0, size, xp.ones_like(size)))
    m = xp.permute_dims(xp.reshape(kept_sum / total, (steps.shape[1], steps.shape[0])), (1, 0))  # (S, Hq)
    m = m[0, :] if q.ndim == 2 else m
    return Distortion(rnmse, m, -xp.log(m))


def policy_min_full(similarity: Any, *, sensitive: Iterable[int] = (), threshold: float = 0.8) -> LayerPolicy:
    """Return the policy with fewest full layers whose reused sets fit."""
    xp = array_namespace(similarity)
    L = similarity.shape[0]
    must = xp.asarray(np.isin(np.arange(L), list(sensitive)), device=device(similarity))
    bad = (similarity < threshold) | must
    broken = _run_sums(xp, xp.astype(bad, similarity.dtype))  # (L, L + 1), 0 = the run is allowed
    gain = _run_sums(xp, similarity)
    begins = xp.arange(L, dtype=xp.int64, device=device(similarity))
    few = xp.zeros_like(gain[:, 0])  # (L,) minus the number of runs before layer f, and what they share
    total, came = xp.zeros_like(few), []
    for g in range(1, L + 1):  # the best way to have layers < g in runs; runs that begin at g or later are −∞ there
        ahead = xp.where(broken[:, g] == 0, few - 1.0, xp.full_like(few, -math.inf))
        at = _first_best(xp, ahead, total + gain[:, g], axis=0)
        came.append(at)
        best, shared = (xp.take(x, xp.reshape(at, (1,)), axis=0) for x in (ahead, total + gain[:, g]))
        few, total = xp.where(begins == g, best, few), xp.where(begins == g, shared, total)
    return _measured(xp, _walked(xp, came), similarity[None, ...])


def policy_max_min(
    similarity: Any, max_changes: int, *, sensitive: Iterable[int] = (), method: str = "exact"
) -> LayerPolicy:
    """Return the policy of a bounded number of full layers whose worst overlap is best."""
    xp = array_namespace(similarity)
    M = similarity if similarity.ndim == 3 else similarity[None, ...]
    L = M.shape[-1]
    blind = np.isin(np.arange(L), list(sensitive))
    off = xp.asarray((blind[:, None] | blind) & ~np.eye(L, dtype=bool), device=device(M))
    M = xp.where(off, xp.zeros_like(M), M)
    low, gain = _run_minima(xp, xp.min(M, axis=0)), _run_sums(xp, xp.sum(M, axis=0)) + M.shape[0]  # (L, L + 1) each
    runs = min(max_changes, L - 1) + 1
    if method == "exact":
        best, _, _ = _chained(xp, low, xp.zeros_like(gain), runs)
        gain = xp.where(low >= xp.max(best), gain, xp.full_like(gain, -math.inf))
        low = xp.ones_like(low)
    best, total, came = _chained(xp, low, gain, runs)  # (L, runs) each, came a list of (L,)
    last = _first_best(xp, xp.reshape(best, (-1,)), xp.reshape(total, (-1,)), axis=0)
    current, changes = last // runs, last % runs
    before = xp.stack(came)  # (runs, L): the run before the one that begins at a layer
    source = []
    for j in range(L - 1, -1, -1):
        source.append(current)
        turn = current == j
        earlier = xp.take(xp.reshape(before, (-1,)), xp.reshape(changes * L + j, (1,)), axis=0)[0]
        current, changes = xp.where(turn, earlier, current), xp.where(turn & (changes > 0), changes - 1, changes)
    return _measured(xp, xp.stack(source[::-1]), M)


def _chained(xp: Any, low: Any, gain: Any, runs: int) -> tuple[Any, Any, list[Any]]:
    """Chain runs; return by first layer f of the last run and number of runs before it: minimum, sum, run before."""
    L = low.shape[0]
    start = xp.asarray(np.arange(L) == 0, device=device(low))
    nothing = xp.full((L,), -math.inf, dtype=low.dtype, device=device(low))
    state_low, state_gain = (xp.where(start, x, nothing) for x in (xp.ones_like(nothing), xp.zeros_like(nothing)))
    came, lows, gains = [xp.zeros((L,), dtype=xp.int64, device=device(low))], [], []
    for number in range(runs):
        ahead_low = xp.minimum(state_low[:, None], low)  # (L, L + 1)
        ahead_gain = state_gain[:, None] + gain
        lows.append(ahead_low[:, L])
        gains.append(ahead_gain[:, L])
        if number + 1 < runs:
            at = _first_best(xp, ahead_low, ahead_gain, axis=0)[:L]  # (L,)
            came.append(at)
            state_low, state_gain = (
                xp.take_along_axis(x[:, :L], at[None, :], axis=0)[0, :] for x in (ahead_low, ahead_gain)
            )
    return xp.stack(lows, axis=-1), xp.stack(gains, axis=-1), came


def _run_sums(xp: Any, M: Any) -> Any:
    """Return the sums of row f over f < j < g for f < g, and −∞ elsewhere: (L, L) to (L, L + 1)."""
    L = M.shape[-1]
    sums = xp.triu(M, k=1) @ xp.asarray(np.tri(L + 1, L, -1).T.copy(), dtype=M.dtype, device=device(M))
    ahead = xp.asarray(~np.tri(L, L + 1, dtype=bool), device=device(M))
    return xp.where(ahead, sums, xp.full_like(sums, -math.inf))


def _run_minima(xp: Any, M: Any) -> Any:
    """Return the minima of row f over f < j < g for f < g, 1 for an empty run, and −∞ elsewhere."""
    L = M.shape[-1]
    f, g, j = np.ogrid[:L, : L + 1, :L]
    inside = xp.asarray((f < j) & (j < g), device=device(M))
    minima = xp.min(xp.where(inside, M[:, None, :], xp.ones_like(M[:, None, :])), axis=-1)
    ahead = xp.asarray(~np.tri(L, L + 1, dtype=bool), device=device(M))
    return xp.where(ahead, minima, xp.full_like(minima, -math.inf))


def _first_best(xp: Any, first: Any, second: Any, axis: int) -> Any:
    """Return the lowest place of the lexicographically largest pair along an axis."""
    among = first == xp.max(first, axis=axis, keepdims=True)
    second = xp.where(among, second, xp.full_like(second, -math.inf))
    among = among & (second == xp.max(second, axis=axis, keepdims=True))
    size = first.shape[axis]
    places = xp.arange(size, dtype=xp.int64, device=device(first))
    places = xp.reshape(places, (size, *(1 for _ in range(first.ndim - 1))))
    return xp.min(xp.where(among, places, xp.full_like(places, size - 1)), axis=axis)


def _walked(xp: Any, came: list[Any]) -> Any:
    """Return the source of each layer; ``came[g − 1]`` is the first layer of the run that ends before g."""
    current, source = came[-1], []
    for j in range(len(came) - 1, -1, -1):
        source.append(current)
        current = xp.where(current == j, came[j - 1] if j else current, current)
    return xp.stack(source[::-1])


def _measured(xp: Any, source: Any, M: Any) -> LayerPolicy:
    """Return the policy with what its cells on the tables (m, L, L) amount to."""
    L = M.shape[-1]
    layer = xp.arange(L, dtype=source.dtype, device=device(source))
    reuse = source != layer
    path = (source[None, :] == layer[:, None]) & reuse[None, :]  # (L, L): the cells of reusing layers
    bottleneck = xp.min(xp.where(path, M, xp.ones_like(M)))
    total = xp.sum(xp.where(path, M, xp.zeros_like(M)))
    return LayerPolicy(source, xp.sum(xp.astype(~reuse, xp.int64)), bottleneck, total)


def _logits(xp: Any, q: Any, k: Any, mask: Any, scale: float | None) -> tuple[Any, Any]:
    """Return scaled scores and who sees whom, (B, H, G, Tq, T) each."""
    (B, Hq, Tq, d), (H, T) = q.shape, k.shape[1:3]
    scale = d**-0.5 if scale is None else scale
    grouped = xp.reshape(q * scale, (B, H, Hq // H, Tq, d))
    z = grouped @ xp.matrix_transpose(k)[:, :, None, :, :]
    if mask is None:
        return z, xp.ones(z.shape, dtype=xp.bool, device=device(q))
    return z, xp.reshape(xp.broadcast_to(mask, (B, Hq, Tq, T)), z.shape)


def _exponentials(xp: Any, z: Any, visible: Any) -> tuple[Any, Any]:
    """Return exponentials, 0 where hidden, and their sum, 1 for a row that sees nothing."""
    if z.shape[-1] == 0:
        return z, xp.ones((*z.shape[:-1], 1), dtype=z.dtype, device=device(z))
    z = xp.where(visible, z, xp.full_like(z, -math.inf))
    top = xp.max(z, axis=-1, keepdims=True)
    e = xp.exp(z - xp.where(xp.isfinite(top), top, xp.zeros_like(top)))
    total = xp.sum(e, axis=-1, keepdims=True)
    return e, xp.where(total > 0, total, xp.ones_like(total))


def _kept(
    xp: Any, a: Any, visible: Any, n_keep: int, *, block_size: int, share_heads: bool = False, **forced: int
) -> Any:
    """Return which keys are kept, for all query heads of a key head alike: (B, H, 1, Tq, T)."""
    G, T = a.shape[2], a.shape[-1]
    w = xp.sum(a, axis=2, keepdims=True) / G
    seen = xp.any(visible, axis=2, keepdims=True)
    rank, usable = w, seen
    if share_heads:
        rank = xp.broadcast_to(xp.sum(w, axis=1, keepdims=True), w.shape)
        usable = xp.broadcast_to(xp.any(seen, axis=1, keepdims=True), seen.shape)
    chosen = _critical(xp, rank, usable, n_keep, block_size=block_size, **forced)
    tokens = xp.broadcast_to(chosen[..., None], (*chosen.shape, block_size))
    return xp.reshape(tokens, (*chosen.shape[:-1], chosen.shape[-1] * block_size))[..., :T] & seen


def _critical(xp: Any, w: Any, visible: Any, k: int, *, block_size: int, sink: int, recent: int) -> Any:
    """Return which blocks are critical: those above the k-th largest, and of equal ones the first."""
    B = xp.sum(_in_blocks(xp, w, block_size), axis=-1)
    usable = xp.any(_in_blocks(xp, visible, block_size), axis=-1)
    n_b = B.shape[-1]
    if n_b == 0:
        return usable
    number = xp.cumulative_sum(xp.astype(usable, xp.int64), axis=-1)
    forced = (number <= sink // block_size) | (number > number[..., -1:] - recent // block_size)
    B = xp.where(usable, xp.where(forced, xp.full_like(B, math.inf), B), xp.full_like(B, -math.inf))
    count = min(k // block_size, n_b)
    bar = xp.sort(B, axis=-1, descending=True)[..., count - 1 : count]
    above, level = bar < B, bar == B
    room = count - xp.sum(xp.astype(above, xp.int64), axis=-1, keepdims=True)
    filled = level & (xp.cumulative_sum(xp.astype(level, xp.int64), axis=-1) <= room)
    return (above | filled) & usable


def _positions(xp: Any, mask: Any, count: int) -> Any:
    """Return the places of True along the last axis, ascending, −1 where there are fewer than ``count``."""
    n = mask.shape[-1]
    places = xp.arange(n, dtype=xp.int64, device=device(mask))
    found = xp.sort(xp.where(mask, places, xp.full_like(places, n)), axis=-1)[..., :count]
    return xp.where(found < n, found, xp.full_like(found, -1))


def _in_blocks(xp: Any, x: Any, block_size: int) -> Any:
    """Return (..., T) as (..., n_b, b), filled up with zeros."""
    T = x.shape[-1]
    n_b = -(-T // block_size)
    filling = xp.zeros((*x.shape[:-1], n_b * block_size - T), dtype=x.dtype, device=device(x))
    return xp.reshape(xp.concat([x, filling], axis=-1), (*x.shape[:-1], n_b, block_size))


def _quantile(xp: Any, x: Any, share: float) -> Any:
    """Return a linear quantile along the second axis of (H, S, L), as (H, 1, L)."""
    S = x.shape[1]
    at = share * (S - 1)
    below = math.floor(at)
    ordered = xp.sort(x, axis=1)
    a, b = ordered[:, below : below + 1, :], ordered[:, min(below + 1, S - 1) : min(below + 1, S - 1) + 1, :]
    return a + (at - below) * (b - a)
