"""The arguments of attention: their names and types, and one checked form that every way of computing it shares.

What is refused, and in which words, is one table in the tests of bad input.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, NamedTuple, TypedDict

import numpy as np

from refattn.primitives.arguments import as_float, require, require_one_of
from refattn.primitives.mask_rules import MaskRules, check_mask_rules

__all__ = ["AttentionCall", "AttentionOptions", "check_attention", "check_sinks", "from_layout", "to_layout"]

LAYOUTS = ("bhsd", "bshd", "bs(hd)")
POLICIES = ("zero", "nan", "uniform")


class AttentionOptions(TypedDict, total=False):
    """Keyword arguments of `attention.attention`, where they are described."""

    scale: float | None
    mask: Any
    bias: Any
    causal: bool
    align: Any
    window: Any
    kv_lengths: Any
    q_lengths: Any
    prefix: Any
    doc_q: Any
    doc_k: Any
    chunk: int | None
    softcap: float | None
    alibi_slopes: Any
    sinks: Any
    empty: str
    layout: str
    q_heads: int | None
    kv_heads: int | None
    dropout_p: float


class AttentionCall(NamedTuple):
    """One checked call: heads before lengths, floating arrays in float64, masks as rules.

    Attributes
    ----------
    q, k, v : ndarray, shape (B, Hq, Sq, d), (B, Hkv, Sk, d), (B, Hkv, Sk, dv)
        In float64.
    rules : MaskRules
        Who sees whom.
    scale : float
        τ.
    bias : ndarray, shape (B|1, Hq|1, Sq|1, Sk|1), or None
        Added to the softcapped score.
    softcap : float or None
        c, None for off.
    slopes : ndarray, shape (B|1, Hq), or None
        m_h.
    sinks : ndarray, shape (Hq,), or None
        σ_h.
    empty : str
        Policy of empty rows.
    layout : str
        Where the caller's axes are.
    dtype : dtype
        Of the results, that of the caller's q.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    rules: MaskRules
    scale: float
    bias: np.ndarray | None
    softcap: float | None
    slopes: np.ndarray | None
    sinks: np.ndarray | None
    empty: str
    layout: str
    dtype: Any

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, Hq, Sq, Sk)."""
        return (*self.q.shape[:3], self.k.shape[2])

    @property
    def group(self) -> int:
        """G, the query heads that share one kv head."""
        return self.q.shape[1] // self.k.shape[1] if self.k.shape[1] else 1


def check_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    bias: Any = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    empty: str = "zero",
    layout: str = "bhsd",
    q_heads: int | None = None,
    kv_heads: int | None = None,
    dropout_p: float = 0.0,
    **rules: Any,
) -> AttentionCall:
    """Check the arguments of attention and return them in one form.

    Parameters
    ----------
    q, k, v, scale, bias, softcap, alibi_slopes, sinks, empty, layout, q_heads, kv_heads, dropout_p
        As in `attention.attention`.
    **rules
        The arguments of `visibility.visibility`.

    Returns
    -------
    AttentionCall

    Raises
    ------
    ValueError
        If an argument breaks its rule; the message names the argument, its value and the rule.
    TypeError
        If q, k or v is not of a real floating dtype, or an array is masked.
    """
    require_one_of("layout", layout, LAYOUTS)
    require_one_of("empty", empty, POLICIES)
    require(dropout_p == 0, f"dropout_p={dropout_p}: dropout is no part of the operator, it must be 0")
    arrays = {name: as_float(name, x, refuse_integers=TypeError) for name, x in (("q", q), ("k", k), ("v", v))}
    dtype = arrays["q"].dtype
    wide_q = to_layout("q", arrays["q"], layout, q_heads)  # (B, Hq, Sq, d)
    wide_k, wide_v = (to_layout(name, arrays[name], layout, kv_heads) for name in "kv")
    _check_shapes(wide_q, wide_k, wide_v)
    batch, heads, sq, d = wide_q.shape
    shape = (batch, heads, sq, wide_k.shape[2])
    call = AttentionCall(
        q=wide_q,
        k=wide_k,
        v=wide_v,
        rules=check_mask_rules(sq, shape[-1], **rules),
        scale=d**-0.5 if scale is None else float(scale),
        bias=None if bias is None else _check_bias(bias, shape),
        softcap=None if softcap is None or softcap == 0 else float(softcap),
        slopes=None if alibi_slopes is None else _check_slopes(alibi_slopes, batch, heads),
        sinks=None if sinks is None else check_sinks(sinks, heads),
        empty=empty,
        layout=layout,
        dtype=dtype,
    )
    require(isfinite(call.scale), f"scale={scale} must be finite")
    cap = call.softcap
    require(cap is None or (isfinite(cap) and cap > 0), f"softcap={softcap} must be finite and not negative")
    _check_batches(call.rules, batch, heads)
    return call


def to_layout(name: str, x: np.ndarray, layout: str, heads: int | None) -> np.ndarray:
    """Return ``x`` in float64 with its axes as (B, H, S, channels)."""
    # eq: R2
    if layout == "bs(hd)":
        require(x.ndim == 3, f"{name} has {x.ndim} axes (shape {x.shape}), layout 'bs(hd)' expects 3")
        require(heads is not None, f"{name}: layout 'bs(hd)' needs q_heads and kv_heads")
        count = int(heads or 0)
        require(count > 0 and x.shape[2] % count == 0, f"{name} has {x.shape[2]} columns, no multiple of {count} heads")
        x = x.reshape(*x.shape[:2], count, x.shape[2] // count)
    require(x.ndim == 4, f"{name} has {x.ndim} axes (shape {x.shape}), layout {layout!r} expects 4")
    x = x.astype(np.float64, copy=False)
    return x if layout == "bhsd" else x.swapaxes(1, 2)


def from_layout(x: np.ndarray, layout: str, dtype: Any) -> np.ndarray:
    """Return an array (B, H, S, channels) in the caller's layout and dtype."""
    # eq: R2
    if layout != "bhsd":
        x = x.swapaxes(1, 2)
    if layout == "bs(hd)":
        x = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
    return x.astype(dtype, copy=False)


def _check_shapes(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
    # eq: R3 R5 R20
    require(q.shape[0] == k.shape[0] == v.shape[0], f"batch of q, k, v is {q.shape[0]}, {k.shape[0]}, {v.shape[0]}")
    require(q.shape[3] == k.shape[3], f"d of q is {q.shape[3]} and of k {k.shape[3]}; they must agree")
    require(q.shape[3] > 0, "d of q and k is 0; it must be positive")
    require(k.shape[2] == v.shape[2], f"length of k is {k.shape[2]} and of v {v.shape[2]}; they must agree")
    require(k.shape[1] == v.shape[1], f"heads of k are {k.shape[1]} and of v {v.shape[1]}; they must agree")
    groups = q.shape[1] == 0 if k.shape[1] == 0 else q.shape[1] % k.shape[1] == 0
    require(groups, f"q has {q.shape[1]} heads, which is no multiple of the {k.shape[1]} heads of k and v")


def _check_bias(bias: Any, shape: tuple[int, ...]) -> np.ndarray:
    kind = np.asanyarray(bias).dtype.kind
    require(kind not in "bc", "bias is boolean or complex; a boolean restriction is a mask, a bias is real")
    bias = as_float("bias", bias).astype(np.float64, copy=False)
    # eq: R8
    require(bias.ndim <= 4, f"bias has {bias.ndim} axes (shape {bias.shape}), expected at most 4")
    four = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    fits = all(n in (1, full) for n, full in zip(four.shape, shape, strict=True))
    require(fits, f"bias has shape {bias.shape}, which does not broadcast to (B, Hq, Sq, Sk) = {shape}")
    # eq: R9
    require(
        not (np.isnan(four).any() or np.isposinf(four).any()), "bias holds NaN or +inf; only finite values and -inf"
    )
    return np.asanyarray(four)


def _check_slopes(slopes: Any, batch: int, heads: int) -> np.ndarray:
    slopes = as_float("alibi_slopes", slopes).astype(np.float64, copy=False)
    fits = slopes.shape in ((heads,), (batch, heads))
    require(fits, f"alibi_slopes has shape {slopes.shape}, expected ({heads},) or ({batch}, {heads})")
    if not np.isfinite(slopes).all():  # an array is only written out where it is wrong: that takes longer than the call
        raise ValueError(f"alibi_slopes={slopes} must be finite")
    return np.atleast_2d(slopes)


def check_sinks(sinks: Any, heads: int) -> np.ndarray:
    """Return the sink logits σ_h in float64, (Hq,); −∞ is no sink."""
    sinks = as_float("sinks", sinks).astype(np.float64, copy=False)
    require(sinks.shape == (heads,), f"sinks has shape {sinks.shape}, expected ({heads},), one for each query head")
    if not (sinks < np.inf).all():
        raise ValueError(f"sinks={sinks} must be finite or -inf")
    return np.asanyarray(sinks)


def _check_batches(rules: MaskRules, batch: int, heads: int) -> None:
    if rules.mask is not None:
        fits = rules.mask.shape[0] in (1, batch) and rules.mask.shape[1] in (1, heads)
        require(fits, f"mask has leading axes {rules.mask.shape[:2]}, which do not broadcast to ({batch}, {heads})")
    for name in ("kv_lengths", "q_lengths"):
        counts = getattr(rules, name)
        require(counts is None or len(counts) == batch, f"{name} has {_length(counts)} entries, expected {batch}")
    for name in ("align", "prefix", "doc_q", "doc_k"):
        value = getattr(rules, name)
        fits = value is None or isinstance(value, str) or len(value) in (1, batch)
        require(fits, f"{name} has {_length(value)} batch entries, expected 1 or {batch}")


def _length(value: Any) -> int:
    return 0 if value is None else len(value)
