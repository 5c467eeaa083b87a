"""Tokens whose clusters do not hang by a thread.

Clusters are decided by comparisons: which token is denser, which are the clearest centres, which centre is nearest.
Where two candidates are almost equal, rounding decides, and no kernel can be judged by what follows. So the cases take,
of many draws, the one whose closest decision is the clearest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["clear_tokens", "cluster_margin"]

_DRAWS = 40


def clear_tokens(
    rng: np.random.Generator,
    draw: Callable[[], np.ndarray],
    num_clusters: int,
    k: int,
    *,
    norm: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Return the draw (N, D) with the widest margin; with ``norm`` the margin is that of the normalised tokens."""
    drawn = [draw() * rng.uniform(0.7, 1.3) for _ in range(_DRAWS)]
    return max(drawn, key=lambda x: cluster_margin(x if norm is None else _normed(x, *norm), num_clusters, k))


def cluster_margin(x: np.ndarray, num_clusters: int, k: int) -> float:
    """Return the smallest relative gap of all comparisons that the clusters of x (N, D) rest on."""
    d = np.sqrt(np.mean((x[:, None] - x[None]) ** 2, axis=-1))  # (N, N)
    density = np.exp(-np.mean(np.sort(d, axis=-1)[:, :k] ** 2, axis=-1))  # (N,)
    if k > 1:
        margins = [_gap(np.sort(density))]
        denser = density[None] > density[:, None]
    else:  # every density is 1, and the order of the tokens decides
        margins, denser = [], np.tri(len(x), k=-1, dtype=bool)
    score = np.min(np.where(denser, d, np.max(d)), axis=-1) * density
    order = np.argsort(-score, kind="stable")
    margins.append(_gap(-score[order][: num_clusters + 1]))
    others = np.setdiff1d(np.arange(len(x)), order[:num_clusters])
    if num_clusters > 1 and len(others):
        nearest = np.sort(d[order[:num_clusters]][:, others], axis=0)
        margins.append(float(np.min((nearest[1] - nearest[0]) / nearest[1])))
    return min(margins)


def _gap(ascending: np.ndarray) -> float:
    """Return the smallest step of a sorted row, relative to where it stands."""
    if len(ascending) < 2:
        return np.inf
    return float(np.min(np.diff(ascending) / (np.abs(ascending[1:]) + 1e-30)))


def _normed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    return np.asarray(centred / scale * weight + bias)
