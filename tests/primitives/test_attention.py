"""Properties of attention that hold for any input: equal forms, invariances, exact cases and what must not matter."""

import inspect
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.attention import AttentionResult, attention
from refattn.primitives.attention_arguments import AttentionOptions
from refattn.primitives.attention_loop import attention_loop
from refattn.primitives.attention_online import attention_online, merge_attention
from refattn.primitives.attention_packed import attention_paged, attention_varlen
from refattn.primitives.attention_ring import ring_attention, ring_placement

seeds = st.integers(0, 2**32 - 1)
policies = st.sampled_from(["zero", "nan", "uniform"])
STREAMED = ("out", "lse")


def assert_same(left, right, names=AttentionResult._fields):
    for name in names:
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=1e-12, atol=1e-12, err_msg=name)


def near(left, right):
    """Assert equality up to 1e-12 (1 + |value|)."""
    np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


@given(seed=seeds, empty=policies)
def test_equals_the_loop_form(draw_attention, seed, empty):
    """Every result equals that of the five nested loops, whatever the mix of options, without a flag."""
    q, k, v, options = draw_attention(seed)
    with np.errstate(all="raise"):
        fast = attention(q, k, v, empty=empty, returns=AttentionResult._fields, **options)
        slow = attention_loop(q, k, v, empty=empty, returns=AttentionResult._fields, **options)
    assert_same(fast, slow)


@given(seed=seeds, empty=policies, block_k=st.integers(1, 4), block_q=st.integers(1, 7))
def test_online_form_equals_direct(draw_attention, seed, empty, block_k, block_q):
    """Blocks of any size, visited in any order, give the same output and log-sum-exp."""
    q, k, v, options = draw_attention(seed)
    order = np.random.default_rng(seed).permutation(-(-k.shape[2] // block_k))
    with np.errstate(all="raise"):
        online = attention_online(
            q, k, v, block_q=block_q, block_k=block_k, order=order, empty=empty, returns=STREAMED, **options
        )
    assert_same(online, attention(q, k, v, empty=empty, returns=STREAMED, **options), STREAMED)


@given(
    seed=seeds, empty=policies, world=st.integers(1, 4), placement=st.sampled_from(["contiguous", "striped", "zigzag"])
)
def test_ring_equals_direct(draw_attention, seed, empty, world, placement):
    """Ranks that hold any share of the tokens give the same output and log-sum-exp, together."""
    q, k, v, options = draw_attention(seed)
    with np.errstate(all="raise"):
        ring = ring_attention(q, k, v, world=world, placement=placement, empty=empty, returns=STREAMED, **options)
    assert_same(ring, attention(q, k, v, empty=empty, returns=STREAMED, **options), STREAMED)


@given(seed=seeds, cuts=st.lists(st.integers(0, 9), max_size=4))
def test_merge_of_any_partition(seed, cuts):
    """Parts of any sizes, empty ones included, merge to the whole, in any order and nesting."""
    q, k, v, sinks = normal(seed, (2, 4, 3, 5), (2, 2, 9, 5), (2, 2, 9, 4), (4,))
    bounds = [0, *sorted(cuts), 9]
    parts = [attention(q, k[:, :, a:b], v[:, :, a:b], returns=STREAMED) for a, b in pairwise(bounds)]
    outs, lses = [p.out for p in parts], [p.lse for p in parts]
    whole = attention(q, k, v, sinks=sinks, returns=STREAMED)
    assert_same(AttentionResult(*merge_attention(outs, lses, sinks=sinks)[:1]), whole, ["out"])
    near(merge_attention(outs, lses, sinks=sinks)[1], whole.lse)
    out, lse = outs[-1], lses[-1]
    for o, part_lse in zip(outs[-2::-1], lses[-2::-1], strict=True):
        out, lse = merge_attention([out, o], [lse, part_lse])
    plain = attention(q, k, v, returns=STREAMED)
    near(out, plain.out)
    near(lse, plain.lse)


@given(seed=seeds)
def test_permutations(seed):
    """Order of keys does not matter; queries and head groups carry their rows along."""
    q, k, v, bias = normal(seed, (2, 4, 3, 5), (2, 2, 6, 5), (2, 2, 6, 4), (2, 4, 3, 6))
    rng = np.random.default_rng(seed)
    mask = rng.random((2, 1, 3, 6)) < 0.7
    out = attention(q, k, v, mask=mask, bias=bias).out
    keys, rows = rng.permutation(6), rng.permutation(3)
    shuffled = attention(q, k[:, :, keys], v[:, :, keys], mask=mask[..., keys], bias=bias[..., keys]).out
    near(shuffled, out)
    shuffled = attention(q[:, :, rows], k, v, mask=mask[:, :, rows], bias=bias[:, :, rows]).out
    near(shuffled, out[:, :, rows])
    heads = [2, 3, 0, 1]
    shuffled = attention(q[:, heads], k[:, ::-1], v[:, ::-1], mask=mask, bias=bias[:, heads]).out
    near(shuffled, out[:, heads])


@given(seed=seeds)
def test_row_constants_change_nothing(seed):
    """A constant added to all logits of a row, or one vector to all keys, changes no output."""
    q, k, v, constant, u = normal(seed, (2, 2, 3, 5), (2, 2, 6, 5), (2, 2, 6, 4), (2, 2, 3, 1), (2, 2, 1, 5))
    out = attention(q, k, v).out
    near(attention(q, k, v, bias=constant).out, out)
    near(attention(q, k + u, v).out, out)


@given(seed=seeds, offset=st.integers(-2, 6), value=st.sampled_from([1e3, -1e308, np.nan, np.inf]))
def test_causality_by_perturbation(seed, offset, value):
    """A row does not change, in the loop form not by a bit, when what lies behind its position becomes anything."""
    q, k, v = normal(seed, (1, 2, 4, 3), (1, 1, 6, 3), (1, 1, 6, 2))
    row = 2
    p = row + offset
    for function in (attention, attention_loop, attention_online):
        out = function(q, k, v, causal=True, align=offset).out
        changed_k, changed_v = k.copy(), v.copy()
        changed_k[:, :, max(p + 1, 0) :], changed_v[:, :, max(p + 1, 0) :] = value, value
        with np.errstate(all="raise"):
            changed = function(q, changed_k, changed_v, causal=True, align=offset).out
        if np.isfinite(value) or function is attention_loop:
            np.testing.assert_array_equal(changed[:, :, : row + 1], out[:, :, : row + 1])
        near(changed[:, :, : row + 1], out[:, :, : row + 1])


@given(seed=seeds, content=st.sampled_from([0.0, 1e300, np.nan, np.inf]))
def test_padding_never_matters(seed, content):
    """Appending keys and hiding them, by mask, bias or length, is the same as not appending them."""
    q, k, v, tail_k, tail_v = normal(seed, (2, 2, 3, 4), (2, 1, 5, 4), (2, 1, 5, 3), (2, 1, 2, 4), (2, 1, 2, 3))
    out = attention(q, k, v, returns=STREAMED)
    long_k, long_v = (np.concatenate([x, content * tail], axis=2) for x, tail in ((k, tail_k), (v, tail_v)))
    seen = np.arange(7) < 5
    for rule in ({"mask": seen}, {"bias": np.where(seen, 0.0, -np.inf)}, {"kv_lengths": [5, 5]}):
        for function in (attention, attention_loop, attention_online):
            with np.errstate(all="raise"):
                assert_same(function(q, long_k, long_v, returns=STREAMED, **rule), out, STREAMED)


@given(seed=seeds, where=st.sampled_from(["q", "k", "v"]))
def test_visible_nan_poisons_only_the_rows_that_see_it(seed, where):
    """A NaN in q poisons its row, one in a key or value the rows that see it, and nothing else."""
    arrays = dict(zip("qkv", normal(seed, (1, 2, 4, 3), (1, 1, 4, 3), (1, 1, 4, 2)), strict=True))
    clean = attention(**arrays, causal=True).out
    poisoned = {name: x.copy() for name, x in arrays.items()}
    poisoned[where][0, 0, 2, 0] = np.nan
    for function in (attention, attention_loop, attention_online):
        out = function(**poisoned, causal=True).out
        hit = np.isnan(out)
        expected = np.zeros((1, 2, 4, 2), bool)
        if where == "q":
            expected[:, 0, 2] = True
        else:
            expected[:, :, 2:, : 1 if where == "v" else 2] = True
        np.testing.assert_array_equal(hit, expected)
        near(out[~hit], clean[~hit])


def test_poisoned_row_keeps_hidden_weights_at_zero():
    """In a row that a NaN poisons the weights of hidden keys stay 0."""
    q, k, v = normal(0, (1, 1, 1, 3), (1, 1, 4, 3), (1, 1, 4, 2))
    q[..., 0] = np.nan
    for function in (attention, attention_loop):
        weights = function(q, k, v, causal=True, align=1, returns="weights").weights[0, 0, 0]
        np.testing.assert_array_equal(weights, [np.nan, np.nan, 0, 0])


@given(seed=seeds)
def test_outputs_lie_between_the_visible_values(draw_attention, seed):
    """Weights are not negative and sum to 1, and each output channel lies in the interval of its visible values."""
    q, k, v, options = draw_attention(seed, lengths=(1, 7))
    options.pop("sinks", None)
    result = attention(q, k, v, returns=("out", "weights", "lse", "logits"), **options)
    seen = result.logits > -np.inf
    rows = seen.any(axis=-1)
    assert (result.weights >= 0).all()
    near(result.weights.sum(axis=-1), rows)
    values = np.repeat(v, q.shape[1] // k.shape[1], axis=1)[:, :, None]
    low = np.where(seen[..., None], values, np.inf).min(axis=3)
    high = np.where(seen[..., None], values, -np.inf).max(axis=3)
    assert (result.out >= low - 1e-14)[rows].all()
    assert (result.out <= high + 1e-14)[rows].all()


@pytest.mark.parametrize("function", [attention, attention_loop, attention_online])
def test_single_visible_key_gives_its_value_exactly(function):
    """One visible key gives its value, bit for bit."""
    q, k, v = normal(1, (1, 2, 5, 3), (1, 2, 5, 3), (1, 2, 5, 4))
    np.testing.assert_array_equal(function(q, k, v, window=(0, 0)).out, v)
    np.testing.assert_array_equal(function(q, k[:, :, :1], v[:, :, :1]).out, np.repeat(v[:, :, :1], 5, axis=2))


def test_exact_vectors():
    """Means of eight keys and one-hot keys are exact in every form."""
    values = np.random.default_rng(0).integers(-8, 9, (1, 1, 8, 4)) * 8.0
    one_hot = 64 * np.eye(16)[None, None]
    for function in (attention, attention_loop, attention_online):
        zeros = np.zeros((1, 1, 8, 16))
        np.testing.assert_array_equal(function(zeros[:, :, :1], zeros, values).out, values.mean(2, keepdims=True))
        np.testing.assert_array_equal(function(one_hot, one_hot, one_hot, scale=0.25).out, one_hot)


@given(seed=seeds)
def test_grouped_heads_are_repeated_heads(seed):
    """Grouped queries equal plain heads on keys and values repeated per group."""
    q, k, v = normal(seed, (2, 6, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3))
    repeated = attention(q, np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1), causal=True).out
    near(attention(q, k, v, causal=True).out, repeated)


@given(seed=seeds, scale=st.floats(-2, 2))
def test_scale_is_a_factor_of_the_queries(seed, scale):
    """Attention at scale τ is attention at the default scale on q·τ√d."""
    q, k, v = normal(seed, (1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 3))
    near(attention(q, k, v, scale=scale).out, attention(q * scale * 2, k, v).out)


@pytest.mark.parametrize("cap", [30.0, 100.0, 1000.0])
def test_large_softcap_is_no_softcap(cap):
    """Scores under a cap c differ from the plain ones by at most |s|³ / (3c²)."""
    q, k, v = normal(2, (1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 3))
    result = attention(q, k, v, softcap=cap, returns=("scores", "softcapped"))
    limit = np.abs(result.scores) ** 3 / (3 * cap**2) + 1e-13
    assert (np.abs(result.scores - result.softcapped) <= limit).all()


@given(seed=seeds)
def test_a_sink_only_shrinks_the_output(seed):
    """With a sink the output is that without, times 1 − e^(σ − L); a sink at −∞ is none."""
    q, k, v, sinks = normal(seed, (1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 3), (2,))
    plain, result = attention(q, k, v).out, attention(q, k, v, sinks=sinks, returns=STREAMED)
    share = 1 - np.exp(sinks[:, None] - result.lse)
    near(result.out, share[..., None] * plain)
    np.testing.assert_array_equal(attention(q, k, v, sinks=[-np.inf] * 2).out, plain)


@given(seed=seeds, causal=st.booleans())
def test_packed_sequences_are_separate_sequences(seed, causal):
    """Packed sequences equal document masks on one sequence where lengths agree, and separate calls always."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, 3)
    cu = np.concatenate([[0], np.cumsum(lengths)])
    q, k, v, slopes = normal(seed, (cu[-1], 4, 3), (cu[-1], 2, 3), (cu[-1], 2, 5), (4,))
    options = {"causal": causal, "window": (1, None), "softcap": 3.0, "alibi_slopes": slopes, "sinks": slopes}
    packed = attention_varlen(q, k, v, cu, cu, returns=STREAMED, **options)
    documents = np.repeat(np.arange(3), lengths)
    whole = attention(
        q[None], k[None], v[None], layout="bshd", doc_q=documents, doc_k=documents, returns=STREAMED, **options
    )
    near(packed.out, whole.out[0])
    near(packed.lse, whole.lse[0])


@given(seed=seeds, page=st.integers(1, 4), layout=st.sampled_from(["bhsd", "bshd"]))
def test_pages_are_a_contiguous_cache(seed, page, layout):
    """A shuffled block table equals the contiguous keys; dead slots hold NaN and dead entries −1."""
    rng = np.random.default_rng(seed)
    n_k = rng.integers(0, 8, 2)
    q, k, v, slopes = normal(seed, (2, 3, 4, 5), (2, 7, 2, 5), (2, 7, 2, 3), (4,))
    count = -(-7 // page)
    order = rng.permutation(2 * count).reshape(2, count)
    k_pages, v_pages = np.full((2 * count, page, 2, 5), np.nan), np.full((2 * count, page, 2, 3), np.nan)
    for b in range(2):
        for j in range(n_k[b]):
            k_pages[order[b, j // page], j % page], v_pages[order[b, j // page], j % page] = k[b, j], v[b, j]
    table = np.where(np.arange(count) * page < n_k[:, None], order, -1)
    options = {"causal": True, "window": (3, None), "alibi_slopes": slopes, "align": "bottom_right"}
    expected = attention(q, k, v, layout="bshd", kv_lengths=n_k, returns=STREAMED, **options)
    queries = q if layout == "bshd" else q.swapaxes(1, 2)
    paged = attention_paged(queries, k_pages, v_pages, table, n_k, layout=layout, returns=STREAMED, **options)
    out = paged.out if layout == "bshd" else paged.out.swapaxes(1, 2)
    near(out, expected.out)
    near(paged.lse, expected.lse)


def test_paged_uniform_policy_averages_the_sequence():
    """An empty row of a paged cache averages the keys of its own sequence, not dead slots."""
    pages = np.array([1.0, 3.0, np.nan, np.nan]).reshape(2, 2, 1, 1)
    out = attention_paged(np.ones((1, 1, 3, 1)), pages, pages, [[0]], [2], causal=True, empty="uniform").out
    assert out[0, 0, 0, 0] == 2


@given(seed=seeds)
def test_cached_decoding_is_the_causal_rows(seed):
    """Queries one at a time, each behind the keys so far, give the rows of the causal call; alignments agree there."""
    q, k, v = normal(seed, (1, 2, 5, 4), (1, 2, 5, 4), (1, 2, 5, 3))
    rows = [
        attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], causal=True, align=i).out for i in range(5)
    ]
    whole = attention(q, k, v, causal=True).out
    near(np.concatenate(rows, axis=2), whole)
    np.testing.assert_array_equal(attention(q, k, v, causal=True, align="bottom_right").out, whole)


@given(seed=seeds)
def test_linear_in_the_values(draw_attention, seed):
    """Outputs are linear in v, and a constant added to all values is added to the output."""
    q, k, v, options = draw_attention(seed, lengths=(1, 7))
    other = np.random.default_rng(seed).normal(size=v.shape)
    left = attention(q, k, 2 * v - 3 * other, **options).out
    right = 2 * attention(q, k, v, **options).out - 3 * attention(q, k, other, **options).out
    near(left, right)
    options.pop("sinks", None)
    result = attention(q, k, v, returns=STREAMED, **options)
    seen = result.lse[..., None] > -np.inf
    near(attention(q, k, v + 5, **options).out, result.out + 5 * seen)


def _spoilt_layouts(x):
    yield np.asfortranarray(x)
    yield np.repeat(x, 2, axis=-1)[..., ::2]
    yield x[..., ::-1].copy()[..., ::-1]
    yield x.astype(x.dtype.newbyteorder())
    read_only = x.copy()
    read_only.flags.writeable = False
    yield read_only


@pytest.mark.parametrize("function", [attention, attention_loop, attention_online])
def test_memory_layout_does_not_matter(function):
    """Read-only, strided, reversed, Fortran-ordered and byte-swapped inputs give the same, and are not written to."""
    q, k, v = normal(3, (2, 2, 3, 4), (2, 1, 5, 4), (2, 1, 5, 3))
    expected = function(q, k, v, causal=True, align="bottom_right").out
    for arrays in zip(*map(_spoilt_layouts, (q, k, v)), strict=True):
        before = [x.copy() for x in arrays]
        near(function(*arrays, causal=True, align="bottom_right").out, expected)
        for x, kept in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(x, kept)


def test_aliased_inputs():
    """q, k and v may be one array."""
    (x,) = normal(4, (1, 2, 3, 4))
    np.testing.assert_array_equal(attention(x, x, x).out, attention(x, x.copy(), x.copy()).out)
    assert not np.shares_memory(attention(x, x, x, window=(0, 0)).out, x)


@pytest.mark.parametrize("size", [1e4, 1e150, 5e-324])
def test_extreme_values(size):
    """Logits far beyond the range of exp, and subnormal values, are no trouble and raise no flag."""
    q, k = np.array([[[[1.0], [-1.0]]]]), np.array([[[[size], [0.0], [-size]]]])
    v = np.array([[[[1.0], [2.0], [5e-324]]]])
    for function in (attention, attention_loop, attention_online):
        with np.errstate(all="raise"):
            out = function(q, k, v, scale=1.0).out.ravel()
        assert out.tolist() == pytest.approx([1, 5e-324] if size > 1 else [1, 1])


def test_negative_zero_is_a_value():
    """−0.0 in scores and values is 0."""
    zeros = np.full((1, 1, 2, 1), -0.0)
    assert (attention(zeros, zeros, zeros).out == 0).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.longdouble, ml_dtypes.bfloat16])
@pytest.mark.parametrize("function", [attention, attention_loop, attention_online])
def test_dtype_of_q_is_returned(function, dtype):
    """Results have the dtype of q, and equal the rounded float64 results."""
    q, k, v = (x.astype(dtype) for x in normal(5, (1, 2, 3, 4), (1, 1, 5, 4), (1, 1, 5, 3)))
    result = function(q, k, v, returns=STREAMED)
    exact = function(*(x.astype(np.float64) for x in (q, k, v)), returns=STREAMED)
    for name in STREAMED:
        assert getattr(result, name).dtype == dtype
        np.testing.assert_array_equal(getattr(result, name), getattr(exact, name).astype(dtype))


def test_options_may_be_json_values():
    """Windows and names of results may be lists, as JSON stores them."""
    q, k, v = normal(6, (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4))
    result = attention(q, k, v, window=[1, None], returns=["out", "lse"])
    assert_same(result, attention(q, k, v, window=(1, None), returns=("out", "lse")), STREAMED)
    assert attention(q, k, v, returns="lse").out is None


def test_every_form_takes_the_same_options():
    """The named options of the other forms are those of attention."""
    named = set(inspect.signature(attention).parameters) - {"q", "k", "v", "returns"}
    assert named == set(AttentionOptions.__annotations__)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 13])
@pytest.mark.parametrize("placement", ["contiguous", "striped", "zigzag"])
def test_ring_placement_is_a_partition(length, placement):
    """Every token lies on one rank, also where lengths do not divide."""
    ranks = ring_placement(length, world=3, placement=placement)
    assert len(ranks) == 3
    assert sorted(np.concatenate(ranks)) == list(range(length))
