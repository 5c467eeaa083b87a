"""The rules that hide keys, each on its own as a boolean array (True = attend), to be combined by & and |.

Equation source: rules R11–R17 of the attention page. `visibility` combines them in attention's own way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_bool, as_integer, require
from refattn.primitives.mask_rules import check_window
from refattn.primitives.visibility import query_positions, visibility

__all__ = [
    "block_causal_mask",
    "causal_mask",
    "chunked_mask",
    "document_mask",
    "global_window_mask",
    "length_mask",
    "prefix_mask",
    "query_positions",
    "visibility",
    "window_mask",
]


def causal_mask(sq: int, sk: int, *, offset: Any = 0) -> np.ndarray:
    """Return j ≤ i + offset: nobody sees what comes later.

    Parameters
    ----------
    sq, sk : int
        Number of queries and keys.
    offset : int, or array_like of int with shape (...,)
        Position of the first query.

    Returns
    -------
    ndarray of bool, shape (..., Sq, Sk)

    Raises
    ------
    ValueError
        If ``offset`` is not made of integers.
    """
    p, j = _positions(sq, sk, offset)
    return np.asarray(j <= p)


def window_mask(sq: int, sk: int, left: int | None, right: int | None, *, offset: Any = 0) -> np.ndarray:
    """Return p − left ≤ j ≤ p + right: only the keys beside the query's position p = i + offset.

    Parameters
    ----------
    sq, sk : int
        Number of queries and keys.
    left, right : int or None
        Keys seen on either side, the query's own position not counted; None = unbounded.
    offset : int, or array_like of int with shape (...,)
        Position of the first query.

    Returns
    -------
    ndarray of bool, shape (..., Sq, Sk)

    Raises
    ------
    ValueError
        If a side of the window is negative or no integer.
    """
    left, right = check_window((left, right))
    p, j = _positions(sq, sk, offset)
    above = True if left is None else p - left <= j
    below = True if right is None else j <= p + right
    return np.asarray(np.broadcast_to(above & below, (*p.shape[:-2], sq, sk)))


def document_mask(doc_q: Any, doc_k: Any) -> np.ndarray:
    """Return doc_q[i] = doc_k[j]: everybody stays in their own document.

    Parameters
    ----------
    doc_q, doc_k : array_like of int, shape (..., Sq) and (..., Sk)
        Document of each query and key.

    Returns
    -------
    ndarray of bool, shape (..., Sq, Sk)

    Raises
    ------
    ValueError
        If the documents are not integers.
    """
    doc_q, doc_k = as_integer("doc_q", doc_q), as_integer("doc_k", doc_k)
    return np.asarray(doc_q[..., :, None] == doc_k[..., None, :])


def prefix_mask(sq: int, sk: int, prefix: Any) -> np.ndarray:
    """Return j < prefix: every query sees the first keys; OR-ed with `causal_mask` it is the prefix-LM mask.

    Parameters
    ----------
    sq, sk : int
        Number of queries and keys.
    prefix : int, or array_like of int with shape (...,)
        Length of the prefix, not negative.

    Returns
    -------
    ndarray of bool, shape (..., Sq, Sk)

    Raises
    ------
    ValueError
        If the prefix is negative or no integer.
    """
    prefix = as_integer("prefix", prefix)
    require((prefix >= 0).all(), f"prefix={prefix} must not be negative")
    return np.asarray(np.broadcast_to(np.arange(sk) < prefix[..., None, None], (*prefix.shape, sq, sk)))


def chunked_mask(sq: int, sk: int, chunk: int, *, offset: Any = 0) -> np.ndarray:
    """Return p // chunk = j // chunk: everybody stays in their own chunk of positions.

    Parameters
    ----------
    sq, sk : int
        Number of queries and keys.
    chunk : int
        Length of a chunk.
    offset : int, or array_like of int with shape (...,)
        Position of the first query.

    Returns
    -------
    ndarray of bool, shape (..., Sq, Sk)

    Raises
    ------
    ValueError
        If ``chunk`` is not positive.
    """
    require(chunk > 0, f"chunk={chunk} must be positive")
    p, j = _positions(sq, sk, offset)
    return np.asarray(p // chunk == j // chunk)


def length_mask(sk: int, lengths: Any) -> np.ndarray:
    """Return j < lengths: what is padding is hidden.

    Parameters
    ----------
    sk : int
        Number of keys, padding included.
    lengths : array_like of int, shape (...,)
        Valid keys, 0 to Sk.

    Returns
    -------
    ndarray of bool, shape (..., Sk)

    Raises
    ------
    ValueError
        If a length is negative or beyond Sk.
    """
    lengths = as_integer("lengths", lengths)
    require(((lengths >= 0) & (lengths <= sk)).all(), f"lengths={lengths} must lie in 0..{sk}")
    return np.asarray(np.arange(sk) < lengths[..., None])


def block_causal_mask(block_ids: Any) -> np.ndarray:
    """Return j ≤ i, or i and j in the same block: causal between blocks, everything within one.

    Parameters
    ----------
    block_ids : array_like of int, shape (N,)
        Block of each token; −1 for tokens of no block, which are plainly causal.

    Returns
    -------
    ndarray of bool, shape (N, N)

    Raises
    ------
    ValueError
        If the blocks are not integers.
    """
    ids = as_integer("block_ids", block_ids, ndim=1)
    return causal_mask(len(ids), len(ids)) | (document_mask(ids, ids) & (ids >= 0))


def global_window_mask(global_q: Any, global_k: Any, width: int, *, offset: Any = 0) -> np.ndarray:
    """Return |p − j| ≤ width, or i or j global: a window, and tokens that see all and are seen by all.

    Parameters
    ----------
    global_q, global_k : array_like of bool, shape (Sq,) and (Sk,)
        Which queries and keys are global.
    width : int
        Keys seen on either side of the query's position.
    offset : int, or array_like of int with shape (...,)
        Position of the first query.

    Returns
    -------
    ndarray of bool, shape (..., Sq, Sk)

    Raises
    ------
    ValueError
        If the flags are not boolean or ``width`` is negative.
    """
    global_q, global_k = as_bool("global_q", global_q, ndim=1), as_bool("global_k", global_k, ndim=1)
    near = window_mask(len(global_q), len(global_k), width, width, offset=offset)
    # eq: R17
    return np.asarray(near | global_q[:, None] | global_k)


def _positions(sq: int, sk: int, offset: Any) -> tuple[np.ndarray, np.ndarray]:
    offset = as_integer("offset", offset)[..., None, None]
    return np.arange(sq)[:, None] + offset, np.arange(sk)  # (..., Sq, 1), (Sk,)
