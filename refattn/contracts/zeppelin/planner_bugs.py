"""Mistakes that people make when they plan a batch, each one step of a plain planner exchanged."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.conformance.contract import Mistake

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refattn.conformance.contract import Case

__all__ = ["LEAST_BUGS", "MESSAGE_BUGS", "PARTITION_BUGS", "REMAP_BUGS"]


def order(lengths: Sequence[int]) -> list[int]:
    """Begin with the longest."""
    return sorted(lengths, reverse=True)


def pieces(length: int, threshold: int, buckets: int) -> int:
    """Return into how many parts a long sequence is cut."""
    return buckets if threshold < 1 else min(buckets, max(2, ceil(length / threshold)))


def work(length: int, parts: int) -> float:
    """Return what one part of a sequence costs in attention."""
    return length**2 / parts


def share(length: int, parts: int) -> float:
    """Return the tokens of one part."""
    return length / parts


def fits(held: float, room: int) -> bool:
    """Return whether a bucket holds no more than it can."""
    return held <= room


def start(crossing: list[tuple[int, list[int]]], node: int, gpus: int) -> Any:
    """Return what the sequences that cross nodes take on each GPU of a node."""
    return sum(length / (len(nodes) * gpus) for length, nodes in crossing if node in nodes)


class Steps(NamedTuple):
    """Every step of planning that a planted bug may replace."""

    order: Callable[..., Any] = order
    pieces: Callable[..., Any] = pieces
    work: Callable[..., Any] = work
    share: Callable[..., Any] = share
    fits: Callable[..., Any] = fits
    start: Callable[..., Any] = start


def place(steps: Steps, lengths: list[int], count: int, room: int, taken: float) -> list[tuple[int, list[int]]]:
    """Place sequences on buckets under falling thresholds."""
    threshold = room
    while True:
        placed: list[Any] | None = attempt(steps, lengths, np.full(count, float(taken)), room, threshold)
        if placed is not None:
            return placed
        below = [length for length in lengths if length <= threshold]
        threshold = max(below) - 1 if below else threshold // 2


def attempt(steps: Steps, lengths: list[int], held: np.ndarray, room: int, threshold: int) -> Any:
    """Place sequences under one threshold, or return None."""
    load, placed = np.zeros(len(held)), []
    for length in lengths:
        k = steps.pieces(length, threshold, len(held)) if length > threshold else 1
        if length > threshold:
            chosen = np.argsort(load, kind="stable")[:k]
        else:
            free = [b for b in range(len(held)) if steps.fits(held[b] + length, room)]
            chosen = np.array(sorted(free, key=lambda b: (load[b], held[b]))[:1], dtype=int)
        full = not all(steps.fits(held[b] + length / k, room) for b in chosen)
        if not chosen.size or (full and (k < len(held) or threshold >= 1)):
            return None
        held[chosen] += steps.share(length, k)
        load[chosen] += steps.work(length, k)
        placed.append((length, [int(b) for b in chosen]))
    return placed


def partition(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the plan with these steps exchanged; the tokens of each GPU."""
    steps = Steps(**changes)

    def wrong(*, lengths: Sequence[int], cluster: Sequence[float], capacity: int) -> Any:
        nodes, gpus = (int(n) for n in cluster[:2])
        on_nodes = place(steps, steps.order(lengths), nodes, gpus * capacity, 0.0)
        crossing = [(length, where) for length, where in on_nodes if len(where) > 1]
        tokens = np.zeros((nodes, gpus))
        for node in range(nodes):
            own = [length for length, where in on_nodes if where == [node]]
            tokens[node] += sum(steps.share(length, len(where) * gpus) for length, where in crossing if node in where)
            for length, where in place(steps, own, gpus, capacity, steps.start(crossing, node, gpus)):
                tokens[node, where] += steps.share(length, len(where))
        return {"tokens_per_gpu": tokens.reshape(-1)}

    return wrong


def _as_they_come(lengths: Sequence[int]) -> Any:
    return list(lengths)


def _shortest_first(lengths: Sequence[int]) -> Any:
    return sorted(lengths)


def _always_halved(length: int, threshold: int, buckets: int) -> Any:
    del length
    return buckets if threshold < 1 else min(buckets, 2)


def _always_over_all(length: int, threshold: int, buckets: int) -> Any:
    del length, threshold
    return buckets


def _work_is_length(length: int, parts: int) -> Any:
    return length / parts


def _work_of_the_whole(length: int, parts: int) -> Any:
    del parts
    return length**2


def _shares_rounded_down(length: int, parts: int) -> Any:
    return length // parts


def _room_ignored(held: float, room: int) -> Any:
    del held, room
    return True


def _room_for_one_less(held: float, room: int) -> Any:
    return held <= room - 1e-3 * room


def _guests_forgotten(crossing: list[tuple[int, list[int]]], node: int, gpus: int) -> Any:
    del crossing, node, gpus
    return 0.0


def direct(n: np.ndarray, nic: float, latency: float, nics: int) -> Any:
    """Send through one card."""
    del nics
    return latency + n / nic


def spread(n: np.ndarray, nvlink: float, latency: float, nics: int) -> Any:
    """Hand all but the own part to the other cards' proxies."""
    return (nics - 1) / nics * n / nvlink + (latency if nics > 1 else 0.0)


def abreast(n: np.ndarray, nic: float, latency: float, nics: int) -> Any:
    """Send through all cards at once."""
    return latency + n / (nics * nic)


def collect(handing_out: np.ndarray) -> Any:
    """Take as long as the handing out."""
    return handing_out


def faster(straight: np.ndarray, round_about: np.ndarray) -> Any:
    """Choose for each message."""
    return np.minimum(straight, round_about)


class Ways(NamedTuple):
    """Every step of sending that a planted bug may replace."""

    direct: Callable[..., Any] = direct
    spread: Callable[..., Any] = spread
    abreast: Callable[..., Any] = abreast
    collect: Callable[..., Any] = collect
    faster: Callable[..., Any] = faster


def sending(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the time of a message with these steps exchanged."""
    ways = Ways(**changes)

    def wrong(n_bytes: np.ndarray, *, cluster: Sequence[float], routed: bool | None = None) -> Any:
        nics, (nvlink, nic, _, _, inside, across) = int(cluster[2]), cluster[3:]
        straight = ways.direct(n_bytes, nic, across, nics)
        out = ways.spread(n_bytes, nvlink, inside, nics)
        round_about = out + ways.abreast(n_bytes, nic, across, nics) + ways.collect(out)
        return ways.faster(straight, round_about) if routed is None else round_about if routed else straight

    return wrong


def _through_all_cards(n: np.ndarray, nic: float, latency: float, nics: int) -> Any:
    return latency + n / (nics * nic)


def _own_part_spread_too(n: np.ndarray, nvlink: float, latency: float, nics: int) -> Any:
    return n / nvlink + (latency if nics > 1 else 0.0)


def _handing_out_free_of_latency(n: np.ndarray, nvlink: float, latency: float, nics: int) -> Any:
    del latency
    return (nics - 1) / nics * n / nvlink


def _one_card_after_all(n: np.ndarray, nic: float, latency: float, nics: int) -> Any:
    del nics
    return latency + n / nic


def _never_collected(handing_out: np.ndarray) -> Any:
    return 0.0 * handing_out


def _routed_whenever_possible(straight: np.ndarray, round_about: np.ndarray) -> Any:
    del straight
    return round_about


def _slower_one_taken(straight: np.ndarray, round_about: np.ndarray) -> Any:
    return np.maximum(straight, round_about)


def target(tokens: np.ndarray) -> Any:
    """Return what everybody should hold."""
    return tokens.mean()


def handed(give: np.ndarray, take: np.ndarray) -> np.ndarray:
    """Serve takers in their order from givers in their order."""
    give, take, plan = give.copy(), take.copy(), np.zeros((len(give), len(take)))
    for i, j in np.ndindex(plan.shape):
        plan[i, j] = min(give[i], take[j])
        give[i] -= plan[i, j]
        take[j] -= plan[i, j]
    return plan


def inside(give: np.ndarray, take: np.ndarray, nodes: int) -> np.ndarray:
    """Serve within each node."""
    plan, size = np.zeros((len(give), len(take))), len(give) // nodes
    for a in range(nodes):
        own = slice(a * size, (a + 1) * size)
        plan[own, own] = handed(give[own], take[own])
    return plan


def across(give: np.ndarray, take: np.ndarray) -> np.ndarray:
    """Serve what is left, whichever the node."""
    return handed(give, take)


def written(plan: np.ndarray) -> np.ndarray:
    """Write down who gives in rows."""
    return plan


class Levels(NamedTuple):
    """Every step of levelling that a planted bug may replace."""

    target: Callable[..., Any] = target
    inside: Callable[..., Any] = inside
    across: Callable[..., Any] = across
    written: Callable[..., Any] = written


def remapping(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the plan of levelling with these steps exchanged."""
    steps = Levels(**changes)

    def wrong(tokens: np.ndarray, *, cluster: Sequence[float]) -> Any:
        rest = tokens - steps.target(tokens)
        give, take = np.maximum(rest, 0.0), np.maximum(-rest, 0.0)
        near = steps.inside(give, take, int(cluster[0]))
        far = steps.across(np.maximum(give - near.sum(axis=1), 0.0), np.maximum(take - near.sum(axis=0), 0.0))
        return steps.written(near + far)

    return wrong


def _level_is_the_median(tokens: np.ndarray) -> Any:
    return np.median(tokens)


def _nodes_ignored(give: np.ndarray, take: np.ndarray, nodes: int) -> Any:
    del nodes
    return handed(give, take)


def _levelled_inside_nodes_only(give: np.ndarray, take: np.ndarray) -> Any:
    return np.zeros((len(give), len(take)))


def _takers_in_rows(plan: np.ndarray) -> Any:
    return plan.T


def pairs(lengths: Sequence[int]) -> float:
    """Count the pairs of all sequences."""
    return float(sum(length**2 for length in lengths))


def by_pair(hidden: int) -> float:
    """Return the operations of causal attention for each of the L² pairs."""
    return 2.0 * hidden


def by_token(hidden: int, kv: int, ffn: int) -> float:
    """Return the operations of the linear modules for a token."""
    return 2.0 * hidden * (2 * hidden + 2 * kv + 3 * ffn)


def attending_gpus(ranks: int) -> int:
    """Return how many GPUs share the attention."""
    return ranks


class Least(NamedTuple):
    """Every step of the least time that a planted bug may replace."""

    pairs: Callable[..., Any] = pairs
    by_pair: Callable[..., Any] = by_pair
    by_token: Callable[..., Any] = by_token
    attending_gpus: Callable[..., Any] = attending_gpus


def least(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the least time of a layer with these steps exchanged."""
    steps = Least(**changes)

    def wrong(
        *, lengths: Sequence[int], cluster: Sequence[float], layer: Sequence[int] = (4096, 4096, 11008, 2)
    ) -> Any:
        ranks, (attention, linear) = int(cluster[0] * cluster[1]), cluster[5:7]
        seconds = steps.pairs(lengths) * steps.by_pair(layer[0]) / (steps.attending_gpus(ranks) * attention)
        return np.float64(seconds + sum(lengths) / ranks * steps.by_token(*layer[:3]) / linear)

    return wrong


def _sequences_see_each_other(lengths: Sequence[int]) -> Any:
    return float(sum(lengths) ** 2)


def _longest_sequence_only(lengths: Sequence[int]) -> Any:
    return float(max(lengths) ** 2)


def _both_halves_of_the_square(hidden: int) -> Any:
    return 4.0 * hidden


def _feed_forward_without_gate(hidden: int, kv: int, ffn: int) -> Any:
    return 2.0 * hidden * (2 * hidden + 2 * kv + 2 * ffn)


def _keys_as_wide_as_queries(hidden: int, kv: int, ffn: int) -> Any:
    del kv
    return 2.0 * hidden * (4 * hidden + 3 * ffn)


def _attention_on_one_gpu(ranks: int) -> Any:
    del ranks
    return 1


def _varied(case: Case) -> bool:
    tokens = case.arrays["tokens"]
    return bool(np.ptp(tokens) > 0.5)


def _crosses(case: Case) -> bool:
    """Whether some node has too much, by more than rounding."""
    nodes = int(case.options["cluster"][0])
    held = case.arrays["tokens"].reshape(nodes, -1).sum(axis=1)
    return bool(nodes > 1 and np.ptp(held) > 0.5)


def _otherwise(**changes: Callable[..., Any]) -> Callable[[Case], bool]:
    """Return whether the exchanged steps plan a case otherwise than the right ones."""

    def differs(case: Case) -> bool:
        right, wrong = (kind(**case.options)["tokens_per_gpu"] for kind in (partition(), partition(**changes)))
        return not np.allclose(right, wrong, rtol=0.0, atol=1e-3)

    return differs


def _sent(case: Case, *ways: bool | None, cards: int = 2) -> bool:
    asked = case.options.get("routed") in ways and case.options["cluster"][2] >= cards
    return bool(asked and (case.arrays["n_bytes"] > 1.0).any())


_LONGEST = "Begin with the longest: what is left to place gets ever smaller."
_PIECES = "Cut into ⌈L / threshold⌉ parts, at least two and at most as many as there are buckets."
_WORK = "A part of a sequence costs L² / k: choose the buckets with the least of it."
_ROOM = "A placement that exceeds the capacity fails: lower the threshold and place again."
_SPREAD = "(M − 1)/M of the message is handed to proxies, and every hand-over has its latency."

PARTITION_BUGS = tuple(
    Mistake(step, wrong, says, remedy, _otherwise(**{step: wrong})).planted(partition, "partition_")
    for step, wrong, says, remedy in (
        ("order", _as_they_come, "Sequences are placed in the order in which they come.", _LONGEST),
        ("order", _shortest_first, "The shortest come first.", _LONGEST),
        ("pieces", _always_halved, "Long sequences are cut in two, whatever their length.", _PIECES),
        ("pieces", _always_over_all, "Long sequences go over all buckets.", _PIECES),
        ("work", _work_is_length, "Buckets are levelled by tokens, not by attention.", _WORK),
        ("work", _work_of_the_whole, "Every part is counted as the whole sequence.", _WORK),
        ("share", _shares_rounded_down, "Shares are rounded down.", "Shares are ideal numbers: L / k each."),
        ("fits", _room_ignored, "The capacity is ignored.", _ROOM),
        ("fits", _room_for_one_less, "A bucket that is exactly full counts as too full.", _ROOM),
        ("start", _guests_forgotten, "Tokens of sequences that cross nodes take no room.", "Begin with their share."),
    )
)
MESSAGE_BUGS = tuple(
    mistake.planted(sending, "transfer_")
    for mistake in (
        Mistake(
            "direct",
            _through_all_cards,
            "A direct message uses all cards.",
            "A GPU has one card of its own.",
            lambda case: _sent(case, False),
        ),
        Mistake("spread", _own_part_spread_too, "The whole message is spread.", _SPREAD, lambda c: _sent(c, True)),
        Mistake(
            "spread", _handing_out_free_of_latency, "Proxies are reached at once.", _SPREAD, lambda c: _sent(c, True)
        ),
        Mistake(
            "abreast",
            _one_card_after_all,
            "A routed message goes through one card.",
            "All M cards send at once, an M-th of the message each.",
            lambda case: _sent(case, True),
        ),
        Mistake(
            "collect",
            _never_collected,
            "Nobody puts the message together.",
            "To collect takes as long as to hand out.",
            lambda case: _sent(case, True),
        ),
        Mistake(
            "faster",
            _routed_whenever_possible,
            "Messages are always routed.",
            "Take the faster way: short messages go direct.",
            lambda case: _sent(case, None) and bool((case.arrays["n_bytes"] < 0.5).any()),
        ),
        Mistake(
            "faster", _slower_one_taken, "The slower way is taken.", "Take the faster way.", lambda c: _sent(c, None)
        ),
    )
)
REMAP_BUGS = tuple(
    mistake.planted(remapping, "remap_")
    for mistake in (
        Mistake("target", _level_is_the_median, "Everybody is to hold the median.", "The mean conserves.", _varied),
        Mistake(
            "inside",
            _nodes_ignored,
            "Takers are served from anywhere.",
            "Serve inside each node first: NVLink is the cheaper way.",
            _crosses,
        ),
        Mistake(
            "across",
            _levelled_inside_nodes_only,
            "Nothing crosses nodes.",
            "What a node has over its target goes to those that lack it.",
            _crosses,
        ),
        Mistake("written", _takers_in_rows, "Rows are who gets.", "Row i is what rank i gives.", _varied),
    )
)
LEAST_BUGS = tuple(
    mistake.planted(least, "least_")
    for mistake in (
        Mistake(
            "pairs",
            _sequences_see_each_other,
            "The batch is counted as one sequence.",
            "Add up L² over the sequences.",
            lambda case: len(case.options["lengths"]) > 1,
        ),
        Mistake(
            "pairs",
            _longest_sequence_only,
            "Only the longest sequence is counted.",
            "The least time is that of all arithmetic, spread evenly.",
            lambda case: len(case.options["lengths"]) > 1,
        ),
        Mistake("by_pair", _both_halves_of_the_square, "Hidden pairs are computed too.", "A causal ring skips half."),
        Mistake("by_token", _feed_forward_without_gate, "The gate is left out.", "A gated layer has three matrices."),
        Mistake(
            "by_token",
            _keys_as_wide_as_queries,
            "Keys and values are as wide as the hidden state.",
            "Shared heads make narrower projections: 2h · kv each.",
            lambda case: "layer" in case.options and case.options["layer"][0] != case.options["layer"][1],
        ),
        Mistake(
            "attending_gpus",
            _attention_on_one_gpu,
            "Attention is not shared out.",
            "All R GPUs share it.",
            lambda case: case.options["cluster"][0] * case.options["cluster"][1] > 1,
        ),
    )
)
