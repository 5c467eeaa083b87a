"""Weights of the attention that learns linear regression in context: their layout, products and beginnings.

From "In-Context Linear Regression Demystified" (2503.12734). Equation labels (icl-2) and (icl-3) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_one_of, require_shape

__all__ = [
    "ICLAttentionBiases",
    "ICLAttentionWeights",
    "init_weights",
    "kq_matrix",
    "ov_matrix",
    "pattern_weights",
    "weights_from_projections",
]

INITS = ("random", "small_id", "small_id_qk", "oppo_small_id")


class ICLAttentionWeights(NamedTuple):
    """The four matrices of each head, applied from the left: ``w @ token``. Every head is as wide as a token.

    Attributes
    ----------
    w_k, w_q, w_v : ndarray, shape (H, D, D)
        K_h, Q_h and V_h.
    w_o : ndarray, shape (H, n_out, D)
        O_h.
    """

    w_k: np.ndarray
    w_q: np.ndarray
    w_v: np.ndarray
    w_o: np.ndarray


class ICLAttentionBiases(NamedTuple):
    """What the official module adds after its projections with ``bias=True``; no experiment of the paper does.

    Attributes
    ----------
    b_k, b_q, b_v : ndarray, shape (H, D)
        Of keys, queries and values.
    b_o : ndarray, shape (n_out,)
        Of the output, once for all heads.
    """

    b_k: np.ndarray
    b_q: np.ndarray
    b_v: np.ndarray
    b_o: np.ndarray


def kq_matrix(weights: ICLAttentionWeights) -> np.ndarray:
    """Return KQ_h = K_hᵀ Q_h / √D, all that the scores know of keys and queries.

    Parameters
    ----------
    weights : ICLAttentionWeights
        The heads.

    Returns
    -------
    ndarray, shape (H, D, D)
        Token i scores z_iᵀ KQ_h z_q. A query that ends in 0 never meets the last column.

    Raises
    ------
    ValueError
        If the shapes of the weights disagree.

    Notes
    -----
    The official plots divide the diagonal by √(D + 1) instead, which makes their "KQ" smaller than the true one, by
    0.926 for d = 5.
    """
    w = checked_weights(weights)
    # eq: icl-2
    return np.asanyarray(np.swapaxes(w.w_k, 1, 2) @ w.w_q / w.w_k.shape[-1] ** 0.5)  # (H, D, D)


def ov_matrix(weights: ICLAttentionWeights) -> np.ndarray:
    """Return OV_h = V_hᵀ O_hᵀ, all that the prediction knows of values and outputs.

    Parameters
    ----------
    weights : ICLAttentionWeights
        The heads.

    Returns
    -------
    ndarray, shape (H, D, n_out)
        What one token, fully attended to, contributes to each output.

    Raises
    ------
    ValueError
        If the shapes of the weights disagree.
    """
    w = checked_weights(weights)
    # eq: icl-3
    return np.swapaxes(w.w_o @ w.w_v, 1, 2)  # (H, D, n_out)


def pattern_weights(omega: Any, mu: Any, *, dim: int) -> ICLAttentionWeights:
    """Return a layer that computes the estimator of `softmax_estimator`: the pattern that training ends in.

    Parameters
    ----------
    omega : array_like, shape (H,), (H, d) or (H, d, d)
        Kernel of each head: a number, a diagonal or a matrix Ω_h, all of the upper left block of KQ_h.
    mu : array_like, shape (H,) or (N, H)
        What each head contributes of y, or of each of N responses.
    dim : int
        The number d of covariates; tokens have D = d + 1 or D = d + N entries.

    Returns
    -------
    ICLAttentionWeights
        With K_h = V_h = I, so that Q_h = √D KQ_h and O_h = OV_hᵀ.

    Raises
    ------
    ValueError
        If ``dim`` < 1 or the shapes disagree.
    """
    require(index(dim) >= 1, f"dim={dim!r} must be >= 1")
    omega, mu = full_kernels(omega, dim), tasks_of(mu)  # (H, d, d), (N, H)
    N, H = mu.shape
    require(len(omega) == H, f"omega describes {len(omega)} heads and mu {H}")
    D = dim + N
    w_q, w_o = np.zeros((H, D, D)), np.zeros((H, N, D))
    w_q[:, :dim, :dim] = D**0.5 * omega
    w_o[:, np.arange(N), dim + np.arange(N)] = mu.T
    eye = np.broadcast_to(np.eye(D), (H, D, D)).copy()
    return ICLAttentionWeights(eye, w_q, eye.copy(), w_o)


def init_weights(
    rng: np.random.Generator, *, n_embd: int, n_head: int, n_out: int | None = None, method: str = "random"
) -> ICLAttentionWeights:
    """Draw the weights that training starts from.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    n_embd, n_head : int
        The width D of tokens and the number H of heads.
    n_out : int, optional
        The number of outputs; D if not given.
    method : {"random", "small_id", "small_id_qk", "oppo_small_id"}
        ``random`` is PyTorch's default for linear layers. ``small_id`` sets keys, queries and values to 10⁻⁶ I, and
        the output too if ``n_out`` is not given; ``small_id_qk`` sets keys and queries to 10⁻⁴ I; ``oppo_small_id``
        sets keys to 10⁻⁶ I and queries to 10⁻⁶ I in the first half of the heads, −10⁻⁶ I in the others. What is not
        set is drawn as in ``random``.

    Returns
    -------
    ICLAttentionWeights
        Float64.

    Raises
    ------
    ValueError
        If a size is below 1, ``method`` is unknown, or it needs two halves of an odd number of heads.

    Notes
    -----
    Every random entry is uniform within ±1/√fan_in, where fan_in is D for keys, queries and values and H·D for the
    output. The official code keeps its constants in float32, where 10⁻⁶ is 9.99999997·10⁻⁷.
    """
    require_one_of("method", method, INITS)
    sizes = (n_embd, n_head, 1 if n_out is None else n_out)
    require(min(map(index, sizes)) >= 1, f"n_embd, n_head and n_out are {sizes}, each must be >= 1")
    require(method != "oppo_small_id" or n_head % 2 == 0, f"n_head={n_head!r} must be even for 'oppo_small_id'")
    D, H = n_embd, n_head
    bound = D**-0.5
    w_k, w_q, w_v = rng.uniform(-bound, bound, (3, H, D, D))
    w_o = rng.uniform(-1, 1, (H, D if n_out is None else n_out, D)) / (H * D) ** 0.5
    eye = np.broadcast_to(np.eye(D), (H, D, D))
    if method == "small_id":
        w_k, w_q, w_v = 1e-6 * eye, 1e-6 * eye, 1e-6 * eye
        w_o = 1e-6 * eye if n_out is None else w_o
    elif method == "small_id_qk":
        w_k, w_q = 1e-4 * eye, 1e-4 * eye
    elif method == "oppo_small_id":
        signs = np.where(np.arange(H) < H // 2, 1.0, -1.0)[:, None, None]
        w_k, w_q = 1e-6 * eye, 1e-6 * signs * eye
    return ICLAttentionWeights(w_k, w_q, w_v, w_o)


def weights_from_projections(k_proj: Any, q_proj: Any, v_proj: Any, o_proj: Any, *, n_head: int) -> ICLAttentionWeights:
    """Cut the projections of a module that keeps all heads in one matrix, as PyTorch does.

    Parameters
    ----------
    k_proj, q_proj, v_proj : array_like, shape (H·D, D)
        Head h owns rows h·D … (h + 1)·D − 1.
    o_proj : array_like, shape (n_out, H·D)
        Head h owns columns h·D … (h + 1)·D − 1.
    n_head : int
        The number of heads H.

    Returns
    -------
    ICLAttentionWeights
        Head by head.

    Raises
    ------
    ValueError
        If the shapes disagree.
    """
    require(index(n_head) >= 1, f"n_head={n_head!r} must be >= 1")
    stacked = {"k_proj": k_proj, "q_proj": q_proj, "v_proj": v_proj}
    found = [as_float(name, w, ndim=2) for name, w in stacked.items()]
    o_proj = as_float("o_proj", o_proj, ndim=2)
    D = found[0].shape[1]
    for name, w in zip(stacked, found, strict=True):
        require_shape(name, w, (n_head * D, D))
    require_shape("o_proj", o_proj, (len(o_proj), n_head * D))
    w_k, w_q, w_v = (w.reshape(n_head, D, D) for w in found)
    return ICLAttentionWeights(w_k, w_q, w_v, np.swapaxes(o_proj.reshape(-1, n_head, D), 0, 1))


def checked_weights(weights: ICLAttentionWeights, dtype: Any = None) -> ICLAttentionWeights:
    """Return weights as finite floating arrays of fitting shapes, in ``dtype`` where one is given."""
    w = [as_float(f"weights.{name}", a) for name, a in zip(ICLAttentionWeights._fields, weights, strict=True)]
    shape = w[0].shape
    square = w[0].ndim == 3 and shape[1] == shape[2]
    require(square and min(shape) >= 1, f"weights.w_k has shape {shape}, expected (H, D, D) with H, D >= 1")
    require_shape("weights.w_q", w[1], shape)
    require_shape("weights.w_v", w[2], shape)
    require(w[3].ndim == 3, f"weights.w_o has shape {w[3].shape}, expected (H, n_out, D)")
    require_shape("weights.w_o", w[3], (shape[0], w[3].shape[1], shape[2]))
    for name, a in zip(ICLAttentionWeights._fields, w, strict=True):
        require_finite(f"weights.{name}", a)
    return ICLAttentionWeights._make(a if dtype is None else a.astype(dtype, copy=False) for a in w)


def full_kernels(omega: Any, dim: int) -> np.ndarray:
    """Return the kernel of every head as a matrix Ω_h, (H, d, d)."""
    omega = as_float("omega", omega)
    fits = omega.ndim in (1, 2, 3) and omega.shape[1:] == (dim,) * (omega.ndim - 1)
    require(fits, f"omega has shape {omega.shape}, expected (H,), (H, {dim}) or (H, {dim}, {dim})")
    require_finite("omega", omega)
    if omega.ndim == 3:
        return np.asanyarray(omega)
    diagonal = omega if omega.ndim == 2 else omega[:, None]  # (H, d) or (H, 1)
    return np.asanyarray(diagonal[..., None] * np.eye(dim, dtype=omega.dtype))


def tasks_of(mu: Any) -> np.ndarray:
    """Return ``mu`` with an axis of tasks, (N, H)."""
    mu = as_float("mu", mu)
    require(mu.ndim in (1, 2), f"mu has shape {mu.shape}, expected (H,) or (N, H)")
    require_finite("mu", mu)
    return np.asanyarray(mu if mu.ndim == 2 else mu[None])
