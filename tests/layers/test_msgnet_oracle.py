"""MSGNet against vectors from the authors' own model."""

import numpy as np
import pytest

from refattn.layers.msgnet import (
    adaptive_adjacency,
    graph_block,
    identify_scales,
    msgnet_forecast,
    scale_graph_block,
    segment_attention,
)
from refattn.layers.msgnet_embedding import calendar_tables, sinusoid_table
from refattn.layers.msgnet_scales import fold_segments
from refattn.layers.msgnet_weights import (
    AttentionBlockWeights,
    EmbeddingWeights,
    GraphWeights,
    HeadWeights,
    MSGNetWeights,
    ScaleGraphWeights,
)
from refattn.primitives.norms import layer_norm

CALENDAR = ("month", "day", "weekday", "hour", "minute")


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-10)


def pair(case, name):
    return case[f"w.{name}.weight"], case[f"w.{name}.bias"]


def graph_weights(case, name):
    start_w, start_b = pair(case, f"{name}.start_conv")
    mix_w, mix_b = pair(case, f"{name}.gconv1.mlp.mlp")
    end_w, end_b = pair(case, f"{name}.end_conv")
    nodes = case[f"w.{name}.nodevec1"], case[f"w.{name}.nodevec2"]
    convolutions = start_w[:, 0, :, 0], start_b, mix_w[:, :, 0, 0], mix_b, end_w[:, :, 0], end_b
    return GraphWeights(*nodes, *convolutions, *pair(case, f"{name}.linear"), *pair(case, f"{name}.norm"))


def attention_weights(case, name):
    maps = [m for part in ("query", "key", "value", "out") for m in pair(case, f"{name}.attention.{part}_projection")]
    (w_1, b_1), (w_2, b_2) = pair(case, f"{name}.conv1"), pair(case, f"{name}.conv2")
    mlp = w_1[:, :, 0], b_1, w_2[:, :, 0], b_2
    return AttentionBlockWeights(*maps, *pair(case, f"{name}.norm1"), *mlp, *pair(case, f"{name}.norm2"))


def block_weights(case, layer):
    graphs = tuple(graph_weights(case, f"model.{layer}.gconv.{i}") for i in range(int(case["cfg_top_k"])))
    return ScaleGraphWeights(graphs, attention_weights(case, f"model.{layer}.att0"), *pair(case, f"model.{layer}.norm"))


def embedding_weights(case):
    calendar = "w.enc_embedding.temporal_embedding"
    if "x_mark" not in case:
        marks = None
    elif str(case["cfg_embed"]) == "timeF":
        marks = case[f"{calendar}.embed.weight"]
    else:
        columns = CALENDAR[: case["x_mark"].shape[2]]
        marks = tuple(case[f"{calendar}.{column}_embed.emb.weight"] for column in columns)
    conv = case["w.enc_embedding.value_embedding.tokenConv.weight"]
    return EmbeddingWeights(conv, case["w.enc_embedding.position_embedding.pe"][0], marks)


def model_weights(case):
    names = ["seq2pred.seq2pred"]
    if bool(case["cfg_individual"]):
        names = [f"seq2pred.seq2pred.{i}" for i in range(case["x_enc"].shape[2])]
    maps = [pair(case, name) for name in names]
    time = (np.stack(parts) for parts in zip(*maps, strict=True)) if bool(case["cfg_individual"]) else maps[0]
    head = HeadWeights(*pair(case, "projection"), *time)
    blocks = tuple(block_weights(case, layer) for layer in range(int(case["cfg_e_layers"])))
    return MSGNetWeights(embedding_weights(case), blocks, *pair(case, "layer_norm"), head)


def options(case):
    return {
        "n_heads": int(case["cfg_n_heads"]),
        "depth": int(case["cfg_gcn_depth"]),
        "alpha": float(case["cfg_propalpha"]),
    }


def marks_of(case):
    if "x_mark" not in case:
        return None
    return case["x_mark"] if str(case["cfg_embed"]) == "timeF" else case["x_mark"].astype(np.int64)


def check_block(case, x, weights, layer):
    """Compare every inside of one block; return its output."""

    def official(name):
        return case[f"inter_layer{layer}_{name}"]

    settings = options(case)
    selection = identify_scales(x, k=len(weights.graphs))
    close(selection.spectrum, official("mean_amplitude"))
    np.testing.assert_array_equal(selection.freqs, official("freqs"))
    np.testing.assert_array_equal(selection.periods, official("periods"))
    close(selection.amplitudes, official("scale_amplitudes"))
    inner = x
    for i, (graph, period) in enumerate(zip(weights.graphs, selection.periods, strict=True)):
        close(adaptive_adjacency(graph.e1, graph.e2), official(f"adj{i}"))
        inner = graph_block(inner, graph, depth=settings["depth"], alpha=settings["alpha"])
        close(inner, official(f"gconv{i}_out"))
        z = fold_segments(inner, period=period)
        close(z, official(f"scale{i}_attn_block_in"))
        close(
            segment_attention(z, weights.attention, n_heads=settings["n_heads"]), official(f"scale{i}_attn_block_out")
        )
    out, details = scale_graph_block(x, weights, **settings, return_details=True)
    close(details.scale_weights, official("scale_softmax"))
    close(out, official("block_out"))
    return out


@pytest.mark.filterwarnings("error")
def test_official_model_agrees(oracle):
    """Every vector of the official model is met to 1e-10: embedding, scales, graphs, attention, blocks, forecast."""
    for path in oracle("07-msgnet"):
        with np.load(path) as case:
            weights = model_weights(case)
            out, details = msgnet_forecast(case["x_enc"], weights, marks_of(case), **options(case), return_details=True)
            close(out, case["output"])
            close(details.embedding, case["inter_embedding"])
            x = details.embedding
            for layer, block in enumerate(weights.blocks):
                x = layer_norm(check_block(case, x, block, layer), weights.norm_w, weights.norm_b, eps=1e-5)


def test_official_tables_are_ours(oracle):
    """Position and calendar tables are those of the released code, which makes them in float32."""
    for path in oracle("07-msgnet"):
        with np.load(path) as case:
            weights = embedding_weights(case)
            np.testing.assert_allclose(sinusoid_table(*weights.positions.shape), weights.positions, rtol=0, atol=1e-6)
            if isinstance(weights.marks, tuple):
                ours = calendar_tables(weights.positions.shape[1], minutes=len(weights.marks) == 5)
                for left, right in zip(ours, weights.marks, strict=True):
                    np.testing.assert_allclose(left, right, rtol=0, atol=1e-6)
