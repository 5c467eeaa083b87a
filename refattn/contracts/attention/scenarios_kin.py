"""Scenarios of attention's kin: gradients, packed sequences, paged caches, merged parts.

Equation source: the attention sheet, sections 2.6, 2.7 and 5.2. Makers as in `scenarios`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Case
from refattn.contracts.attention.families import project
from refattn.contracts.attention.scenarios import SCENARIOS, make, paged_arrays
from refattn.primitives.alibi import alibi_slopes

if TYPE_CHECKING:
    from refattn.conformance.contract import Maker

__all__ = [
    "GRADIENT_SCENARIOS",
    "MERGE_FAMILIES",
    "MERGE_SCENARIOS",
    "PAGED_SCENARIOS",
    "VARLEN_SCENARIOS",
    "as_gradient",
    "make_merge",
    "make_paged",
    "make_varlen",
]

MERGE_FAMILIES = ("normal", "uniform", "tied", "large", "cancelling", "tiny")


def as_gradient(case: Case, rng: np.random.Generator, *, with_lse: bool = False) -> Case:
    """Return the case of `attention_vjp` with normal cotangents for a case of `attention`.

    Parameters
    ----------
    case : Case
        Of `attention`.
    rng : Generator
        Draws the cotangents.
    with_lse : bool
        Also pull a cotangent of the log-sum-exp back.
    """
    q, v = case.arrays["q"], case.arrays["v"]
    shape = (*q.shape[:-1], v.shape[-1])
    cotangents = {"dout": rng.standard_normal(shape)}
    if with_lse:
        cotangents["dlse"] = rng.standard_normal(shape[:-1])
    return replace(case, entry="attention_vjp", arrays={**case.arrays, **rounded(cotangents, case.dtype)})


def _make_gradient(family: str, dtype: str, seed: int, *, name: str, with_lse: bool = False) -> Case:
    case = SCENARIOS[name](family, dtype, seed)
    return as_gradient(case, generator(seed, name, family, "cotangents"), with_lse=with_lse)


GRADIENT_SCENARIOS: dict[str, Maker] = {
    name: partial(_make_gradient, name=name) for name in SCENARIOS if name not in ("empty_nan", "all_results")
}
GRADIENT_SCENARIOS["lse_cotangent"] = partial(_make_gradient, name="softcap", with_lse=True)


def make_varlen(
    family: str,
    dtype: str,
    seed: int,
    *,
    name: str,
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    heads: tuple[int, int] = (4, 2),
    d: int = 16,
    dv: int = 16,
    alibi: bool = False,
    sinks: bool = False,
    **options: Any,
) -> Case:
    """Return one case of `attention_varlen`.

    Parameters
    ----------
    family, dtype, seed
        Of a maker.
    name : str
        Of the scenario.
    queries, keys : tuple of int
        Lengths of the sequences.
    heads : pair of int
        Hq and Hkv.
    d, dv : int
        Widths of keys and values.
    alibi, sinks : bool
        Whether there are slopes and sinks.
    **options
        Of the case.
    """
    rng = generator(seed, name, family)
    hq, hkv = heads
    packed = project(rng, family, dtype, q=(1, hq, sum(queries), d), k=(1, hkv, sum(keys), d), dv=dv)
    arrays = {part: x[0].swapaxes(0, 1) for part, x in packed._asdict().items()}
    arrays |= {"cu_q": np.cumsum((0, *queries)), "cu_k": np.cumsum((0, *keys))}
    if alibi:
        arrays["alibi_slopes"] = alibi_slopes(hq)
    if sinks:
        arrays["sinks"] = rng.standard_normal(hq) + 1.0
    return Case("attention_varlen", rounded(arrays, dtype), options, dtype, f"{name}/{family}")


_VARLEN: dict[str, dict[str, Any]] = {
    "packed": {"queries": (13, 17, 10), "keys": (13, 17, 10), "causal": True},
    "packed_unequal": {"queries": (5, 0, 12, 1), "keys": (9, 4, 12, 7), "causal": True, "dv": 12},
    "packed_full": {"queries": (3, 7), "keys": (11, 2), "heads": (3, 1)},
    "packed_empty": {"queries": (3, 4, 2), "keys": (0, 5, 1), "heads": (2, 2)},
    "packed_decode": {"queries": (1, 1, 1, 1), "keys": (33, 1, 16, 7), "causal": True, "sinks": True},
    "packed_window": {"queries": (9, 20), "keys": (15, 25), "causal": True, "window": (3, None), "softcap": 2.0},
    "packed_alibi": {"queries": (9, 6), "keys": (9, 11), "align": "top_left", "alibi": True, "scale": 0.3},
}
VARLEN_SCENARIOS: dict[str, Maker] = {name: partial(make_varlen, name=name, **kw) for name, kw in _VARLEN.items()}


def make_paged(
    family: str,
    dtype: str,
    seed: int,
    *,
    name: str,
    size: tuple[int, int, int, int, int],
    lengths: tuple[int, ...],
    page: int,
    d: int = 16,
    dv: int = 16,
    sinks: bool = False,
    **options: Any,
) -> Case:
    """Return one case of `attention_paged`; other arguments as in `scenarios.make`.

    Parameters
    ----------
    family, dtype, seed, name, size, lengths, d, dv
        As in `scenarios.make`; size[4] is a multiple of ``page``.
    page : int
        Slots of a page.
    sinks : bool
        Whether there are sinks.
    **options
        Of the case.
    """
    dense = make(family, dtype, seed, name=name, size=size, lengths=lengths, d=d, dv=dv)
    rng = generator(seed, name, family, "pages")
    n_k = dense.arrays["kv_lengths"]
    arrays: dict[str, Any] = {"q": dense.arrays["q"], "kv_lengths": n_k}
    arrays |= paged_arrays(rng, dense.arrays["k"], dense.arrays["v"], n_k, page)
    if sinks:
        arrays["sinks"] = rng.standard_normal(size[1]) + 1.0
    return Case("attention_paged", rounded(arrays, dtype), options, dtype, f"{name}/{family}")


_PAGED: dict[str, dict[str, Any]] = {
    "paged": {"size": (3, 4, 2, 3, 40), "lengths": (40, 27, 14), "page": 8, "causal": True},
    "paged_full": {"size": (2, 2, 2, 9, 32), "lengths": (32, 16), "page": 16, "dv": 24},
    "paged_slots": {"size": (2, 4, 1, 1, 19), "lengths": (19, 7), "page": 1, "causal": True, "softcap": 4.0},
    "paged_window": {
        "size": (2, 2, 1, 6, 36), "lengths": (33, 10), "page": 4, "causal": True, "window": (5, None), "sinks": True,
    },
    "paged_empty": {"size": (3, 2, 2, 5, 24), "lengths": (0, 3, 24), "page": 8, "causal": True},
}  # fmt: skip
PAGED_SCENARIOS: dict[str, Maker] = {name: partial(make_paged, name=name, **kw) for name, kw in _PAGED.items()}


def make_merge(
    family: str,
    dtype: str,
    seed: int,
    *,
    name: str,
    shape: tuple[int, int, int, int, int],
    spread: float = 1.0,
    empty: float = 0.0,
    sinks: bool = False,
) -> Case:
    """Return one case of `merge_attention`.

    Parameters
    ----------
    family : str
        Of `refattn.conformance.cases.FAMILIES`, for the outputs of the parts.
    dtype, seed
        Of a maker.
    name : str
        Of the scenario.
    shape : tuple of int
        (parts, B, H, Sq, dv).
    spread : float
        Standard deviation of the log-sum-exps.
    empty : float
        Share of the rows of each part that saw no key.
    sinks : bool
        Whether there are sinks.
    """
    rng = generator(seed, name, family)
    lses = spread * rng.standard_normal(shape[:-1])
    lses[rng.random(lses.shape) < empty] = -np.inf
    arrays = {"outs": fill(rng, shape, family), "lses": lses}
    if sinks:
        arrays["sinks"] = rng.standard_normal(shape[2])
    return Case("merge_attention", rounded(arrays, dtype), {}, dtype, f"{name}/{family}")


_MERGE: dict[str, dict[str, Any]] = {
    "two_parts": {"shape": (2, 2, 3, 17, 16)},
    "many_parts": {"shape": (9, 1, 2, 5, 12), "spread": 2.0},
    "far_apart": {"shape": (3, 1, 2, 16, 8), "spread": 30.0},
    "empty_parts": {"shape": (3, 1, 2, 40, 8), "empty": 0.5},
    "one_part": {"shape": (1, 2, 2, 3, 5)},
    "sinks_once": {"shape": (4, 2, 4, 9, 16), "sinks": True},
    "sinks_alone": {"shape": (2, 1, 3, 30, 4), "empty": 0.6, "sinks": True},
}
MERGE_SCENARIOS: dict[str, Maker] = {name: partial(make_merge, name=name, **kw) for name, kw in _MERGE.items()}
