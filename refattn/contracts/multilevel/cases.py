"""How maps, weights and models to be mapped are drawn: pairs, uneven groups, groups of one, nothing to merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.efficiency.multilevel_maps import WidthMaps, reverse_map, width_maps
from refattn.efficiency.multilevel_parameters import ParametersByRole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refattn.conformance.contract import Case

__all__ = [
    "COALESCE",
    "COALESCE_SCENARIOS",
    "DECOALESCE",
    "DECOALESCE_SCENARIOS",
    "DEPTH",
    "DEPTH_SCENARIOS",
    "FAMILIES",
    "INTERPOLATE",
    "INTERPOLATE_SCENARIOS",
    "REVERSE",
    "REVERSE_SCENARIOS",
    "WEIGHT",
    "WEIGHT_SCENARIOS",
    "WIDTH",
    "WIDTH_SCENARIOS",
    "depth_sizes",
    "interpolate_sizes",
    "level_sizes",
    "reverse_sizes",
    "weight_sizes",
    "width_sizes",
]

Drawn = tuple[dict[str, Any], dict[str, Any]]
FAMILIES = ("normal", "tied", "cancelling")
HALVES, NEIGHBOURS, UNEVEN = [[0, 2], [1, 3]], [[0, 1], [2, 3]], [[3, 0], [2], [1]]
SCHEMES: tuple[list[list[int]], ...] = (HALVES, NEIGHBOURS, UNEVEN, [[0, 1, 2]], [[1], [0]], [[0]], [[2, 0, 1], [3]])


def _width(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    del rng, family
    return {}, dict(sizes)


WIDTH_SCENARIOS: dict[str, dict[str, Any]] = {
    "default": {"big_width": 12, "small_width": 6, "head_size": 3},
    "one_head_left": {"big_width": 4, "small_width": 2, "head_size": 2},
    "some_alone": {"big_width": 8, "small_width": 6, "head_size": 2},
    "halves": {"big_width": 8, "small_width": 4, "head_size": 2, "scheme": HALVES},
    "uneven": {"big_width": 8, "small_width": 6, "head_size": 2, "scheme": UNEVEN, "mlp_width": 12},
    "three_to_one": {"big_width": 6, "small_width": 2, "head_size": 2, "scheme": [[0, 1, 2]]},
    "permuted": {"big_width": 4, "small_width": 4, "head_size": 2, "scheme": [[1], [0]], "mlp_width": 2},
    "same": {"big_width": 3, "small_width": 3, "head_size": 1},
}


@st.composite
def width_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a scheme, the widths that go with it, and an MLP."""
    scheme, e = draw(st.sampled_from(SCHEMES)), draw(st.integers(1, 3))
    big = sum(map(len, scheme))
    sizes = {"big_width": big * e, "small_width": len(scheme) * e, "head_size": e, "scheme": scheme}
    return sizes | ({"mlp_width": big * draw(st.integers(1, 5))} if draw(st.booleans()) else {})


DEPTH_SCENARIOS: dict[str, dict[str, Any]] = {
    "neighbours": {"big_depth": 6, "small_depth": 3},
    "halves": {"big_depth": 4, "small_depth": 2, "scheme": HALVES},
    "uneven": {"big_depth": 4, "small_depth": 3, "scheme": UNEVEN},
    "three_to_one": {"big_depth": 3, "small_depth": 1, "scheme": [[0, 1, 2]]},
    "same": {"big_depth": 3, "small_depth": 3},
    "no_layer": {"big_depth": 0, "small_depth": 0},
}


@st.composite
def depth_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a scheme and the depths that go with it."""
    scheme = draw(st.sampled_from(SCHEMES))
    return {"big_depth": sum(map(len, scheme)), "small_depth": len(scheme), "scheme": scheme}


def _reverse(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw the map of a scheme, or shares without a pattern, perhaps none of a neuron or two."""
    if "scheme" in sizes:
        scheme, e = sizes["scheme"], sizes["e"]
        maps = width_maps(sum(map(len, scheme)) * e, len(scheme) * e, head_size=e, scheme=scheme)
        return {"matrix": maps.residual}, {}
    matrix = np.abs(fill(rng, (sizes["n"], sizes["m"]), family)) + 0.125
    matrix[:, sizes["m"] - sizes.get("unused", 0) :] = 0.0
    return {"matrix": matrix}, {}


REVERSE_SCENARIOS: dict[str, dict[str, Any]] = {
    "pairs": {"scheme": HALVES, "e": 2},
    "uneven": {"scheme": UNEVEN, "e": 2},
    "three_to_one": {"scheme": [[0, 1, 2]], "e": 1},
    "any_shares": {"n": 3, "m": 5},
    "unused": {"n": 3, "m": 4, "unused": 2},
    "one": {"n": 1, "m": 1},
    "nothing": {"n": 0, "m": 2},
}


@st.composite
def reverse_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the map of a scheme, or the size of a map without a pattern."""
    if draw(st.booleans()):
        return {"scheme": draw(st.sampled_from(SCHEMES)), "e": draw(st.integers(1, 2))}
    m = draw(st.integers(1, 5))
    return {"n": draw(st.integers(1, 5)), "m": m, "unused": draw(st.integers(0, m))}


_SHAPES = {
    "embedding": ("R", "D"),
    "unembedding": ("D", "V"),
    "constant": ("V",),
    "vector": ("D",),
    "matrix": ("D", "D"),
    "layer_vector": ("L", "D"),
    "layer_matrix": ("L", "D", "D"),
    "mlp_in": ("L", "D", "M"),
    "mlp_vector": ("L", "M"),
    "mlp_out": ("L", "M", "D"),
}


def _weight(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    scheme, e, share = sizes.get("scheme", HALVES), sizes.get("e", 2), sizes.get("share", 3)
    big, small = sum(map(len, scheme)), len(scheme)
    maps = width_maps(big * e, small * e, head_size=e, scheme=scheme, mlp_width=big * share)
    heads = small if sizes.get("grows") else big
    maps = WidthMaps(*map(reverse_map, maps)) if sizes.get("grows") else maps
    widths = {"R": 3, "V": 5, "L": sizes.get("L", 2), "D": heads * e, "M": heads * share}
    shape = tuple(widths[axis] for axis in _SHAPES[sizes["role"]])
    return {"weight": fill(rng, shape, family), "maps": maps}, {
        "role": sizes["role"],
        **given(sizes, "embedding_factor"),
    }


WEIGHT_SCENARIOS: dict[str, dict[str, Any]] = {
    "embedding": {"role": "embedding", "embedding_factor": 2.0},
    "embedding_grows": {"role": "embedding", "grows": True, "embedding_factor": 0.5},
    "unembedding": {"role": "unembedding", "embedding_factor": 2.0},
    "constant": {"role": "constant"},
    "vector": {"role": "vector"},
    "matrix": {"role": "layer_matrix"},
    "matrix_grows": {"role": "matrix", "grows": True},
    "uneven": {"role": "matrix", "scheme": UNEVEN},
    "uneven_grows": {"role": "layer_vector", "scheme": UNEVEN, "grows": True},
    "mlp_in": {"role": "mlp_in"},
    "mlp_in_grows": {"role": "mlp_in", "grows": True},
    "mlp_out": {"role": "mlp_out", "scheme": [[0, 1, 2]]},
    "mlp_vector": {"role": "mlp_vector", "L": 0},
}

weight_sizes = st.fixed_dictionaries(
    {"role": st.sampled_from(sorted(_SHAPES)), "scheme": st.sampled_from(SCHEMES), "grows": st.booleans()},
    optional={"e": st.integers(1, 3), "share": st.integers(1, 4), "embedding_factor": st.sampled_from([0.5, 2.0])},
)


def _parameters(rng: np.random.Generator, family: str, heads: int, layers: int, *, tied: bool) -> ParametersByRole:
    D, M = 2 * heads, 3 * heads
    shapes: list[tuple[int, ...] | None] = [(3, D), None if tied else (D, 4), (2, D), (layers, 2, D)]
    shapes += [(layers, 2, D, D), (layers, D, M), (layers, M), (layers, M, D)]
    return ParametersByRole(*(None if shape is None else fill(rng, shape, family) for shape in shapes))


def _size(sizes: Mapping[str, Any], what: str, *, grows: bool) -> int:
    scheme = sizes.get(f"{what}_scheme")
    return int(sizes[what]) if scheme is None else len(scheme) if grows else sum(map(len, scheme))


def _level(rng: np.random.Generator, family: str, sizes: Mapping[str, Any], *, grows: bool) -> Drawn:
    heads, layers = (_size(sizes, what, grows=grows) for what in ("width", "depth"))
    names = ("n_heads", "n_layers", "width_scheme", "depth_scheme", "embedding_factor")
    parameters = _parameters(rng, family, heads, layers, tied=sizes.get("tied", True))
    return {"parameters": parameters}, {"head_size": 2, **given(sizes, *names)}


def _coalesce(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    return _level(rng, family, sizes, grows=False)


def _decoalesce(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    return _level(rng, family, sizes, grows=True)


_SHARED: dict[str, dict[str, Any]] = {
    "pairs": {"width_scheme": HALVES, "depth_scheme": HALVES},
    "untied": {"width_scheme": HALVES, "depth_scheme": NEIGHBOURS, "tied": False},
    "uneven": {"width_scheme": UNEVEN, "depth_scheme": [[1, 2], [0]], "tied": False},
    "three_to_one": {"width_scheme": [[0, 1, 2]], "depth_scheme": [[0, 1, 2]], "embedding_factor": 2.0},
}
COALESCE_SCENARIOS: dict[str, dict[str, Any]] = {
    **_SHARED,
    "default": {"width": 4, "depth": 4, "n_heads": 2, "n_layers": 2},
    "width_only": {"width": 4, "depth": 2, "n_heads": 2},
    "depth_only": {"width": 2, "depth_scheme": HALVES},
    "no_layer": {"width": 2, "depth": 0, "n_heads": 1},
    "nothing_merges": {"width": 1, "depth": 1},
}
DECOALESCE_SCENARIOS: dict[str, dict[str, Any]] = {
    **_SHARED,
    "default": {"width": 2, "depth": 2, "n_heads": 4, "n_layers": 4},
    "width_only": {"width": 2, "depth": 2, "n_heads": 4, "tied": False},
    "depth_only": {"width": 2, "depth_scheme": HALVES},
    "nothing_copied": {"width": 1, "depth": 1},
}

_FEW = (HALVES, NEIGHBOURS, [[3, 0], [2, 1]], UNEVEN)  # few shapes: libraries that compile by shape compile less
level_sizes = st.fixed_dictionaries(
    {"width_scheme": st.sampled_from(_FEW), "depth_scheme": st.sampled_from(_FEW), "tied": st.booleans()},
    optional={"embedding_factor": st.just(2.0)},
).map(lambda s: s if s["tied"] is False else s | {"embedding_factor": s.get("embedding_factor", 0.5)})


def _interpolate(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    heads, layers, tied = sizes.get("width", 2), sizes.get("depth", 2), sizes.get("tied", True)
    pair = [_parameters(rng, family, heads, layers, tied=tied) for _ in range(2)]
    return dict(zip(("big", "decoalesced"), pair, strict=True)), {"alpha": sizes["alpha"]}


INTERPOLATE_SCENARIOS: dict[str, dict[str, Any]] = {
    "quarter": {"alpha": 0.25},
    "three_quarters": {"alpha": 0.75, "tied": False},
    "third": {"alpha": 1 / 3},
    "keeps": {"alpha": 0.0},
    "takes": {"alpha": 1.0},
    "no_layer": {"alpha": 0.25, "depth": 0},
}
interpolate_sizes = st.fixed_dictionaries(
    {"alpha": st.sampled_from([0.0, 0.125, 0.3, 0.75, 1.0]), "tied": st.booleans(), "width": st.integers(1, 3)}
)


class _Doubles(Recipe):
    """A recipe of cases without arrays: there is nothing to take a dtype from, maps are in float64 whatever it is."""

    def case(self, family: str, dtype: str, seed: int, *, label: str, sizes: Mapping[str, Any]) -> Case:
        """Make one case, in float64."""
        del dtype
        return super().case(family, "float64", seed, label=label, sizes=sizes)


WIDTH = _Doubles("width_maps", _width, ("none",))
DEPTH = _Doubles("depth_map", _width, ("none",))
REVERSE = Recipe("reverse_map", _reverse, FAMILIES)
WEIGHT = Recipe("map_weight", _weight, FAMILIES)
COALESCE = Recipe("coalesce_parameters", _coalesce, FAMILIES)
DECOALESCE = Recipe("decoalesce_parameters", _decoalesce, FAMILIES)
INTERPOLATE = Recipe("interpolate_parameters", _interpolate, FAMILIES)
