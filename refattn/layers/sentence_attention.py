"""Sentence attention: a question turns the channels of an image's feature map up or down (2309.11593).

Squeeze-and-excitation weighs channels by what the picture holds. The sentence attention block asks the sentence
instead: one gate for each channel, computed from the sentence embedding alone, the same for all pixels. The network
around the block stands in `refattn.layers.sentence_attention_head`, its cost in
`refattn.layers.sentence_attention_cost`. Equation labels (sab-…) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.activations import sigmoid
from refattn.primitives.arguments import as_float, require, require_finite, require_one_of, require_shape
from refattn.primitives.norms import layer_norm as _layer_norm
from refattn.primitives.softmax import softmax

__all__ = [
    "ACTIVATIONS",
    "SentenceAttentionWeights",
    "SqueezeExciteWeights",
    "sentence_attention",
    "sentence_gate",
    "spatial_mean",
    "squeeze_excite",
]

ACTIVATIONS = ("softmax", "sigmoid")


class SentenceAttentionWeights(NamedTuple):
    """Weights of one sentence attention block.

    Attributes
    ----------
    w1, b1 : ndarray, shape (D, E), (E,)
        From the sentence embedding to the hidden layer. The paper's width is E = 4 D; any other works.
    ln_scale, ln_shift : ndarray, shape (E,)
        Of the LayerNorm.
    w2, b2 : ndarray, shape (E, C), (C,)
        From the hidden layer to one logit for each channel.
    """

    w1: np.ndarray
    b1: np.ndarray
    ln_scale: np.ndarray
    ln_shift: np.ndarray
    w2: np.ndarray
    b2: np.ndarray


class SqueezeExciteWeights(NamedTuple):
    """Weights of one squeeze-and-excitation block.

    Attributes
    ----------
    w1, b1 : ndarray, shape (C, R), (R,)
        From the channels' means to a hidden layer, usually narrower than C.
    w2, b2 : ndarray, shape (R, C), (C,)
        Back to one logit for each channel.
    """

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray


def sentence_gate(
    text: Any,
    weights: SentenceAttentionWeights,
    *,
    activation: str = "softmax",
    layer_norm: bool = True,
    eps: float = 1e-5,
) -> np.ndarray:
    """Compute from a sentence how open each channel is.

    Parameters
    ----------
    text : array_like, shape (B, D)
        Sentence embeddings t.
    weights : SentenceAttentionWeights
        W₁, b₁, LayerNorm, W₂, b₂.
    activation : {"softmax", "sigmoid"}
        The block shares one unit among the channels by a softmax; ``sigmoid`` opens each channel on its own.
    layer_norm : bool
        False leaves the LayerNorm out.
    eps : float
        Added to the LayerNorm's variance.

    Returns
    -------
    ndarray, shape (B, C)
        The gate g ≥ 0; under softmax it sums to 1 over the channels.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is not finite, there is no channel, ``eps`` is negative or the activation is
        unknown.

    Notes
    -----
    Written after the official code (khoshsirat/embedding-attention-blocks at 1d9268c); the paper's text could not be
    read. There the hidden width is 4 D, the activation a softmax and eps 1e-5. The options are for ablations: with the
    image's `spatial_mean` as ``text``, ``activation="sigmoid"``, ``layer_norm=False`` and a narrow hidden layer, this
    is the gate of squeeze-and-excitation.

    References
    ----------
    2309.11593.
    """
    require_one_of("activation", activation, ACTIVATIONS)
    require(np.isfinite(eps) and eps >= 0, f"eps={eps!r} must be finite and >= 0")
    text = _vectors("text", text)
    w1, b1, ln_scale, ln_shift, w2, b2 = _gate_weights(weights, text.shape[-1])
    # eq: sab-1
    a = text @ w1 + b1  # (B, E)
    # eq: sab-2
    h = _layer_norm(a, ln_scale, ln_shift, eps=eps) if layer_norm else a  # (B, E)
    # eq: sab-3
    z = np.maximum(h, 0)  # (B, E)
    # eq: sab-4
    logits = z @ w2 + b2  # (B, C)
    return softmax(logits, axis=-1) if activation == "softmax" else sigmoid(logits)


def sentence_attention(
    features: Any,
    text: Any,
    weights: SentenceAttentionWeights,
    *,
    activation: str = "softmax",
    layer_norm: bool = True,
    eps: float = 1e-5,
) -> np.ndarray:
    """Scale each channel of a feature map by the gate of a sentence.

    Parameters
    ----------
    features : array_like, shape (B, C, H, W)
        Feature maps X.
    text : array_like, shape (B, D)
        Sentence embeddings.
    weights, activation, layer_norm, eps
        As in `sentence_gate`.

    Returns
    -------
    ndarray, shape (B, C, H, W)
        g_c X_c for each channel c.

    Raises
    ------
    ValueError
        As `sentence_gate`, or if ``features`` does not have four axes, or batch sizes or channels differ.

    Notes
    -----
    There is no residual and no look at the image. A gate that shares one unit scales by 1/C on average; the
    convolution and the batch normalisation that follow restore the size.

    References
    ----------
    2309.11593.
    """
    g = sentence_gate(text, weights, activation=activation, layer_norm=layer_norm, eps=eps)  # (B, C)
    features = feature_maps("features", features)
    B, C = features.shape[:2]
    require(len(g) == B, f"text has batch size {len(g)}, expected {B} as features")
    require(g.shape[1] == C, f"w2 has {g.shape[1]} columns, expected one for each of the {C} channels of features")
    # eq: sab-5
    return np.asanyarray(g[:, :, None, None] * features)  # (B, C, H, W)


def spatial_mean(features: Any) -> np.ndarray:
    """Squeeze each channel to its mean over the pixels.

    Parameters
    ----------
    features : array_like, shape (B, C, H, W)
        Feature maps.

    Returns
    -------
    ndarray, shape (B, C)
        What squeeze-and-excitation knows of the picture.

    Raises
    ------
    ValueError
        If ``features`` does not have four axes, has no pixel, or a number is not finite.
    """
    features = feature_maps("features", features)
    require(min(features.shape[2:]) >= 1, f"features has shape {features.shape}, expected at least one pixel")
    # eq: sab-squeeze
    return np.asanyarray(np.mean(features, axis=(-2, -1)))  # (B, C)


def squeeze_excite(features: Any, weights: SqueezeExciteWeights) -> np.ndarray:
    """Scale each channel by a gate computed from the means of all channels: where the block comes from.

    Parameters
    ----------
    features : array_like, shape (B, C, H, W)
        Feature maps X.
    weights : SqueezeExciteWeights
        The two layers.

    Returns
    -------
    ndarray, shape (B, C, H, W)
        g_c X_c, each g_c in (0, 1).

    Raises
    ------
    ValueError
        If shapes do not fit, there is no pixel, or a number is not finite.

    References
    ----------
    Squeeze-and-excitation networks, 1709.01507.
    """
    s = spatial_mean(features)  # (B, C)
    features = feature_maps("features", features)
    w1, b1, w2, b2 = _squeeze_weights(weights, features.shape[1])
    # eq: sab-se
    g = sigmoid(np.maximum(s @ w1 + b1, 0) @ w2 + b2)  # (B, C)
    return np.asanyarray(g[:, :, None, None] * features)  # (B, C, H, W)


def feature_maps(name: str, value: Any) -> np.ndarray:
    """Return finite feature maps (B, C, H, W) with a channel; the check that all parts of the network share."""
    array: np.ndarray = as_float(name, value)
    require(array.ndim == 4, f"{name} must have shape (batch, channels, height, width), got {array.shape}")
    require(array.shape[1] >= 1, f"{name} has shape {array.shape}, expected at least one channel")
    require_finite(name, array)
    return array


def _vectors(name: str, value: Any) -> np.ndarray:
    array: np.ndarray = as_float(name, value)
    require(array.ndim == 2, f"{name} must have shape (batch, width), got {array.shape}")
    require_finite(name, array)
    return array


def _matrix(name: str, value: Any, rows: int, what: str) -> np.ndarray:
    array = _vectors(name, value)
    require(array.shape[0] == rows, f"{name} has {array.shape[0]} rows, expected {what} = {rows}")
    require(array.shape[1] >= 1, f"{name} has shape {array.shape}, expected at least one column")
    return array


def _vector(name: str, value: Any, width: int) -> np.ndarray:
    array: np.ndarray = as_float(name, value)
    require_shape(name, array, (width,))
    require_finite(name, array)
    return array


def _gate_weights(weights: SentenceAttentionWeights, width: int) -> tuple[np.ndarray, ...]:
    w1 = _matrix("w1", weights.w1, width, "the width of text")
    hidden = [_vector(name, getattr(weights, name), w1.shape[1]) for name in ("b1", "ln_scale", "ln_shift")]
    w2 = _matrix("w2", weights.w2, w1.shape[1], "the columns of w1")
    return w1, *hidden, w2, _vector("b2", weights.b2, w2.shape[1])


def _squeeze_weights(weights: SqueezeExciteWeights, channels: int) -> tuple[np.ndarray, ...]:
    w1 = _matrix("w1", weights.w1, channels, "the channels of features")
    w2 = _matrix("w2", weights.w2, w1.shape[1], "the columns of w1")
    require(w2.shape[1] == channels, f"w2 has {w2.shape[1]} columns, expected the channels of features = {channels}")
    return w1, _vector("b1", weights.b1, w1.shape[1]), w2, _vector("b2", weights.b2, channels)
