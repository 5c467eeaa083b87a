"""The arguments that say which query sees which key, checked and brought to one form.

Rules R6, R8 and R10–R17 of the attention page; `visibility.visibility` evaluates them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_bool, as_integer, require, require_one_of

__all__ = ["MaskRules", "check_mask_rules"]


class MaskRules(NamedTuple):
    """Everything that decides visibility; what is None does not restrict.

    Attributes
    ----------
    sq, sk : int
        Number of queries and keys.
    mask : ndarray of bool, shape (B|1, H|1, Sq|1, Sk|1), or None
        True = attend.
    causal : bool
        Hide what comes later.
    align : str, or ndarray of int with shape (B|1,)
        ``top_left``, ``bottom_right``, or the position of the first query.
    left, right : int or None
        The window.
    kv_lengths, q_lengths, prefix : ndarray of int, shape (B|1,), or None
        Valid keys and queries, and keys that the causal rule spares.
    doc_q, doc_k : ndarray of int, shape (B|1, Sq) and (B|1, Sk), or None
        Documents.
    chunk : int or None
        Length of the chunks of positions.
    """

    sq: int
    sk: int
    mask: np.ndarray | None
    causal: bool
    align: Any
    left: int | None
    right: int | None
    kv_lengths: np.ndarray | None
    q_lengths: np.ndarray | None
    prefix: np.ndarray | None
    doc_q: np.ndarray | None
    doc_k: np.ndarray | None
    chunk: int | None


def check_mask_rules(
    sq: int,
    sk: int,
    *,
    mask: Any = None,
    causal: bool = False,
    align: Any = "top_left",
    window: Any = (None, None),
    kv_lengths: Any = None,
    q_lengths: Any = None,
    prefix: Any = None,
    doc_q: Any = None,
    doc_k: Any = None,
    chunk: int | None = None,
) -> MaskRules:
    """Check the arguments of `visibility.visibility` and return them in one form.

    Parameters
    ----------
    sq, sk : int
        Number of queries and keys.
    mask, causal, align, window, kv_lengths, q_lengths, prefix, doc_q, doc_k, chunk
        As in `visibility.visibility`.

    Returns
    -------
    MaskRules

    Raises
    ------
    ValueError
        If an argument breaks its rule; the message names it.
    TypeError
        If the mask is a masked array.
    """
    left, right = check_window(window)
    require((doc_q is None) == (doc_k is None), "doc_q and doc_k must be given together")
    require(chunk is None or chunk > 0, f"chunk={chunk} must be positive")
    return MaskRules(
        sq,
        sk,
        None if mask is None else _mask(sq, sk, mask),
        bool(causal),
        check_align(align),
        left,
        right,
        None if kv_lengths is None else _counts("kv_lengths", kv_lengths, sk),
        None if q_lengths is None else _counts("q_lengths", q_lengths, sq),
        None if prefix is None else _counts("prefix", prefix, None),
        None if doc_q is None else _documents("doc_q", doc_q, sq),
        None if doc_k is None else _documents("doc_k", doc_k, sk),
        chunk,
    )


def check_align(align: Any) -> Any:
    """Return ``align`` as one of its two names or as an integer array of shape (B|1,)."""
    if isinstance(align, str):
        require_one_of("align", align, ("top_left", "bottom_right"))
        return align
    offset = np.atleast_1d(as_integer("align", align))
    require(offset.ndim == 1, f"align has shape {offset.shape}, expected an integer or one for each batch entry")
    return offset


def check_window(window: Any) -> tuple[int | None, int | None]:
    """Return the pair (left, right) of counts, None for unbounded."""
    require(len(window) == 2, f"window={window!r} is not a pair (left, right)")
    left, right = window
    for side, count in (("left", left), ("right", right)):
        is_count = count is None or (isinstance(count, int | np.integer) and count >= 0)
        require(is_count, f"window={window!r}: {side} must be None or an integer that is not negative")
    return left, right


def _mask(sq: int, sk: int, mask: Any) -> np.ndarray:
    if isinstance(mask, np.ma.MaskedArray):
        raise TypeError("mask is a masked array; pass plain booleans")
    mask = as_bool("mask", mask)
    require(mask.ndim <= 4, f"mask has {mask.ndim} axes (shape {mask.shape}), expected at most 4")
    four = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    fits = four.shape[-2] in (1, sq) and four.shape[-1] in (1, sk)
    require(fits, f"mask has shape {mask.shape}; its last two axes must broadcast to ({sq}, {sk})")
    return np.asarray(four)


def _counts(name: str, value: Any, most: int | None) -> np.ndarray:
    counts = np.atleast_1d(as_integer(name, value))
    require(counts.ndim == 1, f"{name} has shape {counts.shape}, expected one integer for each batch entry")
    if counts.size and counts.min() < 0:  # an array is only written out where it is wrong: that takes long
        raise ValueError(f"{name}={counts} must not be negative")
    if counts.size and most is not None and counts.max() > most:
        raise ValueError(f"{name}={counts} must not exceed the length {most}")
    return counts


def _documents(name: str, value: Any, length: int) -> np.ndarray:
    doc = np.atleast_2d(as_integer(name, value))
    require(doc.ndim == 2 and doc.shape[-1] == length, f"{name} has shape {np.shape(value)}, expected (B|1, {length})")
    return doc
