"""Pooling of the tokens inside each region: entry, laws and mistakes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Bug, Case, Claim, Entry, Law
from refattn.contracts.biformer.straight import adaptive_bin
from refattn.layers.biformer_routing import KV_POOLS, pool_regions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

    from refattn.conformance.contract import Probe

__all__ = ["POOLING"]

_FAMILIES = ("normal", "uniform", "peaky", "tied", "large", "cancelling", "tiny")
Array = Any


def _pooling(label: str, shape: tuple[int, ...], options: dict[str, Any], family: str, dtype: str, seed: int) -> Case:
    kv = fill(generator(seed, label, family), shape, family)
    return Case("pool_regions", {"kv": rounded(kv, dtype)}, dict(options), dtype, f"{label}/{family}")


_POOLINGS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "adaptive_average": ((2, 4, 3, 5, 4), {"mode": "ada_avgpool", "per_region": 2}),
    "average": ((2, 4, 5, 4, 6), {"mode": "avgpool", "ratio": 2}),
    "identity": ((1, 4, 2, 3, 6), {"mode": "identity"}),
    "adaptive_maximum": ((1, 4, 5, 4, 4), {"mode": "ada_maxpool", "per_region": 3}),
    "maximum": ((1, 4, 4, 7, 4), {"mode": "maxpool", "ratio": 3}),
    "adaptive_more_bins_than_tokens": ((1, 2, 2, 3, 4), {"mode": "ada_avgpool", "per_region": 4}),
    "adaptive_one_bin": ((1, 2, 3, 4, 4), {"mode": "ada_avgpool", "per_region": 1}),
    "ratio_one": ((1, 2, 3, 2, 4), {"mode": "maxpool", "ratio": 1}),
    "ratio_of_the_region": ((1, 2, 4, 4, 4), {"mode": "avgpool", "ratio": 4}),
    "one_token": ((1, 2, 1, 1, 3), {"mode": "ada_maxpool", "per_region": 1}),
    "empty_batch": ((0, 2, 4, 4, 3), {"mode": "avgpool", "ratio": 2}),
}


@st.composite
def _drawn_pooling(draw: Any, dtype: str) -> Case:
    h, w = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 4)), h, w, draw(st.integers(1, 4)))
    options = {
        "mode": draw(st.sampled_from(KV_POOLS)),
        "ratio": draw(st.integers(1, min(h, w))),
        "per_region": draw(st.integers(1, 5)),
    }
    return _pooling("drawn", shape, options, draw(st.sampled_from(_FAMILIES)), dtype, draw(st.integers(0, 999)))


def _pooling_cases(dtype: str) -> SearchStrategy[Case]:
    return _drawn_pooling(dtype)


def _bins(length: int, mode: str, ratio: int, per_region: int) -> list[slice]:
    if mode.startswith("ada"):
        return [adaptive_bin(a, length, per_region) for a in range(per_region)]
    size = 1 if mode == "identity" else ratio
    return [slice(a, a + size) for a in range(0, length - size + 1, size)]


def _reduce(mode: str) -> Callable[..., Array]:
    return np.max if mode.endswith("maxpool") else np.mean


def _pool(
    kv: Array,
    *,
    mode: str = "identity",
    ratio: int = 4,
    per_region: int = 4,
    bins: Callable[..., list[slice]] = _bins,
    reduce: Callable[[str], Callable[..., Array]] = _reduce,
    columns_first: bool = False,
) -> Array:
    """Pool bin by bin, with parts that can be wrong."""
    rows, columns = (bins(length, mode, ratio, per_region) for length in kv.shape[2:4])
    pairs = (
        [(r, c) for c in columns for r in rows]
        if columns_first and mode != "identity"
        else [(r, c) for r in rows for c in columns]
    )
    return np.stack([reduce(mode)(kv[:, :, r, c], axis=(2, 3)) for r, c in pairs], axis=2)


def _disjoint_bins(length: int, mode: str, ratio: int, per_region: int) -> list[slice]:
    if not mode.startswith("ada"):
        return _bins(length, mode, ratio, per_region)
    size = max(length // per_region, 1)
    starts = [min(a * size, length - 1) for a in range(per_region)]
    return [slice(a, min(a + size, length)) for a in starts]


def _remainder_bins(length: int, mode: str, ratio: int, per_region: int) -> list[slice]:
    if mode.startswith("ada") or mode == "identity":
        return _bins(length, mode, ratio, per_region)
    return [slice(a, a + ratio) for a in range(0, length, ratio)]


def _sliding_bins(length: int, mode: str, ratio: int, per_region: int) -> list[slice]:
    if mode.startswith("ada") or mode == "identity":
        return _bins(length, mode, ratio, per_region)
    return [slice(a, a + ratio) for a in range(length - ratio + 1)]


def _other_kind(mode: str) -> Callable[..., Array]:
    return np.mean if mode.endswith("maxpool") else np.max


def _absolute_maximum(mode: str) -> Callable[..., Array]:
    def largest(x: Array, axis: tuple[int, int]) -> Array:
        flat = x.reshape(*x.shape[:2], -1, x.shape[-1])
        where = np.argmax(np.abs(flat), axis=2)[:, :, None]
        del axis
        return np.take_along_axis(flat, where, axis=2)[:, :, 0]

    return largest if mode.endswith("maxpool") else np.mean


def _nominal_area(kv: Array, *, mode: str = "identity", ratio: int = 4, per_region: int = 4) -> Array:
    if mode != "ada_avgpool":
        return _pool(kv, mode=mode, ratio=ratio, per_region=per_region)
    sums = _pool(kv, mode=mode, per_region=per_region, reduce=lambda _mode: np.sum)
    return sums / (kv.shape[2] * kv.shape[3] / per_region**2)


def _mode_is(*parts: str) -> Callable[[Case], bool]:
    return lambda case: case.arrays["kv"].size > 0 and any(part in case.options["mode"] for part in parts)


_POOLING_BUGS = (
    Bug(
        "disjoint_bins",
        "adaptive bins all have ⌊h / P⌋ rows, so the last rows are lost",
        partial(_pool, bins=_disjoint_bins),
        _mode_is("ada"),
        source=_disjoint_bins,
        remedy="Bin a covers ⌊a h / P⌋ to ⌈(a + 1) h / P⌉ − 1.",
    ),
    Bug(
        "remainder_bins",
        "the remainder that no full window covers is pooled too",
        partial(_pool, bins=_remainder_bins),
        lambda case: case.arrays["kv"].size > 0 and case.options["mode"] in ("avgpool", "maxpool"),
        source=_remainder_bins,
        remedy="Drop the remainder.",
    ),
    Bug(
        "sliding_bins",
        "the window moves by one token instead of by its own size",
        partial(_pool, bins=_sliding_bins),
        lambda case: case.arrays["kv"].size > 0 and case.options["mode"] in ("avgpool", "maxpool"),
        source=_sliding_bins,
        remedy="The stride is the kernel's size.",
    ),
    Bug(
        "other_kind",
        "average and maximum are exchanged",
        partial(_pool, reduce=_other_kind),
        _mode_is("pool"),
        source=_other_kind,
        remedy="avgpool averages, maxpool takes the maximum.",
    ),
    Bug(
        "absolute_maximum",
        "the entry of largest absolute value is taken",
        partial(_pool, reduce=_absolute_maximum),
        _mode_is("maxpool"),
        source=_absolute_maximum,
        remedy="The maximum is signed.",
    ),
    Bug(
        "nominal_area",
        "adaptive averages divide by h w / P² instead of by the size of the bin",
        _nominal_area,
        _mode_is("ada_avgpool"),
        remedy="Bins overlap where P does not divide h: count the tokens of each bin.",
    ),
    Bug(
        "columns_first",
        "pooled tokens are numbered column by column",
        partial(_pool, columns_first=True),
        _mode_is("pool"),
        remedy="Tokens of a region are numbered row by row.",
    ),
)


def _full_size_is_identity(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    side = case.arrays["kv"].shape[2]
    square = case.having(kv=case.arrays["kv"][:, :, :, :side].copy())
    same = probe(square.having(mode="identity"))["out"]
    for mode in KV_POOLS[1:]:
        pooled = square.having(mode=mode, per_region=side, ratio=1)
        yield Claim(probe(pooled)["out"], same, probe.slack(pooled)["out"], what=mode)


def _constants_stay(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    kv = case.arrays["kv"]
    flat = case.having(kv=np.broadcast_to(kv[:, :, :1, :1], kv.shape).copy())
    out = probe(flat)["out"]
    yield Claim(out, np.broadcast_to(kv[:, :, 0, :1], out.shape), 2 * probe.slack(flat)["out"])


def _no_bin_is_forgotten(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    """Raise one token above everything: maximum pooling must show it somewhere."""
    kv = case.arrays["kv"].copy()
    row, column = int(rng.integers(kv.shape[2])), int(rng.integers(kv.shape[3]))
    peak = rounded(np.abs(kv).max(axis=(2, 3)) + 1.0, case.dtype)
    kv[:, :, row, column] = peak
    out = probe(case.having(kv=kv, mode="ada_maxpool"))["out"]
    yield Claim(out.max(axis=2), peak)


POOLING = Entry(
    "pool_regions",
    pool_regions,
    ("kv",),
    {name: partial(_pooling, name, *spec) for name, spec in _POOLINGS.items()},
    _FAMILIES,
    _pooling_cases,
    smoke=tuple((name, "normal") for name in ("adaptive_average", "average", "adaptive_maximum", "maximum")),
    laws=(
        Law(
            "full_size_is_identity",
            "Adaptive pooling to the region's own size, and pooling by ratio 1, change nothing.",
            _full_size_is_identity,
            lambda case: case.arrays["kv"].size > 0 and case.arrays["kv"].shape[2] <= case.arrays["kv"].shape[3],
            witness="columns_first",
        ),
        Law(
            "constants_stay",
            "A region of equal tokens pools to that token.",
            _constants_stay,
            lambda case: case.arrays["kv"].size > 0,
            witness="nominal_area",
        ),
        Law(
            "no_token_is_forgotten",
            "The largest token of a region survives adaptive maximum pooling, wherever it stands.",
            _no_bin_is_forgotten,
            lambda case: case.arrays["kv"].size > 0,
            witness="disjoint_bins",
        ),
    ),
    bugs=_POOLING_BUGS,
    differentiable=("kv",),
    axes={"kv": ("B", "R", "h", "w", "C")},
    may_alias=True,
)
