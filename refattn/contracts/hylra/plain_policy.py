"""The two objectives once more, by trying all policies in exchangeable steps: what wrong versions are made of."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interventions.hylra_policy import LayerPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["balancing", "saving"]


def sources(full: tuple[bool, ...]) -> list[int]:
    """Give each layer the last full layer up to it."""
    return [max(i for i in range(j + 1) if full[i]) for j in range(len(full))]


def policies(L: int) -> Iterator[list[int]]:
    """List all policies, those whose full layers come early first."""
    for rest in product([False, True], repeat=L - 1):
        yield sources((True, *rest[::-1]))


def cells(M: np.ndarray, source: list[int]) -> Any:
    """Return what each reusing layer shares with its source, by table: (m, number)."""
    return np.array([[table[i, j] for j, i in enumerate(source) if i != j] for table in M])


def read(_M: np.ndarray, source: list[int]) -> list[int]:
    """Read the layer that the search says."""
    return source


def summed(shared: np.ndarray, _n_full: int) -> Any:
    """Add up overlaps."""
    return shared.sum()


def described(M: np.ndarray, source: list[int], step: dict[str, Any]) -> LayerPolicy:
    """Measure a policy."""
    source = step["read"](M, source)
    shared = np.array([[table[i, j] for j, i in enumerate(source) if i != j] for table in M])
    n_full = sum(i == j for j, i in enumerate(source))
    total = np.asarray(step["summed"](shared, n_full))
    return LayerPolicy(np.array(source), np.array(n_full), np.asarray(shared.min(initial=1.0)), total)


def fits(shared: np.ndarray, threshold: float) -> Any:
    """Say whether every reused set fits."""
    return (shared >= threshold).all()


def keeps(source: list[int], sensitive: Iterable[int]) -> bool:
    """Say whether the sensitive layers are full."""
    return all(source[j] == j for j in sensitive)


def preferred(n_full: int, total: float, _bottleneck: float) -> tuple[float, ...]:
    """Prefer few full layers, then a large sum."""
    return (-n_full, total)


def saving(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the search for fewest full layers with these steps exchanged."""
    right: dict[str, Any] = {
        "cells": cells,
        "fits": fits,
        "keeps": keeps,
        "preferred": preferred,
        "read": read,
        "summed": summed,
    }
    step = right | changes

    def wrong(similarity: np.ndarray, sensitive: Iterable[int] = (), threshold: float = 0.8) -> LayerPolicy:
        M, L = similarity[None], len(similarity)
        best, value = list(range(L)), (-np.inf, -np.inf)
        for source in policies(L):
            shared = step["cells"](M, source)
            if not (step["fits"](shared, threshold) and step["keeps"](source, sensitive)):
                continue
            found = step["preferred"](len(set(source)), shared.sum(), shared.min(initial=1.0))
            if found > value:
                best, value = source, found
        return described(M, best, step)

    return wrong


def blinded(M: np.ndarray, sensitive: Iterable[int]) -> Any:
    """Set rows and columns of sensitive layers to 0, and the diagonal to 1."""
    M = M.copy()
    for layer in sensitive:
        M[:, layer, :] = M[:, :, layer] = 0.0
        M[:, layer, layer] = 1.0
    return M


def allowed(n_full: int, max_changes: int) -> bool:
    """Say whether a policy changes at most so often."""
    return n_full <= max_changes + 1


def worth(shared: np.ndarray, n_full: int) -> tuple[Any, Any]:
    """Return the smallest overlap, and the sum with 1 for every full layer and table."""
    return shared.min(initial=1.0), shared.sum() + len(shared) * n_full


def tables(M: np.ndarray) -> Any:
    """Search through all tables."""
    return M


def official(M: np.ndarray, max_changes: int) -> list[int]:
    """Keep for every source and number of changes the pair (minimum, sum) that is largest so far."""
    L = M.shape[-1]
    states = {(0, 0): ((1.0, float(len(M))), [0])}
    for j in range(1, L):
        following = {}
        for (i, c), ((low, total), path) in states.items():
            here = min(low, M[:, i, j].min()), total + M[:, i, j].sum()
            following[i, c] = here, [*path, i]
        for c in sorted({c for _, c in states if c < max_changes}):
            before = max((states[i, n][0], -i) for i, n in states if n == c)[1]
            (low, total), path = states[-before, c]
            following[j, c + 1] = (low, total + len(M)), [*path, j]
        states = following
    best = max(sorted(states), key=lambda state: states[state][0])
    return states[best][1]


def one_pass(method: str) -> bool:
    """Say whether the official search is asked for."""
    return method == "lexicographic"


def balancing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the search for the best worst overlap with these steps exchanged."""
    right: dict[str, Any] = {
        "blinded": blinded,
        "allowed": allowed,
        "worth": worth,
        "tables": tables,
        "one_pass": one_pass,
    }
    step = right | {"cells": cells, "read": read, "summed": summed} | changes

    def wrong(
        similarity: np.ndarray, max_changes: int, sensitive: Iterable[int] = (), method: str = "exact"
    ) -> LayerPolicy:
        M = step["blinded"](similarity if similarity.ndim == 3 else similarity[None], sensitive)
        if step["one_pass"](method):
            return described(M, official(M, max_changes), step)
        best, value = [0] * M.shape[-1], (-np.inf, -np.inf)
        searched = step["tables"](M)
        for source in policies(M.shape[-1]):
            found = step["worth"](step["cells"](searched, source), len(set(source)))
            if step["allowed"](len(set(source)), max_changes) and found > value:
                best, value = source, found
        return described(M, best, step)

    return wrong
