"""Gathers along an axis, norms, and the GELU of the library at hand."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from array_api_compat import array_namespace, is_jax_namespace, is_numpy_namespace, is_torch_namespace
from scipy import special

from refattn.backends.portable.lrgt import pointwise
from refattn.backends.portable.recat.chart import index_table

__all__ = ["gelu", "layer_norm", "take", "weigh"]


def take(x: Any, indices: Any, axis: int = -2) -> Any:
    """Gather rows by a static table."""
    return array_namespace(x).take(x, index_table(x, indices), axis=axis)


def weigh(weights: Any, vectors: Any, slots: Any) -> Any:
    """Return w (..., c, K) times the vectors (..., S, D) of each slot: (..., c, K, D)."""
    xp = array_namespace(vectors)
    rows = take(vectors, slots.reshape(-1))
    return weights[..., None] * xp.reshape(rows, (*vectors.shape[:-2], *slots.shape, vectors.shape[-1]))


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    """Centre, divide by the standard deviation, scale and shift."""
    return pointwise.layer_norm(x, weight, bias, 1e-5)


def gelu(x: Any) -> Any:
    """Return x Φ(x), with the error function of the library where it has one."""
    xp = array_namespace(x)
    if is_numpy_namespace(xp):
        return x * special.ndtr(x)
    if is_torch_namespace(xp):
        return x * (0.5 * (x * -(0.5**0.5)).erfc())
    if is_jax_namespace(xp):
        return x * (0.5 * import_module("jax.scipy.special").erfc(x * -(0.5**0.5)))
    return pointwise.gelu(x)
