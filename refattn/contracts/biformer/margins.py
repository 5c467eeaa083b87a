"""Inputs whose routing does not hang by a thread.

The choice of regions is discontinuous: where two regions fit a query almost equally well, rounding decides, and no
kernel can be judged by what follows. So the cases give each region a prototype of its own, and a short random ascent
moves the prototypes until in every row the chosen regions lie clearly apart from each other and from the first one
left out. (Their order moves no output, but it moves what the kit compares on the way to its error bounds.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.primitives.regions import region_merge, region_partition

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.layers.biformer import BRAWeights

__all__ = ["ascend", "descriptor_margin", "logit_margin", "routable_map"]

_ROUNDS = 60
_TRIALS = 16
_PROTOTYPE = 2.0  # against noise of standard deviation 1


def logit_margin(q: np.ndarray, k: np.ndarray, topk: int) -> np.ndarray:
    """Return by how much each row of q kᵀ decides for its ``topk`` entries and their order, relative to the norms.

    Leading axes broadcast: (..., R, C) and (..., Rk, C) give (..., R).
    """
    logits = -np.sort(-(q @ np.swapaxes(k, -1, -2)), axis=-1)  # (..., R, Rk)
    gaps = (logits[..., :-1] - logits[..., 1:])[..., :topk]
    size = np.linalg.norm(q, axis=-1) * np.max(np.linalg.norm(k, axis=-1), axis=-1, keepdims=True) + 1e-30
    return np.asarray(np.min(gaps, axis=-1, initial=np.inf) / size)


def descriptor_margin(x_mean: np.ndarray, weights: BRAWeights, topk: int) -> np.ndarray:
    """Return `logit_margin` of the layer whose regions have the mean tokens ``x_mean`` (..., R, C)."""
    C = x_mean.shape[-1]
    Cq = (weights.w_qkv.shape[1] - C) // 2
    u = x_mean @ weights.w_qkv[:, : 2 * Cq] + (0.0 if weights.b_qkv is None else weights.b_qkv[: 2 * Cq])
    q, k = u[..., :Cq], u[..., Cq:]
    if weights.w_r is not None:
        q, k = q @ weights.w_r, k @ weights.w_r
    if weights.b_r is not None:
        q, k = q + weights.b_r, k + weights.b_r
    return logit_margin(q, k, topk)


def ascend(
    rng: np.random.Generator, start: np.ndarray, margin: Callable[[np.ndarray], np.ndarray], *, rounds: int = _ROUNDS
) -> np.ndarray:
    """Change one row of ``start`` (R, C) at a time as long as the smallest margin grows.

    ``margin`` maps trials (T, R, C) to their margins (T, …); each round takes the best of a few trials.
    """
    best, margins = start, margin(start[None])[0]
    for _ in range(rounds):
        trials = np.repeat(best[None], _TRIALS, axis=0)
        rows = rng.integers(len(best), size=_TRIALS)
        rows[::2] = np.argmin(margins) % len(best)  # half of the trials try the row that decides least
        fresh = rng.standard_normal((_TRIALS, best.shape[1]))
        keep = rng.integers(2, size=(_TRIALS, 1))  # some rows are drawn anew, some move a little
        trials[np.arange(_TRIALS), rows] = keep * (best[rows] + 0.3 * fresh) + (1 - keep) * fresh
        found = margin(trials)
        worst = np.min(found, axis=-1)
        winner = int(np.argmax(worst))
        if worst[winner] > np.min(margins):
            best, margins = trials[winner], found[winner]
    return best


def routable_map(
    rng: np.random.Generator,
    noise: np.ndarray,
    weights: BRAWeights,
    *,
    n_win: int,
    topk: int,
    pad_mode: str,
    bare: int = 0,
) -> np.ndarray:
    """Add a prototype for each region to ``noise`` (B, H, W, C), so that every region chooses clearly.

    The first ``bare`` rows and columns of a region get no prototype where they meet: what is pooled from that corner
    alone says nothing about the region.
    """
    H, W = noise.shape[1:3]
    rows, columns, h, w = _cut(H, W, n_win, pad_mode)

    def padded(x: np.ndarray) -> np.ndarray:
        edges = [(0, 0)] * (x.ndim - 3) + [(0, rows * h - H), (0, columns * w - W), (0, 0)]
        return region_partition(np.pad(x, edges), n_win=(rows, columns))

    present = padded(np.ones((H, W, 1)))  # (R, h, w, 1)
    carrier = np.ones((h, w, 1))
    carrier[:bare, :bare] = 0.0
    count = h * w if pad_mode == "input" else np.sum(present, axis=(1, 2))  # tokens that a mean divides by
    share = np.sum(present * carrier, axis=(1, 2)) / count  # (R, 1)
    noise_mean = np.sum(padded(noise), axis=(2, 3)) / count  # (B, R, C)

    def ascended(mean: np.ndarray) -> np.ndarray:
        return ascend(
            rng,
            rng.standard_normal(mean.shape),
            lambda P: descriptor_margin(_PROTOTYPE * share * P + mean, weights, topk),
        )

    chosen = [ascended(mean) for mean in noise_mean]
    prototypes = np.stack(chosen) if chosen else np.zeros_like(noise_mean)  # (B, R, C)
    tiles = prototypes[:, :, None, None, :] * carrier
    image: np.ndarray = region_merge(tiles, n_win=(rows, columns))[:, :H, :W]
    routed: np.ndarray = _PROTOTYPE * image + noise
    return routed


def _cut(H: int, W: int, n_win: int, pad_mode: str) -> tuple[int, int, int, int]:
    if pad_mode in ("projected", "masked"):
        h, w = H // n_win, W // n_win
        return -(-H // h), -(-W // w), h, w
    return n_win, n_win, -(-H // n_win), -(-W // n_win)
