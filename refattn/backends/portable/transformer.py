"""The decoder-only transformer in the array-API standard, from its equations by another route.

One matrix product serves all heads; the query heads of one key/value head are laid beside the tokens, so that grouped
heads need neither copies nor loops; norms multiply by a reciprocal root, SiLU and GELU go through tanh alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from refattn.backends.pointwise import gelu, gelu_tanh, layer_norm, silu
from refattn.backends.portable.rotary import rope, rope_angles, rope_frequencies
from refattn.transformer.transformer import TransformerOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refattn.transformer.weights import BlockWeights, TransformerWeights

__all__ = ["head_scores", "transformer_logits", "transformer_steps"]


class _Family(NamedTuple):
    """What a family's configuration means for the equations."""

    eps: float
    act: Callable[[Any], Any]
    theta: float | None
    rotated: int
    scaling: Mapping[str, Any] | None
    windows: list[int | None]
    scales: list[float]
    parallel: bool


def transformer_logits(
    weights: TransformerWeights,
    ids: Any,
    *,
    config: Mapping[str, Any],
    key_mask: Any = None,
    positions: Any = None,
) -> TransformerOutput:
    """Run tokens through a transformer, without a cache.

    Parameters
    ----------
    weights : TransformerWeights
        In the row convention, per head.
    ids : array of int, shape (B, T)
    config : mapping
        The contents of ``config.json``.
    key_mask : array of bool, shape (B, T), optional
    positions : array of int, shape (B, T) or (T,), optional

    Returns
    -------
    TransformerOutput
        Logits (B, T, V) and the residual stream after each block (L, B, T, d).
    """
    xp, t = array_namespace(weights.W_E), ids.shape[1]
    family = _family(config, weights)
    at = xp.arange(t, device=device(ids)) if positions is None else positions
    seen = [_visible(xp, ids, w, key_mask) for w in family.windows]  # (B or 1, T, T) each
    x, streams = _embedded(weights, ids, at), []
    for layer, block in enumerate(weights.blocks):
        past = _Past(None, None, 0)
        x, _ = _block(x, block, family, layer, at, seen[layer], past)
        streams.append(x)
    none = xp.zeros((0, *x.shape), dtype=x.dtype)
    return TransformerOutput(_logits(x, weights, family), xp.stack(streams) if streams else none)


def transformer_steps(weights: TransformerWeights, ids: Any, *, config: Mapping[str, Any], prefill: int = 1) -> Any:
    """Run the first tokens at once and the others one by one, with a cache.

    Parameters
    ----------
    weights : TransformerWeights
        In the row convention, per head.
    ids : array of int, shape (B, T)
    config : mapping
        The contents of ``config.json``.
    prefill : int
        How many tokens the first call gets.

    Returns
    -------
    array, shape (B, T, V)
        Logits.
    """
    xp, t = array_namespace(weights.W_E), ids.shape[1]
    family = _family(config, weights)
    pasts = [_Past(None, None, 0)] * len(weights.blocks)
    logits = []
    for start, end in [(0, prefill), *((n, n + 1) for n in range(prefill, t))]:
        at = xp.arange(start, end, device=device(ids))
        x = _embedded(weights, ids[:, start:end], at)
        for layer, block in enumerate(weights.blocks):
            seen = _visible(xp, ids[:, :end], family.windows[layer], None)[:, start:end, :]
            x, pasts[layer] = _block(x, block, family, layer, at, seen, pasts[layer])
        logits.append(_logits(x, weights, family))
    return xp.concat(logits, axis=1)


def head_scores(pattern: Any, kind: str, n: int) -> Any:
    """Return how much each head looks back by one token, to the copy, or behind the copy, on repeated tokens.

    Parameters
    ----------
    pattern : array, shape (..., 2n + 1, 2n + 1)
    kind : {"previous", "duplicate", "induction"}
    n : int

    Returns
    -------
    array, shape (...)
    """
    xp = array_namespace(pattern)
    back, first = {"previous": (1, 1), "duplicate": (n, n + 1), "induction": (n - 1, n + 1)}[kind]
    chosen = np.eye(2 * n + 1, k=-back) * (np.arange(2 * n + 1) >= first)[:, None]
    weight = xp.asarray(chosen / (2 * n + 1 - first), dtype=pattern.dtype, device=device(pattern))
    return xp.sum(pattern * weight, axis=(-2, -1))


class _Past(NamedTuple):
    """Keys, already rotated, and values (B, G, S, e) of earlier tokens, and how many."""

    keys: Any
    values: Any
    length: int


def _family(config: Mapping[str, Any], weights: TransformerWeights) -> _Family:
    kind, layers = config["model_type"], len(weights.blocks)
    scale = weights.blocks[0].W_Q.shape[-1] ** -0.5 if layers else 1.0
    width = weights.blocks[0].W_Q.shape[-1] if layers else 2
    scales = [scale] * layers
    if kind == "gpt2":
        first = scale if config.get("scale_attn_weights", True) else 1.0
        by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
        scales = [first / (n + 1 if by_layer else 1) for n in range(layers)]
    rope_options = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rule = rope_options.get("rope_type", rope_options.get("type", "default"))
    scaling = {k: v for k, v in rope_options.items() if k in ("factor", "low_freq_factor", "high_freq_factor")}
    if "original_max_position_embeddings" in rope_options:
        scaling["original_max"] = rope_options["original_max_position_embeddings"]
    share = rope_options.get("partial_rotary_factor", config.get("rotary_pct", 0.25)) if kind == "gpt_neox" else 1.0
    theta = rope_options.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", 1e4)))
    eps_name = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}.get(kind, "rms_norm_eps")
    default_eps = 1e-6 if eps_name == "rms_norm_eps" else 1e-5
    act = {"gpt2": "gelu_new", "gpt_neox": "gelu"}.get(kind, "silu")
    act = config.get("activation_function", config.get("hidden_act", act))
    return _Family(
        config.get(eps_name, default_eps),
        {"gelu": gelu, "silu": silu, "swish": silu}.get(act, gelu_tanh),
        None if kind == "gpt2" else theta,
        int(width * share),
        None if rule == "default" else {"type": rule, **scaling},
        [_window(config, n) for n in range(layers)],
        scales,
        kind == "gpt_neox" and config.get("use_parallel_residual", True),
    )


def _window(config: Mapping[str, Any], layer: int) -> int | None:
    kind, width = config["model_type"], config.get("sliding_window")
    if kind == "mistral":
        return width
    on = kind in ("qwen2", "qwen3") and config.get("use_sliding_window", False)
    return width if on and layer >= config.get("max_window_layers", 28) else None


def _visible(xp: Any, ids: Any, window: int | None, key_mask: Any) -> Any:
    """Return who may see whom: distances from 0 up to the window, among keys that are no padding."""
    n = ids.shape[1]
    back = np.arange(n)[:, None] - np.arange(n)
    inside = (back >= 0) & (back < (n if window is None else window))
    seen = xp.asarray(inside, device=device(ids))[None, ...]
    return seen if key_mask is None else seen & key_mask[:, None, :]


def _embedded(weights: TransformerWeights, ids: Any, at: Any) -> Any:
    xp = array_namespace(weights.W_E)
    b, t = ids.shape
    x = xp.reshape(xp.take(weights.W_E, xp.reshape(ids, (-1,)), axis=0), (b, t, weights.W_E.shape[1]))
    if weights.W_pos is None:
        return x
    placed = xp.take(weights.W_pos, xp.reshape(at, (-1,)), axis=0)
    return x + xp.reshape(placed, (*at.shape, weights.W_pos.shape[1]))


def _norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    xp = array_namespace(x)
    if bias is not None:
        return layer_norm(x, weight, bias, eps)
    return x * (xp.mean(x * x, axis=-1, keepdims=True) + eps) ** -0.5 * weight


def _block(
    x: Any, weights: BlockWeights, family: _Family, layer: int, at: Any, seen: Any, past: _Past
) -> tuple[Any, _Past]:
    written, past = _attend(_norm(x, weights.ln1_w, weights.ln1_b, family.eps), weights, family, layer, at, seen, past)
    after = x + written
    h = _norm(x if family.parallel else after, weights.ln2_w, weights.ln2_b, family.eps)
    inner = h @ weights.W_in + weights.b_in
    inner = family.act(inner) if weights.W_gate is None else family.act(h @ weights.W_gate + weights.b_gate) * inner
    return after + inner @ weights.W_out + weights.b_out, past


def _attend(
    h: Any, weights: BlockWeights, family: _Family, layer: int, at: Any, seen: Any, past: _Past
) -> tuple[Any, _Past]:
    """Return attention's output (B, T, d) and the keys and values so far."""
    xp = array_namespace(h)
    b, t, _ = h.shape
    q, k, v = (
        xp.permute_dims(_project(h, getattr(weights, f"W_{n}"), getattr(weights, f"b_{n}")), (0, 2, 1, 3))
        for n in "QKV"
    )  # (B, H, T, e), (B, G, T, e) twice
    if weights.q_norm is not None:
        q, k = _norm(q, weights.q_norm, None, family.eps), _norm(k, weights.k_norm, None, family.eps)
    if family.theta is not None:
        freqs, _ = rope_frequencies(family.rotated, theta=family.theta, scaling=family.scaling)
        angles = rope_angles(at, xp.asarray(freqs, device=device(h)))
        angles = angles if at.ndim == 1 else angles[:, None, ...]
        q, k = rope(q, angles), rope(k, angles)
    if past.length:
        k, v = xp.concat([past.keys, k], axis=2), xp.concat([past.values, v], axis=2)
    heads, (groups, s, e) = q.shape[1], k.shape[1:]
    shared = heads // groups
    q = xp.reshape(q, (b, groups, shared * t, e))  # the heads of a group, one under another
    z = q @ xp.matrix_transpose(k) * family.scales[layer]  # (B, G, shared·T, S)
    z = xp.reshape(z, (b, groups, shared, t, s))
    hidden = xp.asarray(-math.inf, dtype=z.dtype, device=device(z))
    z = xp.where(seen[:, None, None, ...], z, hidden)
    top = xp.max(z, axis=-1, keepdims=True)
    e_z = xp.exp(z - xp.where(xp.isfinite(top), top, xp.zeros_like(top)))
    total = xp.sum(e_z, axis=-1, keepdims=True)
    out = xp.reshape(e_z, (b, groups, shared * t, s)) @ v  # (B, G, shared·T, e), not yet normalised
    out = xp.reshape(out, (b, groups, shared, t, e)) / xp.where(total > 0, total, xp.ones_like(total))
    out = xp.permute_dims(xp.reshape(out, (b, heads, t, e)), (0, 2, 1, 3))
    written = xp.reshape(out, (b, t, heads * e)) @ xp.reshape(weights.W_O, (heads * e, h.shape[2])) + weights.b_O
    return written, _Past(k, v, s)


def _project(h: Any, weight: Any, bias: Any) -> Any:
    """Return (B, T, n, e) by one product: the heads' matrices side by side."""
    xp = array_namespace(h)
    n, d, e = weight.shape
    wide = xp.reshape(xp.permute_dims(weight, (1, 0, 2)), (d, n * e))
    return xp.reshape(h @ wide + xp.reshape(bias, (n * e,)), (*h.shape[:2], n, e))


def _logits(x: Any, weights: TransformerWeights, family: _Family) -> Any:
    logits = _norm(x, weights.lnf_w, weights.lnf_b, family.eps) @ weights.W_U
    return logits if weights.b_U is None else logits + weights.b_U
