"""The contract of context-aware attention, its gate model, optimal transport, fusion and loss (2305.16406).

Sinkhorn is tried with a fixed number of steps (``tol=None``), which every framework can trace; where it stops at a
tolerance, control flow depends on data. Exact plans (`emd_plan`) jump from vertex to vertex with the rounding of the
cost, and measures of calibration jump where a confidence crosses the edge of a bin: neither is an entry, and neither
has a portable twin. Their tests compare them with POT and with official vectors.
"""

from __future__ import annotations

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.context_aware import bugs, cases, laws
from refattn.layers.context_aware_attention import context_aware_attention, deep_global_context
from refattn.layers.context_aware_calibration import label_smoothing_cross_entropy
from refattn.layers.context_aware_fusion import fuse_attention
from refattn.layers.context_aware_gate import gated_self_attention
from refattn.layers.context_aware_transport import ot_cross_attention, ot_kernel_attention
from refattn.primitives.optimal_transport import sinkhorn_plan

__all__ = ["CONTRACT"]


_ATTENTION = Entry(
    "context_aware_attention",
    context_aware_attention,
    ("x", "weights"),
    cases.ATTENTION.scenarios(
        {
            "global": {"B": 2, "N": 5, "H": 2, "d": 3, "d_c": 6, "return_aux": True},
            "per_token": {"B": 1, "N": 4, "H": 3, "d": 2, "d_c": 12, "per_token": True},
            "padded": {"B": 2, "N": 6, "H": 2, "d": 2, "d_c": 3, "padded": True},
            "no_context": {"B": 1, "N": 4, "H": 2, "d": 2},
            "one_token": {"B": 2, "N": 1, "H": 1, "d": 3, "d_c": 1},
            "no_batch": {"B": 0, "N": 3, "H": 1, "d": 2, "d_c": 2},
        }
    ),
    cases.FAMILIES,
    cases.ATTENTION.cases(cases.attention_sizes),
    smoke=smoke("global", "per_token", "padded"),
    laws=laws.ATTENTION_LAWS,
    bugs=bugs.ATTENTION_BUGS,
    differentiable=("x", "context"),
)
_POOL = Entry(
    "deep_global_context",
    deep_global_context,
    ("layers",),
    cases.POOL.scenarios(
        {
            "three_layers": {"B": 2, "N": 5, "D": 3, "l": 3},
            "padded": {"B": 2, "N": 6, "D": 2, "l": 2, "padded": True},
            "one_token": {"B": 1, "N": 1, "D": 1, "l": 1},
        }
    ),
    cases.FAMILIES,
    cases.POOL.cases(cases.pool_sizes),
    laws=laws.POOL_LAWS,
    bugs=bugs.POOL_BUGS,
)
_GATED = Entry(
    "gated_self_attention",
    gated_self_attention,
    ("q", "k", "v", "weights"),
    cases.GATED.scenarios(
        {
            "two_heads": {"B": 2, "H": 2, "N": 5, "d": 3, "d_g": 4},
            "padded": {"B": 2, "H": 1, "N": 6, "d": 2, "d_g": 1, "padded": True},
            "one_token": {"B": 1, "H": 1, "N": 1, "d": 1, "d_g": 2},
            "no_batch": {"B": 0, "H": 1, "N": 2, "d": 2, "d_g": 2},
        }
    ),
    cases.FAMILIES,
    cases.GATED.cases(cases.gated_sizes),
    smoke=smoke("two_heads"),
    laws=laws.GATED_LAWS,
    bugs=bugs.GATED_BUGS,
    differentiable=("q", "k", "v"),
)
_SINKHORN = Entry(
    "sinkhorn_plan",
    sinkhorn_plan,
    ("a", "b", "cost"),
    cases.SINKHORN.scenarios(
        {
            "first_step": {"lead": (), "n": 4, "m": 3, "reg": 1.0, "steps": 1},
            "batch": {"lead": (2,), "n": 3, "m": 5, "reg": 2.0, "steps": 3},
            "sharp": {"lead": (), "n": 5, "m": 5, "reg": 0.5, "steps": 10},
            "one_target": {"lead": (), "n": 4, "m": 1, "reg": 1.0, "steps": 2},
            "one_source": {"lead": (2,), "n": 1, "m": 3, "reg": 1.0, "steps": 2},
        }
    ),
    cases.FAMILIES,
    cases.SINKHORN.cases(cases.sinkhorn_sizes),
    smoke=smoke("first_step", "batch"),
    laws=laws.SINKHORN_LAWS,
    bugs=bugs.SINKHORN_BUGS,
    differentiable=("cost",),
)
_CROSS = Entry(
    "ot_cross_attention",
    ot_cross_attention,
    ("source", "target"),
    cases.CROSS.scenarios(
        {
            "batch": {"B": 2, "n": 4, "m": 5, "d": 3, "reg": 0.25, "steps": 10},
            "median": {"B": 1, "n": 3, "m": 4, "d": 2, "reg": 0.5, "steps": 3, "normalize": "median"},
            "own_scale": {"B": 1, "n": 4, "m": 3, "d": 2, "reg": 2.0, "steps": 2, "normalize": None},
            "one_target": {"B": 1, "n": 3, "m": 1, "d": 2, "reg": 1.0, "steps": 1},
        }
    ),
    cases.FAMILIES,
    cases.CROSS.cases(cases.cross_sizes),
    smoke=smoke("batch", "own_scale"),
    laws=laws.CROSS_LAWS,
    bugs=bugs.CROSS_BUGS,
)
_KERNEL = Entry(
    "ot_kernel_attention",
    ot_kernel_attention,
    ("x", "reference"),
    cases.KERNEL.scenarios(
        {
            "first_step": {"B": 2, "n": 5, "H": 2, "p": 3, "d": 3, "eps": 1.0, "n_iter": 1, "return_weights": True},
            "padded": {"B": 2, "n": 6, "H": 1, "p": 2, "d": 2, "eps": 0.5, "n_iter": 5, "padded": True},
            "one_token": {"B": 1, "n": 1, "H": 1, "p": 2, "d": 1, "eps": 1.0, "n_iter": 2},
            "one_reference": {"B": 1, "n": 4, "H": 2, "p": 1, "d": 2, "eps": 1.0, "n_iter": 2},
        }
    ),
    cases.FAMILIES,
    cases.KERNEL.cases(cases.kernel_sizes),
    smoke=smoke("first_step", "padded"),
    outputs=("out", "weights"),
    laws=laws.KERNEL_LAWS,
    bugs=bugs.KERNEL_BUGS,
    differentiable=("x", "reference"),
)
_FUSE = Entry(
    "fuse_attention",
    fuse_attention,
    ("parts", "w_hidden", "b_hidden", "w_score"),
    cases.FUSE.scenarios(
        {
            "four_parts": {"B": 3, "D": 4, "E": 3, "K": 4},
            "one_part": {"B": 2, "D": 2, "E": 1, "K": 1},
            "no_batch": {"B": 0, "D": 2, "E": 2, "K": 2},
        }
    ),
    cases.FAMILIES,
    cases.FUSE.cases(cases.fuse_sizes),
    smoke=smoke("four_parts"),
    outputs=("fused", "alpha"),
    laws=laws.FUSE_LAWS,
    bugs=bugs.FUSE_BUGS,
)
_SMOOTH = Entry(
    "label_smoothing_cross_entropy",
    label_smoothing_cross_entropy,
    ("logits", "labels"),
    cases.SMOOTH.scenarios(
        {
            "some": {"N": 5, "K": 3},
            "half": {"N": 4, "K": 4, "alpha": 0.5},
            "none": {"N": 3, "K": 2, "alpha": 0.0},
            "one_sample": {"N": 1, "K": 5, "alpha": 1.0},
        }
    ),
    cases.FAMILIES,
    cases.SMOOTH.cases(cases.smooth_sizes),
    smoke=smoke("some", "half"),
    laws=laws.SMOOTH_LAWS,
    bugs=bugs.SMOOTH_BUGS,
    differentiable=("logits",),
)

CONTRACT = Contract(
    "context_aware",
    "Context-aware attention, optimal transport and calibration",
    "2305.16406",
    "layers",
    (_ATTENTION, _POOL, _GATED, _SINKHORN, _CROSS, _KERNEL, _FUSE, _SMOOTH),
)
