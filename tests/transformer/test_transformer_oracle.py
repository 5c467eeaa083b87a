"""The transformer against Hugging Face's and TransformerLens's own runs."""

import numpy as np
import pytest

from refattn.transformer.checkpoint import load_pretrained
from refattn.transformer.forward import forward, log_softmax
from refattn.transformer.generation import generate
from refattn.transformer.hooks import hook_names
from refattn.transformer.processing import process_weights


@pytest.fixture
def goldens(oracle_tree):
    """Return folder and vectors of every checkpoint in one of the parts of the oracle."""

    def found(pattern):
        paths = oracle_tree("00-transformer", f"{pattern}/golden.npz")
        return [(path.parent, np.load(path)) for path in paths]

    return found


def families(goldens):
    return [pair for pair in goldens("*/case_*") if "f64_logits" in pair[1]]


def close(left, right, *, atol=1e-10, rtol=0.0):
    np.testing.assert_allclose(left, right, atol=atol, rtol=rtol)


def stacked(result, name, layers):
    return np.stack([result.activations[f"blocks.{layer}.{name}"] for layer in range(layers)])


def test_every_family_agrees_in_every_activation(goldens):
    """Logits, streams, attention, outputs and caches of all families are those of transformers in float64."""
    for folder, golden in families(goldens):
        model = load_pretrained(folder)
        result = forward(model, golden["input_ids"], names="all")
        layers, config = model.config.n_layers, model.config
        close(result.logits, golden["f64_logits"])
        close(stacked(result, "hook_resid_pre", layers), golden["f64_hidden_states"][:-1])
        close(stacked(result, "attn.hook_pattern", layers), golden["f64_attentions"])
        z = stacked(result, "attn.hook_z", layers)
        close(z.reshape(golden["f64_z_flat"].shape), golden["f64_z_flat"])
        close(stacked(result, "hook_attn_out", layers), golden["f64_attn_out"])
        close(stacked(result, "hook_mlp_out", layers), golden["f64_mlp_out"])
        close(stacked(result, "mlp.hook_post", layers), golden["f64_mlp_post"])
        before = "hook_resid_pre" if config.parallel_residual else "hook_resid_mid"
        close(stacked(result, before, layers), golden["f64_ln2_in"])
        close(result.activations[f"blocks.{layers - 1}.hook_resid_post"], golden["f64_resid_final"])
        final = result.activations["ln_final.hook_normalized"] * model.weights.lnf_w
        close(final + (0 if model.weights.lnf_b is None else model.weights.lnf_b), golden["f64_hidden_states"][-1])


def test_caches_agree(goldens):
    """Keys after rotation and values are those of transformers, of which sliding layers keep only the last."""
    for folder, golden in families(goldens):
        cache = forward(load_pretrained(folder), golden["input_ids"]).kv_cache
        for layer, (keys, values) in enumerate(cache):
            for kind, ours in (("key", keys), ("value", values)):
                whole = f"f64_past_{kind}"
                theirs = golden[whole][layer] if whole in golden else golden[f"{whole}_{layer}"]
                kept = theirs.shape[2]
                close(ours[:, :, ours.shape[2] - kept :], theirs)


def test_one_token_at_a_time_agrees(goldens):
    """A prefill of half the tokens and then single steps give the logits of transformers."""
    for folder, golden in families(goldens):
        model, ids = load_pretrained(folder), golden["input_ids"]
        result = forward(model, ids[:, : max(1, ids.shape[1] // 2)])
        logits = [result.logits]
        for t in range(logits[0].shape[1], ids.shape[1]):
            result = forward(model, ids[:, t : t + 1], cache=result.kv_cache)
            logits.append(result.logits)
        close(np.concatenate(logits, axis=1), golden["f64_incremental_logits"])


def test_greedy_continuations_agree(goldens):
    """Greedy generation gives the tokens of transformers."""
    for folder, golden in families(goldens):
        ids, expected = golden["input_ids"], golden["f64_greedy_ids"]
        model = load_pretrained(folder)
        np.testing.assert_array_equal(generate(model, ids, expected.shape[1])[:, ids.shape[1] :], expected)


def test_float32_agrees_to_its_own_rounding(goldens):
    """In float32 the logits are those of transformers to 1e-4, or 1e-5 of their size."""
    for folder, golden in families(goldens):
        result = forward(load_pretrained(folder, dtype=np.float32), golden["input_ids"])
        assert result.logits.dtype == np.float32
        close(result.logits, golden["f32_logits"], atol=1e-4, rtol=1e-5)


def test_every_layout_of_files_agrees(goldens):
    """Bare names with mask buffers, shards, half precision and old configurations load to the same logits."""
    for folder, golden in goldens("layouts/*"):
        if not (folder / "config.json").exists():
            continue
        model = load_pretrained(folder, dtype=np.float32)
        (expected,) = [golden[name] for name in golden if name.startswith("f32_logits")]
        close(forward(model, golden["input_ids"]).logits, expected, atol=1e-4, rtol=1e-5)


def test_left_padding_agrees(goldens):
    """With the mask and positions given, rows padded on the left have the logits of transformers."""
    for folder, golden in goldens("layouts/llama_left_padding"):
        model = load_pretrained(folder.parents[1] / "llama" / "case_00_mha", dtype=np.float32)
        mask = golden["attention_mask"].astype(bool)
        result = forward(model, golden["input_ids"], key_mask=mask, positions=golden["position_ids"])
        close(result.logits[mask], golden["f32_logits"][mask], atol=1e-4, rtol=1e-5)


def test_hook_points_agree_with_transformerlens(oracle_tree):
    """Every hook point has the name, shape and value of TransformerLens, before and after weight processing."""
    for path in oracle_tree("00-transformer", "transformerlens/*.npz"):
        golden = np.load(path)
        model = load_pretrained(path.parents[1] / "gpt2" / "case_00_base")
        model = process_weights(model) if "processed" in path.name else model
        known = hook_names(model.config)
        result = forward(model, golden["input_ids"], names=known)
        shared = [name for name in known if name in golden]
        assert len(shared) >= len(known) - 1  # `logits` is our own name
        for name in shared:
            close(result.activations[name], golden[name], atol=1e-10)
        close(log_softmax(result.logits), log_softmax(golden["logits"]))


def test_processed_weights_agree_with_transformerlens(oracle_tree):
    """Folding and centring give the weights of TransformerLens."""
    for path in oracle_tree("00-transformer", "transformerlens/*processed.npz"):
        golden = np.load(path)
        weights = process_weights(load_pretrained(path.parents[1] / "gpt2" / "case_00_base")).weights
        close(weights.W_E, golden["W.embed.W_E"])
        close(weights.W_U, golden["W.unembed.W_U"])
        for layer, block in enumerate(weights.blocks):
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
                close(getattr(block, name), golden[f"W.blocks.{layer}.attn.{name}"])
            for name in ("W_in", "b_in", "W_out", "b_out"):
                close(getattr(block, name), golden[f"W.blocks.{layer}.mlp.{name}"])
