"""How far predicted voxels are from the object: the Dice loss of training, the overlap of evaluation.

Equation source: ``losses/losses.py`` and ``core/test.py`` of the released LRGT code (2308.08724), commit a09fc43.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_one_of, require_shape

__all__ = ["dice_loss", "voxel_iou"]


def dice_loss(pred: Any, target: Any, *, smooth: float = 1.0, reduction: str = "mean") -> Any:
    """Return 1 − (Σpt + 1) / (Σp² + Σt² + 1), the mean over samples.

    Parameters
    ----------
    pred, target : array_like, shape (B, ...)
        Predicted probabilities, and the truth in [0, 1].
    smooth : float
        The number 1 above; it keeps empty samples finite.
    reduction : {"mean", "none"}
        The mean over samples, or each sample's loss.

    Returns
    -------
    ndarray, shape () or (B,)
        In the dtype of ``pred``.

    Raises
    ------
    ValueError
        If shapes differ, the target leaves [0, 1], ``smooth`` is not positive, or the mean of no sample is asked for.

    Notes
    -----
    The usual Dice coefficient has a factor 2 in its numerator. Without it, a perfect prediction of n filled voxels
    costs 1 − (n + 1)/(2n + 1), which tends to 1/2 and is 0 only for the empty target.
    """
    require_one_of("reduction", reduction, ("mean", "none"))
    p, t = _pair(pred, target)
    require(0 < smooth < math.inf, f"smooth={smooth!r} must be positive and finite")
    require(reduction == "none" or len(p) > 0, f"pred has shape {p.shape}: no sample has no mean")
    # eq: lrgt-16
    product, squares = np.sum(p * t, axis=-1), np.sum(p * p, axis=-1) + np.sum(t * t, axis=-1)  # (B,)
    loss = 1.0 - (product + smooth) / (squares + smooth)
    return np.mean(loss) if reduction == "mean" else loss


def voxel_iou(pred: Any, target: Any, *, threshold: float = 0.3) -> np.ndarray:
    """Return the voxels that are filled in both, over those that are filled in either.

    Parameters
    ----------
    pred, target : array_like, shape (B, ...)
        Predicted probabilities, and the truth, 0 or 1.
    threshold : float
        τ: a voxel counts as filled from this probability on. Evaluation tries 0.3, 0.4 and 0.5 and keeps the best mean.

    Returns
    -------
    ndarray, shape (B,)
        Float64 in [0, 1]; 1 where both are empty [our definition].

    Raises
    ------
    ValueError
        If shapes differ, the target is not 0 or 1, or the threshold is not finite.
    """
    p, t = _pair(pred, target)
    require(np.all((t == 0) | (t == 1)), "target must be 0 or 1 in every voxel")
    require(np.isfinite(threshold), f"threshold={threshold!r} must be finite")
    filled, full = p >= threshold, t == 1  # (B, voxels)
    both, either = np.sum(filled & full, axis=-1), np.sum(filled | full, axis=-1)  # (B,)
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def _pair(pred: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return prediction and target as (B, voxels) in one dtype."""
    p, t = as_float("pred", pred), as_float("target", target)
    require(p.ndim >= 1, f"pred has shape {p.shape}, expected (B, ...)")
    require_shape("target", t, p.shape)
    require(np.all((t >= 0) & (t <= 1)), "target must lie in [0, 1] in every voxel")
    flat = (len(p), math.prod(p.shape[1:]))
    return p.reshape(flat), t.astype(p.dtype, copy=False).reshape(flat)
