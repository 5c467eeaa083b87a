"""Cells of a sweep: their coordinates, and the seed that follows from the coordinates alone."""

from __future__ import annotations

import hashlib
import json
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["canonical", "describe", "digest_of", "grid", "plain", "seed_of"]


def grid(**values: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the cells of a grid: every combination of the values, the last name changing fastest.

    Examples
    --------
    >>> grid(dim=[2, 4], rule=["hebb"])
    [{'dim': 2, 'rule': 'hebb'}, {'dim': 4, 'rule': 'hebb'}]
    """
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def plain(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return coordinates as what JSON knows, NumPy's scalars as Python's.

    Raises
    ------
    ValueError
        If a coordinate is something other than a finite number, a string, a boolean or None.
    """
    coordinates = {name: value.item() if isinstance(value, np.generic) else value for name, value in cell.items()}
    for name, value in coordinates.items():
        scalar = value is None or isinstance(value, (bool, int, float, str))
        if not isinstance(name, str) or not scalar or (isinstance(value, float) and not np.isfinite(value)):
            raise ValueError(f"cell {dict(cell)!r}: {name}={value!r} is not a finite number, string, boolean or None")
    return coordinates


def canonical(cell: Mapping[str, Any]) -> str:
    """Return the one text that stands for these coordinates, in whatever order they are given."""
    return json.dumps(plain(cell), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest_of(cell: Mapping[str, Any]) -> str:
    """Return the name under which a cell is kept."""
    return hashlib.sha256(canonical(cell).encode()).hexdigest()[:24]


def seed_of(seed: int, name: str, cell: Mapping[str, Any]) -> np.random.SeedSequence:
    """Return the seed of one cell: of the sweep's seed, its name and the coordinates, and of nothing else.

    Neither the order of the cells nor what other cells there are changes it.
    """
    digest = hashlib.sha256(json.dumps([name, canonical(cell)]).encode()).digest()
    words = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, len(digest), 4))
    return np.random.SeedSequence(seed, spawn_key=words)


def describe(cell: Mapping[str, Any]) -> str:
    """Return coordinates as a reader writes them."""
    return ", ".join(f"{name}={value}" for name, value in cell.items()) or "the only one"
