"""A graph over the series that is learned, and mixing along its edges hop by hop.

From MSGNet (2401.00423); equation labels (msgnet-5) … (msgnet-8) are those of the page. Equation source:
``layers/MSGBlock.py`` of the released code, commit 953b833.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.layers.msgnet_weights import GraphWeights, as_weights, check_graph
from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.norms import layer_norm
from refattn.primitives.softmax import softmax

__all__ = [
    "GraphFlops",
    "adaptive_adjacency",
    "graph_block",
    "graph_block_flops",
    "graph_layer",
    "mixhop_propagate",
]

EPS = 1e-5


class GraphFlops(NamedTuple):
    """Floating-point operations of one graph layer on one window, a multiplication and an addition counted as two.

    Attributes
    ----------
    start, hops, mix, end, out : int
        Features to series, propagation, mixing of channels, mixing of time, series to features.
    """

    start: int
    hops: int
    mix: int
    end: int
    out: int


def adaptive_adjacency(e1: Any, e2: Any) -> np.ndarray:
    """Return the learned adjacency: the softmax, row by row, of what node vectors have in common.

    Parameters
    ----------
    e1, e2 : array_like, shapes (N, h) and (h, N)
        Node vectors of the receiving and of the sending series.

    Returns
    -------
    ndarray, shape (N, N)
        Positive; each row sums to 1. A product below zero counts as zero, so no edge is ever quite cut.

    Raises
    ------
    ValueError
        If the shapes disagree.
    """
    e1, e2 = as_float("e1", e1, ndim=2), as_float("e2", e2, ndim=2)
    require_shape("e2", e2, e1.shape[::-1])
    # eq: msgnet-5
    return softmax(np.maximum(e1 @ e2, 0.0), axis=-1)  # (N, N)


def mixhop_propagate(h0: Any, adjacency: Any, *, depth: int = 2, alpha: float = 0.3) -> np.ndarray:
    """Let every series average its neighbours, hop by hop, and keep all hops side by side.

    Parameters
    ----------
    h0 : array_like, shape (B, C, N, T)
        Series in C channels.
    adjacency : array_like, shape (N, N)
        Not negative; rows belong to receivers. The identity is added and rows are normalised.
    depth : int
        The number of hops G.
    alpha : float
        How much of the start is kept in each hop.

    Returns
    -------
    ndarray, shape (B, (G + 1)·C, N, T)
        Channels of hop 0, of hop 1, … one after the other.

    Raises
    ------
    ValueError
        If shapes disagree or the depth is negative.
    """
    h0, adjacency = as_float("h0", h0, ndim=4), as_float("adjacency", adjacency)
    require_shape("adjacency", adjacency, (h0.shape[2], h0.shape[2]))
    require(index(depth) >= 0, f"depth={depth!r} must be >= 0")
    require(np.isfinite(alpha), f"alpha={alpha!r} must be finite")
    return _propagate(h0, adjacency.astype(h0.dtype, copy=False), depth=depth, alpha=alpha)


def graph_block(x: Any, weights: GraphWeights, *, depth: int = 2, alpha: float = 0.3) -> np.ndarray:
    """Mix series along a learned graph, and times, and add what comes out to the features.

    1. From D features to N series in C channels.
    2. Hops along the graph, all kept.
    3. Mix the channels, GELU, mix the times.
    4. Back to D features; add, normalise.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Features of T times.
    weights : GraphWeights
        Parameters.
    depth, alpha
        See `mixhop_propagate`.

    Returns
    -------
    ndarray, shape (B, T, D)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If D is less than N, N is less than 2, or shapes disagree.

    Notes
    -----
    The paper maps D features to N series by a dense matrix (its Eq. 5), ``start_w`` of shape (C, N, D) here. The
    released code slides one kernel of width D − N + 1 over the features instead: series n reads features n … n + D − N.
    """
    x = as_float("x", x, ndim=3)
    weights = as_weights("weights", weights, x.dtype)
    check_graph("weights", weights, x.shape[1], x.shape[2], depth, alpha)
    return graph_layer(x, weights, depth=depth, alpha=alpha)


def graph_layer(x: np.ndarray, w: GraphWeights, *, depth: int, alpha: float) -> np.ndarray:
    """Do the work of `graph_block`; it checks nothing."""
    A = adaptive_adjacency(w.e1, w.e2)  # (N, N)
    h0 = _start(x, w)  # 1: (B, C, N, T)
    H = _propagate(h0, A, depth=depth, alpha=alpha)  # 2: (B, (G+1)C, N, T)
    # eq: msgnet-8
    g = gelu(np.einsum("sc,bcnt->bsnt", w.mix_w, H, optimize=True) + w.mix_b[:, None, None])  # 3: (B, S, N, T)
    spread = "ust,bsnt->bun" if w.end_w.ndim == 3 else "s,bsnt->btn"
    o = np.einsum(spread, w.end_w, g, optimize=True) + w.end_b[:, None]  # (B, T, N)
    return layer_norm(x + o @ w.out_w.T + w.out_b, w.norm_w, w.norm_b, eps=EPS)  # 4: (B, T, D)


def graph_block_flops(
    *, length: int, series: int, width: int, channels: int = 32, skip: int = 32, depth: int = 2
) -> GraphFlops:
    """Count what the parts of a graph layer, as released, cost for one window.

    Parameters
    ----------
    length, series, width, channels, skip, depth : int
        T, N, D, C, S and G.

    Returns
    -------
    GraphFlops
        2TNC(D−N+1), 2GCN²T, 2S(G+1)CNT, 2SNT² and 2TND.

    Raises
    ------
    ValueError
        If a size is negative or the width is less than the number of series.
    """
    sizes = (length, series, width, channels, skip, depth)
    require(min(sizes) >= 0, f"sizes {sizes!r} must be >= 0")
    require(width >= series, f"d_model must be at least the number of series: {width} features, {series} series")
    cell = 2 * length * series
    return GraphFlops(
        cell * channels * (width - series + 1),
        cell * depth * channels * series,
        cell * skip * (depth + 1) * channels,
        cell * skip * length,
        cell * width,
    )


def _start(x: np.ndarray, w: GraphWeights) -> np.ndarray:
    """Read N series in C channels out of the features."""
    N = len(w.e1)
    # eq: msgnet-6
    if w.start_w.ndim == 3:
        h = np.einsum("cnd,btd->bcnt", w.start_w, x, optimize=True)
    else:
        M = w.start_w.shape[1]
        slid = np.stack([x[:, :, n : n + M] for n in range(N)], axis=2)  # (B, T, N, D−N+1)
        h = np.einsum("cm,btnm->bcnt", w.start_w, slid, optimize=True)
    h0: np.ndarray = h + w.start_b[:, None, None]  # (B, C, N, T)
    return h0


def _propagate(h0: np.ndarray, A: np.ndarray, *, depth: int, alpha: float) -> np.ndarray:
    looped = A + np.eye(len(A), dtype=A.dtype)
    A_tilde = looped / np.sum(looped, axis=-1, keepdims=True)  # (N, N)
    hops = [h0]
    for _ in range(depth):
        # eq: msgnet-7
        hops.append(alpha * h0 + (1 - alpha) * (A_tilde @ hops[-1]))  # (B, C, N, T)
    return np.concatenate(hops, axis=1)
