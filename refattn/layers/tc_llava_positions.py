"""Two clocks and a mask for sequences that hold videos: where a token stands, when it happens, what it may see.

From TC-LLaVA (2409.03206). Equation labels (tc-1), (tc-2), (tc-4) and (tc-7) are those of the page; the paper's own
numbers are Eq. 5 (temporal ids) and Eq. 6 (the sum of positions) [recalled].
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_integer, require, require_one_of
from refattn.primitives.masks import block_causal_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "VisualSegment",
    "allowed_pairs",
    "decode_positions",
    "dual_positions",
    "frame_block_causal_mask",
    "frame_ids",
    "temporal_position_ids",
    "video_ids",
    "visual_block_ids",
]

VARIANTS = ("fwbc", "causal", "full_visual")
TAILS = ("continue", "eq5")


class VisualSegment(NamedTuple):
    """A video inside the token sequence: frame after frame; a single image is one frame.

    Attributes
    ----------
    start : int
        Index of its first token.
    n_frames, tokens_per_frame : int
        It fills the indices from ``start`` to ``start + n_frames · tokens_per_frame − 1``.
    """

    start: int
    n_frames: int
    tokens_per_frame: int


def frame_ids(length: int, segments: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the running number of the frame that each token belongs to, −1 for text.

    Parameters
    ----------
    length : int
        The number of tokens N.
    segments : sequence of VisualSegment or of three int
        The videos, in order; anything that holds (start, n_frames, tokens_per_frame) will do.

    Returns
    -------
    ndarray of int, shape (N,)
        Frames are counted over all segments, so two videos never share a number.

    Raises
    ------
    ValueError
        If segments are unsorted, overlap, leave the sequence, or have no frames or no tokens in a frame.
    """
    found = _segments(length, segments)
    ids, seen = np.full(length, -1), 0  # (N,)
    for start, n_frames, m in found:
        ids[start : start + n_frames * m] = seen + np.arange(n_frames).repeat(m)
        seen += n_frames
    return ids


def video_ids(length: int, segments: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the number of the segment that each token belongs to, −1 for text.

    Parameters
    ----------
    length, segments
        As in `frame_ids`.

    Returns
    -------
    ndarray of int, shape (N,)
        Segments are counted from 0 in their order.

    Raises
    ------
    ValueError
        For segments that `frame_ids` refuses.
    """
    found = _segments(length, segments)
    ids = np.full(length, -1)  # (N,)
    for number, (start, n_frames, m) in enumerate(found):
        ids[start : start + n_frames * m] = number
    return ids


def temporal_position_ids(length: int, segments: Sequence[Sequence[int]], *, tail: str = "continue") -> np.ndarray:
    """Return T(n), the time of each token: a text token lasts one step, a whole frame lasts one step.

    Parameters
    ----------
    length : int
        The number of tokens N.
    segments : sequence of VisualSegment or of three int
        As in `frame_ids`.
    tail : {"continue", "eq5"}
        What follows a segment: ``continue`` goes on with the next step; ``eq5`` repeats the step of the last frame,
        so that every later id is smaller by one for each segment passed.

    Returns
    -------
    ndarray of int, shape (N,)
        Starts at 0 and grows by 0 or 1 from token to token.

    Raises
    ------
    ValueError
        For an unknown ``tail`` and segments that `frame_ids` refuses.

    Notes
    -----
    ``eq5`` is the last branch of the paper's Eq. 5 as one public transcription writes it, with v_e the last visual
    index [recalled]; the only runnable implementation continues, which is why that is the default here. For more
    than one segment Eq. 5 says nothing: subtracting once per segment is our definition.
    """
    require_one_of("tail", tail, TAILS)
    found = _segments(length, segments)
    ids = np.zeros(length, dtype=np.int64)  # (N,)
    place, time = 0, 0  # the next token, and its time
    # eq: tc-1
    for start, n_frames, m in found:
        ids[place:start] = time + np.arange(start - place)
        time += start - place
        place = start + n_frames * m
        ids[start:place] = time + np.arange(n_frames).repeat(m)
        time += n_frames if tail == "continue" else n_frames - 1
    ids[place:] = time + np.arange(length - place)
    return ids


def dual_positions(
    length: int, segments: Sequence[Sequence[int]], *, gamma: float = 1.0, tail: str = "continue"
) -> np.ndarray:
    """Return p(n) = n + γ T(n), the position whose one rotation equals the layer's two.

    Parameters
    ----------
    length, segments, tail
        As in `temporal_position_ids`.
    gamma : float
        The weight γ ≥ 0 of time; 0 gives back ordinary positions.

    Returns
    -------
    ndarray, shape (N,)
        Float64. A step is 1 + γ between text tokens and across a frame border, 1 inside a frame.

    Raises
    ------
    ValueError
        If ``gamma`` is negative or not finite, and as `temporal_position_ids`.
    """
    require(np.isfinite(gamma) and gamma >= 0, f"gamma={gamma!r} must be finite and >= 0")
    # eq: tc-2
    n, T = np.arange(length), temporal_position_ids(length, segments, tail=tail)  # (N,), (N,)
    positions: np.ndarray = n + float(gamma) * T
    return positions


def decode_positions(
    prompt_length: int,
    segments: Sequence[Sequence[int]],
    n_new: int,
    *,
    gamma: float = 1.0,
    tail: str = "continue",
) -> np.ndarray:
    """Return the positions of text tokens decoded after a prompt, without touching the prompt's.

    Parameters
    ----------
    prompt_length : int
        The number of tokens N in the prompt.
    segments : sequence of VisualSegment or of three int
        Those of the prompt.
    n_new : int
        How many tokens follow.
    gamma, tail
        As in `dual_positions`.

    Returns
    -------
    ndarray, shape (n_new,)
        p = (N + t) + γ (T_max + 1 + t), the last entries of `dual_positions` for the longer sequence. With
        ``tail="eq5"`` a token that follows a video at once repeats T_max.

    Raises
    ------
    ValueError
        If ``n_new`` is negative, and as `dual_positions`.
    """
    require(index(n_new) >= 0, f"n_new={n_new!r} must be >= 0")
    require(np.isfinite(gamma) and gamma >= 0, f"gamma={gamma!r} must be finite and >= 0")
    temporal_position_ids(prompt_length, segments, tail=tail)  # refuses segments that leave the prompt
    t = np.arange(n_new)  # (n_new,)
    # eq: tc-7
    T_next = temporal_position_ids(prompt_length + 1, segments, tail=tail)[-1]
    positions: np.ndarray = (prompt_length + t) + float(gamma) * (T_next + t)
    return positions


def visual_block_ids(length: int, segments: Sequence[Sequence[int]], *, variant: str = "fwbc") -> np.ndarray:
    """Return the number of the block that opens around each token, −1 where none does.

    Parameters
    ----------
    length, segments
        As in `frame_ids`.
    variant : {"fwbc", "causal", "full_visual"}
        The block is the token's own frame, nothing, or its whole video (the paper's ablation).

    Returns
    -------
    ndarray of int, shape (N,)
        `frame_ids`, −1 everywhere, or `video_ids`.

    Raises
    ------
    ValueError
        For an unknown ``variant`` and segments that `frame_ids` refuses.
    """
    require_one_of("variant", variant, VARIANTS)
    if variant == "full_visual":
        return video_ids(length, segments)
    ids = frame_ids(length, segments)
    return ids if variant == "fwbc" else np.full_like(ids, -1)


def frame_block_causal_mask(length: int, segments: Sequence[Sequence[int]], *, variant: str = "fwbc") -> np.ndarray:
    """Return which keys each query may see: the past, and what shares its visual block.

    Parameters
    ----------
    length, segments
        As in `frame_ids`.
    variant
        As in `visual_block_ids`.

    Returns
    -------
    ndarray of bool, shape (N, N)
        True at [i, j] if query i may see key j. The diagonal is always True: no row is empty.

    Raises
    ------
    ValueError
        For an unknown ``variant`` and segments that `frame_ids` refuses.
    """
    # eq: tc-4
    return block_causal_mask(visual_block_ids(length, segments, variant=variant))


def allowed_pairs(length: int, segments: Sequence[Sequence[int]], *, variant: str = "fwbc") -> int:
    """Return how many (query, key) pairs the mask allows, without building it.

    Parameters
    ----------
    length, segments, variant
        As in `frame_block_causal_mask`.

    Returns
    -------
    int
        N(N + 1)/2 for ``causal``; F·m(m − 1)/2 more for each segment with ``fwbc``, Fm(Fm − 1)/2 more with
        ``full_visual``. What ``fwbc`` adds is about (m − 1)/N of the causal pairs: nothing for long videos.

    Raises
    ------
    ValueError
        As `frame_block_causal_mask`.
    """
    require_one_of("variant", variant, VARIANTS)
    found = _segments(length, segments)
    blocks = {"causal": [], "fwbc": [(f, m) for _, f, m in found], "full_visual": [(1, f * m) for _, f, m in found]}
    return length * (length + 1) // 2 + sum(count * size * (size - 1) // 2 for count, size in blocks[variant])


def _segments(length: int, segments: Sequence[Sequence[int]]) -> list[VisualSegment]:
    """Return the segments by name, after checking that they lie in the sequence one after the other."""
    require(index(length) >= 0, f"length={length!r} must be >= 0")
    table = as_integer("segments", segments)
    require(
        table.size == 0 or table.shape[1:] == (3,),
        f"segments={segments!r} must be triples (start, n_frames, tokens_per_frame)",
    )
    found = [VisualSegment(*map(int, row)) for row in table.reshape(-1, 3)]
    ends = [start + n_frames * m for start, n_frames, m in found]
    in_order = all(start >= end for (start, _, _), end in zip(found, [0, *ends], strict=False))
    require(
        in_order and max(ends, default=0) <= length and all(min(f, m) >= 1 for _, f, m in found),
        f"visual segments must be sorted, disjoint and inside the sequence, with at least one frame of at least one "
        f"token: segments={[tuple(s) for s in found]!r}, length={length!r}",
    )
    return found
