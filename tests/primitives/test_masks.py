"""Positions and the rules that hide keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.masks import (
    block_causal_mask,
    causal_mask,
    chunked_mask,
    document_mask,
    global_window_mask,
    length_mask,
    prefix_mask,
    query_positions,
    visibility,
    window_mask,
)

lengths = st.integers(0, 6)


def rows(mask):
    return ["".join("#" if seen else "." for seen in row) for row in mask]


@pytest.mark.parametrize(
    ("align", "kv_lengths", "q_lengths", "positions"),
    [
        ("top_left", None, None, [[0, 1]]),
        ("bottom_right", None, None, [[3, 4]]),
        ("bottom_right", [5, 2], None, [[3, 4], [0, 1]]),
        ("bottom_right", [5, 2], [2, 1], [[3, 4], [1, 2]]),
        (7, None, None, [[7, 8]]),
        ([7, -1], None, None, [[7, 8], [-1, 0]]),
    ],
)
def test_query_positions(align, kv_lengths, q_lengths, positions):
    """The first query stands at 0, at n_k − n_q, or at the integer given."""
    assert query_positions(2, 5, align, kv_lengths, q_lengths).tolist() == positions


@given(sq=lengths, sk=lengths, offset=st.integers(-4, 4))
def test_masks_are_their_definitions(sq, sk, offset):
    """Every entry of the causal, window and chunk masks is its definition."""
    causal, window = causal_mask(sq, sk, offset=offset), window_mask(sq, sk, 2, 1, offset=offset)
    chunked = chunked_mask(sq, sk, 2, offset=offset)
    for i in range(sq):
        for j in range(sk):
            p = i + offset
            assert causal[i, j] == (j <= p)
            assert window[i, j] == (p - 2 <= j <= p + 1)
            assert chunked[i, j] == (p // 2 == j // 2)


def test_offsets_of_a_batch_add_an_axis():
    """One offset a batch entry gives one mask a batch entry."""
    for mask in (causal_mask(2, 3, offset=[0, 1]), window_mask(2, 3, None, None, offset=[0, 1])):
        assert mask.shape == (2, 2, 3)
    assert rows(causal_mask(2, 3, offset=[0, 1])[1]) == ["##.", "###"]


def test_single_rules():
    """Documents, prefixes and lengths hide what their sentence says."""
    assert rows(document_mask([0, 0, 1], [0, 1])) == ["#.", "#.", ".#"]
    assert rows(prefix_mask(2, 3, 1)) == ["#..", "#.."]
    assert prefix_mask(2, 3, [0, 2]).shape == (2, 2, 3)
    assert rows(length_mask(3, [0, 2])) == ["...", "##."]


def test_block_causal():
    """Tokens of a block see all of it and what comes before; tokens of no block are causal."""
    assert rows(block_causal_mask([-1, 0, 0, -1, 1, 1])) == ["#.....", "###...", "###...", "####..", "######", "######"]
    assert rows(block_causal_mask([-1, -1])) == ["#.", "##"]


def test_global_window():
    """A global token sees all and is seen by all; the others see a window."""
    mask = global_window_mask(np.arange(5) == 4, np.arange(5) == 4, 1)
    assert rows(mask) == ["##..#", "###.#", ".####", "..###", "#####"]


@given(seed=st.integers(0, 2**32 - 1))
def test_visibility_is_the_and_of_its_rules(seed):
    """Visibility with several rules is the AND of visibility with each of them."""
    rng = np.random.default_rng(seed)
    place = {"align": rng.integers(-2, 3, 2)}
    each = [
        {"mask": rng.random((2, 3, 4, 5)) < 0.5},
        {"causal": True, "prefix": int(rng.integers(3))},
        {"window": (int(rng.integers(3)), None)},
        {"kv_lengths": rng.integers(0, 6, 2)},
        {"q_lengths": rng.integers(0, 5, 2)},
        {"doc_q": rng.integers(0, 2, 4), "doc_k": rng.integers(0, 2, 5)},
        {"chunk": 2},
    ]
    together = visibility(4, 5, **place, **{name: value for rule in each for name, value in rule.items()})
    expected = np.ones((2, 3, 4, 5), bool)
    for rule in each:
        expected &= visibility(4, 5, **place, **rule)
    np.testing.assert_array_equal(together, expected)


def test_visibility_has_broadcastable_axes():
    """Axes along which nothing differs have length 1."""
    assert visibility(2, 3).shape == (1, 1, 2, 3)
    assert visibility(2, 3, kv_lengths=[1, 2]).shape == (2, 1, 2, 3)
    assert visibility(2, 3, mask=np.ones((4, 1, 3), bool)).shape == (1, 4, 2, 3)


def test_prefix_without_causal_changes_nothing():
    """The prefix spares keys from the causal rule, and from no other."""
    assert visibility(2, 3, prefix=1).all()
    assert rows(visibility(2, 3, causal=True, prefix=3, window=(0, None))[0, 0]) == ["###", ".##"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"align": "middle"}, "align='middle'"),
        ({"align": [[1]]}, "align has shape"),
        ({"align": 0.5}, "align has dtype float64"),
        ({"window": (1, 2, 3)}, "window="),
        ({"window": (-1, None)}, "left must be None or an integer"),
        ({"window": (None, 1.5)}, "right must be None or an integer"),
        ({"mask": np.ones(3)}, "mask has dtype float64"),
        ({"mask": np.ones(2, bool)}, r"mask has shape \(2,\)"),
        ({"mask": np.ones((1, 1, 1, 1, 3), bool)}, "mask has 5 axes"),
        ({"kv_lengths": [4]}, "kv_lengths="),
        ({"kv_lengths": [-1]}, "kv_lengths="),
        ({"q_lengths": [1.0]}, "q_lengths has dtype"),
        ({"prefix": -1}, "prefix="),
        ({"doc_q": [0, 0]}, "doc_q and doc_k"),
        ({"doc_q": [0], "doc_k": [0, 0, 0]}, "doc_q has shape"),
        ({"doc_q": [0, 0], "doc_k": [0, 0]}, "doc_k has shape"),
        ({"chunk": 0}, "chunk=0"),
    ],
)
def test_bad_rules_are_named(arguments, words):
    """An argument that breaks its rule is refused by name."""
    with pytest.raises(ValueError, match=words):
        visibility(2, 3, **arguments)


def test_building_blocks_refuse_bad_counts():
    """Negative windows and prefixes, empty chunks and lengths out of range are refused by name."""
    for call, words in (
        (lambda: window_mask(2, 3, -1, None), "window="),
        (lambda: prefix_mask(2, 3, -1), "prefix="),
        (lambda: chunked_mask(2, 3, 0), "chunk=0"),
        (lambda: length_mask(3, [4]), "lengths="),
        (lambda: causal_mask(2, 3, offset=0.5), "offset"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
