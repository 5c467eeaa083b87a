"""Stacks of RAT, RNN and attention layers, each followed by a feed-forward layer (2507.04416).

A block's kind is the type of its weights. The paper's hybrid, RAT-SWA, has RAT in blocks 0, 2, 4, … and attention with
a window of 1024 in blocks 1, 3, 5, ….
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.rat import RATWeights, rat_layer
from refattn.layers.rat_baselines import AttentionWeights, RNNWeights, causal_attention_layer, rnn_layer
from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_float, as_integer, require, require_shape
from refattn.primitives.norms import rms_norm

__all__ = [
    "BackboneWeights",
    "BlockWeights",
    "FFNWeights",
    "LanguageModelWeights",
    "ffn_layer",
    "rat_backbone",
    "rat_language_model",
]


class FFNWeights(NamedTuple):
    """Weights of the feed-forward layer: norm (D,), w1 (D, F), w2 (F, D); F is 4 D in the paper."""

    norm: np.ndarray
    w1: np.ndarray
    w2: np.ndarray


class BlockWeights(NamedTuple):
    """One block: a sequence layer, then a feed-forward layer."""

    sequence: RATWeights | RNNWeights | AttentionWeights
    ffn: FFNWeights


class BackboneWeights(NamedTuple):
    """Blocks in order, and the scale (D,) of the final norm."""

    blocks: tuple[BlockWeights, ...]
    norm: np.ndarray


class LanguageModelWeights(NamedTuple):
    """Embedding (V, D), backbone, and head (D, V); head and embedding are not tied."""

    embedding: np.ndarray
    backbone: BackboneWeights
    head: np.ndarray


def ffn_layer(x: Any, weights: FFNWeights, *, norm_eps: float = 1e-6) -> np.ndarray:
    """Add to each token a function of itself: x + GELU(norm(x) W₁) W₂, with the exact GELU and no biases.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Activations.
    weights : FFNWeights
        See there.
    norm_eps : float
        Added to the mean square in the norm.

    Returns
    -------
    ndarray, shape (B, T, D)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If a weight has not the shape it must have, or ``x`` holds integers.
    """
    x = as_float("x", x, refuse_integers=ValueError)
    width = x.shape[-1]
    hidden = np.shape(weights.w1)[-1]
    require_shape("weights.w1", weights.w1, (width, hidden))
    require_shape("weights.w2", weights.w2, (hidden, width))
    w1, w2 = (w.astype(x.dtype, copy=False) for w in (weights.w1, weights.w2))
    # eq: rat-ffn
    inner = gelu(rms_norm(x, weights.norm, eps=norm_eps) @ w1)  # (B, T, F)
    y: np.ndarray = x + (inner @ w2).astype(x.dtype, copy=False)  # (B, T, D)
    return y


def rat_backbone(
    x: Any,
    weights: BackboneWeights,
    *,
    num_heads: int,
    num_groups: int = 2,
    chunk_size: int = 16,
    window: int | None = None,
    rope_base: float | None = 10000.0,
    norm_eps: float = 1e-6,
    return_layers: bool = False,
) -> Any:
    """Run activations through all blocks and the final norm.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Activations; T is a multiple of ``chunk_size`` if a block is a RAT.
    weights : BackboneWeights
        The kind of each block is the type of its sequence weights.
    num_heads, num_groups, chunk_size, rope_base, norm_eps
        As in `refattn.layers.rat.rat_layer`, for all blocks. RAT blocks rotate by chunk, attention blocks by token.
    window : int, optional
        Of the attention blocks; 1024 in the paper's hybrid. None: full attention.
    return_layers : bool
        Return the activations after each block too.

    Returns
    -------
    y : ndarray, shape (B, T, D)
        In the dtype of ``x``.
    layers : ndarray, shape (number of blocks, B, T, D)
        With ``return_layers`` only; before the final norm.

    Raises
    ------
    ValueError
        As the layers do.
    """
    hidden = as_float("x", x, refuse_integers=ValueError)
    layers = []
    for block in weights.blocks:
        # eq: rat-block
        if isinstance(block.sequence, RATWeights):
            hidden = rat_layer(
                hidden,
                block.sequence,
                num_heads=num_heads,
                num_groups=num_groups,
                chunk_size=chunk_size,
                rope_base=rope_base,
                norm_eps=norm_eps,
            )
        elif isinstance(block.sequence, RNNWeights):
            hidden = rnn_layer(hidden, block.sequence, norm_eps=norm_eps)
        else:
            hidden = causal_attention_layer(
                hidden, block.sequence, num_heads=num_heads, window=window, rope_base=rope_base, norm_eps=norm_eps
            )
        hidden = ffn_layer(hidden, block.ffn, norm_eps=norm_eps)  # (B, T, D)
        layers.append(hidden)
    y = rms_norm(hidden, weights.norm, eps=norm_eps)
    return (y, np.stack(layers)) if return_layers else y


def rat_language_model(tokens: Any, weights: LanguageModelWeights, **options: Any) -> np.ndarray:
    """Return next-token logits: embedding, backbone, linear head.

    Parameters
    ----------
    tokens : array_like of int, shape (B, T)
        Token numbers, 0 to V − 1.
    weights : LanguageModelWeights
        See there.
    **options
        Of `rat_backbone`, but for ``return_layers``.

    Returns
    -------
    ndarray, shape (B, T, V)
        In the dtype of the embedding.

    Raises
    ------
    ValueError
        If a token is not in the vocabulary, or as the layers do.
    """
    tokens = as_integer("tokens", tokens)
    vocabulary = weights.embedding.shape[0]
    require(
        np.all((tokens >= 0) & (tokens < vocabulary)), f"tokens must be in 0..{vocabulary - 1}, the rows of embedding"
    )
    # eq: rat-lm
    logits: np.ndarray = rat_backbone(weights.embedding[tokens], weights.backbone, **options) @ weights.head
    return logits  # (B, T, V)
