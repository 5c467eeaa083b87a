"""TC-LLaVA at laptop scale: what the frame-wise mask is for, what γ does to positions, and what both cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from claims import Claim, main

from refattn.layers.tc_llava import (
    TCAttentionWeights,
    VisualSegment,
    allowed_pairs,
    attention_cost,
    dual_positions,
    dual_rope_attention,
    frame_block_causal_mask,
    frame_ids,
    rope_rotate,
)
from refattn.layers.tc_llava_streaming import TCCache, tc_append
from refattn.primitives.rotary import rope_frequencies
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VARIANTS = ("causal", "fwbc", "full_visual")
NAMES = {"causal": "causal", "fwbc": "frame-wise", "full_visual": "full visual"}
COLOURS = {"causal": "#c8963e", "fwbc": "#3a9188", "full_visual": "#b5577a"}


def locked_attention(variant: str, payload: np.ndarray, n_frames: int, m: int, score: float = 8.0) -> np.ndarray:
    """Average payloads (B, N, C) with scores that prefer the token's own frame."""
    segments = [VisualSegment(0, n_frames, m)]
    frame = frame_ids(n_frames * m, segments)
    s = score * (frame[:, None] == frame)  # (N, N)
    return softmax(s, where=frame_block_causal_mask(n_frames * m, segments, variant=variant)) @ payload


def frame_mean_r2(
    variant: str, *, n_frames: int = 6, m: int = 4, sequences: int = 400, seed: int = 0
) -> tuple[np.ndarray, float]:
    """Read the mean payload of its frame out of every token, linearly.

    Returns
    -------
    r2 : ndarray, shape (m,)
        Test R² by place in the frame, averaged over frames.
    leak : float
        The largest change in frames 0 to 2 when frame 3 changes.
    """
    rng = np.random.default_rng(seed)
    payload = rng.standard_normal((sequences, n_frames * m, 3))
    out = locked_attention(variant, payload, n_frames, m)
    target = payload.reshape(sequences, n_frames, m, 3).mean(2).repeat(m, axis=1)  # (B, N, 3)
    train, test = slice(sequences // 2), slice(sequences // 2, None)
    r2 = []
    for n in range(n_frames * m):
        inputs = np.concatenate([out[:, n], np.ones((sequences, 1))], axis=-1)
        read = np.linalg.lstsq(inputs[train], target[train, n], rcond=None)[0]
        rest = target[test, n] - inputs[test] @ read
        spread = target[test, n] - target[test, n].mean(0)
        r2.append(1.0 - np.sum(rest**2) / np.sum(spread**2))
    changed = payload.copy()
    changed[:, 3 * m : 4 * m] = rng.standard_normal((sequences, m, 3))
    leak = np.abs(locked_attention(variant, changed, n_frames, m) - out)[:, : 3 * m].max()
    return np.reshape(r2, (n_frames, m)).mean(0), float(leak)


def block_mask_claims() -> list[Claim]:
    """Compare what each mask lets a token know of its own frame, and of later ones."""
    found = {variant: frame_mean_r2(variant) for variant in VARIANTS}
    r2 = {variant: float(r.mean()) for variant, (r, _) in found.items()}
    leak = {variant: value for variant, (_, value) in found.items()}
    seen = abs(r2["causal"] - 0.625) < 0.05 and min(r2["fwbc"], r2["full_visual"]) > 0.999
    kept = leak["causal"] == leak["fwbc"] == 0.0 < leak["full_visual"]
    return [
        Claim(
            "E1 what a patch knows of its own picture",
            "Under the causal mask a token reads (i + 1)/m of its frame; open frames let it read all.",
            "R² = (m + 1)/(2m) = 0.625 causal, 1 frame-wise, 1 full (derived)",
            ", ".join(f"{NAMES[v]} {r2[v]:.3f}" for v in VARIANTS)
            + "; causal by place in the frame "
            + " ".join(f"{x:.2f}" for x in found["causal"][0]),
            "reproduced" if seen else "not reproduced",
        ),
        Claim(
            "E1 what leaks from the future",
            "Changing frame 3 changes nothing in frames 0 to 2 but under the full visual mask.",
            "0 causal, 0 frame-wise, more than 0 full",
            ", ".join(f"{NAMES[v]} {leak[v]:.1e}" for v in VARIANTS),
            "reproduced" if kept else "not reproduced",
        ),
    ]


def frame_index_r2(gamma: float, n_frames: int, m: int) -> float:
    """Return R² of the best line from the position p(n) to the frame index."""
    p = dual_positions(n_frames * m, [(0, n_frames, m)], gamma=gamma)
    return float(np.corrcoef(p, np.arange(n_frames).repeat(m))[0, 1] ** 2)


def frame_index_formula(gamma: float, n_frames: int, m: int) -> float:
    """Return the same R² in closed form."""
    between = (m + gamma) ** 2 * (n_frames**2 - 1)
    return between / (between + m**2 - 1)


def phase_contrast(gamma: float, m: int = 16) -> float:
    """Return how much further the slowest channel turns across a frame border than inside a frame."""
    slowest = rope_frequencies(64)[0][-1:]
    turned = np.diff(dual_positions(2 * m, [(0, 2, m)], gamma=gamma)) * slowest
    return float(turned[m - 1] / turned[0])


def gamma_claims() -> list[Claim]:
    """Measure what γ does to positions, against the closed forms."""
    gammas = (0, 1, 4, 16, 64)
    measured = [frame_index_r2(g, 4, 16) for g in gammas]
    error = max(abs(r - frame_index_formula(g, 4, 16)) for r, g in zip(measured, gammas, strict=True))
    steps = [phase_contrast(g) for g in (0, 1, 4, 16)]
    return [
        Claim(
            "E2 positions tell frames apart",
            "The larger γ, the better a line predicts the frame from the position (F = 4, m = 16).",
            "0.93773, 0.94444, 0.95923, 0.98367, 0.99735 for γ = 0, 1, 4, 16, 64 (derived)",
            ", ".join(f"{r:.5f}" for r in measured) + f"; formula off by {error:.0e}",
            "reproduced" if error < 1e-12 else "not reproduced",
        ),
        Claim(
            "E3 a frame border is a longer step",
            "A slow channel turns 1 + γ times as far across a frame border as between two patches.",
            "1, 2, 5, 17 for γ = 0, 1, 4, 16 (derived)",
            ", ".join(f"{s:.3f}" for s in steps),
            "reproduced" if np.allclose(steps, [1, 2, 5, 17], atol=1e-9) else "not reproduced",
        ),
    ]


def ridge_hits(features: np.ndarray, sign: np.ndarray, penalty: float) -> np.ndarray:
    """Fit a sign by ridge regression on the first half of the sequences; hits on the second half."""
    half = len(sign) // 2
    z = np.concatenate([features, np.ones((len(sign), 1))], axis=-1)
    gram = z[:half].T @ z[:half] + penalty * np.eye(z.shape[1])
    read = np.linalg.solve(gram, z[:half].T @ sign[:half])
    return np.sign(z[half:] @ read) == sign[half:]


def last_patch_accuracy(variant: str, sequences: int, *, n_frames: int, m: int) -> tuple[float, float]:
    """Let every token guess a sign that only the last patch of its frame carries, through random heads.

    Returns
    -------
    earlier, last : float
        Accuracy of the tokens before the last patch, and of the last patch itself.
    """
    rng = np.random.default_rng(0)
    H, D, N = 8, 64, n_frames * m
    sign = rng.choice([-1.0, 1.0], size=(sequences, n_frames))
    x = 0.3 * rng.standard_normal((sequences, N, D))
    x[..., 0] = 1.0
    x[:, m - 1 :: m, 1], x[:, m - 1 :: m, 2] = 4.0, 4.0 * sign
    weights = TCAttentionWeights(*(0.5 * rng.standard_normal((3, D, D))), np.eye(D))
    out = dual_rope_attention(x, weights, [(0, n_frames, m)], n_heads=H, gamma=float(m), variant=variant)
    hits = [ridge_hits(out[:, n], sign[:, n // m], 30.0).mean() for n in range(N)]
    by_place = np.reshape(hits, (n_frames, m))
    return float(by_place[:, :-1].mean()), float(by_place[:, -1].mean())


def order_hits(
    gamma: float, *, sequences: int, layers: int, n_frames: int = 8, m: int = 16, seed: int = 1
) -> np.ndarray:
    """Let a question after a video guess which of two events came first, through random heads; hits by sequence."""
    rng = np.random.default_rng(seed)
    H, D, N = 4, 32, n_frames * m + 1
    segments, B = [VisualSegment(0, n_frames, m)], np.arange(sequences)
    frames = rng.permuted(np.tile(np.arange(n_frames), (sequences, 1)), axis=1)[:, :2]
    x = 0.3 * rng.standard_normal((sequences, N, D))
    x[..., :4] = 0.0, 0.0, 0.0, 1.0
    for event in (0, 1):
        x[B, frames[:, event] * m + rng.integers(m, size=sequences), event] = 5.0
    x[:, -1] = 5.0 * (np.arange(D) == 2)
    p = dual_positions(N, segments, gamma=gamma)
    features = []
    for _ in range(layers):
        w = TCAttentionWeights(*(0.5 * rng.standard_normal((3, D, D))), np.eye(D))
        k, v = (np.swapaxes((x[:, :-1] @ t).reshape(sequences, N - 1, H, D // H), 1, 2) for t in (w.wk, w.wv))
        cache = TCCache(rope_rotate(k, p[:-1]), v)
        features.append(tc_append(x[:, -1:], cache, w, segments, n_heads=H, gamma=gamma)[0][:, 0])
    z = np.concatenate(features, axis=-1)
    return ridge_hits((z - z.mean(0)) / z.std(0), np.sign(frames[:, 1] - frames[:, 0]).astype(float), 1000.0)


def learning_claims(*, quick: bool) -> list[Claim]:
    """Ridge regression on random heads: the order of two events, and a sign that only the last patch carries."""
    n, n_frames, m = (300, 4, 4) if quick else (160, 8, 16)
    guesses = {variant: last_patch_accuracy(variant, n, n_frames=n_frames, m=m) for variant in VARIANTS}
    chance = 0.5 + 3 * 0.5 / np.sqrt(n // 2 * n_frames)
    earlier = {variant: guess[0] for variant, guess in guesses.items()}
    holds = earlier["causal"] <= chance < earlier["fwbc"]
    size = {"sequences": 100, "layers": 4} if quick else {"sequences": 1200, "layers": 24}
    seeds = (1,) if quick else (1, 2, 3)
    hits = {g: np.concatenate([order_hits(g, **size, seed=seed) for seed in seeds]) for g in (0.0, 1.0, 16.0)}
    gain = hits[16.0].astype(float) - hits[0.0]
    z = float(gain.mean() / (gain.std() / np.sqrt(gain.size) + 1e-12))
    return [
        Claim(
            "E4 a later patch of the same frame",
            "A sign that only a frame's last patch carries reaches its earlier patches through an open frame, "
            "never through the causal mask.",
            "both parts help (abstract); causal at most chance + 3σ",
            ", ".join(f"{NAMES[v]} {earlier[v]:.3f}" for v in VARIANTS)
            + f" before the last patch (chance + 3σ = {chance:.3f}); last patch itself {guesses['causal'][1]:.2f}",
            "reproduced" if holds else "not reproduced",
        ),
        Claim(
            "E4 which event came first",
            "Times in the positions help a question after the video to tell the order of two events (F = 8, m = 16).",
            "both parts help (abstract); no number available",
            ", ".join(f"γ = {g:g}: {h.mean():.3f}" for g, h in hits.items())
            + f" (γ = 16 against 0: {gain.mean():+.3f}, {z:+.1f} standard errors)",
            "reproduced" if z > 2 else "not reproduced",
        ),
    ]


def seconds(length: int, repeats: int) -> float:
    """Return the shortest processor time of one pass over ``length`` tokens."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, length, 16))
    weights = TCAttentionWeights(*rng.standard_normal((4, 16, 16)))
    best = np.inf
    for _ in range(repeats):
        begin = time.process_time()  # of this process, whatever else the machine does
        dual_rope_attention(x, weights, [(0, length // 64, 64)], n_heads=1)
        best = min(best, time.process_time() - begin)
    return best


def cost_claims(*, quick: bool) -> list[Claim]:
    """Count allowed pairs, and measure how time grows with the length."""
    short, long = (256, 1024) if quick else (512, 2048)
    exponent = np.log(seconds(long, 3) / seconds(short, 5)) / np.log(long / short)
    m, frames = 144, (2, 8, 32)
    extra = [
        allowed_pairs(f * m, [(0, f, m)]) / allowed_pairs(f * m, [(0, f, m)], variant="causal") - 1.0 for f in frames
    ]
    operations = sum(attention_cost(1, long, 16, 1)[:2])
    return [
        Claim(
            "open frames cost nothing in long videos",
            "The frame-wise mask adds F·m(m − 1)/2 pairs to the causal N(N + 1)/2: about (m − 1)/N more.",
            "(m − 1)/N → 0: " + ", ".join(f"{(m - 1) / (f * m):.3f}" for f in frames) + f" for F = {frames}, m = {m}",
            ", ".join(f"{e:.3f}" for e in extra),
            "reproduced" if np.allclose(extra, [(m - 1) / (f * m) for f in frames], rtol=0.01) else "not reproduced",
        ),
        Claim(
            "the dense layer is quadratic",
            f"Processor time from {short} to {long} tokens grows with the square of the length.",
            "exponent 2",
            f"exponent {exponent:.2f} in this run; {operations:.1e} operations at {long} tokens",
            "reproduced" if 1.6 < exponent < 2.6 else "not reproduced",
        ),
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    benchmarks = Claim(
        "video benchmarks",
        "Supervised fine-tuning with both parts reaches the state of the art on video understanding benchmarks.",
        "claimed in the abstract",
        "needs a 7-billion-parameter model and its data",
        "not comparable",
    )
    return [*block_mask_claims(), *gamma_claims(), *learning_claims(quick=quick), *cost_claims(quick=quick), benchmarks]


def draw_staircase(axes: Axes) -> None:
    """Draw p(n) for three γ over a text, a video and a text."""
    length, (start, n_frames, m) = 30, (5, 4, 5)
    for f in range(n_frames):
        axes.axvspan(start + f * m - 0.5, start + (f + 1) * m - 0.5, color="#7f8fa6", alpha=0.10 + 0.12 * (f % 2), lw=0)
        middle = start + f * m + (m - 1) / 2
        axes.text(middle, 84, f"frame {f}", ha="center", va="top", color="#7f8fa6", fontsize=8)
    for gamma, colour in ((4.0, "#b5577a"), (1.0, "#3a9188"), (0.0, "#7f8fa6")):
        p = dual_positions(length, [(start, n_frames, m)], gamma=gamma)
        axes.plot(p, "o-", ms=3, lw=1.2, color=colour, label=f"γ = {gamma:g}")
    axes.set(xlabel="place n", ylabel="position p(n) = n + γ T(n)", title="Two clocks: text ticks, a frame ticks once")
    axes.set_ylim(-3, 87)
    axes.legend(frameon=False, loc="upper left", labelcolor="linecolor")


def draw_mask(axes: Axes, variant: str) -> None:
    """Draw one mask, what it adds to the causal one in colour."""
    length, segments = 18, [(3, 3, 4)]
    causal = frame_block_causal_mask(length, segments, variant="causal")
    added = frame_block_causal_mask(length, segments, variant=variant) & ~causal
    for allowed, colour, alpha in ((causal, "#7f8fa6", 0.55), (added, COLOURS[variant], 0.95)):
        for i, j in np.argwhere(allowed):
            axes.add_patch(_square(j, i, colour, alpha))
    pairs = allowed_pairs(length, segments, variant=variant)
    axes.set(xlim=(-0.6, length - 0.4), ylim=(length - 0.4, -0.6), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"{NAMES[variant]}: {pairs} pairs", color=COLOURS[variant], fontsize=10)
    axes.set_xlabel("key", fontsize=8)
    axes.set_ylabel("query", fontsize=8)


def _square(x: float, y: float, colour: str, alpha: float) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.43, y - 0.43), 0.86, 0.86, facecolor=colour, alpha=alpha, lw=0)


def draw_knowledge(axes: Axes) -> None:
    """Draw experiment E1: how much of its frame each token knows."""
    for variant, size in (("full_visual", 11), ("fwbc", 6), ("causal", 6)):
        r2, leak = frame_mean_r2(variant)
        label = f"{NAMES[variant]}: {'sees the future' if leak else 'does not see the future'}"
        marks = {"ms": size, "mfc": "none" if leak else COLOURS[variant], "mew": 1.5}
        axes.plot(range(1, len(r2) + 1), r2, "o-", **marks, color=COLOURS[variant], label=label)
    axes.set(xlabel="place of the token in its frame", ylabel="R²", ylim=(0, 1.12), xticks=range(1, 5))
    axes.set_title("What a patch knows of its own picture", fontsize=10)
    axes.legend(frameon=False, loc="lower right", fontsize=8, labelcolor="linecolor")


def draw_gamma(axes: Axes) -> None:
    """Draw experiment E2: how well positions predict the frame."""
    gammas = np.linspace(0, 64, 200)
    for m, colour in ((4, "#c8963e"), (16, "#3a9188"), (64, "#b5577a")):
        axes.plot(gammas, [frame_index_formula(g, 4, m) for g in gammas], color=colour, label=f"m = {m}")
        marks = np.array([0, 1, 4, 16, 32, 64])
        axes.plot(marks, [frame_index_r2(g, 4, m) for g in marks], "o", ms=4, color=colour)
    axes.set(xlabel="γ", ylabel="R² of frame from p(n)", ylim=(0.93, 1.003))
    axes.set_title("How well positions tell frames apart", fontsize=10)
    axes.legend(frameon=False, loc="lower right", fontsize=8, labelcolor="linecolor")


def figure(quick: bool) -> Figure:
    """Draw the two clocks, the three masks, and what they let a token know.

    Top: the position p(n) over a text, a video of four frames and a text, for three γ; and how much of the mean of its
    frame a token holds under each mask (experiment E1). Bottom: the masks for three words, three frames of four patches
    and three words, in colour what each adds to the causal one; and how well positions tell frames apart (experiment
    E2: lines are the formula, dots are measured).
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    del quick
    neutral = "#7f8fa6"  # readable on white and on black
    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), neutral)
    with mpl.rc_context({**colours, "xtick.color": neutral, "ytick.color": neutral, "font.size": 9}):
        drawing = Figure(figsize=(11, 7.4), layout="constrained")
        top, bottom = drawing.subfigures(2, 1, height_ratios=(1, 1), hspace=0.04)
        grid = top.subplots(1, 2, width_ratios=(1.5, 1))
        draw_staircase(grid[0])
        draw_knowledge(grid[1])
        grid = bottom.subplots(1, 4, width_ratios=(1, 1, 1, 1.15))
        for axes, variant in zip(grid, VARIANTS, strict=False):
            draw_mask(axes, variant)
        draw_gamma(grid[3])
        for part in drawing.get_axes():
            part.spines[["top", "right"]].set_visible(False)
    return drawing


if __name__ == "__main__":
    main("tc_llava", claims, figure)
