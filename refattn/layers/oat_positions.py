"""Where an object stands, as a vector: distance-based tables, sinusoids, and the coordinates to look them up by.

From the Object-level Attention Transformer (2407.13335); equation source ``model/positionalEncodingLearned.py``,
``model/positionalEncoding.py`` and ``model/transformerLightning.py`` of the released code, commit 0c48c3e. A shelf of R
rows and C columns holds n = R·C objects, object i at (i // C, i mod C).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_one_of

__all__ = [
    "FREQUENCY_RULES",
    "SPECIAL_ROWS",
    "gaussian_position_table",
    "grid_coordinates",
    "object_position_embedding",
    "scene_coordinates",
    "sinusoid_grid",
    "sinusoid_position_table",
]

SPECIAL_ROWS = 4  # rows of zeros below a table, for special tokens whose index leads out of the shelf
FREQUENCY_RULES = ("original", "exp1", "exp2", "linear")
WIDER_ROWS, CLOSER_COLUMNS = 1.6, 0.6  # the two spacings that the released code tries


def gaussian_position_table(n_positions: int, dim: int, *, sigma: float = 2.0) -> np.ndarray:
    """Return vectors whose cosine similarity is a Gaussian of their distance.

    Parameters
    ----------
    n_positions : int
        P ≥ 1, the rows or columns that can be told apart.
    dim : int
        c ≥ 1 numbers each. From P on the similarities are exact; below, this is the best approximation of that rank.
    sigma : float
        σ > 0, how far "near" reaches. The authors found 2 the best of 1.5, 2 and 2.5.

    Returns
    -------
    ndarray, shape (P, c)
        Float64, rows of norm 1 if c ≥ P.

    Raises
    ------
    ValueError
        If a size is below 1 or ``sigma`` is not positive.

    Notes
    -----
    The authors look for such a table with Adam, 10 000 steps; theirs meets the Gaussian to 3e-5. The wanted matrix is
    positive definite, so its eigenvectors give a table at once [our definition]: columns in falling order of their
    eigenvalues, the first entry of each not negative.

    References
    ----------
    2407.13335; ``positionalEncodingLearned.py`` lines 61-93.
    """
    _check_size(n_positions=n_positions, dim=dim)
    require(0 < sigma < math.inf, f"sigma={sigma!r} must be positive and finite")
    position = np.arange(n_positions)
    # eq: oat-1
    G = np.exp(-((position[:, None] - position) ** 2) / (2 * sigma**2))  # (P, P)
    values, vectors = np.linalg.eigh(G)
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = np.where(vectors[0] < 0, -vectors, vectors)  # an eigenvector has no sign of its own
    # eq: oat-2
    W = vectors * np.sqrt(np.maximum(values, 0.0))  # (P, P); rounding may leave tiny negative eigenvalues
    return np.pad(W, ((0, 0), (0, max(dim - n_positions, 0))))[:, :dim]  # (P, c)


def sinusoid_position_table(n_positions: int, dim: int, *, base: float = 10000.0) -> np.ndarray:
    """Return the usual sinusoids: sin(p·base^(−2k/c)) at even places, the cosine at odd ones.

    Parameters
    ----------
    n_positions : int
        P ≥ 0 positions.
    dim : int
        c ≥ 1 numbers each.
    base : float
        > 0; the longest wave has almost 2π·base positions.

    Returns
    -------
    ndarray, shape (P, c)
        Float64.

    Raises
    ------
    ValueError
        If ``dim`` is below 1, ``n_positions`` negative, or ``base`` not positive.

    References
    ----------
    1706.03762, section 3.5; `refattn.layers.oat.oat_forward` adds these to the decoder's tokens.
    """
    require(n_positions >= 0, f"n_positions={n_positions!r} must be >= 0")
    _check_size(dim=dim)
    require(0 < base < math.inf, f"base={base!r} must be positive and finite")
    # eq: oat-5
    frequency = base ** (-np.arange(0, dim, 2) / dim)  # (⌈c/2⌉,)
    return _waves(np.arange(n_positions), frequency)[:, :dim]  # (P, c)


def sinusoid_grid(
    n_rows: int,
    n_cols: int,
    channels: int,
    *,
    n_flags: int = 2,
    rule: str = "original",
    alpha: float = 0.9,
    respace: str | None = None,
) -> np.ndarray:
    """Return a sinusoid for each (row, column, flag): the encodings that the Gaussian table is compared with.

    Parameters
    ----------
    n_rows, n_cols, n_flags : int
        Extent of the grid; 3, 11 and 2 in the released code.
    channels : int
        c numbers each. An axis has ch = 2⌈c/6⌉ of them; the three are put side by side and cut to c.
    rule : {"original", "exp1", "exp2", "linear"}
        Frequencies for k = 0, 2, …, ch − 2: 10000^(−k/ch), k^α/ch, (k/ch)^α or k·α/ch.
    alpha : float
        α of the last three rules.
    respace : {"x", "y"}, optional
        Put rows 1.6 apart, or columns 0.6, instead of 1.

    Returns
    -------
    ndarray, shape (n_rows, n_cols, n_flags, c)
        Float64. `object_position_embedding` takes it in place of a table.

    Raises
    ------
    ValueError
        If a size is below 1, or ``rule`` or ``respace`` is unknown.

    References
    ----------
    ``positionalEncoding.py`` lines 119-189.
    """
    _check_size(n_rows=n_rows, n_cols=n_cols, n_flags=n_flags, channels=channels)
    require_one_of("respace", respace, (None, "x", "y"))
    frequency = _frequencies(rule, 2 * -(-channels // 6), alpha)
    x = np.arange(n_rows) * (WIDER_ROWS if respace == "x" else 1.0)
    y = np.arange(n_cols) * (CLOSER_COLUMNS if respace == "y" else 1.0)
    axes = [_waves(place, frequency) for place in (x, y, np.arange(n_flags))]
    shape = (n_rows, n_cols, n_flags, axes[0].shape[-1])
    # eq: oat-6
    parts = [
        np.broadcast_to(wave.reshape([-1 if i == axis else 1 for i in range(3)] + [shape[-1]]), shape)
        for axis, wave in enumerate(axes)
    ]
    return np.concatenate(parts, axis=-1)[..., :channels]  # (R, C, F, c)


def grid_coordinates(
    indices: Any, n_cols: int, target: Any, *, centre_first: bool = False, n_rows: int | None = None
) -> np.ndarray:
    """Place decoder tokens on the shelf: (row, column, is it the target).

    Parameters
    ----------
    indices : array_like of int, shape (..., L)
        Objects, or special tokens: those lie in rows below the shelf.
    n_cols : int
        C.
    target : array_like of int, shape (...)
        The target's index.
    centre_first : bool
        Put the first token, the start, at the centre (R/2, C/2), rounded down, with flag 0; needs ``n_rows``.
    n_rows : int, optional
        R; if given, the target must lie on the shelf.

    Returns
    -------
    ndarray of int, shape (..., L, 3)

    Raises
    ------
    ValueError
        If something is not an integer, an index is negative, a size is below 1, or the target is not on the shelf.

    Notes
    -----
    In the encoder the flag marks one token, not all of one index: see `scene_coordinates`.

    References
    ----------
    ``transformerLightning.py`` lines 108-128.
    """
    indices, target = as_integer("indices", indices), as_integer("target", target)
    _check_size(n_cols=n_cols, n_rows=1 if n_rows is None else n_rows)
    require(indices.ndim >= 1, "indices must have at least one axis")
    require(indices.min(initial=0) >= 0, f"indices={indices.tolist()!r} must be >= 0")
    require(n_rows is not None or not centre_first, "n_rows must be given for centre_first")
    _check_target(target, None if n_rows is None else n_rows * n_cols)
    # eq: oat-3
    coords = np.stack([indices // n_cols, indices % n_cols, indices == target[..., None]], axis=-1)  # (..., L, 3)
    if centre_first and n_rows is not None:
        coords[..., :1, :] = (n_rows // 2, n_cols // 2, 0)
    return coords


def scene_coordinates(n_rows: int, n_cols: int, target: Any) -> np.ndarray:
    """Place encoder tokens: all objects of the shelf with flag 0, then the target once more with flag 1.

    Parameters
    ----------
    n_rows, n_cols : int
        R and C.
    target : array_like of int, shape (...)
        The target's index.

    Returns
    -------
    ndarray of int, shape (..., R·C + 1, 3)

    Raises
    ------
    ValueError
        If a size is below 1 or the target is not on the shelf.
    """
    target = as_integer("target", target)
    _check_size(n_rows=n_rows, n_cols=n_cols)
    _check_target(target, n_rows * n_cols)
    objects = np.broadcast_to(np.arange(n_rows * n_cols), (*target.shape, n_rows * n_cols))
    indices = np.concatenate([objects, target[..., None]], axis=-1)  # (..., n + 1)
    flag = np.arange(indices.shape[-1]) == n_rows * n_cols
    return np.stack([indices // n_cols, indices % n_cols, np.broadcast_to(flag, indices.shape)], axis=-1)


def object_position_embedding(coords: Any, table: Any, dim: int) -> np.ndarray:
    """Look places up: the table's rows for row, column and flag side by side, cut to ``dim`` numbers.

    Parameters
    ----------
    coords : array_like of int, shape (..., 3)
        (row, column, flag), from `grid_coordinates` or `scene_coordinates`.
    table : array_like, shape (P, c) or (X, Y, Z, c)
        One table for all three coordinates, or a grid with a vector for each place, such as `sinusoid_grid`.
    dim : int
        Width E/2 of the result.

    Returns
    -------
    ndarray, shape (..., dim)
        In the dtype of the table.

    Raises
    ------
    ValueError
        If the table is too narrow or a coordinate lies outside.

    Notes
    -----
    Four rows of zeros stand below a table, and one below a grid, for special tokens outside the shelf. Flags use the
    same rows 0 and 1 as the first two rows and columns do, as in the released code.

    References
    ----------
    ``models.py`` lines 228-238; ``positionalEncoding.py`` lines 227-234.
    """
    coords, table = as_integer("coords", coords), as_float("table", table)
    require(coords.ndim >= 1 and coords.shape[-1] == 3, f"coords has shape {coords.shape}, expected (..., 3)")
    require(table.ndim in (2, 4), f"table has shape {table.shape}, expected (P, c) or (X, Y, Z, c)")
    width = table.shape[-1] * (3 if table.ndim == 2 else 1)
    require(width >= dim >= 0, f"position table has fewer than {dim} columns: {width} of shape {table.shape}")
    below = SPECIAL_ROWS if table.ndim == 2 else 1
    table = np.concatenate([table, np.zeros_like(table[:1].repeat(below, axis=0))])  # (P + 4, c) or (X + 1, Y, Z, c)
    bounds = np.array(table.shape[:1] * 3 if table.ndim == 2 else table.shape[:3])
    require(np.all((coords >= 0) & (coords < bounds)), f"coords={coords.tolist()!r} must lie in the table, < {bounds}")
    row, col, flag = coords[..., 0], coords[..., 1], coords[..., 2]
    if table.ndim == 4:
        return np.asanyarray(table[row, col, flag][..., :dim])
    # eq: oat-4
    return np.concatenate([table[row], table[col], table[flag]], axis=-1)[..., :dim]  # (..., E/2)


def _waves(place: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Return sine and cosine in turn, (P, 2F)."""
    angle = place[:, None] * frequency  # (P, F)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(place), -1)


def _frequencies(rule: str, ch: int, alpha: float) -> np.ndarray:
    require_one_of("rule", rule, FREQUENCY_RULES)
    k = np.arange(0.0, ch, 2.0)
    if rule == "original":
        return 10000.0 ** (-k / ch)
    if rule == "exp1":
        return k**alpha / ch
    return (k / ch) ** alpha if rule == "exp2" else k * alpha / ch


def _check_size(**sizes: int) -> None:
    for name, size in sizes.items():
        require(size >= 1, f"{name}={size!r} must be >= 1")


def _check_target(target: np.ndarray, n: int | None) -> None:
    inside = np.all(target >= 0) and (n is None or np.all(target < n))
    require(inside, f"target={target.tolist()!r} must be an object's index, 0 to {'n - 1' if n is None else n - 1}")
