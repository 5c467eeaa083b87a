"""Attention that solves linear regression from examples in its context: the layer and its exact gradient.

One softmax attention layer reads L examples (x_i, y_i) and a question (x_q, 0) and predicts y_q. From "In-Context
Linear Regression Demystified" (2503.12734). What the trained layer amounts to stands in
`refattn.layers.icl_regression_estimators`; its weights in `refattn.layers.icl_regression_weights`; optimisers in
`refattn.layers.icl_regression_training`. Equation labels (icl-1), (icl-4), (icl-5), (icl-6) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.icl_regression_estimators import (
    debiased_gd_estimator,
    gd_estimator,
    linear_attention,
    one_step_matrices,
    preconditioner,
    ridge_estimator,
    softmax_estimator,
)
from refattn.layers.icl_regression_weights import (
    ICLAttentionBiases,
    ICLAttentionWeights,
    checked_weights,
    init_weights,
    kq_matrix,
    ov_matrix,
    pattern_weights,
    weights_from_projections,
)
from refattn.primitives.arguments import as_float, require, require_finite, require_shape
from refattn.primitives.softmax import softmax

__all__ = [
    "ICLAttentionBiases",
    "ICLAttentionWeights",
    "IclOutput",
    "debiased_gd_estimator",
    "gd_estimator",
    "icl_attention",
    "icl_attention_grad",
    "icl_attention_vjp",
    "init_weights",
    "kq_matrix",
    "linear_attention",
    "one_step_matrices",
    "ov_matrix",
    "pattern_weights",
    "preconditioner",
    "ridge_estimator",
    "softmax_estimator",
    "weights_from_projections",
]


class IclOutput(NamedTuple):
    """What the layer returns.

    Attributes
    ----------
    y_hat : ndarray, shape (B, n_out)
        The prediction.
    attn : ndarray, shape (B, H, L)
        The weight of each example in each head; every row sums to 1.
    """

    y_hat: np.ndarray
    attn: np.ndarray


def icl_attention(
    z_q: Any, z: Any, weights: ICLAttentionWeights, *, biases: ICLAttentionBiases | None = None
) -> IclOutput:
    """Let a question attend to the examples before it, but not to itself.

    1. Project the question to queries and the examples to keys and values, H heads as wide as a token.
    2. Softmax of the scaled scores over the examples.
    3. Average the values, and sum what the heads make of them.

    Parameters
    ----------
    z_q : array_like, shape (B, D)
        The questions (x_q, 0).
    z : array_like, shape (B, L, D)
        The examples (x_i, y_i), L ≥ 1.
    weights : ICLAttentionWeights
        The heads.
    biases : ICLAttentionBiases, optional
        None of the paper's experiments has any.

    Returns
    -------
    IclOutput
        ``y_hat`` (B, n_out) and ``attn`` (B, H, L), in the dtype of ``z``.

    Raises
    ------
    ValueError
        If shapes disagree, there is no example, or anything is not finite.

    Notes
    -----
    Neither a residual stream, nor a norm, nor positions: the prediction does not depend on the order of the examples.
    The scale is 1/√D with D = d + 1, the width of a token and of every head. The official multi-layer variant differs
    in more than its depth; see `refattn.layers.icl_regression_causal`.

    References
    ----------
    2503.12734, Section 2 [recalled]; official code, ``MultiHeadAttention``.
    """
    z_q, z, w = _checked(z_q, z, weights)
    D = z.shape[-1]
    q = np.einsum("hij,bj->bhi", w.w_q, z_q)  # (B, H, D)
    k = np.einsum("hij,blj->bhli", w.w_k, z)  # (B, H, L, D)
    v = np.einsum("hij,blj->bhli", w.w_v, z)  # (B, H, L, D)
    b_o: Any = 0
    if biases is not None:
        b_k, b_q, b_v, b_o = _checked_biases(biases, w)
        q, k, v = q + b_q, k + b_k[:, None], v + b_v[:, None]
    # eq: icl-1
    p = softmax(np.einsum("bhli,bhi->bhl", k, q) / D**0.5)  # (B, H, L)
    o = np.einsum("bhl,bhli->bhi", p, v)  # (B, H, D)
    return IclOutput(np.einsum("hoi,bhi->bo", w.w_o, o) + b_o, p)


def icl_attention_vjp(z_q: Any, z: Any, weights: ICLAttentionWeights, dy_hat: Any) -> ICLAttentionWeights:
    """Pull a gradient with respect to the prediction back to the weights.

    Parameters
    ----------
    z_q, z, weights
        As in `icl_attention`; no biases.
    dy_hat : array_like, shape (B, n_out)
        The derivative δ of some number with respect to the prediction.

    Returns
    -------
    ICLAttentionWeights
        The derivative of that number with respect to each weight.

    Raises
    ------
    ValueError
        As `icl_attention`, and if ``dy_hat`` has another shape than the prediction.

    Notes
    -----
    The layer depends on its weights only through A_h = KQ_h and C_h = OV_h, so the derivative is taken there and
    carried on to the factors. Softmax enters as a covariance: a score gains where its token's contribution exceeds
    the average contribution.
    """
    z_q, z, w = _checked(z_q, z, weights)
    delta = _response("dy_hat", dy_hat, z, w)  # (B, n_out)
    return _pulled_back(z_q, z, w, _merged_forward(z_q, z, w), delta)


def icl_attention_grad(
    z_q: Any, z: Any, y: Any, weights: ICLAttentionWeights
) -> tuple[np.floating[Any], ICLAttentionWeights]:
    """Return the mean squared error and its exact gradient.

    Parameters
    ----------
    z_q, z, weights
        As in `icl_attention`; no biases.
    y : array_like, shape (B, n_out)
        What should be predicted.

    Returns
    -------
    loss : floating
        The mean of (ŷ − y)² over prompts and outputs.
    grads : ICLAttentionWeights
        Its derivative with respect to each weight.

    Raises
    ------
    ValueError
        As `icl_attention`, if ``y`` has another shape than the prediction, and if there is no prompt.
    """
    z_q, z, w = _checked(z_q, z, weights)
    y = _response("y", y, z, w)  # (B, n_out)
    require(y.size > 0, f"y has shape {y.shape}: the mean loss of no prompt is not defined")
    merged = _merged_forward(z_q, z, w)
    error = merged.y_hat - y  # (B, n_out)
    # eq: icl-4
    return np.mean(error**2), _pulled_back(z_q, z, w, merged, 2 * error / y.size)


class _Merged(NamedTuple):
    """The layer in terms of the merged matrices A (H, D, D) and C (H, D, n_out), with what its gradient needs."""

    A: np.ndarray
    C: np.ndarray
    p: np.ndarray
    z_bar: np.ndarray
    y_hat: np.ndarray


def _merged_forward(z_q: np.ndarray, z: np.ndarray, w: ICLAttentionWeights) -> _Merged:
    A, C = kq_matrix(w), ov_matrix(w)
    t = np.einsum("hij,bj->bhi", A, z_q)  # (B, H, D)
    p = softmax(np.einsum("bli,bhi->bhl", z, t))  # (B, H, L)
    z_bar = np.einsum("bhl,bli->bhi", p, z)  # (B, H, D), the mean token that a head sees
    return _Merged(A, C, p, z_bar, np.einsum("hio,bhi->bo", C, z_bar))


def _pulled_back(
    z_q: np.ndarray, z: np.ndarray, w: ICLAttentionWeights, merged: _Merged, delta: np.ndarray
) -> ICLAttentionWeights:
    """Return the gradient of the four factors for the gradient δ of the prediction, (B, n_out)."""
    _, C, p, z_bar, _ = merged
    # eq: icl-5
    dC = np.einsum("bhi,bo->hio", z_bar, delta)  # (H, D, n_out)
    g = np.einsum("bli,bhi->bhl", z, np.einsum("hio,bo->bhi", C, delta))  # (B, H, L)
    dS = p * (g - np.sum(p * g, axis=-1, keepdims=True))  # (B, H, L)
    dA = np.einsum("bhi,bj->hij", np.einsum("bhl,bli->bhi", dS, z), z_q)  # (H, D, D)
    # eq: icl-6
    scale = z.shape[-1] ** 0.5
    dK = w.w_q @ np.swapaxes(dA, 1, 2) / scale  # (H, D, D)
    dQ = w.w_k @ dA / scale  # (H, D, D)
    dV = np.swapaxes(dC @ w.w_o, 1, 2)  # (H, D, D)
    dO = np.swapaxes(w.w_v @ dC, 1, 2)  # (H, n_out, D)
    return ICLAttentionWeights(dK, dQ, dV, dO)


def _checked(z_q: Any, z: Any, weights: ICLAttentionWeights) -> tuple[Any, Any, ICLAttentionWeights]:
    """Return question, examples and weights as finite floating arrays of fitting shapes, in the dtype of ``z``."""
    z = as_float("z", z, ndim=3)
    B, L, D = z.shape
    z_q = as_float("z_q", z_q)
    require_shape("z_q", z_q, (B, D))
    require(L >= 1, f"z has shape {z.shape}: length must be >= 1")
    require_finite("z_q", z_q)
    require_finite("z", z)
    w = checked_weights(weights, z.dtype)
    require(w.w_k.shape[-1] == D, f"weights.w_k has shape {w.w_k.shape}, but tokens of z have width {D}")
    return z_q.astype(z.dtype, copy=False), z, w


def _response(name: str, y: Any, z: np.ndarray, w: ICLAttentionWeights) -> Any:
    """Return an array of the prediction's shape, in the dtype of ``z``."""
    y = as_float(name, y)
    require_shape(name, y, (len(z), w.w_o.shape[1]))
    require_finite(name, y)
    return y.astype(z.dtype, copy=False)


def _checked_biases(biases: ICLAttentionBiases, w: ICLAttentionWeights) -> tuple[Any, ...]:
    found = []
    shapes = (*(w.w_k.shape[:2],) * 3, (w.w_o.shape[1],))
    for name, bias, shape in zip(ICLAttentionBiases._fields, biases, shapes, strict=True):
        b = as_float(f"biases.{name}", bias)
        require_shape(f"biases.{name}", b, shape)
        require_finite(f"biases.{name}", b)
        found.append(b.astype(w.w_k.dtype, copy=False))
    return tuple(found)
