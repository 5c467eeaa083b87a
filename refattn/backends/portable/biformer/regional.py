"""Routing and attention over gathered regions, a few groups of bounded memory at a time."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

__all__ = ["attend", "over_regions", "region_routing", "regional_attention"]

_SCORES_AT_ONCE = 1 << 21  # entries of the score matrix that are held at one time


def region_routing(
    q_regions: Any, k_regions: Any, w_r: Any = None, b_r: Any = None, *, topk: int, scale: float | None = None
) -> tuple[Any, Any]:
    """Choose the best regions for each region; see `refattn.layers.biformer_routing.region_routing`."""
    xp = array_namespace(q_regions)
    scale = q_regions.shape[-1] ** -0.5 if scale is None else scale
    if w_r is not None:
        q_regions, k_regions = q_regions @ w_r, k_regions @ w_r
    if b_r is not None:
        q_regions, k_regions = q_regions + b_r, k_regions + b_r
    logits = (q_regions @ xp.matrix_transpose(k_regions)) * scale  # (B, R, Rk)
    index = xp.argsort(-logits, axis=-1, stable=True)[..., :topk]  # (B, R, k)
    return index, _softmax(xp, xp.take_along_axis(logits, index, axis=-1))


def regional_attention(
    q: Any,
    k: Any,
    v: Any,
    region_index: Any,
    region_weight: Any = None,
    key_mask: Any = None,
    *,
    num_heads: int,
    scale: float | None = None,
) -> tuple[Any, Any]:
    """Attend to the tokens of the chosen regions; see `refattn.layers.biformer_routing.regional_attention`."""
    return over_regions(
        q, k, v, region_index, region_weight, key_mask, num_heads=num_heads, scale=scale, with_weights=True
    )


def over_regions(
    q: Any,
    k: Any,
    v: Any,
    index: Any,
    weight: Any,
    key_mask: Any,
    *,
    num_heads: int,
    scale: float | None,
    with_weights: bool,
) -> tuple[Any, Any]:
    """Attend by groups, one for each batch element, head and query region: (G, n, d) to (G, topk nk, d)."""
    xp = array_namespace(q)
    B, R, n, Cq = q.shape
    _, Rk, nk, C = v.shape
    M, topk = num_heads, index.shape[-1]
    G = B * M * R
    index = _per_head(xp, index, (B, M, R, topk))
    first = xp.reshape(xp.arange(B * M, dtype=index.dtype, device=device(index)) * Rk, (B, M, 1, 1))
    flat = xp.reshape(index + first, (G * topk,))
    keys = xp.take(_by_head(xp, k, M, (B * M * Rk, nk * (Cq // M))), flat, axis=0)
    values = xp.take(_by_head(xp, v, M, (B * M * Rk, nk * (C // M))), flat, axis=0)
    rho = None if weight is None else _per_token(xp, _per_head(xp, weight, (B, M, R, topk)), (G, topk), nk)
    visible = None
    if key_mask is not None:
        visible = xp.reshape(xp.take(key_mask, xp.reshape(index, (G * topk,)), axis=0), (G, 1, topk * nk))
    out, attn = attend(
        xp,
        _by_head(xp, q, M, (G, n, Cq // M)),
        xp.reshape(keys, (G, topk * nk, Cq // M)),
        xp.reshape(values, (G, topk * nk, C // M)),
        Cq**-0.5 if scale is None else scale,
        rho,
        visible,
        with_weights=with_weights,
    )
    out = xp.permute_dims(xp.reshape(out, (B, M, R, n, C // M)), (0, 2, 3, 1, 4))
    attn = None if attn is None else xp.reshape(attn, (B, M, R, n, topk * nk))
    return xp.reshape(out, (B, R, n, C)), attn


def attend(
    xp: Any, q: Any, k: Any, v: Any, scale: float, rho: Any, visible: Any, *, with_weights: bool
) -> tuple[Any, Any]:
    """Return softmax(scale ρ q kᵀ) (ρ v) and, if wanted, the softmax, a few groups at a time."""
    G, n, N = q.shape[0], q.shape[1], k.shape[1]
    step = max(1, _SCORES_AT_ONCE // max(n * N, 1))
    outs, weights = [], []
    for g in range(0, max(G, 1), step):
        here = slice(g, min(g + step, G))
        scores = (q[here, :, :] * scale) @ xp.matrix_transpose(k[here, :, :])  # (g, n, N)
        scores = scores if rho is None else scores * rho[here, :, :]
        P = _softmax(xp, scores, None if visible is None else visible[here, :, :])
        outs.append((P if rho is None else P * rho[here, :, :]) @ v[here, :, :])  # (g, n, d)
        weights.append(P if with_weights else None)
    if len(outs) == 1:
        return outs[0], weights[0]
    return xp.concat(outs, axis=0), xp.concat(weights, axis=0) if with_weights else None


def _softmax(xp: Any, x: Any, where: Any = None) -> Any:
    if where is not None:
        # hidden entries cannot be the largest, and their exponentials are dropped below
        x = xp.where(where, x, xp.min(x, axis=-1, keepdims=True))
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    if where is not None:
        e = xp.where(where, e, xp.zeros_like(e))
    return e / xp.sum(e, axis=-1, keepdims=True)


def _by_head(xp: Any, x: Any, M: int, shape: tuple[int, ...]) -> Any:
    """Bring the heads of (B, R, n, C) next to the batch and lay the result out as ``shape``."""
    B, R, n, C = x.shape
    return xp.reshape(xp.permute_dims(xp.reshape(x, (B, R, n, M, C // M)), (0, 3, 1, 2, 4)), shape)


def _per_head(xp: Any, x: Any, shape: tuple[int, ...]) -> Any:
    return xp.broadcast_to(xp.expand_dims(x, axis=1) if x.ndim == 3 else x, shape)


def _per_token(xp: Any, weight: Any, shape: tuple[int, int], nk: int) -> Any:
    G, topk = shape
    spread = xp.broadcast_to(xp.reshape(weight, (G, topk, 1)), (G, topk, nk))
    return xp.reshape(spread, (G, 1, topk * nk))
