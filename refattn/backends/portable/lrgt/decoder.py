"""Queries and up-sampling: one product spreads every cell, and axis after axis the overlaps are added up."""

from __future__ import annotations

from functools import reduce
from itertools import product
from typing import Any

from array_api_compat import array_namespace

from refattn.backends.portable.lrgt.attention import cross_attention
from refattn.backends.portable.lrgt.pointwise import layer_norm, mlp
from refattn.layers.lrgt_decoder import DecoderStages

__all__ = [
    "conv_transpose3d",
    "decoder_queries",
    "dice_loss",
    "fold_voxels",
    "lrgt_decoder",
    "progressive_decoder",
    "unfold_voxels",
]


def lrgt_decoder(context: Any, weights: Any, *, num_heads: int = 12, eps: float = 1e-5) -> Any:
    """Turn merged tokens into voxels."""
    x = decoder_queries(context, weights.queries, weights.query_blocks, num_heads=num_heads, eps=eps)
    x = layer_norm(x, weights.norm_w, weights.norm_b, eps)
    return progressive_decoder(x, weights.upsampling, num_heads=num_heads, eps=eps)


def decoder_queries(context: Any, queries: Any, blocks: Any, *, num_heads: int, eps: float = 1e-5) -> Any:
    """Let the queries read the context."""
    xp = array_namespace(context)
    x = xp.broadcast_to(queries, (context.shape[0], *queries.shape))
    for w in blocks:
        normed = layer_norm(x, w.norm1_w, w.norm1_b, eps)
        x = x + cross_attention(normed, normed, w.attn1, num_heads=num_heads)
        x = x + cross_attention(layer_norm(x, w.norm2_w, w.norm2_b, eps), context, w.attn2, num_heads=num_heads)
        x = x + mlp(layer_norm(x, w.norm3_w, w.norm3_b, eps), w)
    return x


def progressive_decoder(
    tokens: Any,
    weights: Any,
    *,
    num_heads: int = 12,
    eps: float = 1e-5,
    bn_eps: float = 1e-5,
    return_stages: bool = False,
) -> Any:
    """Double the grid three times, attending at every size."""

    def attended(u: Any, unit: Any, r: int) -> Any:
        x = fold_voxels(u, r=r)
        for w in unit:
            normed = layer_norm(x, w.norm1_w, w.norm1_b, eps)
            x = x + cross_attention(normed, normed, w.attn, num_heads=num_heads)
            x = x + mlp(layer_norm(x, w.norm2_w, w.norm2_b, eps), w)
        return unfold_voxels(x, channels=u.shape[1], r=r)

    u0 = attended(unfold_voxels(tokens, channels=tokens.shape[-1], r=1), weights.blocks1, 1)
    u1 = _double(u0, weights.upconv1, bn_eps)
    grown = attended(u1, weights.blocks2, 1)
    u2 = _double(grown, weights.upconv2, bn_eps)
    refined = u2 + attended(u2, weights.blocks3, 2)
    u3 = _double(refined, weights.upconv3, bn_eps)
    finest = u3 + attended(u3, weights.blocks4, 4)
    logits = conv_transpose3d(finest, weights.w_out, stride=1, padding=0)
    voxels = _sigmoid(logits)
    return (voxels, DecoderStages(u1, grown, u2, refined)) if return_stages else voxels


def conv_transpose3d(x: Any, w: Any, *, stride: int = 2, padding: int = 1) -> Any:
    """Multiply every cell by the whole kernel, then add up what overlaps, one axis at a time."""
    xp = array_namespace(x)
    B, C, *cells = x.shape
    _, O, *taps = w.shape
    spread = xp.reshape(xp.permute_dims(x, (0, 2, 3, 4, 1)), (-1, C)) @ xp.reshape(w, (C, -1))
    out = xp.reshape(spread, (B, *cells, O, *taps))
    for axis in (1, 2, 3):
        # the taps of this axis, behind the channels, come next to their cells
        order = [a for a in range(out.ndim) if a != 5]
        out = xp.permute_dims(out, (*order[: axis + 1], 5, *order[axis + 1 :]))
        out = _overlap_add(out, axis, stride, padding)
    return xp.permute_dims(out, (0, 4, 1, 2, 3))


def fold_voxels(x: Any, *, r: int) -> Any:
    """Collect the cells of each place in the cubes, then the places."""
    xp = array_namespace(x)
    B, C = x.shape[:2]
    places = [x[:, :, a::r, b::r, c::r] for a, b, c in product(range(r), repeat=3)]
    stacked = xp.stack(places, axis=2)  # (B, C, r³, h/r, w/r, l/r)
    count = stacked.shape[3] * stacked.shape[4] * stacked.shape[5]
    return xp.permute_dims(xp.reshape(stacked, (B, C * r**3, count)), (0, 2, 1))


def unfold_voxels(tokens: Any, *, channels: int, r: int) -> Any:
    """Put the cells of each cube beside those of its neighbours."""
    xp = array_namespace(tokens)
    B, count, _ = tokens.shape
    n = round(count ** (1 / 3))
    cubes = xp.reshape(xp.permute_dims(tokens, (0, 2, 1)), (B, channels, r, r, r, n, n, n))
    return xp.reshape(xp.permute_dims(cubes, (0, 1, 5, 2, 6, 3, 7, 4)), (B, channels, n * r, n * r, n * r))


def dice_loss(pred: Any, target: Any, *, smooth: float = 1.0, reduction: str = "mean") -> Any:
    """Return (Σp² + Σt² − Σpt) / (Σp² + Σt² + smooth), the loss on one fraction line."""
    xp = array_namespace(pred)
    axes = tuple(range(1, pred.ndim))
    squares = xp.sum(pred * pred + target * target, axis=axes)
    loss = (squares - xp.sum(pred * target, axis=axes)) / (squares + smooth)
    return xp.mean(loss) if reduction == "mean" else loss


def _overlap_add(x: Any, axis: int, stride: int, padding: int) -> Any:
    """Merge the axes of cells and taps: tap i of cell y lands at stride·y + i − padding."""
    xp = array_namespace(x)
    n, k = x.shape[axis : axis + 2]
    shifts = -(-k // stride)
    blocks = _padded(x, axis + 1, 0, shifts * stride - k)
    head, tail = x.shape[:axis], x.shape[axis + 2 :]
    blocks = xp.reshape(blocks, (*head, n, shifts, stride, *tail))
    before = (slice(None),) * (axis + 1)
    parts = [_padded(blocks[(*before, q, ...)], axis, q, shifts - 1 - q) for q in range(shifts)]
    line = xp.reshape(reduce(lambda a, b: a + b, parts), (*head, (n + shifts - 1) * stride, *tail))
    return line[(*before[:axis], slice(padding, stride * (n - 1) + k - padding), ...)]


def _padded(x: Any, axis: int, front: int, back: int) -> Any:
    """Put zeros before and behind."""
    xp = array_namespace(x)
    if not front + back:
        return x

    def zeros(count: int) -> Any:
        shape = list(x.shape)
        shape[axis] = count
        return xp.broadcast_to(xp.zeros_like(x[(slice(None),) * axis + (slice(0, 1), ...)]), tuple(shape))

    return xp.concat([zeros(front), x, zeros(back)], axis=axis)


def _double(x: Any, w: Any, eps: float) -> Any:
    """Double the grid; the batch normalisation becomes one factor and one summand a channel."""
    xp = array_namespace(x)
    factor = w.weight / xp.sqrt(w.variance + eps)
    shift = w.bias - w.mean * factor
    wide = conv_transpose3d(x, w.w) * factor[:, None, None, None] + shift[:, None, None, None]
    return xp.where(wide > 0, wide, xp.zeros_like(wide))


def _sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e^−x) through the exponential that does not overflow."""
    xp = array_namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))
