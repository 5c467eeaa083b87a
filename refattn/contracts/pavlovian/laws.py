"""What holds between results of the memories, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["ATTENTION_LAWS", "POLYNOMIAL_LAWS", "READ_LAWS", "SOFTMAX_LAWS", "WRITE_LAWS"]


def _rule(case: Case) -> str:
    return str(case.options.get("rule", "hebb"))


def _pairs(case: Case) -> int:
    keys = case.arrays["keys" if "keys" in case.arrays else "k"]
    return int(keys.shape[-2]) if keys.size else 0


def _both(probe: Probe, left: Case, right: Case, what: str = "") -> Claim:
    """Claim that two calls give the same."""
    return Claim(probe(left)["out"], probe(right)["out"], probe.slack(left)["out"] + probe.slack(right)["out"], what)


def _shuffled(case: Case, rng: np.random.Generator) -> Case:
    order = rng.permutation(case.arrays["keys"].shape[-2])
    return case.having(**{name: case.arrays[name][..., order, :] for name in ("keys", "values")})


def _order_does_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("return_history")
    yield _both(probe, plain, _shuffled(plain, rng))


def _hebb_unbounded(case: Case) -> bool:
    return _rule(case) == "hebb" and case.options.get("max_row_norm") is None and _pairs(case) > 1


def _bells(case: Case, rng: np.random.Generator, *, distinct: bool) -> np.ndarray:
    """Draw keys that point along an axis, forwards or backwards: their products are exact."""
    *lead, n, width = case.arrays["keys"].shape
    axis = rng.permutation(width)[:n] if distinct else rng.integers(width, size=n)
    sign = rng.choice([-1.0, 1.0], size=n)
    keys = np.zeros((n, width))
    keys[np.arange(n), axis] = sign
    return np.broadcast_to(keys, (*lead, n, width)).copy()


_OPTIONS = ("return_history", "n_epochs", "max_row_norm", "normalize_keys", "initial", "decay", "rate")


def _orthonormal_keys_are_recalled(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    n = min(case.arrays["keys"].shape[-2], case.arrays["keys"].shape[-1])
    few = {name: case.arrays[name][..., :n, :] for name in ("keys", "values")}
    plain = case.without(*_OPTIONS).having(**few)
    plain = plain.having(keys=_bells(plain, rng, distinct=True))
    recalled = np.swapaxes(probe(plain)["out"] @ np.swapaxes(plain.arrays["keys"], -1, -2), -1, -2)
    # a row's error is that of one entry of each row of S
    yield Claim(recalled, plain.arrays["values"], np.linalg.norm(probe.slack(plain)["out"], axis=-1)[..., None])


def _last_lesson_counts(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without(*_OPTIONS)
    keys = _bells(plain, rng, distinct=False)
    taught: np.ndarray = np.zeros((*keys.shape[:-2], plain.arrays["values"].shape[-1], keys.shape[-1]))
    for t in range(keys.shape[-2]):
        k, v = keys[..., t, :], plain.arrays["values"][..., t, :]
        taught = taught * (1 - np.abs(k))[..., None, :] + v[..., :, None] * k[..., None, :]
    again = plain.having(keys=keys)
    yield Claim(probe(again)["out"], taught, probe.slack(again)["out"])


def _no_decay_is_none(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    other = {"decay": "hebb", "gated_delta": "delta"}[_rule(case)]
    kept = case.having(decay=1.0)
    yield _both(probe, kept, kept.having(rule=other))


def _strengths_scale_with_rate(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("initial", "max_row_norm")
    half = plain.having(rate=plain.options.get("rate", 1.0) / 2)
    slack = probe.slack(plain)["out"] + 2 * probe.slack(half)["out"]
    yield Claim(probe(plain)["out"], 2 * probe(half)["out"], slack)


def _epochs_repeat_the_lesson(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    names = ("keys", "values")
    twice = case.without("n_epochs").having(
        **{name: np.concatenate([case.arrays[name]] * 2, axis=-2) for name in names}
    )
    yield _both(probe, case.having(n_epochs=2), twice)


def _memory_goes_on(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    whole = case.without("n_epochs", "return_history")
    cut = int(rng.integers(1, case.arrays["keys"].shape[-2] + 1))
    names = ("keys", "values")
    first = whole.having(**{name: case.arrays[name][..., :cut, :] for name in names})
    then = whole.having(**{name: case.arrays[name][..., cut:, :] for name in names}, initial=probe(first)["out"])
    # what is handed over was rounded once more; no rule here makes that larger
    handed = 2 * np.linalg.norm(probe.slack(first)["out"], axis=-1, keepdims=True)
    slack = probe.slack(then)["out"] + probe.slack(whole)["out"] + handed
    yield Claim(probe(then)["out"], probe(whole)["out"], slack)


def _history_begins_and_ends_right(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    told, silent = case.having(return_history=True), case.without("return_history")
    states, slack = probe(told)["out"], probe.slack(told)["out"]
    first = case.arrays.get("initial", np.zeros_like(states[..., 0, :, :]))
    yield Claim(states[..., 0, :, :], first, 0.0, "the first state")
    slack = slack[..., -1, :] + probe.slack(silent)["out"]
    yield Claim(states[..., -1, :, :], probe(silent)["out"], slack, "the last state")


def _mirror(rng: np.random.Generator, width: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.permutation(width), rng.choice([-1.0, 1.0], size=width)


def _channels_have_no_names(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order, sign = _mirror(rng, case.arrays["keys"].shape[-1])
    names = [name for name in ("keys", "initial") if name in case.arrays]
    turned = case.having(**{name: case.arrays[name][..., order] * sign for name in names})
    slack = probe.slack(case)["out"] + probe.slack(turned)["out"]
    yield Claim(probe(turned)["out"], probe(case)["out"][..., order] * sign, slack)


def _rows_stay_in_bounds(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("return_history")
    bound = min(1.0 if _rule(case) == "homeostatic" else np.inf, case.options.get("max_row_norm") or np.inf)
    norm = np.linalg.norm(probe(plain)["out"], axis=-1)
    slack = np.linalg.norm(probe.slack(plain)["out"], axis=-1)
    yield Claim(np.minimum(norm, bound), norm, slack)


def _is_bounded(case: Case) -> bool:
    return _rule(case) == "homeostatic" or case.options.get("max_row_norm") is not None


WRITE_LAWS = (
    Law(
        "order_does_not_matter",
        "Hebb's rule gives the same strengths whatever the order of the pairs.",
        _order_does_not_matter,
        _hebb_unbounded,
        witness="last_pair_left_out",
    ),
    Law(
        "orthonormal_keys_are_recalled",
        "After up to dk pairs with orthonormal keys, Hebb and delta recall each value.",
        _orthonormal_keys_are_recalled,
        lambda case: _rule(case) in ("hebb", "delta") and _pairs(case) > 0,
        witness="last_pair_left_out",
    ),
    Law(
        "last_lesson_counts",
        "Under delta with rate one, a unit key that comes again overwrites what it predicted.",
        _last_lesson_counts,
        lambda case: _rule(case) == "delta" and _pairs(case) > 1,
        witness="error_added",
    ),
    Law(
        "no_decay_is_none",
        "With γ = 1, decay is Hebb and gated delta is delta.",
        _no_decay_is_none,
        lambda case: _rule(case) in ("decay", "gated_delta") and _pairs(case) > 1,
        witness="forgets_instead_of_keeping",
    ),
    Law(
        "strengths_scale_with_rate",
        "Under Hebb and decay half the rate gives half the strengths.",
        _strengths_scale_with_rate,
        lambda case: _rule(case) in ("hebb", "decay") and _pairs(case) > 1,
        witness="rate_on_old_too",
    ),
    Law(
        "epochs_repeat_the_lesson",
        "Two epochs are the whole sequence of pairs, written twice.",
        _epochs_repeat_the_lesson,
        lambda case: _pairs(case) > 1,
        witness="pairs_repeated_in_place",
    ),
    Law(
        "memory_goes_on",
        "Writing the rest into what the first pairs left equals writing everything.",
        _memory_goes_on,
        lambda case: _rule(case) in ("hebb", "decay", "delta", "gated_delta", "homeostatic") and _pairs(case) > 1,
        witness="starts_from_nothing",
    ),
    Law(
        "history_begins_and_ends_right",
        "The history begins with the strengths before the first pair and ends with the result.",
        _history_begins_and_ends_right,
        lambda case: _pairs(case) > 0,
        witness="lags_by_one",
    ),
    Law(
        "channels_have_no_names",
        "Exchanging the channels of the keys, or their signs, does the same to the columns of S.",
        _channels_have_no_names,
        lambda case: _pairs(case) > 0,
        witness="one_sided",
    ),
    Law(
        "rows_stay_in_bounds",
        "A bounded memory has no row longer than the bound.",
        _rows_stay_in_bounds,
        lambda case: _is_bounded(case) and _pairs(case) > 0,
        witness="bounds_largest_entry",
    ),
)


def _unit_cues_read_columns(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    S = case.arrays["S"]
    cues = np.broadcast_to(np.eye(S.shape[-1]), (*S.shape[:-2], S.shape[-1], S.shape[-1])).copy()
    unit = case.having(queries=cues)
    yield Claim(probe(unit)["out"], np.swapaxes(S, -1, -2), probe.slack(unit)["out"])


def _cues_are_alone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    alone = case.having(queries=case.arrays["queries"][..., :1, :])
    slack = probe.slack(case)["out"][..., :1] + probe.slack(alone)["out"]
    yield Claim(probe(case)["out"][..., :1, :], probe(alone)["out"], slack)


def _answers_grow_with_cues(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    double = case.having(queries=2 * case.arrays["queries"])
    slack = 2 * probe.slack(case)["out"] + probe.slack(double)["out"]
    yield Claim(probe(double)["out"], 2 * probe(case)["out"], slack)


def _has_cues(case: Case) -> bool:
    return bool(case.arrays["queries"].size)


READ_LAWS = (
    Law(
        "unit_cues_read_columns",
        "A cue along one axis reads one column of S.",
        _unit_cues_read_columns,
        _has_cues,
        witness="divides_by_root_of_width",
    ),
    Law(
        "cues_are_alone",
        "The answer to a cue does not depend on the other cues.",
        _cues_are_alone,
        lambda case: _has_cues(case) and case.arrays["queries"].shape[-2] > 1,
        witness="cues_in_company",
    ),
    Law(
        "answers_grow_with_cues",
        "A cue twice as strong has an answer twice as strong.",
        _answers_grow_with_cues,
        _has_cues,
        witness="normalises_cues",
    ),
)


def _hebb_is_attention(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("normalize_keys")
    q, k, v = (plain.arrays[name] for name in "qkv")
    scores = q @ np.swapaxes(k, -1, -2) * plain.options.get("rate", 1.0)
    seen = np.tri(scores.shape[-1]) if plain.options.get("causal", True) else 1.0
    yield Claim(probe(plain)["out"], (scores * seen) @ v, probe.slack(plain)["out"])


def _future_is_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cut = int(rng.integers(1, case.arrays["k"].shape[-2]))
    early = case.having(**{name: case.arrays[name][..., :cut, :] for name in "qkv"})
    slack = probe.slack(case)["out"][..., :cut] + probe.slack(early)["out"]
    yield Claim(probe(case)["out"][..., :cut, :], probe(early)["out"], slack)


def _last_token_has_seen_all(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    causal, whole = case.having(causal=True), case.having(causal=False)
    slack = probe.slack(causal)["out"][..., -1:] + probe.slack(whole)["out"][..., -1:]
    yield Claim(probe(causal)["out"][..., -1:, :], probe(whole)["out"][..., -1:, :], slack)


def _channels_cancel(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order, sign = _mirror(rng, case.arrays["k"].shape[-1])
    yield _both(probe, case, case.having(**{name: case.arrays[name][..., order] * sign for name in "qk"}))


def _causal(case: Case) -> bool:
    return bool(case.options.get("causal", True)) and _pairs(case) > 1


ATTENTION_LAWS = (
    Law(
        "hebb_is_attention_without_softmax",
        "Under Hebb's rule the outputs are ((Q Kᵀ) ∘ mask) V.",
        _hebb_is_attention,
        lambda case: _rule(case) == "hebb" and _pairs(case) > 0,
        witness="reads_before_writing",
    ),
    Law(
        "future_is_unseen",
        "Outputs do not depend on later tokens.",
        _future_is_unseen,
        _causal,
        witness="reads_the_end",
    ),
    Law(
        "last_token_has_seen_all",
        "The last token reads the memory of the whole sequence.",
        _last_token_has_seen_all,
        lambda case: _pairs(case) > 0,
        witness="reads_before_writing",
    ),
    Law(
        "channels_cancel",
        "Exchanging the channels of queries and keys alike, or their signs, changes nothing.",
        _channels_cancel,
        lambda case: _pairs(case) > 0,
        witness="attention_one_sided",
    ),
)


def _recalls(case: Case) -> bool:
    return _pairs(case) > 0 and _has_cues(case)


def _cold_memory_averages(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    blind = case.having(beta=0.0)
    out = probe(blind)["out"]
    mean = np.broadcast_to(case.arrays["values"].mean(axis=-2, keepdims=True), out.shape)
    yield Claim(out, mean, probe.slack(blind)["out"])


def _stored_in_any_order(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    yield _both(probe, case, _shuffled(case, rng))


def _copies_change_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    names = ("keys", "values")
    yield _both(probe, case, case.having(**{n: np.concatenate([case.arrays[n]] * 2, axis=-2) for n in names}))


SOFTMAX_LAWS = (
    Law(
        "cold_memory_averages",
        "With β = 0 every answer is the mean of the values.",
        _cold_memory_averages,
        _recalls,
        witness="compares_queries",
    ),
    Law(
        "stored_in_any_order",
        "The order in which pairs are stored does not matter.",
        _stored_in_any_order,
        _recalls,
        witness="queries_see_earlier_pairs",
    ),
    Law(
        "copies_change_nothing",
        "Storing every pair twice changes no answer.",
        _copies_change_nothing,
        _recalls,
        witness="sums_exponentials",
    ),
)


def _first_degree_is_linear(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    first = case.having(degree=1)
    keys, values, queries = (case.arrays[name] for name in ("keys", "values", "queries"))
    linear = queries @ (np.swapaxes(keys, -1, -2) @ values)
    yield Claim(probe(first)["out"], linear, probe.slack(first)["out"])


def _opposite_cues(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    opposite = case.having(queries=-case.arrays["queries"])
    sign: Any = (-1.0) ** case.options["degree"]
    slack = probe.slack(case)["out"] + probe.slack(opposite)["out"]
    yield Claim(probe(opposite)["out"], sign * probe(case)["out"], slack)


POLYNOMIAL_LAWS = (
    Law(
        "first_degree_is_linear",
        "Degree one reads (Vᵀ K) q, the linear memory.",
        _first_degree_is_linear,
        _recalls,
        witness="shifted_kernel",
    ),
    Law(
        "opposite_cues",
        "The opposite cue has the opposite answer for an odd degree and the same for an even one.",
        _opposite_cues,
        _recalls,
        witness="match_of_either_sign",
    ),
)
