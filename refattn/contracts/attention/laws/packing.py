"""Laws between entries: documents and packed sequences, pages and rows, parts and the whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.conformance.precision import round_to, unit_roundoff
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.equivalents import dense
from refattn.contracts.attention.laws.symmetry import lse_claim
from refattn.contracts.attention.surgery import allowed, has, order_free_keys, positional, take, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["DOCUMENT_LAWS", "MERGE_LAWS", "PAGED_LAWS", "SPLIT_LAWS", "VARLEN_LAWS"]


def _bounds(documents: np.ndarray, count: int) -> np.ndarray:
    """Return where each document begins, and the total."""
    return np.concatenate([[0], np.cumsum(np.bincount(documents, minlength=count))])


def _document_is_packed(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    one = take(case, "B", [0])
    count = 1 + max(int(one.arrays[name].max(initial=0)) for name in ("doc_q", "doc_k"))
    packed = one.without("doc_q", "doc_k", "returns").having(align="top_left")
    arrays = {**packed.arrays, **{name: packed.arrays[name][0].swapaxes(0, 1) for name in "qkv"}}
    bounds = {f"cu_{side}": _bounds(one.arrays[f"doc_{side}"], count) for side in "qk"}
    other = replace(packed, entry="attention_varlen", arrays={**arrays, **bounds})
    slack = 2 * allowed(probe, one)[0].swapaxes(0, 1)
    yield Claim(probe(one)["out"][0].swapaxes(0, 1), probe(other)["out"], slack)


def _packs(case: Case) -> bool:
    """Whether documents lie one after the other, and nothing depends on positions across them."""
    if (
        not whole(case)
        or not has(case, "doc_q")
        or has(case, "mask", "bias", "kv_lengths", "q_lengths", "prefix", "chunk")
    ):
        return False
    doc_q, doc_k = case.arrays["doc_q"], case.arrays["doc_k"]
    sorted_flat = all(doc.ndim == 1 and (np.diff(doc) >= 0).all() for doc in (doc_q, doc_k))
    aligned = case.options.get("align", "top_left") == "top_left" and np.array_equal(doc_q, doc_k)
    return bool(sorted_flat and case.options.get("empty") != "uniform" and (aligned or not positional(case)))


def _packed_is_separate(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cu_q, cu_k = case.arrays["cu_q"], case.arrays["cu_k"]
    a = int(rng.integers(len(cu_q) - 1))
    rows, keys = slice(cu_q[a], cu_q[a + 1]), slice(cu_k[a], cu_k[a + 1])
    alone = case.having(
        q=case.arrays["q"][rows],
        k=case.arrays["k"][keys],
        v=case.arrays["v"][keys],
        cu_q=np.array([0, cu_q[a + 1] - cu_q[a]]),
        cu_k=np.array([0, cu_k[a + 1] - cu_k[a]]),
    )
    yield Claim(probe(case)["out"][rows], probe(alone)["out"], 2 * allowed(probe, case)[rows], f"sequence {a}")


def _paged_is_contiguous(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield Claim(probe(case)["out"], probe(dense(case))["out"], 2 * allowed(probe, case))


def _pages_move(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(len(case.arrays["k_pages"]))
    moved = case.having(
        k_pages=case.arrays["k_pages"][order],
        v_pages=case.arrays["v_pages"][order],
        block_table=np.argsort(order)[case.arrays["block_table"]],
    )
    yield Claim(probe(case)["out"], probe(moved)["out"], 2 * allowed(probe, case))


def _dead_slots_ignored(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    table, n_k, page = case.arrays["block_table"], case.arrays["kv_lengths"], case.arrays["k_pages"].shape[1]
    needed = np.arange(table.shape[1]) * page < n_k[:, None]
    slots = np.zeros(case.arrays["k_pages"].shape[:2], bool)
    for row, n in zip(table, n_k.tolist(), strict=True):
        slots[row[: -(-n // page)]] |= True
        if n % page:
            slots[row[n // page], n % page :] = False
    pages = {name: case.arrays[name].copy() for name in ("k_pages", "v_pages")}
    for x in pages.values():
        x[~slots] = np.nan
    other = case.having(**pages, block_table=np.where(needed, table, -1))
    yield Claim(probe(case)["out"], probe(other)["out"], 2 * allowed(probe, case))


DOCUMENT_LAWS = (
    Law(
        "document_is_packed",
        "Documents in one sequence give the same as the documents packed with their bounds.",
        _document_is_packed,
        _packs,
        needs=("attention_varlen",),
        witness="doc_boundary_shift",
    ),
)

VARLEN_LAWS = (
    Law(
        "packed_is_separate",
        "A packed sequence gives the same as when it is alone.",
        _packed_is_separate,
        lambda case: len(case.arrays["cu_q"]) > 2,
        witness="varlen_one_sequence",
    ),
)

PAGED_LAWS = (
    Law(
        "paged_is_contiguous",
        "Keys and values in pages give the same as in one piece.",
        _paged_is_contiguous,
        needs=("attention",),
        witness="paged_identity",
    ),
    Law(
        "pages_move",
        "Where a page lies does not matter, if the table says so.",
        _pages_move,
        witness="paged_identity",
    ),
    Law(
        "dead_slots_ignored",
        "Slots and table entries past the valid length may hold anything.",
        _dead_slots_ignored,
        witness="paged_tail",
    ),
)


def _split_merge(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    whole_case = case.without("returns")
    bare = case.without("sinks").having(returns=("out", "lse"))
    edges = [0, *sorted(rng.integers(1, sizes(case).sk, 2).tolist()), sizes(case).sk]
    parts = [take(bare, "Sk", np.arange(a, b)) for a, b in pairwise(edges) if b > a]
    results = [probe(part) for part in parts]
    if all("lse" in result for result in results):
        arrays = {name: np.stack([r[key] for r in results]) for name, key in (("outs", "out"), ("lses", "lse"))}
        arrays |= {"sinks": case.arrays["sinks"]} if has(case, "sinks") else {}
        merging = Case("merge_attention", arrays, {}, case.dtype, case.label)
        slack = allowed(probe, whole_case, merging, *parts) + _moved_weights(probe, parts, arrays)
        yield Claim(probe(whole_case)["out"], probe(merging)["out"], slack)


def _moved_weights(probe: Probe, parts: list[Case], arrays: dict[str, np.ndarray]) -> Any:
    """Return what errors of the parts' log-sum-exps, stored in the dtype, do to the merged output."""
    wrong = np.stack([np.broadcast_to(_per_row(probe.slack(part)["lse"]), arrays["lses"].shape[1:]) for part in parts])
    stored = unit_roundoff(parts[0].dtype) * np.where(np.isfinite(arrays["lses"]), np.abs(arrays["lses"]), 0.0)
    size = np.sqrt(np.sum(np.nan_to_num(arrays["outs"]) ** 2, axis=-1)).max(axis=0)
    return 2.0 * size * np.expm1(np.minimum((wrong + stored).max(axis=0) * 2.0, 700.0))


def _per_row(slack: np.ndarray) -> np.ndarray:
    return slack if np.ndim(slack) == 3 else slack[..., None]


def _splits(case: Case) -> bool:
    s = sizes(case)
    return order_free_keys(case) and s.sk > 1 and s.sq > 0 and case.options.get("empty", "zero") == "zero"


SPLIT_LAWS = (
    Law(
        "split_merge",
        "Parts of the keys, attended alone and merged by their log-sum-exps, give the whole; the sink counts once.",
        _split_merge,
        _splits,
        needs=("merge_attention",),
        witness="merge_average",
    ),
)


def _all_claims(probe: Probe, case: Case, other: Case, shift: float = 0.0) -> Iterator[Claim]:
    left, right = probe(case), probe(other)
    first, second = probe.slack(case), probe.slack(other)
    yield Claim(left["out"], right["out"], first["out"] + second["out"])
    yield lse_claim(left["lse"] + shift, right["lse"], first["lse"] + second["lse"])


def _parts(case: Case, index: Any) -> Case:
    return case.having(outs=case.arrays["outs"][index], lses=case.arrays["lses"][index])


def _parts_permuted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    yield from _all_claims(probe, case, _parts(case, rng.permutation(len(case.arrays["lses"]))))


def _parts_doubled(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = np.tile(np.arange(len(case.arrays["lses"])), 2)
    yield from _all_claims(probe, case, _parts(case, twice), np.log(2.0))


def _empty_part_ignored(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    outs, lses = case.arrays["outs"], case.arrays["lses"]
    nothing = np.full_like(lses[:1], -np.inf)
    loud = round_to(np.full_like(outs[:1], 1000.0), case.dtype)
    other = case.having(outs=np.concatenate([outs, loud]), lses=np.concatenate([lses, nothing]))
    yield from _all_claims(probe, case, other)


def _merge_in_steps(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cut = int(rng.integers(1, len(case.arrays["lses"])))
    bare = case.without("sinks")
    halves = [_parts(bare, slice(None, cut)), _parts(bare, slice(cut, None))]
    results = [probe(half) for half in halves]
    outs, lses = (np.stack([r[name] for r in results]) for name in ("out", "lse"))
    joined = case.having(outs=outs, lses=lses)
    wrong = sum(_along_rows(probe.slack(half)["lse"], lses.shape[1:]) for half in halves)
    size = np.sqrt(np.sum(outs**2, axis=-1)).max(axis=0)
    slack = allowed(probe, case, joined, *halves) + 2.0 * size * np.expm1(np.minimum(wrong, 700.0))
    yield Claim(probe(case)["out"], probe(joined)["out"], slack)


def _along_rows(slack: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(slack if np.ndim(slack) == len(shape) else np.asarray(slack)[..., None], shape)


def _merge_within_hull(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    live = np.isfinite(case.arrays["lses"])[..., None]
    zero = 0.0 if has(case, "sinks") else np.inf
    low = np.where(live, case.arrays["outs"], np.inf).min(axis=0, initial=zero)
    high = np.where(live, case.arrays["outs"], -np.inf).max(axis=0, initial=-zero)
    any_live = live.any(axis=0)
    out = probe(case)["out"]
    yield Claim(out, np.clip(out, np.where(any_live, low, 0.0), np.where(any_live, high, 0.0)), allowed(probe, case))


def _several(case: Case) -> bool:
    return len(case.arrays["lses"]) > 1


MERGE_LAWS = (
    Law(
        "parts_permuted",
        "The order of the parts does not matter.",
        _parts_permuted,
        _several,
        witness="merge_last_only",
    ),
    Law(
        "parts_doubled",
        "Every part twice gives the same output, and a log-sum-exp that is ln 2 larger.",
        _parts_doubled,
        lambda case: not has(case, "sinks"),
        witness="merge_lse_max",
    ),
    Law(
        "empty_part_ignored",
        "A part with a log-sum-exp of −∞ adds nothing, whatever its output holds.",
        _empty_part_ignored,
        witness="merge_empty_as_zero",
    ),
    Law(
        "merge_in_steps",
        "Merging some parts first and the rest later gives the same.",
        _merge_in_steps,
        _several,
        witness="merge_average",
    ),
    Law(
        "merge_within_hull",
        "Every channel of a merged output lies between the parts' smallest and largest, 0 among them with a sink.",
        _merge_within_hull,
        witness="merge_unnormalised",
    ),
)
