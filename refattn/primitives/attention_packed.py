"""Attention over keys that do not lie in one rectangle: sequences packed end to end, and pages of a cache.

Equation source: the unpadded layout of FlashAttention and the paged cache of vLLM [recalled]; rules R28 and R29 of
the attention page. Both are attention of each sequence on its own, once its tokens are found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_one_of
from refattn.primitives.attention import AttentionResult, attention
from refattn.primitives.attention_online import streamed_names
from refattn.primitives.mask_rules import check_align

__all__ = ["attention_paged", "attention_varlen"]


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_q: Any,
    cu_k: Any,
    *,
    causal: bool = False,
    align: Any = "bottom_right",
    window: Any = (None, None),
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    empty: str = "zero",
    returns: Any = ("out",),
) -> AttentionResult:
    """Compute attention of sequences packed end to end, each among its own tokens.

    Parameters
    ----------
    q : array_like, shape (Tq, Hq, d)
        Queries of all sequences.
    k, v : array_like, shape (Tk, Hkv, d), (Tk, Hkv, dv)
        Keys and values of all sequences.
    cu_q, cu_k : array_like of int, shape (N + 1,)
        Where each sequence begins, then the total; sequence a holds the tokens cu[a] to cu[a + 1] − 1.
    causal, align, window, scale, softcap, alibi_slopes, sinks, empty
        As in `attention.attention`, in each sequence; positions restart. Slopes may also be (N, Hq).
    returns : str, or sequence of str
        ``out`` and ``lse``.

    Returns
    -------
    AttentionResult
        ``out`` (Tq, Hq, dv) and ``lse`` (Hq, Tq).

    Raises
    ------
    ValueError, TypeError
        As in `attention.attention`, or if the sequence bounds do not start at 0, decrease, or end elsewhere than at
        the total.

    Notes
    -----
    Bottom-right alignment is the default, as in FlashAttention. Equal lengths give the same as document masks on one
    sequence.
    """
    names = streamed_names(returns)
    q, k, v = (as_float(n, x, ndim=3, refuse_integers=TypeError) for n, x in (("q", q), ("k", k), ("v", v)))
    cu_q, cu_k = _bounds("cu_q", cu_q, len(q)), _bounds("cu_k", cu_k, len(k))
    require(len(cu_q) == len(cu_k), f"cu_q has {len(cu_q)} entries and cu_k {len(cu_k)}; they must agree")
    require(len(k) == len(v), f"length of k is {len(k)} and of v {len(v)}; they must agree")
    count = len(cu_q) - 1
    slopes, aligns = _slopes_of_each(alibi_slopes, count), _align_of_each(align, count)
    options = {"causal": causal, "window": window, "scale": scale, "softcap": softcap, "sinks": sinks, "empty": empty}
    out, lse = np.zeros((len(q), q.shape[1], v.shape[2]), q.dtype), np.zeros((q.shape[1], len(q)), q.dtype)
    for a in range(count):
        rows, columns = slice(cu_q[a], cu_q[a + 1]), slice(cu_k[a], cu_k[a + 1])
        # eq: R28
        part = _attend(
            (q[rows], k[columns], v[columns]), align=aligns[a], alibi_slopes=slopes[a], layout="bshd", **options
        )
        out[rows], lse[:, rows] = part
    return AttentionResult(**{name: {"out": out, "lse": lse}[name] for name in names})


def attention_paged(
    q: Any,
    k_pages: Any,
    v_pages: Any,
    block_table: Any,
    kv_lengths: Any,
    *,
    causal: bool = False,
    align: Any = "bottom_right",
    window: Any = (None, None),
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    empty: str = "zero",
    layout: str = "bhsd",
    returns: Any = ("out",),
) -> AttentionResult:
    """Compute attention over keys and values that a table finds in the pages of a cache.

    Parameters
    ----------
    q : array_like, shape (B, Hq, Sq, d)
        Queries, in ``layout``.
    k_pages, v_pages : array_like, shape (P, page, Hkv, d), (P, page, Hkv, dv)
        All pages. Slots that no sequence needs may hold anything, NaN included.
    block_table : array_like of int, shape (B, n)
        Logical key j of batch entry b lies in page ``block_table[b, j // page]``, slot j % page. Entries that are not
        needed may hold anything.
    kv_lengths : array_like of int, shape (B,)
        Keys n_k of each batch entry, at most n · page.
    causal, align, window, scale, softcap, alibi_slopes, sinks, empty, layout
        As in `attention.attention`; the policy ``uniform`` averages the n_k values of the sequence.
    returns : str, or sequence of str
        ``out`` and ``lse``.

    Returns
    -------
    AttentionResult
        ``out`` (B, Hq, Sq, dv) in ``layout`` and ``lse`` (B, Hq, Sq).

    Raises
    ------
    ValueError, TypeError
        As in `attention.attention`, or if a needed table entry names no page.
    """
    names = streamed_names(returns)
    require_one_of("layout", layout, ("bhsd", "bshd"))
    q = as_float("q", q, ndim=4, refuse_integers=TypeError)
    if layout == "bhsd":
        q = q.swapaxes(1, 2)  # (B, Sq, Hq, d), as the pages
    k_pages, v_pages = as_float("k_pages", k_pages, ndim=4), as_float("v_pages", v_pages, ndim=4)
    pages = k_pages.shape[:2]
    require(pages == v_pages.shape[:2], f"k_pages has pages of shape {pages} and v_pages {v_pages.shape[:2]}")
    needed, n_k = _needed_pages(block_table, kv_lengths, len(q), pages)
    slopes, aligns = _slopes_of_each(alibi_slopes, len(q)), _align_of_each(align, len(q))
    options = {"causal": causal, "window": window, "scale": scale, "softcap": softcap, "sinks": sinks, "empty": empty}
    out, lse = np.zeros((*q.shape[:3], v_pages.shape[3]), q.dtype), np.zeros((len(q), *q.shape[2:0:-1]), q.dtype)
    for b, table in enumerate(needed):
        # eq: R29
        k, v = (
            x[table].reshape(-1, *x.shape[2:])[: n_k[b]] for x in (k_pages, v_pages)
        )  # (n_k, Hkv, d), (n_k, Hkv, dv)
        out[b], lse[b] = _attend((q[b], k, v), align=aligns[b], alibi_slopes=slopes[b], layout="bshd", **options)
    if layout == "bhsd":
        out = out.swapaxes(1, 2)
    return AttentionResult(**{name: {"out": out, "lse": lse}[name] for name in names})


def _attend(tensors: tuple[np.ndarray, ...], **options: Any) -> tuple[Any, Any]:
    """Attend in one sequence, whose arrays are (S, H, channels); return o and L."""
    q, k, v = (x[None] for x in tensors)
    result = attention(q, k, v, returns=("out", "lse"), **options)
    return np.asarray(result.out)[0], np.asarray(result.lse)[0]


def _bounds(name: str, cu: Any, total: int) -> np.ndarray:
    cu = as_integer(name, cu, ndim=1)
    require(len(cu) > 0 and cu[0] == 0, f"{name}={cu} must start at 0")
    require((np.diff(cu) >= 0).all(), f"{name}={cu} must not decrease")
    require(cu[-1] == total, f"{name}={cu} must end at the number of tokens, {total}")
    return np.asarray(cu)


def _needed_pages(
    block_table: Any, kv_lengths: Any, batch: int, pages: tuple[int, ...]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the table entries that hold each sequence's keys, and the number of keys."""
    table, n_k = as_integer("block_table", block_table, ndim=2), as_integer("kv_lengths", kv_lengths, ndim=1)
    require(len(table) == batch, f"block_table has {len(table)} rows, expected {batch}")
    require(len(n_k) == batch, f"kv_lengths has {len(n_k)} entries, expected {batch}")
    count, size = pages
    room = table.shape[1] * size
    require(((n_k >= 0) & (n_k <= room)).all(), f"kv_lengths={n_k} must lie in 0..{room}, what the table can hold")
    needed = [row[: -(-n // size) if n else 0] for row, n in zip(table, n_k.tolist(), strict=True)]
    for b, row in enumerate(needed):
        require(((row >= 0) & (row < count)).all(), f"block_table[{b}]={row} names pages outside 0..{count - 1}")
    return needed, n_k


def _slopes_of_each(slopes: Any, count: int) -> list[Any]:
    if slopes is None or np.ndim(slopes) != 2:
        return [slopes] * count
    require(len(slopes) == count, f"alibi_slopes has {len(slopes)} rows, expected {count}")
    return list(slopes)


def _align_of_each(align: Any, count: int) -> list[Any]:
    align = check_align(align)
    if isinstance(align, str):
        return [align] * count
    require(len(align) in (1, count), f"align has {len(align)} entries, expected 1 or {count}")
    return list(np.broadcast_to(align, count))
