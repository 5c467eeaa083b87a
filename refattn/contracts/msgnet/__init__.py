"""The contract of msgnet: scales, graphs, attention inside segments, the block and the forecast (2401.00423).

Which scales a block works at depends on the data, and with them the segments' shapes. An implementation that cuts the
window needs the periods as plain numbers, so it cannot be traced as a whole; the parts that can, `graph_block`,
`mixhop_propagate`, `adaptive_adjacency` and `segment_attention`, are entries of their own. The portable twin masks
instead of cutting and is traced whole.
"""

from __future__ import annotations

from refattn.conformance.contract import Contract, Entry
from refattn.contracts.msgnet import bugs, cases, laws
from refattn.layers.msgnet import (
    adaptive_adjacency,
    graph_block,
    identify_scales,
    mixhop_propagate,
    msgnet_forecast,
    scale_graph_block,
    segment_attention,
)

__all__ = ["CONTRACT"]


def _smoke(*scenarios: str, family: str = "normal") -> tuple[tuple[str, str], ...]:
    return tuple((scenario, family) for scenario in scenarios)


_PAPER = {"placement": "segments", "residual": "input", "causal": False, "dense": True, "pointwise": True}

_FORECAST = Entry(
    "msgnet_forecast",
    msgnet_forecast,
    ("x", "weights"),
    cases.FORECAST.scenarios(
        {
            "one_block": {"B": 2, "T": 12, "N": 3, "D": 6, "H": 2, "k": 2, "P": 4, "layers": 1},
            "two_blocks": {"B": 1, "T": 11, "N": 2, "D": 4, "H": 1, "k": 2, "P": 3, "layers": 2, "depth": 1},
            "real_marks": {"B": 2, "T": 9, "N": 2, "D": 4, "H": 2, "k": 1, "P": 1, "layers": 1, "marks": 4}
            | {"individual": True, "constant": True},
            "calendar": {"B": 2, "T": 8, "N": 4, "D": 4, "H": 2, "k": 1, "P": 2, "layers": 1, "marks": "fixed"},
            "paper": {"B": 2, "T": 7, "N": 2, "D": 4, "H": 2, "k": 2, "P": 2, "layers": 1, **_PAPER},
        }
    ),
    cases.FORECAST.families,
    cases.FORECAST.cases(cases.forecast_sizes),
    smoke=(*_smoke("one_block", "real_marks", "calendar"), *_smoke("real_marks", family="tiny")),
    laws=laws.FORECAST_LAWS,
    bugs=bugs.FORECAST_BUGS,
)
_BLOCK = Entry(
    "scale_graph_block",
    scale_graph_block,
    ("x", "weights"),
    cases.BLOCK.scenarios(
        {
            "padded": {"B": 2, "T": 11, "N": 3, "D": 6, "H": 3, "k": 3},
            "whole_segments": {"B": 2, "T": 12, "N": 2, "D": 4, "H": 2, "k": 2, "depth": 1, "alpha": 0.05},
            "open_segments": {"B": 2, "T": 11, "N": 2, "D": 4, "H": 1, "k": 3, "causal": False},
            "paper": {"B": 2, "T": 11, "N": 3, "D": 4, "H": 2, "k": 2, **_PAPER},
            "every_scale": {"B": 1, "T": 8, "N": 2, "D": 2, "H": 1, "k": 4, "depth": 0, "residual": "input"},
        }
    ),
    cases.BLOCK.families,
    cases.BLOCK.cases(cases.block_sizes()),
    smoke=_smoke("padded", "whole_segments"),
    laws=laws.BLOCK_LAWS,
    bugs=bugs.BLOCK_BUGS,
)
_SCALES = Entry(
    "identify_scales",
    identify_scales,
    ("x",),
    cases.SCALES.scenarios(
        {
            "three_of_six": {"B": 2, "T": 12, "D": 3, "k": 3},
            "prime": {"B": 3, "T": 13, "D": 2, "k": 4},
            "every_scale": {"B": 2, "T": 8, "D": 2, "k": 4},
            "one_of_each": {"B": 1, "T": 5, "D": 1, "k": 1},
            "two_times": {"B": 2, "T": 2, "D": 3, "k": 1},
        }
    ),
    cases.SCALES.families,
    cases.SCALES.cases(cases.scale_sizes),
    smoke=(*_smoke("three_of_six", "prime"), *_smoke("three_of_six", "prime", family="uniform")),
    laws=laws.SCALE_LAWS,
    bugs=bugs.SCALE_BUGS,
)
_ATTENTION = Entry(
    "segment_attention",
    segment_attention,
    ("z", "weights"),
    cases.ATTENTION.scenarios(
        {
            "causal": {"R": 3, "s": 5, "D": 6, "H": 2},
            "open": {"R": 2, "s": 4, "D": 6, "H": 3, "causal": False},
            "one_time": {"R": 2, "s": 1, "D": 4, "H": 1, "E": 1},
            "no_segments": {"R": 0, "s": 3, "D": 4, "H": 2},
        }
    ),
    cases.ATTENTION.families,
    cases.ATTENTION.cases(cases.attention_sizes),
    smoke=_smoke("causal", "open"),
    laws=laws.ATTENTION_LAWS,
    bugs=bugs.ATTENTION_BUGS,
    differentiable=("z",),
    axes={"z": ("R", "s", "D")},
)
_GRAPH = Entry(
    "graph_block",
    graph_block,
    ("x", "weights"),
    cases.GRAPH.scenarios(
        {
            "released": {"B": 2, "T": 5, "N": 3, "D": 6},
            "dense": {"B": 1, "T": 4, "N": 2, "D": 5, "depth": 3, "alpha": 0.05, "dense": True},
            "each_time_alone": {"B": 2, "T": 3, "N": 3, "D": 4, "depth": 1, "pointwise": True},
            "as_many_series_as_features": {"B": 1, "T": 1, "N": 3, "D": 3, "depth": 0},
            "no_batch": {"B": 0, "T": 4, "N": 2, "D": 3},
        }
    ),
    cases.GRAPH.families,
    cases.GRAPH.cases(cases.graph_sizes),
    smoke=_smoke("released"),
    laws=laws.GRAPH_LAWS,
    bugs=bugs.GRAPH_BUGS,
    differentiable=("x",),
)
_MIXHOP = Entry(
    "mixhop_propagate",
    mixhop_propagate,
    ("h0", "adjacency"),
    cases.MIXHOP.scenarios(
        {
            "two_hops": {"B": 2, "C": 2, "N": 4, "T": 3},
            "long_walk": {"B": 1, "C": 1, "N": 3, "T": 4, "depth": 4, "alpha": 0.0},
            "nothing_moves": {"B": 1, "C": 2, "N": 2, "T": 2, "depth": 2, "alpha": 1.0},
            "no_hop": {"B": 2, "C": 3, "N": 3, "T": 1, "depth": 0},
            "one_series": {"B": 1, "C": 1, "N": 1, "T": 5, "depth": 1},
            "no_batch": {"B": 0, "C": 2, "N": 2, "T": 3},
        }
    ),
    cases.MIXHOP.families,
    cases.MIXHOP.cases(cases.mixhop_sizes),
    smoke=_smoke("two_hops"),
    laws=laws.MIXHOP_LAWS,
    bugs=bugs.MIXHOP_BUGS,
    differentiable=("h0",),
)
_ADJACENCY = Entry(
    "adaptive_adjacency",
    adaptive_adjacency,
    ("e1", "e2"),
    cases.ADJACENCY.scenarios(
        {
            "four_series": {"N": 4, "h": 3},
            "one_number_each": {"N": 3, "h": 1},
            "nothing_known": {"N": 3, "h": 0},
            "one_series": {"N": 1, "h": 2},
        }
    ),
    cases.ADJACENCY.families,
    cases.ADJACENCY.cases(cases.adjacency_sizes),
    smoke=_smoke("four_series"),
    laws=laws.ADJACENCY_LAWS,
    bugs=bugs.ADJACENCY_BUGS,
)

CONTRACT = Contract(
    slug="msgnet",
    title="Multi-scale graphs between series",
    paper="2401.00423",
    family="layers",
    entries=(_FORECAST, _BLOCK, _SCALES, _ATTENTION, _GRAPH, _MIXHOP, _ADJACENCY),
)
