"""Mistakes of empty rows, shortcuts that look right on easy data, and arithmetic below the declared precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.precision import round_to
from refattn.contracts.attention.bugs.plant import keys_longer_than, partly_hidden, planted, stored_in
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.pipeline import sees

if TYPE_CHECKING:
    from refattn.conformance.contract import Case
    from refattn.contracts.attention.call import Call

__all__ = ["EMPTY", "PRECISION", "SHORTCUTS"]

SIXTEEN_BITS = ("float16", "bfloat16")


def empty_nan(_c: Call, out: np.ndarray, none: np.ndarray) -> Any:
    return np.where(none, np.nan, out)


def empty_uniform(c: Call, out: np.ndarray, none: np.ndarray) -> Any:
    return np.where(none, c.v.mean(axis=2, keepdims=True), out)


def _zero_rows(case: Case) -> bool:
    """Act where a row sees nothing, the policy is zero and no sink fills the row."""
    hides = partly_hidden(case) or "bias" in case.arrays
    policy = case.options.get("empty", "zero") == "zero" and "sinks" not in case.arrays
    return bool(hides and policy and sizes(case).sk and not sees(case).any(axis=-1).all())


EMPTY = (
    planted(
        "empty_nan",
        "fully masked rows give NaN (policy: zero)",
        "A sum of no weights is 0: guard the division, and the subtraction −∞ − (−∞).",
        _zero_rows,
        empty=empty_nan,
    ),
    planted(
        "empty_uniform",
        "fully masked rows give the mean of all values (policy: zero)",
        "Decide emptiness on masks and bias; a finite fill makes all keys equally likely.",
        _zero_rows,
        empty=empty_uniform,
    ),
)


def mean_v(_c: Call, _P: np.ndarray, see: np.ndarray) -> Any:
    return see / np.maximum(see.sum(axis=-1, keepdims=True), 1)


def zeros(_c: Call, out: np.ndarray) -> Any:
    return np.zeros_like(out)


def dropout_on(_c: Call, P: np.ndarray, _see: np.ndarray) -> Any:
    kept = np.random.default_rng(0).random(P.shape) >= 0.1
    return P * kept / 0.9


def weights_rounded_int8(_c: Call, P: np.ndarray, _see: np.ndarray) -> Any:
    return np.round(P * 256) / 256


SHORTCUTS = (
    planted(
        "mean_v",
        "mean of the visible values",
        "Weigh the values; where all scores are small the mean looks right.",
        keys_longer_than(1),
        weights=mean_v,
    ),
    planted("zeros", "all zeros", "Write the output.", output=zeros),
    planted("dropout_on", "dropout 0.1 left on", "Dropout belongs to training.", weights=dropout_on),
    planted(
        "weights_rounded_int8",
        "weights rounded to multiples of 1/256",
        "Keep the weights in the declared precision.",
        keys_longer_than(1),
        weights=weights_rounded_int8,
    ),
)


def _cut_to_11_bits(x: np.ndarray) -> Any:
    bits = x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).astype(float)


def tf32_products(c: Call) -> Any:
    return c.tau * (_cut_to_11_bits(c.q) @ _cut_to_11_bits(c.k).swapaxes(-1, -2))


def tf32_output(c: Call, P: np.ndarray) -> Any:
    return _cut_to_11_bits(P) @ _cut_to_11_bits(c.v)


def weights_bf16(_c: Call, P: np.ndarray, _see: np.ndarray) -> Any:
    return round_to(P, "bfloat16")


def exp_cubic(_c: Call, x: np.ndarray) -> Any:
    whole, part = np.divmod(x / np.log(2.0), 1.0)
    cubic = 1 + part * (0.695117 + part * (0.227645 + part * 0.077067))  # off by up to 8.6e-5
    return np.where(np.isneginf(x), 0.0, np.exp2(whole) * cubic)


def precision_eager(c: Call) -> Any:
    dtype, root = stored_in(c), np.sqrt(abs(c.tau))
    s = round_to(c.q * root, dtype) @ round_to(c.k * root, dtype).swapaxes(-1, -2)
    return round_to(np.sign(c.tau) * s, dtype)


def precision_low(c: Call, P: np.ndarray) -> Any:
    dtype, out = stored_in(c), np.zeros((*P.shape[:-1], c.v.shape[-1]))
    for j in range(P.shape[-1]):
        out = round_to(out + round_to(P[..., j, None] * c.v[..., None, j, :], dtype), dtype)
    return out


PRECISION = (
    planted(
        "tf32_products",
        "float32 operands cut to 10 mantissa bits (tensor-core default)",
        "Switch TF32 off, or declare the precision class tf32.",
        dtypes=("float32",),
        score=tf32_products,
        product=tf32_output,
    ),
    planted(
        "weights_bf16",
        "weights stored in bfloat16 in a float32 kernel",
        "Keep the weights in float32, or declare a 16-bit class.",
        keys_longer_than(1),
        dtypes=("float64", "float32"),
        weights=weights_bf16,
    ),
    planted(
        "exp_cubic",
        "exp from a cubic polynomial for 2^frac (relative error up to 1.5e-4)",
        "Evaluate exponentials to the precision of the accumulator.",
        keys_longer_than(1),
        dtypes=("float64", "float32"),
        exponential=exp_cubic,
    ),
    planted(
        "precision_eager",
        "declared fused, but logits and operands rounded to the input dtype",
        "Keep scores in float32, or declare the class eager.",
        dtypes=(),  # right for who declares eager, as every 16-bit backend does that declares nothing
        score=precision_eager,
    ),
    planted(
        "precision_low",
        "declared fused or eager, but sums accumulated in the input dtype",
        "Accumulate in float32, or declare the class low.",
        dtypes=SIXTEEN_BITS,
        product=precision_low,
    ),
)
