"""The network once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["heading", "logistic", "merging", "normed", "positions", "positive", "sensing", "shared", "squeezing"]


def logistic(x: np.ndarray) -> Any:
    """Squash to (0, 1)."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def positive(x: np.ndarray) -> Any:
    """Cut off what is negative."""
    return np.where(x > 0, x, 0.0)


def normed(a: np.ndarray, scale: np.ndarray, shift: np.ndarray, eps: float) -> Any:
    """Bring the hidden units of each sentence to mean zero and variance one."""
    return (a - a.mean(axis=1, keepdims=True)) / np.sqrt(a.var(axis=1, keepdims=True) + eps) * scale + shift


def hidden(a: np.ndarray, norm: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Normalise, then cut off."""
    return positive(norm(a))


def shared(logits: np.ndarray) -> Any:
    """Share one unit among the channels."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def logits_of(z: np.ndarray, w2: np.ndarray, b2: np.ndarray, _features: np.ndarray) -> Any:
    """Give each channel a number."""
    return np.einsum("be,ec->bc", z, w2) + b2


def scaled(features: np.ndarray, g: np.ndarray) -> Any:
    """Multiply each channel by its gate."""
    return np.einsum("bchw,bc->bchw", features, g)


def squeezed(features: np.ndarray) -> Any:
    """Take the mean of each channel."""
    return features.sum(axis=(2, 3)) / (features.shape[2] * features.shape[3])


def positions(n_out: int, n_in: int) -> Any:
    """Say where each new centre falls on the old axis."""
    return np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0.0, n_in - 1.0)


def weighed(s: np.ndarray, n_in: int) -> Any:
    """Say how much of each old pixel a new one takes, (n_out, n_in)."""
    return np.maximum(0.0, 1.0 - np.abs(s[:, None] - np.arange(n_in)))


def batch_normed(y: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, var: np.ndarray) -> Any:
    """Normalise by recorded statistics; ``var`` has eps in it."""
    return (y - mean) / np.sqrt(var) * scale + shift


def joined(coarse: np.ndarray, fine: np.ndarray) -> Any:
    """Add, then cut off."""
    return positive(coarse + fine)


def fine_before_merge(gated: np.ndarray, _ungated: np.ndarray) -> Any:
    """Merge the gated map."""
    return gated


def after_merge(merged: np.ndarray, _g: np.ndarray) -> Any:
    """Leave the merged map as it is."""
    return merged


def coarsest(gated: np.ndarray, _ungated: np.ndarray) -> Any:
    """Begin with the gated map."""
    return gated


def answers(logits: np.ndarray) -> Any:
    """Return logits."""
    return logits


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    norm: Callable[..., Any] = normed
    hidden: Callable[..., Any] = hidden
    logits: Callable[..., Any] = logits_of
    share: Callable[..., Any] = shared
    scale: Callable[..., Any] = scaled
    squeeze: Callable[..., Any] = squeezed
    relu: Callable[..., Any] = positive
    open: Callable[..., Any] = logistic
    positions: Callable[..., Any] = positions
    weigh: Callable[..., Any] = weighed
    batch_norm: Callable[..., Any] = batch_normed
    join: Callable[..., Any] = joined
    fine: Callable[..., Any] = fine_before_merge
    merged: Callable[..., Any] = after_merge
    coarsest: Callable[..., Any] = coarsest
    answer: Callable[..., Any] = answers


def gate(
    steps: Steps,
    features: np.ndarray,
    text: np.ndarray,
    weights: Any,
    activation: str = "softmax",
    eps: float = 1e-5,
    *,
    layer_norm: bool = True,
) -> Any:
    """Return the gate of each channel."""

    def norm(a: np.ndarray) -> np.ndarray:
        found: np.ndarray = steps.norm(a, weights.ln_scale, weights.ln_shift, eps) if layer_norm else a
        return found

    z = steps.hidden(np.einsum("bd,de->be", text, weights.w1) + weights.b1, norm)
    logits = steps.logits(z, weights.w2, weights.b2, features)
    return logistic(logits) if activation == "sigmoid" else steps.share(logits)


def merge(steps: Steps, low: np.ndarray, high: np.ndarray, weights: Any, eps: float = 1e-5) -> Any:
    """Return the merged map."""
    y = np.einsum("bihw,ij->bhwj", low, weights.w)
    y = steps.batch_norm(y, weights.bn_scale, weights.bn_shift, weights.bn_mean, weights.bn_var + eps)
    return steps.join(resize(steps, np.moveaxis(y, 3, 1), high.shape[2:]), high)


def resize(steps: Steps, x: np.ndarray, size: Any) -> Any:
    """Return the resized map."""
    rows, columns = (steps.weigh(steps.positions(o, i), i) for o, i in zip(size, x.shape[2:], strict=True))
    return np.einsum("yh,bchw,xw->bcyx", rows, x, columns)


def sensing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the sentence attention block with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(features: np.ndarray, text: np.ndarray, weights: Any, **options: Any) -> Any:
        return steps.scale(features, gate(steps, features, text, weights, **options))

    return wrong


def squeezing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return squeeze-and-excitation with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(features: np.ndarray, weights: Any) -> Any:
        z = steps.relu(steps.squeeze(features) @ weights.w1 + weights.b1)
        return steps.scale(features, steps.open(z @ weights.w2 + weights.b2))

    return wrong


def merging(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the merging block with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(low: np.ndarray, high: np.ndarray, weights: Any, *, eps: float = 1e-5) -> Any:
        return merge(steps, low, high, weights, eps)

    return wrong


def heading(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the head with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        features: Any, text: np.ndarray, gates: Any, merges: Any, classifier_w: Any, classifier_b: Any, output_size: Any
    ) -> Any:
        opened = [gate(steps, x, text, weights) for x, weights in zip(features, gates, strict=True)]
        gated = [scaled(x, g) for x, g in zip(features, opened, strict=True)]
        x = steps.coarsest(gated[-1], features[-1])
        for i in reversed(range(len(merges))):
            x = steps.merged(merge(steps, x, steps.fine(gated[i], features[i]), merges[i]), opened[i])
        logits = np.einsum("bihw,ik->bkhw", x, classifier_w) + classifier_b[:, None, None]
        return steps.answer(resize(steps, logits, output_size))

    return wrong
