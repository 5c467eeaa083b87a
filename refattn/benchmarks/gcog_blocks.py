"""What gCOG's networks are made of: attention, one transformer block, positions, and a readout (2401.15030).

Weights are used as ``x @ weight + bias``; the code that was released stores them transposed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require
from refattn.primitives.norms import layer_norm
from refattn.primitives.softmax import log_sum_exp, softmax

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "AttentionWeights",
    "BlockWeights",
    "Classified",
    "LinearWeights",
    "NormWeights",
    "attend",
    "block",
    "checked_streams",
    "linear",
    "log_softmax",
    "norm",
    "relu",
    "sinusoids",
]

EPS = 1e-5


class LinearWeights(NamedTuple):
    """A linear map, x @ weight + bias: shapes (n_in, n_out) and (n_out,)."""

    weight: np.ndarray
    bias: np.ndarray


class NormWeights(NamedTuple):
    """Scale and shift of a layer norm, each of shape (width,)."""

    weight: np.ndarray
    bias: np.ndarray


class AttentionWeights(NamedTuple):
    """Maps of queries, keys and values, head h owning columns h·d … (h + 1)·d − 1; and of the output, or None."""

    query: LinearWeights
    key: LinearWeights
    value: LinearWeights
    output: LinearWeights | None


class BlockWeights(NamedTuple):
    """One transformer block.

    Attributes
    ----------
    embed : LinearWeights, or None
        From features to width E; None where features are embedded already.
    attention : AttentionWeights
        Self-attention.
    norm0, norm1 : NormWeights
        After the attention, and after the MLP.
    mlp0, mlp1 : LinearWeights
        Both followed by the activation.
    relative : ndarray, shape (m, E / n_heads), or None
        A row of which belongs to each distance, the last to distance 0. With it the block is causal and adds no
        positions to its tokens.
    """

    embed: LinearWeights | None
    attention: AttentionWeights
    norm0: NormWeights
    mlp0: LinearWeights
    mlp1: LinearWeights
    norm1: NormWeights
    relative: np.ndarray | None = None


class Classified(NamedTuple):
    """What a network returns.

    Attributes
    ----------
    log_probs : ndarray, shape (..., n_classes)
        Log-probabilities of the answers.
    hidden : ndarray, shape (..., M)
        What the code that was released returns beside them, as each network says.
    """

    log_probs: np.ndarray
    hidden: np.ndarray


def linear(x: np.ndarray, weights: LinearWeights) -> Any:
    """Return x @ weight + bias."""
    return x @ weights.weight + weights.bias


def norm(x: np.ndarray, weights: NormWeights) -> np.ndarray:
    """Return the layer norm with ε = 1e-5."""
    return layer_norm(x, weights.weight, weights.bias, eps=EPS)


def relu(x: np.ndarray) -> Any:
    """Return what is positive, and zero for the rest."""
    return np.maximum(x, 0)


def log_softmax(x: np.ndarray) -> Any:
    """Return the logarithms of the softmax."""
    return x - log_sum_exp(x, keepdims=True)


def sinusoids(n: int, width: int) -> np.ndarray:
    """Return the table of positions, (n, width): sines in even channels, cosines in odd ones, base 10000."""
    angle = np.arange(n)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)  # (n, ⌈width/2⌉)
    table = np.empty((n, width))
    # eq: gcog-pe
    table[:, 0::2], table[:, 1::2] = np.sin(angle), np.cos(angle)[:, : width // 2]
    return table


def attend(
    x: np.ndarray, context: np.ndarray, weights: AttentionWeights, *, n_heads: int, relative: Any = None
) -> np.ndarray:
    """Let each token of ``x`` look at all tokens of ``context``, head after head.

    Parameters
    ----------
    x : ndarray, shape (..., n, E)
        Where queries come from.
    context : ndarray, shape (..., m, E')
        Where keys and values come from.
    weights : AttentionWeights
        The maps.
    n_heads : int
        H.
    relative : ndarray, shape (≥ n, d), optional
        Rows for distances; then token i sees tokens up to i only, and ``x`` is ``context``.

    Returns
    -------
    ndarray, shape (..., n, width of the output)
    """
    q, k, v = linear(x, weights.query), linear(context, weights.key), linear(context, weights.value)
    d = q.shape[-1] // n_heads
    causal = None if relative is None else np.tri(q.shape[-2], dtype=bool)
    heads = []
    for h in range(n_heads):
        own = slice(h * d, (h + 1) * d)
        scores = q[..., own] @ np.swapaxes(k[..., own], -1, -2)  # (..., n, m)
        if relative is not None:
            scores = scores + _distance_scores(q[..., own], relative)
        # eq: gcog-mha
        heads.append(softmax(scores / math.sqrt(d), where=causal) @ v[..., own])  # (..., n, d)
    out = np.concatenate(heads, axis=-1)
    return out if weights.output is None else np.asanyarray(linear(out, weights.output))


def _distance_scores(q: np.ndarray, relative: np.ndarray) -> Any:
    """Return q_i · r at distance i − j, (..., n, n); what is not causal is of no meaning."""
    n, m = q.shape[-2], len(relative)
    i = np.arange(n)
    # eq: gcog-relative
    rows = relative[np.clip(m - 1 - (i[:, None] - i), 0, m - 1)]  # (n, n, d)
    return np.einsum("...id,ijd->...ij", q, rows)


def block(
    x: np.ndarray,
    weights: BlockWeights,
    *,
    n_heads: int,
    positional: bool = True,
    activation: Callable[[np.ndarray], Any] = relu,
) -> np.ndarray:
    """Run one transformer block over the tokens of one stream: no mask, so padding is looked at too.

    Parameters
    ----------
    x : ndarray, shape (..., n, features)
        Tokens.
    weights : BlockWeights
        With ``relative``, causal and without added positions.
    n_heads : int
        H.
    positional : bool
        Whether positions are added.
    activation : callable
        Of the MLP: `relu`, or GELU in the deep network.

    Returns
    -------
    ndarray, shape (..., n, E)
    """
    e = x if weights.embed is None else linear(x, weights.embed)  # (..., n, E)
    if positional and weights.relative is None:
        e = e + sinusoids(*e.shape[-2:]).astype(e.dtype)
    attended = attend(e, e, weights.attention, n_heads=n_heads, relative=weights.relative)
    y = norm(attended + e, weights.norm0)
    # eq: gcog-block
    z = activation(linear(activation(linear(y, weights.mlp0)), weights.mlp1))
    return norm(z + y, weights.norm1)


def checked_streams(rule: Any, stimulus: Any, *, n_heads: int, widths: tuple[int, ...]) -> tuple[Any, Any]:
    """Return both streams as floating arrays of one dtype.

    Raises
    ------
    ValueError
        If a stream has no tokens, their leading axes differ, or the heads do not divide a width.
    """
    rule, stimulus = as_float("rule", rule), as_float("stimulus", stimulus)
    for name, x in (("rule", rule), ("stimulus", stimulus)):
        require(x.ndim >= 2 and x.shape[-2] >= 1, f"{name} has shape {x.shape}, expected (..., tokens ≥ 1, features)")
    same = rule.shape[:-2] == stimulus.shape[:-2]
    require(same, f"rule {rule.shape} and stimulus {stimulus.shape} must have the same leading axes")
    fits = n_heads >= 1 and all(width % n_heads == 0 for width in widths)
    require(fits, f"n_heads={n_heads!r} must divide the widths {widths}")
    dtype = np.promote_types(rule.dtype, stimulus.dtype)
    return rule.astype(dtype, copy=False), stimulus.astype(dtype, copy=False)
