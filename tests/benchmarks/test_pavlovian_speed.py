"""What the fast simulation saves, what a chunk saves, and how reads grow with what is stored; one thread.

``pytest tests/benchmarks/test_pavlovian_speed.py --benchmark-only`` prints times; running this file prints ratios and
fitted exponents beside the expected ones. Nothing is asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.layers.pavlovian import linear_memory_read, pavlovian_attention, softmax_memory_read
from refattn.layers.pavlovian_chunked import pavlovian_attention_chunked
from theory.pavlovian.keys import cumulative_squared_error, uniform_on_sphere

COUNTS = (1000, 4000, 16000)


def every_count_from_one_gram(keys):
    """The error of every count, from one Gram matrix."""
    return cumulative_squared_error(keys)


def every_count_from_separate_memories(keys, values):
    """The same, by storing and reading back the first 1, 2, …, n pairs."""
    errors = []
    for n in range(1, len(keys) + 1):
        S = values[:n].T @ keys[:n]
        errors.append(np.mean(np.sum((linear_memory_read(S, keys[:n]) - values[:n]) ** 2, axis=-1)))
    return np.array(errors)


def stored(n, dim=32):
    """Return n pairs, 64 cues among them, and Hebb's strengths."""
    keys, values = uniform_on_sphere(np.random.default_rng(0), (2, n, dim))
    return keys, values, keys[:64], values.T @ keys


@pytest.mark.parametrize("way", ["gram", "memories"])
def test_interference_curve(benchmark, way):
    """Both ways give one error for each count."""
    keys, values = uniform_on_sphere(np.random.default_rng(0), (2, 200, 128))
    calls = {
        "gram": lambda: every_count_from_one_gram(keys),
        "memories": lambda: every_count_from_separate_memories(keys, values),
    }
    assert benchmark(calls[way]).shape == (200,)


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("memory", ["linear", "softmax"])
def test_read(benchmark, memory, n):
    """A read answers each cue."""
    keys, values, cues, S = stored(n)
    calls = {
        "linear": lambda: linear_memory_read(S, cues),
        "softmax": lambda: softmax_memory_read(keys, values, cues, 8.0),
    }
    assert benchmark(calls[memory]).shape == (64, 32)


def fastest(function, repeats=5):
    """Return the shortest of some runs, in seconds of processor time for a thousand calls."""
    times = []
    for _ in range(repeats):
        calls, begin = 0, time.process_time()
        while time.process_time() - begin < 0.05:
            function()
            calls += 1
        times.append((time.process_time() - begin) / calls)
    return min(times)


def exponent(seconds):
    """Return the fitted power of n."""
    return np.polyfit(np.log(COUNTS), np.log(seconds), 1)[0]


def main():
    """Print ratios and exponents."""
    for n, dim in ((200, 128), (400, 512)):
        keys, values = uniform_on_sphere(np.random.default_rng(0), (2, n, dim))
        slow = fastest(lambda k=keys, v=values: every_count_from_separate_memories(k, v), 2)
        ratio = slow / fastest(lambda k=keys: every_count_from_one_gram(k))
        print(f"every count to n={n}, d={dim}: separate memories / one Gram matrix = {ratio:.0f}")
    reads = {"linear": [], "softmax": []}
    for n in COUNTS:
        keys, values, cues, S = stored(n)
        reads["linear"].append(fastest(lambda S=S, q=cues: linear_memory_read(S, q)))
        reads["softmax"].append(fastest(lambda k=keys, v=values, q=cues: softmax_memory_read(k, v, q, 8.0)))
    for name, expected in (("linear", 0), ("softmax", 1)):
        print(f"read, n={COUNTS[0]} to {COUNTS[-1]}: {name} exponent {exponent(reads[name]):.2f}, expected {expected}")
    q, k, v = uniform_on_sphere(np.random.default_rng(0), (3, 1024, 64))
    loop = fastest(lambda: pavlovian_attention(q, k, v, rule="delta"), 2)
    chunks = fastest(lambda: pavlovian_attention_chunked(q, k, v, rule="delta", chunk_size=64), 2)
    print(f"delta attention, n=1024, d=64: loop / chunks of 64 = {loop / chunks:.0f}")


if __name__ == "__main__":
    main()
