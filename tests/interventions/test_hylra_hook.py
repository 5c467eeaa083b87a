"""HyLRA on a running transformer: policies that change nothing, planted policies that are found, counted work."""

import numpy as np
import pytest

from refattn.interventions.hylra import attend_full, attend_reuse, attention_cost, merge_overlap
from refattn.interventions.hylra_hook import HyLRAHook, ProfileHook
from refattn.interventions.hylra_policy import policy_every, policy_from_full, policy_min_full
from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward
from refattn.transformer.planted.similar_layers import (
    GROUPS,
    planted_source,
    similar_layers_ids,
    similar_layers_model,
)
from refattn.transformer.weights import random_transformer

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 23,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def model():
    return random_transformer(parse_config(CONFIG), np.random.default_rng(0), scale=2.0)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(1).integers(0, 23, (2, 12))


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(2)
    model = similar_layers_model(rng)
    return model, similar_layers_ids(rng, model, 4)


def close(left, right, slack=1e-11):
    np.testing.assert_allclose(left, right, rtol=0, atol=slack)


def test_all_full_changes_nothing(model, ids):
    """If every layer is full, the logits are those of the model."""
    hook = HyLRAHook(np.arange(4), 3)
    close(forward(model, ids, interventions=(hook,)).logits, forward(model, ids).logits)
    assert sorted(hook.index) == [0, 1, 2, 3]


@pytest.mark.parametrize("refresh", ["dense", "sparse"])
@pytest.mark.parametrize("block_size", [1, 5])
def test_enough_keys_change_nothing(model, ids, refresh, block_size):
    """If all keys may be kept, no policy changes the logits."""
    hook = HyLRAHook(policy_every(4, 3), 15, block_size=block_size, refresh=refresh)
    close(forward(model, ids, interventions=(hook,)).logits, forward(model, ids).logits)


def test_reuse_changes_something(model, ids):
    """With few keys a reusing layer changes the logits, but not those of queries that see no more keys than that."""
    hook = HyLRAHook(policy_every(4, 4), 3)
    out, full = forward(model, ids, interventions=(hook,)).logits, forward(model, ids).logits
    close(out[:, :3], full[:, :3])
    assert np.abs(out - full)[:, 3:].max() > 1e-3


def test_hook_is_the_layers_put_together():
    """The hook returns what the two kinds of layers return, sets handed on from the source."""
    rng = np.random.default_rng(3)
    q, k, v = rng.standard_normal((3, 1, 4, 2, 5)), *rng.standard_normal((2, 3, 1, 2, 7, 5))
    hook = HyLRAHook([0, 0, 0], 4, block_size=2, share_heads=True)
    hook.begin(3)
    mask = np.array([[True] * 6 + [False], [True] * 7])
    outs = [hook.attend(layer, q[layer], k[layer], v[layer], mask, 0.3) for layer in range(3)]
    first, S = attend_full(q[0], k[0], v[0], n_keep=4, block_size=2, share_heads=True, mask=mask, scale=0.3)
    close(outs[0], first, 0.0)
    for layer in (1, 2):
        close(outs[layer], attend_reuse(q[layer], k[layer], v[layer], S, mask=mask, scale=0.3), 0.0)


def test_nothing_is_carried_over(model, ids):
    """A decode step finds its own sets: a hook that was used before gives what a fresh one gives."""
    cache = forward(model, ids[:, :-1]).kv_cache
    used = HyLRAHook(policy_every(4, 2), 4)
    forward(model, ids, interventions=(used,))
    step = {"cache": cache, "interventions": (used,)}
    again = {"cache": cache, "interventions": (HyLRAHook(policy_every(4, 2), 4),)}
    close(forward(model, ids[:, -1:], **step).logits, forward(model, ids[:, -1:], **again).logits, 0.0)
    assert used.index[0].shape == (2, 2, 1, 4)


def test_padding_is_never_fetched(model, ids):
    """With left padding no set holds a padded key, and the other rows are as without it."""
    key_mask = np.ones((2, 12), dtype=bool)
    key_mask[0, :5] = False
    hook = HyLRAHook(policy_every(4, 2), 4)
    positions = np.maximum(np.cumsum(key_mask, axis=-1) - 1, 0)
    padded = forward(model, ids, key_mask=key_mask, positions=positions, interventions=(hook,)).logits
    assert not np.isin(hook.index[0][0], np.arange(5)).any()
    alone = forward(model, ids[:1, 5:], interventions=(HyLRAHook(policy_every(4, 2), 4),)).logits
    close(padded[0, 5:], alone[0])


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_work_is_the_formula(model, ids, phase):
    """Multiply-adds counted in a run are exactly the cost formula, over two batch rows and four query heads."""
    policy, T, d = policy_from_full([True, False, True, False]), 12, 4
    hook = HyLRAHook(policy, 5)
    cache = forward(model, ids[:, :-1]).kv_cache if phase == "decode" else None
    forward(model, ids if cache is None else ids[:, -1:], cache=cache, interventions=(hook,))
    assert 2 * sum(hook.multiply_adds) == 2 * 4 * attention_cost(T, d, 4, 2, 5, phase=phase).flops


def test_sparse_refresh_averages_less(model, ids):
    """A layer that attends to its own set scores all keys and averages the kept ones only."""
    dense, sparse = HyLRAHook(np.arange(4), 5), HyLRAHook(np.arange(4), 5, refresh="sparse", sensitive=[1])
    for hook in (dense, sparse):
        forward(model, ids, interventions=(hook,))
    pairs = 12 * 13 // 2
    kept = sum(min(5, t + 1) for t in range(12))
    assert dense.multiply_adds == [2 * 4 * 4 * 2 * pairs] * 4
    assert sparse.multiply_adds[0] == 2 * 4 * 4 * (pairs + kept)
    assert sparse.multiply_adds[1] == dense.multiply_adds[1]


def test_sensitive_layers_store_nothing_when_sparse(model, ids):
    """Under the official kind of layers a sensitive layer keeps no set, so reusing it is refused."""
    hook = HyLRAHook([0, 1, 1, 3], 4, refresh="sparse", sensitive=[1])
    with pytest.raises(RuntimeError, match="no indices for layer 1"):
        forward(model, ids, interventions=(hook,))
    forward(model, ids, interventions=(HyLRAHook([0, 1, 1, 3], 4, sensitive=[1]),))


def test_profile_finds_the_plant(planted):
    """Profiling a model of similar layers and choosing by overlap and distortion gives back the planted policy."""
    model, ids = planted
    hook = ProfileHook(16)
    full = forward(model, ids, interventions=(hook,))
    seen = hook.profile()
    sensitive = np.flatnonzero(seen.rnmse > 0.1)
    np.testing.assert_array_equal(sensitive, np.flatnonzero(np.array(GROUPS) == 0))
    M = merge_overlap(seen.overlap)
    policy = policy_min_full(M, sensitive=sensitive, threshold=0.5)
    np.testing.assert_array_equal(policy.source, planted_source())
    group = np.array(GROUPS)
    within = (group[:, None] == group) & (group > 0) & np.triu(np.ones((12, 12), bool), 1)
    assert M[within].min() >= 0.7
    assert M[(group[:, None] != group) & (M > 0)].max() < 0.5
    np.testing.assert_array_equal(np.sort(np.argsort(seen.ratios.mean(axis=(0, 1)))[-2:]), sensitive)

    read = slice(0, len(GROUPS))
    reused = forward(model, ids, interventions=(HyLRAHook(policy, 16),)).logits[..., -1:, read]
    close(reused, full.logits[..., -1:, read], 0.02)
    static = forward(model, ids, interventions=(HyLRAHook(policy_every(12, 4), 16),)).logits[..., -1:, read]
    assert np.abs(static - full.logits[..., -1:, read]).max() > 0.2


def test_norms_of_the_plant_change_nothing(planted):
    """The planted model's logits are the average flags that its layers see."""
    model, ids = planted
    result = forward(model, ids, names=("blocks.0.attn.hook_pattern", "blocks.6.attn.hook_pattern"))
    flags = np.asarray(model.weights.W_E)[:, 10][ids]  # the coordinate after ballast, three groups and six tastes
    assert set(np.unique(flags)) == {-1.0, 1.0}
    for layer in (0, 6):
        pattern = result.activations[f"blocks.{layer}.attn.hook_pattern"][:, 0]
        close(result.logits[..., layer], np.einsum("btu,bu->bt", pattern, flags), 1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: HyLRAHook([0, 0, 1], 4), "a source is not a full layer"),
        (lambda: HyLRAHook([0, 2, 2], 4), "must name a layer that is not later"),
        (lambda: HyLRAHook([-1, 1], 4), "must name a layer that is not later"),
        (lambda: HyLRAHook([0, 0], 0), "n_keep=0 must be at least 1"),
        (lambda: HyLRAHook([0, 0], 4, sink=5), "forced blocks exceed the budget"),
        (lambda: HyLRAHook([0, 0], 4, refresh="hashed"), "refresh='hashed' is not one of"),
        (lambda: HyLRAHook([0, 0], 4).begin(3), "policy has 2 layers, the model 3"),
        (lambda: ProfileHook(3, block_size=4), "n_keep=3 must be at least block_size=4"),
        (lambda: ProfileHook(3).profile(), "no forward pass has been profiled"),
        (lambda: similar_layers_model(np.random.default_rng(0), groups=(0, -1)), "must not be negative"),
        (lambda: similar_layers_model(np.random.default_rng(0), vocab_size=30), "vocab_size=30 must be at least 36"),
    ],
)
def test_bad_input_is_refused(call, words):
    """What makes no sense is refused, with the argument's name and the rule."""
    with pytest.raises(ValueError, match=words):
        call()
