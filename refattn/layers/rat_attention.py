"""Attention from every token to the summaries of earlier chunks and to its own state (RAT, 2507.04416).

Steps 5 to 7 of the layer in two equal forms: one softmax over all candidates (the definition), and two parts merged by
their log-sum-exp, as kernels do it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.attention_online import merge_attention
from refattn.primitives.rotary import rope, rope_angles, rope_frequencies
from refattn.primitives.softmax import log_sum_exp, softmax

__all__ = [
    "ChunkParts",
    "chunk_attention",
    "chunk_attention_parts",
    "chunk_rope",
    "merge_heads",
    "merge_lse",
    "split_heads",
]


class ChunkParts(NamedTuple):
    """The two parts of step 7 before they are merged.

    Attributes
    ----------
    inter_out : ndarray, shape (B, H, T, dh)
        Attention over the memories of earlier chunks; 0 in the first chunk.
    inter_lse : ndarray, shape (B, H, T)
        Its log-sum-exp; −∞ in the first chunk.
    self_score : ndarray, shape (B, H, T)
        Score of the token's own state.
    """

    inter_out: np.ndarray
    inter_lse: np.ndarray
    self_score: np.ndarray


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
    """Attend, from every token, to the last states of all earlier chunks and to the token's own state: steps 5 to 7.

    Parameters
    ----------
    q, k_state, v_state : array_like, shape (B, H, T, dh)
        Queries, running keys and running values, not rotated; T is a multiple of ``chunk_size``.
    chunk_size : int
        L.
    rope_base : float, optional
        Base of the rotary frequencies; None leaves positions out.
    position_offset : int
        Added to every chunk index. Only differences of positions count, so the result does not depend on it.
    return_weights : bool
        Return the softmax weights too.

    Returns
    -------
    out : ndarray, shape (B, H, T, dh)
        In the dtype of ``q``; computed in float64.
    weights : ndarray, shape (B, H, T, C + 1)
        With ``return_weights`` only: columns 0 to C − 1 are the memories, 0 where the chunk is not over; the last
        column is the token's own state. Rows sum to 1.

    Raises
    ------
    ValueError
        If T is not a multiple of ``chunk_size``, the shapes differ, or dh is odd and is to be rotated.

    Notes
    -----
    A token never sees the memory of its own chunk, which is the state of the chunk's last token, a later one: its own
    running state stands in for it. So in the first chunk the output is that state itself.

    References
    ----------
    2507.04416 and the layer released with it, labels rat-5 to rat-7.
    """
    q, k, v = _checked_heads(q, k_state, v_state, chunk_size)
    length, head_width = q.shape[-2:]
    chunk = np.arange(length) // chunk_size  # (T,)
    dtype, (q, k, v) = q.dtype, (a.astype(np.float64, copy=False) for a in (q, k, v))

    # 5
    # eq: rat-5
    q, k = (chunk_rope(a, chunk + position_offset, base=rope_base) for a in (q, k))  # (B, H, T, dh)
    # 6
    # eq: rat-6
    k_mem, v_mem = (a[..., chunk_size - 1 :: chunk_size, :] for a in (k, v))  # (B, H, C, dh)
    # 7
    # eq: rat-7
    s_mem = q @ np.swapaxes(k_mem, -1, -2)  # (B, H, T, C)
    s_self = np.sum(q * k, axis=-1, keepdims=True)  # (B, H, T, 1)
    scores = np.concatenate([s_mem, s_self], axis=-1) / np.sqrt(head_width)  # (B, H, T, C + 1)
    seen = _over_or_own(chunk, k_mem.shape[-2])  # (T, C + 1)
    a = softmax(scores, where=seen)  # (B, H, T, C + 1)
    out = a[..., :-1] @ v_mem + a[..., -1:] * v  # (B, H, T, dh)
    out = out.astype(dtype, copy=False)
    return (out, a.astype(dtype, copy=False)) if return_weights else out


def chunk_attention_parts(
    q: Any,
    k_state: Any,
    v_state: Any,
    *,
    chunk_size: int,
    rope_base: float | None = 10000.0,
) -> ChunkParts:
    """Compute step 7 as kernels do: attention over earlier chunks, and the own state's score, to be merged later.

    Parameters
    ----------
    q, k_state, v_state : array_like, shape (B, H, T, dh)
        As in `chunk_attention`.
    chunk_size, rope_base
        As in `chunk_attention`.

    Returns
    -------
    ChunkParts
        ``merge_lse(inter_out, inter_lse, v_state, self_score)`` is `chunk_attention`.

    Raises
    ------
    ValueError
        As in `chunk_attention`.
    """
    q, k, v = _checked_heads(q, k_state, v_state, chunk_size)
    length, head_width = q.shape[-2:]
    chunk = np.arange(length) // chunk_size  # (T,)
    dtype, (q, k, v) = q.dtype, (a.astype(np.float64, copy=False) for a in (q, k, v))
    q, k = (chunk_rope(a, chunk, base=rope_base) for a in (q, k))  # (B, H, T, dh)
    k_mem, v_mem = (a[..., chunk_size - 1 :: chunk_size, :] for a in (k, v))  # (B, H, C, dh)

    scores = q @ np.swapaxes(k_mem, -1, -2) / np.sqrt(head_width)  # (B, H, T, C)
    over = _over_or_own(chunk, k_mem.shape[-2])[:, :-1]  # (T, C)
    parts = (
        softmax(scores, where=over) @ v_mem,  # (B, H, T, dh)
        log_sum_exp(scores, where=over),  # (B, H, T)
        np.sum(q * k, axis=-1) / np.sqrt(head_width),  # (B, H, T)
    )
    return ChunkParts(*(part.astype(dtype, copy=False) for part in parts))


def merge_lse(out_a: Any, lse_a: Any, out_b: Any, lse_b: Any) -> np.ndarray:
    """Merge two softmax-weighted means over disjoint candidates into the mean over all of them.

    Parameters
    ----------
    out_a, out_b : array_like, shape (..., d)
        The means.
    lse_a, lse_b : array_like, shape (...)
        Log-sum-exp of the scores behind them; for a single candidate its score. −∞ for none.

    Returns
    -------
    ndarray, shape (..., d)
        In the common dtype; 0 where both sides have no candidate.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    References
    ----------
    The merge kernel released with 2507.04416, label rat-merge.
    """
    # eq: rat-merge
    merged, _ = merge_attention((out_a, out_b), (lse_a, lse_b))
    return merged


def chunk_rope(x: np.ndarray, positions: Any, *, base: float | None) -> np.ndarray:
    """Rotate heads by the index of their chunk, channel i with channel i + dh/2.

    Parameters
    ----------
    x : ndarray, shape (..., S, dh)
        Queries or keys.
    positions : array_like, shape (S,)
        Chunk index of every row.
    base : float, optional
        Base of the frequencies; None returns ``x`` as it is.

    Returns
    -------
    ndarray, shape (..., S, dh)
        Rotated by position · base^(−2i/dh).

    Raises
    ------
    ValueError
        If dh is odd: channels turn in pairs.
    """
    if base is None:
        return x
    require(x.shape[-1] % 2 == 0, f"head width {x.shape[-1]} is odd: rotary positions turn channels in pairs")
    freqs, _ = rope_frequencies(x.shape[-1], theta=base)  # (dh/2,)
    return rope(x, rope_angles(positions, freqs))


def split_heads(x: np.ndarray, num_heads: int) -> np.ndarray:
    """Cut the width into heads.

    Parameters
    ----------
    x : ndarray, shape (B, T, D)
        Activations.
    num_heads : int
        H; divides D.

    Returns
    -------
    ndarray, shape (B, H, T, dh)
    """
    *lead, length, width = x.shape
    return np.swapaxes(x.reshape(*lead, length, num_heads, width // num_heads), -2, -3)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """Lay heads side by side again.

    Parameters
    ----------
    x : ndarray, shape (B, H, T, dh)
        Heads.

    Returns
    -------
    ndarray, shape (B, T, D)
    """
    *lead, num_heads, length, head_width = x.shape
    return np.swapaxes(x, -2, -3).reshape(*lead, length, num_heads * head_width)


def _checked_heads(q: Any, k: Any, v: Any, chunk_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q, k, v = as_float("q", q), as_float("k_state", k), as_float("v_state", v)
    require(q.ndim >= 2, f"q has shape {q.shape}, expected (B, H, T, dh)")
    require_shape("k_state", k, q.shape)
    require_shape("v_state", v, q.shape)
    require(chunk_size >= 1, f"chunk_size={chunk_size} must be >= 1")
    require(q.shape[-2] % chunk_size == 0, f"length T={q.shape[-2]} is not a multiple of chunk_size={chunk_size}")
    return q, k, v


def _over_or_own(chunk: np.ndarray, count: int) -> np.ndarray:
    """Return which of the ``count`` memories, and last the own state, each token sees: (T, C + 1)."""
    over = np.arange(count) < chunk[:, None]  # (T, C)
    return np.concatenate([over, np.ones((len(chunk), 1), dtype=bool)], axis=-1)
