"""How much faster TurboBoA's loops are than BoA's and than PyTorch's, and what they lose; one thread, float64.

``pytest tests/benchmarks/test_turboboa_speed.py --benchmark-only`` prints times; running this file prints ratios, each
beside the bar that it is meant to reach. Nothing is asserted on time, all is on loss.

All sides run in turn in one process, on the same weights, Hessians and grid, and what counts is the median over rounds
of the ratio of processor times. Each call checks its arguments, damps, and factors both Hessians once.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy loads its BLAS
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from refattn.efficiency.turboboa import (
    QuantGrid,
    boa,
    gptq,
    minmax_grid,
    reconstruction_loss,
    rtn,
    search_grid,
    turboboa,
)

SIZE = HEADS, ROWS, COLUMNS = 2, 128, 256
BITS, SEEDS, BLOCKS = 2, (0, 1, 2), (4, 8, 16, 32, ROWS)
SPEED_BAR, LOSS_BAR = 3.0, 1.05
CLOSE = 1.02


@cache
def problem(seed=0):
    """Return weights (H·r, d) and Hessians of input and output whose channels are very unequal."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((HEADS * ROWS, COLUMNS)) / np.sqrt(COLUMNS)
    inputs = np.linspace(0.2, 3, COLUMNS)[:, None] * rng.standard_normal((COLUMNS, 2 * COLUMNS))
    outputs = np.linspace(0.3, 2, ROWS)[:, None] * rng.standard_normal((HEADS, ROWS, 3 * ROWS))
    return w, inputs @ inputs.T / COLUMNS, outputs @ np.swapaxes(outputs, 1, 2) / (3 * ROWS)


def loops(n, seed=0):
    """Return a call of TurboBoA with n rows at a time on a min-max grid, or of BoA where n is None."""
    w, h_in, h_out = problem(seed)
    fixed = {"n_heads": HEADS, "grid": minmax_grid(w.reshape(SIZE), BITS)}
    if n is None:
        return lambda: boa(w, h_in, h_out, BITS, **fixed)
    return lambda: turboboa(w, h_in, h_out, BITS, **fixed, block_rows=n, refine_sweeps=0)


def peer(n):
    """Return a call of the same algorithm in PyTorch."""
    sys.path.insert(0, str(Path(__file__).parent))
    import torch_turboboa

    w, h_in, h_out = problem()
    rows = w.reshape(SIZE)
    return torch_turboboa.loops(rows, h_in, h_out, minmax_grid(rows, BITS), BITS, n)


def searching(seed=0):
    """Return calls of every method that look for their grids by the Hessian, except the first; each gives weights."""
    w, h_in, h_out = problem(seed)
    joint = {"adaptive_grid": False, "refine_sweeps": 0}
    calls = {
        "RTN min-max": lambda: rtn(w, BITS),
        "RTN": lambda: rtn(w, BITS, grid=QuantGrid(*(part[None] for part in search_grid(w, BITS, hessian=h_in)))),
        "GPTQ": lambda: gptq(w, h_in, BITS),
        "BoA": lambda: boa(w, h_in, h_out, BITS, n_heads=HEADS),
        "joint 16": lambda: turboboa(w, h_in, h_out, BITS, n_heads=HEADS, **joint),
        "all 16": lambda: turboboa(w, h_in, h_out, BITS, n_heads=HEADS),
        "all 4": lambda: turboboa(w, h_in, h_out, BITS, n_heads=HEADS, block_rows=4),
    }
    return {name: lambda call=call: call().weight.reshape(w.shape) for name, call in calls.items()}


@cache
def losses(seed):
    """Return the reconstruction loss of every method, by the Hessians as they are before damping."""
    w, h_in, h_out = problem(seed)
    return {name: reconstruction_loss(w, call(), h_in, h_out) for name, call in searching(seed).items()}


def over_boa(seed):
    """Return the loss of TurboBoA's joint rows over BoA's, for every N, on one fixed grid."""
    return {n: loops(n, seed)().loss / loops(None, seed)().loss for n in BLOCKS}


def ratios(slow, others, rounds=5):
    """Return the processor time of a call over those of others, the median over rounds in which all take their turn."""
    calls = {"slow": slow, **others}
    rows = [{key: seconds(call) for key, call in calls.items()} for _ in range(rounds + 1)][1:]  # the first warms up
    return {key: float(np.median([row["slow"] / row[key] for row in rows])) for key in others}


def seconds(call):
    """Return the processor seconds of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


@pytest.mark.parametrize("n", [None, *BLOCKS], ids=lambda n: "boa" if n is None else f"N={n}")
def test_loops(benchmark, n):
    """Every code fits into two bits."""
    codes = benchmark.pedantic(loops(n), rounds=2).codes
    assert codes.min() >= 0
    assert codes.max() <= 2**BITS - 1


def test_speed(benchmark):
    """A block of sixteen rows does the work of BoA; how much faster is said, not asserted."""
    found = ratios(loops(None), {16: loops(16)}, rounds=2)
    benchmark.extra_info["ratio"] = found[16]
    assert benchmark.pedantic(loops(16), rounds=2).weight.shape == SIZE


def test_peer(benchmark):
    """PyTorch's loops round to the same weights."""
    pytest.importorskip("torch")
    call = peer(16)
    benchmark.extra_info["ratio"] = ratios(call, {16: loops(16)}, rounds=2)[16]
    np.testing.assert_allclose(benchmark.pedantic(call, rounds=2), loops(16)().weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_loss(benchmark, seed):
    """Sixteen rows at a time lose at most five percent more than one at a time."""
    found = benchmark.pedantic(over_boa, (seed,), rounds=1)
    assert found[16] <= LOSS_BAR


@pytest.mark.parametrize("seed", SEEDS)
def test_order(benchmark, seed):
    """GPTQ loses less than rounding, BoA less than GPTQ, and TurboBoA of four rows with refined grids less than BoA."""
    found = benchmark.pedantic(losses, (seed,), rounds=1)
    assert found["RTN min-max"] > found["RTN"] > found["GPTQ"] > found["BoA"] >= found["all 4"]
    assert found["all 16"] <= CLOSE * found["BoA"]


def main():
    """Print ratios of time and loss."""
    size = f"{HEADS} heads of {ROWS} rows, {COLUMNS} columns, {BITS} bits"
    print(f"loops on one min-max grid, {size}: BoA's time / TurboBoA's")
    for n, ratio in ratios(loops(None), {n: loops(n) for n in BLOCKS}).items():
        print(f"  N={n}: {ratio:.1f}" + (f" (bar {SPEED_BAR:g})" if n == 16 else ""))
    print("the same loops in PyTorch over ours, on one thread")
    for n in (1, *BLOCKS):
        print(f"  N={n}: {ratios(peer(n), {n: loops(n)}, 3)[n]:.2f}")
    print(f"loss of TurboBoA's joint rows / BoA's, same grid, seeds {SEEDS} (bar at N=16: {LOSS_BAR})")
    found = [over_boa(seed) for seed in SEEDS]
    for n in BLOCKS:
        print(f"  N={n}: " + " ".join(f"{row[n]:.4f}" for row in found))
    print(f"  within 2 % on every seed: N={[n for n in BLOCKS if all(row[n] <= CLOSE for row in found)]}")
    print("loss / BoA's, grids found by the Hessian (TurboBoA: joint rows alone; all: grids adapted and refined)")
    for seed in SEEDS:
        row = losses(seed)
        order = row["RTN min-max"] > row["RTN"] > row["GPTQ"] > row["BoA"]
        print(
            f"  seed {seed}: " + ", ".join(f"{name} {value / row['BoA']:.3f}" for name, value in row.items()), end="; "
        )
        print(f"RTN > GPTQ > BoA: {order}")
    calls = searching()
    print("the same with the search for grids: BoA's time / another's")
    print("  " + ", ".join(f"{n} {x:.2f}" for n, x in ratios(calls.pop("BoA"), calls, 3).items()))


if __name__ == "__main__":
    main()
