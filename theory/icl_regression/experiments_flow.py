"""Experiments on the gradient flow: its three phases, its power law, its heads, and its trap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refattn.primitives.arguments import require
from theory.experiment import Cell, Experiment
from theory.icl_regression.drawing import BLUE, GREEN, GREY, ORANGE, RED, legend, panels
from theory.icl_regression.flow import (
    FlowResult,
    euler_flow,
    exact_pair_flow,
    first_phase,
    gradient_flow,
    gradient_flows,
    limit_step,
    pair_power_law,
    same_sign,
)
from theory.icl_regression.losses import optimal_pair
from theory.icl_regression.risks import paper_single_head
from theory.icl_regression.samplers import require_problem
from theory.verdict import Check, above, below, close

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["FLOW"]

LANDMARKS = (5.5, 7.5, 12.0)
"""Times at which the phases are read off: leaving, the bend, the valley."""
EXPECTED = {
    (5.5, "mu"): 0.2295,
    (7.5, "mu"): 0.617,
    (7.5, "omega"): 0.575,
    (7.5, "half_loss"): 0.145,
    (12.0, "mu"): 0.797,
    (12.0, "omega"): 0.504,
    (12.0, "half_loss"): 0.1266,
}
"""The same numbers from an independent prototype, for the default parameters."""


@dataclass(frozen=True)
class PhasesParameters:
    """Parameters of the flow of one pair of heads."""

    dim: int = 5
    length: int = 40
    noise_var: float = 0.1
    start: float = 1e-3
    t_end: float = 1e6
    points: int = 120
    euler_step: float = 0.002

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_problem(self.dim, self.length, self.noise_var)
        require(0 < self.start <= 0.01, f"start={self.start} must lie in (0, 0.01]")
        require(self.t_end >= 1e4, f"t_end={self.t_end} must be >= 1e4")
        require(self.points >= 2, f"points={self.points} must be >= 2")
        require(0 < self.euler_step <= 0.1, f"euler_step={self.euler_step} must lie in (0, 0.1]")


def simulate_phases(params: PhasesParameters, _cell: Cell, _seed: np.random.SeedSequence) -> Iterator[Row]:
    """Follow a pair from a small start, by the paper's loss and by the exact one."""
    problem = (params.dim, params.length, params.noise_var)
    times = np.union1d(np.geomspace(0.1, params.t_end, params.points), [*LANDMARKS, _early(params)])
    pair = np.array([params.start, -params.start])
    yield from _trajectory("paper", gradient_flow(pair, pair, *problem, times))
    if params.length >= 2:
        yield from _trajectory("exact", exact_pair_flow(params.start, *problem, times))
    yield from _curve("theory", "mu_phase1", times, first_phase(params.start, times))
    for name, curve in zip(("mu_phase3", "omega_phase3"), pair_power_law(times, *problem), strict=True):
        yield from _curve("theory", name, times, curve)
    steps = round(LANDMARKS[-1] / params.euler_step)
    euler = euler_flow(pair, pair, *problem, step=params.euler_step, steps=steps)
    for time in LANDMARKS:
        at = round(time / params.euler_step)
        yield {"source": "simulation", "metric": "mu_euler", "value": euler.mu[at, 0], "time": time}
        yield {"source": "simulation", "metric": "omega_euler", "value": euler.omega[at, 0], "time": time}


def check_phases(table: ResultTable, params: PhasesParameters) -> Iterator[Check]:
    """Hold the solver against fixed steps, the first phase against its law, the last against the power law."""
    paper, simulated, theory = (table.where(source=source) for source in ("paper", "simulation", "theory"))
    for time in LANDMARKS:
        for name in ("mu", "omega"):
            steps = simulated.value(metric=f"{name}_euler", time=time)
            yield close(f"{name}({time}): fixed steps", steps, paper.value(metric=name, time=time), relative=0.01)
    early = _early(params)
    law = theory.value(metric="mu_phase1", time=early)
    yield close(f"mu({early:.2f}): law of phase 1", paper.value(metric="mu", time=early), law, relative=0.01)
    end = params.t_end
    for name in ("mu", "omega"):
        law = theory.value(metric=f"{name}_phase3", time=end)
        yield close(f"{name}({end:g}): law of phase 3", paper.value(metric=name, time=end), law, relative=0.003)
    if (params.dim, params.length, params.noise_var, params.start) == (5, 40, 0.1, 1e-3):
        for (time, name), expected in EXPECTED.items():
            yield close(f"{name}({time})", paper.value(metric=name, time=time), expected, absolute=6e-4)


def draw_phases(table: ResultTable, figure: Figure) -> None:
    """Draw μ and ω over twelve orders of magnitude of time, and the loss."""
    heads, losses = panels(figure, ["One pair of heads: leave together, bend, drift", "Its loss"])
    for source, width, label in (("paper", 2.0, ""), ("exact", 1.0, ", exact loss")):
        for name, colour, symbol in (("mu", ORANGE, "μ"), ("omega", GREEN, "ω")):
            rows = table.where(source=source, metric=name)
            if len(rows):
                style = "-" if source == "paper" else "--"
                heads.plot(
                    rows.column("time"), rows.column("value"), style, color=colour, lw=width, label=f"{symbol}{label}"
                )
        rows = table.where(source=source, metric="half_loss")
        if len(rows):
            colour = BLUE if source == "paper" else RED
            losses.plot(rows.column("time"), 2 * rows.column("value"), color=colour, label=f"{source} loss")
    _draw_laws(table, heads)
    heads.set(xscale="log", yscale="log", xlabel="time", ylabel="|μ|, |ω|", ylim=(5e-4, 30))
    legend(heads, loc="lower right")
    losses.set(xscale="log", xlabel="time", ylabel="loss", ylim=(0, None))
    legend(losses)


def _draw_laws(table: ResultTable, axes: Axes) -> None:
    first = table.where(metric="mu_phase1")
    until = first.column("value") < 0.6
    axes.plot(first.column("time")[until], first.column("value")[until], ":", color=GREY, lw=2)
    for name in ("mu_phase3", "omega_phase3"):
        rows = table.where(metric=name)
        late = rows.column("time") > 30
        axes.plot(rows.column("time")[late], rows.column("value")[late], ":", color=GREY, lw=2)
    axes.axvspan(6, 20, color=GREY, alpha=0.15, lw=0)
    words = ((0.12, 0.2, "1: leave\n$\\propto e^t$"), (5, 12, "2: bend"), (1e3, 12, "3: drift $\\propto t^{1/6}$"))
    for x, y, word in (*words, (1e3, 0.04, "$\\propto t^{-1/6}$")):
        axes.text(x, y, word, color=GREY, fontsize=9)


def _early(params: PhasesParameters) -> float:
    """Return a time at which the first phase is nearly over."""
    return float(-0.75 * np.log(params.start))


def _trajectory(source: str, flow: FlowResult) -> Iterator[Row]:
    yield from _curve(source, "mu", flow.t, flow.mu[:, 0])
    yield from _curve(source, "omega", flow.t, flow.omega[:, 0])
    yield from _curve(source, "half_loss", flow.t, flow.loss / 2)


def _curve(source: str, metric: str, times: np.ndarray, values: np.ndarray) -> Iterator[Row]:
    for time, value in zip(times, values, strict=True):
        yield {"source": source, "metric": metric, "value": float(value), "time": float(time)}


@dataclass(frozen=True)
class PowerLawParameters:
    """Parameters of the long flow, for several problems."""

    problems: tuple[tuple[int, int], ...] = ((5, 40), (10, 80), (20, 160))
    noise_var: float = 0.1
    start: float = 1e-3
    t_end: float = 1e6
    points: int = 41

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(len(self.problems) >= 1, "problems=() must name at least one (dim, length)")
        for dim, length in self.problems:
            require_problem(dim, length, self.noise_var)
            require(length >= 2, f"problems={self.problems}: length must be >= 2")
        require(0 < self.start <= 0.01, f"start={self.start} must lie in (0, 0.01]")
        require(self.t_end > 1e5, f"t_end={self.t_end} must be > 1e5")
        require(self.points >= 3, f"points={self.points} must be >= 3")


def power_law_cells(params: PowerLawParameters) -> list[Cell]:
    """Return one cell for each problem."""
    return [{"dim": dim, "length": length} for dim, length in params.problems]


def simulate_power_law(params: PowerLawParameters, cell: Cell, _seed: np.random.SeedSequence) -> Iterator[Row]:
    """Follow the drift, fit its exponents, and find where the exact loss ends it."""
    dim, length = int(cell["dim"]), int(cell["length"])
    problem = (dim, length, params.noise_var)
    times = np.geomspace(1e4, params.t_end, params.points)
    pair = np.array([params.start, -params.start])
    flow = gradient_flow(pair, pair, *problem, times)
    yield from _with(cell, _trajectory("paper", flow))
    yield from _with(cell, _trajectory("exact", exact_pair_flow(params.start, *problem, times)))
    for name, values in (("mu", flow.mu), ("omega", flow.omega)):
        exponent = np.polyfit(np.log(times), np.log(values[:, 0]), 1)[0]
        yield {"source": "simulation", "metric": f"{name}_exponent", "value": exponent, **cell}
    laws = pair_power_law(times, *problem)
    for name, law in zip(("mu", "omega"), laws, strict=True):
        yield from _with(cell, _curve("theory", name, times, law))
    limit = 1 + params.noise_var - limit_step(*problem)
    c, y = (1 + params.noise_var) / length, dim * laws[1] ** 2
    yield from _with(cell, _curve("paper", "gap", times, flow.loss - limit))
    # eq: icl-gap
    yield from _with(cell, _curve("theory", "gap", times, 4 * c * laws[0] ** 2 * (np.sinh(y) - y)))
    yield {"source": "exact", "metric": "omega_optimum", "value": optimal_pair(*problem).omega, **cell}


def check_power_law(table: ResultTable, params: PowerLawParameters) -> Iterator[Check]:
    """Hold exponents, law and loss gap against the flow, and the end of the exact flow against the optimum."""
    for dim, length in params.problems:
        rows = table.where(dim=dim, length=length)
        where = f"d={dim}, L={length}"
        small = dim * rows.where(source="theory", metric="omega").column("value") ** 2 <= 0.1
        for name, exponent in (("mu", 1 / 6), ("omega", -1 / 6)):
            fitted = rows.value(metric=f"{name}_exponent")
            yield close(f"{where}: exponent of {name}", fitted, exponent, absolute=0.003)
            paper, law = (rows.where(source=s, metric=name).column("value") for s in ("paper", "theory"))
            worst = float(np.max(np.abs(paper / law - 1)[small]))
            yield below(f"{where}: {name} off its law where dω² ≤ 0.1", worst, 0.003)
        gap, law = (rows.where(source=s, metric="gap").column("value") for s in ("paper", "theory"))
        yield close(f"{where}: loss gap at {params.t_end:g}", gap[-1], law[-1], relative=0.03)
        optimum = rows.value(metric="omega_optimum")
        exact = rows.value(source="exact", metric="omega", time=params.t_end)
        yield above(f"{where}: exact flow above its optimum", exact, 0.9999 * optimum)


def draw_power_law(table: ResultTable, figure: Figure) -> None:
    """Draw the drift of μ and ω with its law, and the loss that is left to gain."""
    drift, gaps = panels(figure, ["The drift of a pair", "Loss above its limit"])
    problems = dict.fromkeys(zip(table.column("dim"), table.column("length"), strict=True))
    for (dim, length), colour in zip(problems, (ORANGE, GREEN, BLUE, RED), strict=False):
        rows = table.where(dim=dim, length=length)
        for name in ("mu", "omega"):
            for source, style in (("paper", "o"), ("theory", "-"), ("exact", "--")):
                chosen = rows.where(source=source, metric=name)
                label = f"d = {dim:g}, L = {length:g}" if (name, source) == ("mu", "theory") else None
                times, values = chosen.column("time"), chosen.column("value")
                drift.plot(times, values, style, ms=2.5, lw=1.2, color=colour, label=label)
        for source, style in (("paper", "o"), ("theory", "-")):
            chosen = rows.where(source=source, metric="gap")
            gaps.plot(chosen.column("time"), chosen.column("value"), style, ms=2.5, lw=1.2, color=colour)
    drift.set(xscale="log", yscale="log", xlabel="time", ylabel="μ (above), ω (below)")
    drift.text(
        0.03, 0.5, "dots: flow   line: law   dashes: exact loss", color=GREY, fontsize=8, transform=drift.transAxes
    )
    legend(drift, loc="upper left", bbox_to_anchor=(0, 0.48))
    gaps.set(xscale="log", yscale="log", xlabel="time", ylabel="loss − limit")


def _with(cell: Cell, rows: Iterator[Row]) -> Iterator[Row]:
    return ({**row, **cell} for row in rows)


@dataclass(frozen=True)
class HeadsParameters:
    """Parameters of the flow of several heads from random starts."""

    n_head: int = 4
    dim: int = 5
    length: int = 40
    noise_var: float = 0.1
    spread: float = 0.1
    replicas: int = 12
    t_end: float = 1e4

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_problem(self.dim, self.length, self.noise_var)
        require(self.n_head >= 2, f"n_head={self.n_head} must be >= 2")
        require(0 < self.spread <= 0.3, f"spread={self.spread} must lie in (0, 0.3]")
        require(self.replicas >= 1, f"replicas={self.replicas} must be >= 1")
        require(self.t_end >= 1e3, f"t_end={self.t_end} must be >= 1e3")


def heads_cells(params: HeadsParameters) -> list[Cell]:
    """Return one cell for each replica."""
    return [{"replica": replica} for replica in range(params.replicas)]


def simulate_heads(params: HeadsParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Follow the flow from a random start and look at its heads."""
    rng = np.random.default_rng(seed)
    mu0, omega0 = rng.normal(0, params.spread, (2, params.n_head))
    flow = gradient_flow(mu0, omega0, params.dim, params.length, params.noise_var, [params.t_end])
    mu, omega = flow.mu[0], flow.omega[0]
    for head in range(params.n_head):
        yield {"source": "simulation", "metric": "mu", "value": mu[head], "head": head, **cell}
        yield {"source": "simulation", "metric": "omega", "value": omega[head], "head": head, **cell}
    numbers = {
        "sum_mu": mu.sum(),
        "mu_dot_omega": mu @ omega,
        "sharpness_spread": np.ptp(np.abs(omega)) / np.mean(np.abs(omega)),
        "matched_signs": np.mean(mu * omega > 0),
        "trapped": float(same_sign(flow.omega)[0]),
    }
    for metric, value in numbers.items():
        yield {"source": "simulation", "metric": metric, "value": float(value), **cell}


def check_heads(table: ResultTable, params: HeadsParameters) -> Iterator[Check]:
    """Hold sum rules against every replica that is not trapped; count those that are."""
    values = {
        metric: table.where(metric=metric).column("value")
        for metric in ("trapped", "sum_mu", "mu_dot_omega", "sharpness_spread", "matched_signs")
    }
    free = values["trapped"] == 0
    yield below(f"trapped replicas, of {params.replicas}", float(np.sum(~free)), params.replicas - 1)
    if np.any(free):
        yield below("largest |Σμ|", float(np.max(np.abs(values["sum_mu"][free]))), 0.01)
        step = limit_step(params.dim, params.length, params.noise_var)
        furthest = values["mu_dot_omega"][free]
        worst = furthest[np.argmax(np.abs(furthest - step))]
        yield close("Σμω furthest from 1/(1 + (1 + σ²)d/L)", float(worst), step, relative=0.01)
        yield below("largest relative spread of |ω|", float(np.max(values["sharpness_spread"][free])), 0.01)
        yield close("signs of μ and ω agree", float(np.min(values["matched_signs"][free])), 1.0, absolute=0.0)


def draw_heads(table: ResultTable, figure: Figure) -> None:
    """Draw where the heads of each replica are, and their sums."""
    plane, sums = panels(figure, ["Heads at the end of the flow", "Their sums, one dot a replica"])
    trapped = {row["replica"] for row in table.where(metric="trapped") if row["value"]}
    replicas = sorted({row["replica"] for row in table})
    for replica in replicas:
        rows = table.where(replica=replica)
        colour = RED if replica in trapped else GREEN
        omega, mu = (rows.where(metric=name).column("value") for name in ("omega", "mu"))
        plane.plot(omega, mu, "o", ms=5, alpha=0.6, color=colour)
        sums.plot(replica, rows.value(metric="sum_mu"), "o", ms=5, color=ORANGE)
        sums.plot(replica, rows.value(metric="mu_dot_omega"), "s", ms=5, color=BLUE)
    plane.set(xlabel="ω", ylabel="μ")
    plane.text(
        0.05, 0.92, f"{len(trapped)} of {len(replicas)} trapped", color=RED, fontsize=8, transform=plane.transAxes
    )
    sums.set(xlabel="replica")
    sums.plot([], [], "o", color=ORANGE, label="Σμ")
    sums.plot([], [], "s", color=BLUE, label="Σμω")
    legend(sums, loc="center right")


@dataclass(frozen=True)
class TrapParameters:
    """Parameters of many flows from tiny random starts."""

    heads: tuple[int, ...] = (2, 3, 4)
    flows: int = 600
    spread: float = 0.01
    dim: int = 5
    length: int = 40
    noise_var: float = 0.1
    t_end: float = 200.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_problem(self.dim, self.length, self.noise_var)
        require(len(self.heads) >= 1 and min(self.heads) >= 2, f"heads={self.heads} must each be >= 2")
        require(self.flows >= 2, f"flows={self.flows} must be >= 2")
        require(0 < self.spread <= 0.1, f"spread={self.spread} must lie in (0, 0.1]")
        require(self.t_end >= 100, f"t_end={self.t_end} must be >= 100")


def trap_cells(params: TrapParameters) -> list[Cell]:
    """Return one cell for each number of heads."""
    return [{"n_head": n_head} for n_head in params.heads]


def simulate_trap(params: TrapParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Follow many flows and count those whose heads have all taken one sign."""
    rng = np.random.default_rng(seed)
    n_head = int(cell["n_head"])
    problem = (params.dim, params.length, params.noise_var)
    mu0, omega0 = rng.normal(0, params.spread, (2, params.flows, n_head))
    flow = gradient_flows(mu0, omega0, *problem, params.t_end)
    trapped, alone = same_sign(flow.omega), paper_single_head(*problem)[2]
    middle = (alone + 1 + params.noise_var - limit_step(*problem)) / 2
    share = float(trapped.mean())
    stderr = np.sqrt(share * (1 - share) / params.flows)
    common = {"n_samples": params.flows, **cell}
    yield {"source": "simulation", "metric": "trapped", "value": share, "stderr": stderr, **common}
    yield {"source": "theory", "metric": "trapped_bound", "value": 2.0 ** (1 - n_head), **cell}
    wrong = np.sum(trapped != (flow.loss > middle))
    yield {"source": "simulation", "metric": "signs_and_loss_disagree", "value": int(wrong), **common}
    for metric, losses in (("loss_trapped", flow.loss[trapped]), ("loss_free", flow.loss[~trapped])):
        if losses.size:
            yield {"source": "simulation", "metric": metric, "value": losses.max(), **common}
    yield {"source": "paper", "metric": "loss_single_head", "value": alone, **cell}


def check_trap(table: ResultTable, params: TrapParameters) -> Iterator[Check]:
    """Hold the number of trapped flows under its bound, and their loss against one head's."""
    for n_head in params.heads:
        rows = table.where(n_head=n_head)
        bound = rows.value(metric="trapped_bound")
        noise = 4 * np.sqrt(bound * (1 - bound) / params.flows)
        yield below(f"H={n_head}: share trapped (2^(1−H) + 4 s.e.)", rows.value(metric="trapped"), bound + noise)
        wrong = rows.value(metric="signs_and_loss_disagree")
        yield close(f"H={n_head}: flows whose signs and loss disagree", wrong, 0, absolute=0)
        if len(rows.where(metric="loss_trapped")):
            alone, reached = rows.value(metric="loss_single_head"), rows.value(metric="loss_trapped")
            yield close(f"H={n_head}: loss in the trap is one head's", reached, alone, absolute=1e-4)


def draw_trap(table: ResultTable, figure: Figure) -> None:
    """Draw the share of trapped flows by the number of heads, and the two losses."""
    shares, losses = panels(figure, ["Flows whose heads all take one sign", "Largest loss where the flow has stopped"])
    rows = table.where(metric="trapped")
    heads, values = rows.column("n_head"), rows.column("value")
    shares.bar(heads, values, width=0.5, color=RED, alpha=0.7, yerr=rows.column("stderr"), ecolor=GREY)
    shares.plot(heads, table.where(metric="trapped_bound").column("value"), "o--", color=GREY, label="2^(1 − H)")
    for n_head, value, count in zip(heads, values, rows.column("n_samples"), strict=True):
        shares.text(n_head + 0.28, value, f"{value * count:.0f} of {count:.0f}", color=RED, fontsize=8)
    shares.set(xlabel="heads H", ylabel="share", xticks=heads)
    legend(shares)
    for metric, colour, label in (("loss_trapped", RED, "trapped"), ("loss_free", GREEN, "free")):
        found = table.where(metric=metric)
        if len(found):
            losses.plot(found.column("n_head"), found.column("value"), "o", ms=7, color=colour, label=label)
    losses.axhline(table.where(metric="loss_single_head").column("value")[0], color=GREY, ls="--", lw=1)
    losses.set(xlabel="heads H", ylabel="loss", ylim=(0, 0.5), xticks=heads)
    legend(losses, loc="lower right")


FLOW = (
    Experiment(
        "icl_regression/flow_phases",
        "The gradient flow of a pair of heads has three phases: leave, bend, drift.",
        PhasesParameters,
        simulate_phases,
        check_phases,
        draw_phases,
        quick={"points": 40, "euler_step": 0.0025},
    ),
    Experiment(
        "icl_regression/flow_power_law",
        "In the third phase μ grows as t^(1/6) and ω falls as t^(−1/6), until the exact loss ends it.",
        PowerLawParameters,
        simulate_power_law,
        check_power_law,
        draw_power_law,
        power_law_cells,
        quick={"problems": ((5, 40),), "points": 9},
    ),
    Experiment(
        "icl_regression/flow_heads",
        "Heads from random starts end with equal |ω|, Σμ = 0 and one Σμω.",
        HeadsParameters,
        simulate_heads,
        check_heads,
        draw_heads,
        heads_cells,
        quick={"replicas": 4},
    ),
    Experiment(
        "icl_regression/flow_trap",
        "When all heads take one sign, the flow is trapped at the loss of a single head.",
        TrapParameters,
        simulate_trap,
        check_trap,
        draw_trap,
        trap_cells,
        quick={"flows": 200},
    ),
)
