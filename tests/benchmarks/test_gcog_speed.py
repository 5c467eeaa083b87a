"""How fast gCOG is drawn, and how networks grow with the grid: self-attention as cells², looks from outside as cells.

``pytest tests/benchmarks/test_gcog_speed.py --benchmark-only`` prints times; running this file prints seconds for
10,000 samples of each depth and fitted exponents. Nothing is asserted on time.
"""

import time
from collections import deque

import numpy as np
import pytest

from refattn.backends.portable import gcog as portable
from refattn.benchmarks import gcog
from refattn.benchmarks.gcog_blocks import attend
from refattn.benchmarks.gcog_init import NetworkConfig, init_network

WIDTH = 16
PARTS = {1: "train", 5: "test_5", 7: "test_7"}


def draw(depth, count):
    """The last of ``count`` samples, drawn one by one and not kept."""
    name = "distractor" if depth == 1 else "productive"
    return deque(gcog.stream_split(name, PARTS[depth], stop=count), maxlen=1)[0]


@pytest.mark.parametrize("depth", PARTS)
def test_stream(benchmark, depth):
    """A hundred samples, solved."""
    assert benchmark(draw, depth, 100).task.depth == depth


@pytest.mark.parametrize("backend", [gcog, portable], ids=["reference", "portable"])
def test_dual_stream(benchmark, backend):
    """A batch through the dual-stream network; the portable twin reads the last tokens only."""
    rng = np.random.default_rng(0)
    weights = init_network("dual_stream", NetworkConfig(embed=WIDTH, hidden=WIDTH), rng)
    rule, stimulus = rng.standard_normal((8, 11, 8)), rng.standard_normal((8, 101, 3))
    assert benchmark(backend.dual_stream, rule, stimulus, weights).log_probs.shape == (8, 138)


def fastest(function, repeats=3):
    """Return the shortest processor time of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def slope(sizes, seconds):
    """Return the exponent with which seconds grow."""
    return np.polyfit(np.log(sizes), np.log(seconds), 1)[0]


def look_seconds(cells, *, from_rule):
    """Return the time in which eleven rule tokens, or all cells themselves, look at the cells."""
    rng = np.random.default_rng(0)
    w = init_network("rule_query_cross_attention", NetworkConfig(embed=WIDTH, hidden=WIDTH), rng).attention
    stimulus = rng.standard_normal((cells, WIDTH))
    x = rng.standard_normal((11, WIDTH)) if from_rule else stimulus
    return fastest(lambda: attend(x, stimulus, w, n_heads=1))


if __name__ == "__main__":
    for depth in PARTS:
        seconds = fastest(lambda depth=depth: draw(depth, 2000), 1) * 5
        print(f"depth {depth}: {seconds:5.1f} s for 10,000 samples (from 2,000)")
    begin = time.process_time()
    draw(5, 10_000)
    print(f"depth 5: {time.process_time() - begin:5.1f} s for 10,000 samples, all drawn")
    for name, from_rule, sizes, theory in (
        ("self-attention of", False, [1024, 2025, 4096], 2),
        ("eleven rule tokens' look at", True, [40_000, 90_000, 160_000], 1),
    ):
        found = slope(sizes, [look_seconds(cells, from_rule=from_rule) for cells in sizes])
        print(f"{name} {sizes} cells: exponent {found:.2f} (theory {theory})")
