"""Attention as a chain of small float64 steps, each of which can be replaced: the carrier of the planted bugs.

Equation source: the attention sheet, section 2.0, steps 1 to 7. With no step replaced, `run` equals the reference; with
one step replaced, it is a named wrong attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.contracts.attention.call import Call, each, heads_first
from refattn.contracts.attention.carriers import (
    blocks,
    denominator,
    direct,
    divide,
    exponential,
    load,
    maximum,
    merge,
    product,
    rescale,
    sink,
    softmax,
    weights,
)
from refattn.primitives.attention import AttentionResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.conformance.contract import Case

__all__ = ["Steps", "assigned", "logits_of", "run", "sees", "visible"]

Step = Callable[..., Any]


def read(c: Call) -> Call:
    """Take the arguments as they are."""
    return c


def kv_head(c: Call) -> np.ndarray:
    """Return the kv head h // G of each query head: (Hq,)."""
    hq, hkv = c.q.shape[1], c.k.shape[1]
    return np.asarray(np.arange(hq) // max(hq // max(hkv, 1), 1))


def scale(c: Call) -> float:
    """Return τ."""
    return float(1.0 / np.sqrt(c.q.shape[-1])) if c.scale is None else c.scale


def score(c: Call) -> np.ndarray:
    """Return s = τ Q Kᵀ: (B, Hq, Sq, Sk)."""
    return np.asarray(c.tau * (c.q @ c.k.swapaxes(-1, -2)))


def softcap(c: Call, s: np.ndarray) -> np.ndarray:
    """Return t = cap · tanh(s / cap)."""
    return np.asarray(c.softcap * np.tanh(s / c.softcap)) if c.softcap else s


def bias(c: Call, t: np.ndarray) -> np.ndarray:
    """Return t plus the bias."""
    return t if c.bias is None else np.asarray(t + c.bias)


def slopes(c: Call) -> Any:
    """Return the ALiBi slopes."""
    return c.slopes


def alibi(c: Call, slopes: np.ndarray) -> np.ndarray:
    """Return what ALiBi adds: −m_h |p − j|."""
    return np.asarray(-slopes[..., None, None] * np.abs(c.p - c.j))


def lengths(c: Call) -> np.ndarray:
    """Return which keys and queries are no padding."""
    return np.asarray((c.j < each(c.kv_lengths)) & (c.i < each(c.q_lengths)))


def documents(c: Call) -> Any:
    """Return which query and key are of one document."""
    if c.doc_q is None or c.doc_k is None:
        return True
    same = c.doc_q[..., :, None] == c.doc_k[..., None, :]  # (Sq, Sk) or (B, Sq, Sk)
    return same[:, None] if same.ndim == 3 else same


def window(c: Call) -> Any:
    """Return p − left ≤ j ≤ p + right."""
    left, right = c.window
    near = np.True_ if left is None else c.p - left <= c.j
    return near if right is None else near & (c.j <= c.p + right)


def chunks(c: Call) -> Any:
    """Return which query and key are of one chunk of positions."""
    return True if c.chunk is None else c.p // c.chunk == c.j // c.chunk


def causal(c: Call) -> Any:
    """Return j ≤ p."""
    return c.j <= c.p if c.causal else True


def prefix(c: Call) -> Any:
    """Return which keys the causal rule does not hide."""
    return c.j < each(c.prefix) if c.causal and c.prefix is not None else False


def mask(c: Call) -> Any:
    """Return the user's mask."""
    return True if c.mask is None else c.mask


def combine(_c: Call, mask: Any, order: Any, others: Any) -> np.ndarray:
    """Return who is visible by all rules together."""
    return np.asarray(mask & order & others)


def hide(_c: Call, z: np.ndarray, see: np.ndarray) -> np.ndarray:
    """Return the logits with −∞ where nothing is to be seen."""
    return np.where(see, z, -np.inf)


def empty(c: Call, out: np.ndarray, none: np.ndarray) -> np.ndarray:
    """Give rows that see nothing what the policy says; padded queries get 0 whatever it is."""
    none = none & (c.i < each(c.q_lengths))
    if c.empty == "uniform":
        return np.where(none, c.v.sum(axis=2, keepdims=True) / max(c.k.shape[2], 1), out)
    return np.where(none, np.nan, out) if c.empty == "nan" else out


def output(_c: Call, out: np.ndarray) -> np.ndarray:
    """Write the output."""
    return out


@dataclass(frozen=True)
class Steps:
    """The steps of the pipeline in their order; every planted bug replaces one of them, rarely two."""

    read: Step = read
    kv_head: Step = kv_head
    scale: Step = scale
    score: Step = score
    softcap: Step = softcap
    bias: Step = bias
    slopes: Step = slopes
    alibi: Step = alibi
    mask: Step = mask
    causal: Step = causal
    prefix: Step = prefix
    lengths: Step = lengths
    documents: Step = documents
    window: Step = window
    chunks: Step = chunks
    combine: Step = combine
    hide: Step = hide
    attend: Step = direct
    sink: Step = sink
    normalise: Step = softmax
    maximum: Step = maximum
    exponential: Step = exponential
    denominator: Step = denominator
    divide: Step = divide
    weights: Step = weights
    product: Step = product
    blocks: Step = blocks
    load: Step = load
    rescale: Step = rescale
    merge: Step = merge
    empty: Step = empty
    output: Step = output


def assigned(steps: Steps, c: Call) -> Call:
    """Return the call with a kv head for every query head, and with its scale settled."""
    heads = steps.kv_head(c)
    return c.having(k=c.k[:, heads], v=c.v[:, heads], tau=steps.scale(c))


def visible(steps: Steps, c: Call) -> np.ndarray:
    """Return who sees whom: (B|1, Hq|1, Sq, Sk)."""
    order = steps.causal(c) | steps.prefix(c)
    others = steps.lengths(c) & steps.documents(c) & steps.window(c) & steps.chunks(c)
    return np.asarray(steps.combine(c, steps.mask(c), order, others))


def logits_of(steps: Steps, c: Call) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return scores s, softcapped t, logits z and who is visible."""
    s = steps.score(c)
    t = steps.softcap(c, s)
    z = steps.bias(c, t)
    slopes = steps.slopes(c)
    if slopes is not None:
        z = z + steps.alibi(c, slopes)
    see = visible(steps, c)
    return s, t, steps.hide(c, z, see), see


def run(
    steps: Steps,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    layout: str = "bhsd",
    returns: str | Sequence[str] = ("out",),
    **options: Any,
) -> AttentionResult:
    """Compute attention by ``steps``; arguments and results are those of the reference.

    Parameters
    ----------
    steps : Steps
        `Steps()` is the right attention.
    q, k, v, layout, returns, **options
        As for `refattn.primitives.attention.attention`; float64.

    Returns
    -------
    AttentionResult
    """
    q, k, v = (heads_first(x, layout) for x in (q, k, v))
    with np.errstate(all="ignore"):  # a mistake may well overflow
        c = assigned(steps, steps.read(Call.of(q, k, v, **options)))
        s, t, z, see = logits_of(steps, c)
        o, P, L = steps.attend(steps, c, z, see)
        o = steps.output(c, steps.empty(c, o, np.isneginf(L)[..., None]))
    named = {"out": heads_first(o, layout), "weights": P, "lse": L, "logits": z, "scores": s, "softcapped": t}
    asked = (returns,) if isinstance(returns, str) else returns
    return AttentionResult(**{name: named[name] for name in asked})


def sees(case: Case) -> np.ndarray:
    """Return who sees whom in a case of `attention`, biases of −∞ included: bool, (B, Hq, Sq, Sk)."""
    given = {**case.arrays, **case.options}
    layout = given.get("layout", "bhsd")
    q, k, v = (heads_first(given[name], layout) for name in "qkv")
    for name in ("q", "k", "v", "dout", "dlse", "layout", "returns"):
        given.pop(name, None)
    c = Call.of(q, k, v, **given)
    see = visible(Steps(), c)
    if c.bias is not None:
        see = see & ~np.isneginf(c.bias)
    return np.broadcast_to(see, (*q.shape[:3], k.shape[2]))
