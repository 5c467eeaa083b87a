"""How weights, Hessians and grids are drawn: well-conditioned moments, and weights whose rounding is rarely open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.efficiency.turboboa import QuantGrid

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BOA",
    "CODES",
    "CORRELATION",
    "DEQUANTIZE",
    "FAMILIES",
    "GPTQ",
    "HESSIANS",
    "LOSS",
    "MINMAX",
    "MOMENT",
    "REFINE",
    "RTN",
    "SEARCH",
    "TURBOBOA",
    "attention_sizes",
    "grid_sizes",
    "head_sizes",
    "loss_sizes",
    "matrix_sizes",
    "token_sizes",
]

Drawn = tuple[dict[str, Any], dict[str, Any]]
FAMILIES = ("normal", "peaky")
SPREAD = ("normal",)  # what is quantised with its grid is the same at every size


def moment(rng: np.random.Generator, d: int, *, heads: int | None = None) -> np.ndarray:
    """Draw the second moment of inputs of different sizes that go together, or one for each head."""
    x = rng.standard_normal((*(() if heads is None else (heads,)), 3 * d + 2, d)) * rng.permutation(
        np.linspace(0.5, 1.5, d)
    )
    product = np.swapaxes(x, -1, -2) @ x / x.shape[-2]
    half: np.ndarray = (product + np.swapaxes(product, -1, -2)) / 2
    return half


def weights(rng: np.random.Generator, family: str, shape: tuple[int, ...], sizes: Mapping[str, Any]) -> np.ndarray:
    """Draw weights: some on both sides of zero in each row, and in symmetric grids the largest one positive.

    The most negative weight of a symmetric min-max grid lies halfway between two points: rounding alone decides.
    """
    w = fill(rng, shape, family)
    if shape[-1] > 1 and sizes.get("mixed", True):
        w[..., 0], w[..., 1] = np.abs(w[..., 0]), -np.abs(w[..., 1])
    if sizes.get("symmetric") and not sizes.get("either_side"):
        largest = np.take_along_axis(w, np.argmax(np.abs(w), axis=-1, keepdims=True), axis=-1)
        w = w * np.sign(largest)
    if "zero_row" in sizes:
        w[..., sizes["zero_row"], :] = 0.0
    return w


def grid_for(w: np.ndarray, bits: int, groups: int = 1) -> QuantGrid:
    """Draw a grid that covers most of the weights (..., r, d): zero points apart from the middle of two codes."""
    most = 2**bits - 1
    parts = w.reshape(*w.shape[:-1], groups, -1)
    low = np.minimum(np.min(parts, axis=-1, keepdims=True), 0)
    high = np.maximum(np.max(parts, axis=-1, keepdims=True), 0)
    width = np.where(high > low, high - low, 2.0)
    scale = 0.93 * width / most
    return QuantGrid(scale, np.clip(np.rint(-low / scale), 0, most))


def _grid(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    w = weights(rng, family, (*sizes.get("lead", ()), sizes["r"], sizes["d"]), sizes)
    return {"w": w}, given(sizes, "bits", "symmetric", "group_size")


def _search(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    arrays, options = _grid(rng, family, sizes)
    if sizes.get("judged", True):
        arrays["hessian"] = moment(rng, sizes["d"])
    return arrays, options | given(sizes, "n_shrink", "norm")


def _codes(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    x = weights(rng, family, (sizes["r"], sizes["d"]), sizes)
    bits = sizes["bits"]
    return {"x": x, "grid": grid_for(x, bits, sizes.get("groups", 1))}, {"bits": bits}


def _dequantize(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    x = weights(rng, family, (sizes["r"], sizes["d"]), sizes)
    codes = rng.integers(0, 2 ** sizes["bits"], x.shape)
    return {"codes": codes, "grid": grid_for(x, sizes["bits"], sizes.get("groups", 1))}, {}


def _rtn(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    w, bits = weights(rng, family, (sizes["r"], sizes["d"]), sizes), sizes["bits"]
    grid = {"grid": grid_for(w[None], bits, sizes.get("groups", 1))} if sizes.get("given", True) else {}
    return {"w": w} | grid, {"bits": bits}


def _quantised(rng: np.random.Generator, family: str, sizes: Mapping[str, Any], heads: int) -> Drawn:
    """Draw what all quantisers take: weights, the Hessian of the input, R if asked for, a grid where none is named."""
    r, d, bits = sizes["r"], sizes["d"], sizes["bits"]
    w = weights(rng, family, (heads * r, d), sizes)
    h_in = moment(rng, d, heads=heads if sizes.get("per_head") else None)
    if "dead" in sizes:
        h_in[..., sizes["dead"], :] = 0.0
        h_in[..., sizes["dead"]] = 0.0
    arrays: dict[str, Any] = {"w": w, "h_in": h_in}
    if sizes.get("corrected"):
        arrays["residual"] = 0.1 * rng.standard_normal(h_in.shape)
    if "grid" not in sizes:
        arrays["grid"] = grid_for(w.reshape(heads, r, d), bits, sizes.get("groups", 1))
    return arrays, {"bits": bits} | given(sizes, "grid", "symmetric", "group_size")


def _gptq(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    heads = sizes["H"] if sizes.get("per_head") else 1
    arrays, options = _quantised(rng, family, sizes, heads)
    return arrays, options | given(sizes, "act_order", "block_columns", "dead_value")


def _boa(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    arrays, options = _quantised(rng, family, sizes, sizes["H"])
    options |= {"n_heads": sizes["H"]} | given(sizes, "act_order_rows", "act_order_cols", "dead_value")
    if sizes.get("alone"):
        return arrays, options | {"h_out": None}
    return arrays | {"h_out": moment(rng, sizes["r"], heads=sizes["H"])}, options


def _turboboa(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    arrays, options = _boa(rng, family, sizes)
    return arrays, options | given(sizes, "block_rows", "adaptive_grid", "refine_sweeps")


def _refine(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw weights, codes near them and a grid; a row may have all its codes at zero."""
    H, r, d, bits = (sizes[name] for name in ("H", "r", "d", "bits"))
    w = weights(rng, family, (H, r, d), sizes)
    grid = grid_for(w, bits)
    codes = np.clip(np.rint(w / grid.scale[..., 0]) + grid.zero[..., 0], 0, 2**bits - 1).astype(np.int64)
    arrays = {"w": w, "codes": codes, "grid": grid, "h_in": moment(rng, d, heads=H if sizes.get("per_head") else None)}
    if not sizes.get("alone"):
        arrays["h_out"] = moment(rng, r, heads=H)
    if sizes.get("corrected"):
        arrays["residual"] = 0.1 * rng.standard_normal(arrays["h_in"].shape)
    return arrays, given(sizes, "sweeps")


def _moment(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    return {"x": fill(rng, (*sizes.get("lead", ()), sizes["n"], sizes["d"]), family)}, {}


def _correlation(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    shape = (*sizes.get("lead", ()), sizes["n"], sizes["d"])
    quant = fill(rng, shape, family)
    return {"x_full": quant + 0.5 * fill(rng, shape, family), "x_quant": quant}, {}


def _hessians(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens and projections whose scores are moderate."""
    B, L, d, H, G, r = (sizes[name] for name in ("B", "L", "d", "H", "G", "r"))
    arrays = {"x": fill(rng, (B, L, d), family)}
    arrays |= {name: fill(rng, (n * r, d)) / np.sqrt(d) for name, n in (("wq", H), ("wk", G), ("wv", G))}
    if sizes.get("rope"):
        arrays["rope_angles"] = np.arange(L)[:, None] * np.array([1.0, 0.25, 0.0625])[: r // 2]
    return arrays, {"n_heads": H, **({"n_kv_heads": G} if G != H else {}), **given(sizes, "causal")}


def _loss(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    H, r, d = (sizes[name] for name in ("H", "r", "d"))
    shape = (H * r, d) if sizes.get("flat") else (H, r, d)
    w = fill(rng, shape, family)
    per_head = sizes.get("per_head")
    arrays = {"w": w, "q": w + 0.3 * rng.standard_normal(shape), "h_in": moment(rng, d, heads=H if per_head else None)}
    if not sizes.get("alone"):
        arrays["h_out"] = moment(rng, r, heads=H)
    if sizes.get("corrected"):
        arrays["residual"] = 0.1 * rng.standard_normal(arrays["h_in"].shape)
    return arrays, {}


MINMAX = Recipe("minmax_grid", _grid, FAMILIES)
SEARCH = Recipe("search_grid", _search, FAMILIES)
CODES = Recipe("quantize_codes", _codes, FAMILIES)
DEQUANTIZE = Recipe("dequantize", _dequantize, FAMILIES)
RTN = Recipe("rtn", _rtn, FAMILIES)
GPTQ = Recipe("gptq", _gptq, SPREAD)
BOA = Recipe("boa", _boa, SPREAD)
TURBOBOA = Recipe("turboboa", _turboboa, SPREAD)
REFINE = Recipe("refine_scales", _refine, SPREAD)
MOMENT = Recipe("input_hessian", _moment, FAMILIES)
CORRELATION = Recipe("residual_correlation", _correlation, FAMILIES)
HESSIANS = Recipe("attention_hessians", _hessians, FAMILIES)
LOSS = Recipe("reconstruction_loss", _loss, FAMILIES)


@st.composite
def grid_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw rows, columns and bits of a grid; every other time columns in groups."""
    width, groups = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    sizes = {"r": draw(st.integers(1, 4)), "d": width * groups, "bits": draw(st.integers(2, 4)), "n_shrink": 3}
    return sizes | ({"groups": groups, "group_size": width} if groups > 1 else {})


@st.composite
def matrix_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw sizes and options of `gptq`, its grid being given."""
    options = {"corrected": draw(st.booleans()), "act_order": draw(st.booleans())}
    return {"H": 1, "r": draw(st.integers(1, 4)), "d": draw(st.integers(1, 4)), "bits": 3, **options}


@st.composite
def head_sizes(draw: st.DrawFn, *options: str) -> dict[str, Any]:
    """Draw sizes and some options of the quantisers of heads, their grid being given."""
    sizes: dict[str, Any] = {"H": draw(st.integers(1, 2)), "r": draw(st.integers(1, 3)), "d": draw(st.integers(2, 3))}
    ways = {
        "block_rows": st.integers(1, 3),
        "corrected": st.booleans(),
        "refine_sweeps": st.integers(0, 2),
        "sweeps": st.integers(0, 2),
        "alone": st.booleans(),
    }
    return {"bits": 3, **sizes, **{name: draw(ways[name]) for name in options}}


@st.composite
def token_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw how many tokens of which width."""
    lead = draw(st.sampled_from([(), (2,), (2, 1)]))
    return {"lead": lead, "n": draw(st.integers(1, 6)), "d": draw(st.integers(1, 5))}


@st.composite
def attention_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw sizes and options of `attention_hessians`."""
    G, shared = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    sizes = {"B": draw(st.integers(1, 2)), "L": draw(st.integers(1, 5)), "d": 4, "H": G * shared, "G": G}
    return sizes | {"r": draw(st.sampled_from([2, 4])), "rope": draw(st.booleans()), "causal": draw(st.booleans())}


@st.composite
def loss_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw sizes and options of `reconstruction_loss`."""
    sizes = {"H": draw(st.integers(1, 2)), "r": draw(st.integers(1, 4)), "d": draw(st.integers(1, 4))}
    return sizes | {name: draw(st.booleans()) for name in ("alone", "corrected")}
