"""Gradient flow of the reduced model: from a small start through the bend to a drift that never ends.

``(μ̇, ω̇) = −∇(L/2)``, half the loss as in the official code. One adaptive solver covers twelve orders of magnitude of
time in a fraction of a second, where fixed steps of 0.01 would need a hundred million.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

from refattn.primitives.arguments import as_float, require, require_finite
from theory.icl_regression.losses import (
    checked_heads,
    checked_samples,
    closed_gradient,
    population_loss,
    quadratic_form,
    required_rng,
)
from theory.icl_regression.reduced import mean_gradient, mean_loss, sample_scores

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FlowResult",
    "euler_flow",
    "exact_pair_flow",
    "first_phase",
    "gradient_flow",
    "gradient_flows",
    "limit_step",
    "pair_power_law",
    "same_sign",
]


class FlowResult(NamedTuple):
    """A trajectory.

    Attributes
    ----------
    t : ndarray, (T,)
        Times.
    mu, omega : ndarray, (T, H)
        Parameters of the heads.
    loss : ndarray, (T,)
        The loss that the flow descends, whole, not halved.
    """

    t: np.ndarray
    mu: np.ndarray
    omega: np.ndarray
    loss: np.ndarray


def gradient_flow(
    mu0: Any,
    omega0: Any,
    dim: int,
    length: int,
    noise_var: float,
    t_eval: Any,
    *,
    method: str = "paper",
    n_samples: int | None = None,
    rng: np.random.Generator | None = None,
    rtol: float = 1e-8,
) -> FlowResult:
    """Follow the gradient flow of half the loss from time 0.

    Parameters
    ----------
    mu0, omega0 : array_like, (H,)
        Where it starts.
    dim, length : int
        Dimension d and number of context tokens L.
    noise_var : float
        Variance of the noise.
    t_eval : array_like, (T,)
        Increasing times ≥ 0 at which to report.
    method : {"paper", "order1", "mc", "exact"}
        Which loss to descend; see `theory.icl_regression.losses`.
    n_samples : int, optional
        Prompts for ``"mc"``, drawn once and kept: the flow of a sample mean, so that it is a differential equation.
    rng : numpy.random.Generator, optional
        Source of randomness, for ``"mc"``.
    rtol : float
        Relative tolerance of the solver; the absolute one is a thousandth of it.

    Returns
    -------
    FlowResult
        Times, parameters and losses.

    Raises
    ------
    ValueError
        As `theory.icl_regression.losses.population_loss`, and if ``t_eval`` is empty, negative or not increasing.
    RuntimeError
        If the solver gives up, as it must when ``"order1"`` is driven to ω² = 1/2, where its loss ends.

    Notes
    -----
    LSODA of SciPy, which changes to an implicit method by itself when the drift makes the problem stiff.
    """
    mu, omega = checked_heads(mu0, omega0, dim, length, noise_var, method)
    times = _times(t_eval)
    gradient, loss = _descended(dim, length, noise_var, method, n_samples, rng)

    def velocity(_t: float, state: np.ndarray) -> np.ndarray:
        # eq: icl-flow
        _, d_mu, d_omega = gradient(*np.split(state, 2))
        return -0.5 * np.concatenate([d_mu, d_omega])

    states = _solved(velocity, np.concatenate([mu, omega]), times, rtol)  # (T, 2H)
    mus, omegas = np.split(states, 2, axis=1)  # (T, H) each
    return FlowResult(times, mus, omegas, np.array([loss(*both) for both in zip(mus, omegas, strict=True)]))


def gradient_flows(
    mu0: np.ndarray, omega0: np.ndarray, dim: int, length: int, noise_var: float, t_end: float
) -> FlowResult:
    """Follow many independent flows of the paper's loss at once, to one time.

    Parameters
    ----------
    mu0, omega0 : ndarray, (R, H)
        Where each of R flows starts.
    dim, length : int
        Dimension d and number of context tokens L.
    noise_var : float
        Variance of the noise.
    t_end : float
        When to stop.

    Returns
    -------
    FlowResult
        Where each has arrived: ``t`` (1,), ``mu`` and ``omega`` (R, H), ``loss`` (R,).
    """
    shape = mu0.shape
    c = (1 + noise_var) / length

    def velocity(_t: float, state: np.ndarray) -> np.ndarray:
        mu, omega = state.reshape(2, *shape)
        grown = c * np.exp(dim * omega[:, :, None] * omega[:, None, :])  # (R, H, H)
        step = 1 - np.sum(mu * omega, -1, keepdims=True)  # (R, 1)
        d_mu = step * omega - np.einsum("rhk,rk->rh", grown, mu)
        d_omega = step * mu - dim * mu * np.einsum("rhk,rk->rh", grown, mu * omega)
        return np.stack([d_mu, d_omega]).ravel()

    start = np.stack([mu0, omega0]).ravel()
    solution = solve_ivp(velocity, (0, t_end), start, method="RK45", rtol=1e-5, atol=1e-8, t_eval=[t_end])
    mu, omega = solution.y[:, -1].reshape(2, *shape)
    reached = [closed_gradient(*heads, dim, length, noise_var, "paper")[0] for heads in zip(mu, omega, strict=True)]
    return FlowResult(np.array([t_end]), mu, omega, np.array(reached))


def euler_flow(
    mu0: Any, omega0: Any, dim: int, length: int, noise_var: float, *, step: float, steps: int, method: str = "paper"
) -> FlowResult:
    """Follow the same flow by explicit Euler steps, as the official code does.

    Parameters
    ----------
    mu0, omega0, dim, length, noise_var, method
        As for `gradient_flow`, without ``"mc"``.
    step : float
        Step in time; the official code takes 0.01.
    steps : int
        How many.

    Returns
    -------
    FlowResult
        ``steps + 1`` states, the start among them.
    """
    require(method != "mc", "method='mc' has no Euler flow; use gradient_flow")
    require(step > 0, f"step={step} must be > 0")
    require(steps >= 0, f"steps={steps} must be >= 0")
    mu, omega = checked_heads(mu0, omega0, dim, length, noise_var, method)
    states = []
    for _ in range(steps + 1):
        loss, d_mu, d_omega = closed_gradient(mu, omega, dim, length, noise_var, method)
        states.append((mu, omega, loss))
        mu, omega = mu - step * d_mu / 2, omega - step * d_omega / 2
    mus, omegas, losses = zip(*states, strict=True)
    return FlowResult(step * np.arange(steps + 1), np.array(mus), np.array(omegas), np.array(losses))


def exact_pair_flow(
    start: float, dim: int, length: int, noise_var: float, t_eval: Any, *, nodes: int = 60
) -> FlowResult:
    """Follow the flow of the exact loss from ``μ = ±start``, ``ω = ±start``.

    Parameters
    ----------
    start : float
        Size of all four parameters, of either sign; the two heads stay opposite.
    dim, length, noise_var, t_eval
        As for `gradient_flow`.
    nodes : int
        Chebyshev nodes on ``0 < ω < 2/√d``.

    Returns
    -------
    FlowResult
        With two heads.

    Notes
    -----
    A pair's loss is ``1 + σ² − 2 a μ + b μ²`` with two functions of ω alone. They are integrated once at the nodes;
    after that a step costs nothing.
    """
    checked_heads([start], [start], dim, length, noise_var, "exact")
    require(0 < start < 2 / np.sqrt(dim), f"start={start} must lie between 0 and 2/sqrt(dim)")
    times = _times(t_eval)
    a, b = (_interpolated(values, 2 / np.sqrt(dim)) for values in _pair_form(dim, length, noise_var, nodes))
    a_slope, b_slope = a.deriv(), b.deriv()

    def velocity(_t: float, state: np.ndarray) -> np.ndarray:
        mu, omega = state
        # each head bears half of the pair's gradient, and the flow descends half the loss
        return np.array([a(omega) - b(omega) * mu, mu * a_slope(omega) - mu**2 * b_slope(omega) / 2]) / 2

    mu, omega = _solved(velocity, np.array([start, start], dtype=float), times, 1e-8).T  # (T,) each
    opposite = np.array([1.0, -1.0])
    loss = 1 + noise_var - 2 * a(omega) * mu + b(omega) * mu**2
    return FlowResult(times, mu[:, None] * opposite, omega[:, None] * opposite, loss)


def first_phase(start: float, t: Any) -> np.ndarray:
    """Return μ(t) = ω(t) of a pair that starts at ``μ = ω = start``, while both are small.

    Notes
    -----
    [derived] ``ẋ = x − 2x³``; the pair leaves after about ``ln(1/start)``.
    """
    require(start > 0, f"start={start} must be > 0")
    decay = np.exp(-2 * as_float("t", t))
    # eq: icl-phase1
    return np.asarray(start / np.sqrt(decay + 2 * start**2 * (1 - decay)))


def limit_step(dim: int, length: int, noise_var: float) -> float:
    """Return ``η = 2μω`` of the pair in the limit of the paper's flow, ``1/(1 + (1 + σ²) d/L)``."""
    # eq: icl-step
    return 1 / (1 + (1 + noise_var) / length * dim)


def pair_power_law(t: Any, dim: int, length: int, noise_var: float) -> tuple[np.ndarray, np.ndarray]:
    """Return μ(t) and ω(t) of the pair in the third phase of the paper's flow, ``∝ t^(1/6)`` and ``∝ t^(−1/6)``.

    Notes
    -----
    [derived]; the page of this theory has the three lines.
    """
    eta = limit_step(dim, length, noise_var)
    c = (1 + noise_var) / length
    # eq: icl-phase3
    mu = (4 * c * dim**3 * (eta / 2) ** 6 * as_float("t", t)) ** (1 / 6)
    return mu, eta / (2 * mu)


def same_sign(omega: np.ndarray) -> np.ndarray:
    """Return which rows of (R, H) have heads of one sign only: the trap of the flow, (R,)."""
    return np.asarray(np.all(omega > 0, -1) | np.all(omega < 0, -1))


def _times(t_eval: Any) -> np.ndarray:
    times = np.asarray(as_float("t_eval", t_eval, ndim=1), dtype=np.float64)
    require_finite("t_eval", times)
    require(len(times) >= 1, "t_eval has shape (0,), expected at least one time")
    require(times[0] >= 0 and np.all(np.diff(times) > 0), "t_eval must be increasing and >= 0")
    return times


def _descended(
    dim: int, length: int, noise_var: float, method: str, n_samples: int | None, rng: np.random.Generator | None
) -> tuple[Callable[..., tuple[float, np.ndarray, np.ndarray]], Callable[..., float]]:
    """Return gradient and value of the loss that is descended, as functions of μ and ω."""
    if method != "mc":
        return (
            lambda mu, omega: closed_gradient(mu, omega, dim, length, noise_var, method),
            lambda mu, omega: population_loss(mu, omega, dim, length, noise_var, method=method).value,
        )
    r, u = sample_scores(checked_samples(n_samples), dim, length, required_rng(rng))
    return (
        lambda mu, omega: mean_gradient(mu, omega, r, u, dim, noise_var),
        lambda mu, omega: mean_loss(mu, omega, r, u, dim, noise_var)[0],
    )


def _pair_form(dim: int, length: int, noise_var: float, nodes: int) -> np.ndarray:
    """Return ``a`` and ``b`` of a pair's loss at Chebyshev nodes on ``(0, 2/√d)``, (2, nodes)."""
    omegas = (np.polynomial.chebyshev.chebpts1(nodes) + 1) / np.sqrt(dim)
    forms = [quadratic_form([omega, -omega], dim, length, noise_var) for omega in omegas]
    return np.array([(a[0] - a[1], b[0, 0] - b[0, 1] - b[1, 0] + b[1, 1]) for a, b in forms]).T


def _interpolated(values: np.ndarray, upper: float) -> np.polynomial.Chebyshev:
    return np.polynomial.Chebyshev(_chebyshev_coefficients(values), domain=[0, upper])


def _chebyshev_coefficients(values: np.ndarray) -> np.ndarray:
    nodes = np.polynomial.chebyshev.chebpts1(len(values))
    basis = np.polynomial.chebyshev.chebvander(nodes, len(values) - 1)  # orthogonal on these nodes
    scale = np.full(len(values), 2 / len(values))
    scale[0] /= 2
    return np.asarray(scale * (basis.T @ values))


def _solved(
    velocity: Callable[[float, np.ndarray], np.ndarray], start: np.ndarray, times: np.ndarray, rtol: float
) -> np.ndarray:
    if times[-1] == 0:
        return start[None]
    solution = solve_ivp(velocity, (0, times[-1]), start, method="LSODA", t_eval=times, rtol=rtol, atol=rtol / 1000)
    if not solution.success:
        raise RuntimeError(f"the solver stopped at t={solution.t[-1] if solution.t.size else 0}: {solution.message}")
    return np.asarray(solution.y.T)
