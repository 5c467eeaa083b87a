"""The contract of random-feature attention: features, layer, perceptron, kernel and ridge fit (2307.11353)."""

from __future__ import annotations

import numpy as np

from refattn.conformance.contract import Case, Contract, Entry, Outputs
from refattn.contracts.random_feature_heads import cases
from refattn.contracts.random_feature_heads.bugs import (
    ATTENTION_BUGS,
    FEATURE_BUGS,
    FIT_BUGS,
    KERNEL_BUGS,
    MLP_BUGS,
    PREDICTION_BUGS,
)
from refattn.contracts.random_feature_heads.cases import FAMILIES
from refattn.contracts.random_feature_heads.laws import ATTENTION_LAWS, FEATURE_LAWS, FIT_LAWS, KERNEL_LAWS, MLP_LAWS
from refattn.layers.random_feature_heads import (
    RandomHeads,
    fit_ridge,
    infinite_head_kernel,
    predict,
    random_head_attention,
    random_head_features,
    random_mlp_features,
)

__all__ = ["CONTRACT"]

_HEADS = {
    "some_keys": {"n": 3, "N": 4, "d": 3, "M": 5},
    "around_the_identity": {"n": 2, "N": 3, "d": 3, "M": 4, "biased": True},
    "equal_keys": {"n": 2, "N": 3, "d": 2, "M": 3, "twins": True},
    "zero_tokens": {"n": 2, "N": 3, "d": 2, "M": 3, "zeros": True},
    "one_key": {"n": 3, "N": 1, "d": 3, "M": 4},
    "one_coordinate": {"n": 3, "N": 3, "d": 1, "M": 4},
    "one_head": {"n": 3, "N": 3, "d": 2, "M": 1},
    "many_keys": {"n": 1, "N": 33, "d": 2, "M": 2},
    "no_input": {"n": 0, "N": 3, "d": 2, "M": 3},  # for the features; the kit has no rows of length 0
}


def _whole_numbers(dtype: str) -> tuple[Case, Outputs]:
    """Take small integers and two keys: every product and sum is exact in every dtype."""
    x0, x = np.array([[1.0, -2.0]]), np.array([[[2.0, 1.0], [-1.0, 3.0]]])
    w = np.array([[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0], [3.0, 0.0, 1.0]]])
    # scores: x̃_0ᵀ W = (4, -2, 5); with the keys (2, 1, 1) and (-1, 3, 1) they are 11 and -5
    case = Case("random_head_features", {"x0": x0, "x": x, "heads": RandomHeads(w)}, {}, dtype, "exact/whole_numbers")
    return case, {"out": np.array([[[11.0, 5.5, 5.5]]])}


_FEATURES = Entry(
    "random_head_features",
    random_head_features,
    ("x0", "x", "heads"),
    cases.FEATURES.scenarios(_HEADS),
    FAMILIES,
    cases.FEATURES.cases(cases.head_sizes),
    smoke=(("some_keys", "normal"), ("around_the_identity", "normal")),
    laws=FEATURE_LAWS,
    bugs=FEATURE_BUGS,
    exact={"whole_numbers": _whole_numbers},
    differentiable=("x0", "x"),
    axes={"x0": ("n", "d"), "x": ("n", "N", "d")},
)
_ATTENTION = Entry(
    "random_head_attention",
    random_head_attention,
    ("x0", "x", "heads", "v"),
    cases.ATTENTION.scenarios({name: sizes for name, sizes in _HEADS.items() if sizes["n"]}),
    ("normal", "tied", "cancelling"),
    cases.ATTENTION.cases(cases.attention_sizes),
    smoke=(("some_keys", "normal"), ("around_the_identity", "normal")),
    laws=ATTENTION_LAWS,
    bugs=ATTENTION_BUGS,
    differentiable=("x0", "x", "v"),
)
_MLP = Entry(
    "random_mlp_features",
    random_mlp_features,
    ("x0", "x", "w"),
    cases.MLP.scenarios(
        {
            "some_keys": {"n": 3, "N": 4, "d": 3, "M": 5},
            "zero_tokens": {"n": 2, "N": 3, "d": 2, "M": 3, "zeros": True},
            "one_key": {"n": 3, "N": 1, "d": 3, "M": 4},
            "one_coordinate": {"n": 3, "N": 3, "d": 1, "M": 4},
            "one_neuron": {"n": 3, "N": 3, "d": 2, "M": 1},
            "no_input": {"n": 0, "N": 3, "d": 2, "M": 3},
        }
    ),
    ("normal", "uniform", "tied", "cancelling"),
    cases.MLP.cases(cases.mlp_sizes),
    smoke=(("some_keys", "normal"),),
    laws=MLP_LAWS,
    bugs=MLP_BUGS,
    differentiable=("x0", "x", "w"),
)
_KERNEL = Entry(
    "infinite_head_kernel",
    infinite_head_kernel,
    ("x0", "x", "y0", "y"),
    cases.KERNEL.scenarios(
        {
            "no_mean": {"n": 3, "N": 3, "m": 2, "N2": 2, "d": 3},
            "identity": {"n": 2, "N": 3, "m": 3, "N2": 2, "d": 3, "bias": "identity"},
            "any_mean": {"n": 2, "N": 2, "m": 2, "N2": 3, "d": 2, "bias": "matrix"},
            "wide_heads": {"n": 2, "N": 2, "m": 2, "N2": 2, "d": 2, "std": 2.0},
            "wide_heads_identity": {"n": 2, "N": 2, "m": 2, "N2": 2, "d": 2, "std": 2.0, "bias": "identity"},
            "shared_inputs": {"n": 2, "N": 2, "m": 2, "N2": 2, "d": 2, "shared": True},
            "shared_inputs_identity": {"n": 2, "N": 2, "m": 2, "N2": 2, "d": 2, "shared": True, "bias": "identity"},
            "zero_tokens": {"n": 2, "N": 2, "m": 2, "N2": 1, "d": 2, "zeros": True, "bias": "identity"},
            "one_of_each": {"n": 1, "N": 1, "m": 1, "N2": 1, "d": 1},
            "no_input": {"n": 0, "N": 2, "m": 2, "N2": 2, "d": 2},
        }
    ),
    ("normal", "uniform", "tied"),
    cases.KERNEL.cases(cases.kernel_sizes),
    smoke=(("no_mean", "normal"), ("identity", "normal"), ("any_mean", "normal")),
    laws=KERNEL_LAWS,
    bugs=KERNEL_BUGS,
)
_FIT = Entry(
    "fit_ridge",
    fit_ridge,
    ("gram", "y"),
    cases.FIT.scenarios(
        {
            "full_rank": {"n": 6, "rank": 9, "ridge_rel": 0.1},
            "low_rank": {"n": 7, "rank": 3, "ridge_rel": 0.5},
            "heavy": {"n": 5, "rank": 5, "ridge_rel": 4.0},
            "two_inputs": {"n": 2, "rank": 4, "ridge_rel": 1.0},
        }
    ),
    ("normal", "tied", "large"),
    cases.FIT.cases(cases.fit_sizes),
    smoke=(("full_rank", "normal"), ("low_rank", "normal")),
    outputs=("alpha", "intercept", "gcv"),
    laws=FIT_LAWS,
    bugs=FIT_BUGS,
)
_PREDICTION = Entry(
    "predict",
    predict,
    ("fit", "cross_gram"),
    cases.PREDICTION.scenarios(
        {"some": {"n": 5, "m": 4}, "one": {"n": 1, "m": 1}},
    ),
    ("normal", "uniform", "cancelling"),
    cases.PREDICTION.cases(cases.prediction_sizes),
    smoke=(("some", "normal"),),
    bugs=PREDICTION_BUGS,
    differentiable=("cross_gram",),
)

CONTRACT = Contract(
    slug="random_feature_heads",
    title="Random-feature attention: frozen random heads, learned values",
    paper="2307.11353",
    family="layers",
    entries=(_FEATURES, _ATTENTION, _MLP, _KERNEL, _FIT, _PREDICTION),
)
