"""Attention written out: five nested loops over batch, head, query, key and channel, sums exact by ``math.fsum``.

Equation source: the pipeline of the attention page. It shares with `attention.attention` only the checks of the
arguments; visibility, softmax and the policies of empty rows are derived a second time, one number at a time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np

from refattn.primitives.attention import AttentionResult, result_names, select_results
from refattn.primitives.attention_arguments import AttentionCall, AttentionOptions, check_attention

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["attention_loop"]

INF = math.inf


def attention_loop(
    q: Any, k: Any, v: Any, *, returns: Any = ("out",), **options: Unpack[AttentionOptions]
) -> AttentionResult:
    """Compute attention one number at a time: the second derivation, slow and hard to get wrong.

    Parameters
    ----------
    q, k, v : array_like, shape (B, Hq, Sq, d), (B, Hkv, Sk, d), (B, Hkv, Sk, dv)
        Queries, keys and values.
    returns : str, or sequence of str
        Which fields of the result to fill.
    **options
        As in `attention.attention`.

    Returns
    -------
    AttentionResult
        Equal to that of `attention.attention` up to rounding.

    Raises
    ------
    ValueError, TypeError
        As in `attention.attention`.

    Notes
    -----
    What a query cannot see is never read into its sums, so changing it changes no bit of the row.
    """
    names = result_names(returns)
    call = check_attention(q, k, v, **options)
    batch, heads, sq, sk = call.shape
    pairs = {name: np.empty((batch, heads, sq, sk)) for name in ("weights", "logits", "scores", "softcapped")}
    out, lse = np.empty((batch, heads, sq, call.v.shape[3])), np.empty((batch, heads, sq))
    result = AttentionResult(out=out, lse=lse, **pairs)
    for b in range(batch):
        for h in range(heads):
            for i in range(sq):
                row = _row(call, b, h, i)
                for name, values in row._asdict().items():
                    getattr(result, name)[b, h, i] = values
    return select_results(call, result, names)


class _Row(NamedTuple):
    """The results of one query."""

    scores: list[float]
    softcapped: list[float]
    logits: list[float]
    weights: list[float]
    lse: float
    out: list[float]


def _row(call: AttentionCall, b: int, h: int, i: int) -> _Row:
    # eq: R20
    kv = h // call.group
    keys, values = call.k[b, kv].tolist(), call.v[b, kv].tolist()  # (Sk, d), (Sk, dv)
    query, sk = call.q[b, h, i].tolist(), len(keys)
    s, t, z = [0.0] * sk, [0.0] * sk, [-INF] * sk
    seen = [j for j in range(sk) if _visible(call, b, h, i, j)]
    for j in range(sk):
        # eq: R4
        s[j] = call.scale * _sum(query[c] * keys[j][c] for c in range(len(query)))
        # eq: R18
        t[j] = s[j] if call.softcap is None else call.softcap * math.tanh(s[j] / call.softcap)
    for j in seen:
        # eq: R7 R19
        z[j] = t[j] + _bias(call, b, h, i, j) - _penalty(call, b, h, i, j)
    sink = -INF if call.sinks is None else float(call.sinks[h])
    weights, lse = _softmax([z[j] for j in seen], sink)
    P = [0.0] * sk
    for j, weight in zip(seen, weights, strict=True):
        P[j] = weight
    fill = 0.0 if seen or sink > -INF else _fill(call, b, i)
    # eq: R22
    if fill != 0:
        P, seen = [fill] * sk, list(range(sk))
    channels = range(call.v.shape[3])
    o = [fill if math.isnan(fill) else _sum(P[j] * values[j][c] for j in seen) for c in channels]
    return _Row(s, t, z, P, lse, o)


def _softmax(z: list[float], sink: float) -> tuple[list[float], float]:
    """Return the weights and the log-sum-exp of visible logits and a sink; without either, −∞."""
    if any(map(math.isnan, z)):
        return [math.nan] * len(z), math.nan
    m = max([*z, sink])
    if m == -INF:
        return [0.0] * len(z), -INF
    # eq: R21
    e = [math.exp(x - m) for x in z]
    l = _sum([*e, math.exp(sink - m)])
    # eq: R25
    return [x / l for x in e], m + math.log(l)


def _visible(call: AttentionCall, b: int, h: int, i: int, j: int) -> bool:
    rules, p = call.rules, _position(call, b, i)
    inside = j < _count(rules.kv_lengths, b, rules.sk) and i < _count(rules.q_lengths, b, rules.sq)
    near = (rules.left is None or p - j <= rules.left) and (rules.right is None or j - p <= rules.right)
    past = not rules.causal or p >= j or j < _count(rules.prefix, b, 0)
    same_document = rules.doc_q is None or _entry(rules.doc_q, b, i) == _entry(rules.doc_k, b, j)
    same_chunk = rules.chunk is None or math.floor(p / rules.chunk) == math.floor(j / rules.chunk)
    allowed = rules.mask is None or bool(_entry(rules.mask, b, h, i, j))
    return inside and near and past and same_document and same_chunk and allowed and _bias(call, b, h, i, j) != -INF


def _position(call: AttentionCall, b: int, i: int) -> int:
    rules = call.rules
    # eq: R10
    if isinstance(rules.align, str):
        last = _count(rules.kv_lengths, b, rules.sk) - _count(rules.q_lengths, b, rules.sq)
        return i + (last if rules.align == "bottom_right" else 0)
    return i + _count(rules.align, b, 0)


def _bias(call: AttentionCall, b: int, h: int, i: int, j: int) -> float:
    return 0.0 if call.bias is None else float(_entry(call.bias, b, h, i, j))


def _penalty(call: AttentionCall, b: int, h: int, i: int, j: int) -> float:
    return 0.0 if call.slopes is None else float(_entry(call.slopes, b, h)) * abs(_position(call, b, i) - j)


def _fill(call: AttentionCall, b: int, i: int) -> float:
    """Return the weight of every key in an empty row; a padded query gives 0 whatever the policy."""
    if call.empty == "zero" or i >= _count(call.rules.q_lengths, b, call.rules.sq):
        return 0.0
    return math.nan if call.empty == "nan" else 1 / max(call.rules.sk, 1)


def _count(counts: np.ndarray | None, b: int, default: int) -> int:
    return default if counts is None else int(_entry(counts, b))


def _entry(array: Any, *index: int) -> Any:
    """Return one entry of an array whose axes of length 1 are broadcast."""
    return array[tuple(0 if n == 1 else at for at, n in zip(index, array.shape, strict=True))]


def _sum(terms: Iterable[float]) -> float:
    terms = list(terms)
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):  # infinities of both signs, or beyond the range: IEEE's own answer
        return sum(terms)
