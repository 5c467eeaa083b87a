"""How much faster the simulator trains than PyTorch, one thread, float32, the same batch.

``pytest tests/benchmarks/test_icl_speed.py --benchmark-only`` prints times; running this file prints ratios, each
beside the bar that it is meant to reach. Nothing is asserted on time.

Both sides run in turn in one process, and what counts is the processor time of the best round of each. A step of R
replicas trains R models, on shared prompts, so its time is divided by R.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy loads its BLAS
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from theory.icl_regression.averaged_models import AveragedModel, averages, initial_heads
from theory.icl_regression.descent import Descent
from theory.icl_regression.flow import gradient_flow
from theory.icl_regression.full_model import FullModel, initial_weights
from theory.icl_regression.losses import quadratic_form
from theory.icl_regression.reduced import prompt_gradients, sample_scores
from theory.icl_regression.samplers import sample_prompts
from theory.icl_regression.training import fast_generator

NOISE_VAR, LR = 0.1, 1e-3
PEER = (256, 40, 5, 2)  # batch, length, dim, heads


class Row(NamedTuple):
    """One line of the table: which model, how large, how many replicas, and the ratio that it should reach."""

    model: str
    size: tuple[int, int, int, int]
    replicas: int
    bar: float | None


ROWS = (
    Row("full", PEER, 1, 2.5),
    Row("full", PEER, 8, 10),
    Row("full", (64, 40, 5, 2), 32, 20),
    Row("full", (256, 40, 5, 1), 8, None),
    Row("full", (256, 40, 5, 4), 8, None),
    Row("full", (256, 40, 5, 8), 8, None),
    Row("reduced", PEER, 1, 10),
    Row("reduced", PEER, 8, None),
    Row("semi", PEER, 1, None),
    Row("diagonal", PEER, 1, None),
)
EQUAL_VARIANCE_BAR = 80


def our_step(model, size, replicas):
    """Return a function that does one step of training: draw, gradient, Adam."""
    batch, length, dim, n_head = size
    rng = fast_generator(0)
    if model == "full":
        start = initial_weights("random", n_head, dim, rng, replicas=replicas)
        trained = FullModel(start, length=length, batch=batch, noise_var=NOISE_VAR, dtype=np.float32)
    else:
        start, average = initial_heads(model, n_head, dim, rng, replicas=replicas), averages(model, dim, NOISE_VAR)
        kind = {"model": model, "average": average, "dim": dim}
        trained = AveragedModel(start, **kind, length=length, batch=batch, dtype=np.float32)
    descent = Descent("adam", LR, trained.parameters.size, dtype=np.float32)

    def step():
        trained.draw(rng)
        loss = trained.loss_and_gradient()
        descent.update(trained.parameters, trained.gradient)
        return loss

    return step


def seconds(call, repeats):
    """Return the processor seconds of a call, the mean of some."""
    begin = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - begin) / repeats


def alternating(calls, rounds=7, repeats=15):
    """Return the processor seconds of each call, best of some rounds in which all take their turn."""
    for call in calls.values():
        call()
    times = [{key: seconds(call, repeats) for key, call in calls.items()} for _ in range(rounds)]
    return {key: min(t[key] for t in times) for key in calls}


def gradient_spread(n_samples=40_000, omega=0.13, mu=3.4):
    """Return how much larger the variance of a prompt's gradient is than that of the reduced model, by μ and by ω.

    Both are gradients with respect to (μ, ω) at the same place, one prompt each, over all heads.
    """
    _, length, dim, _ = PEER
    omegas, mus = np.array([omega, -omega]), np.array([mu, -mu])
    rng = np.random.default_rng(0)
    x, y, x_q, y_q, _ = sample_prompts(n_samples, length, dim, NOISE_VAR, rng)
    scores = np.einsum("bld,bd->bl", x, x_q)[:, None]  # (B, 1, L)
    p = np.exp(omegas[:, None] * scores)
    p /= p.sum(-1, keepdims=True)  # (B, H, L)
    seen = np.einsum("bhl,bl->bh", p, y)
    error = 2 * (seen @ mus - y_q)[:, None]  # (B, 1)
    d_omega = error * mus * np.sum(p * (y[:, None] - seen[..., None]) * scores, -1)
    plain = (error * seen, d_omega)
    averaged = prompt_gradients(mus, omegas, *sample_scores(n_samples, dim, length, rng)[:2], dim, NOISE_VAR)
    return tuple(float(a.var(0).sum() / b.var(0).sum()) for a, b in zip(plain, averaged, strict=True))


def flow():
    """Follow the gradient flow of a pair to t = 10⁶."""
    return gradient_flow([1e-3, -1e-3], [1e-3, -1e-3], 5, 40, NOISE_VAR, np.geomspace(1, 1e6, 50))


def loss_surface(points=20):
    """Return the exact loss of pairs on a grid of ω and μ."""
    omegas, mus = np.linspace(0, 0.2, points), np.linspace(0, 6, points)
    forms = [quadratic_form([omega, -omega], 5, 40, NOISE_VAR) for omega in omegas]
    signs = np.array([1.0, -1.0])
    return [[1 + NOISE_VAR - 2 * mu * a @ signs + mu**2 * signs @ b @ signs for mu in mus] for a, b in forms]


SCALINGS = {
    # what varies, its values, and the exponent that counting operations gives
    "full, batch": ([("full", (b, 40, 5, 2), 8) for b in (64, 128, 256, 512, 1024)], 1),
    "full, length": ([("full", (128, n, 5, 2), 8) for n in (20, 40, 80, 160)], 1),
    "full, heads": ([("full", (64, 40, 5, h), 4) for h in (8, 16, 32, 64)], 1),
    "full, replicas": ([("full", (64, 40, 5, 2), r) for r in (16, 32, 64, 128)], 1),
    "full, dim": ([("full", (128, 40, d, 2), 8) for d in (10, 20, 40, 80)], 2),
    "reduced, batch": ([("reduced", (b, 40, 5, 2), 8) for b in (64, 128, 256, 512, 1024)], 1),
    "reduced, length": ([("reduced", (128, n, 5, 2), 8) for n in (20, 40, 80, 160)], 1),
    "reduced, dim": ([("reduced", (128, 40, d, 2), 8) for d in (5, 10, 20, 40)], 0),
}


def varying(name, model, size, replicas):
    """Return the value of what a scaling varies."""
    return dict(zip(("batch", "length", "dim", "heads"), size, strict=True), replicas=replicas)[name.split(", ")[1]]


def exponent(values, times):
    """Return the slope of a line through the points on logarithmic axes."""
    return float(np.polyfit(np.log(values), np.log(times), 1)[0])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}-{'x'.join(map(str, row.size))}-R{row.replicas}")
def test_step(benchmark, row):
    """A step returns one loss a replica, and says how its time compares with PyTorch's."""
    pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parent))
    import torch_icl

    calls = {"torch": torch_icl.official_step(*row.size), "ours": our_step(*row[:3])}
    times = alternating(calls, rounds=3)
    benchmark.extra_info["ratio"] = times["torch"] / times["ours"] * row.replicas
    assert benchmark(calls["ours"]).shape == (row.replicas,)


def test_flow(benchmark):
    """The whole trajectory has a loss at every moment."""
    assert np.isfinite(benchmark.pedantic(flow, rounds=3).loss).all()


def test_loss_surface(benchmark):
    """The surface has a value at every point of the grid."""
    assert np.shape(benchmark.pedantic(loss_surface, rounds=2)) == (20, 20)


def line(what, value, bar):
    print(f"{what:<66} {value:>9} {bar:>9}")


def main():
    """Print the table."""
    from torch_icl import official_step

    calls = {("torch", row.size): official_step(*row.size) for row in ROWS}
    calls |= {row: our_step(*row[:3]) for row in ROWS}
    times = alternating(calls)
    line("processor time of PyTorch's step over ours, per replica", "ratio", "bar")
    for row in ROWS:
        batch, length, dim, n_head = row.size
        what = f"{row.model}, B={batch} L={length} d={dim} H={n_head}, replicas={row.replicas}"
        ours, peer = times[row] / row.replicas, times["torch", row.size]
        what += f" ({1e3 * peer:.2f} ms / {1e3 * ours:.3f} ms)"
        line(what, f"{peer / ours:.1f}x", "" if row.bar is None else f"{row.bar:g}x")
    by_mu, by_omega = gradient_spread()
    row = next(row for row in ROWS if row.model == "reduced")
    gain = times["torch", row.size] / times[row]
    line("variance of a prompt's gradient over that of the reduced model, μ", f"{by_mu:.1f}x", "")
    line("the same, ω", f"{by_omega:.1f}x", "")
    equal = gain * min(by_mu, by_omega)
    line("reduced, one replica, at equal variance (the smaller of the two)", f"{equal:.0f}x", f"{EQUAL_VARIANCE_BAR}x")
    line("gradient flow to t = 10⁶", f"{alternating({0: flow}, 3, 1)[0]:.2f} s", "1 s")
    line("exact loss surface, 20 × 20", f"{alternating({0: loss_surface}, 3, 1)[0]:.2f} s", "5 s")
    line("exponent of the time of a step", "fitted", "counted")
    for name, (settings, counted) in SCALINGS.items():
        cost = alternating({setting: our_step(*setting) for setting in settings}, 3, 5)
        line(name, f"{exponent([varying(name, *s) for s in settings], list(cost.values())):.2f}", f"{counted}")


if __name__ == "__main__":
    main()
