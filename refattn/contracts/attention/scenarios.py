"""The scenarios of `attention`: 28 structures made to show mistakes, and seven more for the options left over.

Equation source: the attention sheet, section 5.2. Every maker is ``(family, dtype, seed) -> Case``: the seed fixes all
numbers, the floating ones are rounded to the dtype, and what lies past a valid length is loud.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.cases import generator, rounded
from refattn.conformance.contract import Case
from refattn.contracts.attention.call import heads_first
from refattn.contracts.attention.families import project
from refattn.primitives.alibi import alibi_slopes

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Maker

__all__ = ["EXTRA_SCENARIOS", "SCENARIOS", "SHEET_SCENARIOS", "loud", "make", "paged_arrays"]

BR = "bottom_right"


def loud(x: np.ndarray, lengths: np.ndarray, factor: float, *, largest: bool) -> np.ndarray:
    """Return keys or values whose entries past a valid length would be noticed in any output.

    Parameters
    ----------
    x : ndarray, shape (B, Hkv, Sk, channels)
        Keys or values.
    lengths : ndarray of int, shape (B,)
        Valid entries of each batch.
    factor : float
        How much louder.
    largest : bool
        Repeat the largest magnitude of the valid entries, else the last valid entry.

    Returns
    -------
    ndarray, shape (B, Hkv, Sk, channels)
    """
    out = x.copy()
    for entry, n in zip(out, lengths.tolist(), strict=True):
        valid = entry[:, : max(n, 1)]
        if n < entry.shape[1]:
            entry[:, n:] = factor * (np.abs(valid).max(axis=(1, 2), keepdims=True) if largest else valid[:, -1:])
    return out


def make(
    family: str,
    dtype: str,
    seed: int,
    *,
    name: str,
    size: tuple[int, int, int, int, int],
    d: int = 16,
    dv: int = 16,
    extras: Callable[[np.random.Generator, tuple[int, ...]], dict[str, Any]] | None = None,
    lengths: tuple[int, ...] | None = None,
    **options: Any,
) -> Case:
    """Return one case of `attention`.

    Parameters
    ----------
    family, dtype, seed
        Of a maker.
    name : str
        Of the scenario.
    size : tuple of int
        (B, Hq, Hkv, Sq, Sk).
    d, dv : int
        Widths of keys and values.
    extras : callable, optional
        ``(rng, size) -> arrays`` beside q, k and v.
    lengths : tuple of int, optional
        Valid keys of each batch entry.
    **options
        Of the case.
    """
    rng = generator(seed, name, family)
    batch, hq, hkv, sq, sk = size
    q, k, v = project(rng, family, dtype, q=(batch, hq, sq, d), k=(batch, hkv, sk, d), dv=dv)
    arrays: dict[str, Any] = {"q": q, "k": k, "v": v}
    if lengths is not None:
        n_k = np.array(lengths)
        arrays |= {"k": loud(k, n_k, 3.0, largest=False), "v": loud(v, n_k, 2.0, largest=True), "kv_lengths": n_k}
    arrays |= extras(rng, size) if extras else {}
    arrays |= {part: heads_first(arrays[part], options.get("layout", "bhsd")) for part in "qkv"}
    return Case("attention", rounded(arrays, dtype), options, dtype, f"{name}/{family}")


def _bias(rng: np.random.Generator, size: tuple[int, ...], *, batched: bool) -> dict[str, Any]:
    batch, hq, _, sq, sk = size
    bias = 2.0 * rng.standard_normal((batch, hq, sq, sk) if batched else (hq, sq, sk))
    bias[..., 0, 3:7] = -np.inf
    return {"bias": bias}


def _mask(rng: np.random.Generator, size: tuple[int, ...]) -> dict[str, Any]:
    batch, _, _, sq, sk = size
    mask = rng.random((batch, 1, sq, sk)) < 0.7
    mask |= np.eye(sq, sk, dtype=bool)
    mask[0, 0, 5] = False
    mask[-1, 0, 7] = np.arange(sk) == 2
    return {"mask": mask}


def _slopes(_rng: np.random.Generator, size: tuple[int, ...]) -> dict[str, Any]:
    return {"alibi_slopes": alibi_slopes(size[1])}


def _sinks(rng: np.random.Generator, size: tuple[int, ...]) -> dict[str, Any]:
    return {"sinks": rng.standard_normal(size[1]) + np.linspace(-1.0, 3.0, size[1])}


def _documents(_rng: np.random.Generator, size: tuple[int, ...]) -> dict[str, Any]:
    documents = np.repeat([0, 1, 2], (13, 17, size[3] - 30))
    return {"doc_q": documents, "doc_k": documents.copy()}


def _query_lengths(_rng: np.random.Generator, size: tuple[int, ...]) -> dict[str, Any]:
    return {"q_lengths": np.maximum(size[3] - 5 * np.arange(size[0]), 1)}


_TABLE: dict[str, dict[str, Any]] = {
    "plain_square": {"size": (2, 4, 4, 40, 40)},
    "plain_unequal": {"size": (2, 4, 4, 29, 45), "dv": 12},
    "gqa": {"size": (1, 8, 2, 21, 37)},
    "mqa_decode": {"size": (3, 4, 1, 1, 33)},
    "causal_square": {"size": (1, 4, 4, 40, 40), "causal": True},
    "causal_tl": {"size": (1, 4, 4, 23, 41), "causal": True},
    "causal_br": {"size": (1, 4, 4, 23, 41), "causal": True, "align": BR},
    "causal_br_long": {"size": (1, 2, 2, 41, 23), "causal": True, "align": BR},
    "cache_lengths": {"size": (3, 4, 2, 7, 40), "causal": True, "align": BR, "lengths": (40, 27, 14)},
    "pad_lengths": {"size": (3, 2, 2, 12, 30), "lengths": (30, 20, 10)},
    "window_causal": {"size": (1, 4, 2, 20, 44), "causal": True, "align": BR, "window": (7, None)},
    "window_two": {"size": (1, 2, 2, 30, 38), "align": BR, "window": (5, 3)},
    "softcap": {"size": (1, 4, 4, 24, 30), "softcap": 2.0, "causal": True, "align": BR},
    "bias": {"size": (2, 4, 4, 20, 26), "extras": partial(_bias, batched=True), "scale": 0.11},
    "bias_bcast": {"size": (2, 4, 4, 20, 20), "extras": partial(_bias, batched=False)},
    "bool_mask": {"size": (2, 4, 4, 22, 22), "extras": _mask},
    "mask_and_causal": {"size": (2, 2, 2, 22, 22), "extras": _mask, "causal": True},
    "alibi": {"size": (1, 6, 6, 24, 40), "extras": _slopes, "causal": True, "align": BR},
    "alibi_two_sided": {"size": (1, 4, 4, 24, 30), "extras": _slopes, "align": BR},
    "sinks": {"size": (2, 4, 2, 20, 26), "extras": _sinks, "causal": True, "align": BR},
    "sinks_split": {"size": (1, 4, 2, 6, 90), "extras": _sinks},
    "packed": {"size": (1, 4, 2, 40, 40), "extras": _documents, "causal": True},
    "paged": {"size": (3, 4, 2, 3, 40), "causal": True, "align": BR, "lengths": (40, 27, 14)},
    "prefix_lm": {"size": (1, 2, 2, 30, 30), "causal": True, "prefix": 9},
    "long_split": {"size": (1, 2, 2, 6, 299)},
    "dv_ne_d": {"size": (1, 4, 4, 20, 26), "dv": 40},
    "one_key": {"size": (2, 4, 2, 5, 1)},
    "square_hs": {"size": (1, 16, 16, 16, 16)},
}

_MORE: dict[str, dict[str, Any]] = {
    "chunked": {"size": (1, 4, 2, 29, 37), "causal": True, "align": BR, "chunk": 8},
    "query_lengths": {
        "size": (3, 2, 2, 17, 21), "extras": _query_lengths, "lengths": (21, 16, 9), "causal": True, "align": BR,
    },
    "integer_offset": {"size": (2, 4, 4, 9, 33), "causal": True, "align": 5, "window": (6, None)},
    "empty_nan": {"size": (2, 2, 2, 22, 22), "extras": _mask, "empty": "nan"},
    "empty_uniform": {"size": (1, 2, 2, 33, 19), "causal": True, "align": BR, "empty": "uniform"},
    "layout_bshd": {"size": (2, 4, 2, 9, 20), "causal": True, "align": BR, "layout": "bshd"},
    "all_results": {
        "size": (1, 4, 2, 15, 18), "extras": _mask, "softcap": 3.0,
        "returns": ("out", "weights", "lse", "logits", "scores", "softcapped"),
    },
}  # fmt: skip


def _makers(table: dict[str, dict[str, Any]]) -> dict[str, Maker]:
    return {name: partial(make, name=name, **keywords) for name, keywords in table.items()}


SHEET_SCENARIOS = _makers(_TABLE)
EXTRA_SCENARIOS = _makers(_MORE)
SCENARIOS = SHEET_SCENARIOS | EXTRA_SCENARIOS


def paged_arrays(
    rng: np.random.Generator, k: np.ndarray, v: np.ndarray, lengths: np.ndarray, page: int
) -> dict[str, np.ndarray]:
    """Lay keys and values out in shuffled pages, with pages of others among them.

    Parameters
    ----------
    rng : Generator
        Shuffles.
    k, v : ndarray, shape (B, Hkv, Sk, channels)
        Keys and values, Sk a multiple of ``page``.
    lengths : ndarray of int, shape (B,)
        Valid keys; table entries past them name pages of other sequences.
    page : int
        Slots of a page.

    Returns
    -------
    dict
        ``k_pages``, ``v_pages`` (P, page, Hkv, channels) and ``block_table`` (B, n).
    """
    batch, hkv, sk = k.shape[:3]
    n = sk // page
    spare = n + 2
    order = rng.permutation(batch * n + spare)
    table = order[: batch * n].reshape(batch, n)
    pages = {}
    for name, x in (("k_pages", k), ("v_pages", v)):
        cut = x.swapaxes(1, 2).reshape(batch * n, page, hkv, x.shape[-1])
        filled = np.full((len(order), *cut.shape[1:]), 3.0 * np.abs(x).max(initial=0.0))
        filled[table.ravel()] = cut
        pages[name] = filled
    dead = np.arange(n) * page >= lengths[:, None]
    stale = np.resize(order[batch * n :], table.shape)
    return pages | {"block_table": np.where(dead, stale, table)}
