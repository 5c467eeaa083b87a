"""What holds between results of circuit analysis, whatever the model and the prompts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["DIFFERENCE_LAWS", "EFFECT_LAWS", "FORCE_LAWS", "MASK_LAWS", "OVERLAP_LAWS", "PATCH_LAWS"]


def _both(probe: Probe, left: Case, right: Case, sign: float = 1.0) -> Claim:
    """Claim that two calls give the same, up to a sign."""
    slack = probe.slack(left)["out"] + probe.slack(right)["out"]
    return Claim(probe(left)["out"], sign * probe(right)["out"], slack)


def _prompts(case: Case) -> bool:
    return bool(case.arrays["logits"].size)


def _exchanged_words(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _both(probe, case, case.having(answers=case.arrays["answers"][:, ::-1].copy()), -1.0)


def _other_words(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    logits, answers = case.arrays["logits"], case.arrays["answers"]
    named = np.zeros(logits.shape, bool)
    for b, words in enumerate(answers):
        named[b][:, words] = True
    shuffled = rng.permuted(logits, axis=-1)
    yield _both(probe, case, case.having(logits=np.where(named, logits, shuffled)))


def _mean_of_each(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    mean, each = case.having(reduce="mean"), case.having(reduce="none")
    slack = probe.slack(mean)["out"] + probe.slack(each)["out"]
    yield Claim(probe(mean)["out"], np.asarray(np.mean(probe(each)["out"])), slack)


def _one_token(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    p = case.options.get("position", -1) % case.arrays["logits"].shape[1]
    alone = case.without("position").having(logits=case.arrays["logits"][:, p : p + 1].copy())
    yield _both(probe, case, alone)


DIFFERENCE_LAWS = (
    Law(
        "exchanged_words_change_the_sign",
        "Calling the wrong word right turns the difference round.",
        _exchanged_words,
        _prompts,
        witness="right_against_best",
    ),
    Law(
        "other_words_do_not_matter",
        "What the model says of other words changes nothing.",
        _other_words,
        _prompts,
        witness="probabilities",
    ),
    Law(
        "mean_is_the_mean_of_each",
        "The mean is the mean of the differences of single prompts.",
        _mean_of_each,
        _prompts,
        witness="summed",
    ),
    Law(
        "one_token_decides",
        "Tokens at other positions change nothing.",
        _one_token,
        _prompts,
        witness="mean_of_tokens",
    ),
)


def _filled(case: Case) -> bool:
    return bool(case.arrays["clean"].size)


def _ends(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    for name, value in (("clean", 0.0), ("corrupt", 1.0)):
        there = case.having(patched=case.arrays[name])
        yield Claim(probe(there)["out"], np.full(there.arrays[name].shape, value), probe.slack(there)["out"])


def _mirrored(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _both(probe, case, case.having(**{name: -2.0 * array for name, array in case.arrays.items()}))


def _two_ways(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    back = case.having(clean=case.arrays["corrupt"], corrupt=case.arrays["clean"])
    slack = probe.slack(case)["out"] + probe.slack(back)["out"]
    yield Claim(probe(back)["out"] + probe(case)["out"], np.ones(case.arrays["clean"].shape), slack)


EFFECT_LAWS = (
    Law(
        "from_nothing_to_all",
        "A patch that changes nothing has effect zero, one that does all that the corruption does has effect one.",
        _ends,
        _filled,
        witness="no_start",
    ),
    Law(
        "scale_does_not_matter",
        "Logits minus two times as large give the same effects.",
        _mirrored,
        _filled,
        witness="absolute_way",
    ),
    Law(
        "two_ways_make_a_whole",
        "The effects of going from clean to corrupt and of going back sum to one.",
        _two_ways,
        _filled,
        witness="unsigned",
    ),
)


def _heads(case: Case) -> bool:
    return bool(case.arrays["effect"].size)


def _by_fraction(case: Case) -> bool:
    return _heads(case) and case.options.get("threshold") is None


def _signs(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    effect = case.arrays["effect"]
    yield Claim(probe(case)["out"], probe(case.having(effect=effect * rng.choice([-1.0, 1.0], effect.shape)))["out"])


def _number(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    mask = probe(case)["out"]
    heads = math.prod(mask.shape[-2:])
    expected = max(1, math.ceil(round(case.options.get("fraction", 0.02) * heads, 9)))
    counts = np.sum(mask, axis=(-2, -1), dtype=float)
    yield Claim(counts[..., None], np.full((*counts.shape, 1), float(expected)))


def _none_is_larger(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    mask, size = probe(case)["out"].astype(bool), np.abs(case.arrays["effect"])
    kept = np.min(np.where(mask, size, np.inf), axis=(-2, -1))
    left = np.max(np.where(mask, -np.inf, size), axis=(-2, -1))
    yield Claim((left > kept)[..., None].astype(float), np.zeros((*kept.shape, 1)))


MASK_LAWS = (
    Law(
        "signs_do_not_matter",
        "Turning the sign of effects round chooses the same heads.",
        _signs,
        _heads,
        witness="signed",
    ),
    Law(
        "as_many_as_asked",
        "The fraction of all heads is kept, rounded up, and never nobody.",
        _number,
        _by_fraction,
        witness="of_one_layer",
    ),
    Law(
        "none_left_out_is_larger",
        "No head that is left out has a larger effect than one that is kept.",
        _none_is_larger,
        _heads,
        witness="weakest_first",
    ),
)


def _pairs(case: Case) -> bool:
    return bool(case.arrays["effect_a"].size)


def _symmetric(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    back = case.having(effect_a=case.arrays["effect_b"], effect_b=case.arrays["effect_a"])
    one, other = probe(case), probe(back)
    slacks = probe.slack(case), probe.slack(back)
    for name, twin in (("overlap", "overlap"), ("jaccard", "jaccard"), ("shared", "shared"), ("only_a", "only_b")):
        measure = name in ("overlap", "jaccard")
        yield Claim(one[name], other[twin], slacks[0][name] + slacks[1][name] if measure else 0.0, name)


def _itself(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    alone = case.having(effect_b=case.arrays["effect_a"])
    found = probe(alone)
    for name in ("overlap", "jaccard"):
        yield Claim(found[name], np.ones_like(found[name]), probe.slack(alone)[name], name)


def _jaccard_is_smaller(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found, slack = probe(case), probe.slack(case)
    excess = np.maximum(found["jaccard"] - found["overlap"], 0.0)
    yield Claim(excess, np.zeros_like(excess), slack["jaccard"] + slack["overlap"])


def _parts(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(case)
    for name in ("a", "b"):
        effect = {"effect": case.arrays[f"effect_{name}"]}
        mask = probe(Case("head_mask", effect, case.options, case.dtype, case.label))["out"]
        yield Claim(found["shared"].astype(float) + found[f"only_{name}"], mask.astype(float), 0.0, name)


OVERLAP_LAWS = (
    Law(
        "overlap_is_symmetric",
        "Exchanging the circuits changes neither measure.",
        _symmetric,
        _pairs,
        witness="first_circuit",
    ),
    Law(
        "a_circuit_is_itself",
        "A circuit overlaps with itself completely.",
        _itself,
        _pairs,
        witness="both_counted_twice",
    ),
    Law(
        "jaccard_is_not_larger",
        "The Jaccard index is at most the overlap.",
        _jaccard_is_smaller,
        _pairs,
        witness="intersection",
    ),
    Law(
        "shared_and_rest_are_all",
        "What is shared and what a circuit has alone are that circuit.",
        _parts,
        _pairs,
        needs=("head_mask",),
        witness="either_alone",
    ),
)


def _chosen(case: Case) -> np.ndarray:
    """Mark the forced rows: (B, H, T)."""
    batch, heads, t, _ = case.arrays["pattern"].shape
    chosen = np.zeros((batch, heads, t), bool)
    for b, row in enumerate(case.arrays["rows"]):
        chosen[b, list(case.options["heads"]), row] = True
    return chosen


def _sums(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    pattern, weight = case.arrays["pattern"], case.options.get("weight", 1.0)
    before = np.sum(pattern, axis=-1)
    after = np.where(_chosen(case), (1 - weight) * before + weight, before)
    slack = math.sqrt(pattern.shape[-1]) * np.linalg.norm(probe.slack(case)["out"], axis=-1)
    yield Claim(np.sum(probe(case)["out"], axis=-1), after, slack)


def _others(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    kept = ~_chosen(case)[..., None]
    yield Claim(np.where(kept, probe(case)["out"], 0.0), np.where(kept, case.arrays["pattern"], 0.0))


def _without_weight(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    free = case.having(weight=0.0)
    yield Claim(probe(free)["out"], case.arrays["pattern"], probe.slack(free)["out"])


def _somebody(case: Case) -> bool:
    return bool(case.arrays["pattern"].size)


FORCE_LAWS = (
    Law(
        "rows_stay_distributions",
        "A forced row sums to what is left of the old one and what is forced.",
        _sums,
        _somebody,
        witness="one_on_each",
    ),
    Law(
        "other_rows_stay",
        "Rows and heads that are not forced are bit by bit what they were.",
        _others,
        _somebody,
        witness="every_query",
    ),
    Law(
        "no_weight_no_change",
        "With weight zero attention stays as it is.",
        _without_weight,
        _somebody,
        witness="weight_of_the_old_row",
    ),
)


def _turned(probe: Probe, case: Case, changed: Case) -> Claim:
    """Claim that a call which only renames things errs no more, and gives the same."""
    return Claim(probe(changed)["out"], probe(case)["out"], 2.0 * probe.slack(case)["out"])


def _order_of_prompts(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    names = ("clean", "corrupt", "answers")
    yield _turned(probe, case, case.having(**{name: case.arrays[name][::-1].copy() for name in names}))


def _order_of_words(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _turned(probe, case, case.having(answers=case.arrays["answers"][:, ::-1].copy()))


def _mute(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"]
    silent = weights.blocks[0].W_O.copy()
    silent[0] = 0.0
    blocks = (weights.blocks[0]._replace(W_O=silent), *weights.blocks[1:])
    muted: Any = case.having(weights=weights._replace(blocks=blocks))
    slack = probe.slack(muted)["out"]
    yield Claim(probe(muted)["out"][:1, :1], np.zeros((1, 1)), slack[:1])


def _not_asked(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out = probe(case)["out"]
    for where, head in case.options["receivers"]:
        if head is not None:
            yield Claim(out[where, head : head + 1], np.zeros(1), 0.0, f"{where}.{head}")


PATCH_LAWS = (
    Law(
        "order_of_prompts_does_not_matter",
        "Prompts in another order give the same effects.",
        _order_of_prompts,
        lambda case: len(case.arrays["clean"]) > 1,
        witness="first_prompt_decides",
    ),
    Law(
        "words_may_change_places",
        "Calling the wrong word right gives the same effects, because both differences change their sign.",
        _order_of_words,
        witness="right_word_alone",
    ),
    Law(
        "a_mute_head_has_no_effect",
        "A head whose output weights are zero has effect zero.",
        _mute,
        lambda case: case.label.startswith("to_the_output"),
        witness="layer_speaks",
    ),
    Law(
        "receivers_are_not_asked",
        "The entry of a receiver is exactly zero.",
        _not_asked,
        lambda case: any(head is not None for _, head in case.options["receivers"]),
        witness="receivers_asked_too",
    ),
)
