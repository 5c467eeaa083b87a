"""Frozen vectors: freeze them from the references, verify them, export them, read them with suspicion.

A mechanism has ``<slug>.npz``, the arrays, and ``<slug>.json``, the manifest. ``schema.json`` beside them is the
published JSON Schema of manifests. Floats are stored in the dtype of the vector, bfloat16 as bits in uint16; expected
outputs and bounds in float64. Identifiers never change their meaning.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import refattn
from refattn.conformance.storage import (
    StorageError,
    case_from_json,
    case_to_json,
    read_archive,
    read_json,
    write_archive,
    write_json,
)
from refattn.conformance.trial import budgets_of
from refattn.conformance.verdict import row_limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from refattn.conformance.contract import Case, Contract, Entry

__all__ = ["SCHEMA", "Vector", "export", "freeze", "golden_folder", "load", "vectors_of", "verify"]

SCHEMA = "refattn-golden/1"
_SEED = 20_26
_MOST_NUMBERS = 6_000  # a vector for a reader, not a load test


class Vector(NamedTuple):
    """One frozen case with what the reference gave and the row-wise bound on a deviation."""

    id: str
    case: Case
    outputs: dict[str, np.ndarray]
    limits: dict[str, np.ndarray]
    flags: tuple[str, ...]


def golden_folder() -> Path:
    """Return the folder of the vectors that ship with the package."""
    return Path(str(resources.files("refattn") / "golden"))


def freeze(contracts: Iterable[Contract], folder: Path) -> dict[str, int]:
    """Write the vectors of each contract and return how many there are; the same sources give the same bytes."""
    counts = {}
    for contract in contracts:
        described: list[dict[str, Any]] = []
        members: dict[str, np.ndarray] = {}
        for vector_id, entry, case, flags in _chosen(contract):
            about, arrays = _describe(vector_id, entry, case, flags)
            described.append(about)
            members |= arrays
        sha256 = write_archive(folder / f"{contract.slug}.npz", members)
        manifest = {
            "schema": SCHEMA,
            "mechanism": contract.slug,
            "paper": contract.paper,
            "generator": {"refattn": refattn.__version__, "numpy": np.__version__},
            "archive": {"file": f"{contract.slug}.npz", "sha256": sha256},
            "vectors": described,
        }
        write_json(folder / f"{contract.slug}.json", manifest)
        counts[contract.slug] = len(described)
    return counts


def _chosen(contract: Contract) -> list[tuple[str, Entry, Case, tuple[str, ...]]]:
    """Return one vector a scenario in float64, families in turn; float32 and bfloat16 for every fourth."""
    chosen: list[tuple[str, Entry, Case, tuple[str, ...]]] = []
    for entry in contract.entries:
        for number, (name, maker) in enumerate(entry.scenarios.items()):
            family = entry.families[number % len(entry.families)]
            for dtype in ("float64", *(("float32", "bfloat16") if number % 4 == 0 else ())):
                case = maker(family, dtype, _SEED)
                if _numbers(case) <= _MOST_NUMBERS:
                    flags = (f"scenario {name}: structure", f"family {family}: values")
                    chosen.append((f"{contract.slug}-{entry.name}-{name}-{family}-{dtype}", entry, case, flags))
    return chosen


def _numbers(case: Case) -> int:
    return sum(array.size for array in case_to_json(case, "case")[1].values())


def _describe(
    vector_id: str, entry: Entry, case: Case, flags: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    about, members = case_to_json(case, vector_id)
    budgets = budgets_of(entry, case)
    about |= {"id": vector_id, "flags": list(flags), "outputs": {}}
    for name, value in entry.expected(case).items():
        members[f"{vector_id}/expected/{name}"] = np.asarray(value)
        about["outputs"][name] = {"member": f"{vector_id}/expected/{name}", "shape": list(value.shape), "limit": None}
        if name in budgets:
            members[f"{vector_id}/limit/{name}"] = np.asarray(row_limits(budgets[name]))
            about["outputs"][name]["limit"] = f"{vector_id}/limit/{name}"
    return about, members


def load(folder: Path, contract: Contract) -> list[Vector]:
    """Read the vectors of a mechanism.

    Parameters
    ----------
    folder : Path
        Where manifest and archive lie.
    contract : Contract
        The mechanism.

    Returns
    -------
    list of Vector
        In the order of the manifest.

    Raises
    ------
    StorageError
        If anything is missing, damaged, unknown or not as the manifest says.
    """
    try:
        manifest = read_json((folder / f"{contract.slug}.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{contract.slug}.json: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise StorageError(f"{contract.slug}.json: schema is not {SCHEMA}")
    try:
        archive = manifest["archive"]
        if archive["file"] != f"{contract.slug}.npz":
            raise StorageError(f"{contract.slug}.json: archive {archive['file']!r} is not {contract.slug}.npz")
        if not (folder / archive["file"]).is_file():
            raise StorageError(f"{archive['file']}: missing")
        members = read_archive(folder / archive["file"], archive["sha256"])
        vectors = [_vector(about, members, contract) for about in manifest["vectors"]]
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise StorageError(f"{contract.slug}.json: incomplete or unknown ({type(error).__name__}: {error})") from error
    ids = [vector.id for vector in vectors]
    if len(set(ids)) < len(ids):
        raise StorageError(f"{contract.slug}.json: an id is given twice")
    return vectors


def _vector(about: dict[str, Any], members: dict[str, np.ndarray], contract: Contract) -> Vector:
    case = case_from_json(about, members, contract.entry(about["entry"]))
    outputs = {name: members[out["member"]] for name, out in about["outputs"].items()}
    for name, out in about["outputs"].items():
        if list(outputs[name].shape) != out["shape"]:
            raise StorageError(f"{about['id']}: output {name} has shape {outputs[name].shape}, not {out['shape']}")
    limits = {name: members[out["limit"]] for name, out in about["outputs"].items() if out["limit"]}
    return Vector(about["id"], case, outputs, limits, tuple(about["flags"]))


def vectors_of(contract: Contract, entry: Entry, dtype: str) -> list[Vector]:
    """Return the shipped vectors of one entry and dtype."""
    return [v for v in _shipped(contract) if v.case.entry == entry.name and v.case.dtype == dtype]


@cache
def _shipped(contract: Contract) -> tuple[Vector, ...]:
    there = (golden_folder() / f"{contract.slug}.json").is_file()
    return tuple(load(golden_folder(), contract)) if there else ()


def verify(contracts: Mapping[str, Contract], folder: Path | None = None) -> dict[str, list[str]]:
    """Return per mechanism what is wrong with its vectors: damage, or a reference that gives other numbers."""
    folder = folder or golden_folder()
    return {slug: _problems(contract, folder) for slug, contract in contracts.items()}


def _problems(contract: Contract, folder: Path) -> list[str]:
    try:
        vectors = load(folder, contract)
    except StorageError as error:
        return [str(error)]
    return [
        f"{vector.id}: the reference gives another {name}"
        for vector in vectors
        for name, value in contract.entry(vector.case.entry).expected(vector.case).items()
        if not same_result(value, vector.outputs[name])
    ]


def same_result(value: np.ndarray, frozen: np.ndarray) -> bool:
    """Whether a reference result is a frozen one, up to the order in which a BLAS may sum."""
    scale = float(np.max(np.abs(frozen[np.isfinite(frozen)]), initial=0.0))
    return value.shape == frozen.shape and bool(
        np.allclose(value, frozen, rtol=1e-9, atol=1e-12 * scale, equal_nan=True)
    )


def export(contracts: Iterable[Contract], target: Path) -> list[Path]:
    """Copy vectors, manifests and schema into ``target``, after verifying what is copied."""
    target.mkdir(parents=True, exist_ok=True)
    copied = []
    for contract in contracts:
        load(golden_folder(), contract)
        copied += [Path(shutil.copy(golden_folder() / f"{contract.slug}.{kind}", target)) for kind in ("npz", "json")]
    schema = target / "schema.json"
    schema.write_text(json.dumps(read_json((golden_folder() / "schema.json").read_text()), indent=1) + "\n")
    return [*copied, schema]
