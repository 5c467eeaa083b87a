"""How fast blocked attention is in NumPy beside the plain expression and PyTorch's fused kernel, float32.

``pytest tests/benchmarks/test_attention_speed.py --benchmark-only`` prints times; running this file prints ratios that
were measured in one run, on one thread and on two. Nothing is asserted on time.
"""

import time
from contextlib import ExitStack

import numpy as np
import pytest

from refattn.backends.portable.attention import attention, attention_vjp

HEADS, DIM = 8, 64
CASES = {  # queries, keys, causal
    "1024": (1024, 1024, False),
    "1024 causal": (1024, 1024, True),
    "1024, large logits": (1024, 1024, False),
    "4096": (4096, 4096, False),
    "4096 causal": (4096, 4096, True),
    "1 query, 16384 keys": (1, 16384, False),
}


def draw(name):
    """Return queries, keys and values of one batch entry; large logits need the running maximum."""
    queries, keys, _ = CASES[name]
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, HEADS, n, DIM), dtype=np.float32) for n in (queries, keys, keys))
    return (8 * q if "large" in name else q), k, v


def plain(q, k, v, *, causal=False):
    """Softmax(q kᵀ scale) v as one writes it, with its temporaries."""
    scores = q @ k.swapaxes(-1, -2) * np.float32(DIM**-0.5)
    if causal:
        scores = np.where(np.tri(q.shape[-2], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


def products(q, k, v):
    """The two matrix products alone: no expression in NumPy that scores every pair can be faster."""
    return q @ k.swapaxes(-1, -2) @ v


def fused(q, k, v, *, causal=False):
    """PyTorch's own kernel on the same arrays."""
    import torch

    tensors = map(torch.from_numpy, (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal).numpy()


def contenders(name):
    """Return the three calls for a case."""
    arrays, causal = draw(name), CASES[name][2]
    return {
        "blocked": lambda: attention(*arrays, causal=causal).out,
        "plain": lambda: plain(*arrays, causal=causal),
        "torch": lambda: fused(*arrays, causal=causal),
        "products": lambda: products(*arrays),
    }


@pytest.mark.parametrize("contender", ["blocked", "plain", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_forward(benchmark, name, contender):
    """One call of attention, and its agreement with the plain expression."""
    if contender == "torch":
        pytest.importorskip("torch")
    calls = contenders(name)

    out = benchmark(calls[contender])

    np.testing.assert_allclose(out, calls["plain"](), rtol=0, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_backward(benchmark, causal):
    """One vector-Jacobian product in recompute form."""
    arrays = draw("1024")

    found = benchmark(lambda: attention_vjp(*arrays, arrays[0], causal=causal))

    assert found.dq.shape == arrays[0].shape


def best(calls, repeats):
    """Return the least time of each call, all taken in turn so that a busy machine is unfair to none."""
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: min(measured) for name, measured in times.items()}


def on_threads(count):
    """Limit BLAS and PyTorch to ``count`` threads."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    limits = ExitStack()
    limits.enter_context(threadpool_limits(count))
    return limits


def ratios(repeats=7):
    """Print how many times faster the blocked form is than the plain expression, PyTorch, and the products alone."""
    for threads in (1, 2):
        print(f"{threads} thread{'s' * (threads > 1)}, {HEADS} heads of {DIM} channels, float32")
        for name in CASES:
            with on_threads(threads):
                found = best(contenders(name), repeats if "4096" not in name else 3)
            others = [other for other in found if other != "blocked"]
            against = ", ".join(f"{found[other] / found['blocked']:5.2f}x {other}" for other in others)
            print(f"  {name:22} {1e3 * found['blocked']:8.2f} ms   {against}")


if __name__ == "__main__":
    ratios()
