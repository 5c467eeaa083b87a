"""One vector for each rule R1–R35, most of them on the base example: keys ln w, w = (1, 2, 3, 4), values 12w.

With q = 1 and one channel e^(score) is w, so every output is a weighted mean that can be checked by hand.
"""

from functools import partial
from math import log

import numpy as np
import pytest

from refattn.primitives.alibi import alibi_slopes
from refattn.primitives.attention import attention
from refattn.primitives.attention_arguments import check_attention
from refattn.primitives.attention_gradients import attention_vjp
from refattn.primitives.attention_loop import attention_loop
from refattn.primitives.attention_online import _absorb, _start, attention_online, merge_attention
from refattn.primitives.attention_packed import attention_paged, attention_varlen
from refattn.primitives.attention_ring import ring_placement

W = np.array([1.0, 2.0, 3.0, 4.0])
K, V = np.log(W).reshape(1, 1, 4, 1), (12 * W).reshape(1, 1, 4, 1)
Q = np.ones((1, 1, 1, 1))
ALL_BUT_OUT = ("weights", "lse", "logits", "scores", "softcapped")
HIDE_MIDDLE = [True, False, False, True]
FIRST_TWO = [True, True, False, False]
close = partial(pytest.approx, abs=1e-6)  # the vectors have six decimals


def queries(sq, value=1.0):
    return np.full((1, 1, sq, 1), value)


def outputs(sq=1, q=None, k=K, v=V, **options):
    """Return outputs of the base example with ``sq`` queries, by the vectorised and by the loop form."""
    q = queries(sq) if q is None else q
    out = attention(q, k, v, **options).out
    np.testing.assert_allclose(attention_loop(q, k, v, **options).out, out, rtol=1e-13)
    return out.ravel().tolist()


def test_r1_definition():
    """R1: weights are proportional to e^score, the output is their mean of the values, L the log of their sum."""
    result = attention(Q, K, V, returns=("out", "weights", "lse"))
    assert result.out.item() == close(36)
    assert result.weights.ravel().tolist() == close([0.1, 0.2, 0.3, 0.4])
    assert result.lse.item() == close(log(10))


def test_r2_layouts_move_axes_only():
    """R2: heads before lengths, lengths before heads and packed heads are the same numbers in other places."""
    q, v = np.zeros((1, 2, 2, 1)), np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    assert attention(q, q, v).out[0, :, :, 0].tolist() == [[1.5, 1.5], [3.5, 3.5]]
    assert attention(q, q, v, layout="bshd").out[0, :, :, 0].T.tolist() == [[2, 2], [3, 3]]
    packed = attention(q[..., 0], q[..., 0], v[..., 0], layout="bs(hd)", q_heads=2, kv_heads=2).out
    assert packed[0].T.tolist() == [[2, 2], [3, 3]]


def test_r2_weights_and_lse_do_not_follow_the_layout():
    """R2: weights are (B, Hq, Sq, Sk) and L is (B, Hq, Sq) in every layout."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(2, 6, 2, 3))
    result = attention(q, k, k, layout="bshd", returns=("out", "weights", "lse"))
    assert result.out.shape == (2, 5, 4, 3)
    assert result.weights.shape == (2, 4, 5, 6)
    assert result.lse.shape == (2, 4, 5)
    packed = attention(
        *(x.reshape(*x.shape[:2], -1) for x in (q, k, k)), layout="bs(hd)", q_heads=4, kv_heads=2, returns="out"
    )
    np.testing.assert_array_equal(packed.out.reshape(2, 5, 4, 3), result.out)


def test_r3_sizes():
    """R3: the values may have another width than the keys."""
    v = np.concatenate([V, [[[[1.0], [0], [0], [0]]]]], axis=-1)
    assert attention(Q, K, v).out.ravel().tolist() == close([36, 0.1])


@pytest.mark.parametrize(("scale", "expected"), [(0, 30), (2, 40), (-1, 23.04)])
def test_r4_scale(scale, expected):
    """R4: any finite scale, 0 and negative ones included."""
    assert outputs(scale=scale) == close([expected])


def wide_keys():
    return np.concatenate([K, np.zeros((1, 1, 4, 3))], axis=-1)


def test_r4_default_scale_is_of_the_width_of_q():
    """R4: the default scale is 1/√d."""
    assert outputs(q=np.ones((1, 1, 1, 4)), k=wide_keys()) == close([33.238882])


def test_r6_true_means_attend():
    """R6: a boolean mask shows what is True."""
    assert outputs(mask=HIDE_MIDDLE) == close([40.8])
    assert outputs(mask=[not seen for seen in HIDE_MIDDLE]) == close([31.2])


def test_r7_bias_is_added_and_never_scaled():
    """R7: the bias joins the scaled score as it is."""
    bias = [log(4), 0, 0, 0]
    assert outputs(bias=bias) == close([30.461538])
    assert outputs(q=np.ones((1, 1, 1, 4)), k=wide_keys(), bias=bias) == close([26.272470])


def test_r8_masks_broadcast_from_the_right():
    """R8: a rank-3 mask is (Hq, Sq, Sk), a rank-2 mask (Sq, Sk), and a padding mask needs its axes spelt out."""
    q, k, v = (np.tile(x, (2, 2, 1, 1)) for x in (Q, K, V))
    heads = np.array([[FIRST_TWO], [[False, False, True, True]]])
    assert outputs(q=q, k=k, v=v, mask=heads) == close([20, 300 / 7] * 2)
    padding = np.array([FIRST_TWO, [True, True, True, False]])
    assert outputs(q=q[:, :1], k=k[:, :1], v=v[:, :1], mask=padding[:, None, None]) == close([20, 28])
    assert outputs(2, mask=padding) == close([20, 28])
    with pytest.raises(ValueError, match="mask has shape"):
        outputs(mask=[True, True])


def test_r9_minus_infinity_hides_and_rules_combine():
    """R9: a bias of −∞ is a mask, and mask and bias restrict together."""
    inf = np.inf
    assert outputs(bias=[0, -inf, -inf, 0]) == close([40.8])
    assert outputs(bias=[0, -inf, 0, 0], mask=[True, True, False, True]) == close([40.8])
    assert outputs(2, mask=HIDE_MIDDLE, causal=True) == close([12, 12])


def test_r11_causal_top_left():
    """R11: with offset 0 query i sees the keys up to i."""
    assert outputs(2, causal=True) == close([12, 20])


def test_r12_causal_bottom_right():
    """R12: the last query sees the last key; with more queries than keys the first see nothing."""
    assert outputs(2, causal=True, align="bottom_right") == close([28, 36])
    assert outputs(5, causal=True, align="bottom_right") == close([0, 12, 20, 28, 36])


def test_r13_cache_offset():
    """R13: an integer is the position of the first query; one query at a time gives the causal rows."""
    assert outputs(2, causal=True, align=1) == close([20, 28])
    decoded = [outputs(k=K[:, :, : n + 1], v=V[:, :, : n + 1], causal=True, align=n)[0] for n in range(4)]
    assert decoded == close([12, 20, 28, 36])
    assert outputs(4, causal=True) == close([12, 20, 28, 36])


def test_r14_lengths():
    """R14: bottom-right counts the valid keys, and padded queries give 0 whatever the policy."""
    q, k, v = (np.tile(x, (2, 1, 1, 1)) for x in (queries(2), K, V))
    assert outputs(q=q, k=k, v=v, kv_lengths=[4, 3], causal=True, align="bottom_right") == close([28, 36, 20, 28])
    for empty in ("zero", "nan", "uniform"):
        assert outputs(2, q_lengths=[1], empty=empty) == close([36, 0])
    assert outputs(2, q_lengths=[1], causal=True, align="bottom_right") == close([36, 0])


@pytest.mark.parametrize(
    ("window", "causal", "expected"),
    [
        ((1, None), True, [12, 20, 31.2, 300 / 7]),
        ((0, None), True, [12, 24, 36, 48]),
        ((1, 1), False, [20, 28, 116 / 3, 300 / 7]),
        ((2, 1), False, [20, 28, 36, 116 / 3]),
        ([0, 0], False, [12, 24, 36, 48]),
        ((None, 0), False, [12, 20, 28, 36]),
    ],
)
def test_r15_window_counts_keys_beside_the_query(window, causal, expected):
    """R15: the window counts keys beside the query's own position; (None, 0) is causal."""
    assert outputs(4, window=window, causal=causal) == close(expected)


def test_r16_windows_that_count_the_query_itself():
    """R16: a sliding window of 3 that counts the query itself is (2, None); a window moves with the offset."""
    assert outputs(4, window=(3 - 1, None), causal=True) == close([12, 20, 28, 116 / 3])
    assert outputs(2, window=(1, None), causal=True, align="bottom_right") == close([31.2, 300 / 7])


def test_r17_composed_masks():
    """R17: documents, a prefix and chunks compose with the causal rule."""
    documents = [0, 0, 1, 1]
    assert outputs(4, causal=True, doc_q=documents, doc_k=documents) == close([12, 20, 36, 300 / 7])
    assert outputs(4, causal=True, prefix=2) == close([20, 20, 28, 36])
    assert outputs(4, causal=True, chunk=2) == close([12, 20, 36, 300 / 7])


def test_r18_softcap_before_bias_and_mask():
    """R18: the cap acts on the scaled score, then comes the bias, then the mask."""
    assert outputs(softcap=1, mask=FIRST_TWO) == close([19.747876])
    assert outputs(softcap=1, bias=[log(4), 0, 0, 0]) == close([27.507602])
    assert outputs(softcap=0) == outputs(softcap=None) == close([36])


def test_r19_alibi_lowers_with_distance():
    """R19: the logit falls by the slope times the distance, on both sides."""
    q = queries(4, 0.0)
    assert outputs(q=q, alibi_slopes=[log(2)]) == close([20.8, 80 / 3, 100 / 3, 39.2])
    assert outputs(q=q, alibi_slopes=[log(2)], causal=True) == close([12, 20, 29.142857, 39.2])
    assert outputs(q=q[:, :, :1], alibi_slopes=[log(2)], align=3) == close([39.2])
    assert alibi_slopes(3).tolist() == [1 / 16, 1 / 256, 1 / 4]


def test_r20_grouped_heads_repeat():
    """R20: query head h reads kv head h // G."""
    k, v = np.concatenate([K, K[:, :, ::-1]], 1), np.concatenate([V, V], 1)
    assert outputs(q=np.ones((1, 4, 1, 1)), k=k, v=v) == close([36, 36, 24, 24])
    assert outputs(q=np.ones((1, 3, 1, 1))) == close([36, 36, 36])


def test_r21_sinks():
    """R21: a sink takes its share of the denominator, is not scaled, and −∞ is no sink."""
    result = attention(Q, K, V, sinks=[log(10)], returns=("out", "weights", "lse"))
    assert result.weights.ravel().tolist() == close([0.05, 0.1, 0.15, 0.2])
    assert result.lse.item() == close(log(20))
    assert outputs(sinks=[log(10)]) == close([18])
    assert outputs(sinks=[0.0]) == close([32.727273])
    assert outputs(sinks=[-np.inf]) == close([36])
    assert outputs(sinks=[log(10)], scale=2) == close([1200 / 40])


@pytest.mark.parametrize(("empty", "expected"), [("zero", 0), ("nan", np.nan), ("uniform", 30)])
def test_r22_empty_rows(empty, expected):
    """R22: a row that sees nothing gives 0, NaN or the mean over all keys, and L = −∞ in any case."""
    options = {"mask": [False] * 4, "empty": empty}
    assert outputs(**options) == close([expected], nan_ok=True)
    result = attention(Q, K, V, returns=("weights", "lse"), **options)
    assert result.lse.item() == -np.inf
    assert result.weights.sum() == close({"zero": 0, "nan": np.nan, "uniform": 1}[empty], nan_ok=True)


@pytest.mark.parametrize("empty", ["zero", "nan", "uniform"])
def test_r22_a_sink_leaves_no_row_empty(empty):
    """R22: with a sink a row without visible keys gives exactly 0 and L = σ."""
    result = attention(Q, K, V, mask=[False] * 4, sinks=[0.3], empty=empty, returns=("out", "lse"))
    assert (result.out.item(), result.lse.item()) == (0, 0.3)


@pytest.mark.parametrize(("empty", "expected"), [("zero", 0), ("nan", np.nan), ("uniform", 0)])
def test_r23_no_keys(empty, expected):
    """R23: without keys every row is empty."""
    assert outputs(2, k=K[:, :, :0], v=V[:, :, :0], empty=empty) == close([expected] * 2, nan_ok=True)


@pytest.mark.parametrize(
    ("q", "kv", "dv"),
    [
        ((2, 0, 3, 4), (2, 0), 5),
        ((0, 2, 3, 4), (0, 2), 5),
        ((2, 2, 0, 4), (2, 2), 5),
        ((2, 0, 3, 4), (2, 1), 5),
        ((2, 4, 3, 4), (2, 2), 0),
    ],
)
def test_r23_empty_axes(q, kv, dv):
    """R23: empty batch, heads, queries or value channels give results of the right shape."""
    q, k, v = np.ones(q), np.ones((*kv, 6, 4)), np.ones((*kv, 6, dv))
    for function in (attention, attention_loop):
        result = function(q, k, v, returns=("out", *ALL_BUT_OUT))
        assert result.out.shape == (*q.shape[:3], dv)
        assert result.lse.shape == q.shape[:3]
        assert result.weights.shape == result.logits.shape == (*q.shape[:3], 6)
    assert attention_online(q, k, v).out.shape == (*q.shape[:3], dv)
    gradients = attention_vjp(q, k, v, np.ones((*q.shape[:3], dv)))
    assert [g.shape for g in gradients[:3]] == [q.shape, k.shape, v.shape]


def test_r24_weights_sum():
    """R24: weights sum to 1, with a sink to 1 − e^(σ − L)."""
    result = attention(Q, K, V, sinks=[0.5], returns=("weights", "lse"))
    assert result.weights.sum() == close(1 - np.exp(0.5 - result.lse.item()))


def test_r25_named_scores():
    """R25: s, t, z and P are four different things, and L belongs to z."""
    options = {"softcap": 1, "bias": [log(4), 0, 0, -np.inf], "sinks": [0.0]}
    for function in (attention, attention_loop):
        result = function(Q, K, V, returns=ALL_BUT_OUT, **options)
        t = (W**2 - 1) / (W**2 + 1)
        assert result.scores.ravel().tolist() == close(np.log(W).tolist())
        assert result.softcapped.ravel().tolist() == close(t.tolist())
        assert result.logits.ravel().tolist() == close([t[0] + log(4), t[1], t[2], -np.inf])
        assert result.lse.item() == close(log(1 + 4 * np.exp(t[0]) + np.exp(t[1]) + np.exp(t[2])))
        assert result.out is None


def test_r26_internals_are_float64():
    """R26: a float16 call is computed in float64 and returned in float16."""
    q, k = np.array([1, 0.4], np.float16), np.array([[1000, 0], [1000, 1]], np.float16)
    result = attention(q.reshape(1, 1, 1, 2), k.reshape(1, 1, 2, 2), k.reshape(1, 1, 2, 2), scale=1, returns="weights")
    assert result.weights.dtype == np.float16
    assert result.weights[0, 0, 0, 0] == close(1 / (1 + np.exp(np.float64(q[1]))), abs=3e-4)


def test_r26_dropout_is_refused():
    """R26: dropout is no part of the operator."""
    with pytest.raises(ValueError, match=r"dropout_p=0\.1"):
        outputs(dropout_p=0.1)


def test_r27_online_state():
    """R27: over blocks of two keys the state (m, l, a) goes (ln 2, 1.5, 30), (ln 4, 2.5, 90)."""
    call = check_attention(Q, K, V)
    first = _absorb(call, _start(call, slice(0, 1)), slice(0, 1), slice(0, 2))
    second = _absorb(call, first, slice(0, 1), slice(2, 4))
    assert [x.item() for x in first] == close([log(2), 1.5, 30])
    assert [x.item() for x in second] == close([log(4), 2.5, 90])
    assert attention_online(Q, K, V, block_k=2).out.item() == close(36)


def test_r27_merge():
    """R27: parts count by their log-sum-exp, whose total the merge returns too; the sink counts once."""
    parts = [attention(Q, K[:, :, at], V[:, :, at], returns=("out", "lse")) for at in (slice(0, 1), slice(1, 4))]
    assert [p.lse.item() for p in parts] == close([0, log(9)])
    out, lse = merge_attention([p.out for p in parts], [p.lse for p in parts])
    assert (out.item(), lse.item()) == close((36, log(10)))
    out, lse = merge_attention([p.out for p in parts], [p.lse for p in parts], sinks=[log(10)])
    assert (out.item(), lse.item()) == close((18, log(20)))
    out, lse = merge_attention([parts[0].out, np.full((1, 1, 1, 1), np.nan)], [parts[0].lse, [[[-np.inf]]]])
    assert (out.item(), lse.item()) == close((12, 0))


@pytest.mark.parametrize(
    ("placement", "pairs"), [("contiguous", [10, 26]), ("striped", [16, 20]), ("zigzag", [18, 18])]
)
def test_r27_ring_placements(placement, pairs):
    """R27: the placements of eight tokens on two ranks share the causal work as published."""
    ranks = ring_placement(8, world=2, placement=placement)
    assert sorted(np.concatenate(ranks)) == list(range(8))
    assert [int((tokens + 1).sum()) for tokens in ranks] == pairs


def test_r28_packed():
    """R28: packed sequences attend to their own tokens; causal is bottom-right in each."""
    w = np.arange(1.0, 6.0)
    q, k, v = np.ones((3, 1, 1)), np.log(w).reshape(5, 1, 1), (12 * w).reshape(5, 1, 1)
    assert attention_varlen(q, k, v, [0, 1, 3], [0, 2, 5]).out.ravel().tolist() == close([20, 50, 50])
    causal = attention_varlen(q, k, v, [0, 1, 3], [0, 2, 5], causal=True)
    assert causal.out.ravel().tolist() == close([20, 300 / 7, 50])
    without_keys = attention_varlen(q, k, v, [0, 1, 3], [0, 0, 5], returns=("out", "lse"))
    assert without_keys.out[0].item() == 0
    assert without_keys.lse[0, 0] == -np.inf


def test_r29_paged():
    """R29: keys are found through the block table, and dead entries and slots may hold anything."""
    k_pages, v_pages = np.full((4, 2, 1, 1), np.nan), np.full((4, 2, 1, 1), np.nan)
    k_pages[[2, 2, 0], [0, 1, 0], 0, 0], v_pages[[2, 2, 0], [0, 1, 0], 0, 0] = np.log(W[:3]), 12 * W[:3]
    assert attention_paged(Q, k_pages, v_pages, [[2, 0, -1]], [3]).out.item() == close(28)


def gradients(dout=1.0, dlse=0.0, **options):
    return attention_vjp(
        Q, K, V, np.full((1, 1, 1, 1), dout), dlse=np.full((1, 1, 1), dlse), bias=np.zeros(4), **options
    )


def test_r30_to_r34_gradients():
    """R30, R31, R33, R34: the gradients of the base example."""
    g = gradients()
    assert g.dv.ravel().tolist() == close([0.1, 0.2, 0.3, 0.4])
    assert g.dbias.tolist() == close([-2.4, -2.4, 0, 4.8])
    assert g.dk.ravel().tolist() == close([-2.4, -2.4, 0, 4.8])
    assert [g.dq.item(), g.dscale.item()] == close([4.990660] * 2)


def test_r31_cotangent_of_the_log_sum_exp():
    """R31: the log-sum-exp pulls back to the weights."""
    g = gradients(dout=0.0, dlse=1.0)
    assert g.dbias.tolist() == close([0.1, 0.2, 0.3, 0.4])
    assert g.dq.item() == close(1.022731)


def test_r32_softcap_gradient():
    """R32: the softcap multiplies by 1 − (t/c)², after the bias got its share."""
    g = gradients(softcap=1)
    assert g.dbias.tolist() == close([-2.912603, -2.377750, 0.673735, 4.616618])
    assert g.dk.ravel().tolist() == close([-2.912603, -1.521760, 0.242544, 1.022365])


def test_r34_slope_gradient():
    """R34: the slope pulls back to minus the logit gradients times the distances."""
    g = attention_vjp(Q, K, V, queries(1), alibi_slopes=[0.0], align=3)
    assert g.dslopes.tolist() == close([-(-2.4 * 3 - 2.4 * 2)])


def test_r35_sink_gradient():
    """R35: a sink with as much weight as all keys loses half of the output and half of that again."""
    g = gradients(sinks=[log(10)])
    assert g.dsinks.tolist() == close([-9])
    assert g.dbias.tolist() == close([-0.3, 0.6, 2.7, 6])
