r"""Moments of softmax weights over Gaussian scores, by quadrature instead of sampling.

With scores ``s u_i`` and ``s' u_i``, ``u_i ~ N(0, 1)`` independent, two heads hand out the weights ``p`` and ``p'``.
The population loss needs ``E[p·p']`` and ``E[(u·p)(u·p')]``. The two denominators are what makes these averages hard;
writing ``1/(D D')`` as a double integral of ``exp(−tD − t'D')`` turns the average over L tokens into a power of an
average over one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import roots_genlaguerre

__all__ = ["PairMoments", "pair_moments", "pair_moments_slope", "radius_nodes"]

NORMAL_NODES = 64
"""Gauss-Hermite nodes for one score."""
LAPLACE_NODES = 56
"""Points on each of the two axes t, t', which are logarithmic."""
RADIUS_NODES = 12
"""Gauss-Laguerre nodes for the length of the query."""
_STEP = 1e-30
"""Step into the complex plane for derivatives; nothing is subtracted, so it may be this small."""


_TINY = 1e-300
"""Keeps the logarithm finite where the integrand is zero anyway."""


class PairMoments(NamedTuple):
    """Averages over the tokens of a prompt, for two heads.

    Attributes
    ----------
    overlap : ndarray
        ``E[p·p']``.
    product : ndarray
        ``E[(u·p)(u·p')]``.
    """

    overlap: np.ndarray
    product: np.ndarray


def pair_moments(s: np.ndarray, s_other: np.ndarray, length: int) -> PairMoments:
    """Return ``E[p·p']`` and ``E[(u·p)(u·p')]`` for softmax weights of L ≥ 2 standard normal scores.

    Parameters
    ----------
    s, s_other : ndarray, (R,)
        Sharpness of the two heads: their weights are softmax(s u) and softmax(s' u). ``s`` may be complex.
    length : int
        Number of tokens L.

    Returns
    -------
    PairMoments
        Two arrays (R,).

    Notes
    -----
    ``t = exp(τ)`` on a uniform grid of τ, so the trapezoid rule converges faster than any power. To the left of the
    grid the integrand is proportional to ``exp(τ)`` and its sum is a geometric series, which the first weight holds.
    """
    g, mass = _normal_nodes()  # (G,)
    t, weight = _laplace_grid(s.real, length)  # (R, T)
    t_other, weight_other = _laplace_grid(s_other.real, length)  # (R, T)
    tilt = np.exp(s[:, None, None] * g)  # (R, 1, G)
    tilt_other = np.exp(s_other[:, None, None] * g)  # (R, 1, G)
    left = mass * np.exp(-t[..., None] * tilt)  # (R, T, G)
    right = np.exp(-t_other[..., None] * tilt_other)  # (R, T, G)
    left_tilted, right_tilted = left * tilt, _transposed(right * tilt_other)  # (R, T, G), (R, G, T)
    right = _transposed(right)  # (R, G, T)

    # eq: icl-laplace
    phi = left @ right  # (R, T, T)
    g0 = left_tilted @ right_tilted
    g2 = (g**2 * left_tilted) @ right_tilted
    n = (g * left_tilted) @ right
    n_other = left @ (g[:, None] * right_tilted)

    # eq: icl-moments
    others = np.exp((length - 2) * np.log(phi + _TINY))  # (R, T, T): the L − 2 tokens that are not named
    overlap = length * _integral(g0 * phi * others, weight, weight_other)
    same = length * _integral(g2 * phi * others, weight, weight_other)
    different = length * (length - 1) * _integral(n * n_other * others, weight, weight_other)
    return PairMoments(overlap, same + different)


def pair_moments_slope(s: np.ndarray, s_other: np.ndarray, length: int) -> PairMoments:
    """Return the derivatives of `pair_moments` with respect to ``s``, the first head's sharpness.

    Notes
    -----
    By a step into the complex plane: the moments are analytic in ``s``, so ``Im f(s + ih)/h`` is the derivative to
    rounding.
    """
    moments = pair_moments(s + 1j * _STEP, s_other.astype(complex), length)
    return PairMoments(moments.overlap.imag / _STEP, moments.product.imag / _STEP)


@lru_cache
def radius_nodes(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes ``r`` and weights for the length of a standard normal vector of ``dim`` entries: ``r² ~ χ²``."""
    half_square, weight = roots_genlaguerre(RADIUS_NODES, dim / 2 - 1)
    return _frozen(np.sqrt(2 * half_square)), _frozen(weight / weight.sum())


@lru_cache
def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    node, weight = np.polynomial.hermite_e.hermegauss(NORMAL_NODES)
    return _frozen(node), _frozen(weight / weight.sum())


def _laplace_grid(s: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return t (R, T) and its weights, Jacobian included."""
    centre = -np.log(length) - s**2 / 2  # 1/D of a typical prompt, as a logarithm
    tau = np.linspace(centre - 10 - 3 * np.abs(s), centre + 5 + 3 * np.abs(s), LAPLACE_NODES, axis=-1)  # (R, T)
    step = tau[:, 1:2] - tau[:, :1]  # (R, 1)
    weight = step * np.exp(tau)
    weight[:, :1] /= 1 - np.exp(-step)  # the first point stands for all the points before it
    weight[:, -1] /= 2
    return np.exp(tau), weight


def _integral(values: np.ndarray, weight: np.ndarray, weight_other: np.ndarray) -> np.ndarray:
    """Integrate (R, T, T) over both t."""
    return np.asarray((weight[:, None, :] @ values @ weight_other[:, :, None])[:, 0, 0])  # (R,)


def _transposed(array: np.ndarray) -> np.ndarray:
    return np.swapaxes(array, -1, -2)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False  # shared by all callers through the cache
    return array
