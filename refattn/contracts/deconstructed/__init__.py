"""The contract of attention taken apart: the seven variants, two recurrences, stacks of them, and their indicators."""

from __future__ import annotations

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.deconstructed import bugs, cases, laws
from refattn.layers.deconstructed import apply_attention
from refattn.layers.deconstructed_indicators import attention_indicators
from refattn.layers.deconstructed_recurrent import approximate_recurrent, non_approximate_recurrent
from refattn.layers.deconstructed_stack import forward_stack

__all__ = ["CONTRACT"]

_ATTENTION = Entry(
    "apply_attention",
    apply_attention,
    ("hidden", "weights"),
    cases.ATTENTION.scenarios(cases.ATTENTION_SCENARIOS),
    cases.FAMILIES,
    cases.ATTENTION.cases(cases.attention_sizes()),
    smoke=smoke(*cases.ATTENTION_SCENARIOS),
    laws=laws.ATTENTION_LAWS,
    bugs=bugs.ATTENTION_BUGS,
    differentiable=("hidden", "reference", "static"),
    axes={"hidden": ("B", "L", "d"), "static": ("B", "L", "d")},
)
_TAYLOR = Entry(
    "approximate_recurrent",
    approximate_recurrent,
    ("q", "k", "v"),
    cases.TAYLOR.scenarios(cases.TAYLOR_SCENARIOS),
    cases.FAMILIES,
    cases.TAYLOR.cases(cases.recurrent_sizes),
    smoke=smoke(*cases.TAYLOR_SCENARIOS),
    laws=laws.TAYLOR_LAWS,
    bugs=bugs.TAYLOR_BUGS,
    differentiable=("q", "k", "v"),
    axes={"q": ("B", "L", "dk"), "k": ("B", "L", "dk"), "v": ("B", "L", "dv")},
)
_GATE = Entry(
    "non_approximate_recurrent",
    non_approximate_recurrent,
    ("q", "k", "v"),
    cases.GATE.scenarios(cases.GATE_SCENARIOS),
    cases.FAMILIES,
    cases.GATE.cases(cases.recurrent_sizes),
    smoke=smoke(*cases.GATE_SCENARIOS),
    laws=laws.GATE_LAWS,
    bugs=bugs.GATE_BUGS,
    differentiable=("q", "k", "v"),
    axes={"q": ("B", "L", "dk"), "k": ("B", "L", "dk"), "v": ("B", "L", "dv")},
)
_STACK = Entry(
    "forward_stack",
    forward_stack,
    ("tokens", "params"),
    cases.STACK.scenarios(cases.STACK_SCENARIOS),
    ("normal",),
    cases.STACK.cases(cases.stack_sizes),
    smoke=smoke(*cases.STACK_SCENARIOS),
    laws=laws.STACK_LAWS,
    bugs=bugs.STACK_BUGS,
    axes={"tokens": ("B", "L")},
)
_INDICATORS = Entry(
    "attention_indicators",
    attention_indicators,
    ("maps",),
    cases.INDICATORS.scenarios(cases.INDICATOR_SCENARIOS),
    cases.FAMILIES,
    cases.INDICATORS.cases(cases.indicator_sizes),
    smoke=smoke(*cases.INDICATOR_SCENARIOS),
    laws=laws.INDICATOR_LAWS,
    bugs=bugs.INDICATOR_BUGS,
)

CONTRACT = Contract(
    "deconstructed",
    "Deconstructing attention",
    "2510.11602",
    "layers",
    (_ATTENTION, _TAYLOR, _GATE, _STACK, _INDICATORS),
)
