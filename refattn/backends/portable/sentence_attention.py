"""Sentence attention in the array-API standard, everything linear as a matrix product.

Resizing is a product with a matrix of hat functions on each side, batch normalisation is folded into its convolution,
and the gate of the coarsest map into the kernels of its first convolution, so that the gated map is never formed.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

__all__ = [
    "answer_grounding_head",
    "merge_block",
    "resize_bilinear",
    "sentence_attention",
    "sentence_gate",
    "spatial_mean",
    "squeeze_excite",
]


def sentence_gate(
    text: Any, weights: Any, *, activation: str = "softmax", layer_norm: bool = True, eps: float = 1e-5
) -> Any:
    """Return the gate (B, C): LayerNorm from centred rows and their lengths, softmax from a log-sum-exp."""
    xp = array_namespace(text)
    h = text @ weights.w1 + weights.b1
    if layer_norm:
        centred = h - xp.mean(h, axis=-1, keepdims=True)
        length = xp.linalg.vector_norm(centred, axis=-1, keepdims=True)
        # σ² + eps = (length² + n eps) / n, with the root of n kept out of the square
        h = centred / xp.sqrt((length / h.shape[-1] ** 0.5) ** 2 + eps) * weights.ln_scale + weights.ln_shift
    logits = _positive(h) @ weights.w2 + weights.b2
    if activation == "sigmoid":
        return _sigmoid(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return xp.exp(shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True)))


def sentence_attention(
    features: Any,
    text: Any,
    weights: Any,
    *,
    activation: str = "softmax",
    layer_norm: bool = True,
    eps: float = 1e-5,
) -> Any:
    """Return g_c X_c for each channel."""
    g = sentence_gate(text, weights, activation=activation, layer_norm=layer_norm, eps=eps)
    return g[:, :, None, None] * features


def spatial_mean(features: Any) -> Any:
    """Return the mean of each channel."""
    xp = array_namespace(features)
    return xp.mean(features, axis=(-2, -1))


def squeeze_excite(features: Any, weights: Any) -> Any:
    """Return each channel times its gate."""
    hidden = _positive(spatial_mean(features) @ weights.w1 + weights.b1)
    return _sigmoid(hidden @ weights.w2 + weights.b2)[:, :, None, None] * features


def resize_bilinear(features: Any, size: Any) -> Any:
    """Return R X Sᵀ for each channel, with hat functions in the rows of R and S."""
    xp = array_namespace(features)
    rows = _hats(features, features.shape[-2], size[0])
    columns = _hats(features, features.shape[-1], size[1])
    return rows @ (features @ xp.matrix_transpose(columns))


def merge_block(low: Any, high: Any, weights: Any, *, eps: float = 1e-5) -> Any:
    """Return the finer map with the coarse one added, negative sums set to zero."""
    kernel, shift = _folded(weights, eps)
    return _joined(_convolved(low, kernel, shift), high)


def answer_grounding_head(
    features: Any,
    text: Any,
    gates: Any,
    merges: Any,
    classifier_w: Any,
    classifier_b: Any,
    output_size: Any,
) -> Any:
    """Return logits: one kernel for each sentence at the coarsest scale, then sums from scale to scale."""
    opened = [sentence_gate(text, gate) for gate in gates]  # (B, C_i)
    steps = [*(_folded(merge, 1e-5) for merge in reversed(merges)), (classifier_w, classifier_b)]
    (kernel, shift), *rest = steps
    logits = _convolved(features[-1], opened[-1][:, :, None] * kernel, shift)
    finer = zip(reversed(features[:-1]), reversed(opened[:-1]), rest, strict=True)
    logits = reduce(_merged, finer, logits)
    return resize_bilinear(logits, output_size)


def _merged(coarse: Any, finer: tuple[Any, Any, tuple[Any, Any]]) -> Any:
    """Add a convolved coarse map to a gated finer one, and convolve the sum for the next."""
    features, gate, (kernel, shift) = finer
    return _convolved(_joined(coarse, gate[:, :, None, None] * features), kernel, shift)


def _joined(coarse: Any, fine: Any) -> Any:
    same = coarse.shape[-2:] == fine.shape[-2:]
    return _positive((coarse if same else resize_bilinear(coarse, fine.shape[-2:])) + fine)


def _folded(weights: Any, eps: float) -> tuple[Any, Any]:
    """Return one kernel and one shift that do what a convolution and its batch normalisation do."""
    xp = array_namespace(weights.w)
    gain = weights.bn_scale / xp.sqrt(weights.bn_var + eps)
    return weights.w * gain, weights.bn_shift - weights.bn_mean * gain


def _convolved(x: Any, kernel: Any, shift: Any) -> Any:
    """Return the 1×1 convolution of (B, C, H, W) by a kernel (C, K), or by one for each sentence, (B, C, K)."""
    xp = array_namespace(x)
    B, C, H, W = x.shape
    pixels = xp.matrix_transpose(kernel) @ xp.reshape(x, (B, C, H * W))  # (B, K, H W)
    return xp.reshape(pixels, (B, kernel.shape[-1], H, W)) + shift[:, None, None]


def _hats(x: Any, n_in: int, n_out: int) -> Any:
    """Return the matrix (n_out, n_in) of max(0, 1 − |s_o − i|), s_o kept between the first and the last centre."""
    xp = array_namespace(x)
    ahead = (2 * np.arange(n_out) + 1) * n_in - n_out  # 2 n_out s_o, whole numbers
    s = np.clip(ahead / (2 * n_out), 0, n_in - 1)
    hats = np.maximum(0.0, 1.0 - np.abs(s[:, None] - np.arange(n_in)))
    return xp.asarray(hats, dtype=x.dtype, device=device(x))


def _positive(x: Any) -> Any:
    xp = array_namespace(x)
    return xp.maximum(x, xp.zeros((), dtype=x.dtype, device=device(x)))


def _sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e) or e / (1 + e), with e = exp(−|x|) that cannot overflow."""
    xp = array_namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x < 0, e, xp.ones_like(e)) / (1.0 + e)
