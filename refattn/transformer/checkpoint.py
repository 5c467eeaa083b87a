"""Checkpoints: folders with ``config.json`` and safetensors, as the model hubs have them, read and written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import require
from refattn.transformer.config import parse_config
from refattn.transformer.config_writing import config_dict
from refattn.transformer.layouts import LAYOUTS, Layout, Tensor
from refattn.transformer.safetensors import read_safetensors, write_safetensors
from refattn.transformer.weights import BlockWeights, Transformer, TransformerWeights, block_shapes, check_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.transformer.config import TransformerConfig

__all__ = ["load_pretrained", "read_config", "read_tensors", "save_pretrained"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_pretrained(folder: str | Path, *, dtype: Any = np.float64) -> Transformer:
    """Load a model from a folder.

    Parameters
    ----------
    folder : path
        With ``config.json`` and ``model.safetensors``, or shards and their index.
    dtype : dtype or None
        What the weights are converted to. None keeps what is stored, bfloat16 as float32; tensors that keep their
        dtype stay mapped to the file and are read as they are used.

    Returns
    -------
    Transformer

    Raises
    ------
    ValueError
        For a missing or damaged file, an unknown architecture, and a tensor that is missing, superfluous, of another
        shape or not finite; the message names it.
    """
    config = read_config(folder)
    layout = LAYOUTS[config.family]
    tensors = _known(read_tensors(folder), layout)
    take = _Taker(tensors, config, dtype)
    stem = take.all(layout.stem, None)
    unembedding = tensors.pop(layout.unembedding, None)
    require(unembedding is not None or config.tied, f"checkpoint lacks tensor {layout.unembedding!r}")
    if unembedding is None:
        stem["W_U"] = stem["W_E"].T
    else:
        shape = (config.vocab_size, config.d_model)
        stem["W_U"] = _checked(layout.unembedding, unembedding, shape, dtype).T
    none: dict[str, Any] = {name: None for name, shape in block_shapes(config).items() if shape is None}
    blocks = tuple(BlockWeights(**(none | take.all(layout.block, layer))) for layer in range(config.n_layers))
    require(not tensors, f"checkpoint holds tensors unknown to {config.family}: {', '.join(sorted(tensors)[:5])}")
    missing: dict[str, Any] = {name: None for name in ("W_pos", "lnf_b") if name not in stem}
    model = Transformer(config, TransformerWeights(blocks=blocks, **stem, **missing))
    check_weights(*model)
    return model


def read_config(folder: str | Path) -> TransformerConfig:
    """Read the ``config.json`` of a folder."""
    return parse_config(_json(Path(folder) / "config.json"))


def read_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """Read every tensor of a folder, from one file or from shards, by its name in the files."""
    folder = Path(folder)
    if not (folder / _INDEX).is_file():
        require((folder / _SINGLE).is_file(), f"{folder.name} has neither {_SINGLE} nor {_INDEX}")
        return read_safetensors(folder / _SINGLE)
    places = _json(folder / _INDEX).get("weight_map", {})
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(places.values())):
        require(Path(file).name == file, f"{_INDEX} names {file!r}, which lies outside the folder")
        require((folder / file).is_file(), f"{_INDEX} names {file!r}, which is not there")
        tensors |= {name: array for name, array in read_safetensors(folder / file).items() if places.get(name) == file}
    lost = set(places) - set(tensors)
    require(not lost, f"{_INDEX} names tensors that its files lack: {', '.join(sorted(lost)[:5])}")
    return tensors


def _json(path: Path) -> dict[str, Any]:
    require(path.is_file(), f"{path.parent.name} has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON ({error})") from None
    require(isinstance(content, dict), f"{path.name} holds no mapping")
    return dict(content)


def _known(tensors: dict[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """Strip the prefix, which old files do not have, and drop buffers that are no weights."""
    stripped = {name.removeprefix(layout.prefix): array for name, array in tensors.items()}
    require(len(stripped) == len(tensors), f"checkpoint holds a tensor with and without prefix {layout.prefix!r}")
    return {name: array for name, array in stripped.items() if not re.fullmatch(layout.ignored, name)}


class _Taker:
    """Takes tensors out of a checkpoint, one layout entry at a time."""

    def __init__(self, tensors: dict[str, np.ndarray], config: TransformerConfig, dtype: Any) -> None:
        self.tensors, self.config, self.dtype = tensors, config, dtype

    def all(self, entries: tuple[Tensor, ...], layer: int | None) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for entry in entries:
            fields |= zip(entry.fields, self.one(entry, layer), strict=True)
        return fields

    def one(self, entry: Tensor, layer: int | None) -> tuple[np.ndarray, ...]:
        name, shape = entry.name.format(i=layer), entry.shape(self.config)
        stored = self.tensors.pop(name, None)
        require(stored is not None or entry.optional, f"checkpoint lacks tensor {name!r}")
        if stored is None:
            stored = np.zeros(shape, np.float32 if self.dtype is None else self.dtype)
        return entry.read(_checked(name, stored, shape, self.dtype), self.config)


def _checked(name: str, stored: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    require(stored.shape == shape, f"tensor {name!r} has shape {stored.shape}, expected {shape}")
    require(stored.dtype.kind == "f", f"tensor {name!r} has dtype {stored.dtype}, expected a floating one")
    require(np.isfinite(stored).all(), f"tensor {name!r} holds values that are not finite")
    return stored if dtype is None else stored.astype(dtype, copy=False)


def save_pretrained(model: Transformer, folder: str | Path, *, dtype: Any = None) -> None:
    """Write a model as a checkpoint that transformers, and `load_pretrained`, can read.

    Parameters
    ----------
    model : Transformer
        What to write.
    folder : path
        Is made if it is not there; files of the same names are replaced.
    dtype : dtype, optional
        What the weights are stored in; their own if not given.

    Raises
    ------
    ValueError
        For a model that its family cannot express: a scale, window or bias it has no place for.
    """
    config, weights = model
    check_weights(config, weights)
    require(weights.b_U is None, "b_U has no place in a checkpoint: save the weights before they are processed")
    folder = Path(folder)
    content = config_dict(model, str(np.dtype(dtype or weights.W_E.dtype)))
    folder.mkdir(parents=True, exist_ok=True)
    layout = LAYOUTS[config.family]
    tensors: dict[str, np.ndarray] = {}

    def put(entries: tuple[Tensor, ...], fields: Callable[[str], Any], layer: int | None) -> None:
        for entry in entries:
            stored = entry.write(tuple(fields(field) for field in entry.fields), config)
            if not entry.optional or np.any(stored):
                tensors[layout.prefix + entry.name.format(i=layer)] = np.asarray(stored, dtype)

    put(layout.stem, lambda field: getattr(weights, field), None)
    for layer, block in enumerate(weights.blocks):
        put(layout.block, block._asdict().__getitem__, layer)
    if not config.tied:
        tensors[layout.unembedding] = np.asarray(weights.W_U.T, dtype)
    (folder / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_safetensors(folder / _SINGLE, tensors, {"format": "pt"})
