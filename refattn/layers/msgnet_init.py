"""Random weights of MSGNet (2401.00423), to try it without training."""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np

from refattn.layers.msgnet_embedding import calendar_tables, sinusoid_table
from refattn.layers.msgnet_weights import (
    AttentionBlockWeights,
    EmbeddingWeights,
    GraphWeights,
    HeadWeights,
    MSGNetWeights,
    ScaleGraphWeights,
)
from refattn.primitives.arguments import require

__all__ = ["attention_init", "block_init", "graph_init", "msgnet_init"]


def msgnet_init(
    rng: np.random.Generator,
    *,
    length: int,
    horizon: int,
    n_series: int,
    width: int = 16,
    scales: int = 2,
    layers: int = 2,
    marks: int | str | None = None,
    individual: bool = False,
    **block: Any,
) -> MSGNetWeights:
    """Draw weights of the whole model: matrices uniform in ±1/√(inputs), norms 1 and 0 [our definition].

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of randomness.
    length, horizon, n_series, width, scales, layers : int
        T, P, N, D, k and E.
    marks : int, {"fixed", "fixed minutes"} or None
        The number of real calendar marks, tables for whole ones, or no calendar.
    individual : bool
        A time map for each series.
    **block
        See `block_init`.

    Returns
    -------
    MSGNetWeights
        Float64.

    Raises
    ------
    ValueError
        If the width is odd or less than the number of series.
    """
    positions = sinusoid_table(length, width)
    calendar: Any = marks
    if isinstance(marks, str):
        calendar = calendar_tables(width, minutes=marks == "fixed minutes")
    elif marks is not None:
        calendar = _uniform(rng, marks, width, index(marks))
    blocks = tuple(
        block_init(rng, length=length, n_series=n_series, width=width, scales=scales, **block) for _ in range(layers)
    )
    own = (n_series,) if individual else ()
    head = HeadWeights(
        _uniform(rng, width, n_series, width),
        _uniform(rng, width, n_series),
        _uniform(rng, length, *own, horizon, length),
        _uniform(rng, length, *own, horizon),
    )
    conv = _uniform(rng, 3 * n_series, width, n_series, 3)
    return MSGNetWeights(EmbeddingWeights(conv, positions, calendar), blocks, *_norm(width), head)


def block_init(
    rng: np.random.Generator, *, length: int, n_series: int, width: int, scales: int, hidden: int = 32, **graph: Any
) -> ScaleGraphWeights:
    """Draw weights of a ScaleGraph block with ``scales`` graphs; ``hidden`` is the width E of its MLP."""
    graphs = tuple(graph_init(rng, length=length, n_series=n_series, width=width, **graph) for _ in range(scales))
    return ScaleGraphWeights(graphs, attention_init(rng, width=width, hidden=hidden), *_norm(width))


def graph_init(
    rng: np.random.Generator,
    *,
    length: int,
    n_series: int,
    width: int,
    channels: int = 32,
    skip: int = 32,
    depth: int = 2,
    nodes: int = 10,
    dense: bool = False,
    pointwise: bool = False,
) -> GraphWeights:
    """Draw weights of a graph layer; ``dense`` and ``pointwise`` choose the paper's start map and no mixing of time."""
    require(width >= n_series, f"d_model must be at least the number of series: {width} features, {n_series} series")
    C, S, N, D, T = channels, skip, n_series, width, length
    kernel = D if dense else D - N + 1
    ends = (S,) if pointwise else (T, S, T)
    inputs = S if pointwise else S * T
    return GraphWeights(
        rng.standard_normal((N, nodes)),
        rng.standard_normal((nodes, N)),
        _uniform(rng, kernel, *((C, N, D) if dense else (C, kernel))),
        _uniform(rng, kernel, C),
        _uniform(rng, (depth + 1) * C, S, (depth + 1) * C),
        _uniform(rng, (depth + 1) * C, S),
        _uniform(rng, inputs, *ends),
        _uniform(rng, inputs, 1 if pointwise else T),
        _uniform(rng, N, D, N),
        _uniform(rng, N, D),
        *_norm(D),
    )


def attention_init(rng: np.random.Generator, *, width: int, hidden: int) -> AttentionBlockWeights:
    """Draw weights of the attention block."""
    D, E = width, hidden
    maps: list[np.ndarray] = []
    for _ in range(4):
        maps += [_uniform(rng, D, D, D), _uniform(rng, D, D)]
    mlp = [_uniform(rng, D, E, D), _uniform(rng, D, E), _uniform(rng, E, D, E), _uniform(rng, E, D)]
    return AttentionBlockWeights(*(*maps, *_norm(D), *mlp, *_norm(D)))


def _uniform(rng: np.random.Generator, inputs: int, *shape: int) -> np.ndarray:
    bound = max(inputs, 1) ** -0.5
    return rng.uniform(-bound, bound, shape)


def _norm(width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(width), np.zeros(width)
