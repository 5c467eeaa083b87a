"""Online softmax over blocks of keys (1805.02867) as in FlashAttention-2 (2307.08691): memory linear in length.

One state (m, l, a) per query travels over the key blocks: m is the largest logit so far, l = Σ_j e^{z_j − m} the
denominator and a = Σ_j e^{z_j − m} v_j the weighted values. A block with logits z turns it into

    m' = max(m, max_j z_j),   l' = e^{m − m'} l + Σ_j e^{z_j − m'},   a' = e^{m − m'} a + Σ_j e^{z_j − m'} v_j,

and at the end o = a / l and L = m + log l. A sink is where the state starts: m = σ, l = 1, a = 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from array_api_compat import is_numpy_namespace

from refattn.backends.portable.attention.numpy_blocks import NumpyState
from refattn.backends.portable.attention.problem import block_logits, holds
from refattn.backends.portable.attention.rules import Reach, key_range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.backends.portable.attention.problem import Problem

__all__ = ["Rows", "attend", "blocks", "keys_at_once", "queries_at_once", "value_marks"]


class Rows(NamedTuple):
    """Results of a block of queries.

    Attributes
    ----------
    out : array, shape (B, Hkv, G, rows, dv)
    lse : array, shape (B, Hkv, G, rows, 1)
    alive : array of bool, shape (B|1, Hkv|1, G|1, rows, 1)
        False where a row is empty.
    """

    out: Any
    lse: Any
    alive: Any


class State:
    """The running maximum and sums of a block of queries, written for any array library.

    Parameters
    ----------
    problem : Problem
        The call.
    values : array, shape (B, Hkv, Sk, dv)
        v, as far as it is finite.
    """

    unlift = 1.0  # what brings l back to the scale of m

    def __init__(self, problem: Problem, values: Any) -> None:
        self.problem, self.values = problem, values

    def start(self, rows: slice) -> None:
        """Begin with a block of queries that has seen nothing but its sink."""
        problem, xp = self.problem, self.problem.xp
        nothing = xp.zeros_like(problem.q[..., rows, :1])
        self.rows = rows
        self.m = nothing - xp.inf if problem.sinks is None else nothing + problem.sinks  # (B, Hkv, G, rows, 1)
        self.l = xp.astype(self.m > -xp.inf, nothing.dtype)  # (B, Hkv, G, rows, 1)
        self.a = xp.broadcast_to(nothing, (*nothing.shape[:-1], self.values.shape[-1]))  # (B, Hkv, G, rows, dv)

    def add(self, columns: slice) -> Any:
        """Take in a block of keys; return who is visible in it, None for everybody."""
        xp = self.problem.xp
        _, _, z, visible = block_logits(self.problem, self.rows, columns)
        m = xp.maximum(self.m, xp.max(z, axis=-1, keepdims=True))
        finite = xp.where(m == -xp.inf, 0.0, m)  # nothing seen yet: e^{−∞ − 0} = 0
        weights, values = xp.exp(z - finite), self.values[..., columns, :]
        stacked = xp.reshape(weights, (*z.shape[:2], z.shape[2] * z.shape[3], z.shape[4]))
        rescale = xp.exp(self.m - finite)
        self.l = rescale * self.l + xp.sum(weights, axis=-1, keepdims=True)
        self.a = rescale * self.a + xp.reshape(stacked @ values, (*z.shape[:4], values.shape[-1]))
        self.m = m
        return visible


def attend(problem: Problem, block_q: int | None = None, block_k: int | None = None) -> list[Rows]:
    """Return outputs and log-sum-exp by blocks of queries.

    Parameters
    ----------
    problem : Problem
        The call.
    block_q, block_k : int, optional
        Queries and keys taken at a time.

    Returns
    -------
    list of Rows
        In the order of the queries; one of no rows if there are none.
    """
    xp, keys = problem.xp, problem.k.shape[-2]
    state_of = NumpyState if is_numpy_namespace(xp) else State
    # hidden values that are not finite must not meet a weight of 0: they are replaced, and counted where visible
    risky = bool(problem.rules) and not holds(xp.isfinite(xp.sum(problem.v)))
    values = xp.where(xp.isfinite(problem.v), problem.v, 0.0) if risky else problem.v
    marks = value_marks(xp, problem.v) if risky else None

    results, state = [], state_of(problem, values)
    for rows in blocks(0, problem.q.shape[-2], block_q or queries_at_once(problem)):
        state.start(rows)
        seen, found = xp.zeros_like(problem.q[..., rows, :1], dtype=xp.bool), None
        for columns in blocks(*key_range(problem.rules, rows, keys), block_k or keys_at_once(problem), at_least=0):
            visible = state.add(columns)
            seen = seen | (True if visible is None else xp.any(visible, axis=-1, keepdims=True))
            if marks is not None:
                block = marks[:, :, None, columns, :]
                hits = xp.sum(block, axis=-2, keepdims=True) if visible is None else _counts(xp, visible, block)
                found = hits if found is None else found + hits
        results.append(_finish(problem, rows, state, seen, found))
    return results


def blocks(start: int, stop: int, size: int, at_least: int = 1) -> Iterator[slice]:
    """Yield consecutive slices of at most ``size``; ``at_least`` 1 yields an empty one rather than none."""
    for begin in range(start, max(stop, start + at_least), size):
        yield slice(begin, min(begin + size, stop))


def value_marks(xp: Any, v: Any) -> Any:
    """Mark values that are not finite: 1 in the first dv channels, and their sign, 0 for NaN, in the second dv."""
    bad = xp.astype(~xp.isfinite(v), v.dtype)
    sign = xp.where(xp.isinf(v), xp.sign(v), 0.0)
    return xp.concat([bad, sign], axis=-1)  # (B, Hkv, Sk, 2 dv)


def _counts(xp: Any, visible: Any, marks: Any) -> Any:
    """Count the marks that each query sees, (B, Hkv, G|1, rows|1, 2 dv)."""
    seen = xp.astype(visible, marks.dtype)
    if seen.shape[-1] == 1:
        return seen * xp.sum(marks, axis=-2, keepdims=True)
    return seen @ marks


def _finish(problem: Problem, rows: slice, state: Any, seen: Any, found: Any) -> Rows:
    """Divide by the denominator, restore values that are not finite, and fill empty rows by the policy."""
    xp, dv = problem.xp, problem.v.shape[-1]
    alive = seen if problem.sinks is None else seen | (problem.sinks > -xp.inf)
    l = xp.where(state.l == 0, 1.0, state.l)  # empty rows, and rows whose visible logits are all −∞
    out = state.a / l
    if found is not None:
        bad, sign = found[..., :dv], found[..., dv:]
        out = xp.where(bad > 0, out + xp.where(xp.abs(sign) == bad, sign, xp.nan) * xp.inf, out)
    lse = xp.where(alive, state.m + xp.log(l * state.unlift), -xp.inf)
    return Rows(_fill(problem, rows, out, alive), lse, alive)


def _fill(problem: Problem, rows: slice, out: Any, alive: Any) -> Any:
    """Give empty rows what the policy says, and padded ones 0."""
    xp, keys = problem.xp, problem.v.shape[-2]
    fill: Any = xp.nan if problem.empty == "nan" else 0.0
    if problem.empty == "uniform" and keys:
        fill = xp.mean(problem.v, axis=-2, keepdims=True)[:, :, None, ...]  # (B, Hkv, 1, 1, dv)
    out = xp.where(alive, out, fill)
    if problem.padded is None:
        return out
    return xp.where(problem.padded.pairs(xp, problem.q, rows, slice(0, 1)), out, 0.0)


def queries_at_once(problem: Problem) -> int:
    """Return a block of queries; small ones pay where keys can be skipped, and where NumPy works in a cache."""
    queries = max(int(problem.q.shape[-2]), 1)
    if is_numpy_namespace(problem.xp):
        return min(queries, max(256 // max(int(problem.q.shape[2]), 1), 16))
    return min(queries, 1024) if any(isinstance(rule, Reach) for rule in problem.rules) else queries


def keys_at_once(problem: Problem) -> int:
    """Return a block of keys; few queries leave NumPy's buffer room for many."""
    stacked = queries_at_once(problem) * max(int(problem.q.shape[2]), 1)
    return max(512, 2**17 // stacked) if is_numpy_namespace(problem.xp) else 512
