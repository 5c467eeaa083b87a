"""How the variants' time grows with length and batch, and how much faster the portable twin is; one thread.

``pytest tests/benchmarks/test_deconstructed_speed.py --benchmark-only`` prints times; running this file prints
exponents beside those of the theory, and ratios. Nothing is asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.backends.portable import deconstructed as portable
from refattn.layers import deconstructed, deconstructed_recurrent
from refattn.layers.deconstructed import VARIANTS, attention_map
from refattn.layers.deconstructed_cost import flops
from refattn.layers.deconstructed_init import init_attention
from refattn.layers.deconstructed_recurrent import approximate_recurrent, non_approximate_recurrent

WIDTH, HEADS, LENGTH = 64, 4, 512
NEEDS = {"random_fixed": "reference", "text_fixed": "reference", "static_emb": "static"}


def draw(length=LENGTH, batch=2, width=WIDTH):
    """Return a hidden state, weights, and another stream to make maps of."""
    rng = np.random.default_rng(0)
    hidden, other = rng.standard_normal((2, batch, length, width))
    return hidden, init_attention(rng, width), other


def layer(module, variant, hidden, weights, other):
    """Return a call of one layer."""
    source = other[0] if variant.endswith("fixed") else other
    extra = {NEEDS[variant]: source} if variant in NEEDS else {}
    return lambda: module.apply_attention(hidden, weights, variant=variant, n_heads=HEADS, **extra)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("module", [deconstructed, portable], ids=["reference", "portable"])
def test_layer(benchmark, module, variant):
    """A layer returns one row a token."""
    assert benchmark(layer(module, variant, *draw())).shape == (2, LENGTH, WIDTH)


def fastest(function, repeats=5):
    """Return the shortest processor time of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def exponent(sizes, values):
    """Return the fitted power with which values grow."""
    return np.polyfit(np.log(sizes), np.log(values), 1)[0]


def print_lengths():
    """Print how maps and recurrences grow with the length."""
    lengths, seconds = (1024, 2048, 4096), {"standard": [], "approximate": [], "non_approximate": []}
    for length in lengths:
        hidden, weights, _ = draw(length, batch=1, width=8)
        q, k, v = np.random.default_rng(0).standard_normal((3, 1, length, 8))
        calls = {
            "standard": lambda h=hidden, w=weights: attention_map(h, w, variant="standard", n_heads=1),
            "approximate": lambda q=q, k=k, v=v: approximate_recurrent(q, k, v),
            "non_approximate": lambda q=q, k=k, v=v: non_approximate_recurrent(q, k, v),
        }
        for name, call in calls.items():
            seconds[name].append(fastest(call, 3))
    for name, found in seconds.items():
        theory = exponent((2**20, 2**21), [flops(name, batch=1, length=n, width=8) for n in (2**20, 2**21)])
        print(f"{name:>15}: exponent in L {exponent(lengths, found):.2f} (theory {theory:.2f})")


def print_batches():
    """Print how the time for a map grows with the batch: not at all where the map is fixed."""
    batches = (2, 4, 8)
    for variant, theory in (("standard", 1), ("random_fixed", 0)):
        found = []
        for batch in batches:
            hidden, weights, other = draw(batch=batch)
            source = other[0] if variant == "random_fixed" else hidden
            found.append(fastest(lambda s=source, w=weights, v=variant: attention_map(s, w, variant=v, n_heads=HEADS)))
        print(f"{variant:>15}: exponent of the map in b {exponent(batches, found):.2f} (theory {theory})")


def print_ratios():
    """Print how much faster the portable twin is."""
    for variant in VARIANTS:
        inputs = draw()
        slow, fast = (fastest(layer(module, variant, *inputs)) for module in (deconstructed, portable))
        print(f"{variant:>15}: reference / portable = {slow / fast:.2f}")
    q, k, v = np.random.default_rng(0).standard_normal((3, 4, LENGTH, 16))
    for name in ("approximate_recurrent", "non_approximate_recurrent"):
        loop, chunks = (getattr(module, name) for module in (deconstructed_recurrent, portable))
        slow, fast = (fastest(lambda f=f: f(q, k, v), 3) for f in (loop, chunks))
        print(f"{name}: reference / portable = {slow / fast:.1f}")
    hidden, weights, other = draw()
    whole = fastest(layer(deconstructed, "random_fixed", hidden, weights, other))
    A = attention_map(other[0], weights, variant="random_fixed", n_heads=HEADS)
    kept = fastest(lambda: deconstructed.attend(A, hidden, weights))
    print(f"a fixed layer / one whose map is kept = {whole / kept:.1f}")


if __name__ == "__main__":
    print_lengths()
    print_batches()
    print_ratios()
