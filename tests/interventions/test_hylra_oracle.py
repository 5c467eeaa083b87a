"""HyLRA's offline stage against vectors of the authors' own class."""

import numpy as np

from refattn.interventions.hylra import group_weights
from refattn.interventions.hylra_policy import change_budget, policy_max_min
from refattn.interventions.hylra_profile import (
    critical_mask,
    hash_ratio,
    layer_overlap,
    merge_overlap,
    sensitive_by_hash_ratio,
)

TOLERANCE = 1e-12


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=0, atol=TOLERANCE)


def search(case):
    """The policy search alone: its path, its minimum and its sum over all cells of the path."""
    M, changes = case["similarity"], int(case["max_changes"])
    official = policy_max_min(M, changes, method="lexicographic")
    np.testing.assert_array_equal(official.source, case["path"][:, 0])
    assert official.n_full - 1 == case["best_changes"]
    close(official.bottleneck, case["best_min"])
    close(official.total + len(M) * official.n_full, case["best_sum"])
    exact = policy_max_min(M, changes)
    close(exact.bottleneck, case["best_min"])
    assert exact.total + len(M) * exact.n_full >= case["best_sum"] - TOLERANCE


def profile(case):
    """The whole stage: weights, critical blocks, overlaps, hash ratios, sensitive layers, policy."""
    keys, queries, scale = case["keys"], case["queries"], float(case["scale"])
    (_, L, T, d), S = keys.shape, queries.shape[2]
    size, k = int(case["block_size"]), int(case["kept_tokens"])
    forced = {"sink": int(case["sink_tokens"]), "recent": int(case["recent_tokens"])}
    masks, ratios = [], []
    for s in range(S):
        seen = keys[:, :, : T - (S - 1) + s]
        w = [
            group_weights(queries[:, layer, s].reshape(1, -1, 1, d), seen[None, :, layer], scale=scale)[0, :, 0]
            for layer in range(L)
        ]  # L of (H, T_s)
        masks.append(critical_mask(np.stack(w), k, block_size=size, **forced))
        ratios.append(hash_ratio(np.stack(w, axis=1), size))  # (H, L)
    ratios = np.stack(ratios, axis=1)
    close(ratios, case["hash_ratio"])
    M = layer_overlap(masks, per_head=True)
    close(M, case["overlap"])
    sparsity = float(case["sparsity"])
    sensitive = sensitive_by_hash_ratio(ratios, sparsity)
    np.testing.assert_array_equal(sensitive, case["sensitive_layers"])
    changes = change_budget(
        L, sparsity, refresh_ratio=float(case["refresh_ratio"]), n_sensitive=len(case["sensitive_layers"])
    )
    source = policy_max_min(merge_overlap(M), changes, sensitive=sensitive, method="lexicographic").source
    np.testing.assert_array_equal(np.where(source == np.arange(L), -1, source), case["config"])


KINDS = {"dp": search, "profile": profile}


def test_official_tool_agrees(oracle):
    """Every vector of the official tool is met: integers exactly, numbers to 1e-12."""
    wrong = {}
    for path in oracle("02-hylra"):
        with np.load(path) as case:
            try:
                KINDS[str(case["kind"])](case)
            except AssertionError as error:
                wrong[path.stem] = str(error)
    assert not wrong
