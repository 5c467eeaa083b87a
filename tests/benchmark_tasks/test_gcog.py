"""gCOG: what tasks and images are, what the solver answers, what splits hold, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.benchmarks import gcog
from refattn.benchmarks.gcog import Node, Selector, TaskTree, Vocabulary
from refattn.benchmarks.gcog_init import NetworkConfig, init_network
from refattn.benchmarks.gcog_tasks import n_nodes

SMALL = Vocabulary(4, 4, 4)
PARTS = [(name, part) for name, parts in gcog.SPLITS.items() for part in parts]


def samples(name, part, n=60, **options):
    return list(gcog.stream_split(name, part, seed=1, stop=n, **options))


def asked(op, *selectors):
    return TaskTree(1, (Node(op, tuple(Selector(*s) for s in selectors)),))


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_every_sample_is_solved_and_read_back(name, part):
    """Labels are the solver's; decoded tasks differ by places and placeholders only, and have the same answer."""
    for task, grid, label in samples(name, part, 30):
        decoded = gcog.decode_task(gcog.encode_task(task))
        assert gcog.solve(decoded, grid) == gcog.solve(task, grid) == label
        assert [node.op for node in decoded.nodes] == [node.op for node in task.nodes]
        assert np.array_equal(gcog.encode_task(decoded), gcog.encode_task(task))


@given(st.sampled_from([1, 3, 5, 7]), st.integers(0, 40), st.integers(0, 10**6))
def test_images_hold_no_object_twice(depth, n_distractors, seed):
    """Objects differ, and there are no more of them than distractors and selectors."""
    rng = np.random.default_rng(seed)
    task = gcog.sample_task(rng, depth)
    grid = gcog.sample_stimulus(rng, task, n_distractors)
    objects = grid[grid[..., 0] > 0]
    assert len(np.unique(objects, axis=0)) == len(objects)
    assert len(objects) <= n_distractors + sum(len(node.selectors) for node in task.nodes)
    assert np.all((grid[..., 0] > 0) == (grid[..., 1] > 0))


@given(st.sampled_from([1, 3, 5, 7]), st.integers(0, 10**6))
def test_only_objects_on_the_path_matter(depth, seed):
    """A path has (d + 1)/2 nodes; objects that none of them matches may be taken away."""
    rng = np.random.default_rng(seed)
    task = gcog.sample_task(rng, depth)
    grid = gcog.sample_stimulus(rng, task, 5)
    taken = gcog.path(task, grid)
    assert len(taken) == (depth + 1) // 2
    keep = np.zeros(grid.shape[:2], bool)
    for node in (task.nodes[i] for i in taken):
        for color, shape, _ in node.selectors:
            same_color, same_shape = grid[..., 0] == color, grid[..., 1] == shape
            keep |= (same_color | (node.op == "getcolor")) & (same_shape | (node.op == "getshape"))
    assert gcog.solve(task, np.where(keep[..., None], grid, 0)) == gcog.solve(task, grid)


def test_the_label_is_the_transposed_token():
    """Cell (a, b) is token G·a + b and class 2 + G·b + a."""
    grid = gcog.place_objects([(3, 5, (2, 7))])
    assert np.flatnonzero(gcog.stimulus_tokens(grid)[:-1, 0]) == [27]
    label = gcog.solve(asked("go", (3, 5)), grid)
    assert label == 2 + 72
    assert gcog.label_to_answer(label) == (2, 7)


def test_operators_answer_by_hand():
    """Each operator on an image of three objects."""
    grid = gcog.place_objects([(1, 1, (1, 3)), (2, 1, (0, 4)), (3, 2, (5, 5))])

    def answer(op, *selectors):
        return gcog.label_to_answer(gcog.solve(asked(op, *selectors), grid))

    assert answer("exist", (1, 1)) is True
    assert answer("exist", (1, 2)) is False
    assert answer("getcolor", (9, 2)) == "blue"
    assert answer("getcolor", (9, 1)) == "green"  # the first of two in the order of rows
    assert answer("getshape", (3, 9)) == "b"
    assert answer("sumeven", (1, 1)) is True
    assert answer("sumodd", (1, 1), (3, 2)) is False
    assert answer("productodd", (1, 1), (3, 2)) is True
    assert answer("producteven", (2, 1), (3, 2)) is True


def test_every_class_has_an_answer_of_its_own():
    """138 classes, no two of which mean the same; small vocabularies count theirs."""
    assert Vocabulary().labels == 138
    answers = [gcog.label_to_answer(label) for label in range(138)]
    assert len(set(map(str, answers))) == 138
    assert answers[102] == "a"
    assert answers[128] == "red"
    assert gcog.label_to_answer(SMALL.labels - 1, vocabulary=SMALL) == "yellow"


def test_swapping_branches_and_negating_keeps_the_answer():
    """Swap sumeven ↔ sumodd, producteven ↔ productodd, with True and False exchanged."""
    negated = {"sumeven": "sumodd", "sumodd": "sumeven", "producteven": "productodd", "productodd": "producteven"}
    for task, grid, label in samples("productive", "test_5", 40):
        root, *rest = task.nodes
        if root.op in negated:
            order = [1, 0, 4, 5, 2, 3]
            swapped = TaskTree(5, (Node(negated[root.op], root.selectors), *(rest[i] for i in order)))
            assert gcog.solve(swapped, grid) == label


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_systematic_split_tests_unseen_pairs(exclusive):
    """Operator and feature of train and test are disjoint if exclusive, else in all but the common quarter."""
    seen = {}
    for part in ("train", "test"):
        tasks = [s.task.nodes[0] for s in samples("systematic", part, 1500, exclusive=exclusive)]
        seen[part] = {(op, *selectors[0][:2]) for op, selectors in tasks}
    common = seen["train"] & seen["test"]
    assert all(color <= 5 and shape >= 6 for _, color, shape in common)
    assert bool(common) != exclusive
    assert {op for op, _, _ in seen["train"]} == set(gcog.END)


def test_the_systematic_trees_test_unseen_compositions():
    """No pair of inner and last operator that makes a test tree is one of training, but for the common operators."""
    chosen = {part: gcog.SPLITS["systematic_tree"][part].choices for part in ("train", "test")}
    assert not set(chosen["train"]) & set(chosen["test"])
    for part, choices in chosen.items():
        for sample in samples("systematic_tree", part, 40):
            ops = [node.op for node in sample.task.nodes]
            assert any(ops[0] in c.inner and set(ops[1:]) <= set(c.last) for c in choices)


def test_streams_are_the_same_however_they_are_cut():
    """Sample i depends on seed and i alone; arrays hold what the stream yields."""
    whole = samples("productive", "train", 12)
    parts = [
        sample
        for start in (0, 5, 10)
        for sample in gcog.stream_split("productive", "train", seed=1, start=start, stop=min(start + 5, 12))
    ]
    assert [s.task for s in whole] == [s.task for s in parts]
    assert all(np.array_equal(a.grid, b.grid) for a, b in zip(whole, parts, strict=True))
    batch = gcog.Batch.of(whole)
    assert batch.labels.tolist() == [s.label for s in whole]
    assert np.array_equal(batch.stimulus, gcog.stimulus_tokens(batch.grids))
    again = [gcog.make_split("distractor", "train", 5, np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(again[0].stimulus, again[1].stimulus)
    assert not np.array_equal(
        again[0].stimulus, gcog.make_split("distractor", "train", 5, np.random.default_rng(4)).stimulus
    )


def test_padding_stays_before_the_end_token():
    """The end token is last whatever the length, and the mask tells padding."""
    rng = np.random.default_rng(0)
    tasks = [gcog.sample_task(rng, depth) for depth in (1, 3)]
    tokens, mask = gcog.pad_tasks(tasks, n_tokens=8)
    assert np.all(tokens[:, -1] == [0, 0, 0, 0, 0, 0, 0, 1])
    assert mask.sum(axis=1).tolist() == [2, 5]
    assert [len(gcog.decode_task(t).nodes) for t in tokens] == [1, 3]


@pytest.mark.parametrize("n_distractors", [0, 40])
def test_existence_is_as_frequent_as_it_should_be(n_distractors):
    """P(True) is 1/2, and a distractor may happen to be what is asked for: 259/260 each time that it is not."""
    part = gcog.Part(distractors=(n_distractors, n_distractors), choices=(gcog.Choice(last=("exist",)),))
    rng = np.random.default_rng(0)
    found = np.mean([gcog.draw_sample(rng, part).label == 0 for _ in range(1500)])
    expected = 0.5 + 0.5 * (1 - (259 / 260) ** n_distractors)
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 1500)


@pytest.mark.parametrize(("op", "expected"), [("sumeven", 0.5), ("producteven", 0.75), ("productodd", 0.25)])
def test_sums_and_products_are_as_frequent_as_they_should_be(op, expected):
    """With one selector a sum is even half of the time, a product three quarters of it."""
    part = gcog.Part(choices=(gcog.Choice(last=(op,)),))
    rng = np.random.default_rng(1)
    found = np.mean([gcog.draw_sample(rng, part).label == 0 for _ in range(1000)])
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 1000)


def test_distractors_do_not_change_the_answers_of_depth_one():
    """Unless an image has moved its object, a task other than exist has one answer in all images."""
    rng = np.random.default_rng(2)
    for op in ("go", "sumodd", "getcolor", "getshape"):
        task = gcog.sample_task(rng, 1, last=(op,))
        a, b = task.nodes[0].selectors[0].loc
        color, shape = task.nodes[0].selectors[0][:2]
        still = gcog.solve(task, gcog.place_objects([(color, shape, (a, b))]))
        for _ in range(20):
            grid = gcog.sample_stimulus(rng, task, 10)
            if tuple(grid[a, b]) == (color, shape):
                assert gcog.solve(task, grid) == still


def test_unambiguous_samples_are():
    """With ``unambiguous`` no get-node finds two objects; without it some do."""
    assert not any(gcog.is_ambiguous(s.task, s.grid) for s in samples("productive", "test_5", 30, unambiguous=True))
    assert any(gcog.is_ambiguous(s.task, s.grid) for s in samples("productive", "test_5", 30))


def test_small_vocabularies_stay_inside():
    """On a 4 by 4 grid with four colours and shapes everything fits, labels too."""
    for task, grid, label in samples("distractor", "train", 60, n_features=4, vocabulary=SMALL):
        assert grid.shape == (4, 4, 2)
        assert grid.max() <= 4
        assert 0 <= label < SMALL.labels == 26
        assert gcog.solve(task, grid, vocabulary=SMALL) == label


def test_an_empty_image_answers_exist():
    """Without objects nothing exists, and that is an answer; for the other operators it is none."""
    empty = gcog.place_objects([])
    assert gcog.solve(asked("exist", (1, 1)), empty) == 1
    with pytest.raises(ValueError, match="go: no object matches"):
        gcog.solve(asked("go", (1, 1)), empty)
    with pytest.raises(ValueError, match="selector must match exactly one object"):
        gcog.solve(asked("sumeven", (1, 1)), empty)


def test_batches_may_be_empty():
    """No sample, and one sample, make batches."""
    for n in (0, 1):
        batch = gcog.make_split("distractor", "train", n, np.random.default_rng(0), one_hot=True)
        assert len(batch.labels) == len(batch.tokens) == n
        assert batch.stimulus.shape == (n, 101, 37)


def test_the_picture_lights_the_path():
    """The picture is an SVG document with the answer, the nodes in words, and a letter for each object."""
    import xml.etree.ElementTree as ET

    task, grid, label = samples("productive", "test_5", 1)[0]
    text = gcog.draw_task(task, grid)
    root = ET.fromstring(text)
    words = [element.text for element in root.iter() if element.text and element.text.strip()]
    assert f"answer: {gcog.label_to_answer(label)}" in words
    assert sum(len(word) == 1 for word in words) == np.count_nonzero(grid[..., 0])
    assert text.count('stroke-width="2"') == len(gcog.path(task, grid)) - 1


def network(name, **changes):
    config = NetworkConfig(embed=8, hidden=6, classes=9, n_blocks=2, stimulus_tokens=5)._replace(**changes)
    return init_network(name, config, np.random.default_rng(0))


def streams(*lead, n=4, m=5):
    rng = np.random.default_rng(1)
    return rng.standard_normal((*lead, n, 8)), rng.standard_normal((*lead, m, 3))


NETWORKS = (
    "dual_stream",
    "single_stream",
    "deep_single_stream",
    "cross_attention",
    "perceiver",
    "rule_query_cross_attention",
    "rnn_classifier",
    "gru_classifier",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_axes_and_dtype(name):
    """Any leading axes, none and empty ones too; float32 stays; integers become float64."""
    function, weights = getattr(gcog, name), network(name)
    rule, stimulus = streams(2, 3)
    whole = function(rule, stimulus, weights)
    assert whole.log_probs.shape == (2, 3, 9)
    np.testing.assert_allclose(np.exp(whole.log_probs).sum(-1), 1, rtol=0, atol=1e-12)
    one = function(rule[1, 2], stimulus[1, 2], weights)
    np.testing.assert_allclose(one.log_probs, whole.log_probs[1, 2], rtol=0, atol=1e-12)
    assert function(rule[:0], stimulus[:0], weights).log_probs.shape == (0, 3, 9)
    assert function(rule.astype(int), stimulus.astype(int), weights).log_probs.dtype == np.float64
    single = as_float32(weights)
    assert function(rule.astype(np.float32), stimulus.astype(np.float32), single).log_probs.dtype == np.float32


def as_float32(tree):
    if isinstance(tree, tuple):
        branches = [as_float32(branch) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)
    return None if tree is None else tree.astype(np.float32)


def test_perceivers_latents_are_all_the_same():
    """Ten latents that begin as zeros are ten times one."""
    _, z = gcog.perceiver(*streams(2), network("perceiver"), n_heads=2, return_latents=True)
    np.testing.assert_allclose(z, np.broadcast_to(z[:, :1], z.shape), rtol=0, atol=1e-12)


def test_causal_masks_are_invisible_at_the_last_token():
    """Where only the last token is read, it sees everything: later blocks alone could tell a mask from none."""
    rule, stimulus = streams(2)
    w = network("dual_stream", distances=6)
    w = w._replace(rule=w.rule._replace(relative=np.zeros_like(w.rule.relative)))
    order = [2, 0, 1, 3]
    left, right = (gcog.dual_stream(x, stimulus, w).log_probs for x in (rule, rule[:, order]))
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gcog.sample_task(np.random.default_rng(), 2), "task depth must be odd"),
        (lambda: gcog.sample_task(np.random.default_rng(), -1), "task depth must be odd"),
        (lambda: n_nodes(0), "task depth must be odd"),
        (lambda: gcog.sample_task(np.random.default_rng(), 1, last=("count",)), "last='count' is not one of"),
        (lambda: gcog.sample_task(np.random.default_rng(), 3, inner=("go",)), "inner='go' is not one of"),
        (lambda: gcog.sample_task(np.random.default_rng(), 7, vocabulary=SMALL), "more objects than the grid"),
        (lambda: gcog.make_split("other", "train", 1, np.random.default_rng()), "name='other' is not one of"),
        (lambda: gcog.stream_split("distractor", "dev"), "part='dev' is not one of"),
        (lambda: gcog.split_features("all", 11), "n_features=11 must lie in 0..10"),
        (lambda: gcog.split_features("third"), "half='third' is not one of"),
        (lambda: sample_with(-1), "n_distractors=-1 is negative"),
        (lambda: sample_with(100), "too many distractors for the grid"),
        (lambda: gcog.place_objects([(1, 1, (0, 0)), (2, 2, (0, 0))]), "used twice"),
        (lambda: gcog.place_objects([(1, 1, (0, 10))]), "lies outside the grid"),
        (lambda: gcog.place_objects([(11, 1, (0, 0))]), "color=11"),
        (lambda: gcog.solve(asked("exist", (1, 1, (10, 0))), gcog.place_objects([])), "lies outside the grid"),
        (lambda: gcog.solve(asked("exist", (1, 1)), np.zeros((4, 4, 2), int)), "grid has shape"),
        (lambda: gcog.solve(TaskTree(3, ()), gcog.place_objects([])), "task has 0 nodes, expected 3"),
        (lambda: gcog.decode_task(np.ones((3, 8), int)), "expected those of a full tree"),
        (lambda: gcog.decode_task(np.full((1, 8), 9)), r"operators \[9\]"),
        (lambda: gcog.decode_task(np.ones((4, 8), int)), "a switch after each inner node"),
        (lambda: gcog.pad_tasks([asked("exist", (1, 1))], n_tokens=1), "n_tokens=1 is less than the 2"),
        (lambda: gcog.label_to_answer(138), r"label=138 must lie in 0..137"),
        (lambda: gcog.stimulus_tokens(np.zeros((2, 3, 2), int)), "grid has shape"),
        (lambda: gcog.stimulus_tokens(np.full((2, 2, 2), 11)), "grid holds colours outside"),
        (lambda: gcog.dual_stream(*streams(1), network("dual_stream"), n_heads=3), "n_heads=3 must divide"),
        (lambda: gcog.dual_stream(*streams(1, n=0), network("dual_stream")), "tokens ≥ 1"),
        (lambda: gcog.dual_stream(*streams(1), network("dual_stream", distances=3)), "more than the 3 distances"),
        (lambda: gcog.dual_stream(*streams(1), network("dual_stream", rule_features=7)), "rule has 8 features"),
        (lambda: gcog.perceiver(*streams(1), network("perceiver"), n_latents=0), "n_latents=0 must be >= 1"),
        (lambda: gcog.gru_classifier(*streams(1, m=6), network("gru_classifier")), "features together"),
        (lambda: gcog.gru_classifier(*streams(1), network("rnn_classifier")), "expected 18"),
        (lambda: init_network("lstm", NetworkConfig(), np.random.default_rng()), "name='lstm' is not one of"),
    ],
)
def test_bad_input_is_refused(call, message):
    """Everything out of range is refused with the argument, its value and the rule."""
    with pytest.raises(ValueError, match=message):
        call()


def sample_with(n_distractors):
    rng = np.random.default_rng(0)
    return gcog.sample_stimulus(rng, gcog.sample_task(rng, 1), n_distractors)
