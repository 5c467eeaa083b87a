"""Fitting the values of random heads: ridge regression, in the space of inputs and in that of heads.

Equation labels (rf-9) and (rf-10) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape

__all__ = ["HeadFit", "RidgeFit", "feature_gram", "fit_heads", "fit_ridge", "predict"]


class RidgeFit(NamedTuple):
    """What the dual fit found.

    Attributes
    ----------
    alpha : ndarray, shape (n,)
        Weight of each training input; the values of the heads are V = Φᵀ α / M.
    intercept : ndarray, shape ()
        ȳ, the mean of the targets.
    gcv : ndarray, shape ()
        Generalised cross-validation: the test error that the training data alone predict.
    """

    alpha: np.ndarray
    intercept: np.ndarray
    gcv: np.ndarray


class HeadFit(NamedTuple):
    """What the primal fit found.

    Attributes
    ----------
    v : ndarray, shape (M, d + 1) or (M,)
        The values of each head, or the output weight of each neuron.
    intercept : ndarray, shape ()
        ȳ, the mean of the targets.
    """

    v: np.ndarray
    intercept: np.ndarray


def feature_gram(features: Any, others: Any) -> np.ndarray:
    """Return the normalised inner products Φ Φ′ᵀ / M of two sets of features.

    Parameters
    ----------
    features, others : array_like, shape (n, M, ...) and (m, M, ...)
        Of heads or neurons.

    Returns
    -------
    ndarray, shape (n, m)

    Raises
    ------
    ValueError
        If the shapes beyond the first axis differ.
    """
    features, others = as_float("features", features), as_float("others", others)
    require(features.ndim >= 2, f"features has shape {features.shape}, expected (n, M, ...)")
    require_shape("others", others, (*others.shape[:1], *features.shape[1:]))
    width = int(np.prod(features.shape[1:]))
    phi, other = features.reshape(len(features), width), others.reshape(len(others), width)
    gram: np.ndarray = phi @ other.T / features.shape[1]  # (n, m)
    return gram


def fit_ridge(gram: Any, y: Any, ridge_rel: float = 1e-5) -> RidgeFit:
    """Fit targets by kernel ridge regression.

    Parameters
    ----------
    gram : array_like, shape (n, n)
        Symmetric, positive semi-definite: K, of `feature_gram` or `infinite_head_kernel`.
    y : array_like, shape (n,)
        Targets, n ≥ 1.
    ridge_rel : float
        λ_rel ≥ 0; the ridge is λ = λ_rel tr(K)/n. With 0 the fit of least norm, the limit λ → 0.

    Returns
    -------
    RidgeFit

    Raises
    ------
    ValueError
        If shapes disagree, there is no target, ``ridge_rel`` is negative, or a number is not finite.

    Notes
    -----
    The class over which the paper minimises is bounded in two norms [recalled]; ridge regression with a ridge relative
    to the mean eigenvalue is our definition. Only the targets are centred, not the features. In the limit λ → 0
    eigenvalues of K that rounding cannot tell from zero count as zero.
    """
    gram, y = as_float("gram", gram, ndim=2), as_float("y", y, ndim=1)
    require(len(y) >= 1, "y is empty: at least one target is required")
    require_shape("gram", gram, (len(y), len(y)))
    _check_fit(ridge_rel, gram=gram, y=y)
    K = _for_linear_algebra(gram)
    mean = np.mean(y.astype(K.dtype, copy=False))
    centred = y.astype(K.dtype, copy=False) - mean  # (n,)
    ridge = ridge_rel * np.trace(K) / len(y)
    if ridge != 0:
        # eq: rf-9
        inverse = np.linalg.inv(K + ridge * np.eye(len(y), dtype=K.dtype))  # (n, n)
        alpha = inverse @ centred  # (n,)
        # eq: rf-10
        gcv = len(y) * np.sum(alpha**2) / np.trace(inverse) ** 2
    else:
        alpha, gcv = _least_norm(K, centred)
    return RidgeFit(*(np.asanyarray(found).astype(gram.dtype, copy=False) for found in (alpha, mean, gcv)))


def fit_heads(features: Any, y: Any, ridge_rel: float = 1e-5) -> HeadFit:
    """Fit the values themselves: the same fit as `fit_ridge`, in the space of heads.

    Parameters
    ----------
    features : array_like, shape (n, M, d + 1) or (n, M)
        Of `random_head_features` or `random_mlp_features`.
    y : array_like, shape (n,)
        Targets, n ≥ 1.
    ridge_rel : float
        As in `fit_ridge`, with K = Φ Φᵀ / M.

    Returns
    -------
    HeadFit
        For `random_head_attention`: the prediction is its output plus the intercept.

    Raises
    ------
    ValueError
        If shapes disagree, there is no target, ``ridge_rel`` is negative, or a number is not finite.

    Notes
    -----
    Costs the cube of M (d + 1) instead of the cube of n: the way to go if there are more inputs than features.
    """
    features, y = as_float("features", features), as_float("y", y, ndim=1)
    require(features.ndim >= 2, f"features has shape {features.shape}, expected (n, M, ...)")
    require(len(y) >= 1, "y is empty: at least one target is required")
    require_shape("y", y, features.shape[:1])
    _check_fit(ridge_rel, features=features, y=y)
    dtype, heads = features.dtype, features.shape[1]
    phi = _for_linear_algebra(features).reshape(len(y), -1) / np.sqrt(heads)  # K = phi phiᵀ
    targets = _for_linear_algebra(y).astype(phi.dtype, copy=False)
    mean = np.mean(targets)
    if ridge_rel > 0:
        ridge = ridge_rel * np.sum(phi**2) / len(y)
        scatter = phi.T @ phi + ridge * np.eye(phi.shape[1], dtype=phi.dtype)  # (M (d+1), M (d+1))
        v = np.linalg.solve(scatter, phi.T @ (targets - mean))
    else:
        v = np.linalg.lstsq(phi, targets - mean, rcond=None)[0]
    v = (v / np.sqrt(heads)).reshape(features.shape[1:])
    return HeadFit(v.astype(dtype, copy=False), np.asanyarray(mean).astype(dtype, copy=False))


def predict(fit: RidgeFit, cross_gram: Any) -> np.ndarray:
    """Return ȳ + k(x)ᵀ α for new inputs.

    Parameters
    ----------
    fit : RidgeFit
        Of `fit_ridge`.
    cross_gram : array_like, shape (m, n)
        Kernel between the new inputs and the training inputs.

    Returns
    -------
    ndarray, shape (m,)

    Raises
    ------
    ValueError
        If ``cross_gram`` has not one column for each training input.
    """
    cross_gram = as_float("cross_gram", cross_gram, ndim=2)
    require_shape("cross_gram", cross_gram, (*cross_gram.shape[:1], *fit.alpha.shape))
    predicted: np.ndarray = fit.intercept + cross_gram @ fit.alpha  # (m,)
    return predicted


def _least_norm(K: np.ndarray, centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return α and the cross-validation as λ → 0: along eigenvectors of 0 the residuals stay, and outweigh the rest."""
    eigenvalues, basis = np.linalg.eigh(K)
    z = basis.T @ centred
    kept = eigenvalues > len(z) * np.finfo(K.dtype).eps * np.max(np.abs(eigenvalues))
    inverse = np.where(kept, 1.0 / np.where(kept, eigenvalues, 1.0), 0.0)
    residual = inverse if np.all(kept) else (~kept).astype(K.dtype)
    return basis @ (inverse * z), len(z) * np.sum((residual * z) ** 2) / np.sum(residual) ** 2


def _for_linear_algebra(x: Any) -> Any:
    """Widen what LAPACK does not know."""
    return x.astype(np.float64) if x.dtype.itemsize < 4 else x


def _check_fit(ridge_rel: float, **arrays: np.ndarray) -> None:
    require(np.isfinite(ridge_rel) and ridge_rel >= 0, f"ridge_rel={ridge_rel!r} must be finite and >= 0")
    for name, array in arrays.items():
        require(np.all(np.isfinite(array)), f"{name} holds a number that is not finite")
