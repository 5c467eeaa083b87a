"""Zeppelin's event simulation once more, one transfer after the other in plain Python."""


class LoopClocks:
    """When each engine is free again."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.compute = [0.0] * cluster.ranks
        self.port = [0.0] * cluster.ranks
        self.nic = [[0.0] * cluster.nics for _ in range(cluster.nodes)]

    def send(self, sender, receiver, n, ready, *, routing):
        """Return when a message of n bytes is there."""
        c = self.cluster
        node = sender // c.gpus
        if node == receiver // c.gpus:
            self.port[sender] = max(ready, self.port[sender]) + c.intra_latency + n / c.intra_bandwidth
            return self.port[sender]
        dispatch = (c.nics - 1) / c.nics * n / c.intra_bandwidth + (c.intra_latency if c.nics > 1 else 0.0)
        through_all = n / (c.nics * c.inter_bandwidth)
        if not (routing and 2 * dispatch + through_all < n / c.inter_bandwidth):
            card = sender % c.gpus * c.nics // c.gpus
            self.nic[node][card] = max(ready, self.nic[node][card]) + c.inter_latency + n / c.inter_bandwidth
            return self.nic[node][card]
        self.port[sender] = max(ready, self.port[sender]) + dispatch
        end = max(self.port[sender], *self.nic[node]) + c.inter_latency + through_all
        self.nic[node] = [end] * c.nics
        return end + dispatch

    def ring(self, ranks, block_bytes, step_seconds, *, routing):
        """Run a ring to its end."""
        G, arrived = len(ranks), [0.0] * len(ranks)
        for t in range(G):
            coming = [0.0] * G
            if t < G - 1:
                for i in range(G):
                    after = (i + 1) % G
                    coming[after] = self.send(ranks[i], ranks[after], block_bytes, arrived[i], routing=routing)
            for i, rank in enumerate(ranks):
                self.compute[rank] = max(self.compute[rank], arrived[i]) + step_seconds
            arrived = coming


def loop_attention(jobs, cluster, layer, *, routing):
    """Return when the last GPU is done with the jobs."""
    clocks = LoopClocks(cluster)
    for _, ranks, length in jobs:
        G, seconds = len(ranks), layer.attention_flops(length) / cluster.attention_flops
        clocks.ring(ranks, length / G * layer.kv_bytes, seconds / G**2, routing=routing)
    return max(clocks.compute)
