"""Reading how a running decoder looks at its image, and asking it again with image tokens hidden.

Part of CARVE (2509.06461), section 2.1 of whose released pipeline it follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interventions.carve_contrast import image_attention, image_range
from refattn.primitives.arguments import as_bool, as_float, as_integer, require, require_shape
from refattn.transformer.forward import forward
from refattn.transformer.intervention import Intervention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.transformer.weights import Transformer

__all__ = [
    "ANSWER_SUFFIX",
    "GENERAL_INSTRUCTION",
    "CaptureHook",
    "ExtractedAttention",
    "RequeryHook",
    "extract_attention",
    "hide_image_tokens",
]

GENERAL_INSTRUCTION = "Write a general description of the image."
ANSWER_SUFFIX = "Answer the question using a single word or phrase."
"""What follows the question and the general instruction alike."""


class ExtractedAttention(NamedTuple):
    """What one run shows.

    Attributes
    ----------
    maps : ndarray, shape (S, L, N)
        Attention of each step's last query to the image tokens, averaged over heads.
    tokens : ndarray of int64, shape (S,)
        What was generated, the end-of-sequence token included.
    """

    maps: np.ndarray
    tokens: np.ndarray


def extract_attention(
    model: Transformer,
    ids: Any,
    *,
    layers: Sequence[int],
    image_slice: slice | Sequence[int],
    max_new_tokens: int = 32,
    eos: int | None = None,
) -> ExtractedAttention:
    """Generate greedily, one full pass for each token, and keep how each step looks at the image.

    Parameters
    ----------
    model : Transformer
        The decoder.
    ids : array_like of int, shape (T,)
        The prompt, image tokens included.
    layers : sequence of int
        Which layers are kept.
    image_slice : slice or (int, int)
        Where the image tokens are in the prompt: start and stop.
    max_new_tokens : int
        At most this many steps, at least 1.
    eos : int, optional
        The end-of-sequence token; the step that emits it is the last one, and counts.

    Returns
    -------
    ExtractedAttention

    Raises
    ------
    ValueError
        If ``ids`` are not integers in one row, there is no step, a layer is out of range, or the slice leaves the
        prompt or is empty.

    Notes
    -----
    Among equal logits the smallest token wins.
    """
    ids = as_integer("ids", ids, ndim=1)
    require(max_new_tokens >= 1, f"max_new_tokens={max_new_tokens!r} must be at least 1")
    hook = CaptureHook(layers, image_range(image_slice, len(ids)))
    maps: list[np.ndarray] = []
    tokens: list[int] = []
    while len(tokens) < max_new_tokens and (not tokens or tokens[-1] != eos):
        logits = forward(model, ids[None], interventions=(hook,)).logits  # (1, T, V)
        maps.append(hook.maps())
        tokens.append(int(np.argmax(logits[0, -1])))
        ids = np.append(ids, tokens[-1])
    return ExtractedAttention(np.stack(maps), np.array(tokens))


def hide_image_tokens(logits: Any, keep: Any, image_slice: slice | Sequence[int]) -> np.ndarray:
    """Hide the image tokens that a mask leaves out: asking again without encoding the image again [our definition].

    Parameters
    ----------
    logits : array_like, shape (..., T, S)
        Attention logits over all keys.
    keep : array_like of bool, shape (N,)
        The image tokens that stay, such as ``patch_mask(mask, grid).ravel()``.
    image_slice : slice or (int, int)
        Where the image tokens are among the keys: start and stop, N apart.

    Returns
    -------
    ndarray, shape of ``logits``
        −∞ at hidden tokens.

    Raises
    ------
    ValueError
        If ``keep`` is not boolean or does not fit the slice, or the slice leaves the keys.
    """
    logits, keep = as_float("logits", logits), as_bool("keep", keep, ndim=1)
    require(logits.ndim >= 1, "logits is a number, expected (..., S)")
    start, stop = image_range(image_slice, logits.shape[-1])
    require_shape("keep", keep, (stop - start,))
    hidden = np.zeros(logits.shape[-1], dtype=bool)  # (S,)
    hidden[start:stop] = ~keep
    return np.asanyarray(np.where(hidden, logits.dtype.type(-np.inf), logits))


class CaptureHook(Intervention):
    """Keep how the last query of a forward pass looks at the image; change nothing.

    Parameters
    ----------
    layers : sequence of int
        Which layers; the pass may stop after the last of them.
    image_slice : slice or (int, int)
        Where the image tokens are among the keys: start and stop.
    """

    def __init__(self, layers: Sequence[int], image_slice: slice | Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.image_slice = image_slice
        self._kept: dict[int, np.ndarray] = {}

    def begin(self, n_layers: int) -> None:
        """Forget the last pass."""
        require(all(0 <= l < n_layers for l in self.layers), f"layers={self.layers} must be below {n_layers}")
        self._kept = {}

    def on_weights(self, layer: int, weights: np.ndarray) -> np.ndarray:
        """Keep the mean over heads of the last row; return the weights as they are."""
        if layer in self.layers:
            self._kept[layer] = image_attention(weights, self.image_slice)  # (B, N)
        return weights

    def maps(self) -> np.ndarray:
        """Return what the last pass left, (L, N); (B, L, N) if it had more than one sequence.

        Raises
        ------
        ValueError
            If no pass has reached all layers.
        """
        missing = [l for l in self.layers if l not in self._kept]
        require(not missing, f"layers {missing} have not been reached by a forward pass")
        kept = np.stack([self._kept[l] for l in self.layers], axis=-2)  # (B, L, N)
        return kept[0] if len(kept) == 1 else kept


class RequeryHook(Intervention):
    """Hide image tokens from every layer of a running decoder; see `hide_image_tokens`.

    Parameters
    ----------
    keep : array_like of bool, shape (N,)
        The image tokens that stay.
    image_slice : slice or (int, int)
        Where the image tokens are among the keys: start and stop.
    """

    def __init__(self, keep: Any, image_slice: slice | Sequence[int]) -> None:
        self.keep = as_bool("keep", keep, ndim=1)
        self.image_slice = image_slice

    def on_logits(self, layer: int, logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Put −∞ where an image token is hidden."""
        return hide_image_tokens(logits, self.keep, self.image_slice)
