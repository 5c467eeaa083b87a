"""What HyLRA measures before it decides: the critical keys of each layer, their overlap, and what a layer would lose.

Equation labels are those of the page (2602.00777 and the authors' tool "RALS"). L layers, S decode steps, H key/value
heads, T keys, b keys in a block, n_b = ⌈T / b⌉ blocks.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_bool, as_float, require, require_one_of, require_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "block_weights",
    "check_budget",
    "critical_blocks",
    "critical_mask",
    "hash_ratio",
    "layer_overlap",
    "merge_overlap",
    "sensitive_by_hash_ratio",
]


def block_weights(weights: Any, block_size: int) -> Any:
    """Return the attention weight that each block of ``block_size`` neighbouring keys gets in total.

    Parameters
    ----------
    weights : array_like, shape (..., T)
        Weights of the keys.
    block_size : int
        b. The last block is filled up with zeros.

    Returns
    -------
    ndarray, shape (..., n_b)

    Raises
    ------
    ValueError
        If ``block_size`` is less than 1.
    """
    w = as_float("weights", weights)
    _check_block_size(block_size)
    require(w.ndim >= 1, "weights has no axis of keys")
    return _in_blocks(w, block_size).sum(axis=-1)


def critical_mask(
    weights: Any, k: int, *, block_size: int = 1, sink: int = 0, recent: int = 0, visible: Any = None
) -> np.ndarray:
    """Return which blocks are critical: the ⌊k/b⌋ heaviest, the first and the last ones among them by force.

    Parameters
    ----------
    weights : array_like, shape (..., T)
        Attention weights of the keys, those of a group of query heads averaged.
    k : int
        How many keys may be kept.
    block_size : int
        b, the number of keys in a block; 1 chooses single keys.
    sink, recent : int
        How many of the first and of the last visible keys are kept by force, in whole blocks: ⌊sink/b⌋ and
        ⌊recent/b⌋.
    visible : array_like of bool, shape of ``weights``, optional
        True = may be seen. A block without a visible key is never chosen.

    Returns
    -------
    ndarray of bool, shape (..., n_b)

    Raises
    ------
    ValueError
        If k < 1, b < 1, k < b, ``sink + recent`` exceeds k, or the shape of ``visible`` differs.

    Notes
    -----
    Equal blocks are taken from the left, and if ⌊k/b⌋ ≥ n_b all are taken [our definition]; the official tool leaves
    ties to a partition and fails in the second case.
    """
    check_budget(k, block_size=block_size, sink=sink, recent=recent)
    weights = as_float("weights", weights)
    visible = np.ones(weights.shape, dtype=bool) if visible is None else as_bool("visible", visible)
    require_shape("visible", visible, weights.shape)
    # eq: hylra-3
    B = block_weights(weights, block_size)  # (..., n_b)
    usable = _in_blocks(visible, block_size).any(axis=-1)  # (..., n_b)
    # eq: hylra-4
    place = np.cumsum(usable, axis=-1)  # 1, 2, … over the usable blocks
    last = place[..., -1:] - recent // block_size
    forced = usable & ((place <= sink // block_size) | (place > last))
    ranked = np.where(forced, np.inf, np.where(usable, B, -np.inf))
    # eq: hylra-5
    order = np.argsort(-ranked, axis=-1, kind="stable")  # (..., n_b), heaviest first
    chosen = np.argsort(order, axis=-1, kind="stable") < k // block_size  # the inverse permutation is the rank
    return np.asarray(chosen & usable)


def critical_blocks(
    weights: Any, k: int, *, block_size: int = 1, sink: int = 0, recent: int = 0, visible: Any = None
) -> np.ndarray:
    """Return the numbers of the critical blocks, ascending.

    Parameters
    ----------
    weights, k, block_size, sink, recent, visible
        As in `critical_mask`.

    Returns
    -------
    ndarray of int, shape (..., min(⌊k/b⌋, n_b))
        Where fewer blocks are visible, −1 fills the end.

    Raises
    ------
    ValueError
        As in `critical_mask`.
    """
    mask = critical_mask(weights, k, block_size=block_size, sink=sink, recent=recent, visible=visible)
    return indices_of(mask, min(k // block_size, mask.shape[-1]))


def indices_of(mask: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the True entries along the last axis, ascending, −1 where there are fewer than ``count``."""
    order = np.argsort(~mask, axis=-1, kind="stable")[..., :count]
    return np.where(np.take_along_axis(mask, order, axis=-1), order, -1)


def layer_overlap(masks: Any, *, per_head: bool = False) -> Any:
    """Return which part of a layer's critical set an earlier layer shares: M[i, j] = |Sᵢ ∩ Sⱼ| / |Sⱼ| for i < j.

    Parameters
    ----------
    masks : array_like, shape (L, S, H, n_b), or sequence of S arrays (L, H, n_b)
        Critical blocks, booleans or the floating numbers 0 and 1; the number of blocks may differ from step to step.
    per_head : bool
        Keep a table for each key/value head.

    Returns
    -------
    ndarray, shape (L, L), or (H, L, L) with ``per_head``
        The mean over steps (and heads), in the floating dtype of ``masks``. The diagonal is 1, below it is 0.

    Raises
    ------
    ValueError
        If there is no step, a critical set is empty, or a number is neither 0 nor 1.
    """
    steps = _steps(masks)
    # eq: hylra-6
    M = np.mean(np.stack([_step_overlap(member) for member in steps]), axis=0)  # (H, L, L)
    L = M.shape[-1]
    M = np.triu(M, k=1) + np.eye(L, dtype=M.dtype)
    return M if per_head else M.mean(axis=0)


def merge_overlap(overlap: Any, how: str = "min") -> Any:
    """Join the tables of all key/value heads into one.

    Parameters
    ----------
    overlap : array_like, shape (H, L, L)
        From `layer_overlap` with ``per_head``.
    how : {"min", "mean"}
        ``min`` is the careful choice; the official tool takes the mean where all heads share their keys (MLA).

    Returns
    -------
    ndarray, shape (L, L)

    Raises
    ------
    ValueError
        If ``overlap`` is not three-dimensional or ``how`` is unknown.
    """
    require_one_of("how", how, ("min", "mean"))
    overlap = as_float("overlap", overlap, ndim=3)
    # eq: hylra-7
    return overlap.min(axis=0) if how == "min" else overlap.mean(axis=0)


def hash_ratio(weights: Any, block_size: int, mass: float = 0.9) -> Any:
    """Return which share of the blocks stays inside the leading ``mass`` of attention: small means concentrated.

    Parameters
    ----------
    weights : array_like, shape (..., T)
        Attention weights, not negative, up to a factor; those of a group of query heads summed.
    block_size : int
        b.
    mass : float
        The leading part, 0 ≤ mass < 1.

    Returns
    -------
    ndarray, shape (...)
        The number of blocks, heaviest first, whose running total does not exceed ``mass``, over n_b: one block less
        than it takes to reach that part.

    Raises
    ------
    ValueError
        If b < 1, ``mass`` is out of range, there is no key, or a row has a negative weight or none above 0.

    Notes
    -----
    Called hash ratio in the official tool, because at run time that one finds the blocks by hashing.
    """
    weights = as_float("weights", weights)
    require(0 <= mass < 1, f"mass={mass!r} must lie in [0, 1)")
    B = block_weights(weights, block_size)  # (..., n_b)
    require(B.shape[-1] > 0, "weights has no keys")
    require(np.all(weights >= 0), "weights must not be negative")
    total = B.sum(axis=-1, keepdims=True)
    require(np.all(total > 0), "weights must have a positive sum in each row")
    # eq: hylra-9
    c = np.cumsum(np.flip(np.sort(B, axis=-1), axis=-1) / total, axis=-1)  # (..., n_b), increasing
    return np.mean(c <= mass, axis=-1, dtype=c.dtype)


def sensitive_by_hash_ratio(ratios: Any, sparsity: float) -> np.ndarray:
    """Return the layers that spread their attention most widely, and so keep it whole.

    Parameters
    ----------
    ratios : array_like, shape (H, S, L)
        `hash_ratio` of each head, step and layer.
    sparsity : float
        The share of layers that are not sensitive, 0 to 1.

    Returns
    -------
    ndarray of int, shape (⌈L (1 − sparsity)⌉,)
        Ascending.

    Raises
    ------
    ValueError
        If ``ratios`` is not three-dimensional, has no head or step, or ``sparsity`` is out of range.

    Notes
    -----
    The official tool slices the last ``[-n:]`` of a sorted list; for n = 0 that is the whole list. Here n = 0 means
    none. L (1 − sparsity) is computed in floating point as the tool writes it: 10 · (1 − 0.7) gives 4, not 3.
    """
    ratios = as_float("ratios", ratios, ndim=3)
    require(min(ratios.shape[:2]) > 0, f"ratios has shape {ratios.shape}, expected at least one head and step")
    require(0 <= sparsity <= 1, f"sparsity={sparsity!r} must lie in [0, 1]")
    # eq: hylra-10
    low, high = np.quantile(ratios, [0.25, 0.75], axis=1, keepdims=True)  # (H, 1, L) each
    reach = 1.5 * (high - low)
    clipped = np.clip(ratios, low - reach, high + reach)  # (H, S, L)
    stat = clipped.mean(axis=1).mean(axis=0)  # (L,)
    L = len(stat)
    count = int(np.ceil(L * (1 - sparsity)))
    return np.asarray(np.sort(np.argsort(stat, kind="stable")[L - count :]))


def check_budget(k: int, *, block_size: int, sink: int, recent: int, name: str = "k") -> None:
    """Refuse a number of kept keys, a block size and forced keys that do not go together."""
    _check_block_size(block_size)
    require(index(k) >= 1, f"{name}={k!r} must be at least 1")
    require(k >= block_size, f"{name}={k!r} must be at least block_size={block_size!r}")
    require(min(index(sink), index(recent)) >= 0, f"sink={sink!r}, recent={recent!r} must not be negative")
    require(sink + recent <= k, f"sink + recent = {sink + recent}: forced blocks exceed the budget {name}={k!r}")


def _check_block_size(block_size: int) -> None:
    require(index(block_size) >= 1, f"block_size={block_size!r} must be at least 1")


def _in_blocks(x: Any, block_size: int) -> Any:
    """Return (..., T) as (..., n_b, b), zeros at the end."""
    T = x.shape[-1]
    n_b = -(-T // block_size)
    filling = np.zeros((*x.shape[:-1], n_b * block_size - T), dtype=x.dtype)
    return np.concatenate([x, filling], axis=-1).reshape(*x.shape[:-1], n_b, block_size)


def _steps(masks: Any) -> Sequence[Any]:
    """Return the members of critical sets as 0 and 1, one (L, H, n_b) array for each step."""
    if isinstance(masks, np.ndarray):
        masks = np.moveaxis(as_float("masks", masks, ndim=4), 1, 0)
    steps = [as_float("masks of a step", mask, ndim=3) for mask in masks]
    require(steps, "masks holds no step")
    require(all(((mask == 0) | (mask == 1)).all() for mask in steps), "masks must hold booleans, or 0 and 1")
    require(all((mask > 0).any(axis=-1).all() for mask in steps), "masks holds an empty critical set")
    return steps


def _step_overlap(member: Any) -> Any:
    """Return |Sᵢ ∩ Sⱼ| / |Sⱼ| of one step: (L, H, n_b) to (H, L, L)."""
    member = np.swapaxes(member, 0, 1)  # (H, L, n_b)
    common = member @ np.swapaxes(member, -1, -2)  # (H, L, L)
    return common / member.sum(axis=-1)[:, None, :]
