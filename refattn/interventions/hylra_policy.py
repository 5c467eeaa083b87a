"""Which layer attends fully and which reuses the critical keys of an earlier one: two objectives, decided offline.

Equation labels are those of the page (2602.00777 and the authors' tool "RALS"). A policy is a staircase through the
table M of overlaps: along row i while the set of layer i is reused, down to the diagonal where a layer is full.
"""

from __future__ import annotations

from itertools import product
from math import ceil, isnan
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_bool, as_float, require, require_one_of, require_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "LayerPolicy",
    "change_budget",
    "policy_brute_force",
    "policy_every",
    "policy_from_full",
    "policy_max_min",
    "policy_min_full",
]

LARGEST_SEARCH = 16  # layers that may be searched through by brute force


class LayerPolicy(NamedTuple):
    """What every layer does, and how well the reused sets fit.

    Attributes
    ----------
    source : ndarray of int, shape (L,)
        source[l] = l: layer l attends fully; otherwise it reuses the set of layer source[l], the last full one.
    n_full : int
        The number C of full layers.
    bottleneck : float
        The smallest overlap that a reusing layer has with its source, over all tables; 1 if no layer reuses.
    total : float
        The sum of these overlaps over reusing layers and tables.
    """

    source: np.ndarray
    n_full: Any
    bottleneck: Any
    total: Any


def policy_min_full(similarity: Any, *, sensitive: Iterable[int] = (), threshold: float = 0.8) -> LayerPolicy:
    """Return the policy with fewest full layers, every reused set fitting by ``threshold``: the paper's objective.

    Parameters
    ----------
    similarity : array_like, shape (L, L)
        M; only entries above the diagonal are read.
    sensitive : iterable of int
        Layers that must be full.
    threshold : float
        θ. Layer j may reuse the set of layer i only if M[i, j] ≥ θ.

    Returns
    -------
    LayerPolicy
        Among the policies with fewest full layers one of largest total overlap; of equal ones, the one whose last
        full layer comes first, then the one before it, and so on.

    Raises
    ------
    ValueError
        If ``similarity`` is no square table of numbers in [0, 1], a sensitive layer does not exist, or ``threshold``
        is NaN.

    Notes
    -----
    The objective is known from second-hand accounts of the paper; its θ is unknown, and 0.8 is our definition.

    References
    ----------
    2602.00777 (objective of the abstract; grid and moves second-hand).
    """
    M = _checked_similarity(similarity)
    require(M.ndim == 2, f"similarity must be (L, L), got shape {M.shape}")
    L = len(M)
    must = _marked(sensitive, L)
    require(not isnan(threshold), "threshold must be a number, got NaN")
    # eq: hylra-12
    count, total = np.array([1]), np.zeros_like(M[0, :1])  # (j,) of the best policy of layers < j, by its last source
    came = np.zeros(L, dtype=int)  # came[j]: the source before j became full
    for j in range(1, L):
        came[j] = _fewest(count, total)
        fits = (M[:j, j] >= threshold) & ~must[j]
        count = np.append(np.where(fits, count, L + 1), count[came[j]] + 1)
        total = np.concatenate([np.where(fits, total + M[:j, j], -np.inf), total[came[j], None]])
    return _described(_path(int(_fewest(count, total)), came[:, None], 0), M[None])


def policy_max_min(
    similarity: Any, max_changes: int, *, sensitive: Iterable[int] = (), method: str = "exact"
) -> LayerPolicy:
    """Return the policy of at most ``max_changes`` + 1 full layers whose worst overlap is best: the tool's objective.

    Parameters
    ----------
    similarity : array_like, shape (L, L) or (m, L, L)
        One table, or one for each calibration text.
    max_changes : int
        How many layers beside layer 0 may be full.
    sensitive : iterable of int
        Layers from which and by which reuse counts as overlap 0.
    method : {"exact", "lexicographic"}
        ``exact`` finds the best bottleneck and, among its policies, the largest sum over the whole path, 1 for each
        full layer and table included. ``lexicographic`` is the official one-pass search, which can miss the sum.

    Returns
    -------
    LayerPolicy
        Of equal policies, the one whose last full layer comes first, then the one with fewer full layers; ties before
        that go to the smaller source.

    Raises
    ------
    ValueError
        If the tables are not square or leave [0, 1], a sensitive layer does not exist, ``max_changes`` is negative or
        ``method`` unknown.

    Notes
    -----
    The official search keeps, for each state, the pair (minimum, sum) that is lexicographically largest. A prefix of
    larger minimum and smaller sum evicts a better one even if a later cell lowers both minima to the same value, so
    the search is optimal for the minimum only. The exact one first finds the best minimum b*, then the largest sum on
    the cells that do not fall below b*.

    References
    ----------
    unified-cache-management, ``ucm/sparse/gsa_on_device/tools/main.py`` (RALS).
    """
    require_one_of("method", method, ("exact", "lexicographic"))
    M = _checked_similarity(similarity)
    M = M[None] if M.ndim == 2 else M  # (m, L, L)
    require(index(max_changes) >= 0, f"max_changes={max_changes!r} must not be negative")
    M = _without(M, _marked(sensitive, M.shape[-1]))
    low, gain = M.min(axis=0), M.sum(axis=0)  # (L, L) each
    # eq: hylra-15
    if method == "exact":
        best, _ = _search(low, np.zeros_like(gain), max_changes)
        at_least = best.low.max()
        # eq: hylra-16
        best, came = _search(np.ones_like(low), np.where(low >= at_least, gain, -np.inf), max_changes)
    else:
        best, came = _search(low, gain, max_changes)
    source, changes = np.unravel_index(int(_largest(best.low.ravel(), best.gain.ravel())), best.low.shape)
    return _described(_path(int(source), came, int(changes)), M)


def policy_brute_force(
    similarity: Any,
    *,
    objective: str,
    sensitive: Iterable[int] = (),
    threshold: float = 0.8,
    max_changes: int | None = None,
) -> LayerPolicy:
    """Return the best of all 2^(L−1) policies: what the searches are tested against.

    Parameters
    ----------
    similarity, sensitive
        As in `policy_min_full` and `policy_max_min`.
    objective : {"min_full", "max_min"}
        Which of the two.
    threshold : float
        θ of ``min_full``.
    max_changes : int, optional
        The budget of ``max_min``; L − 1 if not given.

    Returns
    -------
    LayerPolicy
        The first best one.

    Raises
    ------
    ValueError
        If L exceeds 16, and as in the two searches.
    """
    require_one_of("objective", objective, ("min_full", "max_min"))
    M = _checked_similarity(similarity)
    require(objective == "max_min" or M.ndim == 2, f"similarity must be (L, L), got shape {M.shape}")
    M = M[None] if M.ndim == 2 else M
    L = M.shape[-1]
    require(L <= LARGEST_SEARCH, f"similarity has {L} layers, brute force takes at most {LARGEST_SEARCH}")
    must = _marked(sensitive, L)
    tables = M if objective == "min_full" else _without(M, must)
    best, best_value = None, (-np.inf, -np.inf)
    for rest in product([False, True], repeat=L - 1):
        policy = _described(_sources([True, *rest]), tables)
        if objective == "min_full":
            feasible = policy.bottleneck >= threshold or policy.n_full == L
            feasible = feasible and all(policy.source[must] == np.flatnonzero(must))
            value = (-policy.n_full, policy.total)
        else:
            feasible = max_changes is None or policy.n_full <= max_changes + 1
            value = (policy.bottleneck, policy.total + len(tables) * policy.n_full)
        if feasible and value > best_value:
            best, best_value = policy, value
    require(best is not None, f"max_changes={max_changes!r} must not be negative")
    return best  # type: ignore[return-value]


def policy_every(n_layers: int, period: int, similarity: Any = None) -> LayerPolicy:
    """Return the static baseline: layers 0, p, 2p, … are full, whatever the model does.

    Parameters
    ----------
    n_layers, period : int
        L and p.
    similarity : array_like, shape (L, L) or (m, L, L), optional
        As in `policy_from_full`.

    Returns
    -------
    LayerPolicy

    Raises
    ------
    ValueError
        If ``n_layers`` or ``period`` is less than 1.
    """
    require(index(n_layers) >= 1, f"n_layers={n_layers!r} must be at least 1")
    require(index(period) >= 1, f"period={period!r} must be at least 1")
    return policy_from_full(np.arange(n_layers) % period == 0, similarity)


def policy_from_full(full: Any, similarity: Any = None) -> LayerPolicy:
    """Return the policy with these full layers.

    Parameters
    ----------
    full : array_like of bool, shape (L,)
        True for full layers; layer 0 must be one.
    similarity : array_like, shape (L, L) or (m, L, L), optional
        The tables by which bottleneck and total are measured; without it they are NaN.

    Returns
    -------
    LayerPolicy

    Raises
    ------
    ValueError
        If layer 0 is not full, or ``similarity`` has another size or leaves [0, 1].
    """
    full = as_bool("full", full, ndim=1)
    require(full[:1].all() and full.size, "full[0] must be True: the first layer has nothing to reuse")
    source = _sources(full)
    if similarity is None:
        return LayerPolicy(source, full.sum(), np.nan, np.nan)
    M = _checked_similarity(similarity)
    M = M[None] if M.ndim == 2 else M
    require_shape("similarity", M[0], (len(full), len(full)))
    return _described(source, M)


def change_budget(n_layers: int, sparsity: float, *, refresh_ratio: float = 0.3, n_sensitive: int = 0) -> int:
    """Return the official number of changes, ⌈L · sparsity · refresh_ratio⌉ plus one for each sensitive layer.

    Parameters
    ----------
    n_layers : int
        L.
    sparsity : float
        The share of layers that are not sensitive, 0 to 1.
    refresh_ratio : float
        The share of those that find their own set, 0 to 1.
    n_sensitive : int
        The number of sensitive layers.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If a share leaves [0, 1] or a count is negative.
    """
    require(min(index(n_layers), index(n_sensitive)) >= 0, f"counts {n_layers!r}, {n_sensitive!r} must be >= 0")
    for name, share in (("sparsity", sparsity), ("refresh_ratio", refresh_ratio)):
        require(0 <= share <= 1, f"{name}={share!r} must lie in [0, 1]")
    # eq: hylra-14
    return ceil(n_layers * sparsity * refresh_ratio) + n_sensitive


class _Best(NamedTuple):
    """Smallest overlap and sum of the best policy of each state (source, changes): (L, changes + 1) each."""

    low: np.ndarray
    gain: np.ndarray


def _search(low: np.ndarray, gain: np.ndarray, max_changes: int) -> tuple[_Best, np.ndarray]:
    """Extend policies layer by layer, keeping for each state the largest pair (minimum, sum).

    Returns the states after the last layer, and for each layer that becomes full with c changes its previous source.
    """
    L, C = len(low), min(max_changes, len(low) - 1) + 1
    best = _Best(np.full_like(low, -np.inf, shape=(L, C)), np.full_like(gain, -np.inf, shape=(L, C)))
    best.low[0, 0], best.gain[0, 0] = low[0, 0], gain[0, 0]
    came = np.zeros((L, C), dtype=int)
    for j in range(1, L):
        came[j, 1:] = _largest(best.low[:j, :-1], best.gain[:j, :-1])
        before = came[j, 1:], np.arange(C - 1)
        switched = _Best(np.minimum(best.low[before], low[j, j]), best.gain[before] + gain[j, j])
        stayed = _Best(np.minimum(best.low[:j], low[:j, j, None]), best.gain[:j] + gain[:j, j, None])
        for kept, stay, switch in zip(best, stayed, switched, strict=True):
            kept[:j] = stay
            kept[j, 1:] = switch
    return best, came


def _fewest(count: np.ndarray, total: np.ndarray) -> Any:
    """Return the first place of the smallest count, among those of the largest total."""
    return np.argmax(np.where(count == count.min(), total, -np.inf))


def _largest(low: np.ndarray, gain: np.ndarray) -> Any:
    """Return along the first axis the first place of the lexicographically largest pair."""
    return np.argmax(np.where(low == low.max(axis=0), gain, -np.inf), axis=0)


def _path(last: int, came: np.ndarray, changes: int) -> np.ndarray:
    """Walk back from the last source; ``came`` is (L, changes + 1), or (L, 1) if changes are not counted."""
    source = np.empty(len(came), dtype=int)
    current = last
    for j in range(len(came) - 1, -1, -1):
        source[j] = current
        if j == current:
            current, changes = came[j, changes], max(changes - 1, 0)
    return source


def _sources(full: Sequence[bool] | np.ndarray) -> np.ndarray:
    """Return the last full layer up to each layer."""
    places = np.arange(len(full))
    return np.asarray(np.maximum.accumulate(np.where(full, places, 0)))


def _described(source: np.ndarray, M: np.ndarray) -> LayerPolicy:
    """Measure a policy on the tables (m, L, L)."""
    layers = np.arange(len(source))
    reuse = source != layers
    cells = M[:, source[reuse], layers[reuse]]  # (m, number of reusing layers)
    return LayerPolicy(source, np.sum(~reuse), cells.min(initial=1.0), cells.sum())


def _without(M: np.ndarray, sensitive: np.ndarray) -> np.ndarray:
    """Return the tables with the rows and columns of sensitive layers 0 and the diagonal 1."""
    L = M.shape[-1]
    # eq: hylra-13
    M = np.where(sensitive[:, None] | sensitive, M.dtype.type(0), M)
    return np.where(np.eye(L, dtype=bool), M.dtype.type(1), M)


def _marked(sensitive: Iterable[int], L: int) -> np.ndarray:
    """Return sensitive layers as flags (L,)."""
    layers = [index(layer) for layer in sensitive]
    require(all(0 <= layer < L for layer in layers), f"sensitive={layers} must lie in 0..{L - 1}")
    marks = np.zeros(L, dtype=bool)
    marks[layers] = True
    return marks


def _checked_similarity(similarity: Any) -> Any:
    """Return tables of overlaps, (L, L) or (m, L, L)."""
    M = as_float("similarity", similarity)
    square = M.ndim in (2, 3) and M.shape[-1] == M.shape[-2] and M.size
    require(square, f"similarity must be (L, L) or (m, L, L) of at least one layer, got shape {M.shape}")
    require(np.all((M >= 0) & (M <= 1)), "similarity must lie in [0, 1]")  # NaN fails both
    return M
