"""Correct attention kernels in low precision, and the rules by which published tests judge them.

The kernels round where real ones do, and share nothing with the twins of the error model. The rules are re-implemented
from the projects that they are named after; they judge a whole tensor at once, as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.conformance.precision import round_to, unit_roundoff
from refattn.primitives.attention_arguments import check_attention, from_layout
from refattn.primitives.attention_pipeline import masked_logits, padded_queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

CLASSES = {
    "float64": ("float64", None),
    "float32": ("float32", None),
    "float16 fused": ("float16", "fused"),
    "float16 eager": ("float16", "eager"),
    "float16 low": ("float16", "low"),
    "bfloat16 fused": ("bfloat16", "fused"),
    "bfloat16 eager": ("bfloat16", "eager"),
    "bfloat16 low": ("bfloat16", "low"),
}
"""Precision classes: dtype, and where the kernel rounds."""


class Problem(NamedTuple):
    """A case laid out for kernels: heads repeated, all biases in one, visibility as booleans."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    scale: float
    softcap: float | None
    extra: np.ndarray
    visible: np.ndarray
    sink: np.ndarray
    layout: str


def problem(case: Case) -> Problem:
    """Return what a kernel works on; hidden keys and values are zero."""
    options = {name: value for name, value in case.options.items() if name != "returns"}
    call = check_attention(**case.arrays, **options)
    exact = masked_logits(call)
    visible = np.broadcast_to(exact.visible & ~padded_queries(call), call.shape)  # (B, Hq, Sq, Sk)
    extra = np.where(visible, exact.logits, 0.0) - np.where(visible, exact.softcapped, 0.0)
    k, v = (np.repeat(x, call.group, axis=1) for x in (call.k, call.v))  # (B, Hq, Sk, ·)
    sink = np.full(call.shape[1], -np.inf) if call.sinks is None else call.sinks
    finite = [np.where(np.isfinite(x), x, 0.0) for x in (k, v)]
    return Problem(call.q, *finite, call.scale, call.softcap, extra, visible, sink[:, None, None], call.layout)


def kernels(name: str) -> dict[str, Callable[[Case], np.ndarray]]:
    """Return correct kernels of a precision class by name."""
    dtype, style = CLASSES[name]
    if style is None:
        kind = np.dtype(dtype).type
        return {f"blocks of {size}": lambda case, size=size: flash(case, kind, size) for size in (7, 16, 64)}
    if style == "fused":
        return {f"blocks of {size}": lambda case, size=size: flash(case, np.float32, size) for size in (7, 16, 64)}
    if style == "eager":
        return {"scale on both": lambda case: eager(case, split=True), "scale on scores": eager}
    return {"sums in order": low}


def logits(x: Problem, kind: type, columns: slice) -> np.ndarray:
    """Return the logits of a block of keys in one floating type, −∞ where hidden."""
    s = kind(x.scale) * (x.q.astype(kind) @ x.k[:, :, columns].astype(kind).swapaxes(-1, -2))  # (B, Hq, Sq, block)
    t = s if x.softcap is None else kind(x.softcap) * np.tanh(s / kind(x.softcap))
    z = t + x.extra[..., columns].astype(kind)
    return np.where(x.visible[..., columns], z, kind(-np.inf))


@np.errstate(all="ignore")
def flash(case: Case, kind: type, size: int) -> np.ndarray:
    """Online softmax over blocks of keys; 16-bit weights are rounded once, before they meet the values."""
    x = problem(case)
    m = np.broadcast_to(x.sink, (*x.q.shape[:3], 1)).astype(kind)
    l = np.where(m > -np.inf, kind(1), kind(0))
    a = np.zeros((*x.q.shape[:3], x.v.shape[-1]), kind)
    for start in range(0, x.k.shape[2], size):
        block = slice(start, start + size)
        z = logits(x, kind, block)
        new = np.maximum(m, z.max(axis=-1, keepdims=True))
        shift = np.where(new > -np.inf, new, kind(0))
        e, rho = np.exp(z - shift), np.exp(m - shift)
        stored = e if np.dtype(kind).name == case.dtype else round_to(e, case.dtype)
        l = rho * l + e.sum(axis=-1, keepdims=True)
        a = rho * a + stored.astype(kind) @ x.v[:, :, block].astype(kind)
        m = new
    return finished(case, x, np.divide(a, l, out=np.zeros_like(a), where=l > 0))


@np.errstate(all="ignore")
def eager(case: Case, *, split: bool = False) -> np.ndarray:
    """Store every intermediate in the dtype, as a framework's expression does; softmax and sums in float32."""
    x = problem(case)

    def stored(array: np.ndarray) -> np.ndarray:
        return round_to(array, case.dtype).astype(np.float32)

    if split:
        root = stored(np.sqrt(abs(x.scale)))
        s = stored(stored(x.q * root * np.sign(x.scale)) @ stored(x.k * root).swapaxes(-1, -2))
    else:
        s = stored(stored(x.q.astype(np.float32) @ x.k.astype(np.float32).swapaxes(-1, -2)) * np.float32(x.scale))
    t = s if x.softcap is None else stored(x.softcap * stored(np.tanh(stored(s / x.softcap))))
    z = np.where(x.visible, stored(t + x.extra), np.float32(-np.inf))
    P = softmax_rows(z, x.sink.astype(np.float32))
    return finished(case, x, stored(P) @ x.v.astype(np.float32))


@np.errstate(all="ignore")
def low(case: Case) -> np.ndarray:
    """Round every product and every partial sum to the dtype, one after the other."""
    x = problem(case)

    def keep(array: np.ndarray) -> np.ndarray:
        return round_to(array, case.dtype)

    def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        total = np.zeros((*left.shape[:-1], right.shape[-1]))
        for c in range(left.shape[-1]):
            total = keep(total + keep(left[..., c, None] * right[..., c, None, :]))
        return total

    s = keep(x.scale * product(x.q, x.k.swapaxes(-1, -2)))
    t = s if x.softcap is None else keep(x.softcap * keep(np.tanh(keep(s / x.softcap))))
    z = np.where(x.visible, keep(t + x.extra), -np.inf)
    m = np.maximum(z.max(axis=-1, keepdims=True), x.sink)
    m = np.where(m > -np.inf, m, 0.0)
    e, l = keep(np.exp(keep(z - m))), keep(np.exp(keep(x.sink - m)))
    for j in range(e.shape[-1]):
        l = keep(l + e[..., j, None])
    P = keep(np.divide(e, l, out=np.zeros_like(e), where=l > 0))
    return finished(case, x, product(P, x.v))


def softmax_rows(z: np.ndarray, sink: np.ndarray) -> np.ndarray:
    """Return the weights of the keys; rows that see nothing are zero."""
    m = np.maximum(z.max(axis=-1, keepdims=True), sink)
    m = np.where(m > -np.inf, m, 0)
    e = np.exp(z - m)
    l = e.sum(axis=-1, keepdims=True) + np.exp(sink - m)
    return np.divide(e, l, out=np.zeros_like(e), where=l > 0)


def finished(case: Case, x: Problem, out: np.ndarray) -> np.ndarray:
    """Apply the policy of empty rows, round the output to the dtype, and bring it into the caller's layout."""
    out = round_to(out, case.dtype)
    empty = ~x.visible.any(axis=-1, keepdims=True) & (x.sink == -np.inf)
    if case.options.get("empty") == "nan":
        out = np.where(empty, np.nan, out)
    return from_layout(out, x.layout, np.float64)


def rules(dtype: str) -> dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], bool]]:
    """Return published rules by name: ``(output, reference, low-precision twin) -> accepted``."""
    relative, absolute = {"float32": (1.3e-6, 1e-5), "float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5)}[dtype]
    eps = 2 * unit_roundoff(dtype)

    def rms(o: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(np.mean((o - y) ** 2)) / (np.sqrt(np.mean(y**2)) + 1e-8))

    def largest(o: np.ndarray, y: np.ndarray) -> float:
        return float(np.max(np.abs(o - y), initial=0.0))

    return {
        "twice the twin (FlashAttention)": lambda o, y, w: (
            largest(o, y) <= 2 * largest(w, y) + 1e-5 * (dtype == "float32")
        ),
        "2 (twin + ε max) (attention-gym)": lambda o, y, w: (
            largest(o, y) <= 2 * (largest(w, y) + eps * np.abs(y).max())
        ),
        "assert_close defaults (torch)": lambda o, y, _w: bool(
            np.all(np.abs(o - y) <= absolute + relative * np.abs(y))
        ),
        "relative RMS < 0.005 (FLA)": lambda o, y, _w: rms(o, y) < 0.005,
        "relative RMS < 0.01 or max < 0.3 (FLA's CI)": lambda o, y, _w: rms(o, y) < 0.01 or largest(o, y) <= 0.3,
        "allclose 1e-2 (KernelBench)": lambda o, y, _w: bool(np.all(np.abs(o - y) <= 1e-2 + 1e-2 * np.abs(y))),
    }
