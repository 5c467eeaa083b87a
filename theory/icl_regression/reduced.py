"""The reduced model on sampled prompts, with the hidden rule and the noise averaged out by hand.

A prompt enters the loss only through ``r = ‖x_q‖`` and the L scores ``u_i = x_i·x_q / r``: L + 1 random numbers in
place of (d + 1) L + 2 d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["mean_gradient", "mean_loss", "prompt_gradients", "prompt_losses", "sample_scores", "sample_sharpness"]

_CHUNK = 1 << 19
"""Scores to look at in one go: a few megabytes stay in the cache."""


def sample_scores(n_samples: int, dim: int, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw what a prompt's loss depends on.

    Returns
    -------
    r : ndarray, (B,)
        Length of the query, ``r² ~ χ²`` with d degrees of freedom.
    u : ndarray, (B, L)
        Scores ``x_i·x_q / r``: independent standard normal numbers.
    """
    return np.sqrt(rng.chisquare(dim, n_samples)), rng.standard_normal((n_samples, length))


def prompt_losses(
    mu: np.ndarray, omega: np.ndarray, r: np.ndarray, u: np.ndarray, dim: int, noise_var: float
) -> np.ndarray:
    """Return the loss of each prompt, the rule and the noise averaged out, (B,).

    Parameters
    ----------
    mu, omega : ndarray, (H,)
        Parameters of the heads.
    r : ndarray, (B,)
        Length of the query.
    u : ndarray, (B, L)
        Scores.
    dim : int
        Dimension d.
    noise_var : float
        Variance of the noise.
    """
    w = np.einsum("h,bhl->bl", mu, _weights(omega, r, u))  # (B, L)
    # eq: icl-rotated
    miss = np.sum(u * w, -1) - r  # (B,)
    return np.asarray(miss**2 / dim + ((dim - 1) / dim + noise_var) * np.sum(w**2, -1) + noise_var)


def prompt_gradients(
    mu: np.ndarray, omega: np.ndarray, r: np.ndarray, u: np.ndarray, dim: int, noise_var: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of each prompt's loss, by μ and by ω, each (B, H)."""
    p = _weights(omega, r, u)  # (B, H, L)
    w = np.einsum("h,bhl->bl", mu, p)  # (B, L)
    miss = np.sum(u * w, -1, keepdims=True) - r[:, None]  # (B, 1)
    # eq: icl-reduced-gradient
    g = 2 / dim * miss * u + 2 * ((dim - 1) / dim + noise_var) * w  # (B, L)
    p_g = np.einsum("bhl,bl->bh", p, g)
    p_u = np.einsum("bhl,bl->bh", p, u)
    covariance = np.einsum("bhl,bl->bh", p, u * g) - p_u * p_g  # (B, H)
    return p_g, mu * r[:, None] * covariance


def mean_loss(
    mu: np.ndarray, omega: np.ndarray, r: np.ndarray, u: np.ndarray, dim: int, noise_var: float
) -> tuple[float, float]:
    """Return the mean of `prompt_losses` and its standard error."""
    parts = [prompt_losses(mu, omega, r[rows], u[rows], dim, noise_var) for rows in _chunks(u)]
    losses = np.concatenate(parts)  # (B,)
    return float(losses.mean()), float(losses.std(ddof=1) / np.sqrt(len(losses)))


def mean_gradient(
    mu: np.ndarray, omega: np.ndarray, r: np.ndarray, u: np.ndarray, dim: int, noise_var: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean loss of sampled prompts and its gradient by μ and by ω, each (H,)."""
    parts = [prompt_gradients(mu, omega, r[rows], u[rows], dim, noise_var) for rows in _chunks(u)]
    d_mu, d_omega = (np.concatenate(part).mean(0) for part in zip(*parts, strict=True))
    return mean_loss(mu, omega, r, u, dim, noise_var)[0], d_mu, d_omega


def sample_sharpness(omega: float, n_samples: int, dim: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``‖p‖²`` of one head on sampled prompts, (B,): 1/L for even weights, 1 for all weight on one token."""
    r, u = sample_scores(n_samples, dim, length, rng)
    parts = [np.sum(_weights(np.array([omega]), r[rows], u[rows]) ** 2, (1, 2)) for rows in _chunks(u)]
    return np.concatenate(parts)


def _weights(omega: np.ndarray, r: np.ndarray, u: np.ndarray) -> np.ndarray:
    return softmax((r[:, None] * u)[:, None, :] * omega[:, None])  # (B, H, L)


def _chunks(u: np.ndarray) -> Iterator[slice]:
    rows = max(1, _CHUNK // u.shape[1])
    return (slice(start, start + rows) for start in range(0, len(u), rows))
