"""The FIT models once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import special

from refattn.layers.fit_blocks import KeysValues
from refattn.layers.fit_decode import FITCache, StageCache

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["autoregressive", "cross", "denoiser", "encoder", "extend", "mask", "shift", "standardise", "step"]


def standardise(x: Any) -> Any:
    """Bring rows to mean 0 and deviation 1."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def scale(width: int, size: int) -> float:
    """Return one over the root of the head width."""
    del width
    return float(size**-0.5)


def weigh(s: Any, allowed: Any) -> Any:
    """Hide before the softmax."""
    s = np.where(allowed, s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x: Any) -> Any:
    """Weigh each number by the normal distribution."""
    return x * special.ndtr(x)


def add(stream: Any, found: Any) -> Any:
    """Add to the stream."""
    return stream + found


def source(e: Any, normalised: Any) -> Any:
    """Read the normalised source."""
    del e
    return normalised


def start(E: Any, batch: int) -> Any:
    """Begin every sequence with the same latents."""
    return np.broadcast_to(E, (batch, *E.shape))


def join(extra: Any, tokens: Any) -> Any:
    """Put extra tokens first."""
    return np.concatenate([extra, tokens], axis=2)


def seen(x: Any) -> Any:
    """Let latents read their own group."""
    return x


def inside(n: int, decoder: bool) -> Any:
    """Say which tokens of a group see which."""
    return np.tri(n, dtype=bool) if decoder else np.ones((n, n), dtype=bool)


def among(t: int, m: int, causal: bool) -> Any:
    """Say which latents see which."""
    group = np.repeat(np.arange(t), m)
    return (group <= group[:, None]) | (not causal)


def ordered(line: Any, look: Callable[[Any], Any], mix: Callable[[Any], Any]) -> Any:
    """Look at the conditions before mixing."""
    return mix(look(line))


def handed(before: Any, after: Any) -> Any:
    """Write what GLOBAL left."""
    del before
    return after


def shifted(latents: Any) -> Any:
    """Hand every group the latents of the one before, the first one zeros."""
    return np.concatenate([0.0 * latents[:, :1], latents[:, :-1]], axis=1)


def carried(latents: Any, moved: Any) -> Any:
    """Go on with the latents in their places."""
    del moved
    return latents


def written(x: Any, new: Any) -> Any:
    """Write to every group."""
    del x
    return new


def embed(table: Any, ids: Any) -> Any:
    """Look rows up."""
    return table[ids]


def finish(latents: Any, normalised: Any) -> Any:
    """Normalise the latents at the end."""
    del latents
    return normalised


def code(time: Any, width: int) -> Any:
    """Return sines, then cosines."""
    j = np.arange(width)
    angle = 1000.0 * time[:, None] * 10000.0 ** (-2.0 * (j // 2) / width)
    return np.concatenate([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=-1)


def level(codes: Any) -> Any:
    """Bring codes to mean 0 and deviation 1."""
    return (codes - codes.mean(-1, keepdims=True)) / codes.std(-1, keepdims=True)


def token(hidden: Any) -> Any:
    """Leave the time token as it is."""
    return hidden


def tokens(time: Any, cond: Any) -> Any:
    """Put the time before the conditions."""
    return np.concatenate([time[:, None], cond], axis=1)


def before(latents_prev: Any, zeros: Any) -> Any:
    """Take zeros where there are no latents of the step before."""
    return zeros if latents_prev is None else latents_prev


def recalled(mlp: Callable[[Any], Any], latents_prev: Any) -> Any:
    """Run the whole MLP layer on the latents of the step before."""
    return mlp(latents_prev)


def returned(latents: Any) -> Any:
    """Return the latents as they are."""
    return latents


def place(j: int, u: int, n: int) -> int:
    """Say which row of the positions a token of the open group takes."""
    del u, n
    return j


def cleared(kept: Any) -> Any:
    """Forget the tokens of a complete group."""
    return kept[..., :0, :]


def row(u: int) -> int:
    """Say which learned latents the group begins with."""
    return u


def stored(before_global: Any, after_global: Any) -> Any:
    """Keep for WRITE what GLOBAL left."""
    del before_global
    return after_global


class Steps(NamedTuple):
    """The steps that can be exchanged."""

    standardise: Callable[..., Any] = standardise
    scale: Callable[..., Any] = scale
    weigh: Callable[..., Any] = weigh
    gelu: Callable[..., Any] = gelu
    add: Callable[..., Any] = add
    source: Callable[..., Any] = source
    start: Callable[..., Any] = start
    join: Callable[..., Any] = join
    seen: Callable[..., Any] = seen
    inside: Callable[..., Any] = inside
    among: Callable[..., Any] = among
    ordered: Callable[..., Any] = ordered
    handed: Callable[..., Any] = handed
    shifted: Callable[..., Any] = shifted
    carried: Callable[..., Any] = carried
    written: Callable[..., Any] = written
    embed: Callable[..., Any] = embed
    finish: Callable[..., Any] = finish
    code: Callable[..., Any] = code
    level: Callable[..., Any] = level
    token: Callable[..., Any] = token
    tokens: Callable[..., Any] = tokens
    before: Callable[..., Any] = before
    recalled: Callable[..., Any] = recalled
    returned: Callable[..., Any] = returned
    place: Callable[..., Any] = place
    cleared: Callable[..., Any] = cleared
    row: Callable[..., Any] = row
    stored: Callable[..., Any] = stored


def _norm(steps: Steps, x: Any, w: Any) -> Any:
    return steps.standardise(x) * w.gamma + w.beta


def _heads(x: Any, w: Any, b: Any) -> Any:
    return np.stack([x @ w[:, h] + b[h] for h in range(w.shape[1])], axis=-3)


def _find(steps: Steps, q: Any, memory: KeysValues, w: Any, allowed: Any = True) -> Any:
    s = q @ np.swapaxes(memory.k, -1, -2) * steps.scale(w.w_q.shape[0], w.w_q.shape[2])
    o = steps.weigh(s, allowed) @ memory.v
    return sum(o[..., h, :, :] @ w.w_o[h] for h in range(w.w_o.shape[0])) + w.b_o


def _keys(x: Any, w: Any) -> KeysValues:
    return KeysValues(_heads(x, w.w_k, w.b_k), _heads(x, w.w_v, w.b_v))


def _mlp(steps: Steps, x: Any, w: Any) -> Any:
    return x + steps.gelu(_norm(steps, x, w.norm) @ w.w_1 + w.b_1) @ w.w_2 + w.b_2


def _layer(steps: Steps, x: Any, w: Any, allowed: Any) -> Any:
    if w.attention is not None:
        found = _norm(steps, x, w.norm)
        q = _heads(found, w.attention.w_q, w.attention.b_q)
        x = x + _find(steps, q, _keys(found, w.attention), w.attention, allowed)
    return _mlp(steps, x, w.mlp)


def _cross(steps: Steps, a: Any, e: Any, w: Any) -> Any:
    e = e if w.source_norm is None else steps.source(e, _norm(steps, e, w.source_norm))
    q = _heads(_norm(steps, a, w.norm), w.attention.w_q, w.attention.b_q)
    a = steps.add(a, _find(steps, q, _keys(e, w.attention), w.attention))
    return a if w.mlp is None else _mlp(steps, a, w.mlp)


def _stem(steps: Steps, x: Any, w: Any) -> Any:
    return _norm(steps, x @ w.w + w.b, w.norm)


def _run(
    steps: Steps,
    x: Any,
    latents: Any,
    stages: Any,
    *,
    causal: bool,
    decoder: bool = False,
    conditions: Any = None,
) -> tuple[Any, Any]:
    B, t, m, dl = latents.shape
    local, wide = steps.inside(x.shape[2], decoder), steps.among(t, m, causal)
    for stage in stages:
        for w in stage.local_layers or ():
            x = _layer(steps, x, w, local)
        if not stage.global_layers:
            continue
        latents = read = _cross(steps, latents, steps.seen(x), stage.read)

        def look(line: Any, stage: Any = stage) -> Any:
            return line if conditions is None else _cross(steps, line, conditions, stage.condition)

        def mix(line: Any, stage: Any = stage) -> Any:
            for w in stage.global_layers:
                line = _layer(steps, line, w, wide)
            return line

        latents = steps.ordered(latents.reshape(B, t * m, dl), look, mix).reshape(B, t, m, dl)
        if stage.write is not None:
            news = steps.handed(read, latents)
            moved = steps.shifted(news) if decoder else news
            x = steps.written(x, _cross(steps, x, moved, stage.write))
            latents = steps.carried(latents, moved)
    return x, latents


def encoder(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fit_encode` with these steps exchanged."""
    steps = Steps(**changes)

    def fit_encode(x: Any, weights: Any, *, extra: Any = None, mask: str = "none") -> Any:
        found = _stem(steps, x, weights.stem) + weights.x_positions
        if extra is not None:
            found = steps.join(_stem(steps, extra, weights.extra_stem), found)
        latents = steps.start(weights.latents, len(x))
        found, latents = _run(steps, found, latents, weights.stages, causal=mask == "causal")
        return _norm(steps, found, weights.x_norm), steps.finish(latents, _norm(steps, latents, weights.latent_norm))

    return fit_encode


def _logits(steps: Steps, x: Any, weights: Any) -> Any:
    rows = weights.embedding if weights.out_embedding is None else weights.out_embedding
    logits = _norm(steps, x, weights.x_norm) @ rows.T
    return logits if weights.out_bias is None else logits + weights.out_bias


def autoregressive(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fit_autoregressive` with these steps exchanged."""
    steps = Steps(**changes)

    def fit_autoregressive(ids: Any, weights: Any) -> Any:
        x = steps.embed(weights.embedding, ids) + weights.x_positions
        x, _ = _run(steps, x, steps.start(weights.latents, len(ids)), weights.stages, causal=True, decoder=True)
        return _logits(steps, x, weights)

    return fit_autoregressive


def _append(steps: Steps, x: Any, layers: Any, kept: Any) -> tuple[Any, tuple[KeysValues, ...]]:
    longer = []
    for w, memory in zip(layers or (), kept or (), strict=True):
        found = _norm(steps, x, w.norm)
        new = _keys(found, w.attention)
        both = KeysValues(*(np.concatenate(pair, axis=-2) for pair in zip(memory, new, strict=True)))
        x = x + _find(steps, _heads(found, w.attention.w_q, w.attention.b_q), both, w.attention)
        x = _mlp(steps, x, w.mlp)
        longer.append(both)
    return x, tuple(longer)


def step(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fit_ar_step` with these steps exchanged."""
    steps = Steps(**changes)

    def fit_ar_step(ids: Any, cache: FITCache, weights: Any) -> Any:
        (n, dx), m = weights.x_positions.shape, weights.latents.shape[1]
        memories = [memory for kept in cache.stages for memory in kept.memory or ()]
        u = memories[0].k.shape[2] // m if memories else 0
        j = cache.stages[0].tokens.shape[1]
        x = (steps.embed(weights.embedding, ids) + weights.x_positions[steps.place(j, u, n)]).reshape(-1, 1, dx)
        kept = []
        for stage, old in zip(weights.stages, cache.stages, strict=True):
            x, local = _append(steps, x, stage.local_layers, old.local)
            kept.append(StageCache(local, np.concatenate([old.tokens, x], axis=1), old.latents, old.memory or ()))
            x = x if stage.write is None else _cross(steps, x, old.latents, stage.write)
        kept = _closed(steps, kept, weights, u) if j + 1 == n else kept
        return _logits(steps, x[:, 0], weights), FITCache(tuple(kept))

    return fit_ar_step


def extend(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fit_ar_extend` with these steps exchanged."""
    one = step(**changes)

    def fit_ar_extend(ids: Any, cache: FITCache, weights: Any) -> Any:
        rows = []
        for token in ids.T:
            logits, cache = one(token, cache, weights)
            rows.append(logits)
        return np.stack(rows, axis=1) if rows else np.zeros((*ids.shape, len(weights.embedding))), cache

    return fit_ar_extend


def _closed(steps: Steps, kept: list[StageCache], weights: Any, u: int) -> list[StageCache]:
    latents = steps.start(weights.latents[steps.row(u)], len(kept[0].tokens))
    fresh = []
    for stage, old in zip(weights.stages, kept, strict=True):
        read, memory = latents, old.memory
        if stage.global_layers:
            read = _cross(steps, latents, old.tokens, stage.read)
            latents, memory = _append(steps, read, stage.global_layers, old.memory)
        local = tuple(KeysValues(steps.cleared(k), steps.cleared(v)) for k, v in old.local)
        fresh.append(StageCache(local, old.tokens[:, :0], steps.stored(read, latents), memory))
    return fresh


def denoiser(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fit_denoise` with these steps exchanged."""
    steps = Steps(**changes)

    def fit_denoise(x: Any, time: Any, cond: Any, weights: Any, *, latents_prev: Any = None, mask: str = "none") -> Any:
        w = weights.time
        hidden = steps.level(steps.code(time, len(w.w_0))) @ w.w_0 + w.b_0
        moment = steps.token((hidden * special.expit(hidden)) @ w.w_1 + w.b_1)
        cond = cond if weights.condition is None else cond @ weights.condition.w + weights.condition.b
        conditions = steps.tokens(moment, cond[:, None] if cond.ndim == 2 else cond)
        latents = steps.start(weights.latents, len(x))
        if weights.previous is not None:
            old = steps.before(latents_prev, np.zeros(latents.shape))
            if old is not None:
                old = steps.recalled(lambda prev: _mlp(steps, prev, weights.previous.mlp), old)
                latents = latents + _norm(steps, old, weights.previous.norm)
        found = _stem(steps, x, weights.stem) + weights.x_positions
        found, latents = _run(steps, found, latents, weights.stages, causal=mask == "causal", conditions=conditions)
        return _norm(steps, found, weights.x_norm) @ weights.output.w + weights.output.b, steps.returned(latents)

    return fit_denoise


def cross(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fit_cross_attention` with these steps exchanged."""
    steps = Steps(**changes)
    return lambda a, e, weights: _cross(steps, a, e, weights)


def mask(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `group_causal_mask` with these steps exchanged."""
    steps = Steps(**changes)
    return lambda num_groups, latents_per_group: steps.among(num_groups, latents_per_group, causal=True)


def shift(moved: Callable[..., Any]) -> Callable[..., Any]:
    """Return `shift_right` with another rule."""

    def shift_right(ids: Any, *, start: int = 0) -> Any:
        return moved(ids, start)

    return shift_right
