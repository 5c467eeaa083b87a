"""FIT in the array-API standard: encoder, autoregressive decoder with its steps, denoiser.

Derived from the equations by another route than the reference. Norms are folded into the maps that follow them; a key
bias adds the same number to every score of a row and is dropped; a value bias passes every average unchanged and joins
the output bias; rows are divided by their sums after averaging. Latents that reach no output are never computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.backends.pointwise import gelu
from refattn.layers.fit_blocks import KeysValues
from refattn.layers.fit_decode import FITCache, StageCache

__all__ = [
    "fit_ar_extend",
    "fit_ar_init_cache",
    "fit_ar_step",
    "fit_autoregressive",
    "fit_cross_attention",
    "fit_denoise",
    "fit_encode",
    "group_causal_mask",
    "shift_right",
    "transformer_layer",
]

EPS = 1e-6


def fit_encode(x: Any, weights: Any, *, extra: Any = None, mask: str = "none") -> tuple[Any, Any]:
    """Encode groups of tokens; returns tokens and latents."""
    xp = array_namespace(x)
    tokens = _stem(x, weights.stem) + weights.x_positions
    if extra is not None:
        tokens = xp.concat([_stem(extra, weights.extra_stem), tokens], axis=2)
    latents = _spread(weights.latents, x.shape[0])
    tokens, latents = _rounds(tokens, latents, weights.stages, causal=mask == "causal")
    return _norm(tokens, weights.x_norm), _norm(latents, weights.latent_norm)


def fit_autoregressive(ids: Any, weights: Any) -> Any:
    """Return the logits of every next token."""
    (t, n), dx = ids.shape[1:], weights.embedding.shape[1]
    *through, last = weights.stages
    last = last._replace(global_layers=())  # what its latents would learn reaches no logit
    x = _rows(weights.embedding, ids, (ids.shape[0], t, n, dx)) + weights.x_positions
    latents = _spread(weights.latents, ids.shape[0])
    x, _ = _rounds(x, latents, (*through, last), causal=True, decoder=True)
    return _logits(x, weights)


def fit_denoise(
    x: Any, time: Any, cond: Any, weights: Any, *, latents_prev: Any = None, mask: str = "none"
) -> tuple[Any, Any]:
    """Denoise groups of tokens; returns the prediction and the latents."""
    xp = array_namespace(x)
    cond = cond if weights.condition is None else cond @ weights.condition.w + weights.condition.b
    cond = cond[:, None, :] if cond.ndim == 2 else cond
    conditions = xp.concat([_time_token(time, weights.time)[:, None, :], cond], axis=1)
    tokens = _stem(x, weights.stem) + weights.x_positions
    latents = _spread(weights.latents, x.shape[0])
    if weights.previous is not None:
        before = xp.zeros_like(latents) if latents_prev is None else latents_prev
        latents = latents + _norm(_mlp(before, weights.previous.mlp), weights.previous.norm)
    tokens, latents = _rounds(tokens, latents, weights.stages, causal=mask == "causal", conditions=conditions)
    return _norm(tokens, weights.x_norm) @ weights.output.w + weights.output.b, latents


def fit_ar_init_cache(batch: int, weights: Any) -> FITCache:
    """Return the cache before the first token."""
    xp = array_namespace(weights.embedding)
    like = {"dtype": weights.embedding.dtype, "device": device(weights.embedding)}

    def none(layers: Any) -> tuple[KeysValues, ...]:
        shapes = [(batch, w.attention.w_k.shape[1], 0, w.attention.w_k.shape[2]) for w in layers or ()]
        return tuple(KeysValues(xp.zeros(shape, **like), xp.zeros(shape, **like)) for shape in shapes)

    tokens = xp.zeros((batch, 0, weights.embedding.shape[1]), **like)
    latents = xp.zeros((batch, *weights.latents.shape[1:]), **like)
    return FITCache(
        tuple(StageCache(none(s.local_layers), tokens, latents, none(s.global_layers)) for s in weights.stages)
    )


def fit_ar_step(ids: Any, cache: Any, weights: Any) -> tuple[Any, FITCache]:
    """Take one token further; which step is due follows from the shapes of the cache."""
    xp = array_namespace(weights.embedding)
    j = cache.stages[0].tokens.shape[1]
    x = _rows(weights.embedding, ids, (ids.shape[0], 1, weights.embedding.shape[1])) + weights.x_positions[j, :]
    kept = []
    for stage, past in zip(weights.stages, cache.stages, strict=True):
        x, local = _append(x, stage.local_layers or (), past.local or ())
        kept.append(StageCache(local, xp.concat([past.tokens, x], axis=1), past.latents, past.memory or ()))
        if stage.write is not None:
            x = fit_cross_attention(x, past.latents, stage.write)
    if j + 1 == weights.x_positions.shape[0]:
        kept = _turn(kept, weights)
    return _logits(x[:, 0, :], weights), FITCache(tuple(kept))


def fit_ar_extend(ids: Any, cache: Any, weights: Any) -> tuple[Any, FITCache]:
    """Take several tokens, one after the other."""
    xp = array_namespace(weights.embedding)
    shape = (ids.shape[0], 0, weights.embedding.shape[0])
    rows = [xp.zeros(shape, dtype=weights.embedding.dtype, device=device(weights.embedding))]
    for p in range(ids.shape[1]):
        logits, cache = fit_ar_step(ids[:, p], cache, weights)
        rows.append(logits[:, None, :])
    return xp.concat(rows, axis=1), cache


def transformer_layer(x: Any, weights: Any, mask: Any = None) -> Any:
    """Attend within a stream, then an MLP; both are added to it."""
    if weights.attention is not None:
        source = _standard(x)
        q, (k, v) = _project(source, weights.attention, weights.norm)
        x = x + _average(q, k, v, weights.attention, weights.norm, mask)
    return _mlp(x, weights.mlp)


def fit_cross_attention(a: Any, e: Any, weights: Any) -> Any:
    """Attend from one stream to another and add what was found."""
    w, norm = weights.attention, weights.source_norm
    source = e if norm is None else _standard(e)
    q = _heads(_standard(a), w.w_q, weights.norm, w.b_q)
    k, v = _heads(source, w.w_k, norm, None), _heads(source, w.w_v, norm, None)
    a = a + _average(q, k, v, w, norm)
    return a if weights.mlp is None else _mlp(a, weights.mlp)


def group_causal_mask(num_groups: int, latents_per_group: int) -> Any:
    """Return which latents see which, as a staircase of blocks."""
    return np.kron(np.tri(num_groups, dtype=bool), np.ones((latents_per_group, latents_per_group), dtype=bool))


def shift_right(ids: Any, *, start: int = 0) -> Any:
    """Move every token one place on, across groups."""
    xp = array_namespace(ids)
    tails = ids[:, :, -1:]
    first = xp.full_like(tails[:, :1, :], start)
    return xp.concat([xp.concat([first, tails[:, :-1, :]], axis=1), ids[:, :, :-1]], axis=2)


def _rounds(
    x: Any, latents: Any, stages: Any, *, causal: bool, decoder: bool = False, conditions: Any = None
) -> tuple[Any, Any]:
    """Run the stages; a decoder is causal inside groups too and writes to the next group."""
    xp = array_namespace(x)
    B, t, m, dl = latents.shape
    inside = _mask(x, np.tri(x.shape[2], dtype=bool)) if decoder else None
    across = _mask(x, group_causal_mask(t, m)) if causal else None
    for stage in stages:
        for layer in stage.local_layers or ():
            x = transformer_layer(x, layer, inside)
        if not stage.global_layers:
            continue
        line = xp.reshape(fit_cross_attention(latents, x, stage.read), (B, t * m, dl))
        if conditions is not None:
            line = fit_cross_attention(line, conditions, stage.condition)
        for layer in stage.global_layers:
            line = transformer_layer(line, layer, across)
        latents = xp.reshape(line, (B, t, m, dl))
        if stage.write is not None:
            silent = xp.zeros_like(latents[:, :1, :, :])
            source = xp.concat([silent, latents[:, :-1, :, :]], axis=1) if decoder else latents
            x = fit_cross_attention(x, source, stage.write)
    return x, latents


def _turn(kept: Any, weights: Any) -> list[StageCache]:
    """Close a group: its latents read it and join the memory; the next group begins empty."""
    xp = array_namespace(weights.latents)
    memories = [memory for past in kept for memory in past.memory]
    u = memories[0].k.shape[2] // weights.latents.shape[1] if memories else 0
    latents = _spread(weights.latents[u, :, :], kept[0].tokens.shape[0])
    fresh = []
    for stage, past in zip(weights.stages, kept, strict=True):
        memory = past.memory
        if stage.global_layers:
            latents = fit_cross_attention(latents, past.tokens, stage.read)
            latents, memory = _append(latents, stage.global_layers, memory)
        local = tuple(KeysValues(*(xp.zeros_like(a[:, :, :0, :]) for a in pair)) for pair in past.local)
        fresh.append(StageCache(local, past.tokens[:, :0, :], latents, memory))
    return fresh


def _append(x: Any, layers: Any, memories: Any) -> tuple[Any, tuple[KeysValues, ...]]:
    """Run layers on rows that come after cached ones. A cache holds keys and values as they are defined."""
    xp = array_namespace(x)
    longer = []
    for layer, memory in zip(layers, memories, strict=True):
        w, norm = layer.attention, layer.norm
        source = _standard(x)
        k = xp.concat([memory[0], _heads(source, w.w_k, norm, w.b_k)], axis=2)
        v = xp.concat([memory[1], _heads(source, w.w_v, norm, w.b_v)], axis=2)
        found = _softmax_average(_heads(source, w.w_q, norm, w.b_q), k, v, None)
        h, size, d = w.w_o.shape
        x = _mlp(x + _merged(found) @ xp.reshape(w.w_o, (h * size, d)) + w.b_o, layer.mlp)
        longer.append(KeysValues(k, v))
    return x, tuple(longer)


def _project(source: Any, w: Any, norm: Any) -> tuple[Any, tuple[Any, Any]]:
    """Return queries, and keys and values without their biases, from one product."""
    xp = array_namespace(source)
    d, h, size = w.w_q.shape
    joined = xp.reshape(xp.stack([w.w_q, w.w_k, w.w_v], axis=1), (d, 3 * h, size))
    silent = xp.zeros_like(w.b_q)
    shift = xp.tensordot(norm.beta, w.w_q, axes=1) + w.b_q
    scaled = joined * norm.gamma[:, None, None]
    everything = _split(source @ xp.reshape(scaled, (d, 3 * h * size)), 3 * h, xp.concat([shift, silent, silent]))
    return everything[..., :h, :, :], (everything[..., h : 2 * h, :, :], everything[..., 2 * h :, :, :])


def _average(q: Any, k: Any, v: Any, w: Any, norm: Any, mask: Any = None) -> Any:
    """Average values and project; the constant part of every value joins the output bias."""
    xp = array_namespace(q)
    h, size, d = w.w_o.shape
    w_o = xp.reshape(w.w_o, (h * size, d))
    constant = w.b_v if norm is None else w.b_v + xp.tensordot(norm.beta, w.w_v, axes=1)  # (h, κ)
    return _merged(_softmax_average(q, k, v, mask)) @ w_o + (xp.reshape(constant, (h * size,)) @ w_o + w.b_o)


def _softmax_average(q: Any, k: Any, v: Any, mask: Any) -> Any:
    xp = array_namespace(q)
    s = (q * q.shape[-1] ** -0.5) @ xp.matrix_transpose(k)
    if mask is not None:
        s = xp.where(mask, s, xp.asarray(-xp.inf, dtype=s.dtype, device=device(s)))
    e = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
    return (e @ v) / xp.sum(e, axis=-1, keepdims=True)


def _heads(x: Any, w: Any, norm: Any, b: Any) -> Any:
    """Project standardised rows, the norm's scale and shift folded in: (..., N, d) to (..., h, N, κ)."""
    xp = array_namespace(x)
    d, h, size = w.shape
    if norm is not None:
        b = b if b is None else b + xp.tensordot(norm.beta, w, axes=1)
        w = w * norm.gamma[:, None, None]
    return _split(x @ xp.reshape(w, (d, h * size)), h, b)


def _split(flat: Any, h: int, b: Any) -> Any:
    xp = array_namespace(flat)
    heads = xp.reshape(flat, (*flat.shape[:-1], h, flat.shape[-1] // h))
    heads = heads if b is None else heads + b
    axes = list(range(heads.ndim))
    return xp.permute_dims(heads, (*axes[:-3], axes[-2], axes[-3], axes[-1]))


def _merged(heads: Any) -> Any:
    xp = array_namespace(heads)
    axes = list(range(heads.ndim))
    rows = xp.permute_dims(heads, (*axes[:-3], axes[-2], axes[-3], axes[-1]))
    return xp.reshape(rows, (*rows.shape[:-2], rows.shape[-2] * rows.shape[-1]))


def _mlp(x: Any, w: Any) -> Any:
    hidden = _standard(x) @ (w.norm.gamma[:, None] * w.w_1)
    hidden += w.norm.beta @ w.w_1 + w.b_1
    return x + gelu(hidden) @ w.w_2 + w.b_2


def _stem(x: Any, w: Any) -> Any:
    return _norm(x @ w.w + w.b, w.norm)


def _norm(x: Any, norm: Any) -> Any:
    return _standard(x) * norm.gamma + norm.beta


def _standard(x: Any) -> Any:
    xp = array_namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.vecdot(centred, centred, axis=-1)[..., None] / x.shape[-1]
    return centred / xp.sqrt(variance + EPS)


def _time_token(time: Any, w: Any) -> Any:
    xp = array_namespace(time)
    width = w.w_0.shape[0]
    rates = 1000.0 * 10000.0 ** (-2.0 * (np.arange(width) // 2) / width)
    places = [list(range(start, width, 2)) for start in (0, 1)]
    sines, cosines = (time[:, None] * xp.asarray(rates[at], dtype=time.dtype, device=device(time)) for at in places)
    code = xp.concat([xp.sin(sines), xp.cos(cosines)], axis=-1)
    code = code - xp.mean(code, axis=-1, keepdims=True)
    code = code / xp.sqrt(xp.mean(code * code, axis=-1, keepdims=True))
    half = (code @ w.w_0 + w.b_0) / 2
    return (half + half * xp.tanh(half)) @ w.w_1 + w.b_1  # SiLU, without an exponential that may overflow


def _logits(x: Any, weights: Any) -> Any:
    xp = array_namespace(x)
    rows = weights.embedding if weights.out_embedding is None else weights.out_embedding
    logits = _norm(x, weights.x_norm) @ xp.matrix_transpose(rows)
    return logits if weights.out_bias is None else logits + weights.out_bias


def _rows(table: Any, ids: Any, shape: tuple[int, ...]) -> Any:
    xp = array_namespace(table)
    return xp.reshape(xp.take(table, xp.reshape(ids, (-1,)), axis=0), shape)


def _spread(latents: Any, batch: int) -> Any:
    xp = array_namespace(latents)
    return xp.broadcast_to(latents, (batch, *latents.shape))


def _mask(like: Any, mask: np.ndarray) -> Any:
    xp = array_namespace(like)
    return xp.asarray(mask, device=device(like))
