"""Make a failing case small: fewer options, shorter axes, simpler numbers, as long as it still fails.

The passes, repeated until none helps or the time is up:

1. leave out an optional array or option;
2. cut an axis, all arrays that share its name together, to an end, to a half, by one;
3. replace an array by zeros, by ones, by whole numbers;
4. set single numbers to zero, in arrays small enough to try.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import map_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from refattn.conformance.contract import Case

__all__ = ["shrink"]

_FEW_NUMBERS = 48


def shrink(
    case: Case,
    fails: Callable[[Case], bool],
    *,
    positional: tuple[str, ...] = (),
    axes: Mapping[str, tuple[str, ...]] | None = None,
    seconds: float = 3.0,
) -> Case:
    """Return a smallest case found for which ``fails`` still holds.

    Parameters
    ----------
    case : Case
        Fails.
    fails : callable
        ``case -> bool``; a case that the reference refuses must not count as failing.
    positional : tuple of str
        Arrays that cannot be left out.
    axes : mapping of str to tuple of str, optional
        Axis names of the plain arrays, right-aligned; see `Entry.axes`.
    seconds : float
        When to stop trying.
    """
    end = time.monotonic() + seconds
    passes = (
        partial(_fewer, positional=positional),
        partial(_shorter, axes=axes or {}),
        _simpler_arrays,
        _simpler_numbers,
    )
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for candidates in passes:
            better = _descend(case, candidates, fails, end)
            progress |= better is not case
            case = better
    return case


def _descend(
    case: Case, candidates: Callable[[Case], Iterator[Case]], fails: Callable[[Case], bool], end: float
) -> Case:
    """Take the first candidate that still fails, and go on from there."""
    found = True
    while found:
        found = False
        for candidate in candidates(case):
            if time.monotonic() > end:
                return case
            if fails(candidate):
                case, found = candidate, True
                break
    return case


def _fewer(case: Case, positional: tuple[str, ...]) -> Iterator[Case]:
    for name in (*case.options, *case.arrays):
        if name not in positional:
            yield case.without(name)


def _shorter(case: Case, axes: Mapping[str, tuple[str, ...]]) -> Iterator[Case]:
    sizes: dict[str, int] = {}
    for name, names in axes.items():
        array = case.arrays.get(name)
        if isinstance(array, np.ndarray):
            pairs = zip(reversed(names), reversed(array.shape), strict=False)
            sizes |= {axis: max(size, sizes.get(axis, 0)) for axis, size in pairs}
    for group in _groups(sizes):
        size = sizes[group[0]]
        for kept in _parts(size):
            yield _cut(case, axes, size, dict.fromkeys(group, kept))


def _parts(size: int) -> list[slice]:
    """Return what to keep of an axis: its ends, its halves, all but an end."""
    half = size // 2
    ends = [(0, 1), (size - 1, size), (0, half), (half, size), (0, size - 1), (1, size)]
    return [slice(start, stop) for start, stop in dict.fromkeys(ends) if 0 < stop - start < size]


def _groups(sizes: dict[str, int]) -> Iterator[tuple[str, ...]]:
    """Yield each axis alone, then the axes of equal length together."""
    yield from ((axis,) for axis in sizes)
    for size in set(sizes.values()):
        group = tuple(axis for axis in sizes if sizes[axis] == size)
        if len(group) > 1:
            yield group


def _cut(case: Case, axes: Mapping[str, tuple[str, ...]], length: int, kept: Mapping[str, slice]) -> Case:
    arrays = dict(case.arrays)
    for name, names in axes.items():
        array = arrays.get(name)
        if isinstance(array, np.ndarray):
            named = (("",) * array.ndim + names)[-array.ndim :] if array.ndim else ()
            index = tuple(
                kept[axis] if axis in kept and size == length else slice(None)
                for axis, size in zip(named, array.shape, strict=True)
            )
            arrays[name] = array[index].copy()
    return case.having(**arrays)


def _simpler_arrays(case: Case) -> Iterator[Case]:
    for name, tree in case.arrays.items():
        for simpler in (np.zeros_like, np.ones_like, np.round):  # simplest first: never from simple to less simple
            changed = map_arrays(partial(_simplify, simpler), tree)
            if _equal(changed, tree):
                break
            yield case.having(**{name: changed})


def _simplify(function: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
    return function(array) if array.dtype.kind == "f" else array


def _simpler_numbers(case: Case) -> Iterator[Case]:
    for name, array in case.arrays.items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size <= _FEW_NUMBERS:
            for index in zip(*np.nonzero(array), strict=True):
                changed = array.copy()
                changed[index] = 0.0
                yield case.having(**{name: changed})


def _equal(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray):
        return np.array_equal(left, np.asarray(right))
    if isinstance(left, tuple) and isinstance(right, tuple):
        return all(map(_equal, left, right))
    return left is right
