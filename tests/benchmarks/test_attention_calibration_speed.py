"""How attention calibration grows with the length, what it adds to attention, and what the twin gains; one thread.

``pytest tests/benchmarks/test_attention_calibration_speed.py --benchmark-only`` prints times; running this file prints
fitted exponents beside the expected ones, and ratios. Nothing is asserted on time. Caches bend the exponents: small
maps fit into them, large ones do not.
"""

import time

import numpy as np
import pytest

from refattn.backends.portable import attention_calibration as portable
from refattn.interventions import attention_calibration as reference
from refattn.primitives.masks import causal_mask
from refattn.primitives.softmax import softmax

LENGTHS = (128, 256, 512, 1024)
WIDTH = 64


def maps(length, n_heads=2):
    """Return attention maps with a sink in every eighth column."""
    logits = np.random.default_rng(0).standard_normal((1, n_heads, length, length))
    logits[..., ::8] += 3.0
    return softmax(logits, where=causal_mask(length, length))


@pytest.mark.parametrize("way", [reference, portable], ids=["reference", "portable"])
@pytest.mark.parametrize("length", LENGTHS)
def test_act(benchmark, way, length):
    """The maps keep their shape."""
    weights = maps(length)
    assert benchmark(way.act, weights).shape == weights.shape


def fastest(function, repeats=7):
    """Return the shortest of some runs, in seconds of processor time."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def main():
    """Print exponents and ratios."""
    drawn = [maps(length) for length in LENGTHS]
    for name, way in (("reference", reference), ("portable", portable)):
        for form, options in (("act", {}), ("act, causal", {"causal": True})):
            seconds = [fastest(lambda w=w, f=way.act, o=options: f(w, **o)) for w in drawn]
            power = np.polyfit(np.log(LENGTHS), np.log(seconds), 1)[0]
            print(f"{name} {form}, T = {LENGTHS[0]} to {LENGTHS[-1]}: exponent {power:.2f}, expected 2")
    weights, rng = drawn[-1], np.random.default_rng(1)
    q, k, v = rng.standard_normal((3, 1, 2, LENGTHS[-1], WIDTH))
    mask = causal_mask(LENGTHS[-1], LENGTHS[-1])
    attention = fastest(lambda: softmax(q @ np.swapaxes(k, -1, -2) / WIDTH**0.5, where=mask) @ v)
    ours, other = fastest(lambda: reference.act(weights)), fastest(lambda: portable.act(weights))
    print(f"T = {LENGTHS[-1]}, d = {WIDTH}: act / attention = {ours / attention:.2f}, checks included")
    print(f"T = {LENGTHS[-1]}: reference / portable = {ours / other:.2f}")


if __name__ == "__main__":
    main()
