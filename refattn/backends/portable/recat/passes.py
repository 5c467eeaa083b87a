"""Inside and outside passes, a level at a time: cells are projected once, pairs gather."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from array_api_compat import array_namespace

from refattn.backends.pointwise import gelu, layer_norm
from refattn.backends.portable.recat.chart import index_table, tables
from refattn.backends.portable.recat.gathers import take, weigh
from refattn.layers.recat_passes import CIOCells, InsideCells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.backends.portable.recat.chart import Edges, Level, Tables

__all__ = ["cio_cells", "cio_levels", "compose", "inside_cells", "spread"]

EPS = 1e-5  # of every layer norm


class Side(NamedTuple):
    """What a set of vectors is in one role: queries, keys and values, with the role in them."""

    q: Any
    k: Any
    v: Any


def compose(context: Any, left: Any, right: Any, weights: Any, *, n_heads: int) -> Any:
    """Make one vector of two: a query for the context, keys and values for all three."""
    context, left, right = _broadcast(context, left, right)
    sides = [_side(x, weights, role) for role, x in enumerate((context, left, right))]
    return _post_norm(context, sides[0].q, sides, weights.block, n_heads)


def spread(parent: Any, left: Any, right: Any, weights: Any, *, n_heads: int) -> Any:
    """Tell two vectors about their parent, one after the other."""
    xp = array_namespace(left)
    parent, left, right = _broadcast(parent, left, right)
    sides = [_side(x, weights, role) for role, x in enumerate((left, right, parent))]
    told = [_post_norm(x, side.q, sides, weights.block, n_heads) for x, side in zip((left, right), sides, strict=False)]
    return xp.stack(told, axis=-2)


def inside_cells(
    leaves: Any,
    context: Any,
    weights: Any,
    heads: Any,
    *,
    n_heads: int,
    window: int | None = None,
    order: Any = None,
    merged_scores: str = "kept",
) -> InsideCells:
    """Run the inside pass, and put its cells into the order of the chart."""
    chart = tables(leaves.shape[-2], window, order)
    if context.ndim > 1:
        context = take(context, chart.unstacked)
    e, a, s, w = _inside(leaves, context, weights, heads, chart, n_heads, merged_scores == "zero")
    cells, pairs = chart.stacked, chart.split_order
    return InsideCells(take(e, cells), take(a, cells, -1), take(s, pairs, -1), take(w, pairs, -1))


def cio_cells(
    leaves: Any,
    layers: Sequence[Any],
    heads: Any,
    empty_cell: Any,
    *,
    n_heads: int,
    window: int | None = None,
    order: Any = None,
    merged_scores: str = "kept",
) -> CIOCells:
    """Run all layers, and put their cells into the order of the chart."""
    xp = array_namespace(leaves)
    chart = tables(leaves.shape[-2], window, order)
    results = cio_levels(leaves, layers, heads, empty_cell, chart, n_heads, merged_scores == "zero")
    e, a, o, b = (xp.stack([result[part] for result in results]) for part in (0, 1, 3, 4))
    cells = chart.stacked
    return CIOCells(take(e, cells), take(a, cells, -1), take(o, cells), take(b, cells, -1))


def cio_levels(
    leaves: Any, layers: Sequence[Any], heads: Any, empty_cell: Any, chart: Tables, n_heads: int, zero: bool
) -> list[tuple[Any, ...]]:
    """Return e, a, s, o, b of every layer, level by level."""
    results, context = [], empty_cell
    for layer in layers:
        e, a, s, _ = _inside(leaves, context, layer.inside, heads, chart, n_heads, zero)
        context, b = _outside(e, a, layer.outside, heads, chart, n_heads)
        results.append((e, a, s, context, b))
        leaves = context[..., : leaves.shape[-2], :]
    return results


def _inside(
    leaves: Any, context: Any, weights: Any, heads: Any, chart: Tables, n_heads: int, zero: bool
) -> tuple[Any, Any, Any, Any]:
    """Return e, a, s, w of all cells and splits, level by level."""
    xp = array_namespace(leaves)
    e, a = [leaves], [xp.zeros_like(leaves[..., 0])]
    s, w = [leaves[..., :0, 0]], [leaves[..., :0, 0]]
    around = _side(context, weights, 0)
    parts = [_parts(leaves, weights, heads)]
    for level in chart.levels[1:]:
        left, right = (_joined(parts, side) for side in (0, 1))
        score, weight, made = _pairs(level, context, around, left, right, xp.concat(a, axis=-1), weights, n_heads, zero)
        e.append(xp.sum(weigh(weight, made, level.slots), axis=-2))
        a.append(xp.sum(weight * _rows(score, level.slots), axis=-1))
        s.append(score)
        w.append(take(xp.reshape(weight, (*weight.shape[:-2], level.real.size)), _flat(level), -1))
        parts.append(_parts(e[-1], weights, heads))
    return xp.concat(e, axis=-2), xp.concat(a, axis=-1), xp.concat(s, axis=-1), xp.concat(w, axis=-1)


def _parts(x: Any, weights: Any, heads: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Project cells once for either part that they may play: keys, values and score vector."""
    sides = (_side(x, weights, 1), _side(x, weights, 2))
    scores = (_head(x, heads.inside_left), _head(x, heads.inside_right))
    return (sides[0].k, sides[0].v, scores[0]), (sides[1].k, sides[1].v, scores[1])


def _joined(parts: list[Any], side: int) -> list[Any]:
    xp = array_namespace(parts[0][0][0])
    return [xp.concat([part[side][x] for part in parts], axis=-2) for x in range(3)]


def _pairs(
    level: Level,
    context: Any,
    around: Side,
    left: list[Any],
    right: list[Any],
    a: Any,
    weights: Any,
    n_heads: int,
    zero: bool,
) -> tuple[Any, Any, Any]:
    """Return scores (..., S), weights (..., c, K) and vectors (..., S, D) of all splits of a level."""
    xp = array_namespace(a)
    l, r = ([take(x, side) for x in of] for side, of in ((level.left, left), (level.right, right)))
    below = xp.stack([take(a, level.left, -1), take(a, level.right, -1)])  # (2, ..., S)
    if zero:
        dropped = index_table(a, level.below.reshape(2, *(1,) * (a.ndim - 1), -1))
        below = xp.where(dropped, xp.zeros_like(below), below)
    score = xp.sum(l[2] * r[2], axis=-1) / l[2].shape[-1] ** 0.5 + below[0, ...] + below[1, ...]
    x, *own = (part if context.ndim == 1 else take(part, level.cell) for part in (context, *around))
    sides = [Side(*own), Side(None, l[0], l[1]), Side(None, r[0], r[1])]
    made = _post_norm(x, own[0], sides, weights.block, n_heads)
    return score, _softmax(_rows(score, level.slots), level.real), made


def _outside(e: Any, a: Any, weights: Any, heads: Any, chart: Tables, n_heads: int) -> tuple[Any, Any]:
    """Return o and b of all cells: level by level each cell pulls from all its parents."""
    xp = array_namespace(e)
    sides = _side(e, weights, 0), _side(e, weights, 1)
    told = _head(e, heads.outside_right), _head(e, heads.outside_left)  # by what left and right parts are told
    count = e.shape[-2]
    o, b = [e[..., count - 1 :, :]], [xp.zeros_like(a[..., count - 1 :])]
    above = [_above(o[0], weights, heads)]
    for level in reversed(chart.levels[:-1]):
        edges, done = level.edges, level.end
        if edges is None:
            raise AssertionError("every cell but the root has a parent")
        keys, values, scores = (xp.concat([part[x] for part in reversed(above)], axis=-2) for x in range(3))
        parent = edges.parent - done
        t = _heard(edges, told, take(scores, parent))
        t = t + take(xp.concat(b[::-1], axis=-1), parent, -1) + take(a, edges.sibling, -1)
        three = [
            Side(None, take(side.k, cells), take(side.v, cells))
            for side, cells in zip(sides, (edges.left, edges.right), strict=True)
        ]
        three.append(Side(None, take(keys, parent), take(values, parent)))
        query = _by_part(edges, sides[0].q, sides[1].q)
        out = _post_norm(take(e, edges.part), query, three, weights.block, n_heads)
        t_rows = _rows(t, edges.slots)
        v = _softmax(t_rows, edges.real)
        o.append(xp.sum(weigh(v, out, edges.slots), axis=-2))
        b.append(xp.sum(v * t_rows, axis=-1))
        above.append(_above(o[-1], weights, heads))
    return xp.concat(o[::-1], axis=-2), xp.concat(b[::-1], axis=-1)


def _above(o: Any, weights: Any, heads: Any) -> tuple[Any, Any, Any]:
    side = _side(o, weights, 2)
    return side.k, side.v, _head(o, heads.outside_parent)


def _by_part(edges: Edges, left: Any, right: Any) -> Any:
    """Gather from one table for the ways of left parts, from another for those of right parts."""
    xp = array_namespace(left)
    first, second = edges.part[: edges.n_left], edges.part[edges.n_left :]
    return xp.concat([take(left, first), take(right, second)], axis=-2)


def _heard(edges: Edges, told: tuple[Any, Any], parents: Any) -> Any:
    """Return psi of every way: the parent's score vector against the sibling's."""
    xp = array_namespace(parents)
    first, second = edges.sibling[: edges.n_left], edges.sibling[edges.n_left :]
    siblings = xp.concat([take(told[0], first), take(told[1], second)], axis=-2)
    return xp.sum(parents * siblings, axis=-1) / parents.shape[-1] ** 0.5


def _side(x: Any, weights: Any, role: int) -> Side:
    """Project vectors in one role; the role is a bias of the projection."""
    D = x.shape[-1]
    attention = weights.block.attention
    projected = x @ attention.w_in + (weights.roles[role, :] @ attention.w_in + attention.b_in)
    return Side(*(projected[..., part * D : (part + 1) * D] for part in range(3)))


def _head(x: Any, head: Any) -> Any:
    return gelu(x @ head.w1 + head.b1) @ head.w2 + head.b2


def _post_norm(x: Any, query: Any, sides: Sequence[Side], block: Any, n_heads: int) -> Any:
    """Attend from one query to three pairs of key and value, and finish the layer."""
    xp = array_namespace(sides[1].k)
    D = sides[1].k.shape[-1]
    d = D // n_heads
    s = [_per_head(query * side.k, n_heads) / d**0.5 for side in sides]  # three of (..., H)
    top = xp.maximum(xp.maximum(s[0], s[1]), s[2])
    exponentials = [xp.exp(part - top) for part in s]
    total = exponentials[0] + exponentials[1] + exponentials[2]
    mean: Any = 0.0
    for part, side in zip(exponentials, sides, strict=True):
        v = xp.reshape(side.v, (*side.v.shape[:-1], n_heads, d))
        mean = mean + (part / total)[..., None] * v
    y = x + (xp.reshape(mean, (*mean.shape[:-2], D)) @ block.attention.w_out + block.attention.b_out)
    y = layer_norm(y, block.norm1_w, block.norm1_b, EPS)
    y = y + (gelu(y @ block.w1 + block.b1) @ block.w2 + block.b2)
    return layer_norm(y, block.norm2_w, block.norm2_b, EPS)


def _per_head(products: Any, n_heads: int) -> Any:
    xp = array_namespace(products)
    width = products.shape[-1] // n_heads
    return xp.sum(xp.reshape(products, (*products.shape[:-1], n_heads, width)), axis=-1)


def _rows(x: Any, slots: Any) -> Any:
    """Gather (..., S) into rows (..., c, K)."""
    xp = array_namespace(x)
    return xp.reshape(take(x, slots.reshape(-1), -1), (*x.shape[:-1], *slots.shape))


def _flat(level: Level) -> Any:
    """Return where the splits of a level stand in its rows."""
    return level.real.reshape(-1).nonzero()[0]


def _softmax(rows: Any, real: Any) -> Any:
    xp = array_namespace(rows)
    hidden = xp.asarray(-xp.inf, dtype=rows.dtype)
    rows = rows if real.all() else xp.where(index_table(rows, real), rows, hidden)
    exponentials = xp.exp(rows - xp.max(rows, axis=-1, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)


def _broadcast(*arrays: Any) -> list[Any]:
    xp = array_namespace(*arrays)
    return list(xp.broadcast_arrays(*arrays))
