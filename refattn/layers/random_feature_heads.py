"""One attention layer whose heads are random and whose values are learned (2307.11353).

The query-key matrices of many heads are drawn once and frozen; only the values are trained, so the layer is linear in
what it learns and can be studied as a kernel method. Scores pass a ReLU and are averaged over the keys; there is no
softmax. The limit of infinitely many heads is in `refattn.layers.random_feature_heads_kernel`, the fit in
`refattn.layers.random_feature_heads_ridge`; equation labels (rf-1) … (rf-10) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.layers.random_feature_heads_inputs import checked_bias, checked_tokens, with_one
from refattn.layers.random_feature_heads_kernel import infinite_head_kernel
from refattn.layers.random_feature_heads_ridge import HeadFit, RidgeFit, feature_gram, fit_heads, fit_ridge, predict
from refattn.primitives.arguments import as_float, require, require_shape

__all__ = [
    "HeadFit",
    "RandomHeads",
    "RidgeFit",
    "feature_gram",
    "fit_heads",
    "fit_ridge",
    "infinite_head_kernel",
    "predict",
    "random_head_attention",
    "random_head_features",
    "random_mlp_features",
    "sample_random_heads",
    "sample_random_neurons",
]


class RandomHeads(NamedTuple):
    """Frozen query-key matrices.

    Attributes
    ----------
    w : ndarray, shape (M, d + 1, d + 1)
        W_m = Q_mᵀ K_m of each head; it multiplies the query from the left and the key from the right.
    """

    w: np.ndarray


def sample_random_heads(
    n_heads: int,
    dim: int,
    rng: np.random.Generator,
    *,
    bias: Any = "none",
    std: float = 0.5,
    dtype: Any = np.float64,
) -> RandomHeads:
    """Draw M head matrices with independent normal entries around W_0.

    Parameters
    ----------
    n_heads, dim : int
        M ≥ 1 and d ≥ 1.
    rng : numpy.random.Generator
        Draws every entry.
    bias : {"none", "identity"} or array_like, shape (d + 1, d + 1)
        The mean W_0. ``identity`` is the identity on the token coordinates and zero for the constant one.
    std : float
        Standard deviation of an entry; ½ makes the score of two tokens of norm 1 a standard normal number.
    dtype : dtype
        Floating dtype of the result.

    Returns
    -------
    RandomHeads

    Raises
    ------
    ValueError
        If a size is not positive, ``std`` is not positive and finite, or ``bias`` is unknown or of another shape.

    References
    ----------
    2307.11353, Section 3 for W_0 = 0 and Section 5 for the biased heads [recalled]; variance ¼ [recalled].
    """
    require(index(n_heads) >= 1, f"n_heads={n_heads!r} must be >= 1")
    require(index(dim) >= 1, f"dim={dim!r} must be >= 1")
    require(np.isfinite(std) and std > 0, f"std={std!r} must be finite and > 0")
    # eq: rf-2
    w = checked_bias(bias, dim) + std * rng.standard_normal((n_heads, dim + 1, dim + 1))  # (M, d+1, d+1)
    return RandomHeads(w.astype(dtype, copy=False))


def random_head_features(x0: Any, x: Any, heads: RandomHeads) -> np.ndarray:
    """Return what each head hands to its values: the mean over keys of rectified score times key.

    1. Score every key: s_mi = x̃_0ᵀ W_m x̃_i.
    2. Rectify, weigh the keys with the scores and average.

    Parameters
    ----------
    x0 : array_like, shape (..., d)
        Queries.
    x : array_like, shape (..., N, d)
        Keys of each query, N ≥ 1.
    heads : RandomHeads
        M matrices of shape (d + 1, d + 1).

    Returns
    -------
    ndarray, shape (..., M, d + 1)
        φ_m, in the dtype of ``x0``.

    Raises
    ------
    ValueError
        If the shapes disagree, there is no key or no head, or a number is not finite.

    References
    ----------
    2307.11353, Eq. 4 [recalled].
    """
    x0, x = checked_tokens(x0, x)
    w = _checked_heads(heads, x0)
    query, keys = with_one(x0), with_one(x)  # x̃_0 (..., d+1), x̃_i (..., N, d+1)
    # eq: rf-1
    t = np.tensordot(query, w, axes=(-1, 1))  # (..., M, d+1)
    s = t @ np.swapaxes(keys, -1, -2)  # (..., M, N)
    # eq: rf-3
    features: np.ndarray = np.maximum(s, 0) @ keys / x.shape[-2]  # (..., M, d+1)
    return features


def random_head_attention(x0: Any, x: Any, heads: RandomHeads, v: Any) -> np.ndarray:
    """Return the output of the layer: the sum over heads of value times feature.

    Parameters
    ----------
    x0, x, heads
        As in `random_head_features`.
    v : array_like, shape (M, d + 1)
        The value vector of each head, the only part that is learned.

    Returns
    -------
    ndarray, shape (...)
        In the dtype of ``x0``.

    Raises
    ------
    ValueError
        If ``v`` is not (M, d + 1), and as `random_head_features`.

    Notes
    -----
    The paper sums over the heads; a mean over them, which other texts write, is the same function class with values M
    times as large.

    References
    ----------
    2307.11353, Eq. 3 [recalled].
    """
    features = random_head_features(x0, x, heads)  # (..., M, d+1)
    v = as_float("v", v)
    require_shape("v", v, features.shape[-2:])
    # eq: rf-4
    return np.asanyarray(np.einsum("...mc,mc->...", features, v.astype(features.dtype, copy=False)))  # (...)


def sample_random_neurons(
    n_neurons: int, dim: int, n_keys: int, rng: np.random.Generator, *, dtype: Any = np.float64
) -> np.ndarray:
    """Draw the frozen first layer of the perceptron that the random heads are compared with.

    Parameters
    ----------
    n_neurons, dim, n_keys : int
        M′, d and N, each ≥ 1.
    rng : numpy.random.Generator
        Draws every entry.
    dtype : dtype
        Floating dtype of the result.

    Returns
    -------
    ndarray, shape (M′, d (N + 1) + 1)
        Entries N(0, 1/(N + 2)), so that tokens of norm 1 give pre-activations of variance 1 [recalled].

    Raises
    ------
    ValueError
        If a size is not positive.
    """
    for name, size in (("n_neurons", n_neurons), ("dim", dim), ("n_keys", n_keys)):
        require(index(size) >= 1, f"{name}={size!r} must be >= 1")
    w = rng.standard_normal((n_neurons, dim * (n_keys + 1) + 1)) / np.sqrt(n_keys + 2)
    drawn: np.ndarray = w.astype(dtype, copy=False)
    return drawn


def random_mlp_features(x0: Any, x: Any, w: Any) -> np.ndarray:
    """Return the hidden layer of a random perceptron that reads all tokens as one long vector.

    Parameters
    ----------
    x0 : array_like, shape (..., d)
        Queries.
    x : array_like, shape (..., N, d)
        Keys of each query, N ≥ 1.
    w : array_like, shape (M′, d (N + 1) + 1)
        Weights of the M′ ≥ 1 neurons; columns in the order query, keys, constant.

    Returns
    -------
    ndarray, shape (..., M′)
        In the dtype of ``x0``.

    Raises
    ------
    ValueError
        If the shapes disagree, there is no key or no neuron, or a number is not finite.

    References
    ----------
    2307.11353, Section 4 [recalled].
    """
    x0, x = checked_tokens(x0, x)
    w = as_float("w", w, ndim=2)
    width = x0.shape[-1] * (x.shape[-2] + 1) + 1
    require(w.shape[0] >= 1 and w.shape[1] == width, f"w has shape {w.shape}, expected (M', {width}) with M' >= 1")
    require(np.all(np.isfinite(w)), "w holds a number that is not finite")
    flat = x.reshape((*x.shape[:-2], x.shape[-2] * x.shape[-1]))  # (..., N d)
    z = with_one(np.concatenate([x0, flat], axis=-1))  # (..., d (N+1) + 1)
    # eq: rf-5
    features: np.ndarray = np.maximum(z @ w.astype(x0.dtype, copy=False).T, 0)  # (..., M')
    return features


def _checked_heads(heads: RandomHeads, x0: np.ndarray) -> np.ndarray:
    """Return the head matrices as a floating array that fits the tokens."""
    (w,) = heads
    w = as_float("heads.w", w)
    width = x0.shape[-1] + 1
    fits = w.ndim == 3 and w.shape[0] >= 1 and w.shape[1:] == (width, width)
    rule = f"expected head matrices of shape (M, {width}, {width}) for dim {width - 1}, M >= 1"
    require(fits, f"heads.w has shape {w.shape}: {rule}")
    require(np.all(np.isfinite(w)), "heads.w holds a number that is not finite")
    matrices: np.ndarray = w.astype(x0.dtype, copy=False)
    return matrices
