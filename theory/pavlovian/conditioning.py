"""The experiments of animal learning, run on the memory of an attention head.

A cue X of salience α_X is the key √α_X e_X, several at once are the sum of their keys, and the outcome λ is a value of
width one. The delta rule then is ΔV_X = α_X β (λ − Σ_Y V_Y) for the associative strengths V_X = √α_X S_X: the model of
Rescorla and Wagner, in three lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.layers.pavlovian import linear_memory_write
from refattn.primitives.arguments import require
from theory.table import ResultTable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Phase", "acquisition", "blocked", "conditioning_experiment", "extinction", "overshadowed", "strengths"]


class Phase(NamedTuple):
    """Some trials of one kind.

    Attributes
    ----------
    cs : tuple of int
        The cues that are present.
    us : float
        The outcome λ; 0 if it stays away.
    trials : int
        How many.
    """

    cs: tuple[int, ...]
    us: float
    trials: int


def conditioning_experiment(
    phases: Sequence[Phase], saliences: Sequence[float], rule: str = "delta", rate: float = 0.2
) -> ResultTable:
    """Run phases of conditioning and record every cue's associative strength.

    Parameters
    ----------
    phases : sequence of Phase
        What happens, in order.
    saliences : sequence of float
        α of each cue, positive.
    rule, rate
        As in `refattn.layers.pavlovian.linear_memory_write`.

    Returns
    -------
    ResultTable
        Rows ``strength`` by ``trial`` (0 is before the first) and ``stimulus``.

    Raises
    ------
    ValueError
        If a phase names an unknown cue or has less than one trial, or a salience is not positive.
    """
    V = strengths(phases, saliences, rule, rate)
    table = ResultTable()
    table.extend(
        {"source": "simulation", "metric": "strength", "value": float(V[t, x]), "trial": t, "stimulus": x}
        for t in range(V.shape[0])
        for x in range(V.shape[1])
    )
    return table


def strengths(
    phases: Sequence[Phase], saliences: Sequence[float], rule: str = "delta", rate: float = 0.2
) -> np.ndarray:
    """Return what `conditioning_experiment` records, as an array (trials + 1, cues)."""
    root = np.sqrt(_checked(phases, saliences))  # (cues,)
    shown = np.zeros((sum(p.trials for p in phases), len(root)))  # (trials, cues)
    outcome = np.repeat([p.us for p in phases], [p.trials for p in phases])[:, None]  # (trials, 1)
    begin = 0
    for phase in phases:
        shown[begin : begin + phase.trials, list(phase.cs)] = root[list(phase.cs)]
        begin += phase.trials
    S = linear_memory_write(shown, outcome, rule=rule, rate=rate, return_history=True)  # (trials + 1, 1, cues)
    return np.asarray(S[:, 0] * root)


def acquisition(trials: np.ndarray | int, alpha_beta: float, asymptote: float = 1.0) -> np.ndarray:
    """Return V after so many reinforced trials, λ (1 − (1 − αβ)^t)."""
    return np.asarray(asymptote * (1 - (1 - alpha_beta) ** np.asarray(trials)))


def extinction(trials: np.ndarray | int, alpha_beta: float, start: float = 1.0) -> np.ndarray:
    """Return V after so many trials without the outcome, V₀ (1 − αβ)^t."""
    return np.asarray(start * (1 - alpha_beta) ** np.asarray(trials))


def blocked(trials: int, alpha_beta: float, asymptote: float = 1.0) -> float:
    """Return what a cue of equal salience still learns beside one that was trained alone: ½ λ (1 − αβ)^T [derived]."""
    return float(asymptote * (1 - alpha_beta) ** trials / 2)


def overshadowed(saliences: Sequence[float], asymptote: float = 1.0) -> np.ndarray:
    """Return how cues that are always shown together share the asymptote: λ α_X / Σ α [derived]."""
    alpha = np.asarray(saliences, dtype=float)
    return np.asarray(asymptote * alpha / alpha.sum())


def _checked(phases: Sequence[Phase], saliences: Sequence[float]) -> np.ndarray:
    alpha = np.asarray(saliences, dtype=float)
    require(alpha.ndim == 1 and alpha.size > 0 and np.all(alpha > 0), f"saliences={saliences!r} must be positive")
    require(len(phases) > 0, "phases must not be empty")
    for phase in phases:
        require(phase.trials >= 1, f"trials={phase.trials!r} of a phase must be >= 1")
        known = all(0 <= cue < alpha.size for cue in phase.cs)
        require(known, f"cs={phase.cs!r} names a cue that is not one of 0 … {alpha.size - 1}")
    return alpha
