"""How transport grows with the number of tokens, and how much faster the portable twins are; one thread.

``pytest tests/benchmarks/test_context_aware_speed.py --benchmark-only`` prints times; running this file prints fitted
exponents beside the expected ones, and ratios. Nothing is asserted on time.
"""

import time
from functools import partial

import numpy as np
import pytest

from refattn.backends.portable import context_aware as portable
from refattn.layers import context_aware as reference
from refattn.layers.context_aware import ContextAttentionWeights, global_context
from refattn.primitives.optimal_transport import emd_plan, pairwise_sq_cost

COUNTS = (256, 512, 1024)
STEPS = 10


def problem(n):
    """Return two clouds of n points with equal masses, and the cost between them."""
    x, y = np.random.default_rng(0).standard_normal((2, n, 8))
    mass = np.full(n, 1 / n)
    return mass, mass, pairwise_sq_cost(x, y, normalize="max")


def layer(n=256, width=64):
    """Return tokens, weights and their global context."""
    rng = np.random.default_rng(0)

    def matrix(*shape):
        return rng.standard_normal(shape) / np.sqrt(width)

    plain = [part for _ in range(3) for part in (matrix(width, width), matrix(width))]
    gates = [part for _ in range(2) for part in (matrix(width), matrix(width), matrix())]
    context = [matrix(width, width), matrix(width, width), *gates]
    x = rng.standard_normal((4, n, width))
    return x, ContextAttentionWeights(*plain, *context, matrix(width, width), matrix(width)), global_context(x)


def steps(backend, n):
    a, b, cost = problem(n)
    return lambda: backend.sinkhorn_plan(a, b, cost, 0.1, tol=None, max_iter=STEPS)


def attend(backend):
    x, weights, context = layer()
    return lambda: backend.context_aware_attention(x, weights, context, n_heads=4)


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("backend", [reference, portable], ids=["reference", "portable"])
def test_sinkhorn(benchmark, backend, n):
    """Ten steps give a plan."""
    assert benchmark(steps(backend, n)).shape == (n, n)


@pytest.mark.parametrize("n", COUNTS)
def test_emd(benchmark, n):
    """The exact plan has n entries that are not 0."""
    assert np.count_nonzero(benchmark(emd_plan, *problem(n))) == n


@pytest.mark.parametrize("backend", [reference, portable], ids=["reference", "portable"])
def test_attention(benchmark, backend):
    """The layer returns a token for each."""
    assert benchmark(attend(backend)).shape == (4, 256, 64)


def fastest(function, repeats=3):
    """Return the shortest of some runs, in seconds of processor time."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def exponent(seconds):
    """Return the fitted power of n."""
    return np.polyfit(np.log(COUNTS), np.log(seconds), 1)[0]


def main():
    """Print exponents and ratios."""
    sinkhorn = [fastest(steps(reference, n)) for n in COUNTS]
    exact = [fastest(partial(emd_plan, *problem(n))) for n in COUNTS]
    span = f"n = {COUNTS[0]} to {COUNTS[-1]}"
    print(f"Sinkhorn, a step, {span}: exponent {exponent(sinkhorn):.2f}, expected 2")
    print(f"EMD by assignment, {span}: exponent {exponent(exact):.2f}, expected about 3 at worst")
    twin = [fastest(steps(portable, n)) for n in COUNTS]
    for n, slow, fast in zip(COUNTS, sinkhorn, twin, strict=True):
        print(f"{STEPS} Sinkhorn steps, n = {n}: reference / portable = {slow / fast:.2f}")
    ratio = fastest(attend(reference), 5) / fastest(attend(portable), 5)
    print(f"context-aware attention, N = 256, D = 64: reference / portable = {ratio:.2f}")


if __name__ == "__main__":
    main()
