"""Retrieval scores, needles and score maps in the array-API standard, by another route than the reference.

Nothing is sorted and nothing is searched: a key's rank is the number of keys before it, every window of a text is
compared at once, and the end of a sentence before a place is a maximum. So all of it can be traced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.interpretability.retrieval_heads import ScoreMap
from refattn.interpretability.retrieval_heads_tasks import Insertion

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "average_scores",
    "find_span",
    "insert_needle",
    "retrieval_hits",
    "score_correlation",
    "unigram_overlap",
]


def retrieval_hits(
    attn_rows: Any, generated: Any, prompt: Any, span: Sequence[int], *, topk: int = 1, unique: bool = False
) -> Any:
    """Rank only the keys of the needle, against all others."""
    xp = array_namespace(attn_rows)
    start, end = span
    rows = xp.where(
        xp.isnan(attn_rows), xp.asarray(-xp.inf, dtype=attn_rows.dtype, device=device(attn_rows)), attn_rows
    )
    if end <= start:
        return xp.zeros(rows.shape[1:3], dtype=rows.dtype, device=device(rows))
    keys = xp.arange(rows.shape[-1], device=device(rows))
    place = keys[start:end]  # (m,)
    own = rows[..., start:end]  # (S, L, H, m)
    above = rows[..., None, :] > own[..., None]  # (S, L, H, m, K)
    equal = (rows[..., None, :] == own[..., None]) & (keys < place[:, None])
    rank = xp.sum(xp.astype(above | equal, xp.int32), axis=-1)  # (S, L, H, m)
    said = (prompt[start:end] == generated[:, None])[:, None, None, : own.shape[-1]]  # (S, 1, 1, m)
    hit = said & (rank < topk) & (own > -xp.inf)
    # the best ranked match of a step: no other has a lower rank
    blocked = xp.any(hit[..., None, :] & (rank[..., None, :] < rank[..., None]), axis=-1)
    copied = hit & ~blocked
    copies = xp.any(copied, axis=0) if unique else xp.sum(xp.astype(copied, rows.dtype), axis=0)  # (L, H, m)
    return xp.sum(xp.astype(copies, rows.dtype), axis=-1) / (end - start)


def find_span(ids: Any, needle: Any, *, threshold: float = 0.9) -> tuple[Any, Any]:
    """Compare all windows with the needle at once."""
    xp = array_namespace(ids, needle)
    m, count = needle.shape[0], ids.shape[0] - needle.shape[0] + 1
    if count < 1:
        nowhere = xp.asarray(-1, device=device(ids))
        return nowhere, nowhere
    index = np.arange(count)[:, None] + np.arange(m)
    windows = xp.reshape(xp.take(ids, xp.asarray(index.reshape(-1), device=device(ids))), (count, m))
    new = _seen_before(needle) == 0  # (m,): the first of its kind
    held = xp.any(windows[:, :, None] == needle, axis=1) & new  # (W, m)
    # how many of n distinct tokens exceed the threshold, decided in double precision whatever the library's default
    enough = [next((c for c in range(n + 1) if c / max(n, 1) > threshold), m + 1) for n in range(m + 1)]
    needed = xp.asarray(np.array(enough), device=device(ids))[xp.sum(xp.astype(new, xp.int32))]
    found = xp.astype(xp.sum(xp.astype(held, xp.int32), axis=-1) >= needed, xp.int32)  # (W,)
    start = xp.where(xp.any(found == 1), xp.argmax(found), xp.asarray(-1, device=device(ids)))
    return start, xp.where(start < 0, start, start + m)


def insert_needle(
    context: Any, needle: Any, *, length: int, depth: float, period_ids: Any, buffer: int = 200
) -> Insertion:
    """Say for every place of the result where its token comes from."""
    xp = array_namespace(context, needle)
    m = needle.shape[0]
    n = min(context.shape[0], length - buffer - m)
    places = xp.arange(n + m, device=device(context))
    at = xp.asarray(n, dtype=places.dtype, device=device(context))
    if depth != 100:
        reach = int(n * depth / 100)
        ends = xp.any(context[:reach, None] == period_ids, axis=-1)
        zero = xp.zeros((1,), dtype=places.dtype, device=device(context))
        at = xp.max(xp.concat([zero, xp.where(ends, places[:reach] + 1, places[:reach] * 0)]))
    # the context comes first in the pool, the needle after it
    after = xp.where(places < at + m, places - at + n, places - m)
    pool = xp.concat([context[:n], needle])
    return Insertion(xp.take(pool, xp.where(places < at, places, after)), at)


def unigram_overlap(reference_ids: Any, generated_ids: Any) -> Any:
    """Look for each token of the answer beyond as many as came before it."""
    xp = array_namespace(reference_ids, generated_ids)
    said = xp.sum(xp.astype(reference_ids[:, None] == generated_ids, xp.int32), axis=-1)  # (m,)
    return xp.sum(xp.astype(said > _seen_before(reference_ids), xp.int32))


def average_scores(scores: Any, recalls: Any, *, min_recall: float = 0.5) -> ScoreMap:
    """Weigh every run with one or zero."""
    xp = array_namespace(scores, recalls)
    used = recalls > min_recall  # (N,)
    n_used = xp.sum(xp.astype(used, xp.int32))
    count = xp.astype(xp.maximum(n_used, xp.ones_like(n_used)), scores.dtype)
    weights = used[:, None, None]
    kept = xp.where(weights, scores, xp.zeros_like(scores))  # (N, L, H)
    active = xp.astype(weights & (scores > 0), scores.dtype)
    return ScoreMap(xp.sum(kept, axis=0) / count, xp.sum(active, axis=0) / count, n_used)


def score_correlation(a: Any, b: Any) -> Any:
    """Multiply two maps of mean 0 and length 1."""
    xp = array_namespace(a, b)
    return xp.sum(_unit(a) * _unit(b))


def _unit(a: Any) -> Any:
    xp = array_namespace(a)
    x = a - xp.mean(a)
    return x / xp.sqrt(xp.sum(x * x))


def _seen_before(tokens: Any) -> Any:
    """Return how often each token occurred before its place."""
    xp = array_namespace(tokens)
    places = xp.arange(tokens.shape[0], device=device(tokens))
    earlier = (tokens[:, None] == tokens) & (places < places[:, None])
    return xp.sum(xp.astype(earlier, xp.int32), axis=-1)
