"""The transformer against Hugging Face's own, on checkpoints written by either side."""

import warnings

import numpy as np
import pytest
from random_models import CONFIGS, model, tokens

from refattn.transformer.checkpoint import load_pretrained, save_pretrained
from refattn.transformer.forward import forward
from refattn.transformer.generation import generate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def theirs_from(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float64
        )
    return loaded.eval()


def run(theirs, ids):
    with torch.no_grad():
        return theirs(torch.tensor(ids), output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_we_write_they_read(name, tmp_path):
    """A checkpoint of every family that we save has, in Hugging Face, our logits, streams, attention and tokens."""
    drawn, ids = model(name, scale=1.2), tokens((2, 9))
    save_pretrained(drawn, tmp_path)
    theirs = theirs_from(tmp_path)
    out = run(theirs, ids)
    ours = forward(drawn, ids, names="all")

    # Hugging Face rounds RMS norms, softmax and angles to float32 inside a float64 model
    np.testing.assert_allclose(ours.logits, out.logits.numpy(), atol=2e-4, rtol=1e-5)
    for layer in range(drawn.config.n_layers):
        at = f"blocks.{layer}."
        np.testing.assert_allclose(
            ours.activations[f"{at}hook_resid_pre"], out.hidden_states[layer].numpy(), atol=1e-4, rtol=1e-5
        )
        np.testing.assert_allclose(ours.activations[f"{at}attn.hook_pattern"], out.attentions[layer].numpy(), atol=1e-5)
    continued = theirs.generate(torch.tensor(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    np.testing.assert_array_equal(generate(drawn, ids, 8), continued.numpy())


def small(kind):
    """Return a tiny configuration of Hugging Face, by its family."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 61,
        "max_position_embeddings": 64,
    }
    extra = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 61},
        "gpt_neox": {**sizes, "rotary_pct": 0.25},
        "llama": {**sizes, "attention_bias": True, "mlp_bias": True, "rope_theta": 500000.0},
        "mistral": {**sizes, "sliding_window": 5},
        "qwen2": {**sizes, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "qwen3": {**sizes, "head_dim": 16},
    }
    common = {"initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None}
    return transformers.AutoConfig.for_model(kind, **extra[kind], **common)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_what_they_write_we_read(kind, stored, tmp_path):
    """A tiny checkpoint of each family saved by Hugging Face, sharded or not, has the same logits and tokens here."""
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(small(kind)).to(getattr(torch, stored))
    made.save_pretrained(tmp_path, max_shard_size="20KB" if stored == "bfloat16" else "1GB")
    theirs, ids = theirs_from(tmp_path), tokens((2, 11), vocabulary=61)
    out, ours = run(theirs, ids), load_pretrained(tmp_path)

    np.testing.assert_allclose(forward(ours, ids).logits, out.logits.numpy(), atol=2e-4, rtol=1e-5)
    continued = theirs.generate(torch.tensor(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
    np.testing.assert_array_equal(generate(ours, ids, 12), continued.numpy())


def test_gpt2_agrees_to_float64_rounding(tmp_path):
    """Where Hugging Face computes in float64 throughout, as in GPT-2, the logits agree to 1e-10."""
    drawn, ids = model("gpt2_inverse_layer"), tokens((2, 9))
    save_pretrained(drawn, tmp_path)
    out = run(theirs_from(tmp_path), ids)

    np.testing.assert_allclose(forward(drawn, ids).logits, out.logits.numpy(), atol=1e-10)


def test_a_tokenizer_that_disagrees_is_refused(tmp_path):
    """A tokenizer with more tokens than the model has embeddings is refused; one with fewer serves."""
    tokenizers = pytest.importorskip("tokenizers")
    from refattn.transformer.tokens import load_tokenizer

    words = {word: n for n, word in enumerate(["[unk]", "a", "b", "c", "d"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[unk]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))

    assert load_tokenizer(tmp_path, 9).encode("b d a").ids == [2, 4, 1]
    with pytest.raises(ValueError, match="token id 4, the model a vocabulary of 4"):
        load_tokenizer(tmp_path, 4)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path, 9)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere", 9)
