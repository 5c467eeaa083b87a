"""The contract of attention_imbalance: PAINT's choice of tokens, its boost, gains, and guidance (2501.12206).

How many tokens stand out depends on the data, so that lists of tokens cannot be traced. `token_masks` has the same
sets in a shape that does not depend on them, and is what is checked and compiled here; `select_tokens` and its kin list
what the masks mark. `chair` counts words, and `PaintHook` needs a running transformer: neither is an entry.
"""

from __future__ import annotations

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.attention_imbalance import bugs, cases, laws
from refattn.interventions.attention_imbalance import (
    boost_logits,
    class_attention,
    guided_logits,
    head_visual_sensitivity,
    pai_logits,
    paint_logits,
    sensitivity_gain,
    token_masks,
)

__all__ = ["CONTRACT"]

_IMAGE = {"B": 2, "H": 3, "Tq": 4, "Tk": 11, "start": 2}
_STREAMS = {"local_ratio": 0.3, "spatial_ratio": 0.25}
_AXES = {"logits": ("B", "H", "Tq", "Tk")}

_PAINT = Entry(
    "paint_logits",
    paint_logits,
    ("logits", "selection"),
    cases.PAINT.scenarios(
        {
            "image_amid_text": {**_IMAGE, "local": [0, 3, 6], "summary": [4]},
            "gains": {**_IMAGE, "local": [1, 5], "summary": [3, 4], "gain": True, "alpha": 1.0, "beta": 0.5},
            "decoding": {"B": 1, "H": 2, "Tq": 1, "Tk": 9, "start": 0, "local": [0, 7], "summary": [2], "beta": 2.0},
            "hidden_keys": {**_IMAGE, "local": [0, 2], "summary": [1, 5], "hidden": [0, 2, 3], "alpha": 1.5},
            "image_only": {"B": 1, "H": 1, "Tq": 5, "Tk": 5, "start": 0, "local": [1, 4], "summary": [0, 2, 3]},
            "no_summary": {**_IMAGE, "local": [0, 1, 2, 3], "summary": [], "alpha": 0.5},
            "no_local": {**_IMAGE, "local": [], "summary": [0, 6], "beta": 0.25},
            "nothing_chosen": {**_IMAGE, "local": [], "summary": []},
            "no_strength": {**_IMAGE, "local": [0, 3], "summary": [4], "alpha": 0.0, "beta": 0.0},
            "without_batch": {"H": 2, "Tq": 3, "Tk": 6, "start": 1, "local": [2], "summary": [1], "gain": True},
            "one_key": {"B": 3, "H": 2, "Tq": 1, "Tk": 1, "start": 0, "local": [0], "summary": []},
            "no_query": {"B": 2, "H": 2, "Tq": 0, "Tk": 4, "start": 1, "local": [0], "summary": [1]},
            "no_batch": {"B": 0, "H": 2, "Tq": 3, "Tk": 4, "start": 1, "local": [0], "summary": [1]},
        }
    ),
    cases.FAMILIES,
    cases.PAINT.cases(cases.paint_sizes()),
    smoke=smoke("image_amid_text", "gains", "hidden_keys"),
    laws=laws.PAINT_LAWS,
    bugs=bugs.PAINT_BUGS,
    differentiable=("logits",),
)
_PAI = Entry(
    "pai_logits",
    pai_logits,
    ("logits",),
    cases.PAI.scenarios(
        {
            "image_amid_text": {**_IMAGE, "N": 5, "alpha": 0.5},
            "image_first": {"B": 1, "H": 2, "Tq": 3, "Tk": 7, "start": 0, "N": 6, "alpha": 0.2},
            "image_last": {"H": 2, "Tq": 1, "Tk": 7, "start": 3, "N": 4, "alpha": 1.0},
            "hidden_keys": {**_IMAGE, "N": 4, "alpha": 0.5, "hidden": [3]},
            "no_image": {**_IMAGE, "N": 0, "alpha": 0.5},
        }
    ),
    ("normal", "tied", "large"),
    cases.PAI.cases(cases.pai_sizes()),
    smoke=smoke("image_amid_text"),
    laws=laws.PAI_LAWS,
    bugs=bugs.PAI_BUGS,
    axes=_AXES,
)
_BOOST = Entry(
    "boost_logits",
    boost_logits,
    ("logits", "index"),
    cases.BOOST.scenarios(
        {
            "one_factor": {"B": 2, "H": 2, "Tq": 3, "Tk": 8, "columns": [0, 2, 7], "factor": 0.5},
            "factor_by_head": {"B": 2, "H": 4, "Tq": 2, "Tk": 6, "columns": [1, 2, 5]},
            "all_keys": {"H": 2, "Tq": 3, "Tk": 5, "columns": [0, 1, 2, 3, 4], "factor": 1.0},
            "hidden_keys": {"B": 1, "H": 2, "Tq": 3, "Tk": 6, "columns": [0, 1, 4], "hidden": [0, 2], "factor": 0.5},
            "no_keys": {"B": 1, "H": 2, "Tq": 3, "Tk": 4, "columns": [], "factor": 0.5},
            "one_of_each": {"B": 1, "H": 1, "Tq": 1, "Tk": 1, "columns": [0]},
        }
    ),
    ("normal", "tied", "large", "tiny"),
    cases.BOOST.cases(cases.boost_sizes()),
    smoke=smoke("one_factor", "hidden_keys"),
    laws=laws.BOOST_LAWS,
    bugs=bugs.BOOST_BUGS,
    differentiable=("logits",),
)
_SENSITIVITY = Entry(
    "head_visual_sensitivity",
    head_visual_sensitivity,
    ("logits",),
    cases.SENSITIVITY.scenarios(
        {
            "image_amid_text": {"B": 2, "H": 3, "Tq": 4, "Tk": 11, "image": (2, 8)},
            "image_first": {"H": 2, "Tq": 1, "Tk": 6, "image": (0, 2)},
            "image_last": {"B": 1, "H": 2, "Tq": 3, "Tk": 7, "image": (3, 7)},
            "image_only": {"B": 1, "H": 2, "Tq": 1, "Tk": 6, "image": (0, 6)},
            "hidden_keys": {"B": 2, "H": 2, "Tq": 3, "Tk": 8, "image": (1, 5), "hidden": [0, 2]},
            "no_image": {"H": 2, "Tq": 2, "Tk": 5, "image": (3, 3)},
            "one_key": {"H": 1, "Tq": 1, "Tk": 1, "image": (0, 1)},
            "no_batch": {"B": 0, "H": 2, "Tq": 2, "Tk": 5, "image": (1, 3)},
        }
    ),
    ("normal", "uniform", "peaky", "large"),
    cases.SENSITIVITY.cases(cases.sensitivity_sizes()),
    smoke=smoke("image_amid_text"),
    laws=laws.SENSITIVITY_LAWS,
    bugs=bugs.SENSITIVITY_BUGS,
    differentiable=("logits",),
)
_GAIN = Entry(
    "sensitivity_gain",
    sensitivity_gain,
    ("sensitivity",),
    cases.GAIN.scenarios(
        {
            "five_layers": {"lead": (5,), "H": 4},
            "a_blind_layer": {"lead": (3,), "H": 3, "blind": True},
            "batches_of_layers": {"lead": (2, 3), "H": 2},
            "one_head": {"lead": (2,), "H": 1},
            "no_layers": {"lead": (0,), "H": 2},
        }
    ),
    ("uniform",),
    cases.GAIN.cases(cases.gain_sizes),
    laws=laws.GAIN_LAWS,
    bugs=bugs.GAIN_BUGS,
)
_GUIDED = Entry(
    "guided_logits",
    guided_logits,
    ("logits", "uncond_logits"),
    cases.GUIDED.scenarios(
        {
            "nothing_pruned": {"lead": (2, 3), "V": 9, "gamma": 1.5, "cutoff": 1e-6},
            "defaults": {"lead": (2,), "V": 12},
            "far": {"lead": (2, 2), "V": 9, "gamma": 2.5, "cutoff": 0.25},
            "no_guidance": {"lead": (3,), "V": 8, "gamma": 1.0},
            "text_alone": {"lead": (1,), "V": 8, "gamma": 0.0},
            "near_the_best": {"lead": (2,), "V": 7, "cutoff": 0.5},
            "one_token": {"lead": (2,), "V": 1},
            "one_row": {"lead": (), "V": 6, "gamma": 1.5},
            "no_rows": {"lead": (0,), "V": 5},
        }
    ),
    ("normal", "peaky", "large"),
    cases.GUIDED.cases(cases.guided_sizes),
    smoke=smoke("defaults", "far", "no_guidance", families=("normal", "peaky")),
    laws=laws.GUIDED_LAWS,
    bugs=bugs.GUIDED_BUGS,
)
_MASKS = Entry(
    "token_masks",
    token_masks,
    ("vit_attention",),
    cases.MASKS.scenarios(
        {
            "four_by_four": {"L": 4, "H": 2, "N": 16, "outliers": 2},
            "three_streams": {"L": 4, "H": 3, "N": 15, "outliers": 1, "size": 0.25, **_STREAMS},
            "two_layers": {"L": 2, "H": 2, "N": 12, "outliers": 2, "local_ratio": 0.5},
            "nothing_stands_out": {"L": 3, "H": 1, "N": 11},
            "every_token": {"L": 3, "H": 2, "N": 9, "outliers": 1, "local_ratio": 1.0},
            "no_local": {"L": 3, "H": 2, "N": 9, "outliers": 1, "local_ratio": 0.0},
            "official_rounding": {"L": 3, "H": 2, "N": 49, "outliers": 1, "official_rounding": True},
            "forty_nine": {"L": 3, "H": 1, "N": 49, "outliers": 1},
            "one_token": {"L": 3, "H": 2, "N": 1, "local_ratio": 1.0},
        }
    ),
    ("normal", "peaky"),
    cases.MASKS.cases(cases.mask_sizes),
    smoke=smoke("four_by_four", "three_streams", "nothing_stands_out", "official_rounding", "forty_nine"),
    outputs=("local", "summary"),
    laws=laws.MASK_LAWS,
    bugs=bugs.MASK_BUGS,
)
_CLASS = Entry(
    "class_attention",
    class_attention,
    ("vit_weights",),
    cases.CLASS.scenarios(
        {"three_by_three": {"H": 4, "N": 9}, "one_head": {"H": 1, "N": 5}, "one_token": {"H": 3, "N": 1}}
    ),
    ("normal", "uniform", "peaky"),
    cases.CLASS.cases(cases.class_sizes),
    laws=laws.CLASS_LAWS,
    bugs=bugs.CLASS_BUGS,
    differentiable=("vit_weights",),
)

CONTRACT = Contract(
    slug="attention_imbalance",
    title="PAINT: a boost for local and summary image tokens",
    paper="2501.12206",
    family="interventions",
    entries=(_PAINT, _PAI, _BOOST, _SENSITIVITY, _GAIN, _GUIDED, _MASKS, _CLASS),
)
