"""How each family names and lays out its tensors in a checkpoint, and how they become weights in the row convention.

A layout is a table: the name in the file, the weights that it holds, the shape it is stored in, and the two functions
that take it to the row convention y = x @ W and back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.transformer.config import TransformerConfig as Config

    Shape = Callable[[Config], tuple[int, ...]]

__all__ = ["LAYOUTS", "Layout", "Tensor"]


class Tensor(NamedTuple):
    """One tensor of a checkpoint.

    Attributes
    ----------
    name : str
        In the file, without the family's prefix; ``{i}`` is the layer.
    fields : tuple of str
        The weights it holds, by their names in `BlockWeights` or `TransformerWeights`.
    shape : callable
        Configuration to stored shape.
    read : callable
        ``(stored, config) -> tuple of arrays``, one for each field.
    write : callable
        ``(arrays, config) -> stored``, its inverse.
    optional : bool
        Whether a checkpoint may leave it out: a bias is then 0, an unembedding the transposed embedding.
    """

    name: str
    fields: tuple[str, ...]
    shape: Shape
    read: Callable[[np.ndarray, Config], tuple[np.ndarray, ...]]
    write: Callable[[tuple[Any, ...], Config], np.ndarray]
    optional: bool = False


class Layout(NamedTuple):
    """The tensors of a family: the prefix of its names, those outside the blocks, those of a block, what to ignore."""

    architecture: str
    prefix: str
    stem: tuple[Tensor, ...]
    block: tuple[Tensor, ...]
    unembedding: str
    ignored: str = r"(?!)"  # matches nothing


def _same(name: str, field: str, shape: Shape, *, optional: bool = False) -> Tensor:
    return Tensor(name, (field,), shape, lambda stored, _: (stored,), lambda arrays, _: arrays[0], optional)


def _linear(name: str, field: str, shape: Shape, *, optional: bool = False) -> Tensor:
    """Return a weight that PyTorch's Linear stores as (out, in)."""
    return Tensor(name, (field,), shape, lambda stored, _: (stored.T,), lambda arrays, _: arrays[0].T, optional)


def _heads_in(name: str, field: str, count: str) -> Tensor:
    """Return a projection into heads stored as (n·e, d): to (n, d, e)."""

    def shape(c: Config) -> tuple[int, ...]:
        return getattr(c, count) * c.d_head, c.d_model

    def read(stored: np.ndarray, c: Config) -> tuple[np.ndarray]:
        return (stored.reshape(getattr(c, count), c.d_head, c.d_model).swapaxes(1, 2),)

    return Tensor(name, (field,), shape, read, lambda arrays, c: arrays[0].swapaxes(1, 2).reshape(shape(c)))


def _heads_bias(name: str, field: str, count: str, *, optional: bool) -> Tensor:
    """Return the bias of a projection into heads stored as (n·e,): to (n, e)."""
    return Tensor(
        name,
        (field,),
        lambda c: (getattr(c, count) * c.d_head,),
        lambda stored, c: (stored.reshape(getattr(c, count), c.d_head),),
        lambda arrays, _: arrays[0].reshape(-1),
        optional,
    )


def _heads_out(name: str) -> Tensor:
    """Return the output projection stored as (d, H·e): to (H, e, d)."""
    return Tensor(
        name,
        ("W_O",),
        lambda c: (c.d_model, c.n_heads * c.d_head),
        lambda stored, c: (stored.T.reshape(c.n_heads, c.d_head, c.d_model),),
        lambda arrays, c: arrays[0].reshape(c.n_heads * c.d_head, c.d_model).T,
    )


def _d(c: Config) -> tuple[int, ...]:
    return (c.d_model,)


def _m(c: Config) -> tuple[int, ...]:
    return (c.d_mlp,)


def _vd(c: Config) -> tuple[int, ...]:
    return c.vocab_size, c.d_model


def _dm(c: Config) -> tuple[int, ...]:
    return c.d_model, c.d_mlp


def _md(c: Config) -> tuple[int, ...]:
    return c.d_mlp, c.d_model


def _norm(name: str, field: str) -> tuple[Tensor, Tensor]:
    return _same(f"{name}.weight", f"{field}_w", _d), _same(f"{name}.bias", f"{field}_b", _d)


_QKV = ("W_Q", "W_K", "W_V"), ("b_Q", "b_K", "b_V")

# columns [Q | K | V], each (H, e); already x @ W
_GPT2_QKV = Tensor(
    "h.{i}.attn.c_attn.weight",
    _QKV[0],
    lambda c: (c.d_model, 3 * c.d_model),
    lambda stored, c: tuple(np.moveaxis(stored.reshape(c.d_model, 3, c.n_heads, c.d_head), 0, 2)),
    lambda arrays, c: np.moveaxis(np.stack(arrays), 2, 0).reshape(c.d_model, 3 * c.d_model),
)
_GPT2_QKV_BIAS = Tensor(
    "h.{i}.attn.c_attn.bias",
    _QKV[1],
    lambda c: (3 * c.d_model,),
    lambda stored, c: tuple(stored.reshape(3, c.n_heads, c.d_head)),
    lambda arrays, _: np.stack(arrays).reshape(-1),
)
_GPT2_OUT = Tensor(
    "h.{i}.attn.c_proj.weight",
    ("W_O",),
    lambda c: (c.d_model, c.d_model),
    lambda stored, c: (stored.reshape(c.n_heads, c.d_head, c.d_model),),
    lambda arrays, c: arrays[0].reshape(c.d_model, c.d_model),
)
_GPT2 = Layout(
    "GPT2LMHeadModel",
    "transformer.",
    (
        _same("wte.weight", "W_E", _vd),
        _same("wpe.weight", "W_pos", lambda c: (c.n_ctx, c.d_model)),
        *_norm("ln_f", "lnf"),
    ),
    (
        *_norm("h.{i}.ln_1", "ln1"),
        _GPT2_QKV,
        _GPT2_QKV_BIAS,
        _GPT2_OUT,
        _same("h.{i}.attn.c_proj.bias", "b_O", _d),
        *_norm("h.{i}.ln_2", "ln2"),
        _same("h.{i}.mlp.c_fc.weight", "W_in", _dm),
        _same("h.{i}.mlp.c_fc.bias", "b_in", _m),
        _same("h.{i}.mlp.c_proj.weight", "W_out", _md),
        _same("h.{i}.mlp.c_proj.bias", "b_out", _d),
    ),
    "lm_head.weight",
    r"h\.\d+\.attn\.(masked_)?bias",
)

# per head [q (e) | k (e) | v (e)]
_NEOX_QKV = Tensor(
    "layers.{i}.attention.query_key_value.weight",
    _QKV[0],
    lambda c: (3 * c.d_model, c.d_model),
    lambda stored, c: tuple(np.moveaxis(stored.reshape(c.n_heads, 3, c.d_head, c.d_model), 1, 0).swapaxes(2, 3)),
    lambda arrays, c: np.stack([a.swapaxes(1, 2) for a in arrays], axis=1).reshape(3 * c.d_model, c.d_model),
)
_NEOX_QKV_BIAS = Tensor(
    "layers.{i}.attention.query_key_value.bias",
    _QKV[1],
    lambda c: (3 * c.d_model,),
    lambda stored, c: tuple(np.moveaxis(stored.reshape(c.n_heads, 3, c.d_head), 1, 0)),
    lambda arrays, _: np.stack(arrays, axis=1).reshape(-1),
    optional=True,
)
_NEOX = Layout(
    "GPTNeoXForCausalLM",
    "gpt_neox.",
    (_same("embed_in.weight", "W_E", _vd), *_norm("final_layer_norm", "lnf")),
    (
        *_norm("layers.{i}.input_layernorm", "ln1"),
        _NEOX_QKV,
        _NEOX_QKV_BIAS,
        _heads_out("layers.{i}.attention.dense.weight"),
        _same("layers.{i}.attention.dense.bias", "b_O", _d, optional=True),
        *_norm("layers.{i}.post_attention_layernorm", "ln2"),
        _linear("layers.{i}.mlp.dense_h_to_4h.weight", "W_in", _md),
        _same("layers.{i}.mlp.dense_h_to_4h.bias", "b_in", _m),
        _linear("layers.{i}.mlp.dense_4h_to_h.weight", "W_out", _dm),
        _same("layers.{i}.mlp.dense_4h_to_h.bias", "b_out", _d),
    ),
    "embed_out.weight",
    r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
)


def _llama(architecture: str, *, qk_norm: bool = False, bias_optional: bool = True) -> Layout:
    attention = "layers.{i}.self_attn."

    def e(c: Config) -> tuple[int, ...]:
        return (c.d_head,)

    norms = (
        (_same(f"{attention}q_norm.weight", "q_norm", e), _same(f"{attention}k_norm.weight", "k_norm", e))
        if qk_norm
        else ()
    )
    return Layout(
        architecture,
        "model.",
        (_same("embed_tokens.weight", "W_E", _vd), _same("norm.weight", "lnf_w", _d)),
        (
            _same("layers.{i}.input_layernorm.weight", "ln1_w", _d),
            _heads_in(f"{attention}q_proj.weight", "W_Q", "n_heads"),
            _heads_in(f"{attention}k_proj.weight", "W_K", "n_kv_heads"),
            _heads_in(f"{attention}v_proj.weight", "W_V", "n_kv_heads"),
            _heads_bias(f"{attention}q_proj.bias", "b_Q", "n_heads", optional=bias_optional),
            _heads_bias(f"{attention}k_proj.bias", "b_K", "n_kv_heads", optional=bias_optional),
            _heads_bias(f"{attention}v_proj.bias", "b_V", "n_kv_heads", optional=bias_optional),
            *norms,
            _heads_out(f"{attention}o_proj.weight"),
            _same(f"{attention}o_proj.bias", "b_O", _d, optional=True),
            _same("layers.{i}.post_attention_layernorm.weight", "ln2_w", _d),
            _linear("layers.{i}.mlp.gate_proj.weight", "W_gate", _md),
            _same("layers.{i}.mlp.gate_proj.bias", "b_gate", _m, optional=True),
            _linear("layers.{i}.mlp.up_proj.weight", "W_in", _md),
            _same("layers.{i}.mlp.up_proj.bias", "b_in", _m, optional=True),
            _linear("layers.{i}.mlp.down_proj.weight", "W_out", _dm),
            _same("layers.{i}.mlp.down_proj.bias", "b_out", _d, optional=True),
        ),
        "lm_head.weight",
        r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    )


LAYOUTS = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _llama("LlamaForCausalLM"),
    "mistral": _llama("MistralForCausalLM"),
    "qwen2": _llama("Qwen2ForCausalLM", bias_optional=False),
    "qwen3": _llama("Qwen3ForCausalLM", qk_norm=True),
}
"""The layout of each family, by its ``model_type``."""
