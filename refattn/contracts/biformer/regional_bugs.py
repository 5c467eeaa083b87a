"""Mistakes that people make in regional attention, each one wrong step of a plain version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug
from refattn.contracts.biformer.straight import softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["REGIONAL_BUGS"]

Array = Any


def _scale(Cq: int, _num_heads: int) -> float:
    return float(Cq**-0.5)


def _head(t: Array, m: int, num_heads: int) -> Array:
    d = t.shape[-1] // num_heads
    return t[..., m * d : (m + 1) * d]


def _graph(index: Array, m: int) -> Array:
    return index[m] if index.ndim == 3 else index


def _fetch(k: Array, v: Array, chosen: Array) -> tuple[Array, Array]:
    return k[chosen], v[chosen]


def _soften(K: Array, V: Array, rho: Array) -> tuple[Array, Array]:
    return K * rho[:, None, None], V * rho[:, None, None]


def _hide(scores: Array, mask: Array) -> Array:
    return np.where(mask, scores, -1e300)


def _weigh(scores: Array, _topk: int) -> Array:
    return softmax(scores)


@dataclass(frozen=True)
class _Steps:
    scale: Callable[..., float] = _scale
    head: Callable[..., Array] = _head
    graph: Callable[..., Array] = _graph
    fetch: Callable[..., tuple[Array, Array]] = _fetch
    soften: Callable[..., tuple[Array, Array]] = _soften
    hide: Callable[..., Array] = _hide
    weigh: Callable[..., Array] = _weigh


def _straight(
    q: Array,
    k: Array,
    v: Array,
    region_index: Array,
    region_weight: Array = None,
    key_mask: Array = None,
    *,
    num_heads: int,
    scale: float | None = None,
    do: _Steps,
) -> tuple[Array, Array]:
    """Attend region by region and head by head, with steps that can be wrong."""
    B, R, n, Cq = q.shape
    nk, topk = k.shape[2], region_index.shape[-1]
    factor = do.scale(Cq, num_heads) if scale is None else scale
    out = np.zeros((B, R, n, v.shape[-1]))
    attn = np.zeros((B, num_heads, R, n, topk * nk))
    for b, m, r in np.ndindex(B, num_heads, R):
        chosen = do.graph(region_index[b], m)[r]
        K, V = do.fetch(do.head(k[b], m, num_heads), do.head(v[b], m, num_heads), chosen)
        if region_weight is not None:
            K, V = do.soften(K, V, do.graph(region_weight[b], m)[r])
        scores = factor * do.head(q[b, r], m, num_heads) @ K.reshape(topk * nk, -1).T
        if key_mask is not None:
            scores = do.hide(scores, key_mask[chosen].ravel())
        attn[b, m, r] = do.weigh(scores, topk)
        do.head(out[b, r], m, num_heads)[:] = attn[b, m, r] @ V.reshape(topk * nk, -1)
    return out, attn


def _head_scale(Cq: int, num_heads: int) -> float:
    return float((Cq // num_heads) ** -0.5)


def _strided_heads(t: Array, m: int, num_heads: int) -> Array:
    return t[..., m::num_heads]


def _first_graph_for_all(index: Array, m: int) -> Array:
    del m
    return index[0] if index.ndim == 3 else index


def _values_not_gathered(k: Array, v: Array, chosen: Array) -> tuple[Array, Array]:
    return k[chosen], v[: len(chosen)]


def _sorted_fetch(k: Array, v: Array, chosen: Array) -> tuple[Array, Array]:
    return k[np.sort(chosen)], v[np.sort(chosen)]


def _keys_only(K: Array, V: Array, rho: Array) -> tuple[Array, Array]:
    return K * rho[:, None, None], V


def _mask_ignored(scores: Array, mask: Array) -> Array:
    del mask
    return scores


def _masked_logits_zero(scores: Array, mask: Array) -> Array:
    return np.where(mask, scores, 0.0)


def _region_softmax(scores: Array, topk: int) -> Array:
    return softmax(scores.reshape(len(scores), topk, -1)).reshape(scores.shape)


def _bug(
    step: str, wrong: Callable[..., Any], description: str, remedy: str, applies: Callable[[Case], bool] | None = None
) -> Bug:
    return Bug(
        wrong.__name__.removeprefix("_"),
        description,
        partial(_straight, do=replace(_Steps(), **{step: wrong})),
        lambda case: case.arrays["q"].size > 0 and (applies is None or applies(case)),
        source=wrong,
        remedy=remedy,
    )


def _many_heads(case: Case) -> bool:
    return bool(case.options["num_heads"] > 1)


def _many_regions(case: Case) -> bool:
    return bool(case.arrays["region_index"].shape[-1] > 1)


def _has(name: str) -> Callable[[Case], bool]:
    return lambda case: name in case.arrays


REGIONAL_BUGS = (
    _bug(
        "scale",
        _head_scale,
        "logits are scaled by the width of a head",
        "The scale is that of the full width, Cq^(−1/2).",
        lambda case: _many_heads(case) and case.options.get("scale") is None,
    ),
    _bug(
        "head",
        _strided_heads,
        "head m takes every M-th channel",
        "Head m takes a contiguous run of channels.",
        _many_heads,
    ),
    _bug(
        "graph",
        _first_graph_for_all,
        "all heads use the graph of the first",
        "A graph of four axes holds one graph for each head.",
        lambda case: case.arrays["region_index"].ndim == 4 and _many_heads(case),
    ),
    _bug(
        "fetch",
        _values_not_gathered,
        "keys are gathered and values are not",
        "Keys and values travel together.",
        lambda case: case.arrays["v"].shape[1] > 1,
    ),
    _bug(
        "fetch",
        _sorted_fetch,
        "regions are gathered in the order of the image although weights and outputs are in routed order",
        "Gather in the order of the index.",
        _many_regions,
    ),
    _bug(
        "soften",
        _keys_only,
        "region weights multiply the keys and not the values",
        "They multiply both.",
        _has("region_weight"),
    ),
    _bug("hide", _mask_ignored, "the key mask is ignored", "Hidden keys get no weight.", _has("key_mask")),
    _bug(
        "hide",
        _masked_logits_zero,
        "hidden keys get logit 0 instead of −∞",
        "A logit of 0 still takes its share of the softmax.",
        _has("key_mask"),
    ),
    _bug(
        "weigh",
        _region_softmax,
        "every gathered region gets a softmax of its own",
        "One softmax runs over all gathered tokens.",
        _many_regions,
    ),
)
