"""The online softmax of `online` for NumPy: in place, in buffers that stay in the cache, a few heads at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.backends.portable.attention.problem import block_distances
from refattn.backends.portable.attention.rules import cut, visible_block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.backends.portable.attention.problem import Problem

__all__ = ["NumpyState"]

AT_ONCE = 512 * 512  # logits in the buffer: 1 MiB of float32
FEW = 32  # queries of a kv head for which looking for a bound does not pay


class NumpyState:
    """The running maximum and sums of a block of queries, see `online.State`.

    Where |z| is known to stay below a small bound, no maximum is needed: e^z can neither overflow nor vanish. The
    values are then lifted by a power of two 2^n ≥ e^bound, which rounds nothing, so that no product e^z v loses
    digits among the subnormal numbers that e^{z − max} v would keep; the denominator is lifted alike. Finding the bound
    reads all of q, k and v, which pays from some queries on.

    Parameters
    ----------
    problem : Problem
        The call.
    values : ndarray, shape (B, Hkv, Sk, dv)
        v, as far as it is finite.
    """

    def __init__(self, problem: Problem, values: np.ndarray) -> None:
        self.problem, self.dtype = problem, values.dtype
        self.kt = np.ascontiguousarray(problem.k).swapaxes(-1, -2)  # (B, Hkv, d, Sk)
        self.steady, self.finite, lift = False, False, None
        if math.prod(problem.q.shape[2:4]) >= FEW:
            # Cauchy–Schwarz: |s| ≤ |τ| ‖q‖ ‖k‖
            bound = abs(problem.scale) * _longest(problem.q) * _longest(problem.k)
            self.finite = math.isfinite(bound)
            lift = _steady_lift(problem, values, bound)
            self.steady = lift is not None
        self.lift = lift or 0
        self.unlift = 2.0**-self.lift
        self.values = np.ldexp(values, self.lift) if self.lift else np.ascontiguousarray(values)
        self.scratch = np.empty(0, self.dtype)

    def start(self, rows: slice) -> None:
        """Begin with a block of queries that has seen nothing but its sink."""
        problem, q = self.problem, self.problem.q[..., rows, :]
        self.rows, shape = rows, q.shape[:-1]  # (B, Hkv, G, rows)
        stacked = (*shape[:2], shape[2] * shape[3], q.shape[-1])
        self.q = np.multiply(q, problem.scale, order="C").reshape(stacked)  # (B, Hkv, G rows, d)
        self.m = np.full((*shape, 1), 0.0 if self.steady else -np.inf, self.dtype)
        self.l = np.zeros((*shape, 1), self.dtype)
        self.a = np.zeros((*shape, self.values.shape[-1]), self.dtype)
        if problem.sinks is not None and self.steady:
            self.l[...] = np.ldexp(np.exp(problem.sinks), self.lift)
        elif problem.sinks is not None:
            self.m[...] = problem.sinks
            self.l[...] = problem.sinks > -np.inf

    def add(self, columns: slice) -> np.ndarray | None:
        """Take in a block of keys; return who is visible in it, None for everybody."""
        visible: np.ndarray | None = visible_block(np, self.problem.rules, self.q, self.rows, columns)
        hidden = None if visible is None else self._hidden(visible)
        for tile in self._tiles(columns.stop - columns.start):
            z, l, a = self._logits(tile, columns, hidden), self.l[tile], self.a[tile]
            if not self.steady:
                before = self.m[tile]
                m = np.maximum(before, z.max(axis=-1, keepdims=True))
                finite = np.where(m == -np.inf, 0.0, m).astype(m.dtype)  # nothing seen yet: e^{−∞ − 0} = 0
                z -= finite
                rescale = np.exp(before - finite)
                l *= rescale
                a *= rescale
                self.m[tile] = m
            np.exp(z, out=z)
            # summed in pairs: equal weights, added one after the other by a product, would all err to one side
            l += np.ldexp(z.sum(axis=-1, keepdims=True), self.lift)
            stacked = z.reshape(*z.shape[:2], -1, z.shape[-1])
            a += np.matmul(stacked, self.values[tile][..., columns, :]).reshape(a.shape)
        return visible

    def _logits(self, tile: tuple[slice, slice], columns: slice, hidden: np.ndarray | None) -> np.ndarray:
        """Write the logits of some heads into the buffer, (b, h, G, rows, columns)."""
        problem, q, kt = self.problem, self.q[tile], self.kt[tile][..., columns]
        shape = (*q.shape[:2], *self.m.shape[2:4], kt.shape[-1])
        if math.prod(shape) > self.scratch.size:
            self.scratch = np.empty(math.prod(shape), q.dtype)
        z: np.ndarray = self.scratch[: math.prod(shape)].reshape(shape)
        np.matmul(q, kt, out=z.reshape(*q.shape[:3], kt.shape[-1]))
        if problem.softcap is not None:
            z /= problem.softcap
            np.tanh(z, out=z)
            z *= problem.softcap
        if problem.bias is not None:
            z += cut(_heads(problem.bias, tile), self.rows, columns)
        if problem.slopes is not None:
            slopes = cut(_heads(problem.slopes, tile), self.rows, columns)
            z -= slopes * _heads(block_distances(problem, self.rows, columns), tile)
        if hidden is not None and self.finite:
            z += _heads(hidden, tile)
        elif hidden is not None:
            np.copyto(z, -np.inf, where=_heads(hidden, tile))
        return z

    def _hidden(self, visible: np.ndarray) -> np.ndarray:
        """Return what hides: a term 0 or −∞, or, where that could meet NaN or ∞, a mask for a selection."""
        if not self.finite:
            return ~visible
        hidden: np.ndarray = np.where(visible, self.dtype.type(0), self.dtype.type(-np.inf))
        return hidden

    def _tiles(self, keys: int) -> Iterator[tuple[slice, slice]]:
        """Yield (batch, kv head) slices whose logits fit into the buffer."""
        (batch, heads), each = self.q.shape[:2], max(self.q.shape[2] * keys, 1)
        some_heads = min(max(AT_ONCE // each, 1), max(heads, 1))
        some_batch = max(AT_ONCE // (each * heads), 1) if some_heads == heads else 1
        for b in range(0, batch, some_batch):
            for h in range(0, heads, some_heads):
                yield slice(b, b + some_batch), slice(h, h + some_heads)


def _heads(x: np.ndarray, tile: tuple[slice, slice]) -> np.ndarray:
    """Cut the first two axes of an array, those of length 1 excepted: they broadcast."""
    b, h = tile
    return x[b if x.shape[0] != 1 else slice(None), h if x.shape[1] != 1 else slice(None)]


def _steady_lift(problem: Problem, values: np.ndarray, bound: float) -> int | None:
    """Return the power of two by which values are lifted if no running maximum is needed, None if one is."""
    limits = np.finfo(values.dtype)
    bound = bound if problem.softcap is None else min(problem.softcap, bound)
    if problem.bias is not None or problem.slopes is not None:
        return None
    if problem.sinks is not None:
        finite = problem.sinks[problem.sinks > -np.inf]
        bound = max(bound, float(np.max(np.abs(finite), initial=0.0)))
    if not bound <= math.log(limits.max) / 4:  # not a number falls here, too
        return None
    lift = math.ceil(bound / math.log(2))
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    fits = largest * max(values.shape[-2], 1) * 2.0**lift * math.exp(bound) < float(limits.max) / 4
    return lift if fits else None


def _longest(x: Any) -> float:
    """Return the largest Euclidean norm along the last axis."""
    with np.errstate(over="ignore"):
        return math.sqrt(np.max(np.einsum("...d,...d->...", x, x), initial=0.0))
