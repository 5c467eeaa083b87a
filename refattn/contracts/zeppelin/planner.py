"""The contract of the planner: who gets which tokens, what a message costs, who gives to whom, what is the least time.

A cluster is written as its nine numbers and a layer as its four, so that a case can be kept as JSON; any rates will do,
for no law knows units.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.conformance.contract import Case, Claim, Entry, Law
from refattn.contracts.zeppelin import planner_bugs as bugs
from refattn.efficiency.zeppelin_plan import Cluster, LayerCost, partition_hierarchical
from refattn.efficiency.zeppelin_simulator import lower_bound
from refattn.efficiency.zeppelin_transfer import plan_remap, transfer_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from refattn.conformance.contract import Maker, Probe

__all__ = ["PLANNER_ENTRIES"]

Made = tuple[dict[str, Any], dict[str, Any]]
RATES = [8.0, 1.0, 3.0, 4.0, 0.25, 0.5]  # B_intra, B_nic, F_attn, F_lin, latency inside and across


def _of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of the planner take a cluster as its nine numbers, and a layer as its four."""

    @wraps(function)
    def wrapped(*arrays: Any, cluster: Any, layer: Any = None, **options: Any) -> Any:
        sizes = {} if layer is None else {"layer": LayerCost(*layer)}
        result = function(*arrays, **options, **sizes, cluster=Cluster(*cluster))
        return np.float64(result) if isinstance(result, float) else result

    return wrapped


def _in_float64(maker: Maker) -> Maker:
    """Plan in float64 whatever the dtype: no array comes in that could have another."""
    return lambda family, _dtype, seed: maker(family, "float64", seed)


def _cluster(nodes: int, gpus: int, nics: int) -> list[float]:
    return [nodes, gpus, nics, *RATES]


def _partition_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Made:
    del rng, family
    return {}, given(sizes, "lengths", "cluster", "capacity")


def _message_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Made:
    n_bytes = 8.0 * np.abs(fill(rng, (sizes["n"], 2), family))
    return {"n_bytes": n_bytes}, given(sizes, "cluster", "routed")


def _remap_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Made:
    nodes, gpus = sizes["cluster"][:2]
    tokens = 4.0 * np.abs(fill(rng, (nodes, gpus), family))
    tokens[0] *= sizes.get("first_node", 1.0)
    tokens = np.full_like(tokens, 3.0) if sizes.get("balanced") else tokens
    return {"tokens": tokens.reshape(-1)}, given(sizes, "cluster")


def _least_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Made:
    del rng, family
    return {}, given(sizes, "lengths", "cluster", "layer")


LEAST = Recipe("lower_bound", _least_case, ("none",))
PARTITION = Recipe("partition_hierarchical", _partition_case, ("none",))
MESSAGE = Recipe("transfer_time", _message_case, ("normal", "tied"))
REMAP = Recipe("plan_remap", _remap_case, ("normal", "tied"))

PARTITION_SCENARIOS: dict[str, dict[str, Any]] = {
    "all_zones": {"lengths": [40, 3, 9, 1, 12, 7, 2, 5, 4, 5], "cluster": _cluster(2, 3, 1), "capacity": 16},
    "local": {"lengths": [4, 4, 4, 4, 4, 4], "cluster": _cluster(2, 3, 2), "capacity": 4},
    "one_giant": {"lengths": [100, 2], "cluster": _cluster(2, 2, 2), "capacity": 26},
    "tight": {"lengths": [7, 7, 7, 3], "cluster": _cluster(1, 4, 1), "capacity": 6},
    "three_nodes": {"lengths": [4, 4, 5, 1, 3, 21, 19], "cluster": _cluster(3, 4, 1), "capacity": 5},
    "few_and_long": {"lengths": [3, 24, 17, 4, 49], "cluster": _cluster(3, 2, 1), "capacity": 20},
    "roomy": {"lengths": [9, 8, 3, 3, 2], "cluster": _cluster(1, 2, 1), "capacity": 40},
    "one_gpu": {"lengths": [5, 2, 9], "cluster": _cluster(1, 1, 1), "capacity": 16},
    "fewer_tokens_than_gpus": {"lengths": [1, 1], "cluster": _cluster(2, 2, 1), "capacity": 1},
}
LEAST_SCENARIOS: dict[str, dict[str, Any]] = {
    "batch": {"lengths": [12, 3, 5, 1], "cluster": _cluster(2, 3, 1), "layer": [4, 2, 6, 2]},
    "one_sequence": {"lengths": [9], "cluster": _cluster(1, 4, 2), "layer": [8, 8, 16, 2]},
    "one_gpu": {"lengths": [2, 2], "cluster": _cluster(1, 1, 1), "layer": [4, 4, 8, 4]},
    "one_token": {"lengths": [1], "cluster": _cluster(2, 2, 1), "layer": [4, 2, 6, 2]},
}
MESSAGE_SCENARIOS: dict[str, dict[str, Any]] = {
    "direct": {"n": 4, "cluster": _cluster(2, 4, 4), "routed": False},
    "routed": {"n": 4, "cluster": _cluster(2, 4, 4), "routed": True},
    "whichever": {"n": 4, "cluster": _cluster(2, 4, 4)},
    "one_card": {"n": 4, "cluster": _cluster(2, 4, 1), "routed": True},
    "no_message": {"n": 0, "cluster": _cluster(2, 4, 2)},
}
REMAP_SCENARIOS: dict[str, dict[str, Any]] = {
    "two_nodes": {"cluster": _cluster(2, 3, 1)},
    "three_nodes": {"cluster": _cluster(3, 2, 1)},
    "one_node": {"cluster": _cluster(1, 4, 1)},
    "a_gpu_each": {"cluster": _cluster(4, 1, 1)},
    "first_node_full": {"cluster": _cluster(2, 3, 1), "first_node": 9.0},
    "balanced": {"cluster": _cluster(2, 3, 1), "balanced": True},
    "alone": {"cluster": _cluster(1, 1, 1)},
}


@st.composite
def partition_sizes(draw: Any) -> dict[str, Any]:
    """Draw a batch that fits."""
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    nodes, gpus = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    capacity = -(-sum(lengths) // (nodes * gpus)) + draw(st.integers(0, 6))
    return {"lengths": lengths, "cluster": _cluster(nodes, gpus, 1), "capacity": capacity}


clusters = st.builds(_cluster, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
message_sizes = st.fixed_dictionaries(
    {"n": st.integers(0, 4), "cluster": clusters}, optional={"routed": st.sampled_from([True, False])}
)
least_sizes = st.fixed_dictionaries(
    {"lengths": st.lists(st.integers(1, 40), min_size=1, max_size=6), "cluster": clusters},
    optional={"layer": st.just([8, 4, 20, 2])},
)
remap_sizes = st.fixed_dictionaries({"cluster": clusters}, optional={"balanced": st.booleans()})


def _every_token_has_a_gpu(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    total = np.array([sum(case.options["lengths"])], dtype=float)
    tokens = probe(case)["tokens_per_gpu"]
    yield Claim(tokens.sum(keepdims=True), total, 1e-9 * total[0])


def _nobody_holds_too_much(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    tokens, room = probe(case)["tokens_per_gpu"], case.options["capacity"]
    yield Claim(np.minimum(tokens, room), tokens, 1e-9 * room)


def _order_does_not_matter(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = case.having(lengths=case.options["lengths"][::-1])
    yield Claim(probe(turned)["tokens_per_gpu"], probe(case)["tokens_per_gpu"], 0.0)


PARTITION_LAWS = (
    Law(
        "every_token_has_a_gpu",
        "The GPUs hold all tokens of the batch together.",
        _every_token_has_a_gpu,
        witness="partition_shares_rounded_down",
    ),
    Law(
        "nobody_holds_too_much",
        "No GPU holds more tokens than its capacity.",
        _nobody_holds_too_much,
        witness="partition_room_ignored",
    ),
    Law(
        "order_does_not_matter",
        "The order of the sequences changes nothing.",
        _order_does_not_matter,
        witness="partition_as_they_come",
    ),
)


def _choice_is_never_slower(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    free = case.without("routed")
    chosen, slack = probe(free)["out"], probe.slack(free)["out"]
    for routed in (False, True):
        fixed = case.having(routed=routed)
        yield Claim(np.minimum(chosen, probe(fixed)["out"]), chosen, slack + probe.slack(fixed)["out"])


def _one_card_has_one_way(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    cluster = [*case.options["cluster"][:2], 1, *case.options["cluster"][3:]]
    ways = [case.having(cluster=cluster, routed=routed) for routed in (False, True)]
    results, slacks = [probe(way)["out"] for way in ways], [probe.slack(way)["out"] for way in ways]
    yield Claim(results[0], results[1], slacks[0] + slacks[1])


MESSAGE_LAWS = (
    Law(
        "choice_is_never_slower",
        "Left to itself, a message takes no longer than either way.",
        _choice_is_never_slower,
        witness="transfer_routed_whenever_possible",
    ),
    Law(
        "one_card_has_one_way",
        "With one network card both ways take the same time.",
        _one_card_has_one_way,
        witness="transfer_own_part_spread_too",
    ),
)


def _rest(case: Case) -> np.ndarray:
    tokens = case.arrays["tokens"]
    return np.asarray(tokens - tokens.mean())


def _sums(probe: Probe, case: Case) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return what each rank gives and gets, and the error of such a sum."""
    plan, slack = probe(case)["out"], probe.slack(case)["out"]
    return plan.sum(axis=1), plan.sum(axis=0), np.sqrt(len(plan)) * np.sum(slack)


def _everybody_ends_level(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    gives, gets, slack = _sums(probe, case)
    yield Claim(gives, np.maximum(_rest(case), 0.0), slack, "what ranks give")
    yield Claim(gets, np.maximum(-_rest(case), 0.0), slack, "what ranks get")


def _nodes_send_what_they_must(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    nodes, gpus = (int(n) for n in case.options["cluster"][:2])
    plan, slack = probe(case)["out"].reshape(nodes, gpus, nodes, gpus), _sums(probe, case)[2]
    across = plan.sum(axis=(1, 3))[~np.eye(nodes, dtype=bool)].sum(keepdims=True)
    must = np.maximum(_rest(case).reshape(nodes, gpus).sum(axis=1), 0.0).sum(keepdims=True)
    yield Claim(across, must, slack)


REMAP_LAWS = (
    Law(
        "everybody_ends_level",
        "Each rank gives its surplus or gets its deficit, and nothing else.",
        _everybody_ends_level,
        witness="remap_levelled_inside_nodes_only",
    ),
    Law(
        "nodes_send_what_they_must",
        "Only what a node has too much of leaves it.",
        _nodes_send_what_they_must,
        witness="remap_nodes_ignored",
    ),
)


def _many_gpus_share(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    alone = case.having(cluster=[1, 1, *case.options["cluster"][2:]])
    nodes, gpus = case.options["cluster"][:2]
    one, many = probe(alone)["out"], probe(case)["out"]
    yield Claim(np.array([one]), np.array([many * nodes * gpus]), 1e-12 * one)


def _pairs_make_the_difference(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    total, hidden = sum(case.options["lengths"]), case.options["layer"][0]
    whole, parts = case.having(lengths=[total]), case.having(lengths=[1] * total)
    long, short = probe(whole)["out"], probe(parts)["out"]
    nodes, gpus, _, _, _, rate = case.options["cluster"][:6]
    pairs = 2.0 * hidden * (total**2 - total) / (nodes * gpus * rate)
    yield Claim(np.array([long - short]), np.array([pairs]), 1e-12 * long)


LEAST_LAWS = (
    Law(
        "many_gpus_share",
        "R GPUs need at least an R-th of the time of one.",
        _many_gpus_share,
        witness="least_attention_on_one_gpu",
    ),
    Law(
        "pairs_make_the_difference",
        "One sequence of T tokens costs 2h(T² − T) operations more than T of one token.",
        _pairs_make_the_difference,
        lambda case: "layer" in case.options,
        witness="least_both_halves_of_the_square",
    ),
)

PLANNER_ENTRIES = (
    Entry(
        "partition_hierarchical",
        _of_numbers(partition_hierarchical),
        (),
        {name: _in_float64(maker) for name, maker in PARTITION.scenarios(PARTITION_SCENARIOS).items()},
        PARTITION.families,
        lambda _dtype: PARTITION.cases(partition_sizes())("float64"),
        outputs=("tokens_per_gpu",),
        laws=PARTITION_LAWS,
        bugs=bugs.PARTITION_BUGS,
    ),
    Entry(
        "transfer_time",
        _of_numbers(transfer_time),
        ("n_bytes",),
        MESSAGE.scenarios(MESSAGE_SCENARIOS),
        MESSAGE.families,
        MESSAGE.cases(message_sizes),
        laws=MESSAGE_LAWS,
        bugs=bugs.MESSAGE_BUGS,
        axes={"n_bytes": ("n", "m")},
    ),
    Entry(
        "plan_remap",
        _of_numbers(plan_remap),
        ("tokens",),
        REMAP.scenarios(REMAP_SCENARIOS),
        REMAP.families,
        REMAP.cases(remap_sizes),
        laws=REMAP_LAWS,
        bugs=bugs.REMAP_BUGS,
    ),
    Entry(
        "lower_bound",
        _of_numbers(lower_bound),
        (),
        {name: _in_float64(maker) for name, maker in LEAST.scenarios(LEAST_SCENARIOS).items()},
        LEAST.families,
        lambda _dtype: LEAST.cases(least_sizes)("float64"),
        laws=LEAST_LAWS,
        bugs=bugs.LEAST_BUGS,
    ),
)
