"""The small parser beside ReCAT: it scores split points from left to right and back, and so fixes the merge order.

Equation labels (recat-14) and (recat-15) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.recat_cells import cast
from refattn.primitives.activations import gelu, sigmoid
from refattn.primitives.arguments import as_float, require, require_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LSTMWeights", "ParserWeights", "lstm", "merge_order", "split_scores"]


class LSTMWeights(NamedTuple):
    """One direction of one layer; gates in the order input, forget, candidate, output.

    Attributes
    ----------
    w_x, w_h : ndarray, shape (E, 4h) and (h, 4h)
        From the input and from the last state.
    b : ndarray, shape (4h,)
        The bias; where a library keeps two, their sum.
    """

    w_x: np.ndarray
    w_h: np.ndarray
    b: np.ndarray


class ParserWeights(NamedTuple):
    """The parser without its embedding.

    Attributes
    ----------
    layers : tuple of (LSTMWeights, LSTMWeights)
        Forward and backward direction of each layer.
    w1, b1, w2, b2 : ndarray, shape (2h, h), (h,), (h, 1) and (1,)
        The score of a split point from the states on its two sides.
    """

    layers: tuple[tuple[LSTMWeights, LSTMWeights], ...]
    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray


def lstm(x: Any, weights: LSTMWeights) -> np.ndarray:
    """Run a long short-term memory over a sequence, from zero states.

    Parameters
    ----------
    x : array_like, shape (..., n, E)
        The inputs.
    weights : LSTMWeights
        One direction.

    Returns
    -------
    ndarray, shape (..., n, h)
        The state after each input.

    Raises
    ------
    ValueError
        If the widths do not fit.
    """
    x = as_float("x", x)
    require(x.ndim >= 2, f"x has shape {x.shape}, expected (..., n, E)")
    w_x, w_h, bias = cast(weights, x.dtype)
    width = w_h.shape[0]
    require_shape("weights.w_x", w_x, (x.shape[-1], 4 * width))
    require_shape("weights.w_h", w_h, (width, 4 * width))
    h = c = np.zeros((*x.shape[:-2], width), x.dtype)
    states = [x[..., :0, :1] @ w_x[:1, :width]]  # no input: no state
    for t in range(x.shape[-2]):
        # eq: recat-14
        gates = x[..., t, :] @ w_x + h @ w_h + bias  # (..., 4h)
        i, f, g, o = (gates[..., part * width : (part + 1) * width] for part in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h[..., None, :])
    return np.concatenate(states, axis=-2)


def split_scores(x: Any, weights: ParserWeights) -> np.ndarray:
    """Score each split point from what is read up to it, and from what is read back to it.

    Parameters
    ----------
    x : array_like, shape (..., n, E)
        The parser's own embeddings of the tokens.
    weights : ParserWeights
        Layers in both directions, and the score.

    Returns
    -------
    ndarray, shape (..., n - 1)
        u.

    Raises
    ------
    ValueError
        If there is no token, or the widths do not fit.

    References
    ----------
    model/topdown_parser.py:179–209 of StructuredLM_RTDT at tag ReCAT.
    """
    x = as_float("x", x)
    require(x.ndim >= 2 and x.shape[-2] >= 1, f"x has shape {x.shape}, expected (..., n, E) with n at least 1")
    weights = cast(weights, x.dtype)
    for ahead, back in weights.layers:
        reads = [lstm(x, ahead), lstm(x[..., ::-1, :], back)[..., ::-1, :]]
        x = np.concatenate(reads, axis=-1)  # (..., n, 2h)
    h = x.shape[-1] // 2
    # eq: recat-15
    sides = np.concatenate([x[..., :-1, :h], x[..., 1:, h:]], axis=-1)  # (..., n - 1, 2h)
    return np.asanyarray((gelu(sides @ weights.w1 + weights.b1) @ weights.w2 + weights.b2)[..., 0])


def merge_order(
    scores: Any, *, atoms: Sequence[tuple[int, int]] = (), noise: float = 0.0, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Return the split points in the order in which they are closed: the lowest score first.

    Parameters
    ----------
    scores : array_like, shape (n - 1,)
        u; equal scores close from left to right.
    atoms : sequence of (int, int)
        Spans that should stay whole, such as the pieces of a word: they are closed before all else.
    noise : float
        Factor of the Gumbel noise that is added in training; negative counts as 0.
    rng : numpy.random.Generator, optional
        Draws the noise.

    Returns
    -------
    ndarray of int, shape (n - 1,)

    Raises
    ------
    ValueError
        If a score is NaN, an atom is no span, or noise has no generator.

    References
    ----------
    model/topdown_parser.py:125–153 of StructuredLM_RTDT at tag ReCAT.
    """
    u = as_float("scores", scores, ndim=1)
    require(not np.isnan(u).any(), "scores must not be NaN")
    count = np.zeros(len(u))
    for i, j in atoms:
        require(0 <= i <= j <= len(u), f"atom {(i, j)} is no span of {len(u) + 1} tokens")
        count[i:j] += 1.0
    if noise > 0:
        require(rng is not None, f"noise={noise!r} needs a generator rng")
        u = u + noise * -np.log(rng.exponential(size=len(u)))  # type: ignore[union-attr]
    if len(u):
        u = u - count * (np.max(u) - np.min(u) + 1.0)
    return np.asarray(np.argsort(u, kind="stable"))
