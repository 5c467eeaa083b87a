"""How the cost of random-feature attention grows, and what a learning curve at the paper's scale costs.

``pytest tests/benchmarks/test_random_feature_speed.py --benchmark-only`` prints times; running this file prints
exponents beside the expected ones and the parts of a learning curve. Nothing is asserted on time.
"""

import time

import numpy as np
import pytest

from refattn.layers.random_feature_heads import random_head_features, sample_random_heads
from theory.random_feature_heads.fits import fit_leading, gram_of, model_features
from theory.random_feature_heads.samplers import Dims, sample_task

PAPER = Dims(16, 16, 1000)
NS = (64, 128, 256, 512, 1024, 2048)
TARGETS = ("f1:1", "f1:2", "f1:3", "f2:1", "f2:3")
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def features_call(n, n_heads):
    """Return a call that computes the features of n inputs."""
    rng = np.random.default_rng(0)
    task = sample_task(n, PAPER, ["f1:1"], rng)
    heads = sample_random_heads(n_heads, PAPER.d, rng, dtype=np.float32)
    x0, x = task.x0.astype(np.float32), task.x.astype(np.float32)
    return lambda: random_head_features(x0, x, heads)


def gram_call(n, width=4000):
    """Return a call that multiplies n rows of features with themselves."""
    phi = np.random.default_rng(0).standard_normal((n, width)).astype(np.float32)
    return lambda: phi @ phi.T


@pytest.mark.parametrize("n_heads", [100, 400])
@pytest.mark.parametrize("n", [64, 256])
def test_features(benchmark, n, n_heads):
    """Features of n inputs."""
    benchmark(features_call(n, n_heads))


@pytest.mark.parametrize("n", [256, 1024])
def test_gram(benchmark, n):
    """Gram matrix of n inputs."""
    benchmark(gram_call(n))


def test_one_factor_fits_all(benchmark):
    """Six sample sizes, six ridges and five targets from the Gram matrix of 512 inputs."""
    rng = np.random.default_rng(0)
    task = sample_task(712, Dims(8, 8, 100), TARGETS, rng)
    gram = gram_of("rfa", Dims(8, 8, 100), task, 512, rng)
    benchmark(lambda: list(fit_leading(gram, task.y, (16, 32, 64, 128, 256, 512), RIDGES)))


def seconds(call, repeats=5):
    """Shortest wall-clock time of a call."""
    best = np.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def exponent(sizes, calls):
    """Slope of log time over log size."""
    return np.polyfit(np.log(sizes), np.log([seconds(call) for call in calls]), 1)[0]


def learning_curve_parts():
    """Seconds of features, Gram matrix and fits for one model, all five targets and all six sizes."""
    rng = np.random.default_rng(0)
    task = sample_task(3048, PAPER, TARGETS, rng)
    marks = [time.perf_counter()]
    phi = model_features("rfa", PAPER, rng)(task)
    marks.append(time.perf_counter())
    gram = (phi @ phi[:2048].T).astype(np.float64)
    marks.append(time.perf_counter())
    for _ in fit_leading(gram, task.y, NS, RIDGES):
        pass
    marks.append(time.perf_counter())
    return np.diff(marks)


if __name__ == "__main__":
    sizes = (128, 256, 512, 1024)
    print(f"features over inputs   exponent {exponent(sizes, [features_call(n, 200) for n in sizes]):.2f}, expected 1")
    heads = (200, 400, 800, 1600)
    print(f"features over heads    exponent {exponent(heads, [features_call(32, M) for M in heads]):.2f}, expected 1")
    rows = (512, 1024, 2048)
    print(f"Gram over inputs       exponent {exponent(rows, [gram_call(n) for n in rows]):.2f}, expected 2")
    features, gram, fits = learning_curve_parts()
    print(f"learning curve, d = N = 16, M = 1000, n to 2048, five targets, six ridges: {features + gram + fits:.1f} s")
    print(f"    features {features:.1f} s, Gram {gram:.1f} s, fits {fits:.1f} s; three models take three times as long")
