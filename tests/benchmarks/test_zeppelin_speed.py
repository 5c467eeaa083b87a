"""How many batches a minute are planned and simulated, and what arrays gain over loops; one thread.

``pytest tests/benchmarks/test_zeppelin_speed.py --benchmark-only`` prints times; with ``tests`` on the path, running
this file prints batches a minute for 2, 8 and 64 nodes, and the ratio of plain loops to arrays. Nothing is asserted on
time.
"""

import time

import numpy as np
import pytest
from zeppelin_loop import LoopClocks, loop_attention

from refattn.efficiency.zeppelin_events import idle_clocks, run_ring
from refattn.efficiency.zeppelin_plan import Cluster, LayerCost, partition_hierarchical
from refattn.efficiency.zeppelin_simulator import DISTRIBUTIONS, POLICIES, sample_lengths, simulate_layer

TOKENS = 4096  # a GPU


def batches_of(name, nodes, count):
    """Return random batches."""
    rng = np.random.default_rng(0)
    return [sample_lengths(name, rng, Cluster(nodes=nodes).ranks * TOKENS) for _ in range(count)]


def array_ring(cluster):
    """Run a ring over all GPUs with arrays."""
    clocks = idle_clocks(cluster)
    run_ring(clocks, cluster, range(cluster.ranks), 1e6, 1e-5, routing=True)
    return clocks.compute


def loop_ring(cluster):
    """Run the same ring one transfer after the other."""
    clocks = LoopClocks(cluster)
    clocks.ring(range(cluster.ranks), 1e6, 1e-5, routing=True)
    return clocks.compute


@pytest.mark.parametrize("nodes", [2, 8])
@pytest.mark.parametrize("policy", POLICIES)
def test_layer(benchmark, policy, nodes):
    """A simulated layer takes some time."""
    (batch,) = batches_of("github", nodes, 1)
    assert benchmark(simulate_layer, batch, Cluster(nodes=nodes), policy=policy).total > 0


@pytest.mark.parametrize("ring", [array_ring, loop_ring], ids=["arrays", "loops"])
@pytest.mark.parametrize("nodes", [2, 8])
def test_ring(benchmark, ring, nodes):
    """Arrays and loops end at the same time."""
    cluster = Cluster(nodes=nodes)
    np.testing.assert_allclose(benchmark(ring, cluster), array_ring(cluster), rtol=1e-12)


def seconds_of(function, repeats=3):
    """Return the shortest of some runs, in seconds of processor time."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def main():
    """Print batches a minute and ratios."""
    for nodes, count in ((2, 50), (8, 20), (64, 4)):
        cluster = Cluster(nodes=nodes)
        batches = {name: batches_of(name, nodes, count) for name in DISTRIBUTIONS}
        for policy in POLICIES:
            rates = []
            for drawn in batches.values():
                run = [lambda b=b, p=policy, c=cluster: simulate_layer(b, c, policy=p) for b in drawn]
                rates.append(60 / np.mean([seconds_of(f, 1) for f in run]))
            shown = ", ".join(f"{name} {rate:,.0f}" for name, rate in zip(batches, rates, strict=True))
            print(f"{nodes} nodes, {policy}: batches a minute: {shown}")
        ratio = seconds_of(lambda c=cluster: loop_ring(c)) / seconds_of(lambda c=cluster: array_ring(c))
        print(f"{nodes} nodes: one ring over {cluster.ranks} GPUs: loops / arrays = {ratio:.1f}")
    cluster, layer = Cluster(), LayerCost()
    drawn = [batch for name in DISTRIBUTIONS for batch in batches_of(name, 2, 20)]
    ours = seconds_of(lambda: [simulate_layer(batch, cluster) for batch in drawn])
    plans = [partition_hierarchical(batch, cluster).jobs for batch in drawn]
    planning = seconds_of(lambda: [partition_hierarchical(batch, cluster) for batch in drawn])
    loops = seconds_of(lambda: [loop_attention(jobs, cluster, layer, routing=True) for jobs in plans])
    print(
        f"2 nodes: planning takes {planning / ours:.2f} of a simulated layer, its attention in loops {loops / ours:.2f}"
    )


if __name__ == "__main__":
    main()
