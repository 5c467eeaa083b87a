"""HyLRA's two kinds of layers: what reuse computes, how far it may be off, what it costs, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.interventions.hylra import (
    attend_full,
    attend_reuse,
    attention_cost,
    critical_mask,
    group_weights,
    topk_distortion,
)
from refattn.primitives.attention import attention
from refattn.primitives.masks import causal_mask

SLACK = 1e-12


def draw(rng, B=2, H=2, G=3, Tq=4, T=11, d=5, sharp=1.0):
    q = sharp * rng.standard_normal((B, H * G, Tq, d))
    k, v = rng.standard_normal((2, B, H, T, d))
    return q, k, v


def close(left, right, slack=SLACK):
    np.testing.assert_allclose(left, right, rtol=0, atol=slack)


def weights_of(q, k, allowed=True):
    """Attention weights (B, Hq, Tq, T) over the allowed keys, straightforwardly."""
    z = q @ np.repeat(k, q.shape[1] // k.shape[1], axis=1).mT / q.shape[-1] ** 0.5
    e = np.where(allowed, np.exp(z), 0.0)
    return e / e.sum(axis=-1, keepdims=True)


def members(indices, T):
    """Which keys (..., T) are in sets of indices (..., n)."""
    return (indices[..., None] == np.arange(T)).any(axis=-2)


sizes = st.fixed_dictionaries(
    {
        "H": st.integers(1, 3),
        "G": st.integers(1, 3),
        "Tq": st.integers(1, 4),
        "T": st.integers(1, 12),
        "sharp": st.sampled_from([0.1, 1.0, 10.0]),
    }
)
seeds = st.integers(0, 2**16)


@given(sizes, seeds, st.integers(1, 15), st.integers(1, 4))
def test_full_layer_is_attention(size, seed, n_keep, block_size):
    """A full layer is dense attention, whatever it notes."""
    q, k, v = draw(np.random.default_rng(seed), **size)
    out, indices = attend_full(q, k, v, n_keep=max(n_keep, block_size), block_size=block_size)
    close(out, attention(q, k, v).out)
    assert indices.shape == (
        2,
        size["H"],
        size["Tq"],
        min(max(n_keep, block_size) // block_size * block_size, size["T"]),
    )


@given(sizes, seeds, st.integers(1, 15))
def test_reuse_is_masked_attention(size, seed, n_keep):
    """Attending to fetched keys is dense attention with −∞ at all others."""
    rng = np.random.default_rng(seed)
    q, k, v = draw(rng, **size)
    _, S = attend_full(*draw(rng, **size), n_keep=n_keep)
    inside = np.repeat(members(S, size["T"]), size["G"], axis=1)
    close(attend_reuse(q, k, v, S), attention(q, k, v, mask=inside).out)


def test_reuse_is_a_triple_loop():
    """Attending to fetched keys is what three loops over batch, head and query compute, padding and mask included."""
    rng = np.random.default_rng(0)
    q, k, v = draw(rng)
    S = np.sort(rng.permuted(np.tile(np.arange(11), (2, 2, 4, 1)), axis=-1)[..., :4])
    S[:, 0, 1, 2:] = -1
    mask = rng.random((2, 6, 4, 11)) < 0.7
    out = np.zeros_like(q)
    for b, h, t in np.ndindex(2, 6, 4):
        keys = [i for i in S[b, h // 3, t] if i >= 0 and mask[b, h, t, i]]
        e = [np.exp(q[b, h, t] @ k[b, h // 3, i] / np.sqrt(5)) for i in keys]
        for weight, i in zip(e, keys, strict=True):
            out[b, h, t] += weight / sum(e) * v[b, h // 3, i]
    close(attend_reuse(q, k, v, S, mask=mask), out)


def test_one_set_for_all_queries():
    """Indices without an axis of queries are one set for all of them."""
    q, k, v = draw(np.random.default_rng(1))
    S = np.array([[[0, 3, -1], [2, 5, 7]], [[1, 2, 3], [10, -1, -1]]])
    close(attend_reuse(q, k, v, S), attend_reuse(q, k, v, np.repeat(S[:, :, None], 4, axis=2)), 0.0)


@given(sizes, seeds)
def test_enough_keys_are_all_keys(size, seed):
    """With n_keep ≥ T reuse is dense attention, and so is a layer that refreshes sparsely."""
    rng = np.random.default_rng(seed)
    q, k, v = draw(rng, **size)
    _, S = attend_full(*draw(rng, **size), n_keep=size["T"], block_size=1)
    dense = attention(q, k, v).out
    close(attend_reuse(q, k, v, S), dense)
    close(attend_full(q, k, v, n_keep=size["T"] + 3, block_size=3, refresh="sparse")[0], dense)


@given(sizes, seeds, st.integers(1, 12))
def test_error_is_bounded_by_the_mass_left_out(size, seed, n_keep):
    """An output moves by at most (1 − m) times the largest distance of two values."""
    q, k, v = draw(np.random.default_rng(seed), **size)
    out, S = attend_full(q, k, v, n_keep=n_keep)
    kept = np.repeat(members(S, size["T"]), size["G"], axis=1)
    m = np.where(kept, weights_of(q, k), 0.0).sum(axis=-1, keepdims=True)
    spread = np.abs(v[..., :, None, :] - v[..., None, :, :]).max(axis=(-2, -3))  # (B, H, d)
    bound = (1 - m) * np.repeat(spread, size["G"], axis=1)[:, :, None]
    assert np.all(np.abs(out - attend_reuse(q, k, v, S)) <= bound + SLACK)


@given(sizes, seeds, st.integers(1, 12))
def test_mass_says_how_far_the_weights_move(size, seed, n_keep):
    """Total variation of full and restricted weights is 1 − m, and their KL divergence is −ln m."""
    rng = np.random.default_rng(seed)
    q, k, v = (x[0] for x in draw(rng, B=1, **size))
    found = topk_distortion(np.swapaxes(q, 0, 1), k, v, n_keep)
    p = weights_of(q[None], k[None])[0]
    S = critical_mask(group_weights(q[None], k[None])[0], n_keep)
    kept = np.repeat(S, size["G"], axis=0)
    restricted = weights_of(q[None], k[None], kept[None])[0]
    close(0.5 * np.abs(p - restricted).sum(axis=-1), 1 - found.mass.T)
    log_ratio = np.log(np.where(kept, restricted, 1.0)) - np.log(np.where(kept, p, 1.0))
    close((restricted * log_ratio).sum(axis=-1), found.kl.T, 1e-11)
    close(found.kl, -np.log(found.mass))
    full, part = p @ np.repeat(v, size["G"], axis=0), restricted @ np.repeat(v, size["G"], axis=0)
    close(found.rnmse, np.sqrt(np.sum((full - part) ** 2) / np.sum(full**2)))


def test_steps_of_different_length():
    """Steps that see fewer keys are measured as if the later ones were not there."""
    rng = np.random.default_rng(3)
    q, k, v = rng.standard_normal((3, 4, 6)), *rng.standard_normal((2, 2, 9, 6))
    found = topk_distortion(q, k, v, 4, block_size=2, sink=2, recent=2, lengths=[5, 9, 7])
    alone = [
        topk_distortion(q[s], k[:, :n], v[:, :n], 4, block_size=2, sink=2, recent=2) for s, n in enumerate([5, 9, 7])
    ]
    close(found.mass, [step.mass for step in alone])
    assert alone[0].mass.shape == (4,)


@given(seeds, st.integers(1, 12))
def test_order_of_keys_does_not_matter(seed, n_keep):
    """Permuting keys, values and indices together changes nothing."""
    rng = np.random.default_rng(seed)
    q, k, v = draw(rng)
    _, S = attend_full(q, k, v, n_keep=n_keep)
    order = rng.permutation(11)
    moved = np.argsort(order)[S]  # where each key stands now
    close(attend_reuse(q, k[:, :, order], v[:, :, order], moved), attend_reuse(q, k, v, S))
    _, chosen = attend_full(q, k[:, :, order], v[:, :, order], n_keep=n_keep)
    np.testing.assert_array_equal(chosen, np.sort(moved, axis=-1))


@given(seeds, st.integers(1, 4), st.booleans())
def test_prefill_is_causal(seed, block_size, share_heads):
    """Under the causal mask, outputs and sets of query t do not change when later inputs do."""
    rng = np.random.default_rng(seed)
    q, k, v = draw(rng, Tq=9, T=9)
    options = {"n_keep": 4, "block_size": block_size, "share_heads": share_heads, "mask": causal_mask(9, 9)}
    t = int(rng.integers(9))
    other = [np.concatenate([x[:, :, : t + 1], rng.standard_normal(x[:, :, t + 1 :].shape)], axis=2) for x in (q, k, v)]
    out, S = attend_full(q, k, v, refresh="sparse", **options)
    changed, S_changed = attend_full(*other, refresh="sparse", **options)
    close(changed[:, :, : t + 1], out[:, :, : t + 1])
    np.testing.assert_array_equal(S_changed[:, :, : t + 1], S[:, :, : t + 1])
    assert (np.arange(9)[:, None] >= S).all()


def test_prefill_is_decoding():
    """The set of each query of a prefill is that of a decode step that sees as many keys, its forced keys included."""
    q, k, v = draw(np.random.default_rng(5), Tq=10, T=10)
    options = {"n_keep": 6, "block_size": 2, "sink": 2, "recent": 2}
    out, S = attend_full(q, k, v, mask=causal_mask(10, 10), refresh="sparse", **options)
    for t in range(10):
        seen = slice(t + 1)
        step, chosen = attend_full(q[:, :, t : t + 1], k[:, :, seen], v[:, :, seen], refresh="sparse", **options)
        close(step[:, :, 0], out[:, :, t])
        n = chosen.shape[-1]
        np.testing.assert_array_equal(chosen[:, :, 0], S[:, :, t, :n])
        assert (S[:, :, t, n:] == -1).all()


@given(seeds)
def test_heads_are_alone(seed):
    """With one query head for each key head, changing one head leaves the others as they are."""
    rng = np.random.default_rng(seed)
    q, k, v = draw(rng, H=3, G=1)
    out, S = attend_full(q, k, v, n_keep=4, refresh="sparse")
    q[:, 1], k[:, 1], v[:, 1] = rng.standard_normal((2, 4, 5)), *rng.standard_normal((2, 2, 11, 5))
    changed, S_changed = attend_full(q, k, v, n_keep=4, refresh="sparse")
    close(changed[:, [0, 2]], out[:, [0, 2]], 0.0)
    np.testing.assert_array_equal(S_changed[:, [0, 2]], S[:, [0, 2]])


def test_shared_heads_share_one_set():
    """With share_heads all key heads fetch the same keys, those with the largest sum of weights."""
    q, k, v = draw(np.random.default_rng(7))
    _, S = attend_full(q, k, v, n_keep=4, share_heads=True)
    np.testing.assert_array_equal(S[:, 0], S[:, 1])
    both = np.repeat(group_weights(q, k).sum(axis=1, keepdims=True), 2, axis=1)
    np.testing.assert_array_equal(members(S, 11), critical_mask(both, 4))


def test_a_query_that_sees_nothing():
    """A query without a visible key gives 0 and an empty set, beside others that are unharmed."""
    q, k, v = draw(np.random.default_rng(8))
    mask = np.ones((2, 1, 4, 11), dtype=bool)
    mask[1, :, 2] = False
    for refresh in ("dense", "sparse"):
        out, S = attend_full(q, k, v, n_keep=3, mask=mask, refresh=refresh)
        assert (out[1, :, 2] == 0).all()
        assert (S[1, :, 2] == -1).all()
        assert np.isfinite(out).all()
    assert (attend_reuse(q, k, v, S)[1, :, 2] == 0).all()
    close(attend_full(q, k, v, n_keep=3, mask=mask)[0][0], attend_full(q, k, v, n_keep=3)[0][0], 0.0)


@pytest.mark.parametrize("shape", [{"B": 0}, {"T": 1}, {"Tq": 0}, {"T": 0}, {"G": 1, "H": 1, "Tq": 1, "T": 1, "B": 1}])
def test_degenerate_sizes(shape):
    """Empty batches, no query, no key and one key work."""
    q, k, v = draw(np.random.default_rng(9), **shape)
    out, S = attend_full(q, k, v, n_keep=4, block_size=2)
    assert out.shape == q.shape == attend_reuse(q, k, v, S).shape
    if k.shape[2] == 0:
        assert (out == 0).all()


def test_single_precision_stays():
    """Outputs have the dtype of the queries, and inputs may be read-only and strided."""
    q, k, v = (x.astype(np.float32)[..., ::-1] for x in draw(np.random.default_rng(10)))
    for x in (q, k, v):
        x.flags.writeable = False
    out, S = attend_full(q, k, v, n_keep=3)
    assert out.dtype == attend_reuse(q, k, v, S).dtype == np.float32
    assert topk_distortion(q[0, :, 0], k[0], v[0], 3).rnmse.dtype == np.float32
    assert attend_full([[[[1]]]], [[[[1], [2]]]], [[[[3], [3]]]], n_keep=1)[0].dtype == np.float64


def counted(T, d, k, phase):
    """Multiplications of a full and of a reusing layer, counted one by one."""
    full = reuse = 0
    for t in range(T) if phase == "prefill" else [T - 1]:
        for key in range(t + 1):
            full += d + d  # one score, one step of the average
            reuse += 2 * d if key < k else 0
    return full, reuse


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize(("T", "k"), [(1, 1), (7, 3), (12, 20), (20, 5)])
def test_costs_are_counted(phase, T, k):
    """The formula gives what counting gives, two operations for each multiplication; the cache does not shrink."""
    d, L, C = 3, 5, 2
    full, reuse = counted(T, d, k, phase)
    cost = attention_cost(T, d, L, C, k, phase=phase)
    assert cost.flops == 2 * (C * full + (L - C) * reuse)
    assert cost.kv_bytes == 2 * (C * full + (L - C) * reuse)  # 2 bytes each, keys and values
    assert cost.cache_bytes == attention_cost(T, d, L, L, k, phase=phase).cache_bytes == 2 * L * T * d * 2


def test_closed_forms_of_costs():
    """The sheet's closed forms hold: 4Td, 4kd, 2T(T + 1)d, 4 Σ min(k, t + 1) d."""
    T, d, k = 50, 8, 6
    assert attention_cost(T, d, 1, 1, k, phase="decode").flops == 4 * T * d
    assert attention_cost(T, d, 1, 0, k, phase="decode").flops == 4 * k * d
    assert attention_cost(T, d, 1, 1, k, phase="prefill").flops == 2 * T * (T + 1) * d
    assert attention_cost(T, d, 1, 0, k, phase="prefill").flops == 4 * d * sum(min(k, t + 1) for t in range(T))


q0, k0, v0 = draw(np.random.default_rng(0), B=1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attend_full(q0, k0, v0, n_keep=0), "n_keep=0 must be at least 1"),
        (lambda: attend_full(q0, k0, v0, n_keep=3, block_size=0), "block_size=0 must be at least 1"),
        (lambda: attend_full(q0, k0, v0, n_keep=3, block_size=4), "n_keep=3 must be at least block_size=4"),
        (lambda: attend_full(q0, k0, v0, n_keep=3, sink=2, recent=2), "forced blocks exceed the budget n_keep=3"),
        (lambda: attend_full(q0, k0, v0, n_keep=3, sink=-1), "sink=-1, recent=0 must not be negative"),
        (lambda: attend_full(q0, k0, v0, n_keep=3, refresh="never"), "refresh='never' is not one of"),
        (lambda: attend_full(q0[:, :5], k0, v0, n_keep=3), "q has 5 heads, expected a multiple of the 2 heads of k"),
        (lambda: attend_full(q0[0], k0, v0, n_keep=3), "q has 3 axes"),
        (lambda: attend_full(q0, k0[..., :4], v0, n_keep=3), "k has shape"),
        (lambda: attend_full(q0, k0, v0[:, :, :4], n_keep=3), "v has shape"),
        (lambda: attend_full(q0, k0, v0, n_keep=3, mask=np.ones((3, 3), bool)), "does not broadcast"),
        (lambda: attend_full(q0, k0, v0, n_keep=3, mask=np.ones((4, 11))), "expected bool"),
        (lambda: attend_reuse(q0, k0, v0, np.full((1, 2, 4, 1), 11)), "indices must lie in -1..10"),
        (lambda: attend_reuse(q0, k0, v0, np.full((1, 2, 4, 1), -2)), "indices must lie in -1..10"),
        (lambda: attend_reuse(q0, k0, v0, np.zeros((1, 3, 2), int)), "indices has shape"),
        (lambda: attend_reuse(q0, k0, v0, np.zeros((1, 2, 4, 2))), "expected integers"),
        (lambda: topk_distortion(q0, k0[0], v0[0], 3), "expected \\(Hq, d\\) or \\(S, Hq, d\\)"),
        (lambda: topk_distortion(q0[0, :, 0], k0[0], v0[0], 3, lengths=[12]), "must lie in 1..11"),
        (lambda: topk_distortion(q0[0, :, 0], k0[0], v0[0], 3, lengths=[1, 2]), "lengths has shape"),
        (lambda: attention_cost(4, 2, 3, 4, 1, phase="decode"), "n_full=4 exceeds n_layers=3"),
        (lambda: attention_cost(4, 2, 3, 1, 1, phase="train"), "phase='train' is not one of"),
        (lambda: attention_cost(-1, 2, 3, 1, 1, phase="decode"), "must be >= 0"),
    ],
)
def test_bad_input_is_refused(call, words):
    """What makes no sense is refused, with the argument's name and the rule."""
    with pytest.raises(ValueError, match=words):
        call()
