"""The similar-token merger with comparisons and one-hot products in place of sorting ranks and scattering."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from refattn.backends.portable.lrgt.attention import cross_attention
from refattn.backends.portable.lrgt.pointwise import affine, layer_norm, mlp
from refattn.layers.lrgt_merger import Clusters, MergerTrace

__all__ = ["density_peaks_clusters", "merge_tokens", "similar_token_merger"]

BLOCK = 2**22  # differences held at once
NOISE = 1e-6


def density_peaks_clusters(x: Any, noise: Any = None, *, num_clusters: int, k: int) -> Clusters:
    """Cluster around dense tokens that are far from anything denser."""
    xp = array_namespace(x)
    B, N, _ = x.shape
    d = _distances(x)
    nearest = xp.sort(d, axis=-1)[..., :k]
    density = xp.exp(-xp.mean(nearest * nearest, axis=-1))
    density = density if noise is None else density + NOISE * noise
    place = xp.arange(N, device=device(x))
    ours, theirs = density[:, :, None], density[:, None, :]
    denser = (theirs > ours) | ((theirs == ours) & (place[None, :] < place[:, None]))
    largest = xp.broadcast_to(xp.max(d, axis=(1, 2), keepdims=True), d.shape)
    separation = xp.min(xp.where(denser, d, largest), axis=-1)
    centers = xp.argsort(-(separation * density), axis=-1, stable=True)[:, :num_clusters]
    rows = xp.reshape(centers + N * xp.arange(B, device=device(x))[:, None], (B * num_clusters,))
    to_centers = xp.reshape(xp.take(xp.reshape(d, (B * N, N)), rows, axis=0), (B, num_clusters, N))
    own = centers[:, :, None] == place  # (B, M, N): token n is centre m
    assigned = xp.where(own, -xp.ones_like(to_centers), to_centers)  # nothing is nearer than a centre to itself
    return Clusters(xp.argmin(assigned, axis=1), centers)


def merge_tokens(x: Any, labels: Any, score: Any, *, num_clusters: int) -> Any:
    """Weigh every token by its share of its own cluster, then add the clusters up."""
    xp = array_namespace(x)
    clusters = xp.arange(num_clusters, device=device(x), dtype=labels.dtype)
    member = xp.astype(labels[:, :, None] == clusters, x.dtype)  # (B, N, M)
    weight = xp.exp(score)[:, :, None]
    total = xp.sum(member * weight, axis=1, keepdims=True) + NOISE  # (B, 1, M)
    share = weight / xp.sum(member * total, axis=-1, keepdims=True)  # (B, N, 1)
    return xp.matrix_transpose(member) @ (x * share)


def similar_token_merger(
    x: Any,
    weights: Any,
    noise: Any = None,
    *,
    num_clusters: int = 196,
    k: int = 15,
    num_heads: int = 12,
    scale: float | None = None,
    eps: float = 1e-5,
    return_trace: bool = False,
) -> Any:
    """Merge the tokens of each cluster, and let the averages read all tokens."""
    normed = layer_norm(x, weights.norm1_w, weights.norm1_b, eps)
    score = affine(normed, weights.w_score, weights.b_score)[..., 0]
    clusters = density_peaks_clusters(normed, noise, num_clusters=num_clusters, k=k)
    merged = merge_tokens(normed, clusters.labels, score, num_clusters=num_clusters)
    f = merged + cross_attention(merged, normed, weights.attn, num_heads=num_heads, scale=scale, key_bias=score)
    y = f + mlp(layer_norm(f, weights.norm2_w, weights.norm2_b, eps), weights)
    return (y, MergerTrace(normed, score, clusters, merged)) if return_trace else y


def _distances(x: Any) -> Any:
    """Return all distances over √D, by blocks of rows."""
    xp = array_namespace(x)
    B, N, D = x.shape
    rows = max(1, BLOCK // max(B * N * D, 1))
    parts = []
    for begin in range(0, N, rows):
        difference = x[:, begin : min(begin + rows, N), None, :] - x[:, None, :, :]
        parts.append(xp.sqrt(xp.mean(difference * difference, axis=-1)))
    return xp.concat(parts, axis=1)
