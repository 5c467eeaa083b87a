"""Multi-level training at laptop scale: operations saved at equal loss, and what its operators keep and change.

The runs here are half as long as those of ``multilevel_table.py``, whose stored rows are judged too.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from claims import Claim, main
from multilevel_table import Run, at_the_end, chosen, comparison, in_percent, perform_all, saved, stored

from refattn.efficiency.multilevel import coalesce, decoalesce, interpolate
from refattn.efficiency.multilevel_cost import training_flops_per_token, v_cycle_cost
from refattn.efficiency.multilevel_maps import decoalescing_maps, map_weight, width_maps
from refattn.efficiency.multilevel_training import gpt_config
from refattn.transformer.adamw import adamw_step, begin_adamw, pack, unpack
from refattn.transformer.forward import forward
from refattn.transformer.gradient import loss_and_gradient
from refattn.transformer.weights import Transformer, random_transformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
HALVES = ((0, 2), (1, 3))
BAR = 0.2
SCRATCH, CYCLE, SMALL = "#7f8fa6", "#b5577a", "#3a9188"


@cache
def short_rows(*, quick: bool) -> Rows:
    """Train from scratch and by V-cycle on both texts."""
    if quick:
        return list(perform_all([Run("grammar", 0, name, 20) for name in ("scratch", "V-cycle")], 1))
    extra = [Run("grammar", seed, "scratch, short", 600) for seed in (0, 1, 2)]
    return list(perform_all([*comparison(600, (0, 1, 2)), *extra], 2))


@cache
def stored_rows() -> Rows:
    """Return the rows of the long runs."""
    return stored()


def losses(rows: Rows, text: str, name: str) -> np.ndarray:
    """Return the last losses of all seeds."""
    return np.array([at_the_end(row) for row in chosen(rows, text=text, name=name)])


def runs_of(rows: Rows) -> str:
    """Say which runs a claim is about."""
    return ", long runs" if rows is stored_rows() else ""


def saving(rows: Rows, text: str) -> Claim:
    """Say what the V-cycle saved on one text, seed by seed."""
    pairs = list(zip(*(chosen(rows, text=text, name=name) for name in ("scratch", "V-cycle")), strict=True))
    shares = [saved(*pair) for pair in pairs]
    cost = at_the_end(pairs[0][1], "flops") / at_the_end(pairs[0][0], "flops")
    seeds = "; ".join(
        f"seed {scratch['seed']} {in_percent(share)} ({at_the_end(cycle):.3f} against {at_the_end(scratch):.3f})"
        for (scratch, cycle), share in zip(pairs, shares, strict=True)
    )
    S = pairs[0][0]["S"]
    long = ", stored rows of multilevel_table.py" if rows is stored_rows() else ""
    return Claim(
        f"operations saved, {text}{runs_of(rows)}",
        f"A V-cycle reaches the loss of {S} steps from scratch with {BAR:.0%} fewer operations or more, on every seed.",
        "about 20 % for BERT-Base and GPT-Base (abstract)",
        f"{seeds}; the whole V-cycle costs {cost:.3f} of the run from scratch and ends at the loss given first{long}",
        "reproduced" if all(share is not None and share >= BAR for share in shares) else "not reproduced",
    )


def equal_cost(rows: Rows, text: str) -> Claim:
    """Compare the V-cycle with a shorter run from scratch."""
    cycle, short = (losses(rows, text, name) for name in ("V-cycle", "scratch, short"))
    gain = short.mean() - cycle.mean()
    return Claim(
        f"at equal cost, {text}{runs_of(rows)}",
        "For three quarters of the operations the V-cycle is better than a run from scratch of that length.",
        "better by at least 0.03 nats (our bar)",
        f"{cycle.mean():.4f} against {short.mean():.4f}, better by {gain:.3f} on the mean of {len(cycle)} seeds, "
        f"S = {rows[0]['S']}",
        "reproduced" if gain >= 0.03 else "not reproduced",
    )


def small_alone(rows: Rows, text: str) -> Claim:
    """Say how far the small model comes by itself."""
    small, scratch = (losses(rows, text, name) for name in ("small alone", "scratch"))
    cost = at_the_end(chosen(rows, text=text, name="small alone")[0], "flops")
    cost /= at_the_end(chosen(rows, text=text, name="scratch")[0], "flops")
    return Claim(
        f"where the saving comes from, {text}",
        "Small models learn faster for what they cost: the premise of the method.",
        "premise of the paper",
        f"the small model alone, for {cost:.2f} of the operations, ends at {small.mean():.3f}; from scratch "
        f"{scratch.mean():.3f} (means, S = {rows[0]['S']}, stored rows)",
        "reproduced" if small.mean() < scratch.mean() + 0.1 else "not reproduced",
    )


def training_claims(*, quick: bool) -> list[Claim]:
    """Return what the runs say."""
    rows = short_rows(quick=quick)
    texts = sorted({row["text"] for row in rows}, reverse=True)
    found = [saving(rows, text) for text in texts]
    if quick:
        return found
    long = stored_rows()
    found += [equal_cost(rows, "grammar")]
    for text in texts:
        found += [saving(long, text), equal_cost(long, text), small_alone(long, text)]
    return found


def toy(*, tied: bool, heads: int = 2, layers: int = 2, seed: int = 0) -> Transformer:
    """Draw a model far from its beginning."""
    config = gpt_config(13, 8, n_heads=heads, n_layers=layers, head_size=4)
    return random_transformer(config._replace(tied=tied), np.random.default_rng(seed))


def logits_change(small: Transformer, **schemes: Any) -> float:
    """Return how much growing changes the logits of a model."""
    ids = np.arange(8)[None] % 13
    return float(np.abs(forward(decoalesce(small, **schemes), ids).logits - forward(small, ids).logits).max())


def asymmetries(alpha: float, steps: int = 10) -> list[float]:
    """Train a model that was mixed with its own copies; return how far apart the copies are after each step."""
    big = toy(tied=True, heads=4)
    model = interpolate(big, decoalesce(coalesce(big, width_scheme=HALVES), width_scheme=HALVES), alpha)
    vector, found = pack(model.weights, tied=True), []
    state, ids = begin_adamw(vector), np.arange(16).reshape(2, 8) % 13
    for _ in range(steps + 1):
        model = unpack(vector, model)
        same = pack(
            decoalesce(coalesce(model, width_scheme=HALVES), width_scheme=HALVES).weights,
            tied=True,
        )
        found.append(float(np.abs(same - vector).max()))
        gradient = pack(loss_and_gradient(model, ids, (ids + 1) % 13)[1], tied=True)
        vector, state = adamw_step(vector, gradient, state, learning_rate=1e-2)
    return found


def operator_claims() -> list[Claim]:
    """Return what the operators keep and what they change."""
    own, wide = toy(tied=False), {"width_scheme": HALVES}
    kept = logits_change(own, **wide)
    changed = logits_change(toy(tied=True), **wide), logits_change(own, n_layers=4)
    copies, mixed = asymmetries(1.0)[-1], asymmetries(0.75)[-1]
    return [
        Claim(
            "growing in width keeps the function",
            "With a head of its own a GPT computes the same after its heads are copied; a tied one, or copied layers, "
            "compute something else.",
            "0 for the first (derived)",
            f"largest change of a logit: own head {kept:.0e}, tied {changed[0]:.2f}, copied layers {changed[1]:.2f}",
            "reproduced" if kept < 1e-12 < min(changed) else "not reproduced",
        ),
        Claim(
            "copies stay copies",
            "After pure de-coalescing ten steps of AdamW leave equal heads equal; after interpolation they differ.",
            "0 at α = 1 (derived), which is why the paper interpolates",
            f"largest difference between copies: {copies:.0e} at α = 1, {mixed:.2f} at α = 0.75",
            "reproduced" if copies < 1e-12 < mixed else "not reproduced",
        ),
    ]


def slope(sizes: tuple[int, int], costs: tuple[float, float]) -> float:
    """Return the exponent between two sizes."""
    return float(np.log(costs[1] / costs[0]) / np.log(sizes[1] / sizes[0]))


def cost_claims() -> list[Claim]:
    """Return what is counted."""
    per_step = {
        "width": ((512, 1024), [16 * training_flops_per_token(50257, 16, D, 48) for D in (512, 1024)]),
        "depth": ((48, 96), [16 * training_flops_per_token(50257, 16, 1024, L) for L in (48, 96)]),
        "short context": ((8, 16), [T * training_flops_per_token(50257, T, 1024, 48) for T in (8, 16)]),
        "long context": (
            (10**6, 2 * 10**6),
            [T * training_flops_per_token(50257, T, 768, 12) for T in (10**6, 2 * 10**6)],
        ),
    }
    slopes = {name: slope(sizes, (costs[0], costs[1])) for name, (sizes, costs) in per_step.items()}
    expected = {"width": 2, "depth": 1, "short context": 1, "long context": 2}
    ratio = training_flops_per_token(50257, 512, 384, 6) / training_flops_per_token(50257, 512, 768, 12)
    gpt2 = 1 - v_cycle_cost(0.05, 0.5, 0.5, ratio)
    return [
        Claim(
            "how cost grows",
            "Operations per step grow with the square of the width, with the depth, and with the context, squared once "
            "it is long.",
            "exponents " + ", ".join(f"{name} {power}" for name, power in expected.items()),
            ", ".join(f"{name} {power:.2f}" for name, power in slopes.items()),
            "reproduced" if all(abs(slopes[n] - p) < 0.15 for n, p in expected.items()) else "not reproduced",
        ),
        Claim(
            "GPT-2, the authors' script",
            "5k steps full, 50k small (6 layers, 6 heads), 50k full instead of 100k full.",
            "1144 → 875 minutes, 23.5 % less, at a loss of 2.718 → 2.700 (code README)",
            f"{gpt2:.1%} fewer operations by our count, c = {ratio:.3f}; time also holds what is not a matrix product",
            "not comparable",
        ),
        Claim(
            "BERT-Large",
            "The saving grows with the model.",
            "up to 51.6 % for BERT-Large (abstract)",
            "needs a model of 340 million parameters and its corpus",
            "not comparable",
        ),
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    return [*training_claims(quick=quick), *operator_claims(), *cost_claims()]


def draw_v(axes: Axes) -> None:
    """Draw the V: steps to the right, cost of a step as height, so that areas are operations."""
    from matplotlib.patches import Rectangle

    c = training_flops_per_token(23, 32, 32, 2) / training_flops_per_token(23, 32, 64, 4)
    phases = [(0.0, 0.05, 1.0, 1.0, CYCLE), (0.05, 1.5, c, 0.0, SMALL), (1.55, 0.5, 1.0, 1.0, CYCLE)]
    axes.add_patch(Rectangle((0.0, 2.5), 1.0, 1.0, color=SCRATCH, alpha=0.8, lw=0))
    axes.text(0.5, 3.0, "from scratch: 1", ha="center", va="center", color="white")
    for begin, length, height, base, colour in phases:
        axes.add_patch(Rectangle((begin, base), length, height, color=colour, alpha=0.85, lw=0))
    axes.text(1.8, 1.5, "0.5", ha="center", va="center", color="white")
    axes.text(0.09, 1.75, "0.05", color=CYCLE, va="center")
    axes.text(0.84, 0.22, f"half wide, half deep: {1.5 * c:.2f}", ha="center", color=SMALL, fontsize=8)
    arrow = {"arrowstyle": "->", "color": "#8a8a8a", "lw": 1.4}
    axes.annotate("", (0.12, 0.17), (0.03, 0.95), arrowprops=arrow)
    axes.annotate("", (1.6, 0.95), (1.5, 0.17), arrowprops=arrow)
    axes.text(0.15, 0.68, "coalesce", color="#8a8a8a")
    axes.text(1.48, 0.68, "de-coalesce, mix", color="#8a8a8a", ha="right")
    axes.set(xlim=(-0.03, 2.1), ylim=(-0.1, 3.65), yticks=[], xlabel="steps / S")
    axes.set_title(f"The V: areas are operations, {0.55 + 1.5 * c:.2f} in all", fontsize=10)
    axes.spines[["left", "top", "right"]].set_visible(False)


def draw_curves(axes: Axes, text: str) -> None:
    """Draw loss against operations for every seed."""
    rows = stored_rows()
    unit = at_the_end(chosen(rows, text=text, name="scratch")[0], "flops")
    for name, colour in (("scratch", SCRATCH), ("V-cycle", CYCLE), ("small alone", SMALL)):
        for row in chosen(rows, text=text, name=name):
            curve = {key: np.array(values) for key, values in row["curve"].items()}
            last = name if row["seed"] == 0 else None
            axes.plot(curve["flops"] / unit, curve["loss"], color=colour, lw=1.1, alpha=0.85, label=last)
        mean = losses(rows, text, name).mean()
        axes.plot(
            [at_the_end(chosen(rows, text=text, name=name)[0], "flops") / unit],
            [mean],
            "o",
            ms=5,
            color=colour,
            zorder=3,
        )
    floor = losses(rows, text, "V-cycle").min()
    axes.axhline(losses(rows, text, "scratch").mean(), color=SCRATCH, lw=0.8, ls=":")
    axes.set(ylim=(floor - 0.06, floor + 1.1), xlabel="operations / those from scratch", ylabel="validation loss, nats")
    axes.set_title(f"{text}, three seeds, S = {rows[0]['S']}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="upper right")


def draw_matrices(row: list[Axes]) -> None:
    """Draw a weight, coalesced, de-coalesced, and mixed with what it was."""
    rng = np.random.default_rng(3)
    maps = width_maps(16, 8, head_size=4, scheme=HALVES)
    copies, _ = decoalescing_maps(maps, np.eye(1))
    big = rng.standard_normal((16, 16))
    small = map_weight(big, maps, role="matrix")
    grown = map_weight(small, copies, role="matrix")
    shown = {"W": big, "F W in(F)": small, "grown": grown, "mixed, α = ¾": 0.25 * big + 0.75 * grown}
    for axes, (name, matrix) in zip(row, shown.items(), strict=True):
        axes.imshow(matrix, cmap="RdBu", vmin=-1.8, vmax=1.8, extent=(0, len(matrix), len(matrix), 0))
        axes.set(xlim=(0, 16), ylim=(16, 0), xticks=[], yticks=[])
        axes.set_title(f"{name}\nrank {np.linalg.matrix_rank(matrix)}", fontsize=9)
        axes.spines[:].set_visible(False)


def two_neurons(alpha: float, steps: int = 400) -> np.ndarray:
    """Fit sin by two tanh neurons that were one, mixed with two that were not; their input weights (steps, 2)."""
    x = np.linspace(-3, 3, 41)
    w = (1 - alpha) * np.array([0.2, 1.6]) + alpha * np.array([0.9, 0.9])
    v = (1 - alpha) * np.array([-0.8, 1.2]) + alpha * np.array([0.1, 0.1])
    path = []
    for _ in range(steps):
        h = np.tanh(np.outer(x, w))
        wrong = (h @ v - np.sin(x)) / len(x)
        path.append(w)
        w, v = w - 0.3 * ((wrong * x) @ ((1 - h**2) * v)), v - 0.3 * (wrong @ h)
    return np.array(path)


def draw_neurons(axes: Axes) -> None:
    """Draw the paths of two neurons that were copies of one."""
    for alpha, colour in ((0.75, CYCLE), (0.95, "#c8963e"), (1.0, SMALL)):
        path = two_neurons(alpha)
        axes.plot(path[:, 0], color=colour, lw=1.6, label=f"α = {alpha:g}")
        axes.plot(path[:, 1], color=colour, lw=1.6, ls="--")
    axes.set(xlabel="step of gradient descent", ylabel="input weight")
    axes.set_title("Two copies of a neuron", fontsize=10)
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor")


def figure(quick: bool) -> Figure:
    """Draw the V, the losses, the matrices and the neurons."""
    del quick
    import matplotlib.pyplot as plt

    grey = "#8a8a8a"
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with plt.rc_context({**dict.fromkeys(names, grey), "font.size": 9}):
        drawing = plt.figure(figsize=(10.5, 6.2), layout="constrained")
        grid = drawing.add_gridspec(2, 12, height_ratios=(1.25, 1))
        draw_v(drawing.add_subplot(grid[0, :4]))
        draw_curves(drawing.add_subplot(grid[0, 4:8]), "grammar")
        draw_curves(drawing.add_subplot(grid[0, 8:]), "documentation")
        draw_matrices([drawing.add_subplot(grid[1, 2 * i : 2 * i + 2]) for i in range(4)])
        draw_neurons(drawing.add_subplot(grid[1, 8:]))
    return drawing


if __name__ == "__main__":
    main("multilevel", claims, figure)
