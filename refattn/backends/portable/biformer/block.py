"""The block with every kind of attention."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from refattn.backends.pointwise import gelu, layer_norm
from refattn.backends.portable.biformer.layer import affine, bi_level_routing_attention
from refattn.backends.portable.biformer.local import depthwise_conv2d
from refattn.backends.portable.biformer.regional import attend
from refattn.layers.biformer import BRAWeights
from refattn.layers.biformer_block import DENSE_HEADS, BlockWeights

__all__ = ["biformer_block"]


def biformer_block(
    x: Any, weights: BlockWeights, *, topk: int = 4, pre_norm: bool = True, eps: float = 1e-6, **options: Any
) -> Any:
    """One block of BiFormer; see `refattn.layers.biformer_block.biformer_block`."""
    w = BlockWeights(*weights)
    attn = BRAWeights(*w.attn)
    if w.pos_w is not None:
        x = x + depthwise_conv2d(x, w.pos_w, w.pos_b)
    y = layer_norm(x, w.norm1_w, w.norm1_b, eps) if pre_norm else x
    if topk > 0:
        y = bi_level_routing_attention(y, attn, topk=topk, **options)
    else:
        y = _conv_mixer(y, attn) if topk == 0 else _dense_attention(y, attn, enhance=topk == -2)
    x = x + (y if w.gamma_1 is None else w.gamma_1 * y)
    x = x if pre_norm else layer_norm(x, w.norm1_w, w.norm1_b, eps)
    y = affine(layer_norm(x, w.norm2_w, w.norm2_b, eps) if pre_norm else x, w.w_1, w.b_1)
    y = y if w.mlp_w is None else depthwise_conv2d(y, w.mlp_w, w.mlp_b)
    y = affine(gelu(y), w.w_2, w.b_2)
    x = x + (y if w.gamma_2 is None else w.gamma_2 * y)
    return x if pre_norm else layer_norm(x, w.norm2_w, w.norm2_b, eps)


def _dense_attention(x: Any, w: BRAWeights, *, enhance: bool) -> Any:
    xp = array_namespace(x)
    B, H, W, C = x.shape
    u = xp.reshape(affine(x, w.w_qkv, w.b_qkv), (B, H * W, 3, DENSE_HEADS, C // DENSE_HEADS))
    q, k, v = (xp.permute_dims(u[:, :, i, :, :], (0, 2, 1, 3)) for i in range(3))  # (B, M, N, d)
    q, k, v = (xp.reshape(t, (B * DENSE_HEADS, H * W, C // DENSE_HEADS)) for t in (q, k, v))
    out, _ = attend(xp, q, k, v, (C // DENSE_HEADS) ** -0.5, None, None, with_weights=False)
    out = xp.permute_dims(xp.reshape(out, (B, DENSE_HEADS, H, W, C // DENSE_HEADS)), (0, 2, 3, 1, 4))
    out = xp.reshape(out, (B, H, W, C))
    if enhance and w.lepe_w is not None:
        out = out + depthwise_conv2d(x, w.lepe_w, w.lepe_b)
    return out if w.w_o is None else affine(out, w.w_o, w.b_o)


def _conv_mixer(x: Any, w: BRAWeights) -> Any:
    return affine(depthwise_conv2d(affine(x, w.w_qkv, w.b_qkv), w.lepe_w, w.lepe_b), w.w_o, w.b_o)
