"""The learning rules of a conditioned memory: what one pair of stimuli, a key and a value, does to the strengths.

Each rule takes the memory, one key and one value, and returns the new memory. Equation labels (pav-…) are those of the
page; the general update they specialise is (pav-1). The names are those of the published rules: Hebb 1949, Widrow and
Hoff 1960, Rescorla and Wagner 1972, Oja 1982, Bienenstock, Cooper and Munro 1982, Földiák 1990 [recalled].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["ERROR_CORRECTING", "RULES", "Memory", "Rates", "bound_rows"]

THRESHOLD_TIME = 10.0  # τ of the sliding threshold
ROW_BOUND = 1.0  # s_max of the rule ``homeostatic``


class Memory(NamedTuple):
    """What a rule carries from pair to pair; batch axes come before all others.

    Attributes
    ----------
    S : ndarray, shape (..., dv, dk)
        The association strengths, zero at the start unless given.
    threshold : ndarray, shape (..., dv)
        θ of the rule ``bcm``, one at the start.
    lateral : ndarray, shape (..., dk, dk)
        U of the rule ``anti_hebb``, zero at the start.
    """

    S: np.ndarray
    threshold: np.ndarray
    lateral: np.ndarray


class Rates(NamedTuple):
    """How fast a rule learns and forgets.

    Attributes
    ----------
    rate, decay, lateral_rate : float
        η, γ and η_U.
    """

    rate: float
    decay: float
    lateral_rate: float


Rule = Callable[[Memory, np.ndarray, np.ndarray, Rates], Memory]


def hebb(memory: Memory, k: np.ndarray, v: np.ndarray, rates: Rates) -> Memory:
    """Strengthen what fires together: S + η v kᵀ."""
    # eq: pav-hebb
    return memory._replace(S=memory.S + rates.rate * _outer(v, k))


def decay(memory: Memory, k: np.ndarray, v: np.ndarray, rates: Rates) -> Memory:
    """Let all traces fade before the new one is laid: γ S + η v kᵀ."""
    # eq: pav-decay
    return memory._replace(S=rates.decay * memory.S + rates.rate * _outer(v, k))


def delta(memory: Memory, k: np.ndarray, v: np.ndarray, rates: Rates) -> Memory:
    """Learn from surprise, the value less its prediction: S + η (v − S k) kᵀ."""
    # eq: pav-delta
    return memory._replace(S=memory.S + rates.rate * _outer(v - _recall(memory.S, k), k))


def gated_delta(memory: Memory, k: np.ndarray, v: np.ndarray, rates: Rates) -> Memory:
    """Let traces fade, then learn from what the faded memory gets wrong: γ S + η (v − γ S k) kᵀ."""
    # eq: pav-gated
    faded = rates.decay * memory.S  # (..., dv, dk)
    return memory._replace(S=faded + rates.rate * _outer(v - _recall(faded, k), k))


def oja(memory: Memory, k: np.ndarray, v: np.ndarray, rates: Rates) -> Memory:
    """Average the keys that a row answers to, its activity clamped to the value: S_r + η v_r (k − v_r S_r)."""
    # eq: pav-oja
    v = v[..., :, None]  # (..., dv, 1)
    return memory._replace(S=memory.S + rates.rate * v * (k[..., None, :] - v * memory.S))


def oja_free(memory: Memory, k: np.ndarray, _v: np.ndarray, rates: Rates) -> Memory:
    """Let each row find the leading direction of the keys from its own activity y = w·k: w + η y (k − y w)."""
    # eq: pav-free
    return oja(memory, k, _recall(memory.S, k), rates)


def bcm(memory: Memory, k: np.ndarray, v: np.ndarray, rates: Rates) -> Memory:
    """Strengthen above a threshold that follows the activity, weaken below: S_r + η v_r (v_r − θ_r) k."""
    # eq: pav-bcm
    threshold = (1 - 1 / THRESHOLD_TIME) * memory.threshold + v**2 / THRESHOLD_TIME  # (..., dv)
    return memory._replace(S=memory.S + rates.rate * _outer(v * (v - threshold), k), threshold=threshold)


def anti_hebb(memory: Memory, k: np.ndarray, v: np.ndarray, rates: Rates) -> Memory:
    """Take out of a key what it usually comes with, then store the pair as Hebb does."""
    # eq: pav-anti
    novel = k - _recall(memory.lateral, k)  # k', (..., dk)
    together = _outer(novel, novel)  # (..., dk, dk)
    lateral = memory.lateral + rates.lateral_rate * together * (1 - np.eye(k.shape[-1], dtype=k.dtype))
    return hebb(memory._replace(lateral=lateral), novel, v, rates)


def homeostatic(memory: Memory, k: np.ndarray, v: np.ndarray, rates: Rates) -> Memory:
    """Store as Hebb does, then keep each row's strengths within norm 1."""
    return bound_rows(hebb(memory, k, v, rates), ROW_BOUND)


def bound_rows(memory: Memory, bound: float) -> Memory:
    """Shrink the rows of S that are longer than the bound to its length."""
    # eq: pav-home
    excess = np.sum((memory.S / bound) ** 2, axis=-1, keepdims=True)  # (..., dv, 1)
    return memory._replace(S=memory.S / np.sqrt(np.maximum(excess, 1)))


RULES: dict[str, Rule] = {
    rule.__name__: rule for rule in (hebb, decay, delta, gated_delta, oja, oja_free, bcm, anti_hebb, homeostatic)
}
ERROR_CORRECTING = ("delta", "gated_delta")


def _outer(column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return the matrix column rowᵀ."""
    return np.asanyarray(column[..., :, None] * row[..., None, :])


def _recall(matrix: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return the product of the matrix and the key."""
    return np.asanyarray((matrix @ k[..., None])[..., 0])
