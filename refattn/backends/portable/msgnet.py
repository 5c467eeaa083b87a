"""MSGNet in the array-API standard.

Derived from the equations by another route than the reference. Frequencies come from a product with a table of cosines
and sines. Hops, which are linear, trade places with the mixing of channels and are summed by Horner's rule; features
become series by one banded matrix. And no window is ever cut: a segment is a mask over the whole window, where the
zeros that pad the last segment are one more key that counts as often as there are zeros. So no shape depends on the
data, and everything compiles, the choice of scales included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.backends.pointwise import gelu, layer_norm
from refattn.layers.msgnet_scales import ScaleSelection

__all__ = [
    "adaptive_adjacency",
    "graph_block",
    "identify_scales",
    "mixhop_propagate",
    "msgnet_forecast",
    "scale_graph_block",
    "segment_attention",
]

EPS = 1e-5


def identify_scales(x: Any, *, k: int) -> ScaleSelection:
    """Rank the frequencies of a batch by their mean amplitude."""
    xp = array_namespace(x)
    T = x.shape[1]
    f = T // 2 + 1
    angle = 2 * np.pi / T * (np.arange(f)[:, None] * np.arange(T) % T)  # (f, T), small also where T is long
    table = _constant(np.concatenate([np.cos(angle), np.sin(angle)]), x)
    both = table @ x  # (B, 2f, D)
    F = xp.mean(xp.hypot(both[:, :f, :], both[:, f:, :]), axis=2)  # (B, f)
    spectrum = xp.mean(F, axis=0) * _constant(np.arange(f) > 0, x)
    freqs = xp.argsort(-spectrum[1:], stable=True)[:k] + 1
    return ScaleSelection(freqs, T // freqs, xp.take(F, freqs, axis=1), spectrum)


def adaptive_adjacency(e1: Any, e2: Any) -> Any:
    """Return the softmax of the rows of what node vectors have in common."""
    xp = array_namespace(e1)
    common = e1 @ e2
    return _softmax(xp.where(common > 0, common, xp.zeros_like(common)))


def mixhop_propagate(h0: Any, adjacency: Any, *, depth: int = 2, alpha: float = 0.3) -> Any:
    """Apply to the start the matrix of each hop."""
    xp = array_namespace(h0)
    one = _constant(np.eye(adjacency.shape[0]), h0)
    step = (adjacency + one) / (1.0 + xp.sum(adjacency, axis=-1, keepdims=True))
    hops = [one]
    for _ in range(depth):
        hops.append(alpha * one + (1 - alpha) * (step @ hops[-1]))
    return xp.concat([hop @ h0 for hop in hops], axis=1)


def graph_block(x: Any, weights: Any, *, depth: int = 2, alpha: float = 0.3) -> Any:
    """Mix channels first, then hop: Σ_j M_j h_j is a polynomial in the adjacency."""
    xp = array_namespace(x)
    w = weights
    B, T, D = x.shape
    N, C, S = w.e1.shape[0], w.start_b.shape[0], w.mix_b.shape[0]
    step = 0.5 * (adaptive_adjacency(w.e1, w.e2) + _constant(np.eye(N), x))
    h0 = xp.reshape(x, (B * T, D)) @ xp.matrix_transpose(xp.reshape(_start(w, D), (N * C, D)))
    h0 = xp.reshape(h0, (B * T * N, C)) + w.start_b
    terms = [h0 @ xp.matrix_transpose(m) for m in _coefficients(w.mix_w, depth, alpha)]  # (B T N, S) each
    terms = [xp.reshape(term, (B * T, N, S)) for term in terms]
    total = terms[-1]
    for term in terms[-2::-1]:
        total = step @ total + term
    g = gelu(total + w.mix_b)
    if w.end_w.ndim == 1:
        o = xp.reshape(g @ w.end_w[:, None], (B, T, N)) + w.end_b
    else:
        g = xp.reshape(xp.permute_dims(xp.reshape(g, (B, T, N, S)), (0, 2, 3, 1)), (B * N, S * T))
        o = g @ xp.matrix_transpose(xp.reshape(w.end_w, (T, S * T))) + w.end_b  # (B N, T)
        o = xp.matrix_transpose(xp.reshape(o, (B, N, T)))
    return layer_norm(x + o @ xp.matrix_transpose(w.out_w) + w.out_b, w.norm_w, w.norm_b, EPS)


def segment_attention(z: Any, weights: Any, *, n_heads: int, causal: bool = True) -> Any:
    """Attend inside each segment."""
    s = z.shape[1]
    count = _constant(np.tri(s) if causal else np.ones((s, s)), z)
    return _attention_block(z, weights, n_heads, count)


def scale_graph_block(
    x: Any,
    weights: Any,
    *,
    n_heads: int,
    depth: int = 2,
    alpha: float = 0.3,
    causal: bool = True,
    placement: str = "window",
    residual: str = "graph",
) -> Any:
    """Attend, for each scale, over the whole window under the mask of its segments."""
    xp = array_namespace(x)
    w = weights
    selection = identify_scales(x, k=len(w.graphs))
    mixed, zeros, found = x, xp.zeros_like(x[:1, :1, :]), []
    for i, layer in enumerate(w.graphs):
        mixed = graph_block(mixed if placement == "window" else x, layer, depth=depth, alpha=alpha)
        pad = None
        if not causal:
            pad = zeros if placement == "window" else graph_block(zeros, layer, depth=depth, alpha=alpha)
        count = _visible(x, selection.periods[i], causal=causal)
        r = _attention_block(mixed, w.attention, n_heads, count, pad)
        found.append(gelu(layer_norm(r, w.norm_w, w.norm_b, EPS)))
    a = _softmax(selection.amplitudes)[:, None, :]  # (B, 1, k)
    average = xp.sum(xp.stack(found, axis=3) * a[:, :, None, :], axis=3)
    return average + (mixed if residual == "graph" else x)


def msgnet_forecast(
    x: Any,
    weights: Any,
    marks: Any = None,
    *,
    n_heads: int,
    depth: int = 2,
    alpha: float = 0.3,
    causal: bool = True,
    placement: str = "window",
    residual: str = "graph",
) -> Any:
    """Forecast from a batch of windows."""
    xp = array_namespace(x)
    w = weights
    mu = xp.mean(x, axis=1, keepdims=True)
    sd = xp.sqrt(xp.mean((x - mu) ** 2, axis=1, keepdims=True) + EPS)
    e = _embedded((x - mu) / sd, w.embedding, marks)
    for block in w.blocks:
        e = scale_graph_block(
            e,
            block,
            n_heads=n_heads,
            depth=depth,
            alpha=alpha,
            causal=causal,
            placement=placement,
            residual=residual,
        )
        e = layer_norm(e, w.norm_w, w.norm_b, EPS)
    series = w.head.series_w @ xp.matrix_transpose(e) + w.head.series_b[:, None]  # (B, N, T)
    if w.head.time_w.ndim == 3:
        coming = (w.head.time_w @ series[..., None])[..., 0]
    else:
        coming = series @ xp.matrix_transpose(w.head.time_w)
    return xp.matrix_transpose(coming + w.head.time_b) * sd + mu


def _embedded(x: Any, w: Any, marks: Any) -> Any:
    """Multiply the three neighbours of each time, side by side, by one matrix; add place and calendar."""
    xp = array_namespace(x)
    around = xp.concat([xp.roll(x, 1, axis=1), x, xp.roll(x, -1, axis=1)], axis=2)  # (B, T, 3N)
    D, N, taps = w.conv.shape
    kernel = xp.reshape(xp.permute_dims(w.conv, (2, 1, 0)), (taps * N, D))
    e = around @ kernel + w.positions
    if marks is None:
        return e
    if not isinstance(w.marks, tuple):
        return e + marks @ xp.matrix_transpose(w.marks)
    for column, table in enumerate(w.marks):
        rows = xp.take(table, xp.reshape(marks[:, :, column], (-1,)), axis=0)
        e = e + xp.reshape(rows, e.shape)
    return e


def _start(w: Any, D: int) -> Any:
    """Return the map (N, C, D) from features to series: a dense one, or the kernel on N diagonals."""
    xp = array_namespace(w.start_w)
    if w.start_w.ndim == 3:
        return xp.permute_dims(w.start_w, (1, 0, 2))
    C, M = w.start_w.shape
    N = D - M + 1
    tap = np.arange(D) - np.arange(N)[:, None]  # (N, D)
    tap = np.where((tap >= 0) & (tap < M), tap, M)  # beyond the kernel there is a zero
    wide = xp.concat([w.start_w, xp.zeros_like(w.start_w[:, :1])], axis=1)
    taps = xp.asarray(tap.ravel(), device=device(wide))
    return xp.permute_dims(xp.reshape(xp.take(wide, taps, axis=1), (C, N, D)), (1, 0, 2))


def _coefficients(mix_w: Any, depth: int, alpha: float) -> list[Any]:
    """Return the matrices (S, C) of the powers of the adjacency: (1 − α)^i (M_i + α Σ_{j > i} M_j)."""
    C = mix_w.shape[1] // (depth + 1)
    coefficients, later = [], 0.0
    for i in range(depth, -1, -1):
        m = mix_w[:, i * C : (i + 1) * C]
        coefficients.append((1 - alpha) ** i * (m + alpha * later))
        later = later + m
    return coefficients[::-1]


def _visible(x: Any, period: Any, *, causal: bool) -> Any:
    """Return how often each time sees each other one, (T, T); and, if not causal, the padding as one more column."""
    xp = array_namespace(x)
    T = x.shape[1]
    t = xp.arange(T, device=device(x))
    segment = t // period
    same = segment[:, None] == segment
    if causal:
        return xp.astype(same & (t <= t[:, None]), x.dtype)
    last = (T - 1) // period
    missing = (last + 1) * period - T
    padding = xp.astype(segment == last, x.dtype) * xp.astype(missing, x.dtype)
    return xp.concat([xp.astype(same, x.dtype), padding[:, None]], axis=1)


def _attention_block(x: Any, w: Any, n_heads: int, count: Any, pad: Any = None) -> Any:
    """Attend to keys that count so many times; ``pad`` (1, 1, D) is the last of them."""
    xp = array_namespace(x)
    B, T, D = x.shape
    keys = x if pad is None else xp.concat([x, xp.broadcast_to(pad, (B, 1, D))], axis=1)

    def heads(source: Any, m: Any, b: Any) -> Any:
        found = source @ xp.matrix_transpose(m) + b
        return xp.permute_dims(xp.reshape(found, (B, source.shape[1], n_heads, D // n_heads)), (0, 2, 1, 3))

    q = heads(x, w.w_q, w.b_q) * (n_heads / D) ** 0.5
    k, v = (heads(keys, m, b) for m, b in ((w.w_k, w.b_k), (w.w_v, w.b_v)))
    a = _softmax(q @ xp.matrix_transpose(k), count)
    found = xp.reshape(xp.permute_dims(a @ v, (0, 2, 1, 3)), (B, T, D))
    y = layer_norm(x + found @ xp.matrix_transpose(w.w_o) + w.b_o, w.norm1_w, w.norm1_b, EPS)
    hidden = gelu(y @ xp.matrix_transpose(w.w_1) + w.b_1)
    return layer_norm(y + hidden @ xp.matrix_transpose(w.w_2) + w.b_2, w.norm2_w, w.norm2_b, EPS)


def _softmax(s: Any, count: Any = None) -> Any:
    """Return weights that sum to 1 over the last axis, each entry counted as often as ``count`` says."""
    xp = array_namespace(s)
    if count is None:
        e = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
        return e / xp.sum(e, axis=-1, keepdims=True)
    lowest = xp.asarray(-xp.inf, dtype=s.dtype, device=device(s))
    s = xp.where(count > 0, s, lowest)
    e = xp.exp(s - xp.max(s, axis=-1, keepdims=True)) * count
    return e / xp.sum(e, axis=-1, keepdims=True)


def _constant(table: np.ndarray, like: Any) -> Any:
    xp = array_namespace(like)
    return xp.asarray(table.astype(np.float64), dtype=like.dtype, device=device(like))
