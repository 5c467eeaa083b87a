"""Attention of packed sequences and of a paged cache: where a token lies in memory is not where it stands in its text.

Both are the blocked attention with other positions. A packed sequence is a document whose positions restart; a page
table is a gather, after which only the valid lengths remain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace

from refattn.backends.portable.attention.forward import AttentionResult, quiet, results_of
from refattn.backends.portable.attention.online import Rows, attend, queries_at_once
from refattn.backends.portable.attention.problem import Problem, heads_first, pose
from refattn.backends.portable.attention.rules import Below, Same, on_device

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["attention_paged", "attention_varlen"]


@quiet
def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_q: Any,
    cu_k: Any,
    *,
    align: Any = "bottom_right",
    empty: str = "zero",
    alibi_slopes: Any = None,
    returns: str | Sequence[str] = ("out",),
    **options: Any,
) -> AttentionResult:
    """Compute attention of sequences packed end to end, each among its own tokens.

    Parameters
    ----------
    q, k, v : array, shape (Tq, Hq, d), (Tk, Hkv, d), (Tk, Hkv, dv)
        The tokens of all sequences.
    cu_q, cu_k : array of int, shape (N + 1,)
        Where each sequence begins, then the total.
    align, empty, returns, **options
        As in the reference: ``causal``, ``window``, ``scale``, ``softcap``, ``sinks``.
    alibi_slopes : array, shape (Hq,) or (N, Hq), optional

    Returns
    -------
    AttentionResult
        ``out`` (Tq, Hq, dv) and ``lse`` (Hq, Tq).

    Notes
    -----
    Which sequence a token belongs to is found by comparison with the bounds, so that they may be traced arrays. On
    NumPy, keys of other sequences are not visited.
    """
    xp = array_namespace(q, k, v)
    cu_q, cu_k = (np.asarray(cu) if isinstance(cu, (list, tuple)) else cu for cu in (cu_q, cu_k))
    doc_q, p = _unpack(xp, cu_q, q)
    doc_k, r = _unpack(xp, cu_k, k)
    if isinstance(align, (int, np.integer)):
        p = p + int(align)
    elif align == "bottom_right":
        p = p + _at(cu_k[1:] - cu_k[:-1] - (cu_q[1:] - cu_q[:-1]), doc_q)
    q4, k4, v4 = (xp.permute_dims(x[None, ...], (0, 2, 1, 3)) for x in (q, k, v))
    places = {"positions": (p[None, :], r[None, :]), "doc_q": doc_q, "doc_k": doc_k}
    if alibi_slopes is not None and alibi_slopes.ndim == 2:
        per_token = xp.take(alibi_slopes, on_device(xp, doc_q, q), axis=0)  # (Tq, Hq)
        problem = pose(q4, k4, v4, empty=empty, **places, **options)
        slopes = xp.reshape(xp.permute_dims(per_token, (1, 0)), (1, *problem.q.shape[1:4], 1))
        problem = problem._replace(slopes=xp.astype(slopes, problem.q.dtype))
    else:
        problem = pose(q4, k4, v4, empty=empty, alibi_slopes=alibi_slopes, **places, **options)
    found = _only_linear(problem, returns, "bshd", q.dtype)
    return AttentionResult(*(None if x is None else x[0, ...] for x in found))


@quiet
def attention_paged(
    q: Any,
    k_pages: Any,
    v_pages: Any,
    block_table: Any,
    kv_lengths: Any,
    *,
    align: Any = "bottom_right",
    layout: str = "bhsd",
    returns: str | Sequence[str] = ("out",),
    **options: Any,
) -> AttentionResult:
    """Compute attention over keys and values that a table finds in the pages of a cache.

    Parameters
    ----------
    q : array, shape (B, Hq, Sq, d)
        In ``layout``.
    k_pages, v_pages : array, shape (P, page, Hkv, d), (P, page, Hkv, dv)
        All pages; slots that no sequence needs may hold anything.
    block_table : array of int, shape (B, n)
        Logical key j lies in page ``block_table[b, j // page]``, slot j % page.
    kv_lengths : array of int, shape (B,)
        Keys of each batch entry.
    align, layout, returns, **options
        As in the reference: ``causal``, ``window``, ``scale``, ``softcap``, ``alibi_slopes``, ``sinks``, ``empty``.

    Returns
    -------
    AttentionResult
        ``out`` (B, Hq, Sq, dv) in ``layout`` and ``lse`` (B, Hq, Sq).
    """
    xp = array_namespace(q, k_pages, v_pages)
    n_k = xp.asarray(kv_lengths) if isinstance(kv_lengths, (list, tuple)) else kv_lengths
    table = xp.asarray(block_table) if isinstance(block_table, (list, tuple)) else block_table
    (batch, n), (pages, page, *_) = table.shape, k_pages.shape
    first_keys = on_device(xp, np.arange(n) * page, table)[None, :]
    # entries that are not needed may point anywhere
    where = xp.reshape(xp.where(first_keys < n_k[:, None], table, 0), (-1,))

    def logical(x: Any) -> Any:
        gathered = xp.take(x, where, axis=0) if pages else xp.zeros_like(x[:0, ...])
        return xp.permute_dims(xp.reshape(gathered, (batch, n * page, *x.shape[2:])), (0, 2, 1, 3))

    q4 = heads_first(xp, q, layout, q.shape[-1] // k_pages.shape[-1])
    problem = pose(q4, logical(k_pages), logical(v_pages), align=align, kv_lengths=n_k, **options)
    return _only_linear(problem, returns, layout, q.dtype)


def _unpack(xp: Any, cu: Any, tokens: Any) -> tuple[Any, Any]:
    """Return the sequence of each token and its place in it, (T,) each."""
    index: Any = np.arange(tokens.shape[0])
    if isinstance(cu, np.ndarray):
        document: Any = np.searchsorted(cu[1:], index, side="right")
        return document, index - cu[document]
    index = xp.astype(on_device(xp, index, tokens), cu.dtype)
    document = xp.searchsorted(cu[1:], index, side="right")
    return document, index - xp.take(cu, document, axis=0)


def _at(per_sequence: Any, document: Any) -> Any:
    return array_namespace(per_sequence).take(per_sequence, document, axis=0)


def _only_linear(problem: Problem, returns: str | Sequence[str], layout: str, dtype: Any) -> AttentionResult:
    """Return ``out`` and ``lse``; under ``uniform`` empty rows average the values of their own sequence."""
    names = {returns} if isinstance(returns, str) else set(returns)
    if names - {"out", "lse"}:
        raise ValueError(f"returns={returns!r}: packed and paged attention return 'out' and 'lse'")
    if problem.empty != "uniform":
        return results_of(problem, attend(problem), returns, layout, dtype)
    xp = problem.xp
    # equal logits for whatever belongs to the sequence
    own = tuple(rule for rule in problem.rules if isinstance(rule, (Same, Below)))
    even = problem._replace(
        q=xp.zeros_like(problem.q), k=xp.zeros_like(problem.k), softcap=None, slopes=None, sinks=None, rules=own
    )
    size = queries_at_once(problem)
    rows = [
        Rows(xp.where(of.alive, of.out, mean.out), of.lse, of.alive)
        for of, mean in zip(*(attend(x._replace(empty="zero"), size) for x in (problem, even)), strict=True)
    ]
    return results_of(problem, rows, returns, layout, dtype)
