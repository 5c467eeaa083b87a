"""How inputs of the conditioned memories are drawn: keys and values that no rule runs away from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.layers.pavlovian import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ATTENTION",
    "ATTENTION_SCENARIOS",
    "FAMILIES",
    "POLYNOMIAL",
    "READ",
    "SOFTMAX",
    "WRITE",
    "WRITE_SCENARIOS",
    "attention_sizes",
    "read_sizes",
    "recall_sizes",
    "write_sizes",
]

FAMILIES = ("normal", "tied", "cancelling")
UNIT_KEYS = ("delta", "gated_delta", "oja", "oja_free", "bcm", "anti_hebb")
SMALL_VALUES = ("oja", "bcm")
WRITE_OPTIONS = (
    "rule",
    "rate",
    "decay",
    "n_epochs",
    "return_history",
    "normalize_keys",
    "max_row_norm",
    "lateral_rate",
)

WRITE_SCENARIOS: dict[str, dict[str, Any]] = {
    "hebb": {"B": 2, "n": 7, "dk": 5, "dv": 3},
    "hebb_history": {"B": 1, "n": 4, "dk": 3, "dv": 2, "rate": 0.5, "return_history": True},
    "decay": {"B": 2, "n": 9, "dk": 4, "dv": 3, "rule": "decay", "decay": 0.75, "rate": 0.5},
    "decay_epochs": {"B": 1, "n": 4, "dk": 3, "dv": 2, "rule": "decay", "decay": 0.5, "n_epochs": 3},
    "delta": {"B": 2, "n": 9, "dk": 5, "dv": 3, "rule": "delta"},
    "delta_epochs": {"B": 1, "n": 4, "dk": 6, "dv": 2, "rule": "delta", "rate": 0.5, "n_epochs": 2, "started": True},
    "delta_past_a_chunk": {"B": 1, "n": 18, "dk": 4, "dv": 2, "rule": "delta", "rate": 0.75, "return_history": True},
    "gated_delta": {"B": 2, "n": 8, "dk": 4, "dv": 3, "rule": "gated_delta", "decay": 0.75, "started": True},
    "oja": {"B": 2, "n": 8, "dk": 4, "dv": 3, "rule": "oja", "rate": 0.5, "started": True},
    "oja_free": {"B": 1, "n": 8, "dk": 4, "dv": 2, "rule": "oja_free", "rate": 0.25, "started": True},
    "bcm": {"B": 2, "n": 8, "dk": 4, "dv": 3, "rule": "bcm", "rate": 0.5, "n_epochs": 2},
    "anti_hebb": {"B": 2, "n": 8, "dk": 4, "dv": 3, "rule": "anti_hebb", "rate": 0.5},
    "anti_hebb_fast": {"B": 1, "n": 6, "dk": 3, "dv": 3, "rule": "anti_hebb", "lateral_rate": 0.5},
    "homeostatic": {"B": 2, "n": 6, "dk": 4, "dv": 3, "rule": "homeostatic"},
    "bounded_delta": {"B": 1, "n": 7, "dk": 4, "dv": 3, "rule": "delta", "max_row_norm": 0.5, "return_history": True},
    "started": {"B": 2, "n": 5, "dk": 4, "dv": 3, "started": True},
    "normalised": {"B": 2, "n": 6, "dk": 5, "dv": 3, "rule": "delta", "normalize_keys": True},
    "one_channel": {"B": 2, "n": 5, "dk": 1, "dv": 1, "rule": "gated_delta", "decay": 0.5},
    "one_pair": {"B": 1, "n": 1, "dk": 3, "dv": 2, "rule": "delta", "started": True},
    "no_pair": {"B": 2, "n": 0, "dk": 3, "dv": 2, "rule": "bcm", "return_history": True},
    "no_batch": {"B": 0, "n": 3, "dk": 3, "dv": 2},
}
ATTENTION_SCENARIOS: dict[str, dict[str, Any]] = {
    "hebb": {"B": 2, "n": 7, "dk": 5, "dv": 3},
    "hebb_everything": {"B": 2, "n": 6, "dk": 5, "dv": 3, "causal": False, "rate": 0.5},
    "decay": {"B": 1, "n": 9, "dk": 4, "dv": 3, "rule": "decay", "decay": 0.75},
    "decay_past_a_chunk": {"B": 1, "n": 19, "dk": 3, "dv": 2, "rule": "decay", "decay": 0.875, "rate": 0.5},
    "delta": {"B": 2, "n": 9, "dk": 5, "dv": 3, "rule": "delta"},
    "delta_one_chunk": {"B": 1, "n": 16, "dk": 6, "dv": 2, "rule": "delta", "rate": 0.5},
    "delta_past_a_chunk": {"B": 1, "n": 18, "dk": 4, "dv": 2, "rule": "delta", "rate": 0.75},
    "delta_everything": {"B": 1, "n": 7, "dk": 4, "dv": 3, "rule": "delta", "causal": False},
    "gated_delta": {"B": 1, "n": 17, "dk": 4, "dv": 3, "rule": "gated_delta", "decay": 0.75},
    "oja": {"B": 1, "n": 8, "dk": 4, "dv": 3, "rule": "oja", "rate": 0.5},
    "bcm": {"B": 1, "n": 8, "dk": 4, "dv": 3, "rule": "bcm", "rate": 0.5},
    "anti_hebb": {"B": 1, "n": 8, "dk": 4, "dv": 3, "rule": "anti_hebb"},
    "homeostatic": {"B": 1, "n": 6, "dk": 4, "dv": 3, "rule": "homeostatic"},
    "normalised": {"B": 1, "n": 6, "dk": 5, "dv": 3, "rule": "delta", "normalize_keys": True},
    "one_channel": {"B": 2, "n": 5, "dk": 1, "dv": 1, "rule": "delta"},
    "one_token": {"B": 1, "n": 1, "dk": 3, "dv": 2},
    "no_token": {"B": 2, "n": 0, "dk": 3, "dv": 2, "rule": "delta"},
    "no_batch": {"B": 0, "n": 3, "dk": 3, "dv": 2},
}


def stimuli(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Draw keys and values: of norm one and of size at most one where the rule asks for it, never a zero key."""
    keys = fill(rng, (sizes["B"], sizes["n"], sizes["dk"]), family)
    keys[..., 0] += np.all(keys == 0, axis=-1)
    values = fill(rng, (sizes["B"], sizes["n"], sizes["dv"]), family)
    rule = sizes.get("rule", "hebb")
    if rule in SMALL_VALUES:
        values = values / np.maximum(1.0, np.abs(values).max(initial=0.0))
    return (unit(keys) if rule in UNIT_KEYS and not sizes.get("normalize_keys") else keys), values


def unit(x: np.ndarray) -> np.ndarray:
    """Divide each row by its norm; the axis of rows that are zero or of one channel only keeps a sign."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)


def write_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw pairs, and perhaps strengths to start from."""
    keys, values = stimuli(rng, family, sizes)
    arrays = {"keys": keys, "values": values}
    if sizes.get("started", False):
        arrays["initial"] = 0.5 * rng.standard_normal((sizes["B"], sizes["dv"], sizes["dk"]))
    return arrays, given(sizes, *WRITE_OPTIONS)


def attention_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw queries, keys and values."""
    k, v = stimuli(rng, family, sizes)
    return {"q": fill(rng, k.shape, family), "k": k, "v": v}, given(
        sizes, "rule", "causal", "rate", "decay", "normalize_keys"
    )


def read_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw strengths and cues."""
    shapes = (sizes["B"], sizes["dv"], sizes["dk"]), (sizes["B"], sizes["m"], sizes["dk"])
    S, queries = (fill(rng, shape, family) for shape in shapes)
    return {"S": S, "queries": queries}, {}


def recall_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw stored pairs and cues of norm one."""
    shapes = [(sizes["B"], sizes[rows], sizes[width]) for rows, width in (("n", "dk"), ("n", "dv"), ("m", "dk"))]
    keys, values, queries = (fill(rng, shape, family) for shape in shapes)
    return {"keys": unit(keys), "values": values, "queries": unit(queries)}, given(sizes, "beta", "degree")


@st.composite
def write_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes and options of a write under any rule."""
    sizes: dict[str, Any] = draw(attention_sizes())
    sizes.pop("causal", None)
    options = st.fixed_dictionaries(
        {},
        optional={
            "n_epochs": st.integers(1, 3),
            "return_history": st.booleans(),
            "started": st.booleans(),
            "max_row_norm": st.sampled_from([0.5, 2.0]),
            "lateral_rate": st.sampled_from([0.25, 0.5]),
        },
    )
    extra: dict[str, Any] = draw(options)
    return {**sizes, **extra}


@st.composite
def attention_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes and options of attention under any rule, at rates from which none runs away."""
    options = st.fixed_dictionaries(
        {
            "B": st.integers(0, 2),
            "n": st.integers(0, 12),
            "dk": st.integers(1, 6),
            "dv": st.integers(1, 4),
            "rule": st.sampled_from(tuple(RULES)),
            "rate": st.sampled_from([0.25, 0.5]),
        },
        optional={
            "decay": st.sampled_from([0.5, 0.875]),
            "causal": st.booleans(),
            "normalize_keys": st.booleans(),
        },
    )
    sizes: dict[str, Any] = draw(options)
    return sizes


read_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "m": st.integers(0, 5), "dk": st.integers(1, 7), "dv": st.integers(1, 5)}
)


def recall_sizes(option: str, choices: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw sizes of a read from stored pairs."""
    return st.fixed_dictionaries(
        {
            "B": st.integers(0, 2),
            "n": st.integers(0, 9),
            "m": st.integers(0, 5),
            "dk": st.integers(1, 6),
            "dv": st.integers(1, 4),
            option: st.sampled_from(choices),
        }
    )


WRITE = Recipe("linear_memory_write", write_case, FAMILIES)
ATTENTION = Recipe("pavlovian_attention", attention_case, FAMILIES)
READ = Recipe("linear_memory_read", read_case, FAMILIES)
SOFTMAX = Recipe("softmax_memory_read", recall_case, FAMILIES)
POLYNOMIAL = Recipe("polynomial_memory_read", recall_case, FAMILIES)
