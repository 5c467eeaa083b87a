"""Mistakes of merging parts of attention."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug
from refattn.contracts.attention.bugs.plant import always, given
from refattn.contracts.attention.carriers import finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["MERGE", "run_merge"]


def _share(lses: np.ndarray, total: np.ndarray, _sink: np.ndarray) -> Any:
    return np.exp(lses - finite(total))  # (N, B, H, Sq)


def _total(lses: np.ndarray, sink: np.ndarray) -> Any:
    return np.logaddexp(np.logaddexp.reduce(lses), sink)  # (B, H, Sq)


def run_merge(
    outs: np.ndarray,
    lses: np.ndarray,
    *,
    sinks: np.ndarray | None = None,
    share: Callable[..., Any] = _share,
    total: Callable[..., Any] = _total,
) -> tuple[Any, Any]:
    """Merge parts by replaceable steps; arguments and results are those of the reference.

    Parameters
    ----------
    outs, lses, sinks
        As for `refattn.primitives.attention_online.merge_attention`; float64.
    share : callable
        ``(lses, total, sink) -> weights`` of the parts.
    total : callable
        ``(lses, sink) -> `` the merged log-sum-exp.

    Returns
    -------
    tuple of ndarray
        Output and log-sum-exp.
    """
    sink = np.asarray(-np.inf) if sinks is None else sinks[:, None]
    with np.errstate(all="ignore"):
        L = total(lses, sink)
        weights = share(lses, L, sink)
        return np.sum(weights[..., None] * outs, axis=0), L


def merge_average(lses: np.ndarray, _total: np.ndarray, _sink: np.ndarray) -> Any:
    return np.full_like(lses, 1.0 / len(lses))


def merge_last_only(lses: np.ndarray, _total: np.ndarray, _sink: np.ndarray) -> Any:
    last = np.zeros_like(lses)
    last[-1] = 1.0
    return last


def merge_reversed(lses: np.ndarray, total: np.ndarray, _sink: np.ndarray) -> Any:
    return np.exp(lses - finite(total))[::-1]


def merge_base2_lse(lses: np.ndarray, _total: np.ndarray, sink: np.ndarray) -> Any:
    base2 = lses / np.log(2.0)
    return np.exp(base2 - finite(np.logaddexp(np.logaddexp.reduce(base2), sink)))


def merge_unnormalised(lses: np.ndarray, _total: np.ndarray, _sink: np.ndarray) -> Any:
    return np.exp(lses - finite(lses.max(axis=0)))


def merge_empty_nan(lses: np.ndarray, total: np.ndarray, _sink: np.ndarray) -> Any:
    return np.exp(lses - total)


def merge_empty_as_zero(lses: np.ndarray, sink: np.ndarray) -> Any:
    return np.logaddexp(np.logaddexp.reduce(finite(lses)), sink)


def merge_lse_max(lses: np.ndarray, sink: np.ndarray) -> Any:
    return np.maximum(lses.max(axis=0), sink)


def merge_sink_missing(lses: np.ndarray, _sink: np.ndarray) -> Any:
    return np.logaddexp.reduce(lses)


def merge_sink_per_part(lses: np.ndarray, sink: np.ndarray) -> Any:
    return np.logaddexp.reduce(np.logaddexp(lses, sink))


def _planted(
    name: str,
    description: str,
    remedy: str,
    applies: Callable[[Case], bool] = always,
    **replaced: Callable[..., Any],
) -> Bug:
    wrong: Callable[..., Any] = partial(run_merge, **replaced)  # type: ignore[arg-type]  # steps, not arrays
    return Bug(name, description, wrong, applies, source=next(iter(replaced.values())), remedy=remedy)


def _parts(case: Case) -> bool:
    return len(case.arrays["lses"]) > 1


def _some_empty(case: Case) -> bool:
    return bool(np.isneginf(case.arrays["lses"]).any())


def _all_empty(case: Case) -> bool:
    return "sinks" not in case.arrays and bool(np.isneginf(case.arrays["lses"]).all(axis=0).any())


MERGE = (
    _planted(
        "merge_average",
        "parts averaged without weights",
        "Weight every part by e^(L_s − L).",
        _parts,
        share=merge_average,
    ),
    _planted("merge_last_only", "only the last part returned", "Merge the parts.", _parts, share=merge_last_only),
    _planted(
        "merge_reversed",
        "weights of the parts in reverse order",
        "The sigmoid of the two-part form takes L₂ − L₁, not L₁ − L₂.",
        _parts,
        share=merge_reversed,
    ),
    _planted(
        "merge_base2_lse",
        "log-sum-exp in base 2 merged as natural",
        "Merge in the base in which the parts were stored.",
        _parts,
        share=merge_base2_lse,
    ),
    _planted(
        "merge_unnormalised",
        "weights relative to the largest part, not divided by their sum",
        "Divide by the sum of the weights.",
        _parts,
        share=merge_unnormalised,
    ),
    _planted(
        "merge_empty_nan",
        "NaN where every part is empty",
        "−∞ − (−∞) is NaN: where no part has a key, the output is 0.",
        _all_empty,
        share=merge_empty_nan,
    ),
    _planted(
        "merge_empty_as_zero",
        "log-sum-exp of an empty part taken for 0",
        "An empty part has L = −∞ and the weight 0.",
        _some_empty,
        total=merge_empty_as_zero,
    ),
    _planted(
        "merge_lse_max",
        "largest log-sum-exp instead of the log of the sum",
        "L = log Σ e^(L_s).",
        _parts,
        total=merge_lse_max,
    ),
    _planted(
        "merge_sink_missing",
        "sink ignored",
        "The sink joins the denominator, once, with the value 0.",
        given("sinks"),
        total=merge_sink_missing,
    ),
    _planted(
        "merge_sink_per_part",
        "sink counted once per part",
        "The sink joins the denominator once.",
        given("sinks"),
        total=merge_sink_per_part,
    ),
)
