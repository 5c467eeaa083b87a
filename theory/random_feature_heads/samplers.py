"""What is drawn: tokens on the sphere, and the functions of them that a layer is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Dims", "Task", "sample_task", "sphere", "target_values", "turned"]


class Dims(NamedTuple):
    """Sizes of a problem: tokens of ``d`` coordinates, ``N`` keys, ``M`` heads."""

    d: int
    N: int
    M: int


class Task(NamedTuple):
    """Inputs and the targets that belong to them.

    Attributes
    ----------
    x0 : ndarray, shape (n, d)
        Queries.
    x : ndarray, shape (n, N, d)
        Keys.
    y : ndarray, shape (n, T)
        One column for each target.
    """

    x0: np.ndarray
    x: np.ndarray
    y: np.ndarray


def sphere(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw vectors uniformly from the unit sphere; the last size is their dimension."""
    z = rng.standard_normal(shape)
    return np.asarray(z / np.linalg.norm(z, axis=-1, keepdims=True))


def turned(x: np.ndarray, gamma: float) -> np.ndarray:
    """Return R_γ x = cos γ · x + sin γ · P x, P the cyclic shift of coordinates by one."""
    return np.asarray(np.cos(gamma) * x + np.sin(gamma) * np.roll(x, 1, axis=-1))


def target_values(name: str, x0: np.ndarray, x: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Return one target function at many inputs.

    Parameters
    ----------
    name : str
        ``f1:p`` is the mean over keys of ⟨β, x_i⟩^p; ``f2:p`` that of ⟨x_0, x_i⟩^p ⟨β, x_i⟩; ``f3:γ`` that of
        ⟨x_0, R_γ x_i⟩² ⟨β, x_i⟩, a correlation turned away from the identity.
    x0, x : ndarray, shapes (n, d) and (n, N, d)
        Inputs.
    beta : ndarray, shape (d,)
        Direction, of norm 1.

    Returns
    -------
    ndarray, shape (n,)

    Raises
    ------
    ValueError
        If the name is not one of these.

    References
    ----------
    2307.11353, Section 4.1 for f1 and f2 [recalled]; the form of f3 is our definition.
    """
    kind, _, number = name.partition(":")
    along = x @ beta  # (n, N)
    if kind == "f1":
        return np.asarray(np.mean(along ** _power(name, number), axis=1))
    if kind == "f2":
        correlation = np.einsum("nd,nid->ni", x0, x)
        return np.asarray(np.mean(correlation ** _power(name, number) * along, axis=1))
    if kind == "f3":
        correlation = np.einsum("nd,nid->ni", x0, turned(x, float(number)))
        return np.asarray(np.mean(correlation**2 * along, axis=1))
    raise ValueError(f"target={name!r} is not one of f1:p, f2:p, f3:gamma")


def sample_task(n: int, dims: Dims, targets: Sequence[str], rng: np.random.Generator) -> Task:
    """Draw inputs uniformly from the sphere, one direction β for all targets, and their values without noise."""
    beta = sphere(rng, dims.d)
    x0, x = sphere(rng, n, dims.d), sphere(rng, n, dims.N, dims.d)
    return Task(x0, x, np.stack([target_values(name, x0, x, beta) for name in targets], axis=1))


def _power(name: str, number: str) -> int:
    if not (number.isdigit() and int(number) >= 1):
        raise ValueError(f"target={name!r}: the power must be an integer >= 1")
    return int(number)


def checked(name: str, value: Any, low: float, high: float = np.inf) -> None:
    """Refuse a parameter outside a range, for every item of a tuple.

    Raises
    ------
    ValueError
        Naming the field, its value and the rule.
    """
    items = value if isinstance(value, tuple) else (value,)
    if not items or not all(low <= item <= high for item in items):
        raise ValueError(f"{name}={value!r} must lie in [{low:g}, {high:g}]")
