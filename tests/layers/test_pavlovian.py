"""Attention as conditioning: what the nine rules store, what the reads recall, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.layers.pavlovian import (
    RULES,
    linear_memory_read,
    linear_memory_write,
    pavlovian_attention,
    polynomial_memory_read,
    softmax_memory_read,
)
from refattn.layers.pavlovian_chunked import LINEAR_RULES, hebbian_attention_parallel, pavlovian_attention_chunked

ROTATABLE = tuple(rule for rule in RULES if rule != "anti_hebb")  # its diagonal belongs to the channels


def draw(seed=0, lead=(2,), n=9, dk=5, dv=3):
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, *lead, n, dk))
    return q, k / np.linalg.norm(k, axis=-1, keepdims=True), 0.5 * rng.standard_normal((*lead, n, dv))


def close(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@given(st.integers(0, 40), st.sampled_from(LINEAR_RULES), st.integers(1, 20), st.floats(0.1, 1.9), st.floats(0.1, 1.0))
def test_the_chunked_form_equals_the_recurrence(n, rule, chunk_size, rate, decay):
    """Chunks of any size give what the loop gives, for all rules that are linear in what they know."""
    q, k, v = draw(seed=n, n=n)
    options = {"rule": rule, "rate": rate, "decay": decay}
    close(
        pavlovian_attention_chunked(q, k, v, chunk_size=chunk_size, **options),
        pavlovian_attention(q, k, v, **options),
        1e-9,
    )


@pytest.mark.parametrize("causal", [True, False])
def test_hebb_is_attention_without_a_softmax(causal):
    """Hebbian attention is ((Q Kᵀ) ∘ mask) V, number by number."""
    q, k, v = draw()
    out = pavlovian_attention(q, k, v, causal=causal)
    naive = np.zeros_like(v)
    for b in range(2):
        for t in range(9):
            for i in range(t + 1 if causal else 9):
                naive[b, t] += (q[b, t] @ k[b, i]) * v[b, i]
    close(out, naive)
    close(hebbian_attention_parallel(q, k, v, causal=causal), naive)


@pytest.mark.parametrize("rule", ROTATABLE)
def test_rotating_queries_and_keys_changes_no_answer(rule):
    """(q, k) → (R q, R k) leaves the answers of every rule but anti_hebb as they are."""
    q, k, v = draw()
    R = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    start = np.random.default_rng(2).standard_normal((2, 3, 5)) / 3
    options = {"rule": rule, "rate": 0.5, "decay": 0.9}
    plain = linear_memory_read(linear_memory_write(k, v, initial=start, **options), q)
    turned = linear_memory_read(linear_memory_write(k @ R.T, v, initial=start @ R.T, **options), q @ R.T)
    close(turned, plain)


@pytest.mark.parametrize("rule", ["hebb", "delta"])
def test_orthonormal_keys_are_recalled(rule):
    """Up to dk orthonormal keys are recalled without error."""
    keys = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    values = np.random.default_rng(1).standard_normal((6, 4))
    close(linear_memory_read(linear_memory_write(keys, values, rule=rule), keys), values)


def test_delta_knows_what_it_was_just_taught():
    """With η = 1 and unit keys S_t k_t = v_t after every step."""
    _, k, v = draw()
    history = linear_memory_write(k, v, rule="delta", return_history=True)
    close(np.einsum("btij,btj->bti", history[:, 1:], k), v)


def test_order_matters_to_delta_and_decay_only():
    """Reversing the pairs leaves Hebb's strengths, and changes those of delta and decay."""
    _, k, v = draw()
    for rule, same in (("hebb", True), ("delta", False), ("decay", False)):
        forth = linear_memory_write(k, v, rule=rule, decay=0.9)
        back = linear_memory_write(k[:, ::-1], v[:, ::-1], rule=rule, decay=0.9)
        assert np.allclose(forth, back, rtol=0, atol=1e-12) == same


def test_delta_at_a_small_rate_is_hebb():
    """S/η tends to the Hebbian strengths as η → 0."""
    _, k, v = draw()
    close(linear_memory_write(k, v, rule="delta", rate=1e-7) / 1e-7, linear_memory_write(k, v), 1e-5)


def test_delta_over_many_epochs_is_least_squares():
    """Gone through often enough, delta finds Vᵀ pinv(K)ᵀ, the exact memory of smallest norm."""
    _, k, v = draw(n=4, lead=())
    learnt = linear_memory_write(k, v, rule="delta", n_epochs=400)
    close(learnt, v.T @ np.linalg.pinv(k).T, 1e-6)


def test_oja_settles_at_the_mean_of_the_keys():
    """The fixed point of a clamped row is E[v k]/E[v²]; at a small rate it stays near."""
    _, k, v = draw(n=30, lead=())
    fixed = (v.T @ k) / np.sum(v**2, axis=0)[:, None]
    close(linear_memory_write(k, v, rule="oja", rate=1e-2, n_epochs=200, initial=np.zeros((3, 5))), fixed, 3e-2)


def test_free_oja_finds_the_leading_direction():
    """Free rows become unit eigenvectors of the largest eigenvalue of E[k kᵀ]."""
    rng = np.random.default_rng(0)
    k = rng.standard_normal((200, 4)) * [2.0, 1.0, 0.5, 0.3]
    S = linear_memory_write(
        k, np.zeros((200, 2)), rule="oja_free", rate=2e-3, n_epochs=30, initial=rng.standard_normal((2, 4))
    )
    leading = np.linalg.eigh(k.T @ k)[1][:, -1]
    close(np.abs(S @ leading), 1.0, 5e-3)
    close(np.linalg.norm(S, axis=-1), 1.0, 5e-3)


def test_bcm_weakens_below_the_threshold():
    """A weak value lowers the strengths of its key, a strong one raises them, and the threshold follows."""
    k = np.ones((1, 1))
    assert linear_memory_write(k, [[0.5]], rule="bcm")[0, 0] < 0 < linear_memory_write(k, [[2.0]], rule="bcm")[0, 0]
    theta = 0.9 + 0.4
    close(linear_memory_write(k, [[2.0]], rule="bcm")[0, 0], 2 * (2 - theta))


def test_anti_hebb_takes_correlations_out_of_keys():
    """Keys that share a direction interfere less once lateral weights have learnt it."""
    rng = np.random.default_rng(0)
    k = rng.standard_normal((400, 6)) + 2.0
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.standard_normal((400, 2))
    plain, decorrelated = (linear_memory_write(k, v, rule=rule) for rule in ("hebb", "anti_hebb"))
    common = np.ones(6) / np.sqrt(6)
    assert np.linalg.norm(decorrelated @ common) < 0.5 * np.linalg.norm(plain @ common)


def test_rows_are_bounded_after_every_pair():
    """The bound holds for the rule homeostatic, and for any rule that is given one."""
    _, k, v = draw(n=20)
    for options, bound in (({"rule": "homeostatic"}, 1.0), ({"rule": "delta", "max_row_norm": 0.3}, 0.3)):
        history = linear_memory_write(k, 5 * v, return_history=True, **options)
        assert np.linalg.norm(history, axis=-1).max() <= bound * (1 + 1e-12)


def test_duplicate_keys_add_under_hebb_and_overwrite_under_delta():
    """The same key twice: Hebb answers the sum of the values, delta the last."""
    k, v = np.array([[0.6, 0.8], [0.6, 0.8]]), np.array([[1.0], [3.0]])
    close(linear_memory_read(linear_memory_write(k, v), k[:1]), [[4.0]])
    close(linear_memory_read(linear_memory_write(k, v, rule="delta"), k[:1]), [[3.0]])


@pytest.mark.parametrize("rule", RULES)
def test_memories_of_nothing_and_of_one_channel(rule):
    """No pair gives zero strengths and zero answers; dk = dv = 1 works."""
    S = linear_memory_write(np.zeros((0, 3)), np.zeros((0, 2)), rule=rule)
    close(S, np.zeros((2, 3)), 0)
    close(linear_memory_read(S, np.ones((4, 3))), np.zeros((4, 2)), 0)
    assert pavlovian_attention(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 2)), rule=rule).shape == (0, 2)
    assert linear_memory_write(np.ones((3, 1)), np.ones((3, 1)), rule=rule, rate=0.5).shape == (1, 1)


def test_leading_axes_broadcast():
    """Keys that all batches share are stored with each batch's values."""
    _, k, v = draw()
    together = linear_memory_write(k[0], v, rule="delta")
    close(together[1], linear_memory_write(k[0], v[1], rule="delta"))


def test_softmax_memory_between_mean_and_nearest():
    """β = 0 gives the mean of the values, a large β the value of the nearest key."""
    q, k, v = draw(lead=(), n=6)
    close(softmax_memory_read(k, v, q, 0.0), np.broadcast_to(v.mean(axis=0), (6, 3)))
    close(softmax_memory_read(k, v, q, 1e5), v[(q @ k.T).argmax(axis=-1)], 1e-9)
    close(softmax_memory_read(k[:0], v[:0], q, 1.0), np.zeros((6, 3)), 0)


def test_polynomial_memory_sharpens_the_match():
    """Degree one is the linear memory; a higher degree favours the better match."""
    q, k, v = draw(lead=(), n=6)
    close(polynomial_memory_read(k, v, q, 1), linear_memory_read(linear_memory_write(k, v), q))
    own = [np.sum((polynomial_memory_read(k, v, k, p) - v) ** 2) for p in (1, 3, 5)]
    assert own[0] > own[1] > own[2]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtype_is_kept(dtype):
    """The strengths and answers have the dtype of the pairs."""
    q, k, v = (x.astype(dtype) for x in draw())
    assert linear_memory_write(k, v, rule="oja").dtype == dtype
    assert pavlovian_attention(q, k, v, rule="decay", decay=0.9).dtype == dtype


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"values": np.ones((3, 2))}, "keys has length 4 and values 3"),
        ({"keys": np.ones(4)}, "keys has shape"),
        ({"keys": np.full((4, 3), np.nan)}, "(?s)keys=.* must be finite"),
        ({"values": np.full((4, 2), np.inf)}, "(?s)values=.* must be finite"),
        ({"rule": "pavlov"}, "rule='pavlov' is not one of 'hebb', 'decay'"),
        ({"rate": 0.0}, "rate=0.0 must be finite and > 0"),
        ({"rate": np.nan}, "rate=nan must be"),
        ({"decay": 0.0}, r"decay=0.0 must be in \(0, 1\]"),
        ({"decay": 1.5}, r"decay=1.5 must be in \(0, 1\]"),
        ({"rule": "delta", "rate": 2.0}, r"delta rule unstable: rate must be below 2/\|k\|\^2"),
        ({"rule": "gated_delta", "decay": 0.5, "rate": 3.0}, "delta rule unstable: rate must be below 3/"),
        ({"n_epochs": 0}, "n_epochs=0 must be >= 1"),
        ({"max_row_norm": 0.0}, "max_row_norm=0.0 must be > 0"),
        ({"lateral_rate": -1.0}, "lateral_rate=-1.0 must be"),
        ({"initial": np.zeros((3, 2))}, "initial has shape"),
        ({"keys": np.zeros((4, 3)), "normalize_keys": True}, "keys must not be zero when normalize_keys"),
        ({"keys": np.ones((2, 4, 3)), "values": np.ones((3, 4, 2))}, "do not broadcast"),
    ],
)
def test_bad_writes_are_refused(change, rule):
    """Each argument out of range is refused by name, value and rule."""
    keys = np.eye(4, 3)
    keys[3, 0] = 1.0
    call = {"keys": keys, "values": np.ones((4, 2))} | change
    with pytest.raises(ValueError, match=rule):
        linear_memory_write(call.pop("keys"), call.pop("values"), **call)


def test_bad_reads_are_refused():
    """Widths that do not fit, degrees below one, negative β and chunks of nothing are refused."""
    k, v = np.eye(3), np.ones((3, 2))
    for call, rule in (
        (lambda: linear_memory_read(np.ones((2, 3)), np.ones((1, 4))), "queries has width 4, expected dk = 3"),
        (lambda: softmax_memory_read(k, v, np.ones((1, 2)), 1.0), "queries has width 2"),
        (lambda: softmax_memory_read(k, v, k, -1.0), "beta=-1.0 must be finite"),
        (lambda: polynomial_memory_read(k, v, k, 0), "degree=0 must be >= 1"),
        (lambda: pavlovian_attention(np.eye(4), k, v), "q has shape"),
        (lambda: pavlovian_attention_chunked(k, k, v, chunk_size=0), "chunk_size=0 must be >= 1"),
        (lambda: pavlovian_attention_chunked(k, k, v, rule="oja"), "rule='oja' is not one of"),
        (lambda: pavlovian_attention_chunked(k, k, v[:2]), "v has length 2"),
        (lambda: hebbian_attention_parallel(k, k, v * np.nan), "(?s)v=.* must be finite"),
    ):
        with pytest.raises(ValueError, match=rule):
            call()
