"""Experiments on the exact loss: where the approximation errs, where the optimum is, how sharp attention gets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import require
from theory.experiment import Cell, Experiment
from theory.icl_regression.drawing import BLUE, GREEN, GREY, ORANGE, RED, legend, panels
from theory.icl_regression.losses import (
    mean_square_weight,
    optimal_mu,
    optimal_pair,
    optimal_single_head,
    population_loss,
    quadratic_form,
)
from theory.icl_regression.reduced import mean_loss, sample_scores, sample_sharpness
from theory.icl_regression.risks import best_debiased_gd_step, debiased_gd_risk, paper_single_head
from theory.icl_regression.samplers import require_problem
from theory.verdict import Check, above, below, close, within_noise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["LOSS"]

OFFICIAL_HEADS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((-0.5177,), (-1.5523,)),
    2: ((-0.1393, 0.1420), (-3.1719, 3.1868)),
    4: ((-0.1372, -0.1388, 0.1422, 0.1343), (-1.1908, -2.0372, 2.7210, 0.4412)),
    8: (
        (-0.1396, 0.1393, -0.1417, 0.1296, -0.0013, -0.1396, -0.1350, 0.0092),
        (-0.7766, 2.9165, -1.2395, 0.2509, 0.0, -0.8720, -0.3324, -0.0010),
    ),
}
"""ω and μ after 500 000 steps of Adam, printed in the official notebook (noise σ = 0.01, d = 5, L = 40)."""
OFFICIAL_PROBLEM = (5, 40, 1e-4)


@dataclass(frozen=True)
class SurfaceParameters:
    """Parameters of the loss surface of one pair of heads."""

    dim: int = 5
    length: int = 40
    noise_var: float = 0.1
    grid: int = 20
    omega_max: float = 0.2
    mu_max: float = 6.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_problem(self.dim, self.length, self.noise_var)
        require(self.length >= 2, f"length={self.length} must be >= 2")
        require(self.grid >= 2, f"grid={self.grid} must be >= 2")
        require(0 < self.omega_max < 0.7, f"omega_max={self.omega_max} must lie in (0, 0.7)")
        require(self.mu_max > 0, f"mu_max={self.mu_max} must be > 0")


def simulate_surface(params: SurfaceParameters, _cell: Cell, _seed: np.random.SeedSequence) -> Iterator[Row]:
    """Evaluate three losses of a pair (±ω, ±μ) on a grid; a and B depend on ω alone."""
    problem = (params.dim, params.length, params.noise_var)
    mus = np.linspace(0, params.mu_max, params.grid)
    for omega in np.linspace(0, params.omega_max, params.grid):
        for method in ("exact", "order1", "paper"):
            a, b = quadratic_form([omega, -omega], *problem, method=method)
            linear, square = a[0] - a[1], b[0, 0] - b[0, 1] - b[1, 0] + b[1, 1]
            losses = 1 + params.noise_var - 2 * linear * mus + square * mus**2
            for mu, loss in zip(mus, losses, strict=True):
                yield {"source": method, "metric": "loss", "value": loss, "omega": omega, "mu": mu}
    if params == SurfaceParameters():
        for method in ("exact", "order1", "paper"):
            loss = population_loss([3.45, -3.45], [0.13, -0.13], *problem, method=method).value
            yield {"source": method, "metric": "loss_in_valley", "value": loss, "omega": 0.13, "mu": 3.45}


def check_surface(table: ResultTable, params: SurfaceParameters) -> Iterator[Check]:
    """Hold the difference to the paper's approximation against its known range."""
    exact, order1, paper = (_surface(table, source)[2] for source in ("exact", "order1", "paper"))
    worst, first = np.max(np.abs(exact - paper)), np.max(np.abs(exact - order1))
    yield below("order 1 errs less than the approximation", float(first), float(worst))
    if (params.dim, params.length, params.noise_var, params.omega_max, params.mu_max) == (5, 40, 0.1, 0.2, 6.0):
        yield close(
            "least exact − paper, at the corner (0.2, 6)", float((exact - paper)[-1, -1]), -0.105, absolute=5e-4
        )
        yield close("and it is the least of all", float(np.min(exact - paper)), -0.105, absolute=5e-4)
        yield close("greatest exact − paper", float(np.max(exact - paper)), 0.024, absolute=5e-4)
    if params == SurfaceParameters():
        rows = table.where(metric="loss_in_valley")
        for source, value in (("exact", 0.24324), ("order1", 0.24708), ("paper", 0.22137)):
            yield close(f"{source} loss at (0.13, 3.45)", rows.value(source=source), value, absolute=1e-5)


def draw_surface(table: ResultTable, figure: Figure) -> None:
    """Draw the exact loss, and how far the two approximations are from it."""
    omega, mu, exact = _surface(table, "exact")
    titles = ["Exact loss of a pair", "exact − paper", "exact − order 1"]
    axes = panels(figure, titles)
    differences = [exact - _surface(table, source)[2] for source in ("paper", "order1")]
    limit = float(max(np.max(np.abs(difference)) for difference in differences))
    shown: list[tuple[Axes, np.ndarray, dict[str, Any]]] = [
        (axes[0], np.log10(exact), {"cmap": "viridis"}),
        *(
            (a, d, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit})
            for a, d in zip(axes[1:], differences, strict=True)
        ),
    ]
    for panel, values, options in shown:
        mesh = panel.pcolormesh(omega, mu, values.T, shading="nearest", **options)
        bar = figure.colorbar(mesh, ax=panel)
        bar.ax.tick_params(colors=GREY, labelsize=7)
        panel.set(xlabel="ω", ylabel="μ")
        panel.locator_params(axis="x", nbins=5)
    axes[0].set_title("log₁₀ of the exact loss of a pair", fontsize=10, color=GREY)


def _surface(table: ResultTable, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the axes ω and μ and the losses (ω, μ)."""
    rows = table.where(source=source, metric="loss")
    omega, mu = np.unique(rows.column("omega")), np.unique(rows.column("mu"))
    return omega, mu, rows.column("value").reshape(len(omega), len(mu))


@dataclass(frozen=True)
class OptimumParameters:
    """Parameters of the search for the true optimum."""

    problems: tuple[tuple[int, int], ...] = ((5, 10), (5, 20), (5, 40), (5, 100), (10, 80), (20, 160))
    noise_var: float = 0.1
    n_samples: int = 100_000

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(len(self.problems) >= 1, "problems=() must name at least one (dim, length)")
        for dim, length in self.problems:
            require_problem(dim, length, self.noise_var)
            require(length >= 2, f"problems={self.problems}: length must be >= 2")
        require(self.n_samples >= 2, f"n_samples={self.n_samples} must be >= 2")


def optimum_cells(params: OptimumParameters) -> list[Cell]:
    """Return one cell for each problem, and one for the trained heads of the official notebook."""
    return [*({"dim": dim, "length": length} for dim, length in params.problems), {"trained": True}]


def simulate_optimum(params: OptimumParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Find the best single head and the best pair; for the official problem, evaluate its trained heads too."""
    if cell.get("trained"):
        yield from _trained(cell)
        return
    problem = (int(cell["dim"]), int(cell["length"]), params.noise_var)
    found = {"single": optimal_single_head(*problem), "pair": optimal_pair(*problem)}
    for model, optimum in found.items():
        for metric, value in optimum._asdict().items():
            yield {"source": "exact", "metric": metric, "value": value, "model": model, **cell}
    r, u = sample_scores(params.n_samples, *problem[:2], np.random.default_rng(seed))
    for model, signs in (("single", [1.0]), ("pair", [1.0, -1.0])):
        heads = (found[model].mu * np.array(signs), found[model].omega * np.array(signs))
        value, stderr = mean_loss(*heads, r, u, problem[0], params.noise_var)
        common = {"stderr": stderr, "n_samples": params.n_samples, "model": model, **cell}
        yield {"source": "simulation", "metric": "loss", "value": value, **common}
    for factor in (0.7, 1.4):
        omega = factor * found["pair"].omega
        mu = optimal_mu([omega, -omega], *problem)
        loss = population_loss(mu, [omega, -omega], *problem).value
        yield {"source": "exact", "metric": "loss_aside", "value": loss, "model": "pair", "factor": factor, **cell}
    for metric, value in zip(("omega", "mu", "loss"), paper_single_head(*problem), strict=True):
        yield {"source": "paper", "metric": metric, "value": value, "model": "single", **cell}
    risk = float(debiased_gd_risk(best_debiased_gd_step(*problem), *problem))
    yield {"source": "theory", "metric": "loss", "value": risk, "model": "debiased gd", **cell}


def _trained(cell: Cell) -> Iterator[Row]:
    """Set the official trained heads beside the exact optimum of their problem."""
    single = optimal_single_head(*OFFICIAL_PROBLEM)
    yield {"source": "exact", "metric": "omega", "value": single.omega, "model": "single", **cell}
    yield {"source": "exact", "metric": "mu", "value": single.mu, "model": "single", **cell}
    sharpness = 0.1407  # the mean of the two heads
    pair = optimal_mu([sharpness, -sharpness], *OFFICIAL_PROBLEM)
    loss = population_loss(pair, [sharpness, -sharpness], *OFFICIAL_PROBLEM).value
    yield {"source": "exact", "metric": "mu", "value": pair[0], "model": "pair", "omega": sharpness, **cell}
    yield {"source": "exact", "metric": "loss", "value": loss, "model": "pair", "omega": sharpness, **cell}
    for n_head, (omega, mu) in OFFICIAL_HEADS.items():
        common = {"n_head": n_head, **cell}
        reached = population_loss(mu, omega, *OFFICIAL_PROBLEM).value
        yield {"source": "exact", "metric": "loss_of_official_heads", "value": reached, **common}
        for metric, values in (("omega", omega), ("mu", mu)):
            for head, value in enumerate(values):
                yield {"source": "official", "metric": metric, "value": value, "head": head, **common}


def check_optimum(table: ResultTable, params: OptimumParameters) -> Iterator[Check]:
    """Hold the optimum against trained heads, sampled prompts, the limit ω → 0 and the paper's approximation."""
    yield from _check_trained(table.where(trained=True))
    for dim, length in params.problems:
        rows = table.where(dim=dim, length=length)
        where = f"d={dim}, L={length}"
        exact = rows.where(source="exact")
        for model in ("single", "pair"):
            sampled, integrated = (rows.one(source=s, model=model, metric="loss") for s in ("simulation", "exact"))
            yield within_noise(
                f"{where}: loss of the best {model}", sampled["value"], integrated["value"], sampled["stderr"]
            )
        loss = exact.value(model="pair", metric="loss")
        limit = rows.value(model="debiased gd")
        yield above(f"{where}: debiased GD above the pair", limit, loss)
        aside = exact.where(metric="loss_aside").column("value")
        yield above(f"{where}: a pair of other ω above it", float(aside.min()), loss)
        alone = exact.value(model="single", metric="loss")
        paper = rows.value(source="paper", model="single", metric="loss")
        yield above(f"{where}: one head above the paper's loss", alone, paper)


def _check_trained(rows: ResultTable) -> Iterator[Check]:
    exact, official = rows.where(source="exact"), rows.where(source="official")
    single = {name: exact.value(metric=name, model="single") for name in ("omega", "mu")}
    pair = exact.value(metric="mu", model="pair")
    yield close("ω* of a single head, σ² = 1e-4", single["omega"], 0.518, absolute=5e-4)
    yield close("μ* of a pair at ω = 0.1407, σ² = 1e-4", pair, 3.170, absolute=5e-4)
    trained = {name: np.abs(official.where(metric=name, n_head=1).column("value")).mean() for name in single}
    yield close("trained ω of a single head", trained["omega"], single["omega"], relative=0.002)
    yield close("trained μ of a single head", trained["mu"], single["mu"], relative=0.015)
    both = float(np.abs(official.where(metric="mu", n_head=2).column("value")).mean())
    yield close("trained μ of a pair", both, pair, relative=0.005)
    best = exact.value(metric="loss", model="pair")
    for n_head in (2, 4, 8):
        reached = exact.value(metric="loss_of_official_heads", n_head=n_head)
        yield close(f"loss of the {n_head} trained heads is the pair's", reached, best, relative=0.001)


def draw_optimum(table: ResultTable, figure: Figure) -> None:
    """Draw ω* for one head and for a pair, and how much a pair gains over debiased gradient descent."""
    sharpness, gain = panels(figure, ["Sharpness ω of least loss", "What a pair gains over debiased GD"])
    problems = [(row["dim"], row["length"]) for row in table.where(source="theory", metric="loss")]
    names = [f"{dim}, {length}" for dim, length in problems]
    places = np.arange(len(problems))

    def values(**equal: str) -> np.ndarray:
        return np.array([table.value(dim=dim, length=length, **equal) for dim, length in problems])

    for model, colour, label in (("single", ORANGE, "one head, exact"), ("pair", GREEN, "pair, exact")):
        found = values(source="exact", metric="omega", model=model)
        sharpness.plot(places, found, "o", color=colour, label=label)
    paper = values(source="paper", metric="omega", model="single")
    sharpness.plot(places, paper, "_", ms=16, mew=2, color=RED, label="one head, paper: 1/√d")
    sharpness.axhline(0, color=GREY, lw=0.8)
    sharpness.text(places[0] - 0.2, 0.015, "pair, paper: 0", color=GREY, fontsize=8)
    legend(sharpness)
    lost = values(model="debiased gd") - values(source="exact", metric="loss", model="pair")
    gain.plot(places, lost, "s", color=BLUE)
    gain.set(yscale="log", ylabel="difference of losses")
    for axes in (sharpness, gain):
        axes.set_xticks(places, names)
        axes.set_xlabel("d, L")


@dataclass(frozen=True)
class ConcentrationParameters:
    """Parameters of the histograms of ‖p‖."""

    shapes: tuple[tuple[int, int], ...] = ((5, 40), (5, 100), (5, 500), (25, 200), (100, 800))
    sharpness: tuple[float, ...] = (0.35, 0.5)
    draws: int = 10_000
    bins: int = 40

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(len(self.shapes) >= 1, "shapes=() must name at least one (dim, length)")
        for dim, length in self.shapes:
            require_problem(dim, length, 0.0)
            require(length >= 2, f"shapes={self.shapes}: length must be >= 2")
        require(len(self.sharpness) >= 1, "sharpness=() must name at least one ω")
        require(all(0 < w < 1 for w in self.sharpness), f"sharpness={self.sharpness} must lie in (0, 1)")
        require(self.draws >= 2, f"draws={self.draws} must be >= 2")
        require(self.bins >= 2, f"bins={self.bins} must be >= 2")


def concentration_cells(params: ConcentrationParameters) -> list[Cell]:
    """Return one cell for each shape and sharpness."""
    return [{"dim": d, "length": n, "omega": w} for w in params.sharpness for d, n in params.shapes]


def simulate_concentration(params: ConcentrationParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Draw ‖p‖ for many prompts: its mean square and its histogram."""
    dim, length, omega = int(cell["dim"]), int(cell["length"]), float(cell["omega"])
    square = sample_sharpness(omega, params.draws, dim, length, np.random.default_rng(seed))
    stderr = float(square.std(ddof=1) / np.sqrt(params.draws))
    common = {"stderr": stderr, "n_samples": params.draws, **cell}
    yield {"source": "simulation", "metric": "mean_square", "value": square.mean(), **common}
    yield {"source": "exact", "metric": "mean_square", "value": mean_square_weight(omega, dim, length), **cell}
    heights, edges = np.histogram(np.sqrt(square), params.bins, range=(0, 1), density=True)
    for height, left in zip(heights, edges, strict=False):
        yield {"source": "simulation", "metric": "density", "value": height, "norm": left, **cell}


def check_concentration(table: ResultTable, params: ConcentrationParameters) -> Iterator[Check]:
    """Hold E‖p‖² against the integral, and see attention sharpen with d at fixed L/d."""
    for omega in params.sharpness:
        means = {}
        for dim, length in params.shapes:
            rows = table.where(dim=dim, length=length, omega=omega, metric="mean_square")
            sampled, exact = rows.one(source="simulation"), rows.value(source="exact")
            means[dim, length] = sampled["value"]
            if omega * np.sqrt(dim) < 3:  # beyond, the quadrature is coarse
                name = f"E‖p‖², d={dim}, L={length}, ω={omega}"
                yield within_noise(name, sampled["value"], exact, sampled["stderr"])
        line = [means[shape] for shape in ((5, 40), (25, 200), (100, 800)) if shape in means]
        for before, after in pairwise(line):
            yield above(f"attention sharpens with d at L = 8d, ω={omega}", after, before)


def draw_concentration(table: ResultTable, figure: Figure) -> None:
    """Draw the histograms, one panel for each sharpness."""
    sharpness = list(dict.fromkeys(table.column("omega")))
    for axes, omega in zip(panels(figure, [f"Attention at ω = {w:g}" for w in sharpness]), sharpness, strict=True):
        _draw_histograms(table.where(omega=omega), axes)


def _draw_histograms(table: ResultTable, axes: Axes) -> None:
    shapes = dict.fromkeys(zip(table.column("dim"), table.column("length"), strict=True))
    for (dim, length), colour in zip(shapes, (ORANGE, GREEN, BLUE, RED, GREY), strict=False):
        rows = table.where(dim=dim, length=length)
        heights = rows.where(metric="density")
        mean = rows.value(source="exact", metric="mean_square")
        label = f"d = {dim:g}, L = {length:g}: E‖p‖² = {mean:.3g}"
        axes.step(heights.column("norm"), heights.column("value"), where="post", color=colour, label=label)
    axes.set(xlabel="‖p‖ (1: all weight on one token)", ylabel="density", yscale="log", ylim=(0.02, 300))
    legend(axes)


LOSS = (
    Experiment(
        "icl_regression/loss_surface",
        "The paper's approximate loss is too low in the valley and too high beyond it.",
        SurfaceParameters,
        simulate_surface,
        check_surface,
        draw_surface,
        quick={"grid": 8},
    ),
    Experiment(
        "icl_regression/optimum",
        "Exact integrals find the true optimum: ω* = 0.518 for one head, and a pair that stops above zero.",
        OptimumParameters,
        simulate_optimum,
        check_optimum,
        draw_optimum,
        optimum_cells,
        quick={"problems": ((5, 20), (5, 40)), "n_samples": 20_000},
    ),
    Experiment(
        "icl_regression/concentration",
        "How sharp attention is: the norm of its weights, and its mean square by exact integrals.",
        ConcentrationParameters,
        simulate_concentration,
        check_concentration,
        draw_concentration,
        concentration_cells,
        quick={"shapes": ((5, 40), (25, 200)), "draws": 2000},
    ),
)
