"""How compositions grow with and without pruning, and what computing a level at once saves; one thread.

``pytest tests/benchmarks/test_recat_speed.py --benchmark-only`` prints times; running this file prints slopes beside
the expected ones, and ratios. Nothing is asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.backends.portable import recat as portable
from refattn.contracts.recat import cases
from refattn.layers import recat_passes
from refattn.layers.recat_chart import exact_chart, pruned_chart

LENGTHS = (32, 64, 128, 256)
SIZES = {"exact": (8, 12, 16), "m = 2": (16, 32, 64)}


def drawn(n, window):
    """Return the arguments of one call: two layers over n tokens."""
    arrays, options = cases.cio_case(np.random.default_rng(0), "normal", {"B": 1, "n": n, "R": 2})
    if window is not None:
        options |= {"window": window, "order": np.random.default_rng(1).permutation(n - 1).tolist()}
    return [arrays["leaves"][0], arrays["layers"], arrays["heads"], arrays["empty_cell"]], options


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("way", ["reference", "portable"])
def test_layers(benchmark, way, name):
    """Both ways give the same vectors."""
    n = SIZES[name][0]
    arrays, options = drawn(n, None if name == "exact" else 2)
    calls = {"reference": recat_passes.cio_cells, "portable": portable.cio_cells}
    out = benchmark(calls[way], *arrays, **options)
    expected = recat_passes.cio_cells(*arrays, **options)
    np.testing.assert_allclose(out.outside_vectors, expected.outside_vectors, rtol=0, atol=1e-10)


def slope(lengths, counts):
    """Return the fitted power of n."""
    return np.polyfit(np.log(lengths), np.log(counts), 1)[0]


def test_compositions_grow_as_predicted():
    """The log-log slope is 1 with a window, up to the logarithm of short sentences, and 3 without."""
    rng = np.random.default_rng(0)
    thin = [np.mean([pruned_chart(rng.permutation(n - 1), 2).compositions for _ in range(6)]) for n in LENGTHS]
    exact = [exact_chart(n).compositions for n in LENGTHS[:2]]
    assert 0.95 <= slope(LENGTHS, thin) <= 1.15
    assert abs(slope(LENGTHS[:2], exact) - 3) < 0.1


def fastest(function, repeats=3):
    """Return the shortest of some runs, in seconds of processor time."""
    function()  # charts are kept
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def main():
    """Print slopes and ratios."""
    for window, expected in ((1, 1), (2, 1), (4, 1), (None, 3)):
        lengths = LENGTHS if window else LENGTHS[:2]
        rng = np.random.default_rng(0)
        counts = [
            np.mean([pruned_chart(rng.permutation(n - 1), window).compositions for _ in range(6)])
            if window
            else exact_chart(n).compositions
            for n in lengths
        ]
        name = f"m = {window}" if window else "exact"
        span = f"n={lengths[0]} to {lengths[-1]}"
        print(f"compositions, {span}, {name}: slope {slope(lengths, counts):.2f}, theory {expected}")
    for name, lengths in SIZES.items():
        for n in lengths:
            arrays, options = drawn(n, None if name == "exact" else 2)
            slow = fastest(lambda a=arrays, o=options: recat_passes.cio_cells(*a, **o))
            ratio = slow / fastest(lambda a=arrays, o=options: portable.cio_cells(*a, **o))
            print(f"two layers over n={n}, {name}: reference / a level at once = {ratio:.1f}")


if __name__ == "__main__":
    main()
