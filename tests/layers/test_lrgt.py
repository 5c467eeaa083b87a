"""Long-range grouping attention and what stands around it: properties, bad input, degenerate cases."""

import numpy as np
import pytest

from refattn.layers.lrgt import (
    KINDS,
    GroupAttentionWeights,
    attention_macs,
    group_labels,
    group_tokens,
    grouping_mask,
    intra_view_attention,
    long_range_grouping_attention,
    ungroup_tokens,
)
from refattn.layers.lrgt_attention import BlockWeights, attend, multi_head_attention, project
from refattn.layers.lrgt_decoder import (
    DecoderWeights,
    QueryBlockWeights,
    UpConvWeights,
    UpsamplingWeights,
    decoder_queries,
    lrgt_decoder,
    progressive_decoder,
)
from refattn.layers.lrgt_encoder import EncoderWeights, lrgt_encoder, lrgt_encoder_block
from refattn.layers.lrgt_loss import dice_loss, voxel_iou
from refattn.layers.lrgt_merger import MergerWeights, density_peaks_clusters, merge_tokens, similar_token_merger
from refattn.layers.lrgt_voxels import conv_transpose3d, fold_voxels, unfold_voxels

GROUPINGS = [(6, s, kind) for s in (1, 2, 3, 6) for kind in ("long", "short")] + [(5, 7, "token"), (5, 7, "full")]
EXACT = {"rtol": 0, "atol": 1e-12}


def attention_weights(rng, D, *, encoder=True):
    maps = rng.standard_normal((4, D, D)) / np.sqrt(D)
    biases = rng.standard_normal((4, D))
    if not encoder:
        return GroupAttentionWeights(*maps, biases[0])
    return GroupAttentionWeights(*maps, *biases, rng.standard_normal((D, 3, 3)), rng.standard_normal(D))


def mlp(rng, D):
    return (
        rng.standard_normal((D, 2 * D)),
        rng.standard_normal(2 * D),
        rng.standard_normal((2 * D, D)),
        rng.standard_normal(D),
    )


def block(rng, D, *, encoder=True):
    norms = rng.standard_normal((4, D))
    return BlockWeights(*norms[:2], attention_weights(rng, D, encoder=encoder), *norms[2:], *mlp(rng, D))


def merger_weights(rng, D):
    norms, score = rng.standard_normal((4, D)), (rng.standard_normal((D, 1)), rng.standard_normal(1))
    return MergerWeights(*norms[:2], *score, attention_weights(rng, D, encoder=False), *norms[2:], *mlp(rng, D))


def upsampling(rng, widths=(8, 4, 2, 1)):
    D, C1, C2, C3 = widths

    def doubling(C, O):
        return UpConvWeights(rng.standard_normal((C, O, 4, 4, 4)) / 8, *(0.5 + rng.random((4, O))))

    units = [(block(rng, width, encoder=False),) for width in (D, C1, 8 * C2, 64 * C3)]
    last = rng.standard_normal((C3, 1, 1, 1, 1)) / 64
    return UpsamplingWeights(
        units[0], doubling(D, C1), units[1], doubling(C1, C2), units[2], doubling(C2, C3), units[3], last
    )


def draw(seed=0, batch=2, views=3, grid=6, width=8):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch * views, grid * grid, width)), attention_weights(rng, width)


@pytest.mark.parametrize(("grid", "stride", "kind"), GROUPINGS)
def test_grouping_is_a_permutation(grid, stride, kind):
    """Grouping and ungrouping give the tokens back; groups have one size and partition the places."""
    x, _ = draw(grid=grid)
    options = {"num_views": 3, "grid": grid, "stride": stride, "kind": kind}
    groups = group_tokens(x, **options)
    np.testing.assert_array_equal(ungroup_tokens(groups, **options), x)
    counts = np.bincount(group_labels(grid=grid, stride=stride, kind=kind))
    assert set(counts) == {groups.shape[2] // 3}
    assert len(counts) == groups.shape[1]


def test_one_rule_covers_three_kinds():
    """Stride 1 is one group of everything, stride g a group for every place."""
    np.testing.assert_array_equal(group_labels(grid=6, stride=1), group_labels(grid=6, kind="full"))
    np.testing.assert_array_equal(group_labels(grid=6, stride=6), group_labels(grid=6, kind="token"))


@pytest.mark.parametrize(("grid", "stride", "kind"), GROUPINGS)
def test_grouped_attention_is_dense_attention_under_a_mask(grid, stride, kind):
    """Without signature the layer is attention over all V·P tokens under the group mask."""
    x, w = draw(grid=grid)
    options = {"grid": grid, "stride": stride, "kind": kind}
    actual = long_range_grouping_attention(x, w, num_views=3, num_heads=2, signature=False, **options)
    mask = grouping_mask(num_views=3, **options)
    tokens = x.reshape(2, -1, 8)
    q, k, v = (t.reshape(2, -1, 2, 4).transpose(0, 2, 1, 3) for t in project(tokens, tokens, w))
    s = np.where(mask, q @ k.mT / 2.0, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    out = (e / e.sum(-1, keepdims=True)) @ v
    expected = out.transpose(0, 2, 1, 3).reshape(x.shape) @ w.w_o + w.b_o
    np.testing.assert_allclose(actual, expected, **EXACT)


def test_scored_pairs_are_counted():
    """The mask holds (VP)²/s² pairs, and multiply-adds follow them."""
    assert grouping_mask(num_views=3, grid=6, stride=2).sum() == (3 * 36) ** 2 // 4
    sizes = {"num_views": 20, "grid": 14, "width": 768}
    full = attention_macs(**sizes, kind="full")
    assert full == 49 * attention_macs(**sizes, stride=7) == attention_macs(**sizes, stride=1)
    assert attention_macs(**sizes, kind="intra") == 2 * 20 * 196**2 * 768


def test_one_view_and_one_group_is_attention_inside_views():
    """With V = 1 and s = 1, and no signature, the layer is `intra_view_attention`."""
    x, w = draw()
    actual = long_range_grouping_attention(x, w, num_views=1, num_heads=2, stride=1, signature=False)
    np.testing.assert_allclose(actual, intra_view_attention(x, w, num_heads=2), **EXACT)


def test_a_group_of_one_token_returns_its_value():
    """With V = 1 and s = g, and no signature, the output is the value, projected, exactly."""
    x, w = draw()
    actual = long_range_grouping_attention(x, w, num_views=1, num_heads=2, stride=6, signature=False)
    np.testing.assert_array_equal(actual, (x @ w.w_v + w.b_v) @ w.w_o + w.b_o)


def test_key_bias_is_forgotten():
    """A bias of the keys adds the same to all logits of a query, and changes nothing."""
    x, w = draw()
    left, right = (
        long_range_grouping_attention(x, w._replace(b_k=b), num_views=3, num_heads=2, stride=3) for b in (w.b_k, None)
    )
    np.testing.assert_allclose(left, right, **EXACT)


@pytest.mark.parametrize("signature", [False, True])
def test_a_token_reaches_its_group_and_its_neighbours(signature):
    """Changing one token changes its group, and with the signature its 3 × 3 neighbours in its own view; no more."""
    x, w = draw(batch=1)
    options = {"num_views": 3, "num_heads": 2, "stride": 3, "signature": signature}
    changed = x.copy()
    changed[1, 8] += 1.0  # view 1, row 1, column 2
    moved = np.any(
        long_range_grouping_attention(x, w, **options) != long_range_grouping_attention(changed, w, **options), axis=-1
    )
    expected = np.broadcast_to(group_labels(grid=6, stride=3) == 5, (3, 36)).copy()
    if signature:
        expected[1].reshape(6, 6)[0:3, 1:4] = True
    np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("kind", ["short", "long"])
def test_shifts_by_a_window_keep_windows(kind):
    """Shifting the grid by t keeps windows, by 1 it does not; strides are kept by either."""
    x, w = draw()
    options = {"num_views": 3, "num_heads": 2, "stride": 3, "signature": False, "kind": kind}

    def error(shift):
        moved = np.roll(x.reshape(6, 6, 6, 8), shift, (1, 2)).reshape(x.shape)
        y = long_range_grouping_attention(x, w, **options).reshape(6, 6, 6, 8)
        return np.abs(long_range_grouping_attention(moved, w, **options).reshape(y.shape) - np.roll(y, shift, (1, 2)))

    assert error((2, 4)).max() < 1e-12
    assert (error((1, 0)).max() < 1e-12) == (kind == "long")


@pytest.mark.parametrize("kind", KINDS)
def test_grouped_then_inside_reaches_everything(kind):
    """A grouped layer and one inside views connect all tokens; two grouped layers of one kind only each group."""
    group = grouping_mask(num_views=3, grid=6, stride=3, kind=kind).astype(int)
    inside = np.kron(np.eye(3, dtype=int), np.ones((36, 36), dtype=int))
    assert np.all(inside @ group)
    np.testing.assert_array_equal((group @ group) > 0, group > 0)


def test_attention_weights_are_those_of_groups():
    """The returned weights average the grouped values into the output."""
    x, w = draw()
    options = {"num_views": 3, "grid": 6, "stride": 2}
    y, a = long_range_grouping_attention(x, w, num_heads=2, signature=False, return_attn=True, **options)
    assert a.shape == (2, 4, 2, 27, 27)
    v = group_tokens(x @ w.w_v + w.b_v, **options).reshape(2, 4, 27, 2, 4).swapaxes(2, 3)
    out = ungroup_tokens((a @ v).swapaxes(2, 3).reshape(2, 4, 27, 8), **options)
    np.testing.assert_allclose(out @ w.w_o + w.b_o, y, **EXACT)


def test_key_bias_of_minus_infinity_hides_a_token():
    """A token whose logits are lowered without bound might as well not be there."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 5, 8)), attention_weights(rng, 8)
    bias = np.where(np.arange(5) == 3, -np.inf, 0.0) * np.ones((2, 1))
    hidden = multi_head_attention(x, x, w, num_heads=2, key_bias=bias)
    shorter = multi_head_attention(x, np.delete(x, 3, axis=1), w, num_heads=2)
    np.testing.assert_allclose(hidden, shorter, **EXACT)


def test_the_encoder_interleaves():
    """Blocks outside ``lga_blocks`` keep views apart: without any, each view is encoded as if alone."""
    rng = np.random.default_rng(0)
    blocks = (block(rng, 4), block(rng, 4))
    patch = (rng.standard_normal((4, 3, 2, 2)), rng.standard_normal(4))
    w = EncoderWeights(*patch, rng.standard_normal((16, 4)), blocks, np.ones(4), np.zeros(4))
    images = rng.standard_normal((2, 3, 3, 8, 8))
    options = {"num_heads": 2, "stride": 2}
    apart = lrgt_encoder(images, w, lga_blocks=(), **options)
    alone = np.concatenate([lrgt_encoder(images[:, i : i + 1], w, lga_blocks=(), **options) for i in range(3)], axis=1)
    np.testing.assert_allclose(apart, alone, **EXACT)
    y, outputs = lrgt_encoder(images, w, lga_blocks=(1,), return_blocks=True, **options)
    assert y.shape == (2, 3, 16, 4)
    expected = lrgt_encoder_block(outputs[0], blocks[1], num_views=3, **options)
    np.testing.assert_array_equal(outputs[1], expected)


def test_as_many_clusters_as_tokens_is_a_permutation():
    """With M = N each token is a cluster, and its average is the token times e^s / (e^s + 1e-6)."""
    rng = np.random.default_rng(0)
    x, score = rng.standard_normal((3, 7, 4)), rng.standard_normal((3, 7))
    labels, centers = density_peaks_clusters(x, num_clusters=7, k=3)
    np.testing.assert_array_equal(np.sort(labels, axis=1), np.tile(np.arange(7), (3, 1)))
    merged = merge_tokens(x, labels, score, num_clusters=7)
    e = np.exp(score)[..., None]
    expected = np.take_along_axis(x * e / (e + 1e-6), centers[..., None], axis=1)
    np.testing.assert_allclose(merged, expected, **EXACT)


def test_every_cluster_has_its_centre():
    """Labels run from 0 to M − 1, each is used, and centre m has label m, whatever is tied."""
    rng = np.random.default_rng(0)
    for k in (1, 2, 5):
        x = rng.integers(0, 2, (4, 9, 2)).astype(float)  # many equal tokens
        labels, centers = density_peaks_clusters(x, num_clusters=6, k=k)
        np.testing.assert_array_equal(np.take_along_axis(labels, centers, axis=1), np.tile(np.arange(6), (4, 1)))
        assert [set(row) for row in labels] == [set(range(6))] * 4


def test_noise_decides_between_equals():
    """Of two equal tokens the one with more noise is the centre; without noise the first is."""
    x = np.array([0.0, 0.0, 4.0, 4.0])[None, :, None]
    noise = np.array([[0.1, 0.9, 0.2, 0.8]])
    np.testing.assert_array_equal(density_peaks_clusters(x, num_clusters=2, k=2).centers, [[0, 2]])
    np.testing.assert_array_equal(density_peaks_clusters(x, noise, num_clusters=2, k=2).centers, [[1, 3]])


def test_blobs_are_found():
    """Tokens that lie in three heaps are clustered by heap."""
    rng = np.random.default_rng(0)
    heap = rng.permutation(np.repeat(np.arange(3), 20))
    x = 5.0 * rng.standard_normal((3, 6))[heap] + 0.1 * rng.standard_normal((60, 6))
    labels = density_peaks_clusters(x[None], num_clusters=3, k=15).labels[0]
    assert len(set(zip(heap, labels, strict=True))) == 3


def test_conv_transpose3d_is_the_adjoint_of_a_convolution():
    """⟨conv(a), b⟩ = ⟨a, convT(b)⟩ for the strided convolution with the same kernels."""
    rng = np.random.default_rng(0)
    b, w = rng.standard_normal((2, 3, 2, 3, 2)), rng.standard_normal((3, 2, 4, 4, 4))
    up = conv_transpose3d(b, w)
    a = rng.standard_normal(up.shape)
    padded = np.pad(a, ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4, 4), axis=(2, 3, 4))[:, :, ::2, ::2, ::2]
    down = np.einsum("bohwlijk,coijk->bchwl", windows, w)
    np.testing.assert_allclose(np.sum(down * b), np.sum(a * up), rtol=1e-12)


@pytest.mark.parametrize("r", [1, 2, 4])
def test_folding_can_be_undone(r):
    """Unfolding gives every cell back."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 4))
    np.testing.assert_array_equal(unfold_voxels(fold_voxels(x, r=r), channels=3, r=r), x)


def test_the_decoder_fills_a_grid_eight_times_finer():
    """Two tokens a side become 16 voxels a side, probabilities all; the full decoder is its parts in a row."""
    rng = np.random.default_rng(0)
    w = upsampling(rng)
    voxels = progressive_decoder(rng.standard_normal((2, 8, 8)), w, num_heads=2)
    assert voxels.shape == (2, 1, 16, 16, 16)
    assert np.all((voxels > 0) & (voxels < 1))
    norms = rng.standard_normal((6, 8))
    parts = [(*norms[2 * i : 2 * i + 2], attention_weights(rng, 8, encoder=False)) for i in range(2)]
    reading = QueryBlockWeights(*parts[0], *parts[1], *norms[4:], *mlp(rng, 8))
    whole = DecoderWeights(rng.standard_normal((8, 8)), (reading,), np.ones(8), np.zeros(8), w)
    context = rng.standard_normal((2, 5, 8))
    x = decoder_queries(context, whole.queries, whole.query_blocks, num_heads=2)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = progressive_decoder(x, w, num_heads=2)
    np.testing.assert_allclose(lrgt_decoder(context, whole, num_heads=2), expected, **EXACT)


def test_dice_of_a_perfect_prediction_is_not_zero():
    """A perfect prediction of n voxels costs n/(2n + 1): the released loss has no factor 2. Nothing costs nothing."""
    for n in (0, 1, 8, 500):
        t = (np.arange(1000) < n).astype(float)[None]
        np.testing.assert_allclose(dice_loss(t, t), n / (2 * n + 1), rtol=0, atol=1e-15)


def test_dice_stays_below_one():
    """Losses lie in [0, 1), also where prediction and truth exclude each other."""
    p = np.random.default_rng(0).random((50, 6, 6, 6))
    t = (p < 0.5).astype(float)
    losses = dice_loss(p, t, reduction="none")
    assert losses.shape == (50,)
    assert np.all((losses >= 0) & (losses < 1))
    assert dice_loss(1.0 - t, t) < 1


def test_iou_counts_voxels():
    """The overlap is the filled in both over the filled in either; the threshold itself counts as filled."""
    pred, target = np.array([[0.3, 0.29, 0.9, 0.1]]), np.array([[1.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(voxel_iou(pred, target, threshold=0.3), [1 / 3])
    np.testing.assert_array_equal(voxel_iou(0 * pred, 0 * target), [1.0])


def test_degenerate_sizes_work():
    """No batch, one view of one token, one head, one neighbour: all give arrays of the right shape."""
    rng = np.random.default_rng(0)
    w = attention_weights(rng, 4)
    assert long_range_grouping_attention(np.zeros((0, 36, 4)), w, num_views=3, num_heads=1, stride=3).shape == (
        0,
        36,
        4,
    )
    single = rng.standard_normal((1, 1, 4))
    assert long_range_grouping_attention(single, w, num_views=1, num_heads=1, stride=1).shape == (1, 1, 4)
    merged = similar_token_merger(single, merger_weights(rng, 4), num_clusters=1, k=1, num_heads=1)
    assert merged.shape == (1, 1, 4)
    none = similar_token_merger(np.zeros((0, 5, 4)), merger_weights(rng, 4), num_clusters=2, k=1, num_heads=1)
    assert none.shape == (0, 2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 4}, "stride=4 must divide grid=6"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"num_views": 4}, "is not a multiple of num_views=4"),
        ({"num_views": 0}, "num_views=0 must be at least 1"),
        ({"num_heads": 3}, "num_heads=3 must divide"),
        ({"kind": "wide"}, "kind='wide' is not one of"),
        ({"grid": 5, "stride": 5}, r"expected \(B·V, 25, D\) for grid=5"),
        ({"scale": np.inf}, "scale=inf must be finite"),
    ],
)
def test_bad_options_are_refused(changes, message):
    """Each option that breaks its rule is named with its value."""
    x, w = draw()
    with pytest.raises(ValueError, match=message):
        long_range_grouping_attention(x, w, **{"num_views": 3, "num_heads": 2, "stride": 3, **changes})


def test_bad_tokens_and_weights_are_refused():
    """Tokens that fill no square, weights of other shapes and a signature without kernels are named."""
    x, w = draw()
    options = {"num_views": 3, "num_heads": 2, "stride": 3}
    with pytest.raises(ValueError, match="P=35 tokens in a view, no square"):
        long_range_grouping_attention(x[:, 1:], w, **options)
    with pytest.raises(ValueError, match=r"weights.w_q has shape \(7, 8\)"):
        long_range_grouping_attention(x, w._replace(w_q=w.w_q[1:]), **options)
    with pytest.raises(ValueError, match=r"weights.ifs_w is None"):
        long_range_grouping_attention(x, w._replace(ifs_w=None), **options)
    with pytest.raises(ValueError, match="x has shape"):
        ungroup_tokens(np.zeros((1, 4, 5, 2)), num_views=1, grid=4, stride=2)


def test_bad_clusters_are_refused():
    """M and k lie between 1 and N, noise and labels fit the tokens."""
    x = np.zeros((1, 4, 2))
    for M, k, message in ((5, 1, "num_clusters=5"), (0, 1, "num_clusters=0"), (1, 5, "k=5"), (1, 0, "k=0")):
        with pytest.raises(ValueError, match=f"{message} must lie between 1 and N=4"):
            density_peaks_clusters(x, num_clusters=M, k=k)
    with pytest.raises(ValueError, match="noise has shape"):
        density_peaks_clusters(x, np.zeros((1, 3)), num_clusters=1, k=1)
    with pytest.raises(ValueError, match="labels must lie between 0 and 1"):
        merge_tokens(x, np.array([[0, 1, 2, 0]]), np.zeros((1, 4)), num_clusters=2)


def test_bad_voxels_are_refused():
    """Tokens that fill no cube, folds that do not divide, kernels of other channels, and bad truths are named."""
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="7 tokens, which is no cube"):
        progressive_decoder(np.zeros((1, 7, 8)), upsampling(rng), num_heads=2)
    with pytest.raises(ValueError, match="r=3 must divide"):
        fold_voxels(np.zeros((1, 1, 4, 4, 4)), r=3)
    with pytest.raises(ValueError, match="expected 2 input channels"):
        conv_transpose3d(np.zeros((1, 2, 1, 1, 1)), np.zeros((3, 1, 4, 4, 4)))
    with pytest.raises(ValueError, match="target has shape"):
        dice_loss(np.zeros((1, 3)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"target must lie in \[0, 1\]"):
        dice_loss(np.zeros((1, 3)), np.full((1, 3), 1.5))
    with pytest.raises(ValueError, match="target must be 0 or 1"):
        voxel_iou(np.zeros((1, 3)), np.full((1, 3), 0.5))


def test_attention_averages_values():
    """The weights of `attend` sum to one, and averages stay between the smallest and the largest value."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 6, 8))
    out, a = attend(q, k, v, num_heads=4)
    np.testing.assert_allclose(a.sum(-1), 1.0, **EXACT)
    assert np.all(out <= v.max(axis=1, keepdims=True) + 1e-12)
