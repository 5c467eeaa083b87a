"""Mistakes that people make when they look for sinks, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.secondary_sinks.plain import (
    aligning,
    comparing,
    cosine,
    living,
    measuring,
    scoring,
    searching,
    steering,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.conformance.contract import Case

__all__ = [
    "ALIGNMENT_BUGS",
    "COSINE_BUGS",
    "ENTROPY_BUGS",
    "LIVES_BUGS",
    "MEMBERSHIP_BUGS",
    "SCORE_BUGS",
    "STEERING_BUGS",
]


def index_in_the_list(norms: np.ndarray, candidates: Sequence[int]) -> int:
    """Return the primary sink."""
    del candidates
    return int(np.argmax(norms.mean(axis=0)))


def largest_on_any_layer(norms: np.ndarray, candidates: Sequence[int]) -> int:
    """Return the primary sink."""
    return int(candidates[int(np.argmax(norms.max(axis=0)))])


def always_the_first(norms: np.ndarray, candidates: Sequence[int]) -> int:
    """Return the primary sink."""
    del norms
    return int(candidates[0])


def begins_before_the_rise(norms: np.ndarray) -> int:
    """Return the layer where the window begins."""
    return int(np.argmax(np.diff(norms)))


def begins_at_any_jump(norms: np.ndarray) -> int:
    """Return the layer where the window begins."""
    return min(int(np.argmax(np.abs(np.diff(norms)))) + 1, len(norms) - 1)


def begins_at_the_peak(norms: np.ndarray) -> int:
    """Return the layer where the window begins."""
    return int(np.argmax(norms))


def ends_after_the_fall(norms: np.ndarray, start: int) -> int:
    """Return the layer before which the window ends."""
    return start + int(np.argmin(np.diff(norms[start:]))) + 2 if start + 1 < len(norms) else len(norms)


def falls_anywhere(norms: np.ndarray, start: int) -> int:
    """Return the layer before which the window ends."""
    return max(int(np.argmin(np.diff(norms))) + 1, start + 1)


def never_ends(norms: np.ndarray, start: int) -> int:
    """Return the layer before which the window ends."""
    del start
    return len(norms)


def compared_with_its_birth(hidden: np.ndarray, layer: int, b: int, start: int) -> Any:
    """Return what sinks of a layer are compared with."""
    del layer
    return hidden[start, b]


def compared_with_the_mean(hidden: np.ndarray, layer: int, b: int, start: int) -> Any:
    """Return what sinks of a layer are compared with."""
    del start
    return hidden[layer, b:].mean(axis=0)


def compared_with_the_first_token(hidden: np.ndarray, layer: int, b: int, start: int) -> Any:
    """Return what sinks of a layer are compared with."""
    del b, start
    return hidden[layer, 0]


def parallel_only(c: float, threshold: float) -> bool:
    """Say whether a cosine makes a sink."""
    return c > threshold


def constant_threshold(c: float, threshold: float) -> bool:
    """Say whether a cosine makes a sink."""
    del threshold
    return abs(c) > 0.9


def square_against_threshold(c: float, threshold: float) -> bool:
    """Say whether a cosine makes a sink."""
    return c**2 > threshold


def below_the_threshold(c: float, threshold: float) -> bool:
    """Say whether a cosine makes a sink."""
    return abs(c) < threshold


def deaf_to_the_first_channel(x: np.ndarray, y: np.ndarray) -> Any:
    """Return how well a vector x fits a vector y."""
    return cosine(x[1:], y[1:]) if len(x) > 1 else cosine(x, y)


def projection(x: np.ndarray, y: np.ndarray) -> Any:
    """Return how well a vector x fits a vector y."""
    return x @ y / max(np.linalg.norm(y), 1e-300)


def centred_cosine(x: np.ndarray, y: np.ndarray) -> Any:
    """Return how well a vector x fits a vector y."""
    return cosine(x - x.mean(), y - y.mean())


def squared_lengths(x: np.ndarray, y: np.ndarray) -> Any:
    """Return how well a vector x fits a vector y."""
    lengths = np.sum(x**2) * np.sum(y**2)
    return x @ y / lengths if lengths > 0 else 0.0


def zero_counts_as_parallel(x: np.ndarray, y: np.ndarray) -> Any:
    """Return how well a vector x fits a vector y."""
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    return x @ y / lengths if lengths > 0 else 1.0


def absolute_cosine(x: np.ndarray, y: np.ndarray) -> Any:
    """Return how well a vector x fits a vector y."""
    return abs(cosine(x, y))


def ratio_of_lengths(x: np.ndarray, y: np.ndarray) -> Any:
    """Return how well a vector x fits a vector y."""
    return x @ y / max(float(y @ y), 1e-300)


def everywhere(b: int, length: int) -> Any:
    """Return the positions that are tried."""
    return np.flatnonzero(np.arange(length) != b)


def last_left_out(b: int, length: int) -> Any:
    """Return the positions that are tried."""
    return np.arange(b + 1, length - 1)


def everywhere_on_record(window: np.ndarray) -> Any:
    """Return the layers on which the primary sink itself is noted."""
    return np.ones_like(window)


def not_on_record(window: np.ndarray) -> Any:
    """Return the layers on which the primary sink itself is noted."""
    return np.zeros_like(window)


def once_a_sink_always_a_sink(members: np.ndarray) -> Any:
    """Return the layers of each life."""
    return np.logical_or.accumulate(members, axis=0)


def only_the_first_stretch(members: np.ndarray) -> Any:
    """Return the layers of each life."""
    begun = np.logical_or.accumulate(members, axis=0)
    ended = np.logical_or.accumulate(begun & ~members, axis=0)
    return members & ~ended


def last_instead_of_first(layers: np.ndarray) -> int:
    """Return where a life begins."""
    return int(layers[-1]) if layers.size else -1


def counted_from_one(layers: np.ndarray) -> int:
    """Return where a life begins."""
    return int(layers[0]) + 1 if layers.size else -1


def counted_from_the_end(layers: np.ndarray) -> int:
    """Return where a life begins."""
    return -1 - int(layers[0]) if layers.size else -1


def from_first_to_last(layers: np.ndarray) -> int:
    """Return how long a life lasts."""
    return int(layers[-1] - layers[0]) + 1 if layers.size else 0


def longest_stretch(layers: np.ndarray) -> int:
    """Return how long a life lasts."""
    stretches = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    return max(len(stretch) for stretch in stretches)


def more_than_the_least(n: int, n_layers: int, bos_margin: int, min_lifetime: int) -> int:
    """Return 2 for a bos sink, 1 for a secondary one, 0 for noise."""
    if n == 0:
        return 0
    return 2 if n >= n_layers - bos_margin else int(n > min_lifetime)


def longer_than_the_margin(n: int, n_layers: int, bos_margin: int, min_lifetime: int) -> int:
    """Return 2 for a bos sink, 1 for a secondary one, 0 for noise."""
    if n == 0:
        return 0
    return 2 if n > n_layers - bos_margin else int(n >= min_lifetime)


def noise_first(n: int, n_layers: int, bos_margin: int, min_lifetime: int) -> int:
    """Return 2 for a bos sink, 1 for a secondary one, 0 for noise."""
    if n < min_lifetime or n == 0:
        return 0
    return 2 if n >= n_layers - bos_margin else 1


def nobody_is_noise_too(n: int, n_layers: int, bos_margin: int, min_lifetime: int) -> int:
    """Return 2 for a bos sink, 1 for a secondary one, 0 for noise."""
    if n >= n_layers - bos_margin:
        return 2
    return int(n >= min_lifetime)


def given_instead_of_received(pattern: np.ndarray, s: int) -> Any:
    """Return the weights over which the score of s is taken."""
    return pattern[..., s, : s + 1]


def itself_left_out(pattern: np.ndarray, s: int) -> Any:
    """Return the weights over which the score of s is taken."""
    later = pattern[..., s + 1 :, s]
    return later if later.shape[-1] else np.zeros((*pattern.shape[:-2], 1))


def from_all_queries(pattern: np.ndarray, s: int) -> Any:
    """Return the weights over which the score of s is taken."""
    return pattern[..., :, s]


def from_the_last_query(pattern: np.ndarray, s: int) -> Any:
    """Return the weights over which the score of s is taken."""
    return pattern[..., -1:, s]


def summed(weights: np.ndarray) -> Any:
    """Return the score of these weights."""
    return weights.sum(axis=-1)


def largest(weights: np.ndarray) -> Any:
    """Return the score of these weights."""
    return weights.max(axis=-1)


def compared_with_each_other(rows: np.ndarray, primary: int, positions: np.ndarray) -> Any:
    """Return what the sinks are compared with."""
    del primary
    return rows[positions].mean(axis=0)


def compared_with_the_beginning(rows: np.ndarray, primary: int, positions: np.ndarray) -> Any:
    """Return what the sinks are compared with."""
    del primary, positions
    return rows[0]


def compared_with_the_wrong_row(rows: np.ndarray, primary: int, positions: np.ndarray) -> Any:
    """Return what the sinks are compared with."""
    del positions
    return rows[(primary + 1) % len(rows)]


def either_direction(c: float, cos_threshold: float) -> bool:
    """Say whether an output belongs to a sink."""
    return abs(c) > cos_threshold


def strict_for_all(c: float, cos_threshold: float) -> bool:
    """Say whether an output belongs to a sink."""
    del cos_threshold
    return c > 0.98


def nobody_protected(t: int, protect: Sequence[int], length: int) -> bool:
    """Say whether position t is left alone."""
    del t, protect, length
    return False


def protected_from_the_end(t: int, protect: Sequence[int], length: int) -> bool:
    """Say whether position t is left alone."""
    return length - 1 - t in protect


def protected_up_to(t: int, protect: Sequence[int], length: int) -> bool:
    """Say whether position t is left alone."""
    del length
    return t <= max(protect, default=-1)


def multiplied(y: np.ndarray, norm: float, direction: np.ndarray) -> Any:
    """Return the new output."""
    del direction
    return y * norm


def direction_of_the_first(y: np.ndarray, norm: float, direction: np.ndarray) -> Any:
    """Return the new output."""
    del y
    return direction * (norm / np.linalg.norm(direction))


def shortened_only(y: np.ndarray, norm: float, direction: np.ndarray) -> Any:
    """Return the new output."""
    del direction
    return y * min(1.0, norm / np.linalg.norm(y))


def part_along_removed(y: np.ndarray, norm: float, direction: np.ndarray) -> Any:
    """Return the new output."""
    u = direction / np.linalg.norm(direction)
    return y + (norm - y @ u) * u


def spread_around_the_mean(x: np.ndarray) -> Any:
    """Return the vectors whose directions are counted."""
    return x - x.mean(axis=0) if len(x) else x


def each_of_length_one(x: np.ndarray) -> Any:
    """Return the vectors whose directions are counted."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)


def share_of_singular_values(singular_values: np.ndarray) -> Any:
    """Return how much each direction holds."""
    return singular_values / max(singular_values.sum(), 1e-300)


def share_of_nothing(singular_values: np.ndarray) -> Any:
    """Return how much each direction holds."""
    return singular_values**2


def share_of_the_largest(singular_values: np.ndarray) -> Any:
    """Return how much each direction holds."""
    return (singular_values / max(singular_values.max(initial=0.0), 1e-300)) ** 2


def in_bits(p: np.ndarray, alpha: float) -> Any:
    """Return the entropy of shares."""
    p = p[p > 0]
    if not p.size:
        return 0.0
    return -np.sum(p * np.log2(p)) if alpha == 1 else np.log2(np.sum(p**alpha)) / (1.0 - alpha)


def always_of_first_order(p: np.ndarray, alpha: float) -> Any:
    """Return the entropy of shares."""
    del alpha
    p = p[p > 0]
    return -np.sum(p * np.log(p))


def sign_of_the_order(p: np.ndarray, alpha: float) -> Any:
    """Return the entropy of shares."""
    p = p[p > 0]
    if not p.size:
        return 0.0
    return -np.sum(p * np.log(p)) if alpha == 1 else np.log(np.sum(p**alpha)) / (alpha - 1.0)


def share_of_the_most(p: np.ndarray, alpha: float) -> Any:
    """Return the entropy of shares."""
    del alpha
    p = p[p > 0]
    return -np.sum(p * np.log(p)) / np.log(max(len(p), 2))


def _clips(case: Case) -> bool:
    return bool(case.options.get("clip", True))


def _chooses(case: Case) -> bool:
    return bool(len(case.options.get("bos_positions", (0,))) > 1)


def _later(case: Case) -> bool:
    return bool(max(case.options.get("bos_positions", (0,))) > 0)


def _loose(case: Case) -> bool:
    return bool(case.options.get("threshold", case.options.get("cos_threshold", 0.98)) < 0.9)


def _ordered(case: Case) -> bool:
    return bool(case.options.get("alpha", 1.0) != 1.0)


_WINDOW = "Begin after the steepest rise, end with the steepest fall after that, the layer behind it not included."
_WHICH = "Take the candidate whose norm is the largest on average over layers."
_SAME_LAYER = "Compare with the primary sink on the same layer."
_COSINE = "Divide the product by both lengths; a zero vector has cosine 0."
_GAPS = "A life is the set of layers on which the cosine is large; it may have gaps."
_BOUNDS = "n ≥ L − margin is a bos sink, below that n ≥ min_lifetime a secondary one, the rest is noise."
_COLUMN = "Average the column of s over the queries that can see s, itself included."
_ENTROPY = "Shares are eigenvalues of X Xᵀ over their sum, the squares of singular values; logarithms are natural."
_OWN = "Keep the output's own direction and set its length to the norm that is asked for."
_PROTECT = "The named positions are left alone, counted from the start; no others."
_REFERENCE = "Compare with what this MLP writes at the primary sink."

_SEARCH = (
    Mistake(
        "choose",
        index_in_the_list,
        "The place of the winner in the list of candidates is taken for its position.",
        "Return the candidate, not its index.",
        _later,
    ),
    Mistake("choose", largest_on_any_layer, "The candidate with the largest norm on any layer wins.", _WHICH, _chooses),
    Mistake("choose", always_the_first, "The first candidate is always the primary sink.", _WHICH, _chooses),
    Mistake("begin", begins_before_the_rise, "The window begins one layer early.", _WINDOW, _clips),
    Mistake("begin", begins_at_any_jump, "The window begins at the largest change of either sign.", _WINDOW, _clips),
    Mistake("begin", begins_at_the_peak, "The window begins where the norm is largest.", _WINDOW, _clips),
    Mistake("finish", ends_after_the_fall, "The window ends one layer late.", _WINDOW, _clips),
    Mistake("finish", falls_anywhere, "A fall before the window counts.", _WINDOW, _clips),
    Mistake("finish", never_ends, "The window goes on to the last layer.", _WINDOW, _clips),
    Mistake("state", compared_with_its_birth, "All layers are compared with the first of the window.", _SAME_LAYER),
    Mistake("state", compared_with_the_mean, "Positions are compared with the mean state of the layer.", _SAME_LAYER),
    Mistake("state", compared_with_the_first_token, "Positions are compared with position 0.", _SAME_LAYER, _later),
    Mistake("is_sink", parallel_only, "Antiparallel states are not sinks.", "Compare the absolute value."),
    Mistake("is_sink", constant_threshold, "The threshold is 0.9 whatever is asked for.", "Use the option.", _loose),
    Mistake("is_sink", square_against_threshold, "The squared cosine is compared with the threshold.", _COSINE, _loose),
    Mistake("is_sink", below_the_threshold, "What does not fit is taken.", "A large cosine makes a sink."),
    Mistake("cosine", projection, "The product is divided by the length of the primary sink only.", _COSINE),
    Mistake(
        "cosine", deaf_to_the_first_channel, "The first channel is left out.", "The cosine goes over all channels."
    ),
    Mistake("after", everywhere, "Positions before the primary sink are tried.", "Try positions after b.", _later),
    Mistake("after", last_left_out, "The last position is not tried.", "Try every position after b."),
    Mistake(
        "recorded", everywhere_on_record, "The primary sink is noted on all layers.", "Note it on the window.", _clips
    ),
    Mistake("recorded", not_on_record, "The primary sink is not noted.", "Note it on the window."),
    Mistake("lasting", once_a_sink_always_a_sink, "Once a sink, always a sink.", _GAPS),
    Mistake("lasting", only_the_first_stretch, "A life ends at its first gap.", _GAPS),
)
_COSINES = (
    Mistake("cosine", projection, "The product is divided by one length only.", _COSINE),
    Mistake("cosine", centred_cosine, "The mean over channels is taken off first.", _COSINE),
    Mistake("cosine", squared_lengths, "The product is divided by squared lengths.", _COSINE),
    Mistake(
        "cosine",
        zero_counts_as_parallel,
        "A zero vector counts as parallel to everything.",
        _COSINE,
        lambda case: bool(np.any(np.all(case.arrays["hidden"] == 0, axis=-1))),
    ),
    Mistake("cosine", absolute_cosine, "The sign is lost.", "The cosine has a sign; the search drops it."),
    Mistake("state", compared_with_its_birth, "All layers are compared with layer 0.", _SAME_LAYER),
)
_LIVES = (
    Mistake("first", last_instead_of_first, "The last layer is returned for the first.", "Return the first layer."),
    Mistake("first", counted_from_one, "Layers are counted from 1.", "Blocks are counted from 0."),
    Mistake("first", counted_from_the_end, "Layers are counted downwards.", "Blocks are counted upwards from 0."),
    Mistake("lifetime", from_first_to_last, "Gaps count as life.", _GAPS),
    Mistake("lifetime", longest_stretch, "Only the longest stretch counts.", _GAPS),
    Mistake("name", more_than_the_least, "A sink of min_lifetime layers is noise.", _BOUNDS),
    Mistake("name", longer_than_the_margin, "A sink of L − margin layers is not yet a bos sink.", _BOUNDS),
    Mistake("name", noise_first, "Where the ranges overlap, noise wins.", _BOUNDS),
    Mistake("name", nobody_is_noise_too, "What never was a sink gets a name too.", "A lifetime of 0 is no sink."),
)
_SCORE = (
    Mistake("received", given_instead_of_received, "Rows are averaged: what s gives, not what it gets.", _COLUMN),
    Mistake("received", itself_left_out, "A position's attention to itself is left out.", _COLUMN),
    Mistake("received", from_all_queries, "Queries that cannot see s count with weight 0.", _COLUMN),
    Mistake("received", from_the_last_query, "Only the last query counts.", _COLUMN),
    Mistake("average", summed, "Attention is summed over queries.", _COLUMN),
    Mistake("average", largest, "The largest weight counts.", _COLUMN),
)
_ALIGN = (
    Mistake("cosine", ratio_of_lengths, "The product is divided by the primary's squared length.", _COSINE),
    Mistake("cosine", absolute_cosine, "The sign is lost.", "An antiparallel output has cosine −1."),
    Mistake("cosine", centred_cosine, "The mean over channels is taken off first.", _COSINE),
    Mistake("reference_row", compared_with_each_other, "Sinks are compared with their mean.", _REFERENCE),
    Mistake("reference_row", compared_with_the_wrong_row, "The row is off by one.", _REFERENCE),
    Mistake(
        "reference_row",
        compared_with_the_beginning,
        "Sinks are compared with position 0.",
        _REFERENCE,
        lambda case: case.options["primary"] > 0,
    ),
)
_STEER = (
    Mistake("is_made", either_direction, "Antiparallel outputs are steered too.", "Compare the cosine with its sign."),
    Mistake("is_made", strict_for_all, "The threshold is 0.98 whatever is asked for.", "Use the option.", _loose),
    Mistake("is_protected", nobody_protected, "Nobody is protected.", _PROTECT),
    Mistake("is_protected", protected_from_the_end, "Protected positions are counted from the end.", _PROTECT),
    Mistake(
        "is_protected",
        protected_up_to,
        "Everything up to the last protected position is left alone.",
        _PROTECT,
        lambda case: "protect" in case.options,
    ),
    Mistake("rescaled", multiplied, "The norm is a factor instead of the new length.", _OWN),
    Mistake("rescaled", direction_of_the_first, "The output is replaced by the primary's.", _OWN),
    Mistake("rescaled", shortened_only, "Outputs are shortened but never lengthened.", _OWN),
    Mistake("rescaled", part_along_removed, "Only the part along the direction is changed.", _OWN),
)
_MEASURE = (
    Mistake("centre", spread_around_the_mean, "The mean vector is taken off first.", "Take X as it is."),
    Mistake("centre", each_of_length_one, "Vectors are brought to length one first.", "Take X as it is."),
    Mistake("shares", share_of_singular_values, "Singular values are shared out, not their squares.", _ENTROPY),
    Mistake("shares", share_of_nothing, "Eigenvalues are not divided by their sum.", _ENTROPY),
    Mistake("shares", share_of_the_largest, "Shares are relative to the largest.", _ENTROPY),
    Mistake("entropy", in_bits, "The logarithm has base 2.", _ENTROPY),
    Mistake("entropy", always_of_first_order, "The order is 1 whatever is asked for.", "Use α.", _ordered),
    Mistake("entropy", sign_of_the_order, "The sum is divided by α − 1.", "Divide by 1 − α.", _ordered),
    Mistake("entropy", share_of_the_most, "The entropy is divided by its largest value.", _ENTROPY),
)

MEMBERSHIP_BUGS = tuple(mistake.planted(searching) for mistake in _SEARCH)
COSINE_BUGS = tuple(mistake.planted(comparing, "cosines_") for mistake in _COSINES)
LIVES_BUGS = tuple(mistake.planted(living) for mistake in _LIVES)
SCORE_BUGS = tuple(mistake.planted(scoring) for mistake in _SCORE)
ALIGNMENT_BUGS = tuple(mistake.planted(aligning, "alignment_") for mistake in _ALIGN)
STEERING_BUGS = tuple(mistake.planted(steering) for mistake in _STEER)
ENTROPY_BUGS = tuple(mistake.planted(measuring) for mistake in _MEASURE)
