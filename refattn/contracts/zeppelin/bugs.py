"""Mistakes that people make with rings of ranks, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.zeppelin.plain import (
    backward,
    block,
    chunks,
    counting,
    forward,
    largest,
    merge,
    merging,
    placing,
    soften,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refattn.conformance.contract import Case

__all__ = ["BLOCK_BUGS", "GRADIENT_BUGS", "MERGE_BUGS", "PAIR_BUGS", "PARTITION_BUGS", "RING_BUGS"]


def _packed_as_one(cu_seqlens: Sequence[int] | None, n: int) -> Any:
    del cu_seqlens
    return [(0, n)]


def _stands_as_if_contiguous(positions: list[np.ndarray], rank: int) -> Any:
    before = sum(len(own) for own in positions[:rank])
    return before + np.arange(len(positions[rank]))


def _stands_where_the_rank_begins(positions: list[np.ndarray], rank: int) -> Any:
    return np.arange(len(positions[rank]))


def _names_turned_round(rank: int, step: int, n_ranks: int) -> int:
    return (rank + step) % n_ranks


def _own_block_twice(rank: int, step: int, n_ranks: int) -> int:
    return (rank - max(step - 1, 0)) % n_ranks


def _diagonal_hidden(q_pos: np.ndarray, k_pos: np.ndarray) -> Any:
    return k_pos[None, :] < q_pos[:, None]


def _triangle_of_every_block(q_pos: np.ndarray, k_pos: np.ndarray) -> Any:
    return np.tri(len(q_pos), len(k_pos), dtype=bool)


def _mask_of_the_first_query(q_pos: np.ndarray, k_pos: np.ndarray) -> Any:
    return np.repeat(k_pos[None, :] <= q_pos[:1, None], len(q_pos), axis=0)


def _divided_by_width(d: int) -> float:
    return 1.0 / d


def _heads_dealt_out(x: np.ndarray, h: int) -> Any:
    return x[:, np.arange(h) % x.shape[1]]


def _lse_of_the_largest(S: np.ndarray, seen: np.ndarray) -> Any:
    weights, lse = soften(S, seen)
    return weights, np.where(np.isneginf(lse), lse, largest(S, seen)[..., 0])


def _lse_to_base_two(S: np.ndarray, seen: np.ndarray) -> Any:
    weights, lse = soften(S, seen)
    return weights, lse / np.log(2.0)


def _hidden_after_the_softmax(S: np.ndarray, seen: np.ndarray) -> Any:
    weights, lse = soften(S, np.ones_like(seen))
    return np.where(seen, weights, 0.0), lse


def _hidden_by_a_large_number(S: np.ndarray, seen: np.ndarray) -> Any:
    return soften(np.where(seen, S, -30000.0), np.ones_like(seen))


def _parts_count_alike(o_a: Any, l_a: Any, o_b: Any, l_b: Any) -> Any:
    some = np.isfinite(l_a)[..., None] + 1.0 * np.isfinite(l_b)[..., None]
    return (o_a + o_b) / np.maximum(some, 1.0), merge(o_a, l_a, o_b, l_b)[1]


def _parts_added(o_a: Any, l_a: Any, o_b: Any, l_b: Any) -> Any:
    return o_a + o_b, merge(o_a, l_a, o_b, l_b)[1]


def _keeps_the_second_lse(o_a: Any, l_a: Any, o_b: Any, l_b: Any) -> Any:
    return merge(o_a, l_a, o_b, l_b)[0], l_b


def _keeps_the_larger_lse(o_a: Any, l_a: Any, o_b: Any, l_b: Any) -> Any:
    return merge(o_a, l_a, o_b, l_b)[0], np.maximum(l_a, l_b)


def _weights_exchanged(o_a: Any, l_a: Any, o_b: Any, l_b: Any) -> Any:
    o, lse = merge(o_b, l_a, o_a, l_b)
    return np.where(np.isneginf(l_a + l_b)[..., None], o_a + o_b, o), lse


def _weights_to_base_two(o_a: Any, l_a: Any, o_b: Any, l_b: Any) -> Any:
    o, _ = merge(o_a, l_a * np.log(2.0), o_b, l_b * np.log(2.0))
    return o, merge(o_a, l_a, o_b, l_b)[1]


@np.errstate(all="ignore")
def _nothing_minus_nothing(o_a: Any, l_a: Any, o_b: Any, l_b: Any) -> Any:
    share = 1.0 / (1.0 + np.exp(l_a - l_b))
    return o_a - share[..., None] * (o_a - o_b), l_a + np.log1p(np.exp(l_b - l_a))


def _left_as_the_ranks_hold_it(parts: list[np.ndarray], positions: list[np.ndarray]) -> Any:
    del positions
    return np.concatenate(parts)


def _weights_of_the_block_alone(S: np.ndarray, seen: np.ndarray, lse: np.ndarray) -> Any:
    del lse
    return soften(S, seen)[0]


def _softmax_taken_for_linear(d_out: np.ndarray, out: np.ndarray) -> Any:
    return 0.0 * np.einsum("nhc,nhc->hn", d_out, out)[..., None]


def _common_part_of_the_mean(d_out: np.ndarray, out: np.ndarray) -> Any:
    return np.einsum("nhc,nhc->hn", d_out, out)[..., None] / out.shape[-1]


def _scale_forgotten(P: np.ndarray, dP: np.ndarray, common: np.ndarray, scale: float) -> Any:
    del scale
    return P * (dP - common)


def _heads_averaged(x: np.ndarray, h_kv: int) -> Any:
    return x.reshape(len(x), h_kv, -1, x.shape[-1]).mean(axis=2)


def _last_step_not_sent_home(step: int, n_ranks: int) -> bool:
    return step + 1 < n_ranks


def _neighbouring_chunks_paired(length: int, n_ranks: int) -> Any:
    cut = chunks(length, 2 * n_ranks)
    return [np.concatenate(cut[2 * r : 2 * r + 2]) for r in range(n_ranks)]


def _chunks_half_a_sequence_apart(length: int, n_ranks: int) -> Any:
    cut = chunks(length, 2 * n_ranks)
    return [np.concatenate([cut[r], cut[n_ranks + r]]) for r in range(n_ranks)]


def _late_chunk_first(length: int, n_ranks: int) -> Any:
    cut = chunks(length, 2 * n_ranks)
    return [np.concatenate([cut[2 * n_ranks - 1 - r], cut[r]]) for r in range(n_ranks)]


def _chunks_rounded_up(length: int, count: int) -> Any:
    size = -(-length // count)
    return [np.arange(min(i * size, length), min((i + 1) * size, length)) for i in range(count)]


def _rest_dropped(length: int, count: int) -> Any:
    size = length // count
    return [np.arange(i * size, (i + 1) * size) for i in range(count)]


def _stripes_of_the_rest_first(length: int, n_ranks: int) -> Any:
    return [np.arange(n_ranks - 1 - r, length, n_ranks) for r in range(n_ranks)]


def _layout(case: Case, *names: str) -> bool:
    return case.options.get("layout", "zigzag") in names


def _n(case: Case) -> int:
    return len(case.arrays["q"])


def _causal(case: Case) -> bool:
    return bool(case.options.get("causal", True)) and _n(case) > 1


def _split(case: Case) -> bool:
    """Whether some rank merges two blocks that it sees."""
    return _n(case) > 1 and case.options["n_ranks"] > 1


def _grouped(case: Case) -> bool:
    h, h_kv = case.arrays["q"].shape[1], case.arrays["k"].shape[1]
    return bool(h > h_kv > 1) and _n(case) > 0


def _long(case: Case) -> bool:
    return bool(case.options["length"] >= 2 * case.options["n_ranks"] > 2)


def _zigzag(case: Case) -> bool:
    return _layout(case, "zigzag") and _long(case)


def _cut_otherwise(wrong: Callable[..., Any]) -> Callable[[Case], bool]:
    """Return whether a case has a contiguous layout whose chunks the wrong way to cut makes of other sizes."""

    def differs(case: Case) -> bool:
        length, count = case.options["length"], case.options["n_ranks"]
        sizes = [[len(own) for own in cut(length, count)] for cut in (wrong, chunks)]
        return _layout(case, "contiguous") and sizes[0] != sizes[1]

    return differs


_STAND = (
    "The mask asks where tokens stand in the whole sequence: send the positions along, or derive them from the rank."
)
_LSE = "The log-sum-exp is m + log Σ e^(s − m), natural."
_WEIGH = "Weigh each part by e^(l − m), and divide by the sum of the weights."
_MASK = "A query sees the keys at and before its own position."
_KV = "Query head j reads key head ⌊j / (h / h_kv)⌋."
_ALL = "Every block is met once: rank r holds the block of rank (r − t) mod G at step t."

_MASKS = (
    Mistake("visible", _diagonal_hidden, "A token does not see itself.", _MASK, _causal),
    Mistake("visible", _triangle_of_every_block, "Every block is masked by its own triangle.", _STAND, _causal),
)
_RULES = (
    Mistake("shared", _heads_dealt_out, "Query head j reads key head j mod h_kv.", _KV, _grouped),
    Mistake(
        "scaled",
        _divided_by_width,
        "Scores are divided by d.",
        "Divide by √d.",
        lambda case: _n(case) > 1 and "scale" not in case.options and case.arrays["q"].shape[-1] > 1,
    ),
)
_SOFTMAX = (
    Mistake("soften", _lse_of_the_largest, "The largest score is kept for the log-sum-exp.", _LSE, _split),
    Mistake("soften", _lse_to_base_two, "The log-sum-exp is handed over to base two.", _LSE, _split),
    Mistake(
        "soften",
        _hidden_after_the_softmax,
        "Hidden weights are removed after the softmax, and still counted.",
        "Hide scores with −∞ before the softmax.",
        _causal,
    ),
)
_MERGES = (
    Mistake("merge", _parts_count_alike, "Both parts count alike.", _WEIGH, _split),
    Mistake("merge", _parts_added, "The outputs are added.", _WEIGH, _split),
    Mistake("merge", _keeps_the_second_lse, "The log-sum-exp of the new part replaces the old.", _LSE, _split),
    Mistake("merge", _keeps_the_larger_lse, "The larger log-sum-exp is kept.", _LSE, _split),
    Mistake("merge", _weights_exchanged, "Each part has the weight of the other.", _WEIGH, _split),
    Mistake("merge", _weights_to_base_two, "The weights are powers of two.", _WEIGH, _split),
)
_PACKED = Mistake(
    "sequences",
    _packed_as_one,
    "Packed sequences are one.",
    "Each sequence attends to itself alone.",
    lambda case: len(case.options.get("cu_seqlens") or ()) > 2,
)

RING_BUGS = tuple(
    mistake.planted(forward)
    for mistake in (
        *_MERGES,
        *_MASKS,
        *_RULES,
        *_SOFTMAX,
        _PACKED,
        Mistake(
            "stands",
            _stands_as_if_contiguous,
            "The mask takes every layout for contiguous.",
            _STAND,
            lambda case: _causal(case) and _split(case) and not _layout(case, "contiguous"),
        ),
        Mistake(
            "stands",
            _stands_where_the_rank_begins,
            "Positions begin at 0 on every rank.",
            _STAND,
            lambda case: _causal(case) and _split(case),
        ),
        Mistake(
            "named",
            _names_turned_round,
            "The mask takes the keys for those of rank (r + t) mod G.",
            _ALL,
            lambda case: _causal(case) and case.options["n_ranks"] > 2,
        ),
        Mistake("source", _own_block_twice, "The first block is met twice and the last one never.", _ALL, _split),
        Mistake(
            "in_order",
            _left_as_the_ranks_hold_it,
            "The output is the ranks' parts, one after the other.",
            "Put every row back where its token stands.",
            lambda case: _split(case) and not _layout(case, "contiguous"),
        ),
    )
)
GRADIENT_BUGS = tuple(
    mistake.planted(backward, "gradient_")
    for mistake in (
        *_MASKS,
        *_RULES,
        _PACKED,
        Mistake(
            "again",
            _weights_of_the_block_alone,
            "The weights of a block are normalised within the block.",
            "The weights are e^(S − l) with the log-sum-exp over all keys.",
            _split,
        ),
        Mistake(
            "delta",
            _softmax_taken_for_linear,
            "dS = P ∘ dP, as if a weight did not lower the others.",
            "Subtract Δ = rowsum(dO ∘ O) from dP.",
            lambda case: _n(case) > 1,
        ),
        Mistake(
            "delta",
            _common_part_of_the_mean,
            "Δ is the mean over the channels.",
            "Δ is a sum over the channels.",
            lambda case: _n(case) > 1 and case.arrays["v"].shape[-1] > 1,
        ),
        Mistake(
            "d_scores",
            _scale_forgotten,
            "The scale is forgotten on the way back.",
            "S = scale · q kᵀ: multiply dS by the scale too.",
            lambda case: _n(case) > 1 and case.options.get("scale", 0.0) != 1.0,
        ),
        Mistake(
            "gathered",
            _heads_averaged,
            "The gradients of the query heads of a group are averaged.",
            "A head that is read several times gathers the sum.",
            lambda case: _n(case) > 0 and case.arrays["q"].shape[1] > case.arrays["k"].shape[1],
        ),
        Mistake(
            "returns",
            _last_step_not_sent_home,
            "The gradients of keys and values make one step too few, and what the last rank found is lost.",
            "The gradients leave after each step's product, and travel G steps.",
            lambda case: _n(case) > 0,
        ),
    )
)


def _sees(case: Case) -> bool:
    """Whether some query of a block sees a key, and another key is hidden from it."""
    seen = case.arrays["k_pos"][None, :] <= case.arrays["q_pos"][:, None]
    return bool(case.options.get("causal", True) and (seen.any(axis=-1) & ~seen.all(axis=-1)).any())


def _blind(case: Case) -> bool:
    seen = case.arrays["k_pos"][None, :] <= case.arrays["q_pos"][:, None]
    return bool(case.options.get("causal", True) and seen.size and not seen.any(axis=-1).all())


def _meets(case: Case) -> bool:
    """Whether a key stands where a query stands."""
    return bool(case.options.get("causal", True)) and bool(set(case.arrays["q_pos"]) & set(case.arrays["k_pos"]))


def _some(case: Case) -> bool:
    seen = case.arrays["k_pos"][None, :] <= case.arrays["q_pos"][:, None]
    causal = case.options.get("causal", True)
    return bool(((seen | (not causal)).sum(axis=-1) > 1).any())


BLOCK_BUGS = tuple(
    mistake.planted(block, "block_")
    for mistake in (
        _MASKS[0]._replace(applies=_meets),
        _MASKS[1]._replace(applies=_sees),
        Mistake("visible", _mask_of_the_first_query, "All queries see what the first one sees.", _MASK, _sees),
        _RULES[0]._replace(applies=lambda case: _grouped(case) and _some(case)),
        _RULES[1]._replace(applies=lambda case: _RULES[1].applies(case) and _some(case)),
        *(mistake._replace(applies=_some) for mistake in _SOFTMAX[:2]),
        _SOFTMAX[2]._replace(applies=_sees),
        Mistake(
            "soften",
            _hidden_by_a_large_number,
            "Hidden scores are −30000: a block that hides everything has an output and some weight.",
            "Hide with −∞, and let a block without visible keys be (0, −∞).",
            _blind,
        ),
    )
)


def _rows(case: Case) -> bool:
    return bool((np.isfinite(case.arrays["lse_a"]) & np.isfinite(case.arrays["lse_b"])).any())


MERGE_BUGS = (
    *(mistake._replace(applies=_rows).planted(merging, "merge_") for mistake in _MERGES),
    Mistake(
        "merge",
        _nothing_minus_nothing,
        "Two parts that saw no key give −∞ − (−∞).",
        "Where both log-sum-exps are −∞ keep (0, −∞).",
        lambda case: bool((np.isneginf(case.arrays["lse_a"]) & np.isneginf(case.arrays["lse_b"])).any()),
    ).planted(merging, "merge_"),
)

_LAYOUTS = (
    Mistake(
        "zigzag",
        _neighbouring_chunks_paired,
        "Rank r holds the chunks 2r and 2r + 1, which is the contiguous layout.",
        "Pair a chunk from the front with its mirror image from the back: r and 2G − 1 − r.",
        _zigzag,
    ),
    Mistake(
        "zigzag",
        _chunks_half_a_sequence_apart,
        "Rank r holds the chunks r and G + r.",
        "The second chunk is the mirror image 2G − 1 − r of the first.",
        _zigzag,
    ),
)
PARTITION_BUGS = tuple(
    mistake.planted(placing, "partition_")
    for mistake in (
        *_LAYOUTS,
        Mistake(
            "zigzag", _late_chunk_first, "The later chunk comes first.", "Positions ascend on every rank.", _zigzag
        ),
        Mistake(
            "striped",
            _stripes_of_the_rest_first,
            "The last rank holds position 0.",
            "Rank r begins at position r.",
            lambda case: _layout(case, "striped") and _long(case),
        ),
        Mistake(
            "contiguous",
            _chunks_rounded_up,
            "Chunks are as long as the longest, and the last one takes what is left.",
            "Sizes differ by at most one.",
            _cut_otherwise(_chunks_rounded_up),
        ),
        Mistake(
            "contiguous",
            _rest_dropped,
            "What does not divide is dropped.",
            "The first chunks are one longer.",
            _cut_otherwise(_rest_dropped),
        ),
    )
)
PAIR_BUGS = tuple(
    mistake.planted(counting, "pairs_")
    for mistake in (
        *_LAYOUTS,
        _MASKS[0]._replace(applies=lambda case: case.options["length"] > 0),
        Mistake(
            "source",
            _names_turned_round,
            "Keys come from rank (r + t) mod G.",
            _ALL,
            lambda case: _long(case) and case.options["n_ranks"] > 2 and _layout(case, "contiguous", "striped"),
        ),
        Mistake("source", _own_block_twice, "The first block is counted twice, the last one never.", _ALL, _long),
    )
)
