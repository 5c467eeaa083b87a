"""RAT one token at a time: one memory slot a chunk, and a running state (2507.04416).

The cache of a layer holds 2 ⌈T/L⌉ D + 2 D numbers a sequence, where attention would hold 2 T D.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.layers.rat import RATWeights, rat_layer, rat_projections
from refattn.layers.rat_attention import chunk_rope, merge_heads, split_heads
from refattn.primitives.arguments import as_float, require, require_finite, require_shape
from refattn.primitives.softmax import softmax

__all__ = ["RATCache", "RATStep", "rat_init_cache", "rat_prefill", "rat_step"]


class RATCache(NamedTuple):
    """What a RAT layer remembers of the tokens so far.

    Attributes
    ----------
    k_mem : ndarray, shape (B, H, C_max, dh)
        Slot c: the running key at the latest token of chunk c, rotated by c.
    v_mem : ndarray, shape (B, H, C_max, dh)
        Slot c: the running value at the latest token of chunk c.
    k_last, v_last : ndarray, shape (B, D)
        Running key, *not* rotated, and running value at the latest token.
    length : int
        How many tokens came so far.
    """

    k_mem: np.ndarray
    v_mem: np.ndarray
    k_last: np.ndarray
    v_last: np.ndarray
    length: int


class RATStep(NamedTuple):
    """What one call gives: the output, and the fields of the cache after it.

    Attributes
    ----------
    out : ndarray, shape (B, T, D)
        Activations plus what the layer adds; T = 1 for a step.
    k_mem, v_mem, k_last, v_last, length
        As in `RATCache`.
    """

    out: np.ndarray
    k_mem: np.ndarray
    v_mem: np.ndarray
    k_last: np.ndarray
    v_last: np.ndarray
    length: int

    @property
    def cache(self) -> RATCache:
        """The cache to pass to the next step."""
        return RATCache(*self[1:])


def rat_init_cache(
    batch: int,
    max_len: int,
    d_model: int,
    *,
    num_heads: int,
    chunk_size: int = 16,
    dtype: Any = np.float64,
) -> RATCache:
    """Return an empty cache with room for ``max_len`` tokens.

    Parameters
    ----------
    batch : int
        B, how many sequences.
    max_len : int
        How many tokens each may reach; rounded up to whole chunks.
    d_model, num_heads : int
        D and H; H divides D.
    chunk_size : int
        L.
    dtype : dtype
        Of the arrays.

    Returns
    -------
    RATCache
        All zeros, length 0.

    Raises
    ------
    ValueError
        If a size is negative, ``chunk_size`` is below 1, or H does not divide D.
    """
    require(chunk_size >= 1, f"chunk_size={chunk_size} must be >= 1")
    require(min(batch, max_len) >= 0, f"batch={batch} and max_len={max_len} must be >= 0")
    require(
        num_heads >= 1 and d_model % num_heads == 0,
        f"d_model must be divisible by num_heads: d_model={d_model}, num_heads={num_heads}",
    )
    slots = -(-max_len // chunk_size)
    memory = np.zeros((batch, num_heads, slots, d_model // num_heads), dtype)  # (B, H, C_max, dh)
    last = np.zeros((batch, d_model), dtype)  # (B, D)
    return RATCache(memory, memory.copy(), last, last.copy(), 0)


def rat_prefill(
    x: Any,
    weights: RATWeights,
    *,
    num_heads: int,
    num_groups: int = 2,
    chunk_size: int = 16,
    rope_base: float | None = 10000.0,
    norm_eps: float = 1e-6,
    check_finite: bool = False,
    prompt_len: int | None = None,
    max_len: int | None = None,
) -> RATStep:
    """Run the layer over a whole prompt and return the cache from which `rat_step` goes on.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        The prompt, of any length; the part beyond ``prompt_len`` is padding.
    weights : RATWeights
        See there.
    num_heads, num_groups, chunk_size, rope_base, norm_eps, check_finite
        As in `refattn.layers.rat.rat_layer`.
    prompt_len : int, optional
        How many of the T tokens are true; all, if not given.
    max_len : int, optional
        How many tokens the cache has room for; T, if not given. Rounded up to whole chunks.

    Returns
    -------
    RATStep
        ``out`` (B, T, D) is what `rat_layer` gives; rows from ``prompt_len`` on belong to padding and mean nothing.
        ``cache`` is the state after the last true token.

    Raises
    ------
    ValueError
        As `rat_layer`, but for the length; and if ``prompt_len`` or ``max_len`` do not fit T.

    Notes
    -----
    The prompt is padded by zeros to whole chunks (1), run through the parallel form (2), all chunk memories are written
    to their slots (3), and the running states are taken at the last *true* token (4). If the prompt ends inside a
    chunk, the slot of that chunk holds a state that padding went through. No output depends on it: the next step
    writes the slot anew before it reads it. The released code does the same.

    References
    ----------
    2507.04416 and the cache released with it, labels rat-9 to rat-11.
    """
    x = as_float("x", x, ndim=3, refuse_integers=ValueError)
    batch, length, width = x.shape
    prompt_len = length if prompt_len is None else index(prompt_len)
    max_len = length if max_len is None else index(max_len)
    require(0 <= prompt_len <= length, f"prompt_len={prompt_len} must be in 0..T={length}")
    require(max_len >= length, f"max_len={max_len} must be >= the length T={length} of x")
    require(chunk_size >= 1, f"chunk_size={chunk_size} must be >= 1")

    # 1
    padding = np.zeros((batch, -length % chunk_size, width), x.dtype)
    padded = np.concatenate([x, padding], axis=1)  # (B, C L, D)
    # 2
    y, aux = rat_layer(
        padded,
        weights,
        num_heads=num_heads,
        num_groups=num_groups,
        chunk_size=chunk_size,
        rope_base=rope_base,
        norm_eps=norm_eps,
        check_finite=check_finite,
        return_aux=True,
    )
    # 3
    k, v = (split_heads(a[:, chunk_size - 1 :: chunk_size], num_heads) for a in (aux.k_state, aux.v_state))
    k = chunk_rope(k, np.arange(k.shape[-2]), base=rope_base)  # (B, H, C, dh)
    free = ((0, 0), (0, 0), (0, -(-max_len // chunk_size) - k.shape[-2]), (0, 0))
    # 4
    k_last, v_last = (_row(a, prompt_len - 1) for a in (aux.k_state, aux.v_state))  # (B, D)
    return RATStep(y[:, :length], np.pad(k, free), np.pad(v, free), k_last, v_last, prompt_len)


def rat_step(
    x_t: Any,
    weights: RATWeights,
    cache: RATCache,
    *,
    num_heads: int,
    num_groups: int = 2,
    chunk_size: int = 16,
    rope_base: float | None = 10000.0,
    norm_eps: float = 1e-6,
    check_finite: bool = False,
) -> RATStep:
    """Run the layer on the next token: update the running state, write it to the chunk's slot, attend to all slots.

    Parameters
    ----------
    x_t : array_like, shape (B, 1, D)
        Activations of one token.
    weights : RATWeights
        See there.
    cache : RATCache
        From `rat_init_cache`, `rat_prefill` or the step before. It is not written to.
    num_heads, num_groups, chunk_size, rope_base, norm_eps, check_finite
        As in `refattn.layers.rat.rat_layer`.

    Returns
    -------
    RATStep
        ``out`` (B, 1, D) is the row that `rat_layer` would give for this token; ``cache`` is one token longer.

    Raises
    ------
    ValueError
        If ``x_t`` does not hold one token, the cache is full or has other sizes, or as in `rat_layer`.

    Notes
    -----
    The released code fails for tokens of the first chunk when there is more than one head: it leaves the output in head
    layout. Here the first chunk is not special. Its only slot is the token's own state, so the output is ṽ, and
    decoding from an empty cache works.

    References
    ----------
    2507.04416 and the cache released with it, labels rat-9 to rat-11.
    """
    x_t = as_float("x_t", x_t, ndim=3, refuse_integers=ValueError)
    t, c = _position(x_t, cache, num_heads, chunk_size)
    if check_finite:
        require_finite("x_t", x_t)
    projected = rat_projections(x_t, weights, num_heads=num_heads, num_groups=num_groups, norm_eps=norm_eps)
    z, v, g, q, k = (a[:, 0] for a in projected)  # (B, D) each

    # eq: rat-9
    starts = t % chunk_size == 0
    k_last = (1 - g) * k if starts else g * cache.k_last + (1 - g) * k  # (B, D)
    v_last = (1 - g) * v if starts else g * cache.v_last + (1 - g) * v  # (B, D)

    # eq: rat-10
    q, k, v = (split_heads(a[:, None], num_heads) for a in (q, k_last, v_last))  # (B, H, 1, dh)
    q, k = (chunk_rope(a, np.array([c]), base=rope_base) for a in (q, k))
    k_mem, v_mem = cache.k_mem.copy(), cache.v_mem.copy()  # (B, H, C_max, dh)
    k_mem[:, :, c : c + 1], v_mem[:, :, c : c + 1] = k, v

    # eq: rat-11
    k, v = (memory[:, :, : c + 1].astype(np.float64, copy=False) for memory in (k_mem, v_mem))  # (B, H, c + 1, dh)
    scores = q.astype(np.float64, copy=False) @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])  # (B, H, 1, c + 1)
    out = merge_heads(softmax(scores) @ v).astype(x_t.dtype, copy=False)  # (B, 1, D)
    added = (z[:, None] * out) @ weights.w_out  # (B, 1, D)
    y_t = x_t + added.astype(x_t.dtype, copy=False)
    return RATStep(y_t, k_mem, v_mem, k_last, v_last, t + 1)


def _row(states: np.ndarray, t: int) -> np.ndarray:
    """Return the state after token t; zero before the first."""
    return states[:, t] if t >= 0 else np.zeros_like(states, shape=(states.shape[0], states.shape[2]))


def _position(x_t: np.ndarray, cache: RATCache, num_heads: int, chunk_size: int) -> tuple[int, int]:
    """Return the token's index and its chunk's, or say what does not fit."""
    batch, length, width = x_t.shape
    require(length == 1, f"x_t has length {length}, expected 1: a step takes one token")
    require(chunk_size >= 1, f"chunk_size={chunk_size} must be >= 1")
    require(
        num_heads >= 1 and width % num_heads == 0,
        f"d_model must be divisible by num_heads: d_model={width}, num_heads={num_heads}",
    )
    slots = cache.k_mem.shape[-2]
    for name in ("k_mem", "v_mem"):
        require_shape(f"cache.{name}", getattr(cache, name), (batch, num_heads, slots, width // num_heads))
    for name in ("k_last", "v_last"):
        require_shape(f"cache.{name}", getattr(cache, name), (batch, width))
    t = index(cache.length)
    require(0 <= t < slots * chunk_size, f"cache is full: length={t}, {slots} slots of chunk_size={chunk_size} tokens")
    return t, t // chunk_size
