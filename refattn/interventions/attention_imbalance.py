"""PAINT: raise the decoder's attention to the informed tokens of an image (2501.12206).

Deep layers of a vision-language decoder hardly look at the image any more. PAINT raises the logits of the last query at
two small sets of image tokens, just before the softmax. The sets are chosen in
`refattn.interventions.attention_imbalance_selection`; guidance and scores of captions stand in
`refattn.interventions.attention_imbalance_captions`. Equation labels (paint-1) … (paint-9) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interventions.attention_imbalance_captions import ChairScores, chair, guided_logits
from refattn.interventions.attention_imbalance_selection import (
    TokenMasks,
    TokenSelection,
    class_attention,
    local_tokens,
    select_tokens,
    spatial_tokens,
    summary_tokens,
    token_masks,
)
from refattn.primitives.arguments import as_float, as_integer, require
from refattn.primitives.softmax import softmax
from refattn.transformer.intervention import Intervention

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ChairScores",
    "PaintHook",
    "TokenMasks",
    "TokenSelection",
    "boost_logits",
    "chair",
    "class_attention",
    "guided_logits",
    "head_visual_sensitivity",
    "local_tokens",
    "pai_logits",
    "paint_logits",
    "select_tokens",
    "sensitivity_gain",
    "spatial_tokens",
    "summary_tokens",
    "token_masks",
]


def paint_logits(
    logits: Any,
    selection: TokenSelection,
    image_start: int,
    alpha: float = 0.7,
    beta: float = 0.3,
    head_gain: Any = None,
) -> np.ndarray:
    """Boost the local tokens by α and the summary tokens by β, in the last query row.

    Parameters
    ----------
    logits : array_like, shape (B, H, Tq, Tk) or (H, Tq, Tk)
        Scaled and masked attention logits, before the softmax.
    selection : TokenSelection
        Which image tokens, counted from the first of them; see `select_tokens`.
    image_start : int
        The key position of the first image token.
    alpha, beta : float
        How strongly, finite and not negative; 0.7 and 0.3 are the released script's, the paper's best β is 0.4.
    head_gain : array_like, shape (H,) or (B, H), optional
        Multiplies α and β head by head; all ones if not given.

    Returns
    -------
    ndarray, shape of ``logits``
        In their dtype; everything but the chosen entries is as it was.

    Raises
    ------
    ValueError
        If the logits have neither three nor four axes, an index is negative, lies beyond the keys, or is in both sets,
        α or β is negative or not finite, or the gains are not one non-negative number a head.

    Notes
    -----
    The logits must be scaled but not shifted: |z| depends on where zero is, so a constant added to all logits, which
    the softmax would forget, changes what the boost does.

    The abstract speaks of gains per head, "based on measured visual sensitivity". The released code has none; its
    heads differ only through |z|. ``head_gain`` is *[our definition]*, see `sensitivity_gain`. The released code takes
    the sets of batch element 0 for all, and its softmax is in float32.

    References
    ----------
    2501.12206, abstract; hasanar1f/llava-hallunication-fix, ``modPAI/attention.py``.
    """
    logits = _checked_logits(logits)
    start = _image_start(image_start, logits)
    local, summary = _checked_selection(selection, logits.shape[-1] - start)
    alpha, beta = _strength("alpha", alpha), _strength("beta", beta)
    gain = _head_gain(head_gain, logits)  # (H,)
    return _boosted(_boosted(logits, start + local, alpha * gain), start + summary, beta * gain)


def pai_logits(logits: Any, image_start: int, n_image: int, alpha: float) -> np.ndarray:
    """Boost all image tokens alike, in the last query row: the baseline PAI that PAINT is built on.

    Parameters
    ----------
    logits : array_like, shape (B, H, Tq, Tk) or (H, Tq, Tk)
        See `paint_logits`.
    image_start, n_image : int
        The image tokens are the keys ``image_start`` … ``image_start + n_image − 1``.
    alpha : float
        How strongly; PAI's default is 0.2, its script uses 0.5.

    Returns
    -------
    ndarray, shape of ``logits``

    Raises
    ------
    ValueError
        As `paint_logits`, and if the image does not lie within the keys.

    References
    ----------
    PAI: LALBJ/PAI, ``attention.py`` (ECCV 2024).
    """
    logits = _checked_logits(logits)
    start, n = _image_start(image_start, logits), index(n_image)
    room = logits.shape[-1] - start
    require(0 <= n <= room, f"n_image={n} must lie in 0..{room}, the keys from image_start={start} on")
    return _boosted(logits, start + np.arange(n), np.asarray(_strength("alpha", alpha)))


def boost_logits(logits: Any, index: Any, factor: Any) -> np.ndarray:
    """Add factor·|z| to the chosen logits of the last query row.

    Parameters
    ----------
    logits : array_like, shape (B, H, Tq, Tk) or (H, Tq, Tk)
        See `paint_logits`.
    index : array_like of int, shape (K,)
        Which keys.
    factor : array_like, shape (), (H,) or (B, H)
        How strongly, finite and not negative.

    Returns
    -------
    ndarray, shape of ``logits``
        Non-negative logits are multiplied by 1 + factor, negative ones by 1 − factor. −∞ stays −∞.

    Raises
    ------
    ValueError
        As `paint_logits`.
    """
    logits = _checked_logits(logits)
    columns = _inside("index", as_integer("index", index, ndim=1), logits.shape[-1])
    return _boosted(logits, columns, _per_head("factor", factor, logits))


def head_visual_sensitivity(logits: Any, image_slice: slice | Sequence[int]) -> np.ndarray:
    """Return how much of its attention each head's last query gives to the image, before any boost.

    Parameters
    ----------
    logits : array_like, shape (B, H, Tq, Tk) or (H, Tq, Tk)
        See `paint_logits`; Tq ≥ 1.
    image_slice : slice or pair of int
        Where the image tokens are: start and stop.

    Returns
    -------
    ndarray, shape (B, H) or (H,)
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the image does not lie within the keys, or there is no query.

    Notes
    -----
    *[our definition]* of the "measured visual sensitivity" of the abstract.
    """
    logits = _checked_logits(logits)
    require(logits.shape[-2] >= 1, f"logits has shape {logits.shape}: need at least one query")
    start, stop = _bounds(image_slice, logits.shape[-1])
    # eq: paint-6
    w = softmax(logits[..., -1, :])  # (B, H, Tk)
    return np.asanyarray(np.sum(w[..., start:stop], axis=-1))  # (B, H)


def sensitivity_gain(sensitivity: Any) -> np.ndarray:
    """Return gains in proportion to visual sensitivity, 1 for the most sensitive head.

    Parameters
    ----------
    sensitivity : array_like, shape (..., H)
        What `head_visual_sensitivity` returns.

    Returns
    -------
    ndarray, shape (..., H)
        Between 0 and 1; all ones where no head sees the image.

    Raises
    ------
    ValueError
        If there is no head, or a sensitivity is negative or not finite.

    Notes
    -----
    *[our definition]*; the released code has no gains.
    """
    s = as_float("sensitivity", sensitivity)
    require(s.ndim >= 1 and s.shape[-1] >= 1, f"sensitivity has shape {s.shape}, expected (..., H) with H >= 1")
    require(np.all(np.isfinite(s)) and np.all(s >= 0), "sensitivity must be finite and >= 0")
    largest = np.max(s, axis=-1, keepdims=True)  # (..., 1)
    blind = largest == 0
    # eq: paint-7
    return np.asanyarray(np.where(blind, s.dtype.type(1), s / (largest + blind)))  # (..., H)


class PaintHook(Intervention):
    """Boost the informed tokens of one image in the deeper layers of a running transformer.

    Parameters
    ----------
    selection : TokenSelection
        Which image tokens; fixed for all layers and all steps of decoding.
    image_start : int
        The key position of the first image token.
    alpha, beta : float
        See `paint_logits`.
    start_layer : int
        The first layer that is boosted; the released code leaves out the first two.
    end_layer : int, optional
        The layer at which boosting ends, itself excluded; all layers from ``start_layer`` on if not given.
    head_gain : array_like, shape (H,), optional
        See `paint_logits`.

    Raises
    ------
    ValueError
        If ``end_layer`` lies before ``start_layer`` or ``start_layer`` is negative; bad sets, strengths and gains are
        refused by the first boosted layer.

    Notes
    -----
    The last query row is boosted in every forward pass: the last token of the prompt, then each decoded token. In the
    released code's runs with guidance, the flag that guards the boost starts off, so that the very first token is not
    boosted *[inferred]*; leave the hook out of the first pass to do likewise, and out of the text-only run of
    `guided_logits`.
    """

    def __init__(
        self,
        selection: TokenSelection,
        image_start: int,
        alpha: float = 0.7,
        beta: float = 0.3,
        start_layer: int = 2,
        end_layer: int | None = None,
        head_gain: Any = None,
    ) -> None:
        require(start_layer >= 0, f"start_layer={start_layer!r} must be >= 0")
        require(
            end_layer is None or end_layer >= start_layer,
            f"end_layer={end_layer!r} must not lie before start_layer={start_layer!r}",
        )
        self.selection, self.image_start = selection, image_start
        self.alpha, self.beta = alpha, beta
        self.start_layer, self.end_layer = start_layer, end_layer
        self.head_gain = head_gain

    def on_logits(self, layer: int, logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the logits (B, H, T, S), boosted in the layers from ``start_layer`` to ``end_layer``."""
        del mask  # hidden logits are −∞ already
        if layer < self.start_layer or (self.end_layer is not None and layer >= self.end_layer):
            return logits
        return paint_logits(logits, self.selection, self.image_start, self.alpha, self.beta, self.head_gain)


def _boosted(logits: np.ndarray, columns: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return a copy whose last row is boosted at ``columns``; ``factor`` is (), (H,) or (B, H)."""
    out = logits.copy()
    z = logits[..., -1:, columns]  # (B, H, 1, K); no row if there is no query
    a = factor[..., None, None].astype(logits.dtype, copy=False)  # (B, H, 1, 1)
    hidden = z == -np.inf  # −∞ + a·∞ would be NaN
    # eq: paint-5
    out[..., -1:, columns] = np.where(hidden, z, z + a * np.abs(np.where(hidden, 0, z)))
    return out


def _checked_logits(logits: Any) -> np.ndarray:
    logits = as_float("logits", logits)
    require(logits.ndim in (3, 4), f"logits has shape {logits.shape}, expected (B, H, Tq, Tk) or (H, Tq, Tk)")
    return np.asanyarray(logits)


def _image_start(image_start: int, logits: np.ndarray) -> int:
    start, keys = index(image_start), logits.shape[-1]
    require(0 <= start <= keys, f"image_start={start} must lie in 0..{keys}, the number of keys")
    return start


def _checked_selection(selection: TokenSelection, n: int) -> tuple[np.ndarray, np.ndarray]:
    local, summary = (
        _inside(f"selection.{name}", as_integer(f"selection.{name}", tokens, ndim=1), n)
        for name, tokens in zip(TokenSelection._fields, selection, strict=True)
    )
    both = np.intersect1d(local, summary)
    require(both.size == 0, f"selection has {both.tolist()} in both sets, expected disjoint sets")
    return local, summary


def _inside(name: str, tokens: np.ndarray, n: int) -> np.ndarray:
    inside = (tokens >= 0) & (tokens < n)
    require(inside.all(), f"{name} has {tokens[~inside].tolist()}, expected indices in 0..{n - 1}")
    return tokens.astype(np.int64, copy=False)


def _bounds(image_slice: slice | Sequence[int], keys: int) -> tuple[int, int]:
    given = (image_slice.start, image_slice.stop) if isinstance(image_slice, slice) else tuple(image_slice)
    require(len(given) == 2 and None not in given, f"image_slice={image_slice!r} must give a start and a stop")
    start, stop = map(index, given)
    require(0 <= start <= stop <= keys, f"image_slice={image_slice!r} must lie in 0..{keys}, the number of keys")
    return start, stop


def _strength(name: str, value: float) -> float:
    require(np.isfinite(value) and value >= 0, f"{name}={value!r} must be finite and >= 0")
    return float(value)


def _head_gain(head_gain: Any, logits: np.ndarray) -> np.ndarray:
    if head_gain is None:
        return np.ones((), dtype=logits.dtype)
    gain = _per_head("head_gain", head_gain, logits)
    require(gain.ndim >= 1, f"head_gain={head_gain!r} must have one number a head")
    return gain


def _per_head(name: str, value: Any, logits: np.ndarray) -> np.ndarray:
    value, heads = as_float(name, value), logits.shape[:-2]
    fits = value.ndim <= len(heads) and value.shape == heads[len(heads) - value.ndim :]
    require(fits, f"{name} has shape {value.shape}, expected {heads[-1:]} or {heads}, one number a head")
    require(np.all(np.isfinite(value)) and np.all(value >= 0), f"{name} must be finite and >= 0")
    return np.asanyarray(value)
