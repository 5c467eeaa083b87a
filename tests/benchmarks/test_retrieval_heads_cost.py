"""How scoring and decoding grow with the length of the text: one row a head and step, so linearly; one thread.

``pytest tests/benchmarks/test_retrieval_heads_cost.py --benchmark-only`` prints times; running this file prints fitted
exponents beside the expected ones. Nothing is asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.interpretability.retrieval_heads import retrieval_hits
from refattn.transformer.forward import forward
from refattn.transformer.planted.retrieval_model import build_retrieval_model

SCORED = (1000, 4000, 16000)
CACHED = (1000, 2000, 4000)


def scoring(length):
    """Return a call that scores eight steps of sixteen heads over a text."""
    rng = np.random.default_rng(0)
    rows, generated = rng.random((8, 4, 4, length)), rng.integers(24, size=8)
    prompt = rng.integers(24, size=length)
    return lambda: retrieval_hits(rows, generated, prompt, (10, 16))


def decoding(length):
    """Return a call that runs one step of the planted model after a text, as if that had been read."""
    model, rng = build_retrieval_model(), np.random.default_rng(0)
    shape = (1, model.config.n_kv_heads, length, model.config.d_head)
    cache = [tuple(rng.standard_normal((2, *shape))) for _ in model.weights.blocks]
    return lambda: forward(model, [[2]], cache=cache).logits


@pytest.mark.parametrize("length", SCORED)
def test_scoring(benchmark, length):
    """Every head gets a score."""
    assert benchmark(scoring(length)).shape == (4, 4)


@pytest.mark.parametrize("length", CACHED)
def test_decoding(benchmark, length):
    """A step gives one token's logits."""
    assert benchmark(decoding(length)).shape == (1, 1, 24)


def exponent(kind, lengths):
    """Return the fitted power of the shortest of five processor times."""
    times = []
    for length in lengths:
        call, best = kind(length), np.inf
        for _ in range(5):
            begin = time.process_time()
            call()
            best = min(best, time.process_time() - begin)
        times.append(best)
    return np.polyfit(np.log(lengths), np.log(times), 1)[0]


def main():
    """Print the exponents."""
    for name, kind, lengths in (("scoring", scoring, SCORED), ("a decoding step", decoding, CACHED)):
        sizes = ", ".join(map(str, lengths))
        print(f"time of {name} over {sizes} tokens: exponent {exponent(kind, lengths):.2f} (towards 1)")


if __name__ == "__main__":
    main()
