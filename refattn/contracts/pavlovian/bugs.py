"""Mistakes that people make with fast weights, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug, Mistake
from refattn.contracts.pavlovian.plain import (
    attending,
    hebb,
    pair,
    polynomial_reading,
    predicted,
    reading,
    softmax_reading,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from refattn.conformance.contract import Case

__all__ = ["ATTENTION_BUGS", "POLYNOMIAL_BUGS", "READ_BUGS", "SOFTMAX_BUGS", "WRITE_BUGS"]


def pairs(case: Case) -> int:
    """Return the number of pairs that a case writes, none if its batch is empty."""
    keys = case.arrays["keys" if "keys" in case.arrays else "k"]
    return int(keys.shape[-2]) if keys.size else 0


def under(*rules: str, least: int = 1) -> Callable[[Case], bool]:
    """Whether a case writes at least so many pairs under one of the rules."""
    return lambda case: bool(case.options.get("rule", "hebb") in rules and pairs(case) >= least)


def _fades(case: Case) -> bool:
    return bool(case.options.get("decay", 1.0) < 1.0)


def fades_new_pair(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float, gamma: float) -> Any:
    """Return the strengths after the pair."""
    return gamma * (S + rate * pair(v, k))


def forgets_instead_of_keeping(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float, gamma: float) -> Any:
    """Return the strengths after the pair."""
    return (1.0 - gamma) * S + rate * pair(v, k)


def rate_on_old_too(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float) -> Any:
    """Return the strengths after the pair."""
    return rate * (S + pair(v, k))


def error_added(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float) -> Any:
    """Return the strengths after the pair."""
    return S + rate * pair(v + predicted(S, k), k)


def erases_at_full_rate(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float) -> Any:
    """Return the strengths after the pair."""
    return S + pair(rate * v - predicted(S, k), k)


def never_corrects(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float) -> Any:
    """Return the strengths after the pair."""
    return hebb(S, k, v, rate)


def predicts_before_fading(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float, gamma: float) -> Any:
    """Return the strengths after the pair."""
    return gamma * S + rate * pair(v - predicted(S, k), k)


def fades_by_activity(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float) -> Any:
    """Return the strengths after the pair."""
    return S + rate * (pair(v, k) - np.abs(v)[..., None] * S)


def answers_squared(S: np.ndarray, k: np.ndarray) -> Any:
    """Return the activity of each row."""
    return predicted(S, k) ** 2


def threshold_not_squared(theta: np.ndarray, v: np.ndarray) -> Any:
    """Return the new threshold."""
    return theta + (v - theta) / 10.0


def threshold_stands_still(theta: np.ndarray, _v: np.ndarray) -> Any:
    """Return the new threshold."""
    return theta


def channels_inhibit_themselves(U: np.ndarray, k: np.ndarray, rate: float) -> Any:
    """Return the new lateral weights."""
    return U + rate * pair(k, k)


def one_sided(U: np.ndarray, k: np.ndarray, rate: float) -> Any:
    """Return the new lateral weights."""
    return U + rate * np.tril(pair(k, k), -1)


def bounds_largest_entry(S: np.ndarray, bound: float) -> Any:
    """Return the strengths within the bound."""
    largest = np.abs(S).max(axis=-1, keepdims=True)
    return S * np.minimum(1.0, bound / np.where(largest > 0, largest, 1.0))


def bounds_whole_memory(S: np.ndarray, bound: float) -> Any:
    """Return the strengths within the bound."""
    norm = np.linalg.norm(S, axis=(-1, -2), keepdims=True)
    return S * np.minimum(1.0, bound / np.where(norm > 0, norm, 1.0))


def stretches_short_rows(S: np.ndarray, bound: float) -> Any:
    """Return the strengths within the bound."""
    norm = np.linalg.norm(S, axis=-1, keepdims=True)
    return S * bound / np.where(norm > 0, norm, 1.0)


def pairs_repeated_in_place(n: int, n_epochs: int) -> Iterable[int]:
    """Return the order in which pairs are written."""
    return [int(t) for t in np.arange(n).repeat(n_epochs)]


def last_pair_left_out(n: int, n_epochs: int) -> Iterable[int]:
    """Return the order in which pairs are written."""
    return (list(range(n)) * n_epochs)[:-1]


def starts_from_nothing(_initial: np.ndarray | None, zero: np.ndarray) -> Any:
    """Return the strengths before the first pair."""
    return zero


def normalised_over_pairs(keys: np.ndarray) -> Any:
    """Return the keys, normalised."""
    return keys / np.linalg.norm(keys, axis=-2, keepdims=True)


def lags_by_one(states: list[np.ndarray]) -> Any:
    """Return the history."""
    return np.stack([states[0], *states[:-1]], axis=-3)


def reads_before_writing(before: np.ndarray, _after: np.ndarray) -> np.ndarray:
    """Return the strengths that the query reads."""
    return before


def reads_the_end(q: np.ndarray, k: np.ndarray, v: np.ndarray, **options: Any) -> Any:
    """Attend."""
    return attending()(q, k, v, **{**options, "causal": False})


def divides_by_root_of_width(S: np.ndarray, q: np.ndarray) -> Any:
    """Return the answers."""
    return np.einsum("...ij,...mj->...mi", S, q) / q.shape[-1] ** 0.5


def normalises_cues(S: np.ndarray, q: np.ndarray) -> Any:
    """Return the answers."""
    return np.einsum("...ij,...mj->...mi", S, q / (1e-12 + np.linalg.norm(q, axis=-1, keepdims=True)))


def cues_in_company(S: np.ndarray, q: np.ndarray) -> Any:
    """Return the answers."""
    return np.einsum("...ij,...mj->...mi", S, q - 0.5 * np.roll(q, 1, axis=-2))


def compares_queries(s: np.ndarray, beta: float) -> Any:
    """Return the weights of the pairs."""
    e = np.exp(beta * (s - s.max(axis=-2, keepdims=True, initial=-1e300)))
    return e / np.maximum(e.sum(axis=-2, keepdims=True), 1e-300)


def sums_exponentials(s: np.ndarray, beta: float) -> Any:
    """Return the weights of the pairs."""
    return np.exp(beta * s)


def divides_by_beta(s: np.ndarray, beta: float) -> Any:
    """Return the weights of the pairs."""
    e = np.exp((s - s.max(axis=-1, keepdims=True, initial=-1e300)) / max(beta, 1e-3))
    return e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300)


def queries_see_earlier_pairs(s: np.ndarray, beta: float) -> Any:
    """Return the weights of the pairs."""
    s = np.where(np.tri(*s.shape[-2:]) > 0, s, -1e4)
    e = np.exp(beta * (s - s.max(axis=-1, keepdims=True, initial=-1e300)))
    return e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300)


def match_of_either_sign(s: np.ndarray, degree: int) -> Any:
    """Return the kernel."""
    return np.abs(s) ** degree


def shifted_kernel(s: np.ndarray, degree: int) -> Any:
    """Return the kernel."""
    return (1.0 + s) ** degree


def multiplied_by_degree(s: np.ndarray, degree: int) -> Any:
    """Return the kernel."""
    return degree * s


_FADE = "Fade the old strengths by γ, and add the new pair in full."
_DELTA = "Predict with the strengths that the write starts from, and add η (v − prediction) kᵀ."
_BOUND = "Shrink each row whose Euclidean norm exceeds the bound; leave the others."
_LATERAL = "All pairs of different channels learn; the diagonal stays zero."
_THRESHOLD = "The threshold follows the square of the activity, with time constant τ."


def _bounds(case: Case) -> bool:
    bounded = case.options.get("rule") == "homeostatic" or case.options.get("max_row_norm") is not None
    return bounded and pairs(case) > 1


def _repeats(case: Case) -> bool:
    rules = under("decay", "delta", "gated_delta", "oja", "oja_free", "anti_hebb", least=2)
    return case.options.get("n_epochs", 1) > 1 and rules(case)


def _fading(*rules: str, least: int = 2) -> Callable[[Case], bool]:
    chosen = under(*rules, least=least)
    return lambda case: chosen(case) and _fades(case)


def _at_rate(case: Case) -> bool:
    return under("delta", least=2)(case) and case.options.get("rate", 1.0) != 1.0


_RULES = (
    Mistake("decay", fades_new_pair, "The new pair fades with the old ones.", _FADE, _fading("decay", least=1)),
    Mistake(
        "decay",
        forgets_instead_of_keeping,
        "γ is taken for what is lost instead of what is kept.",
        _FADE,
        _fading("decay"),
    ),
    Mistake(
        "hebb",
        rate_on_old_too,
        "The rate multiplies the old strengths too.",
        "The rate belongs to the new pair only.",
        lambda case: under("hebb", "anti_hebb", least=2)(case) and case.options.get("rate", 1.0) != 1.0,
    ),
    Mistake("delta", error_added, "The prediction is added to the value.", _DELTA, under("delta", least=2)),
    Mistake("delta", erases_at_full_rate, "The prediction is erased without the rate.", _DELTA, _at_rate),
    Mistake("delta", never_corrects, "The prediction is left out: delta is Hebb.", _DELTA, under("delta", least=2)),
    Mistake(
        "gated",
        predicts_before_fading,
        "The error is that of the strengths before they fade.",
        "Fade first, and predict with the faded strengths.",
        _fading("gated_delta"),
    ),
    Mistake(
        "oja",
        fades_by_activity,
        "Rows fade by their activity, not by its square.",
        "A row fades by η v_r², so that it settles at E[v k] / E[v²].",
        under("oja", least=2),
    ),
    Mistake("threshold", threshold_not_squared, "The threshold follows the activity.", _THRESHOLD, under("bcm")),
    Mistake("threshold", threshold_stands_still, "The threshold never moves.", _THRESHOLD, under("bcm")),
    Mistake(
        "lateral", channels_inhibit_themselves, "Channels inhibit themselves.", _LATERAL, under("anti_hebb", least=2)
    ),
    Mistake(
        "lateral",
        one_sided,
        "Channels are inhibited by earlier ones only.",
        _LATERAL,
        lambda case: (
            under("anti_hebb", least=2)(case) and case.arrays["keys" if "keys" in case.arrays else "k"].shape[-1] > 1
        ),
    ),
    Mistake("bounded", bounds_largest_entry, "The largest entry of a row is bounded.", _BOUND, _bounds),
    Mistake("bounded", bounds_whole_memory, "The norm of the whole memory is bounded.", _BOUND, _bounds),
    Mistake(
        "unit",
        normalised_over_pairs,
        "Keys are normalised over the pairs.",
        "Divide each key by its own norm, over its channels.",
        lambda case: bool(case.options.get("normalize_keys")) and pairs(case) > 1,
    ),
)

WRITE_BUGS = (
    *(mistake.planted(writing) for mistake in _RULES),
    Mistake("bounded", stretches_short_rows, "Short rows are stretched to the bound.", _BOUND, _bounds).planted(
        writing
    ),
    Mistake(
        "activity",
        answers_squared,
        "A row's activity is the square of its answer.",
        "The activity of a row is w·k.",
        lambda case: under("oja_free")(case) and "initial" in case.arrays,
    ).planted(writing),
    Mistake(
        "order",
        pairs_repeated_in_place,
        "Each pair is written as often as there are epochs before the next comes.",
        "An epoch goes through all pairs.",
        _repeats,
    ).planted(writing),
    Mistake(
        "order",
        last_pair_left_out,
        "The last pair is not written.",
        "Write every pair.",
        lambda case: pairs(case) > 0 and not case.options.get("return_history", False),
    ).planted(writing),
    Mistake(
        "start",
        starts_from_nothing,
        "What was known before is dropped.",
        "Begin with the strengths that are handed over.",
        lambda case: case.arrays.get("initial", np.zeros(0)).size > 0,
    ).planted(writing),
    Mistake(
        "history",
        lags_by_one,
        "The history shows each state one pair late.",
        "The history is the start, and the state after each pair.",
        lambda case: bool(case.options.get("return_history")) and pairs(case) > 0,
    ).planted(writing),
)


def _causal(case: Case) -> bool:
    return pairs(case) > 0 and bool(case.options.get("causal", True))


def _wide(case: Case) -> bool:
    return pairs(case) > 0 and case.arrays["k"].shape[-1] > 1


_ATTENTION_RULES = ("fades_new_pair", "error_added", "erases_at_full_rate", "predicts_before_fading", "one_sided")

ATTENTION_BUGS = (
    *(m.planted(attending, "attention_") for m in _RULES if m.wrong.__name__ in _ATTENTION_RULES),
    Mistake(
        "visible",
        reads_before_writing,
        "A token reads before it writes: it does not see itself.",
        "Write the token's pair first, then read: o_t = S_t q_t.",
        _causal,
    ).planted(attending),
    Mistake(
        "read",
        divides_by_root_of_width,
        "Answers are divided by √d.",
        "Linear attention as a memory has no scale.",
        _wide,
    ).planted(attending, "attention_"),
    Bug(
        "reads_the_end",
        "Every token reads the memory of the whole sequence.",
        reads_the_end,
        lambda case: _causal(case) and pairs(case) > 1,
        remedy="Read S_t, the memory up to and with the token.",
    ),
)


def _cues(case: Case) -> int:
    queries = case.arrays["queries"]
    return int(queries.shape[-2]) if queries.size else 0


READ_BUGS = (
    Mistake(
        "read",
        divides_by_root_of_width,
        "Answers are divided by √d.",
        "Multiply by S and by nothing else.",
        lambda case: _cues(case) > 0 and case.arrays["S"].shape[-1] > 1,
    ).planted(reading),
    Mistake(
        "read",
        normalises_cues,
        "Cues are normalised.",
        "The answer is linear in the cue.",
        lambda case: _cues(case) > 0,
    ).planted(reading),
    Mistake(
        "read",
        cues_in_company,
        "A cue is lowered by its neighbour.",
        "Each cue is answered on its own.",
        lambda case: _cues(case) > 0,
    ).planted(reading),
)


def _recalls(n: int = 1, m: int = 1) -> Callable[[Case], bool]:
    return lambda case: pairs(case) >= n and _cues(case) >= m


SOFTMAX_BUGS = (
    Mistake(
        "weights",
        compares_queries,
        "The weights of a pair sum to one over the queries.",
        "Normalise over the pairs, for each query.",
        _recalls(2, 2),
    ).planted(softmax_reading),
    Mistake(
        "weights",
        sums_exponentials,
        "The exponentials are not normalised.",
        "Divide by the sum over the pairs.",
        _recalls(),
    ).planted(softmax_reading),
    Mistake(
        "weights",
        divides_by_beta,
        "β is taken for a temperature.",
        "β multiplies the match.",
        lambda case: _recalls(2)(case) and case.options["beta"] != 1.0,
    ).planted(softmax_reading),
    Mistake(
        "weights",
        queries_see_earlier_pairs,
        "Query i sees the first i + 1 pairs only.",
        "Every query sees all stored pairs.",
        _recalls(2),
    ).planted(softmax_reading),
)
POLYNOMIAL_BUGS = (
    Mistake(
        "kernel",
        match_of_either_sign,
        "The sign of the match is dropped.",
        "An odd degree keeps the sign.",
        lambda case: _recalls()(case) and case.options["degree"] % 2 == 1,
    ).planted(polynomial_reading),
    Mistake(
        "kernel",
        shifted_kernel,
        "One is added to the match.",
        "The kernel is (k·q)^p; adding one would mix all lower degrees in.",
        _recalls(),
    ).planted(polynomial_reading),
    Mistake(
        "kernel",
        multiplied_by_degree,
        "The match is multiplied by the degree.",
        "Raise the match to the degree.",
        lambda case: _recalls()(case) and case.options["degree"] > 1,
    ).planted(polynomial_reading),
)
