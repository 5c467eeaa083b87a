"""What every correct HyLRA obeys, stated without the reference's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "BLOCK_LAWS",
    "DISTORTION_LAWS",
    "FULL_LAWS",
    "LAYER_LAWS",
    "MAX_MIN_LAWS",
    "MIN_FULL_LAWS",
    "OVERLAP_LAWS",
    "RATIO_LAWS",
    "REUSE_LAWS",
]


def _size(case: Case) -> int:
    return int(case.options.get("block_size", 1))


def _filled(case: Case) -> bool:
    """Whether there is a query and a key."""
    return bool(case.arrays["q"].size and case.arrays["k"].size)


def _members(indices: np.ndarray, T: int) -> np.ndarray:
    """Return how often each of T keys is in a set."""
    return np.asarray((indices[..., None] == np.arange(T)).sum(axis=-2).astype(float))


def _visible(case: Case) -> np.ndarray:
    """Return which keys some query head of each key head sees: (B, H, Tq, T)."""
    (B, _, Tq, _), (H, T) = case.arrays["q"].shape, case.arrays["k"].shape[1:3]
    return np.broadcast_to(case.arrays.get("mask", np.ones((), dtype=bool)), (B, H, Tq, T))


def _sets_hold_visible_keys(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    kept = _members(probe(case)["indices"], case.arrays["k"].shape[2])
    yield Claim(kept, np.where(_visible(case), np.minimum(kept, 1.0), 0.0), 0.0)


def _sets_are_full(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    kept = _members(probe(case)["indices"], case.arrays["k"].shape[2]).sum(axis=-1, keepdims=True)
    seen = _visible(case).sum(axis=-1, keepdims=True)
    yield Claim(kept, np.minimum(seen, case.options["n_keep"]).astype(float), 0.0)


def _equal_values(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    v = np.zeros_like(case.arrays["v"]) + case.arrays["v"][:, :, :1]
    even = case.having(v=v)
    out = probe(even)["out"]
    G = out.shape[1] // v.shape[1]
    seen = np.repeat(_visible(case).any(axis=-1), G, axis=1)[..., None]
    yield Claim(out, np.where(seen, np.repeat(v[:, :, :1], G, axis=1), 0.0), probe.slack(even)["out"])


def _sparse_is_reuse(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe.raw(case)
    arrays = {**case.arrays, "indices": np.asarray(found[1]).astype(np.int64)}
    options = {name: case.options[name] for name in ("scale",) if name in case.options}
    again = Case("attend_reuse", arrays, options, case.dtype, case.label)
    yield Claim(probe(again)["out"], np.asarray(found[0]), 2.0 * probe.slack(case)["out"])


def _heads_share(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    indices = probe(case)["indices"].astype(float)
    yield Claim(indices, np.repeat(indices[:, :1], indices.shape[1], axis=1), 0.0)


def _heads_are_alone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    q, k, v = (case.arrays[name] for name in ("q", "k", "v"))
    G = q.shape[1] // k.shape[1]
    alone = case.having(q=q[:, :G], k=k[:, :1], v=v[:, :1])
    both, one = probe(case), probe(alone)
    yield Claim(one["out"], both["out"][:, :G], 2.0 * probe.slack(alone)["out"])


def _future_is_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    T = case.arrays["k"].shape[2]
    t = int(rng.integers(1, T))
    later = {}
    for name in ("k", "v"):
        x = case.arrays[name].copy()
        x[:, :, t:] = -x[:, :, t:, ::-1]
        later[name] = x
    slack = probe.slack(case)["out"] + probe.slack(case.having(**later))["out"]
    yield Claim(probe(case.having(**later))["out"][:, :, :t], probe(case)["out"][:, :, :t], slack[:, :, :t])


def _plain_prefill(case: Case) -> bool:
    mask, T = case.arrays.get("mask"), case.arrays["k"].shape[2]
    return bool(
        _filled(case)
        and mask is not None
        and T > 1
        and mask.shape[-2:] == (T, T)
        and (mask == np.tri(T, dtype=bool)).all()
    )


FULL_LAWS = (
    Law(
        "sets_hold_visible_keys",
        "A set lists keys that are visible, each once.",
        _sets_hold_visible_keys,
        lambda case: "mask" in case.arrays and _filled(case),
        witness="full_whole_blocks_fetched",
    ),
    Law(
        "sets_are_full",
        "With blocks of one key a set has as many keys as the budget, or all that are visible.",
        _sets_are_full,
        lambda case: _size(case) == 1 and _filled(case) and not case.options.get("share_heads"),
        witness="full_one_block_short",
    ),
    Law(
        "equal_values_come_back",
        "If all values are equal, every query that sees a key gets that value.",
        _equal_values,
        lambda case: (
            _filled(case) and ("mask" not in case.arrays or not (case.options.get("share_heads") or _size(case) > 1))
        ),
        witness="full_kept_not_shared_out_again",
    ),
    Law(
        "sparse_is_reuse",
        "A layer that attends to its own set gives what it would give as a reusing layer with that set.",
        _sparse_is_reuse,
        lambda case: case.options.get("refresh") == "sparse" and _filled(case),
        needs=("attend_reuse",),
        witness="full_never_sparse",
    ),
    Law(
        "heads_share_a_set",
        "With share_heads all key heads list the same keys.",
        _heads_share,
        lambda case: bool(case.options.get("share_heads")) and _filled(case),
        witness="full_each_head_for_itself",
    ),
    Law(
        "heads_are_alone",
        "Without share_heads the first key head gives what it gives without the others.",
        _heads_are_alone,
        lambda case: not case.options.get("share_heads") and _filled(case) and case.arrays["k"].shape[1] > 1,
        witness="full_heads_strided",
    ),
    Law(
        "the_future_is_unseen",
        "Under the causal mask, outputs do not change when later keys and values do.",
        _future_is_unseen,
        _plain_prefill,
        witness="full_hidden_keys_in_the_denominator",
    ),
)


def _order_does_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    indices = case.arrays["indices"]
    shuffled = case.having(indices=np.ascontiguousarray(rng.permuted(indices, axis=-1)))
    yield Claim(probe(shuffled)["out"], probe(case)["out"], 2.0 * probe.slack(case)["out"])


def _keys_may_be_permuted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    indices, T = case.arrays["indices"], case.arrays["k"].shape[2]
    order = rng.permutation(T)
    moved = {name: np.ascontiguousarray(case.arrays[name][:, :, order]) for name in ("k", "v")}
    if "mask" in case.arrays:
        moved["mask"] = np.ascontiguousarray(case.arrays["mask"][..., order])
    moved["indices"] = np.where(indices < 0, -1, np.argsort(order)[indices])
    yield Claim(probe(case.having(**moved))["out"], probe(case)["out"], 2.0 * probe.slack(case)["out"])


def _unfetched_keys_do_not_matter(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    S, T = case.arrays["indices"], case.arrays["k"].shape[2]
    fetched = _members(S.reshape(*S.shape[:2], -1), T) > 0  # (B, H, T)
    other = {
        name: np.where(fetched[..., None], case.arrays[name], -case.arrays[name][..., ::-1]) for name in ("k", "v")
    }
    yield Claim(probe(case.having(**other))["out"], probe(case)["out"], 0.0)


def _values_average(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    v, S = case.arrays["v"], case.arrays["indices"]
    even = case.having(v=np.zeros_like(v) + v[:, :, :1])
    out = probe(even)["out"]
    (B, Hq, Tq, _), (H, T) = out.shape, v.shape[1:3]
    mask = np.broadcast_to(case.arrays.get("mask", np.ones((), dtype=bool)), (B, Hq, Tq, T))
    sets = S if S.ndim == 4 else np.repeat(S[:, :, None], Tq, axis=2)
    some = (np.repeat(_members(sets, T) > 0, Hq // H, axis=1) & mask).any(axis=-1)[..., None]
    yield Claim(out, np.where(some, np.repeat(v[:, :, :1], Hq // H, axis=1), 0.0), probe.slack(even)["out"])


def _fetches(case: Case) -> bool:
    return bool(_filled(case) and case.arrays["indices"].size)


REUSE_LAWS = (
    Law(
        "order_does_not_matter",
        "The order in which a set lists its keys does not matter.",
        _order_does_not_matter,
        _fetches,
        witness="reuse_mask_read_in_order",
    ),
    Law(
        "keys_may_be_permuted",
        "Permuting keys, values, mask and indices together changes nothing.",
        _keys_may_be_permuted,
        _fetches,
        witness="reuse_first_keys_instead",
    ),
    Law(
        "unfetched_keys_do_not_matter",
        "Keys and values that no set lists may be anything, to the last bit.",
        _unfetched_keys_do_not_matter,
        lambda case: _fetches(case) and bool(np.isfinite(case.arrays["k"]).all()),
        witness="reuse_padding_is_key_zero",
    ),
    Law(
        "equal_values_come_back",
        "If all values are equal, a query that fetches a visible key gets that value, and any other gets 0.",
        _values_average,
        _fetches,
        witness="reuse_missing_keys_weigh_in",
    ),
)


def _mass_and_divergence(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(case)
    slack = probe.slack(case)
    yield Claim(np.exp(-found["kl"]), found["mass"], 2.0 * (slack["mass"] + slack["kl"]))


def _values_have_no_unit(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    doubled = case.having(v=2.0 * case.arrays["v"])
    yield Claim(probe(doubled)["rnmse"], probe(case)["rnmse"], 2.0 * probe.slack(case)["rnmse"])


DISTORTION_LAWS = (
    Law(
        "mass_and_divergence",
        "The KL divergence is −ln m.",
        _mass_and_divergence,
        witness="measured_in_bits",
    ),
    Law(
        "values_have_no_unit",
        "The error is relative: doubling all values leaves it as it is.",
        _values_have_no_unit,
        witness="absolute",
    ),
)


def _kept_outweigh_dropped(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"]
    kept = _members(probe(case)["out"], weights.shape[-1]) > 0
    visible = case.arrays.get("visible", np.ones((), dtype=bool))
    least = np.where(kept, weights, np.inf).min(axis=-1, keepdims=True)
    most = np.where(~kept & visible, weights, -np.inf).max(axis=-1, keepdims=True)
    yield Claim(least, np.maximum(least, most), 0.0)


def _ascending(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out = probe(case)["out"].astype(float)
    n = -(-case.arrays["weights"].shape[-1] // _size(case))
    listed = np.where(out < 0, n, out)
    yield Claim(listed, np.sort(listed, axis=-1), 0.0)


def _forced_blocks_are_in(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    b, T = _size(case), case.arrays["weights"].shape[-1]
    n_b = -(-T // b)
    kept = _members(probe(case)["out"], n_b)
    first, last = case.options.get("sink", 0) // b, case.options.get("recent", 0) // b
    forced = (np.arange(n_b) < first) | (np.arange(n_b) >= n_b - last)
    yield Claim(np.maximum(kept, forced), kept, 0.0)


def _keys(case: Case) -> bool:
    return bool(case.arrays["weights"].size)


BLOCK_LAWS = (
    Law(
        "kept_outweigh_dropped",
        "With blocks of one key and none forced, no visible key that is dropped outweighs one that is kept.",
        _kept_outweigh_dropped,
        lambda case: _keys(case) and _size(case) == 1 and not {"sink", "recent"} & set(case.options),
        witness="blocks_lightest_kept",
    ),
    Law("sets_ascend", "Blocks are listed in ascending order.", _ascending, _keys, witness="blocks_in_order_of_weight"),
    Law(
        "forced_blocks_are_in",
        "Where all keys are visible, the first ⌊sink/b⌋ and the last ⌊recent/b⌋ blocks are always kept.",
        _forced_blocks_are_in,
        lambda case: _keys(case) and "visible" not in case.arrays,
        witness="blocks_recent_forgotten",
    ),
)


def _unreachable_is_zero(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    M = probe(case)["out"]
    yield Claim(np.tril(M), np.eye(M.shape[-1]) + np.zeros_like(M), 0.0)


def _identical_layers(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    masks = case.arrays["masks"]
    M = probe(case.having(masks=np.repeat(masks[:1], len(masks), axis=0)))["out"]
    yield Claim(M, np.triu(np.ones_like(M)), probe.slack(case)["out"])


def _a_set_may_grow(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    masks = case.arrays["masks"].copy()
    masks[0] = 1.0  # a source that keeps everything covers every later layer
    M = probe(case.having(masks=masks))["out"][..., 0, :]
    yield Claim(M, np.ones_like(M), probe.slack(case)["out"][..., 0])


OVERLAP_LAWS = (
    Law(
        "below_is_nothing",
        "The diagonal is 1, and below it is 0: no layer reuses the set of a later one.",
        _unreachable_is_zero,
        witness="both_triangles",
    ),
    Law(
        "identical_layers_overlap",
        "Layers with the same sets have overlap 1.",
        _identical_layers,
        witness="lower_triangle",
    ),
    Law(
        "everything_covers",
        "A source that keeps everything covers whatever a later layer wants.",
        _a_set_may_grow,
        witness="related_to_the_earlier_set",
    ),
)


def _scale_and_order(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    weights, b = case.arrays["weights"], _size(case)
    T = weights.shape[-1] // b * b
    whole = weights[..., :T]
    blocks = whole.reshape(*whole.shape[:-1], -1, b)[..., rng.permutation(T // b), :]
    ratio = probe(case.having(weights=whole))["out"]
    slack = 2.0 * probe.slack(case.having(weights=whole))["out"]
    yield Claim(probe(case.having(weights=2.0 * whole))["out"], ratio, slack, "doubled")
    yield Claim(probe(case.having(weights=blocks.reshape(whole.shape)))["out"], ratio, slack, "blocks permuted")


def _one_block_has_it_all(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"].copy()
    weights[..., 0] = 2.0**12 * weights.shape[-1]
    ratio = probe(case.having(weights=weights))["out"]
    yield Claim(ratio, np.zeros_like(ratio), 0.0)


RATIO_LAWS = (
    Law(
        "scale_and_order",
        "The ratio does not depend on the scale of the weights, nor on the order of whole blocks.",
        _scale_and_order,
        lambda case: bool(case.arrays["weights"].size and case.arrays["weights"].shape[-1] >= _size(case)),
        witness="ratio_in_their_own_order",
    ),
    Law(
        "one_block_has_it_all",
        "If one block holds nearly everything, the ratio is 0.",
        _one_block_has_it_all,
        lambda case: bool(case.arrays["weights"].size),
        witness="ratio_until_reached",
    ),
)


def _steps_permute(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    shuffled = np.ascontiguousarray(rng.permutation(case.arrays["ratios"], axis=1))
    moved = probe(case.having(ratios=shuffled))["out"]
    yield Claim(moved.astype(float), probe(case)["out"].astype(float), 0.0)


def _listed_ascending(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    chosen = probe(case)["out"].astype(float)
    yield Claim(chosen, np.sort(chosen), 0.0)


def _none_and_all(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    L = case.arrays["ratios"].shape[-1]
    for sparsity, count in ((0.0, L), (1.0, 0)):
        chosen = probe(case.having(sparsity=sparsity))["out"]
        yield Claim(np.array([float(chosen.size)]), np.array([float(count)]), 0.0, f"sparsity {sparsity}")


LAYER_LAWS = (
    Law(
        "steps_permute",
        "The order of the steps does not matter.",
        _steps_permute,
        lambda case: case.arrays["ratios"].shape[1] > 4,
        witness="last_step_only",
    ),
    Law("layers_ascend", "Layers are listed in ascending order.", _listed_ascending, witness="in_order_of_ratio"),
    Law(
        "none_and_all",
        "Sparsity 0 makes all layers sensitive, and 1 makes none.",
        _none_and_all,
        witness="minus_nothing_is_everything",
    ),
)


def _staircase(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(case)
    source = found["source"].astype(int)
    layers = np.arange(len(source))
    full = source == layers
    yield Claim(source.astype(float), np.maximum.accumulate(np.where(full, layers, 0)).astype(float), 0.0)
    yield Claim(np.array([full.sum()], dtype=float), np.reshape(found["n_full"], (1,)).astype(float), 0.0, "n_full")


def _path(M: np.ndarray, source: np.ndarray) -> Any:
    layers = np.arange(len(source))
    reuse = source != layers
    return M[..., source[reuse], layers[reuse]]


def _is_measured(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found, M = probe(case), case.arrays["similarity"].copy()
    source = found["source"].astype(int)
    if "max_changes" in case.options:  # blinded: what sensitive layers share counts as nothing
        sensitive = list(case.options.get("sensitive", ()))
        M[..., sensitive, :] = M[..., :, sensitive] = 0.0
    cells = _path(M, source)
    slack = probe.slack(case)
    yield Claim(np.reshape(found["bottleneck"], (1,)), np.array([cells.min(initial=1.0)]), 0.0, "bottleneck")
    yield Claim(np.reshape(found["total"], (1,)), np.array([cells.sum()]), 2.0 * slack["total"], "total")


def _threshold_holds(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    source = probe(case)["source"].astype(int)
    shared = _path(case.arrays["similarity"], source)
    yield Claim(shared, np.maximum(shared, case.options.get("threshold", 0.8)), 0.0)


def _sensitive_layers_are_full(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    sensitive = np.array(sorted(case.options["sensitive"]))
    yield Claim(probe(case)["source"][sensitive].astype(float), sensitive.astype(float), 0.0)


def _nothing_need_be_full(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    free = case.having(threshold=0.0, sensitive=[])
    yield Claim(np.reshape(probe(free)["n_full"], (1,)).astype(float), np.ones(1), 0.0)
    none = case.having(threshold=1.5)
    L = len(case.arrays["similarity"])
    yield Claim(np.reshape(probe(none)["n_full"], (1,)).astype(float), np.array([float(L)]), 0.0)


def _staircase_law(witness: str) -> Law:
    sentence = "Every layer reads the last full layer up to itself."
    return Law("policies_are_staircases", sentence, _staircase, witness=witness)


MIN_FULL_LAWS = (
    _staircase_law("few_most_similar_full_layer"),
    Law(
        "policies_are_measured",
        "Bottleneck and total are those of the policy's own cells.",
        _is_measured,
        witness="few_full_layers_in_the_total",
    ),
    Law(
        "the_threshold_holds",
        "Every reused set fits by the threshold.",
        _threshold_holds,
        witness="few_compared_with_the_layer_before",
    ),
    Law(
        "sensitive_layers_are_full",
        "Sensitive layers are full.",
        _sensitive_layers_are_full,
        lambda case: bool(case.options.get("sensitive")),
        witness="few_sensitive_layers_forgotten",
    ),
    Law(
        "from_one_to_all",
        "One full layer is enough at θ = 0, and all are needed above every overlap.",
        _nothing_need_be_full,
        witness="few_best_overlap_first",
    ),
)


def _budget_holds(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    n_full = np.reshape(probe(case)["n_full"], (1,)).astype(float)
    yield Claim(n_full, np.minimum(n_full, case.options["max_changes"] + 1.0), 0.0)


def _all_full_is_perfect(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    L = case.arrays["similarity"].shape[-1]
    for changes in (L - 1, L + 1):
        best = probe(case.having(max_changes=changes))["bottleneck"]
        yield Claim(np.reshape(best, (1,)), np.ones(1), 0.0, f"{changes} changes")


def _both_find_the_minimum(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    m = 1 if case.arrays["similarity"].ndim == 2 else len(case.arrays["similarity"])
    exact, official = (probe(case.having(method=method)) for method in ("exact", "lexicographic"))
    yield Claim(np.reshape(exact["bottleneck"], (1,)), np.reshape(official["bottleneck"], (1,)), 0.0, "minimum")
    sums = [np.reshape(found["total"] + m * found["n_full"], (1,)) for found in (exact, official)]
    yield Claim(sums[0], np.maximum(*sums), 2.0 * probe.slack(case)["total"] + 1e-6, "the exact sum is no smaller")


def _all_tables_count(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    M = case.arrays["similarity"]
    turned = case.having(similarity=np.ascontiguousarray(M[::-1]))
    yield Claim(
        np.reshape(probe(turned)["bottleneck"], (1,)), np.reshape(probe(case)["bottleneck"], (1,)), 0.0, "reversed"
    )


MAX_MIN_LAWS = (
    _staircase_law("worst_most_similar_full_layer"),
    Law(
        "policies_are_measured",
        "Bottleneck and total are those of the policy's own cells, sensitive layers sharing nothing.",
        _is_measured,
        witness="worst_seen_as_any_layer",
    ),
    Law(
        "the_budget_holds",
        "At most max_changes layers beside layer 0 are full.",
        _budget_holds,
        witness="worst_budget_forgotten",
    ),
    Law(
        "enough_changes_are_perfect",
        "With L − 1 changes the bottleneck is 1.",
        _all_full_is_perfect,
        witness="worst_changes_taken_for_full_layers",
    ),
    Law(
        "both_searches_find_the_minimum",
        "The official search finds the same minimum as the exact one, and no larger sum.",
        _both_find_the_minimum,
        witness="worst_only_the_minimum",
    ),
    Law(
        "all_tables_count",
        "The order of the tables does not matter.",
        _all_tables_count,
        lambda case: case.arrays["similarity"].ndim == 3,
        witness="worst_first_table_only",
    ),
)
