"""How inputs of attention calibration are drawn: causal maps whose rows sum to 1 in every dtype, and sinks in them.

Weights are whole numbers of 1/256, which even bfloat16 holds exactly: rounded to any dtype they are still attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, given

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ACT",
    "ACT_SCENARIOS",
    "DETECT",
    "DETECT_SCENARIOS",
    "FAMILIES",
    "FEW",
    "MAP",
    "MAP_SCENARIOS",
    "PROTECTED",
    "PROTECTED_SCENARIOS",
    "RECEIVED",
    "RECEIVED_SCENARIOS",
    "ROW",
    "ROW_SCENARIOS",
    "act_sizes",
    "detect_sizes",
    "map_sizes",
    "protected_sizes",
    "received_sizes",
    "row_sizes",
]

FAMILIES = ("normal", "peaky", "sunk", "late")
"""Scores: normal; three times normal, with many weights at zero; with sinks at 0 and beyond; with sinks beyond only."""

FEW = FAMILIES[:2]
"""Where sinks are given, or do not matter."""

QUANTA = 256

ACT_SCENARIOS: dict[str, dict[str, Any]] = {
    "paper": {"B": 2, "H": 3, "T": 12, "alpha": 2.0},
    "default": {"B": 1, "H": 2, "T": 13},
    "code": {"B": 2, "H": 3, "T": 11, "threshold": 0.3},
    "some_heads": {"B": 1, "H": 4, "T": 9, "threshold": 0.2, "heads": [1, 2], "beta": 0.25},
    "no_head": {"B": 1, "H": 2, "T": 6, "threshold": 0.1, "heads": []},
    "first_head": {"B": 2, "H": 3, "T": 10, "alpha": 1.5, "heads": [0], "beta": 0.0},
    "token0": {"B": 2, "H": 2, "T": 12, "threshold": 0.2, "protect": "token0"},
    "as_it_was": {"B": 1, "H": 2, "T": 8, "threshold": 0.1, "beta": 1.0},
    "causal": {"B": 2, "H": 2, "T": 12, "alpha": 2.0, "causal": True},
    "causal_threshold": {"B": 1, "H": 2, "T": 9, "threshold": 0.3, "causal": True, "beta": 0.5},
    "causal_token0": {"B": 1, "H": 2, "T": 8, "alpha": 1.5, "causal": True, "protect": "token0"},
    "every_column": {"B": 1, "H": 2, "T": 6, "threshold": -1.0},
    "no_column": {"B": 1, "H": 2, "T": 6, "threshold": 1.0},
    "padded": {"B": 2, "H": 2, "T": 9, "threshold": 0.2, "pad": 3},
    "two_tokens": {"B": 2, "H": 3, "T": 2, "threshold": 0.1},
    "one_token": {"B": 1, "H": 1, "T": 1, "threshold": 0.1},
    "no_token": {"B": 1, "H": 2, "T": 0},
    "no_batch": {"B": 0, "H": 2, "T": 3},
}
RECEIVED_SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {"B": 2, "H": 2, "T": 12},
    "causal": {"B": 1, "H": 2, "T": 11, "causal": True},
    "padded": {"B": 1, "H": 2, "T": 8, "pad": 2},
    "two_tokens": {"B": 1, "H": 2, "T": 2},
    "one_token": {"B": 2, "H": 1, "T": 1},
    "no_token": {"B": 1, "H": 1, "T": 0, "causal": True},
    "no_batch": {"B": 0, "H": 2, "T": 3},
}
DETECT_SCENARIOS: dict[str, dict[str, Any]] = {
    "paper": {"B": 2, "H": 3, "T": 12, "alpha": 2.0},
    "three": {"B": 2, "H": 2, "T": 14, "alpha": 3.0},
    "code": {"B": 2, "H": 2, "T": 10, "threshold": 0.2},
    "attended_at_all": {"B": 2, "H": 2, "T": 10, "threshold": 0.0, "unseen": 2},
    "every_column": {"B": 1, "H": 2, "T": 5, "threshold": -1.0},
    "no_column": {"B": 1, "H": 2, "T": 5, "threshold": 1.0},
    "causal": {"B": 2, "H": 2, "T": 12, "alpha": 2.0, "causal": True},
    "causal_threshold": {"B": 1, "H": 2, "T": 9, "threshold": 0.3, "causal": True},
    "causal_every_column": {"B": 1, "H": 1, "T": 5, "threshold": -1.0, "causal": True},
    "one_token": {"B": 2, "H": 1, "T": 1, "alpha": 0.5},
    "no_token": {"B": 1, "H": 1, "T": 0, "alpha": 5.0},
    "no_batch": {"B": 0, "H": 2, "T": 3, "threshold": 0.1},
}
PROTECTED_SCENARIOS: dict[str, dict[str, Any]] = {
    "first_detected": {"B": 5, "T": 9},
    "token0": {"B": 5, "T": 9, "protect": "token0"},
    "late": {"B": 5, "T": 9, "first": 3},
    "late_token0": {"B": 5, "T": 9, "first": 3, "protect": "token0"},
    "one_column": {"B": 2, "T": 1},
    "no_column": {"B": 2, "T": 0},
    "no_batch": {"B": 0, "T": 4},
}
MAP_SCENARIOS: dict[str, dict[str, Any]] = {
    "default": {"B": 2, "H": 2, "T": 12},
    "quarter": {"B": 1, "H": 3, "T": 9, "beta": 0.25},
    "nothing_left": {"B": 2, "H": 2, "T": 8, "beta": 0.0},
    "as_it_was": {"B": 1, "H": 2, "T": 8, "beta": 1.0},
    "shared_sinks": {"B": 2, "H": 2, "T": 8, "shared": True},
    "first_column_too": {"B": 2, "H": 2, "T": 9, "first": True, "beta": 0.25},
    "every_column": {"B": 1, "H": 2, "T": 6, "rate": 1.0, "first": True},
    "no_column": {"B": 1, "H": 2, "T": 6, "rate": 0.0},
    "padded": {"B": 1, "H": 2, "T": 9, "pad": 3},
    "two_tokens": {"B": 2, "H": 3, "T": 2, "rate": 0.7},
    "one_token": {"B": 1, "H": 1, "T": 1},
    "no_token": {"B": 1, "H": 1, "T": 0},
    "no_batch": {"B": 0, "H": 2, "T": 3},
}
ROW_SCENARIOS: dict[str, dict[str, Any]] = {
    "default": {"B": 4, "T": 12},
    "nothing_left": {"B": 3, "T": 7, "beta": 0.0},
    "three_quarters": {"B": 3, "T": 9, "beta": 0.75},
    "shared_sinks": {"B": 4, "T": 8, "shared": True},
    "nothing_but_sinks": {"B": 3, "T": 6, "rate": 1.0, "first": True},
    "one_key": {"B": 2, "T": 1},
    "no_query": {"B": 0, "T": 4},
}


def distributions(scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Return the softmax of scores (..., S) in whole numbers of 1/QUANTA, over what is visible (..., S).

    What the floors leave over goes to the largest remainders, as seats in a parliament do.
    """
    e = np.where(visible, np.exp(np.where(visible, scores, 0.0)), 0.0)
    total = e.sum(-1, keepdims=True)
    seats = QUANTA * e / np.where(total > 0, total, 1.0)
    floors = np.floor(seats)
    left = np.where(total[..., 0] > 0, QUANTA - floors.sum(-1), 0.0)[..., None]
    rank = np.argsort(np.argsort(-np.where(visible, seats - floors, -1.0), axis=-1, kind="stable"), axis=-1)
    return np.asarray((floors + (rank < left)) / QUANTA)


def scores(rng: np.random.Generator, family: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw scores (..., S), with favoured columns where the family has them."""
    drawn = rng.standard_normal(shape) * (3.0 if family == "peaky" else 1.0)
    if family in ("sunk", "late") and shape[-1]:
        favoured = rng.random((*shape[:-2], 1, shape[-1])) < 0.25
        favoured[..., 0] = family == "sunk"
        drawn = drawn + 3.0 * favoured - 3.0 * (family == "late") * (np.arange(shape[-1]) == 0)
    return drawn


def attention(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> np.ndarray:
    """Draw causal maps; ``pad`` tokens in front have no keys and are none, the last ``unseen`` see but are not seen."""
    T, pad, unseen = sizes["T"], sizes.get("pad", 0), sizes.get("unseen", 0)
    places = np.arange(T)
    seen = (places >= pad) & (places < T - unseen)
    visible = np.tri(T, dtype=bool) & seen & (places >= pad)[:, None]
    shape = (sizes["B"], sizes["H"], T, T)
    return distributions(scores(rng, family, shape), np.broadcast_to(visible, shape))


def columns(rng: np.random.Generator, shape: tuple[int, ...], sizes: Mapping[str, Any]) -> np.ndarray:
    """Draw which columns are calibrated."""
    sinks: np.ndarray = rng.random(shape) < sizes.get("rate", 0.4)
    sinks[..., :1] &= bool(sizes.get("first", False))
    return sinks


def act_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw maps, for any of the entries that take maps only."""
    names = ("heads", "beta", "threshold", "alpha", "protect", "causal")
    return {"weights": attention(rng, family, sizes)}, given(sizes, *names)


def protected_case(
    rng: np.random.Generator, _family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw detected columns, from column ``first`` on."""
    found = rng.random((sizes["B"], sizes["T"])) < 0.5
    first = sizes.get("first")
    if first is not None:
        found[:, :first] = False
    elif found.size:
        found[0, 0] = True
    return {"is_sink": found}, given(sizes, "protect")


def map_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw maps, and the sinks of each or of all."""
    lead = () if sizes.get("shared", False) else (sizes["B"], sizes["H"])
    sinks = columns(rng, (*lead, sizes["T"]), sizes)
    return {"weights": attention(rng, family, sizes), "sinks": sinks}, given(sizes, "beta")


def row_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw single queries, and the sinks of each or of all."""
    shape = (sizes["B"], sizes["T"])
    row = distributions(scores(rng, family, (1, *shape))[0], np.ones(shape, dtype=bool))
    lead = () if sizes.get("shared", False) else shape[:1]
    return {"row": row, "sinks": columns(rng, (*lead, sizes["T"]), sizes)}, given(sizes, "beta")


_BETAS = st.sampled_from([0.0, 0.25, 0.4, 1.0])
_MAPS = {"B": st.integers(0, 2), "H": st.integers(1, 3), "T": st.integers(0, 12)}
_LIMITS = st.sampled_from([{"alpha": 1.5}, {"alpha": 3.0}, {"threshold": 0.1}, {"threshold": 0.3}])


def _drawn(*, limited: bool, **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Draw sizes and options, with a threshold if one has to be given."""
    sizes = st.fixed_dictionaries(_MAPS, optional={**optional, "pad": st.integers(0, 2)})
    return st.builds(lambda s, limit: {**s, **limit}, sizes, _LIMITS if limited else st.just({}))


@st.composite
def act_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes and options of the whole: some or all heads, either threshold, either form."""
    protect, flag = st.sampled_from(["first_detected", "token0"]), st.booleans()
    sizes: dict[str, Any] = draw(_drawn(limited=True, beta=_BETAS, protect=protect, causal=flag))
    if draw(st.booleans()):
        sizes["heads"] = draw(st.lists(st.integers(0, sizes["H"] - 1), max_size=2, unique=True))
    return sizes


received_sizes = _drawn(limited=False, causal=st.booleans())
detect_sizes = _drawn(limited=True, causal=st.booleans(), unseen=st.integers(0, 2))
map_sizes = _drawn(limited=False, beta=_BETAS, shared=st.booleans(), first=st.booleans())
protected_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 4), "T": st.integers(0, 10)},
    optional={"protect": st.sampled_from(["first_detected", "token0"]), "first": st.integers(0, 3)},
)
row_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 4), "T": st.integers(1, 12)},
    optional={"beta": _BETAS, "shared": st.booleans(), "first": st.booleans()},
)

ACT = Recipe("act", act_case, FAMILIES)
RECEIVED = Recipe("received_attention", act_case, FEW)
DETECT = Recipe("detect_sinks", act_case, FAMILIES)
PROTECTED = Recipe("calibrated_sinks", protected_case, FAMILIES[:1])
MAP = Recipe("calibrate_attention", map_case, FEW)
ROW = Recipe("calibrate_row", row_case, FEW)
