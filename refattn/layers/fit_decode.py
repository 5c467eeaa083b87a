"""The autoregressive FIT one token at a time, with a cache; equal to the whole sequence at once [our definition].

The released code leaves sampling as a task to do. The schedule follows from the definition of `fit_autoregressive`:
WRITE of stage i needs the latents of the *previous* group after GLOBAL of stage i, and those are known once that group
is complete. A token costs its own row of every local layer; the last of a group also pays for the group's latents.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.fit_autoregressive import FITARWeights, as_model, output_logits, require_ids
from refattn.layers.fit_blocks import (
    KeysValues,
    LayerWeights,
    average,
    cross_layer,
    keys_and_values,
    mlp_layer,
    normalised,
    queries,
)
from refattn.layers.fit_stages import StageWeights, cast, spread
from refattn.primitives.arguments import as_integer, require

__all__ = ["FITCache", "StageCache", "fit_ar_extend", "fit_ar_init_cache", "fit_ar_step"]


class StageCache(NamedTuple):
    """What one stage remembers.

    Attributes
    ----------
    local : tuple of KeysValues
        Of each local layer, for the j tokens of the open group: (B, h, j, κ).
    tokens : ndarray, shape (B, j, dx)
        Tokens of the open group after LOCAL, which READ will want when the group is complete.
    latents : ndarray, shape (B, m, dl)
        Latents of the group before the open one, after GLOBAL; zeros in the first group.
    memory : tuple of KeysValues
        Of each global layer, for the latents of all complete groups: (B, h, u m, κ).
    """

    local: tuple[KeysValues, ...]
    tokens: np.ndarray
    latents: np.ndarray
    memory: tuple[KeysValues, ...]


class FITCache(NamedTuple):
    """What decoding remembers: of the open group all tokens, of complete groups only latents.

    Attributes
    ----------
    stages : tuple of StageCache
        One for each stage.
    """

    stages: tuple[StageCache, ...]


def fit_ar_init_cache(batch: int, weights: FITARWeights) -> FITCache:
    """Return the cache before the first token.

    Parameters
    ----------
    batch : int
        The number of sequences B.
    weights : FITARWeights
        The model.

    Returns
    -------
    FITCache
        Empty; the latents before the first group are zeros.

    Raises
    ------
    ValueError
        If ``batch`` is negative, and as `refattn.layers.fit_autoregressive.as_model`.
    """
    require(batch >= 0, f"batch={batch!r} must be >= 0")
    weights = as_model(weights)
    m, dl = weights.latents.shape[1:]
    nothing = np.zeros((batch, 0, weights.embedding.shape[1]), weights.embedding.dtype)  # (B, 0, dx)
    zeros = np.zeros((batch, m, dl), weights.embedding.dtype)  # (B, m, dl)
    return FITCache(
        tuple(
            StageCache(
                tuple(_empty(zeros, layer) for layer in stage.local_layers),
                nothing,
                zeros,
                tuple(_empty(zeros, layer) for layer in stage.global_layers),
            )
            for stage in weights.stages
        )
    )


def fit_ar_step(ids: Any, cache: FITCache, weights: FITARWeights) -> tuple[np.ndarray, FITCache]:
    """Take one token further: the logits of the next, and the cache for it.

    1. Embed the token and add its position inside its group.
    2. In each stage: LOCAL against the tokens before it in the group, then WRITE from the previous group's latents.
    3. If the group is complete: READ and GLOBAL for its latents, stage after stage, then open the next group.

    Parameters
    ----------
    ids : array_like of int, shape (B,)
        The token that goes in: 0 at first, then what was chosen.
    cache : FITCache
        From `fit_ar_init_cache` or the step before.
    weights : FITARWeights
        The model.

    Returns
    -------
    logits : ndarray, shape (B, V)
        Those of `fit_autoregressive` at this place.
    cache : FITCache
        For the next step.

    Raises
    ------
    ValueError
        If an id lies outside 0 … V − 1, the cache does not fit, or all t groups are complete.

    Notes
    -----
    A model without global layers does not know how many groups have passed, and can go on for ever.
    """
    weights = as_model(weights)
    ids = require_ids(ids, (), len(weights.embedding))
    cache = _checked(cache, len(ids), weights)
    j, n = cache.stages[0].tokens.shape[1], len(weights.x_positions)
    x = (weights.embedding[ids] + weights.x_positions[j])[:, None]  # (B, 1, dx): 1
    kept = []
    for stage, memory in zip(weights.stages, cache.stages, strict=True):  # 2
        x, local = _append(x, stage.local_layers, memory.local)
        kept.append(memory._replace(local=local, tokens=np.concatenate([memory.tokens, x], axis=1)))
        if stage.write is not None:
            x = cross_layer(x, memory.latents, stage.write)  # (B, 1, dx)
    cache = FITCache(tuple(kept))
    return output_logits(x[:, 0], weights), cache if j + 1 < n else _next_group(cache, weights)  # 3


def fit_ar_extend(ids: Any, cache: FITCache, weights: FITARWeights) -> tuple[np.ndarray, FITCache]:
    """Take several tokens, such as a prompt, one after the other; they may cross the borders of groups.

    Parameters
    ----------
    ids : array_like of int, shape (B, T)
        The tokens that go in.
    cache, weights
        As in `fit_ar_step`.

    Returns
    -------
    logits : ndarray, shape (B, T, V)
        One row a token.
    cache : FITCache
        After the last one.

    Raises
    ------
    ValueError
        As `fit_ar_step`.
    """
    ids = as_integer("ids", ids, ndim=2)
    logits = np.zeros((len(ids), 0, len(weights.embedding)), np.asarray(weights.embedding).dtype)
    for token in ids.T:
        row, cache = fit_ar_step(token, cache, weights)
        logits = np.concatenate([logits, row[:, None]], axis=1)  # (B, T, V)
    return logits, cache


def _next_group(cache: FITCache, weights: FITARWeights) -> FITCache:
    """Let the latents of the complete group read it and meet the earlier ones; open the next group."""
    u = _complete_groups(cache, weights)
    latents = spread(weights.latents[u], len(cache.stages[0].tokens))  # (B, m, dl)
    kept = []
    for stage, memory in zip(weights.stages, cache.stages, strict=True):
        grown = memory.memory
        if stage.read is not None and stage.global_layers:
            latents = cross_layer(latents, memory.tokens, stage.read)
            latents, grown = _append(latents, stage.global_layers, memory.memory)  # (B, m, dl)
        local = tuple(KeysValues(k[..., :0, :], v[..., :0, :]) for k, v in memory.local)
        kept.append(StageCache(local, memory.tokens[:, :0], latents, grown))
    return FITCache(tuple(kept))


def _append(
    x: np.ndarray, layers: tuple[LayerWeights, ...], memories: tuple[KeysValues, ...]
) -> tuple[np.ndarray, tuple[KeysValues, ...]]:
    """Run layers on new rows, which see all cached rows and each other; the longer caches."""
    longer = []
    for layer, memory in zip(layers, memories, strict=True):
        found, w = normalised(x, layer.norm), layer.attention
        if w is None:
            raise ValueError("weights.stages holds a layer without attention: only the denoiser has those")
        new = keys_and_values(found, w)
        joined = KeysValues(*(np.concatenate(pair, axis=-2) for pair in zip(memory, new, strict=True)))
        x = mlp_layer(x + average(queries(found, w), joined, w), layer.mlp)
        longer.append(joined)
    return x, tuple(longer)


def _complete_groups(cache: FITCache, weights: FITARWeights) -> int:
    """Return u, how many groups the memory of the first global layer holds; 0 if there is no such layer."""
    memories = [memory for stage in cache.stages for memory in stage.memory]
    return memories[0].k.shape[-2] // weights.latents.shape[1] if memories else 0


def _empty(like: np.ndarray, layer: LayerWeights) -> KeysValues:
    """Return no keys and no values for a layer: (B, h, 0, κ)."""
    if layer.attention is None:
        raise ValueError("weights.stages holds a layer without attention: only the denoiser has those")
    _, h, k = layer.attention.w_k.shape
    nothing = np.zeros((len(like), h, 0, k), like.dtype)
    return KeysValues(nothing, nothing)


def _checked(cache: FITCache, batch: int, weights: FITARWeights) -> FITCache:
    """Return the cache in the dtype of the weights; refuse one of another model or batch, or one that is full."""
    require(
        len(cache.stages) == len(weights.stages),
        f"cache has {len(cache.stages)} stages, expected {len(weights.stages)}",
    )
    stages = tuple(s._replace(local=s.local or (), memory=s.memory or ()) for s in cache.stages)
    cache = cast(FITCache(stages), weights.embedding.dtype, "cache")
    for i, (stage, kept) in enumerate(zip(weights.stages, cache.stages, strict=True)):
        _require_fit(i, stage, kept, batch, weights)
    u, t = _complete_groups(cache, weights), len(weights.latents)
    require(u < t or not any(stage.memory for stage in cache.stages), f"cache is full: all {t} groups are complete")
    return cache


def _require_fit(i: int, stage: StageWeights, kept: StageCache, batch: int, weights: FITARWeights) -> None:
    """Refuse one stage of a cache that does not belong to the model or the batch."""
    (n, dx), (_, m, dl) = weights.x_positions.shape, weights.latents.shape
    layers = (len(stage.local_layers), len(stage.global_layers))
    require((len(kept.local), len(kept.memory)) == layers, f"cache.stages[{i}] must hold {layers} layers")
    j = kept.tokens.shape[1] if kept.tokens.ndim == 3 else -1
    fits = kept.tokens.shape == (batch, j, dx) and 0 <= j < n and kept.latents.shape == (batch, m, dl)
    require(
        fits,
        f"cache.stages[{i}] holds tokens {kept.tokens.shape} and latents {kept.latents.shape}, "
        f"expected ({batch}, j < {n}, {dx}) and {(batch, m, dl)}",
    )
