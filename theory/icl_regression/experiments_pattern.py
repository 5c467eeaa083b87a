"""What emerges: the pattern in the weights of the full model, and how the reduced model moves along it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.layers.icl_regression import ICLAttentionWeights, kq_matrix, ov_matrix
from theory.experiment import Cell, Experiment
from theory.icl_regression.drawing import GREY
from theory.icl_regression.losses import optimal_mu, optimal_single_head, population_loss
from theory.icl_regression.risks import best_debiased_gd_step, debiased_gd_risk
from theory.icl_regression.training import TrainResult, fast_generator, pattern_metrics, train_icl
from theory.icl_regression.training_parameters import (
    COLOURS,
    TrainingParameters,
    cells_by_head,
    plain_axes,
    row,
    train_in_phases,
)
from theory.verdict import Check, above, below, between, close

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["CURVES", "PATTERN", "CurveParameters", "PatternParameters"]

SETTLED = 10_000
"""Steps after which the weights lie on the valley and only drift."""

AT_WORK = 0.25
"""Share of the largest |μω| above which a head is at work; the others are dummies, or on their way to become one."""


@dataclass(frozen=True)
class PatternParameters(TrainingParameters):
    """Of the full model; in the last tenth of the steps the learning rate is a tenth of ``lr``."""

    heads: tuple[int, ...] = (1, 2, 4)
    replicas: int = 6


@dataclass(frozen=True)
class CurveParameters(TrainingParameters):
    """Of the reduced model."""

    heads: tuple[int, ...] = (2, 4, 8)
    steps: int = 12_000
    batch: int = 128
    lr: float = 2e-3
    replicas: int = 8


def _final_rows(p: TrainingParameters, result: TrainResult) -> Iterator[Row]:
    """Return what each replica has become, trapped ones included."""
    for replica, trapped in enumerate(result.trapped):
        omega, mu = (a[-1, replica].astype(float) for a in (result.omega, result.mu))
        at: dict[str, Any] = {"n_head": len(mu), "replica": replica, "trapped": bool(trapped)}
        yield row("simulation", "loss", result.loss[-1, replica], **at)
        yield row("simulation", "sum_mu", mu.sum(), **at)
        yield row("simulation", "mu_dot_omega", mu @ omega, **at)
        yield row("exact", "loss of the pattern", population_loss(mu, omega, *p.problem).value, **at)
        for h in range(len(mu)):
            yield row("simulation", "omega", omega[h], head=h, **at)
            yield row("simulation", "mu", mu[h], head=h, **at)
        if len(mu) == 2 and not trapped:
            for h, best in enumerate(optimal_mu(omega, *p.problem)):
                yield row("exact", "mu", best, head=h, **at)


def _pattern_rows(p: PatternParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    last = max(1, p.steps // 10)
    phases = ((max(1, p.steps - last), p.lr), (last, p.lr / 10))
    result = train_in_phases(cell["n_head"], p, phases, rng=fast_generator(seed))
    yield from _final_rows(p, result)
    assert isinstance(result.weights, ICLAttentionWeights)
    shown = int(np.argmin(result.trapped))  # the first that is not trapped
    for replica, trapped in enumerate(result.trapped):
        at: dict[str, Any] = {**cell, "replica": replica, "trapped": bool(trapped)}
        weights = ICLAttentionWeights(*(w[replica] for w in result.weights))
        kq, ov = kq_matrix(weights)[..., :-1], ov_matrix(weights)[..., 0]  # (H, D, d), (H, D)
        part = np.abs(result.omega[-1, replica] * result.mu[-1, replica])  # (H,)
        at_work = part > AT_WORK * part.max()
        metrics = pattern_metrics(ICLAttentionWeights(*(w[at_work] for w in weights)))
        yield row("simulation", "heads at work", int(at_work.sum()), **at)
        beside = kq[:, :-1] * (1 - np.eye(p.dim))
        yield row("simulation", "largest off-diagonal of KQ", np.abs(beside).max(), **at)
        yield row("simulation", "largest entry of the last row of KQ", np.abs(kq[:, -1]).max(), **at)
        yield row("simulation", "largest covariate entry of OV", np.abs(ov[:, :-1]).max(), **at)
        for name in ("diag_ratio", "diag_cv2", "ov_last_ratio"):
            yield row("simulation", name, metrics[name], **at)
        if replica == shown:
            for (h, i, j), value in np.ndenumerate(kq):
                yield row("simulation", "KQ", value, head=h, row=i, col=j, **at)
            for (h, i), value in np.ndenumerate(ov):
                yield row("simulation", "OV", value, head=h, row=i, **at)
    best = optimal_single_head(*p.problem)
    yield row("exact", "best single head: omega", best.omega, **cell)
    yield row("exact", "best single head: mu", best.mu, **cell)


def _curve_rows(p: CurveParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    result = train_icl(
        cell["n_head"],
        *p.problem,
        steps=p.steps,
        batch=p.batch,
        lr=p.lr,
        rng=fast_generator(seed),
        replicas=p.replicas,
        model="reduced",
        log_every=p.log_every,
        dtype=np.float32,
    )
    yield from _final_rows(p, result)
    shown = int(np.argmin(result.trapped))
    for t, step in enumerate(result.step):
        for h in range(cell["n_head"]):
            at = {**cell, "replica": shown, "step": int(step), "head": h}
            yield row("simulation", "omega at step", result.omega[t, shown, h], **at)
            yield row("simulation", "mu at step", result.mu[t, shown, h], **at)


def _numbers(table: ResultTable, metric: str, *, source: str = "simulation", **equal: Any) -> np.ndarray:
    return np.array([found["value"] for found in table.where(metric=metric, source=source, **equal)])


def _common_checks(table: ResultTable, p: TrainingParameters, n_head: int, most: float) -> Iterator[Check]:
    """Hold the heads of the replicas that are not trapped against debiased gradient descent."""
    free: dict[str, Any] = {"n_head": n_head, "trapped": False}
    settled = p.steps >= SETTLED
    count = len(table.where(metric="loss", n_head=n_head, trapped=True))
    yield between(f"H={n_head}: trapped replicas of {p.replicas}", count, 0, p.replicas - 1)
    if count == p.replicas:
        return
    omega, mu = (_numbers(table, name, **free).reshape(-1, n_head) for name in ("omega", "mu"))
    scale = np.abs(omega * mu).max()
    yield above(f"H={n_head}: least μω of a head over the largest, signs agree", (omega * mu).min() / scale, -0.01)
    yield below(f"H={n_head}: largest |Σμ|", np.abs(mu.sum(-1)).max(), most)
    step = best_debiased_gd_step(*p.problem)
    sums = (omega * mu).sum(-1)
    name = f"H={n_head}: Σμω, a step of debiased gradient descent"
    yield close(f"{name}, median", np.median(sums), step, relative=0.02 if settled else 0.05)
    if settled:
        losses = _numbers(table, "loss of the pattern", source="exact", **free)
        risk = float(debiased_gd_risk(step, *p.problem))
        yield close(f"H={n_head}: exact loss at the end, best step, median", np.median(losses), risk, absolute=2e-3)
        # two heads have one way to go; with more, a start may have to hand work from head to head first
        least = len(sums) if n_head == 2 else len(sums) / 2
        arrived = _arrived(table, p, n_head).sum()
        yield above(f"H={n_head}: free replicas that have arrived, of {len(sums)}", arrived, least)


def _arrived(table: ResultTable, p: TrainingParameters, n_head: int) -> np.ndarray:
    """Say which replicas that are not trapped do the work of debiased gradient descent, and as well."""
    free: dict[str, Any] = {"n_head": n_head, "trapped": False}
    omega, mu = (_numbers(table, name, **free).reshape(-1, n_head) for name in ("omega", "mu"))
    step = best_debiased_gd_step(*p.problem)
    gap = _numbers(table, "loss of the pattern", source="exact", **free) - float(debiased_gd_risk(step, *p.problem))
    close_by: np.ndarray = (np.abs((omega * mu).sum(-1) / step - 1) <= 0.02) & (np.abs(gap) <= 2e-3)
    return close_by


def _pattern_checks(table: ResultTable, p: PatternParameters) -> Iterator[Check]:
    settled = p.steps >= SETTLED
    for n_head in p.heads:
        free: dict[str, Any] = {"n_head": n_head, "trapped": False}
        if n_head > 1:
            yield from _common_checks(table, p, n_head, 0.03 if settled else 0.2)
        else:
            yield from _single_checks(table, settled=settled)
        if not len(table.where(metric="loss", **free)):
            continue
        judged = _arrived(table, p, n_head) if settled and n_head > 1 else slice(None)
        # four heads settle slower than two: the official runs, 25 times as long, reach 0.999
        diagonal, last = ((0.99, 0.99) if n_head <= 2 else (0.95, 0.98)) if settled else (0.9, 0.99)
        for name, limit in (("diag_ratio", diagonal), ("ov_last_ratio", last)):
            yield above(f"H={n_head}: least {name}", _numbers(table, name, **free)[judged].min(initial=1.0), limit)
        if settled and n_head <= 2:
            largest = _numbers(table, "largest off-diagonal of KQ", **free).max()
            yield below(f"H={n_head}: largest off-diagonal of KQ", largest, 0.01 if n_head == 2 else 0.03)
            yield below(
                f"H={n_head}: largest covariate entry of OV",
                _numbers(table, "largest covariate entry of OV", **free).max(),
                0.03,
            )
        if n_head == 2:
            yield from _pair_checks(table, settled=settled)


def _single_checks(table: ResultTable, *, settled: bool) -> Iterator[Check]:
    for name in ("omega", "mu"):
        best = table.value(metric=f"best single head: {name}", n_head=1)
        measured = np.abs(_numbers(table, name, n_head=1)).mean()
        yield close(f"H=1: |{name}| of the exact optimum", measured, best, relative=0.03 if settled else 0.1)


def _pair_checks(table: ResultTable, *, settled: bool) -> Iterator[Check]:
    free: dict[str, Any] = {"n_head": 2, "trapped": False}
    pairs = zip(_numbers(table, "mu", **free), _numbers(table, "mu", source="exact", **free), strict=True)
    worst = max(pairs, key=lambda pair: abs(pair[0] / pair[1] - 1))
    yield close("H=2: μ farthest from the exact optimum for its ω", *worst, relative=0.01 if settled else 0.1)
    if settled:
        yield close("H=2: mean loss", _numbers(table, "loss", **free).mean(), 0.244, absolute=2e-3)


def _curve_checks(table: ResultTable, p: CurveParameters) -> Iterator[Check]:
    settled = p.steps >= SETTLED
    for n_head in p.heads:
        yield from _common_checks(table, p, n_head, 0.02 if settled else 0.1)
        omega = np.abs(_numbers(table, "omega", n_head=n_head, trapped=False)).reshape(-1, n_head)
        if settled and len(omega):
            spread = np.max(np.ptp(omega, axis=-1) / omega.mean(-1))
            yield below(f"H={n_head}: spread of |ω| over its mean", spread, 0.1)


def _draw_pattern(table: ResultTable, figure: Figure) -> None:
    """Draw the merged matrices of one trained start for each number of heads.

    KQ and OV of trained heads, the first start that is not trapped. Colour is the size of an entry: KQ is a multiple of
    the identity above a row of zeros, OV reads the response and nothing else. Heads of both signs balance each other.
    """
    heads = [int(h) for h in dict.fromkeys(table.where(metric="KQ").column("n_head"))]
    places = [(n_head, h) for n_head in heads for h in range(n_head)]
    axes = figure.subplots(2, len(places), squeeze=False, height_ratios=(6, 1.4))
    for (n_head, h), (top, bottom) in zip(places, axes.T, strict=True):
        chosen = table.where(n_head=n_head, head=h)
        kq, ov = chosen.where(metric="KQ"), chosen.where(metric="OV")
        matrix = np.zeros((int(kq.column("row").max()) + 1, int(kq.column("col").max()) + 1))
        matrix[kq.column("row").astype(int), kq.column("col").astype(int)] = kq.column("value")
        _tile(top, matrix, 0.6 if n_head == 1 else 0.2)
        _tile(bottom, ov.column("value")[None], 3.5)
        top.set_title(f"H = {n_head}, head {h + 1}", color=GREY, fontsize=9)
        top.set_xlabel(f"ω = {np.trace(matrix) / matrix.shape[1]:.3f}", color=GREY, fontsize=9)
        bottom.set_xlabel(f"μ = {ov.column('value')[-1]:.3f}", color=GREY, fontsize=9)
    axes[0, 0].set_ylabel("KQ: token against query", color=GREY, fontsize=9)
    axes[1, 0].set_ylabel("OV", color=GREY, fontsize=9)


def _tile(axes: Any, matrix: np.ndarray, limit: float) -> None:
    axes.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GREY)


def _draw_curves(table: ResultTable, figure: Figure) -> None:
    """Draw sharpness and weight of every head over the steps.

    Sharpness ω and weight μ of each head while the reduced model trains, one start for each number of heads. Positive
    and negative heads part, grow until their product is right, and then drift: |ω| slowly down, |μ| slowly up.
    """
    moving = table.where(metric="omega at step")
    heads = [int(h) for h in dict.fromkeys(moving.column("n_head"))]
    for column, n_head in enumerate(heads):
        for line, (name, symbol) in enumerate((("omega", "ω"), ("mu", "μ"))):
            axes = figure.add_subplot(2, len(heads), 1 + column + line * len(heads))
            for h in range(n_head):
                curve = table.where(metric=f"{name} at step", n_head=n_head, head=h)
                value = curve.column("value")
                axes.plot(curve.column("step"), value, color=COLOURS[int(value[-1] > 0)], lw=1.4)
            axes.axhline(0, color=GREY, lw=0.6)
            plain_axes(axes, ylabel=symbol if column == 0 else "", xlabel="step" if line else "")
            if line == 0:
                trapped = len(table.where(metric="loss", n_head=n_head, trapped=True))
                starts = len(table.where(metric="loss", n_head=n_head))
                title = f"H = {n_head}; trapped starts: {trapped} of {starts}"
                axes.set_title(title, color=GREY, fontsize=9)


PATTERN = Experiment(
    name="icl_regression/pattern",
    title="In the trained weights KQ is a multiple of the identity and OV reads the response alone.",
    parameters=PatternParameters,
    cells=cells_by_head,
    simulate=_pattern_rows,
    checks=_pattern_checks,
    draw=_draw_pattern,
    quick={"heads": (1, 2), "steps": 1500, "batch": 64, "lr": 1e-2},
)

CURVES = Experiment(
    name="icl_regression/curves",
    title="Positive and negative heads part, and end with equal |ω| and weights that cancel.",
    parameters=CurveParameters,
    cells=cells_by_head,
    simulate=_curve_rows,
    checks=_curve_checks,
    draw=_draw_curves,
    quick={"heads": (2, 4), "steps": 1500, "batch": 64, "lr": 1e-2},
)
