"""Retrieval heads: scores of arrays, needles and tasks, and what a planted model shows under detection and masking."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.interpretability.retrieval_heads import (
    average_scores,
    copied_positions,
    count_copies,
    rank_heads,
    retrieval_hits,
    score_correlation,
    select_heads,
    unigram_recall,
)
from refattn.interpretability.retrieval_heads_detection import detect_retrieval_heads, greedy_rows, run_retrieval
from refattn.interpretability.retrieval_heads_masking import draw_heads, mask_heads, masking_experiment
from refattn.interpretability.retrieval_heads_report import report
from refattn.interpretability.retrieval_heads_tasks import (
    PLANTED,
    NeedleTask,
    draw_vocabulary,
    find_span,
    insert_needle,
    needle_tasks,
)
from refattn.transformer.ablation import ablate_heads
from refattn.transformer.checkpoint import load_pretrained, save_pretrained
from refattn.transformer.forward import forward
from refattn.transformer.generation import generate
from refattn.transformer.heads import head_scores
from refattn.transformer.planted.retrieval_model import RETRIEVAL_HEAD, build_retrieval_model
from refattn.transformer.weights import check_weights, random_transformer

HEADS = [(layer, head) for layer in range(2) for head in range(3)]
STOP = {"stop_ids": (PLANTED.period,)}


@pytest.fixture(scope="module")
def model():
    return build_retrieval_model()


@pytest.fixture(scope="module")
def tasks():
    return needle_tasks(np.random.default_rng(0), [32, 57, 128], [0, 11, 44, 100])


def one_hot_rows(keys, n_keys):
    """Rows (S, 1, 1, K) that look at the given keys."""
    return np.eye(n_keys)[np.asarray(keys)][:, None, None]


PROMPT = np.array([9, 4, 5, 6, 5, 9])


def test_a_head_that_walks_through_the_needle_scores_one():
    """Looking at each word of the needle while it is said scores 1; one token off, or beside the needle, scores 0."""
    said = PROMPT[1:5]

    walking = retrieval_hits(one_hot_rows([1, 2, 3, 4], 6), said, PROMPT, (1, 5))
    lagging = retrieval_hits(one_hot_rows([0, 1, 2, 3], 6), said, PROMPT, (1, 5))

    beyond = retrieval_hits(one_hot_rows([5, 0], 6), [9, 9], PROMPT, (1, 5))

    np.testing.assert_array_equal(walking, [[1.0]])
    np.testing.assert_array_equal(beyond, [[0.0]])
    np.testing.assert_array_equal(lagging, [[0.0]])


def test_repeats_count_unless_unique():
    """Copying one word three times gives three shares, or one where positions count once."""
    rows, said = one_hot_rows([2, 2, 2], 6), [5, 5, 5]

    assert retrieval_hits(rows, said, PROMPT, (1, 5))[0, 0] == 0.75
    assert retrieval_hits(rows, said, PROMPT, (1, 5), unique=True)[0, 0] == 0.25


def test_positions_count_once_each_though_they_hold_one_token():
    """With unique two places of the same word are two copies."""
    rows = one_hot_rows([2, 4], 6)

    assert retrieval_hits(rows, [5, 5], PROMPT, (1, 5), unique=True)[0, 0] == 0.5


def test_most_attended_match_of_a_step_counts_once():
    """Of two places that hold the token the more attended one is the copy, and the step gives one share."""
    row = np.array([0.1, 0.0, 0.2, 0.0, 0.5, 0.2])[None, None, None]

    assert copied_positions(row, [5], PROMPT, (1, 5), topk=3)[0, 0, 0] == 4
    assert retrieval_hits(row, [5], PROMPT, (1, 5), topk=3)[0, 0] == 0.25


def test_lowest_key_wins_a_tie():
    """Among equal weights the first key counts as looked at."""
    row = np.full((1, 1, 1, 6), 1 / 6)

    assert copied_positions(row, [9], PROMPT, (0, 2))[0, 0, 0] == 0
    assert copied_positions(row, [4], PROMPT, (1, 5))[0, 0, 0] == -1


def test_no_needle_and_no_answer_score_zero():
    """The span (−1, −1) and an answer of no token score 0."""
    np.testing.assert_array_equal(retrieval_hits(one_hot_rows([1], 6), [4], PROMPT, (-1, -1)), [[0.0]])
    np.testing.assert_array_equal(retrieval_hits(np.zeros((0, 2, 3, 6)), [], PROMPT, (1, 5)), np.zeros((2, 3)))


def test_splitting_the_score_into_copies_and_count_changes_nothing():
    """Positions collected step by step give the score of all rows at once."""
    rng = np.random.default_rng(0)
    rows, said, prompt = rng.random((12, 2, 3, 9)), rng.integers(3, size=12), rng.integers(3, size=9)
    steps = [copied_positions(rows[s : s + 1], said[s : s + 1], prompt, (2, 7), topk=2) for s in range(12)]

    for unique in (False, True):
        whole = retrieval_hits(rows, said, prompt, (2, 7), topk=2, unique=unique)
        np.testing.assert_array_equal(count_copies(np.concatenate(steps), (2, 7), unique=unique), whole)
        assert (whole >= 0).all()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"span": (2, 2)}, r"span=\(2, 2\) must be"),
        ({"span": (3, 2)}, "not empty"),
        ({"span": (2, 7)}, "inside the prompt of 6 tokens"),
        ({"span": (-1, 2)}, "inside the prompt"),
        ({"generated": [4, 5]}, "generated has length 2, expected 3"),
        ({"topk": 0}, "topk=0 must be at least 1"),
        ({"generated": [0.5, 1.0, 2.0]}, "expected integers"),
        ({"attn_rows": np.zeros((3, 2, 6))}, "expected 4"),
    ],
)
def test_bad_scores_are_refused(change, rule):
    """Each argument out of range is refused by name, value and rule."""
    call = {"attn_rows": one_hot_rows([1, 2, 3], 6), "generated": [4, 5, 6], "prompt": PROMPT, "span": (1, 5)} | change
    with pytest.raises(ValueError, match=rule):
        retrieval_hits(**call)


def test_recall_counts_each_token_as_often_as_both_have_it():
    """Two of three words said, one of them too often, is a recall of 2/3."""
    assert unigram_recall([3, 3, 4], [3, 9, 3, 3]) == pytest.approx(2 / 3)
    assert unigram_recall([3, 3, 4], []) == 0.0
    assert unigram_recall([3, 3, 4], [4, 3, 7, 3]) == 1.0
    with pytest.raises(ValueError, match="reference_ids is empty"):
        unigram_recall([], [1])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.lists(st.integers(0, 4), max_size=12))
def test_recall_lies_between_zero_and_one(wanted, said):
    """The recall is a share, and 1 once the whole answer is part of what was said."""
    assert 0.0 <= unigram_recall(wanted, said) <= 1.0
    assert unigram_recall(wanted, said + wanted) == 1.0


def test_averages_leave_failed_runs_out():
    """Runs at or below the bound change neither mean nor activation; without any run both are zero."""
    scores = np.array([[[1.0, 0.0]], [[0.5, 0.5]], [[7.0, 7.0]]])

    mean, activation, n_used = average_scores(scores, [1.0, 0.6, 0.5])

    np.testing.assert_array_equal(mean, [[0.75, 0.25]])
    np.testing.assert_array_equal(activation, [[1.0, 0.5]])
    assert n_used == 2
    np.testing.assert_array_equal(average_scores(scores, np.zeros(3)).mean, [[0.0, 0.0]])


def test_heads_are_ranked_and_selected():
    """The highest score comes first, ties in order of layer and head, and the threshold itself is enough."""
    mean = np.array([[0.1, 0.9, 0.0], [0.09, 0.9, 0.5]])

    assert rank_heads(mean) == ((0, 1), (1, 1), (1, 2), (0, 0), (1, 0), (0, 2))
    assert select_heads(mean) == ((0, 1), (1, 1), (1, 2), (0, 0))
    for threshold in (0.0, 1.1, -0.5):
        with pytest.raises(ValueError, match="threshold="):
            select_heads(mean, threshold=threshold)


def test_bad_averages_and_correlations_are_refused():
    """Lengths and shapes that differ, bounds out of range and constant maps are refused."""
    with pytest.raises(ValueError, match="recalls has length 2"):
        average_scores(np.zeros((3, 1, 1)), [1.0, 1.0])
    with pytest.raises(ValueError, match="min_recall=1"):
        average_scores(np.zeros((1, 1, 1)), [1.0], min_recall=1.0)
    with pytest.raises(ValueError, match="b has shape"):
        score_correlation(np.eye(2), np.eye(3))
    with pytest.raises(ValueError, match="b is constant"):
        score_correlation(np.eye(2), np.ones((2, 2)))
    with pytest.raises(ValueError, match="a="):
        score_correlation(np.array([[np.nan, 1.0]]), np.array([[0.0, 1.0]]))


def test_correlation_agrees_with_numpy():
    """The correlation of two maps is that of their flattened scores."""
    a, b = np.random.default_rng(0).random((2, 4, 5))

    assert score_correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-14)


def test_needle_goes_where_a_sentence_ends():
    """The needle stands after the last period before its depth; appended at 100, at the front without periods."""
    context = np.array([1, 2, 0, 3, 4, 5, 0, 6, 7, 8])
    options = {"length": 50, "period_ids": [0], "buffer": 0}

    for depth, at in ((0, 0), (20, 0), (30, 3), (60, 3), (70, 7), (99, 7), (100, 10)):
        ids, found = insert_needle(context, [88, 99], depth=depth, **options)
        assert found == at
        np.testing.assert_array_equal(ids, [*context[:at], 88, 99, *context[at:]])
    assert insert_needle(context + 1, [88], depth=90, **options).at == 0


def test_a_long_context_is_cut_to_what_the_buffer_leaves():
    """Context and needle together have length − buffer tokens, 200 less by default."""
    ids, at = insert_needle(np.arange(1, 101), [500, 501], length=240, depth=100, period_ids=[0])

    assert len(ids) == 40
    assert at == 38


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"depth": 101}, r"depth=101 must lie in \[0, 100\]"),
        ({"depth": -1}, "depth=-1"),
        ({"needle": np.arange(40), "length": 215, "buffer": 200}, "needle of 40 tokens does not fit in 15"),
        ({"needle": []}, "needle is empty"),
    ],
)
def test_bad_insertions_are_refused(change, rule):
    """Depths outside the text and needles that do not fit are refused."""
    call = {"needle": [7], "length": 20, "depth": 50, "period_ids": [0], "buffer": 0} | change
    with pytest.raises(ValueError, match=rule):
        insert_needle(np.arange(5), call.pop("needle"), **call)


def test_a_window_must_exceed_the_threshold():
    """Nine of ten distinct tokens are not enough; ten are, and a window may begin early where nine suffice."""
    needle = np.arange(10)
    text = np.concatenate([np.full(5, 50), needle, np.full(5, 50)])

    assert find_span(text, needle) == (5, 15)
    assert find_span(text[:14], needle) == (-1, -1)
    assert find_span(text, needle, threshold=0.85) == (4, 14)
    assert find_span(text, needle, threshold=1.0) == (-1, -1)
    assert find_span([3, 1], [1]) == (1, 2)
    for threshold in (0.0, 1.5):
        with pytest.raises(ValueError, match="threshold="):
            find_span(text, needle, threshold=threshold)
    with pytest.raises(ValueError, match="needle is empty"):
        find_span(text, [])


def test_tasks_are_as_long_as_asked_and_hold_their_needle(tasks):
    """Each prompt has its length, the needle in its span after the key, and the key at the end."""
    for task in tasks:
        start, end = task.span
        assert len(task.ids) == task.length
        np.testing.assert_array_equal(task.ids[start:end], task.needle)
        assert (task.ids[0], task.ids[start - 1], task.ids[end], task.ids[-1]) == (0, PLANTED.key, PLANTED.period, 2)
        assert find_span(task.ids, task.needle) == task.span
        assert len(set(task.needle.tolist())) == 6
    assert [task.depth for task in tasks[:4]] == [0, 11, 44, 100]


def test_bad_tasks_are_refused():
    """Prompts too short for the needle, and more words than there are, are refused."""
    rng = np.random.default_rng(0)
    assert len(needle_tasks(rng, [10], [50])[0].ids) == 10
    with pytest.raises(ValueError, match="length=9 does not hold a needle of 6 words: at least 10"):
        needle_tasks(rng, [9], [50])
    with pytest.raises(ValueError, match="m=10 must lie in"):
        needle_tasks(rng, [50], [50], m=10)
    with pytest.raises(ValueError, match="depth=120"):
        needle_tasks(rng, [50], [120])


@pytest.mark.parametrize("vocab_size", [12, 24, 1000])
def test_drawn_vocabularies_give_each_token_one_role(vocab_size):
    """All roles are different tokens of the vocabulary, with six words or more for needles."""
    vocabulary = draw_vocabulary(np.random.default_rng(0), vocab_size, bos=5)
    roles = [*vocabulary[:3], *vocabulary.needle, *vocabulary.haystack]

    assert vocabulary.bos == 5
    assert len(set(roles)) == len(roles)
    assert 0 <= min(roles) <= max(roles) < vocab_size
    assert len(vocabulary.needle) >= 6
    with pytest.raises(ValueError, match="vocab_size=11"):
        draw_vocabulary(np.random.default_rng(0), 11)
    with pytest.raises(ValueError, match="bos="):
        draw_vocabulary(np.random.default_rng(0), vocab_size, bos=vocab_size)


def test_the_planted_truth(model, tasks):
    """The model says the needle; 1.0 scores 1, 1.1 the share of even tokens before it, all others 0."""
    for task in tasks:
        run = run_retrieval(model, task, **STOP)
        even = np.mean(np.concatenate([[PLANTED.key], task.needle[:-1]]) % 2 == 0)

        np.testing.assert_array_equal(run.generated, [*task.needle, PLANTED.period])
        np.testing.assert_allclose(run.score, [[0, 0, 0], [1, even, 0]], rtol=0, atol=1e-15)
        assert run.recall == 1.0
        np.testing.assert_array_equal(run.top_keys[:6, 1, 0], np.arange(*task.span))


def test_one_head_looks_into_the_needle_and_copies_nothing(model, tasks):
    """Head 0.1 gives half its weight to the word that was just said, inside the needle, and scores 0."""
    task = tasks[5]
    rows = [row for _, (_, row) in zip(range(4), greedy_rows(model, task.ids), strict=False)]

    for step in (1, 2, 3):
        assert rows[step][0, 1, task.span[0] + step - 1] == pytest.approx(0.5, abs=1e-6)


def test_known_behaviours_of_the_planted_heads(model):
    """On repeated tokens 1.0 is an induction head, 0.0 and 1.2 look back by one, 0.1 shares between two copies."""
    n = 12
    words = np.random.default_rng(0).permutation(np.arange(1, 24))[:n]
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
    patterns = forward(model, [[0, *words, *words]], names=names).activations
    first, second = (patterns[name][0] for name in names)

    assert head_scores(second, "induction", n)[0] == pytest.approx(1.0, abs=1e-6)
    assert head_scores(first, "previous", n)[0] == pytest.approx(1.0, abs=1e-6)
    assert head_scores(second, "previous", n)[2] == pytest.approx(1.0, abs=1e-6)
    assert head_scores(first, "duplicate", n)[1] == pytest.approx(0.5, abs=1e-6)


def test_the_token_before_stands_out(model):
    """Head 0.0 scores β for each of its eight pairs at the token before, and at least 0.67 β less anywhere else."""
    name = "blocks.0.attn.hook_attn_scores"
    scores = forward(model, [[0, *range(3, 24)]], names=[name]).activations[name][0, 0]
    for t in range(1, len(scores)):
        assert scores[t, t - 1] == pytest.approx(8 * 40, abs=1e-4)
        assert np.delete(scores[t, : t + 1], t - 1).max() < 8 * 40 - 0.67 * 40


def test_detection_averages_single_runs(model, tasks):
    """The mean map is the mean of the single runs' maps, and the two heads above the threshold are found."""
    found = detect_retrieval_heads(model, tasks, **STOP)
    scores = np.stack([run_retrieval(model, task, **STOP).score for task in tasks])

    np.testing.assert_array_equal(found.mean, scores.sum(0) / len(tasks))
    np.testing.assert_array_equal(found.activation, (scores > 0).mean(0))
    assert found.n_used == len(tasks)
    assert found.heads == (RETRIEVAL_HEAD, (1, 1))


@pytest.mark.parametrize("kind", ["uniform", "zero"])
def test_only_the_retrieval_head_is_needed_in_decoding(model, tasks, kind):
    """Masking 1.0 takes the recall from 1 to 0; masking any other single head leaves it."""
    for head in HEADS:
        masks = [mask_heads([head], kind=kind)]
        recalls = [run_retrieval(model, task, interventions=masks, **STOP).recall for task in tasks[::4]]
        assert recalls == [float(head != RETRIEVAL_HEAD)] * len(recalls)


@pytest.mark.parametrize("kind", ["uniform", "zero"])
def test_previous_token_head_is_needed_on_the_prompt(model, tasks, kind):
    """Head 0.0 matters only where the prompt is read."""
    masks = [mask_heads([(0, 0)], kind=kind, phase="all")]

    assert run_retrieval(model, tasks[5], interventions=masks, **STOP).recall == 0.0


def test_masking_no_head_is_no_mask(model, tasks):
    """Without heads the pass is bit-equal to one without interventions, and masking twice is masking once."""
    ids = tasks[0].ids[None]
    plain = forward(model, ids).logits
    once = [mask_heads([(0, 1), (1, 0)], phase="all")]

    np.testing.assert_array_equal(forward(model, ids, interventions=[mask_heads([], phase="all")]).logits, plain)
    np.testing.assert_array_equal(
        forward(model, ids, interventions=once * 2).logits, forward(model, ids, interventions=once).logits
    )


@pytest.mark.parametrize(("kind", "ablation"), [("uniform", "uniform_pattern"), ("zero", "zero")])
def test_masks_on_the_prompt_are_ablations(model, kind, ablation):
    """In the phase "all" a mask does what the hooks of the same ablation do."""
    small = random_transformer(model.config, np.random.default_rng(0))
    ids, heads = [[0, 5, 3, 9, 4]], [(0, 2), (1, 1)]

    masked = forward(small, ids, interventions=[mask_heads(heads, kind=kind, phase="all")]).logits

    np.testing.assert_allclose(masked, forward(small, ids, hooks=ablate_heads(heads, ablation)).logits, atol=1e-12)


def test_masking_curve_separates_best_from_random(model, tasks):
    """The best head alone takes the recall to 0; random heads below the better half leave it at 1."""
    curve = masking_experiment(
        model, tasks[:2], [RETRIEVAL_HEAD, (1, 1), (0, 0), (0, 1), (0, 2), (1, 2)], [0, 1, 3],
        np.random.default_rng(0), n_random=2, **STOP,
    )  # fmt: skip

    np.testing.assert_array_equal(curve.top, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(curve.random, np.ones((3, 2)))


def test_random_heads_avoid_the_best():
    """None of the excluded best heads is drawn, at most half of all are excluded, and no head comes twice."""
    ranked = [(0, head) for head in range(10)]
    for seed in range(20):
        drawn = draw_heads(np.random.default_rng(seed), ranked, 4)
        assert set(drawn) <= set(ranked[5:])
        assert len(set(drawn)) == 4
        assert set(draw_heads(np.random.default_rng(seed), ranked, 4, exclude_top=2)) <= set(ranked[2:])
    with pytest.raises(ValueError, match=r"ks holds 6, expected 0\.\.5"):
        draw_heads(np.random.default_rng(0), ranked, 6)
    with pytest.raises(ValueError, match="exclude_top=-1"):
        draw_heads(np.random.default_rng(0), ranked, 1, exclude_top=-1)


def test_bad_masks_are_refused(model):
    """Unknown kinds and phases, and heads that the model does not have, are refused."""
    with pytest.raises(ValueError, match="kind='mean'"):
        mask_heads([(0, 0)], kind="mean")
    with pytest.raises(ValueError, match="phase='prefill'"):
        mask_heads([(0, 0)], phase="prefill")
    for heads, rule in (([(2, 0)], r"layer 2 must lie in 0\.\.1"), ([(0, 3)], r"head 3 of layer 0"), ([(0, -1)], "-1")):
        with pytest.raises(ValueError, match=rule):
            forward(model, [[0, 1]], interventions=[mask_heads(heads)])


def test_bad_runs_are_refused(model, tasks):
    """No task, spans outside the prompt, empty prompts and negative lengths are refused; no step at all is fine."""
    task = tasks[0]
    with pytest.raises(ValueError, match="tasks is empty"):
        detect_retrieval_heads(model, [])
    with pytest.raises(ValueError, match="tasks is empty"):
        masking_experiment(model, [], HEADS, [1], np.random.default_rng(0))
    with pytest.raises(ValueError, match="threshold=0"):
        detect_retrieval_heads(model, [task], threshold=0.0, **STOP)
    with pytest.raises(ValueError, match="inside the prompt"):
        run_retrieval(model, task._replace(span=(5, 99)))
    with pytest.raises(ValueError, match=r"task\.ids is empty"):
        run_retrieval(model, task._replace(ids=np.array([], int)))
    with pytest.raises(ValueError, match="max_new=-1"):
        run_retrieval(model, task, max_new=-1)
    silent = run_retrieval(model, task, max_new=0)
    assert silent.recall == 0.0
    np.testing.assert_array_equal(silent.score, np.zeros((2, 3)))


def test_a_prompt_of_one_token_works(model):
    """There is nothing to read before the first step."""
    task = NeedleTask(np.array([3]), (0, 1), np.array([3]), 1, 0)

    assert len(run_retrieval(model, task, max_new=3).generated) == 3


def test_runs_are_greedy_generation(model, tasks):
    """The tokens of a run are those of greedy generation."""
    task = tasks[2]
    whole = generate(model, task.ids[None], 7)[0, len(task.ids) :]

    np.testing.assert_array_equal(run_retrieval(model, task, max_new=7).generated, whole)


def test_weights_survive_the_disk(model, tmp_path):
    """Saved and loaded, the model is the same to the last bit."""
    check_weights(*model)
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)

    assert again.config == model.config
    ids = [[0, 2, 5, 4, 1, 13, 2]]
    np.testing.assert_array_equal(forward(again, ids).logits, forward(model, ids).logits)


@pytest.mark.parametrize("options", [{"V": 7}, {"beta": 0.0}, {"theta": -1.0}, {"M": np.inf}])
def test_bad_models_are_refused(options):
    """Parameters that the construction cannot hold are refused by name."""
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        build_retrieval_model(**options)


def test_larger_vocabularies_work():
    """The construction holds for other vocabularies: with forty tokens the needle is found as well."""
    model = build_retrieval_model(40)
    vocabulary = PLANTED._replace(needle=tuple(range(3, 20)), haystack=tuple(range(20, 40)))
    task = needle_tasks(np.random.default_rng(0), [64], [50], vocabulary, m=9)[0]

    assert run_retrieval(model, task, **STOP).recall == 1.0


def test_transformers_says_the_same(model, tasks, tmp_path):
    """Saved as a Llama and loaded by transformers, the model generates the same tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    save_pretrained(model, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.float64)
    for task in tasks[::5]:
        ids = torch.tensor(task.ids[None])
        said = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False)
        np.testing.assert_array_equal(said[0, len(task.ids) :].numpy(), [*task.needle, PLANTED.period])


def test_report_lists_the_heads_of_any_model(model):
    """The report ranks the planted heads, in a drawn vocabulary, and says how many needles were found."""
    rows = report(model, lengths=[48], depths=[0, 50, 100]).rows

    assert [(row["layer"], row["head"]) for row in rows[:2]] == [RETRIEVAL_HEAD, (1, 1)]
    assert rows[0]["score"] == pytest.approx(1.0)
    assert [row["retrieval"] for row in rows] == [True, True, False, False, False, False]
    assert {row["solved"] for row in rows} == {"3 of 3"}
    assert len(report(model, lengths=[48], depths=[50], top=2).rows) == 2


def test_report_on_a_model_that_finds_nothing_and_has_little_room(model):
    """Lengths are cut to the context; where no needle is found the scores are zero and the report says so."""
    config = model.config._replace(n_ctx=40)
    rows = report(random_transformer(config, np.random.default_rng(1)), depths=[50]).rows

    assert rows[0]["solved"] == "0 of 1"
    assert all(row["score"] == 0.0 for row in rows)
    with pytest.raises(ValueError, match="must not be empty"):
        report(model, depths=[])
    with pytest.raises(ValueError, match="top=0"):
        report(model, top=0)


def test_report_draws_into_a_given_figure(model):
    """Drawing fills the figure with a map and a bar for each listed head."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    report(model, lengths=[48], depths=[50], top=4).draw(figure)

    heat, bars = figure.get_axes()[:2]
    assert heat.get_images()[0].get_array().shape == (2, 3)
    assert len(bars.patches) == 4
