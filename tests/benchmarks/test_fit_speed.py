"""How FIT's time grows with the length, and how much faster the portable twin is than the reference; one thread.

``pytest tests/benchmarks/test_fit_speed.py --benchmark-only`` prints times; running this file prints exponents and
ratios. Nothing is asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.backends.portable import fit as portable
from refattn.layers import fit as reference
from refattn.layers.fit_cost import fit_cost, fit_optimal_groups
from refattn.layers.fit_init import FITConfig, init_fit

WIDTH, LATENTS = 32, 4
GROUPS = {1024: 32, 4096: 64, 16384: 256}


def single(tree):
    if isinstance(tree, tuple):
        cast = [single(branch) for branch in tree]
        return type(tree)(*cast) if hasattr(tree, "_fields") else tuple(cast)
    return None if tree is None else tree.astype(np.float32)


def draw(length, layers="(1)1(1)"):
    """Return float32 features and weights of one head."""
    rng = np.random.default_rng(0)
    t = GROUPS[length]
    config = FITConfig(layers, length, t, LATENTS, WIDTH, WIDTH, 1, 1)
    x = rng.standard_normal((1, t, length // t, 3)).astype(np.float32)
    return x, single(init_fit(config, rng, in_dim=3))


@pytest.mark.parametrize("length", GROUPS)
@pytest.mark.parametrize("backend", [reference, portable], ids=["reference", "portable"])
def test_encode(benchmark, backend, length):
    """An encoder returns one row a token."""
    x, weights = draw(length)
    assert benchmark(backend.fit_encode, x, weights)[0].shape == (*x.shape[:3], WIDTH)


def fastest(function, repeats=5):
    """Return the shortest processor time of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def slope(lengths, values):
    """Return the exponent with which values grow."""
    return np.polyfit(np.log(lengths), np.log(values), 1)[0]


def attention_seconds(length):
    """Return the time of the scored pairs alone, local and global, with the best number of groups."""
    t = 2 ** round(np.log2(fit_optimal_groups(length, LATENTS)))
    rng = np.random.default_rng(0)
    q = rng.standard_normal((t, length // t, WIDTH)).astype(np.float32)
    latents = rng.standard_normal((1, t * LATENTS, WIDTH)).astype(np.float32)

    def attend(x):
        e = np.exp(x @ np.swapaxes(x, -1, -2) * np.float32(0.01))
        return e @ x / e.sum(-1, keepdims=True)

    return fastest(lambda: (attend(q), attend(latents)))


if __name__ == "__main__":
    lengths = 2 ** np.arange(14, 20)
    best = [fit_cost(length, fit_optimal_groups(length, LATENTS), LATENTS) for length in lengths]
    print(f"pairs:   exponent {slope(lengths, [c.local + c.wide for c in best]):.3f} (theory 4/3)")
    print(f"seconds: exponent {slope(lengths, list(map(attention_seconds, lengths))):.3f} for those pairs alone")
    for length in GROUPS:
        x, weights = draw(length)
        slow, fast = (fastest(lambda b=b: b.fit_encode(x, weights)) for b in (reference, portable))  # noqa: B023
        print(f"L = {length:6}: the portable twin takes {slow:.4f}/{fast:.4f} = 1/{slow / fast:.2f} of the reference")
