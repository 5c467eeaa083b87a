"""The vector-Jacobian product of attention: gradients of every input from cotangents of the output and log-sum-exp.

Equation source: rules R30–R35 of the attention page [derived]; the form is that of FlashAttention's backward pass, with
Δ = rowsum(dO ∘ O) in place of rowsum(P ∘ dP) (2205.14135) [recalled].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np

from refattn.primitives.arguments import as_float, require_shape
from refattn.primitives.attention_arguments import (
    AttentionCall,
    AttentionOptions,
    check_attention,
    from_layout,
    to_layout,
)
from refattn.primitives.attention_pipeline import attend, key_distances, weighted_sum

if TYPE_CHECKING:
    from refattn.primitives.attention_pipeline import Forward

__all__ = ["Gradients", "attention_vjp"]


class Gradients(NamedTuple):
    """Gradients of attention's inputs, in their shapes; None for an input that was not given."""

    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    dbias: np.ndarray | None
    dsinks: np.ndarray | None
    dslopes: np.ndarray | None
    dscale: np.ndarray


@np.errstate(all="ignore")  # hidden keys may hold anything: what they overflow to is thrown away
def attention_vjp(
    q: Any, k: Any, v: Any, dout: Any, *, dlse: Any = None, **options: Unpack[AttentionOptions]
) -> Gradients:
    """Pull cotangents of the output and the log-sum-exp back to every input of attention.

    Parameters
    ----------
    q, k, v : array_like, shape (B, Hq, Sq, d), (B, Hkv, Sk, d), (B, Hkv, Sk, dv)
        Queries, keys and values.
    dout : array_like, shape of the output
        Cotangent of o, in the layout of the output.
    dlse : array_like, shape (B, Hq, Sq), optional
        Cotangent of L.
    **options
        As in `attention.attention`.

    Returns
    -------
    Gradients
        Computed in float64, returned in the dtype of ``q``; ``dscale`` has no axes.

    Raises
    ------
    ValueError, TypeError
        As in `attention.attention`, or if a cotangent has the wrong shape.

    Notes
    -----
    An empty row gives no gradient under the policy ``zero``; under ``uniform`` it gives dO / Sk to every value; under
    ``nan`` everything it touches becomes NaN. Where the bias is −∞ its gradient is 0. The weights of a row sum to 1
    with the sink, whose value is 0, so Δ = Σ_j P_ij dP_ij holds with a sink too.
    """
    call = check_attention(q, k, v, **options)
    forward = attend(call)
    dO = to_layout("dout", as_float("dout", dout), call.layout, options.get("q_heads"))  # (B, Hq, Sq, dv)
    require_shape("dout", dO, forward.out.shape)
    dL = np.zeros(forward.lse.shape) if dlse is None else as_float("dlse", dlse).astype(np.float64, copy=False)
    require_shape("dlse", dL, forward.lse.shape)
    raw = _pull_back(call, forward, dO, dL)
    return _in_callers_form(raw, call, options)


def _pull_back(call: AttentionCall, f: Forward, dO: np.ndarray, dL: np.ndarray) -> Gradients:
    k, v = (np.repeat(x, call.group, axis=1) for x in (call.k, call.v))  # (B, Hq, Sk, d), (B, Hq, Sk, dv)
    P = f.weights  # (B, Hq, Sq, Sk)
    # an empty row reaches values under two policies, and scores under one; else it must not meet what is hidden
    reached = f.visible if call.empty == "zero" else f.visible | f.filled  # (B|1, Hq|1, Sq, Sk)
    touched = f.visible | f.filled if call.empty == "nan" else f.visible  # (B|1, Hq|1, Sq, Sk)
    Delta = np.sum(dO * f.out, axis=-1, keepdims=True)  # (B, Hq, Sq, 1)
    # eq: R30
    dV = _sum_groups(call, weighted_sum(_transpose(P), dO, _transpose(reached)))  # (B, Hkv, Sk, dv)
    # eq: R31
    dP = dO @ _transpose(v)  # (B, Hq, Sq, Sk)
    dZ = np.where(f.visible, P * (dP - Delta) + P * dL[..., None], 0)  # (B, Hq, Sq, Sk)
    if call.empty == "nan":
        dZ = np.where(f.filled, np.nan, dZ)
    # eq: R32
    dS = dZ if call.softcap is None else np.where(touched, dZ * (1 - (f.softcapped / call.softcap) ** 2), 0)
    # eq: R33
    dQ = call.scale * weighted_sum(dS, k, touched)  # (B, Hq, Sq, d)
    dK = call.scale * _sum_groups(call, weighted_sum(_transpose(dS), call.q, _transpose(touched)))  # (B, Hkv, Sk, d)
    # the product itself, not s / τ: τ may be 0
    dscale = np.sum(np.where(touched, dS * (call.q @ _transpose(k)), 0))
    # eq: R34
    dbias = None if call.bias is None else _sum_to(dZ, call.bias.shape)
    dslopes = None if call.slopes is None else _sum_to(-np.sum(dZ * key_distances(call), (2, 3)), call.slopes.shape)
    # eq: R35
    # e^{σ−L} is the weight of the sink, which the forward pass has without a difference of −∞ and −∞
    dsigma = np.where(f.sink_weights == 0, 0, f.sink_weights * (dL[..., None] - Delta))  # (B, Hq, Sq, 0|1)
    dsinks = None if call.sinks is None else np.sum(dsigma, axis=(0, 2, 3))  # (Hq,)
    return Gradients(dQ, dK, dV, dbias, dsinks, dslopes, dscale)


def _transpose(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2)


def _sum_groups(call: AttentionCall, x: np.ndarray) -> np.ndarray:
    """Sum the gradients of the query heads that share a kv head: (B, Hq, ...) to (B, Hkv, ...)."""
    kv_heads = call.k.shape[1]
    return np.asarray(x.reshape(x.shape[0], kv_heads, call.group, *x.shape[2:]).sum(axis=2)) if kv_heads else x


def _sum_to(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum over the axes along which an array of ``shape`` was broadcast to that of ``x``."""
    axes = tuple(axis for axis, (n, full) in enumerate(zip(shape, x.shape, strict=True)) if n != full)
    return np.asarray(x.sum(axis=axes, keepdims=True))


def _in_callers_form(g: Gradients, call: AttentionCall, options: AttentionOptions) -> Gradients:
    def reshaped(x: np.ndarray | None, given: Any) -> np.ndarray | None:
        return None if x is None else x.reshape(np.shape(given)).astype(call.dtype)

    dq, dk, dv = (from_layout(x, call.layout, call.dtype) for x in (g.dq, g.dk, g.dv))
    return Gradients(
        dq,
        dk,
        dv,
        reshaped(g.dbias, options.get("bias")),
        reshaped(g.dsinks, options.get("sinks")),
        reshaped(g.dslopes, options.get("alibi_slopes")),
        np.asarray(g.dscale, dtype=call.dtype),
    )
