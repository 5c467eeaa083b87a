"""OAT once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["encoding", "forwarding", "looking_up", "losing", "pointing"]


def place(row: np.ndarray, col: np.ndarray, flag: np.ndarray) -> Any:
    """Put the rows of the table for row, column and flag side by side."""
    return np.concatenate([row, col, flag], axis=-1)


def rows_of(table: np.ndarray, index: np.ndarray) -> Any:
    """Fetch rows of the table; below it stand zeros."""
    below = np.zeros((4, *table.shape[1:]))
    return np.concatenate([table, below])[index]


def cut(wide: np.ndarray, dim: int) -> Any:
    """Keep the first numbers."""
    return wide[..., :dim]


def object_token(appearance: np.ndarray, position: np.ndarray) -> Any:
    """Put appearance and position of an object side by side."""
    return np.concatenate([appearance, position], axis=-1)


def clock(T: int, E: int) -> Any:
    """Tell the time in sines and cosines."""
    angle = np.arange(T)[:, None] * 10000.0 ** (-(np.arange(E) // 2 * 2) / E)
    return np.where(np.arange(E) % 2 == 0, np.sin(angle), np.cos(angle))


def channels(E: int, H: int) -> Any:
    """Return the channels of each head, (H, E/H)."""
    return np.arange(E).reshape(H, E // H)


def temper(scores: np.ndarray, d: int, _E: int) -> Any:
    """Divide by the root of a head's width."""
    return scores / math.sqrt(d)


def visible(T: int) -> Any:
    """Let step t look at steps up to t."""
    return np.arange(T)[:, None] >= np.arange(T)


def attended(pad_mask: np.ndarray) -> Any:
    """Return the steps that may be looked at."""
    return ~pad_mask


def scene(T: int, n: int) -> Any:
    """Let every object look at every other."""
    return np.ones((T, n), dtype=bool)


def add(x: np.ndarray, y: np.ndarray, norm: Callable[[Any], Any]) -> Any:
    """Add what was found, then normalise."""
    return norm(x + y)


def rectify(x: np.ndarray) -> Any:
    """Drop what is negative."""
    return np.maximum(x, 0.0)


def spread(x: np.ndarray) -> Any:
    """Return the standard deviation of each token."""
    return np.sqrt(np.var(x, axis=-1, keepdims=True) + 1e-5)


def context(_x: np.ndarray, memory: np.ndarray) -> Any:
    """Return what a step of the scanpath looks at besides the path: the encoded objects."""
    return memory


def compared(d: np.ndarray, e: np.ndarray, head: Any) -> Any:
    """Compare each step with each object."""
    return np.einsum("...tc,...ic->...ti", d @ head.w_dec + head.b_dec, e @ head.w_enc + head.b_enc)


def shrunk(a: np.ndarray, d_k: float) -> Any:
    """Divide the scores."""
    return a / math.sqrt(d_k)


def read_out(a: np.ndarray, w: np.ndarray, b: np.ndarray) -> Any:
    """Combine the heads, (M, ..., T, n + 1)."""
    return np.einsum("m...,m->...", a, w) + b if len(a) > 1 else a[0]


def padding(a: np.ndarray, b: np.ndarray) -> Any:
    """Return the score of padding."""
    return b if len(a) > 1 else 0.0


def surprise(logits: np.ndarray, target: np.ndarray) -> Any:
    """Return minus the logarithm of the probability of what came, step by step."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]


def average(losses: np.ndarray, kept: np.ndarray) -> Any:
    """Average over the steps that count."""
    return (losses * kept).sum() / kept.sum()


def counts(targets: np.ndarray, pad_index: int) -> Any:
    """Return which steps count."""
    return targets != pad_index


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    place: Callable[..., Any] = place
    rows_of: Callable[..., Any] = rows_of
    cut: Callable[..., Any] = cut
    object_token: Callable[..., Any] = object_token
    scanpath_token: Callable[..., Any] = object_token
    object_clock: Callable[..., Any] = lambda _n, _E: 0.0
    clock: Callable[..., Any] = clock
    channels: Callable[..., Any] = channels
    temper: Callable[..., Any] = temper
    visible: Callable[..., Any] = visible
    attended: Callable[..., Any] = attended
    scene: Callable[..., Any] = scene
    add: Callable[..., Any] = add
    rectify: Callable[..., Any] = rectify
    spread: Callable[..., Any] = spread
    context: Callable[..., Any] = context
    compared: Callable[..., Any] = compared
    shrunk: Callable[..., Any] = shrunk
    read_out: Callable[..., Any] = read_out
    padding: Callable[..., Any] = padding
    surprise: Callable[..., Any] = surprise
    average: Callable[..., Any] = average
    counts: Callable[..., Any] = counts


def _attend(steps: Steps, x: Any, seen: Any, w: Any, H: int, mask: Any) -> Any:
    E = x.shape[-1]
    q, k, v = x @ w.w_q + w.b_q, seen @ w.w_k + w.b_k, seen @ w.w_v + w.b_v
    out = np.zeros_like(q)
    for own in steps.channels(E, H):
        s = steps.temper(np.einsum("...tc,...ic->...ti", q[..., own], k[..., own]), E // H, E)
        s = np.where(mask, s, -np.inf)
        top = s.max(axis=-1, keepdims=True, initial=-1e300)
        e = np.exp(s - top)
        out[..., own] = e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300) @ v[..., own]
    return out @ w.w_o + w.b_o


def _norm(steps: Steps, weight: Any, bias: Any) -> Callable[[Any], Any]:
    return lambda x: (x - x.mean(axis=-1, keepdims=True)) / steps.spread(x) * weight + bias


def _feed(steps: Steps, x: Any, layer: Any) -> Any:
    return steps.rectify(x @ layer.w_1 + layer.b_1) @ layer.w_2 + layer.b_2


def _encode(steps: Steps, x: Any, layers: Any, H: int) -> Any:
    mask = steps.scene(x.shape[-2], x.shape[-2])
    for layer in layers:
        x = steps.add(x, _attend(steps, x, x, layer.attention, H, mask), _norm(steps, layer.norm1_w, layer.norm1_b))
        x = steps.add(x, _feed(steps, x, layer), _norm(steps, layer.norm2_w, layer.norm2_b))
    return x


def _decode(steps: Steps, x: Any, memory: Any, layers: Any, H: int, pad_mask: Any) -> Any:
    mask = steps.visible(x.shape[-2])
    if pad_mask is not None:
        mask = mask & steps.attended(pad_mask)[..., None, :]
    for layer in layers:
        back = _attend(steps, x, x, layer.self_attention, H, mask)
        x = steps.add(x, back, _norm(steps, layer.norm1_w, layer.norm1_b))
        out = _attend(steps, x, steps.context(x, memory), layer.cross_attention, H, np.array(True))
        x = steps.add(x, out, _norm(steps, layer.norm2_w, layer.norm2_b))
        x = steps.add(x, _feed(steps, x, layer), _norm(steps, layer.norm3_w, layer.norm3_b))
    return x


def _position(steps: Steps, coords: Any, table: Any, dim: int) -> Any:
    if table.ndim == 4:
        row, col, flag = np.moveaxis(coords, -1, 0)
        return np.concatenate([table, np.zeros_like(table[:1])])[row, col, flag][..., :dim]
    return steps.cut(steps.place(*(steps.rows_of(table, coords[..., axis]) for axis in range(3))), dim)


def _point(steps: Steps, e: Any, d: Any, heads: Any, w: Any, b: Any, d_k: float) -> Any:
    a = np.stack([steps.shrunk(steps.compared(d, e, head), d_k) for head in heads])
    out = steps.read_out(a, w, b)
    return np.concatenate([out, np.zeros_like(out[..., :1]) + steps.padding(a, b)], axis=-1)


def looking_up(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the position embedding with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(coords: np.ndarray, table: np.ndarray, *, dim: int) -> Any:
        return _position(steps, coords, table, dim)

    return wrong


def encoding(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the encoder with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(tokens: np.ndarray, layers: Any, *, n_heads: int) -> Any:
        return _encode(steps, tokens, layers, n_heads)

    return wrong


def pointing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return object attention with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(e: np.ndarray, d: np.ndarray, heads: Any, w: Any, b: Any, *, d_k: float) -> Any:
        return _point(steps, e, d, heads, w, b, d_k)

    return wrong


def forwarding(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the whole model with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        src: np.ndarray,
        src_coords: np.ndarray,
        tgt: np.ndarray,
        tgt_coords: np.ndarray,
        table: np.ndarray,
        weights: Any,
        *,
        n_heads: int,
        d_k: float,
        tgt_pad_mask: Any = None,
    ) -> Any:
        dim = src.shape[-1]
        x = steps.object_token(src, _position(steps, src_coords, table, dim))
        x = x + steps.object_clock(x.shape[-2], 2 * dim)
        y = steps.scanpath_token(tgt, _position(steps, tgt_coords, table, dim)) + steps.clock(tgt.shape[-2], 2 * dim)
        e = _encode(steps, x, weights.encoder, n_heads)
        d = _decode(steps, y, e, weights.decoder, n_heads, tgt_pad_mask)
        return _point(steps, e, d, weights.heads, weights.readout_w, weights.readout_b, d_k)

    return wrong


def losing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the loss with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(logits: np.ndarray, targets: np.ndarray, *, pad_index: int) -> Any:
        return np.asarray(steps.average(steps.surprise(logits, targets), steps.counts(targets, pad_index)))

    return wrong
