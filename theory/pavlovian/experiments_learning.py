"""Experiments on learning rules: what error correction, forgetting and conditioning do to a memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from theory.experiment import Cell, Experiment
from theory.pavlovian import drawing
from theory.pavlovian.conditioning import Phase, acquisition, blocked, extinction, overshadowed, strengths
from theory.pavlovian.interference import (
    decay_error,
    delta_single_pass_error,
    hebb_error,
    least_squares_error,
    read_errors,
)
from theory.pavlovian.keys import mean_row, uniform_on_sphere
from theory.pavlovian.parameters import require_positive, require_same_length
from theory.verdict import Check, close, within_noise

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["CONDITIONING", "DECAY", "LEAST_SQUARES", "SINGLE_PASS"]


@dataclass(frozen=True)
class SinglePassParameters:
    """Which counts, widths and rates go together, and how many memories of each."""

    counts: tuple[int, ...] = (16, 32, 64, 20, 48)
    dims: tuple[int, ...] = (32, 32, 32, 200, 24)
    rates: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 0.5)
    trials: int = 300

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dims", "rates", "trials")
        require_same_length(self, "counts", "dims", "rates")


def single_pass_cells(p: SinglePassParameters) -> list[Cell]:
    """Return a cell for each memory and rule."""
    sizes = zip(p.counts, p.dims, p.rates, strict=True)
    return [{"rule": rule, "n": n, "dim": d, "rate": rate} for n, d, rate in sizes for rule in ("hebb", "delta")]


def single_pass(p: SinglePassParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure the error of one rule, on average and item by item."""
    n, dim, rate = cell["n"], cell["dim"], cell["rate"] if cell["rule"] == "delta" else 1.0
    errors = read_errors(np.random.default_rng(seed), p.trials, n, dim, cell["rule"], rate=rate)  # (trials, n)
    predicted = np.full(n, hebb_error(n, dim)) if cell["rule"] == "hebb" else delta_single_pass_error(n, dim, rate)
    yield mean_row("rel_error2", errors.mean(axis=-1), item=None, **cell)
    yield {"source": "exact", "metric": "rel_error2", "value": float(predicted.mean()), "item": None, **cell}
    for j in range(n):
        yield mean_row("item_error2", errors[:, j], item=j, **cell)
        yield {"source": "exact", "metric": "item_error2", "value": float(predicted[j]), "item": j, **cell}


def single_pass_checks(table: ResultTable, p: SinglePassParameters) -> Iterator[Check]:
    """Hold every mean against the exact one."""
    for cell in single_pass_cells(p):
        rows = table.where(metric="rel_error2", **cell)
        measured = rows.one(source="simulation")
        name = f"error², {cell['rule']}, n = {cell['n']}, d = {cell['dim']}, rate {cell['rate']:g}"
        yield within_noise(name, measured["value"], rows.value(source="exact"), measured["stderr"])


def draw_single_pass(table: ResultTable, figure: Figure) -> None:
    """Draw the error item by item for the first memory that is fuller than its keys are wide, and the means."""
    items, means = drawing.panels(figure, ["Who is remembered after one pass", "Average over all items"])
    rows = table.where(metric="item_error2")
    full = next((row for row in rows if row["n"] > row["dim"]), rows.rows[0])
    for rule, colour in (("hebb", drawing.ORANGE), ("delta", drawing.GREEN)):
        part = rows.where(rule=rule, n=full["n"], dim=full["dim"], rate=full["rate"])
        drawing.measured_and_predicted(items, part, "item", colour, rule, source="exact")
        mean = table.where(metric="rel_error2", rule=rule)
        for source, mark in (("exact", "_"), ("simulation", "o")):
            part = mean.where(source=source)
            load = part.column("n") / part.column("dim")
            means.plot(load, part.column("value"), mark, ms=13 if mark == "_" else 4.5, mew=1.5, color=colour)
    items.set(xlabel=f"item in order of writing (n = {full['n']}, d = {full['dim']})", ylabel="relative error²")
    means.set(xscale="log", yscale="log", xlabel="n/d", ylabel="relative error² (bars: exact)")
    drawing.legend(items)


SINGLE_PASS = Experiment(
    "pavlovian/single_pass",
    "One pass of the delta rule forgets the oldest pairs instead of blurring all of them.",
    SinglePassParameters,
    single_pass,
    single_pass_checks,
    draw_single_pass,
    single_pass_cells,
    {"trials": 60, "counts": (16, 32, 48), "dims": (32, 32, 24), "rates": (1.0, 1.0, 0.5)},
)


@dataclass(frozen=True)
class DecayParameters:
    """The memory, and the decays that are compared."""

    n: int = 200
    dim: int = 64
    decays: tuple[float, ...] = (0.8, 0.95, 0.99)
    ages: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50, 100)
    trials: int = 300

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "n", "dim", "decays", "trials")


def decay_cells(p: DecayParameters) -> list[Cell]:
    """Return a cell for each decay."""
    return [{"decay": decay} for decay in p.decays]


def decay(p: DecayParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure the error by age under one decay."""
    errors = read_errors(np.random.default_rng(seed), p.trials, p.n, p.dim, "decay", decay=cell["decay"])
    for age in p.ages:
        yield mean_row("rel_error2", errors[:, p.n - 1 - age], age=age, **cell)
        value = float(decay_error(age, p.n, p.dim, cell["decay"]))
        yield {"source": "exact", "metric": "rel_error2", "value": value, "age": age, **cell}


def decay_checks(table: ResultTable, p: DecayParameters) -> Iterator[Check]:
    """Hold the error of each age against the exact one."""
    for gamma in p.decays:
        for age in p.ages:
            rows = table.where(decay=gamma, age=age)
            measured = rows.one(source="simulation")
            name = f"error², decay {gamma:g}, age {age}"
            yield within_noise(name, measured["value"], rows.value(source="exact"), measured["stderr"])


def draw_decay(table: ResultTable, figure: Figure) -> None:
    """Draw the error over age."""
    (axes,) = drawing.panels(figure, ["Trace decay: the price of remembering far back"])
    colours = (drawing.RED, drawing.GREEN, drawing.BLUE)
    for gamma, colour in zip(dict.fromkeys(table.column("decay")), colours * 9, strict=False):
        drawing.measured_and_predicted(axes, table.where(decay=gamma), "age", colour, f"γ = {gamma:g}", source="exact")
    axes.set(xscale="symlog", xlabel="age of the item", ylabel="relative error²")
    axes.set_xlim(-0.2, None)
    drawing.legend(axes)


DECAY = Experiment(
    "pavlovian/decay",
    "A decaying trace trades interference against forgetting, item by item.",
    DecayParameters,
    decay,
    decay_checks,
    draw_decay,
    decay_cells,
    {"trials": 60, "n": 60, "decays": (0.8, 0.95), "ages": (0, 1, 5, 20)},
)


@dataclass(frozen=True)
class LeastSquaresParameters:
    """Counts of pairs, the width of the keys and of the values."""

    counts: tuple[int, ...] = (16, 32, 40, 48, 64, 128)
    dim: int = 32
    trials: int = 60

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dim", "trials")


def least_squares_cells(p: LeastSquaresParameters) -> list[Cell]:
    """Return a cell for each count."""
    return [{"n": n} for n in p.counts]


def least_squares(p: LeastSquaresParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure what the pseudo-inverse leaves, and what Hebb's rule leaves, of the same pairs."""
    rng, n = np.random.default_rng(seed), cell["n"]
    keys, values = uniform_on_sphere(rng, (2, p.trials, n, p.dim))
    best = keys @ (np.linalg.pinv(keys) @ values) - values
    plain = keys @ (np.swapaxes(keys, -1, -2) @ values) - values
    for name, residual, exact in (
        ("pseudo_inverse", best, least_squares_error(n, p.dim)),
        ("hebb", plain, hebb_error(n, p.dim)),
    ):
        yield mean_row("rel_error2", np.mean(np.sum(residual**2, axis=-1), axis=-1), memory=name, **cell)
        yield {"source": "exact", "metric": "rel_error2", "value": exact, "memory": name, **cell}


def least_squares_checks(table: ResultTable, p: LeastSquaresParameters) -> Iterator[Check]:
    """Hold both against the exact means; up to n = d the pseudo-inverse is right to rounding."""
    for n in p.counts:
        for name in ("pseudo_inverse", "hebb"):
            rows = table.where(n=n, memory=name)
            measured, exact = rows.one(source="simulation"), rows.value(source="exact")
            if exact == 0.0:
                yield close(f"error², {name}, n = {n}", measured["value"], exact, absolute=1e-12)
            else:
                yield within_noise(f"error², {name}, n = {n}", measured["value"], exact, measured["stderr"])


def draw_least_squares(table: ResultTable, figure: Figure) -> None:
    """Draw both errors over n."""
    (axes,) = drawing.panels(figure, ["The best linear memory, and Hebb's"])
    for name, colour in (("hebb", drawing.ORANGE), ("pseudo_inverse", drawing.GREEN)):
        drawing.measured_and_predicted(
            axes, table.where(memory=name), "n", colour, name.replace("_", "-"), source="exact"
        )
    axes.set(xlabel="n", ylabel="relative error²")
    drawing.legend(axes)


LEAST_SQUARES = Experiment(
    "pavlovian/least_squares",
    "The pseudo-inverse recalls exactly up to n = d and leaves 1 − d/n beyond.",
    LeastSquaresParameters,
    least_squares,
    least_squares_checks,
    draw_least_squares,
    least_squares_cells,
    {"trials": 20},
)

DESIGNS = ("acquisition", "extinction", "blocking", "overshadowing", "over_expectation", "inhibition")


@dataclass(frozen=True)
class ConditioningParameters:
    """Rate, saliences of two cues for overshadowing, and trials of a phase."""

    rate: float = 0.2
    saliences: tuple[float, ...] = (1.0, 0.5)
    trials: int = 50

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "rate", "saliences", "trials")


def design(name: str, p: ConditioningParameters) -> tuple[list[Phase], tuple[float, ...]]:
    """Return the phases and saliences of a classical experiment; cue 0 is A, cue 1 is B or X."""
    T, equal = p.trials, (1.0, 1.0)
    many = 4 * T
    table: Mapping[str, tuple[list[Phase], tuple[float, ...]]] = {
        "acquisition": ([Phase((0,), 1.0, T)], equal),
        "extinction": ([Phase((0,), 1.0, many), Phase((0,), 0.0, T)], equal),
        "blocking": ([Phase((0,), 1.0, T), Phase((0, 1), 1.0, many)], equal),
        "overshadowing": ([Phase((0, 1), 1.0, many)], p.saliences),
        "over_expectation": ([Phase((0,), 1.0, many), Phase((1,), 1.0, many), Phase((0, 1), 1.0, many)], equal),
        "inhibition": ([Phase((0,), 1.0, 1), Phase((0, 1), 0.0, 1)] * (8 * T), equal),
    }
    return table[name]


def predictions(p: ConditioningParameters) -> dict[str, tuple[float, float]]:
    """Return the final strengths of A and of B under the delta rule [derived]."""
    shares = overshadowed(p.saliences)
    late = blocked(p.trials, p.rate)
    return {
        "acquisition": (float(acquisition(p.trials, p.rate)), 0.0),
        "extinction": (float(extinction(p.trials, p.rate, float(acquisition(4 * p.trials, p.rate)))), 0.0),
        "blocking": (1 - late, late),
        "overshadowing": (float(shares[0]), float(shares[1])),
        "over_expectation": (0.5, 0.5),
        "inhibition": (1.0, -1.0),
    }


def conditioning_cells(_p: ConditioningParameters) -> list[Cell]:
    """Return a cell for each design and rule."""
    return [{"design": name, "rule": rule} for name in DESIGNS for rule in ("delta", "hebb")]


def conditioning(p: ConditioningParameters, cell: Cell, _seed: np.random.SeedSequence) -> Iterator[Row]:
    """Run one experiment under one rule; nothing in it is random."""
    phases, saliences = design(cell["design"], p)
    V = strengths(phases, saliences, cell["rule"], p.rate)
    for cue, stimulus in enumerate("AB"):
        yield {
            "source": "simulation",
            "metric": "final",
            "value": float(V[-1, cue]),
            "trial": None,
            "stimulus": stimulus,
            **cell,
        }
        if cell["rule"] == "delta":
            value = predictions(p)[cell["design"]][cue]
            yield {
                "source": "exact",
                "metric": "final",
                "value": value,
                "trial": None,
                "stimulus": stimulus,
                **cell,
            }
        for t in range(min(len(V), 3 * p.trials + 1)):
            yield {
                "source": "simulation",
                "metric": "strength",
                "value": float(V[t, cue]),
                "trial": t,
                "stimulus": stimulus,
                **cell,
            }


def conditioning_checks(table: ResultTable, p: ConditioningParameters) -> Iterator[Check]:
    """Hold the delta rule's limits to 1e-6, and Hebb's growth to rounding."""
    final = table.where(metric="final")
    for name in DESIGNS:
        for stimulus in "AB":
            rows = final.where(design=name, rule="delta", stimulus=stimulus)
            yield close(
                f"{name}, {stimulus}, delta", rows.value(source="simulation"), rows.value(source="exact"), absolute=1e-6
            )
    blocked_b = final.value(design="blocking", rule="hebb", stimulus="B")
    yield close("blocking, B, Hebb: η · trials", blocked_b, p.rate * 4 * p.trials, absolute=1e-9)


def draw_conditioning(table: ResultTable, figure: Figure) -> None:
    """Draw extinction, blocking and inhibition under both rules."""
    names = ("acquisition", "blocking", "inhibition")
    titles = ("Acquisition", "Blocking: A, then A with B", "Conditioned inhibition: A+, AB−")
    for axes, name, title in zip(drawing.panels(figure, titles), names, titles, strict=True):
        del title
        for rule, style in (("delta", "-"), ("hebb", ":")):
            for stimulus, colour in (("A", drawing.GREEN), ("B", drawing.RED)):
                rows = table.where(metric="strength", design=name, rule=rule, stimulus=stimulus)
                if name == "acquisition" and stimulus == "B":
                    continue
                V = rows.column("value")
                axes.plot(rows.column("trial"), V, style, lw=1.6, color=colour, label=f"{stimulus}, {rule}")
        axes.set(xlabel="trial", ylabel="associative strength V", ylim=(-1.2, 2.4))
        drawing.legend(axes, "lower right" if name != "inhibition" else "upper right")


CONDITIONING = Experiment(
    "pavlovian/conditioning",
    "With the delta rule a head shows blocking, overshadowing and inhibition; with Hebb's it does not.",
    ConditioningParameters,
    conditioning,
    conditioning_checks,
    draw_conditioning,
    conditioning_cells,
)
