"""RAT: the properties of the layer, its decoding, its stack and its cost."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from refattn.layers.rat import RATWeights, rat_layer, rat_projections
from refattn.layers.rat_attention import (
    chunk_attention,
    chunk_attention_parts,
    merge_heads,
    merge_lse,
    split_heads,
)
from refattn.layers.rat_baselines import AttentionWeights, RNNWeights, causal_attention_layer, rnn_layer
from refattn.layers.rat_decode import RATCache, rat_init_cache, rat_prefill, rat_step
from refattn.layers.rat_mixing import rat_mixing_matrix
from refattn.primitives.softmax import softmax

seeds = st.integers(0, 2**16)
bases = st.sampled_from([10000.0, 50.0, None])


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def problems(draw, *, min_chunks=0, max_chunks=4):
    """Draw activations, weights and options of a layer."""
    groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads, chunk_size = groups * share, draw(st.integers(1, 5))
    length, width = chunk_size * draw(st.integers(min_chunks, max_chunks)), 4 * heads
    rng = np.random.default_rng(draw(seeds))
    options = {"num_heads": heads, "num_groups": groups, "chunk_size": chunk_size, "rope_base": draw(bases)}
    return (
        rng.standard_normal((draw(st.integers(1, 2)), length, width)),
        weights_for(rng, width, heads, groups),
        options,
    )


def weights_for(rng, width, heads, groups):
    w_in = rng.standard_normal((width, 3 * width + 2 * groups * (width // heads))) / np.sqrt(width)
    w_out = rng.standard_normal((width, width)) / np.sqrt(width)
    return RATWeights(w_in, rng.standard_normal(width), w_out, 1.0 + 0.1 * rng.standard_normal(width))


def fixed(length=12, width=16, heads=4, groups=2, chunk_size=4, batch=2):
    rng = np.random.default_rng(0)
    options = {"num_heads": heads, "num_groups": groups, "chunk_size": chunk_size}
    return rng.standard_normal((batch, length, width)), weights_for(rng, width, heads, groups), options


def rnn_weights(weights):
    return RNNWeights(weights.w_in[:, : 3 * weights.norm.size], *weights[1:])


def close(left, right, atol=1e-12):
    np.testing.assert_allclose(left, right, rtol=0, atol=atol)


# 1
@given(seeds, st.sampled_from(divisors(12)), st.integers(1, 11))
def test_causality_is_exact(seed, chunk_size, t):
    """Changing later tokens changes no bit of earlier outputs, for any chunk size."""
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((2, 12, 16)), weights_for(rng, 16, 4, 2)
    changed = x.copy()
    changed[:, t:] = rng.standard_normal(changed[:, t:].shape)
    options = {"num_heads": 4, "num_groups": 2, "chunk_size": chunk_size}
    left, right = rat_layer(x, weights, **options), rat_layer(changed, weights, **options)

    assert np.array_equal(left[:, :t], right[:, :t])


# 2
@given(problems(min_chunks=1))
def test_a_single_chunk_is_the_recurrent_layer(problem):
    """With L = T the layer is the baseline with the first 3 D columns; products of other widths may round otherwise."""
    x, weights, options = problem
    whole = rat_layer(x, weights, **{**options, "chunk_size": x.shape[1]})

    close(whole, rnn_layer(x, rnn_weights(weights)))


# 3
@given(problems(min_chunks=1))
def test_chunks_of_one_with_open_gates_are_attention(problem):
    """With L = 1 and gates of 0 the layer is causal attention on tiled queries and keys, gated at the output."""
    x, weights, options = problem
    weights = weights._replace(gate_bias=np.full_like(weights.gate_bias, -800.0))
    options = {**options, "chunk_size": 1, "rope_base": None}
    heads, groups, length = options["num_heads"], options["num_groups"], x.shape[1]
    z, v, _, q, k = rat_projections(x, weights, num_heads=heads, num_groups=groups)
    q, k, v = (split_heads(a, heads) for a in (q, k, v))
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    attended = softmax(scores, where=np.tri(length, dtype=bool)) @ v

    close(rat_layer(x, weights, **options), x + (z * merge_heads(attended)) @ weights.w_out)


# 4
@given(problems(min_chunks=1), st.data())
def test_steps_from_any_prefix_equal_the_parallel_form(problem, data):
    """Prefill any prefix, of whole chunks or not, empty too, and step through the rest: the rows are the layer's."""
    x, weights, options = problem
    prefix = data.draw(st.integers(0, x.shape[1]))
    y = rat_layer(x, weights, **options)
    prefilled = rat_prefill(x[:, :prefix], weights, **options, max_len=x.shape[1])
    cache = prefilled.cache
    close(prefilled.out, y[:, :prefix])
    for t in range(prefix, x.shape[1]):
        step = rat_step(x[:, t : t + 1], weights, cache, **options)
        close(step.out, y[:, t : t + 1])
        cache = step.cache

    assert cache.length == x.shape[1]


def test_an_empty_cache_is_where_an_empty_prompt_ends():
    """Prefilling no token gives the initial cache."""
    x, weights, options = fixed()
    empty = rat_prefill(x[:, :0], weights, **options, max_len=10).cache
    initial = rat_init_cache(2, 10, 16, num_heads=4, chunk_size=4)

    for left, right in zip(empty, initial, strict=True):
        assert np.array_equal(left, right)
    assert initial.k_mem.shape == (2, 4, 3, 4)


def test_padding_may_come_with_the_prompt():
    """``prompt_len`` of a padded prompt gives the running state of the prompt without padding."""
    x, weights, options = fixed()
    padded = rat_prefill(x, weights, **options, prompt_len=6)
    bare = rat_prefill(x[:, :6], weights, **options, max_len=12)

    close(padded.k_last, bare.k_last)
    close(padded.v_last, bare.v_last)
    close(padded.k_mem[:, :, :1], bare.k_mem[:, :, :1])
    assert padded.length == bare.length == 6


def test_first_chunk_steps_keep_channels_in_order():
    """Decoding from an empty cache with several heads gives the running value in the first chunk."""
    x, weights, options = fixed()
    _, aux = rat_layer(x, weights, **options, return_aux=True)
    cache = rat_init_cache(2, 12, 16, num_heads=4, chunk_size=4)
    for t in range(4):
        step = rat_step(x[:, t : t + 1], weights, cache, **options)
        cache = step.cache
        close(step.out[:, 0], x[:, t] + (aux.z[:, t] * aux.v_state[:, t]) @ weights.w_out)


# 5
@given(problems(min_chunks=1))
def test_joint_softmax_equals_the_merge(problem):
    """One softmax over memories and own state equals two parts merged by their log-sum-exps."""
    x, weights, options = problem
    _, aux = rat_layer(x, weights, **options, return_aux=True)
    heads, rest = options["num_heads"], {name: options[name] for name in ("chunk_size", "rope_base")}
    q = np.random.default_rng(1).standard_normal(x.shape)
    q, k, v = (split_heads(a, heads) for a in (q, aux.k_state, aux.v_state))
    parts = chunk_attention_parts(q, k, v, **rest)

    close(merge_lse(parts.inter_out, parts.inter_lse, v, parts.self_score), chunk_attention(q, k, v, **rest))


@given(problems(min_chunks=1))
def test_attention_weights_are_a_distribution(problem):
    """Weights are not negative and sum to 1; chunks that are not over get none; the first chunk sees itself alone."""
    x, weights, options = problem
    attn = rat_layer(x, weights, **options, return_aux=True)[1].attn
    chunk = np.arange(x.shape[1]) // options["chunk_size"]

    assert np.all(attn >= 0)
    close(attn.sum(axis=-1), 1.0)
    not_over = np.concatenate(
        [np.arange(attn.shape[-1] - 1) >= chunk[:, None], np.zeros((len(chunk), 1), bool)], axis=1
    )
    assert np.all(attn[:, :, not_over] == 0)
    assert np.all(attn[:, :, : options["chunk_size"], -1] == 1)


def test_merging_nothing_with_nothing_gives_zero():
    """−∞ on one side leaves the other; −∞ on both sides gives 0, not NaN."""
    out, none = np.ones((2, 3)), np.full(2, -np.inf)

    assert np.array_equal(merge_lse(5 * out, none, out, np.zeros(2)), out)
    assert np.array_equal(merge_lse(out, np.zeros(2), 5 * out, none), out)
    assert np.array_equal(merge_lse(out, none, out, none), 0 * out)


# 6
@given(problems(min_chunks=1))
def test_the_mixing_matrix_mixes(problem):
    """o[t] = Σ_s M[t, s] v[s]; M is lower triangular, not negative, and its row sums are Σ_c a (1 − Π gates)."""
    x, weights, options = problem
    _, aux = rat_layer(x, weights, **options, return_aux=True)
    size, length = options["chunk_size"], x.shape[1]
    m = rat_mixing_matrix(aux.gate, aux.attn, chunk_size=size)
    projected = rat_projections(x, weights, num_heads=options["num_heads"], num_groups=options["num_groups"])
    v, z = projected.v, projected.z
    mixed = np.einsum("btsd,bsd->btd", m, v)

    close(x + (z * mixed) @ weights.w_out, rat_layer(x, weights, **options))
    assert np.all(m >= 0)
    assert np.all(m[:, np.triu_indices(length, 1)[0], np.triu_indices(length, 1)[1]] == 0)
    head = np.arange(x.shape[2]) // (x.shape[2] // options["num_heads"])
    for t in range(length):
        begins = [*range(0, t // size * size, size), t // size * size]
        ends = [*(b + size for b in begins[:-1]), t + 1]
        columns = [*range(t // size), aux.attn.shape[-1] - 1]
        total = sum(
            aux.attn[:, head, t, c] * (1 - np.prod(aux.gate[:, b:e], axis=1))
            for b, e, c in zip(begins, ends, columns, strict=True)
        )
        close(m[:, t].sum(axis=1), total)
        assert np.all(total <= 1 + 1e-12)


# 7
@given(problems(), st.integers(-1000, 1000))
def test_only_differences_of_chunks_matter(problem, offset):
    """Adding an integer to all chunk positions changes nothing."""
    x, _, options = problem
    q, k, v = (split_heads(a, options["num_heads"]) for a in np.random.default_rng(0).standard_normal((3, *x.shape)))
    rest = {name: options[name] for name in ("chunk_size", "rope_base")}

    close(chunk_attention(q, k, v, **rest, position_offset=offset), chunk_attention(q, k, v, **rest))


@given(seeds, st.sampled_from([10000.0, 50.0]))
def test_scores_turn_by_the_difference_of_chunks(seed, base):
    """Read as complex numbers, channels i and i + dh/2 of a query meet those of a memory at (c − c′) base^(−2i/dh)."""
    q, k, v = np.random.default_rng(seed).standard_normal((3, 1, 1, 9, 6))
    _, a = chunk_attention(q, k, v, chunk_size=3, rope_base=base, return_weights=True)
    as_complex = [x[0, 0, :, :3] + 1j * x[0, 0, :, 3:] for x in (q, k)]
    frequencies = base ** (-np.arange(3) / 3)

    for t, c in ((3, 0), (8, 0), (7, 1)):
        turn = np.exp(1j * (t // 3 - c) * frequencies)
        score = np.sum(as_complex[0][t] * turn * np.conj(as_complex[1][3 * c + 2])).real / np.sqrt(6)
        own = np.sum(q[0, 0, t] * k[0, 0, t]) / np.sqrt(6)
        close(np.log(a[0, 0, t, c] / a[0, 0, t, -1]), score - own, atol=1e-10)


# 10
@given(problems(min_chunks=1))
def test_sharing_is_tiling(problem):
    """G groups equal H groups whose columns repeat in the order 0 … G − 1, 0 … G − 1, …."""
    x, weights, options = problem
    heads, groups, width = options["num_heads"], options["num_groups"], x.shape[2]
    q, k = np.split(weights.w_in[:, 3 * width :], 2, axis=1)
    tiled = np.concatenate([weights.w_in[:, : 3 * width], *(np.tile(a, heads // groups) for a in (q, k))], axis=1)
    own = rat_layer(x, weights._replace(w_in=tiled), **{**options, "num_groups": heads})

    close(own, rat_layer(x, weights, **options), atol=1e-13)


# 12
@given(problems(min_chunks=2), st.integers(0, 3))
def test_a_slot_depends_on_its_chunk_alone(problem, c):
    """Changing all other chunks leaves a chunk's memory as it is, bit for bit."""
    x, weights, options = problem
    size = options["chunk_size"]
    c %= x.shape[1] // size
    others = np.arange(x.shape[1]) // size != c
    changed = np.where(others[:, None], 1.0 - x, x)
    left, right = (rat_prefill(a, weights, **options) for a in (x, changed))

    assert np.array_equal(left.k_mem[:, :, c], right.k_mem[:, :, c])
    assert np.array_equal(left.v_mem[:, :, c], right.v_mem[:, :, c])


@given(seeds, st.integers(0, 9), st.integers(1, 9))
def test_a_window_ends_where_it_says(seed, window, length):
    """A token sees itself and ``window`` tokens before it: changing the one before those changes nothing."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, length, 8))
    weights = AttentionWeights(rng.standard_normal((8, 24)), rng.standard_normal((8, 8)), np.ones(8))
    assume(length > window + 1)
    beyond, edge = x.copy(), x.copy()
    beyond[:, length - window - 2] += 1.0
    edge[:, length - window - 1] += 1.0
    last, far, near = (
        causal_attention_layer(a, weights, num_heads=2, window=window, rope_base=None)[:, -1] for a in (x, beyond, edge)
    )

    assert np.array_equal(last, far)
    assert not np.array_equal(last, near)


def test_the_recurrent_layer_carries_its_state():
    """Token by token with the state handed over gives the rows of one call."""
    x, weights, _ = fixed()
    whole, last = rnn_layer(x, rnn_weights(weights), return_state=True)
    state, rows = None, []
    for t in range(x.shape[1]):
        y, state = rnn_layer(x[:, t : t + 1], rnn_weights(weights), initial_state=state, return_state=True)
        rows.append(y)

    close(np.concatenate(rows, axis=1), whole)
    close(state, last)


@pytest.mark.parametrize(
    "sizes",
    [
        {"length": 1, "chunk_size": 1},
        {"batch": 0},
        {"length": 0},
        {"heads": 1, "groups": 1},
        {"heads": 4, "groups": 4},
        {"chunk_size": 12},
        {"chunk_size": 1},
    ],
    ids=str,
)
def test_small_and_empty_sizes_work(sizes):
    """T = L = 1, no batch, no token, one head, no sharing, one chunk, chunks of one: shapes are kept, no NaN."""
    x, weights, options = fixed(**sizes)
    y, aux = rat_layer(x, weights, **options, return_aux=True)
    prefilled = rat_prefill(x, weights, **options)

    assert y.shape == prefilled.out.shape == x.shape
    assert np.isfinite(y).all()
    assert aux.attn.shape[-1] == x.shape[1] // options["chunk_size"] + 1


@pytest.mark.parametrize("bias", [-800.0, 800.0])
def test_saturated_gates_are_exact(bias):
    """Gates of 0 and 1 raise nothing; with gates of 1 nothing is ever remembered, and the layer adds 0."""
    x, weights, options = fixed()
    with np.errstate(all="raise"):
        y = rat_layer(x, weights._replace(gate_bias=np.full(16, bias)), **options)

    assert np.isfinite(y).all()
    assert np.array_equal(y, x) == (bias > 0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_dtype_is_kept_whatever_the_weights_have(dtype):
    """Outputs, insides and caches have the dtype of the activations, also beside float64 weights."""
    x, weights, options = fixed()
    x = x.astype(dtype)
    y, aux = rat_layer(x, weights, **options, return_aux=True)
    prefilled = rat_prefill(x[:, :6], weights, **options, max_len=12)
    step = rat_step(x[:, 6:7], weights, prefilled.cache, **options)

    assert {a.dtype for a in (y, *aux, *prefilled[:5], *step[:5])} == {np.dtype(dtype)}
    assert rnn_layer(x, rnn_weights(weights)).dtype == dtype


def test_inputs_and_caches_are_not_written_to():
    """Read-only activations, weights and caches work; a step returns new memories."""
    x, weights, options = fixed()
    cache = rat_prefill(x[:, :5], weights, **options, max_len=12).cache
    for array in (x, *weights, *cache[:4]):
        array.flags.writeable = False
    step = rat_step(x[:, 5:6], weights, cache, **options)

    assert not any(np.shares_memory(new, old) for new, old in zip(step[1:5], cache[:4], strict=True))


def test_float32_agrees_with_float64_to_its_precision():
    """The float32 layer is within some roundings of the float64 one: no step loses digits."""
    x, weights, options = fixed()
    single = rat_layer(x.astype(np.float32), RATWeights(*(w.astype(np.float32) for w in weights)), **options)

    close(single, rat_layer(x, weights, **options), atol=3e-6)


BAD = [
    ({"num_heads": 3}, "d_model must be divisible by num_heads: d_model=16, num_heads=3"),
    ({"num_groups": 3}, "num_heads must be divisible by num_groups: num_heads=4, num_groups=3"),
    ({"num_heads": 0}, "num_heads=0"),
    ({"chunk_size": 0}, "chunk_size=0 must be >= 1"),
    ({"num_groups": 4}, r"weights.w_in has shape \(16, 64\), expected \(16, 80\)"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_options_that_do_not_fit_are_named(wrong, message):
    """Layer, prefill and step refuse the same options in the same words."""
    x, weights, options = fixed()
    cache = rat_prefill(x[:, :5], weights, **options, max_len=12).cache
    options |= wrong
    with pytest.raises(ValueError, match=message):
        rat_layer(x, weights, **options)
    with pytest.raises(ValueError, match=message):
        rat_prefill(x, weights, **options)
    with pytest.raises(ValueError, match=message):
        rat_step(x[:, :1], weights, cache, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w, o: rat_layer(x[:, :7], w, **o), "length T=7 is not a multiple of chunk_size=4"),
        (lambda x, w, o: rat_layer(x[0, 0], w, **o), r"x has shape \(16,\), expected \(B, T, D\)"),
        (lambda x, w, o: rat_layer(x.astype(int), w, **o), "x has dtype int64, expected a floating dtype"),
        (lambda x, w, o: rat_layer(x / 0.0, w, **o, check_finite=True), "must be finite"),
        (lambda x, w, o: rat_prefill(x / 0.0, w, **o, check_finite=True), "must be finite"),
        (lambda x, w, o: rat_layer(x, w._replace(norm=np.ones(3)), **o), r"weights.norm has shape \(3,\)"),
        (lambda x, w, o: rat_layer(x, w._replace(gate_bias=np.ones(3)), **o), r"weights.gate_bias has shape \(3,\)"),
        (lambda x, w, o: rat_layer(x, w._replace(w_out=np.ones((3, 16))), **o), "weights.w_out has shape"),
        (lambda x, w, o: rat_prefill(x, w, **o, prompt_len=13), r"prompt_len=13 must be in 0..T=12"),
        (lambda x, w, o: rat_prefill(x, w, **o, max_len=11), "max_len=11 must be >= the length T=12"),
        (lambda x, w, o: rat_prefill(x[0], w, **o), "x has 2 axes"),
        (lambda x, w, o: rnn_layer(x, rnn_weights(w)._replace(w_in=w.w_in)), r"weights.w_in has shape \(16, 64\)"),
        (lambda x, w, _: rnn_layer(x.astype(int), rnn_weights(w)), "x has dtype int64"),
        (lambda x, w, _: rnn_layer(x, rnn_weights(w), initial_state=np.ones(16)), r"initial_state has shape \(16,\)"),
        (lambda x, w, _: causal_attention_layer(x, attention(w), num_heads=5), "d_model must be divisible"),
        (lambda x, w, _: causal_attention_layer(x, attention(w), num_heads=4, window=-1), "window=-1 must be >= 0"),
        (lambda x, w, _: causal_attention_layer(x, attention(w), num_heads=16), "head width 1 is odd"),
        (lambda x, *_: chunk_attention(x, x, x, chunk_size=5), "length T=12 is not a multiple of chunk_size=5"),
        (lambda x, *_: chunk_attention(x, x[:, :4], x, chunk_size=4), "k_state has shape"),
        (lambda x, *_: chunk_attention(x[..., :3], x[..., :3], x[..., :3], chunk_size=4), "head width 3 is odd"),
        (lambda x, *_: chunk_attention(x, x, x, chunk_size=0), "chunk_size=0 must be >= 1"),
        (lambda x, *_: merge_lse(x, x[..., 0], x, x), "parts of different shapes"),
        (lambda x, *_: rat_mixing_matrix(x, np.ones((2, 4, 12, 9)), chunk_size=4), "attn has shape"),
        (lambda x, *_: rat_mixing_matrix(x, np.ones((2, 4, 12, 3)), chunk_size=5), "not a multiple"),
        (lambda *_: rat_init_cache(1, -1, 8, num_heads=2), "max_len=-1 must be >= 0"),
        (lambda *_: rat_init_cache(1, 4, 8, num_heads=3), "d_model must be divisible by num_heads"),
        (lambda *_: rat_init_cache(1, 4, 8, num_heads=2, chunk_size=0), "chunk_size=0 must be >= 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_bad_input_is_named(call, message):
    """What does not fit is refused with the argument's name and the rule."""
    with pytest.raises(ValueError, match=message):
        call(*fixed())


def attention(weights):
    return AttentionWeights(weights.w_in[:, :48], weights.w_out, weights.norm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, c: (x[:, :2], c), "x_t has length 2, expected 1"),
        (lambda x, c: (x[:, :0], c), "x_t has length 0, expected 1"),
        (lambda x, c: (x[:, :1], c._replace(length=12)), "cache is full: length=12, 3 slots of chunk_size=4"),
        (lambda x, c: (x[:, :1], c._replace(length=-1)), "length=-1"),
        (lambda x, c: (x[:1, :1], c), r"cache.k_mem has shape \(2, 4, 3, 4\), expected \(1, 4, 3, 4\)"),
        (lambda x, c: (x[:, :1], c._replace(v_mem=c.v_mem[:, :, :1])), "cache.v_mem has shape"),
        (lambda x, c: (x[:, :1], c._replace(k_last=c.k_last[:, :3])), "cache.k_last has shape"),
        (lambda x, c: (x[:, :1].astype(int), c), "x_t has dtype int64"),
    ],
)
def test_steps_that_do_not_fit_are_named(change, message):
    """A step takes one token and a cache of its own sizes with room in it."""
    x, weights, options = fixed()
    x, cache = change(x, rat_init_cache(2, 12, 16, num_heads=4, chunk_size=4))
    with pytest.raises(ValueError, match=message):
        rat_step(x, weights, RATCache(*cache), **options)
