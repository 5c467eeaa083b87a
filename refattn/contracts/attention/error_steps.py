"""How far rounding may move attention, Steps A to C: errors of the logits, bound and statistical scale of the output.

Equation source: the attention sheet, section 2.8. All arrays have heads before lengths.

If every logit of a row moves by δ_j, |δ_j| ≤ ε_j, the output moves by exactly Σ p_j (e^{δ_j} − 1)(v_j − y) / Σ p_l
e^{δ_l}, because Σ p_j (v_j − y) = 0. So a constant added to a whole row costs nothing, a row that sees one key is
exact, and no error leaves the hull of the visible values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.attention_arguments import AttentionCall, check_attention
from refattn.primitives.attention_pipeline import Forward, attend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refattn.conformance.precision import Precision

__all__ = [
    "C_A",
    "C_E",
    "Exact",
    "LogitErrors",
    "OutputErrors",
    "exact_run",
    "least_denominator",
    "logit_errors",
    "output_errors",
    "scale_of",
    "sum_error",
]

C_A = 2.0  # adders of matrix units truncate
C_E = 4.0  # fast exponentials err by some units in the last place
BLOCK = 1 << 21  # elements of |v − y| held at a time
LARGEST_EPSILON = 700.0  # e^700 is still finite


class Exact(NamedTuple):
    """The float64 run that everything is measured from, and what Steps A to C take from it.

    Attributes
    ----------
    call, forward
        Checked arguments; every intermediate of the reference.
    a, a2 : ndarray, shape (B, Hq, Sq, Sk)
        |τ| Σ|q||k| and τ² Σ q²k².
    z, m : ndarray, shape (B, Hq, Sq, Sk) and (B, Hq, Sq, 1)
        Logits, 0 where hidden; their maximum, sink included.
    visible : ndarray of bool, shape (B, Hq, Sq, Sk)
        What a row sums over: all keys in an empty row of the uniform policy.
    v : ndarray, shape (B, Hq, Sk, dv)
        Values of each query head, 0 where not finite (the reference is not finite there either).
    n : ndarray, shape (B, Hq, Sq, 1)
        Terms of the row's sums.
    empty : ndarray of bool, shape (B, Hq, Sq)
        Rows whose output the policy decides, exactly.
    """

    call: AttentionCall
    forward: Forward
    a: np.ndarray
    a2: np.ndarray
    z: np.ndarray
    m: np.ndarray
    visible: np.ndarray
    v: np.ndarray
    n: np.ndarray
    empty: np.ndarray


class LogitErrors(NamedTuple):
    """Step A: bounds ε and variances × 3 w of the scores, the softcapped scores, the logits, and all before the sum."""

    scores: tuple[np.ndarray, np.ndarray]
    softcapped: tuple[np.ndarray, np.ndarray]
    logits: tuple[np.ndarray, np.ndarray]
    epsilon: np.ndarray
    w: np.ndarray
    sink: np.ndarray


class OutputErrors(NamedTuple):
    """Steps B and C: bound and σ of the output, (B, Hq, Sq, dv), and ν, the error of the row's logits, (B, Hq, Sq)."""

    bound: np.ndarray
    sigma: np.ndarray
    spread: np.ndarray


def exact_run(arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Exact:
    """Run the reference in float64 on the arrays and options of a case."""
    extra = {name: x for name, x in arrays.items() if name not in ("q", "k", "v", "dout", "dlse")}
    plain = {name: x for name, x in options.items() if name != "returns"}
    call = check_attention(arrays["q"], arrays["k"], arrays["v"], **extra, **plain)
    f = attend(call)
    q, k, v = np.abs(call.q), np.repeat(np.abs(call.k), call.group, axis=1), np.repeat(call.v, call.group, axis=1)
    k_rows = np.swapaxes(k, -1, -2)
    visible = np.broadcast_to(f.visible, f.scores.shape)
    sink = f.sink_weights.shape[-1]
    z = np.where(visible, f.logits, 0.0)
    m = np.max(np.where(visible, f.logits, -np.inf), axis=-1, keepdims=True, initial=-np.inf)
    if call.sinks is not None:
        m = np.maximum(m, call.sinks[:, None, None])
    nothing = ~np.any(visible, axis=-1)
    uniform = np.broadcast_to(f.filled[..., 0], nothing.shape) & (call.empty == "uniform")
    visible = visible | uniform[..., None]
    with np.errstate(all="ignore"):
        return Exact(
            call,
            f,
            abs(call.scale) * (q @ k_rows),
            call.scale**2 * (q**2 @ k_rows**2),
            z,
            np.where(np.isfinite(m), m, 0.0),
            visible,
            np.where(np.isfinite(v), v, 0.0),
            np.sum(visible, axis=-1, keepdims=True) + sink,
            nothing & ~uniform,
        )


def sum_error(n: Any, u: Precision) -> Any:
    """Return g(n), the relative error of a sum over n keys; the quarter covers rescales of blocks of 16."""
    return C_A * (1.25 * n + 10.0) * u.u_a


@np.errstate(all="ignore")
def logit_errors(x: Exact, u: Precision) -> LogitErrors:
    """Return Step A: how far each logit may move in the precision class, and its variance × 3."""
    call, s, t = x.call, x.forward.scores, x.forward.softcapped
    d = call.q.shape[-1]
    g_d = C_A * (d + 2) * u.u_a
    # the product
    epsilon = (2 * u.u_x + u.u_x**2 + g_d) * x.a + 2 * u.u_s * np.abs(s)
    w = 2 * u.u_x**2 * x.a2 + 2 * u.u_s**2 * s**2 + d * u.u_a**2 * (x.a2 / 2 + s**2 / 3)
    scores = (epsilon, w)
    if call.softcap is not None:
        c, size = call.softcap, np.abs(s)
        above = c * np.tanh((size + epsilon) / c) - np.abs(t)
        below = np.abs(t) - c * np.tanh(np.maximum(size - epsilon, 0.0) / c)
        epsilon = np.maximum(above, below) + 3 * u.u_s * np.abs(t)
        w = w * (1 - (t / c) ** 2) ** 2 + 2 * u.u_s**2 * t**2
    softcapped = (epsilon, w)
    if call.bias is not None or call.slopes is not None:
        added = np.where(x.visible, x.z - t, 0.0)
        epsilon = epsilon + 2 * u.u_s * (np.abs(x.z) + np.abs(added))
        w = w + u.u_s**2 * (x.z**2 + added**2)
    logits = (epsilon, w)
    epsilon = epsilon + u.u_e * (np.abs(x.z) + np.abs(x.m) + C_E)
    w = w + u.u_e**2 * (x.z - x.m) ** 2
    seen = np.broadcast_to(x.forward.visible, x.z.shape)  # not the empty rows of the uniform policy: no logits there
    epsilon, w = np.where(seen, np.minimum(epsilon, LARGEST_EPSILON), 0.0), np.where(seen, w, 0.0)
    return LogitErrors(scores, softcapped, logits, epsilon, w, _sink_error(x, u))


def _sink_error(x: Exact, u: Precision) -> np.ndarray:
    if x.call.sinks is None:
        return np.zeros((*x.z.shape[:3], 0))
    sigma = np.where(np.isfinite(x.call.sinks), np.abs(x.call.sinks), 0.0)[:, None, None]
    return np.broadcast_to(u.u_s * sigma + u.u_e * (sigma + np.abs(x.m) + C_E), (*x.z.shape[:3], 1))


def least_denominator(x: Exact, e: LogitErrors) -> np.ndarray:
    """Return Σ p e^{−ε}, sink included: the least that the denominator may shrink to, (B, Hq, Sq, 1)."""
    keys = np.sum(x.forward.weights * np.exp(-e.epsilon), axis=-1, keepdims=True)
    return np.asarray(keys + np.sum(x.forward.sink_weights * np.exp(-e.sink), axis=-1, keepdims=True))


@np.errstate(all="ignore")
def output_errors(x: Exact, classes: list[tuple[LogitErrors, Precision]]) -> list[OutputErrors]:
    """Return Step B, the elementwise bound, and Step C, the statistical scale, of the output in precision classes.

    Parameters
    ----------
    x : Exact
        The exact run.
    classes : list of (LogitErrors, Precision)
        Step A in each class.
    """
    P, y = np.where(x.visible, x.forward.weights, 0.0), np.where(np.isfinite(x.forward.out), x.forward.out, 0.0)
    growth = np.stack([P * np.expm1(e.epsilon) for e, _ in classes])  # (classes, B, Hq, Sq, Sk)
    moved, hull = _distances(growth, x.visible, x.v, y)
    return [_output_errors(x, e, u, part, hull) for (e, u), part in zip(classes, moved, strict=True)]


def _output_errors(x: Exact, e: LogitErrors, u: Precision, moved: np.ndarray, hull: np.ndarray) -> OutputErrors:
    """Return Steps B and C from Σ p (e^ε − 1)|v − y| and the hull."""
    P, P_sink, v, n = np.where(x.visible, x.forward.weights, 0.0), x.forward.sink_weights, x.v, x.n
    y = np.where(np.isfinite(x.forward.out), x.forward.out, 0.0)
    with_sink = np.sum(P_sink, axis=-1, keepdims=True) > 0
    moved = moved + np.sum(P_sink * np.expm1(e.sink), axis=-1, keepdims=True) * np.abs(y)
    hull = np.where(with_sink, np.maximum(hull, np.abs(y)), hull)
    b1 = np.fmin(moved / least_denominator(x, e), hull)
    ybar, total = P @ np.abs(v), np.where(x.visible, 1.0, 0.0) @ np.abs(v)
    b2 = (u.u_p + 2 * sum_error(n, u) + 3 * C_E * u.u_e) * (ybar + b1) + u.eta_p * total + (2 * n + 10) * u.eta_a
    b3 = u.u_o * (np.abs(y) + b1 + b2) + u.eta_o
    pw, p2 = P**2 * e.w, P**2
    leaning = np.maximum(pw @ v**2 - 2 * y * (pw @ v) + y**2 * np.sum(pw, axis=-1, keepdims=True), 0.0)
    squares = p2 @ v**2
    variance = leaning + u.u_p**2 * squares + u.u_o**2 * y**2 + n * u.u_a**2 * (squares / 2 + 2 * y**2 / 3)
    spread = np.sqrt(np.sum(P * e.w, axis=-1) / 3)
    return OutputErrors(b1 + b2 + b3, scale_of(variance, u, n), spread)


def scale_of(variance: np.ndarray, u: Precision, n: Any = 0) -> np.ndarray:
    """Return σ from the variance × 3, with half steps near zero: 3 of the output, n of the accumulators."""
    near_zero = np.hypot(u.eta_o, np.sqrt(n / 3) * u.eta_a)  # their squares would underflow
    return np.asarray(np.hypot(np.sqrt(variance / 3), near_zero))


def _distances(weights: np.ndarray, visible: np.ndarray, v: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ_j weight_j |v_j − y| for each set of weights, and max over visible j of |v_j − y|, block by block."""
    sets, batch, hq, sq, sk = weights.shape
    heads, dv = batch * hq, v.shape[-1]
    w, see = np.moveaxis(weights, 0, -2).reshape(heads, sq, sets, sk), visible.reshape(heads, sq, sk)
    values, means = v.reshape(heads, sk, dv), y.reshape(heads, sq, dv)
    total, hull = np.zeros((heads, sq, sets, dv)), np.zeros(means.shape)
    step = max(1, BLOCK // max(sq * sk * dv, 1))
    rows = max(1, min(sq, BLOCK // max(sk * dv, 1)))
    for head in range(0, heads, step):
        h = slice(head, head + step)
        for row in range(0, sq, rows):
            i = slice(row, row + rows)
            distance = np.abs(values[h, None] - means[h, i, None])  # (heads, rows, Sk, dv)
            total[h, i] = w[h, i] @ distance
            distance *= see[h, i, :, None]
            hull[h, i] = np.max(distance, axis=-2, initial=0.0)
    return np.moveaxis(total, -2, 0).reshape(sets, *y.shape), hull.reshape(y.shape)
