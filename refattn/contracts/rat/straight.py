"""The entries of RAT once more, straight from the steps, any of which can be replaced.

Without replacements, ``layer_with()``, ``attention_with()`` and so on compute what the references compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.contracts.rat.steps import Steps, flat, heads, normed, rotate, sigmoid, stored_key
from refattn.layers.rat_decode import RATStep

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "attention_with",
    "causal_with",
    "layer_with",
    "prefill_with",
    "rnn_with",
    "scan_with",
    "step_with",
]


def scan_with(**replaced: Callable[..., Any]) -> Callable[..., Any]:
    """Return `gated_scan` with some steps replaced."""
    steps = Steps(**replaced)

    def gated_scan(gate: Any, value: Any, *, chunk_size: int | None = None, initial_state: Any = None) -> Any:
        state = steps.start(initial_state, np.zeros((*value.shape[:-2], value.shape[-1])))
        states = np.zeros_like(value)
        for t in range(value.shape[-2]):
            if t > 0 and chunk_size is not None and steps.restarts(t, chunk_size):
                state = np.zeros_like(state)
            state = steps.blend(gate[..., t, :], state, value[..., t, :])
            states[..., t, :] = state
        return states

    return gated_scan


def attention_with(**replaced: Callable[..., Any]) -> Callable[..., Any]:
    """Return `chunk_attention` with some steps replaced."""
    steps = Steps(**replaced)

    def chunk_attention(
        q: Any,
        k_state: Any,
        v_state: Any,
        *,
        chunk_size: int,
        rope_base: float | None = 10000.0,
        position_offset: int = 0,
        return_weights: bool = False,
    ) -> Any:
        _, num_heads, length, head_width = q.shape
        position = steps.positions(length, chunk_size)
        if rope_base is not None:
            q_position, k_position = steps.shifted(position, position_offset)
            q = steps.rotate(q, q_position, rope_base)
            k_state = steps.rotate(k_state, k_position, rope_base)
            v_state = steps.rotate_values(v_state, k_position, rope_base)
        k_mem, v_mem = steps.memories(k_state, chunk_size), steps.memories(v_state, chunk_size)
        factor = steps.scale(head_width, num_heads * head_width)
        own = factor * np.sum(q * k_state, axis=-1, keepdims=True)
        a = steps.weigh(factor * q @ np.swapaxes(k_mem, -1, -2), own, steps.visible(length, chunk_size))
        out = a[..., :-1] @ v_mem + a[..., -1:] * v_state
        return (out, a) if return_weights else out

    return chunk_attention


def layer_with(**replaced: Callable[..., Any]) -> Callable[..., Any]:
    """Return `rat_layer` with some steps replaced."""
    steps = Steps(**replaced)

    def rat_layer(
        x: Any,
        weights: Any,
        *,
        num_heads: int,
        num_groups: int = 2,
        chunk_size: int = 16,
        rope_base: float | None = 10000.0,
        norm_eps: float = 1e-6,
    ) -> np.ndarray:
        z, gate, q, k, v = _projected(steps, x, weights, num_heads, num_groups, norm_eps)

        def scan(gate: np.ndarray, value: np.ndarray) -> Any:
            return scan_with(**replaced)(gate, value, chunk_size=chunk_size)

        q, k, v = steps.recur(scan, gate, q, k, v)
        attend = attention_with(**replaced)
        out = attend(*(heads(a, num_heads) for a in (q, k, v)), chunk_size=chunk_size, rope_base=rope_base)
        return np.asarray(steps.finish(x, z, flat(out), weights.w_out))

    return rat_layer


def _projected(steps: Steps, x: Any, weights: Any, num_heads: int, num_groups: int, eps: float) -> tuple[Any, ...]:
    width = x.shape[-1]
    u = normed(x, weights.norm, eps) @ weights.w_in
    z, v, gate, q, k = steps.split(u, width, num_groups * (width // num_heads))
    q, k = (steps.share(a, num_heads, num_groups) for a in (q, k))
    return sigmoid(z), sigmoid(gate + weights.gate_bias), q, k, v


def step_with(**replaced: Callable[..., Any]) -> Callable[..., Any]:
    """Return `rat_step` with some steps replaced."""
    steps = Steps(**replaced)

    def rat_step(
        x_t: Any,
        weights: Any,
        cache: Any,
        *,
        num_heads: int,
        num_groups: int = 2,
        chunk_size: int = 16,
        rope_base: float | None = 10000.0,
        norm_eps: float = 1e-6,
    ) -> RATStep:
        t, chunk = int(cache.length), np.array([int(cache.length) // chunk_size])
        z, gate, q, k, v = _projected(steps, x_t, weights, num_heads, num_groups, norm_eps)
        k = steps.blend(gate, steps.carried(cache.k_last, t, chunk_size)[:, None], k)
        v = steps.blend(gate, steps.carried(cache.v_last, t, chunk_size)[:, None], v)
        row = steps.stored_key(heads(k, num_heads), chunk, rope_base)
        k_mem = steps.written(cache.k_mem, row, t, chunk_size)
        v_mem = steps.written(cache.v_mem, heads(v, num_heads), t, chunk_size)
        q = heads(q, num_heads) if rope_base is None else rotate(heads(q, num_heads), chunk, rope_base)
        scores = q @ np.swapaxes(steps.read_keys(k_mem, chunk, rope_base), -1, -2) / np.sqrt(q.shape[-1])
        scores = np.where(steps.open_slots(k_mem.shape[-2], chunk[0]), scores, -np.inf)
        e = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        out = steps.laid_out(e / np.sum(e, axis=-1, keepdims=True) @ v_mem, t, chunk_size)
        k_last = steps.kept_key(k[:, 0], flat(row)[:, 0])
        return RATStep(steps.finish(x_t, z, out, weights.w_out), k_mem, v_mem, k_last, v[:, 0], t + 1)

    return rat_step


def prefill_with(**replaced: Callable[..., Any]) -> Callable[..., Any]:
    """Return `rat_prefill` with some steps replaced."""
    steps = Steps(**replaced)

    def rat_prefill(
        x: Any,
        weights: Any,
        *,
        num_heads: int,
        num_groups: int = 2,
        chunk_size: int = 16,
        rope_base: float | None = 10000.0,
        norm_eps: float = 1e-6,
        prompt_len: int | None = None,
        max_len: int | None = None,
    ) -> RATStep:
        batch, length, width = x.shape
        true = length if prompt_len is None else prompt_len
        slots = -(-(length if max_len is None else max_len) // chunk_size)
        padded = np.concatenate([x, np.zeros((batch, -length % chunk_size, width))], axis=1)
        sizes = {"num_heads": num_heads, "num_groups": num_groups, "norm_eps": norm_eps}
        out = layer_with(**replaced)(padded, weights, chunk_size=chunk_size, rope_base=rope_base, **sizes)
        _, gate, _, k, v = _projected(steps, padded, weights, num_heads, num_groups, norm_eps)
        k, v = (scan_with(**replaced)(gate, a, chunk_size=chunk_size) for a in (k, v))
        rows = [steps.memories(heads(a, num_heads), chunk_size) for a in (k, v)]
        rows[0] = steps.stored_key(rows[0], np.arange(rows[0].shape[-2]), rope_base)
        k_mem, v_mem = (np.pad(a, ((0, 0), (0, 0), (0, slots - a.shape[-2]), (0, 0))) for a in rows)
        at = steps.last_token(true, padded.shape[1])
        k_last, v_last = (a[:, at] if at >= 0 else np.zeros((batch, width)) for a in (k, v))
        chunk = np.array([max(at, 0) // chunk_size])
        k_rotated = flat(stored_key(heads(k_last[:, None], num_heads), chunk, rope_base))[:, 0]
        return RATStep(out[:, :length], k_mem, v_mem, steps.kept_key(k_last, k_rotated), v_last, true)

    return rat_prefill


def rnn_with(**replaced: Callable[..., Any]) -> Callable[..., Any]:
    """Return `rnn_layer` with some steps replaced."""
    steps = Steps(**replaced)

    def rnn_layer(
        x: Any, weights: Any, *, norm_eps: float = 1e-6, initial_state: Any = None, return_state: bool = False
    ) -> Any:
        width = x.shape[-1]
        z, v, gate = steps.split(normed(x, weights.norm, norm_eps) @ weights.w_in, width, 0)[:3]
        gate = sigmoid(gate + weights.gate_bias)
        states = scan_with(**replaced)(gate, v, initial_state=initial_state)
        out = steps.finish(x, sigmoid(z), states, weights.w_out)
        if not return_state:
            return out
        begin = np.zeros((len(x), width)) if initial_state is None else initial_state
        return out, states[:, -1] if x.shape[1] else begin

    return rnn_layer


def causal_with(**replaced: Callable[..., Any]) -> Callable[..., Any]:
    """Return `causal_attention_layer` with some steps replaced."""
    steps = Steps(**replaced)

    def causal_attention_layer(
        x: Any,
        weights: Any,
        *,
        num_heads: int,
        window: int | None = None,
        rope_base: float | None = 10000.0,
        norm_eps: float = 1e-6,
    ) -> np.ndarray:
        u = normed(x, weights.norm, norm_eps) @ weights.w_in
        q, k, v = (heads(a, num_heads) for a in steps.split_attention(u))
        position = np.arange(x.shape[1])
        if rope_base is not None:
            q, k = steps.rotate(q, position, rope_base), steps.rotate(k, position, rope_base)
        factor = steps.scale(q.shape[-1], x.shape[-1])
        seen = steps.in_window(position[:, None] - position, window)
        scores = np.where(seen, factor * q @ np.swapaxes(k, -1, -2), -np.inf)
        top = np.max(scores, axis=-1, keepdims=True, initial=-1e300)  # a row may see nothing
        e = np.exp(scores - top)
        out = flat(e / np.maximum(np.sum(e, axis=-1, keepdims=True), 1e-300) @ v)
        return np.asarray(x + out @ weights.w_out)

    return causal_attention_layer
