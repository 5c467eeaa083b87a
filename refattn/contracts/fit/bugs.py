"""Mistakes that people make with FIT, each one exchanged step of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.fit.plain import autoregressive, cross, denoiser, encoder, extend, mask, shift, standardise, step

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = [
    "AR_BUGS",
    "CROSS_BUGS",
    "DENOISER_BUGS",
    "ENCODER_BUGS",
    "EXTEND_BUGS",
    "MASK_BUGS",
    "SHIFT_BUGS",
    "STEP_BUGS",
]

# what low precision cannot tell from rounding
FINE = ("float64", "float32")


def _deviation_of_a_sample(x: Any) -> Any:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6)


def _mean_left_in(x: Any) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def _scaled_by_stream(width: int, size: int) -> float:
    del size
    return float(width**-0.5)


def _softmax_plus_one(s: Any, allowed: Any) -> Any:
    s = np.where(allowed, s, -np.inf)
    most = np.maximum(s.max(-1, keepdims=True), 0.0)
    e = np.exp(s - most)
    return e / (np.exp(-most) + e.sum(-1, keepdims=True))


def _hidden_after(s: Any, allowed: Any) -> Any:
    e = np.exp(s - s.max(-1, keepdims=True))
    return np.where(allowed, e / e.sum(-1, keepdims=True), 0.0)


def _gelu_by_tanh(x: Any) -> Any:
    return 0.5 * x * (1.0 + np.tanh((2.0 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _stream_replaced(stream: Any, found: Any) -> Any:
    del stream
    return found


def _source_raw(e: Any, normalised: Any) -> Any:
    del normalised
    return e


def _source_twice_normalised(e: Any, normalised: Any) -> Any:
    del e
    return standardise(normalised)


def _first_for_all(E: Any, batch: int) -> Any:
    return np.broadcast_to(E[:1], (batch, *E.shape))


def _extra_last(extra: Any, tokens: Any) -> Any:
    return np.concatenate([tokens, extra], axis=2)


def _all_groups_read(x: Any) -> Any:
    B, t, n, d = x.shape
    return x.reshape(B, 1, t * n, d)


def _first_token_read(x: Any) -> Any:
    return x[:, :, :1]


def _causal_inside(n: int, decoder: bool) -> Any:
    del decoder
    return np.tri(n, dtype=bool)


def _open_inside(n: int, decoder: bool) -> Any:
    del decoder
    return np.ones((n, n), dtype=bool)


def _causal_by_latent(t: int, m: int, causal: bool) -> Any:
    return np.tri(t * m, dtype=bool) | (not causal)


def _turned_round(t: int, m: int, causal: bool) -> Any:
    group = np.repeat(np.arange(t), m)
    return (group >= group[:, None]) | (not causal)


def _always_causal(t: int, m: int, causal: bool) -> Any:
    del causal
    group = np.repeat(np.arange(t), m)
    return group <= group[:, None]


def _never_causal(t: int, m: int, causal: bool) -> Any:
    del causal
    return np.ones((t * m, t * m), dtype=bool)


def _groups_strided(t: int, m: int, causal: bool) -> Any:
    group = np.tile(np.arange(t), m)
    return (group <= group[:, None]) | (not causal)


def _own_group_only(t: int, m: int, causal: bool) -> Any:
    group = np.repeat(np.arange(t), m)
    return (group == group[:, None]) | (not causal)


def _written_before_global(before: Any, after: Any) -> Any:
    del after
    return before


def _latents_unnormalised(latents: Any, normalised: Any) -> Any:
    del normalised
    return latents


def _not_shifted(latents: Any) -> Any:
    return latents


def _shift_wraps(latents: Any) -> Any:
    return np.roll(latents, 1, axis=1)


def _first_keeps_its_own(latents: Any) -> Any:
    return np.concatenate([latents[:, :1], latents[:, :-1]], axis=1)


def _stays_shifted(latents: Any, moved: Any) -> Any:
    del latents
    return moved


def _first_group_unwritten(x: Any, new: Any) -> Any:
    return np.concatenate([x[:, :1], new[:, 1:]], axis=1)


def _embedding_scaled(table: Any, ids: Any) -> Any:
    return table[ids] * table.shape[1] ** 0.5


def _position_one_late(j: int, u: int, n: int) -> Any:
    del u
    return min(j + 1, n - 1)


def _position_by_group(j: int, u: int, n: int) -> Any:
    del j
    return u % n


def _open_for_ever(kept: Any) -> Any:
    return kept


def _rows_of_the_first(u: int) -> Any:
    return 0 * u


def _kept_before_global(before_global: Any, after_global: Any) -> Any:
    del after_global
    return before_global


def _time_unscaled(time: Any, width: int) -> Any:
    j = np.arange(width)
    angle = time[:, None] * 10000.0 ** (-2.0 * (j // 2) / width)
    return np.concatenate([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=-1)


def _sines_and_cosines_alternate(time: Any, width: int) -> Any:
    j = np.arange(width)
    angle = 1000.0 * time[:, None] * 10000.0 ** (-2.0 * (j // 2) / width)
    return np.where(j % 2 == 0, np.sin(angle), np.cos(angle))


def _code_as_it_is(codes: Any) -> Any:
    return codes


def _activated_once_more(hidden: Any) -> Any:
    return hidden / (1.0 + np.exp(-hidden))


def _time_replaces_a_condition(time: Any, cond: Any) -> Any:
    return np.concatenate([time[:, None], cond[:, 1:]], axis=1)


def _time_added(time: Any, cond: Any) -> Any:
    return np.concatenate([time[:, None], cond + time[:, None]], axis=1)


def _conditions_after_global(line: Any, look: Callable[[Any], Any], mix: Callable[[Any], Any]) -> Any:
    return look(mix(line))


def _absent_is_skipped(latents_prev: Any, zeros: Any) -> Any:
    del zeros
    return latents_prev


def _previous_without_residual(mlp: Callable[[Any], Any], latents_prev: Any) -> Any:
    return mlp(latents_prev) - latents_prev


def _latents_standardised(latents: Any) -> Any:
    return standardise(latents)


def _groups_restart(ids: Any, start: int) -> Any:
    return np.concatenate([np.full_like(ids[..., :1], start), ids[..., :-1]], axis=-1)


def _moved_left(ids: Any, start: int) -> Any:
    flat = ids.reshape(len(ids), -1)
    return np.concatenate([flat[:, 1:], np.full_like(flat[:, :1], start)], axis=1).reshape(ids.shape)


def _last_comes_first(ids: Any, start: int) -> Any:
    del start
    return np.roll(ids.reshape(len(ids), -1), 1, axis=1).reshape(ids.shape)


def _start_is_zero(ids: Any, start: int) -> Any:
    del start
    flat = ids.reshape(len(ids), -1)
    return np.concatenate([0 * flat[:, :1], flat[:, :-1]], axis=1).reshape(ids.shape)


def _causal(case: Case) -> bool:
    return bool(case.options.get("mask", "none") == "causal")


def _open(case: Case) -> bool:
    return not _causal(case)


def _extra(case: Case) -> bool:
    return "extra" in case.arrays and case.arrays["extra"].shape[2] > 0


def _stages(case: Case) -> Any:
    return case.arrays["weights"].stages


def _writes(case: Case) -> bool:
    return len(_stages(case)) > 1


def _recalls(case: Case) -> bool:
    return case.arrays["weights"].previous is not None


def _normed(case: Case) -> bool:
    return case.arrays["weights"].source_norm is not None


LAYER = (
    Mistake(
        "standardise",
        _deviation_of_a_sample,
        "the norm divides by the deviation of a sample, over d − 1",
        "Take the population variance, over d.",
    ),
    Mistake("standardise", _mean_left_in, "the norm leaves the mean in (RMSNorm)", "Subtract the mean first."),
    Mistake(
        "scale",
        _scaled_by_stream,
        "scores are divided by the root of the stream's width",
        "Divide by √κ, the root of the head's width.",
    ),
    Mistake(
        "weigh",
        _softmax_plus_one,
        "one is added to the sum of the softmax",
        "The weights of a row sum to one.",
    ),
)
ENCODER = (
    *LAYER[1:3],
    Mistake("gelu", _gelu_by_tanh, "GELU by its tanh formula", "Use the exact form, x Φ(x).", dtypes=FINE),
    Mistake(
        "weigh",
        _hidden_after,
        "hidden weights are set to 0 after the softmax and not shared out again",
        "Hide scores with −∞ before the softmax.",
        _causal,
    ),
    Mistake("start", _first_for_all, "every group begins with the latents of the first", "E_ℓ has a row for each."),
    Mistake("join", _extra_last, "extra tokens come after the data", "Extra tokens go first.", _extra),
    Mistake(
        "seen", _all_groups_read, "latents read the tokens of all groups", "READ stays inside the group: that is cheap."
    ),
    Mistake("seen", _first_token_read, "latents read only the first token", "READ sees every token of the group."),
    Mistake(
        "inside", _causal_inside, "tokens of a group see only those before them", "The encoder's local layers are open."
    ),
    Mistake(
        "among",
        _causal_by_latent,
        "the causal mask goes latent by latent",
        "Latents of one group see each other: compare groups.",
        _causal,
    ),
    Mistake("among", _turned_round, "latents see the groups after them", "w ≤ u, not w ≥ u.", _causal),
    Mistake("among", _never_causal, "mask='causal' is ignored", "Hide the groups after the own.", _causal),
    Mistake(
        "among", _always_causal, "the causal mask is there though none is asked for", "mask='none' is open.", _open
    ),
    Mistake(
        "among",
        _groups_strided,
        "latent i belongs to group i mod t",
        "Latents lie group by group: i belongs to group ⌊i/m⌋.",
        _causal,
    ),
    Mistake(
        "handed",
        _written_before_global,
        "WRITE hands on latents that have only read",
        "WRITE comes after GLOBAL: else nothing travels in this stage.",
        _writes,
    ),
    Mistake("finish", _latents_unnormalised, "latents are returned without their norm", "Normalise both outputs."),
)
CROSS = (
    *LAYER,
    Mistake("add", _stream_replaced, "what was read replaces the stream", "Add it to the stream."),
    Mistake("source", _source_raw, "the source is read as it is", "Normalise the source by its own norm.", _normed),
    Mistake(
        "source",
        _source_twice_normalised,
        "the source is standardised once more",
        "One norm, with its own scale and shift.",
        _normed,
    ),
)
AR = (
    Mistake(
        "shifted",
        _not_shifted,
        "a group reads its own latents, which have read the whole group",
        "Hand every group the latents of the group before: else the future leaks.",
        _writes,
    ),
    Mistake(
        "shifted", _shift_wraps, "the first group reads the latents of the last", "The first reads zeros.", _writes
    ),
    Mistake(
        "shifted", _first_keeps_its_own, "the first group reads its own latents", "The first reads zeros.", _writes
    ),
    Mistake(
        "carried",
        _stays_shifted,
        "latents go on in the next group's place",
        "The shift is for WRITE only; undo it.",
        lambda case: len(_stages(case)) > 2,
    ),
    Mistake(
        "written",
        _first_group_unwritten,
        "WRITE is left out for the first group",
        "Zeros have a norm with a shift: the layer adds a constant, and so it does in training.",
        _writes,
    ),
    Mistake("inside", _open_inside, "tokens see the whole group", "Local layers are causal."),
    Mistake("among", _never_causal, "latents see later groups", "GLOBAL is causal by groups.", _writes),
    Mistake("among", _own_group_only, "latents see no other group", "w ≤ u.", _writes),
    Mistake("embed", _embedding_scaled, "embeddings are multiplied by √dx", "They go in as they are."),
)
STEP = (
    Mistake("place", _position_one_late, "the position is counted after the token enters", "Token j takes row j."),
    Mistake("place", _position_by_group, "the position is that of the group", "E_x counts inside the group."),
    Mistake(
        "cleared",
        _open_for_ever,
        "keys of a complete group stay visible",
        "Local attention ends with its group: empty the cache.",
        _writes,
    ),
    Mistake(
        "row", _rows_of_the_first, "every group begins with the latents of the first", "Take row u of E_ℓ.", _writes
    ),
    Mistake(
        "stored",
        _kept_before_global,
        "latents are kept before they have met the other groups",
        "Keep what GLOBAL left.",
        _writes,
    ),
)
DENOISER = (
    Mistake("code", _time_unscaled, "the time is not multiplied by 1000", "Code 1000 times the time."),
    Mistake(
        "code",
        _sines_and_cosines_alternate,
        "sines and cosines take turns",
        "All sines come first, then all cosines.",
    ),
    Mistake("level", _code_as_it_is, "the code is not standardised", "Bring it to mean 0 and deviation 1."),
    Mistake("token", _activated_once_more, "SiLU follows the second map too", "Only the first map is activated."),
    Mistake(
        "tokens",
        _time_replaces_a_condition,
        "the time takes the place of the first condition",
        "The time is a token more.",
        lambda case: case.arrays["cond"].shape[-2] > 0,
    ),
    Mistake(
        "tokens",
        _time_added,
        "the time is added to every condition too",
        "The time is a token of its own.",
        lambda case: case.arrays["cond"].shape[-2] > 0,
    ),
    Mistake(
        "ordered", _conditions_after_global, "latents look at the conditions after GLOBAL", "First look, then mix."
    ),
    Mistake(
        "before",
        _absent_is_skipped,
        "without latents of the step before, self-conditioning is left out",
        "Absent latents are zeros; the MLP layer's biases leave a trace.",
        lambda case: _recalls(case) and "latents_prev" not in case.arrays,
    ),
    Mistake(
        "recalled",
        _previous_without_residual,
        "the MLP layer of self-conditioning has no residual",
        "It is a whole layer, x + MLP(x).",
        lambda case: _recalls(case) and "latents_prev" in case.arrays,
        ("float64", "float32", "float16"),
    ),
    Mistake(
        "returned", _latents_standardised, "latents are returned normalised", "The denoiser returns them as they are."
    ),
)
SHIFT = (
    Mistake("moved", _groups_restart, "every group begins with the start id", "Move across groups: one long line."),
    Mistake("moved", _moved_left, "tokens move towards the front", "Inputs are one place late, not early."),
    Mistake("moved", _last_comes_first, "the last token comes first", "Put the start id first; the last falls out."),
    Mistake("moved", _start_is_zero, "the start id is 0 whatever is asked for", "Use the start id that is given."),
)

ENCODER_BUGS = tuple(mistake.planted(encoder) for mistake in ENCODER)
CROSS_BUGS = tuple(mistake.planted(cross, "cross_") for mistake in CROSS)
AR_BUGS = tuple(mistake.planted(autoregressive, "ar_") for mistake in AR)
STEP_BUGS = tuple(mistake.planted(step, "step_") for mistake in (*STEP[:2], AR[8]))
EXTEND_BUGS = tuple(mistake.planted(extend, "extend_") for mistake in STEP[1:])
DENOISER_BUGS = tuple(mistake.planted(denoiser, "denoiser_") for mistake in DENOISER)
MASK_BUGS = tuple(
    mistake._replace(applies=lambda _case: True).planted(mask, "mask_")
    for mistake in ENCODER
    if mistake.wrong in (_causal_by_latent, _turned_round, _groups_strided)
)
SHIFT_BUGS = tuple(mistake.planted(shift, "shift_") for mistake in SHIFT)
