"""The contract of HyLRA: key sets, layers that find or reuse them, profiles, and the choice of layers (2602.00777)."""

from __future__ import annotations

from refattn.conformance.contract import Contract, Entry
from refattn.contracts.hylra import bugs, cases, laws, policy_bugs
from refattn.interventions.hylra import attend_full, attend_reuse, topk_distortion
from refattn.interventions.hylra_policy import policy_max_min, policy_min_full
from refattn.interventions.hylra_profile import critical_blocks, hash_ratio, layer_overlap, sensitive_by_hash_ratio

__all__ = ["CONTRACT"]

_FULL = Entry(
    "attend_full",
    attend_full,
    ("q", "k", "v"),
    cases.FULL.scenarios(cases.FULL_SCENARIOS),
    cases.FAMILIES,
    cases.FULL.cases(cases.full_sizes),
    laws=laws.FULL_LAWS,
    bugs=bugs.FULL_BUGS,
    outputs=("out", "indices"),
    axes={"q": ("B", "Hq", "Tq", "d"), "k": ("B", "H", "T", "d"), "v": ("B", "H", "T", "d")},
)
_REUSE = Entry(
    "attend_reuse",
    attend_reuse,
    ("q", "k", "v", "indices"),
    cases.REUSE.scenarios(cases.REUSE_SCENARIOS),
    cases.FAMILIES,
    cases.REUSE.cases(cases.reuse_sizes),
    laws=laws.REUSE_LAWS,
    bugs=bugs.REUSE_BUGS,
    differentiable=("q", "k", "v"),
)
_DISTORTION = Entry(
    "topk_distortion",
    topk_distortion,
    ("q", "k", "v"),
    cases.DISTORTION.scenarios(cases.DISTORTION_SCENARIOS),
    cases.FAMILIES,
    cases.DISTORTION.cases(cases.distortion_sizes),
    laws=laws.DISTORTION_LAWS,
    bugs=bugs.DISTORTION_BUGS,
)
_BLOCKS = Entry(
    "critical_blocks",
    critical_blocks,
    ("weights",),
    cases.BLOCKS.scenarios(cases.BLOCK_SCENARIOS),
    cases.FAMILIES,
    cases.BLOCKS.cases(cases.block_sizes),
    laws=laws.BLOCK_LAWS,
    bugs=bugs.BLOCK_BUGS,
)
_OVERLAP = Entry(
    "layer_overlap",
    layer_overlap,
    ("masks",),
    cases.OVERLAP.scenarios(cases.OVERLAP_SCENARIOS),
    ("none",),
    cases.OVERLAP.cases(cases.overlap_sizes),
    laws=laws.OVERLAP_LAWS,
    bugs=bugs.OVERLAP_BUGS,
)
_RATIO = Entry(
    "hash_ratio",
    hash_ratio,
    ("weights",),
    cases.RATIO.scenarios(cases.RATIO_SCENARIOS),
    cases.RATIO.families,
    cases.RATIO.cases(cases.ratio_sizes),
    laws=laws.RATIO_LAWS,
    bugs=bugs.RATIO_BUGS,
)
_LAYERS = Entry(
    "sensitive_by_hash_ratio",
    sensitive_by_hash_ratio,
    ("ratios",),
    cases.LAYERS.scenarios(cases.LAYER_SCENARIOS),
    cases.LAYERS.families,
    cases.LAYERS.cases(cases.layer_sizes),
    laws=laws.LAYER_LAWS,
    bugs=bugs.LAYER_BUGS,
)
_MIN_FULL = Entry(
    "policy_min_full",
    policy_min_full,
    ("similarity",),
    cases.MIN_FULL.scenarios(cases.MIN_FULL_SCENARIOS),
    cases.MIN_FULL.families,
    cases.MIN_FULL.cases(cases.min_full_sizes),
    laws=laws.MIN_FULL_LAWS,
    bugs=policy_bugs.MIN_FULL_BUGS,
)
_MAX_MIN = Entry(
    "policy_max_min",
    policy_max_min,
    ("similarity",),
    cases.MAX_MIN.scenarios(cases.MAX_MIN_SCENARIOS),
    cases.MAX_MIN.families,
    cases.MAX_MIN.cases(cases.max_min_sizes),
    laws=laws.MAX_MIN_LAWS,
    bugs=policy_bugs.MAX_MIN_BUGS,
)

CONTRACT = Contract(
    "hylra",
    "Hybrid layer reuse attention",
    "2602.00777",
    "interventions",
    (_FULL, _REUSE, _DISTORTION, _BLOCKS, _OVERLAP, _RATIO, _LAYERS, _MIN_FULL, _MAX_MIN),
)
