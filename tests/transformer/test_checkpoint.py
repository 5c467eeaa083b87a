"""Checkpoints are read as they were written, and refused where they are broken."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from random_models import CONFIGS, model

from refattn.transformer.checkpoint import load_pretrained, save_pretrained
from refattn.transformer.config import parse_config
from refattn.transformer.processing import process_weights
from refattn.transformer.safetensors import read_safetensors, write_safetensors

DTYPES = st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_])


@given(st.dictionaries(st.text(min_size=1), DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_side=0)))))
def test_written_tensors_come_back_bit_for_bit(tmp_path_factory, tensors):
    """Reading a file gives the names, dtypes, shapes and bits that were written."""
    path = tmp_path_factory.mktemp("safetensors") / "x.safetensors"
    tensors = {name: array for name, array in tensors.items() if name != "__metadata__"}
    write_safetensors(path, tensors, {"format": "pt"})
    back = read_safetensors(path)

    assert list(back) == list(tensors)
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_loads_to_itself(name, tmp_path):
    """Configuration and every weight, bit for bit, survive a round trip in every family."""
    drawn = model(name)
    save_pretrained(drawn, tmp_path)
    loaded = load_pretrained(tmp_path)

    assert loaded.config == drawn.config
    assert_same(loaded.weights, drawn.weights)


def assert_same(left, right):
    if isinstance(left, tuple):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_array_equal(left, right)


def test_stored_dtypes_are_kept_or_widened_as_asked(tmp_path):
    """``dtype=None`` keeps float16 mapped to the file; a dtype converts."""
    save_pretrained(model("llama"), tmp_path, dtype=np.float16)

    kept = load_pretrained(tmp_path, dtype=None).weights
    assert kept.W_E.dtype == np.float16
    assert isinstance(kept.W_E, np.memmap)
    assert load_pretrained(tmp_path, dtype=np.float32).weights.W_E.dtype == np.float32


def test_bfloat16_is_widened_exactly(tmp_path):
    """Sixteen bits become the upper half of a float32."""
    values = np.array([1.0, -2.5, 3.0e38, 1e-40], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    header = json.dumps({"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bits.tobytes())

    np.testing.assert_array_equal(read_safetensors(path)["x"].view(np.uint32), bits.astype(np.uint32) << 16)


def broken(tmp_path, header, body=b"", length=None):
    path = tmp_path / "x.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        (b"{", b"", "not valid JSON"),
        (b"[]", b"", "no mapping"),
        (b'{"a": {}, "a": {}}', b"", "stands twice"),
        ({"x": 3}, b"", "x is no tensor"),
        ({"x": entry()}, bytes(4), "the file holds 4"),
        ({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12), "y begins at byte 4, expected 8"),
        ({"x": entry(), "y": entry(offsets=(12, 20))}, bytes(20), "y begins at byte 12, expected 8"),
        ({"x": entry()}, bytes(9), "the file holds 9"),
        ({"x": entry(shape=(3,))}, bytes(8), r"x has 8 bytes, its shape \[3\] takes 12"),
        ({"x": entry(shape=(-2,))}, bytes(8), "no valid shape"),
        ({"x": entry(shape=(True, 2))}, bytes(8), "no valid shape"),
        ({"x": entry(dtype="F8_E4M3")}, bytes(8), "x has dtype F8_E4M3"),
    ],
)
def test_a_damaged_file_is_refused(header, body, message, tmp_path):
    """A file that is cut off or contradicts itself is named with what is wrong."""
    with pytest.raises(ValueError, match=message):
        read_safetensors(broken(tmp_path, header, body))


def test_a_header_beyond_the_file_is_refused(tmp_path):
    """A length that the file does not have is refused before anything is read."""
    with pytest.raises(ValueError, match="is too long"):
        read_safetensors(broken(tmp_path, b"{}", length=2**62))
    (tmp_path / "short.safetensors").write_bytes(b"abc")
    with pytest.raises(ValueError, match="is too long"):
        read_safetensors(tmp_path / "short.safetensors")


def test_a_dtype_without_a_name_is_not_written(tmp_path):
    """Complex numbers have no place in the format."""
    with pytest.raises(ValueError, match="x has dtype complex128"):
        write_safetensors(tmp_path / "x.safetensors", {"x": np.zeros(2, complex)})


def edited(tmp_path, change, name="llama"):
    """Save a model, change its tensors, and return the folder."""
    save_pretrained(model(name), tmp_path)
    tensors = {key: value.copy() for key, value in read_safetensors(tmp_path / "model.safetensors").items()}
    change(tensors)
    write_safetensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    return tmp_path


def spoil(name, value):
    def change(tensors):
        tensors[name] = value(tensors[name])

    return change


def with_nan(array):
    array[0, 0] = np.nan
    return array


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(UP), "lacks tensor 'layers.1.mlp.up_proj.weight'"),
        (lambda tensors: tensors.pop("lm_head.weight"), "lacks tensor 'lm_head.weight'"),
        (lambda tensors: tensors.update(extra=np.zeros(2)), "tensors unknown to llama: extra"),
        (spoil(UP, lambda array: array.T), r"has shape \(16, 20\), expected \(20, 16\)"),
        (spoil(UP, with_nan), "'layers.1.mlp.up_proj.weight' holds values that are not finite"),
        (spoil(UP, lambda array: array.astype(np.int32)), "has dtype int32"),
        (lambda tensors: tensors.update({UP[6:]: tensors[UP]}), "with and without prefix"),
    ],
)
def test_a_wrong_tensor_is_named(change, message, tmp_path):
    """A tensor that is missing, superfluous, misshapen or not finite is refused by name."""
    with pytest.raises(ValueError, match=message):
        load_pretrained(edited(tmp_path, change))


def shard(folder, places):
    tensors = read_safetensors(folder / "model.safetensors")
    for file in {places(name) for name in tensors}:
        write_safetensors(folder / file, {n: np.array(a) for n, a in tensors.items() if places(n) == file})
    index = {"weight_map": {name: places(name) for name in tensors}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_load_as_one(tmp_path):
    """Tensors spread over files, with an index, give the model they came from."""
    save_pretrained(model("qwen3"), tmp_path)
    shard(tmp_path, lambda name: f"part-{len(name) % 3}.safetensors")

    assert_same(load_pretrained(tmp_path).weights, model("qwen3").weights)


def test_a_wrong_index_is_refused(tmp_path):
    """An index that leaves the folder, or names what is not there, is refused."""
    save_pretrained(model("qwen3"), tmp_path)
    index = shard(tmp_path, lambda name: f"part-{len(name) % 3}.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    for place, message in (("../x.safetensors", "outside the folder"), ("none.safetensors", "is not there")):
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], "model.norm.weight": place}}))
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path)
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], "ghost": "part-1.safetensors"}}))
    with pytest.raises(ValueError, match="its files lack: ghost"):
        load_pretrained(tmp_path)


def test_a_folder_without_its_files_is_refused(tmp_path):
    """A missing configuration, broken JSON and missing tensors are named."""
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["llama"]))
    with pytest.raises(ValueError, match="has neither"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "bert"}, "model_type='bert' is not one of"),
        ("llama", {"hidden_act": "mish"}, "activation='mish' is not one of"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "unsupported rope_type 'yarn'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ("llama", {"num_key_value_heads": 3}, "n_heads=4 must be a multiple of n_kv_heads=3"),
        ("llama", {"vocab_size": None}, "vocab_size=None must be an integer"),
        ("llama", {"intermediate_size": 0}, "d_mlp=0 must be at least 1"),
        ("llama", {"head_dim": 5}, "must be even"),
        ("gpt2", {"n_head": 3}, "d_model=16 must be a multiple of n_heads=3"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0 must be at least 1"),
    ],
)
def test_a_wrong_configuration_is_refused(name, changes, message):
    """What the configuration asks for and we do not have, or what cannot be, is named."""
    with pytest.raises(ValueError, match=message):
        parse_config({**CONFIGS[name], **changes})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"window": (4, 4)}, "llama cannot express window"),
        ("gpt2", {"attn_scale": (0.1, 0.1)}, "gpt2 cannot express attn_scale"),
        ("llama", {"qk_norm": True}, "q_norm has shape None"),
    ],
)
def test_what_a_family_cannot_express_is_not_saved(name, change, message, tmp_path):
    """A model is not written as something that it is not."""
    drawn = model(name)
    with pytest.raises(ValueError, match=message):
        save_pretrained(drawn._replace(config=drawn.config._replace(**change)), tmp_path)


def test_biases_without_a_place_are_not_lost(tmp_path):
    """A bias that the family has no tensor for is refused, and so are processed weights."""
    drawn = model("mistral")
    block = drawn.weights.blocks[0]
    changed = drawn.weights._replace(blocks=(block._replace(b_O=block.b_O + 1), drawn.weights.blocks[1]))
    with pytest.raises(ValueError, match="mistral has no place for a bias"):
        save_pretrained(drawn._replace(weights=changed), tmp_path)
    with pytest.raises(ValueError, match="b_U has no place"):
        save_pretrained(process_weights(drawn), tmp_path)
