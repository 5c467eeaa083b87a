"""The contract of circuit component reuse: logit differences, effects, circuits, overlaps, forced rows, path patching.

Path patching is given the weights of a GPT-2 alone. Receivers are options: which heads are asked is known before any
number is, so that it can be compiled.
"""

from __future__ import annotations

import numpy as np

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Case, Contract, Entry, Outputs
from refattn.contracts.circuit_reuse import bugs, cases, laws
from refattn.contracts.circuit_reuse.budgets import patch_budgets
from refattn.interpretability.circuit_reuse import path_patch_gpt2
from refattn.interpretability.circuit_reuse_effects import (
    effect_overlap,
    force_rows,
    head_mask,
    logit_difference,
    patch_effect,
)

__all__ = ["CONTRACT"]


def _planted(dtype: str) -> tuple[Case, Outputs]:
    """Compare the circuits of the planted list model: three heads of four are shared, three of five in all."""
    ioi, colours = np.zeros((2, 3, 3))
    ioi[[0, 1, 2, 2], [0, 0, 0, 1]] = [1.0, 1.0, 1.5, -0.5]
    colours[[0, 1, 2, 2], [0, 1, 0, 1]] = [1.0, 1.0, 1.5, -0.5]
    arrays = {"effect_a": ioi, "effect_b": colours}
    case = Case("effect_overlap", arrays, {"threshold": 0.25}, dtype, "exact/planted")
    return case, {"overlap": np.array(0.75), "shared": (ioi != 0) & (colours != 0)}


_PATCH = Entry(
    "path_patch_gpt2",
    path_patch_gpt2,
    ("weights", "clean", "corrupt", "answers"),
    cases.PATCH.scenarios(cases.PATCH_SCENARIOS),
    cases.PATCH.families,
    cases.patch_cases,
    laws=laws.PATCH_LAWS,
    bugs=bugs.PATCH_BUGS,
    budgets=patch_budgets,
    axes={"clean": ("B", "T"), "corrupt": ("B", "T"), "answers": ("B", "two")},
)
_DIFFERENCE = Entry(
    "logit_difference",
    logit_difference,
    ("logits", "answers"),
    cases.DIFFERENCE.scenarios(cases.DIFFERENCE_SCENARIOS),
    cases.FAMILIES,
    cases.DIFFERENCE.cases(cases.difference_sizes),
    smoke=smoke("mean", "each", "elsewhere"),
    laws=laws.DIFFERENCE_LAWS,
    bugs=bugs.DIFFERENCE_BUGS,
    differentiable=("logits",),
    axes={"logits": ("B", "T", "V"), "answers": ("B", "two")},
)
_EFFECT = Entry(
    "patch_effect",
    patch_effect,
    ("patched", "clean", "corrupt"),
    cases.EFFECT.scenarios(cases.EFFECT_SCENARIOS),
    cases.FAMILIES,
    cases.EFFECT.cases(cases.effect_sizes),
    smoke=smoke("vector", "matrix"),
    laws=laws.EFFECT_LAWS,
    bugs=bugs.EFFECT_BUGS,
    differentiable=("patched", "clean", "corrupt"),
)
_MASK = Entry(
    "head_mask",
    head_mask,
    ("effect",),
    cases.MASK.scenarios(cases.MASK_SCENARIOS),
    cases.FAMILIES,
    cases.MASK.cases(cases.mask_sizes()),
    smoke=smoke(*cases.MASK_SCENARIOS, families=("normal", "tied")),
    laws=laws.MASK_LAWS,
    bugs=bugs.MASK_BUGS,
)
_OVERLAP = Entry(
    "effect_overlap",
    effect_overlap,
    ("effect_a", "effect_b"),
    cases.OVERLAP.scenarios(cases.OVERLAP_SCENARIOS),
    cases.OVERLAP.families,
    cases.OVERLAP.cases(cases.mask_sizes(louder=True)),
    smoke=smoke("a_third", "above", "different_sizes", "nobody"),
    laws=laws.OVERLAP_LAWS,
    bugs=bugs.OVERLAP_BUGS,
    exact={"planted": _planted},
)
_FORCE = Entry(
    "force_rows",
    force_rows,
    ("pattern", "rows", "targets"),
    cases.FORCE.scenarios(cases.FORCE_SCENARIOS),
    cases.FORCE.families,
    cases.FORCE.cases(cases.force_sizes()),
    smoke=smoke("whole", "half", "quarter", "after_a_cache"),
    laws=laws.FORCE_LAWS,
    bugs=bugs.FORCE_BUGS,
    differentiable=("pattern",),
)

CONTRACT = Contract(
    "circuit_reuse",
    "Circuit component reuse across tasks",
    "2310.08744",
    "interpretability",
    (_PATCH, _DIFFERENCE, _EFFECT, _MASK, _OVERLAP, _FORCE),
)
