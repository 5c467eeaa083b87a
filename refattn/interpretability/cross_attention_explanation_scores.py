"""SPES, part one: how much an occlusion hurts each word, and the map that many occlusions add up to (2411.01710).

An occlusion is a mask of zeros and ones over the input. Its score for a word says how far the word's distribution
moved; the saliency of an input element is the mean score over the masks that hide it. Equation labels (ce-3) to (ce-5)
are those of the page.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_shape

__all__ = ["accumulate_saliency", "kl_scores", "target_difference"]


def kl_scores(p: Any, q: Any) -> np.ndarray:
    """Return how far each occlusion moves each word's distribution: KL(p ‖ q) in nats.

    Parameters
    ----------
    p : array_like, shape (I, V)
        P: the distribution of each of I words over the vocabulary, nothing hidden.
    q : array_like, shape (K, I, V)
        P⁽ᵏ⁾: the same under each of K occlusions.

    Returns
    -------
    ndarray, shape (K, I)
        Scores s ≥ 0; 0 where an occlusion changes nothing.

    Raises
    ------
    ValueError
        If the shapes do not fit, a row is negative somewhere or does not sum to 1, or q is 0 where p is not.

    Notes
    -----
    As in ``scorers/kl_divergence.py`` of FBK-fairseq there is no epsilon. Where p is 0 the official code gets NaN from
    0 · ln 0; here the term is its limit 0. The official scorer keeps p in a float32 buffer, which moves its scores by
    about 7e-8; here nothing is narrowed.

    References
    ----------
    2411.01710.
    """
    p, q = _distributions(p, q)
    seen = p > 0  # (I, V)
    require(not np.any(np.asarray((q == 0) & seen)), "q is 0 where p > 0: infinite KL")
    # eq: ce-3
    terms = p * (np.log(np.where(seen, p, 1)) - np.log(np.where(seen, q, 1)))  # (K, I, V)
    return np.asanyarray(terms.sum(axis=-1))


def target_difference(p: Any, q: Any, target: Any) -> np.ndarray:
    """Return the probability that each occlusion takes from the word that was written.

    Parameters
    ----------
    p, q
        As for `kl_scores`; q may be 0 anywhere.
    target : array_like of int, shape (I,)
        y: which entry of the vocabulary each word is.

    Returns
    -------
    ndarray, shape (K, I)
        P(y) − P⁽ᵏ⁾(y), in [−1, 1]; negative where the occlusion helps the word.

    Raises
    ------
    ValueError
        If the shapes do not fit, a row is no distribution, or a target is outside the vocabulary.
    """
    p, q = _distributions(p, q)
    target = as_integer("target", target, ndim=1)  # (I,)
    require_shape("target", target, p.shape[:1])
    V = p.shape[-1]
    require(np.all((target >= 0) & (target < V)), f"target={target.tolist()!r} must lie in 0 … V − 1 = {V - 1}")
    words = np.arange(len(target))
    # eq: ce-4
    return np.asanyarray(p[words, target] - q[:, words, target])  # (K, I)


def accumulate_saliency(scores: Any, masks: Any, *, causal: bool = False) -> np.ndarray:
    """Return each word's saliency map: the mean score over the occlusions that hide an element.

    Parameters
    ----------
    scores : array_like, shape (K, I)
        s: how much each occlusion hurts each word.
    masks : array_like of 0 and 1, shape (K, ...)
        m: 1 keeps an element and 0 hides it. (K, T, F) for all elements, (K, T, 1) for whole frames, (K, 1, F) for
        whole bands, (K, I) for the embeddings of earlier words.
    causal : bool
        The elements are the words themselves, and word i sees 0 … i: later entries become 0. The decoder's map.

    Returns
    -------
    ndarray, shape (I, ...)
        In the dtype of ``scores``. Elements that were never hidden have saliency 0.

    Raises
    ------
    ValueError
        If shapes do not fit or a mask holds anything but 0 and 1.

    Notes
    -----
    Even an element that the model ignores is hidden together with others, so its saliency is not 0 but the mean score:
    only differences within a map mean something.

    References
    ----------
    2411.01710; ``scorers/__init__.py`` and ``accumulator.py`` of FBK-fairseq.
    """
    scores = as_float("scores", scores, ndim=2)
    occluded = hidden("masks", masks)
    require(occluded.ndim >= 2, f"masks has shape {occluded.shape}, expected (K, ...)")
    K, I = scores.shape
    require(len(occluded) == K, f"masks has {len(occluded)} masks, scores has {K}")
    require(not causal or occluded.shape[1] == I, f"masks has shape {occluded.shape}; causal needs (K, I) with I = {I}")
    saliency = mean_score(*sums(scores, occluded))  # (I, ...)
    if causal:
        visible = np.tri(I, dtype=bool).reshape(I, I, *(1,) * (saliency.ndim - 2))
        saliency = np.where(visible, saliency, saliency.dtype.type(0))
    return saliency


def hidden(name: str, masks: Any) -> np.ndarray:
    """Return where a mask of 0 and 1 hides something, as booleans."""
    masks = np.asarray(masks)
    require(masks.dtype.kind in "biuf", f"{name} has dtype {masks.dtype}, expected 0 and 1")
    require(np.all((masks == 0) | (masks == 1)), f"{name} must hold 0 and 1 only")
    return np.asarray(masks == 0)


def sums(scores: np.ndarray, occluded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ s (1 − m), shape (I, ...), and Σ (1 − m), shape (...); sums of batches may be added."""
    elements = occluded.shape[1:]
    flat = occluded.reshape(len(occluded), int(np.prod(elements))).astype(scores.dtype)  # (K, N)
    return (scores.T @ flat).reshape(scores.shape[1], *elements), np.count_nonzero(occluded, axis=0)


def mean_score(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the mean score of the masks that hide an element, 0 where there are none."""
    # eq: ce-5
    return np.asanyarray(total / np.maximum(count, 1).astype(total.dtype))  # (I, ...)


def _distributions(p: Any, q: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both as floating arrays whose rows are distributions."""
    p, q = as_float("p", p, ndim=2), as_float("q", q, ndim=3)
    require_shape("q", q, (len(q), *p.shape))
    for name, rows in (("p", p), ("q", q)):
        exact = np.asarray(rows)  # checks are exact, whatever arithmetic the caller models
        require(np.all(exact >= 0), f"{name} is negative or NaN somewhere: not a distribution")
        allowed = 1e-6 if rows.dtype.itemsize >= 4 else 1e-2  # half precision cannot sum to 1 more closely
        off = np.max(np.abs(exact.sum(axis=-1, dtype=np.float64) - 1), initial=0.0)
        require(off <= allowed, f"{name} has a row whose sum is {off:.2g} away from 1, more than {allowed:g}")
    return p, q
