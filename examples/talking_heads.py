"""Talking heads at laptop scale: a channel found in weights, a circuit read from weights, a dial, and crowded lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from claims import Claim, main

from refattn.interpretability.circuit_reuse_list import list_ioi
from refattn.interpretability.talking_heads import (
    MODES,
    component_scores,
    composition_scores,
    head_svd,
    inhibition_score,
)
from refattn.interpretability.talking_heads_channels import (
    channel_basis,
    inhibition_changes,
    remove_components,
    replace_head,
    set_channel,
)
from refattn.interpretability.talking_heads_lists import laundry_list
from refattn.interpretability.talking_heads_report import stacked_weights
from refattn.transformer.forward import forward
from refattn.transformer.planted.list_model import OBJECTS, build_list_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refattn.transformer.planted.list_model import ListLayout
    from refattn.transformer.weights import Transformer

Weights = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

GREY, TEAL, SAND, PLUM = "#7f8fa6", "#3a9188", "#c8963e", "#b5577a"
WRITER, READER, COMPONENT = (0, 1), (2, 3), 7  # who speaks, who listens, and along which component
MOVER = (2, 0)  # of the list model
INTO_MOVER = "blocks.2.hook_resid_pre"
WIRING = {
    "Q": {((1, h), (2, g)) for h in (0, 1) for g in (0, 1)},
    "K": {((0, 0), head) for head in ((1, 0), (1, 1), (2, 0), (2, 1))},
    "V": {((0, 0), head) for head in ((1, 0), (1, 1))},
}
"""What was planted in the list model: who reads whom with what."""


def planted_weights(seed: int, alpha: float) -> Weights:
    """Draw 4 layers of 8 heads, d = 64, e = 16, and let head 2.3 read what component 7 of head 0.1 writes (H1)."""
    rng = np.random.default_rng(seed)
    W_Q, W_K, W_V = rng.standard_normal((3, 4, 8, 64, 16)) / 8.0
    W_O = rng.standard_normal((4, 8, 16, 64)) / 4.0
    v = head_svd(W_V[WRITER], W_O[WRITER]).Vt[COMPONENT]
    q = rng.standard_normal(16)
    W_Q[READER] += alpha * np.outer(v, q / np.linalg.norm(q))
    return W_Q, W_K, W_V, W_O


def ranks(weights: Weights) -> tuple[int, int, float, float]:
    """Return the ranks of the planted pair among pairs and component among components, its score, and the mean."""
    by_head, by_component = composition_scores(*weights), component_scores(*weights)
    later = [(l, m) for m in range(4) for l in range(m)]
    pairs = np.concatenate([by_head[l, :, m].ravel() for l, m in later])  # 384
    parts = np.concatenate([by_component[l, :, :, m].ravel() for l, m in later])  # 6,144
    whole, part = by_head[(*WRITER, *READER)], by_component[(*WRITER, COMPONENT, *READER)]
    return 1 + int(np.sum(pairs > whole)), 1 + int(np.sum(parts > part)), float(part), float(parts.mean())


def buried_claims(seeds: int) -> list[Claim]:
    """Look for a planted channel among heads and among components (H1)."""
    found = []
    for alpha in (1.5, 1.0):
        pairs, parts, scores, means = zip(*(ranks(planted_weights(seed, alpha)) for seed in range(seeds)), strict=True)
        first = sum(rank == 1 for rank in parts)
        holds = first >= (0.9 if alpha == 1.5 else 0.6) * seeds and np.median(pairs) >= 3
        found.append(
            Claim(
                f"H1 buried for matrices, plain for components, α = {alpha:g}",
                "A head is made to read what one middling component of an earlier head writes. Among 384 pairs of "
                "heads the pair's score is nothing special; among 6,144 components that one comes first.",
                "scores of whole matrices fail, singular vectors are needed (paper)",
                f"{seeds} draws: median rank of the pair {np.median(pairs):g} (worst {max(pairs)}), component first in "
                f"{first}; its score {np.mean(scores):.2f}, all components {np.mean(means):.3f}",
                "reproduced" if holds else "not reproduced",
            )
        )
    return found


def wiring_claim() -> Claim:
    """Read the circuit of the list model from its weights (H2)."""
    weights = stacked_weights(build_list_model()[0], folded=False)
    later = [((l, h), (m, g)) for m in range(3) for l in range(m) for h in range(3) for g in range(3)]
    right, said, noise = True, [], 0.0
    for mode in MODES:
        scores = composition_scores(*weights, mode=mode)
        heard = {pair for pair in later if scores[(*pair[0], *pair[1])] > 1e-6}
        right &= heard == WIRING[mode]
        sizes = sorted({round(float(scores[(*a, *b)]), 3) for a, b in heard})
        said.append(f"{mode}: {len(heard)} pairs, {', '.join(f'{size:.3f}' for size in sizes)}")
        noise = max(noise, *(float(scores[(*a, *b)]) for a, b in later if (a, b) not in heard))
    return Claim(
        "H2 the circuit is in the weights",
        "In the planted list model the pairs with a score are exactly those that were wired: channels to movers by "
        "queries, duplicates to all readers by keys, pointers to the inhibition and the gatherer by values.",
        "low-rank channels can be predicted from weights (paper); 4, 4 and 2 of 27 pairs (planted)",
        f"{'; '.join(said)}; all others {noise:.0e}; wiring as planted: {right}",
        "reproduced" if right else "not reproduced",
    )


def dial_model() -> tuple[Transformer, ListLayout]:
    """Return the list model with a channel of one dimension: +1 for token 3, −1 for token 5, where the names stand."""
    codes = np.zeros((64, 1))
    codes[3], codes[5] = 1.0, -1.0
    return build_list_model(codes=codes, own_pos=0.0, gamma=6.0)


def channel_of(model: Transformer, layout: ListLayout) -> np.ndarray:
    """Return the axes of the channel as a basis (d, r)."""
    return channel_basis(np.eye(model.config.d_model)[layout.chan])


def run_mover(model: Transformer, ids: np.ndarray, **hooks: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what the mover attends to (B, T, T), and the last token's logits (B, V)."""
    point = f"blocks.{MOVER[0]}.attn.hook_pattern"
    result = forward(model, ids, names=point, **hooks)
    return result.activations[point][:, MOVER[1]], result.logits[:, -1]


def dial_curve(model: Transformer, layout: ListLayout, settings: np.ndarray) -> np.ndarray:
    """Return how much the mover looks at the name at token 3, for each value that the channel is set to."""
    ids = np.array([layout.encode("<bos> then , bob and alice went to the store . bob gave a ring to")])
    basis = channel_of(model, layout)
    hooks = [{INTO_MOVER: set_channel(basis, [x], bal_index=layout.bal)} for x in settings]
    return np.array([run_mover(model, ids, hooks=hook)[0][0, -1, 3] for hook in hooks])


def dial_claims(n: int) -> list[Claim]:
    """Remove a channel of one dimension, and set it (H3)."""
    model, layout = dial_model()
    prompts = list_ioi(layout, np.random.default_rng(0), n)
    subject = prompts.distractors[:, 0]
    places: dict[str, Any] = {"end": 15, "io": 8 - subject, "s": subject}
    W_V, W_O = model.weights.blocks[1].W_V[0], model.weights.blocks[1].W_O[0]
    svd = head_svd(W_V, W_O)
    cut = replace_head(model, 1, 0, remove_components(W_O, svd.Vt[:1]))
    (whole, said), (none, unsaid) = (run_mover(m, prompts.clean) for m in (model, cut))
    changes = inhibition_changes(model, prompts.clean, MOVER, (1, 0), **places)
    scores = component_scores(*stacked_weights(model, folded=False))[1, 0, :, 2, 0]
    before, after = (inhibition_score(pattern, **places) for pattern in (whole, none))
    rows = np.arange(n)
    gap = [float(np.mean(x[rows, prompts.answers[:, 0]] - x[rows, prompts.answers[:, 1]])) for x in (said, unsaid)]
    settings = np.array([-1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0])
    error = np.abs(dial_curve(model, layout, settings) - 1 / (1 + np.exp(12 * settings))).max()
    one = bool(np.all(np.abs(changes[1:]) < 1e-6) and np.all(scores[1:] < 1e-6))
    return [
        Claim(
            "H3 one component inhibits",
            "Head 1.0 of the list model has one component. With it the mover looks at the name that was not repeated; "
            "without it, at both alike.",
            "inhibition score 0.99999, then below 0.001; logit difference 5.6, then 0 (planted)",
            f"singular value {svd.s[0]:.3f}, next {svd.s[1]:.0e}; I = {before:.5f} and {abs(after):.0e}; logit "
            f"difference {gap[0]:.2f} and {gap[1]:.0e}; that component alone has a score ({scores[0]:.2f}) and an "
            f"effect ({changes[0]:.3f}): {one}",
            "reproduced" if before > 0.999 and abs(after) < 1e-3 and one else "not reproduced",
        ),
        Claim(
            "H3 the channel is a dial",
            "Set to x, the channel makes the mover look at token 3 with weight 1/(1 + exp(2γx)).",
            "the inhibited item can be chosen by moving within the channel (paper); error below 1e-4 (planted)",
            f"largest error at 7 values of x: {error:.0e}",
            "reproduced" if error < 1e-4 else "not reproduced",
        ),
    ]


def slot_codes() -> np.ndarray:
    """Return what stands in the channel for each of 12 slots, (12, 3): points on half a circle."""
    angle = np.pi * np.arange(12) / 11
    return np.stack([np.cos(angle), np.sin(angle), np.zeros(12)], axis=1)


def laundry_model() -> tuple[Transformer, ListLayout]:
    """Return the list model whose channel has three dimensions and codes the slots of a list."""
    codes = np.zeros((64, 3))
    codes[4:28:2] = slot_codes()
    return build_list_model(codes=codes, own_pos=0.0, gamma=12.0)


def laundry_accuracy(
    model: Transformer, layout: ListLayout, n: int, seed: int = 0
) -> tuple[float, float, float, list[int]]:
    """Return how often the right item is recalled: as it is, with the channel set, and with the weights edited.

    Returns
    -------
    plain, channel, edited : float
        Of the n prompts that ask for one item each.
    recalled : list of int
        The targets that the model gets right as it is.
    """
    rng = np.random.default_rng(seed)
    prompts = [laundry_list(rng, n, target, OBJECTS) for target in range(n)]
    ids = np.array([layout.encode(prompt.tokens) for prompt in prompts])
    answers = np.array([layout.encode([prompt.answer])[0] for prompt in prompts])
    hook = set_channel(channel_of(model, layout), -slot_codes()[:n], bal_index=layout.bal)
    plain = run_mover(model, ids)[1].argmax(-1) == answers
    channel = run_mover(model, ids, hooks={INTO_MOVER: hook})[1].argmax(-1) == answers
    edited = run_mover(with_bias(model, layout, n), ids)[1].argmax(-1) == answers
    return float(plain.mean()), float(channel.mean()), float(edited.mean()), np.flatnonzero(plain).tolist()


def with_bias(model: Transformer, layout: ListLayout, n: int) -> Transformer:
    """Add −Σ k / (n − 1) along the channel to the output bias of layer 1."""
    blocks = list(model.weights.blocks)
    bias = blocks[1].b_O.copy()
    bias[layout.chan] -= slot_codes()[:n].sum(axis=0) / (n - 1)
    bias[layout.bal] -= bias[layout.chan].sum()
    blocks[1] = blocks[1]._replace(b_O=bias)
    return model._replace(weights=model.weights._replace(blocks=tuple(blocks)))


def laundry_claims(lengths: tuple[int, ...]) -> list[Claim]:
    """Ask for the item of a list that was not mentioned again, and repair the answers (H4)."""
    model, layout = laundry_model()
    results = [laundry_accuracy(model, layout, n) for n in lengths]
    plain, channel, edited = (np.array(column) for column in list(zip(*results, strict=True))[:3])
    crowded = bool(np.allclose(plain, 2 / np.array(lengths)))
    ends = all(recalled == [0, n - 1] for n, (*_, recalled) in zip(lengths, results, strict=True))
    repaired = bool(np.all(channel == 1) and np.all(edited == 1))
    gain = 100 * (channel - plain)
    return [
        Claim(
            "H4 lists crowd the channel",
            "The channel holds the mean of all codes that are to be shunned. The longer the list, the less that mean "
            "says: only the first and the last item are ever recalled.",
            "accuracy falls with length and depends on order (paper); 2/n exactly (planted)",
            f"n = {', '.join(map(str, lengths))}: {', '.join(f'{x:.3g}' for x in plain)}; only both ends: {ends}",
            "reproduced" if crowded and ends else "not reproduced",
        ),
        Claim(
            "H4 writing into the channel repairs it",
            "Setting the channel to minus the target's code, or adding one vector to a bias, gives the right answer.",
            "gains of over 20 points (paper); accuracy 1 for every n (planted)",
            f"channel set: {channel.min():g} at least, bias edited: {edited.min():g} at least; gain at n = 8: "
            f"{gain[lengths.index(8)]:.0f} points",
            "reproduced" if repaired else "not reproduced",
        ),
    ]


def large_model_claims() -> list[Claim]:
    """Name what needs the models of the paper."""
    needs = "needs the weights of GPT-2 small and the paper's prompts, which were not published"
    return [
        Claim(
            "the inhibition channel of GPT-2 small",
            "One or two components of heads 7.3, 7.9, 8.6 and 8.10 are read by the movers 9.6, 9.9 and 10.0; three "
            "dimensions of them index the items of a list.",
            "named heads and a three-dimensional subspace (paper)",
            f"{needs}; `refattn analyse channels PATH` lists its channels",
            "not comparable",
        ),
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    return [
        *buried_claims(3 if quick else 10),
        wiring_claim(),
        *dial_claims(4 if quick else 40),
        *laundry_claims((2, 3, 8) if quick else tuple(range(2, 13))),
        *large_model_claims(),
    ]


def draw_maps(left: Axes, right: Axes) -> None:
    """Draw what head 2.3 hears of earlier heads, as wholes and component by component (H1)."""
    weights = planted_weights(2, 1.5)
    by_head = composition_scores(*weights)[:2, :, *READER].reshape(16, 1)
    by_component = component_scores(*weights)[:2, :, :, *READER].reshape(16, 16)
    names = [f"{l}.{h}" if h % 2 else "" for l in range(2) for h in range(8)]
    for axes, scores in ((left, by_head), (right, by_component)):
        axes.imshow(scores, cmap="viridis", vmin=0.0, vmax=by_component.max(), aspect="auto")
    left.set_yticks(range(16), names, fontsize=8)
    left.set_xticks([])
    left.set(title="whole heads", ylabel="writing head")
    right.set_yticks([])
    right.set_xticks((0, 3, 7, 11, 15))
    right.set(xlabel="component, the largest first", title="their components, one of which head 2.3 was made to read")
    right.annotate(
        "0.1, component 7", (COMPONENT, 1), (9.0, 4.4), color="w", arrowprops={"arrowstyle": "->", "color": "w"}
    )


def draw_half_circle(axes: Axes, n: int = 8) -> None:
    """Draw the codes of a list's items, and the mean of those that are to be shunned, for every target."""
    codes = slot_codes()[:n, :2]
    target = 3
    mean = (codes.sum(axis=0) - codes[target]) / (n - 1)
    picked = int(np.argmin(codes @ mean))
    axes.plot(*codes.T, "o", color=GREY, ms=6)
    axes.plot(*codes[target], "o", color=TEAL, ms=8, label=f"asked for: item {target + 1}")
    axes.plot(*codes[picked], "o", color=PLUM, ms=8, label=f"recalled: item {picked + 1}")
    for i, code in enumerate(codes):
        axes.annotate(str(i + 1), 1.2 * code, ha="center", va="center", color=GREY, fontsize=8)
    arrows = ((mean, SAND, "in the channel: mean of the others"), (-codes[target], TEAL, "what it should hold"))
    for vector, colour, label in arrows:
        axes.annotate("", vector, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        axes.plot([], [], color=colour, lw=2, label=label)
    axes.set(xlim=(-1.35, 1.35), ylim=(-2.2, 1.3), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"A list of {n} on half a circle")
    axes.legend(frameon=False, loc="lower center", labelcolor="linecolor", fontsize=8)


def draw_lists(axes: Axes, lengths: tuple[int, ...]) -> None:
    """Draw how often the item is recalled, before and after the channel is set (H4)."""
    model, layout = laundry_model()
    results = np.array([laundry_accuracy(model, layout, n)[:3] for n in lengths])
    axes.plot(lengths, results[:, 1], "o-", color=TEAL, label="channel set, or bias edited")
    axes.plot(lengths, results[:, 0], "s-", color=PLUM, label="as it is: 2/n")
    axes.set(ylim=(0, 1.3), xlabel="items in the list", ylabel="recalled", title="Crowding, and its repair")
    axes.set_xticks(lengths[::2])
    axes.legend(frameon=False, loc="upper right", labelcolor="linecolor", fontsize=8)


def draw_dial(axes: Axes) -> None:
    """Draw where the mover looks while the channel is turned (H3)."""
    model, layout = dial_model()
    fine, settings = np.linspace(-0.6, 0.6, 121), np.linspace(-0.6, 0.6, 13)
    axes.plot(fine, 1 / (1 + np.exp(12 * fine)), color=GREY, lw=1, label="1/(1 + exp(2γx))")
    axes.plot(settings, dial_curve(model, layout, settings), "o", color=TEAL, label="the model")
    axes.set(xlabel="x, what the channel is set to", ylabel="attention to the first name", ylim=(-0.05, 1.3))
    axes.set_title("The channel is a dial")
    axes.legend(frameon=False, loc="upper right", labelcolor="linecolor", fontsize=8)


def figure(quick: bool) -> Figure:
    """Draw a channel in the weights, a dial, a crowded list and its repair.

    Top: what head 2.3 hears of sixteen earlier heads, as wholes and component by component (experiment H1). Bottom: the
    mover's attention while a one-dimensional channel is turned (H3); the codes of eight items, the mean of seven of
    them, and the item that lies farthest from it; how often lists of n items are answered (H4).
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), GREY)
    with mpl.rc_context({**colours, "xtick.color": GREY, "ytick.color": GREY, "font.size": 9, "axes.titlesize": 10}):
        drawing = Figure(figsize=(11, 7.4), layout="constrained")
        top, bottom = drawing.subfigures(2, 1, height_ratios=(1.1, 1), hspace=0.05)
        wholes, parts = top.subplots(1, 2, width_ratios=(1, 9))
        draw_maps(wholes, parts)
        top.colorbar(parts.images[0], ax=parts, label="score with the queries of head 2.3")
        dial, circle, lists = bottom.subplots(1, 3)
        draw_dial(dial)
        draw_half_circle(circle)
        draw_lists(lists, (2, 4, 8) if quick else tuple(range(2, 13)))
        for part in (dial, lists):
            part.spines[["top", "right"]].set_visible(False)
        circle.spines[:].set_visible(False)
    return drawing


if __name__ == "__main__":
    main("talking_heads", claims, figure)
