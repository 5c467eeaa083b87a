"""The gradient of a transformer's loss with respect to all its weights, by hand-written backward passes.

The steps and their vector-Jacobian products stand in `refattn.transformer.pullbacks`; here they are put together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import require, require_shape
from refattn.primitives.masks import causal_mask, window_mask
from refattn.transformer.forward import angles_at, checked_ids
from refattn.transformer.pullbacks import (
    ACTIVATIONS,
    attention,
    cross_entropy,
    embedding,
    heads_linear,
    linear,
    norm,
    rotation,
)
from refattn.transformer.weights import BlockWeights, TransformerWeights

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.transformer.config import TransformerConfig
    from refattn.transformer.weights import Transformer

    Gradients = dict[str, Any]
    Stage = tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, Gradients]]]

__all__ = ["language_model_loss", "loss_and_gradient"]

_NONE: dict[str, Any] = dict.fromkeys(BlockWeights._fields)


def loss_and_gradient(model: Transformer, ids: Any, targets: Any) -> tuple[float, TransformerWeights]:
    """Return how badly a model predicts the next tokens, and the gradient of that with respect to every weight.

    Parameters
    ----------
    model : Transformer
        Of any family. The pass computes in the dtype of the weights.
    ids : array_like of int, shape (B, T)
        The tokens it reads, B and T at least 1.
    targets : array_like of int, shape (B, T)
        The token that follows each of them.

    Returns
    -------
    loss : float
        Mean cross-entropy in nats: −1/(BT) Σ log softmax(logits)[target].
    gradient : TransformerWeights
        In the shapes of the weights, None where they are None. With ``config.tied`` the gradient of ``W_E`` holds both
        its parts, and that of ``W_U`` is its transpose.

    Raises
    ------
    ValueError
        For ids or targets that are no integers, of another shape, empty, or outside the vocabulary; for a sequence
        longer than the learned positions.

    Notes
    -----
    A family without biases keeps zeros in their place, and the gradient of such a zero is not zero: who trains one must
    leave those out.

    References
    ----------
    The pass is that of `refattn.transformer.forward.forward`, whose loss it equals; gradients agree with automatic
    differentiation of Hugging Face's GPT-2.
    """
    loss, pull = _loss(model, *_checked(model, ids, targets))
    return loss, pull()


def language_model_loss(model: Transformer, ids: Any, targets: Any) -> float:
    """Return the loss of `loss_and_gradient` alone: same arguments, same errors."""
    return _loss(model, *_checked(model, ids, targets))[0]


def _checked(model: Transformer, ids: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    config = model.config
    ids, targets = checked_ids("ids", ids, config), checked_ids("targets", targets, config)
    require(ids.size > 0, f"ids has shape {ids.shape}: it must hold at least one token")
    require_shape("targets", targets, ids.shape)
    if config.positions == "learned":
        longest = ids.shape[1]
        require(longest <= config.n_ctx, f"ids: sequence of {longest} exceeds {config.n_ctx} learned positions")
    return ids, targets


def _loss(model: Transformer, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Callable[[], TransformerWeights]]:
    config, weights = model
    x, pull_embedding = _embedded(model, ids)
    pulls = []
    for layer, block in enumerate(weights.blocks):
        x, pull_block = _block(x, block, config, layer)
        pulls.append(pull_block)
    normed, pull_norm = _norm(x, weights.lnf_w, weights.lnf_b, config, "lnf")
    # eq: logits
    logits, pull_logits = linear(normed, weights.W_U, weights.b_U)
    loss, pull_loss = cross_entropy(logits, targets)

    def pull() -> TransformerWeights:
        d_normed, d_unembedding, d_bias = pull_logits(pull_loss())
        d_x, stem = pull_norm(d_normed)
        blocks = []
        for pull_block in reversed(pulls):
            d_x, gradients = pull_block(d_x)
            blocks.append(BlockWeights(**_NONE | gradients))
        stem |= pull_embedding(d_x)
        if config.tied:
            stem["W_E"] += d_unembedding.T
            d_unembedding = stem["W_E"].T
        b_U = None if weights.b_U is None else d_bias
        return TransformerWeights(blocks=tuple(reversed(blocks)), W_U=d_unembedding, b_U=b_U, **stem)

    return loss, pull


def _embedded(model: Transformer, ids: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], Gradients]]:
    config, weights = model
    x, pull_tokens = embedding(weights.W_E, ids)
    if config.positions == "learned":
        x = x + weights.W_pos[: ids.shape[1]]

    def pull(d_x: np.ndarray) -> Gradients:
        gradients: Gradients = {"W_E": pull_tokens(d_x), "W_pos": None}
        if config.positions == "learned":
            gradients["W_pos"] = np.zeros_like(weights.W_pos)
            gradients["W_pos"][: ids.shape[1]] = np.sum(d_x, axis=0)
        return gradients

    return x, pull


def _block(x: np.ndarray, weights: BlockWeights, config: TransformerConfig, layer: int) -> Stage:
    h, pull_first_norm = _norm(x, weights.ln1_w, weights.ln1_b, config, "ln1")
    attended, pull_attention = _attention(h, weights, config, layer)
    # eq: residual
    mid = x + attended
    h, pull_second_norm = _norm(x if config.parallel_residual else mid, weights.ln2_w, weights.ln2_b, config, "ln2")
    made, pull_mlp = _mlp(h, weights, config)

    def pull(d_out: np.ndarray) -> tuple[np.ndarray, Gradients]:
        d_h, gradients = pull_mlp(d_out)
        d_read, more = pull_second_norm(d_h)
        gradients |= more
        d_mid = d_out if config.parallel_residual else d_out + d_read
        d_h, more = pull_attention(d_mid)
        gradients |= more
        d_x, more = pull_first_norm(d_h)
        d_x += d_mid
        return d_x + d_read if config.parallel_residual else d_x, gradients | more

    return mid + made, pull


def _norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, config: TransformerConfig, name: str) -> Stage:
    out, pull_norm = norm(x, weight, bias, centred=config.norm == "layer", eps=config.norm_eps)

    def pull(d_out: np.ndarray) -> tuple[np.ndarray, Gradients]:
        d_x, d_weight, d_bias = pull_norm(d_out)
        return d_x, {f"{name}_w": d_weight, f"{name}_b": None if bias is None else d_bias}

    return out, pull


def _attention(h: np.ndarray, weights: BlockWeights, config: TransformerConfig, layer: int) -> Stage:
    angles = angles_at(np.arange(h.shape[1])[None], config)
    q, pull_q = _projection(h, weights, config, "Q", angles)
    k, pull_k = _projection(h, weights, config, "K", angles)
    v, pull_v = _projection(h, weights, config, "V", None)
    z, pull_z = attention(q, k, v, _visible(h.shape[1], config.window[layer]), config.attn_scale[layer])
    heads, e, d = weights.W_O.shape
    # eq: attn-out
    out, pull_out = linear(z.reshape(*h.shape[:2], heads * e), weights.W_O.reshape(heads * e, d), weights.b_O)

    def pull(d_out: np.ndarray) -> tuple[np.ndarray, Gradients]:
        d_z, d_W_O, d_b_O = pull_out(d_out)
        d_q, d_k, d_v = pull_z(d_z.reshape(z.shape))
        d_h = np.zeros_like(h)
        gradients: Gradients = {"W_O": d_W_O.reshape(heads, e, d), "b_O": d_b_O}
        for pull_one, d_one in ((pull_q, d_q), (pull_k, d_k), (pull_v, d_v)):
            part, more = pull_one(d_one)
            d_h += part
            gradients |= more
        return d_h, gradients

    return out, pull


def _projection(
    h: np.ndarray, weights: BlockWeights, config: TransformerConfig, name: str, angles: np.ndarray | None
) -> Stage:
    """Return the queries, keys or values (B, T, heads, e): projected, normalised where asked, rotated."""
    x, pull_linear = heads_linear(h, getattr(weights, f"W_{name}"), getattr(weights, f"b_{name}"))
    scale = getattr(weights, f"{name.lower()}_norm", None)
    pull_norm = None
    if config.qk_norm and scale is not None:  # before the rotation
        x, pull_norm = norm(x, scale, None, centred=False, eps=config.norm_eps)
    x, pull_rotation = rotation(x, angles)

    def pull(d_x: np.ndarray) -> tuple[np.ndarray, Gradients]:
        gradients: Gradients = {}
        d_x = pull_rotation(d_x)
        if pull_norm is not None:
            d_x, gradients[f"{name.lower()}_norm"], _ = pull_norm(d_x)
        d_h, gradients[f"W_{name}"], gradients[f"b_{name}"] = pull_linear(d_x)
        return d_h, gradients

    return x, pull


def _mlp(h: np.ndarray, weights: BlockWeights, config: TransformerConfig) -> Stage:
    act = ACTIVATIONS[config.act]
    # eq: mlp
    read, pull_in = linear(h, weights.W_in, weights.b_in)
    if config.gated:
        gate, pull_gate = linear(h, weights.W_gate, weights.b_gate)
        opened, pull_act = act(gate)
        hidden = opened * read
    else:
        hidden, pull_act = act(read)
    out, pull_out = linear(hidden, weights.W_out, weights.b_out)

    def pull(d_out: np.ndarray) -> tuple[np.ndarray, Gradients]:
        gradients: Gradients = {}
        d_hidden, gradients["W_out"], gradients["b_out"] = pull_out(d_out)
        d_read = d_hidden * opened if config.gated else pull_act(d_hidden)
        d_h, gradients["W_in"], gradients["b_in"] = pull_in(d_read)
        if config.gated:
            more, gradients["W_gate"], gradients["b_gate"] = pull_gate(pull_act(d_hidden * read))
            d_h += more
        return d_h, gradients

    return out, pull


def _visible(t: int, window: int | None) -> np.ndarray:
    return np.asarray(causal_mask(t, t) & window_mask(t, t, None if window is None else window - 1, None))
