"""Errors predicted from theory: from the kernel's spectrum, and in closed form for two models with double descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from theory.experiment import Cell, Experiment
from theory.random_feature_heads.drawing import COLOURS, GREY, legend, panels
from theory.random_feature_heads.fits import fit_leading, model_features
from theory.random_feature_heads.risks import mei_montanari_risk, omniscient_risk, relu_moments, ridgeless_risk
from theory.random_feature_heads.samplers import Dims, checked, sample_task, sphere
from theory.random_feature_heads.summaries import levels, mean_of
from theory.verdict import Check, between, within_noise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from theory.table import ResultTable, Row

__all__ = ["RISKS", "Linear", "RandomFeatures", "Spectrum", "least_squares_risk", "random_feature_risk"]


@dataclass(frozen=True)
class Spectrum:
    """Sizes of the prediction from the spectrum.

    Attributes
    ----------
    d, n_keys, n_heads, n_test, replicas : int
        d, N, M, test inputs, independent draws.
    inputs : int
        Inputs that the spectrum is estimated from.
    ns : tuple of int
        Training inputs.
    target : str
        See `theory.random_feature_heads.samplers.target_values`.
    ridge_rel : float
        λ_rel.
    """

    d: int = 4
    n_keys: int = 8
    n_heads: int = 500
    n_test: int = 2000
    replicas: int = 4
    inputs: int = 3000
    ns: tuple[int, ...] = (64, 128, 256, 512)
    target: str = "f1:2"
    ridge_rel: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        for name in ("d", "n_keys", "n_heads", "replicas"):
            checked(name, getattr(self, name), 1)
        checked("inputs", self.inputs, max(self.ns))
        checked("ns", self.ns, 2)


@dataclass(frozen=True)
class RandomFeatures:
    """Sizes of ridge regression on random features of one token.

    Attributes
    ----------
    d, draws : int
        Coordinates; independent draws at each point.
    psi1, psi2, ridges : tuple of float
        Features and inputs per coordinate, and λ; the points are taken in this order.
    noise_var : float
        τ².
    """

    d: int = 100
    draws: int = 24
    psi1: tuple[float, ...] = (1.0, 3.0, 2.0, 5.0, 2.0)
    psi2: tuple[float, ...] = (2.0, 2.0, 2.0, 3.0, 4.0)
    ridges: tuple[float, ...] = (0.01, 0.01, 0.1, 0.001, 1e-4)
    noise_var: float = 0.25

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive and lists of different lengths."""
        checked("d", self.d, 2)
        checked("draws", self.draws, 2)
        for name in ("psi1", "psi2", "ridges"):
            checked(name, getattr(self, name), 1e-6)
        if not len(self.psi1) == len(self.psi2) == len(self.ridges):
            raise ValueError(f"psi1={self.psi1!r}, psi2={self.psi2!r}, ridges={self.ridges!r}: expected equal lengths")


@dataclass(frozen=True)
class Linear:
    """Sizes of least squares without a ridge.

    Attributes
    ----------
    n, draws : int
        Training inputs; independent draws at each point.
    ratios : tuple of float
        γ = d/n, none of them 1.
    signal, noise_var : float
        ‖β‖ and σ².
    """

    n: int = 200
    draws: int = 40
    ratios: tuple[float, ...] = (0.2, 0.5, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0)
    signal: float = 1.0
    noise_var: float = 0.25

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive, and the ratio at which the risk is infinite."""
        checked("n", self.n, 4)
        checked("draws", self.draws, 2)
        checked("ratios", self.ratios, 0.01)
        if any(round(ratio * self.n) in range(self.n - 2, self.n + 3) for ratio in self.ratios):
            raise ValueError(f"ratios={self.ratios!r} must keep two coordinates away from n={self.n!r}")


def spectrum_cells(p: Spectrum) -> list[Cell]:
    """Return one cell for each replica."""
    return [{"replica": r} for r in range(p.replicas)]


def simulate_spectrum(p: Spectrum, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Fit heads to inputs of one sample, and predict the errors from the spectrum of another."""
    rng = np.random.default_rng(seed)
    n = max(p.ns)
    task = sample_task(n + p.n_test + p.inputs, Dims(p.d, p.n_keys, p.n_heads), [p.target], rng)
    phi = model_features("rfa", Dims(p.d, p.n_keys, p.n_heads), rng, np.float64)(task)
    known, fitted = slice(n + p.n_test, None), slice(n + p.n_test)
    variance = task.y[n : n + p.n_test].var()
    ridge = p.ridge_rel * float(np.mean(np.sum(phi[:n] ** 2, axis=1)))
    eigenvalues, coefficients, rest = _eigenframe(phi[known], task.y[known, 0])
    gram = phi[fitted] @ phi[:n].T
    for found in fit_leading(gram, task.y[fitted], p.ns, [p.ridge_rel]):
        shared = {**cell, "n": found.n, "n_samples": p.n_test}
        predicted = omniscient_risk(eigenvalues, coefficients, found.n, ridge, rest)
        yield {**shared, "source": "simulation", "metric": "test_error", "value": float(found.test[0] / variance)}
        yield {**shared, "source": "theory", "metric": "test_error", "value": float(predicted / variance)}


def spectrum_checks(table: ResultTable, p: Spectrum) -> Iterator[Check]:
    """Hold the prediction within a factor of 1.5."""
    for n in p.ns:
        measured, predicted = (mean_of(table, source=s, n=n).value for s in ("simulation", "theory"))
        yield between(f"n = {n}: error over its prediction from the spectrum", measured / predicted, 1 / 1.5, 1.5)


def feature_cells(p: RandomFeatures) -> list[Cell]:
    """Return one cell for each point."""
    points = zip(p.psi1, p.psi2, p.ridges, strict=True)
    return [{"psi1": a, "psi2": b, "ridge": ridge} for a, b, ridge in points]


def simulate_features(p: RandomFeatures, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure the risk of random-feature ridge regression, and predict it."""
    rng = np.random.default_rng(seed)
    risks = [random_feature_risk(p.d, **cell, noise_var=p.noise_var, rng=rng) for _ in range(p.draws)]
    exact = mei_montanari_risk(cell["psi1"], cell["psi2"], cell["ridge"], 1.0, p.noise_var, relu_moments())
    yield {
        **cell,
        "source": "simulation",
        "metric": "risk",
        "value": float(np.mean(risks)),
        "stderr": float(np.std(risks, ddof=1) / np.sqrt(p.draws)),
        "n_samples": p.draws,
    }
    for metric, value in (("risk", exact.total), ("bias", exact.bias), ("variance", exact.variance)):
        yield {**cell, "source": "theory", "metric": metric, "value": value}


def random_feature_risk(
    d: int, *, psi1: float, psi2: float, ridge: float, noise_var: float, rng: np.random.Generator, n_test: int = 2000
) -> float:
    """Return the risk of one draw of random-feature ridge regression on a linear target of norm 1.

    Parameters
    ----------
    d : int
        Coordinates; inputs and weights lie on the sphere of radius √d.
    psi1, psi2, ridge, noise_var
        As in `mei_montanari_risk`.
    rng : numpy.random.Generator
        Draws everything.
    n_test : int
        Test inputs, without noise.
    """
    n, features = round(psi2 * d), round(psi1 * d)
    theta, x, beta = np.sqrt(d) * sphere(rng, features, d), np.sqrt(d) * sphere(rng, n + n_test, d), sphere(rng, d)
    z = np.maximum(x @ theta.T / np.sqrt(d), 0.0)
    clean = x @ beta
    y = clean[:n] + np.sqrt(noise_var) * rng.standard_normal(n)
    scatter = z[:n].T @ z[:n] / n + features * ridge / d * np.eye(features)
    a = np.linalg.solve(scatter, z[:n].T @ y / n)
    return float(np.mean((clean[n:] - z[n:] @ a) ** 2))


def feature_checks(table: ResultTable, p: RandomFeatures) -> Iterator[Check]:
    """Hold the mean over the draws within four standard errors of the limit."""
    for cell in feature_cells(p):
        row = table.one(source="simulation", metric="risk", **cell)
        name = ", ".join(f"{key} = {value:g}" for key, value in cell.items())
        yield within_noise(name, row["value"], table.value(source="theory", metric="risk", **cell), row["stderr"])


def linear_cells(p: Linear) -> list[Cell]:
    """Return one cell for each ratio."""
    return [{"ratio": ratio} for ratio in p.ratios]


def simulate_linear(p: Linear, cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    """Measure the risk of least squares, and predict it."""
    rng = np.random.default_rng(seed)
    d = round(cell["ratio"] * p.n)
    risks = [least_squares_risk(p.n, d, signal=p.signal, noise_var=p.noise_var, rng=rng) for _ in range(p.draws)]
    yield {
        **cell,
        "source": "simulation",
        "metric": "risk",
        "value": float(np.mean(risks)),
        "stderr": float(np.std(risks, ddof=1) / np.sqrt(p.draws)),
        "n_samples": p.draws,
    }
    yield {**cell, "source": "theory", "metric": "risk", "value": ridgeless_risk(d / p.n, p.signal, p.noise_var).total}
    yield {**cell, "source": "exact", "metric": "risk", "value": finite_risk(p.n, d, p.signal, p.noise_var)}


def least_squares_risk(n: int, d: int, *, signal: float, noise_var: float, rng: np.random.Generator) -> float:
    """Return the risk of one draw of least squares of least norm, averaged over the noise."""
    x = rng.standard_normal((n, d))
    beta = signal * sphere(rng, d)
    inverse = np.linalg.pinv(x)  # (d, n)
    missed = beta - inverse @ (x @ beta)
    return float(missed @ missed + noise_var * np.sum(inverse**2))


def finite_risk(n: int, d: int, signal: float, noise_var: float) -> float:
    """Return the mean of `least_squares_risk` over the draws, exact for normal inputs of any size.

    The trace of an inverse Wishart matrix of m > k + 1 degrees of freedom in k dimensions has the mean k/(m − k − 1).
    """
    if d < n:
        return noise_var * d / (n - d - 1)
    return signal**2 * (1 - n / d) + noise_var * n / (d - n - 1)


def linear_checks(table: ResultTable, p: Linear) -> Iterator[Check]:
    """Hold the mean over the draws within four standard errors of the exact mean, which tends to the limit."""
    for ratio in p.ratios:
        row = table.one(source="simulation", ratio=ratio)
        exact, limit = (table.value(source=source, ratio=ratio) for source in ("exact", "theory"))
        yield within_noise(f"d/n = {ratio:g}", row["value"], exact, row["stderr"])
        if abs(ratio - 1) > 0.15:
            yield between(f"d/n = {ratio:g}: exact mean over the limit of large sizes", exact / limit, 0.9, 1.1)


def draw_spectrum(table: ResultTable, figure: Figure) -> None:
    """Draw measured errors as points, predicted ones as a line."""
    (axes,) = panels(figure, ["The error that the spectrum predicts"], height=4.2)
    ns = levels(table, "n")
    for source, mark, name in (("theory", "-", "predicted"), ("simulation", "o", "measured")):
        values = [mean_of(table, source=source, n=n).value for n in ns]
        colour = COLOURS["kernel"] if source == "theory" else COLOURS["rfa"]
        axes.loglog(ns, values, mark, ms=6, lw=1.4, color=colour, label=name)
    axes.set(xlabel="training inputs n", ylabel="error / variance")
    legend(axes, loc="upper right")


def draw_features(table: ResultTable, figure: Figure) -> None:
    """Draw the exact risk over the number of features for each ridge, and the measured points beside it."""
    (axes,) = panels(figure, ["Random features of one token"], height=4.2)
    points = sorted({(row["psi2"], row["ridge"]) for row in table.where(metric="risk")})
    grid = np.geomspace(0.3, 12, 60)
    for (psi2, ridge), colour in zip(points, (*COLOURS.values(), GREY), strict=False):
        exact = [mei_montanari_risk(a, psi2, ridge, 1.0, 0.25, relu_moments()).total for a in grid]
        axes.loglog(grid, exact, color=colour, lw=1.3, label=f"n/d = {psi2:g}, λ = {ridge:g}")
        for row in table.where(source="simulation", psi2=psi2, ridge=ridge):
            axes.errorbar(row["psi1"], row["value"], 2 * row["stderr"], fmt="o", ms=5, color=colour)
    axes.set(xlabel="features per coordinate ψ₁", ylabel="risk")
    legend(axes, loc="upper left")


def draw_linear(table: ResultTable, figure: Figure) -> None:
    """Draw the limit as a line and the measured risk as points."""
    (axes,) = panels(figure, ["Least squares of least norm"], height=4.2)
    shown = table.where(source="simulation")
    for side in (np.linspace(0.1, 0.97, 80), np.linspace(1.03, 4.2, 120)):
        axes.semilogy(side, [ridgeless_risk(g, 1.0, 0.25).total for g in side], color=COLOURS["kernel"], lw=1.3)
    places, values, errors = (shown.column(name) for name in ("ratio", "value", "stderr"))
    axes.errorbar(places, values, 2 * errors, fmt="o", ms=5, color=COLOURS["rfa"])
    axes.axvline(1.0, color=GREY, lw=1.0, ls=":")
    axes.set(xlabel="coordinates per input d/n", ylabel="risk")


def _eigenframe(phi: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return eigenvalues of the feature covariance, the target's squared coefficients, and what lies outside."""
    n = len(phi)
    centred = y - y.mean()
    eigenvalues, basis = np.linalg.eigh(phi @ phi.T / n)
    kept = eigenvalues > 1e-12 * eigenvalues[-1]
    coefficients = (basis.T @ centred) ** 2 / n
    return eigenvalues[kept], coefficients[kept], float(np.sum(coefficients[~kept]))


RISKS = (
    Experiment(
        "random_feature_heads/spectrum",
        "The spectrum of the kernel and of the target predict the learning curve",
        Spectrum,
        simulate_spectrum,
        spectrum_checks,
        draw_spectrum,
        spectrum_cells,
        quick={"inputs": 1200, "n_heads": 200, "n_test": 800, "ns": (64, 128, 256), "replicas": 2},
    ),
    Experiment(
        "random_feature_heads/random_features",
        "Random-feature ridge regression follows its exact limit",
        RandomFeatures,
        simulate_features,
        feature_checks,
        draw_features,
        feature_cells,
        quick={"d": 60, "draws": 10},
    ),
    Experiment(
        "random_feature_heads/ridgeless",
        "Least squares without a ridge has its peak where inputs and coordinates are equally many",
        Linear,
        simulate_linear,
        linear_checks,
        draw_linear,
        linear_cells,
        quick={"n": 80, "draws": 20},
    ),
)
