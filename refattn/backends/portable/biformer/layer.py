"""The layer, channels last and channels first."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace, is_torch_namespace

from refattn.backends.portable.biformer.local import constant, depthwise_conv2d, pool_regions, zeros_around
from refattn.backends.portable.biformer.regional import over_regions, region_routing
from refattn.layers.biformer import BRAAux, BRAWeights

__all__ = ["affine", "bi_level_routing_attention", "nchw_bra"]


def bi_level_routing_attention(
    x: Any,
    weights: BRAWeights,
    *,
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
    return_aux: bool = False,
) -> Any:
    """Attend to the regions that fit best; see `refattn.layers.biformer.bi_level_routing_attention`."""
    xp = array_namespace(x)
    w = BRAWeights(*weights)
    B, H, W, C = x.shape
    Cq = (w.w_qkv.shape[1] - C) // 2
    h, wd, rows, columns = _cut(H, W, n_win, pad_mode)
    if pad_mode == "input":
        x = _fill_up(xp, x, rows * h, columns * wd)
    u = affine(x, w.w_qkv, w.b_qkv)
    cut = (rows, columns, h, wd)
    u_r = _regions(xp, _fill_up(xp, u, rows * h, columns * wd), cut)  # (B, R, h, w, 2 Cq + C)
    there = constant(xp, _presence(x.shape[1], x.shape[2], cut), x)  # (R, h w)
    x_r = _regions(xp, _fill_up(xp, x, rows * h, columns * wd), cut)
    mean = xp.sum(xp.reshape(x_r, (B, rows * columns, h * wd, C)), axis=2) / xp.sum(there, axis=1, keepdims=True)
    means = affine(mean, w.w_qkv[:, : 2 * Cq], None if w.b_qkv is None else w.b_qkv[: 2 * Cq])  # (B, R, 2 Cq)
    means = means if diff_routing else _detached(xp, means)
    q_regions, k_regions = means[..., :Cq], means[..., Cq:]
    index, rho = region_routing(q_regions, k_regions, w.w_r, w.b_r, topk=topk, scale=scale)
    kv = pool_regions(u_r[..., Cq:], mode=kv_pool, ratio=kv_ratio, per_region=kv_per_region)
    out, attn = over_regions(
        pool_regions(u_r[..., :Cq]),
        kv[..., :Cq],
        kv[..., Cq:],
        index,
        rho if soft_routing else None,
        there > 0 if pad_mode == "masked" else None,
        num_heads=num_heads,
        scale=scale,
        with_weights=return_aux,
    )
    out = _image(xp, xp.reshape(out, (B, rows * columns, h, wd, C)), cut)[:, :H, :W, :]
    if w.lepe_w is not None:
        out = out + depthwise_conv2d(u[..., 2 * Cq :], w.lepe_w, w.lepe_b)[:, :H, :W, :]
    y = out if w.w_o is None else affine(out, w.w_o, w.b_o)
    return (y, BRAAux(index, rho, q_regions, k_regions, attn)) if return_aux else y


def nchw_bra(
    x: Any,
    weights: BRAWeights,
    *,
    num_heads: int = 8,
    n_win: int = 7,
    topk: int = 4,
    scale: float | None = None,
    pad_mode: str = "projected",
    return_aux: bool = False,
) -> Any:
    """Bi-level routing attention of channels-first maps; see `refattn.layers.biformer_nchw.nchw_bra`."""
    xp = array_namespace(x)
    y, aux = bi_level_routing_attention(
        xp.permute_dims(x, (0, 2, 3, 1)),
        weights,
        num_heads=num_heads,
        n_win=n_win,
        topk=topk,
        scale=scale,
        pad_mode=pad_mode,
        return_aux=True,
    )
    y = xp.permute_dims(y, (0, 3, 1, 2))
    return (y, aux) if return_aux else y


def _cut(H: int, W: int, n_win: int, pad_mode: str) -> tuple[int, int, int, int]:
    """Return height and width of a region, and the numbers of region rows and columns."""
    if pad_mode in ("projected", "masked"):
        h, w = H // n_win, W // n_win
        return h, w, -(-H // h), -(-W // w)
    return -(-H // n_win), -(-W // n_win), n_win, n_win


def _presence(H: int, W: int, cut: tuple[int, int, int, int]) -> np.ndarray:
    """Return 1 for each place of a region that holds a token of the map, and 0 for the others: (R, h w)."""
    rows, columns, h, w = cut
    down = (np.arange(rows * h) < H).reshape(rows, 1, h, 1)
    right = (np.arange(columns * w) < W).reshape(1, columns, 1, w)
    return np.reshape((down & right).astype(np.float64), (rows * columns, h * w))


def _regions(xp: Any, x: Any, cut: tuple[int, int, int, int]) -> Any:
    rows, columns, h, w = cut
    B, C = x.shape[0], x.shape[-1]
    x = xp.permute_dims(xp.reshape(x, (B, rows, h, columns, w, C)), (0, 1, 3, 2, 4, 5))
    return xp.reshape(x, (B, rows * columns, h, w, C))


def _image(xp: Any, x: Any, cut: tuple[int, int, int, int]) -> Any:
    rows, columns, h, w = cut
    B, C = x.shape[0], x.shape[-1]
    x = xp.permute_dims(xp.reshape(x, (B, rows, columns, h, w, C)), (0, 1, 3, 2, 4, 5))
    return xp.reshape(x, (B, rows * h, columns * w, C))


def _fill_up(xp: Any, x: Any, height: int, width: int) -> Any:
    x = zeros_around(xp, x, -3, 0, height - x.shape[-3])
    return zeros_around(xp, x, -2, 0, width - x.shape[-2])


def affine(x: Any, w: Any, b: Any) -> Any:
    """Return x w + b, or x w."""
    return x @ w if b is None else x @ w + b


def _detached(xp: Any, x: Any) -> Any:
    """Stop gradients, where there are any."""
    if is_torch_namespace(xp):
        return x.detach()
    return import_module("jax.lax").stop_gradient(x) if is_jax_namespace(xp) else x
