"""LRGT against vectors from the authors' own modules."""

import numpy as np

from refattn.layers.lrgt import GroupAttentionWeights, intra_view_attention, long_range_grouping_attention
from refattn.layers.lrgt_attention import BlockWeights, affine
from refattn.layers.lrgt_decoder import (
    QueryBlockWeights,
    UpConvWeights,
    UpsamplingWeights,
    decoder_queries,
    progressive_decoder,
)
from refattn.layers.lrgt_encoder import EncoderWeights, lrgt_encoder, lrgt_encoder_block
from refattn.layers.lrgt_loss import dice_loss
from refattn.layers.lrgt_merger import NOISE, MergerWeights, similar_token_merger
from refattn.primitives.convolution import depthwise_conv2d


def close(left, right, tolerance=1e-12):
    np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


def attention_weights(case):
    names = ("W_q", "W_k", "W_v", "W_o", "b_o", "b_q", "b_k", "b_v", "ifs_weight", "ifs_bias")
    return GroupAttentionWeights(*(case.get(name) for name in names))


def identity_output(weights):
    D = len(weights.b_o)
    return weights._replace(w_o=np.eye(D), b_o=np.zeros(D))


def lga_attention(case):
    weights, heads, scale = attention_weights(case), int(case["num_heads"]), float(case["scale"])
    views, stride = int(case["num_views"]), int(case["stride"])
    options = {"num_views": views, "num_heads": heads, "stride": stride, "scale": scale}
    close(long_range_grouping_attention(case["X"], weights, **options), case["Y"])
    bare = identity_output(weights)
    close(long_range_grouping_attention(case["X"], bare, **options), case["pre_projection"])
    v = affine(case["X"], weights.w_v, weights.b_v).reshape(-1, 14, 14, len(weights.b_o))
    close(np.moveaxis(depthwise_conv2d(v, weights.ifs_w, weights.ifs_b), -1, 1), case["ifs"])


def self_attention(case):
    weights, options = attention_weights(case), {"num_heads": int(case["num_heads"]), "scale": float(case["scale"])}
    close(intra_view_attention(case["X"], weights, **options), case["Y"])
    close(intra_view_attention(case["X"], identity_output(weights), **options), case["pre_projection"])


def mlp_weights(case):
    return (case[name] for name in ("W_fc1", "b_fc1", "W_fc2", "b_fc2"))


def encoder_block(case):
    norm1, norm2 = ((case[f"norm{i}_weight"], case[f"norm{i}_bias"]) for i in (1, 2))
    weights = BlockWeights(*norm1, attention_weights(case), *norm2, *mlp_weights(case))
    y = lrgt_encoder_block(
        case["X"],
        weights,
        num_views=int(case["num_views"]),
        num_heads=int(case["num_heads"]),
        use_lga=bool(case["lga"]),
        stride=int(case["stride"]),
        scale=float(case["scale"]),
        eps=float(case["norm_eps"]),
    )
    close(y, case["Y"])


def module(case, prefix):
    """Return a function: the parameter of this name below ``prefix``, in float64, or None where there is none."""

    def at(name):
        value = case.get(f"param/{prefix}{name}")
        return None if value is None else value * case.get(f"scale/{prefix}{name}", 1.0)

    return at


def linear(at, name):
    return at(f"{name}/weight").T, at(f"{name}/bias")


def attention_module(at, name):
    maps = [linear(at, f"{name}/{part}") for part in ("to_q", "to_k", "to_v")]
    w_o, b_o = linear(at, f"{name}/proj")
    ifs_w = at(f"{name}/IFS/weight")
    ifs_w = None if ifs_w is None else ifs_w[:, 0]
    return GroupAttentionWeights(*(w for w, _ in maps), w_o, b_o, *(b for _, b in maps), ifs_w, at(f"{name}/IFS/bias"))


def norm(at, name):
    return at(f"{name}/weight"), at(f"{name}/bias")


def block_module(case, prefix):
    at = module(case, prefix)
    mlp = (*linear(at, "mlp/fc1"), *linear(at, "mlp/fc2"))
    return BlockWeights(*norm(at, "norm1"), attention_module(at, "attn"), *norm(at, "norm2"), *mlp)


def numbers(case, prefix):
    """Return the numbers of the blocks below ``prefix``."""
    begin = f"param/{prefix}"
    return sorted({int(name[len(begin) :].split("/")[0]) for name in case if name.startswith(begin)})


def encoder(case):
    at = module(case, "")
    blocks = tuple(block_module(case, f"blocks/{i}/") for i in numbers(case, "blocks/"))
    position = at("pos_embed")[0, 2:]
    patch = (at("patch_embed/proj/weight"), at("patch_embed/proj/bias"))
    weights = EncoderWeights(*patch, position, blocks, *norm(at, "norm"))
    options = {name: int(case[name]) for name in ("num_heads", "stride") if name in case}
    y, outputs = lrgt_encoder(case["X"], weights, lga_blocks=(1, 3), **options, return_blocks=True)
    close(outputs, case["block_outputs"].reshape(outputs.shape), 1e-11)
    close(y, case["Y"].reshape(y.shape), 1e-11)


def stm_block(case):
    norm1, norm2 = ((case[f"norm{i}_weight"], case[f"norm{i}_bias"]) for i in (1, 2))
    score = (case["w_score"], case["b_score"])
    weights = MergerWeights(*norm1, *score, attention_weights(case), *norm2, *mlp_weights(case))
    assert NOISE == 1e-6
    y, trace = similar_token_merger(
        case["X"],
        weights,
        case["density_noise"],
        num_clusters=int(case["out_tokens"]),
        k=int(case["k"]),
        num_heads=int(case["num_heads"]),
        scale=float(case["scale"]),
        eps=float(case["norm_eps"]),
        return_trace=True,
    )
    np.testing.assert_array_equal(trace.clusters.labels, case["cluster_index"])
    close(trace.normed, case["normed"])
    close(trace.score, case["token_score"][..., 0])
    close(trace.merged, case["merged"])
    close(y, case["Y"])


def decoder_queries_case(case):
    def block(i):
        at = module(case, f"blocks/{i}/")
        norms = [norm(at, f"norm{j}") for j in (1, 2, 3)]
        attentions = [attention_module(at, name) for name in ("attn1", "attn2")]
        mlp = (*linear(at, "mlp/fc1"), *linear(at, "mlp/fc2"))
        return QueryBlockWeights(*norms[0], attentions[0], *norms[1], attentions[1], *norms[2], *mlp)

    blocks = tuple(map(block, numbers(case, "blocks/")))
    heads = int(case["num_heads"]) if "num_heads" in case else 3
    close(decoder_queries(case["X"], module(case, "")("emb/weight"), blocks, num_heads=heads), case["Y"])


def decoder(case):
    def unit(i):
        return tuple(block_module(case, f"blocks{i}/{j}/") for j in numbers(case, f"blocks{i}/"))

    def upconv(i):
        at = module(case, f"upconv{i}/")
        statistics = (at("1/running_mean"), at("1/running_var"))
        return UpConvWeights(at("0/weight"), *statistics, at("1/weight"), at("1/bias"))

    grown = [part for i in (1, 2, 3) for part in (unit(i), upconv(i))]
    weights = UpsamplingWeights(*grown, unit(4), module(case, "upconv4/")("0/weight"))
    y, stages = progressive_decoder(
        case["X"],
        weights,
        num_heads=int(case["num_heads"]),
        eps=float(case["norm_eps"]),
        bn_eps=float(case["bn_eps"]),
        return_stages=True,
    )
    for name, stage in stages._asdict().items():
        close(stage, case[name])
    close(y, case["Y"])


def dice(case):
    close(dice_loss(case["X"], case["target"], reduction="none"), case["per_sample"])
    close(dice_loss(case["X"], case["target"]), case["Y"])


KINDS = {
    "lga_attention": lga_attention,
    "self_attention": self_attention,
    "encoder_block": encoder_block,
    "encoder": encoder,
    "stm_block": stm_block,
    "decoder_queries": decoder_queries_case,
    "decoder": decoder,
    "dice_loss": dice,
}


def test_official_modules_agree(oracle):
    """Every vector of the official code is met to 1e-12, the encoder's to 1e-11; clusters are the same."""
    wrong = {}
    for path in oracle("10-long-range-grouping"):
        with np.load(path) as file:
            case = dict(file)
        try:
            KINDS[str(case["kind"])](case)
        except AssertionError as error:
            wrong[path.stem] = str(error)
    assert not wrong
