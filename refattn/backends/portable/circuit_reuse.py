"""Circuit analysis in the array-API standard; path patching by what freezing leaves, all senders at once.

While every head's output at token p is frozen, the residual stream at p hears of the others only through one vector,
the sender's change. It enters at the sender's layer and passes through the MLPs. So the first of the two passes shrinks
to a chain of MLPs on one token, for all senders together; only the second is a forward pass.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from array_api_compat import array_namespace, device
from array_api_compat import size as size_of

from refattn.backends.pointwise import layer_norm
from refattn.interpretability.circuit_reuse_effects import OverlapResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["effect_overlap", "force_rows", "head_mask", "logit_difference", "patch_effect", "path_patch_gpt2"]

EPSILON = 1e-5


def logit_difference(logits: Any, answers: Any, *, position: int = -1, reduce: str = "mean") -> Any:
    """Sum the logits with +1 at the right word and −1 at the wrong one."""
    xp = array_namespace(logits, answers)
    words = xp.arange(logits.shape[-1], dtype=answers.dtype, device=device(logits))
    right, wrong = (xp.where(answers[:, i, None] == words, logits[:, position, :], 0.0) for i in (0, 1))  # (B, V)
    each = xp.sum(right, axis=-1) - xp.sum(wrong, axis=-1)
    return xp.mean(each) if reduce == "mean" else each


def patch_effect(patched: Any, clean: Any, corrupt: Any) -> Any:
    """Measure the way from the patched run back to the clean one by the way between the two runs."""
    return (clean - patched) / (clean - corrupt)


def head_mask(effect: Any, *, fraction: float = 0.02, threshold: float | None = None) -> Any:
    """Keep a head if fewer than k are larger, or as large and earlier: ranks without a sort."""
    xp = array_namespace(effect)
    layers, heads = effect.shape[-2:]
    size = xp.abs(effect)
    if threshold is not None:
        return size > threshold
    count = max(1, math.ceil(round(fraction * layers * heads, 9)))
    flat = xp.reshape(size, (*effect.shape[:-2], layers * heads))
    place = xp.arange(layers * heads, device=device(effect))
    larger = flat[..., None, :] > flat[..., :, None]  # (..., head, other)
    before = (flat[..., None, :] == flat[..., :, None]) & (place[None, :] < place[:, None])
    rank = xp.sum(xp.astype(larger | before, xp.int64), axis=-1)
    return xp.reshape(rank < count, effect.shape)


def effect_overlap(effect_a: Any, effect_b: Any, *, fraction: float = 0.02, threshold: float | None = None) -> Any:
    """Count heads that both, either or one of the tasks has."""
    xp = array_namespace(effect_a, effect_b)
    a, b = (head_mask(effect, fraction=fraction, threshold=threshold) for effect in (effect_a, effect_b))
    only_a, only_b = a & ~b, b & ~a

    def count(mask: Any) -> Any:
        return xp.sum(xp.astype(mask, effect_a.dtype), axis=(-2, -1))

    both, left, right = count(a & b), count(only_a), count(only_b)

    def share(rest: Any) -> Any:
        """Return both / (both + rest), one where there is nothing at all."""
        whole = both + rest
        empty = whole == 0
        return xp.where(empty, xp.ones_like(both), both / xp.where(empty, xp.ones_like(whole), whole))

    return OverlapResult(a & b, only_a, only_b, share(xp.maximum(left, right)), share(left + right))


def force_rows(pattern: Any, rows: Any, targets: Any, *, heads: Sequence[int], weight: float = 1.0) -> Any:
    """Blend every row with its aim, at weight zero but for the chosen ones."""
    xp = array_namespace(pattern, rows, targets)
    _, n_heads, t, s = pattern.shape
    where = device(pattern)
    keys = xp.arange(s, dtype=targets.dtype, device=where)
    told = xp.sum(xp.astype(targets[:, :, None] == keys, pattern.dtype), axis=1)  # (B, S)
    aim = told / xp.sum(told, axis=-1, keepdims=True)
    queries = xp.arange(t, dtype=rows.dtype, device=where)
    chosen = (rows[:, None] == queries) | (rows[:, None] + t == queries)  # (B, T)
    forced = xp.asarray([head in heads for head in range(n_heads)], device=where)
    at = forced[None, :, None, None] & chosen[:, None, :, None]
    return xp.where(at, pattern + weight * (aim[:, None, None, :] - pattern), pattern)


class _Trace(NamedTuple):
    """What one run leaves for patching: logits, and per layer the stream before it, z (…, T, H, e) and the MLP."""

    logits: Any
    streams: list[Any]
    outputs: list[Any]
    mlps: list[Any]


def path_patch_gpt2(
    weights: Any,
    clean: Any,
    corrupt: Any,
    answers: Any,
    *,
    receivers: Sequence[Sequence[Any]],
    component: str = "z",
    position: int = -1,
    freeze_mlps: bool = False,
    truncate: bool = True,
) -> Any:
    """Patch all senders at once; receivers are heads, or the streams and MLP outputs of blocks by name."""
    xp = array_namespace(weights.W_E, clean)
    layers, heads, p = len(weights.blocks), weights.blocks[0].W_Q.shape[0], position % clean.shape[1]
    before, other = _run(weights, clean, _untouched), _run(weights, corrupt, _untouched)
    start, end = (logit_difference(run.logits, answers) for run in (before, other))
    heard = _heard(weights, before, other, p, freeze_mlps)
    here = xp.arange(clean.shape[1], device=device(clean)) == p

    def tell(name: str, value: Any) -> Any:
        """Put in, at p, what the receivers of this name have heard: (S, B, T, …)."""
        for where, head in receivers:
            if name == (where if head is None else f"blocks.{where}.attn.hook_{component}"):
                told = xp.reshape(here, (-1, *(1,) * (value.ndim - 3)))
                if head is not None:
                    told = told & (xp.arange(heads, device=device(clean))[:, None] == head)
                value = xp.where(told, heard[name][:, :, None, ...], value)
        return value

    many = xp.broadcast_to(clean, (layers * heads, *clean.shape))  # all heads are tried, even those that are not asked
    patched = xp.mean(_margins(_run(weights, many, tell).logits, answers), axis=-1)  # (S,)
    effects = xp.reshape((patched - start) / (end - start), (layers, heads))
    return xp.where(_asked(xp, receivers, effects, truncate), effects, xp.zeros_like(effects))


def _untouched(_name: str, value: Any) -> Any:
    return value


def _margins(logits: Any, answers: Any) -> Any:
    """Return right less wrong at the last token: (S, B, T, V) to (S, B)."""
    xp = array_namespace(logits, answers)
    senders, batch = logits.shape[:2]
    flat = xp.reshape(logits, (senders * batch, *logits.shape[2:]))
    repeated = xp.reshape(xp.broadcast_to(answers, (senders, *answers.shape)), (senders * batch, 2))
    return xp.reshape(logit_difference(flat, repeated, reduce="none"), (senders, batch))


def _asked(xp: Any, receivers: Sequence[Sequence[Any]], effects: Any, truncate: bool) -> Any:
    """Mark the heads up to the first receiver's layer that are no receivers: (L, H)."""
    layers, heads = effects.shape
    stops = [where for where, head in receivers if head is not None] if truncate else []
    listening = {tuple(receiver) for receiver in receivers}
    last = min(stops, default=layers - 1)
    asked = [[at <= last and (at, head) not in listening for head in range(heads)] for at in range(layers)]
    return xp.asarray(asked, device=device(effects))


def _heard(weights: Any, before: _Trace, other: _Trace, p: int, freeze_mlps: bool) -> dict[str, Any]:
    """Return what reaches each hook point at p from every head: (S, B, …)."""
    xp = array_namespace(before.logits)
    layers, heads = len(weights.blocks), weights.blocks[0].W_Q.shape[0]
    x = xp.broadcast_to(before.streams[0][:, p, :], (layers * heads, *before.streams[0][:, p, :].shape))
    points: dict[str, Any] = {}
    for layer, block in enumerate(weights.blocks):
        points[f"blocks.{layer}.hook_resid_pre"] = x
        h = layer_norm(x, block.ln1_w, block.ln1_b, EPSILON)
        for name in "qkv":
            points[f"blocks.{layer}.attn.hook_{name}"] = _projected(h, block, name)
        change = xp.moveaxis((other.outputs[layer] - before.outputs[layer])[:, p, :, :], 0, 1)  # (H, B, e)
        spoken = change @ block.W_O  # (H, B, d)
        silent = [xp.zeros((n * heads, *spoken.shape[1:]), dtype=x.dtype, device=device(x)) for n in range(layers)]
        told = xp.concat([silent[layer], spoken, silent[layers - layer - 1]], axis=0)  # (S, B, d)
        mid = x + (_joined(before.outputs[layer][:, p, :, :], block) + told)
        points[f"blocks.{layer}.hook_resid_mid"] = mid
        made = xp.broadcast_to(before.mlps[layer][:, p, :], mid.shape) if freeze_mlps else _mlp(mid, block)
        points[f"blocks.{layer}.hook_mlp_out"] = made
        x = mid + made
        points[f"blocks.{layer}.hook_resid_post"] = x
    return points


def _run(weights: Any, ids: Any, edit: Callable[[str, Any], Any]) -> _Trace:
    """Run tokens (..., B, T) through a GPT-2, each hook point passing through ``edit``."""
    xp = array_namespace(weights.W_E, ids)
    t = ids.shape[-1]
    rows = xp.take(weights.W_E, xp.reshape(ids, (size_of(ids),)), axis=0)
    x = xp.reshape(rows, (*ids.shape, weights.W_E.shape[-1])) + weights.W_pos[:t, :]
    place = xp.arange(t, device=device(x))
    hidden = place[None, :] > place[:, None]  # (query, key)
    trace = _Trace(x, [], [], [])
    for layer, block in enumerate(weights.blocks):
        name = f"blocks.{layer}."
        x = edit(name + "hook_resid_pre", x)
        h = layer_norm(x, block.ln1_w, block.ln1_b, EPSILON)
        q, k, v = (
            xp.moveaxis(edit(f"{name}attn.hook_{part}", _projected(h, block, part)), -2, -3) for part in "qkv"
        )  # (..., B, H, T, e)
        scores = (q @ xp.matrix_transpose(k)) * q.shape[-1] ** -0.5
        scores = xp.where(hidden, xp.asarray(-math.inf, dtype=scores.dtype, device=device(x)), scores)
        mass = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
        z = xp.moveaxis((mass @ v) / xp.sum(mass, axis=-1, keepdims=True), -3, -2)  # (..., B, T, H, e)
        mid = edit(name + "hook_resid_mid", x + _joined(z, block))
        made = edit(name + "hook_mlp_out", _mlp(mid, block))
        trace.streams.append(x)
        trace.outputs.append(z)
        trace.mlps.append(made)
        x = edit(name + "hook_resid_post", mid + made)
    logits = layer_norm(x, weights.lnf_w, weights.lnf_b, EPSILON) @ weights.W_U
    return trace._replace(logits=logits)


def _projected(h: Any, block: Any, name: str) -> Any:
    """Return q, k or v of every head: (..., d) to (..., H, e)."""
    weight, bias = getattr(block, f"W_{name.upper()}"), getattr(block, f"b_{name.upper()}")
    return (h[..., None, None, :] @ weight)[..., 0, :] + bias


def _joined(z: Any, block: Any) -> Any:
    """Add up what the heads write: (..., H, e) to (..., d)."""
    xp = array_namespace(z)
    heads, e, d = block.W_O.shape
    return xp.reshape(z, (*z.shape[:-2], heads * e)) @ xp.reshape(block.W_O, (heads * e, d)) + block.b_O


def _mlp(mid: Any, block: Any) -> Any:
    xp = array_namespace(mid)
    hidden = layer_norm(mid, block.ln2_w, block.ln2_b, EPSILON) @ block.W_in + block.b_in
    bent = xp.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3))
    return (0.5 * hidden * (1 + bent)) @ block.W_out + block.b_out
