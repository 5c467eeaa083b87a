"""ReCAT once more, straight from the definitions, in steps that can be exchanged: what wrong versions are made of.

Sentences one by one, spans by recursion, one pair of parts at a time. Without changes, ``composing()``, ``stacking()``
and so on compute what the references compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import erf, expit

from refattn.layers.recat import ReCATOutput
from refattn.layers.recat_passes import CIOCells, InsideCells

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refattn.layers.recat_cells import AttentionWeights, BlockWeights, CellWeights, HeadWeights, ScoreWeights
    from refattn.layers.recat_parser import LSTMWeights, ParserWeights

__all__ = [
    "composing",
    "encoding",
    "gelu",
    "insides",
    "modelling",
    "normed",
    "parsing",
    "softmax",
    "spreading",
    "stacking",
]

Span = tuple[int, int]


def softmax(s: np.ndarray) -> np.ndarray:
    """Return exponentials over their sum, along the last axis."""
    e = np.exp(s - np.max(s, axis=-1, keepdims=True))
    return np.asarray(e / np.sum(e, axis=-1, keepdims=True))


def gelu(x: np.ndarray) -> np.ndarray:
    """Return x Φ(x)."""
    return np.asarray(0.5 * x * (1.0 + erf(x / 2**0.5)))


def normed(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the layer norm."""
    return np.asarray((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b)


def with_role(three: np.ndarray, roles: np.ndarray) -> np.ndarray:
    """Add its role to each of three vectors."""
    return np.asarray(three + roles)


def carried(three: np.ndarray, _seen: np.ndarray) -> np.ndarray:
    """Return what the residual carries on."""
    return three


def asks(_three: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the queries."""
    return seen


def temperature(D: int, n_heads: int) -> float:
    """Return what scores of attention are divided by."""
    return float((D // n_heads) ** 0.5)


def finish(x: np.ndarray, attended: np.ndarray, w: BlockWeights) -> np.ndarray:
    """Add and normalise, feed forward, add and normalise."""
    y = normed(x + attended, w.norm1_w, w.norm1_b)
    return normed(y + gelu(y @ w.w1 + w.b1) @ w.w2 + w.b2, w.norm2_w, w.norm2_b)


class CellSteps(NamedTuple):
    """The steps of the two cell functions."""

    with_role: Callable[..., np.ndarray] = with_role
    carried: Callable[..., np.ndarray] = carried
    asks: Callable[..., np.ndarray] = asks
    temperature: Callable[..., float] = temperature
    finish: Callable[..., np.ndarray] = finish


def attend(
    q: np.ndarray,
    x: np.ndarray,
    w: AttentionWeights,
    n_heads: int,
    divide: Callable[..., float] = temperature,
    hidden: Any = 0.0,
) -> np.ndarray:
    """Attend, head by head: q (..., Q, D) to x (..., K, D)."""
    D = q.shape[-1]
    projected = [a @ w.w_in[:, p * D : (p + 1) * D] + w.b_in[p * D : (p + 1) * D] for p, a in enumerate((q, x, x))]
    outs = []
    for h in range(n_heads):
        columns = slice(h * D // n_heads, (h + 1) * D // n_heads)
        hq, hk, hv = (a[..., columns] for a in projected)
        outs.append(softmax(hq @ hk.mT / divide(D, n_heads) + hidden) @ hv)
    return np.asarray(np.concatenate(outs, -1) @ w.w_out + w.b_out)


def cell(steps: CellSteps, three: np.ndarray, asking: slice, w: CellWeights, n_heads: int) -> np.ndarray:
    """Run one cell function on three vectors (..., 3, D)."""
    seen = steps.with_role(three, w.roles)
    q, x = (step(three, seen)[..., asking, :] for step in (steps.asks, steps.carried))
    return steps.finish(x, attend(q, seen, w.block.attention, n_heads, steps.temperature), w.block)


def composing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `compose` with these steps exchanged."""
    steps = CellSteps(**changes)

    def wrong(context: np.ndarray, left: np.ndarray, right: np.ndarray, weights: CellWeights, *, n_heads: int) -> Any:
        return cell(steps, np.stack([context, left, right], -2), slice(1), weights, n_heads)[..., 0, :]

    return wrong


def spreading(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `spread` with these steps exchanged."""
    steps = CellSteps(**changes)

    def wrong(parent: np.ndarray, left: np.ndarray, right: np.ndarray, weights: CellWeights, *, n_heads: int) -> Any:
        return cell(steps, np.stack([left, right, parent], -2), slice(2), weights, n_heads)

    return wrong


def read(leaves: np.ndarray) -> np.ndarray:
    """Return the vectors of the leaves."""
    return leaves


def cuts(i: int, j: int, closed: list[int], m: int) -> list[int]:
    """Return the split points of a span: the m that close last."""
    return sorted(sorted(range(i, j), key=lambda k: closed[k])[-m:]) if i < j else []


def part_score(a: float, merged: bool, rule: str) -> float:
    """Return what the score of a part brings into that of the whole."""
    return 0.0 if merged and rule == "zero" else a


def whole_score(phi: float, left: float, right: float) -> float:
    """Return the score of a split."""
    return phi + left + right


def match(x: np.ndarray, y: np.ndarray) -> float:
    """Return the product of two score vectors."""
    return float(x @ y / len(x) ** 0.5)


def average(w: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Average the vectors of the splits."""
    return np.asarray(w @ made)


def mean_score(w: np.ndarray, s: np.ndarray) -> float:
    """Return the score of a span from those of its splits."""
    return float(w @ s)


def root_hears(e: np.ndarray) -> np.ndarray:
    """Return what the root is told."""
    return e


def heard_score(psi: float, b: float, _own: float, sibling: float) -> float:
    """Return the score of what a part is told by one parent and split."""
    return psi + b + sibling


def told_by(_own: np.ndarray, sibling: np.ndarray, left: Any, right: Any, is_left: bool) -> tuple[np.ndarray, Any]:
    """Return the vector, and the head, that meet the parent."""
    return sibling, right if is_left else left


def hear(t: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, float]:
    """Average all that a part is told."""
    v = softmax(t)
    return v @ told, float(v @ t)


def next_leaves(_e: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Return the leaves of the next layer."""
    return o


def next_context(o: dict[Span, np.ndarray], _empty: np.ndarray) -> dict[Span, np.ndarray]:
    """Return the contexts of the next layer."""
    return o


class PassSteps(NamedTuple):
    """The steps of the passes."""

    read: Callable[..., np.ndarray] = read
    cuts: Callable[..., list[int]] = cuts
    part_score: Callable[..., float] = part_score
    whole_score: Callable[..., float] = whole_score
    match: Callable[..., float] = match
    weigh: Callable[..., np.ndarray] = softmax
    average: Callable[..., np.ndarray] = average
    mean_score: Callable[..., float] = mean_score
    root_hears: Callable[..., np.ndarray] = root_hears
    heard_score: Callable[..., float] = heard_score
    told_by: Callable[..., tuple[np.ndarray, Any]] = told_by
    hear: Callable[..., tuple[np.ndarray, float]] = hear
    next_leaves: Callable[..., np.ndarray] = next_leaves
    next_context: Callable[..., dict[Span, np.ndarray]] = next_context


class Grid(NamedTuple):
    """A chart: cells by length, then start, with their splits, and what was merged."""

    splits: dict[Span, list[int]]
    merged: set[Span]


def grid(steps: PassSteps, n: int, window: int | None, order: Sequence[int] | None) -> Grid:
    """Cut a sentence from the root downwards."""
    m = n if window is None else window
    closed = list(np.argsort(order)) if window is not None and order is not None else list(range(n - 1))
    found: dict[Span, list[int]] = {}

    def visit(i: int, j: int) -> None:
        if (i, j) not in found:
            found[i, j] = steps.cuts(i, j, closed, m)
            for k in found[i, j]:
                visit(i, k)
                visit(k + 1, j)

    visit(0, n - 1)
    spans = sorted(found, key=lambda span: (span[1] - span[0], span[0]))

    def merged(i: int, j: int) -> bool:
        last = max(closed[i:j], default=n)
        return last < n - 1 - m and all(last < closed[p] for p in (i - 1, j) if 0 <= p < n - 1)

    return Grid({span: found[span] for span in spans}, {span for span in spans if merged(*span)})


def head(x: np.ndarray, w: HeadWeights) -> np.ndarray:
    """Return a score vector."""
    return np.asarray(gelu(x @ w.w1 + w.b1) @ w.w2 + w.b2)


class Up(NamedTuple):
    """An inside pass by span."""

    e: dict[Span, np.ndarray]
    a: dict[Span, float]
    s: dict[Span, np.ndarray]
    w: dict[Span, np.ndarray]


def up(
    steps: PassSteps,
    leaves: np.ndarray,
    context: dict[Span, np.ndarray],
    weights: CellWeights,
    heads: ScoreWeights,
    chart: Grid,
    *,
    n_heads: int,
    rule: str,
) -> Up:
    """Make all spans of one sentence."""
    compose = composing()
    leaves = steps.read(leaves)
    result = Up({(i, i): x for i, x in enumerate(leaves)}, {(i, i): 0.0 for i in range(len(leaves))}, {}, {})
    e, a, s, w = result
    for (i, j), splits in chart.splits.items():
        if i == j:
            continue
        made, scores = [], []
        for k in splits:
            left, right = (i, k), (k + 1, j)
            phi = steps.match(head(e[left], heads.inside_left), head(e[right], heads.inside_right))
            below = (steps.part_score(a[part], part in chart.merged, rule) for part in (left, right))
            scores.append(steps.whole_score(phi, *below))
            made.append(compose(context[i, j], e[left], e[right], weights, n_heads=n_heads))
        s[i, j] = np.array(scores)
        w[i, j] = steps.weigh(s[i, j])
        e[i, j], a[i, j] = steps.average(w[i, j], np.array(made)), steps.mean_score(w[i, j], s[i, j])
    return result


def down(
    steps: PassSteps, inside: Up, weights: CellWeights, heads: ScoreWeights, chart: Grid, *, n_heads: int
) -> tuple[dict[Span, np.ndarray], dict[Span, float]]:
    """Tell all spans of one sentence what is around them."""
    spread = spreading()
    e, a, _, _ = inside
    root = next(reversed(chart.splits))
    o, b = {root: steps.root_hears(e[root])}, {root: 0.0}
    for span in list(reversed(chart.splits))[1:]:
        t, told = [], []
        for parent, splits in chart.splits.items():
            for k in splits:
                parts = (parent[0], k), (k + 1, parent[1])
                if span in parts:
                    is_left = span == parts[0]
                    other = parts[1] if is_left else parts[0]
                    told_x, told_head = steps.told_by(
                        e[span], e[other], heads.outside_left, heads.outside_right, is_left
                    )
                    psi = steps.match(head(o[parent], heads.outside_parent), head(told_x, told_head))
                    t.append(steps.heard_score(psi, b[parent], a[span], a[other]))
                    both = spread(o[parent], e[parts[0]], e[parts[1]], weights, n_heads=n_heads)
                    told.append(both[0 if is_left else 1])
        o[span], b[span] = steps.hear(np.array(t), np.array(told))
    return o, b


def insides(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `inside_cells` with these steps exchanged."""
    steps = PassSteps(**changes)

    def wrong(
        leaves: np.ndarray,
        context: np.ndarray,
        weights: CellWeights,
        heads: ScoreWeights,
        *,
        n_heads: int,
        window: int | None = None,
        order: Any = None,
        merged_scores: str = "kept",
    ) -> InsideCells:
        chart = grid(steps, leaves.shape[-2], window, order)
        rows = []
        for b, x in enumerate(leaves):
            around = context if context.ndim == 1 else context[b]
            known = {span: around if around.ndim == 1 else around[c] for c, span in enumerate(chart.splits)}
            result = up(steps, x, known, weights, heads, chart, n_heads=n_heads, rule=merged_scores)
            e, a = (np.array([by_span[span] for span in chart.splits]) for by_span in result[:2])
            rows.append((e, a, *(np.concatenate([np.zeros(0), *by_span.values()]) for by_span in result[2:])))
        return InsideCells(*(np.array(part) for part in zip(*rows, strict=True)))

    return wrong


def stacking(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `cio_cells` with these steps exchanged."""
    steps = PassSteps(**changes)

    def wrong(
        leaves: np.ndarray,
        layers: Any,
        heads: ScoreWeights,
        empty_cell: np.ndarray,
        *,
        n_heads: int,
        window: int | None = None,
        order: Any = None,
        merged_scores: str = "kept",
    ) -> CIOCells:
        chart = grid(steps, leaves.shape[-2], window, order)
        rows = [
            _stacked(layer_by_layer(steps, x, layers, heads, empty_cell, chart, n_heads, merged_scores), chart)
            for x in leaves
        ]
        return CIOCells(*(np.stack(part, axis=1) for part in zip(*rows, strict=True)))

    return wrong


def layer_by_layer(
    steps: PassSteps,
    x: np.ndarray,
    layers: Any,
    heads: ScoreWeights,
    empty: np.ndarray,
    chart: Grid,
    n_heads: int,
    rule: str,
) -> list[tuple[Up, Any, Any]]:
    """Run the layers on one sentence."""
    context, results = dict.fromkeys(chart.splits, empty), []
    for w in layers:
        inside = up(steps, x, context, w.inside, heads, chart, n_heads=n_heads, rule=rule)
        o, b = down(steps, inside, w.outside, heads, chart, n_heads=n_heads)
        results.append((inside, o, b))
        x = np.array([steps.next_leaves(inside.e[i, i], o[i, i]) for i in range(len(x))])
        context = steps.next_context(o, empty)
    return results


def _stacked(results: list[tuple[Up, Any, Any]], chart: Grid) -> tuple[np.ndarray, ...]:
    parts = [(inside.e, inside.a, o, b) for inside, o, b in results]
    return tuple(
        np.array([[by_span[c] for c in chart.splits] for by_span in part]) for part in zip(*parts, strict=True)
    )


def before(x: np.ndarray) -> np.ndarray:
    """Prepare the nodes."""
    return x


def hidden(mask: np.ndarray) -> np.ndarray:
    """Return what is added to the scores of keys."""
    return np.where(mask, 0.0, -np.inf)


def node_layer(x: np.ndarray, w: BlockWeights, n_heads: int, unseen: Any) -> np.ndarray:
    """Run one layer of the Transformer."""
    y = normed(x, w.norm1_w, w.norm1_b)
    x = x + attend(y, y, w.attention, n_heads, hidden=unseen)
    y = normed(x, w.norm2_w, w.norm2_b)
    return np.asarray(x + gelu(y @ w.w1 + w.b1) @ w.w2 + w.b2)


def after(x: np.ndarray) -> np.ndarray:
    """Finish the nodes."""
    return x


class NodeSteps(NamedTuple):
    """The steps of the Transformer over nodes."""

    before: Callable[..., np.ndarray] = before
    hidden: Callable[..., np.ndarray] = hidden
    node_layer: Callable[..., np.ndarray] = node_layer
    after: Callable[..., np.ndarray] = after


def encoding(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `encode_nodes` with these steps exchanged."""
    steps = NodeSteps(**changes)

    def wrong(x: np.ndarray, layers: Any, *, n_heads: int, mask: np.ndarray | None = None) -> np.ndarray:
        unseen = 0.0 if mask is None else steps.hidden(mask)[..., None, :]
        x = steps.before(x)
        for w in layers:
            x = steps.node_layer(x, w, n_heads, unseen)
        return steps.after(x)

    return wrong


def gates(z: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the input, forget, candidate and output parts."""
    i, f, g, o = np.split(z, 4, axis=-1)
    return expit(i), expit(f), np.tanh(g), expit(o)


def backwards(x: np.ndarray, run: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Read from the end; the state of each token at its place."""
    return run(x[..., ::-1, :])[..., ::-1, :]


def sides(ahead: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Return what is known at each split point."""
    return np.concatenate([ahead[..., :-1, :], back[..., 1:, :]], axis=-1)


def squash(x: np.ndarray) -> np.ndarray:
    """Return the non-linearity of the score."""
    return gelu(x)


class ParserSteps(NamedTuple):
    """The steps of the parser."""

    gates: Callable[..., tuple[np.ndarray, ...]] = gates
    backwards: Callable[..., np.ndarray] = backwards
    sides: Callable[..., np.ndarray] = sides
    squash: Callable[..., np.ndarray] = squash


def parsing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `split_scores` with these steps exchanged."""
    steps = ParserSteps(**changes)

    def run(x: np.ndarray, w: LSTMWeights) -> np.ndarray:
        h = c = np.zeros((len(x), len(w.w_h)))
        states = []
        for t in range(x.shape[1]):
            i, f, g, o = steps.gates(x[:, t] @ w.w_x + h @ w.w_h + w.b)
            c = f * c + i * g
            h = o * np.tanh(c)
            states.append(h)
        return np.stack(states, axis=1)

    def wrong(x: np.ndarray, weights: ParserWeights) -> np.ndarray:
        for ahead, back in weights.layers:
            ways = run(x, ahead), steps.backwards(x, lambda y, w=back: run(y, w))
            x = np.concatenate(ways, axis=-1)
        z = steps.squash(steps.sides(*ways) @ weights.w1 + weights.b1)
        return np.asarray((z @ weights.w2 + weights.b2)[..., 0])

    return wrong


def choose(s: np.ndarray) -> int:
    """Choose among the splits of a span."""
    return int(np.argmax(s))


def walk(i: int, k: int, j: int) -> list[Span]:
    """Return the parts of a span in the order in which they are listed."""
    return [(i, k), (k + 1, j)]


def node_vector(_e: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Return what enters the Transformer for a node."""
    return o


def predict(x: np.ndarray, weights: Any) -> np.ndarray:
    """Return the logits of words."""
    return np.asarray(gelu(x @ weights.mlm_w + weights.mlm_b) @ weights.embedding.T + weights.mlm_bias)


class ModelSteps(NamedTuple):
    """The steps from the chart to the words."""

    choose: Callable[..., int] = choose
    walk: Callable[..., list[Span]] = walk
    node_vector: Callable[..., np.ndarray] = node_vector
    predict: Callable[..., np.ndarray] = predict


def modelling(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `recat_encode` with these steps exchanged."""
    steps, passes = ModelSteps(**changes), PassSteps()

    def wrong(
        token_ids: np.ndarray,
        weights: Any,
        *,
        n_heads: int,
        window: int | None = None,
        order: Any = None,
        merged_scores: str = "kept",
    ) -> ReCATOutput:
        chart = grid(passes, len(token_ids), window, order)
        x = weights.embedding[token_ids]
        inside, o, _ = layer_by_layer(
            passes, x, weights.layers, weights.heads, weights.empty_cell, chart, n_heads, merged_scores
        )[-1]
        nodes: list[Span] = []
        points: list[int] = []

        def visit(i: int, j: int) -> None:
            k = chart.splits[i, j][steps.choose(inside.s[i, j])] if i < j else -1
            nodes.append((i, j))
            points.append(k)
            for part in steps.walk(i, k, j) if i < j else []:
                visit(*part)

        visit(0, len(token_ids) - 1)
        spans = np.array([steps.node_vector(inside.e[span], o[span]) for span in nodes])
        vectors = encoding()(spans[None], weights.encoder, n_heads=n_heads)[0]
        return ReCATOutput(np.array(nodes), np.array(points), spans, vectors, steps.predict(vectors, weights))

    return wrong
