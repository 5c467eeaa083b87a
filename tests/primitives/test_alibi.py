"""ALiBi slopes and biases."""

import numpy as np
import pytest

from refattn.primitives.alibi import alibi_bias, alibi_slopes

EIGHT = [0.5**n for n in range(1, 9)]


@pytest.mark.parametrize(
    ("n", "slopes"),
    [
        (1, [1 / 256]),
        (3, [1 / 16, 1 / 256, 1 / 4]),
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),
        (8, EIGHT),
        (12, [*EIGHT, 0.5**0.5, 0.5**1.5, 0.5**2.5, 0.5**3.5]),
    ],
)
def test_standard_slopes(n, slopes):
    """The slopes of n heads are those of the published rule, powers of two or not."""
    np.testing.assert_allclose(alibi_slopes(n), slopes, rtol=1e-15)


def test_naive_slopes():
    """The naive rule uses 2^(−8(h+1)/n) for every n and agrees with the standard one at powers of two."""
    np.testing.assert_allclose(alibi_slopes(3, rule="naive"), [0.15749013, 0.02480314, 0.00390625], rtol=1e-6)
    for n in (1, 2, 4, 64):
        np.testing.assert_allclose(alibi_slopes(n, rule="naive"), alibi_slopes(n), rtol=1e-15)


def test_every_head_count_has_as_many_distinct_slopes():
    """Any number of heads have as many distinct slopes in (0, 1)."""
    assert alibi_slopes(0).shape == (0,)
    for n in range(1, 129):
        slopes = alibi_slopes(n)
        assert len(np.unique(slopes)) == n
        assert ((slopes > 0) & (slopes < 1)).all()


def test_bias_lowers_the_logit_with_distance():
    """The bias is −m·|p − r|, on both sides of the query, for slopes with or without a batch axis."""
    bias = alibi_bias([0.5, 0.25], [1], [0, 1, 2, 3])
    np.testing.assert_array_equal(bias, [[[-0.5, 0, -0.5, -1]], [[-0.25, 0, -0.25, -0.5]]])
    assert alibi_bias(np.ones((3, 2), np.float32), np.zeros((3, 4), int), np.arange(5)).shape == (3, 2, 4, 5)


def test_bad_arguments_are_named():
    """An unknown rule, a negative head count and slopes that are not finite are refused by name."""
    with pytest.raises(ValueError, match="rule='other'"):
        alibi_slopes(4, rule="other")
    with pytest.raises(ValueError, match="n=-1"):
        alibi_slopes(-1)
    with pytest.raises(ValueError, match="slopes"):
        alibi_bias([np.nan], [0], [0])
    with pytest.raises(ValueError, match="positions_q"):
        alibi_bias([1.0], [0.5], [0])
