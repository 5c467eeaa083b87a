"""What FIT costs: scored pairs and multiply-adds of a stage, and the number of groups that costs least (2305.12689).

Plain arithmetic on sizes [derived]; every function takes lengths as numbers or arrays. Equation labels (fit-15) to
(fit-17) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import require

__all__ = ["FITCost", "fit_cost", "fit_least_cost", "fit_multiply_adds", "fit_optimal_groups"]


class FITCost(NamedTuple):
    """The cost of one stage ``(1)1`` with READ and WRITE, by its parts.

    Attributes
    ----------
    local, cross, wide : ndarray
        Of LOCAL, of READ and WRITE together, and of GLOBAL.
    """

    local: np.ndarray
    cross: np.ndarray
    wide: np.ndarray


def fit_cost(length: Any, num_groups: Any, latents_per_group: Any) -> FITCost:
    """Return how many pairs a stage scores, one head counted: L²/t, 2 L m and (m t)².

    Parameters
    ----------
    length, num_groups, latents_per_group : array_like
        L, t and m.

    Returns
    -------
    FITCost
        Numbers of query-key pairs.

    Raises
    ------
    ValueError
        If a size is not positive.
    """
    L, t, m = (_positive(*pair) for pair in _named(length, num_groups, latents_per_group))
    # eq: fit-15
    return FITCost(L**2 / t, 2 * L * m, (m * t) ** 2)


def fit_optimal_groups(length: Any, latents_per_group: Any) -> np.ndarray:
    """Return t*, the number of groups at which local and global pairs together are fewest; not rounded.

    Parameters
    ----------
    length, latents_per_group : array_like
        L and m.

    Returns
    -------
    ndarray
        (L² / 2m²)^(1/3).

    Raises
    ------
    ValueError
        If a size is not positive.
    """
    L, _, m = (_positive(*pair) for pair in _named(length, 1, latents_per_group))
    # eq: fit-16
    groups: np.ndarray = (L**2 / (2 * m**2)) ** (1 / 3)
    return groups


def fit_least_cost(length: Any, latents_per_group: Any) -> np.ndarray:
    """Return the local and global pairs of a stage with t* groups: 3/2 · 2^(1/3) m^(2/3) L^(4/3).

    Parameters
    ----------
    length, latents_per_group : array_like
        L and m.

    Returns
    -------
    ndarray
        Numbers of query-key pairs.

    Raises
    ------
    ValueError
        If a size is not positive.
    """
    L, _, m = (_positive(*pair) for pair in _named(length, 1, latents_per_group))
    # eq: fit-17
    pairs: np.ndarray = 1.5 * 2 ** (1 / 3) * m ** (2 / 3) * L ** (4 / 3)
    return pairs


def fit_multiply_adds(
    length: Any, num_groups: Any, latents_per_group: Any, *, x_dim: int, latent_dim: int, mlp_ratio: int = 4
) -> FITCost:
    """Return the multiply-adds of a stage, projections and MLPs included.

    Parameters
    ----------
    length, num_groups, latents_per_group : array_like
        L, t and m.
    x_dim, latent_dim : int
        dx and dl.
    mlp_ratio : int
        r.

    Returns
    -------
    FITCost
        A transformer layer of width d over N tokens that see M costs N (2 M d + (4 + 2 r) d²). READ and WRITE cost
        2 L m a each for scores and averages, and 2 L dx a + 2 m t dl a each for projections, a = min(dx, dl).

    Raises
    ------
    ValueError
        If a size is not positive.
    """
    L, t, m = (_positive(*pair) for pair in _named(length, num_groups, latents_per_group))
    require(min(x_dim, latent_dim, mlp_ratio) >= 1, f"sizes {(x_dim, latent_dim, mlp_ratio)!r} must be >= 1")
    a, dense = min(x_dim, latent_dim), 4 + 2 * mlp_ratio
    local = L * (2 * L / t * x_dim + dense * x_dim**2)
    cross = 4 * L * m * a + 4 * (L * x_dim + m * t * latent_dim) * a
    return FITCost(local, cross, m * t * (2 * m * t * latent_dim + dense * latent_dim**2))


def _named(length: Any, num_groups: Any, latents_per_group: Any) -> list[tuple[str, Any]]:
    return [("length", length), ("num_groups", num_groups), ("latents_per_group", latents_per_group)]


def _positive(name: str, value: Any) -> np.ndarray:
    sizes = np.asarray(value, dtype=np.float64)
    require((sizes > 0).all(), f"{name}={value!r} must be > 0")
    return sizes
