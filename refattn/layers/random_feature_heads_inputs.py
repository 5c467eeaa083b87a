"""What the functions of random-feature attention share: tokens with a one appended, and the mean of the heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_one_of, require_shape

__all__ = ["BIASES", "checked_bias", "checked_tokens", "with_one"]

BIASES = ("none", "identity")


def with_one(x: np.ndarray) -> np.ndarray:
    """Append the constant coordinate: x̃ = [x; 1].

    Parameters
    ----------
    x : ndarray, shape (..., d)
        Tokens.

    Returns
    -------
    ndarray, shape (..., d + 1)
    """
    return np.concatenate([x, np.ones((*x.shape[:-1], 1), dtype=x.dtype)], axis=-1)


def checked_tokens(x0: Any, x: Any, names: tuple[str, str] = ("x0", "x")) -> tuple[Any, Any]:
    """Return a query and its keys as floating arrays of one dtype and of fitting shapes.

    Parameters
    ----------
    x0 : array_like, shape (..., d)
        Queries.
    x : array_like, shape (..., N, d)
        Keys, N ≥ 1.
    names : tuple of str
        What the two are called in messages.

    Returns
    -------
    x0, x : ndarray

    Raises
    ------
    ValueError
        If the shapes disagree, there is no key, or a number is not finite.
    """
    x0, x = as_float(names[0], x0), as_float(names[1], x)
    fits = x0.ndim >= 1 and x.ndim == x0.ndim + 1 and x.shape[:-2] + x.shape[-1:] == x0.shape
    require(fits, f"{names[0]} has shape {x0.shape} and {names[1]} {x.shape}, expected (..., d) and (..., N, d)")
    require(x0.shape[-1] >= 1, f"{names[0]} has shape {x0.shape}, expected tokens of at least one coordinate")
    require(x.shape[-2] >= 1, f"{names[1]} has shape {x.shape}: at least one key is required")
    for name, array in zip(names, (x0, x), strict=True):
        require(np.all(np.isfinite(array)), f"{name} holds a number that is not finite")
    return x0, x.astype(x0.dtype, copy=False)


def checked_bias(bias: Any, dim: int) -> np.ndarray:
    """Return the mean W_0 of the head matrices.

    Parameters
    ----------
    bias : {"none", "identity"} or array_like, shape (d + 1, d + 1)
        Zero, the identity on the d coordinates of the tokens and zero elsewhere, or any matrix.
    dim : int
        d, the dimension of the tokens.

    Returns
    -------
    ndarray, shape (d + 1, d + 1)

    Raises
    ------
    ValueError
        For an unknown name, a matrix of another shape, or one that is not finite.
    """
    if isinstance(bias, str):
        require_one_of("bias", bias, BIASES)
        return np.diag(np.append(np.full(dim, float(bias == "identity")), 0.0))
    matrix: np.ndarray = as_float("bias", bias)
    require_shape("bias", matrix, (dim + 1, dim + 1))
    require(np.all(np.isfinite(matrix)), "bias holds a number that is not finite")
    return matrix
