"""How FIT cuts a sequence up: layer strings, groups of an image, orders of patches, the shift, the group mask.

From FIT (2305.12689) and the models of its released code. Equation label (fit-6) is that of the page.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import Any

import numpy as np

from refattn.primitives.arguments import as_integer, require

__all__ = [
    "group_causal_mask",
    "parse_fit_layers",
    "patch_groups",
    "shift_right",
    "snake_order",
    "sub_image_groups",
]


def parse_fit_layers(spec: str) -> tuple[tuple[int, int], ...]:
    """Read a layer string such as ``(2)4(2)``: local layers in brackets, global layers after them.

    Parameters
    ----------
    spec : str
        One or more stages ``(a)b``; a bracket at the end stands for ``(a)0``.

    Returns
    -------
    tuple of (int, int)
        Local and global layers (a, b) of each stage.

    Raises
    ------
    ValueError
        If the string is no such sequence, or a stage before the last has no global layers: nothing would leave it.
    """
    text = spec + "0" if spec.endswith(")") else spec
    require(
        re.fullmatch(r"(\([0-9]+\)[0-9]+)+", text, flags=re.ASCII),
        f"Unrecognized layer specification {spec!r}: expected stages like '(2)4(2)'",
    )
    stages = tuple((int(a), int(b)) for a, b in re.findall(r"\(([0-9]+)\)([0-9]+)", text))
    for local, wide in stages[:-1]:
        require(wide > 0, f"spec={spec!r}: stage ({local}){wide} before the last must have global layers")
    return stages


def group_causal_mask(num_groups: int, latents_per_group: int) -> np.ndarray:
    """Return which latents see which: all of the own group and all of the groups before it.

    Parameters
    ----------
    num_groups, latents_per_group : int
        t and m.

    Returns
    -------
    ndarray of bool, shape (t m, t m)
        True = may attend.

    Raises
    ------
    ValueError
        If a size is negative.
    """
    require(num_groups >= 0, f"num_groups={num_groups!r} must be >= 0")
    require(latents_per_group >= 0, f"latents_per_group={latents_per_group!r} must be >= 0")
    group = np.arange(num_groups).repeat(latents_per_group)  # (t m,)
    # eq: fit-6
    return np.asarray(group[None, :] <= group[:, None])


def shift_right(ids: Any, *, start: int = 0) -> np.ndarray:
    """Turn targets into inputs: every token moves one place on, across groups, and the last one falls out.

    Parameters
    ----------
    ids : array_like of int, shape (B, t, n)
        Targets.
    start : int
        What stands before the first target.

    Returns
    -------
    ndarray of int, shape (B, t, n)
        In the dtype of ``ids``.

    Raises
    ------
    ValueError
        If the ids are not integers or not three-dimensional.
    """
    ids = as_integer("ids", ids, ndim=3)
    flat = ids.reshape(len(ids), ids.shape[1] * ids.shape[2])  # (B, t n)
    first = np.full_like(flat[:, :1], start)
    return np.concatenate([first, flat[:, :-1]], axis=1).reshape(ids.shape)


def snake_order(height: int, width: int) -> np.ndarray:
    """Return the order in which a snake walks a grid: left to right, then right to left, and so on.

    Parameters
    ----------
    height, width : int
        The sides of the grid, in patches.

    Returns
    -------
    ndarray of int, shape (height · width,)
        Row-major indices: entry p is the patch that comes p-th, always beside the one before it.

    Raises
    ------
    ValueError
        If a side is negative.
    """
    require(height >= 0, f"height={height!r} must be >= 0")
    require(width >= 0, f"width={width!r} must be >= 0")
    index = np.arange(height * width).reshape(height, width)
    index[1::2] = index[1::2, ::-1].copy()
    return index.reshape(-1)


def patch_groups(images: Any, *, patch_size: int, order: str = "snake") -> np.ndarray:
    """Cut images into patches and make each a group of its pixel values: the groups of the autoregressive model.

    Parameters
    ----------
    images : array_like, shape (B, H, W, C)
        H and W are multiples of the patch size.
    patch_size : int
        The side s of a patch.
    order : {"snake", "raster"}
        The order of the patches.

    Returns
    -------
    ndarray, shape (B, t, s² C)
        t = HW/s² groups; inside a group pixels are row-major with channels last.

    Raises
    ------
    ValueError
        If the images are not four-dimensional or do not divide into patches, or the order is unknown.
    """
    require(order in ("snake", "raster"), f"order={order!r} is not one of 'snake', 'raster'")
    patches = _patches(images, patch_size)  # (B, H/s, W/s, s, s, C)
    B, rows, columns = patches.shape[:3]
    flat = patches.reshape(B, rows * columns, int(np.prod(patches.shape[3:])))  # (B, t, s² C)
    return flat[:, snake_order(rows, columns)] if order == "snake" else flat


def sub_image_groups(images: Any, *, num_groups: int, patch_size: int) -> np.ndarray:
    """Cut images into √t × √t sub-images and each into patches: groups of tokens that lie together.

    Parameters
    ----------
    images : array_like, shape (B, H, W, C)
        H and W are multiples of √t · s.
    num_groups : int
        t, a square number.
    patch_size : int
        The side s of a patch, which is one token.

    Returns
    -------
    ndarray, shape (B, t, n, s² C)
        Sub-images and the patches in them are row-major.

    Raises
    ------
    ValueError
        If ``num_groups`` is no square, or the images do not divide.
    """
    side = isqrt(max(num_groups, 0))
    require(num_groups >= 1 and side * side == num_groups, f"num_groups={num_groups!r} must be a square number")
    patches = _patches(images, patch_size)  # (B, H/s, W/s, s, s, C)
    B, rows, columns, s, _, C = patches.shape
    require(rows % side == columns % side == 0, f"{rows} x {columns} patches do not divide into {num_groups} groups")
    cut = patches.reshape(B, side, rows // side, side, columns // side, s * s * C)  # (B, √t, ·, √t, ·, s² C)
    return np.swapaxes(cut, 2, 3).reshape(B, num_groups, (rows // side) * (columns // side), s * s * C)


def _patches(images: Any, s: int) -> np.ndarray:
    """Return the patches (B, H/s, W/s, s, s, C) of images."""
    images = np.asanyarray(images)
    require(images.ndim == 4, f"images has shape {images.shape}, expected (B, H, W, C)")
    B, H, W, C = images.shape
    require(s >= 1 and H % s == W % s == 0, f"patch_size={s!r} must divide the sides {H} and {W} of images")
    return np.swapaxes(images.reshape(B, H // s, s, W // s, s, C), 2, 3)
