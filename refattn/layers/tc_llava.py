"""Attention that knows video frames: positions that count time too, and a mask that opens each frame (2409.03206).

Every token has two positions, its place in the sequence and its time; queries and keys are turned by both rotations.
The mask stays causal from frame to frame and is open inside a frame. Positions and mask are made in
`refattn.layers.tc_llava_positions`; equation labels (tc-1) … (tc-7) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.tc_llava_positions import (
    VisualSegment,
    allowed_pairs,
    decode_positions,
    dual_positions,
    frame_block_causal_mask,
    frame_ids,
    temporal_position_ids,
    video_ids,
)
from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.rotary import rope, rope_angles, rope_frequencies
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "TCAttentionWeights",
    "TCCost",
    "VisualSegment",
    "allowed_pairs",
    "attention_cost",
    "decode_positions",
    "dual_positions",
    "dual_rope_attention",
    "frame_block_causal_mask",
    "frame_ids",
    "rope_rotate",
    "temporal_position_ids",
    "video_ids",
]


class TCAttentionWeights(NamedTuple):
    """The four projections of one layer, used as ``x @ w``; they have no biases.

    Attributes
    ----------
    wq, wk, wv, wo : ndarray, shape (D, D)
        Of queries, keys, values and the output. Head h owns columns h·d … (h + 1)·d − 1 of the first three.
    """

    wq: np.ndarray
    wk: np.ndarray
    wv: np.ndarray
    wo: np.ndarray


class TCCost(NamedTuple):
    """What one dense pass of the layer costs beyond its projections.

    Attributes
    ----------
    score_flops, value_flops : int
        Floating-point operations of q kᵀ and of the weighted average, a multiplication and an addition counted as two.
    weight_entries : int
        Numbers in the attention weights.
    """

    score_flops: int
    value_flops: int
    weight_entries: int


def dual_rope_attention(
    x: Any,
    weights: TCAttentionWeights,
    segments: Sequence[Sequence[int]],
    *,
    n_heads: int,
    gamma: float = 1.0,
    variant: str = "fwbc",
    base: float = 10000.0,
    tail: str = "continue",
    return_weights: bool = False,
) -> Any:
    """Attend with queries and keys turned by place and by time, under the frame-wise block causal mask.

    1. Project to queries, keys and values, H heads of width d = D/H.
    2. Turn queries and keys by p(n) = n + γ T(n); values stay as they are.
    3. Softmax of the scaled scores over the keys that the mask allows.
    4. Average the values, merge the heads, project.

    Parameters
    ----------
    x : array_like, shape (B, N, D)
        The token sequence, text and visual tokens mixed.
    weights : TCAttentionWeights
        The projections.
    segments : sequence of VisualSegment or of three int
        Where the videos are; see `frame_ids`.
    n_heads : int
        The number of heads H, a divisor of D; D/H is even.
    gamma, tail
        See `dual_positions`.
    variant
        See `frame_block_causal_mask`.
    base : float
        The base of the rotary frequencies.
    return_weights : bool
        Return the attention weights too.

    Returns
    -------
    out : ndarray, shape (B, N, D)
        In the dtype of ``x``.
    weights : ndarray, shape (B, H, N, N)
        Only with ``return_weights``; every row sums to 1.

    Raises
    ------
    ValueError
        If ``x`` is not three-dimensional, D is no multiple of H, D/H is odd, a weight is not (D, D), or an option is
        out of range.

    Notes
    -----
    No official code is public; three points follow what public implementations run. The default γ = 1 is what they
    fix, the paper's best value was not available. A single image is a video of one frame. After a video, time goes on
    with a new step; ``tail="eq5"`` is the other reading of the paper's Eq. 5. The paper rotates twice, by n and then
    by γ T(n) with the same frequencies on the same channels: rotations by the same frequencies add, so one rotation
    by the sum is the same operator (Eq. 6).

    Re-implementations differ from this rule in three ways that are mistakes: adding n inside T and rotating by n as
    well (2n + γT), flooring γT, and counting frames from the start of the sequence rather than of the video. VideoRoPE
    runs these positions under a plain causal mask, ``variant="causal"`` here.

    References
    ----------
    2409.03206, Eq. 5 for (tc-1) and Eq. 6 for (tc-2) [recalled]; the mask (tc-4) is the rule of its abstract.
    """
    x, weights = _checked(x, weights, n_heads)
    length = x.shape[1]
    positions = dual_positions(length, segments, gamma=gamma, tail=tail)  # p (N,)
    allowed = frame_block_causal_mask(length, segments, variant=variant)  # (N, N)
    q, k, v = _project(x, weights, positions, n_heads=n_heads, base=base)  # 1, 2
    out, a = _attend(q, k, v, allowed, weights.wo)  # 3, 4
    return (out, a) if return_weights else out


def rope_rotate(x: Any, positions: Any, *, base: float = 10000.0) -> np.ndarray:
    """Turn the channel pairs (i, i + d/2) of ``x`` by position · base^(−2i/d).

    Parameters
    ----------
    x : array_like, shape (..., N, d)
        Queries or keys of one head; d even.
    positions : array_like, shape (N,)
        Any finite reals; they need not be integers.
    base : float
        The base of the frequencies.

    Returns
    -------
    ndarray, shape (..., N, d)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If d is odd, the positions are not N finite numbers, or ``base`` is not positive.
    """
    x, positions = as_float("x", x), as_float("positions", positions)
    require(x.ndim >= 2, f"x has shape {x.shape}, expected (..., N, d)")
    require(x.shape[-1] % 2 == 0, f"head dimension must be even for rotary embedding, got {x.shape[-1]}")
    require_shape("positions", positions, x.shape[-2:-1])
    require(np.all(np.isfinite(positions)), "positions must be finite")
    freqs, _ = rope_frequencies(x.shape[-1], theta=base)  # (d/2,)
    # eq: tc-3
    return rope(x, rope_angles(positions, freqs))


def attention_cost(batch: int, length: int, width: int, n_heads: int) -> TCCost:
    """Return what scores and averages cost in a dense pass; the mask changes none of it.

    Parameters
    ----------
    batch, length, width, n_heads : int
        B, N, D and H.

    Returns
    -------
    TCCost
        2BN²D operations for the scores, as many for the averages, BHN² weights.

    Raises
    ------
    ValueError
        If a size is negative.
    """
    require(min(batch, length, width, n_heads) >= 0, f"sizes {(batch, length, width, n_heads)!r} must be >= 0")
    product = 2 * batch * length**2 * width
    return TCCost(product, product, batch * n_heads * length**2)


def _project(
    x: np.ndarray, weights: TCAttentionWeights, positions: np.ndarray, *, n_heads: int, base: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return queries, keys (both turned) and values of each head."""
    B, N, D = x.shape
    heads = (B, N, n_heads, D // n_heads)
    q, k, v = (np.swapaxes((x @ w).reshape(heads), 1, 2) for w in weights[:3])  # (B, H, N, d) each
    return rope_rotate(q, positions, base=base), rope_rotate(k, positions, base=base), v


def _attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, allowed: np.ndarray, wo: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the projected average of the values, and the weights of the average."""
    B, H, N, d = q.shape
    # eq: tc-5
    s = q @ np.swapaxes(k, -1, -2) / d**0.5  # (B, H, N, M)
    a = softmax(s, axis=-1, where=allowed)  # (B, H, N, M)
    # eq: tc-6
    out = np.swapaxes(a @ v, 1, 2).reshape(B, N, H * d) @ wo  # (B, N, D)
    return out, a


def _checked(x: Any, weights: TCAttentionWeights, n_heads: int) -> tuple[Any, TCAttentionWeights]:
    """Return tokens and weights as floating arrays of fitting shapes."""
    x = as_float("x", x, ndim=3)
    D = x.shape[-1]
    require(index(n_heads) >= 1 and D % n_heads == 0, f"n_heads={n_heads!r} must divide the width D={D} of x")
    require((D // n_heads) % 2 == 0, f"head dimension must be even for rotary embedding, got {D // n_heads}")
    projections = [as_float(f"weights.{n}", w) for n, w in zip(TCAttentionWeights._fields, weights, strict=True)]
    for name, w in zip(TCAttentionWeights._fields, projections, strict=True):
        require_shape(f"weights.{name}", w, (D, D))
    return x, TCAttentionWeights(*(w.astype(x.dtype, copy=False) for w in projections))
