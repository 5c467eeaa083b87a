"""The encoder: patches cut by reshaping, then blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace

from refattn.backends.portable.lrgt.attention import intra_view_attention, long_range_grouping_attention
from refattn.backends.portable.lrgt.pointwise import affine, layer_norm, mlp

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["lrgt_encoder", "lrgt_encoder_block"]


def lrgt_encoder_block(
    x: Any,
    weights: Any,
    *,
    num_views: int,
    num_heads: int,
    use_lga: bool = True,
    grid: int | None = None,
    stride: int = 7,
    kind: str = "long",
    scale: float | None = None,
    eps: float = 1e-6,
) -> Any:
    """Attend, across views or inside each, then transform every token."""
    normed = layer_norm(x, weights.norm1_w, weights.norm1_b, eps)
    shared: dict[str, Any] = {"num_heads": num_heads, "scale": scale}
    if use_lga:
        shared |= {"num_views": num_views, "grid": grid, "stride": stride, "kind": kind}
        x = x + long_range_grouping_attention(normed, weights.attn, **shared)
    else:
        x = x + intra_view_attention(normed, weights.attn, **shared)
    return x + mlp(layer_norm(x, weights.norm2_w, weights.norm2_b, eps), weights)


def lrgt_encoder(
    images: Any,
    weights: Any,
    *,
    num_heads: int = 12,
    lga_blocks: Collection[int] = (5, 7, 9, 11),
    stride: int = 7,
    kind: str = "long",
    eps: float = 1e-6,
    return_blocks: bool = False,
) -> Any:
    """Embed the patches as rows of one product, run the blocks, normalise."""
    xp = array_namespace(images)
    B, V, C, S, _ = images.shape
    D, _, p, _ = weights.patch_w.shape
    g = S // p
    patches = xp.permute_dims(xp.reshape(images, (B * V, C, g, p, g, p)), (0, 2, 4, 1, 3, 5))
    kernel = xp.permute_dims(xp.reshape(weights.patch_w, (D, C * p * p)), (1, 0))
    x = affine(xp.reshape(patches, (B * V, g * g, C * p * p)), kernel, weights.patch_b) + weights.position
    options: dict[str, Any] = {"num_views": V, "num_heads": num_heads, "stride": stride, "kind": kind, "eps": eps}
    outputs = []
    for number, block in enumerate(weights.blocks):
        x = lrgt_encoder_block(x, block, use_lga=number in lga_blocks, **options)
        outputs.append(x)
    y = xp.reshape(layer_norm(x, weights.norm_w, weights.norm_b, eps), (B, V, g * g, D))
    return (y, xp.stack([x, *outputs])[1:, ...]) if return_blocks else y
