"""The search for sinks once more, number by number, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["aligning", "comparing", "cosine", "living", "measuring", "scoring", "searching", "steering"]


def cosine(x: np.ndarray, y: np.ndarray) -> Any:
    """Return the cosine of two vectors, 0 if one is zero."""
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    return x @ y / lengths if lengths > 0 else 0.0


def choose(norms: np.ndarray, candidates: Sequence[int]) -> int:
    """Return the candidate whose norms (N, candidates) are the largest on average."""
    return int(candidates[int(np.argmax(norms.mean(axis=0)))])


def begin(norms: np.ndarray) -> int:
    """Return the layer after the steepest rise."""
    return int(np.argmax(np.diff(norms))) + 1


def finish(norms: np.ndarray, start: int) -> int:
    """Return the layer after the steepest fall from ``start`` on."""
    falls = [(norms[i + 1] - norms[i], i + 1) for i in range(start, len(norms) - 1)]
    return min(falls)[1] if falls else len(norms)


def state(hidden: np.ndarray, layer: int, b: int, _start: int) -> Any:
    """Return what sinks of a layer are compared with."""
    return hidden[layer, b]


def is_sink(c: float, threshold: float) -> bool:
    """Accept both directions."""
    return bool(abs(c) > threshold)


def after(b: int, length: int) -> Any:
    """Return the positions that are tried."""
    return np.arange(b + 1, length)


def recorded(window: np.ndarray) -> Any:
    """Return the layers on which the primary sink itself is noted."""
    return window


def lasting(members: np.ndarray) -> Any:
    """Leave gaps as they are."""
    return members


class Steps(NamedTuple):
    """Every step of the search that a planted bug may replace."""

    choose: Callable[..., int] = choose
    begin: Callable[..., int] = begin
    finish: Callable[..., int] = finish
    state: Callable[..., Any] = state
    cosine: Callable[..., Any] = cosine
    is_sink: Callable[..., bool] = is_sink
    after: Callable[..., Any] = after
    recorded: Callable[..., Any] = recorded
    lasting: Callable[..., Any] = lasting


def searching(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the search with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        hidden: np.ndarray, *, bos_positions: Sequence[int] = (0,), threshold: float = 0.9, clip: bool = True
    ) -> Any:
        n_layers, length, _ = hidden.shape
        b = steps.choose(np.linalg.norm(hidden[:, list(bos_positions)], axis=-1), bos_positions)
        start, end = 0, n_layers
        if clip:
            norms = np.linalg.norm(hidden[:, b], axis=-1)
            start = steps.begin(norms)
            end = steps.finish(norms, start)
        window = (np.arange(n_layers) >= start) & (np.arange(n_layers) < end)
        members = np.zeros((n_layers, length), dtype=bool)
        for layer in np.flatnonzero(window):
            for s in steps.after(b, length):
                c = steps.cosine(hidden[layer, s], steps.state(hidden, layer, b, start))
                members[layer, s] = steps.is_sink(c, threshold)
        members = steps.lasting(members) & window[:, None]
        if clip or len(bos_positions) > 1:
            members[:, b] = steps.recorded(window)
        return {"primary": np.array(b), "window": window, "members": members}

    return wrong


def comparing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the cosines to the primary sink with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(hidden: np.ndarray, *, primary: int) -> Any:
        n_layers, length, _ = hidden.shape
        found = np.zeros((n_layers, length))
        for layer, s in np.ndindex(n_layers, length):
            found[layer, s] = steps.cosine(hidden[layer, s], steps.state(hidden, layer, primary, 0))
        return found

    return wrong


def first(layers: np.ndarray) -> int:
    """Return the first layer of a life."""
    return int(layers[0]) if layers.size else -1


def lifetime(layers: np.ndarray) -> int:
    """Count the layers."""
    return len(layers)


def name(n: int, n_layers: int, bos_margin: int, min_lifetime: int) -> int:
    """Return 2 for what lasts as the primary sink does, 1 for what lasts long enough, 0 for noise."""
    if n == 0:
        return 0
    if n >= n_layers - bos_margin:
        return 2
    return int(n >= min_lifetime)


def living(
    first: Callable[..., int] = first, lifetime: Callable[..., int] = lifetime, name: Callable[..., int] = name
) -> Callable[..., Any]:
    """Return the count of lives with these steps exchanged."""

    def wrong(members: np.ndarray, *, bos_margin: int = 15, min_lifetime: int = 5) -> Any:
        lives = [np.flatnonzero(column) for column in members.T]
        counts = [lifetime(layers) for layers in lives]
        labels = [name(n, len(members), bos_margin, min_lifetime) for n in counts]
        columns = {"first": [first(layers) for layers in lives], "lifetime": counts, "label": labels}
        return {name: np.array(column, dtype=np.int64) for name, column in columns.items()}

    return wrong


def received(pattern: np.ndarray, s: int) -> Any:
    """Return what each query from s on gives to s."""
    return pattern[..., s:, s]


def average(weights: np.ndarray) -> Any:
    """Take the mean over queries."""
    return weights.mean(axis=-1)


def scoring(
    received: Callable[..., Any] = received, average: Callable[..., Any] = average
) -> Callable[..., np.ndarray]:
    """Return the score with these steps exchanged."""

    def wrong(pattern: np.ndarray) -> np.ndarray:
        scores = np.zeros(pattern.shape[:-1])
        for s in range(pattern.shape[-1]):
            scores[..., s] = average(received(pattern, s))
        return scores

    return wrong


def reference_row(rows: np.ndarray, primary: int, _positions: np.ndarray) -> Any:
    """Return what the sinks are compared with."""
    return rows[primary]


def aligning(
    cosine: Callable[..., Any] = cosine, reference_row: Callable[..., Any] = reference_row
) -> Callable[..., np.ndarray]:
    """Return the alignment of what an MLP writes, with these steps exchanged."""

    def wrong(mlp_out: np.ndarray, positions: np.ndarray, *, primary: int) -> np.ndarray:
        found = np.zeros((*mlp_out.shape[:-2], len(positions)))
        for index in np.ndindex(*found.shape):
            rows = mlp_out[index[:-1]]
            found[index] = cosine(rows[positions[index[-1]]], reference_row(rows, primary, positions))
        return found

    return wrong


def is_made(c: float, cos_threshold: float) -> bool:
    """Accept what points along the direction, not what points against it."""
    return bool(c > cos_threshold)


def is_protected(t: int, protect: Sequence[int], _length: int) -> bool:
    """Leave these positions alone."""
    return t in protect


def rescaled(y: np.ndarray, norm: float, _direction: np.ndarray) -> Any:
    """Keep the direction, set the length."""
    return y * (norm / np.linalg.norm(y))


def steering(
    is_made: Callable[..., bool] = is_made,
    is_protected: Callable[..., bool] = is_protected,
    rescaled: Callable[..., Any] = rescaled,
) -> Callable[..., np.ndarray]:
    """Return the steering with these steps exchanged."""

    def wrong(
        mlp_out: np.ndarray,
        direction: np.ndarray,
        *,
        norm: float,
        cos_threshold: float = 0.98,
        protect: Sequence[int] = (0, 1, 2),
    ) -> np.ndarray:
        out = mlp_out.copy()
        for index in np.ndindex(*mlp_out.shape[:-1]):
            y = mlp_out[index]
            hit = is_made(cosine(y, direction), cos_threshold)
            if hit and not is_protected(index[-1], protect, mlp_out.shape[-2]):
                out[index] = rescaled(y, norm, direction)
        return out

    return wrong


def centre(x: np.ndarray) -> Any:
    """Leave vectors where they are."""
    return x


def shares(singular_values: np.ndarray) -> Any:
    """Return how the variance is shared out over directions."""
    square = singular_values**2
    return square / max(square.sum(), 1e-300)


def entropy(p: np.ndarray, alpha: float) -> Any:
    """Return the Rényi entropy of shares."""
    p = p[p > 0]
    if not p.size:
        return 0.0
    return -np.sum(p * np.log(p)) if alpha == 1 else np.log(np.sum(p**alpha)) / (1.0 - alpha)


def measuring(
    centre: Callable[..., Any] = centre, shares: Callable[..., Any] = shares, entropy: Callable[..., Any] = entropy
) -> Callable[..., np.ndarray]:
    """Return the entropy with these steps exchanged."""

    def wrong(x: np.ndarray, *, alpha: float = 1.0) -> np.ndarray:
        found = np.zeros(x.shape[:-2])
        for index in np.ndindex(*found.shape):
            found[index] = entropy(shares(np.linalg.svd(centre(x[index]), compute_uv=False)), alpha)
        return found

    return wrong
