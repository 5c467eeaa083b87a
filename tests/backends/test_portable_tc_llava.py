"""The portable twin of tc_llava against the reference, on every array library that is installed."""

import numpy as np
import pytest

from refattn.backends.portable import tc_llava as portable
from refattn.layers import tc_llava as reference
from refattn.layers.tc_llava import TCAttentionWeights
from refattn.layers.tc_llava_streaming import TCCache, tc_append, tc_prefill

SEGMENTS = [[2, 3, 4], [16, 2, 3]]
LAYOUTS = [(25, SEGMENTS), (1, [[0, 1, 1]]), (0, []), (7, [[0, 1, 3], [3, 2, 2]]), (9, [])]
VARIANTS = ["fwbc", "causal", "full_visual"]


def numpy():
    return np.array, np.asarray, lambda function: function


def strict():
    xp = pytest.importorskip("array_api_strict")
    return xp.asarray, np.from_dlpack, lambda function: function


def torch():
    library = pytest.importorskip("torch")
    return (lambda x: library.from_numpy(x.copy())), np.asarray, lambda function: function


def jax():
    library = pytest.importorskip("jax")
    library.config.update("jax_enable_x64", True)
    return library.numpy.asarray, np.asarray, library.jit


LIBRARIES = pytest.mark.parametrize("library", [numpy, strict, torch, jax])


def draw(length, width=12, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((4, width, width)) / np.sqrt(width)
    return rng.standard_normal((2, length, width)), TCAttentionWeights(*weights)


def native(library, tree):
    return TCAttentionWeights(*map(library, tree)) if isinstance(tree, TCAttentionWeights) else library(tree)


@LIBRARIES
@pytest.mark.parametrize(("length", "segments"), LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_layer_and_weights_equal_the_reference(library, length, segments, variant):
    """Outputs and attention weights agree to rounding, compiled where the library compiles."""
    make, take, compiled = library()
    x, weights = draw(length)
    options = {"n_heads": 3, "gamma": 0.5, "variant": variant, "base": 300.0, "tail": "eq5", "return_weights": True}
    run = compiled(lambda x, w: portable.dual_rope_attention(x, w, segments, **options))
    expected = reference.dual_rope_attention(x, weights, segments, **options)
    for actual, wanted in zip(run(make(x), native(make, weights)), expected, strict=True):
        np.testing.assert_allclose(take(actual), wanted, rtol=0, atol=1e-13)


@LIBRARIES
@pytest.mark.parametrize("variant", ["fwbc", "causal"])
def test_streaming_equals_the_reference(library, variant):
    """Prefill and append agree with the reference, in outputs and in what they keep."""
    make, take, compiled = library()
    x, weights = draw(25)
    options = {"n_heads": 2, "variant": variant, "gamma": 2.0}
    first, second = (
        compiled(lambda x, w: portable.tc_prefill(x, w, [[2, 2, 4]], **options)),
        compiled(lambda x, c, w: portable.tc_append(x, c, w, SEGMENTS, **options)),
    )
    wanted, kept = tc_prefill(x[:, :10], weights, [[2, 2, 4]], **options)
    out, cache = first(make(x[:, :10].copy()), native(make, weights))
    np.testing.assert_allclose(take(out), wanted, rtol=0, atol=1e-13)
    wanted, longer = tc_append(x[:, 10:], kept, weights, SEGMENTS, **options)
    out, cache = second(make(x[:, 10:].copy()), cache, native(make, weights))
    np.testing.assert_allclose(take(out), wanted, rtol=0, atol=1e-13)
    for actual, expected in zip(cache, longer, strict=True):
        np.testing.assert_allclose(take(actual), expected, rtol=0, atol=1e-13)
    assert isinstance(cache, TCCache)


@pytest.mark.parametrize(("length", "segments"), LAYOUTS)
@pytest.mark.parametrize("tail", ["continue", "eq5"])
def test_positions_and_masks_equal_the_reference(length, segments, tail):
    """Times, positions and all three masks are the same numbers."""
    np.testing.assert_array_equal(
        portable.temporal_position_ids(length, segments, tail=tail),
        reference.temporal_position_ids(length, segments, tail=tail),
    )
    np.testing.assert_array_equal(
        portable.dual_positions(length, segments, gamma=0.3, tail=tail),
        reference.dual_positions(length, segments, gamma=0.3, tail=tail),
    )
    for variant in VARIANTS:
        np.testing.assert_array_equal(
            portable.frame_block_causal_mask(length, segments, variant=variant),
            reference.frame_block_causal_mask(length, segments, variant=variant),
        )


def test_blocks_of_queries_change_nothing(monkeypatch):
    """Scoring three queries at a time gives what scoring all at once gives."""
    x, weights = draw(25)
    whole = portable.dual_rope_attention(x, weights, SEGMENTS, n_heads=2, return_weights=True)
    monkeypatch.setattr(portable, "BLOCK", 3)
    parts = portable.dual_rope_attention(x, weights, SEGMENTS, n_heads=2, return_weights=True)
    for left, right in zip(whole, parts, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-14)


@LIBRARIES
def test_float32_stays_float32(library):
    """The result has the dtype of the tokens."""
    make, take, _ = library()
    x, weights = draw(25)
    narrow = TCAttentionWeights(*(make(w.astype(np.float32)) for w in weights))
    out = portable.dual_rope_attention(make(x.astype(np.float32)), narrow, SEGMENTS, n_heads=2)
    assert take(out).dtype == np.float32
