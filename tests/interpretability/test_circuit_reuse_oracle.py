"""Path patching, ablation and repair against vectors from the official code and TransformerLens."""

import json
import re

import numpy as np
import pytest

from refattn.interpretability.circuit_reuse import path_patch, path_patch_gpt2
from refattn.interpretability.circuit_reuse_detectors import ablation_effects, force_attention
from refattn.interpretability.circuit_reuse_list import COLOR_POSITIONS
from refattn.interpretability.circuit_reuse_prompts import COLORS, OBJECTS, swap_first_names
from refattn.transformer.checkpoint import load_pretrained
from refattn.transformer.forward import forward
from refattn.transformer.planted.list_model import BOUND, build_list_model

SHEET = "12-circuit-reuse"


def load(path):
    with np.load(path) as stored:
        return dict(stored)


def checkpoint(folder, name):
    return build_list_model()[0] if name == "planted_list_model" else load_pretrained(folder / name)


def test_effects_are_those_of_the_official_code(oracle):
    """Every published matrix of effects is met to 1e-9, by the model and by its weights alone."""
    tried = 0
    for path in oracle(SHEET):
        case = load(path)
        if "effect" not in case:
            continue
        names, heads = case["receiver_names"].tolist(), case["receiver_heads"].tolist()
        receivers = [(int(n), h) if h >= 0 else (n, None) for n, h in zip(names, heads, strict=True)]
        model = checkpoint(path.parent, str(case["checkpoint"]))
        prompts = (case["clean_tokens"], case["corrupt_tokens"], case["answer_tokens"])
        options = {
            "component": str(case["component"]),
            "position": int(case["position"]),
            "freeze_mlps": bool(case["freeze_mlps"]),
            "truncate": bool(case["truncate_to_max_layer"]),
        }
        effect = path_patch(model, *prompts, receivers, **options)
        np.testing.assert_allclose(effect, case["effect"], rtol=0, atol=1e-9, err_msg=path.stem)
        if "random" in str(case["checkpoint"]):
            alone = path_patch_gpt2(model.weights, *prompts, receivers=receivers, **options)
            np.testing.assert_array_equal(alone, effect)
        tried += 1
    assert tried >= 11


def test_behaviour_on_ioi(oracle):
    """Logits, attention from the end, and logit differences under ablation are those of TransformerLens."""
    found = [path for path in oracle(SHEET) if "ioi_behaviour" in path.stem]
    if not found:
        pytest.skip("the vectors of IOI behaviour are not here")
    case, model = load(found[0]), build_list_model()[0]
    ids = case["tokens"]
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    result = forward(model, ids, names=names)
    patterns = [result.activations[name] for name in names]
    np.testing.assert_allclose(result.logits[:, -1], case["final_logits"], rtol=0, atol=1e-9)
    ends = np.stack([pattern[:, :, -1] for pattern in patterns], axis=1)
    np.testing.assert_allclose(ends, case["end_pattern"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(patterns[0][:, 0], case["duplicate_head_pattern"], rtol=0, atol=1e-9)
    left = ablation_effects(model, ids, np.stack([case["io"], case["s"]], axis=1))
    np.testing.assert_allclose(left, case["zero_ablation_mean_logit_diff"], rtol=0, atol=1e-9)


def test_repair_of_colored_objects(oracle):
    """Logits before and after head 1.0 is made to look at the wrong colours are those of TransformerLens."""
    (path,) = (path for path in oracle(SHEET) if "repair" in path.stem)
    case = load(path)
    model, layout = build_list_model()
    ids, wrong = case["tokens"], case["wrong_color_positions"]
    np.testing.assert_allclose(forward(model, ids).logits[:, -1], case["baseline_logits"], rtol=0, atol=1e-9)
    hooks = force_attention(model, ids, [(1, 0)], -1, wrong.tolist())
    repaired = forward(model, ids, hooks=hooks).logits[:, -1]
    np.testing.assert_allclose(repaired, case["repaired_logits"], rtol=0, atol=1e-9)
    asked = np.array([layout.words[i] in BOUND for i in ids[:, 57]])
    np.testing.assert_array_equal(asked, case["query_is_bound"])
    elsewhere = ids[:, COLOR_POSITIONS] != case["answer"][:, None]
    np.testing.assert_array_equal(np.array(COLOR_POSITIONS)[np.nonzero(elsewhere)[1]].reshape(-1, 2), wrong)


def test_the_templates_pair_up(oracle):
    """Exchanging the names of the first clause takes each published BABA template to its ABBA partner."""
    folder = oracle(SHEET)[0].parent
    lists = json.loads((folder / "ioi_templates.json").read_text(encoding="utf-8"))
    assert [swap_first_names(template) for template in lists["baba_templates"]] == lists["abba_templates"]


def test_the_published_prompts_use_our_words(oracle):
    """Published Colored Objects prompts are made of the same surfaces, openings, objects, colours and marks."""
    folder = oracle(SHEET)[0].parent
    pairs = json.loads((folder / "colored_objects_sample.json").read_text(encoding="utf-8"))
    thing, colour = "|".join(OBJECTS), "|".join(COLORS)
    item = rf"(an [aeiou]|a [^aeiou])\w* ({thing})"
    scene = rf"Q: On the (table|desk|floor), (there is|you see|I see) {item}, {item}, and {item}\. "
    question = rf"What color is the ({thing})\?\nA:"
    for pair in pairs:
        for text in (pair["clean"], pair["corrupt"]):
            assert re.fullmatch(rf"{scene}{question} ({colour.title()})\n{scene}{question}", text)
