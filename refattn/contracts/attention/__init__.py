"""The contract of attention: its scenarios, value families, laws, error budgets, planted bugs and conventions.

Equation source: the attention sheet, sections 2.8, 4, 5.2 to 5.5, 6 and 7. Entries: `attention` itself, its
vector-Jacobian product, packed sequences, paged caches, merged parts, and rotary embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refattn.conformance.contract import Contract, Entry
from refattn.contracts.attention.bugs import (
    ATTENTION_BUGS,
    GRADIENT_BUGS,
    MERGE_BUGS,
    PAGED_BUGS,
    ROTARY_BUGS,
    VARLEN_BUGS,
    wrong_attentions,
    wrong_gradients,
    wrong_rotations,
)
from refattn.contracts.attention.conventions import CONVENTIONS
from refattn.contracts.attention.equivalents import dense, dense_budgets
from refattn.contracts.attention.error_model import attention_budget, gradient_budget, rope_budget
from refattn.contracts.attention.exact import ATTENTION_VECTORS, MERGE_VECTORS, ROTARY_VECTORS
from refattn.contracts.attention.families import FAMILIES, project
from refattn.contracts.attention.laws import (
    ATTENTION_LAWS,
    GRADIENT_LAWS,
    MERGE_LAWS,
    PAGED_LAWS,
    ROTARY_LAWS,
    VARLEN_LAWS,
)
from refattn.contracts.attention.pipeline import sees
from refattn.contracts.attention.scenarios import SCENARIOS
from refattn.contracts.attention.scenarios_kin import (
    GRADIENT_SCENARIOS,
    MERGE_FAMILIES,
    MERGE_SCENARIOS,
    PAGED_SCENARIOS,
    VARLEN_SCENARIOS,
)
from refattn.contracts.attention.scenarios_rotary import ROTARY_FAMILIES, ROTARY_SCENARIOS
from refattn.contracts.attention.strategies import FEATURES, attention_cases, gradient_cases
from refattn.contracts.attention.strategies_kin import merge_cases, paged_cases, rotary_cases, varlen_cases
from refattn.contracts.attention.surgery import AXES
from refattn.primitives.attention import attention
from refattn.primitives.attention_gradients import attention_vjp
from refattn.primitives.attention_online import merge_attention
from refattn.primitives.attention_packed import attention_paged, attention_varlen
from refattn.primitives.rotary_embedding import rotary_embedding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refattn.conformance.budget import Budget
    from refattn.conformance.contract import Case

__all__ = [
    "CONTRACT",
    "FAMILIES",
    "FEATURES",
    "GRADIENT_SCENARIOS",
    "MERGE_SCENARIOS",
    "PAGED_SCENARIOS",
    "ROTARY_SCENARIOS",
    "SCENARIOS",
    "SMOKE",
    "VARLEN_SCENARIOS",
    "attention_cases",
    "dense",
    "gradient_cases",
    "merge_cases",
    "paged_cases",
    "project",
    "rotary_cases",
    "sees",
    "varlen_cases",
    "wrong_attentions",
    "wrong_gradients",
    "wrong_rotations",
]

SMOKE = (
    ("paged", "rowshift"),
    ("sinks_split", "spiky"),
    ("dv_ne_d", "normal"),
    ("mask_and_causal", "cancel"),
    ("alibi", "cancel"),
    ("bias", "cancel"),
    ("window_two", "cancel"),
    ("softcap", "cancel"),
    ("packed", "cancel"),
    ("bias_bcast", "cancel"),
    ("prefix_lm", "cancel"),
    ("pad_lengths", "cancel"),
    ("alibi_two_sided", "cancel"),
    ("causal_tl", "cancel"),
    ("square_hs", "cancel"),
    ("causal_square", "rowshift"),
    ("long_split", "uniform"),
)


def _attention_budgets(_entry: Entry, case: Case, precision: str | None) -> Mapping[str, Budget]:
    return dense_budgets(attention_budget, case, precision)


def _gradient_budgets(_entry: Entry, case: Case, precision: str | None) -> Mapping[str, Budget]:
    return gradient_budget(case, precision)


def _rotary_budgets(_entry: Entry, case: Case, precision: str | None) -> Mapping[str, Budget]:
    return rope_budget(case, precision)


ATTENTION = Entry(
    "attention",
    attention,
    ("q", "k", "v"),
    SCENARIOS,
    tuple(FAMILIES),
    attention_cases,
    smoke=SMOKE,
    outputs=("out", "lse"),
    laws=ATTENTION_LAWS,
    bugs=ATTENTION_BUGS,
    budgets=_attention_budgets,
    exact=ATTENTION_VECTORS,
    differentiable=("q", "k", "v", "bias", "sinks"),
    axes=AXES,
)

GRADIENT = Entry(
    "attention_vjp",
    attention_vjp,
    ("q", "k", "v", "dout"),
    GRADIENT_SCENARIOS,
    tuple(family for family in FAMILIES if family != "subnormal"),
    gradient_cases,
    smoke=(
        ("sinks", "cancel"),
        ("softcap", "normal"),
        ("mask_and_causal", "normal"),
        ("cache_lengths", "peaky"),
        ("window_two", "cancel"),
        ("dv_ne_d", "normal"),
    ),
    outputs=("dq", "dk", "dv"),
    laws=GRADIENT_LAWS,
    bugs=GRADIENT_BUGS,
    budgets=_gradient_budgets,
    gradient_of="attention",
    axes=AXES,
)

VARLEN = Entry(
    "attention_varlen",
    attention_varlen,
    ("q", "k", "v", "cu_q", "cu_k"),
    VARLEN_SCENARIOS,
    tuple(FAMILIES),
    varlen_cases,
    smoke=(
        ("packed_window", "normal"),
        ("packed_decode", "rowshift"),
        ("packed_alibi", "normal"),
        ("packed_empty", "normal"),
        ("packed_unequal", "cancel"),
        ("packed", "cancel"),
    ),
    outputs=("out", "lse"),
    laws=VARLEN_LAWS,
    bugs=VARLEN_BUGS,
    budgets=_attention_budgets,
    differentiable=("q", "k", "v"),
)

PAGED = Entry(
    "attention_paged",
    attention_paged,
    ("q", "k_pages", "v_pages", "block_table", "kv_lengths"),
    PAGED_SCENARIOS,
    tuple(FAMILIES),
    paged_cases,
    smoke=(
        ("paged_window", "rowshift"),
        ("paged", "tied"),
        ("paged_slots", "normal"),
        ("paged_empty", "spiky"),
        ("paged_full", "normal"),
    ),
    outputs=("out", "lse"),
    laws=PAGED_LAWS,
    bugs=PAGED_BUGS,
    budgets=_attention_budgets,
    differentiable=("q",),
)

MERGE = Entry(
    "merge_attention",
    merge_attention,
    ("outs", "lses"),
    MERGE_SCENARIOS,
    MERGE_FAMILIES,
    merge_cases,
    smoke=(("sinks_alone", "cancelling"), ("empty_parts", "normal"), ("many_parts", "normal")),
    outputs=("out", "lse"),
    laws=MERGE_LAWS,
    bugs=MERGE_BUGS,
    exact=MERGE_VECTORS,
    axes={"outs": ("N", "B", "H", "Sq", "dv"), "lses": ("N", "B", "H", "Sq"), "sinks": ("H",)},
)

ROTARY = Entry(
    "rotary_embedding",
    rotary_embedding,
    ("x", "positions"),
    ROTARY_SCENARIOS,
    ROTARY_FAMILIES,
    rotary_cases,
    smoke=(
        ("partial", "large"),
        ("longrope_long", "large"),
        ("long_base", "normal"),
        ("linear", "uniform"),
        ("ragged", "normal"),
    ),
    laws=ROTARY_LAWS,
    bugs=ROTARY_BUGS,
    budgets=_rotary_budgets,
    exact=ROTARY_VECTORS,
    differentiable=("x",),
    axes={"x": ("B", "H", "S", "d"), "positions": ("B", "one", "S")},
)

CONTRACT = Contract(
    "attention",
    "Scaled dot-product attention, every convention",
    "1706.03762",
    "primitives",
    (ATTENTION, GRADIENT, VARLEN, PAGED, MERGE, ROTARY),
    CONVENTIONS,
)
