"""How inputs for sinks are drawn: hidden states with planted sinks, attention patterns whose rows sum to 1 exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ALIGNMENT",
    "ALIGNMENT_SCENARIOS",
    "COSINES",
    "COSINE_SCENARIOS",
    "ENTROPY",
    "ENTROPY_SCENARIOS",
    "FAMILIES",
    "LIVES",
    "LIVES_SCENARIOS",
    "MEMBERSHIP",
    "MEMBERSHIP_SCENARIOS",
    "SCORE",
    "SCORE_SCENARIOS",
    "STEERING",
    "STEERING_SCENARIOS",
    "entropy_sizes",
    "lives_sizes",
    "membership_sizes",
    "row_sizes",
    "score_sizes",
    "steering_sizes",
]

FAMILIES = ("normal", "tied")
PARTS = 64  # attention weights are multiples of 1/64: every dtype holds them, and their sums, exactly
BELOW = 0.75  # cosine of a vector that is not quite a sink

MEMBERSHIP_SCENARIOS: dict[str, dict[str, Any]] = {
    "one_candidate": {"N": 9, "T": 8, "d": 8},
    "three_candidates": {"N": 9, "T": 8, "d": 8, "bos_positions": [0, 1, 2], "primary": 2, "spike": 0},
    "candidates_apart": {"N": 8, "T": 9, "d": 6, "bos_positions": [1, 4], "primary": 4},
    "unclipped": {"N": 7, "T": 7, "d": 8, "clip": False},
    "unclipped_candidates": {"N": 7, "T": 7, "d": 8, "bos_positions": [0, 1], "primary": 1, "clip": False},
    "loose": {"N": 7, "T": 9, "d": 8, "threshold": 0.5},
    "fell_before": {"N": 9, "T": 6, "d": 6, "start": 3, "fell": True},
    "into_the_last_layer": {"N": 6, "T": 6, "d": 6, "start": 5, "end": 6},
    "three_layers": {"N": 3, "T": 6, "d": 5},
    "zero_vectors": {"N": 6, "T": 6, "d": 5, "zero": True},
    "one_channel": {"N": 5, "T": 4, "d": 1},
    "one_token": {"N": 6, "T": 1, "d": 4},
    "nothing_after": {"N": 6, "T": 4, "d": 4, "bos_positions": [3], "primary": 3},
    "one_layer": {"N": 1, "T": 5, "d": 4, "clip": False, "start": 0, "end": 1},
}
COSINE_SCENARIOS: dict[str, dict[str, Any]] = {
    "first": {"N": 3, "T": 5, "d": 8, "start": 1},
    "inside": {"N": 2, "T": 6, "d": 7, "primary": 4, "start": 0, "end": 2},
    "zero_vectors": {"N": 3, "T": 4, "d": 5, "zero": True},
    "one_channel": {"N": 3, "T": 3, "d": 1},
    "one_token": {"N": 3, "T": 1, "d": 4},
    "no_layer": {"N": 0, "T": 3, "d": 4},
}
LIVES_SCENARIOS: dict[str, dict[str, Any]] = {
    "deep": {"N": 24, "T": 12},
    "shallow": {"N": 9, "T": 12, "bos_margin": 2, "min_lifetime": 3},
    "no_margin": {"N": 6, "T": 12, "bos_margin": 0, "min_lifetime": 1},
    "ranges_overlap": {"N": 8, "T": 12, "bos_margin": 6, "min_lifetime": 4},
    "all_last": {"N": 4, "T": 8, "bos_margin": 4, "min_lifetime": 2},
    "one_layer": {"N": 1, "T": 4, "bos_margin": 0},
    "no_token": {"N": 5, "T": 0},
}
SCORE_SCENARIOS: dict[str, dict[str, Any]] = {
    "model": {"lead": [2, 3], "T": 7},
    "one_head": {"lead": [1], "T": 12},
    "one_token": {"lead": [2, 1], "T": 1},
    "two_tokens": {"lead": [1, 2], "T": 2},
    "no_token": {"lead": [2], "T": 0},
    "no_head": {"lead": [2, 0], "T": 4},
}
ALIGNMENT_SCENARIOS: dict[str, dict[str, Any]] = {
    "some": {"lead": [], "T": 8, "d": 6, "K": 4},
    "layers": {"lead": [3], "T": 6, "d": 5, "K": 3, "primary": 2},
    "zero_vectors": {"lead": [2], "T": 5, "d": 4, "K": 5, "zero": True},
    "one_channel": {"lead": [], "T": 5, "d": 1, "K": 3},
    "none": {"lead": [2], "T": 4, "d": 3, "K": 0},
}
STEERING_SCENARIOS: dict[str, dict[str, Any]] = {
    "longer": {"lead": [3], "T": 9, "d": 6, "norm": 100.0, "cos_threshold": 0.9},
    "gone": {"lead": [1], "T": 8, "d": 6, "norm": 0.0},
    "unprotected": {"lead": [], "T": 6, "d": 6, "norm": 5.0, "protect": []},
    "protected_beyond": {"lead": [2], "T": 8, "d": 5, "norm": 5.0, "protect": [1, 6, 9], "cos_threshold": 0.9},
    "loose": {"lead": [2], "T": 9, "d": 6, "norm": 20.0, "cos_threshold": 0.5},
    "zero_vectors": {"lead": [1], "T": 6, "d": 4, "norm": 5.0, "zero": True},
    "short": {"lead": [2], "T": 2, "d": 4, "norm": 5.0},
    "no_token": {"lead": [2], "T": 0, "d": 4, "norm": 5.0},
}
ENTROPY_SCENARIOS: dict[str, dict[str, Any]] = {
    "wide": {"lead": [3], "T": 4, "d": 9},
    "tall": {"lead": [2], "T": 10, "d": 5},
    "square": {"lead": [], "T": 5, "d": 5},
    "second_order": {"lead": [2], "T": 6, "d": 4, "alpha": 2.0},
    "half_order": {"lead": [2], "T": 3, "d": 8, "alpha": 0.5},
    "none": {"lead": [2], "T": 0, "d": 3},
}


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(norm > 0, norm, 1.0))


def _tilted(rng: np.random.Generator, u: np.ndarray) -> np.ndarray:
    """Return unit vectors at the cosine `BELOW` to the unit vectors u; along u where there is no other direction."""
    v = rng.standard_normal(u.shape)
    v = _unit(v - np.sum(u * v, axis=-1, keepdims=True) * u) if u.shape[-1] > 1 else u
    return np.asarray(BELOW * u + np.sqrt(1 - BELOW**2) * v)


def _lengths(sizes: Mapping[str, Any]) -> np.ndarray:
    """Return how far the primary sink stands out on each layer: it rises, rises a little more, and falls by both."""
    n_layers = sizes["N"]
    start, end = sizes.get("start", max(1, n_layers // 4)), sizes.get("end", n_layers - 1)
    lengths = np.zeros(n_layers)
    lengths[start:end] = 40.0
    lengths[(start + end) // 2 + 1 : end] = 60.0
    if sizes.get("fell"):
        lengths[0] = 90.0
    return lengths


def hidden_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw hidden states with a primary sink, sinks of either sign with gaps in their lives, and vectors that miss."""
    n_layers, length, d = shape = (sizes["N"], sizes["T"], sizes["d"])
    b = sizes.get("primary", 0)
    hidden = fill(rng, shape, family)
    scale = float(np.sqrt(np.mean(hidden**2))) if hidden.size else 1.0
    u = _unit(rng.standard_normal((n_layers, d)))
    for s in range(length):
        if s == b:
            hidden[:, s] += scale * _lengths(sizes)[:, None] * u
            continue
        direction = _tilted(rng, u) if rng.random() < 0.25 else u
        alive = rng.random((n_layers, 1)) < rng.choice([0.0, 0.6, 1.0], p=[0.2, 0.5, 0.3])
        reach = rng.choice([-1.0, 1.0]) * scale * rng.uniform(25.0, 35.0)
        hidden[:, s] += alive * reach * direction
    if "spike" in sizes:
        hidden[-1, sizes["spike"]] = scale * 150.0 * u[-1]
    if sizes.get("zero"):
        hidden[:, -1] = 0.0
    return {"hidden": hidden}, {}


def membership_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw hidden states and the options of a search."""
    arrays, _ = hidden_case(rng, family, sizes)
    return arrays, given(sizes, "bos_positions", "threshold", "clip")


def cosine_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw hidden states and name the primary sink."""
    arrays, _ = hidden_case(rng, family, sizes)
    return arrays, {"primary": sizes.get("primary", 0)}


def lives_case(
    rng: np.random.Generator, _family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw lives of every length, half of them with gaps."""
    n_layers, length = sizes["N"], sizes["T"]
    layer = np.arange(n_layers)[:, None]
    lifetime = rng.permutation(np.arange(length)) % (n_layers + 1)
    start = rng.integers(0, n_layers - lifetime + 1)
    members = (start <= layer) & (layer < start + lifetime)
    gaps = (rng.random(members.shape) < 0.3) & (rng.random(length) < 0.5)
    return {"members": members & ~gaps}, given(sizes, "bos_margin", "min_lifetime")


def score_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw causal patterns: each row shares out 64 parts, evenly or with favourites."""
    length = sizes["T"]
    pattern = np.zeros((*sizes["lead"], length, length))
    for index in np.ndindex(*sizes["lead"], length):
        seen = index[-1] + 1
        logits = fill(rng, (1, seen), family)[0]
        weights = np.exp(logits - logits.max())
        pattern[index][:seen] = rng.multinomial(PARTS, weights / weights.sum()) / PARTS
    return {"pattern": pattern}, {}


def _aligned_rows(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Draw vectors of which some point along a direction, some against it, some near it, and the direction."""
    shape = (*sizes["lead"], sizes["T"], sizes["d"])
    rows = fill(rng, shape, family)
    u = _unit(rng.standard_normal(shape[-1]))
    kind = rng.integers(4, size=(*shape[:-1], 1))  # 0: as it is
    near = _tilted(rng, np.broadcast_to(u, shape))
    for chosen, direction in ((1, u), (2, -u), (3, near)):
        rows = rows + (kind == chosen) * 40.0 * direction
    if sizes.get("zero"):
        rows[..., -1, :] = 0.0
    return rows, u


def alignment_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw what an MLP writes, and where the sinks stand."""
    rows, _ = _aligned_rows(rng, family, sizes)
    positions = rng.permutation(sizes["T"])[: sizes["K"]]
    return {"mlp_out": rows, "positions": positions}, {"primary": sizes.get("primary", 0)}


def steering_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw what an MLP writes, and what it writes at the primary sink."""
    rows, u = _aligned_rows(rng, family, sizes)
    return {"mlp_out": rows, "direction": 3.0 * u}, given(sizes, "norm", "cos_threshold", "protect")


def entropy_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw vectors that spread over all directions they can."""
    return {"x": fill(rng, (*sizes["lead"], sizes["T"], sizes["d"]), family)}, given(sizes, "alpha")


@st.composite
def membership_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes and options of a search."""
    candidates = draw(st.sampled_from([[0], [0, 1], [1], [0, 1, 2], [0, 2]]))
    sizes: dict[str, Any] = {
        "N": draw(st.integers(3, 9)),
        "T": draw(st.integers(1, 8)) + max(candidates),
        "d": draw(st.integers(1, 8)),
        "bos_positions": candidates,
        "primary": draw(st.sampled_from(candidates)),
        "threshold": draw(st.sampled_from([0.5, 0.9])),
        "clip": draw(st.booleans()),
    }
    return sizes


lives_sizes = st.fixed_dictionaries(
    {"N": st.integers(1, 12), "T": st.integers(0, 12)},
    optional={"bos_margin": st.integers(0, 5), "min_lifetime": st.integers(0, 5)},
)
score_sizes = st.fixed_dictionaries({"lead": st.sampled_from([[], [2], [2, 2]]), "T": st.integers(1, 9)})
_rows = {"lead": st.sampled_from([[], [2]]), "T": st.integers(1, 8), "d": st.integers(1, 6)}
row_sizes = st.fixed_dictionaries({**_rows, "K": st.integers(0, 8)})
steering_sizes = st.fixed_dictionaries(
    {**_rows, "norm": st.sampled_from([0.0, 5.0, 100.0])},
    optional={"cos_threshold": st.sampled_from([0.5, 0.9]), "protect": st.sampled_from([[], [0], [1, 5]])},
)
entropy_sizes = st.fixed_dictionaries(_rows, optional={"alpha": st.sampled_from([1.0, 2.0, 3.0])})

MEMBERSHIP = Recipe("sink_membership", membership_case, FAMILIES)
COSINES = Recipe("primary_cosines", cosine_case, FAMILIES)
LIVES = Recipe("sink_lives", lives_case, ("none",))
SCORE = Recipe("sink_score", score_case, ("normal", "peaky"))
ALIGNMENT = Recipe("mlp_alignment", alignment_case, FAMILIES)
STEERING = Recipe("rescale_sinks", steering_case, FAMILIES)
ENTROPY = Recipe("matrix_entropy", entropy_case, ("normal", "peaky"))
