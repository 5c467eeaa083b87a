"""Mistakes of heads, layout, rows and blocks: the right numbers in the wrong place, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.contracts.attention.bugs.plant import grouped, keys_longer_than, planted
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.carriers import BLOCK, online

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case
    from refattn.contracts.attention.call import Call

__all__ = ["BLOCKS", "HEADS"]


def gqa_tile(c: Call) -> Any:
    return np.arange(c.q.shape[1]) % c.k.shape[1]


def gqa_first(c: Call) -> Any:
    return np.zeros(c.q.shape[1], int)


def gqa_off_by_one(c: Call) -> Any:
    hq, hkv = c.q.shape[1], c.k.shape[1]
    return np.minimum((np.arange(hq) + 1) // (hq // hkv), hkv - 1)


def heads_reversed(_c: Call, out: np.ndarray) -> Any:
    return out[:, ::-1]


def layout_swap(c: Call) -> Call:
    if not _square(c):
        return c
    return c.having(q=c.q.swapaxes(1, 2), k=c.k.swapaxes(1, 2), v=c.v.swapaxes(1, 2))


def swapped_back(c: Call, out: np.ndarray) -> Any:
    return out.swapaxes(1, 2) if _square(c) else out


def _square(c: Call) -> bool:
    return bool(c.q.shape[1] == c.q.shape[2] == c.k.shape[1] == c.k.shape[2])


def v_head_rolled(c: Call) -> Call:
    return c.having(v=np.roll(c.v, -1, axis=1))


def v_row_shift(c: Call) -> Call:
    return c.having(v=np.roll(c.v, -1, axis=2))


def k_as_v(c: Call) -> Call:
    return c.having(v=c.k)


def kv_batch_rolled(c: Call) -> Call:
    return c.having(k=np.roll(c.k, -1, axis=0), v=np.roll(c.v, -1, axis=0))


def last_row_of_previous(_c: Call, out: np.ndarray) -> Any:
    return np.roll(out, 1, axis=2)


def _same_size(case: Case) -> bool:
    _, hq, hkv, sq, sk, *_ = sizes(case)
    return hq == hkv == sq == sk > 1


def _several(size: str) -> Callable[[Case], bool]:
    def applies(case: Case) -> bool:
        return bool(getattr(sizes(case), size) > 1)

    return applies


def _same_width(case: Case) -> bool:
    return sizes(case).d == sizes(case).dv


HEADS = (
    planted(
        "gqa_tile",
        "query head h reads kv head h % Hkv",
        "Repeat each kv head: query head h reads kv head h // G.",
        grouped,
        kv_head=gqa_tile,
    ),
    planted(
        "gqa_first",
        "all query heads read kv head 0",
        "Query head h reads kv head h // G.",
        _several("hkv"),
        kv_head=gqa_first,
    ),
    planted(
        "gqa_off_by_one",
        "kv head (h + 1) // group, clipped",
        "Query head h reads kv head h // G.",
        _several("hkv"),
        kv_head=gqa_off_by_one,
    ),
    planted(
        "heads_reversed",
        "output heads in reverse order",
        "Output head h belongs to query head h.",
        _several("hq"),
        output=heads_reversed,
    ),
    planted(
        "layout_swap",
        "(heads, length) axes swapped when both have the same size",
        "Take the meaning of an axis from the declared layout, never from its size.",
        _same_size,
        read=layout_swap,
        output=swapped_back,
    ),
    planted(
        "v_head_rolled",
        "values of the next head",
        "Keys and values of a head belong together.",
        _several("hkv"),
        read=v_head_rolled,
    ),
    planted(
        "v_row_shift",
        "values shifted by one key",
        "Weight j meets value j.",
        keys_longer_than(1),
        read=v_row_shift,
    ),
    planted("k_as_v", "keys used as values", "The output is P V.", _same_width, read=k_as_v),
    planted(
        "kv_batch_rolled",
        "keys and values of the next batch entry",
        "Each batch entry has its own keys and values.",
        _several("batch"),
        read=kv_batch_rolled,
    ),
    planted(
        "last_row_of_previous",
        "each query row gets the previous row's output",
        "Output row i belongs to query i.",
        _several("sq"),
        output=last_row_of_previous,
    ),
)


def drop_tail_keys(c: Call) -> list[tuple[int, int]]:
    sk = c.k.shape[2]
    return [(start, start + BLOCK) for start in range(0, sk - BLOCK + 1, BLOCK)]


def zero_pad_tail(c: Call, z: np.ndarray, start: int, stop: int) -> tuple[Any, Any]:
    missing = start + BLOCK - stop
    zeros = [(0, 0)] * 3
    return (
        np.pad(z[..., start:stop], [*zeros, (0, missing)]),
        np.pad(c.v[..., start:stop, :], [(0, 0), (0, 0), (0, missing), (0, 0)]),
    )


def unwritten_tail_queries(_c: Call, out: np.ndarray) -> Any:
    written = out.shape[2] // BLOCK * BLOCK
    return np.concatenate([out[:, :, :written], np.zeros_like(out[:, :, written:])], axis=2)


def duplicate_last_block(c: Call) -> list[tuple[int, int]]:
    sk = c.k.shape[2]
    blocks = [(start, min(start + BLOCK, sk)) for start in range(0, sk, BLOCK)]
    return [*blocks, blocks[-1]]


def skip_block_first_key(c: Call) -> list[tuple[int, int]]:
    sk = c.k.shape[2]
    return [(start + (start > 0), min(start + BLOCK, sk)) for start in range(0, sk, BLOCK)]


def _ragged_keys(case: Case) -> bool:
    return sizes(case).sk % BLOCK > 0


def _ragged_queries(case: Case) -> bool:
    return sizes(case).sq % BLOCK > 0


BLOCKS = (
    planted(
        "drop_tail_keys",
        "last partial block of keys (16) dropped",
        "Round the number of blocks up.",
        _ragged_keys,
        blocks=drop_tail_keys,
        attend=online,
    ),
    planted(
        "zero_pad_tail",
        "last block padded with zero keys and not masked",
        "Padding within a block is hidden: its logits are −∞, not 0.",
        _ragged_keys,
        load=zero_pad_tail,
        attend=online,
    ),
    planted(
        "unwritten_tail_queries",
        "last partial block of queries (16) left at zero",
        "Round the number of query blocks up, and write only the rows that exist.",
        _ragged_queries,
        output=unwritten_tail_queries,
    ),
    planted(
        "duplicate_last_block",
        "last key block (16) counted twice",
        "The loop over blocks ends before the first block past the end.",
        keys_longer_than(BLOCK),
        blocks=duplicate_last_block,
        attend=online,
    ),
    planted(
        "skip_block_first_key",
        "first key of every block of 16 but the first skipped",
        "A block begins where the one before ended.",
        keys_longer_than(BLOCK),
        blocks=skip_block_first_key,
        attend=online,
    ),
)
