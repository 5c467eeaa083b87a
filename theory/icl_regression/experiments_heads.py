"""How many heads: two do as well as eight at every length, but two are often trapped on one side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.layers.icl_regression import ICLAttentionWeights
from refattn.primitives.arguments import require
from theory.experiment import Cell, Experiment
from theory.icl_regression.drawing import GREY
from theory.icl_regression.losses import optimal_single_head, population_loss
from theory.icl_regression.risks import best_debiased_gd_step, debiased_gd_risk
from theory.icl_regression.training import TrainResult, evaluate, fast_generator, train_icl
from theory.icl_regression.training_parameters import (
    COLOURS,
    TrainingParameters,
    cells_by_head,
    plain_axes,
    row,
)
from theory.verdict import Check, above, below, between, close

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["HEADS", "TRAP", "HeadsParameters", "TrapParameters"]

SETTLED = 5000
"""Steps after which every start is on one side or on both."""


@dataclass(frozen=True)
class HeadsParameters(TrainingParameters):
    """Of models that are trained at one length and tested at others.

    Attributes
    ----------
    lengths : tuple of int
        Lengths of the test prompts.
    prompts : int
        Number of test prompts at each length.
    test_seed : int
        Seed of the test prompts, the same for all models, so that models differ by what they are and not by chance.
    """

    heads: tuple[int, ...] = (1, 2, 4, 8)
    steps: int = 10_000
    lengths: tuple[int, ...] = (10, 20, 40, 60, 80, 100)
    prompts: int = 50_000
    test_seed: int = 1

    def __post_init__(self) -> None:
        """Refuse lengths and numbers that no test has."""
        super().__post_init__()
        require(self.lengths and min(self.lengths) >= 2, f"lengths={self.lengths} must name numbers >= 2")
        require(self.prompts >= 1000, f"prompts={self.prompts} must be >= 1000")
        require(self.test_seed >= 0, f"test_seed={self.test_seed} must be >= 0")


@dataclass(frozen=True)
class TrapParameters(TrainingParameters):
    """Of many starts, trained until they are on one side or on both.

    Attributes
    ----------
    streams : int
        Number of independent streams of prompts; each trains ``replicas`` starts, whose fates hang together a little.
    """

    heads: tuple[int, ...] = (2, 3, 4)
    steps: int = 8000
    batch: int = 64
    lr: float = 3e-3
    replicas: int = 16
    streams: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        super().__post_init__()
        require(self.streams >= 1, f"streams={self.streams} must be >= 1")


def _train(p: TrainingParameters, cell: Cell, seed: np.random.SeedSequence) -> TrainResult:
    return train_icl(
        cell["n_head"],
        *p.problem,
        steps=p.steps,
        batch=p.batch,
        lr=p.lr,
        rng=fast_generator(seed),
        replicas=p.replicas,
        log_every=p.log_every,
        dtype=np.float32,
    )


def _heads_rows(p: HeadsParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    result = _train(p, cell, seed)
    assert isinstance(result.weights, ICLAttentionWeights)
    shown = int(np.argmin(result.trapped))
    for length in p.lengths:
        rng = np.random.default_rng([p.test_seed, length])
        losses, stderr = evaluate(result.weights, length, p.noise_var, prompts=p.prompts, rng=rng)
        for replica, trapped in enumerate(result.trapped):
            at: dict[str, Any] = {**cell, "length": length, "replica": replica, "trapped": bool(trapped)}
            yield row("simulation", "loss", losses[replica], stderr=stderr[replica], n_samples=p.prompts, **at)
        heads = result.mu[-1, shown].astype(float), result.omega[-1, shown].astype(float)
        exact = population_loss(*heads, p.dim, length, p.noise_var).value
        yield row("exact", "loss of the pattern", exact, **cell, length=length, replica=shown)
        step = best_debiased_gd_step(*p.problem)
        risk = debiased_gd_risk(step, p.dim, length, p.noise_var)
        yield row("theory", "debiased gradient descent", risk, **cell, length=length)


def _free_loss(table: ResultTable, n_head: int, length: int) -> tuple[float, float]:
    """Return the mean loss of the replicas that are not trapped, NaN if there is none, and its standard error."""
    rows = table.where(metric="loss", source="simulation", n_head=n_head, length=length, trapped=False)
    if not len(rows):
        return np.nan, np.nan
    return float(rows.column("value").mean()), float(rows.column("stderr").mean())  # the prompts are shared


def _heads_checks(table: ResultTable, p: HeadsParameters) -> Iterator[Check]:
    several = [n_head for n_head in p.heads if n_head > 1]
    for n_head in several:
        count = len(table.where(metric="loss", n_head=n_head, length=p.lengths[0], trapped=True))
        yield between(f"H={n_head}: trapped replicas of {p.replicas}", count, 0, p.replicas - 1)
    for length in p.lengths:
        losses = {n_head: _free_loss(table, n_head, length)[0] for n_head in p.heads}
        many = np.array([losses[n_head] for n_head in several])
        if len(several) > 1:
            yield below(f"L={length}: spread of the losses for H in {several}", np.ptp(many), 0.01)
        if 1 in p.heads and several:
            yield above(f"L={length}: loss of one head above the others", losses[1] - many.max(), 0.1)
    if p.steps >= SETTLED and p.length in p.lengths:
        for n_head in p.heads:
            yield _pattern_check(table, n_head, p.length)


def _pattern_check(table: ResultTable, n_head: int, length: int) -> Check:
    """Hold the loss of one start's weights against the exact loss of ω and μ that are read off from them."""
    exact = table.one(metric="loss of the pattern", n_head=n_head, length=length)
    measured = table.value(metric="loss", n_head=n_head, length=length, replica=exact["replica"])
    return close(
        f"L={length} H={n_head}: loss of the weights, of their pattern", measured, exact["value"], absolute=0.01
    )


def _draw_heads(table: ResultTable, figure: Figure) -> None:
    """Draw the loss over the length of the test prompts.

    Full models trained at length 40, tested at others: points with standard errors, mean over the starts that are not
    trapped. Lines are the exact losses of the patterns they have ended in. Two, four and eight heads lie on debiased
    gradient descent.
    """
    axes = figure.subplots()
    heads = [int(h) for h in dict.fromkeys(table.column("n_head"))]
    lengths = [int(n) for n in dict.fromkeys(table.column("length"))]
    for n, n_head in enumerate(heads):
        points = np.array([_free_loss(table, n_head, length) for length in lengths])
        shift = 0.9 * (n - (len(heads) - 1) / 2)  # side by side, not on top of each other
        style: dict[str, Any] = {"fmt": "o", "ms": 5, "color": COLOURS[n], "label": f"H = {n_head}, trained"}
        axes.errorbar(np.array(lengths) + shift, points[:, 0], points[:, 1], **style)
        exact = table.where(metric="loss of the pattern", n_head=n_head)
        axes.plot(exact.column("length"), exact.column("value"), color=COLOURS[n], lw=1, alpha=0.8)
    theory = table.where(metric="debiased gradient descent", n_head=heads[0])
    dashed: dict[str, Any] = {"color": GREY, "ls": "--", "lw": 1.2, "label": "debiased gradient descent"}
    axes.plot(theory.column("length"), theory.column("value"), **dashed)
    plain_axes(axes, xlabel="length of the test prompts; lines: exact loss of the pattern", ylabel="loss")
    axes.legend(frameon=False, labelcolor=GREY)


def _trap_cells(p: TrapParameters) -> list[Cell]:
    return [{"n_head": n_head, "stream": stream} for n_head in p.heads for stream in range(p.streams)]


def _trap_rows(p: TrapParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    result = _train(p, cell, seed)
    for replica, trapped in enumerate(result.trapped):
        at: dict[str, Any] = {**cell, "replica": replica, "trapped": bool(trapped)}
        signs = np.sign(result.omega[-1, replica])
        yield row("simulation", "final loss", result.loss[-1, replica], **at)
        yield row("simulation", "heads with positive omega", np.sum(signs > 0), **at)
    yield row("simulation", "trapped fraction", result.trapped.mean(), n_samples=p.replicas, **cell)
    yield row("theory", "probability of equal signs", 2.0 ** (1 - cell["n_head"]), **cell)
    yield row("exact", "loss of the best single head", optimal_single_head(*p.problem).loss, **cell)
    risk = debiased_gd_risk(best_debiased_gd_step(*p.problem), *p.problem)
    yield row("theory", "debiased gradient descent", risk, **cell)


def _trap_checks(table: ResultTable, p: TrapParameters) -> Iterator[Check]:
    for n_head in p.heads:
        fraction = table.where(metric="trapped fraction", n_head=n_head).column("value").mean()
        chance = 2.0 ** (1 - n_head)
        slack = 4 * (chance * (1 - chance) / (p.replicas * p.streams)) ** 0.5
        yield below(f"H={n_head}: trapped fraction, equal signs by chance + 4 stderr", fraction, chance + slack)
        if n_head == 2:
            yield between("H=2: trapped fraction", fraction, 0.1, 0.7)
        if n_head == 4:
            yield below("H=4: trapped fraction", fraction, 0.2)
        trapped = table.where(n_head=n_head, trapped=True)
        if p.steps >= SETTLED and len(trapped):
            positive = np.array([r["value"] for r in trapped.where(metric="heads with positive omega")])
            mixed = np.sum((positive > 0) & (positive < n_head))
            yield below(f"H={n_head}: trapped replicas whose signs differ", float(mixed), 0)
            lost = trapped.where(metric="final loss").column("value").min()
            single = table.value(metric="loss of the best single head", n_head=n_head, stream=0)
            yield above(f"H={n_head}: least loss of a trapped replica, best single head − 0.01", lost, single - 0.01)
        if p.steps >= SETTLED:
            free = table.where(n_head=n_head, trapped=False, metric="final loss").column("value")
            yield below(f"H={n_head}: largest loss of a free replica", free.max(), 0.3)


def _draw_trap(table: ResultTable, figure: Figure) -> None:
    """Draw the final loss of every start.

    Final losses of the full model, one point a start. Starts whose heads have all taken one sign stay at the loss of a
    single head; the more heads, the rarer that is.
    """
    axes = figure.subplots()
    heads = [int(h) for h in dict.fromkeys(table.column("n_head"))]
    for n, n_head in enumerate(heads):
        losses = table.where(metric="final loss", n_head=n_head)
        where = n + np.linspace(-0.28, 0.28, len(losses))
        colours = [COLOURS[2] if r["trapped"] else COLOURS[1] for r in losses]
        axes.scatter(where, losses.column("value"), c=colours, s=22)
        count = len(losses.where(trapped=True))
        axes.text(n, 0.335, f"{count} of {len(losses)} trapped", ha="center", color=GREY)
    for metric, label in (
        ("loss of the best single head", "best single head, exact"),
        ("debiased gradient descent", "debiased gradient descent"),
    ):
        level = table.value(metric=metric, n_head=heads[0], stream=0)
        axes.axhline(level, color=GREY, ls="--", lw=1)
        axes.text(len(heads) - 0.5, level - 0.004, label, ha="right", va="top", color=GREY, fontsize=9)
    axes.set_ylim(bottom=level - 0.02)
    plain_axes(axes, ylabel="final loss, one point a start")
    axes.set_xticks(range(len(heads)), [f"H = {n_head}" for n_head in heads])


HEADS = Experiment(
    name="icl_regression/heads",
    title="Two, four and eight heads are one curve at every length; a single head is far above.",
    parameters=HeadsParameters,
    cells=cells_by_head,
    simulate=_heads_rows,
    checks=_heads_checks,
    draw=_draw_heads,
    quick={"heads": (1, 2, 4), "steps": 2000, "batch": 64, "lr": 5e-3, "lengths": (10, 40), "prompts": 10_000},
)

TRAP = Experiment(
    name="icl_regression/trap",
    title="Starts whose heads all take one sign stay at the loss of a single head.",
    parameters=TrapParameters,
    cells=_trap_cells,
    simulate=_trap_rows,
    checks=_trap_checks,
    draw=_draw_trap,
    quick={"heads": (2, 4), "steps": 1000, "batch": 32, "lr": 1e-2, "replicas": 24},
)
