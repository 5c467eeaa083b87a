"""Write a configuration as the ``config.json`` of its family, in a form that versions 4 and 5 of transformers read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import require
from refattn.transformer.config import parse_config
from refattn.transformer.layouts import LAYOUTS

if TYPE_CHECKING:
    from refattn.transformer.config import RopeConfig, TransformerConfig
    from refattn.transformer.weights import Transformer

__all__ = ["config_dict"]


def config_dict(model: Transformer, dtype: str) -> dict[str, Any]:
    """Return the contents of ``config.json``.

    Parameters
    ----------
    model : Transformer
        Its weights say whether there are biases.
    dtype : str
        Of the stored weights.

    Raises
    ------
    ValueError
        For a choice that the family cannot express.
    """
    config = model.config
    write = {"gpt2": _gpt2, "gpt_neox": _gpt_neox}.get(config.family, _llama_like)
    common = {
        "architectures": [LAYOUTS[config.family].architecture],
        "model_type": config.family,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    content = common | write(model)
    again = parse_config(content)
    for name, value in config._asdict().items():
        read = getattr(again, name)
        require(read == value, f"{config.family} cannot express {name}={value!r}, it would be read as {read!r}")
    return content


def _gpt2(model: Transformer) -> dict[str, Any]:
    config = model.config
    plain = config.attn_scale[:1] == (1.0,) and config.d_head > 1
    return {
        "n_layer": config.n_layers,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp,
        "n_positions": config.n_ctx,
        "activation_function": config.act,
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": not plain,
        "scale_attn_by_inverse_layer_idx": len(set(config.attn_scale)) > 1,
    }


def _gpt_neox(model: Transformer) -> dict[str, Any]:
    config = model.config
    return _sizes(config) | {
        "layer_norm_eps": config.norm_eps,
        "hidden_act": config.act,
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": True,
        **_rope(config, config.rope),
    }


def _llama_like(model: Transformer) -> dict[str, Any]:
    config = model.config
    attention = _has_bias(model, "b_Q", "b_K", "b_V", "b_O")
    mlp = _has_bias(model, "b_in", "b_gate", "b_out")
    if config.family != "llama":
        require(not mlp, f"{config.family} has no place for a bias in the MLP")
    if config.family == "mistral":
        require(not attention, "mistral has no place for a bias in attention")
    if config.family == "qwen2":
        require(not _has_bias(model, "b_O"), "qwen2 has no place for b_O")
    content = _sizes(config) | {
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": config.act,
        "attention_bias": attention,
        "mlp_bias": mlp,
        **_rope(config, config.rope),
    }
    return content | _windows(config)


def _windows(config: TransformerConfig) -> dict[str, Any]:
    width = next((w for w in config.window if w is not None), None)
    if config.family == "mistral":
        return {"sliding_window": width}
    if config.family == "llama":
        return {}
    kinds = ["full_attention" if w is None else "sliding_attention" for w in config.window]
    return {
        "sliding_window": width,
        "use_sliding_window": width is not None,
        "layer_types": kinds,
        "max_window_layers": kinds.index("sliding_attention") if width else config.n_layers,
    }


def _sizes(config: TransformerConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_mlp,
        "max_position_embeddings": config.n_ctx,
    }


def _rope(config: TransformerConfig, rope: RopeConfig | None) -> dict[str, Any]:
    require(rope is not None, f"{config.family} needs rotary positions")
    assert rope is not None
    scaling: dict[str, Any] = {"rope_type": "default"}
    for key, value in rope.scaling:
        scaling[{"type": "rope_type", "original_max": "original_max_position_embeddings"}.get(key, key)] = value
    share = rope.dim / config.d_head
    parameters = scaling | {"rope_theta": rope.theta}
    if config.family == "gpt_neox":
        parameters["partial_rotary_factor"] = share
        return {"rope_parameters": parameters, "rotary_emb_base": rope.theta, "rotary_pct": share}
    old = {"rope_scaling": scaling if rope.scaling else None}
    return {"rope_parameters": parameters, "rope_theta": rope.theta, **old}


def _has_bias(model: Transformer, *names: str) -> bool:
    return any(np.any(getattr(block, name)) for block in model.weights.blocks for name in names)
