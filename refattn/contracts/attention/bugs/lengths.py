"""Mistakes about who sees whom, part three: valid lengths, packed documents, prefixes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.contracts.attention.bugs.plant import is_causal, planted
from refattn.contracts.attention.call import sizes

if TYPE_CHECKING:
    from refattn.conformance.contract import Case
    from refattn.contracts.attention.call import Call

__all__ = ["DOCUMENTS", "LENGTHS", "PREFIX"]


def len_ignored(_c: Call) -> Any:
    return np.True_


def len_plus1(c: Call) -> Call:
    return c.having(kv_lengths=np.minimum(c.kv_lengths + 1, c.k.shape[2]))


def len_minus1(c: Call) -> Call:
    return c.having(kv_lengths=np.maximum(c.kv_lengths - 1, 0))


def len_batch0(c: Call) -> Call:
    return c.having(kv_lengths=np.broadcast_to(c.kv_lengths[:1], c.kv_lengths.shape))


def _padded(case: Case) -> bool:
    lengths = case.arrays.get("kv_lengths")
    return bool(lengths is not None and (lengths < sizes(case).sk).any())


def _unequal(case: Case) -> bool:
    lengths = case.arrays.get("kv_lengths")
    return bool(lengths is not None and len(lengths) and (lengths != lengths[0]).any())


LENGTHS = (
    planted(
        "len_ignored",
        "padded keys attended",
        "Hide the keys j ≥ n_k.",
        _padded,
        option="kv_lengths",
        lengths=len_ignored,
    ),
    planted(
        "len_plus1",
        "one padded key attended",
        "The last valid key is n_k − 1.",
        _padded,
        option="kv_lengths",
        read=len_plus1,
    ),
    planted(
        "len_minus1", "last valid key dropped", "The last valid key is n_k − 1.", option="kv_lengths", read=len_minus1
    ),
    planted(
        "len_batch0",
        "length of batch 0 used for every batch",
        "Each batch entry has its own n_k.",
        _unequal,
        option="kv_lengths",
        read=len_batch0,
    ),
)


def doc_ignored(_c: Call) -> bool:
    return True


def doc_boundary_shift(c: Call) -> Any:
    late_q, late_k = np.roll(c.doc_q, 1, axis=-1), np.roll(c.doc_k, 1, axis=-1)
    late_q[..., 0], late_k[..., 0] = c.doc_q[..., 0], c.doc_k[..., 0]
    return (late_q[..., :, None] == late_k[..., None, :])[..., None, :, :]


def doc_first_only(c: Call) -> Any:
    first = c.doc_q[..., :1]
    rest_q, rest_k = c.doc_q != first, c.doc_k != first
    return (rest_q[..., :, None] == rest_k[..., None, :])[..., None, :, :]


DOCUMENTS = (
    planted(
        "doc_ignored",
        "packed documents attend to each other (causal only)",
        "A query sees keys of its own document only.",
        option="doc_q",
        documents=doc_ignored,
    ),
    planted(
        "doc_boundary_shift",
        "document boundaries one token late",
        "A document begins with the token at its start offset.",
        option="doc_q",
        documents=doc_boundary_shift,
    ),
    planted(
        "doc_first_only",
        "only the first boundary respected",
        "Compare document numbers, not only whether the first document is left.",
        option="doc_q",
        documents=doc_first_only,
    ),
)


def prefix_ignored(_c: Call) -> bool:
    return False


def prefix_plus1(c: Call) -> Any:
    return c.j < np.reshape(c.prefix, (-1, 1, 1, 1)) + 1


PREFIX = (
    planted(
        "prefix_ignored",
        "prefix-LM prefix ignored",
        "The causal rule does not hide the first keys: j < prefix or j ≤ p.",
        is_causal,
        option="prefix",
        prefix=prefix_ignored,
    ),
    planted(
        "prefix_plus1",
        "prefix one token too long",
        "The prefix is the keys j < prefix.",
        is_causal,
        option="prefix",
        prefix=prefix_plus1,
    ),
)
