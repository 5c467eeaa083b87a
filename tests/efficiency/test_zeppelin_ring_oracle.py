"""Ring attention against vectors from two public implementations, run as real processes."""

from itertools import pairwise

import numpy as np

from refattn.efficiency.zeppelin_ring import attention_block, merge_partial, partition_positions, ring_attention

LAYOUT = {"zigzag": "zigzag", "varlen": "zigzag", "stripe": "striped"}  # the others are contiguous
TOLERANCE = 1e-12
CLAMPED = 1e-8  # ring-attention-pytorch holds the sum of a causal block above 1e-10


def batches(case):
    """Yield every batch entry: arrays of (n, h, d), the bounds of its sequences, outputs and lses of the ranks."""
    ranks = range(int(case["world_size"]))
    lse = [case[f"lse_rank{r}"] for r in ranks]
    out = [case[f"out_rank{r}"] for r in ranks]
    if str(case["kind"]) == "varlen":
        yield [case[name] for name in "qkv"], case["cu_seqlens"], out, [x.T for x in lse]
        return
    for b in range(len(case["q"])):
        arrays = [case[name][b] for name in "qkv"]
        yield arrays, np.array([0, len(arrays[0])]), [x[b] for x in out], [x[b].T for x in lse]


def strided_heads(q, k, v):
    """Return the arrays for which query head j reads key head j mod h_kv: every query head gets its own."""
    own = np.arange(q.shape[1]) % k.shape[1]
    return q, k[:, own], v[:, own]


def positions(case, cu_seqlens):
    """Return the rows that each rank holds, by the README of the vectors, all chunks being equal there."""
    layout, n_ranks = LAYOUT.get(str(case["kind"]), "contiguous"), int(case["world_size"])
    parts = [[] for _ in range(n_ranks)]
    for start, end in pairwise(cu_seqlens):
        tokens = np.arange(start, end)
        chunks = np.array_split(tokens, 2 * n_ranks) if layout == "zigzag" else np.array_split(tokens, n_ranks)
        for r in range(n_ranks):
            own = tokens[r::n_ranks] if layout == "striped" else chunks[r]
            parts[r] += [own, chunks[2 * n_ranks - 1 - r]] if layout == "zigzag" else [own]
    return [np.concatenate(part) for part in parts]


def differences(case):
    """Return what differs from the vectors: outputs, log-sum-exps, and blocks merged in one go."""
    layout, n_ranks = LAYOUT.get(str(case["kind"]), "contiguous"), int(case["world_size"])
    options = {"causal": bool(case["causal"]), "scale": float(case["scale"]) if "scale" in case else None}
    worst = 0.0
    for arrays, cu_seqlens, outs, lses in batches(case):
        q, k, v = strided_heads(*arrays) if str(case["kind"]) == "lucid" else arrays
        out, lse = ring_attention(q, k, v, n_ranks, layout=layout, cu_seqlens=cu_seqlens, **options)
        rows = positions(case, cu_seqlens)
        for own, expected, expected_lse in zip(rows, outs, lses, strict=True):
            worst = max(worst, np.abs(out[own] - expected).max(), np.abs(lse[own] - expected_lse).max())
            if len(cu_seqlens) == 2:
                two = merged_in_two(q, k, v, own, options)
                worst = max(worst, np.abs(two[0] - expected).max(), np.abs(two[1] - expected_lse).max())
    return worst


def merged_in_two(q, k, v, own, options):
    """Return the results of a rank from two blocks of keys only: the odd positions, then the even ones."""
    everything = np.arange(len(k))
    halves = [
        attention_block(q[own], k[keys], v[keys], own, keys, **options) for keys in (everything[1::2], everything[::2])
    ]
    return merge_partial(*halves[0], *halves[1])


def test_public_implementations_agree(oracle):
    """Every vector is met to 1e-12 (to 1e-8 where the code clamps), by the ring and by two blocks merged."""
    wrong = {}
    for path in oracle("08-zeppelin"):
        with np.load(path) as file:
            case = dict(file)
        clamped = str(case["kind"]) == "lucid" and bool(case["causal"])
        difference = differences(case)
        if not difference <= (CLAMPED if clamped else TOLERANCE):
            wrong[path.stem] = difference
    assert not wrong


def test_ranks_hold_what_the_vectors_say(oracle):
    """Ranks hold the rows that the vectors' README names, in its order."""
    for path in oracle("08-zeppelin"):
        with np.load(path) as case:
            layout, n_ranks = LAYOUT.get(str(case["kind"]), "contiguous"), int(case["world_size"])
            for _, cu_seqlens, _, _ in batches(case):
                if len(cu_seqlens) == 2:
                    found = partition_positions(int(cu_seqlens[1]), n_ranks, layout)
                    assert all(map(np.array_equal, found, positions(case, cu_seqlens)))
