"""The vector-Jacobian product of attention against complex-step derivatives, and what must hold of it exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.attention import attention
from refattn.primitives.attention_arguments import check_attention
from refattn.primitives.attention_gradients import attention_vjp
from refattn.primitives.attention_pipeline import attend

seeds = st.integers(0, 2**32 - 1)
STEP = 1e-30


def complex_step(call, dout, dlse, **directions):
    """Return the derivative of Σ dO·o + Σ dL·L in a direction of the inputs, exact to rounding."""
    moved = {name: getattr(call, name) + 1j * STEP * direction for name, direction in directions.items()}
    forward = attend(call._replace(**moved))
    lse = np.where(np.isfinite(forward.lse.real), forward.lse, 0)
    return (np.sum(dout * forward.out) + np.sum(dlse * lse)).imag / STEP


@given(seed=seeds, empty=st.sampled_from(["zero", "uniform"]))
def test_every_gradient_equals_the_complex_step(draw_attention, seed, empty):
    """Along a random direction of every input the gradient is the complex-step derivative, whatever the options."""
    q, k, v, options = draw_attention(seed)
    call = check_attention(q, k, v, empty=empty, **options)
    rng = np.random.default_rng(seed)
    dout, dlse = rng.normal(size=(*q.shape[:3], v.shape[3])), rng.normal(size=q.shape[:3])
    gradients = attention_vjp(q, k, v, dout, dlse=dlse, empty=empty, **options)
    pairs = {"q": gradients.dq, "k": gradients.dk, "v": gradients.dv, "scale": gradients.dscale}
    pairs |= {"bias": gradients.dbias, "slopes": gradients.dslopes, "sinks": gradients.dsinks}
    for name, gradient in pairs.items():
        if getattr(call, name) is None:
            assert gradient is None
            continue
        direction = rng.normal(size=np.shape(getattr(call, name)))
        expected = complex_step(call, dout, dlse, **{name: direction})
        actual = np.sum(gradient.reshape(direction.shape) * direction)
        scale = 1 + np.abs(gradient).sum()
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12 * scale, err_msg=name)


@given(seed=seeds)
def test_shapes_are_those_of_the_inputs(draw_attention, seed):
    """Every gradient has the shape of its input, however that was broadcast."""
    q, k, v, options = draw_attention(seed)
    gradients = attention_vjp(q, k, v, np.ones((*q.shape[:3], v.shape[3])), **options)
    inputs = (q, k, v, *(options.get(name) for name in ("bias", "sinks", "alibi_slopes")), 1.0)
    for gradient, given_input in zip(gradients, inputs, strict=True):
        assert (gradient is None) == (given_input is None)
        assert gradient is None or gradient.shape == np.shape(given_input)


@given(seed=seeds)
def test_logit_gradients_of_a_row_sum_to_zero(draw_attention, seed):
    """Without a sink and without dL the logit gradients of a row sum to 0, and Σ dO·o = Σ dV·v always."""
    q, k, v, options = draw_attention(seed, lengths=(1, 7))
    options = {name: value for name, value in options.items() if name not in ("sinks", "bias")}
    bias = np.zeros((*q.shape[:3], k.shape[2]))
    dout = np.random.default_rng(seed).normal(size=(*q.shape[:3], v.shape[3]))
    gradients = attention_vjp(q, k, v, dout, bias=bias, **options)
    np.testing.assert_allclose(gradients.dbias.sum(axis=-1), 0, atol=1e-12)
    out = attention(q, k, v, **options).out
    np.testing.assert_allclose((dout * out).sum(), (gradients.dv * v).sum(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layout", ["bshd", "bs(hd)"])
def test_layouts(layout):
    """Gradients are in the layout of their inputs."""
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.normal(size=s) for s in ((2, 4, 3, 5), (2, 2, 6, 5), (2, 2, 6, 2), (2, 4, 3, 2)))
    expected = attention_vjp(q, k, v, dout, causal=True)

    def convert(x):
        x = x.swapaxes(1, 2)
        return x if layout == "bshd" else x.reshape(*x.shape[:2], -1)

    heads = {} if layout == "bshd" else {"q_heads": 4, "kv_heads": 2}
    actual = attention_vjp(*map(convert, (q, k, v, dout)), causal=True, layout=layout, **heads)
    for left, right in zip(actual[:3], expected[:3], strict=True):
        np.testing.assert_allclose(left, convert(right), rtol=1e-12)


@pytest.mark.parametrize("empty", ["zero", "uniform", "nan"])
def test_empty_rows(empty):
    """An empty row gives nothing, dO / Sk to every value, or NaN, as the policy says; a padded query nothing."""
    rng = np.random.default_rng(1)
    q, k, v, dout = (rng.normal(size=(1, 1, n, 2)) for n in (2, 4, 4, 2))
    options = {"mask": [[False] * 4] * 2, "empty": empty, "bias": np.zeros(4)}
    g = attention_vjp(q, k, v, dout, dlse=np.ones((1, 1, 2)), **options)
    fill = np.nan if empty == "nan" else 0.0
    for gradient in (g.dq, g.dk, g.dbias, g.dscale):
        np.testing.assert_array_equal(gradient, np.full(gradient.shape, fill))
    share = {"zero": 0, "uniform": 1 / 4, "nan": np.nan}[empty]
    np.testing.assert_allclose(g.dv, np.broadcast_to(share * dout.sum(axis=2, keepdims=True), v.shape))
    padded = attention_vjp(q, k, v, dout, dlse=np.ones((1, 1, 2)), q_lengths=[0], **options)
    assert all((gradient == 0).all() for gradient in (padded.dq, padded.dk, padded.dv, padded.dbias))


@pytest.mark.parametrize("content", [np.nan, np.inf, 1e308])
def test_hidden_keys_take_no_gradient_and_give_none(content):
    """Whatever hidden keys and values hold, their gradients are 0 and the others do not change."""
    rng = np.random.default_rng(2)
    q, k, v, dout = (rng.normal(size=(1, 2, n, 3)) for n in (3, 5, 5, 3))
    options = {"kv_lengths": [4], "softcap": 2.0}
    clean = attention_vjp(q, k, v, dout, **options)
    k[:, :, 4], v[:, :, 4] = content, content
    with np.errstate(all="raise"):
        spoilt = attention_vjp(q, k, v, dout, **options)
    for name in ("dq", "dk", "dv", "dscale"):
        np.testing.assert_allclose(getattr(spoilt, name), getattr(clean, name), rtol=1e-12)
    assert (spoilt.dk[:, :, 4] == 0).all()
    assert (spoilt.dv[:, :, 4] == 0).all()


@pytest.mark.parametrize("where", ["q", "dout"])
def test_nan_in_a_row_poisons_only_the_keys_that_it_sees(where):
    """A poisoned query or cotangent spoils the gradients of its own query and of its visible keys, no others."""
    rng = np.random.default_rng(3)
    arrays = {name: rng.normal(size=(1, 1, 4, 3)) for name in ("q", "k", "v", "dout")}
    arrays[where][0, 0, 1] = np.nan
    g = attention_vjp(**arrays, causal=True)
    assert np.isnan(g.dq[0, 0, :, 0]).tolist() == [False, True, False, False]
    for gradient in (g.dk, g.dv):
        assert np.isnan(gradient[0, 0, :, 0]).tolist() == [True, True, False, False]


def test_single_key_has_no_logit_gradient():
    """With one key the output does not depend on q and k, and v takes the whole cotangent."""
    rng = np.random.default_rng(4)
    q, k, v, dout = (rng.normal(size=(1, 1, n, 2)) for n in (3, 1, 1, 3))
    g = attention_vjp(q, k, v, dout)
    np.testing.assert_allclose(g.dq, 0, atol=1e-14)
    np.testing.assert_allclose(g.dk, 0, atol=1e-14)
    np.testing.assert_allclose(g.dv, dout.sum(axis=2, keepdims=True), rtol=1e-13)


def test_bias_at_minus_infinity_has_gradient_zero():
    """Where the bias hides a key its gradient is 0."""
    rng = np.random.default_rng(5)
    q, k, v, dout = (rng.normal(size=(1, 1, 3, 2)) for _ in range(4))
    g = attention_vjp(q, k, v, dout, bias=np.array([0, -np.inf, 0]))
    assert g.dbias[1] == 0
    assert (g.dbias[[0, 2]] != 0).all()


def test_dtype_and_inputs():
    """Gradients have the dtype of q, and read-only inputs are enough."""
    rng = np.random.default_rng(6)
    arrays = [rng.normal(size=(1, 2, 3, 2)).astype(np.float32) for _ in range(4)]
    for x in arrays:
        x.flags.writeable = False
    g = attention_vjp(*arrays, sinks=np.zeros(2), alibi_slopes=np.ones(2), bias=np.zeros(3))
    assert {gradient.dtype for gradient in g} == {np.dtype(np.float32)}


def test_bad_cotangents_are_named():
    """Cotangents of the wrong shape are refused by name."""
    x = np.ones((1, 2, 3, 4))
    with pytest.raises(ValueError, match="dout has shape"):
        attention_vjp(x, x, x, x[:, :1])
    with pytest.raises(ValueError, match="dlse has shape"):
        attention_vjp(x, x, x, x, dlse=np.ones((1, 2)))


@pytest.mark.parametrize("empty", ["zero", "uniform"])
@pytest.mark.parametrize("softcap", [None, 1.0])
@pytest.mark.parametrize("spoiled", ["k", "v"])
def test_an_empty_row_does_not_meet_hidden_numbers(empty, softcap, spoiled):
    """A key or value that nobody sees may be NaN: no gradient of an empty row or of a score becomes NaN by it."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((1, 1, 3, 2)) for name in "qkv"}
    clean = dict(arrays)
    arrays[spoiled] = arrays[spoiled].copy()
    arrays[spoiled][0, 0, 2] = np.nan
    options = {"doc_q": [0, 0, 1], "doc_k": [0, 0, 2], "softcap": softcap, "empty": empty}
    dout = rng.standard_normal((1, 1, 3, 2))

    found = attention_vjp(**arrays, dout=dout, **options)
    expected = attention_vjp(**clean, dout=dout, **options)

    for name in ("dq", "dk", "dv"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
