"""A transformer block that sees one segment at a time.

From MSGNet (2401.00423); the equation label (msgnet-10) is that of the page. Equation source: ``layers/MSGBlock.py`` of
the released code, commit 953b833.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.layers.msgnet_weights import AttentionBlockWeights, as_weights, check_attention_block
from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_float
from refattn.primitives.masks import causal_mask
from refattn.primitives.norms import layer_norm
from refattn.primitives.softmax import softmax

__all__ = ["attention_block", "segment_attention"]

EPS = 1e-5


def segment_attention(z: Any, weights: AttentionBlockWeights, *, n_heads: int, causal: bool = True) -> np.ndarray:
    """Attend inside each segment, then transform each time; normalise after each.

    Parameters
    ----------
    z : array_like, shape (R, s, D)
        R segments of s times.
    weights : AttentionBlockWeights
        Parameters.
    n_heads : int
        The number of heads H, a divisor of D.
    causal : bool
        Hide later times of the segment.

    Returns
    -------
    ndarray, shape (R, s, D)
        In the dtype of ``z``.

    Raises
    ------
    ValueError
        If shapes disagree or the heads do not divide D.

    Notes
    -----
    The released code hides later times; the paper does not mention it. There is no position inside the segment but what
    the embedding has left in the features.
    """
    z = as_float("z", z, ndim=3)
    weights = as_weights("weights", weights, z.dtype)
    check_attention_block("weights", weights, z.shape[2], n_heads)
    return attention_block(z, weights, n_heads=n_heads, causal=causal)


def attention_block(z: np.ndarray, w: AttentionBlockWeights, *, n_heads: int, causal: bool) -> np.ndarray:
    """Do the work of `segment_attention`; it checks nothing."""
    R, s, D = z.shape
    heads = (R, s, n_heads, D // n_heads)
    pairs = ((w.w_q, w.b_q), (w.w_k, w.b_k), (w.w_v, w.b_v))
    q, k, v = (np.swapaxes((z @ m.T + b).reshape(heads), 1, 2) for m, b in pairs)  # (R, H, s, d)
    # eq: msgnet-10
    a = softmax(q @ np.swapaxes(k, -1, -2) / heads[-1] ** 0.5, where=causal_mask(s, s) if causal else None)
    found = np.swapaxes(a @ v, 1, 2).reshape(R, s, D) @ w.w_o.T + w.b_o  # (R, s, D)
    y = layer_norm(z + found, w.norm1_w, w.norm1_b, eps=EPS)
    hidden = gelu(y @ w.w_1.T + w.b_1)  # (R, s, E)
    return layer_norm(y + hidden @ w.w_2.T + w.b_2, w.norm2_w, w.norm2_b, eps=EPS)
