"""Rotary embedding as a chain of replaceable float64 steps: the carrier of the planted rotary bugs.

Equation source: the attention sheet, R36 to R40.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.rotary import rope_frequencies

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RotaryCall", "RotarySteps", "run_rotary"]

Step = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class RotaryCall:
    """One call of `rotary_embedding`: its arguments, with r = ``rotary_dim`` filled in."""

    x: np.ndarray
    positions: np.ndarray
    rotary_dim: int
    theta: float = 10000.0
    scaling: Mapping[str, Any] | None = None
    length: float | None = None
    interleaved: bool = False
    inverse: bool = False


def width(c: RotaryCall) -> int:
    """Return how many channels rotate."""
    return c.rotary_dim


def frequencies(c: RotaryCall, r: int) -> tuple[np.ndarray, float]:
    """Return the frequencies of the pairs, and the attention factor."""
    return rope_frequencies(r, theta=c.theta, scaling=c.scaling, length=c.length)


def angles(c: RotaryCall, freqs: np.ndarray) -> np.ndarray:
    """Return position times frequency."""
    return np.asarray(c.positions[..., None] * freqs)


def tables(angle: np.ndarray, factor: float) -> tuple[Any, Any]:
    """Return cos and sin, both times the attention factor."""
    return factor * np.cos(angle), factor * np.sin(angle)


def paired(c: RotaryCall, r: int) -> tuple[Any, Any]:
    """Return where the first and the second members of the pairs are."""
    return (np.arange(0, r, 2), np.arange(1, r, 2)) if c.interleaved else (np.arange(r // 2), np.arange(r // 2, r))


def turn(a: np.ndarray, b: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> tuple[Any, Any]:
    """Rotate the pair (a, b)."""
    return a * cos - b * sin, a * sin + b * cos


@dataclass(frozen=True)
class RotarySteps:
    """The steps of the rotation in their order."""

    width: Step = width
    frequencies: Step = frequencies
    angles: Step = angles
    tables: Step = tables
    paired: Step = paired
    turn: Step = turn


def run_rotary(
    steps: RotarySteps, x: np.ndarray, positions: np.ndarray, *, rotary_dim: int | None = None, **options: Any
) -> np.ndarray:
    """Rotate by ``steps``; arguments and result are those of the reference.

    Parameters
    ----------
    steps : RotarySteps
        `RotarySteps()` is right.
    x, positions, rotary_dim, **options
        As for `refattn.primitives.rotary_embedding.rotary_embedding`; float64.

    Returns
    -------
    ndarray, the shape of ``x``
    """
    c = RotaryCall(x, positions, x.shape[-1] if rotary_dim is None else rotary_dim, **options)
    r = steps.width(c)
    freqs, factor = steps.frequencies(c, r)
    angle = steps.angles(c, freqs)
    cos, sin = steps.tables(-angle if c.inverse else angle, factor)
    first, second = steps.paired(c, r)
    out = np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, (*angle.shape[:-1], x.shape[-1]))))
    out[..., first], out[..., second] = steps.turn(out[..., first], out[..., second], cos, sin)
    return out
