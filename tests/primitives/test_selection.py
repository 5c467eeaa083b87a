"""Choosing and gathering."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refattn.primitives.selection import gather_rows, top_k

halves = st.integers(-4, 4).map(lambda n: n / 2)


@given(arrays(np.float64, st.tuples(st.integers(0, 3), st.integers(1, 7)), elements=halves), st.data())
def test_top_k_is_a_stable_sort(scores, data):
    """The largest come first, and among equals the lowest index, as Python's stable sort has it."""
    k = data.draw(st.integers(0, scores.shape[1]))
    values, indices = top_k(scores, k=k)
    for row, value, index in zip(scores, values, indices, strict=True):
        expected = sorted(range(len(row)), key=lambda i: -row[i])[:k]
        assert index.tolist() == expected
        np.testing.assert_array_equal(value, row[expected])


def test_top_k_along_another_axis():
    """Any axis can be ranked."""
    scores = np.random.default_rng(0).standard_normal((3, 5, 2))
    values, indices = top_k(scores, k=2, axis=1)
    moved = top_k(np.moveaxis(scores, 1, -1), k=2)
    np.testing.assert_array_equal(np.moveaxis(values, 1, -1), moved[0])
    np.testing.assert_array_equal(np.moveaxis(indices, 1, -1), moved[1])


def test_nan_ranks_last():
    """A score that is not a number is chosen only when nothing else is left."""
    _, indices = top_k(np.array([np.nan, 1.0, 2.0]), k=3)
    assert indices.tolist() == [2, 1, 0]


@given(st.integers(0, 2), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.integers(0, 99))
def test_gather_rows_is_indexing(B, N, Q, K, seed):
    """out[b, q, j] is table[b, index[b, q, j]], whatever shape an entry has."""
    rng = np.random.default_rng(seed)
    table, index = rng.standard_normal((B, N, 2, 3)), rng.integers(N, size=(B, Q, K))
    out = gather_rows(table, index)
    assert out.shape == (B, Q, K, 2, 3)
    for b, q, j in np.ndindex(B, Q, K):
        np.testing.assert_array_equal(out[b, q, j], table[b, index[b, q, j]])


def test_gather_rows_broadcasts_batches():
    """A single index set serves all tables beside it."""
    rng = np.random.default_rng(1)
    table, index = rng.standard_normal((2, 3, 5, 4)), rng.integers(5, size=(2, 1, 6, 2))
    out = gather_rows(table, index)
    np.testing.assert_array_equal(out[:, 2], gather_rows(table[:, 2], index[:, 0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_k(np.zeros(3), k=4), "k=4 must lie between 0 and 3"),
        (lambda: top_k(np.zeros(3), k=-1), "k=-1"),
        (lambda: gather_rows(np.zeros((3, 2)), np.array([[0, 3]])), "between 0 and 2"),
        (lambda: gather_rows(np.zeros((3, 2)), np.array([[-1]])), "between 0 and 2"),
        (lambda: gather_rows(np.zeros((3, 2)), np.array([0])), "index has shape"),
        (lambda: gather_rows(np.zeros((3, 2)), np.array([[0.0]])), "expected integers"),
    ],
)
def test_refuses(call, message):
    """Indices and counts outside the table are refused."""
    with pytest.raises(ValueError, match=message):
        call()
