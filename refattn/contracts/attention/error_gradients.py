"""How far rounding may move the gradients of attention: first-order propagation through the backward pass.

Equation source: the attention sheet, section 2.8, 'Gradients'; those of bias, sinks, slopes and scale are sums of the
same terms [our definition]. Names as there: G = dO Vᵀ, Δ = rowsum(dO ∘ o), X = G − Δ + dL, dZ = P X, φ = 1 − (t/c)².
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.conformance.precision import Precision, precision_class
from refattn.contracts.attention.error_budgets import Fields, finished, in_layout, open_rows
from refattn.contracts.attention.error_gradient_twins import gradient_twin
from refattn.contracts.attention.error_steps import (
    C_A,
    Exact,
    LogitErrors,
    exact_run,
    logit_errors,
    output_errors,
    scale_of,
    sum_error,
)
from refattn.primitives.attention_arguments import to_layout
from refattn.primitives.attention_gradients import Gradients, attention_vjp
from refattn.primitives.attention_pipeline import key_distances

if TYPE_CHECKING:
    from refattn.conformance.budget import Budget
    from refattn.conformance.contract import Case
    from refattn.primitives.attention_arguments import AttentionCall

__all__ = ["gradient_budget"]

LINES = (
    "bound = first-order propagation of the errors of P (r), G = dO V^T, Delta = sum dO o and dZ = P (G - Delta)\n"
    "sigma² = the same with independent roundings, but the error of Delta common to a row"
)


class Backward(NamedTuple):
    """The exact backward pass, heads before lengths: what all errors are multiplied with.

    ``P`` (B, Hq, Sq, Sk) holds the weights of rows that see something; ``P_all`` also those of the uniform policy.
    """

    P: np.ndarray
    P_all: np.ndarray
    dO: np.ndarray
    dL: np.ndarray
    q: np.ndarray
    k: np.ndarray
    G: np.ndarray
    Delta: np.ndarray
    X: np.ndarray
    dZ: np.ndarray
    phi: np.ndarray
    dphi: np.ndarray
    dS: np.ndarray


class Errors(NamedTuple):
    """Bounds (r, δΔ, δZ, δS) and variances × 3 (vP, vΔ, vZ, vS) of the backward pass in one precision class."""

    r: np.ndarray
    d_delta: np.ndarray
    d_z: np.ndarray
    d_s: np.ndarray
    v_p: np.ndarray
    v_delta: np.ndarray
    v_z: np.ndarray
    v_s: np.ndarray


def _rows(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


@np.errstate(all="ignore")
def _backward(x: Exact, dO: np.ndarray, dL: np.ndarray) -> Backward:
    call, f = x.call, x.forward
    P_all = np.where(x.visible, np.nan_to_num(f.weights), 0.0)
    P = np.where(f.visible, P_all, 0.0)
    q, k = (np.nan_to_num(a, posinf=0.0, neginf=0.0) for a in (call.q, np.repeat(call.k, call.group, axis=1)))
    G = dO @ _rows(x.v)
    Delta = np.sum(dO * np.nan_to_num(f.out), axis=-1, keepdims=True)
    X = np.where(x.visible, G - Delta + dL[..., None], 0.0)
    if call.softcap is None:
        phi, dphi = np.ones_like(P), np.zeros_like(P)
    else:
        phi, dphi = 1 - (f.softcapped / call.softcap) ** 2, 2 * np.abs(f.softcapped) / call.softcap**2
    dZ = P * X
    return Backward(P, P_all, dO, dL, q, k, G, Delta, X, dZ, phi, dphi, dZ * phi)


@np.errstate(all="ignore")
def _errors(x: Exact, b: Backward, e: LogitErrors, out: tuple[np.ndarray, np.ndarray], u: Precision) -> Errors:
    """Return the error of everything that the gradients are sums of."""
    bound, sigma = out
    dO, v, dv, n = np.abs(b.dO), np.abs(x.v), x.v.shape[-1], x.n
    mean = np.sum(b.P * e.epsilon, axis=-1, keepdims=True)
    mean = mean + np.sum(x.forward.sink_weights * e.sink, axis=-1, keepdims=True)
    r = np.minimum(np.expm1(np.minimum(e.epsilon + mean, 700.0)), 1e100) + u.u_p + sum_error(n, u) + 16 * u.u_e
    d_g = sum_error(dv, u) * (dO @ _rows(v)) + u.u_s * np.abs(b.G) + dv * u.eta_a
    y = np.abs(np.nan_to_num(x.forward.out))
    d_delta = np.sum(dO * bound, axis=-1, keepdims=True)
    d_delta = d_delta + (sum_error(dv, u) + sum_error(n, u) + u.u_s) * np.sum(dO * y, axis=-1, keepdims=True)
    d_delta = d_delta + np.sum(b.P * d_g, axis=-1, keepdims=True)
    size, dZ = np.abs(b.X), np.abs(b.dZ)
    d_z = b.P * r * size + b.P * (1 + r) * (d_g + d_delta) + (u.u_p + 2 * u.u_s) * dZ + u.eta_p * size
    d_z = np.where(x.forward.visible, d_z, 0.0)
    d_s = np.abs(b.phi) * d_z + dZ * (b.dphi * e.epsilon + 3 * u.u_s)
    row = np.sum(b.P * e.w, axis=-1, keepdims=True)
    v_p = b.P**2 * (e.w + u.u_p**2 + row)
    v_g = u.u_s**2 * b.G**2 + dv * u.u_a**2 * (b.dO**2 @ _rows(x.v**2))
    v_delta = np.sum(b.dO**2 * 3 * sigma**2, axis=-1, keepdims=True) + u.u_s**2 * b.Delta**2
    v_delta = v_delta + np.sum(b.P**2 * (v_g + u.u_p**2 * b.G**2), axis=-1, keepdims=True)
    v_z = b.X**2 * v_p + b.P**2 * v_g + (u.u_p**2 + 2 * u.u_s**2) * b.dZ**2 + (u.eta_p * b.X) ** 2
    v_z = np.where(x.forward.visible, v_z, 0.0)
    v_s = b.phi**2 * v_z + b.dZ**2 * b.dphi**2 * e.w + 2 * u.u_s**2 * b.dS**2
    return Errors(r, d_delta, d_z, d_s, v_p, v_delta, v_z, v_s)


@np.errstate(all="ignore")
def _main(x: Exact, b: Backward, e: Errors, g: Gradients, u: Precision) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return bound and variance × 3 of dQ, dK and dV."""
    call, n, tau = x.call, x.n, abs(x.call.scale)
    seen, touched = np.where(x.forward.visible, 1.0, 0.0), np.where(x.visible, 1.0, 0.0)
    operands, terms = 2 * u.u_x + u.u_s + u.u_p, call.group * call.q.shape[2]
    k, q, dS, dO = np.abs(b.k), np.abs(b.q), np.abs(b.dS), np.abs(b.dO)
    squares = 2 * u.u_x**2 + u.u_s**2 + u.u_p**2

    dq = tau * (e.d_s @ k + (sum_error(n, u) + operands) * (dS @ k) + 3 * u.eta_p * (seen @ k))
    dq = dq * (1 + u.u_o) + u.u_o * np.abs(g.dq) + u.eta_o
    v_dq = e.v_s @ k**2 + (squares + n * u.u_a**2 / 2) * (dS**2 @ k**2) + e.v_delta * ((b.P * b.phi) @ b.k) ** 2
    v_dq = tau**2 * (v_dq + u.eta_p**2 * (seen @ k**2)) + u.u_o**2 * g.dq**2

    heads = tau * (
        _rows(e.d_s) @ q + (sum_error(terms, u) + operands) * (_rows(dS) @ q) + 3 * u.eta_p * _rows(seen) @ q
    )
    dk = _joined(call, heads, tau * (_rows(dS) @ q), u)
    per_head = tau * (_rows(b.dS) @ b.q)
    common = _rows(e.v_s + (b.P * b.phi) ** 2 * e.v_delta) @ q**2
    v_dk = tau**2 * (
        common + (squares + terms * u.u_a**2 / 2) * (_rows(dS**2) @ q**2) + u.eta_p**2 * _rows(seen) @ q**2
    )
    v_dk = _grouped(call, v_dk + u.u_o**2 * per_head**2) + u.u_o**2 * g.dk**2

    P = b.P_all
    heads = _rows(P * e.r) @ dO + (sum_error(terms, u) + u.u_p) * (_rows(P) @ dO) + u.eta_p * _rows(touched) @ dO
    dv = _joined(call, heads, _rows(P) @ dO, u)
    per_head = _rows(P) @ b.dO
    v_dv = _rows(e.v_p) @ dO**2 + (u.u_p**2 + terms * u.u_a**2 / 2) * (_rows(P**2) @ dO**2)
    v_dv = v_dv + u.eta_p**2 * _rows(touched) @ dO**2
    v_dv = _grouped(call, v_dv + u.u_o**2 * per_head**2) + u.u_o**2 * g.dv**2
    return {"dq": (dq, v_dq), "dk": (dk, v_dk), "dv": (dv, v_dv)}


def _grouped(call: AttentionCall, x: np.ndarray) -> np.ndarray:
    """Sum over the query heads that share a kv head: (B, Hq, ...) to (B, Hkv, ...)."""
    kv_heads = call.k.shape[1]
    return np.asarray(x.reshape(x.shape[0], kv_heads, call.group, *x.shape[2:]).sum(axis=2)) if kv_heads else x


def _joined(call: AttentionCall, heads: np.ndarray, size: np.ndarray, u: Precision) -> np.ndarray:
    """Add the heads of a group, each stored once and the sum of them again."""
    total = _grouped(call, heads)
    return np.asarray(total + call.group * (u.u_o * (total + _grouped(call, size)) + u.eta_o))


@np.errstate(all="ignore")
def _others(
    x: Exact, b: Backward, e: Errors, logits: LogitErrors, u: Precision
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return bound and variance × 3 of dbias, dslopes, dscale and dsinks, in the shapes of the checked arguments."""
    call, found = x.call, {}
    if call.bias is not None:
        found["dbias"] = _summed(b.dZ, e.d_z, e.v_z, (b.P, e.v_delta), call.bias.shape, u)
    if call.slopes is not None:
        far = key_distances(call)
        rows = (*call.slopes.shape, 1, 1)
        parts = _summed(b.dZ * far, e.d_z * far, e.v_z * far**2, (b.P * far, e.v_delta), rows, u)
        found["dslopes"] = (parts[0].reshape(call.slopes.shape), parts[1].reshape(call.slopes.shape))
    products = b.q @ _rows(b.k)
    tau2, d = call.scale**2 or 1.0, call.q.shape[-1]
    size = x.a / (abs(call.scale) or 1.0) if call.scale else np.abs(b.q) @ _rows(np.abs(b.k))
    operand = (2 * u.u_x + C_A * (d + 2) * u.u_a) * size + u.u_s * np.abs(products)
    v_operand = (2 * u.u_x**2 + d * u.u_a**2 / 2) * (x.a2 / tau2) + (u.u_s**2 + d * u.u_a**2 / 3) * products**2
    bound = e.d_s * np.abs(products) + np.abs(b.dS) * operand
    variance = e.v_s * products**2 + b.dS**2 * v_operand
    parts = _summed(b.dS * products, bound, variance, (b.P * b.phi * products, e.v_delta), (1, 1, 1, 1), u)
    found["dscale"] = (parts[0].reshape(()), parts[1].reshape(()))
    if call.sinks is not None:
        found["dsinks"] = _sinks(x, b, e, logits, u)
    return found


def _summed(
    terms: np.ndarray, bound: np.ndarray, variance: np.ndarray, common: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, ...], u: Precision,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return bound and variance × 3 of ``terms`` summed to ``shape``; ``common`` is what the error of Δ multiplies."""
    axes = tuple(a for a, (n, full) in enumerate(zip(shape, terms.shape, strict=True)) if n != full)

    def total(a: np.ndarray) -> np.ndarray:
        return np.asarray(np.sum(a, axis=axes, keepdims=True))

    count = int(np.prod([terms.shape[a] for a in axes], dtype=int))
    size = total(np.abs(terms))
    most = total(bound) + sum_error(count, u) * size + u.u_o * size + u.eta_o + count * u.eta_a
    weight, v_delta = common
    if 3 in axes:  # the error of Δ is the same for all keys of a row
        weight = np.sum(weight, axis=-1, keepdims=True)
    rest = tuple(a for a in axes if weight.shape[a] != 1)
    shared = np.sum(weight**2 * v_delta, axis=rest, keepdims=True)
    spread = total(variance) + shared + count * u.u_a**2 / 2 * total(terms**2) + u.u_o**2 * total(terms) ** 2
    return most, spread


def _sinks(x: Exact, b: Backward, e: Errors, logits: LogitErrors, u: Precision) -> tuple[np.ndarray, np.ndarray]:
    P, sigma = x.forward.sink_weights, np.asarray(x.call.sinks)
    finite = np.where(np.isfinite(sigma), sigma, 0.0)[:, None, None]
    X = b.dL[..., None] - b.Delta
    mean = np.sum(b.P * logits.epsilon, axis=-1, keepdims=True) + P * logits.sink
    r = np.expm1(np.minimum(logits.sink + mean, 700.0)) + u.u_p + sum_error(x.n, u) + 16 * u.u_e
    bound = P * r * np.abs(X) + P * (1 + r) * e.d_delta + (u.u_p + 2 * u.u_s) * np.abs(P * X) + u.eta_p
    w = u.u_s**2 * finite**2 + u.u_e**2 * (finite - x.m) ** 2 + np.sum(b.P * logits.w, axis=-1, keepdims=True)
    variance = P**2 * X**2 * (w + 2 * u.u_p**2 + 2 * u.u_s**2)
    heads = (1, x.call.q.shape[1], 1, 1)
    most, spread = _summed(P * X, bound, variance, (P, e.v_delta), heads, u)
    return most.reshape(-1), spread.reshape(-1)


def gradient_budget(
    case: Case, precision: Precision | str | None = None, *, names: tuple[str, ...] | None = None
) -> dict[str, Budget]:
    """Return the budget of every gradient of a case of `attention_vjp`.

    Parameters
    ----------
    case : Case
        Arrays of `attention` and dout, dlse; its options.
    precision : Precision or str, optional
        The declared class, or its name.
    names : tuple of str, optional
        The gradients wanted, of dq, dk, dv, dbias, dsinks, dslopes, dscale; all that exist if not given.

    Returns
    -------
    dict of str to Budget
        Rows of dq are queries, those of dk and dv keys. An open forward row opens all keys that its heads see.
    """
    u = precision if isinstance(precision, Precision) else precision_class(precision, case.dtype)
    x = exact_run(case.arrays, case.options)
    dO = to_layout("dout", case.arrays["dout"], x.call.layout, case.options.get("q_heads"))
    dL = case.arrays.get("dlse", np.zeros(x.forward.lse.shape))
    b = _backward(x, dO, dL)
    exact = _exact_gradients(case)
    low = gradient_twin(x, b, exact, u)
    parts, spread = _both_classes(x, b, exact, u)
    budgets = {}
    for name, (bound, variance) in parts.items():
        if names is not None and name not in names:
            continue
        y = getattr(exact, name)
        fields = Fields(
            y, bound.reshape(y.shape), scale_of(variance, u).reshape(y.shape), *_state(x, spread, name, y, u)
        )
        run = getattr(low, name).reshape(y.shape)
        terms = int(x.n.max(initial=1)) if name == "dq" else x.call.group * x.call.q.shape[2]
        budget = finished(fields, run, u, terms)
        budgets[name] = in_layout(budget, x.call.layout) if name in ("dq", "dk", "dv") else budget
    return budgets


def _both_classes(
    x: Exact, b: Backward, exact: Gradients, u: Precision
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Return bounds (with the reference's own) and variances of all gradients, and ν of the forward rows."""
    own = precision_class(None, "float64")
    classes = [(logit_errors(x, v), v) for v in (u, own)]
    outs = output_errors(x, classes)
    results = []
    for (logits, v), out in zip(classes, outs, strict=True):
        e = _errors(x, b, logits, (out.bound, out.sigma), v)
        results.append(_main(x, b, e, exact, v) | _others(x, b, e, logits, v))
    mine, reference = results
    return {name: (bound + reference[name][0], variance) for name, (bound, variance) in mine.items()}, outs[0].spread


def _exact_gradients(case: Case) -> Gradients:
    """Return the reference's gradients, dq, dk and dv with heads before lengths."""
    options: dict[str, Any] = {name: value for name, value in case.options.items() if name != "returns"}
    g = attention_vjp(**{**case.arrays, **options})
    layout = options.get("layout", "bhsd")
    heads = (options.get("q_heads"), options.get("kv_heads"), options.get("kv_heads"))
    first = [to_layout(n, getattr(g, n), layout, h) for n, h in zip(("dq", "dk", "dv"), heads, strict=True)]
    return g._replace(dq=first[0], dk=first[1], dv=first[2])


def _state(x: Exact, spread: np.ndarray, name: str, y: np.ndarray, u: Precision) -> tuple[Any, Any, int, str]:
    """Return empty and open rows of one gradient; every gradient that sums over queries is open if one of them is."""
    rows = open_rows(x, spread, u)
    if name == "dq":
        return np.zeros(rows.shape, bool), rows, 1, LINES
    shape = y.shape[:-1]
    if name in ("dk", "dv"):
        many = x.call.group * x.call.q.shape[2] * u.u_a > 0.5
        per_head = np.any(rows.reshape(*shape[:2], x.call.group * rows.shape[2]), axis=-1, keepdims=True)
        return np.zeros(shape, bool), np.broadcast_to(per_head | many, shape), 1, LINES
    count = x.n.size * x.forward.scores.shape[-1] if name != "dbias" else x.call.q.shape[0] * x.call.q.shape[1]
    return np.zeros(shape, bool), np.full(shape, bool(rows.any()) or count * u.u_a > 0.5), min(y.ndim, 1), LINES
