"""Temporal-aware dual RoPE and the frame-wise block causal mask: properties, bad input, official vectors."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.layers.tc_llava import (
    TCAttentionWeights,
    VisualSegment,
    allowed_pairs,
    attention_cost,
    decode_positions,
    dual_positions,
    dual_rope_attention,
    frame_block_causal_mask,
    frame_ids,
    rope_rotate,
    temporal_position_ids,
    video_ids,
)
from refattn.layers.tc_llava_streaming import TCCache, tc_append, tc_prefill

VARIANTS = ("causal", "fwbc", "full_visual")
TWO_VIDEOS = [VisualSegment(2, 3, 4), VisualSegment(16, 2, 3)]  # text, video, text, video, text
LENGTH = 25


def draw(seed=0, batch=2, length=LENGTH, width=12, dtype=np.float64):
    rng = np.random.default_rng(seed)
    weights = TCAttentionWeights(*(rng.standard_normal((4, width, width)) / np.sqrt(width)).astype(dtype))
    return rng.standard_normal((batch, length, width)).astype(dtype), weights


@st.composite
def layouts(draw_from):
    """Draw a sequence of text runs and videos: its length and its segments."""
    segments, place = [], 0
    for _ in range(draw_from(st.integers(0, 3))):
        start = place + draw_from(st.integers(0, 3))
        segment = VisualSegment(start, draw_from(st.integers(1, 3)), draw_from(st.integers(1, 4)))
        segments.append(segment)
        place = start + segment.n_frames * segment.tokens_per_frame
    return max(1, place + draw_from(st.integers(0, 3))), segments


def naive(x, weights, segments, *, n_heads, gamma=1.0, variant="fwbc", base=10000.0):
    """Compute the layer number by number."""
    B, N, D = x.shape
    d = D // n_heads
    frame, video = [-1] * N, [-1] * N
    running = 0
    for s, (start, n_frames, m) in enumerate(segments):
        for f in range(n_frames):
            for i in range(m):
                frame[start + f * m + i], video[start + f * m + i] = running, s
            running += 1
    time, seen = [0] * N, set()
    for n in range(1, N):
        seen.add(frame[n - 1])
        time[n] = time[n - 1] + (0 if frame[n] >= 0 and frame[n] in seen else 1)
    block = {"causal": [-1] * N, "fwbc": frame, "full_visual": video}[variant]
    q, k, v = (x @ w for w in weights[:3])

    def turned(row, h, n, c):
        pair = c % (d // 2)
        angle = (n + gamma * time[n]) * base ** (-2 * pair / d)
        a, b = row[h * d + pair], row[h * d + pair + d // 2]
        return a * np.cos(angle) - b * np.sin(angle) if c < d // 2 else b * np.cos(angle) + a * np.sin(angle)

    mixed = np.zeros_like(x)
    for b in range(B):
        for h in range(n_heads):
            for i in range(N):
                keys = [j for j in range(N) if j <= i or (block[i] >= 0 and block[i] == block[j])]
                s = [
                    sum(turned(q[b, i], h, i, c) * turned(k[b, j], h, j, c) for c in range(d)) / np.sqrt(d)
                    for j in keys
                ]
                e = np.exp(np.array(s) - max(s))
                for j, p in zip(keys, e / e.sum(), strict=True):
                    mixed[b, i, h * d : (h + 1) * d] += p * v[b, j, h * d : (h + 1) * d]
    return mixed @ weights.wo


@pytest.mark.parametrize("variant", VARIANTS)
def test_layer_equals_triple_loop(variant):
    """The layer is what a loop over queries, keys and channels computes."""
    x, weights = draw(batch=1, length=13, width=8)
    segments, options = [(1, 2, 3), (8, 1, 4)], {"n_heads": 2, "gamma": 1.5, "variant": variant, "base": 100.0}
    expected = naive(x, weights, segments, **options)
    np.testing.assert_allclose(dual_rope_attention(x, weights, segments, **options), expected, rtol=0, atol=1e-13)


def test_two_rotations_equal_one_by_the_sum():
    """R(γT) R(n) x = R(n + γT) x, and rotation keeps norms."""
    x, _ = draw()
    n, time = np.arange(LENGTH), temporal_position_ids(LENGTH, TWO_VIDEOS)
    twice = rope_rotate(rope_rotate(x, n), 0.7 * time)
    np.testing.assert_allclose(twice, rope_rotate(x, dual_positions(LENGTH, TWO_VIDEOS, gamma=0.7)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(twice, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-12)


def test_values_are_not_rotated():
    """Equal tokens give equal outputs wherever they stand: an average of equal values keeps no trace of positions."""
    x, weights = draw(batch=1)
    same = np.broadcast_to(x[:, :1], x.shape)
    out = dual_rope_attention(same, weights, TWO_VIDEOS, n_heads=2, gamma=3.0)
    np.testing.assert_allclose(out, same @ weights.wv @ weights.wo, rtol=0, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gamma_zero_forgets_time(variant):
    """With γ = 0 the positions are n, bit for bit, and under the causal mask the videos leave no trace."""
    x, weights = draw()
    np.testing.assert_array_equal(dual_positions(LENGTH, TWO_VIDEOS, gamma=0.0), np.arange(LENGTH))
    options = {"n_heads": 3, "gamma": 0.0, "variant": variant}
    same = np.array_equal(
        dual_rope_attention(x, weights, TWO_VIDEOS, **options), dual_rope_attention(x, weights, [], **options)
    )
    assert same == (variant == "causal")


def test_only_relative_positions_matter():
    """One constant added to all positions changes no score."""
    x, _ = draw()
    p = dual_positions(LENGTH, TWO_VIDEOS, gamma=2.0)
    plain, shifted = (rope_rotate(x, p + c) @ rope_rotate(x[::-1], p + c).mT for c in (0.0, 37.25))
    np.testing.assert_allclose(plain, shifted, rtol=0, atol=1e-12)


def test_distance_inside_a_video_has_a_closed_form():
    """Token i of frame f and token j of frame g are (f − g)(m + γ) + i − j apart."""
    gamma, (start, n_frames, m) = 0.75, TWO_VIDEOS[0]
    p = dual_positions(LENGTH, TWO_VIDEOS, gamma=gamma)[start : start + n_frames * m]
    f, i = np.divmod(np.arange(n_frames * m), m)
    expected = (f[:, None] - f) * (m + gamma) + (i[:, None] - i)
    np.testing.assert_allclose(p[:, None] - p, expected, rtol=0, atol=1e-12)


@given(layouts(), st.sampled_from([0.0, 0.5, 1.0, 4.0]))
def test_steps_of_position_are_one_or_one_plus_gamma(layout, gamma):
    """A step is 1 inside a frame and 1 + γ everywhere else."""
    length, segments = layout
    frame = frame_ids(length, segments)
    inside = (frame[1:] == frame[:-1]) & (frame[1:] >= 0)
    np.testing.assert_array_equal(
        np.diff(dual_positions(length, segments, gamma=gamma)), np.where(inside, 1.0, 1.0 + gamma)
    )


@given(layouts())
def test_one_token_per_frame_is_plain_stretched_rope(layout):
    """With m = 1 time is place, the mask is causal, and the layer is RoPE with positions (1 + γ)n."""
    length, segments = layout
    thin = [VisualSegment(s, f * m, 1) for s, f, m in segments]
    np.testing.assert_array_equal(temporal_position_ids(length, thin), np.arange(length))
    np.testing.assert_array_equal(dual_positions(length, thin, gamma=0.5), 1.5 * np.arange(length))
    x, weights = draw(batch=1, length=length, width=4)
    both = (dual_rope_attention(x, weights, s, n_heads=1) for s in (thin, []))
    np.testing.assert_array_equal(*both)


@given(layouts())
def test_eq5_subtracts_one_for_each_segment_passed(layout):
    """The tail of Eq. 5 is the default one less the number of videos that have ended."""
    length, segments = layout
    ended = sum((np.arange(length) >= s + f * m).astype(int) for s, f, m in segments)
    np.testing.assert_array_equal(
        temporal_position_ids(length, segments, tail="eq5"), temporal_position_ids(length, segments) - ended
    )


def test_eq5_repeats_the_last_frame():
    """The first text token after a video shares the time of the last frame, and only with ``eq5``."""
    assert temporal_position_ids(6, [(1, 2, 2)], tail="eq5").tolist() == [0, 1, 1, 2, 2, 2]
    assert temporal_position_ids(6, [(1, 2, 2)]).tolist() == [0, 1, 1, 2, 2, 3]


@given(layouts())
def test_counts_of_allowed_pairs_are_exact(layout):
    """The closed forms count the masks, which grow from causal over frame-wise to full; no diagonal is hidden."""
    length, segments = layout
    masks = {v: frame_block_causal_mask(length, segments, variant=v) for v in VARIANTS}
    assert [allowed_pairs(length, segments, variant=v) for v in VARIANTS] == [int(masks[v].sum()) for v in VARIANTS]
    assert np.all(masks["causal"] <= masks["fwbc"])
    assert np.all(masks["fwbc"] <= masks["full_visual"])
    assert masks["causal"].diagonal().all()
    singles = [(s, 1, f * m) for s, f, m in segments]
    np.testing.assert_array_equal(
        frame_block_causal_mask(length, singles), frame_block_causal_mask(length, singles, variant="full_visual")
    )


def test_mask_opens_frames_and_nothing_else():
    """A frame of two tokens, two frames, text on both sides: the mask written out."""
    expected = ["1.....", "111...", "111...", "11111.", "11111.", "111111"]
    mask = frame_block_causal_mask(6, [(1, 2, 2)])
    assert ["".join("1" if seen else "." for seen in row) for row in mask] == expected


def test_adjacent_videos_stay_separate():
    """Two videos without text between share no block, and time goes on from one to the other."""
    segments = [(0, 1, 2), (2, 1, 2)]
    assert frame_ids(4, segments).tolist() == [0, 0, 1, 1]
    assert video_ids(4, segments).tolist() == [0, 0, 1, 1]
    assert temporal_position_ids(4, segments).tolist() == [0, 0, 1, 1]
    assert not frame_block_causal_mask(4, segments, variant="full_visual")[:2, 2:].any()


def test_tokens_of_one_frame_may_be_permuted_when_place_is_dropped():
    """At positions γT alone, permuting a frame's tokens permutes its outputs and changes no other."""
    x, _ = draw(batch=1, width=6)
    time = 1.0 * temporal_position_ids(LENGTH, TWO_VIDEOS)
    mask = frame_block_causal_mask(LENGTH, TWO_VIDEOS)
    order = np.arange(LENGTH)
    order[6:10] = [8, 6, 9, 7]  # the second frame of the first video

    def outputs(tokens):
        turned = rope_rotate(tokens, time)
        e = np.where(mask, np.exp(turned @ turned.mT / np.sqrt(6)), 0.0)
        return e / e.sum(-1, keepdims=True) @ tokens

    np.testing.assert_allclose(outputs(x[:, order]), outputs(x)[:, order], rtol=0, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_future_stays_unseen_at_frame_level(variant):
    """Changing a frame leaves everything before it untouched, bit for bit; the full visual mask leaks."""
    x, weights = draw()
    loud = np.array(x)
    loud[:, 10:14] += 5.0  # the last frame of the first video
    before, after = (dual_rope_attention(t, weights, TWO_VIDEOS, n_heads=2, variant=variant) for t in (x, loud))
    untouched = np.array_equal(before[:, :10], after[:, :10])
    assert untouched == (variant != "full_visual")
    np.testing.assert_array_equal(before[:, :2], after[:, :2])


def arrived(end):
    """Return the part of the two videos that lies before ``end``, which is no place inside a frame."""
    return [VisualSegment(s, min(f, (end - s) // m), m) for s, f, m in TWO_VIDEOS if s < end]


@pytest.mark.parametrize("tail", ["continue", "eq5"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_streaming_equals_the_full_pass(variant, tail):
    """Text token by token and visual blocks whole, through a cache, give the outputs of the full pass."""
    x, weights = draw()
    options = {"n_heads": 3, "gamma": 0.5, "variant": variant, "tail": tail, "base": 500.0}
    videos = [2, 14, 15, 16, 22] if variant == "full_visual" else [2, 6, 10, 14, 15, 16, 19, 22]
    borders = [1, *videos, 23, 25]
    out, cache = tc_prefill(x[:, :1], weights, [], **options)
    outs = [out]
    for begin, end in itertools.pairwise(borders):
        out, cache = tc_append(x[:, begin:end], cache, weights, arrived(end), **options)
        outs.append(out)
    full = dual_rope_attention(x, weights, TWO_VIDEOS, **options)
    np.testing.assert_allclose(np.concatenate(outs, axis=1), full, rtol=0, atol=1e-12)
    whole = tc_prefill(x, weights, TWO_VIDEOS, **options)
    np.testing.assert_array_equal(whole[0], full)
    np.testing.assert_allclose(cache.k, whole[1].k, rtol=0, atol=1e-12)
    np.testing.assert_allclose(cache.v, whole[1].v, rtol=0, atol=1e-12)


def test_a_frame_may_enter_in_pieces_under_the_causal_mask_only():
    """What a frame-wise layer refuses, a causal one computes: a border inside a frame."""
    x, weights = draw()
    for variant in VARIANTS:
        options = {"n_heads": 2, "variant": variant}
        _, cache = tc_prefill(x[:, :4], weights, [(2, 1, 2)], **options)
        if variant == "causal":
            out, _ = tc_append(x[:, 4:], cache, weights, TWO_VIDEOS, **options)
            full = dual_rope_attention(x, weights, TWO_VIDEOS, **options)
            np.testing.assert_allclose(out, full[:, 4:], rtol=0, atol=1e-12)
        else:
            with pytest.raises(ValueError, match="x begins at token 4, inside a visual block"):
                tc_append(x[:, 4:], cache, weights, TWO_VIDEOS, **options)


@given(layouts(), st.integers(0, 4), st.sampled_from(["continue", "eq5"]))
def test_decode_positions_continue_the_prompt(layout, n_new, tail):
    """Positions of decoded tokens are the last ones of the longer sequence, and (N + t) + γ(T_max + 1 + t)."""
    length, segments = layout
    new = decode_positions(length, segments, n_new, gamma=0.5, tail=tail)
    longer = dual_positions(length + n_new, segments, gamma=0.5, tail=tail)
    np.testing.assert_array_equal(new, longer[length:])
    if tail == "continue":
        t, last = np.arange(n_new), temporal_position_ids(length, segments).max()
        np.testing.assert_array_equal(new, length + t + 0.5 * (last + 1 + t))


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_weights_sum_to_one(variant):
    """Every query spreads one unit of weight, all of it on keys that the mask allows."""
    x, weights = draw()
    _, a = dual_rope_attention(x, weights, TWO_VIDEOS, n_heads=2, variant=variant, return_weights=True)
    mask = frame_block_causal_mask(LENGTH, TWO_VIDEOS, variant=variant)
    np.testing.assert_allclose(a.sum(-1), 1.0, rtol=0, atol=1e-14)
    assert not a[..., ~mask].any()
    assert (a[..., mask] > 0).all()


def test_cost_counts_two_dense_products():
    """2BN²D operations for the scores, as many for the averages, BHN² weights, whatever the mask."""
    assert attention_cost(2, 10, 8, 4) == (3200, 3200, 800)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtype_is_kept(dtype):
    """The result has the dtype of the tokens and lies within its resolution of the float64 result."""
    x, weights = draw(dtype=dtype)
    out = dual_rope_attention(x, weights, TWO_VIDEOS, n_heads=2)
    wide = dual_rope_attention(
        x.astype(float), TCAttentionWeights(*(w.astype(float) for w in weights)), TWO_VIDEOS, n_heads=2
    )
    assert out.dtype == dtype
    np.testing.assert_allclose(out, wide, rtol=0, atol=30 * np.finfo(dtype).eps)


def test_inputs_may_be_read_only_and_strided_and_are_not_written_to():
    """Read-only, strided and float32-mixed inputs work; nothing is written."""
    x, weights = draw()
    wide = np.repeat(x, 2, axis=1)[:, ::2]
    wide.flags.writeable = False
    kept = wide.copy()
    options = {"n_heads": 2, "gamma": 2.0}
    with np.errstate(all="raise"):
        out = dual_rope_attention(wide, weights, TWO_VIDEOS, **options)
    np.testing.assert_allclose(out, dual_rope_attention(x, weights, TWO_VIDEOS, **options), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(wide, kept)


@pytest.mark.parametrize(
    ("batch", "length", "segments"),
    [
        (1, 1, []),
        (1, 1, [(0, 1, 1)]),
        (0, 5, [(1, 2, 2)]),
        (1, 0, []),
        (1, 6, [(0, 2, 3)]),
        (1, 6, [(0, 6, 1)]),
        (1, 6, [(2, 1, 4)]),
        (1, 7, [(0, 1, 3), (3, 2, 2)]),
    ],
)
def test_small_and_full_sequences_work(batch, length, segments):
    """One token, no batch, no token, no text, single frames, adjacent videos: shapes and finite numbers."""
    x, weights = draw(batch=batch, length=length)
    out = dual_rope_attention(x, weights, segments, n_heads=3)
    assert out.shape == x.shape
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    "segments",
    [
        [(3, 2, 2), (0, 1, 2)],
        [(0, 2, 2), (3, 1, 1)],
        [(20, 2, 3)],
        [(-1, 1, 1)],
        [(0, 0, 2)],
        [(0, 2, 0)],
        [(4, -1, -3)],
    ],
)
def test_impossible_segments_are_refused(segments):
    """Unsorted, overlapping, outside, empty: refused with the rule in words, by every function that takes segments."""
    x, weights = draw()
    rule = "visual segments must be sorted, disjoint and inside the sequence"
    for function in (
        frame_ids,
        video_ids,
        temporal_position_ids,
        dual_positions,
        frame_block_causal_mask,
        allowed_pairs,
    ):
        with pytest.raises(ValueError, match=rule):
            function(LENGTH, segments)
    with pytest.raises(ValueError, match=rule):
        dual_rope_attention(x, weights, segments, n_heads=2)
    with pytest.raises(ValueError, match=rule):
        decode_positions(LENGTH, segments, 1)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"n_heads": 4}, "head dimension must be even"),
        ({"n_heads": 5}, "n_heads=5 must divide"),
        ({"n_heads": 0}, "n_heads=0 must divide"),
        ({"gamma": -0.5}, "gamma=-0.5 must be finite"),
        ({"gamma": np.nan}, "gamma=nan must be finite"),
        ({"gamma": np.inf}, "gamma=inf must be finite"),
        ({"variant": "block"}, "variant='block' is not one of"),
        ({"tail": "eq6"}, "tail='eq6' is not one of"),
        ({"base": 0.0}, "must be finite and > 0"),
        ({"segments": [(1, 2)]}, "must be triples"),
        ({"segments": [(0.0, 1.0, 2.0)]}, "expected integers"),
        ({"x": np.zeros((5, 12))}, "x has 2 axes"),
        ({"weights": TCAttentionWeights(*np.zeros((4, 12, 11)))}, "weights.wq has shape"),
    ],
)
def test_bad_options_are_refused(change, rule):
    """Each argument out of range is refused by name, value and rule."""
    x, weights = draw()
    call = {"x": x, "weights": weights, "segments": TWO_VIDEOS, "n_heads": 2} | change
    with pytest.raises(ValueError, match=rule):
        dual_rope_attention(call.pop("x"), call.pop("weights"), call.pop("segments"), **call)


def test_bad_positions_are_refused():
    """Positions must be one finite number a token."""
    with pytest.raises(ValueError, match="positions has shape"):
        rope_rotate(np.zeros((3, 4)), np.zeros(2))
    with pytest.raises(ValueError, match="positions must be finite"):
        rope_rotate(np.zeros((2, 4)), np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="head dimension must be even"):
        rope_rotate(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="n_new=-1"):
        decode_positions(3, [], -1)
    with pytest.raises(ValueError, match="length=-1"):
        frame_ids(-1, [])
    with pytest.raises(ValueError, match="must be >= 0"):
        attention_cost(1, -2, 3, 1)


def test_a_cache_that_does_not_fit_is_refused():
    """Keys and values of the cache must be (B, H, n, d), both."""
    x, weights = draw()
    _, cache = tc_prefill(x, weights, [], n_heads=2)
    with pytest.raises(ValueError, match=r"cache\.k has shape"):
        tc_append(x, cache, weights, [], n_heads=3)
    with pytest.raises(ValueError, match=r"cache\.v has shape"):
        tc_append(x, TCCache(cache.k, cache.v[:, :, 1:]), weights, [], n_heads=2)


def test_official_vectors(oracle):
    """Ids and masks equal the official ones exactly; rotations, weights and outputs to 1e-13."""
    for path in oracle("01-tc-llava"):
        with np.load(path) as case:
            check_official(case)


def check_official(case):
    segments, gamma, base = case["segments"], float(case["gamma"]), float(case["rope_base"])
    length, close = case["x"].shape[1], {"rtol": 0, "atol": 1e-13}
    weights = TCAttentionWeights(*(case[name] for name in ("W_q", "W_k", "W_v", "W_o")))
    options = {"n_heads": int(case["n_heads"]), "base": base}
    np.testing.assert_array_equal(temporal_position_ids(length, segments), case["temporal_pos"])
    np.testing.assert_array_equal(frame_ids(length, segments), case["frame_id"])
    np.testing.assert_array_equal(np.arange(length), case["global_pos"])
    np.testing.assert_allclose(dual_positions(length, segments, gamma=gamma), case["combined_pos"], rtol=1e-15)
    positions = {
        "global": case["global_pos"],
        "temporal": gamma * case["temporal_pos"],
        "combined": case["combined_pos"],
    }
    for name, p in positions.items():
        ones = np.ones((length, case[f"cos_{name}"].shape[-1]))
        cos, sin = case[f"cos_{name}"], case[f"sin_{name}"]
        half = ones.shape[-1] // 2
        turned = np.concatenate([cos[:, :half] - sin[:, :half], cos[:, half:] + sin[:, half:]], axis=-1)
        np.testing.assert_allclose(rope_rotate(ones, p, base=base), turned, **close)
    for name in "qk":
        np.testing.assert_allclose(
            rope_rotate(case[name], case["combined_pos"], base=base), case[f"{name}_dual"], **close
        )
    for variant in VARIANTS:
        np.testing.assert_array_equal(
            frame_block_causal_mask(length, segments, variant=variant), case[f"mask_{variant}"]
        )
        dual, a = dual_rope_attention(
            case["x"], weights, segments, gamma=gamma, variant=variant, return_weights=True, **options
        )
        vanilla = dual_rope_attention(case["x"], weights, segments, gamma=0.0, variant=variant, **options)
        np.testing.assert_allclose(dual, case[f"out_dual_{variant}"], **close)
        np.testing.assert_allclose(a, case[f"weights_dual_{variant}"], **close)
        np.testing.assert_allclose(vanilla, case[f"out_vanilla_{variant}"], **close)
