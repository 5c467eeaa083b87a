"""MSGNet once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import special

from refattn.layers.msgnet_scales import ScaleSelection

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["adjacency", "attention", "block", "forecast", "graph", "mixhop", "scales"]


def amplitude(F: Any) -> Any:
    """Return the length of each complex number."""
    return np.abs(F)


def average(amplitudes: Any) -> Any:
    """Average over windows and features."""
    return amplitudes.mean(axis=(0, 2))


def varying(spectrum: Any) -> Any:
    """Leave the constant part out."""
    return np.concatenate([[0.0], spectrum[1:]])


def choose(spectrum: Any, k: int) -> Any:
    """Return the k strongest, the strongest first."""
    return np.argsort(-spectrum, kind="stable")[:k]


def period(T: int, f: Any) -> Any:
    """Return whole times of one oscillation."""
    return T // f


def strength(amplitudes: Any, freqs: Any) -> Any:
    """Return amplitudes of each window."""
    return amplitudes[:, freqs].mean(axis=-1)


def common(e1: Any, e2: Any) -> Any:
    """Compare node vectors; what is below zero is zero."""
    return np.maximum(e1 @ e2, 0.0)


def softmax(s: Any, axis: int = -1) -> Any:
    """Return weights that sum to 1."""
    e = np.exp(s - s.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def edges(m: Any) -> Any:
    """Let the weights of a receiver sum to 1."""
    return softmax(m, -1)


def looped(A: Any) -> Any:
    """Add the series itself to its neighbours."""
    A = A + np.eye(len(A))
    return A / A.sum(axis=1, keepdims=True)


def hop(h0: Any, h: Any, A: Any, alpha: float) -> Any:
    """Average neighbours, and keep some of the start."""
    return alpha * h0 + (1 - alpha) * np.einsum("vw,bcwt->bcvt", A, h)


def stacked(hops: list[Any]) -> Any:
    """Put hops side by side."""
    return np.concatenate(hops, axis=1)


def seen(x: Any, n: int, M: int) -> Any:
    """Return the features that series n reads."""
    return x[..., n : n + M]


def gelu(x: Any) -> Any:
    """Weigh each number by the normal distribution."""
    return x * special.ndtr(x)


def added(x: Any, update: Any) -> Any:
    """Add to what came in."""
    return x + update


def standardise(x: Any) -> Any:
    """Bring rows to mean 0 and deviation 1."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def scale(width: int, size: int) -> float:
    """Return one over the root of the head's width."""
    del width
    return float(size**-0.5)


def past(s: int, causal: bool) -> Any:
    """Say which times of a segment see which."""
    return np.tri(s, dtype=bool) | (not causal)


def weigh(s: Any) -> Any:
    """Let the weights of a query sum to 1."""
    return softmax(s, -1)


def apart(z: Any) -> Any:
    """Keep segments apart."""
    return z


def padded(x: Any, zeros: Any) -> Any:
    """Put zeros at the end."""
    return np.concatenate([x, zeros], axis=1)


def shares(strengths: Any) -> Any:
    """Turn the strengths of a window into weights."""
    return softmax(strengths, -1)


def following(x: Any, mixed: Any) -> Any:
    """Hand each graph what the one before it has made."""
    del x
    return mixed


def rest(x: Any, mixed: Any) -> Any:
    """Add the scales to what the last graph has made."""
    del x
    return mixed


def bent(z: Any) -> Any:
    """Apply GELU after the normalisation."""
    return gelu(z)


def deviation(x: Any) -> Any:
    """Return the deviation of each series in its window."""
    return np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)


def neighbour(x: Any, j: int) -> Any:
    """Return what tap j of the kernel sees: the time before, the time itself, the time after."""
    return np.roll(x, 1 - j, axis=1)


def row(mark: Any) -> Any:
    """Return the row of a calendar table."""
    return mark


def after(out: Any, normed: Any) -> Any:
    """Normalise after the block."""
    del out
    return normed


def map_of(time_w: Any, n: int) -> Any:
    """Return the time map of series n."""
    return time_w[n]


def restored(y: Any, sd: Any, mu: Any) -> Any:
    """Return to the units of the series."""
    return y * sd + mu


class Steps(NamedTuple):
    """The steps that can be exchanged."""

    amplitude: Callable[..., Any] = amplitude
    average: Callable[..., Any] = average
    varying: Callable[..., Any] = varying
    choose: Callable[..., Any] = choose
    period: Callable[..., Any] = period
    strength: Callable[..., Any] = strength
    common: Callable[..., Any] = common
    edges: Callable[..., Any] = edges
    looped: Callable[..., Any] = looped
    hop: Callable[..., Any] = hop
    stacked: Callable[..., Any] = stacked
    seen: Callable[..., Any] = seen
    gelu: Callable[..., Any] = gelu
    added: Callable[..., Any] = added
    standardise: Callable[..., Any] = standardise
    scale: Callable[..., Any] = scale
    past: Callable[..., Any] = past
    weigh: Callable[..., Any] = weigh
    apart: Callable[..., Any] = apart
    padded: Callable[..., Any] = padded
    shares: Callable[..., Any] = shares
    following: Callable[..., Any] = following
    rest: Callable[..., Any] = rest
    bent: Callable[..., Any] = bent
    deviation: Callable[..., Any] = deviation
    neighbour: Callable[..., Any] = neighbour
    row: Callable[..., Any] = row
    after: Callable[..., Any] = after
    map_of: Callable[..., Any] = map_of
    restored: Callable[..., Any] = restored


def _scales(steps: Steps, x: Any, k: int) -> ScaleSelection:
    F = steps.amplitude(np.fft.rfft(x, axis=1))
    spectrum = steps.varying(steps.average(F))
    freqs = steps.choose(spectrum, k)
    return ScaleSelection(freqs, steps.period(x.shape[1], np.maximum(freqs, 1)), steps.strength(F, freqs), spectrum)


def _hops(steps: Steps, h0: Any, A: Any, depth: int, alpha: float) -> Any:
    A, hops = steps.looped(A), [h0]
    for _ in range(depth):
        hops.append(steps.hop(h0, hops[-1], A, alpha))
    return steps.stacked(hops)


def _graph(steps: Steps, x: Any, w: Any, depth: int, alpha: float) -> Any:
    N = len(w.e1)
    if w.start_w.ndim == 3:
        h0 = np.stack([x @ w.start_w[:, n].T + w.start_b for n in range(N)], axis=2)
    else:
        h0 = np.stack([steps.seen(x, n, w.start_w.shape[1]) @ w.start_w.T + w.start_b for n in range(N)], axis=2)
    H = _hops(steps, np.moveaxis(h0, 3, 1).swapaxes(2, 3), steps.edges(steps.common(w.e1, w.e2)), depth, alpha)
    g = steps.gelu(np.moveaxis(np.moveaxis(H, 1, -1) @ w.mix_w.T + w.mix_b, -1, 1))
    if w.end_w.ndim == 3:
        o = np.stack([(g * a[:, None]).sum(axis=(1, 3)) + b for a, b in zip(w.end_w, w.end_b, strict=True)], axis=1)
    else:
        o = np.moveaxis(g, 1, -1) @ w.end_w + w.end_b
        o = o.swapaxes(1, 2)
    return steps.standardise(steps.added(x, o @ w.out_w.T + w.out_b)) * w.norm_w + w.norm_b


def _attention(steps: Steps, z: Any, w: Any, n_heads: int, causal: bool) -> Any:
    shape, z = z.shape, steps.apart(z)
    d = z.shape[-1] // n_heads
    q, k, v = z @ w.w_q.T + w.b_q, z @ w.w_k.T + w.b_k, z @ w.w_v.T + w.b_v
    found = []
    for h in range(n_heads):
        own = slice(h * d, (h + 1) * d)
        s = q[..., own] @ k[..., own].swapaxes(1, 2) * steps.scale(z.shape[-1], d)
        found.append(steps.weigh(np.where(steps.past(z.shape[1], causal), s, -1e300)) @ v[..., own])
    y = z + np.concatenate(found, axis=-1) @ w.w_o.T + w.b_o
    y = steps.standardise(y) * w.norm1_w + w.norm1_b
    y = y + gelu(y @ w.w_1.T + w.b_1) @ w.w_2.T + w.b_2
    return (steps.standardise(y) * w.norm2_w + w.norm2_b).reshape(shape)


def _segments(steps: Steps, x: Any, s: int) -> Any:
    B, T, D = x.shape
    zeros = np.zeros((B, -T % s, D))
    return steps.padded(x, zeros).reshape(-1, s, D)


def _block(
    steps: Steps,
    x: Any,
    w: Any,
    *,
    n_heads: int,
    depth: int = 2,
    alpha: float = 0.3,
    causal: bool = True,
    placement: str = "window",
    residual: str = "graph",
) -> Any:
    B, T, D = x.shape
    found = _scales(steps, x, len(w.graphs))
    a, mixed, out = steps.shares(found.amplitudes), x, 0.0
    for i, s in enumerate(found.periods.tolist()):
        if placement == "window":
            mixed = _graph(steps, steps.following(x, mixed), w.graphs[i], depth, alpha)
            z = _segments(steps, mixed, s)
        else:
            z = _graph(steps, _segments(steps, x, s), w.graphs[i], depth, alpha)
        z = _attention(steps, z, w.attention, n_heads, causal)
        z = steps.bent(steps.standardise(z) * w.norm_w + w.norm_b)
        out = out + a[:, i, None, None] * z.reshape(B, -1, D)[:, :T]
    return out + (steps.rest(x, mixed) if residual == "graph" else x)


def _embedded(steps: Steps, x: Any, w: Any, marks: Any) -> Any:
    e = w.positions + sum(steps.neighbour(x, j) @ w.conv[:, :, j].T for j in range(3))
    if marks is None:
        return e
    if not isinstance(w.marks, tuple):
        return e + marks @ w.marks.T
    return e + sum(w.marks[c][steps.row(marks[..., c])] for c in range(len(w.marks)))


def forecast(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `msgnet_forecast` with these steps exchanged."""
    steps = Steps(**changes)

    def msgnet_forecast(x: Any, weights: Any, marks: Any = None, **options: Any) -> Any:
        mu, sd = x.mean(axis=1, keepdims=True), steps.deviation(x)
        e = _embedded(steps, (x - mu) / sd, weights.embedding, marks)
        for w in weights.blocks:
            out = _block(steps, e, w, **options)
            e = steps.after(out, steps.standardise(out) * weights.norm_w + weights.norm_b)
        head, N = weights.head, x.shape[2]
        series = e @ head.series_w.T + head.series_b
        own = head.time_w.ndim == 3
        coming = [
            series[..., n] @ (steps.map_of(head.time_w, n) if own else head.time_w).T
            + (head.time_b[n] if own else head.time_b)
            for n in range(N)
        ]
        return steps.restored(np.stack(coming, axis=-1), sd, mu)

    return msgnet_forecast


def block(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `scale_graph_block` with these steps exchanged."""
    steps = Steps(**changes)
    return lambda x, weights, **options: _block(steps, x, weights, **options)


def scales(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `identify_scales` with these steps exchanged."""
    steps = Steps(**changes)
    return lambda x, *, k: _scales(steps, x, k)


def attention(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `segment_attention` with these steps exchanged."""
    steps = Steps(**changes)
    return lambda z, weights, *, n_heads, causal=True: _attention(steps, z, weights, n_heads, causal)


def graph(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `graph_block` with these steps exchanged."""
    steps = Steps(**changes)
    return lambda x, weights, *, depth=2, alpha=0.3: _graph(steps, x, weights, depth, alpha)


def mixhop(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `mixhop_propagate` with these steps exchanged."""
    steps = Steps(**changes)
    return lambda h0, adjacency, *, depth=2, alpha=0.3: _hops(steps, h0, adjacency, depth, alpha)


def adjacency(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `adaptive_adjacency` with these steps exchanged."""
    steps = Steps(**changes)
    return lambda e1, e2: steps.edges(steps.common(e1, e2))
