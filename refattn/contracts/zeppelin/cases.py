"""How inputs of the ring are drawn: tokens, where they stand, partial results, and what the way back needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.contracts.zeppelin.plain import forward

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BLOCK",
    "BLOCK_SCENARIOS",
    "FAMILIES",
    "GRADIENT",
    "GRADIENT_SCENARIOS",
    "MERGE",
    "MERGE_SCENARIOS",
    "PAIRS",
    "PARTITION",
    "PARTITION_SCENARIOS",
    "RING",
    "RING_SCENARIOS",
    "block_sizes",
    "merge_sizes",
    "partition_sizes",
    "ring_sizes",
]

FAMILIES = ("normal", "peaky", "cancelling")
LAYOUTS = ("zigzag", "contiguous", "striped")
MOST_RANKS = 6
GROUPED = {"h": 4, "h_kv": 2, "d": 4, "d_v": 3}
SINGLE = {"h": 2, "h_kv": 2, "d": 3, "d_v": 4}

RING_SCENARIOS: dict[str, dict[str, Any]] = {
    "zigzag": {"n": 12, "n_ranks": 3, **GROUPED},
    "packed": {"n": 9, "n_ranks": 2, "cu_seqlens": [0, 5, 6, 9], **GROUPED},
    "zigzag_uneven": {"n": 7, "n_ranks": 2, **SINGLE},
    "contiguous": {"n": 7, "n_ranks": 2, "layout": "contiguous", **SINGLE},
    "striped": {"n": 7, "n_ranks": 3, "layout": "striped", "scale": 0.75, **SINGLE},
    "everything": {"n": 7, "n_ranks": 2, "causal": False, **SINGLE},
    "more_ranks_than_tokens": {"n": 2, "n_ranks": 3, **SINGLE},
    "one_rank": {"n": 7, "n_ranks": 1, **SINGLE},
    "one_token": {"n": 1, "n_ranks": 1, **SINGLE},
    "no_token": {"n": 0, "n_ranks": 2, **SINGLE},
}
GRADIENT_SCENARIOS = {
    name: RING_SCENARIOS[name] for name in ("zigzag", "packed", "contiguous", "striped", "everything")
}
BLOCK_SCENARIOS: dict[str, dict[str, Any]] = {
    "zigzag": {"q_pos": [0, 1, 6, 7], "k_pos": [2, 3, 4, 5, 8], **GROUPED},
    "own": {"q_pos": [3, 4, 5, 9], "k_pos": [3, 4, 5, 9], "scale": 0.75, **SINGLE},
    "unordered": {"q_pos": [5, 0, 3], "k_pos": [4, 1, 6, 2], **SINGLE},
    "all_hidden": {"q_pos": [0, 1, 2], "k_pos": [4, 5, 6, 7], **SINGLE},
    "everything": {"q_pos": [0, 1, 2], "k_pos": [4, 0, 6, 7], "causal": False, **GROUPED},
    "no_key": {"q_pos": [0, 1, 2], "k_pos": [], **SINGLE},
    "no_query": {"q_pos": [], "k_pos": [0, 1], **SINGLE},
}
MERGE_SCENARIOS: dict[str, dict[str, Any]] = {
    "alike": {"n": 5, "h": 3, "d_v": 4},
    "far_apart": {"n": 5, "h": 3, "d_v": 4, "apart": 12.0},
    "first_empty": {"n": 5, "h": 3, "d_v": 4, "empty_a": True},
    "second_empty": {"n": 5, "h": 3, "d_v": 4, "empty_b": True},
    "both_empty": {"n": 5, "h": 3, "d_v": 4, "empty_a": True, "empty_b": True},
    "one_channel": {"n": 2, "h": 1, "d_v": 1},
    "no_row": {"n": 0, "h": 2, "d_v": 3},
}
PARTITION_SCENARIOS: dict[str, dict[str, Any]] = {
    **{layout: {"length": 24, "n_ranks": 4, "layout": layout} for layout in LAYOUTS},
    **{f"{layout}_uneven": {"length": 13, "n_ranks": 5, "layout": layout} for layout in LAYOUTS},
    "fewer_tokens_than_ranks": {"length": 3, "n_ranks": 5},
    "one_rank": {"length": 7, "n_ranks": 1},
    "one_token": {"length": 1, "n_ranks": 2},
    "no_token": {"length": 0, "n_ranks": 2},
}

Made = tuple[dict[str, Any], dict[str, Any]]


def tokens(rng: np.random.Generator, family: str, sizes: Mapping[str, Any], n_q: int, n_k: int) -> dict[str, Any]:
    """Draw queries, keys and values."""
    h, h_kv, d, d_v = (sizes[name] for name in ("h", "h_kv", "d", "d_v"))
    shapes = {"q": (n_q, h, d), "k": (n_k, h_kv, d), "v": (n_k, h_kv, d_v)}
    return {name: fill(rng, shape, family) for name, shape in shapes.items()}


def ring_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Made:
    """Draw a batch for a ring."""
    options = given(sizes, "n_ranks", "layout", "causal", "cu_seqlens", "scale")
    return tokens(rng, family, sizes, sizes["n"], sizes["n"]), options


def gradient_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Made:
    """Draw a batch, its results and their cotangent."""
    arrays, options = ring_case(rng, family, sizes)
    out, lse = forward()(**arrays, **options)
    return {**arrays, "d_out": fill(rng, out.shape, family), "out": out, "lse": lse}, options


def block_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Made:
    """Draw the tokens of a block; where they stand is given."""
    positions = {name: np.array(sizes[name], dtype=np.int64) for name in ("q_pos", "k_pos")}
    arrays = tokens(rng, family, sizes, len(sizes["q_pos"]), len(sizes["k_pos"]))
    return {**arrays, **positions}, given(sizes, "causal", "scale")


def merge_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Made:
    """Draw two partial results; of an empty one the log-sum-exp is −∞ in every other row, and the output 0 there."""
    n, h, d_v = sizes["n"], sizes["h"], sizes["d_v"]
    arrays: dict[str, Any] = {}
    for side, shift in (("a", 0.0), ("b", sizes.get("apart", 0.0))):
        out, lse = fill(rng, (n, h, d_v), family), rng.standard_normal((n, h)) + shift
        if sizes.get(f"empty_{side}"):
            lse[::2], out[::2] = -np.inf, 0.0
        arrays |= {f"out_{side}": out, f"lse_{side}": lse}
    return arrays, {}


def partition_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Made:
    """Take the sizes as they are."""
    del rng, family
    return {}, given(sizes, "length", "n_ranks", "layout", "causal")


@st.composite
def ring_sizes(draw: Any) -> dict[str, Any]:
    """Draw a batch of one or two sequences, heads and ranks."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=2))
    sizes: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {"n_ranks": st.integers(1, 3), "layout": st.sampled_from(LAYOUTS), "causal": st.booleans()},
            optional={"scale": st.sampled_from([0.25, 1.0])},
        )
    )
    h_kv = draw(st.integers(1, 2))
    heads = {"h": h_kv * draw(st.integers(1, 2)), "h_kv": h_kv, "d": draw(st.integers(1, 5)), "d_v": 3}
    return {**sizes, **heads, "n": sum(lengths), "cu_seqlens": [0, *np.cumsum(lengths).tolist()]}


@st.composite
def block_sizes(draw: Any) -> dict[str, Any]:
    """Draw where queries and keys stand."""
    positions = st.lists(st.integers(0, 12), max_size=6, unique=True)
    causal = {"causal": draw(st.booleans())}
    return {"q_pos": draw(positions), "k_pos": draw(positions), **causal, **draw(st.sampled_from([GROUPED, SINGLE]))}


@st.composite
def partition_sizes(draw: Any) -> dict[str, Any]:
    """Draw a length, ranks and a layout."""
    sizes = {"length": st.integers(0, 40), "n_ranks": st.integers(1, MOST_RANKS), "layout": st.sampled_from(LAYOUTS)}
    drawn: dict[str, Any] = draw(st.fixed_dictionaries(sizes))
    return drawn


merge_sizes = st.fixed_dictionaries(
    {"n": st.integers(0, 4), "h": st.integers(1, 3), "d_v": st.integers(1, 4)},
    optional={"apart": st.sampled_from([3.0, 9.0]), "empty_a": st.booleans(), "empty_b": st.booleans()},
)

RING = Recipe("ring_attention", ring_case, FAMILIES)
GRADIENT = Recipe("ring_attention_gradient", gradient_case, ("normal", "cancelling"))
BLOCK = Recipe("attention_block", block_case, FAMILIES)
MERGE = Recipe("merge_partial", merge_case, ("normal", "tied"))
PARTITION = Recipe("partition_positions", partition_case, ("none",))
PAIRS = Recipe("pair_counts", partition_case, ("none",))
