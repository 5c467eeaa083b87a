"""What an occlusion map costs: passes of the model grow with the masks, memory with the batch.

``pytest tests/benchmarks/test_cross_attention_explanation_cost.py --benchmark-only`` prints times; running this file
prints fitted exponents beside theory. Nothing is asserted on time. Times are processor times, so run it with one thread
(``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1``).
"""

import time
import tracemalloc

import numpy as np
import pytest

from refattn.interpretability.cross_attention_explanation import planted_speech, spes

SPEECH = planted_speech()


def saliency(n_masks, batch=256):
    """Return a map of the planted speech by masks of single elements."""
    rng = np.random.default_rng(0)
    return spes(SPEECH.model, SPEECH.features, None, rng, n_masks, batch=batch)


@pytest.mark.parametrize("kind", ["continuous", "time", "frequency"])
def test_occlusion(benchmark, kind):
    """Time 512 masks of each kind."""
    rng = np.random.default_rng(0)
    benchmark.group = "occlusion saliency, 512 masks"
    benchmark(lambda: spes(SPEECH.model, SPEECH.features, None, rng, 512, kind=kind))


def seconds(n_masks):
    """Return the shortest processor time of a few maps."""
    best = np.inf
    for _ in range(3):
        begin = time.process_time()
        saliency(n_masks)
        best = min(best, time.process_time() - begin)
    return best


def peak(batch):
    """Return the most bytes that a map of 2048 masks holds at once."""
    tracemalloc.start()
    saliency(2048, batch)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def exponent(cost, small, large):
    """Return the power with which a cost grows."""
    return np.log(cost(large) / cost(small)) / np.log(large / small)


if __name__ == "__main__":
    print(f"time by masks K:       exponent {exponent(seconds, 1024, 8192):.2f}, theory 1")
    print(f"memory by batch:       exponent {exponent(peak, 128, 1024):.2f}, theory 1")
    print(f"memory by masks K:     {peak(256) / 2**20:.1f} MiB for 2048 masks in batches of 256")
