"""Merging the tokens of all views into a fixed number: cluster similar tokens, average, attend back to all of them.

The similar-token merger of UMIFormer as LRGT uses it (2308.08724); equation source
``models/transformer_base/encoder/transformer_block.py``, class STMBlock, of the released code, commit a09fc43. The
clusters are density peaks: centres are tokens that are dense and far from anything denser.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.layers.lrgt_attention import GroupAttentionWeights, affine, as_weights, mlp, multi_head_attention
from refattn.primitives.arguments import as_float, as_integer, require, require_shape
from refattn.primitives.norms import layer_norm
from refattn.primitives.selection import top_k

__all__ = [
    "NOISE",
    "Clusters",
    "MergerTrace",
    "MergerWeights",
    "density_peaks_clusters",
    "merge_tokens",
    "similar_token_merger",
    "token_density",
]

NOISE = 1e-6
"""Factor of the noise that breaks ties of density, and what is added to the sum of weights."""


class MergerWeights(NamedTuple):
    """Parameters of one merging block.

    Attributes
    ----------
    norm1_w, norm1_b, norm2_w, norm2_b : ndarray, shape (D,)
        The two layer normalisations.
    w_score, b_score : ndarray, shapes (D, 1) and (1,)
        The score of a token.
    attn : GroupAttentionWeights
        The attention, without biases of queries, keys and values.
    w_1, b_1, w_2, b_2 : ndarray, shapes (D, E), (E,), (E, D), (D,)
        The MLP.
    """

    norm1_w: np.ndarray
    norm1_b: np.ndarray
    w_score: np.ndarray
    b_score: np.ndarray
    attn: GroupAttentionWeights
    norm2_w: np.ndarray
    norm2_b: np.ndarray
    w_1: np.ndarray
    b_1: np.ndarray
    w_2: np.ndarray
    b_2: np.ndarray


class Clusters(NamedTuple):
    """Which tokens belong together.

    Attributes
    ----------
    labels : ndarray of int, shape (B, N)
        The cluster of each token.
    centers : ndarray of int, shape (B, M)
        The token at the centre of each cluster, the clearest centre first.
    """

    labels: np.ndarray
    centers: np.ndarray


class MergerTrace(NamedTuple):
    """What a merging block computes on its way.

    Attributes
    ----------
    normed : ndarray, shape (B, N, D)
        The normalised tokens.
    score : ndarray, shape (B, N)
        Their scores.
    clusters : Clusters
        Their clusters.
    merged : ndarray, shape (B, M, D)
        The averages over clusters.
    """

    normed: np.ndarray
    score: np.ndarray
    clusters: Clusters
    merged: np.ndarray


def similar_token_merger(
    x: Any,
    weights: MergerWeights,
    noise: Any = None,
    *,
    num_clusters: int = 196,
    k: int = 15,
    num_heads: int = 12,
    scale: float | None = None,
    eps: float = 1e-5,
    return_trace: bool = False,
) -> Any:
    """Merge N tokens into M: average each cluster, then let the averages attend to all tokens.

    1. Normalise the tokens and score each.
    2. Cluster them, `density_peaks_clusters`.
    3. Average each cluster by the exponentials of the scores, `merge_tokens`.
    4. Attend from the averages to all tokens; a token's score is added to the logits of its key.
    5. Transform by an MLP.

    Parameters
    ----------
    x : array_like, shape (B, N, D)
        Tokens of all views.
    weights : MergerWeights
        Parameters.
    noise : array_like, shape (B, N), optional
        See `density_peaks_clusters`.
    num_clusters : int
        M.
    k : int
        Neighbours that a density counts.
    num_heads : int
        The number of heads H, a divisor of D.
    scale : float, optional
        Factor of the logits; (D/H)^(−1/2) if not given.
    eps : float
        Of the layer normalisations.
    return_trace : bool
        Return the intermediate values too.

    Returns
    -------
    y : ndarray, shape (B, M, D)
        In the dtype of ``x``.
    trace : MergerTrace
        Only with ``return_trace``.

    Raises
    ------
    ValueError
        If M or k exceeds N or is below 1, or a shape disagrees.

    Notes
    -----
    The residual is the average itself, which is made of normalised tokens: the raw ones are not used again. No
    gradient passes through the clusters.

    References
    ----------
    The released ``STMBlock``; LRGT runs two of them, with M = 196 and k = 15.
    """
    x = as_float("x", x, ndim=3)
    weights = as_weights("weights", weights, x.dtype)
    require_shape("weights.w_score", weights.w_score, (x.shape[-1], 1))
    normed = layer_norm(x, weights.norm1_w, weights.norm1_b, eps=eps)  # (B, N, D)
    score = affine(normed, weights.w_score, weights.b_score)[..., 0]  # (B, N)
    clusters = density_peaks_clusters(normed, noise, num_clusters=num_clusters, k=k)
    merged = merge_tokens(normed, clusters.labels, score, num_clusters=num_clusters)  # (B, M, D)
    # eq: lrgt-11
    mixed = multi_head_attention(merged, normed, weights.attn, num_heads=num_heads, scale=scale, key_bias=score)
    f = merged + mixed  # (B, M, D)
    y = f + mlp(layer_norm(f, weights.norm2_w, weights.norm2_b, eps=eps), weights)
    return (y, MergerTrace(normed, score, clusters, merged)) if return_trace else y


def density_peaks_clusters(x: Any, noise: Any = None, *, num_clusters: int, k: int) -> Clusters:
    """Cluster tokens around those that are dense and far from anything denser.

    1. Distances d_ij = ‖x_i − x_j‖ / √D.
    2. Density ρ_i = exp(−mean of the k smallest d_ij²) + 10⁻⁶ u_i; the token itself is among the k.
    3. Separation δ_i = distance to the nearest denser token; the largest distance of all for the densest.
    4. The M tokens with the largest δ_i ρ_i are the centres.
    5. Every token joins its nearest centre, every centre itself.

    Parameters
    ----------
    x : array_like, shape (B, N, D)
        Tokens.
    noise : array_like, shape (B, N), optional
        u, usually uniform on [0, 1), which breaks ties of density; 0 if not given.
    num_clusters : int
        M, from 1 to N.
    k : int
        Neighbours that a density counts, from 1 to N.

    Returns
    -------
    Clusters
        The cluster of each token and the centre of each cluster.

    Raises
    ------
    ValueError
        If M or k lies outside 1 … N, or the noise is not (B, N).

    Notes
    -----
    Among equals the lowest index comes first, everywhere: of two equally dense tokens the earlier counts as the denser
    one [our definition]. The released code always draws noise and so never meets such a pair. Without a rule, each of
    two equal tokens would be without anything denser, and both would become centres.
    """
    x = as_float("x", x, ndim=3)
    N = x.shape[1]
    require(1 <= index(num_clusters) <= N, f"num_clusters={num_clusters!r} must lie between 1 and N={N}")
    require(1 <= index(k) <= N, f"k={k!r} must lie between 1 and N={N}")
    d = _distances(x)  # (B, N, N)
    density = token_density(d, k)  # (B, N)
    if noise is not None:
        noise = as_float("noise", noise)
        require_shape("noise", noise, x.shape[:2])
        density = density + NOISE * noise.astype(x.dtype, copy=False)
    separation = _separation(d, density)  # (B, N)
    # eq: lrgt-9
    _, centers = top_k(separation * density, k=num_clusters)  # (B, M)
    return Clusters(_nearest(d, centers), centers)


def merge_tokens(x: Any, labels: Any, score: Any, *, num_clusters: int) -> np.ndarray:
    """Average the tokens of each cluster by the exponentials of their scores.

    Parameters
    ----------
    x : array_like, shape (B, N, D)
        Tokens.
    labels : array_like of int, shape (B, N)
        The cluster of each, from 0 to M − 1.
    score : array_like, shape (B, N)
        Their scores s.
    num_clusters : int
        M.

    Returns
    -------
    ndarray, shape (B, M, D)
        Σ x e^s / (Σ e^s + 10⁻⁶) over each cluster; 0 for one without tokens.

    Raises
    ------
    ValueError
        If shapes disagree or a label names no cluster.

    Notes
    -----
    The exponentials are not shifted by their largest argument: the 10⁻⁶ would then weigh differently.
    """
    x, labels, score = as_float("x", x, ndim=3), as_integer("labels", labels), as_float("score", score)
    require_shape("labels", labels, x.shape[:2])
    require_shape("score", score, x.shape[:2])
    inside = labels.size == 0 or (labels.min() >= 0 and labels.max() < num_clusters)
    require(inside, f"labels must lie between 0 and {num_clusters - 1}, the last cluster")
    member = labels[:, None, :] == np.arange(num_clusters)[:, None]  # (B, M, N)
    weight = member * np.exp(score.astype(x.dtype, copy=False))[:, None, :]  # (B, M, N)
    total = np.sum(weight, axis=-1, keepdims=True) + x.dtype.type(NOISE)  # (B, M, 1)
    # eq: lrgt-10
    merged: np.ndarray = weight @ x / total  # (B, M, D)
    return merged


def token_density(d: np.ndarray, k: int) -> np.ndarray:
    """Return exp(−mean of the k smallest squared distances) of each token, for distances (B, N, N)."""
    nearest = np.sort(d, axis=-1)[..., :k]  # (B, N, k)
    # eq: lrgt-8
    density: np.ndarray = np.exp(-np.mean(np.square(nearest), axis=-1))
    return density


def _distances(x: np.ndarray) -> np.ndarray:
    """Return all distances over √D, a row at a time: differences keep close tokens apart, a Gram matrix does not."""
    D = max(x.shape[-1], 1)
    rows = [np.sqrt(np.sum(np.square(x - x[:, i : i + 1]), axis=-1) / D) for i in range(x.shape[1])]  # N × (B, N)
    return np.stack(rows, axis=1)


def _separation(d: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Return the distance to the nearest denser token; the densest gets the largest distance of all."""
    order = np.argsort(-density, axis=-1, kind="stable")  # (B, N), the densest first
    rank = np.argsort(order, axis=-1)
    denser = rank[:, None, :] < rank[:, :, None]  # (B, N, N): j is denser than i
    largest = np.max(d, axis=(1, 2), keepdims=True, initial=0.0)  # (B, 1, 1)
    separation: np.ndarray = np.min(np.where(denser, d, largest), axis=-1)
    return separation


def _nearest(d: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the nearest centre of each token, the first among equals, and of each centre itself."""
    to_centers = np.take_along_axis(d, centers[:, :, None], axis=1)  # (B, M, N)
    labels = np.asarray(np.argmin(to_centers, axis=1), dtype=np.int64)  # (B, N)
    np.put_along_axis(labels, centers, np.arange(centers.shape[1])[None], axis=1)
    return labels
