"""Needle in a haystack: hide a sentence in a long text, find it again by its tokens, and make tasks of both."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_integer, require
from refattn.transformer.planted.retrieval_model import BOS, HAYSTACK_WORDS, KEY, NEEDLE_WORDS, PERIOD

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "PLANTED",
    "Insertion",
    "NeedleTask",
    "NeedleVocabulary",
    "draw_vocabulary",
    "find_span",
    "insert_needle",
    "needle_tasks",
]


class Insertion(NamedTuple):
    """A text with the needle in it (T,), and the index at which the needle begins."""

    ids: Any
    at: Any


class NeedleVocabulary(NamedTuple):
    """Which tokens play which role: what opens a text, ends a sentence, announces the needle, and the words of both."""

    bos: int
    period: int
    key: int
    needle: tuple[int, ...]
    haystack: tuple[int, ...]


PLANTED = NeedleVocabulary(BOS, PERIOD, KEY, NEEDLE_WORDS, HAYSTACK_WORDS)
"""The vocabulary of `refattn.transformer.planted.retrieval_model`."""


class NeedleTask(NamedTuple):
    """A prompt (T,), where the answer stands in it, the answer (m,), the length asked for, and the depth in percent."""

    ids: np.ndarray
    span: tuple[int, int]
    needle: np.ndarray
    length: int
    depth: int


def insert_needle(
    context: Any, needle: Any, *, length: int, depth: float, period_ids: Any, buffer: int = 200
) -> Insertion:
    """Hide the needle in a text of a given length, at a given depth, between two sentences.

    Parameters
    ----------
    context : array_like of int, shape (n,)
        The haystack; cut at its end if it is too long.
    needle : array_like of int, shape (m,)
        What is hidden.
    length : int
        Length of the whole prompt.
    depth : float
        Where, in percent of the context: 0 at its beginning, 100 after its end.
    period_ids : array_like of int
        The tokens that end a sentence.
    buffer : int
        How much of the length is left for the question.

    Returns
    -------
    Insertion
        At most ``length − buffer`` tokens long if the context was cut. The needle stands after the last period before
        ``depth``, at the beginning if there is none.

    Raises
    ------
    ValueError
        For a depth outside [0, 100], an empty needle, and a needle that does not fit.

    References
    ----------
    2404.15574; nightdessert/Retrieval_Head and gkamradt/LLMTest_NeedleInAHaystack, ``insert_needle``.
    """
    context, needle = as_integer("context", context, ndim=1), as_integer("needle", needle, ndim=1)
    period_ids = as_integer("period_ids", period_ids, ndim=1)
    require(0 <= depth <= 100, f"depth={depth!r} must lie in [0, 100]")
    m, room = len(needle), index(length) - index(buffer)
    require(m > 0, "needle is empty")
    require(m <= room, f"needle of {m} tokens does not fit in {room}")
    if len(context) + m > room:
        context = context[: room - m]
    # eq: rh-depth
    at = int(len(context) * depth / 100)
    while depth != 100 and at > 0 and context[at - 1] not in period_ids:
        at -= 1
    return Insertion(np.concatenate([context[:at], needle, context[at:]]), np.int64(at))


def find_span(ids: Any, needle: Any, *, threshold: float = 0.9) -> tuple[Any, Any]:
    """Find the needle in a text: the first window that holds nearly all of its tokens.

    Parameters
    ----------
    ids : array_like of int, shape (T,)
        The text.
    needle : array_like of int, shape (m,)
        What is looked for.
    threshold : float
        The share of the needle's distinct tokens that a window of m tokens must *exceed*; at 1 nothing is found.

    Returns
    -------
    start, end : int
        (−1, −1) if there is no such window.

    Raises
    ------
    ValueError
        For an empty needle and a threshold outside (0, 1].

    Notes
    -----
    As tokens are compared as sets, the window may begin before the needle by a tenth of its tokens. Windows that end
    before m tokens are not looked at; in the code they are, and would give a span beyond the end of the text.

    References
    ----------
    nightdessert/Retrieval_Head, ``find_needle_idx``.
    """
    ids, needle = as_integer("ids", ids, ndim=1), as_integer("needle", needle, ndim=1)
    require(0 < threshold <= 1, f"threshold={threshold!r} must lie in (0, 1]")
    m, wanted = len(needle), set(needle.tolist())
    require(m > 0, "needle is empty")
    for start in range(len(ids) - m + 1):
        # eq: rh-span
        if len(wanted.intersection(ids[start : start + m].tolist())) / len(wanted) > threshold:
            return np.int64(start), np.int64(start + m)
    return np.int64(-1), np.int64(-1)


def needle_tasks(
    rng: np.random.Generator,
    lengths: Sequence[int],
    depths: Sequence[int],
    vocabulary: NeedleVocabulary = PLANTED,
    *,
    m: int = 6,
) -> list[NeedleTask]:
    """Draw one task for each length and depth.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where words come from.
    lengths : sequence of int
        Lengths of the prompts; each prompt is that long exactly.
    depths : sequence of int
        Depths in percent.
    vocabulary : NeedleVocabulary
        Whose words. ``needle`` must have m of them.
    m : int
        Words of the answer, all different.

    Returns
    -------
    list of NeedleTask
        Prompts [bos] + haystack + [key], the haystack being sentences of four to eight words with a period, and the
        sentence [key, n_1 … n_m, period] between two of them. The answer is n_1 … n_m: what follows the key.

    Raises
    ------
    ValueError
        For a length that does not hold the needle, a depth outside [0, 100], and ``m`` words that are not there.
    """
    require(1 <= index(m) <= len(vocabulary.needle), f"m={m!r} must lie in 1..{len(vocabulary.needle)}, its words")
    return [_task(rng, index(length), depth, vocabulary, m) for length in lengths for depth in depths]


def draw_vocabulary(
    rng: np.random.Generator, vocab_size: int, *, bos: int = 0, n_needle: int = 16, n_haystack: int = 64
) -> NeedleVocabulary:
    """Give the tokens of any model roles at random, for tasks in a language that it has never seen.

    Parameters
    ----------
    rng : numpy.random.Generator
        Which tokens play which role.
    vocab_size : int
        Of the model; at least 12.
    bos : int
        What opens a text.
    n_needle, n_haystack : int
        How many words at most; a small vocabulary is shared in this proportion.

    Returns
    -------
    NeedleVocabulary

    Raises
    ------
    ValueError
        For a vocabulary below 12, ``bos`` outside it, and numbers of words below 1.
    """
    require(index(vocab_size) >= 12, f"vocab_size={vocab_size!r} must be at least 12")
    require(0 <= index(bos) < vocab_size, f"bos={bos!r} must lie in 0..{vocab_size - 1}")
    require(min(index(n_needle), index(n_haystack)) >= 1, f"{n_needle=} and {n_haystack=} must be at least 1")
    count = min(vocab_size - 1, 2 + n_needle + n_haystack)
    drawn = rng.choice(vocab_size - 1, size=count, replace=False)
    period, key, *words = (drawn + (drawn >= bos)).tolist()  # any token but bos
    split = min(max(round(len(words) * n_needle / (n_needle + n_haystack)), 6), len(words) - 1)
    return NeedleVocabulary(bos, period, key, tuple(words[:split]), tuple(words[split:]))


def _task(rng: np.random.Generator, length: int, depth: int, vocabulary: NeedleVocabulary, m: int) -> NeedleTask:
    bos, period, key, words, _ = vocabulary
    answer = rng.choice(np.array(words), size=m, replace=False)
    room = length - 2  # less the first token and the question
    sentence = np.concatenate([[key], answer, [period]])
    require(m + 2 <= room, f"length={length} does not hold a needle of {m} words: at least {m + 4}")
    haystack = _sentences(rng, room - m - 2, vocabulary)
    hidden = insert_needle(haystack, sentence, length=room, depth=depth, period_ids=[period], buffer=0)
    start = int(hidden.at) + 2  # after bos and the needle's own key
    return NeedleTask(np.concatenate([[bos], hidden.ids, [key]]), (start, start + m), answer, length, depth)


def _sentences(rng: np.random.Generator, length: int, vocabulary: NeedleVocabulary) -> np.ndarray:
    """Draw sentences of four to eight words until there are ``length`` tokens; the last is cut, with a period."""
    tokens: list[int] = []
    while len(tokens) < length:
        words = rng.choice(np.array(vocabulary.haystack), size=rng.integers(4, 9))
        tokens += [*words.tolist(), vocabulary.period]
    return np.array([*tokens[: max(length - 1, 0)], vocabulary.period][:length], dtype=np.int64)
