"""What every implementation of MSGNet obeys, stated between its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.cases import rounded
from refattn.conformance.contract import Case, Claim, Law, agree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "ADJACENCY_LAWS",
    "ATTENTION_LAWS",
    "BLOCK_LAWS",
    "FORECAST_LAWS",
    "GRAPH_LAWS",
    "MIXHOP_LAWS",
    "SCALE_LAWS",
]


def _weights(case: Case, **changes: Any) -> Case:
    return case.having(weights=case.arrays["weights"]._replace(**changes))


# --- forecast


def _levels_pass_through(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    grid = np.clip(np.round(2.0 * case.arrays["x"]) / 2.0, -8.0, 8.0)  # so that the sum is exact in any dtype
    level = 4.0 * rng.integers(1, 4, grid.shape[2])
    low, high = case.having(x=grid), case.having(x=grid + level)
    slack = probe.slack(low)["out"] + probe.slack(high)["out"]
    yield Claim(probe(high)["out"], probe(low)["out"] + level, slack)


# --- block


def _scales_are_averaged(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    silent = _weights(case, norm_w=np.zeros_like(w.norm_w), norm_b=np.zeros_like(w.norm_b))
    loud = _weights(silent, norm_b=np.full_like(w.norm_b, 16.0))  # GELU(16) is 16 to the last bit
    slack = probe.slack(silent)["out"] + probe.slack(loud)["out"]
    yield Claim(probe(loud)["out"], probe(silent)["out"] + 16.0, slack)


def _batches_may_be_doubled(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = case.having(x=np.concatenate([case.arrays["x"]] * 2))
    B = len(case.arrays["x"])
    once, slack = probe(case)["out"], probe.slack(case)["out"]
    both, wide = probe(twice)["out"], probe.slack(twice)["out"]
    yield Claim(both[B:], once, slack + wide[B:])


# --- scales


def _selected(probe: Probe, left: Case, right: Case) -> Iterator[Claim]:
    a, b, slack, other = probe(left), probe(right), probe.slack(left), probe.slack(right)
    for name in ("freqs", "periods"):
        yield Claim(a[name][:, None], b[name][:, None], (slack[name] + other[name])[..., None], name)
    yield Claim(a["amplitudes"], b["amplitudes"], slack["amplitudes"] + other["amplitudes"], "amplitudes")


def _turning_changes_nothing(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["x"]
    yield from _selected(probe, case, case.having(x=np.roll(x, int(rng.integers(x.shape[1])), axis=1)))


def _windows_decide_together(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = probe(case.having(x=case.arrays["x"][::-1]))
    right, slack = probe(case), probe.slack(case)
    for name in ("freqs", "periods"):
        yield Claim(turned[name][:, None], right[name][:, None], 2.0 * slack[name][..., None], name)
    yield Claim(turned["amplitudes"][::-1], right["amplitudes"], 2.0 * slack["amplitudes"], "amplitudes")


def _amplitudes_are_homogeneous(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = case.having(x=2.0 * case.arrays["x"])
    slack = 2.0 * probe.slack(case)["amplitudes"] + probe.slack(twice)["amplitudes"]
    yield Claim(probe(twice)["amplitudes"], 2.0 * probe(case)["amplitudes"], slack)


# --- attention


def _the_future_is_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    z = case.arrays["z"]
    border = int(rng.integers(1, z.shape[1]))
    changed = np.concatenate([z[:, :border], -2.0 * z[:, border:]], axis=1)
    left, right = probe(case)["out"], probe(case.having(z=changed))["out"]
    yield Claim(left[:, :border], right[:, :border], 2.0 * probe.slack(case)["out"][:, :border])


def _segments_are_apart(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    left, right = probe(case)["out"], probe(case.having(z=case.arrays["z"][::-1]))["out"]
    yield Claim(left, right[::-1], 2.0 * probe.slack(case)["out"])


# --- graphs


def _silent_graphs_normalise(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w, x = case.arrays["weights"], case.arrays["x"]
    silent = _weights(case, **{name: np.zeros_like(getattr(w, name)) for name in ("end_w", "end_b", "out_w", "out_b")})
    plain = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w.norm_w + w.norm_b
    yield Claim(probe(silent)["out"], plain, probe.slack(silent)["out"])


def _kernels_are_bands(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    kernel, D = case.arrays["weights"].start_w, case.arrays["x"].shape[2]
    M = kernel.shape[1]
    dense = np.zeros((len(kernel), D - M + 1, D))
    for n in range(D - M + 1):
        dense[:, n, n : n + M] = kernel
    yield agree(probe, case, _weights(case, start_w=dense))


# --- hops


def _alpha_one_stays(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    stays, depth = case.having(alpha=1.0), case.options.get("depth", 2)
    yield Claim(
        probe(stays)["out"], np.concatenate([case.arrays["h0"]] * (depth + 1), axis=1), probe.slack(stays)["out"]
    )


def _hops_are_hops(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    h0 = case.arrays["h0"]
    C = h0.shape[1]
    twice = case.having(depth=2, alpha=0.0)
    once = case.having(depth=1, alpha=0.0)
    out, slack = probe(twice)["out"], probe.slack(twice)["out"]
    again = once.having(h0=rounded(out[:, C : 2 * C], case.dtype))
    yield Claim(
        out[:, 2 * C :],
        probe(again)["out"][:, C:],
        2.0 * slack[:, 2 * C :] + 2.0 * probe.slack(again)["out"][:, C:] + _spread(slack[:, C : 2 * C]),
    )


def _spread(slack: np.ndarray) -> np.ndarray:
    """Return what an error in any series may do to each: averages make none larger than all together."""
    return np.asarray(2.0 * np.sum(slack, axis=2, keepdims=True))


def _constants_stay(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    h0, depth = case.arrays["h0"], case.options.get("depth", 2)
    flat = case.having(h0=np.repeat(h0[:, :, :1], h0.shape[2], axis=2))
    right = np.concatenate([flat.arrays["h0"]] * (depth + 1), axis=1)
    yield Claim(probe(flat)["out"], right, probe.slack(flat)["out"])


def _names_do_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    h0, A = case.arrays["h0"], case.arrays["adjacency"]
    order = rng.permutation(len(A))
    named = case.having(h0=h0[:, :, order], adjacency=A[order][:, order])
    left, right = probe(named)["out"], probe(case)["out"][:, :, order]
    yield Claim(left, right, probe.slack(named)["out"] + probe.slack(case)["out"][:, :, order])


# --- adjacency


def _rows_sum_to_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    A, slack = probe(case)["out"], probe.slack(case)["out"]
    yield Claim(A.sum(axis=1, keepdims=True), np.ones((len(A), 1)), slack * np.sqrt(len(A)))


def _nothing_in_common(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    opposed = case.having(e1=np.abs(case.arrays["e1"]), e2=-np.abs(case.arrays["e2"]))
    A = probe(opposed)["out"]
    yield Claim(A, np.full(A.shape, 1.0 / len(A)), probe.slack(opposed)["out"])


def _hop_case(case: Case) -> bool:
    return bool(case.arrays["h0"].size and case.options.get("depth", 2) >= 1)


FORECAST_LAWS = (
    Law(
        "levels_pass_through",
        "A constant that is added to a series is added to its forecast.",
        _levels_pass_through,
        witness="forecast_mean_left_out",
    ),
)
BLOCK_LAWS = (
    Law(
        "scales_are_averaged",
        "The weights of the scales sum to 1: if every scale finds 16, 16 is added.",
        _scales_are_averaged,
        witness="block_sigmoids",
    ),
    Law(
        "batches_may_be_doubled",
        "Windows that are given twice change neither the scales nor what is made of them.",
        _batches_may_be_doubled,
        witness="block_over_the_batch",
    ),
)
SCALE_LAWS = (
    Law(
        "turning_changes_nothing",
        "Where in its oscillation a window begins changes neither scales nor amplitudes.",
        _turning_changes_nothing,
        witness="scales_real_part",
    ),
    Law(
        "windows_decide_together",
        "The order of the windows in a batch does not matter.",
        _windows_decide_together,
        lambda case: len(case.arrays["x"]) > 1,
        witness="scales_one_window_decides",
    ),
    Law(
        "amplitudes_are_homogeneous",
        "Twice the series, twice the amplitudes.",
        _amplitudes_are_homogeneous,
        witness="scales_power",
    ),
)
ATTENTION_LAWS = (
    Law(
        "the_future_is_unseen",
        "Times before a change do not notice it.",
        _the_future_is_unseen,
        lambda case: bool(case.options.get("causal", True) and case.arrays["z"].shape[1] > 1),
        witness="attention_all_times",
    ),
    Law(
        "segments_are_apart",
        "The order of the segments does not matter.",
        _segments_are_apart,
        lambda case: len(case.arrays["z"]) > 1,
        witness="attention_joined",
    ),
)
GRAPH_LAWS = (
    Law(
        "silent_graphs_normalise",
        "A graph layer that finds nothing is a layer normalisation.",
        _silent_graphs_normalise,
        witness="graph_update_alone",
    ),
    Law(
        "kernels_are_bands",
        "A kernel that slides over the features is a dense map with the kernel along a band.",
        _kernels_are_bands,
        lambda case: case.arrays["weights"].start_w.ndim == 2,
        witness="graph_turned_round",
    ),
)
MIXHOP_LAWS = (
    Law(
        "alpha_one_stays",
        "With alpha = 1 every hop is the start.",
        _alpha_one_stays,
        _hop_case,
        witness="mixhop_alpha_turned_round",
    ),
    Law(
        "hops_are_hops",
        "With alpha = 0 two hops are one hop, twice.",
        _hops_are_hops,
        _hop_case,
        witness="mixhop_every_hop_from_the_start",
    ),
    Law(
        "constants_stay",
        "Series that all agree are left alone.",
        _constants_stay,
        _hop_case,
        witness="mixhop_columns_normalised",
    ),
    Law(
        "names_do_not_matter",
        "Renaming the series renames the result.",
        _names_do_not_matter,
        witness="mixhop_next_in_line",
    ),
)
ADJACENCY_LAWS = (
    Law(
        "rows_sum_to_one",
        "What a series receives sums to 1.",
        _rows_sum_to_one,
        witness="adjacency_columns_sum_to_one",
    ),
    Law(
        "nothing_in_common",
        "Node vectors with nothing in common connect all series alike.",
        _nothing_in_common,
        witness="adjacency_negative_products_kept",
    ),
)
