"""Laws about who sees whom: the future, the hidden, the padding, the single key, the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Claim, Law
from refattn.conformance.precision import round_to
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.pipeline import sees
from refattn.contracts.attention.surgery import allowed, append_keys, has, positional, positions, take, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Case, Probe

__all__ = ["VISIBILITY_LAWS"]

_HUGE = {"float16": 256.0}  # products with it must not overflow; other dtypes take 1e30
_LOUD = {"float16": 256.0}
_SEVERAL = 3


def _claim_rows(left: np.ndarray, right: np.ndarray, slack: np.ndarray, rows: np.ndarray, what: str = "") -> Claim:
    """Return a claim about the rows that are marked."""
    keep = np.broadcast_to(rows, left.shape[:-1])
    zero = np.zeros_like(left)
    return Claim(np.where(keep[..., None], left, zero), np.where(keep[..., None], right, zero), slack, what)


def _future_ignored(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    first = int(rng.integers(1, sizes(case).sk))
    loud = {name: case.arrays[name].copy() for name in "kv"}
    for x in loud.values():
        later = x[:, :, first:]
        later[...] = round_to(_LOUD.get(case.dtype, 1000.0) * rng.standard_normal(later.shape), case.dtype)
    before = positions(case)[:, None] < first
    yield _claim_rows(probe(case)["out"], probe(case.having(**loud))["out"], 2 * allowed(probe, case), before)


def _replace_hidden(case: Case, hidden: np.ndarray, values: np.ndarray) -> Case:
    """Return the case with keys and values of the hidden (B, Sk) places replaced by a sequence of values."""
    where = np.broadcast_to(hidden[:, None, :, None], (*case.arrays["k"].shape[:-1], 1))
    changed = {
        name: np.where(where, round_to(np.resize(values, case.arrays[name].shape), case.dtype), case.arrays[name])
        for name in "kv"
    }
    return case.having(**changed)


def _hidden_ignored(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    hidden = ~np.any(sees(case), axis=(1, 2))  # (B, Sk)
    if hidden.any():
        huge = _HUGE.get(case.dtype, 1e30) * rng.choice([-1.0, 1.0], 97)
        other = _replace_hidden(case, hidden, huge)
        yield Claim(probe(case)["out"], probe(other)["out"], 2 * allowed(probe, case))


def _padding_may_be_nan(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    padding = np.arange(sizes(case).sk) >= case.arrays["kv_lengths"][:, None]
    other = _replace_hidden(case, padding, np.array([np.nan, np.inf, -np.inf]))
    yield Claim(probe(case)["out"], probe(other)["out"], 2 * allowed(probe, case))


def _padding_hidden(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    longer = append_keys(case, rng, int(rng.integers(1, 18)))
    yield Claim(probe(case)["out"], probe(longer)["out"], 2 * allowed(probe, case))


def _expanded_values(case: Case) -> np.ndarray:
    group = sizes(case).hq // max(sizes(case).hkv, 1)
    return np.repeat(case.arrays["v"], group, axis=1)[:, :, None]  # (B, Hq, 1, Sk, dv)


def _within_hull(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out, see, v = probe(case)["out"], sees(case)[..., None], _expanded_values(case)
    zero = 0.0 if has(case, "sinks") else np.inf
    low = np.min(np.where(see, v, np.inf), axis=3, initial=zero)
    high = np.max(np.where(see, v, -np.inf), axis=3, initial=-zero)
    seen = np.any(see, axis=3)[..., 0]
    bounded = np.clip(out, np.where(seen[..., None], low, 0.0), np.where(seen[..., None], high, 0.0))
    yield _claim_rows(out, bounded, allowed(probe, case), seen)


def _single_key(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    see = sees(case)
    one = see.sum(axis=-1) == 1
    if one.any():
        v = _expanded_values(case)[:, :, 0]
        only = np.take_along_axis(v, see.argmax(axis=-1)[..., None], axis=2)
        yield _claim_rows(probe(case)["out"], only, allowed(probe, case), one)


def _later_rows(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    sq = sizes(case).sq
    out, slack = probe(case)["out"], 2 * allowed(probe, case)
    for start in (0, int(rng.integers(sq))):
        later = take(case.having(align="bottom_right"), "Sq", np.arange(start, sq))
        yield Claim(out[:, :, start:], probe(later)["out"], slack[:, :, start:], f"queries from {start} on")


def _decoded_rows(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    out, slack = probe(case)["out"], 2 * allowed(probe, case)
    for i in sorted(rng.integers(0, sizes(case).sq, _SEVERAL).tolist()):
        past = take(take(case, "Sk", np.arange(i + 1)), "Sq", [i])
        alone = probe(past.having(align="bottom_right"))["out"]
        yield Claim(out[:, :, i : i + 1], alone, slack[:, :, i : i + 1], f"token {i}")


def _bias_hides(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    bias = np.where(case.arrays["mask"], case.arrays.get("bias", 0.0), -np.inf)
    other = case.without("mask").having(bias=bias)
    yield Claim(probe(case)["out"], probe(other)["out"], allowed(probe, case, other))


def _bad_query_alone(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    bad = int(rng.integers(sizes(case).sq))
    q = case.arrays["q"].copy()
    q[:, :, bad] = np.nan
    others = np.arange(sizes(case).sq) != bad
    yield _claim_rows(probe(case)["out"], probe(case.having(q=q))["out"], 2 * allowed(probe, case), others)


def _hides(case: Case) -> bool:
    content = has(case, "mask", "kv_lengths", "q_lengths", "doc_q", "bias") or positional(case)
    return whole(case) and content and case.options.get("empty") != "uniform" and sizes(case).sk > 0


def _has_future(case: Case) -> bool:
    plain = not has(case, "prefix") and case.options.get("empty") != "uniform"
    return whole(case) and has(case, "causal") and plain and sizes(case).sk > 1


def _padded(case: Case) -> bool:
    lengths = case.arrays.get("kv_lengths")
    return lengths is not None and _hides(case) and bool((lengths < sizes(case).sk).any())


def _may_grow(case: Case) -> bool:
    if not _hides(case):
        return False
    fixed = not positional(case) or case.options.get("align", "top_left") != "bottom_right"
    mask = case.arrays.get("mask")
    return has(case, "kv_lengths") or (mask is not None and mask.shape[-1] == sizes(case).sk and fixed)


def _square_causal(case: Case) -> bool:
    square = sizes(case).sq == sizes(case).sk > 0
    plain = not has(case, "kv_lengths", "q_lengths", "prefix")
    return (
        whole(case) and square and plain and has(case, "causal") and case.options.get("align", "top_left") == "top_left"
    )


VISIBILITY_LAWS = (
    Law(
        "future_ignored",
        "Under the causal rule an output does not change when later keys and values do, to whatever finite numbers.",
        _future_ignored,
        _has_future,
        witness="causal_loose",
    ),
    Law(
        "hidden_ignored",
        "What a key and its value hold does not matter where no query sees them, huge numbers included.",
        _hidden_ignored,
        _hides,
        witness="len_ignored",
    ),
    Law(
        "padding_may_be_nan",
        "Keys and values past the valid length may be NaN or infinite.",
        _padding_may_be_nan,
        _padded,
        witness="mask_post_softmax",
    ),
    Law(
        "padding_hidden",
        "Appending keys and hiding them, by length or mask, is the same as not appending them.",
        _padding_hidden,
        _may_grow,
        witness="causal_padded_length",
    ),
    Law(
        "within_hull",
        "Every channel of an output lies between the smallest and the largest visible value, 0 among them with a sink.",
        _within_hull,
        whole,
        witness="unnormalised",
    ),
    Law(
        "single_key",
        "A query that sees one key returns its value.",
        _single_key,
        lambda case: whole(case) and not has(case, "sinks") and sizes(case).sk > 0,
        witness="softmax_plus_one",
    ),
    Law(
        "later_rows",
        "The last queries of a causal square, aligned bottom-right, give its last rows; all queries give all rows.",
        _later_rows,
        _square_causal,
        witness="causal_top_left",
    ),
    Law(
        "decoded_rows",
        "Decoding token by token with a cache gives the rows of the causal square.",
        _decoded_rows,
        lambda case: _square_causal(case) and case.options.get("empty") != "uniform",
        witness="drop_tail_keys",
    ),
    Law(
        "bias_hides",
        "A bias of −∞ is a mask of False.",
        _bias_hides,
        lambda case: whole(case) and has(case, "mask"),
        witness="mask_ignored",
    ),
    Law(
        "bad_query_alone",
        "NaN in one query leaves the rows of all others as they are.",
        _bad_query_alone,
        lambda case: whole(case) and sizes(case).sq > 1 and sizes(case).sk > 0,
        witness="global_max",
    ),
)
