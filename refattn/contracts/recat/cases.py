"""How inputs of ReCAT are drawn: weights whose scores tell splits apart, and charts of few tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill
from refattn.layers.recat import ReCATWeights
from refattn.layers.recat_cells import (
    AttentionWeights,
    BlockWeights,
    CellWeights,
    HeadWeights,
    ScoreWeights,
    with_roles,
)
from refattn.layers.recat_parser import LSTMWeights, ParserWeights
from refattn.layers.recat_passes import LayerWeights, chart_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CIO",
    "COMPOSE",
    "FAMILIES",
    "INSIDE",
    "MODEL",
    "NODES",
    "PARSER",
    "SPREAD",
    "cell_sizes",
    "chart_sizes",
    "model_sizes",
    "node_sizes",
    "parser_sizes",
    "stack_sizes",
]

FAMILIES = ("normal", "tied", "cancelling")
SMALL = {"D": 4, "H": 2, "F": 5, "c": 3}  # the model of every chart

Built = tuple[dict[str, Any], dict[str, Any]]


def linear(rng: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a map that keeps the size of its input, and a bias."""
    return rng.standard_normal((rows, columns)) / max(rows, 1) ** 0.5, 0.3 * rng.standard_normal(columns)


def block(rng: np.random.Generator, D: int, F: int) -> BlockWeights:
    """Draw one Transformer layer."""
    attention = AttentionWeights(*linear(rng, D, 3 * D), *linear(rng, D, D))
    scale1, shift1, scale2, shift2 = 0.2 * rng.standard_normal((4, D))
    first, second = linear(rng, D, F), linear(rng, F, D)
    return BlockWeights(attention, 1.0 + scale1, shift1, *first, *second, 1.0 + scale2, shift2)


def cell(rng: np.random.Generator, D: int, F: int) -> CellWeights:
    """Draw a cell function with roles that matter."""
    return CellWeights(block(rng, D, F), rng.standard_normal((3, D)))


def layer(rng: np.random.Generator, D: int, F: int, *, apart: bool = False) -> LayerWeights:
    """Draw a layer whose two functions share their weights, or do not."""
    inside = cell(rng, D, F)
    return LayerWeights(inside, cell(rng, D, F) if apart else with_roles(inside, rng.standard_normal((3, D))))


def heads(rng: np.random.Generator, D: int, c: int) -> ScoreWeights:
    """Draw five score heads, twice as strong as other maps."""

    def one() -> HeadWeights:
        w2, b2 = linear(rng, D, c)
        return HeadWeights(*linear(rng, D, D), 2.0 * w2, 2.0 * b2)

    return ScoreWeights(*(one() for _ in range(5)))


def compose_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw a context and two parts."""
    shape = (sizes["B"], sizes["D"])
    names = ("context", "left", "right")
    arrays = {name: fill(rng, shape, family) for name in names}
    return {**arrays, "weights": cell(rng, sizes["D"], sizes["F"])}, {"n_heads": sizes["H"]}


def spread_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw a parent and two parts."""
    arrays, options = compose_case(rng, family, sizes)
    return {"parent": arrays.pop("context"), **arrays}, options


def inside_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw leaves and contexts, one for all cells or one for each."""
    D, n = SMALL["D"], sizes["n"]
    cells = len(chart_of(n, sizes.get("m"), sizes.get("order")).splits)
    context = (D,) if sizes.get("learned") else (sizes["B"], cells, D)
    arrays = {
        "leaves": fill(rng, (sizes["B"], n, D), family),
        "context": fill(rng, context, "normal"),
        "weights": cell(rng, D, SMALL["F"]),
        "heads": heads(rng, D, SMALL["c"]),
    }
    return arrays, _options(sizes)


def cio_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw leaves and layers."""
    D = SMALL["D"]
    apart = bool(sizes.get("apart", False))
    arrays = {
        "leaves": fill(rng, (sizes["B"], sizes["n"], D), family),
        "layers": tuple(layer(rng, D, SMALL["F"], apart=apart) for _ in range(sizes["R"])),
        "heads": heads(rng, D, SMALL["c"]),
        "empty_cell": rng.standard_normal(D),
    }
    return arrays, _options(sizes)


def node_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw node vectors, some of them padding; the first never is."""
    shape = (sizes["B"], sizes["M"], sizes["D"])
    arrays: dict[str, Any] = {
        "x": fill(rng, shape, family),
        "layers": tuple(block(rng, sizes["D"], sizes["D"] + 1) for _ in range(sizes["T"])),
    }
    if sizes.get("masked"):
        arrays["mask"] = (rng.random(shape[:2]) < 0.6) | (np.arange(sizes["M"]) == 0)
    return arrays, {"n_heads": sizes["H"]}


def parser_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw embeddings and a parser with memories that last."""
    h = sizes["h"]

    def way(E: int) -> LSTMWeights:
        w_x, b = linear(rng, E, 4 * h)
        return LSTMWeights(1.5 * w_x, linear(rng, h, 4 * h)[0], b)

    layers = tuple((way(E), way(E)) for E in [sizes["E"]] + [2 * h] * (sizes["T"] - 1))
    w2, b2 = linear(rng, h, 1)
    weights = ParserWeights(layers, *linear(rng, 2 * h, h), 2.0 * w2, b2)
    return {"x": fill(rng, (sizes["B"], sizes["n"], sizes["E"]), family), "weights": weights}, {}


def model_case(rng: np.random.Generator, _family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw words and the whole model."""
    D, words = SMALL["D"], 7
    stack, _ = cio_case(rng, "normal", {**sizes, "B": 0})
    encoder = tuple(block(rng, D, SMALL["F"]) for _ in range(sizes["T"]))
    weights = ReCATWeights(
        rng.standard_normal((words, D)),
        stack["empty_cell"],
        stack["heads"],
        stack["layers"],
        encoder,
        *linear(rng, D, D),
        rng.standard_normal(words),
    )
    return {"token_ids": rng.integers(words, size=sizes["n"]), "weights": weights}, _options(sizes)


def _options(sizes: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"n_heads": SMALL["H"]}
    if "m" in sizes:
        options |= {"window": sizes["m"], "order": list(sizes["order"])}
    return options | ({"merged_scores": sizes["rule"]} if "rule" in sizes else {})


cell_sizes = st.builds(
    lambda heads, d, sizes: {**sizes, "H": heads, "D": heads * d},
    st.integers(1, 3),
    st.integers(2, 3),
    st.fixed_dictionaries({"B": st.integers(0, 3), "F": st.integers(1, 6)}),
)
node_sizes = st.builds(
    lambda heads, d, sizes: {**sizes, "H": heads, "D": heads * d},
    st.integers(1, 3),
    st.integers(2, 3),
    st.fixed_dictionaries(
        {"B": st.integers(0, 2), "M": st.integers(1, 6), "T": st.integers(0, 2)}, optional={"masked": st.booleans()}
    ),
)
parser_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "n": st.integers(1, 4), "E": st.integers(1, 4), "h": st.integers(1, 4)}
    | {"T": st.integers(1, 2)}
)


@st.composite
def chart_sizes(draw: Any) -> dict[str, Any]:
    """Draw a chart of few tokens, exact or pruned by any order."""
    sizes: dict[str, Any] = {"B": draw(st.integers(0, 1)), "n": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        order = draw(st.permutations(range(sizes["n"] - 1)))
        rule = draw(st.sampled_from(["kept", "zero"]))
        sizes |= {"m": draw(st.integers(1, 4)), "order": tuple(order), "rule": rule}
    extra: dict[str, Any] = draw(st.sampled_from([{}, {"learned": True}]))
    return sizes | extra


@st.composite
def stack_sizes(draw: Any) -> dict[str, Any]:
    """Draw a chart, and one layer: several are among the scenarios."""
    sizes = draw(chart_sizes())
    sizes.pop("learned", None)
    return {**sizes, "R": 1, "apart": draw(st.booleans())}


@st.composite
def model_sizes(draw: Any) -> dict[str, Any]:
    """Draw a chart of one sentence, layers and nodes that attend."""
    sizes = draw(stack_sizes())
    sizes.pop("B")
    return {**sizes, "T": draw(st.integers(0, 1))}


COMPOSE = Recipe("compose", compose_case, FAMILIES)
SPREAD = Recipe("spread", spread_case, FAMILIES)
INSIDE = Recipe("inside_cells", inside_case, ("normal", "tied"))
CIO = Recipe("cio_cells", cio_case, ("normal", "cancelling"))
NODES = Recipe("encode_nodes", node_case, FAMILIES)
PARSER = Recipe("split_scores", parser_case, FAMILIES)
MODEL = Recipe("recat_encode", model_case, ("normal",))
