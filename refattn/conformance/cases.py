"""Material for contracts: value families, rounding of whole argument trees, and seeded generators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import map_arrays
from refattn.conformance.precision import round_to

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAMILIES", "fill", "generator", "rounded"]


def _tied(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.round(2.0 * rng.standard_normal(shape)) / 2.0


def _cancelling(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    if len(shape) > 1:
        half = shape[-2] // 2
        x[..., half : 2 * half, :] = -x[..., :half, :] + 0.03 * x[..., half : 2 * half, :]
    return x


FAMILIES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "peaky": lambda rng, shape: 3.0 * rng.standard_normal(shape),
    "tied": _tied,
    "large": lambda rng, shape: 30.0 * rng.standard_normal(shape),
    "cancelling": _cancelling,
    "tiny": lambda rng, shape: 1e-4 * rng.standard_normal(shape),
}


def fill(rng: np.random.Generator, shape: tuple[int, ...], family: str = "normal") -> np.ndarray:
    """Draw a float64 array of ``shape`` from a value family.

    Families: ``normal``; ``uniform`` on [0, 1), the negative control; ``peaky``, three times normal; ``tied``, half
    integers; ``large``, thirty times normal; ``cancelling``, whose second half along the second-to-last axis nearly
    negates the first; ``tiny``, 1e-4 times normal.
    """
    return FAMILIES[family](rng, shape)


def generator(*seeds: int | str) -> np.random.Generator:
    """Return a generator that depends on the seeds and strings given, and on nothing else."""
    numbers = [s if isinstance(s, int) else int.from_bytes(s.encode(), "little") for s in seeds]
    return np.random.default_rng(numbers)


def rounded(tree: Any, dtype: str) -> Any:
    """Round every floating array of ``tree`` to ``dtype``; the arrays stay float64."""
    return map_arrays(lambda array: round_to(array, dtype) if array.dtype.kind == "f" else array, tree)
