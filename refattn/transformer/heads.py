"""What a single attention head does: the matrices it moves and matches by, and scores of well-known behaviours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.primitives.arguments import as_float, require, require_one_of

if TYPE_CHECKING:
    from refattn.transformer.weights import TransformerWeights

__all__ = ["head_scores", "ov_matrix", "qk_matrix"]


def ov_matrix(weights: TransformerWeights, layer: int, head: int) -> np.ndarray:
    """Return W_V W_O (d, d): what the head writes for what it attends to, biases and norms left out."""
    block = weights.blocks[layer]
    shared = head // (len(block.W_Q) // len(block.W_V))
    return np.asanyarray(block.W_V[shared] @ block.W_O[head])


def qk_matrix(weights: TransformerWeights, layer: int, head: int) -> np.ndarray:
    """Return W_Q W_Kᵀ (d, d): how much a query likes a key, biases, norms, scale and rotation left out."""
    block = weights.blocks[layer]
    shared = head // (len(block.W_Q) // len(block.W_K))
    return np.asanyarray(block.W_Q[head] @ block.W_K[shared].T)


def head_scores(pattern: np.ndarray, kind: str, n: int) -> np.ndarray:
    """Measure a behaviour on tokens that repeat: [bos, p_1 … p_n, p_1 … p_n] with distinct p.

    Parameters
    ----------
    pattern : array_like, shape (..., 2n + 1, 2n + 1)
        Attention weights.
    kind : {"previous", "duplicate", "induction"}
        The mean attention to the token before (over all tokens but the first), to the same token n back, or to the
        token after that one (both over the second half).
    n : int
        Length of the repeated part.

    Returns
    -------
    ndarray, shape (...)

    Raises
    ------
    ValueError
        For an unknown kind, or a pattern of another size.
    """
    pattern = as_float("pattern", pattern)
    require_one_of("kind", kind, ("previous", "duplicate", "induction"))
    size = 2 * n + 1
    require(n >= 1 and pattern.shape[-2:] == (size, size), f"pattern has shape {pattern.shape}, expected {size} tokens")
    back = {"previous": 1, "duplicate": n, "induction": n - 1}[kind]
    queries = np.arange(1 if kind == "previous" else n + 1, size)
    return np.asanyarray(pattern[..., queries, queries - back].mean(axis=-1))
