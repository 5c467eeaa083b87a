"""One block of attention and how blocks are put together: what a rank computes while keys and values pass by.

The arithmetic of the attention engine of Zeppelin (2509.21841), which is that of ring attention (2310.01889)
[recalled]. Equation labels (zep-block) … (zep-grad) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_shape
from refattn.primitives.attention_online import merge_attention
from refattn.primitives.softmax import normalise, shifted_exponentials

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BlockRule",
    "RingGradients",
    "attention_block",
    "attention_block_gradient",
    "check_heads",
    "empty_partial",
    "merge_partial",
    "packed_block",
    "packed_block_gradient",
]


class BlockRule(NamedTuple):
    """What all blocks of one call have in common.

    Attributes
    ----------
    scale : float
        Multiplies every score.
    causal : bool
        Hide the keys that stand behind the query.
    """

    scale: float
    causal: bool


class RingGradients(NamedTuple):
    """Gradients of queries, keys and values, in their shapes."""

    dq: Any
    dk: Any
    dv: Any


def attention_block(
    q: Any, k: Any, v: Any, q_pos: Any, k_pos: Any, *, scale: float | None = None, causal: bool = True
) -> tuple[Any, Any]:
    """Attend from some tokens to some others, and say how much weight there was.

    Parameters
    ----------
    q : array_like, shape (n_q, h, d)
        Queries.
    k, v : array_like, shape (n_k, h_kv, d), (n_k, h_kv, d_v)
        Keys and values; query head j reads head ⌊j / (h / h_kv)⌋ of them.
    q_pos, k_pos : array_like of int, shape (n_q,), (n_k,)
        Where the tokens stand in the whole sequence, in any order.
    scale : float, optional
        Multiplies every score; 1/√d if not given.
    causal : bool
        Hide the keys that stand behind the query.

    Returns
    -------
    out : ndarray, shape (n_q, h, d_v)
        The weighted means of the values; 0 where the block hides every key.
    lse : ndarray, shape (n_q, h)
        Logarithm of the sum of exponentials of the scores; −∞ where the block hides every key.

    Raises
    ------
    ValueError
        If shapes do not fit, or h is no multiple of h_kv.
    """
    q, k, v, rule = check_heads(q, k, v, scale=scale, causal=causal)
    return _block(q, k, v, *_positions(q, k, q_pos, k_pos), rule)


def merge_partial(out_a: Any, lse_a: Any, out_b: Any, lse_b: Any) -> tuple[Any, Any]:
    """Put two partial results together, each weighted by the weight that its keys had.

    Parameters
    ----------
    out_a, out_b : array_like, shape (..., d_v)
        Outputs over two disjoint sets of keys.
    lse_a, lse_b : array_like, shape (...,)
        Their log-sum-exps; −∞ = saw no key.

    Returns
    -------
    out : ndarray, shape (..., d_v)
        The output over both sets; 0 where neither saw a key.
    lse : ndarray, shape (...,)
        Its log-sum-exp.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a log-sum-exp is +∞.

    Notes
    -----
    Commutative and associative, up to rounding; (0, −∞) is its neutral element. Public code writes the same as
    o_a − σ(l_b − l_a)(o_a − o_b) and l_a − log σ(l_a − l_b).
    """
    out_a, lse_a, out_b, lse_b = (
        as_float(name, x) for name, x in (("out_a", out_a), ("lse_a", lse_a), ("out_b", out_b), ("lse_b", lse_b))
    )
    require(out_a.ndim >= 1, f"out_a has shape {out_a.shape}, expected (..., d_v)")
    require_shape("out_b", out_b, out_a.shape)
    require_shape("lse_a", lse_a, out_a.shape[:-1])
    require_shape("lse_b", lse_b, out_a.shape[:-1])
    # eq: zep-merge
    return merge_attention((out_a, out_b), (lse_a, lse_b))


def empty_partial(q: Any, v: Any) -> tuple[Any, Any]:
    """Return the partial result of queries that have seen no key: (0, −∞)."""
    return np.zeros((*q.shape[:2], v.shape[-1]), q.dtype), np.full(q.shape[:2], -np.inf, q.dtype)


def attention_block_gradient(
    q: Any,
    k: Any,
    v: Any,
    q_pos: Any,
    k_pos: Any,
    d_out: Any,
    delta: Any,
    lse: Any,
    *,
    scale: float | None = None,
    causal: bool = True,
) -> RingGradients:
    """Pull the cotangent of the whole output back through one block of keys.

    Parameters
    ----------
    q, k, v, q_pos, k_pos, scale, causal
        As in `attention_block`.
    d_out : array_like, shape (n_q, h, d_v)
        Cotangent of the output over all keys.
    delta : array_like, shape (n_q, h)
        Σ_c d_out_c · out_c with the output over all keys.
    lse : array_like, shape (n_q, h)
        Log-sum-exp over all keys, by which the weights are found again.

    Returns
    -------
    RingGradients
        What this block adds to the gradients of its queries, keys and values.

    Raises
    ------
    ValueError
        If shapes do not fit, or h is no multiple of h_kv.
    """
    q, k, v, rule = check_heads(q, k, v, scale=scale, causal=causal)
    d_out, delta, lse = (as_float(n, x) for n, x in (("d_out", d_out), ("delta", delta), ("lse", lse)))
    require_shape("d_out", d_out, (*q.shape[:2], v.shape[-1]))
    require_shape("delta", delta, q.shape[:2])
    require_shape("lse", lse, q.shape[:2])
    q_pos, k_pos = _positions(q, k, q_pos, k_pos)
    return _block_gradient(q, k, v, q_pos, k_pos, (d_out, delta, lse), rule)


def packed_block(
    q: Any, k: Any, v: Any, q_parts: Sequence[Any], k_parts: Sequence[Any], rule: BlockRule
) -> tuple[Any, Any]:
    """Attend from the tokens of one rank to those of one rank, each packed sequence on its own; checks nothing.

    Parameters
    ----------
    q, k, v : ndarray, shape (n_q, h, d), (n_k, h_kv, d), (n_k, h_kv, d_v)
        Tokens that one rank holds, sequence after sequence.
    q_parts, k_parts : sequence of ndarray of int
        Positions of these tokens, an array a sequence.
    rule : BlockRule
        Scale and mask.

    Returns
    -------
    out, lse : ndarray, shape (n_q, h, d_v), (n_q, h)
        As `attention_block`.
    """
    blocks = [
        _block(q[rows], k[columns], v[columns], q_pos, k_pos, rule)
        for rows, columns, q_pos, k_pos in _paired(q_parts, k_parts)
    ]
    out, lse = (np.concatenate(x) for x in zip(*blocks, strict=True))
    return out, lse


def packed_block_gradient(
    q: Any, k: Any, v: Any, saved: tuple[Any, ...], parts: tuple[Sequence[Any], Sequence[Any]], rule: BlockRule
) -> RingGradients:
    """Pull cotangents back through a block of packed sequences; checks nothing.

    Parameters
    ----------
    q, k, v, rule
        As in `packed_block`.
    saved : tuple of ndarray
        d_out, delta and lse of the queries, as in `attention_block_gradient`.
    parts : pair of sequences of ndarray of int
        Positions of the queries and of the keys, an array a sequence.

    Returns
    -------
    RingGradients
        What the block adds to the gradients.
    """
    blocks = [
        _block_gradient(q[rows], k[columns], v[columns], q_pos, k_pos, tuple(x[rows] for x in saved), rule)
        for rows, columns, q_pos, k_pos in _paired(*parts)
    ]
    return RingGradients(*(np.concatenate(x) for x in zip(*blocks, strict=True)))


def check_heads(q: Any, k: Any, v: Any, *, scale: float | None, causal: bool) -> tuple[Any, Any, Any, BlockRule]:
    """Return queries, keys and values as arrays of one dtype whose heads fit together, and the rule of their blocks.

    Parameters
    ----------
    q, k, v, scale, causal
        As in `attention_block`.

    Returns
    -------
    q, k, v : ndarray
        In the dtype of ``q``.
    rule : BlockRule
        With the default scale filled in.

    Raises
    ------
    ValueError
        If a number of axes or a size does not fit, or h is no multiple of h_kv.
    """
    q, k, v = (as_float(name, x, ndim=3) for name, x in (("q", q), ("k", k), ("v", v)))
    (_, h, d), (n_k, h_kv, _) = q.shape, k.shape
    require(d >= 1, f"q has shape {q.shape}; heads must have at least one channel")
    require_shape("k", k, (n_k, h_kv, d))
    require_shape("v", v, (n_k, h_kv, v.shape[-1]))
    require(h_kv >= 1 and h % h_kv == 0, f"q has {h} heads, which is no multiple of the {h_kv} heads of k and v")
    require(scale is None or np.isfinite(scale), f"scale={scale!r} must be finite")
    rule = BlockRule(d**-0.5 if scale is None else float(scale), bool(causal))
    return q, k.astype(q.dtype, copy=False), v.astype(q.dtype, copy=False), rule


@np.errstate(under="ignore", divide="ignore")
def _block(q: Any, k: Any, v: Any, q_pos: Any, k_pos: Any, rule: BlockRule) -> tuple[Any, Any]:
    k, v = _repeated(q, k, v)  # (n_k, h, d), (n_k, h, d_v)
    S, visible = _scores(q, k, q_pos, k_pos, rule)  # (h, n_q, n_k)
    # eq: zep-block
    e, l, m = shifted_exponentials(S, where=visible)  # (h, n_q, n_k), (h, n_q, 1), (h, n_q, 1)
    out = normalise(e, l) @ np.swapaxes(v, 0, 1)  # (h, n_q, d_v)
    lse = (m + np.log(l))[..., 0]  # (h, n_q); log 0 = −∞ where nothing is visible
    return np.swapaxes(out, 0, 1), np.swapaxes(lse, 0, 1)


@np.errstate(under="ignore")
def _block_gradient(
    q: Any, k: Any, v: Any, q_pos: Any, k_pos: Any, saved: tuple[Any, ...], rule: BlockRule
) -> RingGradients:
    d_out, delta, lse = saved
    keys, values = _repeated(q, k, v)
    S, visible = _scores(q, keys, q_pos, k_pos, rule)  # (h, n_q, n_k)
    heads = _heads_first
    # eq: zep-weights
    shift = heads(np.where(lse == -np.inf, 0, lse)[..., None])  # (h, n_q, 1); −∞ − (−∞) is NaN
    P = np.exp(np.where(visible, S, S.dtype.type(-np.inf)) - shift)  # (h, n_q, n_k)
    dO = heads(d_out)  # (h, n_q, d_v)
    # eq: zep-grad
    dV = np.swapaxes(P, 1, 2) @ dO  # (h, n_k, d_v)
    dP = dO @ np.swapaxes(heads(values), 1, 2)  # (h, n_q, n_k)
    dS = rule.scale * P * (dP - heads(delta[..., None]))  # (h, n_q, n_k)
    dQ = dS @ heads(keys)  # (h, n_q, d)
    dK = np.swapaxes(dS, 1, 2) @ heads(q)  # (h, n_k, d)
    return RingGradients(heads(dQ), _summed(heads(dK), k.shape[1]), _summed(heads(dV), k.shape[1]))


def _scores(q: Any, k: Any, q_pos: Any, k_pos: Any, rule: BlockRule) -> tuple[Any, Any]:
    """Return the scaled scores, and which of them take part."""
    S = rule.scale * (_heads_first(q) @ np.swapaxes(_heads_first(k), 1, 2))  # (h, n_q, n_k)
    visible = k_pos <= q_pos[:, None] if rule.causal else np.ones((len(q_pos), len(k_pos)), dtype=bool)  # (n_q, n_k)
    return S, np.broadcast_to(visible, S.shape)


def _heads_first(x: Any) -> Any:
    """Exchange tokens and heads, in either direction."""
    return np.swapaxes(x, 0, 1)


def _repeated(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """Give every query head its own copy of the key and value head that it reads."""
    group = q.shape[1] // k.shape[1]
    return np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)


def _summed(x: Any, kv_heads: int) -> Any:
    """Add up the gradients of the copies that `_repeated` made."""
    return x.reshape(x.shape[0], kv_heads, x.shape[1] // kv_heads, x.shape[2]).sum(axis=2)


def _positions(q: Any, k: Any, q_pos: Any, k_pos: Any) -> tuple[Any, Any]:
    q_pos, k_pos = as_integer("q_pos", q_pos, ndim=1), as_integer("k_pos", k_pos, ndim=1)
    require_shape("q_pos", q_pos, q.shape[:1])
    require_shape("k_pos", k_pos, k.shape[:1])
    return q_pos, k_pos


def _paired(q_parts: Sequence[Any], k_parts: Sequence[Any]) -> list[tuple[slice, slice, Any, Any]]:
    """Return, for each packed sequence, its rows among the queries, its rows among the keys, and the positions."""
    return list(zip(_slices(q_parts), _slices(k_parts), q_parts, k_parts, strict=True))


def _slices(parts: Sequence[Any]) -> list[slice]:
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return [slice(end - len(part), end) for end, part in zip(ends, parts, strict=True)]
