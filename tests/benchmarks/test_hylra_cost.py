"""What the search for a policy takes, and what reuse saves in counted work and in time; one thread.

``pytest tests/benchmarks/test_hylra_cost.py --benchmark-only`` prints times; running this file prints the search on 128
layers, measured work beside the formula, and fitted exponents. Nothing is asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.interventions.hylra import attend_full, attend_reuse, attention_cost, policy_max_min, policy_min_full
from refattn.interventions.hylra_hook import HyLRAHook

LENGTHS = (2**13, 2**15, 2**17)
KEPT, WIDTH = 64, 64


def table(n_layers):
    """Return a table of overlaps that fade with distance."""
    rng = np.random.default_rng(0)
    far = np.arange(n_layers) - np.arange(n_layers)[:, None]
    M = np.clip(0.95 ** np.maximum(far, 0) + 0.05 * rng.standard_normal(far.shape), 0, 1)
    return np.triu(M, 1) + np.eye(n_layers)


SEARCHES = {
    "min_full": lambda M: policy_min_full(M, threshold=0.7),
    "max_min": lambda M: policy_max_min(M, 40),
    "max_min, official": lambda M: policy_max_min(M, 40, method="lexicographic"),
}


def decode(length):
    """Return the arrays of a decode step of one head."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 1, 1, WIDTH))
    k, v = rng.standard_normal((2, 1, 1, length, WIDTH))
    return q, k, v


@pytest.mark.parametrize("search", SEARCHES)
def test_search(benchmark, search):
    """A policy for 128 layers."""
    assert benchmark(SEARCHES[search], table(128)).source.shape == (128,)


def step(kind, length):
    """Return the call of a decode step that attends to all keys, or to the kept ones."""
    q, k, v = decode(length)
    _, S = attend_full(q, k, v, n_keep=KEPT)
    return {"full": lambda: attend_full(q, k, v, n_keep=KEPT)[0], "reuse": lambda: attend_reuse(q, k, v, S)}[kind]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["full", "reuse"])
def test_decode(benchmark, kind, length):
    """One step attends to all keys, or to the kept ones."""
    assert benchmark(step(kind, length)).shape == (1, 1, 1, WIDTH)


def counted(policy, length, *, prefill):
    """Return the operations that a hook counts over all layers of one head."""
    rng = np.random.default_rng(0)
    hook = HyLRAHook(policy, KEPT)
    hook.begin(len(policy))
    Tq = length if prefill else 1
    mask = np.tri(Tq, length, length - Tq, dtype=bool)
    for layer in range(len(policy)):
        q = rng.standard_normal((1, 1, Tq, 4))
        hook.attend(layer, q, *rng.standard_normal((2, 1, 1, length, 4)), mask, 0.5)
    return 2 * sum(hook.multiply_adds)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_counted_work(benchmark, phase):
    """Counted operations are the formula's, to the last one."""
    policy, length = [0, 0, 2, 2, 2], 96
    found = benchmark(counted, policy, length, prefill=phase == "prefill")
    assert found == attention_cost(length, 4, 5, 2, KEPT, phase=phase).flops


def fastest(function, repeats=5):
    """Return the shortest processor time of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def main():
    """Print the search, the work and the exponents."""
    for name, search in SEARCHES.items():
        print(f"{name}, 128 layers: {fastest(lambda s=search: s(table(128)), 3):.3f} s")
    policy = [0, 1, 1, 1, 1, 5, 6, 6, 6, 9, 9, 9]
    for phase in ("decode", "prefill"):
        found = counted(policy, 512, prefill=phase == "prefill")
        own, dense = (attention_cost(512, 4, 12, C, KEPT, phase=phase).flops for C in (5, 12))
        print(f"{phase}, 512 keys, 5 of 12 layers full, 64 kept: {found} operations counted, {own} by the formula")
        print(f"{phase}: {found / dense:.3f} of dense")
    for kind, expected in (("full", "1 and more: all keys are ranked too"), ("reuse", "0")):
        slope = np.polyfit(np.log(LENGTHS), np.log([fastest(step(kind, T), 20) for T in LENGTHS]), 1)[0]
        print(f"{kind} decode, {LENGTHS[0]} to {LENGTHS[-1]} keys: exponent {slope:.2f}, expected {expected}")


if __name__ == "__main__":
    main()
