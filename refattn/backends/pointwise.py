"""What the array-API standard lacks and several twins need: softmax, activations, layer normalisation.

The standard has no error function, so each library's own is called. A library without one computes through NumPy.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
from array_api_compat import (
    array_namespace,
    device,
    is_cupy_namespace,
    is_jax_namespace,
    is_numpy_namespace,
    is_torch_namespace,
)
from scipy import special

__all__ = ["erfc", "gelu", "gelu_tanh", "layer_norm", "silu", "softmax"]


def softmax(x: Any, visible: Any = None) -> Any:
    """Return weights over the last axis that sum to 1, 0 where ``visible`` is False. Each row sees something."""
    xp = array_namespace(x)
    if visible is not None:
        x = xp.where(visible, x, xp.asarray(-xp.inf, dtype=x.dtype, device=device(x)))
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def silu(x: Any) -> Any:
    """Return x / (1 + e^−x), the exponent held just below where it overflows."""
    xp = array_namespace(x)
    largest = xp.asarray(709.0 if x.dtype == xp.float64 else 88.0, dtype=x.dtype, device=device(x))
    return x / (1 + xp.exp(xp.minimum(-x, largest)))


def gelu_tanh(x: Any) -> Any:
    """Return x σ(2u) with u = √(2/π)(x + 0.044715 x³), which is the tanh formula."""
    u = math.sqrt(2.0 / math.pi) * x * (1.0 + 0.044715 * x * x)
    return x * (0.5 + 0.5 * array_namespace(x).tanh(u))


def erfc(x: Any) -> Any:
    """Return the complementary error function 1 − erf x."""
    xp = array_namespace(x)
    if is_torch_namespace(xp):
        return x.erfc()
    if is_jax_namespace(xp):
        return import_module("jax.scipy.special").erfc(x)
    if is_cupy_namespace(xp):
        return import_module("cupyx.scipy.special").erfc(x)
    return special.erfc(x) if is_numpy_namespace(xp) else xp.asarray(special.erfc(np.asarray(x)), dtype=x.dtype)


def gelu(x: Any) -> Any:
    """Return x Φ(x); erfc keeps the digits that 1 + erf loses for large negative x."""
    if is_numpy_namespace(array_namespace(x)):
        chance = np.asarray(special.ndtr(x))
        chance *= x  # in place: this is memory traffic, and a twin should be fast
        return chance
    return x * (0.5 * erfc(x * -(0.5**0.5)))


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Centre the last axis, divide by its standard deviation, scale and shift."""
    xp = array_namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    return centred / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + eps) * weight + bias
