"""How inputs of the OAT entries are drawn: shelves of any size, paths with holes, weights that spread the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill
from refattn.layers.oat import OATWeights, PointerHead
from refattn.layers.oat_positions import SPECIAL_ROWS, grid_coordinates, scene_coordinates
from refattn.layers.oat_transformer import AttentionWeights, DecoderLayer, EncoderLayer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ENCODE",
    "FAMILIES",
    "FORWARD",
    "LOOK_UP",
    "LOSS",
    "MODEL_FAMILIES",
    "POINT",
    "encode_sizes",
    "forward_sizes",
    "look_up_sizes",
    "loss_sizes",
    "point_sizes",
]

FAMILIES = ("normal", "peaky", "tied")
MODEL_FAMILIES = ("normal", "tied")
Built = tuple[dict[str, Any], dict[str, Any]]


def linear(rng: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a map that keeps the size of what it is given, and a bias."""
    return rng.standard_normal((rows, columns)) / np.sqrt(rows), 0.5 * rng.standard_normal(columns)


def norm(rng: np.random.Generator, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw weight and bias of a layer norm."""
    return 1.0 + 0.2 * rng.standard_normal(width), 0.2 * rng.standard_normal(width)


def attention(rng: np.random.Generator, E: int) -> AttentionWeights:
    """Draw an attention whose scores tell tokens apart."""
    maps = [linear(rng, E, E) for _ in range(4)]
    return AttentionWeights(*(part for pair in maps for part in pair))


def encoder_layer(rng: np.random.Generator, E: int, F: int) -> EncoderLayer:
    """Draw one layer of the encoder."""
    feed = (*linear(rng, E, F), *linear(rng, F, E))
    return EncoderLayer(attention(rng, E), *norm(rng, E), *feed, *norm(rng, E))


def decoder_layer(rng: np.random.Generator, E: int, F: int) -> DecoderLayer:
    """Draw one layer of the decoder."""
    back, out = attention(rng, E), attention(rng, E)
    feed = (*linear(rng, E, F), *linear(rng, F, E))
    return DecoderLayer(back, *norm(rng, E), out, *norm(rng, E), *feed, *norm(rng, E))


def pointer_heads(rng: np.random.Generator, E: int, M: int) -> tuple[PointerHead, ...]:
    """Draw the heads of the pointer."""
    return tuple(PointerHead(*linear(rng, E, E), *linear(rng, E, E)) for _ in range(M))


def forward_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw scenes on a shelf, scanpaths that end in special tokens, perhaps with holes, and a small model."""
    B, R, C, T, E = (sizes[name] for name in "BRCTE")
    n, target = R * C, rng.integers(R * C, size=B)
    path = np.minimum(rng.integers(n + 2, size=(B, T)), n + 1)
    grid = (R + 1, max(C, 2), 2, E // 2)  # special tokens of this shelf lie in the two rows below it
    table = rng.standard_normal(grid if sizes.get("grid") else (max(R, C, 2), -(-E // 6) + 1))
    arrays: dict[str, Any] = {
        "src_appearance": fill(rng, (B, n + 1, E // 2), family),
        "src_coords": scene_coordinates(R, C, target),
        "tgt_appearance": fill(rng, (B, T, E // 2), family),
        "tgt_coords": grid_coordinates(path, C, target, centre_first=True, n_rows=R),
        "table": table,
        "weights": OATWeights(
            tuple(encoder_layer(rng, E, E + 1) for _ in range(sizes.get("layers", 1))),
            tuple(decoder_layer(rng, E, E + 1) for _ in range(sizes.get("layers", 1))),
            pointer_heads(rng, E, sizes["M"]),
            rng.standard_normal(sizes["M"]),
            np.array(0.5 + rng.random()),
        ),
    }
    if sizes.get("holes"):
        mask = rng.random((B, T)) < 0.4
        mask[:, 1:2] = True
        mask[:, :1] = bool(sizes.get("blind"))
        arrays["tgt_pad_mask"] = mask
    return arrays, {"n_heads": sizes["H"], "d_k": float(sizes.get("d_k", E))}


def encode_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw tokens and the layers of an encoder."""
    tokens = fill(rng, (sizes["B"], sizes["n"] + 1, sizes["E"]), family)
    layers = tuple(encoder_layer(rng, sizes["E"], sizes["E"] + 1) for _ in range(sizes.get("layers", 1)))
    return {"tokens": tokens, "layers": layers}, {"n_heads": sizes["H"]}


def point_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw encoded objects, decoded steps and heads."""
    B, n, T, E, M = (sizes[name] for name in "BnTEM")
    arrays = {
        "encoder_out": fill(rng, (B, n + 1, E), family),
        "decoder_out": fill(rng, (B, T, E), family),
        "heads": pointer_heads(rng, E, M),
        "readout_w": rng.standard_normal(M),
        "readout_b": np.array(0.5 + rng.random()),
    }
    return arrays, {"d_k": float(sizes["d_k"])}


def look_up_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw places all over the table and below it."""
    P, c = sizes["P"], sizes["c"]
    if sizes.get("grid"):
        high: Any = np.array([P + 1, P + 1, 2])
        table = fill(rng, (P, P + 1, 2, c), family)
    else:
        high = np.array([P + SPECIAL_ROWS, P + SPECIAL_ROWS, min(P, 2)])
        table = fill(rng, (P, c), family)
    return {"coords": rng.integers(high, size=(sizes["B"], sizes["L"], 3)), "table": table}, {"dim": sizes["dim"]}


def loss_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw logits and what came, some of it padding but not the first step."""
    B, T, n = (sizes[name] for name in "BTn")
    targets = np.where(rng.random((B, T)) < sizes.get("padded", 0.4), n + 1, rng.integers(n + 1, size=(B, T)))
    targets[:, 0] = rng.integers(n + 1, size=B)
    return {"logits": fill(rng, (B, T, n + 2), family), "targets": targets}, {"pad_index": n + 1}


@st.composite
def forward_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of the model."""
    heads = draw(st.integers(1, 2))
    sizes: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {
                "B": st.integers(0, 2),
                "R": st.integers(1, 2),
                "C": st.integers(1, 3),
                "T": st.integers(1, 4),
                "M": st.integers(1, 3),
            },
            optional={"grid": st.booleans(), "holes": st.booleans()},
        )
    )
    sizes["C"] = max(sizes["C"], 3 if sizes.get("grid") else 1)  # three special tokens then need one row
    return {**sizes, "H": heads, "E": 2 * heads * draw(st.integers(1, 2))}


@st.composite
def encode_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of the encoder."""
    heads = draw(st.integers(1, 3))
    return {
        "B": draw(st.integers(0, 2)),
        "n": draw(st.integers(0, 5)),
        "H": heads,
        "E": 2 * heads * draw(st.integers(1, 2)),
        "layers": draw(st.integers(0, 2)),
    }


@st.composite
def look_up_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of a table or a grid, cut or not."""
    grid, width = draw(st.booleans()), draw(st.integers(1, 4))
    return {
        "B": draw(st.integers(0, 2)),
        "L": draw(st.integers(0, 5)),
        "P": draw(st.integers(1, 4)),
        "c": width,
        "grid": grid,
        "dim": draw(st.integers(1, width if grid else 3 * width)),
    }


point_sizes = st.fixed_dictionaries(
    {
        "B": st.integers(0, 2),
        "n": st.integers(0, 5),
        "T": st.integers(0, 4),
        "E": st.integers(1, 6),
        "M": st.integers(1, 3),
        "d_k": st.sampled_from([2, 4, 9]),
    }
)
loss_sizes = st.fixed_dictionaries(
    {"B": st.integers(1, 3), "T": st.integers(1, 5), "n": st.integers(1, 6), "padded": st.sampled_from([0.0, 0.5, 1.0])}
)

FORWARD = Recipe("oat_forward", forward_case, MODEL_FAMILIES)
ENCODE = Recipe("oat_encode", encode_case, MODEL_FAMILIES)
POINT = Recipe("object_attention", point_case, FAMILIES)
LOOK_UP = Recipe("object_position_embedding", look_up_case, FAMILIES)
LOSS = Recipe("scanpath_loss", loss_case, FAMILIES)
