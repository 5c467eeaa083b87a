"""What every implementation of LRGT obeys, stated between its own results."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.layers.lrgt_grouping import group_labels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "ATTENTION_LAWS",
    "BLOCK_LAWS",
    "CLUSTER_LAWS",
    "DECODER_LAWS",
    "DICE_LAWS",
    "ENCODER_LAWS",
    "FOLD_LAWS",
    "GROUP_LAWS",
    "MERGER_LAWS",
    "QUERY_LAWS",
    "SPREAD_LAWS",
]


def _out(probe: Probe, case: Case) -> np.ndarray:
    return next(iter(probe(case).values()))


def _slack(probe: Probe, case: Case) -> np.ndarray:
    return 2.0 * next(iter(probe.slack(case).values()))


def _grid(case: Case) -> int:
    return isqrt(case.arrays["x"].shape[1])


def _kind(case: Case) -> str:
    return str(case.options.get("kind", "long"))


def _by_view(x: np.ndarray, views: int) -> np.ndarray:
    return x.reshape(len(x) // views, views, *x.shape[1:])


def _views_may_be_permuted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x, views = case.arrays["x"], case.options["num_views"]
    order = np.roll(np.arange(views), int(rng.integers(1, views)))
    shuffled = case.having(x=_by_view(x, views)[:, order].reshape(x.shape))
    expected = _by_view(_out(probe, case), views)[:, order].reshape(x.shape)
    slack = _by_view(_slack(probe, case), views)[:, order].reshape(x.shape[:2])
    yield Claim(_out(probe, shuffled), expected, slack + _slack(probe, shuffled), f"views in the order {order}")


def _groups_keep_to_themselves(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    bare = case.having(signature=False)
    x = case.arrays["x"]
    labels = group_labels(grid=_grid(case), stride=case.options["stride"], kind=_kind(case))
    place = int(rng.integers(x.shape[1]))
    changed = x.copy()
    changed[:, place] = 2.0 - x[:, place]
    others = labels != labels[place]
    left, right = _out(probe, bare), _out(probe, bare.having(x=changed))
    what = f"groups other than that of place {place}"
    yield Claim(left[:, others], right[:, others], _slack(probe, bare)[:, others], what)


def _grids_may_be_shifted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    bare, g = case.having(signature=False), _grid(case)
    shift = tuple(int(n) for n in rng.integers(g, size=2))

    def shifted(x: np.ndarray) -> np.ndarray:
        image = x.reshape(len(x), g, g, *x.shape[2:])
        return np.roll(image, shift, axis=(1, 2)).reshape(x.shape)

    moved = bare.having(x=shifted(case.arrays["x"]))
    slack = shifted(_slack(probe, bare)) + _slack(probe, moved)
    yield Claim(_out(probe, moved), shifted(_out(probe, bare)), slack, f"shifted by {shift}")


def _averages_of_equals(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x, w = case.arrays["x"], case.arrays["weights"]
    equal = case.having(x=np.broadcast_to(x[:1, :1], x.shape).copy(), signature=False)
    value = x[:1, :1] @ w.w_v + (0.0 if w.b_v is None else w.b_v)
    expected = np.broadcast_to(value @ w.w_o + w.b_o, x.shape)
    yield Claim(_out(probe, equal), expected, _slack(probe, equal))


def _a_kernel_of_one_place_fetches_neighbours(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    w, g = case.arrays["weights"], _grid(case)
    i, j = (int(n) for n in rng.integers(3, size=2))
    kernel = np.zeros_like(w.ifs_w)
    kernel[:, i, j] = 1.0
    plain = case.having(weights=w._replace(ifs_w=kernel, ifs_b=None if w.ifs_b is None else 0.0 * w.ifs_b))
    v = case.arrays["x"] @ w.w_v + (0.0 if w.b_v is None else w.b_v)
    image = np.pad(v.reshape(len(v), g, g, v.shape[-1]), ((0, 0), (1, 1), (1, 1), (0, 0)))
    fetched = image[:, i : i + g, j : j + g].reshape(v.shape) @ w.w_o
    without = plain.having(signature=False)
    slack = _slack(probe, plain) + _slack(probe, without)
    yield Claim(_out(probe, plain), _out(probe, without) + fetched, slack, f"the neighbour at {i - 1}, {j - 1}")


def _weights_sum_to_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    a = probe(case)["attn"]
    sums = np.sum(a, axis=-1, keepdims=True)
    yield Claim(sums, np.ones_like(sums), a.shape[-1] ** 0.5 * 2.0 * probe.slack(case)["attn"])


def _signs(case: Case) -> bool:
    return bool(case.options.get("signature", True))


_PERMUTED = (
    "views_may_be_permuted",
    "Permuting the views of each object permutes the outputs in the same way: no view has a place of its own.",
)

ATTENTION_LAWS = (
    Law(*_PERMUTED, _views_may_be_permuted, lambda case: case.options["num_views"] > 1, witness="batch_before_views"),
    Law(
        "groups_keep_to_themselves",
        "Without the signature, changing a place changes its own group only.",
        _groups_keep_to_themselves,
        lambda case: _kind(case) != "full" and case.arrays["x"].size > 0,
        witness="windows",
    ),
    Law(
        "grids_may_be_shifted",
        "Without the signature, shifting all views around their borders shifts the outputs.",
        _grids_may_be_shifted,
        lambda case: _kind(case) == "long",
        witness="columns_in_blocks",
    ),
    Law(
        "averages_of_equals",
        "If all tokens are equal, every output is their own value, projected.",
        _averages_of_equals,
        lambda case: case.arrays["x"].size > 0,
        witness="values_without_bias",
    ),
    Law(
        "a_kernel_of_one_place_fetches_neighbours",
        "With kernels that are 1 at one place, the signature adds the value of the neighbour there, projected.",
        _a_kernel_of_one_place_fetches_neighbours,
        _signs,
        witness="kernel_flipped",
    ),
    Law(
        "weights_sum_to_one",
        "The weights of every query sum to one.",
        _weights_sum_to_one,
        lambda case: bool(case.options.get("return_attn")),
        witness="masked_after_softmax",
    ),
)


def _grouping_can_be_undone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    grouped = probe(case)["out"]
    back = probe(Case("ungroup_tokens", {"x": grouped}, case.options, case.dtype, case.label))["out"]
    yield Claim(back, case.arrays["x"], 0.0)


def _groups_share_a_label(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["x"]
    labels = group_labels(grid=_grid(case), stride=case.options["stride"], kind=_kind(case)).astype(float)
    grouped = probe(case.having(x=np.broadcast_to(labels[:, None], x.shape).copy()))["out"]
    numbers = np.arange(grouped.shape[1], dtype=float)[:, None, None]
    yield Claim(grouped, np.broadcast_to(numbers, grouped.shape), 0.0)


GROUP_LAWS = (
    Law(
        "grouping_can_be_undone",
        "Ungrouping gives every token back, bit for bit.",
        _grouping_can_be_undone,
        needs=("ungroup_tokens",),
        witness="group_views_before_places",
    ),
    Law(
        "groups_share_a_label",
        "Group n holds the tokens whose label is n.",
        _groups_share_a_label,
        witness="group_windows",
    ),
)


def _silent(w: Any) -> Any:
    """Let attention and MLP add nothing."""
    attn = w.attn._replace(w_o=0.0 * w.attn.w_o, b_o=0.0 * w.attn.b_o)
    return w._replace(attn=attn, w_2=0.0 * w.w_2, b_2=0.0 * w.b_2)


def _a_silent_block_changes_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    silent = case.having(weights=_silent(case.arrays["weights"]))
    yield Claim(_out(probe, silent), case.arrays["x"], 0.0)


def _views_may_be_apart(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    views = case.options["num_views"]
    first = case.having(x=_by_view(case.arrays["x"], views)[:, 0].copy(), num_views=1)
    slack = _by_view(_slack(probe, case), views)[:, 0] + _slack(probe, first)
    yield Claim(_out(probe, first), _by_view(_out(probe, case), views)[:, 0], slack, "the first view alone")


BLOCK_LAWS = (
    Law(
        *_PERMUTED,
        _views_may_be_permuted,
        lambda case: case.options["num_views"] > 1,
        witness="block_batch_before_views",
    ),
    Law(
        "a_silent_block_changes_nothing",
        "Where attention and MLP add nothing, a block returns its tokens bit for bit.",
        _a_silent_block_changes_nothing,
        witness="block_residual_of_normed",
    ),
    Law(
        "views_may_be_apart",
        "A block that attends inside views gives each view what it gives it alone.",
        _views_may_be_apart,
        lambda case: not case.options.get("use_lga", True),
        witness="block_always_across",
    ),
)


def _image_views_may_be_permuted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    images = case.arrays["images"]
    views = images.shape[1]
    order = np.roll(np.arange(views), int(rng.integers(1, views)))
    shuffled = case.having(images=images[:, order].copy())
    left, right = probe(shuffled)["tokens"], probe(case)["tokens"][:, order]
    slack = 2.0 * (probe.slack(shuffled)["tokens"] + probe.slack(case)["tokens"][:, order])
    yield Claim(left, right, slack, f"views in the order {order}")


ENCODER_LAWS = (
    Law(
        *_PERMUTED,
        _image_views_may_be_permuted,
        lambda case: case.arrays["images"].shape[1] > 1,
        witness="encoder_views_before_batch",
    ),
)


def _centres_have_their_own_numbers(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(case)
    labels, centers = (found[name].astype(np.int64) for name in ("labels", "centers"))
    own = np.take_along_axis(labels, centers, axis=1)
    yield Claim(own.astype(float), np.broadcast_to(np.arange(own.shape[1], dtype=float), own.shape), 0.0)


def _tokens_may_be_reordered(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(case.arrays["x"].shape[1])
    found = probe(case)
    again = probe(case.having(x=case.arrays["x"][:, order].copy()))
    yield Claim(again["labels"].astype(float), found["labels"][:, order].astype(float), 0.0, "labels")
    back = order[again["centers"].astype(np.int64)]
    yield Claim(back.astype(float), found["centers"].astype(float), 0.0, "centres")


def _distinct(case: Case) -> bool:
    return "twins" not in case.label and case.options["k"] > 2 and case.dtype in ("float64", "float32")


CLUSTER_LAWS = (
    Law(
        "centres_have_their_own_numbers",
        "The centre of cluster m belongs to cluster m.",
        _centres_have_their_own_numbers,
        witness="clusters_centres_unforced",
    ),
    Law(
        "tokens_may_be_reordered",
        "Where no decision is close, reordering the tokens reorders labels and leaves the centres.",
        _tokens_may_be_reordered,
        _distinct,
        witness="clusters_centres_in_order",
    ),
)


def _one_silent_cluster_is_a_mean(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    plain = _silent(w)._replace(w_score=0.0 * w.w_score, b_score=0.0 * w.b_score)
    single = case.having(weights=plain, num_clusters=1)
    x, eps = case.arrays["x"], case.options.get("eps", 1e-5)
    centred = x - np.mean(x, axis=-1, keepdims=True)
    normed = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * w.norm1_w + w.norm1_b
    mean = np.sum(normed, axis=1, keepdims=True) / (x.shape[1] + 1e-6)
    yield Claim(_out(probe, single), mean, _slack(probe, single))


MERGER_LAWS = (
    Law(
        "one_silent_cluster_is_a_mean",
        "One cluster of equal scores, with attention and MLP that add nothing, is the mean of the normalised tokens.",
        _one_silent_cluster_is_a_mean,
        lambda case: case.arrays["x"].size > 0,
        witness="merger_raw_tokens_averaged",
    ),
)


def _one_cell_shows_the_kernel(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w, p = case.arrays["w"], case.options.get("padding", 1)
    x = np.zeros_like(case.arrays["x"][:1])
    x[0, 0, 0, 0, 0] = 1.0
    single = case.having(x=x)
    out = _out(probe, single)[0]
    sizes = [min(k - p, n) for k, n in zip(w.shape[2:], out.shape[1:], strict=True)]
    inside = (slice(None), *(slice(0, n) for n in sizes))
    expected = w[0][(slice(None), *(slice(p, p + n) for n in sizes))]
    yield Claim(out[inside], expected, _slack(probe, single)[0][inside[:3]])


def _nothing_is_lost(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x, w = case.arrays["x"], case.arrays["w"]
    whole = case.having(padding=0)
    sums = np.sum(_out(probe, whole), axis=(2, 3, 4))  # (B, O)
    expected = np.sum(x, axis=(2, 3, 4)) @ np.sum(w, axis=(2, 3, 4))
    slack = _slack(probe, whole)  # (B, O, h, w)
    length = x.shape[4] * w.shape[4]
    yield Claim(sums, expected, length**0.5 * np.sum(slack, axis=(1, 2, 3)))


SPREAD_LAWS = (
    Law(
        "one_cell_shows_the_kernel",
        "A grid with a single 1 in its first cell returns the kernel, less what the padding cuts off.",
        _one_cell_shows_the_kernel,
        lambda case: case.arrays["x"].shape[0] > 0,
        witness="spread_taps_reversed",
    ),
    Law(
        "nothing_is_lost",
        "Without padding, the sum of the output is the sum of the grid times the sum of the kernel.",
        _nothing_is_lost,
        lambda case: case.arrays["x"].shape[0] > 0,
        witness="spread_overwritten",
    ),
)


def _channels_stay_together(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x, r = case.arrays["x"], case.options["r"]
    numbers = np.arange(x.shape[1], dtype=float)
    folded = _out(probe, case.having(x=np.broadcast_to(numbers[:, None, None, None], x.shape).copy()))
    yield Claim(folded, np.broadcast_to(numbers.repeat(r**3), folded.shape), 0.0)


FOLD_LAWS = (
    Law(
        "channels_stay_together",
        "The r³ numbers of one channel stand side by side in a token.",
        _channels_stay_together,
        witness="fold_places_before_channels",
    ),
)


def _context_is_a_set(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    context = case.arrays["context"]
    order = rng.permutation(context.shape[1])
    shuffled = case.having(context=context[:, order].copy())
    yield Claim(_out(probe, shuffled), _out(probe, case), _slack(probe, case) + _slack(probe, shuffled))


QUERY_LAWS = (
    Law(
        "context_is_a_set",
        "Reordering the merged tokens changes nothing.",
        _context_is_a_set,
        witness="queries_context_cut_short",
    ),
)


def _sign_of_the_last_map(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    negated = case.having(weights=w._replace(w_out=-w.w_out))
    slack = _slack(probe, case) + _slack(probe, negated)
    yield Claim(_out(probe, case), 1.0 - _out(probe, negated), slack)


DECODER_LAWS = (
    Law(
        "the_last_map_decides_the_side",
        "Negating the last map turns every probability p into 1 − p.",
        _sign_of_the_last_map,
        witness="decoder_negative_cut_off",
    ),
)


def _pairs_may_be_exchanged(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    pred, target = case.arrays["pred"], case.arrays["target"]
    exchanged = case.having(pred=target, target=pred)
    left, right = (np.atleast_1d(_out(probe, c)) for c in (case, exchanged))
    yield Claim(left, right, 2.0 * np.max(_slack(probe, case)) + 2.0 * np.max(_slack(probe, exchanged)))


def _samples_stand_alone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    pred, target = case.arrays["pred"], case.arrays["target"]
    each = case.having(reduction="none")
    first = each.having(pred=pred[:1].copy(), target=target[:1].copy())
    slack = 2.0 * np.max(_slack(probe, each)) + 2.0 * np.max(_slack(probe, first))
    yield Claim(_out(probe, each)[:1], _out(probe, first), slack)


DICE_LAWS = (
    Law(
        "pairs_may_be_exchanged",
        "Exchanging prediction and truth changes nothing.",
        _pairs_may_be_exchanged,
        lambda case: len(case.arrays["pred"]) > 0,
        witness="dice_prediction_not_squared",
    ),
    Law(
        "samples_stand_alone",
        "What a sample loses does not depend on the other samples of the batch.",
        _samples_stand_alone,
        lambda case: len(case.arrays["pred"]) > 1,
        witness="dice_batch_is_one_sample",
    ),
)
