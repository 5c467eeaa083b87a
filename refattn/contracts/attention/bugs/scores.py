"""Mistakes on the way from products to logits: scale, softcap, bias, ALiBi."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.contracts.attention.bugs.plant import not_causal, partly_hidden, planted, unscaled
from refattn.contracts.attention.call import sizes

if TYPE_CHECKING:
    from refattn.conformance.contract import Case
    from refattn.contracts.attention.call import Call

__all__ = ["ALIBI", "BIAS", "SCALE", "SOFTCAP"]


def no_scale(_c: Call) -> float:
    return 1.0


def scale_inv_d(c: Call) -> float:
    return float(1.0 / c.q.shape[-1])


def scale_dv(c: Call) -> float:
    return float(1.0 / np.sqrt(c.v.shape[-1]))


def scale_override_ignored(c: Call) -> float:
    return float(1.0 / np.sqrt(c.q.shape[-1]))


def _wide_values(case: Case) -> bool:
    return unscaled(case) and sizes(case).d != sizes(case).dv > 0


SCALE = (
    planted(
        "no_scale",
        "scores not multiplied by the scale at all",
        "Multiply q·k by 1/√d, or by the scale that is given.",
        scale=no_scale,
    ),
    planted(
        "scale_inv_d",
        "scale 1/d instead of 1/sqrt(d)",
        "The default scale is 1/√d: it makes the variance of a score 1.",
        unscaled,
        scale=scale_inv_d,
    ),
    planted(
        "scale_dv",
        "scale from the value width: 1/sqrt(d_v)",
        "d is the width of q and k, over which the product sums; the width of v has no part in it.",
        _wide_values,
        scale=scale_dv,
    ),
    planted(
        "scale_override_ignored",
        "user scale ignored, 1/sqrt(d) used",
        "A scale that is given replaces 1/√d.",
        option="scale",
        scale=scale_override_ignored,
    ),
)


def softcap_missing(_c: Call, s: np.ndarray) -> Any:
    return s


def softcap_after_mask(c: Call, z: np.ndarray, see: np.ndarray) -> Any:
    hidden = c.softcap * np.tanh(-np.inf)
    return np.where(see, z, hidden)


def softcap_no_divide(c: Call, s: np.ndarray) -> Any:
    return c.softcap * np.tanh(s)


def softcap_clip(c: Call, s: np.ndarray) -> Any:
    return np.clip(s, -c.softcap, c.softcap)


def softcap_before_scale(c: Call, s: np.ndarray) -> Any:
    return c.tau * c.softcap * np.tanh(s / c.tau / c.softcap)


SOFTCAP = (
    planted("softcap_missing", "no softcap", "t = cap · tanh(s / cap).", option="softcap", softcap=softcap_missing),
    planted(
        "softcap_after_mask",
        "softcap applied after masking, so hidden logits become -cap instead of -inf",
        "Cap the scores first, hide keys afterwards: −∞ must stay −∞.",
        partly_hidden,
        option="softcap",
        hide=softcap_after_mask,
    ),
    planted(
        "softcap_no_divide",
        "cap * tanh(s) without dividing by cap",
        "Divide by the cap inside the tanh, so that small scores pass unchanged.",
        option="softcap",
        softcap=softcap_no_divide,
    ),
    planted(
        "softcap_clip",
        "hard clip to [-cap, cap] instead of tanh",
        "The cap is soft: cap · tanh(s / cap).",
        option="softcap",
        softcap=softcap_clip,
    ),
    planted(
        "softcap_before_scale",
        "softcap applied to unscaled scores, scale afterwards",
        "Scale first: the cap bounds the scaled score.",
        option="softcap",
        softcap=softcap_before_scale,
    ),
)


def bias_missing(_c: Call, t: np.ndarray) -> Any:
    return t


def bias_scaled(c: Call, t: np.ndarray) -> Any:
    return t + c.tau * c.bias


def bias_subtracted(c: Call, t: np.ndarray) -> Any:
    return t - c.bias


def bias_batch0(c: Call, t: np.ndarray) -> Any:
    return t + c.bias[:1]


def bias_head0(c: Call, t: np.ndarray) -> Any:
    return t + c.bias[..., :1, :, :]


def bias_rank3_as_batch(c: Call, t: np.ndarray) -> Any:
    return t + c.bias[: len(t), None]


def bias_transposed(c: Call, t: np.ndarray) -> Any:
    return t + c.bias.swapaxes(-1, -2)


def _bias_axis(axis: int, rank: int = 0) -> Any:
    """Act where the bias differs along this axis (and has this rank)."""

    def applies(case: Case) -> bool:
        bias = case.arrays.get("bias")
        return bias is not None and bias.ndim >= -axis and rank in (0, bias.ndim) and bool(bias.shape[axis] > 1)

    return applies


def _heads_cover_batch(case: Case) -> bool:
    return bool(_bias_axis(-3, rank=3)(case) and len(case.arrays["bias"]) >= sizes(case).batch)


def _square_bias(case: Case) -> bool:
    bias = case.arrays.get("bias")
    return bool(bias is not None and bias.ndim >= 2 and bias.shape[-2] == bias.shape[-1] > 1)


BIAS = (
    planted("bias_missing", "additive bias ignored", "z = t + bias.", option="bias", bias=bias_missing),
    planted(
        "bias_scaled",
        "bias added before the scale, so it is scaled too",
        "Add the bias to the scaled score; it is never scaled itself.",
        option="bias",
        bias=bias_scaled,
    ),
    planted("bias_subtracted", "bias sign flipped", "The bias is added.", option="bias", bias=bias_subtracted),
    planted(
        "bias_batch0",
        "bias of batch 0 used for every batch",
        "Step along the bias's batch axis unless its length is 1.",
        _bias_axis(-4),
        option="bias",
        bias=bias_batch0,
    ),
    planted(
        "bias_head0",
        "bias of head 0 used for every head",
        "Step along the bias's head axis unless its length is 1.",
        _bias_axis(-3),
        option="bias",
        bias=bias_head0,
    ),
    planted(
        "bias_rank3_as_batch",
        "rank-3 bias (heads,Sq,Sk) read as (batch,Sq,Sk)",
        "Broadcast right-aligned: three axes are (heads, Sq, Sk).",
        _heads_cover_batch,
        option="bias",
        bias=bias_rank3_as_batch,
    ),
    planted(
        "bias_transposed",
        "bias indexed [j, i]",
        "Rows of the bias are queries, columns are keys.",
        _square_bias,
        option="bias",
        bias=bias_transposed,
    ),
)


def alibi_missing(_c: Call, _slopes: np.ndarray) -> float:
    return 0.0


def alibi_sign(c: Call, slopes: np.ndarray) -> Any:
    return slopes[..., None, None] * np.abs(c.p - c.j)


def alibi_naive_slopes(c: Call) -> Any:
    n = c.q.shape[1]
    return 2.0 ** (-8.0 * (np.arange(n) + 1) / n)


def alibi_h0(c: Call) -> Any:
    n = 2 ** int(np.log2(c.q.shape[1]))  # 2^(−8h/n) is 2^(8/n) times too large, and so are the heads past n
    return c.slopes * 2.0 ** (8.0 / n)


def alibi_scaled(c: Call, slopes: np.ndarray) -> Any:
    return -c.tau * slopes[..., None, None] * np.abs(c.p - c.j)


def alibi_signed(c: Call, slopes: np.ndarray) -> Any:
    return -slopes[..., None, None] * (c.p - c.j)


def alibi_no_offset(c: Call, slopes: np.ndarray) -> Any:
    return -slopes[..., None, None] * np.abs(c.i - c.j)


def _odd_heads(case: Case) -> bool:
    heads = sizes(case).hq
    return heads & (heads - 1) != 0


ALIBI = (
    planted("alibi_missing", "no ALiBi", "z −= m_h |p − j|.", option="alibi_slopes", alibi=alibi_missing),
    planted(
        "alibi_sign",
        "positive slope times distance",
        "Distance lowers the logit: −m_h |p − j| with m_h > 0.",
        option="alibi_slopes",
        alibi=alibi_sign,
    ),
    planted(
        "alibi_naive_slopes",
        "2^(-8(h+1)/H) for a non-power-of-two head count",
        "Take the slopes of the largest power of two, then every other slope of twice as many heads.",
        _odd_heads,
        option="alibi_slopes",
        slopes=alibi_naive_slopes,
    ),
    planted(
        "alibi_h0",
        "exponent uses h instead of h + 1",
        "The first head's slope is 2^(−8/n): heads count from 1 in the exponent.",
        option="alibi_slopes",
        slopes=alibi_h0,
    ),
    planted(
        "alibi_scaled",
        "ALiBi added before the scale",
        "Add it to the scaled score; it is never scaled itself.",
        option="alibi_slopes",
        alibi=alibi_scaled,
    ),
    planted(
        "alibi_signed",
        "-slope * (p - j) without the absolute value",
        "Keys on either side are penalised: take the absolute distance.",
        not_causal,
        option="alibi_slopes",
        alibi=alibi_signed,
    ),
    planted(
        "alibi_no_offset",
        "distance from the row number, ignoring the offset",
        "Measure from the query's position p = i + offset, not from its row.",
        lambda case: case.options.get("align", "top_left") != "top_left",
        option="alibi_slopes",
        alibi=alibi_no_offset,
    ),
)
