"""Context-aware attention, a gate model, optimal transport, fusion and calibration: the parts of 2305.16406.

The paper recognises dementia from speech: BERT reads the transcript, DeiT the spectrogram, and what stands here ties
the two sequences of tokens together. It has no public code. Each part is defined by its own source; the encoder in this
file stacks the first of them.

=============================  ======================================================================================
part                           where
=============================  ======================================================================================
contexts, gated by each token  `refattn.layers.context_aware_attention`
gate model                     `refattn.layers.context_aware_gate`
transport between modalities   `refattn.layers.context_aware_transport`, `refattn.primitives.optimal_transport`
pooling and fusion             `refattn.layers.context_aware_fusion`
label smoothing, calibration   `refattn.layers.context_aware_calibration`
=============================  ======================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.context_aware_attention import (
    ContextAttentionResult,
    ContextAttentionWeights,
    context_attention_flops,
    context_aware_attention,
    context_gates,
    deep_context,
    deep_global_context,
    global_context,
    token_mask,
)
from refattn.layers.context_aware_calibration import (
    adaptive_calibration_error,
    expected_calibration_error,
    label_smoothing_cross_entropy,
    maximum_calibration_error,
)
from refattn.layers.context_aware_fusion import fuse_attention, fuse_concat, mean_pool
from refattn.layers.context_aware_gate import GateWeights, gated_self_attention
from refattn.layers.context_aware_transport import ot_cross_attention, ot_kernel_attention
from refattn.primitives.arguments import as_float, require, require_one_of, require_shape
from refattn.primitives.norms import layer_norm
from refattn.primitives.optimal_transport import emd_plan, pairwise_sq_cost, sinkhorn_plan, transport_map

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ContextAttentionResult",
    "ContextAttentionWeights",
    "EncoderLayerWeights",
    "GateWeights",
    "NormWeights",
    "adaptive_calibration_error",
    "context_attention_flops",
    "context_aware_attention",
    "context_aware_encoder",
    "context_gates",
    "deep_context",
    "deep_global_context",
    "emd_plan",
    "expected_calibration_error",
    "fuse_attention",
    "fuse_concat",
    "gated_self_attention",
    "global_context",
    "label_smoothing_cross_entropy",
    "maximum_calibration_error",
    "mean_pool",
    "ot_cross_attention",
    "ot_kernel_attention",
    "pairwise_sq_cost",
    "sinkhorn_plan",
    "transport_map",
]

CONTEXTS = (None, "global", "deep", "deep_global")


class NormWeights(NamedTuple):
    """A layer norm.

    Attributes
    ----------
    scale, offset : ndarray, shape (D,)
        Of each channel.
    """

    scale: np.ndarray
    offset: np.ndarray


class EncoderLayerWeights(NamedTuple):
    """One encoder layer; norms that are None are left out.

    Attributes
    ----------
    attention : ContextAttentionWeights
        Of its attention.
    w1, b1, w2, b2 : ndarray, shape (D, F), (F,), (F, D) and (D,)
        Of its feed-forward part, linear, ReLU, linear.
    pre_attention, post_attention, pre_ffn, post_ffn : NormWeights or None
        Before and after either part.
    """

    attention: ContextAttentionWeights
    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray
    pre_attention: NormWeights | None = None
    post_attention: NormWeights | None = None
    pre_ffn: NormWeights | None = None
    post_ffn: NormWeights | None = None


def context_aware_encoder(
    x: Any,
    layers: Sequence[EncoderLayerWeights],
    final_norm: NormWeights | None = None,
    *,
    n_heads: int,
    context: str | None = "deep_global",
    mask: Any = None,
) -> Any:
    """Stack context-aware layers, each of which knows what the lower ones have seen.

    For each layer:

    1. Note the (normed) input; make the context of all inputs so far, or of all outputs of lower layers.
    2. Attend with it, add, norm.
    3. Feed forward, add, norm.

    Parameters
    ----------
    x : array_like, shape (..., N, D)
        Tokens.
    layers : sequence of EncoderLayerWeights
        From the lowest to the highest; the width of layer l's context, counted from 1, is D, (l − 1)D or lD for
        the three contexts.
    final_norm : NormWeights, optional
        After the last layer.
    n_heads : int
        H.
    context : {None, "global", "deep", "deep_global"}
        Which context. ``deep`` leaves the lowest layer without one, for nothing lies below it.
    mask : array_like of bool, shape (..., N), optional
        True = real token.

    Returns
    -------
    ndarray, shape (..., N, D)
        In the dtype of ``x``.

    Raises
    ------
    ValueError
        If ``context`` is none of the four, or as `context_aware_attention`.

    Notes
    -----
    ``deep_global`` is `models/transformer_new.py` of the authors of 1902.05766, whose means are those of the *normed*
    inputs, and norms have eps 1e-6. ``deep`` stacks the formula [recalled], which their code does not run; there the
    outputs of whole layers are taken.
    """
    x = as_float("x", x)
    mask = token_mask(mask, x)
    require_one_of("context", context, CONTEXTS)
    inputs: list[Any] = []
    outputs: list[Any] = []
    for layer in layers:
        h = _norm(x, layer.pre_attention)  # (..., N, D)
        inputs.append(h)  # 1
        c = _context(context, inputs, outputs, mask)  # (..., 1 or N, d_c)
        y = context_aware_attention(h, layer.attention, c, n_heads=n_heads, mask=mask)
        x = _norm(x + y, layer.post_attention)  # 2
        x = _norm(x + _feed_forward(_norm(x, layer.pre_ffn), layer), layer.post_ffn)  # 3
        outputs.append(x)
    return _norm(x, final_norm)


def _context(kind: str | None, inputs: list[Any], outputs: list[Any], mask: np.ndarray) -> Any:
    """Return the context of the layer whose input is the last of ``inputs``."""
    if kind == "global":
        return global_context(inputs[-1], mask)
    if kind == "deep_global":
        return deep_global_context(inputs, mask)
    return deep_context(outputs) if kind == "deep" and outputs else None


def _norm(x: Any, weights: NormWeights | None) -> Any:
    return x if weights is None else layer_norm(x, *weights, eps=1e-6)


def _feed_forward(x: Any, layer: EncoderLayerWeights) -> Any:
    w1, b1, w2, b2 = (as_float(n, getattr(layer, n)).astype(x.dtype, copy=False) for n in ("w1", "b1", "w2", "b2"))
    D = x.shape[-1]
    require(w1.ndim == 2 and w1.shape[0] == D, f"w1 has shape {w1.shape}, expected ({D}, F)")
    for name, value, shape in (("b1", b1, w1.shape[1:]), ("w2", w2, (w1.shape[1], D)), ("b2", b2, (D,))):
        require_shape(name, value, shape)
    return np.maximum(x @ w1 + b1, 0) @ w2 + b2
