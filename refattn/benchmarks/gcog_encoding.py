"""gCOG's tokens: instructions as rows of eight integers, images as one row a cell, answers as classes (2401.15030)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.benchmarks.gcog_tasks import (
    COLORS,
    DEFAULT,
    OPERATORS,
    SWITCH,
    Node,
    Selector,
    TaskTree,
    Vocabulary,
    check_task,
)
from refattn.primitives.arguments import as_integer, require

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "answer_label",
    "decode_task",
    "encode_task",
    "label_to_answer",
    "node_rows",
    "pad_tasks",
    "stimulus_tokens",
]

_NAMES = {token: name for name, token in OPERATORS.items()}


def node_rows(depth: int) -> list[int]:
    """Return the row of each node's token: each level's operators, then its switches, then the next level."""
    levels = (depth + 1) // 2
    # eq: gcog-rows
    return [2 * (2**level - 1) + j for level in range(levels) for j in range(2**level)]


def encode_task(task: TaskTree, *, vocabulary: Vocabulary = DEFAULT) -> np.ndarray:
    """Write a task as instruction tokens, breadth first.

    Parameters
    ----------
    task : TaskTree
        Locations are not written.
    vocabulary : Vocabulary
        What the task is checked against.

    Returns
    -------
    ndarray of uint8, shape (n_tokens, 8)
        Rows [operator, shape, colour, 1, second shape, second colour, 1, 0]; three zeros where there is no second
        object; a switch is [9, 0, …]; the last row [0, …, 0, 1] ends the instruction.

    Raises
    ------
    ValueError
        If the task is not valid.

    Notes
    -----
    ``getcolor`` writes colour 1 and ``getshape`` shape 1 in place of what they ask for.
    """
    check_task(task, vocabulary)
    rows = node_rows(task.depth)
    tokens = np.zeros((rows[-1] + 2, 8), np.uint8)
    tokens[:-1, 0] = SWITCH  # what the nodes do not overwrite
    tokens[-1, 7] = 1
    for row, (op, selectors) in zip(rows, task.nodes, strict=True):
        tokens[row, 0] = OPERATORS[op]
        for j, (color, shape, _) in enumerate(selectors):
            written = 1 if op == "getshape" else shape, 1 if op == "getcolor" else color, 1
            tokens[row, 1 + 3 * j : 4 + 3 * j] = written
    return tokens


def decode_task(tokens: Any) -> TaskTree:
    """Read a task from its tokens, with or without padding and the end token.

    Parameters
    ----------
    tokens : array_like of int, shape (n_tokens, 8)
        As from `encode_task` or `pad_tasks`.

    Returns
    -------
    TaskTree
        Its objects have no locations, and the placeholders of get-nodes as attributes.

    Raises
    ------
    ValueError
        If the rows are no instruction.
    """
    tokens = as_integer("tokens", tokens, ndim=2)
    require(tokens.shape[1] == 8, f"tokens has shape {tokens.shape}, expected (n_tokens, 8)")
    tokens = tokens[tokens[:, 0] != 0]
    depth = next((d for d in range(1, 64, 2) if node_rows(d)[-1] + 1 >= len(tokens)), 1)
    rows = node_rows(depth)
    require(len(tokens) == rows[-1] + 1, f"tokens has {len(tokens)} rows, expected those of a full tree: 1, 4, 10, …")
    operators = tokens[rows]
    unknown = [int(op) for op in operators[:, 0] if op not in _NAMES]
    require(not unknown, f"tokens hold the operators {unknown}, expected 1..8")
    require(
        np.sum(tokens[:, 0] == SWITCH) == len(tokens) - len(rows), "tokens must have a switch after each inner node"
    )
    return TaskTree(depth, tuple(map(_decoded, operators.tolist())))


def _decoded(row: list[int]) -> Node:
    pairs = (row[1:3], row[4:6])
    return Node(_NAMES[row[0]], tuple(Selector(color, shape) for shape, color in pairs if shape))


def pad_tasks(
    tasks: Sequence[TaskTree], *, n_tokens: int | None = None, vocabulary: Vocabulary = DEFAULT
) -> tuple[np.ndarray, np.ndarray]:
    """Write tasks as tokens of one length: rows of zeros come before the end token, which stays last.

    Parameters
    ----------
    tasks : sequence of TaskTree
        Of any depths.
    n_tokens : int, optional
        Rows of each; the longest task's if not given.
    vocabulary : Vocabulary
        What the tasks are checked against.

    Returns
    -------
    tokens : ndarray of uint8, shape (N, n_tokens, 8)
    mask : ndarray of bool, shape (N, n_tokens)
        True = a token, False = padding.

    Raises
    ------
    ValueError
        If a task is not valid, or longer than ``n_tokens``.
    """
    written = [encode_task(task, vocabulary=vocabulary) for task in tasks]
    longest = max(map(len, written), default=0)
    n_tokens = longest if n_tokens is None else n_tokens
    require(n_tokens >= longest, f"n_tokens={n_tokens!r} is less than the {longest} of the longest task")
    tokens: np.ndarray = np.zeros((len(written), n_tokens, 8), np.uint8)
    for row, one in zip(tokens, written, strict=True):
        row[: len(one) - 1], row[-1] = one[:-1], one[-1]
    return tokens, np.any(tokens != 0, axis=-1)


def stimulus_tokens(grid: Any, *, one_hot: bool = False, n_colors: int = 10, n_shapes: int = 26) -> np.ndarray:
    """Write images as tokens, cell by cell, and an end token.

    Parameters
    ----------
    grid : array_like of int, shape (..., G, G, 2)
        Colour and shape of each cell; zeros where it is empty.
    one_hot : bool
        Write a colour as a one among zeros, and a shape too.
    n_colors, n_shapes : int
        Widths of the one-hot form.

    Returns
    -------
    ndarray of int64, shape (..., G² + 1, 3), or (..., G² + 1, n_colors + n_shapes + 1) with ``one_hot``
        Cell (a, b) is row G·a + b; the last row [0, …, 0, 1] ends the image.

    Raises
    ------
    ValueError
        If the grid is not made of integers, not square, or holds colours or shapes beyond those numbers.
    """
    grid = as_integer("grid", grid)
    square = grid.ndim >= 3 and grid.shape[-1] == 2 and grid.shape[-2] == grid.shape[-3]
    require(square, f"grid has shape {grid.shape}, expected (..., G, G, 2)")
    cells = grid.reshape(*grid.shape[:-3], grid.shape[-2] ** 2, 2).astype(np.int64)  # (..., G², 2)
    for i, (name, most) in enumerate((("colours", n_colors), ("shapes", n_shapes))):
        inside = np.all((cells[..., i] >= 0) & (cells[..., i] <= most))
        require(inside, f"grid holds {name} outside 0..{most}")
    if one_hot:
        kinds = [cells[..., i : i + 1] == np.arange(1, n + 1) for i, n in ((0, n_colors), (1, n_shapes))]
        cells = np.concatenate(kinds, axis=-1).astype(np.int64)  # (..., G², n_colors + n_shapes)
    tokens = np.zeros((*cells.shape[:-2], cells.shape[-2] + 1, cells.shape[-1] + 1), np.int64)
    tokens[..., :-1, :-1] = cells
    tokens[..., -1, -1] = 1
    return tokens


def answer_label(kind: str, value: Any, *, vocabulary: Vocabulary = DEFAULT) -> int:
    """Return the class of an answer.

    Parameters
    ----------
    kind : {"truth", "cell", "shape", "color"}
        What the answer is.
    value : bool, tuple of int, or int
        The answer; cells are (a, b), shapes and colours count from 1.
    vocabulary : Vocabulary
        Sizes.

    Notes
    -----
    Mind the transposition: the class of cell (a, b) is 2 + G·b + a, while its token has the index G·a + b.
    """
    # eq: gcog-label
    if kind == "truth":
        return 0 if value else 1
    if kind == "cell":
        a, b = value
        return int(2 + vocabulary.grid * b + a)
    if kind == "shape":
        return int(2 + vocabulary.cells + value - 1)
    return int(2 + vocabulary.cells + vocabulary.shapes + value - 1)


def label_to_answer(label: int, *, vocabulary: Vocabulary = DEFAULT) -> bool | tuple[int, int] | str:
    """Return what a class means: True, False, a cell (a, b), a letter or the name of a colour.

    Raises
    ------
    ValueError
        If there is no such class.
    """
    require(0 <= label < vocabulary.labels, f"label={label!r} must lie in 0..{vocabulary.labels - 1}")
    if label < 2:
        return label == 0
    label -= 2
    if label < vocabulary.cells:
        return label % vocabulary.grid, label // vocabulary.grid
    label -= vocabulary.cells
    return chr(ord("a") + label) if label < vocabulary.shapes else COLORS[label - vocabulary.shapes]
