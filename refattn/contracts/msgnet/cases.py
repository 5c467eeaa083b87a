"""How inputs of the MSGNet entries are drawn: windows whose scales do not hang by a thread, weights that matter.

Which frequencies are the k strongest is decided by comparisons. Where two are almost equally strong, rounding decides,
and no kernel can be judged by what follows; so of several draws the one with the clearest order is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.layers.msgnet import msgnet_forecast
from refattn.layers.msgnet_init import attention_init, block_init, graph_init, msgnet_init

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "ADJACENCY",
    "ATTENTION",
    "BLOCK",
    "FORECAST",
    "GRAPH",
    "MIXHOP",
    "SCALES",
    "adjacency_sizes",
    "attention_sizes",
    "block_sizes",
    "forecast_sizes",
    "graph_sizes",
    "lively",
    "mixhop_sizes",
    "scale_sizes",
]

DRAWS = 6
Drawn = tuple[dict[str, Any], dict[str, Any]]
CALENDAR = (13, 32, 7, 24)


def _options(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {"n_heads": sizes["H"]} | given(sizes, "depth", "alpha", "causal", "placement", "residual")


def lively(rng: np.random.Generator, weights: Any) -> Any:
    """Move norms off 1 and 0, spread the logits, and make the graphs as loud as what they are added to."""

    def moved(name: str, leaf: Any) -> Any:
        if isinstance(leaf, tuple):
            return lively(rng, leaf) if hasattr(leaf, "_fields") else tuple(moved(name, branch) for branch in leaf)
        if name.startswith("norm"):
            return leaf + 0.3 * rng.standard_normal(leaf.shape)
        factor = {"w_q": 3.0, "w_k": 3.0, "start_w": 2.0, "mix_w": 2.0, "end_w": 2.0, "out_w": 2.0}
        return leaf if leaf is None else factor.get(name, 1.0) * leaf

    return type(weights)(*(moved(name, leaf) for name, leaf in zip(weights._fields, weights, strict=True)))


def spectrum_of(x: np.ndarray) -> np.ndarray:
    """Return the mean amplitudes of windows, without the constant part."""
    return np.asarray(np.abs(np.fft.rfft(x, axis=1)).mean(axis=(0, 2))[1:])


def margin(spectrum: np.ndarray, k: int) -> float:
    """Return the smallest relative step among the k strongest frequencies and the next."""
    strongest = np.sort(spectrum)[::-1][: k + 1]
    steps = (strongest[:-1] - strongest[1:]) / (strongest[:-1] + 1e-30)
    return float(min(steps, default=1.0))


def clear(draw: Callable[[], np.ndarray], spectra: Callable[[np.ndarray], list[np.ndarray]], k: int) -> np.ndarray:
    """Return the draw whose frequencies, in all its spectra, are in the clearest order."""
    drawn = [draw() for _ in range(DRAWS)]
    return max(drawn, key=lambda x: min((margin(spectrum, k) for spectrum in spectra(x)), default=1.0))


def forecast_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw windows, weights and a calendar; the order that counts is that inside the blocks."""
    B, T, N, k = (sizes[name] for name in ("B", "T", "N", "k"))
    marks = sizes.get("marks")
    shape = {"length": T, "n_series": N, "width": sizes["D"], "scales": k, "hidden": 5, "channels": 2, "skip": 3}
    shape |= {"nodes": 4, "layers": sizes["layers"], "horizon": sizes["P"], "marks": marks}
    weights = lively(rng, msgnet_init(rng, **shape, **given(sizes, "depth", "dense", "pointwise", "individual")))
    arrays, options = {"weights": weights}, _options(sizes)
    if isinstance(marks, str):
        arrays["marks"] = np.stack([rng.integers(size, size=(B, T)) for size in CALENDAR], axis=-1)
    elif marks is not None:
        arrays["marks"] = rng.uniform(-0.5, 0.5, (B, T, marks))

    def draw() -> np.ndarray:
        x = fill(rng, (B, T, N), family)
        if sizes.get("constant", False):
            x[..., 0] = 0.0
        return x

    def spectra(x: np.ndarray) -> list[np.ndarray]:
        _, details = msgnet_forecast(x, weights, arrays.get("marks"), **options, return_details=True)
        return [block.selection.spectrum[1:] for block in details.blocks]

    return {"x": clear(draw, spectra, k), **arrays}, options


def block_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw features and weights of a block."""
    B, T, N, D, k = (sizes[name] for name in ("B", "T", "N", "D", "k"))
    shape = {"length": T, "n_series": N, "width": D, "scales": k, "hidden": 5, "channels": 2, "skip": 3, "nodes": 4}
    weights = lively(rng, block_init(rng, **shape, **given(sizes, "depth", "dense", "pointwise")))
    x = clear(lambda: fill(rng, (B, T, D), family), lambda x: [spectrum_of(x)], k)
    return {"x": x, "weights": weights}, _options(sizes)


def scale_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw windows."""
    shape = (sizes["B"], sizes["T"], sizes["D"])
    return {"x": clear(lambda: fill(rng, shape, family), lambda x: [spectrum_of(x)], sizes["k"])}, {"k": sizes["k"]}


def attention_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw segments and weights."""
    weights = lively(rng, attention_init(rng, width=sizes["D"], hidden=sizes.get("E", 5)))
    z = fill(rng, (sizes["R"], sizes["s"], sizes["D"]), family)
    return {"z": z, "weights": weights}, {"n_heads": sizes["H"]} | given(sizes, "causal")


def graph_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw features and weights of a graph layer."""
    T, N, D = (sizes[name] for name in ("T", "N", "D"))
    shape = {"length": T, "n_series": N, "width": D, "channels": 2, "skip": 3, "nodes": 3}
    weights = lively(rng, graph_init(rng, **shape, **given(sizes, "depth", "dense", "pointwise")))
    x = fill(rng, (sizes["B"], T, D), family)
    return {"x": x, "weights": weights}, given(sizes, "depth", "alpha")


def mixhop_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a start, and an adjacency whose rows do not sum to 1."""
    h0 = fill(rng, (sizes["B"], sizes["C"], sizes["N"], sizes["T"]), family)
    arrays = {"h0": h0, "adjacency": rng.random((sizes["N"], sizes["N"]))}
    return arrays, given(sizes, "depth", "alpha")


def adjacency_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw node vectors."""
    return {"e1": fill(rng, (sizes["N"], sizes["h"]), family), "e2": fill(rng, (sizes["h"], sizes["N"]), family)}, {}


@st.composite
def block_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of a block."""
    T, N, H = draw(st.integers(2, 13)), draw(st.integers(2, 3)), draw(st.integers(1, 2))
    sizes = {"B": draw(st.integers(1, 2)), "T": T, "N": N, "H": H, "D": 2 * draw(st.integers(2, 3))}
    paper = {"placement": "segments", "residual": "input", "pointwise": True, "dense": True}
    extra: dict[str, Any] = draw(
        st.sampled_from([{}, {"causal": False}, paper, {**paper, "causal": False}, {"residual": "input", "depth": 1}])
    )
    return {**sizes, "k": draw(st.integers(1, min(T // 2, 3))), **extra}


forecast_sizes = st.builds(
    lambda sizes, P, layers, extra: {**sizes, "P": P, "layers": layers, **extra},
    block_sizes(),
    st.integers(1, 4),
    st.integers(0, 2),
    st.sampled_from([{}, {"marks": 3}, {"marks": "fixed"}, {"individual": True}]),
)
scale_sizes = st.integers(2, 17).flatmap(
    lambda T: st.fixed_dictionaries(
        {"B": st.integers(1, 3), "T": st.just(T), "D": st.integers(1, 3), "k": st.integers(1, T // 2)}
    )
)
attention_sizes = st.fixed_dictionaries(
    {"R": st.integers(0, 3), "s": st.integers(1, 6), "D": st.sampled_from([2, 4]), "H": st.integers(1, 2)},
    optional={"causal": st.booleans()},
)
graph_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "T": st.integers(1, 6), "N": st.integers(2, 3), "D": st.integers(3, 5)},
    optional={
        "depth": st.integers(0, 3),
        "alpha": st.sampled_from([0.0, 0.05, 1.0]),
        "dense": st.booleans(),
        "pointwise": st.booleans(),
    },
)
mixhop_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "C": st.integers(1, 3), "N": st.integers(1, 4), "T": st.integers(0, 4)},
    optional={"depth": st.integers(0, 3), "alpha": st.sampled_from([0.0, 0.05, 1.0])},
)
adjacency_sizes = st.fixed_dictionaries({"N": st.integers(1, 5), "h": st.integers(0, 4)})

FORECAST = Recipe("msgnet_forecast", forecast_case, ("normal", "tiny"))
BLOCK = Recipe("scale_graph_block", block_case, ("normal", "peaky"))
SCALES = Recipe("identify_scales", scale_case, ("normal", "uniform"))
ATTENTION = Recipe("segment_attention", attention_case, ("normal", "peaky", "tiny"))
GRAPH = Recipe("graph_block", graph_case, ("normal", "tiny"))
MIXHOP = Recipe("mixhop_propagate", mixhop_case, ("normal", "large"))
ADJACENCY = Recipe("adaptive_adjacency", adjacency_case, ("normal", "peaky"))
