"""Mistakes that people make with key sets, reuse and profiles, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.hylra import plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["BLOCK_BUGS", "DISTORTION_BUGS", "FULL_BUGS", "LAYER_BUGS", "OVERLAP_BUGS", "RATIO_BUGS", "REUSE_BUGS"]


def hidden_keys_in_the_denominator(z: np.ndarray, visible: np.ndarray) -> Any:
    """Return the weights."""
    e = np.exp(z - z.max(initial=-1e300))
    return np.where(visible, e / max(e.sum(), 1e-300), 0.0)


def heads_strided(h: int, _n_groups: int, n_heads: int) -> int:
    """Return the key head of a query head."""
    return h % n_heads


def width_not_rooted(d: int) -> float:
    """Return what multiplies scores."""
    return 1.0 / d


def first_query_head_decides(a: np.ndarray) -> Any:
    """Return the weights of the keys for a group, from those of its query heads (G, T)."""
    return a[0]


def heads_outvoted_by_the_largest(a: np.ndarray) -> Any:
    """Return the weights of the keys for a group, from those of its query heads (G, T)."""
    return a.max(axis=0)


def best_head_counts(w: np.ndarray) -> Any:
    """Return the weights that rank keys for all heads, from those of each key head (H, T)."""
    return w.max(axis=0)


def each_head_for_itself(_share_heads: bool) -> bool:
    """Say whether all heads share a set."""
    return False


def heads_always_share(_share_heads: bool) -> bool:
    """Say whether all heads share a set."""
    return True


def never_sparse(_refresh: str) -> bool:
    """Say whether the layer attends to its own set."""
    return False


def kept_not_shared_out_again(z: np.ndarray, visible: np.ndarray, kept: list[int]) -> Any:
    """Return the weights over the kept keys."""
    a = plain.weigh(z, visible)
    return np.where(np.isin(np.arange(len(z)), kept), a, 0.0)


def blocks_opened_to_the_future(visible: np.ndarray, b: int) -> Any:
    """Mark the blocks that may be chosen."""
    return np.ones(-(-len(visible) // b), dtype=bool)


def whole_blocks_fetched(blocks: list[int], visible: np.ndarray, b: int) -> list[int]:
    """List the keys of the chosen blocks."""
    return [t for j in blocks for t in range(j * b, min((j + 1) * b, len(visible)))]


def one_key_per_block(blocks: list[int], visible: np.ndarray, b: int) -> list[int]:
    """List the keys of the chosen blocks."""
    return [j * b for j in blocks if visible[j * b]]


def heaviest_key_of_a_block(w: np.ndarray, b: int) -> Any:
    """Return the weights of the blocks."""
    return np.array([w[i : i + b].max() for i in range(0, len(w), b)])


def short_block_averaged(w: np.ndarray, b: int) -> Any:
    """Return the weights of the blocks."""
    return np.array([w[i : i + b].mean() for i in range(0, len(w), b)])


def one_block_short(k: int, b: int) -> int:
    """Return how many blocks are kept."""
    return max(k // b - 1, 1)


def forced_tokens_taken_for_blocks(n: int, _b: int) -> int:
    """Return how many blocks are forced."""
    return n


def recent_forgotten(usable: np.ndarray, n_sink: int, _n_recent: int) -> Any:
    """Mark the forced blocks."""
    return plain.forced(usable, n_sink, 0)


def no_recent_means_all(usable: np.ndarray, n_sink: int, n_recent: int) -> Any:
    """Mark the forced blocks."""
    places = np.flatnonzero(usable)
    marks = np.zeros(len(usable), dtype=bool)
    marks[places[:n_sink]] = True
    marks[places[-n_recent:]] = True
    return marks


def sinks_beyond_the_budget(B: np.ndarray, usable: np.ndarray, must: np.ndarray, count: int) -> list[int]:
    """Return the chosen blocks."""
    order = sorted(range(len(B)), key=lambda j: (-B[j], j))
    rest = [j for j in order if usable[j] and not must[j]][:count]
    return sorted([*np.flatnonzero(must & usable), *rest])[:count]


def lightest_kept(B: np.ndarray, usable: np.ndarray, must: np.ndarray, count: int) -> list[int]:
    """Return the chosen blocks."""
    return plain.first(-B, usable, must, count)


def in_order_of_weight(B: np.ndarray, usable: np.ndarray, must: np.ndarray, count: int) -> list[int]:
    """Return the chosen blocks."""
    order = sorted(range(len(B)), key=lambda j: (not must[j], -B[j], j))
    return [j for j in order if usable[j]][:count]


def padding_wraps_around(x: np.ndarray, indices: np.ndarray) -> tuple[Any, Any]:
    """Return the rows that are asked for, and whether there is one."""
    return x[indices], np.ones(indices.shape, dtype=bool)


def padding_is_key_zero(x: np.ndarray, indices: np.ndarray) -> tuple[Any, Any]:
    """Return the rows that are asked for, and whether there is one."""
    return x[np.maximum(indices, 0)], np.ones(indices.shape, dtype=bool)


def first_keys_instead(x: np.ndarray, indices: np.ndarray) -> tuple[Any, Any]:
    """Return the rows that are asked for, and whether there is one."""
    return x[np.arange(len(indices))], indices >= 0


def fetched_unmasked(_visible: np.ndarray, indices: np.ndarray) -> Any:
    """Say which of the fetched keys are visible."""
    return np.ones(indices.shape, dtype=bool)


def mask_read_in_order(visible: np.ndarray, indices: np.ndarray) -> Any:
    """Say which of the fetched keys are visible."""
    return visible[: len(indices)]


def last_query_chooses_for_all(indices: np.ndarray, head: int, _t: int) -> Any:
    """Return the set of a head and a query."""
    return indices[head] if indices.ndim == 2 else indices[head, -1]


def first_head_chooses_for_all(indices: np.ndarray, _head: int, t: int) -> Any:
    """Return the set of a head and a query."""
    return indices[0] if indices.ndim == 2 else indices[0, t]


def missing_keys_weigh_in(z: np.ndarray, visible: np.ndarray) -> Any:
    """Return the weights."""
    e = np.where(visible, np.exp(z - z.max(initial=-1e300)), 0.0)
    return e / (e.sum() + np.sum(~visible))


def related_to_the_reduced_output(o: np.ndarray, o_S: np.ndarray) -> Any:
    """Return the normalised error."""
    return np.sqrt(np.sum((o - o_S) ** 2) / np.sum(o_S**2))


def root_forgotten(o: np.ndarray, o_S: np.ndarray) -> Any:
    """Return the normalised error."""
    return np.sum((o - o_S) ** 2) / np.sum(o**2)


def absolute(o: np.ndarray, o_S: np.ndarray) -> Any:
    """Return the normalised error."""
    return np.sqrt(np.mean((o - o_S) ** 2))


def averaged_over_heads(o: np.ndarray, o_S: np.ndarray) -> Any:
    """Return the normalised error, from outputs (1, H, S, d)."""
    error, size = (np.sum(x**2, axis=(0, 2, 3)) for x in (o - o_S, o))
    return np.mean(np.sqrt(error / size))


def mass_lost(a: np.ndarray, kept: np.ndarray) -> Any:
    """Return the mass."""
    return np.where(kept, 0.0, a).sum(axis=-1)


def measured_in_bits(m: np.ndarray) -> Any:
    """Return the divergence."""
    return -np.log2(m)


def other_way_round(m: np.ndarray) -> Any:
    """Return the divergence."""
    return -m * np.log(m)


def all_keys_seen_by_all_steps(_lengths: Any, S: int, T: int) -> Any:
    """Mark the keys that each step sees."""
    return np.ones((S, T), dtype=bool)


def related_to_the_earlier_set(common: np.ndarray, earlier: np.ndarray, _later: np.ndarray) -> Any:
    """Return how much two sets share."""
    return common / earlier


def related_to_the_union(common: np.ndarray, earlier: np.ndarray, later: np.ndarray) -> Any:
    """Return how much two sets share."""
    return common / (earlier + later - common)


def pooled_over_steps(common: np.ndarray, earlier: np.ndarray, later: np.ndarray, relate: Callable[..., Any]) -> Any:
    """Return the share over all steps (S, H)."""
    return relate(common.sum(axis=0), earlier.sum(axis=0), later.sum(axis=0))


def worst_step(common: np.ndarray, earlier: np.ndarray, later: np.ndarray, relate: Callable[..., Any]) -> Any:
    """Return the share over all steps (S, H)."""
    return relate(common, earlier, later).min(axis=0)


def both_triangles(M: np.ndarray, i: int, j: int, shares: np.ndarray) -> None:
    """Write down what layer j shares with the earlier layer i."""
    M[:, i, j] = M[:, j, i] = shares


def lower_triangle(M: np.ndarray, i: int, j: int, shares: np.ndarray) -> None:
    """Write down what layer j shares with the earlier layer i."""
    M[:, j, i] = shares


def in_their_own_order(B: np.ndarray) -> Any:
    """Return the blocks in the order in which they are added up."""
    return B


def lightest_first(B: np.ndarray) -> Any:
    """Return the blocks in the order in which they are added up."""
    return np.sort(B)


def by_the_largest(B: np.ndarray) -> Any:
    """Normalise the weights of the blocks."""
    return B / B.max()


def until_reached(c: np.ndarray, part: float) -> Any:
    """Count blocks, from their running totals."""
    return min(np.sum(c <= part) + 1, len(c))


def share_of_keys(number: int, n_b: int, b: int) -> float:
    """Return the ratio."""
    return number / (n_b * b)


def outliers_kept(x: np.ndarray) -> Any:
    """Pull in outliers among the steps of ratios (H, S, L)."""
    return x


def outliers_of_all_layers(x: np.ndarray) -> Any:
    """Pull in outliers among the steps of ratios (H, S, L)."""
    low, high = np.quantile(x, [0.25, 0.75])
    return np.clip(x, low - 1.5 * (high - low), high + 1.5 * (high - low))


def last_step_only(x: np.ndarray) -> Any:
    """Summarise ratios (H, S, L)."""
    return x[:, -1].mean(axis=0)


def count_rounded_down(n_layers: int, sparsity: float) -> int:
    """Return the number of sensitive layers."""
    return int(n_layers * (1 - sparsity))


def count_of_the_others(n_layers: int, sparsity: float) -> int:
    """Return the number of sensitive layers."""
    return int(np.ceil(n_layers * sparsity))


def narrowest(stat: np.ndarray, number: int) -> Any:
    """Return the sensitive layers."""
    return np.sort(np.argsort(stat, kind="stable")[:number])


def in_order_of_ratio(stat: np.ndarray, number: int) -> Any:
    """Return the sensitive layers."""
    return np.argsort(stat, kind="stable")[len(stat) - number :]


def minus_nothing_is_everything(stat: np.ndarray, number: int) -> Any:
    """Return the sensitive layers."""
    return np.sort(np.argsort(stat, kind="stable")[-number:])


def _option(name: str, default: Any) -> Callable[[Case], Any]:
    return lambda case: case.options.get(name, default)


_size, _sink, _recent = _option("block_size", 1), _option("sink", 0), _option("recent", 0)


def _rows(case: Case) -> bool:
    return bool(next(x for name, x in case.arrays.items() if name in ("q", "weights")).size)


def _many_keys(case: Case) -> bool:
    keys = case.arrays["k"].shape[-2] if "k" in case.arrays else case.arrays["weights"].shape[-1]
    return _rows(case) and keys > _option("n_keep", case.options.get("k"))(case)


def _sparse(case: Case) -> bool:
    return bool(_many_keys(case) and case.options.get("refresh") == "sparse")


def _grouped(case: Case) -> bool:
    return bool(_many_keys(case) and case.arrays["q"].shape[-3] > case.arrays["k"].shape[-3])


def _two_heads(case: Case) -> bool:
    q, k = case.arrays["q"], case.arrays["k"]
    return bool(q.size and k.size and q.shape[-3] > k.shape[-3] > 1)


def _shared(case: Case) -> bool:
    return bool(_many_keys(case) and case.options.get("share_heads"))


def _forced_by_steps(case: Case) -> bool:
    return bool(_many_keys(case) and _size(case) > 1 and _sink(case) + _recent(case))


def _masked(case: Case) -> bool:
    return "mask" in case.arrays and _rows(case)


def _padded(case: Case) -> bool:
    return bool((case.arrays["indices"] < 0).any() and case.arrays["q"].size)


def _fetches(case: Case) -> bool:
    n, T = case.arrays["indices"].shape[-1], case.arrays["k"].shape[2]
    return bool(_rows(case) and 0 < n < T)


_CHOICE = (
    Mistake(
        "pool",
        heaviest_key_of_a_block,
        "a block weighs as much as its heaviest key",
        "Add the weights of a block.",
        lambda case: _many_keys(case) and _size(case) > 1,
    ),
    Mistake(
        "pool",
        short_block_averaged,
        "blocks are averaged, the short last one over the keys that it has",
        "Add the weights; the last block is filled up with zeros.",
        lambda case: _many_keys(case) and _size(case) > 1,
    ),
    Mistake(
        "kept_blocks",
        one_block_short,
        "one block less is kept than fits the budget",
        "Keep ⌊k/b⌋ blocks.",
        _many_keys,
    ),
    Mistake(
        "forced_blocks",
        forced_tokens_taken_for_blocks,
        "the number of forced keys is taken for a number of blocks",
        "Force ⌊sink/b⌋ and ⌊recent/b⌋ blocks.",
        _forced_by_steps,
    ),
    Mistake(
        "forced",
        recent_forgotten,
        "recent keys are not forced",
        "Force the last ⌊recent/b⌋ blocks too.",
        lambda case: _many_keys(case) and _recent(case) >= _size(case),
    ),
    Mistake(
        "forced",
        no_recent_means_all,
        "the last 0 blocks, as a slice from −0, are all blocks: the budget goes to the first ones",
        "Nothing is forced where recent < b.",
        lambda case: _many_keys(case) and _recent(case) < _size(case) <= _sink(case),
    ),
    Mistake("first", lightest_kept, "the lightest blocks are kept", "Sort by descending weight.", _many_keys),
    Mistake(
        "first",
        sinks_beyond_the_budget,
        "forced blocks come on top of a full budget and push out the last ones",
        "Forced blocks count towards the budget.",
        lambda case: _many_keys(case) and _sink(case) + _recent(case) >= _size(case),
    ),
)
BLOCK_BUGS = (
    *(mistake.planted(plain.choosing, "blocks_") for mistake in _CHOICE),
    Mistake(
        "first",
        in_order_of_weight,
        "blocks are listed by weight",
        "List the chosen blocks in ascending order.",
        lambda case: _rows(case) and case.options["k"] // _size(case) > 1,
    ).planted(plain.choosing, "blocks_"),
)

FULL_BUGS = tuple(
    mistake.planted(plain.finding, "full_")
    for mistake in (
        Mistake("key_head", heads_strided, "query head h reads key head h mod H", "It reads h // G.", _two_heads),
        Mistake(
            "scale",
            width_not_rooted,
            "scores are divided by d",
            "Divide by √d.",
            lambda case: _rows(case) and "scale" not in case.options and case.arrays["k"].shape[2] > 1,
        ),
        Mistake(
            "weigh",
            hidden_keys_in_the_denominator,
            "weights of hidden keys are set to 0 after the softmax and not shared out again",
            "Hide scores before the softmax.",
            _masked,
        ),
        Mistake(
            "together",
            first_query_head_decides,
            "the first query head chooses for its group",
            "Average the weights of the group.",
            _grouped,
        ),
        Mistake(
            "together",
            heads_outvoted_by_the_largest,
            "a key weighs as much as it does for the head that wants it most",
            "Average the weights of the group.",
            _grouped,
        ),
        Mistake(
            "over_heads", best_head_counts, "shared sets follow the largest weight", "Add over key heads.", _shared
        ),
        Mistake("shared", each_head_for_itself, "share_heads is ignored", "Add the weights of all heads.", _shared),
        Mistake(
            "shared",
            heads_always_share,
            "all heads share a set unasked",
            "One set for each key head, unless share_heads.",
            lambda case: _many_keys(case) and not case.options.get("share_heads") and case.arrays["k"].shape[1] > 1,
        ),
        Mistake("sparse", never_sparse, "refresh is ignored: the layer stays dense", "Attend to the set.", _sparse),
        Mistake(
            "restrict",
            kept_not_shared_out_again,
            "weights outside the set are dropped and not shared out again",
            "Take the softmax over the set.",
            _sparse,
        ),
        Mistake(
            "may_be_chosen",
            blocks_opened_to_the_future,
            "blocks that nobody sees compete, and with forced recent ones they win",
            "A block without a visible key is never chosen.",
            lambda case: _masked(case) and _recent(case) >= _size(case),
        ),
        Mistake(
            "tokens",
            whole_blocks_fetched,
            "a block's hidden keys are listed too",
            "List visible keys only.",
            lambda case: _masked(case) and _size(case) > 1,
        ),
        Mistake(
            "tokens",
            one_key_per_block,
            "only the first key of a block is listed",
            "List all keys of a block.",
            lambda case: _rows(case) and _size(case) > 1,
        ),
        *_CHOICE,
    )
)

REUSE_BUGS = tuple(
    mistake.planted(plain.reusing, "reuse_")
    for mistake in (
        Mistake("key_head", heads_strided, "query head h reads key head h mod H", "It reads h // G.", _two_heads),
        Mistake(
            "scale",
            width_not_rooted,
            "scores are divided by d",
            "Divide by √d.",
            lambda case: _fetches(case) and "scale" not in case.options,
        ),
        Mistake("fetch", padding_wraps_around, "−1 fetches the last key", "−1 fetches nothing.", _padded),
        Mistake("fetch", padding_is_key_zero, "−1 fetches key 0", "−1 fetches nothing.", _padded),
        Mistake("fetch", first_keys_instead, "the first n keys are read", "Read the rows of the set.", _fetches),
        Mistake(
            "fetched_is_visible",
            fetched_unmasked,
            "fetched keys are not masked",
            "Look up the mask at the fetched places.",
            lambda case: _masked(case) and _fetches(case),
        ),
        Mistake(
            "fetched_is_visible",
            mask_read_in_order,
            "the mask of the first n keys is applied to the fetched ones",
            "Look up the mask at the fetched places.",
            lambda case: _masked(case) and _fetches(case),
        ),
        Mistake(
            "set_of",
            last_query_chooses_for_all,
            "the set of the last query serves all of them",
            "In a prefill each query has a set of its own.",
            lambda case: _fetches(case) and case.arrays["indices"].ndim == 4 and case.arrays["q"].shape[2] > 1,
        ),
        Mistake(
            "set_of",
            first_head_chooses_for_all,
            "the set of the first head serves all of them",
            "Each key head has a set of its own.",
            lambda case: _fetches(case) and case.arrays["k"].shape[1] > 1,
        ),
        Mistake(
            "weigh",
            missing_keys_weigh_in,
            "padding counts in the denominator with the weight of the largest score",
            "Hide padding before the softmax.",
            _padded,
        ),
    )
)

DISTORTION_BUGS = tuple(
    mistake.planted(plain.losing)
    for mistake in (
        Mistake(
            "rnmse",
            related_to_the_reduced_output,
            "the error is related to the reduced output",
            "Divide by the squares of the full output.",
            _many_keys,
        ),
        Mistake("rnmse", absolute, "the error is not normalised", "Divide by the full output.", _many_keys),
        Mistake("rnmse", root_forgotten, "the mean square itself is returned", "Take the root.", _many_keys),
        Mistake(
            "rnmse",
            averaged_over_heads,
            "each head is normalised by itself",
            "Sum over heads before dividing.",
            lambda case: _many_keys(case) and case.arrays["q"].shape[-2] > 1,
        ),
        Mistake("mass", mass_lost, "the mass outside the set is returned", "m is the mass on the set.", _many_keys),
        Mistake("divergence", measured_in_bits, "the divergence is in bits", "Use the natural log.", _many_keys),
        Mistake("divergence", other_way_round, "ln m is weighed by m", "The restricted weights sum to 1.", _many_keys),
        Mistake(
            "seen_keys",
            all_keys_seen_by_all_steps,
            "earlier steps see keys of later ones",
            "Step s sees its first keys only.",
            lambda case: "lengths" in case.arrays,
        ),
    )
)


def _uneven(case: Case) -> bool:
    size = case.arrays["masks"].sum(axis=-1)
    return bool(case.arrays["masks"].shape[0] > 1 and np.ptp(size) > 0)


def _layers(case: Case) -> bool:
    masks = case.arrays["masks"]
    return bool(masks.shape[0] > 1 and masks.min() == 0)


OVERLAP_BUGS = tuple(
    mistake.planted(plain.overlapping)
    for mistake in (
        Mistake(
            "share",
            related_to_the_earlier_set,
            "the size of the earlier set is the denominator",
            "Divide by the size of the later layer's set.",
            _uneven,
        ),
        Mistake("share", related_to_the_union, "common over union (Jaccard)", "Divide by the later set.", _layers),
        Mistake("over_steps", pooled_over_steps, "steps are pooled before dividing", "Divide step by step.", _uneven),
        Mistake(
            "over_steps",
            worst_step,
            "the worst step counts",
            "Average over steps.",
            lambda case: _layers(case) and case.arrays["masks"].shape[1] > 1,
        ),
        Mistake("place", both_triangles, "the table is filled on both sides", "Below the diagonal is 0.", _layers),
        Mistake("place", lower_triangle, "source and layer are exchanged", "Row = source, column = layer.", _layers),
    )
)

RATIO_BUGS = tuple(
    mistake.planted(plain.spreading, "ratio_")
    for mistake in (
        Mistake("heaviest_first", in_their_own_order, "blocks are not sorted", "Heaviest first.", _rows),
        Mistake("heaviest_first", lightest_first, "blocks are added lightest first", "Heaviest first.", _rows),
        Mistake("normalised", by_the_largest, "weights are related to the largest block", "To their sum.", _rows),
        Mistake(
            "count",
            until_reached,
            "the block that crosses the bound is counted",
            "Count totals that do not exceed the bound.",
            _rows,
        ),
        Mistake(
            "of_all",
            share_of_keys,
            "the count is divided by the number of keys",
            "Divide by the number of blocks.",
            lambda case: _rows(case) and _size(case) > 1,
        ),
        Mistake(
            "pool",
            heaviest_key_of_a_block,
            "a block weighs as much as its heaviest key",
            "Add the weights of a block.",
            lambda case: _rows(case) and _size(case) > 1,
        ),
    )
)


def _some_sensitive(case: Case) -> bool:
    return bool(0 < case.options["sparsity"] < 1) and case.arrays["ratios"].shape[-1] > 1


LAYER_BUGS = tuple(
    mistake.planted(plain.judging)
    for mistake in (
        Mistake(
            "clipped",
            outliers_kept,
            "outliers count in full",
            "Pull them in to 1.5 times the distance of the quartiles.",
            lambda case: _some_sensitive(case) and case.arrays["ratios"].shape[1] > 4,
        ),
        Mistake(
            "clipped",
            outliers_of_all_layers,
            "quartiles are taken over all heads and layers",
            "Each head and layer has quartiles of its own.",
            lambda case: _some_sensitive(case) and case.arrays["ratios"].shape[1] > 4,
        ),
        Mistake(
            "summary",
            last_step_only,
            "only the last step counts",
            "Average over steps.",
            lambda case: _some_sensitive(case) and case.arrays["ratios"].shape[1] > 1,
        ),
        Mistake("how_many", count_rounded_down, "the number is rounded down", "Round it up.", _some_sensitive),
        Mistake(
            "how_many",
            count_of_the_others,
            "sparsity is taken for the share of sensitive layers",
            "It is the share of the others.",
            lambda case: case.options["sparsity"] != 0.5,
        ),
        Mistake("widest", narrowest, "the most concentrated layers are taken", "The widest ones.", _some_sensitive),
        Mistake("widest", in_order_of_ratio, "layers are listed by ratio", "In ascending order.", _some_sensitive),
        Mistake(
            "widest",
            minus_nothing_is_everything,
            "the last 0 layers, as a slice from −0, are all layers",
            "None are sensitive if the number is 0.",
            lambda case: case.options["sparsity"] == 1,
        ),
    )
)
