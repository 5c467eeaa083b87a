"""Conditioned memories in the array-API standard, by another route than the reference's loop over pairs.

Rules whose steps commute with the rows of S (Hebb, decay, Oja, BCM) are affine maps a S + b of each row, joined by a
parallel scan. The error-correcting rules go by chunks in WY form. What is left, because each step looks at what the
last one made of the memory, runs pair by pair through the general update S (γ I − β k kᵀ) + η u kᵀ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

__all__ = [
    "linear_memory_read",
    "linear_memory_write",
    "pavlovian_attention",
    "polynomial_memory_read",
    "softmax_memory_read",
]

CHUNK = 16  # tokens that correct one another in one triangular system
THRESHOLD_TIME = 10.0


def linear_memory_write(
    keys: Any,
    values: Any,
    *,
    rule: str = "hebb",
    rate: float = 1.0,
    decay: float = 1.0,
    n_epochs: int = 1,
    initial: Any = None,
    return_history: bool = False,
    normalize_keys: bool = False,
    max_row_norm: float | None = None,
    lateral_rate: float = 0.1,
) -> Any:
    """Store pairs in a matrix of strengths; the pairs of all epochs are one long sequence."""
    xp = array_namespace(keys, values)
    keys, values = _broadcast(keys, values)
    keys = _normalized(keys) if normalize_keys else keys
    k, v = (xp.concat([x] * n_epochs, axis=-2) for x in (keys, values))
    if rule == "homeostatic":
        rule, max_row_norm = "hebb", min(1.0, max_row_norm or 1.0)
    if rule == "anti_hebb":
        rule, k = "hebb", _decorrelated(k, lateral_rate)
    start = xp.zeros((*k.shape[:-2], v.shape[-1], k.shape[-1]), dtype=k.dtype, device=device(k))
    start = start if initial is None else initial
    if rule == "oja_free" or max_row_norm is not None:
        history = _stepwise(k, v, start, rule=rule, rate=rate, decay=decay, bound=max_row_norm)
    elif rule in ("delta", "gated_delta"):
        history = _corrected(k, v, start, rate, decay if rule == "gated_delta" else 1.0)
    else:
        history = _scanned(*_affine(k, v, rule, rate, decay), start)
    return history if return_history else history[..., -1, :, :]


def linear_memory_read(S: Any, queries: Any) -> Any:
    """Return S q for each query."""
    xp = array_namespace(S, queries)
    return queries @ xp.matrix_transpose(S)


def pavlovian_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    rule: str = "hebb",
    causal: bool = True,
    rate: float = 1.0,
    decay: float = 1.0,
    normalize_keys: bool = False,
) -> Any:
    """Return what each query reads: from fading scores where the rule allows it, else from the strengths."""
    xp = array_namespace(q, k, v)
    options: dict[str, Any] = {"rule": rule, "rate": rate, "decay": decay}
    k = _normalized(k) if normalize_keys else k
    if not causal:
        return linear_memory_read(linear_memory_write(k, v, **options), q)
    if rule in ("hebb", "decay", "delta", "gated_delta"):
        corrects = rule in ("delta", "gated_delta")
        gamma = decay if rule in ("decay", "gated_delta") else 1.0
        k, v = _broadcast(k, v)
        start = xp.zeros((*k.shape[:-2], v.shape[-1], k.shape[-1]), dtype=k.dtype, device=device(k))
        return xp.concat([out for out, _ in _chunks(q, k, v, start, rate, gamma, corrects=corrects)], axis=-2)
    history = linear_memory_write(k, v, **options, return_history=True)
    return xp.sum(history[..., 1:, :, :] * q[..., None, :], axis=-1)


def softmax_memory_read(keys: Any, values: Any, queries: Any, beta: float) -> Any:
    """Return the mean of the values under the weights e^(β k·q); zero where nothing is stored."""
    xp = array_namespace(keys, values, queries)
    s = beta * (queries @ xp.matrix_transpose(keys))
    if keys.shape[-2] == 0:
        return s @ values
    e = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
    return (e @ values) / xp.sum(e, axis=-1, keepdims=True)


def polynomial_memory_read(keys: Any, values: Any, queries: Any, degree: int) -> Any:
    """Return Σ (k·q)^p v, the power by repeated multiplication."""
    xp = array_namespace(keys, values, queries)
    s = queries @ xp.matrix_transpose(keys)
    power = s
    for _ in range(degree - 1):
        power = power * s
    return power @ values


def _broadcast(k: Any, v: Any) -> tuple[Any, Any]:
    """Give keys and values the same leading axes."""
    xp = array_namespace(k, v)
    lead = np.broadcast_shapes(k.shape[:-2], v.shape[:-2])
    return xp.broadcast_to(k, (*lead, *k.shape[-2:])), xp.broadcast_to(v, (*lead, *v.shape[-2:]))


def _normalized(k: Any) -> Any:
    xp = array_namespace(k)
    return k / xp.sqrt(xp.sum(k * k, axis=-1, keepdims=True))


def _outer(v: Any, k: Any) -> Any:
    """Return v kᵀ for each pair, (..., n, dv, dk)."""
    return v[..., :, None] * k[..., None, :]


def _affine(k: Any, v: Any, rule: str, rate: float, decay: float) -> tuple[Any, Any]:
    """Return what each pair does to the rows of S: the factors a (..., n, dv, 1) and the terms b (..., n, dv, dk)."""
    xp = array_namespace(k, v)
    a = xp.ones_like(v)[..., None]
    if rule == "decay":
        a = decay * a
    if rule == "oja":
        a = 1 - rate * (v * v)[..., None]
    if rule == "bcm":
        keep = 1 - 1 / THRESHOLD_TIME
        start = xp.ones_like(xp.sum(v, axis=-2))[..., None]  # (..., dv, 1)
        threshold = _scanned(keep * a, (v * v)[..., None] / THRESHOLD_TIME, start)
        v = v * (v - threshold[..., 1:, :, 0])
    return a, rate * _outer(v, k)


def _scanned(a: Any, b: Any, start: Any) -> Any:
    """Return the states before the first and after each of the maps S → a S + b, in log₂ n rounds."""
    xp = array_namespace(b)
    shift = 1
    while shift < b.shape[-3]:
        earlier_a, earlier_b = a[..., :-shift, :, :], b[..., :-shift, :, :]
        later = a[..., shift:, :, :]
        b = xp.concat([b[..., :shift, :, :], later * earlier_b + b[..., shift:, :, :]], axis=-3)
        a = xp.concat([a[..., :shift, :, :], later * earlier_a], axis=-3)
        shift *= 2
    start = start[..., None, :, :]
    return xp.concat([start, a * start + b], axis=-3)


def _corrected(k: Any, v: Any, start: Any, rate: float, gamma: float) -> Any:
    """Return every state of an error-correcting rule: its corrections, found by chunks, faded and added up."""
    xp = array_namespace(k)
    parts = [u for _, u in _chunks(k, k, v, start, rate, gamma, corrects=True)]
    u = xp.concat(parts, axis=-2)
    return _scanned(gamma * xp.ones_like(u)[..., None], _outer(u, k), start)


def _chunks(q: Any, k: Any, v: Any, S: Any, rate: float, gamma: float, *, corrects: bool) -> Any:
    """Yield outputs and written corrections of chunk after chunk of S → γ S + u kᵀ; an empty chunk first."""
    xp = array_namespace(q, k, v)
    yield q[..., :0, :] @ xp.matrix_transpose(S), v[..., :0, :]
    for begin in range(0, k.shape[-2], CHUNK):
        now = slice(begin, min(begin + CHUNK, k.shape[-2]))
        Q, K, V = q[..., now, :], k[..., now, :], v[..., now, :]
        fading, left = (xp.asarray(x, dtype=k.dtype, device=device(k)) for x in _ages(K.shape[-2], gamma))
        U = rate * V
        if corrects:
            overlap = fading * (K @ xp.matrix_transpose(K))
            U = _inverse(rate * overlap) @ (U - rate * left * (K @ xp.matrix_transpose(S)))
        scores = fading * (Q @ xp.matrix_transpose(K))
        yield scores @ U + left * (Q @ xp.matrix_transpose(S)), U
        S = left[-1, :] * S + xp.matrix_transpose(fading[-1, :][:, None] * U) @ K


def _ages(n: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what is left of each write of the chunk at each of its tokens, and of the state before it."""
    t = np.arange(n)
    fading = np.where(t[:, None] >= t, gamma ** np.abs(t[:, None] - t), 0.0)
    return fading, gamma ** (t[:, None] + 1.0)


def _inverse(overlap: Any) -> Any:
    """Return the inverse of the unit triangular matrix whose lower part is that of ``overlap``, row after row."""
    xp = array_namespace(overlap)
    n = overlap.shape[-1]
    unit = xp.eye(n, dtype=overlap.dtype, device=device(overlap))
    rows = xp.zeros_like(overlap)[..., :1, :] + unit[:1, :]
    for t in range(1, n):
        row = unit[t : t + 1, :] - overlap[..., t : t + 1, :t] @ rows
        rows = xp.concat([rows, row], axis=-2)
    return rows


def _decorrelated(k: Any, lateral_rate: float) -> Any:
    """Return the keys less what lateral weights predict of them; the weights learn from what is left."""
    xp = array_namespace(k)
    apart = 1 - xp.eye(k.shape[-1], dtype=k.dtype, device=device(k))
    U = xp.zeros((*k.shape[:-2], k.shape[-1], k.shape[-1]), dtype=k.dtype, device=device(k))
    novel = [k[..., :0, :]]
    for t in range(k.shape[-2]):
        row = k[..., t : t + 1, :]
        row = row - row @ xp.matrix_transpose(U)
        U = U + lateral_rate * apart * (xp.matrix_transpose(row) @ row)
        novel.append(row)
    return xp.concat(novel, axis=-2)


def _stepwise(k: Any, v: Any, S: Any, *, rule: str, rate: float, decay: float, bound: float | None) -> Any:
    """Run pair by pair, for rules that look at the strengths themselves."""
    xp = array_namespace(k, v)
    a, b = _affine(k, v, rule, rate, decay)
    unit = xp.eye(k.shape[-1], dtype=k.dtype, device=device(k))
    states = [S]
    for t in range(k.shape[-2]):
        row, together = k[..., t : t + 1, :], _outer(k[..., t, :], k[..., t, :])
        if rule == "oja_free":
            y = S @ xp.matrix_transpose(row)  # (..., dv, 1)
            S = S + rate * y * (row - y * S)
        elif rule in ("delta", "gated_delta"):
            gamma = decay if rule == "gated_delta" else 1.0
            S = gamma * S @ (unit - rate * together) + b[..., t, :, :]
        else:
            S = a[..., t, :, :] * S + b[..., t, :, :]
        S = S if bound is None else _bounded(S, bound)
        states.append(S)
    return xp.stack(states, axis=-3)


def _bounded(S: Any, bound: float) -> Any:
    xp = array_namespace(S)
    square = xp.sum(S * S, axis=-1, keepdims=True) / bound**2
    return S / xp.sqrt(xp.where(square > 1, square, xp.ones_like(square)))
