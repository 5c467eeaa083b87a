"""The contract of CARVE: the quotient, its fusion, the resize, regions and mask, and the measures of complexity.

Crop and magnification have shapes that depend on the mask, so they are asked of no backend; nor are the hooks, which
need a running decoder, and the choice of λ, which is a formula for two numbers. Numbering regions can be traced: the
portable twin shows how.
"""

from __future__ import annotations

import numpy as np

from refattn.conformance.contract import Case, Contract, Entry, Outputs
from refattn.contracts.carve import bugs, cases, laws
from refattn.interventions.carve import (
    attention_entropy,
    attention_mask,
    bilinear_resize,
    color_complexity,
    connected_regions,
    contrast_attention,
    fuse_contrastive_attention,
    image_attention,
    texture_complexity,
)

__all__ = ["CONTRACT"]


def _clutter(dtype: str) -> tuple[Case, Outputs]:
    """Look at clutter in any case, and at the target for the question: the quotient is 1 on all but the target."""
    arrays = {"a_task": np.array([[0.5, 0.25, 0.125]]), "a_general": np.array([[0.5, 0.25, 0.03125]])}
    return (
        Case("contrast_attention", arrays, {"lam": 0.0}, dtype, "exact/clutter"),
        {"out": np.array([[1.0, 1.0, 4.0]])},
    )


def _two_of_three(dtype: str) -> tuple[Case, Outputs]:
    """Keep two of three regions: a large pale one goes, two small bright ones stay."""
    scores = np.array([[9.0, 1.0, 3.0, 1.0, 8.0], [1.0, 1.0, 3.0, 1.0, 1.0]])
    return (
        Case("attention_mask", {"score_map": scores}, {"top_p": 0.4, "max_regions": 2}, dtype, "exact/two_of_three"),
        {"out": np.array([[True, False, False, False, True], [False] * 5])},
    )


_FUSE = Entry(
    "fuse_contrastive_attention",
    fuse_contrastive_attention,
    ("task_maps", "general_maps"),
    cases.FUSE.scenarios(
        {
            "all_steps": {"S": 3, "G": 3, "L": 2, "grid": [3, 4], "size": [7, 9]},
            "unequal_runs": {"S": 4, "G": 2, "L": 2, "grid": [2, 3], "size": [5, 6], "lam": 0.0625},
            "longer_general_run": {"S": 2, "G": 4, "L": 1, "grid": [3, 2], "size": [4, 5]},
            "first_step": {"S": 3, "G": 3, "L": 2, "grid": [3, 3], "size": [6, 6], "steps": "first"},
            "last_step": {"S": 3, "G": 2, "L": 2, "grid": [3, 3], "size": [6, 6], "steps": "last"},
            "equal_steps": {"S": 3, "G": 3, "L": 2, "grid": [2, 4], "size": [5, 5], "steps": "equal"},
            "shrinking": {"S": 2, "G": 2, "L": 1, "grid": [7, 5], "size": [3, 2], "lam": 0.25},
            "some_layers": {"S": 2, "G": 2, "L": 4, "grid": [3, 3], "size": [4, 7], "layers": [1, 3]},
            "missing_layers": {
                "S": 2,
                "G": 2,
                "L": 3,
                "grid": [2, 2],
                "size": [3, 3],
                "layers": [1, 2, 5],
                "ignore_missing": True,
            },
            "no_layer": {"S": 2, "G": 2, "L": 2, "grid": [2, 2], "size": [3, 3], "layers": []},
            "one_token": {"S": 2, "G": 1, "L": 1, "grid": [1, 1], "size": [3, 2]},
            "one_pixel": {"S": 1, "G": 1, "L": 1, "grid": [3, 2], "size": [1, 1], "lam": 0.0},
        }
    ),
    cases.FAMILIES,
    cases.FUSE.cases(cases.fuse_sizes()),
    laws=laws.FUSE_LAWS,
    bugs=bugs.FUSE_BUGS,
    differentiable=("task_maps", "general_maps"),
)
_CONTRAST = Entry(
    "contrast_attention",
    contrast_attention,
    ("a_task", "a_general"),
    cases.CONTRAST.scenarios(
        {
            "plain": {"B": 2, "N": 6},
            "regularised": {"B": 2, "N": 5, "lam": 0.0625},
            "strongly": {"B": 1, "N": 4, "lam": 1.0},
            "not_at_all": {"B": 1, "N": 7, "lam": 0.0},
            "holes": {"B": 2, "N": 6, "holes": True},
            "one_token": {"B": 1, "N": 1},
            "no_token": {"B": 2, "N": 0},
            "no_map": {"B": 0, "N": 3},
        }
    ),
    cases.FAMILIES,
    cases.CONTRAST.cases(cases.contrast_sizes),
    laws=laws.CONTRAST_LAWS,
    bugs=bugs.CONTRAST_BUGS,
    exact={"clutter": _clutter},
    differentiable=("a_task", "a_general"),
    axes={"a_task": ("B", "N"), "a_general": ("B", "N")},
)
_IMAGE = Entry(
    "image_attention",
    image_attention,
    ("weights",),
    cases.IMAGE.scenarios(
        {
            "inside": {"B": 2, "H": 3, "T": 4, "K": 8, "image_slice": [2, 6]},
            "at_the_start": {"B": 1, "H": 2, "T": 3, "K": 5, "image_slice": [0, 2]},
            "everything": {"B": 1, "H": 2, "T": 2, "K": 5, "image_slice": [0, 5]},
            "one_token": {"B": 2, "H": 1, "T": 1, "K": 3, "image_slice": [2, 3]},
            "no_batch": {"B": 0, "H": 2, "T": 2, "K": 4, "image_slice": [1, 3]},
        }
    ),
    cases.FAMILIES,
    cases.IMAGE.cases(cases.image_sizes()),
    laws=laws.IMAGE_LAWS,
    bugs=bugs.IMAGE_BUGS,
    differentiable=("weights",),
    axes={"weights": ("B", "H", "T", "K")},
)
_RESIZE = Entry(
    "bilinear_resize",
    bilinear_resize,
    ("image",),
    cases.RESIZE.scenarios(
        {
            "larger": {"h": 3, "w": 4, "size": [7, 9]},
            "smaller": {"h": 8, "w": 7, "size": [3, 2]},
            "both_ways": {"h": 3, "w": 9, "size": [8, 4]},
            "same": {"h": 4, "w": 5, "size": [4, 5]},
            "channels": {"h": 3, "w": 5, "c": 3, "size": [5, 4]},
            "one_pixel": {"h": 1, "w": 1, "size": [3, 2]},
            "to_one_pixel": {"h": 5, "w": 4, "size": [1, 1]},
        }
    ),
    cases.FAMILIES,
    cases.RESIZE.cases(cases.resize_sizes),
    laws=laws.RESIZE_LAWS,
    bugs=bugs.RESIZE_BUGS,
    differentiable=("image",),
)
_LABEL = Entry(
    "connected_regions",
    connected_regions,
    ("mask",),
    cases.LABEL.scenarios(
        {
            "map": {"h": 7, "w": 8},
            "tall": {"h": 9, "w": 3},
            "row": {"h": 1, "w": 8},
            "column": {"h": 8, "w": 1},
            "pixel": {"h": 1, "w": 1},
        }
    ),
    cases.SHAPES,
    cases.LABEL.cases(cases.label_sizes),
    outputs=("labels",),
    laws=laws.LABEL_LAWS,
    bugs=bugs.LABEL_BUGS,
    axes={"mask": ("h", "w")},
)
_MASK = Entry(
    "attention_mask",
    attention_mask,
    ("score_map",),
    cases.MASK.scenarios(
        {
            "usual": {"h": 7, "w": 8},
            "one_region": {"h": 6, "w": 7, "top_p": 0.4, "max_regions": 1},
            "many_regions": {"h": 7, "w": 8, "top_p": 0.45, "max_regions": 2},
            "paper": {"h": 7, "w": 8, "top_p": 0.35, "max_regions": 2, "count_rule": "paper"},
            "by_size": {"h": 6, "w": 8, "top_p": 0.4, "max_regions": 2, "strategy": "size"},
            "remove_small": {"h": 7, "w": 6, "top_p": 0.4, "strategy": "remove_small", "outlier_percent": 12.5},
            "remove_none": {"h": 5, "w": 6, "top_p": 0.3, "strategy": "remove_small"},
            "everything": {"h": 4, "w": 5, "top_p": 1.0},
            "row": {"h": 1, "w": 9, "top_p": 0.55, "max_regions": 1},
            "pixel": {"h": 1, "w": 1},
        }
    ),
    cases.SCORES,
    cases.MASK.cases(cases.mask_sizes),
    laws=laws.MASK_LAWS,
    bugs=bugs.MASK_BUGS,
    exact={"two_of_three": _two_of_three},
    axes={"score_map": ("h", "w")},
)
_ENTROPY = Entry(
    "attention_entropy",
    attention_entropy,
    ("a",),
    cases.ENTROPY.scenarios(
        {
            "map": {"B": 3, "N": 7},
            "as_it_is": {"B": 2, "N": 5, "normalize": False},
            "holes": {"B": 2, "N": 6, "holes": True},
            "one_token": {"B": 2, "N": 1},
            "no_map": {"B": 0, "N": 3},
        }
    ),
    cases.FAMILIES,
    cases.ENTROPY.cases(cases.entropy_sizes),
    laws=laws.ENTROPY_LAWS,
    bugs=bugs.ENTROPY_BUGS,
    axes={"a": ("B", "N")},
)
_TEXTURE = Entry(
    "texture_complexity",
    texture_complexity,
    ("image",),
    cases.TEXTURE.scenarios(
        {
            "blocks": {"h": 15, "w": 17},
            "colours": {"h": 12, "w": 14, "color": True},
            "strip": {"h": 2, "w": 20},
            "pixel": {"h": 1, "w": 1},
        }
    ),
    ("sharp", "faint"),
    cases.TEXTURE.cases(cases.texture_sizes),
    laws=laws.TEXTURE_LAWS,
    bugs=bugs.TEXTURE_BUGS,
)
_COLOR = Entry(
    "color_complexity",
    color_complexity,
    ("image",),
    cases.COLOR.scenarios(
        {
            "picture": {"h": 7, "w": 8},
            "half_grey": {"h": 6, "w": 5, "grey": True},
            "row": {"h": 1, "w": 9},
            "pixel": {"h": 1, "w": 1},
        }
    ),
    ("many", "few"),
    cases.COLOR.cases(cases.color_sizes),
    laws=laws.COLOR_LAWS,
    bugs=bugs.COLOR_BUGS,
)

CONTRACT = Contract(
    "carve",
    "Contrastive attention refinement (CARVE)",
    "2509.06461",
    "interventions",
    (_FUSE, _CONTRAST, _IMAGE, _RESIZE, _LABEL, _MASK, _ENTROPY, _TEXTURE, _COLOR),
)
