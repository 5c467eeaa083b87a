"""Bring saliency maps to a common scale, word by word: standardised, or between 0 and 1 (2411.01710).

A word may have two maps, over the input and over the embeddings of the words before it; of the second, entries after
the word itself are invisible. Equation labels (ce-6) and (ce-7) are those of the page.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require

__all__ = ["mean_std_normalize", "paired_min_max", "standardise_rows"]


def standardise_rows(a: Any) -> np.ndarray:
    """Return each row less its mean, over its sample standard deviation (n − 1).

    Parameters
    ----------
    a : array_like, shape (..., n)
        The rows.

    Returns
    -------
    ndarray, shape (..., n)
        In the dtype of ``a``. A row whose entries are all equal, one of a single entry too, becomes 0.
    """
    a = as_float("a", a)
    n = a.shape[-1]
    centred = a - a.mean(axis=-1, keepdims=True) if n else a
    # equal entries are found by comparison: their mean may round, and then nothing is quite 0
    varies = _largest(a) > _smallest(a)  # (..., 1)
    size = _largest(np.abs(centred))
    # rearranged for small numbers: the scale is taken out before squares can underflow
    centred = centred / np.where(varies & (size > 0), size, 1)
    std = np.sqrt(np.sum(centred * centred, axis=-1, keepdims=True) / max(n - 1, 1))  # (..., 1)
    # eq: ce-6
    return np.asanyarray(np.where(varies, centred / np.where(std > 0, std, 1), a.dtype.type(0)))


def mean_std_normalize(saliency: Any, decoder_map: Any = None) -> Any:
    """Standardise each word's map over all its elements, and its decoder map over what the word sees.

    Parameters
    ----------
    saliency : array_like, shape (I, ...)
        One map for each word, (I, T, F) or (I, T').
    decoder_map : array_like, shape (I, I) or (I, I, 1), optional
        Saliency of word j for word i; entries j > i are invisible.

    Returns
    -------
    ndarray, or two ndarrays, shapes of the arguments
        Mean 0 and sample standard deviation 1 for each word; maps without spread become 0, and so do invisible entries
        and the decoder map of the first word.

    Raises
    ------
    ValueError
        If there is no word, or the decoder map is not (I, I).

    Notes
    -----
    ``single_mean_std`` of FBK-fairseq sets what is not finite to 0. It finds constant maps by a deviation of 0, so that
    one whose mean rounds becomes noise there; here all constant maps are 0.
    """
    saliency = _words("saliency", saliency)
    out = standardise_rows(saliency.reshape(len(saliency), -1)).reshape(saliency.shape)
    if decoder_map is None:
        return out
    decoder = _decoder(decoder_map, len(saliency))
    normalised = np.zeros_like(decoder)
    for i in range(len(decoder)):
        normalised[i, : i + 1] = standardise_rows(decoder[i, : i + 1])
    return out, normalised.reshape(np.shape(decoder_map))


def paired_min_max(saliency: Any, decoder_map: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bring both maps of each word to [0, 1], by one minimum and one maximum.

    Parameters
    ----------
    saliency : array_like, shape (I, ...)
        One map for each word.
    decoder_map : array_like, shape (I, I) or (I, I, 1)
        As for `mean_std_normalize`.

    Returns
    -------
    saliency, decoder_map : ndarray, shapes of the arguments
        For each word 0 and 1 are attained in one of the two; invisible entries are 0. A word whose visible entries are
        all equal gets 0 everywhere [our definition].

    Raises
    ------
    ValueError
        If there is no word, or the decoder map is not (I, I).

    References
    ----------
    ``normalizers/paired_min_max.py`` of FBK-fairseq.
    """
    saliency = _words("saliency", saliency)
    I = len(saliency)
    decoder = _decoder(decoder_map, I)
    rows, visible = saliency.reshape(I, -1), np.tri(I, dtype=bool)
    low = np.minimum(_smallest(rows), _smallest(np.where(visible, decoder, np.inf)))  # (I, 1)
    high = np.maximum(_largest(rows), _largest(np.where(visible, decoder, -np.inf)))
    span = np.where(high > low, high - low, 1)
    # eq: ce-7
    rows, decoder = (rows - low) / span, np.where(visible, (decoder - low) / span, 0)
    return (
        rows.reshape(saliency.shape).astype(saliency.dtype, copy=False),
        decoder.reshape(np.shape(decoder_map)).astype(saliency.dtype, copy=False),
    )


def _smallest(a: np.ndarray) -> np.ndarray:
    return np.asanyarray(np.min(a, axis=-1, keepdims=True, initial=np.inf))


def _largest(a: np.ndarray) -> np.ndarray:
    return np.asanyarray(np.max(a, axis=-1, keepdims=True, initial=-np.inf))


def _words(name: str, value: Any) -> Any:
    """Return one map for each of at least one word."""
    maps = as_float(name, value)
    require(maps.ndim >= 2, f"{name} has shape {maps.shape}, expected (I, ...)")
    require(maps.size > 0, f"{name} has shape {maps.shape}: I = 0 words, or maps without elements, are no maps")
    return maps


def _decoder(value: Any, I: int) -> Any:
    """Return the decoder map as (I, I)."""
    maps = as_float("decoder_map", value)
    require(maps.shape in ((I, I), (I, I, 1)), f"decoder_map has shape {maps.shape}, expected {(I, I)} or {(I, I, 1)}")
    return maps.reshape(I, I)
