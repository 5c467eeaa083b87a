"""The vector-Jacobian product of attention in recompute form: weights are rebuilt block by block from L (2307.08691).

With Δ_i = Σ_c dO_ic o_ic, each block gives P = e^{z − L}, dP = dO Vᵀ, dZ = P ∘ (dP − Δ + dL) and, through the softcap,
dS = dZ ∘ (1 − (t/c)²); then dQ = τ dS K, dK = τ dSᵀ Q, dV = Pᵀ dO. Query heads of a group are stacked below each
other, so that the products sum over the group. The scale needs no extra product: dτ = Σ Q ∘ (dS K).
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

from array_api_compat import array_namespace

from refattn.backends.portable.attention.forward import quiet
from refattn.backends.portable.attention.online import attend, blocks
from refattn.backends.portable.attention.problem import (
    block_distances,
    block_logits,
    heads_back,
    heads_first,
    holds,
    pose,
)
from refattn.backends.portable.attention.rules import cut, key_range

if TYPE_CHECKING:
    from refattn.backends.portable.attention.online import Rows
    from refattn.backends.portable.attention.problem import Problem

__all__ = ["Gradients", "attention_vjp"]


class Gradients(NamedTuple):
    """Cotangents of the inputs of attention, each of the shape of its input; None for what was not given.

    Attributes
    ----------
    dq, dk, dv, dbias, dsinks, dslopes, dscale : array
    """

    dq: Any
    dk: Any
    dv: Any
    dbias: Any = None
    dsinks: Any = None
    dslopes: Any = None
    dscale: Any = None


@quiet
def attention_vjp(
    q: Any,
    k: Any,
    v: Any,
    dout: Any,
    *,
    dlse: Any = None,
    layout: str = "bhsd",
    q_heads: int | None = None,
    kv_heads: int | None = None,
    dropout_p: float = 0.0,
    block_q: int | None = None,
    block_k: int | None = None,
    **options: Any,
) -> Gradients:
    """Pull cotangents of the output and the log-sum-exp back to every input of attention.

    Parameters
    ----------
    q, k, v : array
        As in `attention`.
    dout : array, shape of the output
        Cotangent of o.
    dlse : array, shape (B, Hq, Sq), optional
        Cotangent of L.
    layout, q_heads, kv_heads, dropout_p, block_q, block_k, **options
        As in `attention`.

    Returns
    -------
    Gradients
        In the dtype of ``q``; ``dscale`` has no axes. Memory is linear in length, but for the gradient of a bias.

    Raises
    ------
    ValueError
        As in `attention`.
    """
    if dropout_p:
        raise ValueError(f"dropout_p={dropout_p!r}: dropout is no part of the operator")
    xp = array_namespace(q, k, v, dout)
    heads = (q_heads, kv_heads, kv_heads, q_heads)
    q4, k4, v4, do4 = (heads_first(xp, x, layout, n) for x, n in zip((q, k, v, dout), heads, strict=True))
    problem = pose(q4, k4, v4, **options)
    do = xp.astype(xp.reshape(do4, (*problem.sizes[:4], problem.sizes[-1])), problem.q.dtype)
    dl = None if dlse is None else xp.astype(xp.reshape(dlse, (*problem.sizes[:4], 1)), problem.q.dtype)
    size_q = block_q or min(max(q4.shape[2], 1), 512)
    forward = attend(problem, size_q, block_k)
    sums = Sums(problem, list(blocks(0, k4.shape[2], block_k or 512, at_least=0)))
    for rows, of in zip(blocks(0, q4.shape[2], size_q), forward, strict=True):
        sums.add(rows, of, do[..., rows, :], 0.0 if dl is None else dl[..., rows, :])
    found = sums.gather(options.get("bias"), options.get("alibi_slopes"))
    shaped = {
        name: heads_back(xp, xp.reshape(x, first.shape), layout)
        for name, x, first in (("dq", found.dq, q4), ("dk", found.dk, k4), ("dv", found.dv, v4))
    }
    found = found._replace(**shaped)
    return Gradients(*(None if x is None else xp.astype(x, q.dtype) for x in found))


class Sums:
    """Running sums of the gradients over blocks of queries and keys.

    Parameters
    ----------
    problem : Problem
        The call.
    columns : list of slice
        The blocks of keys.
    """

    def __init__(self, problem: Problem, columns: list[slice]) -> None:
        xp = problem.xp
        self.problem, self.columns = problem, columns
        # what is hidden has dS = 0, which must not meet NaN or ∞ in the products below
        self.q, self.k = (
            x if not problem.rules or holds(xp.all(xp.isfinite(x))) else xp.where(xp.isfinite(x), x, 0.0)
            for x in (problem.q, problem.k)
        )
        self.dq: list[Any] = []
        self.dk = [xp.zeros_like(problem.k[..., part, :]) for part in columns]
        self.dv = [xp.zeros_like(problem.v[..., part, :]) for part in columns]
        self.dbias: list[list[Any]] = []
        self.dsinks = None if problem.sinks is None else xp.zeros_like(problem.sinks)
        self.dslopes = None if problem.slopes is None else xp.zeros_like(problem.slopes)

    def add(self, rows: slice, forward: Rows, do: Any, dl: Any) -> None:
        """Go once over the keys for a block of queries."""
        problem, xp = self.problem, self.problem.xp
        filled = self._filled(rows, forward.alive)
        do = xp.where(forward.alive if filled is None else forward.alive | filled, do, 0.0)
        lse = xp.where(forward.lse == -xp.inf, 0.0, forward.lse)
        delta = xp.where(forward.alive, xp.sum(do * forward.out, axis=-1, keepdims=True) - dl, 0.0)
        dq, dbias = xp.zeros_like(self.q[..., rows, :]), list[Any]()
        first, last = key_range(problem.rules, rows, problem.k.shape[-2])
        for n, columns in enumerate(self.columns):
            if filled is None and (columns.stop <= first or columns.start >= last):
                dbias.append(None)
                continue
            weights, dz, ds = self._block(rows, columns, (lse, do, delta, filled))
            stacked = _stack(xp, ds)  # (B, Hkv, G rows, columns)
            dq = dq + xp.reshape(stacked @ self.k[..., columns, :], dq.shape)
            self.dk[n] = self.dk[n] + xp.matrix_transpose(stacked) @ _stack(xp, self.q[..., rows, :])
            self.dv[n] = self.dv[n] + xp.matrix_transpose(_stack(xp, weights)) @ _stack(xp, do)
            if problem.bias is not None:
                dbias.append(_sum_to(xp, dz, cut(problem.bias, rows, columns).shape))
            if problem.slopes is not None:
                distance = block_distances(problem, rows, columns)
                self.dslopes = self.dslopes - _sum_to(xp, dz * distance, problem.slopes.shape)
        self.dq.append(dq)
        self.dbias.append(dbias)
        if problem.sinks is not None:
            taken = xp.where(problem.sinks > -xp.inf, xp.exp(problem.sinks - lse) * delta, 0.0)
            self.dsinks = self.dsinks - _sum_to(xp, taken, problem.sinks.shape)

    def _block(self, rows: slice, columns: slice, saved: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        """Return P, dZ and dS of a block, (B, Hkv, G, rows, columns)."""
        problem, xp, (lse, do, delta, filled) = self.problem, self.problem.xp, saved
        _, t, z, visible = block_logits(problem, rows, columns)
        vt = xp.matrix_transpose(problem.v[..., columns, :])
        weights = xp.exp(z - lse)
        dz = weights * (xp.reshape(_stack(xp, do) @ vt, z.shape) - delta)
        slope = 1.0 if problem.softcap is None else 1 - (t / problem.softcap) ** 2
        if visible is not None:
            weights, dz = xp.where(visible, weights, 0.0), xp.where(visible, dz, 0.0)
            slope = slope if problem.softcap is None else xp.where(visible, slope, 0.0)
        if filled is not None:
            nan = problem.empty == "nan"
            weights = xp.where(filled, xp.nan if nan else 1 / problem.k.shape[-2], weights)
            dz = xp.where(filled, xp.nan, dz) if nan else dz
        return weights, dz, dz * slope

    def _filled(self, rows: slice, alive: Any) -> Any:
        """Return which rows the policy fills with something else than 0, None for no row."""
        problem = self.problem
        if problem.empty == "zero" or not problem.rules:
            return None
        if problem.padded is None:
            return ~alive
        return ~alive & problem.padded.pairs(problem.xp, problem.q, rows, slice(0, 1))

    def gather(self, bias: Any, slopes: Any) -> Gradients:
        """Return the gradients of everything; those of q, k and v have their heads grouped."""
        problem, xp = self.problem, self.problem.xp
        dk, dv = (
            xp.concat(parts, axis=-2) if parts else xp.zeros_like(x)
            for parts, x in ((self.dk, problem.k), (self.dv, problem.v))
        )
        dq = xp.concat(self.dq, axis=-2)
        return Gradients(
            dq=problem.scale * dq,
            dk=problem.scale * dk,
            dv=dv,
            dbias=None if bias is None else xp.reshape(self._dbias(), bias.shape),
            dsinks=None if problem.sinks is None else xp.reshape(self.dsinks, (-1,)),
            dslopes=None if problem.slopes is None else xp.reshape(self.dslopes, slopes.shape),
            dscale=xp.sum(self.q * dq),
        )

    def _dbias(self) -> Any:
        """Put the blocks of dbias together: side by side along a full axis, summed along a shared one."""
        xp, bias = self.problem.xp, self.problem.bias
        lines, start = [], 0
        for pieces, dq in zip(self.dbias, self.dq, strict=True):
            rows = slice(start, start + dq.shape[-2])
            start = rows.stop
            known = [
                xp.zeros_like(cut(bias, rows, columns)) if piece is None else piece
                for piece, columns in zip(pieces, self.columns, strict=True)
            ]
            lines.append(_join(xp, known, -1, shared=bias.shape[-1] == 1) if known else xp.zeros_like(bias))
        return _join(xp, lines, -2, shared=bias.shape[-2] == 1)


def _stack(xp: Any, x: Any) -> Any:
    """Lay the query heads of a group below each other: (B, Hkv, G, rows, n) to (B, Hkv, G rows, n)."""
    return xp.reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3], x.shape[4]))


def _sum_to(xp: Any, x: Any, shape: tuple[int, ...]) -> Any:
    """Sum over the axes that ``shape`` broadcasts."""
    axes = tuple(n for n, size in enumerate(shape) if size == 1 and x.shape[n] != 1)
    return xp.sum(x, axis=axes, keepdims=True) if axes else x


def _join(xp: Any, pieces: list[Any], axis: int, *, shared: bool) -> Any:
    return functools.reduce(operator.add, pieces) if shared else xp.concat(pieces, axis=axis)
