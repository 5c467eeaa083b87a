"""What every implementation of tc_llava obeys, stated between its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.contracts.tc_llava.draw import until
from refattn.layers.tc_llava import TCAttentionWeights
from refattn.layers.tc_llava_streaming import TCCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["ATTENTION_LAWS", "IDS_LAWS", "MASK_LAWS", "POSITION_LAWS", "STREAMING_LAWS"]


def _segments(case: Case) -> list[list[int]]:
    return [list(segment) for segment in case.options["segments"]]


def _variant(case: Case) -> str:
    return str(case.options.get("variant", "fwbc"))


def _ticks_on(case: Case) -> bool:
    return bool(case.options.get("tail", "continue") == "continue")


def _borders(case: Case, length: int) -> list[int]:
    """Return the places between tokens at which no visual block is cut."""
    inside = set()
    for start, n_frames, m in _segments(case):
        size = {"causal": 1, "fwbc": m, "full_visual": n_frames * m}[_variant(case)]
        inside |= {start + i for i in range(n_frames * m) if i % size}
    return [place for place in range(length + 1) if place not in inside]


def _weights(case: Case, **changes: Any) -> TCAttentionWeights:
    weights: TCAttentionWeights = case.arrays["weights"]
    return weights._replace(**changes)


def _out(probe: Probe, case: Case) -> np.ndarray:
    return probe(case)["out"]


def _slack(probe: Probe, case: Case) -> np.ndarray:
    return 2.0 * probe.slack(case)["out"]


def _the_future_is_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["x"]
    border = int(rng.choice(_borders(case, x.shape[1])))
    changed = np.concatenate([x[:, :border], -2.0 * x[:, border:]], axis=1)
    left, right = _out(probe, case), _out(probe, case.having(x=changed))
    yield Claim(left[:, :border], right[:, :border], _slack(probe, case)[:, :border], f"tokens before {border}")


def _frames_are_open(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    level = case.having(weights=_weights(case, wq=np.zeros_like(case.arrays["weights"].wq)))
    out, slack = _out(probe, level), _slack(probe, level)
    for start, n_frames, m in _segments(case):
        size = m if _variant(case) == "fwbc" else n_frames * m
        for at in range(start, start + n_frames * m, size):
            block = slice(at, at + size)
            first = np.broadcast_to(out[:, at : at + 1], out[:, block].shape)
            yield Claim(out[:, block], first, slack[:, block], f"the block that begins at token {at}")


def _values_keep_no_place(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["x"]
    equal = case.having(x=np.repeat(x[:, :1], x.shape[1], axis=1))
    out = _out(probe, equal)
    yield Claim(out, np.broadcast_to(out[:, :1], out.shape), _slack(probe, equal))


def _quarter_turn(w: np.ndarray, n_heads: int) -> np.ndarray:
    heads = w.reshape(len(w), n_heads, 2, -1)
    return np.stack([-heads[:, :, 1], heads[:, :, 0]], axis=2).reshape(w.shape)


def _turning_both_changes_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    n_heads = case.options["n_heads"]
    wq, wk = (_quarter_turn(w, n_heads) for w in case.arrays["weights"][:2])
    yield Claim(_out(probe, case), _out(probe, case.having(weights=_weights(case, wq=wq, wk=wk))), _slack(probe, case))


def _heads_may_be_permuted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    n_heads, width = case.options["n_heads"], case.arrays["x"].shape[-1]
    order = np.arange(width).reshape(n_heads, -1)[rng.permutation(n_heads)[::-1]].reshape(-1)
    w = case.arrays["weights"]
    moved = TCAttentionWeights(w.wq[:, order], w.wk[:, order], w.wv[:, order], w.wo[order])
    yield Claim(_out(probe, case), _out(probe, case.having(weights=moved)), _slack(probe, case))


def _videos_may_be_cut_between_frames(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    single = [[start + f * m, 1, m] for start, n, m in _segments(case) for f in range(n)]
    yield Claim(_out(probe, case), _out(probe, case.having(segments=single)), _slack(probe, case))


def _frames_of_one_token_are_text(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    thin = case.having(segments=[[start, n * m, 1] for start, n, m in _segments(case)])
    yield Claim(_out(probe, thin), _out(probe, case.having(segments=[])), _slack(probe, thin))


def _without_gamma_time_is_forgotten(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    timeless = case.having(gamma=0.0, variant="causal")
    yield Claim(_out(probe, timeless), _out(probe, timeless.having(segments=[])), _slack(probe, timeless))


def _weights_sum_to_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    a = probe(case)["weights"]
    sums = a.sum(axis=-1, keepdims=True)
    yield Claim(sums, np.ones_like(sums), a.shape[-1] ** 0.5 * probe.slack(case)["weights"])


ATTENTION_LAWS = (
    Law(
        "the_future_is_unseen",
        "Changing the tokens after a border between visual blocks leaves the outputs before it as they are.",
        _the_future_is_unseen,
        witness="full_visual_leak",
    ),
    Law(
        "frames_are_open",
        "With queries of zero every token of a visual block gets the same output, the mean over what the block sees.",
        _frames_are_open,
        lambda case: _variant(case) != "causal" and any(n * m > 1 for _, n, m in _segments(case)),
        witness="causal_inside_frames",
    ),
    Law(
        "values_keep_no_place",
        "If all tokens are equal, all outputs are equal: an average of equal values keeps no trace of positions.",
        _values_keep_no_place,
        lambda case: case.arrays["x"].shape[1] > 1,
        witness="values_turned",
    ),
    Law(
        "turning_both_changes_nothing",
        "Turning every pair (i, i + d/2) of query and key channels by 90° changes nothing: only differences matter.",
        _turning_both_changes_nothing,
        witness="interleaved_pairs",
    ),
    Law(
        "heads_may_be_permuted",
        "Permuting the heads in all four projections changes nothing.",
        _heads_may_be_permuted,
        lambda case: case.options["n_heads"] > 1,
        witness="heads_strided",
    ),
    Law(
        "videos_may_be_cut_between_frames",
        "A video of F frames is F videos of one frame, as far as frames are what sees itself.",
        _videos_may_be_cut_between_frames,
        lambda case: _ticks_on(case) and _variant(case) != "full_visual" and any(n > 1 for _, n, _ in _segments(case)),
        witness="time_restarts",
    ),
    Law(
        "frames_of_one_token_are_text",
        "A frame of one token is a text token.",
        _frames_of_one_token_are_text,
        lambda case: _ticks_on(case) and _variant(case) != "full_visual" and bool(_segments(case)),
        witness="tail_repeats_last_frame",
    ),
    Law(
        "without_gamma_time_is_forgotten",
        "With γ = 0 and the causal mask, videos leave no trace.",
        _without_gamma_time_is_forgotten,
        lambda case: bool(_segments(case)),
        witness="time_replaces_place",
    ),
    Law(
        "weights_sum_to_one",
        "The weights of every query sum to one.",
        _weights_sum_to_one,
        lambda case: bool(case.options.get("return_weights")),
        witness="mask_after_softmax",
    ),
)


def _streaming_is_the_full_pass(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x, segments = case.arrays["x"], _segments(case)
    length = x.shape[1]
    cuts = np.sort(rng.choice(_borders(case, length), size=2))
    full, slack = _out(probe, case), 2.0 * _slack(probe, case)
    begin = int(cuts[0])
    out, cache = probe.raw(case.having(x=x[:, :begin], segments=until(segments, begin)))
    yield Claim(out, full[:, :begin], slack[:, :begin], f"the first {begin} tokens")
    for end in (int(cuts[1]), length):
        arrays = {"x": x[:, begin:end], "cache": TCCache(*cache), "weights": case.arrays["weights"]}
        options = {**case.options, "segments": until(segments, end)}
        out, cache = probe.raw(Case("tc_append", arrays, options, case.dtype, case.label))
        yield Claim(out, full[:, begin:end], slack[:, begin:end], f"tokens {begin} to {end}")
        begin = end


STREAMING_LAWS = (
    Law(
        "streaming_is_the_full_pass",
        "A sequence that enters in three parts, cut where no visual block is cut, gives the outputs of one pass.",
        _streaming_is_the_full_pass,
        needs=("tc_append",),
        witness="append_time_one_early",
    ),
)


def _time_goes_on(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    T = probe(case)["out"].astype(float)
    steps = np.diff(T)
    yield Claim(T[:1], np.zeros_like(T[:1]), 0.0, "the first time")
    yield Claim(steps, np.clip(steps, 0.0, 1.0), 0.0, "steps are 0 or 1")


def _a_prefix_has_its_own_times(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    length = case.options["length"]
    end = int(rng.integers(length + 1))
    segments = [[start, n, m] for start, n, m in until(_segments(case), end)]
    whole = probe(case)["out"]
    yield Claim(probe(case.having(length=end, segments=segments))["out"], whole[:end], 0.0, f"the first {end}")


def _frames_share_a_time(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    T = probe(case)["out"]
    for start, n, m in _segments(case):
        times = T[start : start + n * m].reshape(n, m)
        yield Claim(times, T[start] + np.arange(n)[:, None] + np.zeros_like(times), 0.0, f"the video at {start}")


IDS_LAWS = (
    Law(
        "time_goes_on",
        "Time starts at 0 and grows by 0 or 1 from token to token.",
        _time_goes_on,
        lambda case: case.options["length"] > 0,
        witness="ids_time_restarts",
    ),
    Law(
        "a_prefix_has_its_own_times",
        "What comes later does not change the times of what came before.",
        _a_prefix_has_its_own_times,
        _ticks_on,
        witness="ids_frames_from_sequence_start",
    ),
    Law(
        "frames_share_a_time",
        "The tokens of a frame share one time, and the next frame has the next.",
        _frames_share_a_time,
        witness="ids_frames_from_sequence_start",
    ),
)


def _gamma_is_a_factor(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    place, once, four = (probe(case.having(gamma=gamma))["out"] for gamma in (0.0, 1.0, 0.25))
    n = np.arange(case.options["length"], dtype=float)
    yield Claim(place, n, 0.0, "γ = 0 leaves the place")
    yield Claim(once - place, 4.0 * (four - place), 0.0, "γ multiplies the time")


POSITION_LAWS = (
    Law(
        "gamma_is_a_factor",
        "Positions are the place plus γ times something that does not depend on γ.",
        _gamma_is_a_factor,
        witness="positions_gamma_floored",
    ),
)


def _pairs_are_counted(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    length = case.options["length"]
    counts = {"causal": 0, "fwbc": 0, "full_visual": 0}
    for _, n, m in _segments(case):
        counts["fwbc"] += n * m * (m - 1) // 2
        counts["full_visual"] += n * m * (n * m - 1) // 2
    expected = length * (length + 1) // 2 + counts[_variant(case)]
    yield Claim(probe(case)["out"].sum(), np.array(expected), 0.0)


def _the_past_is_seen(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    mask = probe(case)["out"].astype(bool)
    lower = np.tri(len(mask), dtype=bool)
    yield Claim((mask & lower).astype(float), lower.astype(float), 0.0)


MASK_LAWS = (
    Law(
        "pairs_are_counted",
        "The mask allows N(N + 1)/2 pairs, and s(s − 1)/2 more for every visual block of s tokens.",
        _pairs_are_counted,
        witness="mask_text_is_a_block",
    ),
    Law(
        "the_past_is_seen",
        "Every token sees itself and all before it.",
        _the_past_is_seen,
        witness="mask_own_frame_only",
    ),
)
