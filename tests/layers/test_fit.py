"""FIT: who reaches whom, symmetries, the narrow door, decoding, layouts, costs, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.layers.fit import fit_encode
from refattn.layers.fit_autoregressive import fit_autoregressive
from refattn.layers.fit_blocks import fit_cross_attention, transformer_layer
from refattn.layers.fit_cost import fit_cost, fit_least_cost, fit_multiply_adds, fit_optimal_groups
from refattn.layers.fit_decode import FITCache, fit_ar_extend, fit_ar_init_cache, fit_ar_step
from refattn.layers.fit_denoiser import fit_denoise, time_code
from refattn.layers.fit_init import FITConfig, init_fit, init_fit_autoregressive, init_fit_denoiser
from refattn.layers.fit_layout import (
    group_causal_mask,
    parse_fit_layers,
    patch_groups,
    shift_right,
    snake_order,
    sub_image_groups,
)
from refattn.layers.fit_positions import position_table, sincos_1d, sincos_2d, sincos_code

SIZES = {"x_size": 12, "num_groups": 3, "latents_per_group": 2, "x_dim": 8, "latent_dim": 12, "x_heads": 2}
CONFIG = FITConfig("(1)1(1)", **SIZES, latent_heads=3, mlp_ratio=2)


def shaken(weights, rng, size=0.3):
    if isinstance(weights, tuple):
        moved = [shaken(branch, rng, size) for branch in weights]
        return type(weights)(*moved) if hasattr(weights, "_fields") else tuple(moved)
    return None if weights is None else weights + size * rng.standard_normal(weights.shape)


def encoder(batch=2, seed=0, extra_dim=None, **changes):
    rng = np.random.default_rng(seed)
    config = CONFIG._replace(**changes)
    weights = shaken(init_fit(config, rng, in_dim=5, extra_dim=extra_dim), rng)
    n = config.x_size // config.num_groups
    return rng.standard_normal((batch, config.num_groups, n, 5)), weights


def decoder(batch=2, seed=0, vocabulary=7, **changes):
    rng = np.random.default_rng(seed)
    config = CONFIG._replace(**changes)
    weights = shaken(init_fit_autoregressive(config, rng, vocabulary=vocabulary), rng)
    ids = rng.integers(0, vocabulary, (batch, config.num_groups, config.x_size // config.num_groups))
    return ids, weights


def denoiser(batch=2, seed=0, cond=(2, 6), **options):
    rng = np.random.default_rng(seed)
    weights = shaken(init_fit_denoiser(CONFIG, rng, in_dim=5, out_dim=4, cond_dim=cond[-1], **options), rng)
    x = rng.standard_normal((batch, 3, 4, 5))
    return x, rng.random(batch), rng.standard_normal((batch, *cond)), weights


def close(left, right, atol=1e-12):
    np.testing.assert_allclose(left, right, rtol=0, atol=atol)


def test_every_token_depends_on_all_before_it_and_on_no_later_one():
    """The dependency matrix of 20 tokens is exactly lower triangular: 210 entries, none of them small."""
    ids, weights = decoder(batch=1, layers="(1)2(1)1(1)", x_size=20, num_groups=4)
    L = ids.size
    changed = np.repeat(ids, L, axis=0)
    flat = changed.reshape(L, L)
    flat[np.arange(L), np.arange(L)] = (flat.diagonal() + 1) % 7
    found = np.abs(fit_autoregressive(changed, weights) - fit_autoregressive(ids, weights))
    found = found.max(-1).reshape(L, L).T
    np.testing.assert_array_equal(found > 0, np.tri(L, dtype=bool))
    assert found[np.tri(L, dtype=bool)].min() > 1e-4


@pytest.mark.parametrize(
    ("layers", "mask", "blocks"),
    [("(2)", "none", np.eye(3)), ("(1)1(1)", "none", np.ones((3, 3))), ("(1)1(1)", "causal", np.tri(3))],
)
def test_reach_of_the_encoder(layers, mask, blocks):
    """Local layers keep groups apart, a round connects all, the causal mask hides later groups; zeros are exact."""
    x, weights = encoder(batch=1, layers=layers)
    changed = np.repeat(x, 12, axis=0)
    changed.reshape(12, 12, 5)[np.arange(12), np.arange(12)] += 1.0
    found = np.abs(fit_encode(changed, weights, mask=mask)[0] - fit_encode(x, weights, mask=mask)[0])
    found = found.max(-1).reshape(12, 12).T
    np.testing.assert_array_equal(found > 0, np.kron(blocks, np.ones((4, 4))) > 0)


def jacobian(weights, x, source):
    t, n, c = x.shape[1:]
    steps = np.zeros((n * c, t, n, c))
    steps[:, source] = 3e-4 * np.eye(n * c).reshape(n * c, n, c)
    near, far = (fit_encode(x + k * steps, weights)[0] - fit_encode(x - k * steps, weights)[0] for k in (1, 2))
    return ((8 * near - far)[:, 0] / 36e-4).reshape(n * c, -1)


@pytest.mark.parametrize(("m", "dl", "found"), [(1, 12, 7), (2, 12, 16), (2, 4, 4)])
def test_news_between_groups_passes_a_narrow_door(m, dl, found):
    """The Jacobian from another group has rank at most m·min(dx, dl), and full rank from the own group."""
    x, weights = encoder(batch=1, latents_per_group=m, latent_dim=dl, latent_heads=2 if dl == 4 else 3)
    ranks = []
    for source in (1, 0):
        s = np.linalg.svd(jacobian(weights, x, source), compute_uv=False)
        ranks.append(int((s > 1e-9 * s[0]).sum()))
    assert ranks == [found, 20]
    assert found <= m * min(8, dl)


def test_one_group_never_sees_its_latents():
    """With one group WRITE adds the same constant to all: latents never reach the logits."""
    ids, weights = decoder(num_groups=1)
    moved = weights._replace(latents=weights.latents + 3.0)
    np.testing.assert_array_equal(fit_autoregressive(ids, weights), fit_autoregressive(ids, moved))


def test_one_token_and_one_latent_a_group_are_a_transformer():
    """With n = m = 1 and '(0)2', READ is a linear map and the rest a transformer over t tokens."""
    x, weights = encoder(layers="(0)2", num_groups=12, latents_per_group=1)
    tokens, latents, trace = fit_encode(x, weights, return_trace=True)
    stage = weights.stages[0]
    a, norm = stage.read.attention, stage.read.source_norm
    z = trace["local_0"]
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6) * norm.gamma + norm.beta
    v = np.einsum("btnd,dhk->btnhk", z, a.w_v) + a.b_v
    line = weights.latents + np.einsum("btnhk,hkd->btnd", v, a.w_o) + a.b_o
    close(trace["read_0"], line)
    for layer in stage.global_layers:
        line = transformer_layer(line[:, :, 0], layer)[:, :, None]
    close(trace["global_0"], line)
    assert tokens.shape == (2, 12, 1, 8)
    assert latents.shape == (2, 12, 1, 12)


def test_causal_groups_of_one_latent_are_a_causal_transformer():
    """GLOBAL over one latent a group with the causal mask is a causal transformer over groups."""
    x, weights = encoder(layers="(1)2(1)", latents_per_group=1)
    _, _, trace = fit_encode(x, weights, mask="causal", return_trace=True)
    line = trace["read_0"][:, :, 0]
    for layer in weights.stages[0].global_layers:
        line = transformer_layer(line, layer, np.tri(3, dtype=bool))
    close(trace["global_0"][:, :, 0], line)


def test_sequences_of_a_batch_are_alone():
    """A sequence gets the same outputs alone and in company, in all three models."""
    x, weights = encoder()
    close(fit_encode(x[1:], weights)[0], fit_encode(x, weights)[0][1:])
    ids, model = decoder()
    close(fit_autoregressive(ids[1:], model), fit_autoregressive(ids, model)[1:])
    x, time, cond, weights = denoiser()
    close(fit_denoise(x[1:], time[1:], cond[1:], weights)[0], fit_denoise(x, time, cond, weights)[0][1:])


@pytest.mark.parametrize("layers", ["(1)1(1)", "(1)2(1)1(1)", "(0)1(0)", "(2)", "(1)1", "(0)0"])
@pytest.mark.parametrize(("num_groups", "m"), [(3, 2), (1, 1), (12, 1)])
def test_decoding_is_the_parallel_form(layers, num_groups, m):
    """Step by step, with a cache, every prefix gets the logits of the whole sequence."""
    ids, weights = decoder(layers=layers, num_groups=num_groups, latents_per_group=m)
    whole = fit_autoregressive(ids, weights).reshape(2, 12, 7)
    flat, cache = ids.reshape(2, 12), fit_ar_init_cache(2, weights)
    first, cache = fit_ar_extend(flat[:, :5], cache, weights)
    rows = []
    for p in range(5, 12):
        row, cache = fit_ar_step(flat[:, p], cache, weights)
        rows.append(row)
    close(np.concatenate([first, np.stack(rows, axis=1)], axis=1), whole)


def test_a_full_cache_is_refused():
    """After t groups there are no latents to go on with."""
    ids, weights = decoder()
    _, cache = fit_ar_extend(ids.reshape(2, 12), fit_ar_init_cache(2, weights), weights)
    with pytest.raises(ValueError, match="cache is full: all 3 groups"):
        fit_ar_step(ids[:, 0, 0], cache, weights)
    with pytest.raises(ValueError, match=r"cache\.stages\[0\] holds tokens"):
        fit_ar_step(ids[:1, 0, 0], fit_ar_init_cache(2, weights), weights)
    with pytest.raises(ValueError, match="cache has 1 stages"):
        fit_ar_step(ids[:, 0, 0], FITCache(cache.stages[:1]), weights)
    with pytest.raises(ValueError, match="batch=-1"):
        fit_ar_init_cache(-1, weights)


def test_empty_stages_return_embeddings_only():
    """'(0)0' normalises what the stem made, and the learned latents."""
    x, weights = encoder(layers="(0)0")
    tokens, latents, trace = fit_encode(x, weights, return_trace=True)
    assert list(trace) == ["local_0"]
    assert tokens.shape == (2, 3, 4, 8)
    close(latents[0], latents[1])


def test_no_batch_and_no_extra_tokens_work():
    """B = 0 and p = 0 give results of the right shape."""
    x, weights = encoder(extra_dim=3)
    assert fit_encode(x[:0], weights)[0].shape == (0, 3, 4, 8)
    none = np.zeros((2, 3, 0, 3))
    close(fit_encode(x, weights, extra=none)[0], fit_encode(x, weights)[0])
    ids, model = decoder()
    assert fit_autoregressive(ids[:0], model).shape == (0, 3, 4, 7)
    x, time, cond, weights = denoiser()
    assert fit_denoise(x[:0], time[:0], cond[:0], weights)[0].shape == (0, 3, 4, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtype_is_kept(dtype):
    """Every model answers in the dtype it was given."""
    x, weights = encoder()
    assert {a.dtype for a in fit_encode(x.astype(dtype), weights)} == {np.dtype(dtype)}
    x, time, cond, weights = denoiser()
    assert {a.dtype for a in fit_denoise(x.astype(dtype), time, cond, weights)} == {np.dtype(dtype)}
    ids, model = decoder()
    assert fit_autoregressive(ids, model._replace(embedding=model.embedding.astype(dtype))).dtype == dtype


def test_fresh_self_conditioning_is_silent():
    """The scale of the norm after the MLP starts at 0, so latents of the step before change nothing at first."""
    rng = np.random.default_rng(0)
    weights = init_fit_denoiser(CONFIG, rng, in_dim=5, out_dim=4, cond_dim=6, self_cond="latent")
    x, time, cond, _ = denoiser()
    prev = rng.standard_normal((2, 3, 2, 12))
    np.testing.assert_array_equal(
        fit_denoise(x, time, cond, weights)[0], fit_denoise(x, time, cond, weights, latents_prev=prev)[0]
    )


def test_a_condition_vector_is_one_token():
    """(B, dc) conditions are a single token."""
    x, time, cond, weights = denoiser(cond=(1, 6))
    np.testing.assert_array_equal(fit_denoise(x, time, cond, weights)[0], fit_denoise(x, time, cond[:, 0], weights)[0])


def test_time_code_has_mean_0_and_deviation_1():
    """The code is standardised over its channels, without an ε."""
    code = time_code(np.array([0.0, 0.3, 1.0]), 5)
    close(code.mean(-1), 0.0)
    close(code.std(-1), 1.0)


def test_codes_are_sines_then_cosines():
    """Channel j has the frequency 10000^(−2⌊j/2⌋/d); even channels are sines and come first."""
    close(sincos_code([2.0], 4)[0], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)])
    close(sincos_1d(3, 2)[:, 0], np.sin([0, 500, 1000]))
    close(sincos_1d(3, 2, max_position=None)[:, 1], np.cos([0, 1, 2]))
    close(sincos_1d(1, 4), [[0, 0, 1, 1]])
    grid = sincos_2d(2, 3, 8)
    close(grid[1, :, :4], np.broadcast_to(sincos_1d(2, 4)[1], (3, 4)))
    close(grid[:, 2, 4:], np.broadcast_to(sincos_1d(3, 4)[2], (2, 4)))


def test_position_tables():
    """A grid with a side of 1 is a row; sin_cos2d lays cells out as a square; learned ones are cut at 0.04."""
    close(position_table("sin_cos", 6, 1, 4), sincos_1d(6, 4))
    close(position_table("sin_cos", 2, 3, 8), sincos_2d(2, 3, 8).reshape(6, 8))
    close(position_table("sin_cos2d", 9, 1, 8), sincos_2d(3, 3, 8).reshape(9, 8))
    learned = position_table("learned", 100, 20, 8, rng=np.random.default_rng(0))
    assert np.abs(learned).max() <= 0.04
    assert 0.015 < learned.std() < 0.02


def test_snake_and_patches():
    """A snake never jumps; patches are groups of pixel values in its order."""
    np.testing.assert_array_equal(snake_order(3, 3), [0, 1, 2, 5, 4, 3, 6, 7, 8])
    steps = np.diff(np.stack(np.divmod(snake_order(4, 5), 5)), axis=1)
    assert (np.abs(steps).sum(0) == 1).all()
    image = np.arange(4 * 4 * 2).reshape(1, 4, 4, 2)
    groups = patch_groups(image, patch_size=2)
    np.testing.assert_array_equal(groups[0, 0], image[0, :2, :2].ravel())
    np.testing.assert_array_equal(groups[0, 2], image[0, 2:, 2:].ravel())
    np.testing.assert_array_equal(patch_groups(image, patch_size=2, order="raster")[0, 2], image[0, 2:, :2].ravel())


def test_sub_images_are_groups():
    """Group (a, b) holds the patches of sub-image (a, b), row by row."""
    image = np.random.default_rng(0).standard_normal((2, 8, 12, 3))
    groups = sub_image_groups(image, num_groups=4, patch_size=2)
    assert groups.shape == (2, 4, 6, 12)
    np.testing.assert_array_equal(groups[1, 2, 4], image[1, 6:8, 2:4].ravel())
    np.testing.assert_array_equal(groups[1, 1, 0], image[1, 0:2, 6:8].ravel())


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=4), st.booleans())
def test_layer_strings_are_read(stages, closed):
    """A string of stages is read back; a bracket at the end stands for no global layers."""
    text = "".join(f"({a}){b}" for a, b in stages)
    expected = tuple(stages)
    if closed:
        text, expected = text + "(3)", (*stages, (3, 0))
    assert parse_fit_layers(text) == expected


@pytest.mark.parametrize("spec", ["2(4)", "(2)(2)", "", "(a)1", "(1)1 ", "(1)-1", "(²)1", "(1)1\n"])
def test_other_strings_are_refused(spec):
    """What is no sequence of stages is refused in the words of the released code."""
    with pytest.raises(ValueError, match="Unrecognized layer specification"):
        parse_fit_layers(spec)


def test_costs_meet_at_the_best_number_of_groups():
    """The formulas hold the numerical minimum: its place, its value, and its exponent 4/3."""
    t = np.geomspace(1, 1e5, 200_001)
    for L, m, groups in ((2**10, 8, 20.16), (2**14, 8, 128.0), (2**20, 8, 2048.0)):
        cost = fit_cost(L, t, m)
        total = cost.local + cost.wide
        assert t[total.argmin()] == pytest.approx(fit_optimal_groups(L, m), rel=1e-3)
        assert float(fit_optimal_groups(L, m)) == pytest.approx(groups, rel=2e-3)
        assert total.min() == pytest.approx(fit_least_cost(L, m), rel=1e-6)
    pairs = fit_cost(160_000, 400, 16)
    assert 160_000**2 / (pairs.local + pairs.wide) >= 200
    assert fit_multiply_adds(1600, 4, 2, x_dim=8, latent_dim=8).local == 1600 * (2 * 400 * 8 + 12 * 64)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"layers": "(2)0(2)"}, "must have global layers"),
        ({"x_size": 13}, "x_size=13 is not divisible by num_groups=3"),
        ({"x_heads": 3}, "x_dim=8 is not divisible by 3 heads"),
        ({"latent_heads": 5}, "latent_dim=12 is not divisible by 5 heads"),
        ({"x_dim": 9, "x_heads": 3, "latent_heads": 2}, r"min\(x_dim, latent_dim\)=9 is not divisible by 2 heads"),
        ({"x_positions": "rotary"}, "x_positions='rotary' is not one of"),
        ({"latent_positions": "sin_cos2d"}, "latent_positions='sin_cos2d' is not one of"),
        ({"x_positions": "sin_cos2d", "x_size": 15}, "must be a square number"),
        ({"num_groups": 0}, "num_groups=0 must be >= 1"),
    ],
)
def test_bad_configurations_are_refused(change, rule):
    """Sizes that do not fit together are refused by name, value and rule."""
    with pytest.raises(ValueError, match=rule):
        init_fit(CONFIG._replace(**change), np.random.default_rng(0), in_dim=3)


def test_bad_denoisers_are_refused():
    """A quarter of the latent width codes the time, so it must be a multiple of 4 and at least 8."""
    rng = np.random.default_rng(0)
    widths = {"in_dim": 1, "out_dim": 1, "cond_dim": 3}
    for change, rule in (
        ({"latent_dim": 6}, "latent_dim=6 must be a multiple of 4"),
        ({"latent_dim": 4, "latent_heads": 2}, "latent_dim=4 must be a multiple of 4, at least 8"),
    ):
        with pytest.raises(ValueError, match=rule):
            init_fit_denoiser(CONFIG._replace(**change), rng, **widths)
    with pytest.raises(ValueError, match="cond_dim=3 must be latent_dim=12"):
        init_fit_denoiser(CONFIG, rng, **widths, cond_proj=False)
    with pytest.raises(ValueError, match="self_cond='x' is not one of"):
        init_fit_denoiser(CONFIG, rng, **widths, self_cond="x")
    with pytest.raises(ValueError, match="vocabulary=0"):
        init_fit_autoregressive(CONFIG, rng, vocabulary=0)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"x": np.zeros((2, 4, 3, 5))}, r"x has shape \(2, 4, 3, 5\), expected \(2, 3, 4, 5\)"),
        ({"x": np.zeros((3, 4, 5))}, "x has 3 axes"),
        ({"mask": "local"}, "mask='local' is not one of 'none', 'causal'"),
        ({"extra": np.zeros((2, 3, 1, 3))}, "weights.extra_stem is None"),
    ],
)
def test_bad_encoder_calls_are_refused(change, rule):
    """Features, masks and extra tokens that do not fit are refused."""
    x, weights = encoder()
    call = {"x": x} | change
    with pytest.raises(ValueError, match=rule):
        fit_encode(call.pop("x"), weights, **call)


def test_stages_that_news_cannot_leave_are_refused():
    """Every stage before the last reads, mixes and writes; no stage mixes what it never read."""
    x, weights = encoder()
    first, last = weights.stages
    for stages, rule in (
        ((), "is empty"),
        ((last, last), r"stages\[0\] before the last"),
        ((first._replace(read=None),), r"stages\[0\] mixes what it never read"),
    ):
        with pytest.raises(ValueError, match=rule):
            fit_encode(x, weights._replace(stages=stages))


def test_bad_ids_are_refused():
    """Ids outside the vocabulary, of another shape or not integers are refused."""
    ids, weights = decoder()
    with pytest.raises(ValueError, match=r"ids holds \[7\], expected integers in 0 … 6"):
        fit_autoregressive(np.full_like(ids, 7), weights)
    with pytest.raises(ValueError, match=r"ids holds \[-1\]"):
        fit_ar_step(np.array([-1, 0]), fit_ar_init_cache(2, weights), weights)
    with pytest.raises(ValueError, match="ids has shape"):
        fit_autoregressive(ids[:, :2], weights)
    with pytest.raises(ValueError, match="ids has dtype float64"):
        fit_autoregressive(ids.astype(float), weights)
    with pytest.raises(ValueError, match="out_embedding has shape"):
        fit_autoregressive(ids, weights._replace(out_embedding=np.zeros((7, 3))))


def test_bad_denoiser_calls_are_refused():
    """Times, conditions and former latents that do not fit are refused."""
    x, time, cond, weights = denoiser(self_cond="latent")
    with pytest.raises(ValueError, match="time has 2 axes"):
        fit_denoise(x, time[:, None], cond, weights)
    with pytest.raises(ValueError, match="time has shape"):
        fit_denoise(x, time[:1], cond, weights)
    with pytest.raises(ValueError, match="cond has shape"):
        fit_denoise(x, time, cond[..., :3], weights)
    with pytest.raises(ValueError, match="latents_prev has shape"):
        fit_denoise(x, time, cond, weights, latents_prev=np.zeros((2, 3, 2, 8)))
    stages = tuple(stage._replace(condition=None) for stage in weights.stages)
    with pytest.raises(ValueError, match="must hold a condition"):
        fit_denoise(x, time, cond, weights._replace(stages=stages))


def test_bad_parts_are_refused():
    """Layers, masks, codes, images and sizes out of range are refused."""
    _, weights = encoder()
    layer, read = weights.stages[0].local_layers[0], weights.stages[0].read
    for call, rule in (
        (lambda: transformer_layer(np.zeros((3, 7)), layer), "expected width 8"),
        (lambda: transformer_layer(np.zeros((3, 8)), layer, np.ones((2, 2), bool)), "mask has shape"),
        (lambda: transformer_layer(np.zeros((3, 8)), layer, np.zeros((3, 3), bool)), "every token see something"),
        (lambda: fit_cross_attention(np.zeros((3, 12)), np.zeros((0, 8)), read), "with M >= 1"),
        (lambda: fit_cross_attention(np.zeros((3, 12)), np.zeros((2, 7)), read), "e has shape"),
        (lambda: group_causal_mask(-1, 2), "num_groups=-1"),
        (lambda: group_causal_mask(1, -2), "latents_per_group=-2"),
        (lambda: shift_right(np.zeros((2, 3), int)), "ids has 2 axes"),
        (lambda: snake_order(-1, 2), "height=-1"),
        (lambda: sincos_2d(2, 2, 3), "dim=3 must be even"),
        (lambda: sincos_code([1.0], 0), "dim=0"),
        (lambda: position_table("learned", 2, 2, 4), "rng=None"),
        (lambda: position_table("rope", 2, 2, 4), "code='rope' is not one of"),
        (lambda: time_code([0.5], 1), "width=1"),
        (lambda: patch_groups(np.zeros((1, 5, 4, 1)), patch_size=2), "patch_size=2 must divide"),
        (lambda: patch_groups(np.zeros((1, 4, 4, 1)), patch_size=2, order="z"), "order='z'"),
        (lambda: patch_groups(np.zeros((4, 4, 1)), patch_size=2), "images has shape"),
        (lambda: sub_image_groups(np.zeros((1, 4, 4, 1)), num_groups=3, patch_size=1), "must be a square number"),
        (lambda: sub_image_groups(np.zeros((1, 6, 4, 1)), num_groups=16, patch_size=1), "do not divide into 16"),
        (lambda: fit_cost(0, 1, 1), "length=0 must be > 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            call()
