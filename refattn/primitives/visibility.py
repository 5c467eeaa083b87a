"""Who sees whom: the positions of queries and keys, and the AND of all rules of attention (True = attend).

Equation source: rules R6 and R10–R17 of the attention page; behind them stand FlashAttention, ONNX and JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.mask_rules import MaskRules, check_mask_rules

__all__ = ["query_positions", "visibility", "visible_pairs"]

ALL = slice(None)


def query_positions(
    sq: int, sk: int, align: Any = "top_left", kv_lengths: Any = None, q_lengths: Any = None
) -> np.ndarray:
    """Return the position p_i = i + offset of every query among the keys, whose positions are their indices.

    Parameters
    ----------
    sq, sk : int
        Number of queries and keys.
    align : {"top_left", "bottom_right"}, int, or array_like of int with shape (B,)
        ``top_left``: offset 0. ``bottom_right``: offset n_k − n_q, the last query sees the last key. An integer: the
        offset itself, the number of keys before the query block (a cache).
    kv_lengths, q_lengths : array_like of int, shape (B,), optional
        Valid keys n_k and queries n_q of each batch entry, Sk and Sq if not given.

    Returns
    -------
    ndarray of int, shape (B, Sq), or (1, Sq) where every batch entry has the same offset

    Raises
    ------
    ValueError
        If ``align`` is unknown.

    Notes
    -----
    One offset serves the causal rule, the window and ALiBi. Bottom-right counts the valid keys, not the padded ones.
    """
    return positions_of(check_mask_rules(sq, sk, align=align, kv_lengths=kv_lengths, q_lengths=q_lengths))


def positions_of(rules: MaskRules) -> np.ndarray:
    """Return the position p_i of every query, (B|1, Sq), under checked rules."""
    # eq: R10 R12 R13
    if isinstance(rules.align, str):
        n_k = rules.sk if rules.kv_lengths is None else rules.kv_lengths
        n_q = rules.sq if rules.q_lengths is None else rules.q_lengths
        offset = np.atleast_1d(np.subtract(n_k, n_q) if rules.align == "bottom_right" else 0)  # (B|1,)
    else:
        offset = rules.align
    return np.asarray(np.arange(rules.sq) + offset[:, None])  # (B|1, Sq)


def visibility(
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
) -> np.ndarray:
    """Return which query sees which key: the AND of all rules that are given.

    Parameters
    ----------
    sq, sk : int
        Number of queries and keys.
    mask : array_like of bool, optional
        True = attend; right-aligned against (B, H, Sq, Sk).
    causal : bool
        Hide the keys behind the query's own position.
    align : {"top_left", "bottom_right"}, int, or array_like of int with shape (B,)
        Position of the first query, see `query_positions`.
    window : pair of int or None
        Keys that are seen beside the query's own position, to its left and to its right; None = unbounded.
    kv_lengths, q_lengths : array_like of int, shape (B,), optional
        Valid keys and queries; the others are hidden.
    prefix : int, or array_like of int with shape (B,), optional
        The first keys that the causal rule does not hide; without ``causal`` it changes nothing.
    doc_q, doc_k : array_like of int, shape (Sq,) and (Sk,), or with a batch axis before, optional
        Document of each query and key; a query sees its own document only.
    chunk : int, optional
        Length of the chunks of positions beyond which nothing is seen.

    Returns
    -------
    ndarray of bool, shape (B|1, H|1, Sq, Sk)
        True = visible.

    Raises
    ------
    ValueError
        If an argument breaks its rule; the message names it.

    Notes
    -----
    The window counts the keys *beside* the query. Hugging Face's ``sliding_window = w`` counts the query itself and is
    ``window=(w - 1, None)`` here; ONNX and FlashAttention write −1 for unbounded.
    """
    rules = check_mask_rules(
        sq,
        sk,
        mask=mask,
        causal=causal,
        align=align,
        window=window,
        kv_lengths=kv_lengths,
        q_lengths=q_lengths,
        prefix=prefix,
        doc_q=doc_q,
        doc_k=doc_k,
        chunk=chunk,
    )
    return visible_pairs(rules)


def visible_pairs(rules: MaskRules, rows: Any = ALL, columns: Any = ALL) -> np.ndarray:
    """Return which of the queries ``rows`` sees which of the keys ``columns``, under checked rules.

    Parameters
    ----------
    rules : MaskRules
        Checked arguments of `visibility`.
    rows, columns : slice or ndarray of int
        The queries and keys that are asked for.

    Returns
    -------
    ndarray of bool, shape (B|1, H|1, rows, columns)
        True = visible.
    """
    i, j = np.arange(rules.sq)[rows], np.arange(rules.sk)[columns]  # (Sq,), (Sk,)
    p = positions_of(rules)[:, rows][:, None, :, None]  # (B|1, 1, Sq, 1)
    visible: Any = np.ones((1, 1, len(i), len(j)), bool)
    if rules.mask is not None:
        # eq: R6 R8
        visible = visible & part(rules.mask, rows, columns)
    if rules.kv_lengths is not None:
        # eq: R14
        visible = visible & (j < _per_batch(rules.kv_lengths))
    if rules.q_lengths is not None:
        visible = visible & (i[:, None] < _per_batch(rules.q_lengths))
    if rules.left is not None:
        # eq: R15
        visible = visible & (p - rules.left <= j)
    if rules.right is not None:
        visible = visible & (j <= p + rules.right)
    if rules.causal:
        # eq: R11 R17
        spared = False if rules.prefix is None else j < _per_batch(rules.prefix)
        visible = visible & ((j <= p) | spared)
    if rules.doc_q is not None and rules.doc_k is not None:
        # eq: R17
        visible = visible & (rules.doc_q[:, None, rows, None] == rules.doc_k[:, None, None, columns])
    if rules.chunk is not None:
        visible = visible & (p // rules.chunk == j // rules.chunk)
    return np.asarray(visible)


def part(array: np.ndarray, rows: Any, columns: Any) -> np.ndarray:
    """Return the asked rows and columns of the last two axes, where those are not broadcast."""
    if array.shape[-2] != 1:
        array = array[..., rows, :]
    return array if array.shape[-1] == 1 else array[..., columns]


def _per_batch(counts: np.ndarray) -> np.ndarray:
    return counts[:, None, None, None]  # (B|1, 1, 1, 1)
