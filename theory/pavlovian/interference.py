"""How one pair disturbs another: the error of reading a stored pair, by rule, count and width.

Derivations are on the page. The Hebbian curve comes from overlaps alone; other rules are run as they are defined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.layers.pavlovian import linear_memory_read, linear_memory_write
from refattn.primitives.arguments import require
from theory.pavlovian.keys import (
    cumulative_squared_error,
    draw_keys,
    mean_row,
    mean_squared_overlap,
    uniform_on_sphere,
)
from theory.table import ResultTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from theory.table import Row

__all__ = [
    "decay_error",
    "delta_single_pass_error",
    "hebb_error",
    "interference_curve",
    "least_squares_error",
    "read_errors",
]


def interference_curve(
    dims: Sequence[int],
    counts: Sequence[int],
    trials: int,
    rule: str = "hebb",
    key_law: str = "sphere",
    *,
    rate: float = 1.0,
    rng: np.random.Generator,
) -> ResultTable:
    """Measure the relative squared error of a read, beside its prediction, for each width and count.

    Parameters
    ----------
    dims, counts : sequence of int
        Widths d of the keys and numbers n of pairs; every combination is measured.
    trials : int
        Independent memories of each.
    rule : str
        A rule of `refattn.layers.pavlovian`; predicted are ``hebb``, and ``delta`` with keys on the sphere.
    key_law : str
        As in `theory.pavlovian.keys.draw_keys`.
    rate : float
        η of rules other than ``hebb``.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ResultTable
        Rows ``rel_error2`` and ``snr``, measured (``simulation``) and predicted (``exact``), by ``dim`` and ``n``.

    Raises
    ------
    ValueError
        If a size or ``trials`` is below 1, or a name is unknown.
    """
    require(min(*dims, *counts, trials) >= 1, f"dims={dims!r}, counts={counts!r}, trials={trials!r} must be >= 1")
    table = ResultTable()
    for dim in dims:
        if rule == "hebb":
            every = cumulative_squared_error(draw_keys(rng, trials, max(counts), dim, key_law))  # (trials, n)
            measured = {n: every[:, n - 1] for n in counts}
        else:
            measured = {n: read_errors(rng, trials, n, dim, rule, key_law, rate=rate).mean(axis=-1) for n in counts}
        for n in counts:
            table.extend(_rows(measured[n], _predicted(n, dim, rule, key_law, rate), dim=dim, n=n))
    return table


def read_errors(
    rng: np.random.Generator,
    trials: int,
    n: int,
    dim: int,
    rule: str,
    key_law: str = "sphere",
    *,
    rate: float = 1.0,
    decay: float = 1.0,
) -> np.ndarray:
    """Store n pairs with random unit values, and read each back.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    trials, n, dim : int
        Sizes; values have the width of the keys.
    rule, rate, decay
        As in `refattn.layers.pavlovian.linear_memory_write`.
    key_law : str
        As in `theory.pavlovian.keys.draw_keys`.

    Returns
    -------
    ndarray, shape (trials, n)
        ‖S k_j − v_j‖² of each item j, in the order of writing.
    """
    keys = draw_keys(rng, trials, n, dim, key_law)
    values = uniform_on_sphere(rng, keys.shape)
    S = linear_memory_write(keys, values, rule=rule, rate=rate, decay=decay)
    return np.asarray(np.sum((linear_memory_read(S, keys) - values) ** 2, axis=-1))


def hebb_error(n: int, dim: int, key_law: str = "sphere") -> float:
    """Return the expected squared error of Hebb's rule, (n − 1) E c² + E (‖k‖² − 1)² [derived].

    It is (n − 1)/d for keys on the sphere and (n + 1)/d for Gaussian ones.
    """
    cross, own = mean_squared_overlap(dim, key_law)
    return (n - 1) * cross + own


def delta_single_pass_error(n: int, dim: int, rate: float) -> np.ndarray:
    """Return the expected squared error of each item after one pass of the delta rule [derived].

    Parameters
    ----------
    n, dim : int
        Number of pairs and width of their keys, which are uniform on the unit sphere.
    rate : float
        β, between 0 and 2.

    Returns
    -------
    ndarray, shape (n,)
        By order of writing: the newest item is last.

    Raises
    ------
    ValueError
        If n or d is below 1 or the rate is not in (0, 2).

    Notes
    -----
    Exact in expectation. F = E‖S‖² grows by F ← F (1 + (β² − 2β)/d) + β². For an item with e = S k − v, the moments
    A = E‖e‖² and B = E e·v start at (1 − β)² (1 + F/d) and −(1 − β), and change with every later pair, since its key
    overlaps with E c² = 1/d and E c⁴ = 3/(d (d + 2)).
    """
    require(min(n, dim) >= 1, f"n={n!r} and dim={dim!r} must be >= 1")
    require(0 < rate < 2, f"rate={rate!r} must be in (0, 2)")
    A, B = np.zeros(n), np.zeros(n)
    F = 0.0
    for t in range(n):
        old_A, old_B = A[:t], B[:t]
        s = old_A + 2 * old_B + 1  # E‖S k_j‖² before pair t
        A[:t] = old_A + rate**2 * (1 / dim + (F + 2 * s) / (dim * (dim + 2))) - 2 * rate / dim * (old_A + old_B)
        B[:t] = old_B - rate / dim * (old_B + 1)
        A[t], B[t] = (1 - rate) ** 2 * (1 + F / dim), -(1 - rate)
        F = F * (1 + (rate**2 - 2 * rate) / dim) + rate**2
    return A


def decay_error(age: np.ndarray | int, n: int, dim: int, decay: float) -> np.ndarray:
    """Return the expected squared error of the item of each age under trace decay [derived].

    Parameters
    ----------
    age : int or ndarray of int
        a, 0 for the newest of the n items.
    n, dim : int
        Number of pairs and width of their keys.
    decay : float
        γ in (0, 1).

    Returns
    -------
    ndarray, shape of ``age``
        (1 − γ^a)² for what has faded, and what the other items, faded too, add: (1/d) (Σ_b γ^{2b} − γ^{2a}).

    Raises
    ------
    ValueError
        If γ is not in (0, 1) or an age is not one of 0 … n − 1.
    """
    age = np.asarray(age)
    require(0 < decay < 1, f"decay={decay!r} must be in (0, 1)")
    require(np.all((age >= 0) & (age < n)), f"age={age!r} must be in 0 … n - 1 = {n - 1}")
    others = (1 - decay ** (2 * n)) / (1 - decay**2) - decay ** (2.0 * age)
    return np.asarray((1 - decay**age) ** 2 + others / dim)


def least_squares_error(n: int, dim: int) -> float:
    """Return what the best linear memory leaves: 1 − d/n of the value's square beyond n = d, nothing before."""
    return max(0.0, 1 - dim / n)


def _predicted(n: int, dim: int, rule: str, key_law: str, rate: float) -> float | None:
    if rule == "hebb":
        return hebb_error(n, dim, key_law)
    if rule == "delta" and key_law == "sphere":
        return float(delta_single_pass_error(n, dim, rate).mean())
    return None


def _rows(samples: np.ndarray, predicted: float | None, *, dim: int, n: int) -> list[Row]:
    measured = mean_row("rel_error2", samples, dim=dim, n=n)
    values = {"simulation": measured["value"], "exact": predicted}
    rows = [measured]
    if predicted is not None:
        rows.append({"source": "exact", "metric": "rel_error2", "value": predicted, "dim": dim, "n": n})
    rows += [
        {"source": source, "metric": "snr", "value": 1 / value, "dim": dim, "n": n}
        for source, value in values.items()
        if value
    ]
    return rows
