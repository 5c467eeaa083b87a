"""OAT in the array-API standard, derived by another route than the reference.

All heads attend at once; a key bias adds the same number to every score of a row and is dropped; averages are divided
by the sum of their weights afterwards. The pointer's heads and their read-out are one product: the read-out weights are
folded into the steps, whose maps for all heads stand side by side.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

__all__ = ["oat_encode", "oat_forward", "object_attention", "object_position_embedding", "scanpath_loss"]

EPS = 1e-5
SPECIAL_ROWS = 4


def oat_forward(
    src_appearance: Any,
    src_coords: Any,
    tgt_appearance: Any,
    tgt_coords: Any,
    table: Any,
    weights: Any,
    *,
    n_heads: int,
    d_k: float,
    tgt_pad_mask: Any = None,
) -> Any:
    """Return the logits of every next fixation."""
    xp = array_namespace(src_appearance, tgt_appearance, table)
    dim = src_appearance.shape[-1]
    src = xp.concat([src_appearance, object_position_embedding(src_coords, table, dim)], axis=-1)
    tgt = xp.concat([tgt_appearance, object_position_embedding(tgt_coords, table, dim)], axis=-1)
    T, E = tgt.shape[-2:]
    x = tgt + xp.asarray(_clock(T, E), dtype=tgt.dtype, device=device(tgt))
    memory = oat_encode(src, weights.encoder, n_heads=n_heads)
    visible = xp.asarray(np.tri(T, dtype=bool), device=device(tgt))
    if tgt_pad_mask is not None:
        visible = xp.logical_and(visible, xp.logical_not(tgt_pad_mask[..., None, None, :]))  # (..., 1, T, T)
    for layer in weights.decoder:
        x = _norm(x + _attend(x, x, layer.self_attention, n_heads, visible), layer.norm1_w, layer.norm1_b)
        x = _norm(x + _attend(x, memory, layer.cross_attention, n_heads), layer.norm2_w, layer.norm2_b)
        x = _norm(x + _feed_forward(x, layer), layer.norm3_w, layer.norm3_b)
    return object_attention(memory, x, weights.heads, weights.readout_w, weights.readout_b, d_k=d_k)


def oat_encode(tokens: Any, layers: Any, *, n_heads: int) -> Any:
    """Return the encoded objects and target."""
    x = tokens
    for layer in layers:
        x = _norm(x + _attend(x, x, layer.attention, n_heads), layer.norm1_w, layer.norm1_b)
        x = _norm(x + _feed_forward(x, layer), layer.norm2_w, layer.norm2_b)
    return x


def object_attention(
    encoder_out: Any, decoder_out: Any, heads: Any, readout_w: Any = None, readout_b: Any = None, *, d_k: float
) -> Any:
    """Return the logits of pointing at each object, the end and padding."""
    xp = array_namespace(encoder_out, decoder_out)
    several = len(heads) > 1
    steps = [decoder_out @ head.w_dec + head.b_dec for head in heads]
    if several:
        steps = [readout_w[h] * step for h, step in enumerate(steps)]
    objects = [encoder_out @ head.w_enc + head.b_enc for head in heads]
    asked = xp.concat(steps, axis=-1) / math.sqrt(d_k)  # (..., T, M·E)
    scores = asked @ xp.matrix_transpose(xp.concat(objects, axis=-1))  # (..., T, n + 1)
    scores = xp.concat([scores, xp.zeros_like(scores[..., :1])], axis=-1)
    return scores + readout_b if several else scores


def object_position_embedding(coords: Any, table: Any, dim: int) -> Any:
    """Return the first numbers of the table's rows for row, column and flag, fetched in one go."""
    xp = array_namespace(coords, table)
    *lead, _ = coords.shape
    if len(table.shape) == 4:
        _, Y, Z, _ = table.shape
        flat = (coords[..., 0] * Y + coords[..., 1]) * Z + coords[..., 2]
        table = xp.reshape(xp.concat([table, xp.zeros_like(table[:1, ...])]), (-1, table.shape[3]))
    else:
        below = xp.zeros((SPECIAL_ROWS, table.shape[1]), dtype=table.dtype, device=device(table))
        flat, table = coords, xp.concat([table, below])
    rows = xp.take(table, xp.reshape(flat, (-1,)), axis=0)
    count = 1 if flat.shape == tuple(lead) else 3
    return xp.reshape(rows, (*lead, count * table.shape[1]))[..., :dim]


def scanpath_loss(logits: Any, targets: Any, pad_index: int) -> Any:
    """Return the mean cross-entropy of the targets that are not padding."""
    xp = array_namespace(logits, targets)
    columns = xp.asarray(np.arange(logits.shape[-1]), device=device(logits))
    kept = targets != pad_index
    top = xp.max(logits, axis=-1, keepdims=True)
    level = xp.log(xp.sum(xp.exp(logits - top), axis=-1)) + top[..., 0]
    chosen = xp.sum(xp.where(columns == targets[..., None], logits, xp.zeros_like(logits)), axis=-1)
    total = xp.sum(xp.where(kept, level - chosen, xp.zeros_like(level)))
    return total / xp.sum(xp.astype(kept, logits.dtype))


@cache
def _clock(T: int, E: int) -> np.ndarray:
    """Return sines and cosines of the time as the parts of one turning number, (T, E)."""
    speed = np.exp(-np.log(10000.0) * np.arange(0, E, 2) / E)
    turning = np.exp(1j * np.arange(T)[:, None] * speed)
    return np.stack([turning.imag, turning.real], axis=-1).reshape(T, -1)[:, :E]


def _attend(x: Any, memory: Any, w: Any, n_heads: int, visible: Any = None) -> Any:
    q = (x @ w.w_q + w.b_q) / math.sqrt(x.shape[-1] // n_heads)
    q, k, v = (_split(part, n_heads) for part in (q, memory @ w.w_k, memory @ w.w_v + w.b_v))
    return _averaged(q, k, v, visible) @ w.w_o + w.b_o


def _split(x: Any, n_heads: int) -> Any:
    """Give the heads an axis of their own, (..., H, T, E/H)."""
    xp = array_namespace(x)
    *lead, E = x.shape
    axes = list(range(len(lead) + 2))
    axes[-3], axes[-2] = axes[-2], axes[-3]
    return xp.permute_dims(xp.reshape(x, (*lead, n_heads, E // n_heads)), tuple(axes))


def _averaged(q: Any, k: Any, v: Any, visible: Any) -> Any:
    """Return the values' averages, heads side by side, (..., T, E)."""
    xp = array_namespace(q)
    s = q @ xp.matrix_transpose(k)  # (..., H, T, S)
    if visible is None:
        e = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
        out = (e @ v) / xp.sum(e, axis=-1, keepdims=True)
    else:
        hidden = xp.where(visible, s, xp.asarray(-math.inf, dtype=s.dtype, device=device(s)))
        top = xp.max(hidden, axis=-1, keepdims=True)
        top = xp.where(top == -math.inf, xp.zeros_like(top), top)
        e = xp.exp(hidden - top)
        total = xp.sum(e, axis=-1, keepdims=True)
        out = (e @ v) / xp.where(total == 0, xp.ones_like(total), total)  # who sees nothing gets 0 / 1
    axes = list(range(len(out.shape)))
    axes[-3], axes[-2] = axes[-2], axes[-3]
    out = xp.permute_dims(out, tuple(axes))  # (..., T, H, E/H)
    return xp.reshape(out, (*out.shape[:-2], out.shape[-2] * out.shape[-1]))


def _norm(x: Any, weight: Any, bias: Any) -> Any:
    xp = array_namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    power = xp.mean(centred * centred, axis=-1, keepdims=True) + EPS
    return centred * (weight / xp.sqrt(power)) + bias


def _feed_forward(x: Any, layer: Any) -> Any:
    xp = array_namespace(x)
    inner = x @ layer.w_1 + layer.b_1
    return xp.where(inner > 0, inner, xp.zeros_like(inner)) @ layer.w_2 + layer.b_2
