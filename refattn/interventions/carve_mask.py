"""From a score map to the part of the image that is looked at again: threshold, regions, mask, crop, magnify.

From CARVE (2509.06461). Masks are boolean maps (h, w). Equation labels (carve-8) … (carve-11) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from refattn.interventions.carve_resize import bilinear_resize, nearest_resize
from refattn.primitives.arguments import as_bool, as_float, require, require_finite, require_one_of, require_shape
from refattn.primitives.pooling import adaptive_avg_pool2d
from refattn.primitives.selection import top_k

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "answer_images",
    "attention_mask",
    "connected_regions",
    "mask_bbox",
    "mask_image",
    "patch_mask",
    "refine_image",
]

STRATEGIES = ("attention_sum", "size", "remove_small")
COUNT_RULES = ("code", "paper")
METHODS = {"bilinear": bilinear_resize, "nearest": nearest_resize}
RULES = ("code", "paper")


def connected_regions(mask: Any) -> tuple[np.ndarray, int]:
    """Find and number the regions of a mask whose pixels touch along an edge.

    Parameters
    ----------
    mask : array_like of bool, shape (h, w)
        True = belongs to a region.

    Returns
    -------
    labels : ndarray of int64, shape (h, w)
        0 outside; regions are numbered from 1 in the order in which their first pixels are read, row by row.
    n : int
        The number of regions.

    Raises
    ------
    ValueError
        If ``mask`` is not a boolean map.
    """
    # in C order, because scipy reads along whichever axis lies closest in memory
    mask = np.ascontiguousarray(as_bool("mask", mask, ndim=2))
    labels, n = ndimage.label(mask, output=np.int64)
    return labels, int(n)


def attention_mask(
    score_map: Any,
    top_p: float = 0.2,
    max_regions: int = 3,
    *,
    strategy: str = "attention_sum",
    count_rule: str = "code",
    outlier_percent: float = 0.1,
) -> np.ndarray:
    """Keep the best regions of the best pixels.

    1. Threshold at the (1 − p) quantile of the map.
    2. Number the regions of what is left.
    3. Score each region.
    4. Keep the K' best, or drop the smallest.

    Parameters
    ----------
    score_map : array_like, shape (h, w)
        As from `fuse_contrastive_attention`.
    top_p : float
        The share p of pixels that pass the threshold, 0 < p ≤ 1.
    max_regions : int
        K ≥ 1.
    strategy : {"attention_sum", "size", "remove_small"}
        Score by the sum of the map over the region, or by its area; or keep every region whose area is not below a
        share of the area of all, whatever K.
    count_rule : {"code", "paper"}
        K' = max(K, ⌊n p⌋) for n regions, as the released code does; or K' = K.
    outlier_percent : float
        That share, in percent, for ``remove_small``.

    Returns
    -------
    ndarray of bool, shape (h, w)
        The union of the regions that are kept.

    Raises
    ------
    ValueError
        If the map has not two axes, no pixel or an entry that is not finite, p is outside (0, 1], K is below 1, an
        option is unknown, or ``outlier_percent`` is outside [0, 100].

    Notes
    -----
    Among regions of equal score the smaller number wins. The quantile interpolates linearly between two pixels; a
    constant map passes whole. Paper and code differ in K', see ``count_rule``. Appendix B of the paper gives τ = 0.05,
    which contradicts its τ = Q_p(S); the quantile is what runs.

    References
    ----------
    2509.06461, Algorithm 1.
    """
    score_map = as_float("score_map", score_map, ndim=2)
    require(score_map.size >= 1, f"score_map has shape {score_map.shape}: there is no pixel")
    require_finite("score_map", score_map)
    require(0 < top_p <= 1, f"top_p={top_p!r} must lie in (0, 1]")
    require(index(max_regions) >= 1, f"max_regions={max_regions!r} must be at least 1")
    require(0 <= outlier_percent <= 100, f"outlier_percent={outlier_percent!r} must lie in [0, 100]")
    require_one_of("strategy", strategy, STRATEGIES)
    require_one_of("count_rule", count_rule, COUNT_RULES)
    # eq: carve-8
    B = score_map >= np.percentile(np.asarray(score_map), (1.0 - top_p) * 100)  # 1
    labels, n = connected_regions(B)  # 2
    area = np.bincount(labels.ravel(), minlength=n + 1)[1:]  # (n,)
    if strategy == "remove_small":
        kept = area >= int(area.sum() * outlier_percent / 100)  # 4 (n,)
    else:
        sums = np.bincount(labels.ravel(), score_map.ravel(), n + 1)[1:]  # (n,)
        scores = np.asarray(sums if strategy == "attention_sum" else area)  # 3 (n,)
        # eq: carve-9
        count = max(max_regions, int(n * top_p)) if count_rule == "code" else max_regions
        _, best = top_k(scores, k=min(count, n))
        kept = np.isin(np.arange(n), best)  # 4
    # label 0 is the ground, which is never kept
    return np.asarray(np.concatenate([[False], kept])[labels])  # (h, w)


def mask_bbox(mask: Any) -> tuple[int, int, int, int]:
    """Return the smallest box that holds a mask.

    Parameters
    ----------
    mask : array_like of bool, shape (h, w)
        A mask; if it is empty, the box is the whole image.

    Returns
    -------
    x0, y0, x1, y1 : int
        First column and row, and the column and row after the last.

    Raises
    ------
    ValueError
        If ``mask`` is not a boolean map.
    """
    mask = as_bool("mask", mask, ndim=2)
    y, x = np.nonzero(mask)
    if not len(y):
        return 0, 0, mask.shape[1], mask.shape[0]
    # eq: carve-10
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def mask_image(image: Any, mask: Any) -> np.ndarray:
    """Blacken what the mask leaves out.

    Parameters
    ----------
    image : array_like, shape (h, w, 3)
        An image in any units.
    mask : array_like of bool, shape (h, w)
        True = stays.

    Returns
    -------
    ndarray, shape (h, w, 3)
        In the dtype of ``image``.

    Raises
    ------
    ValueError
        If the image is not (h, w, 3), the mask is not boolean, or their sizes differ.
    """
    image, mask = _image_and_mask(image, mask)
    return np.asanyarray(image * mask[..., None].astype(image.dtype))


def refine_image(image: Any, mask: Any, magnify: bool = True, *, method: str = "bilinear") -> np.ndarray:
    """Blacken what the mask leaves out, cut out its box, and magnify the box until it covers the image's size.

    Parameters
    ----------
    image : array_like, shape (h, w, 3)
        An image in any units.
    mask : array_like of bool, shape (h, w)
        True = stays.
    magnify : bool
        False returns the box at its own size.
    method : {"bilinear", "nearest"}
        How to magnify.

    Returns
    -------
    ndarray, shape (h', w', 3)
        Both sides grow by the same factor max(w/w_box, h/h_box), so one side fits and the other covers; lengths are
        cut to whole pixels.

    Raises
    ------
    ValueError
        As for `mask_image`, and for an unknown ``method``.

    Notes
    -----
    The released code magnifies with a Lanczos filter; both methods here are [our definition]. Its product of length and
    factor may fall below a whole number by rounding and lose a pixel; so does ours.
    """
    require_one_of("method", method, METHODS)
    image, mask = _image_and_mask(image, mask)
    x0, y0, x1, y1 = mask_bbox(mask)
    crop = mask_image(image, mask)[y0:y1, x0:x1]  # (ch, cw, 3)
    if not magnify:
        return crop
    (h, w), (ch, cw) = mask.shape, crop.shape[:2]
    # eq: carve-11
    scale = max(w / cw, h / ch)
    return METHODS[method](crop, (int(ch * scale), int(cw * scale)))


def answer_images(image: Any, refined: Any, rule: str = "code") -> tuple[Any, ...]:
    """Return the images that the model gets, in order, for its final answer.

    Parameters
    ----------
    image, refined : array_like
        The original, and the result of `refine_image`.
    rule : {"code", "paper"}
        Both, the original first, as the released code does; or the refined one alone.

    Returns
    -------
    tuple of array_like
        Two images, or one.

    Raises
    ------
    ValueError
        For an unknown rule.
    """
    require_one_of("rule", rule, RULES)
    return (image, refined) if rule == "code" else (refined,)


def patch_mask(mask: Any, grid: Sequence[int]) -> np.ndarray:
    """Return which patches a mask keeps: those of whose pixels at least half are in it [our definition].

    Parameters
    ----------
    mask : array_like of bool, shape (h, w)
        A mask of pixels, not empty.
    grid : (int, int)
        Rows and columns of patches.

    Returns
    -------
    ndarray of bool, shape (gh, gw)
        For asking again without encoding the image again; see `refattn.interventions.carve.RequeryHook`.

    Raises
    ------
    ValueError
        If ``mask`` is not a boolean map with a pixel, or a side of the grid is below 1.

    Notes
    -----
    Where the grid does not divide the image, a pixel on a border counts for the patches on both sides.
    """
    mask = as_bool("mask", mask, ndim=2)
    shares = adaptive_avg_pool2d(mask[..., None].astype(np.float64), size=(index(grid[0]), index(grid[1])))
    return np.asarray(shares[..., 0] >= 0.5)


def _image_and_mask(image: Any, mask: Any) -> tuple[Any, np.ndarray]:
    image = as_float("image", image)
    require(image.ndim == 3 and image.shape[-1] == 3, f"image has shape {image.shape}, expected (h, w, 3)")
    mask = as_bool("mask", mask, ndim=2)
    require_shape("mask", mask, image.shape[:2])
    require(mask.size >= 1, f"image has shape {image.shape}: there is no pixel")
    return image, mask
