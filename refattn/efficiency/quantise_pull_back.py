"""Moments of queries and keys where scores are formed, carried back to where W_Q and W_K write: through a norm.

Between the two lie a rotation that differs from position to position (see `refattn.efficiency.turboboa_hessians`) and,
in Qwen3, a norm that differs from token to token. The moments are averaged over both: one matrix a head remains.
"""

from __future__ import annotations

import numpy as np

__all__ = ["pull_back_norm"]


def pull_back_norm(moment: np.ndarray, raw: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Average a moment of normalised heads over the derivatives of the norm at the vectors that were normalised.

    Parameters
    ----------
    moment : ndarray, shape (heads, e, e)
        C, measured after the norm.
    raw : ndarray, shape (n, heads, e)
        The vectors q before the norm.
    weight : ndarray, shape (e,)
        g, of the norm.
    eps : float
        Of the norm.

    Returns
    -------
    ndarray, shape (heads, e, e)
        mean_t J_tᵀ C J_t with J = diag(g) (I − q qᵀ / (e ρ²)) / ρ, ρ² = mean(q²) + eps.

    Notes
    -----
    [our definition] Neither paper treats models that normalise queries and keys (Qwen3). To first order an error δ of q
    moves the normalised query by J δ, which differs from token to token, as the rotation differs from position to
    position; the average over tokens is the same step that the papers take for the rotation. What lies along q is
    forgiven, as the norm takes it out again.
    """
    e = raw.shape[-1]
    inner = weight[:, None] * moment * weight  # N = diag(g) C diag(g)  (heads, e, e)
    inverse = 1.0 / (np.mean(np.square(raw), axis=-1) + eps)  # 1/ρ²  (n, heads)
    along = np.einsum("nhi,hij,nhj->nh", raw, inner, raw, optimize=True)  # qᵀ N q  (n, heads)
    crossed = _weighted_moment(raw, inverse**2 / e)  # mean q qᵀ / (e ρ⁴)
    twice = _weighted_moment(raw, inverse**3 / e**2 * along)  # mean (qᵀNq) q qᵀ / (e² ρ⁶)
    return np.asarray(
        np.mean(inverse, axis=0)[:, None, None] * inner - crossed @ inner - inner @ crossed + twice  # (heads, e, e)
    )


def _weighted_moment(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean over n of w x xᵀ: (n, heads, e) and (n, heads) to (heads, e, e)."""
    columns = np.swapaxes(x, 0, 1)  # (heads, n, e)
    return np.asarray(np.swapaxes(columns * weights.T[..., None], 1, 2) @ columns / len(x))
