"""Sentence attention at laptop scale: which object was asked for, on drawn pictures and on a photograph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from claims import Claim, main

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sentence_attention_training import (
    CLASSES,
    VARIANTS,
    Course,
    logits,
    photo_course,
    photograph,
    quadrant_course,
    quadrants,
    right_half,
)

from refattn.layers.sentence_attention import sentence_gate
from refattn.layers.sentence_attention_cost import block_cost, cross_attention_flops
from refattn.layers.sentence_attention_head import MergeWeights, answer_grounding_head, mean_iou

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, GREEN, ORANGE, BLUE, RED = "#7f8fa6", "#3a9188", "#c8963e", "#4a7fc1", "#b5577a"
PALETTE = np.array([[0.29, 0.5, 0.76], [0.78, 0.59, 0.24], [0.23, 0.57, 0.53], [0.71, 0.34, 0.48]])
BLIND = ("image gate, softmax", "image gate, sigmoid", "no gate")


def verdict(*, holds: bool) -> str:
    """Name the outcome of a comparison."""
    return "reproduced" if holds else "not reproduced"


def courses(*, quick: bool) -> dict[str, list[Course]]:
    """Train every variant on the quadrants, three times."""
    seeds, steps = (1, 250) if quick else (3, 400)
    return {name: [quadrant_course(way, seed, steps) for seed in range(seeds)] for name, way in VARIANTS.items()}


def question_claims(found: dict[str, list[Course]]) -> list[Claim]:
    """Compare the block with its ablations."""
    iou = {name: float(np.mean([course.iou for course in trained])) for name, trained in found.items()}
    mass = float(np.mean([course.mass for course in found["SAB"]]))
    first, last = np.mean([(c.entropies[0], c.entropies[-1]) for c in found["SAB"]], axis=0)
    return [
        Claim(
            "the block finds what was asked for",
            "Four objects in a picture, one is asked for: mean intersection over union of the block's mask.",
            "high accuracy on four data sets (abstract; its numbers are not compared); our bound: IoU >= 0.9",
            f"IoU {iou['SAB']:.3f}",
            verdict(holds=iou["SAB"] >= 0.9),
        ),
        Claim(
            "only the sentence can know",
            "Gates computed from the picture, and no gate at all, find nothing.",
            "our bound: IoU <= 0.05",
            ", ".join(f"{name} {iou[name]:.3f}" for name in BLIND),
            verdict(holds=all(iou[name] <= 0.05 for name in BLIND)),
        ),
        Claim(
            "irrelevant channels are filtered out",
            "Share of the gate on the asked channel; entropy of the gate before and after training (ln 10 = 2.303).",
            "filters irrelevant channels (abstract); our bounds: share >= 0.95, entropy < 0.1 nats",
            f"share {mass:.4f}; entropy {first:.3f} → {last:.4f}",
            verdict(holds=mass >= 0.95 and last < 0.1),
        ),
        Claim(
            "softmax beats a sigmoid",
            "IoU with a softmax gate, and with a sigmoid gate that is the same otherwise.",
            "the authors chose softmax; our bound: a gap of 0.03",
            f"{iou['SAB']:.3f} against {iou['sigmoid gate']:.3f}",
            verdict(holds=iou["SAB"] - iou["sigmoid gate"] >= 0.03),
        ),
        Claim(
            "what the LayerNorm does here",
            "IoU with and without it; sentences of this experiment are all about equally loud.",
            "the authors have it",
            f"{iou['SAB']:.3f} with, {iou['SAB without LayerNorm']:.3f} without",
            "not comparable",
        ),
    ]


def photo_claims(*, quick: bool) -> list[Claim]:
    """Ask for parts of a photograph, in the half that was not trained on."""
    photo, seeds, steps = photograph(), (1 if quick else 3), (200 if quick else 1200)
    iou = {
        name: float(np.mean([photo_course(photo, VARIANTS[name], seed, steps)[2] for seed in range(seeds)]))
        for name in ("SAB", "sigmoid gate", "image gate, softmax", "no gate")
    }
    return [
        Claim(
            "on a photograph the question selects",
            "Random projections of 8 × 8 patches; four parts by colour; IoU on the half that was not trained on.",
            "works with different backbones (abstract); our bound: 0.1 more than gates that hear no question",
            ", ".join(f"{name} {value:.3f}" for name, value in iou.items()),
            verdict(holds=iou["SAB"] - max(iou["image gate, softmax"], iou["no gate"]) >= 0.1),
        )
    ]


def pyramid_ious(course: Course, count: int) -> dict[str, float]:
    """Return the IoU of heads with both scales and with one; gates are the trained ones, at every scale."""
    rng = np.random.default_rng(0)
    questions = quadrants(rng, course.embedding, count, scale=2)
    coarse = questions.features.reshape(count, CLASSES, 8, 2, 8, 2).mean(axis=(3, 5))
    coarse = coarse + 0.15 * rng.standard_normal(coarse.shape)
    fine = questions.features + 0.3 * rng.standard_normal(questions.features.shape)
    gate, ones = course.model.gate, np.ones(CLASSES)
    passing = MergeWeights(np.eye(CLASSES), ones, 0 * ones, 0 * ones, ones)
    found = {}
    for name, maps in (("both scales", [fine, coarse]), ("coarse only", [coarse]), ("fine only", [fine])):
        scales = len(maps)
        out = answer_grounding_head(
            maps,
            questions.text,
            [gate] * scales,
            [passing] * (scales - 1),
            np.ones((CLASSES, 1)),
            np.array([-scales / 2]),
            (16, 16),
        )
        found[name] = mean_iou(out[:, 0] > 0, questions.mask)
    return found


def scale_and_cost_claims(course: Course, *, quick: bool) -> list[Claim]:
    """Compare one scale with two, and count."""
    iou = pyramid_ious(course, 100 if quick else 400)
    small, large = block_cost(1, 384, 640, 10, 10), block_cost(1, 384, 640, 80, 80)
    words = cross_attention_flops(80 * 80, 20, 384)
    return [
        Claim(
            "two scales see more than the coarse one",
            "A blurred coarse map and a noisy fine one, merged by the head, against each alone.",
            "merges five scales (official code)",
            ", ".join(f"{name} {value:.3f}" for name, value in iou.items()),
            verdict(holds=iou["both scales"] >= iou["coarse only"]),
        ),
        Claim(
            "a block costs the same for every picture",
            "D = 384, C = 640: parameters; million operations for 10 × 10 and 80 × 80 pixels, beside cross-attention.",
            "1.58 M parameters (derived)",
            f"{small.parameters / 1e6:.2f} M; {small.flops / 1e6:.1f} and {large.flops / 1e6:.1f}; "
            f"from 80 × 80 pixels to 20 words of the same width {words / 1e6:.0f}, without projections",
            verdict(holds=small.parameters == large.parameters == 1_578_112),
        ),
    ]


def claims(quick: bool) -> list[Claim]:
    """Return all claims."""
    found = courses(quick=quick)
    return [
        *question_claims(found),
        *photo_claims(quick=quick),
        *scale_and_cost_claims(found["SAB"][0], quick=quick),
    ]


def frameless(axes: Axes, title: str) -> None:
    """Leave the picture and its title."""
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def draw_questions(grid: dict[str, Axes], course: Course) -> None:
    """Draw one picture, three gates and the three answers."""
    questions = quadrants(np.random.default_rng(11), course.embedding, 1)
    strength = questions.features[0]
    objects = [int(c) for c in np.argsort(-np.sum(strength > 0.5, axis=(1, 2)))[:4]]
    tint = np.zeros((*strength.shape[1:], 4))
    for colour, c in zip(PALETTE, objects, strict=True):
        tint[strength[c] > 0.5] = (*colour, 1.0)
    grid["picture"].imshow(tint, interpolation="nearest")
    frameless(grid["picture"], "Four objects")
    for i, c in enumerate(objects[:3]):
        asked = questions._replace(text=course.embedding[[c]])
        g = sentence_gate(asked.text, course.model.gate)[0]
        bars = grid[f"gate{i}"]
        bars.bar(
            np.arange(CLASSES), g, color=[PALETTE[objects.index(k)] if k in objects else GREY for k in range(CLASSES)]
        )
        bars.set(ylim=(0, 1.05), xticks=range(CLASSES), title=f"Gate for “where is {c}?”")
        bars.spines[["top", "right"]].set_visible(False)
        found = logits(course.model, VARIANTS["SAB"], asked)[0] > 0
        answer = np.zeros((*found.shape, 4))
        answer[found] = (*PALETTE[i], 1.0)
        grid[f"answer{i}"].imshow(answer, interpolation="nearest")
        frameless(grid[f"answer{i}"], "Answer")
    for name in ("picture", "answer0", "answer1", "answer2"):
        grid[name].add_patch(_frame(7.5))


def _frame(side: float) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((-0.5, -0.5), side + 0.5, side + 0.5, fill=False, color=GREY, lw=0.8, clip_on=False)


def draw_photo(grid: dict[str, Axes], steps: int) -> None:
    """Draw the photograph's patches, and what three questions find in the half that was not trained on."""
    photo = photograph()
    model, embedding, _ = photo_course(photo, VARIANTS["SAB"], 0, steps)
    grid["photo"].imshow(photo.colours, interpolation="nearest")
    half = photo.labels.shape[1] // 2
    grid["photo"].axvline(half - 0.5, color=ORANGE, lw=1.2)
    frameless(grid["photo"], "Trained left of the line")
    test = right_half(np.random.default_rng(0), photo, embedding)
    found = logits(model, VARIANTS["SAB"], test._replace(text=embedding)) > 0
    shown = np.argsort(-np.sum(found & test.mask, axis=(1, 2)))[:3]
    for i, part in enumerate(shown):
        image = np.concatenate([photo.colours[:, half:], np.where(found[part], 1.0, 0.08)[..., None]], axis=-1)
        grid[f"part{i}"].imshow(image, interpolation="nearest")
        frameless(grid[f"part{i}"], f"Part {part}, IoU {mean_iou(found[part], test.mask[part]):.2f}")


def figure(quick: bool) -> Figure:
    """Draw three questions to one picture, the entropy of gates over training, and three to a photograph.

    Top: a picture of four objects and the gates that three questions open; below, how the entropy of gates falls
    during training, and the answers. Bottom: a photograph and what three questions find in its unseen half.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    course = quadrant_course(VARIANTS["SAB"], 0, 250 if quick else 400)
    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), GREY)
    with mpl.rc_context({**colours, "xtick.color": GREY, "ytick.color": GREY, "font.size": 8, "axes.titlesize": 9}):
        drawing = Figure(figsize=(9.6, 7.6), layout="constrained")
        grid = drawing.subplot_mosaic(
            [
                ["picture", "gate0", "gate1", "gate2"],
                ["entropy", "answer0", "answer1", "answer2"],
                ["photo", "part0", "part1", "part2"],
            ],
            height_ratios=[1, 1, 1.25],
        )
        draw_questions(grid, course)
        grid["entropy"].plot(course.entropies, color=BLUE, lw=1.8)
        grid["entropy"].axhline(np.log(CLASSES), color=GREY, lw=0.9, ls=":")
        grid["entropy"].text(len(course.entropies), np.log(CLASSES) - 0.22, "ln 10", ha="right")
        grid["entropy"].set(xlabel="training step", ylabel="nats", title="Entropy of gates", ylim=(0, 2.5))
        grid["entropy"].spines[["top", "right"]].set_visible(False)
        draw_photo(grid, 200 if quick else 1200)
    return drawing


if __name__ == "__main__":
    main("sentence_attention", claims, figure)
