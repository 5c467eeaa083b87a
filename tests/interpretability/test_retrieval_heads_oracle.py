"""Retrieval heads against the official code, its published score maps, and the planted checkpoint."""

from itertools import combinations

import numpy as np
import pytest

from refattn.interpretability.retrieval_heads import rank_heads, retrieval_hits, score_correlation, select_heads
from refattn.interpretability.retrieval_heads_detection import run_retrieval
from refattn.interpretability.retrieval_heads_tasks import NeedleTask, find_span, insert_needle
from refattn.transformer.checkpoint import load_pretrained
from refattn.transformer.planted.retrieval_model import build_retrieval_model

SHEET = "17-retrieval-heads"

# instances, share of scores of 0, heads from 0.1 and from 0.5 on, heads that are always active, the best and its score
PUBLISHED = {
    "llama-2-7b-80k": (586, 70.2, 33, 6, 12, (16, 19), 0.943),
    "llama-2-13b-64k": (367, 73.2, 33, 6, 8, (13, 23), 0.905),
    "Mistral-7B-v0.2-hf": (362, 65.0, 43, 5, 31, (18, 0), 0.943),
    "Mixtral-8x7B-v0.1": (390, 57.6, 63, 7, 40, (12, 7), 0.945),
    "Yi-6B-200K": (567, 49.4, 53, 7, 0, (17, 2), 0.778),
    "Qwen1.5-14B": (390, 53.4, 61, 10, 0, (12, 2), 1.003),
    "Qwen1.5-14B-Chat": (221, 71.1, 68, 1, 0, (14, 12), 0.525),
}


def vectors(oracle, kind):
    found = [path for path in oracle(SHEET) if path.stem.endswith(kind)]
    if not found:
        pytest.skip(f"no vectors of kind {kind}")
    return found


def test_official_scores(oracle):
    """Scores equal those of ``retrieval_calculate``, to the rounding of its sum."""
    for path in vectors(oracle, "score"):
        with np.load(path) as case:
            span = int(case["needle_start"]), int(case["needle_end"])
            prompt, generated, topk = case["prompt_ids"], case["generated_ids"], int(case["topk"])
            score = retrieval_hits(case["attention_last_row"], generated, prompt, span, topk=topk)
            np.testing.assert_allclose(score, case["retrieval_score"], rtol=0, atol=1e-14, err_msg=path.stem)


def test_official_insertions_and_spans(oracle):
    """Needles are hidden and found where the official code hides and finds them."""
    for path in vectors(oracle, "insert_and_find"):
        with np.load(path) as case:
            for number in sorted({name[:2] for name in case.files if name[:2].isdigit()}):
                context, needle, depth, length, buffer = (
                    case[f"{number}_{name}"]
                    for name in ("context", "needle", "depth_percent", "context_length", "buffer")
                )
                options = {"length": int(length), "depth": int(depth), "buffer": int(buffer)}
                hidden = insert_needle(context, needle, period_ids=case["period_tokens"], **options)
                np.testing.assert_array_equal(hidden.ids, case[f"{number}_result"], err_msg=number)
                assert find_span(hidden.ids, needle) == tuple(case[f"{number}_span"]), number


def published(oracle):
    """The published maps by model, as arrays."""
    maps = {}
    for path in oracle(SHEET):
        if path.stem.startswith("published_"):
            with np.load(path) as case:
                maps[path.stem.removeprefix("published_")] = {name: case[name] for name in case.files}
    if not maps:
        pytest.skip("no published score maps")
    return maps


def test_published_maps_are_sparse(oracle):
    """The published maps have the counts that the page states: few retrieval heads, most heads never copy."""
    for name, scores in published(oracle).items():
        mean, always = scores["mean_score"], scores["activation_frequency"] == 1
        best = rank_heads(mean)[0]
        zero = round(100 * float(np.mean(mean == 0)), 1)
        strong = len(select_heads(mean, threshold=0.5))
        found = (int(scores["n_instances"]), zero, len(select_heads(mean)), strong, int(always.sum()), best)
        assert found == PUBLISHED[name][:-1], name
        assert mean[best] == pytest.approx(PUBLISHED[name][-1], abs=5e-4)


def test_published_maps_are_alike_within_families_only(oracle):
    """Models of one family correlate at 0.893 and 0.964, those of different families not at all."""
    maps = {name: scores["mean_score"] for name, scores in sorted(published(oracle).items())}
    families = {("Mistral-7B-v0.2-hf", "Mixtral-8x7B-v0.1"): 0.964, ("Qwen1.5-14B", "Qwen1.5-14B-Chat"): 0.893}
    for (a, left), (b, right) in combinations(maps.items(), 2):
        if left.shape == right.shape:
            found = score_correlation(left, right)
            if (a, b) in families:
                assert found == pytest.approx(families[a, b], abs=5e-4)
            else:
                assert -0.0185 <= found <= 0.0025, (a, b)


def checkpoint(oracle):
    folder = oracle(SHEET)[0].parent / "planted_model"
    if not (folder / "config.json").is_file():
        pytest.skip("no planted checkpoint")
    return folder


def test_planted_checkpoint_is_the_model_built_here(oracle):
    """Every weight of the checkpoint, which is stored in float32, is that of the construction."""
    theirs, ours = load_pretrained(checkpoint(oracle)), build_retrieval_model()

    assert theirs.config == ours.config
    for left, right in zip(theirs.weights, ours.weights, strict=True):
        for a, b in zip(*(w if isinstance(w, tuple) else (w,) for w in (left, right)), strict=True):
            for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
                assert (x is None) == (y is None)
                np.testing.assert_allclose(0 if x is None else x, 0 if y is None else y, rtol=1e-7, atol=1e-7)


def test_official_runs_of_the_planted_model(oracle):
    """Generated tokens and scores equal those of the official decoding loop, run by transformers."""
    folder = checkpoint(oracle)
    paths = oracle(f"{SHEET}/planted_model")
    for model in (load_pretrained(folder), build_retrieval_model()):
        with np.load(paths[0]) as case:
            for i, prompt in enumerate(case["prompts"]):
                span = tuple(case["spans"][i].tolist())
                ids = prompt[prompt >= 0]
                task = NeedleTask(ids, span, ids[slice(*span)], int(case["lengths"][i]), int(case["depths"][i]))
                run = run_retrieval(model, task, stop_ids=(1,))
                said = case["generated"][i]
                np.testing.assert_array_equal(run.generated, said[said >= 0])
                np.testing.assert_allclose(run.score, case["retrieval_score"][i], rtol=0, atol=1e-12)
