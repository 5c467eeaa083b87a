"""Wrong steps of the parallel form: what a kernel author may write instead."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.contracts.rat.straight import scan_with

__all__ = [
    "averaged_parts",
    "both_sides",
    "divided_products",
    "first_states",
    "gated_after",
    "gated_value_first",
    "keys_left_out",
    "neighbours_rotated",
    "never_restarts",
    "one_key_short",
    "one_token_late",
    "own_chunk_too",
    "plain_sum",
    "queries_first",
    "queries_shifted",
    "queries_too",
    "repeated_groups",
    "scaled_by_width",
    "state_dropped",
    "swapped_gate",
    "token_positions",
    "ungated",
    "value_times_gate",
    "values_rotated",
    "without_own",
    "without_residual",
]


def gated_value_first(u: np.ndarray, width: int, group: int) -> list[np.ndarray]:
    """Take the forget gate before the value."""
    z, gate, v, q, k = np.split(u, np.cumsum([width, width, width, group]), axis=-1)
    return [z, v, gate, q, k]


def repeated_groups(a: np.ndarray, num_heads: int, num_groups: int) -> Any:
    """Repeat each group for neighbouring heads, as grouped-query attention does."""
    groups = a.reshape(*a.shape[:-1], num_groups, -1)
    return np.repeat(groups, num_heads // num_groups, axis=-2).reshape(*a.shape[:-1], -1)


def never_restarts(_t: int, _chunk_size: int) -> bool:
    """Let the state run on through the chunks."""
    return False


def value_times_gate(gate: np.ndarray, state: np.ndarray, value: np.ndarray) -> Any:
    """Multiply the value by g."""
    return gate * state + gate * value


def swapped_gate(gate: np.ndarray, state: np.ndarray, value: np.ndarray) -> Any:
    """Keep 1 − g of the state: an input gate in place of a forget gate."""
    return (1 - gate) * state + gate * value


def plain_sum(gate: np.ndarray, state: np.ndarray, value: np.ndarray) -> Any:
    """Add the whole value, as a linear recurrence without input gate does."""
    return gate * state + value


def keys_left_out(scan: Any, gate: Any, q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Send values through the recurrence, and keys around it."""
    return q, k, scan(gate, v)


def queries_too(scan: Any, gate: Any, q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Send the queries through the recurrence too."""
    return scan(gate, q), scan(gate, k), scan(gate, v)


def token_positions(length: int, _chunk_size: int) -> Any:
    """Rotate by the index of the token."""
    return np.arange(length)


def queries_shifted(position: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Add the offset to the queries alone."""
    return position + offset, position


def neighbours_rotated(x: np.ndarray, position: np.ndarray, base: float) -> Any:
    """Turn channel 2i with channel 2i + 1."""
    half = x.shape[-1] // 2
    angles = position[:, None] * base ** (-np.arange(half) / half)
    a, b = x[..., 0::2], x[..., 1::2]
    pair = (a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles))
    return np.stack(pair, axis=-1).reshape(x.shape)


def values_rotated(v: np.ndarray, position: np.ndarray, base: float) -> Any:
    """Rotate values like keys."""
    half = v.shape[-1] // 2
    angles = position[:, None] * base ** (-np.arange(half) / half)
    a, b = v[..., :half], v[..., half:]
    pair = [a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)]
    return np.concatenate(pair, axis=-1)


def first_states(x: np.ndarray, chunk_size: int) -> Any:
    """Remember a chunk by its first state."""
    return x[..., ::chunk_size, :]


def own_chunk_too(length: int, chunk_size: int) -> Any:
    """Let a token see the memory of its own chunk, which is made by later tokens."""
    return np.arange(length // chunk_size) <= np.arange(length)[:, None] // chunk_size


def scaled_by_width(_head_width: int, width: int) -> float:
    """Divide scores by the root of D instead of dh."""
    return float(width**-0.5)


def without_own(scores: np.ndarray, own: np.ndarray, seen: np.ndarray) -> Any:
    """Leave the own state out of the softmax."""
    e = np.where(seen, np.exp(np.minimum(scores, 500.0)), 0.0)
    total = np.sum(e, axis=-1, keepdims=True)
    return np.concatenate([e / np.where(total == 0, 1.0, total), 0.0 * own], axis=-1)


def averaged_parts(scores: np.ndarray, own: np.ndarray, seen: np.ndarray) -> Any:
    """Merge memories and own state half and half, without their log-sum-exps."""
    a = without_own(scores, own, seen)
    some = np.any(seen, axis=-1, keepdims=True)
    return np.concatenate([np.where(some, 0.5, 0.0) * a[..., :-1], np.where(some, 0.5, 1.0) + 0.0 * own], axis=-1)


def without_residual(_x: np.ndarray, z: np.ndarray, out: np.ndarray, w_out: np.ndarray) -> Any:
    """Forget to add the input."""
    return (z * out) @ w_out


def gated_after(x: np.ndarray, z: np.ndarray, out: np.ndarray, w_out: np.ndarray) -> Any:
    """Apply the output gate after the projection."""
    return x + z * (out @ w_out)


def ungated(x: np.ndarray, _z: np.ndarray, out: np.ndarray, w_out: np.ndarray) -> Any:
    """Leave the output gate out."""
    return x + out @ w_out


def state_dropped(_initial_state: np.ndarray | None, like: np.ndarray) -> Any:
    """Begin with zero whatever is given."""
    return np.zeros_like(like)


def queries_first(u: np.ndarray) -> list[np.ndarray]:
    """Take the columns as queries, keys, values."""
    return np.split(u, 3, axis=-1)


def one_key_short(distance: np.ndarray, window: int | None) -> Any:
    """Let the window hold ``window`` keys instead of ``window`` + 1."""
    return (distance >= 0) & (distance < (np.inf if window is None else window))


def both_sides(distance: np.ndarray, window: int | None) -> Any:
    """Look as far ahead as back."""
    return np.abs(distance) <= (np.inf if window is None else window)


def divided_products(gate: Any, value: Any, *, chunk_size: int | None = None, initial_state: Any = None) -> Any:
    """Compute s_t = P_t Σ b_s / P_s with prefix products P of the gates."""
    states = np.zeros_like(value)
    length = value.shape[-2]
    for begin in range(0, length, chunk_size or max(length, 1)):
        part = slice(begin, begin + (chunk_size or length))
        products = np.cumprod(gate[..., part, :], axis=-2)
        first = initial_state[..., None, :] if begin == 0 and initial_state is not None else 0.0
        states[..., part, :] = products * (
            first + np.cumsum((1 - gate[..., part, :]) * value[..., part, :] / products, axis=-2)
        )
    return states


def one_token_late(gate: Any, value: Any, *, chunk_size: int | None = None, initial_state: Any = None) -> Any:
    """Return the state before each token instead of after it."""
    states = scan_with()(gate, value, chunk_size=chunk_size, initial_state=initial_state)
    first = 0.0 * states[..., :1, :] + (0.0 if initial_state is None else initial_state[..., None, :])
    return np.concatenate([first, states[..., :-1, :]], axis=-2)
