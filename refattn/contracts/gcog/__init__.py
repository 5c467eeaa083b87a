"""The contract of gCOG: eight networks as they classify, the tokens of an image, and the exact solver (2401.15030).

The solver's trees are control flow that depends on data. The reference follows it: nodes off the path are never asked,
and what they could not answer is no error. An array version has to ask all nodes, as the portable one does, and can
then be traced and compiled. On valid tasks, which are all that the cases hold, both give the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refattn.benchmarks import gcog
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.gcog import bugs, cases, laws

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refattn.conformance.contract import Bug, Law

__all__ = ["CONTRACT"]


def _network(
    function: Callable[..., Any],
    scenarios: Mapping[str, Mapping[str, Any]],
    obeys: tuple[Law, ...],
    planted: tuple[Bug, ...],
    *,
    smoke: tuple[str, ...],
    differentiable: tuple[str, ...] = (),
) -> Entry:
    name = function.__name__
    recipe = cases.network(name)
    return Entry(
        name=name,
        reference=function,
        positional=("rule", "stimulus", "weights"),
        scenarios=recipe.scenarios(scenarios),
        families=cases.FAMILIES,
        cases=recipe.cases(cases.network_sizes(name)),
        smoke=tuple((scenario, "normal") for scenario in smoke),
        outputs=("log_probs", "hidden"),
        laws=obeys,
        bugs=planted,
        differentiable=differentiable,
        axes={"rule": ("B", "n", "rule_features"), "stimulus": ("B", "m", "stimulus_features")},
    )


_DUAL = _network(
    gcog.dual_stream,
    {
        "two_heads": {"n_heads": 2},
        "distances": {"distances": 6, "n_heads": 2},
        "unordered": {"positional": False, "features": 5},
        "one_token_each": {"n": 1, "m": 1},
        "no_batch": {"B": 0},
    },
    laws.DUAL_LAWS,
    bugs.DUAL_BUGS,
    smoke=("two_heads", "distances"),
    differentiable=("stimulus",),
)
_SINGLE = _network(
    gcog.single_stream,
    {"one_head": {}, "two_heads": {"n_heads": 2, "n": 1}},
    laws.SINGLE_LAWS,
    bugs.SINGLE_BUGS,
    smoke=("one_head",),
)
_DEEP = _network(
    gcog.deep_single_stream,
    {"two_blocks": {}, "one_block": {"n_blocks": 1, "n_heads": 2}},
    laws.DEEP_LAWS,
    bugs.DEEP_BUGS,
    smoke=("two_blocks",),
    differentiable=("rule",),
)
_CROSS = _network(
    gcog.cross_attention,
    {"one_head": {}, "two_heads": {"n_heads": 2, "M": 4}, "unordered": {"positional": False}, "no_batch": {"B": 0}},
    laws.CROSS_LAWS,
    bugs.CROSS_BUGS,
    smoke=("one_head",),
)
_PERCEIVER = _network(
    gcog.perceiver,
    {"ten_latents": {}, "two_latents": {"n_latents": 2, "n_heads": 2}, "one_token_each": {"n": 1, "m": 1}},
    laws.PERCEIVER_LAWS,
    bugs.PERCEIVER_BUGS,
    smoke=("ten_latents",),
)
_QUERY = _network(
    gcog.rule_query_cross_attention,
    {"one_head": {}, "two_heads": {"n_heads": 2, "M": 5}},
    laws.QUERY_LAWS,
    bugs.QUERY_BUGS,
    smoke=("one_head",),
)
_RNN = _network(
    gcog.rnn_classifier,
    {"plain": {}, "one_step": {"n": 1}},
    laws.RNN_LAWS,
    bugs.RNN_BUGS,
    smoke=("plain",),
)
_GRU = _network(
    gcog.gru_classifier,
    {"plain": {}, "one_step": {"n": 1}, "no_batch": {"B": 0}},
    laws.GRU_LAWS,
    bugs.GRU_BUGS,
    smoke=("plain",),
    differentiable=("stimulus",),
)
_SOLVER = Entry(
    name="solve_tokens",
    reference=gcog.solve_tokens,
    positional=("rules", "grid"),
    scenarios=cases.SOLVER.scenarios(
        {
            "depth_1": {"B": 40, "depth": 1},
            "depth_3": {"B": 40, "depth": 3, "end": True},
            "depth_5": {"B": 24, "depth": 5, "distractors": 20},
            "depth_7": {"B": 8, "depth": 7},
            "small": {"B": 24, "depth": 3, "vocabulary": (4, 4, 5), "distractors": 3},
            "no_distractor": {"B": 16, "depth": 1, "distractors": 0, "end": True},
            "no_batch": {"B": 0, "depth": 3},
        }
    ),
    families=("drawn",),
    cases=cases.SOLVER.cases(cases.solver_sizes),
    laws=laws.SOLVER_LAWS,
    bugs=bugs.SOLVER_BUGS,
)
_TOKENS = Entry(
    name="stimulus_tokens",
    reference=gcog.stimulus_tokens,
    positional=("grid",),
    scenarios=cases.TOKENS.scenarios(
        {
            "numbers": {"B": 2, "grid": 4},
            "one_hot": {"B": 2, "grid": 3, "one_hot": True, "colors": 4, "shapes": 5},
            "official": {"B": 1, "grid": 10, "one_hot": True},
            "one_cell": {"B": 2, "grid": 1},
            "no_batch": {"B": 0, "grid": 2, "one_hot": True},
        }
    ),
    families=("drawn",),
    cases=cases.TOKENS.cases(cases.token_sizes),
    laws=laws.TOKEN_LAWS,
    bugs=bugs.TOKEN_BUGS,
)

CONTRACT = Contract(
    slug="gcog",
    title="gCOG: tasks, splits, solver and networks",
    paper="2401.15030",
    family="benchmarks",
    entries=(_SOLVER, _TOKENS, _DUAL, _SINGLE, _DEEP, _CROSS, _PERCEIVER, _QUERY, _RNN, _GRU),
)
