"""What a decoder-only transformer is made of, read from the ``config.json`` of a checkpoint, and written to one.

Families: GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Qwen2 and Qwen3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from refattn.primitives.arguments import require, require_one_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FAMILIES", "RopeConfig", "TransformerConfig", "parse_config"]


class RopeConfig(NamedTuple):
    """How positions rotate: the base θ, how many dimensions of a head turn, and the rule for longer contexts.

    ``scaling`` is what `refattn.primitives.rotary.rope_frequencies` takes, as sorted pairs; empty for none.
    """

    theta: float
    dim: int
    scaling: tuple[tuple[str, float | str], ...] = ()


class TransformerConfig(NamedTuple):
    """The shape of a decoder-only transformer and the choices of its family.

    Attributes
    ----------
    family : str
        One of `FAMILIES`.
    n_layers, d_model, n_heads, n_kv_heads, d_head, d_mlp, vocab_size, n_ctx : int
        L, d, H, G, e, m, V and the longest sequence. G divides H.
    norm : str
        ``layer`` or ``rms``.
    norm_eps : float
        Added to the variance or mean square.
    act : str
        ``gelu_new``, ``gelu`` or ``silu``.
    gated : bool
        Whether the MLP multiplies act(h W_gate) into h W_in.
    positions : str
        ``learned`` or ``rope``.
    rope : RopeConfig or None
        None for learned positions.
    attn_scale : tuple of float, length L
        What multiplies q·k in each layer.
    window : tuple of (int or None), length L
        How many keys a query sees in each layer, itself included; None = all before it.
    qk_norm : bool
        Whether queries and keys are RMS-normalised per head before rotation.
    parallel_residual : bool
        Whether attention and MLP read the same residual stream.
    tied : bool
        Whether the unembedding is the transposed embedding.
    """

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    vocab_size: int
    n_ctx: int
    norm: str
    norm_eps: float
    act: str
    gated: bool
    positions: str
    rope: RopeConfig | None
    attn_scale: tuple[float, ...]
    window: tuple[int | None, ...]
    qk_norm: bool = False
    parallel_residual: bool = False
    tied: bool = False


_ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
}


def parse_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Read a configuration as ``transformers`` writes it, of version 4 or 5.

    Parameters
    ----------
    config : mapping
        The contents of ``config.json``.

    Returns
    -------
    TransformerConfig

    Raises
    ------
    ValueError
        For an unknown ``model_type``, activation or ``rope_type``, a missing key, heads that are not a multiple of the
        key/value heads, or sizes that are not positive.

    Notes
    -----
    ``rope_parameters`` (version 5) is read if it is there, ``rope_theta`` and ``rope_scaling`` (version 4) if not. Be
    warned when you compare: transformers 4.57 ignores ``rope_parameters`` without a word and takes θ = 10000.
    """
    require("model_type" in config, "config lacks model_type")
    require_one_of("model_type", config["model_type"], FAMILIES)
    parsed = FAMILIES[config["model_type"]](config)
    _check(parsed)
    return parsed


def _gpt2(config: Mapping[str, Any]) -> TransformerConfig:
    layers, d, heads = (_need(config, key) for key in ("n_layer", "n_embd", "n_head"))
    scale = (d // max(heads, 1)) ** -0.5 if config.get("scale_attn_weights", True) else 1.0
    by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
    return TransformerConfig(
        family="gpt2",
        n_layers=layers,
        d_model=d,
        n_heads=heads,
        n_kv_heads=heads,
        d_head=d // max(heads, 1),
        d_mlp=config.get("n_inner") or 4 * d,
        vocab_size=_need(config, "vocab_size"),
        n_ctx=_need(config, "n_positions"),
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        act=_activation(config.get("activation_function", "gelu_new")),
        gated=False,
        positions="learned",
        rope=None,
        attn_scale=tuple(scale / (layer + 1) if by_layer else scale for layer in range(layers)),
        window=(None,) * layers,
        tied=config.get("tie_word_embeddings", True),
    )


def _gpt_neox(config: Mapping[str, Any]) -> TransformerConfig:
    layers, d, heads = (_need(config, key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    width = d // max(heads, 1)
    return TransformerConfig(
        family="gpt_neox",
        n_layers=layers,
        d_model=d,
        n_heads=heads,
        n_kv_heads=heads,
        d_head=width,
        d_mlp=_need(config, "intermediate_size"),
        vocab_size=_need(config, "vocab_size"),
        n_ctx=config.get("max_position_embeddings", 2048),
        norm="layer",
        norm_eps=config.get("layer_norm_eps", 1e-5),
        act=_activation(config.get("hidden_act", "gelu")),
        gated=False,
        positions="rope",
        rope=_rope(config, width),
        attn_scale=(width**-0.5,) * layers,
        window=(None,) * layers,
        parallel_residual=config.get("use_parallel_residual", True),
        tied=config.get("tie_word_embeddings", False),
    )


def _llama_like(config: Mapping[str, Any]) -> TransformerConfig:
    layers, d, heads = (_need(config, key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    width = config.get("head_dim") or d // max(heads, 1)
    family = config["model_type"]
    return TransformerConfig(
        family=family,
        n_layers=layers,
        d_model=d,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=width,
        d_mlp=_need(config, "intermediate_size"),
        vocab_size=_need(config, "vocab_size"),
        n_ctx=config.get("max_position_embeddings", 2048),
        norm="rms",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        act=_activation(config.get("hidden_act", "silu")),
        gated=True,
        positions="rope",
        rope=_rope(config, width),
        attn_scale=(width**-0.5,) * layers,
        window=tuple(_window(config, layer) for layer in range(layers)),
        qk_norm=family == "qwen3",
        tied=config.get("tie_word_embeddings", False),
    )


FAMILIES: dict[str, Callable[[Mapping[str, Any]], TransformerConfig]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama_like,
    "mistral": _llama_like,
    "qwen2": _llama_like,
    "qwen3": _llama_like,
}
"""How the configuration of each family is read, by its ``model_type``."""


def _need(config: Mapping[str, Any], key: str) -> int:
    require(isinstance(config.get(key), int), f"config: {key}={config.get(key)!r} must be an integer")
    return int(config[key])


def _activation(name: str) -> str:
    require_one_of("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]


def _window(config: Mapping[str, Any], layer: int) -> int | None:
    """Return the sliding window of a layer: Mistral's everywhere, Qwen's where it is switched on, Llama's nowhere."""
    width: int | None = config.get("sliding_window")
    if config["model_type"] == "mistral":
        return width
    if not config["model_type"].startswith("qwen"):
        return None
    kinds = config.get("layer_types")
    slides = config.get("use_sliding_window", False) and layer >= config.get("max_window_layers", 28)
    return width if (kinds[layer] == "sliding_attention" if kinds else slides) else None


_SCALINGS = {"default": (), "linear": ("factor",)}
_SCALINGS["llama3"] = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_RENAMED = {"original_max_position_embeddings": "original_max"}


def _rope(config: Mapping[str, Any], width: int) -> RopeConfig:
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = given.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or 10000.0
    kind = given.get("rope_type") or given.get("type") or "default"
    require(kind in _SCALINGS, f"unsupported rope_type {kind!r}: it is not one of {', '.join(_SCALINGS)}")
    share = given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or config.get("rotary_pct")
    if share is None:
        share = 0.25 if config["model_type"] == "gpt_neox" else 1.0
    scaling: dict[str, float | str] = {} if kind == "default" else {"type": kind}
    for key in _SCALINGS[kind]:
        require(key in given, f"rope_type {kind!r} lacks {key}")
        scaling[_RENAMED.get(key, key)] = given[key]
    return RopeConfig(float(theta), int(width * share), tuple(sorted(scaling.items())))


def _check(config: TransformerConfig) -> None:
    sizes = ("d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "vocab_size", "n_ctx")
    for name in sizes:
        require(getattr(config, name) >= 1, f"{name}={getattr(config, name)} must be at least 1")
    require(config.n_layers >= 0, f"n_layers={config.n_layers} must not be negative")
    heads, groups = config.n_heads, config.n_kv_heads
    require(heads % groups == 0, f"n_heads={heads} must be a multiple of n_kv_heads={groups}")
    if config.family in ("gpt2", "gpt_neox"):
        require(config.d_model % heads == 0, f"d_model={config.d_model} must be a multiple of n_heads={heads}")
    for width in config.window:
        require(width is None or width >= 1, f"sliding_window={width} must be at least 1")
    if config.rope is not None:
        require(config.rope.dim % 2 == 0, f"{config.rope.dim} rotated dimensions must be even, they turn in pairs")
