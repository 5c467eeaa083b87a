"""SPES, part two: draw the occlusions and run the model under them (2411.01710).

The model is a function from a batch of inputs (B, T, F) to the distributions (B, I, V) of the I words that it is made
to write. For a saliency map at the input it is the whole model and the input a spectrogram; for one at the encoder's
output it is the decoder alone, and the input are the encoder's frames.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interpretability.cross_attention_explanation_scores import kl_scores, mean_score, sums, target_difference
from refattn.primitives.arguments import as_float, as_integer, require, require_one_of, require_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["exact_occlusion_saliency", "occlusion_masks", "predictions", "segment_count", "spes"]

KINDS = ("continuous", "time", "frequency")
SCORERS = ("kl", "difference")
MOST_UNITS = 16  # of which all subsets are tried


def occlusion_masks(
    rng: np.random.Generator,
    shape: tuple[int, int],
    n: int,
    *,
    p: float = 0.5,
    kind: str = "continuous",
    segments: Any = None,
) -> np.ndarray:
    """Draw masks that hide each unit of the input with probability p.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws one number in [0, 1) for each unit; it is kept if the number is ≥ p.
    shape : (int, int)
        T frames and F bands.
    n : int
        The number of masks K.
    p : float
        The probability of hiding, in [0, 1).
    kind : {"continuous", "time", "frequency"}
        A unit is one element, one frame or one band.
    segments : array_like of int, shape (T, F), optional
        A label map: a unit is all elements of one label. It takes the place of ``kind``.

    Returns
    -------
    ndarray of bool, shape (n, T, F), (n, T, 1) for "time", (n, 1, F) for "frequency"
        True keeps.

    Raises
    ------
    ValueError
        If n < 1, p is outside [0, 1), or kind or segments do not fit.

    Notes
    -----
    The official code makes its label map with SLIC of scikit-image, at several numbers of segments; here the caller
    brings a map [our definition], for instance with `segment_count` segments.

    References
    ----------
    ``perturbators/continuous_fbank.py``, ``discrete_fbank.py`` and ``slic_fbank.py`` of FBK-fairseq.
    """
    T, F = _shape(shape)
    require(index(n) >= 1, f"n={n!r} must be at least 1")
    require(0 <= p < 1, f"p={p!r} must lie in [0, 1)")
    units = _units((T, F), kind, segments)  # (T, F), (T, 1) or (1, F)
    return np.asarray((rng.random((n, int(units.max(initial=-1)) + 1)) >= p)[:, units])


def segment_count(n_segments: int, n_frames: int, *, threshold: int = 750) -> int:
    """Return how many segments a spectrogram of ``n_frames`` frames gets: n · min(T, threshold)/500, at least 1.

    Parameters
    ----------
    n_segments : int
        n: segments that 500 frames would get.
    n_frames : int
        T.
    threshold : int
        From this length on the count stays.

    Returns
    -------
    int

    References
    ----------
    ``perturbators/slic_fbank.py`` of FBK-fairseq.
    """
    require(min(n_segments, n_frames, threshold) >= 0, f"{(n_segments, n_frames, threshold)!r} must be >= 0")
    return max(1, round(n_segments * min(n_frames, threshold) / 500))


def spes(
    model_fn: Callable[[np.ndarray], Any],
    x: Any,
    targets: Any,
    rng: np.random.Generator,
    n_masks: int,
    *,
    p: float = 0.5,
    kind: str = "continuous",
    segments: Any = None,
    scorer: str = "kl",
    batch: int = 256,
) -> np.ndarray:
    """Return the saliency map of each word: hide random parts, and see which words suffer.

    1. Run the model on the input as it is.
    2. Draw masks, a batch at a time; run the model on x ⊙ m.
    3. Score each word under each mask.
    4. Average, for each element, the scores of the masks that hide it.

    Parameters
    ----------
    model_fn : callable
        (B, T, F) to distributions (B, I, V).
    x : array_like, shape (T, F)
        The input, of which elements are set to 0.
    targets : array_like of int, shape (I,), or None
        The words that are written. Only the scorer "difference" reads them.
    rng, p, kind, segments
        See `occlusion_masks`.
    n_masks : int
        K. The error of the map falls as 1/√K.
    scorer : {"kl", "difference"}
        `kl_scores` or `target_difference`.
    batch : int
        How many masked inputs the model is given at once; memory is batch · T · F. It does not change which masks are
        drawn.

    Returns
    -------
    ndarray, shape (I, T, F), (I, T, 1) for "time", (I, 1, F) for "frequency"

    Raises
    ------
    ValueError
        If n_masks or batch is below 1, an option is out of range, or the model returns no distributions.

    Notes
    -----
    The official code can hide embeddings of earlier words in the same passes; its recommended probability for that is
    0, and here the model function takes the input alone. Scores and masks of one's own passes go through
    `refattn.interpretability.cross_attention_explanation_scores.accumulate_saliency` with ``causal=True``.

    References
    ----------
    2411.01710; ``generate_occlusion_explanation.py`` of FBK-fairseq.
    """
    require(index(n_masks) >= 1, f"n_masks={n_masks!r} must be at least 1")
    require(index(batch) >= 1, f"batch={batch!r} must be at least 1")
    x = as_float("x", x, ndim=2)
    sizes = (min(batch, n_masks - begin) for begin in range(0, n_masks, batch))
    masks = (occlusion_masks(rng, x.shape, size, p=p, kind=kind, segments=segments) for size in sizes)  # 2
    return _saliency(model_fn, x, masks, _scoring(scorer, targets))


def exact_occlusion_saliency(
    model_fn: Callable[[np.ndarray], Any],
    x: Any,
    *,
    kind: str = "time",
    segments: Any = None,
    targets: Any = None,
    scorer: str = "kl",
    batch: int = 256,
) -> np.ndarray:
    """Return what `spes` tends to with p = ½ as masks become many: the mean over all subsets of hidden units.

    Parameters
    ----------
    model_fn, x, targets, scorer, batch
        As for `spes`.
    kind, segments
        See `occlusion_masks`; there may be 16 units at most.

    Returns
    -------
    ndarray, shape as from `spes`
        E[s | the element is hidden], every other unit hidden or not with equal chances.

    Raises
    ------
    ValueError
        If there are more than 16 units, or as for `spes`.
    """
    x = as_float("x", x, ndim=2)
    require(index(batch) >= 1, f"batch={batch!r} must be at least 1")
    units = _units(_shape(x.shape), kind, segments)
    n = int(units.max(initial=-1)) + 1
    require(n <= MOST_UNITS, f"x has {n} units, more than {MOST_UNITS}: exact mode tries all 2^n masks")
    begins = range(0, 2**n, batch)
    numbers = (np.arange(begin, min(begin + batch, 2**n)) for begin in begins)
    masks = (((number[:, None] >> np.arange(n)) & 1).astype(bool)[:, units] for number in numbers)
    return _saliency(model_fn, x, masks, _scoring(scorer, targets))


def predictions(model_fn: Callable[[np.ndarray], Any], x: np.ndarray) -> Any:
    """Run the model on a batch (B, T, F) and return its distributions (B, I, V).

    Parameters
    ----------
    model_fn : callable
        The model.
    x : ndarray, shape (B, T, F)
        Its inputs.

    Returns
    -------
    ndarray, shape (B, I, V)

    Raises
    ------
    ValueError
        If the model returns another shape, or no words.
    """
    P = as_float("model_fn(x)", model_fn(x), ndim=3)  # (B, I, V)
    require(len(P) == len(x), f"model_fn returned {len(P)} items for a batch of {len(x)}")
    require(P.shape[1] >= 1, "model_fn returned I = 0 words: there is no map")
    return P


def _saliency(
    model_fn: Callable[[np.ndarray], Any],
    x: np.ndarray,
    masks: Iterable[np.ndarray],
    score: Callable[[Any, Any], np.ndarray],
) -> np.ndarray:
    """Add up the batches of masks."""
    P = predictions(model_fn, x[None])[0]  # 1: (I, V)
    total: Any = 0
    count: Any = 0
    for m in masks:
        # eq: ce-2
        Q = predictions(model_fn, x * m)  # 2: (B, I, V)
        part, hits = sums(score(P, Q), ~m)  # 3, 4
        total, count = total + part, count + hits
    return mean_score(total, count)


def _scoring(scorer: str, targets: Any) -> Callable[[Any, Any], np.ndarray]:
    require_one_of("scorer", scorer, SCORERS)
    if scorer == "kl":
        return kl_scores
    require(targets is not None, "targets=None, but scorer='difference' compares the probabilities of targets")
    return lambda P, Q: target_difference(P, Q, targets)


def _shape(shape: tuple[int, ...]) -> tuple[int, int]:
    require(len(shape) == 2 and min(shape) >= 1, f"shape={tuple(shape)!r} must be (T, F), both at least 1")
    return index(shape[0]), index(shape[1])


def _units(shape: tuple[int, int], kind: str, segments: Any) -> np.ndarray:
    """Return the number, 0 … n − 1, of the unit that each element is hidden with; broadcasts to (T, F)."""
    require_one_of("kind", kind, KINDS)
    T, F = shape
    if segments is not None:
        require(kind == "continuous", f"kind={kind!r} says what a unit is, and so does segments: give one of them")
        segments = as_integer("segments", segments, ndim=2)
        require_shape("segments", segments, shape)
        return np.unique(segments, return_inverse=True)[1].reshape(shape)
    if kind == "time":
        return np.arange(T)[:, None]
    return np.arange(F)[None, :] if kind == "frequency" else np.arange(T * F).reshape(T, F)
