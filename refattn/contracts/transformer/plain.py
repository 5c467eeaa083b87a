"""The transformer once more, straightforward, head by head, each step exchangeable: what planted bugs are made of."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.activations import gelu, gelu_tanh, silu
from refattn.primitives.rotary import rope_frequencies
from refattn.transformer.config import parse_config
from refattn.transformer.transformer import TransformerOutput

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["running", "scoring", "stepping"]

ACTIVATIONS = {"gelu_new": gelu_tanh, "gelu": gelu, "silu": silu}


def root_mean_square(x: Any, w: Any, eps: float) -> Any:
    """Return the RMS norm."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * w


def standardised(x: Any, w: Any, b: Any, eps: float) -> Any:
    """Return the layer norm."""
    c = x - np.mean(x, axis=-1, keepdims=True)
    return c / np.sqrt(np.mean(c * c, axis=-1, keepdims=True) + eps) * w + b


def pairs(x: Any, r: int) -> tuple[Any, Any]:
    """Return the members of the pairs of channels that rotate."""
    return x[..., : r // 2], x[..., r // 2 : r]


def unpaired(a: Any, b: Any) -> Any:
    """Put pairs back where `pairs` took them."""
    return np.concatenate([a, b], axis=-1)


def rotary_width(config: Any) -> int:
    """Return how many channels rotate."""
    return int(config.rope.dim)


def frequencies(rope: Any, r: int) -> Any:
    """Return radians per position."""
    return rope_frequencies(r, theta=rope.theta, scaling=dict(rope.scaling) or None)[0]


def logits_of_prompt(parts: list[Any]) -> Any:
    """Return the logits of all calls."""
    return np.concatenate(parts, axis=1)


def first_position(past: int) -> int:
    """Return the position of the first new token."""
    return past


def normed_then_rotated(x: Any, norm: Callable[[Any], Any], rotate: Callable[[Any], Any]) -> Any:
    """Return queries or keys as they meet."""
    return rotate(norm(x))


def keys_met(x: Any, norm: Callable[[Any], Any], rotate: Callable[[Any], Any]) -> Any:
    """Return keys as they meet queries."""
    return rotate(norm(x))


def key_head(query_head: int, heads: int, groups: int) -> int:
    """Return which key head a query head uses."""
    return query_head // (heads // groups)


def scale(config: Any, layer: int) -> float:
    """Return what multiplies the scores."""
    return float(config.attn_scale[layer])


def visible(query: Any, key: Any, window: int | None) -> Any:
    """Return who sees whom, by place in the sequence."""
    near = key > query - (window if window is not None else 10**6)
    return (key <= query) & near


def kept(keys: Any) -> Any:
    """Return what goes into the cache."""
    return keys


def with_bias(written: Any, bias: Any) -> Any:
    """Return what attention writes."""
    return written + bias


def hidden_units(act: Any, gate: Any, up: Any) -> Any:
    """Return the hidden layer of a gated MLP."""
    return act(gate) * up


def activation(config: Any) -> Any:
    """Return the non-linearity."""
    return ACTIVATIONS[config.act]


def mlp_reads(x: Any, after_attention: Any, parallel: bool) -> Any:
    """Return what the MLP reads."""
    return x if parallel else after_attention


def read_out(x: Any, norm: Callable[[Any], Any], W_U: Any) -> Any:
    """Return the logits."""
    return norm(x) @ W_U


def placed(x: Any, W_pos: Any, positions: Any) -> Any:
    """Return embeddings that know their place."""
    return x + W_pos[positions]


STEPS = (
    root_mean_square,
    standardised,
    pairs,
    unpaired,
    rotary_width,
    frequencies,
    first_position,
    normed_then_rotated,
    keys_met,
    key_head,
    scale,
    visible,
    kept,
    with_bias,
    hidden_units,
    activation,
    mlp_reads,
    read_out,
    placed,
)


class Plain:
    """A transformer whose steps are attributes."""

    def __init__(self, **changes: Callable[..., Any]) -> None:
        for step in STEPS:
            setattr(self, step.__name__, changes.get(step.__name__, step))

    def norm(self, x: Any, w: Any, b: Any, config: Any) -> Any:
        """Return the norm of the family."""
        s: Any = self
        return s.root_mean_square(x, w, config.norm_eps) if b is None else s.standardised(x, w, b, config.norm_eps)

    def rotated(self, x: Any, positions: Any, config: Any) -> Any:
        """Return one head's queries or keys (B, T, e), turned by their positions."""
        if config.rope is None:
            return x
        s: Any = self
        r = s.rotary_width(config)
        angle = positions[..., None] * s.frequencies(config.rope, r)
        a, b = s.pairs(x, r)
        turned = s.unpaired(a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle))
        return np.concatenate([turned, x[..., r:]], axis=-1)

    def attention(self, h: Any, w: Any, config: Any, layer: int, positions: Any, key_mask: Any, cache: Any) -> Any:
        """Return what attention writes (B, T, d), head by head; add to the cache of the layer."""
        s: Any = self
        past = cache[layer][0][0].shape[1] if cache[layer] else 0

        def turn(y: Any) -> Any:
            return s.rotated(y, positions, config)

        def norm_by(weight: Any) -> Callable[[Any], Any]:
            return lambda y: y if weight is None else s.root_mean_square(y, weight, config.norm_eps)

        keys = [s.keys_met(h @ W + b, norm_by(w.k_norm), turn) for W, b in zip(w.W_K, w.b_K, strict=True)]
        values = [h @ W + b for W, b in zip(w.W_V, w.b_V, strict=True)]
        if cache[layer]:
            keys = [np.concatenate(pair, axis=1) for pair in zip(cache[layer][0], keys, strict=True)]
            values = [np.concatenate(pair, axis=1) for pair in zip(cache[layer][1], values, strict=True)]
        cache[layer] = ([s.kept(k) for k in keys], values)
        query, key = np.arange(h.shape[1])[:, None] + past, np.arange(keys[0].shape[1])
        seen = s.visible(query, key, config.window[layer])
        seen = seen if key_mask is None else seen & key_mask[:, None]
        written = np.zeros_like(h)
        for j in range(config.n_heads):
            g = s.key_head(j, config.n_heads, config.n_kv_heads)
            q = s.normed_then_rotated(h @ w.W_Q[j] + w.b_Q[j], norm_by(w.q_norm), turn)
            z = np.where(seen, s.scale(config, layer) * q @ keys[g].mT, -np.inf)
            e = np.exp(z - np.maximum(np.max(z, axis=-1, keepdims=True), -1e30))
            total = e.sum(axis=-1, keepdims=True)
            written = written + (e / np.where(total > 0, total, 1)) @ values[g] @ w.W_O[j]
        return s.with_bias(written, w.b_O)

    def mlp(self, h: Any, w: Any, config: Any) -> Any:
        """Return what the MLP writes."""
        s: Any = self
        act, inner = s.activation(config), h @ w.W_in + w.b_in
        hidden = act(inner) if w.W_gate is None else s.hidden_units(act, h @ w.W_gate + w.b_gate, inner)
        return hidden @ w.W_out + w.b_out

    def run(self, weights: Any, ids: Any, config: Any, key_mask: Any, positions: Any, cache: Any) -> TransformerOutput:
        """Return logits and streams of new tokens."""
        s: Any = self
        past = cache[0][0][0].shape[1] if cache and cache[0] else 0
        if positions is None:
            positions = s.first_position(past) + np.arange(ids.shape[1])
        x = weights.W_E[ids]
        x = x if weights.W_pos is None else s.placed(x, weights.W_pos, positions)
        streams = []
        for layer, w in enumerate(weights.blocks):
            h = self.norm(x, w.ln1_w, w.ln1_b, config)
            after = x + self.attention(h, w, config, layer, positions, key_mask, cache)
            read = s.mlp_reads(x, after, config.parallel_residual)
            x = after + self.mlp(self.norm(read, w.ln2_w, w.ln2_b, config), w, config)
            streams.append(x)
        logits = s.read_out(x, lambda y: self.norm(y, weights.lnf_w, weights.lnf_b, config), weights.W_U)
        return TransformerOutput(logits, np.stack(streams) if streams else np.zeros((0, *x.shape)))


def running(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward pass with these steps exchanged."""
    plain = Plain(**changes)

    def wrong(weights: Any, ids: Any, *, config: Any, key_mask: Any = None, positions: Any = None) -> Any:
        cache: list[Any] = [None] * len(weights.blocks)
        return plain.run(weights, ids, parse_config(config), key_mask, positions, cache)

    return wrong


def stepping(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return decoding with a cache with these steps exchanged."""
    plain = Plain(**changes)
    joined: Callable[..., Any] = changes.get("logits_of_prompt", logits_of_prompt)

    def wrong(weights: Any, ids: Any, *, config: Any, prefill: int = 1) -> Any:
        cache: list[Any] = [None] * len(weights.blocks)
        cuts = [0, *range(prefill, ids.shape[1] + 1)]
        parts = [ids[:, a:b] for a, b in pairwise(cuts)]
        parsed = parse_config(config)
        return joined([plain.run(weights, p, parsed, None, None, cache).logits for p in parts])

    return wrong


def looked_back(kind: str, n: int) -> int:
    """Return how far back the head is expected to look."""
    return {"previous": 1, "duplicate": n, "induction": n - 1}[kind]


def counted(kind: str, n: int) -> Any:
    """Return the queries that count."""
    return np.arange(1 if kind == "previous" else n + 1, 2 * n + 1)


def read(weights: Any) -> Any:
    """Return what is averaged."""
    return weights


def scoring(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return head scores with these steps exchanged."""
    back: Callable[..., Any] = changes.get("looked_back", looked_back)
    queries: Callable[..., Any] = changes.get("counted", counted)
    reading: Callable[..., Any] = changes.get("read", read)

    def wrong(pattern: Any, kind: str, n: int) -> Any:
        t = queries(kind, n)
        return np.mean(np.stack([reading(pattern[..., i, i - back(kind, n)]) for i in t], axis=-1), axis=-1)

    return wrong
