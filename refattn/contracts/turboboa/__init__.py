"""The contract of TurboBoA: grids, codes, the quantisers by columns and by rows, the Hessians, and the refinement.

Where a weight lies halfway between two points, rounding alone decides, and one code that is turned turns others after
it. Most cases give the grid; few search one, whose steps are among many near equals. Of a symmetric min-max
grid the cases have the largest weight positive, since the most negative one always lies halfway between two points. The
continuous parts (Hessians, losses, refined steps with codes given) are entries of their own. float16 and bfloat16 leave
most codes in doubt: the bugs of what rounds are planted in float64 and float32.

The portable twin traces everything; it does not repeat the damping of a Hessian that is not yet positive definite, and
checks no arguments.
"""

from __future__ import annotations

from typing import Any

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.turboboa import bugs, cases, laws
from refattn.efficiency.turboboa import (
    attention_hessians,
    boa,
    dequantize,
    gptq,
    input_hessian,
    minmax_grid,
    quantize_codes,
    reconstruction_loss,
    refine_scales,
    residual_correlation,
    rtn,
    search_grid,
    turboboa,
)

__all__ = ["CONTRACT"]

# one shape where nothing else is asked for: libraries that compile by shape then compile once
_ROWS: dict[str, Any] = {"r": 4, "d": 4, "bits": 3}
_HEADS: dict[str, Any] = {"H": 2, **_ROWS}

_TURBOBOA = Entry(
    "turboboa",
    turboboa,
    ("w", "h_in"),
    cases.TURBOBOA.scenarios(
        {
            "pairs": {**_HEADS, "per_head": True, "block_rows": 2, "corrected": True, "refine_sweeps": 2},
            "ordered": {
                **_HEADS,
                "per_head": True,
                "block_rows": 3,
                "refine_sweeps": 0,
                "act_order_rows": True,
                "act_order_cols": True,
            },
            "adaptive": {**_HEADS, "bits": 2, "block_rows": 2, "corrected": True, "grid": "minmax"},
            "searched": {**_HEADS, "block_rows": 4, "grid": "hessian", "refine_sweeps": 1},
            "one_row": {**_HEADS, "block_rows": 1, "refine_sweeps": 0},
            "whole_heads": {**_HEADS, "corrected": True, "refine_sweeps": 1},
            "fixed": {**_HEADS, "block_rows": 2, "grid": "minmax", "adaptive_grid": False, "symmetric": True},
            "groups": {**_HEADS, "block_rows": 2, "refine_sweeps": 0, "groups": 2, "grid": "minmax", "group_size": 2},
            "values": {**_HEADS, "per_head": True, "alone": True, "refine_sweeps": 1},
            "dead_input": {**_HEADS, "block_rows": 2, "refine_sweeps": 1, "dead": 3, "dead_value": 0.5},
            "one_weight": {"H": 1, "r": 1, "d": 1, "bits": 2, "refine_sweeps": 0},
        }
    ),
    cases.TURBOBOA.families,
    cases.TURBOBOA.cases(cases.head_sizes("block_rows", "corrected", "refine_sweeps")),
    smoke=smoke("pairs", "adaptive", "ordered"),
    laws=laws.TURBOBOA_LAWS,
    bugs=bugs.TURBOBOA_BUGS,
)
_BOA = Entry(
    "boa",
    boa,
    ("w", "h_in"),
    cases.BOA.scenarios(
        {
            "per_head": {**_HEADS, "per_head": True},
            "per_head_ordered": {**_HEADS, "per_head": True, "act_order_rows": True, "act_order_cols": True},
            "plain": _HEADS,
            "ordered": {**_HEADS, "act_order_rows": True, "act_order_cols": True},
            "minmax": {**_HEADS, "grid": "minmax", "symmetric": True},
            "values": {**_HEADS, "per_head": True, "alone": True},
            "dead_input": {**_HEADS, "dead": 3, "dead_value": 0.5},
            "heads_of_one_row": {"H": 3, "r": 1, "d": 5, "bits": 2},
        }
    ),
    cases.BOA.families,
    cases.BOA.cases(cases.head_sizes()),
    smoke=smoke("plain", "ordered"),
    laws=laws.BOA_LAWS,
    bugs=bugs.BOA_BUGS,
)
_GPTQ = Entry(
    "gptq",
    gptq,
    ("w", "h_in"),
    cases.GPTQ.scenarios(
        {
            "per_head": {**_HEADS, "per_head": True, "corrected": True},
            "per_head_ordered": {**_HEADS, "per_head": True, "act_order": True},
            "plain": _HEADS,
            "corrected": {**_HEADS, "corrected": True},
            "ordered": {**_HEADS, "act_order": True},
            "dead_input": {**_HEADS, "dead": 3, "dead_value": 0.5},
            "on_the_way": {**_HEADS, "grid": "minmax", "group_size": 2, "block_columns": 3},
            "one_weight": {"H": 1, "r": 1, "d": 1, "bits": 2},
        }
    ),
    cases.GPTQ.families,
    cases.GPTQ.cases(cases.matrix_sizes()),
    smoke=smoke("plain", "corrected", "ordered", "dead_input"),
    laws=laws.GPTQ_LAWS,
    bugs=bugs.GPTQ_BUGS,
)
_RTN = Entry(
    "rtn",
    rtn,
    ("w",),
    cases.RTN.scenarios(
        {
            "plain": _ROWS,
            "minmax": {**_ROWS, "given": False},
            "groups": {**_ROWS, "groups": 2, "bits": 2},
            "one_weight": {"r": 1, "d": 1, "bits": 1},
        }
    ),
    cases.FAMILIES,
    cases.RTN.cases(cases.grid_sizes()),
    laws=laws.RTN_LAWS,
    bugs=bugs.RTN_BUGS,
)
_RANGES: dict[str, dict[str, Any]] = {
    "plain": _ROWS,
    "symmetric": {**_ROWS, "symmetric": True, "either_side": True},
    "groups": {**_ROWS, "lead": (2,), "group_size": 2},
    "one_sign": {**_ROWS, "mixed": False, "d": 2},
    "one_weight": {"r": 3, "d": 1, "bits": 2},
}
_MINMAX = Entry(
    "minmax_grid",
    minmax_grid,
    ("w",),
    cases.MINMAX.scenarios({**_RANGES, "symmetric_one_sign": {**_ROWS, "symmetric": True, "mixed": False}}),
    cases.FAMILIES,
    cases.MINMAX.cases(cases.grid_sizes()),
    smoke=smoke("plain", "symmetric", "one_sign"),
    laws=laws.MINMAX_LAWS,
    bugs=bugs.MINMAX_BUGS,
)
_SEARCH = Entry(
    "search_grid",
    search_grid,
    ("w",),
    cases.SEARCH.scenarios(
        {
            "judged": {**_ROWS, "n_shrink": 12},
            "unjudged": {**_ROWS, "n_shrink": 12, "judged": False},
            "symmetric": {**_ROWS, "symmetric": True, "n_shrink": 6},
            "groups": {**_ROWS, "n_shrink": 6, "group_size": 2},
            "own_norm": {**_ROWS, "n_shrink": 6, "judged": False, "norm": 1.0},
            "one_try": {**_ROWS, "n_shrink": 1},
            "one_bit": {**_ROWS, "bits": 1, "n_shrink": 6},
        }
    ),
    cases.FAMILIES,
    cases.SEARCH.cases(cases.grid_sizes()),
    smoke=smoke("judged", "unjudged"),
    laws=laws.SEARCH_LAWS,
    bugs=bugs.SEARCH_BUGS,
)
_CODES = Entry(
    "quantize_codes",
    quantize_codes,
    ("x", "grid"),
    cases.CODES.scenarios(
        {
            "plain": _ROWS,
            "groups": {**_ROWS, "groups": 2, "bits": 4},
            "one_bit": {"r": 2, "d": 4, "bits": 1},
        }
    ),
    cases.FAMILIES,
    cases.CODES.cases(cases.grid_sizes()),
    laws=laws.CODES_LAWS,
    bugs=bugs.CODES_BUGS,
)
_DEQUANTIZE = Entry(
    "dequantize",
    dequantize,
    ("codes", "grid"),
    cases.DEQUANTIZE.scenarios(
        {
            "plain": _ROWS,
            "groups": {**_ROWS, "groups": 2, "bits": 4},
        }
    ),
    cases.FAMILIES,
    cases.DEQUANTIZE.cases(cases.grid_sizes()),
    laws=laws.DEQUANTIZE_LAWS,
    bugs=bugs.DEQUANTIZE_BUGS,
)
_REFINE = Entry(
    "refine_scales",
    refine_scales,
    ("w", "codes", "grid", "h_in"),
    cases.REFINE.scenarios(
        {
            "values": {**_HEADS, "alone": True, "per_head": True, "corrected": True},
            "per_head": {**_HEADS, "per_head": True},
            "plain": {**_HEADS, "corrected": True},
            "three_sweeps": {**_HEADS, "sweeps": 3},
            "alone": {**_HEADS, "alone": True},
            "row_of_zeros": {**_HEADS, "zero_row": 2},
            "one_row": {"H": 1, "r": 1, "d": 5, "bits": 2},
            "no_sweep": {**_HEADS, "sweeps": 0},
        }
    ),
    cases.REFINE.families,
    cases.REFINE.cases(cases.head_sizes("corrected", "sweeps", "alone")),
    smoke=smoke("plain", "three_sweeps"),
    may_alias=True,  # zero points are those that were given
    laws=laws.REFINE_LAWS,
    bugs=bugs.REFINE_BUGS,
    differentiable=("w",),  # a Hessian cannot be changed on one side
)
_MOMENT = Entry(
    "input_hessian",
    input_hessian,
    ("x",),
    cases.MOMENT.scenarios(
        {
            "sequences": {"lead": (2,), "n": 5, "d": 4},
            "flat": {"n": 7, "d": 3},
            "few_tokens": {"n": 2, "d": 5},
            "one_number": {"n": 1, "d": 1},
        }
    ),
    cases.FAMILIES,
    cases.MOMENT.cases(cases.token_sizes()),
    laws=laws.MOMENT_LAWS,
    bugs=bugs.MOMENT_BUGS,
    differentiable=("x",),
)
_CORRELATION = Entry(
    "residual_correlation",
    residual_correlation,
    ("x_full", "x_quant"),
    cases.CORRELATION.scenarios(
        {"sequences": {"lead": (2,), "n": 5, "d": 4}, "flat": {"n": 7, "d": 3}, "one_number": {"n": 1, "d": 1}}
    ),
    cases.FAMILIES,
    cases.CORRELATION.cases(cases.token_sizes()),
    laws=laws.CORRELATION_LAWS,
    bugs=bugs.CORRELATION_BUGS,
    differentiable=("x_full", "x_quant"),
)
_ATTENTION: dict[str, Any] = {"B": 2, "L": 5, "d": 6, "H": 4, "G": 2, "r": 4}
_HESSIANS = Entry(
    "attention_hessians",
    attention_hessians,
    ("x", "wq", "wk", "wv"),
    cases.HESSIANS.scenarios(
        {
            "grouped_rotated": {**_ATTENTION, "rope": True},
            "own_keys": {**_ATTENTION, "G": 4},
            "one_key_head": {**_ATTENTION, "G": 1},
            "everything_seen": {**_ATTENTION, "causal": False},
            "one_token": {"B": 1, "L": 1, "d": 3, "H": 1, "G": 1, "r": 2, "rope": True},
        }
    ),
    ("normal",),
    cases.HESSIANS.cases(cases.attention_sizes()),
    smoke=smoke("grouped_rotated"),
    laws=laws.HESSIANS_LAWS,
    bugs=bugs.HESSIANS_BUGS,
    differentiable=("x", "wq", "wk"),
)
_LOSS = Entry(
    "reconstruction_loss",
    reconstruction_loss,
    ("w", "q", "h_in"),
    cases.LOSS.scenarios(
        {
            "corrected": {**_HEADS, "corrected": True},
            "one_head": {**_HEADS, "H": 1},
            "flat": {**_HEADS, "flat": True},
            "values": {**_HEADS, "alone": True, "per_head": True, "corrected": True},
            "one_weight": {"H": 1, "r": 1, "d": 1, "alone": True},
        }
    ),
    cases.FAMILIES,
    cases.LOSS.cases(cases.loss_sizes()),
    smoke=smoke("corrected", "one_head"),
    laws=laws.LOSS_LAWS,
    bugs=bugs.LOSS_BUGS,
    differentiable=("w", "q", "h_in", "h_out", "residual"),
)

CONTRACT = Contract(
    "turboboa",
    "TurboBoA: quantising weights with attention in view",
    "2602.04929",
    "efficiency",
    (
        _TURBOBOA,
        _BOA,
        _GPTQ,
        _RTN,
        _MINMAX,
        _SEARCH,
        _CODES,
        _DEQUANTIZE,
        _REFINE,
        _HESSIANS,
        _MOMENT,
        _CORRELATION,
        _LOSS,
    ),
)
