"""Mistakes about who sees whom, part two: the causal rule, the diagonal, windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refattn.contracts.attention.bugs.plant import (
    aligned,
    both,
    given,
    is_causal,
    keys_longer_than,
    not_causal,
    planted,
)
from refattn.contracts.attention.call import each, sizes
from refattn.contracts.attention.carriers import BLOCK

if TYPE_CHECKING:
    from refattn.conformance.contract import Case
    from refattn.contracts.attention.call import Call

__all__ = ["CAUSAL", "DIAGONAL", "WINDOW"]


def causal_missing(_c: Call) -> bool:
    return True


def causal_loose(c: Call) -> Any:
    return c.j <= c.p + 1


def causal_strict(c: Call) -> Any:
    return c.j < c.p


def causal_transposed(c: Call) -> Any:
    return c.j >= c.p


def causal_top_left(c: Call) -> Any:
    return c.j <= c.i


def causal_bottom_right(c: Call) -> Any:
    return c.j <= c.i + each(c.kv_lengths - c.q_lengths)


def causal_padded_length(c: Call) -> Any:
    padded = c.k.shape[2] - c.q.shape[2]
    return c.j <= c.i + padded


def causal_block_coarse(c: Call) -> Any:
    return c.j // BLOCK <= c.p // BLOCK


def causal_skip_diagonal_block(c: Call) -> Any:
    last_of_block = c.j // BLOCK * BLOCK + BLOCK - 1
    return last_of_block <= c.p


def _sides_differ(case: Case) -> bool:
    return sizes(case).sq != sizes(case).sk


CAUSAL = (
    planted(
        "causal_missing", "causal flag ignored", "Hide the keys with j > p.", option="causal", causal=causal_missing
    ),
    planted(
        "causal_loose",
        "j <= p + 1",
        "A query sees up to its own position: j ≤ p.",
        option="causal",
        causal=causal_loose,
    ),
    planted(
        "causal_strict", "j < p", "A query sees its own position too: j ≤ p.", option="causal", causal=causal_strict
    ),
    planted(
        "causal_transposed",
        "attends the future: j >= p",
        "Rows of the mask are queries: j ≤ p.",
        option="causal",
        causal=causal_transposed,
    ),
    planted(
        "causal_top_left",
        "top-left alignment where bottom-right is asked",
        "Bottom-right: the last query sees the last key, p = i + n_k − n_q.",
        aligned("bottom_right"),
        option="causal",
        causal=causal_top_left,
    ),
    planted(
        "causal_bottom_right",
        "bottom-right alignment where top-left is asked",
        "Top-left: the first query has position 0, p = i.",
        both(aligned("top_left"), _sides_differ),
        option="causal",
        causal=causal_bottom_right,
    ),
    planted(
        "causal_padded_length",
        "bottom-right computed from the padded Sk, not the valid length",
        "The offset is n_k − n_q of each batch entry; padding does not count.",
        both(aligned("bottom_right"), given("kv_lengths")),
        option="causal",
        causal=causal_padded_length,
    ),
    planted(
        "causal_block_coarse",
        "block causality: the whole diagonal block (16x16) is visible",
        "Mask within the blocks that the diagonal crosses.",
        option="causal",
        causal=causal_block_coarse,
    ),
    planted(
        "causal_skip_diagonal_block",
        "key blocks that are only partly visible (16) are skipped",
        "Skip a block only if none of its keys is visible; mask within the others.",
        option="causal",
        causal=causal_skip_diagonal_block,
    ),
)


def diagonal_dropped(c: Call) -> Any:
    return c.j != c.p


DIAGONAL = (
    planted(
        "diagonal_dropped",
        "key j = p left out although not causal",
        "Without a causal rule every key is visible, a query's own position among them.",
        both(not_causal, keys_longer_than(1)),
        causal=diagonal_dropped,
    ),
)


def window_ignored(_c: Call) -> bool:
    return True


def window_left_plus1(c: Call) -> Any:
    left, right = c.window
    return (c.p - left - 1 <= c.j) & (True if right is None else c.j <= c.p + right)


def window_left_minus1(c: Call) -> Any:
    left, right = c.window
    return (c.p - left + 1 <= c.j) & (True if right is None else c.j <= c.p + right)


def window_right_plus1(c: Call) -> Any:
    left, right = c.window
    return (True if left is None else c.p - left <= c.j) & (c.j <= c.p + right + 1)


def window_right_ignored(c: Call) -> Any:
    return c.p - c.window[0] <= c.j


def window_no_offset(c: Call) -> Any:
    left, right = c.window
    return (left is None or c.i - left <= c.j) & (right is None or c.j <= c.i + right)


def _window(case: Case) -> tuple[int | None, int | None]:
    left, right = case.options.get("window", (None, None))
    return left, right


def _left(case: Case) -> bool:
    return _window(case)[0] is not None


def _right(case: Case) -> bool:
    return _window(case)[1] is not None and not is_causal(case)


def _shifted_window(case: Case) -> bool:
    return (_left(case) or _right(case)) and case.options.get("align", "top_left") != "top_left"


WINDOW = (
    planted(
        "window_ignored",
        "no window",
        "Hide the keys outside p − left … p + right.",
        lambda case: _left(case) or _right(case),
        option="window",
        window=window_ignored,
    ),
    planted(
        "window_left_plus1",
        "one key too many on the left (exclusive count read as inclusive)",
        "left counts the keys beside the query's own: j ≥ p − left.",
        _left,
        option="window",
        window=window_left_plus1,
    ),
    planted(
        "window_left_minus1",
        "one key too few on the left (counts the query itself)",
        "left counts the keys beside the query's own: j ≥ p − left.",
        _left,
        option="window",
        window=window_left_minus1,
    ),
    planted(
        "window_right_plus1",
        "one key too many on the right",
        "right counts the keys beside the query's own: j ≤ p + right.",
        _right,
        option="window",
        window=window_right_plus1,
    ),
    planted(
        "window_right_ignored",
        "right bound ignored",
        "A window has two sides.",
        lambda case: _left(case) and _right(case),
        option="window",
        window=window_right_ignored,
    ),
    planted(
        "window_no_offset",
        "window measured from the row number, not the position",
        "Measure from the query's position p = i + offset, not from its row.",
        _shifted_window,
        option="window",
        window=window_no_offset,
    ),
)
