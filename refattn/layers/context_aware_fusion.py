"""From token sequences to one vector: the mean of each, and two ways of putting several together.

The paper has two methods of fusion; which two is not known to us, so both are our definition. Label (cta-14) is that
of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.layers.context_aware_attention import global_context
from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fuse_attention", "fuse_concat", "mean_pool"]


def mean_pool(x: Any, mask: Any = None) -> np.ndarray:
    """Return the mean of the real tokens.

    Parameters
    ----------
    x : array_like, shape (..., N, D)
        Tokens.
    mask : array_like of bool, shape (..., N), optional
        True = real token.

    Returns
    -------
    ndarray, shape (..., D)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If a sequence has no real token or the mask does not fit.
    """
    return np.asanyarray(global_context(x, mask)[..., 0, :])


def fuse_concat(parts: Sequence[Any], w: Any, b: Any) -> np.ndarray:
    """Lay the parts side by side and project.

    Parameters
    ----------
    parts : sequence of array_like, shape (..., D_k)
        Pooled features, such as those of text, image, text to image and image to text.
    w, b : array_like, shape (Σ D_k, E) and (E,)
        The projection.

    Returns
    -------
    ndarray, shape (..., E)
        The fused features.

    Raises
    ------
    ValueError
        If there is no part, or shapes do not fit.
    """
    arrays = _parts(parts)
    f = np.concatenate(arrays, axis=-1)  # (..., Σ D_k)
    w, b = as_float("w", w, ndim=2).astype(f.dtype, copy=False), as_float("b", b).astype(f.dtype, copy=False)
    require(w.shape[0] == f.shape[-1], f"w has shape {w.shape}, expected ({f.shape[-1]}, E)")
    require_shape("b", b, w.shape[1:])
    return np.asanyarray(f @ w + b)


def fuse_attention(parts: Sequence[Any], w_hidden: Any, b_hidden: Any, w_score: Any) -> tuple[np.ndarray, np.ndarray]:
    """Average the parts with weights that a small network gives to each.

    Parameters
    ----------
    parts : sequence of K array_like, shape (..., D) each
        Pooled features.
    w_hidden, b_hidden, w_score : array_like, shape (D, E), (E,) and (E,)
        W, b and w of the score wᵀ tanh(W f + b).

    Returns
    -------
    fused : ndarray, shape (..., D)
        The average.
    alpha : ndarray, shape (..., K)
        Its weights.

    Raises
    ------
    ValueError
        If there is no part, or shapes do not fit.
    """
    arrays = _parts(parts)
    for i, part in enumerate(arrays):
        require_shape(f"parts[{i}]", part, arrays[0].shape)
    f = np.stack(arrays, axis=-2)  # (..., K, D)
    names = ("w_hidden", "b_hidden", "w_score")
    w, b, score = (
        as_float(n, t).astype(f.dtype, copy=False) for n, t in zip(names, (w_hidden, b_hidden, w_score), strict=True)
    )
    require(w.ndim == 2 and w.shape[0] == f.shape[-1], f"w_hidden has shape {w.shape}, expected ({f.shape[-1]}, E)")
    require_shape("b_hidden", b, w.shape[1:])
    require_shape("w_score", score, w.shape[1:])
    # eq: cta-14
    alpha = softmax(np.tanh(f @ w + b) @ score)  # (..., K)
    return np.asanyarray(np.sum(alpha[..., None] * f, axis=-2)), alpha


def _parts(parts: Sequence[Any]) -> list[Any]:
    arrays = [as_float(f"parts[{i}]", part) for i, part in enumerate(parts)]
    require(len(arrays) > 0, "parts is empty, expected at least one")
    for i, part in enumerate(arrays):
        fits = part.ndim >= 1 and part.shape[:-1] == arrays[0].shape[:-1]
        require(fits, f"parts[{i}] has shape {part.shape}, expected {(*arrays[0].shape[:-1], 'D')}")
    return arrays
