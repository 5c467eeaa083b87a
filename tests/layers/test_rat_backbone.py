"""Stacks of RAT blocks, their initial weights, and the arithmetic of their cost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.layers.rat import rat_layer
from refattn.layers.rat_backbone import BackboneWeights, ffn_layer, rat_backbone, rat_language_model
from refattn.layers.rat_baselines import causal_attention_layer, rnn_layer
from refattn.layers.rat_cost import (
    attention_cache_size,
    attention_flops,
    attention_step_bytes,
    flop_crossover,
    rat_cache_size,
    rat_flops,
    rat_step_bytes,
    rnn_flops,
)
from refattn.layers.rat_decode import rat_init_cache
from refattn.layers.rat_init import (
    init_attention_weights,
    init_backbone_weights,
    init_ffn_weights,
    init_language_model_weights,
    init_rat_weights,
    init_rnn_weights,
)

PAPER = {"d_model": 2048, "head_dim": 128}


def test_a_stack_is_its_layers_one_after_the_other():
    """Blocks of all three kinds, the feed-forward layer after each, and the norm at the end."""
    rng = np.random.default_rng(0)
    weights = init_backbone_weights(rng, 16, kinds=("rat", "attention", "rnn"), num_heads=4, chunk_size=4, length=12)
    x = rng.standard_normal((2, 12, 16))
    y, layers = rat_backbone(x, weights, num_heads=4, chunk_size=4, window=5, return_layers=True)

    first, second, third = weights.blocks
    h = ffn_layer(rat_layer(x, first.sequence, num_heads=4, chunk_size=4), first.ffn)
    assert np.array_equal(layers[0], h)
    h = ffn_layer(causal_attention_layer(h, second.sequence, num_heads=4, window=5), second.ffn)
    assert np.array_equal(layers[1], h)
    h = ffn_layer(rnn_layer(h, third.sequence), third.ffn)
    assert np.array_equal(layers[2], h)
    np.testing.assert_allclose(y, h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + 1e-6), rtol=1e-12)


def test_no_blocks_leave_the_norm():
    """An empty stack normalises its input."""
    x = np.random.default_rng(0).standard_normal((1, 3, 8))
    y = rat_backbone(x, BackboneWeights((), 2.0 * np.ones(8)), num_heads=2)

    np.testing.assert_allclose(np.mean(y**2, axis=-1), 4.0, rtol=1e-5)


def test_the_language_model_is_causal_and_untied():
    """Logits have the width of the vocabulary and do not depend on later tokens; head and embedding are two arrays."""
    rng = np.random.default_rng(0)
    weights = init_language_model_weights(rng, 11, 16, kinds=("rat", "attention") * 2, num_heads=4, chunk_size=3)
    tokens = rng.integers(0, 11, (2, 9))
    changed = tokens.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    options = {"num_heads": 4, "chunk_size": 3, "window": 4}
    left, right = (rat_language_model(t, weights, **options) for t in (tokens, changed))

    assert left.shape == (2, 9, 11)
    assert np.array_equal(left[:, :5], right[:, :5])
    assert not np.allclose(left[:, 5:], right[:, 5:])
    assert not np.allclose(weights.embedding.T, weights.head)


@given(st.integers(1, 64))
def test_gate_bias_is_the_logarithm_of_uniform_numbers(chunk_size):
    """The bias is log u with u in [1, L − 1], so that gates start between 1/2 and 1 − 1/L; 0 for L of 1 and 2."""
    bias = init_rat_weights(np.random.default_rng(0), 64, num_heads=4, chunk_size=chunk_size).gate_bias
    gate = 1.0 / (1.0 + np.exp(-bias))

    assert np.all(bias >= 0)
    assert np.all(gate <= max(0.5, 1.0 - 1.0 / chunk_size) + 1e-12)
    assert np.any(bias > 0) == (chunk_size > 2)


def test_initial_weights_have_the_authors_scale():
    """All matrices are N(0, 0.02²), norms are 1, and the feed-forward layer is four times as wide."""
    rng = np.random.default_rng(0)
    rat = init_rat_weights(rng, 128, num_heads=4)
    rnn, attention = init_rnn_weights(rng, 128, length=512), init_attention_weights(rng, 128)
    ffn = init_ffn_weights(rng, 128)

    for matrix in (rat.w_in, rat.w_out, rnn.w_in, rnn.w_out, attention.w_in, attention.w_out, ffn.w1, ffn.w2):
        assert matrix.std() == pytest.approx(0.02, rel=0.03)
    assert all(np.all(w.norm == 1.0) for w in (rat, rnn, attention, ffn))
    assert ffn.w1.shape == (128, 512)
    assert rnn.gate_bias.max() <= np.log(511)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: init_backbone_weights(np.random.default_rng(0), 8, kinds=("mamba",), num_heads=2), "kinds='mamba'"),
        (lambda: rat_language_model([[9]], model(), num_heads=2, chunk_size=1), r"tokens must be in 0..4"),
        (lambda: rat_language_model([[0.5]], model(), num_heads=2, chunk_size=1), "tokens has dtype float64"),
        (lambda: ffn_layer(np.ones((1, 2, 8)), ffn()._replace(w2=np.ones((3, 8)))), "weights.w2 has shape"),
        (lambda: ffn_layer(np.ones((1, 2, 6)), ffn()), "weights.w1 has shape"),
        (lambda: attention_flops(-1, d_model=8), "length=-1 must be >= 0"),
    ],
)
def test_bad_input_is_named(call, message):
    """What does not fit is refused with the argument's name and the rule."""
    with pytest.raises(ValueError, match=message):
        call()


def ffn():
    return init_ffn_weights(np.random.default_rng(0), 8)


def model():
    return init_language_model_weights(np.random.default_rng(0), 5, 8, kinds=("rat",), num_heads=2, chunk_size=1)


def test_operations_explain_sevenfold_training():
    """At 100,000 tokens attention needs 7.23 times the operations of RAT-16, and the two meet at 546 tokens."""
    ratio = attention_flops(100_000, d_model=2048) / rat_flops(100_000, **PAPER)

    assert ratio == pytest.approx(7.23, abs=0.01)
    meet = flop_crossover(head_dim=128)
    assert meet == pytest.approx(546.1, abs=0.1)
    assert attention_flops(meet, d_model=2048) == pytest.approx(rat_flops(meet, **PAPER), rel=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 128))
def test_operations_lie_between_the_baselines(length, chunk_size):
    """RAT costs the RNN's operations, its queries and keys, and 1/L of attention over the sequence."""
    rat = rat_flops(length, **PAPER, chunk_size=chunk_size)
    extra = 4.0 * 2048 * 2 * 128

    assert rat == pytest.approx(rnn_flops(d_model=2048) + extra + 2.0 * length * 2048 / chunk_size, rel=1e-12)
    window = attention_flops(length, d_model=2048, window=1024)
    assert window <= attention_flops(length, d_model=2048)


def test_bytes_explain_ninefold_generation():
    """At position 4096 a step of attention reads 1.8, 12.8 and 15.4 times as much for batches of 1, 64 and 512."""
    for batch, expected in ((1, 1.8), (64, 12.8), (512, 15.4)):
        attention = attention_step_bytes(4096, d_model=2048, batch=batch)
        assert attention / rat_step_bytes(4096, **PAPER, batch=batch) == pytest.approx(expected, abs=0.05)


@given(st.integers(1, 200), st.integers(1, 20))
def test_the_cache_is_as_large_as_the_formula_says(length, chunk_size):
    """A real cache of one sequence holds 2 ⌈T/L⌉ D + 2 D numbers."""
    cache = rat_init_cache(1, length, 8, num_heads=2, chunk_size=chunk_size)

    assert sum(a.size for a in cache[:4]) == rat_cache_size(length, d_model=8, chunk_size=chunk_size)


def test_the_hybrid_keeps_a_quarter_of_the_cache():
    """At 4096 tokens, RAT-16 and a window of 1024 in turns hold a quarter of what attention and the window hold."""
    window = attention_cache_size(4096, d_model=2048, window=1024)
    full = attention_cache_size(4096, d_model=2048)

    assert (full + window) / (rat_cache_size(4096, d_model=2048) + window) == pytest.approx(4.0, abs=0.01)
