"""Circuit reuse at laptop scale: two circuits traced in a planted model, what they share, and a repair by attention."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from claims import Claim, main

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from refattn.interpretability.circuit_reuse import Stage, path_patch, trace_circuit
from refattn.interpretability.circuit_reuse_detectors import accuracy, attention_to, force_attention
from refattn.interpretability.circuit_reuse_effects import circuit_overlap
from refattn.interpretability.circuit_reuse_list import (
    QUERY_POSITION,
    SUBJECT_POSITION,
    ListPrompts,
    list_colored_objects,
    list_ioi,
)
from refattn.transformer.ablation import ablate_heads
from refattn.transformer.config import TransformerConfig
from refattn.transformer.planted.list_model import BOUND, build_list_model
from refattn.transformer.weights import random_transformer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, GREEN, ORANGE, BLUE, RED = "#7f8fa6", "#3a9188", "#c8963e", "#4a7fc1", "#b5577a"
MODEL, LAYOUT = build_list_model()
INHIBITION, GATHERER, MOVER, NEGATIVE = (1, 0), (1, 1), (2, 0), (2, 1)
DECOYS = ((0, 1), (0, 2), (1, 2), (2, 2))
THRESHOLD = 0.05
SHARED = {(0, 0), MOVER, NEGATIVE}
PLANTED = {"ioi": SHARED | {INHIBITION}, "colours": SHARED | {GATHERER}}
BATCH = 50


def verdict(*, holds: bool) -> str:
    """Name the outcome of a comparison."""
    return "reproduced" if holds else "not reproduced"


def named(heads: Iterable[tuple[int, int]]) -> str:
    """Write heads as layer.head."""
    return " ".join(f"{layer}.{head}" for layer, head in sorted(heads))


def answerable(n: int) -> list[np.ndarray]:
    """Return Colored Objects prompts whose clean and corrupt questions are about objects that the model looks up."""
    drawn = list_colored_objects(LAYOUT, np.random.default_rng(1), 40 * n)
    known = np.isin(drawn.corrupt[:, QUERY_POSITION], LAYOUT.encode(BOUND)) & drawn.bound
    return [table[known][:n] for table in drawn[:3]]


def traced(n: int) -> dict[str, tuple[frozenset[tuple[int, int]], tuple[Stage, ...]]]:
    """Trace both circuits on n prompts each, knowing nothing of what was planted but the threshold."""
    ioi = list_ioi(LAYOUT, np.random.default_rng(0), n)[:3]
    return {
        "ioi": trace_circuit(MODEL, *ioi, source=SUBJECT_POSITION, threshold=THRESHOLD),
        "colours": trace_circuit(MODEL, *answerable(n), source=QUERY_POSITION, threshold=THRESHOLD),
    }


def planted_effects(stage: Stage, task: str) -> np.ndarray:
    """Return the effects that a stage must show: the direct ones, or one for the head that talks to the receivers."""
    effect = np.zeros((3, 3))
    if stage.component == "z":
        effect[MOVER], effect[NEGATIVE] = 1 / 0.7, -0.3 / 0.7
    elif stage.component == "q":
        effect[INHIBITION if task == "ioi" else GATHERER] = 1.0
    else:
        effect[0, 0] = 1.0
    return effect


def circuit_claims(*, quick: bool) -> list[Claim]:
    """Trace the circuits and compare them."""
    found = traced(1 if quick else 8)
    off = max(
        float(np.max(np.abs(stage.effect - planted_effects(stage, task))))
        for task, (_, stages) in found.items()
        for stage in stages
    )
    ioi, colours = found["ioi"][0], found["colours"][0]
    shared = circuit_overlap(ioi, colours)
    right = ioi == PLANTED["ioi"] and colours == PLANTED["colours"]
    return [
        Claim(
            "path patching finds what was planted",
            "Three stages for each task, every matrix of effects against the values that follow from the weights.",
            f"IOI {named(PLANTED['ioi'])}; Colored Objects {named(PLANTED['colours'])} (planted)",
            f"IOI {named(ioi)}; Colored Objects {named(colours)}; effects off by at most {off:.0e}",
            verdict(holds=right and off < 1e-4),
        ),
        Claim(
            "two tasks share most of their circuits",
            "Shared heads as a part of the larger circuit, found by path patching alone.",
            "78 % (25 of 32 heads of GPT-2 Medium); 75 % planted here",
            f"{100 * shared.overlap:.0f} % ({len(shared.shared)} of {max(len(ioi), len(colours))}), "
            f"Jaccard {shared.jaccard:.2f}",
            verdict(holds=shared.overlap == 0.75 and shared.jaccard == 0.6),
        ),
    ]


def scored(
    prompts: ListPrompts, heads: Iterable[tuple[int, int]] = (), hooks: Any = None, weight: float = 1.0
) -> float:
    """Return the accuracy while heads look at the wrong colours, in batches."""
    parts = []
    for start in range(0, len(prompts.clean), BATCH):
        ids, answers, wrong = (table[start : start + BATCH] for table in (prompts.clean, prompts.answers, prompts[3]))
        forced = force_attention(MODEL, ids, heads, -1, wrong.tolist(), weight=weight) if heads else hooks
        parts.append(len(ids) * accuracy(MODEL, ids, answers, hooks=forced))
    return sum(parts) / len(prompts.clean)


def repair_claims(*, quick: bool) -> list[Claim]:
    """Force attention on the wrong colours, and take heads out."""
    prompts = list_colored_objects(LAYOUT, np.random.default_rng(2), 40 if quick else 400)
    before, after = scored(prompts), scored(prompts, [INHIBITION])
    negative = scored(prompts, [NEGATIVE])
    blocked, decoys = (scored(prompts, hooks=ablate_heads(heads)) for heads in ([GATHERER], DECOYS))
    low, high = (0.3, 0.7) if quick else (0.42, 0.58)
    size = f"{len(prompts.clean)} prompts"
    return [
        Claim(
            "making the inhibition head work repairs the second task",
            f"Accuracy on Colored Objects before and after head 1.0 looks at the two wrong colours; {size}.",
            "49.6 % → 81.5 % (three inhibition heads), 93.7 % (with the negative mover); about 50 % → 100 % planted",
            f"{100 * before:.1f} % → {100 * after:.1f} %",
            verdict(holds=low <= before <= high and after == 1.0),
        ),
        Claim(
            "the negative mover alone repairs most",
            f"Accuracy when only head 2.1 looks at the wrong colours; {size}.",
            "78.1 %",
            f"{100 * negative:.1f} %: with ν = 0.3 it is too weak against the mover",
            verdict(holds=negative > 0.75),
        ),
        Claim(
            "without content gatherers the task is lost, other heads do not matter",
            f"Accuracy without head 1.1, and without all four decoys; {size}.",
            "35 % against 49.9 ± 1.0 % for random heads; 1/3 planted (the last item is always named)",
            f"{100 * blocked:.1f} % against {100 * decoys:.1f} %",
            verdict(holds=abs(blocked - 1 / 3) < (0.25 if quick else 0.08) and decoys == before),
        ),
    ]


def dose(n: int, weights: np.ndarray) -> tuple[list[float], list[float]]:
    """Return accuracy, and the mover's attention to a wrong colour, for each part of head 1.0's row that is forced."""
    prompts = list_colored_objects(LAYOUT, np.random.default_rng(3), n)
    right, looked = [], []
    for weight in weights:
        wrong = prompts.distractors
        hooks = force_attention(MODEL, prompts.clean, [INHIBITION], -1, wrong.tolist(), weight=float(weight))
        right.append(accuracy(MODEL, prompts.clean, prompts.answers, hooks=hooks))
        looked.append(float(attention_to(MODEL, prompts.clean, wrong, hooks=hooks)[MOVER]))
    return right, looked


def dose_claims(*, quick: bool) -> list[Claim]:
    """Force the row little by little."""
    weights = np.array([0.0, 0.3, 1.0]) if quick else np.array([0.0, 0.1, 0.19, 0.23, 0.3, 0.36, 0.39, 0.5, 1.0])
    right, looked = dose(16 if quick else 50, weights)
    levels = len(set(right))
    return [
        Claim(
            "the more attention is forced, the more the mover turns away",
            "Head 1.0's row, forced by a part w: accuracy and the mover's mean attention to a wrong colour.",
            "attention to wrong colours falls by 8.7 points at w = 1; steps at w = 5/24 and 3/8 (derived)",
            f"attention {looked[0]:.3f} → {looked[-1]:.3f}, falling; accuracy {right[0]:.2f} → {right[-1]:.2f}, "
            f"{levels} levels over w = {', '.join(f'{w:.2f}' for w in weights)}",
            verdict(holds=bool(np.all(np.diff(looked) <= 1e-9)) and right[-1] == 1.0 and levels <= 3),
        )
    ]


def cost_claims(*, quick: bool) -> list[Claim]:
    """Fit how the time of one matrix grows with the number of senders."""
    layers, heads = 12, 4
    config = TransformerConfig(
        *("gpt2", layers, 64, heads, heads, 16, 64, 50, 32, "layer", 1e-5, "gelu_new", False, "learned", None),
        attn_scale=(0.25,) * layers,
        window=(None,) * layers,
    )
    rng = np.random.default_rng(4)
    model = random_transformer(config, rng)
    clean, corrupt = rng.integers(50, size=(2, 4, 24))
    answers = np.stack([np.arange(4), np.arange(4) + 4], axis=1)
    places = (1, 5) if quick else (1, 3, 7, 11)
    times = []
    for place in places:
        begin = time.process_time()
        path_patch(model, clean, corrupt, answers, [(place, 0)], component="q")
        times.append(time.process_time() - begin)
    passes = np.array([2 + 2 * ((place + 1) * heads - 1) for place in places])
    fitted = float(np.polyfit(np.log(passes), np.log(times), 1)[0])
    return [
        Claim(
            "the cost is linear in the senders",
            f"Processor time of one matrix of {', '.join(map(str, passes))} passes, 2 + 2n for n senders, as a power.",
            "1.0 ± 0.1 (derived)",
            f"{fitted:.2f} in this run",
            verdict(holds=abs(fitted - 1) < (0.3 if quick else 0.1)),
        )
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    return [
        *circuit_claims(quick=quick),
        *repair_claims(quick=quick),
        *dose_claims(quick=quick),
        *cost_claims(quick=quick),
        Claim(
            "the heads of GPT-2 Medium",
            "Overlap, repair and controls in the trained model of 24 layers.",
            "25 of 32 heads shared; 16.7 % and 25 % with the control tasks; 93.7 % after the repair",
            "not run: it needs the checkpoint; the same functions take one",
            "not comparable",
        ),
    ]


ROLES = {
    (0, 0): "0.0\nduplicate",
    INHIBITION: "1.0\ninhibition",
    GATHERER: "1.1\ngatherer",
    MOVER: "2.0\nmover",
    NEGATIVE: "2.1\nneg. mover",
}
PLACES = {(0, 0): (0.5, 0.1), INHIBITION: (0.2, 0.5), GATHERER: (0.8, 0.5), MOVER: (0.3, 0.9), NEGATIVE: (0.7, 0.9)}


def draw_wiring(axes: Axes, title: str, own: tuple[int, int], colour: str) -> None:
    """Draw the heads of a circuit, shared ones in green, and who tells whom through what."""
    wires = [((0, 0), own, "value"), (own, MOVER, "query"), (own, NEGATIVE, "query")]
    for start, end, label in wires:
        (x0, y0), (x1, y1) = PLACES[start], PLACES[end]
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 1, "shrinkB": 1}
        axes.annotate("", (x1, y1 - 0.07), (x0, y0 + 0.07), arrowprops=arrow)
        axes.text((x0 + x1) / 2 + 0.04, (y0 + y1) / 2, label, color=colour, fontsize=8, va="center")
    for head, (x, y) in PLACES.items():
        used = head in SHARED or head == own
        edge = GREEN if head in SHARED else colour if used else GREY
        box = {"boxstyle": "round,pad=0.35", "facecolor": "none", "edgecolor": edge, "lw": 1.8 if used else 0.7}
        axes.text(
            x, y, ROLES[head], ha="center", va="center", fontsize=8, color=edge, bbox=box, alpha=1.0 if used else 0.6
        )
    axes.set(xlim=(0, 1), ylim=(-0.04, 1.04), xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def draw_matrix(axes: Axes, stage: Stage, title: str) -> None:
    """Draw the cells that light up at a stage, with their numbers."""
    from matplotlib.patches import Rectangle

    for layer, head in stage.heads:
        value = stage.effect[layer, head]
        colour = GREEN if value > 0 else RED
        axes.add_patch(
            Rectangle((head - 0.5, layer - 0.5), 1, 1, color=colour, alpha=0.25 * min(1.0, abs(value)), lw=0)
        )
        axes.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set(xticks=range(3), yticks=range(3), xlim=(-0.5, 2.5), ylim=(2.5, -0.5), aspect="equal")
    for border in (0.5, 1.5):
        axes.axhline(border, lw=0.5, color=GREY, alpha=0.5)
        axes.axvline(border, lw=0.5, color=GREY, alpha=0.5)
    axes.set_title(title, fontsize=8)
    axes.tick_params(labelsize=7, length=0)


def figure(quick: bool) -> Figure:
    """Draw both circuits, their matrices of effects, and what forcing one head's attention does.

    Top: who tells whom in the two tasks; green heads are shared. Middle: effects of all nine heads at three stages
    (rows are layers, columns heads). Bottom: accuracy and the mover's attention over the part of the inhibition head's
    row that is forced onto the wrong colours.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = traced(1 if quick else 4)
    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), GREY)
    with mpl.rc_context({**colours, "xtick.color": GREY, "ytick.color": GREY, "font.size": 9, "axes.titlesize": 10}):
        drawing = Figure(figsize=(9.6, 9.0), layout="constrained")
        top, middle, bottom = drawing.subfigures(3, 1, height_ratios=[1.25, 0.85, 1.0])
        wiring = top.subplots(1, 2)
        draw_wiring(wiring[0], "IOI: … bob gave a ring to", INHIBITION, BLUE)
        draw_wiring(wiring[1], "Colored Objects: … what color is the mug? ans:", GATHERER, ORANGE)
        halves = middle.subfigures(1, 2)
        for half, (task, (_, stages)) in zip(halves, found.items(), strict=True):
            panels = half.subplots(1, 3)
            source = "S2" if task == "ioi" else "object"
            middle_head = "1.0" if task == "ioi" else "1.1"
            titles = ("to the output", "to q of 2.0, 2.1", f"to v of {middle_head} at {source}")
            for axes, stage, title in zip(panels, stages, titles, strict=True):
                draw_matrix(axes, stage, title)
            panels[0].set_ylabel("layer", fontsize=8)
            panels[1].set_xlabel("head", fontsize=8)
        draw_dose(bottom.subplots(), quick=quick)
    return drawing


def draw_dose(axes: Axes, *, quick: bool) -> None:
    """Draw accuracy and attention over the forced part, with the steps that follow from the weights."""
    weights = np.linspace(0, 1, 6 if quick else 30)
    right, looked = dose(8 if quick else 16, weights)
    for step, label in ((5 / 24, "5/24"), (3 / 8, "3/8")):
        axes.axvline(step, lw=0.8, ls=":", color=GREY)
        axes.text(step + 0.008, 0.36, f"w = {label}", color=GREY, fontsize=8)
    axes.plot(weights, right, "-o", ms=3, lw=1.8, color=GREEN, label="accuracy")
    axes.plot(weights, looked, "-o", ms=3, lw=1.8, color=RED, label="mover's attention to a wrong colour")
    axes.set(xlabel="forced part w of the inhibition head's row", ylim=(-0.03, 1.06), xlim=(-0.01, 1.01))
    axes.set_title("Colored Objects while head 1.0 is made to look at the wrong colours")
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="center right")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main("circuit_reuse", claims, figure)
