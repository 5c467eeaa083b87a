"""How many pairs a memory holds, by four definitions of holding.

``average`` asks for a mean squared error, ``error_free`` for the error of every item under every choice of values,
``bits`` for all signs of binary values, ``decode`` for finding a stored value by inner products. The first gives O(d),
the second O(√d): the two numbers that versions of the paper's abstract state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.primitives.arguments import require, require_one_of
from theory.pavlovian.keys import (
    cumulative_squared_error,
    draw_keys,
    mean_absolute_overlap,
    mean_row,
    uniform_on_sphere,
    worst_absolute_error,
)
from theory.table import ResultTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from theory.table import Row

__all__ = ["DEFINITIONS", "bit_error", "capacity", "capacity_theory", "decoding_accuracy", "decoding_failures"]

DEFINITIONS = ("average", "error_free", "bits", "decode")


def capacity(
    dims: Sequence[int],
    epsilon: float,
    definition: str = "average",
    trials: int = 40,
    *,
    value_dim: int = 32,
    rng: np.random.Generator,
) -> ResultTable:
    """Measure the capacity of a Hebbian memory for each width, beside its prediction.

    Parameters
    ----------
    dims : sequence of int
        Widths d of the keys, uniform on the unit sphere.
    epsilon : float
        The tolerance: relative error (``average``, ``error_free``), or the probability that any bit is wrong
        (``bits``), or that an item is decoded wrongly (``decode``).
    definition : {"average", "error_free", "bits", "decode"}
        What it means to hold.
    trials : int
        Independent sequences of keys.
    value_dim : int
        d_v, for ``bits`` and ``decode``.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ResultTable
        Rows ``capacity`` by ``dim``, measured and predicted; not rounded down: where the mean crosses the tolerance
        between two counts it is interpolated.

    Raises
    ------
    ValueError
        If a size or ``trials`` is below 1, the tolerance is not positive, or the definition is unknown.
    """
    require_one_of("definition", definition, DEFINITIONS)
    require(
        min(*dims, trials, value_dim) >= 1, f"dims={dims!r}, trials={trials!r}, value_dim={value_dim!r} must be >= 1"
    )
    measure = {"average": _average, "error_free": _error_free, "bits": _bits, "decode": _decode}[definition]
    table = ResultTable()
    for dim in dims:
        expected = capacity_theory(dim, epsilon, definition, value_dim=value_dim)
        keys = {"dim": dim, "epsilon": epsilon, "definition": definition}
        table.extend([measure(rng, trials, dim, epsilon, expected, value_dim) | keys])
        table.add("theory", "capacity", expected, **keys)
    return table


def capacity_theory(
    dim: int, epsilon: float, definition: str = "average", *, value_dim: int = 32, leading: bool = False
) -> float:
    """Return the predicted capacity of a Hebbian memory, not rounded down [derived].

    Parameters
    ----------
    dim : int
        d.
    epsilon, definition, value_dim
        As in `capacity`.
    leading : bool
        Leave out the correction for the maximum over items (``error_free``): 1 + ε √(π d/2).

    Returns
    -------
    float
        ``average``: 1 + ε² d, exact. ``error_free``: n of (n − 1) m₁ + √(2 ln n (n − 1)(1/d − m₁²)) = ε with
        m₁ = E|c|. ``bits``: n at which n d_v bits, wrong independently with the probability of `bit_error`, are all
        right with probability 1 − ε. ``decode``: n at which `decoding_accuracy` is 1 − ε.

    Raises
    ------
    ValueError
        If d is below 1, the tolerance is not positive, or the definition is unknown.
    """
    require_one_of("definition", definition, DEFINITIONS)
    require(dim >= 1, f"dim={dim!r} must be >= 1")
    require(epsilon > 0, f"epsilon={epsilon!r} must be > 0")
    if definition == "average":
        return 1 + epsilon**2 * dim
    if definition == "error_free":
        if leading:
            return float(1 + epsilon * np.sqrt(np.pi * dim / 2))
        return _root(lambda n: _worst_error(n, dim) - epsilon, 1.0)
    require(epsilon < 1, f"epsilon={epsilon!r} is a probability, it must be < 1")
    if definition == "bits":
        return _root(lambda n: np.log1p(-epsilon) - n * value_dim * np.log1p(-bit_error(n, dim)), 1.0)
    return _root(lambda n: 1 - epsilon - decoding_accuracy(n, dim, value_dim), 1.0)


def bit_error(n: float, dim: int) -> float:
    """Return the probability that the sign of one bit is read wrongly, Q(√(d/(n − 1))) [derived, large d]."""
    from scipy.special import ndtr

    return float(ndtr(-np.sqrt(dim / (n - 1)))) if n > 1 else 0.0


def decoding_accuracy(n: float, dim: int, value_dim: int) -> float:
    """Return how often the stored value nearest to the answer is the right one [derived, large d].

    Parameters
    ----------
    n : float
        Number of pairs.
    dim, value_dim : int
        d and d_v.

    Returns
    -------
    float
        E_z Φ((1 + z √s₀)/√s₁)^{n − 1}: the right value scores 1 + z √s₀ with s₀ = (n − 1)/(d d_v), and each other one
        has the variance s₁ = 1/d + (1 + 2z √s₀ + (n − 2)/d)/d_v.

    Notes
    -----
    The term 2z √s₀ is the share of the right score in the squared length of the answer: where crosstalk lowers the
    one, it shortens the other, and with it the scores of all wrong values. Without the term the prediction is up to
    twice the failures that are seen.
    """
    from scipy.special import log_ndtr

    z, weights = np.polynomial.hermite_e.hermegauss(80)
    crosstalk = 1 / (dim * value_dim)
    right = 1 + z * np.sqrt((n - 1) * crosstalk)
    length2 = np.maximum(2 * right - 1, 0.0) + max(n - 2, 0.0) / dim  # of the answer
    beats = (n - 1) * log_ndtr(right / np.sqrt(1 / dim + length2 / value_dim))
    return float(np.sum(weights * np.exp(beats)) / weights.sum())


def _worst_error(n: float, dim: int) -> float:
    m1 = mean_absolute_overlap(dim)
    return float((n - 1) * m1 + np.sqrt(2 * np.log(n) * (n - 1) * max(1 / dim - m1**2, 0.0)))


def _root(function: Callable[[float], float], low: float) -> float:
    """Return where an increasing function passes zero."""
    from scipy.optimize import brentq

    high = 2.0
    while function(high) < 0:
        high *= 2
    return float(brentq(function, low, high, xtol=1e-9))


def _crossing(counts: np.ndarray, curve: np.ndarray, level: float) -> float:
    """Return the count at which a rising curve last passes the level, between two counts by interpolation."""
    under = np.flatnonzero(curve <= level)
    if under.size == 0:
        return float(counts[0])
    last = int(under[-1])
    require(last + 1 < len(counts), f"the curve does not reach {level!r} by n = {counts[-1]}")
    share = (level - curve[last]) / (curve[last + 1] - curve[last])
    return float(counts[last] + share * (counts[last + 1] - counts[last]))


def _row(value: float, stderr: float, trials: int) -> Row:
    return {"source": "simulation", "metric": "capacity", "value": value, "stderr": stderr, "n_samples": trials}


def _average(rng: np.random.Generator, trials: int, dim: int, epsilon: float, expected: float, _value_dim: int) -> Row:
    counts = np.arange(1, int(1.6 * expected) + 12)
    errors = cumulative_squared_error(draw_keys(rng, trials, len(counts), dim))  # (trials, n)
    value = _crossing(counts, errors.mean(axis=0), epsilon**2)
    # the curve rises by 1/d a pair
    stderr = dim * errors[:, int(value)].std(ddof=1) / np.sqrt(trials) if trials > 1 else np.nan
    return _row(value, float(stderr), trials)


def _error_free(
    rng: np.random.Generator, trials: int, dim: int, epsilon: float, expected: float, _value_dim: int
) -> Row:
    errors = worst_absolute_error(draw_keys(rng, trials, int(3 * expected) + 12, dim))  # (trials, n), rising
    held = np.sum(errors <= epsilon, axis=-1)
    require(held.max() < errors.shape[-1], f"more than {errors.shape[-1]} pairs hold at dim={dim}")
    return mean_row("capacity", held.astype(float))


def _bits(rng: np.random.Generator, trials: int, dim: int, epsilon: float, expected: float, value_dim: int) -> Row:
    n = int(2 * expected) + 8
    held = np.empty(trials)
    for trial in range(trials):
        keys = uniform_on_sphere(rng, (n, dim))
        values = rng.choice([-1.0, 1.0], size=(n, value_dim))
        overlap = keys @ keys.T * (1 - np.eye(n))
        # support of each bit of item j after m pairs: 1 + v_j Σ_{i<m} c_ij v_i
        support = 1 + values[:, None] * np.cumsum(overlap[:, :, None] * values[None], axis=1)  # (j, m, bit)
        wrong = (support < 0).any(axis=-1) & (np.arange(n)[:, None] <= np.arange(n))  # item j is stored by pair m
        failed = wrong.any(axis=0)
        held[trial] = np.argmax(failed) if failed.any() else n
    value = float(np.quantile(held, epsilon))
    spread = np.quantile(held, min(1.0, epsilon + 0.34)) - np.quantile(held, max(0.0, epsilon - 0.34))
    return _row(value, float(spread / np.sqrt(trials)), trials)


def _decode(rng: np.random.Generator, trials: int, dim: int, epsilon: float, expected: float, value_dim: int) -> Row:
    counts = np.unique(np.maximum(2, (expected * np.geomspace(0.5, 2.0, 9)).astype(int)))
    wrong = np.array([[decoding_failures(rng, n, dim, value_dim) for _ in range(trials)] for n in counts])
    value = _crossing(counts, wrong.mean(axis=-1), epsilon)
    at = int(np.argmin(np.abs(counts - value)))
    slope = (wrong[-1].mean() - wrong[0].mean()) / (counts[-1] - counts[0])
    stderr = wrong[at].std(ddof=1) / np.sqrt(trials) / slope if trials > 1 else np.nan
    return _row(value, float(stderr), trials)


def decoding_failures(rng: np.random.Generator, n: int, dim: int, value_dim: int) -> float:
    """Return which share of n stored unit values is not the nearest to the answer of its key, in one memory."""
    keys, values = uniform_on_sphere(rng, (n, dim)), uniform_on_sphere(rng, (n, value_dim))
    scores = keys @ (keys.T @ values) @ values.T
    return float(np.mean(scores.argmax(axis=-1) != np.arange(n)))
