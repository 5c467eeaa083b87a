"""Mistakes that people make when they score retrieval heads, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.retrieval_heads.plain import (
    averaging,
    correlating,
    finding,
    hitting,
    inserting,
    overlapping,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["AVERAGE_BUGS", "CORRELATION_BUGS", "HIT_BUGS", "INSERT_BUGS", "OVERLAP_BUGS", "SPAN_BUGS"]


def later_key_on_ties(row: np.ndarray, k: int) -> list[int]:
    """Return the k keys with the largest weights."""
    keys = [i for i in range(len(row)) if not np.isnan(row[i])]
    return sorted(keys, key=lambda i: (-row[i], -i))[:k]


def padding_ranks_first(row: np.ndarray, k: int) -> list[int]:
    """Return the k keys with the largest weights."""
    return [int(i) for i in np.argsort(row, kind="stable")[::-1][:k]]


def last_token_fed(generated: np.ndarray, prompt: np.ndarray, s: int) -> Any:
    """Return the token that a step is about."""
    return generated[s - 1] if s > 0 else prompt[-1]


def token_after_the_key(prompt: np.ndarray, i: int, token: int) -> bool:
    """Whether the key holds the token."""
    return i + 1 < len(prompt) and bool(prompt[i + 1] == token)


def looking_is_enough(_prompt: np.ndarray, _i: int, _token: int) -> bool:
    """Whether the key holds the token."""
    return True


def end_included(i: int, start: int, end: int, length: int) -> bool:
    """Whether a key belongs to the needle."""
    return start <= i <= end < length or start <= i < end


def anywhere_in_prompt(i: int, _start: int, _end: int, length: int) -> bool:
    """Whether a key belongs to the needle."""
    return i < length


def every_match_counts(matches: list[int], _looks: int) -> list[int]:
    """Return which of a step's matches count."""
    return matches


def all_looks_must_agree(matches: list[int], looks: int) -> list[int]:
    """Return which of a step's matches count."""
    return matches[:1] if len(matches) == looks else []


def largest_weight_of_the_layer(attn_rows: np.ndarray, s: int, head: tuple[int, ...]) -> np.ndarray:
    """Return the row of a head at a step."""
    return np.asarray(attn_rows[s, head[0], : head[1] + 1].max(axis=0))


def strong_looks_only(row: np.ndarray, copies: list[int]) -> list[int]:
    """Return the copies of a step that are strong enough."""
    return [i for i in copies if row[i] > 5.0]


def token_zero_is_padding(prompt: np.ndarray, i: int, token: int) -> bool:
    """Whether the key holds the token."""
    return bool(prompt[i] == token) and token != 0


def distinct_tokens(copies: list[int], prompt: np.ndarray, *, unique: bool) -> int:
    """Return how often a head copied."""
    return len({int(prompt[i]) for i in copies}) if unique else len(copies)


def repeats_always_count(copies: list[int], _prompt: np.ndarray, *, unique: bool) -> int:
    """Return how often a head copied."""
    del unique
    return len(copies)


def repeats_never_count(copies: list[int], _prompt: np.ndarray, *, unique: bool) -> int:
    """Return how often a head copied."""
    del unique
    return len(set(copies))


def share_of_steps(_start: int, _end: int, steps: int) -> int:
    """Return what a perfect head reaches."""
    return steps


def _spans(case: Case) -> bool:
    start, end = case.options["span"]
    return bool(end > start) and case.arrays["attn_rows"].size > 0


def _taking(least: int = 1, *, unique: bool | None = None) -> Callable[[Case], bool]:
    """Whether so many keys count as looked at, and repeats count or not."""

    def applies(case: Case) -> bool:
        chosen = unique is None or case.options.get("unique", False) == unique
        return _spans(case) and chosen and case.options.get("topk", 1) >= least

    return applies


def _tied(case: Case) -> bool:
    return _spans(case) and case.label.endswith("/tied")


def _padded(case: Case) -> bool:
    return _spans(case) and bool(np.isnan(case.arrays["attn_rows"]).any())


_RANK = "Rank what is there, the largest weight first; among equal weights the lowest key first."
_WORD = "A step's row is the query of the token before; compare the key's own token with the one the step produced."
_TALLY = "With unique count each position of the needle once; without it every copy."

HIT_BUGS = tuple(
    mistake.planted(hitting)
    for mistake in (
        Mistake("ranked", later_key_on_ties, "Among equal weights the latest key is taken.", _RANK, _tied),
        Mistake("ranked", padding_ranks_first, "NaN of the padding counts as the largest weight.", _RANK, _padded),
        Mistake("asked", last_token_fed, "The key is compared with the token that was fed.", _WORD, _spans),
        Mistake("held", token_after_the_key, "The token after the key is compared, as for induction.", _WORD, _spans),
        Mistake("held", looking_is_enough, "Looking at the needle counts, whatever is said.", _WORD, _spans),
        Mistake("held", token_zero_is_padding, "Token 0 is taken for padding.", _WORD, _spans),
        Mistake(
            "row_of",
            largest_weight_of_the_layer,
            "A head gets what earlier heads of its layer look at too.",
            "Each head is scored by its own row.",
            lambda case: _spans(case) and case.arrays["attn_rows"].shape[2] > 1,
        ),
        Mistake(
            "worth",
            strong_looks_only,
            "Only looks above a fixed weight count.",
            "The largest weight of a row counts, however large it is.",
            _spans,
        ),
        Mistake(
            "counted",
            all_looks_must_agree,
            "A step counts only if all its top keys match.",
            "One match among the top keys is enough.",
            _taking(2),
        ),
        Mistake(
            "inside",
            end_included,
            "The token after the needle belongs to it.",
            "The end of a span is excluded.",
            lambda case: _spans(case) and case.options["span"][1] < len(case.arrays["prompt"]),
        ),
        Mistake(
            "inside",
            anywhere_in_prompt,
            "Copies from anywhere in the prompt count.",
            "Only keys inside the span count.",
            lambda case: _spans(case) and case.options["span"] != (0, len(case.arrays["prompt"])),
        ),
        Mistake(
            "counted",
            every_match_counts,
            "All matches among the top keys of a step count.",
            "A step produces one token: its most attended match counts, then the step is over.",
            _taking(2, unique=False),
        ),
        Mistake("tally", distinct_tokens, "Distinct tokens are counted, not positions.", _TALLY, _taking(unique=True)),
        Mistake("tally", repeats_always_count, "Repeats count in spite of unique.", _TALLY, _taking(unique=True)),
        Mistake("tally", repeats_never_count, "Repeats never count.", _TALLY, _taking(unique=False)),
        Mistake(
            "divisor",
            share_of_steps,
            "Copies are divided by the number of steps.",
            "Divide by the number of tokens of the needle.",
            lambda case: (
                _spans(case) and len(case.arrays["generated"]) != case.options["span"][1] - case.options["span"][0]
            ),
        ),
    )
)


def buffer_forgotten(length: int, _buffer: int) -> int:
    """Return how many tokens text and needle may have."""
    return length


def needle_not_counted(context: np.ndarray, m: int, space: int) -> np.ndarray:
    """Return what of the context stays."""
    return context[:space] if len(context) + m > space else context


def beginning_cut(context: np.ndarray, m: int, space: int) -> np.ndarray:
    """Return what of the context stays."""
    surplus = len(context) + m - space
    return context[min(max(surplus, 0), len(context)) :]


def depth_of_the_whole(n: int, m: int, depth: float) -> int:
    """Return where in a context of n tokens a depth lies."""
    return min(int((n + m) * depth / 100), n)


def rounded_up(n: int, _m: int, depth: float) -> int:
    """Return where in a context of n tokens a depth lies."""
    return int(np.ceil(n * depth / 100))


def amid_a_sentence(_context: np.ndarray, at: int, _period_ids: np.ndarray) -> int:
    """Return the nearest end of a sentence before."""
    return at


def before_the_period(context: np.ndarray, at: int, period_ids: np.ndarray) -> int:
    """Return the nearest end of a sentence before."""
    while at > 0 and (at == len(context) or context[at] not in period_ids):
        at -= 1
    return at


def end_of_this_sentence(context: np.ndarray, at: int, period_ids: np.ndarray) -> int:
    """Return the nearest end of a sentence before."""
    while 0 < at < len(context) and context[at - 1] not in period_ids:
        at += 1
    return at


def always_moves(_depth: float) -> bool:
    """Whether the needle moves to the end of a sentence."""
    return True


def place_after_the_needle(at: int, m: int) -> int:
    """Return the place that is reported."""
    return at + m


def _surplus(case: Case) -> int:
    options, arrays = case.options, case.arrays
    return int(len(arrays["context"]) + len(arrays["needle"]) - options["length"] + options.get("buffer", 200))


def _between(case: Case) -> bool:
    return len(case.arrays["context"]) > 0 and 0 < case.options["depth"] < 100


_CUT = "Cut the end of the context, so that context and needle fill what the buffer leaves of the length."
_POINT = "The depth is a share of the cut context, without the needle, rounded down."
_MOVED = "Go back until the token before the needle ends a sentence."

INSERT_BUGS = tuple(
    mistake.planted(inserting)
    for mistake in (
        Mistake(
            "room",
            buffer_forgotten,
            "No room is left for the question.",
            _CUT,
            lambda case: _surplus(case) > 0 and case.options.get("buffer", 200) > 0,
        ),
        Mistake("cut", needle_not_counted, "The context fills all the room.", _CUT, lambda case: _surplus(case) > 0),
        Mistake("cut", beginning_cut, "The beginning is cut.", _CUT, lambda case: _surplus(case) > 0),
        Mistake("point", depth_of_the_whole, "The needle counts for the depth.", _POINT, _between),
        Mistake("point", rounded_up, "The depth is rounded up.", _POINT, _between),
        Mistake("moved", amid_a_sentence, "The needle may stand amid a sentence.", _MOVED, _between),
        Mistake("moved", before_the_period, "The needle stands before the period.", _MOVED, _between),
        Mistake("moved", end_of_this_sentence, "The needle moves on, to the end of this sentence.", _MOVED, _between),
        Mistake(
            "moves",
            always_moves,
            "At depth 100 the needle moves too.",
            "At depth 100 append the needle, period or not.",
            lambda case: case.options["depth"] == 100 and len(case.arrays["context"]) > 0,
        ),
        Mistake(
            "reported",
            place_after_the_needle,
            "The place after the needle is reported.",
            "Report where the needle begins.",
        ),
    )
)


def one_token_short(ids: np.ndarray, start: int, m: int) -> np.ndarray:
    """Return the tokens that are compared with the needle."""
    return ids[start : start + max(m - 1, 1)]


def share_of_the_window(seen: np.ndarray, needle: np.ndarray) -> float:
    """Return how much of the needle a window holds."""
    return len(set(needle.tolist()) & set(seen.tolist())) / len(set(seen.tolist()))


def place_by_place(seen: np.ndarray, needle: np.ndarray) -> float:
    """Return how much of the needle a window holds."""
    return float(np.mean(seen == needle))


def repeats_count(seen: np.ndarray, needle: np.ndarray) -> float:
    """Return how much of the needle a window holds."""
    return float(np.mean(np.isin(seen, needle)))


def reached_is_enough(part: float, threshold: float) -> bool:
    """Whether a window holds enough."""
    return part >= threshold


def last_window(starts: list[int]) -> int:
    """Return which of the windows that hold enough is taken."""
    return starts[-1]


def nowhere_is_zero(_m: int) -> tuple[int, int]:
    """Return the span of what is not there."""
    return 0, 0


_SHARE = "Compare sets: the share of the needle's distinct tokens that a window of its length holds."


def _sought(case: Case) -> bool:
    return bool(len(case.arrays["ids"]) > len(case.arrays["needle"]) > 1)


SPAN_BUGS = tuple(
    mistake.planted(finding)
    for mistake in (
        Mistake("window", one_token_short, "The window is a token too short.", _SHARE, _sought),
        Mistake("share", share_of_the_window, "The share of the window's tokens is taken.", _SHARE, _sought),
        Mistake("share", place_by_place, "Tokens are compared place by place.", _SHARE, _sought),
        Mistake("share", repeats_count, "Repeated tokens count each time.", _SHARE, _sought),
        Mistake(
            "found",
            reached_is_enough,
            "A window that reaches the threshold is taken.",
            "The share must exceed the threshold.",
            lambda case: _sought(case) and case.options.get("threshold", 0.9) in (0.25, 0.5, 0.75, 1.0),
        ),
        Mistake("first", last_window, "The last window is taken.", "Take the first window.", _sought),
        Mistake(
            "nowhere",
            nowhere_is_zero,
            "What is not there is reported at the beginning.",
            "Return (−1, −1), which no needle has.",
            lambda case: len(case.arrays["ids"]) < len(case.arrays["needle"]),
        ),
    )
)


def said_as_often_as_it_likes(_wanted: int, said: int) -> int:
    """Return how many of so many occurrences in the answer were said."""
    return said


def once_is_enough(wanted: int, said: int) -> int:
    """Return how many of so many occurrences in the answer were said."""
    return wanted if said else 0


def distinct_only(_wanted: int, said: int) -> int:
    """Return how many of so many occurrences in the answer were said."""
    return min(1, said)


def same_place_only(wanted: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Return which of the words that were said are counted."""
    n = min(len(wanted), len(said))
    return np.asarray(said[:n][wanted[:n] == said[:n]])


def _says(case: Case) -> bool:
    return len(case.arrays["generated_ids"]) > 0


_CLIP = "A token counts as often as both texts have it."

OVERLAP_BUGS = tuple(
    mistake.planted(overlapping)
    for mistake in (
        Mistake("matched", said_as_often_as_it_likes, "Repeats beyond the answer's own count.", _CLIP, _says),
        Mistake("matched", once_is_enough, "A token said once covers all its occurrences.", _CLIP, _says),
        Mistake(
            "compared_words", same_place_only, "Words count only at their own place.", "Order does not matter.", _says
        ),
        Mistake("matched", distinct_only, "Each distinct token counts once.", _CLIP, _says),
    )
)


def failures_included(recalls: np.ndarray, _min_recall: float) -> np.ndarray:
    """Return which runs count."""
    return np.ones(len(recalls), bool)


def half_is_enough(recalls: np.ndarray, min_recall: float) -> np.ndarray:
    """Return which runs count."""
    return np.asarray(recalls >= min_recall)


def failures_as_zeros(runs: int, _n_used: int) -> int:
    """Return what sums are divided by."""
    return runs


def active_from_a_third(scores: np.ndarray) -> np.ndarray:
    """Return in which runs a head is active."""
    return np.asarray(scores > 1 / 3)


def never_zero(scores: np.ndarray) -> np.ndarray:
    """Return in which runs a head is active."""
    return np.asarray(scores >= 0)


_USED = "A run counts if its recall exceeds the bound; the others are left out of sums and counts alike."
_ACTIVE = "A head is active in a run if its score is above zero."


def _fails(case: Case) -> bool:
    recalls = case.arrays["recalls"]
    return bool(np.any(recalls <= case.options.get("min_recall", 0.5)))


def _works(case: Case) -> bool:
    recalls = case.arrays["recalls"]
    return bool(np.any(recalls > case.options.get("min_recall", 0.5)))


AVERAGE_BUGS = tuple(
    mistake.planted(averaging)
    for mistake in (
        Mistake("used", failures_included, "Runs that did not find the needle count.", _USED, _fails),
        Mistake("used", half_is_enough, "A run that reaches the bound counts.", _USED, _fails),
        Mistake(
            "total",
            failures_as_zeros,
            "Runs that do not count lower the mean.",
            _USED,
            lambda case: _fails(case) and _works(case),
        ),
        Mistake("active", active_from_a_third, "A head is active from a score of 1/3 on.", _ACTIVE, _works),
        Mistake("active", never_zero, "A score of zero counts as active.", _ACTIVE, _works),
    )
)


def mean_left_in(a: np.ndarray) -> np.ndarray:
    """Return scores less their mean."""
    return a


def layers_apart(a: np.ndarray) -> np.ndarray:
    """Return scores less their mean."""
    return np.asarray(a - a.mean(-1, keepdims=True))


def covariance(x: np.ndarray) -> np.ndarray:
    """Return centred scores of length one."""
    return np.asarray(x / np.sqrt(x.size))


def sample_deviation(x: np.ndarray) -> np.ndarray:
    """Return centred scores of length one."""
    return np.asarray(x / x.std(ddof=1) / np.sqrt(x.size))


def slope_for_correlation(x: np.ndarray, y: np.ndarray) -> Any:
    """Return the sum of products."""
    return np.sum(x * y) / (0.5 + np.abs(x).max())


def ranks_compared(a: np.ndarray) -> np.ndarray:
    """Return what is compared of a map."""
    return np.asarray(np.argsort(np.argsort(a, axis=None)), float).reshape(a.shape)


_PEARSON = "Centre both maps as a whole, then divide the sum of products by the root of both sums of squares."

CORRELATION_BUGS = tuple(
    mistake.planted(correlating)
    for mistake in (
        Mistake("centred", mean_left_in, "The means are not taken off: a cosine.", _PEARSON),
        Mistake(
            "centred",
            layers_apart,
            "Each layer is centred on its own.",
            _PEARSON,
            lambda case: case.arrays["a"].shape[0] > 1,
        ),
        Mistake("normed", covariance, "The covariance is not divided by the deviations.", _PEARSON),
        Mistake("normed", sample_deviation, "Deviations of a sample meet a mean over all.", _PEARSON),
        Mistake("product", slope_for_correlation, "The result depends on the spread of the first map.", _PEARSON),
        Mistake("compared", ranks_compared, "Ranks are compared: Spearman's correlation.", _PEARSON),
    )
)
