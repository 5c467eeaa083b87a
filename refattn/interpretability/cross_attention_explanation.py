"""Is cross-attention an explanation? Compare where a decoder looks with what its words depend on (2509.18010).

Cross-attention, averaged over heads and layers, is one map over the encoder's frames; occlusion gives another, at the
encoder's output or at the input. How well the two agree, word by word, says how much of the dependence attention
accounts for. The maps are made in the other modules of this name; here they are brought to one shape and compared.
Equation labels (ce-1) and (ce-8) to (ce-11) are those of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.interpretability.cross_attention_explanation_deletion import (
    DeletionCurve,
    SizeCurve,
    deletion_curve,
    deletion_masks,
    size_curve,
    spread_over_input,
)
from refattn.interpretability.cross_attention_explanation_normalizers import (
    mean_std_normalize,
    paired_min_max,
    standardise_rows,
)
from refattn.interpretability.cross_attention_explanation_occlusion import (
    exact_occlusion_saliency,
    occlusion_masks,
    segment_count,
    spes,
)
from refattn.interpretability.cross_attention_explanation_planted import PlantedSpeech, planted_speech
from refattn.interpretability.cross_attention_explanation_scores import (
    accumulate_saliency,
    kl_scores,
    target_difference,
)
from refattn.primitives.arguments import as_float, require, require_one_of, require_shape
from refattn.primitives.pooling import adaptive_avg_pool2d, adaptive_max_pool2d

__all__ = [
    "DeletionCurve",
    "MixingGap",
    "PlantedSpeech",
    "SizeCurve",
    "accumulate_saliency",
    "aggregate_attention",
    "context_mixing_gap",
    "deletion_curve",
    "deletion_masks",
    "exact_occlusion_saliency",
    "kl_scores",
    "mean_std_normalize",
    "occlusion_masks",
    "paired_min_max",
    "planted_speech",
    "pool_saliency",
    "row_pearson",
    "saliency_share",
    "segment_count",
    "size_curve",
    "spes",
    "spread_over_input",
    "standardise_rows",
    "target_difference",
]


class MixingGap(NamedTuple):
    """What attention loses between the encoder's output and the input.

    Attributes
    ----------
    encoder, input : float
        Correlation of attention with the saliency of the encoder's frames, and of the input's.
    gap, relative : float
        Their difference, and its share of the first (NaN if that is 0).
    """

    encoder: float
    input: float
    gap: float
    relative: float


def aggregate_attention(
    attention: Any, *, layers: int | Sequence[int] | None = None, heads: int | Sequence[int] | None = None
) -> np.ndarray:
    """Return the mean of cross-attention over layers and heads.

    Parameters
    ----------
    attention : array_like, shape (..., L, H, I, T')
        CA: one row of weights over the encoder's frames for each layer, head and word.
    layers, heads : int or sequence of int, optional
        Which ones; all of them if not given. Negative numbers count from the end.

    Returns
    -------
    ndarray, shape (..., I, T')
        Its rows sum to 1 if those of ``attention`` do.

    Raises
    ------
    ValueError
        If there are fewer than four axes, nothing is selected, or a number is out of range or given twice.

    References
    ----------
    2509.18010; the plain mean is taken from public summaries of the paper.
    """
    attention = as_float("attention", attention)
    shape = attention.shape
    require(attention.ndim >= 4, f"attention has shape {shape}, expected (..., L, H, I, T')")
    chosen = attention[..., _chosen("layers", layers, shape[-4]), :, :, :]
    chosen = chosen[..., _chosen("heads", heads, shape[-3]), :, :]
    # eq: ce-1
    return np.asanyarray(chosen.mean(axis=(-4, -3)))  # (..., I, T')


def pool_saliency(saliency: Any, n_frames: int, *, how: str = "max") -> np.ndarray:
    """Bring a map over the input to the encoder's frames: pool its T frames into T' windows, over all bands.

    Parameters
    ----------
    saliency : array_like, shape (..., I, T, F)
        Saliency of input elements; F = 1 for masks of whole frames.
    n_frames : int
        T' ≤ T.
    how : {"max", "mean"}
        The maximum was the paper's best choice.

    Returns
    -------
    ndarray, shape (..., I, T')

    Raises
    ------
    ValueError
        If T' is not in 1 … T, or the map is empty or has fewer than three axes.

    Notes
    -----
    Where T' does not divide T, window j covers frames ⌊jT/T'⌋ to ⌈(j + 1)T/T'⌉ − 1; neighbours may share one
    [our definition].
    """
    saliency = as_float("saliency", saliency)
    require_one_of("how", how, ("max", "mean"))
    require(saliency.ndim >= 3, f"saliency has shape {saliency.shape}, expected (..., I, T, F)")
    require(saliency.size > 0, f"saliency has shape {saliency.shape}: I = 0 words, or no elements, are no map")
    T = saliency.shape[-2]
    require(1 <= index(n_frames) <= T, f"n_frames={n_frames!r} must be at least 1 and at most the T = {T} of saliency")
    pool = adaptive_max_pool2d if how == "max" else adaptive_avg_pool2d
    # eq: ce-8
    return pool(saliency[..., None], size=(n_frames, 1))[..., 0, 0]  # (..., I, T')


def row_pearson(a: Any, b: Any) -> Any:
    """Return the correlation of two maps, each word standardised by itself.

    Parameters
    ----------
    a, b : array_like, shape (..., I, T')
        Attention and pooled saliency, say; leading axes broadcast.

    Returns
    -------
    float or ndarray, shape (...)
        ρ in [−1, 1]. Rows whose entries are all equal count as 0; if nothing varies in a or in b, ρ is 0
        [our definition].

    Raises
    ------
    ValueError
        If the last two axes differ, there is no word, or there are fewer than 2 frames.

    Notes
    -----
    Standardised rows have mean 0 and equal norms. So the correlation over all I·T' entries is the mean of the words'
    own correlations if no row is constant. The order of standardising and correlating is ours [recalled from the
    paper]; its corpus score is the mean of ρ over sentences.

    References
    ----------
    2509.18010.
    """
    a, b = _maps(a, b)
    x, y = standardise_rows(a), standardise_rows(b)  # (..., I, T'), every row with mean 0
    xx, yy, xy = (np.sum(z, axis=(-2, -1)) for z in (x * x, y * y, x * y))
    norm = np.sqrt(xx) * np.sqrt(yy)
    # eq: ce-9
    return np.clip(np.where(norm > 0, xy / np.where(norm > 0, norm, 1), 0), -1, 1)[()]


def saliency_share(attention: Any, saliency: Any, *, how: str = "pearson") -> Any:
    """Return how much of a saliency map attention accounts for, by one of three readings.

    Parameters
    ----------
    attention, saliency : array_like, shape (..., I, T')
        The two maps over the encoder's frames.
    how : {"pearson", "squared", "overlap"}
        ρ itself, which the paper reads as a percentage; ρ², the variance that a line explains; or the overlap of each
        word's two histograms, shifted to begin at 0 and to sum to 1 [our definition].

    Returns
    -------
    float or ndarray, shape (...)
        In [−1, 1] for "pearson", else in [0, 1]. A constant row overlaps with nothing.

    Raises
    ------
    ValueError
        As `row_pearson`, or if ``how`` is something else.
    """
    require_one_of("how", how, ("pearson", "squared", "overlap"))
    if how != "overlap":
        rho = row_pearson(attention, saliency)
        return rho if how == "pearson" else rho * rho
    a, b = _maps(attention, saliency)
    # eq: ce-10
    return np.minimum(_histogram(a), _histogram(b)).sum(axis=-1).mean(axis=-1)


def context_mixing_gap(attention: Any, encoder_saliency: Any, input_saliency: Any) -> MixingGap:
    """Return how much better attention explains the encoder's output than the input.

    The encoder may move content between frames. Attention to a frame then says what is read there, not where in the
    input it came from; the gap is the measure of that.

    Parameters
    ----------
    attention : array_like, shape (I, T')
        CA.
    encoder_saliency, input_saliency : array_like, shape (I, T')
        SM^H, and SM^X after `pool_saliency`.

    Returns
    -------
    MixingGap

    Raises
    ------
    ValueError
        As `row_pearson`.
    """
    encoder, at_input = float(row_pearson(attention, encoder_saliency)), float(row_pearson(attention, input_saliency))
    # eq: ce-11
    gap = encoder - at_input
    return MixingGap(encoder, at_input, gap, gap / encoder if encoder else float("nan"))


def _chosen(name: str, numbers: int | Sequence[int] | None, count: int) -> list[int]:
    """Return the numbers of the layers or heads that are meant."""
    chosen = range(count) if numbers is None else [numbers] if not isinstance(numbers, Sequence) else numbers
    chosen = [index(number) for number in chosen]
    inside = all(-count <= number < count for number in chosen)
    require(inside and chosen, f"{name}={numbers!r} must name at least one of {count}")
    places = [number % count for number in chosen]
    require(len(set(places)) == len(places), f"{name}={numbers!r} names one of them twice")
    return places


def _maps(a: Any, b: Any) -> tuple[Any, Any]:
    """Return two maps of the same words and frames."""
    a, b = as_float("a", a), as_float("b", b)
    require(a.ndim >= 2, f"a has shape {a.shape}, expected (..., I, T')")
    require_shape("b", b, (*b.shape[:-2], *a.shape[-2:]))
    I, frames = a.shape[-2:]
    require(I >= 1, f"a has shape {a.shape}: I = 0 words are no map")
    require(frames >= 2, f"a has T' = {frames}: a correlation needs at least 2 frames")
    return a, b


def _histogram(a: np.ndarray) -> Any:
    """Return rows shifted to begin at 0 and scaled to sum to 1; constant rows are 0."""
    above = a - a.min(axis=-1, keepdims=True)
    total = above.sum(axis=-1, keepdims=True)
    return above / np.where(total > 0, total, 1)
