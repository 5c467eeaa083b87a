"""Long-range grouping attention: tokens of all views attend within groups, each a thumbnail of every view (2308.08724).

Multi-view reconstruction wants every view to see every other. Attention over all tokens is dear; attention among
neighbours sees only a corner. Here each group takes every s-th row and column of each view. Groups are made in
`refattn.layers.lrgt_grouping`, the attention inside them in `refattn.layers.lrgt_attention`; equation labels are those
of the page.
"""

from __future__ import annotations

import math
from operator import index
from typing import TYPE_CHECKING, Any

from refattn.layers.lrgt_attention import (
    GroupAttentionWeights,
    affine,
    as_weights,
    attend,
    check_attention,
    multi_head_attention,
    project,
)
from refattn.layers.lrgt_grouping import (
    KINDS,
    check_grid,
    check_views,
    group_labels,
    group_tokens,
    grouping_mask,
    ungroup_tokens,
)
from refattn.primitives.arguments import as_float, require, require_one_of
from refattn.primitives.convolution import depthwise_conv2d

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "KINDS",
    "GroupAttentionWeights",
    "attention_macs",
    "group_labels",
    "group_tokens",
    "grouping_mask",
    "intra_view_attention",
    "long_range_grouping_attention",
    "ungroup_tokens",
]


def long_range_grouping_attention(
    x: Any,
    weights: GroupAttentionWeights,
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
    """Attend across all views, inside groups of tokens that are spread over each view.

    1. Project to queries, keys and values.
    2. Collect each group's tokens from all views.
    3. Softmax attention inside each group, head by head.
    4. Put the tokens back into their views.
    5. Add the inter-view feature signature, a depth-wise 3 × 3 convolution of each view's own map of values.
    6. Project.

    Parameters
    ----------
    x : array_like, shape (B·V, P, D)
        Tokens; view v of batch element b is row b·V + v, the P = g² tokens of a view stand row by row.
    weights : GroupAttentionWeights
        Parameters.
    num_views : int
        V.
    num_heads : int
        The number of heads H, a divisor of D.
    grid : int, optional
        g, tokens per side; √P if not given.
    stride : int
        s, a divisor of g: s² groups of (g/s)²·V tokens. 1 is attention over everything, g joins only the same place
        of all views.
    kind : {"long", "short", "token", "full"}
        How groups are made, see `group_labels`; the mechanism itself is ``long``.
    signature : bool
        Whether step 5 is done.
    scale : float, optional
        Factor of the logits; (D/H)^(−1/2) if not given.
    return_attn : bool
        Return the attention weights too.

    Returns
    -------
    y : ndarray, shape (B·V, P, D)
        In the dtype of ``x``.
    attn : ndarray, shape (B, groups, H, n·V, n·V)
        Only with ``return_attn``; each row sums to 1, tokens in the order of `group_tokens`.

    Raises
    ------
    ValueError
        If P is no square and the grid is not given, the stride does not divide it, B·V is no multiple of V, the heads
        do not divide D, a weight has another shape, or the signature is asked for and has no weights.

    Notes
    -----
    Attention has no position term, and the places inside a group are far apart; the signature tells each token what
    surrounds it in its own view, which is how we read its name, InterViewSignature [inferred]. It is neither scaled
    nor part of the softmax, and goes through the output projection. The released code divides 14 by the stride
    whatever the grid; here any grid works. Its masked branch calls a method that does not exist, and is left out.

    References
    ----------
    2308.08724, figure 1; the released ``models/transformer_base/attention.py``, lines 83 to 146.
    """
    x = as_float("x", x, ndim=3)
    grid = _side(x.shape[1]) if grid is None else grid
    check_grid(grid, stride, kind)
    check_views(x, num_views, grid)
    weights = as_weights("weights", weights, x.dtype)
    check_attention(weights, x.shape[-1], num_heads, scale)
    groups: dict[str, Any] = {"num_views": num_views, "grid": grid, "stride": stride, "kind": kind}
    q, k, v = project(x, x, weights)  # (B V, P, D) each
    q_g, k_g, v_g = (group_tokens(t, **groups) for t in (q, k, v))  # (B, groups, n V, D) each
    out, attn = attend(q_g, k_g, v_g, num_heads=num_heads, scale=scale)
    o = ungroup_tokens(out, **groups)  # (B V, P, D)
    if signature:
        o = o + _signature(v, weights, grid)
    # eq: lrgt-5
    y = affine(o, weights.w_o, weights.b_o)
    return (y, attn) if return_attn else y


def intra_view_attention(
    x: Any, weights: GroupAttentionWeights, *, num_heads: int, scale: float | None = None
) -> np.ndarray:
    """Attend inside each view with the weights of the grouped layer; the signature is not added.

    Parameters
    ----------
    x : array_like, shape (B·V, P, D)
        Tokens of each view.
    weights : GroupAttentionWeights
        Parameters.
    num_heads : int
        The number of heads H, a divisor of D.
    scale : float, optional
        Factor of the logits; (D/H)^(−1/2) if not given.

    Returns
    -------
    ndarray, shape (B·V, P, D)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If a shape disagrees or the heads do not divide D.
    """
    x = as_float("x", x, ndim=3)
    return multi_head_attention(x, x, weights, num_heads=num_heads, scale=scale)


def attention_macs(*, num_views: int, grid: int, width: int, stride: int = 7, kind: str = "long") -> int:
    """Return the multiply-adds of scores and averages in one layer, projections left out.

    Parameters
    ----------
    num_views, grid, width : int
        V, g and D.
    stride : int
        s, for ``long`` and ``short``.
    kind : {"long", "short", "token", "full", "intra"}
        A kind of group, or ``intra`` for attention inside each view.

    Returns
    -------
    int
        2(VP)²D divided by the number of groups, and 2VP²D inside views.

    Raises
    ------
    ValueError
        If a size is negative, or as `group_labels`.
    """
    require_one_of("kind", kind, (*KINDS, "intra"))
    require(min(index(num_views), index(width)) >= 0, f"num_views={num_views!r} and width={width!r} must be >= 0")
    tokens = grid * grid
    if kind == "intra":
        return 2 * num_views * tokens**2 * width
    check_grid(grid, stride, kind)
    side = {"token": grid, "full": 1}.get(kind, stride)
    return 2 * (num_views * tokens) ** 2 * width // side**2


def _signature(v: np.ndarray, weights: GroupAttentionWeights, grid: int) -> np.ndarray:
    """Convolve each view's map of values, one kernel a channel."""
    if weights.ifs_w is None:
        raise ValueError("weights.ifs_w is None: the signature needs its kernels, or signature=False")
    image = v.reshape(len(v), grid, grid, v.shape[-1])  # (B V, g, g, D)
    # eq: lrgt-4
    return depthwise_conv2d(image, weights.ifs_w, weights.ifs_b).reshape(v.shape)


def _side(tokens: int) -> int:
    side = math.isqrt(tokens)
    require(side * side == tokens, f"x has P={tokens} tokens in a view, no square: give the grid")
    return side
