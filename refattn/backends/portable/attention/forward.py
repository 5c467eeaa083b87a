"""Scaled dot-product attention with every convention of the reference, in memory linear in length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from refattn.backends.portable.attention.online import attend
from refattn.backends.portable.attention.problem import block_logits, heads_back, heads_first, pose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.backends.portable.attention.online import Rows
    from refattn.backends.portable.attention.problem import Problem

__all__ = ["AttentionResult", "attention", "merge_attention", "quiet", "results_of"]

QUADRATIC = ("weights", "logits", "scores", "softcapped")

# weights that underflow, and hidden logits that were never numbers, are no news
quiet = np.errstate(under="ignore", invalid="ignore", divide="ignore")


class AttentionResult(NamedTuple):
    """What `attention` returns; None for what was not asked for.

    Attributes
    ----------
    out : array, shape (B, Hq, Sq, dv), in the caller's layout
    weights : array, shape (B, Hq, Sq, Sk)
    lse : array, shape (B, Hq, Sq)
    logits, scores, softcapped : array, shape (B, Hq, Sq, Sk)
    """

    out: Any = None
    weights: Any = None
    lse: Any = None
    logits: Any = None
    scores: Any = None
    softcapped: Any = None


@quiet
def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    layout: str = "bhsd",
    q_heads: int | None = None,
    kv_heads: int | None = None,
    dropout_p: float = 0.0,
    returns: str | Sequence[str] = ("out",),
    block_q: int | None = None,
    block_k: int | None = None,
    **options: Any,
) -> AttentionResult:
    """Return softmax(τ Q Kᵀ + bias) V, computed in blocks of queries and keys.

    Parameters
    ----------
    q, k, v : array, shape (B, Hq, Sq, d), (B, Hkv, Sk, d), (B, Hkv, Sk, dv)
        Of one array library; in another ``layout`` the axes are those of that layout.
    layout, q_heads, kv_heads, dropout_p, returns
        As in the reference. Results other than ``out`` and ``lse`` cost Sq·Sk memory.
    block_q, block_k : int, optional
        Queries and keys taken at a time; they change nothing but memory, speed and rounding.
    **options
        ``scale``, ``mask``, ``bias``, ``causal``, ``align``, ``window``, ``kv_lengths``, ``q_lengths``, ``prefix``,
        ``doc_q``, ``doc_k``, ``chunk``, ``softcap``, ``alibi_slopes``, ``sinks``, ``empty``, as in the reference.

    Returns
    -------
    AttentionResult
        In the dtype of ``q``; 16-bit inputs are computed in float32.

    Raises
    ------
    ValueError
        For unknown names, head counts that do not divide, and dropout.

    Notes
    -----
    Key blocks that causal masks, windows, lengths or documents hide from a whole block of queries are not visited,
    where that is known on the host: always on NumPy, and elsewhere for options that are no device arrays.
    """
    if dropout_p:
        raise ValueError(f"dropout_p={dropout_p!r}: dropout is no part of the operator")
    xp = array_namespace(q, k, v)
    heads = (q_heads, kv_heads, kv_heads)
    firsts = [heads_first(xp, x, layout, n) for x, n in zip((q, k, v), heads, strict=True)]
    problem = pose(*firsts, **options)
    return results_of(problem, attend(problem, block_q, block_k), returns, layout, q.dtype)


def results_of(
    problem: Problem, rows: Sequence[Rows], returns: str | Sequence[str], layout: str, dtype: Any
) -> AttentionResult:
    """Gather the named results, in the caller's layout and dtype."""
    xp, names = problem.xp, (returns,) if isinstance(returns, str) else tuple(returns)
    unknown = set(names) - set(AttentionResult._fields)
    if unknown:
        raise ValueError(f"returns={returns!r}: {sorted(unknown)} is not among {AttentionResult._fields}")
    batch, kv_heads, groups, sq, _, _ = problem.sizes
    found = {}
    if "out" in names:
        found["out"] = xp.concat([block.out for block in rows], axis=-2)
    if "lse" in names:
        found["lse"] = xp.concat([block.lse for block in rows], axis=-2)[..., 0]
    if set(names) & set(QUADRATIC):
        found |= _dense(problem, rows)
    shaped = {
        name: xp.astype(xp.reshape(found[name], (batch, kv_heads * groups, sq, *found[name].shape[4:])), dtype)
        for name in names
    }
    if "out" in shaped:
        shaped["out"] = heads_back(xp, shaped["out"], layout)
    return AttentionResult(**shaped)


def _dense(problem: Problem, rows: Sequence[Rows]) -> dict[str, Any]:
    """Return every result of Sq·Sk numbers."""
    xp, (*_, sq, sk, _) = problem.xp, problem.sizes
    everything = slice(0, sq), slice(0, sk)
    s, t, z, visible = block_logits(problem, *everything)
    lse, alive = (xp.concat([getattr(block, name) for block in rows], axis=-2) for name in ("lse", "alive"))
    fill = {"zero": 0.0, "nan": xp.nan, "uniform": 1 / max(sk, 1)}[problem.empty]
    weights = xp.exp(z - xp.where(lse == -xp.inf, 0.0, lse))
    weights = weights if visible is None else xp.where(visible, weights, 0.0)  # beside a visible NaN, too
    weights = xp.where(alive, weights, fill)
    if problem.padded is not None:
        weights = xp.where(problem.padded.pairs(xp, problem.q, *everything), weights, 0.0)
    return {"scores": s, "softcapped": t, "logits": z, "weights": weights}


@quiet
def merge_attention(outs: Any, lses: Any, sinks: Any = None) -> tuple[Any, Any]:
    """Merge attention over disjoint sets of keys: L = log Σ e^{L_s} (+ e^σ), o = Σ e^{L_s − L} o_s.

    Parameters
    ----------
    outs : sequence of array, or array with the parts along the first axis, shape (parts, ..., Hq, Sq, dv)
    lses : likewise, shape (parts, ..., Hq, Sq)
        A part with L = −∞ takes no part, whatever its output holds.
    sinks : array, shape (Hq,), optional
        Counted once.

    Returns
    -------
    out : array, shape (..., Hq, Sq, dv)
    lse : array, shape (..., Hq, Sq)
    """
    parts = list(zip(outs, lses, strict=True)) if isinstance(outs, (list, tuple)) else None
    xp = array_namespace(parts[0][0] if parts else outs)
    o, lse = (xp.stack(list(x)) if isinstance(x, (list, tuple)) else x for x in (outs, lses))
    dtype, lse_dtype = o.dtype, lse.dtype
    o, lse = (xp.astype(x, _at_least_float32(xp, x.dtype)) for x in (o, lse))
    top = xp.max(lse, axis=0, keepdims=True)
    sink = None if sinks is None else xp.astype(sinks, lse.dtype)[:, None]
    top = top if sink is None else xp.maximum(top, sink)
    finite = xp.where(top == -xp.inf, 0.0, top)
    weights = xp.exp(lse - finite)  # (parts, ..., Hq, Sq)
    l = xp.sum(weights, axis=0, keepdims=True)
    l = l if sink is None else l + xp.exp(sink - finite)
    nobody = l == 0
    lse_all = xp.where(nobody, -xp.inf, finite + xp.log(xp.where(nobody, 1.0, l)))[0, ...]
    o = xp.where((weights > 0)[..., None], o, 0.0)
    out = xp.sum((weights / xp.where(nobody, 1.0, l))[..., None] * o, axis=0)
    return xp.astype(out, dtype), xp.astype(lse_all, lse_dtype)


def _at_least_float32(xp: Any, dtype: Any) -> Any:
    return xp.float32 if xp.finfo(dtype).bits < 32 else dtype
