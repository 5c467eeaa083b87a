"""gCOG: questions about pictures, with three ways to leave what was trained on (2401.15030).

A task is a tree of operators, a stimulus a grid of coloured letters, and the answer exact. This module draws both,
split by split: `make_split` all at once, `stream_split` one at a time. Tasks, stimuli, tokens, the solver and the
networks of the paper have modules of their own, `gcog_tasks` and so on; what users need is here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.benchmarks.gcog_encoding import (
    answer_label,
    decode_task,
    encode_task,
    label_to_answer,
    pad_tasks,
    stimulus_tokens,
)
from refattn.benchmarks.gcog_networks import (
    cross_attention,
    deep_single_stream,
    dual_stream,
    perceiver,
    rule_query_cross_attention,
    single_stream,
)
from refattn.benchmarks.gcog_picture import draw_task
from refattn.benchmarks.gcog_recurrent import gru_classifier, rnn_classifier
from refattn.benchmarks.gcog_solver import is_ambiguous, path, solve, solve_tokens
from refattn.benchmarks.gcog_stimuli import place_objects, sample_stimulus
from refattn.benchmarks.gcog_tasks import (
    COLORS,
    DEFAULT,
    END,
    OPERATORS,
    START,
    Features,
    Node,
    Selector,
    TaskTree,
    Vocabulary,
    check_task,
    sample_task,
    split_features,
)
from refattn.primitives.arguments import require, require_one_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "COLORS",
    "END",
    "OPERATORS",
    "SPLITS",
    "START",
    "Batch",
    "Choice",
    "Features",
    "Node",
    "Part",
    "Sample",
    "Selector",
    "TaskTree",
    "Vocabulary",
    "answer_label",
    "check_task",
    "cross_attention",
    "decode_task",
    "deep_single_stream",
    "draw_sample",
    "draw_task",
    "dual_stream",
    "encode_task",
    "gru_classifier",
    "is_ambiguous",
    "label_to_answer",
    "make_split",
    "pad_tasks",
    "path",
    "perceiver",
    "place_objects",
    "rnn_classifier",
    "rule_query_cross_attention",
    "sample_stimulus",
    "sample_task",
    "single_stream",
    "solve",
    "solve_tokens",
    "split_features",
    "stimulus_tokens",
    "stream_split",
]


class Choice(NamedTuple):
    """One way to draw a task: operators of inner nodes and of the last level, and which half of the features."""

    inner: tuple[str, ...] = START
    last: tuple[str, ...] = END
    half: str = "all"


class Part(NamedTuple):
    """One side of a split: depths and choices, uniform among those named, and distractors, uniform from … to."""

    depths: tuple[int, ...] = (1,)
    distractors: tuple[int, int] = (0, 5)
    choices: tuple[Choice, ...] = (Choice(),)


_O1, _O2 = ("exist", "sumeven", "producteven", "getshape"), ("sumodd", "productodd", "go", "getcolor")
_S1, _E1 = ("exist", "sumeven", "producteven"), ("sumeven", "producteven", "getcolor", "getshape")
_S2, _E2 = ("sumodd", "productodd"), ("exist", "sumodd", "productodd", "go")

SPLITS: dict[str, dict[str, Part]] = {
    "distractor": {"train": Part(), **{f"test_{n}": Part(distractors=(n, n)) for n in (10, 20, 30, 40)}},
    "systematic": {
        "train": Part(choices=(Choice(last=_O1, half="first"), Choice(last=_O2, half="second"))),
        "test": Part(choices=(Choice(last=_O1, half="second"), Choice(last=_O2, half="first"))),
    },
    "systematic_tree": {
        "train": Part(depths=(3,), choices=(Choice(_S1, _E1), Choice(_S2, _E2))),
        "test": Part(depths=(3,), choices=(Choice(_S1, _E2), Choice(_S2, _E1))),
    },
    "productive": {"train": Part(depths=(1, 3)), "test_5": Part(depths=(5,)), "test_7": Part(depths=(7,))},
}
"""The four splits of the paper and their parts."""


class Sample(NamedTuple):
    """A task, an image, and the class of the answer."""

    task: TaskTree
    grid: np.ndarray
    label: int


class Batch(NamedTuple):
    """Samples as arrays.

    Attributes
    ----------
    tokens : ndarray of uint8, shape (N, n_tokens, 8)
        Instructions, from `pad_tasks`.
    mask : ndarray of bool, shape (N, n_tokens)
        False where ``tokens`` is padding.
    stimulus : ndarray of int64, shape (N, G² + 1, 3 or more)
        Images, from `stimulus_tokens`.
    labels : ndarray of int64, shape (N,)
        From `solve`.
    tasks : tuple of TaskTree
        The tasks themselves.
    grids : ndarray of uint8, shape (N, G, G, 2)
        The images themselves.
    """

    tokens: np.ndarray
    mask: np.ndarray
    stimulus: np.ndarray
    labels: np.ndarray
    tasks: tuple[TaskTree, ...]
    grids: np.ndarray

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        *,
        one_hot: bool = False,
        n_tokens: int | None = None,
        vocabulary: Vocabulary = DEFAULT,
    ) -> Batch:
        """Stack samples, as those that `stream_split` yields."""
        tasks = tuple(sample.task for sample in samples)
        size = vocabulary.grid
        grids = np.array([sample.grid for sample in samples], np.uint8).reshape(len(tasks), size, size, 2)
        tokens, mask = pad_tasks(tasks, n_tokens=n_tokens, vocabulary=vocabulary)
        counts = {"n_colors": vocabulary.colors, "n_shapes": vocabulary.shapes}
        labels = np.array([sample.label for sample in samples], np.int64)
        return cls(tokens, mask, stimulus_tokens(grids, one_hot=one_hot, **counts), labels, tasks, grids)


def draw_sample(
    rng: np.random.Generator,
    part: Part,
    *,
    n_features: int = 10,
    exclusive: bool = False,
    unambiguous: bool = False,
    vocabulary: Vocabulary = DEFAULT,
) -> Sample:
    """Draw a task, then an image for it, and solve it.

    Parameters
    ----------
    rng : Generator
        Source of randomness.
    part : Part
        Depths, operators, features and distractors to draw from; of `SPLITS`, or your own.
    n_features : int
        How many first colours and shapes tasks ask for; 0 = all.
    exclusive : bool
        As in `split_features`.
    unambiguous : bool
        Draw again until no get-node finds more than one object [our definition].
    vocabulary : Vocabulary
        Sizes.

    Raises
    ------
    ValueError
        If something does not fit the vocabulary or the grid, or an operator is unknown.
    """
    low, high = part.distractors
    require(low <= high, f"distractors={part.distractors} must be (least, most)")
    while True:
        inner, last, half = part.choices[int(rng.integers(len(part.choices)))]
        features = split_features(half, n_features, exclusive=exclusive, vocabulary=vocabulary)
        depth = part.depths[int(rng.integers(len(part.depths)))]
        task = sample_task(rng, depth, inner=inner, last=last, features=features, vocabulary=vocabulary)
        grid = sample_stimulus(rng, task, int(rng.integers(low, high + 1)), vocabulary=vocabulary)
        if not (unambiguous and is_ambiguous(task, grid, vocabulary=vocabulary)):
            return Sample(task, grid, solve(task, grid, vocabulary=vocabulary))


def stream_split(
    name: str, part: str, *, seed: int = 0, start: int = 0, stop: int | None = None, **options: Any
) -> Iterator[Sample]:
    """Yield the samples of a split one by one; nothing is kept.

    Sample i depends on the seed and on i alone: a stream may be resumed or shared among workers, by ``start`` and
    ``stop``, and gives the same samples.

    Parameters
    ----------
    name, part : str
        Keys of `SPLITS`.
    seed : int
        Which of all possible splits.
    start, stop : int
        First sample, and the one after the last; without ``stop`` there is no end.
    **options
        As in `draw_sample`.

    Raises
    ------
    ValueError
        If the split or part is unknown, or as `draw_sample`.
    """
    require_one_of("name", name, tuple(SPLITS))
    require_one_of("part", part, tuple(SPLITS[name]))
    require(start >= 0, f"start={start!r} must not be negative")
    return _stream(SPLITS[name][part], seed, start, stop, options)


def _stream(part: Part, seed: int, start: int, stop: int | None, options: dict[str, Any]) -> Iterator[Sample]:
    i = start
    while stop is None or i < stop:
        yield draw_sample(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))), part, **options)
        i += 1


def make_split(
    name: str, part: str, n: int, rng: np.random.Generator, *, one_hot: bool = False, **options: Any
) -> Batch:
    """Draw ``n`` samples of a split as arrays.

    Parameters
    ----------
    name, part : str
        Keys of `SPLITS`.
    n : int
        How many; officially 5000 for each operator.
    rng : Generator
        Gives the seed for `stream_split`.
    one_hot : bool
        As in `stimulus_tokens`.
    **options
        As in `draw_sample`.

    Raises
    ------
    ValueError
        If ``n`` is negative, or as `stream_split`.
    """
    require(n >= 0, f"n={n!r} must not be negative")
    samples = list(stream_split(name, part, seed=int(rng.integers(2**63)), stop=n, **options))
    return Batch.of(samples, one_hot=one_hot, vocabulary=options.get("vocabulary", DEFAULT))
