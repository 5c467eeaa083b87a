"""Attention taken apart: what each variant can see, what its recurrence keeps, stacks, indicators, costs, refusals."""

import numpy as np
import pytest

from refattn.layers.deconstructed import (
    VARIANTS,
    AttentionWeights,
    MLPWeights,
    apply_attention,
    attend,
    attention_map,
    gated_mlp,
)
from refattn.layers.deconstructed_cost import cache_bytes, flops, parameter_count
from refattn.layers.deconstructed_indicators import attention_indicators
from refattn.layers.deconstructed_init import init_attention, init_stack, random_reference
from refattn.layers.deconstructed_recurrent import approximate_recurrent, non_approximate_recurrent
from refattn.layers.deconstructed_stack import PLANS, forward_stack, layer_plan, skip_plan

MIXERS = tuple(variant for variant in VARIANTS if variant != "mlp")


def close(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def draw(seed=0, lead=(2,), L=7, d=8):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*lead, L, d)), init_attention(rng, d), rng


def heads(seed=0, L=9, dh=4, dv=3):
    rng = np.random.default_rng(seed)
    return *rng.standard_normal((2, 2, 3, L, dh)), rng.standard_normal((2, 3, L, dv))


def run(hidden, weights, variant, rng, **options):
    """Run a variant with a reference and embeddings that do not depend on the input."""
    extra = {"reference": rng.standard_normal((12, 8)), "static": rng.standard_normal(hidden.shape)}
    needed = {"random_fixed": "reference", "text_fixed": "reference", "static_emb": "static"}.get(variant)
    extra = {needed: extra[needed]} if needed else {}
    return apply_attention(hidden, weights, variant=variant, n_heads=2, **extra, **options)


@pytest.mark.parametrize("variant", MIXERS)
@pytest.mark.parametrize("rotary_base", [None, 100.0])
def test_maps_are_causal_and_their_rows_sum_to_one(variant, rotary_base):
    """Every map has entries ≥ 0, an empty upper triangle and rows that sum to one."""
    hidden, weights, _ = draw()
    A = attention_map(hidden, weights, variant=variant, n_heads=2, rotary_base=rotary_base)
    assert A.shape == (2, 2, 7, 7)
    assert A.min() >= 0
    assert not np.triu(A, 1).any()
    close(A.sum(-1), 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_looks_ahead(variant):
    """Tokens after t do not move output t; with mlp no other token does."""
    hidden, weights, _ = draw()
    changed = hidden.copy()
    changed[:, 5:] += 1
    out, other = (run(x, weights, variant, np.random.default_rng(3)) for x in (hidden, changed))
    close(out[:, :5], other[:, :5])
    changed[:, 0] += 1
    moved = run(changed, weights, variant, np.random.default_rng(3))
    assert np.allclose(out[:, 3], moved[:, 3]) == (variant == "mlp")


@pytest.mark.parametrize("form", ["joint", "per_order"])
def test_the_taylor_map_is_a_recurrence(form):
    """Quadratic and recurrent approximate attention agree, in one go and in two, for both normalisations."""
    hidden, weights, _ = draw()
    hidden, weights = np.abs(hidden), AttentionWeights(*map(np.abs, weights))  # so that no order sums to zero
    q, k, v = (np.moveaxis((hidden @ W).reshape(2, 7, 2, 4), 2, 1) for W in weights[:3])
    A = attention_map(hidden, weights, variant="approximate", n_heads=2, form=form)
    out, state = approximate_recurrent(q, k, v, form=form)
    close(out, A @ v, 1e-10)
    close(A.sum(-1), 1 if form == "joint" else 3)
    first, kept = approximate_recurrent(q[..., :3, :], k[..., :3, :], v[..., :3, :], form=form)
    then, end = approximate_recurrent(q[..., 3:, :], k[..., 3:, :], v[..., 3:, :], form=form, initial=kept)
    close(np.concatenate([first, then], axis=-2), out)
    for left, right in zip(end, state, strict=True):
        close(left, right)


def test_the_gate_is_a_recurrence():
    """Quadratic and recurrent gates agree; a state handed over goes on as if nothing had been cut."""
    hidden, weights, _ = draw()
    q, k, v = (np.moveaxis((hidden @ W).reshape(2, 7, 2, 4), 2, 1) for W in weights[:3])
    q = q / (1 + np.exp(-q))
    out, state = non_approximate_recurrent(q, k, v)
    close(out, attention_map(hidden, weights, variant="non_approximate", n_heads=2) @ v, 1e-10)
    first, kept = non_approximate_recurrent(q[..., :3, :], k[..., :3, :], v[..., :3, :])
    then, end = non_approximate_recurrent(q[..., 3:, :], k[..., 3:, :], v[..., 3:, :], initial=kept)
    close(np.concatenate([first, then], axis=-2), out)
    for left, right in zip(end, state, strict=True):
        close(left, right)


def test_small_logits_make_taylor_and_softmax_alike():
    """A tenth of the logits leaves about a thousandth of the difference."""
    hidden, weights, _ = draw()
    gaps = []
    for scale in (1e-1, 1e-2):
        small = weights._replace(W_Q=scale * weights.W_Q)
        maps = [attention_map(hidden, small, variant=v, n_heads=2) for v in ("standard", "approximate")]
        gaps.append(np.abs(maps[0] - maps[1]).max())
    assert 500 < gaps[0] / gaps[1] < 2000


@pytest.mark.parametrize("variant", MIXERS)
def test_without_queries_every_map_is_the_causal_mean(variant):
    """W_Q = 0 makes all visible tokens count alike."""
    hidden, weights, _ = draw()
    A = attention_map(hidden, weights._replace(W_Q=0 * weights.W_Q), variant=variant, n_heads=2)
    close(A, np.broadcast_to(np.tri(7) / np.arange(1, 8)[:, None], A.shape))


def test_the_gate_stripes_the_map():
    """A_ij A_i'j' = A_ij' A_i'j wherever all four are visible: the ratio of two columns is the same in each row."""
    hidden, weights, _ = draw()
    A = attention_map(hidden, weights, variant="non_approximate", n_heads=2)
    for i, other in ((4, 6), (3, 5)):
        a, b = A[..., i, : i + 1], A[..., other, : i + 1]
        close(a[..., :, None] * b[..., None, :], a[..., None, :] * b[..., :, None])


@pytest.mark.parametrize("variant", ["random_fixed", "text_fixed"])
def test_fixed_maps_do_not_see_the_input(variant):
    """Output is linear in H, a longer reference has the same beginning, and with H as reference it is standard."""
    hidden, weights, rng = draw()
    reference = rng.standard_normal((12, 8))
    options = {"variant": variant, "n_heads": 2}

    def out(x):
        return apply_attention(x, weights, reference=reference, **options)

    close(out(2 * hidden - hidden[::-1]), 2 * out(hidden) - out(hidden[::-1]))
    close(attention_map(reference, weights, **options)[:, :7, :7], attention_map(reference[:7], weights, **options))
    own = apply_attention(hidden, weights, reference=hidden, **options)
    close(own, apply_attention(hidden, weights, variant="standard", n_heads=2))


def test_one_map_serves_a_whole_batch():
    """A reference without a batch axis gives what the same reference repeated gives."""
    hidden, weights, rng = draw()
    reference = rng.standard_normal((7, 8))
    repeated = np.broadcast_to(reference, hidden.shape)
    options = {"variant": "random_fixed", "n_heads": 2}
    one, many = (apply_attention(hidden, weights, reference=x, **options) for x in (reference, repeated))
    close(one, many)
    close(one, attend(attention_map(reference, weights, **options), hidden, weights))


def test_static_maps_do_not_see_the_hidden_state():
    """The output is linear in H, as the map depends on the embeddings alone."""
    hidden, weights, rng = draw()
    static = rng.standard_normal(hidden.shape)

    def out(x):
        return apply_attention(x, weights, variant="static_emb", n_heads=2, static=static)

    close(out(hidden + 3 * hidden[::-1]), out(hidden) + 3 * out(hidden[::-1]))
    own = apply_attention(hidden, weights, variant="static_emb", n_heads=2, static=hidden)
    close(own, apply_attention(hidden, weights, variant="standard", n_heads=2))


def test_rotary_turns_all_that_compare_positions():
    """Rotary positions move the maps of all variants but that of the gate."""
    hidden, weights, _ = draw()
    for variant in MIXERS:
        plain, turned = (
            attention_map(hidden, weights, variant=variant, n_heads=2, rotary_base=b) for b in (None, 50.0)
        )
        assert np.allclose(plain, turned) == (variant == "non_approximate")


def small_stack(n_layers=4, seed=0):
    rng = np.random.default_rng(seed)
    params = init_stack(rng, vocabulary=11, d=8, d_inner=12, n_layers=n_layers)
    return params, rng.integers(11, size=(2, 6)), random_reference(rng, params.embedding, 9), rng


@pytest.mark.parametrize("config", ["uniform", "hybrid"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_stacks_are_causal_and_return_their_maps(variant, config):
    """Uniform and hybrid stacks of every variant: later tokens change nothing, and there is a map where tokens mix."""
    params, tokens, reference, rng = small_stack()
    extra = {"n_heads": 2, "reference_embeddings": reference, "reference_tokens": rng.integers(11, size=9)}
    plan = layer_plan(4, config, variant)
    out = forward_stack(tokens, params, plan, **extra)
    changed = tokens.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    close(forward_stack(changed, params, plan, **extra).hidden[:, :4], out.hidden[:, :4])
    assert [A is None for A in out.maps] == [kind == "mlp" for kind in plan]
    assert (out.reference_hidden is not None) == variant.endswith("fixed")


def test_a_reference_equal_to_the_input_is_standard():
    """text_fixed over its own text is standard attention in every layer, also in a hybrid."""
    params, tokens, _, _ = small_stack()
    standard = forward_stack(tokens[0], params, layer_plan(4, "uniform", "standard"), n_heads=2)
    for config in ("uniform", "hybrid"):
        plan = layer_plan(4, config, "text_fixed")
        out = forward_stack(tokens[0], params, plan, n_heads=2, reference_tokens=tokens[0])
        close(out.hidden, standard.hidden)
        close(out.reference_hidden, standard.hidden)


def test_fixed_maps_of_a_stack_know_only_weights_and_length():
    """All layers of a uniform stack have the same maps for any input; a shorter one sees their corner."""
    params, tokens, reference, _ = small_stack()
    plan = layer_plan(4, "uniform", "random_fixed")
    one, other, short = (
        forward_stack(t, params, plan, n_heads=2, reference_embeddings=reference).maps
        for t in (tokens, tokens[::-1], tokens[:, :3])
    )
    for a, b, c in zip(one, other, short, strict=True):
        close(a, b)
        close(a[..., :3, :3], c)


def test_normalised_static_embeddings_start_as_standard():
    """In the first layer the normalised embeddings are the hidden state; as they are, they are not."""
    params, tokens, _, _ = small_stack(n_layers=1)
    standard = forward_stack(tokens, params, ("standard",), n_heads=2).hidden
    for on in (True, False):
        out = forward_stack(tokens, params, ("static_emb",), n_heads=2, normalize_static=on).hidden
        assert np.allclose(out, standard) == on


def test_mixed_plans_carry_the_reference_through_every_kind():
    """A reference that is the input stays it through layers of each other kind."""
    params, tokens, _, _ = small_stack(n_layers=6)
    plan = ("text_fixed", "mlp", "approximate", "static_emb", "non_approximate", "text_fixed")
    for on in (True, False):
        out = forward_stack(
            tokens[0], params, plan, n_heads=2, reference_tokens=tokens[0], normalize_static=on, rotary_base=100.0
        )
        close(out.hidden, out.reference_hidden)


def test_skipping_is_leaving_out():
    """Without its odd layers a standard stack is the stack of its even ones."""
    params, tokens, _, _ = small_stack()
    plan = layer_plan(4, "uniform", "standard")
    assert skip_plan(plan) == (1, 3)
    skipped = forward_stack(tokens, params, plan, n_heads=2, skip=skip_plan(plan))
    half = forward_stack(tokens, params._replace(blocks=params.blocks[1::2]), plan[:2], n_heads=2)
    close(skipped.hidden, half.hidden)
    assert len(skipped.maps) == 2


def test_plans_are_those_of_the_table():
    """Of 24 layers the standard ones are those that the paper's Table 11 lists."""
    table = {
        "uniform": [],
        "hybrid": range(2, 25, 2),
        "even": range(2, 25, 2),
        "odd": range(1, 24, 2),
        "top": range(1, 13),
        "middle": [*range(1, 7), *range(19, 25)],
        "bottom": range(13, 25),
        "25%": range(4, 25, 4),
        "first": [1],
        "last": [24],
        "bilateral": [1, 24],
    }
    assert set(table) == set(PLANS)
    for config, expected in table.items():
        plan = layer_plan(24, config, "mlp")
        assert [n for n, kind in enumerate(plan, 1) if kind == "standard"] == list(expected)
    assert layer_plan(5, "top", "mlp") == ("standard",) * 2 + ("mlp",) * 3
    assert layer_plan(1, "bilateral", "mlp") == ("standard",)


def test_indicators_of_known_maps():
    """Identity, causal mean and heads alike have the numbers that they must have."""
    eye = attention_indicators(np.broadcast_to(np.eye(6), (3, 6, 6)))
    close(eye.entropy, 0)
    close([eye.concentration, eye.sink, eye.head_diversity], [6**0.5, 1 / 6, 0])
    close(eye.local_focus, [1, 0, 0, 0])
    close(eye.normalised_concentration, 1)
    mean = attention_indicators(np.broadcast_to(np.tri(6) / np.arange(1, 7)[:, None], (2, 6, 6)))
    close([mean.normalised_entropy, mean.normalised_concentration, mean.head_diversity], [1, 0, 0])
    two = np.stack([np.eye(3), np.eye(3)[[0, 0, 0]]])
    close(attention_indicators(two).head_diversity, 2 / 12 * 4 * 0.5)
    one = attention_indicators(np.ones((2, 1, 1)))
    close(one.local_focus, [1, 0, 0, 0])
    close([one.normalised_entropy, one.normalised_concentration], [0, 0])


def test_costs_are_those_of_the_tables():
    """FLOPs and cache bytes at b = 3, L = 5, d = 4, h = 2, and equal parameter counts."""
    sizes = {"batch": 3, "length": 5, "width": 4}
    prefill = {"standard": 2640, "static_emb": 2640, "mlp": 1440, "non_approximate": 1440, "approximate": 3360}
    decode = {"standard": 528, "static_emb": 528, "mlp": 288, "non_approximate": 288, "approximate": 480}
    cache = {"standard": 240, "static_emb": 240, "mlp": 0, "non_approximate": 48, "approximate": 168}
    for variant in VARIANTS:
        assert flops(variant, **sizes) == prefill.get(variant, 2240)
        assert flops(variant, stage="decode", **sizes) == decode.get(variant, 448)
        assert cache_bytes(variant, n_heads=2, **sizes) == cache.get(variant, 160)
        assert parameter_count(variant, 4) == sum(W.size for W in init_attention(np.random.default_rng(0), 4))
    assert flops("text_fixed", cached_maps=True, **sizes) == 200 + 480
    assert flops("text_fixed", cached_maps=True, stage="decode", **sizes) == 120 + 32


@pytest.mark.parametrize("variant", VARIANTS)
def test_small_and_huge_inputs_work(variant):
    """One token, one head, no batch and logits of a million work; one token reads itself."""
    rng = np.random.default_rng(0)
    for lead, L, scale in (((1,), 1, 1.0), ((0,), 3, 1.0), ((2,), 5, 1e3)):
        hidden, weights, _ = draw(lead=lead, L=L)
        out = run(scale * hidden, weights, variant, rng)
        assert out.shape == hidden.shape
        assert np.isfinite(out).all()
        if L == 1 and variant != "mlp":
            close(out, hidden @ weights.W_V @ weights.W_O)
    q, k, v = heads()
    out, _ = non_approximate_recurrent(1e3 * np.abs(q), np.abs(k), v)
    assert np.isfinite(out).all()


X, W = np.ones((2, 3, 4)), AttentionWeights(*np.ones((4, 4, 4)))
P = init_stack(np.random.default_rng(0), vocabulary=5, d=4, d_inner=6, n_layers=2)
Q = np.ones((3, 2))


def attended(hidden=X, weights=W, **options):
    return lambda: apply_attention(hidden, weights, **{"variant": "standard", "n_heads": 2} | options)


def stacked(tokens=(0, 1, 2), plan=("standard", "standard"), **options):
    return lambda: forward_stack(tokens, P, plan, n_heads=2, **options)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (attended(variant="linear"), "variant='linear' is not one of 'standard', 'mlp'"),
        (attended(form="squared"), "form='squared' is not one of 'joint'"),
        (attended(eps=-1.0), "eps=-1.0 must be finite"),
        (attended(n_heads=3), "n_heads=3 must divide the width d = 4"),
        (attended(hidden=X[:, :0]), "hidden has shape .* L >= 1"),
        (attended(weights=W._replace(W_K=np.ones((4, 3)))), "weights.W_K has shape"),
        (attended(variant="random_fixed"), "reference=None, but variant='random_fixed'"),
        (attended(variant="text_fixed", reference=X[0, :2]), "the reference sequence must cover the input length 3"),
        (attended(variant="static_emb"), "static=None, but variant='static_emb'"),
        (attended(variant="static_emb", static=X[:1]), "static has shape"),
        (attended(n_heads=4, rotary_base=10.0), "even"),
        (lambda: attention_map(X, W, variant="mlp", n_heads=2), "mixes no tokens"),
        (lambda: attend(np.ones((2, 2, 2)), X, W), "maps has shape"),
        (lambda: gated_mlp(X, MLPWeights(np.ones((4, 5)), np.ones((4, 5)), np.ones((4, 4)))), "weights.down has shape"),
        (stacked(plan=("standard",)), "plan has length 1, expected one variant for each of 2 blocks"),
        (stacked(plan=("standard", "linear")), "plan='linear' is not one of"),
        (stacked(plan=("random_fixed", "text_fixed")), "one reference stream"),
        (stacked(plan=("random_fixed", "standard")), "reference_embeddings=None"),
        (stacked(plan=("text_fixed", "standard"), reference_tokens=[1, 2]), "must cover the input length 3"),
        (stacked(plan=("random_fixed", "mlp"), reference_embeddings=np.ones((3, 5))), "one sequence of width 4"),
        (stacked(tokens=[0, 5]), r"tokens must lie in \[0, 5\)"),
        (stacked(tokens=[]), "tokens has shape"),
        (stacked(skip=(3,)), "must hold layer numbers from 1 to 2"),
        (lambda: layer_plan(24, "sideways", "mlp"), "config='sideways' is not one of 'uniform'"),
        (lambda: layer_plan(24, "even", "linear"), "variant='linear'"),
        (lambda: layer_plan(0, "even", "mlp"), "n_layers=0"),
        (lambda: approximate_recurrent(Q, Q[:2], Q), "k has shape"),
        (lambda: approximate_recurrent(Q, Q, Q, initial=approximate_recurrent(X, X, X)[1]), "initial.S has shape"),
        (lambda: non_approximate_recurrent(Q, Q, Q[:2]), "v has shape"),
        (lambda: non_approximate_recurrent(Q[:0], Q[:0], Q[:0]), "L >= 1"),
        (lambda: attention_indicators(np.ones((1, 2, 3))), "maps has shape"),
        (lambda: attention_indicators(-np.eye(2)[None]), "maps must be >= 0"),
        (lambda: attention_indicators(np.ones((1, 2, 2))), "maps must be causal"),
        (lambda: flops("mlp", batch=1, length=1, width=1, cached_maps=True), "cached_maps=True"),
        (lambda: flops("mlp", batch=1, length=1, width=1, stage="training"), "stage='training'"),
        (lambda: cache_bytes("mlp", batch=-1, length=1, width=4, n_heads=2), "batch=-1"),
        (lambda: cache_bytes("mlp", batch=1, length=1, width=4, n_heads=3), "n_heads=3"),
        (lambda: init_stack(np.random.default_rng(0), vocabulary=1, d=0, d_inner=1, n_layers=1), "d=0"),
        (lambda: random_reference(np.random.default_rng(0), np.ones((2, 2)), 0), "length=0"),
    ],
)
def test_bad_input_is_refused(call, rule):
    """Each argument out of range is refused by name, value and rule."""
    with pytest.raises(ValueError, match=rule):
        call()
