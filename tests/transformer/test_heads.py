"""Single heads: their matrices, scores, ablation, patching, and the weights that are easier to read."""

import numpy as np
import pytest
from random_models import CONFIGS, model, tokens

from refattn.transformer.ablation import ablate_heads, patch_activations
from refattn.transformer.forward import forward, log_softmax
from refattn.transformer.heads import head_scores, ov_matrix, qk_matrix
from refattn.transformer.plot import plot_attention
from refattn.transformer.processing import process_weights

Z = "blocks.1.attn.hook_z"


def close(left, right, atol=1e-12):
    np.testing.assert_allclose(left, right, rtol=0, atol=atol)


def run(hooks, *, name="llama", names=()):
    return forward(model(name), tokens((3, 6)), hooks=hooks, names=names)


def test_matrices_say_what_a_head_moves_and_matches():
    """With shared key and value heads, OV and QK are those of the head's own group."""
    drawn = model("llama")
    block = drawn.weights.blocks[1]
    x = np.random.default_rng(0).standard_normal((2, 16))

    close(x @ ov_matrix(drawn.weights, 1, 3), x @ block.W_V[1] @ block.W_O[3])
    close(x[0] @ qk_matrix(drawn.weights, 1, 2) @ x[1], (x[0] @ block.W_Q[2]) @ (x[1] @ block.W_K[1]))


def test_scores_of_perfect_heads_are_one():
    """A head that only looks back one token, at the copy, or behind the copy scores 1 there and 0 elsewhere."""
    n = 4
    for kind, back in (("previous", 1), ("duplicate", n), ("induction", n - 1)):
        t = np.arange(2 * n + 1)
        perfect = (np.where(t < back, t, t - back)[:, None] == t).astype(float)  # before that, itself
        scores = {other: head_scores(perfect, other, n) for other in ("previous", "duplicate", "induction")}
        assert scores.pop(kind) == 1.0
        assert not any(scores.values())


@pytest.mark.parametrize(("kind", "n", "message"), [("copy", 4, "kind='copy'"), ("previous", 3, "expected 7 tokens")])
def test_scores_refuse_what_they_cannot_measure(kind, n, message):
    """An unknown behaviour, or a pattern of another length, is named."""
    with pytest.raises(ValueError, match=message):
        head_scores(np.eye(9), kind, n)


def test_zeroed_heads_write_nothing():
    """Zero ablation takes the heads' outputs away and nobody else's; none ablated changes nothing."""
    z = run(ablate_heads([(1, 0), (1, 3)]), names=Z).activations[Z]

    assert np.all(z[:, :, [0, 3]] == 0)
    close(z[:, :, [1, 2]], run({}, names=Z).activations[Z][:, :, [1, 2]])
    np.testing.assert_array_equal(run(ablate_heads([])).logits, run({}).logits)


@pytest.mark.parametrize("over_positions", [True, False])
def test_mean_ablation_puts_in_the_mean_of_the_reference(over_positions):
    """The head's output is its mean over the batch of the reference run, and over positions unless told not to."""
    reference = run({}, names=Z).activations
    hooks = ablate_heads([(1, 2)], "mean", reference=reference, over_positions=over_positions)
    z = run(hooks, names=Z).activations[Z]

    mean = reference[Z].mean(axis=(0, 1) if over_positions else 0)[..., 2, :]
    close(z[:, :, 2], np.broadcast_to(mean, z[:, :, 2].shape))


def test_resampling_takes_another_row():
    """Each row gets the head's output of the row named, or of the row before it."""
    reference = run({}, names=Z).activations[Z]
    for rows, source in ((None, [2, 0, 1]), ([1, 1, 0], [1, 1, 0])):
        z = run(ablate_heads([(1, 1)], "resample", rows=rows), names=Z).activations[Z]
        close(z[:, :, 1], reference[source][:, :, 1])


def test_uniform_patterns_are_one_over_what_is_visible():
    """The head attends to each of its visible keys alike; the window is respected."""
    name = "blocks.0.attn.hook_pattern"
    pattern = run(ablate_heads([(0, 1)], "uniform_pattern"), name="mistral", names=name).activations[name][:, 1]

    visible = np.minimum(np.arange(6) + 1, 3)
    close(pattern.max(axis=-1), np.broadcast_to(1 / visible, (3, 6)))
    close((pattern > 0).sum(axis=-1), np.broadcast_to(visible, (3, 6)))


def test_patching_everything_is_the_other_run():
    """Putting in the other run's stream gives its logits; at one position, only from there on."""
    name = "blocks.1.hook_resid_pre"
    drawn, other = model("llama"), tokens((3, 6), seed=8)
    theirs = forward(drawn, other, names=name)
    last = forward(drawn, tokens((3, 6)), hooks=patch_activations(theirs.activations, positions=[5])).logits

    close(run(patch_activations(theirs.activations)).logits, theirs.logits)
    np.testing.assert_array_equal(last[:, :5], run({}).logits[:, :5])
    assert np.abs(last[:, 5] - run({}).logits[:, 5]).max() > 1e-3


def test_patching_a_head_leaves_the_others():
    """Only the named heads at the named positions take the other run's values."""
    theirs = forward(model("llama"), tokens((3, 6), seed=8), names=Z).activations
    z = run(patch_activations(theirs, positions=-1, heads=2), names=Z).activations[Z]
    mine = run({}, names=Z).activations[Z]

    close(z[:, -1, 2], theirs[Z][:, -1, 2])
    mine[:, -1, 2] = z[:, -1, 2]
    close(z, mine)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (lambda: ablate_heads([(0, 0)], "soften"), "kind='soften'"),
        (lambda: ablate_heads([(0, 9)]), r"head=9 must lie in 0\.\.3"),
        (lambda: ablate_heads([(0, 0)], "mean", reference={}), "reference lacks"),
        (lambda: ablate_heads([(0, 0)], "resample", rows=[0]), "rows has shape"),
        (lambda: patch_activations({Z: np.zeros((1, 1))}), "the value for 'blocks.1.attn.hook_z' has shape"),
    ],
)
def test_bad_ablations_are_named(hooks, message):
    """An unknown kind, head, reference or shape is refused, when made or when run."""
    with pytest.raises(ValueError, match=message):
        run(hooks())


@pytest.mark.parametrize("name", CONFIGS)
def test_processed_weights_are_the_same_model(name):
    """Log-probabilities stay, norms become bare, and processing twice is processing once."""
    drawn = model(name)
    once = process_weights(drawn)
    twice = process_weights(once)
    expected = log_softmax(forward(drawn, tokens((2, 6))).logits)

    close(log_softmax(forward(once, tokens((2, 6))).logits), expected, atol=1e-10)
    close(once.weights.b_U, twice.weights.b_U)
    close(once.weights.blocks[1].W_Q, twice.weights.blocks[1].W_Q)
    assert np.all(once.weights.blocks[0].ln1_w == 1)
    assert not np.any(once.weights.blocks[0].b_V)


@pytest.mark.parametrize("step", ["fold_norm", "center_writing", "center_unembed", "fold_value_bias"])
def test_each_step_alone_is_the_same_model(step):
    """Every step of the processing, done alone, keeps log-probabilities."""
    steps = dict.fromkeys(("fold_norm", "center_writing", "center_unembed", "fold_value_bias"), False) | {step: True}
    changed = process_weights(model("gpt2"), **steps)
    logits = [forward(m, tokens((2, 6))).logits for m in (changed, model("gpt2"))]

    close(*map(log_softmax, logits), atol=1e-10)


def test_attention_is_drawn_a_square_a_head(tmp_path):
    """The picture has one axis for each head, with the tokens as labels, and can be saved."""
    name = "blocks.0.attn.hook_pattern"
    pattern = run({}, names=name).activations[name][0]
    figure = plot_attention(pattern, tokens=list("abcdef"), columns=3)
    figure.savefig(tmp_path / "attention.png")

    shown = [axis for axis in figure.axes if axis.get_images()]
    assert len(shown) == 4
    assert [label.get_text() for label in shown[0].get_xticklabels()] == list("abcdef")
    with pytest.raises(ValueError, match="tokens has length 2, expected 6"):
        plot_attention(pattern, tokens=["a", "b"])
    with pytest.raises(ValueError, match="expected \\(H, T, S\\)"):
        plot_attention(np.zeros(3))
