"""The contract of OAT: the whole model, its encoder, the pointer, the position look-up, the loss.

Scanpath decoding, the metrics and MultiMatch walk index paths in Python and run on NumPy only; so do the position
tables and the appearance network, which are made once. None of them is asked of a backend.
"""

from __future__ import annotations

import numpy as np

from refattn.conformance.contract import Case, Contract, Entry, Outputs
from refattn.contracts.oat import bugs, cases, laws
from refattn.layers.oat import oat_forward, object_attention, scanpath_loss
from refattn.layers.oat_positions import object_position_embedding
from refattn.layers.oat_transformer import oat_encode

__all__ = ["CONTRACT"]


def _special_token(dtype: str) -> tuple[Case, Outputs]:
    """Look up the target at (1, 0), and an end token below a table of two rows."""
    arrays = {"coords": np.array([[1, 0, 1], [2, 0, 0]]), "table": np.array([[1.0, 2.0], [3.0, 4.0]])}
    return (
        Case("object_position_embedding", arrays, {"dim": 5}, dtype, "exact/special_token"),
        {"out": np.array([[3.0, 4.0, 1.0, 2.0, 3.0], [0.0, 0.0, 1.0, 2.0, 1.0]])},
    )


_FORWARD = Entry(
    "oat_forward",
    oat_forward,
    ("src_appearance", "src_coords", "tgt_appearance", "tgt_coords", "table", "weights"),
    cases.FORWARD.scenarios(
        {
            "shelf": {"B": 2, "R": 2, "C": 2, "T": 3, "E": 4, "H": 2, "M": 2},
            "holes": {"B": 1, "R": 1, "C": 3, "T": 4, "E": 4, "H": 1, "M": 1, "holes": True, "d_k": 4},
            "grid_of_positions": {"B": 1, "R": 1, "C": 3, "T": 2, "E": 8, "H": 2, "M": 3, "grid": True},
            "blind_start": {"B": 1, "R": 1, "C": 2, "T": 3, "E": 4, "H": 1, "M": 2, "holes": True, "blind": True},
            "one_object": {"B": 1, "R": 1, "C": 1, "T": 1, "E": 4, "H": 2, "M": 2},
            "no_scene": {"B": 0, "R": 1, "C": 2, "T": 2, "E": 4, "H": 1, "M": 2},
        }
    ),
    cases.MODEL_FAMILIES,
    cases.FORWARD.cases(cases.forward_sizes()),
    smoke=(("shelf", "normal"), ("holes", "normal")),
    laws=laws.FORWARD_LAWS,
    bugs=bugs.FORWARD_BUGS,
    differentiable=("src_appearance", "tgt_appearance", "table"),
)
_ENCODE = Entry(
    "oat_encode",
    oat_encode,
    ("tokens", "layers"),
    cases.ENCODE.scenarios(
        {
            "two_heads": {"B": 2, "n": 5, "E": 8, "H": 2},
            "two_layers": {"B": 1, "n": 3, "E": 6, "H": 3, "layers": 2},
            "no_layer": {"B": 1, "n": 2, "E": 4, "H": 1, "layers": 0},
            "target_alone": {"B": 1, "n": 0, "E": 4, "H": 2},
            "no_scene": {"B": 0, "n": 2, "E": 4, "H": 2},
        }
    ),
    cases.MODEL_FAMILIES,
    cases.ENCODE.cases(cases.encode_sizes()),
    smoke=(("two_heads", "normal"),),
    laws=laws.ENCODE_LAWS,
    bugs=bugs.ENCODE_BUGS,
    differentiable=("tokens",),
    axes={"tokens": ("B", "n", "E")},
    may_alias=True,
)
_POINT = Entry(
    "object_attention",
    object_attention,
    ("encoder_out", "decoder_out", "heads", "readout_w", "readout_b"),
    cases.POINT.scenarios(
        {
            "two_heads": {"B": 2, "n": 5, "T": 3, "E": 6, "M": 2, "d_k": 6},
            "one_head": {"B": 1, "n": 4, "T": 2, "E": 5, "M": 1, "d_k": 3},
            "three_heads": {"B": 1, "n": 3, "T": 2, "E": 4, "M": 3, "d_k": 2},
            "one_object": {"B": 1, "n": 1, "T": 1, "E": 1, "M": 2, "d_k": 4},
            "no_step": {"B": 1, "n": 2, "T": 0, "E": 3, "M": 2, "d_k": 3},
            "no_scene": {"B": 0, "n": 2, "T": 1, "E": 3, "M": 2, "d_k": 3},
        }
    ),
    cases.FAMILIES,
    cases.POINT.cases(cases.point_sizes),
    smoke=(("two_heads", "normal"), ("one_head", "normal")),
    laws=laws.POINT_LAWS,
    bugs=bugs.POINT_BUGS,
    differentiable=("encoder_out", "decoder_out"),
)
_LOOK_UP = Entry(
    "object_position_embedding",
    object_position_embedding,
    ("coords", "table"),
    cases.LOOK_UP.scenarios(
        {
            "cut": {"B": 2, "L": 6, "P": 3, "c": 4, "dim": 10},
            "whole": {"B": 1, "L": 7, "P": 4, "c": 3, "dim": 9},
            "first_part": {"B": 1, "L": 6, "P": 2, "c": 4, "dim": 3},
            "grid": {"B": 1, "L": 5, "P": 3, "c": 4, "dim": 4, "grid": True},
            "one_place": {"B": 1, "L": 1, "P": 1, "c": 1, "dim": 3},
            "no_token": {"B": 1, "L": 0, "P": 2, "c": 2, "dim": 4},
        }
    ),
    cases.FAMILIES,
    cases.LOOK_UP.cases(cases.look_up_sizes()),
    laws=laws.LOOK_UP_LAWS,
    bugs=bugs.LOOK_UP_BUGS,
    exact={"special_token": _special_token},
    differentiable=("table",),
)
_LOSS = Entry(
    "scanpath_loss",
    scanpath_loss,
    ("logits", "targets"),
    cases.LOSS.scenarios(
        {
            "padded": {"B": 3, "T": 4, "n": 5},
            "full": {"B": 2, "T": 3, "n": 4, "padded": 0.0},
            "first_fixation_only": {"B": 2, "T": 4, "n": 3, "padded": 1.0},
            "one_object": {"B": 1, "T": 1, "n": 1},
        }
    ),
    cases.FAMILIES,
    cases.LOSS.cases(cases.loss_sizes),
    laws=laws.LOSS_LAWS,
    bugs=bugs.LOSS_BUGS,
    differentiable=("logits",),
)

CONTRACT = Contract(
    "oat",
    "Object-level attention transformer",
    "2407.13335",
    "layers",
    (_FORWARD, _ENCODE, _POINT, _LOOK_UP, _LOSS),
)
