"""The default error model: run the reference a few times on arrays that err at random, and measure how far it moves.

A mechanism needs no error analysis of its own to be judged by the seven rules of `verdict`; one that has a derived
analysis (attention) uses that instead. What errs, and by how much, stands in `arithmetic`. From the spread of the runs:

* sigma, elementwise: the mean square of an element's deviations, averaged in equal parts with the mean square of its
  row (a few samples of one element say little; a row of them says enough), never below half the typical relative spread
  of all rows, plus the rounding of the output itself, u_o²y²/3, and 3 half steps near zero;
* twin, per row: the largest deviation among the runs;
* coherent, per row: how much of its deviation all elements share (a gate, a norm), from the agreement of the runs'
  directions; and for rule 5 how much of it all rows share, from the agreement of the runs' sizes;
* bound, elementwise: ``1.5 sqrt(2 ln(elements / 1e-6)) sigma + u_o |y| + eta``: the Gaussian tail over all elements;
* open rows: those that move by more than a quarter of their norm; those of integer outputs that differ between runs;
  those that leave their limits when every decision that rounding may turn is turned (see `arithmetic`);
* float64 cannot show its own rounding errors: its runs use 2^17 times larger ones and the spread is divided. The
  reference itself is a float64 computation then, hence a factor sqrt 2.

Eight runs are what rows need whose elements err together: four may all happen to err little in the direction that a
kernel takes. Narrow or single rows get up to sixteen, so that sigma always rests on at least sixteen numbers. The page
on false alarms is the calibration of these constants.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.conformance.arithmetic import NEAR_OVERFLOW, MonteCarloArithmetic, steering
from refattn.conformance.budget import CASE_ALARM, POOLED_LIMIT, SAFETY, Budget, row_limits, row_norm
from refattn.conformance.contract import unpack
from refattn.conformance.perturbed import Perturbed, bare
from refattn.conformance.precision import Precision, overflow_threshold, precision_class

if TYPE_CHECKING:
    from refattn.conformance.contract import Case, Entry, Outputs

__all__ = ["MonteCarloArithmetic", "Perturbed", "monte_carlo_budgets", "perturbed_outputs"]

FLOAT64_MAGNIFIER = 2.0**17  # 2^-53 becomes 2^-36: visible in float64, still linear
STEERED = (1, -1)  # the directions in which decisions are turned
OPEN_SPREAD = 0.25  # of the row's norm
ELEMENT_SAFETY = 1.5
ELEMENT_ALARM = 1e-6
ENOUGH = 16  # numbers that a variance should rest on


class _Runs(NamedTuple):
    """All runs of one output in rows: y (R, C), deviations of erring (K, R, C) and of steered runs (0 or 2, R, C)."""

    y: np.ndarray
    deviations: np.ndarray
    steered: np.ndarray
    lost: np.ndarray  # (R,) rows at the end of the range, or in which a run was not finite although the reference is
    magnify: float


def perturbed_outputs(entry: Entry, case: Case, arithmetic: MonteCarloArithmetic) -> Outputs:
    """Run the reference once in erring arithmetic; its outputs as plain arrays."""

    def convert(x: np.ndarray) -> np.ndarray:
        return Perturbed.of(np.asarray(x, np.float64).copy(), arithmetic) if x.dtype.kind == "f" else x

    with np.errstate(all="ignore"):
        result = entry.invoke(entry.reference, case, convert)
    return {name: np.asarray(bare(x)) for name, x in unpack(result, entry.outputs).items()}


def monte_carlo_budgets(
    entry: Entry,
    case: Case,
    precision_name: str | None = None,
    *,
    samples: int = 8,
    seed: int = 0,
    rough: int = 0,
) -> dict[str, Budget]:
    """Derive the budget of every output of a case from the spread of a few erring runs of its reference.

    Parameters
    ----------
    entry : Entry
        Whose reference is run.
    case : Case
        On which arrays and options.
    precision_name : str, optional
        Precision class that the backend declares.
    samples : int
        Runs for outputs with wide rows; narrow ones get up to sixteen.
    seed : int
        Of the errors. The same seed gives the same budget.
    rough : int
        If positive, so many runs whatever the width of the rows, and no decision is turned.

    Returns
    -------
    dict of str to Budget
    """
    precision = precision_class(precision_name, case.dtype)
    expected = entry.expected(case)
    samples = rough or max(samples, max((_samples_for(y) for y in expected.values()), default=1))
    magnify = FLOAT64_MAGNIFIER if case.dtype == "float64" else 1.0
    seeds = np.random.SeedSequence([seed, *b"errs"]).spawn(samples)
    machines = [MonteCarloArithmetic(precision, np.random.default_rng(s), magnify=magnify) for s in seeds]
    runs = [perturbed_outputs(entry, case, machine) for machine in machines]
    moves = None if rough else steering([machine.sites for machine in machines], magnify)
    for sign in STEERED if moves else ():
        steered = MonteCarloArithmetic(precision, np.random.default_rng(0), magnify=0.0, moves=moves, sign=sign)
        with suppress(ValueError, ArithmeticError, np.linalg.LinAlgError):  # a turned decision may lead nowhere
            runs.append(perturbed_outputs(entry, case, steered))
    terms = max(machine.terms for machine in machines)
    return {
        name: _budget(
            np.asarray(y), [run[name] for run in runs], samples, magnify=magnify, terms=terms, precision=precision
        )
        for name, y in expected.items()
    }


def _samples_for(y: np.ndarray) -> int:
    """Return how many runs give each variance enough numbers to rest on."""
    width = y.shape[-1] if y.ndim else 1
    narrowest = min(width, y.size // max(width, 1))
    return -(-ENOUGH // max(narrowest, 1)) if y.size else 1


@np.errstate(all="ignore")
def _budget(
    y: np.ndarray, outputs: list[np.ndarray], samples: int, *, magnify: float, terms: int, precision: Precision
) -> Budget:
    """Turn the runs of one output into its budget; the last runs are the steered ones."""
    zeros, rows = np.zeros(y.shape), y.shape[:-1]
    if any(run.shape != y.shape for run in outputs):
        why = "the shape of this output depends on rounding: nothing can be certified"
        return Budget(y, zeros + np.inf, zeros, open=True, terms=terms, precision=precision, derivation=why)
    if y.dtype.kind in "biu":
        differs = np.any([run != y for run in outputs], axis=(0, -1) if y.ndim else 0)
        why = "compared exactly, but in rows where an erring run decided otherwise"
        return Budget(y, zeros, zeros, open=differs, terms=terms, precision=precision, derivation=why)
    runs = _in_rows(y, outputs, samples, magnify=magnify, dtype=precision.dtype)
    sigma = _sigma(runs, precision)
    twin = np.max(row_norm(runs.deviations), axis=0, initial=0.0)
    budget = Budget(
        y,
        _bound(runs, sigma, precision).reshape(y.shape),
        sigma.reshape(y.shape),
        twin.reshape(rows),
        flush=precision.flush_floor(terms),
        terms=terms,
        precision=precision,
        coherent=_coherent(runs, sigma).reshape(rows),
        pooled_limit=_pooled_limit(runs, sigma, twin),
    )
    return _with_open_rows(budget, runs, samples)


def _in_rows(y: np.ndarray, outputs: list[np.ndarray], samples: int, *, magnify: float, dtype: str) -> _Runs:
    width = y.shape[-1] if y.ndim else 1
    shape = (math.prod(y.shape[:-1]), width)
    finite = np.isfinite(y).reshape(shape)
    flat = np.where(finite, y.reshape(shape), 0.0)
    moved = np.stack([run.reshape(shape) for run in outputs])
    near = NEAR_OVERFLOW * overflow_threshold(dtype)
    lost = np.any(finite & ~np.isfinite(moved), axis=(0, 2)) | np.any(np.abs(flat) >= near, axis=1)
    usable = finite & np.isfinite(moved)
    deviations = np.where(usable, np.where(usable, moved, 0.0) - flat, 0.0)
    return _Runs(flat, deviations[:samples] / magnify, deviations[samples:], lost, magnify)


def _typical(values: np.ndarray) -> float:
    """Median of the positive entries."""
    return float(np.median(values[values > 0])) if np.any(values > 0) else 0.0


def _sigma(runs: _Runs, precision: Precision) -> np.ndarray:
    """Statistical scale of every element, from the deviations of the ordinary runs."""
    size = np.mean(runs.y**2, axis=1, keepdims=True) if runs.y.size else np.zeros((len(runs.y), 1))
    own = np.mean(runs.deviations**2, axis=0)
    row = np.mean(own, axis=1, keepdims=True) if own.size else np.zeros_like(size)
    relative = np.divide(row, size, out=np.zeros_like(row), where=size > 0)
    row = np.maximum(row, 0.5 * _typical(relative) * size)
    # within a row, errors grow with the entries
    row = row * np.maximum(1.0, np.divide(runs.y**2, size, out=np.ones_like(runs.y), where=size > 0))
    variance = 0.5 * own + 0.5 * row
    if precision.dtype == "float64":
        variance = 2.0 * variance
    return np.asarray(np.sqrt(variance + (precision.u_o**2 * runs.y**2 + 3.0 * precision.eta_o**2) / 3.0))


def _bound(runs: _Runs, sigma: np.ndarray, precision: Precision) -> np.ndarray:
    t = np.sqrt(2.0 * np.log(max(runs.y.size, 1) / ELEMENT_ALARM))
    return np.asarray(ELEMENT_SAFETY * t * sigma + precision.u_o * np.abs(runs.y) + precision.eta_o)


def _coherent(runs: _Runs, sigma: np.ndarray) -> np.ndarray:
    """Return, per row, the scale of the error that all its elements share.

    Deviations of one direction have a Gram matrix of rank one, independent ones a multiple of the identity; the share
    of squares off the diagonal, beyond what chance gives so few runs, tells them apart.
    """
    count, _, width = runs.deviations.shape
    gram = np.einsum("krc,lrc->rkl", runs.deviations, runs.deviations)
    trace = np.trace(gram, axis1=1, axis2=2)
    square = np.sum(gram**2, axis=(1, 2))
    share = np.divide(square, trace**2, out=np.zeros_like(trace), where=trace > 0)
    chance = min(1.0, 1.0 / count + 1.0 / max(width, 1))
    common = np.clip((share - chance) / max(1.0 - chance, 1e-9), 0.0, 1.0)
    return np.asarray(np.sqrt(common) * row_norm(sigma))


def _pooled_limit(runs: _Runs, sigma: np.ndarray, twin: np.ndarray) -> float:
    """Return what rule 5 may allow: 2, or more where few rows, or rows that err together, leave much to chance."""
    scale = np.maximum(row_norm(sigma), twin)
    live = scale > 0
    if not live.any():
        return POOLED_LIMIT
    mean_squares = np.mean((row_norm(runs.deviations)[:, live] / scale[live]) ** 2, axis=1)  # one a run
    typical, spread = float(np.mean(mean_squares)), float(np.var(mean_squares, ddof=1))
    freedom = max(1.0, 2.0 * typical**2 / spread) if spread > 0 else np.inf
    reach = 1.0 + np.sqrt(2.0 * np.log(1.0 / CASE_ALARM) / freedom)
    return max(POOLED_LIMIT, SAFETY * float(np.sqrt(typical) * reach))


def _with_open_rows(budget: Budget, runs: _Runs, samples: int) -> Budget:
    """Open the rows that cannot be certified; those that cross a decision need only stay within reach of the output."""
    shape, rows = budget.bound.shape, np.shape(budget.twin)
    size = row_norm(runs.y)
    spread = np.sqrt(np.mean(np.sum(runs.deviations**2, axis=-1), axis=0)) * runs.magnify
    jumped = np.max(row_norm(runs.steered), axis=0, initial=0.0) > row_limits(budget).reshape(-1)
    stagnates = budget.terms * budget.precision.u_a > 0.5
    is_open = jumped | runs.lost | stagnates | (spread > OPEN_SPREAD * np.maximum(size, _typical(size)))
    reach = 100.0 * np.max(np.abs(runs.y), initial=0.0)
    bound = budget.bound.reshape(runs.y.shape)
    bound = np.where(jumped[:, None], np.maximum(bound, reach), bound)
    bound = np.where(runs.lost[:, None], np.inf, bound)
    share = float(np.mean(is_open)) if is_open.size else 0.0
    return budget._replace(
        bound=bound.reshape(shape),
        open=is_open.reshape(rows),
        derivation=_derivation(budget.precision, samples, budget.terms, share),
    )


def _derivation(precision: Precision, samples: int, terms: int, share: float) -> str:
    enlarged = f", errors enlarged by {FLOAT64_MAGNIFIER:.0f} and the spread divided" if precision.u_o < 2e-16 else ""
    return (
        f"Monte Carlo arithmetic, class {precision.name} of {precision.dtype}: {samples} runs of the reference in\n"
        f"which every result errs by up to {precision.u_s:.3g}, matrix operands by {precision.u_p:.3g}, sums (of up to "
        f"{terms} terms) by {precision.u_a:.3g} a step{enlarged}\n"
        f"sigma² = (the element's + its row's mean square deviation) / 2 + (u_o y)²/3, u_o = {precision.u_o:.3g}\n"
        f"bound = {ELEMENT_SAFETY} sqrt(2 ln(elements / {ELEMENT_ALARM:g})) sigma + u_o |y| + {precision.eta_o:.3g}\n"
        "row limit = max(1.5 (|sigma| + sqrt(2 ln(rows / 1e-6)) max sigma), 4 times the largest deviation of a run)\n"
        f"open rows: {share:.1%}"
    )
