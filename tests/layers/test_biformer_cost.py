"""Cost, best number of regions, and the sizes of the released models."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.layers.biformer_cost import (
    bra_cost,
    common_divisors,
    dense_attention_cost,
    model_cost,
    optimal_region_factor,
    optimal_routed_cost,
)
from refattn.layers.biformer_model import VARIANTS, BiFormerConfig, biformer_model, initial_weights


@given(st.integers(10, 10**6), st.integers(1, 64), st.sampled_from((1.0, 2.0)))
def test_optimum_is_a_minimum(N, k, routing_weight):
    """No number of regions costs less than the optimal one, and the minimum has its closed form."""
    best = optimal_region_factor(N, k, routing_weight=routing_weight)
    least = optimal_routed_cost(N, k, 8, routing_weight=routing_weight)
    assert least == pytest.approx(3 * routing_weight ** (1 / 3) * (k * N**2) ** (2 / 3) * 8, rel=1e-12)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert bra_cost(N, factor * best, k, 8, routing_weight=routing_weight).routed > least


def test_parts_of_the_cost():
    """The parts are 4 N C² + S⁴ C + 2 k N² C / S² + ks² N C; one region with k = 1 costs what dense attention does."""
    assert bra_cost(49, 7, 4, 8, lepe_kernel=5) == (4 * 49 * 64, 7**4 * 8, 2 * 4 * 49**2 * 8 / 49, 25 * 49 * 8)
    assert bra_cost(49, 1, 1, 8).attention == dense_attention_cost(49, 8)


@pytest.mark.parametrize(
    ("name", "parameters", "gigamacs"),
    [("T", 13.143e6, 2.216), ("S", 25.536e6, 4.464), ("B", 56.805e6, 9.759), ("STL", 28.4e6, 4.6)],
)
def test_released_sizes(name, parameters, gigamacs):
    """The formulas give the printed parameters and multiply-adds within one per cent."""
    cost = model_cost(VARIANTS[name])
    assert cost.parameters == pytest.approx(parameters, rel=0.01)
    assert cost.macs / 1e9 == pytest.approx(gigamacs, rel=0.01)


def leaves(tree):
    if tree is None:
        return []
    return [tree] if isinstance(tree, np.ndarray) else [leaf for branch in tree for leaf in leaves(branch)]


@pytest.mark.parametrize("layout", ["biformer", "swin"])
@pytest.mark.parametrize("topk", [(1, 4, 2, -2), (0, -1, 1, -2)])
def test_parameters_are_counted_exactly(layout, topk):
    """The formula counts the entries of the weights, less the running statistics of batch normalisation."""
    config = BiFormerConfig((1, 2, 1, 1), (16, 32, 32, 64), topk, n_win=2, head_dim=8, layout=layout, classes=5)
    weights = initial_weights(config, np.random.default_rng(0), std=0.1)
    statistics = [
        leaf for embedding in weights.embeddings for layer in embedding for leaf in (layer.mean, layer.variance)
    ]
    running = sum(leaf.size for leaf in (*statistics, weights.mean, weights.variance))
    assert model_cost(config, image=64).parameters == sum(leaf.size for leaf in leaves(weights)) - running
    logits, maps = biformer_model(np.zeros((2, 64, 64, 3)), weights, config=config)
    assert logits.shape == (2, 5)
    assert [m.shape for m in maps] == [(2, 16, 16, 16), (2, 8, 8, 32), (2, 4, 4, 32), (2, 2, 2, 64)]
    assert np.isfinite(logits).all()


def test_images_are_classified_one_by_one():
    """An image's logits do not depend on its company."""
    config = BiFormerConfig((1, 1, 1, 1), (8, 16, 16, 16), (1, 2, 1, -2), n_win=2, head_dim=8, classes=3)
    rng = np.random.default_rng(1)
    weights = initial_weights(config, rng, std=0.3)
    images = rng.standard_normal((3, 64, 64, 3))
    together, _ = biformer_model(images, weights, config=config)
    alone, _ = biformer_model(images[1:2], weights, config=config)
    np.testing.assert_allclose(together[1:2], alone, atol=1e-12)


def test_common_divisors():
    """Only divisors of both sides cut a map into equal regions."""
    assert common_divisors(12, 18) == [1, 2, 3, 6]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bra_cost(0, 1, 1, 1), "must be positive"),
        (lambda: optimal_region_factor(10, 0), "must be positive"),
        (lambda: model_cost(BiFormerConfig(), image=200), "not divisible by 7"),
        (lambda: BiFormerConfig(depth=(1, 1)), "the same length"),
        (lambda: BiFormerConfig(layout="pyramid"), "layout='pyramid'"),
    ],
)
def test_refuses(call, message):
    """Sizes that are not positive or do not fit are refused."""
    with pytest.raises(ValueError, match=message):
        call()
