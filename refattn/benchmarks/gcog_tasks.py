"""gCOG's tasks: trees of operators that ask for objects, and how they are drawn (2401.15030).

A task is a full binary tree in a heap: node i goes on to 2i + 1 if its answer is True and to 2i + 2 if it is False. The
answer of the last node is the answer of the task. Equation labels (gcog-…) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from refattn.primitives.arguments import require, require_one_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

__all__ = [
    "COLORS",
    "DEFAULT",
    "END",
    "OPERATORS",
    "START",
    "SWITCH",
    "Features",
    "Node",
    "Selector",
    "TaskTree",
    "Vocabulary",
    "check_depth",
    "check_task",
    "n_nodes",
    "sample_task",
    "split_features",
]

OPERATORS = {
    "exist": 1,
    "go": 2,
    "getcolor": 3,
    "getshape": 4,
    "sumeven": 5,
    "producteven": 6,
    "productodd": 7,
    "sumodd": 8,
}
"""Token of each operator."""
SWITCH = 9
START = ("exist", "sumeven", "producteven", "sumodd", "productodd")
"""Operators whose answer is True or False: those of inner nodes."""
END = (*START, "getcolor", "getshape", "go")
"""Operators of the last level."""
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "pink", "cyan", "brown")
T = TypeVar("T")
ARITHMETIC = ("sumeven", "producteven", "sumodd", "productodd")


class Vocabulary(NamedTuple):
    """How much there is to see: the official sizes by default, smaller ones for experiments at home.

    Attributes
    ----------
    grid : int
        Rows, and columns, of the grid.
    colors, shapes : int
        Colours 1 … 10 and shapes 1 … 26 at most.
    """

    grid: int = 10
    colors: int = 10
    shapes: int = 26

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.grid**2

    @property
    def labels(self) -> int:
        """Number of classes: True, False, each cell, each shape, each colour."""
        return 2 + self.cells + self.shapes + self.colors


DEFAULT = Vocabulary()


class Selector(NamedTuple):
    """An object that a node asks for.

    Attributes
    ----------
    color, shape : int
        From 1. ``getcolor`` does not look at the colour, nor ``getshape`` at the shape.
    loc : tuple of int, or None
        Row a and column b at which a stimulus puts it. Instructions do not tell it: decoded tasks have None.
    """

    color: int
    shape: int
    loc: tuple[int, int] | None = None


class Node(NamedTuple):
    """An operator and the one or two objects that it asks for."""

    op: str
    selectors: tuple[Selector, ...]


class TaskTree(NamedTuple):
    """A task: an odd depth, switches counted, and 2^((depth + 1)/2) − 1 nodes in heap order."""

    depth: int
    nodes: tuple[Node, ...]


class Features(NamedTuple):
    """Pairs of colour and shape: a rectangle, colours in one range and shapes in another, both without their ends."""

    colors: range
    shapes: range


def n_nodes(depth: int) -> int:
    """Return the number of operators of a tree: 1, 3, 7, 15 for the depths 1, 3, 5, 7.

    Raises
    ------
    ValueError
        If the depth is not odd and positive.
    """
    check_depth(depth)
    return int(2 ** ((depth + 1) // 2) - 1)


def check_depth(depth: int) -> None:
    """Raise ``ValueError`` unless the depth is odd and positive."""
    require(depth > 0 and depth % 2 == 1, f"depth={depth!r}: task depth must be odd and positive")


def check_task(task: TaskTree, vocabulary: Vocabulary = DEFAULT) -> None:
    """Raise ``ValueError`` unless the tree is full, its operators are known and its objects fit the vocabulary."""
    count = n_nodes(task.depth)
    require(len(task.nodes) == count, f"task has {len(task.nodes)} nodes, expected {count} at depth {task.depth}")
    for i, (op, selectors) in enumerate(task.nodes):
        require_one_of("op", op, START if 2 * i + 1 < count else END)
        most = 2 if op in ARITHMETIC else 1
        require(1 <= len(selectors) <= most, f"{op} has {len(selectors)} selectors, expected 1 to {most}")
        for selector in selectors:
            _check_selector(selector, vocabulary)


def _check_selector(selector: Selector, vocabulary: Vocabulary) -> None:
    inside = 1 <= selector.color <= vocabulary.colors and 1 <= selector.shape <= vocabulary.shapes
    require(inside, f"{selector} lies outside {vocabulary}")
    if selector.loc is not None:
        require(all(0 <= x < vocabulary.grid for x in selector.loc), f"loc={selector.loc} lies outside the grid")


def split_features(
    half: str = "all", n_features: int = 10, *, exclusive: bool = False, vocabulary: Vocabulary = DEFAULT
) -> Features:
    """Return the pairs of colour and shape that selectors may ask for.

    Parameters
    ----------
    half : {"all", "first", "second"}
        All; the first half of the colours with all shapes; all colours with the second half of the shapes.
    n_features : int
        How many first colours and shapes there are; 0 = all.
    exclusive : bool
        Take from each half what both have in common [our definition]: officially the halves overlap in a quarter of
        all pairs.
    vocabulary : Vocabulary
        Sizes.

    Raises
    ------
    ValueError
        If the half is unknown, or more features are asked for than there are.
    """
    require_one_of("half", half, ("all", "first", "second"))
    most = min(vocabulary.colors, vocabulary.shapes)
    require(0 <= n_features <= most, f"n_features={n_features!r} must lie in 0..{most}")
    colors, shapes = (n_features, n_features) if n_features else (vocabulary.colors, vocabulary.shapes)
    low_color = colors // 2 if half == "second" and exclusive else 0
    high_color = colors // 2 if half == "first" else colors
    low_shape = shapes // 2 if half == "second" else 0
    high_shape = shapes // 2 if half == "first" and exclusive else shapes
    return Features(range(1 + low_color, 1 + high_color), range(1 + low_shape, 1 + high_shape))


def sample_task(
    rng: np.random.Generator,
    depth: int,
    *,
    inner: Sequence[str] = START,
    last: Sequence[str] = END,
    features: Features | None = None,
    vocabulary: Vocabulary = DEFAULT,
) -> TaskTree:
    """Draw a task.

    1. Draw an operator for each node, and for sums and products of trees whether there are one or two objects.
    2. At depth 1 colour, shape and place are uniform.
    3. In trees, pair shuffled (colour, shape) with shuffled cells, and draw first objects from these, with replacement.
       Where the cell is taken already, it is drawn again from the unused ones.
    4. Second objects are drawn from the whole vocabulary, on unused cells.

    Parameters
    ----------
    rng : Generator
        Source of randomness.
    depth : int
        1, 3, 5, …
    inner, last : sequence of str
        Operators of inner nodes, and of the last level.
    features : Features, optional
        What first objects may look like; the first ten colours and shapes, or what there is of them, if not given.
    vocabulary : Vocabulary
        Sizes.

    Raises
    ------
    ValueError
        If the depth is even, an operator is unknown, or the tree asks for more objects than there are cells.

    Notes
    -----
    The official code draws nodes in another order; the distribution is the same. Its repair of clashing get-operators
    is left out: one step is rare, the other never runs. So a get-node of a tree may be ambiguous; the solver settles it
    as the official code does, by taking the first cell.
    """
    count = n_nodes(depth)
    for op in inner:
        require_one_of("inner", op, START)
    for op in last:
        require_one_of("last", op, END)
    most = min(10, vocabulary.colors, vocabulary.shapes)
    colors, shapes = split_features("all", most, vocabulary=vocabulary) if features is None else features
    ops = [_one(rng, inner if 2 * i + 1 < count else last) for i in range(count)]
    if depth == 1:
        cell = divmod(int(rng.integers(vocabulary.cells)), vocabulary.grid)
        return TaskTree(depth, (Node(ops[0], (Selector(_one(rng, colors), _one(rng, shapes), cell),)),))
    require(2 * count <= vocabulary.cells, f"depth={depth} may ask for more objects than the grid has cells")
    pairs = rng.permutation(len(colors) * len(shapes))
    cells = rng.permutation(vocabulary.cells)
    pool = list(zip(pairs.tolist(), cells.tolist(), strict=False))
    used: set[int] = set()
    nodes = []
    for op in ops:
        pair, cell_index = pool[int(rng.integers(len(pool)))]
        cell_index = _unused(rng, used, vocabulary.cells) if cell_index in used else cell_index
        used.add(cell_index)
        place = divmod(cell_index, vocabulary.grid)
        selectors = [Selector(colors[pair // len(shapes)], shapes[pair % len(shapes)], place)]
        if op in ARITHMETIC and rng.random() < 0.5:
            used.add(second := _unused(rng, used, vocabulary.cells))
            color, shape = 1 + int(rng.integers(vocabulary.colors)), 1 + int(rng.integers(vocabulary.shapes))
            selectors.append(Selector(color, shape, divmod(second, vocabulary.grid)))
        nodes.append(Node(op, tuple(selectors)))
    return TaskTree(depth, tuple(nodes))


def _one(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _unused(rng: np.random.Generator, used: set[int], cells: int) -> int:
    """Draw a cell that is not in use: again and again, for few are."""
    while (cell := int(rng.integers(cells))) in used:
        pass
    return cell
