"""Quantised checkpoints on disk: what may be quantised, calibration text as sequences of tokens, what is written.

The weights that are written are the dequantised ones, so that every program that reads the original reads them; the
integers and their grids lie beside them in `CODES`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_integer, require
from refattn.transformer.checkpoint import read_config, save_pretrained
from refattn.transformer.safetensors import write_safetensors

if TYPE_CHECKING:
    from refattn.efficiency.quantise import Quantised

__all__ = [
    "CODES",
    "MARK",
    "calibration_sequences",
    "read_ids",
    "read_text",
    "refuse_filled",
    "refuse_quantised",
    "save_quantised",
]

MARK = "refattn_quantisation"
"""The entry of ``config.json`` that says how a checkpoint was quantised."""

CODES = "quantised.safetensors"
"""The file that holds integers, scales and zero points of every matrix, stored (d_out, d_in)."""

_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def refuse_quantised(folder: str | Path) -> None:
    """Raise ``ValueError`` for a checkpoint whose ``config.json`` says that it is quantised already."""
    read_config(folder)  # which names what is missing or damaged
    content = _config(folder)
    for key in (MARK, "quantization_config"):
        require(
            not content.get(key),
            f"path={str(folder)!r} is already quantised: its config.json has {key}={content.get(key)!r}; "
            "quantise the original",
        )


def refuse_filled(folder: str | Path) -> None:
    """Raise ``ValueError`` for an output folder that is a file or holds something."""
    folder = Path(folder)
    require(not folder.exists() or folder.is_dir(), f"out={str(folder)!r} is no folder")
    require(
        not folder.is_dir() or not any(folder.iterdir()), f"out={str(folder)!r} is not empty: name a folder to be made"
    )


def read_text(name: str, path: str | Path) -> str:
    """Read a text file; ``name`` is the argument that named it."""
    require(Path(path).is_file(), f"{name}={str(path)!r}: there is no such file")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name}={str(path)!r} is not text in UTF-8") from None


def read_ids(path: str | Path) -> np.ndarray:
    """Read token ids from a text file of integers, separated by white space or commas."""
    words = read_text("ids", path).replace(",", " ").split()
    for word in words:
        require(word.isascii() and word.isdecimal(), f"ids={str(path)!r} holds {word!r}, expected token ids")
    return np.array(words, np.int64)


def calibration_sequences(ids: Any, *, count: int, length: int, seed: int = 0) -> np.ndarray:
    """Cut a text into sequences and draw some of them.

    Parameters
    ----------
    ids : array_like of int, shape (N,)
        The tokens of the text.
    count : int
        How many sequences at most. N // length are there.
    length : int
        Tokens in each.
    seed : int
        Of the draw.

    Returns
    -------
    ndarray of int, shape (min(count, N // length), length)
        In the order of the text; no token stands in two.

    Raises
    ------
    ValueError
        For a text that is empty or shorter than a sequence, and for ``count`` or ``length`` below 1.
    """
    ids = as_integer("calibration", ids, ndim=1)
    require(count >= 1, f"sequences={count} must be at least 1")
    require(length >= 1, f"length={length} must be at least 1")
    require(ids.size, "calibration is empty: it has 0 tokens")
    require(ids.size >= length, f"calibration has {ids.size} tokens, expected at least one sequence of length={length}")
    there = ids.size // length
    chosen = np.sort(np.random.default_rng(seed).permutation(there)[:count])
    return np.asarray(ids[: there * length].reshape(there, length)[chosen])


def save_quantised(quantised: Quantised, source: str | Path, folder: str | Path, about: dict[str, Any]) -> list[str]:
    """Write a quantised model as a checkpoint, marked as such.

    Parameters
    ----------
    quantised : Quantised
        From `refattn.efficiency.quantise.quantise`.
    source : path
        The checkpoint it came from: its ``config.json`` is kept but for dtype and mark, its tokenizer files are copied.
    folder : path
        To write to. Must be empty or not there.
    about : dict
        What to say under the mark: bits, method and the like.

    Returns
    -------
    list of str
        The names of the files written.

    Raises
    ------
    ValueError
        For a folder that holds something.
    """
    source, folder = Path(source), Path(folder)
    refuse_filled(folder)
    save_pretrained(quantised.model, folder, dtype=np.float32)
    content = _config(source) | {"dtype": "float32", "torch_dtype": "float32", MARK: about}
    (folder / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_safetensors(folder / CODES, _stored(quantised, int(about["bits"])))
    for name in _COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return sorted(path.name for path in folder.iterdir())


def _stored(quantised: Quantised, bits: int) -> dict[str, np.ndarray]:
    """Return integers (d_out, d_in), scales and zero points (d_out, 1) of every matrix by name."""
    whole = np.uint8 if bits <= 8 else np.int32
    tensors: dict[str, np.ndarray] = {}
    for name, result in quantised.results.items():
        rows = result.codes.shape[0] * result.codes.shape[1]
        tensors[f"{name}.codes"] = result.codes.reshape(rows, -1).astype(whole)
        tensors[f"{name}.scale"] = np.asarray(result.grid.scale, np.float64).reshape(rows, -1)
        tensors[f"{name}.zero"] = np.asarray(result.grid.zero, np.int32).reshape(rows, -1)
    return tensors


def _config(folder: str | Path) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
