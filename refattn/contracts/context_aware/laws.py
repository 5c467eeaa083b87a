"""What every implementation obeys, stated between its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "ATTENTION_LAWS",
    "CROSS_LAWS",
    "FUSE_LAWS",
    "GATED_LAWS",
    "KERNEL_LAWS",
    "POOL_LAWS",
    "SINKHORN_LAWS",
    "SMOOTH_LAWS",
]

SHUT, OPEN = -60.0, 60.0


def _both(probe: Probe, left: Case, right: Case, output: str = "out") -> Claim:
    """Claim that two calls give the same."""
    slack = probe.slack(left)[output] + probe.slack(right)[output]
    return Claim(probe(left)[output], probe(right)[output], slack)


def _biased(case: Case, bias: float) -> Case:
    """Return the case with gates that no token can turn."""
    weights: Any = case.arrays["weights"]
    return case.having(weights=weights._replace(bq_gate=np.asarray(bias), bk_gate=np.asarray(bias)))


def _with_context(case: Case) -> bool:
    return "context" in case.arrays and bool(case.arrays["x"].size) and case.arrays["x"].shape[-2] > 1


def _shut_gates_are_plain_attention(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    bare = case.without("return_aux", "mask")
    yield _both(probe, _biased(bare, SHUT), bare.without("context"))


def _open_gates_make_all_alike(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    one = _biased(case.without("return_aux"), OPEN)
    out, slack = probe(one)["out"], probe.slack(one)["out"]
    yield Claim(out, np.broadcast_to(out[..., :1, :], out.shape), slack + slack[..., :1])


def _one_context(case: Case) -> bool:
    return _with_context(case) and case.arrays["context"].shape[-2] == 1


def _tokens_have_no_places(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("return_aux", "mask")
    order = rng.permutation(case.arrays["x"].shape[-2])
    moved = {"x": case.arrays["x"][..., order, :]}
    if "context" in case.arrays and case.arrays["context"].shape[-2] > 1:
        moved["context"] = case.arrays["context"][..., order, :]
    shuffled = plain.having(**moved)
    slack = probe.slack(plain)["out"][..., order] + probe.slack(shuffled)["out"]
    yield Claim(probe(shuffled)["out"], probe(plain)["out"][..., order, :], slack)


def _padding_is_not_there(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("return_aux")
    real = case.arrays["mask"]
    noise = np.round(4 * rng.standard_normal(case.arrays["x"].shape))
    other = plain.having(x=np.where(real[..., None], case.arrays["x"], noise))
    slack = probe.slack(plain)["out"] + probe.slack(other)["out"]
    left, right = (np.where(real[..., None], probe(c)["out"], 0.0) for c in (plain, other))
    yield Claim(left, right, slack)


def _has_padding(case: Case) -> bool:
    return "mask" in case.arrays and bool(case.arrays["mask"].size) and not case.arrays["mask"].all()


ATTENTION_LAWS = (
    Law(
        "shut_gates_are_plain_attention",
        "With shut gates the layer is multi-head attention without a context.",
        _shut_gates_are_plain_attention,
        _with_context,
        witness="token_for_context",
    ),
    Law(
        "open_gates_make_all_alike",
        "With open gates and one context for all, every token gets the same output.",
        _open_gates_make_all_alike,
        _one_context,
        witness="unbiased",
    ),
    Law(
        "tokens_have_no_places",
        "Permuting the tokens permutes the output.",
        _tokens_have_no_places,
        lambda case: bool(case.arrays["x"].size) and case.arrays["x"].shape[-2] > 1,
        witness="past_only",
    ),
    Law(
        "padding_is_not_there",
        "What stands in padded tokens does not change the real ones.",
        _padding_is_not_there,
        _has_padding,
        witness="padding_seen",
    ),
)


def _order_does_not_matter(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("mask")
    turned = plain.having(layers=tuple(np.roll(x, 1, axis=-2) for x in case.arrays["layers"]))
    yield _both(probe, plain, turned)


POOL_LAWS = (
    Law(
        "order_does_not_matter",
        "A global context does not depend on the order of the tokens.",
        _order_does_not_matter,
        lambda case: bool(case.arrays["layers"][0].size) and case.arrays["layers"][0].shape[-2] > 1,
        witness="first_token",
    ),
)


def _shut_gates_average(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights: Any = case.arrays["weights"]
    silent = weights._replace(w_g=0.0 * weights.w_g, b_g=np.full(2, SHUT))
    shut = case.without("mask").having(weights=silent)
    out, slack = probe(shut)["out"], probe.slack(shut)["out"]
    mean = case.arrays["v"].mean(axis=-2, keepdims=True)
    yield Claim(out, np.broadcast_to(mean, out.shape), slack)


GATED_LAWS = (
    Law(
        "shut_gates_average",
        "With shut gates every token gets the mean of the values.",
        _shut_gates_average,
        lambda case: bool(case.arrays["q"].size),
        witness="gates_compete",
    ),
)


def _columns_are_right(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plan, b = probe(case)["out"], case.arrays["b"]
    # the error of a column is at most that of its row-wise L2 norms, added up
    slack = np.sqrt(b.shape[-1]) * probe.slack(case)["out"].sum(axis=-1)
    yield Claim(plan.sum(axis=-2), b, slack)


SINKHORN_LAWS = (
    Law(
        "columns_are_right",
        "After every step the columns of the plan sum to b.",
        _columns_are_right,
        witness="rows_only",
    ),
)


def _one_place_to_go(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    target = case.arrays["target"]
    same = case.having(target=np.broadcast_to(target[..., :1, :], target.shape).copy())
    out = probe(same)["out"]
    yield Claim(out, np.broadcast_to(target[..., :1, :], out.shape), probe.slack(same)["out"])


CROSS_LAWS = (
    Law(
        "one_place_to_go",
        "Where all target tokens are the same, every source token goes there.",
        _one_place_to_go,
        lambda case: bool(case.arrays["source"].size),
        witness="masses_forgotten",
    ),
)


def _references_are_full(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    told = case.having(return_weights=True)
    weights, slack = probe(told)["weights"], probe.slack(told)["weights"]
    yield Claim(weights.sum(axis=-1), np.ones(weights.shape[:-1]), np.linalg.norm(slack, axis=-1) * weights.shape[-1])


KERNEL_LAWS = (
    Law(
        "references_are_full",
        "After the last update the weights of every reference sum to one.",
        _references_are_full,
        lambda case: bool(case.arrays["x"].size),
        witness="references_first",
    ),
)


def _equal_parts_stay(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    first = case.arrays["parts"][0]
    same = case.having(parts=(first,) * len(case.arrays["parts"]))
    yield Claim(probe(same)["fused"], first, probe.slack(same)["fused"])


FUSE_LAWS = (
    Law(
        "equal_parts_stay",
        "Fusing equal parts gives that part.",
        _equal_parts_stay,
        lambda case: bool(case.arrays["parts"][0].size),
        witness="each_by_itself",
    ),
)


def _all_smoothing_forgets_labels(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    labels, K = case.arrays["labels"], case.arrays["logits"].shape[-1]
    known = case.having(alpha=1.0)
    yield _both(probe, known, known.having(labels=(labels + 1) % K))


SMOOTH_LAWS = (
    Law(
        "all_smoothing_forgets_labels",
        "At α = 1 the labels do not matter.",
        _all_smoothing_forgets_labels,
        witness="over_other_classes",
    ),
)
