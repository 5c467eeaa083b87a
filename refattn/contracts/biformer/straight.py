"""The layer once more, plainly and slowly, with steps that can be swapped for wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.biformer import BRAWeights

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Cut", "Steps", "adaptive_bin", "correlate", "fill_up", "planted", "softmax", "straight_layer"]

Array = Any


class Cut(NamedTuple):
    """Region rows and columns, and height and width of a region."""

    rows: int
    columns: int
    h: int
    w: int


def softmax(x: Array) -> Array:
    """Return the softmax of the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def fill_up(x: Array, cut: Cut) -> Array:
    """Add zeros below and to the right of (B, H, W, C) until the regions fill it."""
    edges = [(0, 0), (0, cut.rows * cut.h - x.shape[1]), (0, cut.columns * cut.w - x.shape[2]), (0, 0)]
    return np.pad(x, edges)


def correlate(image: Array, kernel: Array) -> Array:
    """Slide a kernel (C, ks, ks) over an image (H, W, C) surrounded by zeros."""
    side = kernel.shape[-1] // 2
    padded = np.pad(image, [(side, side), (side, side), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1:], axis=(0, 1))  # (H, W, C, ks, ks)
    return np.sum(windows * kernel, axis=(-2, -1))


def adaptive_bin(a: int, length: int, bins: int) -> slice:
    """Return the part of ``length`` that bin ``a`` covers."""
    return slice(a * length // bins, -(-(a + 1) * length // bins))


def _project(x: Array, w: BRAWeights, cut: Cut, pad_mode: str) -> Array:
    x = fill_up(x, cut) if pad_mode == "input" else x
    u = x @ w.w_qkv
    return u if w.b_qkv is None else u + w.b_qkv


def _partition(u: Array, cut: Cut) -> Array:
    return np.stack(
        [
            u[:, j * cut.h : (j + 1) * cut.h, i * cut.w : (i + 1) * cut.w]
            for j in range(cut.rows)
            for i in range(cut.columns)
        ],
        axis=1,
    )


def _merge(regions: Array, cut: Cut) -> Array:
    lines = [
        np.concatenate([regions[:, j * cut.columns + i] for i in range(cut.columns)], axis=2) for j in range(cut.rows)
    ]
    return np.concatenate(lines, axis=1)


def _present(x: Array, cut: Cut) -> Array:
    return _partition(fill_up(np.ones((1, *x.shape[1:3], 1)), cut), cut)[0] > 0


def _describe(tokens: Array, present: Array) -> Array:
    return np.sum(tokens * present, axis=(2, 3)) / np.sum(present, axis=(1, 2))


def _logits(q_mean: Array, k_mean: Array) -> Array:
    return q_mean @ np.swapaxes(k_mean, -1, -2)


def _select(A: Array, topk: int) -> Array:
    return np.argsort(-A, axis=-1, kind="stable")[..., :topk]


def _route_weights(A: Array, index: Array) -> Array:
    return softmax(np.take_along_axis(A, index, axis=-1))


def _pool_bins(length: int, mode: str, ratio: int, per_region: int) -> list[slice]:
    if mode.startswith("ada"):
        return [adaptive_bin(a, length, per_region) for a in range(per_region)]
    size = 1 if mode == "identity" else ratio
    return [slice(a, a + size) for a in range(0, length - size + 1, size)]


def _scale(Cq: int, _num_heads: int) -> float:
    return float(Cq**-0.5)


def _fetch(kv: Array, chosen: Array, _cut: Cut) -> Array:
    return np.stack([kv[region] for region in chosen])


def _soften(K: Array, V: Array, rho: Array) -> tuple[Array, Array]:
    return K * rho[:, None, None], V * rho[:, None, None]


def _visible(present: Array, chosen: Array, pad_mode: str, n_kv: int) -> Array:
    if pad_mode != "masked":
        return np.ones(len(chosen) * n_kv, dtype=bool)
    return np.concatenate([present[region].ravel() for region in chosen])


def _head(t: Array, m: int, num_heads: int) -> Array:
    d = t.shape[-1] // num_heads
    return t[..., m * d : (m + 1) * d]


def _weigh(scores: Array, _topk: int) -> Array:
    return softmax(scores)


def _enhance(x: Array, u: Array, w: BRAWeights, _cut: Cut) -> Array:
    v = u[..., -x.shape[-1] :]
    local = np.stack([correlate(image, w.lepe_w) for image in v]) if len(v) else np.zeros(v.shape)
    return local if w.lepe_b is None else local + w.lepe_b


def _finish(out: Array, local: Array, w: BRAWeights) -> Array:
    out = out + local
    out = out if w.w_o is None else out @ w.w_o
    return out if w.b_o is None else out + w.b_o


@dataclass(frozen=True)
class Steps:
    """Every step of the layer, each right unless replaced."""

    project: Callable[..., Array] = _project
    partition: Callable[..., Array] = _partition
    merge: Callable[..., Array] = _merge
    present: Callable[..., Array] = _present
    describe: Callable[..., Array] = _describe
    describe_keys: Callable[..., Array] | None = None  # as queries, unless given
    logits: Callable[..., Array] = _logits
    select: Callable[..., Array] = _select
    route_weights: Callable[..., Array] = _route_weights
    pool_bins: Callable[..., list[slice]] = _pool_bins
    scale: Callable[..., float] = _scale
    fetch: Callable[..., Array] = _fetch
    soften: Callable[..., tuple[Array, Array]] = _soften
    visible: Callable[..., Array] = _visible
    head: Callable[..., Array] = _head
    weigh: Callable[..., Array] = _weigh
    enhance: Callable[..., Array] = _enhance
    finish: Callable[..., Array] = _finish
    extra_regions: int = field(default=0)


def planted(**wrong: Any) -> Callable[..., Array]:
    """Return the layer with the named steps replaced."""
    return partial(straight_layer, steps=replace(Steps(), **wrong))


def straight_layer(
    x: Array,
    weights: BRAWeights,
    *,
    steps: Steps | None = None,
    num_heads: int = 8,
    n_win: int = 7,
    topk: int = 4,
    scale: float | None = None,
    kv_pool: str = "identity",
    kv_ratio: int = 4,
    kv_per_region: int = 4,
    soft_routing: bool = False,
    diff_routing: bool = False,
    pad_mode: str = "none",
) -> Array:
    """Compute the layer region by region and head by head; same arguments as the reference, and its steps."""
    del diff_routing
    do, w = steps or Steps(), BRAWeights(*weights)
    H, W, C = x.shape[1:]
    Cq = (w.w_qkv.shape[1] - C) // 2
    cut = _cut(H, W, n_win, pad_mode)
    u = do.project(x, w, cut, pad_mode)
    u_r = do.partition(fill_up(u, cut), cut)  # (B, R, h, w, 2 Cq + C)
    present = do.present(u, cut)  # (R, h, w, 1)
    kv = _pooled(u_r[..., Cq:], do.pool_bins, kv_pool, kv_ratio, kv_per_region)  # (B, R, n_kv, Cq + C)
    q_mean = do.describe(u_r[..., :Cq], present)
    k_mean = do.describe(u_r[..., Cq : 2 * Cq], present) if do.describe_keys is None else do.describe_keys(kv[..., :Cq])
    factor = do.scale(Cq, num_heads) if scale is None else scale
    A = do.logits(_embed(q_mean, w), _embed(k_mean, w)) * factor
    index = do.select(A, min(topk + do.extra_regions, A.shape[-1]))
    rho = do.route_weights(A, index)
    out = np.zeros((*u_r.shape[:4], C))
    for b, r in np.ndindex(*u_r.shape[:2]):
        chosen = do.fetch(kv[b], index[b, r], cut)  # (k, n_kv, Cq + C)
        K, V = chosen[..., :Cq], chosen[..., Cq:]
        if soft_routing:
            K, V = do.soften(K, V, rho[b, r])
        visible = do.visible(present, index[b, r], pad_mode, kv.shape[2])
        q = u_r[b, r, ..., :Cq].reshape(-1, Cq)
        heads = [_one_head(do, q, K, V, visible, m, num_heads, factor) for m in range(num_heads)]
        out[b, r] = _join(do, heads, C).reshape(cut.h, cut.w, C)
    merged = do.merge(out, cut)[:, :H, :W]
    local = do.enhance(x, u, w, cut)[:, :H, :W] if w.lepe_w is not None else 0.0
    return do.finish(merged, local, w)


def _one_head(do: Steps, q: Array, K: Array, V: Array, visible: Array, m: int, num_heads: int, factor: float) -> Array:
    keys = do.head(K, m, num_heads).reshape(len(visible), -1)
    values = do.head(V, m, num_heads).reshape(len(visible), -1)
    scores = factor * do.head(q, m, num_heads) @ keys.T
    return do.weigh(np.where(visible, scores, -1e300), len(K)) @ values


def _join(do: Steps, heads: list[Array], C: int) -> Array:
    """Put the heads back where `Steps.head` took them from."""
    out = np.zeros((len(heads[0]), C))
    places = np.arange(C)
    for m, part in enumerate(heads):
        out[:, do.head(places, m, len(heads))] = part
    return out


def _embed(mean: Array, w: BRAWeights) -> Array:
    mean = mean if w.w_r is None else mean @ w.w_r
    return mean if w.b_r is None else mean + w.b_r


def _pooled(kv_r: Array, bins: Callable[..., list[slice]], mode: str, ratio: int, per_region: int) -> Array:
    reduce = np.max if mode.endswith("maxpool") else np.mean
    rows = bins(kv_r.shape[2], mode, ratio, per_region)
    columns = bins(kv_r.shape[3], mode, ratio, per_region)
    return np.stack([reduce(kv_r[:, :, r, c], axis=(2, 3)) for r in rows for c in columns], axis=2)


def _cut(H: int, W: int, n_win: int, pad_mode: str) -> Cut:
    if pad_mode in ("projected", "masked"):
        h, w = H // n_win, W // n_win
        return Cut(-(-H // h), -(-W // w), h, w)
    return Cut(n_win, n_win, -(-H // n_win), -(-W // n_win))
