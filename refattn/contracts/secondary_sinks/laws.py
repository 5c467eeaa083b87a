"""What holds between results about sinks, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "ALIGNMENT_LAWS",
    "COSINE_LAWS",
    "ENTROPY_LAWS",
    "LIVES_LAWS",
    "MEMBERSHIP_LAWS",
    "SCORE_LAWS",
    "STEERING_LAWS",
]


def _clipped(case: Case) -> bool:
    return bool(case.options.get("clip", True))


def _has_later(case: Case) -> bool:
    return bool(case.arrays["hidden"].shape[1] > max(case.options.get("bos_positions", (0,))) + 1)


def _later_ones(case: Case) -> np.ndarray:
    """Return the positions after all candidates: which of these is the primary sink does not depend on them."""
    return np.arange(max(case.options.get("bos_positions", (0,))) + 1, case.arrays["hidden"].shape[1])


def _both(probe: Probe, left: Case, right: Case, output: str, pick: Callable[[np.ndarray], np.ndarray]) -> Claim:
    """Claim that two calls of equal difficulty give the same output, the right one after ``pick``."""
    return Claim(probe(left)[output], pick(probe(right)[output]), 2.0 * probe.slack(left)[output], output)


def _same(outputs: np.ndarray) -> np.ndarray:
    return outputs


def _length_does_not_matter(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    half = case.having(hidden=0.5 * case.arrays["hidden"])
    for output in ("window", "members"):
        yield _both(probe, case, half, output, _same)


def _channels_have_no_names(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    hidden = case.arrays["hidden"]
    order, sign = rng.permutation(hidden.shape[-1]), rng.choice([-1.0, 1.0], size=hidden.shape[-1])
    yield _both(probe, case, case.having(hidden=hidden[..., order] * sign), "members", _same)


def _a_higher_threshold_finds_fewer(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    low, high = probe(case.having(threshold=0.5))["members"], probe(case.having(threshold=0.95))["members"]
    yield Claim(np.maximum(low, high), low, 0.0)


def _order_does_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    later = _later_ones(case)
    order = np.arange(case.arrays["hidden"].shape[1])
    order[later] = rng.permutation(later)
    moved = case.having(hidden=case.arrays["hidden"][:, order])
    yield _both(probe, moved, case, "members", lambda members: members[:, order])


def _others_do_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    later = _later_ones(case)
    hidden = case.arrays["hidden"].copy()
    s = int(rng.choice(later))
    others = later[later != s]
    hidden[:, others] = np.roll(hidden[:, others], 1, axis=0) * 2.0
    yield _at(probe, case.having(hidden=hidden), case, s)


def _at(probe: Probe, left: Case, right: Case, s: int) -> Claim:
    """Claim that position s is a sink on the same layers in both calls."""
    there, here = (probe(one)["members"][:, s : s + 1] for one in (left, right))
    return Claim(there, here, probe.slack(right)["members"], f"position {s}")


def _clipping_only_leaves_out_layers(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    clipped, whole = case.having(clip=True), case.having(clip=False)
    later, window = _later_ones(case), probe(clipped)["window"][:, None]
    slack = probe.slack(clipped)["members"] + probe.slack(whole)["members"]
    yield Claim(probe(clipped)["members"][:, later], probe(whole)["members"][:, later] * window, slack)


def _either_direction_will_do(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    hidden = case.arrays["hidden"].copy()
    hidden[:, _later_ones(case)] *= -1.0
    yield _both(probe, case, case.having(hidden=hidden), "members", _same)


def _a_copy_of_the_primary_is_a_sink(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    b, hidden = int(probe(case)["primary"]), case.arrays["hidden"].copy()
    hidden[:, -1] = 0.5 * hidden[:, b]
    copied = case.having(hidden=hidden)
    found = probe(copied)
    alive = found["window"] * (np.linalg.norm(hidden[:, b], axis=-1) > 1e-6)
    yield Claim(found["members"][:, -1:], alive[:, None], probe.slack(copied)["members"])


MEMBERSHIP_LAWS = (
    Law(
        "length_does_not_matter",
        "Halving all hidden states changes neither the window nor the sinks.",
        _length_does_not_matter,
        witness="projection",
    ),
    Law(
        "channels_have_no_names",
        "Permuting the channels of all hidden states, and turning some of them round, changes nothing.",
        _channels_have_no_names,
        witness="deaf_to_the_first_channel",
    ),
    Law(
        "a_higher_threshold_finds_fewer",
        "What is a sink at a higher threshold is one at a lower threshold.",
        _a_higher_threshold_finds_fewer,
        witness="below_the_threshold",
    ),
    Law(
        "order_does_not_matter",
        "Permuting the positions after the primary sink permutes the sinks.",
        _order_does_not_matter,
        _has_later,
        witness="last_left_out",
    ),
    Law(
        "others_do_not_matter",
        "Whether a position is a sink does not depend on the other positions after the primary sink.",
        _others_do_not_matter,
        _has_later,
        witness="compared_with_the_mean",
    ),
    Law(
        "clipping_only_leaves_out_layers",
        "On the layers of the window clipping changes nothing.",
        _clipping_only_leaves_out_layers,
        lambda case: _has_later(case) and len(case.arrays["hidden"]) >= 3,
        witness="once_a_sink_always_a_sink",
    ),
    Law(
        "either_direction_will_do",
        "Turning round every state after the primary sink changes nothing.",
        _either_direction_will_do,
        _has_later,
        witness="parallel_only",
    ),
    Law(
        "a_copy_of_the_primary_is_a_sink",
        "A position that holds half the state of the primary sink is a sink on every layer of the window.",
        _a_copy_of_the_primary_is_a_sink,
        _has_later,
        witness="compared_with_its_birth",
    ),
)


def _positive_factors_do_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    hidden = case.arrays["hidden"]
    factors = rng.choice([0.5, 1.0, 2.0], size=(*hidden.shape[:2], 1))
    yield _both(probe, case, case.having(hidden=hidden * factors), "out", _same)


def _turning_round_turns_the_sign(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    hidden = case.arrays["hidden"].copy()
    sign = rng.choice([-1.0, 1.0], size=hidden.shape[1])
    sign[case.options["primary"]] = 1.0
    yield _both(probe, case, case.having(hidden=hidden * sign[:, None]), "out", lambda cosines: cosines * sign)


COSINE_LAWS = (
    Law(
        "positive_factors_do_not_matter",
        "Cosines do not change when each vector is multiplied by a positive number of its own.",
        _positive_factors_do_not_matter,
        witness="cosines_projection",
    ),
    Law(
        "turning_round_turns_the_sign",
        "Turning a position round turns the sign of its cosine.",
        _turning_round_turns_the_sign,
        lambda case: case.arrays["hidden"].shape[1] > 1,
        witness="cosines_absolute_cosine",
    ),
)


def _layers_are_counted(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    members = case.arrays["members"]
    yield Claim(probe(case)["lifetime"], members.sum(axis=0), 0.0)


def _an_empty_layer_delays(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    members = case.arrays["members"]
    delayed = case.having(members=np.concatenate([np.zeros_like(members[:1]), members]))
    before, after = probe(case), probe(delayed)
    yield Claim(after["first"], before["first"] + (before["first"] >= 0), 0.0, "first")
    yield Claim(after["lifetime"], before["lifetime"], 0.0, "lifetime")


def _time_reversed(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    members = case.arrays["members"]
    found, mirrored = probe(case), probe(case.having(members=members[::-1].copy()))
    for output in ("lifetime", "label"):
        yield Claim(mirrored[output], found[output], 0.0, output)
    alive = found["lifetime"] > 0
    last = len(members) - 1 - mirrored["first"]
    inside = np.where(alive, found["first"] <= last, True)
    yield Claim(inside.astype(float), np.ones(len(alive)), 0.0, "the first layer comes before the last")
    spans = np.where(alive, last - found["first"] + 1, 0)
    yield Claim(np.maximum(spans, found["lifetime"]), spans, 0.0, "a life fits between its first layer and its last")


def _no_margin_no_noise(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(case.having(bos_margin=0, min_lifetime=1))
    n = found["lifetime"]
    yield Claim(found["label"], (n > 0) * 1.0 + (n == len(case.arrays["members"])), 0.0)


LIVES_LAWS = (
    Law("layers_are_counted", "A lifetime is a count of layers.", _layers_are_counted, witness="from_first_to_last"),
    Law(
        "an_empty_layer_delays",
        "A layer without sinks put before the others moves every first layer by one and no lifetime.",
        _an_empty_layer_delays,
        witness="counted_from_the_end",
    ),
    Law(
        "time_reversed",
        "Read backwards a life lasts as long, and its first and last layer change places.",
        _time_reversed,
        lambda case: case.arrays["members"].size > 0,
        witness="last_instead_of_first",
    ),
    Law(
        "no_margin_no_noise",
        "With margin 0 and least lifetime 1, what lives through all layers is a bos sink, other sinks are secondary.",
        _no_margin_no_noise,
        witness="longer_than_the_margin",
    ),
)


def _attention_is_conserved(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    scores, length = probe(case)["out"], case.arrays["pattern"].shape[-1]
    queries = length - np.arange(length)
    total = np.sum(scores * queries, axis=-1)[..., None]
    yield Claim(total, np.full_like(total, length), length * probe.slack(case)["out"])


def _uniform_attention_has_a_closed_form(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    pattern = case.arrays["pattern"]
    length = min(pattern.shape[-1], 2)  # 1/3 is no number of a computer
    uniform = np.tri(length) / (1.0 + np.arange(length))[:, None]
    flat = case.having(pattern=np.broadcast_to(uniform, (*pattern.shape[:-2], length, length)).copy())
    expected = [np.mean(1.0 / (1.0 + np.arange(s, length))) for s in range(length)]
    scores = probe(flat)["out"]
    yield Claim(scores, np.broadcast_to(np.array(expected), scores.shape), probe.slack(flat)["out"])


def _the_last_token_sees_itself(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    pattern = case.arrays["pattern"]
    yield Claim(probe(case)["out"][..., -1:], pattern[..., -1, -1:], probe.slack(case)["out"])


SCORE_LAWS = (
    Law(
        "attention_is_conserved",
        "The scores, each times the number of queries that can see its position, sum to T.",
        _attention_is_conserved,
        witness="from_all_queries",
    ),
    Law(
        "uniform_attention_has_a_closed_form",
        "Under uniform attention the score of s is the mean of 1/(t + 1) over t ≥ s.",
        _uniform_attention_has_a_closed_form,
        lambda case: case.arrays["pattern"].shape[-1] > 0,
        witness="itself_left_out",
    ),
    Law(
        "the_last_token_sees_itself",
        "The score of the last position is what it gives to itself.",
        _the_last_token_sees_itself,
        lambda case: case.arrays["pattern"].shape[-1] > 0,
        witness="given_instead_of_received",
    ),
)


def _the_primary_is_aligned_with_itself(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    b = case.options["primary"]
    alone = case.having(positions=np.array([b]))
    made = np.linalg.norm(case.arrays["mlp_out"][..., b, :], axis=-1, keepdims=True) > 1e-6
    yield Claim(probe(alone)["out"], made.astype(float), probe.slack(alone)["out"])


def _turning_the_primary_round(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows, b = case.arrays["mlp_out"].copy(), case.options["primary"]
    rows[..., b, :] *= -1.0
    own = np.where(case.arrays["positions"] == b, -1.0, 1.0)
    yield _both(probe, case, case.having(mlp_out=rows), "out", lambda cosines: -cosines * own)


ALIGNMENT_LAWS = (
    Law(
        "the_primary_is_aligned_with_itself",
        "The primary sink has alignment 1, if the MLP writes anything there.",
        _the_primary_is_aligned_with_itself,
        witness="alignment_compared_with_the_wrong_row",
    ),
    Law(
        "turning_the_primary_round",
        "Turning round what is written at the primary sink turns the sign of every other alignment.",
        _turning_the_primary_round,
        witness="alignment_absolute_cosine",
    ),
)


def _steering_twice_is_steering_once(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    firm = case.having(norm=32.0)
    once = probe(firm)["out"]
    twice = firm.having(mlp_out=once)
    yield Claim(probe(twice)["out"], once, probe.slack(firm)["out"] + probe.slack(twice)["out"])


def _multiples_get_the_norm(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    shape = case.arrays["mlp_out"].shape
    factors = rng.choice([0.5, 1.0, 2.0], size=(*shape[:-1], 1))
    along = case.having(mlp_out=factors * case.arrays["direction"], norm=3.0, protect=[])
    norm = np.linalg.norm(probe(along)["out"], axis=-1, keepdims=True)
    yield Claim(norm, np.full_like(norm, 3.0), probe.slack(along)["out"])


def _protected_rows_stay(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows = case.arrays["mlp_out"]
    guarded = case.having(protect=list(range(rows.shape[-2])))
    yield Claim(probe(guarded)["out"], rows, 0.0)


def _what_points_away_stays(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    along = np.broadcast_to(-case.arrays["direction"], case.arrays["mlp_out"].shape).copy()
    away = case.having(mlp_out=along)
    yield Claim(probe(away)["out"], along, 0.0)


STEERING_LAWS = (
    Law(
        "steering_twice_is_steering_once",
        "Steering what was steered already, to the same norm, changes nothing.",
        _steering_twice_is_steering_once,
        witness="multiplied",
    ),
    Law(
        "multiples_get_the_norm",
        "Positive multiples of the direction, shorter or longer, get the norm that is asked for.",
        _multiples_get_the_norm,
        witness="shortened_only",
    ),
    Law("protected_rows_stay", "Protected rows stay as they are.", _protected_rows_stay, witness="nobody_protected"),
    Law(
        "what_points_away_stays",
        "Rows that point against the direction stay as they are.",
        _what_points_away_stays,
        witness="either_direction",
    ),
)


def _entropy_has_no_scale(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    half = case.having(x=0.5 * case.arrays["x"])
    yield _rows(probe, case, half)


def _rows(probe: Probe, left: Case, right: Case) -> Claim:
    """Claim that two calls give the same entropies; one entropy is one row."""
    slack = np.max(probe.slack(left)["out"] + probe.slack(right)["out"], initial=0.0)
    return Claim(probe(left)["out"].reshape(-1, 1), probe(right)["out"].reshape(-1, 1), slack)


def _vectors_and_channels_change_places(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _rows(probe, case, case.having(x=np.swapaxes(case.arrays["x"], -1, -2).copy()))


def _orthonormal_vectors_have_ln_k(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["x"]
    flags = case.having(x=np.broadcast_to(np.eye(*x.shape[-2:]), x.shape).copy())
    out = probe(flags)["out"].reshape(-1, 1)
    yield Claim(out, np.full_like(out, np.log(min(x.shape[-2:]))), np.max(probe.slack(flags)["out"], initial=0.0))


ENTROPY_LAWS = (
    Law(
        "entropy_has_no_scale",
        "Halving all vectors changes nothing.",
        _entropy_has_no_scale,
        witness="share_of_nothing",
    ),
    Law(
        "vectors_and_channels_change_places",
        "X and its transpose have the same entropy.",
        _vectors_and_channels_change_places,
        witness="each_of_length_one",
    ),
    Law(
        "orthonormal_vectors_have_ln_k",
        "k orthonormal vectors have entropy ln k, whatever the order.",
        _orthonormal_vectors_have_ln_k,
        lambda case: case.arrays["x"].shape[-2] > 0,
        witness="in_bits",
    ),
)
