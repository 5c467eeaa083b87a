"""Conditioned attention for long sequences: inside a chunk all tokens at once, from chunk to chunk one matrix.

The definition is the loop of `refattn.layers.pavlovian`. Here the same outputs come from products of matrices, for the
four rules that are linear in what has been learnt: Hebb, decay, delta and gated delta. For delta this is the WY form,
in which the tokens of a chunk correct one another by one triangular system (2406.06484).
"""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_one_of

__all__ = ["LINEAR_RULES", "hebbian_attention_parallel", "pavlovian_attention_chunked"]

LINEAR_RULES = ("hebb", "decay", "delta", "gated_delta")


def hebbian_attention_parallel(q: Any, k: Any, v: Any, *, rate: float = 1.0, causal: bool = True) -> np.ndarray:
    """Compute Hebbian attention as attention without a softmax: ((Q Kᵀ) ∘ mask) V.

    Parameters
    ----------
    q, k, v : array_like, shape (..., n, dk), (..., n, dk), (..., n, dv)
        Queries, keys and values.
    rate : float
        η > 0.
    causal : bool
        A token reads what was stored up to and with itself; otherwise everything.

    Returns
    -------
    ndarray, shape (..., n, dv)
        What `refattn.layers.pavlovian.pavlovian_attention` gives with ``rule="hebb"``.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is not finite, or ``rate`` is not positive.
    """
    q, k, v = _checked(q, k, v, "hebb", rate, 1.0)
    scores = q @ np.swapaxes(k, -1, -2)  # (..., n, n)
    # eq: pav-parallel
    seen = np.tri(scores.shape[-1], dtype=scores.dtype) if causal else np.ones_like(scores)
    return np.asanyarray(rate * (scores * seen) @ v)  # (..., n, dv)


def pavlovian_attention_chunked(
    q: Any,
    k: Any,
    v: Any,
    *,
    rule: str = "hebb",
    rate: float = 1.0,
    decay: float = 1.0,
    chunk_size: int = 16,
) -> np.ndarray:
    """Compute causal conditioned attention chunk by chunk.

    1. Find the corrections u_t that the tokens of the chunk write: S_t = γ S_{t−1} + u_t k_tᵀ.
    2. Read what earlier chunks left, and the chunk itself through its fading scores.
    3. Carry the state to the next chunk.

    Parameters
    ----------
    q, k, v : array_like, shape (..., n, dk), (..., n, dk), (..., n, dv)
        Queries, keys and values.
    rule : {"hebb", "decay", "delta", "gated_delta"}
        The other rules are not linear in what they know and have no such form.
    rate, decay : float
        η and γ; ``hebb`` and ``delta`` take γ = 1 whatever is given.
    chunk_size : int
        C ≥ 1; the last chunk may be shorter. Time is about n (C + dk)(dk + dv), C² more for each triangular system.

    Returns
    -------
    ndarray, shape (..., n, dv)
        What `refattn.layers.pavlovian.pavlovian_attention` gives.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is not finite, or a parameter is out of range.

    References
    ----------
    2406.06484, section 3; for the decay 2307.08621.
    """
    q, k, v = _checked(q, k, v, rule, rate, decay)
    require(index(chunk_size) >= 1, f"chunk_size={chunk_size!r} must be >= 1")
    gamma = decay if rule in ("decay", "gated_delta") else 1.0
    S = np.swapaxes(v[..., :0, :], -1, -2) @ k[..., :0, :]  # (..., dv, dk), zero
    outs = [q[..., :0, :] @ np.swapaxes(S, -1, -2)]
    for begin in range(0, q.shape[-2], chunk_size):
        now = slice(begin, begin + chunk_size)
        Q, K, V = q[..., now, :], k[..., now, :], v[..., now, :]  # (..., C, d)
        age = np.arange(1, Q.shape[-2] + 1)  # steps since the chunk began
        fading = np.tril(gamma ** np.maximum(age[:, None] - age, 0.0)).astype(q.dtype)  # γ^(t−i), (C, C)
        left = (gamma**age)[:, None].astype(q.dtype)  # what is left of the state, (C, 1)
        U = rate * V  # 1
        if rule in ("delta", "gated_delta"):
            U = _corrections(K, V - left * (K @ np.swapaxes(S, -1, -2)), fading, rate)
        # eq: pav-chunk
        outs.append(left * (Q @ np.swapaxes(S, -1, -2)) + (fading * (Q @ np.swapaxes(K, -1, -2))) @ U)  # 2
        S = left[-1] * S + np.swapaxes(U, -1, -2) @ (fading[-1][:, None] * K)  # 3
    return np.asanyarray(np.concatenate(outs, axis=-2))


def _corrections(K: np.ndarray, missing: np.ndarray, fading: np.ndarray, rate: float) -> np.ndarray:
    """Solve u_t = η (missing_t − Σ_{i<t} γ^(t−i) (k_t·k_i) u_i) for U (..., C, dv): what no earlier token explains."""
    # eq: pav-wy
    overlap = np.tril(fading * (K @ np.swapaxes(K, -1, -2)), -1)  # (..., C, C)
    return np.asanyarray(np.linalg.solve(np.eye(K.shape[-2], dtype=K.dtype) + rate * overlap, rate * missing))


def _checked(q: Any, k: Any, v: Any, rule: str, rate: float, decay: float) -> tuple[Any, Any, Any]:
    require_one_of("rule", rule, LINEAR_RULES)
    require(np.isfinite(rate) and rate > 0, f"rate={rate!r} must be finite and > 0")
    require(0 < decay <= 1, f"decay={decay!r} must be in (0, 1]")
    arrays = [as_float(name, x) for name, x in zip("qkv", (q, k, v), strict=True)]
    for name, x in zip("qkv", arrays, strict=True):
        require(x.ndim >= 2, f"{name} has shape {x.shape}, expected at least two axes")
        require_finite(name, x)
    q, k, v = arrays
    require(q.shape[-2:] == k.shape[-2:], f"q has shape {q.shape}, expected (..., n, dk) = {k.shape[-2:]} as k")
    require(v.shape[-2] == k.shape[-2], f"v has length {v.shape[-2]}, expected {k.shape[-2]} as k")
    dtype = np.result_type(q, k, v)
    return q.astype(dtype, copy=False), k.astype(dtype, copy=False), v.astype(dtype, copy=False)
