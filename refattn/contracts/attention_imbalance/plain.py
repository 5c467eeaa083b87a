"""Every entry once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interventions.attention_imbalance import TokenMasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.interventions.attention_imbalance import TokenSelection

__all__ = ["boost", "class_scores", "gain", "guided", "lift", "masks", "mean_received", "pai", "paint", "sensitivity"]

Steps = dict[str, "Callable[..., Any]"]


def queries(count: int) -> Any:
    """Boost for the last query."""
    return [count - 1]


def columns(tokens: np.ndarray, image_start: int) -> Any:
    """Return the keys of image tokens."""
    return tokens + image_start


def lift(z: np.ndarray, a: np.ndarray) -> Any:
    """Add a|z|, but leave −∞."""
    return np.where(np.isinf(z), z, (1.0 + np.sign(np.where(np.isinf(z), 0.0, z)) * a) * np.where(np.isinf(z), 0.0, z))


def strengths(alpha: float, beta: float) -> tuple[float, float]:
    """Return the strength of local tokens, and of summary tokens."""
    return alpha, beta


def per_head(alpha: float, beta: float, head_gain: np.ndarray) -> Any:
    """Multiply both strengths by the gain."""
    return alpha * head_gain, beta * head_gain


def batch(count: int) -> Any:
    """Boost every batch element."""
    return range(count)


class Lifting(NamedTuple):
    """The steps of a boost."""

    queries: Callable[..., Any] = queries
    columns: Callable[..., Any] = columns
    lift: Callable[..., Any] = lift
    strengths: Callable[..., Any] = strengths
    per_head: Callable[..., Any] = per_head
    batch: Callable[..., Any] = batch


def _lifted(steps: Lifting, logits: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Boost by the factors ``a`` (H, Tk); zero where there is no boost."""
    out = np.array(logits)
    rows = out[None] if out.ndim == 3 else out
    for b in steps.batch(len(rows)):
        for h in range(rows.shape[1]):
            for q in steps.queries(rows.shape[2]):
                z = rows[b, h, q]
                rows[b, h, q] = np.where(a[h] > 0, steps.lift(z, a[h]), z)
    return out


def paint(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return ``paint_logits`` with these steps exchanged."""
    steps = Lifting(**changes)

    def wrong(
        logits: np.ndarray,
        selection: TokenSelection,
        image_start: int,
        alpha: float = 0.7,
        beta: float = 0.3,
        head_gain: np.ndarray | None = None,
    ) -> np.ndarray:
        heads, keys = logits.shape[-3], logits.shape[-1]
        gains = np.ones(heads) if head_gain is None else head_gain
        a = np.zeros((heads, keys))
        for tokens, factor in zip(selection, steps.per_head(*steps.strengths(alpha, beta), gains), strict=True):
            a[:, steps.columns(tokens, image_start)] = np.reshape(factor * np.ones(heads), (heads, 1))
        return _lifted(steps, logits, a)

    return wrong


def boost(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return ``boost_logits`` with these steps exchanged."""
    steps = Lifting(**changes)

    def wrong(logits: np.ndarray, index: np.ndarray, factor: Any) -> np.ndarray:
        a = np.zeros((logits.shape[-3], logits.shape[-1]))
        a[:, index] = np.reshape(factor * np.ones(len(a)), (-1, 1))
        return _lifted(steps, logits, a)

    return wrong


def image(image_start: int, n_image: int, keys: int) -> Any:
    """Return the keys of the image."""
    del keys
    return np.arange(image_start, image_start + n_image)


def pai(*, image: Callable[..., Any] = image, **changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return ``pai_logits`` with these steps exchanged."""
    raised = boost(**changes)

    def wrong(logits: np.ndarray, image_start: int, n_image: int, alpha: float) -> np.ndarray:
        return raised(logits, image(image_start, n_image, logits.shape[-1]), alpha)

    return wrong


def last(logits: np.ndarray) -> Any:
    """Take the last query."""
    return logits[..., -1, :]


def normalise(z: np.ndarray, start: int, stop: int) -> Any:
    """Take the softmax over all keys."""
    del start, stop
    e = np.exp(z - np.max(z, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def total(w: np.ndarray, start: int, stop: int) -> Any:
    """Add up the weights of the image."""
    return w[..., start:stop].sum(axis=-1)


def sensitivity(
    *,
    last: Callable[..., Any] = last,
    normalise: Callable[..., Any] = normalise,
    total: Callable[..., Any] = total,
) -> Callable[..., np.ndarray]:
    """Return ``head_visual_sensitivity`` with these steps exchanged."""

    def wrong(logits: np.ndarray, image_slice: tuple[int, int]) -> np.ndarray:
        return np.asarray(total(normalise(last(logits), *image_slice), *image_slice))

    return wrong


def relative(s: np.ndarray) -> Any:
    """Divide by the largest of the layer, where there is any."""
    largest = s.max(axis=-1, keepdims=True)
    return np.where(largest > 0, s / np.where(largest > 0, largest, 1.0), 1.0)


def gain(*, relative: Callable[..., Any] = relative) -> Callable[..., np.ndarray]:
    """Return ``sensitivity_gain`` with this step exchanged."""
    return lambda sensitivity: np.asarray(relative(sensitivity))


def log_softmax(x: np.ndarray) -> Any:
    """Return log-probabilities."""
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def blend(s: np.ndarray, u: np.ndarray, gamma: float) -> Any:
    """Go from u towards s, γ times as far."""
    return gamma * s + (1.0 - gamma) * u


def keep(s: np.ndarray, u: np.ndarray, cutoff: float) -> Any:
    """Keep what the run with the image finds probable enough, beside its best token."""
    del u
    return np.exp(s) >= cutoff * np.exp(s).max(axis=-1, keepdims=True)


def untouched(gamma: float) -> bool:
    """Prune nothing if there is nothing to guide."""
    return gamma == 1.0


def prune(out: np.ndarray, kept: np.ndarray) -> Any:
    """Rule out what is not kept."""
    return np.where(kept, out, -np.inf)


def guided(
    *,
    log_softmax: Callable[..., Any] = log_softmax,
    blend: Callable[..., Any] = blend,
    keep: Callable[..., Any] = keep,
    untouched: Callable[..., Any] = untouched,
    prune: Callable[..., Any] = prune,
) -> Callable[..., np.ndarray]:
    """Return ``guided_logits`` with these steps exchanged."""

    def wrong(logits: np.ndarray, uncond_logits: np.ndarray, gamma: float = 1.1, cutoff: float = 0.1) -> np.ndarray:
        s, u = log_softmax(logits), log_softmax(uncond_logits)
        if untouched(gamma):
            return np.asarray(s)
        return np.asarray(prune(blend(s, u, gamma), keep(s, u, cutoff)))

    return wrong


def class_scores(layer: np.ndarray) -> Any:
    """Add up what the class token gives to each image token."""
    return layer[:, 0, 1:].sum(axis=0)


def mean_received(layer: np.ndarray) -> Any:
    """Average what each image token gets from image tokens."""
    return layer[:, 1:, 1:].mean(axis=0).sum(axis=0)


def early(layers: np.ndarray) -> Any:
    """Take the first layer."""
    return layers[0]


def late(layers: np.ndarray) -> Any:
    """Take the last layer but one."""
    return layers[-2]


def share(n: int, ratio: float) -> int:
    """Round down."""
    return int(n * ratio)


def standing_out(g: np.ndarray) -> Any:
    """Find outliers upwards by Tukey's rule."""
    q1, q3 = np.quantile(g, 0.25), np.quantile(g, 0.75)
    return g > q3 + 1.5 * (q3 - q1)


def count(found: int, n: int, *, official_rounding: bool) -> int:
    """Keep all, or as many as the released code."""
    return int(n * (found / n)) if official_rounding else found


def largest(scores: np.ndarray, k: int) -> Any:
    """Mark the k largest."""
    return np.argsort(np.argsort(-scores, kind="stable"), kind="stable") < k


def combine(local: np.ndarray, spatial: np.ndarray, summary: np.ndarray) -> Any:
    """Count a token in both as summary."""
    return (local | spatial) & ~summary


class Choosing(NamedTuple):
    """The steps of the selection."""

    class_scores: Callable[..., Any] = class_scores
    mean_received: Callable[..., Any] = mean_received
    early: Callable[..., Any] = early
    late: Callable[..., Any] = late
    share: Callable[..., Any] = share
    standing_out: Callable[..., Any] = standing_out
    count: Callable[..., Any] = count
    largest: Callable[..., Any] = largest
    combine: Callable[..., Any] = combine


def masks(**changes: Callable[..., Any]) -> Callable[..., TokenMasks]:
    """Return ``token_masks`` with these steps exchanged."""
    steps = Choosing(**changes)

    def wrong(
        vit_attention: np.ndarray,
        *,
        local_ratio: float = 0.25,
        spatial_ratio: float = 0.0,
        official_rounding: bool = False,
    ) -> TokenMasks:
        first, g = steps.early(vit_attention), steps.class_scores(steps.late(vit_attention))
        n = len(g)
        local = steps.largest(steps.class_scores(first), steps.share(n, local_ratio))
        spatial = steps.largest(steps.mean_received(first), steps.share(n, spatial_ratio))
        found = int(steps.standing_out(g).sum())
        summary = steps.largest(g, steps.count(found, n, official_rounding=official_rounding))
        return TokenMasks(steps.combine(local, spatial, summary), summary)

    return wrong
