"""Into the model and out of it: normalised windows, their embedding, and the head that returns to the series' units.

From MSGNet (2401.00423); equation labels (msgnet-1), (msgnet-2) and (msgnet-12) are those of the page. Equation source:
``layers/Embed.py`` and ``models/MSGNet.py`` of the released code, commit 953b833.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_finite, require_shape

if TYPE_CHECKING:
    from refattn.layers.msgnet_weights import EmbeddingWeights, HeadWeights

__all__ = ["calendar_tables", "check_marks", "embed", "head", "normalise", "sinusoid_table"]

EPS = 1e-5
CALENDAR = (13, 32, 7, 24, 4)  # month, day, weekday, hour, quarter of the hour


def sinusoid_table(length: int, width: int) -> np.ndarray:
    """Return sines in even columns and cosines in odd ones, of wave lengths from 2π to 2π · 10000.

    Parameters
    ----------
    length, width : int
        The number of places, and the width D, which is even.

    Returns
    -------
    ndarray, shape (length, width)
        Float64.

    Raises
    ------
    ValueError
        If the width is odd or a size is negative.

    Notes
    -----
    The released code builds the table in float32, which differs by about 1e-7.
    """
    require(index(width) >= 0 and width % 2 == 0, f"width={width!r} must be even for the position table")
    require(index(length) >= 0, f"length={length!r} must be >= 0")
    freqs = 10000.0 ** (-np.arange(0, width, 2) / max(width, 1))  # (D/2,)
    angles = np.arange(length)[:, None] * freqs  # (length, D/2)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, width)


def calendar_tables(width: int, *, minutes: bool = False) -> tuple[np.ndarray, ...]:
    """Return the frozen tables of whole calendar marks: month, day, weekday, hour, and quarter of the hour on demand.

    Parameters
    ----------
    width : int
        The width D, which is even.
    minutes : bool
        Whether there is a fifth column.

    Returns
    -------
    tuple of ndarray, shapes (13, D), (32, D), (7, D), (24, D), (4, D)
        `sinusoid_table` of each size; months and days are counted from 1.

    Raises
    ------
    ValueError
        If the width is odd.
    """
    return tuple(sinusoid_table(size, width) for size in CALENDAR[: 5 if minutes else 4])


def check_marks(marks: Any, weights: EmbeddingWeights, batch: int, length: int) -> Any:
    """Return calendar marks as an array that fits the weights: real for a matrix, whole for tables, None for None."""
    if marks is None:
        return None
    require(weights.marks is not None, "marks are given, but weights.embedding.marks is None")
    if not isinstance(weights.marks, tuple):
        marks = as_float("marks", marks)
        require_shape("marks", marks, (batch, length, weights.marks.shape[1]))
        require_finite("marks", marks)
        return marks.astype(weights.conv.dtype, copy=False)
    marks = as_integer("marks", marks)
    require_shape("marks", marks, (batch, length, len(weights.marks)))
    for column, table in enumerate(weights.marks):
        known = marks[..., column]
        fits = known.size == 0 or (known.min() >= 0 and known.max() < len(table))
        require(fits, f"marks[..., {column}] must lie between 0 and {len(table) - 1}, the last row of its table")
    return marks


def normalise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each series of x (B, T, N) with mean 0 and deviation 1, and its mean and deviation (B, 1, N)."""
    # eq: msgnet-1
    mu = np.mean(x, axis=1, keepdims=True)  # (B, 1, N)
    sd = np.sqrt(np.mean(np.square(x - mu), axis=1, keepdims=True) + EPS)  # (B, 1, N)
    return (x - mu) / sd, mu, sd


def embed(x: np.ndarray, w: EmbeddingWeights, marks: np.ndarray | None) -> np.ndarray:
    """Return the embedding (B, T, D) of normalised windows (B, T, N): neighbours, place, calendar."""
    # eq: msgnet-2
    e: np.ndarray = w.positions + sum(np.roll(x, 1 - j, axis=1) @ w.conv[:, :, j].T for j in range(3))  # (B, T, D)
    if marks is not None and isinstance(w.marks, tuple):
        e = e + sum(table[marks[..., column]] for column, table in enumerate(w.marks))
    elif marks is not None:
        e = e + marks @ w.marks.T
    return e


def head(e: np.ndarray, w: HeadWeights, mu: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Return the forecast (B, P, N) for features (B, T, D), in the units of the series."""
    series = e @ w.series_w.T + w.series_b  # (B, T, N)
    # eq: msgnet-12
    if w.time_w.ndim == 3:
        coming = np.einsum("npt,btn->bpn", w.time_w, series, optimize=True) + w.time_b.T  # (B, P, N)
    else:
        coming = w.time_w @ series + w.time_b[:, None]  # (B, P, N)
    forecast: np.ndarray = coming * sd + mu
    return forecast
