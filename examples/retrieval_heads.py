"""Retrieval heads at laptop scale: found in a planted model, told from heads that only look, masked, and shaken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from claims import Claim, main
from scipy.stats import rankdata

from refattn.interpretability.retrieval_heads import rank_heads, score_correlation
from refattn.interpretability.retrieval_heads_detection import detect_retrieval_heads, run_retrieval
from refattn.interpretability.retrieval_heads_masking import mask_heads, masking_experiment
from refattn.interpretability.retrieval_heads_tasks import PLANTED, needle_tasks
from refattn.transformer.planted.retrieval_model import build_retrieval_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refattn.interpretability.retrieval_heads_tasks import NeedleTask
    from refattn.transformer.weights import Transformer

DEPTHS = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
HEADS = tuple((layer, head) for layer in range(2) for head in range(3))
COPIES, LOOKS = (1, 0), (1, 1)  # the head that does the work, and the one that only looks
STOP: dict[str, Any] = {"stop_ids": (PLANTED.period,)}
NOISE = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
GREY, TEAL, SAND, PLUM = "#7f8fa6", "#3a9188", "#c8963e", "#b5577a"


def draw_tasks(lengths: tuple[int, ...], depths: tuple[int, ...] = DEPTHS, seed: int = 0) -> list[NeedleTask]:
    """Return one task for each length and depth."""
    return needle_tasks(np.random.default_rng(seed), lengths, depths)


def expected_half_score(task: NeedleTask) -> float:
    """Return what head 1.1 must score: it matches even tokens only, so it sees what follows an even one."""
    before = np.concatenate([[PLANTED.key], task.needle[:-1]])
    return float(np.mean(before % 2 == 0))


def planted_claims(model: Transformer, tasks: list[NeedleTask]) -> list[Claim]:
    """Compare what is found in the planted model with what was planted (H1)."""
    runs = [run_retrieval(model, task, **STOP) for task in tasks]
    scores = np.stack([run.score for run in runs])  # (N, L, H)
    half = [expected_half_score(task) for task in tasks]
    others = [scores[:, layer, head].max() for layer, head in HEADS if (layer, head) not in (COPIES, LOOKS)]
    said = all(
        np.array_equal(run.generated, [*task.needle, PLANTED.period]) for run, task in zip(runs, tasks, strict=True)
    )
    exact = (
        np.allclose(scores[:, *COPIES], 1, rtol=0, atol=1e-12)
        and np.allclose(scores[:, *LOOKS], half, rtol=0, atol=1e-12)
        and max(others) == 0
    )
    return [
        Claim(
            "H1 the planted head is found",
            f"In {len(tasks)} tasks of {min(t.length for t in tasks)} to {max(t.length for t in tasks)} tokens the "
            "model says the needle; head 1.0 scores 1 in each, head 1.1 the share of even tokens, all others 0.",
            "1, (1 + 5 · 4/9)/6 = 0.537 on average, 0 (planted)",
            f"1.0: {scores[:, *COPIES].min():.3f} at least; 1.1: {scores[:, *LOOKS].mean():.3f}, "
            f"{np.mean(half):.3f} by its tokens; others {max(others):.3f} at most; needle said: {said}",
            "reproduced" if said and exact else "not reproduced",
        )
    ]


def recall_without(
    model: Transformer, tasks: list[NeedleTask], heads: tuple[tuple[int, int], ...], **how: str
) -> float:
    """Return the mean recall with heads masked."""
    masks = [mask_heads(heads, **how)]
    return float(np.mean([run_retrieval(model, task, interventions=masks, **STOP).recall for task in tasks]))


def causal_claims(model: Transformer, tasks: list[NeedleTask]) -> list[Claim]:
    """Mask heads one by one, and by rank (H2)."""
    found = detect_retrieval_heads(model, tasks, **STOP)
    alone = {head: recall_without(model, tasks, (head,)) for head in HEADS}
    zeroed = {head: recall_without(model, tasks, (head,), kind="zero") for head in HEADS}
    prompt = recall_without(model, tasks, ((0, 0),), phase="all")
    curve = masking_experiment(model, tasks, rank_heads(found.mean), range(4), np.random.default_rng(1), **STOP)
    needed = [head for head in HEADS if alone[head] == zeroed[head] == 0.0]
    spared = all(alone[head] == zeroed[head] == 1.0 for head in HEADS if head != COPIES)
    holds = bool(np.array_equal(curve.top, [1, 0, 0, 0]) and np.all(curve.random == 1))
    return [
        Claim(
            "H2 retrieval heads are causal",
            "Masking the K heads of highest score takes the needle away; masking K random heads does not.",
            "causal (abstract); recall 1, 0, 0, 0 against 1, 1, 1, 1 (planted)",
            f"top K = 0 to 3: {', '.join(f'{x:g}' for x in curve.top)}; "
            f"random: {', '.join(f'{x:g}' for x in curve.random.mean(-1))}",
            "reproduced" if holds else "not reproduced",
        ),
        Claim(
            "H2 looking is not copying",
            "Head 1.1 has a score far above the threshold, yet only masking 1.0 changes the answer, whether its "
            "attention is made uniform or its output zero.",
            "recall 0 without 1.0, 1 without any other single head (planted)",
            f"score of 1.1 {found.mean[LOOKS]:.2f}, recall without it {alone[LOOKS]:g}; "
            f"without {', '.join(f'{layer}.{head}' for layer, head in needed)}: 0; all others spare it: {spared}",
            "reproduced" if needed == [COPIES] and spared else "not reproduced",
        ),
        Claim(
            "H2 masking in decoding spares what the prompt has done",
            "Head 0.0 is needed, but its work lies in the cache: only masking it on the prompt too shows that.",
            "recall 1 in decoding, 0 on the prompt (planted)",
            f"{alone[0, 0]:g} and {prompt:g}",
            "reproduced" if (alone[0, 0], prompt) == (1.0, 0.0) else "not reproduced",
        ),
    ]


def few_samples_claim(model: Transformer, tasks: list[NeedleTask]) -> Claim:
    """Ask how many tasks the ranking needs (H3)."""
    scores = np.stack([run_retrieval(model, task, **STOP).score for task in tasks])
    full = scores.mean(0)
    same_top = np.mean([rank_heads(score)[0] == rank_heads(full)[0] for score in scores])
    few = 10
    rng = np.random.default_rng(2)
    samples = [scores[rng.choice(len(tasks), size=few, replace=False)].mean(0) for _ in range(20)]
    worst = min(float(score_correlation(rankdata(s)[None], rankdata(full)[None])) for s in samples)
    return Claim(
        "H3 a few short samples find the strongest heads",
        f"One task names the same best head as {len(tasks)}, and {few} tasks rank all heads alike.",
        "few samples suffice for the strongest heads (README of the code); Spearman > 0.99 (planted)",
        f"one task: {100 * same_top:.0f} % of the tasks; {few} tasks: Spearman {worst:.3f} at least in 20 draws",
        "reproduced" if same_top == 1 and worst > 0.99 else "not reproduced",
    )


def shaken(model: Transformer, noise: float, rng: np.random.Generator) -> Transformer:
    """Add noise to all queries' and keys' weights, but not to what they would read from the ballast."""
    d = model.config.d_model

    def shake(weight: np.ndarray) -> np.ndarray:
        added = noise * rng.standard_normal(weight.shape)
        added[:, d - 2] = 0.0
        return weight + added

    blocks = tuple(block._replace(W_Q=shake(block.W_Q), W_K=shake(block.W_K)) for block in model.weights.blocks)
    return model._replace(weights=model.weights._replace(blocks=blocks))


def noise_curves(model: Transformer, tasks: list[NeedleTask], draws: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shake the model several times at each level of noise.

    Returns
    -------
    own, other, recall : ndarray, shape (len(NOISE), draws)
        The score of head 1.0, the best score of another head, and the recall.
    """
    own, other, recall = np.empty((3, len(NOISE), draws))
    for level, noise in enumerate(NOISE):
        rng = np.random.default_rng(3)
        for draw in range(draws):
            noisy = shaken(model, noise, rng)
            runs = [run_retrieval(noisy, task, max_new=8, **STOP) for task in tasks]
            mean = np.mean([run.score for run in runs], axis=0)  # (L, H)
            own[level, draw] = mean[COPIES]
            other[level, draw] = max(mean[head] for head in HEADS if head != COPIES)
            recall[level, draw] = np.mean([run.recall for run in runs])
    return own, other, recall


def noise_claim(model: Transformer, tasks: list[NeedleTask], draws: int) -> Claim:
    """Shake the weights and see how long the head is found (H4)."""
    own, other, recall = noise_curves(model, tasks, draws)
    calm = bool(np.all(own[:3] == 1) and np.all(recall[:3] == 1))
    first = bool(np.all(own.mean(-1) > other.mean(-1)))
    apart = NOISE.index(0.1)
    return Claim(
        "H4 score and recall fall together under noise",
        "With noise of deviation ε on all query and key weights, head 1.0 keeps score and recall of 1 up to ε = 0.03, "
        "then both fall; on average it stays the best ranked head.",
        "1 for ε ≤ 0.03 (planted)",
        f"ε = {', '.join(f'{e:g}' for e in NOISE)}: score {', '.join(f'{x:.2f}' for x in own.mean(-1))}; "
        f"recall {', '.join(f'{x:.2f}' for x in recall.mean(-1))}; best ranked on average: {first} (draws: {draws}; "
        f"at ε = 0.1 their scores lie between {own[apart].min():.2f} and {own[apart].max():.2f})",
        "reproduced" if calm and first else "not reproduced",
    )


def large_model_claims() -> list[Claim]:
    """Name what needs the models of the paper."""
    needs = "needs models of 6 to 47 billion parameters"
    return [
        Claim(
            "retrieval heads of large models are universal, sparse and dynamic",
            "All tested models have them; they are fewer than 5 % of the heads; twelve heads of Llama-2-7B are always "
            "active.",
            "universal, < 5 %, 12 (abstract)",
            f"{needs}; the published score maps are counted on the page",
            "not comparable",
        ),
        Claim(
            "retrieval heads are intrinsic",
            "Models made from one base model use the same heads.",
            "maps look alike within a family (figure)",
            f"{needs}; correlations of the published maps are on the page",
            "not comparable",
        ),
        Claim(
            "chain of thought needs retrieval heads",
            "Masking them damages reasoning that refers back to the question.",
            "strong influence (abstract)",
            f"{needs} and their benchmarks",
            "not comparable",
        ),
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    model = build_retrieval_model()
    tasks = draw_tasks((32, 64) if quick else (32, 64, 128, 256, 512))
    few = draw_tasks((64,), (0, 33, 67, 100)) if quick else draw_tasks((64, 128), (0, 33, 67, 100))
    return [
        *planted_claims(model, tasks),
        *causal_claims(model, few),
        few_samples_claim(model, tasks),
        noise_claim(model, few, 1 if quick else 6),
        *large_model_claims(),
    ]


def draw_walk(axes: Axes, model: Transformer) -> None:
    """Draw a haystack as a strip, and below it where three heads look at each step."""
    from matplotlib.patches import Rectangle

    task = draw_tasks((56,), (50,), seed=5)[0]
    run = run_retrieval(model, task, **STOP)
    start, end = task.span
    steps = len(run.generated)
    text = np.concatenate([task.ids, run.generated[:-1]])
    for at, token in enumerate(text):
        needle = start <= at < end
        said = at >= len(task.ids)
        colour = TEAL if needle else PLUM if said else SAND if token == PLANTED.key else GREY
        strength = 0.15 if token in (PLANTED.period, PLANTED.bos) else 0.35
        axes.add_patch(Rectangle((at - 0.45, -1.5), 0.9, 0.9, color=colour, lw=0, alpha=0.9 if needle else strength))
        if needle or said or token == PLANTED.key:
            axes.text(at, -1.05, str(token), ha="center", va="center", fontsize=7, color="white" if needle else GREY)
    looks = (((0, 1), SAND, "0.1 looks at the word itself", "s"), ((1, 2), PLUM, "1.2 looks one token back", "^"))
    for head, colour, label, mark in (*looks, (COPIES, TEAL, "1.0 looks at the word it copies", "o")):
        axes.plot(run.top_keys[:, *head], range(steps), f"{mark}-", color=colour, label=label, ms=6, lw=0.8)
    axes.axvspan(start - 0.5, end - 0.5, color=TEAL, alpha=0.10, lw=0)
    axes.set_yticks(range(steps), [f"{step + 1}: says {token}" for step, token in enumerate(run.generated)])
    axes.set(
        xlim=(-0.8, len(text) - 0.2), ylim=(steps - 0.4, -1.7), xlabel="position (needle, then question and answer)"
    )
    axes.set_title("A retrieval head walks through the needle, one word a step")
    axes.legend(frameon=False, loc="lower left", labelcolor="linecolor")


def draw_bars(axes: Axes, model: Transformer, tasks: list[NeedleTask]) -> None:
    """Draw score and causal effect of two heads side by side."""
    found = detect_retrieval_heads(model, tasks, **STOP)
    place = np.arange(2)
    axes.bar(place - 0.18, [found.mean[head] for head in (COPIES, LOOKS)], 0.34, color=TEAL, label="retrieval score")
    effect = [1.0 - recall_without(model, tasks, (head,)) for head in (COPIES, LOOKS)]
    axes.bar(place + 0.18, effect, 0.34, color=PLUM, label="recall lost when masked")
    axes.text(place[1] + 0.18, 0.02, "0", ha="center", color=PLUM)
    axes.set_xticks(place, ["1.0, copies", "1.1, only looks"])
    axes.set(ylim=(0, 1.32), title="Attention is not causality")
    axes.legend(frameon=False, loc="upper right", labelcolor="linecolor", fontsize=8)


def draw_masking(axes: Axes, model: Transformer, tasks: list[NeedleTask]) -> None:
    """Draw experiment H2: recall against the number of masked heads."""
    ranked = rank_heads(detect_retrieval_heads(model, tasks, **STOP).mean)
    curve = masking_experiment(model, tasks, ranked, range(4), np.random.default_rng(1), **STOP)
    axes.plot(curve.ks, curve.random.mean(-1), "s-", color=GREY, label="random heads")
    axes.plot(curve.ks, curve.top, "o-", color=PLUM, label="best ranked heads")
    axes.set(xlabel="masked heads K", ylabel="recall", ylim=(-0.05, 1.32), xticks=curve.ks)
    axes.set_title("Masking by rank")
    axes.legend(frameon=False, loc="center right", labelcolor="linecolor", fontsize=8)


def draw_noise(axes: Axes, model: Transformer, tasks: list[NeedleTask], draws: int) -> None:
    """Draw experiment H4: score and recall against noise."""
    own, other, recall = (curve.mean(-1) for curve in noise_curves(model, tasks, draws))
    place = np.arange(len(NOISE))
    axes.plot(place, recall, "s--", color=PLUM, label="recall")
    axes.plot(place, own, "o-", color=TEAL, label="score of 1.0")
    axes.plot(place, other, "^-", color=GREY, label="best other score")
    axes.set_xticks(place, [f"{noise:g}" for noise in NOISE])
    axes.set(xlabel="noise ε on query and key weights", ylim=(-0.05, 1.32), title="Under noise score and recall fall")
    axes.legend(frameon=False, loc="upper right", labelcolor="linecolor", fontsize=8, ncols=2)


def figure(quick: bool) -> Figure:
    """Draw the walk through a needle, score against effect, and recall under masks and noise.

    Top: a prompt of 56 tokens as a strip, the needle in green, and below it the most attended key of three heads at
    each step of the answer. Bottom: score and causal effect of heads 1.0 and 1.1; recall with the best ranked and with
    random heads masked (experiment H2); score and recall when all query and key weights are shaken (experiment H4).
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    model, tasks = build_retrieval_model(), draw_tasks((64,), (0, 33, 67, 100))
    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), GREY)
    with mpl.rc_context({**colours, "xtick.color": GREY, "ytick.color": GREY, "font.size": 9, "axes.titlesize": 10}):
        drawing = Figure(figsize=(11, 7), layout="constrained")
        top, bottom = drawing.subfigures(2, 1, height_ratios=(1.15, 1), hspace=0.04)
        draw_walk(top.subplots(), model)
        left, middle, right = bottom.subplots(1, 3)
        draw_bars(left, model, tasks)
        draw_masking(middle, model, tasks)
        draw_noise(right, model, tasks, 1 if quick else 6)
        for part in drawing.get_axes():
            part.spines[["top", "right"]].set_visible(False)
    return drawing


if __name__ == "__main__":
    main("retrieval_heads", claims, figure)
