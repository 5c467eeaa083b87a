"""Ring attention is attention: any number of ranks, any layout, any plan, and the way back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.efficiency.zeppelin import execute_plan
from refattn.efficiency.zeppelin_blocks import empty_partial
from refattn.efficiency.zeppelin_plan import Cluster, Job, partition_hierarchical
from refattn.efficiency.zeppelin_ring import (
    LAYOUTS,
    attention_block,
    attention_block_gradient,
    merge_partial,
    pair_counts,
    partition_positions,
    ring_attention,
    ring_attention_gradient,
    shard_positions,
)
from refattn.primitives.attention_gradients import attention_vjp
from refattn.primitives.attention_packed import attention_varlen

close = pytest.approx


def drawn(n, seed=0, heads=(4, 2), widths=(5, 3)):
    """Return q, k, v and a cotangent of n tokens."""
    rng = np.random.default_rng([n, seed])
    (h, h_kv), (d, d_v) = heads, widths
    return tuple(rng.standard_normal(shape) for shape in ((n, h, d), (n, h_kv, d), (n, h_kv, d_v), (n, h, d_v)))


def whole(q, k, v, cu_seqlens, causal):
    """Return output and log-sum-exp of the sequences in one piece each, tokens before heads."""
    bounds = np.asarray(cu_seqlens)
    result = attention_varlen(q, k, v, bounds, bounds, causal=causal, returns=("out", "lse"))
    return result.out, result.lse.T


def agree(found, expected, bound=1e-12):
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=bound)


sizes = st.lists(st.integers(1, 20), min_size=1, max_size=3)
ranks = st.integers(1, 9)


@given(sizes, ranks, st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 99))
def test_the_ring_is_the_whole(lengths, n_ranks, layout, causal, seed):
    """Outputs and log-sum-exps are those of unpartitioned attention, whatever the ranks and the layout."""
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    q, k, v, _ = drawn(sum(lengths), seed)
    found = ring_attention(q, k, v, n_ranks, layout=layout, causal=causal, cu_seqlens=cu_seqlens)

    agree(found, whole(q, k, v, cu_seqlens, causal))


@given(sizes, ranks, st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 99))
def test_the_way_back_is_the_whole_too(lengths, n_ranks, layout, causal, seed):
    """Gradients that travelled round the ring are those of unpartitioned attention."""
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    q, k, v, d_out = drawn(sum(lengths), seed)
    options = {"layout": layout, "causal": causal, "cu_seqlens": cu_seqlens}
    out, lse = ring_attention(q, k, v, n_ranks, **options)
    found = ring_attention_gradient(q, k, v, d_out, out, lse, n_ranks, **options)
    document = np.repeat(np.arange(len(lengths)), lengths)
    arrays = (x[None] for x in (q, k, v, d_out))
    expected = attention_vjp(*arrays, layout="bshd", causal=causal, doc_q=document, doc_k=document)

    agree(found, [x[0] for x in expected[:3]])


def test_the_gradient_is_what_differences_say():
    """A small step along any direction changes the loss by gradient times direction."""
    q, k, v, d_out = drawn(7)
    out, lse = ring_attention(q, k, v, 3)
    gradients = ring_attention_gradient(q, k, v, d_out, out, lse, 3)
    steps = [1e-5 * np.random.default_rng(i).standard_normal(x.shape) for i, x in enumerate((q, k, v))]
    moved = [[x + sign * dx for x, dx in zip((q, k, v), steps, strict=True)] for sign in (1, -1)]
    ahead, behind = (np.sum(d_out * ring_attention(*arrays, 3)[0]) for arrays in moved)
    predicted = sum(np.sum(2 * g * dx) for g, dx in zip(gradients, steps, strict=True))

    assert ahead - behind == close(predicted, rel=1e-7)


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_keys_may_be_cut_anywhere(cut):
    """Two blocks of keys, cut at any place and merged, are attention to all keys."""
    q, k, v, _ = drawn(9)
    tokens = np.arange(9)
    parts = [attention_block(q, k[own], v[own], tokens, own) for own in (tokens[:cut], tokens[cut:])]

    agree(merge_partial(*parts[0], *parts[1]), whole(q, k, v, [0, 9], causal=True), bound=1e-13)


def test_merging_is_commutative_and_associative():
    """The order in which partial results are put together does not matter."""
    q, k, v, _ = drawn(12)
    own = np.split(np.arange(12), 3)
    a, b, c = (attention_block(q, k[x], v[x], np.arange(12), x) for x in own)
    left, right = merge_partial(*merge_partial(*a, *b), *c), merge_partial(*a, *merge_partial(*b, *c))

    agree(left, right, bound=1e-13)
    agree(merge_partial(*a, *b), merge_partial(*b, *a), bound=0)


def test_nothing_is_neutral():
    """Merging with (0, −∞) changes no bit, from either side; two nothings are nothing."""
    q, k, v, _ = drawn(6)
    part, nothing = attention_block(q, k, v, np.arange(6), np.arange(6)), empty_partial(q, v)

    agree(merge_partial(*part, *nothing), part, bound=0)
    agree(merge_partial(*nothing, *part), part, bound=0)
    assert np.array_equal(merge_partial(*nothing, *nothing)[1], nothing[1])
    assert not merge_partial(*nothing, *nothing)[0].any()


def test_the_neutral_form_of_public_code():
    """o_a − σ(l_b − l_a)(o_a − o_b) and l_a − log σ(l_a − l_b) are the same merge."""
    q, k, v, _ = drawn(8)
    tokens = np.arange(8)
    (o_a, l_a), (o_b, l_b) = (
        attention_block(q, k[own], v[own], tokens, own, causal=False) for own in (tokens[:3], tokens[3:])
    )
    share = 1 / (1 + np.exp(l_a - l_b))
    lse = l_a + np.log1p(np.exp(l_b - l_a))

    agree(merge_partial(o_a, l_a, o_b, l_b), (o_a - share[..., None] * (o_a - o_b), lse), bound=1e-13)


def test_a_block_that_hides_everything_weighs_nothing():
    """Where all keys stand behind the queries the output is 0 and the log-sum-exp −∞, and no gradient flows."""
    q, k, v, d_out = drawn(4)
    early, late = np.arange(4), np.arange(4, 8)
    out, lse = attention_block(q, k, v, early, late)
    back = attention_block_gradient(q, k, v, early, late, d_out, np.zeros_like(lse), lse)

    assert not out.any()
    assert np.isneginf(lse).all()
    assert not any(x.any() for x in back)


def test_huge_scores_do_not_overflow():
    """Scores of a thousand and more are as exact in blocks as in one piece."""
    q, k, v, _ = drawn(10)
    found = ring_attention(60 * q, 60 * k, v, 4)

    assert np.isfinite(found[0]).all()
    agree(found, whole(60 * q, 60 * k, v, [0, 10], causal=True), bound=1e-11)  # an ulp of 10⁴ in the scores


@given(st.integers(0, 70), ranks, st.sampled_from(LAYOUTS))
def test_every_token_is_held_once(length, n_ranks, layout):
    """The ranks share the positions out: ascending, each position once, sizes as even as the chunks allow."""
    parts = partition_positions(length, n_ranks, layout)

    assert len(parts) == n_ranks
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(length))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= (2 if layout == "zigzag" else 1)


def test_packed_shards_are_a_part_of_every_sequence():
    """In a packed batch a rank holds its part of each sequence, moved to where the sequence begins."""
    shards = shard_positions([0, 8, 11], 2)

    assert [[part.tolist() for part in own] for own in shards] == [[[0, 1, 6, 7], [8]], [[2, 3, 4, 5], [9, 10]]]


@pytest.mark.parametrize(("n_ranks", "c"), [(1, 3), (2, 1), (4, 5), (8, 2)])
def test_zigzag_is_balanced_exactly(n_ranks, c):
    """With 2Gc tokens every rank computes 2c² + c pairs at step 0 and 2c² at each other step."""
    counts = pair_counts(2 * n_ranks * c, n_ranks)

    assert (counts[:, 0] == 2 * c**2 + c).all()
    assert (counts[:, 1:] == 2 * c**2).all()


@given(st.integers(1, 60), ranks, st.sampled_from(LAYOUTS))
def test_every_pair_is_computed_once(length, n_ranks, layout):
    """Ranks and steps together compute n(n + 1)/2 causal pairs, or n² without the mask."""
    assert pair_counts(length, n_ranks, layout=layout).sum() == length * (length + 1) // 2
    assert pair_counts(length, n_ranks, layout=layout, causal=False).sum() == length**2


@pytest.mark.parametrize("n_ranks", [2, 4, 8])
def test_contiguous_work_falls_on_the_last_rank(n_ranks):
    """In contiguous chunks the last rank does 2 − 1/G times the mean, up to O(1/n)."""
    length = 1000 * n_ranks
    work = pair_counts(length, n_ranks, layout="contiguous").sum(axis=1)

    assert work.argmax() == n_ranks - 1
    assert work.max() / work.mean() == close(2 - 1 / n_ranks, abs=2 / length)


PLAN = [
    Job("inter-node", (0, 1, 2, 3), 21),
    Job("intra-node", (2, 3), 9),
    Job("local", (1,), 4),
    Job("local", (0,), 9),
]


def packed(lengths, seed=0):
    return drawn(sum(lengths), seed)[:3], np.concatenate([[0], np.cumsum(lengths)])


def test_a_plan_changes_nothing():
    """However a plan splits the sequences, the outputs are those of each sequence on its own."""
    (q, k, v), cu_seqlens = packed([4, 9, 21, 9])

    for causal in (True, False):
        agree([execute_plan(q, k, v, cu_seqlens, PLAN, causal=causal)], [whole(q, k, v, cu_seqlens, causal)[0]])


@given(sizes, st.integers(1, 3), st.integers(1, 4), st.integers(0, 5))
def test_what_the_planner_decides_changes_nothing(lengths, nodes, gpus, spare):
    """Plans of the planner, tight or loose, run to the outputs of each sequence on its own."""
    cluster = Cluster(nodes=nodes, gpus=gpus)
    jobs, _ = partition_hierarchical(lengths, cluster, -(-sum(lengths) // cluster.ranks) + spare)
    (q, k, v), cu_seqlens = packed(lengths)

    agree([execute_plan(q, k, v, cu_seqlens, jobs)], [whole(q, k, v, cu_seqlens, causal=True)[0]])


def test_sequences_do_not_see_each_other():
    """Changing one sequence leaves every bit of the others' outputs, in a plan and in a packed ring."""
    (q, k, v), cu_seqlens = packed([4, 9, 21, 9])
    changed = [np.concatenate([x[:4], -3 * x[4:13], x[13:]]) for x in (q, k, v)]
    runs = (
        lambda *arrays: execute_plan(*arrays, cu_seqlens, PLAN),
        lambda *arrays: ring_attention(*arrays, 3, cu_seqlens=cu_seqlens)[0],
    )
    for run in runs:
        before, after = run(q, k, v), run(*changed)
        assert np.array_equal(before[:4], after[:4])
        assert np.array_equal(before[13:], after[13:])
        assert not np.array_equal(before[4:13], after[4:13])


def test_the_dtype_is_kept():
    """Arrays of float32 give results and gradients of float32."""
    q, k, v, d_out = (x.astype(np.float32) for x in drawn(9))
    out, lse = ring_attention(q, k, v, 4)
    gradients = ring_attention_gradient(q, k, v, d_out, out, lse, 4)

    assert {x.dtype for x in (out, lse, *gradients)} == {np.dtype(np.float32)}


Q, K, V, D_OUT = drawn(6)
OUT, LSE = ring_attention(Q, K, V, 2)
BAD = {
    "no rank": (lambda: ring_attention(Q, K, V, 0), "n_ranks=0 must be at least 1"),
    "unknown layout": (lambda: ring_attention(Q, K, V, 2, layout="spiral"), "layout='spiral' is not one of 'zigzag'"),
    "unknown layout of positions": (lambda: partition_positions(4, 2, "spiral"), "layout='spiral'"),
    "negative length": (lambda: partition_positions(-1, 2), "length=-1 must not be negative"),
    "heads that do not group": (lambda: ring_attention(Q[:, :3], K, V, 2), "q has 3 heads, which is no multiple of"),
    "widths that differ": (lambda: ring_attention(Q, K[..., :4], V, 2), r"k has shape \(6, 2, 4\), expected"),
    "fewer keys than queries": (lambda: ring_attention(Q, K[:5], V[:5], 2), r"k has shape \(5, 2, 5\), expected"),
    "values of other tokens": (
        lambda: ring_attention(Q, K, V[:5], 2),
        r"v has shape \(5, 2, 3\), expected \(6, 2, 3\)",
    ),
    "no channels": (lambda: ring_attention(Q[..., :0], K[..., :0], V, 2), "must have at least one channel"),
    "a batch axis": (lambda: ring_attention(Q[None], K, V, 2), "q has 4 axes"),
    "sequences that do not start": (lambda: ring_attention(Q, K, V, 2, cu_seqlens=[1, 6]), "must begin at 0"),
    "no sequence": (lambda: ring_attention(Q, K, V, 2, cu_seqlens=[0]), "hold a sequence"),
    "an empty sequence": (lambda: ring_attention(Q, K, V, 2, cu_seqlens=[0, 3, 3, 6]), "must increase"),
    "sequences that end early": (lambda: ring_attention(Q, K, V, 2, cu_seqlens=[0, 5]), "must end at .* 6"),
    "a scale that is not finite": (lambda: ring_attention(Q, K, V, 2, scale=np.inf), "scale=inf must be finite"),
    "positions of other tokens": (lambda: attention_block(Q, K, V, np.arange(5), np.arange(6)), "q_pos has shape"),
    "positions between tokens": (lambda: attention_block(Q, K, V, np.arange(6) / 2, np.arange(6)), "q_pos has dtype"),
    "parts that do not fit": (lambda: merge_partial(OUT, LSE, OUT[:3], LSE), "out_b has shape"),
    "an infinite weight": (lambda: merge_partial(OUT, LSE, OUT, LSE + np.inf), "holds \\+inf"),
    "a cotangent of another shape": (
        lambda: ring_attention_gradient(Q, K, V, Q, OUT, LSE, 2),
        "d_out has shape",
    ),
    "a plan without a job": (lambda: execute_plan(Q, K, V, [0, 2, 6], [Job("local", (0,), 4)]), r"no job .* \[2\]"),
    "a plan with a job too many": (
        lambda: execute_plan(Q, K, V, [0, 6], [Job("local", (0,), 6), Job("local", (1,), 6)]),
        "no sequence left",
    ),
    "a job on no rank": (lambda: execute_plan(Q, K, V, [0, 6], [Job("local", (), 6)]), "must be some, each once"),
    "a job on one rank twice": (lambda: execute_plan(Q, K, V, [0, 6], [Job("intra-node", (1, 1), 6)]), "each once"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    """Each wrong argument raises ``ValueError`` with its name, its value and the rule."""
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("n", [0, 1])
def test_no_token_and_one_token(n):
    """A sequence of no token gives nothing, one of one token its own value, on any number of ranks."""
    q, k, v, d_out = drawn(n)
    out, lse = ring_attention(q, k, v, 3)
    gradients = ring_attention_gradient(q, k, v, d_out, out, lse, 3)

    np.testing.assert_allclose(out, np.repeat(v, 2, axis=1), rtol=0, atol=1e-15)
    assert lse.shape == (n, 4)
    assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape]
