"""How inputs are drawn: distributions that every dtype holds exactly, masks, and maps with rows that do not vary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ACCUMULATE",
    "ACCUMULATE_SCENARIOS",
    "AGGREGATE",
    "AGGREGATE_SCENARIOS",
    "COMPARE_SCENARIOS",
    "DELETE",
    "DELETE_SCENARIOS",
    "DIFFERENCE",
    "DIVERGENCE",
    "MAPS",
    "MIN_MAX",
    "NORMALISE_SCENARIOS",
    "PEARSON",
    "POOL",
    "POOL_SCENARIOS",
    "PREDICTIONS",
    "ROWS",
    "SCORE_SCENARIOS",
    "SHARE",
    "SHARE_SCENARIOS",
    "STANDARDISE",
    "accumulate_sizes",
    "aggregate_sizes",
    "compare_sizes",
    "delete_sizes",
    "normalise_sizes",
    "pool_sizes",
    "score_sizes",
    "share_sizes",
]

MAPS = ("normal", "tied", "large", "cancelling", "tiny")
ROWS = ("normal", "tied", "tiny")  # what is standardised forgets its scale, so that large rows would show nothing new
PREDICTIONS = ("flat", "peaky", "near")
GRAINS = 128  # probabilities are multiples of 1/128, which bfloat16 holds: their sums stay exactly 1


def distributions(rng: np.random.Generator, shape: tuple[int, ...], vocabulary: int, spread: float) -> np.ndarray:
    """Draw distributions of at least one grain everywhere."""
    chances = rng.dirichlet(np.full(vocabulary, spread), size=shape)
    return (1 + rng.multinomial(GRAINS - vocabulary, chances)) / GRAINS


def predictions(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Draw p and q; near ones differ by a grain, and where there is room p leaves words out."""
    K, I, V = sizes["K"], sizes["I"], sizes["V"]
    spread = 0.3 if family == "peaky" else 2.0
    p, q = distributions(rng, (I,), V, spread), distributions(rng, (K, I), V, spread)
    if family == "near":
        p = distributions(rng, (I,), V, 20.0)
        largest = np.arange(V) == p.argmax(axis=-1)[:, None]
        q = np.broadcast_to(p + (np.roll(largest, 1, axis=-1) * 1.0 - largest) / GRAINS, (K, I, V)).copy()
    if sizes.get("unseen", False):
        p[..., -1] += p[..., 0]
        p[..., 0] = 0
    return p, q


def divergence_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw predictions with and without occlusions."""
    p, q = predictions(rng, family, sizes)
    return {"p": p, "q": q}, {}


def difference_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw predictions and written words."""
    p, q = predictions(rng, family, sizes)
    return {"p": p, "q": q, "target": rng.integers(sizes["V"], size=sizes["I"])}, {}


def accumulate_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw scores and masks, of which the first element may never be hidden."""
    scores = fill(rng, (sizes["K"], sizes["I"]), family)
    masks = rng.random((sizes["K"], *sizes["map"])) >= 0.5
    if sizes.get("kept", False):
        masks[:, :1] = True
    return {"scores": scores, "masks": masks}, given(sizes, "causal")


def normalise_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a map for each word, and perhaps one over the words."""
    I = sizes["I"]
    arrays = {"saliency": fill(rng, (I, *sizes["map"]), family)}
    if "decoder" in sizes:
        arrays["decoder_map"] = 2.0 * fill(rng, (I, I, *sizes["decoder"]), family)
    if sizes.get("constant", False):
        arrays["saliency"][0] = 0.25
        if "decoder_map" in arrays:
            arrays["decoder_map"][0, 0] = 0.25
    return arrays, {}


def aggregate_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw attention of all layers and heads."""
    logits = fill(rng, (*sizes["lead"], sizes["L"], sizes["H"], sizes["I"], sizes["T"]), family)
    e = np.exp(np.clip(logits, -8, 8))
    return {"attention": e / e.sum(axis=-1, keepdims=True)}, given(sizes, "layers", "heads")


def pool_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a map over the input."""
    return {"saliency": fill(rng, (*sizes["lead"], sizes["I"], sizes["T"], sizes["F"]), family)}, given(
        sizes, "n_frames", "how"
    )


def compare_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw two maps over the encoder's frames that agree in part."""
    shape = (*sizes["lead"], sizes["I"], sizes["T"])
    a, other = fill(rng, shape, family), fill(rng, shape, family)
    b = 0.5 * a + 2.0 * other
    for array, constant in ((a, "constant_a"), (b, "constant_b")):
        array[..., : sizes.get(constant, 0), :] = 0.375
    names = ("a", "b") if "how" not in sizes else ("attention", "saliency")
    return dict(zip(names, (a, b), strict=True)), given(sizes, "how")


def delete_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw the map that orders the elements."""
    return {"saliency": fill(rng, (sizes["I"], sizes["T"], sizes["F"]), family)}, given(sizes, "step", "insertion")


SCORE_SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {"K": 6, "I": 3, "V": 7},
    "unseen_word": {"K": 4, "I": 3, "V": 6, "unseen": True},
    "two_words": {"K": 5, "I": 2, "V": 2},
    "certain": {"K": 3, "I": 2, "V": 1},
    "one_of_each": {"K": 1, "I": 1, "V": 5},
    "no_mask": {"K": 0, "I": 2, "V": 3},
    "no_word": {"K": 2, "I": 0, "V": 3},
}
ACCUMULATE_SCENARIOS: dict[str, dict[str, Any]] = {
    "elements": {"K": 9, "I": 3, "map": (5, 4)},
    "frames": {"K": 12, "I": 2, "map": (6, 1)},
    "bands": {"K": 7, "I": 2, "map": (1, 5)},
    "never_hidden": {"K": 6, "I": 3, "map": (4, 2), "kept": True},
    "words": {"K": 11, "I": 5, "map": (5,)},
    "words_causal": {"K": 11, "I": 5, "map": (5,), "causal": True},
    "words_causal_deep": {"K": 9, "I": 4, "map": (4, 1), "causal": True},
    "one_mask": {"K": 1, "I": 2, "map": (3, 2)},
    "no_mask": {"K": 0, "I": 2, "map": (3, 2)},
    "no_word": {"K": 3, "I": 0, "map": (3, 2)},
}
NORMALISE_SCENARIOS: dict[str, dict[str, Any]] = {
    "with_decoder": {"I": 4, "map": (5, 3), "decoder": ()},
    "with_deep_decoder": {"I": 3, "map": (4, 1), "decoder": (1,)},
    "constant_word": {"I": 3, "map": (4, 2), "decoder": (), "constant": True},
    "one_word": {"I": 1, "map": (4, 3), "decoder": ()},
    "one_element": {"I": 3, "map": (1, 1), "decoder": ()},
    "over_frames": {"I": 3, "map": (7,), "decoder": ()},
}
AGGREGATE_SCENARIOS: dict[str, dict[str, Any]] = {
    "everything": {"lead": (), "L": 2, "H": 3, "I": 3, "T": 5},
    "one_head": {"lead": (), "L": 3, "H": 2, "I": 3, "T": 4, "layers": 1, "heads": 0},
    "last_layer": {"lead": (), "L": 3, "H": 2, "I": 2, "T": 5, "layers": [-1]},
    "two_of_three": {"lead": (2,), "L": 3, "H": 3, "I": 2, "T": 4, "layers": [0, 2], "heads": [2, 1]},
    "one_of_each": {"lead": (), "L": 1, "H": 1, "I": 1, "T": 1},
    "no_sentence": {"lead": (0,), "L": 2, "H": 2, "I": 2, "T": 3},
}
POOL_SCENARIOS: dict[str, dict[str, Any]] = {
    "whole_windows": {"lead": (), "I": 3, "T": 12, "F": 3, "n_frames": 4},
    "shared_frames": {"lead": (), "I": 2, "T": 11, "F": 2, "n_frames": 4},
    "one_short": {"lead": (2,), "I": 2, "T": 8, "F": 2, "n_frames": 7},
    "frames_only": {"lead": (), "I": 2, "T": 9, "F": 1, "n_frames": 2},
    "nothing_to_pool": {"lead": (), "I": 2, "T": 5, "F": 1, "n_frames": 5},
    "one_window": {"lead": (), "I": 1, "T": 5, "F": 3, "n_frames": 1},
    "mean": {"lead": (), "I": 3, "T": 12, "F": 3, "n_frames": 4, "how": "mean"},
    "mean_shared": {"lead": (), "I": 2, "T": 11, "F": 2, "n_frames": 4, "how": "mean"},
}
# two leading axes, because outputs of a single row cost the kit twice as many runs
COMPARE_SCENARIOS: dict[str, dict[str, Any]] = {
    "sentences": {"lead": (2, 5), "I": 4, "T": 6},
    "one_sentence": {"lead": (), "I": 3, "T": 7},
    "one_word": {"lead": (2, 3), "I": 1, "T": 9},
    "two_frames": {"lead": (2, 2), "I": 5, "T": 2},
    "constant_in_one": {"lead": (2, 3), "I": 4, "T": 5, "constant_a": 2},
    "constant_in_both": {"lead": (2, 3), "I": 4, "T": 5, "constant_a": 1, "constant_b": 2},
    "nothing_varies": {"lead": (2, 2), "I": 2, "T": 4, "constant_a": 2},
    "no_sentence": {"lead": (0,), "I": 2, "T": 4},
}
SHARE_SCENARIOS: dict[str, dict[str, Any]] = {
    f"{how}_{name}": {**COMPARE_SCENARIOS[name], "how": how}
    for how, names in (
        ("pearson", ("sentences",)),
        ("squared", ("sentences", "constant_in_one")),
        ("overlap", ("sentences", "one_sentence", "one_word", "constant_in_both")),
    )
    for name in names
}
DELETE_SCENARIOS: dict[str, dict[str, Any]] = {
    "deletion": {"I": 3, "T": 6, "F": 5},
    "insertion": {"I": 3, "T": 6, "F": 5, "insertion": True},
    "uneven": {"I": 2, "T": 7, "F": 3, "step": 20},
    "uneven_insertion": {"I": 2, "T": 7, "F": 3, "step": 10, "insertion": True},
    "all_or_nothing": {"I": 2, "T": 3, "F": 2, "step": 100},
    "one_word": {"I": 1, "T": 4, "F": 3, "step": 25},
    "one_element": {"I": 2, "T": 1, "F": 1, "step": 50},
}

score_sizes = st.fixed_dictionaries(
    {"K": st.integers(0, 6), "I": st.integers(0, 4), "V": st.integers(2, 9)}, optional={"unseen": st.booleans()}
)
accumulate_sizes = st.one_of(
    st.fixed_dictionaries(
        {
            "K": st.integers(0, 12),
            "I": st.integers(0, 4),
            "map": st.tuples(st.integers(1, 6), st.integers(1, 4)),
        },
        optional={"kept": st.booleans()},
    ),
    st.integers(1, 5).flatmap(
        lambda I: st.fixed_dictionaries(
            {"K": st.integers(1, 12), "I": st.just(I), "map": st.just((I,)), "causal": st.booleans()}
        )
    ),
)
normalise_sizes = st.fixed_dictionaries(
    {"I": st.integers(1, 5), "map": st.tuples(st.integers(1, 6), st.integers(1, 4)), "decoder": st.just(())},
    optional={"constant": st.booleans()},
)


@st.composite
def aggregate_sizes(draw: Any) -> dict[str, Any]:
    """Draw layers and heads, and which of them count."""
    L, H = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    sizes = {"lead": draw(st.sampled_from([(), (2,)])), "L": L, "H": H, "I": draw(st.integers(1, 3))}
    chosen = {
        name: draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
        for name, count in (("layers", L), ("heads", H))
        if draw(st.booleans())
    }
    return {**sizes, "T": draw(st.integers(1, 6)), **chosen}


@st.composite
def pool_sizes(draw: Any) -> dict[str, Any]:
    """Draw maps and any number of windows that they hold."""
    T = draw(st.integers(1, 12))
    return {
        "lead": draw(st.sampled_from([(), (2,)])),
        "I": draw(st.integers(1, 3)),
        "T": T,
        "F": draw(st.integers(1, 4)),
        "n_frames": draw(st.integers(1, T)),
        "how": draw(st.sampled_from(["max", "mean"])),
    }


compare_sizes = st.fixed_dictionaries(
    {"lead": st.sampled_from([(), (2, 3)]), "I": st.integers(1, 4), "T": st.integers(2, 8)},
    optional={"constant_a": st.integers(0, 2), "constant_b": st.integers(0, 2)},
)
share_sizes = st.builds(
    lambda sizes, how: {**sizes, "how": how}, compare_sizes, st.sampled_from(["pearson", "squared", "overlap"])
)
delete_sizes = st.fixed_dictionaries(
    {"I": st.integers(1, 4), "T": st.integers(1, 6), "F": st.integers(1, 5)},
    optional={"step": st.sampled_from([1, 4, 10, 25, 50]), "insertion": st.booleans()},
)

DIVERGENCE = Recipe("kl_scores", divergence_case, PREDICTIONS)
DIFFERENCE = Recipe("target_difference", difference_case, PREDICTIONS)
ACCUMULATE = Recipe("accumulate_saliency", accumulate_case, MAPS)
STANDARDISE = Recipe("mean_std_normalize", normalise_case, ROWS)
MIN_MAX = Recipe("paired_min_max", normalise_case, MAPS)
AGGREGATE = Recipe("aggregate_attention", aggregate_case, MAPS)
POOL = Recipe("pool_saliency", pool_case, MAPS)
PEARSON = Recipe("row_pearson", compare_case, ROWS)
SHARE = Recipe("saliency_share", compare_case, ROWS)
DELETE = Recipe("deletion_masks", delete_case, MAPS)
