"""Contextual inside–outside layers: vectors of all spans, bottom-up and then top-down (2309.16319).

The inside pass makes a vector of every span from its parts; where a span has several splits it takes their mean,
weighted by how good they are. The outside pass tells every span what is around it. The next layer starts from what the
last one told. Equation labels (recat-6) … (recat-12) are those of the page.

Results are dictionaries by span, for reading. `inside_cells` and `cio_cells` return the same as arrays whose rows are
the cells by length, then start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.recat_cells import (
    CellWeights,
    ScoreWeights,
    cast,
    check_cell,
    compose_cells,
    pair_score,
    spread_cells,
)
from refattn.layers.recat_chart import Chart, Span, check_chart, exact_chart, pruned_chart
from refattn.primitives.arguments import as_float, require, require_one_of, require_shape
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "CIOCells",
    "Inside",
    "InsideCells",
    "LayerWeights",
    "Outside",
    "chart_of",
    "cio_cells",
    "cio_stack",
    "inside_cells",
    "inside_pass",
    "outside_pass",
    "score_pass",
    "stack_cells",
]

RULES = ("kept", "zero")


class LayerWeights(NamedTuple):
    """One contextual inside–outside layer.

    Attributes
    ----------
    inside, outside : CellWeights
        Of `compose` and `spread`; `with_roles` makes the second of the first in the shared variant.
    """

    inside: CellWeights
    outside: CellWeights


class Inside(NamedTuple):
    """What an inside pass knows of each span.

    Attributes
    ----------
    vectors : dict of span to ndarray, shape (..., D)
        e.
    scores : dict of span to ndarray, shape (...)
        a, the mean score of the span's splits; 0 for leaves.
    split_scores, weights : dict of span to ndarray, shape (..., K)
        s and w of the K splits of each span that is no leaf.
    """

    vectors: dict[Span, np.ndarray]
    scores: dict[Span, np.ndarray]
    split_scores: dict[Span, np.ndarray]
    weights: dict[Span, np.ndarray]


class Outside(NamedTuple):
    """What an outside pass tells each span.

    Attributes
    ----------
    vectors : dict of span to ndarray, shape (..., D)
        o.
    scores : dict of span to ndarray, shape (...)
        b; 0 for the root.
    weights : dict of span to ndarray, shape (..., P)
        v of the P pairs of a parent and a split that speak to the span, longest parents first; none for the root.
    """

    vectors: dict[Span, np.ndarray]
    scores: dict[Span, np.ndarray]
    weights: dict[Span, np.ndarray]


class InsideCells(NamedTuple):
    """An inside pass as arrays, over C cells and S splits in the order of the chart.

    Attributes
    ----------
    vectors, scores : ndarray, shape (..., C, D) and (..., C)
        e and a.
    split_scores, weights : ndarray, shape (..., S)
        s and w, the splits of one cell after those of another.
    """

    vectors: np.ndarray
    scores: np.ndarray
    split_scores: np.ndarray
    weights: np.ndarray


class CIOCells(NamedTuple):
    """All layers as arrays, over R layers and C cells in the order of the chart.

    Attributes
    ----------
    inside_vectors, outside_vectors : ndarray, shape (R, ..., C, D)
        e and o.
    inside_scores, outside_scores : ndarray, shape (R, ..., C)
        a and b.
    """

    inside_vectors: np.ndarray
    inside_scores: np.ndarray
    outside_vectors: np.ndarray
    outside_scores: np.ndarray


def inside_pass(
    leaves: Any,
    chart: Chart,
    weights: CellWeights,
    heads: ScoreWeights,
    *,
    context: Any,
    n_heads: int,
    merged_scores: str = "kept",
) -> Inside:
    """Make the vector and the score of every span, shorter spans first.

    Parameters
    ----------
    leaves : array_like, shape (..., n, D)
        One vector a token; leading axes are sentences that share the chart.
    chart : Chart
        The spans and their splits.
    weights : CellWeights
        Of `compose`.
    heads : ScoreWeights
        The score heads.
    context : array_like, shape (D,), or mapping of span to array_like, shape (..., D)
        What is known around each span: the learned vector of the first layer, or the outside vectors of the last one.
    n_heads : int
        H, a divisor of D.
    merged_scores : {"kept", "zero"}
        Whether a part that pruning merged brings its own score into that of the whole, or 0.

    Returns
    -------
    Inside

    Raises
    ------
    ValueError
        If the leaves are not those of the chart, weights do not fit, or the rule is unknown.

    Notes
    -----
    The paper's rule is "kept" [recalled]. In the released code a merged part counts 0, since the half of the buffer
    that it is read from is never written (data_structure/tensor_cache.py:110): "zero". Without pruning both agree.

    References
    ----------
    2309.16319, section 3.1; model/fast_r2d2_iter_attn_share_mlp.py:160–208 at tag ReCAT.
    """
    leaves = _checked(leaves, chart, weights, n_heads, merged_scores)
    weights, heads = cast(weights, leaves.dtype), cast(heads, leaves.dtype)
    around = context if isinstance(context, dict) else dict.fromkeys(chart.splits, _learned(context, leaves))
    vectors = {(i, i): leaves[..., i, :] for i in range(chart.n)}

    def phi(i: int, j: int) -> Any:
        left, right = _parts(vectors, chart, i, j)
        return pair_score(left, right, heads.inside_left, heads.inside_right)  # (..., K)

    def arrive(i: int, j: int, w: Any) -> None:
        left, right = _parts(vectors, chart, i, j)
        made = compose_cells(around[i, j][..., None, :], left, right, weights, n_heads)  # (..., K, D)
        # eq: recat-8
        vectors[i, j] = np.sum(w[..., None] * made, axis=-2)  # (..., D)

    zero = np.zeros_like(leaves[..., 0, 0])  # (...)
    scores, split_scores, split_weights = _scores(chart, phi, zero, merged_scores, arrive)
    return Inside(vectors, scores, split_scores, split_weights)


def score_pass(phi: Any, chart: Chart, *, merged_scores: str = "kept") -> Inside:
    """Run the inside pass on given scores of pairs, without vectors.

    Parameters
    ----------
    phi : array_like, shape (n, n, n)
        phi[i, k, j] scores the split k of the span (i, j); all others are ignored.
    chart : Chart
        The spans and their splits.
    merged_scores : {"kept", "zero"}
        See `inside_pass`.

    Returns
    -------
    Inside
        Without vectors.

    Raises
    ------
    ValueError
        If phi has another shape, the chart is broken, or the rule is unknown.
    """
    phi = as_float("phi", phi, ndim=3)
    check_chart(chart)
    require_shape("phi", phi, (chart.n,) * 3)
    require_one_of("merged_scores", merged_scores, RULES)
    zero = np.zeros_like(phi[0, 0, 0])

    def given(i: int, j: int) -> Any:
        return phi[i, list(chart.splits[i, j]), j]

    return Inside({}, *_scores(chart, given, zero, merged_scores, lambda _i, _j, _w: None))


def outside_pass(
    inside: Inside, chart: Chart, weights: CellWeights, heads: ScoreWeights, *, n_heads: int, root: Any = None
) -> Outside:
    """Tell every span what is around it, longer spans first.

    Parameters
    ----------
    inside : Inside
        Of the same chart.
    chart : Chart
        The spans and their splits.
    weights : CellWeights
        Of `spread`.
    heads : ScoreWeights
        The score heads.
    n_heads : int
        H, a divisor of D.
    root : array_like, shape (..., D), optional
        What the root is told; its own inside vector if not given.

    Returns
    -------
    Outside

    Raises
    ------
    ValueError
        If weights do not fit the vectors, or the chart is broken.

    Notes
    -----
    A part is told by all its parents and splits at once, one softmax for all. The official code keeps a running sum
    with a running log-sum-exp, which is the same. The scores of the inside pass that enter here are the true ones,
    also for merged spans.

    References
    ----------
    2309.16319, section 3.1; model/fast_r2d2_iter_attn_share_mlp.py:210–299 at tag ReCAT.
    """
    check_chart(chart)
    e, a, _, _ = inside
    top = as_float("root", e[chart.root] if root is None else root)
    check_cell(e[chart.root].shape[-1], weights, n_heads)
    require_shape("root", top, e[chart.root].shape)
    weights, heads = cast(weights, top.dtype), cast(heads, top.dtype)
    o, b, weight = {chart.root: top}, {chart.root: np.zeros_like(a[chart.root])}, {}
    heard: dict[Span, list[tuple[Any, Any]]] = {span: [] for span in chart.splits}  # scores t and vectors
    for i, j in reversed(chart.splits):
        if (i, j) != chart.root:
            t, told = (np.stack(parts, axis=0) for parts in zip(*heard[i, j], strict=True))  # (P, ...) and (P, ..., D)
            # eq: recat-11
            v = softmax(t, axis=0)
            o[i, j], b[i, j] = np.sum(v[..., None] * told, axis=0), np.sum(v * t, axis=0)
            weight[i, j] = np.moveaxis(v, 0, -1)
        if i == j:
            continue
        parent, (left, right) = o[i, j][..., None, :], _parts(e, chart, i, j)  # (..., 1, D), (..., K, D)
        # eq: recat-9
        out = spread_cells(parent, left, right, weights, n_heads)  # (..., K, 2, D)
        psi_left = pair_score(parent, right, heads.outside_parent, heads.outside_right)  # (..., K)
        psi_right = pair_score(parent, left, heads.outside_parent, heads.outside_left)  # (..., K)
        for number, k in enumerate(chart.splits[i, j]):
            # eq: recat-10
            heard[i, k].append((psi_left[..., number] + b[i, j] + a[k + 1, j], out[..., number, 0, :]))
            heard[k + 1, j].append((psi_right[..., number] + b[i, j] + a[i, k], out[..., number, 1, :]))
    return Outside(o, b, weight)


def cio_stack(
    leaves: Any,
    chart: Chart,
    layers: Sequence[LayerWeights],
    heads: ScoreWeights,
    empty_cell: Any,
    *,
    n_heads: int,
    merged_scores: str = "kept",
) -> list[tuple[Inside, Outside]]:
    """Run layer after layer over one chart: each starts from what the last one told tokens and spans.

    Parameters
    ----------
    leaves : array_like, shape (..., n, D)
        One vector a token.
    chart : Chart
        The same in all layers.
    layers : sequence of LayerWeights
        R layers, at least one.
    heads : ScoreWeights
        The score heads, shared by all layers.
    empty_cell : array_like, shape (D,)
        The context of all spans in the first layer.
    n_heads : int
        H, a divisor of D.
    merged_scores : {"kept", "zero"}
        See `inside_pass`.

    Returns
    -------
    list of (Inside, Outside)
        One pair a layer.

    Raises
    ------
    ValueError
        If there is no layer, or something does not fit; see `inside_pass`.
    """
    require(len(layers) >= 1, "layers is empty, expected at least one")
    results: list[tuple[Inside, Outside]] = []
    context = empty_cell
    for layer in layers:
        inside = inside_pass(
            leaves, chart, layer.inside, heads, context=context, n_heads=n_heads, merged_scores=merged_scores
        )
        outside = outside_pass(inside, chart, layer.outside, heads, n_heads=n_heads)
        results.append((inside, outside))
        leaves, context = next_layer(outside, chart)
    return results


def next_layer(outside: Outside, chart: Chart) -> tuple[Any, dict[Span, np.ndarray]]:
    """Return leaves and contexts that the next layer starts from."""
    # eq: recat-12
    return np.stack([outside.vectors[i, i] for i in range(chart.n)], axis=-2), outside.vectors


def chart_of(n: int, window: int | None, order: Any) -> Chart:
    """Return the exact chart, or the pruned one of a window and a merge order.

    Parameters
    ----------
    n : int
        Number of tokens.
    window : int, optional
        m of `pruned_chart`; None for the exact chart.
    order : sequence of int, optional
        The n − 1 split points in merge order; needed with a window.

    Returns
    -------
    Chart

    Raises
    ------
    ValueError
        If a window comes without an order of n − 1 split points.
    """
    if window is None:
        return exact_chart(n)
    require(order is not None, f"window={window!r} needs a merge order")
    require(len(order) == n - 1, f"merge order must be a permutation of {n - 1} split points, got {len(order)}")
    return pruned_chart(order, window)


def stack_cells(by_span: Mapping[Span, Any], chart: Chart, *, axis: int = 0) -> np.ndarray:
    """Stack what is known of each cell, in the order of the chart.

    Parameters
    ----------
    by_span : mapping of span to ndarray
        Arrays of one shape, such as `Inside.vectors`.
    chart : Chart
        Gives the order: by length, then start.
    axis : int
        Where the cells go: −2 for vectors, −1 for scores.

    Returns
    -------
    ndarray
        With C cells along ``axis``.
    """
    return np.stack([np.asanyarray(by_span[span]) for span in chart.splits], axis=axis)


def inside_cells(
    leaves: Any,
    context: Any,
    weights: CellWeights,
    heads: ScoreWeights,
    *,
    n_heads: int,
    window: int | None = None,
    order: Any = None,
    merged_scores: str = "kept",
) -> InsideCells:
    """Run `inside_pass` on a chart given by numbers, arrays in and arrays out.

    Parameters
    ----------
    leaves : array_like, shape (..., n, D)
        One vector a token.
    context : array_like, shape (D,) or (..., C, D)
        One context for all cells, or one for each in the order of the chart.
    weights, heads, n_heads, merged_scores
        See `inside_pass`.
    window, order
        See `chart_of`.

    Returns
    -------
    InsideCells

    Raises
    ------
    ValueError
        As `chart_of` and `inside_pass`.
    """
    leaves, context = as_float("leaves", leaves), as_float("context", context)
    require(leaves.ndim >= 2, f"leaves has shape {leaves.shape}, expected (..., n, D)")
    chart = chart_of(leaves.shape[-2], window, order)
    if context.ndim > 1:
        require(context.shape[-2] == len(chart.splits), f"context has shape {context.shape}, expected one row a cell")
        context = {span: context[..., row, :] for row, span in enumerate(chart.splits)}
    inside = inside_pass(leaves, chart, weights, heads, context=context, n_heads=n_heads, merged_scores=merged_scores)
    none = leaves[..., :0, 0]  # (..., 0): a single token has no split
    s, w = (np.concatenate([none, *splits.values()], axis=-1) for splits in inside[2:])
    return InsideCells(stack_cells(inside.vectors, chart, axis=-2), stack_cells(inside.scores, chart, axis=-1), s, w)


def cio_cells(
    leaves: Any,
    layers: Sequence[LayerWeights],
    heads: ScoreWeights,
    empty_cell: Any,
    *,
    n_heads: int,
    window: int | None = None,
    order: Any = None,
    merged_scores: str = "kept",
) -> CIOCells:
    """Run `cio_stack` on a chart given by numbers, arrays in and arrays out.

    Parameters
    ----------
    leaves, layers, heads, empty_cell, n_heads, merged_scores
        See `cio_stack`.
    window, order
        See `chart_of`.

    Returns
    -------
    CIOCells

    Raises
    ------
    ValueError
        As `chart_of` and `cio_stack`.
    """
    leaves = as_float("leaves", leaves)
    require(leaves.ndim >= 2, f"leaves has shape {leaves.shape}, expected (..., n, D)")
    chart = chart_of(leaves.shape[-2], window, order)
    results = cio_stack(leaves, chart, layers, heads, empty_cell, n_heads=n_heads, merged_scores=merged_scores)
    e, o = (np.stack([stack_cells(layer[p].vectors, chart, axis=-2) for layer in results]) for p in (0, 1))
    a, b = (np.stack([stack_cells(layer[p].scores, chart, axis=-1) for layer in results]) for p in (0, 1))
    return CIOCells(e, a, o, b)


def _scores(
    chart: Chart,
    phi: Callable[[int, int], Any],
    zero: np.ndarray,
    merged_scores: str,
    arrive: Callable[[int, int, Any], None],
) -> tuple[dict[Span, Any], dict[Span, Any], dict[Span, Any]]:
    """Return scores, split scores and weights of all spans; ``arrive`` is told the weights before they are used."""
    a: dict[Span, Any] = {(i, i): zero for i in range(chart.n)}
    s: dict[Span, Any] = {}
    w: dict[Span, Any] = {}

    def below(span: Span) -> Any:
        return zero if merged_scores == "zero" and span in chart.merged else a[span]

    for (i, j), splits in chart.splits.items():
        if not splits:
            continue
        # eq: recat-6
        s[i, j] = phi(i, j) + np.stack([below((i, k)) + below((k + 1, j)) for k in splits], axis=-1)  # (..., K)
        # eq: recat-7
        w[i, j] = softmax(s[i, j])  # (..., K)
        a[i, j] = np.sum(w[i, j] * s[i, j], axis=-1)  # (...)
        arrive(i, j, w[i, j])
    return a, s, w


def _parts(vectors: dict[Span, np.ndarray], chart: Chart, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the left and the right parts of all splits of a span, shape (..., K, D) each."""
    splits = chart.splits[i, j]
    left, right = [vectors[i, k] for k in splits], [vectors[k + 1, j] for k in splits]
    return np.stack(left, axis=-2), np.stack(right, axis=-2)


def _checked(leaves: Any, chart: Chart, weights: CellWeights, n_heads: int, merged_scores: str) -> np.ndarray:
    leaves = as_float("leaves", leaves)
    require(leaves.ndim >= 2, f"leaves has shape {leaves.shape}, expected (..., n, D)")
    require(leaves.shape[-2] == chart.n, f"leaves has {leaves.shape[-2]} tokens, the chart has {chart.n}")
    check_chart(chart)
    check_cell(leaves.shape[-1], weights, n_heads)
    require_one_of("merged_scores", merged_scores, RULES)
    return np.asanyarray(leaves)


def _learned(context: Any, leaves: np.ndarray) -> Any:
    context = as_float("context", context)
    require_shape("context", context, leaves.shape[-1:])
    return context.astype(leaves.dtype, copy=False)
