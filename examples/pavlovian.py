"""Attention as conditioning at laptop scale: bells and food, two capacities, and what depth does to a memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from claims import Claim, main

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from refattn.layers.pavlovian import linear_memory_read, linear_memory_write, softmax_memory_read
from theory.pavlovian.capacity import capacity, capacity_theory
from theory.pavlovian.conditioning import Phase, blocked, overshadowed, strengths
from theory.pavlovian.depth import depth_error
from theory.pavlovian.interference import delta_single_pass_error, hebb_error, interference_curve, read_errors
from theory.pavlovian.keys import cumulative_squared_error, draw_keys, uniform_on_sphere, worst_absolute_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, GREEN, ORANGE, BLUE, RED = "#7f8fa6", "#3a9188", "#c8963e", "#4a7fc1", "#b5577a"


def verdict(*, holds: bool) -> str:
    """Name the outcome of a comparison."""
    return "reproduced" if holds else "not reproduced"


def slope(
    dims: tuple[int, ...], epsilon: float, definition: str, trials: int, less: float
) -> tuple[float, list[float]]:
    """Return the exponent of a capacity in d, and the capacities."""
    table = capacity(dims, epsilon, definition, trials, rng=np.random.default_rng(0))
    counts = table.where(source="simulation").column("value")
    return float(np.polyfit(np.log(dims), np.log(counts - less), 1)[0]), [float(n) for n in counts]


def capacity_claims(*, quick: bool) -> list[Claim]:
    """Measure both capacities, and their exponents."""
    dims = (32, 64, 128, 256) if quick else (32, 64, 128, 256, 512, 1024)
    average, on_average = slope(dims, 0.5, "average", 40, 1.0)
    worst, error_free = slope(dims, 1.0, "error_free", 40, 0.0)
    expected = [capacity_theory(d, 1.0, "error_free") for d in dims]
    return [
        Claim(
            "average fidelity holds O(d) pairs",
            f"Capacity at half the value's length as error, d = {dims[0]} to {dims[-1]}: n = 1 + d/4.",
            "O(d_k) (abstract, v2); exponent 1 (derived)",
            f"exponent {average:.3f}; n = " + " ".join(f"{n:.1f}" for n in on_average),
            verdict(holds=abs(average - 1) < 0.05),
        ),
        Claim(
            "error-free recall holds O(√d) pairs",
            "Capacity when no choice of unit values may move any answer by more than one.",
            "O(√d_k) (abstract, v1); n = " + " ".join(f"{n:.1f}" for n in expected) + " (derived)",
            f"exponent {worst:.3f}; n = " + " ".join(f"{n:.1f}" for n in error_free),
            verdict(holds=abs(worst - 0.5) < 0.05),
        ),
        Claim(
            "both abstracts are right",
            "The exponents of the two definitions differ by about one half.",
            "1 against ½",
            f"{average:.3f} against {worst:.3f}",
            verdict(holds=average - worst > 0.4),
        ),
    ]


def interference_claims(*, quick: bool) -> list[Claim]:
    """Measure the error of Hebb and delta, and of softmax on the same pairs."""
    trials, rng = 60 if quick else 300, np.random.default_rng(1)
    rows = interference_curve([64], [16, 64], trials, rng=rng)
    found = [rows.one(metric="rel_error2", source="simulation", n=n) for n in (16, 64)]
    near = all(abs(row["value"] - hebb_error(row["n"], 64)) < 4 * row["stderr"] for row in found)
    delta = read_errors(rng, trials, 64, 32, "delta").mean(axis=-1)
    exact = float(delta_single_pass_error(64, 32, 1.0).mean())
    keys, values = uniform_on_sphere(rng, (2, 200, 16))
    S = linear_memory_write(keys, values)
    linear = float(np.mean(np.sum((linear_memory_read(S, keys) - values) ** 2, axis=-1)))
    soft = float(np.mean(np.sum((softmax_memory_read(keys, values, keys, 8.0) - values) ** 2, axis=-1)))
    return [
        Claim(
            "stored pairs blur one another",
            "The relative squared error of a Hebbian memory is (n − 1)/d (d = 64; n = 16, 64).",
            "0.234, 0.984 (derived)",
            ", ".join(f"{row['value']:.3f} ± {row['stderr']:.3f}" for row in found),
            verdict(holds=near),
        ),
        Claim(
            "error correction halves the blur",
            "One pass of delta over 64 pairs at d = 32 leaves less than Hebb's 1.969.",
            f"{exact:.4f} (derived)",
            f"{delta.mean():.4f} ± {delta.std() / np.sqrt(trials):.4f}",
            verdict(holds=abs(delta.mean() - exact) < 4 * delta.std() / np.sqrt(trials)),
        ),
        Claim(
            "softmax keeps apart what a linear memory blurs",
            "200 pairs at d = 16, β = 8: squared error of the softmax read and of the linear one.",
            "far below (n − 1)/d = 12.4 (derived)",
            f"softmax {soft:.3f}, linear {linear:.1f}",
            verdict(holds=soft < linear / 50),
        ),
    ]


def depth_claims(*, quick: bool) -> list[Claim]:
    """Measure the error at the end of two chains of memories."""
    trials = 100 if quick else 600
    found = []
    for sizes in ((8, 64, 1, 4), (16, 64, 4, 8)):
        table = depth_error(*sizes, trials, rng=np.random.default_rng(2))
        found.append((table.one(source="simulation"), table.value(source="exact")))
    return [
        Claim(
            "errors multiply with depth, heads divide them",
            "After L layers the squared error is (1 + (n − 1)/(dH))^L − 1; n, d, H, L = 8, 64, 1, 4 and 16, 64, 4, 8.",
            ", ".join(f"{exact:.3f}" for _, exact in found) + " (derived; the abstract names the trade-off)",
            ", ".join(f"{row['value']:.3f} ± {row['stderr']:.3f}" for row, _ in found),
            verdict(holds=all(abs(row["value"] - exact) < 4 * row["stderr"] for row, exact in found)),
        )
    ]


BLOCKING = [Phase((0,), 1.0, 50), Phase((0, 1), 1.0, 50)]
EQUAL = (1.0, 1.0)


def conditioning_claims() -> list[Claim]:
    """Run blocking, overshadowing and inhibition."""
    late = strengths([Phase((0,), 1.0, 50), Phase((0, 1), 1.0, 200)], EQUAL)[-1, 1]
    hebb = strengths(BLOCKING, EQUAL, "hebb")[-1, 1]
    shares = strengths([Phase((0, 1), 1.0, 200)], (1.0, 0.5))[-1]
    inhibitor = strengths([Phase((0,), 1.0, 1), Phase((0, 1), 0.0, 1)] * 400, EQUAL)[-1, 1]
    fits = np.allclose(shares, overshadowed((1.0, 0.5)), rtol=0, atol=1e-6) and abs(inhibitor + 1) < 1e-6
    return [
        Claim(
            "delta heads show blocking",
            "A bell that predicts food leaves nothing for a light beside it to learn; under Hebb the light learns all.",
            f"V_B = {blocked(50, 0.2):.6e} under delta, η a trial under Hebb: 10 (derived)",
            f"V_B = {late:.6e} under delta, {hebb:.1f} under Hebb",
            verdict(holds=abs(late - blocked(50, 0.2)) < 1e-9 and abs(hebb - 10) < 1e-9),
        ),
        Claim(
            "overshadowing and conditioned inhibition",
            "Cues shown together share by salience; a cue that announces omission is driven to −λ.",
            "2/3, 1/3 and −1 (derived)",
            f"{shares[0]:.4f}, {shares[1]:.4f} and {inhibitor:.4f}",
            verdict(holds=bool(fits)),
        ),
    ]


def seconds(function: object, repeats: int = 5) -> float:
    """Return the shortest processor time of some calls."""
    best = np.inf
    for _ in range(repeats):
        begin = time.process_time()
        function()  # type: ignore[operator]
        best = min(best, time.process_time() - begin)
    return best


def cost_claims(*, quick: bool) -> list[Claim]:
    """Fit how reading time grows with what is stored."""
    counts = (2000, 8000) if quick else (2000, 8000, 32000)
    rng = np.random.default_rng(3)
    times: dict[str, list[float]] = {"linear": [], "softmax": []}
    for n in counts:
        keys, values = uniform_on_sphere(rng, (2, n, 32))
        queries, S = keys[:64], values.T @ keys  # Hebb's strengths, all pairs at once
        times["linear"].append(seconds(lambda S=S, q=queries: [linear_memory_read(S, q) for _ in range(1000)]))
        times["softmax"].append(seconds(lambda k=keys, v=values, q=queries: softmax_memory_read(k, v, q, 8.0)))
    fit = {name: float(np.polyfit(np.log(counts), np.log(t), 1)[0]) for name, t in times.items()}
    holds = abs(fit["linear"]) < 0.3 and abs(fit["softmax"] - 1) < 0.4
    return [
        Claim(
            "a linear memory reads in constant time",
            f"Processor time of 64 reads from n = {counts[0]} to {counts[-1]} stored pairs, as a power of n.",
            "0 linear, 1 softmax",
            f"{fit['linear']:.2f} linear, {fit['softmax']:.2f} softmax in this run",
            verdict(holds=holds),
        )
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    return [
        *capacity_claims(quick=quick),
        *interference_claims(quick=quick),
        *depth_claims(quick=quick),
        *conditioning_claims(),
        *cost_claims(quick=quick),
    ]


def draw_course(axes: Axes, phases: list[Phase], title: str, names: tuple[str, ...]) -> None:
    """Draw the strengths of cues trial by trial, delta as lines and Hebb dotted."""
    border = phases[0].trials
    axes.axvspan(0, border, color=GREY, alpha=0.14, lw=0)
    for rule, style in (("delta", "-"), ("hebb", ":")):
        V = strengths(phases, EQUAL, rule)
        for cue, (name, colour) in enumerate(zip(names, (GREEN, RED), strict=False)):
            axes.plot(V[:, cue], style, lw=1.8, color=colour, label=f"{name}, {rule}")
    axes.set(xlabel="trial", ylabel="strength V", ylim=(-0.1, 2.6), title=title)
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="upper right")


def draw_errors(axes: Axes, *, trials: int) -> None:
    """Draw the mean error over n for three widths, with the two capacities."""
    rng = np.random.default_rng(4)
    for dim, colour in ((32, ORANGE), (128, GREEN), (512, BLUE)):
        n = np.arange(1, 200)
        keys = draw_keys(rng, trials, len(n), dim)
        axes.plot(
            n, np.sqrt(cumulative_squared_error(keys).mean(axis=0)), "-", lw=1.8, color=colour, label=f"d = {dim}"
        )
        axes.plot(n, worst_absolute_error(keys).mean(axis=0), "--", lw=1.3, color=colour)
        for definition, mark in (("average", "o"), ("error_free", "s")):
            count = capacity_theory(dim, 0.5, definition)
            axes.plot(count, 0.5, mark, ms=6, color=colour)
    axes.axhline(0.5, lw=0.9, color=GREY)
    axes.text(1.05, 0.53, "ε", color=GREY)
    axes.set(xscale="log", ylim=(0, 1.6), xlim=(1, 200), xlabel="stored pairs n", ylabel="error of a read")
    axes.set_title("Lines: on average, dashes: at worst; marks: predicted capacity at ε = ½")
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="upper left")


def figure(quick: bool) -> Figure:
    """Draw conditioning curves from one loop, and the errors of three memories with both capacities.

    Top: acquisition and extinction (food comes in the grey trials only), and blocking (bell alone in the grey trials,
    bell and light afterwards), under the delta rule and, dotted, under Hebb's. Bottom: mean and worst error of a
    Hebbian memory over the number of pairs, for three widths of keys.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), GREY)
    with mpl.rc_context({**colours, "xtick.color": GREY, "ytick.color": GREY, "font.size": 9, "axes.titlesize": 10}):
        drawing = Figure(figsize=(9.6, 7.2), layout="constrained")
        grid = drawing.subplot_mosaic([["course", "blocking"], ["errors", "errors"]])
        draw_course(
            grid["course"], [Phase((0,), 1.0, 30), Phase((0,), 0.0, 30)], "Acquisition and extinction", ("bell",)
        )
        draw_course(grid["blocking"], BLOCKING, "Blocking: the bell alone, then bell and light", ("bell", "light"))
        draw_errors(grid["errors"], trials=8 if quick else 40)
        for axes in grid.values():
            axes.spines[["top", "right"]].set_visible(False)
    return drawing


if __name__ == "__main__":
    main("pavlovian", claims, figure)
