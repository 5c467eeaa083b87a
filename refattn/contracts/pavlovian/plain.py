"""The memories once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["attending", "polynomial_reading", "reading", "softmax_reading", "writing"]


def unit(keys: np.ndarray) -> Any:
    """Divide each key by its own norm."""
    return keys / np.linalg.norm(keys, axis=-1, keepdims=True)


def start(initial: np.ndarray | None, zero: np.ndarray) -> Any:
    """Begin with what is given."""
    return zero if initial is None else initial


def order(n: int, n_epochs: int) -> Iterable[int]:
    """Go through all pairs, then through all again."""
    return list(range(n)) * n_epochs


def pair(v: np.ndarray, k: np.ndarray) -> Any:
    """Associate a value with a key."""
    return np.einsum("...i,...j->...ij", v, k)


def predicted(S: np.ndarray, k: np.ndarray) -> Any:
    """Ask the memory for the value of a key."""
    return np.einsum("...ij,...j->...i", S, k)


def hebb(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float) -> Any:
    """Add the pair."""
    return S + rate * pair(v, k)


def decay(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float, gamma: float) -> Any:
    """Fade, then add the pair."""
    return gamma * S + rate * pair(v, k)


def delta(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float) -> Any:
    """Add what the memory got wrong."""
    return S + rate * pair(v - predicted(S, k), k)


def gated(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float, gamma: float) -> Any:
    """Fade, then add what the faded memory gets wrong."""
    return gamma * S + rate * pair(v - predicted(gamma * S, k), k)


def oja(S: np.ndarray, k: np.ndarray, v: np.ndarray, rate: float) -> Any:
    """Move each row towards the key, as far as it is active."""
    return S + rate * (pair(v, k) - v[..., None] ** 2 * S)


def activity(S: np.ndarray, k: np.ndarray) -> Any:
    """Let each row answer for itself."""
    return predicted(S, k)


def threshold(theta: np.ndarray, v: np.ndarray) -> Any:
    """Follow the square of the activity."""
    return theta + (v**2 - theta) / 10.0


def bcm(S: np.ndarray, k: np.ndarray, v: np.ndarray, theta: np.ndarray, rate: float) -> Any:
    """Strengthen above the threshold, weaken below."""
    return S + rate * pair(v * (v - theta), k)


def novel(U: np.ndarray, k: np.ndarray) -> Any:
    """Take away what is predicted of the key."""
    return k - predicted(U, k)


def lateral(U: np.ndarray, k: np.ndarray, rate: float) -> Any:
    """Learn which channels go together, none with itself."""
    return U + rate * pair(k, k) * (1.0 - np.eye(k.shape[-1]))


def bounded(S: np.ndarray, bound: float) -> Any:
    """Shrink rows that are too long."""
    norm = np.linalg.norm(S, axis=-1, keepdims=True)
    return S * np.where(norm > bound, bound / np.where(norm > 0, norm, 1.0), 1.0)


def history(states: list[np.ndarray]) -> Any:
    """Keep the start and the state after each pair."""
    return np.stack(states, axis=-3)


def visible(_before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Read after the write."""
    return after


def read(S: np.ndarray, q: np.ndarray) -> Any:
    """Multiply the strengths by each query."""
    return np.einsum("...ij,...mj->...mi", S, q)


def weights(s: np.ndarray, beta: float) -> Any:
    """Weigh the pairs by the exponential of their match."""
    e = np.exp(beta * (s - s.max(axis=-1, keepdims=True, initial=-1e300)))
    return e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300)


def kernel(s: np.ndarray, degree: int) -> Any:
    """Raise the match to the degree."""
    return s**degree


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    unit: Callable[..., Any] = unit
    start: Callable[..., Any] = start
    order: Callable[..., Any] = order
    hebb: Callable[..., Any] = hebb
    decay: Callable[..., Any] = decay
    delta: Callable[..., Any] = delta
    gated: Callable[..., Any] = gated
    oja: Callable[..., Any] = oja
    activity: Callable[..., Any] = activity
    threshold: Callable[..., Any] = threshold
    bcm: Callable[..., Any] = bcm
    novel: Callable[..., Any] = novel
    lateral: Callable[..., Any] = lateral
    bounded: Callable[..., Any] = bounded
    history: Callable[..., Any] = history
    visible: Callable[..., Any] = visible
    read: Callable[..., Any] = read
    weights: Callable[..., Any] = weights
    kernel: Callable[..., Any] = kernel


def updated(
    steps: Steps, rule: str, kept: tuple[Any, Any, Any], k: Any, v: Any, rates: tuple[float, float, float]
) -> Any:
    """Run one pair through one rule; strengths, thresholds and lateral weights."""
    (S, theta, U), (rate, gamma, lateral_rate) = kept, rates
    if rule == "decay":
        S = steps.decay(S, k, v, rate, gamma)
    elif rule == "delta":
        S = steps.delta(S, k, v, rate)
    elif rule == "gated_delta":
        S = steps.gated(S, k, v, rate, gamma)
    elif rule in ("oja", "oja_free"):
        S = steps.oja(S, k, v if rule == "oja" else steps.activity(S, k), rate)
    elif rule == "bcm":
        theta = steps.threshold(theta, v)
        S = steps.bcm(S, k, v, theta, rate)
    else:
        fresh = steps.novel(U, k) if rule == "anti_hebb" else k
        U = steps.lateral(U, fresh, lateral_rate) if rule == "anti_hebb" else U
        S = steps.hebb(S, fresh, v, rate)
    return S, theta, U


def states(
    steps: Steps,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    rule: str = "hebb",
    rate: float = 1.0,
    decay: float = 1.0,
    n_epochs: int = 1,
    initial: Any = None,
    normalize_keys: bool = False,
    max_row_norm: float | None = None,
    lateral_rate: float = 0.1,
) -> list[np.ndarray]:
    """Return the strengths at the start and after each pair."""
    keys = steps.unit(keys) if normalize_keys else keys
    lead, dk, dv = keys.shape[:-2], keys.shape[-1], values.shape[-1]
    kept = (steps.start(initial, np.zeros((*lead, dv, dk))), np.ones((*lead, dv)), np.zeros((*lead, dk, dk)))
    found = [kept[0]]
    for t in steps.order(keys.shape[-2], n_epochs):
        kept = updated(steps, rule, kept, keys[..., t, :], values[..., t, :], (rate, decay, lateral_rate))
        for bound in (1.0 if rule == "homeostatic" else None, max_row_norm):
            kept = kept if bound is None else (steps.bounded(kept[0], bound), *kept[1:])
        found.append(kept[0])
    return found


def writing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the write with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(keys: np.ndarray, values: np.ndarray, *, return_history: bool = False, **options: Any) -> Any:
        found = states(steps, keys, values, **options)
        return steps.history(found) if return_history else found[-1]

    return wrong


def reading(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the read with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(S: np.ndarray, queries: np.ndarray) -> Any:
        return steps.read(S, queries)

    return wrong


def attending(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the attention with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, causal: bool = True, **options: Any) -> Any:
        found = states(steps, k, v, **options)
        if not causal:
            return steps.read(found[-1], q)
        rows = [steps.read(steps.visible(found[t], found[t + 1]), q[..., t : t + 1, :]) for t in range(len(found) - 1)]
        return np.concatenate(rows, axis=-2) if rows else np.zeros_like(v)

    return wrong


def softmax_reading(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the softmax memory with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(keys: np.ndarray, values: np.ndarray, queries: np.ndarray, *, beta: float) -> Any:
        return steps.weights(queries @ keys.mT, beta) @ values

    return wrong


def polynomial_reading(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the polynomial memory with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(keys: np.ndarray, values: np.ndarray, queries: np.ndarray, *, degree: int) -> Any:
        return steps.kernel(queries @ keys.mT, degree) @ values

    return wrong
