"""Quantised checkpoints on disk: they load again, say what they are, and are not quantised twice."""

import json

import numpy as np
import pytest
from random_models import model, tokens

from refattn.efficiency.quantise import quantise
from refattn.efficiency.quantise_checkpoint import (
    CODES,
    MARK,
    calibration_sequences,
    read_ids,
    refuse_filled,
    refuse_quantised,
    save_quantised,
)
from refattn.efficiency.quantise_matrices import as_rows
from refattn.transformer.checkpoint import load_pretrained, save_pretrained
from refattn.transformer.forward import forward
from refattn.transformer.safetensors import read_safetensors


@pytest.fixture(scope="module", params=["gpt2", "neox", "llama", "qwen3"])
def written(request, tmp_path_factory):
    """Return the source folder, the quantised model and the folder it was written to."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    save_pretrained(model(request.param), source)
    for name in ("tokenizer.json", "merges.txt", "README.md"):
        (source / name).write_text("{}", encoding="utf-8")
    content = json.loads((source / "config.json").read_text()) | {"eos_token_id": 7}
    (source / "config.json").write_text(json.dumps(content), encoding="utf-8")
    quantised = quantise(load_pretrained(source), tokens((3, 8)), bits=3)
    files = save_quantised(quantised, source, out, {"bits": 3, "method": "turboboa"})
    return source, quantised, out, files


def test_what_is_written_loads_again(written):
    """Weights come back to float32, so logits are those of the quantised model."""
    _, quantised, out, _ = written
    ids = tokens((2, 8))
    after = forward(load_pretrained(out), ids).logits

    np.testing.assert_allclose(after, forward(quantised.model, ids).logits, atol=1e-4, rtol=1e-4)


def test_configuration_is_kept_and_marked(written):
    """What the original says of itself stays, dtype and mark are new; companions are copied, other files are not."""
    source, _, out, files = written
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, out))

    assert after.pop(MARK) == {"bits": 3, "method": "turboboa"}
    assert after == before | {"dtype": "float32", "torch_dtype": "float32"}
    assert files == sorted(["config.json", "merges.txt", "model.safetensors", CODES, "tokenizer.json"])


def test_codes_rebuild_the_weights(written):
    """From integers, scales and zero points of the file comes what the checkpoint holds."""
    _, _, out, _ = written
    stored, weights = read_safetensors(out / CODES), load_pretrained(out).weights
    names = [name.removesuffix(".codes") for name in stored if name.endswith(".codes")]

    assert len(stored) == 3 * len(names)
    for name in names:
        codes, scale, zero = (stored[f"{name}.{part}"] for part in ("codes", "scale", "zero"))
        assert codes.dtype == np.uint8
        _, layer, field = name.split(".")
        rows = as_rows(field, getattr(weights.blocks[int(layer)], field))
        np.testing.assert_allclose(scale * (codes.astype(int) - zero), rows, rtol=1e-6, atol=1e-12)


def test_a_quantised_checkpoint_is_refused(written, tmp_path):
    """Our own mark and Hugging Face's are both read; the original is let through."""
    source, _, out, _ = written
    refuse_quantised(source)
    with pytest.raises(ValueError, match=r"is already quantised: its config.json has refattn_quantisation="):
        refuse_quantised(out)
    content = json.loads((source / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"has quantization_config=\{'quant_method': 'gptq'\}"):
        refuse_quantised(tmp_path)


def test_a_folder_that_holds_something_is_refused(written, tmp_path):
    """Nothing is overwritten: neither a folder with files nor a file."""
    source, quantised, out, _ = written
    with pytest.raises(ValueError, match="is not empty"):
        save_quantised(quantised, source, out, {"bits": 3})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder"):
        refuse_filled(tmp_path / "file")
    refuse_filled(tmp_path / "new")


def test_sequences_are_pieces_of_the_text():
    """Each is a stretch of the text that begins at a multiple of its length; none comes twice; the seed chooses."""
    text = np.arange(47)
    drawn = calibration_sequences(text, count=4, length=5, seed=3)

    assert drawn.shape == (4, 5)
    assert (np.diff(drawn, axis=1) == 1).all()
    assert set(drawn[:, 0]) <= set(range(0, 45, 5))
    assert (np.diff(drawn[:, 0]) > 0).all()
    assert not np.array_equal(drawn, calibration_sequences(text, count=4, length=5, seed=4))
    np.testing.assert_array_equal(calibration_sequences(text, count=99, length=5), text[:45].reshape(9, 5))


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {"count": 1, "length": 4}, "calibration is empty: it has 0 tokens"),
        ([1, 2, 3], {"count": 1, "length": 4}, "calibration has 3 tokens, expected at least one sequence of length=4"),
        ([1, 2], {"count": 0, "length": 1}, "sequences=0 must be at least 1"),
        ([1, 2], {"count": 1, "length": 0}, "length=0 must be at least 1"),
    ],
)
def test_too_little_text_is_named(ids, options, message):
    """An empty text and one shorter than a sequence are refused."""
    with pytest.raises(ValueError, match=message):
        calibration_sequences(ids, **options)


def test_ids_are_read_from_text(tmp_path):
    """White space and commas separate; what is no id is shown."""
    path = tmp_path / "ids.txt"
    path.write_text("1 2,3\n44\t5")
    np.testing.assert_array_equal(read_ids(path), [1, 2, 3, 44, 5])
    path.write_text("1 -2")
    with pytest.raises(ValueError, match="holds '-2', expected token ids"):
        read_ids(path)
    path.write_bytes(b"1 \xff")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        read_ids(path)
    with pytest.raises(ValueError, match="there is no such file"):
        read_ids(tmp_path / "none.txt")
