"""PAINT in the array-API standard.

Derived by another route than the reference, in shapes that do not depend on the data: sets of tokens are masks over
the keys, a boost is a factor 1 ± a, and the largest scores are those with few above them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.interventions.attention_imbalance_selection import TokenMasks

__all__ = [
    "boost_logits",
    "class_attention",
    "guided_logits",
    "head_visual_sensitivity",
    "pai_logits",
    "paint_logits",
    "sensitivity_gain",
    "token_masks",
]


def paint_logits(
    logits: Any, selection: Any, image_start: int, alpha: float = 0.7, beta: float = 0.3, head_gain: Any = None
) -> Any:
    """Boost the local tokens by α and the summary tokens by β, in the last query row."""
    local, summary = (_marked(logits, tokens, image_start) for tokens in selection)
    xp = array_namespace(logits)
    strength = alpha * xp.astype(local, logits.dtype) + beta * xp.astype(summary, logits.dtype)  # (Tk,)
    return _lifted(logits, local | summary, strength if head_gain is None else head_gain[..., None] * strength)


def pai_logits(logits: Any, image_start: int, n_image: int, alpha: float) -> Any:
    """Boost all image tokens alike, in the last query row."""
    xp = array_namespace(logits)
    key = np.arange(logits.shape[-1])
    inside = xp.asarray((key >= image_start) & (key < image_start + n_image), device=device(logits))
    return _lifted(logits, inside, alpha * xp.astype(inside, logits.dtype))


def boost_logits(logits: Any, index: Any, factor: Any) -> Any:
    """Add factor·|z| to the chosen logits of the last query row."""
    xp = array_namespace(logits)
    chosen = _marked(logits, index, 0)
    factor = factor[..., None] if hasattr(factor, "shape") else factor
    return _lifted(logits, chosen, factor * xp.astype(chosen, logits.dtype))


def head_visual_sensitivity(logits: Any, image_slice: Any) -> Any:
    """Return how much of its attention each head's last query gives to the image."""
    xp = array_namespace(logits)
    start, stop = (image_slice.start, image_slice.stop) if isinstance(image_slice, slice) else image_slice
    z = logits[..., -1, :]
    largest = xp.max(z, axis=-1, keepdims=True)
    e = xp.exp(z - xp.where(xp.isfinite(largest), largest, xp.zeros_like(largest)))
    total = xp.sum(e, axis=-1)
    return xp.sum(e[..., start:stop], axis=-1) / xp.where(total > 0, total, xp.ones_like(total))


def sensitivity_gain(sensitivity: Any) -> Any:
    """Return gains in proportion to visual sensitivity, 1 for the most sensitive head."""
    xp = array_namespace(sensitivity)
    largest = xp.max(sensitivity, axis=-1, keepdims=True)
    one = xp.ones_like(sensitivity)
    return xp.where(largest > 0, sensitivity, one) / xp.where(largest > 0, largest, xp.ones_like(largest))


def guided_logits(logits: Any, uncond_logits: Any, gamma: float = 1.1, cutoff: float = 0.1) -> Any:
    """Push next-token scores away from what the model would say without the image."""
    xp = array_namespace(logits)
    largest = xp.max(logits, axis=-1, keepdims=True)
    s = _log_softmax(logits)
    if gamma == 1.0:
        return s
    kept = logits >= largest + math.log(cutoff)
    blend = gamma * xp.where(kept, s, xp.zeros_like(s)) + (1.0 - gamma) * _log_softmax(uncond_logits)
    return xp.where(kept, blend, xp.full_like(s, -xp.inf))


def token_masks(
    vit_attention: Any, *, local_ratio: float = 0.25, spatial_ratio: float = 0.0, official_rounding: bool = False
) -> TokenMasks:
    """Choose the local and the summary tokens of one image, as masks."""
    listed = isinstance(vit_attention, (list, tuple))
    first, penultimate = (vit_attention[layer] if listed else vit_attention[layer, ...] for layer in (0, -2))
    xp = array_namespace(first)
    f, g = class_attention(first), class_attention(penultimate)
    n = f.shape[0]
    received = xp.sum(xp.sum(first[:, 1:, 1:], axis=1), axis=0)
    near = (_above(f) < int(n * local_ratio)) | (_above(received) < int(n * spatial_ratio))
    quartiles = [_quantile(g, q) for q in (0.25, 0.75)]
    count = xp.sum(xp.astype(g > quartiles[1] + 1.5 * (quartiles[1] - quartiles[0]), xp.int64))
    if official_rounding:  # a table, so that the quotient is a double whatever the library computes in
        table = np.array([int(n * (c / n)) for c in range(n + 1)])
        count = xp.sum(xp.where(xp.arange(n + 1, device=device(g)) == count, xp.asarray(table, device=device(g)), 0))
    summary = _above(g) < count
    return TokenMasks(near & ~summary, summary)


def class_attention(vit_weights: Any) -> Any:
    """Return how much the class token looks at each image token, summed over heads."""
    return array_namespace(vit_weights).sum(vit_weights[:, 0, 1:], axis=0)


def _marked(logits: Any, tokens: Any, start: int) -> Any:
    """Return the mask (Tk,) of the keys of these tokens."""
    xp = array_namespace(logits)
    key = xp.arange(logits.shape[-1], device=device(logits), dtype=tokens.dtype)
    return xp.any(key[:, None] == tokens[None, :] + start, axis=-1)


def _lifted(logits: Any, chosen: Any, strength: Any) -> Any:
    """Multiply the chosen logits of the last query by 1 + strength, or by 1 − strength if they are negative."""
    xp = array_namespace(logits)
    Tq = logits.shape[-2]
    last = xp.asarray(np.arange(Tq) == Tq - 1, device=device(logits))[:, None]  # (Tq, 1)
    moved = last & chosen & xp.isfinite(logits)
    z = xp.where(moved, logits, xp.zeros_like(logits))
    strength = strength[..., None, :]  # (..., 1, Tk)
    return xp.where(moved, xp.where(z < 0, z * (1 - strength), z * (1 + strength)), logits)


def _above(scores: Any) -> Any:
    """Return how many scores stand before each one: larger ones, and equal ones of smaller index."""
    xp = array_namespace(scores)
    i = xp.arange(scores.shape[0], device=device(scores))
    tied_before = (scores[None, :] == scores[:, None]) & (i[None, :] < i[:, None])
    return xp.sum(xp.astype((scores[None, :] > scores[:, None]) | tied_before, xp.int64), axis=1)


def _quantile(scores: Any, q: float) -> Any:
    """Interpolate between the two sorted scores around q (N − 1)."""
    xp = array_namespace(scores)
    place = q * (scores.shape[0] - 1)
    below = int(place)
    ranked = xp.sort(scores)
    low, high = ranked[below], ranked[min(below + 1, scores.shape[0] - 1)]
    return low + (place - below) * (high - low)


def _log_softmax(x: Any) -> Any:
    xp = array_namespace(x)
    x = x - xp.max(x, axis=-1, keepdims=True)
    return x - xp.log(xp.sum(xp.exp(x), axis=-1, keepdims=True))
