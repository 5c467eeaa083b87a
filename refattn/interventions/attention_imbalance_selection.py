"""Which image tokens are informed: local and summary tokens, chosen from the vision transformer's own attention.

The first part of PAINT (2501.12206): what the class token looks at in the first layer shows where the objects are, and
what stands out in the penultimate layer are the few tokens that gather the whole image. Equation labels (paint-1) …
(paint-4) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_one_of
from refattn.primitives.selection import top_k

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "TokenMasks",
    "TokenSelection",
    "class_attention",
    "local_tokens",
    "select_tokens",
    "spatial_tokens",
    "summary_tokens",
    "token_masks",
]

SPATIAL = ("received", "official")


class TokenSelection(NamedTuple):
    """The two sets of image tokens that are boosted, each sorted and counted from the first image token.

    Attributes
    ----------
    local : ndarray of int
        L: tokens that show an object.
    summary : ndarray of int
        S: tokens that summarise the image; no token is in both.
    """

    local: np.ndarray
    summary: np.ndarray


class TokenMasks(NamedTuple):
    """The same two sets as masks over the image, a shape that does not depend on the data.

    Attributes
    ----------
    local, summary : ndarray of bool, shape (N,)
        True = in the set.
    """

    local: np.ndarray
    summary: np.ndarray


def select_tokens(
    vit_attention: Sequence[Any] | np.ndarray,
    *,
    local_ratio: float = 0.25,
    spatial_ratio: float = 0.0,
    official_rounding: bool = False,
) -> TokenSelection:
    """Choose the local and the summary tokens of one image.

    Parameters
    ----------
    vit_attention : sequence of array_like, each of shape (H, N + 1, N + 1)
        Attention weights of the vision transformer by layer, at least two; position 0 is the class token.
    local_ratio : float
        Which part of the N image tokens are local, in [0, 1].
    spatial_ratio : float
        Which part is added by `spatial_tokens`; 0 leaves that stream out.
    official_rounding : bool
        See `summary_tokens`.

    Returns
    -------
    TokenSelection
        L = (local ∪ spatial) without S, and S.

    Raises
    ------
    ValueError
        For fewer than two layers, layers that are not square or have no image token, and ratios outside [0, 1].

    Notes
    -----
    A token in both sets counts as a summary token. The released code parses ``--top_token_ratio`` and ``--spatial``
    but the selection reads neither; its ratios are edited in the source.

    References
    ----------
    2501.12206, abstract; sections 2.1 to 2.4 follow hasanar1f/llava-hallunication-fix,
    ``modPAI/llava/model/multimodal_encoder/clip_encoder.py``.
    """
    masks = token_masks(
        vit_attention, local_ratio=local_ratio, spatial_ratio=spatial_ratio, official_rounding=official_rounding
    )
    return TokenSelection(np.flatnonzero(masks.local), np.flatnonzero(masks.summary))


def token_masks(
    vit_attention: Sequence[Any] | np.ndarray,
    *,
    local_ratio: float = 0.25,
    spatial_ratio: float = 0.0,
    official_rounding: bool = False,
) -> TokenMasks:
    """Choose the local and the summary tokens of one image, as masks.

    Parameters
    ----------
    vit_attention, local_ratio, spatial_ratio, official_rounding
        See `select_tokens`.

    Returns
    -------
    TokenMasks

    Raises
    ------
    ValueError
        As `select_tokens`.
    """
    require(len(vit_attention) >= 2, f"vit_attention has {len(vit_attention)} layers, expected at least 2")
    first = _checked_layer("vit_attention[0]", vit_attention[0])  # (H, N+1, N+1)
    penultimate = _checked_layer("vit_attention[-2]", vit_attention[-2])  # (H, N+1, N+1)
    n = first.shape[-1] - 1
    require(
        penultimate.shape[-1] == n + 1,
        f"vit_attention[-2] has {penultimate.shape[-1] - 1} image tokens, vit_attention[0] has {n}: expected as many",
    )
    local = _largest(_class_attention(first), _share("local_ratio", local_ratio, n))  # (N,)
    spatial = _largest(_received(first), _share("spatial_ratio", spatial_ratio, n))  # (N,)
    summary = _outliers(_class_attention(penultimate), official_rounding=official_rounding)  # (N,)
    # eq: paint-4
    return TokenMasks((local | spatial) & ~summary, summary)


def class_attention(vit_weights: Any) -> np.ndarray:
    """Return how much the class token looks at each image token, summed over heads.

    Parameters
    ----------
    vit_weights : array_like, shape (H, N + 1, N + 1)
        Attention weights of one layer; position 0 is the class token.

    Returns
    -------
    ndarray, shape (N,)
        In the dtype of the weights.

    Raises
    ------
    ValueError
        If the weights are not three-dimensional and square, or there is no image token.
    """
    return _class_attention(_checked_layer("vit_weights", vit_weights))


def local_tokens(first_layer: Any, ratio: float = 0.25) -> np.ndarray:
    """Return the ⌊N·ratio⌋ tokens that the class token looks at most in the first layer.

    Parameters
    ----------
    first_layer : array_like, shape (H, N + 1, N + 1)
        Attention weights of the first layer.
    ratio : float
        Which part of the image tokens, in [0, 1].

    Returns
    -------
    ndarray of int
        Sorted; among equals the smaller index is chosen.

    Raises
    ------
    ValueError
        As `class_attention`, and for a ratio outside [0, 1].
    """
    first_layer = _checked_layer("first_layer", first_layer)
    k = _share("ratio", ratio, first_layer.shape[-1] - 1)
    # eq: paint-2
    return np.flatnonzero(_largest(_class_attention(first_layer), k))


def summary_tokens(penultimate_layer: Any, *, official_rounding: bool = False) -> np.ndarray:
    """Return the tokens whose class attention is an outlier upwards: beyond q3 + 1.5 (q3 − q1).

    Parameters
    ----------
    penultimate_layer : array_like, shape (H, N + 1, N + 1)
        Attention weights of the last layer but one.
    official_rounding : bool
        Of the c outliers keep the int(N·(c/N)) largest, in floating arithmetic. That is c, or c − 1 where the quotient
        rounds down, for instance for N = 49 and c = 1; for LLaVA's N = 576 it is always c.

    Returns
    -------
    ndarray of int
        Sorted; empty if nothing stands out.

    Raises
    ------
    ValueError
        As `class_attention`.

    Notes
    -----
    The quartiles q1, q3 interpolate linearly. At most a quarter of the tokens, rounded up, lie beyond q3.
    """
    g = _class_attention(_checked_layer("penultimate_layer", penultimate_layer))  # (N,)
    return np.flatnonzero(_outliers(g, official_rounding=official_rounding))


def spatial_tokens(first_layer: Any, ratio: float, *, spatial: str = "received") -> np.ndarray:
    """Return the tokens to which the image tokens themselves attend most in the first layer.

    Parameters
    ----------
    first_layer : array_like, shape (H, N + 1, N + 1)
        Attention weights of the first layer.
    ratio : float
        Which part of the image tokens, in [0, 1].
    spatial : str
        ``received`` ranks by the attention that a token gets from image tokens, averaged over heads. ``official`` does
        what the released code does, see the Notes; its indices count the class token and run over 0 … N.

    Returns
    -------
    ndarray of int
        ⌊N·ratio⌋ indices, sorted.

    Raises
    ------
    ValueError
        As `class_attention`, for a ratio outside [0, 1], and for an unknown ``spatial``.

    Notes
    -----
    ``received`` is *[our definition]* of the abstract's "spatially significant" tokens. The released code sums over
    keys, where softmax weights give 1 for every token, so that all tie; and its indices are off by the class token from
    those of the other two sets. The stream is off there, at a ratio of 0.
    """
    first_layer = _checked_layer("first_layer", first_layer)
    k = _share("ratio", ratio, first_layer.shape[-1] - 1)
    require_one_of("spatial", spatial, SPATIAL)
    if spatial == "official":
        given = np.sum(np.mean(first_layer, axis=0), axis=1)  # (N+1,)
        return np.flatnonzero(_largest(given, k))
    return np.flatnonzero(_largest(_received(first_layer), k))


def _class_attention(weights: np.ndarray) -> np.ndarray:
    # eq: paint-1
    return np.asanyarray(np.sum(weights[:, 0, 1:], axis=0))  # (N,)


def _received(first_layer: np.ndarray) -> np.ndarray:
    return np.asanyarray(np.sum(np.mean(first_layer[:, 1:, 1:], axis=0), axis=0))  # (N,)


def _outliers(g: np.ndarray, *, official_rounding: bool) -> np.ndarray:
    """Return the mask (N,) of the summary tokens."""
    q1, q3 = np.percentile(g, [25, 75])
    # eq: paint-3
    count = int(np.sum(g > q3 + 1.5 * (q3 - q1)))
    if official_rounding:
        count = int(len(g) * (count / len(g)))
    return _largest(g, count)


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the mask of the k largest scores."""
    mask = np.zeros(len(scores), dtype=bool)
    mask[top_k(scores, k=k)[1]] = True
    return mask


def _share(name: str, ratio: float, n: int) -> int:
    require(0.0 <= ratio <= 1.0, f"{name}={ratio!r} must lie in [0, 1]")
    return int(n * ratio)


def _checked_layer(name: str, weights: Any) -> np.ndarray:
    weights = as_float(name, weights)
    shape = weights.shape
    require(weights.ndim == 3 and shape[1] == shape[2], f"{name} has shape {shape}, expected (H, N + 1, N + 1)")
    require(shape[0] >= 1, f"{name} has shape {shape}: need at least one head")
    require(shape[1] >= 2, f"{name} has shape {shape}: need a class token and at least one image token")
    return np.asanyarray(weights)
