"""TurboBoA at laptop scale: how much time a block of rows saves, what it costs in loss, and what attention notes."""

from __future__ import annotations

import sys
import time
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from claims import Claim, main

from refattn.efficiency.turboboa import (
    QuantGrid,
    QuantResult,
    attention_hessians,
    boa,
    dequantize,
    gptq,
    minmax_grid,
    quantize_codes,
    reconstruction_loss,
    rtn,
    search_grid,
    turboboa,
)
from refattn.primitives.masks import causal_mask
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (2, 128, 256)  # heads, rows of a head, columns
SIZES = (SIZE, (4, 64, 256), (4, 128, 512))
QUICK_SIZE = (2, 64, 96)
ROWS = (4, 8, 16, 32)
PAPER = "×2.4, ×3.1, ×3.7, ×4.1 for N = 4, 8, 16, 32 (94.75 minutes on Llama3-8B, joint rows only; abstract says > 3)"
COLOURS = {"RTN": "#7f8fa6", "GPTQ": "#c8963e", "BoA": "#b5577a", "TurboBoA": "#3a9188"}
NEUTRAL = "#7f8fa6"  # readable on white and on black


class Loops(NamedTuple):
    """Of one N: sequential steps, median seconds, the median over rounds of BoA's seconds over these, the loss."""

    steps: int
    seconds: float
    speed_up: float
    loss: float


class Errors(NamedTuple):
    """Of one method: relative squared error of all logits and of the output, and the loss of queries and keys."""

    logits: float
    output: float
    loss: float


def loop_problem(heads: int, r: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return random weights (H·r, d) and Hessians of input (d, d) and output (H, r, r) of very unequal channels."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((heads * r, d)) / np.sqrt(d)
    inputs = np.linspace(0.2, 3.0, d)[:, None] * rng.standard_normal((d, 2 * d))
    outputs = np.linspace(0.3, 2.0, r)[:, None] * rng.standard_normal((heads, r, 3 * r))
    return w, inputs @ inputs.T / d, outputs @ np.swapaxes(outputs, 1, 2) / (3 * r)


def loop_calls(size: tuple[int, int, int], rows: tuple[int, ...]) -> dict[int, Callable[[], QuantResult]]:
    """Return BoA, by the key 1, and TurboBoA with N rows at a time, all on one fixed min–max grid of two bits.

    The factors of both Hessians are computed once in each call, in BoA too.
    """
    w, h_in, h_out = loop_problem(*size)
    grid = minmax_grid(w.reshape(size), 2)
    fixed = {"n_heads": size[0], "grid": grid}
    calls: dict[int, Callable[[], QuantResult]] = {1: lambda: boa(w, h_in, h_out, 2, **fixed)}
    for n in rows:
        calls[n] = lambda n=n: turboboa(w, h_in, h_out, 2, **fixed, block_rows=n, refine_sweeps=0)
    return calls


@cache
def loops(size: tuple[int, int, int], rows: tuple[int, ...], rounds: int) -> dict[int, Loops]:
    """Measure processor seconds; all take their turn in each round, so that all meet the same machine."""
    calls = loop_calls(size, rows)
    seconds: dict[int, list[float]] = {n: [] for n in calls}
    losses = {}
    for _ in range(rounds):
        for n, call in calls.items():
            begin = time.process_time()  # of this process, whatever else the machine does
            losses[n] = float(call().loss)
            seconds[n].append(time.process_time() - begin)
    ratios = {n: np.median(np.array(seconds[1]) / np.array(s)) for n, s in seconds.items()}
    steps = {n: -(-size[1] // n) * size[2] for n in calls}
    return {n: Loops(steps[n], float(np.median(seconds[n])), float(ratios[n]), losses[n]) for n in calls}


def loop_sizes(*, quick: bool) -> dict[tuple[int, int, int], dict[int, Loops]]:
    """Return the measurements of every size of the table."""
    if quick:
        return {QUICK_SIZE: loops(QUICK_SIZE, ROWS, 3)}
    return {size: loops(size, ROWS, 5 if size == SIZE else 3) for size in SIZES}


def speed_table(*, quick: bool) -> str:
    """Return the table of speed and loss, and the one of what attention loses."""
    lines = ["the loops, 2 bits, fixed min–max grid, one thread (N = 1 is BoA)"]
    lines.append(f"{'heads':>7}{'rows':>6}{'columns':>9}{'N':>5}{'steps':>8}{'ms':>9}{'speed-up':>10}{'loss/BoA':>10}")
    for (heads, r, d), found in loop_sizes(quick=quick).items():
        for n, (steps, seconds, speed_up, loss) in found.items():
            ratio = loss / found[1].loss
            lines.append(f"{heads:7}{r:6}{d:9}{n:5}{steps:8}{1e3 * seconds:9.1f}{speed_up:10.2f}{ratio:10.4f}")
    lines += ["", "an attention block on unseen text: relative squared error, mean of seeds"]
    lines.append(f"{'bits':>6}  {'method':<28}{'logits':>9}{'output':>9}{'loss':>9}")
    for bits in (2,) if quick else (2, 3, 4):
        for method, found in blocks(bits, quick=quick).items():
            logits, output, loss = np.mean(found, axis=0)
            lines.append(f"{bits:6}  {method:<28}{logits:9.4f}{output:9.4f}{loss:9.2f}")
    return "\n".join(lines)


def speed_claims(*, quick: bool) -> list[Claim]:
    """Compare TurboBoA's loops with BoA's in time and in loss."""
    found = loop_sizes(quick=quick)
    main_size = next(iter(found))
    speeds = {size: [row[n].speed_up for n in ROWS] for size, row in found.items()}
    losses = {size: [row[n].loss / row[1].loss for n in ROWS] for size, row in found.items()}
    within = [n for n in (1, *ROWS) if all(row[n].loss <= 1.02 * row[1].loss for row in found.values())]
    return [
        Claim(
            "a block of rows at a time is faster",
            f"Rounding N rows of a head together shortens BoA's loops (bar: 3 at N = 16, {_size(main_size)}).",
            PAPER,
            "; ".join(f"{_size(size)} " + ", ".join(f"×{x:.1f}" for x in row) for size, row in speeds.items()),
            "reproduced" if speeds[main_size][2] >= 3 else "not reproduced",
        ),
        Claim(
            "and costs little",
            "The reconstruction loss stays near BoA's (bar: 5 % at N = 16, for every size).",
            "perplexity 15.20 (BoA), then 15.27, 15.30, 15.41, 15.22",
            "; ".join(f"{_size(size)} " + ", ".join(f"{x:.3f}" for x in row) for size, row in losses.items())
            + f"; within 2 % for all sizes up to N = {max(within)}",
            "reproduced" if all(row[2] <= 1.05 for row in losses.values()) else "not reproduced",
        ),
    ]


def _size(size: tuple[int, int, int]) -> str:
    return "{} × {} × {}".format(*size)


def growth_claim(*, quick: bool) -> Claim:
    """Measure how time grows with the rows of a head."""
    heads, columns = (1, 64) if quick else (2, 256)
    rows = (32, 64, 128) if quick else (32, 64, 128, 256)
    found = [loops((heads, r, columns), (16,), 3) for r in rows]
    slopes = {n: np.polyfit(np.log(rows), np.log([row[n].seconds for row in found]), 1)[0] for n in (1, 16)}
    ratios = ", ".join(f"{row[16].speed_up:.1f}" for row in found)
    return Claim(
        "linear in the rows of a head",
        f"BoA takes r·d steps, TurboBoA ⌈r/N⌉·d: both linear in r ({rows[0]} to {rows[-1]}; N = 16, d = {columns}).",
        "exponent 1 for both (counted); a ratio that each step's own work keeps below 16",
        f"exponents {slopes[1]:.2f} and {slopes[16]:.2f}; ratios {ratios}",
        "reproduced" if 0.7 < slopes[1] < 1.4 and 0.5 < slopes[16] < 1.4 else "not reproduced",
    )


class Block(NamedTuple):
    """Calibration and test inputs (B, L, d), and projections of queries, keys and values (d, d)."""

    seen: np.ndarray
    unseen: np.ndarray
    weights: tuple[np.ndarray, np.ndarray, np.ndarray]
    heads: int


def attention_block(seed: int) -> Block:
    """Draw inputs whose variance falls as 1/i along a random basis, and random projections with heads of 32."""
    rng = np.random.default_rng(seed)
    sequences, length, d = 16, 64, 128
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    spread = np.arange(1, d + 1) ** -0.5
    root = (basis * spread) * np.sqrt(d / np.sum(spread**2))
    seen, unseen = rng.standard_normal((2, sequences, length, d)) @ root.T
    wq, wk, wv = rng.standard_normal((3, d, d)) / np.sqrt(d)
    return Block(seen, unseen, (wq, wk, wv), d // 32)


def attention(block: Block, wq: np.ndarray, wk: np.ndarray, wv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all logits QKᵀ (B, H, L, L) and the causal output (B, H, L, r) on unseen inputs."""
    x, L = block.unseen, block.unseen.shape[1]
    q, k, v = (np.swapaxes((x @ w.T).reshape(*x.shape[:2], block.heads, -1), 1, 2) for w in (wq, wk, wv))
    logits = q @ np.swapaxes(k, -1, -2)
    return logits, softmax(logits / np.sqrt(q.shape[-1]), where=causal_mask(L, L)) @ v


def methods(bits: int, heads: int) -> dict[str, Callable[..., np.ndarray]]:
    """Return ways to quantise a projection, each a function of W, H_in and H_out (None for values)."""

    def rounded(w: np.ndarray, h_in: np.ndarray, _h_out: object) -> np.ndarray:
        rows = w.reshape(heads, -1, w.shape[1])
        grid = search_grid(rows, bits, hessian=h_in)
        return dequantize(quantize_codes(rows, grid, bits), grid)

    def turbo(n: int, *, features: bool = False) -> Callable[..., np.ndarray]:
        options = {"block_rows": n, "adaptive_grid": features, "refine_sweeps": int(features)}
        return lambda w, h_in, h_out: turboboa(w, h_in, h_out, bits, n_heads=heads, **options).weight

    return {
        "RTN": lambda w, _h_in, _h_out: rtn(w, bits).weight,
        "RTN, Hessian grid": rounded,
        "GPTQ": lambda w, h_in, _h_out: gptq(w, h_in, bits).weight,
        "TurboBoA 16": turbo(16),
        "TurboBoA 8": turbo(8),
        "TurboBoA 4": turbo(4),
        "TurboBoA 16, grids refined": turbo(16, features=True),
        "TurboBoA 4, grids refined": turbo(4, features=True),
        "BoA": lambda w, h_in, h_out: boa(w, h_in, h_out, bits, n_heads=heads).weight,
        "BoA, grids refined": turbo(1, features=True),
    }


def quantised(block: Block, method: Callable[..., np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Return the three projections after quantisation, and the loss of queries and keys on the calibration inputs."""
    hessians = attention_hessians(block.seen, *block.weights, n_heads=block.heads)
    costs = ((hessians.input, hessians.query_out), (hessians.input, hessians.key_out), (hessians.value_input, None))
    found = [method(w, *cost).reshape(w.shape) for w, cost in zip(block.weights, costs, strict=True)]
    loss = sum(reconstruction_loss(w, q, *c) for w, q, c in zip(block.weights[:2], found, costs, strict=False))
    return found, float(loss)


@cache
def blocks(bits: int, *, quick: bool) -> dict[str, list[Errors]]:
    """Return what every method does to attention, for every seed."""
    results: dict[str, list[Errors]] = {}
    for seed in range(1 if quick else 3):
        block = attention_block(seed)
        exact = attention(block, *block.weights)
        for name, method in methods(bits, block.heads).items():
            weights, loss = quantised(block, method)
            errors = [_relative(a, b) for a, b in zip(attention(block, *weights), exact, strict=True)]
            results.setdefault(name, []).append(Errors(*errors, loss))
    return results


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sum((found - exact) ** 2) / np.sum(exact**2))


def loss_over_boa(found: dict[str, list[Errors]], name: str) -> list[float]:
    """Return the loss of a method over BoA's, for every seed."""
    return [a.loss / b.loss for a, b in zip(found[name], found["BoA"], strict=True)]


def _ratios(values: list[float]) -> str:
    return ", ".join(f"{x:.3f}" for x in values)


def falling(found: dict[str, list[Errors]], names: tuple[str, ...], what: str) -> bool:
    """Return whether an error falls from each method to the next, for every seed."""
    values = np.array([[getattr(e, what) for e in found[name]] for name in names])
    return bool(np.all(np.diff(values, axis=0) < 0))


def accuracy_claims(*, quick: bool) -> list[Claim]:
    """Compare methods by what attention loses."""
    found = {bits: blocks(bits, quick=quick) for bits in ((2,) if quick else (2, 3, 4))}
    order = ("RTN", "GPTQ", "TurboBoA 16", "TurboBoA 4", "BoA")
    ordered = all(falling(of_bits, order, "logits") for of_bits in found.values())
    outputs = all(falling(of_bits, ("RTN", "GPTQ", "BoA"), "output") for of_bits in found.values())
    two = {name: np.mean(rows, axis=0) for name, rows in found[2].items()}
    near = [loss_over_boa(of_bits, "TurboBoA 4") for of_bits in found.values()]
    refined = [loss_over_boa(of_bits, "TurboBoA 4, grids refined") for of_bits in found.values()]
    kept = (two["GPTQ"][2] - two["TurboBoA 16"][2]) / (two["GPTQ"][2] - two["BoA"][2])

    def listed(column: int) -> str:
        parts = [" / ".join(f"{np.mean(f[name], axis=0)[column]:.4f}" for f in found.values()) for name in order]
        return ", ".join(f"{name} {part}" for name, part in zip(order, parts, strict=True))

    bits = "2 bits" if quick else "2 / 3 / 4 bits"
    return [
        Claim(
            "the more rows know of each other, the better",
            f"Relative squared error of QKᵀ on unseen text: RTN > GPTQ > TurboBoA 16 > 4 > BoA, each seed, {bits}.",
            "the same order of methods (perplexity)",
            listed(0),
            "reproduced" if ordered else "not reproduced",
        ),
        Claim(
            "attention notes it",
            f"Relative squared error of the output on unseen text: RTN > GPTQ > BoA, each seed, {bits}.",
            "the same order of methods (perplexity)",
            listed(1),
            "reproduced" if outputs else "not reproduced",
        ),
        Claim(
            "an eighth of a head at a time is enough",
            f"With N = head_dim/8, here 4, the loss is within 6 % of BoA's: mean of seeds, {bits}.",
            "N = 16 of 128 rows; perplexity 15.41 against 15.20",
            f"{_ratios([np.mean(x) for x in near])} times BoA's (largest of a seed {np.max(near):.3f}); "
            f"N = 16, half a head, keeps {kept:.0%} of BoA's gain over GPTQ at 2 bits",
            "reproduced" if max(np.mean(x) for x in near) <= 1.06 else "not reproduced",
        ),
        Claim(
            "adaptive and refined grids beat BoA",
            "With each block's grid found as its turn comes, and refined, TurboBoA (N = 4) has a lower loss at 2 bits.",
            "all three features together give the best perplexity",
            f"loss over BoA's at 2 bits, by seed: {_ratios(refined[0])}"
            + "".join(f"; mean at {b} bits {np.mean(x):.3f}" for b, x in zip(found, refined, strict=True) if b > 2)
            + f"; BoA with the same grids {_ratios(loss_over_boa(found[2], 'BoA, grids refined'))} at 2 bits",
            "reproduced" if max(refined[0]) < 1 else "not reproduced",
        ),
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    models = Claim(
        "minutes and perplexities of Llama3",
        "At 2 bits a model of 8 billion parameters takes 25 minutes, not 95, one of 70 billion 5.6 hours, not 17.",
        "94.75 → 25.30 minutes, perplexity 15.20 → 15.41 (8B); 17 h → 5.6 h (70B)",
        "needs the models and a GPU; examples/quantise.py has a small model, trained and quantised as a whole",
        "not comparable",
    )
    return [*speed_claims(quick=quick), growth_claim(quick=quick), *accuracy_claims(quick=quick), models]


def draw_errors(axes: list[Axes]) -> object:
    """Draw |QKᵀ − Q̂K̂ᵀ| of one head and one unseen text for four methods, on one scale; return the last picture."""
    block = attention_block(0)
    exact = attention(block, *block.weights)[0]
    names = {"RTN": "RTN", "GPTQ": "GPTQ", "BoA": "BoA", "TurboBoA": "TurboBoA 4, grids refined"}
    ways, errors = methods(2, block.heads), {}
    for name, method in names.items():
        errors[name] = attention(block, *quantised(block, ways[method])[0])[0] - exact
    top = np.quantile(np.abs(errors["RTN"][0, 0]), 0.98)
    picture = None
    for axis, (name, error) in zip(axes, errors.items(), strict=True):
        picture = axis.imshow(np.abs(error[0, 0]), vmin=0, vmax=top, cmap="magma", interpolation="nearest")
        axis.set(xticks=[], yticks=[], xlabel="key")
        axis.set_title(f"{name}: {np.sum(error**2) / np.sum(exact**2):.3f}", color=COLOURS[name])
    axes[0].set_ylabel("query")
    return picture


def draw_order(axes: Axes) -> None:
    """Draw the rows of a head, in which order they are rounded, and where their error goes."""
    for left, n, name in ((0.0, 1, "BoA"), (1.6, 4, "TurboBoA")):
        for k in range(0, 16, n):
            shade = 0.25 + 0.75 * (1 - k / 16)
            axes.add_patch(_bar(left, k, n, COLOURS[name], shade))
        axes.text(left + 0.5, -0.6, f"{name}, N = {n}", ha="center", va="bottom", color=COLOURS[name])
        ends = range(n, 16, n)
        for place, end in enumerate(ends):
            x = left + 0.08 + 0.84 * place / max(len(ends) - 1, 1)
            arrow = {"arrowstyle": "-|>", "color": NEUTRAL, "lw": 1, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x, 15.9), (x, end - 0.3), arrowprops=arrow)
    axes.set(xlim=(-0.1, 2.7), ylim=(16.2, -2.2), xticks=[], yticks=[])
    axes.set_ylabel("rows of one head, from first to last")
    axes.set_title("The error of a row goes into the rows below")
    axes.spines[:].set_visible(False)


def _bar(x: float, y: float, height: float, colour: str, alpha: float) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y + 0.08), 1.0, height - 0.16, facecolor=colour, alpha=0.75 * alpha, lw=0)


def draw_knee(axes: Axes, *, quick: bool) -> None:
    """Draw time and excess loss against N."""
    size = QUICK_SIZE if quick else SIZE
    rows = tuple(2**i for i in range(1, size[1].bit_length()))
    found = loops(size, rows, 3)
    n = np.array(list(found))
    slow = np.array([row.seconds for row in found.values()]) / found[1].seconds
    excess = np.array([row.loss for row in found.values()]) / found[1].loss - 1
    axes.plot(n, slow, "o-", ms=4, color=COLOURS["TurboBoA"], label="time / BoA's, measured")
    axes.plot(n, 1.0 / n, "--", lw=1, color=COLOURS["TurboBoA"], alpha=0.6, label="steps / BoA's = 1/N")
    axes.plot(n[excess > 0], excess[excess > 0], "s-", ms=4, color=COLOURS["BoA"], label="loss / BoA's − 1")
    axes.vlines(size[1] / 8, 0.004, 0.3, color=NEUTRAL, lw=1, ls=":")
    axes.text(size[1] / 8 * 1.06, 0.0045, "head_dim/8", color=NEUTRAL, ha="left", va="bottom", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(0.004, 3.0)
    axes.set(xlabel="N, rows at a time", title=f"Time and loss against N ({_size(size)})")
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="upper right")


def draw_toy(axes: Axes) -> None:
    """Draw two weights, the ellipses of equal loss, and where rounding and GPTQ end."""
    w, hessian = np.array([[0.4, 0.4]]), np.array([[1.0, 0.85], [0.85, 1.0]])
    grid = QuantGrid(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)))
    ends = {"RTN": rtn(w, 2, grid=grid).weight, "GPTQ": gptq(w, hessian, 2, grid=grid).weight}
    side = np.linspace(-1.3, 2.3, 200)
    gap = np.stack(np.meshgrid(side, side), -1) - w[0]
    loss = np.sum((gap @ hessian) * gap, axis=-1)
    axes.scatter(*np.meshgrid(np.arange(-1, 3), np.arange(-1, 3)), s=14, color=NEUTRAL)
    for name, end in ends.items():
        cost = reconstruction_loss(w, end.reshape(1, 2), hessian)
        axes.contour(side, side, loss, levels=[cost], colors=COLOURS[name], linewidths=1)
        axes.plot(*end.ravel(), "o", ms=9, mfc="none", mew=2, color=COLOURS[name], label=f"{name}: loss {cost:.2f}")
    moved = w[0, 1] + hessian[0, 1] / hessian[1, 1] * w[0, 0]
    arrow = {"arrowstyle": "-|>", "color": COLOURS["GPTQ"], "shrinkA": 4, "shrinkB": 0}
    axes.annotate("", (0, moved), w[0], arrowprops=arrow)
    axes.plot(*w[0], "*", ms=10, color=COLOURS["BoA"], label="w")
    axes.set(xlabel="first weight", ylabel="second weight", aspect="equal", xticks=range(-1, 3), yticks=range(-1, 3))
    axes.set(xlim=(-1.4, 2.4), ylim=(-1.4, 3.3))
    axes.set_title("The nearest point is not the best")
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="upper right")


def figure(quick: bool) -> Figure:
    """Draw what attention loses, where errors go, what N trades, and a toy of two weights.

    Top: |QKᵀ − Q̂K̂ᵀ| of one head and one unseen text at 2 bits, one scale, with the relative squared error over all
    heads and texts. Bottom: the order of rows, and where their error goes; time and loss against N on a fixed grid; two
    weights whose errors cost least where they cancel: the nearest grid point, and the one that GPTQ finds after it has
    moved the second weight.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), NEUTRAL)
    sizes = {"font.size": 9, "axes.titlesize": 10}
    with mpl.rc_context({**colours, **sizes, "xtick.color": NEUTRAL, "ytick.color": NEUTRAL}):
        drawing = Figure(figsize=(11, 6.6), layout="constrained")
        top, bottom = drawing.subfigures(2, 1, height_ratios=(1, 1.2), hspace=0.04)
        maps = top.subplots(1, 4)
        picture = draw_errors(list(maps))
        bar = top.colorbar(picture, ax=maps, shrink=0.8, label="|error of the logit|")
        bar.outline.set_visible(False)
        grid = bottom.subplots(1, 3, width_ratios=(0.85, 1.15, 1))
        draw_order(grid[0])
        draw_knee(grid[1], quick=quick)
        draw_toy(grid[2])
        for part in (*maps, *grid):
            part.spines[["top", "right"]].set_visible(False)
    return drawing


if __name__ == "__main__":
    if not {"--json", "-h", "--help"} & set(sys.argv):
        print(speed_table(quick="--quick" in sys.argv), end="\n\n")
    main("turboboa", claims, figure)
