"""Which spans ReCAT builds, and from which pairs of shorter spans: the full chart, and the thin one (2309.16319).

Tokens are 0 … n − 1 and a span (i, j) is inclusive. A split k of it, i ≤ k < j, makes it of (i, k) and (k + 1, j). The
chart does not depend on any vector: it is made once and serves all layers. Equation labels (recat-4) and (recat-5) are
those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_integer, require

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CIOCost",
    "Chart",
    "Span",
    "chart_cost",
    "chart_depth",
    "check_chart",
    "exact_chart",
    "merge_spans",
    "pruned_chart",
    "splits_chart",
]

Span = tuple[int, int]


class Chart(NamedTuple):
    """The cells of one sentence.

    Attributes
    ----------
    n : int
        Number of tokens.
    splits : dict of span to tuple of int
        The split points of every cell in ascending order, none for a leaf. The cells themselves are in the order of
        length, then start: the order in which results are stacked, and one in which children come before parents.
    merged : frozenset of span
        The cells that pruning merged into one unit; empty for an exact chart.
    """

    n: int
    splits: dict[Span, tuple[int, ...]]
    merged: frozenset[Span] = frozenset()

    @property
    def root(self) -> Span:
        """The span of the whole sentence."""
        return (0, self.n - 1)

    @property
    def compositions(self) -> int:
        """How many pairs of children one inside pass composes."""
        return sum(map(len, self.splits.values()))


class CIOCost(NamedTuple):
    """Floating-point operations of one layer over a chart, a multiplication and an addition counted as two.

    Attributes
    ----------
    inside, outside : int
        Of the cell functions: attention over three vectors, and a feed-forward network.
    scores : int
        Of the score heads in both passes.
    """

    inside: int
    outside: int
    scores: int


def exact_chart(n: int) -> Chart:
    """Return all spans with all their splits: n(n + 1)/2 cells, (n³ − n)/6 compositions.

    Parameters
    ----------
    n : int
        Number of tokens, at least 1.

    Returns
    -------
    Chart

    Raises
    ------
    ValueError
        If n < 1.
    """
    require(index(n) >= 1, f"n={n!r} must be at least 1")
    spans = [(i, i + length - 1) for length in range(1, n + 1) for i in range(n - length + 1)]
    # eq: recat-4
    return Chart(n, {(i, j): tuple(range(i, j)) for i, j in spans})


def merge_spans(order: Any) -> list[Span]:
    """Return the spans that merging neighbours in this order forms, one for each merge.

    Parameters
    ----------
    order : array_like of int, shape (n - 1,)
        Split points; the first is closed first. The last one is the top split of the tree.

    Returns
    -------
    list of span
        A binary tree without its leaves, bottom-up.

    Raises
    ------
    ValueError
        If the order is no permutation.
    """
    order = _checked_order(order)
    units = [(i, i) for i in range(len(order) + 1)]
    return [_merge(units, p) for p in order]


def pruned_chart(order: Any, window: int) -> Chart:
    """Return a chart of linear size around the tree of a merge order.

    1. Every token is a unit. Cells are all spans of at most m + 1 tokens, with all their splits.
    2. Merge two neighbouring units as the order says, n − 1 − m times; after each merge, every run of m + 1 units
       becomes a cell, if it is not one, with the m boundaries inside it as its splits.
    3. Keep the cells that can be reached from the root.

    Parameters
    ----------
    order : array_like of int, shape (n - 1,)
        Split points p_1 … p_{n−1} in the order in which they are closed.
    window : int
        m, at least 1: the most splits that a cell of more than m + 1 tokens has. From n − 1 on the chart is exact.

    Returns
    -------
    Chart
        Fewer than 2 (m + 1) n cells of at most m splits. m = 1 is the binary tree of the order.

    Raises
    ------
    ValueError
        If the order is no permutation, or window < 1.

    Notes
    -----
    The official code prunes level by level in a buffer; this definition by partitions gives the same cells and splits.
    A cell keeps the splits of its creation. They are the m split points inside it that the order closes last, so a
    span may only be cut at its m best places.

    References
    ----------
    2309.16319, section 3.2 [recalled]; StructuredLM_RTDT at tag ReCAT, data_structure/py_backend.py.
    """
    order = _checked_order(order)
    m, n = index(window), len(order) + 1
    require(m >= 1, f"window={window!r} must be at least 1")
    cells = {(i, j): tuple(range(i, j)) for i in range(n) for j in range(i, min(i + m + 1, n))}  # 1
    units = [(i, i) for i in range(n)]
    merged = []
    for p in order[: max(n - 1 - m, 0)]:  # 2
        merged.append(_merge(units, p))
        for first in range(len(units) - m):
            run = units[first : first + m + 1]
            # eq: recat-5
            cells.setdefault((run[0][0], run[-1][1]), tuple(end for _, end in run[:-1]))
    splits = _reachable(cells, n)  # 3
    return Chart(n, splits, frozenset(merged) & splits.keys())


def splits_chart(n: int, splits: Mapping[Span, int]) -> Chart:
    """Return the chart that forces one tree: each span of the tree has the one given split.

    Parameters
    ----------
    n : int
        Number of tokens.
    splits : mapping of span to int
        The split of every span of the tree that is longer than one token.

    Returns
    -------
    Chart
        2n − 1 cells. All but leaves and root count as merged, as in ``pruned_chart(order, 1)``.

    Raises
    ------
    ValueError
        If the splits are not those of a tree over n tokens.
    """
    require(index(n) >= 1, f"n={n!r} must be at least 1")
    cells = {(i, i): () for i in range(n)} | {span: (k,) for span, k in splits.items()}
    chart = Chart(n, _ordered(cells))
    check_chart(chart)
    require(len(cells) == 2 * n - 1, f"splits has {len(splits)} spans, a tree over {n} tokens has {n - 1}")
    return chart._replace(merged=frozenset(splits) - {chart.root})


def check_chart(chart: Chart) -> None:
    """Refuse a chart in which some cell cannot be built, or from whose root no leaf can be reached.

    Parameters
    ----------
    chart : Chart
        Made by hand, perhaps.

    Raises
    ------
    ValueError
        With the first cell that breaks the rule.
    """
    require(chart.root in chart.splits, f"chart has no root {chart.root}: it is unreachable")
    for (i, j), splits in chart.splits.items():
        require(0 <= i <= j < chart.n, f"chart has the span {(i, j)}, which is not one of {chart.n} tokens")
        require(i == j or splits, f"chart has no split for {(i, j)}: it is unreachable")
        for k in splits:
            built = (i, k) in chart.splits and (k + 1, j) in chart.splits and i <= k < j
            require(built, f"chart splits {(i, j)} at {k}, but one of the children is no cell")
    lengths = [j - i for i, j in chart.splits]
    require(lengths == sorted(lengths), "chart must list its cells by length")


def chart_depth(chart: Chart) -> int:
    """Return how many compositions follow one another: the longest way from a leaf to the root.

    Parameters
    ----------
    chart : Chart
        Any chart.

    Returns
    -------
    int
        0 for one token, n − 1 for an exact chart.
    """
    depth: dict[Span, int] = {}
    for (i, j), splits in chart.splits.items():
        depth[i, j] = max((1 + max(depth[i, k], depth[k + 1, j]) for k in splits), default=0)
    return depth[chart.root]


def chart_cost(chart: Chart, width: int, hidden: int, score_width: int) -> CIOCost:
    """Return what the matrix products of one layer cost over a chart.

    Parameters
    ----------
    chart : Chart
        Any chart.
    width, hidden, score_width : int
        D, F and c.

    Returns
    -------
    CIOCost
        Per composition 2(8D² + 2DF) inside and 2(10D² + 4DF) outside; 2(D² + Dc) for each of five heads.
    """
    D, F, c = width, hidden, score_width
    pairs = chart.compositions
    return CIOCost(pairs * 2 * (8 * D * D + 2 * D * F), pairs * 2 * (10 * D * D + 4 * D * F), pairs * 10 * D * (D + c))


def _checked_order(order: Any) -> list[int]:
    points = as_integer("merge order", order, ndim=1)
    permuted = np.array_equal(np.sort(points), np.arange(len(points)))
    require(permuted, f"merge order must be a permutation of the {len(points)} split points, got {points.tolist()}")
    return [int(p) for p in points]


def _merge(units: list[Span], p: int) -> Span:
    """Merge, in place, the unit that ends at p with the one after it."""
    at = next(i for i, (_, end) in enumerate(units) if end == p)
    units[at : at + 2] = [(units[at][0], units[at + 1][1])]
    return units[at]


def _reachable(cells: Mapping[Span, tuple[int, ...]], n: int) -> dict[Span, tuple[int, ...]]:
    """Return the cells that the root is made of, itself included."""
    reached: set[Span] = set()
    waiting = [(0, n - 1)]
    while waiting:
        i, j = waiting.pop()
        if (i, j) not in reached:
            reached.add((i, j))
            waiting += [part for k in cells[i, j] for part in ((i, k), (k + 1, j))]
    return _ordered({span: cells[span] for span in reached})


def _ordered(cells: Mapping[Span, tuple[int, ...]]) -> dict[Span, tuple[int, ...]]:
    spans: Iterable[Span] = sorted(cells, key=lambda span: (span[1] - span[0], span[0]))
    return {span: cells[span] for span in spans}
