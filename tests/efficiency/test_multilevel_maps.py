"""The maps of multi-level training as matrices, and what they refuse."""

import numpy as np
import pytest

from refattn.efficiency.multilevel_maps import (
    apply_depth,
    apply_width,
    decoalescing_maps,
    depth_map,
    map_weight,
    reverse_map,
    width_maps,
)
from refattn.efficiency.multilevel_parameters import ParametersByRole, coalesce_parameters

SCHEMES = ([[0, 2], [1, 3]], [[0, 1], [2, 3]], [[3, 0], [2], [1]], [[0, 1, 2, 3]], [[0], [1], [2], [3]])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_growing_and_shrinking_again_is_nothing(scheme):
    """F T = I and R G = I, all rows sum to one, and T F is a projector, for pairs, uneven groups and single ones."""
    maps = width_maps(12, 3 * len(scheme), head_size=3, scheme=scheme, mlp_width=20)
    depth = depth_map(4, len(scheme), scheme)
    copies, back = decoalescing_maps(maps, depth)
    for shrink, grow in ((maps.residual, copies.residual), (maps.mlp, copies.mlp), (depth, back)):
        np.testing.assert_allclose(shrink.sum(1), 1, rtol=0, atol=1e-15)
        np.testing.assert_allclose(grow.sum(1), 1, rtol=0, atol=1e-15)
        np.testing.assert_allclose(shrink @ grow, np.eye(len(shrink)), rtol=0, atol=1e-15)
        projector = grow @ shrink
        np.testing.assert_allclose(projector @ projector, projector, rtol=0, atol=1e-15)


def test_the_default_is_two_identities_side_by_side():
    """For D = 2d the residual map is [I, I]/2, and that of the MLP too: neuron i merges with neuron i + d."""
    maps = width_maps(8, 4, head_size=2)

    np.testing.assert_array_equal(maps.residual, np.hstack([np.eye(4), np.eye(4)]) / 2)
    np.testing.assert_array_equal(maps.mlp, np.hstack([np.eye(16), np.eye(16)]) / 2)
    np.testing.assert_array_equal(depth_map(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


def test_inputs_are_summed_going_down_and_shared_out_going_up():
    """The way back of F is a matrix of ones and zeros; that of T gives each copy half."""
    maps = width_maps(4, 2, head_size=1)

    np.testing.assert_array_equal(reverse_map(maps.residual), np.vstack([np.eye(2), np.eye(2)]))
    np.testing.assert_array_equal(reverse_map(reverse_map(maps.residual)), maps.residual)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_has_grown_has_no_more_rank(scheme):
    """A matrix that was de-coalesced has at most the small rank; mixed with a random big one it has full rank."""
    small, big = 2 * len(scheme), 8
    copies, _ = decoalescing_maps(width_maps(big, small, head_size=2, scheme=scheme), np.eye(1))
    rng = np.random.default_rng(0)

    grown = map_weight(rng.standard_normal((small, small)), copies, role="matrix")

    assert np.linalg.matrix_rank(grown) == small
    assert np.linalg.matrix_rank(0.75 * grown + 0.25 * rng.standard_normal((big, big))) == big


def test_single_precision_stays_single():
    """Weights in float32 come out in float32, whatever the maps are in."""
    weight = np.ones((2, 4, 4), np.float32)

    assert map_weight(weight, width_maps(4, 2, head_size=1), role="layer_matrix").dtype == np.float32
    assert apply_depth({"w": weight}, {"w": "layer_matrix"}, depth_map(2, 1))["w"].dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: width_maps(10, 4, head_size=4), "big_width=10 must be a multiple of head_size=4"),
        (lambda: width_maps(8, 6, head_size=4), "small_width=6 must be a multiple of head_size=4"),
        (lambda: width_maps(8, 4, head_size=0), "head_size=0 must be at least 1"),
        (lambda: width_maps(8, 4, head_size=2, mlp_width=10), "mlp_width=10 must be a multiple of the 4 heads"),
        (lambda: width_maps(8, 4, head_size=2, scheme=[[0, 1, 2, 3]]), "has 1 groups, expected 2"),
        (lambda: width_maps(8, 4, head_size=2, scheme=[[0, 1], [2, 4]]), r"head 4 is not in 0\.\.3"),
        (lambda: width_maps(8, 4, head_size=2, scheme=[[0, 1], [1, 2, 3]]), "every head must belong to exactly one"),
        (lambda: width_maps(8, 4, head_size=2, scheme=[[0, 1], [2]]), "every head must belong to exactly one"),
        (lambda: width_maps(8, 4, head_size=2, scheme=[[0, 1, 2, 3], []]), "no group be empty"),
        (lambda: width_maps(6, 2, head_size=2), "every head must belong to exactly one group"),
        (lambda: depth_map(3, 2, [[0, 1, 2]]), "has 1 groups, expected 2"),
        (lambda: depth_map(3, 2, [[0, 1], [-1]]), r"layer -1 is not in 0\.\.2"),
        (lambda: depth_map(5, 2), "big_depth=5 must be small_depth=2 or twice that"),
        (lambda: depth_map(-1, 2), "big_depth=-1 must not be negative"),
        (lambda: reverse_map([[1.0, -1.0]]), "matrix must not be negative"),
        (lambda: map_weight(np.ones(3), width_maps(4, 2, head_size=1), role="vector"), "axis -1 must have width 4"),
        (lambda: map_weight(np.ones(4), width_maps(4, 2, head_size=1), role="gain"), "role='gain' is not one of"),
        (lambda: map_weight(np.ones(4), width_maps(4, 2, head_size=1), role="matrix"), "expected at least 2 axes"),
        (lambda: apply_depth({"w": np.ones((3, 2))}, {"w": "layer_vector"}, depth_map(2, 1)), "w has 3 layers"),
        (lambda: apply_width({"w": np.ones(2)}, {}, width_maps(4, 2, head_size=1)), "parameter 'w' has no role"),
        (lambda: apply_width({"w": np.ones(2)}, {"w": "vector"}, width_maps(4, 2, head_size=1)), "w: weight has shape"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    """Widths, schemes, roles and shapes that do not fit are refused in words."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"head_size": 3}, "width 4 must be a multiple of head_size=3"),
        ({}, {"head_size": 0}, "head_size=0 must be at least 1"),
        ({"mlp_in": np.ones((2, 4, 3))}, {"head_size": 2}, "mlp_in has 3 outputs, expected a multiple of the 2 heads"),
        ({"mlp_out": np.ones((1, 4, 4))}, {"head_size": 2, "n_layers": 1}, "mlp_out has 1 layers"),
        ({}, {"head_size": 1, "width_scheme": [[0, 1, 2], [3]]}, "all groups must be pairs, unless embedding_factor"),
        ({}, {"head_size": 1, "width_scheme": [[0, 1], [3]]}, r"head 3 is not in|every head must belong"),
        ({}, {"head_size": 1, "n_heads": 3, "width_scheme": [[0, 1], [2, 3]]}, "has 2 groups, expected 3"),
    ],
)
def test_models_that_do_not_fit_are_named(changes, options, message):
    """Parameters and schemes that do not fit each other are refused in words."""
    ones = ParametersByRole(
        np.ones((3, 4)),
        None,
        np.ones((2, 4)),
        np.ones((2, 1, 4)),
        np.ones((2, 1, 4, 4)),
        np.ones((2, 4, 4)),
        np.ones((2, 4)),
        np.ones((2, 4, 4)),
    )
    with pytest.raises(ValueError, match=message):
        coalesce_parameters(ones._replace(**changes), **options)
