"""What an experiment is, and where the experiments are found."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import theory

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row
    from theory.verdict import Check

__all__ = ["Cell", "Experiment", "as_mapping", "choose", "experiments", "find", "parameters_of"]

Cell = Mapping[str, Any]
"""Coordinates of one cell: names and JSON scalars."""


def _one_cell(_parameters: Any) -> list[Cell]:
    return [{}]


@dataclass(frozen=True)
class Experiment:
    """One figure or table of a theory: what is simulated, what is predicted, and how it is drawn.

    Attributes
    ----------
    name : str
        ``theory/figure``, such as ``pavlovian/snr``.
    title : str
        What it shows, in one sentence.
    parameters : type
        A frozen dataclass with a default for each field; its ``__post_init__`` refuses what is out of range.
    simulate : callable
        ``(parameters, cell, seed: np.random.SeedSequence) -> iterable of rows``: the numbers of one cell, measured
        and predicted; a pure function. Runs in any process, so it is a function of a module.
    checks : callable
        ``(table, parameters) -> iterable of Check``: what was predicted, held against what was measured.
    draw : callable
        ``(table, figure) -> None``: draws on a matplotlib figure.
    cells : callable
        ``parameters -> list of coordinates``; one empty cell if not given.
    quick : mapping
        Parameters that make it a matter of a second or two.
    """

    name: str
    title: str
    parameters: type
    simulate: Callable[[Any, Cell, np.random.SeedSequence], Iterable[Row]]
    checks: Callable[[ResultTable, Any], Iterable[Check]]
    draw: Callable[[ResultTable, Figure], None]
    cells: Callable[[Any], Sequence[Cell]] = _one_cell
    quick: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """Name of the theory, the slug of its mechanism."""
        return self.name.partition("/")[0]


@cache
def experiments() -> dict[str, Experiment]:
    """Return every experiment by name: the ``EXPERIMENTS`` of each ``theory.<slug>.experiments`` that there is."""
    theories = [name for name in _theories() if importlib.util.find_spec(f"theory.{name}.experiments")]
    return {experiment.name: experiment for name in theories for experiment in _experiments_of(name)}


def find(name: str, known: Mapping[str, Experiment] | None = None) -> Experiment:
    """Return the experiment of this name; without ``known`` no other theory than its own is loaded.

    Raises
    ------
    ValueError
        If there is none; the message names the near ones.
    """
    slug = name.partition("/")[0]
    if known is None and slug in _theories():
        known = {experiment.name: experiment for experiment in _experiments_of(slug)}
    known = experiments() if known is None else known
    if name not in known:
        raise ValueError(f"experiment {name!r} is unknown{_near(name, known)}")
    return known[name]


def choose(names: Sequence[str], known: Mapping[str, Experiment]) -> list[Experiment]:
    """Return the experiments that are meant by names of experiments or of whole theories; all if there are none.

    Raises
    ------
    ValueError
        If a name is unknown; the message names the near ones.
    """
    chosen: dict[str, Experiment] = {}
    for name in names or known:
        found = {n: e for n, e in known.items() if name in (n, e.family)}
        if not found:
            raise ValueError(
                f"experiment {name!r} is unknown{_near(name, [*known, *(e.family for e in known.values())])}"
            )
        chosen |= found
    return list(chosen.values())


def _theories() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(theory.__path__) if info.ispkg)


def _experiments_of(slug: str) -> tuple[Experiment, ...]:
    if importlib.util.find_spec(f"theory.{slug}.experiments") is None:
        raise ValueError(f"theory/{slug} has no experiments.py with EXPERIMENTS")
    found: tuple[Experiment, ...] = importlib.import_module(f"theory.{slug}.experiments").EXPERIMENTS
    return found


def parameters_of(experiment: Experiment, changes: Mapping[str, Any] | None = None, *, quick: bool = False) -> Any:
    """Return the experiment's parameters, some of them changed.

    Raises
    ------
    ValueError
        If a name is unknown (the message names the near ones) or a value is refused.
    """
    known = [f.name for f in fields(experiment.parameters)]
    changes = dict(changes or {})
    for name in changes:
        if name not in known:
            raise ValueError(f"{experiment.name} has no parameter {name!r}{_near(name, known)}")
    return replace(experiment.parameters(), **({**experiment.quick, **changes} if quick else changes))


def as_mapping(parameters: Any) -> dict[str, Any]:
    """Return parameters as the mapping that JSON holds, tuples as lists."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(parameters).items()}


def _near(name: str, known: Iterable[str]) -> str:
    known = list(dict.fromkeys(known))
    inside = [other for other in known if name and name in other]
    close = list(dict.fromkeys([*inside, *difflib.get_close_matches(name, known, n=3, cutoff=0.5)]))[:3]
    return f"; did you mean {' or '.join(close)}?" if close else f"; known are {', '.join(sorted(known))}"
