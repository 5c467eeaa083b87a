"""The attention variants once more, straightforward, each step exchangeable: what planted bugs are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.deconstructed import FIXED, AttentionWeights
from refattn.layers.deconstructed_indicators import OFFSETS, Indicators
from refattn.layers.deconstructed_recurrent import GateState, TaylorState
from refattn.layers.deconstructed_stack import BlockWeights, StackOutput, StackWeights

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["attending", "gate_recurring", "indicating", "silu", "stacking", "taylor_recurring"]


def silu(x: Any) -> Any:
    """Return x times its sigmoid."""
    return x / (1 + np.exp(-x))


def source(variant: str, hidden: Any, reference: Any, static: Any) -> Any:
    """Return what queries and keys are made of."""
    if variant in FIXED:
        return reference[..., : hidden.shape[-2], :]
    return static if variant == "static_emb" else hidden


def value_source(hidden: Any, _source: Any) -> Any:
    """Return what values are made of."""
    return hidden


def split(x: Any, h: int) -> Any:
    """Return the heads, (..., h, L, dh)."""
    return np.stack(np.split(x, h, axis=-1), axis=-3)


def activated(q: Any) -> Any:
    """Return the queries of the gate."""
    return silu(q)


def turned(x: Any, base: float) -> Any:
    """Return channels turned by position."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[-2])[:, None] * base ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=-1)


def scores(q: Any, k: Any) -> Any:
    """Return the scores of all pairs."""
    return q @ k.mT / np.sqrt(q.shape[-1])


def gate(q: Any, k: Any) -> Any:
    """Return one score a token."""
    return np.sum(q * k, axis=-1) / np.sqrt(q.shape[-1])


def polynomial(x: Any) -> Any:
    """Return the weights of scores."""
    return 1 + x + x**2 / 2


def squares(q: Any, k: Any) -> Any:
    """Return the second-order weights of all pairs."""
    return q**2 @ (k**2).mT


def visible(length: int) -> Any:
    """Return which key each query may see."""
    return np.tri(length, dtype=bool)


def weighed(x: Any, seen: Any) -> Any:
    """Return the softmax of each row."""
    x = np.where(seen, x, -np.inf)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def shared(x: Any, seen: Any, eps: float) -> Any:
    """Return each row's weights as shares."""
    x = np.where(seen, x, 0.0)
    return x / (x.sum(axis=-1, keepdims=True) + eps)


def output(o: Any, W_O: Any) -> Any:
    """Return the layer's output."""
    return o @ W_O


def gated(x: Any, w_gate: Any, w_up: Any, w_down: Any) -> Any:
    """Return the gated transformation of each token."""
    return (silu(x @ w_gate) * (x @ w_up)) @ w_down


def started(initial: Any, zero: Any) -> Any:
    """Return the sums before the first token."""
    return zero if initial is None else initial


def features(u: Any) -> Any:
    """Return the features of a query or key."""
    square = np.stack([a * b for a in np.moveaxis(u, -1, 0) for b in np.moveaxis(u, -1, 0)], axis=-1)
    width = u.shape[-1]
    return np.concatenate([np.ones_like(u[..., :1]), u / width**0.25, square / np.sqrt(2 * width)], axis=-1)


def ratio(f_q: Any, S: Any, z: Any, _count: int, eps: float) -> Any:
    """Return what a query reads from the sums."""
    return np.sum(f_q[..., None] * S, axis=-2) / (np.sum(f_q * z, axis=-1, keepdims=True) + eps)


def advanced(n: Any, z: Any, m: Any, s: Any, v: Any) -> Any:
    """Return the sums with one more token."""
    top = np.maximum(m, s)
    old, new = np.exp(m - top), np.exp(s - top)
    return old[..., None] * n + new[..., None] * v, old * z + new, top


def normed(x: Any, weight: Any, eps: float) -> Any:
    """Return the normalised stream."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def reference_normed(x: Any, weight: Any, eps: float) -> Any:
    """Return the normalised reference."""
    return normed(x, weight, eps)


def embedded(e: Any, weight: Any, eps: float, on: bool) -> Any:
    """Return the embeddings as this layer sees them."""
    return normed(e, weight, eps) if on else e


def second_norm(block: BlockWeights) -> Any:
    """Return the weight of the norm before the feed-forward network."""
    return block.norm_mlp


def fed_forward(x: Any, change: Any) -> Any:
    """Return the stream after the feed-forward network."""
    return x + change


def next_reference(_old: Any, new: Any) -> Any:
    """Return the reference that the next layer sees."""
    return new


def left_out(x: Any, _after_network: Any) -> Any:
    """Return the stream after a skipped layer."""
    return x


def entropies(A: Any) -> Any:
    """Return the entropy of each map."""
    return -np.sum(np.where(A > 0, A * np.log(np.where(A > 0, A, 1)), 0), axis=(-2, -1))


def spread(A: Any) -> Any:
    """Return how much heads differ in each entry."""
    return np.std(A, axis=-3)


def entries(length: int) -> Any:
    """Return how many entries the mean is over."""
    return length * (length + 1) / 2


def first_weight(A: Any) -> Any:
    """Return the weight of the first token, for each map."""
    return A[..., :, 0].mean(axis=-1)


def back(A: Any, N: int) -> Any:
    """Return the mean weight N places back, for each map."""
    length = A.shape[-1]
    return sum((A[..., i, i - N] for i in range(N, length)), np.zeros(A.shape[:-2])) / max(length - N, 1)


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    source: Callable[..., Any] = source
    value_source: Callable[..., Any] = value_source
    split: Callable[..., Any] = split
    activated: Callable[..., Any] = activated
    turned: Callable[..., Any] = turned
    scores: Callable[..., Any] = scores
    gate: Callable[..., Any] = gate
    polynomial: Callable[..., Any] = polynomial
    squares: Callable[..., Any] = squares
    visible: Callable[..., Any] = visible
    weighed: Callable[..., Any] = weighed
    shared: Callable[..., Any] = shared
    output: Callable[..., Any] = output
    gated: Callable[..., Any] = gated
    started: Callable[..., Any] = started
    features: Callable[..., Any] = features
    ratio: Callable[..., Any] = ratio
    advanced: Callable[..., Any] = advanced
    reference_normed: Callable[..., Any] = reference_normed
    embedded: Callable[..., Any] = embedded
    second_norm: Callable[..., Any] = second_norm
    fed_forward: Callable[..., Any] = fed_forward
    next_reference: Callable[..., Any] = next_reference
    left_out: Callable[..., Any] = left_out
    entropies: Callable[..., Any] = entropies
    spread: Callable[..., Any] = spread
    entries: Callable[..., Any] = entries
    first_weight: Callable[..., Any] = first_weight
    back: Callable[..., Any] = back


def mapped(
    steps: Steps, x: Any, weights: Any, variant: str, n_heads: int, form: str, eps: float, base: float | None
) -> Any:
    """Return the maps of a source."""
    q, k = steps.split(x @ weights.W_Q, n_heads), steps.split(x @ weights.W_K, n_heads)
    seen = steps.visible(x.shape[-2])
    if variant == "non_approximate":
        s = steps.gate(steps.activated(q), k)
        return steps.weighed(s[..., None, :] + np.zeros_like(s)[..., None], seen)
    if base is not None:
        q, k = steps.turned(q, base), steps.turned(k, base)
    if variant != "approximate":
        return steps.weighed(steps.scores(q, k), seen)
    if form == "joint":
        return steps.shared(steps.polynomial(steps.scores(q, k)), seen, eps)
    plain = q @ k.mT
    return sum(steps.shared(x, seen, eps) for x in (np.ones_like(plain), plain, steps.squares(q, k)))


def mixed(steps: Steps, A: Any, x: Any, weights: Any) -> Any:
    """Return what a layer adds, with its maps, or None for the layer that mixes nothing."""
    if A is None:
        return steps.output(steps.gated(x, *weights[:3]), weights.W_O)
    o = A @ steps.split(x @ weights.W_V, A.shape[-3])
    return steps.output(np.concatenate([o[..., i, :, :] for i in range(A.shape[-3])], axis=-1), weights.W_O)


def attending(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the attention of a layer with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        hidden: Any,
        weights: AttentionWeights,
        *,
        variant: str,
        n_heads: int,
        reference: Any = None,
        static: Any = None,
        form: str = "joint",
        eps: float = 0.0,
        rotary_base: float | None = None,
    ) -> Any:
        x = steps.source(variant, hidden, reference, static)
        A = None if variant == "mlp" else mapped(steps, x, weights, variant, n_heads, form, eps, rotary_base)
        out = mixed(steps, A, steps.value_source(hidden, x), weights)
        return np.broadcast_to(out, hidden.shape)

    return wrong


def taylor_recurring(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the recurrence of the Taylor map with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(q: Any, k: Any, v: Any, *, form: str = "joint", eps: float = 0.0, initial: Any = None) -> Any:
        if form == "per_order":
            seen = np.tri(q.shape[-2], dtype=bool)
            orders = (np.ones_like(q @ k.mT), q @ k.mT, steps.squares(q, k))
            return sum(shared(x, seen, eps) for x in orders) @ v, None
        f_q, f_k = steps.features(q), steps.features(k)
        zero = TaylorState(np.zeros((*f_k.shape[:-2], f_k.shape[-1], v.shape[-1])), np.zeros_like(f_k[..., 0, :]))
        S, z = steps.started(initial, zero)
        rows = []
        for t in range(q.shape[-2]):
            S, z = S + f_k[..., t, :, None] * v[..., t, None, :], z + f_k[..., t, :]
            rows.append(steps.ratio(f_q[..., t, :], S, z, t + 1, eps))
        return np.stack(rows, axis=-2), TaylorState(S, z)

    return wrong


def gate_recurring(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the recurrence of the gate with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(q: Any, k: Any, v: Any, *, initial: Any = None) -> Any:
        s = steps.gate(q, k)
        nothing = GateState(np.zeros_like(v[..., 0, :]), np.zeros_like(s[..., 0]), s[..., 0])
        state = steps.started(initial, nothing)
        rows = []
        for t in range(q.shape[-2]):
            state = GateState(*steps.advanced(*state, s[..., t], v[..., t, :]))
            rows.append(state.n / state.z[..., None])
        return np.stack(rows, axis=-2), state

    return wrong


def stacking(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the stack with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        tokens: Any,
        params: StackWeights,
        *,
        plan: Any,
        n_heads: int,
        reference_embeddings: Any = None,
        reference_tokens: Any = None,
        skip: Any = (),
        normalize_static: bool = False,
        norm_eps: float = 1e-6,
        rotary_base: float | None = None,
    ) -> Any:
        table, maps = params.embedding, []
        first = table[tokens]
        start = reference_embeddings if reference_tokens is None else table[reference_tokens]
        start = start[: tokens.shape[-1]] if any(kind in FIXED for kind in plan) else None

        def after_network(x: Any, block: BlockWeights) -> Any:
            return steps.fed_forward(x, gated(normed(x, steps.second_norm(block), norm_eps), *block.mlp))

        def through(x: Any, e: Any, H: Any, Xn: Any, variant: str, block: BlockWeights) -> Any:
            own = source(variant, H, Xn, steps.embedded(e, block.norm_attention, norm_eps, normalize_static))
            A = (
                None
                if variant == "mlp"
                else mapped(steps, own, block.attention, variant, n_heads, "joint", 0.0, rotary_base)
            )
            return after_network(x + mixed(steps, A, H, block.attention), block), A

        x, X = first, start
        for number, (variant, block) in enumerate(zip(plan, params.blocks, strict=True), 1):
            if number in skip:
                x = steps.left_out(x, after_network(x, block))
                continue
            H = normed(x, block.norm_attention, norm_eps)
            Xn = None if X is None else steps.reference_normed(X, block.norm_attention, norm_eps)
            x, A = through(x, first, H, Xn, variant, block)
            maps.append(A)
            X = None if X is None else steps.next_reference(X, through(X, start, Xn, Xn, variant, block)[0])
        skipped = all(kind not in FIXED or i + 1 in skip for i, kind in enumerate(plan))
        return StackOutput(x, tuple(maps), None if skipped else X)

    return wrong


def indicating(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the indicators with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(maps: Any) -> Any:
        L = maps.shape[-1]
        n = np.arange(1, L + 1)
        entropy = steps.entropies(maps).mean(axis=-1)
        norm = np.linalg.norm(maps, axis=(-2, -1)).mean(axis=-1)
        diversity = steps.spread(maps).sum(axis=(-2, -1)) / steps.entries(L)
        focus = np.stack([steps.back(maps, N).mean(axis=-1) for N in OFFSETS], axis=-1)
        least = np.sqrt(np.sum(1 / n))
        scaled = (entropy / np.sum(np.log(n)), (norm - least) / (np.sqrt(L) - least)) if L > 1 else (entropy, norm - 1)
        return Indicators(entropy, norm, diversity, steps.first_weight(maps).mean(axis=-1), focus, *scaled)

    return wrong
