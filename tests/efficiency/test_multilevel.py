"""Whole transformers shrunk, grown and mixed: what stays the same, what does not, and what has no rule."""

import numpy as np
import pytest
from random_models import CONFIGS, tokens

from refattn.efficiency.multilevel import coalesce, decoalesce, interpolate
from refattn.transformer.adamw import adamw_step, begin_adamw, pack, unpack
from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward
from refattn.transformer.gradient import loss_and_gradient
from refattn.transformer.weights import random_transformer

HALVES = [[0, 2], [1, 3]]
IDS, TARGETS = tokens((2, 7)), tokens((2, 7), seed=3)
_ALONE = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False}
FAMILIES = {
    "gpt2": CONFIGS["gpt2"] | {"tie_word_embeddings": False},
    "neox": CONFIGS["neox"],
    "neox_sequential": CONFIGS["neox_sequential"],
    "llama": CONFIGS["llama"] | _ALONE,
    "mistral": CONFIGS["mistral"] | _ALONE,
    "qwen2": CONFIGS["qwen2"] | _ALONE,
    "qwen3": {**CONFIGS["qwen3"], **_ALONE, "head_dim": 4},
}


def drawn(config, seed=0):
    return random_transformer(parse_config(config), np.random.default_rng(seed))


def gpt2(*, tied, layers=4, heads=4, seed=0):
    return drawn(
        {**CONFIGS["gpt2"], "n_layer": layers, "n_head": heads, "n_embd": 4 * heads, "tie_word_embeddings": tied}, seed
    )


def numbers(model):
    return pack(model.weights, tied=model.config.tied)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("copies", [2, 3])
def test_a_wider_model_with_its_own_head_computes_the_same(name, copies):
    """Width de-coalescing keeps every logit of every family: norms, gates, rotations, windows and parallel blocks."""
    small = drawn(FAMILIES[name])
    heads = small.config.n_heads
    scheme = [[i + heads * copy for copy in range(copies)] for i in range(heads)]

    big = decoalesce(small, width_scheme=scheme)

    assert big.config.d_model == copies * small.config.d_model
    np.testing.assert_allclose(forward(big, IDS).logits, forward(small, IDS).logits, rtol=0, atol=1e-12)


def test_groups_of_different_sizes_change_the_function():
    """A norm of the wider stream counts a neuron as often as it was copied: uneven groups are not the same model."""
    small = gpt2(tied=False, heads=2)

    big = decoalesce(small, width_scheme=[[0, 2], [1]])

    assert np.abs(forward(big, IDS).logits - forward(small, IDS).logits).max() > 1e-3


def test_tied_heads_and_copied_layers_change_the_function():
    """A tied model halves its embeddings against the rest of the stream, and a layer's copy acts a second time."""
    tied, own = gpt2(tied=True, layers=2, heads=2), gpt2(tied=False, layers=2, heads=2)
    for small, grown in ((tied, decoalesce(tied, n_heads=4)), (own, decoalesce(own, n_layers=4))):
        assert np.abs(forward(grown, IDS).logits - forward(small, IDS).logits).max() > 1e-2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("schemes", [{"width_scheme": HALVES, "depth_scheme": HALVES}, {"n_heads": 4, "n_layers": 4}])
def test_a_model_that_grew_shrinks_to_what_it_was(tied, schemes):
    """Coalescing undoes de-coalescing, factors of the embeddings included; width and depth may be done in turn."""
    small = gpt2(tied=tied, layers=2, heads=2)
    grown = decoalesce(small, **schemes)
    back = {"n_heads": 2, "n_layers": 2} if "n_heads" in schemes else schemes
    wide = {name: value for name, value in schemes.items() if name in ("width_scheme", "n_heads")}
    deep = {name: value for name, value in schemes.items() if name not in wide}

    np.testing.assert_allclose(numbers(coalesce(grown, **back)), numbers(small), rtol=0, atol=1e-14)
    for first, then in ((wide, deep), (deep, wide)):
        np.testing.assert_allclose(
            numbers(decoalesce(decoalesce(small, **first), **then)), numbers(grown), rtol=0, atol=1e-14
        )


def test_coalescing_is_linear():
    """Half of one model and twice another coalesce to half and twice what they coalesce to."""
    x, y = gpt2(tied=True), gpt2(tied=True, seed=1)
    options = {"width_scheme": HALVES, "n_layers": 2}
    both = unpack(0.5 * numbers(x) + 2 * numbers(y), x)

    expected = 0.5 * numbers(coalesce(x, **options)) + 2 * numbers(coalesce(y, **options))

    np.testing.assert_allclose(numbers(coalesce(both, **options)), expected, rtol=0, atol=1e-13)


def test_groups_in_another_order_permute_the_heads():
    """The small model's heads come in the order of the groups, and the order inside a group is nothing."""
    model = gpt2(tied=False)
    usual = coalesce(model, width_scheme=HALVES).weights.blocks[0]
    swapped = coalesce(model, width_scheme=[[3, 1], [2, 0]]).weights.blocks[0]

    np.testing.assert_array_equal(swapped.b_Q, usual.b_Q[::-1])
    np.testing.assert_array_equal(swapped.ln1_w, np.roll(usual.ln1_w, 4))


def test_interpolation_keeps_its_ends():
    """α = 0 and 1 give the models themselves, and in between each number lies on the line."""
    big, other = gpt2(tied=True), gpt2(tied=True, seed=1)

    np.testing.assert_array_equal(numbers(interpolate(big, other, 0)), numbers(big))
    np.testing.assert_array_equal(numbers(interpolate(big, other, 1)), numbers(other))
    np.testing.assert_allclose(
        numbers(interpolate(big, other, 0.25)), 0.75 * numbers(big) + 0.25 * numbers(other), rtol=0, atol=1e-15
    )


def asymmetry(model):
    """Return how far the second half of the heads is from the first, as seen by coalescing and growing again."""
    there = decoalesce(coalesce(model, width_scheme=HALVES), width_scheme=HALVES)
    return np.abs(numbers(there) - numbers(model)).max()


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("alpha", [1.0, 0.75])
def test_copies_stay_copies(optimiser, alpha):
    """From α = 1 ten steps of SGD or AdamW keep equal heads equal; mixed with a random model they were never equal."""
    big = gpt2(tied=True, layers=2)
    model = interpolate(big, decoalesce(coalesce(big, width_scheme=HALVES), width_scheme=HALVES), alpha)
    vector, state = numbers(model), begin_adamw(numbers(model))
    for _ in range(10):
        gradient = pack(loss_and_gradient(unpack(vector, model), IDS, TARGETS)[1], tied=True)
        if optimiser == "sgd":
            vector = vector - 0.05 * gradient
        else:
            vector, state = adamw_step(vector, gradient, state, learning_rate=1e-3, clip=None)
    found = asymmetry(unpack(vector, model))

    assert found < 1e-12 if alpha == 1.0 else found > 0.05


def test_copied_layers_part():
    """Two copies of a layer stand at different depths, and one step of training tells them apart."""
    small = gpt2(tied=True, layers=1)
    model = decoalesce(small, n_layers=2)
    vector = numbers(model)
    gradient = pack(loss_and_gradient(model, IDS, TARGETS)[1], tied=True)

    first, second = unpack(vector - 0.1 * gradient, model).weights.blocks

    assert np.abs(first.W_in - second.W_in).max() > 1e-5


def test_the_smallest_models_go_through():
    """One head, one layer or none, equal widths, and groups of one are mapped to what they are."""
    for model in (gpt2(tied=True, layers=1, heads=1), gpt2(tied=True, layers=0)):
        np.testing.assert_array_equal(numbers(coalesce(model)), numbers(model))
        np.testing.assert_array_equal(numbers(decoalesce(model)), numbers(model))
    single = gpt2(tied=True, heads=2)
    np.testing.assert_array_equal(numbers(coalesce(single, width_scheme=[[0], [1]])), numbers(single))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coalesce(gpt2(tied=True), width_scheme=[[0, 1], [2]]), "every head must belong to exactly one group"),
        (lambda: coalesce(gpt2(tied=True), width_scheme=[[0, 1, 2, 3]]), "all groups must be pairs"),
        (lambda: coalesce(gpt2(tied=True), n_heads=5), r"head 4 is not in 0\.\.3"),
        (lambda: decoalesce(gpt2(tied=True), n_heads=2), r"head 2 is not in 0\.\.1"),
        (lambda: coalesce(gpt2(tied=True), n_layers=3), "big_depth=4 must be small_depth=3 or twice that"),
        (lambda: coalesce(drawn(CONFIGS["llama"])), "shared by 4 query heads have no rule"),
        (lambda: coalesce(drawn({**FAMILIES["qwen3"], "head_dim": 6})), "d_model=16 must be what the heads are"),
        (lambda: coalesce(drawn({**FAMILIES["gpt2"], "n_inner": 30})), "d_mlp=30 must be a multiple of n_heads=4"),
        (lambda: coalesce(drawn(CONFIGS["gpt2_inverse_layer"]), n_layers=1), "config.attn_scale=.* must not differ"),
        (lambda: coalesce(drawn(FAMILIES["qwen2"]), n_layers=1), "config.window=.* must not differ"),
        (lambda: interpolate(gpt2(tied=True), gpt2(tied=True, layers=2), 0.5), "differ in their configurations"),
        (lambda: interpolate(gpt2(tied=True), gpt2(tied=True), 1.5), r"alpha=1\.5 must be in \[0, 1\]"),
    ],
)
def test_what_has_no_rule_is_named(call, message):
    """Schemes that part nothing, families without a rule, and mixtures of unlike models are refused in words."""
    with pytest.raises(ValueError, match=message):
        call()
