"""What holds between results of gCOG's networks, its image tokens and its solver, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "CROSS_LAWS",
    "DEEP_LAWS",
    "DUAL_LAWS",
    "GRU_LAWS",
    "PERCEIVER_LAWS",
    "QUERY_LAWS",
    "RNN_LAWS",
    "SINGLE_LAWS",
    "SOLVER_LAWS",
    "TOKEN_LAWS",
]


def _sums_to_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    total = np.exp(probe(case)["log_probs"]).sum(axis=-1, keepdims=True)
    # an error of δ in the logarithms changes the sum by e^δ − 1 at most
    slack = np.expm1(np.minimum(probe.slack(case)["log_probs"], 50.0)) + 1e-12
    yield Claim(total, np.ones_like(total), slack)


def _normalised(witness: str) -> Law:
    return Law(
        "answers_are_probabilities", "The probabilities of all answers sum to one.", _sums_to_one, witness=witness
    )


def _permuted(probe: Probe, case: Case, rng: np.random.Generator, *, fixed: int) -> Iterator[Claim]:
    plain = case.having(positional=False)
    x = plain.arrays["stimulus"]
    free = x.shape[-2] - fixed
    order = np.concatenate([np.roll(np.arange(free), rng.integers(1, free)), np.arange(free, x.shape[-2])])
    moved = plain.having(stimulus=x[..., order, :])
    slack = probe.slack(plain)["log_probs"] + probe.slack(moved)["log_probs"]
    yield Claim(probe(plain)["log_probs"], probe(moved)["log_probs"], slack)


def _any_order(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    yield from _permuted(probe, case, rng, fixed=0)


def _any_order_before_end(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    yield from _permuted(probe, case, rng, fixed=1)


def _number_of_latents(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    one, three = case.having(n_latents=1), case.having(n_latents=3)
    for name in ("log_probs", "hidden"):
        yield Claim(probe(one)[name], probe(three)[name], probe.slack(one)[name] + probe.slack(three)[name], name)


def _later_tokens_first(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Claim that the end token, which sees all, cannot tell their order where all distances look the same."""
    w = case.arrays["weights"]
    still = w._replace(rule=w.rule._replace(relative=np.zeros_like(w.rule.relative)))
    plain = case.having(weights=still)
    x = plain.arrays["rule"]
    moved = plain.having(rule=np.concatenate([x[..., -2::-1, :], x[..., -1:, :]], axis=-2))
    slack = probe.slack(plain)["log_probs"] + probe.slack(moved)["log_probs"]
    yield Claim(probe(plain)["log_probs"], probe(moved)["log_probs"], slack)


def _size(case: Case, name: str, least: int) -> bool:
    x = case.arrays[name]
    return bool(x.size and x.shape[-2] >= least)


_PERMUTATION = "Without positions the answer does not depend on the order of the image's tokens."
_SUBSTITUTE = {5: 8, 8: 5, 6: 7, 7: 6}


def _tree_rows(n_tokens: int) -> list[list[int]]:
    """Return the rows of operators, level by level."""
    levels: list[list[int]] = []
    while not levels or levels[-1][-1] + 2 < n_tokens:
        begin = 2 * (2 ** len(levels) - 1)
        levels.append(list(range(begin, begin + 2 ** len(levels))))
    return levels


def _swapped(rules: np.ndarray) -> np.ndarray:
    """Return tasks whose roots are negated and whose branches have changed sides, where the root can be negated."""
    out = rules.copy()
    can = np.isin(rules[:, 0, 0], list(_SUBSTITUTE))
    for level in _tree_rows(rules.shape[1])[1:]:
        half = len(level) // 2
        out[:, level] = np.where(can[:, None, None], rules[:, level[half:] + level[:half]], rules[:, level])
    out[can, 0, 0] = [_SUBSTITUTE[int(op)] for op in rules[can, 0, 0]]
    return out


def _branches_may_be_swapped(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield Claim(probe(case)["out"], probe(case.having(rules=_swapped(case.arrays["rules"])))["out"])


def _colors_may_be_renamed(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    colors, shapes = case.options["n_colors"], case.options["n_shapes"]
    new = np.concatenate([[0], 1 + np.roll(np.arange(colors), rng.integers(1, max(2, colors)))])
    rules, grid = case.arrays["rules"].copy(), case.arrays["grid"].copy()
    ops = rules[..., 0]
    asked = (ops >= 1) & (ops <= 8)
    for column in (2, 5):
        rules[..., column] = np.where(asked, new[rules[..., column]], rules[..., column])
    grid[..., 0] = new[grid[..., 0]]
    first = 2 + grid.shape[1] ** 2 + shapes
    expected = probe(case)["out"].copy()
    said = expected >= first
    expected[said] = first - 1 + new[(expected[said] - first + 1).astype(int)]
    yield Claim(probe(case.having(rules=rules, grid=grid))["out"], expected)


def _transposing_moves_cells_only(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    ops = case.arrays["rules"][..., 0]
    keep = ~np.isin(ops, (3, 4)).any(axis=-1)  # which of several a get-operator takes depends on the order of rows
    G = case.arrays["grid"].shape[1]
    label = probe(case)["out"]
    b, a = np.divmod(label - 2, G)
    expected = np.where((label >= 2) & (label < 2 + G**2), 2 + G * a + b, label)
    turned = case.having(grid=np.swapaxes(case.arrays["grid"], 1, 2).copy())
    yield Claim(probe(turned)["out"][keep], expected[keep])


def _one_hot_says_the_same(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    n_colors, n_shapes = case.options["n_colors"], case.options["n_shapes"]
    hot = probe(case.having(one_hot=True))["out"]
    meaning = np.zeros((n_colors + n_shapes + 1, 3))
    meaning[:n_colors, 0], meaning[n_colors:-1, 1] = np.arange(1, n_colors + 1), np.arange(1, n_shapes + 1)
    meaning[-1, 2] = 1
    yield Claim(hot @ meaning, probe(case.having(one_hot=False))["out"])


def _cells_are_sums(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    grid = case.arrays["grid"]
    out = probe(case.having(one_hot=False))["out"]
    yield Claim(out[:, :-1, :-1].reshape(grid.shape).astype(float), grid.astype(float), what="cells")
    yield Claim(out[:, -1], np.broadcast_to([0.0, 0.0, 1.0], out[:, -1].shape), what="end")


def _has_batch(case: Case) -> bool:
    return bool(len(next(iter(case.arrays.values()))))


def _deep_tree(case: Case) -> bool:
    return _has_batch(case) and case.arrays["rules"].shape[1] > 2


def _relative(case: Case) -> bool:
    weights: Any = case.arrays["weights"]
    return weights.rule.relative is not None and _size(case, "rule", 3)


DUAL_LAWS = (
    _normalised("left_unnormalised"),
    Law(
        "image_order_before_the_end",
        "Without positions only the end token's place matters; the image's other tokens may be permuted.",
        _any_order_before_end,
        lambda case: _size(case, "stimulus", 3),
        witness="first_token_read",
    ),
    Law(
        "distances_alone_know_order",
        "With a table of zeros the rule's tokens before the end may change places.",
        _later_tokens_first,
        _relative,
        witness="first_token_read",
    ),
)
SINGLE_LAWS = (_normalised("single_left_unnormalised"),)
DEEP_LAWS = (_normalised("deep_left_unnormalised"),)
CROSS_LAWS = (
    _normalised("cross_left_unnormalised"),
    Law(
        "image_order",
        _PERMUTATION,
        _any_order,
        lambda case: _size(case, "stimulus", 2),
        witness="cross_causal_where_open",
    ),
)
PERCEIVER_LAWS = (
    _normalised("perceiver_left_unnormalised"),
    Law(
        "one_latent_would_do",
        "As all latents begin as zeros they stay equal: their number changes nothing.",
        _number_of_latents,
        witness="perceiver_latents_begin_apart",
    ),
)
QUERY_LAWS = (
    _normalised("query_left_unnormalised"),
    Law(
        "image_order",
        _PERMUTATION,
        _any_order,
        lambda case: _size(case, "stimulus", 2),
        witness="query_causal_where_open",
    ),
)
RNN_LAWS = (_normalised("rnn_left_unnormalised"),)
GRU_LAWS = (_normalised("gru_left_unnormalised"),)
SOLVER_LAWS = (
    Law(
        "branches_may_be_swapped",
        "A negated sum or product with its branches exchanged is the same question.",
        _branches_may_be_swapped,
        _deep_tree,
        witness="solver_odd_is_even",
    ),
    Law(
        "colors_may_be_renamed",
        "Renaming the colours of task and image renames the colours of answers, and changes nothing else.",
        _colors_may_be_renamed,
        _has_batch,
        witness="solver_colors_before_shapes",
    ),
    Law(
        "transposing_moves_cells_only",
        "Sums, products and existence do not know rows from columns, and cells change their two coordinates.",
        _transposing_moves_cells_only,
        _has_batch,
        witness="solver_second_coordinate_only",
    ),
)
TOKEN_LAWS = (
    Law(
        "one_hot_says_the_same",
        "The one-hot form and the numbers say the same.",
        _one_hot_says_the_same,
        _has_batch,
        witness="tokens_hot_from_zero",
    ),
    Law(
        "cells_in_the_order_of_rows",
        "The tokens hold the cells row by row, and after them one end token.",
        _cells_are_sums,
        _has_batch,
        witness="tokens_columns_first",
    ),
)
