"""Read and write safetensors files: a JSON header, then the raw tensors; nothing in them can be run.

Written for this project because reading is a page of code, maps the file into memory, and must refuse what is hostile:
a header beyond the file, overlapping or missing ranges, sizes that disagree with shapes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HEADER_LIMIT", "read_safetensors", "widen", "write_safetensors"]

HEADER_LIMIT = 100_000_000
"""Bytes that a header may have."""

# BF16 is carried as its bits: NumPy has no such dtype, `widen` turns them into float32
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "|u1",
    "BOOL": "|b1",
}
_WRITTEN = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Map the tensors of a file into memory.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict of str to ndarray
        Read-only views of the file, in its own dtypes; bfloat16 comes widened to float32.

    Raises
    ------
    ValueError
        For a file that is cut off or inconsistent: header longer than the file or not JSON, offsets past the end,
        overlapping or with gaps, a size that is not the product of the shape, an unsupported dtype, a name twice.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        require(
            size >= 8 and length <= min(size - 8, HEADER_LIMIT), f"{path.name}: header of {length} bytes is too long"
        )
        header = _parsed(path.name, file.read(length))
    start = 8 + length
    header.pop("__metadata__", None)
    _check_ranges(path.name, header, size - start)
    if size == start:
        return {name: np.zeros(entry["shape"], DTYPES[entry["dtype"]]) for name, entry in header.items()}
    whole = np.memmap(path, mode="r", dtype=np.uint8, offset=start)
    return {name: _tensor(whole, entry) for name, entry in header.items()}


def _parsed(file: str, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise ValueError(f"{file}: the header is not valid JSON ({error})") from None
    require(isinstance(header, dict), f"{file}: the header is no mapping")
    return dict(header)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require(len({key for key, _ in pairs}) == len(pairs), "a name stands twice")
    return dict(pairs)


def _check_ranges(file: str, header: Mapping[str, Any], size: int) -> None:
    """Refuse entries that are no tensors, and ranges that do not tile the buffer exactly."""
    ranges = []
    for name, entry in header.items():
        require(
            isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} <= set(entry), f"{file}: {name} is no tensor"
        )
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        require(dtype in DTYPES, f"{file}: {name} has dtype {dtype}, which is not one of {', '.join(DTYPES)}")
        require(
            _counts(shape) and _counts(offsets) and len(offsets) == 2, f"{file}: {name} has no valid shape or offsets"
        )
        begin, end = offsets
        wanted = int(np.prod(shape, dtype=object)) * np.dtype(DTYPES[dtype]).itemsize
        require(end - begin == wanted, f"{file}: {name} has {end - begin} bytes, its shape {shape} takes {wanted}")
        ranges.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(ranges):
        require(begin == at, f"{file}: {name} begins at byte {begin}, expected {at}")
        at = end
    require(at == size, f"{file}: the tensors take {at} bytes, the file holds {size}")


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def _tensor(whole: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    tensor = whole[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return widen(tensor) if entry["dtype"] == "BF16" else tensor


def widen(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values whose upper halves are the given 16 bits: bfloat16, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file that every reader of the format takes.

    Parameters
    ----------
    path : path
        The file; it is replaced.
    tensors : mapping of str to ndarray
        Of dtype float64, float32, float16, int64, int32, uint8 or bool.
    metadata : mapping of str to str, optional
        Goes into the header; ``{"format": "pt"}`` is what transformers asks for.

    Raises
    ------
    ValueError
        For a dtype that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        dtype = tensor.dtype.newbyteorder("<") if tensor.dtype.itemsize > 1 else tensor.dtype
        require(dtype in _WRITTEN, f"{name} has dtype {tensor.dtype}, which is not one of {', '.join(DTYPES)}")
        header[name] = {"dtype": _WRITTEN[dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes())
