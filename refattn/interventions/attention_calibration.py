"""Attention calibration: find the columns that hoard attention, and give most of it back to the others (2406.15765).

A softmax must put its mass somewhere. Heads with nothing to say put it on a few tokens that mean little: attention
sinks, at the start of the text and, hidden, further on. ACT finds them in the attention weights of one pass, spares the
first, scales the others by β, and shares what is freed among the remaining columns in proportion to what they have.
How sinks are found stands in `refattn.interventions.attention_calibration_sinks`, which heads are treated in
`refattn.interventions.attention_calibration_heads`. Equation labels (act-…) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interventions.attention_calibration_sinks import (
    PROTECT,
    as_attention,
    calibrated_sinks,
    detect_sinks,
    received_attention,
    require_distributions,
)
from refattn.primitives.arguments import as_bool, as_float, as_integer, require

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "PAPER_ALPHA",
    "PROTECT",
    "act",
    "calibrate_attention",
    "calibrate_row",
    "calibrated_sinks",
    "detect_sinks",
    "received_attention",
]

PAPER_ALPHA = 5.0
"""A sink receives more than this many times the attention that it would get if all columns shared equally."""


def act(
    weights: Any,
    *,
    heads: Collection[int] | None = None,
    beta: float = 0.4,
    threshold: float | None = None,
    alpha: float | None = None,
    protect: str = "first_detected",
    causal: bool = False,
) -> np.ndarray:
    """Calibrate the chosen heads of one layer: every head of every batch element with its own sinks.

    1. Detect the sinks S of each attention map.
    2. Spare one of them; the others, S', are calibrated.
    3. Scale the columns S' by β and share what is freed among the other columns.

    Parameters
    ----------
    weights : array_like, shape (..., H, T, T)
        Causal attention weights after the softmax, row = query, column = key. Rows sum to 1; rows that are all zero,
        of queries without any key, stay as they are.
    heads : collection of int, optional
        The heads that are calibrated; all others come back bit for bit. All heads if not given.
    beta : float
        What is left of a sink, β in [0, 1]; 1 changes nothing.
    threshold, alpha
        As in `detect_sinks`, at most one of them; `PAPER_ALPHA` if neither is given.
    protect
        As in `calibrated_sinks`.
    causal : bool
        Detect from the queries up to each row instead of all, so that no output depends on later tokens.

    Returns
    -------
    ndarray, shape (..., H, T, T)
        In the dtype of ``weights``; rows sum to 1.

    Raises
    ------
    ValueError
        If the weights are not square, not causal, negative, or do not sum to 1 along rows; if a head does not exist;
        if an option is out of range, or both ``threshold`` and ``alpha`` are given.

    Notes
    -----
    The paper's threshold is α/T with α = 5 [recalled]; the released scripts use the absolute 0.1, which is the same at
    T = 50. The code spares the first *detected* column, which need not be token 0, and treats batch element 0 only;
    here each element has its own sinks. With a cache the code's row would no longer sum to 1: use `calibrate_row`.

    Detection looks at later queries: the default is *not* causal. That is harmless for the last position of one pass,
    which is all that the paper uses. ``causal`` is our definition.

    References
    ----------
    2406.15765; GATECH-EIC/ACT, models/llama_modelling_aug.py.
    """
    weights = as_float("weights", weights)
    require(weights.ndim >= 3, f"weights has shape {weights.shape}, expected (..., H, T, T)")
    chosen = _chosen(heads, weights.shape[-3])[:, None, None]  # (H, 1, 1)
    if threshold is None and alpha is None:
        alpha = PAPER_ALPHA
    found = detect_sinks(weights, threshold=threshold, alpha=alpha, causal=causal)  # 1: (..., H, T), causal (…, T, T)
    sinks = calibrated_sinks(found, protect=protect)  # 2
    by_row = sinks if causal else sinks[..., None, :]  # (..., H, 1 or T, T)
    return np.where(chosen, _rescaled(weights, by_row, _checked_beta(beta)), weights)  # 3: (..., H, T, T)


def calibrate_attention(weights: Any, sinks: Any, *, beta: float = 0.4) -> np.ndarray:
    """Scale the columns of the sinks by β and share what is freed among the other columns of each row.

    Parameters
    ----------
    weights : array_like, shape (..., T, T)
        Causal attention weights, as in `act`.
    sinks : array_like of bool, shape (..., T)
        S', the columns to calibrate; leading axes broadcast with those of ``weights``.
    beta : float
        What is left of a sink, β in [0, 1].

    Returns
    -------
    ndarray, shape (..., T, T)
        In the dtype of ``weights``.

    Raises
    ------
    ValueError
        For weights that `act` refuses, sinks that are not boolean or do not fit, and ``beta`` out of range.
    """
    weights = as_attention(weights)
    sinks = _checked_sinks(sinks, weights.shape[-1])[..., None, :]  # (..., 1, T)
    _require_broadcast("sinks", sinks, "weights", weights)
    return _rescaled(weights, sinks, _checked_beta(beta))


def calibrate_row(row: Any, sinks: Any, *, beta: float = 0.4) -> np.ndarray:
    """Calibrate the attention of single queries, such as one that is decoded after the sinks were found.

    Parameters
    ----------
    row : array_like, shape (..., T)
        Attention weights of each query over the keys so far; they sum to 1, or are all zero.
    sinks : array_like of bool, shape (..., T)
        S' of each query, such as that of the prompt with False for later keys; broadcasts with ``row``.
    beta : float
        What is left of a sink, β in [0, 1].

    Returns
    -------
    ndarray, shape (..., T)
        In the dtype of ``row``.

    Raises
    ------
    ValueError
        If the row is negative or does not sum to 1, the sinks are not boolean or do not fit, or ``beta`` is out of
        range.

    Notes
    -----
    Decoding is not part of the paper; reusing the S' of the prompt is our definition.
    """
    row = as_float("row", row)
    require(row.ndim >= 1, f"row has shape {row.shape}, expected (..., T)")
    require_distributions("row", row)
    sinks = _checked_sinks(sinks, row.shape[-1])
    _require_broadcast("sinks", sinks, "row", row)
    return _rescaled(row, sinks, _checked_beta(beta))


def _rescaled(rows: np.ndarray, sinks: np.ndarray, beta: float) -> np.ndarray:
    """Return the calibrated rows (..., T); a row that has nothing outside the sinks is left as it is."""
    # numbers of Python would widen bfloat16
    nothing, left, freed = (rows.dtype.type(x) for x in (0.0, beta, 1.0 - beta))
    kept = np.where(sinks, nothing, rows)  # (..., T)
    mass = np.sum(np.where(sinks, rows, nothing), axis=-1, keepdims=True)  # (..., 1)
    base = np.sum(kept, axis=-1, keepdims=True)  # (..., 1)
    # the freed mass times a share ≤ 1: the ratio mass/base of the closed form may overflow
    share = kept / (base + (base == 0))  # (..., T)
    # eq: act-4
    calibrated = np.where(sinks, left * rows, rows + freed * mass * share)  # (..., T)
    return np.where(base == 0, rows, calibrated)


def _chosen(heads: Collection[int] | None, n_heads: int) -> np.ndarray:
    if heads is None:
        return np.ones(n_heads, dtype=bool)
    index = as_integer("heads", list(heads), ndim=1)
    require(np.all((index >= 0) & (index < n_heads)), f"heads={list(heads)} must lie in 0..{n_heads - 1}")
    return np.asarray(np.isin(np.arange(n_heads), index))


def _checked_beta(beta: float) -> float:
    require(0 <= beta <= 1, f"beta={beta!r} must be in [0, 1]")
    return float(beta)


def _checked_sinks(sinks: Any, T: int) -> np.ndarray:
    columns = as_bool("sinks", sinks)
    require(columns.shape[-1:] == (T,), f"sinks has shape {columns.shape}, expected (..., {T})")
    return columns


def _require_broadcast(name: str, value: np.ndarray, other_name: str, other: np.ndarray) -> None:
    try:
        np.broadcast_shapes(value.shape, other.shape)
    except ValueError:
        raise ValueError(f"{name} {value.shape} does not broadcast with {other_name} {other.shape}") from None
