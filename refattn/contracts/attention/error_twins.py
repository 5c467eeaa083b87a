"""The low-precision twins of attention: the plain algorithm, run once with the roundings of a precision class.

Equation source: the attention sheet, section 2.8, Step D. A twin supplies what the statistical scale misses: ties,
sums whose terms all have one sign, accumulators that stagnate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.conformance.precision import Precision, precision_class, round_to
from refattn.primitives.attention_arguments import AttentionCall, check_attention, from_layout
from refattn.primitives.attention_pipeline import Forward, attend, key_distances

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["Machine", "Run", "attend_on", "machines", "rounder", "twin", "twin_run", "worse"]

BLOCK = 16  # keys of a block in the blocked order

Rounder = "Callable[[np.ndarray], np.ndarray]"


class Run(NamedTuple):
    """What one twin computes: everything that `attention` may be asked for, heads before lengths, in float64."""

    out: np.ndarray
    weights: np.ndarray
    lse: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    softcapped: np.ndarray


class Machine(NamedTuple):
    """How a twin computes: roundings of operands, scores, weights, softmax and output, and its sums.

    ``product(a, b)`` returns a bᵀ-style matrix products a @ b; ``total(e)`` sums the last axis.
    """

    operand: Callable[[np.ndarray], np.ndarray]
    score: Callable[[np.ndarray], np.ndarray]
    weight: Callable[[np.ndarray], np.ndarray]
    softmax: Callable[[np.ndarray], np.ndarray]
    output: Callable[[np.ndarray], np.ndarray]
    product: Callable[[np.ndarray, np.ndarray], np.ndarray]
    total: Callable[[np.ndarray], np.ndarray]
    normalised: bool  # whether weights are divided before they meet the values


def rounder(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that rounds to ``dtype``."""
    return lambda x: round_to(x, dtype)


def twin(case: Case, precision: Precision | str | None = None) -> Run:
    """Run the plain algorithm in a precision class: each row as the worst of the class's twins has it.

    Parameters
    ----------
    case : Case
        Of `attention`.
    precision : Precision or str, optional
        The declared class, or its name.

    Returns
    -------
    Run
        ``out`` in the layout of the case.
    """
    u = precision if isinstance(precision, Precision) else precision_class(precision, case.dtype)
    options = {name: x for name, x in case.options.items() if name != "returns"}
    arrays = {name: x for name, x in case.arrays.items() if name not in ("dout", "dlse")}
    call = check_attention(**arrays, **options)
    run = twin_run(call, attend(call), u)
    return run._replace(out=from_layout(run.out, call.layout, np.float64))


@np.errstate(all="ignore")
def twin_run(call: AttentionCall, exact: Forward, u: Precision) -> Run:
    """Return the row-wise worst of the twins of a precision class, measured against the exact run."""
    first, *others = (attend_on(call, exact, machine) for machine in machines(u))
    for other in others:
        first = Run(*map(worse, first, other, (getattr(exact, name) for name in Run._fields)))
    return first


def worse(first: np.ndarray, second: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return, row by row, the run that lies farther from the exact one; of arrays of few axes, element by element."""

    def distance(x: np.ndarray) -> np.ndarray:
        error = np.abs(np.subtract(x, exact, out=np.zeros_like(x), where=np.isfinite(x) & np.isfinite(exact)))
        return np.asarray(np.sum(error, axis=-1, keepdims=True)) if x.ndim > 3 else error

    return np.where(distance(second) > distance(first), second, first)


def machines(u: Precision) -> list[Machine]:
    """Return the machines whose runs are the twins of a precision class."""

    def keep(x: np.ndarray) -> np.ndarray:
        return x

    single, own = rounder("float32"), rounder(u.dtype)
    if u.dtype in ("float64", "float32"):
        kind, store = (np.float64, keep) if u.dtype == "float64" else (np.float32, single)
        cut = _cut_to_tf32 if u.name == "tf32" else keep
        blocked, blocked_total = _blocked(kind)
        sequential, sequential_total = _sequential(kind)
        first = Machine(cut, store, cut, store, store, blocked, blocked_total, normalised=False)
        return [first, first._replace(product=sequential, total=sequential_total)]
    wide, wide_total = _blocked(np.float32)
    if u.name == "fused":
        return [Machine(keep, single, own, single, own, wide, wide_total, normalised=False)]
    eager = Machine(own, own, own, single, own, wide, wide_total, normalised=True)
    if u.name == "eager":
        return [eager]
    narrow, narrow_total = _sequential(np.float64, own)
    low = Machine(own, own, own, own, own, narrow, narrow_total, normalised=True)
    return [low, eager._replace(total=narrow_total)]


def _cut_to_tf32(x: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(x)
    return np.asarray(np.ldexp(np.rint(mantissa * 2.0**11), exponent - 11))


def _sequential(kind: Any, rounding: Any = None) -> tuple[Any, Any]:
    """Return a product and a sum that take one term after the other, each result rounded."""
    to = rounding or (lambda x: x)

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = np.moveaxis(a.astype(kind), -1, 0)[..., None], np.moveaxis(b.astype(kind), -2, 0)[..., None, :]
        total = np.zeros(np.broadcast_shapes(a.shape[1:], b.shape[1:]), kind)
        for left, right in zip(a, b, strict=True):
            total = to(total + to(left * right))
        return np.asarray(total, np.float64)

    def add(e: np.ndarray) -> np.ndarray:
        total = np.zeros(e.shape[:-1], kind)
        for term in np.moveaxis(e.astype(kind), -1, 0):
            total = to(total + term)
        return total[..., None].astype(np.float64)

    return multiply, add


def _blocked(kind: Any) -> tuple[Any, Any]:
    """Return a product and a sum that take blocks of terms and then add the blocks."""

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(kind), b.astype(kind)
        total = np.zeros((*a.shape[:-1], b.shape[-1]), kind)
        for j in range(0, a.shape[-1], BLOCK):
            total += a[..., j : j + BLOCK] @ b[..., j : j + BLOCK, :]
        return total.astype(np.float64)

    def add(e: np.ndarray) -> np.ndarray:
        starts = np.arange(0, e.shape[-1], BLOCK)
        e = e.astype(kind)
        blocks = np.add.reduceat(e, starts, axis=-1) if len(starts) else e
        return np.asarray(np.sum(blocks, axis=-1, keepdims=True, dtype=kind), np.float64)

    return multiply, add


def attend_on(call: AttentionCall, exact: Forward, x: Machine) -> Run:
    """Run the pipeline of the reference on one machine."""
    k, v = (np.repeat(array, call.group, axis=1) for array in (call.k, call.v))
    s = _scores(call, k, x)
    t = s
    if call.softcap is not None:
        t = x.score(call.softcap * x.score(np.tanh(x.score(s / call.softcap))))
    z = t
    if call.bias is not None:
        z = x.score(z + call.bias)
    if call.slopes is not None:
        z = x.score(z - x.score(call.slopes[:, :, None, None] * key_distances(call)))
    z = np.where(exact.visible, z, -np.inf)
    m, sink = _maximum(call, z)
    e = np.where(exact.visible, x.softmax(np.exp(x.softmax(z - m))), 0.0)
    l = x.total(e) + x.softmax(np.exp(sink - m))
    safe = l + (l == 0)
    P = x.weight(x.softmax(e / safe))
    v = np.where(np.isfinite(v), v, 0.0)
    o = x.product(P, v) if x.normalised else x.product(x.weight(e), v) / safe
    L = np.where(l > 0, x.output(m + x.softmax(np.log(safe))), -np.inf)[..., 0]
    P, o = _with_policy(call, exact, P, o)
    return Run(x.output(o), x.output(P), L, x.output(z), x.output(s), x.output(t))


def _scores(call: AttentionCall, k: np.ndarray, x: Machine) -> np.ndarray:
    """Return τ q k: the scale split over both operands where those are rounded, else once at the end."""
    rows = np.swapaxes(k, -1, -2)
    if not x.normalised:
        return x.score(call.scale * x.score(x.product(x.operand(call.q), x.operand(rows))))
    root = x.operand(np.sqrt(np.abs(call.scale)))
    return x.score(x.product(x.operand(np.sign(call.scale) * root * call.q), x.operand(root * rows)))


def _maximum(call: AttentionCall, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sink = np.full((1, 1, 1), -np.inf) if call.sinks is None else call.sinks[:, None, None]
    m = np.maximum(np.max(z, axis=-1, keepdims=True, initial=-np.inf), sink)
    return np.where(np.isneginf(m), 0.0, m), sink


def _with_policy(call: AttentionCall, exact: Forward, P: np.ndarray, o: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fill the empty rows of the uniform policy; those of the others are exact and are not compared."""
    if call.empty != "uniform":
        return P, o
    return np.where(exact.filled, exact.weights, P), np.where(exact.filled, exact.out, o)
