"""Secondary attention sinks: tokens in mid-text that come to point where the first token points (2512.22213).

A sink is found in the hidden states (`secondary_sinks_detection`) and falls into a level (`secondary_sinks_levels`);
how one is made, and unmade, stands in `secondary_sinks_formation`. Here it is weighed in the attention weights, and
the readings of a model are taken that all of this needs. L layers, H heads, T tokens, d channels; equation labels
(ss-…) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interpretability.secondary_sinks_detection import (
    LABELS,
    SinkDetection,
    SinkLives,
    SinkMembership,
    cosine_similarity,
    detect_sinks,
    label_sinks,
    primary_cosines,
    sink_levels,
    sink_lives,
    sink_membership,
)
from refattn.interpretability.secondary_sinks_formation import (
    DirectionResponse,
    alignment_by_state,
    block_mlp,
    direction_response,
    matrix_entropy,
    mlp_alignment,
    mlp_states,
    principal_directions,
    rank_correlation,
    rescale_sink_hook,
    rescale_sinks,
    same_token_positions,
)
from refattn.interpretability.secondary_sinks_levels import (
    Level,
    cluster_levels,
    level_histogram,
)
from refattn.primitives.arguments import as_float, as_integer, require, require_finite
from refattn.transformer.forward import forward

if TYPE_CHECKING:
    from refattn.transformer.hooks import Hooks
    from refattn.transformer.weights import Transformer

__all__ = [
    "LABELS",
    "SINKY",
    "DirectionResponse",
    "Level",
    "SinkDetection",
    "SinkLives",
    "SinkMembership",
    "alignment_by_state",
    "attention_patterns",
    "block_mlp",
    "cluster_levels",
    "cosine_similarity",
    "detect_sinks",
    "direction_response",
    "hidden_states",
    "label_sinks",
    "level_histogram",
    "matrix_entropy",
    "mlp_alignment",
    "mlp_states",
    "primary_cosines",
    "principal_directions",
    "rank_correlation",
    "rescale_sink_hook",
    "rescale_sinks",
    "same_token_positions",
    "sink_levels",
    "sink_lives",
    "sink_membership",
    "sink_score",
]

SINKY = 0.3
"""A head is said to attend to a sink if its score is larger [recalled from Gu et al., 2410.10781]."""


def sink_score(pattern: Any) -> np.ndarray:
    """Return the mean attention that each position gets from the queries that can see it.

    Parameters
    ----------
    pattern : array_like, shape (..., T, T)
        Causal attention weights, queries by keys; (L, H, T, T) for a whole model.

    Returns
    -------
    ndarray, shape (..., T)
        Scores in [0, 1], in the dtype of ``pattern``. The layer score is their mean over heads.

    Raises
    ------
    ValueError
        If the last two axes differ, a number is negative or not finite, a query attends to a later key, or a row does
        not sum to 1 within 1e-6 (1e-2 in 16 bits).

    Notes
    -----
    The paper's definition could not be read; this is the one of Gu et al., 2410.10781 [our choice].
    """
    pattern = as_float("pattern", pattern)
    _check_pattern(np.asarray(pattern))  # the numbers as they are, whatever kind of array they come in
    length = pattern.shape[-1]
    # eq: ss-score
    return np.asanyarray(np.sum(pattern, axis=-2) / (length - np.arange(length)).astype(pattern.dtype))  # (..., T)


def hidden_states(model: Transformer, ids: Any, *, hooks: Hooks | None = None) -> np.ndarray:
    """Return what the detector reads: the output of every block, the last one after the final norm.

    Parameters
    ----------
    model : Transformer
        A model.
    ids : array_like of int, shape (T,) or (1, T)
        One sequence.
    hooks : mapping, optional
        What to do during the pass, for steering; see `refattn.transformer.forward.forward`.

    Returns
    -------
    ndarray, shape (N, T, d)
        ``hidden_states[1:]`` of transformers.

    Raises
    ------
    ValueError
        If there is more than one sequence, or as `forward`.
    """
    n_layers, weights = model.config.n_layers, model.weights
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers - 1)]
    kept = forward(model, _one(ids), hooks=hooks, names=[*names, "ln_final.hook_normalized"]).activations
    last = kept["ln_final.hook_normalized"] * weights.lnf_w
    last = last if weights.lnf_b is None else last + weights.lnf_b
    return np.concatenate([*(kept[name] for name in names), last])


def attention_patterns(model: Transformer, ids: Any, *, hooks: Hooks | None = None) -> np.ndarray:
    """Return the attention weights of every head.

    Parameters
    ----------
    model, ids, hooks
        As in `hidden_states`.

    Returns
    -------
    ndarray, shape (L, H, T, T)

    Raises
    ------
    ValueError
        As `hidden_states`.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.config.n_layers)]
    kept = forward(model, _one(ids), hooks=hooks, names=names).activations
    return np.concatenate([kept[name] for name in names])


def _check_pattern(pattern: np.ndarray) -> None:
    shape = pattern.shape
    require(pattern.ndim >= 2 and shape[-1] == shape[-2], f"pattern has shape {shape}, expected (..., T, T)")
    require_finite("pattern", pattern)
    require(np.all(pattern >= 0), "pattern must not be negative")
    later = np.triu(np.ones(shape[-2:], dtype=bool), k=1)
    require(not np.any(pattern[..., later]), "pattern is not causal: a query attends to a later key")
    sums = np.sum(pattern.astype(np.promote_types(pattern.dtype, np.float32), copy=False), axis=-1)
    tolerance = 1e-6 if pattern.dtype.itemsize >= 4 else 1e-2
    require(np.all(np.abs(sums - 1) <= tolerance), f"rows of pattern must sum to 1 within {tolerance:g}")


def _one(ids: Any) -> np.ndarray:
    """Return one sequence as a batch of one."""
    array = as_integer("ids", ids)
    batch = array[None] if array.ndim == 1 else array
    require(batch.ndim == 2 and len(batch) == 1, f"ids has shape {array.shape}, expected one sequence, (T,) or (1, T)")
    return batch
