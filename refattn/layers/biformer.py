"""Bi-level routing attention: find the regions worth reading first, then attend to their tokens only.

BiFormer, arXiv 2303.08810, section 3; the passes follow `BiLevelRoutingAttention` of the released code
(``ops/bra_legacy.py``, commit 1697bbb). The parts that work on regions stand in `refattn.layers.biformer_routing`,
the channels-first form in `refattn.layers.biformer_nchw`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import numpy as np

from refattn.layers.biformer_routing import pool_regions, region_routing, regional_attention
from refattn.primitives.arguments import as_float, require, require_one_of, require_shape
from refattn.primitives.convolution import depthwise_conv2d
from refattn.primitives.regions import region_merge, region_partition

__all__ = ["PAD_MODES", "BRAAux", "BRAOptions", "BRAWeights", "bi_level_routing_attention"]

PAD_MODES = ("none", "input", "projected", "masked")
"""What becomes of a feature map that the regions do not divide."""


class BRAWeights(NamedTuple):
    """Parameters of the layer; linear maps are stored (in, out), y = x @ w + b.

    Attributes
    ----------
    w_qkv : ndarray, shape (C, 2 Cq + C)
        Columns in the order queries, keys, values; it tells Cq.
    b_qkv : ndarray, shape (2 Cq + C,), optional
        Its bias.
    w_o, b_o : ndarray, shapes (C, C) and (C,), optional
        Output map; left out, the layer ends with the sum of attention and local enhancement.
    lepe_w, lepe_b : ndarray, shapes (C, ks, ks) and (C,), optional
        Depth-wise convolution of the values; left out, nothing is added.
    w_r, b_r : ndarray, shapes (Cq, Cq) and (Cq,), optional
        Parametric routing: one map for both descriptors.
    """

    w_qkv: np.ndarray
    b_qkv: np.ndarray | None = None
    w_o: np.ndarray | None = None
    b_o: np.ndarray | None = None
    lepe_w: np.ndarray | None = None
    lepe_b: np.ndarray | None = None
    w_r: np.ndarray | None = None
    b_r: np.ndarray | None = None


class BRAAux(NamedTuple):
    """What the layer decided on the way.

    Attributes
    ----------
    region_index : ndarray of int64, shape (B, R, k)
        I, the chosen regions by descending logit.
    region_weight : ndarray, shape (B, R, k)
        ρ, their routing weights.
    q_regions, k_regions : ndarray, shape (B, R, Cq)
        The descriptors q̄ and k̄.
    attn : ndarray, shape (B, M, R, h · w, k · n_kv)
        Attention over the gathered tokens.
    """

    region_index: np.ndarray
    region_weight: np.ndarray
    q_regions: np.ndarray
    k_regions: np.ndarray
    attn: np.ndarray


class BRAOptions(TypedDict, total=False):
    """Options of `bi_level_routing_attention` that a block passes on."""

    num_heads: int
    n_win: int
    scale: float | None
    kv_pool: str
    kv_ratio: int
    kv_per_region: int
    soft_routing: bool
    diff_routing: bool
    pad_mode: str


class _Grid(NamedTuple):
    """How a feature map is cut: regions per side, and the size that they cover."""

    n_win: tuple[int, int]
    height: int
    width: int


def bi_level_routing_attention(
    x: np.ndarray,
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
) -> np.ndarray | tuple[np.ndarray, BRAAux]:
    """Attend from every region to the tokens of the ``topk`` regions whose mean key fits its mean query.

    1. Pad the map so that the regions divide it (``pad_mode``).
    2. Project the tokens to queries, keys and values.
    3. Cut the map into regions.
    4. Describe each region by its mean query and its mean key.
    5. Route: every region keeps the ``topk`` regions of largest descriptor product.
    6. Pool the keys and values inside each region (``kv_pool``).
    7. Gather the tokens of the chosen regions; soft routing multiplies them by the routing weights.
    8. Multi-head attention over the gathered tokens.
    9. Put the regions together and add the local enhancement of the values.
    10. Project to the output.

    Parameters
    ----------
    x : ndarray, shape (B, H, W, C)
        Feature maps, channels last.
    weights : BRAWeights
        Parameters; what is left out switches its part off.
    num_heads : int
        M; heads split the channels into contiguous runs.
    n_win : int
        S, the number of regions per side.
    topk : int
        k, the number of regions that each region attends to.
    scale : float, optional
        Factor of routing and attention logits; Cq^(−1/2), of the full query width, if not given.
    kv_pool, kv_ratio, kv_per_region
        ``mode``, ``ratio`` and ``per_region`` of `pool_regions`.
    soft_routing : bool
        Whether gathered keys and values are both multiplied by the routing weight of their region.
    diff_routing : bool
        Whether gradients flow through the descriptors. No number of the forward pass depends on it; it needs
        ``soft_routing``, and parametric routing needs it.
    pad_mode : {"none", "input", "projected", "masked"}
        ``none``: S must divide H and W. ``input``: zeros are added to x below and to the right, and take part as
        tokens. ``projected``: regions of ⌊H/S⌋ × ⌊W/S⌋ tokens, as many as it takes; zeros are added to q, k and v,
        means leave them out, the softmax does not. ``masked``: as ``projected``, and the softmax leaves them out too.
    return_aux : bool
        Whether to return the decisions as well.

    Returns
    -------
    y : ndarray, shape (B, H, W, C)
        The output.
    aux : BRAAux
        Only if ``return_aux``.

    Raises
    ------
    ValueError
        If shapes disagree, the regions do not fit the map, ``topk`` lies outside 1 … R, heads do not divide the
        widths, a kernel side is even, or a mode is unknown.
    NotImplementedError
        For ``diff_routing`` without ``soft_routing`` and for the poolings ``fracpool`` and ``conv``, which the
        released code names and does not have.

    Notes
    -----
    Where code and paper differ, this follows the code. Logits are scaled by the full width Cq, not by the width of a
    head. Tokens padded by ``input`` have q = k = v = bias and take part in means, softmax and local enhancement;
    keys padded by ``projected`` have logit 0 and value 0 and take part in the softmax. ``masked`` is
    [our definition]. Descriptors are means of the keys before pooling. Equal routing logits keep the lowest region
    first [our definition].

    References
    ----------
    BiFormer, arXiv 2303.08810, section 3.2, eqs. 2 to 7 [recalled].
    """
    x = as_float("x", x, ndim=4)
    weights = _checked_weights(x, weights, num_heads)
    _check_routing_mode(weights, soft_routing=soft_routing, diff_routing=diff_routing)
    H, W, C = x.shape[1:]
    grid = _grid(H, W, n_win=n_win, pad_mode=pad_mode, kv_pool=kv_pool)
    # eq: bra-1
    x = _pad(x, grid) if pad_mode == "input" else x  # (B, H', W', C)
    # eq: bra-2
    u = _affine(x, weights.w_qkv, weights.b_qkv)  # (B, H', W', 2 Cq + C)
    Cq = (u.shape[-1] - C) // 2
    # eq: bra-3
    u_r = region_partition(_pad(u, grid), n_win=grid.n_win)  # (B, R, h, w, 2 Cq + C)
    present = region_partition(_pad(np.ones((*x.shape[1:3], 1), x.dtype), grid), n_win=grid.n_win)  # (R, h, w, 1)
    # eq: bra-4
    means = u_r[..., : 2 * Cq].sum(axis=(2, 3)) / present.sum(axis=(1, 2))  # (B, R, 2 Cq)
    q_regions, k_regions = means[..., :Cq], means[..., Cq:]  # (B, R, Cq)
    # eq: bra-5
    index, rho = region_routing(q_regions, k_regions, weights.w_r, weights.b_r, topk=topk, scale=scale)  # (B, R, k)
    # eq: bra-6
    kv = pool_regions(u_r[..., Cq:], mode=kv_pool, ratio=kv_ratio, per_region=kv_per_region)  # (B, R, n_kv, Cq + C)
    q_r, k_r, v_r = _tokens(u_r[..., :Cq]), kv[..., :Cq], kv[..., Cq:]  # (B, R, h w, Cq), (B, R, n_kv, Cq or C)
    # eq: bra-8
    out, attn = regional_attention(
        q_r,
        k_r,
        v_r,
        index,
        region_weight=rho if soft_routing else None,
        key_mask=_tokens(present)[..., 0] > 0 if pad_mode == "masked" else None,
        num_heads=num_heads,
        scale=scale,
    )  # (B, R, h w, C)
    # eq: bra-9
    out = region_merge(out.reshape(*u_r.shape[:-1], C), n_win=grid.n_win)[:, :H, :W]  # (B, H, W, C)
    if weights.lepe_w is not None:
        out = out + depthwise_conv2d(u[..., 2 * Cq :], weights.lepe_w, weights.lepe_b)[:, :H, :W]
    # eq: bra-10
    y = out if weights.w_o is None else _affine(out, weights.w_o, weights.b_o)  # (B, H, W, C)
    return (y, BRAAux(index, rho, q_regions, k_regions, attn)) if return_aux else y


def _checked_weights(x: np.ndarray, weights: BRAWeights, num_heads: int) -> BRAWeights:
    """Return the weights as floating arrays whose shapes fit together and fit ``x``."""
    w = _floating(weights)
    C = x.shape[-1]
    require(w.w_qkv.ndim == 2, f"weights.w_qkv has shape {w.w_qkv.shape}, expected ({C}, 2 Cq + {C})")
    Cq = (w.w_qkv.shape[-1] - C) // 2
    require(Cq >= 1, f"weights.w_qkv has shape {w.w_qkv.shape}, expected ({C}, 2 Cq + {C}) with Cq ≥ 1")
    ks = 1 if w.lepe_w is None else w.lepe_w.shape[-1]
    shapes = ((C, 2 * Cq + C), (2 * Cq + C,), (C, C), (C,), (C, ks, ks), (C,), (Cq, Cq), (Cq,))
    for name, array, shape in zip(w._fields, w, shapes, strict=True):
        if array is not None:
            require_shape(f"weights.{name}", array, shape)
    for of, bias in (("w_o", "b_o"), ("lepe_w", "lepe_b"), ("w_r", "b_r")):
        alone = getattr(w, of) is None and getattr(w, bias) is not None
        require(not alone, f"weights.{bias} is given without weights.{of}")
    divides = num_heads >= 1 and C % num_heads == 0 and Cq % num_heads == 0
    require(divides, f"num_heads={num_heads} must divide the query width {Cq} and the width {C}")
    require(ks % 2 == 1, f"weights.lepe_w has a kernel of {ks} × {ks}: its side must be odd")
    return w


def _floating(weights: BRAWeights) -> BRAWeights:
    pairs = zip(BRAWeights._fields, weights, strict=True)
    arrays: list[Any] = [None if array is None else as_float(f"weights.{name}", array) for name, array in pairs]
    return BRAWeights(*arrays)


def _check_routing_mode(weights: BRAWeights, *, soft_routing: bool, diff_routing: bool) -> None:
    if diff_routing and not soft_routing:
        raise NotImplementedError("diff_routing=True without soft_routing has no definition: the code names it only")
    learnt = weights.w_r is None or diff_routing
    require(learnt, f"weights.w_r is given with diff_routing={diff_routing}: parametric routing learns by gradients")


def _grid(H: int, W: int, *, n_win: int, pad_mode: str, kv_pool: str) -> _Grid:
    require_one_of("pad_mode", pad_mode, PAD_MODES)
    require(n_win >= 1, f"n_win={n_win} must be at least 1")
    require(H >= 1 and W >= 1, f"H={H}, W={W}: an empty feature map has no regions")
    if pad_mode == "none":
        require(H % n_win == 0 and W % n_win == 0, f"H={H}, W={W} are not divisible by n_win={n_win}; see pad_mode")
    if pad_mode in ("none", "input"):
        return _Grid((n_win, n_win), -(-H // n_win) * n_win, -(-W // n_win) * n_win)
    require(min(H, W) >= n_win, f"H={H}, W={W} hold fewer than n_win={n_win} regions per side")
    require(kv_pool == "identity", f"kv_pool={kv_pool!r} cannot pool regions padded by pad_mode={pad_mode!r}")
    h, w = H // n_win, W // n_win
    rows, columns = -(-H // h), -(-W // w)
    return _Grid((rows, columns), rows * h, columns * w)


def _pad(x: np.ndarray, grid: _Grid) -> np.ndarray:
    """Add zeros below and to the right until the regions fill the map."""
    bottom, right = grid.height - x.shape[-3], grid.width - x.shape[-2]
    return np.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, bottom), (0, right), (0, 0)])


def _tokens(x_r: np.ndarray) -> np.ndarray:
    """Read the tokens of each region row by row: (..., h, w, C) to (..., h w, C)."""
    *lead, h, w, C = x_r.shape
    return x_r.reshape(*lead, h * w, C)


def _affine(x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    y: np.ndarray = x @ w
    if b is not None:
        y = y + b
    return y
