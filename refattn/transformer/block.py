"""One block of a decoder-only transformer: its norms, its attention, its MLP, each passing through its hook points.

Shapes as in `refattn.transformer.forward`. ``point(name, value)`` is the hook points of one block: it returns the value
to go on with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.primitives.activations import gelu, gelu_tanh, silu
from refattn.primitives.arguments import require
from refattn.primitives.norms import rms_norm
from refattn.primitives.rotary import rope
from refattn.primitives.softmax import softmax
from refattn.transformer.hooks import OPTIONAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.transformer.config import TransformerConfig
    from refattn.transformer.hooks import Points
    from refattn.transformer.intervention import Intervention
    from refattn.transformer.weights import BlockWeights

__all__ = ["LayerSetting", "attention_output", "block_output", "hooked_norm", "mlp_output", "repeat_kv"]

_ACTIVATIONS = {"gelu_new": gelu_tanh, "gelu": gelu, "silu": silu}


class LayerSetting(NamedTuple):
    """What a block needs to know of the pass: its number, who may see whom (B or 1, T, S), angles, who intervenes."""

    config: TransformerConfig
    layer: int
    visible: np.ndarray
    angles: np.ndarray | None  # (B or 1, T, r/2)
    interventions: Sequence[Intervention]


def block_output(
    x: np.ndarray,
    weights: BlockWeights,
    past: tuple[np.ndarray, np.ndarray] | None,
    setting: LayerSetting,
    point: Points,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Add attention and MLP to the residual stream (B, T, d); return it and the keys and values (B, G, S, e) so far."""
    config = setting.config
    x = point("hook_resid_pre", x)
    h = hooked_norm(x, weights.ln1_w, weights.ln1_b, config, point, "ln1")
    attended, cache = attention_output(h, weights, past, setting, point)
    # eq: residual
    mid = x if config.parallel_residual else point("hook_resid_mid", x + attended)
    h = hooked_norm(mid, weights.ln2_w, weights.ln2_b, config, point, "ln2")
    made = mlp_output(h, weights, config, point)
    # eq: parallel
    out = x + attended + made if config.parallel_residual else mid + made
    return point("hook_resid_post", out), cache


def hooked_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, config: TransformerConfig, point: Points, name: str
) -> np.ndarray:
    """LayerNorm or RMSNorm of (B, T, d) in two steps that can be watched: the scale, and the vector before weights."""
    # eq: norm
    centred = x - np.mean(x, axis=-1, keepdims=True) if config.norm == "layer" else x  # (B, T, d)
    scale = np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + config.norm_eps)  # (B, T, 1)
    scale = point(f"{name}.hook_scale", scale)
    normalised = point(f"{name}.hook_normalized", centred / scale)  # (B, T, d)
    return np.asanyarray(normalised * weight if bias is None else normalised * weight + bias)


def attention_output(
    h: np.ndarray,
    weights: BlockWeights,
    past: tuple[np.ndarray, np.ndarray] | None,
    setting: LayerSetting,
    point: Points,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Attention of a block: (B, T, d) to (B, T, d); also the keys and values (B, G, S, e), cached ones first."""
    q, k, v = _projected(h, weights, setting, point)  # (B, H, T, e), (B, G, T, e) twice
    if past is not None:
        k, v = np.concatenate([past[0], k], axis=2), np.concatenate([past[1], v], axis=2)  # (B, G, S, e)
    z = _replaced(q, k, v, setting, point)
    if z is None:
        z = _weigh(_pattern(q, k, setting, point), v)
    z = point("attn.hook_z", np.swapaxes(z, 1, 2))  # (B, T, H, e)
    return point("hook_attn_out", _joined(z, weights, point)), (k, v)


def _projected(
    h: np.ndarray, weights: BlockWeights, setting: LayerSetting, point: Points
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    config, angles = setting.config, setting.angles
    # eq: qkv
    q, k, v = (
        _heads(h, getattr(weights, f"W_{name}"), getattr(weights, f"b_{name}")) for name in "QKV"
    )  # (B, T, H, e), (B, T, G, e) twice
    if config.qk_norm:  # before the rotation
        q = rms_norm(q, weights.q_norm, eps=config.norm_eps)
        k = rms_norm(k, weights.k_norm, eps=config.norm_eps)
    q, k, v = point("attn.hook_q", q), point("attn.hook_k", k), point("attn.hook_v", v)
    if angles is not None:
        # eq: rope
        q = point("attn.hook_rot_q", rope(q, angles[:, :, None]))
        k = point("attn.hook_rot_k", rope(k, angles[:, :, None]))
    return np.swapaxes(q, 1, 2), np.swapaxes(k, 1, 2), np.swapaxes(v, 1, 2)


def _heads(h: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return h W + b for every head: (B, T, d) with (H, d, e) to (B, T, H, e), as one product."""
    heads, d, e = weight.shape
    flat = h @ weight.swapaxes(0, 1).reshape(d, heads * e)  # (B, T, H·e)
    return np.asanyarray(flat.reshape(*h.shape[:-1], heads, e) + bias)


def _replaced(q: np.ndarray, k: np.ndarray, v: np.ndarray, setting: LayerSetting, point: Points) -> np.ndarray | None:
    """Return the output (B, H, T, e) of the first intervention that computes attention itself, if there is one."""
    mask = setting.visible[:, None]  # (B or 1, 1, T, S)
    scale = setting.config.attn_scale[setting.layer]
    for intervention in setting.interventions:
        out = intervention.attend(setting.layer, _frozen(q), _frozen(k), _frozen(v), mask, scale)
        if out is not None:
            for name in ("attn.hook_attn_scores", "attn.hook_pattern"):
                require(not point.wants(name), f"no {name} in layer {setting.layer}: an intervention attends there")
            require(out.shape == q.shape, f"attend returned shape {out.shape}, expected {q.shape}")
            return out
    return None


def _pattern(q: np.ndarray, k: np.ndarray, setting: LayerSetting, point: Points) -> np.ndarray:
    """Return the attention weights (B, H, T, S)."""
    batch, heads, t, e = q.shape
    groups, s = k.shape[1:3]
    mask = setting.visible[:, None]  # (B or 1, 1, T, S)
    # eq: scores
    grouped = q.reshape(batch, groups, heads // groups, t, e)
    scores = (grouped @ np.swapaxes(k, -1, -2)[:, :, None]).reshape(batch, heads, t, s)
    scores = np.where(mask, scores * setting.config.attn_scale[setting.layer], scores.dtype.type(-np.inf))
    for intervention in setting.interventions:
        scores = _same_shape("on_logits", intervention.on_logits(setting.layer, _frozen(scores), mask), scores)
    # eq: pattern
    weights = softmax(point("attn.hook_attn_scores", scores))
    for intervention in setting.interventions:
        weights = _same_shape("on_weights", intervention.on_weights(setting.layer, _frozen(weights)), weights)
    return point("attn.hook_pattern", weights)


def _weigh(weights: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return A V per head: (B, H, T, S) with (B, G, S, e) to (B, H, T, e)."""
    batch, heads, t, s = weights.shape
    groups, e = v.shape[1], v.shape[-1]
    # eq: z
    grouped = weights.reshape(batch, groups, heads // groups, t, s) @ v[:, :, None]
    return np.asanyarray(grouped.reshape(batch, heads, t, e))


def _joined(z: np.ndarray, weights: BlockWeights, point: Points) -> np.ndarray:
    """Return Σ_h z_h W_O[h] + b_O: (B, T, H, e) to (B, T, d)."""
    heads, e, d = weights.W_O.shape
    # eq: attn-out
    if point.wants(OPTIONAL):
        each = np.moveaxis(np.moveaxis(z, 2, 0) @ weights.W_O[:, None], 0, 2)  # (B, T, H, d)
        return np.asanyarray(np.sum(point(OPTIONAL, each), axis=2) + weights.b_O)
    flat = z.reshape(*z.shape[:2], heads * e)  # (B, T, H·e)
    return np.asanyarray(flat @ weights.W_O.reshape(heads * e, d) + weights.b_O)


def mlp_output(h: np.ndarray, weights: BlockWeights, config: TransformerConfig, point: Points) -> np.ndarray:
    """Return the MLP of a block: act(h W_in) W_out, or (act(h W_gate) ⊙ h W_in) W_out where it is gated."""
    act = _ACTIVATIONS[config.act]
    linear = h @ weights.W_in + weights.b_in  # (B, T, m)
    # eq: mlp
    if config.gated:
        gate = point("mlp.hook_pre", h @ weights.W_gate + weights.b_gate)
        hidden = act(gate) * point("mlp.hook_pre_linear", linear)
    else:
        hidden = act(point("mlp.hook_pre", linear))
    return point("hook_mlp_out", point("mlp.hook_post", hidden) @ weights.W_out + weights.b_out)


def repeat_kv(x: np.ndarray, heads: int) -> np.ndarray:
    """Repeat each key/value head for the query heads that share it: (B, G, S, e) to (B, H, S, e).

    Query head j uses key/value head j // (H/G): consecutive repeats, not tiles.
    """
    require(heads % x.shape[1] == 0, f"heads={heads} must be a multiple of the {x.shape[1]} key/value heads")
    return np.repeat(x, heads // x.shape[1], axis=1)


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _same_shape(method: str, got: np.ndarray, before: np.ndarray) -> np.ndarray:
    require(got.shape == before.shape, f"{method} returned shape {got.shape}, expected {before.shape}")
    return got
