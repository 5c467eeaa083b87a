"""Mistakes that people make with attention variants, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug, Mistake
from refattn.contracts.deconstructed.plain import (
    attending,
    gate_recurring,
    indicating,
    silu,
    stacking,
    taylor_recurring,
)
from refattn.layers.deconstructed import FIXED

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case
    from refattn.layers.deconstructed_stack import BlockWeights

__all__ = ["ATTENTION_BUGS", "GATE_BUGS", "INDICATOR_BUGS", "STACK_BUGS", "TAYLOR_BUGS"]

SCORED = ("standard", *FIXED, "static_emb")


def attends(*variants: str, least: int = 2, form: str | None = None) -> Callable[[Case], bool]:
    """Whether a case has so many tokens and one of the variants."""

    def applies(case: Case) -> bool:
        hidden, options = case.arrays["hidden"], case.options
        fits = options["variant"] in variants and form in (None, options.get("form", "joint"))
        return bool(fits and hidden.size and hidden.shape[-2] >= least)

    return applies


def _head_width(case: Case) -> int:
    return int(case.arrays["hidden"].shape[-1] // case.options["n_heads"])


def _wide_heads(case: Case) -> bool:
    return _head_width(case) > 1


def next_token_seen(length: int) -> Any:
    """Return which key each query may see."""
    return np.tri(length, k=1, dtype=bool)


def normalised_over_queries(x: Any, seen: Any) -> Any:
    """Return the softmax of each row."""
    x = np.where(seen, x, -np.inf)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-2, keepdims=True)


def divided_by_head_width(q: Any, k: Any) -> Any:
    """Return the scores of all pairs."""
    return q @ k.mT / q.shape[-1]


def second_order_not_halved(x: Any) -> Any:
    """Return the weights of scores."""
    return 1 + x + x**2


def order_by_magnitude(x: Any) -> Any:
    """Return the weights of scores."""
    return 1 + np.abs(x) + x**2 / 2


def squares_of_scores(q: Any, k: Any) -> Any:
    """Return the second-order weights of all pairs."""
    return (q @ k.mT) ** 2


def eps_left_out(x: Any, seen: Any, _eps: float) -> Any:
    """Return each row's weights as shares."""
    x = np.where(seen, x, 0.0)
    return x / x.sum(axis=-1, keepdims=True)


def gate_not_scaled(q: Any, k: Any) -> Any:
    """Return one score a token."""
    return np.sum(q * k, axis=-1)


def query_not_activated(q: Any) -> Any:
    """Return the queries of the gate."""
    return q


def end_of_reference(_variant: str, hidden: Any, reference: Any, _static: Any) -> Any:
    """Return what queries and keys are made of."""
    return hidden if reference is None else reference[..., -hidden.shape[-2] :, :]


def hidden_in_place_of_embeddings(variant: str, hidden: Any, reference: Any, _static: Any) -> Any:
    """Return what queries and keys are made of."""
    return reference[..., : hidden.shape[-2], :] if variant in FIXED else hidden


def values_of_the_source(_hidden: Any, source: Any) -> Any:
    """Return what values are made of."""
    return source


def channels_dealt_to_heads(x: Any, h: int) -> Any:
    """Return the heads, (..., h, L, dh)."""
    return np.stack([x[..., i::h] for i in range(h)], axis=-3)


def gate_and_up_exchanged(x: Any, w_gate: Any, w_up: Any, w_down: Any) -> Any:
    """Return the gated transformation of each token."""
    return (silu(x @ w_up) * (x @ w_gate)) @ w_down


def output_matrix_left_out(o: Any, _W_O: Any) -> Any:
    """Return the layer's output."""
    return o


def neighbours_turn_together(x: Any, base: float) -> Any:
    """Return channels turned by position."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[-2])[:, None] * base ** (-np.arange(half) / half)
    a, b = x[..., 0::2], x[..., 1::2]
    pairs = np.stack([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=-1)
    return pairs.reshape(x.shape)


ATTENTION_BUGS: tuple[Bug, ...] = (
    Mistake(
        "visible",
        next_token_seen,
        "Each query sees one key too many.",
        "Key j is visible to query i if j ≤ i.",
        attends(*SCORED, "approximate", "non_approximate"),
    ).planted(attending),
    Mistake(
        "weighed",
        normalised_over_queries,
        "The exponentials are divided by the sums of columns.",
        "Each query shares out its attention: divide by the sum of its row.",
        attends(*SCORED, "non_approximate"),
    ).planted(attending),
    Mistake(
        "scores",
        divided_by_head_width,
        "Scores are divided by the head's width.",
        "Divide by its square root.",
        lambda case: attends(*SCORED)(case) and _wide_heads(case),
    ).planted(attending),
    Mistake(
        "polynomial",
        second_order_not_halved,
        "The second-order term is not halved.",
        "exp x is 1 + x + x²/2 to second order.",
        attends("approximate", form="joint"),
    ).planted(attending),
    Mistake(
        "polynomial",
        order_by_magnitude,
        "The first-order term is made positive.",
        "1 + x + x²/2 is positive as it is, at least ½, and must tell apart opposite scores.",
        attends("approximate", form="joint"),
    ).planted(attending),
    Mistake(
        "squares",
        squares_of_scores,
        "The second order squares the scores.",
        "The separate orders square queries and keys channel by channel.",
        lambda case: attends("approximate", form="per_order")(case) and _wide_heads(case),
        ("float64", "float32"),  # positive weights differ too little for half precision
    ).planted(attending),
    Mistake(
        "shared",
        eps_left_out,
        "Nothing is added to the denominator.",
        "Add eps to the sum of each row.",
        lambda case: attends("approximate", least=1)(case) and case.options.get("eps", 0.0) > 0,
    ).planted(attending),
    Mistake(
        "gate",
        gate_not_scaled,
        "The score of a token is not scaled.",
        "Divide it by √dh.",
        lambda case: attends("non_approximate")(case) and _wide_heads(case),
    ).planted(attending),
    Mistake(
        "activated",
        query_not_activated,
        "The query enters the gate as it is.",
        "It goes through SiLU first.",
        attends("non_approximate"),
    ).planted(attending),
    Mistake(
        "source",
        end_of_reference,
        "A long reference is cut at its beginning.",
        "The first L tokens count, so that the map of a longer input has the shorter one's as its corner.",
        lambda case: attends(*FIXED)(case) and case.arrays["reference"].shape[-2] > case.arrays["hidden"].shape[-2],
    ).planted(attending),
    Mistake(
        "source",
        hidden_in_place_of_embeddings,
        "Queries and keys come from the hidden state.",
        "In static_emb they come from the input embeddings.",
        attends("static_emb"),
    ).planted(attending),
    Mistake(
        "value_source",
        values_of_the_source,
        "Values come from where queries and keys come from.",
        "Only the map is static; values are made of the hidden state.",
        attends(*FIXED, "static_emb", least=1),
    ).planted(attending),
    Mistake(
        "split",
        channels_dealt_to_heads,
        "Channels are dealt out to heads in turn.",
        "A head owns a run of dh channels.",
        lambda case: attends(*SCORED)(case) and case.options["n_heads"] > 1 and _wide_heads(case),
    ).planted(attending),
    Mistake(
        "gated",
        gate_and_up_exchanged,
        "SiLU is applied to the wrong factor.",
        "SiLU(FC_gate(H)) gates FC_up(H): the first matrix gates.",
        attends("mlp", least=1),
    ).planted(attending),
    Mistake(
        "output",
        output_matrix_left_out,
        "The heads are returned as they are.",
        "W_O mixes them, in the paper's code if not in its equations.",
        attends(*SCORED, "mlp", "approximate", "non_approximate", least=1),
    ).planted(attending),
    Mistake(
        "turned",
        neighbours_turn_together,
        "Channels 2c and 2c + 1 turn together.",
        "Here channel c turns with channel c + dh/2.",
        lambda case: attends(*SCORED)(case) and "rotary_base" in case.options and _head_width(case) > 2,
    ).planted(attending),
)


def tokens(case: Case) -> int:
    """Return the number of tokens of a case, none if its batch is empty."""
    q = case.arrays["q"]
    return int(q.shape[-2]) if q.size else 0


def _joint(case: Case) -> bool:
    return case.options.get("form", "joint") == "joint" and tokens(case) > 1


def _continued(case: Case) -> bool:
    return "initial" in case.arrays and tokens(case) > 0


def square_feature_not_halved(u: Any) -> Any:
    """Return the features of a query or key."""
    square = (u[..., :, None] * u[..., None, :]).reshape(*u.shape[:-1], -1)
    width = u.shape[-1]
    return np.concatenate([np.ones_like(u[..., :1]), u / width**0.25, square / np.sqrt(width)], axis=-1)


def scaled_twice(u: Any) -> Any:
    """Return the features of a query or key."""
    square = (u[..., :, None] * u[..., None, :]).reshape(*u.shape[:-1], -1)
    width = u.shape[-1]
    return np.concatenate([np.ones_like(u[..., :1]), u / width**0.5, square / (np.sqrt(2) * width)], axis=-1)


def starts_afresh(_initial: Any, zero: Any) -> Any:
    """Return the sums before the first token."""
    return zero


def divided_by_count(f_q: Any, S: Any, _z: Any, count: int, eps: float) -> Any:
    """Return what a query reads from the sums."""
    return np.sum(f_q[..., None] * S, axis=-2) / (count + eps)


TAYLOR_BUGS: tuple[Bug, ...] = (
    Mistake(
        "features",
        square_feature_not_halved,
        "The second-order features lack their 1/√2.",
        "Query and key bring 1/√2 each, which makes the ½ of x²/2.",
        _joint,
    ).planted(taylor_recurring),
    Mistake(
        "features",
        scaled_twice,
        "Query and key are both divided by √dh.",
        "Each brings a fourth root, so that the product is divided by √dh once.",
        lambda case: _joint(case) and case.arrays["q"].shape[-1] > 1,
    ).planted(taylor_recurring),
    Mistake(
        "started",
        starts_afresh,
        "What earlier tokens left is forgotten.",
        "The sums go on from the state that is handed over.",
        _continued,
    ).planted(taylor_recurring),
    Mistake(
        "ratio",
        divided_by_count,
        "The read is divided by the number of tokens.",
        "Divide by the weights that the query gives them, f(q)·z.",
        _joint,
    ).planted(taylor_recurring),
)


def sums_not_rescaled(n: Any, z: Any, m: Any, s: Any, v: Any) -> Any:
    """Return the sums with one more token."""
    top = np.maximum(m, s)
    new = np.exp(s - top)
    return n + new[..., None] * v, z + new, top


def weight_not_rescaled(n: Any, z: Any, m: Any, s: Any, v: Any) -> Any:
    """Return the sums with one more token."""
    top = np.maximum(m, s)
    old, new = np.exp(m - top), np.exp(s - top)
    return old[..., None] * n + new[..., None] * v, z + new, top


def _top_rises(case: Case) -> bool:
    """Whether the running maximum moves, clearly, after the first token."""
    s = np.sum(case.arrays["q"] * case.arrays["k"], axis=-1)
    return tokens(case) > 1 and bool(np.any(s[..., 1:].max(axis=-1) > s[..., 0] + 0.1))


GATE_BUGS: tuple[Bug, ...] = (
    Mistake(
        "advanced",
        sums_not_rescaled,
        "Older sums keep their scale when the maximum rises.",
        "Both sums are relative to e^m: multiply them by e^{m − m'} when m becomes m'.",
        lambda case: _top_rises(case) and "initial" not in case.arrays,
    ).planted(gate_recurring),
    Mistake(
        "advanced",
        weight_not_rescaled,
        "Only the sum of values is rescaled when the maximum rises.",
        "Numerator and denominator are relative to the same e^m.",
        lambda case: _top_rises(case) and "initial" not in case.arrays,
    ).planted(gate_recurring),
    Mistake(
        "gate",
        gate_not_scaled,
        "The score of a token is not scaled.",
        "Divide it by √dh.",
        lambda case: tokens(case) > 1 and case.arrays["q"].shape[-1] > 1,
    ).planted(gate_recurring, "recurrent_"),
    Mistake(
        "started",
        starts_afresh,
        "What earlier tokens left is forgotten.",
        "The sums go on from the state that is handed over.",
        _continued,
    ).planted(gate_recurring, "gate_"),
)


def plans(*variants: str, least: int = 1) -> Callable[[Case], bool]:
    """Whether a stack runs at least so many layers of one of the variants, over two tokens or more."""

    def applies(case: Case) -> bool:
        plan, skip = case.options["plan"], case.options.get("skip", ())
        found = [kind for i, kind in enumerate(plan) if kind in variants and i + 1 not in skip]
        return len(found) >= least and case.arrays["tokens"].size > 0 and case.arrays["tokens"].shape[-1] > 1

    return applies


def network_still_runs(_x: Any, after_network: Any) -> Any:
    """Return the stream after a skipped layer."""
    return after_network


def reference_stands_still(old: Any, _new: Any) -> Any:
    """Return the reference that the next layer sees."""
    return old


def reference_not_normalised(x: Any, _weight: Any, _eps: float) -> Any:
    """Return the normalised reference."""
    return x


def embeddings_always_normalised(e: Any, weight: Any, eps: float, _on: bool) -> Any:
    """Return the embeddings as this layer sees them."""
    return e / np.sqrt(np.mean(e**2, axis=-1, keepdims=True) + eps) * weight


def one_norm_for_both(block: BlockWeights) -> Any:
    """Return the weight of the norm before the feed-forward network."""
    return block.norm_attention


def _skips(case: Case) -> bool:
    return bool(case.options.get("skip")) and case.arrays["tokens"].size > 0


STACK_BUGS: tuple[Bug, ...] = (
    Mistake(
        "left_out",
        network_still_runs,
        "A skipped layer loses its attention only.",
        "The whole block is left out, feed-forward network included.",
        _skips,
    ).planted(stacking),
    Mistake(
        "next_reference",
        reference_stands_still,
        "Every layer sees the reference as it started.",
        "The reference goes through the blocks as the input does.",
        plans(*FIXED, least=2),
    ).planted(stacking),
    Mistake(
        "reference_normed",
        reference_not_normalised,
        "The reference enters the layer without its norm.",
        "Both streams pass the norm of the layer.",
        plans(*FIXED),
    ).planted(stacking),
    Mistake(
        "embedded",
        embeddings_always_normalised,
        "The embeddings pass the norm of the layer.",
        "They enter as they are, unless normalize_static asks for it.",
        lambda case: plans("static_emb")(case) and not case.options.get("normalize_static", False),
    ).planted(stacking),
    Mistake(
        "second_norm",
        one_norm_for_both,
        "The feed-forward network has the norm of the attention.",
        "Each half of a block has a norm of its own.",
        lambda case: len(case.options.get("skip", ())) < len(case.options["plan"]) and case.arrays["tokens"].size > 0,
    ).planted(stacking),
)


def _maps(least: int = 2, heads: int = 1) -> Callable[[Case], bool]:
    """Whether there are maps of at least so many tokens and heads."""
    return lambda case: bool(
        case.arrays["maps"].size and case.arrays["maps"].shape[-1] >= least and case.arrays["maps"].shape[-3] >= heads
    )


def entropy_in_bits(A: Any) -> Any:
    """Return the entropy of each map."""
    return -np.sum(A * np.log2(np.where(A > 0, A, 1)), axis=(-2, -1))


def sample_deviation(A: Any) -> Any:
    """Return how much heads differ in each entry."""
    return np.std(A, axis=-3, ddof=min(1, A.shape[-3] - 1))


def hidden_entries_counted(length: int) -> Any:
    """Return how many entries the mean is over."""
    return length**2


def divided_by_length(A: Any, N: int) -> Any:
    """Return the mean weight N places back, for each map."""
    return np.trace(A, -N, axis1=-2, axis2=-1) / A.shape[-1]


def weight_of_last_query(A: Any) -> Any:
    """Return the weight of the first token, for each map."""
    return A[..., -1, 0]


INDICATOR_BUGS: tuple[Bug, ...] = (
    Mistake(
        "entropies",
        entropy_in_bits,
        "The logarithm is that of base two.",
        "Entropy is in nats.",
        _maps(),
    ).planted(indicating),
    Mistake(
        "spread",
        sample_deviation,
        "The sum of squares is divided by one less than the number of heads.",
        "These are all heads, no sample of them: divide by their number.",
        _maps(heads=2),
    ).planted(indicating),
    Mistake(
        "entries",
        hidden_entries_counted,
        "Hidden entries are counted.",
        "The mean is over the L(L + 1)/2 visible entries.",
        _maps(heads=2),
    ).planted(indicating),
    Mistake(
        "back",
        divided_by_length,
        "Every focus is divided by the whole length.",
        "Only L − N tokens have one N places back.",
        _maps(),
    ).planted(indicating),
    Mistake(
        "first_weight",
        weight_of_last_query,
        "Only the last query is asked.",
        "The sink is the mean over all queries.",
        _maps(),
    ).planted(indicating),
)
