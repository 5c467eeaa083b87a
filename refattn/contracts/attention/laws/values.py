"""Laws of arithmetic: what shifts, scales and sums of inputs do to the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Claim, Law
from refattn.conformance.precision import unit_roundoff
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.pipeline import sees
from refattn.contracts.attention.surgery import allowed, has, on_grid, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Case, Probe

__all__ = ["VALUE_LAWS"]


def _row_constant(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    bias = on_grid(case.arrays["bias"])
    constant = on_grid(2.0 * rng.standard_normal((sizes(case).sq, 1)))
    base, shifted = case.having(bias=bias), case.having(bias=bias + constant)
    yield Claim(probe(base)["out"], probe(shifted)["out"], allowed(probe, base, shifted))


def _key_shift(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    k = on_grid(case.arrays["k"])
    base, shifted = case.having(k=k), case.having(k=k + on_grid(rng.standard_normal(sizes(case).d)))
    yield Claim(probe(base)["out"], probe(shifted)["out"], allowed(probe, base, shifted))


def _scale_in_query(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    scale = case.options.get("scale")
    tau = 1.0 / np.sqrt(sizes(case).d) if scale is None else scale
    other = case.having(q=2.0 * case.arrays["q"], scale=float(tau / 2.0))
    yield Claim(probe(case)["out"], probe(other)["out"], allowed(probe, case, other))


def _value_range(case: Case) -> np.ndarray:
    """Return the norm of the range of the values, per batch entry and query head: (B, Hq, 1)."""
    v = np.repeat(case.arrays["v"], sizes(case).hq // max(sizes(case).hkv, 1), axis=1)
    return np.asarray(np.sqrt(np.sum(np.ptp(v, axis=2) ** 2, axis=-1)))[..., None]


def _loose_softcap(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    scale = case.options.get("scale")
    tau = 1.0 / np.sqrt(sizes(case).d) if scale is None else scale
    norms = [np.sqrt(np.sum(case.arrays[name] ** 2, axis=-1)).max(initial=0.0) for name in "qk"]
    largest = 1.0 + abs(tau) * norms[0] * norms[1]
    cap = float(2.0 ** np.ceil(np.log2(largest)) * (16.0 if unit_roundoff(case.dtype) > 1e-4 else 1024.0))
    plain, loose = case.without("softcap"), case.having(softcap=cap)
    moved = np.expm1(2.0 * largest**3 / (3.0 * cap**2)) * _value_range(case)
    yield Claim(probe(plain)["out"], probe(loose)["out"], allowed(probe, plain, loose) + moved)


def _no_sink(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    none, off = case.without("sinks"), case.having(sinks=np.full(sizes(case).hq, -np.inf))
    yield Claim(probe(none)["out"], probe(off)["out"], allowed(probe, none, off))


def _sink_share(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    case = case.having(returns=("out", "lse"))
    with_sink, without = probe(case), probe(case.without("sinks"))["out"]
    if "lse" in with_sink:
        wrong = probe.slack(case)["lse"]
        wrong = wrong if np.ndim(wrong) == 3 else wrong[..., None]
        share = np.exp(case.arrays["sinks"][:, None] - with_sink["lse"])  # of the sink, (B, Hq, Sq)
        size = np.sqrt(np.sum(without**2, axis=-1))
        slack = allowed(probe, case, case.without("sinks")) + size * share * np.expm1(np.minimum(wrong, 700.0))
        yield Claim(with_sink["out"], (1.0 - share)[..., None] * without, slack)


def _linear_in_values(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    v, w = (on_grid(2.0 * rng.standard_normal(case.arrays["v"].shape)) for _ in range(2))
    first, second, both = (case.having(v=x) for x in (v, w, v + w))
    parts = probe(first)["out"] + probe(second)["out"]
    yield Claim(probe(both)["out"], parts, allowed(probe, first, second, both))


def _value_shift(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    v, c = on_grid(case.arrays["v"]), on_grid(rng.standard_normal(sizes(case).dv))
    base, shifted = case.having(v=v), case.having(v=v + c)
    seen = sees(case).any(axis=-1, keepdims=True)
    left, right = probe(shifted)["out"], probe(base)["out"] + c
    yield Claim(np.where(seen, left, 0.0), np.where(seen, right, 0.0), allowed(probe, base, shifted))


def _weights_sum(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights = probe(case.having(returns=("out", "weights"))).get("weights")
    if weights is not None:
        seen, few = sees(case).any(axis=-1, keepdims=True), unit_roundoff(case.dtype) * (sizes(case).sk + 16)
        sums = np.where(seen, weights.sum(axis=-1, keepdims=True), 1.0)
        yield Claim(sums, np.ones_like(sums), 4.0 * few, "sum of the weights")
        yield Claim(np.where(seen, np.minimum(weights, 0.0), 0.0), np.zeros_like(weights), 0.0, "a negative weight")


def _sinkless(case: Case) -> bool:
    return whole(case) and not has(case, "sinks")


VALUE_LAWS = (
    Law(
        "row_constant",
        "Adding one number to all logits of a row changes nothing.",
        _row_constant,
        lambda case: _sinkless(case) and has(case, "bias"),
        witness="softmax_plus_one",
    ),
    Law(
        "key_shift",
        "Adding one vector to all keys changes nothing.",
        _key_shift,
        lambda case: _sinkless(case) and not case.options.get("softcap"),
        witness="scores_abs",
    ),
    Law(
        "scale_in_query",
        "Half the scale with twice the queries is the same.",
        _scale_in_query,
        whole,
        witness="scale_override_ignored",
    ),
    Law(
        "loose_softcap",
        "A softcap far above every score changes nothing.",
        _loose_softcap,
        lambda case: whole(case) and bool(case.options.get("softcap")) and sizes(case).sk > 0,
        witness="softcap_no_divide",
    ),
    Law(
        "no_sink",
        "A sink of −∞ is no sink.",
        _no_sink,
        lambda case: whole(case) and has(case, "sinks"),
        witness="sink_raw",
    ),
    Law(
        "sink_share",
        "A sink takes the share e^(σ − L) of the weight and nothing else: o(σ) = (1 − e^(σ − L)) o.",
        _sink_share,
        lambda case: whole(case) and has(case, "sinks") and case.options.get("empty", "zero") == "zero",
        witness="sink_scaled",
    ),
    Law(
        "linear_in_values",
        "The output for a sum of values is the sum of the outputs.",
        _linear_in_values,
        whole,
        witness="k_as_v",
    ),
    Law(
        "value_shift",
        "Adding one vector to all values adds it to every output.",
        _value_shift,
        _sinkless,
        witness="dropout_on",
    ),
    Law(
        "weights_sum",
        "The weights of a row are not negative and sum to 1.",
        _weights_sum,
        _sinkless,
        witness="unnormalised",
    ),
)
