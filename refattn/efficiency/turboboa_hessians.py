"""What an error in a weight costs: second moments of inputs, of what attention does with outputs, and the loss itself.

Shapes: n tokens, d inputs, r outputs of a head, H heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_shape
from refattn.primitives.masks import causal_mask
from refattn.primitives.rotary import rope
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "AttentionHessians",
    "attention_hessians",
    "input_hessian",
    "pull_back_rotation",
    "reconstruction_loss",
    "residual_correlation",
]


class AttentionHessians(NamedTuple):
    """Of the input of all projections (d, d), of the values' (G, d, d), of query and key outputs (H or G, r, r)."""

    input: np.ndarray
    value_input: np.ndarray
    query_out: np.ndarray
    key_out: np.ndarray


def input_hessian(x: Any) -> np.ndarray:
    """Return (2/n) Σ x xᵀ over all tokens: (..., n, d) to (d, d).

    Raises
    ------
    ValueError
        For inputs without tokens, or that are not finite.
    """
    return residual_moment("x", _tokens("x", x), _tokens("x", x))


def residual_correlation(x_full: Any, x_quant: Any) -> np.ndarray:
    """Return (2/n) Σ (x_full − x) xᵀ: what the layers before have already lost of each input (d, d).

    Parameters
    ----------
    x_full, x_quant : array_like, shape (..., n, d)
        The same tokens as the original and as the partly quantised network brings them here.

    Notes
    -----
    The paper's difference has the opposite sign. The weight α of the correction is not in it.

    Raises
    ------
    ValueError
        For inputs of different shapes, without tokens, or that are not finite.
    """
    full, quant = _tokens("x_full", x_full), _tokens("x_quant", x_quant)
    require_shape("x_quant", quant, full.shape)
    # eq: tb-residual
    return residual_moment("x_quant", full - quant, quant)


def residual_moment(name: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (2/n) leftᵀ right of two sets of n tokens."""
    require(len(left) > 0, f"{name} holds no token")
    # eq: tb-input-hessian
    return np.asanyarray(np.swapaxes(left, -1, -2) @ right * (2 / len(left)))


def _tokens(name: str, x: Any) -> np.ndarray:
    x = as_float(name, x)
    require(x.ndim >= 2, f"{name} has shape {x.shape}, expected (..., n, d)")
    require_finite(name, x)
    return np.asanyarray(x.reshape(-1, x.shape[-1]))


def attention_hessians(
    x: Any,
    wq: Any,
    wk: Any,
    wv: Any,
    *,
    n_heads: int,
    n_kv_heads: int | None = None,
    causal: bool = True,
    rope_angles: Any = None,
) -> AttentionHessians:
    """Return how attention weighs errors of its projections.

    An error of the queries matters where keys are long, and the other way round; an error of the values matters as far
    as attention spreads it.

    Parameters
    ----------
    x : array_like, shape (B, L, d)
        What the projections read.
    wq, wk, wv : array_like, shape (H·r, d), (G·r, d), (G·r, d)
        Projections, one head below the other.
    n_heads, n_kv_heads : int
        H and G, which divides H; G = H if not given.
    causal : bool
        Whether a token sees only itself and what came before.
    rope_angles : array_like, shape (L, r/2), optional
        Rotates channel pairs (i, i + r/2) of queries and keys.

    Returns
    -------
    AttentionHessians

    Raises
    ------
    ValueError
        For shapes that do not fit, or heads that do not divide.
    """
    x, wq, wk, wv = (as_float(name, v) for name, v in (("x", x), ("wq", wq), ("wk", wk), ("wv", wv)))
    groups = n_heads if n_kv_heads is None else n_kv_heads
    _check_projections(x, wq, wk, wv, n_heads, groups)
    turn = _rotation(rope_angles)
    q, k = turn(_project(x, wq, n_heads)), turn(_project(x, wk, groups))  # (B, H or G, L, r)
    r, shared = q.shape[-1], n_heads // groups
    scores = q @ np.swapaxes(np.repeat(k, shared, axis=1), -1, -2) * r**-0.5
    mask = causal_mask(x.shape[1], x.shape[1]) if causal else None
    mixed = softmax(scores, where=mask) @ x[:, None]  # (B, H, L, d)
    # eq: tb-value-hessian
    value_input = np.mean(_moments(mixed).reshape(groups, shared, *x.shape[-1:] * 2), axis=1)
    # eq: tb-query-hessian
    query_out = np.repeat(pull_back_rotation(_moments(k), rope_angles), shared, axis=0)
    # eq: tb-key-hessian
    key_out = np.mean(pull_back_rotation(_moments(q), rope_angles).reshape(groups, shared, r, r), axis=1)
    return AttentionHessians(input_hessian(x), value_input, query_out, key_out)


def _check_projections(x: np.ndarray, wq: np.ndarray, wk: np.ndarray, wv: np.ndarray, heads: int, groups: int) -> None:
    require(x.ndim == 3, f"x has shape {x.shape}, expected (B, L, d)")
    require(heads >= 1 and groups >= 1, f"n_heads={heads!r} and n_kv_heads={groups!r} must be at least 1")
    require(heads % groups == 0, f"n_heads={heads} must be a multiple of n_kv_heads={groups}")
    require(wq.ndim == 2 and len(wq) % heads == 0, f"wq has shape {wq.shape}, expected ({heads}·r, {x.shape[-1]})")
    r = len(wq) // heads
    require_shape("wq", wq, (heads * r, x.shape[-1]))
    for name, w in (("wk", wk), ("wv", wv)):
        require_shape(name, w, (groups * r, x.shape[-1]))


def _project(x: np.ndarray, w: np.ndarray, heads: int) -> np.ndarray:
    out = x @ w.T
    return np.asanyarray(np.swapaxes(out.reshape(*x.shape[:2], heads, -1), 1, 2))


def _moments(x: np.ndarray) -> np.ndarray:
    """Return (2/n) Σ x xᵀ per head: (B, H, L, e) to (H, e, e)."""
    by_head = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1, x.shape[-1])
    require(by_head.shape[1] > 0, "x holds no token")
    return np.asanyarray(np.swapaxes(by_head, -1, -2) @ by_head * (2 / by_head.shape[1]))


def _rotation(angles: Any) -> Callable[[np.ndarray], np.ndarray]:
    return (lambda x: x) if angles is None else (lambda x: rope(x, angles))


def pull_back_rotation(moment: Any, angles: Any) -> np.ndarray:
    """Average a moment of rotated vectors over the positions at which the vector to be read may stand.

    Parameters
    ----------
    moment : ndarray, shape (H, r, r)
        C, measured after the rotation.
    angles : ndarray, shape (L, k/2), or None
        Of the first k channels at each position; None where positions do not rotate.

    Returns
    -------
    ndarray, shape (H, r, r)
        mean_t Rot_tᵀ C Rot_t.
    """
    if angles is None:
        return np.asanyarray(moment)
    # a row of the identity, rotated, is a column of Rot: these are the transposed rotations
    turns = rope(np.broadcast_to(np.eye(moment.shape[-1]), (len(angles), *moment.shape[1:])), angles[:, None])
    total = np.zeros_like(moment)
    for turn in turns:  # one position at a time: all together would be large
        # eq: tb-pull-back
        total = total + turn @ moment @ turn.T
    return np.asanyarray(total / len(turns))


def reconstruction_loss(w: Any, q: Any, h_in: Any, h_out: Any = None, residual: Any = None) -> float:
    """Return Σ H_out ⊙ (ΔW H_in ΔWᵀ) − 2 Σ H_out ⊙ (W R ΔWᵀ), ΔW = Q − W, summed over heads.

    Parameters
    ----------
    w, q : array_like, shape (d_out, d_in) or (H, r, d_in)
        The original and the quantised weights.
    h_in : array_like, shape (d_in, d_in) or (H, d_in, d_in)
        Hessian of the input.
    h_out : array_like, shape (H, r, r), optional
        Hessian of the output; the identity if not given.
    residual : array_like, like ``h_in``, optional
        R, weighted by α already.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        For shapes that do not fit.
    """
    w, q, h_in = as_float("w", w), as_float("q", q), as_float("h_in", h_in)
    require_shape("q", q, w.shape)
    heads = _heads_of(h_in, h_out)
    w, q = (x.reshape(heads, -1, w.shape[-1]) if x.ndim == 2 else x for x in (w, q))
    error = q - w
    # eq: tb-loss
    inner = error @ h_in
    if residual is not None:
        inner = inner - 2 * (w @ as_float("residual", residual))
    outer = inner @ np.swapaxes(error, -1, -2)  # (H, r, r)
    whole = np.trace(outer, axis1=-2, axis2=-1) if h_out is None else np.sum(as_float("h_out", h_out) * outer, (-2, -1))
    total: float = np.sum(whole)[()]
    return total


def _heads_of(h_in: np.ndarray, h_out: Any) -> int:
    return next((len(h) for h in (h_out, h_in) if h is not None and np.ndim(h) == 3), 1)
