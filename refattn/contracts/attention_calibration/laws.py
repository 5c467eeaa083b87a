"""What holds between results of attention calibration, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refattn.conformance.contract import Probe

__all__ = ["ACT_LAWS", "DETECT_LAWS", "MAP_LAWS", "PROTECTED_LAWS", "RECEIVED_LAWS", "ROW_LAWS"]


def tokens(case: Case) -> int:
    """Return the number of keys, none if the batch is empty."""
    array = next(iter(case.arrays.values()))
    return int(array.shape[-1]) if array.size else 0


def _least(T: int) -> Callable[[Case], bool]:
    return lambda case: tokens(case) >= T


def _total(slack: np.ndarray, T: int) -> Any:
    """Return what an error of L2 norm ``slack`` in a row of T may do to its sum."""
    return np.sqrt(T) * slack


def _main(case: Case) -> np.ndarray:
    return next(array for name, array in case.arrays.items() if name in ("weights", "row"))


def _sinks(case: Case) -> np.ndarray:
    """Return the sinks of each row, in the shape of the rows."""
    sinks = case.arrays["sinks"]
    rows = _main(case)
    return np.broadcast_to(sinks[..., None, :] if "weights" in case.arrays else sinks, rows.shape)


def _rows_keep_their_sum(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows, out = _main(case), probe(case)["out"]
    slack = probe.slack(case)["out"]
    yield Claim(out.sum(-1, keepdims=True), rows.sum(-1, keepdims=True), _total(slack, rows.shape[-1]), "the sum")
    yield Claim(np.minimum(out, 0.0), np.zeros_like(out), 0.0, "what is below zero")
    yield Claim(np.where(rows == 0, out, 0.0), np.zeros_like(out), 0.0, "where nothing was")


def _beta_one_is_the_identity(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    whole = case.having(beta=1.0)
    yield Claim(probe(whole)["out"], _main(case), probe.slack(whole)["out"])


def _beta_zero_keeps_the_rest(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    empty = case.having(beta=0.0)
    rows = _main(case)
    kept = np.where(_sinks(case), 0.0, rows)
    base = kept.sum(-1, keepdims=True)
    expected = np.where(base > 0, kept / np.where(base > 0, base, 1.0) * rows.sum(-1, keepdims=True), rows)
    yield Claim(probe(empty)["out"], expected, probe.slack(empty)["out"])


def _sinks_keep_beta(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows, sinks, out = _main(case), _sinks(case), probe(case)["out"]
    full = np.where(sinks, 0.0, rows).sum(-1) == 0  # these rows are left alone
    before = np.where(sinks, rows, 0.0) * np.where(full, 1.0, case.options.get("beta", 0.4))[..., None]
    yield Claim(np.where(sinks, out, 0.0), before, probe.slack(case)["out"])


def _linear_in_beta(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    beta = case.options.get("beta", 0.4)
    none = case.having(beta=0.0)
    mixed = beta * _main(case) + (1 - beta) * probe(none)["out"]
    yield Claim(probe(case)["out"], mixed, probe.slack(case)["out"] + probe.slack(none)["out"])


def _twice_is_the_product(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    name = next(name for name in ("weights", "row") if name in case.arrays)
    once = case.having(beta=0.5)
    twice = case.having(**{name: probe(once)["out"]}, beta=0.5)
    both = case.having(beta=0.25)
    # rounding of the first pass reaches the second, which at most doubles it where it shares freed mass
    slack = 3 * probe.slack(once)["out"] + probe.slack(twice)["out"] + probe.slack(both)["out"]
    yield Claim(probe(twice)["out"], probe(both)["out"], slack)


def _ratios_are_kept(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    rows, sinks, out = _main(case), _sinks(case), probe(case)["out"]
    slack = probe.slack(case)["out"]
    for group, what in ((~sinks, "kept columns"), (sinks, "sinks")):
        before, after = np.where(group, rows, 0.0), np.where(group, out, 0.0)
        # Â[j] Σ A = A[j] Σ Â over the group: every ratio at once
        left, right = after * before.sum(-1, keepdims=True), before * after.sum(-1, keepdims=True)
        yield Claim(left, right, slack + _total(slack, rows.shape[-1]), what)


def _narrow(case: Case) -> bool:
    # the second pass is given the first one's rounded rows, which must still sum to 1
    return tokens(case) >= 2 and case.dtype in ("float64", "float32")


def _calibration_laws(prefix: str) -> tuple[Law, ...]:
    """Return the laws of the calibration itself, witnessed by the bugs of the same prefix."""
    return (
        Law(
            "rows_keep_their_sum",
            "Calibrated rows have the sum that they had, no negative entry, and nothing where nothing was.",
            _rows_keep_their_sum,
            _least(1),
            witness=prefix + "loses_the_mass",
        ),
        Law(
            "beta_one_is_the_identity",
            "With β = 1 the weights come back.",
            _beta_one_is_the_identity,
            _least(1),
            witness=prefix + "removes_beta",
        ),
        Law(
            "beta_zero_keeps_the_rest",
            "With β = 0 a row is its kept columns, normalised; a row with none is left alone.",
            _beta_zero_keeps_the_rest,
            _least(1),
            witness=prefix + "empties_full_rows",
        ),
        Law(
            "sinks_keep_beta",
            "A calibrated column ends at β times what it had, in every row that keeps another.",
            _sinks_keep_beta,
            _least(1),
            witness=prefix + "renormalises",
        ),
        Law(
            "linear_in_beta",
            "Â(β) = β A + (1 − β) Â(0).",
            _linear_in_beta,
            _least(2),
            witness=prefix + "gives_what_stays",
        ),
        Law(
            "twice_is_the_product",
            "Calibrating twice at fixed sinks is calibrating once, by the product of both β.",
            _twice_is_the_product,
            _narrow,
            witness=prefix + "shares_by_weight",
        ),
        Law(
            "ratios_are_kept",
            "Two kept columns keep their ratio, and so do two sinks.",
            _ratios_are_kept,
            _least(2),
            witness=prefix + "shares_equally",
        ),
    )


MAP_LAWS, ROW_LAWS = _calibration_laws(""), _calibration_laws("row_")


def _received_counts_every_query(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("causal")
    weights = case.arrays["weights"]
    T = weights.shape[-1]
    queries = np.arange(T, 0, -1.0)
    total = (queries * probe(plain)["out"]).sum(-1, keepdims=True)
    slack = np.linalg.norm(queries) * probe.slack(plain)["out"]
    yield Claim(total, weights.sum((-1, -2))[..., None], slack)


def _received_by_prefix(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    running = case.having(causal=True)
    weights = case.arrays["weights"]
    cut = int(rng.integers(1, weights.shape[-1] + 1))
    early = case.without("causal").having(weights=weights[..., :cut, :cut])
    slack = probe.slack(running)["out"][..., cut - 1] + probe.slack(early)["out"]
    yield Claim(probe(running)["out"][..., cut - 1, :cut], probe(early)["out"], slack)


def _last_token_keeps_its_own(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("causal")
    slack = probe.slack(plain)["out"]
    yield Claim(probe(plain)["out"][..., -1:], case.arrays["weights"][..., -1, -1:], slack)


RECEIVED_LAWS = (
    Law(
        "received_counts_every_query",
        "Σ_j (T − j) a[j] is the number of queries that attend at all.",
        _received_counts_every_query,
        _least(2),
        witness="divides_by_all_tokens",
    ),
    Law(
        "received_by_prefix",
        "Row i of the running mean is the mean of the first i + 1 tokens alone.",
        _received_by_prefix,
        _least(2),
        witness="sees_everything",
    ),
    Law(
        "last_column_is_one_query",
        "The last column's mean is the last token's attention to itself.",
        _last_token_keeps_its_own,
        _least(2),
        witness="divides_by_earlier_tokens",
    ),
)


def _limited(case: Case, threshold: float) -> Case:
    return case.without("alpha", "threshold").having(threshold=threshold)


def _none_above_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(_limited(case, 1.0))["out"]
    yield Claim(found, np.zeros_like(found))


def _all_below_zero(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(_limited(case, -0.5).without("causal"))["out"]
    yield Claim(found, np.ones_like(found))


def _larger_finds_fewer(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    low, high = sorted(rng.random(2))
    few, many = (probe(_limited(case, float(x)))["out"] for x in (high, low))
    yield Claim(np.maximum(few, many), many)


def _unattended_is_no_sink(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(_limited(case, 0.0).without("causal"))["out"]
    yield Claim(found, (case.arrays["weights"].sum(-2) > 0).astype(float))


def _alpha_counts_shares(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    T = case.arrays["weights"].shape[-1]
    plain = case.without("causal")
    # α = T/2 and the threshold 1/2 are the same number in every dtype
    relative = plain.without("threshold", "alpha").having(alpha=T / 2)
    yield Claim(probe(relative)["out"], probe(_limited(plain, 0.5))["out"])


DETECT_LAWS = (
    Law(
        "none_above_one",
        "A threshold of 1 finds nothing: a mean of weights is at most 1, and the comparison is strict.",
        _none_above_one,
        _least(1),
        witness="detects_the_quiet",
    ),
    Law(
        "all_below_zero",
        "A negative threshold finds every column.",
        _all_below_zero,
        _least(1),
        witness="detects_the_quiet",
    ),
    Law(
        "larger_finds_fewer",
        "What a larger threshold finds, a smaller one finds too.",
        _larger_finds_fewer,
        _least(2),
        witness="detects_the_quiet",
    ),
    Law(
        "unattended_is_no_sink",
        "At the threshold 0 sinks are the columns that anybody attends to.",
        _unattended_is_no_sink,
        _least(1),
        witness="detects_ties",
    ),
    Law(
        "alpha_counts_shares",
        "α = T/2 is the threshold 1/2.",
        _alpha_counts_shares,
        _least(1),
        witness="detection_alpha_as_it_is",
    ),
)


def _column_zero_is_safe(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    left = probe(case)["out"]
    yield Claim(left[..., :1], np.zeros_like(left[..., :1]), 0.0, "column 0")
    yield Claim(np.minimum(left, case.arrays["is_sink"]), left, 0.0, "a subset")


def _one_is_spared(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = case.arrays["is_sink"].astype(float)
    left = probe(case.without("protect"))["out"]
    count = np.maximum(found.sum(-1, keepdims=True) - 1, 0)
    yield Claim(left.sum(-1, keepdims=True), count)


def _later_ones_are_not_spared(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = case.arrays["is_sink"]
    ahead = np.concatenate([np.ones_like(found[..., :1]), found], axis=-1)
    left = probe(case.having(is_sink=ahead))["out"]
    yield Claim(left[..., 1:], found.astype(float))


PROTECTED_LAWS = (
    Law(
        "column_zero_is_safe",
        "Column 0 is never calibrated, and nothing that was not detected.",
        _column_zero_is_safe,
        _least(1),
        witness="spares_none",
    ),
    Law(
        "one_is_spared",
        "Exactly one detected column of each map is spared by default, if there is any.",
        _one_is_spared,
        _least(1),
        witness="spares_column_zero",
    ),
    Law(
        "later_ones_are_not_spared",
        "Behind a sink at column 0 every other sink is calibrated, by either rule.",
        _later_ones_are_not_spared,
        _least(1),
        witness="spares_the_last",
    ),
)


def _others_are_untouched(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"]
    others = [h for h in range(weights.shape[1]) if h not in case.options["heads"]]
    yield Claim(probe(case)["out"][:, others], weights[:, others])


def _maps_are_alone(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"]
    everybody = case.without("heads")
    b, h = int(rng.integers(weights.shape[0])), int(rng.integers(weights.shape[1]))
    alone = everybody.having(weights=weights[b : b + 1, h : h + 1])
    slack = probe.slack(everybody)["out"][b, h] + probe.slack(alone)["out"][0, 0]
    yield Claim(probe(everybody)["out"][b, h], probe(alone)["out"][0, 0], slack)


def _no_sink_no_change(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    without = _limited(case, 1.0)
    yield Claim(probe(without)["out"], case.arrays["weights"], probe.slack(without)["out"])


def _everything_flows_to_the_first(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    every = _limited(case, -0.5).without("heads").having(protect="token0")
    weights, beta = case.arrays["weights"], case.options.get("beta", 0.4)
    expected = beta * weights
    first, total = weights[..., 0], weights.sum(-1)
    expected[..., 0] = total * (1 - beta) + beta * first
    expected = np.where(first[..., None] > 0, expected, weights)  # nothing is kept there
    yield Claim(probe(every)["out"], expected, probe.slack(every)["out"])


def _future_is_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    weights = case.arrays["weights"]
    cut = int(rng.integers(1, weights.shape[-1]))
    early = case.having(weights=weights[..., :cut, :cut])
    slack = probe.slack(case)["out"][..., :cut] + probe.slack(early)["out"]
    yield Claim(probe(case)["out"][..., :cut, :cut], probe(early)["out"], slack)


def _last_query_has_seen_all(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    ahead, whole = case.having(causal=True), case.having(causal=False)
    slack = probe.slack(ahead)["out"][..., -1:] + probe.slack(whole)["out"][..., -1:]
    yield Claim(probe(ahead)["out"][..., -1:, :], probe(whole)["out"][..., -1:, :], slack)


def _chosen(case: Case) -> bool:
    return tokens(case) >= 1 and case.options.get("heads") is not None


ACT_LAWS = (
    Law(
        "rows_keep_their_sum",
        "Calibrated rows have the sum that they had, no negative entry, and nothing where nothing was.",
        _rows_keep_their_sum,
        _least(1),
        witness="act_loses_the_mass",
    ),
    Law(
        "others_are_untouched",
        "Heads that are not chosen come back bit for bit.",
        _others_are_untouched,
        _chosen,
        witness="calibrates_all",
    ),
    Law(
        "maps_are_alone",
        "What happens to a head of a sequence depends on no other head and no other sequence.",
        _maps_are_alone,
        _least(2),
        witness="sinks_of_any_head",
    ),
    Law(
        "no_sink_no_change",
        "Where no column is a sink nothing changes.",
        _no_sink_no_change,
        _least(1),
        witness="changes_without_sinks",
    ),
    Law(
        "everything_flows_to_the_first",
        "If every column but the first is calibrated, the first takes all that is freed.",
        _everything_flows_to_the_first,
        _least(2),
        witness="act_removes_beta",
    ),
    Law(
        "future_is_unseen",
        "In the causal form a prefix is calibrated as if nothing followed.",
        _future_is_unseen,
        lambda case: tokens(case) >= 2 and bool(case.options.get("causal", False)),
        witness="act_sees_everything",
    ),
    Law(
        "last_query_has_seen_all",
        "The last row is the same in the causal form and the other.",
        _last_query_has_seen_all,
        _least(1),
        witness="act_sees_one_less",
    ),
)
