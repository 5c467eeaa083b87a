"""Forecasting with a graph for each period: find the periods of a window, learn who follows whom at each (2401.00423).

A Fourier transform tells which periods are strong. Each period has its own graph over the series, and the window is cut
into segments of that period, inside which times attend to each other. What the periods find is averaged, weighed by
their amplitudes. Parts are in `refattn.layers.msgnet_scales`, `refattn.layers.msgnet_graph`,
`refattn.layers.msgnet_attention` and `refattn.layers.msgnet_embedding`; equation labels are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.msgnet_attention import attention_block, segment_attention
from refattn.layers.msgnet_embedding import check_marks, embed, head, normalise
from refattn.layers.msgnet_graph import adaptive_adjacency, graph_block, graph_layer, mixhop_propagate
from refattn.layers.msgnet_scales import (
    ScaleSelection,
    check_windows,
    fold_segments,
    identify_scales,
    select_scales,
    unfold_segments,
)
from refattn.layers.msgnet_weights import (
    MSGNetWeights,
    ScaleGraphWeights,
    as_weights,
    check_attention_block,
    check_embedding,
    check_graph,
    check_head,
    check_norm,
)
from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_float, require, require_finite, require_one_of
from refattn.primitives.norms import layer_norm
from refattn.primitives.softmax import softmax

__all__ = [
    "BlockDetails",
    "MSGNetDetails",
    "MSGNetWeights",
    "ScaleGraphWeights",
    "ScaleSelection",
    "adaptive_adjacency",
    "graph_block",
    "identify_scales",
    "mixhop_propagate",
    "msgnet_forecast",
    "scale_graph_block",
    "segment_attention",
]

EPS = 1e-5
PLACEMENTS = ("window", "segments")
RESIDUALS = ("graph", "input")


class BlockDetails(NamedTuple):
    """What a ScaleGraph block has decided.

    Attributes
    ----------
    selection : ScaleSelection
        Its scales.
    scale_weights : ndarray, shape (B, k)
        The weight of each scale in each window.
    out : ndarray, shape (B, T, D)
        Its result.
    """

    selection: ScaleSelection
    scale_weights: np.ndarray
    out: np.ndarray


class MSGNetDetails(NamedTuple):
    """What the model has found on its way.

    Attributes
    ----------
    embedding : ndarray, shape (B, T, D)
        What the first block is given.
    blocks : tuple of BlockDetails
        One a block.
    """

    embedding: np.ndarray
    blocks: tuple[BlockDetails, ...]


def scale_graph_block(
    x: Any,
    weights: ScaleGraphWeights,
    *,
    n_heads: int,
    depth: int = 2,
    alpha: float = 0.3,
    causal: bool = True,
    placement: str = "window",
    residual: str = "graph",
    return_details: bool = False,
) -> Any:
    """Find the strongest periods; at each, mix series along its graph and times inside its segments; average.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Features; B is at least 1.
    weights : ScaleGraphWeights
        Parameters; the number of graphs is the number k of scales, at most T//2.
    n_heads, causal
        See `segment_attention`.
    depth, alpha
        See `mixhop_propagate`.
    placement : {"window", "segments"}
        Where the graph layers act. ``window``: on the whole window, each on the result of the one before. ``segments``:
        each on the segments of its own scale, side by side; their weights must not mix time.
    residual : {"graph", "input"}
        What the averaged scales are added to: the result of the last graph layer, or what came in. Segments have no
        last graph layer.
    return_details : bool
        Return `BlockDetails` too.

    Returns
    -------
    out : ndarray, shape (B, T, D)
        In the dtype of ``x``.
    details : BlockDetails
        Only with ``return_details``.

    Raises
    ------
    ValueError
        If the batch is empty, there are no scales or more than T//2, ``x`` is not finite, shapes disagree, or an
        option is out of range.

    Notes
    -----
    The defaults are what the released code runs. The paper writes ``placement="segments"``, ``residual="input"``, a
    dense start map (see `graph_block`), and says nothing of a causal mask. Graphs of segments that mix no time are our
    reading: the length of a segment depends on the data, and no weight can.

    All windows of a batch share their scales, so the result for a window depends on its batch.

    References
    ----------
    2401.00423, Eqs. 2 to 8.
    """
    x = as_float("x", x, ndim=3)
    weights = as_weights("weights", weights, x.dtype)
    check_windows(x, len(weights.graphs))
    require_finite("x", x)
    _check_options(placement, residual)
    _check_block("weights", weights, x.shape, n_heads, depth=depth, alpha=alpha, placement=placement)
    details = _run_block(
        x, weights, n_heads=n_heads, depth=depth, alpha=alpha, causal=causal, placement=placement, residual=residual
    )
    return (details.out, details) if return_details else details.out


def msgnet_forecast(
    x: Any,
    weights: MSGNetWeights,
    marks: Any = None,
    *,
    n_heads: int,
    depth: int = 2,
    alpha: float = 0.3,
    causal: bool = True,
    placement: str = "window",
    residual: str = "graph",
    return_details: bool = False,
) -> Any:
    """Forecast P coming times of N series from the last T.

    1. Normalise each series of each window; embed.
    2. ScaleGraph blocks, each followed by one shared layer normalisation.
    3. Features to series, T times to P, back to the units of the series.

    Parameters
    ----------
    x : array_like, shape (B, T, N)
        Windows of at least two series; B is at least 1.
    weights : MSGNetWeights
        Parameters.
    marks : array_like, shape (B, T, F), optional
        Calendar marks: real numbers, for a matrix, or whole numbers, for tables; none, no calendar.
    n_heads, depth, alpha, causal, placement, residual
        See `scale_graph_block`.
    return_details : bool
        Return `MSGNetDetails` too.

    Returns
    -------
    out : ndarray, shape (B, P, N)
        In the dtype of ``x``.
    details : MSGNetDetails
        Only with ``return_details``.

    Raises
    ------
    ValueError
        If ``x`` is not three-dimensional or not finite, has fewer than two series or an empty batch, D is odd or less
        than N, marks do not fit, or as `scale_graph_block`.

    Notes
    -----
    In the paper's embedding the convolution has a factor that balances it; in the released code, and here, it is 1.
    Adding a constant to a series adds it to the forecast; multiplying a series multiplies it, but for the 1e-5 in its
    deviation.

    References
    ----------
    2401.00423, Eqs. 1 to 9; code: YoZhibo/MSGNet, commit 953b833.
    """
    x = as_float("x", x, ndim=3)
    B, T, N = x.shape
    require(N >= 2, f"x has shape {x.shape}: a graph needs at least two series")
    require_finite("x", x)
    weights = as_weights("weights", weights, x.dtype)
    marks = check_marks(marks, weights.embedding, B, T)
    options: dict[str, Any] = {"n_heads": n_heads, "depth": depth, "alpha": alpha, "placement": placement}
    _check_options(placement, residual)
    _check_model(weights, x.shape, **options)

    normalised, mu, sd = normalise(x)  # 1: (B, T, N), (B, 1, N), (B, 1, N)
    e = first = embed(normalised, weights.embedding, marks)  # (B, T, D)
    blocks = []
    for block in weights.blocks:
        blocks.append(_run_block(e, block, causal=causal, residual=residual, **options))  # 2
        e = layer_norm(blocks[-1].out, weights.norm_w, weights.norm_b, eps=EPS)  # (B, T, D)
    out = head(e, weights.head, mu, sd)  # 3: (B, P, N)
    return (out, MSGNetDetails(first, tuple(blocks))) if return_details else out


def _run_block(
    x: np.ndarray,
    w: ScaleGraphWeights,
    *,
    n_heads: int,
    depth: int,
    alpha: float,
    causal: bool,
    placement: str,
    residual: str,
) -> BlockDetails:
    selection = select_scales(x, len(w.graphs))
    mixed, found = x, []
    for graph, period in zip(w.graphs, selection.periods.tolist(), strict=True):
        if placement == "window":
            mixed = graph_layer(mixed, graph, depth=depth, alpha=alpha)  # (B, T, D)
            z = fold_segments(mixed, period=period)  # (B · segments, s, D)
        else:
            z = graph_layer(fold_segments(x, period=period), graph, depth=depth, alpha=alpha)
        z = attention_block(z, w.attention, n_heads=n_heads, causal=causal)
        z = gelu(layer_norm(z, w.norm_w, w.norm_b, eps=EPS))
        found.append(unfold_segments(z, length=x.shape[1]))  # (B, T, D)
    # eq: msgnet-11
    a = softmax(selection.amplitudes, axis=-1)  # (B, k)
    average = sum(a[:, i, None, None] * r for i, r in enumerate(found))  # (B, T, D)
    return BlockDetails(selection, a, average + (mixed if residual == "graph" else x))


def _check_options(placement: str, residual: str) -> None:
    require_one_of("placement", placement, PLACEMENTS)
    require_one_of("residual", residual, RESIDUALS)
    apart = placement == "segments" and residual == "graph"
    require(not apart, "residual='graph' needs placement='window': segments have no last graph layer")


def _check_block(
    name: str, w: ScaleGraphWeights, shape: tuple[int, ...], n_heads: int, *, depth: int, alpha: float, placement: str
) -> None:
    _, T, D = shape
    check_attention_block(f"{name}.attention", w.attention, D, n_heads)
    check_norm(name, w, D)
    for i, graph in enumerate(w.graphs):
        check_graph(f"{name}.graphs[{i}]", graph, T if placement == "window" else None, D, depth, alpha)


def _check_model(w: MSGNetWeights, shape: tuple[int, ...], *, n_heads: int, **options: Any) -> None:
    B, T, N = shape
    check_embedding("weights.embedding", w.embedding, T, N)
    D = len(w.embedding.conv)
    require(D % 2 == 0, f"the width D={D} must be even for the position table")
    require(D >= N, f"d_model must be at least the number of series: {D} features, {N} series")
    check_norm("weights", w, D)
    check_head("weights.head", w.head, T, N, D)
    for i, block in enumerate(w.blocks):
        check_windows(np.broadcast_to(0.0, (B, T, D)), len(block.graphs))
        _check_block(f"weights.blocks[{i}]", block, (B, T, D), n_heads, **options)
        for j, graph in enumerate(block.graphs):
            require(
                len(graph.e1) == N, f"weights.blocks[{i}].graphs[{j}] is a graph of {len(graph.e1)}, not {N} series"
            )
