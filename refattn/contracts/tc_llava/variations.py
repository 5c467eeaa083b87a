"""The layer once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.tc_llava_streaming import TCCache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Segments",
    "append",
    "attention",
    "blocks",
    "ids",
    "mask",
    "place_and_time",
    "positions",
    "positions_step",
    "prefill",
    "turn",
    "visible",
    "weigh",
]

Segments = Any


def ids(length: int, segments: Segments, tail: str = "continue") -> np.ndarray:
    """Count time token by token."""
    first = {start + f * m for start, n_frames, m in segments for f in range(n_frames)}
    inside = {start + i for start, n_frames, m in segments for i in range(n_frames * m)}
    after = {start + n_frames * m for start, n_frames, m in segments} if tail == "eq5" else set()
    steps = [(n in first or n not in inside) - (n in after) for n in range(length)]
    return np.asarray(np.cumsum(steps, dtype=np.int64) - 1)


def place_and_time(n: np.ndarray, T: np.ndarray, gamma: float) -> np.ndarray:
    """Add the two positions."""
    return n + gamma * T


def blocks(length: int, segments: Segments, variant: str) -> np.ndarray:
    """Give every visual block a number and text -1."""
    number = np.full(length, -1)
    count = 0
    for start, n_frames, m in segments:
        runs = {"causal": [], "fwbc": [m] * n_frames, "full_visual": [n_frames * m]}[variant]
        for at, size in enumerate(runs):
            number[start + at * size : start + (at + 1) * size] = count
            count += 1
    return number


def visible(block: np.ndarray) -> np.ndarray:
    """Open the past and the own block."""
    return np.asarray(np.tri(len(block), dtype=bool) | ((block[:, None] == block) & (block >= 0)))


def turn(x: np.ndarray, p: np.ndarray, base: float) -> np.ndarray:
    """Rotate the pairs (i, i + d/2)."""
    half = x.shape[-1] // 2
    angle = p[:, None] * base ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def leave(x: np.ndarray, _p: np.ndarray, _base: float) -> np.ndarray:
    """Do nothing."""
    return x


def scale(d: int) -> float:
    """Return one over the root of the head width."""
    return float(d**-0.5)


def split(x: np.ndarray, n_heads: int) -> np.ndarray:
    """Give each head a run of neighbouring channels."""
    return np.moveaxis(x.reshape(*x.shape[:2], n_heads, x.shape[-1] // n_heads), 2, 1)


def weigh(s: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Hide before the softmax."""
    s = np.where(allowed, s, -np.inf)
    e = np.exp(s - s.max(axis=-1, keepdims=True, initial=-1e300))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def new_positions(n: np.ndarray, T: np.ndarray, gamma: float, past: int) -> np.ndarray:
    """Return the positions of the tokens after the cache."""
    return place_and_time(n, T, gamma)[past:]


def new_rows(allowed: np.ndarray, past: int) -> np.ndarray:
    """Return the rows of the mask that belong to the tokens after the cache."""
    return allowed[past:]


class Steps(NamedTuple):
    """The steps of the layer that can be exchanged, in order."""

    ids: Callable[..., np.ndarray] = ids
    new_positions: Callable[..., np.ndarray] = new_positions
    new_key_positions: Callable[..., np.ndarray] | None = None
    blocks: Callable[..., np.ndarray] = blocks
    visible: Callable[..., np.ndarray] = visible
    new_rows: Callable[..., np.ndarray] = new_rows
    split: Callable[..., np.ndarray] = split
    turn: Callable[..., np.ndarray] = turn
    turn_values: Callable[..., np.ndarray] = leave
    turn_cached: Callable[..., np.ndarray] = leave
    scale: Callable[[int], float] = scale
    weigh: Callable[..., np.ndarray] = weigh


def run(
    steps: Steps,
    x: np.ndarray,
    weights: Sequence[np.ndarray],
    *,
    segments: Segments,
    n_heads: int,
    gamma: float = 1.0,
    variant: str = "fwbc",
    base: float = 10000.0,
    tail: str = "continue",
    cache: TCCache | None = None,
) -> tuple[np.ndarray, np.ndarray, TCCache]:
    """Run the layer with these steps; its output, its weights and its cache."""
    past = 0 if cache is None else cache.k.shape[2]
    length = past + x.shape[1]
    n, T = np.arange(length), steps.ids(length, segments, tail)
    p = steps.new_positions(n, T, gamma, past)
    p_key = p if steps.new_key_positions is None else steps.new_key_positions(n, T, gamma, past)
    allowed = steps.new_rows(steps.visible(steps.blocks(length, segments, variant)), past)
    q, k, v = (steps.split(x @ w, n_heads) for w in weights[:3])
    q, k, v = steps.turn(q, p, base), steps.turn(k, p_key, base), steps.turn_values(v, p, base)
    if cache is not None:
        kept = steps.turn_cached(cache.k, place_and_time(n, T, gamma)[:past], base)
        k, v = np.concatenate([kept, k], axis=2), np.concatenate([cache.v, v], axis=2)
    a = steps.weigh(q @ k.mT * steps.scale(q.shape[-1]), allowed)
    return np.moveaxis(a @ v, 1, 2).reshape(x.shape) @ weights[3], a, TCCache(k, v)


def attention(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the layer with these steps exchanged, over a whole sequence."""

    def wrong(x: np.ndarray, weights: Any, *, return_weights: bool = False, **options: Any) -> Any:
        out, a, _ = run(Steps(**changes), x, weights, **options)
        return (out, a) if return_weights else out

    return wrong


def prefill(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the layer with these steps exchanged, that keeps a cache."""

    def wrong(x: np.ndarray, weights: Any, **options: Any) -> Any:
        out, _, cache = run(Steps(**changes), x, weights, **options)
        return out, cache

    return wrong


def append(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the layer with these steps exchanged, after a cache."""

    def wrong(x: np.ndarray, cache: TCCache, weights: Any, **options: Any) -> Any:
        out, _, longer = run(Steps(**changes), x, weights, cache=cache, **options)
        return out, longer

    return wrong


def positions_step(sum_up: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Return the step ``new_positions`` for another sum of place and time."""
    return lambda n, T, gamma, past: sum_up(n, T, gamma)[past:]


def positions(sum_up: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Return the positions alone, with another sum of place and time."""

    def wrong(length: int, segments: Segments, gamma: float = 1.0, tail: str = "continue") -> np.ndarray:
        return sum_up(np.arange(length), ids(length, segments, tail), gamma)

    return wrong


def mask(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return the mask alone, with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(length: int, segments: Segments, variant: str = "fwbc") -> np.ndarray:
        return steps.visible(steps.blocks(length, segments, variant))

    return wrong
