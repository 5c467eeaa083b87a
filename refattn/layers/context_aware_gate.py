"""Self-attention with a gate model: each token decides how loudly it asks, and how loudly it answers.

From Yu et al., 1908.04107 [recalled]; labels (cta-7) and (cta-8) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.context_aware_attention import token_mask
from refattn.primitives.activations import sigmoid
from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.softmax import softmax

__all__ = ["GateWeights", "gated_self_attention"]


class GateWeights(NamedTuple):
    """The gate model, shared by all heads.

    Attributes
    ----------
    w_gq, b_gq, w_gk, b_gk : ndarray, shape (d, d_g) and (d_g,)
        What queries and keys are read by.
    w_g, b_g : ndarray, shape (d_g, 2) and (2,)
        From their product to the gate of the query and the gate of the key.
    """

    w_gq: np.ndarray
    b_gq: np.ndarray
    w_gk: np.ndarray
    b_gk: np.ndarray
    w_g: np.ndarray
    b_g: np.ndarray


def gated_self_attention(q: Any, k: Any, v: Any, weights: GateWeights, *, mask: Any = None) -> np.ndarray:
    """Attend with queries and keys that a gate, read from both, may turn down.

    Parameters
    ----------
    q, k, v : array_like, shape (..., H, N, d)
        Queries, keys and values of the same tokens, head by head.
    weights : GateWeights
        See there.
    mask : array_like of bool, shape (..., N), optional
        True = real token.

    Returns
    -------
    ndarray, shape (..., H, N, d)
        In the dtype of ``q``.

    Raises
    ------
    ValueError
        If shapes do not fit, or a sequence has no real token.

    Notes
    -----
    Gates that are all 1 leave plain attention; gates that are all 0 make every score 0, and every token gets the mean
    of the values. One set of weights for all heads, and d_g = 64 where nothing else is said, are our definition.
    """
    q, k, v = as_float("q", q), as_float("k", k), as_float("v", v)
    require(q.ndim >= 3, f"q has shape {q.shape}, expected (..., H, N, d)")
    for name, value in (("k", k), ("v", v)):
        require_shape(name, value, q.shape)
    mask = token_mask(mask, q[..., 0, :, :])
    W = _checked(weights, q)
    # eq: cta-7
    M = sigmoid(((q @ W.w_gq + W.b_gq) * (k @ W.w_gk + W.b_gk)) @ W.w_g + W.b_g)  # (..., H, N, 2)
    # eq: cta-8
    s = (q * M[..., :1]) @ np.swapaxes(k * M[..., 1:], -1, -2) / q.shape[-1] ** 0.5  # (..., H, N, N)
    return np.asanyarray(softmax(s, where=mask[..., None, None, :]) @ v)  # (..., H, N, d)


def _checked(weights: GateWeights, q: np.ndarray) -> Any:
    """Return the weights as floating arrays of fitting shapes."""
    arrays = [as_float(f"weights.{name}", w) for name, w in zip(GateWeights._fields, weights, strict=True)]
    require(arrays[0].ndim == 2, f"weights.w_gq has shape {arrays[0].shape}, expected (d, d_g)")
    d, d_g = q.shape[-1], arrays[0].shape[-1]
    shapes = ((d, d_g), (d_g,), (d, d_g), (d_g,), (d_g, 2), (2,))
    for name, w, shape in zip(GateWeights._fields, arrays, shapes, strict=True):
        require_shape(f"weights.{name}", w, shape)
    return GateWeights(*(w.astype(q.dtype, copy=False) for w in arrays))
