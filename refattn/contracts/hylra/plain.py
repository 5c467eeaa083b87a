"""Key sets, layers and profiles once more, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interventions.hylra import Distortion

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["choosing", "finding", "judging", "losing", "overlapping", "reusing", "spreading"]


def key_head(h: int, n_groups: int, n_heads: int) -> int:
    """Give neighbouring query heads the same key head."""
    return h // (n_groups // n_heads)


def scale(d: int) -> float:
    """Return one over the root of the head width."""
    return float(d**-0.5)


def weigh(z: np.ndarray, visible: np.ndarray) -> Any:
    """Softmax over what is visible."""
    if not visible.any():
        return np.zeros_like(z)
    e = np.where(visible, np.exp(z - z[visible].max()), 0.0)
    return e / e.sum()


def together(a: np.ndarray) -> Any:
    """Average the weights (G, T) of the query heads of a group."""
    return a.mean(axis=0)


def over_heads(w: np.ndarray) -> Any:
    """Add the weights (H, T) of all key heads."""
    return w.sum(axis=0)


def pool(w: np.ndarray, b: int) -> Any:
    """Add the weights of each block."""
    return np.array([w[i : i + b].sum() for i in range(0, len(w), b)])


def kept_blocks(k: int, b: int) -> int:
    """Return how many whole blocks fit the budget."""
    return k // b


def forced_blocks(n: int, b: int) -> int:
    """Return how many whole blocks are forced."""
    return n // b


def forced(usable: np.ndarray, n_sink: int, n_recent: int) -> np.ndarray:
    """Mark the first and the last usable blocks."""
    places = np.flatnonzero(usable)
    marks = np.zeros(len(usable), dtype=bool)
    marks[places[:n_sink]] = True
    marks[places[len(places) - n_recent :] if n_recent <= len(places) else places] = True
    return marks


def first(B: np.ndarray, usable: np.ndarray, must: np.ndarray, count: int) -> list[int]:
    """Take forced blocks, then the heaviest, then the leftmost."""
    order = sorted(range(len(B)), key=lambda j: (not must[j], -B[j], j))
    return sorted([j for j in order if usable[j]][:count])


def may_be_chosen(visible: np.ndarray, b: int) -> np.ndarray:
    """Mark blocks that hold a visible key."""
    return np.array([visible[i : i + b].any() for i in range(0, len(visible), b)], dtype=bool)


def tokens(blocks: list[int], visible: np.ndarray, b: int) -> list[int]:
    """List the visible keys of the blocks."""
    return [t for j in blocks for t in range(j * b, min((j + 1) * b, len(visible))) if visible[t]]


def restrict(z: np.ndarray, visible: np.ndarray, kept: list[int]) -> Any:
    """Softmax over the kept keys."""
    inside = np.zeros(len(z), dtype=bool)
    inside[kept] = True
    return weigh(z, visible & inside)


def fetch(x: np.ndarray, indices: np.ndarray) -> tuple[Any, Any]:
    """Return the rows that are asked for, and whether there is one."""
    return x[np.maximum(indices, 0)], indices >= 0


def fetched_is_visible(visible: np.ndarray, indices: np.ndarray) -> Any:
    """Look up who is visible."""
    return visible[np.maximum(indices, 0)]


def set_of(indices: np.ndarray, head: int, t: int) -> Any:
    """Return the set of a head and a query; without an axis of queries all share one."""
    return indices[head] if indices.ndim == 2 else indices[head, t]


class Choice(NamedTuple):
    """The steps that choose keys."""

    pool: Callable[..., Any] = pool
    kept_blocks: Callable[..., Any] = kept_blocks
    forced_blocks: Callable[..., Any] = forced_blocks
    forced: Callable[..., Any] = forced
    may_be_chosen: Callable[..., Any] = may_be_chosen
    first: Callable[..., Any] = first

    def blocks(self, w: np.ndarray, visible: np.ndarray, k: int, *, b: int, sink: int, recent: int) -> list[int]:
        """Return the chosen blocks of one row."""
        usable = self.may_be_chosen(visible, b)
        B = self.pool(w, b)
        must = self.forced(usable, self.forced_blocks(sink, b), self.forced_blocks(recent, b))
        chosen: list[int] = self.first(B, usable, must, self.kept_blocks(k, b))
        return chosen


def split(changes: dict[str, Any], *names: str) -> tuple[Choice, dict[str, Any]]:
    """Separate the steps that choose keys from the others, whose right versions are filled in."""
    own = {name: globals()[name] for name in names}
    return (
        Choice(**{name: step for name, step in changes.items() if name in Choice._fields}),
        own | {name: step for name, step in changes.items() if name in names},
    )


def choosing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the choice of blocks with these steps exchanged."""
    choice, _ = split(changes)

    def wrong(
        weights: np.ndarray, k: int, block_size: int = 1, sink: int = 0, recent: int = 0, visible: Any = None
    ) -> Any:
        T = weights.shape[-1]
        visible = np.ones(weights.shape, dtype=bool) if visible is None else visible
        count = min(k // block_size, -(-T // block_size))
        out = np.full((*weights.shape[:-1], count), -1)
        for row in np.ndindex(weights.shape[:-1]):
            blocks = choice.blocks(weights[row], visible[row], k, b=block_size, sink=sink, recent=recent)[:count]
            out[row][: len(blocks)] = blocks
        return out

    return wrong


def finding(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the full layer with these steps exchanged."""
    choice, step = split(
        changes, "key_head", "scale", "weigh", "together", "over_heads", "tokens", "restrict", "sparse", "shared"
    )

    def wrong(
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        n_keep: int,
        block_size: int = 1,
        sink: int = 0,
        recent: int = 0,
        share_heads: bool = False,
        refresh: str = "dense",
        mask: Any = None,
        scale: float | None = None,
    ) -> Any:
        (B, Hq, Tq, d), (H, T) = q.shape, k.shape[1:3]
        mask = np.broadcast_to(True if mask is None else mask, (B, Hq, Tq, T))
        tau = step["scale"](d) if scale is None else scale
        heads = [step["key_head"](h, Hq, H) for h in range(Hq)]
        out = np.zeros_like(q)
        indices = np.full((B, H, Tq, min(n_keep // block_size * block_size, T)), -1)
        for b, t in np.ndindex(B, Tq):
            z = np.stack([k[b, heads[h]] @ q[b, h, t] * tau for h in range(Hq)])  # (Hq, T)
            a = np.stack([step["weigh"](z[h], mask[b, h, t]) for h in range(Hq)])
            w = np.stack([step["together"](a[np.array(heads) == head]) for head in range(H)])
            seen = np.stack([mask[b, np.array(heads) == head, t].any(axis=0) for head in range(H)])
            for head in range(H):
                rank, usable = w[head], seen[head]
                if step["shared"](share_heads):
                    rank, usable = step["over_heads"](w), seen.any(axis=0)
                blocks = choice.blocks(rank, usable, n_keep, b=block_size, sink=sink, recent=recent)
                kept = step["tokens"](blocks, seen[head], block_size)[: indices.shape[-1]]
                indices[b, head, t, : len(kept)] = kept
                for h in np.flatnonzero(np.array(heads) == head):
                    if step["sparse"](refresh):
                        a[h] = step["restrict"](z[h], mask[b, h, t], kept)
                    out[b, h, t] = a[h] @ v[b, head]
        return out, indices

    return wrong


def sparse(refresh: str) -> bool:
    """Say whether the layer attends to its own set."""
    return refresh == "sparse"


def shared(share_heads: bool) -> bool:
    """Say whether all heads share a set."""
    return share_heads


def reusing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the reusing layer with these steps exchanged."""
    _, step = split(changes, "key_head", "scale", "weigh", "fetch", "fetched_is_visible", "set_of")

    def wrong(
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        indices: np.ndarray,
        mask: Any = None,
        scale: float | None = None,
    ) -> Any:
        (B, Hq, Tq, d), (H, T) = q.shape, k.shape[1:3]
        mask = np.broadcast_to(True if mask is None else mask, (B, Hq, Tq, T))
        tau = step["scale"](d) if scale is None else scale
        out = np.zeros_like(q)
        for b, h, t in np.ndindex(B, Hq, Tq):
            head = step["key_head"](h, Hq, H)
            S = step["set_of"](indices[b], head, t)
            K, there = step["fetch"](k[b, head], S)
            V, _ = step["fetch"](v[b, head], S)
            a = step["weigh"](K @ q[b, h, t] * tau, there & step["fetched_is_visible"](mask[b, h, t], S))
            out[b, h, t] = a @ V
        return out

    return wrong


def rnmse(o: np.ndarray, o_S: np.ndarray) -> Any:
    """Relate the change to the full output."""
    return np.sqrt(np.sum((o - o_S) ** 2) / np.sum(o**2))


def mass(a: np.ndarray, kept: np.ndarray) -> Any:
    """Add up the weights of the kept keys."""
    return np.where(kept, a, 0.0).sum(axis=-1)


def divergence(m: np.ndarray) -> Any:
    """Return the KL divergence of the restricted weights from the full ones."""
    return -np.log(m)


def seen_keys(lengths: Any, S: int, T: int) -> Any:
    """Mark the keys that each step sees."""
    return np.arange(T) < (np.full(S, T) if lengths is None else lengths)[:, None]


def losing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the distortion with these steps exchanged."""
    _, step = split(changes, "rnmse", "mass", "divergence", "seen_keys")
    find = finding(**{name: made for name, made in changes.items() if name not in step})
    again = reusing(**{name: made for name, made in changes.items() if name in ("scale", "weigh")})

    def wrong(
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        n_keep: int,
        block_size: int = 1,
        sink: int = 0,
        recent: int = 0,
        lengths: Any = None,
        scale: float | None = None,
    ) -> Any:
        steps = q if q.ndim == 3 else q[None]
        (S, Hq, d), (H, T) = steps.shape, k.shape[:2]
        seen = step["seen_keys"](lengths, S, T)  # (S, T)
        call = np.moveaxis(steps, 0, 1)[None], k[None], v[None]
        choice = {"n_keep": n_keep, "block_size": block_size, "sink": sink, "recent": recent}
        o, indices = find(*call, **choice, mask=seen, scale=scale)
        o_S = again(*call, indices, mask=seen, scale=scale)
        kept = (indices[0][..., None] == np.arange(T)).any(axis=-2)  # (H, S, T)
        kept = np.repeat(kept, Hq // H, axis=0)
        tau = d**-0.5 if scale is None else scale
        z = np.moveaxis(steps, 0, 1) @ np.repeat(k, Hq // H, axis=0).mT * tau  # (Hq, S, T)
        a = np.stack([[weigh(z[h, s], seen[s]) for s in range(S)] for h in range(Hq)])
        m = step["mass"](a, kept).T  # (S, Hq)
        m = m if q.ndim == 3 else m[0]
        return Distortion(np.asarray(step["rnmse"](o, o_S)), m, step["divergence"](m))

    return wrong


def share(common: np.ndarray, _earlier: np.ndarray, later: np.ndarray) -> Any:
    """Relate what two sets share to the size of the later layer's."""
    return common / later


def over_steps(common: np.ndarray, earlier: np.ndarray, later: np.ndarray, relate: Callable[..., Any]) -> Any:
    """Average the shares over steps (S, H)."""
    return relate(common, earlier, later).mean(axis=0)


def place(M: np.ndarray, i: int, j: int, shares: np.ndarray) -> None:
    """Write the shares of every head where they belong."""
    M[:, i, j] = shares


def overlapping(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the overlap with these steps exchanged."""
    _, step = split(changes, "share", "over_steps", "place")

    def wrong(masks: np.ndarray, per_head: bool = False) -> Any:
        L, _, H, _ = masks.shape
        M = np.zeros((H, L, L)) + np.eye(L)
        for j in range(L):
            for i in range(j):
                sizes = (masks[i] * masks[j]).sum(axis=-1), masks[i].sum(axis=-1), masks[j].sum(axis=-1)
                step["place"](M, i, j, step["over_steps"](*sizes, step["share"]))
        return M if per_head else M.mean(axis=0)

    return wrong


def heaviest_first(B: np.ndarray) -> Any:
    """Sort in descending order."""
    return np.sort(B)[::-1]


def normalised(B: np.ndarray) -> Any:
    """Divide by the sum."""
    return B / B.sum()


def count(c: np.ndarray, part: float) -> Any:
    """Count the running totals within the part."""
    return np.sum(c <= part)


def of_all(number: int, n_b: int, _b: int) -> float:
    """Return the share of all blocks."""
    return number / n_b


def spreading(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the hash ratio with these steps exchanged."""
    _, step = split(changes, "pool", "heaviest_first", "normalised", "count", "of_all")
    step["pool"] = changes.get("pool", pool)

    def wrong(weights: np.ndarray, block_size: int, mass: float = 0.9) -> Any:
        out = np.zeros(weights.shape[:-1])
        for row in np.ndindex(out.shape):
            B = step["pool"](weights[row], block_size)
            c = np.cumsum(step["normalised"](step["heaviest_first"](B)))
            out[row] = step["of_all"](step["count"](c, mass), len(B), block_size)
        return out

    return wrong


def clipped(x: np.ndarray) -> Any:
    """Pull in what leaves the quartiles of its head and layer by 1.5 times their distance: (H, S, L)."""
    low, high = np.quantile(x, [0.25, 0.75], axis=1, keepdims=True)
    return np.clip(x, low - 1.5 * (high - low), high + 1.5 * (high - low))


def summary(x: np.ndarray) -> Any:
    """Average over steps and heads."""
    return x.mean(axis=(0, 1))


def how_many(n_layers: int, sparsity: float) -> int:
    """Return the number of sensitive layers."""
    return int(np.ceil(n_layers * (1 - sparsity)))


def widest(stat: np.ndarray, number: int) -> Any:
    """Return the layers of largest mean ratio, ascending."""
    return np.sort(np.argsort(stat, kind="stable")[len(stat) - number :])


def judging(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the choice of sensitive layers with these steps exchanged."""
    _, step = split(changes, "clipped", "summary", "how_many", "widest")

    def wrong(ratios: np.ndarray, sparsity: float) -> Any:
        stat = step["summary"](step["clipped"](ratios))
        return step["widest"](stat, step["how_many"](len(stat), sparsity))

    return wrong
