"""A picture of a gCOG task: its tree over its grid, the path that is taken lit; plain SVG, which needs no library."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from refattn.benchmarks.gcog_encoding import label_to_answer
from refattn.benchmarks.gcog_solver import path, solve
from refattn.benchmarks.gcog_tasks import COLORS, DEFAULT, Node, TaskTree, Vocabulary

if TYPE_CHECKING:
    import numpy as np

__all__ = ["describe_node", "draw_task", "tree_layout"]

INK, LIT, FAINT = "#7f8fa6", "#c8963e", "#7f8fa655"
INKS = dict(zip(COLORS, ("#d64545", "#3f9b4f", "#4a7fc1", "#c9a814", "#8a5fbf", "#e07b2f", "#9aa3ad", "#d873a5",
                         "#2fa5a8", "#8b5e3c"), strict=True))  # fmt: skip
"""A mid-tone for each colour, to be read on light and on dark ground."""


def tree_layout(count: int) -> list[tuple[float, int]]:
    """Return where each node stands: x between 0 and 1, and its level; the True branch is on the left."""
    places = []
    for i in range(count):
        level = (i + 1).bit_length() - 1
        places.append(((i + 1 - 2**level + 0.5) / 2**level, level))
    return places


def describe_node(node: Node) -> str:
    """Return what a node asks, in words."""
    return f"{node.op}: " + ", ".join(_describe(node.op, color, shape) for color, shape, _ in node.selectors)


def _describe(op: str, color: int, shape: int) -> str:
    letter, name = chr(ord("a") + shape - 1), COLORS[color - 1]
    return {"getcolor": letter, "getshape": name}.get(op, f"{name} {letter}")


def draw_task(task: TaskTree, grid: Any, *, vocabulary: Vocabulary = DEFAULT) -> str:
    """Draw a task and its stimulus.

    Parameters
    ----------
    task : TaskTree
        Drawn as a tree, True to the left; the nodes that are asked are lit.
    grid : array_like of int, shape (G, G, 2)
        Drawn below, row a = 0 on top.
    vocabulary : Vocabulary
        Sizes.

    Returns
    -------
    str
        An SVG document on a transparent ground.

    Raises
    ------
    ValueError
        As `solve`.
    """
    taken = path(task, grid, vocabulary=vocabulary)
    answer = label_to_answer(solve(task, grid, vocabulary=vocabulary), vocabulary=vocabulary)
    width = max(420, 190 * (len(task.nodes) + 1) // 2)
    levels = (task.depth + 1) // 2
    top, cell = 70 * levels + 30, 30
    left = (width - cell * vocabulary.grid) / 2
    height = top + cell * vocabulary.grid + 15
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
        *_tree(task, taken, width),
        f'<text x="{width / 2}" y="{top - 14}" text-anchor="middle" fill="{LIT}">answer: {escape(str(answer))}</text>',
        *_cells(grid, vocabulary.grid, left, top, cell),
        "</svg>",
    ]
    return "\n".join(parts)


def _tree(task: TaskTree, taken: list[int], width: float) -> list[str]:
    places = [(x * width, 25 + 70 * level) for x, level in tree_layout(len(task.nodes))]
    parts = []
    for i, (x, y) in enumerate(places[1:], start=1):
        parent = (i - 1) // 2
        (px, py), lit = places[parent], i in taken
        ink = LIT if lit else INK
        parts.append(f'<line x1="{px}" y1="{py + 14}" x2="{x}" y2="{y - 14}" stroke="{ink}" stroke-width="{1 + lit}"/>')
        word = "True" if i % 2 else "False"
        middle = f'x="{(px + x) / 2}" y="{(py + y) / 2 + 4}"'
        parts.append(f'<text {middle} text-anchor="middle" font-size="10" fill="{ink}">{word}</text>')
    for i, ((x, y), node) in enumerate(zip(places, task.nodes, strict=True)):
        ink = LIT if i in taken else INK
        parts.append(f'<text x="{x}" y="{y + 4}" text-anchor="middle" fill="{ink}">{describe_node(node)}</text>')
    return parts


def _cells(grid: np.ndarray, size: int, left: float, top: float, cell: int) -> list[str]:
    parts = []
    for a in range(size):
        for b in range(size):
            x, y = left + cell * b, top + cell * a
            parts.append(f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="none" stroke="{FAINT}"/>')
            color, shape = (int(value) for value in grid[a][b])
            if color:
                place = f'x="{x + cell / 2}" y="{y + 20}" text-anchor="middle" font-size="16" font-weight="bold"'
                parts.append(f'<text {place} fill="{INKS[COLORS[color - 1]]}">{chr(ord("a") + shape - 1)}</text>')
    return parts
