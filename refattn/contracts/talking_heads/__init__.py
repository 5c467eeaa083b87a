"""The contract of talking heads: scores of heads and components, bases, removal, outliers, inhibition.

All of it can be traced, and none of it depends on the sign of singular vectors: of `head_svd` only the scores of its
components are compared. Hooks, prompts and what runs a model are tested beside the contract.
"""

from __future__ import annotations

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.talking_heads import bugs, cases, laws
from refattn.interpretability.talking_heads import (
    component_scores,
    composition_scores,
    inhibition_score,
    robust_outliers,
)
from refattn.interpretability.talking_heads_channels import channel_basis, remove_components, scale_components

__all__ = ["CONTRACT"]

_WEIGHTS = ("W_Q", "W_K", "W_V", "W_O")
_MODES = ("queries", "keys", "values", "shared_keys", "shared_values", "three_layers", "silent")
_COMPOSITION = Entry(
    "composition_scores",
    composition_scores,
    _WEIGHTS,
    cases.COMPOSITION.scenarios(cases.WEIGHT_SCENARIOS),
    cases.COMPOSITION.families,
    cases.COMPOSITION.cases(cases.weight_sizes()),
    smoke=smoke(*_MODES),
    laws=laws.COMPOSITION_LAWS,
    bugs=bugs.COMPOSITION_BUGS,
)
_COMPONENTS = Entry(
    "component_scores",
    component_scores,
    _WEIGHTS,
    cases.COMPONENTS.scenarios(cases.WEIGHT_SCENARIOS),
    cases.COMPONENTS.families,
    cases.COMPONENTS.cases(cases.weight_sizes()),
    smoke=smoke(*_MODES),
    laws=laws.COMPONENT_LAWS,
    bugs=bugs.COMPONENT_BUGS,
)
_BASIS = Entry(
    "channel_basis",
    channel_basis,
    ("directions",),
    cases.BASIS.scenarios(cases.BASIS_SCENARIOS),
    cases.BASIS.families,
    cases.BASIS.cases(cases.basis_sizes()),
    laws=laws.BASIS_LAWS,
    bugs=bugs.BASIS_BUGS,
)
_REMOVAL = Entry(
    "remove_components",
    remove_components,
    ("W_O", "directions"),
    cases.REMOVAL.scenarios(cases.REMOVAL_SCENARIOS),
    cases.REMOVAL.families,
    cases.REMOVAL.cases(cases.removal_sizes()),
    laws=laws.REMOVAL_LAWS,
    bugs=bugs.REMOVAL_BUGS,
)
_SCALING = Entry(
    "scale_components",
    scale_components,
    ("W_O", "directions", "factors"),
    cases.SCALING.scenarios(cases.SCALING_SCENARIOS),
    cases.SCALING.families,
    cases.SCALING.cases(cases.scaling_sizes),
    laws=laws.SCALING_LAWS,
    bugs=bugs.SCALING_BUGS,
)
_OUTLIERS = Entry(
    "robust_outliers",
    robust_outliers,
    ("scores",),
    cases.OUTLIERS.scenarios(cases.OUTLIER_SCENARIOS),
    cases.OUTLIERS.families,
    cases.OUTLIERS.cases(cases.outlier_sizes),
    laws=laws.OUTLIER_LAWS,
    bugs=bugs.OUTLIER_BUGS,
)
_INHIBITION = Entry(
    "inhibition_score",
    inhibition_score,
    ("pattern", "end", "io", "s"),
    cases.INHIBITION.scenarios(cases.INHIBITION_SCENARIOS),
    cases.INHIBITION.families,
    cases.INHIBITION.cases(cases.inhibition_sizes),
    laws=laws.INHIBITION_LAWS,
    bugs=bugs.INHIBITION_BUGS,
)

CONTRACT = Contract(
    "talking_heads",
    "Talking heads",
    "2406.09519",
    "interpretability",
    (_COMPOSITION, _COMPONENTS, _BASIS, _REMOVAL, _SCALING, _OUTLIERS, _INHIBITION),
)
