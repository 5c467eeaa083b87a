"""A folder that keeps the cells of one run, so that the run can be killed and go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from theory.cells import digest_of
from theory.table import ResultTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from theory.table import Row

__all__ = ["MANIFEST", "SCHEMA", "Folder", "read_manifest"]

MANIFEST = "manifest.json"
SCHEMA = 1
"""Of what is written; raised when older folders cannot be read any more."""


class Folder:
    """The folder of one run: a manifest, one file of JSON lines for each cell, and the tables once all are there.

    Files appear whole or not at all: each is written under another name first. Two processes that work in one folder
    do no harm; they compute the same numbers.

    Parameters
    ----------
    path : Path or str
        Made if it is not there.
    identity : mapping
        What makes the run the run that it is; JSON.

    Raises
    ------
    ValueError
        If the folder holds another run's cells, or files of which there is no manifest.
    """

    def __init__(self, path: Path | str, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        manifest = json.loads(json.dumps({"schema": SCHEMA, **identity}))
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out={str(path)!r} is a file, expected a folder")
        if (self.path / MANIFEST).is_file():
            _refuse_another(self.path, manifest)
        elif self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise ValueError(f"out={str(path)!r} holds files but no {MANIFEST}: give an empty or a new folder")
        (self.path / "cells").mkdir(parents=True, exist_ok=True)
        _write(self.path / MANIFEST, lambda temporary: _write_json(temporary, manifest))

    def _file(self, cell: Mapping[str, Any]) -> Path:
        return self.path / "cells" / f"{digest_of(cell)}.jsonl"

    def read(self, cell: Mapping[str, Any]) -> list[Row] | None:
        """Return the rows of a cell, or None if it has not been computed."""
        path = self._file(cell)
        return ResultTable.from_jsonl(path).rows if path.is_file() else None

    def write(self, cell: Mapping[str, Any], rows: list[Row]) -> None:
        """Keep the rows of a cell."""
        _write(self._file(cell), ResultTable(rows).to_jsonl)

    def finish(self, table: ResultTable) -> None:
        """Write the table of the whole run: ``results.csv`` and ``results.jsonl``."""
        _write(self.path / "results.csv", table.to_csv)
        _write(self.path / "results.jsonl", table.to_jsonl)


def read_manifest(path: Path | str) -> dict[str, Any]:
    """Return what a folder says about its run.

    Raises
    ------
    ValueError
        If it has no manifest that can be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} has no {MANIFEST} that can be read: {error}") from error
    return manifest


def _refuse_another(path: Path, manifest: dict[str, Any]) -> None:
    there = _flat(read_manifest(path))
    here = _flat(manifest)
    different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"out={str(path)!r} holds the cells of another run: its {name} is {there.get(name)!r}, "
            f"not {here.get(name)!r}; give another folder"
        )


def _flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with the entries of inner mappings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in manifest.items():
        inner = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        flat.update(inner)
    return flat


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that appears whole or not at all, even if the machine loses power."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
