"""The parts of bi-level routing attention that work on regions: route, pool, gather, attend.

Each query region first chooses the few regions whose mean key fits its mean query; its tokens then attend to the
tokens of those regions alone. BiFormer, arXiv 2303.08810, sections 3.2 and 3.3; the passes are numbered as in
`refattn.layers.biformer.bi_level_routing_attention`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn.primitives.arguments import as_bool, as_float, as_integer, require, require_one_of, require_shape
from refattn.primitives.pooling import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, max_pool2d
from refattn.primitives.regions import region_merge
from refattn.primitives.selection import gather_rows, top_k
from refattn.primitives.softmax import softmax

__all__ = ["KV_POOLS", "bra_dense_mask", "gather_regions", "pool_regions", "region_routing", "regional_attention"]

KV_POOLS = ("identity", "avgpool", "maxpool", "ada_avgpool", "ada_maxpool")
"""How the keys and values of a region may be reduced."""


def region_routing(
    q_regions: np.ndarray,
    k_regions: np.ndarray,
    w_r: np.ndarray | None = None,
    b_r: np.ndarray | None = None,
    *,
    topk: int,
    scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Let every query region choose the ``topk`` key regions that fit it best (pass 5).

    Parameters
    ----------
    q_regions : ndarray, shape (B, R, Cq)
        q̄, the mean query of each region.
    k_regions : ndarray, shape (B, Rk, Cq)
        k̄, the mean key of each region.
    w_r : ndarray, shape (Cq, Cq), optional
        Parametric routing: one linear map for both descriptors.
    b_r : ndarray, shape (Cq,), optional
        Its bias.
    topk : int
        k, how many regions each region keeps.
    scale : float, optional
        Factor of the logits; Cq^(−1/2) if not given.

    Returns
    -------
    index : ndarray of int64, shape (B, R, k)
        I, the chosen regions by descending logit; among equal logits the lowest region first.
    weight : ndarray, shape (B, R, k)
        ρ, the softmax over the k kept logits.

    Raises
    ------
    ValueError
        If shapes disagree, ``topk`` lies outside 1 … Rk or the scale is not positive.

    Notes
    -----
    The order among equal logits is [our definition]; the released code leaves it to ``torch.topk``.

    References
    ----------
    BiFormer, arXiv 2303.08810, eqs. 3 and 4 [recalled].
    """
    q_regions, k_regions = as_float("q_regions", q_regions, ndim=3), as_float("k_regions", k_regions, ndim=3)
    B, _, Cq = q_regions.shape
    Rk = k_regions.shape[1]
    require_shape("k_regions", k_regions, (B, Rk, Cq))
    _check_topk(topk, Rk)
    if w_r is not None:
        w_r = as_float("w_r", w_r)
        require_shape("w_r", w_r, (Cq, Cq))
        q_regions, k_regions = q_regions @ w_r, k_regions @ w_r
    if b_r is not None:
        b_r = as_float("b_r", b_r)
        require_shape("b_r", b_r, (Cq,))
        q_regions, k_regions = q_regions + b_r, k_regions + b_r
    # eq: bra-5
    A = (_positive_scale(scale, Cq) * q_regions) @ np.swapaxes(k_regions, -1, -2)  # (B, R, Rk)
    logits, index = top_k(A, k=topk)  # (B, R, k)
    return index, softmax(logits)


def pool_regions(kv: np.ndarray, *, mode: str = "identity", ratio: int = 4, per_region: int = 4) -> np.ndarray:
    """Reduce the keys and values of each region to fewer tokens (pass 6).

    Parameters
    ----------
    kv : ndarray, shape (B, R, h, w, Ckv)
        The tokens of each region, usually keys and values side by side.
    mode : {"identity", "avgpool", "maxpool", "ada_avgpool", "ada_maxpool"}
        ``avgpool`` and ``maxpool`` slide a window of ``ratio`` × ``ratio`` by its own size and drop the remainder;
        the two adaptive modes make ``per_region`` × ``per_region`` evenly spread bins, which may overlap.
    ratio : int
        Side of the sliding window; 1 changes nothing.
    per_region : int
        P, the number of bins per side.

    Returns
    -------
    ndarray, shape (B, R, n_kv, Ckv)
        The reduced tokens, row by row.

    Raises
    ------
    ValueError
        For an unknown mode, ``ratio`` or ``per_region`` below 1, or a ratio above the region's side.
    NotImplementedError
        For ``fracpool`` and ``conv``, which the released code names and does not have.
    """
    kv = as_float("kv", kv, ndim=5)
    if mode in ("fracpool", "conv"):
        raise NotImplementedError(f"mode={mode!r} has no definition: the released code names it only")
    require_one_of("mode", mode, KV_POOLS)
    # eq: bra-6
    if mode in ("avgpool", "maxpool"):
        require(1 <= ratio <= min(kv.shape[2:4]), f"ratio={ratio} must lie between 1 and the side of {kv.shape[2:4]}")
        kv = (avg_pool2d if mode == "avgpool" else max_pool2d)(kv, kernel=ratio)
    elif mode in ("ada_avgpool", "ada_maxpool"):
        require(per_region >= 1, f"per_region={per_region} must be at least 1")
        kv = (adaptive_avg_pool2d if mode == "ada_avgpool" else adaptive_max_pool2d)(kv, size=per_region)
    B, R, h, w, Ckv = kv.shape
    return kv.reshape(B, R, h * w, Ckv)


def gather_regions(kv: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Collect for every region the tokens of the regions that it chose (pass 7).

    Parameters
    ----------
    kv : ndarray, shape (B, Rk, n, Ckv)
        The tokens of each region.
    index : ndarray of int, shape (B, R, k)
        The chosen regions.

    Returns
    -------
    ndarray, shape (B, R, k, n, Ckv)
        In the order of ``index``.

    Raises
    ------
    ValueError
        If shapes disagree or an index names no region.
    """
    kv, index = as_float("kv", kv, ndim=4), as_integer("index", index, ndim=3)
    require(kv.shape[0] == index.shape[0], f"index has shape {index.shape}, kv {kv.shape}: the batches differ")
    # eq: bra-7
    gathered: np.ndarray = gather_rows(kv, index)  # (B, R, k, n, Ckv)
    return gathered


def regional_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    region_index: np.ndarray,
    region_weight: np.ndarray | None = None,
    key_mask: np.ndarray | None = None,
    *,
    num_heads: int,
    scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attend from each region's tokens to the tokens of its chosen regions (passes 7 and 8).

    Parameters
    ----------
    q : ndarray, shape (B, R, n, Cq)
        Queries by region.
    k : ndarray, shape (B, Rk, nk, Cq)
        Keys by region; the key grid may differ from the query grid.
    v : ndarray, shape (B, Rk, nk, C)
        Values by region.
    region_index : ndarray of int, shape (B, R, topk) or (B, M, R, topk)
        The chosen key regions, for all heads or for each.
    region_weight : ndarray of the shape of ``region_index``, optional
        Soft routing: gathered keys and values are both multiplied by their region's weight.
    key_mask : ndarray of bool, shape (Rk, nk), optional
        True where a key exists; the others get no weight.
    num_heads : int
        M; heads split the channels into contiguous runs.
    scale : float, optional
        Factor of the logits; Cq^(−1/2), of the full width, if not given.

    Returns
    -------
    out : ndarray, shape (B, R, n, C)
        The attended values.
    attn : ndarray, shape (B, M, R, n, topk · nk)
        The softmax over the gathered keys, in the order of ``region_index``.

    Raises
    ------
    ValueError
        If shapes disagree, heads do not divide the channels, an index names no region, or the scale is not positive.

    References
    ----------
    BiFormer, arXiv 2303.08810, eqs. 5 to 7 [recalled]; the per-head graph is that of the released bare operator.
    """
    q, k, v = as_float("q", q, ndim=4), as_float("k", k, ndim=4), as_float("v", v, ndim=4)
    index = as_integer("region_index", region_index)
    _check_regional(q, k, v, index, num_heads)
    B, R, n, Cq = q.shape
    weight = None if region_weight is None else as_float("region_weight", region_weight)
    if weight is not None:
        require_shape("region_weight", weight, index.shape)
    index, weight = _per_head(index), None if weight is None else _per_head(weight)  # (B, M or 1, R, topk)
    q, k, v = (_split_heads(t, num_heads) for t in (q, k, v))  # (B, M, R, n, d), (B, M, Rk, nk, d) twice
    # eq: bra-7
    K, V = gather_rows(k, index), gather_rows(v, index)  # (B, M, R, topk, nk, d)
    if weight is not None:
        K, V = K * weight[..., None, None], V * weight[..., None, None]
    K, V = _join_regions(K), _join_regions(V)  # (B, M, R, topk nk, d)
    where = None if key_mask is None else _gathered_mask(key_mask, index, k.shape[2:4])
    # eq: bra-8
    scores = (_positive_scale(scale, Cq) * q) @ np.swapaxes(K, -1, -2)  # (B, M, R, n, topk nk)
    P = softmax(scores, where=where)
    O = P @ V  # (B, M, R, n, d)
    return np.moveaxis(O, 1, 3).reshape(B, R, n, num_heads * O.shape[-1]), P


def bra_dense_mask(index: np.ndarray, *, n_win: int, height: int, width: int) -> np.ndarray:
    """Write the routing as a mask of dense attention: bi-level routing attention is dense attention under it.

    Parameters
    ----------
    index : ndarray of int, shape (B, R, k)
        The chosen regions.
    n_win : int
        S, the number of regions per side.
    height, width : int
        H and W of the feature map.

    Returns
    -------
    ndarray of bool, shape (B, H · W, H · W)
        True where a query (row) sees a key (column); tokens in row-major order of the image.

    Raises
    ------
    ValueError
        If ``n_win`` does not divide the map or ``index`` does not fit.
    """
    index = as_integer("index", index, ndim=3)
    R = n_win * n_win
    require(index.shape[1] == R, f"index has shape {index.shape}, expected (B, {R}, k)")
    require(height % n_win == 0 and width % n_win == 0, f"H={height}, W={width} are not divisible by n_win={n_win}")
    tokens = np.ones((height // n_win, width // n_win, 1))
    region_of = region_merge(np.arange(R)[:, None, None, None] * tokens, n_win=n_win).astype(int).ravel()  # (H W,)
    chosen = (index[..., None] == np.arange(R)).any(axis=-2)  # (B, R, R)
    mask: np.ndarray = chosen[:, region_of][:, :, region_of]
    return mask


def _check_topk(topk: int, regions: int) -> None:
    require(topk >= 1, f"topk={topk} must be at least 1")
    require(topk <= regions, f"topk={topk} exceeds the number of regions {regions}")


def _check_regional(q: np.ndarray, k: np.ndarray, v: np.ndarray, index: np.ndarray, num_heads: int) -> None:
    B, R, _, Cq = q.shape
    _, Rk, nk, C = v.shape
    require_shape("k", k, (B, Rk, nk, Cq))
    require_shape("v", v, (B, Rk, nk, C))
    _check_heads(Cq, C, num_heads)
    require(index.ndim in (3, 4), f"region_index has shape {index.shape}, expected (B, R, topk) or (B, M, R, topk)")
    require_shape(
        "region_index", index, (B, R, index.shape[-1]) if index.ndim == 3 else (B, num_heads, R, index.shape[-1])
    )
    require(index.shape[-1] >= 1, f"region_index has shape {index.shape}: topk must be at least 1")


def _check_heads(Cq: int, C: int, num_heads: int) -> None:
    divides = num_heads >= 1 and Cq % num_heads == 0 and C % num_heads == 0
    require(divides, f"num_heads={num_heads} must divide the query width {Cq} and the width {C}")


def _positive_scale(scale: float | None, Cq: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(Cq)
    require(0 < scale < math.inf, f"scale={scale!r} must be positive and finite")
    return float(scale)


def _per_head(x: Any) -> Any:
    return x[:, None] if x.ndim == 3 else x


def _split_heads(x: np.ndarray, num_heads: int) -> np.ndarray:
    B, R, n, C = x.shape
    return np.moveaxis(x.reshape(B, R, n, num_heads, C // num_heads), 3, 1)  # (B, M, R, n, d)


def _join_regions(x: np.ndarray) -> np.ndarray:
    *lead, topk, nk, d = x.shape
    return x.reshape(*lead, topk * nk, d)


def _gathered_mask(key_mask: np.ndarray, index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = as_bool("key_mask", key_mask)
    require_shape("key_mask", mask, shape)
    gathered: np.ndarray = mask[index]  # (B, M or 1, R, topk, nk)
    return gathered.reshape(*index.shape[:-1], 1, index.shape[-1] * shape[-1])
