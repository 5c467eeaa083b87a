"""The chart as tables of integers: levels of cells, pairs of parts, and who hears from whom."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Edges", "Level", "Tables", "index_table", "tables"]

Span = tuple[int, int]


class Edges(NamedTuple):
    """The ways by which the cells of a level hear from above, those of left parts first.

    Attributes
    ----------
    part, parent, left, right, sibling : ndarray of int, shape (E,)
        Cells; ``part`` is the one that hears.
    n_left : int
        How many are left parts.
    slots : ndarray of int, shape (c, P)
        The ways of each cell of the level, repeated to equal number.
    real : ndarray of bool, shape (c, P)
        Which are no repetitions.
    """

    part: np.ndarray
    parent: np.ndarray
    left: np.ndarray
    right: np.ndarray
    sibling: np.ndarray
    n_left: int
    slots: np.ndarray
    real: np.ndarray


class Level(NamedTuple):
    """Cells that depend on earlier levels only.

    Attributes
    ----------
    begin, end : int
        The cells, numbered level by level.
    left, right : ndarray of int, shape (S,)
        The parts of every split, cell after cell.
    below : ndarray of bool, shape (2, S)
        Which left and right parts count with 0 under the zero rule.
    slots, real : ndarray, shape (c, K)
        The splits of each cell, as for `Edges`.
    cell : ndarray of int, shape (S,)
        The cell of every split.
    edges : Edges or None
        None for the root.
    """

    begin: int
    end: int
    left: np.ndarray
    right: np.ndarray
    below: np.ndarray
    slots: np.ndarray
    real: np.ndarray
    cell: np.ndarray
    edges: Edges | None


class Tables(NamedTuple):
    """One chart.

    Attributes
    ----------
    spans : ndarray of int, shape (C, 2)
        Level by level.
    levels : tuple of Level
        The leaves first.
    stacked : ndarray of int, shape (C,)
        The cells by length, then start.
    unstacked : ndarray of int, shape (C,)
        The inverse.
    split_order : ndarray of int, shape (S,)
        Splits in the order of ``stacked``, as numbered level by level.
    points : ndarray of int, shape (S,)
        The split points, level by level.
    """

    spans: np.ndarray
    levels: tuple[Level, ...]
    stacked: np.ndarray
    unstacked: np.ndarray
    split_order: np.ndarray
    points: np.ndarray


def tables(n: int, window: int | None, order: Sequence[int] | None) -> Tables:
    """Return the tables of the exact chart, or of the pruned one."""
    if window is None:
        return _tables(n, n, tuple(range(n - 1)))
    return _tables(n, int(window), tuple(int(p) for p in order or ()))


@lru_cache(maxsize=64)
def _tables(n: int, window: int, order: tuple[int, ...]) -> Tables:
    closed = np.empty(n - 1, np.int64)
    closed[list(order)] = np.arange(n - 1)
    splits, depth = _cells(n, window, closed)
    spans = sorted(splits, key=lambda span: (depth[span], span))
    number = {span: c for c, span in enumerate(spans)}
    counts = np.bincount([depth[span] for span in spans])
    ends = np.cumsum(counts)
    heard: dict[Span, list[tuple[Span, int, bool]]] = {span: [] for span in spans}
    for i, j in spans:
        for k in splits[i, j]:
            heard[i, k].append(((i, j), k, True))
            heard[k + 1, j].append(((i, j), k, False))
    merged = {span for span in spans if _merged(span, n, window, closed)}
    levels = tuple(
        _level(spans[end - count : end], int(end - count), splits, number, heard, merged)
        for count, end in zip(counts, ends, strict=True)
    )
    by_length = sorted(spans, key=lambda span: (span[1] - span[0], span[0]))
    stacked = np.array([number[span] for span in by_length])
    starts = dict(zip(spans, np.cumsum([0] + [len(splits[span]) for span in spans]).tolist(), strict=False))
    split_order = [starts[span] + s for span in by_length for s in range(len(splits[span]))]
    points = [k for span in spans for k in splits[span]]
    return Tables(
        np.array(spans), levels, stacked, np.argsort(stacked), np.array(split_order, int), np.array(points, int)
    )


def _cells(n: int, window: int, closed: np.ndarray) -> tuple[dict[Span, list[int]], dict[Span, int]]:
    """Cut from the root downwards, each span at its split points that close last; splits and levels."""
    splits: dict[Span, list[int]] = {}
    waiting = [(0, n - 1)]
    while waiting:
        i, j = waiting.pop()
        if (i, j) not in splits:
            last = np.argsort(closed[i:j])[max(j - i - window, 0) :]
            splits[i, j] = sorted((i + last).tolist())
            waiting += [part for k in splits[i, j] for part in ((i, k), (k + 1, j))]
    depth: dict[Span, int] = {}
    for i, j in sorted(splits, key=lambda span: span[1] - span[0]):
        depth[i, j] = max((1 + max(depth[i, k], depth[k + 1, j]) for k in splits[i, j]), default=0)
    return splits, depth


def _merged(span: Span, n: int, window: int, closed: np.ndarray) -> bool:
    """Whether everything inside a span closes within the performed merges, and before its two ends."""
    i, j = span
    if i == j:
        return False
    last = closed[i:j].max()
    ends = [closed[p] for p in (i - 1, j) if 0 <= p < n - 1]
    return bool(last < n - 1 - window and all(last < end for end in ends))


def _level(
    spans: list[Span],
    begin: int,
    splits: dict[Span, list[int]],
    number: dict[Span, int],
    heard: dict[Span, list[tuple[Span, int, bool]]],
    merged: set[Span],
) -> Level:
    pairs = [((i, k), (k + 1, j)) for i, j in spans for k in splits[i, j]]
    left, right = (np.array([number[pair[side]] for pair in pairs], int) for side in (0, 1))
    below = np.array([[pair[side] in merged for pair in pairs] for side in (0, 1)], bool).reshape(2, len(pairs))
    slots, real = _slots([len(splits[span]) for span in spans])
    cell = np.repeat(np.arange(begin, begin + len(spans)), [len(splits[span]) for span in spans])
    edges = _edges(spans, number, heard) if all(heard[span] for span in spans) else None
    return Level(begin, begin + len(spans), left, right, below, slots, real, cell, edges)


def _edges(spans: list[Span], number: dict[Span, int], heard: dict[Span, list[tuple[Span, int, bool]]]) -> Edges:
    rows = []
    for place, span in enumerate(spans):
        for (i, j), k, is_left in heard[span]:
            rows.append((not is_left, place, number[i, j], number[i, k], number[k + 1, j]))
    rank = sorted(range(len(rows)), key=lambda e: (rows[e][0], e))
    position = np.argsort(rank)  # of each way among the sorted ones
    is_right, place, parent, left, right = np.array(rows)[rank].T
    own, other = np.where(is_right, right, left), np.where(is_right, left, right)
    slots, real = _slots(np.bincount(np.array(rows)[:, 1], minlength=len(spans)).tolist())
    return Edges(own, parent, left, right, other, int(np.sum(1 - is_right)), position[slots], real)


def _slots(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return consecutive numbers in rows of equal length; what a row lacks repeats its first."""
    width, starts = max(counts, default=0), np.cumsum([0, *counts[:-1]])
    column = np.arange(width)
    real = column < np.array(counts, int)[:, None]
    return np.where(real, starts[:, None] + column, starts[:, None]), real


def index_table(like: Any, indices: np.ndarray) -> Any:
    """Return indices as an array of the library and device of ``like``."""
    from array_api_compat import array_namespace, device

    return array_namespace(like).asarray(indices, device=device(like))
