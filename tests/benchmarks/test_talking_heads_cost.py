"""How composition scores grow with the width of the model: linearly, for no (d, d) matrix is formed; one thread.

``pytest tests/benchmarks/test_talking_heads_cost.py --benchmark-only`` prints times; running this file prints fitted
exponents beside the expected ones. Nothing is asserted on time.
"""

import time
from itertools import product

import numpy as np
import pytest

from refattn.interpretability.talking_heads import composition_scores

WIDTHS = (512, 1024, 2048, 4096)
LAYERS, HEADS, E = 2, 4, 16


def weights(d):
    rng = np.random.default_rng(0)
    W_Q, W_K, W_V = rng.standard_normal((3, LAYERS, HEADS, d, E))
    return W_Q, W_K, W_V, rng.standard_normal((LAYERS, HEADS, E, d))


def whole_matrices(W_Q, W_K, W_V, W_O):
    """Return the scores of layer 0 with layer 1, every product of two heads written out."""
    scores = np.empty((HEADS, HEADS))
    sizes = [np.linalg.norm(W_V[0, h] @ W_O[0, h]) for h in range(HEADS)]
    for g, h in product(range(HEADS), repeat=2):
        heard = W_V[0, h] @ (W_O[0, h] @ W_Q[1, g]) @ W_K[1, g].T  # (d, d)
        scores[h, g] = np.linalg.norm(heard) / (sizes[h] * np.linalg.norm(W_Q[1, g] @ W_K[1, g].T))
    return scores


@pytest.mark.parametrize("d", WIDTHS)
def test_scores(benchmark, d):
    """Every pair gets a score, the one that whole matrices give."""
    drawn = weights(d)
    scores = benchmark.pedantic(composition_scores, args=drawn, rounds=2)
    if d == WIDTHS[0]:
        np.testing.assert_allclose(scores[0, :, 1], whole_matrices(*drawn), rtol=0, atol=1e-12)


def seconds(call, *arguments):
    """Return the shortest of three runs, in seconds of processor time."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        call(*arguments)
        times.append(time.process_time() - begin)
    return min(times)


def main():
    """Print the exponents."""
    for name, call, expected in (("by QR", composition_scores, 1), ("whole matrices", whole_matrices, 2)):
        times = [seconds(call, *weights(d)) for d in WIDTHS]
        power = np.polyfit(np.log(WIDTHS), np.log(times), 1)[0]
        print(f"{name}: time over widths {', '.join(map(str, WIDTHS))}: exponent {power:.2f} (expected {expected})")


if __name__ == "__main__":
    main()
