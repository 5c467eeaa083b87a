"""A transformer taken apart: the residual stream as a ledger, rotation as distance, the cache as no approximation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from claims import Claim, main

from refattn.primitives.rotary import rope, rope_angles, rope_frequencies
from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward, log_softmax
from refattn.transformer.generation import generate
from refattn.transformer.processing import process_weights
from refattn.transformer.weights import Transformer, random_transformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEUTRAL, ATTENTION, MLP = "#7f8fa6", "#3a9188", "#c8963e"
CONFIGS = {
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 128, "vocab_size": 97},
    "llama": {
        "model_type": "llama",
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 97,
    },
}
SCALINGS = {
    "none": None,
    "linear": {"type": "linear", "factor": 4.0},
    "llama3": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max": 64},
}


def model(family: str) -> Transformer:
    """Return a random model of a family."""
    return random_transformer(parse_config(CONFIGS[family]), np.random.default_rng(0), scale=1.2)


def tokens(length: int, rows: int = 1) -> np.ndarray:
    """Return random tokens (rows, length)."""
    return np.random.default_rng(1).integers(0, 97, (rows, length))


def ledger(family: str, length: int) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """Return the last stream (T, d), and everything that was added to it, in order, with its name."""
    drawn = model(family)
    a = {name: value[0] for name, value in forward(drawn, tokens(length), names="all").activations.items()}
    entries = [("embedding", a["hook_embed"] + a.get("hook_pos_embed", 0.0))]
    for layer in range(drawn.config.n_layers):
        entries.append((f"attention {layer}", a[f"blocks.{layer}.hook_attn_out"]))
        entries.append((f"MLP {layer}", a[f"blocks.{layer}.hook_mlp_out"]))
    return a[f"blocks.{drawn.config.n_layers - 1}.hook_resid_post"], entries


def ledger_claim() -> Claim:
    """Add up what was written, for both families."""
    errors = {}
    for family in CONFIGS:
        final, entries = ledger(family, 12)
        errors[family] = np.abs(sum(value for _, value in entries) - final).max()
    return Claim(
        "the residual stream is a ledger",
        "The last stream is the embedding plus everything that attention and MLPs wrote, exactly.",
        "identity, 1e-12",
        ", ".join(f"{family} off by {error:.0e}" for family, error in errors.items()),
        "reproduced" if max(errors.values()) < 1e-12 else "not reproduced",
    )


def rotation_claim() -> Claim:
    """Shift a query and a key together under every rule for frequencies."""
    rng = np.random.default_rng(0)
    q, k = np.repeat(rng.standard_normal((2, 1, 32)), 40, axis=1)
    worst = {}
    for name, scaling in SCALINGS.items():
        freqs, _ = rope_frequencies(32, scaling=scaling)
        starts = np.arange(0, 2000, 50)
        turned = rope(q, rope_angles(starts + 7, freqs)), rope(k, rope_angles(starts, freqs))
        products = np.sum(turned[0] * turned[1], axis=-1)
        worst[name] = float(np.ptp(products))
    return Claim(
        "rotation knows distances only",
        "Moving a query and a key by the same number of places leaves their product as it is.",
        "identity, 1e-10",
        ", ".join(f"{name} {error:.0e}" for name, error in worst.items()),
        "reproduced" if max(worst.values()) < 1e-10 else "not reproduced",
    )


def cache_claim() -> Claim:
    """Decode with the cache and without, and compare logits and tokens."""
    errors, same = {}, True
    for family in CONFIGS:
        drawn, ids = model(family), tokens(40, 2)
        whole, first = forward(drawn, ids), forward(drawn, ids[:, :20])
        rest = forward(drawn, ids[:, 20:], cache=first.kv_cache)
        errors[family] = np.abs(rest.logits - whole.logits[:, 20:]).max()
        both = [generate(drawn, ids[:, :8], 24, use_cache=cached) for cached in (True, False)]
        same = same and np.array_equal(*both)
    return Claim(
        "the cache is no approximation",
        "Decoding with cached keys and values gives the logits and the greedy tokens of running everything again.",
        "1e-13 in float64",
        ", ".join(f"{family} {error:.0e}" for family, error in errors.items()) + f"; same tokens: {same}",
        "reproduced" if max(errors.values()) < 1e-12 and same else "not reproduced",
    )


def processing_claim() -> Claim:
    """Fold norms, centre weights, and compare log-probabilities."""
    errors = {}
    for family in CONFIGS:
        logits = [forward(m, tokens(16)).logits for m in (model(family), process_weights(model(family)))]
        errors[family] = np.abs(log_softmax(logits[0]) - log_softmax(logits[1])).max()
    return Claim(
        "processed weights are the same model",
        "Folding norms into the matrices that read them, and taking out means, leaves log-probabilities as they are.",
        "4e-14 with GPT-2",
        ", ".join(f"{family} {error:.0e}" for family, error in errors.items()),
        "reproduced" if max(errors.values()) < 1e-10 else "not reproduced",
    )


def seconds(length: int, width: int, repeats: int = 3) -> float:
    """Return the shortest processor time of a forward pass of one layer."""
    config = parse_config(
        {
            "model_type": "llama",
            "hidden_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 2 * width,
            "vocab_size": 97,
        }
    )
    drawn, ids, best = random_transformer(config, np.random.default_rng(0)), tokens(length), np.inf
    for _ in range(repeats):
        begin = time.process_time()
        forward(drawn, ids)
        best = min(best, time.process_time() - begin)
    return best


def cost_claim(*, quick: bool) -> Claim:
    """Measure how time grows with the length where attention dominates."""
    lengths = (512, 1024) if quick else (1024, 2048)
    slope = np.log(seconds(lengths[1], 32) / seconds(lengths[0], 32)) / np.log(2)
    return Claim(
        "attention costs the square of the length",
        f"Processor time of one narrow layer (d = 32) from {lengths[0]} to {lengths[1]} tokens.",
        "exponent 2, between 1.7 and 2.3",
        f"exponent {slope:.2f} in this run",
        "reproduced" if 1.7 <= slope <= 2.3 else "not reproduced",
    )


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    return [ledger_claim(), rotation_claim(), cache_claim(), processing_claim(), cost_claim(quick=quick)]


def draw_ledger(axes: Axes) -> None:
    """Draw what each part adds along the direction of the last stream, token by token."""
    final, entries = ledger("llama", 12)
    direction = final / np.linalg.norm(final, axis=-1, keepdims=True)
    base_up, base_down = np.zeros(len(final)), np.zeros(len(final))
    seen = set()
    for name, value in entries:
        share = np.sum(value * direction, axis=-1)  # (T,)
        kind = name.split()[0]
        layer = int(name.split()[1]) if " " in name else 0
        colour = {"embedding": NEUTRAL, "attention": ATTENTION, "MLP": MLP}[kind]
        base = np.where(share >= 0, base_up, base_down)
        label = None if kind in seen else kind
        axes.bar(
            np.arange(len(final)), share, bottom=base, color=colour, alpha=0.95 - 0.17 * layer, width=0.8, label=label
        )
        seen.add(kind)
        base_up, base_down = base_up + np.maximum(share, 0), base_down + np.minimum(share, 0)
    axes.plot(
        np.arange(len(final)), np.linalg.norm(final, axis=-1), "_", ms=18, mew=2, color="#b5577a", label="|last stream|"
    )
    axes.axhline(0, color=NEUTRAL, lw=0.6)
    axes.set(
        xlabel="token",
        ylabel="added along the last stream",
        title="The residual stream is a ledger (paler = later layer)",
    )
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="upper right", ncols=2)
    axes.set_ylim(top=1.3 * float(base_up.max()))


def draw_pair(axes: Axes, position: int) -> None:
    """Draw one channel pair of a query and a key, three places apart, at a position."""
    speed = 0.35
    for place, angle, colour, name in ((position, 0.2, "#b5577a", "q"), (position - 3, 0.3, ATTENTION, "k")):
        turned = angle + speed * place
        axes.annotate(
            "",
            xy=(np.cos(turned), np.sin(turned)),
            xytext=(0, 0),
            arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2},
        )
        axes.text(1.18 * np.cos(turned), 1.18 * np.sin(turned), name, color=colour, ha="center", va="center")
    axes.add_artist(_circle())
    product = np.cos((0.2 + speed * position) - (0.3 + speed * (position - 3)))
    axes.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"q at {position}, k at {position - 3}:  q·k = {product:.3f}", fontsize=9)
    axes.spines[:].set_visible(False)


def _circle() -> object:
    from matplotlib.patches import Circle

    return Circle((0, 0), 1.0, fill=False, color=NEUTRAL, lw=0.8, ls=":")


def draw_distance(axes: Axes) -> None:
    """Draw how the product of a query and a key depends on their distance, for slow and fast pairs."""
    distance = np.arange(0, 41)
    for speed, colour in ((0.02, NEUTRAL), (0.15, ATTENTION), (0.7, MLP)):
        axes.plot(distance, np.cos(speed * distance), ".-", ms=3, lw=1, color=colour, label=f"{speed:g} rad a place")
    axes.set(
        xlabel="distance between query and key",
        ylabel="q·k of one pair",
        title="A fast pair is a ruler, a slow one a compass",
    )
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="lower left", ncols=3)
    axes.set_ylim(-1.45, 1.1)


def figure(quick: bool) -> Figure:
    """Draw the ledger of the residual stream, and rotation as distance.

    Top: what the embedding, every attention and every MLP add to the last stream of each token, measured along that
    stream, so that the bars add up to its length. Bottom: one channel pair of a query and a key three places apart, at
    two positions, with the same product; and that product against the distance for pairs of three speeds.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    del quick
    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), NEUTRAL)
    with mpl.rc_context({**colours, "xtick.color": NEUTRAL, "ytick.color": NEUTRAL, "font.size": 9}):
        drawing = Figure(figsize=(10, 7), layout="constrained")
        top, bottom = drawing.subfigures(2, 1, height_ratios=(1.15, 1))
        draw_ledger(top.subplots())
        grid = bottom.subplots(1, 3, width_ratios=(1, 1, 1.6))
        draw_pair(grid[0], 4)
        draw_pair(grid[1], 13)
        draw_distance(grid[2])
        for axes in drawing.get_axes():
            axes.spines[["top", "right"]].set_visible(False)
    return drawing


if __name__ == "__main__":
    main("transformer", claims, figure)
