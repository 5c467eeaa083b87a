"""Mistakes about who sees whom, part one: boolean masks, and how hidden logits are hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.contracts.attention.bugs.plant import is_causal, partly_hidden, planted

if TYPE_CHECKING:
    from refattn.conformance.contract import Case
    from refattn.contracts.attention.call import Call

__all__ = ["MASK"]


def mask_inverted(c: Call) -> Any:
    return ~c.mask


def mask_ignored(_c: Call) -> bool:
    return True


def mask_transposed(c: Call) -> Any:
    return c.mask.swapaxes(-1, -2)


def mask_batch0(c: Call) -> Any:
    return c.mask[:1]


def mask_as_float(c: Call, t: np.ndarray) -> Any:
    return t + c.mask.astype(float) if c.bias is None else t + c.bias + c.mask.astype(float)


def keep_all(_c: Call, z: np.ndarray, _see: np.ndarray) -> Any:
    return z


def mask_post_softmax(_c: Call, P: np.ndarray, see: np.ndarray) -> Any:
    return P * see


def mask_zero_logit(_c: Call, z: np.ndarray, see: np.ndarray) -> Any:
    return np.where(see, z, 0.0)


def mask_minus_10(_c: Call, z: np.ndarray, see: np.ndarray) -> Any:
    return np.where(see, z, -10.0)


def mask_minus_100_added(_c: Call, z: np.ndarray, see: np.ndarray) -> Any:
    return z + np.where(see, 0.0, -100.0)


def mask_or_causal(c: Call, mask: Any, order: Any, others: Any) -> Any:
    return (mask | order if c.causal else mask) & others


def mask_dropped_when_causal(c: Call) -> Any:
    return True if c.causal else c.mask


def _square_mask(case: Case) -> bool:
    mask = case.arrays.get("mask")
    return bool(mask is not None and mask.ndim >= 2 and mask.shape[-2] == mask.shape[-1] > 1)


def _batched_mask(case: Case) -> bool:
    mask = case.arrays.get("mask")
    return bool(mask is not None and mask.ndim == 4 and len(mask) > 1)


MASK = (
    planted("mask_inverted", "True taken as 'hide'", "True means attend.", option="mask", mask=mask_inverted),
    planted(
        "mask_ignored", "user mask ignored", "AND the mask with every other rule.", option="mask", mask=mask_ignored
    ),
    planted(
        "mask_transposed",
        "user mask indexed [j, i]",
        "Rows of the mask are queries, columns are keys.",
        _square_mask,
        option="mask",
        mask=mask_transposed,
    ),
    planted(
        "mask_batch0",
        "mask of batch 0 used for every batch",
        "Step along the mask's batch axis unless its length is 1.",
        _batched_mask,
        option="mask",
        mask=mask_batch0,
    ),
    planted(
        "mask_as_float",
        "boolean mask added to the logits as 0/1",
        "A boolean mask selects; it is not a number to add.",
        option="mask",
        bias=mask_as_float,
        mask=mask_ignored,
    ),
    planted(
        "mask_post_softmax",
        "weights zeroed after the softmax, not renormalised",
        "Hide logits before the softmax, so that the visible weights sum to 1.",
        partly_hidden,
        weights=mask_post_softmax,
        hide=keep_all,
    ),
    planted(
        "mask_zero_logit",
        "hidden logits set to 0 instead of -inf",
        "A logit of 0 still has the weight e⁰; hide with −∞.",
        partly_hidden,
        hide=mask_zero_logit,
    ),
    planted(
        "mask_minus_10",
        "hidden logits get -10 instead of -inf",
        "A finite fill leaks where logits are low; hide with −∞.",
        partly_hidden,
        hide=mask_minus_10,
    ),
    planted(
        "mask_minus_100_added",
        "-100 is added to hidden logits (finite additive mask)",
        "A finite fill leaks where hidden logits are high and fills empty rows; hide with −∞.",
        partly_hidden,
        hide=mask_minus_100_added,
    ),
    planted(
        "mask_or_causal",
        "mask and causal combined with OR",
        "Restrictions AND together.",
        is_causal,
        option="mask",
        combine=mask_or_causal,
    ),
    planted(
        "mask_dropped_when_causal",
        "user mask ignored when causal is set",
        "The causal rule is one more restriction, not a replacement.",
        is_causal,
        option="mask",
        mask=mask_dropped_when_causal,
    ),
)
