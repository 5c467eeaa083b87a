"""The contract of cross-attention as an explanation: scores of occlusions, maps, and how well two maps agree.

What runs a model (`spes`, `exact_occlusion_saliency`, `deletion_curve`) takes a function and not arrays: it is made of
the entries below and tested by itself. Checks that depend on data, that rows are distributions and masks binary, are
the reference's alone and cannot be traced; the portable twin trusts its callers.
"""

from __future__ import annotations

import numpy as np

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Case, Contract, Entry, Outputs
from refattn.contracts.cross_attention_explanation import bugs, cases, laws
from refattn.interpretability.cross_attention_explanation import (
    accumulate_saliency,
    aggregate_attention,
    deletion_masks,
    kl_scores,
    mean_std_normalize,
    paired_min_max,
    pool_saliency,
    row_pearson,
    saliency_share,
    target_difference,
)

__all__ = ["CONTRACT"]


def _halved(dtype: str) -> tuple[Case, Outputs]:
    """Hide one of two frames at a time: each keeps its own score, exactly."""
    arrays = {
        "scores": np.array([[0.5, 2.0], [1.0, 0.25], [0.0, 0.0]]),
        "masks": np.array([[False, True], [True, False], [True, True]]),
    }
    expected = np.array([[0.5, 1.0], [2.0, 0.25]])
    return Case("accumulate_saliency", arrays, {}, dtype, "exact/one_at_a_time"), {"out": expected}


_ACCUMULATE = Entry(
    "accumulate_saliency",
    accumulate_saliency,
    ("scores", "masks"),
    cases.ACCUMULATE.scenarios(cases.ACCUMULATE_SCENARIOS),
    cases.MAPS,
    cases.ACCUMULATE.cases(cases.accumulate_sizes),
    smoke=smoke("elements", "never_hidden", "words", "words_causal"),
    laws=laws.ACCUMULATE_LAWS,
    bugs=bugs.ACCUMULATE_BUGS,
    exact={"one_at_a_time": _halved},
    differentiable=("scores",),
)
_DIVERGENCE = Entry(
    "kl_scores",
    kl_scores,
    ("p", "q"),
    cases.DIVERGENCE.scenarios(cases.SCORE_SCENARIOS),
    cases.PREDICTIONS,
    cases.DIVERGENCE.cases(cases.score_sizes),
    smoke=smoke("plain", "unseen_word", families=("flat",)),
    laws=laws.DIVERGENCE_LAWS,
    bugs=bugs.DIVERGENCE_BUGS,
)
_DIFFERENCE = Entry(
    "target_difference",
    target_difference,
    ("p", "q", "target"),
    cases.DIFFERENCE.scenarios(cases.SCORE_SCENARIOS),
    cases.PREDICTIONS,
    cases.DIFFERENCE.cases(cases.score_sizes),
    smoke=smoke("plain", families=("flat",)),
    laws=laws.DIFFERENCE_LAWS,
    bugs=bugs.DIFFERENCE_BUGS,
)
_STANDARDISE = Entry(
    "mean_std_normalize",
    mean_std_normalize,
    ("saliency", "decoder_map"),
    cases.STANDARDISE.scenarios(cases.NORMALISE_SCENARIOS),
    cases.ROWS,
    cases.STANDARDISE.cases(cases.normalise_sizes),
    smoke=smoke("with_decoder"),
    outputs=("saliency", "decoder_map"),
    laws=laws.STANDARDISE_LAWS,
    bugs=bugs.STANDARDISE_BUGS,
)
_MIN_MAX = Entry(
    "paired_min_max",
    paired_min_max,
    ("saliency", "decoder_map"),
    cases.MIN_MAX.scenarios(cases.NORMALISE_SCENARIOS),
    cases.MAPS,
    cases.MIN_MAX.cases(cases.normalise_sizes),
    smoke=smoke("with_decoder"),
    outputs=("saliency", "decoder_map"),
    laws=laws.MIN_MAX_LAWS,
    bugs=bugs.MIN_MAX_BUGS,
)
_AGGREGATE = Entry(
    "aggregate_attention",
    aggregate_attention,
    ("attention",),
    cases.AGGREGATE.scenarios(cases.AGGREGATE_SCENARIOS),
    ("normal", "tied", "large"),
    cases.AGGREGATE.cases(cases.aggregate_sizes()),
    smoke=smoke("everything", "two_of_three"),
    laws=laws.AGGREGATE_LAWS,
    bugs=bugs.AGGREGATE_BUGS,
    differentiable=("attention",),
)
_POOL = Entry(
    "pool_saliency",
    pool_saliency,
    ("saliency",),
    cases.POOL.scenarios(cases.POOL_SCENARIOS),
    cases.MAPS,
    cases.POOL.cases(cases.pool_sizes()),
    smoke=smoke("shared_frames", "mean", "mean_shared"),
    laws=laws.POOL_LAWS,
    bugs=bugs.POOL_BUGS,
)
_PEARSON = Entry(
    "row_pearson",
    row_pearson,
    ("a", "b"),
    cases.PEARSON.scenarios(cases.COMPARE_SCENARIOS),
    cases.ROWS,
    cases.PEARSON.cases(cases.compare_sizes),
    smoke=smoke("sentences", "constant_in_one"),
    laws=laws.PEARSON_LAWS,
    bugs=bugs.PEARSON_BUGS,
    axes={"a": ("B", "I", "T"), "b": ("B", "I", "T")},
)
_SHARE = Entry(
    "saliency_share",
    saliency_share,
    ("attention", "saliency"),
    cases.SHARE.scenarios(cases.SHARE_SCENARIOS),
    cases.ROWS,
    cases.SHARE.cases(cases.share_sizes),
    smoke=smoke("squared_sentences", "overlap_sentences"),
    laws=laws.SHARE_LAWS,
    bugs=bugs.SHARE_BUGS,
)
_DELETE = Entry(
    "deletion_masks",
    deletion_masks,
    ("saliency",),
    cases.DELETE.scenarios(cases.DELETE_SCENARIOS),
    ("normal", "tied", "peaky"),
    cases.DELETE.cases(cases.delete_sizes),
    smoke=smoke("deletion", "insertion", families=("normal", "tied")),
    laws=laws.DELETE_LAWS,
    bugs=bugs.DELETE_BUGS,
)

CONTRACT = Contract(
    "cross_attention_explanation",
    "Cross-attention as an explanation",
    "2509.18010",
    "interpretability",
    (_ACCUMULATE, _DIVERGENCE, _DIFFERENCE, _STANDARDISE, _MIN_MAX, _AGGREGATE, _POOL, _PEARSON, _SHARE, _DELETE),
)
