"""Choosing the largest entries, and fetching what they point at.

The order among equals is fixed: the lowest index comes first. Libraries leave it open; a definition cannot.
"""

from __future__ import annotations

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require

__all__ = ["gather_rows", "top_k"]


def top_k(scores: np.ndarray, *, k: int, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` largest entries along an axis, in descending order, and where they stand.

    Parameters
    ----------
    scores : ndarray
        What is ranked; NaN ranks last.
    k : int
        How many to keep, 0 ≤ k ≤ ``scores.shape[axis]``.
    axis : int
        Along which axis.

    Returns
    -------
    values : ndarray
        The k largest entries, descending.
    indices : ndarray of int64
        Their positions; among equal entries the lowest index comes first.

    Raises
    ------
    ValueError
        If k is negative or exceeds the length of the axis.
    """
    scores = as_float("scores", scores)
    length = scores.shape[axis]
    require(0 <= k <= length, f"k={k} must lie between 0 and {length}, the length of axis {axis}")
    # sorting the negated scores stably keeps equal entries in the order of their indices
    order = np.asarray(np.argsort(-scores, axis=axis, kind="stable"), dtype=np.int64)
    indices = np.take(order, np.arange(k), axis=axis)
    return np.take_along_axis(scores, indices, axis=axis), indices


def gather_rows(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Fetch entries of a table, each batch element from its own table.

    Parameters
    ----------
    table : ndarray, shape (..., N, *entry)
        N entries of any shape; the leading axes are those of ``index`` less its last two, or broadcast with them.
    index : ndarray of int, shape (..., Q, K)
        Which K entries each of the Q readers wants.

    Returns
    -------
    ndarray, shape (..., Q, K, *entry)
        ``out[..., q, j] = table[..., index[..., q, j]]``.

    Raises
    ------
    ValueError
        If an index is negative or at least N, or ``index`` has fewer than two axes.
    """
    table = as_float("table", table)
    index = as_integer("index", index)
    lead = index.ndim - 2
    require(
        0 <= lead < table.ndim, f"index has shape {index.shape}, table {table.shape}: expected (..., Q, K), (..., N, …)"
    )
    N, *entry = table.shape[lead:]
    in_range = index.size == 0 or (index.min() >= 0 and index.max() < N)
    require(in_range, f"index must lie between 0 and {N - 1}, the last entry of the table")
    *batch, Q, K = index.shape
    flat = index.reshape(*batch, Q * K, *(1 for _ in entry))
    rows = np.take_along_axis(table, flat, axis=lead)  # (..., Q K, *entry)
    return rows.reshape(*rows.shape[:lead], Q, K, *entry)
