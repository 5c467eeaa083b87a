"""Learning curves: random heads against a random perceptron, at the paper's scale, in class, and with more keys."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from theory.experiment import Cell, Experiment
from theory.random_feature_heads.drawing import COLOURS, NAMES, legend, panels
from theory.random_feature_heads.fits import replica
from theory.random_feature_heads.samplers import Dims, checked
from theory.random_feature_heads.summaries import best_mean, levels, mean_of
from theory.verdict import Check, above, below

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["CURVES", "Curves", "Tokens"]

FINITE = ("rfa", "brfa", "rfmlp")


@dataclass(frozen=True)
class Curves:
    """Sizes of a learning curve.

    Attributes
    ----------
    d, n_keys, n_heads : int
        d, N and M; the perceptron has M (d + 1) neurons.
    ns : tuple of int
        Training inputs.
    targets : tuple of str
        See `theory.random_feature_heads.samplers.target_values`.
    ridges : tuple of float
        λ_rel; errors are reported at each, and compared at the best.
    n_test, replicas : int
        Test inputs, and independent draws of everything.
    """

    d: int = 16
    n_keys: int = 16
    n_heads: int = 1000
    ns: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    targets: tuple[str, ...] = ("f1:1", "f1:2", "f1:3", "f2:1", "f2:3")
    ridges: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    n_test: int = 1000
    replicas: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes and ridges that are not positive."""
        for name, low in (("d", 1), ("n_keys", 1), ("n_heads", 1), ("n_test", 2), ("replicas", 1), ("ns", 2)):
            checked(name, getattr(self, name), low)
        checked("ridges", self.ridges, 1e-7, 10.0)


@dataclass(frozen=True)
class ClassRoom(Curves):
    """Learning curves that a class can wait for; see `Curves`."""

    d: int = 8
    n_keys: int = 8
    ns: tuple[int, ...] = (256, 512, 1024, 2048)
    targets: tuple[str, ...] = ("f1:2", "f2:1", "f2:2", "f2:4", "f3:0.785")
    ridges: tuple[float, ...] = (1e-5,)
    replicas: int = 2


@dataclass(frozen=True)
class Tokens(Curves):
    """The same function with ever more keys; see `Curves`.

    Attributes
    ----------
    all_keys : tuple of int
        The numbers of keys; ``n_keys`` is not used.
    """

    d: int = 8
    n_heads: int = 400
    ns: tuple[int, ...] = (512,)
    targets: tuple[str, ...] = ("f1:1", "f1:2")
    ridges: tuple[float, ...] = (1e-5,)
    replicas: int = 6
    all_keys: tuple[int, ...] = (2, 4, 8, 16, 32)

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        super().__post_init__()
        checked("all_keys", self.all_keys, 1)


def curve_cells(p: Curves) -> list[Cell]:
    """Return one cell for each model and replica."""
    return [{"model": model, "replica": r} for model, r in product(FINITE, range(p.replicas))]


def simulate_curve(p: Curves, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Fit one model to all targets, for all sizes and ridges."""
    dims = Dims(p.d, cell.get("n_keys", p.n_keys), p.n_heads)
    rng = np.random.default_rng(seed)
    rows = replica(cell["model"], p.targets, dims, ns=p.ns, ridges=p.ridges, rng=rng, n_test=p.n_test)
    yield from ({**cell, **row} for row in rows)


def curve_checks(table: ResultTable, p: Curves) -> Iterator[Check]:
    """Hold the orderings that the bounds of the paper imply: the perceptron pays for every key."""
    n = max(p.ns)
    for target in [t for t in p.targets if t in ("f1:1", "f1:2")]:
        heads, neurons = (_best(table, model, target, n) for model in ("rfa", "rfmlp"))
        yield above(f"{target}, n = {n}: perceptron over random heads", neurons / heads, 3.0)
    for target in [t for t in p.targets if t in ("f2:1", "f2:3")]:
        biased, plain = (_best(table, model, target, n) for model in ("brfa", "rfa"))
        yield below(f"{target}, n = {n}: heads around the identity over heads around 0", biased / plain, 0.9)
    for model in ("rfa", "brfa"):
        few, many = (_best(table, model, "f1:1", size) for size in (min(p.ns), n))
        exponent = np.log(few / many) / np.log(n / min(p.ns))
        yield above(f"f1:1, {model}: the error falls at least like n^-½, its bound", float(exponent), 0.5)


def class_room_checks(table: ResultTable, p: ClassRoom) -> Iterator[Check]:
    """Hold the orderings of the class-room table: who wins depends on the target and on the sample size."""
    n, few = max(p.ns), min(p.ns)
    e = {(m, t, s): mean_of(table, metric="test_error", model=m, target=t, n=s).value
         for m, t, s in product(FINITE, p.targets, p.ns)}  # fmt: skip
    if "f1:2" in p.targets:
        yield above(f"f1:2, n = {n}: perceptron over random heads", e["rfmlp", "f1:2", n] / e["rfa", "f1:2", n], 10.0)
        yield above(f"f1:2, n = {n}: the bias costs", e["brfa", "f1:2", n] / e["rfa", "f1:2", n], 1.5)
    bounds = {"f2:2": 0.6, "f2:4": 0.7, "f3:0.785": 0.9} if n >= 2048 else {"f2:2": 0.8}
    for target in [t for t in p.targets if t in bounds]:
        ratio = e["brfa", target, n] / e["rfa", target, n]
        yield below(f"{target}, n = {n}: heads around the identity over heads around 0", ratio, bounds[target])
    if "f2:1" in p.targets and n >= 2048 and few <= 256:
        ratios = [e["brfa", "f2:1", s] / e["rfa", "f2:1", s] for s in (few, n)]
        yield below(f"f2:1, n = {few}: the bias pays while examples are few", ratios[0], 1.0)
        yield above(f"f2:1, n = {n}: and costs when there are many", ratios[1], 1.0)


def token_cells(p: Tokens) -> list[Cell]:
    """Return one cell for each model, number of keys and replica."""
    choices = product(("rfa", "rfmlp"), p.all_keys, range(p.replicas))
    return [{"model": model, "n_keys": N, "replica": r} for model, N, r in choices]


def token_checks(table: ResultTable, p: Tokens) -> Iterator[Check]:
    """Hold what additivity is worth: random heads do not notice the number of keys, the perceptron does."""
    few, many = 4 if 4 in p.all_keys else min(p.all_keys), max(p.all_keys)
    for model in ("rfa", "rfmlp"):
        a, b = (
            mean_of(table, metric="test_error", model=model, target="f1:1", n_keys=N, n=max(p.ns)).value
            for N in (few, many)
        )
        name = f"f1:1, {model}: error with {many} keys over that with {few}"
        yield below(name, b / a, 1.5) if model == "rfa" else above(name, b / a, 20.0)


def draw_curves(table: ResultTable, figure: Figure) -> None:
    """Draw the best error of each model against the number of training inputs, one panel a target."""
    targets = levels(table, "target")
    for axes, target in zip(panels(figure, [_title(t) for t in targets]), targets, strict=True):
        for model in FINITE:
            ns = levels(table, "n", model=model)
            _line(axes, model, ns, [_best(table, model, target, n) for n in ns])
        axes.set(xlabel="training inputs n", ylabel="error / variance")
        axes.axhline(1.0, color="#7f8fa6", lw=0.8, ls=":")
    legend(figure.get_axes()[0], loc="lower left")


def draw_tokens(table: ResultTable, figure: Figure) -> None:
    """Draw the error against the number of keys."""
    targets = levels(table, "target")
    for axes, target in zip(panels(figure, [_title(t) for t in targets]), targets, strict=True):
        for model in ("rfa", "rfmlp"):
            keys = levels(table, "n_keys", model=model)
            errors = [_best(table, model, target, max(levels(table, "n")), n_keys=N) for N in keys]
            _line(axes, model, keys, errors)
        axes.set(xlabel="number of keys N", ylabel="error / variance")
    legend(figure.get_axes()[0], loc="best")


def _line(axes: Axes, model: str, places: Sequence[Any], errors: Sequence[float]) -> None:
    axes.loglog(places, errors, "o-", ms=4, lw=1.4, color=COLOURS[model], label=NAMES[model])


def _best(table: ResultTable, model: str, target: str, n: int, **equal: Any) -> float:
    return best_mean(table, metric="test_error", model=model, target=target, n=n, **equal).value


def _title(target: str) -> str:
    kind, _, number = target.partition(":")
    power = "" if number == "1" else number.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    forms = {"f1": f"⟨β, x⟩{power}", "f2": f"⟨x₀, x⟩{power} ⟨β, x⟩", "f3": f"⟨x₀, R x⟩² ⟨β, x⟩, γ = {number}"}
    return forms[kind]


_QUICK = {"d": 6, "n_keys": 6, "n_heads": 120, "ns": (64, 256, 512), "n_test": 400}

CURVES = (
    Experiment(
        "random_feature_heads/learning_curve",
        "Random heads learn means over keys from far fewer examples than a random perceptron (the paper's sizes)",
        Curves,
        simulate_curve,
        curve_checks,
        draw_curves,
        curve_cells,
        quick={**_QUICK, "targets": ("f1:1", "f1:2", "f2:3"), "ridges": (1e-5, 1e-3, 1e-1)},
    ),
    Experiment(
        "random_feature_heads/class_room",
        "A mean of the head matrices helps with correlations and costs elsewhere",
        ClassRoom,
        simulate_curve,
        class_room_checks,
        draw_curves,
        curve_cells,
        quick={**_QUICK, "d": 4, "n_keys": 8, "n_heads": 150, "targets": ("f1:2", "f2:2"), "replicas": 1},
    ),
    Experiment(
        "random_feature_heads/tokens",
        "More keys cost random heads nothing and a random perceptron much",
        Tokens,
        simulate_curve,
        token_checks,
        draw_tokens,
        token_cells,
        quick={"all_keys": (4, 32), "targets": ("f1:1",), "replicas": 1, "n_test": 400},
    ),
)
