"""Numbers of heads: the peak where they just interpolate, the way to infinitely many, and cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from refattn.layers.random_feature_heads import (
    feature_gram,
    infinite_head_kernel,
    random_head_features,
    sample_random_heads,
)
from theory.experiment import Cell, Experiment
from theory.random_feature_heads.drawing import COLOURS, GREY, NAMES, legend, panels
from theory.random_feature_heads.fits import replica
from theory.random_feature_heads.risks import width_law
from theory.random_feature_heads.samplers import Dims, checked, sample_task
from theory.random_feature_heads.summaries import levels, mean_of
from theory.table import ResultTable
from theory.verdict import Check, above, between, close

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

    from theory.table import Row

__all__ = ["WIDTHS", "Concentration", "CrossValidation", "Widths", "token_curve", "width_curve"]


@dataclass(frozen=True)
class Widths:
    """Sizes of the curve over numbers of heads.

    Attributes
    ----------
    d, n_keys, n, n_test, replicas : int
        d, N, training and test inputs, independent draws.
    ms : tuple of int
        Numbers of heads.
    targets : tuple of str
        See `theory.random_feature_heads.samplers.target_values`.
    ridge_rel : float
        λ_rel.
    """

    d: int = 8
    n_keys: int = 8
    n: int = 512
    n_test: int = 1000
    replicas: int = 3
    ms: tuple[int, ...] = (10, 20, 40, 57, 80, 160, 320, 640, 1280)
    targets: tuple[str, ...] = ("f1:2", "f2:1")
    ridge_rel: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        for name, low in (("d", 1), ("n_keys", 1), ("n", 2), ("n_test", 2), ("replicas", 1), ("ms", 1)):
            checked(name, getattr(self, name), low)
        checked("ridge_rel", self.ridge_rel, 1e-7, 10.0)


@dataclass(frozen=True)
class CrossValidation:
    """Sizes of the comparison of generalised cross-validation with the test error.

    Attributes
    ----------
    d, n_keys, n_heads, n_test, replicas : int
        d, N, M, test inputs, independent draws.
    ns : tuple of int
        Training inputs.
    targets : tuple of str
        See `theory.random_feature_heads.samplers.target_values`.
    ridge_rel : float
        λ_rel.
    """

    d: int = 8
    n_keys: int = 8
    n_heads: int = 1000
    n_test: int = 2000
    replicas: int = 2
    ns: tuple[int, ...] = (256, 512, 1024, 2048)
    targets: tuple[str, ...] = ("f1:1", "f1:2", "f2:1", "f2:2")
    ridge_rel: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        for name, low in (("d", 1), ("n_keys", 1), ("n_heads", 1), ("n_test", 2), ("replicas", 1), ("ns", 2)):
            checked(name, getattr(self, name), low)


@dataclass(frozen=True)
class Concentration:
    """Sizes of the comparison of finitely with infinitely many heads.

    Attributes
    ----------
    d, n_keys, inputs, replicas : int
        d, N, number of inputs, independent draws of the heads.
    ms : tuple of int
        Numbers of heads.
    """

    d: int = 4
    n_keys: int = 4
    inputs: int = 60
    replicas: int = 16
    ms: tuple[int, ...] = (100, 400, 1600, 6400)

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        for name in ("d", "n_keys", "inputs", "replicas", "ms"):
            checked(name, getattr(self, name), 1)


def width_cells(p: Widths) -> list[Cell]:
    """Return one cell for each number of heads and replica; 0 stands for infinitely many."""
    return [{"n_heads": M, "replica": r} for M, r in product((*p.ms, 0), range(p.replicas))]


def simulate_width(p: Widths, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Fit one number of heads, or the kernel that they tend to."""
    if cell == width_cells(p)[0]:
        yield {"source": "theory", "metric": "threshold", "value": p.n / (p.d + 1)}
    model = "rfa" if cell["n_heads"] else "kernel"
    rows = replica(
        model,
        p.targets,
        Dims(p.d, p.n_keys, max(cell["n_heads"], 1)),
        ns=[p.n],
        ridges=[p.ridge_rel],
        rng=np.random.default_rng(seed),
        n_test=p.n_test,
        dtype=np.float64,  # near the peak the smallest eigenvalues decide
    )
    yield from ({**cell, **row} for row in rows)


def width_checks(table: ResultTable, p: Widths) -> Iterator[Check]:
    """Hold the place of the peak, the fall to the kernel's error, and the law by which it falls."""
    threshold = p.n / (p.d + 1)
    for target in p.targets:
        errors = {M: _error(table, target, M) for M in p.ms}
        peak = max(errors, key=lambda M: errors[M])
        yield between(f"{target}: the peak of the error, in units of n/(d + 1) heads", peak / threshold, 0.8, 1.25)
        limit = _error(table, target, 0)
        wide = np.array([M for M in p.ms if threshold * 2 <= M])
        risks = np.array([errors[M] for M in wide])
        yield above(f"{target}: the peak over the error of infinitely many heads", errors[peak] / limit, 10.0)
        yield above(f"{target}: every head more helps: smallest fall from width to width", _least_fall(risks), 1.0)
        if len(wide) >= 3:
            fitted, _ = width_law(wide, risks)
            yield between(f"{target}: limit of risk(M) = a + C/M over the kernel's error", fitted / limit, 0.5, 1.5)


def cv_cells(p: CrossValidation) -> list[Cell]:
    """Return one cell for each model and replica."""
    return [{"model": model, "replica": r} for model, r in product(("rfa", "brfa"), range(p.replicas))]


def simulate_cv(p: CrossValidation, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Fit one model and report both errors."""
    rows = replica(
        cell["model"],
        p.targets,
        Dims(p.d, p.n_keys, p.n_heads),
        ns=p.ns,
        ridges=[p.ridge_rel],
        rng=np.random.default_rng(seed),
        n_test=p.n_test,
    )
    yield from ({**cell, **row} for row in rows)


def cv_checks(table: ResultTable, p: CrossValidation) -> Iterator[Check]:
    """Hold cross-validation against the test error wherever something is learned from enough inputs."""
    for model, target, n in product(("rfa", "brfa"), p.targets, p.ns):
        equal = {"model": model, "target": target, "n": n}
        test, predicted = (mean_of(table, metric=metric, **equal) for metric in ("test_error", "gcv"))
        if n >= 512 and test.value < 1:
            distance = float(np.log(predicted.value / test.value))
            yield close(f"{target}, {model}, n = {n}: log(gcv / test error)", distance, 0.0, absolute=0.3)


def concentration_cells(p: Concentration) -> list[Cell]:
    """Return one cell for each mean of the heads and replica."""
    return [{"bias": bias, "replica": r} for bias, r in product(("none", "identity"), range(p.replicas))]


def simulate_concentration(p: Concentration, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Return, for each M, the relative distance in Frobenius norm of the Gram matrix from its limit."""
    rng = np.random.default_rng(seed)
    task = sample_task(p.inputs, Dims(p.d, p.n_keys, 1), ["f1:1"], rng)
    limit = infinite_head_kernel(task.x0, task.x, task.x0, task.x, bias=cell["bias"])
    for n_heads in p.ms:
        phi = random_head_features(task.x0, task.x, sample_random_heads(n_heads, p.d, rng, bias=cell["bias"]))
        distance = float(np.linalg.norm(feature_gram(phi, phi) - limit) / np.linalg.norm(limit))
        yield {**cell, "n_heads": n_heads, "source": "simulation", "metric": "kernel_distance", "value": distance}


def concentration_checks(table: ResultTable, p: Concentration) -> Iterator[Check]:
    """Hold the slope of the distance over the number of heads, −½."""
    for bias in ("none", "identity"):
        distances = [mean_of(table, bias=bias, n_heads=M).value for M in p.ms]
        slope = float(np.polyfit(np.log(p.ms), np.log(distances), 1)[0])
        yield close(f"bias {bias}: slope of log distance over log M", slope, -0.5, absolute=0.1)


def width_curve(
    ms: Sequence[int],
    n: int,
    *,
    targets: Sequence[str] = ("f1:2",),
    dims: Dims = Dims(8, 8, 1),  # noqa: B008  # a NamedTuple of numbers
    ridge_rel: float = 1e-5,
    seeds: Sequence[int] = (0,),
) -> ResultTable:
    """Return errors and cross-validation for each number of heads, and for infinitely many (0).

    Parameters
    ----------
    ms : sequence of int
        Numbers of heads.
    n : int
        Training inputs.
    targets, dims, ridge_rel, seeds
        Targets, d and N (``M`` is not used), λ_rel, and one independent draw for each seed.

    Returns
    -------
    ResultTable
    """
    p = Widths(d=dims.d, n_keys=dims.N, n=n, ms=tuple(ms), targets=tuple(targets), ridge_rel=ridge_rel)
    cells = [{"n_heads": M, "replica": r} for M, r in product((*ms, 0), seeds)]
    return ResultTable(
        {**row, "seed": cell["replica"]}
        for cell in cells
        for row in simulate_width(p, cell, np.random.SeedSequence([cell["replica"], cell["n_heads"]]))
    )


def token_curve(
    all_keys: Sequence[int],
    n: int,
    *,
    models: Sequence[str] = ("rfa", "rfmlp"),
    target: str = "f1:1",
    d: int = 8,
    n_heads: int = 400,
    ridge_rel: float = 1e-5,
    seeds: Sequence[int] = (0,),
) -> ResultTable:
    """Return errors and cross-validation for each number of keys.

    Parameters
    ----------
    all_keys : sequence of int
        Numbers of keys N.
    n : int
        Training inputs.
    models, target, d, n_heads, ridge_rel, seeds
        Models to compare, target, d, M, λ_rel, and one independent draw for each seed.

    Returns
    -------
    ResultTable
    """
    table = ResultTable()
    for model, N, seed in product(models, all_keys, seeds):
        rng = np.random.default_rng([seed, N])
        rows = replica(model, [target], Dims(d, N, n_heads), ns=[n], ridges=[ridge_rel], rng=rng)
        table.extend({**row, "n_keys": int(N), "seed": int(seed)} for row in rows)
    return table


def draw_widths(table: ResultTable, figure: Figure) -> None:
    """Draw error and cross-validation over the number of heads, with the threshold and the limit."""
    targets = levels(table, "target")
    titles = [f"target {target.replace(':', ', p = ')}" for target in targets]
    for axes, target in zip(panels(figure, titles), targets, strict=True):
        ms = [M for M in levels(table, "n_heads") if M]
        for metric, mark, name in (("test_error", "o-", "test error"), ("gcv", "--", "cross-validation")):
            values = [mean_of(table, metric=metric, target=target, n_heads=M).value for M in ms]
            colour = COLOURS["rfa"] if metric == "test_error" else COLOURS["rfmlp"]
            axes.loglog(ms, values, mark, ms=4, lw=1.4, color=colour, label=name)
        axes.axhline(_error(table, target, 0), color=COLOURS["kernel"], lw=1.2, label=NAMES["kernel"])
        axes.axvline(table.value(metric="threshold"), color=GREY, lw=1.0, ls=":", label="M (d + 1) = n")
        axes.set(xlabel="number of heads M", ylabel="error / variance")
    legend(figure.get_axes()[0], loc="upper right")


def draw_cv(table: ResultTable, figure: Figure) -> None:
    """Draw cross-validation over the test error, one mark for each model, target and size."""
    (axes,) = panels(figure, ["What the training data know of the test error"], height=4.2)
    for model in levels(table, "model"):
        pairs = []
        for target, n in product(levels(table, "target"), levels(table, "n")):
            equal = {"model": model, "target": target, "n": n}
            pairs.append([mean_of(table, metric=metric, **equal).value for metric in ("test_error", "gcv")])
        test, predicted = np.array(pairs).T
        axes.loglog(test, predicted, "o", ms=5, color=COLOURS[model], label=NAMES[model])
    ends = np.array(axes.get_xlim())
    axes.loglog(ends, ends, color=GREY, lw=1.0)
    axes.set(xlabel="test error / variance", ylabel="cross-validation / variance")
    legend(axes, loc="upper left")


def draw_concentration(table: ResultTable, figure: Figure) -> None:
    """Draw the distance from the limit over the number of heads, with the line of slope −½."""
    (axes,) = panels(figure, ["How fast random heads become a kernel"], height=4.2)
    for bias, model in (("none", "rfa"), ("identity", "brfa")):
        ms = np.array(levels(table, "n_heads", bias=bias))
        values = np.array([mean_of(table, bias=bias, n_heads=int(M)).value for M in ms])
        axes.loglog(ms, values, "o", ms=5, color=COLOURS[model], label=NAMES[model])
        axes.loglog(ms, np.exp(np.mean(np.log(values * np.sqrt(ms)))) / np.sqrt(ms), color=COLOURS[model], lw=1.2)
    axes.set(xlabel="number of heads M", ylabel="relative distance from the limit")
    legend(axes, loc="upper right")


def _error(table: ResultTable, target: str, n_heads: int) -> float:
    return mean_of(table, metric="test_error", target=target, n_heads=n_heads).value


def _least_fall(risks: np.ndarray) -> float:
    return float(np.min(risks[:-1] / risks[1:])) if len(risks) > 1 else np.inf


WIDTHS = (
    Experiment(
        "random_feature_heads/width",
        "The error peaks where the heads can just interpolate, M (d + 1) = n, and falls to the kernel's beyond",
        Widths,
        simulate_width,
        width_checks,
        draw_widths,
        width_cells,
        quick={"d": 5, "n_keys": 4, "n": 180, "n_test": 400, "ms": (10, 30, 90, 180, 360), "replicas": 2},
    ),
    Experiment(
        "random_feature_heads/gcv",
        "Generalised cross-validation tells the test error without test data",
        CrossValidation,
        simulate_cv,
        cv_checks,
        draw_cv,
        cv_cells,
        quick={"d": 5, "n_keys": 4, "n_heads": 150, "ns": (128, 512), "targets": ("f1:2", "f2:1"), "n_test": 500},
    ),
    Experiment(
        "random_feature_heads/kernel",
        "The Gram matrix of M heads is 1/√M away from its limit",
        Concentration,
        simulate_concentration,
        concentration_checks,
        draw_concentration,
        concentration_cells,
        quick={"inputs": 16, "ms": (100, 400, 1600)},
    ),
)
