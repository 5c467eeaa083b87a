"""Several tasks in one attention layer: what debiased gradient descent can reach with H heads, and superposition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_shape
from theory.icl_regression.samplers import require_problem, support_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MultitaskOptimum", "heads_needed", "multitask_optimum", "multitask_risk"]


class MultitaskOptimum(NamedTuple):
    """The best gains ``g_nj = Σ_h μ_nh ω_hj``, (N, d), and the loss, a mean over the tasks."""

    gain: np.ndarray
    loss: float


def multitask_risk(gain: Any, supports: Sequence[Sequence[int]], length: int, noise_var: float) -> np.ndarray:
    """Return the risk of each task under debiased gradient descent with a gain for each coordinate.

    Parameters
    ----------
    gain : array_like, (N, d)
        ``g_nj``: step size of task n along coordinate j.
    supports : sequence of sequence of int
        The coordinates S_n of each task.
    length : int
        Number of examples L.
    noise_var : float
        σ²; task n has noise of variance ``σ² d_n``.

    Returns
    -------
    ndarray, (N,)
        ``E(ŷ_n − y_qn)²``; the query has no noise.

    Notes
    -----
    [derived]
    """
    gain = as_float("gain", gain, ndim=2)
    require_finite("gain", gain)
    linear, square = _coefficients(supports, gain.shape[1], length, noise_var)
    require_shape("gain", gain, linear.shape)
    mask = support_mask(supports, gain.shape[1])
    # eq: icl-multitask-risk
    return np.asarray(np.sum(mask - 2 * gain * linear + gain**2 * square, -1))


def multitask_optimum(
    supports: Sequence[Sequence[int]], dim: int, length: int, noise_var: float, *, n_head: int
) -> MultitaskOptimum:
    """Return what H heads can reach in the limit of small ω.

    Parameters
    ----------
    supports : sequence of sequence of int
        The coordinates S_n of each task.
    dim, length : int
        Dimension d and number of examples L.
    noise_var : float
        σ²; task n has noise of variance ``σ² d_n``.
    n_head : int
        H: at least N + 1, or 2.

    Raises
    ------
    ValueError
        If an argument is out of range, or H is neither 2 nor above N.

    Notes
    -----
    [derived] With H ≥ N + 1 heads every gain can be reached under the constraint ``Σ_h μ_nh = 0``. Two heads give all
    tasks one profile of gains up to scale; the scales are taken equal, which is best for tasks that differ by a
    permutation of the coordinates only.
    """
    linear, square = _coefficients(supports, dim, length, noise_var)
    tasks = len(linear)
    require(n_head == 2 or n_head > tasks, f"n_head={n_head} must be 2, or above the number of tasks, {tasks}")
    if n_head >= heads_needed(tasks):
        gain = linear / square  # (N, d)
    else:
        gain = np.broadcast_to(linear.sum(0) / square.sum(0), linear.shape)
    return MultitaskOptimum(gain, float(np.mean(multitask_risk(gain, supports, length, noise_var))))


def heads_needed(tasks: int) -> int:
    """Return how many heads reach every gain: ``(μ_nh)`` must have rank N with rows that sum to zero."""
    # eq: icl-heads
    return tasks + 1


def _coefficients(
    supports: Sequence[Sequence[int]], dim: int, length: int, noise_var: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of ``−2g`` and ``g²`` in the risk of each coordinate, (N, d) each."""
    require_problem(dim, length, noise_var)
    mask = support_mask(supports, dim)  # (N, d)
    size = mask.sum(1, keepdims=True)  # (N, 1)
    m = length - 1
    return m / length * mask, m / length**2 * ((m + 1) * mask + size * (1 + noise_var))
