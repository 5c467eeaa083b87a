"""How the cost of path patching grows: passes and time over senders, over prompts; one thread.

``pytest tests/benchmarks/test_circuit_reuse_cost.py --benchmark-only`` prints times; running this file prints fitted
exponents beside the expected ones. Nothing is asserted on time.
"""

import time
from unittest import mock

import numpy as np
import pytest

from refattn.interpretability import circuit_reuse
from refattn.transformer.config import TransformerConfig
from refattn.transformer.weights import random_transformer

LAYERS, HEADS = 12, 4
PLACES = (1, 3, 7, 11)
BATCHES = (8, 16, 32, 64)


def model():
    config = TransformerConfig(
        *("gpt2", LAYERS, 64, HEADS, HEADS, 16, 64, 50, 32, "layer", 1e-5, "gelu_new", False, "learned", None),
        attn_scale=(0.25,) * LAYERS,
        window=(None,) * LAYERS,
    )
    return random_transformer(config, np.random.default_rng(0))


def prompts(batch=4):
    rng = np.random.default_rng(1)
    clean, corrupt = rng.integers(50, size=(2, batch, 24))
    return clean, corrupt, np.stack([rng.permutation(50)[:2] for _ in range(batch)])


def patched(place, batch=4):
    """Patch into the queries of one head: every head up to its layer is a sender, but for itself."""
    return circuit_reuse.path_patch(model(), *prompts(batch), [(place, 0)], component="q")


@pytest.mark.parametrize("place", PLACES)
def test_a_matrix_takes_two_passes_a_sender(benchmark, place):
    """2 + 2n forward passes for n senders."""
    with mock.patch.object(circuit_reuse, "forward", wraps=circuit_reuse.forward) as passes:
        benchmark.pedantic(patched, args=(place,), rounds=1)
    assert passes.call_count == 2 + 2 * ((place + 1) * HEADS - 1)


def seconds(call):
    """Return the shorter of two runs, in seconds of processor time."""
    times = []
    for _ in range(2):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def exponent(sizes, times):
    """Return the fitted power."""
    return np.polyfit(np.log(sizes), np.log(times), 1)[0]


def main():
    """Print the exponents."""
    senders = [(place + 1) * HEADS - 1 for place in PLACES]
    over_senders = exponent(senders, [seconds(lambda p=place: patched(p)) for place in PLACES])
    over_prompts = exponent(BATCHES, [seconds(lambda b=batch: patched(1, b)) for batch in BATCHES])
    print(f"time of one matrix over {', '.join(map(str, senders))} senders: exponent {over_senders:.2f} (expected 1)")
    print(f"time over {', '.join(map(str, BATCHES))} prompts: exponent {over_prompts:.2f} (towards 1)")


if __name__ == "__main__":
    main()
