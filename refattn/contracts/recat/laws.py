"""What every implementation of ReCAT obeys, stated between its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.contracts.recat.bugs import filled, tokens
from refattn.layers.recat_cells import CellWeights, HeadWeights, ScoreWeights
from refattn.layers.recat_passes import LayerWeights, chart_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe
    from refattn.layers.recat_chart import Chart
    from refattn.layers.recat_parser import LSTMWeights

__all__ = [
    "CIO_LAWS",
    "COMPOSE_LAWS",
    "INSIDE_LAWS",
    "MODEL_LAWS",
    "NODE_LAWS",
    "PARSER_LAWS",
    "SPREAD_LAWS",
]


def _chart(case: Case) -> Chart:
    n = case.arrays["leaves"].shape[-2]
    return chart_of(n, case.options.get("window"), case.options.get("order"))


def _swapped(weights: CellWeights, first: int, second: int) -> CellWeights:
    rows = [0, 1, 2]
    rows[first], rows[second] = second, first
    return weights._replace(roles=weights.roles[rows])


def _parts_and_roles_may_change_places(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    arrays = case.arrays
    other = case.having(left=arrays["right"], right=arrays["left"], weights=_swapped(arrays["weights"], 1, 2))
    slack = probe.slack(case)["out"] + probe.slack(other)["out"]
    yield Claim(probe(case)["out"], probe(other)["out"], 2.0 * slack)


def _what_parts_are_told_changes_places(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    arrays = case.arrays
    other = case.having(left=arrays["right"], right=arrays["left"], weights=_swapped(arrays["weights"], 0, 1))
    slack = probe.slack(case)["out"] + probe.slack(other)["out"][:, ::-1]
    yield Claim(probe(case)["out"], probe(other)["out"][:, ::-1], 2.0 * slack)


COMPOSE_LAWS = (
    Law(
        "parts_and_roles_may_change_places",
        "Exchanging the two parts together with their roles changes nothing.",
        _parts_and_roles_may_change_places,
        filled,
        witness="second_and_third_share_a_role",
    ),
)
SPREAD_LAWS = (
    Law(
        "what_parts_are_told_changes_places",
        "Exchanging the two parts together with their roles exchanges what they are told.",
        _what_parts_are_told_changes_places,
        filled,
        witness="spread_first_two_share_a_role",
    ),
)


def _a_span_sees_its_own_tokens(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    leaves = case.arrays["leaves"].copy()
    token = int(rng.integers(leaves.shape[-2]))
    leaves[..., token, :] = 1.0 - leaves[..., token, :]
    apart = [row for row, (i, j) in enumerate(_chart(case).splits) if not i <= token <= j]
    out, changed = probe(case), probe(case.having(leaves=leaves))
    slack = 2.0 * probe.slack(case)["vectors"][..., apart]  # other rows may go through other kernels
    what = f"cells without token {token}"
    yield Claim(changed["vectors"][..., apart, :], out["vectors"][..., apart, :], slack, what)


def _weights_sum_to_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out, slack = probe(case)["weights"], probe.slack(case)["weights"]
    begin = 0
    for span, splits in _chart(case).splits.items():
        if splits:
            sums = out[..., begin : begin + len(splits)].sum(axis=-1, keepdims=True)
            yield Claim(sums, np.ones_like(sums), 2.0 * len(splits) ** 0.5 * slack, f"the splits of {span}")
            begin += len(splits)


def _raised(heads: ScoreWeights) -> tuple[ScoreWeights, float]:
    """Return heads that add a constant to every score of a pair, and the constant.

    Sixteen times as many channels divide the product by 4 times as much: doubling both vectors makes up for it, without
    rounding. Of the new channels one holds 4 on both sides, the others 0.
    """
    c = heads.inside_left.w2.shape[-1]

    def wider(head: HeadWeights) -> HeadWeights:
        w2 = np.concatenate([2.0 * head.w2, np.zeros((len(head.w2), 15 * c))], axis=-1)
        return head._replace(w2=w2, b2=np.concatenate([2.0 * head.b2, [4.0], np.zeros(15 * c - 1)]))

    wide = heads._replace(inside_left=wider(heads.inside_left), inside_right=wider(heads.inside_right))
    return wide, 16.0 / (16.0 * c) ** 0.5


def _a_constant_counts_once_a_merge(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    heads, constant = _raised(case.arrays["heads"])
    raised = case.having(heads=heads)
    out, higher = probe(case), probe(raised)
    own, other = probe.slack(case), probe.slack(raised)
    merges = np.array([j - i for i, j in _chart(case).splits], float)
    yield Claim(higher["vectors"], out["vectors"], 2.0 * (own["vectors"] + other["vectors"]), "vectors")
    slack = 2.0 * (own["scores"] + other["scores"])
    yield Claim(higher["scores"], out["scores"] + constant * merges, slack, "scores")


def _keeps_scores(case: Case) -> bool:
    return tokens(case) > 1 and case.options.get("merged_scores", "kept") == "kept"


INSIDE_LAWS = (
    Law(
        "a_span_sees_its_own_tokens",
        "Changing a token leaves the inside vectors of all spans without it as they are.",
        _a_span_sees_its_own_tokens,
        lambda case: tokens(case) > 1,
        witness="leaves_centred_over_the_sentence",
    ),
    Law(
        "weights_sum_to_one",
        "The weights of the splits of each span sum to one.",
        _weights_sum_to_one,
        lambda case: tokens(case) > 1,
        witness="each_split_for_itself",
    ),
    Law(
        "a_constant_counts_once_a_merge",
        "A constant added to the score of every pair counts j − i times in the score of (i, j) and changes no vector.",
        _a_constant_counts_once_a_merge,
        _keeps_scores,
        witness="own_score_only",
    ),
)


def _a_wide_window_is_exact(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    n = case.arrays["leaves"].shape[-2]
    exact = case.without("window", "order", "merged_scores")
    order = [int(p) for p in rng.permutation(n - 1)]
    wide = exact.having(window=n - 1, order=order)
    left, right, slack = probe(wide), probe(exact), probe.slack(exact)
    for name in left:
        yield Claim(left[name], right[name], 2.0 * slack[name], f"{name}, order {order}")


def _the_root_is_told_itself(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out = probe(case)
    e, o, b = out["inside_vectors"], out["outside_vectors"], out["outside_scores"]
    yield Claim(o[..., -1, :], e[..., -1, :], 0.0, "vector")
    yield Claim(b[..., -1:], np.zeros_like(b[..., -1:]), 0.0, "score")


def _the_next_layer_starts_from_the_last(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    arrays, options, out = case.arrays, dict(case.options), probe.raw(case)
    o = out.outside_vectors[0]
    n = arrays["leaves"].shape[-2]
    given = {"leaves": o[..., :n, :], "context": o, "weights": arrays["layers"][1].inside, "heads": arrays["heads"]}
    again = probe.raw(Case("inside_cells", given, options, case.dtype, case.label))
    slack = probe.slack(case)["inside_vectors"][1]
    yield Claim(out.inside_vectors[1], again.vectors, 2.0 * slack)


def _mirrored(case: Case) -> Case:
    """Return the case with the sentence, the sides of all roles and heads, and the order turned round."""
    heads = case.arrays["heads"]
    turned = ScoreWeights(
        heads.inside_right, heads.inside_left, heads.outside_right, heads.outside_left, heads.outside_parent
    )
    layers = tuple(
        LayerWeights(_swapped(layer.inside, 1, 2), _swapped(layer.outside, 0, 1)) for layer in case.arrays["layers"]
    )
    n = case.arrays["leaves"].shape[-2]
    options = {"order": [n - 2 - p for p in case.options["order"]]} if "order" in case.options else {}
    return case.having(leaves=case.arrays["leaves"][..., ::-1, :], layers=layers, heads=turned, **options)


def _left_and_right_mirror_each_other(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    n = case.arrays["leaves"].shape[-2]
    mirrored = _mirrored(case)
    rows = {span: row for row, span in enumerate(_chart(mirrored).splits)}
    back = [rows[n - 1 - j, n - 1 - i] for i, j in _chart(case).splits]
    left, right = probe(case), probe(mirrored)
    own, other = probe.slack(case), probe.slack(mirrored)
    for name in ("inside_vectors", "outside_vectors"):
        slack = 2.0 * (own[name] + other[name][..., back])
        yield Claim(left[name], right[name][..., back, :], slack, name)


CIO_LAWS = (
    Law(
        "a_wide_window_is_exact",
        "With a window of n − 1 or more the pruned chart is the exact one, whatever the order.",
        _a_wide_window_is_exact,
        lambda case: tokens(case) > 1,
        witness="stacked_window_of_tokens",
    ),
    Law(
        "the_root_is_told_itself",
        "The outside vector of the whole sentence is its inside vector, and its outside score is 0.",
        _the_root_is_told_itself,
        lambda case: tokens(case) > 0,
        witness="nothing_for_the_root",
    ),
    Law(
        "the_next_layer_starts_from_the_last",
        "The second inside pass is one over the outside vectors of the first layer, as leaves and as contexts.",
        _the_next_layer_starts_from_the_last,
        lambda case: tokens(case) > 1 and len(case.arrays["layers"]) > 1,
        needs=("inside_cells",),
        witness="empty_cell_again",
    ),
    Law(
        "left_and_right_mirror_each_other",
        "A sentence read from right to left, with all sides exchanged, has the same vectors.",
        _left_and_right_mirror_each_other,
        lambda case: tokens(case) > 1,
        witness="one_head_for_both_sides",
    ),
)


def _nodes_may_be_permuted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["x"]
    order = np.roll(np.arange(x.shape[-2]), int(rng.integers(1, x.shape[-2])))
    masks = {"mask": case.arrays["mask"][:, order]} if "mask" in case.arrays else {}
    turned = case.having(x=x[:, order], **masks)
    slack = probe.slack(case)["out"][:, order] + probe.slack(turned)["out"]
    yield Claim(probe(turned)["out"], probe(case)["out"][:, order], 2.0 * slack)


def _padding_may_hold_anything(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x, mask = case.arrays["x"], case.arrays["mask"]
    noise = np.round(4.0 * rng.standard_normal(x.shape))
    other = case.having(x=np.where(mask[..., None], x, noise))
    yield Claim(probe(other)["out"][mask], probe(case)["out"][mask], 2.0 * probe.slack(case)["out"][mask])


NODE_LAWS = (
    Law(
        "nodes_may_be_permuted",
        "Permuting the nodes permutes the results: nodes have no positions.",
        _nodes_may_be_permuted,
        lambda case: filled(case) and case.arrays["x"].shape[-2] > 1,
        witness="places_added",
    ),
    Law(
        "padding_may_hold_anything",
        "What padding holds changes no node.",
        _padding_may_hold_anything,
        lambda case: filled(case) and "mask" in case.arrays,
        witness="padding_seen",
    ),
)


def _halves_swapped(w: np.ndarray) -> np.ndarray:
    return np.roll(w, len(w) // 2, axis=0)


def _parsing_backwards(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"]
    layers: list[tuple[LSTMWeights, ...]] = []
    for depth, ways in enumerate(weights.layers):
        turned = [w._replace(w_x=_halves_swapped(w.w_x)) if depth else w for w in ways]
        layers.append((turned[1], turned[0]))
    turned_round: Any = weights._replace(layers=tuple(layers), w1=_halves_swapped(weights.w1))
    other = case.having(x=case.arrays["x"][:, ::-1], weights=turned_round)
    slack = 2.0 * (probe.slack(case)["out"] + probe.slack(other)["out"])
    yield Claim(probe(other)["out"][:, ::-1], probe(case)["out"], slack)


PARSER_LAWS = (
    Law(
        "parsing_backwards",
        "A sentence read from right to left, with the two directions exchanged, has the same scores.",
        _parsing_backwards,
        lambda case: tokens(case) > 1,
        witness="both_from_the_left_token",
    ),
)


def _the_leaves_are_the_words_in_order(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out = probe(case)
    first, last = out["nodes"].T.astype(float)
    leaf = out["splits"] < 0
    words = np.arange(len(case.arrays["token_ids"]), dtype=float)
    yield Claim(first[leaf], words, 0.0, "first tokens of leaves")
    yield Claim(last[leaf], words, 0.0, "last tokens of leaves")


def _a_left_part_follows_its_parent(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out = probe(case)
    nodes, splits = out["nodes"].astype(float), out["splits"].astype(float)
    inner = np.flatnonzero(splits >= 0)
    expected = np.stack([nodes[inner, 0], splits[inner]], axis=-1)
    yield Claim(nodes[np.minimum(inner + 1, len(nodes) - 1)], expected, 0.0)


MODEL_LAWS = (
    Law(
        "the_leaves_are_the_words_in_order",
        "The leaves of the tree are the words, from left to right.",
        _the_leaves_are_the_words_in_order,
        witness="right_part_first",
    ),
    Law(
        "a_left_part_follows_its_parent",
        "After a node that is split at k comes its left part, which ends at k.",
        _a_left_part_follows_its_parent,
        lambda case: tokens(case) > 1,
        witness="right_part_first",
    ),
)
