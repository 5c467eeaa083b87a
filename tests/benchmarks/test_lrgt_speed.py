"""How cost and memory of LRGT's layers grow with the number of views, and how fast the portable twin is on NumPy.

``pytest tests/benchmarks/test_lrgt_speed.py --benchmark-only`` prints times; running this file prints fitted exponents
beside theory, and ratios. Nothing is asserted on time. Float32; times are processor times, so run it with one thread
(``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1``).
"""

import time
import tracemalloc

import numpy as np
import pytest

from refattn.backends.portable import lrgt as portable
from refattn.layers import lrgt as reference
from refattn.layers.lrgt import GroupAttentionWeights
from refattn.layers.lrgt_attention import attend

GRID = 14
VIEWS = (4, 8, 16, 32)
FEWER = (2, 4, 8)  # full range: 32 views would hold 39 million scores, several times over


def draw(views, width):
    """Return tokens and weights of one layer."""
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((4, width, width)) / np.sqrt(width)
    biases, kernels = rng.standard_normal((4, width)), rng.standard_normal((width, 3, 3))
    weights = (*maps, *biases, kernels, np.zeros(width))
    x = rng.standard_normal((views, GRID * GRID, width)).astype(np.float32)
    return x, GroupAttentionWeights(*(w.astype(np.float32) for w in weights))


def layer(module, views, width, heads, kind="long"):
    """Return a call of a layer: a kind of groups, or ``intra``."""
    x, w = draw(views, width)
    if kind == "intra":
        return lambda: module.intra_view_attention(x, w, num_heads=heads)
    return lambda: module.long_range_grouping_attention(x, w, num_views=views, num_heads=heads, kind=kind)


def core(views, kind, width=32):
    """Return a call of the attention alone, tokens already grouped."""
    x, _ = draw(views, width)
    grouped = x if kind == "intra" else reference.group_tokens(x, num_views=views, grid=GRID, kind=kind)
    return lambda: attend(grouped, grouped, grouped, num_heads=1)


def rest(views, width=32):
    """Return a call of the layer without attention: one place of one view a group."""
    x, w = draw(views, width)
    return lambda: reference.long_range_grouping_attention(x, w, num_views=1, num_heads=1, kind="token")


@pytest.mark.parametrize("module", [reference, portable], ids=["reference", "portable"])
@pytest.mark.parametrize("kind", ["long", "short", "token", "intra"])
def test_layer(benchmark, module, kind):
    """A layer over three views returns their tokens."""
    assert benchmark(layer(module, 3, 96, 12, kind)).shape == (3, GRID * GRID, 96)


def fastest(function, repeats=5):
    """Return the shortest processor time of some runs, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def peak(function):
    """Return the most memory that a run holds at once beyond what was there."""
    tracemalloc.start()
    function()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def exponent(measure, calls):
    """Return the slope of a measure over the number of views, in logarithms."""
    return np.polyfit(np.log(list(calls)), np.log([measure(call) for call in calls.values()]), 1)[0]


def main():
    """Print exponents and ratios."""
    print(f"exponents over V = {VIEWS} (full range: {FEWER}); g = 14, s = 7, D = 32, one head")
    print("the cost of a view has an exponent one lower")
    parts = {
        "attention, long range": (lambda V: core(V, "long"), VIEWS, 2),
        "attention, full range": (lambda V: core(V, "full"), FEWER, 2),
        "attention, inside views": (lambda V: core(V, "intra"), VIEWS, 1),
        "projections and signature": (rest, VIEWS, 1),
    }
    for name, (make, views, theory) in parts.items():
        calls = {V: make(V) for V in views}
        print(f"{name}: time {exponent(fastest, calls):.2f}, memory {exponent(peak, calls):.2f}, theory {theory}")
    for views in (3, 20):
        seconds = [fastest(layer(module, views, 768, 12), 3) for module in (reference, portable)]
        print(f"V = {views}, D = 768, H = 12: reference / portable twin = {seconds[0] / seconds[1]:.2f}")


if __name__ == "__main__":
    main()
