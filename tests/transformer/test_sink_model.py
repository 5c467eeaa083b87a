"""The model with planted sinks: saved, read again, and run by Hugging Face."""

import warnings

import numpy as np
import pytest

from refattn.interpretability.secondary_sinks import attention_patterns, hidden_states
from refattn.transformer.checkpoint import load_pretrained, save_pretrained
from refattn.transformer.planted.sink_model import (
    build_sink_model,
    planted_attention,
    planted_cosine,
    planted_reach,
    planted_sizes,
)

IDS = [0, 5, 6, 1, 7, 8, 2, 9, 4, 3, 5, 6]


def test_it_can_be_saved_and_read_again(tmp_path):
    """What is read back is the model that was saved, number by number."""
    model = build_sink_model(n_layers=16)
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)

    assert again.config == model.config
    np.testing.assert_array_equal(hidden_states(again, IDS), hidden_states(model, IDS))


def test_hugging_face_runs_it(tmp_path):
    """Hugging Face reads the checkpoint and returns our hidden states and attention weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = build_sink_model(n_layers=16)
    save_pretrained(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, attn_implementation="eager", dtype=torch.float64
        ).eval()
    with torch.no_grad():
        out = theirs(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)

    # it rounds norms and the softmax to float32 inside a float64 model
    states = np.concatenate([state.numpy() for state in out.hidden_states[1:]])
    np.testing.assert_allclose(hidden_states(model, IDS), states, rtol=1e-5, atol=1e-5)
    patterns = np.concatenate([pattern.numpy() for pattern in out.attentions])
    np.testing.assert_allclose(attention_patterns(model, IDS), patterns, atol=1e-5)


def test_attention_has_its_closed_form():
    """Attention weights are the closed form of sizes and drift, and the stream holds those sizes."""
    options = {"triggers": ((1, 4, 12.0), (3, 6, 20.0)), "delta": 0.7}
    model = build_sink_model(n_layers=10, kappa=3.0, vocab=11, **options)
    patterns = attention_patterns(model, IDS[:8])
    states = hidden_states(model, IDS[:8])
    for layer in range(1, 10):
        expected = planted_attention(IDS[:8], layer, kappa=3.0, vocab=11, **options)
        np.testing.assert_allclose(patterns[layer, 0], expected, rtol=0, atol=1e-12)
        sizes = planted_sizes(IDS[:8], layer, triggers=options["triggers"])
        np.testing.assert_allclose(states[layer - 1, :, 0], sizes, rtol=1e-9)


def test_the_reach_is_where_the_cosine_meets_the_threshold():
    """At the reach the cosine is the threshold; a small sink has none; far above, it is a multiple of the size."""
    c = np.array([1.0, 4.0, 16.0, 22.0])
    n = planted_reach(c, 400.0, 0.8)
    np.testing.assert_allclose(planted_cosine(c, 400.0, n)[n > 0], 0.8, rtol=1e-12)
    assert planted_reach(1.0, 400.0) == 0
    np.testing.assert_allclose(planted_reach(16.0, 1e5), np.sqrt(0.19 / 0.81 * 16.0**2 - 2.0), rtol=1e-3)
