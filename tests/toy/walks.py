"""A theory small enough to test the engine with; ``python -m toy.walks`` is a command line of its own."""

import sys
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from theory.cli import main
from theory.experiment import Experiment
from theory.verdict import above, within_noise


@dataclass(frozen=True)
class Walk:
    """Parameters of random walks."""

    steps: tuple[int, ...] = (16, 64, 256)
    walkers: int = 300
    size: float = 1.0
    law: Literal["normal", "sign"] = "normal"
    predicted_size: float | None = None
    diverge: bool = False
    pause: float = 0.0

    def __post_init__(self):
        if self.walkers < 2:
            raise ValueError(f"walkers={self.walkers!r} is not an integer >= 2")


def cells(parameters):
    return [{"steps": n, "replica": r} for n in parameters.steps for r in range(4)]


def simulate(parameters, cell, seed):
    rng = np.random.default_rng(seed)
    time.sleep(parameters.pause)
    if parameters.diverge and cell["steps"] > 16:
        raise FloatingPointError("the walk diverges at step 17, loss nan")
    sizes = rng.normal(size=(parameters.walkers, cell["steps"]))
    sizes = parameters.size * (np.sign(sizes) if parameters.law == "sign" else sizes)
    # a product of matrices: it has other last digits on another number of threads
    place = sizes @ rng.normal(size=(cell["steps"], 300))
    squared = np.mean(place**2, axis=1)
    predicted = cell["steps"] * parameters.size**2
    error = squared.std(ddof=1) / np.sqrt(parameters.walkers)
    yield {"source": "simulation", "metric": "distance2", "value": squared.mean(), "stderr": error}
    yield {"source": "exact", "metric": "distance2", "value": predicted, "stderr": None}


def checks(table, parameters):
    for steps in parameters.steps:
        measured = table.where(source="simulation", steps=steps)
        error = float(np.sqrt(np.sum(measured.column("stderr") ** 2)) / len(measured))
        size = parameters.predicted_size or parameters.size
        mean = float(np.mean(measured.column("value")))
        yield within_noise(f"squared distance after {steps} steps", mean, steps * size**2, 3 * error)
        yield above(f"squared distance after {steps} steps is not negative", mean, 0.0)


def draw(table, figure):
    axes = figure.subplots()
    axes.plot(table.where(source="simulation").column("steps"), table.where(source="simulation").column("value"), "o")


WALK = Experiment("toy/walk", "How far a random walk gets", Walk, simulate, checks, draw, cells, {"steps": (4, 16)})
COPY = Experiment("toy/copy", "The same again, under another name", Walk, simulate, checks, draw, cells)

if __name__ == "__main__":
    sys.exit(main(experiments=[WALK, COPY]))
