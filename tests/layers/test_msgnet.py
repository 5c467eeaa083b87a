"""MSGNet: properties that its contract does not state, degenerate windows, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from refattn.layers.msgnet import (
    adaptive_adjacency,
    graph_block,
    identify_scales,
    mixhop_propagate,
    msgnet_forecast,
    scale_graph_block,
    segment_attention,
)
from refattn.layers.msgnet_embedding import calendar_tables, sinusoid_table
from refattn.layers.msgnet_graph import graph_block_flops
from refattn.layers.msgnet_init import attention_init, block_init, graph_init, msgnet_init
from refattn.layers.msgnet_linear import linear_multiscale_forecast, linear_multiscale_graph, periodic_extension
from refattn.layers.msgnet_scales import fold_segments, unfold_segments
from refattn.layers.msgnet_weights import HeadWeights
from refattn.primitives.norms import layer_norm

SMALL = {"n_series": 3, "width": 6, "channels": 2, "skip": 3, "nodes": 4}


def random(seed=0):
    return np.random.default_rng(seed)


def model(*, length=20, horizon=4, **changes):
    return msgnet_init(random(), length=length, horizon=horizon, **{**SMALL, "hidden": 5, **changes})


def wave(period, length=24, phase=0.0):
    return np.cos(2 * np.pi * np.arange(length) / period + phase)


@pytest.mark.parametrize("period", [2, 3, 4, 6, 8, 12, 24])
def test_the_period_of_a_wave_is_found(period):
    """A wave whose period divides the window is found, whatever its phase; of two, the larger one comes first."""
    x = np.stack([wave(period, phase=p) for p in (0.1, 1.0, 2.0)], axis=-1)[None]
    assert identify_scales(x, k=1).periods.tolist() == [period]
    if period != 12:
        both = identify_scales(x + 0.4 * wave(12)[None, :, None], k=2)
        assert both.periods.tolist() == [period, 12]


def test_amplitudes_are_those_of_the_definition():
    """|Σ x e^(−2πift/T)|, averaged over features, and over windows for the choice."""
    x = random().standard_normal((2, 9, 3))
    found = identify_scales(x, k=4)
    turns = np.exp(-2j * np.pi * np.outer(np.arange(5), np.arange(9)) / 9)
    F = np.abs(np.einsum("ft,btd->bfd", turns, x)).mean(-1)
    F[:, 0] = 0.0
    np.testing.assert_allclose(found.spectrum, F.mean(0), atol=1e-13)
    np.testing.assert_allclose(found.amplitudes, F[:, found.freqs], atol=1e-13)
    assert (np.diff(found.spectrum[found.freqs]) <= 0).all()


def test_constant_windows_have_scales_too():
    """Where nothing moves all amplitudes are 0, and ties go to the lower frequency; frequency 0 is never chosen."""
    found = identify_scales(np.full((1, 8, 1), 0.5), k=4)
    assert found.freqs.tolist() == [1, 2, 3, 4]
    assert found.periods.tolist() == [8, 4, 2, 2]


def test_periods_may_be_equal():
    """In a window of 8 the frequencies 3 and 4 both have period 2, and a block works with both."""
    x = random().standard_normal((1, 8, 6))
    assert sorted(identify_scales(x, k=4).periods.tolist()) == [2, 2, 4, 8]
    weights = block_init(random(), length=8, scales=4, **SMALL)
    assert np.isfinite(scale_graph_block(x, weights, n_heads=2)).all()


def test_windows_of_a_batch_choose_together():
    """Alone and in a batch a window is treated alike if the choice is the same, and differently if it is not."""
    weights = block_init(random(), length=24, scales=1, **SMALL)
    slow, fast = (np.repeat(wave(s)[:, None], 6, axis=1) + 0.01 * random(s).standard_normal((24, 6)) for s in (12, 4))

    def gap(other):
        alone = scale_graph_block(slow[None], weights, n_heads=2)
        return np.abs(scale_graph_block(np.stack([slow, other]), weights, n_heads=2)[0] - alone[0]).max()

    assert gap(0.5 * slow) < 1e-13
    assert gap(10.0 * fast) > 1e-2


@given(st.integers(1, 13), st.integers(1, 15), st.integers(0, 3))
def test_folding_loses_nothing(length, period, batch):
    """Padding, cutting and putting together again is the identity, bit by bit."""
    x = random().standard_normal((batch, length, 2))
    segments = fold_segments(x, period=period)
    assert segments.shape == (batch * -(-length // period), period, 2)
    np.testing.assert_array_equal(unfold_segments(segments, length=length), x)


def test_rows_of_the_adjacency_are_weights():
    """Entries are positive, rows sum to 1, and (A + I) over its row sums is (A + I)/2."""
    A = adaptive_adjacency(random().standard_normal((4, 3)), random(1).standard_normal((3, 4)))
    assert (A > 0).all()
    np.testing.assert_allclose(A.sum(1), 1.0, atol=1e-15)
    hop = mixhop_propagate(np.eye(4)[None, None], A, depth=1, alpha=0.0)[0, 1]
    np.testing.assert_allclose(hop, (A + np.eye(4)) / 2, atol=1e-15)


def test_hops_without_a_start_are_powers():
    """With alpha = 0 hop j is the j-th power of the normalised adjacency; without hops there is only the start."""
    h0, A = random().standard_normal((2, 1, 4, 3)), random(1).random((4, 4))
    step = (A + np.eye(4)) / (A.sum(1, keepdims=True) + 1)
    out = mixhop_propagate(h0, A, depth=3, alpha=0.0)
    for j in range(4):
        np.testing.assert_allclose(out[:, j], np.linalg.matrix_power(step, j) @ h0[:, 0], atol=1e-13)
    np.testing.assert_array_equal(mixhop_propagate(h0, A, depth=0), h0)


def test_a_graph_layer_is_what_loops_compute():
    """Number by number: slide, hop, mix channels, mix times, add, normalise."""
    x, w = random().standard_normal((1, 3, 4)), graph_init(random(1), length=3, **{**SMALL, "width": 4})
    A, (N, C, M) = adaptive_adjacency(w.e1, w.e2), (3, 2, 2)
    at = (A + np.eye(N)) / 2
    o = np.zeros((3, N))
    h = np.zeros((3, C, N, 3))  # hop, channel, series, time
    for t in range(3):
        for c in range(C):
            for n in range(N):
                h[0, c, n, t] = w.start_b[c] + sum(w.start_w[c, m] * x[0, t, n + m] for m in range(M))
            for j in (1, 2):
                for v in range(N):
                    h[j, c, v, t] = 0.3 * h[0, c, v, t] + 0.7 * sum(at[v, u] * h[j - 1, c, u, t] for u in range(N))
    for n in range(N):
        for t in range(3):
            for s in range(3):
                z = w.mix_b[s] + sum(w.mix_w[s, j * C + c] * h[j, c, n, t] for j in range(3) for c in range(C))
                o[:, n] += w.end_w[:, s, t] * z * ndtr(z)
        o[:, n] += w.end_b
    expected = layer_norm(x[0] + o @ w.out_w.T + w.out_b, w.norm_w, w.norm_b, eps=1e-5)
    np.testing.assert_allclose(graph_block(x, w)[0], expected, atol=1e-12)


def test_the_future_of_a_segment_is_unseen_exactly():
    """Changing later times, or another segment, changes not one bit of what a time is given."""
    z, w = random().standard_normal((2, 5, 6)), attention_init(random(1), width=6, hidden=4)
    changed = z.copy()
    changed[0, 3:], changed[1] = 7.0, -1.0
    left, right = (segment_attention(values, w, n_heads=3) for values in (z, changed))
    np.testing.assert_array_equal(left[0, :3], right[0, :3])
    assert not np.array_equal(segment_attention(changed, w, n_heads=3, causal=False)[0, :3], left[0, :3])


@pytest.mark.parametrize("k", [1, 3])
def test_scales_have_weights(k):
    """Weights are positive and sum to 1; a single scale has weight 1 exactly."""
    _, details = scale_graph_block(
        random().standard_normal((2, 11, 6)),
        block_init(random(), length=11, scales=k, **SMALL),
        n_heads=2,
        return_details=True,
    )
    assert (details.scale_weights > 0).all()
    np.testing.assert_allclose(details.scale_weights.sum(1), 1.0, atol=1e-15)
    if k == 1:
        np.testing.assert_array_equal(details.scale_weights, 1.0)


def test_units_pass_through():
    """Levels are added exactly, units multiply up to the 1e-5 beside the variance; a constant series has its own σ."""
    x, w = random().standard_normal((2, 20, 3)), model()
    y = msgnet_forecast(x, w, n_heads=2)
    level, unit = np.array([5.0, -3.0, 100.0]), np.array([2.0, 30.0, 0.5])
    np.testing.assert_allclose(msgnet_forecast(x + level, w, n_heads=2), y + level, atol=1e-10)
    np.testing.assert_allclose(msgnet_forecast(x * unit, w, n_heads=2), y * unit, rtol=0, atol=3e-3)
    x[..., 1] = 4.0
    still = msgnet_forecast(x, w, n_heads=2)[..., 1]
    assert np.abs(still - 4.0).max() < 10 * np.sqrt(1e-5)


def test_the_papers_form_differs_and_works():
    """Graphs of segments, side by side, with a dense start map and the input added, on a window of prime length."""
    w = model(length=11, dense=True, pointwise=True)
    x = random().standard_normal((2, 11, 3))
    options = {"placement": "segments", "residual": "input"}
    paper = msgnet_forecast(x, w, n_heads=2, causal=False, **options)
    assert np.isfinite(paper).all()
    assert np.abs(paper - msgnet_forecast(x, w, n_heads=2)).max() > 1e-4


def test_calendars_look_up_or_multiply():
    """Whole marks fetch rows, real ones are multiplied; without marks there is no calendar."""
    x = random().standard_normal((1, 20, 3))
    fixed = model(marks="fixed minutes")
    assert tuple(len(t) for t in fixed.embedding.marks) == (13, 32, 7, 24, 4)
    marks = np.zeros((1, 20, 5), np.int64)
    _, with_marks = msgnet_forecast(x, fixed, marks, n_heads=2, return_details=True)
    _, without = msgnet_forecast(x, fixed, n_heads=2, return_details=True)
    rows = sum(table[0] for table in fixed.embedding.marks)
    np.testing.assert_allclose(with_marks.embedding - without.embedding, np.broadcast_to(rows, (1, 20, 6)), atol=1e-14)
    assert calendar_tables(4)[3].shape == (24, 4)


def test_one_map_for_each_series_may_be_the_same_map():
    """Individual heads that are all equal forecast what the shared one does."""
    x, w = random().standard_normal((2, 20, 3)), model()
    head = w.head
    own = HeadWeights(head.series_w, head.series_b, np.stack([head.time_w] * 3), np.stack([head.time_b] * 3))
    left, right = (msgnet_forecast(x, w._replace(head=h), n_heads=2) for h in (head, own))
    np.testing.assert_allclose(left, right, atol=1e-14)


def test_small_windows_work():
    """One window of two times, as many features as series, and no block at all."""
    w = model(length=2, horizon=1, n_series=2, width=2, scales=1)
    x = random().standard_normal((1, 2, 2))
    assert msgnet_forecast(x, w, n_heads=1).shape == (1, 1, 2)
    assert msgnet_forecast(x, w._replace(blocks=()), n_heads=1).shape == (1, 1, 2)


def test_signs_that_depend_on_the_scale_are_found():
    """Where a series follows at one period and opposes at another, graphs for each scale win by far."""
    rng, periods = random(), (24, 6)
    t = np.arange(120)
    slow, fast = (np.sin(2 * np.pi * t / s + rng.uniform(0, 6.3, (60, 1))) for s in periods)
    series = np.stack([slow + fast, slow - fast], axis=-1) + 0.1 * rng.standard_normal((60, 120, 2))
    series[:, :96, 1] += 2.0 * rng.standard_normal((60, 96))
    x, y = series[:, :96], series[:, 96:, 1:]
    fits = [linear_multiscale_graph(x, y, periods=periods, shared=shared) for shared in (False, True)]
    errors = [np.mean((linear_multiscale_forecast(x, m, periods=periods, horizon=24) - y) ** 2) for m in fits]
    assert errors[1] > 5 * errors[0]
    np.testing.assert_allclose(fits[0][:, 0, 0], [1.0, -1.0], atol=0.1)
    assert fits[1].shape == fits[0].shape == (2, 1, 2)


def test_oscillations_go_on():
    """A wave is taken out of a window and continued, alternating signs included; other periods leave nothing."""
    t = np.arange(30)
    x = (np.cos(2 * np.pi * t / 6 + 0.4) + 3.0 * (-1.0) ** t)[None, :, None]
    bands = periodic_extension(x[:, :24], periods=(6, 2, 4), horizon=6)
    np.testing.assert_allclose(bands[0, 0, :, 0], np.cos(2 * np.pi * t[24:] / 6 + 0.4), atol=1e-13)
    np.testing.assert_allclose(bands[1, 0, :, 0], 3.0 * (-1.0) ** t[24:], atol=1e-13)
    np.testing.assert_allclose(bands[2], 0.0, atol=1e-13)


def test_flops_are_those_of_the_formulas():
    """2TNC(D−N+1), 2GCN²T, 2S(G+1)CNT, 2SNT² and 2TND."""
    assert graph_block_flops(length=10, series=3, width=7, channels=2, skip=5, depth=2) == (600, 720, 1800, 3000, 420)


def test_single_precision_stays():
    """The result has the dtype of the windows and lies within its resolution."""
    x, w = random().standard_normal((2, 20, 3)), model()
    out = msgnet_forecast(x.astype(np.float32), w, n_heads=2)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, msgnet_forecast(x, w, n_heads=2), rtol=0, atol=1e-4)


X = np.zeros((2, 20, 3))
BAD = np.where(np.arange(3) == 1, np.nan, X)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: msgnet_forecast(X[0], model(), n_heads=2), "x has 2 axes"),
        (lambda: msgnet_forecast(X[..., :1], model(), n_heads=2), "at least two series"),
        (lambda: msgnet_forecast(X[:0], model(), n_heads=2), "a mean over an empty batch is undefined"),
        (lambda: msgnet_forecast(BAD, model(), n_heads=2), "must be finite"),
        (lambda: msgnet_forecast(X, model(), n_heads=4), "n_heads=4 must divide"),
        (lambda: msgnet_forecast(X, model(scales=11), n_heads=2), "top_k must be between 1 and T//2"),
        (lambda: msgnet_forecast(X, model(), np.zeros((2, 20, 4)), n_heads=2), "marks are given"),
        (lambda: msgnet_forecast(X, model(marks=4), np.zeros((2, 20, 3)), n_heads=2), "marks has shape"),
        (lambda: msgnet_forecast(X, model(marks="fixed"), np.full((2, 20, 4), 13), n_heads=2), "between 0 and 12"),
        (lambda: msgnet_forecast(X, model(marks="fixed"), np.zeros((2, 20, 4)), n_heads=2), "expected integers"),
        (lambda: msgnet_forecast(X, model(), n_heads=2, placement="rows"), "placement='rows' is not one of"),
        (lambda: msgnet_forecast(X, model(), n_heads=2, placement="segments"), "no last graph layer"),
        (
            lambda: msgnet_forecast(X, model(), n_heads=2, placement="segments", residual="input"),
            "mixes time, which graphs of segments cannot",
        ),
        (lambda: msgnet_forecast(X, model(), n_heads=2, depth=3), "mix_w has shape"),
        (lambda: msgnet_forecast(X, model(), n_heads=2, alpha=np.inf), "alpha=inf must be finite"),
        (lambda: msgnet_forecast(X[:, :10], model(), n_heads=2), "positions has shape"),
        (lambda: model(width=2), "at least the number of series"),
        (lambda: model(width=7), "must be even"),
        (lambda: identify_scales(X, k=0), "top_k must be between"),
        (lambda: identify_scales(X[..., :0], k=1), "no features"),
        (lambda: identify_scales(BAD, k=1), "must be finite"),
        (lambda: mixhop_propagate(np.zeros((1, 1, 2, 1)), np.zeros((3, 3))), "adjacency has shape"),
        (lambda: mixhop_propagate(np.zeros((1, 1, 2, 1)), np.zeros((2, 2)), depth=-1), "depth=-1"),
        (lambda: adaptive_adjacency(np.zeros((2, 3)), np.zeros((2, 3))), "e2 has shape"),
        (lambda: fold_segments(X, period=0), "period=0"),
        (lambda: unfold_segments(X, length=50), "no whole windows"),
        (lambda: periodic_extension(X, periods=(3,), horizon=1), "divisors of T = 20"),
        (lambda: linear_multiscale_graph(X, X[:1], periods=(4,)), "y has shape"),
        (lambda: sinusoid_table(3, 5), "must be even"),
        (lambda: graph_block_flops(length=1, series=3, width=2), "at least the number of series"),
    ],
)
def test_bad_input_is_refused(call, rule):
    """Each argument out of range is refused by name, value and rule."""
    with pytest.raises(ValueError, match=rule):
        call()
