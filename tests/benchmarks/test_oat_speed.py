"""How encoder and pointer grow with the number of objects, and what the portable twin costs; one thread.

``pytest tests/benchmarks/test_oat_speed.py --benchmark-only`` prints times; running this file prints fitted exponents
beside the expected ones, and the ratio of both versions on the largest shelf of the paper. Nothing is asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.backends.portable import oat as portable
from refattn.contracts.oat import cases
from refattn.layers import oat as reference
from refattn.layers.oat_transformer import oat_encode

NARROW = 8  # the square of n has to outweigh the maps
ENCODED, POINTED = (768, 1536, 3072), (4096, 8192, 16384, 32768)
AMAZON = {"B": 1, "R": 6, "C": 14, "T": 20, "E": 512, "H": 4, "M": 2, "layers": 4}


def encoder(n):
    """Return a call of the encoder on n objects."""
    sizes = {"B": 1, "n": n - 1, "E": NARROW, "H": 1}
    case = cases.ENCODE.case("normal", "float64", 0, label="speed", sizes=sizes)
    return lambda: oat_encode(case.arrays["tokens"], case.arrays["layers"], n_heads=1)


def pointer(n):
    """Return a call of the pointer on n objects."""
    sizes = {"B": 1, "n": n - 1, "T": 4, "E": NARROW, "M": 2, "d_k": NARROW}
    case = cases.POINT.case("normal", "float64", 0, label="speed", sizes=sizes)
    return lambda: reference.object_attention(*case.arrays.values(), d_k=NARROW)


def shelf(module):
    """Return a call of the whole model, as large as in the paper."""
    case = cases.FORWARD.case("normal", "float64", 0, label="speed", sizes=AMAZON)
    return lambda: module.oat_forward(*case.arrays.values(), **case.options)


@pytest.mark.parametrize("n", ENCODED)
def test_encoder(benchmark, n):
    """Each object comes out."""
    assert benchmark(encoder(n)).shape == (1, n, NARROW)


@pytest.mark.parametrize("n", POINTED)
def test_pointer(benchmark, n):
    """Each object is scored, and padding."""
    assert benchmark(pointer(n)).shape == (1, 4, n + 1)


@pytest.mark.parametrize("module", [reference, portable], ids=["reference", "portable"])
def test_model(benchmark, module):
    """Both versions score 84 objects, end and padding."""
    assert benchmark(shelf(module)).shape == (1, 20, 86)


def fastest(function, repeats=5):
    """Return the shortest of some runs, in seconds of processor time."""
    times = []
    for _ in range(repeats):
        calls, begin = 0, time.process_time()
        while time.process_time() - begin < 0.05:
            function()
            calls += 1
        times.append((time.process_time() - begin) / calls)
    return min(times)


def main():
    """Print exponents and the ratio."""
    for name, call, counts, expected in (("encoder", encoder, ENCODED, 2), ("pointer", pointer, POINTED, 1)):
        found = np.polyfit(np.log(counts), np.log([fastest(call(n)) for n in counts]), 1)[0]
        print(f"{name}, n={counts[0]} to {counts[-1]}: exponent {found:.2f}, expected {expected}")
    ratio = fastest(shelf(reference)) / fastest(shelf(portable))
    print(f"model, n=84, E=512, 4 + 4 layers: reference / portable on NumPy = {ratio:.2f}")


if __name__ == "__main__":
    main()
