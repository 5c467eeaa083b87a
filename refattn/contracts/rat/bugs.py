"""Mistakes in the parallel form of RAT, each one step replaced by a slip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refattn.conformance.contract import Bug
from refattn.contracts.rat import slips
from refattn.contracts.rat.straight import attention_with, causal_with, layer_with, rnn_with, scan_with

if TYPE_CHECKING:
    from refattn.conformance.contract import Case

__all__ = ["ATTENTION_BUGS", "CAUSAL_BUGS", "LAYER_BUGS", "RNN_BUGS", "SCAN_BUGS"]


def tokens(case: Case) -> int:
    """T of a case."""
    array = case.arrays.get("x", case.arrays.get("q", case.arrays.get("value")))
    return 0 if array is None or array.size == 0 else int(array.shape[-2])


def chunks(case: Case) -> int:
    """C of a case."""
    return tokens(case) // int(case.options.get("chunk_size") or 16)


def _long_chunks(case: Case) -> bool:
    return chunks(case) > 0 and case.options["chunk_size"] > 1


def _turns(case: Case) -> bool:
    return chunks(case) > 1 and case.options.get("rope_base", 10000.0) is not None


def _shares(case: Case) -> bool:
    return tokens(case) > 0 and 1 < case.options.get("num_groups", 2) < case.options["num_heads"] and chunks(case) > 1


_RESTART = "Start every chunk with a state of zero."
_OWN = "A token sees the memories of chunks before its own, and its own running state in the place of its own chunk."
_BLEND = "The gate keeps g of the state and lets 1 − g of the value in."

LAYER_BUGS = (
    Bug(
        "groups_repeated",
        "Heads share groups as in grouped-query attention: h uses group h // (H/G).",
        layer_with(share=slips.repeated_groups),
        applies=_shares,
        source=slips.repeated_groups,
        remedy="Tile the groups: head h uses group h mod G.",
    ),
    Bug(
        "state_runs_on",
        "The recurrence is not restarted at the start of a chunk.",
        layer_with(restarts=slips.never_restarts),
        applies=lambda case: chunks(case) > 1,
        source=slips.never_restarts,
        remedy=_RESTART,
    ),
    Bug(
        "own_memory_seen",
        "A token attends to the finished memory of its own chunk: it sees the future.",
        layer_with(visible=slips.own_chunk_too),
        applies=lambda case: chunks(case) > 0,
        source=slips.own_chunk_too,
        remedy=_OWN,
    ),
    Bug(
        "token_positions",
        "Queries and keys are rotated by the index of the token.",
        layer_with(positions=slips.token_positions),
        applies=lambda case: _turns(case) and _long_chunks(case),
        source=slips.token_positions,
        remedy="Rotate by the index of the chunk, t // L.",
    ),
    Bug(
        "values_rotated",
        "Values are rotated like keys.",
        layer_with(rotate_values=slips.values_rotated),
        applies=_turns,
        source=slips.values_rotated,
        remedy="Rotate queries and keys only.",
    ),
    Bug(
        "value_times_gate",
        "The value enters with weight g instead of 1 − g.",
        layer_with(blend=slips.value_times_gate),
        applies=lambda case: tokens(case) > 0,
        source=slips.value_times_gate,
        remedy=_BLEND,
    ),
    Bug(
        "keys_not_gated",
        "Only values go through the recurrence; a chunk's key is the bare key of its last token.",
        layer_with(recur=slips.keys_left_out),
        applies=lambda case: chunks(case) > 1,
        source=slips.keys_left_out,
        remedy="Keys and values go through the same recurrence with the same gate.",
    ),
    Bug(
        "gate_before_value",
        "The projection is split in the order output gate, forget gate, value.",
        layer_with(split=slips.gated_value_first),
        applies=lambda case: tokens(case) > 0,
        source=slips.gated_value_first,
        remedy="The columns are output gate, value, forget gate, queries, keys.",
    ),
    Bug(
        "scaled_by_width",
        "Scores are divided by the root of D.",
        layer_with(scale=slips.scaled_by_width),
        applies=lambda case: chunks(case) > 1 and case.options["num_heads"] > 1,
        source=slips.scaled_by_width,
        remedy="Divide by the root of the width of a head, D / H.",
    ),
    Bug(
        "queries_in_recurrence",
        "Queries go through the recurrence too.",
        layer_with(recur=slips.queries_too),
        applies=lambda case: chunks(case) > 1,
        source=slips.queries_too,
        remedy="Queries stay as they are projected: only what is remembered is summed up.",
    ),
    Bug(
        "residual_missing",
        "The input is not added to the output.",
        layer_with(finish=slips.without_residual),
        applies=lambda case: tokens(case) > 0,
        source=slips.without_residual,
        remedy="The residual is part of the layer.",
    ),
    Bug(
        "own_state_missing",
        "The softmax runs over earlier chunks only, so that a token does not see its own chunk at all.",
        layer_with(weigh=slips.without_own),
        applies=lambda case: tokens(case) > 0,
        source=slips.without_own,
        remedy=_OWN,
    ),
    Bug(
        "parts_averaged",
        "Memories and own state are merged half and half.",
        layer_with(weigh=slips.averaged_parts),
        applies=lambda case: chunks(case) > 1,
        source=slips.averaged_parts,
        remedy="Weigh the two parts by e to the power of their log-sum-exps.",
    ),
    Bug(
        "neighbours_rotated",
        "Rotation pairs neighbouring channels.",
        layer_with(rotate=slips.neighbours_rotated),
        applies=lambda case: _turns(case) and case.arrays["x"].shape[-1] > 2 * case.options["num_heads"],
        source=slips.neighbours_rotated,
        remedy="Pair channel i with channel i + dh/2.",
    ),
    Bug(
        "first_state_remembered",
        "A chunk's memory is the state of its first token.",
        layer_with(memories=slips.first_states),
        applies=lambda case: chunks(case) > 1 and _long_chunks(case),
        source=slips.first_states,
        remedy="A chunk is remembered by the state of its last token.",
    ),
    Bug(
        "output_gate_after_projection",
        "The output gate multiplies the projected output.",
        layer_with(finish=slips.gated_after),
        applies=lambda case: tokens(case) > 0,
        source=slips.gated_after,
        remedy="Gate first, then project: (z ⊙ o) W_out.",
    ),
)

ATTENTION_BUGS = (
    Bug(
        "offset_on_queries_only",
        "The position offset is added to queries, not to keys.",
        attention_with(shifted=slips.queries_shifted),
        applies=lambda case: _turns(case) and case.options.get("position_offset", 0) != 0,
        source=slips.queries_shifted,
        remedy="Queries and keys count chunks from the same origin.",
    ),
    Bug(
        "attention_sees_own_memory",
        "A token attends to the finished memory of its own chunk.",
        attention_with(visible=slips.own_chunk_too),
        applies=lambda case: chunks(case) > 0,
        source=slips.own_chunk_too,
        remedy=_OWN,
    ),
    Bug(
        "attention_without_own_state",
        "The own state is not among the candidates.",
        attention_with(weigh=slips.without_own),
        applies=lambda case: chunks(case) > 0,
        source=slips.without_own,
        remedy=_OWN,
    ),
    Bug(
        "attention_rotates_values",
        "Values are rotated like keys.",
        attention_with(rotate_values=slips.values_rotated),
        applies=_turns,
        source=slips.values_rotated,
        remedy="Rotate queries and keys only.",
    ),
    Bug(
        "attention_by_token_positions",
        "Queries and keys are rotated by the index of the token.",
        attention_with(positions=slips.token_positions),
        applies=lambda case: _turns(case) and _long_chunks(case),
        source=slips.token_positions,
        remedy="Rotate by the index of the chunk, t // L.",
    ),
    Bug(
        "attention_remembers_first_state",
        "A chunk's memory is the state of its first token.",
        attention_with(memories=slips.first_states),
        applies=lambda case: chunks(case) > 1 and _long_chunks(case),
        source=slips.first_states,
        remedy="A chunk is remembered by the state of its last token.",
    ),
    Bug(
        "attention_parts_averaged",
        "Memories and own state are merged half and half.",
        attention_with(weigh=slips.averaged_parts),
        applies=lambda case: chunks(case) > 1,
        source=slips.averaged_parts,
        remedy="Weigh the two parts by e to the power of their log-sum-exps.",
    ),
)

SCAN_BUGS = (
    Bug(
        "scan_runs_on",
        "The state is not restarted at the start of a chunk.",
        scan_with(restarts=slips.never_restarts),
        applies=lambda case: 0 < (case.options.get("chunk_size") or tokens(case)) < tokens(case),
        source=slips.never_restarts,
        remedy=_RESTART,
    ),
    Bug(
        "scan_gate_swapped",
        "The gate is read as an input gate.",
        scan_with(blend=slips.swapped_gate),
        applies=lambda case: tokens(case) > 0,
        source=slips.swapped_gate,
        remedy=_BLEND,
    ),
    Bug(
        "scan_value_whole",
        "The value is not multiplied by 1 − g.",
        scan_with(blend=slips.plain_sum),
        applies=lambda case: tokens(case) > 0,
        source=slips.plain_sum,
        remedy=_BLEND,
    ),
    Bug(
        "scan_state_dropped",
        "The initial state is ignored.",
        scan_with(start=slips.state_dropped),
        applies=lambda case: tokens(case) > 0 and "initial_state" in case.arrays,
        source=slips.state_dropped,
        remedy="The first token blends with the state that is given.",
    ),
    Bug(
        "scan_divides_products",
        "The scan divides by prefix products of the gates: a gate of 0 gives 0/0, many small gates underflow.",
        slips.divided_products,
        applies=lambda case: tokens(case) > 0,
        remedy="Join maps (a₁, b₁), (a₂, b₂) to (a₂ a₁, a₂ b₁ + b₂); nothing is divided.",
    ),
    Bug(
        "scan_one_late",
        "The scan is exclusive: each token gets the state before it.",
        slips.one_token_late,
        applies=lambda case: tokens(case) > 0,
        remedy="The state of a token includes the token.",
    ),
)

RNN_BUGS = (
    Bug(
        "rnn_gate_before_value",
        "The projection is split in the order output gate, forget gate, value.",
        rnn_with(split=slips.gated_value_first),
        applies=lambda case: tokens(case) > 0,
        source=slips.gated_value_first,
        remedy="The columns are output gate, value, forget gate.",
    ),
    Bug(
        "rnn_state_dropped",
        "The initial state is ignored.",
        rnn_with(start=slips.state_dropped),
        applies=lambda case: tokens(case) > 0 and "initial_state" in case.arrays,
        source=slips.state_dropped,
        remedy="The first token blends with the state that is given.",
    ),
    Bug(
        "rnn_without_output_gate",
        "The output gate is left out.",
        rnn_with(finish=slips.ungated),
        applies=lambda case: tokens(case) > 0,
        source=slips.ungated,
        remedy="Multiply by the sigmoid of the first D columns.",
    ),
)

CAUSAL_BUGS = (
    Bug(
        "queries_first",
        "The projection is split in the order queries, keys, values.",
        causal_with(split_attention=slips.queries_first),
        applies=lambda case: tokens(case) > 0,
        source=slips.queries_first,
        remedy="The columns are values, queries, keys.",
    ),
    Bug(
        "window_one_short",
        "The window holds w keys, the token itself among them.",
        causal_with(in_window=slips.one_key_short),
        applies=lambda case: case.options.get("window") is not None and tokens(case) > case.options["window"],
        source=slips.one_key_short,
        remedy="i − j ≤ w: the token itself and w keys before it.",
    ),
    Bug(
        "window_looks_ahead",
        "The window reaches to both sides.",
        causal_with(in_window=slips.both_sides),
        applies=lambda case: tokens(case) > 1 and case.options.get("window") != 0,
        source=slips.both_sides,
        remedy="The window is causal: 0 ≤ i − j ≤ w.",
    ),
)
