"""Binary trees over a sentence: read out of a chart, found exactly, and what a parser pays to miss one (2309.16319).

Equation labels (recat-13) and (recat-16) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.recat_chart import Chart, Span, check_chart, pruned_chart
from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.softmax import log_sum_exp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refattn.layers.recat_passes import Inside

__all__ = ["Tree", "best_splits_tree", "order_tree", "parser_loss", "read_tree", "viterbi_tree"]


class Tree(NamedTuple):
    """A binary tree over n tokens, nodes in preorder: a node, its left part, its right part.

    Attributes
    ----------
    nodes : ndarray of int, shape (2n − 1, 2)
        First and last token of each node.
    splits : ndarray of int, shape (2n − 1,)
        The split of each node, −1 for leaves.
    """

    nodes: np.ndarray
    splits: np.ndarray


def best_splits_tree(n: int, best: Mapping[Span, int]) -> Tree:
    """Cut the sentence at its best split, and the parts at theirs.

    Parameters
    ----------
    n : int
        Number of tokens.
    best : mapping of span to int
        The split of each span that is reached from the root.

    Returns
    -------
    Tree
    """
    nodes: list[Span] = []
    waiting = [(0, n - 1)]
    while waiting:
        i, j = waiting.pop()
        nodes.append((i, j))
        if i < j:
            waiting += [(best[i, j] + 1, j), (i, best[i, j])]  # the left part comes off first
    return Tree(np.array(nodes), np.array([best[i, j] if i < j else -1 for i, j in nodes]))


def read_tree(inside: Inside, chart: Chart) -> Tree:
    """Read the tree of the best splits out of an inside pass.

    Parameters
    ----------
    inside : Inside
        Of one sentence, without leading axes.
    chart : Chart
        The chart of the pass.

    Returns
    -------
    Tree

    Raises
    ------
    ValueError
        If the pass holds several sentences, or the chart is broken.

    Notes
    -----
    Of equal splits the first wins [our definition].
    """
    check_chart(chart)
    best = {}
    for span, s in inside.split_scores.items():
        require(s.ndim == 1, f"split scores of {span} have shape {s.shape}, expected those of one sentence")
        # eq: recat-13
        best[span] = chart.splits[span][int(np.argmax(s))]
    return best_splits_tree(chart.n, best)


def order_tree(order: Any) -> Tree:
    """Return the tree of a merge order: the split that is closed last is at the top.

    Parameters
    ----------
    order : array_like of int, shape (n - 1,)
        Split points in merge order.

    Returns
    -------
    Tree

    Raises
    ------
    ValueError
        If the order is no permutation.
    """
    chart = pruned_chart(order, 1)
    return best_splits_tree(chart.n, {span: splits[0] for span, splits in chart.splits.items() if splits})


def viterbi_tree(phi: Any) -> tuple[Tree, float]:
    """Find the tree with the largest sum of scores exactly, by the algorithm of Cocke, Kasami and Younger.

    Parameters
    ----------
    phi : array_like, shape (n, n, n)
        phi[i, k, j] scores the split k of the span (i, j); all others are ignored.

    Returns
    -------
    tree : Tree
        The best one; of equal splits the first.
    score : float
        Its sum.

    Raises
    ------
    ValueError
        If phi is not (n, n, n) with n at least 1, or a score that counts is NaN.
    """
    phi = as_float("phi", phi, ndim=3)
    n = len(phi)
    require(n >= 1, f"phi has shape {phi.shape}, expected (n, n, n) with n at least 1")
    require_shape("phi", phi, (n, n, n))
    total, best = {(i, i): 0.0 for i in range(n)}, {}
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length - 1
            sums = np.array([float(phi[i, k, j]) + total[i, k] + total[k + 1, j] for k in range(i, j)])
            require(not np.isnan(sums).any(), f"phi scores a split of {(i, j)} as NaN")
            best[i, j] = i + int(np.argmax(sums))
            total[i, j] = float(np.max(sums))
    return best_splits_tree(n, best), total[0, n - 1]


def parser_loss(split_scores: Any, tree: Tree) -> Any:
    """Return how surprised a parser is by a tree: the cross-entropy of each node's split, summed, over n.

    Parameters
    ----------
    split_scores : array_like, shape (n - 1,)
        u, one for each split point.
    tree : Tree
        The target, usually read out of the chart.

    Returns
    -------
    floating
        0 for one token.

    Raises
    ------
    ValueError
        If there are not n − 1 scores, or one is NaN.
    """
    u, n = as_float("split_scores", split_scores, ndim=1), (len(tree.nodes) + 1) // 2
    require(len(u) == n - 1, f"split_scores has {len(u)} entries, expected {n - 1} for {n} tokens")
    require(not np.isnan(u).any(), "split_scores must not be NaN")
    # eq: recat-16
    surprise = [log_sum_exp(u[i:j]) - u[k] for (i, j), k in zip(tree.nodes, tree.splits, strict=True) if i < j]
    return np.sum(np.array(surprise, u.dtype)) / n
