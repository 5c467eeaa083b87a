"""The contract of retrieval heads: hiding a needle, finding it, scoring heads by it, and comparing their maps.

All of it can be traced: the place of a needle is a number that decides what stands where, not how much. What runs a
model (`refattn.interpretability.retrieval_heads_detection`, `refattn.interpretability.retrieval_heads_masking`) and the
ranked lists of heads, whose lengths depend on scores, are tested beside the contract.
"""

from __future__ import annotations

from typing import Any

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.retrieval_heads import bugs, cases, laws
from refattn.interpretability.retrieval_heads import (
    average_scores,
    retrieval_hits,
    score_correlation,
    unigram_overlap,
)
from refattn.interpretability.retrieval_heads_tasks import find_span, insert_needle

__all__ = ["CONTRACT"]

# one set of sizes where nothing else is asked for: libraries that compile by shape then compile once
_SIZES = {"S": 8, "L": 2, "H": 3, "P": 9}
_HIT_SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {**_SIZES, "span": (2, 7)},
    "padded": {"S": 5, "L": 2, "H": 2, "P": 8, "span": (3, 7), "padded": True},
    "several_keys": {**_SIZES, "span": (1, 6), "topk": 3, "tokens": 3},
    "each_once": {**_SIZES, "span": (2, 7), "unique": True, "tokens": 3},
    "each_once_several_keys": {**_SIZES, "span": (3, 8), "unique": True, "topk": 2, "tokens": 3},
    "more_keys_than_there_are": {"S": 3, "L": 1, "H": 2, "P": 3, "span": (0, 2), "topk": 9, "padded": True},
    "whole_prompt": {**_SIZES, "span": (0, 9)},
    "one_token": {"S": 3, "L": 1, "H": 2, "P": 4, "span": (3, 4), "tokens": 2},
    "nowhere": _SIZES,
    "no_answer": {"S": 0, "L": 2, "H": 3, "P": 5, "span": (1, 4)},
}
_HITS = Entry(
    "retrieval_hits",
    retrieval_hits,
    ("attn_rows", "generated", "prompt"),
    cases.HITS.scenarios(_HIT_SCENARIOS),
    ("normal", "tied"),
    cases.HITS.cases(cases.hit_sizes()),
    smoke=smoke("plain", "padded", "several_keys", "each_once", "each_once_several_keys", families=("normal", "tied")),
    laws=laws.HIT_LAWS,
    bugs=bugs.HIT_BUGS,
)
_INSERT = Entry(
    "insert_needle",
    insert_needle,
    ("context", "needle"),
    cases.INSERT.scenarios(
        {
            "middle": {"n": 20, "m": 3, "length": 40, "depth": 56, "buffer": 5},
            "cut": {"n": 24, "m": 3, "length": 20, "depth": 67, "buffer": 4},
            "cut_to_the_needle": {"n": 9, "m": 4, "length": 6, "depth": 44, "buffer": 2},
            "official_buffer": {"n": 30, "m": 5, "length": 226, "depth": 78},
            "few_sentences": {"n": 20, "m": 3, "length": 40, "depth": 89, "buffer": 0, "stops": 0.1},
            "no_period": {"n": 20, "m": 3, "length": 40, "depth": 89, "buffer": 0, "stops": 0.0},
            "nothing_but_periods": {"n": 20, "m": 3, "length": 40, "depth": 33, "buffer": 0, "stops": 1.0},
            "first": {"n": 20, "m": 3, "length": 40, "depth": 0, "buffer": 0},
            "last": {"n": 20, "m": 3, "length": 40, "depth": 100, "buffer": 0, "stops": 0.0},
            "one_token": {"n": 7, "m": 1, "length": 9, "depth": 33, "buffer": 0},
            "no_context": {"n": 0, "m": 2, "length": 9, "depth": 50, "buffer": 0},
        }
    ),
    ("drawn",),
    cases.INSERT.cases(cases.insert_sizes()),
    laws=laws.INSERT_LAWS,
    bugs=bugs.INSERT_BUGS,
)
_SPAN = Entry(
    "find_span",
    find_span,
    ("ids", "needle"),
    cases.SPAN.scenarios(
        {
            "apart": {"n": 12, "m": 4, "tokens": 6, "apart": True},
            "twice": {"n": 8, "m": 4, "tokens": 6, "apart": True, "times": 2},
            "mixed": {"n": 12, "m": 5, "tokens": 8},
            "half": {"n": 8, "m": 4, "tokens": 6, "threshold": 0.5, "times": 2},
            "quarter": {"n": 16, "m": 4, "tokens": 9, "threshold": 0.25, "times": 0},
            "never": {"n": 12, "m": 4, "tokens": 5, "threshold": 1.0},
            "one_token": {"n": 6, "m": 1, "tokens": 3},
            "too_short": {"n": 2, "m": 4, "tokens": 3, "times": 0},
            "no_text": {"n": 0, "m": 2, "tokens": 3, "times": 0},
        }
    ),
    ("drawn",),
    cases.SPAN.cases(cases.span_sizes),
    outputs=("start", "end"),
    laws=laws.SPAN_LAWS,
    bugs=bugs.SPAN_BUGS,
)
_OVERLAP = Entry(
    "unigram_overlap",
    unigram_overlap,
    ("reference_ids", "generated_ids"),
    cases.OVERLAP.scenarios(
        {
            "repeats": {"m": 8, "n": 7, "tokens": 4},
            "long_answer": {"m": 8, "n": 14, "tokens": 6},
            "short_answer": {"m": 9, "n": 3, "tokens": 9},
            "two_words": {"m": 9, "n": 3, "tokens": 2},
            "one_token": {"m": 1, "n": 2, "tokens": 2},
            "silent": {"m": 3, "n": 0},
        }
    ),
    ("drawn",),
    cases.OVERLAP.cases(cases.overlap_sizes),
    laws=laws.OVERLAP_LAWS,
    bugs=bugs.OVERLAP_BUGS,
)
_AVERAGE = Entry(
    "average_scores",
    average_scores,
    ("scores", "recalls"),
    cases.AVERAGE.scenarios(
        {
            "plain": {"N": 8, "L": 2, "H": 3, "recall": (0.5, 1.0, 0.75, 0.25, 0.5, 1.0, 0.0, 0.75)},
            "easy": {"N": 8, "L": 2, "H": 3, "min_recall": 0.0},
            "all_found": {"N": 8, "L": 2, "H": 3, "recall": 1.0},
            "none_found": {"N": 8, "L": 2, "H": 3, "recall": 0.5},
            "one_run": {"N": 1, "L": 1, "H": 4, "recall": 0.75},
            "no_run": {"N": 0, "L": 2, "H": 2},
        }
    ),
    ("drawn",),
    cases.AVERAGE.cases(cases.average_sizes),
    laws=laws.AVERAGE_LAWS,
    bugs=bugs.AVERAGE_BUGS,
    axes={"scores": ("N", "L", "H"), "recalls": ("N",)},
)
_CORRELATION = Entry(
    "score_correlation",
    score_correlation,
    ("a", "b"),
    cases.CORRELATION.scenarios(
        {
            "alike": {"L": 4, "H": 5, "shared": 2.0, "offset": 0.5},
            "unlike": {"L": 4, "H": 5, "shared": 0.0},
            "opposed": {"L": 3, "H": 4, "shared": -1.0, "offset": -1.0},
            "one_layer": {"L": 1, "H": 6},
            "two_heads": {"L": 1, "H": 3},
        }
    ),
    ("normal", "uniform", "peaky"),
    cases.CORRELATION.cases(cases.correlation_sizes),
    laws=laws.CORRELATION_LAWS,
    bugs=bugs.CORRELATION_BUGS,
    differentiable=("a", "b"),
)

CONTRACT = Contract(
    "retrieval_heads",
    "Retrieval heads",
    "2404.15574",
    "interpretability",
    (_HITS, _SPAN, _INSERT, _OVERLAP, _AVERAGE, _CORRELATION),
)
