"""Mistakes that people make with ReCAT, each one exchanged step of a plain implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.recat import plain
from refattn.contracts.recat.plain import attend, cuts, gelu, normed, softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = [
    "CIO_BUGS",
    "COMPOSE_BUGS",
    "INSIDE_BUGS",
    "MODEL_BUGS",
    "NODE_BUGS",
    "PARSER_BUGS",
    "SPREAD_BUGS",
]


def filled(case: Case) -> bool:
    """Whether a case has anything to compute."""
    return all(x.size > 0 for x in case.arrays.values() if isinstance(x, np.ndarray))


def tokens(case: Case) -> int:
    """Return the number of tokens of a case, none if its batch is empty."""
    if "token_ids" in case.arrays:
        return len(case.arrays["token_ids"])
    leaves = case.arrays["leaves" if "leaves" in case.arrays else "x"]
    return int(leaves.shape[-2]) if leaves.size else 0


def at_least(n: int) -> Callable[[Case], bool]:
    """Whether a case has that many tokens."""
    return lambda case: tokens(case) >= n


def prunes(case: Case) -> bool:
    """Whether a window leaves out splits of the whole sentence."""
    return case.options.get("window") is not None and case.options["window"] < tokens(case) - 1


def drops(case: Case) -> bool:
    """Whether merged parts, at least two tokens long, count with 0."""
    return prunes(case) and case.options.get("merged_scores") == "zero"


def stacked(case: Case) -> bool:
    """Whether a second layer starts from a first."""
    return len(case.arrays["layers"]) > 1 and tokens(case) > 1


def second_and_third_share_a_role(three: np.ndarray, roles: np.ndarray) -> Any:
    """Return the three vectors as they are seen."""
    return three + roles[[0, 1, 1]]


def first_two_share_a_role(three: np.ndarray, roles: np.ndarray) -> Any:
    """Return the three vectors as they are seen."""
    return three + roles[[0, 0, 2]]


def residual_with_role(_three: np.ndarray, seen: np.ndarray) -> Any:
    """Return what the residual carries on."""
    return seen


def query_without_role(three: np.ndarray, _seen: np.ndarray) -> Any:
    """Return the queries."""
    return three


def scaled_by_full_width(D: int, _n_heads: int) -> Any:
    """Return what scores of attention are divided by."""
    return D**0.5


def norms_first(x: np.ndarray, attended: np.ndarray, w: Any) -> Any:
    """Return the vectors that leave the layer."""
    y = x + normed(attended, w.norm1_w, w.norm1_b)
    return y + gelu(normed(y, w.norm2_w, w.norm2_b) @ w.w1 + w.b1) @ w.w2 + w.b2


def _many_heads(case: Case) -> bool:
    return filled(case) and bool(case.options["n_heads"] > 1)


_RESIDUAL = (
    "The residual carries the role on, too.",
    "The role belongs to queries and keys; the residual is the bare vector.",
)
_SCALE = (
    "Scores of attention are divided by √D, as if there were one head.",
    "Each head divides by the root of its own width, √(D/H).",
)
_NORM = (
    "Each part is normalised before it is added, and the result not at all.",
    "Both norms of a cell come after the addition.",
)

COMPOSE_BUGS = (
    Mistake(
        "with_role",
        second_and_third_share_a_role,
        "Both parts are given the role of the left one, so that their order is lost.",
        "Context, left and right have a role each.",
        filled,
    ).planted(plain.composing),
    Mistake("carried", residual_with_role, *_RESIDUAL, filled).planted(plain.composing),
    Mistake(
        "asks",
        query_without_role,
        "The query is the context without its role.",
        "The query is the context plus its role, as its key is.",
        filled,
        ("float64", "float32"),
    ).planted(plain.composing),
    Mistake("temperature", scaled_by_full_width, *_SCALE, _many_heads, ("float64", "float32")).planted(plain.composing),
    Mistake("finish", norms_first, *_NORM, filled).planted(plain.composing),
)
SPREAD_BUGS = (
    Mistake(
        "with_role",
        first_two_share_a_role,
        "Both parts are given the role of the left one, so that they are told without regard to their side.",
        "Left, right and parent have a role each.",
        filled,
    ).planted(plain.spreading, "spread_"),
    Mistake("carried", residual_with_role, *_RESIDUAL, filled).planted(plain.spreading, "spread_"),
    Mistake("finish", norms_first, *_NORM, filled).planted(plain.spreading, "spread_"),
)


def leaves_centred_over_the_sentence(leaves: np.ndarray) -> Any:
    """Return the vectors of the leaves."""
    return leaves - leaves.mean(axis=0)


def window_of_tokens(i: int, j: int, closed: list[int], m: int) -> Any:
    """Return the split points of a span."""
    return cuts(i, j, closed, max(m - 1, 1))


def splits_closed_first(i: int, j: int, closed: list[int], m: int) -> Any:
    """Return the split points of a span."""
    return cuts(i, j, [-place for place in closed], m)


def merged_always_kept(a: float, merged: bool, rule: str) -> Any:
    """Return what the score of a part brings into that of the whole."""
    del merged, rule
    return a


def all_parts_count_zero(a: float, merged: bool, rule: str) -> Any:
    """Return what the score of a part brings into that of the whole."""
    del merged
    return 0.0 if rule == "zero" else a


def own_score_only(phi: float, left: float, right: float) -> Any:
    """Return the score of a split."""
    del left, right
    return phi


def best_split_only(w: np.ndarray, made: np.ndarray) -> Any:
    """Return the vector of a span from those of its splits."""
    return made[np.argmax(w)]


def log_of_the_sum(_w: np.ndarray, s: np.ndarray) -> Any:
    """Return the score of a span from those of its splits."""
    return np.max(s) + np.log(np.sum(np.exp(s - np.max(s))))


def each_split_for_itself(s: np.ndarray) -> Any:
    """Return the weights of the splits of a span."""
    return 1.0 / (1.0 + np.exp(-s))


def products_not_scaled(x: np.ndarray, y: np.ndarray) -> Any:
    """Return the product of two score vectors."""
    return x @ y


def _inside_mistakes() -> tuple[Mistake, ...]:
    return (
        Mistake(
            "read",
            leaves_centred_over_the_sentence,
            "The mean of the sentence is taken from every leaf, so that spans see tokens outside them.",
            "An inside vector depends on the tokens of its span alone.",
            at_least(2),
        ),
        Mistake(
            "cuts",
            window_of_tokens,
            "The window m is read as a number of units, which leaves m − 1 splits.",
            "A run of m + 1 units has m splits.",
            lambda case: prunes(case) and case.options["window"] > 1,
        ),
        Mistake(
            "part_score",
            merged_always_kept,
            "Merged parts keep their scores under the zero rule, too.",
            "Under the rule of the released code a merged part counts 0.",
            drops,
        ),
        Mistake(
            "whole_score",
            own_score_only,
            "A split counts its own score and forgets those of its parts.",
            "The score of a split is its own plus those of both parts.",
            lambda case: at_least(3)(case) and case.options.get("merged_scores", "kept") == "kept",
        ),
        Mistake(
            "average",
            best_split_only,
            "The best split is taken instead of the mean of all.",
            "A span is the mean of its splits, weighted by softmax.",
            lambda case: at_least(3)(case) and case.options.get("window", 2) != 1,
        ),
        Mistake(
            "mean_score",
            log_of_the_sum,
            "The score of a span is the log-sum-exp of its splits, as in a grammar.",
            "The score of a span is the mean of the scores of its splits under their weights.",
            lambda case: at_least(3)(case) and case.options.get("window", 2) != 1,
        ),
        Mistake(
            "weigh",
            each_split_for_itself,
            "Every split is weighted by its own logistic function.",
            "The weights of the splits of a span are one softmax.",
            at_least(2),
        ),
        Mistake(
            "match",
            products_not_scaled,
            "The product of two score vectors is not divided by √c.",
            "Products of score vectors are divided by the root of their width.",
            at_least(2),
        ),
    )


INSIDE_BUGS = tuple(mistake.planted(plain.insides) for mistake in _inside_mistakes())


def nothing_for_the_root(e: np.ndarray) -> Any:
    """Return what the root is told."""
    return 0.0 * e


def own_score_instead(psi: float, b: float, own: float, _sibling: float) -> Any:
    """Return the score of what a part is told by one parent and split."""
    return psi + b + own


def parent_score_forgotten(psi: float, _b: float, _own: float, sibling: float) -> Any:
    """Return the score of what a part is told by one parent and split."""
    return psi + sibling


def the_part_itself_meets_the_parent(
    own: np.ndarray, _sibling: np.ndarray, left: Any, right: Any, is_left: bool
) -> Any:
    """Return the vector, and the head, that meet the parent."""
    return own, left if is_left else right


def one_head_for_both_sides(_own: np.ndarray, sibling: np.ndarray, left: Any, right: Any, is_left: bool) -> Any:
    """Return the vector, and the head, that meet the parent."""
    del left, is_left
    return sibling, right


def longest_parent_only(t: np.ndarray, told: np.ndarray) -> Any:
    """Return the vector and the score of a part."""
    return told[-1], float(t[-1])


def plain_mean(t: np.ndarray, told: np.ndarray) -> Any:
    """Return the vector and the score of a part."""
    return told.mean(0), float(t.mean())


def leaves_from_inside(e: np.ndarray, _o: np.ndarray) -> Any:
    """Return the leaves of the next layer."""
    return e


def empty_cell_again(o: dict[Any, np.ndarray], empty: np.ndarray) -> Any:
    """Return the contexts of the next layer."""
    return dict.fromkeys(o, empty)


def _several_parents(case: Case) -> bool:
    return tokens(case) >= 3 and case.options.get("window", 2) != 1


CIO_BUGS = (
    Mistake(
        "root_hears",
        nothing_for_the_root,
        "The root starts the outside pass from zero.",
        "The root is told its own inside vector.",
        at_least(1),
    ).planted(plain.stacking),
    Mistake(
        "heard_score",
        own_score_instead,
        "A part adds its own inside score to what it is told.",
        "What a part is told counts with the inside score of its sibling.",
        _several_parents,
    ).planted(plain.stacking),
    Mistake(
        "heard_score",
        parent_score_forgotten,
        "The parent's outside score is left out.",
        "What a part is told counts with the outside score of the parent, too.",
        at_least(3),
    ).planted(plain.stacking),
    Mistake(
        "told_by",
        the_part_itself_meets_the_parent,
        "The parent is matched with the part itself.",
        "The parent is matched with the sibling: that is what the part does not know.",
        at_least(2),
    ).planted(plain.stacking),
    Mistake(
        "told_by",
        one_head_for_both_sides,
        "A right part's sibling goes through the head for right ones.",
        "The sibling of a right part is a left part and goes through g_left.",
        at_least(2),
    ).planted(plain.stacking),
    Mistake(
        "hear",
        longest_parent_only,
        "A part listens to one parent.",
        "A part listens to all its parents and splits, under one softmax.",
        _several_parents,
    ).planted(plain.stacking),
    Mistake(
        "hear",
        plain_mean,
        "All that a part is told counts the same.",
        "What a part is told is weighted by the softmax of its scores.",
        _several_parents,
    ).planted(plain.stacking),
    Mistake(
        "next_leaves",
        leaves_from_inside,
        "The next layer starts from the leaves of this one.",
        "The next layer starts from what the leaves were told.",
        stacked,
    ).planted(plain.stacking),
    Mistake(
        "next_context",
        empty_cell_again,
        "The context of the second layer is the empty cell, once more.",
        "From the second layer on, the context of a span is its outside vector.",
        stacked,
    ).planted(plain.stacking),
    Mistake(
        "cuts",
        window_of_tokens,
        "The window m is read as a number of units, which leaves m − 1 splits.",
        "A run of m + 1 units has m splits.",
        lambda case: tokens(case) >= 3 and 1 < (case.options.get("window") or 1) < tokens(case),
    ).planted(plain.stacking, "stacked_"),
    Mistake(
        "part_score",
        all_parts_count_zero,
        "Under the zero rule every part counts 0, merged or not.",
        "Only parts that pruning merged count 0.",
        lambda case: drops(case) and case.options["window"] > 1,
    ).planted(plain.stacking),
)


def places_added(x: np.ndarray) -> Any:
    """Return the nodes as they enter the first layer."""
    return x + np.sin(np.arange(x.shape[-2]))[:, None]


def padding_seen(mask: np.ndarray) -> Any:
    """Return what is added to the scores of keys."""
    return np.zeros(mask.shape)


def padding_alone_seen(mask: np.ndarray) -> Any:
    """Return what is added to the scores of keys."""
    return np.where(mask, -1e9, 0.0)


def values_of_bare_nodes(x: np.ndarray, w: Any, n_heads: int, unseen: Any) -> Any:
    """Return the nodes after one layer."""
    x = x + attend(x, x, w.attention, n_heads, hidden=unseen)
    y = normed(x, w.norm2_w, w.norm2_b)
    return x + gelu(y @ w.w1 + w.b1) @ w.w2 + w.b2


def last_norm(x: np.ndarray) -> Any:
    """Return the nodes as they leave the last layer."""
    return normed(x, np.ones(x.shape[-1]), np.zeros(x.shape[-1]))


def _padded(case: Case) -> bool:
    return filled(case) and "mask" in case.arrays and len(case.arrays["layers"]) > 0 and not case.arrays["mask"].all()


def _several_nodes(case: Case) -> bool:
    return filled(case) and case.arrays["x"].shape[-2] > 1


NODE_BUGS = (
    Mistake(
        "before",
        places_added,
        "Positions are added to the nodes.",
        "Nodes have no positions: their outside vectors know where they are.",
        _several_nodes,
    ).planted(plain.encoding),
    Mistake(
        "hidden",
        padding_seen,
        "Padding takes part as a key.",
        "Padding is hidden from every node.",
        _padded,
    ).planted(plain.encoding),
    Mistake(
        "hidden",
        padding_alone_seen,
        "The mask is read the other way round: True hides.",
        "True marks a node that may be seen.",
        _padded,
    ).planted(plain.encoding),
    Mistake(
        "node_layer",
        values_of_bare_nodes,
        "Attention takes the nodes without the first norm.",
        "The Transformer normalises before it attends.",
        lambda case: filled(case) and len(case.arrays["layers"]) > 0,
    ).planted(plain.encoding),
    Mistake(
        "after",
        last_norm,
        "A last norm follows the layers.",
        "The Transformer over nodes ends without a norm.",
        filled,
    ).planted(plain.encoding),
)


def gates_in_another_order(z: np.ndarray) -> Any:
    """Return the input, forget, candidate and output parts."""
    i, f, o, g = np.split(z, 4, axis=-1)
    return 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), np.tanh(g), 1 / (1 + np.exp(-o))


def states_left_reversed(x: np.ndarray, run: Any) -> Any:
    """Return the states of the backward direction."""
    return run(x[..., ::-1, :])


def both_from_the_left_token(ahead: np.ndarray, back: np.ndarray) -> Any:
    """Return what is known at each split point."""
    return np.concatenate([ahead[..., :-1, :], back[..., :-1, :]], axis=-1)


def rectified(x: np.ndarray) -> Any:
    """Return the non-linearity of the score."""
    return np.maximum(x, 0.0)


PARSER_BUGS = (
    Mistake(
        "gates",
        gates_in_another_order,
        "The gates are taken as input, forget, output, candidate.",
        "The gates lie in the order input, forget, candidate, output.",
        at_least(2),
    ).planted(plain.parsing),
    Mistake(
        "backwards",
        states_left_reversed,
        "The states of the backward direction are left in the order of reading.",
        "Every token's backward state belongs at its place.",
        at_least(2),
    ).planted(plain.parsing),
    Mistake(
        "sides",
        both_from_the_left_token,
        "Both directions are taken at the token before the split point.",
        "A split point lies between two tokens: forward state of the left one, backward state of the right one.",
        at_least(2),
    ).planted(plain.parsing),
    Mistake(
        "squash",
        rectified,
        "The score uses a rectifier.",
        "The score uses the exact GELU.",
        at_least(2),
        ("float64", "float32", "float16"),
    ).planted(plain.parsing),
)


def worst_split(s: np.ndarray) -> Any:
    """Choose among the splits of a span."""
    return int(np.argmin(s))


def right_part_first(i: int, k: int, j: int) -> Any:
    """Return the parts of a span in the order in which they are listed."""
    return [(k + 1, j), (i, k)]


def inside_vector(e: np.ndarray, _o: np.ndarray) -> Any:
    """Return what enters the Transformer for a node."""
    return e


def hidden_layer_left_out(x: np.ndarray, weights: Any) -> Any:
    """Return the logits of words."""
    return x @ weights.embedding.T + weights.mlm_bias


def weights_of_words_normalised(x: np.ndarray, weights: Any) -> Any:
    """Return the logits of words."""
    return softmax(gelu(x @ weights.mlm_w + weights.mlm_b) @ weights.embedding.T + weights.mlm_bias)


MODEL_BUGS = (
    Mistake(
        "choose",
        worst_split,
        "The tree takes the split with the lowest score.",
        "The tree takes the split with the highest score.",
        lambda case: tokens(case) >= 3 and case.options.get("window", 2) != 1,
    ).planted(plain.modelling),
    Mistake(
        "walk",
        right_part_first,
        "Right parts are listed before left ones.",
        "Nodes are in preorder: a node, its left part, its right part.",
        at_least(2),
    ).planted(plain.modelling),
    Mistake(
        "node_vector",
        inside_vector,
        "The inside vectors of the nodes enter the Transformer.",
        "The outside vectors enter: they know the surroundings.",
        at_least(2),
    ).planted(plain.modelling),
    Mistake(
        "predict",
        hidden_layer_left_out,
        "The vectors meet the embeddings without the hidden layer.",
        "The word predictor has one hidden layer with a GELU.",
    ).planted(plain.modelling),
    Mistake(
        "predict",
        weights_of_words_normalised,
        "Probabilities are returned instead of logits.",
        "The word predictor returns logits.",
    ).planted(plain.modelling),
)
