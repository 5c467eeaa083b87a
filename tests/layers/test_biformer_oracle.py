"""BiFormer against the vectors of the released modules."""

import itertools

import numpy as np
import pytest

from refattn.layers.biformer import BRAWeights, bi_level_routing_attention
from refattn.layers.biformer_block import BlockWeights, biformer_block
from refattn.layers.biformer_model import BiFormerConfig, BiFormerWeights, ConvNormWeights, biformer_model
from refattn.layers.biformer_nchw import nchw_bra
from refattn.layers.biformer_routing import regional_attention
from refattn.primitives.regions import region_merge, region_partition

SHEET = "15-biformer"
KINDS = ("bra_nhwc", "bra_nchw", "regional_attention", "biformer_block", "biformer_model")


def of_kind(paths, kind):
    cases = [dict(np.load(path)) for path in paths]
    cases = [case for case in cases if str(case["kind"]) == kind]
    if not cases:
        pytest.skip(f"no vector of kind {kind} beside this checkout")
    return cases


def value(case, *names, default=None):
    """Return the first of the named settings that the vector holds, as a Python value."""
    found = next((case[name] for name in names if name in case), default)
    return found.item() if isinstance(found, np.ndarray) and found.ndim == 0 else found


def layer_weights(case):
    names = ("W_qkv", "b_qkv", "W_o", "b_o", "lepe_weight", "lepe_bias", "W_r", "b_r")
    return BRAWeights(*(case.get(name) for name in names))


def common(case):
    return {name: value(case, name) for name in ("num_heads", "n_win", "topk", "scale")}


def test_every_kind_is_known(oracle):
    """No vector is of a kind that these tests pass over."""
    assert {str(np.load(path)["kind"]) for path in oracle(SHEET)} <= set(KINDS)


def test_channels_last_layer(oracle):
    """The layer equals `BiLevelRoutingAttention`: output, routing, descriptors and attention."""
    for case in of_kind(oracle(SHEET), "bra_nhwc"):
        y, aux = bi_level_routing_attention(
            case["X"],
            layer_weights(case),
            **common(case),
            kv_pool=value(case, "kv_downsample_mode"),
            kv_ratio=value(case, "kv_downsample_ratio"),
            kv_per_region=value(case, "kv_per_win"),
            soft_routing=value(case, "soft_routing"),
            diff_routing=value(case, "param_routing"),
            pad_mode="input" if value(case, "auto_pad") else "none",
            return_aux=True,
        )
        np.testing.assert_allclose(y, case["Y"], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(aux.region_index, case["routing_index"])
        np.testing.assert_allclose(aux.region_weight, case["routing_weights"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(aux.q_regions, case["q_region"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(aux.k_regions, case["k_region"], rtol=0, atol=1e-12)
        by_region = np.moveaxis(aux.attn, 1, 2)  # (B, R, M, h w, k n_kv)
        np.testing.assert_allclose(
            by_region.reshape(case["attn_weights"].shape), case["attn_weights"], rtol=0, atol=1e-12
        )


def test_channels_first_layer(oracle):
    """The channels-first layer equals `nchwBRA`, where the regions divide the map and where they do not."""
    for case in of_kind(oracle(SHEET), "bra_nchw"):
        y, aux = nchw_bra(case["X"], layer_weights(case), **common(case), return_aux=True)
        np.testing.assert_allclose(y, case["Y"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(aux.attn, case["attn_weights"], rtol=0, atol=1e-12)
        if "routing_index" in case:
            np.testing.assert_array_equal(aux.region_index, case["routing_index"])


def test_bare_regional_attention(oracle):
    """The bare operator takes a graph for each head, and grids of queries and keys that differ."""
    for case in of_kind(oracle(SHEET), "regional_attention"):
        graph = case["region_graph"]
        q, k, v = (np.moveaxis(case[name], 1, -1) for name in "XKV")
        size = region_size(case, q, graph.shape[2])
        keys_per_region = case["attn_weights"].shape[-1] // graph.shape[-1] if "attn_weights" in case else None
        kv_size = key_region_size(case, k, size, keys_per_region)
        out, attn = regional_attention(
            tokens(q, size),
            tokens(k, kv_size),
            tokens(v, kv_size),
            graph,
            num_heads=graph.shape[1],
            scale=value(case, "scale"),
        )
        rows, columns = q.shape[1] // size[0], q.shape[2] // size[1]
        image = region_merge(out.reshape(len(q), rows * columns, *size, -1), n_win=(rows, columns))
        np.testing.assert_allclose(np.moveaxis(image, -1, 1), case["Y"], rtol=0, atol=1e-12)
        if "attn_weights" in case:
            np.testing.assert_allclose(attn, case["attn_weights"].reshape(attn.shape), rtol=0, atol=1e-12)


def pair(size):
    return tuple(int(side) for side in np.broadcast_to(size, 2))


def region_size(case, q, regions):
    given = value(case, "region_size", "q_region_size")
    side = round(regions**0.5)
    return pair((q.shape[1] // side, q.shape[2] // side) if given is None else given)


def key_region_size(case, k, size, keys_per_region):
    given = value(case, "kv_region_size")
    if given is not None:
        return pair(given)
    if keys_per_region is None or keys_per_region == size[0] * size[1]:
        return size
    side = round((k.shape[1] * k.shape[2] / keys_per_region) ** 0.5)
    return k.shape[1] // side, k.shape[2] // side


def tokens(x, size):
    regions = region_partition(x, n_win=(x.shape[1] // size[0], x.shape[2] // size[1]))
    return regions.reshape(*regions.shape[:2], -1, x.shape[-1])


def parameters(case, prefix="param/"):
    return {name.removeprefix(prefix): array for name, array in case.items() if name.startswith(prefix)}


def attention_weights(p):
    lepe = (p["attn/lepe/weight"][:, 0], p["attn/lepe/bias"]) if "attn/lepe/weight" in p else (None, None)
    if "attn/qkv/qkv/weight" in p:
        output = (p["attn/wo/weight"].T, p["attn/wo/bias"]) if "attn/wo/weight" in p else (None, None)
        routing = (p["attn/router/emb/weight"].T, p["attn/router/emb/bias"]) if "attn/router/emb/weight" in p else ()
        return BRAWeights(p["attn/qkv/qkv/weight"].T, p["attn/qkv/qkv/bias"], *output, *lepe, *routing)
    if "attn/qkv/weight" in p:
        return BRAWeights(
            p["attn/qkv/weight"].T, p.get("attn/qkv/bias"), p["attn/proj/weight"].T, p["attn/proj/bias"], *lepe
        )
    first, last = p["attn/1/weight"][:, :, 0, 0].T, p["attn/3/weight"][:, :, 0, 0].T
    return BRAWeights(first, p["attn/1/bias"], last, p["attn/3/bias"], p["attn/2/weight"][:, 0], p["attn/2/bias"])


def block_weights(p):
    def depthwise(name):
        return (p[f"{name}/weight"][:, 0], p[f"{name}/bias"]) if f"{name}/weight" in p else (None, None)

    return BlockWeights(
        attention_weights(p),
        *(p["norm1/weight"], p["norm1/bias"], p["norm2/weight"], p["norm2/bias"]),
        *(p["mlp/0/weight"].T, p["mlp/0/bias"], p["mlp/3/weight"].T, p["mlp/3/bias"]),
        *depthwise("pos_embed"),
        *depthwise("mlp/1/dwconv"),
        *(p.get("gamma1"), p.get("gamma2")),
    )


def test_blocks(oracle):
    """A block equals `Block`: routed, dense, pre-norm, post-norm, with layer scale and a convolution in the MLP."""
    for case in of_kind(oracle(SHEET), "biformer_block"):
        options = {
            "num_heads": value(case, "num_heads", default=8),
            "n_win": value(case, "n_win", default=7),
            "kv_pool": value(case, "kv_downsample_mode", default="identity"),
            "kv_ratio": value(case, "kv_downsample_ratio", default=4),
            "kv_per_region": value(case, "kv_per_win", default=4),
            "soft_routing": value(case, "soft_routing", default=False),
            "pad_mode": "input" if value(case, "auto_pad", default=False) else "none",
        }
        y = biformer_block(
            np.moveaxis(case["X"], 1, -1),
            block_weights(parameters(case)),
            topk=value(case, "topk"),
            pre_norm=value(case, "pre_norm", default=True),
            eps=value(case, "norm_eps", default=1e-6),
            **options,
        )
        np.testing.assert_allclose(np.moveaxis(y, -1, 1), case["Y"], rtol=0, atol=1e-12)


def norm_of(p, name):
    return tuple(p[f"{name}/{part}"] for part in ("running_mean", "running_var", "weight", "bias"))


def conv_norm(p, conv, norm):
    return ConvNormWeights(p[f"{conv}/weight"], p[f"{conv}/bias"], *norm_of(p, norm))


def model_weights(p):
    embeddings = [(conv_norm(p, "downsample_layers/0/0", "downsample_layers/0/1"),)]
    embeddings[0] += (conv_norm(p, "downsample_layers/0/3", "downsample_layers/0/4"),)
    embeddings += [(conv_norm(p, f"downsample_layers/{i}/0", f"downsample_layers/{i}/1"),) for i in (1, 2, 3)]
    places = sorted({tuple(map(int, name.split("/")[1:3])) for name in p if name.startswith("stages/")})
    stages = [[], [], [], []]
    for i, j in places:
        prefix = f"stages/{i}/{j}/"
        own = {name.removeprefix(prefix): array for name, array in p.items() if name.startswith(prefix)}
        stages[i].append(block_weights(own))
    head = (p["head/weight"].T, p["head/bias"])
    return BiFormerWeights(tuple(embeddings), tuple(map(tuple, stages)), *norm_of(p, "norm"), *head)


def configurations(case, weights):
    """Yield the configurations that the vector allows: one, if it stores every setting."""
    depth, width = tuple(map(len, weights.stages)), tuple(len(stage[0].norm1_w) for stage in weights.stages)
    divisors = [d for d in (8, 16, 32, 4, 2, 1) if all(w % d == 0 for w in width)]
    for n_win in [value(case, "n_win")] if "n_win" in case else (2, 1, 4):
        stored = value(case, "topks", "topk")
        guesses = itertools.product(range(1, n_win * n_win + 1), repeat=3)
        for topk in ((*guess, -2) for guess in guesses) if stored is None else (tuple(map(int, stored)),):
            for head_dim in [value(case, "head_dim")] if "head_dim" in case else divisors:
                yield BiFormerConfig(depth=depth, width=width, topk=topk, n_win=n_win, head_dim=head_dim)


def agrees(case, weights, config):
    try:
        pad_mode = "input" if value(case, "auto_pad", default=False) else "none"
        logits, maps = biformer_model(np.moveaxis(case["X"], 1, -1), weights, config=config, pad_mode=pad_mode)
    except ValueError:
        return False
    pairs = [(np.moveaxis(stage, -1, 1), case[f"stage{i}_out"]) for i, stage in enumerate(maps)] + [(logits, case["Y"])]
    return all(np.abs(ours - theirs).max() <= 1e-11 for ours, theirs in pairs)


def test_whole_model(oracle):
    """The four-stage model gives the released model's logits and stage outputs."""
    for case in of_kind(oracle(SHEET), "biformer_model"):
        weights = model_weights(parameters(case))
        assert any(agrees(case, weights, config) for config in configurations(case, weights))
