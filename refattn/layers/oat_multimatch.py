"""How alike two scanpaths are as lines on a screen: MultiMatch, five similarities of aligned saccades.

Equation source: Jarodzka, Holmqvist and Nyström, 'A vector-based, multidimensional scanpath similarity measure' (2010),
and Dewhurst et al. (2012) [recalled], as in PyPI ``multimatch_gaze`` and ``evaluation/MM/calculate_mm.py`` of the
released code of OAT (2407.13335), commit 0c48c3e. Paths are not simplified first.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_finite, require_shape

__all__ = ["SHELVES", "Shelf", "align_saccades", "multimatch", "object_centres", "pad_scanpath"]

FEWEST_FIXATIONS = 3


class Shelf(NamedTuple):
    """How a data set lays its objects out on the screen of 1680 × 1050.

    Attributes
    ----------
    n_rows, n_cols : int
        R and C.
    height, width : float
        Of one object, in pixels.
    title : float
        What stands above the shelf, in pixels.
    """

    n_rows: int
    n_cols: int
    height: float
    width: float
    title: float


SHELVES = {
    "wine": Shelf(2, 11, 449, 152, 152),
    "yogurt": Shelf(3, 9, 305, 186, 135),
    "amazon": Shelf(6, 14, 267, 183, 0),
}


def object_centres(path: Any, shelf: Shelf) -> np.ndarray:
    """Return the pixel in the middle of each fixated object.

    Parameters
    ----------
    path : array_like of int, shape (L,)
        Object indices.
    shelf : Shelf
        The layout; see `SHELVES`.

    Returns
    -------
    ndarray, shape (L, 2)
        (x, y), y downwards.

    Raises
    ------
    ValueError
        If an index is not on the shelf.
    """
    path = as_integer("path", path, ndim=1)
    n = shelf.n_rows * shelf.n_cols
    require(path.min(initial=0) >= 0 and path.max(initial=0) < n, f"path={path.tolist()!r} must hold 0 to {n - 1}")
    row, col = path // shelf.n_cols, path % shelf.n_cols
    # eq: oat-23
    return np.stack([col * shelf.width + shelf.width / 2, shelf.title + row * shelf.height + shelf.height / 2], axis=-1)


def pad_scanpath(path: Any) -> np.ndarray:
    """Fill a short path of pixels up to three rows with ones, as the released wrapper does before `multimatch`.

    Parameters
    ----------
    path : array_like, shape (L, 2)
        Pixels.

    Returns
    -------
    ndarray, shape (max(L, 3), 2)

    Raises
    ------
    ValueError
        If the shape is wrong.
    """
    path = _pixels("path", path)
    missing = max(FEWEST_FIXATIONS - len(path), 0)
    return np.concatenate([path, np.ones((missing, 2), path.dtype)])


def multimatch(path_a: Any, path_b: Any, screen: Any, durations: Any = None) -> np.ndarray:
    """Compare two paths of pixels by shape, direction, length, position and duration.

    1. Turn fixations into saccades, and align those of one path with those of the other.
    2. Along the alignment take the median difference of each kind, over the largest possible.

    Parameters
    ----------
    path_a, path_b : array_like, shapes (I + 1, 2) and (J + 1, 2)
        Pixels (x, y); y downwards or upwards, but the same for both.
    screen : array_like, shape (2,)
        Width and height; its diagonal is the largest distance.
    durations : pair of array_like, shapes (I + 1,) and (J + 1,), optional
        How long each fixation lasted, > 0. Equal if not given.

    Returns
    -------
    ndarray, shape (5,)
        Vector, direction, length, position, duration; 1 is alike. NaN if a path has fewer than three fixations.

    Raises
    ------
    ValueError
        If shapes disagree, a number is not finite, the screen is empty or a duration not positive.

    Notes
    -----
    A saccade of length zero has direction 0. Of equally short alignments the one that ends diagonally is taken, then
    the one that ends downwards (in the first path) [our definition].
    """
    a, b = _pixels("path_a", path_a), _pixels("path_b", path_b)
    screen = as_float("screen", screen)
    require_shape("screen", screen, (2,))
    require(np.all(screen > 0), f"screen={screen.tolist()!r} must be > 0")
    time_a, time_b = _durations(durations, len(a), len(b))
    if min(len(a), len(b)) < FEWEST_FIXATIONS:
        return np.full(5, np.nan)
    u, w = np.diff(a, axis=0), np.diff(b, axis=0)  # (I, 2), (J, 2)
    i, j = np.transpose(align_saccades(u, w))
    u, w, diagonal = u[i], w[j], math.hypot(*screen)
    turn = np.abs(np.arctan2(u[:, 1], u[:, 0]) - np.arctan2(w[:, 1], w[:, 0]))
    lengths = np.hypot(u[:, 0], u[:, 1]) - np.hypot(w[:, 0], w[:, 1])
    start_a, start_b = time_a[i], time_b[j]
    # eq: oat-25
    differences = (
        np.linalg.norm(u - w, axis=1) / (2 * diagonal),
        np.minimum(turn, 2 * math.pi - turn) / math.pi,
        np.abs(lengths) / diagonal,
        np.linalg.norm(a[i] - b[j], axis=1) / diagonal,
        np.abs(start_a - start_b) / np.maximum(start_a, start_b),
    )
    return np.asarray(1.0 - np.median(differences, axis=1))


def align_saccades(u: Any, w: Any) -> list[tuple[int, int]]:
    """Find the cheapest walk through all pairs of saccades, from both first to both last ones.

    Parameters
    ----------
    u, w : array_like, shapes (I, 2) and (J, 2)
        Saccades, at least one each.

    Returns
    -------
    list of (int, int)
        Pairs in order. A step goes on in one path, in the other, or in both; it costs |u_i − w_j| where it arrives.

    Raises
    ------
    ValueError
        If shapes are wrong or there is no saccade.
    """
    u, w = _pixels("u", u), _pixels("w", w)
    require(min(len(u), len(w)) >= 1, "u and w must hold at least one saccade each")
    M = np.linalg.norm(u[:, None] - w, axis=-1)  # (I, J)
    total = np.full(M.shape, np.inf)
    total[0, 0] = 0.0
    for i, j in np.ndindex(M.shape):
        if i or j:
            # eq: oat-24
            total[i, j] = M[i, j] + min(total[p] for p in _before(i, j))
    walk = [(len(u) - 1, len(w) - 1)]
    while walk[-1] != (0, 0):
        walk.append(min(_before(*walk[-1]), key=lambda p: total[p]))  # of equal ones the first
    return walk[::-1]


def _before(i: int, j: int) -> list[tuple[int, int]]:
    """Return where a step to (i, j) may come from: diagonally, from above, from the left."""
    return [(p, q) for p, q in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p >= 0 and q >= 0]


def _pixels(name: str, path: Any) -> Any:
    path = as_float(name, path)
    require(path.ndim == 2 and path.shape[1] == 2, f"{name} has shape {path.shape}, expected (L, 2)")
    require_finite(name, path)
    return path


def _durations(durations: Any, *lengths: int) -> list[np.ndarray]:
    if durations is None:
        return [np.ones(length) for length in lengths]
    require(len(durations) == 2, f"durations has {len(durations)} parts, expected one for each path")
    times = [as_float(f"durations[{p}]", time) for p, time in enumerate(durations)]
    for p, (time, length) in enumerate(zip(times, lengths, strict=True)):
        require_shape(f"durations[{p}]", time, (length,))
        require(np.all(time > 0), f"durations[{p}]={time.tolist()!r} must be > 0")
    return times
