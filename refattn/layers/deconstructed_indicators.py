"""Five numbers that say what an attention map looks like: spread, peaked, alike, sunk, local (2510.11602, 4.4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require

__all__ = ["OFFSETS", "Indicators", "attention_indicators"]

OFFSETS = (0, 1, 2, 3)


class Indicators(NamedTuple):
    """What `attention_indicators` reads off; each (...), ``local_focus`` (..., 4)."""

    entropy: Any
    concentration: Any
    head_diversity: Any
    sink: Any
    local_focus: Any
    normalised_entropy: Any
    normalised_concentration: Any


def attention_indicators(maps: Any) -> Indicators:
    """Describe the maps of one layer.

    Parameters
    ----------
    maps : array_like, shape (..., h, L, L)
        Causal maps of the heads: entries ≥ 0, upper triangle 0.

    Returns
    -------
    Indicators
        ``entropy`` −Σ a ln a and ``concentration`` ‖A‖_F, averages over heads; ``head_diversity``, the mean standard
        deviation over heads of a visible entry; ``sink``, the mean weight of the first token; ``local_focus``, the
        mean weight of the token N places back, N = 0 to 3; entropy and concentration on a scale from 0 to 1.

    Raises
    ------
    ValueError
        For shapes other than (..., h, L, L) with h, L ≥ 1, negative entries, or entries above the diagonal.

    Notes
    -----
    The paper scales to the range of its own models for plots; here 0 and 1 are the least and the most that a causal map
    can have. Averages over heads, the population standard deviation, 0 for a focus farther back than the sequence
    reaches, and 0 for both scaled numbers at L = 1 are [our definition]. Sink and focus are averages over heads too.
    """
    A = as_float("maps", maps)  # (..., h, L, L)
    require(
        A.ndim >= 3 and A.shape[-1] == A.shape[-2] and min(A.shape[-3:]) > 0,
        f"maps has shape {A.shape}, expected (..., h, L, L) with h, L >= 1",
    )
    require(not np.any(A < 0), "maps must be >= 0")
    require(not np.any(np.triu(A, 1)), "maps must be causal: 0 above the diagonal")
    L = A.shape[-1]
    # eq: dec-entropy
    entropy = -np.sum(A * np.log(np.where(A > 0, A, 1)), axis=(-2, -1)).mean(axis=-1)  # (...)
    # eq: dec-concentration
    concentration = np.sqrt(np.sum(A**2, axis=(-2, -1))).mean(axis=-1)  # (...)
    # eq: dec-diversity
    spread = np.sqrt(np.mean((A - A.mean(axis=-3, keepdims=True)) ** 2, axis=-3))  # (..., L, L)
    diversity = 2 / (L * (L + 1)) * np.sum(spread, axis=(-2, -1))  # (...)
    # eq: dec-sink
    sink = A[..., 0].mean(axis=(-2, -1))  # (...)
    # eq: dec-focus
    focus = np.stack([_focus(A, N) for N in OFFSETS], axis=-1)  # (..., 4)
    # eq: dec-scale
    most, least = float(np.sum(np.log(np.arange(1, L + 1)))), float(np.sqrt(np.sum(1 / np.arange(1, L + 1))))
    scaled = entropy / (most if L > 1 else 1)
    peaked = (concentration - least) / (L**0.5 - least if L > 1 else 1)
    return Indicators(*(np.asanyarray(x) for x in (entropy, concentration, diversity, sink, focus, scaled, peaked)))


def _focus(A: np.ndarray, N: int) -> Any:
    """Return the mean weight N places back."""
    L = A.shape[-1]
    if L <= N:
        return np.zeros_like(A[..., 0, 0, 0])
    return np.diagonal(A, -N, axis1=-2, axis2=-1).mean(axis=(-2, -1))
