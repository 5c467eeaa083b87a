"""What holds between results of the layer and of its attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.cases import fill, rounded
from refattn.conformance.contract import Case, Claim, Law
from refattn.contracts.rat.laws_decode import PATHS, steps
from refattn.layers.rat_baselines import RNNWeights
from refattn.layers.rat_decode import rat_init_cache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["ATTENTION_LAWS", "LAYER_LAWS", "both", "future_is_unseen", "holds_tokens"]


def both(probe: Probe, left: Case, right: Case, name: str = "out") -> np.ndarray:
    """Return the slack of a claim between two results."""
    slack: np.ndarray = probe.slack(left)[name] + probe.slack(right)[name]
    return slack


def holds_tokens(case: Case) -> bool:
    """Whether there is anything to compute."""
    array = case.arrays.get("x", case.arrays.get("q", case.arrays.get("value")))
    return array is not None and array.size > 0


def future_is_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    """Change the tokens from some t on; the rows before must stay."""
    x = case.arrays["x"]
    t = int(rng.integers(1, x.shape[1]))
    later = rounded(fill(rng, x[:, t:].shape), case.dtype)
    changed = case.having(x=np.concatenate([x[:, :t], later], axis=1))
    yield Claim(probe(case)["out"][:, :t], probe(changed)["out"][:, :t], both(probe, case, changed)[:, :t])


def _one_chunk_is_rnn(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x, weights = case.arrays["x"], case.arrays["weights"]
    whole = case.having(chunk_size=x.shape[1])
    rnn = RNNWeights(weights.w_in[:, : 3 * x.shape[-1]], *weights[1:])
    options = {"norm_eps": case.options["norm_eps"]} if "norm_eps" in case.options else {}
    baseline = Case("rnn_layer", {"x": x, "weights": rnn}, options, case.dtype, case.label)
    yield Claim(probe(whole)["out"], probe(baseline)["out"], both(probe, whole, baseline))


def _sharing_is_tiling(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights, heads, groups = case.arrays["weights"], case.options["num_heads"], case.options["num_groups"]
    width = weights.norm.size
    q, k = np.split(weights.w_in[:, 3 * width :], 2, axis=1)
    copies = [np.tile(a, (1, heads // groups)) for a in (q, k)]
    w_in = np.concatenate([weights.w_in[:, : 3 * width], *copies], axis=1)
    own = case.having(weights=weights._replace(w_in=w_in), num_groups=heads)
    yield Claim(probe(case)["out"], probe(own)["out"], both(probe, case, own))


def _size_is_forgotten(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    small = case.having(norm_eps=0.0)
    large = small.having(x=2.0 * case.arrays["x"])
    left = probe(large)["out"] - large.arrays["x"]
    yield Claim(left, probe(small)["out"] - small.arrays["x"], both(probe, small, large))


def _of_order_one(case: Case) -> bool:
    rows = np.sqrt(np.mean(np.square(case.arrays["x"]), axis=-1)) if holds_tokens(case) else np.zeros(1)
    return bool(np.all((rows > 0.1) & (rows < 10.0)))


def _empty_cache(case: Case, capacity: int) -> Any:
    """Return an empty cache for the layer of a case, as plain arrays."""
    batch, _, width = case.arrays["x"].shape
    sizes = {name: case.options[name] for name in ("num_heads", "chunk_size")}
    return rat_init_cache(batch, capacity, width, **sizes)


def _steps_equal_layer(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["x"]
    rows = steps(probe, case, _empty_cache(case, x.shape[1]), x)
    yield Claim(rows, probe(case)["out"], PATHS * probe.slack(case)["out"])


LAYER_LAWS = (
    Law(
        "future_is_unseen",
        "Outputs do not depend on later tokens.",
        future_is_unseen,
        lambda case: holds_tokens(case) and case.arrays["x"].shape[1] > 1,
        witness="own_memory_seen",
    ),
    Law(
        "one_chunk_is_rnn",
        "With a single chunk the layer is the recurrent baseline with the first 3 D columns of the projection.",
        _one_chunk_is_rnn,
        holds_tokens,
        needs=("rnn_layer",),
        witness="value_times_gate",
    ),
    Law(
        "sharing_is_tiling",
        "Sharing G groups among H heads is having H groups whose columns repeat in the order 0..G−1, 0..G−1, ….",
        _sharing_is_tiling,
        lambda case: holds_tokens(case) and case.options["num_groups"] < case.options["num_heads"],
        witness="groups_repeated",
    ),
    Law(
        "size_is_forgotten",
        "Without epsilon in the norm, what the layer adds does not change when the input is doubled.",
        _size_is_forgotten,
        _of_order_one,
        witness="residual_missing",
    ),
    Law(
        "steps_equal_layer",
        "Stepping from an empty cache through all tokens gives the layer's rows.",
        _steps_equal_layer,
        lambda case: case.arrays["x"].size > 0 and case.arrays["x"].shape[1] <= 20,
        needs=("rat_step",),
        witness="slot_written_once",
    ),
)


def _offset_changes_nothing(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    moved = case.having(position_offset=int(rng.integers(1, 9)))
    yield Claim(probe(case)["out"], probe(moved)["out"], both(probe, case, moved))


def _weights_sum_to_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weighted = case.having(return_weights=True)
    weights = probe(weighted)["weights"]
    slack = np.sqrt(weights.shape[-1]) * probe.slack(weighted)["weights"]
    yield Claim(np.sum(weights, axis=-1, keepdims=True), np.ones((*weights.shape[:-1], 1)), slack, "sums")
    yield Claim(np.minimum(weights, 0.0), np.zeros_like(weights), 0.0, "none is negative")


def _first_chunk_is_own_state(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    first = slice(0, case.options["chunk_size"])
    slack = probe.slack(case)["out"][:, :, first]
    yield Claim(probe(case)["out"][:, :, first], case.arrays["v_state"][:, :, first], slack)


def _constant_values_pass(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    v = case.arrays["v_state"]
    constant = case.having(v_state=np.broadcast_to(v[:, :, :1], v.shape).copy())
    yield Claim(probe(constant)["out"], constant.arrays["v_state"], probe.slack(constant)["out"])


def _finished_chunks_are_their_last_state(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    q, length, chunk_size = case.arrays["q"], case.arrays["q"].shape[2], case.options["chunk_size"]
    inner = np.arange(length) < length - chunk_size
    inner &= np.arange(length) % chunk_size != chunk_size - 1
    changed = case.having(
        **{
            name: rounded(np.where(inner[:, None], rng.standard_normal(q.shape), case.arrays[name]), case.dtype)
            for name in ("k_state", "v_state")
        }
    )
    last = slice(length - chunk_size, length)
    slack = both(probe, case, changed)[:, :, last]
    yield Claim(probe(case)["out"][:, :, last], probe(changed)["out"][:, :, last], slack)


def _has_chunks(case: Case) -> bool:
    return holds_tokens(case) and case.arrays["q"].shape[2] >= case.options["chunk_size"]


ATTENTION_LAWS = (
    Law(
        "offset_changes_nothing",
        "Counting chunks from another number changes nothing: only differences of positions matter.",
        _offset_changes_nothing,
        _has_chunks,
        witness="offset_on_queries_only",
    ),
    Law(
        "weights_sum_to_one",
        "The weights on memories and own state are not negative and sum to 1.",
        _weights_sum_to_one,
        _has_chunks,
        witness="attention_without_own_state",
    ),
    Law(
        "first_chunk_is_own_state",
        "In the first chunk the output is the running value itself.",
        _first_chunk_is_own_state,
        _has_chunks,
        witness="attention_sees_own_memory",
    ),
    Law(
        "constant_values_pass",
        "If all running values are the same, so are all outputs.",
        _constant_values_pass,
        _has_chunks,
        witness="attention_rotates_values",
    ),
    Law(
        "only_last_states_are_remembered",
        "States inside finished chunks, but for the last of each, do not matter to later tokens.",
        _finished_chunks_are_their_last_state,
        lambda case: _has_chunks(case) and case.arrays["q"].shape[2] > case.options["chunk_size"] > 1,
        witness="attention_remembers_first_state",
    ),
)
