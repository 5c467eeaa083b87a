"""Cases and results on disk: plain ``.npy`` members in a zip archive, described by strict JSON.

Nothing here unpickles, follows a path that a file names, or trusts a size that a file claims. Reading is in four
steps: (1) the archive's hash, when the manifest gives one; (2) its directory: count, names, sizes; (3) each member's
header: shape and dtype against the limits and against the bytes that are there; (4) the bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case

if TYPE_CHECKING:
    from pathlib import Path

    from refattn.conformance.contract import Entry

__all__ = [
    "StorageError",
    "case_from_json",
    "case_to_json",
    "decode",
    "encode",
    "read_archive",
    "read_json",
    "write_archive",
    "write_json",
]

MAX_MEMBERS = 20_000
MAX_BYTES = 256 * 2**20
MAX_HEADER = 4096
MAX_AXES = 16
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\.npy")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same content


class StorageError(ValueError):
    """A file is not what it says, or asks for more than it may."""


def encode(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return a float64 array of ``dtype`` values in that dtype; bfloat16 as its bits in uint16."""
    if array.dtype.kind != "f":
        return array
    if dtype == "bfloat16":
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return array.astype(dtype)


def decode(array: np.ndarray, dtype: str) -> np.ndarray:
    """Undo `encode`."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def write_archive(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Write arrays as a compressed ``.npz`` and return its sha256; the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(
                buffer, np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape), allow_pickle=False
            )
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), buffer.getvalue(), zipfile.ZIP_DEFLATED)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_archive(path: Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Read every array of an archive.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str, optional
        What its bytes must hash to.

    Returns
    -------
    dict of str to ndarray
        Read-only arrays by name.

    Raises
    ------
    StorageError
        If the file is damaged, too large, holds objects, or names a member outside itself.
    """
    if path.stat().st_size > MAX_BYTES:
        raise StorageError(f"{path.name}: {path.stat().st_size} bytes, more than {MAX_BYTES}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise StorageError(f"{path.name}: sha256 is {found}, the manifest says {sha256}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_directory(path.name, archive.infolist())
            return {info.filename.removesuffix(".npy"): _member(archive, info) for info in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise StorageError(f"{path.name}: not a readable archive ({error})") from error
    except Exception as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path.name}: damaged ({type(error).__name__}: {error})") from error


def _check_directory(name: str, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise StorageError(f"{name}: {len(members)} members, more than {MAX_MEMBERS}")
    names = [member.filename for member in members]
    for member in names:
        if not _MEMBER.fullmatch(member) or ".." in member:
            raise StorageError(f"{name}: member name {member!r} is not allowed")
    if len(set(names)) < len(names):
        raise StorageError(f"{name}: two members have the same name")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise StorageError(f"{name}: unpacks to {total} bytes, more than {MAX_BYTES}")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        data = stream.read(info.file_size + 1)  # a directory that lies about the size is caught here
    if len(data) != info.file_size:
        raise StorageError(f"{info.filename}: {len(data)} bytes, the directory says {info.file_size}")
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise StorageError(f"{info.filename}: npy version {version} is not known")
        shape, fortran, dtype = read_header[version](buffer, max_header_size=MAX_HEADER)
    except ValueError as error:
        raise StorageError(f"{info.filename}: bad header ({error})") from error
    return _body(info.filename, buffer, shape, fortran=fortran, dtype=dtype)


def _body(name: str, buffer: io.BytesIO, shape: tuple[int, ...], *, fortran: bool, dtype: np.dtype) -> np.ndarray:
    if dtype.hasobject or dtype.kind not in "fiub" or dtype.fields:
        raise StorageError(f"{name}: dtype {dtype} is not allowed")
    if len(shape) > MAX_AXES or any(side < 0 for side in shape):
        raise StorageError(f"{name}: shape {shape} is not allowed")
    data = buffer.read()
    if math.prod(shape) * dtype.itemsize != len(data):
        raise StorageError(
            f"{name}: shape {shape} of {dtype} needs {math.prod(shape) * dtype.itemsize} bytes, not {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, keys in order, one trailing newline."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(text: str) -> Any:
    """Parse strict JSON.

    Raises
    ------
    StorageError
        On malformed text, a key given twice, or the literals NaN and Infinity.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise StorageError(f"key {key!r} is given twice")
        return dict(pairs)

    def refuse(literal: str) -> float:
        raise StorageError(f"the literal {literal} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise StorageError(f"not JSON ({error})") from error


def _leaves(prefix: str, tree: Any) -> list[tuple[str, Any]]:
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        pairs = zip(tree._fields, tree, strict=True)
    elif isinstance(tree, (tuple, list)) and tree:
        pairs = zip(map(str, range(len(tree))), tree, strict=True)
    else:
        return [(prefix, tree)]
    return [leaf for name, branch in pairs for leaf in _leaves(f"{prefix}/{name}", branch)]


def case_to_json(case: Case, prefix: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Split a case into JSON values and the archive members ``prefix/…`` that hold its arrays."""
    leaves = [leaf for name, tree in case.arrays.items() for leaf in _leaves(name, tree)]
    arrays = {path: value for path, value in leaves if isinstance(value, np.ndarray)}
    described = {
        "entry": case.entry,
        "dtype": case.dtype,
        "label": case.label,
        "options": dict(case.options),
        "arrays": {
            path: {
                "member": f"{prefix}/{path}",
                "shape": list(a.shape),
                "dtype": case.dtype if a.dtype.kind == "f" else str(a.dtype),
            }
            for path, a in arrays.items()
        },
        "scalars": {path: value for path, value in leaves if not isinstance(value, np.ndarray)},
    }
    return described, {f"{prefix}/{path}": encode(array, case.dtype) for path, array in arrays.items()}


def case_from_json(described: dict[str, Any], members: dict[str, np.ndarray], entry: Entry) -> Case:
    """Put a case together again; NamedTuples take their types from the entry's own scenarios."""
    # a sequence of nothing has no leaves of its own, so it is one
    leaves: dict[str, Any] = {path: () if value == [] else value for path, value in described["scalars"].items()}
    for path, about in described["arrays"].items():
        if about["member"] not in members:
            raise StorageError(f"member {about['member']!r} is missing")
        array = decode(members[about["member"]], about["dtype"])
        if list(array.shape) != about["shape"]:
            raise StorageError(
                f"member {about['member']!r} has shape {array.shape}, the manifest says {about['shape']}"
            )
        leaves[path] = array
    tops = dict.fromkeys(path.partition("/")[0] for path in leaves)
    arrays = {name: _assemble(name, leaves, _structures(entry)) for name in tops}
    return Case(described["entry"], arrays, described["options"], described["dtype"], described["label"])


def _assemble(path: str, leaves: dict[str, Any], structures: dict[str, type]) -> Any:
    if path in leaves:
        return leaves[path]
    names = list(dict.fromkeys(p[len(path) + 1 :].partition("/")[0] for p in leaves if p.startswith(f"{path}/")))
    branches = {name: _assemble(f"{path}/{name}", leaves, structures) for name in names}
    kind = structures.get(path, tuple)
    if not hasattr(kind, "_fields"):
        return kind(branches[name] for name in sorted(names, key=int))
    unknown = set(branches) - set(kind._fields)
    if unknown:
        raise StorageError(f"{path} has no field {', '.join(sorted(unknown))}")
    return kind(**{field: branches.get(field) for field in kind._fields})


@cache
def _structures(entry: Entry) -> dict[str, type]:
    """Return the types of the structures in an entry's cases, by path."""
    found: dict[str, type] = {}
    for case in entry.plain_cases("float64", 0):
        for name, tree in case.arrays.items():
            _note_structures(name, tree, found)
    return found


def _note_structures(path: str, tree: Any, found: dict[str, type]) -> None:
    if isinstance(tree, (tuple, list)):
        found[path] = type(tree)
        names = tree._fields if hasattr(tree, "_fields") else map(str, range(len(tree)))
        for name, branch in zip(names, tree, strict=True):
            _note_structures(f"{path}/{name}", branch, found)
