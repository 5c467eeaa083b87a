"""The contract of recat: two cell functions, inside and outside passes over charts, nodes in a Transformer, parser."""

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.recat import bugs, cases, laws
from refattn.layers.recat import encode_nodes, recat_encode
from refattn.layers.recat_cells import compose, spread
from refattn.layers.recat_parser import split_scores
from refattn.layers.recat_passes import cio_cells, inside_cells

__all__ = ["CONTRACT"]


_CELLS = {
    "pairs": {"B": 3, "D": 6, "H": 2, "F": 5},
    "one_head": {"B": 2, "D": 4, "H": 1, "F": 3},
    "a_head_a_channel": {"B": 2, "D": 3, "H": 3, "F": 1},
    "no_batch": {"B": 0, "D": 4, "H": 2, "F": 3},
}
_COMPOSE = Entry(
    "compose",
    compose,
    ("context", "left", "right", "weights"),
    cases.COMPOSE.scenarios(_CELLS),
    cases.FAMILIES,
    cases.COMPOSE.cases(cases.cell_sizes),
    smoke=smoke("pairs", "one_head"),
    laws=laws.COMPOSE_LAWS,
    bugs=bugs.COMPOSE_BUGS,
    differentiable=("context", "left", "right"),
    axes=dict.fromkeys(("context", "left", "right"), ("B", "D")),
)
_SPREAD = Entry(
    "spread",
    spread,
    ("parent", "left", "right", "weights"),
    cases.SPREAD.scenarios(_CELLS),
    cases.FAMILIES,
    cases.SPREAD.cases(cases.cell_sizes),
    smoke=smoke("pairs"),
    laws=laws.SPREAD_LAWS,
    bugs=bugs.SPREAD_BUGS,
    differentiable=("parent", "left", "right"),
)
_INSIDE = Entry(
    "inside_cells",
    inside_cells,
    ("leaves", "context", "weights", "heads"),
    cases.INSIDE.scenarios(
        {
            "exact": {"B": 2, "n": 3},
            "thin": {"B": 1, "n": 5, "m": 2, "order": (3, 0, 1, 2)},
            "thin_zero": {"B": 1, "n": 5, "m": 2, "order": (0, 3, 1, 2), "rule": "zero"},
            "tree": {"B": 1, "n": 5, "m": 1, "order": (1, 3, 0, 2), "rule": "zero"},
            "learned_context": {"B": 2, "n": 3, "learned": True},
            "one_token": {"B": 2, "n": 1},
            "no_batch": {"B": 0, "n": 3, "learned": True},
        }
    ),
    ("normal", "tied"),
    cases.INSIDE.cases(cases.chart_sizes()),
    smoke=smoke("exact", "thin", "thin_zero", "tree"),
    laws=laws.INSIDE_LAWS,
    bugs=bugs.INSIDE_BUGS,
    differentiable=("leaves",),
)
_CIO = Entry(
    "cio_cells",
    cio_cells,
    ("leaves", "layers", "heads", "empty_cell"),
    cases.CIO.scenarios(
        {
            "exact": {"B": 1, "n": 3, "R": 2},
            "thin": {"B": 1, "n": 4, "m": 2, "order": (2, 0, 1), "R": 1},
            "thin_zero": {"B": 1, "n": 5, "m": 2, "order": (0, 3, 1, 2), "rule": "zero", "R": 1},
            "tree_apart": {"B": 2, "n": 4, "m": 1, "order": (2, 0, 1), "R": 1, "apart": True},
            "wide_window": {"B": 1, "n": 3, "m": 5, "order": (1, 0), "R": 1},
            "one_token": {"B": 2, "n": 1, "R": 2},
            "no_batch": {"B": 0, "n": 2, "R": 1},
        }
    ),
    ("normal", "cancelling"),
    cases.CIO.cases(cases.stack_sizes()),
    smoke=smoke("exact", "thin", "thin_zero", "tree_apart"),
    laws=laws.CIO_LAWS,
    bugs=bugs.CIO_BUGS,
    differentiable=("leaves",),
)
_NODES = Entry(
    "encode_nodes",
    encode_nodes,
    ("x", "layers"),
    cases.NODES.scenarios(
        {
            "two_layers": {"B": 2, "M": 5, "D": 6, "H": 2, "T": 2},
            "padded": {"B": 2, "M": 6, "D": 4, "H": 2, "T": 1, "masked": True},
            "one_node": {"B": 1, "M": 1, "D": 4, "H": 4, "T": 1},
            "no_layer": {"B": 1, "M": 3, "D": 4, "H": 2, "T": 0},
            "no_batch": {"B": 0, "M": 3, "D": 4, "H": 1, "T": 1},
        }
    ),
    cases.FAMILIES,
    cases.NODES.cases(cases.node_sizes),
    smoke=smoke("two_layers", "padded"),
    laws=laws.NODE_LAWS,
    bugs=bugs.NODE_BUGS,
    differentiable=("x",),
    may_alias=True,
)
_PARSER = Entry(
    "split_scores",
    split_scores,
    ("x", "weights"),
    cases.PARSER.scenarios(
        {
            "two_layers": {"B": 2, "n": 5, "E": 3, "h": 3, "T": 2},
            "one_layer": {"B": 1, "n": 4, "E": 2, "h": 4, "T": 1},
            "two_tokens": {"B": 2, "n": 2, "E": 3, "h": 1, "T": 1},
            "one_token": {"B": 1, "n": 1, "E": 3, "h": 2, "T": 1},
            "no_batch": {"B": 0, "n": 3, "E": 2, "h": 2, "T": 1},
        }
    ),
    cases.FAMILIES,
    cases.PARSER.cases(cases.parser_sizes),
    smoke=smoke("two_layers", "one_layer"),
    laws=laws.PARSER_LAWS,
    bugs=bugs.PARSER_BUGS,
    differentiable=("x",),
)
_MODEL = Entry(
    "recat_encode",
    recat_encode,
    ("token_ids", "weights"),
    cases.MODEL.scenarios(
        {
            "exact": {"n": 3, "R": 1, "T": 1},
            "thin": {"n": 4, "m": 2, "order": (2, 0, 1), "R": 1, "T": 1},
            "tree": {"n": 4, "m": 1, "order": (0, 2, 1), "R": 1, "T": 1, "rule": "zero"},
            "one_word": {"n": 1, "R": 1, "T": 1},
        }
    ),
    ("normal",),
    cases.MODEL.cases(cases.model_sizes()),
    laws=laws.MODEL_LAWS,
    bugs=bugs.MODEL_BUGS,
)

CONTRACT = Contract(
    slug="recat",
    title="Recursively composed spans (ReCAT)",
    paper="2309.16319",
    family="layers",
    entries=(_CIO, _INSIDE, _COMPOSE, _SPREAD, _NODES, _PARSER, _MODEL),
)
