r"""The population loss of the reduced model, its gradient and its minima, by four methods.

The reduced model predicts ``Σ_h μ_h Σ_i y_i softmax_i(ω_h x_i·x_q)``. Averaged over prompts, its squared error is a
quadratic form in μ,

    L(μ, ω) = 1 + σ² − 2 a(ω)·μ + μ^T B(ω) μ,

and the methods differ in how they find ``a`` and ``B``:

``"exact"``   quadrature (`theory.icl_regression.integrals`), good to 1e-8;
``"order1"``  closed form to first order in 1/L, for ω² < 1/2;
``"paper"``   the approximation that the paper and its code use;
``"mc"``      sampled prompts (`theory.icl_regression.reduced`), with a standard error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from refattn.primitives.arguments import as_float, require, require_finite, require_one_of, require_shape
from theory.icl_regression.integrals import PairMoments, pair_moments, pair_moments_slope, radius_nodes
from theory.icl_regression.reduced import mean_gradient, mean_loss, sample_scores
from theory.icl_regression.samplers import require_problem

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "METHODS",
    "LossResult",
    "Optimum",
    "mean_square_weight",
    "optimal_mu",
    "optimal_pair",
    "optimal_single_head",
    "population_grad",
    "population_loss",
    "quadratic_form",
]

METHODS = ("exact", "mc", "order1", "paper")
_CLOSED = ("exact", "order1", "paper")
DEFAULT_SAMPLES = 100_000


class LossResult(NamedTuple):
    """A loss, and its standard error: zero where nothing was sampled."""

    value: float
    stderr: float


class Optimum(NamedTuple):
    """Parameters of least loss, and that loss."""

    omega: float
    mu: float
    loss: float


class _Form(NamedTuple):
    """``a`` (H,) and ``B`` (H, H); in a derivative, by ω_h of ``a_h`` and by the first ω of ``B_hk``."""

    a: np.ndarray
    b: np.ndarray


def population_loss(
    mu: Any,
    omega: Any,
    dim: int,
    length: int,
    noise_var: float,
    *,
    method: str = "exact",
    n_samples: int | None = None,
    rng: np.random.Generator | None = None,
) -> LossResult:
    """Return the mean squared error of the reduced model over all prompts.

    Parameters
    ----------
    mu, omega : array_like, (H,)
        Output weight μ_h and sharpness ω_h of each head.
    dim, length : int
        Dimension d of the covariates and number L of context tokens.
    noise_var : float
        Variance σ² of the noise on each response.
    method : {"exact", "mc", "order1", "paper"}
        How it is computed; see the module.
    n_samples : int, optional
        Prompts to draw, for ``"mc"`` only; 100 000 if not given.
    rng : numpy.random.Generator, optional
        Source of randomness, for ``"mc"``.

    Returns
    -------
    LossResult
        ``value`` and ``stderr``.

    Raises
    ------
    ValueError
        If shapes disagree, a number is not finite or out of range, ``"exact"`` is asked for fewer than two tokens,
        ``"order1"`` for ω² ≥ 1/2, or ``"mc"`` without a generator.

    Notes
    -----
    [derived]; the quadratic form, the integrals and the closed form are on the page of this theory. A single token
    (L = 1) has weight 1 whatever ω is; sample it.
    """
    mu, omega = checked_heads(mu, omega, dim, length, noise_var, method)
    if method == "mc":
        r, u = sample_scores(checked_samples(n_samples), dim, length, required_rng(rng))
        return LossResult(*mean_loss(mu, omega, r, u, dim, noise_var))
    return LossResult(_assembled(mu, _FORMS[method](omega, dim, length, noise_var), noise_var), 0.0)


def population_grad(
    mu: Any,
    omega: Any,
    dim: int,
    length: int,
    noise_var: float,
    *,
    method: str = "exact",
    n_samples: int | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the population loss and its gradient, ``(value, d_mu (H,), d_omega (H,))``.

    Parameters and errors are those of `population_loss`. The official code differentiates half the loss; this is the
    gradient of the whole.
    """
    mu, omega = checked_heads(mu, omega, dim, length, noise_var, method)
    if method == "mc":
        r, u = sample_scores(checked_samples(n_samples), dim, length, required_rng(rng))
        return mean_gradient(mu, omega, r, u, dim, noise_var)
    return closed_gradient(mu, omega, dim, length, noise_var, method)


def closed_gradient(
    mu: np.ndarray, omega: np.ndarray, dim: int, length: int, noise_var: float, method: str
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return `population_grad` of a method that samples nothing, without looking at the arguments."""
    form = _FORMS[method](omega, dim, length, noise_var)
    slope = _SLOPES[method](omega, dim, length, noise_var)
    d_mu = 2 * (form.b @ mu - form.a)  # (H,)
    d_omega = 2 * mu * (slope.b @ mu - slope.a)  # (H,): B_hk and B_kh both move with ω_h
    return _assembled(mu, form, noise_var), d_mu, d_omega


def quadratic_form(
    omega: Any, dim: int, length: int, noise_var: float, *, method: str = "exact"
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``a`` (H,) and ``B`` (H, H) of ``L = 1 + σ² − 2 a·μ + μ^T B μ``.

    Raises
    ------
    ValueError
        As `population_loss`; ``"mc"`` has no quadratic form here.
    """
    require_one_of("method", method, _CLOSED)
    _, omega = checked_heads(np.zeros(np.shape(omega)), omega, dim, length, noise_var, method)
    form = _FORMS[method](omega, dim, length, noise_var)
    return form.a, form.b


def optimal_mu(omega: Any, dim: int, length: int, noise_var: float, *, method: str = "exact") -> np.ndarray:
    """Return the output weights of least loss for given sharpness, ``μ* = B^{-1} a``, (H,).

    Raises
    ------
    ValueError
        As `quadratic_form`.
    numpy.linalg.LinAlgError
        If ``B`` is singular to working precision: two heads of equal ω can share their weight in any way.
    """
    a, b = quadratic_form(omega, dim, length, noise_var, method=method)
    if np.linalg.cond(b) * np.finfo(float).eps >= 1:
        raise np.linalg.LinAlgError(f"omega={omega!r} makes B singular: heads of equal omega are one head")
    return np.linalg.solve(b, a)


def optimal_single_head(dim: int, length: int, noise_var: float, *, method: str = "exact") -> Optimum:
    """Return ω*, μ* and the loss of the best single head.

    Notes
    -----
    Searched over ``0.01 < ω√d < 3`` (for ``"order1"`` up to its limit 1/√2), where the loss has one minimum.
    """

    def best(omega: float) -> Optimum:
        a, b = quadratic_form(np.array([omega]), dim, length, noise_var, method=method)
        return _best(omega, float(a[0]), float(b[0, 0]), noise_var)

    return _search(best, dim, method)


def optimal_pair(dim: int, length: int, noise_var: float, *, method: str = "exact") -> Optimum:
    """Return ω*, μ* and the loss of the best pair of opposite heads, ``(ω, −ω)`` with ``(μ, −μ)``.

    Notes
    -----
    Searched as for `optimal_single_head`. Where the loss has no minimum at ω > 0, which the paper's approximation
    says always, what comes back lies at the small end of the range and its loss is that of the limit ω → 0.
    """

    def best(omega: float) -> Optimum:
        a, b = quadratic_form(np.array([omega, -omega]), dim, length, noise_var, method=method)
        return _best(omega, float(a[0] - a[1]), float(b[0, 0] - b[0, 1] - b[1, 0] + b[1, 1]), noise_var)

    return _search(best, dim, method)


def mean_square_weight(omega: float, dim: int, length: int) -> float:
    """Return ``E‖p‖²`` of one head, by quadrature: 1/L for even weights, 1 for all weight on one token."""
    checked_heads([0.0], [omega], dim, length, 0.0, "exact")
    r, _ = radius_nodes(dim)
    return float(_mean(pair_moments(omega * r, omega * r, length).overlap, dim))


def _best(omega: float, a: float, b: float, noise_var: float) -> Optimum:
    return Optimum(omega, a / b, 1 + noise_var - a**2 / b)


def _search(best: Callable[[float], Optimum], dim: int, method: str) -> Optimum:
    upper = 3 / np.sqrt(dim)
    if method == "order1":
        upper = min(upper, 0.7)
    found = minimize_scalar(
        lambda omega: best(omega).loss, bounds=(0.01 / np.sqrt(dim), upper), method="bounded", options={"xatol": 1e-6}
    )
    return best(float(found.x))


def _assembled(mu: np.ndarray, form: _Form, noise_var: float) -> float:
    # eq: icl-quadratic
    return float(1 + noise_var - 2 * form.a @ mu + mu @ form.b @ mu)


def _paper_form(omega: np.ndarray, dim: int, length: int, noise_var: float) -> _Form:
    # eq: icl-paper
    product = np.outer(omega, omega)  # (H, H)
    return _Form(omega, product + (1 + noise_var) / length * np.exp(dim * product))


def _paper_slope(omega: np.ndarray, dim: int, length: int, noise_var: float) -> _Form:
    grown = (1 + noise_var) / length * np.exp(dim * np.outer(omega, omega))  # (H, H)
    return _Form(np.ones_like(omega), omega * (1 + dim * grown))


def _order1_form(omega: np.ndarray, dim: int, length: int, noise_var: float) -> _Form:
    # eq: icl-order1
    product, square = np.outer(omega, omega), omega**2  # (H, H), (H,)
    m, m1 = _chi_square_mgf(product, dim), _chi_square_mgf(product, dim + 2)  # (H, H)
    own = _chi_square_mgf(square, dim + 2)  # (H,)
    b = product + ((1 + noise_var) * m + product * (m1 - own[:, None] - own)) / length
    return _Form(omega * (1 - own / length), b)


def _order1_slope(omega: np.ndarray, dim: int, length: int, noise_var: float) -> _Form:
    product, square = np.outer(omega, omega), omega**2
    m1, m2 = _chi_square_mgf(product, dim + 2), _chi_square_mgf(product, dim + 4)  # (H, H)
    own, own2 = _chi_square_mgf(square, dim + 2), _chi_square_mgf(square, dim + 4)  # (H,)
    a = 1 - (own + 2 * (dim + 2) * square * own2) / length
    by_product = (1 + noise_var) * dim * m1 + (m1 - own[:, None] - own) + product * (dim + 2) * m2  # (H, H)
    by_square = -product * (dim + 2) * own2[:, None]
    return _Form(a, omega + (omega * by_product + 2 * omega[:, None] * by_square) / length)


def _chi_square_mgf(t: np.ndarray, dof: int) -> np.ndarray:
    """Return ``E exp(t r²)`` with r² chi-square; ``dof`` d + 2 gives the same mean weighted by r²/d."""
    return (1 - 2 * t) ** (-dof / 2)


def _exact_form(omega: np.ndarray, dim: int, length: int, noise_var: float) -> _Form:
    r, _ = radius_nodes(dim)
    moments = _over_pairs(pair_moments, omega, dim, length)  # each (H, H, R)
    own = np.einsum("hhr->hr", moments.overlap)
    # eq: icl-stein
    a = omega * _mean(r**2 * (1 - own), dim) / dim
    return _Form(a, _loss_of(moments, dim, noise_var))


def _exact_slope(omega: np.ndarray, dim: int, length: int, noise_var: float) -> _Form:
    r, _ = radius_nodes(dim)
    own = np.stack([pair_moments(w * r, w * r, length).overlap for w in omega])  # (H, R)
    slopes = _over_pairs(pair_moments_slope, omega, dim, length)  # each (H, H, R): by s
    slopes = PairMoments(slopes.overlap * r, slopes.product * r)  # by ω
    own_slope = 2 * np.einsum("hhr->hr", slopes.overlap)  # both factors of p·p move
    a = _mean(r**2 * (1 - own - omega[:, None] * own_slope), dim) / dim
    return _Form(a, _loss_of(slopes, dim, noise_var))


def _over_pairs(moments_of: Callable[..., PairMoments], omega: np.ndarray, dim: int, length: int) -> PairMoments:
    """Return moments of all pairs of heads at all nodes of the radius, each (H, H, R)."""
    r, _ = radius_nodes(dim)
    pairs = [[moments_of(one * r, other * r, length) for other in omega] for one in omega]
    return PairMoments(*(np.array([[pair[i] for pair in row] for row in pairs]) for i in range(2)))


def _loss_of(moments: PairMoments, dim: int, noise_var: float) -> np.ndarray:
    # eq: icl-moments-to-loss
    return _mean(moments.product / dim + ((dim - 1) / dim + noise_var) * moments.overlap, dim)


def _mean(values: np.ndarray, dim: int) -> np.ndarray:
    """Average over the length of the query, the last axis."""
    _, weight = radius_nodes(dim)
    return np.asarray(values @ weight)


_FORMS: dict[str, Callable[..., _Form]] = {"paper": _paper_form, "order1": _order1_form, "exact": _exact_form}
_SLOPES: dict[str, Callable[..., _Form]] = {"paper": _paper_slope, "order1": _order1_slope, "exact": _exact_slope}


def checked_heads(
    mu: Any, omega: Any, dim: int, length: int, noise_var: float, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return μ and ω as float64 vectors; refuse what no method, or not this one, can compute."""
    require_one_of("method", method, METHODS)
    require_problem(dim, length, noise_var)
    mu = as_float("mu", mu, ndim=1).astype(np.float64, copy=False)
    omega = as_float("omega", omega, ndim=1).astype(np.float64, copy=False)
    require(len(omega) >= 1, "omega has shape (0,), expected at least one head")
    require_shape("mu", mu, omega.shape)
    require_finite("mu", mu)
    require_finite("omega", omega)
    require(method != "exact" or length >= 2, f"length={length}: method 'exact' needs length >= 2")
    require(method != "order1" or np.all(omega**2 < 0.5), f"omega={omega}: method 'order1' needs omega² < 1/2")
    return mu, omega


def checked_samples(n_samples: int | None) -> int:
    require(n_samples is None or n_samples >= 2, f"n_samples={n_samples} must be >= 2")
    return DEFAULT_SAMPLES if n_samples is None else n_samples


def required_rng(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise ValueError("rng=None: method 'mc' needs a numpy.random.Generator")
    return rng
