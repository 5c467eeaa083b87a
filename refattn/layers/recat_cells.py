"""The two functions that move information through a ReCAT chart: up, and down (2309.16319).

`compose` makes the vector of a span from those of its two halves; `spread` tells the two halves what is around them.
Both are one Transformer layer over three vectors: the span, its left part, its right part. Equation labels
(recat-1) … (recat-3) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.activations import gelu
from refattn.primitives.arguments import as_float, require, require_shape
from refattn.primitives.norms import layer_norm
from refattn.primitives.softmax import softmax

__all__ = [
    "AttentionWeights",
    "BlockWeights",
    "CellWeights",
    "HeadWeights",
    "ScoreWeights",
    "compose",
    "multi_head_attention",
    "spread",
    "with_roles",
]

EPS = 1e-5


class AttentionWeights(NamedTuple):
    """Multi-head attention with biases.

    Attributes
    ----------
    w_in, b_in : ndarray, shape (D, 3D) and (3D,)
        Of queries, keys and values, side by side; head h owns columns h·d … (h + 1)·d − 1 of each.
    w_out, b_out : ndarray, shape (D, D) and (D,)
        Of the output.
    """

    w_in: np.ndarray
    b_in: np.ndarray
    w_out: np.ndarray
    b_out: np.ndarray


class BlockWeights(NamedTuple):
    """One Transformer layer.

    Attributes
    ----------
    attention : AttentionWeights
        The attention.
    norm1_w, norm1_b, norm2_w, norm2_b : ndarray, shape (D,)
        Scale and shift of the two layer norms.
    w1, b1, w2, b2 : ndarray, shape (D, F), (F,), (F, D) and (D,)
        The feed-forward network.
    """

    attention: AttentionWeights
    norm1_w: np.ndarray
    norm1_b: np.ndarray
    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray
    norm2_w: np.ndarray
    norm2_b: np.ndarray


class CellWeights(NamedTuple):
    """One of the two cell functions of a layer.

    Attributes
    ----------
    block : BlockWeights
        The Transformer layer; in the shared variant the same for both functions.
    roles : ndarray, shape (3, D)
        Added to the three vectors: context, left, right for `compose`; left, right, parent for `spread`.
    """

    block: BlockWeights
    roles: np.ndarray


class HeadWeights(NamedTuple):
    """A score head, f(x) = GELU(x w1 + b1) w2 + b2.

    Attributes
    ----------
    w1, b1, w2, b2 : ndarray, shape (D, D), (D,), (D, c) and (c,)
        Its two linear maps.
    """

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray


class ScoreWeights(NamedTuple):
    """The five score heads, shared by all layers.

    Attributes
    ----------
    inside_left, inside_right : HeadWeights
        f_left and f_right: how well two halves go together.
    outside_left, outside_right, outside_parent : HeadWeights
        g_left, g_right and g_parent: how much a part is told by a parent and its other part.
    """

    inside_left: HeadWeights
    inside_right: HeadWeights
    outside_left: HeadWeights
    outside_right: HeadWeights
    outside_parent: HeadWeights


def compose(context: Any, left: Any, right: Any, weights: CellWeights, *, n_heads: int) -> np.ndarray:
    """Make the vector of a span from its two halves and what is known about its surroundings.

    Parameters
    ----------
    context, left, right : array_like, shape (..., D)
        The span's outside vector from the layer before, and the inside vectors of its parts; leading axes broadcast.
    weights : CellWeights
        Of the inside function.
    n_heads : int
        H, a divisor of D.

    Returns
    -------
    ndarray, shape (..., D)
        In the dtype of ``left``.

    Raises
    ------
    ValueError
        If widths differ, D is no multiple of H, or the roles are not (3, D).

    Notes
    -----
    The residual is the context without its role, as in the official code.

    References
    ----------
    2309.16319, section 3.1 [recalled]; model/inside_outside_residual.py at tag ReCAT.
    """
    (context, left, right), weights = _checked({"context": context, "left": left, "right": right}, weights, n_heads)
    return compose_cells(context, left, right, weights, n_heads)


def spread(parent: Any, left: Any, right: Any, weights: CellWeights, *, n_heads: int) -> np.ndarray:
    """Tell the two halves of a span what is around them.

    Parameters
    ----------
    parent, left, right : array_like, shape (..., D)
        The span's outside vector, and the inside vectors of its parts; leading axes broadcast.
    weights : CellWeights
        Of the outside function.
    n_heads : int
        H, a divisor of D.

    Returns
    -------
    ndarray, shape (..., 2, D)
        What the left and the right part are told, in the dtype of ``left``.

    Raises
    ------
    ValueError
        If widths differ, D is no multiple of H, or the roles are not (3, D).

    References
    ----------
    2309.16319, section 3.1 [recalled]; model/inside_outside_residual.py at tag ReCAT.
    """
    (parent, left, right), weights = _checked({"parent": parent, "left": left, "right": right}, weights, n_heads)
    return spread_cells(parent, left, right, weights, n_heads)


def compose_cells(context: Any, left: Any, right: Any, weights: CellWeights, n_heads: int) -> np.ndarray:
    """Compute `compose` of arguments that are in order."""
    # eq: recat-1
    three = np.stack(np.broadcast_arrays(context, left, right), axis=-2)  # (..., 3, D)
    seen = three + weights.roles  # (..., 3, D)
    return _post_norm(three[..., :1, :], seen[..., :1, :], seen, weights.block, n_heads)[..., 0, :]


def spread_cells(parent: Any, left: Any, right: Any, weights: CellWeights, n_heads: int) -> np.ndarray:
    """Compute `spread` of arguments that are in order."""
    # eq: recat-2
    three = np.stack(np.broadcast_arrays(left, right, parent), axis=-2)  # (..., 3, D)
    seen = three + weights.roles  # (..., 3, D)
    return _post_norm(three[..., :2, :], seen[..., :2, :], seen, weights.block, n_heads)


def score_head(x: Any, head: HeadWeights) -> np.ndarray:
    """Return f(x) of a score head, shape (..., c)."""
    return np.asanyarray(gelu(x @ head.w1 + head.b1) @ head.w2 + head.b2)


def pair_score(x: Any, y: Any, head_x: HeadWeights, head_y: HeadWeights) -> np.ndarray:
    """Return how well x and y go together, shape (...)."""
    # eq: recat-3
    products = score_head(x, head_x) * score_head(y, head_y)  # (..., c)
    return np.asanyarray(np.sum(products, axis=-1) / head_x.w2.shape[-1] ** 0.5)


def multi_head_attention(
    queries: Any, keys: Any, weights: AttentionWeights, *, n_heads: int, where: Any = None
) -> np.ndarray:
    """Attend from Q vectors to K vectors that are keys and values both, with H heads.

    Parameters
    ----------
    queries, keys : ndarray, shape (..., Q, D) and (..., K, D)
        Not yet projected.
    weights : AttentionWeights
        The projections.
    n_heads : int
        H, a divisor of D.
    where : ndarray of bool, optional
        True = may be seen; broadcasts to (..., H, Q, K).

    Returns
    -------
    ndarray, shape (..., Q, D)
        The projected averages.
    """
    D = queries.shape[-1]

    def projected(x: Any, part: int) -> Any:
        columns = slice(part * D, (part + 1) * D)
        y = x @ weights.w_in[:, columns] + weights.b_in[columns]
        return np.swapaxes(y.reshape(*y.shape[:-1], n_heads, D // n_heads), -2, -3)  # (..., H, N, d)

    q, k, v = projected(queries, 0), projected(keys, 1), projected(keys, 2)
    s = q @ np.swapaxes(k, -1, -2) / (D // n_heads) ** 0.5  # (..., H, Q, K)
    out = np.swapaxes(softmax(s, where=where) @ v, -2, -3)  # (..., Q, H, d)
    return np.asanyarray(out.reshape(queries.shape) @ weights.w_out + weights.b_out)


def feed_forward(x: Any, block: BlockWeights) -> np.ndarray:
    """Return the feed-forward network of a layer, without its residual."""
    return np.asanyarray(gelu(x @ block.w1 + block.b1) @ block.w2 + block.b2)


def with_roles(inside: CellWeights, roles: Any) -> CellWeights:
    """Return the outside function of the shared variant: the inside function's layer with other roles.

    Parameters
    ----------
    inside : CellWeights
        The inside function.
    roles : array_like, shape (3, D)
        Roles of left, right and parent.

    Returns
    -------
    CellWeights
    """
    return inside._replace(roles=as_float("roles", roles))


def cast(tree: Any, dtype: Any) -> Any:
    """Return a tree of weights in ``dtype``."""
    if isinstance(tree, tuple):
        parts = [cast(part, dtype) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return as_float("weights", tree).astype(dtype, copy=False)


def check_cell(width: int, weights: CellWeights, n_heads: int) -> None:
    """Refuse weights of another width, and heads that do not divide it."""
    require(index(n_heads) >= 1 and width % n_heads == 0, f"n_heads={n_heads!r} must divide the width D={width}")
    require_shape("weights.roles", np.asanyarray(weights.roles), (3, width))
    require_shape("weights.block.attention.w_in", np.asanyarray(weights.block.attention.w_in), (width, 3 * width))


def _post_norm(x: Any, queries: Any, keys: Any, block: BlockWeights, n_heads: int) -> np.ndarray:
    """Attend, add, normalise; feed forward, add, normalise."""
    y = x + multi_head_attention(queries, keys, block.attention, n_heads=n_heads)
    y = layer_norm(y, block.norm1_w, block.norm1_b, eps=EPS)
    return layer_norm(y + feed_forward(y, block), block.norm2_w, block.norm2_b, eps=EPS)


def _checked(vectors: dict[str, Any], weights: CellWeights, n_heads: int) -> tuple[list[Any], CellWeights]:
    arrays = {name: as_float(name, x) for name, x in vectors.items()}
    width = arrays["left"].shape[-1:]
    for name, x in arrays.items():
        require(x.ndim >= 1 and x.shape[-1:] == width, f"{name} has shape {x.shape}, expected (..., D) with D={width}")
    check_cell(width[0], weights, n_heads)
    dtype = arrays["left"].dtype
    return [x.astype(dtype, copy=False) for x in arrays.values()], cast(weights, dtype)
