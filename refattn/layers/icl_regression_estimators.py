"""What trained attention amounts to on linear regression, and what it is compared with.

The softmax estimator has two numbers a head; for small kernels it turns into gradient descent from 0 with the mean
removed. From "In-Context Linear Regression Demystified" (2503.12734). Equation labels (icl-10) to (icl-16) are those
of the page.
"""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np

from refattn.layers.icl_regression_weights import full_kernels, tasks_of
from refattn.primitives.arguments import as_float, require, require_finite, require_shape
from refattn.primitives.softmax import softmax

__all__ = [
    "debiased_gd_estimator",
    "gd_estimator",
    "linear_attention",
    "one_step_matrices",
    "preconditioner",
    "ridge_estimator",
    "softmax_estimator",
]


def softmax_estimator(x: Any, y: Any, x_q: Any, omega: Any, mu: Any) -> np.ndarray:
    """Predict by a weighted sum of kernel smoothers, one a head: two numbers describe a head.

    Parameters
    ----------
    x : array_like, shape (B, L, d)
        Covariates of the examples, L ≥ 1.
    y : array_like, shape (B, L) or (B, L, N)
        Their responses, to one task or to N tasks.
    x_q : array_like, shape (B, d)
        The questions.
    omega : array_like, shape (H,), (H, d) or (H, d, d)
        Kernel of each head: a number ω_h, a diagonal, or a matrix Ω_h.
    mu : array_like, shape (H,) or (N, H)
        What each head contributes to the prediction; (N, H) goes with responses (B, L, N).

    Returns
    -------
    ndarray, shape (B,) or (B, N)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If shapes disagree, there is no example, or anything is not finite.

    Notes
    -----
    One head is the Nadaraya–Watson smoother with the kernel exp(ω x·x_q). `pattern_weights` gives the attention layer
    that computes the same.
    """
    x, x_q = _checked_covariates(x, x_q)
    y = as_float("y", y).astype(x.dtype, copy=False)
    several = np.ndim(mu) == 2
    tasks = tasks_of(mu).astype(x.dtype, copy=False)  # (N, H)
    require_shape("y", y, (*x.shape[:2], len(tasks)) if several else x.shape[:2])
    require_finite("y", y)
    kernels = full_kernels(omega, x.shape[-1]).astype(x.dtype, copy=False)  # (H, d, d)
    require(len(kernels) == tasks.shape[1], f"omega describes {len(kernels)} heads and mu {tasks.shape[1]}")
    # eq: icl-10
    t = np.einsum("hij,bj->bhi", kernels, x_q)  # (B, H, d)
    p = softmax(np.einsum("bli,bhi->bhl", x, t))  # (B, H, L)
    responses = y if several else y[..., None]  # (B, L, N)
    y_hat = np.einsum("nh,bhn->bn", tasks, np.einsum("bhl,bln->bhn", p, responses))  # (B, N)
    return np.asanyarray(y_hat if several else y_hat[:, 0])


def gd_estimator(x: Any, y: Any, x_q: Any, step: Any) -> np.ndarray:
    """Predict by one step of gradient descent from 0 on the squared error of the examples.

    Parameters
    ----------
    x, y, x_q
        As in `softmax_estimator`, one task.
    step : float or array_like, shape (d, d)
        The step size η, or a matrix Γ that preconditions the step.

    Returns
    -------
    ndarray, shape (B,)
        x_qᵀ Γ (1/L) Σ y_i x_i.

    Raises
    ------
    ValueError
        If shapes disagree, there is no example, or anything is not finite.
    """
    x, y, x_q, step = _checked_step(x, y, x_q, step)
    # eq: icl-11
    b = np.einsum("bl,bli->bi", y, x) / x.shape[1]  # (B, d)
    return _stepped(b, x_q, step)


def debiased_gd_estimator(x: Any, y: Any, x_q: Any, step: Any) -> np.ndarray:
    """Predict by the same step after the mean of the covariates has been removed.

    Parameters
    ----------
    x, y, x_q, step
        As in `gd_estimator`.

    Returns
    -------
    ndarray, shape (B,)
        x_qᵀ Γ (1/L) Σ y_i (x_i − x̄).

    Raises
    ------
    ValueError
        If shapes disagree, there is no example, or anything is not finite.

    Notes
    -----
    It is the limit of two heads (ω, μ), (−ω, −μ) as μ grows at constant 2μω = η. Adding a constant to every
    covariate, or to every response, changes nothing. With one example it predicts 0.
    """
    x, y, x_q, step = _checked_step(x, y, x_q, step)
    # eq: icl-12
    centred = x - np.mean(x, axis=1, keepdims=True)  # (B, L, d)
    b = np.einsum("bl,bli->bi", y, centred) / x.shape[1]  # (B, d)
    return _stepped(b, x_q, step)


def ridge_estimator(x: Any, y: Any, x_q: Any, ridge: float) -> np.ndarray:
    """Predict by ridge regression; with ``ridge`` = σ²d no other estimator has a smaller error.

    Parameters
    ----------
    x, y, x_q
        As in `softmax_estimator`, one task.
    ridge : float
        What is added to the diagonal of XᵀX, ≥ 0. Rules drawn from N(0, I/d) and noise of variance σ² ask for σ²d.

    Returns
    -------
    ndarray, shape (B,)
        x_qᵀ (XᵀX + ridge·I)⁻¹ Xᵀ y.

    Raises
    ------
    ValueError
        If shapes disagree, there is no example, anything is not finite, or ``ridge`` < 0.

    Notes
    -----
    Without a ridge the solution of smallest norm is taken, by the pseudo-inverse: fewer examples than covariates leave
    the least-squares problem open. The official code divides there by a singular matrix.
    """
    x, x_q = _checked_covariates(x, x_q)
    y = _checked_responses(y, x)
    require(np.isfinite(ridge) and ridge >= 0, f"ridge={ridge!r} must be finite and >= 0")
    narrow, wide = x.dtype, np.promote_types(x.dtype, np.float32)  # solvers do not take 16 bits
    x, y, x_q = (a.astype(wide, copy=False) for a in (x, y, x_q))
    xt = np.swapaxes(x, 1, 2)  # (B, d, L)
    # eq: icl-13
    if ridge > 0:
        gram = xt @ x + float(ridge) * np.eye(x.shape[-1], dtype=wide)  # (B, d, d)
        beta = np.linalg.solve(gram, xt @ y[..., None])[..., 0]  # (B, d)
    else:
        beta = (np.linalg.pinv(x) @ y[..., None])[..., 0]  # (B, d)
    return np.asanyarray(np.einsum("bi,bi->b", x_q, beta).astype(narrow, copy=False))


def preconditioner(cov: Any, length: int, noise_var: float, *, debiased: bool = True) -> np.ndarray:
    """Return the matrix Γ that makes the step of gradient descent best for correlated covariates.

    Parameters
    ----------
    cov : array_like, shape (d, d)
        Covariance Σ of the covariates, symmetric and positive semi-definite.
    length : int
        The number L of examples.
    noise_var : float
        The variance σ² of the noise.
    debiased : bool
        For `debiased_gd_estimator`; otherwise for `gd_estimator`.

    Returns
    -------
    ndarray, shape (d, d)
        [Σ + κI]⁻¹ debiased, [(1 + 1/L)Σ + κI]⁻¹ otherwise, with κ = (tr Σ + dσ²)/L.

    Raises
    ------
    ValueError
        If ``cov`` is not square, ``length`` < 1, or ``noise_var`` is negative or not finite.

    Notes
    -----
    For rules drawn from N(0, I/d), the query's covariates like the examples'. With σ = 0 it is the matrix that gradient
    flow on trained linear attention converges to (Zhang, Frei and Bartlett 2024) and the optimum of Ahn et al. 2023.
    """
    cov = as_float("cov", cov, ndim=2)
    d = len(cov)
    require_shape("cov", cov, (d, d))
    require_finite("cov", cov)
    require(d >= 1, f"cov has shape {cov.shape}: dim must be >= 1")
    require(index(length) >= 1, f"length={length!r} must be >= 1")
    require(np.isfinite(noise_var) and noise_var >= 0, f"noise_var={noise_var!r} must be finite and >= 0")
    wide = cov.astype(np.promote_types(cov.dtype, np.float32), copy=False)  # solvers do not take 16 bits
    # eq: icl-14
    kappa = (np.trace(wide) + d * float(noise_var)) / length
    gain = 1.0 if debiased else 1 + 1 / length
    gamma = np.linalg.inv(gain * wide + kappa * np.eye(d, dtype=wide.dtype))
    return np.asanyarray(gamma.astype(cov.dtype, copy=False))


def linear_attention(z_q: Any, z: Any, kq: Any, ov: Any, *, length: int | None = None) -> np.ndarray:
    """Attend without a softmax: the scores themselves are the weights.

    Parameters
    ----------
    z_q : array_like, shape (B, D)
        The questions.
    z : array_like, shape (B, L, D)
        The examples, L ≥ 1.
    kq : array_like, shape (H, D, D)
        Merged key-query matrices A_h.
    ov : array_like, shape (H, D, n_out)
        Merged output-value matrices C_h.
    length : int, optional
        What the sum over examples is divided by; their number L if not given. A layer that was trained at one length
        and does not know the length keeps dividing by that.

    Returns
    -------
    ndarray, shape (B, n_out)
        Σ_h C_hᵀ (1/length) Σ_i z_i (z_iᵀ A_h z_q).

    Raises
    ------
    ValueError
        If shapes disagree, there is no example, ``length`` < 1, or anything is not finite.
    """
    z = as_float("z", z, ndim=3)
    B, L, D = z.shape
    z_q, kq, ov = as_float("z_q", z_q), as_float("kq", kq, ndim=3), as_float("ov", ov, ndim=3)
    require(L >= 1, f"z has shape {z.shape}: length must be >= 1")
    require(length is None or index(length) >= 1, f"length={length!r} must be >= 1")
    require_shape("z_q", z_q, (B, D))
    require_shape("kq", kq, (len(kq), D, D))
    require_shape("ov", ov, (len(kq), D, ov.shape[2]))
    for name, a in (("z_q", z_q), ("z", z), ("kq", kq), ("ov", ov)):
        require_finite(name, a)
    z_q, kq, ov = (a.astype(z.dtype, copy=False) for a in (z_q, kq, ov))
    # eq: icl-15
    s = np.einsum("bli,bhi->bhl", z, np.einsum("hij,bj->bhi", kq, z_q))  # (B, H, L)
    z_bar = np.einsum("bhl,bli->bhi", s, z) / (L if length is None else length)  # (B, H, D)
    return np.asanyarray(np.einsum("hio,bhi->bo", ov, z_bar))


def one_step_matrices(dim: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices with which `linear_attention` is one step of gradient descent.

    Parameters
    ----------
    dim : int
        The number d of covariates.
    step : float
        The step size η.

    Returns
    -------
    kq : ndarray, shape (1, d + 1, d + 1)
        diag(I_d, 0): compare covariates only.
    ov : ndarray, shape (1, d + 1, 1)
        η times the last unit vector: read the response.

    Raises
    ------
    ValueError
        If ``dim`` < 1.

    References
    ----------
    von Oswald et al. 2023, Proposition 1 [recalled].
    """
    require(index(dim) >= 1, f"dim={dim!r} must be >= 1")
    kq, ov = np.zeros((1, dim + 1, dim + 1)), np.zeros((1, dim + 1, 1))
    # eq: icl-16
    kq[0, :dim, :dim] = np.eye(dim)
    ov[0, dim, 0] = step
    return kq, ov


def _stepped(b: np.ndarray, x_q: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return x_qᵀ Γ b, (B,)."""
    moved = np.einsum("ij,bj->bi", step, b) if step.ndim else step * b  # (B, d)
    return np.asanyarray(np.einsum("bi,bi->b", x_q, moved))


def _checked_covariates(x: Any, x_q: Any) -> tuple[Any, Any]:
    """Return examples and questions as finite floating arrays of fitting shapes."""
    x, x_q = as_float("x", x, ndim=3), as_float("x_q", x_q)
    B, L, d = x.shape
    require(L >= 1, f"x has shape {x.shape}: length must be >= 1")
    require(d >= 1, f"x has shape {x.shape}: dim must be >= 1")
    require_shape("x_q", x_q, (B, d))
    require_finite("x", x)
    require_finite("x_q", x_q)
    return x, x_q.astype(x.dtype, copy=False)


def _checked_responses(y: Any, x: np.ndarray) -> Any:
    y = as_float("y", y)
    require_shape("y", y, x.shape[:2])
    require_finite("y", y)
    return y.astype(x.dtype, copy=False)


def _checked_step(x: Any, y: Any, x_q: Any, step: Any) -> tuple[Any, Any, Any, Any]:
    x, x_q = _checked_covariates(x, x_q)
    y = _checked_responses(y, x)
    step = as_float("step", step)
    d = x.shape[-1]
    require(step.shape in ((), (d, d)), f"step has shape {step.shape}, expected a number or ({d}, {d})")
    require_finite("step", step)
    return x, y, x_q, step.astype(x.dtype, copy=False)
