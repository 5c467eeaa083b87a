"""Properties of bi-level routing attention, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.layers.biformer import BRAWeights, bi_level_routing_attention
from refattn.layers.biformer_block import BlockWeights, biformer_block, conv_mixer, dense_attention
from refattn.layers.biformer_nchw import nchw_bra
from refattn.layers.biformer_routing import (
    bra_dense_mask,
    gather_regions,
    pool_regions,
    region_routing,
    regional_attention,
)
from refattn.primitives.convolution import depthwise_conv2d
from refattn.primitives.regions import region_merge, region_partition


def weights_for(rng, C, *, Cq=None, ks=0, output=True):
    Cq = Cq or C
    return BRAWeights(
        rng.standard_normal((C, 2 * Cq + C)) / C**0.5,
        rng.standard_normal(2 * Cq + C),
        rng.standard_normal((C, C)) / C**0.5 if output else None,
        rng.standard_normal(C) if output else None,
        rng.standard_normal((C, ks, ks)) if ks else None,
        rng.standard_normal(C) if ks else None,
    )


def masked_attention(x, weights, mask, num_heads):
    """Dense multi-head attention under a mask, head by head: the naive oracle."""
    B, H, W, C = x.shape
    u = x.reshape(B, H * W, C) @ weights.w_qkv + weights.b_qkv
    Cq = (u.shape[-1] - C) // 2
    out = np.zeros((B, H * W, C))
    for b, m in np.ndindex(B, num_heads):
        q, k = (u[b, :, i * Cq : (i + 1) * Cq].reshape(H * W, num_heads, -1)[:, m] for i in range(2))
        logits = np.where(mask[b], q @ k.T / Cq**0.5, -np.inf)
        P = np.exp(logits - logits.max(axis=-1, keepdims=True))
        v = u[b, :, 2 * Cq :].reshape(H * W, num_heads, -1)[:, m]
        out[b].reshape(H * W, num_heads, -1)[:, m] = P / P.sum(axis=-1, keepdims=True) @ v
    return out.reshape(B, H, W, C) @ weights.w_o + weights.b_o


sizes = {
    "S": st.integers(1, 3),
    "h": st.integers(1, 3),
    "w": st.integers(1, 3),
    "M": st.integers(1, 2),
    "seed": st.integers(0, 999),
}


@given(**sizes, data=st.data())
def test_it_is_dense_attention_under_a_mask(S, h, w, M, seed, data):
    """For any topk it is dense attention in which a query sees the keys of the regions that its region chose."""
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((2, S * h, S * w, 4 * M)), weights_for(rng, 4 * M, Cq=3 * M)
    topk = data.draw(st.integers(1, S * S))
    y, aux = bi_level_routing_attention(x, weights, num_heads=M, n_win=S, topk=topk, return_aux=True)
    mask = bra_dense_mask(aux.region_index, n_win=S, height=S * h, width=S * w)
    assert mask.sum(axis=-1).min() == mask.sum(axis=-1).max() == topk * h * w
    np.testing.assert_allclose(y, masked_attention(x, weights, mask, M), atol=1e-12)


@given(**sizes)
def test_all_regions_are_dense_attention(S, h, w, M, seed):
    """With every region chosen, S makes no difference and the result is dense attention."""
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((1, S * h, S * w, 4 * M)), weights_for(rng, 4 * M, ks=3)
    y = bi_level_routing_attention(x, weights, num_heads=M, n_win=S, topk=S * S)
    single = bi_level_routing_attention(x, weights, num_heads=M, n_win=1, topk=1)
    np.testing.assert_allclose(y, single, atol=1e-12)
    bare = weights._replace(lepe_w=None, lepe_b=None)
    everything = np.ones((1, S * h * S * w, S * h * S * w), dtype=bool)
    dense = masked_attention(x, bare, everything, M)
    values = (x @ weights.w_qkv + weights.b_qkv)[..., -4 * M :]
    local = depthwise_conv2d(values, weights.lepe_w, weights.lepe_b) @ weights.w_o
    np.testing.assert_allclose(single, dense + local, atol=1e-12)


@given(**sizes)
def test_regions_and_tokens_may_move(S, h, w, M, seed):
    """Without local enhancement, moving regions as blocks or tokens inside regions moves the output alike."""
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((1, S * h, S * w, 2 * M)), weights_for(rng, 2 * M)
    options = {"num_heads": M, "n_win": S, "topk": max(1, S * S // 2)}
    regions, tokens = rng.permutation(S * S), rng.permutation(h * w)

    def move(image):
        cut = region_partition(image, n_win=S)[:, regions]
        shuffled = cut.reshape(1, S * S, h * w, -1)[:, :, tokens]
        return region_merge(shuffled.reshape(cut.shape), n_win=S)

    y = bi_level_routing_attention(x, weights, **options)
    np.testing.assert_allclose(bi_level_routing_attention(move(x), weights, **options), move(y), atol=1e-12)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 999))
def test_routing_grows_by_appending(R, Rk, C, seed):
    """The regions of k are the first of those of k + 1; their weights sum to 1 and do not increase."""
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, R, C)), rng.standard_normal((2, Rk, C))
    index, _ = region_routing(q, k, topk=Rk)
    for topk in range(1, Rk + 1):
        fewer, weight = region_routing(q, k, topk=topk)
        np.testing.assert_array_equal(fewer, index[..., :topk])
        np.testing.assert_allclose(weight.sum(axis=-1), 1.0, atol=1e-14)
        assert np.all(np.diff(weight, axis=-1) <= 0)


def test_routing_ignores_the_scale_of_queries_but_not_their_origin():
    """Multiplying all mean queries by a positive number keeps the choice; adding a vector to all changes it."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((1, 9, 4)), rng.standard_normal((1, 9, 4))
    index, _ = region_routing(q, k, topk=3)
    np.testing.assert_array_equal(region_routing(3.7 * q, k, topk=3)[0], index)
    assert np.any(region_routing(q + 5.0 * rng.standard_normal(4), k, topk=3)[0] != index)


def test_equal_logits_choose_the_first_regions():
    """A constant map ties every logit; the lowest regions are taken, in order."""
    rng = np.random.default_rng(0)
    x, weights = np.full((1, 6, 6, 4), 0.5), weights_for(rng, 4)
    _, aux = bi_level_routing_attention(x, weights, num_heads=2, n_win=3, topk=4, return_aux=True)
    np.testing.assert_array_equal(aux.region_index, np.tile(np.arange(4), (1, 9, 1)))


@given(st.integers(2, 4), st.integers(1, 4), st.booleans(), st.integers(0, 999))
def test_attention_sums_to_one_and_stays_local(R, n, soft, seed):
    """Rows of attention sum to 1, and values of a region that was not chosen reach nobody."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, 1, R, n, 4))
    index, weight = region_routing(q.mean(axis=2), k.mean(axis=2), topk=R - 1)
    options = {"num_heads": 2, "region_weight": weight if soft else None}
    out, attn = regional_attention(q, k, v, index, **options)
    assert attn.shape == (1, 2, R, n, (R - 1) * n)
    np.testing.assert_allclose(attn.sum(axis=-1), 1.0, atol=1e-14)
    for region in range(R):
        left_out = ~np.any(index[0] == region, axis=-1)
        changed = v.copy()
        changed[:, region] += 100.0
        moved, _ = regional_attention(q, k, changed, index, **options)
        np.testing.assert_array_equal(moved[0, left_out], out[0, left_out])


def test_different_regions_choose_differently():
    """The sparsity adapts to the query: some regions read other regions than their neighbours do."""
    rng = np.random.default_rng(3)
    x, weights = rng.standard_normal((1, 8, 8, 8)), weights_for(rng, 8)
    _, aux = bi_level_routing_attention(x, weights, num_heads=2, n_win=4, topk=3, return_aux=True)
    assert len({tuple(sorted(row)) for row in aux.region_index[0].tolist()}) > 4


def test_one_token_per_region_is_token_level_top_k():
    """With regions of one token, every token attends to its k best keys over all channels."""
    rng = np.random.default_rng(4)
    x, weights = rng.standard_normal((1, 3, 3, 4)), weights_for(rng, 4)
    y = bi_level_routing_attention(x, weights, num_heads=2, n_win=3, topk=2)
    u = (x @ weights.w_qkv + weights.b_qkv).reshape(9, 12)
    logits = u[:, :4] @ u[:, 4:8].T
    mask = logits >= np.sort(logits, axis=-1)[:, -2:-1]
    np.testing.assert_allclose(y, masked_attention(x, weights, mask[None], 2), atol=1e-12)


@given(**sizes)
def test_channels_first_and_last_agree(S, h, w, M, seed):
    """Where the regions divide the map, the two layers are the same to the last bit."""
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((2, S * h, S * w, 4 * M)), weights_for(rng, 4 * M, ks=3)
    options = {"num_heads": M, "n_win": S, "topk": max(1, S * S - 1)}
    last = bi_level_routing_attention(x, weights, **options)
    for pad_mode in ("projected", "masked"):
        first = nchw_bra(np.moveaxis(x, -1, 1), weights, pad_mode=pad_mode, **options)
        np.testing.assert_array_equal(np.moveaxis(first, 1, -1), last)


def test_masked_padding_hides_what_is_not_there():
    """With pad_mode 'masked' a map with partial regions is dense attention under the mask of its true tokens."""
    rng = np.random.default_rng(5)
    x, weights = rng.standard_normal((1, 5, 7, 4)), weights_for(rng, 4)
    options = {"num_heads": 2, "n_win": 2, "topk": 3, "return_aux": True}
    y, aux = bi_level_routing_attention(x, weights, pad_mode="masked", **options)
    rows, columns = np.arange(5) // 2, np.arange(7) // 3
    region_of = (rows[:, None] * 3 + columns).ravel()
    chosen = (aux.region_index[..., None] == np.arange(9)).any(axis=-2)
    np.testing.assert_allclose(y, masked_attention(x, weights, chosen[:, region_of][:, :, region_of], 2), atol=1e-12)
    projected, _ = bi_level_routing_attention(x, weights, pad_mode="projected", **options)
    assert np.abs(projected - y).max() > 1e-3


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_pooling_to_full_size_is_identity(side, R, seed):
    """Adaptive pooling to the region's own size and pooling by ratio 1 change nothing."""
    kv = np.random.default_rng(seed).standard_normal((2, R, side, side, 3))
    flat = pool_regions(kv)
    for mode in ("ada_avgpool", "ada_maxpool", "avgpool", "maxpool"):
        np.testing.assert_array_equal(pool_regions(kv, mode=mode, per_region=side, ratio=1), flat)


def test_soft_routing_weighs_keys_and_values():
    """Soft routing equals hard attention over keys and values multiplied beforehand."""
    rng = np.random.default_rng(6)
    q, k, v = rng.standard_normal((3, 1, 3, 2, 4))
    index, weight = region_routing(q.mean(axis=2), k.mean(axis=2), topk=2)
    out, _ = regional_attention(q, k, v, index, weight, num_heads=1)
    for r in range(3):
        K, V = (gather_regions(t, index)[0, r] * weight[0, r][:, None, None] for t in (k, v))
        logits = q[0, r] @ K.reshape(4, 4).T / 2.0
        P = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(out[0, r], P @ V.reshape(4, 4), atol=1e-13)


def block_for(rng, C, attn, **parts):
    def draw(*shape):
        return rng.standard_normal(shape)

    return BlockWeights(attn, *draw(4, C), draw(C, 2 * C), draw(2 * C), draw(2 * C, C), draw(C), **parts)


@pytest.mark.parametrize("topk", [1, 0, -1, -2])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_block_is_its_formula(topk, pre_norm):
    """Every variant of the block adds the position embedding, a branch of attention and a branch of MLP."""
    rng = np.random.default_rng(7)
    attn = weights_for(rng, 8, ks=5)
    if topk == 0:
        attn = attn._replace(w_qkv=attn.w_qkv[:, :8], b_qkv=attn.b_qkv[:8])
    parts = {"pos_w": rng.standard_normal((8, 3, 3)), "pos_b": rng.standard_normal(8)}
    parts |= {"gamma_1": rng.standard_normal(8), "gamma_2": rng.standard_normal(8)}
    w = block_for(rng, 8, attn, **parts)
    x = rng.standard_normal((1, 4, 4, 8))
    y = biformer_block(x, w, topk=topk, pre_norm=pre_norm, num_heads=2, n_win=2)
    mixed = {
        1: lambda t: bi_level_routing_attention(t, attn, num_heads=2, n_win=2, topk=1),
        0: lambda t: conv_mixer(t, attn),
        -1: lambda t: dense_attention(t, attn._replace(lepe_w=None, lepe_b=None)),
        -2: lambda t: dense_attention(t, attn),
    }[topk]

    def norm(t, weight, bias):
        return (t - t.mean(-1, keepdims=True)) / np.sqrt(t.var(-1, keepdims=True) + 1e-6) * weight + bias

    from scipy.special import ndtr

    def mlp(t):
        hidden = t @ w.w_1 + w.b_1
        return (hidden * ndtr(hidden)) @ w.w_2 + w.b_2

    x = x + depthwise_conv2d(x, w.pos_w, w.pos_b)
    n1, n2 = (w.norm1_w, w.norm1_b), (w.norm2_w, w.norm2_b)
    if pre_norm:
        x = x + w.gamma_1 * mixed(norm(x, *n1))
        x = x + w.gamma_2 * mlp(norm(x, *n2))
    else:
        x = norm(x + w.gamma_1 * mixed(x), *n1)
        x = norm(x + w.gamma_2 * mlp(x), *n2)
    np.testing.assert_allclose(y, x, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_and_inputs_are_kept(dtype):
    """float32 in, float32 out, and read-only strided inputs are neither refused nor written to."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((1, 12, 6, 8)).astype(dtype)[:, ::2]
    weights = BRAWeights(*(None if t is None else t.astype(dtype) for t in weights_for(rng, 8, ks=3)))
    for array in (x, *(t for t in weights if t is not None)):
        array.flags.writeable = False
    options = {"num_heads": 2, "n_win": 3, "topk": 2}
    y = bi_level_routing_attention(x, weights, **options)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, bi_level_routing_attention(x.copy(), weights, **options))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((0, 6, 6, 4), {"num_heads": 2, "n_win": 3, "topk": 2}),
        ((1, 1, 1, 4), {"num_heads": 2, "n_win": 1, "topk": 1}),
        ((1, 6, 6, 4), {"num_heads": 4, "n_win": 3, "topk": 9}),
        ((1, 2, 6, 4), {"num_heads": 1, "n_win": 2, "topk": 1}),
        ((1, 1, 2, 4), {"num_heads": 1, "n_win": 3, "topk": 9, "pad_mode": "input"}),
    ],
)
def test_small_and_odd_shapes_work(shape, options):
    """Empty batches, single tokens, heads of width one and oblong regions give finite outputs of the input's shape."""
    rng = np.random.default_rng(9)
    with np.errstate(all="raise"):
        y = bi_level_routing_attention(rng.standard_normal(shape), weights_for(rng, 4, ks=3), **options)
    assert y.shape == shape
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"n_win": 4}, {}, "H=6, W=6 are not divisible by n_win=4"),
        ({"n_win": 0}, {}, "n_win=0"),
        ({"topk": 0}, {}, "topk=0 must be at least 1"),
        ({"topk": 10}, {}, "topk=10 exceeds the number of regions 9"),
        ({"num_heads": 3}, {}, "num_heads=3 must divide"),
        ({"num_heads": 0}, {}, "num_heads=0"),
        ({"scale": -1.0}, {}, "scale=-1.0"),
        ({"pad_mode": "reflect"}, {}, "pad_mode='reflect'"),
        ({"kv_pool": "median"}, {}, "mode='median'"),
        ({"kv_pool": "avgpool", "kv_ratio": 0}, {}, "ratio=0"),
        ({"kv_pool": "maxpool", "kv_ratio": 3}, {}, "ratio=3"),
        ({"kv_pool": "ada_avgpool", "kv_per_region": 0}, {}, "per_region=0"),
        ({"kv_pool": "avgpool", "kv_ratio": 2, "pad_mode": "masked"}, {}, "cannot pool"),
        ({"n_win": 7, "pad_mode": "projected"}, {}, "hold fewer than n_win=7"),
        ({}, {"w_qkv": np.zeros((4, 4))}, "w_qkv has shape"),
        ({}, {"w_qkv": np.zeros((5, 12))}, "w_qkv has shape"),
        ({}, {"b_qkv": np.zeros(11)}, "b_qkv has shape"),
        ({}, {"w_o": np.zeros((4, 5))}, "w_o has shape"),
        ({}, {"w_o": None}, "b_o is given without"),
        ({}, {"lepe_w": np.zeros((4, 2, 2)), "lepe_b": None}, "must be odd"),
        ({}, {"lepe_w": np.zeros((3, 3, 3)), "lepe_b": None}, "lepe_w has shape"),
        ({}, {"w_r": np.zeros((4, 4))}, "diff_routing=False"),
        ({"soft_routing": True, "diff_routing": True}, {"w_r": np.zeros((4, 3))}, "w_r has shape"),
    ],
)
def test_layer_refuses(options, changes, message):
    """Sizes, counts, modes and shapes that make no sense are refused by name and value."""
    rng = np.random.default_rng(0)
    weights = weights_for(rng, 4)._replace(**changes)
    with pytest.raises(ValueError, match=message):
        bi_level_routing_attention(np.zeros((1, 6, 6, 4)), weights, **{"num_heads": 2, "n_win": 3, "topk": 2} | options)


def test_what_the_released_code_only_names_is_not_implemented():
    """Hard differentiable routing, fractional pooling and pooling by convolution have no definition."""
    rng = np.random.default_rng(0)
    x, weights = np.zeros((1, 6, 6, 4)), weights_for(rng, 4)
    for options in ({"diff_routing": True}, {"kv_pool": "fracpool"}, {"kv_pool": "conv"}):
        with pytest.raises(NotImplementedError):
            bi_level_routing_attention(x, weights, num_heads=2, n_win=3, topk=2, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: bi_level_routing_attention(np.zeros((6, 6, 4)), w, n_win=3), "x has 3 axes"),
        (lambda w: bi_level_routing_attention(np.zeros((1, 0, 6, 4)), w, num_heads=2, n_win=3), "empty feature map"),
        (lambda w: nchw_bra(np.zeros((1, 4, 6, 6)), w, num_heads=2, n_win=3, pad_mode="input"), "pad_mode='input'"),
        (
            lambda w: nchw_bra(np.zeros((1, 4, 6, 6)), w._replace(w_o=None, b_o=None), n_win=3),
            "always has an output map",
        ),
        (lambda w: nchw_bra(np.zeros((1, 4, 2, 6)), w, num_heads=2, n_win=3), "hold fewer than n_win=3"),
        (lambda _: region_routing(np.zeros((1, 4, 3)), np.zeros((1, 4, 2)), topk=1), "k_regions has shape"),
        (lambda _: region_routing(np.zeros((1, 4, 3)), np.zeros((1, 2, 3)), topk=3), "exceeds the number of regions 2"),
        (lambda _: region_routing(np.zeros((1, 4, 3)), np.zeros((1, 2, 3)), b_r=np.zeros(2), topk=1), "b_r has shape"),
        (lambda _: pool_regions(np.zeros((1, 2, 2, 3))), "kv has 4 axes"),
        (lambda _: gather_regions(np.zeros((1, 2, 2, 3)), np.zeros((2, 2, 1), int)), "the batches differ"),
        (lambda _: bra_dense_mask(np.zeros((1, 4, 1), int), n_win=3, height=6, width=6), "expected \\(B, 9, k\\)"),
        (lambda _: bra_dense_mask(np.zeros((1, 4, 1), int), n_win=2, height=5, width=6), "not divisible"),
        (
            lambda w: biformer_block(np.zeros((1, 4, 4, 8)), block_for(np.random.default_rng(0), 8, w), topk=-3),
            "topk=-3",
        ),
        (lambda w: dense_attention(np.zeros((1, 4, 4, 4)), w), "not divisible by the 8 heads"),
        (lambda w: dense_attention(np.zeros((1, 4, 4, 8)), w), "w_qkv has shape"),
        (lambda w: conv_mixer(np.zeros((1, 4, 4, 4)), w), "must be given"),
    ],
)
def test_parts_refuse(call, message):
    """The parts name what they refuse, too."""
    with pytest.raises(ValueError, match=message):
        call(weights_for(np.random.default_rng(0), 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": np.zeros((1, 3, 2, 5))}, "k has shape"),
        ({"v": np.zeros((2, 3, 2, 4))}, "k has shape|v has shape"),
        ({"region_index": np.zeros((1, 2, 1), int)}, "region_index has shape"),
        ({"region_index": np.zeros((1, 4, 0), int)}, "at least 1"),
        ({"region_index": np.full((1, 4, 1), 3)}, "between 0 and 2"),
        ({"region_weight": np.zeros((1, 4, 2))}, "region_weight has shape"),
        ({"key_mask": np.zeros((3, 2))}, "expected bool"),
        ({"key_mask": np.zeros((2, 3), bool)}, "key_mask has shape"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"scale": np.inf}, "scale=inf"),
    ],
)
def test_regional_attention_refuses(changes, message):
    """Grids, graphs, weights and masks that do not fit together are refused."""
    arguments = {
        "q": np.zeros((1, 4, 2, 4)),
        "k": np.zeros((1, 3, 2, 4)),
        "v": np.zeros((1, 3, 2, 4)),
        "region_index": np.zeros((1, 4, 1), int),
        "num_heads": 2,
    }
    with pytest.raises(ValueError, match=message):
        regional_attention(**arguments | changes)
