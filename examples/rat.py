"""RAT at laptop scale: where seven- and ninefold speed come from, and what a chunk forgets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from claims import Claim, main

from refattn.backends.portable import rat as portable
from refattn.layers.rat import rat_layer
from refattn.layers.rat_attention import chunk_attention
from refattn.layers.rat_cost import (
    attention_cache_size,
    attention_flops,
    attention_step_bytes,
    flop_crossover,
    rat_cache_size,
    rat_flops,
    rat_step_bytes,
)
from refattn.layers.rat_decode import rat_init_cache
from refattn.layers.rat_init import init_rat_weights
from refattn.layers.rat_mixing import rat_mixing_matrix
from refattn.primitives.scan import gated_scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = {"d_model": 2048, "head_dim": 128}  # the 1.3-billion model; two groups, chunks of 16
CHUNK = 16
NEUTRAL, ATTENTION, RAT, RNN = "#7f8fa6", "#c8963e", "#3a9188", "#b5577a"


def cost_claims() -> list[Claim]:
    """Count operations and bytes of one layer at the paper's sizes."""
    lengths = (4096, 100_000, 131_072)
    flops = [float(attention_flops(T, d_model=2048) / rat_flops(T, **PAPER)) for T in lengths]
    batches = (1, 64, 512)
    moved = [
        float(attention_step_bytes(4096, d_model=2048, batch=B) / rat_step_bytes(4096, **PAPER, batch=B))
        for B in batches
    ]
    window = attention_cache_size(4096, d_model=2048, window=1024)
    hybrid = (attention_cache_size(4096, d_model=2048) + window) / (rat_cache_size(4096, d_model=2048) + window)
    return [
        Claim(
            "(a) seven times faster training at 100,000 tokens",
            "The operations of one layer alone, projections included, explain the factor.",
            "7× measured on GPUs (abstract)",
            ", ".join(f"{r:.2f} at T = {T:,}" for r, T in zip(flops, lengths, strict=True))
            + f"; equal at T = {flop_crossover(head_dim=128):.0f}",
            "reproduced" if 7.0 <= flops[1] <= 7.5 else "not reproduced",
        ),
        Claim(
            "(b) nine times faster generation at position 4096",
            "A step must read weights and cache once; the bytes allow more than the factor for large batches.",
            "9× measured on GPUs (abstract)",
            ", ".join(f"{r:.1f} for batch {B}" for r, B in zip(moved, batches, strict=True))
            + " (bytes, 16-bit numbers)",
            "reproduced" if min(moved[1:]) >= 9.0 else "not reproduced",
        ),
        Claim(
            "(b) the hybrid with a window of 1024",
            "RAT-16 and windowed attention in turns keep a quarter of the cache of attention and windows.",
            "4.0 (derived); throughput gains 2.95× in a figure of the authors",
            f"cache {float(hybrid):.2f} times smaller at 4096",
            "reproduced" if abs(hybrid - 4.0) < 0.02 else "not reproduced",
        ),
    ]


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the shortest processor time of some runs, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        begin = time.process_time()  # of this process, whatever else the machine does
        function()
        times.append(time.process_time() - begin)
    return min(times[1:])


def blocked_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, block: int = 512) -> np.ndarray:
    """Causal attention in blocks of queries that skip all later keys: the fair rival."""
    out, k_t = np.empty_like(q), np.ascontiguousarray(np.swapaxes(k, -1, -2))
    for begin in range(0, q.shape[-2], block):
        end = min(begin + block, q.shape[-2])
        s = (q[..., begin:end, :] / np.sqrt(np.float32(q.shape[-1]))) @ k_t[..., :end]
        s[..., begin:] = np.where(np.tri(end - begin, dtype=bool), s[..., begin:], -np.inf)
        np.exp(s - s.max(axis=-1, keepdims=True), out=s)
        out[..., begin:end, :] = s @ v[..., :end, :] / s.sum(axis=-1, keepdims=True)
    return out


def prefill_seconds(length: int, repeats: int) -> tuple[float, float]:
    """Time attention and RAT-16 without projections: two heads of 64, float32."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 2, length, 64)).astype(np.float32)
    gate = rng.random(q.shape).astype(np.float32)

    def rat() -> Any:
        states = portable.gated_scan(gate[None], np.stack([k, v]), chunk_size=CHUNK)
        return portable.chunk_attention(q, states[0], states[1], chunk_size=CHUNK)

    return seconds(lambda: blocked_attention(q, k, v), repeats), seconds(rat, repeats)


def attend_one(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attend with one query to a cache."""
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(np.float32(q.shape[-1]))  # (B, H, 1, S)
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e @ v / e.sum(axis=-1, keepdims=True)


def decode_seconds(length: int, repeats: int) -> tuple[float, float]:
    """Time one step of each at the end of ``length`` tokens: four sequences, four heads of 64, float32."""
    rng = np.random.default_rng(0)
    shape = (4, 4, 1, 64)
    q, k, v, gate, k_last, v_last = rng.standard_normal((6, *shape)).astype(np.float32)
    keys, values = rng.standard_normal((2, 4, 4, length, 64)).astype(np.float32)
    k_mem, v_mem = keys[:, :, : length // CHUNK].copy(), values[:, :, : length // CHUNK].copy()

    def attention() -> np.ndarray:
        keys[:, :, -1:], values[:, :, -1:] = k, v
        return attend_one(q, keys, values)

    def rat() -> np.ndarray:
        k_mem[:, :, -1:] = gate * k_last + (1 - gate) * k
        v_mem[:, :, -1:] = gate * v_last + (1 - gate) * v
        return attend_one(q, k_mem, v_mem)

    def many(step: Callable[[], np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(10):
                step()

        return run

    return seconds(many(attention), repeats), seconds(many(rat), repeats)


def clock_claims(*, quick: bool) -> list[Claim]:
    """Measure ratios of processor time in this run."""
    lengths = (1024, 2048) if quick else (2048, 4096, 8192, 16384)
    found = [prefill_seconds(T, 2) for T in lengths]
    ratios = [a / r for a, r in found]
    slope = float(np.polyfit(np.log(lengths), np.log([a for a, _ in found]), 1)[0])
    positions = (1024,) if quick else (1024, 4096, 16384)
    decoded = {T: np.divide(*decode_seconds(T, 2 if quick else 5)) for T in positions}
    listed = ", ".join(f"{r:.1f} at T = {T}" for r, T in zip(ratios, lengths, strict=True))
    return [
        Claim(
            "(c) prefill in NumPy",
            "Recurrence and attention across chunks take a fraction of the time of full attention, growing with T.",
            "attention / RAT-16 at least 6 at T = 8192; attention quadratic (our criterion)",
            f"{listed}; attention grows as T^{slope:.2f}",
            _verdict(quick=quick, holds=ratios[-1 if quick else 2] >= 6 and 1.7 <= slope <= 2.3),
        ),
        Claim(
            "(c) decoding in NumPy",
            "Projections and rotations aside, a step over a slot a chunk costs a fraction of one over a slot a token.",
            "attention / RAT-16 at least 6 at T = 4096 (our criterion)",
            ", ".join(f"{r:.1f} at T = {T}" for T, r in decoded.items()),
            _verdict(quick=quick, holds=decoded.get(4096, 0.0) >= 6),
        ),
    ]


def _verdict(*, quick: bool, holds: bool) -> str:
    """Return the verdict of a clock; the sizes of a quick run say nothing."""
    if quick:
        return "not comparable"
    return "reproduced" if holds else "not reproduced"


def recall(chunk_size: int, per_chunk: int, trials: int, *, seed: int = 0, whole: bool = False) -> float:
    """Ask for one of the pairs that 16 stretches of 16 tokens hold; the share of right answers, without training.

    Each stretch holds ``per_chunk`` pairs at random places: keys are different one-hot vectors, values any of 64. The
    gate is 0 where a pair stands and 1 elsewhere, so that a state keeps the latest pair. The query is a stored key
    times 30, one token later; ``whole`` puts it in the same chunk as everything before: a recurrent network.
    """
    rng = np.random.default_rng(seed)
    tokens, width, batch, hits = 256, 64, 100, 0
    for start in range(0, trials, batch):
        n = min(batch, trials - start)
        inside = rng.permuted(np.tile(np.arange(16), (n, 16, 1)), axis=-1)[..., :per_chunk]  # (n, 16, p)
        places = (inside + 16 * np.arange(16)[:, None]).reshape(n, -1)  # (n, pairs)
        keys = rng.permuted(np.tile(np.arange(width), (n, 1)), axis=-1)[:, : places.shape[1]]
        values, row = rng.integers(width, size=places.shape), np.arange(n)[:, None]
        length = tokens + (1 if whole else chunk_size)
        k, v, q, gate = (np.zeros((n, 1, length, width), np.float32) for _ in range(4))
        gate += 1.0
        gate[row, 0, places] = 0.0
        k[row, 0, places, keys], v[row, 0, places, values] = 1.0, 1.0
        asked = rng.integers(places.shape[1], size=n)
        q[np.arange(n), 0, tokens, keys[np.arange(n), asked]] = 30.0
        size = length if whole else chunk_size
        k, v = (gated_scan(gate, a, chunk_size=size) for a in (k, v))
        out = chunk_attention(q, k, v, chunk_size=size, rope_base=None)[:, 0, tokens]
        hits += int(np.sum(out.argmax(axis=-1) == values[np.arange(n), asked]))
    return hits / trials


def recall_claims(*, quick: bool) -> list[Claim]:
    """Measure what chunks forget."""
    trials = 100 if quick else 1000
    found = {
        "attention, p = 1": recall(1, 1, trials),
        "RAT-16, p = 1": recall(16, 1, trials),
        "RAT-16, p = 2": recall(16, 2, trials),
        "RAT-16, p = 4": recall(16, 4, trials),
        "RNN, p = 1": recall(16, 1, trials, whole=True),
    }
    attention, one, two, four, rnn = found.values()
    spread = 3 * 0.5 / np.sqrt(trials)
    holds = attention == 1 and one == 1 and abs(two - 0.5) < 0.05 + spread and abs(four - 0.25) < 0.05 + spread
    return [
        Claim(
            "(d) memory degrades inside a chunk only",
            "With p pairs in each chunk of 16, attention finds all, RAT-16 one in p, an RNN only the last of all.",
            "1, then about 1/p, then at most 0.1 (derived)",
            ", ".join(f"{name}: {share:.3f}" for name, share in found.items()) + f" ({trials} trials)",
            "reproduced" if holds and rnn <= 0.1 + spread else "not reproduced",
        )
    ]


def interpolation(length: int) -> dict[int, tuple[int, float, float]]:
    """Vary L over the divisors of ``length`` in one random layer: cache, operations, distance to L = 1."""
    rng = np.random.default_rng(0)
    weights = init_rat_weights(rng, 32, num_heads=4, chunk_size=16)
    weights = weights._replace(w_in=20 * weights.w_in, w_out=20 * weights.w_out)
    x = rng.standard_normal((1, length, 32))
    found, first = {}, rat_layer(x, weights, num_heads=4, chunk_size=1)
    for chunk_size in (L for L in range(1, length + 1) if length % L == 0):
        y = rat_layer(x, weights, num_heads=4, chunk_size=chunk_size)
        cache = rat_init_cache(1, length, 32, num_heads=4, chunk_size=chunk_size)
        flops = float(rat_flops(length, d_model=32, head_dim=8, chunk_size=chunk_size))
        distance = float(np.linalg.norm(y - first) / np.linalg.norm(first - x))
        found[chunk_size] = (cache.k_mem.size + cache.v_mem.size, flops, distance)
    return found


def interpolation_claims(*, quick: bool) -> list[Claim]:
    """Walk from attention to the recurrent network."""
    length = 64 if quick else 256
    found = interpolation(length)
    cache, distance = [f[0] for f in found.values()], [f[2] for f in found.values()]
    exact = all(size * L == cache[0] for L, size in zip(found, cache, strict=True))
    return [
        Claim(
            "(e) one knob from attention to recurrence",
            f"Over all divisors L of T = {length}, the memories shrink exactly as 1/L.",
            "cache strictly ∝ 1/L (derived)",
            f"{cache[0]} numbers at L = 1, {cache[-1]} at L = {length}; change of output against L = 1: "
            + ", ".join(f"{d:.2f} at L = {L}" for L, d in list(zip(found, distance, strict=True))[1::2]),
            "reproduced" if exact else "not reproduced",
        )
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    quality = Claim(
        "quality at 1.3 billion weights",
        "RAT-16 comes close to attention, and the hybrid with windows matches or beats it.",
        "perplexity 7.61 attention, 7.67 RAT-16, 7.57 hybrid (figure of the authors)",
        "needs 1.3 billion weights and their training data",
        "not comparable",
    )
    return [
        *cost_claims(),
        *clock_claims(quick=quick),
        *recall_claims(quick=quick),
        *interpolation_claims(quick=quick),
        quality,
    ]


def mixing(chunk_size: int, length: int = 24) -> np.ndarray:
    """Return how much of each value is in each output of a random layer, averaged over channels: (T, T)."""
    rng = np.random.default_rng(4)
    weights = init_rat_weights(rng, 32, num_heads=4)
    weights = weights._replace(w_in=12 * weights.w_in, gate_bias=np.full(32, np.log(3.0)))
    x = rng.standard_normal((1, length, 32))
    _, aux = rat_layer(x, weights, num_heads=4, chunk_size=chunk_size, return_aux=True)
    return rat_mixing_matrix(aux.gate, aux.attn, chunk_size=chunk_size)[0].mean(axis=-1)


def draw_mixing(axes: Axes, chunk_size: int, title: str, colour: str) -> None:
    """Draw the token mixing; what is zero stays open."""
    from matplotlib.colors import to_rgb

    m = mixing(chunk_size)
    length = len(m)
    image = np.zeros((length, length, 4))
    image[..., :3] = to_rgb(colour)
    image[..., 3] = np.minimum(1.0, (m / np.quantile(m[m > 0], 0.97)) ** 0.6)
    axes.imshow(image, interpolation="nearest")
    for border in range(chunk_size, length, chunk_size) if chunk_size > 1 else ():
        axes.plot([border - 0.5] * 2, [border - 0.5, length - 0.5], color=NEUTRAL, lw=0.6, alpha=0.7)
        axes.plot([-0.5, border - 0.5], [border - 0.5] * 2, color=NEUTRAL, lw=0.6, alpha=0.7)
    axes.plot([-0.5, length - 0.5], [-0.5, length - 0.5], color=NEUTRAL, lw=0.6)
    axes.set(xticks=[], yticks=[], xlabel="value s", ylabel="output t")
    axes.set_title(title, color=colour, fontsize=10)
    axes.spines[["left", "bottom"]].set_visible(False)


def draw_recall(axes: Axes, trials: int) -> None:
    """Draw experiment (d) against the chunk size."""
    sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for per_chunk, colour in ((1, RAT), (2, ATTENTION), (4, RNN)):
        shares = [recall(L, per_chunk, trials) for L in sizes]
        axes.plot(sizes, shares, "o-", ms=4, color=colour, label=f"a pair every {16 // per_chunk} tokens")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="chunk size L", ylabel="pairs found", ylim=(0, 1.08), xticks=sizes[::2])
    axes.set_xticklabels([str(L) for L in sizes[::2]])
    axes.set_title("What a chunk forgets", fontsize=10)
    legend = axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="upper right", handletextpad=0)
    for handle in legend.legend_handles:
        handle.set_visible(False)  # coloured words are enough


def draw_operations(axes: Axes) -> None:
    """Draw operations of attention over those of RAT."""
    lengths = np.geomspace(100, 300_000, 200)
    for chunk_size, colour in ((4, RNN), (16, RAT), (64, ATTENTION)):
        ratio = attention_flops(lengths, d_model=2048) / rat_flops(lengths, **PAPER, chunk_size=chunk_size)
        axes.plot(lengths, ratio, color=colour, label=f"L = {chunk_size}")
    at = attention_flops(1e5, d_model=2048) / rat_flops(1e5, **PAPER)
    axes.plot([1e5], [at], "o", color=RAT)
    axes.annotate(f"{at:.2f}", (1e5, at), (6, -11), textcoords="offset points", color=RAT)
    axes.axhline(1, color=NEUTRAL, lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", xlabel="length T", ylabel="operations, attention / RAT")
    axes.set_yticks([1, 2, 4, 8, 16], [1, 2, 4, 8, 16])
    axes.minorticks_off()
    axes.set_title("Seven times fewer operations", fontsize=10)
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor")


def draw_cache(axes: Axes) -> None:
    """Draw how caches fill while tokens stream in."""
    tokens = np.arange(1, 97)
    slots = attention_cache_size(tokens, d_model=1) / 2
    axes.step(tokens, slots, where="post", color=ATTENTION, label="attention")
    for chunk_size, line in ((4, "--"), (16, "-")):
        slots = rat_cache_size(tokens, d_model=1, chunk_size=chunk_size) / 2 - 1
        axes.step(tokens, slots, where="post", color=RAT, ls=line, label=f"RAT-{chunk_size}")
    axes.plot(tokens, np.ones(len(tokens)), color=RNN, label="RNN")
    axes.set(xlabel="tokens so far", ylabel="slots in use", yscale="log", ylim=(0.8, 130))
    axes.set_yticks([1, 4, 16, 64], [1, 4, 16, 64])
    axes.minorticks_off()
    axes.set_title("A slot a chunk", fontsize=10)
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="upper left")


def figure(quick: bool) -> Figure:
    """Draw how tokens mix between recurrence and attention, and what that buys and costs.

    Top: the mixing matrix M of one random layer, averaged over channels, for one chunk (a recurrent network, one fading
    triangle), chunks of 8 and of 4 (fading inside a chunk, visible across), and chunks of one (attention). Below: pairs
    found in experiment (d), operations of attention over those of RAT at the paper's sizes, and slots in use while
    tokens stream in.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), NEUTRAL)
    with mpl.rc_context({**colours, "xtick.color": NEUTRAL, "ytick.color": NEUTRAL, "font.size": 9}):
        drawing = Figure(figsize=(11, 6.6), layout="constrained")
        top, bottom = drawing.subfigures(2, 1, height_ratios=(1, 1.05), hspace=0.04)
        panels = (
            (24, "one chunk: recurrence", RNN),
            (8, "chunks of 8", RAT),
            (4, "chunks of 4", RAT),
            (1, "chunks of 1: attention", ATTENTION),
        )
        for axes, (chunk_size, title, colour) in zip(top.subplots(1, 4), panels, strict=True):
            draw_mixing(axes, chunk_size, title, colour)
        left, middle, right = bottom.subplots(1, 3)
        draw_recall(left, 50 if quick else 400)
        draw_operations(middle)
        draw_cache(right)
        for axes in drawing.get_axes():
            axes.spines[["top", "right"]].set_visible(False)
    return drawing


if __name__ == "__main__":
    main("rat", claims, figure)
