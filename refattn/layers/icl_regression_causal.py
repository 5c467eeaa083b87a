"""The official code's multi-layer variant, kept because it differs from what it seems to be.

Its layers are meant to be causal attention. They normalise twice: a softmax over all positions, later ones included,
and then a second softmax of those weights over the positions that may be seen. Weights between 0 and 1 are all that
the second one sees, so no position ever gets more than e times the weight of another. The paper's figures do not use
it. Equation labels (icl-17) and (icl-18) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.layers.icl_regression_weights import ICLAttentionWeights, checked_weights
from refattn.primitives.arguments import as_float, require, require_finite, require_shape
from refattn.primitives.masks import causal_mask
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["double_softmax_attention", "double_softmax_stack"]


def double_softmax_attention(x: Any, weights: ICLAttentionWeights) -> np.ndarray:
    """Attend causally to values, by weights that have been normalised twice.

    Parameters
    ----------
    x : array_like, shape (B, N, D)
        Tokens.
    weights : ICLAttentionWeights
        The heads, with n_out = D.

    Returns
    -------
    ndarray, shape (B, N, D)
        In the dtype of ``x``. Earlier tokens do depend on later ones, through the first softmax.

    Raises
    ------
    ValueError
        If shapes disagree, n_out is not D, or anything is not finite.

    Notes
    -----
    Follows ``CausalMultiHeadAttention`` of the official ``src/models.py``, which computes the product with the values
    twice and discards the first. In the copy in the official notebook a token does not see itself, and the first token,
    which sees nothing, averages over all [recalled]; that copy is not reproduced here.
    """
    x = as_float("x", x, ndim=3)
    require_finite("x", x)
    w = checked_weights(weights, x.dtype)
    _, N, D = x.shape
    require_shape("weights.w_o", w.w_o, (len(w.w_k), D, D))
    q, k, v = (np.einsum("hij,bnj->bhni", m, x) for m in (w.w_q, w.w_k, w.w_v))  # (B, H, N, D) each
    # eq: icl-17
    once = softmax(q @ np.swapaxes(k, -1, -2) / D**0.5)  # (B, H, N, N)
    # eq: icl-18
    twice = softmax(once, where=causal_mask(N, N))  # (B, H, N, N)
    return np.asanyarray(np.einsum("hoi,bhni->bno", w.w_o, twice @ v))


def double_softmax_stack(z_q: Any, z: Any, layers: Sequence[ICLAttentionWeights], final: Any) -> np.ndarray:
    """Run examples and question through a stack of such layers and read the answer off the last token.

    Parameters
    ----------
    z_q : array_like, shape (B, D)
        The questions.
    z : array_like, shape (B, L, D)
        The examples; none is allowed.
    layers : sequence of ICLAttentionWeights
        One for each layer, each with n_out = D; tied layers are the same weights several times.
    final : array_like, shape (n_out, D)
        The last linear map.

    Returns
    -------
    ndarray, shape (B, n_out)
        In the dtype of ``z``.

    Raises
    ------
    ValueError
        If shapes disagree, there is no layer, or anything is not finite.
    """
    z, z_q, final = as_float("z", z, ndim=3), as_float("z_q", z_q), as_float("final", final, ndim=2)
    B, _, D = z.shape
    require_shape("z_q", z_q, (B, D))
    require_shape("final", final, (len(final), D))
    require_finite("final", final)
    require(len(layers) >= 1, f"layers={layers!r} must hold at least one layer")
    x = np.concatenate([z, z_q[:, None].astype(z.dtype, copy=False)], axis=1)  # (B, L + 1, D)
    for weights in layers:
        x = double_softmax_attention(x, weights)
    return np.asanyarray(x[:, -1] @ final.astype(z.dtype, copy=False).T)
