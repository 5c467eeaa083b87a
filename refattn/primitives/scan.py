"""Gated linear recurrence s_t = g_t s_{t−1} + (1 − g_t) v_t, restarted every chunk (RAT, 2507.04416).

Three forms of one function: the loop (the definition), the parallel scan, and the closed form as a weighted sum.
Equation source: the layer released with 2507.04416; labels rat-4, rat-scan and rat-closed of the page on RAT.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_shape

__all__ = ["gated_scan", "gated_scan_closed_form", "gated_scan_parallel", "gated_scan_weights"]


def gated_scan(
    gate: Any,
    value: Any,
    *,
    chunk_size: int | None = None,
    initial_state: Any | None = None,
) -> np.ndarray:
    """Keep a share g of the state at every token and fill the rest with the new value, one token after the other.

    Parameters
    ----------
    gate : array_like, shape (..., T, D)
        Forget gate g of each channel, usually in [0, 1]; 0 forgets, 1 ignores the value.
    value : array_like, shape (..., T, D)
        What enters; it is multiplied by 1 − g here, so pass it as it is. Leading axes broadcast with the gate's.
    chunk_size : int, optional
        L: the state starts again from zero at tokens L, 2L, …; the last chunk may be shorter. None never restarts.
    initial_state : array_like, shape (..., D), optional
        The state before the first token; zero if not given.

    Returns
    -------
    ndarray, shape (..., T, D)
        The state after every token, in the common dtype of gate and value.

    Raises
    ------
    ValueError
        If gate and value do not end in the same (T, D), ``chunk_size`` is below 1, or the state does not fit.

    Notes
    -----
    Each state is a convex combination of zero, the initial state and the values so far: gates in [0, 1] cannot make
    it grow.

    References
    ----------
    2507.04416 and the layer released with it, label rat-4.
    """
    gate, value = _checked(gate, value, chunk_size)
    *lead, length, width = value.shape
    state = _initial(initial_state, (*lead, width), value.dtype)  # (..., D)
    states: np.ndarray = np.empty_like(value)  # (..., T, D)
    for t in range(length):
        if t > 0 and chunk_size is not None and t % chunk_size == 0:
            state = np.zeros_like(state)
        # eq: rat-4
        state = gate[..., t, :] * state + (1 - gate[..., t, :]) * value[..., t, :]  # (..., D)
        states[..., t, :] = state
    return states


def gated_scan_parallel(gate: Any, value: Any, *, chunk_size: int | None = None) -> np.ndarray:
    """Compute `gated_scan` in about log₂ L rounds, in each of which all tokens work at once.

    Parameters
    ----------
    gate, value : array_like, shape (..., T, D)
        As in `gated_scan`.
    chunk_size : int, optional
        As in `gated_scan`.

    Returns
    -------
    ndarray, shape (..., T, D)
        The state after every token.

    Raises
    ------
    ValueError
        As in `gated_scan`.

    Notes
    -----
    One token maps the state s to a s + b with a = g, b = (1 − g) v. Two such maps in a row are one:
    (a₁, b₁) then (a₂, b₂) is (a₂ a₁, a₂ b₁ + b₂), and this rule is associative. Round r joins every token's map, which
    covers the δ = 2^r tokens up to it, with the map that ends δ tokens earlier (Hillis and Steele). A chunk starts
    anew because its first map has a = 0.

    Cumulative products of gates are never divided by one another: a gate of 0 would make the quotient 0/0.

    References
    ----------
    Hillis and Steele, "Data parallel algorithms", 1986 [recalled].
    """
    gate, value = _checked(gate, value, chunk_size)
    length = value.shape[-2]
    span = min(chunk_size or length, length)  # tokens that one state can depend on
    starts = np.arange(length) % (chunk_size or max(length, 1)) == 0  # (T,)
    a = np.where(starts[:, None], 0, gate).astype(value.dtype, copy=False)  # (..., T, D)
    b: np.ndarray = (1 - gate) * value  # (..., T, D)
    shift = 1
    while shift < span:
        # eq: rat-scan
        joined = a[..., shift:, :] * b[..., :-shift, :] + b[..., shift:, :]
        b = np.concatenate([b[..., :shift, :], joined], axis=-2)
        a = np.concatenate([a[..., :shift, :], a[..., shift:, :] * a[..., :-shift, :]], axis=-2)
        shift *= 2
    return b


def gated_scan_weights(gate: Any, *, chunk_size: int | None = None) -> np.ndarray:
    """Return how much of each value is left in each state: W[t, s] = (1 − g_s) g_{s+1} ⋯ g_t.

    Parameters
    ----------
    gate : array_like, shape (..., T, D)
        As in `gated_scan`.
    chunk_size : int, optional
        As in `gated_scan`.

    Returns
    -------
    ndarray, shape (..., T, T, D)
        Zero where s > t and where s and t lie in different chunks. Needs T² D numbers: for teaching and tests.

    Raises
    ------
    ValueError
        If ``chunk_size`` is below 1.

    Notes
    -----
    The weights of a state sum to 1 minus the product of its chunk's gates so far: the missing share is the zero that
    the chunk started from.
    """
    gate, _ = _checked(gate, gate, chunk_size)
    *lead, length, width = gate.shape
    weights: np.ndarray = np.zeros_like(gate, shape=(*lead, length, length, width))  # (..., T, T, D)
    for s in range(length):
        end = length if chunk_size is None else min(length, (s // chunk_size + 1) * chunk_size)
        # eq: rat-closed
        weights[..., s:end, s, :] = 1 - gate[..., s : s + 1, :]
        weights[..., s + 1 : end, s, :] *= np.cumprod(gate[..., s + 1 : end, :], axis=-2)
    return weights


def gated_scan_closed_form(gate: Any, value: Any, *, chunk_size: int | None = None) -> np.ndarray:
    """Compute `gated_scan` as a weighted sum of values: s_t = Σ_s W[t, s] v_s.

    Parameters
    ----------
    gate, value : array_like, shape (..., T, D)
        As in `gated_scan`.
    chunk_size : int, optional
        As in `gated_scan`.

    Returns
    -------
    ndarray, shape (..., T, D)
        The state after every token.

    Raises
    ------
    ValueError
        As in `gated_scan`.

    Notes
    -----
    This is attention whose weights come from gates instead of scores; it costs O(T²) and shows what the loop hides.
    """
    gate, value = _checked(gate, value, chunk_size)
    weights = gated_scan_weights(gate, chunk_size=chunk_size)  # (..., T, T, D)
    states: np.ndarray = np.sum(weights * value[..., None, :, :], axis=-2)  # (..., T, D)
    return states


def _checked(gate: Any, value: Any, chunk_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return gate and value in one shape and dtype."""
    gate, value = as_float("gate", gate), as_float("value", value)
    require(chunk_size is None or chunk_size >= 1, f"chunk_size={chunk_size!r} must be >= 1")
    require(
        min(gate.ndim, value.ndim) >= 2 and gate.shape[-2:] == value.shape[-2:],
        f"gate has shape {gate.shape} and value {value.shape}, expected both to end in the same (T, D)",
    )
    dtype = np.promote_types(gate.dtype, value.dtype)
    shape = _common_shape(gate.shape, value.shape)
    gate = np.broadcast_to(gate.astype(dtype, copy=False), shape, subok=True)
    value = np.broadcast_to(value.astype(dtype, copy=False), shape, subok=True)
    return gate, value


def _common_shape(gate: tuple[int, ...], value: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(gate, value)
    except ValueError:
        raise ValueError(f"leading axes of gate {gate} and value {value} do not broadcast") from None


def _initial(state: Any | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if state is None:
        return np.zeros(shape, dtype)
    given: np.ndarray = as_float("initial_state", state).astype(dtype, copy=False)
    require_shape("initial_state", given, shape)
    return given
