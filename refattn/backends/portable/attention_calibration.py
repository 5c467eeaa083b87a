"""Attention calibration in the array-API standard, by another route than the reference.

Column sums are a product with a row of ones, and the first sink is where the mask has its maximum. Calibration uses its
linearity in β: Â = β A + (1 − β) E, where E is A without its sinks, each row brought back to the sum that it had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "act",
    "calibrate_attention",
    "calibrate_row",
    "calibrated_sinks",
    "detect_sinks",
    "received_attention",
]


def act(
    weights: Any,
    *,
    heads: Collection[int] | None = None,
    beta: float = 0.4,
    threshold: float | None = None,
    alpha: float | None = None,
    protect: str = "first_detected",
    causal: bool = False,
) -> Any:
    """Calibrate the chosen heads; β is 1 for all others, which changes nothing."""
    xp = array_namespace(weights)
    if threshold is None and alpha is None:
        alpha = 5.0
    found = detect_sinks(weights, threshold=threshold, alpha=alpha, causal=causal)
    sinks = calibrated_sinks(found, protect=protect)
    calibrated = calibrate_row(weights, sinks if causal else sinks[..., None, :], beta=beta)
    if heads is None:
        return calibrated
    chosen = np.zeros((weights.shape[-3], 1, 1), dtype=bool)
    chosen[list(heads)] = True
    return xp.where(xp.asarray(chosen, device=device(weights)), calibrated, weights)


def received_attention(weights: Any, *, causal: bool = False) -> Any:
    """Return the mean of each column over the queries that see it, or over those of them up to each row."""
    xp = array_namespace(weights)
    T = weights.shape[-1]
    if causal:
        totals = xp.cumulative_sum(weights, axis=-2)  # (..., T, T)
        queries = np.clip(np.arange(T)[:, None] - np.arange(T) + 1.0, 1.0, None)
        return totals / _table(queries, weights)
    totals = (_table(np.ones((1, T)), weights) @ weights)[..., 0, :]  # (..., T)
    return totals / _table(np.arange(T, 0, -1.0), weights)


def detect_sinks(
    weights: Any, *, threshold: float | None = None, alpha: float | None = None, causal: bool = False
) -> Any:
    """Return the columns that receive more than the threshold."""
    xp = array_namespace(weights)
    T = weights.shape[-1]
    received = received_attention(weights, causal=causal)
    tokens = np.arange(1.0, T + 1)[:, None] if causal else np.full(1, max(T, 1.0))
    limit = np.full(tokens.shape, threshold) if alpha is None else alpha / tokens
    found = received > _table(limit, weights)
    return found & xp.asarray(np.tri(T, dtype=bool), device=device(weights)) if causal else found


def calibrated_sinks(is_sink: Any, *, protect: str = "first_detected") -> Any:
    """Return the sinks behind the first, or behind column 0."""
    xp = array_namespace(is_sink)
    T = is_sink.shape[-1]
    if protect == "token0":
        return is_sink & xp.asarray(np.arange(T) > 0, device=device(is_sink))
    first = xp.argmax(xp.astype(is_sink, xp.int32), axis=-1, keepdims=True) if T else 0
    return is_sink & (xp.asarray(np.arange(T), device=device(is_sink)) > first)


def calibrate_attention(weights: Any, sinks: Any, *, beta: float = 0.4) -> Any:
    """Calibrate every row of each map at the same columns."""
    return calibrate_row(weights, sinks[..., None, :], beta=beta)


def calibrate_row(row: Any, sinks: Any, *, beta: float = 0.4) -> Any:
    """Return β A + (1 − β) E, and A where nothing is kept."""
    xp = array_namespace(row, sinks)
    kept = xp.where(sinks, xp.zeros_like(row), row)
    base = xp.sum(kept, axis=-1, keepdims=True)
    total = xp.sum(row, axis=-1, keepdims=True)
    able = base > 0
    emptied = kept / xp.where(able, base, xp.ones_like(base)) * total
    return xp.where(able, beta * row + (1.0 - beta) * emptied, row)


def _table(values: np.ndarray, like: Any) -> Any:
    """Return constants in the dtype and on the device of ``like``."""
    xp = array_namespace(like)
    return xp.asarray(values, dtype=like.dtype, device=device(like))
