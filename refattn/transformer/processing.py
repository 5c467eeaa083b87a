"""Weight processing: equal models whose parts are easier to read, because norms and means are folded into weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.transformer.weights import Transformer

if TYPE_CHECKING:
    from refattn.transformer.weights import BlockWeights, TransformerWeights

__all__ = ["process_weights"]


def process_weights(
    model: Transformer,
    *,
    fold_norm: bool = True,
    center_writing: bool = True,
    center_unembed: bool = True,
    fold_value_bias: bool = True,
) -> Transformer:
    """Rewrite the weights of a model so that log-probabilities stay what they are.

    Parameters
    ----------
    model : Transformer
        What to rewrite; it is left as it is.
    fold_norm : bool
        Move the weights and biases of each norm into the matrices that read it; with LayerNorm, take the mean over
        the input axis out of these matrices too, which a centred input does not see.
    center_writing : bool
        LayerNorm only: take the mean over the output axis out of everything that writes to the stream.
    center_unembed : bool
        Take the mean over the vocabulary out of the unembedding: logits change by a constant per position.
    fold_value_bias : bool
        Move Σ_h b_V W_O into b_O: attention weights sum to 1, so the value bias passes through them unchanged.

    Returns
    -------
    Transformer
        With ``b_U``; it cannot be saved as a checkpoint of its family any more.

    References
    ----------
    TransformerLens, ``weight_processing``; equations 2.11 of the transformer's page.
    """
    config, weights = model
    layer_norm = config.norm == "layer"
    b_u = np.zeros(config.vocab_size, weights.W_U.dtype) if weights.b_U is None else weights.b_U
    weights = weights._replace(b_U=b_u)
    if fold_norm:
        # eq: fold-norm
        weights = _fold_norms(weights, centred=layer_norm)
    if center_writing and layer_norm:
        # eq: centre-writing
        weights = _centre_writing(weights)
    if center_unembed:
        # eq: centre-unembed
        weights = weights._replace(W_U=_centred(weights.W_U, 1), b_U=_centred(weights.b_U, 0))
    if fold_value_bias:
        # eq: fold-value-bias
        weights = weights._replace(blocks=tuple(_fold_value_bias(block) for block in weights.blocks))
    return Transformer(config._replace(tied=False), weights)


def _centred(array: np.ndarray, axis: int) -> np.ndarray:
    return np.asanyarray(array - np.mean(array, axis=axis, keepdims=True))


def _fold(weight: Any, bias: Any, norm_w: Any, norm_b: Any, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return W and b (…, d, n), (…, n) that read the bare normalised vector."""
    if norm_b is not None:
        bias = bias + norm_b @ weight
    weight = norm_w[:, None] * weight
    return (_centred(weight, -2) if centred else weight), bias


def _fold_norms(weights: TransformerWeights, *, centred: bool) -> TransformerWeights:
    blocks = tuple(_fold_block(block, centred=centred) for block in weights.blocks)
    w_u, b_u = _fold(weights.W_U, weights.b_U, weights.lnf_w, weights.lnf_b, centred=centred)
    lnf_w, lnf_b = _neutral(weights.lnf_w, weights.lnf_b)
    return weights._replace(blocks=blocks, W_U=w_u, b_U=b_u, lnf_w=lnf_w, lnf_b=lnf_b)


def _fold_block(block: BlockWeights, *, centred: bool) -> BlockWeights:
    changed: dict[str, Any] = {}
    readers = {"1": ("Q", "K", "V"), "2": ("in",) if block.W_gate is None else ("in", "gate")}
    for norm, names in readers.items():
        norm_w, norm_b = getattr(block, f"ln{norm}_w"), getattr(block, f"ln{norm}_b")
        for name in names:
            weight, bias = getattr(block, f"W_{name}"), getattr(block, f"b_{name}")
            changed[f"W_{name}"], changed[f"b_{name}"] = _fold(weight, bias, norm_w, norm_b, centred=centred)
        changed[f"ln{norm}_w"], changed[f"ln{norm}_b"] = _neutral(norm_w, norm_b)
    return block._replace(**changed)


def _neutral(norm_w: Any, norm_b: Any) -> tuple[np.ndarray, np.ndarray | None]:
    return np.ones_like(norm_w), None if norm_b is None else np.zeros_like(norm_b)


def _centre_writing(weights: TransformerWeights) -> TransformerWeights:
    writers = ("W_O", "b_O", "W_out", "b_out")
    blocks = tuple(
        block._replace(**{name: _centred(getattr(block, name), -1) for name in writers}) for block in weights.blocks
    )
    w_pos = None if weights.W_pos is None else _centred(weights.W_pos, -1)
    return weights._replace(W_E=_centred(weights.W_E, -1), W_pos=w_pos, blocks=blocks)


def _fold_value_bias(block: BlockWeights) -> BlockWeights:
    each = np.repeat(block.b_V, len(block.W_O) // len(block.b_V), axis=0)  # (H, e)
    return block._replace(b_O=block.b_O + np.einsum("he,hed->d", each, block.W_O), b_V=np.zeros_like(block.b_V))
