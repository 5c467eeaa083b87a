"""The tree followed through all levels at once, the Transformer over it, and the parser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace

from refattn.backends.pointwise import gelu, layer_norm
from refattn.backends.portable.recat.chart import index_table, tables
from refattn.backends.portable.recat.passes import EPS, cio_levels
from refattn.layers.recat import ReCATOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.backends.portable.recat.chart import Tables

__all__ = ["encode_nodes", "recat_encode", "split_scores"]


def recat_encode(
    token_ids: Any,
    weights: Any,
    *,
    n_heads: int,
    window: int | None = None,
    order: Any = None,
    merged_scores: str = "kept",
) -> ReCATOutput:
    """Encode a sentence; the merge order is static, the tree is not."""
    xp = array_namespace(weights.embedding)
    n = token_ids.shape[0]
    chart = tables(n, window, order)
    leaves = xp.take(weights.embedding, token_ids, axis=0)
    e, _, s, o, _ = cio_levels(
        leaves, weights.layers, weights.heads, weights.empty_cell, chart, n_heads, merged_scores == "zero"
    )[-1]
    del e
    cells, splits = _preorder(s, chart)
    spans = xp.take(o, cells, axis=0)
    vectors = encode_nodes(spans, weights.encoder, n_heads=n_heads)
    hidden = gelu(vectors @ weights.mlm_w + weights.mlm_b)
    logits = hidden @ xp.matrix_transpose(weights.embedding) + weights.mlm_bias
    return ReCATOutput(xp.take(index_table(s, chart.spans), cells, axis=0), splits, spans, vectors, logits)


def _preorder(s: Any, chart: Tables) -> tuple[Any, Any]:
    """Return the cells of the best tree in preorder, and their splits.

    A cell is in the tree if the parent that is in it has chosen the split that makes it. Its place in preorder is one
    behind its parent's if it is a left part; a right part comes after the 2m − 1 nodes of the m tokens to its left.
    """
    xp = array_namespace(s)
    count = len(chart.spans)
    n = int(np.max(chart.spans)) + 1
    chosen, split_of = _choices(s, chart)
    place, inside = [index_table(s, np.array([0]))], [index_table(s, np.array([True]))]
    for level in reversed(chart.levels[:-1]):
        edges = level.edges
        if edges is None:
            raise AssertionError("every cell but the root has a parent")
        own = xp.take(xp.concat(inside[::-1]), index_table(s, edges.parent - level.end))
        made = index_table(s, _split_of_edge(edges, chart))
        holds = own & (xp.take(chosen, index_table(s, edges.parent)) == made)
        steps = np.where(np.arange(len(edges.part)) < edges.n_left, 1, 2 * _lengths(chart)[edges.left])
        at = xp.take(xp.concat(place[::-1]), index_table(s, edges.parent - level.end)) + index_table(s, steps)
        at = xp.where(holds, at, xp.zeros_like(at))
        slots, real = index_table(s, edges.slots.reshape(-1)), index_table(s, edges.real)
        holds_rows = xp.reshape(xp.take(holds, slots), edges.slots.shape) & real
        at_rows = xp.reshape(xp.take(at, slots), edges.slots.shape)
        inside.append(xp.any(holds_rows, axis=-1))
        place.append(xp.max(at_rows, axis=-1))
    everywhere, known = xp.concat(place[::-1]), xp.concat(inside[::-1])
    last = index_table(s, np.full(count, 2 * n))
    cells = xp.argsort(xp.where(known, everywhere, last), stable=True)[: 2 * n - 1]
    return cells, xp.take(split_of, cells)


def _choices(s: Any, chart: Tables) -> tuple[Any, Any]:
    """Return the best split of each cell, as its number among all splits and as a split point; −1 for leaves."""
    xp = array_namespace(s)
    none = index_table(s, np.full(chart.levels[0].end, -1))
    chosen, points, begin = [none], [none], 0
    for level in chart.levels[1:]:
        numbers = level.slots + begin
        rows = xp.reshape(xp.take(s, index_table(s, numbers.reshape(-1))), numbers.shape)
        rows = xp.where(index_table(s, level.real), rows, xp.asarray(-xp.inf, dtype=s.dtype))
        best = xp.argmax(rows, axis=-1)
        first = index_table(s, numbers[:, 0])
        chosen.append(first + best)
        points.append(xp.take(index_table(s, chart.points), first + best))
        begin += len(level.left)
    return xp.concat(chosen), xp.concat(points)


def _split_of_edge(edges: Any, chart: Tables) -> np.ndarray:
    """Return the number, among all splits, of the split by which each way was made."""
    of_parts = _splits_by_parts(chart)
    return np.array([of_parts[int(l), int(r)] for l, r in zip(edges.left, edges.right, strict=True)], int)


def _splits_by_parts(chart: Tables) -> dict[tuple[int, int], int]:
    lefts = np.concatenate([level.left for level in chart.levels])
    rights = np.concatenate([level.right for level in chart.levels])
    return {(int(l), int(r)): number for number, (l, r) in enumerate(zip(lefts, rights, strict=True))}


def _lengths(chart: Tables) -> np.ndarray:
    return np.asarray(chart.spans[:, 1] - chart.spans[:, 0] + 1)


def encode_nodes(x: Any, layers: Sequence[Any], *, n_heads: int, mask: Any = None) -> Any:
    """Attend over all nodes; padding is hidden by adding −∞ to its scores."""
    xp = array_namespace(x)
    D = x.shape[-1]
    heads = (*x.shape[:-1], n_heads, D // n_heads)
    for block in layers:
        w = block.attention
        projected = layer_norm(x, block.norm1_w, block.norm1_b, EPS) @ w.w_in + w.b_in
        q, k, v = (_heads_first(xp.reshape(projected[..., p * D : (p + 1) * D], heads)) for p in range(3))
        s = q @ xp.matrix_transpose(k) / (D // n_heads) ** 0.5  # (..., H, M, M)
        if mask is not None:
            s = xp.where(mask[..., None, None, :], s, xp.asarray(-xp.inf, dtype=x.dtype))
        mean = xp.reshape(_heads_first(_softmax(s) @ v), x.shape)
        x = x + (mean @ w.w_out + w.b_out)
        hidden = layer_norm(x, block.norm2_w, block.norm2_b, EPS) @ block.w1 + block.b1
        x = x + (gelu(hidden) @ block.w2 + block.b2)
    return x


def split_scores(x: Any, weights: Any) -> Any:
    """Read both ways in step, inputs projected at once."""
    xp = array_namespace(x)
    for ahead, back in weights.layers:
        inputs = x @ ahead.w_x + ahead.b, x @ back.w_x + back.b
        width = ahead.w_h.shape[0]
        h = [xp.zeros((*x.shape[:-2], width), dtype=x.dtype)] * 2
        c, n = list(h), x.shape[-2]
        states: tuple[list[Any], list[Any]] = ([], [])
        for t in range(n):
            for way, w in enumerate((ahead, back)):
                gates = inputs[way][..., t if way == 0 else n - 1 - t, :] + h[way] @ w.w_h
                h[way], c[way] = _cell(gates, c[way], width)
                states[way].append(h[way])
        x = xp.concat([xp.stack(states[0], axis=-2), xp.stack(states[1][::-1], axis=-2)], axis=-1)
    half = x.shape[-1] // 2
    first = x[..., :-1, :half] @ weights.w1[:half, :] + x[..., 1:, half:] @ weights.w1[half:, :]
    return (gelu(first + weights.b1) @ weights.w2 + weights.b2)[..., 0]


def _cell(gates: Any, c: Any, width: int) -> tuple[Any, Any]:
    """Update a memory; the logistic function is a hyperbolic tangent of half the argument."""
    xp = array_namespace(gates)
    i, f, g, o = (gates[..., p * width : (p + 1) * width] for p in range(4))
    i, f, o = (0.5 + 0.5 * xp.tanh(0.5 * gate) for gate in (i, f, o))
    c = f * c + i * xp.tanh(g)
    return o * xp.tanh(c), c


def _heads_first(x: Any) -> Any:
    xp = array_namespace(x)
    axes = list(range(x.ndim))
    axes[-3], axes[-2] = axes[-2], axes[-3]
    return xp.permute_dims(x, tuple(axes))


def _softmax(s: Any) -> Any:
    xp = array_namespace(s)
    top = xp.max(s, axis=-1, keepdims=True)
    e = xp.exp(s - xp.where(top == -xp.inf, xp.zeros_like(top), top))
    total = xp.sum(e, axis=-1, keepdims=True)
    return e / xp.where(total == 0, xp.ones_like(total), total)
