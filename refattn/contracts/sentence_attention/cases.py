"""How inputs of sentence attention are drawn: feature maps, sentences, and weights that leave gates apart."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.layers.sentence_attention import SentenceAttentionWeights, SqueezeExciteWeights
from refattn.layers.sentence_attention_head import MergeWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BLOCK",
    "BLOCK_SCENARIOS",
    "FAMILIES",
    "HEAD",
    "HEAD_SCENARIOS",
    "MERGE",
    "MERGE_SCENARIOS",
    "SQUEEZE",
    "SQUEEZE_SCENARIOS",
    "block_sizes",
    "head_sizes",
    "merge_sizes",
    "squeeze_sizes",
]

FAMILIES = ("normal", "tied", "cancelling")
Drawn = tuple[dict[str, Any], dict[str, Any]]
Scenarios = dict[str, dict[str, Any]]

BLOCK_SCENARIOS: Scenarios = {
    "block": {"B": 2, "C": 5, "H": 4, "W": 3, "D": 6},
    "large_eps": {"B": 3, "C": 4, "H": 2, "W": 3, "D": 4, "eps": 0.5},
    "sigmoid": {"B": 2, "C": 4, "H": 2, "W": 3, "D": 4, "activation": "sigmoid"},
    "without_norm": {"B": 2, "C": 4, "H": 3, "W": 2, "D": 3, "layer_norm": False},
    "one_channel": {"B": 2, "C": 1, "H": 3, "W": 3, "D": 3},
    "one_pixel": {"B": 3, "C": 12, "H": 1, "W": 1, "D": 4},
    "one_number_says_it": {"B": 1, "C": 3, "H": 2, "W": 2, "D": 1},
    "no_batch": {"B": 0, "C": 3, "H": 2, "W": 2, "D": 2},
}
SQUEEZE_SCENARIOS: Scenarios = {
    "block": {"B": 2, "C": 8, "H": 3, "W": 4, "R": 4},
    "one_pixel": {"B": 3, "C": 4, "H": 1, "W": 1, "R": 4},
    "one_channel": {"B": 1, "C": 1, "H": 2, "W": 3, "R": 1},
    "no_batch": {"B": 0, "C": 3, "H": 2, "W": 2, "R": 2},
}
MERGE_SCENARIOS: Scenarios = {
    "doubled": {"B": 2, "low": (4, 3, 2), "high": (3, 6, 4)},
    "uneven": {"B": 1, "low": (3, 3, 2), "high": (5, 7, 5)},
    "shrunk": {"B": 1, "low": (2, 5, 7), "high": (3, 2, 3)},
    "same_size": {"B": 1, "low": (5, 4, 4), "high": (2, 4, 4)},
    "large_eps": {"B": 2, "low": (3, 2, 2), "high": (2, 5, 3), "eps": 0.5},
    "one_pixel": {"B": 1, "low": (1, 1, 1), "high": (1, 1, 1)},
    "no_batch": {"B": 0, "low": (2, 2, 2), "high": (2, 4, 4)},
}
HEAD_SCENARIOS: Scenarios = {
    "three_scales": {"B": 2, "D": 4, "K": 2, "maps": [(3, 8, 6), (4, 4, 3), (5, 2, 2)], "output_size": [16, 12]},
    "one_scale": {"B": 1, "D": 3, "K": 1, "maps": [(3, 4, 4)], "output_size": [9, 5]},
    "down_to_one_pixel": {"B": 1, "D": 2, "K": 1, "maps": [(3, 5, 3), (2, 1, 1)], "output_size": [1, 1]},
    "no_batch": {"B": 0, "D": 2, "K": 1, "maps": [(2, 4, 4), (3, 2, 2)], "output_size": [4, 4]},
}


def _layer(rng: np.random.Generator, rows: int, columns: int, gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a matrix that keeps the size of what it multiplies, and a bias."""
    return gain * rng.standard_normal((rows, columns)) / np.sqrt(rows), 0.5 * rng.standard_normal(columns)


def _gate(rng: np.random.Generator, D: int, C: int) -> SentenceAttentionWeights:
    w1, b1 = _layer(rng, D, 4 * D)
    scale, shift = 1.0 + 0.3 * rng.standard_normal(4 * D), 0.3 * rng.standard_normal(4 * D)
    return SentenceAttentionWeights(w1, b1, scale, shift, *_layer(rng, 4 * D, C, 1.5))


def _merge(rng: np.random.Generator, low: int, high: int) -> MergeWeights:
    w, mean = _layer(rng, low, high)
    scale, shift = 1.0 + 0.3 * rng.standard_normal(high), 0.3 * rng.standard_normal(high)
    return MergeWeights(w, scale, shift, mean, 0.25 + rng.random(high))


def block_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw feature maps, sentences and one block."""
    B, C, D = (sizes[name] for name in ("B", "C", "D"))
    arrays = {
        "features": fill(rng, (B, C, sizes["H"], sizes["W"]), family),
        "text": fill(rng, (B, D), family),
        "weights": _gate(rng, D, C),
    }
    return arrays, given(sizes, "activation", "layer_norm", "eps")


def squeeze_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw feature maps and one squeeze-and-excitation block; channels have means that differ from zero."""
    B, C, R = (sizes[name] for name in ("B", "C", "R"))
    features = fill(rng, (B, C, sizes["H"], sizes["W"]), family) + rng.standard_normal((C, 1, 1))
    return {"features": features, "weights": SqueezeExciteWeights(*_layer(rng, C, R, 2.0), *_layer(rng, R, C, 2.0))}, {}


def merge_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a coarse and a finer map, and one merging block."""
    low, high = (fill(rng, (sizes["B"], *sizes[name]), family) for name in ("low", "high"))
    weights = _merge(rng, sizes["low"][0], sizes["high"][0])
    return {"low": low, "high": high, "weights": weights}, given(sizes, "eps")


def head_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a pyramid, sentences and the weights of a head; features large enough to be seen through the gates."""
    maps, D = sizes["maps"], sizes["D"]
    w, b = _layer(rng, maps[0][0], sizes["K"])
    arrays = {
        "features": tuple(3.0 * fill(rng, (sizes["B"], *shape), family) for shape in maps),
        "text": fill(rng, (sizes["B"], D), family),
        "gates": tuple(_gate(rng, D, shape[0]) for shape in maps),
        "merges": tuple(_merge(rng, low[0], high[0]) for high, low in pairwise(maps)),
        "classifier_w": w,
        "classifier_b": b,
    }
    return arrays, {"output_size": sizes["output_size"]}


@st.composite
def block_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes and options of a block."""
    drawn: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {"B": st.integers(0, 2), **{name: st.integers(1, 4) for name in "CHWD"}},
            optional={
                "activation": st.sampled_from(["softmax", "sigmoid"]),
                "layer_norm": st.booleans(),
                "eps": st.sampled_from([1e-5, 0.125]),
            },
        )
    )
    return drawn


squeeze_sizes = st.fixed_dictionaries({"B": st.integers(0, 2), **{name: st.integers(1, 4) for name in "CHWR"}})
_shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
merge_sizes = st.fixed_dictionaries({"B": st.integers(0, 2), "low": _shapes, "high": _shapes})


@st.composite
def head_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of a head with up to three scales."""
    pixels = st.integers(1, 6)
    return {
        "B": draw(st.integers(0, 2)),
        "D": draw(st.integers(1, 3)),
        "K": draw(st.integers(1, 2)),
        "maps": draw(st.lists(_shapes, min_size=1, max_size=3)),
        "output_size": [draw(pixels), draw(pixels)],
    }


BLOCK = Recipe("sentence_attention", block_case, FAMILIES)
SQUEEZE = Recipe("squeeze_excite", squeeze_case, FAMILIES)
MERGE = Recipe("merge_block", merge_case, FAMILIES)
HEAD = Recipe("answer_grounding_head", head_case, FAMILIES)
