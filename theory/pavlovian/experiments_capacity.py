"""Experiments on interference and capacity: the signal-to-noise law, and four ways to count what a memory holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from theory.experiment import Cell, Experiment
from theory.pavlovian import drawing
from theory.pavlovian.capacity import bit_error, capacity, capacity_theory, decoding_accuracy, decoding_failures
from theory.pavlovian.interference import interference_curve
from theory.pavlovian.keys import KEY_LAWS, mean_row, uniform_on_sphere
from theory.pavlovian.parameters import require_positive, require_same_length
from theory.verdict import Check, above, close, within_noise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["BITS", "CAPACITIES", "DECODING", "SNR"]


@dataclass(frozen=True)
class SnrParameters:
    """Which counts and widths go together, and how many memories of each."""

    counts: tuple[int, ...] = (5, 16, 64, 128)
    dims: tuple[int, ...] = (16, 64, 64, 32)
    trials: int = 200

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dims", "trials")
        require_same_length(self, "counts", "dims")


def snr_cells(p: SnrParameters) -> list[Cell]:
    """Return a cell for each law of keys, count and width."""
    return [{"law": law, "n": n, "dim": d} for law in KEY_LAWS for n, d in zip(p.counts, p.dims, strict=True)]


def snr(p: SnrParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure the error of one law, count and width."""
    table = interference_curve(
        [cell["dim"]], [cell["n"]], p.trials, key_law=cell["law"], rng=np.random.default_rng(seed)
    )
    return ({**row, "law": cell["law"]} for row in table)


def snr_checks(table: ResultTable, p: SnrParameters) -> Iterator[Check]:
    """Hold every mean against its exact value."""
    for cell in snr_cells(p):
        rows = table.where(metric="rel_error2", **cell)
        measured = rows.one(source="simulation")
        name = f"error², {cell['law']} keys, n = {cell['n']}, d = {cell['dim']}"
        yield within_noise(name, measured["value"], rows.value(source="exact"), measured["stderr"])


def draw_snr(table: ResultTable, figure: Figure) -> None:
    """Draw the error over n/d, for the three laws of keys."""
    (axes,) = drawing.panels(figure, ["Error of a Hebbian memory"])
    for law, colour in zip(KEY_LAWS, (drawing.GREEN, drawing.ORANGE, drawing.RED), strict=True):
        rows = table.where(metric="rel_error2", law=law)
        for source, mark in (("exact", "_"), ("simulation", "o")):
            part = rows.where(source=source)
            load = part.column("n") / part.column("dim")
            size, label = (13, None) if mark == "_" else (4.5, f"{law} keys")
            axes.plot(load, part.column("value"), mark, ms=size, mew=1.5, color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="n/d", ylabel="relative error² (bars: exact)")
    drawing.legend(axes)


SNR = Experiment(
    "pavlovian/snr",
    "The relative squared error of a Hebbian memory is (n − 1)/d, by the overlaps of its keys.",
    SnrParameters,
    snr,
    snr_checks,
    draw_snr,
    snr_cells,
    {"trials": 60},
)


@dataclass(frozen=True)
class CapacityParameters:
    """Widths, tolerances and numbers of key sequences."""

    dims: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    average_epsilon: float = 0.5
    worst_epsilon: float = 1.0
    trials: int = 40

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "dims", "average_epsilon", "worst_epsilon", "trials")


def capacity_cells(p: CapacityParameters) -> list[Cell]:
    """Return a cell for each definition and width."""
    return [{"definition": name, "dim": dim} for name in ("average", "error_free") for dim in p.dims]


def capacities(p: CapacityParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure one capacity at one width."""
    epsilon = p.average_epsilon if cell["definition"] == "average" else p.worst_epsilon
    rng = np.random.default_rng(seed)
    yield from capacity([cell["dim"]], epsilon, cell["definition"], p.trials, rng=rng)
    if cell["definition"] == "error_free":
        value = capacity_theory(cell["dim"], epsilon, "error_free", leading=True)
        yield {"source": "order1", "metric": "capacity", "value": value, "epsilon": epsilon, **cell}


def slope(table: ResultTable, definition: str, source: str = "simulation", *, less: float = 0.0) -> float:
    """Return the slope of log(capacity − less) over log d."""
    rows = table.where(metric="capacity", definition=definition, source=source)
    return float(np.polyfit(np.log(rows.column("dim")), np.log(rows.column("value") - less), 1)[0])


def capacity_checks(table: ResultTable, p: CapacityParameters) -> Iterator[Check]:
    """Hold every capacity against its theory, and the exponents against 1 and ½."""
    for dim in p.dims:
        rows = table.where(definition="average", dim=dim)
        measured = rows.one(source="simulation")
        yield within_noise(
            f"average capacity, d = {dim}", measured["value"], rows.value(source="theory"), measured["stderr"]
        )
        rows = table.where(definition="error_free", dim=dim)
        yield close(
            f"error-free capacity, d = {dim}",
            rows.value(source="simulation"),
            rows.value(source="theory"),
            relative=0.1,
            stderr=rows.one(source="simulation")["stderr"],
        )
    average, worst = slope(table, "average", less=1.0), slope(table, "error_free")
    yield close("exponent of the average capacity", average, 1.0, absolute=0.05)
    yield close("exponent of the error-free capacity", worst, 0.5, absolute=0.05)
    predicted = slope(table, "error_free", "theory", less=1.0)
    fitted = slope(table, "error_free", less=1.0)
    yield close("exponent of the error-free n − 1, with its logarithm", fitted, predicted, absolute=0.05)
    yield above("the two exponents lie apart", average - worst, 0.4)


def draw_capacities(table: ResultTable, figure: Figure) -> None:
    """Draw both capacities over d, on logarithmic axes."""
    axes, shares = drawing.panels(figure, ["How many pairs a memory holds", "Average over error-free capacity"])
    names = {"average": ("on average: 1 + ε² d", drawing.GREEN), "error_free": ("never wrong: ∝ √d", drawing.RED)}
    for definition, (label, colour) in names.items():
        drawing.measured_and_predicted(axes, table.where(definition=definition), "dim", colour, label)
    leading = table.where(source="order1")
    axes.plot(leading.column("dim"), leading.column("value"), ":", lw=1.2, color=drawing.RED)
    axes.set(xscale="log", yscale="log", xlabel="d", ylabel="capacity n")
    drawing.legend(axes, "upper left")
    for source, mark in (("theory", "-"), ("simulation", "o")):
        both = [table.where(definition=name, source=source) for name in names]
        ratio = both[0].column("value") / both[1].column("value")
        shares.plot(both[0].column("dim"), ratio, mark, ms=4.5, lw=1.3, color=drawing.BLUE)
    shares.set(xscale="log", yscale="log", xlabel="d", ylabel="ratio")


CAPACITIES = Experiment(
    "pavlovian/capacities",
    "Average fidelity holds O(d) pairs, error-free recall O(√d): both abstracts are right.",
    CapacityParameters,
    capacities,
    capacity_checks,
    draw_capacities,
    capacity_cells,
    {"dims": (32, 64, 128, 256), "trials": 60},
)


@dataclass(frozen=True)
class BitParameters:
    """Numbers of pairs, widths of keys and binary values."""

    counts: tuple[int, ...] = (20, 40, 80)
    dim: int = 256
    value_dim: int = 32
    trials: int = 120
    epsilon: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dim", "value_dim", "trials", "epsilon")


def bit_cells(p: BitParameters) -> list[Cell]:
    """Return a cell for each count, and one for the capacity."""
    return [{"n": n} for n in (*p.counts, 0)]


def bits(p: BitParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure how often a bit is read wrongly, or how many pairs have no wrong bit."""
    rng, n = np.random.default_rng(seed), cell["n"]
    if n == 0:
        yield from capacity([p.dim], p.epsilon, "bits", p.trials, value_dim=p.value_dim, rng=rng)
        return
    keys = uniform_on_sphere(rng, (p.trials, n, p.dim))
    values = rng.choice([-1.0, 1.0], size=(p.trials, n, p.value_dim))
    answers = keys @ (np.swapaxes(keys, -1, -2) @ values)
    wrong = np.mean(answers * values < 0, axis=(-1, -2))
    yield mean_row("bit_error", wrong, n=n)
    yield {"source": "theory", "metric": "bit_error", "value": bit_error(n, p.dim), "n": n}


def bit_checks(table: ResultTable, p: BitParameters) -> Iterator[Check]:
    """Hold bit errors against the normal tail, and the capacity against the count that it gives."""
    for n in p.counts:
        rows = table.where(metric="bit_error", n=n)
        measured, predicted = rows.one(source="simulation"), rows.value(source="theory")
        # the normal tail is a law of large d: where it is below a thousandth, a fifth of it is what d = 256 allows
        relative = 0.2 if predicted < 1e-3 else 0.1
        bound = max(relative * predicted, 4 * measured["stderr"])
        yield close(f"bit error, n = {n}", measured["value"], predicted, absolute=bound, stderr=measured["stderr"])
    rows = table.where(metric="capacity")
    yield close(
        "pairs without a wrong bit", rows.value(source="simulation"), rows.value(source="theory"), relative=0.15
    )


def draw_bits(table: ResultTable, figure: Figure) -> None:
    """Draw the bit error over n."""
    (axes,) = drawing.panels(figure, ["Binary values, read by sign"])
    drawing.measured_and_predicted(axes, table.where(metric="bit_error"), "n", drawing.GREEN, "bit error")
    for source, mark in (("theory", "--"), ("simulation", ":")):
        n = table.value(metric="capacity", source=source)
        axes.axvline(n, ls=mark, lw=1.2, color=drawing.RED, label=f"half of the memories faultless: {n:.1f} ({source})")
    axes.set(yscale="log", xlabel="n", ylabel="bit error")
    drawing.legend(axes, "lower right")


BITS = Experiment(
    "pavlovian/bits",
    "A bit of a binary value is read wrongly with probability Q(√(d/(n − 1))).",
    BitParameters,
    bits,
    bit_checks,
    draw_bits,
    bit_cells,
    {"trials": 40},
)


@dataclass(frozen=True)
class DecodingParameters:
    """Numbers of pairs and the two widths."""

    counts: tuple[int, ...] = (200, 400, 600, 800, 1000)
    dim: int = 128
    value_dim: int = 128
    trials: int = 10

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_positive(self, "counts", "dim", "value_dim", "trials")


def decoding_cells(p: DecodingParameters) -> list[Cell]:
    """Return a cell for each count."""
    return [{"n": n} for n in p.counts]


def decoding(p: DecodingParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterable[Row]:
    """Measure how often the nearest value is the right one."""
    rng, n = np.random.default_rng(seed), cell["n"]
    right = 1 - np.array([decoding_failures(rng, n, p.dim, p.value_dim) for _ in range(p.trials)])
    predicted = decoding_accuracy(n, p.dim, p.value_dim)
    return [
        mean_row("accuracy", right, n=n),
        {"source": "theory", "metric": "accuracy", "value": predicted, "n": n},
    ]


def decoding_checks(table: ResultTable, p: DecodingParameters) -> Iterator[Check]:
    """Hold the accuracy against its prediction, which is one for large d."""
    for n in p.counts:
        rows = table.where(n=n)
        options: dict[str, Any] = {"absolute": 0.05, "stderr": rows.one(source="simulation")["stderr"]}
        yield close(
            f"decoding accuracy, n = {n}", rows.value(source="simulation"), rows.value(source="theory"), **options
        )


def draw_decoding(table: ResultTable, figure: Figure) -> None:
    """Draw the accuracy over n."""
    (axes,) = drawing.panels(figure, ["Values found by inner products"])
    drawing.measured_and_predicted(axes, table, "n", drawing.GREEN, "decoded rightly")
    axes.set(xlabel="n", ylabel="accuracy", ylim=(0, 1.05))
    drawing.legend(axes, "lower left")


DECODING = Experiment(
    "pavlovian/decoding",
    "The nearest of n stored values is the right one up to n of the order of d times d_v.",
    DecodingParameters,
    decoding,
    decoding_checks,
    draw_decoding,
    decoding_cells,
    {"counts": (200, 600), "trials": 3},
)
