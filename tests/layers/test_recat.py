"""ReCAT: charts, passes, trees, parser, nodes, and what they refuse."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf

from refattn.backends.portable.recat.chart import tables
from refattn.contracts.recat import cases
from refattn.layers.recat import encode_nodes, mlm_logits, mlm_loss, recat_encode, recat_encode_pair
from refattn.layers.recat_cells import compose, spread
from refattn.layers.recat_chart import (
    Chart,
    chart_cost,
    chart_depth,
    check_chart,
    exact_chart,
    merge_spans,
    pruned_chart,
    splits_chart,
)
from refattn.layers.recat_parser import lstm, merge_order, split_scores
from refattn.layers.recat_passes import (
    chart_of,
    cio_cells,
    cio_stack,
    inside_cells,
    inside_pass,
    outside_pass,
    score_pass,
    stack_cells,
)
from refattn.layers.recat_tree import best_splits_tree, order_tree, parser_loss, read_tree, viterbi_tree

orders = st.integers(0, 11).flatmap(lambda n: st.permutations(range(n)))


@cache
def arrays(n, layers=1, seed=0):
    """Leaves, layers, heads and the empty cell of one sentence."""
    given_arrays, _ = cases.cio_case(np.random.default_rng(seed), "normal", {"B": 1, "n": n, "R": layers})
    return given_arrays["leaves"][0], given_arrays["layers"], given_arrays["heads"], given_arrays["empty_cell"]


def model(seed=0, n=5, layers=2):
    given_arrays, _ = cases.model_case(np.random.default_rng(seed), "normal", {"n": n, "R": layers, "T": 2})
    return given_arrays["token_ids"], given_arrays["weights"]


def stack(chart, layers=1, leaves=None, **options):
    x, weights, heads, empty = arrays(chart.n, layers)
    return cio_stack(x if leaves is None else leaves, chart, weights, heads, empty, n_heads=2, **options)


@given(orders)
def test_a_window_of_all_splits_is_exact(order):
    """From n − 1 on the pruned chart is the exact one, and the order does not matter."""
    n = len(order) + 1
    for window in (max(n - 1, 1), n + 2):
        assert pruned_chart(order, window) == exact_chart(n)


@given(orders, st.integers(1, 5))
def test_a_pruned_span_is_cut_where_it_closes_last(order, window):
    """The chart of the partitions is the one found from the root by the m split points that close last."""
    chart, top_down = pruned_chart(order, window), tables(len(order) + 1, window, order)
    spans = top_down.spans[top_down.stacked].tolist()
    assert list(map(list, chart.splits)) == spans
    assert [k for splits in chart.splits.values() for k in splits] == top_down.points[top_down.split_order].tolist()
    merged = {
        tuple(top_down.spans[cell].tolist())
        for level in top_down.levels
        for parts, below in zip((level.left, level.right), level.below, strict=True)
        for cell in parts[below]
    }
    assert merged == set(chart.merged)


@given(orders, st.integers(1, 4))
def test_pruned_charts_are_linear(order, window):
    """Cells and splits stay below the bounds of the definition; a window of one is the merge tree."""
    n, chart = len(order) + 1, pruned_chart(order, window)
    assert len(chart.splits) <= (window + 1) * (n + max(n - 1 - window, 0))
    assert max(map(len, chart.splits.values())) <= window
    check_chart(chart)
    if window == 1:
        assert len(chart.splits) == 2 * n - 1
        assert set(chart.splits) == {(i, i) for i in range(n)} | set(merge_spans(order))
        assert chart.merged == frozenset(merge_spans(order)[:-1])


def test_exact_charts_are_cubic():
    """There are n(n + 1)/2 cells and (n³ − n)/6 compositions."""
    for n in range(1, 9):
        chart = exact_chart(n)
        assert len(chart.splits) == n * (n + 1) // 2
        assert chart.compositions == (n**3 - n) // 6
        assert chart_depth(chart) == n - 1


def test_depth_is_that_of_the_order():
    """A chain is n − 1 deep, a balanced tree log2 n; with a window of two it is about twice as deep."""
    balanced = [p for step in (1, 2, 4, 8) for p in range(step - 1, 15, 2 * step)]
    assert chart_depth(pruned_chart(range(15), 1)) == chart_depth(pruned_chart(range(15), 2)) == 15
    assert chart_depth(pruned_chart(balanced, 1)) == 4
    assert chart_depth(pruned_chart(balanced, 2)) == 7


def test_cost_counts_the_matrix_products():
    """Eight and ten D², two and four DF for each composition, five heads of D² + Dc."""
    cost = chart_cost(exact_chart(3), 4, 6, 2)
    assert cost == (4 * 2 * (8 * 16 + 2 * 24), 4 * 2 * (10 * 16 + 4 * 24), 4 * 5 * 2 * (16 + 8))


def score_vector(x, head):
    """One score head, straight from its definition."""
    hidden = x @ head.w1 + head.b1
    return (0.5 * hidden * (1.0 + erf(hidden / 2**0.5))) @ head.w2 + head.b2


def naive(span, chart, leaves, weights, heads, empty):
    """Vector and score of a span, by recursion that remembers nothing."""
    i, j = span
    if i == j:
        return leaves[i], 0.0
    s, made = [], []
    for k in chart.splits[span]:
        (l, below_l), (r, below_r) = (
            naive(part, chart, leaves, weights, heads, empty) for part in ((i, k), (k + 1, j))
        )
        f_l, f_r = score_vector(l, heads.inside_left), score_vector(r, heads.inside_right)
        s.append(f_l @ f_r / len(f_l) ** 0.5 + below_l + below_r)
        made.append(compose(empty, l, r, weights, n_heads=2))
    w = np.exp(s) / np.exp(s).sum()
    return w @ np.array(made), w @ np.array(s)


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_the_inside_pass_is_the_plain_recursion(n):
    """Vectors and scores of the root are those of a recursion without memory, exact and pruned."""
    leaves, layers, heads, empty = arrays(n)
    for chart in (exact_chart(n), pruned_chart(range(n - 1), 2)):
        inside = inside_pass(leaves, chart, layers[0].inside, heads, context=empty, n_heads=2)
        vector, score = naive((0, n - 1), chart, leaves, layers[0].inside, heads, empty)
        np.testing.assert_allclose(inside.vectors[chart.root], vector, rtol=0, atol=1e-12)
        np.testing.assert_allclose(inside.scores[chart.root], score, rtol=0, atol=1e-12)


def test_weights_of_both_passes_are_distributions():
    """The weights of splits, and of all that a cell is told, are positive and sum to one."""
    for chart in (exact_chart(6), pruned_chart([2, 4, 0, 1, 3], 2)):
        for inside, outside in stack(chart, 2):
            for w in (*inside.weights.values(), *outside.weights.values()):
                assert (w > 0).all()
                np.testing.assert_allclose(w.sum(-1), 1.0, rtol=0, atol=1e-14)


def test_every_leaf_hears_every_token_after_one_outside_pass():
    """Change one token: inside vectors change where it is, outside vectors of all leaves, and then everything."""
    chart = pruned_chart([1, 3, 0, 4, 2], 2)
    leaves = arrays(6)[0]
    changed = leaves.copy()
    changed[2, 0] += 1.0
    first, second = (stack(chart, 2, leaves=x) for x in (leaves, changed))
    for i, j in chart.splits:
        same = np.array_equal(first[0][0].vectors[i, j], second[0][0].vectors[i, j])
        assert same == (not i <= 2 <= j)
        assert not np.allclose(first[1][0].vectors[i, j], second[1][0].vectors[i, j], rtol=0, atol=1e-9)
    for i in range(6):
        assert not np.allclose(first[0][1].vectors[i, i], second[0][1].vectors[i, i], rtol=0, atol=1e-9)


def running(t, told):
    """Accumulate one at a time with a running log-sum-exp, as the official code does."""
    total, vector = -1e20, 0.0
    for score, x in zip(t, told, strict=True):
        new = np.logaddexp(total, score)
        vector = vector * np.exp(total - new) + x * np.exp(score - new)
        total = new
    return vector


def test_a_running_sum_in_any_order_is_the_softmax():
    """Accumulating what a part is told, one at a time and in any order, gives the one-shot average."""
    chart = exact_chart(5)
    layers = arrays(5)[1]
    inside, outside = stack(chart)[0]
    t, told = [], []
    for i, j in chart.splits:  # the leaf 2 as the left part of (2, j), and as the right part of (i, 2)
        for k in chart.splits[i, j]:
            side = {(i, k): 0, (k + 1, j): 1}.get((2, 2))
            if side is not None:
                l, r = inside.vectors[i, k], inside.vectors[k + 1, j]
                told.append(spread(outside.vectors[i, j], l, r, layers[0].outside, n_heads=2)[side])
                t.append((i, j, k, side))
    assert len(t) == len(outside.weights[2, 2])
    # the weights come longest parent first, later parents of one length first
    ranked = sorted(range(len(t)), key=lambda n: (-(t[n][1] - t[n][0]), -t[n][0], t[n][2]))
    logits = np.log(outside.weights[2, 2])
    told = np.array([told[n] for n in ranked])
    for order in (np.arange(len(t)), np.random.default_rng(0).permutation(len(t))):
        np.testing.assert_allclose(running(logits[order], told[order]), outside.vectors[2, 2], rtol=0, atol=1e-12)


def test_scores_rules_agree_without_pruning_and_differ_with_it():
    """What merged parts count matters only where something was merged."""
    exact = [stack(exact_chart(5), merged_scores=rule)[0][0].scores[0, 4] for rule in ("kept", "zero")]
    thin = [stack(pruned_chart([3, 1, 2, 0], 2), merged_scores=rule)[0][0].scores[0, 4] for rule in ("kept", "zero")]
    assert exact[0] == exact[1]
    assert abs(thin[0] - thin[1]) > 1e-6


def test_sharpened_scores_find_the_viterbi_tree():
    """As scores grow the mean score tends to the best sum, and the tree to the best tree."""
    rng = np.random.default_rng(3)
    phi, chart = rng.standard_normal((8, 8, 8)), exact_chart(8)
    tree, best = viterbi_tree(phi)
    inside = score_pass(2000.0 * phi, chart)
    np.testing.assert_allclose(inside.scores[chart.root] / 2000.0, best, rtol=0, atol=1e-8)
    assert np.array_equal(read_tree(inside, chart).nodes, tree.nodes)


def trees(i, j):
    """Yield the splits of every tree over i … j."""
    if i == j:
        yield {}
    for k in range(i, j):
        for left, right in itertools.product(trees(i, k), trees(k + 1, j)):
            yield {(i, j): k} | left | right


def test_viterbi_is_the_best_of_all_trees():
    """Of all 42 trees over six tokens none has a larger sum."""
    phi = np.random.default_rng(0).standard_normal((6, 6, 6))
    tree, best = viterbi_tree(phi)
    sums = {sum(phi[i, k, j] for (i, j), k in splits.items()): splits for splits in trees(0, 5)}
    assert len(sums) == 42
    assert best == pytest.approx(max(sums), abs=1e-13)
    assert best_splits_tree(6, sums[max(sums)]).splits.tolist() == tree.splits.tolist()


def test_adding_a_constant_to_every_pair_changes_no_weight():
    """It is counted once a merge under the rule that keeps scores."""
    phi = np.random.default_rng(1).standard_normal((7, 7, 7))
    chart = pruned_chart([4, 0, 2, 5, 1, 3], 2)
    plain, raised = score_pass(phi, chart), score_pass(phi + 0.5, chart)
    for i, j in chart.splits:
        np.testing.assert_allclose(raised.scores[i, j], plain.scores[i, j] + 0.5 * (j - i), rtol=0, atol=1e-12)
        if i < j:
            np.testing.assert_allclose(raised.weights[i, j], plain.weights[i, j], rtol=0, atol=1e-12)


def test_equal_scores_split_at_the_first_place():
    """With all scores equal the tree branches to the right, in the chart and exactly."""
    phi, chart = np.zeros((4, 4, 4)), exact_chart(4)
    for tree in (read_tree(score_pass(phi, chart), chart), viterbi_tree(phi)[0]):
        assert tree.nodes.tolist() == [[0, 3], [0, 0], [1, 3], [1, 1], [2, 3], [2, 2], [3, 3]]


@given(orders)
def test_a_window_of_one_forces_the_tree(order):
    """The tree of the order, the chart of its splits and the chart of window one are the same."""
    tree, n = order_tree(order), len(order) + 1
    splits = {tuple(span): int(k) for span, k in zip(tree.nodes.tolist(), tree.splits, strict=True) if k >= 0}
    assert splits_chart(n, splits) == pruned_chart(order, 1)
    if order:
        assert tree.splits[0] == order[-1]


def test_one_and_two_tokens():
    """One token is its own inside and outside; two tokens are one composition under any window."""
    ((inside, outside),) = stack(exact_chart(1))
    assert np.array_equal(inside.vectors[0, 0], outside.vectors[0, 0])
    assert np.array_equal(outside.vectors[0, 0], arrays(1)[0][0])
    assert pruned_chart([0], 1).compositions == pruned_chart([0], 5).compositions == exact_chart(2).compositions == 1


def test_stacked_cells_are_the_dictionaries():
    """The arrays hold the same numbers as the dictionaries by span, in the order of the chart."""
    order = [2, 0, 3, 1]
    chart = chart_of(5, 2, order)
    x, layers, heads, empty = arrays(5, 2)
    cells = cio_cells(x, layers, heads, empty, n_heads=2, window=2, order=order)
    for r, (inside, outside) in enumerate(stack(chart, 2)):
        np.testing.assert_array_equal(cells.inside_vectors[r], stack_cells(inside.vectors, chart))
        np.testing.assert_array_equal(cells.outside_scores[r], stack_cells(outside.scores, chart))
    one = inside_cells(x, empty, layers[0].inside, heads, n_heads=2, window=2, order=order)
    np.testing.assert_array_equal(one.vectors, cells.inside_vectors[0])


def test_merge_order_is_stable_and_keeps_atoms_together():
    """Equal scores close from left to right; atoms close first; noise needs a generator and depends on nothing else."""
    assert merge_order([0.0, 0.0, -1.0, 0.0]).tolist() == [2, 0, 1, 3]
    assert merge_order([5.0, 4.0, 1.0, 0.0], atoms=[(0, 2)]).tolist() == [1, 0, 3, 2]
    assert merge_order([]).tolist() == []
    drawn = [merge_order(np.zeros(9), noise=1.0, rng=np.random.default_rng(2)) for _ in range(2)]
    assert np.array_equal(*drawn)
    assert sorted(drawn[0]) == list(range(9))
    assert merge_order([1.0, 0.0], noise=-1.0).tolist() == [1, 0]


def test_gumbel_noise_draws_splits_by_their_softmax():
    """With noise of strength one the top split is k with the probability of a softmax over the scores."""
    u, rng = np.array([0.0, 1.0, 2.0]), np.random.default_rng(0)
    tops = [merge_order(u, noise=1.0, rng=rng)[-1] for _ in range(4000)]
    expected = np.exp(u) / np.exp(u).sum()
    np.testing.assert_allclose(np.bincount(tops, minlength=3) / 4000, expected, rtol=0, atol=0.03)


def test_parser_loss_counts_each_node_once():
    """With equal scores a node of m tokens costs log(m − 1)."""
    assert parser_loss(np.zeros(3), order_tree([0, 1, 2])) == pytest.approx((np.log(3) + np.log(2)) / 4)
    assert parser_loss(np.zeros(0), order_tree([])) == 0.0


def test_a_lstm_starts_from_zero_and_reads_forward():
    """The first states do not depend on what follows."""
    weights = cases.parser_case(np.random.default_rng(0), "normal", {"B": 1, "n": 4, "E": 3, "h": 2, "T": 1})
    x, ahead = weights[0]["x"][0], weights[0]["weights"].layers[0][0]
    np.testing.assert_array_equal(lstm(x, ahead)[:2], lstm(x[:2], ahead))
    assert lstm(x[:0], ahead).shape == (0, 2)


def test_the_tree_can_come_from_order_scores_or_chart():
    """Split scores stand for the order that follows from them."""
    ids, weights = model()
    scores = np.array([0.3, -1.0, 2.0, 0.1])
    by_scores = recat_encode(ids, weights, n_heads=2, window=1, split_scores=scores)
    by_order = recat_encode(ids, weights, n_heads=2, window=1, order=merge_order(scores))
    np.testing.assert_array_equal(by_scores.vectors, by_order.vectors)
    assert by_scores.splits[0] == 2


def test_word_loss_looks_at_asked_leaves_only():
    """A target of −1 asks for nothing; equal logits cost log V."""
    logits = np.zeros((3, 7))
    assert mlm_loss(logits, [1, -1, 4]) == pytest.approx(np.log(7))
    assert mlm_loss(logits, [-1, -1, -1]) == 0.0


def test_a_pair_is_symmetric_but_for_roles_and_joins_its_sentences():
    """Each sentence of a pair depends on the other one."""
    _, weights = model()
    first, second = np.array([0, 1, 2]), np.array([3, 4])
    out = recat_encode_pair([first, second], weights, n_heads=2)
    other = recat_encode_pair([first, second + 1], weights, n_heads=2)
    assert out.vectors.shape == (1 + 5 + 3, 4)
    assert not np.allclose(out.vectors[1:6], other.vectors[1:6], atol=1e-9)
    assert np.isfinite(out.group).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtype_is_kept(dtype):
    """Results have the dtype of the leaves and lie within its resolution of the float64 ones."""
    x, layers, heads, empty = arrays(4)
    wide = cio_cells(x.astype(dtype).astype(float), layers, heads, empty, n_heads=2)
    narrow = cio_cells(x.astype(dtype), layers, heads, empty, n_heads=2)
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=300 * np.finfo(dtype).eps)


def test_inputs_may_be_read_only_and_strided():
    """Nothing is written to the inputs, and any layout will do."""
    x, layers, heads, empty = arrays(4)
    wide = np.repeat(x, 2, axis=0)[::2]
    wide.flags.writeable = False
    results = [cio_cells(y, layers, heads, empty, n_heads=2).outside_vectors for y in (x, wide)]
    np.testing.assert_allclose(*results, rtol=0, atol=1e-12)


BROKEN = {
    "no root": Chart(2, {(0, 0): (), (1, 1): ()}),
    "no split": Chart(2, {(0, 0): (), (1, 1): (), (0, 1): ()}),
    "no child": Chart(3, {(0, 0): (), (1, 1): (), (2, 2): (), (0, 2): (0,)}),
    "backwards": Chart(2, {(0, 0): (), (1, 1): (), (1, 0): (), (0, 1): (0,)}),
    "unsorted": Chart(2, {(0, 1): (0,), (0, 0): (), (1, 1): ()}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_charts_are_refused(name):
    """A chart whose root or cells cannot be built is refused by every function that takes one."""
    rule = {"no root": "unreachable", "no split": "unreachable", "no child": "no cell", "backwards": "not one of"}
    with pytest.raises(ValueError, match=rule.get(name, "by length")):
        check_chart(BROKEN[name])
    with pytest.raises(ValueError, match="chart"):
        stack(BROKEN[name])


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: pruned_chart([0, 1], 0), "window=0 must be at least 1"),
        (lambda: pruned_chart([0, 2], 1), "merge order must be a permutation"),
        (lambda: pruned_chart([0, 0], 1), "merge order must be a permutation"),
        (lambda: merge_spans([0.5]), "merge order has dtype"),
        (lambda: exact_chart(0), "n=0 must be at least 1"),
        (lambda: splits_chart(3, {(0, 2): 0}), "no cell"),
        (lambda: splits_chart(3, {(0, 2): 0, (1, 2): 1, (0, 1): 0}), "a tree over 3 tokens has 2"),
        (lambda: chart_of(4, 2, None), "window=2 needs a merge order"),
        (lambda: chart_of(4, 2, [0]), "merge order must be a permutation of 3"),
        (lambda: merge_order([0.0, np.nan]), "scores must not be NaN"),
        (lambda: merge_order([0.0], atoms=[(1, 0)]), "is no span"),
        (lambda: merge_order([0.0], noise=1.0), "needs a generator"),
        (lambda: score_pass(np.zeros((3, 3, 2)), exact_chart(3)), "phi has shape"),
        (lambda: viterbi_tree(np.full((2, 2, 2), np.nan)), "NaN"),
        (lambda: parser_loss([0.0, 0.0], order_tree([0])), "expected 1"),
        (lambda: parser_loss([np.nan], order_tree([0])), "must not be NaN"),
        (lambda: stack(exact_chart(3), merged_scores="half"), "merged_scores='half'"),
        (lambda: stack(exact_chart(3), leaves=np.zeros((4, 4))), "the chart has 3"),
        (lambda: stack(exact_chart(3), leaves=np.zeros((3, 5))), "must divide the width D=5"),
        (lambda: stack(exact_chart(3), layers=0), "layers is empty"),
        (lambda: compose(np.zeros(4), np.zeros(4), np.zeros(3), arrays(2)[1][0].inside, n_heads=2), "right has shape"),
        (lambda: encode_nodes(np.zeros((2, 4)), (), n_heads=3), "n_heads=3 must divide"),
        (lambda: encode_nodes(np.zeros((2, 4)), (), n_heads=2, mask=np.ones(3, bool)), "mask has shape"),
        (lambda: split_scores(np.zeros((0, 3)), None), "n at least 1"),
        (lambda: recat_encode([], model()[1], n_heads=2), "token_ids is empty"),
        (lambda: recat_encode([7], model()[1], n_heads=2), r"token_ids must be in \[0, 7\)"),
        (lambda: recat_encode_pair([[0]], model()[1], n_heads=2), "expected two"),
        (lambda: mlm_loss(np.zeros((2, 3)), [0, 3]), r"targets must be in \[-1, 3\)"),
        (lambda: mlm_logits(np.zeros((2, 3)), model()[1]), "weights.mlm_w has shape"),
        (lambda: inside_cells(np.zeros((3, 4)), np.zeros((5, 4)), *arrays(3)[1:3], n_heads=2), "one row a cell"),
    ],
)
def test_bad_input_is_refused(call, rule):
    """Each argument out of range is refused by name, value and rule."""
    with pytest.raises(ValueError, match=rule):
        call()


def test_a_root_of_another_shape_is_refused():
    """What the root is told must have the shape of its vector."""
    chart = exact_chart(2)
    inside, _ = stack(chart)[0]
    with pytest.raises(ValueError, match="root has shape"):
        outside_pass(inside, chart, arrays(2)[1][0].outside, arrays(2)[2], n_heads=2, root=np.zeros(3))
