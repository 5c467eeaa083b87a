"""Both tasks in the words of the planted list model, as token ids, and how prompts are kept in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interpretability.circuit_reuse_prompts import colored_object_pairs
from refattn.primitives.arguments import as_integer, require
from refattn.transformer.planted.list_model import BOUND, COLORS, NAMES, OBJECTS

if TYPE_CHECKING:
    from refattn.transformer.planted.list_model import ListLayout

__all__ = [
    "COLOR_POSITIONS",
    "QUERY_POSITION",
    "SUBJECT_POSITION",
    "TASKS",
    "ListPrompts",
    "Prompts",
    "list_colored_objects",
    "list_ioi",
    "read_prompts",
    "write_list_prompts",
    "write_prompts",
]

SUBJECT_POSITION = 11
"""Of the second mention of the subject in an IOI prompt of the list model."""
QUERY_POSITION = 57
"""Of the object that is asked for, in its Colored Objects prompts."""
COLOR_POSITIONS = (41, 45, 50)
"""Of the three colours in the second list."""
TASKS = ("ioi", "colored_objects")


class ListPrompts(NamedTuple):
    """Prompts (B, T), corrupt ones (B, T), right and wrong words (B, 2); B distracting positions each (B, K).

    ``distractors`` are the positions of the wrong colours, or of the first mention of the subject; ``bound`` says
    whether the object asked for is one that the model knows where to look up (always true of IOI).
    """

    clean: np.ndarray
    corrupt: np.ndarray
    answers: np.ndarray
    distractors: np.ndarray
    bound: np.ndarray


def list_ioi(layout: ListLayout, rng: np.random.Generator, n: int) -> ListPrompts:
    """Draw IOI prompts for the list model: "<bos> then , bob and alice went to the store . bob gave a ring to".

    Parameters
    ----------
    layout : ListLayout
        Of the model.
    rng : numpy.random.Generator
        Draws the two names and which of them is the subject.
    n : int
        How many.

    Returns
    -------
    ListPrompts
        Of 16 tokens; the subject's second mention is token 11.
    """
    require(n >= 0, f"n={n!r} must not be negative")
    clean, corrupt, answers, distractors = [], [], [], []
    for _ in range(n):
        pair = [NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False)]
        place = int(rng.integers(2))
        subject, other = pair[place], pair[1 - place]
        start = f"<bos> then , {pair[0]} and {pair[1]} went to the store ."
        clean.append(layout.encode(f"{start} {subject} gave a ring to"))
        corrupt.append(layout.encode(f"{start} {other} gave a ring to"))
        answers.append(layout.encode((other, subject)))
        distractors.append([3 + 2 * place])
    return ListPrompts(
        _table(clean, 16), _table(corrupt, 16), _table(answers, 2), _table(distractors, 1), np.ones(n, bool)
    )


def list_colored_objects(layout: ListLayout, rng: np.random.Generator, n: int) -> ListPrompts:
    """Draw Colored Objects prompts for the list model, in lower case, words and punctuation apart.

    Parameters
    ----------
    layout : ListLayout
        Of the model.
    rng : numpy.random.Generator
        Draws them, as `colored_object_pairs` does.
    n : int
        How many.

    Returns
    -------
    ListPrompts
        Of 61 tokens; the colours of the second list are tokens 41, 45 and 50, the object asked for is token 57.
    """
    pairs = colored_object_pairs(rng, n, uppercase=False, objects=OBJECTS, colors=COLORS)
    clean = _table([layout.encode(_words(pair.clean)) for pair in pairs], 61)
    corrupt = _table([layout.encode(_words(pair.corrupt)) for pair in pairs], 61)
    answers = _table([layout.encode((pair.answer.strip(), pair.wrong.strip())) for pair in pairs], 2)
    wrong = [[place for i, place in enumerate(COLOR_POSITIONS) if i != pair.meta["query"]] for pair in pairs]
    bound = np.array([pair.meta["objects"][pair.meta["query"]] in BOUND for pair in pairs], bool)
    return ListPrompts(clean, corrupt, answers, _table(wrong, 2), bound)


def _words(text: str) -> str:
    """Put a text into the list model's words, which are separated by single blanks."""
    text = text.lower().replace("\na:", " ans :").replace("\nq:", " \n q :").replace("q: on", "q : on")
    for mark in ",.?":
        text = text.replace(mark, f" {mark}")
    return f"<bos> {text}"


def _table(rows: list[Any], width: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(len(rows), width)


class Prompts(NamedTuple):
    """Clean and corrupt prompts (B, T), right and wrong words (B, 2), and where the last stage of a circuit reads."""

    clean: np.ndarray
    corrupt: np.ndarray
    answers: np.ndarray
    source: int | None = None


def write_prompts(path: str | Path, clean: Any, corrupt: Any, answers: Any, *, source: int | None = None) -> None:
    """Write prompts as JSON: ``{"clean": [[ids]], "corrupt": [[ids]], "answers": [[right, wrong]], "source": int}``.

    Parameters
    ----------
    path : path
        The file; it is replaced if it is there.
    clean, corrupt : array_like of int, shape (B, T)
        The prompts.
    answers : array_like of int, shape (B, 2)
        Right and wrong words.
    source : int, optional
        The position that the last stage reads, see `refattn.interpretability.circuit_reuse.trace_circuit`.
    """
    arrays = {"clean": clean, "corrupt": corrupt, "answers": answers}
    tables = {name: as_integer(name, value, ndim=2).tolist() for name, value in arrays.items()}
    content = tables if source is None else {**tables, "source": source}
    Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_prompts(path: str | Path) -> Prompts:
    """Read prompts that `write_prompts` wrote.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    Prompts

    Raises
    ------
    ValueError
        If the file is not there, is not such JSON, or holds prompts of different lengths.
    """
    path = Path(path)
    require(path.is_file(), f"there is no file {path.name} with prompts")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON ({error})") from None
    tables = []
    for name in ("clean", "corrupt", "answers"):
        require(isinstance(content, dict) and name in content, f"{path.name} has no {name!r}")
        rows = content[name]
        listed = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
        require(listed and len({len(row) for row in rows}) == 1, f"{name} in {path.name} must be rows of one length")
        tables.append(as_integer(name, rows, ndim=2))
    source = content.get("source")
    require(source is None or type(source) is int, f"source in {path.name} is {source!r}, expected an integer")
    return Prompts(tables[0], tables[1], tables[2], source)


def write_list_prompts(path: str | Path, layout: ListLayout, task: str, n: int, rng: np.random.Generator) -> None:
    """Draw prompts of one of `TASKS` for the list model and write them to a file.

    Parameters
    ----------
    path : path
        The file.
    layout : ListLayout
        Of the model.
    task : {"ioi", "colored_objects"}
        Which task.
    n : int
        How many prompts.
    rng : numpy.random.Generator
        Draws them.

    Raises
    ------
    ValueError
        For an unknown task.
    """
    require(task in TASKS, f"task={task!r} is not one of {', '.join(map(repr, TASKS))}")
    draw, source = (list_ioi, SUBJECT_POSITION) if task == "ioi" else (list_colored_objects, QUERY_POSITION)
    prompts = draw(layout, rng, n)
    write_prompts(path, prompts.clean, prompts.corrupt, prompts.answers, source=source)
