"""The planner of Zeppelin: partition, transfers, remapping."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from refattn.efficiency.zeppelin import execute_plan
from refattn.efficiency.zeppelin_plan import (
    ZONES,
    Cluster,
    LayerCost,
    default_capacity,
    partition_hierarchical,
)
from refattn.efficiency.zeppelin_ring import ring_attention
from refattn.efficiency.zeppelin_transfer import overlap_threshold, plan_remap, remap_time, transfer_time

clusters = st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 10)).map(lambda sizes: Cluster(*sizes))
rates = st.floats(1e9, 1e12)


@st.composite
def batches(draw):
    """Draw a cluster, lengths, and a capacity that they fit, often exactly."""
    cluster = draw(clusters)
    lengths = draw(st.lists(st.one_of(st.integers(1, 60), st.integers(1, 3000)), min_size=1, max_size=30))
    fair = -(-sum(lengths) // cluster.ranks)
    return cluster, lengths, fair + draw(st.sampled_from([0, 0, 1, fair // 20, fair]))


def nodes_of(job, cluster):
    return {rank // cluster.gpus for rank in job.ranks}


@given(batches())
def test_a_plan_holds_every_sequence_once_and_no_gpu_too_much(drawn):
    """Jobs have the lengths of the batch, tokens sum to it, and every GPU keeps to its capacity."""
    cluster, lengths, capacity = drawn

    jobs, tokens = partition_hierarchical(lengths, cluster, capacity)

    assert sorted(job.length for job in jobs) == sorted(lengths)
    assert tokens.sum() == pytest.approx(sum(lengths), rel=1e-9)
    assert tokens.max() <= capacity * (1 + 1e-9)
    held = np.zeros(cluster.ranks)
    for job in jobs:
        held[list(job.ranks)] += job.length / len(job.ranks)
    np.testing.assert_allclose(tokens, held, rtol=1e-12)


@given(batches())
def test_zones_say_which_links_a_ring_uses(drawn):
    """A local job has one rank, an intra-node job some of one node, an inter-node job all of several nodes."""
    cluster, lengths, capacity = drawn

    jobs = partition_hierarchical(lengths, cluster, capacity).jobs

    assert [job.zone for job in jobs] == sorted((job.zone for job in jobs), key=ZONES.index)
    for job in jobs:
        nodes = nodes_of(job, cluster)
        assert list(job.ranks) == sorted(set(job.ranks))
        if job.zone == "inter-node":
            assert len(nodes) > 1
            assert len(job.ranks) == len(nodes) * cluster.gpus
        else:
            assert len(nodes) == 1
            assert (len(job.ranks) == 1) == (job.zone == "local")


@given(batches(), st.randoms())
def test_the_order_of_a_batch_does_not_matter(drawn, random):
    """A batch in another order gets the same plan."""
    cluster, lengths, capacity = drawn
    shuffled = random.sample(lengths, len(lengths))

    plan, other = (partition_hierarchical(x, cluster, capacity) for x in (lengths, shuffled))

    assert plan.jobs == other.jobs
    np.testing.assert_array_equal(plan.tokens_per_gpu, other.tokens_per_gpu)


@given(batches())
@settings(max_examples=15)
def test_carrying_out_a_plan_changes_nothing(drawn):
    """Attention on the planned rings is attention of each sequence alone."""
    cluster, lengths, _ = drawn
    lengths = [1 + length % 23 for length in lengths[:6]]
    q, k, v = np.random.default_rng(0).standard_normal((3, sum(lengths), 1, 4))
    ends = np.cumsum([0, *lengths])

    out = execute_plan(q, k, v, ends, partition_hierarchical(lengths, cluster).jobs)

    np.testing.assert_allclose(out, ring_attention(q, k, v, 1, cu_seqlens=ends)[0], rtol=1e-12, atol=1e-13)


def test_a_plan_by_hand():
    """Seven tokens take both GPUs of node 0; two more would overfill one of them, so they are shared as well."""
    jobs, tokens = partition_hierarchical([7, 5, 4, 2], Cluster(nodes=2, gpus=2), 5)

    assert jobs == [
        ("intra-node", (0, 1), 7),
        ("intra-node", (0, 1), 2),
        ("local", (2,), 5),
        ("local", (3,), 4),
    ]
    assert tokens.tolist() == [4.5, 4.5, 5.0, 4.0]


def test_load_is_squared_length():
    """The last token goes to the GPU with more tokens but less attention: 6² + 6² is less than 10²."""
    jobs = partition_hierarchical([10, 6, 6, 1], Cluster(nodes=1, gpus=2), 20).jobs

    assert [job.ranks for job in jobs] == [(0,), (1,), (1,), (1,)]


def test_the_threshold_falls_no_further_than_it_must():
    """Three GPUs of three tokens cannot hold four twos whole: halves of them will do, and the one stays whole."""
    jobs, tokens = partition_hierarchical([2, 2, 2, 2, 1], Cluster(nodes=1, gpus=3), 3)

    assert [job.ranks for job in jobs] == [(0, 1), (0, 2), (1, 2), (0, 1), (2,)]
    assert tokens.tolist() == [3.0, 3.0, 3.0]


def test_only_what_no_node_can_hold_crosses_at_first():
    """One sequence longer than a node goes over both; the rest stays where it fits."""
    jobs, tokens = partition_hierarchical([40, 8, 6, 4], Cluster(nodes=2, gpus=4), 8)

    assert jobs == [
        ("inter-node", tuple(range(8)), 40),
        ("intra-node", (0, 1, 2), 8),
        ("intra-node", (4, 5), 6),
        ("intra-node", (6, 7), 4),
    ]
    assert tokens.tolist() == pytest.approx([5 + 8 / 3] * 3 + [5, 8, 8, 7, 7])


def test_equal_sequences_that_fill_a_gpu_stay_whole():
    """As many sequences as GPUs, each as long as the capacity: all local, one each."""
    jobs, tokens = partition_hierarchical([4096] * 16, Cluster(), 4096)

    assert [job[:2] for job in jobs] == [("local", (rank,)) for rank in range(16)]
    np.testing.assert_array_equal(tokens, 4096.0)


@pytest.mark.parametrize(
    ("lengths", "cluster", "capacity"),
    [
        ([1], Cluster(), None),  # fewer tokens than GPUs
        ([1, 1, 1], Cluster(nodes=1, gpus=1), 3),
        ([5, 5, 5, 5], Cluster(nodes=4, gpus=1, nics=1), 5),
        ([64] * 16, Cluster(nics=16), None),  # more cards than GPUs
        ([9, 7, 5], Cluster(nodes=3, gpus=1), 7),  # no room to spare
    ],
)
def test_small_and_odd_clusters_work(lengths, cluster, capacity):
    """One token, one GPU, GPUs alone in their nodes, more cards than GPUs, and a batch that fills everything."""
    jobs, tokens = partition_hierarchical(np.array(lengths), cluster, capacity)

    assert sum(job.length for job in jobs) == sum(lengths)
    assert tokens.sum() == pytest.approx(sum(lengths))


def test_capacity_is_five_per_cent_above_the_mean():
    """The default capacity is 1.05 T/R rounded up, in exact arithmetic."""
    assert default_capacity(65536, Cluster()) == 4301  # 4300.8
    assert default_capacity(16 * 100, Cluster()) == 105  # 1.05 · 100 in floats is above 105


BAD_BATCHES = {
    "no sequences": (([], Cluster()), "lengths is empty"),
    "a length of 0": (([3, 0], Cluster()), "must be positive"),
    "a negative length": (([-3], Cluster()), "must be positive"),
    "half a token": (([2.5], Cluster()), "expected integers"),
    "two axes": (([[3, 4]], Cluster()), "2 axes"),
    "too many tokens": (([40, 50], Cluster(), 5), "batch does not fit: 90 tokens, capacity 80"),
    "no capacity": (([1], Cluster(), 0), "capacity=0 must be at least 1"),
    "no node": (([1], Cluster(nodes=0)), "cluster.nodes=0"),
    "no GPU": (([1], Cluster(gpus=0)), "cluster.gpus=0"),
    "no card": (([1], Cluster(nics=0)), "cluster.nics=0"),
    "a rate of 0": (([1], Cluster(intra_bandwidth=0.0)), "cluster.intra_bandwidth=0.0 must be positive"),
    "a negative rate": (([1], Cluster(linear_flops=-1.0)), "cluster.linear_flops"),
    "an infinite rate": (([1], Cluster(attention_flops=np.inf)), "cluster.attention_flops"),
    "a rate that is none": (([1], Cluster(inter_bandwidth=np.nan)), "cluster.inter_bandwidth"),
    "a negative latency": (([1], Cluster(inter_latency=-1.0)), "cluster.inter_latency"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_bad_batches_and_clusters_are_refused(arguments, words):
    """What is wrong with a batch or a cluster is said."""
    with pytest.raises(ValueError, match=words):
        partition_hierarchical(*arguments)


def test_transfers_follow_the_formulas():
    """Direct: one card. Routed: 3/4 of the message over NVLink, a quarter through each card, 3/4 over NVLink."""
    cluster, n = Cluster(), np.array([0.0, 1e6, 1e9])

    direct, routed = (transfer_time(n, cluster, routed=way) for way in (False, True))

    np.testing.assert_allclose(direct, 15e-6 + n / 25e9, rtol=1e-14)
    np.testing.assert_allclose(routed, 2 * (0.75 * n / 200e9 + 5e-6) + 15e-6 + n / 100e9, rtol=1e-14)
    np.testing.assert_array_equal(transfer_time(n, cluster), np.minimum(direct, routed))
    assert transfer_time(n.astype(np.float32), cluster).dtype == np.float32


def test_routing_gains_at_most_what_bandwidths_allow():
    """A large message is 2.29 times as fast through four cards; below half a megabyte, spreading does not pay."""
    cluster = Cluster()
    gain = transfer_time(1e15, cluster, routed=False) / transfer_time(1e15, cluster)
    assert gain == pytest.approx(1 / (25 * (1 / 100 + 0.0075)), rel=1e-6)
    crossing = 1e-5 / (1 / 25e9 - 1 / 100e9 - 1.5 / 200e9)
    assert 0.4e6 < crossing < 0.6e6
    direct, routed = (transfer_time(np.array([0.99, 1.01]) * crossing, cluster, routed=way) for way in (False, True))
    assert (routed < direct).tolist() == [False, True]


@given(st.floats(0, 1e12), st.integers(1, 16), rates, rates, st.floats(1, 8))
def test_better_links_never_take_longer(n_bytes, nics, intra, inter, factor):
    """Routing never loses, faster links never do, nor more cards if NVLink is at least twice as fast as a card."""
    cluster = Cluster(nics=nics, intra_bandwidth=intra, inter_bandwidth=inter)
    here = transfer_time(n_bytes, cluster) * (1 + 1e-12)

    assert here <= transfer_time(n_bytes, cluster, routed=False) * (1 + 1e-12)
    assert transfer_time(n_bytes, cluster._replace(intra_bandwidth=intra * factor)) <= here
    assert transfer_time(n_bytes, cluster._replace(inter_bandwidth=inter * factor)) <= here
    if intra >= 2 * inter:
        assert transfer_time(n_bytes, cluster._replace(nics=nics + 1)) <= here


@given(st.floats(0, 1e12))
def test_one_card_has_one_way(n_bytes):
    """With one network card a routed message is a direct one."""
    cluster = Cluster(nics=1)
    assert transfer_time(n_bytes, cluster, routed=True) == transfer_time(n_bytes, cluster, routed=False)


@pytest.mark.parametrize(
    ("n_ranks", "bandwidth", "length"), [(2, 200e9, 3000), (8, 200e9, 12000), (16, 25e9, 192000), (16, 100e9, 48000)]
)
def test_rings_hide_their_transfers_from_a_length_on(n_ranks, bandwidth, length):
    """At the threshold a round of arithmetic takes as long as a round of transfer."""
    cluster, layer = Cluster(), LayerCost()

    found = overlap_threshold(n_ranks, bandwidth, cluster)

    assert found == pytest.approx(length, rel=1e-12)
    compute = layer.attention_flops(found) / n_ranks**2 / cluster.attention_flops
    assert compute == pytest.approx(found / n_ranks * layer.kv_bytes / bandwidth, rel=1e-12)


held = clusters.flatmap(
    lambda c: st.tuples(
        st.just(c),
        st.lists(st.one_of(st.integers(0, 5), st.floats(0, 1e4)), min_size=c.ranks, max_size=c.ranks),
    )
)


@given(held)
def test_a_remap_levels_and_moves_within_nodes_what_it_can(drawn):
    """Rows sum to surpluses, columns to deficits; only what a node has too much of leaves it."""
    cluster, tokens = drawn[0], np.array(drawn[1], dtype=float)
    rest, slack = tokens - tokens.mean(), 1e-9 * (1 + tokens.sum())

    plan = plan_remap(tokens, cluster)

    assert (plan >= 0).all()
    np.testing.assert_allclose(plan.sum(axis=1), np.maximum(rest, 0), atol=slack)
    np.testing.assert_allclose(plan.sum(axis=0), np.maximum(-rest, 0), atol=slack)
    N, P = cluster.nodes, cluster.gpus
    between = plan.reshape(N, P, N, P).sum(axis=(1, 3)) * ~np.eye(N, dtype=bool)
    np.testing.assert_allclose(between.sum(axis=1), np.maximum(rest.reshape(N, P).sum(axis=1), 0), atol=slack)


@pytest.mark.parametrize("seed", range(12))
def test_greedy_remap_costs_what_the_linear_programme_costs(seed):
    """No plan of the transport problem is cheaper than the greedy one."""
    rng = np.random.default_rng(seed)
    cluster = Cluster(nodes=int(rng.integers(1, 4)), gpus=int(rng.integers(1, 5)))
    tokens, R = rng.integers(0, 100, cluster.ranks).astype(float), cluster.ranks
    rest = tokens - tokens.mean()
    node = np.arange(R) // cluster.gpus
    cost = np.where(node[:, None] == node, 1.0, cluster.intra_bandwidth / cluster.inter_bandwidth)

    sums = np.concatenate([np.kron(np.eye(R), np.ones(R)), np.kron(np.ones(R), np.eye(R))])
    best = linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate([np.maximum(rest, 0), np.maximum(-rest, 0)]))

    assert (cost * plan_remap(tokens, cluster)).sum() == pytest.approx(best.fun, rel=1e-9, abs=1e-9)


def test_balanced_tokens_stay():
    """Nothing moves, and nothing is paid, when all hold the same."""
    tokens = np.full(16, 4096.0)
    assert not plan_remap(tokens, Cluster()).any()
    assert remap_time(tokens, Cluster()) == 0.0
    assert remap_time(np.full(12, 1e5 / 3), Cluster(nodes=3, gpus=4)) == 0.0


def test_remap_time_counts_the_fullest_gpu_and_the_fullest_node():
    """One GPU has 8 tokens and its node 4 too many: 8 over NVLink, then 4 over all cards."""
    cluster, layer = Cluster(nodes=2, gpus=2, nics=2), LayerCost()
    tokens = np.array([18.0, 6.0, 8.0, 8.0])

    expected = 8 * 8192 / 200e9 + 5e-6 + 4 * 8192 / 50e9 + 15e-6

    assert remap_time(tokens, cluster, layer) == pytest.approx(expected, rel=1e-12)


BAD_CALLS = {
    "negative bytes": (lambda: transfer_time([-1.0], Cluster()), "n_bytes"),
    "no ranks": (lambda: overlap_threshold(0, 1.0, Cluster()), "n_ranks=0"),
    "no bandwidth": (lambda: overlap_threshold(2, 0.0, Cluster()), "bandwidth"),
    "no width": (lambda: overlap_threshold(2, 1.0, Cluster(), LayerCost(hidden=0)), "layer.hidden=0"),
    "too few GPUs": (lambda: plan_remap([1.0, 2.0], Cluster()), "tokens has shape"),
    "negative tokens": (lambda: plan_remap([-1.0, 2.0], Cluster(1, 2)), "must not be negative"),
    "infinite tokens": (lambda: plan_remap([np.inf, 2.0], Cluster(1, 2)), "must be finite"),
    "tokens of another cluster": (lambda: remap_time([1.0, 2.0], Cluster()), "tokens has shape"),
}


@pytest.mark.parametrize(("call", "words"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_transfers_are_refused(call, words):
    """What is wrong with a message, a ring or what GPUs hold is said."""
    with pytest.raises(ValueError, match=words):
        call()
