"""Budgets of the forward pass of attention: the output, the log-sum-exp, the weights and what comes before them.

Equation source: the attention sheet, section 2.8, for the output; the others follow from the same ε [our definition].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.precision import Precision, precision_class
from refattn.contracts.attention.error_budgets import Fields, finished, in_layout, open_rows
from refattn.contracts.attention.error_steps import (
    C_E,
    Exact,
    LogitErrors,
    exact_run,
    least_denominator,
    logit_errors,
    output_errors,
    scale_of,
    sum_error,
)
from refattn.contracts.attention.error_twins import twin_run

if TYPE_CHECKING:
    from refattn.conformance.budget import Budget
    from refattn.conformance.contract import Case

__all__ = ["attention_budget"]


def attention_budget(case: Case, precision: Precision | str | None = None) -> dict[str, Budget]:
    """Return the budget of every output that a case of `attention` asks for.

    Parameters
    ----------
    case : Case
        Arrays q, k, v and optionally mask, bias, sinks, alibi_slopes, lengths and documents; options as in
        `refattn.primitives.attention.attention`.
    precision : Precision or str, optional
        The declared class, or its name.

    Returns
    -------
    dict of str to Budget
        ``out``, and ``lse``, ``weights``, ``logits``, ``scores``, ``softcapped`` where asked for. Each element of the
        log-sum-exp is a row of its own.
    """
    u = precision if isinstance(precision, Precision) else precision_class(precision, case.dtype)
    x = exact_run(case.arrays, case.options)
    names = case.options.get("returns", ("out",))
    errors, own = logit_errors(x, u), logit_errors(x, _float64())
    low = twin_run(x.call, x.forward, u)
    n = int(x.n.max(initial=1))
    makers = {"out": _out, "lse": _lse, "weights": _weights}
    budgets = {}
    for name in (names,) if isinstance(names, str) else names:
        known = name in makers
        fields = makers[name](x, errors, own, u) if known else _before_the_sum(x, errors, own, u, name=name)
        budget = finished(fields, getattr(low, name), u, n)
        budgets[name] = in_layout(budget, x.call.layout) if name == "out" else budget
    return budgets


def _float64() -> Precision:
    return precision_class(None, "float64")


def _out(x: Exact, e: LogitErrors, own: LogitErrors, u: Precision) -> Fields:
    (bound, sigma, spread), reference = output_errors(x, [(e, u), (own, _float64())])
    # a row with a sink and nothing visible is exactly 0 under every policy
    empty = x.empty | (np.sum(x.visible, axis=-1) == 0)
    lines = (
        "bound = logits that err by epsilon, inside the hull of the visible values (B1) + weights and sums (B2) + "
        "rounding of the output (B3) + the reference's own error\n"
        "sigma² = (sum p² w (v - y)² + u_p² sum p² v² + u_o² y² + n u_a² (sum p² v² / 2 + 2 y² / 3)) / 3"
    )
    return Fields(x.forward.out, bound + reference.bound, sigma, empty, open_rows(x, spread, u), 1, lines)


@np.errstate(all="ignore")
def _lse(x: Exact, e: LogitErrors, own: LogitErrors, u: Precision) -> Fields:
    """L moves by at most log Σ p e^ε; its sum, its logarithm and its own storage come on top."""

    def bound(errors: LogitErrors, v: Precision) -> np.ndarray:
        most = np.sum(P * np.exp(errors.epsilon), axis=-1) + np.sum(P_sink * np.exp(errors.sink), axis=-1)
        moved = np.maximum(np.log(most), -np.log(least_denominator(x, errors)[..., 0]))
        rest = sum_error(n, v) + 3 * C_E * v.u_e + v.u_e * (np.abs(m) + np.abs(L - m) + np.abs(L))
        return np.asarray(moved + rest + v.u_o * (np.abs(L) + moved) + v.eta_o)

    P, P_sink, m, n = x.forward.weights, x.forward.sink_weights, x.m[..., 0], x.n[..., 0]
    L = np.where(np.isfinite(x.forward.lse), x.forward.lse, 0.0)
    squares = np.sum(P**2, axis=-1)
    variance = np.sum(P**2 * e.w, axis=-1) + n * u.u_a**2 * (squares / 2 + 2 / 3) + u.u_e**2 * (C_E**2 + m**2 + L**2)
    sigma = scale_of(variance + u.u_o**2 * L**2, u)
    live = np.isfinite(x.forward.lse)
    total = np.where(live, bound(e, u) + bound(own, _float64()), 0.0)
    spread = np.sqrt(np.sum(np.where(live[..., None], P * e.w, 0.0), axis=-1) / 3)
    lines = "bound = log sum p e^epsilon + error of the sum and the logarithm + u_o |L| + the reference's own error"
    return Fields(x.forward.lse, total, np.where(live, sigma, 0.0), ~live, open_rows(x, spread, u) & live, 0, lines)


@np.errstate(all="ignore")
def _weights(x: Exact, e: LogitErrors, own: LogitErrors, u: Precision) -> Fields:
    """P moves by at most the factor e^ε / Σ p e^{−ε}, and stays between 0 and 1."""

    def bound(errors: LogitErrors, v: Precision) -> np.ndarray:
        moved = P * (np.exp(errors.epsilon) / least_denominator(x, errors) - 1)
        moved = np.fmin(moved, np.maximum(P, 1 - P))
        rest = (v.u_p + sum_error(x.n, v) + 3 * C_E * v.u_e + v.u_o) * (P + moved)
        return np.asarray(moved + rest + v.eta_p + v.eta_o + v.eta_a)

    P = np.where(x.visible, np.nan_to_num(x.forward.weights), 0.0)
    squares = np.sum(P**2, axis=-1, keepdims=True)
    coherent = np.sum(P**2 * e.w, axis=-1, keepdims=True) + x.n * u.u_a**2 * (squares / 2 + 2 / 3)
    variance = P**2 * (e.w + coherent + u.u_p**2 + u.u_o**2 + (C_E * u.u_e) ** 2)
    spread = np.sqrt(np.sum(P * e.w, axis=-1) / 3)
    total = np.where(x.visible, bound(e, u) + bound(own, _float64()), 0.0)
    sigma = np.where(x.visible, scale_of(variance, u), 0.0)
    empty = x.empty | (np.sum(x.visible, axis=-1) == 0)
    lines = (
        "bound = p (e^epsilon / sum p e^-epsilon - 1), at most 1, + rounding of sum and weight + the reference's own"
    )
    return Fields(x.forward.weights, total, sigma, empty, open_rows(x, spread, u), 1, lines)


@np.errstate(all="ignore")
def _before_the_sum(x: Exact, e: LogitErrors, own: LogitErrors, u: Precision, *, name: str) -> Fields:
    """Scores, softcapped scores and logits: Step A itself, and the rounding of what is stored."""
    y = getattr(x.forward, name)
    epsilon, w = getattr(e, name)
    finite = np.isfinite(y)
    size = np.where(finite, np.abs(y), 0.0)
    bound = epsilon + u.u_o * (size + epsilon) + u.eta_o + getattr(own, name)[0]
    sigma = scale_of(w + u.u_o**2 * size**2, u)
    none = np.zeros(y.shape[:-1], bool)
    lines = "bound = epsilon of Step A + u_o |z| + the reference's own error; sigma² = (w + u_o² z²) / 3"
    return Fields(y, np.where(finite, bound, 0.0), np.where(finite, sigma, 0.0), none, none, 1, lines)
