"""Random weights for stacks of attention variants, and the random reference of the fixed ones."""

from __future__ import annotations

import math

import numpy as np

from refattn.layers.deconstructed import AttentionWeights, MLPWeights
from refattn.layers.deconstructed_stack import BlockWeights, StackWeights
from refattn.primitives.arguments import require

__all__ = ["init_attention", "init_stack", "random_reference"]


def init_attention(rng: np.random.Generator, d: int) -> AttentionWeights:
    """Draw four (d, d) matrices of standard deviation 1/√d."""
    return AttentionWeights(*(rng.standard_normal((4, d, d)) / math.sqrt(d)))


def init_stack(rng: np.random.Generator, *, vocabulary: int, d: int, d_inner: int, n_layers: int) -> StackWeights:
    """Draw a stack: embeddings of standard deviation ½, matrices of 1/√(inputs), norms at one [our definition].

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws every weight.
    vocabulary, d, d_inner, n_layers : int
        Rows of the embedding table, width, inner width of the feed-forward networks, number of blocks.

    Returns
    -------
    StackWeights
        In float64.

    Raises
    ------
    ValueError
        If a size is below one.
    """
    for name, size in (("vocabulary", vocabulary), ("d", d), ("d_inner", d_inner), ("n_layers", n_layers)):
        require(size >= 1, f"{name}={size!r} must be >= 1")
    blocks = tuple(_init_block(rng, d, d_inner) for _ in range(n_layers))
    return StackWeights(rng.standard_normal((vocabulary, d)) / 2, blocks)


def random_reference(rng: np.random.Generator, embedding: np.ndarray, length: int) -> np.ndarray:
    """Draw the reference of ``random_fixed``, normal with the standard deviation of the embedding table.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the reference; it is drawn once in a model's life.
    embedding : ndarray, shape (vocabulary, d)
        The table. The paper does not state a scale; this one is [our definition].
    length : int
        The longest input that the reference is to cover.

    Returns
    -------
    ndarray, shape (length, d)

    Raises
    ------
    ValueError
        If ``length`` is below one.
    """
    require(length >= 1, f"length={length!r} must be >= 1")
    # eq: dec-random
    return rng.standard_normal((length, embedding.shape[-1])) * float(embedding.std())


def _init_block(rng: np.random.Generator, d: int, d_inner: int) -> BlockWeights:
    gate, up = rng.standard_normal((2, d, d_inner)) / math.sqrt(d)
    down = rng.standard_normal((d_inner, d)) / math.sqrt(d_inner)
    return BlockWeights(np.ones(d), init_attention(rng, d), np.ones(d), MLPWeights(gate, up, down))
