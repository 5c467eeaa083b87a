"""Regional attention, the bare operator on regions and a graph: entry, laws and mistakes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Case, Claim, Entry, Law
from refattn.contracts.biformer.regional_bugs import REGIONAL_BUGS
from refattn.layers.biformer_routing import regional_attention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.strategies import SearchStrategy

    from refattn.conformance.contract import Probe

__all__ = ["REGIONAL"]

_FAMILIES = ("normal", "uniform", "peaky", "tied", "large", "cancelling", "tiny")


class _Sizes(NamedTuple):
    """Sizes and parts of a call."""

    B: int = 2
    R: int = 4
    n: int = 6
    Rk: int = 4
    nk: int = 6
    d: int = 4
    d_v: int = 4
    M: int = 2
    topk: int = 2
    per_head: bool = False
    soft: bool = False
    masked: bool = False


def _call(label: str, s: _Sizes, options: dict[str, Any], family: str, dtype: str, seed: int) -> Case:
    rng = generator(seed, label, family)
    arrays: dict[str, Any] = {
        "q": fill(rng, (s.B, s.R, s.n, s.M * s.d), family),
        "k": fill(rng, (s.B, s.Rk, s.nk, s.M * s.d), family),
        "v": fill(rng, (s.B, s.Rk, s.nk, s.M * s.d_v), "normal" if family == "tiny" else family),
    }
    rows = (s.B, s.M, s.R) if s.per_head else (s.B, s.R)
    order = np.argsort(rng.random((*rows, s.Rk)), axis=-1, kind="stable")
    arrays["region_index"] = order[..., : s.topk].copy()
    if s.soft:
        weight = -np.sort(-rng.random((*rows, s.topk)), axis=-1) + 0.1
        arrays["region_weight"] = weight / np.sum(weight, axis=-1, keepdims=True)
    if s.masked:
        mask = rng.random((s.Rk, s.nk)) < 0.6
        mask[:, 0] = True  # every region holds at least one token
        arrays["key_mask"] = mask
    return Case("regional_attention", rounded(arrays, dtype), {"num_heads": s.M, **options}, dtype, f"{label}/{family}")


_SPECS: dict[str, tuple[_Sizes, dict[str, Any]]] = {
    "default": (_Sizes(), {}),
    "graph_per_head": (_Sizes(B=1, M=3, R=5, Rk=6, topk=3, per_head=True), {}),
    "other_key_grid": (_Sizes(B=1, R=6, n=4, Rk=9, nk=1, topk=4), {}),
    "soft": (_Sizes(R=3, Rk=5, topk=3, soft=True), {}),
    "soft_per_head": (_Sizes(B=1, topk=2, per_head=True, soft=True), {}),
    "masked": (_Sizes(masked=True), {}),
    "masked_per_head": (_Sizes(B=1, R=3, Rk=4, topk=2, per_head=True, masked=True, soft=True), {}),
    "all_regions": (_Sizes(B=1, topk=4), {}),
    "own_scale": (_Sizes(B=1), {"scale": 0.9}),
    "other_value_width": (_Sizes(B=1, d=3, d_v=5), {}),
    "one_token_each": (_Sizes(B=1, R=5, n=1, Rk=5, nk=1, topk=3), {}),
    "single": (_Sizes(B=1, R=1, n=1, Rk=1, nk=1, M=1, d=1, d_v=1, topk=1), {}),
    "empty_batch": (_Sizes(B=0), {}),
}


@st.composite
def _drawn(draw: Any, dtype: str) -> Case:
    small = st.integers(1, 5)
    Rk = draw(small)
    sizes = _Sizes(
        draw(st.integers(1, 2)),
        *(draw(small), draw(small), Rk, draw(small), draw(small), draw(small)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, Rk)),
        *(draw(st.booleans()), draw(st.booleans()), draw(st.booleans())),
    )
    return _call("drawn", sizes, {}, draw(st.sampled_from(_FAMILIES)), dtype, draw(st.integers(0, 999)))


def _cases(dtype: str) -> SearchStrategy[Case]:
    return _drawn(dtype)


def _rows_sum_to_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    attn = probe(case)["attn"]
    slack = np.sqrt(attn.shape[-1]) * probe.slack(case)["attn"]
    yield Claim(np.sum(attn, axis=-1, keepdims=True), np.ones((*attn.shape[:-1], 1)), 2 * slack)


def _order_of_regions(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    index = case.arrays["region_index"]
    order = rng.permutation(index.shape[-1])
    changes = {"region_index": index[..., order].copy()}
    if "region_weight" in case.arrays:
        changes["region_weight"] = case.arrays["region_weight"][..., order].copy()
    turned = case.having(**changes)
    nk = case.arrays["k"].shape[2]
    left, right = probe(case), probe(turned)
    yield Claim(left["out"], right["out"], probe.slack(case)["out"] + probe.slack(turned)["out"])
    blocks = left["attn"].reshape(*left["attn"].shape[:-1], index.shape[-1], nk)[..., order, :]
    slack = probe.slack(case)["attn"] + probe.slack(turned)["attn"]
    yield Claim(blocks.reshape(left["attn"].shape), right["attn"], slack)


def _locality(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    index, v = case.arrays["region_index"], case.arrays["v"]
    index = index if index.ndim == 4 else index[:, None]
    region = int(rng.integers(v.shape[1]))
    unread = ~np.any(index == region, axis=(1, 3))  # (B, R): no head of these rows reads the region
    changed = v.copy()
    changed[:, region] = rounded(fill(rng, v[:, region].shape), case.dtype)
    left, right = probe(case)["out"], probe(case.having(v=changed))["out"]
    slack = probe.slack(case)["out"]
    yield Claim(left[unread], right[unread], 2 * slack[unread])


def _everything_is_dense(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    q, k, v = (case.arrays[name] for name in "qkv")
    B, R, n, _ = q.shape
    Rk = k.shape[1]
    everything = case.having(region_index=np.tile(np.arange(Rk), (B, R, 1))).without("region_weight")
    merged = {name: t.reshape(B, 1, -1, t.shape[-1]).copy() for name, t in (("q", q), ("k", k), ("v", v))}
    dense = everything.having(**merged, region_index=np.zeros((B, 1, 1), dtype=np.int64))
    if "key_mask" in case.arrays:
        dense = dense.having(key_mask=case.arrays["key_mask"].reshape(1, -1).copy())
    left = probe(everything)["out"].reshape(B, 1, R * n, -1)
    slack = probe.slack(everything)["out"].reshape(B, 1, R * n) + probe.slack(dense)["out"]
    yield Claim(left, probe(dense)["out"], slack)


REGIONAL = Entry(
    "regional_attention",
    regional_attention,
    ("q", "k", "v", "region_index"),
    {name: partial(_call, name, *spec) for name, spec in _SPECS.items()},
    _FAMILIES,
    _cases,
    smoke=tuple(
        (name, "normal")
        for name in ("default", "graph_per_head", "soft", "masked", "masked_per_head", "other_key_grid")
    ),
    outputs=("out", "attn"),
    laws=(
        Law(
            "rows_sum_to_one",
            "The attention of a token over all gathered keys sums to 1.",
            _rows_sum_to_one,
            witness="region_softmax",
        ),
        Law(
            "order_of_regions",
            "The order in which regions are gathered changes the order of the weights and nothing else.",
            _order_of_regions,
            witness="sorted_fetch",
        ),
        Law(
            "locality",
            "Values of a region that a row does not read do not reach it.",
            _locality,
            lambda case: case.arrays["v"].size > 0,
            witness="values_not_gathered",
        ),
        Law(
            "everything_is_dense",
            "Reading all regions is attention over one region that holds every token.",
            _everything_is_dense,
            lambda case: case.arrays["v"].size > 0,
            witness="region_softmax",
        ),
    ),
    bugs=REGIONAL_BUGS,
    differentiable=("q", "k", "v"),
    axes={
        "q": ("B", "R", "n", "Cq"),
        "k": ("B", "Rk", "nk", "Cq"),
        "v": ("B", "Rk", "nk", "C"),
        "region_index": ("B", "R", "topk"),
        "region_weight": ("B", "R", "topk"),
        "key_mask": ("Rk", "nk"),
    },
)
