"""Mistakes that people make when they look for channels, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.talking_heads.plain import (
    composing,
    flagging,
    inhibiting,
    removing,
    resolving,
    scaling,
    size,
    spanning,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = [
    "BASIS_BUGS",
    "COMPONENT_BUGS",
    "COMPOSITION_BUGS",
    "INHIBITION_BUGS",
    "OUTLIER_BUGS",
    "REMOVAL_BUGS",
    "SCALING_BUGS",
]


def groups_in_turn(h: int, _heads: int, groups: int) -> int:
    """Return which of the shared keys and values a head has."""
    return h % groups


def moved_backwards(W_V: np.ndarray, W_O: np.ndarray) -> np.ndarray:
    """Return what the earlier head moves."""
    return np.asarray(W_O.T @ W_V.T)


def output_weights_only(W_V: np.ndarray, W_O: np.ndarray) -> np.ndarray:
    """Return what the earlier head moves."""
    return np.asarray(np.linalg.qr(W_V)[0] @ W_O)


def keys_read_like_queries(W_Q: np.ndarray, W_K: np.ndarray, W_V: np.ndarray, W_O: np.ndarray, mode: str) -> np.ndarray:
    """Return what the later head does with what it reads."""
    return np.asarray(W_V @ W_O if mode == "V" else W_Q @ W_K.T)


def queries_read_like_keys(W_Q: np.ndarray, W_K: np.ndarray, W_V: np.ndarray, W_O: np.ndarray, mode: str) -> np.ndarray:
    """Return what the later head does with what it reads."""
    return np.asarray(W_V @ W_O if mode == "V" else W_K @ W_Q.T)


def values_read_where_written(
    W_Q: np.ndarray, W_K: np.ndarray, W_V: np.ndarray, W_O: np.ndarray, mode: str
) -> np.ndarray:
    """Return what the later head does with what it reads."""
    return np.asarray({"Q": W_Q @ W_K.T, "K": W_K @ W_Q.T, "V": W_O.T @ W_V.T}[mode])


def half_of_the_circuit(W_Q: np.ndarray, W_K: np.ndarray, W_V: np.ndarray, _W_O: np.ndarray, mode: str) -> np.ndarray:
    """Return what the later head does with what it reads."""
    return {"Q": W_Q, "K": W_K, "V": W_V}[mode]


def mean_taken_out_of_the_stream(OV: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Return what goes through both."""
    return np.asarray((OV - OV.mean(axis=1, keepdims=True)) @ M)


def later_before_earlier(OV: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Return what goes through both."""
    return np.asarray(M @ OV)


def largest_singular_value(matrix: np.ndarray) -> Any:
    """Return how large a matrix is."""
    return np.linalg.norm(matrix, 2)


def only_the_earlier_head(OV: np.ndarray, _M: np.ndarray, _W_V: np.ndarray, _W_O: np.ndarray) -> Any:
    """Return what the size of the product is divided by."""
    return size(OV)


def sizes_of_the_factors(_OV: np.ndarray, M: np.ndarray, W_V: np.ndarray, W_O: np.ndarray) -> Any:
    """Return what the size of the product is divided by."""
    return size(W_V) * size(W_O) * size(M)


def share_of_energy(product: Any, whole: Any) -> Any:
    """Return the score."""
    return (product / whole) ** 2 if whole > 0 else 0.0


def silence_is_not_a_number(product: Any, whole: Any) -> Any:
    """Return the score."""
    return product / whole if whole > 0 else np.nan


def within_a_layer_too(l: int, m: int) -> bool:
    """Whether a head of layer l can speak to one of layer m."""
    return l <= m


def next_layer_only(l: int, m: int) -> bool:
    """Whether a head of layer l can speak to one of layer m."""
    return m == l + 1


def _options(case: Case) -> tuple[int, int, int, str]:
    layers, heads = case.arrays["W_Q"].shape[:2]
    return layers, heads, case.arrays["W_K"].shape[1], case.options.get("mode", "Q")


def _silent(case: Case) -> bool:
    return case.label.startswith("silent")


def _read_by(*modes: str, least: int = 2) -> Callable[[Case], bool]:
    """Whether there is a pair of heads, read in one of the modes, in a stream of some width."""

    def applies(case: Case) -> bool:
        layers, _, _, mode = _options(case)
        return layers > 1 and mode in modes and case.arrays["W_Q"].shape[2] >= least

    return applies


def _shared(case: Case) -> bool:
    layers, heads, groups, mode = _options(case)
    return layers > 1 and 1 < groups < heads and mode in "KV"


_CHAIN = "Multiply OV of the earlier head by what the later head does: QK, QKᵀ or OV."
_SIZE = "Divide the Frobenius norm of the product by those of both matrices, products of weights themselves."
_LATER = "A head speaks to every later layer, and to none but these."
_pair, _wide = _read_by("Q", "K", "V", least=1), _read_by("Q", "K", "V")
# heads of which the largest singular value is not the only one
_broad = lambda case: _wide(case) and case.arrays["W_Q"].shape[3] > 1  # noqa: E731

COMPOSITION_BUGS = tuple(
    mistake.planted(composing)
    for mistake in (
        Mistake("group_of", groups_in_turn, "Groups are dealt in turn.", "Neighbouring heads share a group.", _shared),
        Mistake("moved", moved_backwards, "The earlier head's matrix is transposed.", _CHAIN, _wide),
        Mistake("read", keys_read_like_queries, "Keys are read like queries.", _CHAIN, _read_by("K")),
        Mistake("read", queries_read_like_keys, "Queries are read like keys.", _CHAIN, _read_by("Q")),
        Mistake("read", values_read_where_written, "The later OV is transposed.", _CHAIN, _read_by("V")),
        Mistake("read", half_of_the_circuit, "Only the reading half of the later head is taken.", _CHAIN, _broad),
        Mistake("through", later_before_earlier, "The later head comes first.", _CHAIN, _wide),
        Mistake(
            "through",
            mean_taken_out_of_the_stream,
            "The mean is taken out of what the head writes.",
            "Fold norms into weights before, or not at all; the score takes nothing out.",
            _wide,
        ),
        Mistake("size", largest_singular_value, "The spectral norm is taken.", _SIZE, _broad),
        Mistake("sizes", only_the_earlier_head, "The later head's size is not divided out.", _SIZE, _pair),
        Mistake("sizes", sizes_of_the_factors, "W_V and W_O are normed one by one.", _SIZE, _broad),
        Mistake("quotient", share_of_energy, "The square is returned.", _SIZE, _wide),
        Mistake("quotient", silence_is_not_a_number, "0/0 where a head is zero.", "A head of zeros scores 0.", _silent),
        Mistake("speaks", within_a_layer_too, "Heads of one layer are paired.", _LATER),
        Mistake(
            "speaks",
            next_layer_only,
            "Only neighbouring layers are paired.",
            _LATER,
            lambda case: _options(case)[0] > 2,
        ),
    )
)


def what_is_read(OV: np.ndarray, _W_O: np.ndarray, e: int) -> np.ndarray:
    """Return along what the components write, (e, d), the largest first."""
    return np.asarray(np.linalg.svd(OV)[0].T[:e])


def of_the_output_weights(_OV: np.ndarray, W_O: np.ndarray, e: int) -> np.ndarray:
    """Return along what the components write, (e, d), the largest first."""
    return np.asarray(np.linalg.svd(W_O)[2][:e])


def smallest_first(OV: np.ndarray, _W_O: np.ndarray, e: int) -> np.ndarray:
    """Return along what the components write, (e, d), the largest first."""
    return np.asarray(np.linalg.svd(OV)[2][:e][::-1])


def rows_of_the_output_weights(_OV: np.ndarray, W_O: np.ndarray, _e: int) -> np.ndarray:
    """Return along what the components write, (e, d), the largest first."""
    sizes = np.sqrt(np.sum(W_O * W_O, axis=1, keepdims=True))
    return np.asarray(W_O / np.where(sizes > 0, sizes, 1.0))


def weighted_by_its_size(direction: np.ndarray, M: np.ndarray, s: Any, strengths: np.ndarray) -> np.ndarray:
    """Return what the later head makes of a component."""
    return np.asarray(s / size(strengths) * direction @ M)


def heard_backwards(direction: np.ndarray, M: np.ndarray, _s: Any, _strengths: np.ndarray) -> np.ndarray:
    """Return what the later head makes of a component."""
    return np.asarray(M @ direction)


def share_of_the_largest(vector: np.ndarray, M: np.ndarray) -> Any:
    """Return the score of a component."""
    whole = np.linalg.norm(M, 2)
    return size(vector) / whole if whole > 0 else 0.0


def absolute_sum(vector: np.ndarray, M: np.ndarray) -> Any:
    """Return the score of a component."""
    whole = size(M)
    return np.sum(np.abs(vector)) / whole if whole > 0 else 0.0


def heard_at_all(vector: np.ndarray, _M: np.ndarray) -> Any:
    """Return the score of a component."""
    return size(vector)


_RESOLVE = "Take the right singular vectors of OV, the largest singular value first."
_ALONE = "The size of a component cancels: its score is ‖v M‖ / ‖M‖."

COMPONENT_BUGS = tuple(
    mistake.planted(resolving, "component_")
    for mistake in (
        Mistake("moved", moved_backwards, "OV is transposed.", _RESOLVE, _wide),
        Mistake("moved", output_weights_only, "The sizes of W_V are left out of OV.", _RESOLVE, _broad),
        Mistake("directions", what_is_read, "The read directions are taken.", _RESOLVE, _wide),
        Mistake("directions", of_the_output_weights, "W_O alone is taken apart.", _RESOLVE, _broad),
        Mistake("directions", smallest_first, "The smallest comes first.", _RESOLVE, _broad),
        Mistake("directions", rows_of_the_output_weights, "Rows of W_O are no components.", _RESOLVE, _broad),
        Mistake("read", keys_read_like_queries, "Keys are read like queries.", _CHAIN, _read_by("K")),
        Mistake("heard", heard_backwards, "The later head is read from its far end.", _CHAIN, _wide),
        Mistake("heard", weighted_by_its_size, "Scores are weighted by size.", _ALONE, _broad),
        Mistake("part", share_of_the_largest, "The spectral norm is divided out.", _ALONE, _broad),
        Mistake("part", absolute_sum, "Entries are added, not squares.", _ALONE, _wide),
        Mistake("part", heard_at_all, "The later head's size is not divided out.", _ALONE, _pair),
        Mistake("speaks", within_a_layer_too, "Heads of one layer are paired.", _LATER),
    )
)


def last_direction_first(rows: np.ndarray) -> np.ndarray:
    """Return the directions in the order in which they are taken."""
    return rows[::-1]


def only_the_last_taken_off(direction: np.ndarray, before: list[np.ndarray]) -> np.ndarray:
    """Return what of a direction those before it do not have."""
    return np.asarray(direction - (direction @ before[-1]) * before[-1] if before else direction)


def only_the_first_taken_off(direction: np.ndarray, before: list[np.ndarray]) -> np.ndarray:
    """Return what of a direction those before it do not have."""
    return np.asarray(direction - (direction @ before[0]) * before[0] if before else direction)


def nothing_taken_off(direction: np.ndarray, _before: list[np.ndarray]) -> np.ndarray:
    """Return what of a direction those before it do not have."""
    return direction


def mirrored(direction: np.ndarray) -> np.ndarray:
    """Return a direction of length one."""
    return np.asarray(-direction / size(direction))


def length_kept(direction: np.ndarray) -> np.ndarray:
    """Return a direction of length one."""
    return direction


def largest_entry_one(direction: np.ndarray) -> np.ndarray:
    """Return a direction of length one."""
    return np.asarray(direction / np.max(np.abs(direction)))


def _several(least: int) -> Callable[[Case], bool]:
    def applies(case: Case) -> bool:
        k, d = case.arrays["directions"].shape
        return bool(k >= least and d > 1)

    return applies


_ORTHONORMAL = "Take off what the directions before have, all of them, then bring the rest to length one."

BASIS_BUGS = tuple(
    mistake.planted(spanning, "basis_")
    for mistake in (
        Mistake("in_order", last_direction_first, "The last direction comes first.", _ORTHONORMAL, _several(2)),
        Mistake("rest", only_the_last_taken_off, "Only the one before is taken off.", _ORTHONORMAL, _several(3)),
        Mistake("rest", only_the_first_taken_off, "Only the first is taken off.", _ORTHONORMAL, _several(3)),
        Mistake("rest", nothing_taken_off, "Directions are only normed.", _ORTHONORMAL, _several(2)),
        Mistake("unit", mirrored, "The sign of QR is kept.", "The first column points along the first direction."),
        Mistake("unit", length_kept, "Lengths are kept.", _ORTHONORMAL),
        Mistake("unit", largest_entry_one, "The largest entry is one.", _ORTHONORMAL, _several(1)),
    )
)


def sum_of_outer_products(rows: np.ndarray) -> np.ndarray:
    """Return the projector on the span of the directions."""
    return np.asarray(rows.T @ rows)


def each_normed_alone(rows: np.ndarray) -> np.ndarray:
    """Return the projector on the span of the directions."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(units.T @ units)


def first_direction_only(rows: np.ndarray) -> np.ndarray:
    """Return the projector on the span of the directions."""
    v = rows[0] / size(rows[0])
    return np.outer(v, v)


def only_the_channel(W_O: np.ndarray, P: np.ndarray) -> np.ndarray:
    """Return the weights without what the projector keeps."""
    return np.asarray(W_O @ P)


def mirrored_at_the_channel(W_O: np.ndarray, P: np.ndarray) -> np.ndarray:
    """Return the weights without what the projector keeps."""
    return np.asarray(W_O - 2.0 * W_O @ P)


def entries_where_it_points(W_O: np.ndarray, P: np.ndarray) -> np.ndarray:
    """Return the weights without what the projector keeps."""
    return np.asarray(W_O * (1.0 - np.diagonal(P)))


_PROJECT = "Take W_O P off W_O, P being the orthogonal projector on the span of the directions."
_some = _several(1)

REMOVAL_BUGS = tuple(
    mistake.planted(removing, "removal_")
    for mistake in (
        Mistake("projector", sum_of_outer_products, "Directions are not normed.", _PROJECT, _some),
        Mistake("projector", each_normed_alone, "Directions are normed, and not orthogonal.", _PROJECT, _several(2)),
        Mistake("projector", first_direction_only, "Only the first is removed.", _PROJECT, _several(2)),
        Mistake("without", only_the_channel, "What was to be removed is kept.", _PROJECT, _some),
        Mistake("without", mirrored_at_the_channel, "It is removed twice.", _PROJECT, _some),
        Mistake("without", entries_where_it_points, "Coordinates are damped one by one.", _PROJECT, _some),
    )
)


def added_factor(factor: Any) -> Any:
    """Return by how much of a component the weights change."""
    return factor


def turned_round(factor: Any) -> Any:
    """Return by how much of a component the weights change."""
    return 1.0 - factor


def removed_at_most(factor: Any) -> Any:
    """Return by how much of a component the weights change."""
    return max(factor, 0.0) - 1.0


def one_factor_for_all(factors: np.ndarray, _i: int) -> Any:
    """Return the factor of a component."""
    return factors[0]


def along_and_across(W_O: np.ndarray, _v: np.ndarray) -> np.ndarray:
    """Return what the weights write along a direction."""
    return W_O


def size_without_sign(W_O: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return what the weights write along a direction."""
    return np.outer(np.abs(W_O @ v), v)


_GAIN = "A factor of 1 changes nothing: c − 1 of what is there is added."

SCALING_BUGS = tuple(
    mistake.planted(scaling, "scaling_")
    for mistake in (
        Mistake("gain", added_factor, "The factor itself is added.", _GAIN, _some),
        Mistake("gain", turned_round, "1 − c is added.", _GAIN, lambda case: bool(np.any(case.arrays["factors"] != 1))),
        Mistake(
            "gain",
            removed_at_most,
            "Negative factors count as zero.",
            _GAIN,
            lambda case: bool(np.any(case.arrays["factors"] < 0)),
        ),
        Mistake(
            "factor_of",
            one_factor_for_all,
            "All components get the first factor.",
            "Each direction has its own factor.",
            lambda case: len(set(case.arrays["factors"].tolist())) > 1,
        ),
        Mistake("component", along_and_across, "All of W_O is scaled.", "Only what lies along the direction.", _some),
        Mistake("component", size_without_sign, "Signs are lost.", "What is written along v is (W_O v) vᵀ.", _some),
    )
)


def mean_score(scores: np.ndarray) -> Any:
    """Return what scores are compared with."""
    return np.mean(scores)


def middle_of_rows(scores: np.ndarray) -> Any:
    """Return what scores are compared with."""
    return np.median(scores, axis=-1, keepdims=True)


def standard_deviation(scores: np.ndarray, _centre: Any) -> Any:
    """Return how far scores usually are from it."""
    return np.std(scores)


def spread_of_no_normal_law(scores: np.ndarray, centre: Any) -> Any:
    """Return how far scores usually are from it."""
    return np.median(np.abs(scores - centre))


def mean_distance(scores: np.ndarray, centre: Any) -> Any:
    """Return how far scores usually are from it."""
    return 1.4826 * np.mean(np.abs(scores - centre))


def both_ways(scores: np.ndarray, centre: Any) -> np.ndarray:
    """Return how far each score is from it."""
    return np.asarray(np.abs(scores - centre))


def itself(scores: np.ndarray, _centre: Any) -> np.ndarray:
    """Return how far each score is from it."""
    return scores


def none_among_equals(z: float, usual: Any) -> Any:
    """Return what a score must exceed."""
    return z * usual if usual > 0 else np.inf


def at_least(distance: np.ndarray, limit: Any) -> np.ndarray:
    """Whether a score is outlying."""
    return np.asarray(distance >= (0.0 if limit == 1e-9 else limit))


def _scores(case: Case) -> bool:
    return bool(case.arrays["scores"].size > 4)


def _spread_out(case: Case) -> bool:
    return _scores(case) and "equal" not in case.label


_ROBUST = "Compare with the median of all, in units of 1.4826 times the median distance from it."

OUTLIER_BUGS = tuple(
    mistake.planted(flagging, "outlier_")
    for mistake in (
        Mistake("middle", mean_score, "The mean is pulled up by what it should find.", _ROBUST, _spread_out),
        Mistake("middle", middle_of_rows, "Every row has a median of its own.", _ROBUST, _spread_out),
        Mistake("spread", standard_deviation, "One outlier hides behind its own deviation.", _ROBUST, _spread_out),
        Mistake("spread", mean_distance, "The mean distance is pulled up too.", _ROBUST, _spread_out),
        Mistake("spread", spread_of_no_normal_law, "1.4826 is left out.", _ROBUST, _spread_out),
        Mistake("above", both_ways, "Low scores count too.", "Only what lies above stands out.", _scores),
        Mistake("above", itself, "Scores are compared with 0.", _ROBUST, _scores),
        Mistake(
            "reach",
            none_among_equals,
            "Among equal scores nothing stands out.",
            "Where most scores are equal, whatever exceeds them is outlying.",
            lambda case: case.label.startswith("mostly_equal"),
        ),
        Mistake(
            "beyond",
            at_least,
            "The median itself is outlying where all are equal.",
            "A score must exceed the limit.",
            lambda case: "equal" in case.label,
        ),
    )
)


def first_coordinate_is_the_key(pattern: np.ndarray, query: int, key: int) -> Any:
    """Return how much a query attends to a key."""
    return pattern[key, query]


def first_token_asked(pattern: np.ndarray, _query: int, key: int) -> Any:
    """Return how much a query attends to a key."""
    return pattern[0, key]


def the_other_way(io: Any, s: Any) -> Any:
    """Return how much more the indirect object gets than the subject."""
    return s - io


def unsigned(io: Any, s: Any) -> Any:
    """Return how much more the indirect object gets than the subject."""
    return np.abs(io - s)


def relative(io: Any, s: Any) -> Any:
    """Return how much more the indirect object gets than the subject."""
    return (io - s) / (io + s)


def object_only(io: Any, _s: Any) -> Any:
    """Return how much more the indirect object gets than the subject."""
    return io


def first_prompt_only(values: np.ndarray) -> Any:
    """Return what all prompts together show."""
    return values[0]


def sum_of_prompts(values: np.ndarray) -> Any:
    """Return what all prompts together show."""
    return np.sum(values)


def _tokens(case: Case) -> bool:
    return bool(np.any(case.arrays["io"] != case.arrays["s"])) and case.arrays["pattern"].shape[1] > 2


def _prompts(case: Case) -> bool:
    return _tokens(case) and len(case.arrays["pattern"]) > 1


_CONTRAST = "Row of the last token, weight of the indirect object less that of the subject."

INHIBITION_BUGS = tuple(
    mistake.planted(inhibiting, "inhibition_")
    for mistake in (
        Mistake("weight", first_coordinate_is_the_key, "Queries and keys are exchanged.", _CONTRAST, _tokens),
        Mistake("weight", first_token_asked, "The first row is read.", _CONTRAST, _tokens),
        Mistake("contrast", the_other_way, "The sign is turned.", _CONTRAST, _tokens),
        Mistake("contrast", unsigned, "The sign is lost.", _CONTRAST, _prompts),
        Mistake("contrast", relative, "It is divided by what both get.", _CONTRAST, _tokens),
        Mistake("contrast", object_only, "The subject is forgotten.", _CONTRAST, _tokens),
        Mistake("over_prompts", first_prompt_only, "One prompt speaks for all.", "Average over prompts.", _prompts),
        Mistake("over_prompts", sum_of_prompts, "Prompts are added.", "Average over prompts.", _prompts),
    )
)
