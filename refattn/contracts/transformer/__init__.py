"""The contract of the decoder-only transformer: logits of every family, decoding with a cache, and head scores."""

from __future__ import annotations

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.transformer import bugs, cases, laws
from refattn.transformer.heads import head_scores
from refattn.transformer.transformer import transformer_logits, transformer_steps

__all__ = ["CONTRACT"]

_LOGITS = Entry(
    "transformer_logits",
    transformer_logits,
    ("weights", "ids"),
    cases.LOGITS.scenarios(cases.LOGITS_SCENARIOS),
    cases.FAMILIES,
    cases.LOGITS.cases(cases.logits_sizes),
    smoke=smoke(*cases.LOGITS_SCENARIOS),
    laws=laws.LOGITS_LAWS,
    bugs=bugs.LOGITS_BUGS,
    axes={"ids": ("B", "T"), "key_mask": ("B", "T")},
)
_STEPS = Entry(
    "transformer_steps",
    transformer_steps,
    ("weights", "ids"),
    cases.STEPS.scenarios(cases.STEPS_SCENARIOS),
    cases.FAMILIES,
    cases.STEPS.cases(cases.steps_sizes),
    smoke=smoke(*cases.STEPS_SCENARIOS),
    laws=laws.STEPS_LAWS,
    bugs=bugs.STEPS_BUGS,
)
_SCORES = Entry(
    "head_scores",
    head_scores,
    ("pattern",),
    cases.SCORES.scenarios(cases.SCORES_SCENARIOS),
    ("normal",),
    cases.SCORES.cases(cases.scores_sizes),
    smoke=smoke(*cases.SCORES_SCENARIOS),
    laws=laws.SCORES_LAWS,
    bugs=bugs.SCORES_BUGS,
    differentiable=("pattern",),
)

CONTRACT = Contract(
    "transformer",
    "Decoder-only transformer",
    "1706.03762",
    "transformer",
    (_LOGITS, _STEPS, _SCORES),
)
