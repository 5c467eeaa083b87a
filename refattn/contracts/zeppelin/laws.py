"""What every implementation of the ring obeys, stated between its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["BLOCK_LAWS", "GRADIENT_LAWS", "MERGE_LAWS", "PAIR_LAWS", "PARTITION_LAWS", "RING_LAWS"]

RESULTS = ("out", "lse")


def _n(case: Case) -> int:
    return len(case.arrays["q"])


def _causal(case: Case) -> bool:
    return bool(case.options.get("causal", True))


def _same(probe: Probe, left: Case, right: Case, names: tuple[str, ...], rows: Any = slice(None)) -> Iterator[Claim]:
    """Claim that two cases have the same results, as far as rounding lets them."""
    results, slacks = (probe(left), probe(right)), (probe.slack(left), probe.slack(right))
    for name in names:
        slack = slacks[0][name][rows] + slacks[1][name][rows]
        yield Claim(results[0][name][rows], results[1][name][rows], slack, name)


def _ranks_do_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    yield from _same(probe, case, case.having(n_ranks=int(rng.integers(1, 4))), RESULTS)


def _layouts_do_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    others = {"zigzag", "contiguous", "striped"} - {case.options.get("layout", "zigzag")}
    yield from _same(probe, case, case.having(layout=str(rng.choice(sorted(others)))), RESULTS)


def _future_is_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cut = int(rng.integers(1, _n(case)))
    changed = {name: np.concatenate([x[:cut], -2.0 * x[cut:]]) for name, x in case.arrays.items()}
    yield from _same(probe, case, case.having(**changed), RESULTS, slice(cut))


def _sequences_are_alone(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cu = case.options["cu_seqlens"]
    one = int(rng.integers(len(cu) - 1))
    rows = slice(cu[one], cu[one + 1])
    alone = case.having(**{name: x[rows] for name, x in case.arrays.items()}).without("cu_seqlens")
    whole, apart = probe(case), probe(alone)
    slack, own = probe.slack(case), probe.slack(alone)
    for name in RESULTS:
        yield Claim(whole[name][rows], apart[name], slack[name][rows] + own[name], name)


def _blind_queries_count_keys(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    blind = case.having(q=np.zeros_like(case.arrays["q"]))
    bounds = case.options.get("cu_seqlens") or [0, _n(case)]
    lengths = np.diff(bounds)
    place = np.arange(_n(case)) - np.repeat(bounds[:-1], lengths)
    seen = place + 1.0 if _causal(case) else np.repeat(lengths, lengths).astype(float)
    lse = probe(blind)["lse"]
    yield Claim(lse, np.broadcast_to(np.log(seen)[:, None], lse.shape), probe.slack(blind)["lse"])


def _equal_values_are_kept(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    level = case.having(v=np.ones_like(case.arrays["v"]))
    out = probe(level)["out"]
    yield Claim(out, np.ones_like(out), probe.slack(level)["out"])


RING_LAWS = (
    Law(
        "ranks_do_not_matter",
        "Any number of ranks gives the same outputs and log-sum-exps.",
        _ranks_do_not_matter,
        lambda case: _n(case) > 1,
        witness="parts_count_alike",
    ),
    Law(
        "layouts_do_not_matter",
        "Zigzag, contiguous and striped layouts give the same.",
        _layouts_do_not_matter,
        lambda case: _n(case) > 1 and case.options["n_ranks"] > 1,
        witness="stands_as_if_contiguous",
    ),
    Law(
        "future_is_unseen",
        "Under the causal mask, later tokens leave the results of earlier ones as they are.",
        _future_is_unseen,
        lambda case: _causal(case) and _n(case) > 1,
        witness="triangle_of_every_block",
    ),
    Law(
        "sequences_are_alone",
        "A packed sequence gives the same as when it is alone.",
        _sequences_are_alone,
        lambda case: len(case.options.get("cu_seqlens") or ()) > 2,
        witness="packed_as_one",
    ),
    Law(
        "blind_queries_count_keys",
        "With queries of zero the log-sum-exp is the logarithm of the number of keys seen.",
        _blind_queries_count_keys,
        lambda case: _n(case) > 0,
        witness="diagonal_hidden",
    ),
    Law(
        "equal_values_are_kept",
        "Where all values are one, so are all outputs: the weights sum to one.",
        _equal_values_are_kept,
        lambda case: _n(case) > 0,
        witness="parts_added",
    ),
)


def _gradient_on_any_ring(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    yield from _same(probe, case, case.having(n_ranks=int(rng.integers(1, 4))), ("dq", "dk", "dv"))


def _unasked_tokens_learn_nothing(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cut = int(rng.integers(1, _n(case)))
    d_out = case.arrays["d_out"].copy()
    d_out[cut:] = 0.0
    for name, gradient in probe(case.having(d_out=d_out)).items():
        yield Claim(gradient[cut:], np.zeros_like(gradient[cut:]), 0.0, name)


def _shared_heads_gather(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    h, h_kv = case.arrays["q"].shape[1], case.arrays["k"].shape[1]
    apart = case.having(**{name: np.repeat(case.arrays[name], h // h_kv, axis=1) for name in "kv"})
    grouped, single, slack, own = probe(case), probe(apart), probe.slack(case), probe.slack(apart)
    for name in ("dk", "dv"):
        copies = single[name].reshape(_n(case), h_kv, h // h_kv, -1)
        loose = own[name].reshape(_n(case), h_kv, h // h_kv).sum(axis=-1)
        yield Claim(grouped[name], copies.sum(axis=2), slack[name] + loose, name)


GRADIENT_LAWS = (
    Law(
        "gradient_on_any_ring",
        "Any number of ranks gives the same gradients.",
        _gradient_on_any_ring,
        lambda case: _n(case) > 1,
        witness="gradient_weights_of_the_block_alone",
    ),
    Law(
        "unasked_tokens_learn_nothing",
        "Under the causal mask, tokens behind the last one whose output matters have no gradient at all.",
        _unasked_tokens_learn_nothing,
        lambda case: _causal(case) and _n(case) > 1,
        witness="gradient_triangle_of_every_block",
    ),
    Law(
        "shared_heads_gather",
        "A key head that several query heads read gathers the sum of what its copies would.",
        _shared_heads_gather,
        lambda case: _n(case) > 0 and case.arrays["q"].shape[1] > case.arrays["k"].shape[1],
        witness="gradient_heads_averaged",
    ),
)


def _keys_in_any_order(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(len(case.arrays["k"]))
    moved = case.having(**{name: case.arrays[name][order] for name in ("k", "v", "k_pos")})
    yield from _same(probe, case, moved, RESULTS)


def _later_keys_weigh_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    late = case.having(k_pos=case.arrays["k_pos"] + 1 + case.arrays["q_pos"].max())
    out, lse = (probe(late)[name] for name in RESULTS)
    yield Claim(out, np.zeros_like(out), 0.0, "out")
    # e^lse, because −∞ and −∞ have no difference
    yield Claim(np.where(np.isneginf(lse), 0.0, 1.0), np.zeros_like(lse), 0.0, "lse")


def _queries_are_alone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    some = np.argmax(case.arrays["q_pos"], keepdims=True)
    fewer = case.having(**{name: case.arrays[name][some] for name in ("q", "q_pos")})
    whole, apart, slack, own = probe(case), probe(fewer), probe.slack(case), probe.slack(fewer)
    for name in RESULTS:
        yield Claim(whole[name][some], apart[name], slack[name][some] + own[name], name)


BLOCK_LAWS = (
    Law(
        "keys_in_any_order",
        "Keys may come in any order, if their positions come along.",
        _keys_in_any_order,
        lambda case: _n(case) > 0 and len(case.arrays["k"]) > 1 and _sees_everywhere(case),
        witness="block_triangle_of_every_block",
    ),
    Law(
        "later_keys_weigh_nothing",
        "A block whose keys all stand behind the queries is (0, −∞).",
        _later_keys_weigh_nothing,
        lambda case: _causal(case) and _n(case) > 0 and len(case.arrays["k"]) > 0,
        witness="block_hidden_by_a_large_number",
    ),
    Law(
        "queries_are_alone",
        "What a query finds does not depend on the other queries of the block: the latest one alone finds the same.",
        _queries_are_alone,
        lambda case: _n(case) > 0,
        witness="block_mask_of_the_first_query",
    ),
)


def _sees_everywhere(case: Case) -> bool:
    seen = case.arrays["k_pos"][None, :] <= case.arrays["q_pos"][:, None]
    return bool(seen.any(axis=-1).all()) or not _causal(case)


def _sides_may_change(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    swapped = {f"{name}_{side}": case.arrays[f"{name}_{other}"] for name in RESULTS for side, other in ("ab", "ba")}
    yield from _same(probe, case, case.having(**swapped), RESULTS)


def _nothing_is_neutral(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    nothing = case.having(out_b=np.zeros_like(case.arrays["out_b"]), lse_b=np.full_like(case.arrays["lse_b"], -np.inf))
    result, slack = probe(nothing), probe.slack(nothing)
    for name in RESULTS:
        yield Claim(result[name], case.arrays[f"{name}_a"], slack[name], name)


def _twice_the_same(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = case.having(out_b=case.arrays["out_a"], lse_b=case.arrays["lse_a"])
    result, slack = probe(twice), probe.slack(twice)
    yield Claim(result["out"], case.arrays["out_a"], slack["out"], "out")
    yield Claim(result["lse"], case.arrays["lse_a"] + np.log(2.0), slack["lse"], "lse")


def _weighed(case: Case) -> bool:
    """Whether every row of a partial result saw a key, and there are rows."""
    weights = (case.arrays["lse_a"], case.arrays["lse_b"])
    return bool(weights[0].size and all(np.isfinite(lse).all() for lse in weights))


MERGE_LAWS = (
    Law(
        "sides_may_change",
        "Which part comes first does not matter.",
        _sides_may_change,
        _weighed,
        witness="merge_keeps_the_second_lse",
    ),
    Law(
        "nothing_is_neutral",
        "Merging with (0, −∞) changes nothing.",
        _nothing_is_neutral,
        _weighed,
        witness="merge_keeps_the_second_lse",
    ),
    Law(
        "twice_the_same",
        "A part merged with itself keeps its output and gains log 2.",
        _twice_the_same,
        _weighed,
        witness="merge_parts_added",
    ),
)


def _held(probe: Probe, case: Case) -> list[np.ndarray]:
    return list(probe(case).values())


def _every_token_is_held_once(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    held = np.sort(np.concatenate(_held(probe, case))).astype(float)
    yield Claim(held, np.arange(case.options["length"], dtype=float), 0.0)


def _sizes_are_even(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    sizes = np.array([len(own) for own in _held(probe, case)], dtype=float)
    widest = 2.0 if case.options.get("layout", "zigzag") == "zigzag" else 1.0
    yield Claim(np.minimum(sizes, sizes.min() + widest), sizes, 0.0)


def _zigzag_is_its_mirror_image(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    length = 2 * case.options["n_ranks"] * case.options["length"]
    for rank, own in enumerate(_held(probe, case.having(length=length))):
        yield Claim((length - 1.0 - own)[::-1], own.astype(float), 0.0, f"rank {rank}")


PARTITION_LAWS = (
    Law(
        "every_token_is_held_once",
        "The ranks share the positions out, each once.",
        _every_token_is_held_once,
        witness="partition_rest_dropped",
    ),
    Law(
        "sizes_are_even",
        "No rank holds more than one token a chunk more than another.",
        _sizes_are_even,
        witness="partition_chunks_rounded_up",
    ),
    Law(
        "zigzag_is_its_mirror_image",
        "With equal chunks, a zigzag rank holds the same positions when the sequence is read backwards.",
        _zigzag_is_its_mirror_image,
        lambda case: case.options.get("layout", "zigzag") == "zigzag" and case.options["length"] > 0,
        witness="partition_neighbouring_chunks_paired",
    ),
)


def _every_pair_is_computed_once(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    length = case.options["length"]
    total = length * (length + 1) / 2 if _causal(case) else float(length**2)
    yield Claim(probe(case)["out"].sum(), np.array(total), 0.0)


def _zigzag_is_balanced(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    n_ranks, c = case.options["n_ranks"], case.options["length"]
    counts = probe(case.having(length=2 * n_ranks * c))["out"].astype(float)
    expected = np.full_like(counts, 2.0 * c**2)
    expected[:, 0] += c
    yield Claim(counts, expected, 0.0)


PAIR_LAWS = (
    Law(
        "every_pair_is_computed_once",
        "Ranks and steps together compute n(n + 1)/2 pairs, or n² without the mask.",
        _every_pair_is_computed_once,
        witness="pairs_diagonal_hidden",
    ),
    Law(
        "zigzag_is_balanced",
        "With chunks of c tokens every rank computes 2c² + c pairs at step 0 and 2c² at each other step.",
        _zigzag_is_balanced,
        lambda case: case.options.get("layout", "zigzag") == "zigzag" and _causal(case) and case.options["length"] > 0,
        witness="pairs_neighbouring_chunks_paired",
    ),
)
