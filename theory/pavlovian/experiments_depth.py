"""Experiments on depth: errors along a chain of memories, without and with clean-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refattn.primitives.arguments import require
from theory.experiment import Cell, Experiment
from theory.pavlovian import drawing
from theory.pavlovian.depth import any_of_failure, chain_reliability, depth_error
from theory.pavlovian.parameters import require_positive, require_same_length
from theory.verdict import Check, within_noise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["CLEANUP", "DEPTH"]

SIZES = ("n", "dim", "heads", "layers")


@dataclass(frozen=True)
class DepthParameters:
    """Which sizes go together, and how many chains of each."""

    n: tuple[int, ...] = (8, 8, 16, 32)
    dim: tuple[int, ...] = (64, 64, 64, 64)
    heads: tuple[int, ...] = (1, 1, 4, 1)
    layers: tuple[int, ...] = (4, 12, 8, 6)
    trials: int = 600

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, *SIZES, "trials")
        require_same_length(self, *SIZES)


def depth_cells(p: DepthParameters) -> list[Cell]:
    """Return a cell for each chain."""
    return [dict(zip(SIZES, sizes, strict=True)) for sizes in zip(p.n, p.dim, p.heads, p.layers, strict=True)]


def depth(p: DepthParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterable[Row]:
    """Measure the error at the end of one kind of chain."""
    sizes = {name: int(cell[name]) for name in SIZES}
    return depth_error(**sizes, trials=p.trials, cleanup=False, rng=np.random.default_rng(seed))


def depth_checks(table: ResultTable, p: DepthParameters) -> Iterator[Check]:
    """Hold every mean against the exact one."""
    for cell in depth_cells(p):
        rows = table.where(**cell)
        measured = rows.one(source="simulation")
        name = "error², " + ", ".join(f"{key} = {value}" for key, value in cell.items())
        yield within_noise(name, measured["value"], rows.value(source="exact"), measured["stderr"])


def draw_depth(table: ResultTable, figure: Figure) -> None:
    """Draw the error over depth, the exact curve of each chain through its point."""
    (axes,) = drawing.panels(figure, ["Errors grow exponentially along a chain"])
    colours = (drawing.GREEN, drawing.GREEN, drawing.ORANGE, drawing.RED)
    seen: set[tuple[float, ...]] = set()
    for row, colour in zip(table.where(source="simulation"), colours * 9, strict=False):
        load = (row["n"] - 1) / (row["dim"] * row["heads"])
        L = np.linspace(0.5, 12, 60)
        shape = (row["n"], row["dim"], row["heads"])
        label = None if shape in seen else f"n = {row['n']}, d = {row['dim']}, H = {row['heads']}"
        seen.add(shape)
        axes.plot(L, (1 + load) ** L - 1, "-", lw=1.2, color=colour)
        axes.errorbar(row["layers"], row["value"], 2 * row["stderr"], fmt="o", ms=5, color=colour, label=label)
    axes.set(yscale="log", xlabel="layers L", ylabel="relative error²")
    drawing.legend(axes, "lower right")


DEPTH = Experiment(
    "pavlovian/depth",
    "After L layers the squared error is (1 + (n − 1)/(d H))^L − 1, exactly.",
    DepthParameters,
    depth,
    depth_checks,
    draw_depth,
    depth_cells,
    {"trials": 200},
)


@dataclass(frozen=True)
class CleanupParameters:
    """The chain, and how many heads vote."""

    n: int = 40
    dim: int = 24
    layers: int = 6
    heads: tuple[int, ...] = (1, 3, 5, 7, 9)
    trials: int = 400

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "n", "dim", "layers", "heads", "trials")
        require(all(h % 2 for h in self.heads), f"heads={self.heads!r} must be odd to vote")


def cleanup_cells(p: CleanupParameters) -> list[Cell]:
    """Return a cell for each number of heads."""
    return [{"heads": heads} for heads in p.heads]


def cleanup(p: CleanupParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure how often a chain fails whose heads vote after each layer."""
    rng = np.random.default_rng(seed)
    table = depth_error(p.n, p.dim, cell["heads"], p.layers, p.trials, cleanup=True, rng=rng)
    yield from table
    failure = table.value(source="simulation", metric="head_failure")
    lone = 1 - chain_reliability(any_of_failure(failure, cell["heads"]), p.layers)
    yield {"source": "theory", "metric": "any_of_failure", "value": lone, **cell}


def cleanup_checks(table: ResultTable, p: CleanupParameters) -> Iterator[Check]:
    """Hold the failures of chains against the binomial law of the heads' failures."""
    for heads in p.heads:
        rows = table.where(heads=heads, metric="chain_failure")
        predicted = rows.value(source="theory")
        stderr = float(np.sqrt(max(predicted * (1 - predicted), 1 / p.trials) / p.trials))
        yield within_noise(f"failure of chains, H = {heads}", rows.value(source="simulation"), predicted, stderr)


def draw_cleanup(table: ResultTable, figure: Figure) -> None:
    """Draw the failure of chains over the number of heads."""
    (axes,) = drawing.panels(figure, ["Clean-up after each layer"])
    drawing.measured_and_predicted(
        axes, table.where(metric="chain_failure"), "heads", drawing.GREEN, "majority of the heads"
    )
    lone = table.where(metric="any_of_failure")
    axes.plot(
        lone.column("heads"), lone.column("value"), "--", lw=1.3, color=drawing.ORANGE, label="one right head is enough"
    )
    axes.set(xlabel="heads H", ylabel="failure of the chain", ylim=(-0.02, 1.02))
    drawing.legend(axes, "upper right")


CLEANUP = Experiment(
    "pavlovian/cleanup",
    "With clean-up a chain of L layers fails as L votes of H heads do.",
    CleanupParameters,
    cleanup,
    cleanup_checks,
    draw_cleanup,
    cleanup_cells,
    {"heads": (1, 5), "trials": 200},
)
