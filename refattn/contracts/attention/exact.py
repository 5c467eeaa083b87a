"""Vectors whose arithmetic is exact in every dtype: a kernel must return every bit of them.

Equation source: the attention sheet, section 2.8, X1 and X2. A kernel that splits the keys is exempt from the first,
for the logarithm of 8 is inexact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.cases import generator, rounded
from refattn.conformance.contract import Case

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Outputs

__all__ = [
    "ATTENTION_VECTORS",
    "MERGE_VECTORS",
    "ROTARY_VECTORS",
    "lone_part",
    "mean_of_eight",
    "one_hot",
    "position_zero",
]

Vectors = dict[str, "Callable[[str], tuple[Case, Outputs]]"]


def mean_of_eight(dtype: str) -> tuple[Case, Outputs]:
    """Return X1: queries of 0, eight keys, values that are multiples of 8: every output is the mean of the values."""
    rng = generator(8, "mean_of_eight")
    arrays = {
        "q": np.zeros((2, 4, 5, 16)),
        "k": rounded(rng.standard_normal((2, 2, 8, 16)), dtype),
        "v": 8.0 * rng.integers(-8, 9, (2, 2, 8, 16)),
    }
    mean = np.repeat(arrays["v"].mean(axis=2, keepdims=True), 2, axis=1)
    return Case("attention", arrays, {}, dtype, "X1"), {"out": np.broadcast_to(mean, (2, 4, 5, 16))}


def one_hot(dtype: str) -> tuple[Case, Outputs]:
    """Return X2: keys 64 e_c and queries 64 e_c, so that one logit is 1024 and all others 0: the output is v_c."""
    rng = generator(16, "one_hot")
    choice = rng.integers(0, 16, (2, 4, 9))
    arrays = {
        "q": 64.0 * np.eye(16)[choice],
        "k": np.broadcast_to(64.0 * np.eye(16), (2, 2, 16, 16)).copy(),
        "v": rounded(rng.standard_normal((2, 2, 16, 16)), dtype),
    }
    out = np.take_along_axis(np.repeat(arrays["v"], 2, axis=1), choice[..., None], axis=2)
    return Case("attention", arrays, {}, dtype, "X2"), {"out": out}


def lone_part(dtype: str) -> tuple[Case, Outputs]:
    """Return a merge of one part with an empty one: the part itself."""
    rng = generator(1, "lone_part")
    outs = rounded(rng.standard_normal((2, 1, 2, 5, 8)), dtype)
    lses = np.stack([np.zeros((1, 2, 5)), np.full((1, 2, 5), -np.inf)])
    return Case("merge_attention", {"outs": outs, "lses": lses}, {}, dtype, "X3"), {"out": outs[0], "lse": lses[0]}


def position_zero(dtype: str) -> tuple[Case, Outputs]:
    """Return a rotation at position 0, where cos is 1 and sin 0: the input itself."""
    x = rounded(generator(0, "position_zero").standard_normal((2, 3, 4, 16)), dtype)
    case = Case("rotary_embedding", {"x": x, "positions": np.zeros(4, int)}, {}, dtype, "X4")
    return case, {"out": x}


ATTENTION_VECTORS: Vectors = {"mean_of_eight": mean_of_eight, "one_hot": one_hot}
MERGE_VECTORS: Vectors = {"lone_part": lone_part}
ROTARY_VECTORS: Vectors = {"position_zero": position_zero}
