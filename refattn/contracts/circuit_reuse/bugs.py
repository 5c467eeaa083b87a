"""Mistakes that people make when they patch paths and compare circuits, each one exchanged step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug, Mistake
from refattn.contracts.circuit_reuse.plain import differing, forcing, masking, measuring, overlapping, patching

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["DIFFERENCE_BUGS", "EFFECT_BUGS", "FORCE_BUGS", "MASK_BUGS", "OVERLAP_BUGS", "PATCH_BUGS"]

FINE = ("float64", "float32")


def _prompts(case: Case, least: int = 1) -> bool:
    return bool(len(case.arrays["logits"]) >= least)


def _distinct(case: Case) -> bool:
    answers = case.arrays["answers"]
    return _prompts(case) and bool(np.any(answers[:, 0] != answers[:, 1]))


def first_token(logits: np.ndarray, _position: int) -> Any:
    """Return the logits of one token."""
    return logits[:, 0]


def always_last_token(logits: np.ndarray, _position: int) -> Any:
    """Return the logits of one token."""
    return logits[:, -1]


def mean_of_tokens(logits: np.ndarray, _position: int) -> Any:
    """Return the logits of one token."""
    return logits.mean(axis=1)


def large_differences_count_more(right: np.ndarray, wrong: np.ndarray) -> Any:
    """Compare two logits."""
    return (right - wrong) * np.abs(right - wrong)


def wrong_less_right(right: np.ndarray, wrong: np.ndarray) -> Any:
    """Compare two logits."""
    return wrong - right


def probabilities(logits: np.ndarray, answers: np.ndarray) -> Any:
    """Return what is said of the right and of the wrong word."""
    rows = np.arange(len(logits))
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    odds = odds / odds.sum(axis=-1, keepdims=True)
    return odds[rows, answers[:, 0]], odds[rows, answers[:, 1]]


def words_of_first_prompt(logits: np.ndarray, answers: np.ndarray) -> Any:
    """Return what is said of the right and of the wrong word."""
    return logits[:, answers[0, 0]], logits[:, answers[0, 1]]


def right_against_best(logits: np.ndarray, answers: np.ndarray) -> Any:
    """Return what is said of the right and of the wrong word."""
    return logits[np.arange(len(logits)), answers[:, 0]], logits.max(axis=-1)


def summed(each: np.ndarray) -> Any:
    """Return one number for all prompts."""
    return each.sum()


def median(each: np.ndarray) -> Any:
    """Return one number for all prompts."""
    return np.median(each)


def _many(case: Case, least: int) -> bool:
    return _prompts(case, least) and case.options.get("reduce", "mean") == "mean"


def _tokens(case: Case, place: int) -> bool:
    length = case.arrays["logits"].shape[1]
    return _distinct(case) and case.options.get("position", -1) % length != place % length


DIFFERENCE_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(differing)
    for mistake in (
        Mistake(
            "there",
            first_token,
            "It reads the answer after the first token.",
            "The answer is the word after the last token, or after the position that is asked for.",
            lambda case: _tokens(case, 0),
        ),
        Mistake(
            "there",
            always_last_token,
            "It ignores the position.",
            "Read the logits at the position that is given; −1 is only what it is if not given.",
            lambda case: _tokens(case, -1),
        ),
        Mistake(
            "there",
            mean_of_tokens,
            "It averages over the tokens of a prompt.",
            "One token has the answer; only prompts are averaged.",
            lambda case: _distinct(case) and case.arrays["logits"].shape[1] > 1,
        ),
        Mistake(
            "compared",
            wrong_less_right,
            "The sign is the other way round.",
            "The logit of the right word comes first: positive means that the model is right.",
            _distinct,
        ),
        Mistake(
            "compared",
            large_differences_count_more,
            "Large differences count more than small ones.",
            "The difference itself is the measure, so that it is linear in the logits.",
            _distinct,
        ),
        Mistake(
            "chosen",
            probabilities,
            "It compares probabilities.",
            "Compare logits: their difference does not depend on what is said of other words.",
            _distinct,
        ),
        Mistake(
            "chosen",
            words_of_first_prompt,
            "It looks up the words of the first prompt for all prompts.",
            "Each prompt has its own right and wrong word.",
            lambda case: bool(_prompts(case, 2) and np.any(case.arrays["answers"] != case.arrays["answers"][0])),
        ),
        Mistake(
            "chosen",
            right_against_best,
            "It compares with the best word of all.",
            "The wrong word is given: the one that the corrupt prompt makes right.",
            lambda case: _prompts(case) and case.arrays["logits"].shape[-1] > 1,
        ),
        Mistake(
            "averaged",
            summed,
            "It adds prompts up.",
            "Average, so that batches of different sizes can be compared.",
            lambda case: _many(case, 2) and _distinct(case),
        ),
        Mistake(
            "averaged",
            median,
            "It takes the median of prompts.",
            "Take the mean: it is linear, and the official measure.",
            lambda case: _many(case, 3) and _distinct(case),
        ),
    )
)


def _moved(case: Case) -> bool:
    return bool(case.arrays["clean"].size)


def divided_by_clean(_other: np.ndarray, before: np.ndarray) -> Any:
    """Return the length of the way."""
    return np.where(before == 0, 1.0, before)


def absolute_way(other: np.ndarray, before: np.ndarray) -> Any:
    """Return the length of the way."""
    return np.abs(other - before)


def backwards(other: np.ndarray, before: np.ndarray) -> Any:
    """Return the length of the way."""
    return before - other


def no_start(after: np.ndarray, _before: np.ndarray) -> Any:
    """Return how far the patch went."""
    return after


def unsigned(after: np.ndarray, before: np.ndarray) -> Any:
    """Return how far the patch went."""
    return np.abs(after - before)


def in_per_cent(after: np.ndarray, before: np.ndarray) -> Any:
    """Return how far the patch went."""
    return -100.0 * (after - before)


EFFECT_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(measuring)
    for mistake in (
        Mistake(
            "whole_way",
            divided_by_clean,
            "It divides by the clean logit difference.",
            "Divide by what the corruption does, LD₁ − LD₀: then one means all of it.",
            _moved,
        ),
        Mistake(
            "whole_way",
            absolute_way,
            "It loses the direction of the corruption.",
            "Keep the sign of LD₁ − LD₀: a patch that goes the same way has a positive effect.",
            lambda case: bool(np.any(case.arrays["corrupt"] < case.arrays["clean"])),
        ),
        Mistake(
            "whole_way",
            backwards,
            "The sign is the other way round.",
            "Both differences are taken from the clean run.",
            _moved,
        ),
        Mistake(
            "moved",
            no_start,
            "It forgets where the patch began.",
            "Measure the patched run against the clean one.",
            _moved,
        ),
        Mistake(
            "moved",
            unsigned,
            "It loses the direction of the patch.",
            "A head that works against the others has a negative effect; keep it.",
            _moved,
        ),
        Mistake(
            "moved",
            in_per_cent,
            "It returns the per cent of the plots, with their sign.",
            "Return the part itself; the scripts multiply by −100 for their pictures.",
            _moved,
        ),
    )
)


def _chooses(case: Case) -> bool:
    effect = case.arrays["effect"]
    return bool(effect.size and case.options.get("threshold") is None)


def _shape(case: Case) -> tuple[int, ...]:
    return tuple(case.arrays["effect"].shape[-2:])


def _counted(case: Case) -> bool:
    return bool(case.arrays["effect"].size and case.options.get("threshold") is not None)


def signed(effect: np.ndarray) -> Any:
    """Return how much a head matters."""
    return effect


def squared_and_cut(effect: np.ndarray) -> Any:
    """Return how much a head matters."""
    return np.maximum(-effect, 0.0)


def rounds_down(fraction: float, layers: int, heads: int) -> int:
    """Return how many heads are kept."""
    return max(1, math.floor(fraction * layers * heads))


def to_the_nearest(fraction: float, layers: int, heads: int) -> int:
    """Return how many heads are kept."""
    return int(fraction * layers * heads + 0.5)


def of_one_layer(fraction: float, _layers: int, heads: int) -> int:
    """Return how many heads are kept."""
    return max(1, math.ceil(fraction * heads - 1e-9))


def rounds_floating_product_up(fraction: float, layers: int, heads: int) -> int:
    """Return how many heads are kept."""
    return max(1, math.ceil(fraction * layers * heads))


def later_of_equal_heads(size: np.ndarray) -> Any:
    """Return the heads, those that matter first."""
    return sorted(np.ndindex(size.shape), key=lambda head: (-size[head], [-i for i in head]))


def weakest_first(size: np.ndarray) -> Any:
    """Return the heads, those that matter first."""
    return sorted(np.ndindex(size.shape), key=lambda head: (size[head], head))


def by_head_then_layer(size: np.ndarray) -> Any:
    """Return the heads, those that matter first."""
    return sorted(np.ndindex(size.shape), key=lambda head: (-size[head], head[1], head[0]))


def up_to_the_threshold(size: np.ndarray, threshold: float) -> Any:
    """Say which heads are kept."""
    return size >= threshold


def below_the_threshold(size: np.ndarray, threshold: float) -> Any:
    """Say which heads are kept."""
    return size < threshold


def _ties(case: Case) -> bool:
    return _chooses(case) and "tied" in case.label


MASK_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(masking)
    for mistake in (
        Mistake(
            "strength",
            signed,
            "Heads with negative effects are never found.",
            "Rank by size: a negative mover belongs to the circuit.",
            lambda case: bool(case.arrays["effect"].size),
        ),
        Mistake(
            "strength",
            squared_and_cut,
            "Only heads with negative effects are found.",
            "Rank by size, whatever the sign.",
            lambda case: bool(case.arrays["effect"].size),
        ),
        Mistake(
            "count",
            rounds_down,
            "It rounds the number of heads down.",
            "Round up: two per cent of 384 heads are eight.",
            lambda case: _chooses(case) and case.options.get("fraction", 0.02) < 1,
        ),
        Mistake(
            "count",
            to_the_nearest,
            "In a small model nobody is kept.",
            "Keep one head at least.",
            lambda case: _chooses(case) and case.options.get("fraction", 0.02) * math.prod(_shape(case)) < 0.5,
        ),
        Mistake(
            "count",
            of_one_layer,
            "It takes the fraction of one layer's heads.",
            "The fraction is of all heads, L·H.",
            lambda case: _chooses(case) and case.arrays["effect"].shape[-2] > 1,
        ),
        Mistake(
            "count",
            rounds_floating_product_up,
            "Seven per cent of a hundred heads are eight, because 0.07 · 100 is a little more than 7 in binary.",
            "Forgive the product its rounding error before rounding up.",
            lambda case: case.options.get("fraction") == 0.07,
        ),
        Mistake(
            "ranked",
            later_of_equal_heads,
            "Of equal heads it takes the last.",
            "Of equal heads the first by layer, then by head, is kept: sort stably.",
            _ties,
        ),
        Mistake(
            "ranked",
            by_head_then_layer,
            "Of equal heads it takes the one with the smallest number, whatever its layer.",
            "The layer decides before the number of the head.",
            _ties,
        ),
        Mistake(
            "ranked",
            weakest_first,
            "It keeps the heads that matter least.",
            "Sort by falling size.",
            _chooses,
        ),
        Mistake(
            "enough",
            up_to_the_threshold,
            "It keeps heads that only reach the threshold.",
            "Keep what is above it; with threshold zero, all heads that do anything.",
            lambda case: _counted(case) and "tied" in case.label,
        ),
        Mistake(
            "enough",
            below_the_threshold,
            "It keeps the heads below the threshold.",
            "Keep the others.",
            _counted,
        ),
    )
)


def _compares(case: Case) -> bool:
    return bool(case.arrays["effect_a"].size)


def smaller_circuit(in_a: Any, in_b: Any, _both: Any) -> Any:
    """Return what the shared heads are divided by."""
    return np.minimum(in_a, in_b)


def first_circuit(in_a: Any, _in_b: Any, _both: Any) -> Any:
    """Return what the shared heads are divided by."""
    return in_a


def mean_circuit(in_a: Any, in_b: Any, _both: Any) -> Any:
    """Return what the shared heads are divided by."""
    return (in_a + in_b) / 2


def both_counted_twice(in_a: Any, in_b: Any, _both: Any) -> Any:
    """Return how many heads there are in either circuit."""
    return in_a + in_b


def intersection(_in_a: Any, _in_b: Any, both: Any) -> Any:
    """Return how many heads there are in either circuit."""
    return both


def nothing_shares_nothing(both: Any, of: Any) -> Any:
    """Return a share."""
    return both / np.maximum(of, 1)


def either_alone(a: np.ndarray, b: np.ndarray) -> Any:
    """Return the heads of the first circuit that the second lacks."""
    return a ^ b


def neither(a: np.ndarray, b: np.ndarray) -> Any:
    """Return the heads of the first circuit that the second lacks."""
    return ~a & ~b


def _by_threshold(case: Case) -> bool:
    return _compares(case) and "threshold" in case.options


OVERLAP_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(overlapping)
    for mistake in (
        Mistake(
            "divisor",
            smaller_circuit,
            "A small circuit inside a large one overlaps completely.",
            "Divide by the larger circuit.",
            _by_threshold,
        ),
        Mistake(
            "divisor",
            first_circuit,
            "The overlap depends on which circuit comes first.",
            "Divide by the larger circuit: the measure is symmetric.",
            _by_threshold,
        ),
        Mistake(
            "divisor",
            mean_circuit,
            "It divides by the mean size.",
            "Divide by the larger circuit.",
            _by_threshold,
        ),
        Mistake(
            "union",
            both_counted_twice,
            "Shared heads count twice in the union.",
            "|A ∪ B| = |A| + |B| − |A ∩ B|.",
            _compares,
        ),
        Mistake(
            "union",
            intersection,
            "It divides the shared heads by themselves.",
            "Divide by the heads of either circuit.",
            _compares,
        ),
        Mistake(
            "share",
            nothing_shares_nothing,
            "Two circuits without heads share nothing, although they are equal.",
            "Equal circuits have overlap one, empty ones too.",
            _by_threshold,
        ),
        Mistake(
            "missing",
            either_alone,
            "Both lists of remaining heads hold the heads of either circuit.",
            "A ∖ B is what A has and B has not.",
            _compares,
        ),
        Mistake(
            "missing",
            neither,
            "The remaining heads are those of neither circuit.",
            "A ∖ B is what A has and B has not.",
            _compares,
        ),
    )
)


def _forces(case: Case, least: int = 1) -> bool:
    told = np.sum(case.arrays["targets"] >= 0, axis=-1)
    return bool(case.options["heads"] and case.options.get("weight", 1.0) > 0 and np.any(told >= least))


def _partly(case: Case) -> bool:
    return _forces(case) and case.options.get("weight", 1.0) < 1


def no_target_is_last_key(targets: np.ndarray) -> Any:
    """Return the keys to look at."""
    return list(targets)


def first_target_only(targets: np.ndarray) -> Any:
    """Return the keys to look at."""
    return [key for key in targets if key >= 0][:1]


def one_on_each(told: list[int], s: int) -> Any:
    """Return the row that is aimed at."""
    aim = np.zeros(s)
    aim[told] = 1.0
    return aim


def divided_by_the_longest(told: list[int], s: int) -> Any:
    """Return the row that is aimed at."""
    aim = np.zeros(s)
    aim[told] = 1.0 / s
    return aim


def everything_but(told: list[int], s: int) -> Any:
    """Return the row that is aimed at."""
    aim = np.full(s, 1.0 / max(1, s - len(told)))
    aim[told] = 0.0
    return aim


def adds_to_the_row(row: np.ndarray, aim: np.ndarray, weight: float) -> Any:
    """Return the forced row."""
    return row + weight * aim


def weight_of_the_old_row(row: np.ndarray, aim: np.ndarray, weight: float) -> Any:
    """Return the forced row."""
    return weight * row + (1.0 - weight) * aim


def all_or_nothing(row: np.ndarray, aim: np.ndarray, weight: float) -> Any:
    """Return the forced row."""
    return aim if weight > 0 else row


def every_query(pattern: np.ndarray, head: int, _query: int, row: np.ndarray) -> Any:
    """Return the pattern with the row in its place."""
    pattern[head] = row
    return pattern


def every_head(pattern: np.ndarray, _head: int, query: int, row: np.ndarray) -> Any:
    """Return the pattern with the row in its place."""
    pattern[:, query] = row
    return pattern


def last_query(pattern: np.ndarray, head: int, _query: int, row: np.ndarray) -> Any:
    """Return the pattern with the row in its place."""
    pattern[head, -1] = row
    return pattern


def a_column(pattern: np.ndarray, head: int, query: int, row: np.ndarray) -> Any:
    """Return the pattern with the row in its place."""
    pattern[head, :, query] = row[-pattern.shape[1] :]
    return pattern


def _several(name: str, axis: int) -> Callable[[Case], bool]:
    return lambda case: _forces(case) and case.arrays[name].shape[axis] > 1


def _not_last(case: Case) -> bool:
    t = case.arrays["pattern"].shape[2]
    return _forces(case) and bool(np.any(case.arrays["rows"] % t != t - 1))


FORCE_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(forcing)
    for mistake in (
        Mistake(
            "listed",
            no_target_is_last_key,
            "−1, which says that there is no further target, becomes a key.",
            "Leave −1 out.",
            lambda case: _forces(case) and bool(np.any(case.arrays["targets"] < 0)),
        ),
        Mistake(
            "listed",
            first_target_only,
            "It looks at the first target only.",
            "All targets get the same part.",
            lambda case: _forces(case, 2),
        ),
        Mistake(
            "aimed",
            one_on_each,
            "Each target gets one, and the row sums to more.",
            "Divide by the number of targets.",
            lambda case: _forces(case, 2),
        ),
        Mistake(
            "aimed",
            divided_by_the_longest,
            "It divides by the number of keys.",
            "Divide by the number of targets.",
            _several("pattern", 3),
        ),
        Mistake(
            "aimed",
            everything_but,
            "It looks away from the targets.",
            "The targets are what is looked at.",
            _forces,
        ),
        Mistake(
            "blended",
            adds_to_the_row,
            "It adds to the attention that is there.",
            "What is forced replaces a part of the row, so that it still sums to one.",
            _forces,
        ),
        Mistake(
            "blended",
            weight_of_the_old_row,
            "The weight is that of the old row.",
            "w = 1 replaces the row.",
            lambda case: _forces(case) and case.options.get("weight", 1.0) != 0.5,
        ),
        Mistake(
            "blended",
            all_or_nothing,
            "Any weight replaces the whole row.",
            "Blend: (1 − w) of the old row and w of the new one.",
            _partly,
        ),
        Mistake(
            "placed",
            every_query,
            "Every token is made to look there.",
            "Only one row of a prompt is forced.",
            _several("pattern", 2),
        ),
        Mistake(
            "placed",
            every_head,
            "Every head is made to look there.",
            "Only the chosen heads are forced.",
            _several("pattern", 1),
        ),
        Mistake(
            "placed",
            last_query,
            "It is always the last token that is forced.",
            "The row is given for each prompt.",
            _not_last,
        ),
        Mistake(
            "placed",
            a_column,
            "It overwrites who looks at the token, not where the token looks.",
            "Queries are rows, keys are columns.",
            _several("pattern", 2),
        ),
    )
)


def _always(_case: Case) -> bool:
    return True


def _layers(case: Case) -> int:
    return len(case.arrays["weights"].blocks)


def _heads_receive(case: Case) -> bool:
    return any(head is not None for _, head in case.options["receivers"])


def nobody_frozen(value: np.ndarray, _clean: np.ndarray, _p: int) -> Any:
    """Return what the heads say while one of them is tried."""
    return value


def last_token_frozen(value: np.ndarray, clean: np.ndarray, _p: int) -> Any:
    """Return what the heads say while one of them is tried."""
    value = value.copy()
    value[:, -1] = clean[:, -1]
    return value


def heads_left_out(value: np.ndarray, _clean: np.ndarray, p: int) -> Any:
    """Return what the heads say while one of them is tried."""
    value = value.copy()
    value[:, p] = 0.0
    return value


def layer_speaks(value: np.ndarray, corrupt: np.ndarray, p: int, _head: int) -> Any:
    """Return what the heads say when the sender speaks."""
    value = value.copy()
    value[:, p] = corrupt[:, p]
    return value


def sender_is_ablated(value: np.ndarray, _corrupt: np.ndarray, p: int, head: int) -> Any:
    """Return what the heads say when the sender speaks."""
    value = value.copy()
    value[:, p, head] = 0.0
    return value


def mlps_always_frozen(value: np.ndarray, clean: np.ndarray, p: int, *, freeze: bool) -> Any:
    """Return what the MLP says while a head is tried."""
    del freeze
    value = value.copy()
    value[:, p] = clean[:, p]
    return value


def mlps_never_frozen(value: np.ndarray, _clean: np.ndarray, _p: int, *, freeze: bool) -> Any:
    """Return what the MLP says while a head is tried."""
    del freeze
    return value


def whole_prompt_told(value: np.ndarray, heard: np.ndarray, _p: int, head: int | None) -> Any:
    """Return a receiver's activation."""
    value = value.copy()
    at = (slice(None), slice(None)) if head is None else (slice(None), slice(None), head)
    value[at] = heard[at]
    return value


def layer_told(value: np.ndarray, heard: np.ndarray, p: int, _head: int | None) -> Any:
    """Return a receiver's activation."""
    value = value.copy()
    value[:, p] = heard[:, p]
    return value


def last_token_told(value: np.ndarray, heard: np.ndarray, _p: int, head: int | None) -> Any:
    """Return a receiver's activation."""
    value = value.copy()
    at = (slice(None), -1) if head is None else (slice(None), -1, head)
    value[at] = heard[at]
    return value


def answers_read_at_p(logits: np.ndarray, answers: np.ndarray, p: int) -> Any:
    """Return each prompt's logit difference."""
    rows = np.arange(len(logits))
    return logits[rows, p, answers[:, 0]] - logits[rows, p, answers[:, 1]]


def right_word_alone(logits: np.ndarray, answers: np.ndarray, _p: int) -> Any:
    """Return each prompt's logit difference."""
    return logits[np.arange(len(logits)), -1, answers[:, 0]]


def mean_of_ratios(after: np.ndarray, before: np.ndarray, other: np.ndarray) -> Any:
    """Return the effect of a sender."""
    return np.mean((after - before) / (other - before))


def first_prompt_decides(after: np.ndarray, before: np.ndarray, other: np.ndarray) -> Any:
    """Return the effect of a sender."""
    return (after[0] - before[0]) / (other[0] - before[0])


def restored_not_broken(after: np.ndarray, before: np.ndarray, other: np.ndarray) -> Any:
    """Return the effect of a sender."""
    return (after.mean() - other.mean()) / (before.mean() - other.mean())


def of_clean_difference(after: np.ndarray, before: np.ndarray, _other: np.ndarray) -> Any:
    """Return the effect of a sender."""
    return (after.mean() - before.mean()) / before.mean()


def asked_to_the_last_receiver(receivers: list[Any], layers: int, *, truncate: bool) -> int:
    """Return how many layers are asked."""
    return 1 + max([where for where, head in receivers if head is not None], default=layers - 1) if truncate else layers


def receivers_asked_too(_sender: tuple[int, int], _receivers: list[Any]) -> bool:
    """Say whether a head is not asked."""
    return False


def _several_layers(case: Case) -> bool:
    places = {where for where, head in case.options["receivers"] if head is not None}
    return len(places) > 1


def _early(case: Case) -> bool:
    length = case.arrays["clean"].shape[1]
    return bool(case.options.get("position", -1) % length != length - 1)


def _later_layers_speak(case: Case) -> bool:
    return bool(case.options.get("truncate", True) and _several_layers(case))


PATCH_BUGS: tuple[Bug, ...] = tuple(
    mistake.planted(patching)
    for mistake in (
        Mistake(
            "frozen",
            nobody_frozen,
            "Other heads react to the sender: this is activation patching.",
            "Freeze every other head at p, so that only the direct path is measured.",
            lambda case: _layers(case) > 1,
            FINE,
        ),
        Mistake(
            "frozen",
            last_token_frozen,
            "It is always the last token that is frozen.",
            "Freeze where the sender speaks, at p.",
            _early,
            FINE,
        ),
        Mistake(
            "frozen",
            heads_left_out,
            "Other heads are silenced.",
            "They say what they said on the clean prompt.",
            _always,
            FINE,
        ),
        Mistake(
            "spoken",
            layer_speaks,
            "All heads of the sender's layer speak.",
            "One head at a time is the sender.",
            _always,
            FINE,
        ),
        Mistake(
            "spoken",
            sender_is_ablated,
            "The sender is silenced.",
            "It says what it says on the corrupt prompt.",
            _always,
            FINE,
        ),
        Mistake(
            "mlp_out",
            mlps_always_frozen,
            "MLPs never pass on what they hear.",
            "Freeze them only where this is asked for.",
            lambda case: not case.options.get("freeze_mlps", False),
            FINE,
        ),
        Mistake(
            "mlp_out",
            mlps_never_frozen,
            "MLPs pass on what they hear although they should not.",
            "Where freeze_mlps is set, MLPs keep their clean output at p.",
            lambda case: case.options.get("freeze_mlps", False),
            FINE,
        ),
        Mistake(
            "told",
            layer_told,
            "All heads of the receiver's layer hear it.",
            "Overwrite the receiving head alone.",
            _heads_receive,
            FINE,
        ),
        Mistake(
            "told",
            whole_prompt_told,
            "Receivers hear it at every token.",
            "Overwrite the receivers at p alone: elsewhere they run free.",
            lambda case: case.label.startswith("to_the_middle"),
            FINE,
        ),
        Mistake(
            "told",
            last_token_told,
            "It is always the last token that hears it.",
            "The receiver listens where the sender speaks, at p.",
            _early,
            FINE,
        ),
        Mistake(
            "preferred",
            answers_read_at_p,
            "The answer is read at p.",
            "p is where the message goes; the answer comes after the last token.",
            _early,
            FINE,
        ),
        Mistake(
            "preferred",
            right_word_alone,
            "It measures the right word's logit alone.",
            "Measure the difference to the wrong word: what raises all words does not count.",
            _always,
            FINE,
        ),
        Mistake(
            "effect",
            mean_of_ratios,
            "It averages the ratios of prompts.",
            "Average logit differences first: a single prompt may not be moved by the corruption at all.",
            lambda case: len(case.arrays["clean"]) > 1,
            FINE,
        ),
        Mistake(
            "effect",
            first_prompt_decides,
            "It looks at the first prompt only.",
            "Average logit differences over all prompts.",
            lambda case: len(case.arrays["clean"]) > 1,
            FINE,
        ),
        Mistake(
            "effect",
            restored_not_broken,
            "It measures how much is left of the clean run.",
            "0 is the clean run, 1 the corrupt one.",
            _always,
            FINE,
        ),
        Mistake(
            "effect",
            of_clean_difference,
            "It divides by the clean logit difference.",
            "Divide by what the corruption does.",
            _always,
            FINE,
        ),
        Mistake(
            "asked",
            asked_to_the_last_receiver,
            "With receivers in several layers, heads up to the last of them are asked.",
            "The first receiving head's layer is the last that is asked.",
            _later_layers_speak,
            FINE,
        ),
        Mistake(
            "silent",
            receivers_asked_too,
            "Receivers are senders too.",
            "A receiver is not asked: its entry stays zero.",
            lambda case: _several_layers(case) and not case.options.get("truncate", True),
            FINE,
        ),
    )
)
