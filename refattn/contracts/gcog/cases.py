"""How inputs of gCOG's entries are drawn: small networks with weights that spread the scores, and real tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.benchmarks.gcog import Vocabulary, encode_task, sample_stimulus, sample_task
from refattn.benchmarks.gcog_blocks import NormWeights
from refattn.benchmarks.gcog_init import NetworkConfig, init_network
from refattn.conformance.cases import Recipe, fill

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FAMILIES", "SOLVER", "TOKENS", "network", "network_sizes", "solver_sizes", "token_sizes"]

FAMILIES = ("normal",)
Drawn = tuple[dict[str, Any], dict[str, Any]]
DEFAULTS = {"B": 2, "n": 3, "m": 4, "features": 3, "E": 8, "M": 6, "classes": 7, "n_heads": 1, "n_blocks": 2}
RECURRENT = ("rnn_classifier", "gru_classifier")


def _livelier(tree: Any, rng: np.random.Generator) -> Any:
    """Return weights half as large again, and norms that scale and shift."""
    if isinstance(tree, NormWeights):
        return NormWeights(*(x + 0.2 * rng.standard_normal(x.shape) for x in tree))
    if isinstance(tree, tuple):
        branches = [_livelier(branch, rng) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)
    return None if tree is None else 1.5 * tree


def network(name: str) -> Recipe:
    """Return how the inputs of a network are drawn."""

    def build(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
        s = {**DEFAULTS, **sizes}
        config = NetworkConfig(
            8, s["features"], s["E"], s["M"], s["classes"], s["n_heads"], s["n_blocks"], s["m"], s.get("distances", 0)
        )
        arrays = {
            "rule": fill(rng, (s["B"], s["n"], 8), family),
            "stimulus": fill(rng, (s["B"], s["m"], s["features"]), family),
            "weights": _livelier(init_network(name, config, rng), rng),
        }
        known = () if name in RECURRENT else ("n_heads", "positional", "n_latents")
        return arrays, {key: sizes[key] for key in known if key in sizes}

    return Recipe(name, build, FAMILIES)


def network_sizes(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Draw sizes and options of a network."""
    optional: dict[str, st.SearchStrategy[Any]] = {"features": st.integers(1, 5)}
    if name not in RECURRENT:
        optional |= {"n_heads": st.sampled_from([1, 2]), "positional": st.booleans(), "n_blocks": st.integers(1, 2)}
    if name == "dual_stream":
        optional["distances"] = st.just(5)
    if name == "perceiver":
        optional["n_latents"] = st.integers(1, 3)
    sizes = {"B": st.integers(0, 2), "n": st.integers(1, 4), "m": st.integers(1, 4)}
    return st.fixed_dictionaries(sizes, optional=optional)


def _solver(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    del family
    vocabulary = Vocabulary(*sizes.get("vocabulary", (10, 10, 26)))
    tasks = [sample_task(rng, sizes["depth"], vocabulary=vocabulary) for _ in range(sizes["B"])]
    count = sizes.get("distractors", 5)
    grids = [sample_stimulus(rng, task, count, vocabulary=vocabulary) for task in tasks]
    rules = [encode_task(task, vocabulary=vocabulary)[: None if sizes.get("end") else -1] for task in tasks]
    n_tokens = 3 * 2 ** ((sizes["depth"] - 1) // 2) - 2 + bool(sizes.get("end"))
    arrays = {
        "rules": np.array(rules, np.int64).reshape(len(tasks), n_tokens, 8),
        "grid": np.array(grids, np.int64).reshape(len(tasks), vocabulary.grid, vocabulary.grid, 2),
    }
    return arrays, {"n_shapes": vocabulary.shapes, "n_colors": vocabulary.colors}


def _tokens(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    del family
    colors, shapes, size = sizes.get("colors", 10), sizes.get("shapes", 26), sizes["grid"]
    lead = (sizes["B"], size, size)
    full = rng.random(lead) < 0.6
    grid = np.stack([rng.integers(1, most + 1, lead) * full for most in (colors, shapes)], axis=-1)
    return {"grid": grid}, {"one_hot": bool(sizes.get("one_hot")), "n_colors": colors, "n_shapes": shapes}


SOLVER = Recipe("solve_tokens", _solver, ("drawn",))
TOKENS = Recipe("stimulus_tokens", _tokens, ("drawn",))

solver_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 6), "depth": st.sampled_from([1, 3, 5]), "end": st.booleans()},
    optional={"vocabulary": st.sampled_from([(4, 4, 5), (5, 3, 3)]), "distractors": st.integers(0, 2)},
)
token_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 3), "grid": st.integers(1, 4), "one_hot": st.booleans()},
    optional={"colors": st.integers(1, 10), "shapes": st.integers(1, 26)},
)
