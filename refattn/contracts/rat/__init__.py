"""The contract of RAT: layer, recurrence, attention across chunks, decoding, and the two baselines."""

from __future__ import annotations

import numpy as np

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Case, Contract, Convention, Entry, Outputs
from refattn.contracts.rat import cases
from refattn.contracts.rat.bugs import ATTENTION_BUGS, CAUSAL_BUGS, LAYER_BUGS, RNN_BUGS, SCAN_BUGS
from refattn.contracts.rat.bugs_decode import PREFILL_BUGS, STEP_BUGS
from refattn.contracts.rat.cases import FAMILIES
from refattn.contracts.rat.laws import ATTENTION_LAWS, LAYER_LAWS
from refattn.contracts.rat.laws_decode import PREFILL_LAWS, STEP_LAWS
from refattn.contracts.rat.laws_parts import CAUSAL_LAWS, RNN_LAWS, SCAN_LAWS
from refattn.layers.rat import rat_layer
from refattn.layers.rat_attention import chunk_attention
from refattn.layers.rat_baselines import causal_attention_layer, rnn_layer
from refattn.layers.rat_decode import rat_prefill, rat_step
from refattn.primitives.scan import gated_scan

__all__ = ["CONTRACT"]

_STATE = ("k_mem", "v_mem", "k_last", "v_last")


def _halves(dtype: str) -> tuple[Case, Outputs]:
    """Take gates of one half and multiples of 64: every product and sum is exact in every dtype."""
    value = 64.0 * np.array([1.0, -2.0, 3.0, 1.0, 2.0, -1.0])[None, :, None]
    arrays = {"gate": np.full((1, 6, 1), 0.5), "value": value}
    states = np.array([32.0, -48.0, 72.0, 32.0, 80.0, 8.0])[None, :, None]
    return Case("gated_scan", arrays, {"chunk_size": 3}, dtype, "exact/halves"), {"out": states}


def _first_chunk(dtype: str) -> tuple[Case, Outputs]:
    """Take a single chunk: the weight on the own state is 1, whatever the scores."""
    q, k, v = np.arange(24.0).reshape(3, 1, 1, 4, 2) / 8.0
    arrays = {"q": q, "k_state": k, "v_state": v}
    return Case("chunk_attention", arrays, {"chunk_size": 4}, dtype, "exact/first_chunk"), {"out": v}


def _own_slot(outputs: Outputs, case: Case, value: str) -> Outputs:
    """Put the reference's slot where a backend leaves the slot of an unfinished chunk free."""
    if case.entry != "rat_prefill" or value != "free":
        return outputs
    chunk_size = case.options["chunk_size"]
    prompt = case.options.get("prompt_len", case.arrays["x"].shape[1])
    if prompt % chunk_size == 0:
        return outputs
    expected = rat_prefill(case.arrays["x"], case.arrays["weights"], **case.options)
    filled = {name: np.array(outputs[name]) for name in ("k_mem", "v_mem")}
    for name, memory in filled.items():
        memory[:, :, prompt // chunk_size :] = getattr(expected, name)[:, :, prompt // chunk_size :]
    return {**outputs, **filled}


_SLOT = Convention(
    "unfinished_slot",
    {
        "padded": "after a prefill, the slot of an unfinished chunk holds the state that the padding went through",
        "free": "that slot, and those behind it, may hold anything: the next step writes before it reads",
    },
    receive=_own_slot,
)

_LAYER = Entry(
    "rat_layer",
    rat_layer,
    ("x", "weights"),
    cases.LAYER.scenarios(
        {
            "four_chunks": {"B": 2, "T": 16, "D": 32, "H": 4, "G": 2, "L": 4},
            "one_chunk": {"B": 2, "T": 7, "D": 16, "H": 4, "G": 2, "L": 7},
            "every_token_a_chunk": {"B": 2, "T": 7, "D": 16, "H": 4, "G": 2, "L": 1},
            "one_group_six_heads": {"B": 1, "T": 10, "D": 24, "H": 6, "G": 1, "L": 5},
            "own_groups": {"B": 1, "T": 9, "D": 12, "H": 3, "G": 3, "L": 3},
            "one_head": {"B": 1, "T": 6, "D": 8, "H": 1, "G": 1, "L": 2},
            "three_groups_of_six": {"B": 1, "T": 12, "D": 24, "H": 6, "G": 3, "L": 3},
            "without_positions": {"B": 1, "T": 12, "D": 16, "H": 4, "G": 2, "L": 3, "rope_base": None},
            "other_base": {"B": 1, "T": 12, "D": 16, "H": 4, "G": 2, "L": 3, "rope_base": 100.0, "norm_eps": 0.01},
            "saturated_gates": {"B": 1, "T": 12, "D": 16, "H": 4, "G": 2, "L": 4, "saturated": True},
            "defaults": {"B": 1, "T": 48, "D": 16, "H": 4, "G": 2, "L": 16},
            "primes": {"B": 3, "T": 33, "D": 20, "H": 2, "G": 2, "L": 11},
            "one_token": {"B": 1, "T": 1, "D": 8, "H": 2, "G": 2, "L": 1},
            "no_batch": {"B": 0, "T": 8, "D": 8, "H": 2, "G": 2, "L": 4},
            "no_token": {"B": 2, "T": 0, "D": 8, "H": 2, "G": 2, "L": 4},
        },
    ),
    FAMILIES,
    cases.LAYER.cases(cases.layer_sizes()),
    smoke=smoke("four_chunks", "one_chunk", families=("normal", "peaky")),
    laws=LAYER_LAWS,
    bugs=LAYER_BUGS,
    differentiable=("x",),
    axes={"x": ("B", "T", "D")},
)

_SCAN = Entry(
    "gated_scan",
    gated_scan,
    ("gate", "value"),
    cases.SCAN.scenarios(
        {
            "whole": {"B": 2, "T": 17, "D": 5},
            "chunks": {"B": 2, "T": 16, "D": 5, "L": 4},
            "ragged_last_chunk": {"B": 1, "T": 11, "D": 3, "L": 4},
            "chunk_longer_than_sequence": {"B": 1, "T": 5, "D": 3, "L": 9},
            "chunks_of_one": {"B": 1, "T": 6, "D": 3, "L": 1},
            "started": {"B": 2, "T": 9, "D": 4, "started": True},
            "started_in_chunks": {"B": 2, "T": 9, "D": 4, "L": 3, "started": True},
            "saturated_gates": {"B": 1, "T": 12, "D": 6, "L": 6, "saturated": True},
            "long": {"B": 1, "T": 257, "D": 2},
            "one_token": {"B": 1, "T": 1, "D": 1, "started": True},
            "no_batch": {"B": 0, "T": 4, "D": 2, "L": 2},
            "no_token": {"B": 2, "T": 0, "D": 2},
        },
    ),
    FAMILIES,
    cases.SCAN.cases(cases.scan_sizes),
    smoke=smoke("chunks", "started_in_chunks", "saturated_gates", families=("normal", "peaky")),
    laws=SCAN_LAWS,
    bugs=SCAN_BUGS,
    exact={"halves": _halves},
    differentiable=("gate", "value", "initial_state"),
    axes={"gate": ("B", "T", "D"), "value": ("B", "T", "D"), "initial_state": ("B", "D")},
)

_ATTENTION = Entry(
    "chunk_attention",
    chunk_attention,
    ("q", "k_state", "v_state"),
    cases.ATTENTION.scenarios(
        {
            "five_chunks": {"B": 2, "H": 2, "T": 20, "d": 8, "L": 4},
            "one_chunk": {"B": 1, "H": 3, "T": 6, "d": 4, "L": 6},
            "every_token_a_chunk": {"B": 1, "H": 2, "T": 9, "d": 4, "L": 1},
            "without_positions": {"B": 1, "H": 2, "T": 12, "d": 5, "L": 3, "rope_base": None},
            "other_base": {"B": 1, "H": 2, "T": 12, "d": 6, "L": 3, "rope_base": 10.0},
            "offset": {"B": 1, "H": 2, "T": 12, "d": 6, "L": 3, "position_offset": 7},
            "weights_too": {"B": 1, "H": 2, "T": 15, "d": 4, "L": 5, "return_weights": True},
            "many_chunks": {"B": 1, "H": 1, "T": 290, "d": 4, "L": 2},
            "one_token": {"B": 1, "H": 1, "T": 1, "d": 2, "L": 1},
            "no_batch": {"B": 0, "H": 2, "T": 8, "d": 4, "L": 4},
            "no_token": {"B": 1, "H": 2, "T": 0, "d": 4, "L": 4, "return_weights": True},
        },
    ),
    FAMILIES,
    cases.ATTENTION.cases(cases.attention_sizes()),
    smoke=smoke("five_chunks", "offset", families=("normal", "peaky")),
    outputs=("out", "weights"),
    laws=ATTENTION_LAWS,
    bugs=ATTENTION_BUGS,
    exact={"first_chunk": _first_chunk},
    differentiable=("q", "k_state", "v_state"),
    axes=dict.fromkeys(("q", "k_state", "v_state"), ("B", "H", "T", "d")),
)

_PREFILL = Entry(
    "rat_prefill",
    rat_prefill,
    ("x", "weights"),
    cases.PREFILL.scenarios(
        {
            "whole_chunks": {"B": 2, "T": 12, "D": 16, "H": 4, "G": 2, "L": 4},
            "partial_chunk": {"B": 2, "T": 10, "D": 16, "H": 4, "G": 2, "L": 4, "max_len": 23},
            "padded_prompt": {"B": 1, "T": 12, "D": 16, "H": 4, "G": 2, "L": 4, "prompt_len": 6, "max_len": 16},
            "padding_of_a_whole_chunk": {"B": 1, "T": 8, "D": 8, "H": 2, "G": 2, "L": 4, "prompt_len": 3},
            "shorter_than_a_chunk": {"B": 1, "T": 2, "D": 12, "H": 3, "G": 3, "L": 5},
            "chunks_of_one": {"B": 1, "T": 5, "D": 12, "H": 6, "G": 3, "L": 1, "max_len": 8},
            "without_positions": {"B": 1, "T": 7, "D": 8, "H": 2, "G": 1, "L": 3, "rope_base": None, "norm_eps": 0.01},
            "all_padding": {"B": 1, "T": 4, "D": 8, "H": 2, "G": 2, "L": 4, "prompt_len": 0},
            "no_token": {"B": 2, "T": 0, "D": 8, "H": 2, "G": 2, "L": 4, "max_len": 4},
            "no_batch": {"B": 0, "T": 5, "D": 8, "H": 2, "G": 2, "L": 4},
        },
    ),
    FAMILIES,
    cases.PREFILL.cases(cases.prefill_sizes()),
    smoke=smoke("partial_chunk", "padded_prompt", families=("normal", "peaky")),
    outputs=("out", *_STATE),
    laws=PREFILL_LAWS,
    bugs=PREFILL_BUGS,
    axes={"x": ("B", "T", "D")},
)

_STEP = Entry(
    "rat_step",
    rat_step,
    ("x_t", "weights", "cache"),
    cases.STEP.scenarios(
        {
            "inside_a_chunk": {"B": 2, "D": 16, "H": 4, "G": 2, "L": 4, "slots": 4, "t": 10},
            "first_of_a_chunk": {"B": 2, "D": 16, "H": 4, "G": 2, "L": 4, "slots": 4, "t": 8},
            "last_of_a_chunk": {"B": 2, "D": 16, "H": 4, "G": 2, "L": 4, "slots": 3, "t": 11},
            "first_chunk": {"B": 2, "D": 16, "H": 4, "G": 2, "L": 4, "slots": 2, "t": 1},
            "very_first": {"B": 1, "D": 24, "H": 6, "G": 3, "L": 5, "slots": 2, "t": 0},
            "chunks_of_one": {"B": 1, "D": 12, "H": 3, "G": 1, "L": 1, "slots": 7, "t": 5},
            "without_positions": {"B": 1, "D": 8, "H": 1, "G": 1, "L": 3, "slots": 3, "t": 7, "rope_base": None},
            "other_base": {
                "B": 1,
                "D": 16,
                "H": 2,
                "G": 2,
                "L": 3,
                "slots": 4,
                "t": 7,
                "rope_base": 100.0,
                "norm_eps": 0.01,
            },
            "no_batch": {"B": 0, "D": 8, "H": 2, "G": 2, "L": 4, "slots": 2, "t": 5},
        },
    ),
    FAMILIES,
    cases.STEP.cases(cases.step_sizes()),
    smoke=smoke("inside_a_chunk", "first_of_a_chunk", "first_chunk", families=("normal", "peaky")),
    outputs=("out", *_STATE),
    laws=STEP_LAWS,
    bugs=STEP_BUGS,
)

_RNN = Entry(
    "rnn_layer",
    rnn_layer,
    ("x", "weights"),
    cases.RNN.scenarios(
        {
            "plain": {"B": 2, "T": 17, "D": 12},
            "started": {"B": 2, "T": 9, "D": 12, "started": True, "return_state": True},
            "state_and_eps": {"B": 1, "T": 6, "D": 7, "return_state": True, "norm_eps": 0.01},
            "saturated_gates": {"B": 1, "T": 9, "D": 8, "saturated": True},
            "one_token": {"B": 1, "T": 1, "D": 4, "started": True},
            "no_token": {"B": 2, "T": 0, "D": 4, "started": True, "return_state": True},
            "no_batch": {"B": 0, "T": 3, "D": 4},
        },
    ),
    FAMILIES,
    cases.RNN.cases(cases.rnn_sizes),
    smoke=smoke("plain", "started", families=("normal", "peaky")),
    outputs=("out", "state"),
    laws=RNN_LAWS,
    bugs=RNN_BUGS,
    differentiable=("x",),
    axes={"x": ("B", "T", "D"), "initial_state": ("B", "D")},
    may_alias=True,  # the state after no token is the one that was given
)

_CAUSAL = Entry(
    "causal_attention_layer",
    causal_attention_layer,
    ("x", "weights"),
    cases.CAUSAL.scenarios(
        {
            "full": {"B": 2, "T": 13, "D": 16, "H": 4},
            "window": {"B": 2, "T": 13, "D": 16, "H": 4, "window": 5},
            "window_of_itself": {"B": 1, "T": 6, "D": 8, "H": 2, "window": 0},
            "window_too_wide": {"B": 1, "T": 7, "D": 8, "H": 2, "window": 16},
            "without_positions": {"B": 1, "T": 9, "D": 9, "H": 3, "rope_base": None},
            "other_base_and_eps": {"B": 1, "T": 9, "D": 12, "H": 3, "rope_base": 10.0, "norm_eps": 0.01},
            "past_a_block": {"B": 1, "T": 270, "D": 4, "H": 1, "window": 9},
            "one_token": {"B": 1, "T": 1, "D": 4, "H": 2},
            "no_token": {"B": 2, "T": 0, "D": 4, "H": 2},
            "no_batch": {"B": 0, "T": 3, "D": 4, "H": 2},
        },
    ),
    FAMILIES,
    cases.CAUSAL.cases(cases.causal_sizes),
    smoke=smoke("full", "window", families=("normal", "peaky")),
    laws=CAUSAL_LAWS,
    bugs=CAUSAL_BUGS,
    differentiable=("x",),
    axes={"x": ("B", "T", "D")},
)

CONTRACT = Contract(
    "rat",
    "Recurrence in chunks, attention across chunks",
    "2507.04416",
    "layers",
    (_LAYER, _SCAN, _ATTENTION, _PREFILL, _STEP, _RNN, _CAUSAL),
    (_SLOT,),
)
