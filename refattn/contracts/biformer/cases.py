"""Cases of bi-level routing attention: weights, feature maps and the named scenarios of the layer itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Case
from refattn.contracts.biformer.margins import routable_map
from refattn.layers.biformer import BRAWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hypothesis.strategies import SearchStrategy

__all__ = ["FAMILIES", "LAYER_SCENARIOS", "NCHW_SCENARIOS", "Shape", "bra_weights", "layer_cases", "nchw_cases"]

FAMILIES = ("normal", "tied", "cancelling")
"""Of the noise around the prototypes; larger or smaller noise would take the routing's margin away."""


class Shape(NamedTuple):
    """Sizes and parts of a layer; ``Cq`` 0 means C, ``bare`` is the corner of each region without prototype."""

    B: int = 1
    H: int = 12
    W: int = 12
    C: int = 16
    Cq: int = 0
    kernel: int = 3
    output: bool = True
    bias: bool = True
    parametric: bool = False
    bare: int = 0


def bra_weights(rng: np.random.Generator, shape: Shape) -> BRAWeights:
    """Draw the layer's weights; every map keeps the size of what it maps."""
    C, ks, Cq = shape.C, shape.kernel, shape.Cq or shape.C

    def bias(*size: int) -> np.ndarray | None:
        return 0.3 * rng.standard_normal(size) if shape.bias else None

    return BRAWeights(
        rng.standard_normal((C, 2 * Cq + C)) / np.sqrt(C),
        bias(2 * Cq + C),
        rng.standard_normal((C, C)) / np.sqrt(C) if shape.output else None,
        bias(C) if shape.output else None,
        rng.standard_normal((C, ks, ks)) / ks if ks else None,
        bias(C) if ks else None,
        rng.standard_normal((Cq, Cq)) / np.sqrt(Cq) if shape.parametric else None,
        bias(Cq) if shape.parametric else None,
    )


def _layer(label: str, shape: Shape, options: Mapping[str, Any], family: str, dtype: str, seed: int) -> Case:
    rng = generator(seed, label, family)
    weights = rounded(bra_weights(rng, shape), dtype)
    noise = fill(rng, (shape.B, shape.H, shape.W, shape.C), family)
    n_win, topk, pad_mode = options["n_win"], options["topk"], options.get("pad_mode", "none")
    x = routable_map(rng, noise, weights, n_win=n_win, topk=topk, pad_mode=pad_mode, bare=shape.bare)
    return _case("bi_level_routing_attention", x, weights, options, dtype, f"{label}/{family}")


def _case(entry: str, x: np.ndarray, weights: Any, options: Mapping[str, Any], dtype: str, label: str) -> Case:
    return Case(entry, {"x": rounded(x, dtype), "weights": weights}, dict(options), dtype, label)


def _constant(family: str, dtype: str, seed: int) -> Case:
    """Return a map of equal tokens: every logit ties, and whatever is chosen gives the same."""
    shape = Shape(B=2, H=6, W=6, C=8, kernel=0)
    rng = generator(seed, "constant", family)
    weights = rounded(bra_weights(rng, shape), dtype)
    x = np.ones((shape.B, shape.H, shape.W, 1)) * fill(rng, (shape.B, 1, 1, shape.C), family)
    options = {"num_heads": 2, "n_win": 3, "topk": 2}
    return _case("bi_level_routing_attention", x, weights, options, dtype, f"constant/{family}")


def _options(num_heads: int, n_win: int, topk: int, **others: Any) -> dict[str, Any]:
    return {"num_heads": num_heads, "n_win": n_win, "topk": topk, **others}


_SOFT = {"soft_routing": True, "diff_routing": True}
_LAYERS: dict[str, tuple[Shape, dict[str, Any]]] = {
    "default": (Shape(B=2), _options(2, 3, 2)),
    "non_square_regions": (Shape(H=6, W=12, C=12, kernel=5), _options(3, 3, 3)),
    "soft_routing": (Shape(B=2, H=9, W=9, C=12), _options(3, 3, 3, **_SOFT)),
    "all_regions": (Shape(H=6, W=6, C=8, kernel=0), _options(2, 2, 4)),
    "one_region_each": (Shape(H=9, W=6, C=8), _options(2, 3, 1)),
    "pad_input": (Shape(B=2, H=7, W=10, C=12), _options(2, 3, 2, pad_mode="input")),
    "pad_projected": (Shape(H=9, W=9, C=8), _options(2, 2, 2, pad_mode="projected")),
    "pad_masked": (Shape(H=7, W=10, C=12), _options(2, 3, 3, pad_mode="masked")),
    "pad_soft_masked": (Shape(H=5, W=7, C=8), _options(2, 2, 2, pad_mode="masked", **_SOFT)),
    "adaptive_average": (Shape(H=9, W=12), _options(2, 3, 2, kv_pool="ada_avgpool", kv_per_region=2)),
    "adaptive_maximum": (Shape(), _options(2, 3, 3, kv_pool="ada_maxpool", kv_per_region=3)),
    "average": (Shape(H=9, W=15), _options(2, 3, 2, kv_pool="avgpool", kv_ratio=2)),
    "maximum": (Shape(H=15, W=12), _options(2, 3, 2, kv_pool="maxpool", kv_ratio=2)),
    "average_of_a_corner": (Shape(H=9, W=9, C=8, bare=2), _options(2, 3, 2, kv_pool="avgpool", kv_ratio=2)),
    "soft_pooled": (Shape(H=8, W=8, C=8), _options(2, 2, 2, kv_pool="avgpool", kv_ratio=2, **_SOFT)),
    "narrow_queries": (Shape(H=9, W=9, C=12, Cq=6), _options(3, 3, 2)),
    "soft_parametric": (Shape(H=6, W=6, C=12, parametric=True), _options(3, 3, 2, **_SOFT)),
    "own_scale_no_output": (Shape(H=6, W=6, C=12, output=False), _options(3, 3, 2, scale=0.7)),
    "no_biases": (Shape(H=6, W=8, C=8, bias=False), _options(2, 2, 1)),
    "token_per_region": (Shape(H=4, W=4, C=8), _options(2, 4, 3)),
    "single_region": (Shape(H=6, W=4, C=6), _options(2, 1, 1)),
    "single_token": (Shape(B=2, H=1, W=1, C=4), _options(2, 1, 1)),
    "head_width_one": (Shape(H=6, W=6, C=4), _options(4, 3, 2)),
    "empty_batch": (Shape(B=0, H=6, W=6, C=8), _options(2, 3, 2)),
}
LAYER_SCENARIOS = {name: partial(_layer, name, *spec) for name, spec in _LAYERS.items()} | {"constant": _constant}


@st.composite
def _drawn_layers(draw: Any, dtype: str) -> Case:
    S, M = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    pad_mode = draw(st.sampled_from(("none", "none", "input", "projected", "masked")))
    h, w = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    more = (0, 0) if pad_mode == "none" else (draw(st.integers(0, S - 1)), draw(st.integers(0, S - 1)))
    H, W = S * h + more[0], S * w + more[1]
    pool = draw(st.sampled_from(("identity", "avgpool", "maxpool", "ada_avgpool", "ada_maxpool")))
    shape = Shape(
        B=draw(st.integers(1, 2)),
        H=H,
        W=W,
        C=M * draw(st.integers(1, 5)),
        Cq=M * draw(st.integers(1, 5)),
        kernel=draw(st.sampled_from((0, 1, 3))),
        output=draw(st.booleans()),
        bias=draw(st.booleans()),
    )
    options = _options(M, S, draw(st.integers(1, S * S)), pad_mode=pad_mode)
    if pad_mode in ("none", "input"):
        options |= {
            "kv_pool": pool,
            "kv_ratio": draw(st.integers(1, min(h, w))),
            "kv_per_region": draw(st.integers(1, 4)),
        }
    if draw(st.booleans()):
        options |= _SOFT
        shape = shape._replace(parametric=draw(st.booleans()))
    return _layer("drawn", shape, options, draw(st.sampled_from(FAMILIES)), dtype, draw(st.integers(0, 999)))


def layer_cases(dtype: str) -> SearchStrategy[Case]:
    """Draw cases of the layer with sizes, modes and values of all kinds."""
    return _drawn_layers(dtype)


def _nchw(label: str, shape: Shape, options: Mapping[str, Any], family: str, dtype: str, seed: int) -> Case:
    case = _layer(label, shape, {"pad_mode": "projected", **options}, family, dtype, seed)
    x = np.ascontiguousarray(np.moveaxis(case.arrays["x"], -1, 1))
    return _case("nchw_bra", x, case.arrays["weights"], options, dtype, case.label)


_NCHW: dict[str, tuple[Shape, dict[str, Any]]] = {
    "divisible": (Shape(B=2, H=6, W=9, C=12), _options(2, 3, 2)),
    "wide_kernel": (Shape(H=8, W=6, C=8, kernel=5), _options(2, 2, 2)),
    "partial_regions": (Shape(H=7, W=10, C=12), _options(2, 3, 2)),
    "more_regions_than_asked": (Shape(H=9, W=9, C=8, kernel=0), _options(2, 2, 2)),
    "masked": (Shape(B=2, H=7, W=5, C=8), _options(2, 2, 2, pad_mode="masked")),
    "own_scale": (Shape(H=5, W=6, C=8), _options(2, 2, 1, scale=0.9)),
    "single_token": (Shape(H=1, W=1, C=4), _options(2, 1, 1)),
    "empty_batch": (Shape(B=0, H=4, W=6, C=8), _options(2, 2, 2)),
}
NCHW_SCENARIOS = {name: partial(_nchw, name, *spec) for name, spec in _NCHW.items()}


@st.composite
def _drawn_nchw(draw: Any, dtype: str) -> Case:
    S, M = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    H, W = draw(st.integers(S, 3 * S + 1)), draw(st.integers(S, 3 * S + 1))
    shape = Shape(B=1, H=H, W=W, C=M * draw(st.integers(2, 5)), kernel=draw(st.sampled_from((0, 3))))
    options = _options(M, S, draw(st.integers(1, S * S)), pad_mode=draw(st.sampled_from(("projected", "masked"))))
    return _nchw("drawn", shape, options, draw(st.sampled_from(FAMILIES)), dtype, draw(st.integers(0, 999)))


def nchw_cases(dtype: str) -> SearchStrategy[Case]:
    """Draw cases of the channels-first layer."""
    return _drawn_nchw(dtype)
