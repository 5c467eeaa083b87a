"""How much faster bi-level routing attention is than dense attention in NumPy, one thread, float32.

``pytest tests/benchmarks/test_biformer_speed.py --benchmark-only`` prints times; running this file prints ratios.
Nothing is asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.backends.portable.biformer import bi_level_routing_attention, region_routing, regional_attention
from refattn.layers import biformer as reference
from refattn.layers import biformer_routing as reference_parts
from refattn.primitives.regions import region_partition

SIZES = ((56, 14), (84, 21), (112, 28))  # side of the map, regions per side
CHANNELS, TOPK, BLOCK = 32, 4, 512


def by_region(x, n_win):
    """Cut (1, H, W, C) into (1, R, n, C)."""
    regions = region_partition(x, n_win=n_win)
    return regions.reshape(*regions.shape[:2], -1, regions.shape[-1])


def routed(q, k, v, n_win, attend=regional_attention, route=region_routing):
    """Route by region means and attend, one head."""
    q, k, v = (by_region(t, n_win) for t in (q, k, v))
    index, _ = route(q.mean(axis=2), k.mean(axis=2), topk=TOPK)
    return attend(q, k, v, index, num_heads=1)[0]


def dense(q, k, v):
    """Attend to everything, 512 queries at a time."""
    q, k, v = (t.reshape(-1, CHANNELS) for t in (q, k, v))
    out = np.empty_like(q)
    for i in range(0, len(q), BLOCK):
        s = (q[i : i + BLOCK] * np.float32(CHANNELS**-0.5)) @ k.T
        e = np.exp(s - s.max(axis=-1, keepdims=True))
        out[i : i + BLOCK] = (e / e.sum(axis=-1, keepdims=True)) @ v
    return out


def calls(side, n_win):
    """Return a call of each way to attend, and of the whole layer."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, side, side, CHANNELS)).astype(np.float32)
    shapes = (
        (CHANNELS, 3 * CHANNELS),
        (3 * CHANNELS,),
        (CHANNELS, CHANNELS),
        (CHANNELS,),
        (CHANNELS, 5, 5),
        (CHANNELS,),
    )
    weights = reference.BRAWeights(*(rng.standard_normal(shape).astype(np.float32) / 6 for shape in shapes))
    options = {"num_heads": 1, "n_win": n_win, "topk": TOPK}
    return {
        "dense attention": lambda: dense(q, k, v),
        "routed attention": lambda: routed(q, k, v, n_win),
        "routed, reference": lambda: routed(
            q, k, v, n_win, reference_parts.regional_attention, reference_parts.region_routing
        ),
        "whole layer": lambda: bi_level_routing_attention(q, weights, **options),
        "whole layer, reference": lambda: reference.bi_level_routing_attention(q, weights, **options),
    }


@pytest.mark.parametrize("name", list(calls(4, 2)))
@pytest.mark.parametrize(("side", "n_win"), SIZES[:2])
def test_attention(benchmark, side, n_win, name):
    """One pass over a map of side × side tokens."""
    benchmark(calls(side, n_win)[name])


def test_every_call_computes_what_it_says():
    """With every region chosen the routed calls give dense attention, so the ratios compare like with like."""
    rng = np.random.default_rng(1)
    q, k, v = rng.standard_normal((3, 1, 4, 4, CHANNELS)).astype(np.float32)
    out = routed(q, k, v, 2)  # four regions, topk = 4
    np.testing.assert_allclose(out, by_region(dense(q, k, v).reshape(q.shape), 2), atol=1e-5)


def seconds(call, repeats):
    """Shortest processor time of a call."""
    best = np.inf
    for _ in range(repeats):
        begin = time.process_time()
        call()
        best = min(best, time.process_time() - begin)
    return best


if __name__ == "__main__":
    for side, n_win in SIZES:
        spent = {name: seconds(call, 3 if side > 100 else 7) for name, call in calls(side, n_win).items()}
        base = spent["dense attention"]
        print(f"{side} x {side} tokens, S = {n_win}: dense attention takes {1e3 * base:.1f} ms")
        for name, time_taken in list(spent.items())[1:]:
            print(f"    {name:24} {1e3 * time_taken:8.2f} ms  {base / time_taken:6.1f} times faster")
