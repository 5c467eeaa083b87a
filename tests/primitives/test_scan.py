"""The gated recurrence: three forms of one function."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.scan import gated_scan, gated_scan_closed_form, gated_scan_parallel, gated_scan_weights

seeds = st.integers(0, 2**16)
lengths = st.integers(0, 20)
chunks = st.one_of(st.none(), st.integers(1, 22))
FORMS = [gated_scan, gated_scan_parallel, gated_scan_closed_form]


def draw(seed, length, lead=(2,), width=3):
    rng = np.random.default_rng(seed)
    return rng.random((*lead, length, width)), rng.standard_normal((*lead, length, width))


@given(seeds, lengths, chunks)
def test_the_three_forms_agree(seed, length, chunk_size):
    """Loop, parallel scan and weighted sum give the same states to 1e-12."""
    gate, value = draw(seed, length)
    loop = gated_scan(gate, value, chunk_size=chunk_size)

    for form in (gated_scan_parallel, gated_scan_closed_form):
        np.testing.assert_allclose(form(gate, value, chunk_size=chunk_size), loop, rtol=0, atol=1e-12)


@given(seeds, st.integers(1, 12), st.integers(1, 4))
def test_each_chunk_is_a_sequence_of_its_own(seed, chunk_size, count):
    """Scanning with chunks is scanning each chunk alone."""
    gate, value = draw(seed, chunk_size * count)
    states = gated_scan(gate, value, chunk_size=chunk_size)

    for c in range(count):
        part = slice(c * chunk_size, (c + 1) * chunk_size)
        np.testing.assert_array_equal(states[:, part], gated_scan(gate[:, part], value[:, part]))


@pytest.mark.parametrize("form", FORMS)
@given(seed=seeds, length=lengths, chunk_size=chunks)
def test_saturated_gates(form, seed, length, chunk_size):
    """With gates of 0 the states are the values, with gates of 1 they are 0, exactly."""
    gate, value = draw(seed, length)

    np.testing.assert_array_equal(form(np.zeros_like(gate), value, chunk_size=chunk_size), value)
    np.testing.assert_array_equal(form(np.ones_like(gate), value, chunk_size=chunk_size), 0.0 * value)


@pytest.mark.parametrize("form", FORMS)
@given(g=st.floats(0.0, 1.0), length=st.integers(1, 30))
def test_constant_gate_and_value(form, g, length):
    """Under a constant gate the state approaches a constant value v as (1 − g^(l+1)) v."""
    states = form(np.full((length, 1), g), np.full((length, 1), 3.0))

    np.testing.assert_allclose(states[:, 0], 3.0 * (1.0 - g ** np.arange(1, length + 1)), rtol=0, atol=1e-12)


@given(seeds, st.integers(1, 20), chunks)
def test_states_stay_in_the_hull_of_zero_and_the_values_so_far(seed, length, chunk_size):
    """Each channel lies between the least and the greatest of 0 and its chunk's values so far."""
    gate, value = draw(seed, length)
    states = gated_scan(gate, value, chunk_size=chunk_size)

    size = chunk_size or length
    for t in range(length):
        seen = value[:, t // size * size : t + 1]
        assert np.all(states[:, t] <= np.maximum(0.0, seen.max(axis=1)) + 1e-12)
        assert np.all(states[:, t] >= np.minimum(0.0, seen.min(axis=1)) - 1e-12)


@given(seeds, st.integers(1, 20), st.integers(0, 20))
def test_a_state_carries_across_calls(seed, length, cut):
    """Two calls with the state handed over equal one."""
    gate, value = draw(seed, length)
    cut = min(cut, length)
    start = np.ones((2, 3))
    whole = gated_scan(gate, value, initial_state=start)
    first = gated_scan(gate[:, :cut], value[:, :cut], initial_state=start)
    handed = first[:, -1] if cut else start

    np.testing.assert_array_equal(first, whole[:, :cut])
    np.testing.assert_array_equal(gated_scan(gate[:, cut:], value[:, cut:], initial_state=handed), whole[:, cut:])


def test_the_initial_state_reaches_the_first_chunk_only():
    """At the start of the second chunk the state begins from zero, whatever was given."""
    gate, value = draw(0, 6)
    started = gated_scan(gate, value, chunk_size=3, initial_state=np.full((2, 3), 5.0))
    plain = gated_scan(gate, value, chunk_size=3)

    assert not np.allclose(started[:, :3], plain[:, :3])
    np.testing.assert_array_equal(started[:, 3:], plain[:, 3:])


@given(seeds, st.integers(0, 12), chunks)
def test_weights_are_lower_triangular_and_sum_to_one_minus_what_the_gates_kept(seed, length, chunk_size):
    """W ≥ 0, W = 0 for later tokens and other chunks, and the rows sum to 1 − Π gates of the chunk so far."""
    gate, _ = draw(seed, length)
    weights = gated_scan_weights(gate, chunk_size=chunk_size)
    size = chunk_size or max(length, 1)
    t, s = np.arange(length)[:, None], np.arange(length)

    assert np.all(weights >= 0)
    assert np.all(weights[:, (s > t) | (s // size != t // size)] == 0)
    for i in range(length):
        kept = np.prod(gate[:, i // size * size : i + 1], axis=1)
        np.testing.assert_allclose(weights[:, i].sum(axis=1), 1.0 - kept, rtol=0, atol=1e-12)


def test_gates_of_zero_among_small_ones_do_no_harm():
    """No form divides by products of gates: zeros and 1e-200 among 5,000 gates leave all forms equal and finite."""
    rng = np.random.default_rng(0)
    gate = rng.choice([0.0, 1e-200, 0.5], (5000, 2))
    value = rng.standard_normal((5000, 2))

    np.testing.assert_allclose(gated_scan_parallel(gate, value), gated_scan(gate, value), rtol=0, atol=1e-12)


def test_leading_axes_broadcast():
    """One gate for keys and values: (T, D) against (2, B, T, D)."""
    gate, value = draw(1, 7, lead=(2, 4))

    for form in FORMS:
        both = form(gate[0, 0], value, chunk_size=3)
        np.testing.assert_array_equal(both[1, 2], form(gate[0, 0], value[1, 2], chunk_size=3))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_dtype_is_kept(form, dtype):
    """Each form computes and returns in the dtype given."""
    gate, value = (a.astype(dtype) for a in draw(2, 9))

    assert form(gate, value, chunk_size=4).dtype == dtype


@pytest.mark.parametrize("form", FORMS)
def test_inputs_are_left_alone(form):
    """Read-only and strided inputs give the same states and keep their values."""
    gate, value = (a[:, ::-1] for a in draw(3, 8))
    gate.flags.writeable = value.flags.writeable = False

    np.testing.assert_array_equal(form(gate, value, chunk_size=3), form(gate.copy(), value.copy(), chunk_size=3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, v: gated_scan(g, v, chunk_size=0), "chunk_size=0 must be >= 1"),
        (lambda g, v: gated_scan(g[:, :3], v), r"gate has shape \(2, 3, 3\) and value \(2, 6, 3\)"),
        (lambda g, v: gated_scan(g[0, 0], v), "both to end in the same"),
        (lambda g, v: gated_scan(np.stack([g] * 3), np.stack([v] * 2)), "do not broadcast"),
        (lambda g, v: gated_scan(g, v, initial_state=np.ones(3)), r"initial_state has shape \(3,\), expected \(2, 3\)"),
        (lambda g, v: gated_scan_parallel(g, v, chunk_size=-1), "chunk_size=-1 must be >= 1"),
        (lambda g, _: gated_scan_weights(g, chunk_size=0), "chunk_size=0 must be >= 1"),
    ],
)
def test_bad_input_is_named(call, message):
    """What does not fit is refused with the argument's name and the rule."""
    with pytest.raises(ValueError, match=message):
        call(*draw(0, 6))
