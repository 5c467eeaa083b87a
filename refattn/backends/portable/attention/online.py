"""Online softmax over blocks of keys (1805.02867) as in FlashAttention-2 (2307.08691): memory linear in length.

One state (m, a) per query travels over the key blocks: m is the largest logit so far, and a = Σ_j e^{z_j − m} (v_j, 1)
holds the weighted values with the softmax denominator l as last channel, so that numerator and denominator are
rescaled and summed alike. A block with logits z turns it into

    m' = max(m, max_j z_j),   a' = e^{m − m'} a + Σ_j e^{z_j − m'} (v_j, 1),

and at the end o = a / l and L = m + log l. A sink is where the state starts: m = σ, a = (0, 1).
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

__all__ = ["Rows", "attend", "blocks", "queries_at_once", "value_marks"]


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
    values : array, shape (B, Hkv, Sk, dv + 1)
        v with a column of ones.
    """

    unlift = 1.0

    def __init__(self, problem: Problem, values: Any) -> None:
        self.problem, self.values = problem, values

    def start(self, rows: slice) -> None:
        """Begin with a block of queries that has seen nothing but its sink."""
        problem, xp = self.problem, self.problem.xp
        nothing = xp.zeros_like(problem.q[..., rows, :1])
        self.rows = rows
        self.m = nothing - xp.inf if problem.sinks is None else nothing + problem.sinks  # (B, Hkv, G, rows, 1)
        started = xp.astype(self.m > -xp.inf, nothing.dtype)
        self.a = xp.concat([nothing] * (self.values.shape[-1] - 1) + [started], axis=-1)  # (B, Hkv, G, rows, dv + 1)

    def add(self, columns: slice) -> Any:
        """Take in a block of keys; return who is visible in it, None for everybody."""
        xp = self.problem.xp
        _, _, z, visible = block_logits(self.problem, self.rows, columns)
        m = xp.maximum(self.m, xp.max(z, axis=-1, keepdims=True))
        finite = xp.where(m == -xp.inf, 0.0, m)  # nothing seen yet: e^{−∞ − 0} = 0
        weights, values = xp.exp(z - finite), self.values[..., columns, :]
        stacked = xp.reshape(weights, (*z.shape[:2], z.shape[2] * z.shape[3], z.shape[4]))
        gained = xp.reshape(stacked @ values, (*z.shape[:4], values.shape[-1]))
        self.m, self.a = m, xp.exp(self.m - finite) * self.a + gained
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
    risky = bool(problem.rules) and not holds(xp.all(xp.isfinite(problem.v)))
    v = xp.where(xp.isfinite(problem.v), problem.v, 0.0) if risky else problem.v
    values = xp.concat([v, xp.ones_like(problem.k[..., :1])], axis=-1)  # (B, Hkv, Sk, dv + 1)
    marks = value_marks(xp, problem.v) if risky else None

    results, state = [], state_of(problem, values)
    for rows in blocks(0, problem.q.shape[-2], block_q or queries_at_once(problem)):
        state.start(rows)
        seen, found = xp.zeros_like(problem.q[..., rows, :1], dtype=xp.bool), None
        for columns in blocks(*key_range(problem.rules, rows, keys), block_k or 512, at_least=0):
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
    l = state.a[..., dv:]
    alive = seen if problem.sinks is None else seen | (problem.sinks > -xp.inf)
    l = xp.where(l == 0, 1.0, l)  # empty rows, and rows whose visible logits are all −∞
    out = state.a[..., :dv] / l
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
        return max(min(queries, 256 // max(int(problem.q.shape[2]), 1)), 16)
    return min(queries, 1024) if any(isinstance(rule, Reach) for rule in problem.rules) else queries
