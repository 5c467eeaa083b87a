"""Small random models of every family, and the configurations they come from."""

import numpy as np

from refattn.transformer.config import parse_config
from refattn.transformer.weights import random_transformer

_LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "vocab_size": 29,
    "max_position_embeddings": 32,
}
_ROPE3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 24, "vocab_size": 29}
_NEOX = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 29,
}

CONFIGS = {
    "gpt2": {"model_type": "gpt2", **_GPT2},
    "gpt2_inverse_layer": {
        "model_type": "gpt2",
        **_GPT2,
        "n_inner": 24,
        "scale_attn_by_inverse_layer_idx": True,
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-3,
    },
    "gpt2_unscaled": {"model_type": "gpt2", **_GPT2, "scale_attn_weights": False},
    "neox": {"model_type": "gpt_neox", **_NEOX, "rope_parameters": {"partial_rotary_factor": 0.25}},
    "neox_sequential": {"model_type": "gpt_neox", **_NEOX, "use_parallel_residual": False, "rotary_pct": 1.0},
    "llama": {"model_type": "llama", **_LLAMA},
    "llama3": {"model_type": "llama", **_LLAMA, "rope_parameters": _ROPE3, "tie_word_embeddings": True},
    "llama_linear": {"model_type": "llama", **_LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}, "head_dim": 6},
    "mistral": {"model_type": "mistral", **_LLAMA, "sliding_window": 3},
    "qwen2": {
        "model_type": "qwen2",
        **_LLAMA,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 6, "tie_word_embeddings": True},
}


def model(name, *, seed=0, scale=1.5, dtype=np.float64):
    """Return a random model that its family can express: biases only where its checkpoints may have them."""
    drawn = random_transformer(parse_config(CONFIGS[name]), np.random.default_rng(seed), scale=scale, dtype=dtype)
    family = drawn.config.family
    none = {
        "mistral": ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_gate", "b_out"),
        "qwen2": ("b_O", "b_in", "b_gate", "b_out"),
        "qwen3": ("b_in", "b_gate", "b_out"),
    }.get(family, ())
    blocks = tuple(
        block._replace(**{field: np.zeros_like(getattr(block, field)) for field in none})
        for block in drawn.weights.blocks
    )
    return drawn._replace(weights=drawn.weights._replace(blocks=blocks))


def tokens(shape, *, seed=1, vocabulary=29):
    return np.random.default_rng(seed).integers(0, vocabulary, shape)
