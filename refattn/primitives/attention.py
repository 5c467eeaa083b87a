"""Scaled dot-product attention: every query takes the mean of the values, weighted by e^(scaled score) (1706.03762).

Equation source: Vaswani et al., section 3.2.1, and rules R1–R26 of the attention page, which fix what implementations
leave open: alignment, windows, softcap, bias, ALiBi, sinks, empty rows. The steps themselves are in
`attention_pipeline`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import require_one_of
from refattn.primitives.attention_arguments import AttentionCall, check_attention, from_layout
from refattn.primitives.attention_pipeline import attend

__all__ = ["AttentionResult", "attention"]


class AttentionResult(NamedTuple):
    """What attention returns; None for what was not asked for.

    Attributes
    ----------
    out : ndarray, shape (B, Hq, Sq, dv) in the caller's layout
        o, the outputs.
    weights : ndarray, shape (B, Hq, Sq, Sk)
        P, after the policy of empty rows.
    lse : ndarray, shape (B, Hq, Sq)
        L, the natural log-sum-exp of the logits and the sink; −∞ for an empty row.
    logits : ndarray, shape (B, Hq, Sq, Sk)
        z, −∞ where hidden.
    scores : ndarray, shape (B, Hq, Sq, Sk)
        s, the scaled products, hidden ones too.
    softcapped : ndarray, shape (B, Hq, Sq, Sk)
        t, the scores after the softcap.
    """

    out: np.ndarray | None = None
    weights: np.ndarray | None = None
    lse: np.ndarray | None = None
    logits: np.ndarray | None = None
    scores: np.ndarray | None = None
    softcapped: np.ndarray | None = None


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    mask: Any = None,
    bias: Any = None,
    causal: bool = False,
    align: Any = "top_left",
    window: Any = (None, None),
    kv_lengths: Any = None,
    q_lengths: Any = None,
    prefix: Any = None,
    doc_q: Any = None,
    doc_k: Any = None,
    chunk: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    empty: str = "zero",
    layout: str = "bhsd",
    q_heads: int | None = None,
    kv_heads: int | None = None,
    dropout_p: float = 0.0,
    returns: Any = ("out",),
) -> AttentionResult:
    """Return softmax(τ Q Kᵀ + bias) V, with every convention of masks, caps, sinks and empty rows explicit.

    Parameters
    ----------
    q : array_like, shape (B, Hq, Sq, d)
        Queries, of a real floating dtype.
    k : array_like, shape (B, Hkv, Sk, d)
        Keys; Hq is a multiple of Hkv and query head h reads kv head h // (Hq / Hkv).
    v : array_like, shape (B, Hkv, Sk, dv)
        Values.
    scale : float, optional
        τ, any finite number; 1/√d if not given.
    mask : array_like of bool, optional
        True = attend; right-aligned against (B, Hq, Sq, Sk).
    bias : array_like, optional
        Added to the scaled and softcapped score; −∞ hides; right-aligned against (B, Hq, Sq, Sk).
    causal : bool
        Hide the keys behind the query's own position.
    align : {"top_left", "bottom_right"}, int, or array_like of int with shape (B,)
        Position of the first query: 0, n_k − n_q, or the integer itself.
    window : pair of int or None
        Keys seen to the left and right of the query's own position; None = unbounded.
    kv_lengths, q_lengths : array_like of int, shape (B,), optional
        Valid keys and queries. Hidden keys may hold anything; padded queries give 0 whatever the policy.
    prefix : int, or array_like of int with shape (B,), optional
        The first keys that ``causal`` does not hide.
    doc_q, doc_k : array_like of int, shape (Sq,) and (Sk,), or with a batch axis before, optional
        Document of each token; a query sees its own document only.
    chunk : int, optional
        A query sees its own chunk of positions only.
    softcap : float, optional
        c of c·tanh(s/c), applied to the scaled score before bias and masks; None or 0 = off.
    alibi_slopes : array_like, shape (Hq,) or (B, Hq), optional
        m_h; the logit is lowered by m_h·|p_i − r_j|.
    sinks : array_like, shape (Hq,), optional
        σ_h, a logit of each query head that joins the denominator with the value 0; −∞ = none.
    empty : {"zero", "nan", "uniform"}
        What a row without a visible key and without a sink gives: 0, NaN, or the mean over all Sk values.
    layout : {"bhsd", "bshd", "bs(hd)"}
        Order of the axes of q, k, v and the output; ``bs(hd)`` packs heads side by side in the last axis.
    q_heads, kv_heads : int, optional
        Number of heads, for the layout ``bs(hd)``.
    dropout_p : float
        Only 0: dropout is no part of the operator.
    returns : str, or sequence of str
        Which fields of the result to fill.

    Returns
    -------
    AttentionResult
        Computed in float64 whatever the input, returned in the dtype of ``q``.

    Raises
    ------
    ValueError
        If a shape, value or name breaks its rule.
    TypeError
        If q, k or v is complex, integer, boolean or of objects, or an array is masked.

    Notes
    -----
    Libraries differ: torch and JAX align a causal mask top-left, FlashAttention bottom-right; Hugging Face's window
    counts the query itself; MultiheadAttention's boolean mask means *ignore*; JAX and Hugging Face average all values
    where a row is empty; FlashAttention-2 stores L = +∞ there. The batch axes of q, k, v must agree exactly, a bias
    of −∞ is the only infinity, and ALiBi comes after the softcap [our definition].

    References
    ----------
    1706.03762, eq. 1; grouped heads 2305.13245; ALiBi 2108.12409; sinks 2309.17453.
    """
    names = result_names(returns)
    call = check_attention(
        q,
        k,
        v,
        scale=scale,
        mask=mask,
        bias=bias,
        causal=causal,
        align=align,
        window=window,
        kv_lengths=kv_lengths,
        q_lengths=q_lengths,
        prefix=prefix,
        doc_q=doc_q,
        doc_k=doc_k,
        chunk=chunk,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        empty=empty,
        layout=layout,
        q_heads=q_heads,
        kv_heads=kv_heads,
        dropout_p=dropout_p,
    )
    return select_results(call, attend(call), names)


def select_results(call: AttentionCall, forward: Any, names: tuple[str, ...]) -> AttentionResult:
    """Return the named fields in the caller's layout and dtype."""
    fields = {name: getattr(forward, name) for name in names}
    with np.errstate(under="ignore", over="ignore"):  # float16 holds neither every weight nor every logit
        return AttentionResult(
            **{
                name: from_layout(x, call.layout, call.dtype) if name == "out" else x.astype(call.dtype, copy=False)
                for name, x in fields.items()
            }
        )


def result_names(returns: Any) -> tuple[str, ...]:
    """Check the names of results that are asked for."""
    names = (returns,) if isinstance(returns, str) else tuple(returns)
    for name in names:
        require_one_of("returns", name, AttentionResult._fields)
    return names
