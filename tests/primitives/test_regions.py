"""Cutting maps into regions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.regions import region_merge, region_partition

small = st.integers(1, 4)


@given(small, small, small, small, st.integers(0, 2))
def test_merge_undoes_partition(rows, columns, h, w, batch):
    """Putting the regions together gives back the map, for every grid and every region."""
    x = np.arange(batch * rows * h * columns * w * 2.0).reshape(batch, rows * h, columns * w, 2)
    regions = region_partition(x, n_win=(rows, columns))
    assert regions.shape == (batch, rows * columns, h, w, 2)
    np.testing.assert_array_equal(region_merge(regions, n_win=(rows, columns)), x)


@given(small, small, small, small, st.data())
def test_regions_are_blocks_in_row_major_order(rows, columns, h, w, data):
    """Region j · columns + i is the block of neighbours in block row j and block column i."""
    x = np.arange(rows * h * columns * w * 1.0).reshape(rows * h, columns * w, 1)
    j, i = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    block = x[j * h : (j + 1) * h, i * w : (i + 1) * w]
    np.testing.assert_array_equal(region_partition(x, n_win=(rows, columns))[j * columns + i], block)


def test_one_number_means_a_square_grid():
    """An integer asks for as many region rows as region columns."""
    x = np.arange(72.0).reshape(6, 12, 1)
    np.testing.assert_array_equal(region_partition(x, n_win=3), region_partition(x, n_win=(3, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: region_partition(np.zeros((5, 6, 1)), n_win=2), "H=5, W=6 are not divisible by n_win=2"),
        (lambda: region_partition(np.zeros((4, 4, 1)), n_win=0), "n_win=0"),
        (lambda: region_partition(np.zeros((4, 4)), n_win=2), "expected at least 3"),
        (lambda: region_merge(np.zeros((5, 2, 2, 1)), n_win=2), "holds 5 regions, n_win=2 says 4"),
        (lambda: region_merge(np.zeros((2, 2, 1)), n_win=2), "expected at least 4"),
    ],
)
def test_refuses(call, message):
    """Grids that do not divide the map are refused with all numbers."""
    with pytest.raises(ValueError, match=message):
        call()
