"""RAT in the array-API standard: recurrence by pairing tokens, attention in blocks, heads grouped by broadcasting.

Derived by another route than the reference. The recurrence joins neighbouring tokens into half as many maps, solves
those, and fills in the rest. A token's own score needs no rotation, since both sides would turn alike, so only queries
and chunk memories turn. Memories that all tokens of a block see need no mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.layers.rat_decode import RATStep

__all__ = [
    "causal_attention_layer",
    "chunk_attention",
    "gated_scan",
    "rat_layer",
    "rat_prefill",
    "rat_step",
    "rnn_layer",
]

BLOCK = 256  # queries that are scored at once: bounds memory, and skips the memories that none of them sees


def rat_layer(
    x: Any,
    weights: Any,
    *,
    num_heads: int,
    num_groups: int = 2,
    chunk_size: int = 16,
    rope_base: float | None = 10000.0,
    norm_eps: float = 1e-6,
) -> Any:
    """Run the layer over a whole sequence."""
    return _forward(x, weights, num_heads, num_groups, chunk_size, rope_base, norm_eps)[0]


def gated_scan(gate: Any, value: Any, *, chunk_size: int | None = None, initial_state: Any | None = None) -> Any:
    """Run s_t = g_t s_{t−1} + (1 − g_t) v_t by odd-even reduction."""
    xp = array_namespace(gate, value)
    a, b = gate, (1 - gate) * value
    if initial_state is not None and b.shape[-2]:
        first = b[..., :1, :] + a[..., :1, :] * initial_state[..., None, :]
        b = xp.concat([first, b[..., 1:, :]], axis=-2)
    return _scan(_cut_chunks(a, chunk_size), b)


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
    """Attend to the memories of earlier chunks and to the own state; only differences of positions matter."""
    del position_offset
    xp, length, count = array_namespace(q), q.shape[-2], q.shape[-2] // chunk_size
    dtype = q.dtype
    q, k_state, v_state = (_wide(a) for a in (q, k_state, v_state))
    q = q / q.shape[-1] ** 0.5
    own = xp.sum(q * k_state, axis=-1, keepdims=True)  # (B, H, T, 1)
    k_mem, v_mem = (_ends(a, chunk_size) for a in (k_state, v_state))  # (B, H, C, dh)
    k_mem = _turn(k_mem, np.arange(count), rope_base)
    q = _turn(q, np.arange(length) // chunk_size, rope_base)
    step = max(1, BLOCK // chunk_size)  # chunks in a block
    outs, rows = [], []
    for c in range(0, count, step):
        block = slice(c * chunk_size, min((c + step), count) * chunk_size)
        e = _block(q[..., block, :], own[..., block, :], k_mem, first=c, chunk_size=chunk_size)
        total = xp.sum(e, axis=-1, keepdims=True)
        last = e.shape[-1] - 1  # how many memories the block reaches
        outs.append((e[..., :-1] @ v_mem[..., :last, :] + e[..., -1:] * v_state[..., block, :]) / total)
        if return_weights:
            unseen = _zeros(e, (*e.shape[:-1], count - last))
            rows.append(xp.concat([e[..., :-1], unseen, e[..., -1:]], axis=-1) / total)
    out = xp.astype(xp.concat(outs, axis=-2) if outs else q, dtype)
    return (out, xp.astype(xp.concat(rows, axis=-2) if rows else own, dtype)) if return_weights else out


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
    """Run the layer over a prompt padded to whole chunks, and keep the chunks' last states."""
    xp = array_namespace(x)
    batch, length, width = x.shape
    true, slots = length if prompt_len is None else prompt_len, -(-(max_len or length) // chunk_size)
    padded = xp.concat([x, _zeros(x, (batch, -length % chunk_size, width))], axis=1)
    y, k, v = _forward(padded, weights, num_heads, num_groups, chunk_size, rope_base, norm_eps)
    k_last, v_last = (a[:, true - 1, :] if true else _zeros(x, (batch, width)) for a in (k, v))
    memories = []
    for a, base in ((k, rope_base), (v, None)):
        memory = _heads(_ends(a, chunk_size), num_heads)  # (B, H, C, dh)
        memory = xp.astype(_turn(_wide(memory), np.arange(memory.shape[2]), base), x.dtype)
        free = _zeros(x, (batch, num_heads, slots - memory.shape[2], width // num_heads))
        memories.append(xp.concat([memory, free], axis=2))
    return RATStep(y[:, :length, :], memories[0], memories[1], k_last, v_last, true)


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
    """Run the layer on one token; the position may be a traced number, so nothing branches on it."""
    xp = array_namespace(x_t)
    k_mem, v_mem, k_last, v_last, t = cache
    z, g, q, k, v = _project(x_t, weights, num_heads, num_groups, norm_eps)  # (B, 1, D)
    begun = xp.asarray(t % chunk_size != 0, device=device(x_t))
    keep = g[:, 0, :] * xp.astype(begun, g.dtype)
    k_last, v_last = (keep * _wide(old) + (1 - g[:, 0, :]) * new[:, 0, :] for old, new in ((k_last, k), (v_last, v)))
    q, k, v = (_heads(a, num_heads) for a in (q, k_last[:, None, :], v_last[:, None, :]))  # (B, H, 1, dh)
    q, k = (_turn_traced(a, t // chunk_size, rope_base) for a in (q, k))
    slot = xp.arange(k_mem.shape[2], device=device(x_t))[:, None]  # (C_max, 1)
    here = slot == t // chunk_size
    k_mem, v_mem = xp.where(here, k, _wide(k_mem)), xp.where(here, v, _wide(v_mem))
    s = q @ xp.matrix_transpose(k_mem) / q.shape[-1] ** 0.5  # (B, H, 1, C_max)
    s = xp.where((slot <= t // chunk_size)[:, 0], s, xp.asarray(-xp.inf, dtype=s.dtype, device=device(s)))
    e = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
    out = (e @ v_mem) / xp.sum(e, axis=-1, keepdims=True)
    y = _wide(x_t) + (z * _flat(out)) @ _wide(weights.w_out)
    y, k_mem, v_mem, k_last, v_last = (xp.astype(a, x_t.dtype) for a in (y, k_mem, v_mem, k_last, v_last))
    return RATStep(y, k_mem, v_mem, k_last, v_last, t + 1)


def rnn_layer(
    x: Any, weights: Any, *, norm_eps: float = 1e-6, initial_state: Any | None = None, return_state: bool = False
) -> Any:
    """Run the recurrence over the whole sequence as if it were one chunk."""
    xp = array_namespace(x)
    width = x.shape[-1]
    u = _normed(x, weights.norm, norm_eps) @ _wide(weights.w_in)
    g = _sigmoid(u[..., 2 * width :] + _wide(weights.gate_bias))
    start = None if initial_state is None else _wide(initial_state)
    states = gated_scan(g, u[..., width : 2 * width], initial_state=start)
    y = xp.astype(_wide(x) + (_sigmoid(u[..., :width]) * states) @ _wide(weights.w_out), x.dtype)
    if not return_state:
        return y
    before = _zeros(x, (*x.shape[:-2], width)) if initial_state is None else initial_state
    return y, xp.astype(states[..., -1, :], x.dtype) if x.shape[-2] else before


def causal_attention_layer(
    x: Any,
    weights: Any,
    *,
    num_heads: int,
    window: int | None = None,
    rope_base: float | None = 10000.0,
    norm_eps: float = 1e-6,
) -> Any:
    """Run causal attention in blocks of queries, each with the keys that it can reach."""
    xp = array_namespace(x)
    *_, length, width = x.shape
    u = _normed(x, weights.norm, norm_eps) @ _wide(weights.w_in)
    v, q, k = (_heads(u[..., i * width : (i + 1) * width], num_heads) for i in range(3))
    q = _turn(q, np.arange(length), rope_base) / q.shape[-1] ** 0.5
    k_t = xp.matrix_transpose(_turn(k, np.arange(length), rope_base))
    outs = []
    for begin in range(0, length, BLOCK):
        end = min(begin + BLOCK, length)
        oldest = 0 if window is None else max(0, begin - window)
        back = np.arange(begin, end)[:, None] - np.arange(oldest, end)
        seen = (back >= 0) & (back <= (length if window is None else window))
        s = q[..., begin:end, :] @ k_t[..., oldest:end]
        lowest = xp.asarray(-xp.inf, dtype=s.dtype, device=device(s))
        s = xp.where(xp.asarray(seen, device=device(x)), s, lowest)
        e = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
        outs.append((e @ v[..., oldest:end, :]) / xp.sum(e, axis=-1, keepdims=True))
    out = _flat(xp.concat(outs, axis=-2)) if outs else _flat(q)
    return xp.astype(_wide(x) + out @ _wide(weights.w_out), x.dtype)


def _forward(
    x: Any,
    weights: Any,
    num_heads: int,
    num_groups: int,
    chunk_size: int,
    rope_base: float | None,
    norm_eps: float,
) -> tuple[Any, Any, Any]:
    """Return the layer's output and its running keys and values, all (B, T, D)."""
    xp = array_namespace(x)
    z, g, q, k, v = _project(x, weights, num_heads, num_groups, norm_eps)
    # keys and values in one scan; they share the gate
    states = _scan(_cut_chunks(g, chunk_size)[None, ...], (1 - g) * xp.stack([k, v]))  # (2, B, T, D)
    k, v = states[0, ...], states[1, ...]
    heads = (_heads(a, num_heads) for a in (q, k, v))
    out = _flat(chunk_attention(*heads, chunk_size=chunk_size, rope_base=rope_base))
    y = _wide(x) + (z * out) @ _wide(weights.w_out)
    return xp.astype(y, x.dtype), xp.astype(k, x.dtype), xp.astype(v, x.dtype)


def _project(x: Any, weights: Any, num_heads: int, num_groups: int, norm_eps: float) -> tuple[Any, Any, Any, Any, Any]:
    """Return z, g, q, k, v, all (B, T, D); head h = r G + j reads group j, so groups are repeated whole."""
    xp = array_namespace(x)
    *lead, width = x.shape
    group = num_groups * (width // num_heads)
    u = _normed(x, weights.norm, norm_eps) @ _wide(weights.w_in)
    z, v, g = (u[..., i * width : (i + 1) * width] for i in range(3))
    q, k = u[..., 3 * width : 3 * width + group], u[..., 3 * width + group :]
    shape = (*lead, num_heads // num_groups, group)
    q, k = (xp.reshape(xp.broadcast_to(a[..., None, :], shape), (*lead, width)) for a in (q, k))
    return _sigmoid(z), _sigmoid(g + _wide(weights.gate_bias)), q, k, v


def _block(q: Any, own: Any, k_mem: Any, *, first: int, chunk_size: int) -> Any:
    """Return the exponentials of a block that starts with chunk ``first``: memories in reach, and the own state last.

    Memories before the block are open to all of its tokens; those inside to the tokens of later chunks; the memory
    of its last chunk to none.
    """
    xp = array_namespace(q)
    last = first + q.shape[-2] // chunk_size - 1
    s = q @ xp.matrix_transpose(k_mem[..., :last, :])  # (B, H, block, last)
    inside = np.arange(first, last) < first + np.arange(q.shape[-2])[:, None] // chunk_size
    lowest = xp.asarray(-xp.inf, dtype=s.dtype, device=device(s))
    masked = xp.where(xp.asarray(inside, device=device(s)), s[..., first:], lowest)
    s = xp.concat([s[..., :first], masked, own], axis=-1)
    return xp.exp(s - xp.max(s, axis=-1, keepdims=True))


def _cut_chunks(a: Any, chunk_size: int | None) -> Any:
    """Return gates that let nothing through at the first token of a chunk."""
    if chunk_size is None:
        return a
    xp = array_namespace(a)
    inside = np.arange(a.shape[-2])[:, None] % chunk_size != 0
    return xp.where(xp.asarray(inside, device=device(a)), a, xp.zeros_like(a))


def _scan(a: Any, b: Any) -> Any:
    """Return s_t = a_t s_{t−1} + b_t for all t: join tokens two and two, solve for the pairs, fill in the others."""
    xp, length = array_namespace(a, b), b.shape[-2]
    if length < 2:
        return b
    pairs = length // 2
    a_even, b_even = a[..., 0::2, :], b[..., 0::2, :]
    a_odd, b_odd = a[..., 1::2, :], b[..., 1::2, :]
    odd = _scan(a_odd * a_even[..., :pairs, :], a_odd * b_even[..., :pairs, :] + b_odd)  # states at 1, 3, 5, …
    later = a_even[..., 1:, :] * odd[..., : b_even.shape[-2] - 1, :] + b_even[..., 1:, :]
    even = xp.concat([b_even[..., :1, :], later], axis=-2)  # states at 0, 2, 4, …
    both = xp.stack([even[..., :pairs, :], odd], axis=-2)  # (..., pairs, 2, D)
    both = xp.reshape(both, (*both.shape[:-3], 2 * pairs, both.shape[-1]))
    return xp.concat([both, even[..., pairs:, :]], axis=-2) if length % 2 else both


def _ends(x: Any, chunk_size: int) -> Any:
    """Return the last row of each chunk."""
    *lead, length, width = x.shape
    return array_namespace(x).reshape(x, (*lead, length // chunk_size, chunk_size, width))[..., -1, :]


def _turn(x: Any, positions: np.ndarray, base: float | None) -> Any:
    """Rotate channel i with channel i + dh/2 by position · base^(−2i/dh), positions known on the host."""
    if base is None:
        return x
    half = x.shape[-1] // 2
    angles = positions[:, None] * base ** (-np.arange(half) / half)  # (S, dh/2)
    return _rotated(x, _like(x, np.cos(angles)), _like(x, np.sin(angles)))


def _turn_traced(x: Any, position: Any, base: float | None) -> Any:
    """Rotate by one position that may be traced."""
    if base is None:
        return x
    xp, half = array_namespace(x), x.shape[-1] // 2
    angles = _like(x, base ** (-np.arange(half) / half)) * position
    return _rotated(x, xp.cos(angles), xp.sin(angles))


def _rotated(x: Any, cos: Any, sin: Any) -> Any:
    xp, half = array_namespace(x), x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return xp.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _heads(x: Any, num_heads: int) -> Any:
    xp = array_namespace(x)
    *lead, length, width = x.shape
    return xp.moveaxis(xp.reshape(x, (*lead, length, num_heads, width // num_heads)), -2, -3)


def _flat(x: Any) -> Any:
    xp = array_namespace(x)
    *lead, heads, length, head_width = x.shape
    return xp.reshape(xp.moveaxis(x, -3, -2), (*lead, length, heads * head_width))


def _normed(x: Any, weight: Any, eps: float) -> Any:
    xp, x = array_namespace(x), _wide(x)
    return x * (xp.mean(x * x, axis=-1, keepdims=True) + eps) ** -0.5 * _wide(weight)


def _sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e^−x), the exponent held just below where it overflows, for the sake of derivatives."""
    xp = array_namespace(x)
    largest = xp.asarray(709.0 if x.dtype == xp.float64 else 88.0, dtype=x.dtype, device=device(x))
    return 1 / (1 + xp.exp(xp.minimum(-x, largest)))


def _wide(x: Any) -> Any:
    """Return 16-bit arrays in float32."""
    xp = array_namespace(x)
    return x if x.dtype in (xp.float32, xp.float64) else xp.astype(x, xp.float32)


def _like(x: Any, table: np.ndarray) -> Any:
    return array_namespace(x).asarray(table, dtype=x.dtype, device=device(x))


def _zeros(x: Any, shape: tuple[int, ...]) -> Any:
    return array_namespace(x).zeros(shape, dtype=x.dtype, device=device(x))
