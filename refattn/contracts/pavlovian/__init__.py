"""The contract of attention as conditioning: memories under nine rules, their reads, and the attention made of both."""

from __future__ import annotations

import numpy as np

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Case, Contract, Entry, Outputs
from refattn.contracts.pavlovian import bugs, cases, laws
from refattn.layers.pavlovian import (
    linear_memory_read,
    linear_memory_write,
    pavlovian_attention,
    polynomial_memory_read,
    softmax_memory_read,
)

__all__ = ["CONTRACT"]


def _blocking(dtype: str) -> tuple[Case, Outputs]:
    """Teach a bell, then bell and light together: with rate one the light stays unconnected, exactly."""
    keys = np.array([[1.0, 0.0], [0.5, 0.5]])
    arrays = {"keys": keys, "values": np.array([[2.0], [1.0]])}
    return (
        Case("linear_memory_write", arrays, {"rule": "delta"}, dtype, "exact/blocking"),
        {"out": np.array([[2.0, 0.0]])},
    )


_WRITE = Entry(
    "linear_memory_write",
    linear_memory_write,
    ("keys", "values"),
    cases.WRITE.scenarios(cases.WRITE_SCENARIOS),
    cases.FAMILIES,
    cases.WRITE.cases(cases.write_sizes()),
    smoke=smoke(*cases.WRITE_SCENARIOS),
    laws=laws.WRITE_LAWS,
    bugs=bugs.WRITE_BUGS,
    exact={"blocking": _blocking},
    differentiable=("keys", "values", "initial"),
    axes={"keys": ("B", "n", "dk"), "values": ("B", "n", "dv"), "initial": ("B", "dv", "dk")},
)
_ATTENTION = Entry(
    "pavlovian_attention",
    pavlovian_attention,
    ("q", "k", "v"),
    cases.ATTENTION.scenarios(cases.ATTENTION_SCENARIOS),
    cases.FAMILIES,
    cases.ATTENTION.cases(cases.attention_sizes()),
    smoke=smoke("hebb", "decay", "delta", "delta_one_chunk", "gated_delta", "anti_hebb"),
    laws=laws.ATTENTION_LAWS,
    bugs=bugs.ATTENTION_BUGS,
    differentiable=("q", "k", "v"),
    axes={"q": ("B", "n", "dk"), "k": ("B", "n", "dk"), "v": ("B", "n", "dv")},
)
_READ = Entry(
    "linear_memory_read",
    linear_memory_read,
    ("S", "queries"),
    cases.READ.scenarios(
        {
            "plain": {"B": 2, "m": 3, "dk": 5, "dv": 4},
            "one_channel": {"B": 1, "m": 2, "dk": 1, "dv": 1},
            "no_cue": {"B": 2, "m": 0, "dk": 3, "dv": 2},
            "no_batch": {"B": 0, "m": 2, "dk": 3, "dv": 2},
        }
    ),
    cases.FAMILIES,
    cases.READ.cases(cases.read_sizes),
    laws=laws.READ_LAWS,
    bugs=bugs.READ_BUGS,
    differentiable=("S", "queries"),
    axes={"S": ("B", "dv", "dk"), "queries": ("B", "m", "dk")},
)

_PAIRS = {"keys": ("B", "n", "dk"), "values": ("B", "n", "dv"), "queries": ("B", "m", "dk")}

_SOFTMAX = Entry(
    "softmax_memory_read",
    softmax_memory_read,
    ("keys", "values", "queries"),
    cases.SOFTMAX.scenarios(
        {
            "warm": {"B": 2, "n": 6, "m": 3, "dk": 5, "dv": 4, "beta": 4.0},
            "hot": {"B": 1, "n": 5, "m": 3, "dk": 4, "dv": 2, "beta": 64.0},
            "blind": {"B": 1, "n": 5, "m": 2, "dk": 4, "dv": 2, "beta": 0.0},
            "one_pair": {"B": 1, "n": 1, "m": 2, "dk": 3, "dv": 1, "beta": 2.0},
            "no_pair": {"B": 2, "n": 0, "m": 2, "dk": 3, "dv": 2, "beta": 2.0},
            "no_cue": {"B": 1, "n": 4, "m": 0, "dk": 3, "dv": 2, "beta": 2.0},
            "no_batch": {"B": 0, "n": 2, "m": 2, "dk": 3, "dv": 2, "beta": 2.0},
        }
    ),
    cases.FAMILIES,
    cases.SOFTMAX.cases(cases.recall_sizes("beta", [0.0, 1.0, 8.0])),
    laws=laws.SOFTMAX_LAWS,
    bugs=bugs.SOFTMAX_BUGS,
    differentiable=("keys", "values", "queries"),
    axes=_PAIRS,
)
_POLYNOMIAL = Entry(
    "polynomial_memory_read",
    polynomial_memory_read,
    ("keys", "values", "queries"),
    cases.POLYNOMIAL.scenarios(
        {
            "cube": {"B": 2, "n": 6, "m": 3, "dk": 5, "dv": 4, "degree": 3},
            "square": {"B": 1, "n": 5, "m": 3, "dk": 4, "dv": 2, "degree": 2},
            "linear": {"B": 1, "n": 5, "m": 2, "dk": 4, "dv": 2, "degree": 1},
            "fifth": {"B": 1, "n": 4, "m": 2, "dk": 2, "dv": 1, "degree": 5},
            "no_pair": {"B": 2, "n": 0, "m": 2, "dk": 3, "dv": 2, "degree": 2},
            "no_cue": {"B": 1, "n": 4, "m": 0, "dk": 3, "dv": 2, "degree": 2},
            "no_batch": {"B": 0, "n": 2, "m": 2, "dk": 3, "dv": 2, "degree": 3},
        }
    ),
    cases.FAMILIES,
    cases.POLYNOMIAL.cases(cases.recall_sizes("degree", [1, 2, 3, 4])),
    laws=laws.POLYNOMIAL_LAWS,
    bugs=bugs.POLYNOMIAL_BUGS,
    differentiable=("keys", "values", "queries"),
    axes=_PAIRS,
)

CONTRACT = Contract(
    "pavlovian",
    "Attention as Pavlovian conditioning",
    "2508.08289",
    "layers",
    (_ATTENTION, _WRITE, _READ, _SOFTMAX, _POLYNOMIAL),
)
