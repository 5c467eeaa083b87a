"""Mistakes that people make with tc_llava, each one exchanged step of the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.tc_llava.variations import (
    Segments,
    append,
    attention,
    blocks,
    ids,
    mask,
    positions,
    positions_step,
    prefill,
    turn,
    visible,
    weigh,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["APPEND_BUGS", "ATTENTION_BUGS", "IDS_BUGS", "MASK_BUGS", "POSITION_BUGS", "PREFILL_BUGS"]


def _global_added_twice(n: np.ndarray, T: np.ndarray, gamma: float) -> Any:
    ids_with_place = n + gamma * T
    return n + ids_with_place


def _gamma_floored(n: np.ndarray, T: np.ndarray, gamma: float) -> Any:
    return n + np.floor(gamma * T)


def _gamma_ignored(n: np.ndarray, T: np.ndarray, gamma: float) -> Any:
    del gamma
    return n + T


def _time_replaces_place(n: np.ndarray, T: np.ndarray, gamma: float) -> Any:
    del n
    return T + gamma * T


def _place_only(n: np.ndarray, T: np.ndarray, gamma: float) -> Any:
    del T, gamma
    return 1.0 * n


def _tail_repeats_last_frame(length: int, segments: Segments, tail: str = "continue") -> Any:
    del tail
    return ids(length, segments, "eq5")


def _tail_continues(length: int, segments: Segments, tail: str = "continue") -> Any:
    del tail
    return ids(length, segments, "continue")


def _frames_from_sequence_start(length: int, segments: Segments, tail: str = "continue") -> Any:
    T = ids(length, segments, tail)
    for start, n_frames, m in segments:
        inside = slice(start, start + n_frames * m)
        T[inside] = np.arange(length)[inside] // m
    return T


def _time_restarts(length: int, segments: Segments, tail: str = "continue") -> Any:
    T = ids(length, segments, tail)
    for start, n_frames, m in segments:
        T[start : start + n_frames * m] = np.arange(n_frames).repeat(m)
    return T


def _text_stands_still(length: int, segments: Segments, tail: str = "continue") -> Any:
    del tail
    first = {start + f * m for start, n_frames, m in segments for f in range(n_frames)}
    return np.cumsum([n in first for n in range(length)], dtype=np.int64)


def _causal_inside_frames(length: int, segments: Segments, variant: str) -> Any:
    return blocks(length, segments, "causal" if variant == "fwbc" else variant)


def _full_visual_leak(length: int, segments: Segments, variant: str) -> Any:
    return blocks(length, segments, "full_visual" if variant == "fwbc" else variant)


def _frame_numbers_restart(length: int, segments: Segments, variant: str) -> Any:
    number = blocks(length, segments, variant)
    for start, n_frames, m in segments:
        inside = slice(start, start + n_frames * m)
        number[inside] = np.where(number[inside] < 0, -1, number[inside] - number[start])
    return number


def _neighbours_merged(length: int, segments: Segments, variant: str) -> Any:
    number = blocks(length, segments, variant)
    ends = {start + n_frames * m for start, n_frames, m in segments}
    for start, _, _ in segments:
        if start in ends and variant != "causal":
            number[number == number[start]] = number[start - 1]
    return number


def _text_is_a_block(block: np.ndarray) -> Any:
    return np.tri(len(block), dtype=bool) | (block[:, None] == block)


def _own_frame_only(block: np.ndarray) -> Any:
    past = np.tri(len(block), dtype=bool)
    return np.where(block[:, None] >= 0, block[:, None] == block, past)


def _itself_unseen(block: np.ndarray) -> Any:
    seen = np.tri(len(block), k=-1, dtype=bool) | ((block[:, None] == block) & (block >= 0))
    seen[:1, :1] = True
    return seen


def _block_ends_late(block: np.ndarray) -> Any:
    later = np.concatenate([block[:1], block[:-1]])  # the token after a block passes for its last
    return visible(block) | ((block[:, None] == later) & (later >= 0))


def _interleaved_pairs(x: np.ndarray, p: np.ndarray, base: float) -> Any:
    half = x.shape[-1] // 2
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * p[:, None] * base ** (-np.arange(half) / half))
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def _frequencies_of_the_full_width(x: np.ndarray, p: np.ndarray, base: float) -> Any:
    full = np.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)
    return np.moveaxis(turn(full, p, base).reshape(np.moveaxis(x, 1, 2).shape), 2, 1)


def _base_ignored(x: np.ndarray, p: np.ndarray, base: float) -> Any:
    del base
    return turn(x, p, 10000.0)


def _scale_by_width(d: int) -> float:
    return 1.0 / d


def _heads_strided(x: np.ndarray, n_heads: int) -> Any:
    return np.moveaxis(x.reshape(*x.shape[:2], x.shape[-1] // n_heads, n_heads), 3, 1)


def _mask_after_softmax(s: np.ndarray, allowed: np.ndarray) -> Any:
    return np.where(allowed, weigh(s, np.ones_like(allowed)), 0.0)


def _values_turned(values: np.ndarray, p: np.ndarray, base: float) -> Any:
    return turn(values, p, base)


def _keys_without_time(n_of_keys: np.ndarray, T: np.ndarray, gamma: float, past: int) -> Any:
    del T, gamma
    return 1.0 * n_of_keys[past:]


def _cached_keys_turned(keys_in_cache: np.ndarray, p: np.ndarray, base: float) -> Any:
    return turn(keys_in_cache, p, base)


def _time_one_early(n: np.ndarray, T: np.ndarray, gamma: float, past: int) -> Any:
    return n[past:] + gamma * (T[past:] - 1)


def _place_restarts(n: np.ndarray, T: np.ndarray, gamma: float, past: int) -> Any:
    return (n[past:] - past) + gamma * T[past:]


def _time_counts_tokens(n: np.ndarray, T: np.ndarray, gamma: float, past: int) -> Any:
    del T
    return n[past:] + gamma * n[past:]


def _rows_from_the_top(allowed: np.ndarray, past: int) -> Any:
    return allowed[: len(allowed) - past]


def _new_tokens_are_a_block(allowed: np.ndarray, past: int) -> Any:
    return allowed[past:] | (np.arange(len(allowed)) >= past)


def _oldest_key_dropped(allowed: np.ndarray, past: int) -> Any:
    return allowed[past:] & (np.arange(len(allowed)) > 0)


def _summing(kind: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    """Return a kind that takes its positions by another sum."""
    return lambda sum_up: kind(new_positions=positions_step(sum_up))


def _variant(case: Case) -> str:
    return str(case.options.get("variant", "fwbc"))


def _opens(case: Case) -> bool:
    return _variant(case) != "causal" and any(n * m > 1 for _, n, m in case.options["segments"])


def _neighbours(case: Case) -> bool:
    starts = {start for start, _, _ in case.options["segments"]}
    return _variant(case) != "causal" and any(s + n * m in starts for s, n, m in case.options["segments"])


def _many_heads(case: Case) -> bool:
    return int(case.options["n_heads"]) > 1


def _has_pairs(case: Case) -> bool:
    return bool(case.arrays["x"].shape[-1] > 2 * case.options["n_heads"])


SUMS = (
    Mistake(
        "sum_up", _global_added_twice, "the place is in the times already and is added again: 2n + γT", "p = n + γT."
    ),
    Mistake("sum_up", _gamma_floored, "γT is rounded down to whole positions", "Positions are real numbers: keep γT."),
    Mistake("sum_up", _gamma_ignored, "γ is taken to be 1", "Multiply the time by γ before adding it."),
    Mistake("sum_up", _time_replaces_place, "visual tokens lose their place: T + γT", "Time is added to the place n."),
    Mistake("sum_up", _place_only, "no time at all: ordinary rotary positions", "Turn by n and by γT."),
)
IDS = (
    Mistake(
        "ids",
        _tail_repeats_last_frame,
        "text after a video repeats the time of the last frame although the tail continues",
        "After the last frame the clock ticks once more, unless tail='eq5' is asked for.",
    ),
    Mistake("ids", _tail_continues, "tail='eq5' is ignored", "With tail='eq5' every later id is smaller by one."),
    Mistake(
        "ids",
        _frames_from_sequence_start,
        "frames are counted from the start of the sequence: n // m inside a video",
        "Count frames from the start of the video, on from the time of what came before.",
    ),
    Mistake("ids", _time_restarts, "time restarts at 0 with every video", "One clock runs through text and videos."),
    Mistake("ids", _text_stands_still, "only frames advance the clock", "A text token lasts one step, like a frame."),
)
BLOCKS = (
    Mistake(
        "blocks",
        _causal_inside_frames,
        "plain causal mask: a frame does not see its own later tokens",
        "Open every frame: j ≤ i or the same frame.",
        _opens,
    ),
    Mistake(
        "blocks",
        _full_visual_leak,
        "the whole video is one block: early frames see later ones",
        "A block is one frame, not one video.",
        _opens,
    ),
    Mistake(
        "blocks",
        _frame_numbers_restart,
        "blocks are numbered from 0 in every video, and equal numbers see each other",
        "Count frames over all segments.",
        _opens,
    ),
    Mistake(
        "blocks",
        _neighbours_merged,
        "videos without text between share a block",
        "Blocks end with a frame.",
        _neighbours,
    ),
    Mistake(
        "visible",
        _text_is_a_block,
        "text has the number −1 and so makes one block: text sees later text",
        "Block numbers must be equal and ≥ 0.",
    ),
    Mistake(
        "visible", _own_frame_only, "a visual token sees its frame and no past", "j ≤ i or the same frame.", _opens
    ),
    Mistake("visible", _itself_unseen, "j < i instead of j ≤ i", "The diagonal is visible."),
    Mistake("visible", _block_ends_late, "a block reaches one token too far", "A frame's end is exclusive.", _opens),
)
REST = (
    Mistake("turn", _interleaved_pairs, "channels are paired (2i, 2i + 1)", "Pair i with i + d/2.", _has_pairs),
    Mistake(
        "turn",
        _frequencies_of_the_full_width,
        "the rotation is applied before the heads are split, over all D channels",
        "Turn each head, with the frequencies of d = D/H.",
        _many_heads,
    ),
    Mistake("turn", _base_ignored, "the base is 10000 whatever is asked for", "Use the base that is given."),
    Mistake("turn_values", _values_turned, "values are turned like keys", "Turn queries and keys only."),
    Mistake("new_key_positions", _keys_without_time, "only queries are turned by time", "Turn keys by n + γT too."),
    Mistake("scale", _scale_by_width, "scores are divided by d", "Divide by √d."),
    Mistake("split", _heads_strided, "head h takes channels h, h + H, …", "A head is a run of channels.", _many_heads),
    Mistake(
        "weigh",
        _mask_after_softmax,
        "hidden weights are set to 0 after the softmax and not shared out again",
        "Hide scores with −∞ before the softmax.",
    ),
)
APPENDED = (
    Mistake("new_positions", _time_one_early, "the first new token repeats the last time", "T = T_max + 1 + t."),
    Mistake("new_positions", _place_restarts, "the place of new tokens is counted from 0", "n = N + t."),
    Mistake(
        "new_positions",
        _time_counts_tokens,
        "time is the length of the cache, as if every patch were a frame",
        "The prompt took T_max + 1 steps, fewer than its N tokens.",
    ),
    Mistake("new_rows", _rows_from_the_top, "the mask is aligned with the first keys", "New token t stands at N + t."),
    Mistake("new_rows", _new_tokens_are_a_block, "all new tokens see each other", "Only visual blocks are open."),
    Mistake("new_rows", _oldest_key_dropped, "the first key of the cache is left out", "Read the whole cache."),
    Mistake(
        "turn_cached", _cached_keys_turned, "kept keys are turned again when read", "Turn a key once, when it enters."
    ),
    BLOCKS[0],
    BLOCKS[1],
)

ATTENTION_BUGS = (
    *(mistake.planted(_summing(attention)) for mistake in SUMS),
    *(mistake.planted(attention) for mistake in (*IDS, *BLOCKS, *REST)),
)
PREFILL_BUGS = (
    SUMS[-1].planted(_summing(prefill), "prefill_"),
    *(mistake.planted(prefill, "prefill_") for mistake in (IDS[3], BLOCKS[0])),
)
APPEND_BUGS = tuple(mistake.planted(append, "append_") for mistake in APPENDED)
IDS_BUGS = tuple(mistake.planted(lambda ids: ids, "ids_") for mistake in IDS)
POSITION_BUGS = tuple(mistake.planted(positions, "positions_") for mistake in SUMS)
MASK_BUGS = tuple(mistake.planted(mask, "mask_") for mistake in BLOCKS)
