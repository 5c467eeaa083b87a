"""Talking heads against TransformerLens, and the planted models that its vectors hold."""

import json

import numpy as np
import pytest

from refattn.interpretability.talking_heads import MODES, component_scores, composition_scores, head_svd
from refattn.interpretability.talking_heads_channels import channel_basis, set_channel
from refattn.interpretability.talking_heads_report import stacked_weights
from refattn.transformer.forward import forward
from refattn.transformer.planted.list_model import build_list_model

SHEET = "04-talking-heads"


def vectors(oracle, pattern):
    found = [path for path in oracle(SHEET) if path.match(pattern)]
    if not found:
        pytest.skip(f"no vectors {pattern}")
    return found


def test_scores_of_random_weights(oracle):
    """Scores of heads and components are those of ``all_composition_scores`` and of its rank-one factors."""
    for path in vectors(oracle, "case_0[0-5].npz"):
        with np.load(path) as case:
            weights = [case[f"W_{name}"] for name in "QKVO"]
            sizes = head_svd(weights[2], weights[3]).s
            np.testing.assert_allclose(sizes, case["singular_values"], rtol=0, atol=1e-12, err_msg=path.stem)
            turned = head_svd(weights[0], weights[1].swapaxes(-1, -2)).s
            np.testing.assert_allclose(turned, case["singular_values_QK"], rtol=0, atol=1e-12, err_msg=path.stem)
            for mode in MODES:
                by_head = composition_scores(*weights, mode=mode)
                by_component = component_scores(*weights, mode=mode)
                np.testing.assert_allclose(by_head, case[f"score_{mode}"], rtol=0, atol=1e-12)
                np.testing.assert_allclose(by_component, case[f"component_{mode}"], rtol=0, atol=1e-12)


def test_scores_of_the_planted_list_model(oracle):
    """The wiring of the list model, read from its weights, is what TransformerLens reads."""
    model, _ = build_list_model()
    for path in vectors(oracle, "case_06*.npz"):
        with np.load(path) as case:
            for mode in MODES:
                found = composition_scores(*stacked_weights(model, folded=False), mode=mode)
                np.testing.assert_allclose(found, case[f"score_{mode}"], rtol=0, atol=1e-12, err_msg=mode)


def laundry_model(oracle):
    """The model of experiment H4, its layout, and the file that it must agree with."""
    (path,) = vectors(oracle, "planted_laundry_model.npz")
    codes = np.zeros((64, 3))
    angle = np.pi * np.arange(12) / 11
    codes[4:28:2, 0], codes[4:28:2, 1] = np.cos(angle), np.sin(angle)
    return *build_list_model(codes=codes, gamma=12.0, own_pos=0.0), path


def test_the_planted_laundry_model_is_the_one_built_here(oracle):
    """Every matrix of the published model is built here, to the last bit of its codes."""
    model, layout, path = laundry_model(oracle)
    with np.load(path) as stored:
        assert tuple(stored["vocab"]) == layout.words
        assert (layout.chan.start, layout.chan.stop) == tuple(stored["chan_slice"])
        assert json.loads(str(stored["config_json"]))["n_layer"] == model.config.n_layers
        for layer, block in enumerate(model.weights.blocks):
            ours = [w.swapaxes(0, 1).reshape(294, 294) for w in (block.W_Q, block.W_K, block.W_V)]
            joined = stored[f"transformer.h.{layer}.attn.c_attn.weight"]
            np.testing.assert_allclose(np.concatenate(ours, axis=1), joined, rtol=0, atol=1e-13)
            output = stored[f"transformer.h.{layer}.attn.c_proj.weight"]
            np.testing.assert_allclose(block.W_O.reshape(294, 294), output, rtol=0, atol=1e-13)


def test_official_runs_of_the_laundry_model(oracle):
    """What the model answers, plain, with the channel set and with its bias edited, is what TransformerLens says."""
    paths = [path for path in oracle(SHEET) if path.match("case_07*.npz")]
    if not paths:
        pytest.skip("no runs of the laundry model")
    model, layout, _ = laundry_model(oracle)
    axes = np.eye(model.config.d_model)[layout.chan]  # (3, d)
    point = "blocks.2.hook_resid_pre"
    with np.load(paths[0]) as case:
        slots = case["slot_codes"]
        scores = composition_scores(*stacked_weights(model, folded=False), mode="Q")
        np.testing.assert_allclose(scores, case["score_Q"], rtol=0, atol=1e-12)
        for n in range(2, 13):
            ids, name = case[f"n{n:02}_tokens"], f"n{n:02}"
            plain = forward(model, ids, names=point)
            channel = plain.activations[point][:, -1, layout.chan]
            np.testing.assert_array_equal(plain.logits[:, -1].argmax(-1), case[f"{name}_baseline_argmax"])
            np.testing.assert_allclose(channel, case[f"{name}_channel"], rtol=0, atol=1e-6)
            edits = {"channel_set": -slots[:n], "bias_edit": channel - slots[:n].sum(0) / (n - 1)}
            for edit, alpha in edits.items():
                hook = set_channel(channel_basis(axes), alpha, bal_index=layout.bal)
                said = forward(model, ids, hooks={point: hook}).logits[:, -1].argmax(-1)
                np.testing.assert_array_equal(said, case[f"{name}_{edit}_argmax"])
