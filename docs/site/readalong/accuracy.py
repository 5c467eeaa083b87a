"""The error table of a mechanism: what rounding may do in each dtype, and what it does to the portable backend.

Run as ``python -m readalong.accuracy SLUG`` from ``docs/site`` to print the table of one mechanism.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from refattn.conformance.contract import Contract, Entry

__all__ = ["COLUMNS", "accuracy", "measure"]

COLUMNS = (
    ("bound", "largest error that a correct kernel can make (B), relative to the row"),
    ("sigma", "typical rounding error (σ), relative to the row"),
    ("limit", "error that the kit accepts in a row (T), relative to the row"),
    ("measured", "error of the portable backend on NumPy, in the dtypes that NumPy has, relative to the row"),
    ("share", "the largest share of the limit that any of its rows uses"),
)


def accuracy(contract: Contract, cache: Path) -> list[dict[str, Any]]:
    """Return the error table of a mechanism, measured once for each state of the sources.

    Parameters
    ----------
    contract : Contract
        The mechanism.
    cache : Path
        Folder that keeps the last table.

    Returns
    -------
    list of dict
        One row for each entry and dtype.
    """
    state = _digest()
    path = cache / f"accuracy-{contract.slug}.json"
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["state"] == state:
            return list(kept["rows"])
    rows = measure(contract)
    cache.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"state": state, "rows": rows}, indent=1), encoding="utf-8")
    return rows


def _digest() -> str:
    import refattn

    package = Path(refattn.__file__).parent
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def measure(contract: Contract) -> list[dict[str, Any]]:
    """Measure the error table: the first scenario of each entry, filled with normal numbers."""
    from refattn.conformance.backend import load_backend
    from refattn.conformance.precision import DTYPES

    backend = load_backend("portable")
    entries = [entry for entry in contract.entries if entry.scenarios and not entry.gradient_of]
    return [row for entry in entries for dtype in DTYPES if (row := _row(entry, dtype, backend))]


def _row(entry: Entry, dtype: str, backend: Any) -> dict[str, Any] | None:
    import numpy as np

    from refattn.conformance.backend import NotSupportedError
    from refattn.conformance.trial import budgets_of
    from refattn.conformance.verdict import row_limits

    scenario, make = next(iter(entry.scenarios.items()))
    family = "normal" if "normal" in entry.families else entry.families[0]
    case = make(family, dtype, 0)
    floating = [(n, b) for n, b in budgets_of(entry, case).items() if np.asarray(b.expected).dtype.kind == "f"]
    if not floating:
        return None
    name, budget = floating[0]
    y = np.asarray(budget.expected)
    limits, sizes = row_limits(budget), _row_norm(y, budget.row_axes)
    fair = np.isfinite(limits) & (limits > 0) & (sizes > 0)
    if not fair.any():
        return None

    def typical(elements: Any) -> float:
        return float(np.median(_row_norm(np.broadcast_to(elements, y.shape), budget.row_axes)[fair] / sizes[fair]))

    row = {
        "entry": entry.name, "output": name, "scenario": f"{scenario}/{family}", "dtype": dtype,
        "precision": budget.precision.name, "bound": typical(budget.bound), "sigma": typical(budget.sigma),
        "limit": float(np.median(limits[fair] / sizes[fair])), "measured": None, "share": None,
    }  # fmt: skip
    if backend.dtypes and dtype not in backend.dtypes:
        return row  # this library has no such dtype: the bounds stand alone
    try:
        errors = _row_norm(backend.run(entry, case)[name] - y, budget.row_axes)
    except NotSupportedError:
        return row
    row |= {
        "measured": float(np.median(errors[fair] / sizes[fair])),
        "share": float(np.max(errors[fair] / limits[fair])),
    }
    return row


def _row_norm(array: np.ndarray, row_axes: int) -> np.ndarray:
    import numpy as np

    return np.abs(array) if row_axes == 0 or not array.ndim else np.linalg.norm(array, axis=-1)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from refattn.conformance.registry import find_contracts

    for line in measure(find_contracts()[sys.argv[1]]):
        print(json.dumps(line, ensure_ascii=False))
