"""Gathers by static tables, and weighted gathers."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from refattn.backends.portable.recat.chart import index_table

__all__ = ["take", "weigh"]


def take(x: Any, indices: Any, axis: int = -2) -> Any:
    """Gather rows by a static table."""
    return array_namespace(x).take(x, index_table(x, indices), axis=axis)


def weigh(weights: Any, vectors: Any, slots: Any) -> Any:
    """Return w (..., c, K) times the vectors (..., S, D) of each slot: (..., c, K, D)."""
    xp = array_namespace(vectors)
    rows = take(vectors, slots.reshape(-1))
    return weights[..., None] * xp.reshape(rows, (*vectors.shape[:-2], *slots.shape, vectors.shape[-1]))
