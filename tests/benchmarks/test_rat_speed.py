"""How much faster RAT is than attention in NumPy, one thread, float32: whole layers, and single decoding steps.

``pytest tests/benchmarks/test_rat_speed.py --benchmark-only`` prints times; running this file prints ratios. Nothing is
asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.backends.portable.rat import causal_attention_layer, rat_layer, rat_step, rnn_layer
from refattn.layers.rat import RATWeights
from refattn.layers.rat_baselines import AttentionWeights, RNNWeights
from refattn.layers.rat_decode import RATCache

HEADS, HEAD_DIM, CHUNK = 2, 64, 16
WIDTH = HEADS * HEAD_DIM
LENGTHS = (2048, 4096, 8192)


def draw(length):
    """Return activations and the weights of a RAT layer with one group a head."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, length, WIDTH)).astype(np.float32)
    w_in = rng.standard_normal((WIDTH, 5 * WIDTH)) / np.sqrt(WIDTH)
    w_out = rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
    return x, RATWeights(*(w.astype(np.float32) for w in (w_in, rng.standard_normal(WIDTH), w_out, np.ones(WIDTH))))


def prefills(length):
    """Return a call of each layer over a whole sequence."""
    x, w = draw(length)
    first, norm = w.w_in[:, : 3 * WIDTH], w.norm
    return {
        "attention": lambda: causal_attention_layer(x, AttentionWeights(first, w.w_out, norm), num_heads=HEADS),
        "rat": lambda: rat_layer(x, w, num_heads=HEADS, num_groups=HEADS, chunk_size=CHUNK),
        "rnn": lambda: rnn_layer(x, RNNWeights(first, w.gate_bias, w.w_out, norm)),
    }


def decodings(length, batch=4, heads=4):
    """Return a decoding step of RAT, and one whose chunks hold a token each: as many slots as attention would have."""
    rng = np.random.default_rng(0)
    width = heads * HEAD_DIM
    shapes = ((width, 5 * width), (width,), (width, width), (width,))
    weights = RATWeights(*(rng.standard_normal(shape).astype(np.float32) / 16 for shape in shapes))
    x = rng.standard_normal((batch, 1, width)).astype(np.float32)

    def step(chunk_size):
        memory = rng.standard_normal((2, batch, heads, length // chunk_size, HEAD_DIM)).astype(np.float32)
        last = np.zeros((2, batch, width), np.float32)
        cache = RATCache(memory[0], memory[1], last[0], last[1], length - 1)
        return lambda: rat_step(x, weights, cache, num_heads=heads, num_groups=heads, chunk_size=chunk_size)

    return {"attention": step(1), "rat": step(CHUNK)}


@pytest.mark.parametrize("layer", ["attention", "rat", "rnn"])
@pytest.mark.parametrize("length", LENGTHS)
def test_prefill(benchmark, layer, length):
    """A layer over a whole sequence returns one row a token."""
    assert benchmark(prefills(length)[layer]).shape == (1, length, WIDTH)


@pytest.mark.parametrize("layer", ["attention", "rat"])
def test_decode(benchmark, layer):
    """A step at position 4096 returns one row."""
    assert benchmark(decodings(4096)[layer]).out.shape == (4, 1, 4 * HEAD_DIM)


def fastest(function, repeats=3):
    """Return the shortest of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def main():
    """Print the ratios."""
    for length in LENGTHS:
        seconds = {name: fastest(call) for name, call in prefills(length).items()}
        ratios = {name: seconds["attention"] / seconds[name] for name in ("rat", "rnn")}
        print(f"prefill T={length}: attention / RAT-16 = {ratios['rat']:.1f}, attention / RNN = {ratios['rnn']:.1f}")
    for length in (1024, 4096, 16384):
        calls = decodings(length)
        ratio = fastest(calls["attention"], 10) / fastest(calls["rat"], 10)
        print(f"decode T={length}: step with a slot a token / step of RAT-16 = {ratio:.1f}")


if __name__ == "__main__":
    main()
