"""gCOG's solver: walk the tree, ask the grid, and return the exact answer (2401.15030)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.benchmarks.gcog_encoding import answer_label, decode_task
from refattn.benchmarks.gcog_tasks import DEFAULT, Node, Selector, TaskTree, Vocabulary, check_task
from refattn.primitives.arguments import as_integer, require

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_ambiguous", "path", "solve", "solve_tokens"]


def solve(task: TaskTree, grid: Any, *, vocabulary: Vocabulary = DEFAULT) -> int:
    """Return the class of the task's answer on an image.

    Parameters
    ----------
    task : TaskTree
        The question.
    grid : array_like of int, shape (G, G, 2)
        Colour and shape of each cell; zeros where it is empty.
    vocabulary : Vocabulary
        Sizes.

    Raises
    ------
    ValueError
        If the task or the grid is not valid; on the path, if the object of a sum or product is not there exactly once,
        or what ``go``, ``getcolor`` or ``getshape`` look for is not there.

    Notes
    -----
    Where several objects have the shape of ``getcolor``, or the colour of ``getshape``, the first cell in the order of
    rows counts, as in the official code. Nodes off the path are never asked.
    """
    grid = _checked(task, grid, vocabulary)
    *_, (_, label) = _walk(task, grid, vocabulary)
    return label


def path(task: TaskTree, grid: Any, *, vocabulary: Vocabulary = DEFAULT) -> list[int]:
    """Return the nodes that are asked, from the root to the last level; it raises what `solve` raises."""
    return [i for i, _ in _walk(task, _checked(task, grid, vocabulary), vocabulary)]


def is_ambiguous(task: TaskTree, grid: Any, *, vocabulary: Vocabulary = DEFAULT) -> bool:
    """Whether some get-node of the task, on the path or not, finds more than one object."""
    grid = _checked(task, grid, vocabulary)
    gets = [node for node in task.nodes if node.op in ("getcolor", "getshape")]
    return any(len(_cells(grid, node.op, node.selectors[0])) > 1 for node in gets)


def solve_tokens(rules: Any, grid: Any, *, n_shapes: int = 26, n_colors: int = 10) -> np.ndarray:
    """Return the classes of many answers, tasks given as instruction tokens.

    Parameters
    ----------
    rules : array_like of int, shape (B, n_tokens, 8)
        Tasks of one depth, without padding; the end token may be there or not.
    grid : array_like of int, shape (B, G, G, 2)
        An image for each.
    n_shapes, n_colors : int
        How many there are; classes of colours come after those of shapes.

    Returns
    -------
    ndarray of int64, shape (B,)

    Raises
    ------
    ValueError
        As `solve` and `decode_task`.
    """
    rules, grid = as_integer("rules", rules, ndim=3), as_integer("grid", grid, ndim=4)
    require(len(rules) == len(grid), f"rules has {len(rules)} tasks and grid {len(grid)} images")
    vocabulary = Vocabulary(grid.shape[1], n_colors, n_shapes)
    labels = [solve(decode_task(rule), image, vocabulary=vocabulary) for rule, image in zip(rules, grid, strict=True)]
    found: np.ndarray = np.fromiter(labels, np.int64, len(labels))
    return found


def _checked(task: TaskTree, grid: Any, vocabulary: Vocabulary) -> np.ndarray:
    check_task(task, vocabulary)
    image: np.ndarray = as_integer("grid", grid)
    shape = (vocabulary.grid, vocabulary.grid, 2)
    require(image.shape == shape, f"grid has shape {image.shape}, expected {shape}")
    return image


def _walk(task: TaskTree, grid: np.ndarray, vocabulary: Vocabulary) -> Iterator[tuple[int, int]]:
    """Yield each node on the path with the class of its answer."""
    i = 0
    while i < len(task.nodes):
        label = _ask(task.nodes[i], grid, vocabulary)
        yield i, label
        # eq: gcog-walk
        i = 2 * i + 1 if label == 0 else 2 * i + 2


def _cells(grid: np.ndarray, op: str, selector: Selector) -> np.ndarray:
    """Return the cells of a selector, first rows first, each as index G·a + b."""
    colors, shapes = grid[..., 0], grid[..., 1]
    if op == "getcolor":
        found = shapes == selector.shape
    elif op == "getshape":
        found = colors == selector.color
    else:
        found = (colors == selector.color) & (shapes == selector.shape)
    return np.asarray(np.flatnonzero(found))


def _ask(node: Node, grid: np.ndarray, vocabulary: Vocabulary) -> int:
    """Return the class of one node's answer."""
    op, selectors = node
    found = [_cells(grid, op, selector) for selector in selectors]
    if op == "exist":
        return answer_label("truth", len(found[0]) > 0)
    if op in ("go", "getcolor", "getshape"):
        require(len(found[0]) > 0, f"{op}: no object matches {selectors[0]}")
        a, b = divmod(int(found[0][0]), vocabulary.grid)
        kind, value = {
            "go": ("cell", (a, b)),
            "getcolor": ("color", int(grid[a, b, 0])),
            "getshape": ("shape", int(grid[a, b, 1])),
        }[op]
        return answer_label(kind, value, vocabulary=vocabulary)
    for cells, selector in zip(found, selectors, strict=True):
        require(len(cells) == 1, f"{op}: selector must match exactly one object, {selector} matches {len(cells)}")
    coordinates = [x for cells in found for x in divmod(int(cells[0]), vocabulary.grid)]
    # eq: gcog-arithmetic
    even = _is_even(coordinates, product=op.startswith("product"))
    return answer_label("truth", even if op.endswith("even") else not even)


def _is_even(numbers: list[int], *, product: bool) -> bool:
    """Whether the sum, or the product, of the numbers is even."""
    odd = [x % 2 for x in numbers]
    return not all(odd) if product else sum(odd) % 2 == 0
