"""gCOG's stimuli: a grid of coloured letters that answers every node of a task, and distractors (2401.15030)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.benchmarks.gcog_tasks import DEFAULT, TaskTree, Vocabulary, check_task
from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["place_objects", "sample_stimulus"]


def place_objects(
    objects: Iterable[tuple[int, int, tuple[int, int]]], *, vocabulary: Vocabulary = DEFAULT
) -> np.ndarray:
    """Make a grid of objects (colour, shape, cell).

    Returns
    -------
    ndarray of uint8, shape (grid, grid, 2)
        Colour and shape of each cell; zeros where it is empty.

    Raises
    ------
    ValueError
        If a cell is used twice or lies outside the grid, or a colour or shape is unknown.
    """
    size = vocabulary.grid
    grid = np.zeros((size, size, 2), np.uint8)
    for color, shape, (a, b) in objects:
        require(0 <= a < size and 0 <= b < size, f"cell={(a, b)} lies outside the grid of {size} by {size}")
        require(not grid[a, b].any(), f"cell={(a, b)} is used twice")
        known = 1 <= color <= vocabulary.colors and 1 <= shape <= vocabulary.shapes
        require(known, f"color={color}, shape={shape} lies outside {vocabulary}")
        grid[a, b] = color, shape
    return grid


def sample_stimulus(
    rng: np.random.Generator, task: TaskTree, n_distractors: int, *, vocabulary: Vocabulary = DEFAULT
) -> np.ndarray:
    """Draw a grid on which every node of the task has an answer, whichever path is taken.

    1. Put ``n_distractors`` random objects on random free cells. None has the colour of a getshape-node or the shape of
       a getcolor-node.
    2. Node by node, children (the False one first) before their parent, put the objects that are asked for on their
       cells; that of an exist-node with probability one half.

    An object never appears twice: a new one takes the place of an equal distractor, and where an equal object is asked
    for already it stays the only one. A new object whose cell is taken moves to a random free one.

    Parameters
    ----------
    rng : Generator
        Source of randomness.
    task : TaskTree
        From `sample_task`.
    n_distractors : int
        How many are put on the grid; a few of them may be replaced.
    vocabulary : Vocabulary
        Sizes.

    Returns
    -------
    ndarray of uint8, shape (grid, grid, 2)
        Colour and shape of each cell; zeros where it is empty.

    Raises
    ------
    ValueError
        If the task is not valid, or there are too many distractors for the grid.

    Notes
    -----
    If the task leaves no colour or no shape to distractors, which takes a tiny vocabulary, there are none.
    """
    check_task(task, vocabulary)
    asked = sum(len(node.selectors) for node in task.nodes)
    fits = 0 <= n_distractors <= vocabulary.cells - asked
    require(fits, f"n_distractors={n_distractors!r} is negative, or too many distractors for the grid")
    scene = _Scene(rng, vocabulary)
    colors, shapes = _distractor_features(task, vocabulary)
    if colors and shapes:
        for _ in range(n_distractors):
            scene.place(colors[int(rng.integers(len(colors)))], shapes[int(rng.integers(len(shapes)))], None, True)
    for i in _children_first(0, len(task.nodes)):
        op, selectors = task.nodes[i]
        if op == "exist" and rng.random() < 0.5:
            continue
        for color, shape, loc in selectors:
            cell = None if loc is None else loc[0] * vocabulary.grid + loc[1]
            scene.place(color, shape, cell, False)
    return scene.grid()


def _distractor_features(task: TaskTree, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
    kept_colors = {s.color for op, selectors in task.nodes if op == "getshape" for s in selectors}
    kept_shapes = {s.shape for op, selectors in task.nodes if op == "getcolor" for s in selectors}
    colors = [c for c in range(1, vocabulary.colors + 1) if c not in kept_colors]
    return colors, [s for s in range(1, vocabulary.shapes + 1) if s not in kept_shapes]


def _children_first(i: int, count: int) -> Iterator[int]:
    """Yield the nodes of the subtree of i: the False branch, the True branch, i itself."""
    if i < count:
        yield from _children_first(2 * i + 2, count)
        yield from _children_first(2 * i + 1, count)
        yield i


class _Scene:
    """Objects on cells, each cell and each (colour, shape) at most once."""

    def __init__(self, rng: np.random.Generator, vocabulary: Vocabulary) -> None:
        self.rng, self.vocabulary = rng, vocabulary
        self.at: dict[int, tuple[int, int]] = {}
        self.where: dict[tuple[int, int], int] = {}
        self.distractors: set[int] = set()

    def place(self, color: int, shape: int, cell: int | None, is_distractor: bool) -> None:
        """Put an object on the grid."""
        equal = self.where.get((color, shape))
        if equal is not None:
            if equal not in self.distractors:
                return  # it is asked for already
            self._remove(equal)
        if cell is None:
            cell = self._free()
        elif cell in self.at:
            if cell in self.distractors:
                self._remove(cell)
            cell = self._free()  # the newcomer moves, even if a distractor has just made room
        self.at[cell], self.where[color, shape] = (color, shape), cell
        if is_distractor:
            self.distractors.add(cell)

    def _remove(self, cell: int) -> None:
        del self.where[self.at.pop(cell)]
        self.distractors.discard(cell)

    def _free(self) -> int:
        while (cell := int(self.rng.integers(self.vocabulary.cells))) in self.at:
            pass
        return cell

    def grid(self) -> np.ndarray:
        """Return colours and shapes cell by cell."""
        flat = np.zeros((self.vocabulary.cells, 2), np.uint8)
        for cell, features in self.at.items():
            flat[cell] = features
        return flat.reshape(self.vocabulary.grid, self.vocabulary.grid, 2)
