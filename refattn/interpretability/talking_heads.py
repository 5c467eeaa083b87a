"""Talking heads: which later head reads what an earlier head writes, from the weights alone.

Shapes: L layers, H heads, d model width, e head width. OV = W_V W_O is what a head moves, QK = W_Q W_Kᵀ what it matches
by, both (d, d) of rank ≤ e; a head moves x_u OV from key u to query t and attends with x_t QK x_uᵀ.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_one_of

__all__ = [
    "MODES",
    "HeadSVD",
    "component_scores",
    "composition_scores",
    "head_svd",
    "inhibition_score",
    "robust_outliers",
]

MODES = ("Q", "K", "V")
"""What of the later head reads: its queries, its keys or its values."""


class HeadSVD(NamedTuple):
    """Components of OV, largest first: read along U (..., d, e), of size s (..., e), written along Vt (..., e, d)."""

    U: np.ndarray
    s: np.ndarray
    Vt: np.ndarray


def composition_scores(W_Q: Any, W_K: Any, W_V: Any, W_O: Any, *, mode: str = "Q") -> np.ndarray:
    """Measure how much of what each head writes is read by each later head: ‖OV_a M_b‖ / (‖OV_a‖ ‖M_b‖).

    Parameters
    ----------
    W_Q : array_like, shape (L, H, d, e)
        Query weights, in the row convention.
    W_K, W_V : array_like, shape (L, H, d, e) or (L, G, d, e)
        Key and value weights; G shared ones are repeated, G dividing H.
    W_O : array_like, shape (L, H, e, d)
        Output weights.
    mode : {"Q", "K", "V"}
        M_b is QK_b, QK_bᵀ or OV_b: the later head reads with its queries, keys or values.

    Returns
    -------
    ndarray, shape (L, H, L, H)
        Entry [l, h, m, g]: from head l.h to head m.g, in [0, 1]; 0 unless l < m, and 0 where either matrix is zero.

    Raises
    ------
    ValueError
        If shapes disagree (the axis is named), a weight is not finite, or the mode is unknown.

    Notes
    -----
    Norms are Frobenius'. None of the (d, d) matrices is formed: with thin QR, W_V = Q R and B = Q' R',
    ‖W_V (W_O A) Bᵀ‖ = ‖R (W_O A) R'ᵀ‖, once O(d e²) for a head and O(e² d) for a pair. For unrelated heads the expected
    square is 1/d [derived]. Biases and norms are left out, and so are rotary positions: where a model has these, QK
    depends on the distance, and the score is that of distance 0 before rotation.

    References
    ----------
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; 2406.09519.
    """
    weights = _checked(W_Q, W_K, W_V, W_O)
    reader, R_other, size = _reading(weights, mode)
    W_V, W_O = weights[2:]
    R_V = _triangle(W_V)  # (L, H, e, e)
    written = _frobenius(R_V @ _turned(_triangle(_turned(W_O))))  # ‖OV_a‖, (L, H)
    layers, heads = W_O.shape[:2]
    read = np.zeros((layers, heads, layers, heads), W_O.dtype)  # ‖OV_a M_b‖
    for m, g in product(range(1, layers), range(heads)):
        read[:m, :, m, g] = _frobenius(R_V[:m] @ (W_O[:m] @ reader[m, g]) @ _turned(R_other[m, g]))
    # eq: th-composition
    return _quotient(read, written[..., None, None] * size)


def component_scores(W_Q: Any, W_K: Any, W_V: Any, W_O: Any, *, mode: str = "Q") -> np.ndarray:
    """Measure the same for every component s_i u_i v_iᵀ of what a head writes: ‖v_iᵀ M_b‖ / ‖M_b‖.

    Parameters
    ----------
    W_Q, W_K, W_V, W_O, mode
        As in `composition_scores`.

    Returns
    -------
    ndarray, shape (L, H, e, L, H)
        Entry [l, h, i, m, g]: from component i of head l.h, the largest first, to head m.g; 0 unless l < m, where the
        later matrix is zero, and for components of size zero, whose direction is arbitrary [our definition].

    Raises
    ------
    ValueError
        As `composition_scores`.

    Notes
    -----
    The score of a head is the mean of those of its components in squares: score² = Σ s_i² Q_i² / Σ s_i² [derived]. One
    aligned component among e is diluted by the others; that is why components are looked at.

    Where singular values tie, single components are arbitrary and only their sum of squares is defined.

    References
    ----------
    2406.09519.
    """
    weights = _checked(W_Q, W_K, W_V, W_O)
    reader, R_other, size = _reading(weights, mode)
    W_V, W_O = weights[2:]
    svd = head_svd(W_V, W_O)
    there = svd.s > svd.s[..., :1] * W_O.shape[-1] * np.finfo(W_O.dtype).eps  # (L, H, e)
    layers, heads, width = W_O.shape[:3]
    read = np.zeros((layers, heads, width, layers, heads), W_O.dtype)  # ‖v_iᵀ M_b‖
    for m, g in product(range(1, layers), range(heads)):
        read[:m, :, :, m, g] = np.linalg.norm(svd.Vt[:m] @ reader[m, g] @ _turned(R_other[m, g]), axis=-1)
    # eq: th-component
    return np.where(there[..., None, None], _quotient(read, size), 0.0)


def head_svd(W_V: Any, W_O: Any) -> HeadSVD:
    """Take OV = W_V W_O apart into components Σ s_i u_i v_iᵀ, without forming it.

    Parameters
    ----------
    W_V : array_like, shape (..., d, e)
        Value weights.
    W_O : array_like, shape (..., e, d)
        Output weights.

    Returns
    -------
    HeadSVD
        ``U`` (..., d, e), ``s`` (..., e) descending, ``Vt`` (..., e, d). The sign of a pair u_i, v_i is arbitrary.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or a weight is not finite.
    """
    W_V, W_O = as_float("W_V", W_V), as_float("W_O", W_O)
    fits = W_V.ndim >= 2 and W_O.ndim >= 2 and _turned(W_O).shape == W_V.shape
    require(fits, f"W_V of shape {W_V.shape} and W_O of shape {W_O.shape} must be (..., d, e) and (..., e, d)")
    require(W_V.shape[-1] <= W_V.shape[-2], f"head width {W_V.shape[-1]} must not exceed model width {W_V.shape[-2]}")
    require_finite("W_V", W_V)
    require_finite("W_O", W_O)
    # eq: th-svd
    Q_V, R_V = np.linalg.qr(W_V)  # (..., d, e), (..., e, e)
    Q_O, R_O = np.linalg.qr(_turned(W_O))
    small, s, smallt = np.linalg.svd(R_V @ _turned(R_O))
    return HeadSVD(Q_V @ small, s, smallt @ _turned(Q_O))


def robust_outliers(scores: Any, *, z: float = 4.0) -> np.ndarray:
    """Find scores that stand out of all given: (score − median) / (1.4826 MAD) > z.

    Parameters
    ----------
    scores : array_like, any shape
        All that are to be compared, such as the components of all earlier heads for one receiver.
    z : float
        How many robust standard deviations count as outlying.

    Returns
    -------
    ndarray of bool, shape of ``scores``

    Raises
    ------
    ValueError
        If ``z`` is not positive, or a score is not finite.

    Notes
    -----
    MAD is the median absolute deviation. If it is 0, more than half of the scores are equal: what exceeds them by more
    than 1e-9 is then outlying. The rule is ours [our definition].
    """
    scores = as_float("scores", scores)
    require(z > 0, f"z={z!r} must be > 0")
    require_finite("scores", scores)
    if not scores.size:
        return np.zeros(scores.shape, bool)
    above = scores - np.median(scores)
    # eq: th-outlier
    spread = 1.4826 * np.median(np.abs(above))
    return np.asarray(above > max(z * spread, 1e-9))


def inhibition_score(pattern: Any, end: Any, io: Any, s: Any) -> Any:
    """Measure how much more a mover attends to the indirect object than to the subject: mean A[END, IO] − A[END, S1].

    Parameters
    ----------
    pattern : array_like, shape (B, T, T)
        Attention of the mover.
    end, io, s : int or array_like of int, shape (B,)
        Positions of the last token, of the indirect object, and of the first mention of the subject.

    Returns
    -------
    floating
        A number in [−1, 1], in the dtype of the pattern.

    Raises
    ------
    ValueError
        If the pattern is not (B, T, T), has no row, or a position lies outside it.

    Notes
    -----
    The definition is ours, after figure captions of 2406.09519 [our definition].
    """
    pattern = as_float("pattern", pattern, ndim=3)
    batch, length = pattern.shape[:2]
    require(batch and length == pattern.shape[2], f"pattern has shape {pattern.shape}, expected (B, T, T) with B >= 1")
    for name, place in (("end", end), ("io", io), ("s", s)):
        inside = np.all((np.asarray(place) >= -length) & (np.asarray(place) < length))
        require(inside, f"{name}={place!r} must lie within {length} positions")
    row = np.arange(batch)
    # eq: th-inhibition
    return np.mean(pattern[row, end, io] - pattern[row, end, s])


def _checked(W_Q: Any, W_K: Any, W_V: Any, W_O: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the four weights with one key and value head for every query head."""
    W_Q, W_O = as_float("W_Q", W_Q, ndim=4), as_float("W_O", W_O, ndim=4)
    layers, heads, d, e = W_Q.shape
    require(
        W_O.shape == (layers, heads, e, d), f"W_O has shape {W_O.shape}, expected (L, H, e, d) {layers, heads, e, d}"
    )
    require(e <= d, f"head width {e} must not exceed model width {d}")
    shared = []
    for name, value in (("W_K", W_K), ("W_V", W_V)):
        weight = as_float(name, value, ndim=4)
        for axis, size, wanted in zip("Lde", np.delete(weight.shape, 1), (layers, d, e), strict=True):
            require(size == wanted, f"{name} has {size} on axis {axis}, W_Q has {wanted}")
        groups = weight.shape[1]
        require(groups and heads % groups == 0, f"{name} has {groups} heads, which do not divide the {heads} of W_Q")
        shared.append(np.repeat(weight, heads // groups, axis=1))
    for name, weight in (("W_Q", W_Q), ("W_K", shared[0]), ("W_V", shared[1]), ("W_O", W_O)):
        require_finite(name, weight)
    return W_Q, shared[0], shared[1], W_O


def _reading(weights: tuple[np.ndarray, ...], mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of the later heads' M = A Bᵀ what norms need: A (L, H, d, e), R of B = Q R (L, H, e, e), ‖M‖ (L, H)."""
    require_one_of("mode", mode, MODES)
    W_Q, W_K, W_V, W_O = weights
    A, B = {"Q": (W_Q, W_K), "K": (W_K, W_Q), "V": (W_V, _turned(W_O))}[mode]
    R = _triangle(B)
    return A, R, _frobenius(_triangle(A) @ _turned(R))


def _turned(matrix: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrix, -1, -2)


def _triangle(matrix: np.ndarray) -> np.ndarray:
    """Return R (..., e, e) of a thin QR: all that a norm depends on."""
    return np.asanyarray(np.linalg.qr(matrix)[1])


def _frobenius(matrix: np.ndarray) -> np.ndarray:
    return np.asanyarray(np.linalg.norm(matrix, axis=(-2, -1)))


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; 0 where the denominator is 0."""
    safe = np.where(denominator > 0, denominator, 1.0)
    return np.where(denominator > 0, numerator / safe, 0.0)
