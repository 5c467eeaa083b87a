"""How inputs of random-feature attention are drawn: one key, one coordinate, one head, equal keys, any mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill
from refattn.layers.random_feature_heads import RandomHeads, RidgeFit

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ATTENTION",
    "FAMILIES",
    "FEATURES",
    "FIT",
    "KERNEL",
    "MLP",
    "PREDICTION",
    "attention_sizes",
    "fit_sizes",
    "head_sizes",
    "kernel_sizes",
    "mlp_sizes",
    "prediction_sizes",
]

FAMILIES = ("normal", "uniform", "tied", "large", "cancelling", "tiny")
Drawn = tuple[dict[str, Any], dict[str, Any]]


def _tokens(rng: np.random.Generator, family: str, sizes: Mapping[str, Any], n: int, N: int) -> tuple[Any, Any]:
    """Draw queries and keys; with ``twins`` the last key equals the first, with ``zeros`` the first key is zero."""
    d = sizes["d"]
    x0, x = fill(rng, (n, d), family), fill(rng, (n, N, d), family)
    if sizes.get("twins", False):
        x[:, -1] = x[:, 0]
    if sizes.get("zeros", False):
        x0[:1], x[:, 0] = 0.0, 0.0
    return x0, x


def features_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens and heads, around the identity or not."""
    x0, x = _tokens(rng, family, sizes, sizes["n"], sizes["N"])
    width = sizes["d"] + 1
    w = 0.5 * rng.standard_normal((sizes["M"], width, width))
    if sizes.get("biased", False):
        w += np.diag([1.0] * sizes["d"] + [0.0])
    return {"x0": x0, "x": x, "heads": RandomHeads(w)}, {}


def attention_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw values too."""
    arrays, options = features_case(rng, family, sizes)
    return {**arrays, "v": rng.standard_normal((sizes["M"], sizes["d"] + 1))}, options


def mlp_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens and neurons."""
    x0, x = _tokens(rng, family, sizes, sizes["n"], sizes["N"])
    width = sizes["d"] * (sizes["N"] + 1) + 1
    return {"x0": x0, "x": x, "w": rng.standard_normal((sizes["M"], width)) / np.sqrt(sizes["N"] + 2)}, {}


def kernel_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw two sets of tokens, some of the second as in the first, and a mean by name or as a matrix."""
    x0, x = _tokens(rng, family, sizes, sizes["n"], sizes["N"])
    y0, y = _tokens(rng, family, sizes, sizes["m"], sizes["N2"])
    if sizes.get("shared", False) and min(sizes["n"], sizes["m"]) > 0:
        y0[0], y[0, 0] = x0[0], x[0, 0]
    arrays = {"x0": x0, "x": x, "y0": y0, "y": y}
    if sizes.get("bias") == "matrix":
        arrays["bias"] = 0.5 * rng.standard_normal((sizes["d"] + 1, sizes["d"] + 1))
    options = {name: sizes[name] for name in ("bias", "std") if sizes.get(name, "matrix") != "matrix"}
    return arrays, options


def fit_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a Gram matrix of random features, and targets far from 0."""
    n, rank = sizes["n"], sizes["rank"]
    phi = fill(rng, (n, rank), family) * np.linspace(0.3, 1.0, rank)
    gram = phi @ phi.T / rank
    return {"gram": 0.5 * (gram + gram.T), "y": 3.0 + rng.standard_normal(n)}, {"ridge_rel": sizes["ridge_rel"]}


def prediction_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a fit and kernels of new inputs."""
    n = sizes["n"]
    fit = RidgeFit(rng.standard_normal(n), np.asarray(rng.normal()), np.asarray(rng.random()))
    return {"fit": fit, "cross_gram": fill(rng, (sizes["m"], n), family)}, {}


head_sizes = st.fixed_dictionaries(
    {"n": st.integers(0, 4), "N": st.integers(1, 5), "d": st.integers(1, 4), "M": st.integers(1, 5)},
    optional={"biased": st.booleans(), "twins": st.booleans(), "zeros": st.booleans()},
)
attention_sizes = head_sizes.filter(lambda sizes: sizes["n"] > 0)
mlp_sizes = st.fixed_dictionaries(
    {"n": st.integers(0, 4), "N": st.integers(1, 5), "d": st.integers(1, 4), "M": st.integers(1, 5)},
    optional={"zeros": st.booleans()},
)
kernel_sizes = st.fixed_dictionaries(
    {
        "n": st.integers(0, 3),
        "N": st.integers(1, 3),
        "m": st.integers(1, 3),
        "N2": st.integers(1, 3),
        "d": st.integers(1, 3),
    },
    optional={
        "bias": st.sampled_from(["identity", "matrix"]),
        "std": st.sampled_from([0.25, 2.0]),
        "shared": st.booleans(),
        "zeros": st.booleans(),
    },
)
fit_sizes = st.fixed_dictionaries(
    {"n": st.integers(2, 8), "rank": st.integers(1, 12), "ridge_rel": st.sampled_from([0.1, 0.5, 2.0])}
)
prediction_sizes = st.fixed_dictionaries({"n": st.integers(1, 6), "m": st.integers(1, 4)})

FEATURES = Recipe("random_head_features", features_case, FAMILIES)
ATTENTION = Recipe("random_head_attention", attention_case, FAMILIES)
MLP = Recipe("random_mlp_features", mlp_case, FAMILIES)
KERNEL = Recipe("infinite_head_kernel", kernel_case, FAMILIES)
FIT = Recipe("fit_ridge", fit_case, ("normal", "tied", "large"))
PREDICTION = Recipe("predict", prediction_case, ("normal", "uniform", "cancelling"))
