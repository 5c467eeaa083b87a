"""How the cost of finding and weighing sinks grows with the length of a text, one thread.

``pytest tests/benchmarks/test_secondary_sinks_cost.py --benchmark-only`` prints times; running this file prints the
exponents and the memory of a search. Nothing is asserted on time.
"""

import time
import tracemalloc

import numpy as np
import pytest

from refattn.interpretability.secondary_sinks import detect_sinks, sink_score

LENGTHS = (512, 1024, 2048)
LAYERS, WIDTH, HEADS = 16, 128, 4


def hidden(length):
    """Return hidden states of a text."""
    return np.random.default_rng(0).standard_normal((LAYERS, length, WIDTH))


def pattern(length):
    """Return uniform causal attention of a few heads."""
    return np.broadcast_to(np.tri(length) / np.arange(1, length + 1)[:, None], (HEADS, length, length))


CALLS = {"detect": (hidden, detect_sinks), "score": (pattern, sink_score)}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("length", LENGTHS)
def test_cost(benchmark, call, length):
    """A text is searched and weighed."""
    draw, function = CALLS[call]
    benchmark(function, draw(length))


def fastest(function, argument, repeats=5):
    """Return the shortest of some runs, in seconds of this process."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function(argument)
        times.append(time.process_time() - begin)
    return min(times)


def main():
    """Print exponents and memory."""
    for name, (draw, function) in CALLS.items():
        seconds = [fastest(function, draw(length)) for length in LENGTHS]
        slope = np.polyfit(np.log(LENGTHS), np.log(seconds), 1)[0]
        print(f"{name}: time grows with the length to the power {slope:.2f}")
    states = hidden(LENGTHS[-1])
    tracemalloc.start()
    detect_sinks(states)
    peak = tracemalloc.get_traced_memory()[1]
    print(f"detect: takes {peak / states[0].nbytes:.2f} times the memory of one layer of hidden states besides them")


if __name__ == "__main__":
    main()
