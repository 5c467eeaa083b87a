"""Three ways from logits to outputs: whole rows at once, block by block, and in parts that are merged.

Equation source: the attention sheet, section 2.0, steps 6 and 7, and R27. Each is equal to the others until one of its
steps is replaced.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from refattn.contracts.attention.call import Call
    from refattn.contracts.attention.pipeline import Steps

__all__ = [
    "BLOCK",
    "LONG",
    "blocks",
    "denominator",
    "direct",
    "divide",
    "exponential",
    "finite",
    "load",
    "maximum",
    "merge",
    "online",
    "product",
    "rescale",
    "sink",
    "softmax",
    "split_kv",
    "split_points",
    "weights",
]

BLOCK = 16  # rows and keys of a tile
LONG = 64  # a key sequence longer than this is split

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]


def sink(c: Call) -> np.ndarray:
    """Return the sink logits, −∞ if there are none: (Hq, 1, 1)."""
    hq = c.q.shape[1]
    return np.full((hq, 1, 1), -np.inf) if c.sinks is None else c.sinks[:, None, None]


def finite(m: np.ndarray) -> np.ndarray:
    """Return the maxima with 0 for those of rows that see nothing, so that −∞ − m stays −∞."""
    return np.where(np.isneginf(m), 0.0, m)


def maximum(_c: Call, z: np.ndarray, sink: np.ndarray) -> np.ndarray:
    """Return m, the largest logit of each row, sink included: (B, Hq, Sq, 1)."""
    return finite(np.maximum(z.max(axis=-1, keepdims=True, initial=-np.inf), sink))


def exponential(_c: Call, x: np.ndarray) -> np.ndarray:
    """Return e^x."""
    return np.asarray(np.exp(x))


def denominator(_c: Call, e: np.ndarray, m: np.ndarray, sink: np.ndarray) -> np.ndarray:
    """Return l = Σ e + e^(σ − m)."""
    return np.asarray(e.sum(axis=-1, keepdims=True) + np.exp(sink - m))


def divide(e: np.ndarray, l: np.ndarray) -> np.ndarray:
    """Return e / l, and 0 where l is 0."""
    return np.asarray(np.where(l == 0, 0.0, e / l))


def softmax(steps: Steps, c: Call, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights P and their log-sum-exp L."""
    sink = steps.sink(c)
    m = steps.maximum(c, z, sink)
    e = steps.exponential(c, z - m)
    l = steps.denominator(c, e, m, sink)
    return steps.divide(e, l), (m + np.log(l))[..., 0]


def weights(_c: Call, P: np.ndarray, _see: np.ndarray) -> np.ndarray:
    """Return the weights that meet the values."""
    return P


def product(c: Call, P: np.ndarray) -> np.ndarray:
    """Return o = P V."""
    return np.asarray(P @ c.v)


def direct(steps: Steps, c: Call, z: np.ndarray, see: np.ndarray) -> Triple:
    """Return o, P and L from the logits of whole rows."""
    P, L = steps.normalise(steps, c, z)
    P = steps.weights(c, P, see)
    return steps.product(c, P), P, L


def blocks(c: Call) -> list[tuple[int, int]]:
    """Return where the blocks of keys begin and end."""
    sk = c.k.shape[2]
    return [(start, min(start + BLOCK, sk)) for start in range(0, sk, BLOCK)]


def load(c: Call, z: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and values of one block."""
    return z[..., start:stop], c.v[..., start:stop, :]


def rescale(m: np.ndarray, new: np.ndarray) -> tuple[Any, Any]:
    """Return the factors ρ = e^(m − m') of the sum l and of the accumulator a."""
    rho = np.exp(m - finite(new))
    return rho, rho


def online(steps: Steps, c: Call, z: np.ndarray, _see: np.ndarray) -> Triple:
    """Return o, P and L from one pass over the blocks, with maximum m, sum l and accumulator a per row."""
    rows, sink = z.shape[:-1], steps.sink(c)
    m, l, a = np.full((*rows, 1), -np.inf), np.zeros((*rows, 1)), np.zeros((*rows, c.v.shape[-1]))
    for start, stop in steps.blocks(c):
        z_block, v_block = steps.load(c, z, start, stop)
        new = np.maximum(m, z_block.max(axis=-1, keepdims=True, initial=-np.inf))
        e = np.exp(z_block - finite(new))
        rho_l, rho_a = steps.rescale(m, new)
        l, a, m = rho_l * l + e.sum(axis=-1, keepdims=True), rho_a * a + e @ v_block, new
    L = np.logaddexp(m + np.log(l), sink)
    return divide(a, l + np.exp(sink - finite(m))), np.exp(z - finite(L)), L[..., 0]


def split_points(sk: int) -> list[tuple[int, int]]:
    """Cut a key sequence as a split-KV kernel does: short ones not at all, long ones into three parts or more."""
    parts = 1 if sk <= LONG else max(3, -(-sk // 80))
    edges = np.linspace(0, sk, parts + 1).astype(int).tolist()
    return list(pairwise(edges))


def merge(lses: np.ndarray, _maxima: np.ndarray, sink: np.ndarray) -> np.ndarray:
    """Return the weight e^(L_s − L) of every part; the sink counts once."""
    total = np.logaddexp(np.logaddexp.reduce(lses), sink)
    return np.asarray(np.exp(lses - finite(total)))  # (parts, B, Hq, Sq, 1)


def split_kv(steps: Steps, c: Call, z: np.ndarray, _see: np.ndarray) -> Triple:
    """Return o, P and L from parts of the key sequence that are attended alone and merged."""
    outs, lses, maxima = [], [], []
    for start, stop in split_points(c.k.shape[2]):
        part = z[..., start:stop]
        m = part.max(axis=-1, keepdims=True, initial=-np.inf)
        e = np.exp(part - finite(m))
        l = e.sum(axis=-1, keepdims=True)
        outs.append(divide(e @ c.v[..., start:stop, :], l))
        lses.append(m + np.log(l))
        maxima.append(m)
    sink = steps.sink(c)
    share = steps.merge(np.stack(lses), np.stack(maxima), sink)
    L = np.logaddexp(np.logaddexp.reduce(np.stack(lses)), sink)
    return np.sum(share * np.stack(outs), axis=0), np.exp(z - finite(L)), L[..., 0]
