"""The levels of secondary sinks: many of a model's sinks are made on one layer and last equally long."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_integer, require

__all__ = ["Level", "cluster_levels", "level_histogram"]


class Level(NamedTuple):
    """A cluster of sinks.

    Attributes
    ----------
    start : int
        The layer on which they are made.
    shortest, longest : int
        Their lifetimes.
    size : int
        How many there are.
    """

    start: int
    shortest: int
    longest: int
    size: int


def level_histogram(levels: Any, n_layers: int) -> np.ndarray:
    """Count sinks by first layer and lifetime.

    Parameters
    ----------
    levels : array_like of int, shape (K, 2)
        First layer and lifetime of each sink, of as many sequences as there are; see `sink_levels`.
    n_layers : int
        The number of layers L.

    Returns
    -------
    ndarray of int, shape (L, L + 1)
        The paper's picture shows ln(1 + count).

    Raises
    ------
    ValueError
        If a sink begins before layer 0 or outlasts the model.
    """
    levels = _checked(levels)
    start, lifetime = levels.T
    require(
        np.all((start >= 0) & (lifetime >= 0) & (start + lifetime <= n_layers)),
        f"levels must lie within the {n_layers} layers of the model",
    )
    counts = np.zeros((n_layers, n_layers + 1), dtype=np.int64)
    np.add.at(counts, (start, lifetime), 1)
    return counts


def cluster_levels(levels: Any, *, min_share: float = 0.02) -> list[Level]:
    """Find the levels of a model: sinks that begin on one layer, with lifetimes that leave no gap.

    1. Sort the sinks by first layer, then lifetime.
    2. Begin a new cluster where the layer changes, or the lifetime grows by more than 1.
    3. Drop clusters that hold less than ``min_share`` of all sinks.

    Parameters
    ----------
    levels : array_like of int, shape (K, 2)
        First layer and lifetime of each secondary sink of a model, from as many sequences as there are.
    min_share : float
        The smallest share, from 0 to 1.

    Returns
    -------
    list of Level
        By first layer, then lifetime.

    Raises
    ------
    ValueError
        If ``levels`` is no matrix of two columns of integers, or ``min_share`` is out of range.

    Notes
    -----
    The paper reads its levels off the histogram; this rule is ours [our definition]. It needs no random start, and does
    not depend on the order of the sinks.
    """
    levels = _checked(levels)
    require(0 <= min_share <= 1, f"min_share={min_share!r} must lie between 0 and 1")
    start, lifetime = levels[np.lexsort((levels[:, 1], levels[:, 0]))].T  # 1
    breaks = np.flatnonzero((np.diff(start) != 0) | (np.diff(lifetime) > 1)) + 1  # 2
    runs = [run for run in np.split(np.arange(len(start)), breaks) if run.size]
    found = [Level(int(start[r[0]]), int(lifetime[r[0]]), int(lifetime[r[-1]]), len(r)) for r in runs]
    return [level for level in found if level.size >= min_share * len(levels)]  # 3


def _checked(levels: Any) -> np.ndarray:
    array = as_integer("levels", levels)
    array = array.reshape(0, 2) if array.size == 0 else array
    require(array.ndim == 2 and array.shape[1] == 2, f"levels has shape {array.shape}, expected (K, 2)")
    return array
