"""Weights of MSGNet (2401.00423), one NamedTuple for each of its parts, and how they are checked.

Matrices are stored (out, in) and used as ``x @ w.T``, as in the released code.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape

__all__ = [
    "AttentionBlockWeights",
    "EmbeddingWeights",
    "GraphWeights",
    "HeadWeights",
    "MSGNetWeights",
    "ScaleGraphWeights",
    "as_weights",
    "check_attention_block",
    "check_embedding",
    "check_graph",
    "check_head",
    "check_norm",
]


class GraphWeights(NamedTuple):
    """Parameters of one graph layer.

    Attributes
    ----------
    e1, e2 : ndarray, shapes (N, h) and (h, N)
        Node vectors, from which the adjacency is learned.
    start_w, start_b : ndarray, shapes (C, D − N + 1) or (C, N, D), and (C,)
        From D features to N series in C channels: a kernel that slides over the features, as released, or a dense map
        for each channel, as in the paper.
    mix_w, mix_b : ndarray, shapes (S, (G + 1)·C) and (S,)
        From the channels of all hops to S channels.
    end_w, end_b : ndarray, shapes (T, S, T) and (T,), or (S,) and (1,)
        From S channels to one: with a full mixing of time, as released, or for each time alone.
    out_w, out_b : ndarray, shapes (D, N) and (D,)
        From series back to features.
    norm_w, norm_b : ndarray, shape (D,)
        The layer normalisation at the end.
    """

    e1: np.ndarray
    e2: np.ndarray
    start_w: np.ndarray
    start_b: np.ndarray
    mix_w: np.ndarray
    mix_b: np.ndarray
    end_w: np.ndarray
    end_b: np.ndarray
    out_w: np.ndarray
    out_b: np.ndarray
    norm_w: np.ndarray
    norm_b: np.ndarray


class AttentionBlockWeights(NamedTuple):
    """Parameters of the attention block inside segments.

    Attributes
    ----------
    w_q, w_k, w_v, w_o : ndarray, shape (D, D)
        Queries, keys, values, output; head h owns rows h·d … (h + 1)·d − 1 of the first three.
    b_q, b_k, b_v, b_o : ndarray, shape (D,)
        Their biases.
    norm1_w, norm1_b, norm2_w, norm2_b : ndarray, shape (D,)
        Layer normalisations after attention and after the MLP.
    w_1, b_1, w_2, b_2 : ndarray, shapes (E, D), (E,), (D, E), (D,)
        The MLP.
    """

    w_q: np.ndarray
    b_q: np.ndarray
    w_k: np.ndarray
    b_k: np.ndarray
    w_v: np.ndarray
    b_v: np.ndarray
    w_o: np.ndarray
    b_o: np.ndarray
    norm1_w: np.ndarray
    norm1_b: np.ndarray
    w_1: np.ndarray
    b_1: np.ndarray
    w_2: np.ndarray
    b_2: np.ndarray
    norm2_w: np.ndarray
    norm2_b: np.ndarray


class ScaleGraphWeights(NamedTuple):
    """Parameters of one ScaleGraph block.

    Attributes
    ----------
    graphs : tuple of GraphWeights
        One graph layer for each of the k scales, in the order of falling amplitude.
    attention : AttentionBlockWeights
        Shared by all scales.
    norm_w, norm_b : ndarray, shape (D,)
        The layer normalisation after attention, shared too.
    """

    graphs: tuple[GraphWeights, ...]
    attention: AttentionBlockWeights
    norm_w: np.ndarray
    norm_b: np.ndarray


class EmbeddingWeights(NamedTuple):
    """Parameters of the embedding.

    Attributes
    ----------
    conv : ndarray, shape (D, N, 3)
        A convolution over three neighbouring times.
    positions : ndarray, shape (T, D)
        The position table, such as `sinusoid_table`.
    marks : ndarray, shape (D, F), or tuple of ndarray, shape (., D), optional
        For real calendar marks a matrix, for whole ones a table for each column, such as `calendar_tables`.
    """

    conv: np.ndarray
    positions: np.ndarray
    marks: Any = None


class HeadWeights(NamedTuple):
    """Parameters of the forecast head.

    Attributes
    ----------
    series_w, series_b : ndarray, shapes (N, D) and (N,)
        From features to series.
    time_w, time_b : ndarray, shapes (P, T) and (P,), or (N, P, T) and (N, P)
        From T known to P coming times: one map for all series, or one for each.
    """

    series_w: np.ndarray
    series_b: np.ndarray
    time_w: np.ndarray
    time_b: np.ndarray


class MSGNetWeights(NamedTuple):
    """Parameters of the model.

    Attributes
    ----------
    embedding : EmbeddingWeights
        The embedding.
    blocks : tuple of ScaleGraphWeights
        The blocks, one after the other.
    norm_w, norm_b : ndarray, shape (D,)
        The layer normalisation after each block, shared by all.
    head : HeadWeights
        The head.
    """

    embedding: EmbeddingWeights
    blocks: tuple[ScaleGraphWeights, ...]
    norm_w: np.ndarray
    norm_b: np.ndarray
    head: HeadWeights


def as_weights(name: str, tree: Any, dtype: np.dtype[Any]) -> Any:
    """Return a tree of weights as floating arrays of one dtype; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        pairs = zip(tree._fields, tree, strict=True)
        return type(tree)(*(as_weights(f"{name}.{field}", branch, dtype) for field, branch in pairs))
    if isinstance(tree, (tuple, list)):
        return tuple(as_weights(f"{name}[{i}]", branch, dtype) for i, branch in enumerate(tree))
    return as_float(name, tree).astype(dtype, copy=False)


def check_graph(name: str, w: GraphWeights, length: int | None, D: int, depth: int, alpha: float) -> None:
    """Refuse a graph layer that does not fit windows of ``length`` times and D features; no length, no time mixing."""
    require(index(depth) >= 0, f"depth={depth!r} must be >= 0")
    require(np.isfinite(alpha), f"alpha={alpha!r} must be finite")
    require(w.e1.ndim == 2, f"{name}.e1 has shape {w.e1.shape}, expected (N, h)")
    N, h = w.e1.shape
    C, S = len(w.start_b), len(w.mix_b)
    require(N >= 2, f"{name}.e1 has {N} rows: a graph needs at least two series")
    require(D >= N, f"d_model must be at least the number of series: {D} features, {N} series")
    pointwise = w.end_w.ndim == 1
    require(pointwise or length is not None, f"{name}.end_w mixes time, which graphs of segments cannot")
    shapes = {
        "e2": (h, N),
        "start_w": (C, N, D) if w.start_w.ndim == 3 else (C, D - N + 1),
        "mix_w": (S, (depth + 1) * C),
        "end_w": (S,) if pointwise else (length, S, length),
        "end_b": (1,) if pointwise else (length,),
        "out_w": (D, N),
        "out_b": (D,),
        "norm_w": (D,),
        "norm_b": (D,),
    }
    _check_shapes(name, w, shapes)


def check_attention_block(name: str, w: AttentionBlockWeights, D: int, n_heads: int) -> None:
    """Refuse an attention block that does not fit D features or these heads."""
    require(index(n_heads) >= 1 and D % n_heads == 0, f"n_heads={n_heads!r} must divide the width D={D}")
    E = len(w.b_1)
    shapes = {field: (D, D) if field in ("w_q", "w_k", "w_v", "w_o") else (D,) for field in w._fields}
    _check_shapes(name, w, shapes | {"w_1": (E, D), "b_1": (E,), "w_2": (D, E)})


def check_norm(name: str, weights: Any, D: int) -> None:
    """Refuse a normalisation that does not fit D features."""
    _check_shapes(name, weights, {"norm_w": (D,), "norm_b": (D,)})


def check_embedding(name: str, w: EmbeddingWeights, T: int, N: int) -> None:
    """Refuse an embedding that does not fit windows of T times and N series."""
    require(w.conv.ndim == 3, f"{name}.conv has shape {w.conv.shape}, expected (D, N, 3)")
    D = len(w.conv)
    _check_shapes(name, w, {"conv": (D, N, 3), "positions": (T, D)})
    tables = w.marks if isinstance(w.marks, tuple) else ()
    for i, table in enumerate(tables):
        require_shape(f"{name}.marks[{i}]", table, (len(table), D))
    if w.marks is not None and not tables:
        require(w.marks.ndim == 2 and len(w.marks) == D, f"{name}.marks has shape {w.marks.shape}, expected ({D}, F)")


def check_head(name: str, w: HeadWeights, T: int, N: int, D: int) -> None:
    """Refuse a head that does not fit T times, N series and D features."""
    _check_shapes(name, w, {"series_w": (N, D), "series_b": (N,)})
    P = w.time_b.shape[-1]
    own = w.time_w.ndim == 3
    _check_shapes(name, w, {"time_w": (N, P, T) if own else (P, T), "time_b": (N, P) if own else (P,)})


def _check_shapes(name: str, weights: Any, shapes: dict[str, Any]) -> None:
    for field, shape in shapes.items():
        require_shape(f"{name}.{field}", getattr(weights, field), shape)
