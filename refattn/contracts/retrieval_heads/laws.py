"""What holds between results about retrieval heads, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law, agree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["AVERAGE_LAWS", "CORRELATION_LAWS", "HIT_LAWS", "INSERT_LAWS", "OVERLAP_LAWS", "SPAN_LAWS"]


def _exactly(left: Any, right: Any, what: str = "") -> Claim:
    """Claim that whole numbers, made rows of one entry, are equal."""
    left, right = (np.atleast_1d(np.asarray(side, dtype=float)) for side in (left, right))
    return Claim(left, right, what=what)


def _only_ranks_count(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows = case.arrays["attn_rows"]
    height = 2.0 ** np.arange(len(rows)).reshape(-1, 1, 1, 1)  # powers of two scale exactly
    yield agree(probe, case, case.having(attn_rows=rows / height))


def _heads_are_alone(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(case.arrays["attn_rows"].shape[2])
    moved = case.having(attn_rows=case.arrays["attn_rows"][:, :, order])
    slack = probe.slack(case)["out"] + probe.slack(moved)["out"]
    yield Claim(probe(case)["out"][:, order], probe(moved)["out"], slack)


def _wider_looks_never_lower(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    wider = case.having(topk=case.options.get("topk", 1) + 1)
    less, more = probe(case)["out"], probe(wider)["out"]
    yield Claim(np.minimum(less, more), less, probe.slack(case)["out"] + probe.slack(wider)["out"])


def _steps_add_up(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cut = int(rng.integers(len(case.arrays["generated"]) + 1))
    parts = [
        case.having(**{name: case.arrays[name][part] for name in ("attn_rows", "generated")})
        for part in (slice(cut), slice(cut, None))
    ]
    slack = sum((probe.slack(part)["out"] for part in parts), probe.slack(case)["out"])
    yield Claim(probe(case)["out"], probe(parts[0])["out"] + probe(parts[1])["out"], slack)


def _a_needle_is_copied_once(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = case.having(
        unique=True, **{name: np.concatenate([case.arrays[name]] * 2) for name in ("attn_rows", "generated")}
    )
    once = case.having(unique=True)
    yield agree(probe, once, twice)
    out = probe(once)["out"]
    yield Claim(np.minimum(out, 1.0), out, probe.slack(once)["out"], "at most 1")


def _only_the_needle_counts(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    """Change the tokens outside the span: what is copied from there never counted."""
    start, end = case.options["span"]
    prompt = case.arrays["prompt"].copy()
    outside = np.ones(len(prompt), bool)
    outside[max(start, 0) : max(end, 0)] = False
    prompt[outside] = rng.choice(case.arrays["generated"], size=int(outside.sum()))
    yield agree(probe, case, case.having(prompt=prompt))


def _tokens_have_no_names(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield agree(probe, case, case.having(**{name: 9 - case.arrays[name] for name in ("generated", "prompt")}))


def _silence_scores_zero(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    other = case.having(generated=np.full_like(case.arrays["generated"], 77))
    out = probe(other)["out"]
    yield Claim(out, np.zeros_like(out), what="another word")
    nowhere = case.having(span=(-1, -1))
    yield Claim(probe(nowhere)["out"], np.zeros_like(out), what="no needle")


def _steps(case: Case) -> bool:
    return bool(case.arrays["attn_rows"].size)


def _needle_shorter_than_answer(case: Case) -> bool:
    return _steps(case) and case.options["span"] != (-1, -1)


HIT_LAWS = (
    Law(
        "only_ranks_count",
        "Scaling a row changes nothing: only which keys have the largest weights counts.",
        _only_ranks_count,
        _steps,
        witness="strong_looks_only",
    ),
    Law(
        "heads_are_alone",
        "Exchanging heads exchanges their scores.",
        _heads_are_alone,
        _steps,
        witness="largest_weight_of_the_layer",
    ),
    Law(
        "wider_looks_never_lower",
        "Counting more keys as looked at never lowers a score.",
        _wider_looks_never_lower,
        _needle_shorter_than_answer,
        witness="all_looks_must_agree",
    ),
    Law(
        "steps_add_up",
        "Without unique the score of two stretches of an answer is the sum of theirs.",
        _steps_add_up,
        lambda case: _steps(case) and not case.options.get("unique", False),
        witness="share_of_steps",
    ),
    Law(
        "a_needle_is_copied_once",
        "With unique an answer said twice scores as if said once, and no score exceeds 1.",
        _a_needle_is_copied_once,
        _needle_shorter_than_answer,
        witness="repeats_always_count",
    ),
    Law(
        "only_the_needle_counts",
        "Tokens outside the needle do not matter.",
        _only_the_needle_counts,
        _steps,
        witness="anywhere_in_prompt",
    ),
    Law(
        "tokens_have_no_names",
        "Renaming all tokens changes nothing.",
        _tokens_have_no_names,
        _steps,
        witness="token_zero_is_padding",
    ),
    Law(
        "silence_scores_zero",
        "An answer in other words scores zero, as does one about a needle that is nowhere.",
        _silence_scores_zero,
        _steps,
        witness="looking_is_enough",
    ),
)


def _parts(probe: Probe, case: Case) -> tuple[np.ndarray, int, int]:
    raw = probe(case)
    return raw["ids"], int(raw["at"]), len(case.arrays["needle"])


def _needle_is_in_one_piece(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    ids, at, m = _parts(probe, case)
    yield _exactly(ids[at : at + m], case.arrays["needle"])


def _rest_is_the_context(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    ids, at, m = _parts(probe, case)
    context = case.arrays["context"]
    kept = min(len(context), case.options["length"] - case.options.get("buffer", 200) - m)
    yield _exactly(len(ids), kept + m, "length")
    yield _exactly(np.concatenate([ids[:at], ids[at + m :]])[:kept], context[:kept], "context")


def _stands_between_sentences(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    ids, at, m = _parts(probe, case)
    free = at == 0 or ids[at - 1] in case.arrays["period_ids"]
    appended = case.options["depth"] == 100 and at == len(ids) - m
    yield _exactly(free or appended, True)


def _deeper_is_later(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    places = [_parts(probe, case.having(depth=depth))[1] for depth in (0, 30, 60, 99, 100)]
    yield _exactly(np.diff(places) >= 0, np.ones(4))
    yield _exactly([places[0], places[-1]], [0, len(probe(case)["ids"]) - len(case.arrays["needle"])], "both ends")


INSERT_LAWS = (
    Law(
        "needle_is_in_one_piece",
        "The needle stands at the reported place, in one piece.",
        _needle_is_in_one_piece,
        witness="place_after_the_needle",
    ),
    Law(
        "rest_is_the_context",
        "Without the needle the context is left, cut to what the buffer leaves of the length.",
        _rest_is_the_context,
        witness="needle_not_counted",
    ),
    Law(
        "stands_between_sentences",
        "The needle stands at the beginning, after the end of a sentence, or at the very end.",
        _stands_between_sentences,
        witness="amid_a_sentence",
    ),
    Law(
        "deeper_is_later",
        "A deeper needle never stands earlier; depth 0 is the beginning, depth 100 the end.",
        _deeper_is_later,
        witness="always_moves",
    ),
)


def _new_words_are_found(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    """Hide ten distinct words that the text does not have: every one of them must be in the window."""
    needle = 100 + rng.permutation(10)
    at = int(rng.integers(len(case.arrays["ids"]) + 1))
    ids = np.insert(case.arrays["ids"], at, needle)
    found = probe(case.having(ids=ids, needle=needle).without("threshold"))
    yield _exactly([found["start"], found["end"]], [at, at + 10])


def _order_of_words_is_free(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    mixed = case.having(needle=rng.permutation(case.arrays["needle"]))
    yield _exactly(probe(case)["start"], probe(mixed)["start"])


def _repetition_adds_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(case)
    if int(found["start"]) >= 0:
        twice = probe(case.having(ids=np.concatenate([case.arrays["ids"]] * 2)))
        yield _exactly([twice["start"], twice["end"]], [found["start"], found["end"]])


def _absent_words_are_nowhere(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(case.having(needle=case.arrays["needle"] + 1000))
    yield _exactly([found["start"], found["end"]], [-1, -1])


SPAN_LAWS = (
    Law(
        "new_words_are_found",
        "A needle of ten words that the text does not have is found exactly where it is.",
        _new_words_are_found,
        witness="one_token_short",
    ),
    Law(
        "order_of_words_is_free",
        "The order of the needle's tokens does not matter.",
        _order_of_words_is_free,
        lambda case: bool(len(case.arrays["needle"]) > 1),
        witness="place_by_place",
    ),
    Law(
        "repetition_adds_nothing",
        "A text said twice has its needle where the text said once has it.",
        _repetition_adds_nothing,
        witness="last_window",
    ),
    Law(
        "absent_words_are_nowhere",
        "A needle that shares no token with the text is nowhere.",
        _absent_words_are_nowhere,
        witness="nowhere_is_zero",
    ),
)


def _order_is_free(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    mixed = case.having(**{name: rng.permutation(tokens) for name, tokens in case.arrays.items()})
    yield _exactly(probe(case)["out"], probe(mixed)["out"])


def _texts_may_be_swapped(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    wanted, said = case.arrays["reference_ids"], case.arrays["generated_ids"]
    yield _exactly(probe(case)["out"], probe(case.having(reference_ids=said, generated_ids=wanted))["out"])


def _all_said_is_all(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    wanted, said = case.arrays["reference_ids"], case.arrays["generated_ids"]
    whole = case.having(generated_ids=np.concatenate([said, wanted]))
    yield _exactly(probe(whole)["out"], len(wanted))


def _more_words_never_less(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    said = case.arrays["generated_ids"]
    fewer = case.having(generated_ids=said[: len(said) // 2])
    less, more = probe(fewer)["out"], probe(case)["out"]
    yield _exactly(np.minimum(less, more), less, "more words")
    yield _exactly(np.clip(more, 0, min(len(said), len(case.arrays["reference_ids"]))), more, "within both")


OVERLAP_LAWS = (
    Law("order_is_free", "The order of words does not matter.", _order_is_free, witness="same_place_only"),
    Law(
        "all_said_is_all",
        "A text with the whole other text in it shares all of its words.",
        _all_said_is_all,
        witness="distinct_only",
    ),
    Law(
        "texts_may_be_swapped",
        "Exchanging the two texts changes nothing.",
        _texts_may_be_swapped,
        witness="once_is_enough",
    ),
    Law(
        "more_words_never_less",
        "More words never lower the count, and neither text is exceeded.",
        _more_words_never_less,
        witness="said_as_often_as_it_likes",
    ),
)


def _mean_of_single_runs(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Average what each run alone gives."""
    n = len(case.arrays["scores"])
    single = [case.having(**{k: v[i : i + 1] for k, v in case.arrays.items()}) for i in range(n)]
    results = [probe(one) for one in single]
    count = max(sum(int(result["n_used"]) for result in results), 1)
    for name in ("mean", "activation"):
        each = [probe.slack(one)[name] for one in single]
        total = np.sum([result[name] for result in results], axis=0)
        slack = np.sum(each, axis=0) / count + probe.slack(case)[name]
        yield Claim(total / count, probe(case)[name], slack, name)


def _failures_are_not_read(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    scores = case.arrays["scores"].copy()
    failed = case.arrays["recalls"] <= case.options.get("min_recall", 0.5)
    scores[failed] = rng.random(scores[failed].shape).round(2)
    other = case.having(scores=scores)
    for name in ("mean", "activation"):
        yield Claim(probe(case)[name], probe(other)[name], probe.slack(case)[name] + probe.slack(other)[name], name)


def _active_is_any_copy(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    faint = case.having(scores=case.arrays["scores"] / 64)
    yield agree(probe, case, faint, "activation")


def _runs(case: Case) -> bool:
    return bool(len(case.arrays["scores"]))


AVERAGE_LAWS = (
    Law(
        "mean_of_single_runs",
        "Mean and activation are the averages of what each counted run gives alone.",
        _mean_of_single_runs,
        _runs,
        witness="failures_as_zeros",
    ),
    Law(
        "failures_are_not_read",
        "The scores of runs that do not count do not matter.",
        _failures_are_not_read,
        _runs,
        witness="failures_included",
    ),
    Law(
        "active_is_any_copy",
        "However small a score is, the head was active.",
        _active_is_any_copy,
        _runs,
        witness="active_from_a_third",
    ),
)


def _models_may_be_swapped(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield agree(probe, case, case.having(a=case.arrays["b"], b=case.arrays["a"]))


def _scale_is_free(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    half = case.having(a=case.arrays["a"] / 2, b=-case.arrays["b"] / 4)
    slack = probe.slack(case)["out"] + probe.slack(half)["out"]
    yield Claim(-probe(half)["out"], probe(case)["out"], slack)


def _heads_in_any_order(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(case.arrays["a"].size)
    mixed = {name: case.arrays[name].reshape(-1)[order].reshape(case.arrays[name].shape) for name in "ab"}
    yield agree(probe, case, case.having(**mixed))


def _one_with_itself(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    itself = case.having(b=case.arrays["a"].copy())
    yield Claim(probe(itself)["out"], np.array(1.0), probe.slack(itself)["out"])


CORRELATION_LAWS = (
    Law(
        "models_may_be_swapped",
        "Exchanging the models changes nothing.",
        _models_may_be_swapped,
        witness="slope_for_correlation",
    ),
    Law(
        "scale_is_free",
        "Scaling a map changes nothing, and turning its sign turns the sign.",
        _scale_is_free,
        witness="covariance",
    ),
    Law(
        "heads_in_any_order",
        "Exchanging heads of both models alike changes nothing.",
        _heads_in_any_order,
        witness="layers_apart",
    ),
    Law("one_with_itself", "A map has correlation 1 with itself.", _one_with_itself, witness="sample_deviation"),
)
