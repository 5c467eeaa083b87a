"""The pipeline of attention, one step after the other, for all queries and keys or for a block of them.

Equation source: rules R4–R25 of the attention page, whose numbers stand above the lines. In order: 1 kv head, 2 score,
3 softcap, 4 bias, 5 visibility, 6 sink and softmax, 7 output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.softmax import normalise, shifted_exponentials
from refattn.primitives.visibility import ALL, part, positions_of, visible_pairs

if TYPE_CHECKING:
    from refattn.primitives.attention_arguments import AttentionCall

__all__ = ["Forward", "Logits", "attend", "key_distances", "masked_logits", "weighted_sum"]


class Logits(NamedTuple):
    """Steps 1 to 5: scores s, softcapped t and logits z, (B, Hq, Sq, Sk), and who is visible, (B|1, Hq|1, Sq, Sk)."""

    scores: np.ndarray
    softcapped: np.ndarray
    logits: np.ndarray
    visible: np.ndarray


class Forward(NamedTuple):
    """All steps: s, t, z, visible, P (B, Hq, Sq, Sk), P_σ (B, Hq, Sq, 0|1), L (B, Hq, Sq), o (B, Hq, Sq, dv).

    ``filled``, (B|1, Hq|1, Sq, 1), marks the empty rows that the policy decides.
    """

    scores: np.ndarray
    softcapped: np.ndarray
    logits: np.ndarray
    visible: np.ndarray
    weights: np.ndarray
    sink_weights: np.ndarray
    lse: np.ndarray
    out: np.ndarray
    filled: np.ndarray


@np.errstate(all="ignore")  # hidden keys may hold anything: what they overflow to is thrown away
def masked_logits(call: AttentionCall, rows: Any = ALL, columns: Any = ALL) -> Logits:
    """Return the logits of some queries against some keys: steps 1 to 5 of the pipeline.

    Parameters
    ----------
    call : AttentionCall
        Checked arguments; floating arrays may also be complex, for complex-step derivatives.
    rows, columns : slice or ndarray of int
        The queries and keys that are asked for.

    Returns
    -------
    Logits
    """
    q = call.q[:, :, rows]  # (B, Hq, Sq, d)
    # eq: R20
    k = np.repeat(call.k[:, :, columns], call.group, axis=1)  # (B, Hq, Sk, d)
    # eq: R4
    s = call.scale * (q @ k.swapaxes(-1, -2))  # (B, Hq, Sq, Sk)
    # eq: R18
    t = s if call.softcap is None else call.softcap * np.tanh(s / call.softcap)  # (B, Hq, Sq, Sk)
    z, visible = t, visible_pairs(call.rules, rows, columns)  # (B|1, Hq|1, Sq, Sk)
    if call.bias is not None:
        # eq: R7 R9
        bias = part(call.bias, rows, columns)  # (B|1, Hq|1, Sq|1, Sk|1)
        z, visible = z + bias, visible & (np.real(bias) > -np.inf)
    if call.slopes is not None:
        # eq: R19
        z = z - call.slopes[:, :, None, None] * key_distances(call, rows, columns)
    # eq: R6
    return Logits(s, t, np.where(visible, z, -np.inf), visible)


def key_distances(call: AttentionCall, rows: Any = ALL, columns: Any = ALL) -> np.ndarray:
    """Return |p_i − r_j|, (B|1, 1, Sq, Sk)."""
    p, r = positions_of(call.rules)[:, rows], np.arange(call.rules.sk)[columns]  # (B|1, Sq), (Sk,)
    return np.asarray(np.abs(p[:, None, :, None] - r))


@np.errstate(all="ignore")  # as in masked_logits
def attend(call: AttentionCall) -> Forward:
    """Return every intermediate of attention: the whole pipeline on checked arguments.

    Parameters
    ----------
    call : AttentionCall
        Checked arguments; floating arrays may also be complex, for complex-step derivatives.

    Returns
    -------
    Forward
    """
    s, t, z, visible = masked_logits(call)
    joined, seen = join_sink(call, z, visible)  # (B, Hq, Sq, Sk|Sk+1)
    # eq: R21
    e, l, m = shifted_exponentials(joined, where=seen)
    # eq: R25
    L = (m + np.log(l))[..., 0]  # (B, Hq, Sq), log 0 = −∞ in empty rows
    P = normalise(e, l, where=seen)  # (B, Hq, Sq, Sk|Sk+1)
    P, P_sink = P[..., : z.shape[-1]], P[..., z.shape[-1] :]
    v = np.repeat(call.v, call.group, axis=1)  # (B, Hq, Sk, dv)
    o = weighted_sum(P, v, visible)  # (B, Hq, Sq, dv)
    # decided on the masks, not on the logits, which may have overflowed to −∞
    empty = ~seen.any(axis=-1, keepdims=True)  # (B|1, Hq|1, Sq, 1)
    # eq: R24
    filled = empty & ~padded_queries(call)  # (B|1, Hq|1, Sq, 1)
    if call.empty != "zero" and filled.any():
        P = np.where(filled, np.nan if call.empty == "nan" else 1 / max(z.shape[-1], 1), P)
        o = fill_empty_rows(call, o, filled)
    return Forward(s, t, z, visible, P, P_sink, L, o, filled)


def join_sink(call: AttentionCall, z: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Append the sink as one more logit, whose value is 0: it only takes its share of the denominator."""
    if call.sinks is None:
        return z, visible
    sink = np.broadcast_to(call.sinks[:, None, None], (*z.shape[:3], 1))  # (B, Hq, Sq, 1)
    seen = np.broadcast_to(visible, z.shape)
    return np.concatenate([z, sink], axis=-1), np.concatenate([seen, np.real(sink) > -np.inf], axis=-1)


@np.errstate(all="ignore")  # as in masked_logits
def fill_empty_rows(call: AttentionCall, o: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Return the outputs with the policy's value in the rows marked by ``filled``, (B|1, Hq|1, Sq, 1)."""
    # eq: R22
    if call.empty == "zero":
        return o
    if call.empty == "nan":
        return np.where(filled, np.nan, o)
    # over all Sk keys, padded and hidden ones too; the mean of no keys is 0 here
    mean = call.v.sum(axis=2, keepdims=True) / max(call.rules.sk, 1)  # (B, Hkv, 1, dv)
    return np.where(filled, np.repeat(mean, call.group, axis=1), o)


def padded_queries(call: AttentionCall) -> np.ndarray:
    """Return which queries lie past their valid length, (B|1, 1, Sq, 1)."""
    if call.rules.q_lengths is None:
        return np.zeros((1, 1, 1, 1), bool)
    # eq: R14
    return np.asarray(np.arange(call.rules.sq)[:, None] >= call.rules.q_lengths[:, None, None, None])


def weighted_sum(weights: np.ndarray, values: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Return Σ_j P_ij v_j over the visible j, so that hidden values never matter, NaN included.

    Parameters
    ----------
    weights : ndarray, shape (B, Hq, Sq, Sk)
        0 where hidden.
    values : ndarray, shape (B, Hq, Sk, dv)
        What is summed.
    visible : ndarray of bool, shape (B|1, Hq|1, Sq, Sk|1)
        True = takes part.

    Returns
    -------
    ndarray, shape (B, Hq, Sq, dv)
    """
    if np.isfinite(values).all():
        return np.asarray(weights @ values)
    # 0 · NaN is NaN: select the terms, do not multiply the others away
    terms = weights[..., None] * values[..., None, :, :]  # (B, Hq, Sq, Sk, dv)
    return np.asarray(np.where(visible[..., None], terms, 0).sum(axis=-2))
