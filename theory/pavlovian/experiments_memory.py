"""Experiments on other memories, for comparison: softmax, polynomial, Hopfield's, dense, and the best binary one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refattn.primitives.arguments import require
from refattn.primitives.softmax import softmax
from theory.experiment import Cell, Experiment
from theory.pavlovian import drawing
from theory.pavlovian.interference import hebb_error
from theory.pavlovian.keys import mean_row, uniform_on_sphere
from theory.pavlovian.memory_models import (
    cover_probability,
    dense_bit_error,
    hopfield_bit_error,
    hopfield_bit_error_exact,
    polynomial_error,
    softmax_crosstalk,
)
from theory.pavlovian.parameters import require_positive, require_same_length
from theory.verdict import Check, below, close, within_noise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["COVER", "DENSE", "HOPFIELD", "POLYNOMIAL", "SOFTMAX"]


@dataclass(frozen=True)
class SoftmaxParameters:
    """Which counts, widths and temperatures go together."""

    counts: tuple[int, ...] = (200, 2000, 500)
    dims: tuple[int, ...] = (16, 16, 32)
    betas: tuple[float, ...] = (8.0, 16.0, 10.0)
    trials: int = 40
    probes: int = 200

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dims", "betas", "trials", "probes")
        require_same_length(self, "counts", "dims", "betas")


def softmax_cells(p: SoftmaxParameters) -> list[Cell]:
    """Return a cell for each memory."""
    return [{"n": n, "dim": d, "beta": beta} for n, d, beta in zip(p.counts, p.dims, p.betas, strict=True)]


def softmax_memory(p: SoftmaxParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure the crosstalk and the error of a softmax read, averaged over uncorrelated unit values."""
    rng, n = np.random.default_rng(seed), cell["n"]
    probes = min(n, p.probes)
    crosstalk, errors = np.empty(p.trials), np.empty(p.trials)
    for trial in range(p.trials):
        keys = uniform_on_sphere(rng, (n, cell["dim"]))
        overlap = keys[:probes] @ keys.T  # (probes, n)
        own = np.arange(probes)
        crosstalk[trial] = np.mean(np.sum(np.exp(cell["beta"] * (overlap - 1)), axis=-1) - 1)
        weights = softmax(cell["beta"] * overlap)
        errors[trial] = np.mean(np.sum(weights**2, axis=-1) + 1 - 2 * weights[own, own])
    yield mean_row("crosstalk", crosstalk, **cell)
    value = softmax_crosstalk(n, cell["dim"], cell["beta"])
    yield {"source": "exact", "metric": "crosstalk", "value": value, **cell}
    yield mean_row("rel_error2", errors, **cell)
    yield {"source": "exact", "metric": "linear_error2", "value": hebb_error(n, cell["dim"]), **cell}


def softmax_checks(table: ResultTable, p: SoftmaxParameters) -> Iterator[Check]:
    """Hold the crosstalk against von Mises-Fisher, and the error against the linear memory's."""
    for cell in softmax_cells(p):
        rows = table.where(**cell)
        name = f"n = {cell['n']}, d = {cell['dim']}, β = {cell['beta']:g}"
        measured = rows.one(metric="crosstalk", source="simulation")
        exact = rows.value(metric="crosstalk", source="exact")
        yield within_noise(f"softmax crosstalk, {name}", measured["value"], exact, measured["stderr"])
        linear = rows.value(metric="linear_error2")
        yield below(f"softmax error² over linear, {name}", rows.value(metric="rel_error2") / linear, 0.01)


def draw_softmax(table: ResultTable, figure: Figure) -> None:
    """Draw the errors of both memories side by side."""
    (axes,) = drawing.panels(figure, ["The same pairs, read by softmax and linearly"])
    for metric, colour, label in (
        ("rel_error2", drawing.GREEN, "softmax"),
        ("linear_error2", drawing.ORANGE, "linear: (n − 1)/d"),
    ):
        rows = table.where(metric=metric)
        axes.plot(np.arange(len(rows)), rows.column("value"), "o", ms=7, color=colour, label=label)
    rows = table.where(metric="rel_error2")
    axes.set_xticks(range(len(rows)), [f"n = {r['n']}\nd = {r['dim']}, β = {r['beta']:g}" for r in rows])
    axes.set(yscale="log", ylabel="relative error²", xlim=(-0.5, len(rows) - 0.5))
    drawing.legend(axes, "center right")


SOFTMAX = Experiment(
    "pavlovian/softmax_memory",
    "A softmax read sharpens the match: its crosstalk is a von Mises-Fisher integral, its capacity exponential.",
    SoftmaxParameters,
    softmax_memory,
    softmax_checks,
    draw_softmax,
    softmax_cells,
    {"trials": 20, "counts": (200, 500), "dims": (16, 32), "betas": (8.0, 10.0)},
)


@dataclass(frozen=True)
class PolynomialParameters:
    """Which counts, widths and degrees go together."""

    counts: tuple[int, ...] = (100, 300, 2000)
    dims: tuple[int, ...] = (20, 20, 20)
    degrees: tuple[int, ...] = (2, 3, 4)
    trials: int = 20

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dims", "degrees", "trials")
        require_same_length(self, "counts", "dims", "degrees")


def polynomial_cells(p: PolynomialParameters) -> list[Cell]:
    """Return a cell for each memory."""
    return [{"n": n, "dim": d, "degree": a} for n, d, a in zip(p.counts, p.dims, p.degrees, strict=True)]


def polynomial(p: PolynomialParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure the error of a polynomial read, averaged over uncorrelated unit values."""
    rng, errors = np.random.default_rng(seed), np.empty(p.trials)
    for trial in range(p.trials):
        keys = uniform_on_sphere(rng, (cell["n"], cell["dim"]))
        probes = keys[:400]
        powers = (probes @ keys.T) ** (2 * cell["degree"])
        errors[trial] = np.mean(np.sum(powers, axis=-1) - 1)
    yield mean_row("rel_error2", errors, **cell)
    value = polynomial_error(cell["n"], cell["dim"], cell["degree"])
    yield {"source": "exact", "metric": "rel_error2", "value": value, **cell}


def polynomial_checks(table: ResultTable, p: PolynomialParameters) -> Iterator[Check]:
    """Hold every mean against the exact one."""
    for cell in polynomial_cells(p):
        rows = table.where(**cell)
        measured = rows.one(source="simulation")
        name = f"error², degree {cell['degree']}, n = {cell['n']}, d = {cell['dim']}"
        yield within_noise(name, measured["value"], rows.value(source="exact"), measured["stderr"])


def draw_polynomial(table: ResultTable, figure: Figure) -> None:
    """Draw the exact error over n for each degree, and the measured points."""
    (axes,) = drawing.panels(figure, ["A polynomial kernel holds of the order of d^p pairs"])
    colours = (drawing.ORANGE, drawing.GREEN, drawing.RED)
    for row, colour in zip(table.where(source="simulation"), colours * 9, strict=False):
        n = np.geomspace(10, 4000, 50)
        curve = [polynomial_error(int(m), row["dim"], row["degree"]) for m in n]
        axes.plot(n, curve, "-", lw=1.3, color=colour)
        axes.plot(row["n"], row["value"], "o", ms=6, color=colour, label=f"degree {row['degree']}, d = {row['dim']}")
    axes.set(xscale="log", yscale="log", xlabel="n", ylabel="relative error²")
    drawing.legend(axes, "lower right")


POLYNOMIAL = Experiment(
    "pavlovian/polynomial_memory",
    "With a kernel of degree p the squared error is (n − 1)(2p − 1)!!/(d(d + 2)⋯(d + 2p − 2)).",
    PolynomialParameters,
    polynomial,
    polynomial_checks,
    draw_polynomial,
    polynomial_cells,
    {"trials": 20, "counts": (100, 300), "dims": (20, 20), "degrees": (2, 3)},
)


@dataclass(frozen=True)
class HopfieldParameters:
    """Which counts and widths go together."""

    counts: tuple[int, ...] = (20, 50, 14)
    dims: tuple[int, ...] = (100, 200, 100)
    trials: int = 300

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dims", "trials")
        require_same_length(self, "counts", "dims")


def hopfield_cells(p: HopfieldParameters) -> list[Cell]:
    """Return a cell for each network."""
    return [{"n": n, "dim": d} for n, d in zip(p.counts, p.dims, strict=True)]


def hopfield(p: HopfieldParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure how often one step spoils a bit of a stored pattern; a field of zero counts half."""
    rng, n, d = np.random.default_rng(seed), cell["n"], cell["dim"]
    patterns = rng.choice([-1.0, 1.0], size=(p.trials, n, d))
    field = patterns @ (np.swapaxes(patterns, -1, -2) @ patterns) - n * patterns  # the diagonal of the weights is zero
    support = field * patterns
    wrong = np.mean((support < 0) + 0.5 * (support == 0), axis=(-1, -2))
    yield mean_row("bit_error", wrong, **cell)
    yield {"source": "exact", "metric": "bit_error", "value": hopfield_bit_error_exact(n, d), **cell}
    yield {"source": "theory", "metric": "bit_error", "value": hopfield_bit_error(n, d), **cell}


def hopfield_checks(table: ResultTable, p: HopfieldParameters) -> Iterator[Check]:
    """Hold every mean against the exact binomial tail."""
    for cell in hopfield_cells(p):
        rows = table.where(**cell)
        measured = rows.one(source="simulation")
        name = f"Hopfield bit error, n = {cell['n']}, d = {cell['dim']}"
        yield within_noise(name, measured["value"], rows.value(source="exact"), measured["stderr"])


def draw_hopfield(table: ResultTable, figure: Figure) -> None:
    """Draw the bit error over the load."""
    (axes,) = drawing.panels(figure, ["A Hopfield network, one step"])
    load = np.geomspace(0.05, 0.5, 60)
    axes.plot(load, [hopfield_bit_error(1 + 1000 * x, 1001) for x in load], "-", lw=1.3, color=drawing.GREY)
    for source, mark, colour in (("exact", "_", drawing.GREEN), ("simulation", "o", drawing.RED)):
        rows = table.where(source=source)
        x = (rows.column("n") - 1) / (rows.column("dim") - 1)
        axes.plot(x, rows.column("value"), mark, ms=13 if mark == "_" else 5, mew=1.5, color=colour, label=source)
    axes.set(xscale="log", yscale="log", xlabel="(n − 1)/(d − 1)", ylabel="bit error", ylim=(1e-5, 0.2))
    drawing.legend(axes, "lower right")


HOPFIELD = Experiment(
    "pavlovian/hopfield",
    "A stored bit of a Hopfield network flips with a binomial, for large d a normal, tail.",
    HopfieldParameters,
    hopfield,
    hopfield_checks,
    draw_hopfield,
    hopfield_cells,
    {"trials": 100},
)


@dataclass(frozen=True)
class DenseParameters:
    """Which counts and widths go together, and the degree of the energy."""

    counts: tuple[int, ...] = (200, 600)
    dims: tuple[int, ...] = (30, 60)
    degree: int = 3
    trials: int = 40

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dims", "trials")
        require_same_length(self, "counts", "dims")
        require(self.degree >= 2, f"degree={self.degree!r} must be >= 2")


def dense_cells(p: DenseParameters) -> list[Cell]:
    """Return a cell for each network."""
    return [{"n": n, "dim": d} for n, d in zip(p.counts, p.dims, strict=True)]


def dense(p: DenseParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure how often one step of a dense memory spoils a bit: the energy falls if it is flipped."""
    rng, n, d = np.random.default_rng(seed), cell["n"], cell["dim"]
    wrong = np.empty(p.trials)
    for trial in range(p.trials):
        patterns = rng.choice([-1.0, 1.0], size=(n, d))
        probes = patterns[:40]
        # overlap of each stored pattern with each probe, the bit in question left out: (probes, n, d)
        rest = (probes @ patterns.T)[..., None] - probes[:, None] * patterns
        kept, flipped = rest + probes[:, None] * patterns, rest - probes[:, None] * patterns
        gain = np.sum(kept**p.degree - flipped**p.degree, axis=1)  # (probes, d)
        wrong[trial] = np.mean((gain < 0) + 0.5 * (gain == 0))
    yield mean_row("bit_error", wrong, **cell)
    yield {"source": "theory", "metric": "bit_error", "value": dense_bit_error(n, d, p.degree), **cell}


def dense_checks(table: ResultTable, p: DenseParameters) -> Iterator[Check]:
    """Hold every mean against the normal tail, a law of large d."""
    for cell in dense_cells(p):
        rows = table.where(**cell)
        name = f"dense memory bit error, n = {cell['n']}, d = {cell['dim']}"
        stderr = rows.one(source="simulation")["stderr"]
        yield close(name, rows.value(source="simulation"), rows.value(source="theory"), relative=0.1, stderr=stderr)


def draw_dense(table: ResultTable, figure: Figure) -> None:
    """Draw measured over predicted."""
    (axes,) = drawing.panels(figure, ["A dense associative memory, one step"])
    predicted, measured = (table.where(source=s).column("value") for s in ("theory", "simulation"))
    ends = np.array([0.9 * predicted.min(), 1.1 * predicted.max()])
    axes.plot(ends, ends, "-", lw=1.2, color=drawing.GREY)
    axes.plot(predicted, measured, "o", ms=6, color=drawing.GREEN)
    axes.set(xlabel="predicted bit error", ylabel="measured bit error")


DENSE = Experiment(
    "pavlovian/dense_memory",
    "A dense memory of degree a spoils a bit with probability Q(√(d^{a−1}/(n(2a − 3)!!))).",
    DenseParameters,
    dense,
    dense_checks,
    draw_dense,
    dense_cells,
    {"trials": 20, "counts": (200,), "dims": (30,)},
)


@dataclass(frozen=True)
class CoverParameters:
    """Counts of points, their width, and how many labellings are tried."""

    counts: tuple[int, ...] = (15, 20, 25, 30)
    dim: int = 10
    trials: int = 400

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dim", "trials")


def cover_cells(p: CoverParameters) -> list[Cell]:
    """Return a cell for each count."""
    return [{"n": n} for n in p.counts]


def cover(p: CoverParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure which share of random labellings a plane through the origin separates, by linear programming."""
    from scipy.optimize import linprog

    rng, n = np.random.default_rng(seed), cell["n"]
    separated = np.empty(p.trials)
    for trial in range(p.trials):
        points = rng.standard_normal((n, p.dim)) * rng.choice([-1.0, 1.0], size=(n, 1))
        found = linprog(np.zeros(p.dim), A_ub=-points, b_ub=-np.ones(n), bounds=(None, None))
        separated[trial] = found.status == 0
    exact = cover_probability(n, p.dim)
    stderr = float(np.sqrt(exact * (1 - exact) / p.trials))
    yield {**mean_row("separable", separated, **cell), "stderr": stderr}
    yield {"source": "exact", "metric": "separable", "value": exact, **cell}


def cover_checks(table: ResultTable, p: CoverParameters) -> Iterator[Check]:
    """Hold every share against Cover's count."""
    for n in p.counts:
        rows = table.where(n=n)
        measured = rows.one(source="simulation")
        name = f"separable labellings, n = {n}, d = {p.dim}"
        yield within_noise(name, measured["value"], rows.value(source="exact"), measured["stderr"])


def draw_cover(table: ResultTable, figure: Figure) -> None:
    """Draw the share over n."""
    (axes,) = drawing.panels(figure, ["The best binary read-out of a linear memory"])
    drawing.measured_and_predicted(axes, table, "n", drawing.GREEN, "separable", source="exact")
    axes.axhline(0.5, ls=":", lw=1, color=drawing.GREY)
    axes.set(xlabel="points n", ylabel="share of labellings", ylim=(-0.02, 1.05))
    drawing.legend(axes, "upper right")


COVER = Experiment(
    "pavlovian/cover",
    "Half of the labellings of n points are linearly separable at n = 2d.",
    CoverParameters,
    cover,
    cover_checks,
    draw_cover,
    cover_cells,
    {"trials": 60},
)
