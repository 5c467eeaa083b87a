"""What RAT costs: multiplications, cache, and bytes moved, beside attention and the RNN (2507.04416) [derived].

Plain arithmetic on sizes. Every function takes lengths as numbers or arrays. One multiplication with its addition
counts as two operations; norms, gates, rotations and the softmax itself are left out, as is usual.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import require

__all__ = [
    "attention_cache_size",
    "attention_flops",
    "attention_step_bytes",
    "flop_crossover",
    "rat_cache_size",
    "rat_flops",
    "rat_step_bytes",
    "rnn_flops",
]


def attention_flops(length: Any, *, d_model: int, window: int | None = None) -> np.ndarray:
    """Return operations per token of a causal attention layer, averaged over the sequence: 8 D² + 2 T D.

    Parameters
    ----------
    length : array_like
        T.
    d_model : int
        D.
    window : int, optional
        Keys i − window to i instead of 0 to i; costs 4 (window + 1) D, if that is less.

    Returns
    -------
    ndarray
        Same shape as ``length``.

    Notes
    -----
    A token sees T/2 keys on average, and each costs 2 D for its score and 2 D for its value.
    """
    length = _length(length)
    keys = length / 2 if window is None else np.minimum(length / 2, window + 1)
    # eq: rat-flops
    flops: np.ndarray = 8.0 * d_model**2 + 4.0 * keys * d_model
    return flops


def rat_flops(length: Any, *, d_model: int, head_dim: int, num_groups: int = 2, chunk_size: int = 16) -> np.ndarray:
    """Return operations per token of a RAT layer, averaged: 2 D (3 D + 2 G dh) + 2 D² + 2 T D / L.

    Parameters
    ----------
    length : array_like
        T.
    d_model, head_dim, num_groups, chunk_size : int
        D, dh, G and L.

    Returns
    -------
    ndarray
        Same shape as ``length``.
    """
    projections = 2.0 * d_model * (3 * d_model + 2 * num_groups * head_dim) + 2.0 * d_model**2
    # eq: rat-flops
    flops: np.ndarray = projections + 2.0 * _length(length) * d_model / chunk_size
    return flops


def rnn_flops(*, d_model: int) -> float:
    """Return operations per token of the RNN layer, whatever the length: 8 D².

    Parameters
    ----------
    d_model : int
        D.

    Returns
    -------
    float
    """
    return 8.0 * d_model**2


def flop_crossover(*, head_dim: int, num_groups: int = 2, chunk_size: int = 16) -> float:
    """Return the length from which RAT needs fewer operations than attention: 2 G dh / (1 − 1/L).

    Parameters
    ----------
    head_dim, num_groups, chunk_size : int
        dh, G and L.

    Returns
    -------
    float
        Infinity for L = 1, where nothing is saved. The width D cancels.
    """
    return np.inf if chunk_size == 1 else 2.0 * num_groups * head_dim / (1.0 - 1.0 / chunk_size)


def attention_cache_size(length: Any, *, d_model: int, window: int | None = None) -> np.ndarray:
    """Return how many numbers attention caches for each layer and sequence: 2 T D.

    Parameters
    ----------
    length : array_like
        T.
    d_model : int
        D.
    window : int, optional
        At most window + 1 tokens are kept.

    Returns
    -------
    ndarray
        Same shape as ``length``.
    """
    length = _length(length)
    size: np.ndarray = 2.0 * d_model * (length if window is None else np.minimum(length, window + 1))
    return size


def rat_cache_size(length: Any, *, d_model: int, chunk_size: int = 16) -> np.ndarray:
    """Return how many numbers RAT caches for each layer and sequence: 2 ⌈T/L⌉ D + 2 D.

    Parameters
    ----------
    length : array_like
        T.
    d_model, chunk_size : int
        D and L.

    Returns
    -------
    ndarray
        Same shape as ``length``.
    """
    # eq: rat-cache
    size: np.ndarray = 2.0 * d_model * (np.ceil(_length(length) / chunk_size) + 1)
    return size


def attention_step_bytes(
    length: Any, *, d_model: int, batch: int, window: int | None = None, itemsize: int = 2
) -> np.ndarray:
    """Return the bytes that one decoding step of an attention layer reads: its weights once, and every cache.

    Parameters
    ----------
    length : array_like
        T, tokens in the cache.
    d_model, batch : int
        D and B.
    window : int, optional
        As in `attention_cache_size`.
    itemsize : int
        Bytes a number.

    Returns
    -------
    ndarray
        Same shape as ``length``.
    """
    cache = attention_cache_size(length, d_model=d_model, window=window)
    return itemsize * (4.0 * d_model**2 + batch * cache)


def rat_step_bytes(
    length: Any,
    *,
    d_model: int,
    head_dim: int,
    batch: int,
    num_groups: int = 2,
    chunk_size: int = 16,
    itemsize: int = 2,
) -> np.ndarray:
    """Return the bytes that one decoding step of a RAT layer moves: weights, memories, running state in and out.

    Parameters
    ----------
    length : array_like
        T, tokens in the cache.
    d_model, head_dim, batch, num_groups, chunk_size : int
        D, dh, B, G and L.
    itemsize : int
        Bytes a number.

    Returns
    -------
    ndarray
        Same shape as ``length``.
    """
    parameters = d_model * (3 * d_model + 2 * num_groups * head_dim) + d_model**2
    memories, state = 2.0 * np.ceil(_length(length) / chunk_size) * d_model, 4.0 * d_model
    # eq: rat-bytes
    moved: np.ndarray = itemsize * (parameters + batch * (memories + state))
    return moved


def _length(length: Any) -> np.ndarray:
    lengths: np.ndarray = np.asarray(length, np.float64)
    require(np.all(lengths >= 0), f"length={length!r} must be >= 0")
    return lengths
