"""Dividing the tokens of all views into groups: by stride, by window, by place, or not at all.

From the Long-Range Grouping Transformer (2308.08724), figure 1; equation (lrgt-1) is that of the page. A group always
holds the same places of every view. Token (y, x) of a g × g grid has the index y·g + x, and view v of batch element b
is row b·V + v.
"""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_one_of, require_shape

__all__ = ["KINDS", "check_grid", "check_views", "group_labels", "group_tokens", "grouping_mask", "ungroup_tokens"]

KINDS = ("long", "short", "token", "full")
"""The strategies LGA, SGA, TGA and FRA of the paper's figure 1."""


def group_labels(*, grid: int, stride: int = 7, kind: str = "long") -> np.ndarray:
    """Return the group that each place of the grid belongs to.

    Parameters
    ----------
    grid : int
        g, tokens per side of a view.
    stride : int
        s, a divisor of g: there are s² groups of t² places, t = g/s. ``token`` and ``full`` need none.
    kind : {"long", "short", "token", "full"}
        ``long``: every s-th row and column, so each group is a thumbnail of the whole view. ``short``: windows of
        t × t neighbours. ``token``: each place is a group. ``full``: one group.

    Returns
    -------
    ndarray of int, shape (g²,)
        Numbers from 0.

    Raises
    ------
    ValueError
        If the stride does not divide the grid, either is below 1, or the kind is unknown.

    Notes
    -----
    One rule covers all but windows: ``long`` with s = 1 is ``full``, with s = g it is ``token``. Only ``long`` is in
    the released code, which fixes g = 14; the others follow the figure.
    """
    check_grid(grid, stride, kind)
    s = {"token": grid, "full": 1}.get(kind, stride)
    y, x = np.divmod(np.arange(grid * grid), grid)  # (P,), (P,)
    # eq: lrgt-1
    if kind == "short":
        t = grid // s
        return np.asarray((y // t) * s + x // t)
    return np.asarray((y % s) * s + x % s)


def group_tokens(x: Any, *, num_views: int, grid: int, stride: int = 7, kind: str = "long") -> np.ndarray:
    """Collect the tokens of each group from all views.

    Parameters
    ----------
    x : array_like, shape (B·V, g², D)
        Tokens of each view.
    num_views : int
        V.
    grid, stride, kind
        As in `group_labels`.

    Returns
    -------
    ndarray, shape (B, groups, n·V, D)
        The n places of a group row by row, and at each place all its views.

    Raises
    ------
    ValueError
        If the first axis is not a multiple of V, the second is not g², or as `group_labels`.
    """
    x = as_float("x", x, ndim=3)
    members = _members(grid, stride, kind)  # (groups, n)
    check_views(x, num_views, grid)
    views = x.reshape(len(x) // num_views, num_views, *x.shape[1:])  # (B, V, P, D)
    groups = np.moveaxis(views[:, :, members], 1, 3)  # (B, groups, n, V, D)
    B, G, n, V, D = groups.shape
    grouped: np.ndarray = groups.reshape(B, G, n * V, D)
    return grouped


def ungroup_tokens(x: Any, *, num_views: int, grid: int, stride: int = 7, kind: str = "long") -> np.ndarray:
    """Undo `group_tokens`.

    Parameters
    ----------
    x : array_like, shape (B, groups, n·V, D)
        Tokens by group.
    num_views : int
        V.
    grid, stride, kind
        As in `group_labels`.

    Returns
    -------
    ndarray, shape (B·V, g², D)
        Tokens by view.

    Raises
    ------
    ValueError
        If ``x`` does not have as many groups and tokens as the options say, or as `group_labels`.
    """
    x = as_float("x", x, ndim=4)
    members = _members(grid, stride, kind)  # (groups, n)
    require(index(num_views) >= 1, f"num_views={num_views!r} must be at least 1")
    B, D = x.shape[0], x.shape[-1]
    G, n = members.shape
    require_shape("x", x, (B, G, n * num_views, D))
    views = np.moveaxis(x.reshape(B, G, n, num_views, D), 3, 1)  # (B, V, groups, n, D)
    place = np.argsort(members.ravel())  # where each token stands among the groups
    tokens: np.ndarray = views.reshape(B * num_views, G * n, D)[:, place]
    return tokens


def grouping_mask(*, num_views: int, grid: int, stride: int = 7, kind: str = "long") -> np.ndarray:
    """Write the grouping as a mask of dense attention over the tokens of all views.

    Parameters
    ----------
    num_views : int
        V.
    grid, stride, kind
        As in `group_labels`.

    Returns
    -------
    ndarray of bool, shape (V·g², V·g²)
        True where two tokens share a group; tokens view after view.

    Raises
    ------
    ValueError
        If V is below 1, or as `group_labels`.
    """
    require(index(num_views) >= 1, f"num_views={num_views!r} must be at least 1")
    labels = np.tile(group_labels(grid=grid, stride=stride, kind=kind), num_views)  # (V P,)
    return np.asarray(labels[:, None] == labels)


def check_grid(grid: int, stride: int, kind: str) -> None:
    """Refuse an unknown kind, a grid below 1, and a stride that is below 1 or does not divide the grid."""
    require_one_of("kind", kind, KINDS)
    require(index(grid) >= 1, f"grid={grid!r} must be at least 1")
    if kind in ("long", "short"):
        require(index(stride) >= 1, f"stride={stride!r} must be at least 1")
        require(grid % stride == 0, f"stride={stride!r} must divide grid={grid!r}")


def check_views(x: np.ndarray, num_views: int, grid: int) -> None:
    """Refuse tokens that are not those of V views of g² tokens."""
    require(index(num_views) >= 1, f"num_views={num_views!r} must be at least 1")
    require(len(x) % num_views == 0, f"the first axis of x, {len(x)}, is not a multiple of num_views={num_views}")
    require(x.shape[1] == grid * grid, f"x has shape {x.shape}, expected (B·V, {grid * grid}, D) for grid={grid}")


def _members(grid: int, stride: int, kind: str) -> np.ndarray:
    """Return the places of each group, (groups, n), in the order of the grid."""
    labels = group_labels(grid=grid, stride=stride, kind=kind)
    return np.argsort(labels, kind="stable").reshape(int(labels[-1]) + 1, -1)
