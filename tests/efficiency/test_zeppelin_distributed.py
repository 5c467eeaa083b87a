"""The ring between real processes: four of them, exchanging keys, values and gradients over gloo."""

import numpy as np
import pytest

from refattn.efficiency.zeppelin_distributed import (
    distributed_ring_attention,
    distributed_ring_attention_gradient,
    launch,
    own_rows,
)
from refattn.efficiency.zeppelin_ring import shard_positions
from refattn.primitives.attention_gradients import attention_vjp

pytest.importorskip("torch")

RANKS = 4
LENGTHS = {
    "divisible by eight": [16],
    "not divisible": [29],
    "fewer tokens than ranks": [3],
    "one token": [1],
    "packed and unequal": [11, 1, 3, 24, 6],
}
CASES = [
    pytest.param(lengths, layout, causal, id=f"{name}-{layout}-{'causal' if causal else 'full'}")
    for name, lengths in LENGTHS.items()
    for layout in ("zigzag", "contiguous")
    for causal in (True, False)
]
CASES.append(pytest.param([13, 5], "striped", True, id="striped"))


def batch(lengths):
    """Return the packed arrays of a batch (two query heads to a key head) and where its sequences begin."""
    rng, n = np.random.default_rng(lengths), sum(lengths)
    shapes = {"q": (n, 4, 6), "k": (n, 2, 6), "v": (n, 2, 5), "d_out": (n, 4, 5)}
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}, cu_seqlens


def on_one_rank(calls):
    """Run every call on this rank's own tokens; results and gradients, one after the other."""
    found = []
    for lengths, layout, causal in calls:
        arrays, cu_seqlens = batch(lengths)
        rows = own_rows(cu_seqlens, layout=layout)
        q, k, v, d_out = (x[rows] for x in arrays.values())
        options = {"layout": layout, "causal": causal}
        out, lse = distributed_ring_attention(q, k, v, cu_seqlens, **options)
        gradients = distributed_ring_attention_gradient(q, k, v, d_out, out, lse, cu_seqlens, **options)
        found += [out, lse, *gradients]
    return found


@pytest.fixture(scope="module")
def found():
    """Start the processes once, for all cases."""
    return launch(on_one_rank, RANKS, [case.values for case in CASES])


@pytest.mark.parametrize("case", range(len(CASES)), ids=[case.id for case in CASES])
def test_four_processes_equal_the_whole(found, case):
    """Outputs, log-sum-exps and gradients of four processes are those of attention in one piece."""
    lengths, layout, causal = CASES[case].values
    arrays, cu_seqlens = batch(lengths)
    document = np.repeat(np.arange(len(lengths)), lengths)
    options = {"layout": "bshd", "causal": causal, "doc_q": document, "doc_k": document}
    q, k, v, d_out = (x[None] for x in arrays.values())
    whole = whole_attention(q, k, v, options)
    whole += [x[0] for x in attention_vjp(q, k, v, d_out, **options)[:3]]
    order = np.argsort(np.concatenate([np.concatenate(own) for own in shard_positions(cu_seqlens, RANKS, layout)]))

    for j, expected in enumerate(whole):
        parts = [of_rank[5 * case + j] for of_rank in found]
        np.testing.assert_allclose(np.concatenate(parts)[order], expected, rtol=0, atol=1e-12)


def whole_attention(q, k, v, options):
    """Return output and log-sum-exp of attention in one piece, tokens before heads."""
    from refattn.primitives.attention import attention

    result = attention(q, k, v, returns=("out", "lse"), **options)
    return [result.out[0], result.lse[0].T]


def test_each_process_holds_its_own_tokens_only(found):
    """No process returns more rows than its share: of 29 tokens over four ranks at most eight."""
    index = [case.values[0] for case in CASES].index([29])
    rows = [len(of_rank[5 * index]) for of_rank in found]

    assert sum(rows) == 29
    assert max(rows) <= 8
