"""The parts once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.layers.context_aware_attention import ContextAttentionResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["attending", "balancing", "crossing", "fusing", "gating", "kernel", "pooling", "smoothing"]


def logistic(z: np.ndarray) -> Any:
    """Squash to (0, 1)."""
    return 0.5 + 0.5 * np.tanh(0.5 * z)


def normalised(s: np.ndarray, seen: np.ndarray) -> Any:
    """Take the softmax over the keys that are seen."""
    e = np.where(seen, np.exp(s - s.max(axis=-1, keepdims=True, initial=-1e300)), 0.0)
    return e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300)


def scale(_width: int, head: int) -> float:
    """Return one over the root of a head's width."""
    return float(head**-0.5)


def split(t: np.ndarray, n_heads: int) -> Any:
    """Give each head a run of neighbouring channels."""
    return np.moveaxis(t.reshape(*t.shape[:-1], n_heads, t.shape[-1] // n_heads), -2, -3)


def gate(t: np.ndarray, c: np.ndarray, v_h: np.ndarray, v_c: np.ndarray, bias: np.ndarray) -> Any:
    """Read the token and its context."""
    return logistic(t @ v_h + c @ v_c + bias)[..., None]


def gates(gate_q: np.ndarray, gate_k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give queries and keys their own."""
    return gate_q, gate_k


def mix(t: np.ndarray, c: np.ndarray, lam: np.ndarray) -> Any:
    """Let in as much of the context as the gate says."""
    return (1 - lam) * t + lam * c


def values(v: np.ndarray, _c: np.ndarray, _lam: np.ndarray) -> Any:
    """Leave them alone."""
    return v


def attending(
    gate: Callable[..., Any] = gate,
    gates: Callable[..., Any] = gates,
    mix: Callable[..., Any] = mix,
    values: Callable[..., Any] = values,
    split: Callable[..., Any] = split,
    scale: Callable[[int, int], float] = scale,
    weigh: Callable[..., Any] = normalised,
) -> Callable[..., Any]:
    """Return context-aware attention with these steps."""

    def entry(
        x: np.ndarray, weights: Any, context: Any = None, *, n_heads: int, mask: Any = None, return_aux: bool = False
    ) -> Any:
        w = weights
        q, k, v = x @ w.wq + w.bq, x @ w.wk + w.bk, x @ w.wv + w.bv
        gate_q = gate_k = None
        if context is not None:
            c_q, c_k = context @ w.uq, context @ w.uk
            gate_q, gate_k = gates(gate(q, c_q, w.vq_h, w.vq_c, w.bq_gate), gate(k, c_k, w.vk_h, w.vk_c, w.bk_gate))
            q, k, v = mix(q, c_q, gate_q), mix(k, c_k, gate_k), values(v, c_k, gate_k)
        q, k, v = split(q, n_heads), split(k, n_heads), split(v, n_heads)
        s = q @ np.swapaxes(k, -1, -2) * scale(x.shape[-1], q.shape[-1])
        seen = np.ones(x.shape[:-1], bool) if mask is None else mask
        a = weigh(s, np.broadcast_to(seen[..., None, None, :], s.shape))
        out = np.moveaxis(a @ v, -3, -2).reshape(x.shape) @ w.wo + w.bo
        return ContextAttentionResult(out, gate_q, gate_k, a) if return_aux else out

    return entry


def mean(x: np.ndarray, real: np.ndarray) -> Any:
    """Average the real tokens."""
    return np.einsum("...nd,...n->...d", x, real / real.sum(axis=-1, keepdims=True))[..., None, :]


def gather(means: list[np.ndarray]) -> Any:
    """Lay the means side by side."""
    return np.concatenate(means, axis=-1)


def pooling(mean: Callable[..., Any] = mean, gather: Callable[..., Any] = gather) -> Callable[..., Any]:
    """Return the deep-global context with these steps."""

    def entry(layers: Sequence[np.ndarray], mask: Any = None) -> Any:
        real = np.ones(layers[0].shape[:-1]) if mask is None else mask.astype(np.float64)
        return gather([mean(x, real) for x in layers])

    return entry


def meet(read_q: np.ndarray, read_k: np.ndarray) -> Any:
    """Multiply what is read of the query and of the key."""
    return read_q * read_k


def turn_down(q: np.ndarray, k: np.ndarray, M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the query the first gate and the key the second."""
    return q * M[..., :1], k * M[..., 1:]


def gating(
    meet: Callable[..., Any] = meet,
    squash: Callable[..., Any] = logistic,
    turn_down: Callable[..., Any] = turn_down,
    weigh: Callable[..., Any] = normalised,
) -> Callable[..., Any]:
    """Return the gate model with these steps."""

    def entry(q: np.ndarray, k: np.ndarray, v: np.ndarray, weights: Any, *, mask: Any = None) -> Any:
        w = weights
        M = squash(meet(q @ w.w_gq + w.b_gq, k @ w.w_gk + w.b_gk) @ w.w_g + w.b_g)
        q, k = turn_down(q, k, M)
        s = q @ np.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5
        seen = np.ones((*q.shape[:-3], q.shape[-2]), bool) if mask is None else mask
        return weigh(s, np.broadcast_to(seen[..., None, None, :], s.shape)) @ v

    return entry


def kernel_of(cost: np.ndarray, reg: float) -> Any:
    """Make near pairs heavy."""
    return np.exp(-cost / reg)


def rows(P: np.ndarray, a: np.ndarray) -> Any:
    """Make the rows sum to a."""
    return P * (a / np.maximum(P.sum(axis=-1), 1e-300))[..., None]


def columns(P: np.ndarray, b: np.ndarray) -> Any:
    """Make the columns sum to b."""
    return P * (b / np.maximum(P.sum(axis=-2), 1e-300))[..., None, :]


def step(P: np.ndarray, a: np.ndarray, b: np.ndarray) -> Any:
    """Make the rows right, then the columns."""
    return columns(rows(P, a), b)


def count(max_iter: int) -> int:
    """Return how many steps there are."""
    return max_iter


def balancing(
    kernel_of: Callable[..., Any] = kernel_of,
    step: Callable[..., Any] = step,
    count: Callable[[int], int] = count,
) -> Callable[..., Any]:
    """Return the Sinkhorn plan with these steps."""

    def entry(
        a: np.ndarray, b: np.ndarray, cost: np.ndarray, reg: float, *, tol: Any = None, max_iter: int = 100
    ) -> Any:
        del tol
        P = kernel_of(cost, reg)
        for _ in range(count(max_iter)):
            P = step(P, a, b)
        return P

    return entry


def distance(x: np.ndarray, y: np.ndarray) -> Any:
    """Square it."""
    return np.sum((x[..., :, None, :] - y[..., None, :, :]) ** 2, axis=-1)


def unit(cost: np.ndarray, normalize: str | None) -> Any:
    """Divide by the largest or the median distance of each problem."""
    if normalize is None:
        return cost
    flat = cost.reshape(*cost.shape[:-2], cost.shape[-2] * cost.shape[-1])
    size = (flat.max(axis=-1) if normalize == "max" else np.median(flat, axis=-1))[..., None, None]
    return cost / np.where(size > 0, size, 1.0)


def carry(P: np.ndarray, y: np.ndarray) -> Any:
    """Average the targets of each source."""
    return P @ y / P.sum(axis=-1, keepdims=True)


def crossing(
    distance: Callable[..., Any] = distance,
    unit: Callable[..., Any] = unit,
    step: Callable[..., Any] = step,
    carry: Callable[..., Any] = carry,
) -> Callable[..., Any]:
    """Return transport cross-attention with these steps."""

    def entry(
        source: np.ndarray,
        target: np.ndarray,
        *,
        reg: float,
        normalize: str | None = "max",
        tol: Any = None,
        max_iter: int = 100,
    ) -> Any:
        cost = unit(distance(source, target), normalize)
        a, b = (np.full(size, 1 / size) for size in cost.shape[-2:])
        plan = balancing(step=step)(a, b, cost, reg, tol=tol, max_iter=max_iter)
        return carry(plan, target)

    return entry


def share(p: int, real: np.ndarray) -> Any:
    """Give each real token p/n."""
    return p * real / real.sum(axis=-1, keepdims=True)


def kernel(share: Callable[..., Any] = share, step: Callable[..., Any] = step) -> Callable[..., Any]:
    """Return transport kernel attention with these steps."""

    def entry(
        x: np.ndarray,
        reference: np.ndarray,
        *,
        eps: float,
        n_iter: int = 100,
        mask: Any = None,
        return_weights: bool = False,
    ) -> Any:
        p = reference.shape[1]
        real = np.ones(x.shape[:-1]) if mask is None else mask.astype(np.float64)
        P = kernel_of(-(x[..., None, :, :] @ np.swapaxes(reference, -1, -2)), eps)
        a, b = share(p, real)[..., None, :], np.ones(p)
        for _ in range(n_iter):
            P = step(P, a, b)
        A = np.swapaxes(P, -1, -2)
        out = np.moveaxis(A @ x[..., None, :, :], -3, -2)
        out = out.reshape(*x.shape[:-2], p, len(reference) * x.shape[-1])
        return (out, A) if return_weights else out

    return entry


def score(f: np.ndarray, W: np.ndarray, b: np.ndarray, w: np.ndarray) -> Any:
    """Ask the small network."""
    return np.tanh(f @ W + b) @ w


def shares(s: np.ndarray) -> Any:
    """Take the softmax over the parts."""
    return normalised(s, np.ones(s.shape, bool))


def fusing(score: Callable[..., Any] = score, shares: Callable[..., Any] = shares) -> Callable[..., Any]:
    """Return attention fusion with these steps."""

    def entry(parts: Sequence[np.ndarray], w_hidden: np.ndarray, b_hidden: np.ndarray, w_score: np.ndarray) -> Any:
        f = np.stack(parts, axis=-2)
        alpha = shares(score(f, w_hidden, b_hidden, w_score))
        return np.einsum("...k,...kd->...d", alpha, f), alpha

    return entry


def soften(onehot: np.ndarray, alpha: float) -> Any:
    """Spread α over all classes."""
    return (1 - alpha) * onehot + alpha / onehot.shape[-1]


def average(losses: np.ndarray) -> Any:
    """Take the mean over samples."""
    return losses.mean()


def smoothing(soften: Callable[..., Any] = soften, average: Callable[..., Any] = average) -> Callable[..., Any]:
    """Return the smoothed loss with these steps."""

    def entry(logits: np.ndarray, labels: np.ndarray, *, alpha: float = 0.1) -> Any:
        target = soften(np.eye(logits.shape[-1])[labels], alpha)
        p = normalised(logits, np.ones(logits.shape, bool))
        return np.asarray(average(-np.sum(target * np.log(np.maximum(p, 1e-300)), axis=-1)))

    return entry
