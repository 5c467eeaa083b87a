"""How inputs of circuit analysis are drawn: small models that a corruption moves, effects with ties, rows to force."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.transformer.config import TransformerConfig
from refattn.transformer.forward import forward
from refattn.transformer.weights import Transformer, random_transformer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DIFFERENCE",
    "DIFFERENCE_SCENARIOS",
    "EFFECT",
    "EFFECT_SCENARIOS",
    "FAMILIES",
    "FORCE",
    "FORCE_SCENARIOS",
    "MASK",
    "MASK_SCENARIOS",
    "OVERLAP",
    "OVERLAP_SCENARIOS",
    "PATCH",
    "PATCH_SCENARIOS",
    "difference_sizes",
    "effect_sizes",
    "force_sizes",
    "mask_sizes",
    "patch_cases",
]

FAMILIES = ("normal", "tied", "large", "tiny")
Drawn = tuple[dict[str, Any], dict[str, Any]]

DIFFERENCE_SCENARIOS: dict[str, dict[str, Any]] = {
    "mean": {"B": 4, "T": 5, "V": 7},
    "each": {"B": 3, "T": 4, "V": 9, "reduce": "none"},
    "elsewhere": {"B": 2, "T": 6, "V": 5, "position": 2},
    "from_the_end": {"B": 2, "T": 6, "V": 5, "position": -4, "reduce": "none"},
    "one_prompt": {"B": 1, "T": 1, "V": 2},
    "same_word": {"B": 3, "T": 2, "V": 1},
    "no_prompt": {"B": 0, "T": 2, "V": 3, "reduce": "none"},
}
EFFECT_SCENARIOS: dict[str, dict[str, Any]] = {
    "vector": {"shape": (6,)},
    "matrix": {"shape": (3, 4)},
    "one": {"shape": (1,)},
    "none": {"shape": (0, 3)},
}
MASK_SCENARIOS: dict[str, dict[str, Any]] = {
    "two_per_cent": {"shape": (24, 16)},
    "a_fifth": {"shape": (4, 6), "fraction": 0.2},
    "half_of_several": {"shape": (2, 3, 5), "fraction": 0.5},
    "seven_of_a_hundred": {"shape": (10, 10), "fraction": 0.07},
    "all": {"shape": (2, 2), "fraction": 1.0},
    "above": {"shape": (4, 5), "threshold": 0.5},
    "above_nothing": {"shape": (2, 3, 4), "threshold": 0.0},
    "one_head": {"shape": (1, 1)},
    "no_batch": {"shape": (0, 2, 3), "fraction": 0.5},
}
OVERLAP_SCENARIOS: dict[str, dict[str, Any]] = {
    "a_third": {"shape": (4, 6), "fraction": 1 / 3},
    "several": {"shape": (3, 3, 5), "fraction": 0.4},
    "above": {"shape": (2, 4, 5), "threshold": 1.0},
    "different_sizes": {"shape": (5, 6), "threshold": 0.75, "louder": 3.0},
    "nobody": {"shape": (2, 3), "threshold": 1e4},
    "one_head": {"shape": (1, 1)},
    "no_batch": {"shape": (0, 2, 3), "fraction": 0.5},
}
FORCE_SCENARIOS: dict[str, dict[str, Any]] = {
    "whole": {"B": 3, "H": 4, "T": 6, "S": 6, "K": 2, "heads": [1]},
    "half": {"B": 2, "H": 3, "T": 5, "S": 5, "K": 3, "heads": [0, 2], "weight": 0.5},
    "quarter": {"B": 2, "H": 2, "T": 4, "S": 4, "K": 2, "heads": [1], "weight": 0.25},
    "nothing": {"B": 2, "H": 2, "T": 4, "S": 4, "K": 2, "heads": [0], "weight": 0.0},
    "after_a_cache": {"B": 2, "H": 2, "T": 2, "S": 7, "K": 3, "heads": [0], "weight": 0.75},
    "no_head": {"B": 1, "H": 2, "T": 3, "S": 3, "K": 1, "heads": []},
    "one_token": {"B": 2, "H": 1, "T": 1, "S": 1, "K": 1, "heads": [0]},
    "no_prompt": {"B": 0, "H": 2, "T": 3, "S": 3, "K": 2, "heads": [0]},
}
FINAL = [["blocks.1.hook_resid_post", None]]
PATCH_SCENARIOS: dict[str, dict[str, Any]] = {
    "to_the_output": {"receivers": FINAL},
    "to_queries": {"receivers": [[1, 0]], "component": "q"},
    "frozen": {"receivers": FINAL, "freeze_mlps": True},
    "to_an_mlp": {"receivers": [["blocks.1.hook_mlp_out", None]], "position": 3},
    "to_two_layers": {"receivers": [[0, 1], [2, 0]], "component": "v", "position": 1, "truncate": False, "L": 3},
    "up_to_the_first": {"receivers": [[0, 0], [2, 1]], "component": "k", "position": -2, "L": 3},
    "to_the_middle": {"receivers": [["blocks.1.hook_resid_post", None]], "position": 1, "L": 3},
    "one_layer": {"receivers": [["blocks.0.hook_resid_post", None]], "L": 1},
}


def difference_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw logits, and two words for each prompt."""
    logits = fill(rng, (sizes["B"], sizes["T"], sizes["V"]), family)
    return {"logits": logits, "answers": words(rng, sizes["B"], sizes["V"])}, given(sizes, "position", "reduce")


def words(rng: np.random.Generator, batch: int, vocabulary: int) -> np.ndarray:
    """Draw two words for each prompt, different ones if there are two."""
    first = rng.integers(vocabulary, size=batch)
    second = (first + rng.integers(1, max(2, vocabulary), size=batch)) % vocabulary
    return np.stack([first, second], axis=-1)


def effect_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw logit differences; the corruption moves each by at least a half."""
    shape = sizes["shape"]
    clean, patched = fill(rng, shape, family), fill(rng, shape, family)
    way = rng.choice([-1.0, 1.0], size=shape) * (0.5 + np.abs(clean) + np.abs(fill(rng, shape, family)))
    return {"patched": patched, "clean": clean, "corrupt": clean + way}, {}


def mask_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw effects."""
    return {"effect": fill(rng, sizes["shape"], family)}, given(sizes, "fraction", "threshold")


def overlap_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw effects on two tasks that have something in common."""
    common = fill(rng, sizes["shape"], family)
    a, b = (common + fill(rng, sizes["shape"], family) for _ in range(2))
    return {"effect_a": sizes.get("louder", 1.0) * a, "effect_b": b}, given(sizes, "fraction", "threshold")


def force_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw causal attention, a query of each prompt, and keys that it can see."""
    batch, heads, t, s, k = (sizes[name] for name in "BHTSK")
    mass = np.exp(np.clip(fill(rng, (batch, heads, t, s), family), -20, 20)) * np.tri(t, s, s - t)
    pattern = mass / np.sum(mass, axis=-1, keepdims=True)
    rows = rng.integers(t, size=batch)
    targets = np.full((batch, k), -1)
    for b in range(batch):
        visible = rows[b] + s - t + 1
        told = rng.permutation(visible)[: rng.integers(1, k + 1)]
        targets[b, rng.permutation(k)[: len(told)]] = told
    rows = rows - t * rng.integers(2, size=batch)  # some count from the end
    return {"pattern": pattern, "rows": rows, "targets": targets}, given(sizes, "heads", "weight")


def patch_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a small GPT-2, prompts, and for each prompt the two words between which the corruption moves it most."""
    batch, length, vocabulary = sizes.get("B", 2), sizes.get("T", 4), 7
    config = small_config(sizes.get("L", 2), sizes.get("H", 2), vocabulary)
    model = random_transformer(config, rng, scale=2.0 if family == "peaky" else 1.25)
    clean = rng.integers(vocabulary, size=(batch, length))
    corrupt = (clean + rng.integers(1, vocabulary, size=clean.shape)) % vocabulary
    moved = last_logits(model, clean) - last_logits(model, corrupt)
    answers = np.stack([np.argmax(moved, axis=-1), np.argmin(moved, axis=-1)], axis=-1)
    arrays = {"weights": model.weights, "clean": clean, "corrupt": corrupt, "answers": answers}
    return arrays, given(sizes, "receivers", "component", "position", "freeze_mlps", "truncate")


def last_logits(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """Return what the model says after the last token: (B, V)."""
    return forward(model, ids).logits[:, -1]


def small_config(layers: int, heads: int, vocabulary: int) -> TransformerConfig:
    """Return the shape of a GPT-2 of six dimensions."""
    return TransformerConfig(
        family="gpt2",
        n_layers=layers,
        d_model=6,
        n_heads=heads,
        n_kv_heads=heads,
        d_head=6 // heads,
        d_mlp=5,
        vocab_size=vocabulary,
        n_ctx=6,
        norm="layer",
        norm_eps=1e-5,
        act="gelu_new",
        gated=False,
        positions="learned",
        rope=None,
        attn_scale=((6 // heads) ** -0.5,) * layers,
        window=(None,) * layers,
    )


difference_sizes = st.fixed_dictionaries(
    {"B": st.integers(1, 4), "T": st.integers(1, 5), "V": st.integers(1, 9)},
    optional={"reduce": st.sampled_from(["mean", "none"]), "position": st.sampled_from([-1, 0])},
)
effect_sizes = st.fixed_dictionaries({"shape": st.tuples(st.integers(0, 4), st.integers(1, 4))})


def mask_sizes(*, louder: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    """Draw the shape of effects, and which of them count."""
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 6)) | st.tuples(*[st.integers(1, 3)] * 3)
    counted = st.sampled_from([{}, {"threshold": 0.5}, {"threshold": 2.0}, {"fraction": 0.1}, {"fraction": 0.5}])
    extra = st.sampled_from([{}, {"louder": 2.0}]) if louder else st.just({})
    return st.builds(lambda shape, how, more: {"shape": shape, **how, **more}, shapes, counted, extra)


@st.composite
def force_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of a pattern, and what of it is forced."""
    heads, t = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    chosen = draw(st.lists(st.integers(0, heads - 1), unique=True))
    return {
        "B": draw(st.integers(0, 3)),
        "H": heads,
        "T": t,
        "S": t + draw(st.integers(0, 2)),
        "K": draw(st.integers(1, 3)),
        "heads": chosen,
        "weight": draw(st.sampled_from([1.0, 0.0, 0.25, 0.75])),
    }


def patch_cases(dtype: str) -> st.SearchStrategy[Any]:
    """Choose among a few cases: what rounding does to one takes long to find out, and is kept as long as the case."""
    return st.sampled_from(_chosen_cases(dtype))


@cache
def _chosen_cases(dtype: str) -> list[Any]:
    chosen = ("to_the_output", "to_queries", "frozen")
    return [
        PATCH.case("normal", dtype, seed, label=name, sizes=PATCH_SCENARIOS[name]) for seed, name in enumerate(chosen)
    ]


DIFFERENCE = Recipe("logit_difference", difference_case, FAMILIES)
EFFECT = Recipe("patch_effect", effect_case, FAMILIES)
MASK = Recipe("head_mask", mask_case, FAMILIES)
OVERLAP = Recipe("effect_overlap", overlap_case, ("normal", "tied"))
FORCE = Recipe("force_rows", force_case, ("normal", "tied", "peaky"))
PATCH = Recipe("path_patch_gpt2", patch_case, ("normal",))
