"""What HyLRA measures: critical sets, overlaps, and the two ways to find layers that need all their keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.interventions.hylra_profile import (
    block_weights,
    critical_blocks,
    critical_mask,
    hash_ratio,
    layer_overlap,
    merge_overlap,
    sensitive_by_hash_ratio,
)

seeds = st.integers(0, 2**16)


def softmaxed(rng, shape, sharp=1.0):
    e = np.exp(sharp * rng.standard_normal(shape))
    return e / e.sum(axis=-1, keepdims=True)


def masks(rng, L=4, S=3, H=2, n_b=9, kept=4):
    order = rng.permuted(np.tile(np.arange(n_b), (L, S, H, 1)), axis=-1)
    return order < kept


def test_blocks_are_sums():
    """Blocks add neighbouring weights, and the last block is filled up with zeros."""
    np.testing.assert_array_equal(block_weights([[1, 2, 3, 4, 5]], 2), [[3, 7, 5]])
    np.testing.assert_array_equal(block_weights(np.arange(3.0), 1), np.arange(3.0))
    assert block_weights(np.zeros((2, 0)), 4).shape == (2, 0)


@given(seeds, st.integers(1, 14), st.integers(1, 4), st.data())
def test_critical_blocks_are_the_heaviest(seed, T, block_size, data):
    """Beside the forced blocks, no block that is left out outweighs one that is kept; their number is ⌊k/b⌋."""
    k = data.draw(st.integers(block_size, 3 * block_size + 2))
    sink = data.draw(st.integers(0, k))
    recent = data.draw(st.integers(0, k - sink))
    w = softmaxed(np.random.default_rng(seed), (2, T))
    kept = critical_mask(w, k, block_size=block_size, sink=sink, recent=recent)
    B = block_weights(w, block_size)
    n_b = B.shape[-1]
    assert (kept.sum(axis=-1) == min(k // block_size, n_b)).all()
    first, last = sink // block_size, recent // block_size
    forced = (np.arange(n_b) < first) | (np.arange(n_b) >= n_b - last)
    assert kept[:, forced].all()
    for row, chosen in zip(B, kept, strict=True):
        free = chosen & ~forced
        assert row[free].min(initial=np.inf) >= row[~chosen].max(initial=-np.inf)
    indices = critical_blocks(w, k, block_size=block_size, sink=sink, recent=recent)
    np.testing.assert_array_equal(indices, [np.flatnonzero(row) for row in kept])


def test_ties_go_to_the_left():
    """Equal blocks are taken from the left."""
    np.testing.assert_array_equal(critical_blocks([0.1, 0.2, 0.2, 0.2, 0.3], 3), [1, 2, 4])
    np.testing.assert_array_equal(critical_blocks(np.full(6, 0.5), 4, recent=1), [0, 1, 2, 5])


def test_forced_blocks_are_the_first_and_last_visible_ones():
    """With padding on both sides, sinks and recent keys are counted among visible blocks, and no hidden one is kept."""
    w = np.array([9.0, 9.0, 1.0, 2.0, 3.0, 1.0, 9.0])
    visible = np.array([False, False, True, True, True, True, False])
    np.testing.assert_array_equal(critical_blocks(w, 3, sink=1, recent=1, visible=visible), [2, 4, 5])
    np.testing.assert_array_equal(critical_blocks(w, 6, visible=visible), [2, 3, 4, 5, -1, -1])
    np.testing.assert_array_equal(critical_blocks(w, 4, block_size=2, visible=visible), [1, 2])


@given(seeds, st.integers(1, 9))
def test_overlap_has_bounds(seed, kept):
    """Overlaps lie in [0, 1], at least at what two sets of this size must share; forced blocks are always shared."""
    rng = np.random.default_rng(seed)
    M = layer_overlap(masks(rng, kept=kept), per_head=True)
    upper = M[:, *np.triu_indices(4, 1)]
    assert upper.max() <= 1
    assert upper.min() >= max(0, (2 * kept - 9) / kept) - 1e-15
    assert (np.tril(M, -1) == 0).all()
    assert (M[:, range(4), range(4)] == 1).all()
    w = softmaxed(rng, (4, 3, 2, 9))
    forced = min(2, kept)
    shared = layer_overlap(critical_mask(w, kept, sink=min(1, kept), recent=forced - min(1, kept)))
    assert shared[np.triu_indices(4, 1)].min() >= forced / kept - 1e-15


def test_identical_layers_overlap_fully():
    """Layers with the same sets have overlap 1."""
    same = np.repeat(masks(np.random.default_rng(0), L=1), 3, axis=0)
    np.testing.assert_array_equal(layer_overlap(same), np.triu(np.ones((3, 3))))


def test_overlap_counts_common_blocks():
    """An entry is the number of common blocks over the number of the later layer's, averaged over steps."""
    first = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 1]]], dtype=bool)  # L = 2, H = 1
    second = np.array([[[1, 0, 0, 0, 0]], [[1, 0, 0, 0, 0]]], dtype=bool)
    assert layer_overlap([first, second])[0, 1] == pytest.approx((1 / 3 + 1) / 2)
    stacked = masks(np.random.default_rng(1))
    np.testing.assert_array_equal(layer_overlap(stacked), layer_overlap(list(np.moveaxis(stacked, 1, 0))))


def test_merging_heads():
    """The careful merge takes the smallest entry over heads, the other the mean."""
    M = layer_overlap(masks(np.random.default_rng(2)), per_head=True)
    np.testing.assert_array_equal(merge_overlap(M), M.min(axis=0))
    np.testing.assert_array_equal(merge_overlap(M, "mean"), M.mean(axis=0))
    np.testing.assert_allclose(merge_overlap(M, "mean"), layer_overlap(masks(np.random.default_rng(2))), atol=1e-15)


@given(seeds, st.integers(1, 20), st.integers(1, 4), st.sampled_from([0.1, 1.0, 5.0]))
def test_hash_ratio_counts_blocks(seed, T, block_size, sharp):
    """The ratio is the number of heaviest blocks within 90 % of the mass, less than 1, whatever the scale and order."""
    rng = np.random.default_rng(seed)
    w = softmaxed(rng, (T,), sharp)
    B = sorted(block_weights(w, block_size), reverse=True)
    count = sum(sum(B[: m + 1]) <= 0.9 * sum(B) for m in range(len(B)))
    ratio = hash_ratio(w, block_size)
    assert ratio == count / len(B) < 1
    assert hash_ratio(4.0 * w, block_size) == ratio
    whole = w[: T // block_size * block_size].reshape(-1, block_size)
    if whole.size:
        shuffled = rng.permutation(whole).ravel()
        assert hash_ratio(shuffled, block_size) == hash_ratio(whole.ravel(), block_size)


def test_one_heavy_block_has_ratio_zero():
    """If one block holds more than 90 %, the ratio is 0; equal blocks give nearly 0.9."""
    assert hash_ratio([0.02, 0.95, 0.03], 1) == 0
    assert hash_ratio(np.full(100, 0.01), 1, mass=0.895) == pytest.approx(0.89)


def test_sensitive_layers_are_the_widest():
    """The layers with the largest mean ratio are sensitive, after outliers among steps are pulled in."""
    ratios = np.tile(np.array([0.1, 0.5, 0.2, 0.4]), (2, 6, 1))
    ratios[0, 0, 0] = 1.0  # one outlier step, clipped to the others
    np.testing.assert_array_equal(sensitive_by_hash_ratio(ratios, 0.5), [1, 3])
    np.testing.assert_array_equal(sensitive_by_hash_ratio(ratios, 0.75), [1])


def test_extreme_sparsities():
    """Sparsity 0 makes all layers sensitive, and 1 makes none, where the official slice would take all."""
    ratios = np.random.default_rng(3).random((2, 3, 5))
    np.testing.assert_array_equal(sensitive_by_hash_ratio(ratios, 0.0), np.arange(5))
    assert sensitive_by_hash_ratio(ratios, 1.0).shape == (0,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: block_weights([1.0], 0), "block_size=0 must be at least 1"),
        (lambda: critical_mask(np.ones(4), 0), "k=0 must be at least 1"),
        (lambda: critical_mask(np.ones(4), 2, block_size=3), "k=2 must be at least block_size=3"),
        (lambda: critical_blocks(np.ones(4), 2, sink=1, recent=2), "forced blocks exceed the budget k=2"),
        (lambda: critical_mask(np.ones(4), 2, visible=np.ones(3, bool)), "visible has shape"),
        (lambda: layer_overlap([]), "masks holds no step"),
        (lambda: layer_overlap(np.zeros((2, 1, 1, 3), bool)), "masks holds an empty critical set"),
        (lambda: merge_overlap(np.ones((2, 2))), "overlap has 2 axes"),
        (lambda: merge_overlap(np.ones((1, 2, 2)), "max"), "how='max' is not one of"),
        (lambda: hash_ratio([0.5, 0.5], 1, mass=1.0), "mass=1.0 must lie in"),
        (lambda: hash_ratio([0.5, -0.5], 1), "weights must not be negative"),
        (lambda: hash_ratio([0.0, 0.0], 1), "positive sum"),
        (lambda: hash_ratio(np.zeros((2, 0)), 1), "weights has no keys"),
        (lambda: sensitive_by_hash_ratio(np.ones((1, 1, 2)), 1.5), "sparsity=1.5 must lie in"),
        (lambda: sensitive_by_hash_ratio(np.ones((1, 0, 2)), 0.5), "at least one head and step"),
    ],
)
def test_bad_input_is_refused(call, words):
    """What makes no sense is refused, with the argument's name and the rule."""
    with pytest.raises(ValueError, match=words):
        call()
