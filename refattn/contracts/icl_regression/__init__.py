"""The contract of icl_regression: the layer that learns linear regression in context, and what it amounts to."""

from typing import Any

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.icl_regression import bugs, cases, laws
from refattn.contracts.icl_regression.cases import FAMILIES
from refattn.layers.icl_regression import (
    debiased_gd_estimator,
    gd_estimator,
    icl_attention,
    icl_attention_vjp,
    linear_attention,
    preconditioner,
    ridge_estimator,
    softmax_estimator,
)
from refattn.layers.icl_regression_causal import double_softmax_attention
from refattn.layers.icl_regression_weights import ICLAttentionWeights

__all__ = ["CONTRACT"]

_PROMPT_AXES = {"x": ("B", "L", "d"), "y": ("B", "L"), "x_q": ("B", "d")}
_LAYERS: dict[str, dict[str, Any]] = {
    "two_heads": {"B": 3, "L": 6, "D": 4, "H": 2, "N": 1},
    "biases": {"B": 2, "L": 5, "D": 4, "H": 2, "N": 1, "biases": True},
    "two_tasks": {"B": 2, "L": 7, "D": 5, "H": 3, "N": 2},
    "whole_tokens_out": {"B": 2, "L": 5, "D": 3, "H": 2, "N": 3},
    "one_covariate": {"B": 2, "L": 3, "D": 2, "H": 1, "N": 1},
    "one_head": {"B": 2, "L": 4, "D": 4, "H": 1, "N": 1},
    "one_example": {"B": 3, "L": 1, "D": 4, "H": 2, "N": 1},
    "two_examples": {"B": 2, "L": 2, "D": 3, "H": 2, "N": 1},
    "many_examples": {"B": 1, "L": 65, "D": 3, "H": 2, "N": 1},
    "many_heads": {"B": 1, "L": 3, "D": 4, "H": 5, "N": 1},
    "responses_only": {"B": 2, "L": 4, "D": 1, "H": 2, "N": 1},
    "no_prompt": {"B": 0, "L": 4, "D": 3, "H": 2, "N": 2},
}
# the product takes no biases; a single example gives keys and queries nothing but rounding, which cannot be judged
_NOT_PULLED_BACK = ("biases", "one_example", "many_examples")
_STEPS: dict[str, dict[str, Any]] = {
    "plain": {"B": 3, "L": 8, "d": 3},
    "matrix": {"B": 3, "L": 6, "d": 4, "matrix": True},
    "no_step": {"B": 2, "L": 4, "d": 2, "step": 0.0},
    "one_example": {"B": 2, "L": 1, "d": 3},
    "one_covariate": {"B": 2, "L": 5, "d": 1},
    "fewer_examples_than_covariates": {"B": 2, "L": 3, "d": 7},
    "many_examples": {"B": 1, "L": 65, "d": 2},
    "one_prompt": {"B": 1, "L": 6, "d": 3, "step": 2.5},
}


_ATTENTION = Entry(
    "icl_attention",
    icl_attention,
    ("z_q", "z", "weights"),
    cases.ATTENTION.scenarios(_LAYERS),
    FAMILIES,
    cases.ATTENTION.cases(cases.layer_sizes),
    smoke=smoke("two_heads", "biases", "two_tasks"),
    outputs=("y_hat", "attn"),
    laws=laws.ATTENTION_LAWS,
    bugs=bugs.ATTENTION_BUGS,
    differentiable=("z_q", "z"),
    axes={"z_q": ("B", "D"), "z": ("B", "L", "D")},
)

_GRADIENT = Entry(
    "icl_attention_vjp",
    icl_attention_vjp,
    ("z_q", "z", "weights", "dy_hat"),
    cases.GRADIENT.scenarios({name: sizes for name, sizes in _LAYERS.items() if name not in _NOT_PULLED_BACK}),
    cases.GRADIENT_FAMILIES,
    cases.GRADIENT.cases(cases.gradient_sizes),
    smoke=smoke("two_heads", "two_tasks"),
    outputs=ICLAttentionWeights._fields,
    laws=laws.GRADIENT_LAWS,
    bugs=bugs.GRADIENT_BUGS,
    axes={"z_q": ("B", "D"), "z": ("B", "L", "D"), "dy_hat": ("B", "N")},
)

_ESTIMATOR = Entry(
    "softmax_estimator",
    softmax_estimator,
    ("x", "y", "x_q", "omega", "mu"),
    cases.ESTIMATOR.scenarios(
        {
            "pair": {"B": 3, "L": 8, "d": 3, "H": 2},
            "diagonal": {"B": 2, "L": 6, "d": 3, "H": 2, "kernel": 1},
            "matrix": {"B": 2, "L": 6, "d": 3, "H": 2, "kernel": 2},
            "two_tasks": {"B": 2, "L": 7, "d": 3, "H": 3, "N": 2, "kernel": 1},
            "one_task_with_an_axis": {"B": 2, "L": 5, "d": 2, "H": 2, "N": 1},
            "one_head": {"B": 2, "L": 5, "d": 2, "H": 1},
            "one_covariate": {"B": 2, "L": 5, "d": 1, "H": 2, "kernel": 2},
            "one_example": {"B": 2, "L": 1, "d": 3, "H": 2},
            "many_examples": {"B": 1, "L": 65, "d": 2, "H": 2},
            "no_prompt": {"B": 0, "L": 4, "d": 2, "H": 2, "N": 2},
        }
    ),
    FAMILIES,
    cases.ESTIMATOR.cases(cases.estimator_sizes),
    smoke=smoke("pair", "diagonal", "matrix"),
    laws=laws.ESTIMATOR_LAWS,
    bugs=bugs.ESTIMATOR_BUGS,
    differentiable=("x", "y", "x_q", "omega", "mu"),
    axes={"x": ("B", "L", "d"), "x_q": ("B", "d")},
)

_GD = Entry(
    "gd_estimator",
    gd_estimator,
    ("x", "y", "x_q"),
    cases.GD.scenarios(_STEPS),
    cases.STEP_FAMILIES,
    cases.GD.cases(cases.step_sizes),
    smoke=smoke("plain", "matrix"),
    laws=laws.GD_LAWS,
    bugs=bugs.GD_BUGS,
    differentiable=("x", "y", "x_q"),
    axes=_PROMPT_AXES,
)

_DEBIASED = Entry(
    "debiased_gd_estimator",
    debiased_gd_estimator,
    ("x", "y", "x_q"),
    cases.DEBIASED.scenarios({name: sizes for name, sizes in _STEPS.items() if name != "one_example"}),
    cases.STEP_FAMILIES,
    cases.DEBIASED.cases(cases.step_sizes),
    smoke=smoke("plain", "matrix"),
    laws=laws.DEBIASED_LAWS,
    bugs=bugs.DEBIASED_BUGS,
    differentiable=("x", "y", "x_q"),
    axes=_PROMPT_AXES,
)

_RIDGE = Entry(
    "ridge_estimator",
    ridge_estimator,
    ("x", "y", "x_q"),
    cases.RIDGE.scenarios(
        {
            "plain": {"B": 3, "L": 8, "d": 3, "ridge": 0.5},
            "strong": {"B": 2, "L": 6, "d": 3, "ridge": 16.0},
            "fewer_examples_than_covariates": {"B": 2, "L": 3, "d": 6, "ridge": 2.0},
            "no_ridge": {"B": 2, "L": 12, "d": 2, "ridge": 0.0},
            "no_ridge_and_few_examples": {"B": 2, "L": 2, "d": 8, "ridge": 0.0},
            "one_example": {"B": 2, "L": 1, "d": 3, "ridge": 0.5},
            "one_covariate": {"B": 2, "L": 5, "d": 1, "ridge": 0.5},
        }
    ),
    cases.RIDGE_FAMILIES,
    cases.RIDGE.cases(cases.ridge_sizes),
    smoke=smoke("plain", "strong"),
    laws=laws.RIDGE_LAWS,
    bugs=bugs.RIDGE_BUGS,
    differentiable=("x", "y", "x_q"),
    axes=_PROMPT_AXES,
)

_LINEAR = Entry(
    "linear_attention",
    linear_attention,
    ("z_q", "z", "kq", "ov"),
    cases.LINEAR.scenarios(
        {
            "one_head": {"B": 3, "L": 6, "D": 4, "H": 1, "N": 1},
            "two_heads": {"B": 2, "L": 5, "D": 3, "H": 2, "N": 2},
            "other_length": {"B": 2, "L": 6, "D": 4, "H": 1, "N": 1, "length": 3},
            "one_example": {"B": 2, "L": 1, "D": 4, "H": 1, "N": 1, "length": 4},
            "many_examples": {"B": 1, "L": 65, "D": 3, "H": 1, "N": 1},
            "no_prompt": {"B": 0, "L": 3, "D": 3, "H": 2, "N": 1},
        }
    ),
    FAMILIES,
    cases.LINEAR.cases(cases.linear_sizes),
    smoke=smoke("one_head", "other_length"),
    laws=laws.LINEAR_LAWS,
    bugs=bugs.LINEAR_BUGS,
    differentiable=("z_q", "z", "kq", "ov"),
    axes={"z_q": ("B", "D"), "z": ("B", "L", "D")},
)

_DOUBLE_SOFTMAX = Entry(
    "double_softmax_attention",
    double_softmax_attention,
    ("x", "weights"),
    cases.DOUBLE_SOFTMAX.scenarios(
        {
            "two_heads": {"B": 2, "N": 6, "D": 4, "H": 2},
            "one_head": {"B": 1, "N": 9, "D": 3, "H": 1},
            "two_tokens": {"B": 2, "N": 2, "D": 3, "H": 2},
            "one_token": {"B": 2, "N": 1, "D": 3, "H": 2},
            "no_token": {"B": 2, "N": 0, "D": 3, "H": 2},
            "no_prompt": {"B": 0, "N": 4, "D": 3, "H": 2},
        }
    ),
    FAMILIES,
    cases.DOUBLE_SOFTMAX.cases(cases.double_softmax_sizes),
    smoke=smoke("two_heads"),
    laws=laws.DOUBLE_SOFTMAX_LAWS,
    bugs=bugs.DOUBLE_SOFTMAX_BUGS,
    differentiable=("x",),
    axes={"x": ("B", "N", "D")},
)

_PRECONDITIONER = Entry(
    "preconditioner",
    preconditioner,
    ("cov",),
    cases.PRECONDITIONER.scenarios(
        {
            "correlated": {"d": 5, "L": 8, "noise_var": 0.125},
            "plain_descent": {"d": 4, "L": 4, "noise_var": 0.125, "debiased": False},
            "no_noise": {"d": 3, "L": 16, "noise_var": 0.0, "debiased": True},
            "much_noise": {"d": 3, "L": 16, "noise_var": 4.0, "rho": 0.75},
            "independent": {"d": 4, "L": 32, "noise_var": 0.125, "rho": 0.0},
            "one_example": {"d": 3, "L": 1, "noise_var": 0.125},
            "one_covariate": {"d": 1, "L": 8, "noise_var": 0.125},
        }
    ),
    ("normal",),
    cases.PRECONDITIONER.cases(cases.preconditioner_sizes),
    smoke=smoke("correlated", "plain_descent"),
    laws=laws.PRECONDITIONER_LAWS,
    bugs=bugs.PRECONDITIONER_BUGS,
)

CONTRACT = Contract(
    "icl_regression",
    "Attention for in-context linear regression",
    "2503.12734",
    "layers",
    (
        _ATTENTION,
        _GRADIENT,
        _ESTIMATOR,
        _GD,
        _DEBIASED,
        _RIDGE,
        _LINEAR,
        _DOUBLE_SOFTMAX,
        _PRECONDITIONER,
    ),
)
