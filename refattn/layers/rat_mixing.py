"""The matrix, one a channel, that recurrence and attention together mix tokens with (RAT, 2507.04416)."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.scan import gated_scan_weights

__all__ = ["rat_mixing_matrix"]


def rat_mixing_matrix(gate: Any, attn: Any, *, chunk_size: int) -> np.ndarray:
    """Return M with o[t] = Σ_s M[t, s] v[s]: how recurrence and attention together mix the tokens, channel by channel.

    Parameters
    ----------
    gate : array_like, shape (B, T, D)
        Forget gate g, from `RATAux`.
    attn : array_like, shape (B, H, T, C + 1)
        Weights of `chunk_attention`, from `RATAux`.
    chunk_size : int
        L.

    Returns
    -------
    ndarray, shape (B, T, T, D)
        Lower triangular, not negative. Row t sums to Σ_c a[t, c] (1 − Π gates of chunk c), the own chunk up to t.

    Raises
    ------
    ValueError
        If the shapes do not fit together.

    Notes
    -----
    Value s is worth what the gates leave of it at the end e of its chunk (or at t, in the own chunk), times the
    attention weight on that chunk: M[t, s] = a[t, c(s)] (1 − g_s) Π_{s < j ≤ e} g_j.

    References
    ----------
    Label rat-mixing [derived].
    """
    gate, attn = as_float("gate", gate), as_float("attn", attn)
    length, width = gate.shape[-2:]
    require(length % chunk_size == 0, f"length T={length} is not a multiple of chunk_size={chunk_size}")
    num_heads, count = attn.shape[-3], length // chunk_size
    require_shape("attn", attn, (*gate.shape[:-2], num_heads, length, count + 1))
    chunk = np.arange(length) // chunk_size  # (T,)
    a = np.repeat(np.moveaxis(attn, -3, -1), width // num_heads, axis=-1)  # (B, T, C + 1, D)

    inside = gated_scan_weights(gate, chunk_size=chunk_size)  # (B, T, T, D), 0 across chunks
    left = inside[..., chunk * chunk_size + chunk_size - 1, np.arange(length), :]  # (B, T, D), at each chunk's end
    # eq: rat-mixing
    memories = a[..., chunk, :] * left[..., None, :, :]  # (B, T, T, D); a is 0 for chunks not over
    mixing: np.ndarray = memories + a[..., -1:, :] * inside
    return mixing
