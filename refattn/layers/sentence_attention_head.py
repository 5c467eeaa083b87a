"""The network around sentence attention: one block at each scale, merged from coarse to fine, a mask at the end.

The picture's pyramid of feature maps comes from any backbone, the sentence embedding from any encoder. Equation labels
(sab-…) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.sentence_attention import SentenceAttentionWeights, feature_maps, sentence_attention
from refattn.primitives.arguments import as_bool, as_float, require, require_finite, require_shape
from refattn.primitives.norms import batch_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MergeWeights", "answer_grounding_head", "mean_iou", "merge_block", "resize_bilinear"]


class MergeWeights(NamedTuple):
    """Weights of one merging block.

    Attributes
    ----------
    w : ndarray, shape (C_low, C_high)
        The 1×1 convolution, without a bias.
    bn_scale, bn_shift, bn_mean, bn_var : ndarray, shape (C_high,)
        Scale, shift and running statistics of the batch normalisation.
    """

    w: np.ndarray
    bn_scale: np.ndarray
    bn_shift: np.ndarray
    bn_mean: np.ndarray
    bn_var: np.ndarray


def resize_bilinear(features: Any, size: Sequence[int]) -> np.ndarray:
    """Resize feature maps: interpolate between rows, then between columns.

    Parameters
    ----------
    features : array_like, shape (B, C, H, W)
        Feature maps with at least one pixel.
    size : (int, int)
        New height and width.

    Returns
    -------
    ndarray, shape (B, C, *size)
        Never outside the range of the input; the input itself if the size is the same.

    Raises
    ------
    ValueError
        If ``features`` does not have four axes, has no pixel, or a number is not finite, or the size is below 1.

    Notes
    -----
    Pixels are areas, and their centres are what is aligned: PyTorch's ``align_corners=False``, without smoothing when
    the map shrinks.
    """
    features = feature_maps("features", features)
    require(min(features.shape[2:]) >= 1, f"features has shape {features.shape}, expected at least one pixel")
    height, width = _size("size", size)
    return _interpolated(_interpolated(features, height, -2), width, -1)  # (B, C, height, width)


def merge_block(low: Any, high: Any, weights: MergeWeights, *, eps: float = 1e-5) -> np.ndarray:
    """Bring what a coarse map knows to a finer one: ReLU(resize(BN(conv(low))) + high).

    Parameters
    ----------
    low : array_like, shape (B, C_low, h, w)
        The coarse map.
    high : array_like, shape (B, C_high, H, W)
        The finer map, of any size.
    weights : MergeWeights
        Convolution and batch normalisation.
    eps : float
        Added to the variance.

    Returns
    -------
    ndarray, shape (B, C_high, H, W)
        Nowhere negative.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is not finite, a map has no pixel, or a variance or ``eps`` is negative.

    Notes
    -----
    Batch normalisation is that of evaluation, with running statistics. Resizing commutes with both it and the
    convolution; the official code resizes last, where there are fewer pixels to convolve.

    References
    ----------
    2309.11593; batch normalisation 1502.03167.
    """
    low, high = feature_maps("low", low), feature_maps("high", high)
    require(len(low) == len(high), f"low has batch size {len(low)}, expected {len(high)} as high")
    w, scale, shift, mean, var = _merge_weights(weights, low.shape[1], high.shape[1])
    y = np.einsum("bihw,ij->bjhw", low, w)  # (B, C_high, h, w)
    # eq: sab-6
    y = batch_norm(y, mean, var, scale, shift, eps=eps, axis=1)  # (B, C_high, h, w)
    # eq: sab-7
    return np.asanyarray(np.maximum(resize_bilinear(y, high.shape[2:]) + high, 0))  # (B, C_high, H, W)


def answer_grounding_head(
    features: Sequence[Any],
    text: Any,
    gates: Sequence[SentenceAttentionWeights],
    merges: Sequence[MergeWeights],
    classifier_w: Any,
    classifier_b: Any,
    output_size: Sequence[int],
) -> np.ndarray:
    """Find the pixels that answer a question: gate every scale, merge from coarse to fine, classify, resize.

    1. Gate each feature map by the sentence, with weights of its own.
    2. From the coarsest map on, merge each into the next finer one.
    3. Classify each pixel of the finest map, and resize the logits.

    Parameters
    ----------
    features : sequence of array_like, shape (B, C_i, H_i, W_i)
        The pyramid, finest first.
    text : array_like, shape (B, D)
        Sentence embeddings.
    gates : sequence of SentenceAttentionWeights
        One for each feature map.
    merges : sequence of MergeWeights
        ``merges[i]`` brings map i + 1 to map i.
    classifier_w, classifier_b : array_like, shape (C_0, K), (K,)
        The last 1×1 convolution.
    output_size : (int, int)
        Height and width of the mask.

    Returns
    -------
    ndarray, shape (B, K, *output_size)
        Logits; a pixel belongs to the mask where they are positive.

    Raises
    ------
    ValueError
        If there is no feature map, numbers of weights or shapes do not fit, a number is not finite, or
        ``output_size`` is below 1.

    Notes
    -----
    This is the official network at evaluation, behind its backbone (EfficientNet-b7, five scales) and its sentence
    encoder (all-MiniLM-L6-v2, D = 384, frozen). In training it drops half of the merged features before the classifier.

    References
    ----------
    2309.11593.
    """
    levels = len(features)
    require(levels >= 1, "features must hold at least one feature map")
    require(len(gates) == levels, f"gates has {len(gates)} blocks, expected one for each of {levels} feature maps")
    require(len(merges) == levels - 1, f"merges has {len(merges)} blocks, expected {levels - 1}")
    gated = [sentence_attention(x, text, gate) for x, gate in zip(features, gates, strict=True)]  # 1
    merged = gated[-1]
    for high, merge in zip(reversed(gated[:-1]), reversed(merges), strict=True):
        merged = merge_block(merged, high, merge)  # 2, (B, C_i, H_i, W_i)
    w, b = _classifier(classifier_w, classifier_b, merged.shape[1])
    # eq: sab-8
    logits = np.einsum("bihw,ik->bkhw", merged, w) + b[:, None, None]  # 3, (B, K, H_0, W_0)
    return resize_bilinear(logits, _size("output_size", output_size))  # (B, K, *output_size)


def mean_iou(pred_mask: Any, true_mask: Any) -> float:
    """Score masks by their mean intersection over union.

    Parameters
    ----------
    pred_mask, true_mask : array_like of bool, shape (..., H, W)
        One pair of masks for each image.

    Returns
    -------
    float
        Mean over the images. Two empty masks agree: they count 1 [our definition].

    Raises
    ------
    ValueError
        If shapes differ, an array is not boolean, or there is no image.
    """
    pred, true = as_bool("pred_mask", pred_mask), as_bool("true_mask", true_mask)
    require(pred.ndim >= 2, f"pred_mask has shape {pred.shape}, expected (..., height, width)")
    require_shape("true_mask", true, pred.shape)
    both, either = np.sum(pred & true, axis=(-2, -1)), np.sum(pred | true, axis=(-2, -1))
    require(either.size >= 1, f"pred_mask has shape {pred.shape}, expected at least one image")
    # eq: sab-iou
    return float(np.mean(np.where(either == 0, 1.0, both / np.maximum(either, 1))))


def _interpolated(x: np.ndarray, n_out: int, axis: int) -> np.ndarray:
    """Resize one axis of (B, C, H, W)."""
    n_in = x.shape[axis]
    # eq: sab-resize
    s = np.maximum((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0.0)  # where the new centres fall, (n_out,)
    i0 = np.floor(s).astype(np.int64)
    i1 = np.minimum(i0 + 1, n_in - 1)
    weight = (s - i0).astype(x.dtype).reshape(-1, *[1] * (-1 - axis))
    left, right = np.take(x, i0, axis=axis), np.take(x, i1, axis=axis)
    return np.asanyarray(left + weight * (right - left))


def _size(name: str, size: Sequence[int]) -> tuple[int, int]:
    require(len(size) == 2, f"{name}={size!r} must be a height and a width")
    height, width = (index(n) for n in size)
    require(min(height, width) >= 1, f"{name}={size!r} must be at least 1")
    return height, width


def _merge_weights(weights: MergeWeights, low: int, high: int) -> tuple[np.ndarray, ...]:
    shapes = ((low, high), *[(high,)] * 4)
    arrays = [as_float(name, value) for name, value in zip(MergeWeights._fields, weights, strict=True)]
    for name, array, shape in zip(MergeWeights._fields, arrays, shapes, strict=True):
        require_shape(name, array, shape)
        require_finite(name, array)
    require(np.all(arrays[-1] >= 0), f"bn_var={weights.bn_var!r} must be >= 0")
    return tuple(arrays)


def _classifier(w: Any, b: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    w, b = as_float("classifier_w", w), as_float("classifier_b", b)
    require(w.ndim == 2 and len(w) == channels, f"classifier_w has shape {w.shape}, expected ({channels}, classes)")
    require_shape("classifier_b", b, w.shape[1:])
    require_finite("classifier_w", w)
    require_finite("classifier_b", b)
    return w, b
