"""Choices on which correct attentions differ, and how a backend that chose otherwise is spoken to.

Equation source: the attention sheet, section 3 (what an adapter declares) and section 7 (who chose what). A convention
either translates, so that the backend is judged by the same numbers, or it changes what is expected, and the verdict is
*acceptable* with the convention's name. What a backend lacks it need not declare: the kit skips what it refuses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Convention
from refattn.contracts.attention.bugs.plant import partly_hidden
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.pipeline import sees
from refattn.contracts.attention.surgery import has, positional, positions
from refattn.primitives.alibi import alibi_bias

if TYPE_CHECKING:
    from refattn.conformance.contract import Case, Outputs

__all__ = ["CONVENTIONS"]

_DENSE = ("attention", "attention_vjp")
_HEADED = ("q", "k", "v", "dout", "out", "dq", "dk", "dv")
_RULES = ("causal", "window", "kv_lengths", "q_lengths", "prefix", "doc_q", "doc_k", "chunk")


def _send_layout(case: Case, _value: str) -> Case:
    if case.entry == "attention_paged":
        return case.having(q=case.arrays["q"].swapaxes(1, 2))
    if case.entry not in _DENSE:
        return case
    if case.options.get("layout") == "bshd":
        return case.without("layout")
    return case.having(**{name: x.swapaxes(1, 2) for name, x in case.arrays.items() if name in _HEADED})


def _receive_layout(outputs: Outputs, case: Case, _value: str) -> Outputs:
    swapped = case.entry in (*_DENSE, "attention_paged") and case.options.get("layout", "bhsd") == "bhsd"
    return {name: x.swapaxes(1, 2) if swapped and name in _HEADED else x for name, x in outputs.items()}


def _expect_alignment(case: Case, value: str) -> Case:
    asked = case.options.get("align", "top_left")
    same = case.entry not in _DENSE or not positional(case) or asked == value
    return case if same else case.having(align=value)


def _send_alignment(case: Case, _value: str) -> Case:
    return case.without("align") if case.entry in _DENSE else case


def _send_visibility(case: Case, _value: str) -> Case:
    """Put every rule about who sees whom into one boolean mask; positions stay for ALiBi."""
    if case.entry not in _DENSE or not partly_hidden(case):
        return case
    mask = sees(case.without("bias"))
    kept = () if has(case, "alibi_slopes") else ("align",)
    return case.without(*_RULES, *kept).having(mask=mask)


def _send_mask(case: Case, value: str) -> Case:
    if "mask" not in case.arrays:
        return case
    mask = case.arrays["mask"]
    if value == "ignore":
        return case.having(mask=~mask)
    return case.without("mask").having(bias=np.where(mask, case.arrays.get("bias", 0.0), -np.inf))


def _send_window(case: Case, _value: str) -> Case:
    left, right = case.options.get("window", (None, None))
    return case if left is None else case.having(window=(left + 1, right))


def _send_unbounded(case: Case, _value: str) -> Case:
    window = case.options.get("window")
    if window is None or all(side is None for side in window):
        return case
    return case.having(window=tuple(-1 if side is None else side for side in window))


def _send_alibi(case: Case, _value: str) -> Case:
    if case.entry not in _DENSE or not has(case, "alibi_slopes"):
        return case
    bias = alibi_bias(case.arrays["alibi_slopes"], positions(case)[:, None], np.arange(sizes(case).sk))
    bias = bias.reshape(math.prod(bias.shape[:-3]), *bias.shape[-3:])  # −1 says nothing about an empty axis
    kept = () if any(has(case, name) for name in _RULES) else ("align",)
    return case.without("alibi_slopes", *kept).having(bias=bias + case.arrays.get("bias", 0.0))


def _expect_empty(case: Case, value: str) -> Case:
    if case.entry in {"rotary_embedding", "merge_attention"}:
        return case
    return case if case.options.get("empty", "zero") == value else case.having(empty=value)


def _send_empty(case: Case, _value: str) -> Case:
    return case.without("empty")


_KV_HEAD_AXIS = {"attention": 1, "attention_vjp": 1, "attention_varlen": 1, "attention_paged": 2}


def _kv_names(case: Case) -> tuple[str, ...]:
    return ("k_pages", "v_pages") if case.entry == "attention_paged" else ("k", "v")


def _group(case: Case) -> int:
    """Return G, whatever the entry and layout."""
    axis = _KV_HEAD_AXIS[case.entry] + (case.entry in _DENSE and case.options.get("layout") == "bshd")
    hq = case.arrays["q"].shape[1 if case.entry == "attention_paged" else axis]
    return int(hq // max(case.arrays[_kv_names(case)[0]].shape[axis], 1))


def _send_heads(case: Case, _value: str) -> Case:
    if case.entry not in _KV_HEAD_AXIS or _group(case) <= 1:
        return case
    axis = _KV_HEAD_AXIS[case.entry] + (case.entry in _DENSE and case.options.get("layout") == "bshd")
    return case.having(**{name: np.repeat(case.arrays[name], _group(case), axis=axis) for name in _kv_names(case)})


def _receive_heads(outputs: Outputs, case: Case, _value: str) -> Outputs:
    if case.entry != "attention_vjp" or _group(case) <= 1:
        return outputs
    own = 2 if case.options.get("layout") == "bshd" else 1
    return {name: _summed(x, case, own, name[1:]) if name in ("dk", "dv") else x for name, x in outputs.items()}


def _summed(x: np.ndarray, case: Case, own: int, name: str) -> np.ndarray:
    """Sum the gradients of repeated heads, whichever of the two layouts they are still in."""
    shape, group = case.arrays[name].shape, _group(case)
    axis = own if x.shape[own] == group * shape[own] and x.shape[3 - own] == shape[3 - own] else 3 - own
    apart = (*x.shape[:axis], x.shape[axis] // group, group, *x.shape[axis + 1 :])
    return np.asarray(x.reshape(apart).sum(axis=axis + 1))


def _receive_base(outputs: Outputs, _case: Case, _value: str) -> Outputs:
    return {name: x * np.log(2.0) if name == "lse" else x for name, x in outputs.items()}


def _receive_empty_lse(outputs: Outputs, _case: Case, _value: str) -> Outputs:
    return {name: np.where(np.isposinf(x), -np.inf, x) if name == "lse" else x for name, x in outputs.items()}


def _receive_lse_layout(outputs: Outputs, case: Case, _value: str) -> Outputs:
    swapped = case.entry in (*_DENSE, "attention_paged")
    return {name: x.swapaxes(1, 2) if swapped and name == "lse" else x for name, x in outputs.items()}


def _convention(name: str, choices: dict[str, str], **how: Any) -> Convention:
    return Convention(name, choices, **how)


# Sending goes down this list, so the dense mask is made before its sense is turned, and heads swap last.
CONVENTIONS = (
    _convention(
        "align",
        {
            "as_asked": "Positions follow the option align.",
            "top_left": "The first query always has position 0 (PyTorch is_causal, JAX).",
            "bottom_right": "The last query always sees the last key (FlashAttention since 2.1).",
        },
        expect=_expect_alignment,
        send=_send_alignment,
    ),
    _convention(
        "empty",
        {
            "as_asked": "Rows that see nothing follow the option empty.",
            "zero": "They are 0 (PyTorch, ONNX, FlashAttention).",
            "nan": "They are NaN (torch.nn.MultiheadAttention with weights).",
            "uniform": "They are the mean over all values (JAX, Hugging Face eager).",
        },
        expect=_expect_empty,
        send=_send_empty,
    ),
    _convention(
        "alibi",
        {"slopes": "ALiBi comes as slopes.", "bias": "ALiBi comes as an additive bias."},
        send=_send_alibi,
    ),
    _convention(
        "visibility",
        {
            "rules": "Causality, windows, lengths, documents, prefixes and chunks come as options.",
            "mask": "All of them come as one boolean mask.",
        },
        send=_send_visibility,
    ),
    _convention(
        "mask",
        {
            "attend": "True in a mask means attend.",
            "ignore": "True in a mask means ignore (torch.nn.MultiheadAttention).",
            "bias": "Masks come as a bias of 0 and −∞ (Hugging Face).",
        },
        send=_send_mask,
    ),
    _convention(
        "window",
        {
            "beside": "A window counts the keys beside the query's own position.",
            "with_self": "The left side counts the query's own position too (Hugging Face's sliding_window, cuDNN).",
        },
        send=_send_window,
    ),
    _convention(
        "unbounded",
        {"none": "None is an open side of a window.", "minus_one": "−1 is (ONNX, FlashAttention)."},
        send=_send_unbounded,
    ),
    _convention(
        "kv_heads",
        {
            "grouped": "Keys and values come with Hkv heads; query head h reads head h // G.",
            "repeated": "Keys and values come with every head repeated for its query heads.",
        },
        send=_send_heads,
        receive=_receive_heads,
    ),
    _convention(
        "layout",
        {
            "bhsd": "Heads before length (PyTorch, ONNX).",
            "bshd": "Length before heads, in inputs, output and gradients (FlashAttention, JAX).",
        },
        send=_send_layout,
        receive=_receive_layout,
    ),
    _convention(
        "lse_base",
        {"e": "Log-sum-exps are natural.", "2": "They are in base 2."},
        receive=_receive_base,
    ),
    _convention(
        "lse_empty",
        {"minus_infinity": "An empty row has L = −∞.", "plus_infinity": "It has +∞ (FlashAttention-2)."},
        receive=_receive_empty_lse,
    ),
    _convention(
        "lse_layout",
        {"bhs": "L is (B, Hq, Sq).", "bsh": "L is (B, Sq, Hq) (JAX)."},
        receive=_receive_lse_layout,
    ),
)
