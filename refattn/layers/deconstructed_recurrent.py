"""Two variants of attention as recurrences: what they keep does not grow with the sequence (2510.11602).

The second-order Taylor polynomial of exp is a product of features of the query and of the key, so sums over the past
can be kept instead of the past. The gate of ``non_approximate`` does not even look at the query.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refattn.layers.deconstructed import FORMS
from refattn.primitives.arguments import as_float, require, require_one_of, require_shape

__all__ = ["GateState", "TaylorState", "approximate_recurrent", "non_approximate_recurrent"]


class TaylorState(NamedTuple):
    """Sums over the past: Σ f(k) vᵀ (..., D, dv) and Σ f(k) (..., D)."""

    S: Any
    z: Any


class GateState(NamedTuple):
    """Sums over the past, relative to e^m: Σ e^{s−m} v (..., dv), Σ e^{s−m} (...), and the largest s so far (...)."""

    n: Any
    z: Any
    m: Any


def approximate_recurrent(
    q: Any, k: Any, v: Any, *, form: str = "joint", eps: float = 0.0, initial: TaylorState | None = None
) -> tuple[np.ndarray, TaylorState]:
    """Compute ``approximate`` attention token by token, from two sums.

    Parameters
    ----------
    q, k : array_like, shape (..., L, dh)
        Queries and keys.
    v : array_like, shape (..., L, dv)
        Values.
    form, eps
        As in `refattn.layers.deconstructed.attention_map`.
    initial : TaylorState, optional
        What earlier tokens left.

    Returns
    -------
    out : ndarray, shape (..., L, dv)
    state : TaylorState
        With D = 1 + dh + dh² features; 1 + 2 dh for ``per_order``.

    Raises
    ------
    ValueError
        For shapes that do not fit, L = 0, or an unknown form.

    Notes
    -----
    The paper's table of cache sizes, 6bd + 4bd²/h bytes, counts the squares of ``per_order``. The joint form needs
    h (1 + dh + dh²)(dv + 1) numbers.

    References
    ----------
    2510.11602, equations 6 and 14–17; the features are those of Based, 2402.18668.
    """
    require_one_of("form", form, FORMS)
    require(np.isfinite(eps) and eps >= 0, f"eps={eps!r} must be finite and >= 0")
    q, k, v = _aligned(q, k, v)
    f_q, f_k = _features(q, form), _features(k, form)  # (..., L, D)
    cuts = [1, 1 + q.shape[-1]] if form == "per_order" else []
    S, z = _start(f_k, v) if initial is None else _given(initial, f_k, v)
    rows = []
    for t in range(q.shape[-2]):
        # eq: dec-state
        S = S + f_k[..., t, :, None] * v[..., t, None, :]  # (..., D, dv)
        z = z + f_k[..., t, :]  # (..., D)
        f_parts, S_parts, z_parts = np.split(f_q[..., t, :], cuts, -1), np.split(S, cuts, -2), np.split(z, cuts, -1)
        orders = zip(f_parts, S_parts, z_parts, strict=True)  # one group of features, or three
        rows.append(sum(_ratio(f, S_o, z_o, eps) for f, S_o, z_o in orders))
    return np.stack(rows, axis=-2), TaylorState(S, z)


def non_approximate_recurrent(
    q: Any, k: Any, v: Any, *, initial: GateState | None = None
) -> tuple[np.ndarray, GateState]:
    """Compute ``non_approximate`` attention token by token, from a weighted sum and its weight.

    Parameters
    ----------
    q, k : array_like, shape (..., L, dh)
        Queries, after their SiLU, and keys.
    v : array_like, shape (..., L, dv)
        Values.
    initial : GateState, optional
        What earlier tokens left.

    Returns
    -------
    out : ndarray, shape (..., L, dv)
    state : GateState

    Raises
    ------
    ValueError
        For shapes that do not fit, or L = 0.

    Notes
    -----
    The sums are kept relative to the largest score so far, so that no exponential overflows [our definition].

    References
    ----------
    2510.11602, equation 18.
    """
    q, k, v = _aligned(q, k, v)
    s = np.sum(q * k, axis=-1) / math.sqrt(q.shape[-1])  # (..., L)
    state = None if initial is None else _given_gate(initial, v)
    rows = []
    for t in range(q.shape[-2]):
        state = _advance(state, s[..., t], v[..., t, :])
        rows.append(state.n / state.z[..., None])
    assert state is not None  # there is at least one token
    return np.stack(rows, axis=-2), state


def _advance(state: GateState | None, s: np.ndarray, v: np.ndarray) -> GateState:
    """Let one token in; the first one sets the scale."""
    if state is None:
        return GateState(v, np.ones_like(s), s)
    m = np.maximum(state.m, s)  # (...)
    kept, new = np.exp(state.m - m), np.exp(s - m)  # (...)
    # eq: dec-gate-state
    return GateState(kept[..., None] * state.n + new[..., None] * v, kept * state.z + new, m)


def _features(u: np.ndarray, form: str) -> np.ndarray:
    """Return f(u), with f(q)·f(k) = 1 + x + x²/2 for the joint form."""
    dh = u.shape[-1]
    if form == "per_order":
        square = u**2 / math.sqrt(2)
    else:
        square = (u[..., :, None] * u[..., None, :]).reshape(*u.shape[:-1], dh * dh) / math.sqrt(2 * dh)
    # eq: dec-features
    return np.concatenate([np.ones_like(u[..., :1]), u / dh**0.25, square], axis=-1)  # (..., L, D)


def _ratio(f_q: np.ndarray, S: np.ndarray, z: np.ndarray, eps: float) -> Any:
    numerator = (f_q[..., None, :] @ S)[..., 0, :]  # (..., dv)
    return numerator / (np.sum(f_q * z, axis=-1, keepdims=True) + eps)


def _start(f_k: np.ndarray, v: np.ndarray) -> TaylorState:
    lead, D = f_k.shape[:-2], f_k.shape[-1]
    return TaylorState(np.zeros((*lead, D, v.shape[-1]), v.dtype), np.zeros((*lead, D), v.dtype))


def _given(initial: TaylorState, f_k: np.ndarray, v: np.ndarray) -> TaylorState:
    S, z = as_float("initial.S", initial.S), as_float("initial.z", initial.z)
    require_shape("initial.S", S, (*f_k.shape[:-2], f_k.shape[-1], v.shape[-1]))
    require_shape("initial.z", z, (*f_k.shape[:-2], f_k.shape[-1]))
    return TaylorState(S, z)


def _given_gate(initial: GateState, v: np.ndarray) -> GateState:
    n, z, m = (as_float(f"initial.{name}", x) for name, x in zip(initial._fields, initial, strict=True))
    require_shape("initial.n", n, (*v.shape[:-2], v.shape[-1]))
    require_shape("initial.z", z, v.shape[:-2])
    require_shape("initial.m", m, v.shape[:-2])
    return GateState(n, z, m)


def _aligned(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    q, k, v = as_float("q", q), as_float("k", k), as_float("v", v)
    require(q.ndim >= 2 and q.shape[-2] > 0, f"q has shape {q.shape}, expected (..., L, dh) with L >= 1")
    require_shape("k", k, q.shape)
    require(
        v.ndim >= 2 and v.shape[:-1] == q.shape[:-1], f"v has shape {v.shape}, expected (..., L, dv) beside {q.shape}"
    )
    dtype = np.result_type(q.dtype, k.dtype, v.dtype)
    return q.astype(dtype, copy=False), k.astype(dtype, copy=False), v.astype(dtype, copy=False)
