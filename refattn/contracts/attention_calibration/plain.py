"""Calibration once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["acting", "calibrating", "calibrating_rows", "detecting", "protecting", "receiving"]


def column_mean(A: np.ndarray, j: int) -> Any:
    """Average column j over the queries that see it."""
    return A[..., j:, j].sum(axis=-1) / (A.shape[-1] - j)


def view(A: np.ndarray, i: int) -> np.ndarray:
    """Look at the first i + 1 tokens."""
    return A[..., : i + 1, : i + 1]


def limit(alpha: float, T: int) -> float:
    """Return the threshold for T tokens."""
    return alpha / T


def above(a: np.ndarray, threshold: float) -> Any:
    """Detect."""
    return a > threshold


def spared(S: np.ndarray) -> Any:
    """Leave out the first sink of each map."""
    return S & (np.cumsum(S, axis=-1) > 1)


def spared_start(S: np.ndarray) -> Any:
    """Leave out column 0."""
    rest = S.copy()
    rest[..., :1] = False
    return rest


def scaled(A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows A (..., T), given S of each."""
    kept, mass = A * ~S, (A * S).sum(-1, keepdims=True)
    return beta * A * S + shared(kept, (1 - beta) * mass)


def shared(kept: np.ndarray, freed: np.ndarray) -> Any:
    """Give the freed mass to the kept columns, to each as much as it has."""
    base = kept.sum(-1, keepdims=True)
    return kept + freed * kept / np.where(base > 0, base, 1.0)


def unable(A: np.ndarray, calibrated: np.ndarray, S: np.ndarray) -> Any:
    """Leave rows alone whose sinks hold everything."""
    return np.where((A * ~S).sum(-1, keepdims=True) > 0, calibrated, A)


def by_map(S: np.ndarray) -> np.ndarray:
    """Let each head of each element have its own sinks."""
    return S


def is_chosen(h: int, heads: list[int]) -> bool:
    """Say whether a head is calibrated."""
    return h in heads


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    column_mean: Callable[..., Any] = column_mean
    view: Callable[..., Any] = view
    limit: Callable[..., Any] = limit
    above: Callable[..., Any] = above
    spared: Callable[..., Any] = spared
    spared_start: Callable[..., Any] = spared_start
    scaled: Callable[..., Any] = scaled
    unable: Callable[..., Any] = unable
    by_map: Callable[..., Any] = by_map
    is_chosen: Callable[..., Any] = is_chosen


def received(steps: Steps, A: np.ndarray) -> np.ndarray:
    """Return the mean of each column."""
    means = [steps.column_mean(A, j) for j in range(A.shape[-1])]
    return np.stack(means, axis=-1) if means else np.zeros(A.shape[:-1])


def running(steps: Steps, A: np.ndarray, of: Callable[[np.ndarray], np.ndarray], dtype: Any = float) -> np.ndarray:
    """Return ``of`` the first tokens, for each row."""
    out = np.zeros(A.shape, dtype)
    for i in range(A.shape[-1]):
        found = of(steps.view(A, i))[..., : i + 1]
        out[..., i, : found.shape[-1]] = found
    return out


def detected(steps: Steps, A: np.ndarray, threshold: float | None, alpha: float | None, *, causal: bool) -> np.ndarray:
    """Return S."""

    def whole(B: np.ndarray) -> Any:
        T = max(B.shape[-1], 1)
        return steps.above(received(steps, B), threshold if alpha is None else steps.limit(alpha, T))

    return running(steps, A, whole, bool) if causal else whole(A)


def protected(steps: Steps, S: np.ndarray, protect: str) -> Any:
    """Return S'."""
    return steps.spared_start(S) if protect == "token0" else steps.spared(S)


def rows(steps: Steps, A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows."""
    return steps.unable(A, steps.scaled(A, S, beta), S)


def receiving(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the received attention with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(weights: np.ndarray, *, causal: bool = False) -> Any:
        if causal:
            return running(steps, weights, lambda B: received(steps, B))
        return received(steps, weights)

    return wrong


def detecting(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the detection with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        weights: np.ndarray, *, threshold: float | None = None, alpha: float | None = None, causal: bool = False
    ) -> Any:
        return detected(steps, weights, threshold, alpha, causal=causal)

    return wrong


def protecting(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the choice of calibrated sinks with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(is_sink: np.ndarray, *, protect: str = "first_detected") -> Any:
        return protected(steps, is_sink, protect)

    return wrong


def calibrating(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the calibration of maps with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(weights: np.ndarray, sinks: np.ndarray, *, beta: float = 0.4) -> Any:
        return rows(steps, weights, np.broadcast_to(sinks[..., None, :], weights.shape), beta)

    return wrong


def calibrating_rows(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the calibration of rows with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(row: np.ndarray, sinks: np.ndarray, *, beta: float = 0.4) -> Any:
        return rows(steps, row, np.broadcast_to(sinks, row.shape), beta)

    return wrong


def acting(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the whole with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        weights: np.ndarray,
        *,
        heads: list[int] | None = None,
        beta: float = 0.4,
        threshold: float | None = None,
        alpha: float | None = None,
        protect: str = "first_detected",
        causal: bool = False,
    ) -> Any:
        alpha = 5.0 if alpha is None and threshold is None else alpha
        S = steps.by_map(protected(steps, detected(steps, weights, threshold, alpha, causal=causal), protect))
        S = np.broadcast_to(S if causal else S[..., None, :], weights.shape)
        calibrated, n_heads = rows(steps, weights, S, beta), weights.shape[1]
        chosen = [steps.is_chosen(h, list(range(n_heads)) if heads is None else heads) for h in range(n_heads)]
        return np.where(np.array(chosen)[:, None, None], calibrated, weights)

    return wrong
