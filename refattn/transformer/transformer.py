"""The transformer as functions of arrays: what a backend that runs whole models offers to the conformance kit.

The configuration is what ``config.json`` holds, so that a check can be written to a file and replayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import require
from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward
from refattn.transformer.weights import Transformer, check_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refattn.transformer.weights import TransformerWeights

__all__ = ["TransformerOutput", "transformer_logits", "transformer_steps"]


class TransformerOutput(NamedTuple):
    """Logits (B, T, V), and the residual stream after each block (L, B, T, d)."""

    logits: np.ndarray
    streams: np.ndarray


def transformer_logits(
    weights: TransformerWeights,
    ids: Any,
    *,
    config: Mapping[str, Any],
    key_mask: Any = None,
    positions: Any = None,
) -> TransformerOutput:
    """Run tokens through a transformer, without a cache.

    Parameters
    ----------
    weights : TransformerWeights
        In the row convention y = x @ W, per head.
    ids : array_like of int, shape (B, T)
        Tokens.
    config : mapping
        The contents of ``config.json``.
    key_mask : array_like of bool, shape (B, T), optional
        False hides padding.
    positions : array_like of int, shape (B, T) or (T,), optional
        Position of each token; 0, 1, … if not given.

    Returns
    -------
    TransformerOutput

    Raises
    ------
    ValueError
        As `refattn.transformer.forward.forward`; and if the weights do not fit the configuration.
    """
    model = _model(weights, config)
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.config.n_layers)]
    result = forward(model, ids, key_mask=key_mask, positions=positions, names=names)
    shape = (*result.logits.shape[:2], model.config.d_model)
    empty = np.zeros((0, *shape), result.logits.dtype)
    return TransformerOutput(result.logits, np.stack([result.activations[n] for n in names]) if names else empty)


def transformer_steps(
    weights: TransformerWeights, ids: Any, *, config: Mapping[str, Any], prefill: int = 1
) -> np.ndarray:
    """Run the first tokens at once and the others one by one, with a cache.

    Parameters
    ----------
    weights : TransformerWeights
        In the row convention y = x @ W, per head.
    ids : array_like of int, shape (B, T)
        Tokens.
    config : mapping
        The contents of ``config.json``.
    prefill : int
        How many tokens the first call gets, 1 to T.

    Returns
    -------
    ndarray, shape (B, T, V)
        The logits of all calls, one after another.

    Raises
    ------
    ValueError
        As `transformer_logits`; and if ``prefill`` is out of range.
    """
    model, ids = _model(weights, config), np.asarray(ids)
    length = ids.shape[-1]
    require(1 <= prefill <= length, f"prefill={prefill} must lie in 1..{length}")
    result = forward(model, ids[:, :prefill])
    logits = [result.logits]
    for t in range(prefill, length):
        result = forward(model, ids[:, t : t + 1], cache=result.kv_cache)
        logits.append(result.logits)
    return np.concatenate(logits, axis=1)


def _model(weights: TransformerWeights, config: Mapping[str, Any]) -> Transformer:
    parsed = parse_config(config)
    check_weights(parsed, weights)
    return Transformer(parsed, weights)
