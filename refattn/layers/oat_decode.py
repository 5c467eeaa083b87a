"""Scanpaths from a model that scores the next fixation: the best object each time, or one drawn at random.

Equation source ``model/transformerLightning.py`` lines 167-232 of the released code of OAT (2407.13335), commit
0c48c3e. Both functions ask ``step_fn(path)`` for the logits (n + 2,) that follow the path so far, a list of objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["greedy_scanpath", "sample_scanpath"]


def greedy_scanpath(step_fn: Callable[[list[int]], Any], n_objects: int, max_len: int) -> list[int]:
    """Look at the highest-scored object each time, until the end is scored highest.

    Parameters
    ----------
    step_fn : callable
        Path so far to logits of shape (n + 2,): objects, end, padding.
    n_objects : int
        n ≥ 1.
    max_len : int
        The most fixations, ≥ 0.

    Returns
    -------
    list of int
        The objects before the first end. It has one at least, unless ``max_len`` is 0: the first fixation cannot be
        the end. Padding is never chosen; of equal scores the lowest index wins [our definition].

    Raises
    ------
    ValueError
        If a size is out of range or logits have the wrong shape.
    """
    return _decoded(step_fn, n_objects, max_len, lambda logits: int(np.argmax(logits)))


def sample_scanpath(
    step_fn: Callable[[list[int]], Any], n_objects: int, max_len: int, rng: np.random.Generator
) -> list[int]:
    """Draw each fixation, or the end, from the softmax of its score.

    Parameters
    ----------
    step_fn, n_objects, max_len
        As in `greedy_scanpath`.
    rng : numpy.random.Generator
        Draws one number for each step.

    Returns
    -------
    list of int
        The objects before the first end.

    Raises
    ------
    ValueError
        As `greedy_scanpath`.
    """
    return _decoded(
        step_fn, n_objects, max_len, lambda logits: int(rng.choice(len(logits), p=softmax(logits.astype(np.float64))))
    )


def _decoded(
    step_fn: Callable[[list[int]], Any], n_objects: int, max_len: int, choose: Callable[[np.ndarray], int]
) -> list[int]:
    require(n_objects >= 1, f"n_objects={n_objects!r} must be >= 1")
    require(max_len >= 0, f"max_len={max_len!r} must be >= 0")
    path: list[int] = []
    while len(path) < max_len:
        logits = as_float("step_fn(path)", step_fn(list(path)))
        require_shape("step_fn(path)", logits, (n_objects + 2,))
        # eq: oat-17
        chosen = choose(logits[: n_objects + 1] if path else logits[:n_objects])
        if chosen == n_objects:
            break
        path.append(chosen)
    return path
