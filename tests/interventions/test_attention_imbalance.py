"""PAINT: which tokens are chosen, what the boost does to attention, guidance, CHAIR, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.interventions.attention_imbalance import (
    PaintHook,
    TokenSelection,
    boost_logits,
    chair,
    class_attention,
    guided_logits,
    head_visual_sensitivity,
    local_tokens,
    pai_logits,
    paint_logits,
    select_tokens,
    sensitivity_gain,
    spatial_tokens,
    summary_tokens,
    token_masks,
)
from refattn.primitives.softmax import softmax
from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward
from refattn.transformer.weights import random_transformer

START, CHOSEN = 2, TokenSelection(np.array([0, 3]), np.array([4]))
LOCAL, SUMMARY = START + CHOSEN.local, START + CHOSEN.summary
BOOSTED = np.concatenate([LOCAL, SUMMARY])
OTHERS = np.setdiff1d(np.arange(9), BOOSTED)


def draw_logits(seed=0, shape=(2, 3, 4, 9)):
    return 2.0 * np.random.default_rng(seed).standard_normal(shape)


def draw_vit(seed=0, layers=4, heads=3, n=16):
    return softmax(np.random.default_rng(seed).standard_normal((layers, heads, n + 1, n + 1)))


def with_outliers(count, n=49, heads=2):
    """Return a layer in which ``count`` tokens stand out of an otherwise narrow spread."""
    layer = np.full((heads, n + 1, n + 1), 1.0)
    layer[:, 0, 1:] += np.linspace(0, 0.1, n)
    layer[:, 0, 1 : count + 1] += 5.0
    return layer


def test_selection_equals_the_definition_token_by_token():
    """Sets are what sorting by score and counting outliers by hand gives."""
    vit = draw_vit(seed=3, n=25)
    f = [sum(vit[0, h, 0, 1 + i] for h in range(3)) for i in range(25)]
    g = [sum(vit[2, h, 0, 1 + i] for h in range(3)) for i in range(25)]
    ranked = sorted(g)
    q1, q3 = ranked[6], ranked[18]  # 0.25 · 24 and 0.75 · 24 are whole
    summary = [i for i in range(25) if g[i] > q3 + 1.5 * (q3 - q1)]
    local = sorted(range(25), key=lambda i: -f[i])[:6]
    chosen = select_tokens(vit)

    assert chosen.summary.tolist() == summary
    assert chosen.local.tolist() == sorted(set(local) - set(summary))


@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 40),
    layers=st.integers(2, 4),
    ratio=st.floats(0, 1),
    spatial=st.floats(0, 1),
)
def test_sets_are_disjoint_and_of_known_size(seed, n, layers, ratio, spatial):
    """L and S share nothing; |local| = ⌊N r⌋; at most a quarter of the tokens, rounded up, are summary tokens."""
    vit = draw_vit(seed, layers=layers, heads=2, n=n)
    local, summary = select_tokens(vit, local_ratio=ratio, spatial_ratio=spatial)

    assert not set(local) & set(summary)
    assert len(local_tokens(vit[0], ratio)) == int(n * ratio)
    assert summary.tolist() == summary_tokens(vit[-2]).tolist()
    assert len(summary) <= -(-n // 4)
    assert len(local) >= int(n * ratio) - len(summary)
    assert set(local) | set(summary) >= set(local_tokens(vit[0], ratio)) | set(spatial_tokens(vit[0], spatial))


@given(seed=st.integers(0, 2**16))
def test_selection_moves_with_the_tokens(seed):
    """Permuting heads changes nothing, permuting image tokens permutes the masks, and scale does not matter."""
    rng = np.random.default_rng(seed)
    vit, order = draw_vit(seed, n=20), rng.permutation(20)
    tokens = np.concatenate([[0], 1 + order])
    masks = token_masks(vit, spatial_ratio=0.2)
    for left, right in zip(token_masks(vit[:, rng.permutation(3)], spatial_ratio=0.2), masks, strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(token_masks(vit[:, :, tokens][..., tokens], spatial_ratio=0.2), masks, strict=True):
        np.testing.assert_array_equal(left, right[order])
    for left, right in zip(token_masks(4.0 * vit, spatial_ratio=0.2), masks, strict=True):
        np.testing.assert_array_equal(left, right)


def test_level_attention_has_no_summary_token():
    """The fence is strict: if all tokens are equal, none stands out."""
    assert summary_tokens(np.ones((2, 9, 9))).size == 0
    assert summary_tokens(np.ones((1, 2, 2))).size == 0


def test_ties_go_to_the_smaller_index():
    """Among equal scores the first tokens are chosen."""
    assert local_tokens(np.ones((2, 9, 9)), 0.5).tolist() == [0, 1, 2, 3]
    assert spatial_tokens(np.ones((2, 9, 9)), 0.25).tolist() == [0, 1]


@pytest.mark.parametrize(("n", "count", "kept"), [(49, 1, 0), (49, 2, 1), (49, 3, 3), (64, 3, 3), (100, 29, 28)])
def test_official_rounding_loses_a_token_of_some_images(n, count, kept):
    """int(N·(c/N)) is c − 1 where the quotient rounds down."""
    layer = with_outliers(min(count, n // 5), n)
    if count > n // 4:  # more outliers than a fence can tell: check the arithmetic alone
        assert int(n * (count / n)) == kept
        return
    assert summary_tokens(layer).tolist() == list(range(count))
    assert len(summary_tokens(layer, official_rounding=True)) == kept
    assert len(select_tokens([layer, layer], official_rounding=True).summary) == kept


def test_official_rounding_never_matters_for_576_tokens():
    """LLaVA's image has 24 by 24 tokens, for which the quirk keeps every count."""
    assert all(int(576 * (c / 576)) == c for c in range(577))


def test_spatial_tokens_rank_by_attention_received_from_image_tokens():
    """A column that all image tokens look at is chosen; what the class token looks at does not count."""
    layer = np.full((2, 7, 7), 0.1)
    layer[:, 1:, 4] = 1.0
    layer[:, 0, 2] = 9.0
    assert spatial_tokens(layer, 0.2).tolist() == [3]


def test_the_official_spatial_scores_tie_on_softmax_weights():
    """A row of weights sums to 1, so summing over keys tells no token from another, whatever the image shows."""
    layer = np.array([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]]])
    assert spatial_tokens(layer, 0.5, spatial="official").tolist() == [0]  # the class token, by order alone
    assert spatial_tokens(layer, 0.5).tolist() == [1]


def test_a_local_token_that_summarises_counts_as_summary():
    """A token in both sets is in S only."""
    layer = with_outliers(2)
    chosen = select_tokens([layer, layer], local_ratio=0.1)
    assert chosen.summary.tolist() == [0, 1]
    assert not {0, 1} & set(chosen.local)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 1.5])
def test_boost_is_one_rule_in_two_pieces(alpha):
    """Z ≥ 0 is multiplied by 1 + α and z < 0 by 1 − α; exactly 0 stays 0."""
    z = np.array([[[-2.0, -0.5, 0.0, 0.25, 3.0]]])
    expected = np.where(z >= 0, z * (1 + alpha), z * (1 - alpha))
    np.testing.assert_allclose(boost_logits(z, np.arange(5), alpha), expected, rtol=0, atol=1e-15)


def test_everything_else_is_bit_identical():
    """Only the last query row changes, and only at the chosen keys."""
    z = draw_logits()
    changed = paint_logits(z, CHOSEN, START) != z
    assert changed[:, :, -1][..., BOOSTED].all()
    changed[:, :, -1, BOOSTED] = False
    assert not changed.any()


@given(seed=st.integers(0, 2**16), alpha=st.floats(0, 2), beta=st.floats(0, 2))
def test_weights_follow_the_closed_form(seed, alpha, beta):
    """w'_i = w_i e^{a_i|z_i|} / Σ_j w_j e^{a_j|z_j|}, so odds against unboosted tokens never fall."""
    z = draw_logits(seed)
    a = np.zeros(9)
    a[LOCAL], a[SUMMARY] = alpha, beta
    before, after = softmax(z)[:, :, -1], softmax(paint_logits(z, CHOSEN, START, alpha, beta))[:, :, -1]
    expected = before * np.exp(a * np.abs(z[:, :, -1]))
    np.testing.assert_allclose(after, expected / expected.sum(-1, keepdims=True), rtol=0, atol=1e-12)
    for j in OTHERS:
        odds = after / after[..., j, None] - before / before[..., j, None]
        assert (odds[..., BOOSTED] >= -1e-12 * before[..., BOOSTED] / before[..., j, None]).all()
        np.testing.assert_allclose(odds[..., OTHERS] * before[..., j, None], 0.0, atol=1e-12)
    assert (after[..., OTHERS].sum(-1) <= before[..., OTHERS].sum(-1) + 1e-12).all()


def test_the_boosted_mass_grows_with_either_strength():
    """More α or more β, more mass on L ∪ S."""
    z = draw_logits()
    strengths = np.linspace(0, 3, 13)
    for along in ("alpha", "beta"):
        mass = [softmax(paint_logits(z, CHOSEN, START, **{along: s}))[:, :, -1, BOOSTED].sum(-1) for s in strengths]
        assert (np.diff(mass, axis=0) >= -1e-12).all()


def test_boosting_is_not_shift_invariant():
    """A constant that the softmax forgets changes what the boost does."""
    z = draw_logits()
    moved = softmax(boost_logits(z + 1.0, BOOSTED, 0.5)) - softmax(boost_logits(z, BOOSTED, 0.5))
    assert np.abs(moved[:, :, -1]).max() > 0.01


def test_hidden_keys_stay_hidden():
    """−∞ stays −∞ whatever the strength, without a NaN, and 0·∞ never arises."""
    z = draw_logits()
    z[..., LOCAL[0]] = -np.inf
    for alpha in (0.0, 0.7, 1.0, 2.0):
        out = paint_logits(z, CHOSEN, START, alpha)
        assert (out[..., LOCAL[0]] == -np.inf).all()
        assert not np.isnan(out).any()


@pytest.mark.parametrize("shape", [(2, 3, 4, 9), (3, 4, 9), (3, 1, 9), (1, 1, 1, 9), (0, 3, 4, 9), (2, 3, 0, 9)])
def test_shapes_and_layouts(shape):
    """With or without a batch, one query or none; read-only and strided logits; the input is left alone."""
    z = draw_logits(shape=shape)
    kept = z.copy()
    z.flags.writeable = False
    out = paint_logits(z[..., ::-1], CHOSEN, START)
    np.testing.assert_array_equal(out, paint_logits(z[..., ::-1].copy(), CHOSEN, START))
    np.testing.assert_array_equal(z, kept)
    assert out.shape == shape
    assert not np.shares_memory(out, z)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept(dtype):
    """Results have the dtype of the logits, gains and text-only logits notwithstanding."""
    z = draw_logits().astype(dtype)
    results = [
        paint_logits(z, CHOSEN, START, head_gain=np.ones(3)),
        pai_logits(z, 1, 2, 0.5),
        boost_logits(z, [1], 0.5),
        head_visual_sensitivity(z, slice(1, 3)),
        sensitivity_gain(head_visual_sensitivity(z, slice(1, 3))),
        guided_logits(z, z.astype(np.float64)),
        class_attention(draw_vit()[0].astype(dtype)),
    ]
    assert {r.dtype for r in results} == {np.dtype(dtype)}


def test_head_gains():
    """Gains of 1 are the default, a gain of 0 leaves a head alone, and a gain multiplies both strengths."""
    z = draw_logits()
    plain = paint_logits(z, CHOSEN, START, 0.7, 0.3)
    np.testing.assert_array_equal(paint_logits(z, CHOSEN, START, 0.7, 0.3, np.ones(3)), plain)
    out = paint_logits(z, CHOSEN, START, 0.7, 0.3, [0.0, 1.0, 0.5])
    np.testing.assert_array_equal(out[:, 0], z[:, 0])
    np.testing.assert_array_equal(out[:, 1], plain[:, 1])
    np.testing.assert_array_equal(out[:, 2], paint_logits(z, CHOSEN, START, 0.35, 0.15)[:, 2])
    own = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    out = paint_logits(z, CHOSEN, START, head_gain=own)
    np.testing.assert_array_equal(out[0, 0], plain[0, 0])
    np.testing.assert_array_equal(out[1, :2], z[1, :2])


def test_pai_is_paint_on_every_image_token():
    """With L all tokens and S empty the two are the same."""
    z = draw_logits()
    everything = TokenSelection(np.arange(6), np.array([], dtype=int))
    np.testing.assert_array_equal(pai_logits(z, START, 6, 0.4), paint_logits(z, everything, START, 0.4))
    np.testing.assert_array_equal(pai_logits(z, 0, 9, 0.4), paint_logits(z, TokenSelection(np.arange(9), []), 0, 0.4))
    np.testing.assert_array_equal(pai_logits(z, 9, 0, 0.4), z)


def test_sensitivity_is_the_mass_on_the_image():
    """It is the softmax of the last row, summed over the image; gains are relative to the largest."""
    z = draw_logits()
    z[0, 0, -1] = -np.inf
    s = head_visual_sensitivity(z, slice(2, 5))
    np.testing.assert_allclose(s, softmax(z)[:, :, -1, 2:5].sum(-1), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(s, head_visual_sensitivity(z, (2, 5)))
    assert s[0, 0] == 0.0
    gain = sensitivity_gain(s)
    assert gain.max(-1).tolist() == [1.0, 1.0]
    np.testing.assert_allclose(gain, s / s.max(-1, keepdims=True), rtol=0, atol=1e-15)
    assert sensitivity_gain(np.zeros(3)).tolist() == [1.0, 1.0, 1.0]


@given(seed=st.integers(0, 2**16), gamma=st.floats(0, 3), cutoff=st.floats(0.01, 1.0))
def test_guidance_extrapolates_and_prunes(seed, gamma, cutoff):
    """Kept entries are γ(s − u) + u, the best token of s is never pruned, and γ = 1 prunes nothing."""
    x, y = 3.0 * np.random.default_rng(seed).standard_normal((2, 4, 7))
    s, u = np.log(softmax(x)), np.log(softmax(y))
    out = guided_logits(x, y, gamma, cutoff)
    kept = np.isfinite(out)
    np.testing.assert_allclose(out[kept], (gamma * (s - u) + u)[kept], rtol=0, atol=1e-12)
    assert np.take_along_axis(kept, x.argmax(-1)[:, None], -1).all()
    if gamma != 1.0:
        near = np.abs(s - np.log(cutoff) - s.max(-1, keepdims=True)) < 1e-12
        np.testing.assert_array_equal((kept == (s >= np.log(cutoff) + s.max(-1, keepdims=True))) | near, True)
    np.testing.assert_allclose(guided_logits(x, y, 1.0), s, rtol=0, atol=1e-12)
    same = guided_logits(x, x, gamma, cutoff)
    np.testing.assert_array_equal(same[np.isfinite(same)], guided_logits(x, x, 1.0)[np.isfinite(same)])


def test_with_a_cutoff_of_one_only_the_best_tokens_stay():
    """The rule prunes what is below the bound, not what is on it: equally probable best tokens all stay."""
    out = guided_logits([2.0, 1.0, 2.0], np.zeros(3), 1.5, 1.0)
    assert np.isfinite(out).tolist() == [True, False, True]


def test_guidance_takes_tokens_that_one_run_rules_out():
    """−∞ in either run gives no NaN: impossible with the image is pruned, impossible without it is certain."""
    out = guided_logits([0.0, 1.0, -np.inf, -np.inf], [0.0, -np.inf, -np.inf, 2.0], 1.5)
    assert out[1] == np.inf
    assert out[2] == out[3] == -np.inf


def test_chair_by_hand():
    """Two captions: one mentions a dog that is not there, twice."""
    scores = chair([["cat", "dog", "dog"], ["car"]], [{"cat", "tree"}, {"car"}])
    assert scores == (0.5, 0.5, (0.5 + 1.0) / 2)
    assert chair([["cat", "dog"], ["car"]], [["cat"], ["car"]]).chair_s == 0.5
    assert chair([[]], [["cat"]]) == (0.0, 0.0, 0.0)
    assert chair([[]], [[]]) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("selection", "start", "options"),
    [
        (CHOSEN, START, {"alpha": 0.0, "beta": 0.0}),
        (TokenSelection([], []), START, {}),
        (TokenSelection([], []), 9, {}),
        (CHOSEN, START, {"head_gain": np.zeros(3)}),
    ],
)
def test_no_boost_is_the_identity(selection, start, options):
    """Zero strengths, zero gains or empty sets change nothing."""
    z = draw_logits()
    np.testing.assert_array_equal(paint_logits(z, selection, start, **options), z)


@pytest.mark.parametrize(("ratio", "size"), [(0.0, 0), (1.0, 1)])
def test_an_image_of_one_token(ratio, size):
    """N = 1: the one token is local or not, never an outlier of itself."""
    chosen = select_tokens(draw_vit(n=1), local_ratio=ratio)
    assert (len(chosen.local), len(chosen.summary)) == (size, 0)


def test_every_local_token_may_be_a_summary():
    """L is empty if all that the ratio would take stand out."""
    layer = with_outliers(3)
    chosen = select_tokens([layer, layer], local_ratio=3 / 49 + 1e-9)
    assert chosen.local.size == 0
    assert chosen.summary.tolist() == [0, 1, 2]


Z, VIT = draw_logits(), draw_vit()


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: select_tokens(VIT[:1]), "vit_attention has 1 layers, expected at least 2"),
        (lambda: select_tokens([VIT[0, :, :, 1:], VIT[1]]), r"vit_attention\[0\] has shape"),
        (lambda: select_tokens([VIT[0, :, :1, :1], VIT[1]]), "need a class token and at least one image token"),
        (lambda: select_tokens([VIT[0], VIT[0, :, :3, :3], VIT[0]]), "expected as many"),
        (lambda: class_attention(VIT), "vit_weights has shape"),
        (lambda: class_attention(VIT[0, :0]), "need at least one head"),
        (lambda: local_tokens(VIT[0], 1.1), r"ratio=1.1 must lie in \[0, 1\]"),
        (lambda: local_tokens(VIT[0], np.nan), "ratio=nan"),
        (lambda: spatial_tokens(VIT[0], -0.1), "ratio=-0.1"),
        (lambda: spatial_tokens(VIT[0], 0.1, spatial="given"), "spatial='given' is not one of"),
        (lambda: select_tokens(VIT, local_ratio=-1), "local_ratio=-1"),
        (lambda: select_tokens(VIT, spatial_ratio=2), "spatial_ratio=2"),
        (lambda: summary_tokens(VIT[0, 0]), "penultimate_layer has shape"),
        (lambda: paint_logits(Z, TokenSelection([0], [0]), START), r"selection has \[0\] in both sets"),
        (lambda: paint_logits(Z, TokenSelection([-1], []), START), r"selection.local has \[-1\]"),
        (lambda: paint_logits(Z, TokenSelection([], [7]), START), r"selection.summary has \[7\], expected .* 0..6"),
        (lambda: paint_logits(Z, TokenSelection([0.5], []), START), "expected integers"),
        (lambda: paint_logits(Z, CHOSEN, -1), "image_start=-1"),
        (lambda: paint_logits(Z, CHOSEN, 10), "image_start=10"),
        (lambda: paint_logits(Z, CHOSEN, START, -0.1), "alpha=-0.1 must be finite"),
        (lambda: paint_logits(Z, CHOSEN, START, beta=np.nan), "beta=nan must be finite"),
        (lambda: paint_logits(Z, CHOSEN, START, head_gain=np.ones(2)), "head_gain has shape"),
        (lambda: paint_logits(Z, CHOSEN, START, head_gain=1.0), "one number a head"),
        (lambda: paint_logits(Z, CHOSEN, START, head_gain=-np.ones(3)), "head_gain must be finite"),
        (lambda: paint_logits(Z[0, 0], CHOSEN, START), "logits has shape"),
        (lambda: boost_logits(Z, [9], 0.5), r"index has \[9\]"),
        (lambda: boost_logits(Z, [0], [0.5, 0.5]), "factor has shape"),
        (lambda: pai_logits(Z, 3, 7, 0.5), r"n_image=7 must lie in 0..6"),
        (lambda: pai_logits(Z, 0, 3, np.inf), "alpha=inf"),
        (lambda: head_visual_sensitivity(Z, slice(3, 10)), "image_slice"),
        (lambda: head_visual_sensitivity(Z, slice(None, 3)), "must give a start and a stop"),
        (lambda: head_visual_sensitivity(Z[..., :0, :], (0, 3)), "need at least one query"),
        (lambda: sensitivity_gain(np.zeros(0)), "sensitivity has shape"),
        (lambda: sensitivity_gain([-1.0]), "sensitivity must be finite"),
        (lambda: guided_logits(np.zeros(3), np.zeros(4)), "uncond_logits has shape"),
        (lambda: guided_logits(np.zeros(0), np.zeros(0)), "V >= 1"),
        (lambda: guided_logits(np.zeros(3), np.zeros(3), np.inf), "gamma=inf"),
        (lambda: guided_logits(np.zeros(3), np.zeros(3), cutoff=0.0), "cutoff=0.0"),
        (lambda: guided_logits(np.zeros(3), np.zeros(3), cutoff=1.5), "cutoff=1.5"),
        (lambda: guided_logits([-np.inf, -np.inf], np.zeros(2)), "logits needs a finite logit"),
        (lambda: chair([], []), "at least one caption"),
        (lambda: chair([["cat"]], []), "present has 0 entries for 1 captions"),
        (lambda: PaintHook(CHOSEN, START, start_layer=3, end_layer=2), "end_layer=2"),
        (lambda: PaintHook(CHOSEN, START, start_layer=-1), "start_layer=-1"),
        (lambda: PaintHook(CHOSEN, 8).on_logits(2, Z, None), "selection.local has"),
    ],
)
def test_bad_input_is_refused(call, rule):
    """Each argument out of range is refused by name, value and rule."""
    with pytest.raises(ValueError, match=rule):
        call()


@pytest.mark.parametrize(
    ("window", "boosted"), [({}, [2, 3, 4]), ({"start_layer": 0, "end_layer": 2}, [0, 1]), ({"end_layer": 2}, [])]
)
def test_the_hook_boosts_its_layers_only(window, boosted):
    """From start_layer on, end_layer excluded, the logits are painted; elsewhere they are the array that came."""
    hook = PaintHook(CHOSEN, START, 0.5, 0.4, **window)
    mask = np.ones((4, 9), dtype=bool)
    for layer in range(5):
        out = hook.on_logits(layer, Z, mask)
        if layer in boosted:
            np.testing.assert_array_equal(out, paint_logits(Z, CHOSEN, START, 0.5, 0.4))
        else:
            assert out is Z


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 11,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}


def weights_at(layer):
    return f"blocks.{layer}.attn.hook_pattern"


def run(model, ids, hook=None, cache=None):
    interventions = () if hook is None else (hook,)
    return forward(model, ids, cache=cache, interventions=interventions, names=[weights_at(i) for i in range(4)])


@pytest.fixture(scope="module")
def model():
    return random_transformer(parse_config(LLAMA), np.random.default_rng(0), scale=2.0)


IDS = np.array([[1, 5, 3, 8, 2, 9, 4, 7, 6, 10]])


def test_a_running_model_looks_at_the_image_in_boosted_layers(model):
    """Layers 0 and 1 are as they were; in layer 2 only the last row changes, towards the chosen tokens."""
    plain, painted = run(model, IDS), run(model, IDS, PaintHook(CHOSEN, START))
    for layer in (0, 1):
        np.testing.assert_array_equal(plain.activations[weights_at(layer)], painted.activations[weights_at(layer)])
    before, after = (result.activations[weights_at(2)] for result in (plain, painted))
    np.testing.assert_array_equal(before[:, :, :-1], after[:, :, :-1])
    assert (after[:, :, -1, BOOSTED].sum(-1) > before[:, :, -1, BOOSTED].sum(-1)).all()
    np.testing.assert_array_equal(plain.logits[:, :-1], painted.logits[:, :-1])
    assert np.abs(plain.logits[:, -1] - painted.logits[:, -1]).max() > 1e-3


def test_each_decoded_token_is_boosted(model):
    """With a cache the new token is the last query, and it is boosted at the same keys as in a run over all."""
    hook = PaintHook(CHOSEN, START, start_layer=0)
    prefix = run(model, IDS[:, :-1])
    step = run(model, IDS[:, -1:], hook, prefix.kv_cache)
    whole = run(model, IDS, hook)
    np.testing.assert_allclose(step.logits[:, -1], whole.logits[:, -1], rtol=0, atol=1e-12)


def test_a_hook_without_strength_changes_nothing(model):
    """α = β = 0 gives the logits of a run without a hook, bit for bit."""
    np.testing.assert_array_equal(run(model, IDS, PaintHook(CHOSEN, START, 0.0, 0.0)).logits, run(model, IDS).logits)


def test_an_image_beyond_the_prompt_is_refused(model):
    """The hook refuses tokens that the running model has no keys for."""
    with pytest.raises(ValueError, match=r"selection.summary has \[4\]"):
        run(model, IDS, PaintHook(CHOSEN, 6))
