"""The decoder of LRGT: learned queries read the merged tokens, then a small grid of them grows into voxels.

From the Long-Range Grouping Transformer (2308.08724); equation source ``models/decoder/decoder.py`` and
``models/transformer_base/decoder/standard_layers.py`` of the released code, commit a09fc43.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.lrgt_attention import (
    BlockWeights,
    GroupAttentionWeights,
    as_weights,
    mlp,
    multi_head_attention,
    transformer_block,
)
from refattn.layers.lrgt_voxels import conv_transpose3d, cube_side, fold_voxels, unfold_voxels
from refattn.primitives.activations import sigmoid
from refattn.primitives.arguments import as_float, require
from refattn.primitives.norms import batch_norm, layer_norm

__all__ = [
    "DecoderStages",
    "DecoderWeights",
    "QueryBlockWeights",
    "UpConvWeights",
    "UpsamplingWeights",
    "decoder_queries",
    "lrgt_decoder",
    "progressive_decoder",
]


class QueryBlockWeights(NamedTuple):
    """Parameters of a block in which queries attend to each other and to a context.

    Attributes
    ----------
    norm1_w, norm1_b, norm2_w, norm2_b, norm3_w, norm3_b : ndarray, shape (D,)
        Before self-attention, before cross-attention, and before the MLP.
    attn1, attn2 : GroupAttentionWeights
        Self-attention and cross-attention.
    w_1, b_1, w_2, b_2 : ndarray, shapes (D, E), (E,), (E, D), (D,)
        The MLP.
    """

    norm1_w: np.ndarray
    norm1_b: np.ndarray
    attn1: GroupAttentionWeights
    norm2_w: np.ndarray
    norm2_b: np.ndarray
    attn2: GroupAttentionWeights
    norm3_w: np.ndarray
    norm3_b: np.ndarray
    w_1: np.ndarray
    b_1: np.ndarray
    w_2: np.ndarray
    b_2: np.ndarray


class UpConvWeights(NamedTuple):
    """A transposed convolution (C, O, 4, 4, 4) without bias, and the batch normalisation behind it, four (O,)."""

    w: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


class UpsamplingWeights(NamedTuple):
    """Parameters of the up-sampling decoder; widths follow from the kernels, 768 → 96 → 12 → 3 → 1 as published.

    Attributes
    ----------
    blocks1, blocks2, blocks3, blocks4 : tuple of BlockWeights
        Two blocks a unit as published; of widths 768, 96, 12·2³ = 96 and 3·4³ = 192.
    upconv1, upconv2, upconv3 : UpConvWeights
        Each doubles the grid.
    w_out : ndarray, shape (3, 1, 1, 1, 1)
        The last map, without bias.
    """

    blocks1: tuple[BlockWeights, ...]
    upconv1: UpConvWeights
    blocks2: tuple[BlockWeights, ...]
    upconv2: UpConvWeights
    blocks3: tuple[BlockWeights, ...]
    upconv3: UpConvWeights
    blocks4: tuple[BlockWeights, ...]
    w_out: np.ndarray


class DecoderWeights(NamedTuple):
    """Parameters of the whole decoder.

    Attributes
    ----------
    queries : ndarray, shape (n³, D)
        Learned; 64 as published.
    query_blocks : tuple of QueryBlockWeights
        One as published.
    norm_w, norm_b : ndarray, shape (D,)
        The normalisation between queries and up-sampling.
    upsampling : UpsamplingWeights
        The rest.
    """

    queries: np.ndarray
    query_blocks: tuple[QueryBlockWeights, ...]
    norm_w: np.ndarray
    norm_b: np.ndarray
    upsampling: UpsamplingWeights


class DecoderStages(NamedTuple):
    """Grids on the way, for n³ tokens.

    Attributes
    ----------
    upconv1_out, upconv2_in : ndarray, shape (B, C₁, 2n, 2n, 2n)
        Before and after the blocks of the second unit.
    upconv2_out, upconv3_in : ndarray, shape (B, C₂, 4n, 4n, 4n)
        Before and after the third unit.
    """

    upconv1_out: np.ndarray
    upconv2_in: np.ndarray
    upconv2_out: np.ndarray
    upconv3_in: np.ndarray


def lrgt_decoder(context: Any, weights: DecoderWeights, *, num_heads: int = 12, eps: float = 1e-5) -> np.ndarray:
    """Turn merged tokens into the probability that each voxel is filled.

    Parameters
    ----------
    context : array_like, shape (B, M, D)
        Merged tokens.
    weights : DecoderWeights
        Parameters.
    num_heads : int
        The number of heads H of every attention.
    eps : float
        Of all normalisations.

    Returns
    -------
    ndarray, shape (B, 1, 8n, 8n, 8n)
        Numbers in (0, 1); 32³ voxels for n³ = 64 queries.

    Raises
    ------
    ValueError
        As `decoder_queries` and `progressive_decoder`.
    """
    context = as_float("context", context, ndim=3)
    weights = as_weights("weights", weights, context.dtype)
    x = decoder_queries(context, weights.queries, weights.query_blocks, num_heads=num_heads, eps=eps)
    x = layer_norm(x, weights.norm_w, weights.norm_b, eps=eps)  # (B, n³, D)
    y: np.ndarray = progressive_decoder(x, weights.upsampling, num_heads=num_heads, eps=eps)
    return y


def decoder_queries(
    context: Any, queries: Any, blocks: tuple[QueryBlockWeights, ...], *, num_heads: int, eps: float = 1e-5
) -> np.ndarray:
    """Let learned queries read the merged tokens: self-attention, cross-attention, MLP, each behind a normalisation.

    Parameters
    ----------
    context : array_like, shape (B, M, D)
        Merged tokens; they are not normalised.
    queries : array_like, shape (Q, D)
        Learned, the same for every batch element.
    blocks : tuple of QueryBlockWeights
        In order.
    num_heads : int
        The number of heads H, a divisor of D.
    eps : float
        Of the layer normalisations.

    Returns
    -------
    ndarray, shape (B, Q, D)
        In the dtype of ``context``.

    Raises
    ------
    ValueError
        If widths disagree or the heads do not divide D.
    """
    context, queries = as_float("context", context, ndim=3), as_float("queries", queries, ndim=2)
    B, _, D = context.shape
    require(queries.shape[1] == D, f"queries has shape {queries.shape}, expected (Q, {D})")
    no_queries = np.zeros_like(context, shape=(B, *queries.shape))
    x: np.ndarray = queries.astype(context.dtype, copy=False) + no_queries  # (B, Q, D)
    for block in as_weights("blocks", blocks, context.dtype):
        # eq: lrgt-12
        normed = layer_norm(x, block.norm1_w, block.norm1_b, eps=eps)
        x = x + multi_head_attention(normed, normed, block.attn1, num_heads=num_heads)
        normed = layer_norm(x, block.norm2_w, block.norm2_b, eps=eps)
        x = x + multi_head_attention(normed, context, block.attn2, num_heads=num_heads)
        x = x + mlp(layer_norm(x, block.norm3_w, block.norm3_b, eps=eps), block)
    return x


def progressive_decoder(
    tokens: Any,
    weights: UpsamplingWeights,
    *,
    num_heads: int = 12,
    eps: float = 1e-5,
    bn_eps: float = 1e-5,
    return_stages: bool = False,
) -> Any:
    """Grow n³ tokens into (8n)³ voxels, attending at every size.

    1. Low resolution: blocks on n³ tokens, double the grid; blocks on (2n)³ tokens, double it again: u₂.
    2. High resolution: fold 2³ cells into a token, blocks, unfold, add to u₂, double the grid: u₃.
    3. Fold 4³ cells into a token, blocks, unfold, add to u₃, map every cell to one number, sigmoid.

    Parameters
    ----------
    tokens : array_like, shape (B, n³, D)
        Read from the merged tokens.
    weights : UpsamplingWeights
        Parameters.
    num_heads : int
        The number of heads H; it divides the width of every unit.
    eps, bn_eps : float
        Of the layer and the batch normalisations.
    return_stages : bool
        Return the grids on the way too.

    Returns
    -------
    voxels : ndarray, shape (B, 1, 8n, 8n, 8n)
        Numbers in (0, 1).
    stages : DecoderStages
        Only with ``return_stages``.

    Raises
    ------
    ValueError
        If the number of tokens is no cube, widths disagree, or the heads do not divide one.

    Notes
    -----
    All attention is over at most (2n)³ tokens; folding keeps it there while the grid grows. The released code hands a
    softmax dropout of 0.4 to these blocks and never applies it, and says 1e-6 in a comment where 1e-5 is used. Batch
    normalisation is that of inference.
    """
    x = as_float("tokens", tokens, ndim=3)
    cube_side(x.shape[1])
    weights = as_weights("weights", weights, x.dtype)

    def blocks(x: np.ndarray, unit: tuple[BlockWeights, ...]) -> np.ndarray:
        for block in unit:
            x = transformer_block(x, block, num_heads=num_heads, eps=eps)
        return x

    u0 = unfold_voxels(blocks(x, weights.blocks1), channels=x.shape[-1], r=1)  # (B, D, n, n, n)
    u1 = _double(u0, weights.upconv1, bn_eps)  # (B, C₁, 2n, 2n, 2n)
    grown = unfold_voxels(blocks(fold_voxels(u1, r=1), weights.blocks2), channels=u1.shape[1], r=1)
    u2 = _double(grown, weights.upconv2, bn_eps)  # (B, C₂, 4n, 4n, 4n)
    # eq: lrgt-15
    refined = u2 + unfold_voxels(blocks(fold_voxels(u2, r=2), weights.blocks3), channels=u2.shape[1], r=2)
    u3 = _double(refined, weights.upconv3, bn_eps)  # (B, C₃, 8n, 8n, 8n)
    finest = u3 + unfold_voxels(blocks(fold_voxels(u3, r=4), weights.blocks4), channels=u3.shape[1], r=4)
    voxels = sigmoid(conv_transpose3d(finest, weights.w_out, stride=1, padding=0))  # (B, 1, 8n, 8n, 8n)
    return (voxels, DecoderStages(u1, grown, u2, refined)) if return_stages else voxels


def _double(x: np.ndarray, weights: UpConvWeights, eps: float) -> np.ndarray:
    """Double the grid, normalise its channels, and cut off what is negative."""
    wide = conv_transpose3d(x, weights.w)  # (B, O, 2h, 2w, 2l)
    normed = batch_norm(wide, weights.mean, weights.variance, weights.weight, weights.bias, eps=eps, axis=1)
    kept: np.ndarray = np.maximum(normed, 0)
    return kept
