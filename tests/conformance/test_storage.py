"""Files from strangers: everything a vector or replay file can do wrong is refused, and what is right survives."""

import contextlib
import io
import struct
import zipfile
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toy.contracts.centre import CONTRACT

from refattn.conformance import golden, storage
from refattn.conformance.contract import Case, Entry
from refattn.conformance.precision import round_to
from refattn.conformance.storage import StorageError, read_archive, read_json, write_archive


@pytest.fixture
def frozen(tmp_path):
    """A folder with the toy mechanism's vectors."""
    golden.freeze([CONTRACT], tmp_path)
    return tmp_path


def rewrite_manifest(folder, change):
    path = folder / "centre.json"
    path.write_text(change(path.read_text()))


def npz(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array, **keywords):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **keywords)
    return buffer.getvalue()


def header(text, version=(1, 0)):
    packed = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + packed + text.encode("latin1")


def test_frozen_vectors_come_back_and_verify(frozen):
    """What was frozen is read back equal to the reference's results."""
    vectors = golden.load(frozen, CONTRACT)

    assert len(vectors) > 3
    assert golden.verify({"centre": CONTRACT}, frozen) == {"centre": []}


def test_freezing_twice_gives_the_same_bytes(frozen, tmp_path_factory):
    """Equal vectors give equal files."""
    other = tmp_path_factory.mktemp("again")
    golden.freeze([CONTRACT], other)

    assert (other / "centre.npz").read_bytes() == (frozen / "centre.npz").read_bytes()
    assert (other / "centre.json").read_bytes() == (frozen / "centre.json").read_bytes()


@pytest.mark.parametrize("position", [0, 40, 300, -30, -1])
def test_one_flipped_bit_is_found(frozen, position):
    """A single bit flipped anywhere in the archive fails the verification."""
    path = frozen / "centre.npz"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))

    (problem,) = golden.verify({"centre": CONTRACT}, frozen)["centre"]

    assert "sha256" in problem


def test_a_reference_that_changed_is_found(frozen):
    """A vector whose numbers the reference no longer gives is named."""
    members = {k: np.array(v) for k, v in read_archive(frozen / "centre.npz").items()}
    name = next(name for name in members if "/expected/" in name and np.any(members[name]))
    members[name] *= 1.0 + 1e-6
    digest = write_archive(frozen / "centre.npz", members)
    rewrite_manifest(frozen, lambda text: replace_hash(text, digest))

    (problem,) = golden.verify({"centre": CONTRACT}, frozen)["centre"]

    assert problem == f"{name.split('/')[0]}: the reference gives another out"


def replace_hash(text, digest):
    before, _, after = text.partition('"sha256": "')
    return f'{before}"sha256": "{digest}{after[64:]}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: text.replace('"mechanism"', '"mechanism": "centre",\n "mechanism"', 1), "given twice"),
        (lambda text: text.replace('"gain": 3.0', '"gain": NaN', 1), "literal NaN"),
        (lambda text: text.replace('"gain": 3.0', '"gain": Infinity', 1), "literal Infinity"),
        (lambda text: text.replace("refattn-golden/1", "refattn-golden/9"), "schema is not"),
        (lambda text: text.replace("centre.npz", "../centre.npz"), "is not centre.npz"),
        (lambda text: text.replace("centre.npz", "other.npz"), "is not centre.npz"),
        (lambda text: text.replace('"outputs"', '"out_puts"', 1), "incomplete or unknown"),
        (lambda text: text.replace('"entry": "centre"', '"entry": "sphere"', 1), "incomplete or unknown"),
        (lambda _: "[]", "schema is not"),
        (lambda _: "[" * 100_000, "not JSON"),
    ],
)
def test_a_hostile_manifest_is_refused(frozen, change, message):
    """A damaged, ambiguous or lying manifest raises a StorageError that says what is wrong."""
    rewrite_manifest(frozen, change)

    with pytest.raises(StorageError, match=message):
        golden.load(frozen, CONTRACT)


def test_a_missing_archive_is_refused(frozen):
    """A manifest without its archive raises a StorageError."""
    (frozen / "centre.npz").unlink()

    with pytest.raises(StorageError, match="missing"):
        golden.load(frozen, CONTRACT)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_refused(tmp_path, share):
    """An archive cut off anywhere raises a StorageError."""
    path = tmp_path / "a.npz"
    write_archive(path, {"x": np.arange(1000.0)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    with pytest.raises(StorageError):
        read_archive(path)


@pytest.mark.parametrize(
    "name", ["../x.npy", "/etc/x.npy", "a/../../x.npy", "x.txt", ".x.npy", "a//x.npy", "c:\\x.npy"]
)
def test_member_names_that_leave_the_archive_are_refused(tmp_path, name):
    """Path traversal, absolute paths and other kinds of file are refused by name."""
    path = npz(tmp_path / "a.npz", {name: npy(np.zeros(2))})

    with pytest.raises(StorageError, match="not allowed"):
        read_archive(path)


def test_pickled_objects_are_refused(tmp_path):
    """An object array is never unpickled."""
    content = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)

    with pytest.raises(StorageError, match="dtype object is not allowed"):
        read_archive(npz(tmp_path / "a.npz", {"x.npy": content}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000000,), }"), "needs"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"), "not allowed"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }" + " " * 60_000), "bad header"),
        (
            header("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", (2, 0)) + b"\0" * 8,
            "needs 16 bytes, not 8",
        ),
        (header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }") + b"\0" * 8, "not allowed"),
        (header("__import__('os').abort()"), "bad header"),
        (b"\x93NUMPY\x09\x00", "not known"),
        (b"nothing", "bad header"),
    ],
)
def test_a_hostile_array_header_is_refused(tmp_path, content, message):
    """A header that is huge, lies about the size, or is no header at all raises a StorageError."""
    with pytest.raises(StorageError, match=message):
        read_archive(npz(tmp_path / "a.npz", {"x.npy": content}))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    """A small file that claims a large content is refused before it is unpacked."""
    monkeypatch.setattr(storage, "MAX_BYTES", 10_000)
    path = tmp_path / "a.npz"
    write_archive(path, {"x": np.zeros(100_000)})

    with pytest.raises(StorageError, match="unpacks to"):
        read_archive(path)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    """The number of members is limited."""
    monkeypatch.setattr(storage, "MAX_MEMBERS", 2)

    with pytest.raises(StorageError, match="3 members"):
        read_archive(npz(tmp_path / "a.npz", {f"{i}.npy": npy(np.zeros(1)) for i in range(3)}))


def test_a_member_given_twice_is_refused(tmp_path):
    """Two members of the same name are ambiguous and refused."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(np.zeros(1)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", npy(np.zeros(1)))

    with pytest.raises(StorageError, match="same name"):
        read_archive(path)


@given(st.binary(max_size=200))
def test_random_bytes_never_do_more_than_raise(tmp_path_factory, content):
    """Any bytes at all either load or raise a StorageError."""
    path = tmp_path_factory.mktemp("fuzz") / "a.npz"
    path.write_bytes(content)

    with pytest.raises(StorageError):
        read_archive(path)


@given(st.text(max_size=60))
def test_random_text_parses_or_raises_a_storage_error(text):
    """Any text either is JSON or raises a StorageError."""
    with contextlib.suppress(StorageError):
        read_json(text)


class Pair(NamedTuple):
    """Stands for a weights structure."""

    left: np.ndarray
    right: np.ndarray | None
    count: int


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=st.floats(-1e4, 1e4)))
def test_a_case_survives_the_way_to_disk_and_back(dtype, x):
    """Arrays of every dtype, structures, missing fields and options come back equal."""
    x = round_to(x, dtype)
    case = Case(
        "f",
        {"x": x, "w": Pair(x, None, 3), "n": np.arange(3), "none": ()},
        {"align": "top_left", "window": [1, None]},
        dtype,
    )
    entry = Entry("f", lambda x: x, ("x",), {"one": lambda *_: case}, ("normal",), lambda _: st.nothing())

    described, members = storage.case_to_json(case, "p")
    back = storage.case_from_json(described, members, entry)

    assert back.options == case.options
    assert isinstance(back.arrays["w"], Pair)
    assert back.arrays["w"].right is None
    assert back.arrays["w"].count == 3
    assert back.arrays["none"] == ()
    np.testing.assert_array_equal(back.arrays["x"], x)
    np.testing.assert_array_equal(back.arrays["n"], np.arange(3))


def test_manifests_obey_the_published_schema(frozen):
    """Every manifest validates against the JSON Schema that ships with the vectors."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = read_json((golden.golden_folder() / "schema.json").read_text())

    jsonschema.validate(read_json((frozen / "centre.json").read_text()), schema)
