"""The analysis once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "accumulating",
    "aggregating",
    "comparing",
    "correlating",
    "deleting",
    "difference",
    "divergence",
    "min_max",
    "pooling",
    "standardising",
]


def terms(p: np.ndarray, q: np.ndarray) -> Any:
    """Weigh the log ratio of each word of the vocabulary by its probability."""
    ratio = np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0)
    return p * np.log(ratio)


def gather(t: np.ndarray) -> Any:
    """Add over the vocabulary."""
    return t.sum(axis=-1)


def lost(p: np.ndarray, q: np.ndarray, target: np.ndarray) -> Any:
    """Compare the probabilities of the written words."""
    i = np.arange(len(target))
    return p[i, target] - q[:, i, target]


def hidden(m: np.ndarray) -> Any:
    """Count what a mask hides."""
    return 1.0 - m


def average(s: np.ndarray, h: np.ndarray) -> Any:
    """Divide the scores that fall on an element by how often it was hidden."""
    return (s.T @ h) / np.maximum(h.sum(axis=0), 1.0)


def seen(saliency: np.ndarray, *, causal: bool) -> Any:
    """Leave to each word itself and what came before."""
    return np.tril(saliency) if causal else saliency


def standard(row: np.ndarray) -> Any:
    """Take the mean away and divide by the sample deviation."""
    if row.max() == row.min():
        return 0.0 * row
    return (row - row.mean()) / row.std(ddof=1)


def each_word(rows: np.ndarray, one: Callable[..., Any]) -> Any:
    """Treat each word by itself."""
    return np.stack([one(row) for row in rows])


def visible_words(rows: np.ndarray, one: Callable[..., Any]) -> Any:
    """Treat what each word sees of the words; the rest is 0."""
    out = np.zeros_like(rows)
    for i in range(len(rows)):
        out[i, : i + 1] = one(rows[i, : i + 1])
    return out


def ends(row: np.ndarray, words: np.ndarray) -> tuple[Any, Any]:
    """Find the ends of both maps of a word together."""
    both = np.concatenate([row, words])
    return both.min(), both.max()


def scaled(row: np.ndarray, low: Any, high: Any) -> Any:
    """Bring the ends to 0 and 1."""
    return (row - low) / (high - low) if high > low else 0.0 * row


def see_words(words: np.ndarray, i: int) -> Any:
    """Show word i the words up to itself."""
    return words[: i + 1]


def choose(attention: np.ndarray, layers: list[int], heads: list[int]) -> Any:
    """Take the chosen layers and heads."""
    return attention[..., layers, :, :, :][..., heads, :, :]


def merge(chosen: np.ndarray) -> Any:
    """Average over layers and heads."""
    return chosen.mean(axis=(-4, -3))


def windows(T: int, n: int) -> list[tuple[int, int]]:
    """Cover the frames evenly."""
    return [(j * T // n, -(-(j + 1) * T // n)) for j in range(n)]


def pool(window: np.ndarray, how: str) -> Any:
    """Pool frames and bands."""
    return window.max(axis=(-2, -1)) if how == "max" else window.mean(axis=(-2, -1))


def level(a: np.ndarray) -> Any:
    """Standardise each row; rows that do not vary are 0."""
    varies = a.max(axis=-1, keepdims=True) > a.min(axis=-1, keepdims=True)
    spread = np.where(varies, a.std(axis=-1, ddof=1, keepdims=True), 1.0)
    return np.where(varies, (a - a.mean(axis=-1, keepdims=True)) / spread, 0.0)


def agreement(x: np.ndarray, y: np.ndarray) -> Any:
    """Divide the product by the norms."""
    norms = np.sqrt((x * x).sum(axis=(-2, -1)) * (y * y).sum(axis=(-2, -1)))
    return (x * y).sum(axis=(-2, -1)) / np.where(norms > 0, norms, 1.0)


def squared(rho: Any) -> Any:
    """Square the correlation."""
    return rho * rho


def histogram(a: np.ndarray) -> Any:
    """Begin at 0 and sum to 1, row by row."""
    above = a - a.min(axis=-1, keepdims=True)
    total = above.sum(axis=-1, keepdims=True)
    return above / np.where(total > 0, total, 1.0)


def common(f: np.ndarray, g: np.ndarray) -> Any:
    """Average over words what both histograms have."""
    return np.minimum(f, g).sum(axis=-1).mean(axis=-1)


def sentence(saliency: np.ndarray) -> Any:
    """Average over words."""
    return saliency.mean(axis=0)


def low_to_high(flat: np.ndarray) -> Any:
    """Sort, equal elements in their order."""
    return np.argsort(flat, kind="stable")


def how_many(N: int, percent: int) -> int:
    """Round down."""
    return N * percent // 100


def keep(order: np.ndarray, n: int, *, insertion: bool) -> Any:
    """Delete the last n of the order, or keep them alone."""
    last = np.zeros(len(order), dtype=bool)
    last[order[len(order) - n :]] = True
    return last if insertion else ~last


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    terms: Callable[..., Any] = terms
    gather: Callable[..., Any] = gather
    lost: Callable[..., Any] = lost
    hidden: Callable[..., Any] = hidden
    average: Callable[..., Any] = average
    seen: Callable[..., Any] = seen
    standard: Callable[..., Any] = standard
    each_word: Callable[..., Any] = each_word
    visible_words: Callable[..., Any] = visible_words
    ends: Callable[..., Any] = ends
    scaled: Callable[..., Any] = scaled
    see_words: Callable[..., Any] = see_words
    choose: Callable[..., Any] = choose
    merge: Callable[..., Any] = merge
    windows: Callable[..., Any] = windows
    pool: Callable[..., Any] = pool
    level: Callable[..., Any] = level
    agreement: Callable[..., Any] = agreement
    squared: Callable[..., Any] = squared
    histogram: Callable[..., Any] = histogram
    common: Callable[..., Any] = common
    sentence: Callable[..., Any] = sentence
    low_to_high: Callable[..., Any] = low_to_high
    how_many: Callable[..., Any] = how_many
    keep: Callable[..., Any] = keep


def divergence(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the scores with these steps exchanged."""
    steps = Steps(**changes)
    return lambda p, q: steps.gather(steps.terms(p, q))


def difference(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the other scores with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(p: np.ndarray, q: np.ndarray, target: np.ndarray) -> Any:
        return steps.lost(p, q, target)

    return wrong


def accumulating(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the accumulation with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(scores: np.ndarray, masks: np.ndarray, *, causal: bool = False) -> Any:
        flat = masks.reshape(len(masks), int(np.prod(masks.shape[1:]))).astype(float)
        saliency = steps.average(scores, steps.hidden(flat))
        return steps.seen(saliency, causal=causal).reshape(scores.shape[1], *masks.shape[1:])

    return wrong


def standardising(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the first normaliser with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(saliency: np.ndarray, decoder_map: np.ndarray) -> Any:
        I = len(saliency)
        rows = steps.each_word(saliency.reshape(I, -1), steps.standard)
        words = steps.visible_words(decoder_map.reshape(I, I), steps.standard)
        return rows.reshape(saliency.shape), words.reshape(decoder_map.shape)

    return wrong


def min_max(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the second normaliser with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(saliency: np.ndarray, decoder_map: np.ndarray) -> Any:
        I = len(saliency)
        rows, words = saliency.reshape(I, -1).copy(), decoder_map.reshape(I, I).copy()
        for i in range(I):
            ends_of_word = steps.ends(rows[i], steps.see_words(words[i], i))
            rows[i] = steps.scaled(rows[i], *ends_of_word)
            shown = steps.see_words(steps.scaled(words[i], *ends_of_word), i)
            words[i] = np.concatenate([shown, np.zeros(I - len(shown))])
        return rows.reshape(saliency.shape), words.reshape(decoder_map.shape)

    return wrong


def aggregating(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the aggregation with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        attention: np.ndarray, *, layers: int | Sequence[int] | None = None, heads: int | Sequence[int] | None = None
    ) -> Any:
        chosen = [
            list(range(count)) if numbers is None else [numbers] if isinstance(numbers, int) else list(numbers)
            for numbers, count in ((layers, attention.shape[-4]), (heads, attention.shape[-3]))
        ]
        return steps.merge(steps.choose(attention, *chosen))

    return wrong


def pooling(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the pooling with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(saliency: np.ndarray, *, n_frames: int, how: str = "max") -> Any:
        spans = steps.windows(saliency.shape[-2], n_frames)
        return np.stack([steps.pool(saliency[..., begin:end, :], how) for begin, end in spans], axis=-1)

    return wrong


def correlating(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the correlation with these steps exchanged."""
    steps = Steps(**changes)
    return lambda a, b: steps.agreement(steps.level(a), steps.level(b))


def comparing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the shares with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(attention: np.ndarray, saliency: np.ndarray, *, how: str = "pearson") -> Any:
        if how == "overlap":
            return steps.common(steps.histogram(attention), steps.histogram(saliency))
        rho = steps.agreement(steps.level(attention), steps.level(saliency))
        return rho if how == "pearson" else steps.squared(rho)

    return wrong


def deleting(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the deletion with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(saliency: np.ndarray, *, step: int = 5, insertion: bool = False) -> Any:
        flat = steps.sentence(saliency).reshape(-1)
        order = steps.low_to_high(flat)
        counts = [steps.how_many(flat.size, percent) for percent in range(0, 101, step)]
        kept = np.stack([steps.keep(order, n, insertion=insertion) for n in counts])
        return kept.reshape(-1, *saliency.shape[1:])

    return wrong
