"""The contract of multi-level training: its maps, one weight under them, and whole models shrunk, grown and mixed.

All of it can be traced: who merges with whom is an option, not data. Training itself, and the operators on a running
transformer, are tested beside the contract.
"""

from __future__ import annotations

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.multilevel import bugs, cases, laws
from refattn.efficiency.multilevel_maps import depth_map, map_weight, reverse_map, width_maps
from refattn.efficiency.multilevel_parameters import (
    coalesce_parameters,
    decoalesce_parameters,
    interpolate_parameters,
)

__all__ = ["CONTRACT"]

_WIDTH = Entry(
    "width_maps",
    width_maps,
    (),
    cases.WIDTH.scenarios(cases.WIDTH_SCENARIOS),
    ("none",),
    cases.WIDTH.cases(cases.width_sizes()),
    laws=laws.WIDTH_LAWS,
    bugs=bugs.WIDTH_BUGS,
)
_DEPTH = Entry(
    "depth_map",
    depth_map,
    (),
    cases.DEPTH.scenarios(cases.DEPTH_SCENARIOS),
    ("none",),
    cases.DEPTH.cases(cases.depth_sizes()),
    laws=laws.DEPTH_LAWS,
    bugs=bugs.DEPTH_BUGS,
)
_REVERSE = Entry(
    "reverse_map",
    reverse_map,
    ("matrix",),
    cases.REVERSE.scenarios(cases.REVERSE_SCENARIOS),
    cases.FAMILIES,
    cases.REVERSE.cases(cases.reverse_sizes()),
    smoke=smoke(*cases.REVERSE_SCENARIOS),
    laws=laws.REVERSE_LAWS,
    bugs=bugs.REVERSE_BUGS,
)
_WEIGHT = Entry(
    "map_weight",
    map_weight,
    ("weight", "maps"),
    cases.WEIGHT.scenarios(cases.WEIGHT_SCENARIOS),
    cases.FAMILIES,
    cases.WEIGHT.cases(cases.weight_sizes),
    smoke=smoke(*cases.WEIGHT_SCENARIOS),
    laws=laws.WEIGHT_LAWS,
    bugs=bugs.WEIGHT_BUGS,
    differentiable=("weight",),
)
_COALESCE = Entry(
    "coalesce_parameters",
    coalesce_parameters,
    ("parameters",),
    cases.COALESCE.scenarios(cases.COALESCE_SCENARIOS),
    ("normal", "cancelling"),
    cases.COALESCE.cases(cases.level_sizes),
    smoke=smoke(*cases.COALESCE_SCENARIOS),
    laws=laws.COALESCE_LAWS,
    bugs=bugs.COALESCE_BUGS,
)
_DECOALESCE = Entry(
    "decoalesce_parameters",
    decoalesce_parameters,
    ("parameters",),
    cases.DECOALESCE.scenarios(cases.DECOALESCE_SCENARIOS),
    ("normal", "cancelling"),
    cases.DECOALESCE.cases(cases.level_sizes),
    smoke=smoke(*cases.DECOALESCE_SCENARIOS),
    laws=laws.DECOALESCE_LAWS,
    bugs=bugs.DECOALESCE_BUGS,
    may_alias=True,
)
_INTERPOLATE = Entry(
    "interpolate_parameters",
    interpolate_parameters,
    ("big", "decoalesced"),
    cases.INTERPOLATE.scenarios(cases.INTERPOLATE_SCENARIOS),
    ("normal", "cancelling"),
    cases.INTERPOLATE.cases(cases.interpolate_sizes),
    smoke=smoke(*cases.INTERPOLATE_SCENARIOS),
    laws=laws.INTERPOLATE_LAWS,
    bugs=bugs.INTERPOLATE_BUGS,
)

CONTRACT = Contract(
    "multilevel",
    "Multi-level training: coalescing, de-coalescing, interpolation",
    "2404.07999",
    "efficiency",
    (_COALESCE, _DECOALESCE, _INTERPOLATE, _WIDTH, _DEPTH, _REVERSE, _WEIGHT),
)
