"""Attention in blocks of keys: the running maximum, sum and output of the online softmax, and the merge of parts.

Equation source: Milakov and Gimelshein, 1805.02867; FlashAttention, 2205.14135 and 2307.08691 [recalled]; rule R27
of the attention page. Merging is associative and commutative, so blocks, splits, trees and rings are one map.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import numpy as np

from refattn.primitives.arguments import as_float, require, require_one_of
from refattn.primitives.attention import AttentionResult, result_names, select_results
from refattn.primitives.attention_arguments import AttentionCall, AttentionOptions, check_attention, check_sinks
from refattn.primitives.attention_pipeline import (
    fill_empty_rows,
    masked_logits,
    padded_queries,
    weighted_sum,
)
from refattn.primitives.softmax import normalise, shifted_exponentials

__all__ = ["attention_online", "merge_attention"]


class Running(NamedTuple):
    """What the online softmax carries from block to block.

    Attributes
    ----------
    m : ndarray, shape (B, Hq, Sq, 1)
        Largest logit so far.
    l : ndarray, shape (B, Hq, Sq, 1)
        Sum of e^(z − m) so far.
    a : ndarray, shape (B, Hq, Sq, dv)
        Sum of e^(z − m) v so far.
    """

    m: np.ndarray
    l: np.ndarray
    a: np.ndarray


def attention_online(
    q: Any,
    k: Any,
    v: Any,
    *,
    block_q: int | None = None,
    block_k: int = 64,
    order: Any = None,
    returns: Any = ("out",),
    **options: Unpack[AttentionOptions],
) -> AttentionResult:
    """Compute attention from blocks of keys, never holding more than a block of logits.

    Parameters
    ----------
    q, k, v : array_like, shape (B, Hq, Sq, d), (B, Hkv, Sk, d), (B, Hkv, Sk, dv)
        Queries, keys and values.
    block_q : int, optional
        Queries in a block; all if not given.
    block_k : int
        Keys in a block.
    order : sequence of int, optional
        The key blocks in the order in which they are visited, each once; ascending if not given.
    returns : str, or sequence of str
        ``out`` and ``lse``.
    **options
        As in `attention.attention`.

    Returns
    -------
    AttentionResult
        ``out`` and ``lse``, equal to those of `attention.attention` up to rounding.

    Raises
    ------
    ValueError, TypeError
        As in `attention.attention`, or if a block length is not positive or ``order`` no permutation.
    """
    names = streamed_names(returns)
    require(block_q is None or block_q > 0, f"block_q={block_q} must be positive")
    require(block_k > 0, f"block_k={block_k} must be positive")
    call = check_attention(q, k, v, **options)
    queries, keys = _blocks(call.rules.sq, block_q or max(call.rules.sq, 1)), _blocks(call.rules.sk, block_k)
    visits = list(range(len(keys))) if order is None else [int(n) for n in order]
    require(sorted(visits) == list(range(len(keys))), f"order={order!r} is no permutation of {len(keys)} key blocks")
    batch, heads, sq, _ = call.shape
    out, lse = np.empty((batch, heads, sq, call.v.shape[3])), np.empty((batch, heads, sq))
    for rows in queries:
        state = _start(call, rows)
        for n in visits:
            state = _absorb(call, state, rows, keys[n])
        out[:, :, rows], lse[:, :, rows] = _finish(state)
    return streamed_result(call, out, lse, names)


@np.errstate(all="ignore")
def _absorb(call: AttentionCall, state: Running, rows: slice, columns: slice) -> Running:
    _, _, z, visible = masked_logits(call, rows, columns)  # (B, Hq, Sq, Sk)
    v = np.repeat(call.v[:, :, columns], call.group, axis=1)  # (B, Hq, Sk, dv)
    # eq: R27
    m = np.maximum(state.m, np.max(z, axis=-1, keepdims=True, initial=-np.inf))  # (B, Hq, Sq, 1)
    shift = np.where(m == -np.inf, 0, m)  # −∞ − (−∞) is NaN
    rho = np.exp(state.m - shift)  # 0 while m = −∞
    e = np.exp(z - shift)  # (B, Hq, Sq, Sk)
    l = rho * state.l + np.sum(e, axis=-1, keepdims=True)
    a = rho * state.a + weighted_sum(e, v, visible)
    return Running(m, l, a)


def _start(call: AttentionCall, rows: slice) -> Running:
    """Return the state before the first key: empty, or holding the sink, which is thereby counted once."""
    batch, heads, _, _ = call.shape
    shape = (batch, heads, len(range(*rows.indices(call.rules.sq))), 1)
    sink = np.full(heads, -np.inf) if call.sinks is None else call.sinks
    m = np.broadcast_to(sink[:, None, None], shape)
    return Running(m, np.where(m == -np.inf, 0.0, 1.0), np.zeros((*shape[:3], call.v.shape[3])))


@np.errstate(all="ignore")
def _finish(state: Running) -> tuple[np.ndarray, np.ndarray]:
    return normalise(state.a, state.l), (state.m + np.log(state.l))[..., 0]


def merge_attention(outs: Any, lses: Any, *, sinks: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Merge attention over parts of the keys: every part counts by e to the power of its log-sum-exp.

    Parameters
    ----------
    outs : array_like, shape (N, ..., H, Sq, dv), or sequence of N arrays
        Outputs of the parts, computed without a sink.
    lses : array_like, shape (N, ..., H, Sq), or sequence of N arrays
        Natural log-sum-exps of the parts; −∞ = the part saw no key, whatever its output holds.
    sinks : array_like, shape (H,), optional
        Logits that join the denominator once.

    Returns
    -------
    out : ndarray, shape (..., H, Sq, dv)
        In the dtype of ``outs``; 0 where every part is empty.
    lse : ndarray, shape (..., H, Sq)
        In the dtype of ``lses``.

    Raises
    ------
    ValueError
        If there is no part, or shapes do not fit, or a log-sum-exp is +∞.

    Notes
    -----
    The merge is associative and commutative, so a chain, a tree and a ring give the same result. A kernel that marks
    empty parts by L = +∞ (FlashAttention-2 unsplit) must be translated first.
    """
    outs, lses = _stacked("outs", outs), _stacked("lses", lses)  # (N, ..., H, Sq, dv), (N, ..., H, Sq)
    require(outs.shape[:-1] == lses.shape, f"outs has shape {outs.shape} and lses {lses.shape}; they must agree")
    require(not np.isposinf(lses).any(), "lses holds +inf; a part without keys has -inf")
    o, L = outs.astype(np.float64, copy=False), lses.astype(np.float64, copy=False)
    if sinks is not None:
        require(L.ndim > 2, f"lses has shape {L.shape}; with sinks it must be (N, ..., H, Sq)")
        sinks = check_sinks(sinks, L.shape[-2])
        # a sink is a part of its own, whose value is 0
        L = np.concatenate([L, np.broadcast_to(sinks[:, None], (1, *L.shape[1:]))])
        o = np.concatenate([o, np.zeros((1, *o.shape[1:]))])
    # eq: R27
    with np.errstate(all="ignore"):
        e, l, m = shifted_exponentials(L, axis=0)  # (N, ..., H, Sq), (1, ..., H, Sq), (1, ..., H, Sq)
        weights = normalise(e, l)
        terms = np.where(L[..., None] == -np.inf, 0, weights[..., None] * o)  # (N, ..., H, Sq, dv)
        out, lse = terms.sum(axis=0), (m + np.log(l))[0]
    return out.astype(outs.dtype, copy=False), lse.astype(lses.dtype, copy=False)


def _stacked(name: str, parts: Any) -> np.ndarray:
    arrays = [as_float(name, x) for x in parts]
    require(arrays, f"{name} is empty; there must be at least one part")
    shapes = {x.shape for x in arrays}
    require(len(shapes) == 1, f"{name} holds parts of different shapes {sorted(shapes)}")
    return np.stack(arrays)


def streamed_names(returns: Any) -> tuple[str, ...]:
    """Check the names of results where no matrix of weights exists."""
    names = result_names(returns)
    for name in names:
        require_one_of("returns", name, ("out", "lse"))
    return names


def streamed_result(call: AttentionCall, out: np.ndarray, lse: np.ndarray, names: tuple[str, ...]) -> AttentionResult:
    """Apply the policy of empty rows, which only the whole row shows, and select the results."""
    empty = (lse == -np.inf)[..., None] & ~padded_queries(call)  # (B, Hq, Sq, 1)
    return select_results(call, AttentionResult(out=fill_empty_rows(call, out, empty), lse=lse), names)


def _blocks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
