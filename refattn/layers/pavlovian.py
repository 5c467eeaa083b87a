"""Attention as Pavlovian conditioning: keys are bells, values food, fast weights what has been learnt (2508.08289).

A head that adds v kᵀ to a matrix of fast weights for each token, and reads the matrix with its query, is linear
attention; it is also Hebb's rule. Other learning rules give the other members of the family, among them DeltaNet, whose
rule is that of Rescorla and Wagner. The rules stand in `refattn.layers.pavlovian_rules`, the form for long sequences in
`refattn.layers.pavlovian_chunked`. Equation labels (pav-…) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np

from refattn.layers.pavlovian_rules import ERROR_CORRECTING, RULES, Memory, Rates, bound_rows
from refattn.primitives.arguments import as_float, require, require_finite, require_one_of, require_shape
from refattn.primitives.softmax import softmax

__all__ = [
    "RULES",
    "linear_memory_read",
    "linear_memory_write",
    "pavlovian_attention",
    "polynomial_memory_read",
    "softmax_memory_read",
]


def linear_memory_write(
    keys: Any,
    values: Any,
    *,
    rule: str = "hebb",
    rate: float = 1.0,
    decay: float = 1.0,
    n_epochs: int = 1,
    initial: Any = None,
    return_history: bool = False,
    normalize_keys: bool = False,
    max_row_norm: float | None = None,
    lateral_rate: float = 0.1,
) -> np.ndarray:
    """Store pairs of keys and values in a matrix of association strengths, one pair after the other.

    Parameters
    ----------
    keys : array_like, shape (..., n, dk)
        The conditional stimuli k_t, which later serve as cues.
    values : array_like, shape (..., n, dv)
        The unconditional stimuli v_t; leading axes broadcast with those of the keys.
    rule : str
        One of `RULES`: ``hebb``, ``decay``, ``delta``, ``gated_delta``, ``oja``, ``oja_free``, ``bcm``, ``anti_hebb``,
        ``homeostatic``.
    rate : float
        η > 0. ``delta`` is stable for η < 2/‖k‖², ``gated_delta`` for η < (1 + 1/γ)/‖k‖².
    decay : float
        γ in (0, 1], what a step leaves of the old strengths; used by ``decay`` and ``gated_delta``.
    n_epochs : int
        How often the pairs are gone through.
    initial : array_like, shape (..., dv, dk), optional
        The strengths before the first pair; zero if not given.
    return_history : bool
        Return the strengths before the first and after every pair.
    normalize_keys : bool
        Divide each key by its norm first.
    max_row_norm : float, optional
        After each pair shrink longer rows of S to this norm, whatever the rule; None leaves them.
    lateral_rate : float
        η_U of ``anti_hebb``.

    Returns
    -------
    ndarray, shape (..., dv, dk), or (..., n_epochs·n + 1, dv, dk) with ``return_history``
        The strengths S, in the common dtype of keys and values.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is not finite, a parameter is out of range, an error-correcting rule would be
        unstable, a key that is to be normalised is zero, or the rule is unknown.

    Notes
    -----
    The paper equates conditioning and attention; the update for every rule is the published one, written in one
    notation [our definition]. ``bcm`` moves its threshold before using it (τ = 10, θ = 1 at the start). ``oja_free``
    looks at the values' width only, and zero strengths stay zero: give it an ``initial``. ``homeostatic`` is ``hebb``
    with ``max_row_norm=1``. Thresholds and lateral weights go on from epoch to epoch, but cannot be handed over.

    References
    ----------
    2508.08289; the delta rule as fast weights, 2102.11174.
    """
    keys, values = _pairs("keys", keys, "values", values)
    rates = _checked(rule, rate, decay, lateral_rate)
    require(index(n_epochs) >= 1, f"n_epochs={n_epochs!r} must be >= 1")
    require(max_row_norm is None or max_row_norm > 0, f"max_row_norm={max_row_norm!r} must be > 0")
    keys = _prepared(keys, rule, rates, normalize_keys=normalize_keys)
    memory = _start(keys, values, initial)
    history = [memory.S]
    for _ in range(n_epochs):
        for t in range(keys.shape[-2]):
            # eq: pav-1
            memory = RULES[rule](memory, keys[..., t, :], values[..., t, :], rates)
            memory = memory if max_row_norm is None else bound_rows(memory, max_row_norm)
            history.append(memory.S)
    return np.stack(history, axis=-3) if return_history else memory.S.copy()


def linear_memory_read(S: Any, queries: Any) -> np.ndarray:
    """Ask the memory what a cue predicts: o = S q.

    Parameters
    ----------
    S : array_like, shape (..., dv, dk)
        Association strengths, from `linear_memory_write`.
    queries : array_like, shape (..., m, dk)
        The cues.

    Returns
    -------
    ndarray, shape (..., m, dv)
        One answer for each cue; the cost does not depend on how many pairs are stored.

    Raises
    ------
    ValueError
        If the widths differ or a number is not finite.
    """
    S, queries = _finite("S", S), _finite("queries", queries)
    require(
        S.shape[-1] == queries.shape[-1], f"queries has width {queries.shape[-1]}, expected dk = {S.shape[-1]} of S"
    )
    # eq: pav-read
    return np.asanyarray(queries @ np.swapaxes(S, -1, -2))  # (..., m, dv)


def pavlovian_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    rule: str = "hebb",
    causal: bool = True,
    rate: float = 1.0,
    decay: float = 1.0,
    normalize_keys: bool = False,
) -> np.ndarray:
    """Attend by conditioning: token t stores its pair, then asks the memory with its query, o_t = S_t q_t.

    Parameters
    ----------
    q, k : array_like, shape (..., n, dk)
        Queries and keys.
    v : array_like, shape (..., n, dv)
        Values.
    rule, rate, decay, normalize_keys
        As in `linear_memory_write`.
    causal : bool
        Read after each write. Otherwise every query reads the memory of the whole sequence.

    Returns
    -------
    ndarray, shape (..., n, dv)
        In the common dtype of the three.

    Raises
    ------
    ValueError
        As `linear_memory_write` and `linear_memory_read`.

    Notes
    -----
    With ``hebb`` this is causal linear attention without a normaliser, ((Q Kᵀ) ∘ mask) V; with ``delta`` it is
    DeltaNet, with ``decay`` a retention head, with ``gated_delta`` gated DeltaNet, all with constant rates. Scores are
    not divided by √d.

    References
    ----------
    2508.08289; linear attention 2006.16236; DeltaNet 2406.06484; gated DeltaNet 2412.06464.
    """
    q = _finite("q", q)
    k, v = _pairs("k", k, "v", v)
    require(q.shape[-2:] == k.shape[-2:], f"q has shape {q.shape}, expected (..., n, dk) = {k.shape[-2:]} as k")
    options: dict[str, Any] = {"rule": rule, "rate": rate, "decay": decay, "normalize_keys": normalize_keys}
    if not causal:
        return linear_memory_read(linear_memory_write(k, v, **options), q)
    S = linear_memory_write(k, v, **options, return_history=True)[..., 1:, :, :]  # (..., n, dv, dk)
    # eq: pav-attend
    return np.asanyarray((S @ q[..., None])[..., 0])  # (..., n, dv)


def softmax_memory_read(keys: Any, values: Any, queries: Any, beta: float) -> np.ndarray:
    """Recall as softmax attention does: the mean of the values, weighted by e^(β k·q).

    Parameters
    ----------
    keys : array_like, shape (..., n, dk)
        All stored cues: this memory keeps its pairs.
    values : array_like, shape (..., n, dv)
        What they predict.
    queries : array_like, shape (..., m, dk)
        The cues that are tried.
    beta : float
        Inverse temperature β ≥ 0. 0 gives the plain mean, a large one the value of the nearest key.

    Returns
    -------
    ndarray, shape (..., m, dv)
        Zero if nothing is stored.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is not finite, or ``beta`` is negative.
    """
    keys, values = _pairs("keys", keys, "values", values)
    require(np.isfinite(beta) and beta >= 0, f"beta={beta!r} must be finite and >= 0")
    # eq: pav-softmax
    return np.asanyarray(softmax(beta * _matches(keys, queries), axis=-1) @ values)  # (..., m, dv)


def polynomial_memory_read(keys: Any, values: Any, queries: Any, degree: int) -> np.ndarray:
    """Recall through a polynomial kernel: Σ_i (k_i·q)^p v_i, one step of a dense associative memory.

    Parameters
    ----------
    keys, values, queries
        As in `softmax_memory_read`.
    degree : int
        p ≥ 1; 1 is the linear memory.

    Returns
    -------
    ndarray, shape (..., m, dv)
        Zero if nothing is stored.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is not finite, or ``degree`` is below 1.

    References
    ----------
    Krotov and Hopfield 2016, 1606.01164.
    """
    keys, values = _pairs("keys", keys, "values", values)
    require(index(degree) >= 1, f"degree={degree!r} must be >= 1")
    # eq: pav-poly
    return np.asanyarray(_matches(keys, queries) ** degree @ values)  # (..., m, dv)


def _matches(keys: np.ndarray, queries: Any) -> np.ndarray:
    """Return how well each query matches each key, (..., m, n)."""
    queries = _finite("queries", queries)
    width = keys.shape[-1]
    require(queries.shape[-1] == width, f"queries has width {queries.shape[-1]}, expected dk = {width} of keys")
    return np.asanyarray(queries @ np.swapaxes(keys, -1, -2))


def _finite(name: str, value: Any) -> Any:
    array = as_float(name, value)
    require(array.ndim >= 2, f"{name} has shape {array.shape}, expected at least two axes")
    require_finite(name, array)
    return array


def _pairs(name_k: str, keys: Any, name_v: str, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and values in one dtype; as many of the ones as of the others."""
    keys, values = _finite(name_k, keys), _finite(name_v, values)
    require(
        keys.shape[-2] == values.shape[-2],
        f"{name_k} has length {keys.shape[-2]} and {name_v} {values.shape[-2]}, expected the same number of pairs",
    )
    dtype = np.promote_types(keys.dtype, values.dtype)
    return keys.astype(dtype, copy=False), values.astype(dtype, copy=False)


def _checked(rule: str, rate: float, decay: float, lateral_rate: float) -> Rates:
    require_one_of("rule", rule, tuple(RULES))
    require(np.isfinite(rate) and rate > 0, f"rate={rate!r} must be finite and > 0")
    require(0 < decay <= 1, f"decay={decay!r} must be in (0, 1]")
    require(np.isfinite(lateral_rate) and lateral_rate >= 0, f"lateral_rate={lateral_rate!r} must be finite and >= 0")
    return Rates(float(rate), float(decay), float(lateral_rate))


def _prepared(keys: np.ndarray, rule: str, rates: Rates, *, normalize_keys: bool) -> np.ndarray:
    """Return the keys, normalised if asked for, that the rule can learn from without running away."""
    square = np.sum(keys**2, axis=-1, keepdims=True)  # (..., n, 1)
    if normalize_keys:
        require(square.min(initial=np.inf) > 0, "keys must not be zero when normalize_keys")
        keys, square = keys / np.sqrt(square), np.ones_like(square)
    if rule in ERROR_CORRECTING and square.size:
        largest = float(square.max())
        stretch = 1 + (1 / rates.decay if rule == "gated_delta" else 1)
        require(
            rates.rate * largest < stretch,
            f"rate={rates.rate!r} makes the delta rule unstable: rate must be below {stretch:.4g}/|k|^2, "
            f"and the longest key has |k|^2 = {largest:.4g}",
        )
    return keys


def _start(keys: np.ndarray, values: np.ndarray, initial: Any) -> Memory:
    lead = _common_lead(keys.shape[:-2], values.shape[:-2])
    dk, dv = keys.shape[-1], values.shape[-1]
    S = np.zeros((*lead, dv, dk), keys.dtype)
    if initial is not None:
        S = _finite("initial", initial).astype(keys.dtype, copy=False)
        require_shape("initial", S, (*lead, dv, dk))
    return Memory(S, np.ones((*lead, dv), keys.dtype), np.zeros((*lead, dk, dk), keys.dtype))


def _common_lead(keys: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(keys, values)
    except ValueError:
        raise ValueError(f"leading axes of keys {keys} and values {values} do not broadcast") from None
