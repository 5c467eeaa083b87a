"""Point-wise non-linearities, each in the form that stays accurate in the tails.

Equation source: GELU 1606.08415, eq. 1; SiLU 1702.03118.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from refattn.primitives.arguments import as_float

__all__ = ["gelu", "gelu_tanh", "sigmoid", "silu"]


def sigmoid(x: Any) -> np.ndarray:
    """Squash to (0, 1): 1 / (1 + exp(−x)).

    Parameters
    ----------
    x : array_like
        Any shape. ±∞ give 1 and 0.

    Returns
    -------
    ndarray
        Same shape and dtype.

    Notes
    -----
    Nothing overflows: large negative arguments go through exp(x) / (1 + exp(x)).
    """
    x = as_float("x", x)
    return _narrow(special.expit(x), x.dtype)


def gelu(x: Any) -> np.ndarray:
    """Weigh each number by the chance that a standard normal one is smaller: x · Φ(x), the exact (erf) form.

    Parameters
    ----------
    x : array_like
        Any shape.

    Returns
    -------
    ndarray
        Same shape and dtype.

    Notes
    -----
    Φ(x) = ½ (1 + erf(x / √2)) is taken as ½ erfc(−x / √2) for negative x, where the sum would cancel.

    References
    ----------
    1606.08415, section 2.
    """
    x = as_float("x", x)
    with np.errstate(under="ignore"):  # far out on the left the product is smaller than any number
        return _narrow(x * special.ndtr(x), x.dtype)


def gelu_tanh(x: Any) -> np.ndarray:
    """Return GELU by its tanh formula: 0.5 x (1 + tanh(√(2/π)(x + 0.044715 x³))), off by at most 5e-4.

    Parameters
    ----------
    x : array_like
        Any shape.

    Returns
    -------
    ndarray
        Same shape and dtype.

    References
    ----------
    1606.08415, section 2; GPT-2 calls it ``gelu_new``.
    """
    x = as_float("x", x)
    root = x.dtype.type(np.sqrt(2.0 / np.pi))  # a scalar of the array's dtype: a float64 one would widen the result
    with np.errstate(under="ignore", over="ignore"):
        inner = root * (x + x.dtype.type(0.044715) * x * x * x)
        return np.asanyarray(x.dtype.type(0.5) * x * (x.dtype.type(1) + np.tanh(inner)))


def silu(x: Any) -> np.ndarray:
    """Weigh each number by its own sigmoid: x · sigmoid(x), also called swish.

    Parameters
    ----------
    x : array_like
        Any shape.

    Returns
    -------
    ndarray
        Same shape and dtype.

    References
    ----------
    1702.03118, eq. 2 [recalled].
    """
    x = as_float("x", x)
    with np.errstate(under="ignore"):
        return _narrow(x * special.expit(x), x.dtype)


def _narrow(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return to ``dtype``: SciPy widens float16 and bfloat16 to float64."""
    return values.astype(dtype, copy=False)
