"""How inputs of the PAINT entries are drawn: logits around zero, and attention whose largest entries are clear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.interventions.attention_imbalance import TokenSelection

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BOOST",
    "CLASS",
    "FAMILIES",
    "GAIN",
    "GUIDED",
    "MASKS",
    "PAI",
    "PAINT",
    "SENSITIVITY",
    "boost_sizes",
    "class_sizes",
    "gain_sizes",
    "guided_sizes",
    "mask_sizes",
    "pai_sizes",
    "paint_sizes",
    "sensitivity_sizes",
]

FAMILIES = ("normal", "uniform", "peaky", "tied", "large")
Drawn = tuple[dict[str, Any], dict[str, Any]]


def draw_logits(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> np.ndarray:
    """Draw logits (B, H, Tq, Tk), or (H, Tq, Tk) without B; causal at their end, some keys hidden from every query."""
    shape = tuple(sizes[name] for name in ("B", "H", "Tq", "Tk") if name in sizes)
    logits = fill(rng, shape, family)
    if "hidden" in sizes:
        Tq, Tk = shape[-2:]
        logits = np.where(np.tri(Tq, Tk, k=Tk - Tq, dtype=bool), logits, -np.inf)
        logits[..., sizes["hidden"]] = -np.inf
    return logits


def paint_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw logits, two sets of tokens, and perhaps gains."""
    local, summary = (np.array(sizes[name], dtype=np.int64) for name in ("local", "summary"))
    arrays: dict[str, Any] = {
        "logits": draw_logits(rng, family, sizes),
        "selection": TokenSelection(rng.permutation(local), rng.permutation(summary)),
    }
    if sizes.get("gain", False):
        arrays["head_gain"] = rng.uniform(0.25, 2.0, sizes["H"])
    return arrays, {"image_start": sizes["start"]} | given(sizes, "alpha", "beta")


def pai_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw logits with an image among the keys."""
    options = {"image_start": sizes["start"], "n_image": sizes["N"], "alpha": sizes["alpha"]}
    return {"logits": draw_logits(rng, family, sizes)}, options


def boost_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw logits, keys, and one factor for all heads or one for each."""
    arrays: dict[str, Any] = {
        "logits": draw_logits(rng, family, sizes),
        "index": rng.permutation(np.array(sizes["columns"], dtype=np.int64)),
    }
    if "factor" in sizes:
        return arrays, {"factor": sizes["factor"]}
    return {**arrays, "factor": rng.uniform(0.0, 1.5, sizes["H"])}, {}


def sensitivity_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw logits with an image among the keys."""
    return {"logits": draw_logits(rng, family, sizes)}, {"image_slice": list(sizes["image"])}


def gain_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw sensitivities of several layers, all within a quarter of their own layer's size; one may be blind."""
    del family
    s = rng.uniform(0.25, 1.0, (*sizes["lead"], sizes["H"])) * rng.choice([1.0, 0.5, 0.125], (*sizes["lead"], 1))
    if sizes.get("blind", False):
        s[-1] = 0.0
    return {"sensitivity": s}, {}


def guided_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw the logits of two runs that agree in part, none of them near the cutoff."""
    shape = (*sizes["lead"], sizes["V"])
    cutoff = sizes.get("cutoff", 0.1)
    s = fill(rng, shape, family)
    behind = np.max(s, axis=-1, keepdims=True) - s + np.log(cutoff)
    s = np.where(np.abs(behind) < 0.25, s - 0.5, s)  # a token that rounding could prune is moved beyond its reach
    u = 0.5 * s + fill(rng, shape, family)
    return {"logits": s, "uncond_logits": u}, given(sizes, "gamma", "cutoff")


def _class_row(rng: np.random.Generator, n: int, outliers: int) -> np.ndarray:
    """Draw scores (n,) that no rounding reorders: even steps, and a few far above them."""
    scores = rng.permutation(np.linspace(1.0, 1.5, n))
    scores[rng.permutation(n)[:outliers]] += np.linspace(3.0, 4.0, outliers)
    return scores


def _shares(rng: np.random.Generator, family: str, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Split ones along an axis, evenly or unevenly."""
    e = np.exp(fill(rng, shape, family))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def mask_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw the attention of every layer, whose class rows and columns have clear orders of their own."""
    layers, heads, n = (sizes[name] for name in ("L", "H", "N"))
    outliers = sizes.get("outliers", 0)
    square = (layers, heads, n + 1, n + 1)
    vit = _shares(rng, family, square, -1)
    vit[:, :, 0, 1:] = _shares(rng, family, (layers, heads, n), 1)
    received = _shares(rng, family, (layers, heads, n, n), 2)
    for layer in range(layers):
        vit[layer, :, 0, 1:] *= _class_row(rng, n, outliers) / 8.0
        vit[layer, :, 1:, 1:] = received[layer] * _class_row(rng, n, 0) / 2.0
    vit *= sizes.get("size", 1.0)
    return {"vit_attention": vit}, given(sizes, "local_ratio", "spatial_ratio", "official_rounding")


def class_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw the attention of one layer."""
    heads, n = sizes["H"], sizes["N"]
    return {"vit_weights": _shares(rng, family, (heads, n + 1, n + 1), -1)}, {}


def _pieces(draw: Any) -> dict[str, Any]:
    sizes = {name: draw(st.integers(1, most)) for name, most in (("H", 3), ("Tq", 4), ("Tk", 10))}
    batch: dict[str, Any] = draw(st.sampled_from([{}, {"B": 0}, {"B": 1}, {"B": 2}]))
    return {**batch, **sizes}


@st.composite
def paint_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes, the place of an image, and sets within it."""
    sizes = _pieces(draw)
    start = draw(st.integers(0, sizes["Tk"]))
    owner = draw(st.lists(st.sampled_from(["local", "summary", ""]), max_size=sizes["Tk"] - start))
    sets = {name: [i for i, o in enumerate(owner) if o == name] for name in ("local", "summary")}
    options = {"alpha": st.sampled_from([0.0, 0.5, 1.0, 1.5]), "beta": st.sampled_from([0.0, 0.25, 2.0])}
    return {
        **sizes,
        **sets,
        "start": start,
        **draw(st.fixed_dictionaries({}, optional={**options, "gain": st.booleans()})),
    }


@st.composite
def pai_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes and the place of an image."""
    sizes = _pieces(draw)
    start = draw(st.integers(0, sizes["Tk"]))
    N = draw(st.integers(0, sizes["Tk"] - start))
    return {**sizes, "start": start, "N": N, "alpha": draw(st.sampled_from([0.0, 0.5, 1.0]))}


@st.composite
def boost_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes, keys and a factor."""
    sizes = _pieces(draw)
    columns = draw(st.lists(st.integers(0, sizes["Tk"] - 1), unique=True))
    factor: dict[str, Any] = draw(st.sampled_from([{}, {"factor": 0.5}, {"factor": 1.25}]))
    return {**sizes, "columns": columns, **factor}


@st.composite
def sensitivity_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes and the place of an image."""
    sizes = _pieces(draw)
    return {**sizes, "image": sorted(draw(st.tuples(*[st.integers(0, sizes["Tk"])] * 2)))}


gain_sizes = st.fixed_dictionaries(
    {"lead": st.sampled_from([(1,), (2,), (3, 2)]), "H": st.integers(1, 5)}, optional={"blind": st.booleans()}
)
guided_sizes = st.fixed_dictionaries(
    {"lead": st.sampled_from([(), (1,), (2, 3), (0,)]), "V": st.integers(1, 9)},
    optional={"gamma": st.sampled_from([0.0, 1.0, 1.5]), "cutoff": st.sampled_from([0.25, 0.5])},
)
mask_sizes = st.fixed_dictionaries(
    {"L": st.integers(2, 4), "H": st.integers(1, 3), "N": st.integers(1, 14), "outliers": st.integers(0, 1)},
    optional={
        "local_ratio": st.sampled_from([0.0, 0.5, 1.0]),
        "spatial_ratio": st.sampled_from([0.0, 0.25, 1.0]),
        "official_rounding": st.booleans(),
    },
)
class_sizes = st.fixed_dictionaries({"H": st.integers(1, 4), "N": st.integers(1, 9)})

PAINT = Recipe("paint_logits", paint_case, FAMILIES)
PAI = Recipe("pai_logits", pai_case, FAMILIES)
BOOST = Recipe("boost_logits", boost_case, FAMILIES)
SENSITIVITY = Recipe("head_visual_sensitivity", sensitivity_case, FAMILIES)
GAIN = Recipe("sensitivity_gain", gain_case, ("uniform",))
GUIDED = Recipe("guided_logits", guided_case, ("normal", "peaky", "large"))
MASKS = Recipe("token_masks", mask_case, ("normal", "peaky"))
CLASS = Recipe("class_attention", class_case, ("normal", "uniform", "peaky"))
