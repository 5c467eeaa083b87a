"""Moving mass at the least cost: exact plans, entropic plans, and the map that a plan defines.

A plan P (n, m) says how much of the mass a_i at x_i goes to y_j; its rows sum to a and its columns to b. Equation
source: the dual ascent of Cuturi, 1306.0895, in the log domain [recalled]; labels (cta-9) … (cta-12) are those of the
page on context-aware attention.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_one_of
from refattn.primitives.softmax import log_sum_exp

__all__ = [
    "SinkhornPotentials",
    "emd_plan",
    "pairwise_sq_cost",
    "sinkhorn_plan",
    "sinkhorn_potentials",
    "transport_map",
]

NORMALIZATIONS = (None, "max", "median")
_IMBALANCE = {8: 1e-9, 4: 1e-6, 2: 1e-2}  # how far the two totals may differ, by bytes of the dtype


class SinkhornPotentials(NamedTuple):
    """The two vectors that define an entropic plan, P = exp((f_i + g_j − C_ij)/ε).

    Attributes
    ----------
    f, g : ndarray, shape (..., n) and (..., m)
        Prices of leaving x_i and of arriving at y_j; −∞ where there is no mass. Float64.
    steps : int
        How many pairs of updates were made.
    error : float
        The largest |Σ_j P_ij − a_i| after the last of them.
    """

    f: np.ndarray
    g: np.ndarray
    steps: int
    error: float


def pairwise_sq_cost(x: Any, y: Any, *, normalize: str | None = None) -> np.ndarray:
    """Return the squared distances |x_i − y_j|².

    Parameters
    ----------
    x, y : array_like, shape (..., n, d) and (..., m, d)
        Points; leading axes broadcast.
    normalize : {None, "max", "median"}
        Divide by the largest or by the median distance, so that ε means the same at every scale.

    Returns
    -------
    ndarray, shape (..., n, m)
        In the dtype of the points. If all divisors vanish, so do the distances, and nothing is divided.

    Raises
    ------
    ValueError
        If the points differ in width, or ``normalize`` is none of the three.
    """
    x, y = as_float("x", x), as_float("y", y)
    require(x.ndim >= 2 and y.ndim >= 2, f"x and y have shapes {x.shape} and {y.shape}, expected (..., n, d)")
    require(x.shape[-1] == y.shape[-1], f"y has width {y.shape[-1]}, expected {x.shape[-1]}, that of x")
    require_one_of("normalize", normalize, NORMALIZATIONS)
    require(x.shape[-2] > 0 and y.shape[-2] > 0, f"x and y have shapes {x.shape} and {y.shape}: no point has no cost")
    # eq: cta-9
    rows = [np.sum(np.square(x[..., i, None, :] - y), axis=-1) for i in range(x.shape[-2])]  # (..., m) each
    cost: np.ndarray = np.stack(rows, axis=-2)  # (..., n, m)
    if normalize is None:
        return cost
    flat = cost.reshape(*cost.shape[:-2], cost.shape[-2] * cost.shape[-1])  # (..., n·m)
    scale = (np.max if normalize == "max" else np.median)(flat, axis=-1)[..., None, None]  # (..., 1, 1)
    return np.asanyarray(cost / np.where(scale > 0, scale, 1))


def emd_plan(a: Any, b: Any, cost: Any) -> np.ndarray:
    """Return a plan of least cost ⟨P, C⟩, the earth mover's plan.

    Parameters
    ----------
    a, b : array_like, shape (..., n) and (..., m)
        Masses, not negative, of the same total.
    cost : array_like, shape (..., n, m)
        C, finite; it may be negative.

    Returns
    -------
    ndarray, shape (..., n, m)
        In the dtype of ``cost``, solved in float64. A vertex: at most n + m − 1 entries are not 0.

    Raises
    ------
    ValueError
        If masses are negative, zero altogether, or of different totals, or the cost is not finite.

    Notes
    -----
    Equal masses and n = m make it an assignment problem (``scipy.optimize.linear_sum_assignment``); all others are
    solved as linear programs (HiGHS). Where several plans cost the same, which of them is returned is not defined.
    """
    a, b, cost, dtype = _problem(a, b, cost)
    lead = np.broadcast_shapes(a.shape[:-1], b.shape[:-1], cost.shape[:-2])
    a, b = np.broadcast_to(a, (*lead, a.shape[-1])), np.broadcast_to(b, (*lead, b.shape[-1]))
    cost = np.broadcast_to(cost, (*lead, *cost.shape[-2:]))
    plan = np.zeros(cost.shape)  # (..., n, m)
    for problem in np.ndindex(lead):
        plan[problem] = _vertex(a[problem], b[problem], cost[problem])
    return plan.astype(dtype, copy=False)


def sinkhorn_plan(
    a: Any, b: Any, cost: Any, reg: float, *, tol: float | None = 1e-9, max_iter: int = 10_000
) -> np.ndarray:
    """Return the plan of least ⟨P, C⟩ − ε H(P), every entry of which is positive.

    Parameters
    ----------
    a, b, cost, reg, tol, max_iter
        As in `sinkhorn_potentials`.

    Returns
    -------
    ndarray, shape (..., n, m)
        In the dtype of ``cost``, solved in float64. Columns sum to b exactly, rows to a within ``tol``.

    Raises
    ------
    ValueError
        As `sinkhorn_potentials`.

    Warns
    -----
    RuntimeWarning
        As `sinkhorn_potentials`.
    """
    f, g, _, _ = sinkhorn_potentials(a, b, cost, reg, tol=tol, max_iter=max_iter)
    cost = as_float("cost", cost)
    with np.errstate(under="ignore"):
        plan = np.exp((f[..., :, None] + g[..., None, :] - cost) / reg)  # (..., n, m)
    return np.asanyarray(plan.astype(cost.dtype, copy=False))


@np.errstate(under="ignore", divide="ignore")
def sinkhorn_potentials(
    a: Any, b: Any, cost: Any, reg: float, *, tol: float | None = 1e-9, max_iter: int = 10_000
) -> SinkhornPotentials:
    """Alternate between making the rows right and making the columns right, in the log domain.

    Parameters
    ----------
    a, b : array_like, shape (..., n) and (..., m)
        Masses, not negative, of the same total.
    cost : array_like, shape (..., n, m)
        C, finite.
    reg : float
        ε > 0: the price of concentration. Small values approach `emd_plan` and need many steps.
    tol : float, optional
        Stop once the largest |Σ_j P_ij − a_i|, after the columns were made right, is no larger; None makes exactly
        ``max_iter`` steps.
    max_iter : int
        The most steps, one at least.

    Returns
    -------
    SinkhornPotentials
        The plan is exp((f_i + g_j − C_ij)/ε).

    Raises
    ------
    ValueError
        If masses are negative, zero altogether, or of different totals, the cost is not finite, or ``reg``, ``tol``
        or ``max_iter`` is out of range.

    Warns
    -----
    RuntimeWarning
        If ``max_iter`` steps do not reach ``tol``.

    Notes
    -----
    Everything is computed in float64: in float32 rows could not be made right to 1e-9. The steps are those of
    Cuturi's scaling, u = e^{f/ε} and v = e^{g/ε}, which overflow for small ε where potentials do not.
    """
    a, b, cost, _ = _problem(a, b, cost)
    require(np.isfinite(reg) and reg > 0, f"reg={reg!r} must be > 0 and finite")
    require(max_iter >= 1, f"max_iter={max_iter!r} must be >= 1")
    require(tol is None or tol > 0, f"tol={tol!r} must be > 0, or None")
    log_a, log_b = np.log(a), np.log(b)
    f, g, error, steps = np.zeros_like(a), np.zeros_like(b), np.inf, 0
    row = log_sum_exp((g[..., None, :] - cost) / reg, axis=-1)  # (..., n)
    # eq: cta-11
    for steps in range(1, max_iter + 1):  # noqa: B007  # the last number is returned
        f = reg * (log_a - row)  # (..., n)
        g = reg * (log_b - log_sum_exp((f[..., :, None] - cost) / reg, axis=-2))  # (..., m)
        row = log_sum_exp((g[..., None, :] - cost) / reg, axis=-1)  # Σ_j P_ij = exp(f_i/ε + row_i)
        if tol is not None:
            error = float(np.max(np.abs(np.exp(f / reg + row) - a), initial=0.0))
            if error <= tol:
                break
    if tol is None:
        error = float(np.max(np.abs(np.exp(f / reg + row) - a), initial=0.0))
    elif error > tol:
        message = f"Sinkhorn stopped after max_iter={max_iter} steps: rows are off by {error:.1e}, tol={tol:.1e}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return SinkhornPotentials(f, g, steps, error)


def transport_map(plan: Any, target: Any) -> np.ndarray:
    """Return where each source point goes on average, x̂_i = Σ_j P_ij y_j / Σ_j P_ij.

    Parameters
    ----------
    plan : array_like, shape (..., n, m)
        P, not negative; the transposed plan maps the other way.
    target : array_like, shape (..., m, d)
        The points y_j.

    Returns
    -------
    ndarray, shape (..., n, d)
        In the dtype of the arguments. Every row is a mixture of target points.

    Raises
    ------
    ValueError
        If the plan has a negative entry or a row without mass, or shapes do not fit.
    """
    plan, target = as_float("plan", plan), as_float("target", target)
    require(plan.ndim >= 2 and target.ndim >= 2, f"plan and target have shapes {plan.shape} and {target.shape}")
    require(plan.shape[-1] == target.shape[-2], f"target has {target.shape[-2]} points, expected {plan.shape[-1]}")
    require(np.all(plan >= 0), "plan has a negative entry, expected none")
    mass = np.sum(plan, axis=-1, keepdims=True)  # (..., n, 1)
    require(np.all(mass > 0), "plan has a row without mass, whose point goes nowhere")
    # eq: cta-12
    return np.asanyarray(plan @ target / mass)  # (..., n, d)


def _vertex(a: np.ndarray, b: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Solve one problem exactly."""
    from scipy import optimize, sparse

    n, m = cost.shape
    plan = np.zeros((n, m))
    if n == m and np.all(a == a[0]) and np.all(b == b[0]):
        plan[optimize.linear_sum_assignment(cost)] = a[0]
        return plan
    rows = sparse.kron(sparse.eye_array(n), np.ones((1, m)))  # sums over j
    columns = sparse.kron(np.ones((1, n)), sparse.eye_array(m))
    total, scale = a.sum(), np.abs(cost).max() or 1.0  # HiGHS has absolute tolerances
    # eq: cta-10
    solved = optimize.linprog(
        (cost / scale).ravel(),
        A_eq=sparse.vstack([rows, columns], format="csr"),
        b_eq=np.concatenate([a, b]) / total,
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    require(solved.status == 0, f"no optimal plan was found: {solved.message}")
    return np.asarray(total * np.maximum(solved.x, 0.0).reshape(n, m))


def _problem(a: Any, b: Any, cost: Any) -> tuple[Any, Any, Any, np.dtype[Any]]:
    """Return masses of exactly the same total and the cost, all in float64, and the dtype of the result."""
    a, b, cost = as_float("a", a), as_float("b", b), as_float("cost", cost)
    require(a.ndim >= 1 and b.ndim >= 1 and cost.ndim >= 2, "a, b and cost need at least 1, 1 and 2 axes")
    require(
        cost.shape[-2:] == (a.shape[-1], b.shape[-1]),
        f"cost has shape {cost.shape}, expected (..., {a.shape[-1]}, {b.shape[-1]}) after a and b",
    )
    require_finite("cost", cost)
    allowed = max(_IMBALANCE.get(x.dtype.itemsize, 1e-9) for x in (a, b))
    dtype, a, b, cost = cost.dtype, *(x.astype(np.float64, copy=False) for x in (a, b, cost))
    for name, mass in (("a", a), ("b", b)):
        require(np.all(mass >= 0) and np.all(np.isfinite(mass)), f"{name} must be finite and >= 0 everywhere")
    # plain arrays: what an array subclass makes of a sum must not decide what is refused
    totals = tuple(np.sum(np.asarray(mass), axis=-1, keepdims=True) for mass in (a, b))
    require(np.all(totals[0] > 0), "a has no mass to move, expected a positive total")
    imbalance = np.max(np.abs(totals[0] - totals[1]), initial=0.0)
    require(imbalance <= allowed, f"the totals of a and b differ by {imbalance:.1e}, expected at most {allowed:.0e}")
    return a, b * (totals[0] / totals[1]), cost, dtype
