"""Exact averages over the eigenvalues of a real Wishart matrix, of any size."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["mean_inverse_trace", "mean_linear_statistic"]


def mean_inverse_trace(size: int, degrees: int, shift: float) -> float:
    """Return ``E tr(X^T X + λI)^{-1}`` for a standard normal X of shape (degrees, size).

    Parameters
    ----------
    size, degrees : int
        Columns and rows of X, both at least 1. With fewer rows than columns some eigenvalues are zero; they count.
    shift : float
        λ > 0.
    """
    zeros = max(size - degrees, 0)
    few, many = min(size, degrees), max(size, degrees)
    return zeros / shift + mean_linear_statistic(lambda x: 1 / (x + shift), few, many)


def mean_linear_statistic(statistic: Callable[[np.ndarray], np.ndarray], size: int, degrees: int) -> float:
    """Return ``E Σ_i g(x_i)`` over the eigenvalues of a real Wishart matrix with ``degrees ≥ size``.

    Notes
    -----
    The eigenvalues have the density ``∏ x^((n−p−1)/2) e^(−x/2) ∏|x_i − x_j|``. By de Bruijn's formula the mean of
    ``∏ f(x_i)`` is a Pfaffian, so the mean of ``Σ g`` is ``½ tr(A^{-1} A_g)``, with ``A_jk`` the integral of
    ``sgn(y−x) φ_j(x) φ_k(y)`` and ``A_g`` the same with a factor ``g(x) + g(y)``; an odd size borders both by single
    integrals. All integrals are taken in the variable ``√x``, where everything is smooth.
    """
    z, weight, cumulative = _nodes(size, degrees)  # (N,), (N,), (N, N)
    phi = _laguerre_functions(z, size, degrees)  # (p, N)
    tilted_phi = phi * statistic(z**2)

    def signed(left: np.ndarray) -> np.ndarray:
        until = left @ cumulative.T  # (p, N): the integral from 0 to each node
        total = left @ weight  # (p,)
        return np.asarray((2 * until - total[:, None]) @ (weight * phi).T)  # (p, p)

    plain, tilted = signed(phi), signed(tilted_phi)
    tilted = tilted - tilted.T  # g may stand with either factor
    if size % 2:
        plain, tilted = _bordered(plain, phi @ weight), _bordered(tilted, tilted_phi @ weight)
    return float(np.trace(np.linalg.solve(plain, tilted)) / 2)


def _laguerre_functions(z: np.ndarray, size: int, degrees: int) -> np.ndarray:
    """Return ``φ_j(z) = p_j(z²) z^(n−p) e^(−z²/2)``, orthogonal in ``dz``, j < p, (p, N)."""
    alpha = degrees - size - 0.5
    phi = np.zeros((size, *z.shape))
    phi[0] = np.exp((alpha + 0.5) * np.log(z) - z**2 / 2 - gammaln(alpha + 1) / 2)
    before, root = np.zeros_like(z), 0.0
    for k in range(size - 1):
        following = np.sqrt((k + 1) * (k + 1 + alpha))
        phi[k + 1] = ((z**2 - (2 * k + 1 + alpha)) * phi[k] - root * before) / following
        before, root = phi[k], following
    return phi


def _nodes(size: int, degrees: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return nodes on the singular values, weights, and the matrix that integrates up to each node."""
    largest = np.sqrt(degrees) + np.sqrt(size) + 8
    node, weight, cumulative = _legendre(200 + 8 * size)
    half = largest / 2
    return half * (node + 1), half * weight, half * cumulative


@lru_cache
def _legendre(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    node, weight = np.polynomial.legendre.leggauss(count)
    p = np.polynomial.legendre.legvander(node, count)  # (N, N + 1)
    # ∫_{−1}^x of the polynomial that is 1 at one node and 0 at the others
    series = (p[:, 2:] - p[:, :-2]) @ p[:, 1:-1].T  # (N, N)
    cumulative = weight * (node[:, None] + 1 + series) / 2
    for array in (node, weight, cumulative):
        array.flags.writeable = False  # shared by all callers through the cache
    return node, weight, cumulative


def _bordered(matrix: np.ndarray, border: np.ndarray) -> np.ndarray:
    return np.block([[matrix, border[:, None]], [-border[None], np.zeros((1, 1))]])
