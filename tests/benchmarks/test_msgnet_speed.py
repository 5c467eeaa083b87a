"""How the parts of MSGNet grow with times and series, and how fast the portable twin is on NumPy.

``pytest tests/benchmarks/test_msgnet_speed.py --benchmark-only`` prints times; running this file prints fitted
exponents beside theory, and ratios. Nothing is asserted on time. Float32; times are processor times, so run it with one
thread (``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1``).
"""

import time

import numpy as np
import pytest

from refattn.backends.portable import msgnet as portable
from refattn.layers import msgnet as reference
from refattn.layers.msgnet_graph import graph_block_flops
from refattn.layers.msgnet_init import attention_init, graph_init, msgnet_init
from refattn.layers.msgnet_weights import as_weights

WEATHER = {"n_series": 21, "width": 64, "hidden": 128, "scales": 5}
ELECTRICITY = {"n_series": 321, "width": 1024, "hidden": 512, "scales": 5}


def single(weights):
    """Return weights in float32."""
    return as_weights("weights", weights, np.dtype(np.float32))


def numbers(*shape):
    """Return normal numbers in float32."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def end_convolution(T):
    """Return a call of a graph layer in which the mixing of time outweighs all else."""
    w = single(graph_init(np.random.default_rng(0), length=T, n_series=2, width=4, channels=1, skip=4))
    x = numbers(8, T, 4)
    return lambda: reference.graph_block(x, w)


def hops(N):
    """Return a call of two hops among N series."""
    h0, A = numbers(2, 4, N, 16), np.abs(numbers(N, N))
    return lambda: reference.mixhop_propagate(h0, A)


def segments(T, s=24, D=16):
    """Return a call of attention inside segments of fixed length."""
    w, z = single(attention_init(np.random.default_rng(0), width=D, hidden=D)), numbers(T // s, s, D)
    return lambda: reference.segment_attention(z, w, n_heads=2)


def model(module, batch, shape, layers=1):
    """Return a call of the model for windows of 96 times."""
    w = single(msgnet_init(np.random.default_rng(0), length=96, horizon=96, layers=layers, **shape))
    x = numbers(batch, 96, shape["n_series"])
    return lambda: module.msgnet_forecast(x, w, n_heads=8)


@pytest.mark.parametrize("module", [reference, portable], ids=["reference", "portable"])
def test_forecast(benchmark, module):
    """A batch of windows of the Weather setting is forecast."""
    assert benchmark(model(module, 8, WEATHER)).shape == (8, 96, 21)


def fastest(function, repeats=3):
    """Return the shortest processor time of some runs, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def exponent(make, sizes):
    """Return the slope of time over size, in logarithms."""
    return np.polyfit(np.log(sizes), np.log([fastest(make(size)) for size in sizes]), 1)[0]


def main():
    """Print exponents and ratios."""
    print(f"end convolution: exponent {exponent(end_convolution, (512, 1024, 2048)):.2f} in T, theory 2")
    print(f"mixhop: exponent {exponent(hops, (256, 512, 1024)):.2f} in N, theory 2")
    print(f"segment attention: exponent {exponent(segments, (2400, 4800, 9600)):.2f} in T at fixed period, theory 1")
    for name, batch, shape in (("Weather", 16, WEATHER), ("Electricity", 2, ELECTRICITY)):
        flops = graph_block_flops(length=96, series=shape["n_series"], width=shape["width"])
        seconds = [fastest(model(module, batch, shape), 2) for module in (reference, portable)]
        ratio = seconds[0] / seconds[1]
        print(f"{name}: reference / portable twin = {ratio:.2f}; {sum(flops):.1e} operations a graph layer and window")


if __name__ == "__main__":
    main()
