"""ReCAT against vectors from the authors' own model class and chart manager."""

import numpy as np

from refattn.layers.recat import (
    BlockWeights,
    ReCATWeights,
    mlm_logits,
    mlm_loss,
    recat_encode,
    recat_encode_pair,
)
from refattn.layers.recat_cells import AttentionWeights, CellWeights, HeadWeights, ScoreWeights, with_roles
from refattn.layers.recat_chart import pruned_chart
from refattn.layers.recat_parser import LSTMWeights, ParserWeights, merge_order, split_scores
from refattn.layers.recat_passes import LayerWeights, cio_stack
from refattn.layers.recat_tree import order_tree, read_tree

TOLERANCE = 1e-10


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=0, atol=TOLERANCE)


def attention(case, prefix):
    def at(name):
        return case[f"w.{prefix}.{name}"]

    return AttentionWeights(at("in_proj_weight").T, at("in_proj_bias"), at("out_proj.weight").T, at("out_proj.bias"))


def block(case, prefix, names):
    mha, norm1, norm2, first, second = (f"{prefix}.{name}" for name in names)

    def at(name):
        return case[f"w.{name}"]

    return BlockWeights(
        attention(case, mha),
        at(f"{norm1}.weight"),
        at(f"{norm1}.bias"),
        at(f"{first}.weight").T,
        at(f"{first}.bias"),
        at(f"{second}.weight").T,
        at(f"{second}.bias"),
        at(f"{norm2}.weight"),
        at(f"{norm2}.bias"),
    )


def head(case, name):
    def at(part):
        return case[f"w.{name}.{part}"]

    return HeadWeights(at("0.weight").T, at("0.bias"), at("2.weight").T, at("2.bias"))


def layer(case, r):
    if bool(case["cfg_noshare"]):
        inside, outside = f"inside_layers.{r}", f"outside_layers.{r}"
        cmp = ("self_attn", "cmp_norm1", "cmp_norm2", "cmp_mlp.0", "cmp_mlp.3")
        tell = ("self_attn", "norm1", "norm2", "mlp.0", "mlp.3")
        return LayerWeights(
            CellWeights(block(case, inside, cmp), own_roles(case, inside)),
            CellWeights(block(case, outside, tell), own_roles(case, outside)),
        )
    prefix = f"inout_encoders.{r}"
    both = block(case, prefix, ("self_attention", "norm1", "norm2", "mlp.0", "mlp.3"))
    inside = CellWeights(both, case[f"w.{prefix}.inside_roles.weight"])
    return LayerWeights(inside, with_roles(inside, case[f"w.{prefix}.outside_roles.weight"]))


def own_roles(case, prefix):
    name = f"w.{prefix}.position_embedding"
    return case[name if name in case.files else f"{name}.weight"].reshape(3, -1)


def model(case):
    names = ("inside_left", "inside_right", "outside_left", "outside_right", "outside_parent")
    names_in_layer = ("self_attn", "norm1", "norm2", "linear1", "linear2")
    depth = int(case["cfg_span_attention_num_layers"])
    return ReCATWeights(
        case["w.embedding.weight"],
        case["w.empty_cell"].reshape(-1),
        ScoreWeights(*(head(case, name) for name in names)),
        tuple(layer(case, r) for r in range(int(case["cfg_iter_times"]))),
        tuple(block(case, f"span_self_attention.layers.{t}", names_in_layer) for t in range(depth)),
        case["w.cls_dense.0.weight"].T,
        case["w.cls_dense.0.bias"],
        case["w.classifier.bias"],
    )


def parser(case):
    def at(name):
        return case[f"parser.{name}"]

    def one(end):
        w = [at(f"encoder.{name}_{end}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return LSTMWeights(w[0].T, w[1].T, w[2] + w[3])

    depth = sum(name.startswith("parser.encoder.weight_ih_l") for name in case.files) // 2
    layers = tuple((one(f"l{t}"), one(f"l{t}_reverse")) for t in range(depth))
    scores = [at("score_mlp.0.weight").T, at("score_mlp.0.bias"), at("score_mlp.3.weight").T, at("score_mlp.3.bias")]
    return ParserWeights(layers, *scores)


def sentences(case):
    for s, n in enumerate(case["lengths"]):
        yield s, int(n), case["input_ids"][s, :n], case["merge_order"][s, : n - 1]


def check_cells(case, s, chart, results):
    rows = [c for c in range(len(case["cells"])) if case["cells"][c, 0] == s]
    spans = {tuple(map(int, case["cells"][c, 1:])): c for c in rows}
    assert set(spans) == set(chart.splits)
    for r, (inside, outside) in enumerate(results):
        for span, c in spans.items():
            close(inside.vectors[span], case[f"inside_e_{r}"][c])
            close(inside.scores[span], case[f"inside_score_{r}"][c])
            close(outside.vectors[span], case[f"outside_e_{r}"][c])
            close(outside.scores[span], case[f"outside_score_{r}"][c])


def check_tree(case, s, n, tree):
    preorder = case["tree_preorder"][s, : 2 * n - 1]
    np.testing.assert_array_equal(tree.nodes, preorder[:, :2])
    np.testing.assert_array_equal(tree.splits, preorder[:, 2])


def check_single(case, weights, options):
    losses = []
    for s, n, ids, order in sentences(case):
        chart = pruned_chart(order, options["window"])
        results = cio_stack(
            weights.embedding[ids],
            chart,
            weights.layers,
            weights.heads,
            weights.empty_cell,
            n_heads=options["n_heads"],
            merged_scores="zero",
        )
        check_cells(case, s, chart, results)
        check_tree(case, s, n, read_tree(results[-1][0], chart))
        out = recat_encode(ids, weights, order=order, merged_scores="zero", **options)
        check_tree(case, s, n, out)
        close(out.vectors, case["contextualized"][s, : 2 * n - 1])
        close(out.logits, case["logits"][s, : 2 * n - 1])
        close(results[-1][0].vectors[chart.root], case["root_embeddings"][s])
        leaves = out.logits[out.splits < 0]
        losses += [mlm_loss(leaves[t : t + 1], case["mlm_targets"][s, t : t + 1]) for t in range(n)]
    close(np.mean(losses), case["loss"])


def check_pairs(case, weights, options):
    every = list(sentences(case))
    losses = []
    for pair in range(len(every) // 2):
        two = every[2 * pair : 2 * pair + 2]
        out = recat_encode_pair(
            [t[2] for t in two], weights, orders=[t[3] for t in two], merged_scores="zero", **options
        )
        nodes = sum(2 * n - 1 for _, n, _, _ in two)
        close(out.group, case["group_embeddings"][pair])
        close(out.vectors[1:], case["contextualized"][pair, :nodes])
        logits = mlm_logits(out.vectors[1:], weights)
        close(logits, case["logits"][pair, :nodes])
        for (s, n, _, _), tree in zip(two, out.trees, strict=True):
            check_tree(case, s, n, tree)
            part = logits[: 2 * n - 1] if s % 2 == 0 else logits[-(2 * n - 1) :]
            leaves = part[tree.splits < 0]
            losses += [mlm_loss(leaves[t : t + 1], case["mlm_targets"][s, t : t + 1]) for t in range(n)]
        close(out.roots, case["root_embeddings"][2 * pair : 2 * pair + 2])
    close(np.mean(losses), case["loss"])


def check_parser(case):
    weights = parser(case)
    for s, n, ids, _ in sentences(case):
        u = split_scores(case["parser.embedding.weight"][ids], weights)
        close(u, case["parser_scores"][s, : n - 1])
        np.testing.assert_array_equal(merge_order(u), case["parser_order"][s][: n - 1])


def check_case(case):
    weights = model(case)
    options = {"n_heads": int(case["cfg_num_attention_heads"]), "window": int(case["cfg_window_size"])}
    (check_pairs if bool(case["cfg_pairwise"]) else check_single)(case, weights, options)
    check_parser(case)


def test_official_vectors(oracle):
    """Every vector of the official code is met to 1e-10: cells of all layers, trees, nodes, words, parser."""
    wrong = {}
    for path in oracle("05-recat"):
        with np.load(path) as case:
            try:
                check_case(case)
            except AssertionError as error:
                wrong[path.stem] = str(error)[:800]
    assert not wrong


def test_the_tree_of_the_order_has_the_last_split_on_top():
    """The split that closes last cuts the whole sentence."""
    assert order_tree([2, 0, 1]).splits[0] == 1
