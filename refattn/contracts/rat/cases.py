"""How inputs of the RAT entries are drawn: sizes that trip kernels, weights that spread gates and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.layers.rat import RATWeights
from refattn.layers.rat_baselines import AttentionWeights, RNNWeights
from refattn.layers.rat_decode import RATCache

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ATTENTION",
    "CAUSAL",
    "FAMILIES",
    "LAYER",
    "PREFILL",
    "RNN",
    "SCAN",
    "STEP",
    "attention_sizes",
    "causal_sizes",
    "layer_sizes",
    "prefill_sizes",
    "rnn_sizes",
    "scan_sizes",
    "step_sizes",
]

FAMILIES = ("normal", "uniform", "peaky", "tied", "large", "cancelling", "tiny")


def rat_weights(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> RATWeights:
    """Draw weights that put scores near ±2 and gates all over (0, 1); ``saturated`` makes every gate 0 or 1."""
    width, group = sizes["D"], sizes["G"] * sizes["D"] // sizes["H"]
    w_in = 1.5 * rng.standard_normal((width, 3 * width + 2 * group)) / np.sqrt(width)
    if family == "peaky":
        w_in[:, 3 * width :] *= 2.0
    bias = 0.5 + rng.standard_normal(width)
    if sizes.get("saturated", False):
        bias = np.where(rng.random(width) < 0.5, -800.0, 800.0)
    norm = 1.0 + 0.2 * rng.standard_normal(width)
    return RATWeights(w_in, bias, rng.standard_normal((width, width)) / np.sqrt(width), norm)


def _settings(sizes: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the options that a case of these sizes is called with."""
    always = {"num_heads": sizes["H"], "num_groups": sizes["G"], "chunk_size": sizes["L"]}
    return always | given(sizes, "rope_base", "norm_eps", *names)


def layer_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw activations and weights of the layer."""
    x = fill(rng, (sizes["B"], sizes["T"], sizes["D"]), family)
    return {"x": x, "weights": rat_weights(rng, family, sizes)}, _settings(sizes)


def prefill_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw the activations, padded or not, of a prompt."""
    arrays, _ = layer_case(rng, family, sizes)
    return arrays, _settings(sizes, "prompt_len", "max_len")


def step_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw one token, and a cache whose free slots are not zero."""
    batch, width, heads = sizes["B"], sizes["D"], sizes["H"]
    x = fill(rng, (batch, 1, width), family)
    memory = (batch, heads, sizes["slots"], width // heads)
    last = (batch, width)
    k_mem, v_mem, k_last, v_last = (rng.standard_normal(shape) for shape in (memory, memory, last, last))
    cache = RATCache(k_mem, v_mem, k_last, v_last, sizes["t"])
    return {"x_t": x, "weights": rat_weights(rng, family, sizes), "cache": cache}, _settings(sizes)


def attention_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw queries and running states, not rotated."""
    shape = (sizes["B"], sizes["H"], sizes["T"], sizes["d"])
    size = 2.0 if family == "peaky" else 1.0
    arrays = {
        "q": size * fill(rng, shape, "normal" if family == "peaky" else family),
        "k_state": size * fill(rng, shape, "normal" if family == "peaky" else family),
        "v_state": fill(rng, shape, family),
    }
    return arrays, {"chunk_size": sizes["L"]} | given(sizes, "rope_base", "position_offset", "return_weights")


def scan_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw gates in (0, 1), or only 0 and 1, and values."""
    shape = (sizes["B"], sizes["T"], sizes["D"])
    gate = rng.random(shape)
    if sizes.get("saturated", False):
        gate = np.round(gate)
    arrays = {"gate": gate, "value": fill(rng, shape, family)}
    if sizes.get("started", False):
        arrays["initial_state"] = fill(rng, (sizes["B"], sizes["D"]), family)
    return arrays, {"chunk_size": sizes["L"]} if "L" in sizes else {}


def rnn_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw activations, weights, and perhaps a state to start from."""
    width = sizes["D"]
    full = rat_weights(rng, family, {**sizes, "H": 1, "G": 1})
    arrays: dict[str, Any] = {
        "x": fill(rng, (sizes["B"], sizes["T"], width), family),
        "weights": RNNWeights(full.w_in[:, : 3 * width], *full[1:]),
    }
    if sizes.get("started", False):
        arrays["initial_state"] = rng.standard_normal((sizes["B"], width))
    return arrays, given(sizes, "norm_eps", "return_state")


def causal_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw activations and weights of the attention baseline."""
    width = sizes["D"]
    full = rat_weights(rng, family, {**sizes, "G": sizes["H"]})
    columns = np.r_[width : 2 * width, 3 * width : 5 * width]  # values, queries, keys
    arrays = {
        "x": fill(rng, (sizes["B"], sizes["T"], width), family),
        "weights": AttentionWeights(full.w_in[:, columns], full.w_out, full.norm),
    }
    return arrays, {"num_heads": sizes["H"]} | given(sizes, "window", "rope_base", "norm_eps")


@st.composite
def layer_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of the layer: chunks of 1 to 5, none to four of them, any sharing of groups."""
    groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads, chunk_size = groups * share, draw(st.integers(1, 5))
    sizes = {
        "B": draw(st.integers(0, 2)),
        "T": chunk_size * draw(st.integers(0, 4)),
        "D": heads * draw(st.sampled_from([2, 4])),
        "H": heads,
        "G": groups,
        "L": chunk_size,
    }
    extra: dict[str, Any] = draw(st.sampled_from([{}, {"rope_base": None}, {"rope_base": 50.0}, {"norm_eps": 1e-3}]))
    return sizes | extra


@st.composite
def prefill_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of a prompt of any length, padded or not, with or without room to go on."""
    sizes = draw(layer_sizes())
    length = draw(st.integers(0, 3 * sizes["L"]))
    prompt = draw(st.sampled_from([{}, {"prompt_len": draw(st.integers(0, length))}]))
    room = draw(st.sampled_from([{}, {"max_len": length + draw(st.integers(0, 2 * sizes["L"]))}]))
    return {**sizes, "T": length, **prompt, **room}


@st.composite
def step_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of a step anywhere in a cache."""
    sizes = draw(layer_sizes())
    slots = draw(st.integers(1, 4))
    return {**sizes, "slots": slots, "t": draw(st.integers(0, slots * sizes["L"] - 1))}


@st.composite
def attention_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of the attention alone."""
    chunk_size = draw(st.integers(1, 5))
    sizes = {
        "B": draw(st.integers(0, 2)),
        "H": draw(st.integers(1, 3)),
        "T": chunk_size * draw(st.integers(0, 4)),
        "d": draw(st.sampled_from([2, 4, 8])),
        "L": chunk_size,
    }
    choices = [{}, {"rope_base": None}, {"position_offset": 3}, {"return_weights": True}]
    extra: dict[str, Any] = draw(st.sampled_from(choices))
    return sizes | extra


scan_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "T": st.integers(0, 13), "D": st.integers(1, 5)},
    optional={"L": st.integers(1, 6), "started": st.booleans(), "saturated": st.booleans()},
)
rnn_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "T": st.integers(0, 12), "D": st.integers(1, 9)},
    optional={"started": st.booleans(), "return_state": st.just(value=True), "norm_eps": st.just(1e-3)},
)
causal_sizes = st.builds(
    lambda sizes, heads, d: {**sizes, "H": heads, "D": heads * d},
    st.fixed_dictionaries(
        {"B": st.integers(0, 2), "T": st.integers(0, 12)},
        optional={"window": st.integers(0, 13), "rope_base": st.sampled_from([None, 50.0])},
    ),
    st.integers(1, 3),
    st.sampled_from([2, 4]),
)

LAYER = Recipe("rat_layer", layer_case, FAMILIES)
PREFILL = Recipe("rat_prefill", prefill_case, FAMILIES)
STEP = Recipe("rat_step", step_case, FAMILIES)
ATTENTION = Recipe("chunk_attention", attention_case, FAMILIES)
SCAN = Recipe("gated_scan", scan_case, FAMILIES)
RNN = Recipe("rnn_layer", rnn_case, FAMILIES)
CAUSAL = Recipe("causal_attention_layer", causal_case, FAMILIES)
