"""The portable twin of rat against the references, on every array library that is installed."""

from functools import cache

import numpy as np
import pytest

from refattn.backends.portable import rat as portable
from refattn.layers.rat import RATWeights, rat_layer
from refattn.layers.rat_attention import chunk_attention
from refattn.layers.rat_baselines import AttentionWeights, RNNWeights, causal_attention_layer, rnn_layer
from refattn.layers.rat_decode import rat_init_cache, rat_prefill, rat_step
from refattn.primitives.scan import gated_scan

# B, T, D, H, G, L
SIZES = [(2, 12, 16, 4, 2, 4), (1, 1, 8, 2, 2, 1), (0, 4, 8, 2, 1, 2), (2, 0, 8, 2, 2, 3), (3, 15, 24, 6, 3, 5)]


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


def tree(function, value):
    if isinstance(value, tuple):
        return type(value)(*(tree(function, branch) for branch in value))
    return function(value) if isinstance(value, np.ndarray) else value


@cache
def prepared(library, function, **options):
    """Return the function on this library, compiled once."""
    return library()[2](lambda *arrays: function(*arrays, **options))


def agree(library, function, reference, *arrays, atol=1e-12, **options):
    """Run the twin, compiled where the library compiles, and the reference on the same arrays."""
    make, take, _ = library()
    expected = reference(*arrays, **options)
    actual = prepared(library, function, **options)(*(tree(make, a) for a in arrays))
    if not isinstance(expected, tuple):
        expected, actual = (expected,), (actual,)
    for wanted, got in zip(expected, actual, strict=True):
        if isinstance(wanted, int):
            assert int(got) == wanted
            continue
        taken = take(got)
        assert taken.shape == wanted.shape
        assert taken.dtype == wanted.dtype
        np.testing.assert_allclose(taken, wanted, rtol=0, atol=atol)
    return expected


def draw(sizes, dtype=np.float64):
    batch, length, width, heads, groups, chunk_size = sizes
    rng = np.random.default_rng(sum(sizes))
    weights = RATWeights(
        rng.standard_normal((width, 3 * width + 2 * groups * (width // heads))) / np.sqrt(width),
        rng.standard_normal(width),
        rng.standard_normal((width, width)) / np.sqrt(width),
        1.0 + 0.1 * rng.standard_normal(width),
    )
    x = rng.standard_normal((batch, length, width))
    options = {"num_heads": heads, "num_groups": groups, "chunk_size": chunk_size}
    return tree(lambda a: a.astype(dtype), x), tree(lambda a: a.astype(dtype), weights), options


@LIBRARIES
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("base", [50.0, None])
def test_layer_equals_the_reference(library, sizes, base):
    """The layer agrees to rounding, with and without positions."""
    x, weights, options = draw(sizes)
    agree(library, portable.rat_layer, rat_layer, x, weights, **options, rope_base=base, norm_eps=1e-3)


@LIBRARIES
@pytest.mark.parametrize(("sizes", "cut"), [(SIZES[0], 1), (SIZES[1], 0), (SIZES[2], 3), (SIZES[3], 0), (SIZES[4], 0)])
def test_prefill_and_steps_equal_the_reference(library, sizes, cut):
    """Prefills of whole and partial chunks, and steps from them with a traced length, agree in all of the state."""
    x, weights, options = draw(sizes)
    prompt = x[:, : max(x.shape[1] - cut, 0)]
    max_len = x.shape[1] + 3
    agree(library, portable.rat_prefill, rat_prefill, x, weights, **options, prompt_len=prompt.shape[1])
    state = agree(library, portable.rat_prefill, rat_prefill, prompt, weights, **options, max_len=max_len)
    for t in range(2):
        token = np.random.default_rng(t).standard_normal((x.shape[0], 1, x.shape[2]))
        state = agree(library, portable.rat_step, rat_step, token, weights, state.cache, **options)


@LIBRARIES
def test_steps_from_an_empty_cache_equal_the_reference(library):
    """The first chunk is not special."""
    x, weights, options = draw(SIZES[0])
    cache = rat_init_cache(2, 12, 16, num_heads=4, chunk_size=4)
    for t in range(5):
        cache = agree(library, portable.rat_step, rat_step, x[:, t : t + 1], weights, cache, **options).cache


@LIBRARIES
@pytest.mark.parametrize(
    ("length", "chunk_size"), [(0, 3), (0, None), (1, 1), (2, None), (7, 5), (16, 4), (33, None), (33, 16), (9, 40)]
)
def test_scan_equals_the_reference(library, length, chunk_size):
    """The odd-even reduction agrees with the loop for every length, with and without an initial state."""
    rng = np.random.default_rng(length)
    gate, value = rng.random((2, length, 3)), rng.standard_normal((2, length, 3))
    start = rng.standard_normal((2, 3))
    agree(library, portable.gated_scan, gated_scan, gate, value, chunk_size=chunk_size)
    agree(
        library,
        lambda g, v, s, **options: portable.gated_scan(g, v, initial_state=s, **options),
        lambda g, v, s, **options: gated_scan(g, v, initial_state=s, **options),
        *(gate, value, start),
        chunk_size=chunk_size,
    )


@LIBRARIES
@pytest.mark.parametrize("shape", [(1, 2, 12, 4), (2, 1, 0, 4), (1, 1, 600, 2)], ids=str)
def test_attention_and_its_weights_equal_the_reference(library, shape):
    """Outputs and weights agree, across the borders of blocks too."""
    q, k, v = np.random.default_rng(0).standard_normal((3, *shape))
    options = {"chunk_size": 3, "position_offset": 5, "return_weights": True}
    agree(library, portable.chunk_attention, chunk_attention, q, k, v, **options)


@LIBRARIES
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_baselines_equal_the_reference(library, sizes):
    """The recurrent layer with its state, and attention with and without a window."""
    x, full, options = draw(sizes)
    width = x.shape[2]
    rnn = RNNWeights(full.w_in[:, : 3 * width], *full[1:])
    agree(library, portable.rnn_layer, rnn_layer, x, rnn, return_state=True)
    weights = AttentionWeights(rnn.w_in, rnn.w_out, rnn.norm)
    for window in (None, 3, 100):
        settings = {"num_heads": options["num_heads"], "window": window}
        agree(library, portable.causal_attention_layer, causal_attention_layer, x, weights, **settings)


@pytest.mark.parametrize("window", [None, 300])
def test_attention_blocks_meet(window):
    """Past one block of queries the baseline still agrees."""
    x, full, _ = draw((1, 600, 8, 2, 2, 1))
    weights = AttentionWeights(full.w_in[:, :24], full.w_out, full.norm)
    agree(numpy, portable.causal_attention_layer, causal_attention_layer, x, weights, num_heads=2, window=window)


@LIBRARIES
def test_float32_stays_float32(library):
    """Results are float32 and within a few roundings of the float32 reference."""
    x, weights, options = draw(SIZES[0], np.float32)
    agree(library, portable.rat_layer, rat_layer, x, weights, **options, atol=5e-6)


@pytest.mark.parametrize("value", [0.0, -800.0, 800.0])
def test_gates_have_a_derivative_everywhere(value):
    """Autodiff through saturated and exactly centred gates gives numbers, and σ′(0) = 1/4."""
    library = pytest.importorskip("torch")
    x = library.full((1,), value, dtype=library.float64, requires_grad=True)
    portable._sigmoid(x).sum().backward()

    assert float(x.grad) == (0.25 if value == 0 else 0.0)
