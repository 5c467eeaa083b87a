"""ReCAT at laptop scale: what pruning saves, what it costs, who hears whom, and trees over English sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from claims import Claim, main

from refattn.layers.recat import ReCATWeights, encode_nodes, recat_encode
from refattn.layers.recat_cells import (
    AttentionWeights,
    BlockWeights,
    CellWeights,
    HeadWeights,
    ScoreWeights,
    with_roles,
)
from refattn.layers.recat_chart import Chart, Span, chart_cost, chart_depth, exact_chart, pruned_chart
from refattn.layers.recat_parser import merge_order
from refattn.layers.recat_passes import LayerWeights, cio_stack, score_pass
from refattn.layers.recat_tree import Tree, order_tree, read_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# written for this example, bracketed by hand
SENTENCES = (
    "((the (old man)) (saw ((the cat) (in (the garden)))))",
    "(she (gave ((her brother) ((a book) (about birds)))))",
    "((every student) ((who (read (the paper))) (asked (a (good question)))))",
    "(rain (fell ((on (the roof)) (all (night long)))))",
    "((the (small boat)) ((drifted slowly) (towards (the (far shore)))))",
    "((when (the (bell rings))) ((the children) (run (out (of (the school))))))",
)
METHODS = ("exact", "m = 3", "m = 2", "m = 2, zero rule", "tree of the order", "random")
COLOURS = ("#b5577a", "#6a7fc1", "#3a9188", "#c8963e", "#7f8fa6", "#a0a0a0")


def random_splits(rng: np.random.Generator, i: int, j: int) -> dict[Span, int]:
    """Split a span at a place that is drawn evenly, and so on with its parts."""
    if i == j:
        return {}
    k = int(rng.integers(i, j))
    return {(i, j): k} | random_splits(rng, i, k) | random_splits(rng, k + 1, j)


def bracketed(text: str) -> tuple[list[str], dict[Span, int]]:
    """Return the words of a bracketed sentence, and the split of each bracket."""
    words: list[str] = []
    splits: dict[Span, int] = {}
    starts: list[list[int]] = []  # of the parts of every open bracket
    for piece in text.replace("(", " ( ").replace(")", " ) ").split():
        if piece == ")":
            first, second = starts.pop()
            splits[first, len(words) - 1] = second - 1
            continue
        if starts:
            starts[-1].append(len(words))
        if piece == "(":
            starts.append([])
        else:
            words.append(piece)
    return words, splits


def extents(splits: dict[Span, int], n: int) -> np.ndarray:
    """Return, at each split point, j − i of the span (i, j) that it splits: long spans close last."""
    u = np.zeros(n - 1)
    for (i, j), k in splits.items():
        u[k] = j - i
    return u


def heights(splits: dict[Span, int], n: int) -> np.ndarray:
    """Return, at each split point, the height of the node that it splits: a signal of smaller range."""
    height = {(i, i): 0.0 for i in range(n)}
    u = np.zeros(n - 1)
    for i, j in sorted(splits, key=lambda span: span[1] - span[0]):
        k = splits[i, j]
        u[k] = height[i, j] = 1.0 + max(height[i, k], height[k + 1, j])
    return u


def noisy_scores(
    rng: np.random.Generator,
    splits: dict[Span, int],
    n: int,
    sigma: float,
    signal: Callable[[dict[Span, int], int], np.ndarray] = extents,
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of pairs that are 1 for gold ones, and split scores that follow gold spans, both with noise."""
    phi = np.zeros((n, n, n))
    for (i, j), k in splits.items():
        phi[i, k, j] = 1.0
    return phi + sigma * rng.standard_normal(phi.shape), signal(splits, n) + 2.0 * sigma * rng.standard_normal(n - 1)


def inner_spans(tree: Tree) -> set[Span]:
    """Return the spans of a tree that are neither words nor the sentence."""
    n = (len(tree.nodes) + 1) // 2
    return {(int(i), int(j)) for i, j in tree.nodes if i < j} - {(0, n - 1)}


def f1(tree: Tree, splits: dict[Span, int], n: int) -> float:
    """Return the agreement of the spans of a tree with the gold ones; both have n − 2."""
    gold = set(splits) - {(0, n - 1)}
    return len(inner_spans(tree) & gold) / max(len(gold), 1)


def recovered(
    rng: np.random.Generator, phi: np.ndarray, u: np.ndarray, windows: tuple[int, ...] = (3, 2)
) -> dict[str, Tree]:
    """Return the tree of each method from the same noisy scores."""
    n, order = len(phi), merge_order(u)

    def read(chart: Chart, rule: str = "kept") -> Tree:
        return read_tree(score_pass(phi, chart, merged_scores=rule), chart)

    found = {"exact": read(exact_chart(n)), "m = 2, zero rule": read(pruned_chart(order, 2), "zero")}
    found |= {f"m = {m}": read(pruned_chart(order, m)) for m in windows}
    return found | {"tree of the order": order_tree(order), "random": order_tree(rng.permutation(n - 1))}


def recovery(
    sigma: float, trees: int, n: int = 12, signal: Callable[[dict[Span, int], int], np.ndarray] = extents
) -> dict[str, float]:
    """Return the mean F1 of each method over random binary trees."""
    rng = np.random.default_rng(0)
    totals = dict.fromkeys(METHODS, 0.0)
    for _ in range(trees):
        splits = random_splits(rng, 0, n - 1)
        for name, tree in recovered(rng, *noisy_scores(rng, splits, n, sigma, signal)).items():
            totals[name] += f1(tree, splits, n) / trees
    return totals


@dataclass(frozen=True)
class Growth:
    """Means over random orders for one window: compositions, cells and depth by length."""

    lengths: tuple[int, ...]
    compositions: tuple[float, ...]
    cells: tuple[float, ...]
    depth: tuple[float, ...]

    def slope(self, least: int = 32) -> float:
        """Return the log-log slope of the compositions from the length ``least`` on."""
        rows = [(n, c) for n, c in zip(self.lengths, self.compositions, strict=True) if n >= least]
        return float(np.polyfit(*np.log(np.array(rows, float)).T, 1)[0])


def growth(window: int | None, lengths: tuple[int, ...], orders: int) -> Growth:
    """Measure charts of random merge orders; None is the exact chart."""
    rng = np.random.default_rng(0)
    rows = []
    for n in lengths:
        if window is None:
            charts = [exact_chart(n)]
        else:
            charts = [pruned_chart(rng.permutation(n - 1), window) for _ in range(orders)]
        rows.append([np.mean([f(c) for c in charts]) for f in (compositions, cells, chart_depth)])
    return Growth(lengths, *(tuple(map(float, column)) for column in zip(*rows, strict=True)))


def compositions(chart: Chart) -> int:
    """Return the number of pairs composed in one pass."""
    return chart.compositions


def cells(chart: Chart) -> int:
    """Return the number of cells."""
    return len(chart.splits)


def balanced(n: int) -> list[int]:
    """Return the merge order of a balanced tree over a power of two."""
    steps = [2**level for level in range(n.bit_length() - 1)]
    return [p for step in steps for p in range(step - 1, n - 1, 2 * step)]


def small_model(rng: np.random.Generator, words: int, *, D: int = 16, F: int = 32, c: int = 8) -> ReCATWeights:
    """Draw an untrained model with two layers and one Transformer layer."""

    def linear(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.standard_normal((rows, columns)) / rows**0.5, np.zeros(columns)

    def block() -> BlockWeights:
        one, zero = np.ones(D), np.zeros(D)
        return BlockWeights(
            AttentionWeights(*linear(D, 3 * D), *linear(D, D)), one, zero, *linear(D, F), *linear(F, D), one, zero
        )

    def layer() -> LayerWeights:
        inside = CellWeights(block(), rng.standard_normal((3, D)))
        return LayerWeights(inside, with_roles(inside, rng.standard_normal((3, D))))

    heads = ScoreWeights(*(HeadWeights(*linear(D, D), *linear(D, c)) for _ in range(5)))
    layers, encoder = (layer(), layer()), (block(),)
    embedding, empty = rng.standard_normal((words, D)), rng.standard_normal(D)
    return ReCATWeights(embedding, empty, heads, layers, encoder, *linear(D, D), np.zeros(words))


def hearing(chart: Chart, seed: int = 0) -> dict[str, np.ndarray]:
    """Return who hears whom: (cells, tokens), True where changing the token changes the cell's vector.

    Stages: after the first inside pass, after the first outside pass, after a Transformer over inside vectors.
    """
    rng = np.random.default_rng(seed)
    weights = small_model(rng, 1)
    leaves = rng.standard_normal((chart.n, weights.embedding.shape[1]))

    def stages(x: np.ndarray) -> dict[str, np.ndarray]:
        inside, outside = cio_stack(x, chart, weights.layers[:1], weights.heads, weights.empty_cell, n_heads=4)[0]
        e, o = (np.stack([vectors[span] for span in chart.splits]) for vectors in (inside.vectors, outside.vectors))
        return {"inside": e, "outside": o, "Transformer": encode_nodes(e, weights.encoder, n_heads=4)}

    before = stages(leaves)
    heard: dict[str, list[np.ndarray]] = {name: [] for name in before}
    for token in range(chart.n):
        changed = leaves.copy()
        changed[token] = rng.standard_normal(leaves.shape[1])
        for name, after in stages(changed).items():
            heard[name].append(np.abs(after - before[name]).max(-1) > 1e-9)
    return {name: np.stack(columns, axis=-1) for name, columns in heard.items()}


def verdict(holds: bool) -> str:
    """Put a comparison into words."""
    return "reproduced" if holds else "not reproduced"


def cost_claims(*, quick: bool) -> list[Claim]:
    """Count compositions, cells and depth as sentences grow."""
    lengths, orders = ((16, 32, 64, 128), 8) if quick else ((16, 32, 64, 128, 256), 24)
    thin, wider, exact = growth(2, lengths, orders), growth(4, lengths, orders), growth(None, (16, 32, 64), 1)
    known = (61, 140, 293, 613, 1250)
    near = all(abs(c / k - 1) < 0.05 for c, k in zip(thin.compositions, known, strict=False))
    balanced_depth = [chart_depth(pruned_chart(balanced(n), 2)) for n in (16, 64, 256)]
    chain_depth = [chart_depth(pruned_chart(range(n - 1), 2)) for n in (16, 64, 256)]
    flops = [
        sum(chart_cost(c, 768, 3072, 128)) / 1e9
        for c in (pruned_chart(np.random.default_rng(0).permutation(63), 2), exact_chart(64))
    ]
    return [
        Claim(
            "A from cubic to linear",
            "Compositions of one pass over random merge orders grow linearly with the window m, cubically without.",
            "slope 1 and 3; m = 2: "
            + ", ".join(map(str, known))
            + f" for n = {(16, 32, 64, 128, 256)} (measured beforehand)",
            f"m = 2: {', '.join(f'{c:.0f}' for c in thin.compositions)}, slope {thin.slope():.2f} from n = 32; "
            f"m = 4: slope {wider.slope():.2f}; exact: {', '.join(f'{c:.0f}' for c in exact.compositions)}, "
            f"slope {exact.slope(16):.2f}",
            verdict(0.95 <= thin.slope() <= 1.15 and abs(exact.slope(16) - 3) < 0.1 and near),
        ),
        Claim(
            "A operations of one layer",
            "At the paper's sizes (D = 768, F = 3072, c = 128), n = 64.",
            "linear against cubic",
            f"m = 2: {flops[0]:.0f} billion, exact: {flops[1]:.0f} billion, ratio {flops[1] / flops[0]:.0f}",
            verdict(flops[1] > 50 * flops[0]),
        ),
        Claim(
            "A how deep the chart is",
            "A balanced order is about 2 log2 n deep, a chain n − 1, a random one in between.",
            "balanced 7, 11, 15; chain 15, 63, 255 for n = 16, 64, 256 (measured beforehand)",
            f"balanced {', '.join(map(str, balanced_depth))}; chain {', '.join(map(str, chain_depth))}; random m = 2: "
            + ", ".join(f"{d:.1f}" for d in thin.depth)
            + f" for n = {lengths}",
            verdict(balanced_depth == [7, 11, 15] and chain_depth == [15, 63, 255]),
        ),
    ]


def tree_claims(*, quick: bool) -> list[Claim]:
    """Recover random binary trees from noisy scores."""
    trees = 20 if quick else 200
    found = {sigma: recovery(sigma, trees) for sigma in (0.0, 0.3, 0.6, 1.0)}
    middle, weaker = found[0.6], recovery(0.6, trees, signal=heights)
    helps = middle["m = 2"] > max(middle["tree of the order"], middle["exact"])
    rows = "; ".join(
        f"σ = {sigma}: " + ", ".join(f"{name} {score:.2f}" for name, score in row.items() if name != "random")
        for sigma, row in found.items()
        if sigma
    )
    perfect = all(found[0.0][name] > 1.0 - 1e-9 for name in METHODS[:5])  # means, summed one by one
    return [
        Claim(
            "B without noise every method finds the tree",
            "Scores of 1 for gold pairs, merge order by the extents of gold spans (n = 12).",
            "1.00 for all (random trees 0.27, measured beforehand)",
            f"{', '.join(f'{name} {score:.2f}' for name, score in found[0.0].items())}; {trees} trees",
            verdict(perfect),
        ),
        Claim(
            "B parser and composer correct each other",
            "At noise 0.6 the thin chart finds more gold spans than the order alone, and than the exact chart.",
            "σ = 0.6: exact 0.87, m = 2 0.93, order 0.84 (measured beforehand)",
            rows,
            verdict(helps),
        ),
        Claim(
            "B with a weaker parser",
            "The same noise on an order by heights of subtrees spoils it more; does a window of two still win?",
            "m = 2 above exact and order, as with extents",
            "σ = 0.6: " + ", ".join(f"{name} {score:.2f}" for name, score in weaker.items() if name != "random"),
            verdict(weaker["m = 2"] > max(weaker["tree of the order"], weaker["exact"])),
        ),
        Claim(
            "B what the zero rule costs",
            "Dropping the scores of merged parts, as the released code does, loses spans.",
            "σ = 0.6: 0.93 kept, 0.78 zero (measured beforehand)",
            f"{middle['m = 2']:.2f} kept, {middle['m = 2, zero rule']:.2f} zero",
            verdict(middle["m = 2"] > middle["m = 2, zero rule"]),
        ),
    ]


def hearing_claim() -> Claim:
    """Count who is heard after each stage."""
    chart = pruned_chart([3, 0, 5, 1, 6, 2, 4], 2)
    heard = hearing(chart)
    own = np.array([[i <= token <= j for token in range(chart.n)] for i, j in chart.splits])
    shares = {name: float(matrix.mean()) for name, matrix in heard.items()}
    holds = np.array_equal(heard["inside"], own) and heard["outside"].all() and heard["Transformer"].all()
    return Claim(
        "C one outside pass is enough for all to hear all",
        "After the inside pass a cell knows its own tokens; after one outside pass, or one Transformer layer, all.",
        "own span, all, all",
        "; ".join(f"{name}: {share:.0%} of (cell, token) pairs" for name, share in shares.items())
        + f"; inside = own span in every cell: {np.array_equal(heard['inside'], own)}",
        verdict(bool(holds)),
    )


def english() -> Iterator[tuple[list[str], dict[Span, int]]]:
    """Yield the words and the gold splits of each sentence."""
    return map(bracketed, SENTENCES)


def english_claims(*, quick: bool) -> list[Claim]:
    """Encode English sentences, and recover their trees from noisy scores."""
    vocabulary = sorted({word for words, _ in english() for word in words})
    weights = small_model(np.random.default_rng(1), len(vocabulary))
    counts = []
    for words, splits in english():
        ids = np.array([vocabulary.index(word) for word in words])
        order = merge_order(extents(splits, len(words)))
        forced = recat_encode(ids, weights, n_heads=4, window=1, order=order)
        thin = recat_encode(ids, weights, n_heads=4, window=2, order=order)
        whole = inner_spans(Tree(forced.nodes, forced.splits)) == set(splits) - {(0, len(words) - 1)}
        counts.append((len(words), len(thin.nodes), whole and bool(np.isfinite(thin.logits).all())))
    repeats, rng = (10 if quick else 60), np.random.default_rng(0)
    totals = dict.fromkeys(METHODS, 0.0)
    for _ in range(repeats):
        for words, splits in english():
            n = len(words)
            for name, tree in recovered(rng, *noisy_scores(rng, splits, n, 0.6)).items():
                totals[name] += f1(tree, splits, n) / (repeats * len(SENTENCES))
    return [
        Claim(
            "English sentences go through",
            "Six sentences, split at spaces: 2n − 1 nodes each, and a window of one gives back the given brackets.",
            "2n − 1 nodes",
            ", ".join(f"{n} words {nodes} nodes" for n, nodes, _ in counts),
            verdict(all(nodes == 2 * n - 1 and whole for n, nodes, whole in counts)),
        ),
        Claim(
            "English brackets from noisy scores",
            "Experiment B at noise 0.6 on the brackets of the six sentences.",
            "the order of methods of experiment B",
            ", ".join(f"{name} {score:.2f}" for name, score in totals.items()),
            verdict(totals["m = 2"] > max(totals["tree of the order"], totals["exact"], totals["m = 2, zero rule"])),
        ),
    ]


def claims(quick: bool) -> list[Claim]:
    """Return every claim with its verdict."""
    pretrained = Claim(
        "span tasks and unsupervised parsing",
        "Pretrained on WikiText-103: better on span-level tasks than Transformers, parsing F1 65.0 on WSJ.",
        "about 5 % on span tasks; F1 65.0",
        "needs pretraining on a hundred million words",
        "not comparable",
    )
    return [
        *cost_claims(quick=quick),
        *tree_claims(quick=quick),
        hearing_claim(),
        *english_claims(quick=quick),
        pretrained,
    ]


def draw_triangle(axes: Axes, chart: Chart, heard: np.ndarray, words: list[str], title: str) -> None:
    """Draw the cells of a chart, coloured by how many tokens each hears."""
    from matplotlib.patches import Rectangle

    for (i, j), row in zip(chart.splits, heard, strict=True):
        share = row.sum() / chart.n
        x, y = (i + j) / 2, j - i
        axes.add_patch(Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, facecolor="#3a9188", alpha=0.12 + 0.8 * share, lw=0))
        axes.text(
            x, y, str(int(row.sum())), ha="center", va="center", fontsize=8, color="#7f8fa6" if share < 0.6 else "w"
        )
    for place, word in enumerate(words):
        axes.text(place, -0.7, word, ha="center", va="top", fontsize=8, color="#7f8fa6", rotation=30)
    axes.set(xlim=(-0.7, chart.n - 0.3), ylim=(-1.6, chart.n - 0.3), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
    axes.set_frame_on(False)


def draw_windows(axes: Axes, order: np.ndarray, window: int) -> None:
    """Draw the cells that a window keeps, those of the tree in another colour."""
    from matplotlib.patches import Rectangle

    n = len(order) + 1
    chart = exact_chart(n) if window >= n - 1 else pruned_chart(order, window)
    tree = set(pruned_chart(order, 1).splits)
    for i in range(n):
        for j in range(i, n):
            kept, in_tree = (i, j) in chart.splits, (i, j) in tree
            colour, alpha = ("#b5577a", 0.9) if in_tree else ("#3a9188", 0.75) if kept else ("#7f8fa6", 0.15)
            axes.add_patch(
                Rectangle(((i + j) / 2 - 0.42, j - i - 0.42), 0.84, 0.84, facecolor=colour, alpha=alpha, lw=0)
            )
    axes.set(xlim=(-0.7, n - 0.3), ylim=(-0.7, n - 0.3), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"m = {window}: {chart.compositions} compositions", fontsize=9)
    axes.set_frame_on(False)


def draw_cost(axes: Axes, quick: bool) -> None:
    """Draw compositions over length."""
    lengths = (8, 16, 32, 64, 128) if quick else (8, 16, 32, 64, 128, 256)
    rows = ((None, "exact", COLOURS[0]), (4, "m = 4", COLOURS[1]), (2, "m = 2", COLOURS[2]), (1, "m = 1", COLOURS[4]))
    for window, name, colour in rows:
        grown = growth(window, lengths if window else lengths[:4], 4)
        axes.loglog(grown.lengths, grown.compositions, "o-", ms=3, lw=1.2, color=colour, label=name)
    axes.set(xlabel="tokens n", ylabel="compositions of one pass", title="From cubic to linear")
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor")


def draw_recovery(axes: Axes, quick: bool) -> None:
    """Draw how many gold spans each method finds."""
    sigmas = (0.0, 0.3, 0.6, 1.0) if quick else (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
    found = [recovery(sigma, 10 if quick else 60) for sigma in sigmas]
    for name, colour in zip(METHODS[:5], COLOURS, strict=False):
        axes.plot(sigmas, [row[name] for row in found], "o-", ms=3, lw=1.2, color=colour, label=name)
    axes.set(xlabel="noise σ", ylabel="F1 of spans", title="Parser and composer correct each other", ylim=(0.4, 1.03))
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc="lower left")


def figure(quick: bool) -> Figure:
    """Draw who hears whom, what a window keeps, what that saves and what it finds.

    Top: an English sentence; each cell shows how many tokens change its vector, after the inside pass and after the
    outside pass. Middle: the chart for growing windows, the parser's tree in red. Bottom: compositions over length, and
    the spans of random trees that are recovered from noisy scores.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    neutral = "#7f8fa6"  # readable on white and on black
    colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), neutral)
    words, splits = bracketed(SENTENCES[3])
    order, n = merge_order(extents(splits, len(words))), len(words)
    with mpl.rc_context({**colours, "xtick.color": neutral, "ytick.color": neutral, "font.size": 9}):
        drawing = Figure(figsize=(10, 10.5), layout="constrained")
        top, middle, bottom = drawing.subfigures(3, 1, height_ratios=(1.25, 0.75, 1.0))
        heard = hearing(exact_chart(n))
        for axes, stage in zip(top.subplots(1, 2), ("inside", "outside"), strict=True):
            draw_triangle(axes, exact_chart(n), heard[stage], words, f"Tokens heard after the {stage} pass")
        for axes, window in zip(middle.subplots(1, 4), (1, 2, 3, n - 1), strict=True):
            draw_windows(axes, order, window)
        cost, found = bottom.subplots(1, 2)
        draw_cost(cost, quick)
        draw_recovery(found, quick)
        for axes in (cost, found):
            axes.spines[["top", "right"]].set_visible(False)
    return drawing


if __name__ == "__main__":
    main("recat", claims, figure)
