"""Random weights for RAT, its baselines and their stacks, drawn as the authors draw them (2507.04416)."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.layers.rat import RATWeights
from refattn.layers.rat_backbone import BackboneWeights, BlockWeights, FFNWeights, LanguageModelWeights
from refattn.layers.rat_baselines import AttentionWeights, RNNWeights
from refattn.primitives.arguments import require_one_of

__all__ = [
    "init_attention_weights",
    "init_backbone_weights",
    "init_ffn_weights",
    "init_language_model_weights",
    "init_rat_weights",
    "init_rnn_weights",
]


def init_rat_weights(
    rng: np.random.Generator, d_model: int, *, num_heads: int, num_groups: int = 2, chunk_size: int = 16
) -> RATWeights:
    """Draw weights as the authors do: N(0, 0.02²), norm 1, and a gate bias that spreads memory over the chunk.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of randomness.
    d_model, num_heads, num_groups, chunk_size : int
        D, H, G and L.

    Returns
    -------
    RATWeights
        Float64.

    Notes
    -----
    The bias is log u, u ~ Uniform(1, L − 1) for each channel (chrono initialisation): at zero input the gate is
    u / (1 + u), which forgets over about u + 1 tokens. For L = 2 this is 0; for L = 1, where the released code leaves
    the bias uninitialised, it is 0 too [our definition].
    """
    columns = 3 * d_model + 2 * num_groups * (d_model // num_heads)
    return RATWeights(
        _normal(rng, d_model, columns),
        _chrono(rng, d_model, chunk_size),
        _normal(rng, d_model, d_model),
        np.ones(d_model),
    )


def init_rnn_weights(rng: np.random.Generator, d_model: int, *, length: int) -> RNNWeights:
    """Draw weights of the recurrent layer, with a gate bias that spreads memory over the sequence.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of randomness.
    d_model : int
        D.
    length : int
        T; the bias is log u, u ~ Uniform(1, T − 1).

    Returns
    -------
    RNNWeights
        Float64.
    """
    return RNNWeights(
        _normal(rng, d_model, 3 * d_model),
        _chrono(rng, d_model, length),
        _normal(rng, d_model, d_model),
        np.ones(d_model),
    )


def init_attention_weights(rng: np.random.Generator, d_model: int) -> AttentionWeights:
    """Draw weights of the attention layer: N(0, 0.02²), norm 1.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of randomness.
    d_model : int
        D.

    Returns
    -------
    AttentionWeights
        Float64.
    """
    return AttentionWeights(_normal(rng, d_model, 3 * d_model), _normal(rng, d_model, d_model), np.ones(d_model))


def init_ffn_weights(rng: np.random.Generator, d_model: int, *, hidden: int | None = None) -> FFNWeights:
    """Draw weights of the feed-forward layer: N(0, 0.02²), norm 1.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of randomness.
    d_model : int
        D.
    hidden : int, optional
        F; 4 D if not given.

    Returns
    -------
    FFNWeights
        Float64.
    """
    hidden = 4 * d_model if hidden is None else hidden
    return FFNWeights(np.ones(d_model), _normal(rng, d_model, hidden), _normal(rng, hidden, d_model))


def init_backbone_weights(
    rng: np.random.Generator,
    d_model: int,
    *,
    kinds: tuple[str, ...] = ("rat", "attention"),
    num_heads: int,
    num_groups: int = 2,
    chunk_size: int = 16,
    length: int = 4096,
) -> BackboneWeights:
    """Draw weights of a stack of blocks.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of randomness.
    d_model, num_heads, num_groups, chunk_size : int
        D, H, G and L.
    kinds : tuple of {"rat", "rnn", "attention"}
        The sequence layer of each block; ``("rat", "attention") * 12`` is the paper's hybrid at 1.3 billion weights.
    length : int
        T, for the gate bias of recurrent blocks.

    Returns
    -------
    BackboneWeights
        Float64.

    Raises
    ------
    ValueError
        For a kind that does not exist.
    """
    for kind in kinds:
        require_one_of("kinds", kind, ("rat", "rnn", "attention"))

    def sequence(kind: str) -> RATWeights | RNNWeights | AttentionWeights:
        if kind == "rat":
            return init_rat_weights(rng, d_model, num_heads=num_heads, num_groups=num_groups, chunk_size=chunk_size)
        return init_rnn_weights(rng, d_model, length=length) if kind == "rnn" else init_attention_weights(rng, d_model)

    blocks = tuple(BlockWeights(sequence(kind), init_ffn_weights(rng, d_model)) for kind in kinds)
    return BackboneWeights(blocks, np.ones(d_model))


def init_language_model_weights(
    rng: np.random.Generator, vocabulary: int, d_model: int, **options: Any
) -> LanguageModelWeights:
    """Draw weights of a language model.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of randomness.
    vocabulary, d_model : int
        V and D.
    **options
        Of `init_backbone_weights`.

    Returns
    -------
    LanguageModelWeights
        Float64.
    """
    embedding = _normal(rng, vocabulary, d_model)
    return LanguageModelWeights(
        embedding, init_backbone_weights(rng, d_model, **options), _normal(rng, d_model, vocabulary)
    )


def _normal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return 0.02 * rng.standard_normal((rows, columns))


def _chrono(rng: np.random.Generator, width: int, span: int) -> np.ndarray:
    # eq: rat-init
    return np.log(rng.uniform(1.0, max(span - 1.0, 1.0), width))
