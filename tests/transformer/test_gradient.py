"""The hand-written backward pass, against the forward pass, differences and automatic differentiation."""

import json

import numpy as np
import pytest
from random_models import CONFIGS, model, tokens

from refattn.transformer.adamw import pack, unpack
from refattn.transformer.checkpoint import load_pretrained
from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward, log_softmax
from refattn.transformer.gradient import language_model_loss, loss_and_gradient
from refattn.transformer.safetensors import write_safetensors
from refattn.transformer.weights import initial_transformer

IDS, TARGETS = tokens((2, 7)), tokens((2, 7), seed=3)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_that_of_the_forward_pass(name):
    """The pass that keeps what the gradient needs gives the mean of −log softmax of the logits of `forward`."""
    any_model = model(name)
    chances = log_softmax(forward(any_model, IDS).logits)

    expected = -np.mean(np.take_along_axis(chances, TARGETS[..., None], axis=-1))

    assert abs(language_model_loss(any_model, IDS, TARGETS) - expected) < 1e-13


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_is_what_differences_say(name):
    """Along a random direction through all weights the loss changes as the gradient says, for every family."""
    any_model = model(name, scale=1.0)
    tied = any_model.config.tied
    vector = pack(any_model.weights, tied=tied)
    direction = np.random.default_rng(0).standard_normal(vector.size)
    h = 1e-5

    _, gradient = loss_and_gradient(any_model, IDS, TARGETS)
    ahead, behind = (language_model_loss(unpack(vector + t * direction, any_model), IDS, TARGETS) for t in (h, -h))

    assert (ahead - behind) / (2 * h) == pytest.approx(pack(gradient, tied=tied) @ direction, rel=1e-6)


def test_the_gradient_of_every_weight_is_what_differences_say():
    """One number of every array is moved by itself, so that no array's share can hide behind another's."""
    any_model = model("qwen3", scale=1.0)
    vector = pack(any_model.weights, tied=True)
    gradient = pack(loss_and_gradient(any_model, IDS, TARGETS)[1], tied=True)
    places = np.cumsum([0, *(leaf.size for leaf in _arrays(any_model))])[:-1]
    h = 1e-5
    for place in places:
        moved = vector.copy()
        moved[place] += h
        ahead = language_model_loss(unpack(moved, any_model), IDS, TARGETS)
        moved[place] -= 2 * h
        behind = language_model_loss(unpack(moved, any_model), IDS, TARGETS)

        assert (ahead - behind) / (2 * h) == pytest.approx(gradient[place], rel=1e-5, abs=1e-9)


def _arrays(any_model):
    """Yield the arrays in the order of the packed vector: the stem's, then block after block."""
    w = any_model.weights
    stem = [leaf for name, leaf in zip(w._fields, w, strict=True) if name not in ("blocks", "W_U")]
    return [leaf for leaf in (*stem, *(leaf for block in w.blocks for leaf in block)) if leaf is not None]


def test_a_uniform_model_loses_the_logarithm_of_the_vocabulary():
    """With embeddings of zero every token is as likely as any other: the loss is ln V."""
    start = initial_transformer(parse_config(CONFIGS["gpt2"]), np.random.default_rng(0), dtype=np.float64)
    zero = np.zeros_like(start.weights.W_E)
    uniform = start._replace(weights=start.weights._replace(W_E=zero, W_U=zero.T))

    assert language_model_loss(uniform, IDS, TARGETS) == pytest.approx(np.log(29), rel=1e-15)


def test_single_precision_stays_single():
    """Weights in float32 give gradients in float32, near those in float64."""
    single = loss_and_gradient(model("gpt2", dtype=np.float32), IDS, TARGETS)[1]
    double = loss_and_gradient(model("gpt2"), IDS, TARGETS)[1]
    vector = pack(single, tied=True)

    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, pack(double, tied=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "targets", "message"),
    [
        (IDS, TARGETS[:, 1:], r"targets has shape \(2, 6\), expected \(2, 7\)"),
        (IDS[:0], TARGETS[:0], r"ids has shape \(0, 7\): it must hold at least one token"),
        (IDS, TARGETS + 29, r"targets: token id \d+ outside vocabulary of 29"),
        (tokens((1, 25)), tokens((1, 25)), "sequence of 25 exceeds 24 learned positions"),
    ],
)
def test_bad_tokens_are_named(ids, targets, message):
    """What cannot be read is refused with its name."""
    with pytest.raises(ValueError, match=message):
        loss_and_gradient(model("gpt2"), ids, targets)


def test_hugging_face_and_automatic_differentiation_agree(oracle, tmp_path):
    """Loss, logits and gradients of Hugging Face's GPT-2 come out to 1e-12."""
    cases = [case for case in map(np.load, oracle("06-multilevel-training")) if case["op"] == "forward_backward"]
    for number, case in enumerate(cases):
        any_model = _gpt2(case, "src::", tmp_path / f"{number}-weights")
        expected = _gpt2(case, "grad::", tmp_path / f"{number}-gradients")
        ids, targets = case["tokens"][:, :-1], case["tokens"][:, 1:]

        loss, gradient = loss_and_gradient(any_model, ids, targets)

        assert abs(loss - case["loss"]) < 1e-12
        np.testing.assert_allclose(forward(any_model, ids).logits, case["logits"], rtol=0, atol=1e-12)
        agreed = pack(gradient, tied=True), pack(expected.weights, tied=True)
        np.testing.assert_allclose(*agreed, rtol=0, atol=1e-12)


def _gpt2(case, prefix, folder):
    """Return the model whose tensors stand under a prefix, by way of a checkpoint."""
    tensors = {name.removeprefix(prefix): case[name] for name in case.files if name.startswith(prefix)}
    width, context = tensors["transformer.wte.weight"].shape, len(tensors["transformer.wpe.weight"])
    config = {
        "model_type": "gpt2",
        "n_embd": width[1],
        "vocab_size": width[0],
        "n_positions": context,
        "n_head": int(case["n_head"]),
        "n_layer": sum(name.endswith("ln_1.weight") for name in tensors),
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return load_pretrained(folder)
