"""What all experiments that train have in common: their parameters, and rows made of what a run returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import require
from theory.icl_regression.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE
from theory.icl_regression.samplers import require_problem
from theory.icl_regression.training import TrainResult, train_icl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from theory.experiment import Cell
    from theory.table import Row

__all__ = ["COLOURS", "TrainingParameters", "cells_by_head", "plain_axes", "row", "train_in_phases"]

COLOURS = (ORANGE, GREEN, PURPLE, BLUE)


@dataclass(frozen=True)
class TrainingParameters:
    """What is trained, and how long.

    Attributes
    ----------
    heads : tuple of int
        Numbers of heads H, one cell each.
    steps, batch : int
        Number of steps, and of prompts a step.
    lr : float
        Learning rate of Adam.
    replicas : int
        Number of starts, trained on the same prompts.
    dim, length : int
        Number of covariates d and of context tokens L.
    noise_var : float
        Variance σ² of the noise.
    """

    heads: tuple[int, ...] = (2,)
    steps: int = 20_000
    batch: int = 256
    lr: float = 1e-3
    replicas: int = 4
    dim: int = 5
    length: int = 40
    noise_var: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        require_problem(self.dim, self.length, self.noise_var)
        require(
            self.heads and min(self.heads) >= 1 and len(set(self.heads)) == len(self.heads),
            f"heads={self.heads} must name different numbers >= 1",
        )
        for name in ("steps", "batch", "replicas"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be >= 1")
        require(self.length >= 2, f"length={self.length} must be >= 2: one token tells no slope")
        require(np.isfinite(self.lr) and self.lr > 0, f"lr={self.lr} must be finite and > 0")

    @property
    def problem(self) -> tuple[int, int, float]:
        """Dimension, length and noise, as the losses take them."""
        return self.dim, self.length, self.noise_var

    @property
    def log_every(self) -> int:
        """Steps between two looks, so that there are about forty."""
        return max(1, self.steps // 40)


def train_in_phases(
    n_head: int, p: TrainingParameters, phases: Sequence[tuple[int, float]], **options: Any
) -> TrainResult:
    """Train with one learning rate after the other, each phase with a fresh optimiser, and return the last phase.

    With a constant rate Adam's parameters jitter about the place where they are, by an amount that grows with the rate.
    A last phase with a small one lets that die down, so that what is measured is the place.

    Parameters
    ----------
    n_head : int
        Number of heads.
    p : TrainingParameters
        All else but the rates.
    phases : sequence of (int, float)
        Steps and learning rate of each phase.
    **options
        Of `train_icl`.
    """
    result = None
    for steps, lr in phases:
        start: dict[str, Any] = {} if result is None else {"init": result.weights}
        common: dict[str, Any] = {"batch": p.batch, "replicas": p.replicas, "dtype": np.float32} | options | start
        result = train_icl(n_head, *p.problem, steps=steps, lr=lr, log_every=steps, **common)
    assert result is not None
    return result


def cells_by_head(parameters: TrainingParameters) -> list[Cell]:
    """Return one cell for each number of heads."""
    return [{"n_head": n_head} for n_head in parameters.heads]


def row(source: str, metric: str, value: Any, **coordinates: Any) -> Row:
    """Return a row."""
    return {"source": source, "metric": metric, "value": float(value), **coordinates}


def plain_axes(axes: Axes, *, xlabel: str = "", ylabel: str = "") -> None:
    """Give axes the neutral colour, and no more lines than they need."""
    axes.set_xlabel(xlabel, color=GREY)
    axes.set_ylabel(ylabel, color=GREY)
    axes.tick_params(colors=GREY)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_color(GREY)
        spine.set_visible(side in {"left", "bottom"})
