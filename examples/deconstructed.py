"""Attention taken apart, without training: what layers built by hand can do, and what their maps look like."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from claims import Claim, main

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from refattn.layers.deconstructed import FIXED, VARIANTS, AttentionWeights, apply_attention, attention_map
from refattn.layers.deconstructed_cost import flops
from refattn.layers.deconstructed_indicators import attention_indicators
from refattn.layers.deconstructed_init import init_attention
from refattn.layers.deconstructed_recurrent import approximate_recurrent, non_approximate_recurrent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, GREEN, RED, BLUE = "#7f8fa6", "#3a9188", "#b5577a", "#4a7fc1"
NAMES = ("standard", "mlp", "approximate", "non_approximate", "random_fixed", "text_fixed", "static_emb")
TASKS = ("this token", "previous token", "lookup", "lookup after previous")
KEYS = VALUES = 8
SYMBOLS = KEYS + VALUES
SHARP = 2000.0  # scores of a match, before they are divided by √d
# channels: the token, the token before it, the answer, the position, and one that is always 1
TOKEN, BEFORE, ANSWER, PLACE = (slice(i * SYMBOLS, (i + 1) * SYMBOLS) for i in range(4))
ALWAYS = 4 * SYMBOLS
WIDTH = ALWAYS + 16


class Task(NamedTuple):
    """Sequences of channels, and the symbol that the last token must answer."""

    hidden: np.ndarray
    answer: np.ndarray


def verdict(*, holds: bool) -> str:
    """Name the outcome of a comparison."""
    return "reproduced" if holds else "not reproduced"


def block(*copies: tuple[slice | int, slice | int, float]) -> np.ndarray:
    """Return a (WIDTH, WIDTH) matrix that copies channels to channels, times a factor."""
    W = np.zeros((WIDTH, WIDTH))
    channels = np.arange(WIDTH)
    for source, target, factor in copies:
        W[np.atleast_1d(channels[source]), np.atleast_1d(channels[target])] = factor
    return W


def written(tokens: np.ndarray) -> np.ndarray:
    """Return one-hot tokens in their channels, with the channel that is always 1."""
    hidden = np.zeros((*tokens.shape, WIDTH))
    hidden[..., TOKEN] = np.eye(SYMBOLS)[tokens]
    hidden[..., ALWAYS] = 1
    return hidden


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw sequences k1 v1 … k4 v4 k, the answer to k, and the pair that holds it."""
    keys = np.argsort(rng.random((count, KEYS)))[:, :4]
    values = KEYS + rng.integers(VALUES, size=(count, 4))
    asked = rng.integers(4, size=count)
    rows = np.arange(count)
    pairs = np.stack([keys, values], axis=-1).reshape(count, 8)
    return np.concatenate([pairs, keys[rows, asked][:, None]], axis=1), values[rows, asked], asked


def places(length: int = 9) -> np.ndarray:
    """Return a reference stream that says nothing but where it is."""
    reference = np.zeros((length, WIDTH))
    reference[np.arange(length), PLACE.start + np.arange(length)] = 1
    return reference


def looks_back() -> np.ndarray:
    """Return the W_Q that turns place i into a query for place i − 1."""
    W = np.zeros((WIDTH, WIDTH))
    steps = np.arange(1, SYMBOLS)
    W[PLACE.start + steps, PLACE.start + steps - 1] = SHARP
    return W


def previous_by_rotation() -> tuple[np.ndarray, np.ndarray]:
    """Return W_Q and W_K that see only the channel that is always 1, the query turned back by one position."""
    half = WIDTH // 2
    angle = 10000.0 ** (-np.arange(half) / half)
    W_Q, W_K = np.zeros((2, WIDTH, WIDTH))
    W_Q[ALWAYS], W_K[ALWAYS] = np.concatenate([np.cos(angle), -np.sin(angle)]), np.repeat([1.0, 0.0], half)
    return SHARP * W_Q, W_K


FIRST = AttentionWeights(looks_back(), block((PLACE, PLACE, 1.0)), block((TOKEN, BEFORE, 1.0)), np.eye(WIDTH))


def with_previous(tokens: np.ndarray) -> np.ndarray:
    """Run the first layer: a fixed map writes into each token's channels the token before it."""
    hidden = written(tokens)
    mixed = apply_attention(hidden, FIRST, variant="random_fixed", n_heads=1, reference=places())
    return np.asarray(hidden + mixed)


def read_last(hidden: np.ndarray, variant: str, W_Q: np.ndarray, W_K: np.ndarray, **options: Any) -> np.ndarray:
    """Run one layer that copies tokens to answers, and return the value, of all values, that the last token answers."""
    weights = AttentionWeights(W_Q, W_K, block((options.pop("value", TOKEN), ANSWER, 1.0)), np.eye(WIDTH))
    if variant in FIXED:
        options["reference"] = places(hidden.shape[-2])
    out = apply_attention(hidden, weights, variant=variant, n_heads=1, **options)
    return KEYS + np.asarray(out[..., -1, ANSWER][:, KEYS:].argmax(axis=-1))


def matched(key: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return W_Q and W_K that compare the own token with some channels of the others."""
    return block((TOKEN, TOKEN, SHARP)), block((key, TOKEN, 1.0))


def answers(task: str, variant: str, tokens: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what a layer built for the task answers, and what is right."""
    rows, hidden = np.arange(len(tokens)), written(tokens)
    if task == "this token":
        return hidden[:, -1, TOKEN].argmax(axis=-1), tokens[:, -1]  # the residual stream carries it past any layer
    if task == "previous token":
        if variant in FIXED:
            return read_last(hidden, variant, looks_back(), block((PLACE, PLACE, 1.0))), tokens[:, -2]
        extra = {"rotary_base": 10000.0} | ({"static": hidden} if variant == "static_emb" else {})
        return read_last(hidden, variant, *previous_by_rotation(), **extra), tokens[:, -2]
    right = tokens[rows, 2 * asked + 1]
    if task == "lookup":  # a pair is one token: key and value in channels of their own
        pairs = written(tokens[:, [0, 2, 4, 6, 8]])
        pairs[:, :-1, BEFORE] = np.eye(SYMBOLS)[tokens[:, [1, 3, 5, 7]]]
        extra = {"static": pairs} if variant == "static_emb" else {}
        return read_last(pairs, variant, *matched(TOKEN), value=BEFORE, **extra), right
    extra = {"static": hidden} if variant == "static_emb" else {}
    return read_last(with_previous(tokens), variant, *matched(BEFORE), **extra), right


def accuracy(task: str, variant: str, count: int = 500) -> float:
    """Return the share of right answers."""
    tokens, _, asked = draw(np.random.default_rng(0), count)
    found, right = answers(task, variant, tokens, asked)
    return float(np.mean(found == right))


def without_first_layer(count: int = 500) -> float:
    """Return the share of right answers of the standard layer alone."""
    tokens, value, _ = draw(np.random.default_rng(0), count)
    return float(np.mean(read_last(written(tokens), "standard", *matched(BEFORE)) == value))


def cooperation_claims() -> list[Claim]:
    """Let layers of two kinds look something up together."""
    together, static, fixed = (accuracy(TASKS[3], variant) for variant in ("standard", "static_emb", "random_fixed"))
    alone = without_first_layer()
    return [
        Claim(
            "a simple layer and a standard one solve what neither solves alone",
            "A fixed map fetches the previous token, a standard layer looks up: share of right answers, 500 sequences.",
            "a hybrid recovers standard's quality (paper Table 1)",
            f"{together:.3f}",
            verdict(holds=together == 1.0),
        ),
        Claim(
            "two simple layers do not",
            "The same with static_emb and with a fixed map as second layer.",
            "uniform stacks stay far behind (paper Table 1)",
            f"static_emb {static:.3f}, fixed {fixed:.3f}",
            verdict(holds=max(static, fixed) < 0.55),
        ),
        Claim(
            "without its simple layers a hybrid fails",
            "The standard layer alone.",
            "skipping the simple layers brings NLU to 37.5–39.8, LAMBADA accuracy to 0",
            f"{alone:.3f}",
            verdict(holds=alone < 0.55),
        ),
    ]


def map_claims() -> list[Claim]:
    """Compare maps of two inputs, rows of one map, and maps at small logits."""
    rng = np.random.default_rng(1)
    weights = init_attention(rng, 32)
    one, two = rng.standard_normal((2, 24, 32))
    reference = rng.standard_normal((24, 32))
    options = {"variant": "random_fixed", "n_heads": 4, "reference": reference}
    parts = [apply_attention(x, weights, **options) for x in (one, two, one - two)]
    blind = float(np.abs(parts[0] - parts[1] - parts[2]).max())
    striped = attention_map(one, weights, variant="non_approximate", n_heads=4)
    last = striped[:, -1, :12] / striped[:, 11, :12]
    stripes = float(np.abs(last / last[:, :1] - 1).max())
    gaps = []
    for scale in (0.1, 0.01):
        small = weights._replace(W_Q=scale * weights.W_Q)
        maps = [attention_map(one, small, variant=variant, n_heads=4) for variant in ("standard", "approximate")]
        gaps.append(float(np.abs(maps[0] - maps[1]).max()))
    order = float(np.log10(gaps[0] / gaps[1]))
    silent = weights._replace(W_Q=0 * weights.W_Q)
    flat = attention_indicators(attention_map(one, silent, variant="non_approximate", n_heads=4))
    usual = attention_indicators(attention_map(one, weights, variant="non_approximate", n_heads=4))
    return [
        Claim(
            "a fixed map does not see the input",
            "How far the output for the difference of two inputs is from the difference of their outputs.",
            "the map depends on the reference only (equations 9–12): 0",
            f"{blind:.0e}",
            verdict(holds=blind < 1e-9),
        ),
        Claim(
            "the key-side gate makes stripes",
            "How much the ratio of two columns varies from row to row.",
            "the weight depends on the key's position only (equation 8): 0",
            f"{stripes:.0e}",
            verdict(holds=stripes < 1e-9),
        ),
        Claim(
            "the Taylor map is softmax to second order",
            "Exponent with which the largest difference of the two maps shrinks with the logits.",
            "3 (derived)",
            f"{order:.3f}",
            verdict(holds=abs(order - 3) < 0.1),
        ),
        Claim(
            "without queries the gate collapses to the causal mean",
            "Normalised entropy of the maps with W_Q = 0, and with random weights; head diversity with W_Q = 0.",
            "1, less than 1, and 0 (derived)",
            f"{flat.normalised_entropy:.4f}, {usual.normalised_entropy:.4f}, {flat.head_diversity:.0e}",
            verdict(holds=bool(abs(flat.normalised_entropy - 1) < 1e-12 and usual.normalised_entropy < 1)),
        ),
    ]


def seconds(function: Any, repeats: int = 3) -> float:
    """Return the shortest processor time of some calls."""
    best = np.inf
    for _ in range(repeats):
        begin = time.process_time()
        function()
        best = min(best, time.process_time() - begin)
    return best


def cost_claims(*, quick: bool) -> list[Claim]:
    """Fit how time grows with the length."""
    lengths = (256, 512, 1024) if quick else (512, 1024, 2048)
    rng = np.random.default_rng(2)
    times: dict[str, list[float]] = {"standard": [], "approximate": [], "non_approximate": []}
    for length in lengths:
        q, k, v = rng.standard_normal((3, 1, length, 8))
        hidden, weights = q[0], init_attention(rng, 8)
        calls = {
            "standard": lambda h=hidden, w=weights: attention_map(h, w, variant="standard", n_heads=1),
            "approximate": lambda q=q, k=k, v=v: approximate_recurrent(q, k, v),
            "non_approximate": lambda q=q, k=k, v=v: non_approximate_recurrent(q, k, v),
        }
        for name, call in calls.items():
            times[name].append(seconds(call))
    slopes = {name: float(np.polyfit(np.log(lengths), np.log(found), 1)[0]) for name, found in times.items()}
    prompt = {
        v: flops(v, batch=1, length=2**20, width=64) / flops(v, batch=1, length=2**19, width=64) for v in VARIANTS
    }
    return [
        Claim(
            "recurrences are linear, maps are quadratic",
            f"Exponents of processor time in the length, {lengths[0]} to {lengths[-1]}; FLOPs for twice the length.",
            "2, 1, 1; FLOPs 4, 2, 2 (paper Table 6)",
            ", ".join(f"{name} {slope:.1f}" for name, slope in slopes.items())
            + "; FLOPs "
            + ", ".join(f"{prompt[name]:.1f}" for name in slopes),
            verdict(holds=slopes["standard"] > 1.5 > max(slopes["approximate"], slopes["non_approximate"])),
        )
    ]


def grid_claim() -> Claim:
    """Say which kinds of layer solve how many of the tasks."""
    solved = {name: sum(accuracy(task, name, 200) > 0.99 for task in TASKS) for name in NAMES}
    return Claim(
        "what a variant gives up is what it cannot do",
        "How many of the four tasks of the figure a layer built by hand solves, by variant.",
        "mlp < fixed < static_emb < approximate ≈ standard (order of paper Table 1)",
        ", ".join(f"{name} {count}" for name, count in solved.items()),
        verdict(
            holds=solved["mlp"] < solved["random_fixed"] < solved["static_emb"] < solved["standard"]
            and solved["approximate"] >= solved["static_emb"]
        ),
    )


def claims(quick: bool) -> list[Claim]:
    """Measure the claims."""
    return [*cooperation_claims(), grid_claim(), *map_claims(), *cost_claims(quick=quick)]


def draw_grid(axes: Axes) -> None:
    """Draw which variant solves which task."""
    for row, name in enumerate(NAMES):
        for column, task in enumerate(TASKS):
            share = accuracy(task, name, 200)
            colour = GREEN if share > 0.99 else RED
            axes.add_patch(_tile(column, row, colour, 0.85 if share > 0.99 else 0.35))
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=GREY if share <= 0.99 else "#f4f4f4")
    axes.set(xlim=(-0.5, len(TASKS) - 0.5), ylim=(len(NAMES) - 0.5, -0.5))
    axes.set_xticks(range(len(TASKS)), [task.replace(" ", "\n", 1) for task in TASKS])
    axes.set_yticks(range(len(NAMES)), NAMES)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Share of right answers of a layer built by hand")


def _tile(column: int, row: int, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, color=colour, alpha=alpha, lw=0)


def draw_maps(grid: dict[str, Axes]) -> None:
    """Draw the maps of two sentences under three variants."""
    from matplotlib.colors import LinearSegmentedColormap

    rng = np.random.default_rng(5)
    weights = init_attention(rng, 16)
    weights = weights._replace(W_Q=1.7 * weights.W_Q)
    sentences, reference = rng.standard_normal((2, 12, 16)), rng.standard_normal((12, 16))
    shades = LinearSegmentedColormap.from_list("map", [(*_rgb(BLUE), 0.04), (*_rgb(BLUE), 1.0)])
    for name in ("standard", "non_approximate", "random_fixed"):
        for number, sentence in enumerate(sentences):
            source = reference if name == "random_fixed" else sentence
            A = attention_map(source, weights, variant=name, n_heads=1)[0]
            axes = grid[f"{name}{number}"]
            axes.imshow(np.where(np.tri(12) > 0, A, np.nan), cmap=shades, vmin=0, vmax=0.8)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(GREY)
            if name == "standard":
                axes.set_title(f"sentence {number + 1}")
            if number == 0:
                axes.set_ylabel(name)


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def figure(_quick: bool) -> Figure:
    """Draw what each variant can do, and what its maps look like for two sentences.

    Left: layers built by hand on four tasks; in the last one a fixed first layer has fetched the previous token.
    Right: maps, query down, key across. Under the gate two columns keep their proportion from row to row; a fixed map
    is the same for both sentences.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), GREY)
    with mpl.rc_context({**colours, "xtick.color": GREY, "ytick.color": GREY, "font.size": 9, "axes.titlesize": 10}):
        drawing = Figure(figsize=(9.6, 5.4), layout="constrained")
        rows = [["grid", f"{name}0", f"{name}1"] for name in ("standard", "non_approximate", "random_fixed")]
        grid = drawing.subplot_mosaic(rows, width_ratios=[2.6, 1, 1])
        draw_grid(grid["grid"])
        draw_maps(grid)
    return drawing


if __name__ == "__main__":
    main("deconstructed", claims, figure)
