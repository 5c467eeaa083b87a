"""The forward pass of a decoder-only transformer, with hook points, interventions and a key/value cache.

Shapes: B batch, T new tokens, S keys (cached and new), L layers, H query heads, G key/value heads, d model width,
e head width, m MLP width, V vocabulary. Equation labels are those of the transformer's page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_bool, as_integer, require, require_shape
from refattn.primitives.masks import causal_mask, window_mask
from refattn.primitives.rotary import rope_angles, rope_frequencies
from refattn.primitives.softmax import log_sum_exp
from refattn.transformer.block import LayerSetting, block_output, hooked_norm
from refattn.transformer.hooks import BlockPoints, HookPoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.transformer.config import TransformerConfig
    from refattn.transformer.hooks import Hooks, Names
    from refattn.transformer.intervention import Intervention
    from refattn.transformer.weights import Transformer

    Cache = Sequence[tuple[np.ndarray, np.ndarray]]

__all__ = ["ForwardResult", "angles_at", "checked_ids", "forward", "log_softmax"]


class ForwardResult(NamedTuple):
    """Logits (B, T, V), the activations that were asked for, and per layer the keys and values (B, G, S, e) so far."""

    logits: np.ndarray
    activations: dict[str, np.ndarray]
    kv_cache: tuple[tuple[np.ndarray, np.ndarray], ...]


def forward(
    model: Transformer,
    ids: Any,
    *,
    cache: Cache | None = None,
    key_mask: Any = None,
    positions: Any = None,
    hooks: Hooks | None = None,
    interventions: Sequence[Intervention] = (),
    names: Names = (),
) -> ForwardResult:
    """Run tokens through a transformer: embed them, let every block add to the residual stream, read it out.

    Parameters
    ----------
    model : Transformer
        Configuration and weights; the pass computes in the dtype of the weights.
    ids : array_like of int, shape (B, T)
        New tokens, after those in the cache.
    cache : sequence of L pairs of ndarray, shape (B, G, S − T, e) each, optional
        Keys, already rotated, and values of the tokens before: the ``kv_cache`` of an earlier result.
    key_mask : array_like of bool, shape (B, S), optional
        False hides padding, cached tokens included. A query that sees nothing gets zeros from attention.
    positions : array_like of int, shape (B, T) or (T,), optional
        Position of each new token; S − T, S − T + 1, … if not given. With left padding pass
        ``np.maximum(np.cumsum(key_mask, -1) - 1, 0)``: it is not derived from the mask.
    hooks : mapping of str to callable or sequence of callables, optional
        What to do at a hook point, see `refattn.transformer.hooks`.
    interventions : sequence of Intervention
        What to do at every attention call, in order; they come before the hooks of the same place.
    names : "all", iterable of str, or predicate
        The hook points whose values are returned.

    Returns
    -------
    ForwardResult

    Raises
    ------
    ValueError
        For ids that are not integers, not two-dimensional or outside the vocabulary; a sequence longer than the
        learned positions; a mask, positions or cache of another shape; an unknown hook point; a hook that changes a
        shape.

    Notes
    -----
    The tuple ``hidden_states`` of transformers has L + 1 entries, the last of them after the final norm: entry i < L
    is ``blocks.i.hook_resid_pre``, entry L is Norm_f of the last ``hook_resid_post``.

    Row sums of a query that sees nothing are 0 here; transformers returns a uniform row there.

    References
    ----------
    GPT-2: Radford et al. 2019. Llama: 2302.13971. Mistral: 2310.06825. Qwen2: 2407.10671. Qwen3: 2505.09388.
    GPT-NeoX: 2204.06745. The order of operations is that of transformers 5.23, in whose vectors it is tested.
    """
    config, weights = model
    points = HookPoints(config, hooks, names)
    ids = checked_ids("ids", ids, config)
    past = _past_length(cache, config)
    positions = _checked_positions(positions, ids.shape, past, config)
    visible = _checked_mask(key_mask, ids.shape, past)
    angles = angles_at(positions, config)
    for intervention in interventions:
        intervention.begin(config.n_layers)

    # eq: embed
    x = points("hook_embed", np.asanyarray(weights.W_E)[ids])  # (B, T, d)
    if config.positions == "learned":
        at = np.broadcast_to(np.asanyarray(weights.W_pos)[positions], x.shape, subok=True)
        x = x + points("hook_pos_embed", at)
    kv_cache = []
    for layer, block in enumerate(weights.blocks):
        seen = visible & _within(config.window[layer], ids.shape[1], past)  # (B or 1, T, S)
        setting = LayerSetting(config, layer, seen, angles, interventions)
        before = None if cache is None else cache[layer]
        x, pair = block_output(x, block, before, setting, BlockPoints(points, layer))
        kv_cache.append(pair)
    # eq: logits
    normed = hooked_norm(x, weights.lnf_w, weights.lnf_b, config, points, "ln_final")
    logits = normed @ weights.W_U  # (B, T, V)
    logits = points("logits", logits if weights.b_U is None else logits + weights.b_U)
    return ForwardResult(logits, points.activations, tuple(kv_cache))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities over the last axis: logits less their log-sum-exp."""
    return np.asanyarray(logits - log_sum_exp(logits, keepdims=True))


def checked_ids(name: str, ids: Any, config: TransformerConfig) -> np.ndarray:
    """Return ids (B, T) if they are integers within the vocabulary."""
    ids = as_integer(name, ids, ndim=2)
    outside = ids[(ids < 0) | (ids >= config.vocab_size)]
    require(outside.size == 0, f"{name}: token id {outside[:1].sum()} outside vocabulary of {config.vocab_size}")
    return np.asarray(ids)


def _past_length(cache: Cache | None, config: TransformerConfig) -> int:
    if cache is None or not config.n_layers:
        return 0
    require(len(cache) == config.n_layers, f"cache has {len(cache)} layers, expected {config.n_layers}")
    lengths = {array.shape[2] for pair in cache for array in pair}
    require(len(lengths) == 1, f"cache holds different lengths {sorted(lengths)}, expected one")
    return int(lengths.pop())


def _checked_positions(positions: Any, shape: tuple[int, int], past: int, config: TransformerConfig) -> np.ndarray:
    """Return (B or 1, T) positions."""
    t = shape[1]
    given = positions is not None
    positions = as_integer("positions", positions) if given else past + np.arange(t)
    positions = positions[None] if positions.ndim == 1 else positions
    allowed = ((1, t), shape)
    require(positions.shape in allowed, f"positions has shape {positions.shape}, expected {shape} or {(t,)}")
    require(positions.min(initial=0) >= 0, f"positions={positions.min(initial=0)} must not be negative")
    if config.positions == "learned":
        longest = positions.max(initial=-1) + 1
        require(longest <= config.n_ctx, f"sequence of {longest} exceeds {config.n_ctx} learned positions")
    return np.asarray(positions)


def _checked_mask(key_mask: Any, shape: tuple[int, int], past: int) -> np.ndarray:
    """Return who may see whom by order and padding: (B or 1, T, S)."""
    causal = causal_mask(shape[1], past + shape[1], offset=past)[None]
    if key_mask is None:
        return causal
    key_mask = as_bool("key_mask", key_mask)
    require_shape("key_mask", key_mask, (shape[0], past + shape[1]))
    return np.asarray(causal & key_mask[:, None])


def _within(window: int | None, t: int, past: int) -> np.ndarray:
    """Return the sliding window of a layer: the last ``window`` keys, the query's own included."""
    return window_mask(t, past + t, None if window is None else window - 1, None, offset=past)[None]


def angles_at(positions: np.ndarray, config: TransformerConfig) -> np.ndarray | None:
    """Return the angles (B or 1, T, r/2) at positions (B or 1, T); None where positions are learned."""
    if config.rope is None:
        return None
    freqs, _ = rope_frequencies(config.rope.dim, theta=config.rope.theta, scaling=dict(config.rope.scaling) or None)
    return rope_angles(positions, freqs)
