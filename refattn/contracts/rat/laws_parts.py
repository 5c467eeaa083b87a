"""What holds between results of the recurrence and of the two baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.contracts.rat.laws import both, future_is_unseen, holds_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["CAUSAL_LAWS", "RNN_LAWS", "SCAN_LAWS"]


def _open_gate_passes_values(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    forgetful = case.having(gate=np.zeros_like(case.arrays["gate"]))
    yield Claim(probe(forgetful)["out"], case.arrays["value"], 0.0)


def _states_stay_in_the_hull(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    value, start = case.arrays["value"], case.arrays.get("initial_state")
    seen = np.concatenate([value if start is None else start[:, None], value, np.zeros_like(value[:, :1])], axis=1)
    low, high = seen.min(axis=1, keepdims=True), seen.max(axis=1, keepdims=True)
    states = probe(case)["out"]
    yield Claim(np.clip(states, low, high), states, probe.slack(case)["out"])


def _chunks_are_alone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    chunk_size, length = case.options["chunk_size"], case.arrays["value"].shape[1]
    begin = (length - 1) // chunk_size * chunk_size
    part = {name: case.arrays[name][:, begin:] for name in ("gate", "value")}
    alone = case.without("initial_state", "chunk_size").having(**part)
    slack = probe.slack(case)["out"][:, begin:] + probe.slack(alone)["out"]
    yield Claim(probe(case)["out"][:, begin:], probe(alone)["out"], slack)


def _state_carries(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    whole = case.without("chunk_size")
    cut = int(rng.integers(1, case.arrays["value"].shape[1]))
    names = ("gate", "value")
    first = whole.having(**{name: case.arrays[name][:, :cut] for name in names})
    before = probe(first)["out"]
    second = whole.having(**{name: case.arrays[name][:, cut:] for name in names}, initial_state=before[:, -1])
    slack = probe.slack(whole)["out"]
    yield Claim(before, probe(whole)["out"][:, :cut], slack[:, :cut] + probe.slack(first)["out"])
    # the state handed over has its own error, which the gates do not enlarge
    handed = np.max(probe.slack(first)["out"][:, -1:], axis=-1, keepdims=True)
    yield Claim(
        probe(second)["out"], probe(whole)["out"][:, cut:], slack[:, cut:] + probe.slack(second)["out"] + handed
    )


SCAN_LAWS = (
    Law(
        "open_gate_passes_values",
        "Where the gate is 0 the states are the values, bit for bit.",
        _open_gate_passes_values,
        holds_tokens,
        witness="scan_gate_swapped",
    ),
    Law(
        "states_stay_in_the_hull",
        "Every state lies between the smallest and the largest of zero, the initial state and the values.",
        _states_stay_in_the_hull,
        holds_tokens,
        witness="scan_value_whole",
    ),
    Law(
        "chunks_are_alone",
        "A chunk's states are those of the chunk alone.",
        _chunks_are_alone,
        lambda case: holds_tokens(case) and 0 < (case.options.get("chunk_size") or 0) < case.arrays["value"].shape[1],
        witness="scan_runs_on",
    ),
    Law(
        "state_carries",
        "Running a sequence in two parts, the state handed over, equals running it whole.",
        _state_carries,
        lambda case: holds_tokens(case) and case.arrays["value"].shape[1] > 1,
        witness="scan_state_dropped",
    ),
)


def _rnn_state_carries(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["x"]
    whole = case.having(return_state=True)
    cut = int(rng.integers(1, x.shape[1]))
    first = whole.having(x=x[:, :cut])
    state = probe(first)["state"]
    second = whole.having(x=x[:, cut:], initial_state=state)
    slack = 2 * probe.slack(whole)["out"][:, cut:] + probe.slack(second)["out"]
    yield Claim(probe(second)["out"], probe(whole)["out"][:, cut:], slack)


RNN_LAWS = (
    Law(
        "rnn_state_carries",
        "Running a sequence in two parts, the state handed over, equals running it whole.",
        _rnn_state_carries,
        lambda case: holds_tokens(case) and case.arrays["x"].shape[1] > 1,
        witness="rnn_state_dropped",
    ),
)


def _no_window_is_own_value(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"]
    width = weights.norm.size
    blind = np.concatenate([weights.w_in[:, :width], np.zeros((width, 2 * width))], axis=1)
    alone = case.having(window=0)
    silent = alone.having(weights=weights._replace(w_in=blind))
    yield Claim(probe(alone)["out"], probe(silent)["out"], both(probe, alone, silent))


def _wide_window_is_none(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    full = case.without("window")
    wide = case.having(window=case.arrays["x"].shape[1] - 1)
    yield Claim(probe(full)["out"], probe(wide)["out"], both(probe, full, wide))


CAUSAL_LAWS = (
    Law(
        "causal_future_is_unseen",
        "Outputs do not depend on later tokens.",
        future_is_unseen,
        lambda case: holds_tokens(case) and case.arrays["x"].shape[1] > 1,
        witness="window_looks_ahead",
    ),
    Law(
        "no_window_is_own_value",
        "With a window of 0 a token sees itself alone, and queries and keys do not matter.",
        _no_window_is_own_value,
        holds_tokens,
        witness="queries_first",
    ),
    Law(
        "wide_window_is_none",
        "A window that reaches the first token from the last is no window.",
        _wide_window_is_none,
        lambda case: holds_tokens(case) and case.arrays["x"].shape[1] > 1,
        witness="window_one_short",
    ),
)
