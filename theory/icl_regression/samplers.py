"""Prompts of linear regression: examples of one hidden rule, and a question about it.

The number of prompts, the length and the dimension are the caller's; every random number comes from the generator that
is passed in, in the order in which the fields of `Prompts` stand below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import require, require_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Prompts", "ar1_covariance", "sample_multitask_prompts", "sample_prompts"]


class Prompts(NamedTuple):
    """A batch of prompts; with several tasks, the axis of tasks stands last in ``y``, ``y_q`` and second in ``beta``.

    Attributes
    ----------
    x : ndarray, (B, L, d)
        Covariates of the context.
    y : ndarray, (B, L) or (B, L, N)
        Their noisy responses.
    x_q : ndarray, (B, d)
        The query.
    y_q : ndarray, (B,) or (B, N)
        The response to predict.
    beta : ndarray, (B, d) or (B, N, d)
        The hidden rule; zero outside a task's support.
    """

    x: np.ndarray
    y: np.ndarray
    x_q: np.ndarray
    y_q: np.ndarray
    beta: np.ndarray


def sample_prompts(
    batch: int,
    length: int,
    dim: int,
    noise_var: float,
    rng: np.random.Generator,
    *,
    cov: np.ndarray | None = None,
    dtype: Any = np.float64,
) -> Prompts:
    """Draw prompts: covariates N(0, Σ), a rule N(0, I/d), and noise on every response, the query's included.

    Parameters
    ----------
    batch, length, dim : int
        Number of prompts B, of context tokens L, and of covariates d.
    noise_var : float
        Variance σ² of the noise.
    rng : numpy.random.Generator
        Source of all randomness.
    cov : ndarray, (d, d), optional
        Covariance Σ of the covariates; the identity if not given.
    dtype : dtype, optional
        float64 or float32.

    Returns
    -------
    Prompts
        ``x`` (B, L, d), ``y`` (B, L), ``x_q`` (B, d), ``y_q`` (B,), ``beta`` (B, d).

    Raises
    ------
    ValueError
        If ``batch`` is negative, ``length`` or ``dim`` is below 1, ``noise_var`` is negative or not finite, or ``cov``
        is not a positive definite d × d matrix.

    Notes
    -----
    The scale is that of the official code: ``E‖β‖² = 1``, so predicting zero costs ``1 + σ²``. The very first version
    of that code drew ``β ~ N(0, I)``; its losses are d times larger.
    """
    require_sizes(batch, length, dim, noise_var)
    root = None if cov is None else _root(cov, dim).astype(dtype)

    def covariates(*shape: int) -> np.ndarray:
        white = rng.standard_normal((*shape, dim), dtype=dtype)
        return white if root is None else white @ root.T

    x = covariates(batch, length)  # (B, L, d)
    x_q = covariates(batch)  # (B, d)
    beta = rng.standard_normal((batch, dim), dtype=dtype) / np.sqrt(dim, dtype=dtype)  # (B, d)
    sigma = np.sqrt(noise_var, dtype=dtype)
    y = (x @ beta[..., None])[..., 0] + sigma * rng.standard_normal((batch, length), dtype=dtype)  # (B, L)
    y_q = np.sum(x_q * beta, -1) + sigma * rng.standard_normal(batch, dtype=dtype)  # (B,)
    return Prompts(x, y, x_q, y_q, beta)


def sample_multitask_prompts(
    batch: int,
    length: int,
    dim: int,
    supports: Sequence[Sequence[int]],
    noise_var: float,
    rng: np.random.Generator,
    *,
    dtype: Any = np.float64,
) -> Prompts:
    """Draw prompts that answer N questions about the same covariates, each about some of their coordinates.

    Parameters
    ----------
    batch, length, dim : int
        Number of prompts B, of context tokens L, and of covariates d.
    supports : sequence of sequence of int
        The coordinates S_n that task n looks at.
    noise_var : float
        σ²; the noise of task n has variance ``d_n σ²`` with ``d_n = len(S_n)``.
    rng : numpy.random.Generator
        Source of all randomness.
    dtype : dtype, optional
        float64 or float32.

    Returns
    -------
    Prompts
        ``x`` (B, L, d), ``y`` (B, L, N), ``x_q`` (B, d), ``y_q`` (B, N), ``beta`` (B, N, d).

    Raises
    ------
    ValueError
        As `sample_prompts`, and if there is no task, or a support is empty, repeats an index or leaves ``[0, d)``.

    Notes
    -----
    As in the official code, ``β_n ~ N(0, I)`` on its support, not divided by ``d_n``, and the query carries no noise.
    """
    require_sizes(batch, length, dim, noise_var)
    mask = support_mask(supports, dim).astype(dtype)  # (N, d)
    x = rng.standard_normal((batch, length, dim), dtype=dtype)  # (B, L, d)
    x_q = rng.standard_normal((batch, dim), dtype=dtype)  # (B, d)
    beta = mask * rng.standard_normal((batch, *mask.shape), dtype=dtype)  # (B, N, d)
    noise = rng.standard_normal((batch, length, len(mask)), dtype=dtype)  # (B, L, N)
    y = x @ np.swapaxes(beta, 1, 2) + np.sqrt(noise_var * mask.sum(1)).astype(dtype) * noise  # (B, L, N)
    y_q = (beta @ x_q[..., None])[..., 0]  # (B, N)
    return Prompts(x, y, x_q, y_q, beta)


def ar1_covariance(dim: int, rho: float) -> np.ndarray:
    """Return the covariance of an AR(1) series, ``Σ_ij = ρ^|i−j|``.

    Parameters
    ----------
    dim : int
        Number of covariates d.
    rho : float
        Correlation of neighbours.

    Returns
    -------
    ndarray, (d, d)
        The covariance; the identity for ``rho = 0``.

    Raises
    ------
    ValueError
        If ``dim`` is below 1 or ``|rho| ≥ 1``.
    """
    require(dim >= 1, f"dim={dim}: dim must be >= 1")
    require(-1 < rho < 1, f"rho={rho}: rho must be between -1 and 1 (exclusive)")
    places = np.arange(dim)
    lags = np.abs(places[:, None] - places)  # (d, d)
    return np.asarray(float(rho) ** lags)


def support_mask(supports: Sequence[Sequence[int]], dim: int) -> np.ndarray:
    """Return the coordinates of each task as a boolean array (N, d)."""
    require(len(supports) >= 1, f"supports={supports!r} must name at least one task")
    mask = np.zeros((len(supports), dim), bool)
    for n, support in enumerate(supports):
        require(len(support) >= 1, f"supports[{n}]={tuple(support)} must not be empty")
        require(len(set(support)) == len(support), f"supports[{n}]={tuple(support)} repeats an index")
        require(all(0 <= j < dim for j in support), f"supports[{n}]={tuple(support)} must lie in [0, {dim})")
        mask[n, list(support)] = True
    return mask


def require_sizes(batch: int, length: int, dim: int, noise_var: float) -> None:
    """Refuse sizes that no prompt has."""
    require(batch >= 0, f"batch={batch} must be >= 0")
    require_problem(dim, length, noise_var)


def require_problem(dim: int, length: int, noise_var: float) -> None:
    """Refuse a regression problem that does not exist."""
    require(dim >= 1, f"dim={dim}: dim must be >= 1")
    require(length >= 1, f"length={length}: length must be >= 1")
    require_finite("noise_var", noise_var)
    require(noise_var >= 0, f"noise_var={noise_var} must be >= 0")


def require_covariance(cov: np.ndarray, dim: int | None = None) -> np.ndarray:
    """Return a covariance as a float64 matrix; refuse what is not square, symmetric and positive definite."""
    cov = np.asarray(cov, dtype=np.float64)
    require(cov.ndim == 2 and cov.shape[0] == cov.shape[1], f"cov has shape {cov.shape}, expected a square matrix")
    require(dim is None or len(cov) == dim, f"cov has shape {cov.shape}, expected {(dim, dim)}")
    require_finite("cov", cov)
    require(np.allclose(cov, cov.T, rtol=1e-12, atol=0), "cov must be symmetric")
    require(np.linalg.eigvalsh(cov)[0] > 0, "cov must be positive definite")
    return cov


def _root(cov: np.ndarray, dim: int) -> np.ndarray:
    return np.linalg.cholesky(require_covariance(cov, dim))
