"""ReCAT: recursively composed spans inside a Transformer (2309.16319).

A sentence becomes a chart of spans; contextual inside–outside layers give every span a vector that knows its parts and
its surroundings; the spans of the best tree, 2n − 1 of them, enter a Transformer side by side with the words. Cells,
chart, passes, tree and parser have files of their own; here they are put together. Equation labels (recat-17) …
(recat-19) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.recat_cells import (
    EPS,
    BlockWeights,
    ScoreWeights,
    cast,
    compose_cells,
    feed_forward,
    multi_head_attention,
    spread_cells,
)
from refattn.layers.recat_parser import merge_order
from refattn.layers.recat_passes import (
    LayerWeights,
    chart_of,
    cio_stack,
    inside_pass,
    next_layer,
    outside_pass,
)
from refattn.layers.recat_tree import Tree, read_tree
from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_bool, as_float, as_integer, require, require_shape
from refattn.primitives.norms import layer_norm
from refattn.primitives.softmax import log_sum_exp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.layers.recat_chart import Chart
    from refattn.layers.recat_passes import Inside, Outside

__all__ = [
    "ReCATOutput",
    "ReCATPairOutput",
    "ReCATWeights",
    "encode_nodes",
    "mlm_logits",
    "mlm_loss",
    "recat_encode",
    "recat_encode_pair",
]


class ReCATWeights(NamedTuple):
    """The whole model but the parser.

    Attributes
    ----------
    embedding : ndarray, shape (V, D)
        One vector a word; also the output matrix.
    empty_cell : ndarray, shape (D,)
        The context of all spans in the first layer.
    heads : ScoreWeights
        The score heads.
    layers : tuple of LayerWeights
        The contextual inside–outside layers.
    encoder : tuple of BlockWeights
        The Transformer over the nodes of the tree.
    mlm_w, mlm_b : ndarray, shape (D, D) and (D,)
        The hidden layer of the word predictor.
    mlm_bias : ndarray, shape (V,)
        Its bias.
    """

    embedding: np.ndarray
    empty_cell: np.ndarray
    heads: ScoreWeights
    layers: tuple[LayerWeights, ...]
    encoder: tuple[BlockWeights, ...]
    mlm_w: np.ndarray
    mlm_b: np.ndarray
    mlm_bias: np.ndarray


class ReCATOutput(NamedTuple):
    """What the model says of one sentence.

    Attributes
    ----------
    nodes, splits : ndarray of int, shape (2n − 1, 2) and (2n − 1,)
        The tree; see `Tree`.
    spans : ndarray, shape (2n − 1, D)
        The outside vectors of its nodes, before the Transformer.
    vectors : ndarray, shape (2n − 1, D)
        After it.
    logits : ndarray, shape (2n − 1, V)
        Of the word predictor; it is trained on the leaves.
    """

    nodes: np.ndarray
    splits: np.ndarray
    spans: np.ndarray
    vectors: np.ndarray
    logits: np.ndarray


class ReCATPairOutput(NamedTuple):
    """What the model says of two sentences together.

    Attributes
    ----------
    group : ndarray, shape (D,)
        The vector of the pair, before the Transformer.
    trees : tuple of Tree
        One a sentence.
    vectors : ndarray, shape (1 + 2n_A − 1 + 2n_B − 1, D)
        After the Transformer: the pair, the nodes of A, the nodes of B.
    roots : ndarray, shape (2, D)
        What the last layer tells the two roots.
    """

    group: np.ndarray
    trees: tuple[Tree, ...]
    vectors: np.ndarray
    roots: np.ndarray


def recat_encode(
    token_ids: Any,
    weights: ReCATWeights,
    *,
    n_heads: int,
    window: int | None = None,
    order: Any = None,
    split_scores: Any = None,
    merged_scores: str = "kept",
) -> ReCATOutput:
    """Encode a sentence: build its chart, read its tree, let the nodes attend to each other.

    1. Look the words up.
    2. Run the contextual inside–outside layers over the chart.
    3. Read the tree out of the last inside pass, and take the outside vectors of its 2n − 1 nodes.
    4. Run the Transformer over them, and predict words.

    Parameters
    ----------
    token_ids : array_like of int, shape (n,)
        n at least 1.
    weights : ReCATWeights
        The model.
    n_heads : int
        H, a divisor of D.
    window : int, optional
        m of `pruned_chart`, 2 in the paper; None for the exact chart. 1 forces the tree of the order, as the official
        code does at inference.
    order : array_like of int, shape (n - 1,), optional
        The merge order.
    split_scores : array_like, shape (n - 1,), optional
        The parser's scores, from which the order follows if it is not given.
    merged_scores : {"kept", "zero"}
        See `inside_pass`; the released weights were trained with "zero".

    Returns
    -------
    ReCATOutput

    Raises
    ------
    ValueError
        If a word is outside the vocabulary, a window comes without order and scores, or something does not fit.

    References
    ----------
    2309.16319, section 3 [recalled]; model/fast_r2d2_iter_attn_share_mlp.py at tag ReCAT.
    """
    chart, leaves = _started(token_ids, weights, window, order, split_scores)  # 1
    results = cio_stack(
        leaves, chart, weights.layers, weights.heads, weights.empty_cell, n_heads=n_heads, merged_scores=merged_scores
    )  # 2
    tree, spans = _read(*results[-1], chart)  # 3
    vectors = encode_nodes(spans, weights.encoder, n_heads=n_heads)  # 4
    return ReCATOutput(tree.nodes, tree.splits, spans, vectors, mlm_logits(vectors, weights))


def recat_encode_pair(
    token_ids: Sequence[Any],
    weights: ReCATWeights,
    *,
    n_heads: int,
    window: int | None = None,
    orders: Sequence[Any] = (None, None),
    merged_scores: str = "kept",
) -> ReCATPairOutput:
    """Encode two sentences under one common node, through which their roots speak to each other in every layer.

    Parameters
    ----------
    token_ids : pair of array_like of int, shape (n_A,) and (n_B,)
        The two sentences.
    weights, n_heads, window, merged_scores
        See `recat_encode`.
    orders : pair of array_like of int, optional
        Their merge orders.

    Returns
    -------
    ReCATPairOutput

    Raises
    ------
    ValueError
        As `recat_encode`; or if there are not two sentences.
    """
    require(len(token_ids) == len(orders) == 2, f"token_ids holds {len(token_ids)} sentences, expected two and orders")
    started = [_started(ids, weights, window, order, None) for ids, order in zip(token_ids, orders, strict=True)]
    charts = [chart for chart, _ in started]
    leaves = [vectors for _, vectors in started]
    dtype = leaves[0].dtype
    group = weights.empty_cell.astype(dtype, copy=False)
    contexts: list[Any] = [group, group]
    for layer in weights.layers:
        insides = [
            inside_pass(x, chart, layer.inside, weights.heads, context=c, n_heads=n_heads, merged_scores=merged_scores)
            for x, chart, c in zip(leaves, charts, contexts, strict=True)
        ]
        roots = [inside.vectors[chart.root] for inside, chart in zip(insides, charts, strict=True)]
        # eq: recat-19
        group = compose_cells(group, roots[0], roots[1], cast(layer.inside, dtype), n_heads)
        told = spread_cells(group, roots[0], roots[1], cast(layer.outside, dtype), n_heads)  # (2, D)
        outsides = [
            outside_pass(inside, chart, layer.outside, weights.heads, n_heads=n_heads, root=root)
            for inside, chart, root in zip(insides, charts, told, strict=True)
        ]
        following = [next_layer(outside, chart) for outside, chart in zip(outsides, charts, strict=True)]
        leaves, contexts = [x for x, _ in following], [c for _, c in following]
    read = [_read(*sentence) for sentence in zip(insides, outsides, charts, strict=True)]
    sequence = np.concatenate([group[None], *(spans for _, spans in read)])
    vectors = encode_nodes(sequence, weights.encoder, n_heads=n_heads)
    return ReCATPairOutput(group, tuple(tree for tree, _ in read), vectors, told)


def encode_nodes(x: Any, layers: Sequence[BlockWeights], *, n_heads: int, mask: Any = None) -> np.ndarray:
    """Let the nodes of a tree attend to each other, without positions: their vectors say where they are.

    Parameters
    ----------
    x : array_like, shape (..., M, D)
        The node vectors.
    layers : sequence of BlockWeights
        Transformer layers that normalise first.
    n_heads : int
        H, a divisor of D.
    mask : array_like of bool, shape (..., M), optional
        True = a node, False = padding, which nobody sees.

    Returns
    -------
    ndarray, shape (..., M, D)
        Without a last norm. Rows of padding mean nothing.

    Raises
    ------
    ValueError
        If D is no multiple of H, or shapes do not fit.
    """
    x = as_float("x", x)
    require(x.ndim >= 2, f"x has shape {x.shape}, expected (..., M, D)")
    D = x.shape[-1]
    require(index(n_heads) >= 1 and D % n_heads == 0, f"n_heads={n_heads!r} must divide the width D={D}")
    where = None
    if mask is not None:
        mask = as_bool("mask", mask)
        require_shape("mask", mask, x.shape[:-1])
        where = mask[..., None, None, :]  # (..., 1, 1, M)
    for block in layers:
        w = cast(block, x.dtype)
        # eq: recat-17
        y = layer_norm(x, w.norm1_w, w.norm1_b, eps=EPS)
        x = x + multi_head_attention(y, y, w.attention, n_heads=n_heads, where=where)
        x = x + feed_forward(layer_norm(x, w.norm2_w, w.norm2_b, eps=EPS), w)
    return np.asanyarray(x)


def mlm_logits(vectors: Any, weights: ReCATWeights) -> np.ndarray:
    """Predict the word of a node: its vector through one hidden layer, against all embeddings.

    Parameters
    ----------
    vectors : array_like, shape (..., D)
        Node vectors after the Transformer.
    weights : ReCATWeights
        The model.

    Returns
    -------
    ndarray, shape (..., V)

    Raises
    ------
    ValueError
        If the widths differ.
    """
    x = as_float("vectors", vectors)
    require_shape("weights.mlm_w", np.asanyarray(weights.mlm_w), 2 * x.shape[-1:])
    E, w, b, bias = (
        cast(part, x.dtype) for part in (weights.embedding, weights.mlm_w, weights.mlm_b, weights.mlm_bias)
    )
    # eq: recat-18
    return np.asanyarray(gelu(x @ w + b) @ E.T + bias)


def mlm_loss(logits: Any, targets: Any) -> Any:
    """Return the mean cross-entropy of the words that are asked for.

    Parameters
    ----------
    logits : array_like, shape (..., V)
        Of the leaves.
    targets : array_like of int, shape (...)
        The words; −1 asks for nothing.

    Returns
    -------
    floating
        0 where nothing is asked for.

    Raises
    ------
    ValueError
        If shapes differ, or a target is outside the vocabulary.
    """
    logits, targets = as_float("logits", logits), as_integer("targets", targets)
    require_shape("targets", targets, logits.shape[:-1])
    require(np.all((targets >= -1) & (targets < logits.shape[-1])), f"targets must be in [-1, {logits.shape[-1]})")
    asked = targets >= 0
    chosen = np.take_along_axis(logits[asked], targets[asked][:, None], axis=-1)[:, 0]
    return np.sum(log_sum_exp(logits[asked]) - chosen) / max(int(np.sum(asked)), 1)


def _started(
    token_ids: Any, weights: ReCATWeights, window: int | None, order: Any, split_scores: Any
) -> tuple[Chart, Any]:
    """Return the chart of a sentence and the vectors of its words."""
    ids, embedding = as_integer("token_ids", token_ids, ndim=1), as_float("weights.embedding", weights.embedding)
    require(len(ids) >= 1, "token_ids is empty, expected at least one token")
    require(np.all((ids >= 0) & (ids < len(embedding))), f"token_ids must be in [0, {len(embedding)})")
    if order is None and split_scores is not None:
        order = merge_order(split_scores)
    return chart_of(len(ids), window, order), embedding[ids]


def _read(inside: Inside, outside: Outside, chart: Chart) -> tuple[Tree, Any]:
    """Return the tree, and the outside vectors of its nodes."""
    tree = read_tree(inside, chart)
    return tree, np.stack([outside.vectors[int(i), int(j)] for i, j in tree.nodes])
