"""How inputs of the in-context regression entries are drawn: prompts, heads of either sign, one task and several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill
from refattn.layers.icl_regression import ICLAttentionBiases, ICLAttentionWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ATTENTION",
    "DEBIASED",
    "DOUBLE_SOFTMAX",
    "ESTIMATOR",
    "FAMILIES",
    "GD",
    "GRADIENT",
    "GRADIENT_FAMILIES",
    "LINEAR",
    "PRECONDITIONER",
    "RIDGE",
    "RIDGE_FAMILIES",
    "STEP_FAMILIES",
    "double_softmax_sizes",
    "estimator_sizes",
    "layer_sizes",
    "linear_sizes",
    "preconditioner_sizes",
    "ridge_sizes",
    "step_sizes",
]

FAMILIES = ("normal", "uniform", "peaky", "tied", "large", "cancelling")
GRADIENT_FAMILIES = ("normal", "peaky", "cancelling")
STEP_FAMILIES = ("normal", "uniform", "large", "cancelling")  # one step is linear in the responses: size means little
RIDGE_FAMILIES = ("normal", "uniform", "peaky", "cancelling")  # the others leave the Gram matrix nearly singular
Drawn = tuple[dict[str, Any], dict[str, Any]]


def heads(rng: np.random.Generator, n_head: int, width: int, n_out: int) -> ICLAttentionWeights:
    """Draw heads whose scores are of order 1 for tokens of order 1."""
    w_k, w_q, w_v = rng.standard_normal((3, n_head, width, width)) / width**0.25
    w_o = rng.standard_normal((n_head, n_out, width)) / width**0.5
    return ICLAttentionWeights(w_k, w_q / width**0.25, w_v / width**0.25, w_o)


def _layer(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    B, L, D, H, N = (sizes[name] for name in "BLDHN")
    z_q = fill(rng, (B, D), family) * (np.arange(D) < max(D - 1, 1))
    arrays: dict[str, Any] = {"z_q": z_q, "z": fill(rng, (B, L, D), family), "weights": heads(rng, H, D, N)}
    if sizes.get("biases", False):
        b_k, b_q, b_v = rng.standard_normal((3, H, D))
        arrays["biases"] = ICLAttentionBiases(b_k, b_q, b_v, rng.standard_normal(N))
    return arrays, {}


def _gradient(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    arrays, options = _layer(rng, family, sizes)
    return arrays | {"dy_hat": rng.standard_normal((sizes["B"], sizes["N"]))}, options


def _prompt(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    B, L, d = (sizes[name] for name in "BLd")
    return {"x": fill(rng, (B, L, d), family), "y": rng.standard_normal((B, L)), "x_q": rng.standard_normal((B, d))}


def _estimator(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    arrays, (d, H), N = _prompt(rng, family, sizes), (sizes["d"], sizes["H"]), sizes.get("N")
    kernel = (H,) + (d,) * sizes.get("kernel", 0)
    arrays["omega"] = rng.standard_normal(kernel) / (1.0 if family != "large" else 30.0)
    arrays["mu"] = rng.standard_normal(H if N is None else (N, H))
    if N is not None:
        arrays["y"] = rng.standard_normal((*arrays["y"].shape, N))
    return arrays, {}


def _step(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    arrays, d = _prompt(rng, family, sizes), sizes["d"]
    if sizes.get("matrix", False):
        return arrays | {"step": rng.standard_normal((d, d)) / d**0.5}, {}
    return arrays, {"step": sizes.get("step", 0.875)}


def _ridge(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    ridge = sizes["ridge"]
    return _prompt(rng, family if ridge > 0 else "normal", sizes), {"ridge": ridge}


def _linear(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    B, L, D, H, N = (sizes[name] for name in "BLDHN")
    kq, ov = rng.standard_normal((H, D, D)) / D, rng.standard_normal((H, D, N)) / D**0.5
    arrays = {"z_q": rng.standard_normal((B, D)), "z": fill(rng, (B, L, D), family), "kq": kq, "ov": ov}
    return arrays, {"length": sizes["length"]} if "length" in sizes else {}


def _double_softmax(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    B, N, D, H = (sizes[name] for name in "BNDH")
    return {"x": fill(rng, (B, N, D), family), "weights": heads(rng, H, D, D)}, {}


def _preconditioner(rng: np.random.Generator, _family: str, sizes: Mapping[str, Any]) -> Drawn:
    d = sizes["d"]
    rho = sizes.get("rho", 0.5)
    scale = 2.0 ** rng.integers(-1, 2, size=d)
    cov = rho ** np.abs(np.subtract.outer(np.arange(d), np.arange(d))) * np.sqrt(np.outer(scale, scale))
    options = {"length": sizes["L"], "noise_var": sizes["noise_var"]}
    return {"cov": cov}, options | ({"debiased": sizes["debiased"]} if "debiased" in sizes else {})


_batch = {"B": st.integers(0, 3), "L": st.integers(1, 7)}
_prompts = {
    "B": st.integers(1, 3),
    "L": st.integers(1, 7),
    "d": st.integers(1, 4),
}  # an empty vector has no rows to judge
layer_sizes = st.fixed_dictionaries(
    {**_batch, "D": st.integers(1, 5), "H": st.integers(1, 3), "N": st.integers(1, 3)},
    optional={"biases": st.just(value=True)},
)
gradient_sizes = st.fixed_dictionaries(
    {**_batch, "D": st.integers(1, 5), "H": st.integers(1, 3), "N": st.integers(1, 3)}
)
estimator_sizes = st.fixed_dictionaries(
    {**_prompts, "H": st.integers(1, 3)},
    optional={"N": st.integers(1, 3), "kernel": st.integers(0, 2)},
)
step_sizes = st.fixed_dictionaries(
    {**_prompts, "L": st.integers(2, 7)},
    optional={"matrix": st.just(value=True), "step": st.sampled_from([0.0, 2.5])},
)
ridge_sizes = st.fixed_dictionaries({**_prompts, "ridge": st.sampled_from([0.5, 2.0, 16.0])})
linear_sizes = st.fixed_dictionaries(
    {**_batch, "D": st.integers(1, 5), "H": st.integers(1, 3), "N": st.integers(1, 2)},
    optional={"length": st.integers(1, 9)},
)
double_softmax_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "N": st.integers(0, 7), "D": st.integers(1, 5), "H": st.integers(1, 3)}
)
preconditioner_sizes = st.fixed_dictionaries(
    {"d": st.integers(1, 6), "L": st.integers(1, 40), "noise_var": st.sampled_from([0.0, 0.125, 4.0])},
    optional={"debiased": st.booleans(), "rho": st.sampled_from([0.0, 0.75])},
)

ATTENTION = Recipe("icl_attention", _layer, FAMILIES)
GRADIENT = Recipe("icl_attention_vjp", _gradient, GRADIENT_FAMILIES)
ESTIMATOR = Recipe("softmax_estimator", _estimator, FAMILIES)
GD = Recipe("gd_estimator", _step, STEP_FAMILIES)
DEBIASED = Recipe("debiased_gd_estimator", _step, STEP_FAMILIES)
RIDGE = Recipe("ridge_estimator", _ridge, RIDGE_FAMILIES)
LINEAR = Recipe("linear_attention", _linear, FAMILIES)
DOUBLE_SOFTMAX = Recipe("double_softmax_attention", _double_softmax, FAMILIES)
PRECONDITIONER = Recipe("preconditioner", _preconditioner, ("normal",))
