"""The same layer, one block of tokens at a time: text token by token, video frame by frame (2409.03206).

A frame enters whole, because its tokens see each other; nothing that follows changes what came before, so the outputs
are those of the full pass, equations (tc-1) … (tc-6) of `refattn.layers.tc_llava`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.tc_llava import TCAttentionWeights, _attend, _checked, _project
from refattn.layers.tc_llava_positions import dual_positions, frame_block_causal_mask, visual_block_ids
from refattn.primitives.arguments import as_float, require, require_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TCCache", "tc_append", "tc_prefill"]


class TCCache(NamedTuple):
    """What the layer remembers of n tokens; rotations depend on the absolute position, so keys are kept turned.

    Attributes
    ----------
    k : ndarray, shape (B, H, n, d)
        Keys, turned by p(n).
    v : ndarray, shape (B, H, n, d)
        Values.
    """

    k: np.ndarray
    v: np.ndarray


def tc_prefill(
    x: Any,
    weights: TCAttentionWeights,
    segments: Sequence[Sequence[int]],
    *,
    n_heads: int,
    gamma: float = 1.0,
    variant: str = "fwbc",
    base: float = 10000.0,
    tail: str = "continue",
) -> tuple[np.ndarray, TCCache]:
    """Run the layer on a whole prompt and keep its keys and values.

    Parameters
    ----------
    x : array_like, shape (B, N, D)
        The prompt.
    weights, segments, n_heads, gamma, variant, base, tail
        As in `dual_rope_attention`.

    Returns
    -------
    out : ndarray, shape (B, N, D)
        The outputs of `dual_rope_attention`.
    cache : TCCache
        For `tc_append`.

    Raises
    ------
    ValueError
        As `dual_rope_attention`.
    """
    x, weights = _checked(x, weights, n_heads)
    nothing = np.zeros_like(x, shape=(x.shape[0], n_heads, 0, x.shape[-1] // n_heads))  # (B, H, 0, d)
    empty = TCCache(nothing, nothing)
    return tc_append(x, empty, weights, segments, n_heads=n_heads, gamma=gamma, variant=variant, base=base, tail=tail)


def tc_append(
    x: Any,
    cache: TCCache,
    weights: TCAttentionWeights,
    segments: Sequence[Sequence[int]],
    *,
    n_heads: int,
    gamma: float = 1.0,
    variant: str = "fwbc",
    base: float = 10000.0,
    tail: str = "continue",
) -> tuple[np.ndarray, TCCache]:
    """Run the layer on the tokens that follow a cache: a word, a frame, or any number of both.

    Parameters
    ----------
    x : array_like, shape (B, t, D)
        The new tokens. They may not cut a visual block: frames enter whole with ``fwbc``, videos with
        ``full_visual``.
    cache : TCCache
        Of the n tokens before.
    weights, n_heads, gamma, variant, base, tail
        As in `dual_rope_attention`, and the same in every call.
    segments : sequence of VisualSegment or of three int
        The segments of all n + t tokens, with indices from the start of the sequence. A video that is still arriving
        is the same segment with one frame more each time.

    Returns
    -------
    out : ndarray, shape (B, t, D)
        The last t outputs of the full pass over n + t tokens.
    cache : TCCache
        Of all n + t tokens.

    Raises
    ------
    ValueError
        If the new tokens begin inside a visual block, the cache does not fit, and as `dual_rope_attention`.
    """
    x, weights = _checked(x, weights, n_heads)
    k_past, v_past = _checked_cache(cache, x, n_heads)
    past = k_past.shape[2]
    length = past + x.shape[1]
    _require_whole_blocks(past, visual_block_ids(length, segments, variant=variant))
    # a later token changes neither position nor visibility of an earlier one: the new rows are all there is to do
    positions = dual_positions(length, segments, gamma=gamma, tail=tail)[past:]  # p (t,)
    allowed = frame_block_causal_mask(length, segments, variant=variant)[past:]  # (t, n + t)
    q, k, v = _project(x, weights, positions, n_heads=n_heads, base=base)  # (B, H, t, d) each
    k, v = np.concatenate([k_past, k], axis=2), np.concatenate([v_past, v], axis=2)  # (B, H, n + t, d)
    out, _ = _attend(q, k, v, allowed, weights.wo)
    return out, TCCache(k, v)


def _checked_cache(cache: TCCache, x: np.ndarray, n_heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cached keys and values, of one shape and in the dtype of ``x``."""
    k, v = as_float("cache.k", cache[0], ndim=4), as_float("cache.v", cache[1], ndim=4)
    require_shape("cache.k", k, (x.shape[0], n_heads, k.shape[2], x.shape[-1] // n_heads))
    require_shape("cache.v", v, k.shape)
    return k.astype(x.dtype, copy=False), v.astype(x.dtype, copy=False)


def _require_whole_blocks(past: int, blocks: np.ndarray) -> None:
    """Refuse a border between old and new tokens inside a visual block: its old tokens would miss its new ones."""
    cut = 0 < past < len(blocks) and blocks[past] >= 0 and blocks[past - 1] == blocks[past]
    require(not cut, f"x begins at token {past}, inside a visual block: frames (or videos) must enter whole")
