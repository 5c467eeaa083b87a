"""Mistakes of the backward pass."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug
from refattn.contracts.attention.bugs.plant import always, both, given, is_set, keys_longer_than, partly_hidden
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.carriers import BLOCK, finite
from refattn.contracts.attention.gradient_pipeline import GradientSteps, run_gradient
from refattn.contracts.attention.pipeline import sees

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case
    from refattn.contracts.attention.call import Call
    from refattn.contracts.attention.gradient_pipeline import Saved
    from refattn.primitives.attention_gradients import Gradients

__all__ = ["GRADIENTS"]


def _planted(
    name: str,
    description: str,
    remedy: str,
    applies: Callable[[Case], bool] = always,
    option: str = "",
    **replaced: Callable[..., Any],
) -> Bug:
    wrong = partial(_run_planted, GradientSteps(**replaced), option)
    applies = both(given(option), applies) if option else applies
    return Bug(name, description, wrong, applies, source=next(iter(replaced.values())), remedy=remedy)


def _run_planted(steps: GradientSteps, option: str, *arrays: np.ndarray, **options: Any) -> Gradients:
    return run_gradient(steps if not option or is_set(options.get(option)) else GradientSteps(), *arrays, **options)


def g_no_delta(_dO: np.ndarray, _saved: Saved) -> float:
    return 0.0


def g_delta_mean(dO: np.ndarray, saved: Saved) -> Any:
    return np.sum(dO * saved.o, axis=-1, keepdims=True) / saved.z.shape[-1]


def g_delta_from_rounded_half(dO: np.ndarray, saved: Saved) -> Any:
    return np.roll(np.sum(dO * saved.o, axis=-1, keepdims=True), 1, axis=2)


def g_dq_noscale(c: Call, dS: np.ndarray) -> Any:
    return dS @ c.k


def g_dk_noscale(c: Call, dS: np.ndarray) -> Any:
    return dS.swapaxes(-1, -2) @ c.q


def g_dk_group_first(x: np.ndarray) -> Any:
    return x[:, :, 0]


def g_dv_group_mean(x: np.ndarray) -> Any:
    return x.mean(axis=2)


def g_softcap_no_derivative(_c: Call, _saved: Saved) -> float:
    return 1.0


def g_softcap_deriv_1mt2(_c: Call, saved: Saved) -> Any:
    return 1.0 - saved.t**2


def g_recompute_unmasked(_c: Call, saved: Saved) -> Any:
    unmasked = np.where(saved.see, saved.z, saved.t)
    return np.exp(unmasked - finite(saved.L)[..., None])


def g_recompute_no_sink(_c: Call, saved: Saved) -> Any:
    no_sink = np.logaddexp.reduce(saved.z, axis=-1, keepdims=True)
    return np.exp(saved.z - finite(no_sink))


def g_dk_tail_queries(c: Call, dS: np.ndarray) -> Any:
    whole = c.q.shape[2] // BLOCK * BLOCK
    return c.tau * (dS[:, :, :whole].swapaxes(-1, -2) @ c.q[:, :, :whole])


def dv_tail_queries(_c: Call, P: np.ndarray, dO: np.ndarray, _saved: Saved) -> Any:
    whole = dO.shape[2] // BLOCK * BLOCK
    return P[:, :, :whole].swapaxes(-1, -2) @ dO[:, :, :whole]


def g_dq_last_block(c: Call, dS: np.ndarray) -> Any:
    last = (c.k.shape[2] - 1) // BLOCK * BLOCK
    return c.tau * (dS[..., last:] @ c.k[:, :, last:])


def g_dv_unnormalised(_c: Call, _P: np.ndarray, dO: np.ndarray, saved: Saved) -> Any:
    e = np.exp(saved.z - finite(saved.z.max(axis=-1, keepdims=True, initial=-np.inf)))
    return e.swapaxes(-1, -2) @ dO


def g_dk_dv_swapped(grads: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[Any, ...]:
    dQ, dK, dV = grads
    return dQ, dV, dK


def g_empty_nan(_c: Call, saved: Saved) -> Any:
    return np.where(saved.none, np.nan, saved.P)


def _group(case: Case) -> bool:
    return sizes(case).hq > sizes(case).hkv > 0


def _widths_agree(case: Case) -> bool:
    return sizes(case).d == sizes(case).dv


def _ragged_queries(case: Case) -> bool:
    return sizes(case).sq % BLOCK > 0


def _long_rows(case: Case) -> bool:
    return sizes(case).sq > 1


def _empty_rows(case: Case) -> bool:
    hides = partly_hidden(case) or "bias" in case.arrays
    policy = case.options.get("empty", "zero") == "zero" and "sinks" not in case.arrays
    return bool(hides and policy and not sees(case).any(axis=-1).all())


GRADIENTS = (
    _planted(
        "g_no_delta",
        "Δ not subtracted",
        "dZ = P ∘ (dP − Δ): the softmax ties the weights of a row together.",
        delta=g_no_delta,
    ),
    _planted("g_delta_mean", "Δ / Sk", "Δ is a sum over channels, not a mean over keys.", delta=g_delta_mean),
    _planted(
        "g_delta_from_rounded_half",
        "Δ of the previous row",
        "Δ_i belongs to row i.",
        _long_rows,
        delta=g_delta_from_rounded_half,
    ),
    _planted("g_dq_noscale", "dQ without the scale", "dQ = τ dS K.", dq=g_dq_noscale),
    _planted("g_dk_noscale", "dK without the scale", "dK = τ dSᵀ Q.", dk=g_dk_noscale),
    _planted(
        "g_dk_group_first",
        "dK of the first query head of the group only",
        "Every query head of the group adds to dK.",
        _group,
        reduce_dk=g_dk_group_first,
    ),
    _planted(
        "g_dv_group_mean",
        "dV averaged over the group instead of summed",
        "Every query head of the group adds to dV.",
        _group,
        reduce_dv=g_dv_group_mean,
    ),
    _planted(
        "g_softcap_no_derivative",
        "no derivative of the softcap",
        "dS = dZ ∘ (1 − (t/cap)²).",
        option="softcap",
        softcap_slope=g_softcap_no_derivative,
    ),
    _planted(
        "g_softcap_deriv_1mt2",
        "1 − t² for 1 − (t/cap)²",
        "The derivative of cap · tanh(s/cap) is 1 − (t/cap)².",
        option="softcap",
        softcap_slope=g_softcap_deriv_1mt2,
    ),
    _planted(
        "g_recompute_unmasked",
        "P rebuilt without the mask",
        "Rebuild the weights from the masked logits.",
        partly_hidden,
        recompute=g_recompute_unmasked,
    ),
    _planted(
        "g_recompute_no_sink",
        "P rebuilt from a log-sum-exp without the sink",
        "Save and use the L that holds the sink.",
        option="sinks",
        recompute=g_recompute_no_sink,
    ),
    _planted(
        "g_dk_tail_queries",
        "last partial block of queries (16) left out of dK and dV",
        "Round the number of query blocks up.",
        _ragged_queries,
        dk=g_dk_tail_queries,
        dv=dv_tail_queries,
    ),
    _planted(
        "g_dq_last_block",
        "dQ overwritten by each key block (16)",
        "dQ adds up over the key blocks.",
        keys_longer_than(BLOCK),
        dq=g_dq_last_block,
    ),
    _planted(
        "g_dv_unnormalised",
        "dV from exponentials that were not divided by their sum",
        "dV = Pᵀ dO with the normalised P.",
        keys_longer_than(1),
        dv=g_dv_unnormalised,
    ),
    _planted("g_dk_dv_swapped", "dK and dV swapped", "Return dQ, dK, dV.", _widths_agree, finish=g_dk_dv_swapped),
    _planted(
        "g_empty_nan",
        "NaN from empty rows",
        "An empty row has no gradient: 0.",
        _empty_rows,
        recompute=g_empty_nan,
    ),
)
