"""How inputs of the HyLRA entries are drawn: groups of heads, masks, blocks that do not fit, tables of overlaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BLOCKS",
    "BLOCK_SCENARIOS",
    "DISTORTION",
    "DISTORTION_SCENARIOS",
    "FAMILIES",
    "FULL",
    "FULL_SCENARIOS",
    "LAYERS",
    "LAYER_SCENARIOS",
    "MAX_MIN",
    "MAX_MIN_SCENARIOS",
    "MIN_FULL",
    "MIN_FULL_SCENARIOS",
    "OVERLAP",
    "OVERLAP_SCENARIOS",
    "RATIO",
    "RATIO_SCENARIOS",
    "REUSE",
    "REUSE_SCENARIOS",
    "block_sizes",
    "distortion_sizes",
    "full_sizes",
    "layer_sizes",
    "max_min_sizes",
    "min_full_sizes",
    "overlap_sizes",
    "ratio_sizes",
    "reuse_sizes",
]

FAMILIES = ("normal", "peaky", "tied", "cancelling")
CHOICE = ("n_keep", "block_size", "sink", "recent")

Drawn = tuple[dict[str, Any], dict[str, Any]]


def _attention(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    B, H, G, Tq, T, d = (sizes[name] for name in ("B", "H", "G", "Tq", "T", "d"))
    arrays = {"q": fill(rng, (B, H * G, Tq, d), family), "k": fill(rng, (B, H, T, d), family)}
    arrays["v"] = fill(rng, (B, H, T, d), family)
    if "mask" in sizes:
        arrays["mask"] = _mask(rng, sizes["mask"], (B, 1, Tq, T))
    return arrays


def _mask(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return who sees whom: causal from the end, the same with padding on the left, or anything."""
    _, _, Tq, T = shape
    if kind == "random":
        return rng.random(shape) < 0.6
    causal = np.broadcast_to(np.tri(Tq, T, T - Tq, dtype=bool), shape)
    padded = np.arange(T) >= (T // 3 if kind == "padded" else 0)
    return causal & padded


def full_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw queries, keys, values and perhaps a mask."""
    return _attention(rng, family, sizes), given(sizes, *CHOICE, "share_heads", "refresh", "scale")


def reuse_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw the same and sets of keys, padded with −1."""
    arrays = _attention(rng, family, sizes)
    B, H, Tq, T, n = (sizes[name] for name in ("B", "H", "Tq", "T", "n"))
    lead = (B, H) if sizes.get("one_set", False) else (B, H, Tq)
    keys = np.sort(rng.permuted(np.broadcast_to(np.arange(T), (*lead, T)).copy(), axis=-1)[..., :n], axis=-1)
    kept = np.arange(keys.shape[-1]) < n - rng.integers(0, sizes.get("missing", 0) + 1, lead)[..., None]
    return arrays | {"indices": np.where(kept, keys, -1)}, given(sizes, "scale")


def distortion_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw the queries of some steps, and a cache."""
    H, G, T, d = (sizes[name] for name in ("H", "G", "T", "d"))
    steps = (sizes["S"],) if "S" in sizes else ()
    arrays = {"q": fill(rng, (*steps, H * G, d), family), "k": fill(rng, (H, T, d), family)}
    arrays["v"] = fill(rng, (H, T, d), family)
    if sizes.get("growing", False):
        arrays["lengths"] = T - np.arange(sizes["S"])[::-1]
    return arrays, given(sizes, *CHOICE, "scale")


def block_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw weights of keys, and perhaps which are visible."""
    shape = (*sizes["lead"], sizes["T"])
    arrays = {"weights": np.abs(fill(rng, shape, family))}
    if sizes.get("hidden", False):
        arrays["visible"] = rng.random(shape) < 0.7
    return arrays, given(sizes, "k", "block_size", "sink", "recent")


def overlap_case(rng: np.random.Generator, _family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw critical sets: all of one size, or of any."""
    L, S, H, n = (sizes[name] for name in ("L", "S", "H", "n"))
    order = rng.permuted(np.broadcast_to(np.arange(n), (L, S, H, n)).copy(), axis=-1)
    kept = rng.integers(1, n + 1, (L, S, H, 1)) if sizes.get("uneven", False) else sizes["kept"]
    return {"masks": (order < kept).astype(np.float64)}, given(sizes, "per_head")


def ratio_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw weights of keys, none of them 0, some of them far larger than others."""
    weights = np.exp2(np.round(4.0 * fill(rng, (*sizes["lead"], sizes["T"]), family)) / 2.0)
    return {"weights": np.clip(weights, 2.0**-8, 2.0**8)}, given(sizes, "block_size", "mass")


def layer_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw hash ratios around a level of each layer, some steps far off."""
    H, S, L = (sizes[name] for name in ("H", "S", "L"))
    level = 0.3 + 0.2 * rng.permutation(L) / L
    ratios = level + 0.05 / L * np.tanh(fill(rng, (H, S, L), family))
    off = rng.random((H, S, L)) < 0.1
    return {"ratios": np.clip(np.where(off, 1.0, ratios), 0.0, 1.0)}, {"sparsity": sizes["sparsity"]}


def table(rng: np.random.Generator, family: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw overlaps: uniform, in steps of a quarter, or most of them high."""
    M = rng.random(shape)
    M = {"uniform": M, "tied": np.round(4.0 * M) / 4.0, "similar": M**0.25}[family]
    return np.triu(M, 1) + np.eye(shape[-1])


COUNTEREXAMPLE = np.array(
    [
        [1.0, 0.6, 0.05, 0.05, 0.04, 0.04],
        [0.0, 1.0, 0.5, 0.9, 0.04, 0.04],
        [0.0, 0.0, 1.0, 0.6, 0.04, 0.04],
        [0.0, 0.0, 0.0, 1.0, 0.04, 0.04],
        [0.0, 0.0, 0.0, 0.0, 1.0, 0.1],
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
    ]
)
"""Where the official search ends with the sum 4.3 though 4.5 is possible."""


def min_full_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw one table of overlaps."""
    L = sizes["L"]
    return {"similarity": table(rng, family, (L, L))}, given(sizes, "sensitive", "threshold")


def max_min_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw one table or several, or take the counterexample."""
    L, m = sizes["L"], sizes.get("m")
    M = table(rng, family, (L, L) if m is None else (m, L, L))
    if sizes.get("counterexample", False):
        M = COUNTEREXAMPLE
    return {"similarity": M}, given(sizes, "max_changes", "sensitive", "method")


TABLES = ("uniform", "tied", "similar")
FULL = Recipe("attend_full", full_case, FAMILIES)
REUSE = Recipe("attend_reuse", reuse_case, FAMILIES)
DISTORTION = Recipe("topk_distortion", distortion_case, FAMILIES)
BLOCKS = Recipe("critical_blocks", block_case, FAMILIES)
OVERLAP = Recipe("layer_overlap", overlap_case, ("none",))
RATIO = Recipe("hash_ratio", ratio_case, ("normal", "peaky"))
LAYERS = Recipe("sensitive_by_hash_ratio", layer_case, ("normal", "peaky"))
MIN_FULL = Recipe("policy_min_full", min_full_case, TABLES)
MAX_MIN = Recipe("policy_max_min", max_min_case, TABLES)

_BASE = {"B": 2, "H": 2, "G": 2, "Tq": 3, "T": 7, "d": 4}
_PREFILL = {**_BASE, "Tq": 9, "T": 9, "mask": "causal"}

FULL_SCENARIOS: dict[str, dict[str, Any]] = {
    "tokens": {**_BASE, "n_keep": 3},
    "three_heads": {**_BASE, "H": 3, "G": 3, "n_keep": 4, "sink": 2},
    "shared": {**_BASE, "n_keep": 3, "share_heads": True},
    "sparse": {**_BASE, "n_keep": 3, "refresh": "sparse"},
    "blocks": {**_BASE, "n_keep": 4, "block_size": 2},
    "prefill": {**_PREFILL, "n_keep": 4},
    "prefill_blocks": {**_PREFILL, "n_keep": 6, "block_size": 2, "sink": 2, "recent": 3, "refresh": "sparse"},
    "padded": {**_PREFILL, "mask": "padded", "n_keep": 3, "sink": 1, "recent": 1},
    "random_mask": {**_BASE, "mask": "random", "n_keep": 4, "share_heads": True, "refresh": "sparse"},
    "all_kept": {**_BASE, "n_keep": 9, "block_size": 3, "refresh": "sparse"},
    "own_scale": {**_BASE, "n_keep": 3, "scale": 0.25, "refresh": "sparse"},
    "one_key": {**_BASE, "T": 1, "n_keep": 2},
    "no_key": {**_BASE, "T": 0, "n_keep": 2},
    "no_query": {**_BASE, "Tq": 0, "n_keep": 2},
    "no_batch": {**_BASE, "B": 0, "n_keep": 2},
}
REUSE_SCENARIOS: dict[str, dict[str, Any]] = {
    "three_heads": {**_BASE, "H": 3, "G": 3, "n": 4},
    "missing": {**_BASE, "n": 4, "missing": 4},
    "one_set": {**_BASE, "n": 4, "missing": 2, "one_set": True},
    "causal": {**_PREFILL, "n": 5},
    "random_mask": {**_BASE, "mask": "random", "n": 4, "missing": 2},
    "all_keys": {**_BASE, "n": 7},
    "own_scale": {**_BASE, "n": 4, "scale": 0.25},
    "one_key": {**_BASE, "T": 1, "n": 1},
    "no_set": {**_BASE, "n": 0},
    "no_query": {**_BASE, "Tq": 0, "n": 2},
    "no_batch": {**_BASE, "B": 0, "n": 2},
}
DISTORTION_SCENARIOS: dict[str, dict[str, Any]] = {
    "one_step": {"H": 2, "G": 2, "T": 7, "d": 4, "n_keep": 3},
    "steps": {"S": 3, "H": 2, "G": 3, "T": 8, "d": 4, "n_keep": 3},
    "growing": {"S": 3, "H": 2, "G": 1, "T": 9, "d": 4, "n_keep": 4, "growing": True},
    "blocks": {"S": 2, "H": 1, "G": 2, "T": 13, "d": 3, "n_keep": 7, "block_size": 2, "sink": 2, "recent": 2},
    "own_scale": {"H": 2, "G": 2, "T": 7, "d": 4, "n_keep": 3, "scale": 0.25},
}
BLOCK_SCENARIOS: dict[str, dict[str, Any]] = {
    "tokens": {"lead": (2, 3), "T": 9, "k": 4},
    "blocks": {"lead": (4,), "T": 13, "k": 7, "block_size": 3},
    "partial_block": {"lead": (6,), "T": 9, "k": 4, "block_size": 4},
    "forced": {"lead": (4,), "T": 14, "k": 9, "block_size": 2, "sink": 3, "recent": 4},
    "sinks_only": {"lead": (4,), "T": 9, "k": 3, "sink": 2},
    "hidden": {"lead": (5,), "T": 11, "k": 6, "block_size": 2, "sink": 2, "recent": 2, "hidden": True},
    "all_kept": {"lead": (2,), "T": 5, "k": 9, "block_size": 2},
    "one_key": {"lead": (), "T": 1, "k": 1},
    "no_key": {"lead": (2,), "T": 0, "k": 2},
    "no_row": {"lead": (0,), "T": 4, "k": 2},
}
OVERLAP_SCENARIOS: dict[str, dict[str, Any]] = {
    "even": {"L": 4, "S": 3, "H": 2, "n": 9, "kept": 4},
    "per_head": {"L": 3, "S": 2, "H": 3, "n": 7, "kept": 3, "per_head": True},
    "uneven": {"L": 4, "S": 3, "H": 2, "n": 6, "uneven": True},
    "one_step": {"L": 3, "S": 1, "H": 1, "n": 5, "kept": 2, "per_head": True},
    "all_kept": {"L": 2, "S": 2, "H": 1, "n": 3, "kept": 3},
    "one_layer": {"L": 1, "S": 2, "H": 2, "n": 4, "kept": 2},
}
RATIO_SCENARIOS: dict[str, dict[str, Any]] = {
    "tokens": {"lead": (2, 3), "T": 11, "block_size": 1},
    "blocks": {"lead": (4,), "T": 14, "block_size": 3},
    "half": {"lead": (4,), "T": 12, "block_size": 2, "mass": 0.5},
    "one_key": {"lead": (2,), "T": 1, "block_size": 4},
    "no_row": {"lead": (0,), "T": 4, "block_size": 2},
}
LAYER_SCENARIOS: dict[str, dict[str, Any]] = {
    "half": {"H": 2, "S": 9, "L": 6, "sparsity": 0.5},
    "many_steps": {"H": 3, "S": 14, "L": 5, "sparsity": 0.7},
    "floating": {"H": 1, "S": 6, "L": 10, "sparsity": 0.7},
    "all": {"H": 2, "S": 4, "L": 3, "sparsity": 0.0},
    "none": {"H": 2, "S": 4, "L": 3, "sparsity": 1.0},
    "one_step": {"H": 2, "S": 1, "L": 4, "sparsity": 0.5},
}
MIN_FULL_SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {"L": 7, "threshold": 0.5},
    "low": {"L": 6, "threshold": 0.25},
    "high": {"L": 6, "threshold": 0.875},
    "sensitive": {"L": 7, "threshold": 0.25, "sensitive": [2, 5]},
    "first_and_last": {"L": 5, "threshold": 0.25, "sensitive": [0, 4]},
    "everything_fits": {"L": 5, "threshold": 0.0},
    "nothing_fits": {"L": 4, "threshold": 1.5},
    "one_layer": {"L": 1},
}
MAX_MIN_SCENARIOS: dict[str, dict[str, Any]] = {
    "two_changes": {"L": 6, "max_changes": 2},
    "three_tables": {"L": 6, "m": 3, "max_changes": 2},
    "sensitive": {"L": 6, "max_changes": 3, "sensitive": [1, 3]},
    "no_change": {"L": 5, "max_changes": 0},
    "any_change": {"L": 5, "max_changes": 9},
    "official": {"L": 6, "m": 2, "max_changes": 2, "sensitive": [4], "method": "lexicographic"},
    "counterexample": {"L": 6, "max_changes": 2, "counterexample": True},
    "counterexample_official": {"L": 6, "max_changes": 2, "counterexample": True, "method": "lexicographic"},
    "one_layer": {"L": 1, "max_changes": 1},
}


@st.composite
def _choices(draw: Any) -> dict[str, Any]:
    """Draw a budget, blocks and forced keys that go together."""
    size = draw(st.integers(1, 3))
    n_keep = draw(st.integers(size, 8))
    sink = draw(st.integers(0, min(3, n_keep)))
    return {"n_keep": n_keep, "block_size": size, "sink": sink, "recent": draw(st.integers(0, min(3, n_keep - sink)))}


_shapes = st.fixed_dictionaries(
    {
        "B": st.integers(0, 2),
        "H": st.integers(1, 2),
        "G": st.integers(1, 3),
        "Tq": st.integers(0, 3),
        "T": st.integers(0, 9),
        "d": st.integers(1, 5),
    },
    optional={"mask": st.sampled_from(["causal", "padded", "random"]), "scale": st.just(0.5)},
)
full_sizes = st.builds(
    lambda shape, choice, extra: shape | choice | extra,
    _shapes,
    _choices(),
    st.sampled_from([{}, {"share_heads": True}, {"refresh": "sparse"}, {"share_heads": True, "refresh": "sparse"}]),
)
reuse_sizes = st.builds(
    lambda shape, n, missing, one_set: {**shape, "n": min(n, shape["T"]), "missing": missing, "one_set": one_set},
    _shapes,
    st.integers(0, 5),
    st.integers(0, 2),
    st.booleans(),
)
distortion_sizes = st.builds(
    lambda shape, choice: shape | choice,
    st.fixed_dictionaries(
        {"H": st.integers(1, 2), "G": st.integers(1, 2), "T": st.integers(3, 9), "d": st.integers(1, 4)},
        optional={"S": st.integers(1, 3), "scale": st.just(0.5)},
    ),
    _choices(),
)
block_sizes = st.builds(
    lambda choice, T, rows, hidden: (
        {name: value for name, value in choice.items() if name != "n_keep"}
        | {"k": choice["n_keep"], "T": T, "lead": (rows,), "hidden": hidden}
    ),
    _choices(),
    st.integers(0, 12),
    st.integers(0, 3),
    st.booleans(),
)
overlap_sizes = st.fixed_dictionaries(
    {"L": st.integers(1, 4), "S": st.integers(1, 3), "H": st.integers(1, 3), "n": st.integers(1, 6)},
    optional={"per_head": st.booleans()},
).map(lambda sizes: {**sizes, "uneven": True})
ratio_sizes = st.fixed_dictionaries(
    {"lead": st.tuples(st.integers(0, 3)), "T": st.integers(1, 12), "block_size": st.integers(1, 4)},
    optional={"mass": st.sampled_from([0.0, 0.5, 0.75])},
)
layer_sizes = st.fixed_dictionaries(
    {
        "H": st.integers(1, 3),
        "S": st.integers(1, 9),
        "L": st.integers(1, 6),
        "sparsity": st.sampled_from([0.0, 0.5, 0.7, 0.9, 1.0]),
    }
)
_few = {"L": st.integers(1, 6)}
min_full_sizes = st.fixed_dictionaries(
    {**_few, "threshold": st.sampled_from([-0.5, 0.25, 0.5, 0.75, 1.5])}, optional={"sensitive": st.just([0])}
)
max_min_sizes = st.fixed_dictionaries(
    {**_few, "max_changes": st.integers(0, 6)},
    optional={
        "m": st.integers(1, 3),
        "sensitive": st.just([0]),
        "method": st.sampled_from(["exact", "lexicographic"]),
    },
)
