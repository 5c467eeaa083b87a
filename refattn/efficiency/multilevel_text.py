"""Two texts to train on that every installation has: a grammar that writes, and Python's own documentation.

Both are read character by character. [our definition]
"""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module
from typing import NamedTuple

import numpy as np

from refattn.primitives.arguments import require

__all__ = ["Corpus", "corpus_of", "documentation_text", "grammar_text"]

_CONSONANTS, _VOWELS = "bcdfglmnprstv", "aeiou"
_NOUNS, _VERBS, _ADJECTIVES = 120, 60, 40
_DEEPEST = 2


class Corpus(NamedTuple):
    """A text as tokens, some of it held out.

    Attributes
    ----------
    train : ndarray of int, shape (N,)
    validation : ndarray of int, shape (n, T + 1)
        Windows of the blocks that were held out: T tokens and the one that follows each.
    alphabet : str
        The character of each token.
    """

    train: np.ndarray
    validation: np.ndarray
    alphabet: str


def corpus_of(text: str, context: int, *, windows: int = 512, block: int = 2048, every: int = 10) -> Corpus:
    """Give each character of a text its number, and hold out every tenth block.

    Parameters
    ----------
    text : str
        At least ``every`` blocks long.
    context : int
        T.
    windows : int
        At most how many windows of the held-out blocks are kept, evenly spaced.
    block, every : int
        Length of a block, longer than T, and which of them are held out.

    Returns
    -------
    Corpus

    Raises
    ------
    ValueError
        For a text without a held-out block, or a context that does not fit into a block.
    """
    require(1 <= context < block, f"context={context} must be in 1..{block - 1}, shorter than a block")
    require(len(text) >= every * block, f"text of {len(text)} characters is shorter than {every} blocks of {block}")
    alphabet = "".join(sorted(set(text)))
    tokens = np.searchsorted(_points(alphabet), _points(text))
    blocks = [tokens[begin : begin + block] for begin in range(0, len(tokens), block)]
    held = [part for number, part in enumerate(blocks) if number % every == every - 1]
    kept = [part for number, part in enumerate(blocks) if number % every != every - 1]
    cut = [part[t : t + context + 1] for part in held for t in range(0, len(part) - context, context)]
    chosen = np.linspace(0, len(cut) - 1, min(windows, len(cut))).astype(int)
    return Corpus(np.concatenate(kept), np.stack([cut[i] for i in chosen]), alphabet)


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def documentation_text(symbols: int = 60) -> str:
    """Return the help topics of the running Python, in lower case, runs of blanks and line ends as one blank.

    Parameters
    ----------
    symbols : int
        How many different characters are kept, at least 2: all but the most frequent become one sign, U+FFFD.

    Returns
    -------
    str
        Another text for another version of Python.

    Raises
    ------
    ValueError
        For fewer than two symbols.
    """
    require(symbols >= 2, f"symbols={symbols} must be at least 2")
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics))).lower()
    frequent = Counter(text).most_common()
    rare = [character for character, _ in frequent[symbols - 1 :]] if len(frequent) > symbols else []
    return text.translate(dict.fromkeys(map(ord, rare), "\ufffd"))


def grammar_text(seed: int = 0, length: int = 600_000) -> str:
    """Return text of a small made-up language, the same on every machine.

    Words are one to three syllables of a consonant and a vowel: 120 nouns, 60 verbs, 40 adjectives, each kind drawn
    with probability 1/rank. Nouns and adjectives after "lo" take an s, verbs end in t or n: they agree with their
    subject, from which a relative clause may part them. That is what there is to learn.

    Parameters
    ----------
    seed : int
        Of the words and of the text.
    length : int
        In characters, at least 1.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        For a length below 1.
    """
    require(length >= 1, f"length={length} must be at least 1")
    speaker = _Speaker(np.random.default_rng(seed))
    parts: list[str] = []
    spoken = 0
    while spoken < length:
        parts.append(speaker.sentence())
        spoken += len(parts[-1])
    return "".join(parts)[:length]


class _Speaker:
    """Who speaks the language. Everything is decided by numbers in [0, 1), which all versions of NumPy draw alike."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._chance = rng.random
        self._nouns, self._verbs, self._adjectives = (self._words(n) for n in (_NOUNS, _VERBS, _ADJECTIVES))

    def sentence(self) -> str:
        subject, plural = self._noun_phrase(0)
        said = subject + " " + self._verb_phrase(0, plural=plural)
        return f"({said}). " if self._chance() < 0.1 else f"{said}. "

    def _noun_phrase(self, depth: int) -> tuple[str, bool]:
        plural = self._chance() < 0.4
        ending = "s" if plural else ""
        words = ["lo" if plural else "un"]
        if self._chance() < 0.5:
            words.append(self._one_of(self._adjectives) + ending)
        words.append(self._one_of(self._nouns) + ending)
        if depth < _DEEPEST and self._chance() < 0.25:
            words += ["ke", self._verb_phrase(depth + 1, plural=plural)]
        return " ".join(words), plural

    def _verb_phrase(self, depth: int, *, plural: bool) -> str:
        verb = self._one_of(self._verbs) + ("n" if plural else "t")
        return f"{verb} {self._noun_phrase(depth)[0]}"

    def _words(self, count: int) -> list[str]:
        words: list[str] = []
        while len(words) < count:
            word = "".join(self._syllable() for _ in range(1 + int(3 * self._chance())))
            if word not in words:
                words.append(word)
        return words

    def _syllable(self) -> str:
        return _CONSONANTS[int(len(_CONSONANTS) * self._chance())] + _VOWELS[int(len(_VOWELS) * self._chance())]

    def _one_of(self, words: list[str]) -> str:
        """Draw a word with probability 1/rank."""
        weights = np.cumsum(1 / np.arange(1, len(words) + 1))
        return words[int(np.searchsorted(weights, self._chance() * weights[-1], side="right"))]
