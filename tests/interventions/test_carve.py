"""CARVE: the contrast and its theory, fusion, masks, crops, measures, hooks, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.interventions.carve import (
    CaptureHook,
    RequeryHook,
    answer_images,
    attention_entropy,
    attention_mask,
    bilinear_resize,
    carve,
    color_complexity,
    connected_regions,
    contrast_attention,
    contrast_objective,
    extract_attention,
    fuse_contrastive_attention,
    hide_image_tokens,
    image_attention,
    infer_grid,
    mask_bbox,
    mask_image,
    optimal_regularization,
    overall_entropy,
    patch_mask,
    refine_image,
    texture_complexity,
)
from refattn.interventions.carve_complexity import canny_edges, hue_bins
from refattn.interventions.carve_resize import nearest_resize, resize_weights
from refattn.primitives.softmax import softmax
from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward
from refattn.transformer.weights import BlockWeights, Transformer, TransformerWeights

SEEDS = st.integers(0, 2**16)


def maps(*shape, seed=0):
    return softmax(np.random.default_rng(seed).standard_normal(shape))


@given(SEEDS)
def test_the_contrast_is_the_only_minimum(seed):
    """Every step away from the contrast raises the objective, by its second derivative."""
    rng = np.random.default_rng(seed)
    a_task, a_general, lam = rng.random(6), 0.05 + rng.random(6), rng.random()
    x = contrast_attention(a_task, a_general, lam)
    delta = rng.standard_normal(6)
    rise = contrast_objective(x + delta, a_task, a_general, lam) - contrast_objective(x, a_task, a_general, lam)
    np.testing.assert_allclose(rise, np.sum(delta**2 * a_general * (a_general + lam)), rtol=1e-9)
    assert rise > 0


@given(SEEDS)
def test_lambda_shrinks_by_a_known_share(seed):
    """A_Q = F ⊙ G over A_G = F gives G F/(F + λ): a relative error of λ/(F + λ)."""
    rng = np.random.default_rng(seed)
    seen, meaning, lam = 0.01 + rng.random(8), 0.1 + rng.random(8), rng.random()
    found = contrast_attention(seen * meaning, seen, lam)
    np.testing.assert_allclose(found, meaning * seen / (seen + lam), rtol=1e-14)
    np.testing.assert_allclose(1 - found / meaning, lam / (seen + lam), rtol=1e-9)


@given(SEEDS)
def test_added_logits_come_back_up_to_one_constant(seed):
    """If the question adds to the logits, the quotient is the exponential of what it adds, times one number."""
    rng = np.random.default_rng(seed)
    clutter, meaning = 3 * rng.standard_normal(20), rng.standard_normal(20)
    ratio = contrast_attention(softmax(clutter + meaning), softmax(clutter), 0.0) / np.exp(meaning)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)


@given(SEEDS)
def test_noise_in_the_denominator_is_bounded(seed):
    """A general map that is off by a share of at most δ makes an error of at most δ/(1 − δ)."""
    rng = np.random.default_rng(seed)
    seen, meaning, delta = 0.1 + rng.random(30), rng.random(30), 0.99 * rng.random()
    general = seen * (1 + delta * (2 * rng.random(30) - 1))
    error = np.abs(contrast_attention(seen * meaning, general, 0.0) - meaning)
    assert np.all(error <= meaning * delta / (1 - delta) * (1 + 1e-12))


def test_more_lambda_or_more_general_attention_is_less_contrast():
    """The contrast falls with λ and with A_G, and equal maps stay below 1."""
    a, b = maps(9), maps(9, seed=1)
    assert np.all(contrast_attention(a, b, 0.2) < contrast_attention(a, b, 0.1))
    assert np.all(contrast_attention(a, 1.1 * b, 0.1) < contrast_attention(a, b, 0.1))
    assert np.all(contrast_attention(a, a, 1e-3) < 1)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_the_corrected_lambda_minimises_the_simulated_error(sigma):
    """With noise in the denominator the best λ is 3 σ²/μ; the paper's two forms are a third and two thirds of it."""
    noise = sigma * np.random.default_rng(0).standard_normal(200_000)
    general = 1 + np.concatenate([noise, -noise])
    lams = sigma**2 * np.linspace(2.6, 3.4, 41)
    errors = [np.mean((1 / (general + lam) - 1) ** 2) for lam in lams]
    best = lams[np.argmin(errors)] / sigma**2
    assert abs(best - optimal_regularization(1.0, sigma) / sigma**2) < 0.3
    np.testing.assert_allclose(optimal_regularization(1.0, sigma, "paper") / sigma**2, 1.0, atol=0.01)
    np.testing.assert_allclose(optimal_regularization(1.0, sigma, "cubic") / sigma**2, 2.0, atol=0.09)


def test_the_cubic_lambda_is_the_root():
    """λ (μ + λ)² = 2 μ σ², for noise of any size, and λ = 0 without noise."""
    mu, sigma = np.meshgrid([0.3, 1.0, 7.0], [0.0, 1e-6, 0.01, 1.0, 50.0])
    lam = optimal_regularization(mu, sigma, "cubic")
    np.testing.assert_allclose(lam * (mu + lam) ** 2, 2 * mu * sigma**2, rtol=1e-12, atol=0)
    np.testing.assert_allclose(
        optimal_regularization(mu, sigma, "paper"), mu * (np.sqrt(1 + 2 * (sigma / mu) ** 2) - 1), rtol=1e-6, atol=1e-15
    )


def test_fusion_is_the_weighted_sum_of_resized_quotients():
    """Step t weighs t; first, last and equal choose; layers may be named twice."""
    task, general = maps(3, 2, 6), maps(4, 2, 6, seed=1)
    contrast = (task / (general[:3] + 0.01)).reshape(3, 2, 2, 3)
    for steps, weights in {"all": (1, 2, 3), "first": (1, 0, 0), "last": (0, 0, 1), "equal": (1, 1, 1)}.items():
        for layers in (None, [1], [0, 0, 1], []):
            chosen = [0, 1] if layers is None else layers
            expected = sum(w * bilinear_resize(contrast[t, l], (5, 7)) for t, w in enumerate(weights) for l in chosen)
            fused = fuse_contrastive_attention(task, general, (2, 3), (5, 7), layers=layers, lam=0.01, steps=steps)
            np.testing.assert_allclose(fused, expected + np.zeros((5, 7)), rtol=1e-12)


@given(st.integers(1, 9), st.integers(1, 9), SEEDS)
def test_resizing_averages(n, m, seed):
    """Weights are non-negative and sum to 1, the same size is the identity, and extremes bound the result."""
    weights = resize_weights(n, m)
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-14)
    image = np.random.default_rng(seed).standard_normal((n, m))
    np.testing.assert_allclose(bilinear_resize(image, (n, m)), image, rtol=1e-14)
    out = bilinear_resize(image, (m, n))
    assert image.min() - 1e-12 <= out.min() <= out.max() <= image.max() + 1e-12
    np.testing.assert_allclose(out, bilinear_resize(bilinear_resize(image, (m, m)), (m, n)), atol=1e-12)
    assert np.isin(nearest_resize(image, (m, n)), image).all()


def flood(mask):
    """Number regions by walking from each first pixel."""
    labels, n = np.zeros(mask.shape, dtype=int), 0
    for start in np.argwhere(mask):
        if labels[tuple(start)]:
            continue
        n += 1
        stack = [tuple(start)]
        while stack:
            y, x = stack.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                labels[y, x] = n
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return labels, n


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.2, 0.8), SEEDS)
def test_regions_are_those_of_a_walk(h, w, density, seed):
    """Numbers are those of a flood fill in reading order, whatever the layout in memory."""
    mask = np.random.default_rng(seed).random((h, w)) < density
    expected, count = flood(mask)
    for layout in (mask, np.asfortranarray(mask), mask[::-1].copy()[::-1]):
        labels, n = connected_regions(layout)
        np.testing.assert_array_equal(labels, expected)
        assert n == count


@given(SEEDS, st.floats(0.05, 0.9), st.floats(0.01, 0.1))
def test_masks_grow_with_p_and_with_the_number_of_regions(seed, p, more):
    """More share or more regions never lose a pixel; with regions enough the mask is all that passes the threshold."""
    scores = np.random.default_rng(seed).random((8, 9))
    above = scores >= np.percentile(scores, (1 - p) * 100)
    paper = {"count_rule": "paper"}
    np.testing.assert_array_equal(attention_mask(scores, p, 99, **paper), above)
    assert np.all(above <= attention_mask(scores, p + more, 99, **paper))
    areas = [attention_mask(scores, p, k, **paper).sum() for k in range(1, 8)]
    assert areas == sorted(areas)
    code = attention_mask(scores, p, 2)
    assert connected_regions(code)[1] <= max(2, int(p * connected_regions(above)[1]))
    np.testing.assert_array_equal(attention_mask(3.7 * scores, p, 2), code)


def test_everything_passes_where_nothing_stands_out():
    """With p = 1, and on a constant map, the mask is the whole image, its box too, and nothing is magnified."""
    rng = np.random.default_rng(0)
    image, scores = rng.random((6, 8, 3)), rng.random((6, 8))
    for mask in (attention_mask(scores, 1.0), attention_mask(np.full((6, 8), 0.3))):
        assert mask.all()
        assert mask_bbox(mask) == (0, 0, 8, 6)
        np.testing.assert_allclose(refine_image(image, mask), image, rtol=1e-14)


def test_strategies_differ():
    """A large pale region wins by size, a small bright one by sum; small ones are dropped by their share."""
    scores = np.zeros((5, 7))
    scores[:2, :3], scores[4, 6], scores[4, 0] = 1.0, 9.0, 0.5
    options = {"top_p": 0.23, "max_regions": 1, "count_rule": "paper"}
    assert attention_mask(scores, **options)[4, 6]
    assert attention_mask(scores, **options, strategy="size")[:2, :3].all()
    kept = attention_mask(scores, 0.23, strategy="remove_small", outlier_percent=25.0)
    np.testing.assert_array_equal(kept, scores == 1.0)


def test_the_crop_is_masked_and_covers_the_image():
    """Pixels outside the mask are 0, the box is cut out, and the longer side fits."""
    image = np.random.default_rng(0).random((8, 12, 3))
    mask = np.zeros((8, 12), dtype=bool)
    mask[2:4, 3:9], mask[2, 3] = True, False
    assert mask_bbox(mask) == (3, 2, 9, 4)
    assert mask_bbox(np.zeros((8, 12), dtype=bool)) == (0, 0, 12, 8)
    crop = refine_image(image, mask, magnify=False)
    np.testing.assert_array_equal(crop, mask_image(image, mask)[2:4, 3:9])
    assert not crop[0, 0].any()
    for method in ("bilinear", "nearest"):
        assert refine_image(image, mask, method=method).shape == (8, 24, 3)  # factor max(12/6, 8/2) = 4
    np.testing.assert_array_equal(refine_image(image, mask, method="nearest")[::4, ::4], crop)
    assert [len(answer_images(image, crop, rule)) for rule in ("code", "paper")] == [2, 1]


def test_patches_stay_if_half_of_them_does():
    """Exactly half of a patch is enough."""
    mask = np.zeros((4, 8), dtype=bool)
    mask[:2, :4], mask[:1, 4:] = True, True
    np.testing.assert_array_equal(patch_mask(mask, (1, 2)), [[True, False]])


def test_grids_are_guessed_as_in_the_released_code():
    """Known numbers first, then the fallback, which may be smaller, then squares."""
    assert [infer_grid(n) for n in (576, 1024, 1600, 1681, 256)] == [(s, s) for s in (24, 32, 40, 41, 16)]
    assert infer_grid(576, (2, 3)) == (24, 24)
    assert infer_grid(14, (3, 4)) == (3, 4)
    assert infer_grid(9, (3, 4)) == (3, 3)
    assert [infer_grid(n) for n in (0, 1, 26)] == [None] * 3


@given(st.integers(1, 30), SEEDS)
def test_entropy_lies_between_none_and_even(n, seed):
    """0 ≤ H ≤ ln N, with both ends reached, and the order of tokens does not matter."""
    rng = np.random.default_rng(seed)
    a = rng.random(n)
    assert -1e-12 <= attention_entropy(a) <= np.log(n) + 1e-12
    np.testing.assert_allclose(attention_entropy(a), attention_entropy(rng.permutation(a)), atol=1e-12)
    np.testing.assert_allclose(attention_entropy(np.full(n, 0.1)), np.log(n), atol=1e-12)
    assert attention_entropy(np.eye(n)[0]) == 0
    assert attention_entropy(np.zeros(n), normalize=False) == 0
    stack = rng.random((3, 2, n)) + 0.01
    np.testing.assert_allclose(overall_entropy(stack, [1]), attention_entropy(stack[-1, 1]))


def test_measures_of_pictures_reach_their_ends():
    """One hue, or none, has no variety; 180 even hues have all; a step is one line of edges, a flat picture none."""
    wheel = (np.arange(180) + 0.5) / 30
    rise = [np.clip(np.abs((wheel + turn) % 6 - 3) - 1, 0, 1) for turn in (0, 4, 2)]
    image = np.stack(rise, axis=-1)[None]
    np.testing.assert_array_equal(hue_bins(image)[0], np.arange(180))
    np.testing.assert_allclose(color_complexity(image), 1.0, rtol=1e-14)
    assert color_complexity(np.full((3, 4, 3), [0.2, 0.4, 0.4])) == 0
    assert color_complexity(np.random.default_rng(0).random((5, 5, 1)).repeat(3, axis=-1)) == 0
    step = np.zeros((10, 12))
    step[:, 6:] = 1.0
    for picture in (step, step.T):
        edges = canny_edges(picture)
        np.testing.assert_allclose(texture_complexity(picture), edges.mean())
        assert edges.sum() == 10
    assert texture_complexity(np.full((9, 9, 3), 0.4)) == 0
    assert 0 < texture_complexity(np.random.default_rng(0).random((30, 30))) < 1


def test_all_of_it_finds_the_target_in_the_clutter():
    """A target that only the question adds to is found behind clutter that draws more attention."""
    clutter, target = np.zeros((8, 8)), np.zeros((8, 8))
    clutter[:2, :2], clutter[6:, 6:], target[4, 2] = 4.0, 4.0, 3.0
    task, general = softmax((clutter + target).ravel()), softmax(clutter.ravel())
    image = np.random.default_rng(0).random((16, 16, 3))
    assert task.argmax() in (0, 1, 8, 9)
    result = carve(task[None, None], general[None, None], image, (8, 8), top_p=0.05, max_regions=1)
    assert result.mask[8:10, 4:6].all()
    x0, y0, x1, y1 = result.bbox
    assert x1 - x0 <= 5
    assert y1 - y0 <= 5
    assert min(result.refined.shape[:2]) >= 15
    grown = carve(task[None, None], general[None, None], image, (8, 8), top_p=0.05, max_regions=1, magnify=False)
    np.testing.assert_array_equal(grown.refined, mask_image(image, result.mask)[y0:y1, x0:x1])


def test_small_things_work():
    """One token, one pixel, one step, λ = 0 without zeros, attention that is zero for the task."""
    one = fuse_contrastive_attention([[[0.2]]], [[[0.4]], [[9.0]]], (1, 1), (2, 3), lam=0.0)
    np.testing.assert_allclose(one, np.full((2, 3), 0.5))
    assert not fuse_contrastive_attention(np.zeros((1, 1, 4)), np.ones((1, 1, 4)), (2, 2), (3, 3)).any()
    assert attention_mask([[3.0]]).all()
    assert refine_image(np.ones((1, 1, 3)), [[True]]).shape == (1, 1, 3)


def tiny_decoder():
    """A decoder of three layers with two heads, drawn at random."""
    rng = np.random.default_rng(0)
    L, d, H, e, m, V = 3, 8, 2, 4, 12, 11
    names = {"n_layer": L, "n_embd": d, "n_head": H, "n_inner": m, "vocab_size": V, "n_positions": 24}
    config = parse_config({"model_type": "gpt2", **names})

    def draw(*shape):
        return rng.standard_normal(shape) / shape[-1] ** 0.5

    def block():
        empty = dict.fromkeys(BlockWeights._fields)
        norms = {"ln1_w": np.ones(d), "ln1_b": np.zeros(d), "ln2_w": np.ones(d), "ln2_b": np.zeros(d)}
        heads = {f"W_{x}": draw(H, d, e) for x in "QKV"} | {f"b_{x}": np.zeros((H, e)) for x in "QKV"}
        mlp = {"W_in": draw(d, m), "b_in": np.zeros(m), "W_out": draw(m, d), "b_out": np.zeros(d)}
        return BlockWeights(**(empty | norms | heads | mlp | {"W_O": draw(H, e, d), "b_O": np.zeros(d)}))

    blocks = tuple(block() for _ in range(L))
    embedding = 3 * draw(V, d)
    weights = TransformerWeights(embedding, draw(24, d), blocks, np.ones(d), np.zeros(d), embedding.T)
    return Transformer(config, weights)


IDS = np.array([1, 4, 7, 2, 9, 3])
IMAGE = (1, 5)


def test_capturing_keeps_the_last_row_and_changes_nothing():
    """The hook's maps are the attention patterns' last rows, in the order of its layers; the logits are as before."""
    model = tiny_decoder()
    hook = CaptureHook([2, 0], IMAGE)
    plain = forward(model, IDS[None], names="all")
    hooked = forward(model, IDS[None], interventions=(hook,))
    np.testing.assert_array_equal(hooked.logits, plain.logits)
    patterns = [plain.activations[f"blocks.{l}.attn.hook_pattern"][0] for l in (2, 0)]
    np.testing.assert_allclose(hook.maps(), [p[:, -1, 1:5].mean(axis=0) for p in patterns], rtol=1e-13)
    forward(model, np.stack([IDS, IDS]), interventions=(hook,))
    assert hook.maps().shape == (2, 2, 4)
    with pytest.raises(ValueError, match="must be below 3"):
        forward(model, IDS[None], interventions=(CaptureHook([3], IMAGE),))


def test_extraction_generates_greedily_until_the_end():
    """Each step is a full pass over all tokens so far; the one that emits the end of sequence still counts."""
    model = tiny_decoder()
    run = extract_attention(model, IDS, layers=[1, 2], image_slice=IMAGE, max_new_tokens=4)
    assert run.maps.shape == (4, 2, 4)
    longer = IDS
    for step, token in enumerate(run.tokens):
        result = forward(model, longer[None], names="all")
        assert token == result.logits[0, -1].argmax()
        row = result.activations["blocks.2.attn.hook_pattern"][0, :, -1, 1:5]
        np.testing.assert_allclose(run.maps[step, 1], row.mean(axis=0), rtol=1e-13)
        longer = np.append(longer, token)
    eos = int(run.tokens[1])
    first = int(np.argmax(run.tokens == eos)) + 1
    short = extract_attention(model, IDS, layers=[1, 2], image_slice=IMAGE, max_new_tokens=4, eos=eos)
    np.testing.assert_array_equal(short.maps, run.maps[:first])
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        extract_attention(model, IDS, layers=[1], image_slice=IMAGE, max_new_tokens=0)


def test_asking_again_sees_only_what_is_kept():
    """Hidden image tokens get no attention in any layer; with all kept nothing changes."""
    model = tiny_decoder()
    keep = np.array([True, False, False, True])
    seen = forward(model, IDS[None], interventions=(RequeryHook(keep, IMAGE),), names="all")
    for layer in range(3):
        pattern = seen.activations[f"blocks.{layer}.attn.hook_pattern"]
        assert not pattern[..., 2:4].any()
        np.testing.assert_allclose(pattern[:, :, -1].sum(axis=-1), 1, rtol=1e-12)
    everything = forward(model, IDS[None], interventions=(RequeryHook(np.ones(4, dtype=bool), IMAGE),))
    np.testing.assert_array_equal(everything.logits, forward(model, IDS[None]).logits)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: fuse_contrastive_attention(np.ones((2, 3)), np.ones((2, 3)), (1, 3), (2, 2)), "task_maps has 2 axes"),
        (
            lambda: fuse_contrastive_attention(np.ones((1, 2, 4)), np.ones((1, 3, 4)), (2, 2), (2, 2)),
            "must agree in layers and tokens",
        ),
        (lambda: fuse_contrastive_attention(-np.ones((1, 1, 4)), np.ones((1, 1, 4)), (2, 2), (2, 2)), "non-negative"),
        (
            lambda: fuse_contrastive_attention(np.full((1, 1, 4), np.nan), np.ones((1, 1, 4)), (2, 2), (2, 2)),
            "must be finite",
        ),
        (lambda: fuse_contrastive_attention(np.ones((1, 1, 4)), np.ones((1, 1, 4)), (2, 3), (2, 2)), "multiply to N=4"),
        (lambda: fuse_contrastive_attention(np.ones((1, 1, 4)), np.ones((1, 1, 4)), (2, 2), (0, 2)), "size="),
        (
            lambda: fuse_contrastive_attention(np.ones((1, 1, 4)), np.ones((1, 1, 4)), (2, 2), (2, 2), layers=[1]),
            "layers=",
        ),
        (
            lambda: fuse_contrastive_attention(np.ones((1, 1, 4)), np.ones((1, 1, 4)), (2, 2), (2, 2), steps="mean"),
            "steps='mean' is not one of",
        ),
        (lambda: fuse_contrastive_attention(np.ones((0, 1, 4)), np.ones((1, 1, 4)), (2, 2), (2, 2)), "at least one"),
        (lambda: contrast_attention([1.0], [0.0], 0.0), "must be positive where"),
        (lambda: contrast_attention([1.0], [1.0], -0.1), "lam=-0.1"),
        (lambda: contrast_attention([1.0], [1.0, 2.0]), "a_task has shape"),
        (lambda: contrast_objective([1.0, 2.0], [1.0], [1.0]), "x has shape"),
        (lambda: image_attention(np.ones((2, 2)), (0, 1)), "expected"),
        (lambda: image_attention(np.ones((1, 2, 2)), (0, 3)), "within the 2 keys"),
        (lambda: image_attention(np.ones((1, 2, 2)), slice(0, 2, 2)), "step 1"),
        (lambda: attention_mask(np.ones((2, 2)), 0.0), "top_p=0.0"),
        (lambda: attention_mask(np.ones((2, 2)), 1.1), "top_p=1.1"),
        (lambda: attention_mask(np.ones((2, 2)), max_regions=0), "max_regions=0"),
        (lambda: attention_mask(np.ones((2, 2)), strategy="best"), "strategy='best'"),
        (lambda: attention_mask(np.ones((2, 2)), count_rule="mine"), "count_rule='mine'"),
        (lambda: attention_mask(np.ones((2, 2)), outlier_percent=101), "outlier_percent=101"),
        (lambda: attention_mask(np.ones((0, 2))), "no pixel"),
        (lambda: attention_mask([[np.inf]]), "must be finite"),
        (lambda: refine_image(np.ones((2, 2)), np.ones((2, 2), dtype=bool)), r"expected \(h, w, 3\)"),
        (lambda: refine_image(np.ones((2, 2, 3)), np.ones((2, 3), dtype=bool)), "mask has shape"),
        (lambda: refine_image(np.ones((2, 2, 3)), np.ones((2, 2))), "expected bool"),
        (lambda: refine_image(np.ones((2, 2, 3)), np.ones((2, 2), dtype=bool), method="lanczos"), "method='lanczos'"),
        (lambda: answer_images(1, 2, "both"), "rule='both'"),
        (lambda: bilinear_resize(np.ones(3), (1, 1)), "image has shape"),
        (lambda: bilinear_resize(np.ones((2, 2)), (2, 0)), "size="),
        (lambda: infer_grid(-1), "n=-1"),
        (lambda: infer_grid(4, (0, 2)), "fallback="),
        (lambda: attention_entropy(np.zeros(3)), "attention has no mass"),
        (lambda: attention_entropy([-0.1, 1.0]), "non-negative"),
        (lambda: overall_entropy(np.ones((1, 2, 3)), [2]), "layers="),
        (lambda: texture_complexity(np.full((2, 2), 1.5)), r"lie in \[0, 1\]"),
        (lambda: color_complexity(np.ones((2, 2))), r"expected \(h, w, 3\)"),
        (lambda: optimal_regularization(0.0, 1.0), "mu="),
        (lambda: optimal_regularization(1.0, -1.0), "sigma="),
        (lambda: optimal_regularization(1.0, 1.0, "best"), "form='best'"),
        (lambda: hide_image_tokens(np.zeros((2, 4)), [True], (0, 2)), "keep has shape"),
        (lambda: CaptureHook([0], (0, 1)).maps(), "have not been reached"),
    ],
)
def test_bad_input_is_refused_by_name(call, rule):
    """Each argument out of range is refused in words."""
    with pytest.raises(ValueError, match=rule):
        call()
