"""A checkpoint saved by Hugging Face is quantised, loads there again, and generates."""

import json
import warnings

import numpy as np
import pytest

from refattn.cli import main
from refattn.transformer.checkpoint import load_pretrained
from refattn.transformer.generation import generate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}
KINDS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 61},
    "gpt_neox": {**SIZES, "rotary_pct": 0.25},
    "llama": {**SIZES, "attention_bias": True, "mlp_bias": True},
    "mistral": {**SIZES, "sliding_window": 5},
    "qwen2": {**SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {**SIZES, "head_dim": 16},
}


def loaded(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("kind", KINDS)
def test_their_checkpoint_is_quantised_and_generates_on_both_sides(kind, tmp_path, capsys):
    """Hugging Face opens what the command wrote, in float32, and continues a prompt with the same tokens as we do."""
    torch.manual_seed(0)
    common = {"initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None}
    config = transformers.AutoConfig.for_model(kind, **KINDS[kind], **common)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "theirs")
    text = tmp_path / "ids.txt"
    text.write_text(" ".join(map(str, np.random.default_rng(0).integers(0, 61, 400))))
    out = tmp_path / "out"
    capsys.readouterr()
    command = ["quantise", tmp_path / "theirs", "--bits", 3, "--ids", text, "--length", 16, "--out", out, "--json"]

    assert main(list(map(str, command))) == 0
    assert len(json.loads(capsys.readouterr().out)["losses"]) == 2 * (6 if kind.startswith("gpt") else 7)
    theirs = loaded(out)
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.float32}
    ids = np.array([[3, 1, 4, 1, 5]])
    continued = theirs.generate(torch.tensor(ids), max_new_tokens=8, do_sample=False, pad_token_id=0).numpy()
    np.testing.assert_array_equal(generate(load_pretrained(out), ids, 8), continued)
