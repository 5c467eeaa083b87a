"""The contract of sentence attention: the block, the one it comes from, merging, and the whole head (2309.11593)."""

from __future__ import annotations

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.sentence_attention import bugs, cases, laws
from refattn.layers.sentence_attention import sentence_attention, squeeze_excite
from refattn.layers.sentence_attention_head import answer_grounding_head, merge_block

__all__ = ["CONTRACT"]


_MAPS = ("B", "C", "H", "W")

_BLOCK = Entry(
    "sentence_attention",
    sentence_attention,
    ("features", "text", "weights"),
    cases.BLOCK.scenarios(cases.BLOCK_SCENARIOS),
    cases.FAMILIES,
    cases.BLOCK.cases(cases.block_sizes()),
    smoke=smoke("block", "large_eps"),
    laws=laws.BLOCK_LAWS,
    bugs=bugs.BLOCK_BUGS,
    differentiable=("features", "text"),
    axes={"features": _MAPS, "text": ("B", "D")},
)
_SQUEEZE = Entry(
    "squeeze_excite",
    squeeze_excite,
    ("features", "weights"),
    cases.SQUEEZE.scenarios(cases.SQUEEZE_SCENARIOS),
    cases.FAMILIES,
    cases.SQUEEZE.cases(cases.squeeze_sizes),
    smoke=smoke("block"),
    laws=laws.SQUEEZE_LAWS,
    bugs=bugs.SQUEEZE_BUGS,
    differentiable=("features",),
    axes={"features": _MAPS},
)
_MERGE = Entry(
    "merge_block",
    merge_block,
    ("low", "high", "weights"),
    cases.MERGE.scenarios(cases.MERGE_SCENARIOS),
    cases.FAMILIES,
    cases.MERGE.cases(cases.merge_sizes),
    smoke=smoke("doubled", "large_eps"),
    laws=laws.MERGE_LAWS,
    bugs=bugs.MERGE_BUGS,
    differentiable=("low", "high"),
    axes={"low": ("B", "C_low", "h", "w"), "high": ("B", "C_high", "H", "W")},
)
_HEAD = Entry(
    "answer_grounding_head",
    answer_grounding_head,
    ("features", "text", "gates", "merges", "classifier_w", "classifier_b"),
    cases.HEAD.scenarios(cases.HEAD_SCENARIOS),
    cases.FAMILIES,
    cases.HEAD.cases(cases.head_sizes()),
    smoke=smoke("three_scales"),
    laws=laws.HEAD_LAWS,
    bugs=bugs.HEAD_BUGS,
    differentiable=("text",),
)

CONTRACT = Contract(
    "sentence_attention",
    "Sentence attention blocks for answer grounding",
    "2309.11593",
    "layers",
    (_BLOCK, _SQUEEZE, _MERGE, _HEAD),
)
