"""How inputs of the LRGT entries are drawn: grids of every stride, spread scores, clear clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.contracts.lrgt.margins import clear_tokens
from refattn.layers.lrgt_attention import BlockWeights, GroupAttentionWeights
from refattn.layers.lrgt_decoder import QueryBlockWeights, UpConvWeights, UpsamplingWeights
from refattn.layers.lrgt_encoder import EncoderWeights
from refattn.layers.lrgt_merger import MergerWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ATTENTION",
    "BLOCK",
    "CLUSTERS",
    "DECODER",
    "DICE",
    "ENCODER",
    "FAMILIES",
    "FOLD",
    "GROUP",
    "MERGER",
    "PLAIN",
    "QUERIES",
    "SPREAD",
    "UNGROUP",
    "attention_sizes",
    "cluster_sizes",
    "decoder_sizes",
    "dice_sizes",
    "encoder_sizes",
    "fold_sizes",
    "group_sizes",
    "merger_sizes",
    "query_sizes",
    "spread_sizes",
]

FAMILIES = ("normal", "peaky", "tied", "cancelling", "tiny")
PLAIN = ("normal", "peaky", "cancelling")

Drawn = tuple[dict[str, Any], dict[str, Any]]


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.asarray(rng.standard_normal((rows, columns)) / np.sqrt(rows))


def attention_weights(
    rng: np.random.Generator, D: int, *, biases: bool = True, signature: bool = True
) -> GroupAttentionWeights:
    """Draw one attention layer."""
    w_q, w_k, w_v, w_o = (1.3 * _matrix(rng, D, D) for _ in range(4))
    b_o = 0.3 * rng.standard_normal(D)
    b = tuple(0.5 * rng.standard_normal(D) for _ in range(3)) if biases else (None, None, None)
    ifs = (0.4 * rng.standard_normal((D, 3, 3)), 0.3 * rng.standard_normal(D)) if signature else (None, None)
    return GroupAttentionWeights(w_q, w_k, w_v, w_o, b_o, *b, *ifs)


def norm_weights(rng: np.random.Generator, D: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw scale and shift of a normalisation."""
    return 1.0 + 0.3 * rng.standard_normal(D), 0.2 * rng.standard_normal(D)


def mlp_weights(rng: np.random.Generator, D: int) -> tuple[np.ndarray, ...]:
    """Draw an MLP of ratio 2."""
    return (
        1.5 * _matrix(rng, D, 2 * D),
        0.3 * rng.standard_normal(2 * D),
        _matrix(rng, 2 * D, D),
        0.3 * rng.standard_normal(D),
    )


def block_weights(rng: np.random.Generator, D: int, *, encoder: bool) -> BlockWeights:
    """Draw a block of the encoder, with biases and signature, or of the decoder, without."""
    attn = attention_weights(rng, D, biases=encoder, signature=encoder)
    return BlockWeights(*norm_weights(rng, D), attn, *norm_weights(rng, D), *mlp_weights(rng, D))


def query_block(rng: np.random.Generator, D: int) -> QueryBlockWeights:
    """Draw a block of the query stage."""
    parts = [(*norm_weights(rng, D), attention_weights(rng, D, biases=False, signature=False)) for _ in range(2)]
    return QueryBlockWeights(*parts[0], *parts[1], *norm_weights(rng, D), *mlp_weights(rng, D))


def up_convolution(rng: np.random.Generator, C: int, O: int) -> UpConvWeights:
    """Draw a transposed convolution and statistics that fit what it returns."""
    w = rng.standard_normal((C, O, 4, 4, 4)) / np.sqrt(8 * C)
    return UpConvWeights(
        w, 0.3 * rng.standard_normal(O), 0.5 + rng.random(O), 1.0 + 0.3 * rng.standard_normal(O), 0.3 + rng.random(O)
    )


def upsampling_weights(rng: np.random.Generator, widths: tuple[int, int, int, int], depth: int) -> UpsamplingWeights:
    """Draw the up-sampling decoder."""
    units = zip(widths[:-1], widths[1:], (widths[0], widths[1], 8 * widths[2]), strict=True)
    parts: list[Any] = []
    for C, O, D in units:
        parts += [tuple(block_weights(rng, D, encoder=False) for _ in range(depth)), up_convolution(rng, C, O)]
    last = tuple(block_weights(rng, 64 * widths[3], encoder=False) for _ in range(depth))
    return UpsamplingWeights(*(*parts, last, 0.7 * rng.standard_normal((widths[3], 1, 1, 1, 1))))


def attention_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens and weights of the grouped layer."""
    D = sizes["D"]
    x = fill(rng, (sizes["B"] * sizes["V"], sizes["g"] ** 2, D), family)
    weights = attention_weights(
        rng, D, biases=sizes.get("biases", True), signature=sizes.get("signature", True) or sizes.get("kernels", False)
    )
    options = {"num_views": sizes["V"], "num_heads": sizes["H"], "stride": sizes["s"]}
    options |= given(sizes, "kind", "signature", "scale", "return_attn", "grid")
    return {"x": x, "weights": weights}, options


def group_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens by view."""
    x = fill(rng, (sizes["B"] * sizes["V"], sizes["g"] ** 2, sizes["D"]), family)
    return {"x": x}, {"num_views": sizes["V"], "grid": sizes["g"], "stride": sizes["s"], **given(sizes, "kind")}


def ungroup_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens by group."""
    side = {"token": sizes["g"], "full": 1}.get(sizes.get("kind", "long"), sizes["s"])
    shape = (sizes["B"], side**2, sizes["g"] ** 2 // side**2 * sizes["V"], sizes["D"])
    _, options = group_case(rng, family, {**sizes, "B": 0})
    return {"x": fill(rng, shape, family)}, options


def block_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens and weights of an encoder block."""
    x = fill(rng, (sizes["B"] * sizes["V"], sizes["g"] ** 2, sizes["D"]), family)
    options = {"num_views": sizes["V"], "num_heads": sizes["H"], "stride": sizes["s"]}
    options |= given(sizes, "kind", "scale", "use_lga", "eps")
    return {"x": x, "weights": block_weights(rng, sizes["D"], encoder=True)}, options


def encoder_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw images and weights of the encoder."""
    B, V, C, g, p, D = (sizes[name] for name in ("B", "V", "C", "g", "p", "D"))
    patch = (rng.standard_normal((D, C, p, p)) / np.sqrt(C * p * p), 0.3 * rng.standard_normal(D))
    blocks = tuple(block_weights(rng, D, encoder=True) for _ in range(sizes["depth"]))
    weights = EncoderWeights(*patch, 0.5 * rng.standard_normal((g * g, D)), blocks, *norm_weights(rng, D))
    options = {"num_heads": sizes["H"], "stride": sizes["s"], "lga_blocks": list(sizes["lga"])}
    images = fill(rng, (B, V, C, g * p, g * p), family)
    return {"images": images, "weights": weights}, options | given(sizes, "kind", "return_blocks")


def cluster_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens whose clusters hang by no thread, or come in equal pairs."""
    B, N, D, M, k = (sizes[name] for name in ("B", "N", "D", "M", "k"))
    if sizes.get("twins", False):
        x = np.repeat(2.0 * rng.integers(-3, 4, (B, N // 2, D)), 2, axis=1)
        x[..., 0] = np.repeat(4.0 * np.arange(N // 2) ** 2, 2)  # pairs differ from each other
    else:
        drawn = [clear_tokens(rng, lambda: fill(rng, (N, D), family), M, k) for _ in range(B)]
        x = np.stack(drawn) if drawn else np.zeros((0, N, D))
    arrays = {"x": x}
    if sizes.get("noisy", False):
        arrays["noise"] = rng.permuted(np.linspace(0.0, 0.96, N)[None].repeat(B, axis=0), axis=1)
    return arrays, {"num_clusters": M, "k": k}


def merger_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens and weights of the merger; what is clustered are the normalised tokens."""
    B, N, D, M, k = (sizes[name] for name in ("B", "N", "D", "M", "k"))
    norm1 = norm_weights(rng, D)
    attn = attention_weights(rng, D, biases=False, signature=False)
    score = (0.5 * rng.standard_normal((D, 1)), 0.3 * rng.standard_normal(1))
    weights = MergerWeights(*norm1, *score, attn, *norm_weights(rng, D), *mlp_weights(rng, D))
    drawn = [clear_tokens(rng, lambda: fill(rng, (N, D), family), M, k, norm=norm1) for _ in range(B)]
    x = np.stack(drawn) if drawn else np.zeros((0, N, D))
    options = {"num_clusters": M, "k": k, "num_heads": sizes["H"]} | given(sizes, "scale", "eps")
    return {"x": x, "weights": weights}, options


def spread_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a grid and the kernels of a transposed convolution."""
    x = fill(rng, (sizes["B"], sizes["C"], *sizes["cells"]), family)
    w = rng.standard_normal((sizes["C"], sizes["O"], *sizes["taps"])) / np.sqrt(sizes["C"])
    return {"x": x, "w": w}, given(sizes, "stride", "padding")


def fold_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a grid."""
    return {"x": fill(rng, (sizes["B"], sizes["C"], *sizes["cells"]), family)}, {"r": sizes["r"]}


def query_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a context, queries and their blocks."""
    D = sizes["D"]
    arrays = {
        "context": fill(rng, (sizes["B"], sizes["M"], D), family),
        "queries": rng.standard_normal((sizes["Q"], D)),
        "blocks": tuple(query_block(rng, D) for _ in range(sizes["depth"])),
    }
    return arrays, {"num_heads": sizes["H"]}


def decoder_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens and weights of the up-sampling decoder."""
    widths = sizes["widths"]
    tokens = fill(rng, (sizes["B"], sizes["n"] ** 3, widths[0]), family)
    weights = upsampling_weights(rng, widths, sizes.get("depth", 1))
    return {"tokens": tokens, "weights": weights}, {"num_heads": sizes["H"]} | given(sizes, "return_stages")


def dice_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw probabilities and a truth, whole numbers or not."""
    shape = (sizes["B"], *sizes["cells"])
    pred = np.clip(np.abs(fill(rng, shape, family)), 0.0, 1.0)
    target = rng.random(shape) if sizes.get("soft", False) else (rng.random(shape) < 0.4).astype(float)
    return {"pred": pred, "target": target}, given(sizes, "smooth", "reduction")


@st.composite
def attention_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of grouped attention: any stride that divides the grid, any kind."""
    s, t, H = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    sizes = {"B": draw(st.integers(0, 2)), "V": draw(st.integers(1, 3)), "g": s * t, "s": s}
    extra: dict[str, Any] = draw(
        st.sampled_from([{}, {"kind": "short"}, {"kind": "token"}, {"kind": "full"}, {"scale": 0.8}])
    )
    return {**sizes, "H": H, "D": H * draw(st.integers(1, 3)), **extra}


group_sizes = attention_sizes


@st.composite
def encoder_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of the encoder."""
    depth = draw(st.integers(0, 2))
    lga = draw(st.sets(st.integers(0, 2), max_size=2))
    size = {"C": draw(st.integers(1, 3)), "p": draw(st.integers(1, 3)), "depth": depth, "lga": sorted(lga)}
    return {"B": draw(st.integers(0, 2)), "V": draw(st.integers(1, 2)), "g": 4, "s": 2, "H": 2, "D": 4, **size}


@st.composite
def cluster_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of clusterings."""
    N = draw(st.integers(1, 8))
    sizes = {"M": draw(st.integers(1, N)), "k": draw(st.integers(1, N)), "D": draw(st.integers(2, 5))}
    return {"B": draw(st.integers(0, 2)), "N": N, **sizes}


merger_sizes = st.builds(lambda sizes, d: {**sizes, "H": 2, "D": 2 * d}, cluster_sizes(), st.integers(2, 3))
spread_sizes = st.fixed_dictionaries(
    {
        "B": st.integers(0, 2),
        "C": st.integers(1, 3),
        "O": st.integers(1, 3),
        "cells": st.tuples(*[st.integers(1, 3)] * 3),
        "taps": st.tuples(*[st.integers(3, 4)] * 3),
    },
    optional={"stride": st.integers(1, 3), "padding": st.integers(0, 1)},
)
fold_sizes = st.builds(
    lambda B, C, n, r: {"B": B, "C": C, "cells": tuple(r * m for m in n), "r": r},
    st.integers(0, 2),
    st.integers(1, 3),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.integers(1, 3),
)
query_sizes = st.fixed_dictionaries(
    {
        "B": st.integers(0, 2),
        "M": st.integers(1, 6),
        "Q": st.integers(1, 5),
        "D": st.sampled_from([4, 6]),
        "H": st.integers(1, 2),
        "depth": st.integers(1, 2),
    }
)
decoder_sizes = st.fixed_dictionaries(
    {
        "B": st.integers(0, 1),
        "n": st.just(1),
        "widths": st.sampled_from([(4, 2, 1, 1), (6, 4, 2, 1)]),
        "H": st.sampled_from([1, 2]),
    }
)
dice_sizes = st.fixed_dictionaries(
    {"B": st.integers(1, 3), "cells": st.tuples(*[st.integers(1, 3)] * 3)},
    optional={
        "soft": st.booleans(),
        "smooth": st.sampled_from([1.0, 0.5]),
        "reduction": st.sampled_from(["mean", "none"]),
    },
)

ATTENTION = Recipe("long_range_grouping_attention", attention_case, FAMILIES)
GROUP = Recipe("group_tokens", group_case, ("normal", "tied"))
UNGROUP = Recipe("ungroup_tokens", ungroup_case, ("normal", "tied"))
BLOCK = Recipe("lrgt_encoder_block", block_case, FAMILIES)
ENCODER = Recipe("lrgt_encoder", encoder_case, ("normal", "peaky"))
CLUSTERS = Recipe("density_peaks_clusters", cluster_case, ("normal", "uniform", "peaky"))
MERGER = Recipe("similar_token_merger", merger_case, ("normal", "uniform", "peaky"))
SPREAD = Recipe("conv_transpose3d", spread_case, PLAIN)
FOLD = Recipe("fold_voxels", fold_case, ("normal", "tied"))
QUERIES = Recipe("decoder_queries", query_case, PLAIN)
DECODER = Recipe("progressive_decoder", decoder_case, ("normal",))
DICE = Recipe("dice_loss", dice_case, ("normal", "uniform", "tiny"))
