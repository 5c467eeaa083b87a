"""The encoder of LRGT: a vision transformer in which some blocks attend across views.

From the Long-Range Grouping Transformer (2308.08724); equation source ``models/encoder/encoder.py`` and
``models/transformer_base/encoder/transformer_block.py`` of the released code, commit a09fc43.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.lrgt import intra_view_attention, long_range_grouping_attention
from refattn.layers.lrgt_attention import BlockWeights, as_weights, mlp
from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.convolution import conv2d
from refattn.primitives.norms import layer_norm

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["LGA_BLOCKS", "BlockWeights", "EncoderWeights", "embed_patches", "lrgt_encoder", "lrgt_encoder_block"]

LGA_BLOCKS = (5, 7, 9, 11)
"""Blocks of the twelve, counted from 0, that attend across views."""


class EncoderWeights(NamedTuple):
    """Parameters of the encoder.

    Attributes
    ----------
    patch_w, patch_b : ndarray, shapes (D, C, p, p) and (D,)
        The patch embedding; p is the side of a patch.
    position : ndarray, shape (P, D)
        One row for each place: rows 2 and on of the released ``pos_embed``, whose first two belong to tokens that the
        encoder drops.
    blocks : tuple of BlockWeights
        In order.
    norm_w, norm_b : ndarray, shape (D,)
        The last layer normalisation.
    """

    patch_w: np.ndarray
    patch_b: np.ndarray
    position: np.ndarray
    blocks: tuple[BlockWeights, ...]
    norm_w: np.ndarray
    norm_b: np.ndarray


def lrgt_encoder_block(
    x: Any,
    weights: BlockWeights,
    *,
    num_views: int,
    num_heads: int,
    use_lga: bool = True,
    grid: int | None = None,
    stride: int = 7,
    kind: str = "long",
    scale: float | None = None,
    eps: float = 1e-6,
) -> np.ndarray:
    """Exchange information by attention, across views or inside each, then transform every token by an MLP.

    Parameters
    ----------
    x : array_like, shape (B·V, P, D)
        Tokens of each view.
    weights : BlockWeights
        Parameters.
    num_views, num_heads : int
        V and H.
    use_lga : bool
        True: `long_range_grouping_attention` with signature. False: `intra_view_attention`, with the same weights.
    grid, stride, kind, scale
        As in `long_range_grouping_attention`.
    eps : float
        Of the layer normalisations.

    Returns
    -------
    ndarray, shape (B·V, P, D)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        As `long_range_grouping_attention`.
    """
    x = as_float("x", x, ndim=3)
    weights = as_weights("weights", weights, x.dtype)
    normed = layer_norm(x, weights.norm1_w, weights.norm1_b, eps=eps)  # (B V, P, D)
    if use_lga:
        groups: dict[str, Any] = {"num_views": num_views, "grid": grid, "stride": stride, "kind": kind}
        mixed = long_range_grouping_attention(normed, weights.attn, num_heads=num_heads, scale=scale, **groups)
    else:
        mixed = intra_view_attention(normed, weights.attn, num_heads=num_heads, scale=scale)
    # eq: lrgt-6
    x = x + mixed
    y: np.ndarray = x + mlp(layer_norm(x, weights.norm2_w, weights.norm2_b, eps=eps), weights)
    return y


def lrgt_encoder(
    images: Any,
    weights: EncoderWeights,
    *,
    num_heads: int = 12,
    lga_blocks: Collection[int] = LGA_BLOCKS,
    stride: int = 7,
    kind: str = "long",
    eps: float = 1e-6,
    return_blocks: bool = False,
) -> Any:
    """Turn the views of each object into tokens that know of each other.

    1. Cut every image into patches, embed each, add its place.
    2. Run the blocks; those in ``lga_blocks`` attend across views, the others inside each view.
    3. Normalise.

    Parameters
    ----------
    images : array_like, shape (B, V, C, S, S)
        The views of each object, channels first.
    weights : EncoderWeights
        Parameters; they fix the patch side p, a divisor of S, and the number of blocks.
    num_heads : int
        The number of heads H, a divisor of D.
    lga_blocks : collection of int
        Which blocks attend across views, counted from 0.
    stride, kind
        As in `long_range_grouping_attention`.
    eps : float
        Of the layer normalisations.
    return_blocks : bool
        Return the output of each block too.

    Returns
    -------
    tokens : ndarray, shape (B, V, P, D)
        P = (S/p)² tokens of each view.
    blocks : ndarray, shape (depth, B·V, P, D)
        Only with ``return_blocks``: before the last normalisation.

    Raises
    ------
    ValueError
        If images are not square or patches do not divide them, ``position`` is not (P, D), or as
        `long_range_grouping_attention`.

    Notes
    -----
    The model is DeiT-B/16, distilled, at its published size: S = 224, p = 16, D = 768, twelve blocks. Its class and
    distillation tokens are dropped, and so are their two rows of positions. Four blocks inside the views come first,
    then pairs of one inside and one across.

    References
    ----------
    2308.08724, figure of the network; the released ``models/encoder/encoder.py``.
    """
    images = as_float("images", images, ndim=5)
    B, V = images.shape[:2]
    require(V >= 1, f"images has shape {images.shape}: there must be at least one view")
    weights = as_weights("weights", weights, images.dtype)
    x = embed_patches(images.reshape(B * V, *images.shape[2:]), weights)  # (B V, P, D)
    shared: dict[str, Any] = {"num_views": V, "num_heads": num_heads, "stride": stride, "kind": kind, "eps": eps}
    outputs = []
    for number, block in enumerate(weights.blocks):
        # eq: lrgt-7
        x = lrgt_encoder_block(x, block, use_lga=number in lga_blocks, **shared)  # (B V, P, D)
        outputs.append(x)
    y = layer_norm(x, weights.norm_w, weights.norm_b, eps=eps).reshape(B, V, *x.shape[1:])
    return (y, np.stack([x, *outputs])[1:]) if return_blocks else y  # of no blocks too


def embed_patches(images: np.ndarray, weights: EncoderWeights) -> np.ndarray:
    """Embed the patches of images (B·V, C, S, S) and add their places, (B·V, P, D)."""
    S, p = images.shape[-1], weights.patch_w.shape[-1]
    require(images.shape[-2] == S, f"images has shape {images.shape}: height and width must be equal")
    require(p <= S and S % p == 0, f"images have a side of {S}, no multiple of the patch side {p}")
    maps = conv2d(np.moveaxis(images, 1, -1), weights.patch_w, weights.patch_b, stride=p)  # (B V, g, g, D)
    tokens = maps.reshape(len(maps), (S // p) ** 2, maps.shape[-1])
    require_shape("weights.position", weights.position, tokens.shape[1:])
    placed: np.ndarray = tokens + weights.position
    return placed
