"""Sentence attention: what a question does to channels, where that came from, merging, the mask, and bad input."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.layers.sentence_attention import (
    SentenceAttentionWeights,
    SqueezeExciteWeights,
    sentence_attention,
    sentence_gate,
    spatial_mean,
    squeeze_excite,
)
from refattn.layers.sentence_attention_cost import block_cost, cross_attention_flops
from refattn.layers.sentence_attention_head import (
    MergeWeights,
    answer_grounding_head,
    mean_iou,
    merge_block,
    resize_bilinear,
)


def block(rng, D=4, C=5, E=None):
    E = E or 4 * D
    w1, w2 = rng.standard_normal((D, E)), rng.standard_normal((E, C))
    return SentenceAttentionWeights(
        w1, rng.standard_normal(E), 1 + 0.1 * rng.standard_normal(E), rng.standard_normal(E), w2, rng.standard_normal(C)
    )


def merger(rng, low=3, high=5):
    return MergeWeights(rng.standard_normal((low, high)), *rng.standard_normal((3, high)), rng.random(high))


def draw(seed=0, B=2, C=5, H=4, W=3, D=4):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((B, C, H, W)), rng.standard_normal((B, D)), block(rng, D, C)


def close(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@given(st.integers(0, 99), st.integers(1, 9))
def test_a_gate_is_a_share_of_one_unit(seed, C):
    """Gates are not negative and sum to one; a single channel passes as it is."""
    x, t, w = draw(seed, C=C)
    g = sentence_gate(t, w)
    assert g.min() >= 0
    close(g.sum(axis=1), 1.0)
    if C == 1:
        close(sentence_attention(x, t, w), x)


def test_the_block_is_the_written_formula():
    """Number by number: two layers, a LayerNorm, a ReLU, a softmax."""
    x, t, w = draw()
    for b in range(2):
        a = np.array([sum(t[b, d] * w.w1[d, e] for d in range(4)) + w.b1[e] for e in range(16)])
        h = (a - a.mean()) / np.sqrt(np.mean((a - a.mean()) ** 2) + 1e-5) * w.ln_scale + w.ln_shift
        e = np.exp([sum(max(h[i], 0.0) * w.w2[i, c] for i in range(16)) + w.b2[c] for c in range(5)])
        close(sentence_attention(x, t, w)[b], x[b] * (e / e.sum())[:, None, None])


def test_the_block_is_linear_in_the_picture():
    """SAB(aX + bY) = a SAB(X) + b SAB(Y)."""
    x, t, w = draw()
    y = draw(1)[0]
    close(
        sentence_attention(2.5 * x - 0.3 * y, t, w),
        2.5 * sentence_attention(x, t, w) - 0.3 * sentence_attention(y, t, w),
    )


def test_the_block_sees_no_place():
    """Cropping, and any order of the pixels, commute with the block."""
    x, t, w = draw()
    close(sentence_attention(x[:, :, 1:3, :2], t, w), sentence_attention(x, t, w)[:, :, 1:3, :2], 0)
    order = np.random.default_rng(3).permutation(12)
    shuffled = x.reshape(2, 5, 12)[..., order].reshape(x.shape)
    close(
        sentence_attention(shuffled, t, w).reshape(2, 5, 12),
        sentence_attention(x, t, w).reshape(2, 5, 12)[..., order],
        0,
    )


def test_a_question_scales_whole_channels():
    """Output over input is one number for each channel, whatever the question."""
    x, t, w = draw()
    for question in (t, -t):
        ratio = sentence_attention(x, question, w) / x
        close(ratio, np.broadcast_to(ratio[:, :, :1, :1], x.shape))


@given(st.floats(0.5, 2.0))
def test_layer_norm_forgets_how_loud_a_sentence_is(alpha):
    """Scaling W1 and b1 changes no gate without eps, and hardly any with it."""
    _, t, w = draw()
    louder = w._replace(w1=alpha * w.w1, b1=alpha * w.b1)
    close(sentence_gate(t, louder, eps=0.0), sentence_gate(t, w, eps=0.0))
    close(sentence_gate(t, louder), sentence_gate(t, w), 1e-4)


def test_a_common_bias_matters_to_sigmoid_only():
    """A constant on b2 leaves a softmax gate, and changes a sigmoid gate."""
    _, t, w = draw()
    more = w._replace(b2=w.b2 + 3.0)
    close(sentence_gate(t, more), sentence_gate(t, w))
    assert np.all(sentence_gate(t, more, activation="sigmoid") > sentence_gate(t, w, activation="sigmoid"))


def test_a_cold_gate_opens_one_channel():
    """W2 and b2 times a large β give a one-hot gate at the largest logit."""
    _, t, w = draw()
    cold = sentence_gate(t, w._replace(w2=1e4 * w.w2, b2=1e4 * w.b2))
    close(cold, np.eye(5)[sentence_gate(t, w).argmax(axis=1)])


def test_squeeze_and_excitation_is_the_block_with_four_switches_turned():
    """Image means, a narrow hidden layer, no LayerNorm and a sigmoid give squeeze-and-excitation."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 3, 4))
    w = block(rng, D=6, C=6, E=2)
    switched = sentence_attention(x, spatial_mean(x), w, activation="sigmoid", layer_norm=False)
    close(squeeze_excite(x, SqueezeExciteWeights(w.w1, w.b1, w.w2, w.b2)), switched)


def test_squeeze_and_excitation_halves_when_indifferent():
    """W2 = 0 and b2 = 0 give X/2; any gate lies between 0 and 1."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 3, 3))
    w = SqueezeExciteWeights(rng.standard_normal((4, 2)), np.zeros(2), np.zeros((2, 4)), np.zeros(4))
    close(squeeze_excite(x, w), x / 2)
    gate = squeeze_excite(x, w._replace(w2=5 * rng.standard_normal((2, 4)))) / x
    assert np.all((gate > 0) & (gate < 1))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
def test_resizing_stays_within_the_map(h, w, height, width):
    """No size leaves the range of the map, a constant stays constant, and the same size is the same map."""
    x = np.random.default_rng(0).standard_normal((1, 2, h, w))
    out = resize_bilinear(x, (height, width))
    assert out.shape == (1, 2, height, width)
    assert x.min() - 1e-12 <= out.min() <= out.max() <= x.max() + 1e-12
    close(resize_bilinear(np.full_like(x, 0.7), (height, width)), 0.7, 0)
    close(resize_bilinear(x, (h, w)), x, 0)


def test_resizing_aligns_the_centres_of_areas():
    """Two pixels become four: the outer ones copy, the inner ones mix 3 to 1; four become two by means of pairs."""
    close(resize_bilinear([[[[0.0, 4.0]]]], (1, 4)), [[[[0.0, 1.0, 3.0, 4.0]]]])
    close(resize_bilinear([[[[0.0, 1.0, 3.0, 4.0]]]], (1, 2)), [[[[0.5, 3.5]]]])


def test_merging_adds_before_it_cuts():
    """ReLU(resize(BN(conv(low))) + high), number by number for maps of one size; silent weights leave ReLU(high)."""
    rng = np.random.default_rng(0)
    low, high, w = rng.standard_normal((1, 3, 2, 2)), rng.standard_normal((1, 5, 2, 2)), merger(rng)
    y = np.einsum("bihw,ij->bhwj", low, w.w)
    y = (y - w.bn_mean) / np.sqrt(w.bn_var + 1e-5) * w.bn_scale + w.bn_shift
    close(merge_block(low, high, w), np.maximum(np.moveaxis(y, -1, 1) + high, 0), 1e-10)
    silent = w._replace(w=0 * w.w, bn_shift=0 * w.bn_shift, bn_mean=0 * w.bn_mean)
    close(merge_block(low, high, silent), np.maximum(high, 0), 0)


def head(rng, B=2, D=4, maps=((3, 8, 6), (5, 4, 3), (2, 2, 2)), K=2):
    features = [rng.standard_normal((B, *shape)) for shape in maps]
    gates = [block(rng, D, shape[0]) for shape in maps]
    merges = [merger(rng, low[0], high[0]) for high, low in pairwise(maps)]
    w, b = rng.standard_normal((maps[0][0], K)), rng.standard_normal(K)
    return features, rng.standard_normal((B, D)), gates, merges, w, b


def test_a_head_is_its_parts_in_order():
    """Gates, merges from coarse to fine, a classifier, a resize."""
    features, t, gates, merges, w, b = head(np.random.default_rng(0))
    g = [sentence_attention(x, t, gate) for x, gate in zip(features, gates, strict=True)]
    merged = merge_block(merge_block(g[2], g[1], merges[1]), g[0], merges[0])
    logits = np.moveaxis(np.moveaxis(merged, 1, -1) @ w + b, -1, 1)
    out = answer_grounding_head(features, t, gates, merges, w, b, (16, 12))
    assert out.shape == (2, 2, 16, 12)
    close(out, resize_bilinear(logits, (16, 12)), 1e-10)


def test_masks_are_scored_by_mean_intersection_over_union():
    """Half of one mask and two empty ones: (1/2 + 1) / 2; a wrong guess on an empty image scores nothing."""
    pred, true = np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    true[0, 0], pred[0, 0, 0] = True, True
    assert mean_iou(pred, true) == 0.75
    assert mean_iou(true, np.zeros_like(true)) == 0.5
    assert mean_iou(pred[0], pred[0]) == 1.0


def test_empty_batches_and_single_numbers_work():
    """No sentence, one pixel, one channel and one text feature are no special cases."""
    x, t, w = draw(B=0)
    assert sentence_attention(x, t, w).shape == (0, 5, 4, 3)
    x, t, w = draw(B=1, C=1, H=1, W=1, D=1)
    close(sentence_attention(x, t, w), x)
    assert answer_grounding_head(*head(np.random.default_rng(0), B=0), (4, 4)).shape == (0, 2, 4, 4)
    assert (
        sentence_attention(
            np.ones((1, 2, 2, 2), int), np.ones((1, 3), int), block(np.random.default_rng(0), 3, 2)
        ).dtype
        == float
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtype_is_kept(dtype):
    """What comes in float32 or float16 goes out so."""
    features, t, gates, merges, w, b = head(np.random.default_rng(0))
    cast = lambda tree: type(tree)(*(a.astype(dtype) for a in tree))  # noqa: E731
    out = answer_grounding_head(
        [x.astype(dtype) for x in features],
        t.astype(dtype),
        [cast(g) for g in gates],
        [cast(m) for m in merges],
        w.astype(dtype),
        b.astype(dtype),
        (9, 7),
    )
    assert out.dtype == dtype


def test_costs_are_those_of_the_weights():
    """The count is the number of entries of the weights; a picture of any size takes the same."""
    weights = block(np.random.default_rng(0), 6, 7)
    assert (
        block_cost(1, 6, 7, 1, 1).parameters == sum(a.size for a in weights) == block_cost(3, 6, 7, 90, 90).parameters
    )
    assert block_cost(1, 384, 640, 19, 19).parameters == 1_578_112
    assert block_cost(2, 3, 5, 4, 4).flops == 2 * 2 * (3 * 12 + 12 * 5) + 2 * 5 * 16
    assert cross_attention_flops(100, 20, 8) == 64_000


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"features": np.ones((2, 5, 4))}, r"features must have shape \(batch, channels, height, width\)"),
        ({"features": np.ones((3, 5, 4, 3))}, "text has batch size 2, expected 3 as features"),
        ({"features": np.ones((2, 0, 4, 3))}, "at least one channel"),
        ({"features": np.full((2, 5, 4, 3), np.nan)}, "(?s)features=.* must be finite"),
        ({"features": np.ones((2, 6, 4, 3))}, "w2 has 5 columns, expected one for each of the 6 channels"),
        ({"text": np.ones(4)}, "text must have shape"),
        ({"text": np.full((2, 4), np.inf)}, "(?s)text=.* must be finite"),
        ({"text": np.ones((2, 3))}, "w1 has 4 rows, expected the width of text = 3"),
        ({"weights": block(np.random.default_rng(0))._replace(ln_scale=np.ones(3))}, "ln_scale has shape"),
        ({"weights": block(np.random.default_rng(0))._replace(b2=np.full(5, np.nan))}, "(?s)b2=.* must be finite"),
        ({"weights": block(np.random.default_rng(0))._replace(w2=np.ones((3, 5)))}, "w2 has 3 rows"),
        ({"activation": "relu"}, "activation='relu' is not one of 'softmax', 'sigmoid'"),
        ({"eps": -1.0}, "eps=-1.0 must be finite and >= 0"),
    ],
)
def test_bad_blocks_are_refused(change, rule):
    """Each argument out of range is refused by name, value and rule."""
    x, t, w = draw()
    call = {"features": x, "text": t, "weights": w} | change
    with pytest.raises(ValueError, match=rule):
        sentence_attention(call.pop("features"), call.pop("text"), call.pop("weights"), **call)


def test_bad_heads_are_refused():
    """Channels that do not meet, numbers of weights, negative variances and empty sizes are refused."""
    rng = np.random.default_rng(0)
    low, high, m = rng.standard_normal((1, 3, 2, 2)), rng.standard_normal((1, 5, 4, 4)), merger(rng)
    features, t, gates, merges, w, b = head(rng)
    mask = np.zeros((2, 2), bool)
    for call, rule in (
        (lambda: merge_block(high, low, m), "w has shape"),
        (lambda: merge_block(low[:0], high, m), "low has batch size 0, expected 1"),
        (lambda: merge_block(low, high, m._replace(bn_var=-m.bn_var)), "(?s)bn_var=.* must be >= 0"),
        (lambda: merge_block(low, high, m._replace(bn_mean=m.bn_mean * np.nan)), "(?s)bn_mean=.* must be finite"),
        (lambda: merge_block(low[..., :0], high, m), "at least one pixel"),
        (lambda: resize_bilinear(low, (0, 3)), r"size=\(0, 3\) must be at least 1"),
        (lambda: resize_bilinear(low, (3,)), r"size=\(3,\) must be a height and a width"),
        (lambda: answer_grounding_head([], t, [], [], w, b, (4, 4)), "at least one feature map"),
        (lambda: answer_grounding_head(features[:2], t, gates, merges, w, b, (4, 4)), "gates has 3 blocks"),
        (
            lambda: answer_grounding_head(features, t, gates, merges[:1], w, b, (4, 4)),
            "merges has 1 blocks, expected 2",
        ),
        (lambda: answer_grounding_head(features, t, gates, merges, w, b, (4, 0)), "output_size=.* must be at least 1"),
        (lambda: answer_grounding_head(features, t, gates, merges, w[:2], b, (4, 4)), "classifier_w has shape"),
        (lambda: answer_grounding_head(features, t, gates, merges, w, b[:1], (4, 4)), "classifier_b has shape"),
        (
            lambda: squeeze_excite(low, SqueezeExciteWeights(np.ones((3, 2)), np.ones(2), np.ones((2, 4)), np.ones(4))),
            "w2 has 4",
        ),
        (lambda: spatial_mean(low[:, :, :0]), "at least one pixel"),
        (lambda: mean_iou(mask, mask[:1]), "true_mask has shape"),
        (lambda: mean_iou(mask[None, :0], mask[None, :0][:0]), "true_mask has shape"),
        (lambda: mean_iou(np.zeros((0, 2, 2), bool), np.zeros((0, 2, 2), bool)), "at least one image"),
        (lambda: block_cost(-1, 2, 2, 2, 2), "batch=-1 must be >= 0"),
        (lambda: cross_attention_flops(1, -2, 3), "words=-2 must be >= 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            call()


def official_block(case):
    w = SentenceAttentionWeights(*(case[k] for k in ("W1", "b1", "ln_gamma", "ln_beta", "W2", "b2")))
    close(sentence_gate(case["text"], w, eps=float(case["ln_eps"])), case["gate"])
    close(sentence_attention(case["image"], case["text"], w, eps=float(case["ln_eps"])), case["out"])


def official_merge(case):
    w = MergeWeights(case["W"].T, case["bn_gamma"], case["bn_beta"], case["bn_mean"], case["bn_var"])
    close(merge_block(case["low"], case["high"], w, eps=float(case["bn_eps"])), case["out"])


def official_head(case):
    levels = range(int(case["n_levels"]))

    def gate(i):
        w1, b1, scale, shift, w2, b2 = (
            case[f"w:sentence_attentions.{i}.attention.{j}.{what}"] for j in (0, 1, 3) for what in ("weight", "bias")
        )
        return SentenceAttentionWeights(w1.T, b1, scale, shift, w2.T, b2)

    def merge(i):
        at = f"w:merge_blocks.{i}.low_res_conv."
        names = ("weight", "bias", "running_mean", "running_var")
        return MergeWeights(case[at + "0.weight"][:, :, 0, 0].T, *(case[at + "1." + name] for name in names))

    out = answer_grounding_head(
        [case[f"feat_{i}"] for i in levels],
        case["text"],
        [gate(i) for i in levels],
        [merge(i) for i in levels[:-1]],
        case["w:classifier.weight"][:, :, 0, 0].T,
        case["w:classifier.bias"],
        case["input_size"].tolist(),
    )
    close(out, case["out"])


def official_squeeze(case):
    w = SqueezeExciteWeights(*(case[k] for k in ("W1", "b1", "W2", "b2")))
    close(squeeze_excite(case["image"], w), case["out"])


KINDS = {"block": official_block, "merge": official_merge, "head": official_head, "se": official_squeeze}


def test_official_modules_agree(oracle):
    """Every vector of the official code, and of timm's squeeze-and-excitation, is met to 1e-12."""
    for path in oracle("25-sentence-attention-block"):
        with np.load(path) as case:
            KINDS[str(case["kind"])](case)
