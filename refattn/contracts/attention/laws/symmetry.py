"""Laws of order and copies: keys, queries, groups and batch entries may be permuted, doubled, taken alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Claim, Law
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.surgery import (
    allowed,
    group_heads,
    has,
    order_free_keys,
    order_free_queries,
    take,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Case, Probe

__all__ = ["SYMMETRY_LAWS", "lse_claim"]


def lse_claim(left: np.ndarray, right: np.ndarray, slack: np.ndarray, what: str = "") -> Claim:
    """Return the claim that two log-sum-exps agree, whether their slack is per number or per row."""
    if np.ndim(slack) == left.ndim:
        return Claim(left[..., None], right[..., None], slack, what)
    return Claim(left, right, slack, what)


def _permuted_keys(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    other = take(case, "Sk", rng.permutation(sizes(case).sk))
    yield Claim(probe(case)["out"], probe(other)["out"], allowed(probe, case, other))


def _permuted_queries(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(sizes(case).sq)
    slack = 2 * allowed(probe, case)[:, :, order]
    yield Claim(probe(case)["out"][:, :, order], probe(take(case, "Sq", order))["out"], slack)


def _permuted_groups(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(sizes(case).hkv)
    heads = group_heads(case, np.arange(sizes(case).hq)[None])[0, order].ravel()
    other = take(take(case, "Hkv", order), "Hq", heads)
    yield Claim(probe(case)["out"][:, heads], probe(other)["out"], 2 * allowed(probe, case)[:, heads])


def _batch_alone(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    b = int(rng.integers(sizes(case).batch))
    one = take(case, "B", [b])
    yield Claim(probe(case)["out"][b : b + 1], probe(one)["out"], 2 * allowed(probe, case)[b : b + 1])


def _repeated_heads(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    kv_heads = np.repeat(np.arange(sizes(case).hkv), sizes(case).hq // sizes(case).hkv)
    wide = take(case, "Hkv", kv_heads)
    yield Claim(probe(case)["out"], probe(wide)["out"], allowed(probe, case, wide))


def _doubled_keys(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = take(case, "Sk", np.tile(np.arange(sizes(case).sk), 2))
    yield Claim(probe(case)["out"], probe(twice)["out"], allowed(probe, case, twice))


def _doubled_keys_lse(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    case = case.having(returns=("out", "lse"))
    twice = take(case, "Sk", np.tile(np.arange(sizes(case).sk), 2))
    once, double = probe(case), probe(twice)
    if "lse" in once and "lse" in double:
        slack = probe.slack(case)["lse"] + probe.slack(twice)["lse"]
        yield lse_claim(once["lse"] + np.log(2.0), double["lse"], slack)


def _sinkless_keys(case: Case) -> bool:
    return order_free_keys(case) and not has(case, "sinks") and sizes(case).sk > 0


SYMMETRY_LAWS = (
    Law(
        "permuted_keys",
        "The order of the keys does not matter, if values, masks and biases move with them.",
        _permuted_keys,
        lambda case: order_free_keys(case) and sizes(case).sk > 1,
        witness="v_row_shift",
    ),
    Law(
        "permuted_queries",
        "Permuting the queries permutes the rows of the output.",
        _permuted_queries,
        lambda case: order_free_queries(case) and sizes(case).sq > 1,
        witness="last_row_of_previous",
    ),
    Law(
        "permuted_groups",
        "Permuting the kv heads together with their query heads permutes the heads of the output.",
        _permuted_groups,
        lambda case: whole(case) and sizes(case).hkv > 1,
        witness="gqa_first",
    ),
    Law(
        "batch_alone",
        "A batch entry gives the same output when it is computed alone.",
        _batch_alone,
        lambda case: whole(case) and sizes(case).batch > 1,
        witness="kv_batch_rolled",
    ),
    Law(
        "repeated_heads",
        "Grouped heads give the same as every kv head repeated for its query heads.",
        _repeated_heads,
        lambda case: whole(case) and sizes(case).hq > sizes(case).hkv > 0,
        witness="gqa_tile",
    ),
    Law(
        "doubled_keys",
        "Every key and value twice gives the same output: each copy takes half the weight.",
        _doubled_keys,
        _sinkless_keys,
        witness="drop_tail_keys",
    ),
    Law(
        "doubled_keys_lse",
        "Every key twice adds ln 2 to the log-sum-exp.",
        _doubled_keys_lse,
        _sinkless_keys,
        witness="softmax_plus_one",
    ),
)
