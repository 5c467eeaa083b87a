"""How small transformers are drawn: every family and its options, one token, no row, padding, caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, given
from refattn.transformer.config import parse_config
from refattn.transformer.weights import random_transformer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FAMILIES",
    "LOGITS",
    "LOGITS_SCENARIOS",
    "MODELS",
    "SCORES",
    "SCORES_SCENARIOS",
    "STEPS",
    "STEPS_SCENARIOS",
    "logits_sizes",
    "scores_sizes",
    "steps_sizes",
]

FAMILIES = ("normal", "peaky")
_SCALES = {"normal": 1.0, "peaky": 1.8}

_GPT2 = {
    "model_type": "gpt2",
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 12,
    "vocab_size": 11,
    "n_inner": 10,
}
_NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "vocab_size": 11,
}
_LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 10,
    "vocab_size": 11,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt2_by_layer": {**_GPT2, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
    "neox": {**_NEOX, "rotary_pct": 0.5},
    "neox_sequential": {**_NEOX, "rotary_pct": 1.0, "use_parallel_residual": False},
    "llama": _LLAMA,
    "llama3": {**_LLAMA, "rope_parameters": _LLAMA3, "tie_word_embeddings": True},
    "llama_linear": {
        **_LLAMA,
        "num_key_value_heads": 4,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_theta": 9.0,
    },
    "mistral": {**_LLAMA, "model_type": "mistral", "sliding_window": 3},
    "qwen2": {**_LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1},
    "qwen3": {**_LLAMA, "model_type": "qwen3", "head_dim": 6, "num_key_value_heads": 1},
    "empty": {**_LLAMA, "num_hidden_layers": 0},
}
"""Configurations of every family, small."""

LOGITS_SCENARIOS: dict[str, dict[str, Any]] = {
    **{name: {"model": name, "B": 2, "T": 5} for name in MODELS if name != "empty"},
    "no_block": {"model": "empty", "B": 1, "T": 3},
    "one_token": {"model": "llama", "B": 2, "T": 1},
    "no_batch": {"model": "gpt2", "B": 0, "T": 3},
    "whole_context": {"model": "gpt2", "B": 1, "T": 12},
    "padded": {"model": "llama3", "B": 2, "T": 5, "padding": 2},
    "shifted": {"model": "qwen3", "B": 1, "T": 4, "start": 7},
}
STEPS_SCENARIOS: dict[str, dict[str, Any]] = {
    "gpt2": {"model": "gpt2", "B": 2, "T": 5, "prefill": 3},
    "neox": {"model": "neox", "B": 1, "T": 4, "prefill": 1},
    "llama": {"model": "llama", "B": 1, "T": 5, "prefill": 2},
    "mistral": {"model": "mistral", "B": 1, "T": 6, "prefill": 2},
    "qwen3": {"model": "qwen3", "B": 1, "T": 4, "prefill": 4},
    "one_token": {"model": "llama3", "B": 1, "T": 1, "prefill": 1},
}
SCORES_SCENARIOS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "B": 2, "H": 3, "n": 4} for kind in ("previous", "duplicate", "induction")},
    "one_pair": {"kind": "induction", "B": 1, "H": 1, "n": 1},
    "no_batch": {"kind": "duplicate", "B": 0, "H": 2, "n": 2},
}


def _model_arrays(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    config = parse_config(MODELS[sizes["model"]])
    ids = rng.integers(config.vocab_size, size=(sizes["B"], sizes["T"]))
    return {"weights": random_transformer(config, rng, scale=_SCALES[family]).weights, "ids": ids}


def logits_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a model and tokens, perhaps padded on the left, perhaps from a later position on."""
    arrays = _model_arrays(rng, family, sizes)
    t = np.arange(sizes["T"])
    if sizes.get("padding"):
        mask = t >= np.minimum(sizes["padding"] * np.arange(sizes["B"]), sizes["T"] - 1)[:, None]
        arrays |= {"key_mask": mask, "positions": np.maximum(np.cumsum(mask, axis=1) - 1, 0)}
    elif sizes.get("start"):
        arrays["positions"] = t + sizes["start"]
    return arrays, {"config": MODELS[sizes["model"]]}


def steps_case(
    rng: np.random.Generator, family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a model, tokens, and how many of them come first."""
    options = {"config": MODELS[sizes["model"]], "prefill": min(sizes["prefill"], sizes["T"])}
    return _model_arrays(rng, family, sizes), options


def scores_case(
    rng: np.random.Generator, _family: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw causal patterns over a sequence that repeats."""
    size = 2 * sizes["n"] + 1
    weights = np.tril(np.exp(rng.standard_normal((sizes["B"], sizes["H"], size, size))))
    return {"pattern": weights / weights.sum(axis=-1, keepdims=True)}, given(sizes, "kind", "n")


_RUN = {"model": st.sampled_from([n for n in MODELS if n != "empty"]), "B": st.integers(1, 2), "T": st.integers(1, 6)}
logits_sizes = st.fixed_dictionaries(_RUN, optional={"padding": st.integers(1, 3)})
steps_sizes = st.fixed_dictionaries({**_RUN, "prefill": st.integers(1, 6)})
scores_sizes = st.fixed_dictionaries(
    {
        "B": st.integers(0, 2),
        "H": st.integers(1, 3),
        "n": st.integers(1, 5),
        "kind": st.sampled_from(["previous", "duplicate", "induction"]),
    }
)

LOGITS = Recipe("transformer_logits", logits_case, FAMILIES)
STEPS = Recipe("transformer_steps", steps_case, FAMILIES)
SCORES = Recipe("head_scores", scores_case, ("normal",))
