"""The layer as a list of small right steps; a planted bug is one of them replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Steps", "flat", "heads", "normed", "rotate", "sigmoid", "stored_key"]


def split(u: np.ndarray, width: int, group: int) -> list[np.ndarray]:
    """Cut into output gate, value, forget gate, queries, keys."""
    return np.split(u, np.cumsum([width, width, width, group]), axis=-1)


def share(a: np.ndarray, num_heads: int, num_groups: int) -> Any:
    """Tile the groups: head h uses group h mod G."""
    return np.tile(a, num_heads // num_groups)


def restarts(t: int, chunk_size: int) -> bool:
    """Start each chunk from a state of zero."""
    return t % chunk_size == 0


def blend(gate: np.ndarray, state: np.ndarray, value: np.ndarray) -> Any:
    """Keep g of the state, take 1 − g of the value."""
    return gate * state + (1 - gate) * value


def recur(scan: Callable[..., Any], gate: Any, q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Send keys and values through the recurrence, queries not."""
    return q, scan(gate, k), scan(gate, v)


def positions(length: int, chunk_size: int) -> Any:
    """Give all tokens of a chunk the index of the chunk."""
    return np.arange(length) // chunk_size


def shifted(position: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Move queries and keys together."""
    return position + offset, position + offset


def rotate(x: np.ndarray, position: np.ndarray, base: float) -> Any:
    """Turn channel i with channel i + dh/2."""
    half = x.shape[-1] // 2
    angles = position[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def rotate_values(v: np.ndarray, _position: np.ndarray, _base: float) -> Any:
    """Leave values as they are."""
    return v


def memories(x: np.ndarray, chunk_size: int) -> Any:
    """Remember a chunk by its last state."""
    return x[..., chunk_size - 1 :: chunk_size, :]


def visible(length: int, chunk_size: int) -> Any:
    """Let a token see the memories of earlier chunks only."""
    return np.arange(length // chunk_size) < np.arange(length)[:, None] // chunk_size


def scale(head_width: int, _width: int) -> float:
    """Divide by the root of the head's width."""
    return float(head_width**-0.5)


def weigh(scores: np.ndarray, own: np.ndarray, seen: np.ndarray) -> Any:
    """Take one softmax over the memories that are seen and the own state."""
    scores = np.concatenate([np.where(seen, scores, -np.inf), own], axis=-1)
    e = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def finish(x: np.ndarray, z: np.ndarray, out: np.ndarray, w_out: np.ndarray) -> Any:
    """Gate, project, add to the input."""
    return x + (z * out) @ w_out


def carried(old: np.ndarray, t: int, chunk_size: int) -> Any:
    """Start the running state from zero in each chunk."""
    return np.zeros_like(old) if t % chunk_size == 0 else old


def kept_key(k_last: np.ndarray, _k_rotated: np.ndarray) -> Any:
    """Keep the running key as it is before rotation."""
    return k_last


def stored_key(k: np.ndarray, chunk: np.ndarray, base: float | None) -> Any:
    """Keys are stored rotated by their own chunk."""
    return k if base is None else rotate(k, chunk, base)


def read_keys(k_mem: np.ndarray, _chunk: np.ndarray, _base: float | None) -> Any:
    """Read stored keys as they are."""
    return k_mem


def written(memory: np.ndarray, row: np.ndarray, t: int, chunk_size: int) -> Any:
    """Overwrite the slot of the chunk at each token."""
    new = memory.copy()
    new[:, :, t // chunk_size] = row[:, :, 0]
    return new


def open_slots(slots: int, chunk: int) -> Any:
    """Read the slots up to the token's own chunk."""
    return np.arange(slots) <= chunk


def laid_out(heads: np.ndarray, _t: int, _chunk_size: int) -> Any:
    """Lay heads side by side."""
    return flat(heads)


def last_token(prompt_len: int, _padded: int) -> int:
    """Keep the running state after the last true token."""
    return prompt_len - 1


def split_attention(u: np.ndarray) -> list[np.ndarray]:
    """Cut into values, queries, keys."""
    v, q, k = np.split(u, 3, axis=-1)
    return [q, k, v]


def in_window(distance: np.ndarray, window: int | None) -> Any:
    """Look back only, and no further than the window."""
    return (distance >= 0) & (distance <= (np.inf if window is None else window))


def start(initial_state: np.ndarray | None, like: np.ndarray) -> Any:
    """Begin with the state that is given, or zero."""
    return np.zeros_like(like) if initial_state is None else initial_state


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    split: Callable[..., Any] = split
    share: Callable[..., Any] = share
    restarts: Callable[..., Any] = restarts
    blend: Callable[..., Any] = blend
    recur: Callable[..., Any] = recur
    positions: Callable[..., Any] = positions
    shifted: Callable[..., Any] = shifted
    rotate: Callable[..., Any] = rotate
    rotate_values: Callable[..., Any] = rotate_values
    memories: Callable[..., Any] = memories
    visible: Callable[..., Any] = visible
    scale: Callable[..., Any] = scale
    weigh: Callable[..., Any] = weigh
    finish: Callable[..., Any] = finish
    carried: Callable[..., Any] = carried
    kept_key: Callable[..., Any] = kept_key
    stored_key: Callable[..., Any] = stored_key
    read_keys: Callable[..., Any] = read_keys
    written: Callable[..., Any] = written
    open_slots: Callable[..., Any] = open_slots
    laid_out: Callable[..., Any] = laid_out
    last_token: Callable[..., Any] = last_token
    split_attention: Callable[..., Any] = split_attention
    in_window: Callable[..., Any] = in_window
    start: Callable[..., Any] = start


def heads(x: np.ndarray, num_heads: int) -> Any:
    """Cut (B, T, D) into (B, H, T, dh)."""
    return np.swapaxes(x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads), -2, -3)


def flat(x: np.ndarray) -> Any:
    """Lay (B, H, T, dh) out as (B, T, D)."""
    x = np.swapaxes(x, -2, -3)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def normed(x: np.ndarray, weight: np.ndarray, eps: float) -> Any:
    """Divide by the root mean square."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def sigmoid(x: np.ndarray) -> Any:
    """Return 1 / (1 + e^−x), by way of the hyperbolic tangent."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)
