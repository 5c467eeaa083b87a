"""The BiFormer block: a convolution that tells positions, routed or dense attention, and an MLP.

BiFormer, arXiv 2303.08810, section 3.4 and figure 3; equation source ``models/biformer.py`` and ``models/_common.py``
of the released code, commit 1697bbb.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np

from refattn.layers.biformer import BRAOptions, BRAWeights, bi_level_routing_attention
from refattn.layers.biformer_routing import regional_attention
from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_float, require
from refattn.primitives.convolution import depthwise_conv2d
from refattn.primitives.norms import layer_norm

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DENSE_HEADS", "BlockWeights", "biformer_block", "conv_mixer", "dense_attention"]

DENSE_HEADS = 8
"""Heads of the dense variants, whatever the width."""


class BlockWeights(NamedTuple):
    """Parameters of one block; linear maps are stored (in, out).

    Attributes
    ----------
    attn : BRAWeights
        For every variant of the attention: ``w_qkv`` is the first map, the convolution and ``w_o`` follow.
    norm1_w, norm1_b, norm2_w, norm2_b : ndarray, shape (C,)
        The two layer normalisations.
    w_1, b_1, w_2, b_2 : ndarray, shapes (C, E), (E,), (E, C), (C,)
        The MLP; E / C is the MLP ratio.
    pos_w, pos_b : ndarray, shapes (C, 3, 3) and (C,), optional
        The convolutional position embedding.
    mlp_w, mlp_b : ndarray, shapes (E, 3, 3) and (E,), optional
        The depth-wise convolution inside the MLP.
    gamma_1, gamma_2 : ndarray, shape (C,), optional
        Layer scale.
    """

    attn: BRAWeights
    norm1_w: np.ndarray
    norm1_b: np.ndarray
    norm2_w: np.ndarray
    norm2_b: np.ndarray
    w_1: np.ndarray
    b_1: np.ndarray
    w_2: np.ndarray
    b_2: np.ndarray
    pos_w: np.ndarray | None = None
    pos_b: np.ndarray | None = None
    mlp_w: np.ndarray | None = None
    mlp_b: np.ndarray | None = None
    gamma_1: np.ndarray | None = None
    gamma_2: np.ndarray | None = None


def biformer_block(
    x: np.ndarray,
    weights: BlockWeights,
    *,
    topk: int = 4,
    pre_norm: bool = True,
    eps: float = 1e-6,
    **options: Unpack[BRAOptions],
) -> np.ndarray:
    """Tell positions by a convolution, exchange information by attention, transform each token by an MLP.

    1. x ← x + dwconv₃ₓ₃(x).
    2. x ← x + γ₁ attention(norm(x)).
    3. x ← x + γ₂ mlp(norm(x)).

    Parameters
    ----------
    x : ndarray, shape (B, H, W, C)
        Feature maps, channels last.
    weights : BlockWeights
        Parameters.
    topk : int
        The attention: above 0, bi-level routing attention with so many regions; −1, `dense_attention` without local
        enhancement; −2, `dense_attention` with it; 0, `conv_mixer`.
    pre_norm : bool
        False puts the normalisation behind each sum: x ← norm(x + γ₁ attention(x)).
    eps : float
        Of the layer normalisations.
    **options
        Further options of `bi_level_routing_attention`; the dense variants take none.

    Returns
    -------
    ndarray, shape (B, H, W, C)
        The output.

    Raises
    ------
    ValueError
        If ``topk`` is below −2, shapes disagree, or as `bi_level_routing_attention` says.

    Notes
    -----
    The released block takes (B, C, H, W) and moves the axes at once; here the channels stay last.

    References
    ----------
    BiFormer, arXiv 2303.08810, section 3.4.
    """
    x = as_float("x", x, ndim=4)
    require(topk >= -2, f"topk={topk} must be positive, or one of 0, −1, −2")
    attend = _mixer(topk, weights.attn, options)
    gamma_1, gamma_2 = _layer_scale(weights.gamma_1), _layer_scale(weights.gamma_2)
    if weights.pos_w is not None:
        # eq: blk-1
        x = x + depthwise_conv2d(x, weights.pos_w, weights.pos_b)  # (B, H, W, C)

    def norm1(t: np.ndarray) -> np.ndarray:
        return layer_norm(t, weights.norm1_w, weights.norm1_b, eps=eps)

    def norm2(t: np.ndarray) -> np.ndarray:
        return layer_norm(t, weights.norm2_w, weights.norm2_b, eps=eps)

    if not pre_norm:
        x = norm1(x + gamma_1 * attend(x))  # (B, H, W, C)
        return norm2(x + gamma_2 * _mlp(x, weights))
    # eq: blk-2
    x = x + gamma_1 * attend(norm1(x))  # (B, H, W, C)
    # eq: blk-3
    y: np.ndarray = x + gamma_2 * _mlp(norm2(x), weights)
    return y


def dense_attention(x: np.ndarray, weights: BRAWeights) -> np.ndarray:
    """Attend from every token to every token: the last stage, whose map is too small to be cut into regions.

    Parameters
    ----------
    x : ndarray, shape (B, H, W, C)
        Feature maps.
    weights : BRAWeights
        ``w_qkv`` (C, 3 C), usually without bias; ``w_o``, ``b_o``; ``lepe_w``, ``lepe_b`` or None.

    Returns
    -------
    ndarray, shape (B, H, W, C)
        The output.

    Raises
    ------
    ValueError
        If `DENSE_HEADS` does not divide C or shapes disagree.

    Notes
    -----
    Unlike the routed layer, the released dense layer scales by the width of a head and adds the convolution of its
    input, not of its values.
    """
    x = as_float("x", x, ndim=4)
    B, H, W, C = x.shape
    w_qkv = as_float("weights.w_qkv", weights.w_qkv)
    require(w_qkv.shape == (C, 3 * C), f"weights.w_qkv has shape {w_qkv.shape}, expected {(C, 3 * C)}")
    require(C % DENSE_HEADS == 0, f"the width {C} is not divisible by the {DENSE_HEADS} heads of dense attention")
    u = _affine(x, w_qkv, weights.b_qkv).reshape(B, 1, H * W, 3 * C)  # one region that holds every token
    everything = np.zeros((B, 1, 1), dtype=np.int64)
    # eq: blk-dense
    out, _ = regional_attention(
        u[..., :C],
        u[..., C : 2 * C],
        u[..., 2 * C :],
        everything,
        num_heads=DENSE_HEADS,
        scale=1.0 / math.sqrt(C // DENSE_HEADS),
    )  # (B, 1, H W, C)
    out = out.reshape(B, H, W, C)
    if weights.lepe_w is not None:
        out = out + depthwise_conv2d(x, weights.lepe_w, weights.lepe_b)
    return out if weights.w_o is None else _affine(out, weights.w_o, weights.b_o)


def conv_mixer(x: np.ndarray, weights: BRAWeights) -> np.ndarray:
    """Mix tokens by a depth-wise convolution between two linear maps: the block without attention.

    Parameters
    ----------
    x : ndarray, shape (B, H, W, C)
        Feature maps.
    weights : BRAWeights
        ``w_qkv`` (C, C) with ``b_qkv`` is the first map, ``lepe_w`` the convolution, ``w_o`` the last map.

    Returns
    -------
    ndarray, shape (B, H, W, C)
        The output.

    Raises
    ------
    ValueError
        If the convolution or the last map is missing, or shapes disagree.
    """
    x = as_float("x", x, ndim=4)
    lepe_w, w_o = weights.lepe_w, weights.w_o
    if lepe_w is None or w_o is None:
        raise ValueError("weights.lepe_w and weights.w_o must be given: the mixer is map, convolution, map")
    # eq: blk-conv
    return _affine(depthwise_conv2d(_affine(x, weights.w_qkv, weights.b_qkv), lepe_w, weights.lepe_b), w_o, weights.b_o)


def _mixer(topk: int, weights: BRAWeights, options: Any) -> Callable[[np.ndarray], Any]:
    if topk > 0:
        return lambda x: bi_level_routing_attention(x, weights, topk=topk, **options)
    if topk == 0:
        return lambda x: conv_mixer(x, weights)
    dense = weights if topk == -2 else weights._replace(lepe_w=None, lepe_b=None)
    return lambda x: dense_attention(x, dense)


def _mlp(x: np.ndarray, weights: BlockWeights) -> np.ndarray:
    hidden = _affine(x, weights.w_1, weights.b_1)  # (B, H, W, E)
    if weights.mlp_w is not None:
        hidden = depthwise_conv2d(hidden, weights.mlp_w, weights.mlp_b)
    return _affine(gelu(hidden), weights.w_2, weights.b_2)  # (B, H, W, C)


def _layer_scale(gamma: np.ndarray | None) -> Any:
    return 1.0 if gamma is None else as_float("gamma", gamma)


def _affine(x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    w = as_float("w", w)
    require(w.ndim == 2 and w.shape[0] == x.shape[-1], f"a map has shape {w.shape}, expected ({x.shape[-1]}, out)")
    y: np.ndarray = x @ w
    if b is not None:
        y = y + as_float("b", b)
    return y
