"""Region routing: entry, laws and mistakes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Bug, Case, Claim, Entry, Law, Outputs
from refattn.contracts.biformer.margins import ascend, logit_margin
from refattn.contracts.biformer.straight import softmax
from refattn.layers.biformer_routing import region_routing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.strategies import SearchStrategy

    from refattn.conformance.contract import Probe

__all__ = ["ROUTING"]

_SCALES = {"normal": 1.0, "uniform": 0.5, "large": 30.0, "tiny": 1e-2}


def _routing(
    label: str, sizes: tuple[int, int, int, int], options: dict[str, Any], family: str, dtype: str, seed: int
) -> Case:
    """Draw descriptors of sizes (B, R, Rk, Cq) whose chosen regions and their order are clear."""
    B, R, Rk, Cq = sizes
    rng = generator(seed, label, family)
    parametric = label.startswith("parametric")
    w_r, b_r = rounded((rng.standard_normal((Cq, Cq)) / np.sqrt(Cq), 0.3 * rng.standard_normal(Cq)), dtype)

    def embed(t: np.ndarray) -> np.ndarray:
        return _SCALES[family] * t @ w_r + b_r if parametric else t

    def margin(P: np.ndarray) -> np.ndarray:
        e = embed(P)
        return logit_margin(e[..., :R, :], e[..., R:, :], options["topk"])

    # in family 'uniform' the start is positive, and the ascent changes what it must
    start = [fill(rng, (R + Rk, Cq), "uniform" if family == "uniform" else "normal") for _ in range(B)]
    drawn = [_SCALES[family] * ascend(rng, P, margin) for P in start]
    stacked = np.stack(drawn) if drawn else np.zeros((0, R + Rk, Cq))
    arrays = {"q_regions": stacked[:, :R], "k_regions": stacked[:, R:]}
    arrays |= {"w_r": w_r, "b_r": b_r} if parametric else {}
    return Case("region_routing", rounded(arrays, dtype), dict(options), dtype, f"{label}/{family}")


_SPECS: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {
    "default": ((2, 9, 9, 16), {"topk": 2}),
    "other_key_grid": ((1, 6, 9, 8), {"topk": 3}),
    "fewer_keys_than_queries": ((1, 9, 4, 12), {"topk": 2}),
    "single_choice": ((2, 9, 9, 8), {"topk": 1}),
    "all_regions": ((1, 4, 4, 16), {"topk": 4}),
    "own_scale": ((1, 9, 9, 8), {"topk": 2, "scale": 1.5}),
    "parametric": ((1, 9, 9, 8), {"topk": 2}),
    "width_one": ((1, 4, 4, 1), {"topk": 1}),
    "single_region": ((2, 1, 1, 4), {"topk": 1}),
    "empty_batch": ((0, 4, 4, 8), {"topk": 2}),
}


@st.composite
def _drawn(draw: Any, dtype: str) -> Case:
    Rk = draw(st.integers(1, 9))
    sizes = (draw(st.integers(1, 2)), draw(st.integers(1, 9)), Rk, draw(st.integers(2, 12)))
    label = draw(st.sampled_from(("drawn", "parametric_drawn")))
    family = draw(st.sampled_from(tuple(_SCALES)))
    return _routing(label, sizes, {"topk": draw(st.integers(1, min(Rk, 4)))}, family, dtype, draw(st.integers(0, 999)))


def _cases(dtype: str) -> SearchStrategy[Case]:
    return _drawn(dtype)


def _ties(dtype: str) -> tuple[Case, Outputs]:
    """Return equal descriptors of whole numbers: every logit is the same number in every arithmetic."""
    arrays = {"q_regions": np.full((1, 4, 4), 2.0), "k_regions": np.ones((1, 4, 4))}
    case = Case("region_routing", arrays, {"topk": 2}, dtype, "ties")
    return case, {"index": np.tile(np.array([0, 1]), (1, 4, 1)), "weight": np.full((1, 4, 2), 0.5)}


def _plain(
    q: np.ndarray, k: np.ndarray, w_r: np.ndarray | None, b_r: np.ndarray | None, scale: float | None
) -> tuple[np.ndarray, float]:
    k = _embed(k, w_r, b_r)
    return _embed(q, w_r, b_r) @ np.swapaxes(k, -1, -2), q.shape[-1] ** -0.5 if scale is None else scale


def _embed(t: np.ndarray, w_r: np.ndarray | None, b_r: np.ndarray | None) -> np.ndarray:
    t = t if w_r is None else t @ w_r
    return t if b_r is None else t + b_r


def _kept(A: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return index, softmax(np.take_along_axis(A, index, axis=-1))


Wrong = tuple[np.ndarray, np.ndarray]


def _worst_regions(q: Any, k: Any, w_r: Any = None, b_r: Any = None, *, topk: int, scale: float | None = None) -> Wrong:
    A, factor = _plain(q, k, w_r, b_r, scale)
    return _kept(factor * A, np.argsort(A, axis=-1, kind="stable")[..., :topk])


def _transposed(q: Any, k: Any, w_r: Any = None, b_r: Any = None, *, topk: int, scale: float | None = None) -> Wrong:
    A, factor = _plain(k, q, w_r, b_r, scale)
    return _kept(factor * A, np.argsort(-A, axis=-1, kind="stable")[..., :topk])


def _image_order(q: Any, k: Any, w_r: Any = None, b_r: Any = None, *, topk: int, scale: float | None = None) -> Wrong:
    A, factor = _plain(q, k, w_r, b_r, scale)
    return _kept(factor * A, np.sort(np.argsort(-A, axis=-1, kind="stable")[..., :topk], axis=-1))


def _weights_over_all(
    q: Any, k: Any, w_r: Any = None, b_r: Any = None, *, topk: int, scale: float | None = None
) -> Wrong:
    A, factor = _plain(q, k, w_r, b_r, scale)
    index = np.argsort(-A, axis=-1, kind="stable")[..., :topk]
    return index, np.take_along_axis(softmax(factor * A), index, axis=-1)


def _unscaled_weights(
    q: Any, k: Any, w_r: Any = None, b_r: Any = None, *, topk: int, scale: float | None = None
) -> Wrong:
    A, _ = _plain(q, k, w_r, b_r, scale)
    return _kept(A, np.argsort(-A, axis=-1, kind="stable")[..., :topk])


def _nearest(q: Any, k: Any, w_r: Any = None, b_r: Any = None, *, topk: int, scale: float | None = None) -> Wrong:
    A, factor = _plain(q, k, w_r, b_r, scale)
    embedded = _embed(k, w_r, b_r)
    distance = np.sum(embedded**2, axis=-1)[:, None, :] - 2 * A  # the query's own square is the same for all keys
    return _kept(factor * A, np.argsort(distance, axis=-1, kind="stable")[..., :topk])


def _queries_only_embedded(
    q: Any, k: Any, w_r: Any = None, b_r: Any = None, *, topk: int, scale: float | None = None
) -> Wrong:
    A = _embed(q, w_r, b_r) @ np.swapaxes(k, -1, -2)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return _kept(factor * A, np.argsort(-A, axis=-1, kind="stable")[..., :topk])


def _chooses(case: Case) -> bool:
    k = case.arrays["k_regions"]
    return bool(k.size > 0 and case.options["topk"] < k.shape[1])


def _several(case: Case) -> bool:
    return bool(case.arrays["k_regions"].size > 0 and case.options["topk"] > 1)


_BUGS = (
    Bug(
        "worst_regions",
        "the regions that fit worst are chosen",
        _worst_regions,
        _chooses,
        remedy="Sort by descending logit.",
    ),
    Bug(
        "transposed",
        "keys choose queries",
        _transposed,
        lambda case: _chooses(case) and case.arrays["q_regions"].shape[1] >= case.options["topk"],
        remedy="Rows of the matrix of logits are query regions.",
    ),
    Bug(
        "image_order",
        "the chosen regions are returned in the order of the image",
        _image_order,
        _several,
        remedy="Keep the descending order of the logits.",
    ),
    Bug(
        "weights_over_all",
        "the softmax runs over all regions before the best are kept",
        _weights_over_all,
        _chooses,
        remedy="The softmax runs over the kept logits only.",
    ),
    Bug(
        "unscaled_weights",
        "the scale is left out of the routing weights",
        _unscaled_weights,
        _several,
        remedy="Routing logits carry the same scale as attention logits.",
    ),
    Bug(
        "nearest",
        "regions are chosen by Euclidean distance instead of inner product",
        _nearest,
        _chooses,
        remedy="The logit is the inner product of the descriptors.",
    ),
    Bug(
        "queries_only_embedded",
        "the routing map is applied to queries and not to keys",
        _queries_only_embedded,
        lambda case: case.arrays["k_regions"].size > 0 and "w_r" in case.arrays,
        remedy="One map serves both descriptors.",
    ),
)


def _prefix(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    for topk in range(1, case.options["topk"]):
        fewer = probe(case.having(topk=topk))["index"]
        yield Claim(probe(case)["index"][..., :topk].astype(float), fewer.astype(float))


def _weights_descend(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weight, slack = probe(case)["weight"], probe.slack(case)["weight"]
    yield Claim(np.sum(weight, axis=-1, keepdims=True), np.ones((*weight.shape[:-1], 1)), 2 * weight.shape[-1] * slack)
    yield Claim(weight, -np.sort(-weight, axis=-1), 2 * slack)


def _scale_free(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    grown = case.having(q_regions=4.0 * case.arrays["q_regions"])
    yield Claim(probe(case)["index"].astype(float), probe(grown)["index"].astype(float))


ROUTING = Entry(
    "region_routing",
    region_routing,
    ("q_regions", "k_regions"),
    {name: partial(_routing, name, *spec) for name, spec in _SPECS.items()},
    tuple(_SCALES),
    _cases,
    smoke=(("default", "normal"), ("default", "large"), ("parametric", "normal"), ("other_key_grid", "normal")),
    outputs=("index", "weight"),
    laws=(
        Law(
            "fewer_is_a_prefix",
            "The regions chosen with a smaller topk are the first of those chosen with a larger one.",
            _prefix,
            _several,
            witness="image_order",
        ),
        Law(
            "weights_descend",
            "Routing weights of a region sum to 1 and never increase.",
            _weights_descend,
            witness="weights_over_all",
        ),
        Law(
            "scale_free",
            "Four times the queries choose the same regions.",
            _scale_free,
            lambda case: "b_r" not in case.arrays,
            witness="nearest",
        ),
    ),
    bugs=_BUGS,
    exact={"ties": _ties},
    axes={"q_regions": ("B", "R", "Cq"), "k_regions": ("B", "Rk", "Cq")},
)
