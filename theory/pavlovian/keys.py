"""Random keys and their overlaps: all that the error of a Hebbian memory depends on.

Reading key j from n stored pairs gives v_j ‖k_j‖² + Σ_{i≠j} v_i c_ij with c_ij = k_i·k_j. Averaged over values that are
uncorrelated, of mean zero and of unit mean square, the squared error of item j is (‖k_j‖² − 1)² + Σ_{i≠j} c_ij²: no
value need be drawn. And because pair n + 1 only adds one row to the Gram matrix, cumulative sums give every n at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import require, require_one_of

if TYPE_CHECKING:
    from theory.table import Row

__all__ = [
    "CORRELATION",
    "KEY_LAWS",
    "cumulative_squared_error",
    "draw_keys",
    "mean_absolute_overlap",
    "mean_row",
    "mean_squared_overlap",
    "uniform_on_sphere",
    "worst_absolute_error",
]

KEY_LAWS = ("sphere", "gaussian", "correlated")
CORRELATION = 0.25  # the mean overlap ρ of the law ``correlated``


def uniform_on_sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw vectors of norm one, uniform in direction; the last axis is theirs."""
    x = rng.standard_normal(shape)
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def draw_keys(rng: np.random.Generator, trials: int, n: int, dim: int, key_law: str = "sphere") -> np.ndarray:
    """Draw keys by a law.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    trials, n, dim : int
        Sizes, all at least 1.
    key_law : {"sphere", "gaussian", "correlated"}
        Uniform on the unit sphere; N(0, I/d); or √ρ m + √(1 − ρ) u with a direction m that all keys of a trial share
        and u uniform on the sphere, ρ = `CORRELATION` [our definition].

    Returns
    -------
    ndarray, shape (trials, n, dim)
        The keys.

    Raises
    ------
    ValueError
        If a size is below 1 or the law is unknown.
    """
    require_one_of("key_law", key_law, KEY_LAWS)
    require(min(trials, n, dim) >= 1, f"trials={trials!r}, n={n!r}, dim={dim!r} must be >= 1")
    if key_law == "gaussian":
        return np.asarray(rng.standard_normal((trials, n, dim)) / np.sqrt(dim))
    keys = uniform_on_sphere(rng, (trials, n, dim))
    if key_law == "sphere":
        return keys
    common = uniform_on_sphere(rng, (trials, 1, dim))
    return np.asarray(np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * keys)


def mean_squared_overlap(dim: int, key_law: str = "sphere") -> tuple[float, float]:
    """Return E c² of two different keys, and E (‖k‖² − 1)² [derived].

    Parameters
    ----------
    dim : int
        d.
    key_law : str
        As in `draw_keys`.

    Returns
    -------
    cross, own : float
        1/d and 0 on the sphere; 1/d and 2/d for Gaussian keys; ρ² + (1 − ρ²)/d and 4ρ(1 − ρ)/d for correlated ones.
    """
    require_one_of("key_law", key_law, KEY_LAWS)
    rho = CORRELATION
    return {
        "sphere": (1 / dim, 0.0),
        "gaussian": (1 / dim, 2 / dim),
        "correlated": (rho**2 + (1 - rho**2) / dim, 4 * rho * (1 - rho) / dim),
    }[key_law]


def mean_absolute_overlap(dim: int) -> float:
    """Return E |c| of two uniform unit keys: Γ(d/2) / (√π Γ((d + 1)/2)), about √(2/(π d)) [derived]."""
    from scipy.special import gammaln

    return float(np.exp(gammaln(dim / 2) - gammaln((dim + 1) / 2)) / np.sqrt(np.pi))


def cumulative_squared_error(keys: np.ndarray) -> np.ndarray:
    """Return the squared error, averaged over items and values, for the first 1, 2, …, n of the keys.

    Parameters
    ----------
    keys : ndarray, shape (..., n, d)
        Keys in the order in which they are stored.

    Returns
    -------
    ndarray, shape (..., n)
        Entry m − 1 is the error of a memory of m pairs.
    """
    gram = keys @ np.swapaxes(keys, -1, -2)  # (..., n, n)
    own = (np.diagonal(gram, axis1=-2, axis2=-1) - 1) ** 2  # (..., n)
    added = 2 * np.sum(np.tril(gram, -1) ** 2, axis=-1) + own  # what pair m brings, to itself and to all before it
    return np.asarray(np.cumsum(added, axis=-1) / np.arange(1, keys.shape[-2] + 1))


def worst_absolute_error(keys: np.ndarray) -> np.ndarray:
    """Return max_j Σ_{i≠j} |c_ij| for the first 1, 2, …, n of the keys: the error under the worst unit values.

    Parameters
    ----------
    keys : ndarray, shape (..., n, d)
        Unit keys in the order in which they are stored.

    Returns
    -------
    ndarray, shape (..., n)
        Never decreasing.
    """
    overlap = np.abs(keys @ np.swapaxes(keys, -1, -2))  # (..., n, n)
    overlap *= 1 - np.eye(keys.shape[-2])
    sums = np.cumsum(overlap, axis=-1)  # over stored pairs; (..., item j, pairs)
    stored = np.tri(keys.shape[-2]).T  # item j is among the first m pairs
    return np.asarray(np.max(sums * stored, axis=-2))


def mean_row(metric: str, samples: np.ndarray, **others: Any) -> Row:
    """Return the row of a mean over independent samples, with its standard error."""
    n = samples.size
    stderr = float(samples.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    value = float(samples.mean())
    return {"source": "simulation", "metric": metric, "value": value, "stderr": stderr, "n_samples": n, **others}
