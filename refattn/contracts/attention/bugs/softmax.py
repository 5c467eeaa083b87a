"""Mistakes of the softmax, whole, online and split, and of the sinks in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.contracts.attention.bugs.plant import keys_longer_than, planted, wide_exponent
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.carriers import BLOCK, LONG, finite, online, split_kv

if TYPE_CHECKING:
    from refattn.contracts.attention.call import Call
    from refattn.contracts.attention.pipeline import Steps

__all__ = ["ONLINE", "SCORES_ABS", "SINKS", "SOFTMAX"]


def no_max_subtract(_c: Call, z: np.ndarray, _sink: np.ndarray) -> Any:
    return np.zeros_like(z[..., :1])


def max_init_zero(_c: Call, z: np.ndarray, sink: np.ndarray) -> Any:
    return np.maximum(z.max(axis=-1, keepdims=True, initial=0.0), sink)


def global_max(_c: Call, z: np.ndarray, _sink: np.ndarray) -> Any:
    return np.full_like(z[..., :1], z.max(initial=-np.inf))


def narrow_exponential(c: Call, x: np.ndarray) -> Any:
    return np.exp(x.astype(wide_exponent(c))).astype(float)


def exp2_no_log2e(_c: Call, x: np.ndarray) -> Any:
    return np.exp2(x)


def softmax_over_queries(_steps: Steps, _c: Call, z: np.ndarray) -> tuple[Any, Any]:
    e = np.exp(z - finite(z.max(axis=-2, keepdims=True, initial=-np.inf)))
    total = e.sum(axis=-2, keepdims=True)
    return e / np.where(total == 0, 1.0, total), np.zeros(z.shape[:-1])


def softmax_plus_one(_c: Call, e: np.ndarray, m: np.ndarray, sink: np.ndarray) -> Any:
    return np.exp(-m) + e.sum(axis=-1, keepdims=True) + np.exp(sink - m)


def denominator_eps(_c: Call, e: np.ndarray, m: np.ndarray, sink: np.ndarray) -> Any:
    return 1e-6 + e.sum(axis=-1, keepdims=True) + np.exp(sink - m)


def unnormalised(e: np.ndarray, _l: np.ndarray) -> Any:
    return e


def scores_abs(c: Call) -> Any:
    return np.abs(c.tau * (c.q @ c.k.swapaxes(-1, -2)))


SOFTMAX = (
    planted(
        "no_max_subtract",
        "exp without subtracting the row maximum (float32)",
        "Subtract the row maximum: softmax does not change, exponentials stay in range.",
        maximum=no_max_subtract,
        exponential=narrow_exponential,
    ),
    planted(
        "max_init_zero",
        "running maximum starts at 0 instead of -inf (float32)",
        "Start at −∞: a row of very negative logits has a very negative maximum.",
        maximum=max_init_zero,
        exponential=narrow_exponential,
    ),
    planted(
        "global_max",
        "maximum over the whole tensor instead of the row (float32)",
        "Take the maximum of each row: another row's underflows this one.",
        maximum=global_max,
        exponential=narrow_exponential,
    ),
    planted(
        "exp2_no_log2e",
        "exp2 used without multiplying by log2(e)",
        "e^x = 2^(x · log2 e).",
        keys_longer_than(1),
        exponential=exp2_no_log2e,
    ),
    planted(
        "softmax_over_queries",
        "softmax along the query axis",
        "The weights of one query over the keys sum to 1.",
        normalise=softmax_over_queries,
    ),
    planted(
        "softmax_plus_one",
        "an extra 1 in the denominator (softmax-off-by-one)",
        "Without a sink the denominator is the sum over visible keys, nothing else.",
        denominator=softmax_plus_one,
    ),
    planted(
        "denominator_eps",
        "1e-6 added to the denominator",
        "The sum is at least 1 once the maximum is subtracted; it needs no epsilon.",
        dtypes=("float64", "float32"),
        denominator=denominator_eps,
    ),
    planted(
        "unnormalised",
        "division by the sum forgotten",
        "Divide the accumulator by the sum of the exponentials.",
        keys_longer_than(1),
        divide=unnormalised,
    ),
)

SCORES_ABS = (
    planted(
        "scores_abs", "|q.k| used for q.k (sign lost)", "Scores have a sign.", keys_longer_than(1), score=scores_abs
    ),
)


def no_rescale_acc(m: np.ndarray, new: np.ndarray) -> tuple[Any, Any]:
    return np.exp(m - finite(new)), 1.0


def no_rescale_sum(m: np.ndarray, new: np.ndarray) -> tuple[Any, Any]:
    return 1.0, np.exp(m - finite(new))


def rescale_inverse(m: np.ndarray, new: np.ndarray) -> tuple[Any, Any]:
    rho = np.where(np.isneginf(m), 0.0, np.exp(new - m))
    return rho, rho


def split_average(lses: np.ndarray, _maxima: np.ndarray, _sink: np.ndarray) -> Any:
    return np.full_like(lses, 1.0 / len(lses))


def split_max_weights(_lses: np.ndarray, maxima: np.ndarray, sink: np.ndarray) -> Any:
    return np.exp(maxima - finite(np.logaddexp(np.logaddexp.reduce(maxima), sink)))


def split_last_only(lses: np.ndarray, _maxima: np.ndarray, _sink: np.ndarray) -> Any:
    last = np.zeros_like(lses)
    last[-1] = 1.0
    return last


def split_base2_lse(lses: np.ndarray, _maxima: np.ndarray, sink: np.ndarray) -> Any:
    base2 = lses / np.log(2.0)
    return np.exp(base2 - finite(np.logaddexp(np.logaddexp.reduce(base2), sink)))


ONLINE = (
    planted(
        "no_rescale_acc",
        "accumulator not rescaled when the running maximum grows",
        "Multiply both the sum and the accumulator by e^(m − m').",
        keys_longer_than(BLOCK),
        rescale=no_rescale_acc,
        attend=online,
    ),
    planted(
        "no_rescale_sum",
        "running sum not rescaled when the maximum grows",
        "Multiply both the sum and the accumulator by e^(m − m').",
        keys_longer_than(BLOCK),
        rescale=no_rescale_sum,
        attend=online,
    ),
    planted(
        "rescale_inverse",
        "rescale factor exp(m_new - m_old)",
        "The factor is e^(m − m') ≤ 1: what was summed relative to m is made relative to m'.",
        keys_longer_than(BLOCK),
        rescale=rescale_inverse,
        attend=online,
    ),
    planted(
        "split_average",
        "splits averaged without weights",
        "Weight every part by e^(L_s − L).",
        keys_longer_than(LONG),
        merge=split_average,
        attend=split_kv,
    ),
    planted(
        "split_max_weights",
        "splits weighted by exp(max) instead of exp(lse)",
        "Weight every part by e^(L_s − L); its maximum says nothing about how many keys it has.",
        keys_longer_than(LONG),
        merge=split_max_weights,
        attend=split_kv,
    ),
    planted(
        "split_last_only",
        "only the last split returned",
        "Merge the parts; do not overwrite one by the next.",
        keys_longer_than(LONG),
        merge=split_last_only,
        attend=split_kv,
    ),
    planted(
        "split_base2_lse",
        "split lse in base 2 merged as natural",
        "Merge in the base in which the parts were stored, or multiply by ln 2 first.",
        keys_longer_than(LONG),
        merge=split_base2_lse,
        attend=split_kv,
    ),
)


def sink_missing(c: Call) -> Any:
    return np.full((c.q.shape[1], 1, 1), -np.inf)


def sink_scaled(c: Call) -> Any:
    return c.tau * c.sinks[:, None, None]


def sink_raw(_c: Call, e: np.ndarray, _m: np.ndarray, sink: np.ndarray) -> Any:
    return e.sum(axis=-1, keepdims=True) + sink


def sink_kv_head(c: Call) -> Any:
    return c.sinks[np.arange(len(c.sinks)) // 2][:, None, None]


def sink_per_split(lses: np.ndarray, _maxima: np.ndarray, sink: np.ndarray) -> Any:
    with_sink = np.logaddexp.reduce(np.logaddexp(lses, sink))
    return np.exp(lses - finite(with_sink))


SINKS = (
    planted(
        "sink_missing",
        "sink logit ignored",
        "The sink's e^(σ − m) joins the denominator.",
        option="sinks",
        sink=sink_missing,
    ),
    planted(
        "sink_scaled",
        "sink logit multiplied by the scale",
        "The sink is a logit already: not scaled, not capped, not biased.",
        option="sinks",
        sink=sink_scaled,
    ),
    planted(
        "sink_raw",
        "sink added to the denominator without exp",
        "The sink is a logit: e^(σ − m) joins the denominator.",
        option="sinks",
        denominator=sink_raw,
    ),
    planted(
        "sink_kv_head",
        "sink indexed by the kv head",
        "There is one sink for every query head.",
        lambda case: sizes(case).hkv < sizes(case).hq,
        option="sinks",
        sink=sink_kv_head,
    ),
    planted(
        "sink_per_split",
        "sink counted once per split",
        "Add the sink once, when the parts are merged.",
        keys_longer_than(LONG),
        option="sinks",
        merge=sink_per_split,
        attend=split_kv,
    ),
)
