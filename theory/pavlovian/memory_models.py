"""What is published about other associative memories, for the same question of how many patterns they hold.

Formulas are those of the literature: Hopfield networks (Amari; McEliece et al. 1987; Amit, Gutfreund and Sompolinsky
1985), dense memories (1606.01164), exponential memories (1702.01929), modern Hopfield networks (2008.02217), Cover's
count of separable dichotomies (1965), and the pseudo-inverse [recalled].
"""

from __future__ import annotations

from math import lgamma

import numpy as np

from refattn.primitives.arguments import require, require_one_of

__all__ = [
    "MODELS",
    "cover_probability",
    "dense_bit_error",
    "hopfield_bit_error",
    "hopfield_bit_error_exact",
    "memory_model_capacity",
    "modern_base",
    "modern_one_step_bound",
    "polynomial_error",
    "softmax_crosstalk",
]

MODELS = ("hopfield", "dense", "exponential", "modern", "cover", "pinv")
DEMANDS = ("all", "most", "small_error")


def memory_model_capacity(
    model: str,
    dim: int,
    *,
    demand: str = "all",
    degree: int = 3,
    exponent: float = 0.3,
    beta: float = 1.0,
    radius: float = 3.0,
    failure: float = 0.001,
) -> float:
    """Return the published capacity of an associative memory of d units.

    Parameters
    ----------
    model : {"hopfield", "dense", "exponential", "modern", "cover", "pinv"}
        Which memory.
    dim : int
        d, at least 2.
    demand : {"all", "most", "small_error"}
        Of ``hopfield``: every pattern exact, d/(4 ln d); most patterns exact, d/(2 ln d); a small share of wrong bits,
        0.138 d.
    degree : int
        a ≥ 2 of ``dense``, the energy −Σ (ξ·σ)^a: d^{a−1} / (2 (2a − 3)!! ln d).
    exponent : float
        α < ln 2 / 2 of ``exponential``, the energy −Σ exp(ξ·σ): e^{αd}.
    beta, radius, failure : float
        β, K and p of ``modern``: patterns on a sphere of radius K √(d − 1) are stored with probability 1 − p up to
        √p c^{(d−1)/4}; a lower bound.

    Returns
    -------
    float
        A number of patterns; for ``cover`` 2d, the transition of binary read-outs, and for ``pinv`` d.

    Raises
    ------
    ValueError
        If a name is unknown or a parameter out of range.
    """
    require_one_of("model", model, MODELS)
    require_one_of("demand", demand, DEMANDS)
    require(dim >= 2, f"dim={dim!r} must be >= 2")
    if model == "hopfield":
        log = float(np.log(dim))
        return {"all": dim / (4 * log), "most": dim / (2 * log), "small_error": 0.138 * dim}[demand]
    if model == "dense":
        require(degree >= 2, f"degree={degree!r} must be >= 2")
        return float(dim ** (degree - 1) / (2 * _double_factorial(2 * degree - 3) * np.log(dim)))
    if model == "exponential":
        require(0 < exponent < np.log(2) / 2, f"exponent={exponent!r} must be in (0, ln 2 / 2)")
        return float(np.exp(exponent * dim))
    if model == "modern":
        return float(np.sqrt(failure) * modern_base(dim, beta, radius, failure) ** ((dim - 1) / 4))
    return float(2 * dim if model == "cover" else dim)


def modern_base(dim: int, beta: float, radius: float, failure: float) -> float:
    """Return c of the bound for modern Hopfield networks, b / W₀(exp(a + ln b)) (2008.02217, theorem 3).

    Parameters
    ----------
    dim : int
        d.
    beta, radius, failure : float
        β, K > 0, and p in (0, 1).

    Returns
    -------
    float
        With a = (2/(d − 1)) (1 + ln(2 β K² p (d − 1))) and b = 2 K² β / 5.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    from scipy.special import lambertw

    require(dim >= 2 and beta > 0 and radius > 0, f"dim={dim!r}, beta={beta!r}, radius={radius!r} are too small")
    require(0 < failure < 1, f"failure={failure!r} must be in (0, 1)")
    a = 2 / (dim - 1) * (1 + np.log(2 * beta * radius**2 * failure * (dim - 1)))
    b = 2 * radius**2 * beta / 5
    return float(b / lambertw(np.exp(a + np.log(b))).real)


def modern_one_step_bound(patterns: np.ndarray, beta: float, distance: float) -> np.ndarray:
    """Bound the error of one step ξ ← Xᵀ softmax(β X ξ) from a state near each pattern (2008.02217, theorem 4).

    Parameters
    ----------
    patterns : ndarray, shape (n, d)
        X, at least two.
    beta : float
        β.
    distance : float
        How far at most the state, and the fixed point beside it, are from the pattern.

    Returns
    -------
    ndarray, shape (n,)
        2 (n − 1) M exp(−β (Δ_j − 2 M · distance)), with the separation Δ_j = x_j·x_j − max_{i≠j} x_i·x_j and M the
        largest norm.
    """
    n = len(patterns)
    gram = patterns @ patterns.T
    others = np.where(np.eye(n) > 0, -np.inf, gram)
    separation = np.diagonal(gram) - others.max(axis=-1)
    M = float(np.sqrt(np.diagonal(gram).max()))
    return np.asarray(2 * (n - 1) * M * np.exp(-beta * (separation - 2 * M * distance)))


def hopfield_bit_error(n: int, dim: int) -> float:
    """Return the probability that one step spoils a bit of a stored pattern, Q(√((d − 1)/(n − 1))), for large d."""
    return _tail(np.sqrt((dim - 1) / (n - 1)))


def hopfield_bit_error_exact(n: int, dim: int) -> float:
    """Return the same for finite d: the crosstalk is a sum of (d − 1)(n − 1) independent signs [derived].

    A bit whose field is zero keeps neither sign and counts as wrong half of the time.
    """
    from scipy.stats import binom

    signs = (dim - 1) * (n - 1)
    minority = (signs - (dim - 1)) / 2  # how many signs are +1 when the crosstalk just cancels the bit
    below = binom.cdf(np.ceil(minority) - 1, signs, 0.5)
    tie = binom.pmf(minority, signs, 0.5) if minority == int(minority) else 0.0
    return float(below + tie / 2)


def dense_bit_error(n: int, dim: int, degree: int) -> float:
    """Return how often one step of a dense memory spoils a bit, Q(√(d^{a−1}/(n (2a − 3)!!))), for large d."""
    return _tail(np.sqrt(dim ** (degree - 1) / (n * _double_factorial(2 * degree - 3))))


def cover_probability(n: int, dim: int) -> float:
    """Return which share of the labellings of n points in R^d a plane through 0 separates, 2^{1−n} Σ_{k<d} C(n − 1, k).

    The points are in general position. The share is one half at n = 2d.
    """
    k = np.arange(min(dim, n))
    log = [lgamma(n) - lgamma(x + 1) - lgamma(n - x) + (1 - n) * np.log(2) for x in k]
    return float(np.exp(log).sum())


def polynomial_error(n: int, dim: int, degree: int) -> float:
    """Return the expected squared error of `refattn.layers.pavlovian.polynomial_memory_read` [derived].

    (n − 1) E c^{2p} = (n − 1) (2p − 1)!! / (d (d + 2) ⋯ (d + 2p − 2)) for unit keys and uncorrelated unit values.
    """
    return float((n - 1) * _double_factorial(2 * degree - 1) / np.prod(dim + 2.0 * np.arange(degree)))


def softmax_crosstalk(n: int, dim: int, beta: float) -> float:
    """Return E Σ_{i≠j} e^{β (c_ij − 1)} for unit keys: (n − 1) e^{−β} Γ(d/2) (2/β)^{d/2−1} I_{d/2−1}(β) [derived].

    The last four factors are the normaliser of the von Mises-Fisher distribution. Where the sum is small it is about
    the length of the error of `refattn.layers.pavlovian.softmax_memory_read`.
    """
    from scipy.special import gammaln, ive

    order = dim / 2 - 1
    return float((n - 1) * np.exp(gammaln(dim / 2) + order * np.log(2 / beta)) * ive(order, beta))


def _tail(x: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(-x))


def _double_factorial(k: int) -> float:
    return float(np.prod(np.arange(k, 0, -2, dtype=float)))
