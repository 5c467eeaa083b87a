"""How inputs of the attention variants are drawn: every variant, references of any length, small stacks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.layers.deconstructed import FIXED, VARIANTS, AttentionWeights
from refattn.layers.deconstructed_init import init_stack
from refattn.layers.deconstructed_recurrent import approximate_recurrent, non_approximate_recurrent
from refattn.layers.deconstructed_stack import layer_plan, skip_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ATTENTION",
    "ATTENTION_SCENARIOS",
    "FAMILIES",
    "GATE",
    "GATE_SCENARIOS",
    "INDICATORS",
    "INDICATOR_SCENARIOS",
    "STACK",
    "STACK_SCENARIOS",
    "TAYLOR",
    "TAYLOR_SCENARIOS",
    "attention_sizes",
    "indicator_sizes",
    "recurrent_sizes",
    "stack_sizes",
]

FAMILIES = ("normal", "tied", "cancelling")
VOCABULARY = 7

ATTENTION_SCENARIOS: dict[str, dict[str, Any]] = {
    "standard": {"B": 2, "L": 7, "d": 8, "h": 2, "variant": "standard"},
    "standard_rotary": {"B": 1, "L": 5, "d": 8, "h": 2, "variant": "standard", "rotary_base": 100.0},
    "mlp": {"B": 2, "L": 4, "d": 6, "h": 3, "variant": "mlp"},
    "approximate": {"B": 2, "L": 7, "d": 8, "h": 2, "variant": "approximate"},
    "approximate_eps": {"B": 1, "L": 5, "d": 4, "h": 1, "variant": "approximate", "eps": 0.5, "rotary_base": 50.0},
    "per_order": {"B": 1, "L": 6, "d": 6, "h": 2, "variant": "approximate", "form": "per_order"},
    "non_approximate": {"B": 2, "L": 7, "d": 8, "h": 2, "variant": "non_approximate"},
    "random_fixed": {"B": 2, "L": 5, "d": 8, "h": 2, "variant": "random_fixed", "longer": 3},
    "text_fixed": {"B": 1, "L": 6, "d": 8, "h": 4, "variant": "text_fixed", "rotary_base": 100.0},
    "static_emb": {"B": 2, "L": 6, "d": 6, "h": 3, "variant": "static_emb"},
    "one_token": {"B": 2, "L": 1, "d": 4, "h": 4, "variant": "non_approximate"},
    "no_batch": {"B": 0, "L": 3, "d": 4, "h": 2, "variant": "random_fixed"},
}
TAYLOR_SCENARIOS: dict[str, dict[str, Any]] = {
    "joint": {"B": 2, "L": 7, "dk": 4, "dv": 3},
    "continued": {"B": 1, "L": 5, "dk": 3, "dv": 2, "before": 4, "eps": 0.5},
    "per_order": {"B": 1, "L": 6, "dk": 3, "dv": 4, "form": "per_order"},
    "one_channel": {"B": 2, "L": 18, "dk": 1, "dv": 1},
    "one_token": {"B": 1, "L": 1, "dk": 3, "dv": 2},
    "no_batch": {"B": 0, "L": 2, "dk": 3, "dv": 2},
}
GATE_SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {"B": 2, "L": 7, "dk": 4, "dv": 3},
    "continued": {"B": 1, "L": 5, "dk": 3, "dv": 2, "before": 4},
    "one_channel": {"B": 2, "L": 18, "dk": 1, "dv": 1},
    "one_token": {"B": 1, "L": 1, "dk": 3, "dv": 2},
    "no_batch": {"B": 0, "L": 2, "dk": 3, "dv": 2},
}
STACK_SCENARIOS: dict[str, dict[str, Any]] = {
    "uniform_random": {"B": 2, "L": 4, "N": 2, "config": "uniform", "variant": "random_fixed", "longer": 2},
    "uniform_text": {"B": 1, "L": 5, "N": 2, "config": "uniform", "variant": "text_fixed"},
    "hybrid_text": {"B": 1, "L": 4, "N": 3, "config": "hybrid", "variant": "text_fixed", "rotary_base": 100.0},
    "static": {"B": 1, "L": 4, "N": 2, "config": "uniform", "variant": "static_emb"},
    "static_normalised": {
        "B": 1,
        "L": 4,
        "N": 3,
        "config": "hybrid",
        "variant": "static_emb",
        "normalize_static": True,
    },
    "hybrid_skipped": {"B": 1, "L": 4, "N": 3, "config": "hybrid", "variant": "mlp", "skipped": True},
    "approximate": {"B": 1, "L": 4, "N": 2, "config": "hybrid", "variant": "approximate"},
    "non_approximate": {"B": 1, "L": 4, "N": 2, "config": "hybrid", "variant": "non_approximate", "skipped": True},
    "one_token": {"B": 2, "L": 1, "N": 1, "config": "uniform", "variant": "static_emb", "normalize_static": True},
    "no_batch": {"B": 0, "L": 2, "N": 1, "config": "last", "variant": "standard"},
}
# one head or one token leaves the root of a zero, on which no rounded result can be judged
INDICATOR_SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {"B": 2, "h": 3, "L": 6},
    "two_tokens": {"B": 2, "h": 2, "L": 2},
    "no_batch": {"B": 0, "h": 2, "L": 3},
}


def attention_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a hidden state, four matrices, and what the variant asks for besides."""
    B, L, d, variant = (sizes[name] for name in ("B", "L", "d", "variant"))
    arrays: dict[str, Any] = {
        "hidden": fill(rng, (B, L, d), family),
        "weights": AttentionWeights(*(rng.standard_normal((4, d, d)) / math.sqrt(d))),
    }
    if variant in FIXED:
        arrays["reference"] = fill(rng, (L + sizes.get("longer", 0), d), family)
    if variant == "static_emb":
        arrays["static"] = fill(rng, (B, L, d), family)
    if sizes.get("form") == "per_order":  # no order may sum to zero
        arrays["hidden"] = np.abs(arrays["hidden"]) + 0.25
        arrays["weights"] = AttentionWeights(*map(np.abs, arrays["weights"]))
    return arrays, {"variant": variant, "n_heads": sizes["h"]} | given(sizes, "form", "eps", "rotary_base")


def _streams(rng: np.random.Generator, family: str, sizes: Mapping[str, Any], length: int) -> list[np.ndarray]:
    shapes = [(sizes["B"], length, sizes[width]) for width in ("dk", "dk", "dv")]
    drawn = [fill(rng, shape, family) for shape in shapes]
    return [np.abs(x) + 0.25 for x in drawn] if sizes.get("form") == "per_order" else drawn


def taylor_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw queries, keys and values, and perhaps what earlier tokens left."""
    q, k, v = _streams(rng, family, sizes, sizes["L"])
    arrays: dict[str, Any] = {"q": q, "k": k, "v": v}
    if sizes.get("before", 0):
        arrays["initial"] = approximate_recurrent(*_streams(rng, family, sizes, sizes["before"]))[1]
    return arrays, given(sizes, "form", "eps")


def gate_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw queries, keys and values, and perhaps what earlier tokens left."""
    q, k, v = _streams(rng, family, sizes, sizes["L"])
    arrays: dict[str, Any] = {"q": q, "k": k, "v": v}
    if sizes.get("before", 0):
        arrays["initial"] = non_approximate_recurrent(*_streams(rng, family, sizes, sizes["before"]))[1]
    return arrays, {}


def stack_case(
    rng: np.random.Generator, _family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw tokens and a small stack whose norms are not one."""
    B, L, longest = sizes["B"], sizes["L"], sizes["L"] + sizes.get("longer", 0)
    params = init_stack(rng, vocabulary=VOCABULARY, d=4, d_inner=5, n_layers=sizes["N"])
    norms = 1 + 0.25 * rng.standard_normal((sizes["N"], 2, 4))
    blocks = [b._replace(norm_attention=n[0], norm_mlp=n[1]) for b, n in zip(params.blocks, norms, strict=True)]
    arrays = {"tokens": rng.integers(VOCABULARY, size=(B, L)), "params": params._replace(blocks=tuple(blocks))}
    if sizes["variant"] == "random_fixed":
        arrays["reference_embeddings"] = rng.standard_normal((longest, 4)) / 2
    if sizes["variant"] == "text_fixed":
        arrays["reference_tokens"] = rng.integers(VOCABULARY, size=longest)
    plan = layer_plan(sizes["N"], sizes["config"], sizes["variant"])
    options = {"plan": list(plan), "n_heads": 2} | given(sizes, "normalize_static", "rotary_base")
    return arrays, options | ({"skip": list(skip_plan(plan))} if sizes.get("skipped", False) else {})


def indicator_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw causal maps."""
    B, h, L = (sizes[name] for name in ("B", "h", "L"))
    weights = np.tril(np.exp(fill(rng, (B, h, L, L), family)))
    return {"maps": weights / weights.sum(axis=-1, keepdims=True)}, {}


@st.composite
def attention_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes and options of one layer."""
    heads, width = draw(st.integers(1, 3)), draw(st.sampled_from([2, 4]))
    options = st.fixed_dictionaries(
        {"B": st.integers(0, 2), "L": st.integers(1, 9), "variant": st.sampled_from(VARIANTS)},
        optional={"longer": st.integers(0, 3), "rotary_base": st.sampled_from([10.0, 100.0])},
    )
    sizes: dict[str, Any] = draw(options)
    return {"d": heads * width, "h": heads, **sizes}


recurrent_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "L": st.integers(1, 9), "dk": st.integers(1, 4), "dv": st.integers(1, 4)},
    optional={"before": st.integers(0, 4)},
)
stack_sizes = st.fixed_dictionaries(
    {
        "B": st.integers(0, 2),
        "L": st.integers(1, 5),
        "N": st.integers(1, 3),
        "config": st.sampled_from(["uniform", "hybrid", "odd"]),
        "variant": st.sampled_from(VARIANTS),
    },
    optional={"longer": st.integers(0, 2), "normalize_static": st.booleans(), "skipped": st.booleans()},
)
indicator_sizes = st.fixed_dictionaries({"B": st.integers(0, 2), "h": st.integers(2, 3), "L": st.integers(2, 7)})

ATTENTION = Recipe("apply_attention", attention_case, FAMILIES)
TAYLOR = Recipe("approximate_recurrent", taylor_case, FAMILIES)
GATE = Recipe("non_approximate_recurrent", gate_case, FAMILIES)
STACK = Recipe("forward_stack", stack_case, ("normal",))
INDICATORS = Recipe("attention_indicators", indicator_case, FAMILIES)
