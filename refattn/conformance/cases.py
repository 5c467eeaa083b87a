"""Material for contracts: value families, rounding of argument trees, seeded generators, and recipes for cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, map_arrays
from refattn.conformance.precision import round_to

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from refattn.conformance.contract import Maker

__all__ = ["FAMILIES", "Build", "Recipe", "fill", "generator", "given", "rounded", "smoke"]

Build = Callable[[np.random.Generator, str, Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
"""``(rng, family, sizes) -> (arrays, options)`` of one call."""


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


def given(sizes: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return those of the named options that ``sizes`` holds; the others are left to the entry's defaults."""
    return {name: sizes[name] for name in names if name in sizes}


def smoke(*scenarios: str, families: tuple[str, ...] = ("normal",)) -> tuple[tuple[str, str], ...]:
    """Return every pair of the scenarios and families, for `Entry.smoke`."""
    return tuple((scenario, family) for scenario in scenarios for family in families)


@dataclass(frozen=True)
class Recipe:
    """How the inputs of one entry are made from sizes: for named scenarios and for drawn cases alike.

    Attributes
    ----------
    entry : str
        Name of the function that the cases call.
    build : callable
        ``(rng, family, sizes) -> (arrays, options)``; ``sizes`` is whatever mapping the contract writes its scenarios
        in.
    families : tuple of str
        The value families that drawn cases choose from.
    """

    entry: str
    build: Build
    families: tuple[str, ...] = tuple(FAMILIES)

    def case(self, family: str, dtype: str, seed: int, *, label: str, sizes: Mapping[str, Any]) -> Case:
        """Make one case; its arrays are rounded to ``dtype``."""
        arrays, options = self.build(generator(seed, self.entry, label, family), family, sizes)
        return Case(self.entry, rounded(arrays, dtype), options, dtype, f"{label}/{family}")

    def scenarios(self, table: Mapping[str, Mapping[str, Any]]) -> dict[str, Maker]:
        """Return the makers of named scenarios, one for each row of sizes."""
        return {name: partial(self.case, label=name, sizes=sizes) for name, sizes in table.items()}

    def cases(self, sizes: SearchStrategy[dict[str, Any]]) -> Callable[[str], SearchStrategy[Case]]:
        """Return ``dtype -> strategy`` of cases with drawn sizes, family and seed."""
        from hypothesis import strategies as st

        def drawn(dtype: str) -> SearchStrategy[Case]:
            def make(chosen: dict[str, Any], family: str, seed: int) -> Case:
                return self.case(family, dtype, seed, label="drawn", sizes=chosen)

            return st.builds(make, sizes, st.sampled_from(self.families), st.integers(0, 2**16))

        return drawn
