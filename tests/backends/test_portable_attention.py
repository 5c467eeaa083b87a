"""The portable twin of attention against the reference, on every array library that is installed."""

import tracemalloc
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.backends.portable.attention import attention, attention_paged, attention_varlen, attention_vjp
from refattn.backends.portable.attention import merge_attention as portable_merge
from refattn.backends.portable.attention.problem import pose
from refattn.backends.portable.attention.rules import key_range, visible_block
from refattn.primitives.attention import attention as reference
from refattn.primitives.attention_gradients import attention_vjp as reference_vjp
from refattn.primitives.attention_online import merge_attention
from refattn.primitives.attention_packed import attention_paged as reference_paged
from refattn.primitives.attention_packed import attention_varlen as reference_varlen

EVERYTHING = ("out", "lse", "weights", "logits", "scores", "softcapped")


def numpy():
    return np.array, np.asarray, lambda function: function


def strict():
    xp = pytest.importorskip("array_api_strict")
    return xp.asarray, np.from_dlpack, lambda function: function


def torch():
    library = pytest.importorskip("torch")
    return (lambda x: library.from_numpy(x.copy())), np.asarray, lambda function: function


def jax():
    library = pytest.importorskip("jax")
    library.config.update("jax_enable_x64", True)
    return library.numpy.asarray, np.asarray, library.jit


LIBRARIES = pytest.mark.parametrize("library", [numpy, strict, torch, jax])


def on(library, function, *arrays, **options):
    """Call ``function`` on this library; where it compiles, all arrays are traced and the options static."""
    make, take, compiled = library()
    traced = {name: make(x) for name, x in options.items() if isinstance(x, np.ndarray)}
    static = {name: x for name, x in options.items() if not isinstance(x, np.ndarray)}
    result = compiled(lambda *a, **k: function(*a, **k, **static))(*map(make, arrays), **traced)
    return type(result)(*(None if x is None else take(x) for x in result)) if hasattr(result, "_fields") else result


def close(actual, expected, atol=1e-12):
    """Compare two results field by field: what is absent, what is not finite, and the numbers."""
    for name, x, y in zip(expected._fields, actual, expected, strict=True):
        assert (x is None) == (y is None), name
        if y is not None:
            assert x.dtype == y.dtype, name
            np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=name)


def draw(*, b=2, hq=4, hkv=2, sq=9, sk=11, d=4, dv=3, seed=0):
    """Return queries, keys and values."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape) for shape in ((b, hq, sq, d), (b, hkv, sk, d), (b, hkv, sk, dv)))


def spread():
    """Return option sets that use every option; for 2 batch entries, 4 heads, 9 queries and 11 keys."""
    rng = np.random.default_rng(1)
    bias = rng.normal(size=(2, 4, 9, 11))
    bias[..., 3:5] = -np.inf
    mask = rng.random((2, 1, 9, 11)) < 0.6
    mask[0, :, 5] = False
    lengths, sinks = np.array([11, 6]), np.array([0.5, -np.inf, 2.0, -1.0])
    return {
        "plain": {},
        "negative_scale": {"scale": -0.7},
        "zero_scale": {"scale": 0.0},
        "causal": {"causal": True},
        "causal_bottom_right": {"causal": True, "align": "bottom_right"},
        "causal_after_all_keys": {"causal": True, "align": -4},
        "offset_per_batch": {"causal": True, "align": np.array([3, -2])},
        "window": {"window": (2, 1), "align": 1},
        "window_left": {"window": (3, None), "causal": True, "align": "bottom_right"},
        "window_right": {"window": (None, 0)},
        "lengths": {"kv_lengths": lengths, "causal": True, "align": "bottom_right"},
        "padded_queries": {"q_lengths": np.array([9, 4]), "kv_lengths": lengths, "align": "bottom_right"},
        "padded_queries_sink": {"q_lengths": np.array([0, 4]), "sinks": sinks, "empty": "uniform"},
        "prefix": {"causal": True, "prefix": 4},
        "prefix_per_batch": {"causal": True, "prefix": np.array([2, 7])},
        "documents": {"causal": True, "doc_q": np.arange(9) // 4, "doc_k": np.arange(11) // 4},
        "documents_per_batch": {name: np.sort(rng.integers(0, 3, (2, n))) for name, n in (("doc_q", 9), ("doc_k", 11))},
        "chunk": {"chunk": 4, "causal": True, "align": 2},
        "softcap": {"softcap": 1.5, "causal": True},
        "alibi": {"alibi_slopes": rng.random(4), "align": "bottom_right"},
        "alibi_per_batch": {"alibi_slopes": rng.random((2, 4)), "causal": True},
        "sinks": {"sinks": sinks, "causal": True, "align": -3},
        "mask": {"mask": mask},
        "mask_of_keys": {"mask": np.arange(11) != 2, "causal": True},
        "mask_nan": {"mask": mask, "empty": "nan"},
        "mask_uniform": {"mask": mask, "empty": "uniform"},
        "bias": {"bias": bias, "softcap": 3.0},
        "bias_of_heads": {"bias": bias[0, :, :1]},
        "bias_of_keys": {"bias": bias[0, 0, 0], "mask": mask[:, :, :1]},
        "all": {
            "causal": True, "align": np.array([2, 1]), "window": (6, 3), "kv_lengths": lengths, "softcap": 2.0,
            "bias": bias, "mask": mask, "alibi_slopes": rng.random(4), "sinks": sinks, "scale": 0.3, "prefix": 1,
        },
    }  # fmt: skip


SPREAD = spread()


@cache
def expected_result(name):
    return reference(*draw(), returns=EVERYTHING, **SPREAD[name])


@LIBRARIES
@pytest.mark.parametrize("name", SPREAD)
def test_every_option_agrees_with_the_reference(library, name):
    """All six results equal the reference's under every option, in one block."""
    close(on(library, attention, *draw(), returns=EVERYTHING, **SPREAD[name]), expected_result(name))


@LIBRARIES
@pytest.mark.parametrize("name", ["causal", "lengths", "window", "documents_per_batch", "all"])
def test_blocks_agree_with_the_reference(library, name):
    """Blocks that divide neither length, and skip keys where that is known, change nothing."""
    found = on(library, attention, *draw(), returns=("out", "lse"), block_q=4, block_k=3, **SPREAD[name])

    close(found, expected_result(name)._replace(weights=None, logits=None, scores=None, softcapped=None))


# compiling takes its time: what differs between libraries is in these
COMPILED = ("plain", "lengths", "padded_queries_sink", "documents_per_batch", "bias_of_heads", "mask_uniform", "all")


@pytest.mark.parametrize(
    ("library", "name"),
    [(library, name) for library in (numpy, strict, torch) for name in SPREAD] + [(jax, name) for name in COMPILED],
)
def test_gradients_agree_with_the_reference(library, name):
    """Every vector-Jacobian product equals the reference's, with cotangents of output and log-sum-exp."""
    arrays, rng = draw(), np.random.default_rng(2)
    dout, dlse = rng.normal(size=(2, 4, 9, 3)), rng.normal(size=(2, 4, 9))
    blocks = {} if library is jax else {"block_q": 4, "block_k": 3}

    found = on(library, attention_vjp, *arrays, dout, dlse=dlse, **blocks, **SPREAD[name])

    close(found, reference_vjp(*arrays, dout, dlse=dlse, **SPREAD[name]), 1e-11)


@given(st.sampled_from(sorted(SPREAD)), st.integers(1, 13), st.integers(1, 13))
def test_no_block_size_matters(name, block_q, block_k):
    """On NumPy blocks of any size give the same results, forward and backward."""
    arrays, options, blocks = draw(), SPREAD[name], {"block_q": block_q, "block_k": block_k}
    dout = np.random.default_rng(3).normal(size=(2, 4, 9, 3))

    found = attention(*arrays, returns=("out", "lse"), **blocks, **options)

    np.testing.assert_allclose(found.out, expected_result(name).out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.lse, expected_result(name).lse, rtol=0, atol=1e-12)
    close(attention_vjp(*arrays, dout, **blocks, **options), reference_vjp(*arrays, dout, **options), 1e-11)


@pytest.mark.parametrize("name", [name for name in SPREAD if "sink" not in name])
def test_no_visible_key_is_skipped(name):
    """The range of keys of every block of queries holds all that the block sees, and is narrow where it can be."""
    problem = pose(*draw(), **SPREAD[name])
    for start in range(9):
        rows = slice(start, min(start + 2, 9))
        first, last = key_range(problem.rules, rows, 11)
        visible = visible_block(np, problem.rules, problem.q, rows, slice(0, 11))
        if visible is not None:
            seen = np.flatnonzero(np.broadcast_to(visible, (*visible.shape[:-1], 11)).reshape(-1, 11).any(axis=0))
            assert seen.size == 0 or (first <= seen[0] and seen[-1] < last)
    if name == "causal":
        assert key_range(problem.rules, slice(2, 4), 11) == (0, 4)
    if name == "window":
        assert key_range(problem.rules, slice(4, 6), 11) == (3, 8)


@LIBRARIES
@pytest.mark.parametrize("size", ["b", "hq", "sq", "sk", "dv"])
@pytest.mark.parametrize("empty", ["zero", "nan", "uniform"])
def test_empty_axes(library, size, empty):
    """No batch, no heads, no queries, no keys and no value channels give what the reference gives, and its gradient."""
    arrays = draw(**({"hq": 0, "hkv": 0} if size == "hq" else {size: 0}))
    options = {"causal": True, "align": "bottom_right", "empty": empty}
    dout = np.ones((*arrays[0].shape[:3], arrays[2].shape[-1]))

    close(
        on(library, attention, *arrays, returns=EVERYTHING, **options),
        reference(*arrays, returns=EVERYTHING, **options),
    )
    close(on(library, attention_vjp, *arrays, dout, **options), reference_vjp(*arrays, dout, **options))


HIDING = {
    "lengths": {"kv_lengths": np.array([7, 7])},
    "mask": {"mask": np.arange(11) < 7},
    "bias": {"bias": np.where(np.arange(11) < 7, 0.0, -np.inf)},
    "documents": {"doc_q": np.zeros(9, int), "doc_k": np.where(np.arange(11) < 7, 0, 1)},
    "causal": {"causal": True, "align": -2},
}


@LIBRARIES
@pytest.mark.parametrize("name", HIDING)
def test_hidden_keys_may_hold_anything(library, name):
    """NaN and infinity where nobody looks reach neither the output nor any gradient."""
    q, k, v = draw()
    dout = np.ones((2, 4, 9, 3))
    loud_k, loud_v = k.copy(), v.copy()
    loud_k[:, :, 7:], loud_v[:, :, 7:] = np.nan, np.inf
    loud_k[:, :, 8] = np.inf
    options = {"softcap": 2.0, **HIDING[name]}

    found = on(library, attention, q, loud_k, loud_v, returns=("out", "lse", "weights"), **options)
    gradients = on(library, attention_vjp, q, loud_k, loud_v, dout, **options)

    close(found, reference(q, k, v, returns=("out", "lse", "weights"), **options))
    close(gradients, reference_vjp(q, k, v, dout, **options), 1e-11)


@LIBRARIES
def test_visible_values_that_are_not_finite_reach_whom_they_should(library):
    """NaN and infinities in a visible value spread to the rows and channels that see them, and to no others."""
    q, k, v = draw()
    v[0, 0, 2, 0], v[0, 1, 5, 1], v[1, 0, 3, 2], v[1, 0, 6, 2] = np.nan, np.inf, np.inf, -np.inf
    k[1, 1, 8, 0] = np.nan
    q[0, 3, 4, 1] = np.nan

    found = on(library, attention, q, k, v, returns=("out", "lse"), causal=True, align=1)

    with np.errstate(invalid="ignore"):
        expected = reference(q, k, v, returns=("out", "lse"), causal=True, align=1)
    assert 0 < np.isnan(expected.out).sum() < expected.out.size
    assert np.isinf(expected.out).any()
    close(found, expected)


@LIBRARIES
def test_rows_whose_visible_logits_are_all_minus_infinity(library):
    """Keys of minus infinity give weights of 0, and no NaN."""
    q, k, v = np.ones((1, 1, 2, 1)), np.full((1, 1, 2, 1), -np.inf), np.ones((1, 1, 2, 1))

    found = on(library, attention, q, k, v, returns=("out", "lse", "weights"), mask=np.eye(2, dtype=bool))

    assert np.all(found.out == 0)
    assert np.all(found.weights == 0)
    assert np.all(np.isneginf(found.lse))


@LIBRARIES
@pytest.mark.parametrize("layout", ["bshd", "bs(hd)"])
def test_layouts(library, layout):
    """Other layouts move axes and nothing else, in the output and in the gradients."""
    arrays = [x.swapaxes(1, 2) for x in (*draw(d=3), np.ones((2, 4, 9, 3)))]
    options = {"layout": layout, "causal": True}
    if layout == "bs(hd)":
        arrays = [x.reshape(*x.shape[:2], -1) for x in arrays]
        options |= {"q_heads": 4, "kv_heads": 2}

    close(on(library, attention, *arrays[:3], **options), reference(*arrays[:3], **options))
    close(on(library, attention_vjp, *arrays, **options), reference_vjp(*arrays, **options))


PACKED = {
    "full": {},
    "causal": {"causal": True},
    "top_left": {"causal": True, "align": "top_left", "empty": "nan"},
    "offset": {"causal": True, "align": 1, "softcap": 2.0},
    "window": {"window": (2, 1), "empty": "uniform"},
    "slopes": {"alibi_slopes": np.array([0.5, 1.0, 0.1, 0.3]), "sinks": np.array([0.0, 1.0, -np.inf, 2.0])},
    "slopes_per_sequence": {"alibi_slopes": np.random.default_rng(4).random((4, 4)), "causal": True},
}


@LIBRARIES
@pytest.mark.parametrize("name", PACKED)
def test_packed_sequences(library, name):
    """Sequences end to end, empty ones among them, equal the reference, their bounds traced where functions compile."""
    q, k, v = (x[0].swapaxes(0, 1) for x in draw())
    arrays = q, k, v, np.array([0, 3, 3, 4, 9]), np.array([0, 2, 5, 5, 11])
    options = {"returns": ("out", "lse"), **PACKED[name]}

    close(on(library, attention_varlen, *arrays, **options), reference_varlen(*arrays, **options))


@LIBRARIES
@pytest.mark.parametrize("name", ["full", "causal", "window", "slopes"])
def test_pages(library, name):
    """A shuffled cache whose spare slots hold NaN, and whose spare entries point nowhere, equals the reference."""
    q, k, v = draw(b=3, sq=2, sk=20)
    pages = [np.full((7, 4, 2, x.shape[-1]), np.nan) for x in (k, v)]
    table, lengths = np.array([[5, 0, -1], [6, 99, 99], [3, 2, 1]]), np.array([7, 2, 12])
    for entry, length in enumerate(lengths):
        for j in range(length):
            for page, x in zip(pages, (k, v), strict=True):
                page[table[entry, j // 4], j % 4] = x[entry, :, j]
    options = {"returns": ("out", "lse"), **PACKED[name]}

    close(
        on(library, attention_paged, q, *pages, table, lengths, **options),
        reference_paged(q, *pages, table, lengths, **options),
    )


@LIBRARIES
@pytest.mark.parametrize("sinks", [None, np.array([0.3, -np.inf, 1.0, 0.0])])
def test_merging(library, sinks):
    """Parts merge as in the reference; a part that saw nothing takes no part, even if it holds NaN."""
    rng = np.random.default_rng(5)
    outs, lses = rng.normal(size=(3, 2, 4, 5, 3)), rng.normal(size=(3, 2, 4, 5))
    lses[0, 0, :, 0], lses[:, 1, :, 2] = -np.inf, -np.inf
    outs[np.isneginf(lses)] = np.nan
    make, take, compiled = library()
    given_sinks = None if sinks is None else make(sinks)

    found = compiled(lambda o, l: portable_merge(o, l, sinks=given_sinks))(make(outs), make(lses))

    for x, y in zip(found, merge_attention(outs, lses, sinks=sinks), strict=True):
        np.testing.assert_allclose(take(x), y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0, 300.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_maximum_and_running_maximum_agree(dtype, scale):
    """Small and large logits take different ways through NumPy; both are right to some ulps of the values."""
    q, k, v = (x.astype(dtype) for x in draw(sq=40, sk=600))
    q = (q * scale).astype(dtype)

    found = attention(q, k, v, causal=True, align="bottom_right", returns=("out", "lse"))

    expected = reference(q, k, v, causal=True, align="bottom_right", returns=("out", "lse"))
    unit = np.finfo(dtype).eps
    assert found.out.dtype == found.lse.dtype == dtype
    np.testing.assert_allclose(found.out, expected.out, rtol=0, atol=(8 + 20 * scale) * unit)
    np.testing.assert_allclose(found.lse, expected.lse, rtol=8 * unit, atol=8 * scale * unit)


def test_subnormal_values_keep_their_digits():
    """Values among the subnormal numbers are averaged as well as their spacing allows, whatever the logits."""
    q, k, v = (x.astype(np.float32) for x in draw(sq=40, sk=60))
    tiny = (v * np.float32(2.0**-132)).astype(np.float32)
    spacing = np.finfo(np.float32).smallest_subnormal

    found = attention(q, k, tiny).out

    assert np.abs(found - reference(q, k, tiny).out).max() <= 8 * spacing


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("library", [torch, jax])
def test_sixteen_bits_are_computed_in_thirty_two(library, dtype):
    """Results of 16-bit inputs have their dtype and are the exact ones, rounded about once."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrow = getattr(ml_dtypes, dtype, np.float16)
    arrays = [x.astype(narrow) for x in draw(sk=300)]
    if library is torch:
        framework = pytest.importorskip("torch")
        given_arrays = [framework.tensor(x.astype(np.float32)).to(getattr(framework, dtype)) for x in arrays]
        out = attention(*given_arrays).out
        found, kept = out.float().numpy(), out.dtype == given_arrays[0].dtype
    else:
        out = attention(*map(pytest.importorskip("jax").numpy.asarray, arrays)).out
        found, kept = np.asarray(out).astype(np.float32), out.dtype == narrow

    expected = reference(*(x.astype(np.float64) for x in arrays)).out
    assert kept
    assert np.all(np.abs(found - expected) <= 0.51 * np.abs(ml_dtypes.finfo(narrow).eps * expected) + 1e-6)


def test_memory_grows_with_length_not_with_its_square():
    """Twice the tokens take about twice the memory, far less than one matrix of logits; the gradient likewise."""
    peaks = {}
    for length in (2048, 4096):
        q, k, v = (x.astype(np.float32) for x in draw(b=1, hq=1, hkv=1, sq=length, sk=length, d=8, dv=8))
        for name, call in (
            ("out", lambda x=(q, k, v): attention(*x)),
            ("vjp", lambda x=(q, k, v, v): attention_vjp(*x)),
        ):
            tracemalloc.start()
            call()
            peaks[name, length] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peaks[name, length] < 4 * length * length / 2
    for name in ("out", "vjp"):
        assert peaks[name, 4096] < 2.3 * peaks[name, 2048]


def test_no_floating_point_flag_is_raised():
    """Valid inputs, fully masked rows and weights that underflow among them, raise no flag."""
    q, k, v = draw()
    with np.errstate(all="raise"):
        for options in SPREAD.values():
            attention(300 * q, k, v, returns=EVERYTHING, **options)
            attention_vjp(300 * q, k, v, np.ones((2, 4, 9, 3)), **options)


def test_inputs_stay_as_they_are_in_any_layout():
    """Read-only, strided, reversed, Fortran, byte-swapped and shared inputs give the plain result."""
    q, k, v = draw(d=3)
    expected = attention(q, k, v, causal=True).out
    for same in (
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        lambda x: x[:, :, ::-1].copy()[:, :, ::-1],
        lambda x: x.astype(">f8"),
    ):
        given_arrays = [same(x) for x in (q, k, v)]
        for x in given_arrays:
            x.flags.writeable = False
        np.testing.assert_allclose(attention(*given_arrays, causal=True).out, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(attention(k, k, k).out, attention(k, k.copy(), k.copy()).out, rtol=0, atol=0)


def test_autodiff_agrees_with_the_product_that_is_written_out():
    """JAX's reverse mode through the blocks gives what `attention_vjp` gives, empty rows among them."""
    framework = pytest.importorskip("jax")
    framework.config.update("jax_enable_x64", True)
    arrays = [framework.numpy.asarray(x) for x in draw()]
    options = {"causal": True, "align": -2, "softcap": 2.0, "block_k": 4}

    out, pull = framework.vjp(lambda *x: attention(*x, **options).out, *arrays)
    dout = framework.numpy.ones_like(out)

    for found, expected in zip(pull(dout), attention_vjp(*arrays, dout, **options), strict=False):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"align": "middle"},
        {"empty": "mean"},
        {"layout": "sbhd"},
        {"returns": "weight"},
        {"dropout_p": 0.1},
    ],
)
def test_unknown_names_are_refused(options):
    """An unknown alignment, policy, layout or result, and dropout, raise ValueError with the name."""
    with pytest.raises(ValueError, match=next(iter(options))):
        attention(*draw(), **options)


def test_heads_that_do_not_divide_are_refused():
    """Four query heads on three kv heads raise ValueError."""
    with pytest.raises(ValueError, match=r"4 heads.*3"):
        attention(*draw(hkv=3))
