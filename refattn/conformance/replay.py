"""A failure in a file: one case, the check that it broke, and enough to run it again anywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.conformance.records import CheckId
from refattn.conformance.storage import (
    StorageError,
    case_from_json,
    case_to_json,
    read_archive,
    read_json,
    write_archive,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refattn.conformance.contract import Case, Contract

__all__ = ["Replay", "read_replay", "write_replay"]

_SCHEMA = "refattn-replay/1"


class Replay(NamedTuple):
    """What a replay file holds."""

    check: CheckId
    case: Case
    backend: str
    seed: int


def write_replay(folder: Path, replay: Replay) -> Path:
    """Write a replay file, named after its check, and return its path."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    described, members = case_to_json(replay.case, "case")
    manifest = {
        "schema": _SCHEMA,
        "check": str(replay.check),
        "backend": replay.backend,
        "seed": replay.seed,
        "case": described,
    }
    text = json.dumps(manifest, sort_keys=True, allow_nan=False).encode()
    path = folder / (re.sub(r"[^A-Za-z0-9_.@-]+", "-", f"{Path(replay.backend).name}-{replay.check}") + ".npz")
    write_archive(path, {**members, "manifest": np.frombuffer(text, np.uint8)})
    return path


def read_replay(path: Path, contracts: Mapping[str, Contract]) -> Replay:
    """Read a replay file.

    Raises
    ------
    StorageError
        If it is damaged, or speaks of a mechanism or entry that is not there.
    """
    members = read_archive(path)
    if "manifest" not in members:
        raise StorageError(f"{path.name}: no manifest")
    manifest = read_json(members["manifest"].tobytes().decode("utf-8", errors="strict"))
    if not isinstance(manifest, dict) or manifest.get("schema") != _SCHEMA:
        raise StorageError(f"{path.name}: schema is not {_SCHEMA}")
    try:
        check = CheckId.parse(manifest["check"])
        entry = contracts[check.mechanism].entry(check.entry)
        case = case_from_json(manifest["case"], members, entry)
        return Replay(check, case, str(manifest["backend"]), int(manifest["seed"]))
    except (KeyError, TypeError, StopIteration) as error:
        raise StorageError(f"{path.name}: incomplete or unknown ({type(error).__name__}: {error})") from error
