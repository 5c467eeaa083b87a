"""Experiments on risks: estimators against length, preconditioning, the distance to Bayes, and classical results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.layers.icl_regression import (
    debiased_gd_estimator,
    gd_estimator,
    linear_attention,
    one_step_matrices,
    preconditioner,
    ridge_estimator,
    softmax_estimator,
)
from refattn.primitives.arguments import require
from theory.experiment import Cell, Experiment
from theory.icl_regression.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, legend, panels
from theory.icl_regression.losses import population_loss, quadratic_form
from theory.icl_regression.risks import (
    best_debiased_gd_step,
    best_gd_step,
    best_scalar_step,
    debiased_gd_limit,
    debiased_gd_risk,
    gd_risk,
    linear_attention_risk,
    paper_single_head,
    preconditioned_risk,
    resolvent_limit,
    ridge_limit,
    ridge_risk,
)
from theory.icl_regression.samplers import Prompts, ar1_covariance, require_problem, sample_prompts
from theory.icl_regression.wishart import mean_inverse_trace
from theory.verdict import Check, below, between, close, within_noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

    Estimator = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

__all__ = ["RISKS"]

OFFICIAL_PROMPTS = 50_000
OFFICIAL_LOSSES: dict[str, dict[int, float]] = {
    "two heads": {10: 0.604, 20: 0.367, 40: 0.2430, 60: 0.1997, 80: 0.1759, 100: 0.1638},
    "one head": {10: 0.875, 20: 0.586, 40: 0.405, 60: 0.339, 80: 0.302, 100: 0.284},
    "gd": {10: 0.643, 20: 0.371, 40: 0.2407, 60: 0.1976, 80: 0.1740, 100: 0.1622},
    "debiased gd": {10: 0.614, 20: 0.369, 40: 0.2431, 60: 0.1993, 80: 0.1757, 100: 0.1635},
    "ridge": {10: 0.194, 20: 0.135, 40: 0.1146, 60: 0.1087, 80: 0.1056, 100: 0.1041},
}
"""Printed in the official plots notebook for d = 5, σ² = 0.1, ω = 0.13, μ = 3.45, from 50 000 prompts each."""
MODELS = tuple(OFFICIAL_LOSSES)
COLOURS = dict(zip(MODELS, (GREEN, RED, PURPLE, ORANGE, BLUE), strict=True))


@dataclass(frozen=True)
class EstimatorsParameters:
    """Parameters of the estimators against the length of the prompt."""

    lengths: tuple[int, ...] = (10, 20, 40, 60, 80, 100)
    dim: int = 5
    noise_var: float = 0.1
    omega: float = 0.13
    mu: float = 3.45
    single_length: int = 40
    prompts: int = 20_000

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(len(self.lengths) >= 1, "lengths=() must name at least one length")
        for length in (*self.lengths, self.single_length):
            require_problem(self.dim, length, self.noise_var)
            require(length >= 2, f"lengths={self.lengths} must each be >= 2")
        require(0 < abs(self.omega) < 1, f"omega={self.omega} must lie in (0, 1), of either sign")
        require(self.noise_var > 0, f"noise_var={self.noise_var} must be > 0")
        require(self.prompts >= 2, f"prompts={self.prompts} must be >= 2")


def length_cells(params: EstimatorsParameters | LengthParameters) -> list[Cell]:
    """Return one cell for each length."""
    return [{"length": length} for length in params.lengths]


def simulate_estimators(params: EstimatorsParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure five estimators on the same prompts, and predict each."""
    length = int(cell["length"])
    problem = (params.dim, length, params.noise_var)
    step = 2 * params.omega * params.mu
    pair = (np.array([1.0, -1.0]) * params.omega, np.array([1.0, -1.0]) * params.mu)
    single = paper_single_head(params.dim, params.single_length, params.noise_var)[:2]
    estimators: dict[str, Estimator] = {
        "two heads": partial(_softmax, pair),
        "one head": partial(_softmax, ([single[0]], [single[1]])),
        "gd": partial(_stepped, gd_estimator, step),
        "debiased gd": partial(_stepped, debiased_gd_estimator, step),
        "ridge": partial(_ridge, params.noise_var * params.dim),
    }
    predicted = {
        "two heads": population_loss(pair[1], pair[0], *problem).value,
        "one head": population_loss([single[1]], [single[0]], *problem).value,
        "gd": float(gd_risk(step, *problem)),
        "debiased gd": float(debiased_gd_risk(step, *problem)),
        "ridge": ridge_risk(*problem),
    }
    measured = _measured(estimators, params.prompts, problem, np.random.default_rng(seed))
    yield from _beside(measured, predicted, params.prompts, cell)
    limit = ridge_risk(*problem, method="mp")
    yield {"source": "theory", "metric": "loss", "value": limit, "model": "ridge", **cell}
    if (params.dim, params.noise_var, params.omega, params.mu, params.single_length) == (5, 0.1, 0.13, 3.45, 40):
        for model, losses in OFFICIAL_LOSSES.items():
            if length in losses:
                common = {"n_samples": OFFICIAL_PROMPTS, "model": model, **cell}
                yield {"source": "official", "metric": "loss", "value": losses[length], **common}


def check_estimators(table: ResultTable, params: EstimatorsParameters) -> Iterator[Check]:
    """Hold simulation and official numbers against the exact risks, each within four standard errors."""
    for length in params.lengths:
        for model in MODELS:
            rows = table.where(length=length, model=model)
            exact, measured = rows.value(source="exact"), rows.one(source="simulation")
            name = f"{model}, L={length}"
            yield within_noise(name, measured["value"], exact, measured["stderr"])
            for official in rows.where(source="official"):
                stderr = measured["stderr"] * np.sqrt(params.prompts / OFFICIAL_PROMPTS)
                yield within_noise(f"{name}, official", official["value"], exact, stderr)


def draw_estimators(table: ResultTable, figure: Figure) -> None:
    """Draw the losses against L: lines are predictions, dots simulations, crosses official numbers."""
    whole, differences = panels(figure, ["Five estimators", "Exact loss minus that of debiased GD"])
    for model in MODELS:
        rows = table.where(model=model)
        for source, style in (("exact", "-"), ("simulation", "o"), ("official", "x")):
            found = rows.where(source=source)
            label = model if source == "exact" else None
            if len(found):
                lengths, values = found.column("length"), found.column("value")
                whole.plot(lengths, values, style, ms=5, color=COLOURS[model], label=label, alpha=0.85)
    words = "line: exact   dot: simulated\ncross: official"
    whole.text(0.42, 0.5, words, color=GREY, fontsize=8, transform=whole.transAxes)
    exact = table.where(source="exact")
    base = exact.where(model="debiased gd")
    for model in ("two heads", "gd"):
        values = exact.where(model=model).column("value") - base.column("value")
        differences.plot(base.column("length"), values, "o-", color=COLOURS[model], label=model)
    differences.axhline(0, color=COLOURS["debiased gd"], lw=1)
    for axes in (whole, differences):
        axes.set(xlabel="length L", ylabel="loss")
        legend(axes)
    differences.set_ylabel("difference")


@dataclass(frozen=True)
class LengthParameters:
    """Parameters of models used at lengths they were not trained at."""

    lengths: tuple[int, ...] = (10, 20, 40, 80, 160, 400)
    train_length: int = 40
    dim: int = 5
    noise_var: float = 0.1
    omega: float = 0.13
    mu: float = 3.45
    prompts: int = 20_000

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(len(self.lengths) >= 1, "lengths=() must name at least one length")
        for length in (*self.lengths, self.train_length):
            require_problem(self.dim, length, self.noise_var)
            require(length >= 2, f"lengths={self.lengths} must each be >= 2")
        require(0 < abs(self.omega) < 1, f"omega={self.omega} must lie in (0, 1), of either sign")
        require(self.prompts >= 2, f"prompts={self.prompts} must be >= 2")


def simulate_lengths(params: LengthParameters, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Use a pair of heads and linear attention, both made for one length, at another."""
    length = int(cell["length"])
    trained = (params.dim, params.train_length, params.noise_var)
    problem = (params.dim, length, params.noise_var)
    omega, mu = (value * np.array([1.0, -1.0]) for value in (params.omega, params.mu))
    step = best_gd_step(*trained)
    estimators: dict[str, Estimator] = {
        "softmax pair": partial(_softmax, (omega, mu)),
        "linear attention": partial(_linear, step, params.train_length),
    }
    linear = linear_attention_risk(step, *problem, train_length=params.train_length)
    predicted = {"softmax pair": population_loss(mu, omega, *problem).value, "linear attention": float(linear)}
    measured = _measured(estimators, params.prompts, problem, np.random.default_rng(seed))
    yield from _beside(measured, predicted, params.prompts, cell)
    imitated = float(debiased_gd_risk(mu @ omega, *problem))
    yield {"source": "theory", "metric": "loss", "value": imitated, "model": "softmax pair", **cell}


def check_lengths(table: ResultTable, params: LengthParameters) -> Iterator[Check]:
    """Hold both models against their risks, and the softmax pair against debiased gradient descent."""
    for length in params.lengths:
        for model in ("softmax pair", "linear attention"):
            rows = table.where(length=length, model=model)
            exact, measured = rows.value(source="exact"), rows.one(source="simulation")
            yield within_noise(f"{model}, L={length}", measured["value"], exact, measured["stderr"])
    default = (params.train_length, params.dim, params.noise_var, params.omega, params.mu) == (40, 5, 0.1, 0.13, 3.45)
    if default and 400 in params.lengths:
        rows = table.where(length=400, source="exact")
        yield close("softmax pair at L=400", rows.value(model="softmax pair"), 0.1243, absolute=2e-4)
        yield close("linear attention at L=400", rows.value(model="linear attention"), 59.1, absolute=0.05)


def draw_lengths(table: ResultTable, figure: Figure) -> None:
    """Draw the loss of both models against the length they are used at."""
    (axes,) = panels(figure, ["Trained at L = 40, used at another length"])
    for model, colour in (("softmax pair", GREEN), ("linear attention", RED)):
        rows = table.where(model=model)
        for source, style in (("exact", "-"), ("simulation", "o")):
            found = rows.where(source=source)
            label = f"{model}, exact" if source == "exact" else f"{model}, simulated"
            axes.plot(found.column("length"), found.column("value"), style, color=colour, label=label)
    found = table.where(source="theory")
    axes.plot(found.column("length"), found.column("value"), "--", color=GREY, label="debiased GD, same step")
    axes.set(xscale="log", yscale="log", xlabel="length L", ylabel="loss")
    legend(axes)


@dataclass(frozen=True)
class PreconditioningParameters:
    """Parameters of gradient descent on correlated covariates."""

    rhos: tuple[float, ...] = (0.0, 0.5, 0.8)
    dim: int = 5
    length: int = 40
    noise_var: float = 0.1
    prompts: int = 50_000
    mu: float = 50.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_problem(self.dim, self.length, self.noise_var)
        require(len(self.rhos) >= 1, "rhos=() must name at least one correlation")
        require(all(-1 < rho < 1 for rho in self.rhos), f"rhos={self.rhos}: rho must be between -1 and 1 (exclusive)")
        require(self.length >= 2, f"length={self.length} must be >= 2")
        require(self.prompts >= 100, f"prompts={self.prompts} must be >= 100")
        require(self.mu >= 10, f"mu={self.mu} must be >= 10")


def rho_cells(params: PreconditioningParameters) -> list[Cell]:
    """Return one cell for each correlation."""
    return [{"rho": rho} for rho in params.rhos]


def simulate_preconditioning(
    params: PreconditioningParameters, cell: Cell, seed: np.random.SeedSequence
) -> Iterator[Row]:
    """Measure preconditioned and plain steps on correlated covariates, and two heads that imitate the former."""
    cov = ar1_covariance(params.dim, float(cell["rho"]))
    problem = (params.dim, params.length, params.noise_var)
    estimators: dict[str, Estimator] = {"ridge": partial(_ridge, params.noise_var * params.dim)}
    predicted = {}
    for name, estimator, debiased in (("gd", gd_estimator, False), ("debiased gd", debiased_gd_estimator, True)):
        steps = {
            f"preconditioned {name}": preconditioner(cov, *problem[1:], debiased=debiased),
            name: best_scalar_step(cov, *problem[1:], debiased=debiased) * np.eye(params.dim),
        }
        for label, step in steps.items():
            estimators[label] = partial(_stepped, estimator, step)
            predicted[label] = preconditioned_risk(step, cov, *problem[1:], debiased=debiased)
    rng = np.random.default_rng(seed)
    measured = _measured(estimators, params.prompts, problem, rng, cov)
    yield from _beside(measured, predicted, params.prompts, cell)
    ratio = predicted["debiased gd"] / predicted["preconditioned debiased gd"]
    yield {"source": "exact", "metric": "risk_ratio", "value": ratio, **cell}
    best = preconditioner(cov, *problem[1:])
    prompts = sample_prompts(400, params.length, params.dim, params.noise_var, rng, cov=cov)
    wanted = debiased_gd_estimator(prompts.x, prompts.y, prompts.x_q, best)
    for mu in (params.mu / 10, params.mu):
        kernels = np.array([1.0, -1.0])[:, None, None] * best / (2 * mu)
        heads = softmax_estimator(prompts.x, prompts.y, prompts.x_q, kernels, mu * np.array([1.0, -1.0]))
        error = float(np.sqrt(np.mean((heads - wanted) ** 2)))
        yield {"source": "simulation", "metric": "heads_error", "value": error, "mu": mu, **cell}


def check_preconditioning(table: ResultTable, params: PreconditioningParameters) -> Iterator[Check]:
    """Hold each risk against its formula, and the two heads against the step that they imitate."""
    for rho in params.rhos:
        rows = table.where(rho=rho)
        for exact in rows.where(source="exact", metric="loss"):
            measured = rows.one(source="simulation", metric="loss", model=exact["model"])
            yield within_noise(f"{exact['model']}, ρ={rho}", measured["value"], exact["value"], measured["stderr"])
        coarse, fine = (rows.value(metric="heads_error", mu=mu) for mu in (params.mu / 10, params.mu))
        yield between(f"ten times smaller ω: error of two heads falls by, ρ={rho}", coarse / fine, 80, 120)
        if (rho, params.dim, params.length, params.noise_var) == (0.5, 5, 40, 0.1):
            yield close(
                "risk ratio scalar to preconditioned, ρ=0.5", rows.value(metric="risk_ratio"), 1.59, absolute=0.005
            )


def draw_preconditioning(table: ResultTable, figure: Figure) -> None:
    """Draw the risks against the correlation."""
    risks, errors = panels(figure, ["Correlated covariates, ρ^|i − j|", "Two heads imitate the preconditioned step"])
    models = {"gd": PURPLE, "debiased gd": ORANGE, "preconditioned gd": BLUE, "preconditioned debiased gd": GREEN}
    for model, colour in {**models, "ridge": GREY}.items():
        found = table.where(model=model, source="simulation")
        style = "o--" if model == "ridge" else "o"
        risks.plot(found.column("rho"), found.column("value"), style, color=colour, label=model, alpha=0.85)
        exact = table.where(model=model, source="exact")
        if len(exact):
            risks.plot(exact.column("rho"), exact.column("value"), "-", color=colour)
    risks.set(xlabel="ρ", ylabel="loss", ylim=(0, 0.62))
    legend(risks, loc="upper left")
    rows = table.where(metric="heads_error")
    for rho, colour in zip(dict.fromkeys(rows.column("rho")), (ORANGE, GREEN, BLUE), strict=False):
        found = rows.where(rho=rho)
        errors.plot(found.column("mu"), found.column("value"), "o-", color=colour, label=f"ρ = {rho:g}")
    errors.set(xscale="log", yscale="log", xlabel="μ, with Ω = Γ/(2μ)", ylabel="rms difference of predictions")
    legend(errors)


@dataclass(frozen=True)
class BayesParameters:
    """Parameters of the distance to Bayes."""

    ratios: tuple[float, ...] = (0.05, 0.125, 0.2, 0.5, 1.0)
    noise_low: float = 0.01
    noise_high: float = 100.0
    points: int = 41
    dim: int = 5
    length: int = 40

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(len(self.ratios) >= 1, "ratios=() must name at least one d/L")
        require(all(ratio > 0 for ratio in self.ratios), f"ratios={self.ratios} must be > 0")
        require(0 < self.noise_low < self.noise_high, f"noise_low={self.noise_low} must lie in (0, noise_high)")
        require(self.points >= 2, f"points={self.points} must be >= 2")
        require_problem(self.dim, self.length, self.noise_low)


def simulate_bayes(params: BayesParameters, _cell: Cell, _seed: np.random.SeedSequence) -> Iterator[Row]:
    """Divide what debiased gradient descent costs above the noise by what Bayes costs above it."""
    noises = np.geomspace(params.noise_low, params.noise_high, params.points)
    for noise_var in noises:
        for ratio in params.ratios:
            excess = debiased_gd_limit(ratio, noise_var) - noise_var
            value = float(excess / (ridge_limit(ratio, noise_var) - noise_var))
            yield {"source": "theory", "metric": "ratio", "value": value, "noise_var": noise_var, "d_over_l": ratio}
    for metric, noise_var in (*(("ratio", noise) for noise in noises), ("ratio_of_the_experiments", 0.1)):
        problem = (params.dim, params.length, float(noise_var))
        excess = debiased_gd_risk(best_debiased_gd_step(*problem), *problem) - noise_var
        value = float(excess / (ridge_risk(*problem) - noise_var))
        yield {"source": "exact", "metric": metric, "value": value, "noise_var": noise_var}
    for metric, official, limit in (("debiased gd", 3.442, debiased_gd_limit), ("ridge", 3.404, ridge_limit)):
        common = {"noise_var": 3.0, "d_over_l": 0.2}
        yield {"source": "official", "metric": metric, "value": official, "stderr": 0.009, **common}
        yield {"source": "theory", "metric": metric, "value": float(limit(0.2, 3.0)), **common}


def check_bayes(table: ResultTable, params: BayesParameters) -> Iterator[Check]:
    """Hold the official simulation against the limits, and the ratio against its two ends."""
    for metric in ("debiased gd", "ridge"):
        official, limit = (table.one(source=s, metric=metric) for s in ("official", "theory"))
        yield within_noise(f"{metric}, σ²=3, d/L=0.2", official["value"], limit["value"], official["stderr"])
    (first, second) = (table.value(source="theory", metric=metric) for metric in ("debiased gd", "ridge"))
    yield close("ratio to Bayes at σ²=3, d/L=0.2", (first - 3) / (second - 3), 1.097, absolute=1e-3)
    exact = table.where(source="exact", metric="ratio")
    if (params.dim, params.length) == (5, 40):
        usual = table.value(metric="ratio_of_the_experiments")
        yield close("ratio to Bayes at d=5, L=40, σ²=0.1", usual, 9.9, absolute=0.05)
    noisy = exact.column("value")[-1]
    yield close(f"ratio at σ²={params.noise_high:g}", float(noisy), 1.0, absolute=0.02)


def draw_bayes(table: ResultTable, figure: Figure) -> None:
    """Draw the ratio against the noise."""
    (axes,) = panels(figure, ["Excess risk of debiased GD over that of Bayes"])
    rows = table.where(source="theory", metric="ratio")
    for ratio, colour in zip(dict.fromkeys(rows.column("d_over_l")), (PURPLE, BLUE, GREEN, ORANGE, RED), strict=False):
        found = rows.where(d_over_l=ratio)
        axes.plot(found.column("noise_var"), found.column("value"), color=colour, label=f"d/L = {ratio:g}, limit")
    exact = table.where(source="exact", metric="ratio")
    axes.plot(exact.column("noise_var"), exact.column("value"), "--", color=GREY, label="d = 5, L = 40, exact")
    axes.set(xscale="log", yscale="log", xlabel="noise σ²", ylabel="ratio")
    legend(axes)


@dataclass(frozen=True)
class ClassicsParameters:
    """Parameters of the cross-checks with published results."""

    dim: int = 5
    length: int = 40
    rho: float = 0.5
    noise_var: float = 0.1
    prompts: int = 200
    ratio: float = 0.5
    sizes: tuple[int, ...] = (10, 20, 40)
    omega: float = 0.2
    lengths: tuple[int, ...] = (100, 1000, 10_000)

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require_problem(self.dim, self.length, self.noise_var)
        require(-1 < self.rho < 1, f"rho={self.rho}: rho must be between -1 and 1 (exclusive)")
        require(self.prompts >= 1, f"prompts={self.prompts} must be >= 1")
        require(0 < self.ratio <= 1, f"ratio={self.ratio} must lie in (0, 1]")
        require(len(self.sizes) >= 2 and min(self.sizes) >= 1, f"sizes={self.sizes} must be at least two, >= 1")
        require(0 < self.omega < 0.5, f"omega={self.omega} must lie in (0, 0.5)")
        require(len(self.lengths) >= 1 and min(self.lengths) >= 2, f"lengths={self.lengths} must each be >= 2")


def simulate_classics(params: ClassicsParameters, _cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Compute both sides of each published statement."""
    prompts = sample_prompts(params.prompts, params.length, params.dim, params.noise_var, np.random.default_rng(seed))
    yield _difference("one linear-attention layer is one GD step", _oswald(prompts))
    yield _difference("one head is a Gaussian kernel smoother", _nadaraya_watson(prompts, params.omega))
    cov = ar1_covariance(params.dim, params.rho)
    yield _difference("limit of trained linear attention is Γ*", _zhang(cov, params.length))
    yield _difference("global optimum in the eigenbasis is Γ*", _ahn(cov, params.length))
    shift = params.noise_var * params.ratio
    for size in params.sizes:
        degrees = round(size / params.ratio)
        exact = mean_inverse_trace(size, degrees, shift * degrees) * degrees / size
        yield {"source": "exact", "metric": "resolvent", "value": exact, "dim": size}
    limit = float(resolvent_limit(params.ratio, shift))
    yield {"source": "theory", "metric": "resolvent", "value": limit}
    bayes = params.noise_var * (1 + params.ratio * limit) if params.noise_var else 0.0
    yield _difference("Bayes limit by Marchenko-Pastur", bayes - float(ridge_limit(params.ratio, params.noise_var)))
    growth = 1 / (1 - 2 * params.omega**2)
    leading = growth ** (params.dim / 2) * (1 + params.noise_var + params.omega**2 * growth)
    yield {"source": "order1", "metric": "large_prompt", "value": leading}
    for length in params.lengths:
        a, b = quadratic_form([params.omega], params.dim, length, params.noise_var)
        value = length * float(b[0, 0] - 2 * params.omega * a[0] + params.omega**2)
        yield {"source": "exact", "metric": "large_prompt", "value": value, "length": length}


def check_classics(table: ResultTable, params: ClassicsParameters) -> Iterator[Check]:
    """Hold each difference against rounding, and each limit against the sizes that approach it."""
    for row in table.where(metric="difference"):
        yield below(row["statement"], row["value"], 1e-12)
    limit = table.value(source="theory", metric="resolvent")
    gaps = np.abs(table.where(source="exact", metric="resolvent").column("value") - limit)
    for size, gap in zip(params.sizes, gaps, strict=True):
        yield below(
            f"Wishart to Marchenko-Pastur, d={size}: d × gap", float(size * gap), float(1.2 * params.sizes[0] * gaps[0])
        )
    leading = table.value(source="order1", metric="large_prompt")
    longest = table.value(source="exact", metric="large_prompt", length=params.lengths[-1])
    bound = 10 / params.lengths[-1]
    yield close("L × squared distance of one head to linear attention", longest, leading, relative=bound)


def draw_classics(table: ResultTable, figure: Figure) -> None:
    """Draw the two limits and the sizes that approach them."""
    spectrum, prompt = panels(figure, ["Wishart to Marchenko-Pastur", "One head to linear attention"])
    rows = table.where(source="exact", metric="resolvent")
    spectrum.plot(rows.column("dim"), rows.column("value"), "o-", color=GREEN, label="exact at this size")
    limit = table.value(source="theory", metric="resolvent")
    spectrum.axhline(limit, color=GREY, ls="--", label="limit")
    spectrum.set(xscale="log", xlabel="d", ylabel="(1/d) E tr(XᵀX/L + λI)⁻¹")
    legend(spectrum)
    rows = table.where(source="exact", metric="large_prompt")
    prompt.plot(rows.column("length"), rows.column("value"), "o-", color=ORANGE, label="exact at this length")
    leading = table.value(source="order1", metric="large_prompt")
    prompt.axhline(leading, color=GREY, ls="--", label="first order in 1/L")
    prompt.set(xscale="log", xlabel="length L", ylabel="L × mean squared difference")
    legend(prompt)


def _oswald(prompts: Prompts) -> float:
    """Return how far one layer of linear attention is from one step of gradient descent."""
    x, y, x_q = prompts[:3]
    z = np.concatenate([x, y[..., None]], -1)  # (B, L, d + 1)
    z_q = np.pad(x_q, ((0, 0), (0, 1)))  # (B, d + 1)
    layer = linear_attention(z_q, z, *one_step_matrices(x.shape[-1], 0.9))[:, 0]  # (B,)
    return float(np.max(np.abs(layer - gd_estimator(x, y, x_q, 0.9))))


def _nadaraya_watson(prompts: Prompts, omega: float) -> float:
    """Return how far one head on unit vectors is from a Gaussian kernel of bandwidth ω^(−1/2)."""
    x, x_q = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (prompts.x, prompts.x_q))
    kernel = np.exp(-omega / 2 * np.sum((x - x_q[:, None]) ** 2, -1))  # (B, L)
    smoothed = np.sum(kernel * prompts.y, -1) / np.sum(kernel, -1)  # (B,)
    return float(np.max(np.abs(smoothed - softmax_estimator(x, prompts.y, x_q, [omega], [1.0]))))


def _zhang(cov: np.ndarray, length: int) -> float:
    """Return how far the matrix of Zhang, Frei and Bartlett is from the noiseless preconditioner."""
    limit = np.linalg.inv((1 + 1 / length) * cov + np.trace(cov) / length * np.eye(len(cov)))
    return float(np.max(np.abs(limit - preconditioner(cov, length, 0.0, debiased=False))))


def _ahn(cov: np.ndarray, length: int) -> float:
    """Return how far the eigenbasis form of Ahn et al. is from the noiseless preconditioner."""
    values, basis = np.linalg.eigh(cov)
    weights = 1 / ((length + 1) / length * values + values.sum() / length)
    return float(np.max(np.abs(basis * weights @ basis.T - preconditioner(cov, length, 0.0, debiased=False))))


def _difference(statement: str, value: float) -> Row:
    return {"source": "theory", "metric": "difference", "value": abs(value), "statement": statement}


def _softmax(heads: tuple[Any, Any], x: np.ndarray, y: np.ndarray, x_q: np.ndarray) -> np.ndarray:
    return softmax_estimator(x, y, x_q, *heads)


def _stepped(estimator: Callable[..., np.ndarray], step: float | np.ndarray, *prompt: np.ndarray) -> np.ndarray:
    return estimator(*prompt, step)


def _ridge(ridge: float, x: np.ndarray, y: np.ndarray, x_q: np.ndarray) -> np.ndarray:
    return ridge_estimator(x, y, x_q, ridge)


def _linear(step: float, train_length: int, x: np.ndarray, y: np.ndarray, x_q: np.ndarray) -> np.ndarray:
    return gd_estimator(x, y, x_q, step * x.shape[1] / train_length)


def _measured(
    estimators: Mapping[str, Estimator],
    prompts: int,
    problem: tuple[int, int, float],
    rng: np.random.Generator,
    cov: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """Return mean squared error and its standard error for each estimator, all on the same prompts."""
    dim, length, noise_var = problem
    errors: dict[str, list[np.ndarray]] = {name: [] for name in estimators}
    rows = max(1, 200_000 // (length * dim))  # prompts to hold at once
    for start in range(0, prompts, rows):
        batch = sample_prompts(min(rows, prompts - start), length, dim, noise_var, rng, cov=cov)
        for name, estimator in estimators.items():
            errors[name].append((estimator(batch.x, batch.y, batch.x_q) - batch.y_q) ** 2)
    joined = {name: np.concatenate(parts) for name, parts in errors.items()}
    return {name: (float(e.mean()), float(e.std(ddof=1) / np.sqrt(prompts))) for name, e in joined.items()}


def _beside(
    measured: Mapping[str, tuple[float, float]], predicted: Mapping[str, float], prompts: int, cell: Cell
) -> Iterator[Row]:
    """Return the rows of measured and predicted losses."""
    for model, (value, stderr) in measured.items():
        common = {"stderr": stderr, "n_samples": prompts, "model": model, **cell}
        yield {"source": "simulation", "metric": "loss", "value": value, **common}
    for model, value in predicted.items():
        yield {"source": "exact", "metric": "loss", "value": value, "model": model, **cell}


RISKS = (
    Experiment(
        "icl_regression/estimators",
        "Two heads cost what debiased gradient descent costs, at every length; all five curves are exact.",
        EstimatorsParameters,
        simulate_estimators,
        check_estimators,
        draw_estimators,
        length_cells,
        quick={"lengths": (10, 40), "prompts": 5000},
    ),
    Experiment(
        "icl_regression/length",
        "A softmax pair carries its 1/L to any length; linear attention that was trained at one does not.",
        LengthParameters,
        simulate_lengths,
        check_lengths,
        draw_lengths,
        length_cells,
        quick={"lengths": (10, 40, 160), "prompts": 5000},
    ),
    Experiment(
        "icl_regression/preconditioning",
        "On correlated covariates the best step is a matrix, and two heads can take it.",
        PreconditioningParameters,
        simulate_preconditioning,
        check_preconditioning,
        draw_preconditioning,
        rho_cells,
        quick={"prompts": 5000},
    ),
    Experiment(
        "icl_regression/bayes_ratio",
        "Debiased gradient descent is near Bayes where noise dominates, and far from it where it does not.",
        BayesParameters,
        simulate_bayes,
        check_bayes,
        draw_bayes,
        quick={"points": 11},
    ),
    Experiment(
        "icl_regression/classics",
        "Published results on linear attention, ridge and kernels, recovered by the same functions.",
        ClassicsParameters,
        simulate_classics,
        check_classics,
        draw_classics,
        quick={"prompts": 20},
    ),
)
