"""The simulation of a layer: events, policies, bounds, and the lengths that are drawn for it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zeppelin_loop import LoopClocks, loop_attention

from refattn.efficiency.zeppelin_events import idle_clocks, run_ring
from refattn.efficiency.zeppelin_plan import Cluster, LayerCost
from refattn.efficiency.zeppelin_simulator import (
    DISTRIBUTIONS,
    POLICIES,
    lower_bound,
    sample_lengths,
    simulate_layer,
)

LAYER = LayerCost()
clusters = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 8)).map(lambda sizes: Cluster(*sizes))
batches = st.lists(st.one_of(st.integers(1, 300), st.integers(1, 60000)), min_size=1, max_size=12)


@st.composite
def rings(draw):
    """Draw a cluster and some rings on it, each of GPUs that lie node by node."""
    cluster = draw(clusters)
    ranks = st.sets(st.integers(0, cluster.ranks - 1), min_size=1).map(sorted)
    sizes = st.tuples(ranks, st.sampled_from([0.0, 1e4, 1e6, 3e7]), st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]))
    return cluster, draw(st.lists(sizes, min_size=1, max_size=4)), draw(st.booleans())


@given(rings())
def test_rings_of_arrays_are_rings_of_loops(drawn):
    """All clocks end where one transfer after the other leaves them."""
    cluster, jobs, routing = drawn
    clocks, loop = idle_clocks(cluster), LoopClocks(cluster)

    for ranks, block_bytes, seconds in jobs:
        run_ring(clocks, cluster, ranks, block_bytes, seconds, routing=routing)
        loop.ring(ranks, block_bytes, seconds, routing=routing)

    for ours, theirs in zip(clocks, (loop.compute, loop.port, loop.nic), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


@given(clusters, batches, st.booleans())
def test_attention_of_a_plan_takes_as_long_as_its_loop(cluster, lengths, routing):
    """The plan's attention, event by event in plain Python, takes the time that the simulation says."""
    done = simulate_layer(lengths, cluster, routing=routing)

    assert done.attention == pytest.approx(loop_attention(done.jobs, cluster, LAYER, routing=routing), rel=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
@given(cluster=clusters, lengths=batches)
@settings(max_examples=40)
def test_no_policy_beats_the_bound(policy, cluster, lengths):
    """Every policy takes at least as long as all arithmetic spread evenly, and does all of it; one GPU just that."""
    done = simulate_layer(lengths, cluster, policy=policy)
    bound, pairs = lower_bound(lengths, cluster), sum(length**2 for length in lengths)
    pairs = sum(lengths) ** 2 if policy == "packing" else pairs

    assert done.total >= bound * (1 - 1e-12)
    assert done.compute_busy.sum() == pytest.approx(2 * LAYER.hidden * pairs / cluster.attention_flops, rel=1e-12)
    assert sorted(job.length for job in done.jobs) == sorted(lengths)
    assert done.total == pytest.approx(done.attention + done.remap + done.linear, rel=1e-12)
    if cluster.ranks == 1 and policy not in ("packing", "hybrid"):
        assert done.total == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "packing"])
@pytest.mark.parametrize("lengths", [[1], [900, 50, 50]])
def test_one_gpu_needs_the_bound(policy, lengths):
    """With one GPU there is nothing to plan."""
    alone = Cluster(nodes=1, gpus=1)
    done = simulate_layer(lengths, alone, policy=policy)
    assert done.total == pytest.approx(lower_bound(lengths, alone), rel=1e-12)
    assert done.inter_bytes == done.remap == 0.0


def test_equal_sequences_need_the_bound():
    """One sequence a GPU, each as long as the capacity: all local, no byte on the network, no time lost."""
    lengths = [4096] * 16

    done = simulate_layer(lengths, capacity=4096)

    assert done.total == pytest.approx(lower_bound(lengths), rel=1e-12)
    assert done.inter_bytes == done.remap == 0.0
    assert {job.zone for job in done.jobs} == {"local"}


@pytest.mark.parametrize("nodes", [2, 3])
def test_one_sequence_over_all_is_the_even_ring(nodes):
    """A sequence that needs all nodes runs as the even ring does, with routing."""
    cluster = Cluster(nodes=nodes)

    ours = simulate_layer([65536 * nodes], cluster)
    even = simulate_layer([65536 * nodes], cluster, policy="even_ring", routing=True)

    assert ours.total == pytest.approx(even.total, rel=1e-12)
    assert ours.inter_bytes == pytest.approx(even.inter_bytes, rel=1e-12)
    assert even.total < simulate_layer([65536 * nodes], cluster, policy="even_ring").total


@given(clusters, batches, st.sampled_from(POLICIES), st.sampled_from([0.25, 3.0, 1000.0]))
@settings(max_examples=60)
def test_a_faster_world_is_the_same_world(cluster, lengths, policy, c):
    """All rates times c and all latencies by c: every time by c."""
    rates = cluster._asdict()
    faster = Cluster(
        *(value * c if name.endswith(("bandwidth", "flops")) else value for name, value in rates.items())
    )._replace(intra_latency=cluster.intra_latency / c, inter_latency=cluster.inter_latency / c)

    here, there = (simulate_layer(lengths, x, policy=policy) for x in (cluster, faster))

    assert there.total * c == pytest.approx(here.total, rel=1e-12)
    assert lower_bound(lengths, faster) * c == pytest.approx(lower_bound(lengths, cluster), rel=1e-12)


@given(clusters, batches, st.sampled_from(POLICIES), st.randoms())
@settings(max_examples=60)
def test_the_order_of_a_batch_costs_nothing(cluster, lengths, policy, random):
    """A batch in another order takes the same time, to the bit."""
    shuffled = random.sample(lengths, len(lengths))
    assert (
        simulate_layer(lengths, cluster, policy=policy).total == simulate_layer(shuffled, cluster, policy=policy).total
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_spans_are_the_busy_times(policy):
    """No engine does two things at once, compute bars sum to the busy times, and the last ends with attention."""
    lengths = [30000, 20000, 6000, 5000, 900, 300]
    cluster = Cluster(nodes=2, gpus=4, nics=2)

    done = simulate_layer(lengths, cluster, policy=policy, record=True)

    engines = {}
    for span in done.spans:
        assert span.end >= span.start - 1e-15
        engines.setdefault(span[:2], []).append((span.start, span.end))
    for spans in engines.values():
        ends = sorted(spans)
        assert all(a[1] <= b[0] + 1e-12 for a, b in pairwise(ends))
    for rank, busy in enumerate(done.compute_busy):
        assert sum(end - start for start, end in engines["compute", rank]) == pytest.approx(busy)
    if policy != "hybrid":
        assert max(span.end for span in done.spans) >= done.attention * (1 - 1e-12)
        assert max(end for key, bars in engines.items() if key[0] == "compute" for _, end in bars) == pytest.approx(
            done.attention
        )
    assert simulate_layer(lengths, cluster, policy=policy).spans == []
    assert simulate_layer(lengths, cluster, policy=policy).total == done.total


def test_hybrid_waits_for_room():
    """What has no room anywhere runs after the others; what needs two GPUs gets neighbours."""
    pair = Cluster(nodes=1, gpus=2)
    together, one_after_the_other, alone = (
        simulate_layer(lengths, pair, policy="hybrid", capacity=3) for lengths in ([2, 2], [2, 2, 2], [2])
    )
    split = simulate_layer([5, 3, 3], Cluster(nodes=1, gpus=4), policy="hybrid", capacity=3)

    full = simulate_layer([4, 2, 2, 1, 1], pair, policy="hybrid", capacity=5)

    assert together.total == pytest.approx(alone.total, rel=1e-12)
    assert one_after_the_other.total == pytest.approx(2 * alone.total, rel=1e-12)
    assert [job.ranks for job in split.jobs] == [(0, 1), (2,), (3,)]
    assert [job.ranks for job in full.jobs] == [
        (0,),
        (1,),
        (1,),
        (1,),
        (0,),
    ]  # the last: GPU 1 has less to do, but no room


def test_gathering_everything_costs_what_it_says():
    """All-gather: half the keys and values through four cards, then 15/16 over NVLink, then arithmetic."""
    done = simulate_layer([32768] * 2, policy="allgather")

    gathered = 65536 * 16384
    seconds = gathered / 2 / 100e9 + 15e-6 + gathered * 15 / 16 / 200e9 + 5e-6
    assert done.attention == pytest.approx(seconds + 2 * 2 * 4096 * 32768**2 / 16 / 150e12, rel=1e-12)
    assert done.inter_bytes == gathered


def test_what_the_even_ring_sends():
    """Fifteen rounds, two links between nodes, a sixteenth of all keys and values each time."""
    assert simulate_layer([4096] * 16, policy="even_ring").inter_bytes == 15 * 2 * 4096 * 16384


def test_without_remapping_the_fullest_gpu_counts():
    """Linear modules wait for the GPU with most tokens if nobody gives any away."""
    lengths = [4000, 1000]
    cluster = Cluster(nodes=1, gpus=2)

    even, uneven = (simulate_layer(lengths, cluster, capacity=4000, remap=remap) for remap in (True, False))

    assert uneven.remap == 0.0
    assert uneven.linear / even.linear == pytest.approx(4000 / 2500)
    assert even.remap == pytest.approx(2 * (1500 * 8192 / 200e9 + 5e-6), rel=1e-12)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@given(seed=st.integers(0, 99), budget=st.integers(1, 300000), max_len=st.one_of(st.none(), st.integers(64, 9000)))
@settings(max_examples=20)
def test_lengths_use_up_the_budget(name, seed, budget, max_len):
    """Lengths sum to the budget, none is longer than allowed, all but the last have 64 tokens; the seed decides."""
    lengths, again = (sample_lengths(name, np.random.default_rng(seed), budget, max_len) for _ in range(2))

    assert lengths == again
    assert sum(lengths) == budget
    assert max(lengths) <= (budget if max_len is None else max_len)
    assert min(lengths[:-1], default=64) >= 64


BAD_CALLS = {
    "no sequences": (lambda: simulate_layer([]), "lengths is empty"),
    "an unknown policy": (lambda: simulate_layer([5], policy="best"), "policy='best'"),
    "too many tokens": (
        lambda: simulate_layer([90], Cluster(), capacity=5),
        "batch does not fit: 90 tokens, capacity 80",
    ),
    "too many for a baseline": (lambda: simulate_layer([90], capacity=5, policy="even_ring"), "does not fit"),
    "no capacity": (lambda: simulate_layer([1], capacity=0), "capacity=0"),
    "no bandwidth": (lambda: simulate_layer([1], Cluster(intra_bandwidth=0)), "cluster.intra_bandwidth=0"),
    "no width": (lambda: simulate_layer([1], layer=LayerCost(hidden=0)), "layer.hidden=0"),
    "no sequences in the bound": (lambda: lower_bound([]), "lengths is empty"),
    "half a token in the bound": (lambda: lower_bound([0.5]), "expected integers"),
    "an unknown data set": (lambda: sample_lengths("books", np.random.default_rng(0), 9), "name='books'"),
    "no budget": (lambda: sample_lengths("arxiv", np.random.default_rng(0), 0), "budget=0"),
    "no longest length": (lambda: sample_lengths("arxiv", np.random.default_rng(0), 9, 0), "max_len=0"),
}


@pytest.mark.parametrize(("call", "words"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_input_is_refused(call, words):
    """What is wrong is said."""
    with pytest.raises(ValueError, match=words):
        call()
