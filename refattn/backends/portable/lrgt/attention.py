"""Grouping by reshaping, and the grouped layer with one product for queries, keys and values."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

from array_api_compat import array_namespace, device

from refattn.backends.portable.lrgt.pointwise import affine

__all__ = [
    "group_tokens",
    "heads_attention",
    "intra_view_attention",
    "long_range_grouping_attention",
    "ungroup_tokens",
]

CACHED = 2**18  # numbers that the signature works on at once


def group_tokens(x: Any, *, num_views: int, grid: int, stride: int = 7, kind: str = "long") -> Any:
    """Write the grid as (t, s, t, s), or (s, t, s, t) for windows, and bring the axes of the groups to the front."""
    xp = array_namespace(x)
    s, t = _split(grid, stride, kind)
    V, D = num_views, x.shape[-1]
    B = x.shape[0] // V
    if kind == "short":
        axes = xp.permute_dims(xp.reshape(x, (B, V, s, t, s, t, D)), (0, 2, 4, 3, 5, 1, 6))
    else:
        axes = xp.permute_dims(xp.reshape(x, (B, V, t, s, t, s, D)), (0, 3, 5, 2, 4, 1, 6))
    return xp.reshape(axes, (B, s * s, t * t * V, D))


def ungroup_tokens(x: Any, *, num_views: int, grid: int, stride: int = 7, kind: str = "long") -> Any:
    """Bring the axes of the groups back between those of the places."""
    xp = array_namespace(x)
    s, t = _split(grid, stride, kind)
    B, V, D = x.shape[0], num_views, x.shape[-1]
    axes = xp.reshape(x, (B, s, s, t, t, V, D))
    order = (0, 5, 1, 3, 2, 4, 6) if kind == "short" else (0, 5, 3, 1, 4, 2, 6)
    return xp.reshape(xp.permute_dims(axes, order), (B * V, grid * grid, D))


def long_range_grouping_attention(
    x: Any,
    weights: Any,
    *,
    num_views: int,
    num_heads: int,
    grid: int | None = None,
    stride: int = 7,
    kind: str = "long",
    signature: bool = True,
    scale: float | None = None,
    return_attn: bool = False,
) -> Any:
    """Attend within groups: all three projections at once, grouped in one movement."""
    xp = array_namespace(x)
    grid = math.isqrt(x.shape[1]) if grid is None else grid
    D, d = x.shape[-1], x.shape[-1] // num_heads
    groups: dict[str, Any] = {"num_views": num_views, "grid": grid, "stride": stride, "kind": kind}
    qkv = _project(x, weights)  # (B V, P, 3 D)
    g = group_tokens(qkv, **groups)  # (B, groups, n, 3 D)
    B, G, n, _ = g.shape
    # each of the three as (B, groups, H, n, d), views of one array
    split = xp.permute_dims(xp.reshape(g, (B, G, n, 3, num_heads, d)), (3, 0, 1, 4, 2, 5))
    out, attn = heads_attention(split[0, ...], split[1, ...], split[2, ...], scale=scale, keep=return_attn)
    joined = xp.reshape(xp.permute_dims(out, (0, 1, 3, 2, 4)), (B, G, n, D))
    o = ungroup_tokens(joined, **groups)  # (B V, P, D)
    if signature:
        o = o + _signature(qkv[..., 2 * D :], weights, grid)
    y = affine(o, weights.w_o, weights.b_o)
    return (y, attn) if return_attn else y


def intra_view_attention(x: Any, weights: Any, *, num_heads: int, scale: float | None = None) -> Any:
    """Attend inside each view."""
    return cross_attention(x, x, weights, num_heads=num_heads, scale=scale)


def cross_attention(
    x: Any, context: Any, weights: Any, *, num_heads: int, scale: float | None = None, key_bias: Any = None
) -> Any:
    """Attend from the tokens of ``x`` to those of ``context``, both (B, N, D)."""
    xp = array_namespace(x)
    pairs = ((x, weights.w_q, weights.b_q), (context, weights.w_k, weights.b_k), (context, weights.w_v, weights.b_v))
    q, k, v = (_heads(affine(*pair), num_heads) for pair in pairs)
    out, _ = heads_attention(q, k, v, scale=scale, key_bias=key_bias)
    B, H, N, d = out.shape
    return affine(xp.reshape(xp.permute_dims(out, (0, 2, 1, 3)), (B, N, H * d)), weights.w_o, weights.b_o)


def heads_attention(
    q: Any, k: Any, v: Any, *, scale: float | None = None, key_bias: Any = None, keep: bool = False
) -> tuple[Any, Any]:
    """Average values (..., M, d) for queries (..., N, d); the division by the sum comes last, on the narrower array."""
    xp = array_namespace(q)
    s = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ xp.matrix_transpose(k)
    if key_bias is not None:
        s = s + key_bias[:, None, None, :]
    e = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
    total = xp.sum(e, axis=-1, keepdims=True)
    return (e @ v) / total, e / total if keep else None


def _split(grid: int, stride: int, kind: str) -> tuple[int, int]:
    """Return s and t of any kind: everything is stride 1, a single place stride g."""
    s = {"token": grid, "full": 1}.get(kind, stride)
    return s, grid // s


def _project(x: Any, weights: Any) -> Any:
    """Return queries, keys and values side by side."""
    xp = array_namespace(x)
    qkv = x @ xp.concat([weights.w_q, weights.w_k, weights.w_v], axis=1)
    biases = (weights.b_q, weights.b_k, weights.b_v)
    if all(b is None for b in biases):
        return qkv
    none = xp.zeros((x.shape[-1],), dtype=x.dtype, device=device(x))
    return qkv + xp.concat([none if b is None else b for b in biases])


def _heads(x: Any, num_heads: int) -> Any:
    xp = array_namespace(x)
    B, N, D = x.shape
    return xp.permute_dims(xp.reshape(x, (B, N, num_heads, D // num_heads)), (0, 2, 1, 3))


def _signature(v: Any, weights: Any, grid: int) -> Any:
    """Convolve the maps, a few at a time: what a cache holds is read nine times, what it does not hold once."""
    xp = array_namespace(v)
    count, P, D = v.shape
    kernel = xp.reshape(xp.permute_dims(weights.ifs_w, (1, 2, 0)), (9, D))
    step = max(1, CACHED // (P * D))
    parts = [v[:0, ...]]
    for begin in range(0, count, step):
        image = xp.reshape(v[begin : min(begin + step, count), ...], (-1, grid, grid, D))
        parts.append(xp.reshape(_nine_taps(_framed(image), kernel, grid), (-1, P, D)))
    out = xp.concat(parts, axis=0)
    return out if weights.ifs_b is None else out + weights.ifs_b


def _framed(image: Any) -> Any:
    """Put a row and a column of zeros on every side."""
    xp = array_namespace(image)
    row = xp.zeros_like(image[:, :1, ...])
    tall = xp.concat([row, image, row], axis=1)
    column = xp.zeros_like(tall[:, :, :1, :])
    return xp.concat([column, tall, column], axis=2)


def _nine_taps(framed: Any, kernel: Any, grid: int) -> Any:
    """Add up the framed maps, shifted, each times its tap (9, D)."""
    taps = [(i, j) for i in range(3) for j in range(3)]
    terms = (framed[:, i : i + grid, j : j + grid, :] * kernel[3 * i + j, :] for i, j in taps)
    return reduce(lambda total, term: total + term, terms)
