"""Cutting a feature map into a grid of rectangular regions, and putting it together again.

Regions are numbered row by row, and so are the tokens inside one region: the layout of bi-level routing attention
(BiFormer, arXiv 2303.08810, section 3.2).
"""

from __future__ import annotations

import numpy as np

from refattn.primitives.arguments import as_float, require

__all__ = ["region_merge", "region_partition"]


def region_partition(x: np.ndarray, *, n_win: int | tuple[int, int]) -> np.ndarray:
    """Cut feature maps into ``n_win`` by ``n_win`` blocks of neighbouring tokens.

    Parameters
    ----------
    x : ndarray, shape (..., H, W, C)
        Feature maps, channels last.
    n_win : int or (int, int)
        S, the number of regions per side, or the numbers of region rows and region columns.

    Returns
    -------
    ndarray, shape (..., R, h, w, C)
        Region r = row · columns + column holds the h × w = (H / rows) × (W / columns) tokens of its block.

    Raises
    ------
    ValueError
        If the regions do not divide the feature map.

    References
    ----------
    BiFormer, arXiv 2303.08810, section 3.2 (region partition).
    """
    x = as_float("x", x)
    require(x.ndim >= 3, f"x has {x.ndim} axes (shape {x.shape}), expected at least 3: (..., H, W, C)")
    rows, columns = _per_side(n_win)
    *batch, H, W, C = x.shape
    require(H % rows == 0 and W % columns == 0, f"H={H}, W={W} are not divisible by n_win={n_win}")
    blocks = x.reshape(*batch, rows, H // rows, columns, W // columns, C)
    blocks = np.moveaxis(blocks, -4, -3)  # (..., rows, columns, h, w, C)
    return blocks.reshape(*batch, rows * columns, H // rows, W // columns, C)


def region_merge(regions: np.ndarray, *, n_win: int | tuple[int, int]) -> np.ndarray:
    """Undo `region_partition`.

    Parameters
    ----------
    regions : ndarray, shape (..., R, h, w, C)
        Regions in row-major order.
    n_win : int or (int, int)
        As for `region_partition`.

    Returns
    -------
    ndarray, shape (..., H, W, C)
        The feature maps.

    Raises
    ------
    ValueError
        If R is not the number of regions that ``n_win`` says.
    """
    regions = as_float("regions", regions)
    require(regions.ndim >= 4, f"regions has {regions.ndim} axes (shape {regions.shape}), expected at least 4")
    rows, columns = _per_side(n_win)
    *batch, R, h, w, C = regions.shape
    require(rows * columns == R, f"regions holds {R} regions, n_win={n_win} says {rows * columns}")
    blocks = regions.reshape(*batch, rows, columns, h, w, C)
    blocks = np.moveaxis(blocks, -3, -4)  # (..., rows, h, columns, w, C)
    return blocks.reshape(*batch, rows * h, columns * w, C)


def _per_side(n_win: int | tuple[int, int]) -> tuple[int, int]:
    rows, columns = n_win if isinstance(n_win, tuple) else (n_win, n_win)
    require(rows >= 1 and columns >= 1, f"n_win={n_win} must be at least 1")
    return rows, columns
