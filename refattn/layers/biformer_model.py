"""BiFormer, the four-stage vision transformer: embed, route within each resolution, pool, classify.

BiFormer, arXiv 2303.08810, section 3.4 and table 1; equation source ``models/biformer.py`` and
``models/biformer_stl.py`` of the released code, commit 1697bbb. All maps are channels last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.layers.biformer import BRAWeights
from refattn.layers.biformer_block import BlockWeights, biformer_block
from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_float, require, require_one_of
from refattn.primitives.convolution import conv2d
from refattn.primitives.norms import batch_norm

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VARIANTS", "BiFormerConfig", "BiFormerWeights", "ConvNormWeights", "biformer_model", "initial_weights"]


@dataclass(frozen=True)
class BiFormerConfig:
    """The shape of a model; the defaults are those of BiFormer-T.

    Attributes
    ----------
    depth, width, topk : tuple of int
        Blocks, channels and the attention's ``topk`` of the four stages.
    n_win : int
        S, the regions per side in every stage.
    head_dim, mlp_ratio, lepe_kernel : int
        Width of a head of routed attention, E / C of the MLP, side of the local enhancement's kernel.
    layout : {"biformer", "swin"}
        ``biformer`` embeds by overlapping 3 × 3 convolutions followed by a norm, and each block tells positions.
        ``swin``, of the ablation model STL, embeds by patches, puts the norm before later embeddings, and has no
        position embedding.
    channels, classes : int
        Of the images, and of the logits.
    """

    depth: tuple[int, ...] = (2, 2, 8, 2)
    width: tuple[int, ...] = (64, 128, 256, 512)
    topk: tuple[int, ...] = (1, 4, 16, -2)
    n_win: int = 7
    head_dim: int = 32
    mlp_ratio: int = 3
    lepe_kernel: int = 5
    layout: str = "biformer"
    channels: int = 3
    classes: int = 1000

    def __post_init__(self) -> None:
        """Refuse stages that do not match and unknown layouts."""
        stages = len(self.width)
        same = len(self.depth) == len(self.topk) == stages
        require(same, f"depth={self.depth}, width={self.width}, topk={self.topk} must have the same length")
        require_one_of("layout", self.layout, ("biformer", "swin"))

    def mixing_kernel(self, topk: int) -> int:
        """Return the side of the depth-wise kernel beside, or in the place of, an attention; 0 for none."""
        return {-1: 0, 0: 5}.get(topk, self.lepe_kernel)


VARIANTS = {
    "T": BiFormerConfig(),
    "S": BiFormerConfig(depth=(4, 4, 18, 4)),
    "B": BiFormerConfig(depth=(4, 4, 18, 4), width=(96, 192, 384, 768)),
    "STL": BiFormerConfig(depth=(2, 2, 6, 2), width=(96, 192, 384, 768), mlp_ratio=4, layout="swin"),
}
"""The released models."""


class ConvNormWeights(NamedTuple):
    """A convolution (D, C, k, k) with bias (D,), and the batch normalisation beside it, four vectors."""

    w: np.ndarray
    b: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


class BiFormerWeights(NamedTuple):
    """Parameters of the model.

    Attributes
    ----------
    embeddings : tuple of tuple of ConvNormWeights
        What precedes each stage: two convolutions before the first stage of layout ``biformer``, else one.
    stages : tuple of tuple of BlockWeights
        The blocks.
    mean, variance, weight, bias : ndarray, shape (C₄,)
        The last batch normalisation.
    head_w, head_b : ndarray, shapes (C₄, classes) and (classes,)
        The classifier.
    """

    embeddings: tuple[tuple[ConvNormWeights, ...], ...]
    stages: tuple[tuple[BlockWeights, ...], ...]
    mean: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    head_w: np.ndarray
    head_b: np.ndarray


def biformer_model(
    images: np.ndarray, weights: BiFormerWeights, *, config: BiFormerConfig, pad_mode: str = "none"
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Classify images.

    Parameters
    ----------
    images : ndarray, shape (B, H, W, channels)
        Images, channels last.
    weights : BiFormerWeights
        Parameters.
    config : BiFormerConfig
        The model's shape.
    pad_mode : str
        Of `refattn.layers.biformer.bi_level_routing_attention`; dense prediction uses ``input``.

    Returns
    -------
    logits : ndarray, shape (B, classes)
        One row for each image.
    maps : tuple of ndarray, shapes (B, Hᵢ, Wᵢ, Cᵢ)
        The output of each stage: 1/4, 1/8, 1/16 and 1/32 of the image's size.

    Raises
    ------
    ValueError
        If shapes disagree, or the regions do not divide a map and ``pad_mode`` is ``none``.

    References
    ----------
    BiFormer, arXiv 2303.08810, figure 3 and table 1.
    """
    x = as_float("images", images, ndim=4)
    maps: list[np.ndarray] = []
    for embedding, blocks, topk in zip(weights.embeddings, weights.stages, config.topk, strict=True):
        # eq: mod-1
        x = _embed(x, embedding, norm_first=config.layout == "swin" and bool(maps))  # (B, Hᵢ, Wᵢ, Cᵢ)
        for block in blocks:
            Cq = (block.attn.w_qkv.shape[1] - x.shape[-1]) // 2
            heads = max(Cq // config.head_dim, 1)
            # eq: mod-2
            x = biformer_block(x, block, topk=topk, num_heads=heads, n_win=config.n_win, pad_mode=pad_mode)
        maps.append(x)
    # eq: mod-3
    x = batch_norm(x, weights.mean, weights.variance, weights.weight, weights.bias)  # (B, H₄, W₄, C₄)
    logits = x.mean(axis=(1, 2)) @ weights.head_w + weights.head_b  # (B, classes)
    return logits, tuple(maps)


def initial_weights(config: BiFormerConfig, rng: np.random.Generator, *, std: float = 0.02) -> BiFormerWeights:
    """Draw the parameters of an untrained model.

    Parameters
    ----------
    config : BiFormerConfig
        The model's shape.
    rng : numpy.random.Generator
        Source of randomness.
    std : float
        Standard deviation of every matrix and kernel; biases are 0, norms the identity.

    Returns
    -------
    BiFormerWeights
        Parameters in float64.
    """
    draw = partial(_draw, rng, std)
    widths = (config.channels, *config.width)
    steps = zip(widths[:-1], config.width, strict=True)
    stages = zip(config.width, config.depth, config.topk, strict=True)
    return BiFormerWeights(
        tuple(_initial_embedding(config, i, C, D, draw) for i, (C, D) in enumerate(steps)),
        tuple(tuple(_initial_block(config, C, topk, draw) for _ in range(depth)) for C, depth, topk in stages),
        *_identity_norm(widths[-1]),
        draw(widths[-1], config.classes),
        np.zeros(config.classes),
    )


def _draw(rng: np.random.Generator, std: float, *shape: int) -> np.ndarray:
    return std * rng.standard_normal(shape)


def _initial_embedding(
    config: BiFormerConfig, i: int, C: int, D: int, draw: Callable[..., np.ndarray]
) -> tuple[ConvNormWeights, ...]:
    if config.layout == "swin":
        side, normed = (2, C) if i else (4, D)
        return (ConvNormWeights(draw(D, C, side, side), np.zeros(D), *_identity_norm(normed)),)
    steps = [(C, D)] if i else [(C, D // 2), (D // 2, D)]
    return tuple(ConvNormWeights(draw(d, c, 3, 3), np.zeros(d), *_identity_norm(d)) for c, d in steps)


def _initial_block(config: BiFormerConfig, C: int, topk: int, draw: Callable[..., np.ndarray]) -> BlockWeights:
    E, ks = config.mlp_ratio * C, config.mixing_kernel(topk)
    first = C if topk == 0 else 3 * C
    lepe = (draw(C, ks, ks), np.zeros(C)) if ks else (None, None)
    position = (draw(C, 3, 3), np.zeros(C)) if config.layout == "biformer" else (None, None)
    return BlockWeights(
        BRAWeights(draw(C, first), np.zeros(first) if topk >= 0 else None, draw(C, C), np.zeros(C), *lepe),
        *(np.ones(C), np.zeros(C), np.ones(C), np.zeros(C)),
        *(draw(C, E), np.zeros(E), draw(E, C), np.zeros(C)),
        *position,
    )


def _identity_norm(C: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(C), np.ones(C), np.ones(C), np.zeros(C)


def _embed(x: np.ndarray, layers: tuple[ConvNormWeights, ...], *, norm_first: bool) -> np.ndarray:
    """Halve the resolution once for each layer, or by the patch size; GELU stands between two layers."""
    for i, layer in enumerate(layers):
        x = gelu(x) if i else x
        side = layer.w.shape[-1]
        stride, padding = (2, 1) if side == 3 else (side, 0)
        if norm_first:
            x = conv2d(batch_norm(x, *layer[2:]), layer.w, layer.b, stride=stride, padding=padding)
        else:
            x = batch_norm(conv2d(x, layer.w, layer.b, stride=stride, padding=padding), *layer[2:])
    return x  # (B, H', W', D)
