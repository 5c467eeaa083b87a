"""What holds between results of CARVE, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.contracts.carve.plain import Steps, around, grown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "COLOR_LAWS",
    "CONTRAST_LAWS",
    "ENTROPY_LAWS",
    "FUSE_LAWS",
    "IMAGE_LAWS",
    "LABEL_LAWS",
    "MASK_LAWS",
    "RESIZE_LAWS",
    "TEXTURE_LAWS",
]


def _both(probe: Probe, left: Case, right: Case, factor: float = 1.0, what: str = "") -> Claim:
    """Claim that one call gives ``factor`` times what another one does."""
    slack = probe.slack(left)["out"] + factor * probe.slack(right)["out"]
    return Claim(probe(left)["out"], factor * probe(right)["out"], slack, what)


def _filled(case: Case) -> bool:
    return all(a.size > 0 for a in case.arrays.values())


def _heads_have_no_names(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"]
    twice = np.repeat(weights, 2, axis=1)[:, rng.permutation(2 * weights.shape[1])]
    yield _both(probe, case, case.having(weights=twice))


def _only_the_last_query_speaks(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"]
    yield _both(probe, case, case.having(weights=weights[:, :, -1:]))


def _slices_are_parts(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    start, stop = case.options["image_slice"]
    whole = case.having(image_slice=[0, case.arrays["weights"].shape[-1]])
    yield Claim(probe(case)["out"], probe(whole)["out"][..., start:stop], 2 * probe.slack(whole)["out"])


IMAGE_LAWS = (
    Law(
        "heads_have_no_names",
        "Every head twice, in any order, gives the same map.",
        _heads_have_no_names,
        _filled,
        witness="image_heads_summed",
    ),
    Law(
        "only_the_last_query_speaks",
        "Without the queries before the last one the map is the same.",
        _only_the_last_query_speaks,
        lambda case: _filled(case) and case.arrays["weights"].shape[2] > 1,
        witness="image_mean_over_queries",
    ),
    Law(
        "slices_are_parts",
        "The map of the image tokens is a part of the map of all tokens, with the same numbers.",
        _slices_are_parts,
        _filled,
        witness="image_renormalised",
    ),
)


def _the_objective_is_flat(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    a_task, a_general, lam = case.arrays["a_task"], case.arrays["a_general"], case.options.get("lam", 1e-8)
    x, slack = probe(case)["out"], probe.slack(case)["out"]
    # half of dJ/dx, divided by A_G > 0; one more rounding of the size of A_Q is ours
    largest = np.max(a_general + lam, axis=-1)
    yield Claim(x * (a_general + lam), a_task, largest * slack + 1e-15 * np.linalg.norm(a_task, axis=-1))


def _what_was_multiplied_comes_back(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    seen = case.arrays["a_general"]
    meaning = 2.0 ** rng.integers(-2, 3, size=seen.shape)  # powers of two: the product is exact
    clean = case.having(a_task=seen * meaning, lam=0.0)
    yield Claim(probe(clean)["out"], meaning, probe.slack(clean)["out"])


def _tokens_know_nothing_of_each_other(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    some = rng.permutation(case.arrays["a_task"].shape[-1])[1:]
    part = case.having(**{name: a[..., some] for name, a in case.arrays.items()})
    yield Claim(probe(part)["out"], probe(case)["out"][..., some], 2 * probe.slack(case)["out"])


def _the_task_is_a_factor(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _both(probe, case.having(a_task=4.0 * case.arrays["a_task"]), case, 4.0)


CONTRAST_LAWS = (
    Law(
        "the_objective_is_flat",
        "At the contrast the derivative of (x A_G − A_Q)² + λ x² A_G is zero: x (A_G + λ) = A_Q.",
        _the_objective_is_flat,
        _filled,
        witness="contrast_forgotten",
    ),
    Law(
        "what_was_multiplied_comes_back",
        "If the task multiplied what is seen, token by token, the contrast without λ is the multiplier.",
        _what_was_multiplied_comes_back,
        _filled,
        witness="contrast_difference",
    ),
    Law(
        "tokens_know_nothing_of_each_other",
        "A token left out, and the others in any order, have the same contrasts as before.",
        _tokens_know_nothing_of_each_other,
        lambda case: _filled(case) and case.arrays["a_task"].shape[-1] > 1,
        witness="contrast_each_its_share",
    ),
    Law(
        "the_task_is_a_factor",
        "Four times the attention for the task gives four times the contrast.",
        _the_task_is_a_factor,
        _filled,
        witness="contrast_upside_down",
    ),
)


def _one_case(case: Case, t: int, **changes: Any) -> Case:
    """Return the fusion of step ``t`` alone."""
    parts = {name: a[t : t + 1] for name, a in case.arrays.items()}
    return case.without("steps").having(**parts, **changes)


def _steps_of(case: Case) -> int:
    return int(min(len(case.arrays["task_maps"]), len(case.arrays["general_maps"])))


def _equal_steps_are_counted(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    one = _one_case(case, 0)
    S = _steps_of(case)
    same = one.having(**{name: np.repeat(a, S, axis=0) for name, a in one.arrays.items()})
    yield _both(probe, same, one, S * (S + 1) / 2)


def _layers_add_up(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    L = case.arrays["task_maps"].shape[1]
    alone = [case.having(layers=[l]) for l in range(L)]
    whole = case.without("layers")
    total = sum(probe(one)["out"] for one in alone)
    slack = probe.slack(whole)["out"] + sum(probe.slack(one)["out"] for one in alone)
    yield Claim(probe(whole)["out"], np.asarray(total), slack)


def _surplus_is_cut(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    S = _steps_of(case)
    yield _both(probe, case, case.having(**{name: a[:S] for name, a in case.arrays.items()}))


def _equal_maps_are_level(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    general = case.arrays["general_maps"][: _steps_of(case)]
    level = case.having(task_maps=general, general_maps=general, lam=0.0)
    out = probe(level)["out"]
    yield Claim(out, np.full_like(out, out[0, 0]), 2 * probe.slack(level)["out"])


def _rows_and_columns_may_change_places(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows, columns = case.options["grid"]
    turned = {
        name: np.swapaxes(a.reshape(*a.shape[:2], rows, columns), -1, -2).reshape(a.shape)
        for name, a in case.arrays.items()
    }
    other = case.having(**turned, grid=[columns, rows], size=case.options["size"][::-1])
    out, slack = probe(other)["out"].T, probe.slack(other)["out"]
    yield Claim(probe(case)["out"], out, probe.slack(case)["out"] + np.linalg.norm(slack))


FUSE_LAWS = (
    Law(
        "equal_steps_are_counted",
        "S equal steps weigh S(S + 1)/2 times one.",
        _equal_steps_are_counted,
        lambda case: _steps_of(case) > 1 and case.options.get("layers") != [],
        witness="fuse_all_alike",
    ),
    Law(
        "layers_add_up",
        "The fusion of all layers is the sum of the fusions of each.",
        _layers_add_up,
        lambda case: case.arrays["task_maps"].shape[1] > 1,
        witness="fuse_layer_mean",
    ),
    Law(
        "surplus_is_cut",
        "Steps that only the longer run has do not count.",
        _surplus_is_cut,
        lambda case: len(case.arrays["task_maps"]) != len(case.arrays["general_maps"]),
        witness="fuse_paired_from_the_end",
    ),
    Law(
        "equal_maps_are_level",
        "If both runs look alike, the score map is the same everywhere.",
        _equal_maps_are_level,
        witness="fuse_as_they_are",
    ),
    Law(
        "rows_and_columns_may_change_places",
        "The transposed grid and size give the transposed score map.",
        _rows_and_columns_may_change_places,
        witness="fuse_column_by_column",
    ),
)


def _level_stays_level(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    level = case.having(image=np.ones_like(case.arrays["image"]))
    out = probe(level)["out"]
    yield Claim(out, np.ones_like(out), probe.slack(level)["out"])


def _the_same_size_is_no_change(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    same = case.having(size=list(case.arrays["image"].shape[:2]))
    yield Claim(probe(same)["out"], case.arrays["image"], probe.slack(same)["out"])


def _mirrors_stay_mirrors(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    image = case.arrays["image"]
    mirrored = case.having(image=np.ascontiguousarray(image[::-1, ::-1]))
    slack = probe.slack(case)["out"] + probe.slack(mirrored)["out"][(slice(None, None, -1),) * (image.ndim - 1)]
    out = probe(mirrored)["out"][::-1, ::-1]
    # a mirrored row of a map keeps its norm, whichever way it runs
    yield Claim(probe(case)["out"], out, slack)


def _nothing_is_skipped(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    image = np.zeros_like(case.arrays["image"])
    h, w = image.shape[:2]
    y, x = int(rng.integers(h)), int(rng.integers(w))
    image[y, x] = 1.0
    seen = case.having(image=image)
    out = probe(seen)["out"]
    lit = np.any(out > 0, axis=(0, 1)).astype(float)
    yield Claim(np.atleast_1d(lit), np.ones_like(np.atleast_1d(lit)), 0.0, f"pixel {y}, {x}")


RESIZE_LAWS = (
    Law(
        "level_stays_level",
        "An image of ones stays an image of ones.",
        _level_stays_level,
        witness="resize_as_they_are",
    ),
    Law(
        "the_same_size_is_no_change",
        "Resized to its own size an image stays as it is.",
        _the_same_size_is_no_change,
        witness="resize_wide_always",
    ),
    Law(
        "mirrors_stay_mirrors",
        "Resizing a mirrored image gives the mirrored result.",
        _mirrors_stay_mirrors,
        witness="resize_corner_of_the_pixel",
    ),
    Law(
        "nothing_is_skipped",
        "Every pixel of the image shows in the result, however small that is.",
        _nothing_is_skipped,
        witness="resize_two_taps",
    ),
)


def _touching_pixels_share_a_number(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    mask, labels = case.arrays["mask"], probe(case)["labels"].astype(float)
    for what, here, there in (
        ("beside one another", np.s_[:, :-1], np.s_[:, 1:]),
        ("above one another", np.s_[:-1], np.s_[1:]),
    ):
        touch = mask[here] & mask[there]
        yield Claim(labels[here] * touch, labels[there] * touch, 0.0, what)


def _numbers_come_in_order(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    labels = probe(case)["labels"].astype(float).ravel()
    highest = np.maximum.accumulate(np.concatenate([[0.0], labels]))
    steps = np.diff(highest)
    yield Claim(steps, np.clip(steps, 0.0, 1.0), 0.0, "a new region has the next number")
    yield Claim((labels > 0) * 1.0, 1.0 * case.arrays["mask"].ravel(), 0.0, "0 is the ground")


def _corners_do_not_connect(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    h, w = case.arrays["mask"].shape
    board = np.add.outer(np.arange(h), np.arange(w)) % 2 == 0
    labels = probe(case.having(mask=board))["labels"].astype(float)
    yield Claim(labels[board], np.arange(1.0, board.sum() + 1), 0.0)


LABEL_LAWS = (
    Law(
        "touching_pixels_share_a_number",
        "Pixels of the mask that touch along an edge have the same number.",
        _touching_pixels_share_a_number,
        witness="label_never_upwards",
    ),
    Law(
        "numbers_come_in_order",
        "Read row by row, each new region has the next number, from 1; outside the mask is 0.",
        _numbers_come_in_order,
        witness="label_by_columns",
    ),
    Law(
        "corners_do_not_connect",
        "On a chessboard every field of the mask is a region of its own.",
        _corners_do_not_connect,
        witness="label_diagonals_too",
    ),
)


def _scores_have_no_unit(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    small = case.having(score_map=case.arrays["score_map"] / 1024.0)
    yield Claim(1.0 * probe(small)["out"], 1.0 * probe(case)["out"], 0.0)


def _all_pass_if_all_may(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out = probe(case.having(top_p=1.0))["out"]
    yield Claim(1.0 * out, np.ones(out.shape), 0.0, "p = 1")
    level = np.ones_like(case.arrays["score_map"])
    out = probe(case.having(score_map=level))["out"]
    yield Claim(1.0 * out, np.ones(out.shape), 0.0, "a constant map")


def _regions_are_counted(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    K = case.options.get("max_regions", 3)
    less, more = (probe(case.having(max_regions=k, count_rule="paper"))["out"].astype(bool) for k in (K, K + 1))
    yield Claim(1.0 * (less & more), 1.0 * less, 0.0, "what was kept stays")
    n = np.array([float(len(grown(Steps(), less, around)))])
    yield Claim(n, np.minimum(n, K), 0.0, "at most K regions")


def _the_best_region_beats_the_rest(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    scores = case.arrays["score_map"]
    best = probe(case.having(max_regions=1, count_rule="paper", strategy="attention_sum"))["out"].astype(bool)
    full = probe(case.having(max_regions=scores.size, count_rule="paper", strategy="attention_sum"))["out"].astype(bool)
    areas = case.having(max_regions=1, count_rule="paper", strategy="size")
    largest = probe(areas)["out"].astype(bool)
    totals = np.array([scores[best].sum(), scores[largest & full].sum()])
    yield Claim(totals.max(keepdims=True), totals[:1], 0.0, "it has no smaller sum than the largest region")


def _small_parts_go_first(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    level = case.having(score_map=np.ones_like(case.arrays["score_map"]), strategy="remove_small")
    out = 1.0 * probe(level.having(outlier_percent=100.0))["out"]
    yield Claim(out, np.ones(out.shape), 0.0, "one region is all there is")
    every = case.having(strategy="remove_small", outlier_percent=0.0)
    scores = case.arrays["score_map"]
    all_kept = case.having(strategy="attention_sum", max_regions=scores.size, count_rule="paper")
    yield Claim(1.0 * probe(every)["out"], 1.0 * probe(all_kept)["out"], 0.0, "nothing is too small for 0 percent")
    some = 1.0 * probe(case.having(strategy="remove_small", outlier_percent=100.0))["out"]
    whole = 1.0 * probe(every)["out"]
    yield Claim(some, whole * np.any(some), 0.0, "100 percent: a region that is all, or nothing")


MASK_LAWS = (
    Law(
        "scores_have_no_unit",
        "Dividing all scores by 1024 changes nothing.",
        _scores_have_no_unit,
        witness="mask_tau_of_the_appendix",
    ),
    Law(
        "all_pass_if_all_may",
        "With p = 1, and on a constant map, the mask is the whole image.",
        _all_pass_if_all_may,
        witness="mask_strictly",
    ),
    Law(
        "regions_are_counted",
        "By the paper's rule at most K regions stay, and one more leaves those that are kept.",
        _regions_are_counted,
        lambda case: case.options.get("strategy", "attention_sum") != "remove_small",
        witness="mask_diagonals_too",
    ),
    Law(
        "the_best_region_beats_the_rest",
        "The one region kept by sum has at least the sum of the one kept by size.",
        _the_best_region_beats_the_rest,
        witness="mask_smallest_first",
    ),
    Law(
        "small_parts_go_first",
        "Nothing is too small for 0 percent; for 100 percent a region stays only if it is all there is.",
        _small_parts_go_first,
        witness="mask_larger_only",
    ),
)


def _shares_have_no_unit(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    whole = case.without("normalize")
    yield _both(probe, whole, whole.having(a=4.0 * whole.arrays["a"]))


def _even_attention_is_the_most(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    even = case.without("normalize").having(a=np.ones_like(case.arrays["a"]))
    out = probe(even)["out"]
    yield Claim(out[:, None], np.full((len(out), 1), np.log(case.arrays["a"].shape[-1])), _each(probe, even))


def _zeros_add_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    longer = case.having(a=np.concatenate([case.arrays["a"], np.zeros_like(case.arrays["a"])], axis=-1))
    left, right = probe(case)["out"], probe(longer)["out"]
    yield Claim(left[:, None], right[:, None], _each(probe, case) + _each(probe, longer))


def _each(probe: Probe, case: Case) -> Any:
    """Return the slack of a vector of results as that of each of them."""
    return probe.slack(case)["out"] + 1e-15


ENTROPY_LAWS = (
    Law(
        "shares_have_no_unit",
        "Four times the attention has the same entropy, once normalised.",
        _shares_have_no_unit,
        _filled,
        witness="entropy_unnormalised",
    ),
    Law(
        "even_attention_is_the_most",
        "Even attention to N tokens has the entropy ln N.",
        _even_attention_is_the_most,
        _filled,
        witness="entropy_in_bits",
    ),
    Law(
        "zeros_add_nothing",
        "Tokens that get nothing do not change the entropy.",
        _zeros_add_nothing,
        _filled,
        witness="entropy_plain_mean",
    ),
)


def _pictures_may_lie_on_their_side(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    image = case.arrays["image"]
    yield _both(probe, case, case.having(image=np.ascontiguousarray(np.swapaxes(image, 0, 1))))


def _a_level_picture_has_no_edge(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    level = case.having(image=np.full_like(case.arrays["image"], 0.75))
    out = probe(level)["out"]
    yield Claim(np.atleast_1d(out), np.zeros(1), 0.0)


def _faint_pictures_have_no_edges(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    # a step of 1/8, smoothed, has a slope of 0.525/8; two slopes at right angles make 0.093 at most, below 0.1
    image = case.arrays["image"]
    faint = case.having(image=np.where(image > image.mean(), 0.125, 0.0))
    yield Claim(np.atleast_1d(probe(faint)["out"]), np.zeros(1), 0.0)


TEXTURE_LAWS = (
    Law(
        "pictures_may_lie_on_their_side",
        "The transposed picture has as many edge pixels.",
        _pictures_may_lie_on_their_side,
        witness="texture_only_across",
    ),
    Law(
        "a_level_picture_has_no_edge",
        "A picture of one grey has no edge, not even at its border.",
        _a_level_picture_has_no_edge,
        witness="texture_dark_beyond",
    ),
    Law(
        "faint_pictures_have_no_edges",
        "Where no two pixels differ by more than 1/8 there is no edge.",
        _faint_pictures_have_no_edges,
        witness="texture_unscaled",
    ),
)


def _hues_may_turn(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    image = case.arrays["image"]
    yield _both(probe, case, case.having(image=np.ascontiguousarray(np.roll(image, 1, axis=-1))))


def _dim_light_changes_no_hue(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _both(probe, case, case.having(image=case.arrays["image"] / 4.0))


def _one_colour_is_none(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    image = case.arrays["image"]
    one = case.having(image=np.broadcast_to(image[:1, :1], image.shape).copy())
    yield Claim(np.atleast_1d(probe(one)["out"]), np.zeros(1), np.atleast_1d(probe.slack(one)["out"])[0], "one colour")
    every = case.having(image=_wheel())
    out = np.atleast_1d(probe(every)["out"])
    yield Claim(out, np.ones(1), np.atleast_1d(probe.slack(every)["out"])[0], "every hue once")


def _wheel() -> np.ndarray:
    """Return one pixel of each of the 180 hues, each number a multiple of 1/64."""
    # 30 hues in each sixth of the circle: (k + 0.5)/30 as near as 64ths can be
    rise = np.round(64 * (np.arange(30) + 0.5) / 30) / 64
    one, zero = np.ones(30), np.zeros(30)
    fall = 1.0 - rise
    first = [(one, rise, zero), (fall, one, zero), (zero, one, rise)]
    sixths = [*first, (zero, fall, one), (rise, zero, one), (one, zero, fall)]
    return np.concatenate([np.stack(sixth, axis=-1) for sixth in sixths])[None]


COLOR_LAWS = (
    Law(
        "hues_may_turn",
        "Exchanging red, green and blue in a circle turns every hue by 120 degrees, and leaves their variety.",
        _hues_may_turn,
        witness="color_mirrored_hue",
    ),
    Law(
        "dim_light_changes_no_hue",
        "A quarter of the light leaves every hue.",
        _dim_light_changes_no_hue,
        witness="color_hue_without_spread",
    ),
    Law(
        "from_one_colour_to_all",
        "One colour has no variety; every hue once has all of it, 1.",
        _one_colour_is_none,
        witness="color_most_of_256",
    ),
)
