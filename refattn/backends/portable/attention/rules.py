"""Who sees whom, block by block: each restriction answers for a block of queries and keys at a time.

A rule knows three things. ``pairs`` is the truth, computed by the array library for one block. ``certain`` and
``possible`` are answered on the host, from whatever is known there without looking at the device: a block in which
nothing is hidden needs no mask, and keys that no query of a block can see are never visited. Index vectors that are
plain NumPy arrays count as known; all others (device arrays, traced arrays) as unknown.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

__all__ = ["Below", "Given", "Reach", "Rule", "Same", "cut", "key_range", "on_device", "visible_block"]

ROWS, COLUMNS = -2, -1


class Rule(Protocol):
    """One restriction on the pairs of queries and keys."""

    def pairs(self, xp: Any, like: Any, rows: slice, columns: slice) -> Any:
        """Return which pairs of the block it allows, (B|1, Hkv|1, G|1, rows|1, columns|1)."""

    def certain(self, rows: slice, columns: slice) -> bool:
        """Whether it is known to allow every pair of the block."""

    def possible(self, rows: slice, keys: int) -> Any:
        """Return which keys it may allow to some query of the block: bool (B|1, keys), or True if unknown."""


def on_device(xp: Any, vector: Any, like: Any) -> Any:
    """Return an index vector as an array of the library and device of ``like``."""
    if isinstance(like, np.ndarray) or not isinstance(vector, np.ndarray):
        return vector
    device = getattr(like, "device", None)
    # traced arrays live nowhere yet
    return xp.asarray(vector) if device is None or "jax" in xp.__name__ else xp.asarray(vector, device=device)


def _along(xp: Any, vector: Any, like: Any, part: slice, axis: int) -> Any:
    """Cut (B|1, S) and lay it along the query or key axis of (B, Hkv, G, Sq, Sk)."""
    cut = on_device(xp, vector[:, part], like)
    return cut[:, None, None, :, None] if axis == ROWS else cut[:, None, None, None, :]


class Reach(NamedTuple):
    """Causal masks and windows: p − left ≤ r ≤ p + right, None being unbounded; a prefix lifts the right bound."""

    p: Any  # (B|1, Sq)
    r: Any  # (B|1, Sk)
    left: int | None
    right: int | None
    prefix: Any = None  # (B|1, 1)

    def pairs(self, xp: Any, like: Any, rows: slice, columns: slice) -> Any:
        """Compare positions."""
        p, r = _along(xp, self.p, like, rows, ROWS), _along(xp, self.r, like, columns, COLUMNS)
        inside = None if self.right is None else r <= p + self.right
        if inside is not None and self.prefix is not None:
            inside = inside | (r < _along(xp, self.prefix, like, slice(None), COLUMNS))
        if self.left is None:
            return inside
        return r >= p - self.left if inside is None else inside & (r >= p - self.left)

    def certain(self, rows: slice, columns: slice) -> bool:
        """Compare the outermost positions of the block."""
        if not _known(self.p, self.r):
            return False
        p, r = self.p[:, rows], self.r[:, columns]
        right = self.right is None or _all_below(r.max(1), p.min(1) + self.right)
        return right and (self.left is None or _all_below(p.max(1) - self.left, r.min(1)))

    def possible(self, rows: slice, keys: int) -> Any:  # noqa: ARG002
        """Widen the reach to that of all queries of the block."""
        if not _known(self.p, self.r) or not _known(self.prefix):
            return True
        p = self.p[:, rows]
        allowed = np.ones_like(self.r, dtype=bool)
        if self.right is not None:
            allowed = self.r <= p.max(1, keepdims=True) + self.right
            allowed = allowed if self.prefix is None else allowed | (self.r < self.prefix)
        return allowed if self.left is None else allowed & (self.r >= p.min(1, keepdims=True) - self.left)


class Same(NamedTuple):
    """Documents and chunks: query and key carry the same number."""

    q: Any  # (B|1, Sq)
    k: Any  # (B|1, Sk)

    def pairs(self, xp: Any, like: Any, rows: slice, columns: slice) -> Any:
        """Compare numbers."""
        return _along(xp, self.q, like, rows, ROWS) == _along(xp, self.k, like, columns, COLUMNS)

    def certain(self, rows: slice, columns: slice) -> bool:
        """Look for a single number in the block."""
        if not _known(self.q, self.k):
            return False
        q, k = self.q[:, rows], self.k[:, columns]
        return bool(np.all(q == q[:, :1]) and np.all(k == q[:, :1]))

    def possible(self, rows: slice, keys: int) -> Any:  # noqa: ARG002
        """Compare with the least and the greatest number of the queries."""
        if not _known(self.q, self.k):
            return True
        q = self.q[:, rows]
        return (self.k >= q.min(1, keepdims=True)) & (self.k <= q.max(1, keepdims=True))


class Below(NamedTuple):
    """Valid lengths: row numbers of queries, or of keys, below n."""

    n: Any  # (B, 1)
    axis: int

    def pairs(self, xp: Any, like: Any, rows: slice, columns: slice) -> Any:
        """Compare row numbers with the lengths."""
        part = rows if self.axis == ROWS else columns
        n = on_device(xp, self.n, like)[:, :, None, None, None]
        return _along(xp, np.arange(part.start, part.stop)[None], like, slice(None), self.axis) < n

    def certain(self, rows: slice, columns: slice) -> bool:
        """Compare the end of the block with the shortest length."""
        return _known(self.n) and bool(np.all((rows if self.axis == ROWS else columns).stop <= self.n))

    def possible(self, rows: slice, keys: int) -> Any:
        """Compare every key, or the first query, with the lengths."""
        if not _known(self.n):
            return True
        return np.arange(keys) < self.n if self.axis == COLUMNS else rows.start < self.n


class Given(NamedTuple):
    """A mask that the caller brought, (B|1, Hkv|1, G|1, Sq|1, Sk|1)."""

    mask: Any

    def pairs(self, xp: Any, like: Any, rows: slice, columns: slice) -> Any:  # noqa: ARG002
        """Cut the mask."""
        return cut(self.mask, rows, columns)

    def certain(self, rows: slice, columns: slice) -> bool:  # noqa: ARG002
        """Say no: a mask is not looked at."""
        return False

    def possible(self, rows: slice, keys: int) -> Any:  # noqa: ARG002
        """Say yes: a mask is not looked at."""
        return True


def cut(x: Any, rows: slice, columns: slice) -> Any:
    """Cut the last two axes of an array, those of length 1 excepted: they broadcast."""
    rows = rows if x.shape[ROWS] != 1 else slice(None)
    return x[..., rows, columns if x.shape[COLUMNS] != 1 else slice(None)]


def visible_block(xp: Any, rules: tuple[Rule, ...], like: Any, rows: slice, columns: slice) -> Any:
    """Return who sees whom in a block, (B|1, Hkv|1, G|1, rows|1, columns|1), or None where nothing is hidden."""
    seen = None
    for rule in rules if rows.start < rows.stop and columns.start < columns.stop else ():
        if not rule.certain(rows, columns):
            allowed = rule.pairs(xp, like, rows, columns)
            seen = allowed if seen is None else seen & allowed
    return seen


def key_range(rules: tuple[Rule, ...], rows: slice, keys: int) -> tuple[int, int]:
    """Return the first key that a block of queries may see, and the one after the last."""
    if rows.start >= rows.stop:
        return 0, 0
    may: Any = np.ones((1, keys), dtype=bool)
    for rule in rules:
        may = may & rule.possible(rows, keys)
    found = np.flatnonzero(may.any(axis=0))
    return (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)


def _known(*vectors: Any) -> bool:
    return all(vector is None or isinstance(vector, np.ndarray) for vector in vectors)


def _all_below(low: np.ndarray, high: np.ndarray) -> bool:
    return bool(np.all(low <= high))
