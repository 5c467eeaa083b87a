"""What a dtype can hold, and where a kernel rounds: the two inputs of every error bound.

Equation source: the attention sheet, section 2.8 (precision classes, rounding without ml_dtypes).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "DTYPES",
    "Precision",
    "overflow_threshold",
    "precision_class",
    "round_to",
    "smallest_normal",
    "smallest_subnormal",
    "unit_roundoff",
]

DTYPES = ("float64", "float32", "float16", "bfloat16")

# (bits of the significand with the hidden one, exponent of the smallest normal number)
_FORMATS = {"float64": (53, -1022), "float32": (24, -126), "float16": (11, -14), "bfloat16": (8, -126)}


def _format(dtype: str) -> tuple[int, int]:
    if dtype not in _FORMATS:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(map(repr, DTYPES))}")
    return _FORMATS[dtype]


def unit_roundoff(dtype: str) -> float:
    """Return u, half the gap between 1 and the next number of ``dtype``: the largest relative error of a rounding."""
    return 2.0 ** -_format(dtype)[0]


def smallest_normal(dtype: str) -> float:
    """Return the smallest positive number of ``dtype`` that has a full significand."""
    return 2.0 ** _format(dtype)[1]


def smallest_subnormal(dtype: str) -> float:
    """Return the smallest positive number of ``dtype``: the spacing of its numbers near zero."""
    bits, exponent = _format(dtype)
    return 2.0 ** (exponent - bits + 1)


def overflow_threshold(dtype: str) -> float:
    """Return the smallest positive number that rounds to infinity in ``dtype``."""
    bits, exponent = _format(dtype)
    if dtype == "float64":
        return float("inf")  # itself not a float64
    return 2.0 ** (1 - exponent) * 2.0 * (1.0 - 2.0 ** -(bits + 1))


def round_to(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round every number to the nearest one that ``dtype`` can hold, ties to even.

    Parameters
    ----------
    x : array_like
        Numbers of any shape.
    dtype : str
        ``float64``, ``float32``, ``float16`` or ``bfloat16``.

    Returns
    -------
    ndarray of float64
        The rounded numbers; too large ones are infinite, NaN stays NaN.

    Notes
    -----
    bfloat16 is rounded once, from float64: going through float32 in round-to-nearest would round twice and move
    numbers that lie just beside the middle of two bfloat16 numbers.
    """
    _format(dtype)
    wide = np.asarray(x, dtype=np.float64)
    if dtype == "float64":
        return wide.copy()
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            return _round_to_bfloat16(wide)
        return wide.astype(dtype).astype(np.float64)


def _round_to_bfloat16(wide: np.ndarray) -> np.ndarray:
    narrow = wide.astype(np.float32, order="C")
    exact = (narrow == wide) | np.isnan(wide)
    bits = narrow.reshape(-1).view(np.uint32).reshape(narrow.shape)
    # round to odd: truncate to float32 and keep 'something was cut off' in the last bit, so that no tie is invented
    bits = np.where(exact, bits, (bits - (np.abs(narrow) > np.abs(wide))) | 1).astype(np.uint32)
    nearest_even = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    rounded = np.ascontiguousarray(nearest_even, dtype=np.uint32).reshape(-1).view(np.float32).reshape(narrow.shape)
    return np.where(np.isnan(wide), np.nan, rounded.astype(np.float64))


class Precision(NamedTuple):
    """Where a kernel rounds: six unit roundoffs, and what its numbers do near zero.

    Attributes
    ----------
    name, dtype : str
        The class that an adapter declares, and the dtype of inputs and outputs.
    u_x, u_s, u_e, u_p, u_a, u_o : float
        Unit roundoff of the product operands (beyond the inputs' own), of stored scores, of the exponential and the
        softmax arithmetic, of stored weights, of accumulators, of the output.
    eta_p, eta_o, eta_a : float
        Smallest subnormal number of the stored weights, the output and the accumulators.
    normal_d, normal_a : float
        Smallest normal number of ``dtype`` and of the accumulators: what flushing subnormals to zero may lose.
    accumulator : str
        The dtype of sums.
    """

    name: str
    dtype: str
    u_x: float
    u_s: float
    u_e: float
    u_p: float
    u_a: float
    u_o: float
    eta_p: float
    eta_o: float
    eta_a: float
    normal_d: float
    normal_a: float
    accumulator: str

    @property
    def reduced(self) -> bool:
        """Whether inputs and outputs have 16 bits."""
        return self.dtype in ("float16", "bfloat16")

    def flush_floor(self, terms: int) -> float:
        """Return what flushing subnormals to zero may add to an error that sums ``terms`` terms."""
        sums = 0.0 if self.dtype == "float16" else (terms + 2) * self.normal_a  # no device flushes float16's sums
        return 2.0 * self.normal_d + sums


def precision_class(name: str | None, dtype: str) -> Precision:
    """Return the precision class that a backend declares by ``name``, at ``dtype``.

    Parameters
    ----------
    name : {"fused", "eager", "low", "tf32"} or None
        ``fused``: scores in float32, weights rounded once before they meet the values. ``eager``: operands, scores
        and weights are stored in the dtype. ``low``: sums are rounded to the dtype too. ``tf32``: float32 operands
        cut to 11 bits. None: ``eager`` for 16-bit dtypes, everything in the dtype for the others.
    dtype : str
        ``float64``, ``float32``, ``float16`` or ``bfloat16``.

    Returns
    -------
    Precision
        Classes made for 16-bit dtypes mean the plain class in float32 and float64, and ``tf32`` means the default
        class outside float32, so that a backend may declare one name for all its dtypes.
    """
    u = unit_roundoff(dtype)
    if name not in (None, "fused", "eager", "low", "tf32", dtype):
        raise ValueError(f"precision={name!r} is not one of 'fused', 'eager', 'low', 'tf32'")
    single, half = 2.0**-24, 2.0**-11
    plain = dtype in ("float64", "float32")
    if plain:
        chosen, roundoffs, accumulator = dtype, (u, u, u, u, u, u), dtype
        if name == "tf32" and dtype == "float32":
            chosen, roundoffs = "tf32", (half, single, single, half, single, single)
    elif name == "fused":
        chosen, roundoffs, accumulator = "fused", (0.0, single, single, u, single, u), "float32"
    elif name == "low":
        chosen, roundoffs, accumulator = "low", (u, u, u, u, u, u), dtype
    else:
        chosen, roundoffs, accumulator = "eager", (u, u, single, u, single, u), "float32"
    tiny = smallest_subnormal(dtype)
    return Precision(
        chosen,
        dtype,
        *roundoffs,
        eta_p=tiny,
        eta_o=tiny,
        eta_a=smallest_subnormal(accumulator),
        normal_d=smallest_normal(dtype),
        normal_a=smallest_normal(accumulator),
        accumulator=accumulator,
    )
