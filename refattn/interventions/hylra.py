"""HyLRA: layers that need all keys attend fully, the others reuse the critical keys of an earlier layer (2602.00777).

Here are the two kinds of layers, what a layer loses if it keeps its critical keys only, and what a pass costs. What is
measured beforehand is in `hylra_profile`, the choice of layers in `hylra_policy`, the hook for a running transformer in
`hylra_hook`. Equation labels are those of the page. B batch, H key/value heads, G query heads for each of them,
Tq queries, T keys, d head width.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.interventions.hylra_policy import (
    LayerPolicy,
    change_budget,
    policy_brute_force,
    policy_every,
    policy_from_full,
    policy_max_min,
    policy_min_full,
)
from refattn.interventions.hylra_profile import (
    block_weights,
    check_budget,
    critical_blocks,
    critical_mask,
    hash_ratio,
    indices_of,
    layer_overlap,
    merge_overlap,
    sensitive_by_hash_ratio,
)
from refattn.primitives.arguments import as_bool, as_float, as_integer, require, require_one_of
from refattn.primitives.selection import gather_rows
from refattn.primitives.softmax import softmax

__all__ = [
    "Distortion",
    "HyLRACost",
    "LayerPolicy",
    "attend_full",
    "attend_reuse",
    "attention_cost",
    "block_weights",
    "change_budget",
    "critical_blocks",
    "critical_mask",
    "group_weights",
    "hash_ratio",
    "layer_overlap",
    "merge_overlap",
    "policy_brute_force",
    "policy_every",
    "policy_from_full",
    "policy_max_min",
    "policy_min_full",
    "sensitive_by_hash_ratio",
    "topk_distortion",
]


class Distortion(NamedTuple):
    """What a layer loses if it attends to its critical keys only.

    Attributes
    ----------
    rnmse : ndarray, shape ()
        Root of the squared change of the output over the squared output, summed over steps, heads and features.
    mass : ndarray, shape (Hq,) or (S, Hq)
        m, the part of the full attention that falls on the critical keys.
    kl : ndarray, shape of ``mass``
        KL divergence of the restricted weights from the full ones, −ln m.
    """

    rnmse: np.ndarray
    mass: np.ndarray
    kl: np.ndarray


class HyLRACost(NamedTuple):
    """What attention costs in all layers, for one query head with its keys and values.

    Attributes
    ----------
    flops : int
        Operations of scores and averages, a multiplication and an addition counted as two.
    kv_bytes : int
        Bytes of keys and values that are read, each query for itself.
    cache_bytes : int
        Bytes of keys and values that are kept: the same under every policy.
    """

    flops: int
    kv_bytes: int
    cache_bytes: int


def attend_full(
    q: Any,
    k: Any,
    v: Any,
    *,
    n_keep: int,
    block_size: int = 1,
    sink: int = 0,
    recent: int = 0,
    share_heads: bool = False,
    refresh: str = "dense",
    mask: Any = None,
    scale: float | None = None,
) -> tuple[Any, np.ndarray]:
    """Attend to all keys, and note which are critical for the layers that will reuse them.

    1. Softmax of the scaled scores over the visible keys.
    2. Average the weights over the query heads that share a key head; keep the heaviest blocks.
    3. Average the values by the weights of step 1, or, with ``refresh="sparse"``, by those over the kept keys only.

    Parameters
    ----------
    q : array_like, shape (B, H·G, Tq, d)
        Queries; head h reads key head h // G.
    k, v : array_like, shape (B, H, T, d)
        Keys and values.
    n_keep : int
        How many keys a layer that reuses may see.
    block_size, sink, recent
        See `critical_mask`.
    share_heads : bool
        Add the weights of all key heads before the choice, so that they share one set.
    refresh : {"dense", "sparse"}
        What the layer itself attends to: everything (the paper), or its own critical keys (the official code).
    mask : array_like of bool, optional
        True = visible; broadcasts to (B, H·G, Tq, T).
    scale : float, optional
        What multiplies the scores; 1/√d if not given.

    Returns
    -------
    out : ndarray, shape (B, H·G, Tq, d)
        In the dtype of ``q``; zeros for a query that sees nothing.
    indices : ndarray of int, shape (B, H, Tq, min(⌊n_keep/b⌋ · b, T))
        The visible keys of the critical blocks, one set for each query, ascending; −1 fills the end.

    Raises
    ------
    ValueError
        If shapes do not fit, H·G is no multiple of H, the budget of `critical_mask` does not hold, or an option is
        unknown.

    Notes
    -----
    Each query chooses among the keys that it sees; one set per query in a prefill is our definition. At run time the
    official engine ranks blocks by hashes of queries and keys, and it switches sparsity off for short sequences: both
    belong to the engine and are left out.

    References
    ----------
    2602.00777 (abstract; two kinds of layers second-hand); unified-cache-management ``gsa_on_device.py`` for
    ``refresh="sparse"`` and ``share_heads``.
    """
    check_budget(n_keep, block_size=block_size, sink=sink, recent=recent, name="n_keep")
    require_one_of("refresh", refresh, ("dense", "sparse"))
    q, k, v = _checked(q, k, v)
    visible = _visible(mask, q, k)  # (B, H, G, Tq, T)
    z = _scores(q, k, scale)  # (B, H, G, Tq, T)
    a = softmax(z, where=visible)  # 1: (B, H, G, Tq, T)
    kept = _critical_keys(  # 2: (B, H, Tq, T)
        a, visible, n_keep, block_size=block_size, sink=sink, recent=recent, share_heads=share_heads
    )
    if refresh == "sparse":  # 3
        a = softmax(z, where=visible & kept[:, :, None])
    indices = indices_of(kept, min(n_keep // block_size * block_size, k.shape[2]))
    return _merged(a @ v[:, :, None]), indices


def attend_reuse(q: Any, k: Any, v: Any, indices: Any, *, mask: Any = None, scale: float | None = None) -> Any:
    """Attend to the keys that an earlier layer found critical, and to no others.

    Parameters
    ----------
    q : array_like, shape (B, H·G, Tq, d)
        Queries of this layer.
    k, v : array_like, shape (B, H, T, d)
        Its keys and values.
    indices : array_like of int, shape (B, H, Tq, n) or (B, H, n)
        Which keys to fetch, each at most once; −1 fetches nothing. Without the axis of queries all share one set.
    mask : array_like of bool, optional
        True = visible; broadcasts to (B, H·G, Tq, T).
    scale : float, optional
        What multiplies the scores; 1/√d if not given.

    Returns
    -------
    ndarray, shape (B, H·G, Tq, d)
        In the dtype of ``q``; zeros for a query that fetches nothing visible.

    Raises
    ------
    ValueError
        If shapes do not fit, or an index is less than −1 or beyond the keys.
    """
    q, k, v = _checked(q, k, v)
    S = _checked_indices(indices, q, k)  # (B, H, Tq, n)
    at = np.maximum(S, 0)
    K, V = gather_rows(k, at)[:, :, None], gather_rows(v, at)[:, :, None]  # (B, H, 1, Tq, n, d) each
    # eq: hylra-18
    z = (q[..., None, :] @ np.swapaxes(K, -1, -2))[..., 0, :] * _scale(q, scale)  # (B, H, G, Tq, n)
    usable = np.broadcast_to((S >= 0)[:, :, None], z.shape)  # (B, H, G, Tq, n)
    if mask is not None:
        usable = usable & np.take_along_axis(_visible(mask, q, k), at[:, :, None], axis=-1)
    return _merged((softmax(z, where=usable)[..., None, :] @ V)[..., 0, :])  # (B, H·G, Tq, d)


def group_weights(q: Any, k: Any, *, mask: Any = None, scale: float | None = None) -> Any:
    """Return the attention weights, averaged over the query heads that share a key head.

    Parameters
    ----------
    q : array_like, shape (B, H·G, Tq, d)
        Queries.
    k : array_like, shape (B, H, T, d)
        Keys.
    mask, scale
        As in `attend_full`.

    Returns
    -------
    ndarray, shape (B, H, Tq, T)

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    q, k, _ = _checked(q, k, k)
    return softmax(_scores(q, k, scale), where=_visible(mask, q, k)).mean(axis=2)


def topk_distortion(
    q: Any,
    k: Any,
    v: Any,
    n_keep: int,
    *,
    block_size: int = 1,
    sink: int = 0,
    recent: int = 0,
    lengths: Any = None,
    scale: float | None = None,
) -> Distortion:
    """Measure how far the output of one layer moves if it attends to its own critical keys only.

    Parameters
    ----------
    q : array_like, shape (H·G, d) or (S, H·G, d)
        Queries of one or several decode steps.
    k, v : array_like, shape (H, T, d)
        The cached keys and values.
    n_keep, block_size, sink, recent
        See `critical_mask`.
    lengths : array_like of int, shape (S,), optional
        How many of the keys each step sees; all if not given.
    scale : float, optional
        What multiplies the scores; 1/√d if not given.

    Returns
    -------
    Distortion
        A layer counts as sensitive if ``rnmse`` exceeds a bound, 0.1 [our definition].

    Raises
    ------
    ValueError
        If shapes do not fit, a length is not in 1..T, or the budget of `critical_mask` does not hold.

    Notes
    -----
    RNMSE and KL are named by second-hand accounts of the paper; the normalisation by the full output, and the KL of
    the *weights*, are our definitions. The other direction of the KL is infinite.
    """
    q, k, v = as_float("q", q), as_float("k", k, ndim=3), as_float("v", v, ndim=3)
    require(q.ndim in (2, 3), f"q has shape {q.shape}, expected (Hq, d) or (S, Hq, d)")
    steps = q[None] if q.ndim == 2 else q  # (S, Hq, d)
    S, T = len(steps), k.shape[1]
    lengths = np.full(S, T) if lengths is None else as_integer("lengths", lengths, ndim=1)
    require(lengths.shape == (S,), f"lengths has shape {lengths.shape}, expected {(S,)}")
    require(np.all((lengths >= 1) & (lengths <= T)), f"lengths={lengths} must lie in 1..{T}")
    mask = np.arange(T) < lengths[:, None]  # (S, T)
    steps, k, v = _checked(np.swapaxes(steps, 0, 1)[None], k[None], v[None])  # (1, H, G, S, d), (1, H, T, d) twice
    visible = _visible(mask, steps, k)  # (1, H, G, S, T)
    z = _scores(steps, k, scale)  # (1, H, G, S, T)
    p = softmax(z, where=visible)
    kept = _critical_keys(p, visible, n_keep, block_size=block_size, sink=sink, recent=recent)[:, :, None]
    o, o_S = (w @ v[:, :, None] for w in (p, softmax(z, where=visible & kept)))  # (1, H, G, S, d) each
    # eq: hylra-8
    error, size = np.sum((o - o_S) ** 2), np.sum(o**2)
    rnmse = np.sqrt(error / np.where(size > 0, size, 1))  # a layer that outputs nothing loses nothing
    m = np.where(kept, p, 0).sum(axis=-1).reshape(-1, S).T  # (S, Hq)
    m = m[0] if q.ndim == 2 else m
    # eq: hylra-11
    return Distortion(rnmse, m, -np.log(m))


def attention_cost(
    length: int, width: int, n_layers: int, n_full: int, n_keep: int, *, phase: str, number_bytes: int = 2
) -> HyLRACost:
    """Return what attention costs under a policy, for one query head.

    Parameters
    ----------
    length, width : int
        T and d.
    n_layers, n_full : int
        L, and how many of them attend fully.
    n_keep : int
        k, how many keys the others see.
    phase : {"decode", "prefill"}
        One query that sees T keys, or T queries under the causal mask.
    number_bytes : int
        Bytes of a stored number.

    Returns
    -------
    HyLRACost

    Raises
    ------
    ValueError
        If a size is negative, ``n_full`` exceeds ``n_layers`` or ``phase`` is unknown.

    Notes
    -----
    The cache keeps all keys: reuse saves work and traffic, not memory.
    """
    sizes = (length, width, n_layers, n_full, n_keep, number_bytes)
    require(min(map(index, sizes)) >= 0, f"sizes {sizes} must be >= 0")
    require(n_full <= n_layers, f"n_full={n_full} exceeds n_layers={n_layers}")
    require_one_of("phase", phase, ("decode", "prefill"))
    seen = range(length, length + 1) if phase == "decode" else range(1, length + 1)  # keys that each query sees
    # eq: hylra-19
    pairs = n_full * sum(seen) + (n_layers - n_full) * sum(min(n_keep, t) for t in seen)
    return HyLRACost(4 * pairs * width, 2 * pairs * width * number_bytes, 2 * n_layers * length * width * number_bytes)


def _critical_keys(
    a: Any, visible: Any, n_keep: int, *, block_size: int, sink: int, recent: int, share_heads: bool = False
) -> np.ndarray:
    """Return which keys each key head keeps for each query: weights (B, H, G, Tq, T) to (B, H, Tq, T)."""
    H, T = a.shape[1], a.shape[-1]
    # eq: hylra-2
    w, seen = a.mean(axis=2), visible.any(axis=2)  # (B, H, Tq, T) each
    rank, usable = w, seen  # what is ranked, and what may be chosen
    if share_heads:
        # eq: hylra-17
        rank = np.repeat(w.sum(axis=1, keepdims=True), H, axis=1)
        usable = np.repeat(seen.any(axis=1, keepdims=True), H, axis=1)
    blocks = critical_mask(
        rank, n_keep, block_size=block_size, sink=sink, recent=recent, visible=usable
    )  # (B, H, Tq, n_b)
    return np.asarray(np.repeat(blocks, block_size, axis=-1)[..., :T] & seen)


def _scores(q: Any, k: Any, scale: float | None) -> Any:
    """Return scaled products (B, H, G, Tq, T) of grouped queries (B, H, G, Tq, d) with keys (B, H, T, d)."""
    # eq: hylra-1
    return q @ np.swapaxes(k, -1, -2)[:, :, None] * _scale(q, scale)


def _merged(x: Any) -> Any:
    """Return (B, H, G, Tq, d) as (B, H·G, Tq, d)."""
    B, H, G, *rest = x.shape
    return x.reshape(B, H * G, *rest)


def _scale(q: Any, scale: float | None) -> float:
    return float(q.shape[-1] ** -0.5) if scale is None else scale


def _checked(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Return q as (B, H, G, Tq, d), and k and v in its dtype."""
    q, k, v = as_float("q", q, ndim=4), as_float("k", k, ndim=4), as_float("v", v, ndim=4)
    (B, Hq, Tq, d), (H, T) = q.shape, k.shape[1:3]
    require(k.shape == (B, H, T, d), f"k has shape {k.shape}, expected {(B, H, T, d)} beside q of shape {q.shape}")
    require(v.shape == k.shape, f"v has shape {v.shape}, expected {k.shape}")
    require(H >= 1 and Hq % H == 0, f"q has {Hq} heads, expected a multiple of the {H} heads of k")
    return q.reshape(B, H, Hq // H, Tq, d), k.astype(q.dtype, copy=False), v.astype(q.dtype, copy=False)


def _visible(mask: Any, q: Any, k: Any) -> np.ndarray:
    """Return who sees whom as (B, H, G, Tq, T), for grouped queries."""
    B, H, G, Tq, _ = q.shape
    full = (B, H * G, Tq, k.shape[2])
    mask = np.ones((), dtype=bool) if mask is None else as_bool("mask", mask)
    try:
        return np.broadcast_to(mask, full).reshape(B, H, G, *full[2:])
    except ValueError:
        raise ValueError(f"mask has shape {mask.shape}, which does not broadcast to {full}") from None


def _checked_indices(indices: Any, q: Any, k: Any) -> np.ndarray:
    """Return one set of indices for each query: (B, H, Tq, n)."""
    indices = as_integer("indices", indices)
    (B, H, _, Tq, _), T = q.shape, k.shape[2]
    if indices.ndim == 3:
        indices = np.repeat(indices[:, :, None], Tq, axis=2)
    fits = indices.ndim == 4 and indices.shape[:3] == (B, H, Tq)
    require(fits, f"indices has shape {indices.shape}, expected {(B, H, Tq)} or {(B, H)} and a number of keys")
    require(np.all((indices >= -1) & (indices < T)), f"indices must lie in -1..{T - 1}")
    return np.asarray(indices)
