"""What an experiment is, and where the experiments are found."""

from __future__ import annotations

import difflib
import importlib
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

__all__ = ["Cell", "Experiment", "experiments", "find", "parameters_of"]

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
    """Return every experiment by name: the ``EXPERIMENTS`` of each ``theory.<slug>.experiments``."""
    packages = sorted(info.name for info in pkgutil.iter_modules(theory.__path__) if info.ispkg)
    modules = [importlib.import_module(f"theory.{package}.experiments") for package in packages]
    return {experiment.name: experiment for module in modules for experiment in module.EXPERIMENTS}


def find(name: str) -> Experiment:
    """Return the experiment of this name.

    Raises
    ------
    ValueError
        If there is none; the message names the near ones.
    """
    if name not in experiments():
        raise ValueError(f"experiment {name!r} is unknown{_near(name, experiments())}")
    return experiments()[name]


def parameters_of(experiment: Experiment, changes: Mapping[str, Any] | None = None, *, quick: bool = False) -> Any:
    """Return the experiment's parameters, some of them changed.

    Raises
    ------
    ValueError
        If a name is unknown (the message names the near ones) or a value is refused.
    """
    known = {f.name for f in fields(experiment.parameters)}
    changes = dict(changes or {})
    for name in changes:
        if name not in known:
            raise ValueError(f"{experiment.name} has no parameter {name!r}{_near(name, known)}")
    return replace(experiment.parameters(), **({**experiment.quick, **changes} if quick else changes))


def as_mapping(parameters: Any) -> dict[str, Any]:
    """Return parameters as the mapping that JSON holds, tuples as lists."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(parameters).items()}


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known are {', '.join(sorted(known))}"
