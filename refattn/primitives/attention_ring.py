"""Ring attention: every rank keeps its queries, the blocks of keys travel round the ring, and the parts are merged.

Equation source: Ring attention 2310.01889, striped attention 2311.09431 [recalled]; zigzag as ring-flash-attention
places it; rule R27 of the attention page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from refattn.primitives.arguments import require, require_one_of
from refattn.primitives.attention_arguments import AttentionCall, AttentionOptions, check_attention
from refattn.primitives.attention_online import merge_attention, streamed_names, streamed_result
from refattn.primitives.attention_pipeline import masked_logits, weighted_sum
from refattn.primitives.softmax import normalise, shifted_exponentials

if TYPE_CHECKING:
    from refattn.primitives.attention import AttentionResult

__all__ = ["ring_attention", "ring_placement"]


def ring_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    world: int,
    placement: str = "contiguous",
    returns: Any = ("out",),
    **options: Unpack[AttentionOptions],
) -> AttentionResult:
    """Simulate attention on ``world`` ranks, each holding some of the queries and some of the keys.

    Parameters
    ----------
    q, k, v : array_like, shape (B, Hq, Sq, d), (B, Hkv, Sk, d), (B, Hkv, Sk, dv)
        Queries, keys and values of the whole sequence.
    world : int
        Number of ranks.
    placement : {"contiguous", "striped", "zigzag"}
        Which tokens a rank holds, see `ring_placement`.
    returns : str, or sequence of str
        ``out`` and ``lse``.
    **options
        As in `attention.attention`.

    Returns
    -------
    AttentionResult
        ``out`` and ``lse`` in the order of the sequence, equal to those of `attention.attention` up to rounding.

    Raises
    ------
    ValueError, TypeError
        As in `attention.attention`, or if ``world`` is not positive or ``placement`` unknown.

    Notes
    -----
    Only the positions of a rank's keys matter, so one rule serves every placement. The placements differ in how evenly
    they spread the work under a causal mask.
    """
    names = streamed_names(returns)
    call = check_attention(q, k, v, **options)
    queries = ring_placement(call.rules.sq, world=world, placement=placement)
    keys = ring_placement(call.rules.sk, world=world, placement=placement)
    batch, heads, sq, _ = call.shape
    out, lse = np.empty((batch, heads, sq, call.v.shape[3])), np.empty((batch, heads, sq))
    for rank, rows in enumerate(queries):
        # at step n the keys of the n-th rank behind have arrived
        parts = [_attend_part(call, rows, keys[(rank - n) % world]) for n in range(world)]
        # eq: R27
        out[:, :, rows], lse[:, :, rows] = merge_attention(
            [o for o, _ in parts], [L for _, L in parts], sinks=call.sinks
        )
    return streamed_result(call, out, lse, names)


@np.errstate(all="ignore")  # hidden keys may hold anything: what they overflow to is thrown away
def _attend_part(call: AttentionCall, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, _, z, visible = masked_logits(call, rows, columns)  # (B, Hq, Sq, Sk)
    v = np.repeat(call.v[:, :, columns], call.group, axis=1)  # (B, Hq, Sk, dv)
    e, l, m = shifted_exponentials(z, where=visible)
    return weighted_sum(normalise(e, l, where=visible), v, visible), (m + np.log(l))[..., 0]


def ring_placement(length: int, *, world: int, placement: str = "contiguous") -> list[np.ndarray]:
    """Return the tokens that each rank holds, ascending.

    Parameters
    ----------
    length : int
        Number of tokens S.
    world : int
        Number of ranks W.
    placement : {"contiguous", "striped", "zigzag"}
        ``contiguous``: W stretches. ``striped``: rank r holds r, r + W, …. ``zigzag``: of 2W stretches, rank r holds
        the stretches r and 2W − 1 − r.

    Returns
    -------
    list of ndarray of int
        One array a rank. Stretches that cannot be equal differ by one, the longer ones first [our definition].

    Raises
    ------
    ValueError
        If ``world`` is not positive or ``placement`` unknown.
    """
    require_one_of("placement", placement, ("contiguous", "striped", "zigzag"))
    require(world > 0, f"world={world} must be positive")
    tokens = np.arange(length)
    if placement == "striped":
        return [tokens[rank::world] for rank in range(world)]
    if placement == "contiguous":
        return np.array_split(tokens, world)
    stretches = np.array_split(tokens, 2 * world)
    return [np.concatenate([stretches[rank], stretches[-1 - rank]]) for rank in range(world)]
