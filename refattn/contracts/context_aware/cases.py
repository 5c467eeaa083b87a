"""How inputs are drawn: gates all over (0, 1), scores of size one, plans that are neither flat nor a permutation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given
from refattn.layers.context_aware_attention import ContextAttentionWeights
from refattn.layers.context_aware_gate import GateWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hypothesis.strategies import SearchStrategy

__all__ = [
    "ATTENTION",
    "CROSS",
    "FAMILIES",
    "FUSE",
    "GATED",
    "KERNEL",
    "POOL",
    "SINKHORN",
    "SMOOTH",
    "attention_sizes",
    "cross_sizes",
    "fuse_sizes",
    "gated_sizes",
    "kernel_sizes",
    "pool_sizes",
    "sinkhorn_sizes",
    "smooth_sizes",
]

FAMILIES = ("normal", "tied", "cancelling")
Drawn = tuple[dict[str, Any], dict[str, Any]]
MASS = 16  # masses are sixteenths: exact in every dtype, whatever they add up to


def _mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw which tokens are real: some padded, at least one real in each sequence."""
    mask = rng.random(shape) < 0.6
    mask[..., 0] |= ~mask.any(axis=-1)
    return np.asarray(mask)


def _masked(rng: np.random.Generator, sizes: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"mask": _mask(rng, shape)} if sizes.get("padded", False) else {}


def attention_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens, weights, and a context for the sequence or for each token."""
    B, N, D, d_c = sizes["B"], sizes["N"], sizes["H"] * sizes["d"], sizes.get("d_c", 0)

    def matrix(*shape: int) -> np.ndarray:
        return np.asarray(1.5 * rng.standard_normal(shape) / np.sqrt(max(shape[0], 1)))

    plain = [part for _ in range(3) for part in (matrix(D, D), 0.3 * rng.standard_normal(D))]
    gates = [part for _ in range(2) for part in (matrix(D), matrix(D), np.asarray(rng.standard_normal()))]
    reading = [matrix(d_c, D), matrix(d_c, D), *gates] if d_c else [None] * 8
    fields = [*plain, *reading, matrix(D, D), 0.3 * rng.standard_normal(D)]
    weights = ContextAttentionWeights._make(fields)
    arrays: dict[str, Any] = {"x": fill(rng, (B, N, D), family), "weights": weights}
    if d_c:
        arrays["context"] = fill(rng, (B, N if sizes.get("per_token", False) else 1, d_c), family)
    return arrays | _masked(rng, sizes, (B, N)), {"n_heads": sizes["H"]} | given(sizes, "return_aux")


def pool_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw the inputs of some layers."""
    shape = sizes["B"], sizes["N"], sizes["D"]
    layers = tuple(fill(rng, shape, family) for _ in range(sizes["l"]))
    return {"layers": layers} | _masked(rng, sizes, shape[:2]), {}


def gated_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw heads and a gate model."""
    B, H, N, d, d_g = (sizes[name] for name in ("B", "H", "N", "d", "d_g"))
    shapes = ((d, d_g), (d_g,), (d, d_g), (d_g,), (d_g, 2), (2,))
    weights = GateWeights(*(rng.standard_normal(shape) / np.sqrt(max(shape[0], 1)) for shape in shapes))
    arrays = {name: fill(rng, (B, H, N, d), family) for name in "qkv"} | {"weights": weights}
    return arrays | _masked(rng, sizes, (B, N)), {}


def _masses(rng: np.random.Generator, lead: tuple[int, ...], count: int) -> np.ndarray:
    """Draw positive sixteenths that sum to one."""
    return np.asarray((1 + rng.multinomial(MASS - count, np.full(count, 1 / count), size=lead)) / MASS)


def sinkhorn_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw masses and costs."""
    lead, n, m = sizes["lead"], sizes["n"], sizes["m"]
    cost = fill(rng, (*lead, n, m), family) ** 2
    arrays = {"a": _masses(rng, lead, n), "b": _masses(rng, lead, m), "cost": cost}
    return arrays, {"reg": sizes["reg"], "tol": None, "max_iter": sizes["steps"]}


def cross_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens of two modalities."""
    arrays = {
        "source": fill(rng, (sizes["B"], sizes["n"], sizes["d"]), family),
        "target": fill(rng, (sizes["B"], sizes["m"], sizes["d"]), family) + 0.5,
    }
    return arrays, {"reg": sizes["reg"], "tol": None, "max_iter": sizes["steps"]} | given(sizes, "normalize")


def kernel_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw tokens and references."""
    B, n, H, p, d = (sizes[name] for name in ("B", "n", "H", "p", "d"))
    arrays = {"x": fill(rng, (B, n, d), family), "reference": rng.standard_normal((H, p, d)) / np.sqrt(d)}
    options = {"eps": sizes["eps"], "n_iter": sizes["n_iter"]} | given(sizes, "return_weights")
    return arrays | _masked(rng, sizes, (B, n)), options


def fuse_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw pooled features and the network that scores them."""
    D, E = sizes["D"], sizes["E"]
    parts = tuple(fill(rng, (sizes["B"], D), family) for _ in range(sizes["K"]))
    w_hidden = rng.standard_normal((D, E)) / np.sqrt(D)
    return {
        "parts": parts,
        "w_hidden": w_hidden,
        "b_hidden": rng.standard_normal(E),
        "w_score": rng.standard_normal(E),
    }, {}


def smooth_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw logits and labels."""
    N, K = sizes["N"], sizes["K"]
    return {"logits": 2 * fill(rng, (N, K), family), "labels": rng.integers(K, size=N)}, given(sizes, "alpha")


ATTENTION = Recipe("context_aware_attention", attention_case, FAMILIES)
POOL = Recipe("deep_global_context", pool_case, FAMILIES)
GATED = Recipe("gated_self_attention", gated_case, FAMILIES)
SINKHORN = Recipe("sinkhorn_plan", sinkhorn_case, FAMILIES)
CROSS = Recipe("ot_cross_attention", cross_case, FAMILIES)
KERNEL = Recipe("ot_kernel_attention", kernel_case, FAMILIES)
FUSE = Recipe("fuse_attention", fuse_case, FAMILIES)
SMOOTH = Recipe("label_smoothing_cross_entropy", smooth_case, FAMILIES)


def _sizes(**choices: Any) -> SearchStrategy[dict[str, Any]]:
    """Draw each size from its range, or from its list."""
    return st.fixed_dictionaries(
        {
            name: st.integers(*choice) if isinstance(choice, tuple) else st.sampled_from(choice)
            for name, choice in choices.items()
        }
    )


_BOTH = [False, True]
attention_sizes = _sizes(
    B=(0, 2), N=(1, 5), H=(1, 3), d=(1, 3), d_c=(0, 4), per_token=_BOTH, padded=_BOTH, return_aux=_BOTH
)
pool_sizes = _sizes(B=(0, 2), N=(1, 5), D=(1, 4), l=(1, 3), padded=_BOTH)
gated_sizes = _sizes(B=(0, 2), H=(1, 2), N=(1, 5), d=(1, 4), d_g=(1, 4), padded=_BOTH)
sinkhorn_sizes = _sizes(lead=[(), (2,)], n=(1, 6), m=(1, 6), reg=[0.5, 2.0], steps=(1, 8))
cross_sizes = _sizes(B=(0, 2), n=(1, 5), m=(1, 5), d=(1, 3), reg=[0.25, 1.0], steps=(1, 6), normalize=["max", "median"])
kernel_sizes = _sizes(B=(0, 2), n=(1, 6), H=(1, 2), p=(1, 3), d=(1, 3), eps=[0.5, 2.0], n_iter=(1, 6), padded=_BOTH)
fuse_sizes = _sizes(B=(0, 2), D=(1, 4), E=(1, 4), K=(1, 4))
smooth_sizes = _sizes(N=(1, 5), K=(2, 5), alpha=[0.0, 0.1, 0.5, 1.0])
