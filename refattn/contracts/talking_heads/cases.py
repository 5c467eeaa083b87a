"""How inputs about channels are drawn: weights with silent heads, heads of rank one and planted channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BASIS",
    "COMPONENTS",
    "COMPOSITION",
    "INHIBITION",
    "OUTLIERS",
    "REMOVAL",
    "SCALING",
    "basis_sizes",
    "inhibition_sizes",
    "outlier_sizes",
    "removal_sizes",
    "scaling_sizes",
    "weight_sizes",
]

Drawn = tuple[dict[str, Any], dict[str, Any]]

WEIGHT_SCENARIOS: dict[str, dict[str, Any]] = {
    "queries": {"L": 2, "H": 2, "d": 5, "e": 3},
    "keys": {"L": 2, "H": 2, "d": 5, "e": 2, "mode": "K"},
    "values": {"L": 2, "H": 2, "d": 5, "e": 3, "mode": "V"},
    "whole_width": {"L": 2, "H": 1, "d": 3, "e": 3, "mode": "V"},
    "three_layers": {"L": 3, "H": 1, "d": 5, "e": 2},
    "one_dimension": {"L": 2, "H": 2, "d": 4, "e": 1, "mode": "K"},
    "shared_keys": {"L": 2, "H": 4, "G": 2, "d": 4, "e": 2, "mode": "K"},
    "shared_values": {"L": 2, "H": 4, "G": 2, "d": 4, "e": 1, "mode": "V"},
    "planted": {"L": 2, "H": 2, "d": 7, "e": 2, "planted": True},
    "silent": {"L": 3, "H": 2, "d": 4, "e": 2, "silent": True},
    "one_channel": {"L": 2, "H": 1, "d": 1, "e": 1},
    "one_layer": {"L": 1, "H": 2, "d": 4, "e": 2},
}


def _weights(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw weights; the silent ones have a head that writes nothing and one that reads nothing."""
    L, H, d, e = (sizes[name] for name in ("L", "H", "d", "e"))
    G = sizes.get("G", H)
    W_Q, W_O = fill(rng, (L, H, d, e), family), fill(rng, (L, H, e, d), family)
    W_K, W_V = fill(rng, (L, G, d, e), family), fill(rng, (L, G, d, e), family)
    if sizes.get("planted"):
        W_Q[1, 0, :, 0] = 4.0 * W_O[0, 1, 1]
    if sizes.get("silent"):
        W_O[0, 0] = W_O[1, 1] = W_Q[2, 0] = 0.0
    return {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O}, given(sizes, "mode")


def _apart(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw weights whose components have sizes 1, 2, 3, …: those of nearly equal size would be lost in rounding."""
    arrays, options = _weights(rng, family, sizes)
    W_V, W_O = arrays["W_V"], arrays["W_O"]
    e = W_V.shape[-1]
    mixed = np.linalg.qr(rng.standard_normal((e, e)))[0]
    silent = np.abs(W_O).max(axis=(-2, -1), keepdims=True) == 0
    rows = np.swapaxes(np.linalg.qr(rng.standard_normal(np.swapaxes(W_O, -1, -2).shape))[0], -1, -2)
    arrays["W_V"] = (np.linalg.qr(W_V)[0] * np.arange(1.0, e + 1)) @ mixed
    arrays["W_O"] = np.where(silent, 0.0, rows)
    return arrays, options


@st.composite
def weight_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw sizes and a mode; heads are at most as wide as the model."""
    d = draw(st.integers(1, 5))
    H, G = draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (4, 2)]))
    sizes = {"L": draw(st.sampled_from([2, 2, 1])), "H": H, "G": G, "d": d, "e": draw(st.integers(1, min(d, 3)))}
    return sizes | {"mode": draw(st.sampled_from("QKV"))}


BASIS_SCENARIOS: dict[str, dict[str, Any]] = {
    "three": {"k": 3, "d": 6},
    "complete": {"k": 4, "d": 4},
    "one": {"k": 1, "d": 5},
    "leaning": {"k": 2, "d": 5, "shared": 1.5},
    "one_channel": {"k": 1, "d": 1},
}


def _directions(rng: np.random.Generator, family: str, k: int, d: int, shared: float = 0.0) -> np.ndarray:
    """Draw rows that are far from dependent: each is longest along an axis of its own."""
    rows = fill(rng, (k, d), family)
    places = rng.permutation(d)[:k]
    own = rows[np.arange(k), places]
    rows[np.arange(k), places] = own + np.copysign(1.5 * np.abs(rows).max(initial=0.5), own)
    return np.asarray(rows + shared * rows[:1] if shared else rows)


def _basis(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    return {"directions": _directions(rng, family, sizes["k"], sizes["d"], sizes.get("shared", 0.0))}, {}


@st.composite
def basis_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw at most as many directions as there are dimensions."""
    d = draw(st.integers(1, 6))
    return {"d": d, "k": draw(st.integers(1, d))}


REMOVAL_SCENARIOS: dict[str, dict[str, Any]] = {
    "two": {"e": 3, "d": 6, "k": 2},
    "leaning": {"e": 3, "d": 5, "k": 2, "shared": 1.5},
    "nearly_all": {"e": 2, "d": 4, "k": 3},
    "one": {"e": 4, "d": 4, "k": 1},
    "none": {"e": 2, "d": 4, "k": 0},
    "one_row": {"e": 1, "d": 3, "k": 2},
}


def _removal(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    directions = _directions(rng, family, sizes["k"], sizes["d"], sizes.get("shared", 0.0))
    return {"W_O": fill(rng, (sizes["e"], sizes["d"]), family), "directions": directions}, {}


@st.composite
def removal_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw weights and up to as many directions as dimensions."""
    d = draw(st.integers(1, 5))
    return {"e": draw(st.integers(1, 3)), "d": d, "k": draw(st.integers(0, d))}


SCALING_SCENARIOS: dict[str, dict[str, Any]] = {
    "two": {"e": 3, "d": 6, "k": 2},
    "four": {"e": 2, "d": 4, "k": 4},
    "one": {"e": 3, "d": 5, "k": 1},
    "removed": {"e": 2, "d": 8, "k": 3, "factor": 0.0},
    "turned": {"e": 2, "d": 4, "k": 2, "factor": -1.0},
    "none": {"e": 2, "d": 4, "k": 0},
}
# rows that are orthonormal in every dtype
_HALVES = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2.0


def _scaling(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw factors in quarters, and directions whose entries are 0 and ±1/2."""
    e, d, k = (sizes[name] for name in ("e", "d", "k"))
    directions = np.zeros((k, d))
    directions[:, rng.permutation(d)[:4]] = _HALVES[rng.permutation(4)[:k]] * rng.choice([-1.0, 1.0], (k, 1))
    factors = np.full(k, sizes["factor"]) if "factor" in sizes else rng.integers(-8, 9, k) / 4.0
    return {"W_O": fill(rng, (e, d), family), "directions": directions, "factors": factors}, {}


scaling_sizes = st.fixed_dictionaries({"e": st.integers(1, 3), "d": st.integers(4, 6), "k": st.integers(0, 4)})

OUTLIER_SCENARIOS: dict[str, dict[str, Any]] = {
    "odd": {"shape": [9]},
    "even": {"shape": [3, 4]},
    "components": {"shape": [2, 2, 5], "z": 3.0},
    "strict": {"shape": [3, 5], "z": 8.0},
    "loose": {"shape": [11], "z": 1.0},
    "mostly_equal": {"shape": [4, 3], "equal": True},
    "all_equal": {"shape": [5], "equal": True, "loud": False},
    "one": {"shape": [1], "equal": True},
    "none": {"shape": [0, 3]},
}


def _outliers(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw scores with one that is loud and one that is as far below; most may be equal."""
    size = int(np.prod(sizes["shape"]))
    scores = np.zeros(size) if sizes.get("equal") else fill(rng, (size,), family)
    if size > 4 and sizes.get("loud", True):
        loud = rng.permutation(size)[:3]
        reach = 6.0 * np.ptp(scores) + 1.0
        scores[loud] += np.array([1.0, -1.5, 0.4]) * reach
    return {"scores": scores.reshape(sizes["shape"])}, given(sizes, "z")


outlier_sizes = st.fixed_dictionaries(
    {"shape": st.lists(st.integers(1, 4), min_size=1, max_size=3)},
    optional={"z": st.sampled_from([1.0, 2.0, 6.0]), "equal": st.booleans()},
)

INHIBITION_SCENARIOS: dict[str, dict[str, Any]] = {
    "prompts": {"B": 3, "T": 6},
    "one_prompt": {"B": 1, "T": 5},
    "from_the_end": {"B": 2, "T": 4, "backwards": True},
    "one_token": {"B": 2, "T": 1},
}


def _inhibition(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw causal attention, and two keys for each prompt that its last token sees."""
    B, T = sizes["B"], sizes["T"]
    weights = np.exp(fill(rng, (B, T, T), family)) * np.tri(T)
    places = np.stack([rng.permutation(T)[:2] if T > 1 else np.zeros(2, int) for _ in range(B)])
    end = np.full(B, T - 1)
    shift = T if sizes.get("backwards") else 0
    return {
        "pattern": weights / weights.sum(axis=-1, keepdims=True),
        "end": end - shift,
        "io": places[:, 0] - shift,
        "s": places[:, 1] - shift,
    }, {}


inhibition_sizes = st.fixed_dictionaries({"B": st.integers(1, 3), "T": st.integers(1, 5)})

COMPOSITION = Recipe("composition_scores", _weights, ("normal", "uniform"))
COMPONENTS = Recipe("component_scores", _apart, ("normal",))
BASIS = Recipe("channel_basis", _basis, ("normal", "peaky"))
REMOVAL = Recipe("remove_components", _removal, ("normal", "peaky"))
SCALING = Recipe("scale_components", _scaling, ("normal", "uniform"))
OUTLIERS = Recipe("robust_outliers", _outliers, ("normal", "uniform"))
INHIBITION = Recipe("inhibition_score", _inhibition, ("normal",))
