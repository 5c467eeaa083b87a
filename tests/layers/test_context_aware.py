"""Context-aware attention and its companions: contexts, gates, transport, fusion, calibration; what is refused."""

import numpy as np
import pytest

from refattn.layers.context_aware import (
    ContextAttentionWeights,
    EncoderLayerWeights,
    GateWeights,
    context_attention_flops,
    context_aware_attention,
    context_aware_encoder,
    context_gates,
    deep_context,
    deep_global_context,
    fuse_attention,
    fuse_concat,
    gated_self_attention,
    global_context,
    label_smoothing_cross_entropy,
    mean_pool,
    ot_cross_attention,
    ot_kernel_attention,
)
from refattn.layers.context_aware_calibration import (
    adaptive_calibration_error,
    average_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability,
)
from refattn.primitives.attention import attention
from refattn.primitives.softmax import softmax

B, N, D, H = 2, 6, 8, 2
MASK = np.arange(N) < np.array([[6], [4]])


def draw(seed=0, d_c=D):
    """Return tokens, and weights that read a context of this width."""
    rng = np.random.default_rng(seed)

    def matrix(*shape):
        return rng.standard_normal(shape) / np.sqrt(D)

    plain = [part for _ in range(3) for part in (matrix(D, D), matrix(D))]
    gates = [part for _ in range(2) for part in (matrix(D), matrix(D), matrix())]
    weights = ContextAttentionWeights(*plain, matrix(d_c, D), matrix(d_c, D), *gates, matrix(D, D), matrix(D))
    return rng.standard_normal((B, N, D)), weights


def biased(weights, bias):
    return weights._replace(bq_gate=np.array(bias), bk_gate=np.array(bias))


def close(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def test_without_a_context_it_is_multi_head_attention():
    """No context, or gates that are shut, give the attention primitive between the projections."""
    x, w = draw()
    q, k, v = (
        np.swapaxes((x @ m + b).reshape(B, N, H, D // H), 1, 2) for m, b in ((w.wq, w.bq), (w.wk, w.bk), (w.wv, w.bv))
    )
    out = attention(q, k, v, mask=MASK[:, None, None]).out
    expected = np.swapaxes(out, 1, 2).reshape(B, N, D) @ w.wo + w.bo
    close(context_aware_attention(x, w, n_heads=H, mask=MASK), expected)
    context = global_context(x, MASK)
    close(context_aware_attention(x, biased(w, -60.0), context, n_heads=H, mask=MASK), expected)


def test_open_gates_average():
    """Queries and keys that are the context alone attend uniformly: every token gets the mean value."""
    x, w = draw()
    found = context_aware_attention(x, biased(w, 60.0), global_context(x), n_heads=H, return_aux=True)
    close(found.weights, 1 / N)
    close(found.out, np.broadcast_to((x @ w.wv + w.bv).mean(1, keepdims=True) @ w.wo + w.bo, x.shape))


def test_gates_lie_between_token_and_context():
    """Gates are in (0, 1) and are those that the layer reports; each follows its own formula."""
    x, w = draw()
    q, k, c = x @ w.wq + w.bq, x @ w.wk + w.bk, global_context(x)
    gates = context_gates(q, k, c, w)
    found = context_aware_attention(x, w, c, n_heads=H, return_aux=True)
    close(gates[0], found.lambda_q)
    close(gates[1], found.lambda_k)
    naive = [
        [1 / (1 + np.exp(-(q[b, n] @ w.vq_h + c[b, 0] @ w.uq @ w.vq_c + w.bq_gate))) for n in range(N)]
        for b in range(B)
    ]
    close(gates[0][..., 0], naive)
    assert all(((g > 0) & (g < 1)).all() for g in gates)


def logits_of_two(x, w, *, context):
    found = context_aware_attention(x, w, global_context(x) if context else None, n_heads=H, return_aux=True)
    a = np.log(found.weights)
    return a[:, :, 0, 0] - a[:, :, 0, 1]  # the normalisation cancels


def test_a_third_token_matters_with_a_context_only():
    """The logits of tokens 0 and 1 do not depend on token 5, unless there is a global context."""
    x, w = draw()
    other = x.copy()
    other[:, 5] += 1.0
    close(logits_of_two(x, w, context=False), logits_of_two(other, w, context=False))
    assert np.abs(logits_of_two(x, w, context=True) - logits_of_two(other, w, context=True)).min() > 1e-4


def test_contexts_have_their_widths_and_means():
    """Global contexts are masked means; deep ones lie side by side; deep-global with one layer is global."""
    x, _ = draw()
    close(global_context(x, MASK)[1, 0], x[1, :4].mean(0))
    assert deep_context([x, 2 * x, x]).shape == (B, N, 3 * D)
    close(deep_context([x, 2 * x])[..., D:], 2 * x)
    close(deep_global_context([x], MASK), global_context(x, MASK))
    close(deep_global_context([x, 2 * x], MASK)[..., D:], 2 * global_context(x, MASK))
    close(mean_pool(x, MASK), global_context(x, MASK)[:, 0])


@pytest.mark.parametrize("context", [None, "global", "deep", "deep_global"])
def test_the_encoder_keeps_padding_out(context):
    """What stands in padded tokens reaches no real token through any number of layers, and NaN is no exception."""
    layers = []
    for i in range(3):
        d_c = {"deep": i * D, "deep_global": (i + 1) * D}.get(context, D)
        _, w = draw(i, d_c)
        layers.append(EncoderLayerWeights(w, w.wq, w.bq, w.wk, w.bk))
    x, _ = draw()
    noisy = np.where(MASK[..., None], x, 7.0)
    outs = [context_aware_encoder(t, layers, n_heads=H, context=context, mask=MASK)[MASK] for t in (x, noisy)]
    close(outs[0], outs[1], 1e-10)


def test_gate_model_between_all_and_nothing():
    """Gates of 1 leave plain attention, gates of 0 make it uniform, over real tokens."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, B, H, N, 4))
    w = GateWeights(*(rng.standard_normal(s) for s in ((4, 3), (3,), (4, 3), (3,), (3, 2), (2,))))
    still = w._replace(w_g=np.zeros((3, 2)))
    mask = MASK[:, None, None]
    close(
        gated_self_attention(q, k, v, still._replace(b_g=np.full(2, 60.0)), mask=MASK),
        attention(q, k, v, mask=mask).out,
    )
    uniform = gated_self_attention(q, k, v, still._replace(b_g=np.full(2, -60.0)), mask=MASK)
    close(uniform[1], np.broadcast_to(v[1, :, :4].mean(1, keepdims=True), v[1].shape))


def test_transport_attention_carries_tokens_over():
    """The exact plan permutes equally many targets; a shifted source is carried onto its target."""
    x = np.random.default_rng(0).standard_normal((B, N, 3))
    target = np.random.default_rng(1).standard_normal((B, N, 3))
    close(np.sort(ot_cross_attention(x, target, method="emd"), axis=1), np.sort(target, axis=1))
    close(ot_cross_attention(x, x[:, ::-1] + 4.0, method="emd"), x + 4.0)


def test_one_shared_query_and_a_lone_reference():
    """A single reference takes the mean of the real tokens; weights of tokens sum to p/n once converged."""
    x, _ = draw()
    rng = np.random.default_rng(2)
    close(ot_kernel_attention(x, rng.standard_normal((1, 1, D)), eps=0.5, mask=MASK)[:, 0], mean_pool(x, MASK))
    _, a = ot_kernel_attention(x, rng.standard_normal((H, 3, D)), eps=2.0, n_iter=500, return_weights=True)
    close(a.sum(-1), 1.0)
    close(a.sum(-2), 3 / N, 1e-9)


def test_a_small_eps_of_the_kernel_does_not_overflow():
    """exp(x·w/ε) would be infinite here; logarithms are not."""
    x, _ = draw()
    assert np.isfinite(ot_kernel_attention(x, x[0][None], eps=1e-3)).all()


def test_fusions():
    """Concatenation is one linear map; attention fusion is a mixture with the weights that it returns."""
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((B, 3)) for _ in range(4)]
    w, b = rng.standard_normal((12, 5)), rng.standard_normal(5)
    close(fuse_concat(parts, w, b), sum(p @ w[3 * i : 3 * i + 3] for i, p in enumerate(parts)) + b)
    fused, alpha = fuse_attention(parts, rng.standard_normal((3, 2)), rng.standard_normal(2), rng.standard_normal(2))
    close(alpha.sum(-1), 1.0)
    close(fused, sum(alpha[:, i : i + 1] * p for i, p in enumerate(parts)))


def sample(seed=0, n=200, k=4):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, k))
    return logits, softmax(logits), rng.integers(k, size=n)


def test_label_smoothing_is_affine_in_alpha():
    """α = 0 is cross-entropy, and the loss runs in a straight line from there."""
    logits, probs, labels = sample()
    loss = [float(label_smoothing_cross_entropy(logits, labels, alpha=a)) for a in (0.0, 0.5, 1.0)]
    close(loss[0], -np.log(probs[np.arange(200), labels]).mean())
    close(loss[1], (loss[0] + loss[2]) / 2)


def test_calibration_errors():
    """ECE ≤ MCE ≤ 1; one bin compares means; order is nothing; perfect certainty is perfect; Σ_k per bin by a loop."""
    _, probs, labels = sample()
    measures = (
        expected_calibration_error,
        maximum_calibration_error,
        average_calibration_error,
        adaptive_calibration_error,
    )
    ece, mce, *_ = (m(probs, labels) for m in measures)
    assert 0 <= ece <= mce <= 1
    hit, conf = probs.argmax(1) == labels, probs.max(1)
    close(expected_calibration_error(probs, labels, bins=1), abs(hit.mean() - conf.mean()))
    naive = 0.0
    for low in np.arange(10) / 10:
        inside = (conf >= low) & ((conf < low + 0.1) | (low == 0.9))
        naive += abs(hit[inside].sum() - conf[inside].sum()) / 200
    close(ece, naive)
    order = np.random.default_rng(1).permutation(200)
    for measure in measures:
        close(measure(probs[order], labels[order]), measure(probs, labels))
        assert measure(np.eye(4)[labels], labels) == 0
    assert reliability(probs, labels, bins=7).samples.sum() == 200
    assert adaptive_calibration_error(probs, labels, of="top") > 0


def test_flops_of_a_context():
    """One context for all costs little; one for each token costs a projection more for every token."""
    plain = context_attention_flops(512, 768)
    assert plain == 8 * 512 * 768**2 + 4 * 512**2 * 768
    added = context_attention_flops(512, 768, 768) - plain
    assert added == 4 * 768**2 + 4 * 513 * 768 + 6 * 512 * 768
    per_token = context_attention_flops(512, 768, 768, per_token=True) - plain
    assert per_token == 4 * 512 * 768**2 + 8 * 512 * 768 + 6 * 512 * 768


def gate_model(x, **changed):
    w = {"w_gq": np.ones((4, 3)), "b_gq": np.ones(3), "w_gk": np.ones((4, 3)), "b_gk": np.ones(3)}
    w |= {"w_g": np.ones((3, 2)), "b_g": np.ones(2)} | changed
    q = x.reshape(B, N, 2, 4).swapaxes(1, 2)
    return gated_self_attention(q, q, q, GateWeights(**w))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: context_aware_attention(x, w, n_heads=3), "n_heads=3 must divide"),
        (lambda x, w: context_aware_attention(x, w, np.ones((B, 1, D + 1)), n_heads=H), "weights.uq has shape"),
        (lambda x, w: context_aware_attention(x, w, np.ones((B, 2, D)), n_heads=H), "context has 2 tokens"),
        (lambda x, w: context_aware_attention(x, w, np.ones((3, 1, D)), n_heads=H), "batch does not broadcast"),
        (lambda x, w: context_aware_attention(x, w._replace(uq=None), x, n_heads=H), "weights.uq is None"),
        (lambda x, w: context_aware_attention(x, w._replace(wo=np.ones((D, 3))), n_heads=H), "weights.wo has shape"),
        (
            lambda x, w: context_aware_attention(x, w, n_heads=H, mask=np.zeros((B, N), bool)),
            "at least one unmasked token",
        ),
        (lambda x, w: context_aware_attention(x, w, n_heads=H, mask=np.ones((B, 2), bool)), "mask has shape"),
        (lambda x, w: context_gates(x, x[:, :2], x, w), "expected equal ones"),
        (lambda x, w: context_aware_encoder(x, [], n_heads=H, context="wide"), "context='wide'"),
        (lambda x, w: deep_context([]), "layers is empty"),
        (lambda x, w: deep_global_context([x, x[:, :2]]), r"layers\[1\] has shape"),
        (lambda x, w: gate_model(x, b_g=np.ones(3)), "weights.b_g has shape"),
        (lambda x, w: ot_cross_attention(x, x), "reg=None"),
        (lambda x, w: ot_cross_attention(x, x, reg=-1.0), "reg=-1.0 must be > 0"),
        (lambda x, w: ot_cross_attention(x, x, reg=1.0, method="laplace"), "method='laplace'"),
        (lambda x, w: ot_kernel_attention(x, np.ones((1, 2, D)), eps=0.0), "eps=0.0 must be > 0"),
        (lambda x, w: ot_kernel_attention(x, np.ones((1, 2, 3)), eps=1.0), "reference has shape"),
        (lambda x, w: ot_kernel_attention(x, np.ones((1, 2, D)), eps=1.0, n_iter=0), "n_iter=0"),
        (lambda x, w: fuse_concat([], x, x), "parts is empty"),
        (lambda x, w: fuse_concat([x[0], x[0, :2]], w.wq, w.bq), r"parts\[1\] has shape"),
        (lambda x, w: fuse_attention([x[0]], w.wq, w.bq, np.ones(3)), "w_score has shape"),
    ],
)
def test_bad_layers_are_refused(call, message):
    """Arguments that do not fit are refused by name."""
    x, w = draw()
    with pytest.raises(ValueError, match=message):
        call(x, w)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, p, y: label_smoothing_cross_entropy(z, y, alpha=1.5), "alpha=1.5"),
        (lambda z, p, y: label_smoothing_cross_entropy(z, y + 3), "labels must lie in 0 … 3"),
        (lambda z, p, y: label_smoothing_cross_entropy(z[:0], y[:0]), "there is no sample"),
        (lambda z, p, y: expected_calibration_error(p[:, :1], y), "K=1 classes"),
        (lambda z, p, y: expected_calibration_error(1.1 * p, y), "away from 1"),
        (lambda z, p, y: expected_calibration_error(p, y, bins=0), "bins=0"),
        (lambda z, p, y: expected_calibration_error(p, y[:5]), "labels has shape"),
        (lambda z, p, y: adaptive_calibration_error(p, -1 - y), "labels must lie"),
        (lambda z, p, y: adaptive_calibration_error(p, y, of="all"), "of='all'"),
        (lambda z, p, y: maximum_calibration_error(p[:0], y[:0]), "there is no sample"),
    ],
)
def test_bad_predictions_are_refused(call, message):
    """Losses and measures refuse labels, probabilities and options out of range."""
    with pytest.raises(ValueError, match=message):
        call(*sample())
