"""The scores of retrieval heads once more, straightforwardly, in steps that can be exchanged: for wrong versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interpretability.retrieval_heads import ScoreMap
from refattn.interpretability.retrieval_heads_tasks import Insertion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["averaging", "correlating", "finding", "hitting", "inserting", "overlapping"]


def row_of(attn_rows: np.ndarray, s: int, head: tuple[int, ...]) -> np.ndarray:
    """Return the row of a head at a step."""
    return np.asarray(attn_rows[(s, *head)])


def ranked(row: np.ndarray, k: int) -> list[int]:
    """Return the k keys with the largest weights, the earlier first among equals, without padding."""
    keys = [i for i in range(len(row)) if not np.isnan(row[i])]
    return sorted(keys, key=lambda i: (-row[i], i))[:k]


def asked(generated: np.ndarray, _prompt: np.ndarray, s: int) -> Any:
    """Return the token that a step is about: the one it produced."""
    return generated[s]


def held(prompt: np.ndarray, i: int, token: int) -> bool:
    """Whether the key holds the token."""
    return bool(prompt[i] == token)


def inside(i: int, start: int, end: int, _length: int) -> bool:
    """Whether a key belongs to the needle."""
    return start <= i < end


def counted(matches: list[int], _looks: int) -> list[int]:
    """Return which of a step's matches count: the most attended."""
    return matches[:1]


def worth(_row: np.ndarray, copies: list[int]) -> list[int]:
    """Return the copies of a step that are strong enough: all."""
    return copies


def tally(copies: list[int], _prompt: np.ndarray, *, unique: bool) -> int:
    """Return how often a head copied."""
    return len(set(copies)) if unique else len(copies)


def divisor(start: int, end: int, _steps: int) -> int:
    """Return what a perfect head reaches."""
    return end - start


class HitSteps(NamedTuple):
    """The steps of a retrieval score that can be exchanged."""

    row_of: Callable[..., np.ndarray] = row_of
    ranked: Callable[..., list[int]] = ranked
    asked: Callable[..., Any] = asked
    held: Callable[..., bool] = held
    inside: Callable[..., bool] = inside
    counted: Callable[..., list[int]] = counted
    worth: Callable[..., list[int]] = worth
    tally: Callable[..., int] = tally
    divisor: Callable[..., int] = divisor


def hitting(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return the retrieval score with these steps exchanged."""
    steps = HitSteps(**changes)

    def score(
        attn_rows: np.ndarray,
        generated: np.ndarray,
        prompt: np.ndarray,
        *,
        span: Sequence[int],
        topk: int = 1,
        unique: bool = False,
    ) -> np.ndarray:
        (start, end), length = span, len(prompt)
        out = np.zeros(attn_rows.shape[1:3])
        for head in np.ndindex(*out.shape):
            copies: list[int] = []
            for s in range(len(generated)):
                row = steps.row_of(attn_rows, s, head)
                keys = steps.ranked(row, topk)
                token = steps.asked(generated, prompt, s)
                seen = [i for i in keys if steps.inside(i, start, end, length)]
                matches = [i for i in seen if steps.held(prompt, i, token)]
                copies += steps.worth(row, steps.counted(matches, len(keys)))
            out[head] = steps.tally(copies, prompt, unique=unique) / max(steps.divisor(start, end, len(generated)), 1)
        return out

    return score


def room(length: int, buffer: int) -> int:
    """Return how many tokens text and needle may have."""
    return length - buffer


def cut(context: np.ndarray, m: int, space: int) -> np.ndarray:
    """Return what of the context stays."""
    return context[: max(space - m, 0)] if len(context) + m > space else context


def point(n: int, _m: int, depth: float) -> int:
    """Return where in a context of n tokens a depth lies."""
    return int(n * depth / 100)


def moved(context: np.ndarray, at: int, period_ids: np.ndarray) -> int:
    """Return the nearest end of a sentence before."""
    while at > 0 and context[at - 1] not in period_ids:
        at -= 1
    return at


def moves(depth: float) -> bool:
    """Whether the needle moves to the end of a sentence."""
    return depth != 100


def reported(at: int, _m: int) -> int:
    """Return the place that is reported."""
    return at


class InsertSteps(NamedTuple):
    """The steps of hiding a needle that can be exchanged."""

    room: Callable[..., int] = room
    cut: Callable[..., np.ndarray] = cut
    point: Callable[..., int] = point
    moved: Callable[..., int] = moved
    moves: Callable[..., bool] = moves
    reported: Callable[..., int] = reported


def inserting(**changes: Callable[..., Any]) -> Callable[..., Insertion]:
    """Return the hiding of a needle with these steps exchanged."""
    steps = InsertSteps(**changes)

    def insert(
        context: np.ndarray,
        needle: np.ndarray,
        *,
        period_ids: np.ndarray,
        length: int,
        depth: float,
        buffer: int = 200,
    ) -> Insertion:
        context = steps.cut(context, len(needle), steps.room(length, buffer))
        at = steps.point(len(context), len(needle), depth)
        if steps.moves(depth):
            at = steps.moved(context, at, period_ids)
        return Insertion(
            np.concatenate([context[:at], needle, context[at:]]), np.int64(steps.reported(at, len(needle)))
        )

    return insert


def window(ids: np.ndarray, start: int, m: int) -> np.ndarray:
    """Return the tokens that are compared with the needle."""
    return ids[start : start + m]


def share(seen: np.ndarray, needle: np.ndarray) -> float:
    """Return how much of the needle a window holds."""
    wanted = set(needle.tolist())
    return len(wanted & set(seen.tolist())) / len(wanted)


def found(part: float, threshold: float) -> bool:
    """Whether a window holds enough."""
    return part > threshold


def first(starts: list[int]) -> int:
    """Return which of the windows that hold enough is taken."""
    return starts[0]


def nowhere(_m: int) -> tuple[int, int]:
    """Return the span of what is not there."""
    return -1, -1


class FindSteps(NamedTuple):
    """The steps of finding a needle that can be exchanged."""

    window: Callable[..., np.ndarray] = window
    share: Callable[..., float] = share
    found: Callable[..., bool] = found
    first: Callable[..., int] = first
    nowhere: Callable[..., tuple[int, int]] = nowhere


def finding(**changes: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Return the finding of a needle with these steps exchanged."""
    steps = FindSteps(**changes)

    def find(ids: np.ndarray, needle: np.ndarray, *, threshold: float = 0.9) -> tuple[Any, Any]:
        m = len(needle)
        shares = [steps.share(steps.window(ids, start, m), needle) for start in range(len(ids) - m + 1)]
        starts = [start for start, part in enumerate(shares) if steps.found(part, threshold)]
        start = steps.first(starts) if starts else 0
        at = (start, start + m) if starts else steps.nowhere(m)
        return np.int64(at[0]), np.int64(at[1])

    return find


def matched(wanted: int, said: int) -> int:
    """Return how many of so many occurrences in the answer were said."""
    return min(wanted, said)


def compared_words(_wanted: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Return which of the words that were said are counted."""
    return said


class OverlapSteps(NamedTuple):
    """The steps of counting common words that can be exchanged."""

    compared_words: Callable[..., np.ndarray] = compared_words
    matched: Callable[..., int] = matched


def overlapping(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the count of common words with these steps exchanged."""
    steps = OverlapSteps(**changes)

    def overlap(reference_ids: np.ndarray, generated_ids: np.ndarray) -> Any:
        wanted, said = reference_ids, steps.compared_words(reference_ids, generated_ids)
        hits = sum(steps.matched(int(np.sum(wanted == t)), int(np.sum(said == t))) for t in set(wanted.tolist()))
        return np.int64(hits)

    return overlap


def used(recalls: np.ndarray, min_recall: float) -> np.ndarray:
    """Return which runs count."""
    return np.asarray(recalls > min_recall)


def total(_runs: int, n_used: int) -> int:
    """Return what sums are divided by."""
    return n_used


def active(scores: np.ndarray) -> np.ndarray:
    """Return in which runs a head is active."""
    return np.asarray(scores > 0)


class AverageSteps(NamedTuple):
    """The steps of the average that can be exchanged."""

    used: Callable[..., np.ndarray] = used
    total: Callable[..., int] = total
    active: Callable[..., np.ndarray] = active


def averaging(**changes: Callable[..., Any]) -> Callable[..., ScoreMap]:
    """Return the average over runs with these steps exchanged."""
    steps = AverageSteps(**changes)

    def average(scores: np.ndarray, recalls: np.ndarray, *, min_recall: float = 0.5) -> ScoreMap:
        kept = scores[steps.used(recalls, min_recall)]
        count = max(steps.total(len(scores), len(kept)), 1)
        return ScoreMap(kept.sum(0) / count, steps.active(kept).sum(0) / count, np.int64(len(kept)))

    return average


def centred(a: np.ndarray) -> np.ndarray:
    """Return scores less their mean."""
    return np.asarray(a - a.mean())


def normed(x: np.ndarray) -> np.ndarray:
    """Return centred scores of length one."""
    return np.asarray(x / np.sqrt((x * x).sum()))


def product(x: np.ndarray, y: np.ndarray) -> Any:
    """Return the sum of products."""
    return np.sum(x * y)


def compared(a: np.ndarray) -> np.ndarray:
    """Return what is compared of a map."""
    return a


class CorrelationSteps(NamedTuple):
    """The steps of the correlation that can be exchanged."""

    compared: Callable[..., np.ndarray] = compared
    centred: Callable[..., np.ndarray] = centred
    normed: Callable[..., np.ndarray] = normed
    product: Callable[..., Any] = product


def correlating(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the correlation with these steps exchanged."""
    steps = CorrelationSteps(**changes)

    def correlation(a: np.ndarray, b: np.ndarray) -> Any:
        x, y = (steps.normed(steps.centred(steps.compared(scores))) for scores in (a, b))
        return steps.product(x, y)

    return correlation
