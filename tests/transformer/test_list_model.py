"""The planted list model: its parts do what they were planted for, in this package and in transformers."""

import numpy as np
import pytest

from refattn.interpretability.circuit_reuse_list import list_colored_objects, list_ioi
from refattn.transformer.checkpoint import load_pretrained, save_pretrained
from refattn.transformer.forward import forward
from refattn.transformer.planted.ballast import SIZE
from refattn.transformer.planted.list_model import NAMES, build_list_model
from refattn.transformer.weights import check_weights

DECOYS = ((0, 1), (0, 2), (1, 2), (2, 2))


def prompts(seed=0, n=6):
    _, layout = build_list_model()
    return list_ioi(layout, np.random.default_rng(seed), n)


def test_the_weights_are_those_of_the_official_vectors(oracle):
    """Every tensor of the published planted model is built bit by bit, the decoys included."""
    (path,) = (path for path in oracle("12-circuit-reuse") if path.stem == "planted_list_model")
    (_, weights), layout = build_list_model()
    with np.load(path) as stored:
        assert tuple(stored["vocab"]) == layout.words
        np.testing.assert_array_equal(weights.W_E, stored["transformer.wte.weight"])
        np.testing.assert_array_equal(weights.W_pos, stored["transformer.wpe.weight"])
        np.testing.assert_array_equal(weights.W_U.T, stored["lm_head.weight"])
        for layer, block in enumerate(weights.blocks):
            joined = stored[f"transformer.h.{layer}.attn.c_attn.weight"]
            ours = [w.swapaxes(0, 1).reshape(294, 294) for w in (block.W_Q, block.W_K, block.W_V)]
            np.testing.assert_array_equal(np.concatenate(ours, axis=1), joined)
            output = stored[f"transformer.h.{layer}.attn.c_proj.weight"]
            np.testing.assert_array_equal(block.W_O.reshape(294, 294), output)


@pytest.mark.parametrize("r", [1, 3, 64])
def test_the_channel_has_as_many_dimensions_as_the_codes(r):
    """With codes (64, r) the channel is r wide, the shapes fit, and heads 1.0 and 1.1 write into it only."""
    codes = np.random.default_rng(0).standard_normal((64, r))
    model, layout = build_list_model(codes=codes, own_pos=0.0, gamma=6.0)
    check_weights(*model)
    assert layout.chan.stop - layout.chan.start == r
    for head in (0, 1):
        written = np.flatnonzero(np.abs(model.weights.blocks[1].W_O[head]).sum(axis=0))
        assert set(written) <= {*range(layout.chan.start, layout.chan.stop), layout.bal}
    ov = model.weights.blocks[1].W_V[0] @ model.weights.blocks[1].W_O[0]
    assert np.linalg.matrix_rank(ov) == r


def test_the_norms_are_transparent():
    """What a layer norm returns is what it was given, less |u|²/(4 M²) of it, and the mean stays zero."""
    model, layout = build_list_model()
    names = ("blocks.1.hook_resid_pre", "blocks.1.ln1.hook_normalized")
    seen = forward(model, prompts().clean, names=names).activations
    u = seen[names[0]][..., : layout.plus]
    normed = (seen[names[1]] * model.weights.blocks[1].ln1_w)[..., : layout.plus]
    share = np.sum(np.square(u), axis=-1, keepdims=True) / (4 * SIZE**2)
    assert np.all(np.abs(normed - u) <= 1.01 * share * np.abs(u) + 1e-9)
    assert np.max(np.abs(seen[names[0]].sum(axis=-1))) < 1e-9


def test_each_head_looks_where_it_was_told_to():
    """On IOI: 0.0 from S2 to S1, 1.0 from the end to S2, both movers from the end to the indirect object."""
    model, _ = build_list_model()
    found = prompts()
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    patterns = forward(model, found.clean, names=names).activations
    rows = np.arange(6)
    first = found.distractors[:, 0]
    other = 8 - first
    assert np.min(patterns[names[0]][rows, 0, 11, first]) > 0.999
    assert np.min(patterns[names[1]][rows, 0, -1, 11]) > 0.999
    for head in (0, 1):
        assert np.min(patterns[names[2]][rows, head, -1, other]) > 0.999


def test_decoys_reach_no_reader():
    """Nothing that a decoy writes is read by another head or by the unembedding."""
    model, layout = build_list_model()
    blocks, at = model.weights.blocks, [*range(layout.noise.start, layout.noise.stop), layout.bal]
    for layer, head in DECOYS:
        assert set(np.flatnonzero(np.abs(blocks[layer].W_O[head]).sum(axis=0))) <= set(at)
    readers = [getattr(block, name) for block in blocks for name in ("W_Q", "W_K", "W_V")]
    assert not any(np.any(reader[:, at]) for reader in readers)
    assert not np.any(model.weights.W_U[at])


def test_the_other_decoys_change_nothing():
    """Decoys from another generator leave the answers as they are."""
    ids = prompts().clean
    usual, other = build_list_model()[0], build_list_model(rng=np.random.default_rng(9))[0]
    assert np.any(usual.weights.blocks[0].W_Q != other.weights.blocks[0].W_Q)
    said, again = (forward(model, ids).logits[:, -1] for model in (usual, other))
    np.testing.assert_allclose(again, said, rtol=0, atol=1e-5)


def test_transformers_loads_it_and_says_the_same(tmp_path):
    """Saved as a checkpoint, the model gives the same logits in transformers, and loads here bit by bit."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model, layout = build_list_model()
    save_pretrained(model, tmp_path)
    for ids in (prompts().clean, list_colored_objects(layout, np.random.default_rng(1), 3).clean):
        ours = forward(load_pretrained(tmp_path), ids).logits
        np.testing.assert_array_equal(ours, forward(model, ids).logits)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64)
        with torch.no_grad():
            logits = theirs.eval()(torch.from_numpy(ids)).logits.numpy()
        np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-9)


def test_a_laundry_list_is_recalled_at_its_ends_only():
    """With three-dimensional codes on a half circle the first and last of five items are recalled, 2 of 5."""
    codes = np.zeros((64, 3))
    angles = np.pi * np.arange(12) / 11
    codes[4 + 2 * np.arange(12), :2] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    model, layout = build_list_model(codes=codes, gamma=12.0, own_pos=0.0)
    items = ("jug", "puzzle", "leash", "bottle", "ball")
    rows = []
    for target in range(5):
        rest = " , ".join(item for i, item in enumerate(items) if i != target)
        rows.append(layout.encode(f"<bos> she has a {' , '.join(items)} . she already have {rest} . she needs_the"))
    said = np.argmax(forward(model, rows).logits[:, -1], axis=-1)
    right = np.array(layout.encode(items)) == said
    np.testing.assert_array_equal(right, [True, False, False, False, True])


def test_words_become_ids_and_back():
    """Encoding and decoding are inverse, and an unknown word is refused by name."""
    _, layout = build_list_model()
    text = "<bos> then , bob and alice went to the store ."
    assert layout.decode(layout.encode(text)) == text
    assert layout.words[-30:-24] == NAMES
    with pytest.raises(ValueError, match="'zebra' is not one of the 67 words"):
        layout.encode("the zebra")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": np.eye(63)}, r"codes has shape \(63, 63\)"),
        ({"codes": np.zeros((64, 0))}, r"codes has shape \(64, 0\)"),
        ({"codes": np.full((64, 1), np.nan)}, "codes"),
        ({"beta": np.inf}, "beta"),
        ({"half": 64}, "half=64"),
    ],
)
def test_bad_parameters_are_refused(options, message):
    """Codes of another shape, numbers that are not finite and a half outside the positions raise ValueError."""
    with pytest.raises(ValueError, match=message):
        build_list_model(**options)
