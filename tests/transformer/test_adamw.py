"""AdamW, by itself and against PyTorch's."""

import numpy as np
import pytest
from random_models import CONFIGS, model

from refattn.transformer.adamw import adamw_step, begin_adamw, decay_mask, pack, unpack

START = np.random.default_rng(0).standard_normal(12)


@pytest.mark.parametrize("name", CONFIGS)
def test_packing_loses_nothing(name):
    """A model packed and unpacked is itself, weight for weight, and its weights are views of the vector."""
    any_model = model(name)
    vector = pack(any_model.weights, tied=any_model.config.tied)

    again = unpack(vector, any_model)

    np.testing.assert_array_equal(pack(again.weights, tied=False), pack(any_model.weights, tied=False))
    assert np.shares_memory(again.weights.blocks[-1].W_out, vector)


def test_matrices_and_embeddings_decay_and_nothing_else():
    """The mask holds for what has two axes in a checkpoint: not for biases, not for norms."""
    any_model = model("gpt2")
    weights = unpack(decay_mask(any_model), any_model).weights

    assert all(np.all(leaf) for leaf in (weights.W_E, weights.W_pos, weights.blocks[0].W_Q, weights.blocks[1].W_out))
    assert not any(np.any(leaf) for leaf in (weights.lnf_w, weights.blocks[0].b_Q, weights.blocks[1].ln2_b))


def test_steps_are_those_of_pytorch():
    """Twenty steps with decay and without clipping leave the numbers that PyTorch's AdamW leaves."""
    torch = pytest.importorskip("torch")
    theirs = torch.tensor(START, requires_grad=True)
    optimiser = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3)
    ours, state = START, begin_adamw(START)
    for step in range(20):
        gradient = np.cos(np.arange(12) * step)
        theirs.grad = torch.tensor(gradient)
        optimiser.step()
        ours, state = adamw_step(ours, gradient, state, learning_rate=0.1, weight_decay=0.3, clip=None)

    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12)


def test_a_long_gradient_is_shortened_and_a_short_one_left():
    """With a limit, a gradient of norm 10 acts as the one of norm 1 in its direction, and one of norm 1/2 as it is."""
    direction = START / np.linalg.norm(START)
    state = begin_adamw(START)

    def means(length, clip):
        return adamw_step(START, length * direction, state, learning_rate=0.1, clip=clip)[1].mean

    np.testing.assert_allclose(means(10.0, 1.0), means(1.0, None), rtol=1e-14)
    np.testing.assert_array_equal(means(0.5, 1.0), means(0.5, None))


def test_what_is_given_is_not_written_to():
    """Parameters, gradient and state stay as they were."""
    parameters, gradient, state = START.copy(), START.copy(), begin_adamw(START)

    adamw_step(parameters, gradient, state, learning_rate=0.1)

    for array, before in ((parameters, START), (gradient, START), (state.mean, 0), (state.square, 0)):
        np.testing.assert_array_equal(array, np.broadcast_to(before, array.shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\) must lie in \[0, 1\)"),
        ({"eps": 0.0}, "eps=0.0 must be positive"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
        ({"clip": 0.0}, "clip=0.0 must be positive"),
    ],
)
def test_bad_options_are_named(options, message):
    """An option outside its range is refused with its value."""
    with pytest.raises(ValueError, match=message):
        adamw_step(START, START, begin_adamw(START), **({"learning_rate": 0.1} | options))


def test_vectors_of_other_lengths_are_refused():
    """A gradient must be as long as the parameters, and a vector as long as the model."""
    with pytest.raises(ValueError, match=r"gradient has shape \(11,\), expected \(12,\)"):
        adamw_step(START, START[1:], begin_adamw(START), learning_rate=0.1)
    any_model = model("gpt2")
    with pytest.raises(ValueError, match=r"vector has \d+ numbers, the model \d+"):
        unpack(np.append(pack(any_model.weights, tied=True), 0.0), any_model)
