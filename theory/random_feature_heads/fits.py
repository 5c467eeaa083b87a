"""Many fits for the price of one: features in blocks, one Gram matrix for all targets, one factor for all sample sizes.

With K = L Lᵀ the factor of a leading block is the leading block of L, and so is its inverse. One factorisation of the
largest training set therefore fits every smaller one, and their cross-validation comes from running sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.lapack import dtrtri

from refattn.layers.random_feature_heads import (
    infinite_head_kernel,
    random_head_features,
    random_mlp_features,
    sample_random_heads,
    sample_random_neurons,
)
from theory.random_feature_heads.samplers import Dims, Task, sample_task
from theory.table import ResultTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from theory.table import Row

__all__ = ["MODELS", "Fitted", "fit_leading", "gcv", "gram_of", "learning_curve", "model_features", "replica"]

MODELS = ("rfa", "brfa", "rfmlp", "kernel", "biased_kernel")
"""Random heads without and with the identity as mean, the random perceptron, and infinitely many heads of each kind."""

BLOCK = 256
KERNEL_BLOCK = 2**20  # pairs of tokens at once


class Fitted(NamedTuple):
    """One fit: mean squares over the test and training inputs, and what cross-validation predicts, by target."""

    n: int
    ridge_rel: float
    test: np.ndarray
    train: np.ndarray
    gcv: np.ndarray


def model_features(
    model: str, dims: Dims, rng: np.random.Generator, dtype: type[np.floating] = np.float32
) -> Callable[[Task], np.ndarray]:
    """Draw a model of M heads, or of as many neurons as they have parameters, and return its feature map.

    Parameters
    ----------
    model : {"rfa", "brfa", "rfmlp"}
        See `MODELS`.
    dims : Dims
        d, N and M; the perceptron has M (d + 1) neurons.
    rng : numpy.random.Generator
        Draws the heads or neurons.
    dtype : type
        Of the features: float32 is twice as fast, and its errors are those of a ridge of about 1e-7.

    Returns
    -------
    callable
        ``task -> (n, features)``, scaled so that inner products are the Gram matrix.
    """
    if model == "rfmlp":
        w = sample_random_neurons(dims.M * (dims.d + 1), dims.d, dims.N, rng, dtype=dtype)
        return lambda task: _in_blocks(lambda x0, x: random_mlp_features(x0, x, w), task, dtype, len(w))
    heads = sample_random_heads(dims.M, dims.d, rng, bias="identity" if model == "brfa" else "none", dtype=dtype)
    return lambda task: _in_blocks(lambda x0, x: random_head_features(x0, x, heads), task, dtype, dims.M)


def gram_of(
    model: str, dims: Dims, task: Task, n_train: int, rng: np.random.Generator, dtype: type[np.floating] = np.float32
) -> np.ndarray:
    """Return the kernel of all inputs with the first ``n_train`` of them, (n, n_train), in float64.

    Raises
    ------
    ValueError
        For an unknown model.
    """
    if model not in MODELS:
        raise ValueError(f"model={model!r} is not one of {', '.join(MODELS)}")
    if model in ("kernel", "biased_kernel"):
        bias = "identity" if model == "biased_kernel" else "none"
        return np.concatenate(list(_kernel_blocks(task, n_train, bias)))
    phi = model_features(model, dims, rng, dtype)(task)
    return np.asarray((phi @ phi[:n_train].T).astype(np.float64))


def fit_leading(gram: np.ndarray, y: np.ndarray, ns: Sequence[int], ridges: Sequence[float]) -> Iterator[Fitted]:
    """Fit every target on every leading block of the training inputs, for every ridge.

    Parameters
    ----------
    gram : ndarray, shape (n + m, n)
        Kernel of all inputs with the training inputs, which come first.
    y : ndarray, shape (n + m, T)
        Targets of all inputs.
    ns : sequence of int
        Sizes of the training sets, at most n.
    ridges : sequence of float
        Each λ_rel > 0; λ = λ_rel tr(K)/n with the K of the largest set, which differs from that of a leading block by
        the fluctuation of its diagonal.

    Yields
    ------
    Fitted
    """
    n = gram.shape[1]
    for ridge_rel in ridges:
        ridge = ridge_rel * np.trace(gram[:n]) / n
        L = cholesky(gram[:n] + ridge * np.eye(n), lower=True, check_finite=False)
        inverse = np.tril(dtrtri(L, lower=1)[0])
        whitened, ones = inverse @ y[:n], inverse.sum(axis=1)  # L⁻¹ y, L⁻¹ 1
        traces = np.cumsum(np.sum(inverse**2, axis=1))  # tr (K + λ)⁻¹ of every leading block
        for size in ns:
            mean = y[:size].mean(axis=0)
            half = whitened[:size] - ones[:size, None] * mean
            alpha = solve_triangular(L[:size, :size], half, lower=True, trans="T", check_finite=False)
            predicted = mean + gram[n:, :size] @ alpha
            yield Fitted(
                int(size),
                float(ridge_rel),
                np.mean((y[n:] - predicted) ** 2, axis=0),
                np.mean((ridge * alpha) ** 2, axis=0),
                size * np.sum(alpha**2, axis=0) / traces[size - 1] ** 2,
            )


def gcv(gram: np.ndarray, y: np.ndarray, ridge: float) -> float:
    """Return n yᵀ(K + λ)⁻² y / (tr (K + λ)⁻¹)², y centred: the test error that the training data predict.

    Parameters
    ----------
    gram : ndarray, shape (n, n)
        K.
    y : ndarray, shape (n,)
        Targets.
    ridge : float
        λ > 0 itself, not relative.

    References
    ----------
    Golub, Heath, Wahba (1979) [recalled].
    """
    inverse = np.linalg.inv(gram + ridge * np.eye(len(y)))
    alpha = inverse @ (y - y.mean())
    return float(len(y) * alpha @ alpha / np.trace(inverse) ** 2)


def replica(
    model: str,
    targets: Sequence[str],
    dims: Dims,
    *,
    ns: Sequence[int],
    ridges: Sequence[float],
    rng: np.random.Generator,
    n_test: int = 1000,
    dtype: type[np.floating] = np.float32,
) -> Iterator[Row]:
    """Draw inputs, targets and heads once and fit them all; errors are divided by the variance of the test targets.

    Yields
    ------
    Row
        Metrics ``test_error``, ``train_error`` and ``gcv`` for each target, size and ridge.
    """
    n = max(ns)
    task = sample_task(n + n_test, dims, targets, rng)
    gram = gram_of(model, dims, task, n, rng, dtype)
    variance = task.y[n:].var(axis=0)
    for fitted in fit_leading(gram, task.y, ns, ridges):
        shared = {"source": "simulation", "model": model, "n": fitted.n, "ridge_rel": fitted.ridge_rel}
        for metric, values in (("test_error", fitted.test), ("train_error", fitted.train), ("gcv", fitted.gcv)):
            for target, value in zip(targets, values / variance, strict=True):
                yield {**shared, "target": target, "metric": metric, "value": float(value), "n_samples": n_test}


def learning_curve(
    model: str,
    target: str,
    dims: Dims,
    ns: Sequence[int],
    ridge_rel: float,
    seeds: Sequence[int],
) -> ResultTable:
    """Return test error, training error and cross-validation of one model on one target, for every size and seed.

    Parameters
    ----------
    model, target
        See `MODELS` and `theory.random_feature_heads.samplers.target_values`.
    dims : Dims
        d, N and M.
    ns : sequence of int
        Sizes of the training sets; each contains the smaller ones.
    ridge_rel : float
        λ_rel > 0.
    seeds : sequence of int
        One independent draw of inputs, direction and heads each.

    Returns
    -------
    ResultTable
        Columns model, target, n, ridge_rel, seed and the fixed ones.
    """
    table = ResultTable()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        rows = replica(model, [target], dims, ns=ns, ridges=[ridge_rel], rng=rng)
        table.extend({**row, "seed": int(seed)} for row in rows)
    return table


def _in_blocks(
    features: Callable[[np.ndarray, np.ndarray], np.ndarray], task: Task, dtype: type[np.floating], heads: int
) -> np.ndarray:
    """Return the features of all inputs, flat and divided by √M, computed a block at a time."""
    scale = dtype(heads**-0.5)
    parts = [
        features(task.x0[i : i + BLOCK].astype(dtype), task.x[i : i + BLOCK].astype(dtype))
        for i in range(0, len(task.x0), BLOCK)
    ]
    return np.concatenate([part.reshape(len(part), -1) * scale for part in parts])


def _kernel_blocks(task: Task, n_train: int, bias: str) -> Iterator[np.ndarray]:
    """Yield blocks of rows of the kernel of infinitely many heads."""
    N = task.x.shape[1]
    rows = max(1, KERNEL_BLOCK // (n_train * N**2 * (65 if bias == "identity" else 1)))
    for i in range(0, len(task.x0), rows):
        block = slice(i, i + rows)
        yield infinite_head_kernel(task.x0[block], task.x[block], task.x0[:n_train], task.x[:n_train], bias=bias)
