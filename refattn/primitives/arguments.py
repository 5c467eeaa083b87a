"""Checks at the public boundary: what is refused, and in which words.

Every public function of the references checks its arguments here, once; private helpers trust their callers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["as_bool", "as_float", "as_integer", "require", "require_finite", "require_one_of", "require_shape"]


def require(condition: Any, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition`` holds.

    Parameters
    ----------
    condition : bool
        The rule, evaluated.
    message : str
        Names the argument, its value and the rule.
    """
    if not condition:
        raise ValueError(message)


def require_one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the names in ``allowed``."""
    require(value in allowed, f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")


def require_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless ``array`` has exactly ``shape``."""
    require(array.shape == shape, f"{name} has shape {array.shape}, expected {shape}")


def require_finite(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless every entry of ``value`` is finite."""
    if not np.all(np.isfinite(value)):  # spelled out, because writing an array into a message takes long
        raise ValueError(f"{name}={value!r} must be finite")


def as_float(name: str, value: Any, *, ndim: int | None = None, refuse_integers: type[Exception] | None = None) -> Any:
    """Return ``value`` as a floating array, without copying one that is.

    Integers and booleans become float64. Floating dtypes, ``bfloat16`` of ml_dtypes among them, are kept.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : array_like
        The argument.
    ndim : int, optional
        The number of axes that it must have.
    refuse_integers : exception class, optional
        Raise this class for integer and boolean input instead of converting it.

    Returns
    -------
    ndarray
        A floating array of any layout; it may be the caller's own, so it must not be written to.

    Raises
    ------
    TypeError
        For masked, complex, object and string arrays.
    ValueError
        If ``ndim`` is given and differs.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; pass its data and an explicit mask")
    # subclasses pass through: the conformance kit runs references on arrays that model rounding
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if array.dtype.kind in "iub":
        if refuse_integers is not None:
            raise refuse_integers(f"{name} has dtype {array.dtype}, expected a floating dtype")
        array = array.astype(np.float64)
    if not (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
        raise TypeError(f"{name} has dtype {array.dtype}, expected a real floating dtype")
    require(ndim is None or array.ndim == ndim, f"{name} has {array.ndim} axes (shape {array.shape}), expected {ndim}")
    return array


def as_integer(name: str, value: Any, *, ndim: int | None = None) -> np.ndarray:
    """Return ``value`` as an integer array; refuse everything that is not made of integers."""
    array = np.asarray(value)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)  # an empty list has no integers to show
    require(array.dtype.kind in "iu", f"{name} has dtype {array.dtype}, expected integers")
    require(ndim is None or array.ndim == ndim, f"{name} has {array.ndim} axes (shape {array.shape}), expected {ndim}")
    return array


def as_bool(name: str, value: Any, *, ndim: int | None = None) -> np.ndarray:
    """Return ``value`` as a boolean array; refuse everything else, 0/1 integers included."""
    array = np.asarray(value)
    require(array.dtype.kind == "b", f"{name} has dtype {array.dtype}, expected bool")
    require(ndim is None or array.ndim == ndim, f"{name} has {array.ndim} axes (shape {array.shape}), expected {ndim}")
    return array
