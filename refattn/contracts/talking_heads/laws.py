"""What holds between results about channels, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law, agree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "BASIS_LAWS",
    "COMPONENT_LAWS",
    "COMPOSITION_LAWS",
    "INHIBITION_LAWS",
    "OUTLIER_LAWS",
    "REMOVAL_LAWS",
    "SCALING_LAWS",
]

_READERS, _HEADS = ("W_Q", "W_K", "W_V"), ("W_Q", "W_K", "W_V", "W_O")


def _flat(x: Any) -> np.ndarray:
    """Return one row of all entries."""
    return np.asarray(x, float).reshape(1, -1)


def _total(slack: Any) -> Any:
    """Return what the errors of all rows may be together."""
    return np.linalg.norm(np.atleast_1d(slack))


def _within_unit_interval(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out = probe(case)["out"]
    yield Claim(np.clip(out, 0.0, 1.0), out, probe.slack(case)["out"])


def _sizes_do_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    scaled = {name: case.arrays[name] * 2.0 ** int(rng.integers(1, 3)) for name in _HEADS}
    yield agree(probe, case, case.having(**scaled))


def _coordinates_of_heads_are_free(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    """Change the e coordinates by a permutation times powers of two, which is exact, and so is the inverse."""
    e = case.arrays["W_Q"].shape[-1]
    change = np.eye(e)[rng.permutation(e)] * 2.0 ** rng.integers(-1, 2, e)
    back = np.linalg.inv(change)
    a = case.arrays
    moved = {"W_V": a["W_V"] @ change, "W_Q": a["W_Q"] @ change, "W_K": a["W_K"] @ back.T, "W_O": a["W_O"]}
    if a["W_V"].shape[1] <= a["W_O"].shape[1]:
        moved["W_O"] = back @ a["W_O"]
    yield agree(probe, case, case.having(**moved))


def _coordinates_of_the_stream_are_free(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    """Turn all that reads and writes alike, by a permutation with signs, which is exact."""
    d = case.arrays["W_Q"].shape[2]
    turn = np.eye(d)[rng.permutation(d)] * rng.choice([-1.0, 1.0], d)
    turned = {name: turn @ case.arrays[name] for name in _READERS} | {"W_O": case.arrays["W_O"] @ turn.T}
    yield agree(probe, case, case.having(**turned))


def _only_later_layers_listen(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out = probe(case)["out"]
    layers = out.shape[0]
    writer = np.arange(layers).reshape(-1, *[1] * (out.ndim - 1))
    reader = np.arange(layers).reshape(-1, 1)
    yield Claim(np.where(writer >= reader, out, 0.0), np.zeros_like(out))


def _distance_is_no_matter(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Put a copy of the last layer behind it: the first layer speaks to both alike."""
    longer = case.having(**{name: np.concatenate([w, w[-1:]]) for name, w in case.arrays.items()})
    out = probe(longer)["out"]
    slack = np.linalg.norm(probe.slack(longer)["out"], axis=-1)
    yield Claim(out[0, :, -1], out[0, :, -2], slack[0])


def _keys_are_queries_turned_round(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = {"W_Q": case.arrays["W_K"], "W_K": case.arrays["W_Q"]}
    yield agree(probe, case, case.having(mode="Q", **turned))


def _one_dimension_is_a_cosine(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """With one dimension a head, the score is the cosine between what is written and what is read."""
    narrow = case.having(**{name: case.arrays[name][..., :1] for name in _READERS}, W_O=case.arrays["W_O"][..., :1, :])
    out, arrays, mode = probe(narrow)["out"], narrow.arrays, case.options.get("mode", "Q")
    written, read = arrays["W_O"][:, :, 0], arrays[f"W_{mode}"][..., 0]  # (L, H, d)
    read = np.repeat(read, written.shape[1] // read.shape[1], axis=1)
    size = np.linalg.norm(written, axis=-1)[..., None, None] * np.linalg.norm(read, axis=-1)
    cosine = np.abs(np.einsum("lhd,mgd->lhmg", written, read)) / np.where(size > 0, size, 1.0)
    later = np.arange(len(written)).reshape(-1, 1, 1, 1) < np.arange(len(written)).reshape(-1, 1)
    speaks = later & _sounding(arrays)
    yield Claim(out, np.where(speaks, cosine, 0.0), probe.slack(narrow)["out"])


def _sounding(arrays: Any) -> np.ndarray:
    """Return which pairs (L, H, L, H) have no weight of zeros."""
    heads = arrays["W_O"].shape[1]
    full = {name: np.repeat(np.abs(w).max((-2, -1)) > 0, heads // w.shape[1], axis=1) for name, w in arrays.items()}
    return np.asarray((full["W_V"] & full["W_O"])[..., None, None] & full["W_Q"] & full["W_K"])


def _groups_are_heads_repeated(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    times = case.arrays["W_Q"].shape[1] // case.arrays["W_K"].shape[1]
    yield agree(
        probe, case, case.having(**{name: np.repeat(case.arrays[name], times, axis=1) for name in ("W_K", "W_V")})
    )


def _has_pairs(case: Case) -> bool:
    return bool(case.arrays["W_Q"].shape[0] > 1)


def _all_heads_apart(case: Case) -> bool:
    return _has_pairs(case) and bool(case.arrays["W_K"].shape[1] == case.arrays["W_Q"].shape[1])


COMPOSITION_LAWS = (
    Law(
        "within_unit_interval",
        "Scores lie between 0 and 1.",
        _within_unit_interval,
        _has_pairs,
        witness="only_the_earlier_head",
    ),
    Law(
        "sizes_do_not_matter",
        "Multiplying any weight by a number other than 0 changes nothing.",
        _sizes_do_not_matter,
        _has_pairs,
        witness="only_the_earlier_head",
    ),
    Law(
        "coordinates_of_heads_are_free",
        "Only the products of a head's weights count, not the coordinates inside of it.",
        _coordinates_of_heads_are_free,
        _all_heads_apart,
        witness="sizes_of_the_factors",
    ),
    Law(
        "coordinates_of_the_stream_are_free",
        "Turning the coordinates of the stream for all heads alike changes nothing.",
        _coordinates_of_the_stream_are_free,
        _has_pairs,
        witness="mean_taken_out_of_the_stream",
    ),
    Law(
        "only_later_layers_listen",
        "Heads of a head's own layer and of earlier ones have score 0.",
        _only_later_layers_listen,
        witness="within_a_layer_too",
    ),
    Law(
        "distance_is_no_matter",
        "A copy of a layer further up hears the same.",
        _distance_is_no_matter,
        lambda case: _has_pairs(case) and case.options.get("mode", "Q") == "Q",
        witness="next_layer_only",
    ),
    Law(
        "keys_are_queries_turned_round",
        "Keys read what queries would read if W_Q and W_K were exchanged.",
        _keys_are_queries_turned_round,
        lambda case: _all_heads_apart(case) and case.options.get("mode", "Q") == "K",
        witness="keys_read_like_queries",
    ),
    Law(
        "one_dimension_is_a_cosine",
        "Between heads of one dimension the score is the cosine of what is written and what is read.",
        _one_dimension_is_a_cosine,
        _has_pairs,
        witness="moved_backwards",
    ),
    Law(
        "groups_are_heads_repeated",
        "Shared keys and values are those of neighbouring heads.",
        _groups_are_heads_repeated,
        lambda case: case.arrays["W_Q"].shape[1] > case.arrays["W_K"].shape[1] > 1,
        witness="groups_in_turn",
    ),
)


def _head_is_the_mean_of_its_components(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Compare score² with Σ s² Q² / Σ s², the sizes s taken from the weights."""
    whole = Case("composition_scores", case.arrays, case.options, case.dtype, case.label)
    score, parts = probe(whole)["out"], probe(case)["out"]
    s = _strengths(case)
    share = s**2 / np.maximum(np.sum(s**2, axis=-1, keepdims=True), 1e-300)  # (L, H, e)
    mean = np.einsum("lhi,lhimg->lhmg", share, parts**2)
    own, each = probe.slack(whole)["out"], probe.slack(case)["out"]  # (L, H, L), (L, H, e, L)
    slack = (2 + own) * own + np.einsum("lhi,lhim->lhm", share, (2 + each) * each)
    yield Claim(score**2, mean, slack)


def _strengths(case: Case) -> np.ndarray:
    W_V, W_O = case.arrays["W_V"], case.arrays["W_O"]
    OV = np.repeat(W_V, W_O.shape[1] // W_V.shape[1], axis=1) @ W_O
    return np.asarray(np.linalg.svd(OV, compute_uv=False)[..., : W_O.shape[2]])


def _all_directions_hear_all(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Add the squares of all components of heads as wide as the model: together they are whole."""
    out, slack = probe(case)["out"], probe.slack(case)["out"]
    L = len(out)
    later = np.arange(L).reshape(-1, 1, 1, 1) < np.arange(L).reshape(-1, 1)
    heard = np.sum(out**2, axis=2)
    yield Claim(heard, np.broadcast_to(later, heard.shape).astype(float), np.sum((2 + slack) * slack, axis=2))


def _full_width(case: Case) -> bool:
    d, e = case.arrays["W_Q"].shape[2:]
    sounding = _strengths(case)
    return bool(d == e and np.all(sounding[..., -1:] > 1e-6 * sounding[..., :1])) and not case.label.startswith(
        "silent"
    )


COMPONENT_LAWS = (
    Law(
        "head_is_the_mean_of_its_components",
        "The squared score of a head is the mean of those of its components, weighted by their squared sizes.",
        _head_is_the_mean_of_its_components,
        _has_pairs,
        needs=("composition_scores",),
        witness="component_weighted_by_its_size",
    ),
    Law(
        "all_directions_hear_all",
        "The squared scores of all components of a head as wide as the model add up to 1.",
        _all_directions_hear_all,
        _full_width,
        witness="component_share_of_the_largest",
    ),
    Law(
        "component_sizes_do_not_matter",
        "Multiplying any weight by a number other than 0 changes nothing.",
        _sizes_do_not_matter,
        _has_pairs,
        witness="component_heard_at_all",
    ),
    Law(
        "component_coordinates_of_heads_are_free",
        "Only the products of a head's weights count, not the coordinates inside of it.",
        _coordinates_of_heads_are_free,
        _all_heads_apart,
        witness="component_rows_of_the_output_weights",
    ),
    Law(
        "component_only_later_layers_listen",
        "Heads of a head's own layer and of earlier ones have score 0.",
        _only_later_layers_listen,
        witness="component_within_a_layer_too",
    ),
)


def _orthonormal(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    basis, slack = probe(case)["out"], _total(probe.slack(case)["out"])
    gram = basis.T @ basis
    yield Claim(_flat(gram), _flat(np.eye(len(gram))), (2 * np.linalg.norm(basis) + slack) * slack)


def _spans_the_directions(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    basis, rows = probe(case)["out"], case.arrays["directions"]
    slack = _total(probe.slack(case)["out"])
    size = np.linalg.norm(rows, axis=-1)
    yield Claim(rows @ basis @ basis.T, rows, size * (2 * np.linalg.norm(basis) + slack) * slack)


def _first_along_the_first(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    first = case.arrays["directions"][0]
    slack = _total(probe.slack(case)["out"])
    yield Claim(probe(case)["out"][:, 0], first / np.linalg.norm(first), slack)


def _lengths_do_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    factors = 2.0 ** rng.integers(-2, 3, (len(case.arrays["directions"]), 1))
    yield agree(probe, case, case.having(directions=case.arrays["directions"] * factors))


def _each_adds_a_column(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    fewer = case.having(directions=case.arrays["directions"][:-1])
    slack = _total(probe.slack(case)["out"]) + _total(probe.slack(fewer)["out"])
    yield Claim(_flat(probe(case)["out"][:, :-1]), _flat(probe(fewer)["out"]), slack)


BASIS_LAWS = (
    Law("orthonormal", "The columns are orthonormal.", _orthonormal, witness="basis_nothing_taken_off"),
    Law(
        "spans_the_directions",
        "Projected on the basis every direction is itself.",
        _spans_the_directions,
        witness="basis_largest_entry_one",
    ),
    Law(
        "first_along_the_first",
        "The first column points along the first direction.",
        _first_along_the_first,
        witness="basis_mirrored",
    ),
    Law(
        "lengths_do_not_matter",
        "The lengths of the directions do not matter.",
        _lengths_do_not_matter,
        witness="basis_length_kept",
    ),
    Law(
        "each_adds_a_column",
        "A further direction adds a column and leaves the others.",
        _each_adds_a_column,
        lambda case: len(case.arrays["directions"]) > 1,
        witness="basis_last_direction_first",
    ),
)


def _nothing_is_written_along(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows = case.arrays["directions"]
    slack = probe.slack(case)["out"] * np.linalg.norm(rows)
    yield Claim(probe(case)["out"] @ rows.T, np.zeros((len(case.arrays["W_O"]), len(rows))), slack)


def _across_all_stays(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows, W_O = case.arrays["directions"], case.arrays["W_O"]
    across = np.eye(rows.shape[1]) - np.linalg.pinv(rows) @ rows
    yield Claim(probe(case)["out"] @ across, W_O @ across, probe.slack(case)["out"])


def _removed_once_is_removed(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    once = probe(case)["out"]
    again = case.having(W_O=once)
    yield Claim(probe(again)["out"], once, 2 * probe.slack(case)["out"] + probe.slack(again)["out"])


def _one_after_the_other(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Mix the directions among each other: their span, and so the result, stays."""
    rows = case.arrays["directions"]
    mixed = case.having(directions=np.concatenate([rows[1:], rows[:1]]) * 2.0)
    yield agree(probe, case, mixed)


def _any_directions(case: Case) -> bool:
    return len(case.arrays["directions"]) > 0


REMOVAL_LAWS = (
    Law(
        "nothing_is_written_along",
        "Along the directions nothing is written any more.",
        _nothing_is_written_along,
        _any_directions,
        witness="removal_each_normed_alone",
    ),
    Law(
        "across_all_stays",
        "What is written across the directions stays as it was.",
        _across_all_stays,
        witness="removal_only_the_channel",
    ),
    Law(
        "removed_once_is_removed",
        "Removing again changes nothing.",
        _removed_once_is_removed,
        _any_directions,
        witness="removal_mirrored_at_the_channel",
    ),
    Law(
        "only_the_span_counts",
        "Order and lengths of the directions do not matter.",
        _one_after_the_other,
        lambda case: len(case.arrays["directions"]) > 1,
        witness="removal_sum_of_outer_products",
    ),
)


def _ones_change_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    ones = case.having(factors=np.ones_like(case.arrays["factors"]))
    yield Claim(probe(ones)["out"], case.arrays["W_O"], probe.slack(ones)["out"])


def _zeros_remove(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    zeros = case.having(factors=np.zeros_like(case.arrays["factors"]))
    removed = Case(
        "remove_components",
        {name: case.arrays[name] for name in ("W_O", "directions")},
        dtype=case.dtype,
        label=case.label,
    )
    slack = probe.slack(zeros)["out"] + probe.slack(removed)["out"]
    yield Claim(probe(zeros)["out"], probe(removed)["out"], slack)


def _each_direction_has_its_factor(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows, factors = case.arrays["directions"], case.arrays["factors"]
    before = case.arrays["W_O"] @ rows.T  # (e, k)
    slack = probe.slack(case)["out"] * np.linalg.norm(rows)
    yield Claim(probe(case)["out"] @ rows.T, before * factors, slack)


def _factors_multiply(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = case.having(W_O=probe(case)["out"])
    squared = case.having(factors=case.arrays["factors"] ** 2)
    largest = np.abs(case.arrays["factors"]).max(initial=1.0)
    slack = probe.slack(twice)["out"] + largest * probe.slack(case)["out"] + probe.slack(squared)["out"]
    yield Claim(probe(twice)["out"], probe(squared)["out"], slack)


SCALING_LAWS = (
    Law(
        "ones_change_nothing",
        "Factors of 1 change nothing.",
        _ones_change_nothing,
        witness="scaling_added_factor",
    ),
    Law(
        "zeros_remove",
        "Factors of 0 remove the components.",
        _zeros_remove,
        _any_directions,
        needs=("remove_components",),
        witness="scaling_turned_round",
    ),
    Law(
        "each_direction_has_its_factor",
        "Along each direction the head writes its factor times what it wrote.",
        _each_direction_has_its_factor,
        _any_directions,
        witness="scaling_one_factor_for_all",
    ),
    Law(
        "factors_multiply",
        "Scaling twice is scaling by the square.",
        _factors_multiply,
        _any_directions,
        witness="scaling_removed_at_most",
    ),
)


def _flags(probe: Probe, case: Case) -> np.ndarray:
    return _flat(probe(case)["out"])


def _place_of_zero_is_free(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    scores = np.round(case.arrays["scores"] * 8) / 8  # a shift by whole numbers is exact then
    plain, shifted = case.having(scores=scores), case.having(scores=scores + 2.0)
    yield Claim(_flags(probe, plain), _flags(probe, shifted), _total(probe.slack(plain)["out"]))


def _order_is_free(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    scores = case.arrays["scores"]
    order = rng.permutation(scores.size)
    mixed = case.having(scores=scores.ravel()[order].reshape(scores.shape))
    slack = _total(probe.slack(case)["out"]) + _total(probe.slack(mixed)["out"])
    yield Claim(_flags(probe, case)[:, order], _flags(probe, mixed), slack)


def _half_is_never_outlying(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    scores = case.arrays["scores"]
    low = case.having(scores=np.where(scores > np.median(scores), scores - 64.0, scores - 32.0))
    found, below = _flags(probe, low), _flat(low.arrays["scores"] <= np.median(low.arrays["scores"]))
    yield Claim(found * below, np.zeros_like(found), _total(probe.slack(low)["out"]))


def _louder_stays_outlying(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Make the loudest score sixteen times as far: nothing else may change, it must stand out."""
    scores = case.arrays["scores"].copy()
    loudest = np.unravel_index(int(np.argmax(scores)), scores.shape)
    scores[loudest] = np.median(scores) + 64.0 * (1.0 + np.ptp(scores))
    louder = case.having(scores=scores)
    yield Claim(
        np.array([probe(louder)["out"][loudest]], float), np.ones(1), _total(probe.slack(louder)["out"]), "loudest"
    )


def _has_scores(case: Case) -> bool:
    return bool(case.arrays["scores"].size > 4)


OUTLIER_LAWS = (
    Law(
        "place_of_zero_is_free",
        "Adding the same to all scores changes nothing.",
        _place_of_zero_is_free,
        _has_scores,
        witness="outlier_itself",
    ),
    Law("order_is_free", "The order of scores does not matter.", _order_is_free, witness="outlier_middle_of_rows"),
    Law(
        "half_is_never_outlying",
        "The lower half of the scores never stands out.",
        _half_is_never_outlying,
        _has_scores,
        witness="outlier_both_ways",
    ),
    Law(
        "loud_enough_is_outlying",
        "A score that lies far enough above all others stands out.",
        _louder_stays_outlying,
        _has_scores,
        witness="outlier_standard_deviation",
    ),
)


def _exchanging_names_turns_the_sign(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = case.having(io=case.arrays["s"], s=case.arrays["io"])
    slack = probe.slack(case)["out"] + probe.slack(turned)["out"]
    yield Claim(np.atleast_1d(probe(case)["out"]), -np.atleast_1d(probe(turned)["out"]), slack)


def _mean_of_single_prompts(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    n = len(case.arrays["pattern"])
    single = [case.having(**{name: x[i : i + 1] for name, x in case.arrays.items()}) for i in range(n)]
    mean = np.mean([probe(one)["out"] for one in single])
    slack = probe.slack(case)["out"] + np.mean([probe.slack(one)["out"] for one in single])
    yield Claim(np.atleast_1d(mean), np.atleast_1d(probe(case)["out"]), slack)


def _other_rows_are_not_read(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    pattern = case.arrays["pattern"]
    other = np.round(8 * rng.random(pattern.shape)) / 8
    for row, query in enumerate(case.arrays["end"]):
        other[row, query] = pattern[row, query]
    yield agree(probe, case, case.having(pattern=other))


def _attention_may_be_scaled(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    half = case.having(pattern=case.arrays["pattern"] / 2)
    slack = probe.slack(case)["out"] + 2 * probe.slack(half)["out"]
    yield Claim(np.atleast_1d(probe(case)["out"]), 2 * np.atleast_1d(probe(half)["out"]), slack)


INHIBITION_LAWS = (
    Law(
        "exchanging_names_turns_the_sign",
        "Exchanging indirect object and subject turns the sign.",
        _exchanging_names_turns_the_sign,
        witness="inhibition_object_only",
    ),
    Law(
        "mean_of_single_prompts",
        "The score of several prompts is the mean of their own.",
        _mean_of_single_prompts,
        witness="inhibition_sum_of_prompts",
    ),
    Law(
        "other_rows_are_not_read",
        "Only the last token's attention counts.",
        _other_rows_are_not_read,
        witness="inhibition_first_token_asked",
    ),
    Law(
        "attention_may_be_scaled",
        "Half the attention is half the score.",
        _attention_may_be_scaled,
        witness="inhibition_relative",
    ),
)
