"""Retrieval heads: which heads look up what a long context says, and copy it (2404.15574).

A sentence, the needle, is hidden in a long text, and the model is asked for it. A head that looks at a word of the
needle at the very step at which the model says that word has copied it; the share of the needle that a head copies is
its retrieval score. The tasks stand in `refattn.interpretability.retrieval_heads_tasks`, the runs of a model in
`refattn.interpretability.retrieval_heads_detection`, the test by masking in
`refattn.interpretability.retrieval_heads_masking`. Equation labels (rh-…) are those of the page.
"""

from __future__ import annotations

from collections import Counter
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_finite
from refattn.primitives.selection import top_k

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ScoreMap",
    "average_scores",
    "copied_positions",
    "count_copies",
    "rank_heads",
    "retrieval_hits",
    "score_correlation",
    "select_heads",
    "unigram_overlap",
    "unigram_recall",
]


class ScoreMap(NamedTuple):
    """Mean score (L, H) of each head, how often it was above zero (L, H), and over how many runs both were taken."""

    mean: Any
    activation: Any
    n_used: Any


def retrieval_hits(
    attn_rows: Any, generated: Any, prompt: Any, span: Sequence[int], *, topk: int = 1, unique: bool = False
) -> np.ndarray:
    """Score every head by the share of the needle that it copied.

    Parameters
    ----------
    attn_rows : array_like, shape (S, L, H, K)
        Attention of the last query at each of S steps of generation: the row that step's token was computed from. Step
        s has P + s keys or fewer; what lies beyond is NaN.
    generated : array_like of int, shape (S,)
        The token each step produced.
    prompt : array_like of int, shape (P,)
        What the model was given.
    span : (int, int)
        Where the needle stands in the prompt, its end excluded; (−1, −1) for nowhere.
    topk : int
        How many of a row's largest weights count as looked at.
    unique : bool
        Count each position of the needle once, however often it is copied.

    Returns
    -------
    ndarray, shape (L, H)
        In the dtype of the rows; at most 1 with ``unique``.

    Raises
    ------
    ValueError
        For a span that is empty or outside the prompt, another number of tokens than rows, or ``topk`` below 1.

    Notes
    -----
    Paper and code differ: the paper's score is |g ∩ k|/|k|, with g the *set* of tokens a head copied and k the needle
    [recalled]; the code counts every step, so a model that repeats itself gives scores above 1 (the published ones
    reach 1.79). ``unique`` counts positions, not tokens [our definition].

    A row's token is the one it *predicts*: the query is the token before. Among equal weights the lowest key counts
    [our definition]; the code leaves the order to ``torch.topk``.

    References
    ----------
    2404.15574; nightdessert/Retrieval_Head, ``retrieval_calculate``.
    """
    attn_rows = as_float("attn_rows", attn_rows, ndim=4)
    copied = copied_positions(attn_rows, generated, prompt, span, topk=topk)
    return count_copies(copied, span, unique=unique).astype(attn_rows.dtype, copy=False)


def copied_positions(attn_rows: Any, generated: Any, prompt: Any, span: Sequence[int], *, topk: int = 1) -> np.ndarray:
    """Return which position of the needle each head copied at each step.

    Parameters
    ----------
    attn_rows, generated, prompt, span, topk
        As in `retrieval_hits`.

    Returns
    -------
    ndarray of int, shape (S, L, H)
        The most attended of the ``topk`` keys that lies in the needle and holds the token that was produced; −1 where
        none does.

    Raises
    ------
    ValueError
        As `retrieval_hits`.
    """
    attn_rows = as_float("attn_rows", attn_rows, ndim=4)
    generated, prompt = as_integer("generated", generated, ndim=1), as_integer("prompt", prompt, ndim=1)
    steps, keys_seen = attn_rows.shape[0], attn_rows.shape[-1]
    require(len(generated) == steps, f"generated has length {len(generated)}, expected {steps}, one for each row")
    require(index(topk) >= 1, f"topk={topk!r} must be at least 1")
    start, end = _checked_span(span, len(prompt))
    # eq: rh-look
    weight, key = top_k(attn_rows, k=min(topk, keys_seen))  # (S, L, H, k)
    # eq: rh-copy
    inside = (key >= start) & (key < end) & ~np.isnan(weight)
    said = np.zeros(key.shape, dtype=bool)
    said[inside] = prompt[key[inside]] == np.broadcast_to(generated[:, None, None, None], key.shape)[inside]
    copied: np.ndarray = np.full(key.shape[:-1], -1, dtype=np.int64)  # (S, L, H)
    for rank in reversed(range(key.shape[-1])):  # so that the most attended has the last word
        copied = np.where(said[..., rank], key[..., rank], copied)
    return copied


def count_copies(copied: Any, span: Sequence[int], *, unique: bool = False) -> np.ndarray:
    """Return the retrieval score of each head, given what it copied.

    Parameters
    ----------
    copied : array_like of int, shape (S, L, H)
        Positions, from `copied_positions`.
    span : (int, int)
        Where the needle stands.
    unique : bool
        Count each position once.

    Returns
    -------
    ndarray, shape (L, H)
        Copies per token of the needle; 0 for the span (−1, −1).

    Raises
    ------
    ValueError
        For an empty span.
    """
    copied = as_integer("copied", copied, ndim=3)
    start, end = (index(at) for at in span)
    require(start < end or (start, end) == (-1, -1), f"span={(start, end)} must be (-1, -1) or not empty")
    hits = np.zeros(copied.shape[1:])
    for position in range(start, end):
        times = np.sum(copied == position, axis=0)  # (L, H)
        hits += np.minimum(times, 1) if unique else times
    # eq: rh-score
    return hits / max(end - start, 1)


def unigram_overlap(reference_ids: Any, generated_ids: Any) -> Any:
    """Return how many tokens two texts have in common, each as often as both have it.

    Parameters
    ----------
    reference_ids, generated_ids : array_like of int, shape (m,) and (n,)
        Two texts.

    Returns
    -------
    int
        At most the length of either.
    """
    reference_ids = as_integer("reference_ids", reference_ids, ndim=1)
    generated_ids = as_integer("generated_ids", generated_ids, ndim=1)
    # eq: rh-overlap
    shared = Counter(reference_ids.tolist()) & Counter(generated_ids.tolist())
    return np.int64(shared.total())


def unigram_recall(reference_ids: Any, generated_ids: Any) -> float:
    """Return the share of the reference's tokens that the generated text holds, each as often as it occurs.

    Parameters
    ----------
    reference_ids : array_like of int, shape (m,)
        The answer; at least one token.
    generated_ids : array_like of int, shape (n,)
        What the model said.

    Returns
    -------
    float
        Between 0 and 1, and 1 if every token of the answer was said as often as the answer has it.

    Raises
    ------
    ValueError
        For an empty reference.

    Notes
    -----
    The code takes ROUGE-1 recall of *words*, stemmed; tokens have no stems.
    """
    m = len(as_integer("reference_ids", reference_ids, ndim=1))
    require(m > 0, "reference_ids is empty: the recall of no token is undefined")
    # eq: rh-recall
    return float(unigram_overlap(reference_ids, generated_ids) / m)


def average_scores(scores: Any, recalls: Any, *, min_recall: float = 0.5) -> ScoreMap:
    """Average the scores of the runs in which the model found the needle.

    Parameters
    ----------
    scores : array_like, shape (N, L, H)
        Retrieval scores of N runs.
    recalls : array_like, shape (N,)
        How much of the needle each run said.
    min_recall : float
        A run counts if its recall exceeds this.

    Returns
    -------
    ScoreMap
        All zeros if no run counts [our definition].

    Raises
    ------
    ValueError
        For another number of recalls than runs, and ``min_recall`` outside [0, 1).

    Notes
    -----
    The activation frequency is the share of counted runs in which a head's score is above zero; the formula is
    inferred, and gives the paper's twelve heads of Llama-2-7B that are always active.
    """
    scores, recalls = as_float("scores", scores, ndim=3), as_float("recalls", recalls, ndim=1)
    require(len(scores) == len(recalls), f"recalls has length {len(recalls)}, expected {len(scores)}, one for each run")
    require(0 <= min_recall < 1, f"min_recall={min_recall!r} must lie in [0, 1)")
    used = scores[recalls > min_recall]  # (n, L, H)
    count = max(len(used), 1)
    # eq: rh-mean
    mean = np.sum(used, axis=0) / count  # (L, H)
    # eq: rh-active
    activation = (np.sum(used > 0, axis=0) / count).astype(scores.dtype)  # (L, H)
    return ScoreMap(mean, activation, np.int64(len(used)))


def rank_heads(mean: Any) -> tuple[tuple[int, int], ...]:
    """Return all heads (layer, head), the highest score first; among equals the earlier one."""
    mean = as_float("mean", mean, ndim=2)
    _, order = top_k(np.reshape(mean, -1), k=mean.size)
    return tuple((int(i) // mean.shape[1], int(i) % mean.shape[1]) for i in order)


def select_heads(mean: Any, *, threshold: float = 0.1) -> tuple[tuple[int, int], ...]:
    """Return the retrieval heads, those of a mean score of at least ``threshold`` in (0, 1], the highest first.

    The threshold of 0.1 is the paper's [recalled]; from 0.5 on we call a head strong [our definition].
    """
    require(0 < threshold <= 1, f"threshold={threshold!r} must lie in (0, 1]")
    mean = as_float("mean", mean, ndim=2)
    return tuple(head for head in rank_heads(mean) if mean[head] >= threshold)


def score_correlation(a: Any, b: Any) -> Any:
    """Return Pearson's correlation of two score maps: how far two models use the same heads.

    Parameters
    ----------
    a, b : array_like, shape (L, H)
        Mean scores of two models of one shape.

    Returns
    -------
    float
        Between −1 and 1.

    Raises
    ------
    ValueError
        For maps of different shapes, numbers that are not finite, and a map that is the same everywhere, which
        correlates with nothing.

    Notes
    -----
    The paper compares pictures of the maps; the statistic is ours [our definition].
    """
    a, b = as_float("a", a), as_float("b", b)
    require(a.shape == b.shape, f"b has shape {b.shape}, expected {a.shape} as a")
    for name, scores in (("a", a), ("b", b)):
        require_finite(name, scores)
        require(scores.size and np.any(scores != scores.flat[0]), f"{name} is constant: its correlation is undefined")
    # eq: rh-pearson
    x, y = a - np.mean(a), b - np.mean(b)
    return np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y))


def _checked_span(span: Sequence[int], length: int) -> tuple[int, int]:
    """Return a span of a prompt of so many tokens as two integers: (−1, −1), or inside it and not empty."""
    start, end = (index(at) for at in span)
    inside = 0 <= start < end <= length
    require(
        inside or (start, end) == (-1, -1),
        f"span={(start, end)} must be (-1, -1) or not empty and inside the prompt of {length} tokens",
    )
    return start, end
