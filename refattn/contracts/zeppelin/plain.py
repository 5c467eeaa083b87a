"""The ring once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["backward", "block", "chunks", "counting", "forward", "merge", "merging", "placing", "soften"]


def sequences(cu_seqlens: Sequence[int] | None, n: int) -> list[tuple[int, int]]:
    """Return where each sequence begins and ends."""
    return [(0, n)] if cu_seqlens is None else list(pairwise(cu_seqlens))


def chunks(length: int, count: int) -> list[np.ndarray]:
    """Cut positions into stretches, longer ones first."""
    size, longer = divmod(length, count)
    starts = [i * size + min(i, longer) for i in range(count + 1)]
    return [np.arange(start, end) for start, end in pairwise(starts)]


def zigzag(length: int, n_ranks: int) -> list[np.ndarray]:
    """Pair a chunk from the front with one from the back."""
    cut = chunks(length, 2 * n_ranks)
    return [np.concatenate([cut[r], cut[2 * n_ranks - 1 - r]]) for r in range(n_ranks)]


def striped(length: int, n_ranks: int) -> list[np.ndarray]:
    """Deal positions out one by one."""
    return [np.arange(r, length, n_ranks) for r in range(n_ranks)]


def stands(positions: list[np.ndarray], rank: int) -> np.ndarray:
    """Return where the tokens of a rank stand in the sequence."""
    return positions[rank]


def source(rank: int, step: int, n_ranks: int) -> int:
    """Return whose keys a rank holds at a step."""
    return (rank - step) % n_ranks


def visible(q_pos: np.ndarray, k_pos: np.ndarray) -> np.ndarray:
    """Return which keys stand at or before the query."""
    return np.asarray(k_pos[None, :] <= q_pos[:, None])


def scaled(d: int) -> float:
    """Return one over the root of the width."""
    return float(d**-0.5)


def shared(x: np.ndarray, h: int) -> np.ndarray:
    """Let neighbouring query heads read one head."""
    return x[:, np.arange(h) // (h // x.shape[1])]


def soften(S: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of visible scores and the logarithm of their sum."""
    e = np.where(seen, np.exp(S - largest(S, seen)), 0.0)
    total = e.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = largest(S, seen) + np.log(total)
    return e / np.where(total > 0, total, 1.0), lse[..., 0]


def largest(S: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the largest visible score, 0 where there is none."""
    m = np.where(seen, S, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    return np.where(m == -np.inf, 0.0, m)


def merge(o_a: Any, l_a: Any, o_b: Any, l_b: Any) -> tuple[Any, Any]:
    """Weigh two parts by the exponentials of their log-sum-exps."""
    m = np.maximum(l_a, l_b)
    m = np.where(m == -np.inf, 0.0, m)
    a, b = np.exp(l_a - m), np.exp(l_b - m)
    with np.errstate(divide="ignore"):
        lse = m + np.log(a + b)
    total = np.where(a + b > 0, a + b, 1.0)
    return (a / total)[..., None] * o_a + (b / total)[..., None] * o_b, lse


def in_order(parts: list[np.ndarray], positions: list[np.ndarray]) -> np.ndarray:
    """Put every token back to its place."""
    whole = np.concatenate(parts)
    whole[np.concatenate(positions)] = np.concatenate(parts)
    return whole


def again(S: np.ndarray, seen: np.ndarray, lse: np.ndarray) -> np.ndarray:
    """Return the weights of a block within the whole row."""
    return np.where(seen, np.exp(np.where(seen, S, 0.0) - lse), 0.0)


def delta(d_out: np.ndarray, out: np.ndarray) -> Any:
    """Return what a row's weights have in common."""
    return np.einsum("nhc,nhc->hn", d_out, out)[..., None]


def d_scores(P: np.ndarray, dP: np.ndarray, common: np.ndarray, scale: float) -> Any:
    """Pull back through softmax and scale."""
    return scale * P * (dP - common)


def gathered(x: np.ndarray, h_kv: int) -> np.ndarray:
    """Add up what the query heads of one key head found."""
    return np.asarray(x.reshape(len(x), h_kv, -1, x.shape[-1]).sum(axis=2))


def returns(_step: int, _n_ranks: int) -> bool:
    """Bring home what was found at a step."""
    return True


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    sequences: Callable[..., Any] = sequences
    contiguous: Callable[..., Any] = chunks
    zigzag: Callable[..., Any] = zigzag
    striped: Callable[..., Any] = striped
    stands: Callable[..., Any] = stands
    source: Callable[..., Any] = source
    named: Callable[..., Any] = source
    visible: Callable[..., Any] = visible
    scaled: Callable[..., Any] = scaled
    shared: Callable[..., Any] = shared
    soften: Callable[..., Any] = soften
    merge: Callable[..., Any] = merge
    in_order: Callable[..., Any] = in_order
    again: Callable[..., Any] = again
    delta: Callable[..., Any] = delta
    d_scores: Callable[..., Any] = d_scores
    gathered: Callable[..., Any] = gathered
    returns: Callable[..., Any] = returns


def place(steps: Steps, length: int, n_ranks: int, layout: str) -> list[np.ndarray]:
    """Deal the positions out."""
    deal: Callable[..., list[np.ndarray]] = getattr(steps, layout)
    return deal(length, n_ranks)


def scores(
    steps: Steps, q: np.ndarray, k: np.ndarray, q_pos: Any, k_pos: Any, *, scale: float, causal: bool
) -> tuple[Any, Any]:
    """Return the scores of a block and which of them count."""
    S = np.einsum("qhc,khc->hqk", q, steps.shared(k, q.shape[1])) * scale
    seen = steps.visible(q_pos, k_pos) if causal else np.ones(S.shape[1:], dtype=bool)
    return S, np.broadcast_to(seen, S.shape)


def attend(
    steps: Steps, q: Any, k: Any, v: Any, q_pos: Any, k_pos: Any, *, scale: float | None = None, causal: bool = True
) -> tuple[Any, Any]:
    """Attend within one block."""
    scale = steps.scaled(q.shape[-1]) if scale is None else scale
    weights, lse = steps.soften(*scores(steps, q, k, q_pos, k_pos, scale=scale, causal=causal))
    return np.einsum("hqk,khc->qhc", weights, steps.shared(v, q.shape[1])), lse.T


def travel(steps: Steps, positions: list[np.ndarray], rank: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return, for each step, the rows of the keys held, and where queries and keys stand for the mask."""
    n_ranks = len(positions)
    return [
        (
            positions[steps.source(rank, t, n_ranks)],
            steps.stands(positions, rank),
            steps.stands(positions, steps.named(rank, t, n_ranks)),
        )
        for t in range(n_ranks)
    ]


def one_forward(
    steps: Steps, arrays: tuple[Any, ...], *, n_ranks: int, layout: str, causal: bool, scale: float | None
) -> tuple[Any, Any]:
    """Run the ring over one sequence."""
    q, k, v = arrays
    positions = place(steps, len(q), n_ranks, layout)
    parts = []
    for rank, own in enumerate(positions):
        part = np.zeros((len(own), q.shape[1], v.shape[-1])), np.full((len(own), q.shape[1]), -np.inf)
        for held, q_pos, named in travel(steps, positions, rank):
            k_pos = named if len(named) == len(held) else held  # a block of another length shows the mistake itself
            part = steps.merge(
                *part, *attend(steps, q[own], k[held], v[held], q_pos, k_pos, causal=causal, scale=scale)
            )
        parts.append(part)
    out, lse = (steps.in_order(list(x), positions) for x in zip(*parts, strict=True))
    return out, lse


def forward(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return ring attention with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        *,
        n_ranks: int,
        layout: str = "zigzag",
        causal: bool = True,
        cu_seqlens: Sequence[int] | None = None,
        scale: float | None = None,
    ) -> Any:
        options: dict[str, Any] = {"n_ranks": n_ranks, "layout": layout, "causal": causal, "scale": scale}
        spans = [slice(*span) for span in steps.sequences(cu_seqlens, len(q))]
        parts = [one_forward(steps, (q[rows], k[rows], v[rows]), **options) for rows in spans]
        return tuple(np.concatenate(x) for x in zip(*parts, strict=True))

    return wrong


def one_backward(
    steps: Steps, arrays: tuple[Any, ...], *, n_ranks: int, layout: str, causal: bool, scale: float | None
) -> tuple[Any, Any, Any]:
    """Run the ring backwards over one sequence."""
    q, k, v, d_out, out, lse = arrays
    scale = steps.scaled(q.shape[-1]) if scale is None else scale
    dq, dk, dv = (np.zeros_like(x) for x in (q, k, v))
    positions = place(steps, len(q), n_ranks, layout)
    for rank, own in enumerate(positions):
        common = steps.delta(d_out[own], out[own])
        for t, (held, q_pos, k_pos) in enumerate(travel(steps, positions, rank)):
            S, seen = scores(steps, q[own], k[held], q_pos, k_pos, scale=scale, causal=causal)
            P = steps.again(S, seen, lse[own].T[..., None])
            dP = np.einsum("qhc,khc->hqk", d_out[own], steps.shared(v[held], q.shape[1]))
            dS = steps.d_scores(P, dP, common, scale)
            dq[own] += np.einsum("hqk,khc->qhc", dS, steps.shared(k[held], q.shape[1]))
            if steps.returns(t, n_ranks):
                dk[held] += steps.gathered(np.einsum("hqk,qhc->khc", dS, q[own]), k.shape[1])
                dv[held] += steps.gathered(np.einsum("hqk,qhc->khc", P, d_out[own]), k.shape[1])
    return dq, dk, dv


def backward(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the gradient with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        q: Any,
        k: Any,
        v: Any,
        d_out: Any,
        out: Any,
        lse: Any,
        *,
        layout: str = "zigzag",
        causal: bool = True,
        cu_seqlens: Sequence[int] | None = None,
        scale: float | None = None,
        n_ranks: int,
    ) -> Any:
        options: dict[str, Any] = {"n_ranks": n_ranks, "layout": layout, "causal": causal, "scale": scale}
        spans = [slice(*span) for span in steps.sequences(cu_seqlens, len(q))]
        parts = [one_backward(steps, tuple(x[rows] for x in (q, k, v, d_out, out, lse)), **options) for rows in spans]
        dq, dk, dv = (np.concatenate(x) for x in zip(*parts, strict=True))
        return {"dq": dq, "dk": dk, "dv": dv}

    return wrong


def block(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return one block of attention with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(q: Any, k: Any, v: Any, q_pos: Any, k_pos: Any, **options: Any) -> Any:
        return attend(steps, q, k, v, q_pos, k_pos, **options)

    return wrong


def merging(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the merge with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(out_a: Any, lse_a: Any, out_b: Any, lse_b: Any) -> Any:
        return steps.merge(out_a, lse_a, out_b, lse_b)

    return wrong


def placing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the partition with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(length: int, n_ranks: int, layout: str = "zigzag") -> Any:
        return place(steps, length, n_ranks, layout)

    return wrong


def counting(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the count of pairs with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(length: int, n_ranks: int, *, layout: str = "zigzag", causal: bool = True) -> Any:
        positions = place(steps, length, n_ranks, layout)
        counts = np.zeros((n_ranks, n_ranks), dtype=np.int64)
        for r, t in np.ndindex(n_ranks, n_ranks):
            own, held = positions[r], positions[steps.source(r, t, n_ranks)]
            counts[r, t] = steps.visible(own, held).sum() if causal else len(own) * len(held)
        return counts

    return wrong
