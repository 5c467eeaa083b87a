"""Scenarios of `rotary_embedding`: pairings, partial widths, positions that restart or start late, scaling rules.

Equation source: the attention sheet, section 2.10. Makers as in `scenarios`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Case

if TYPE_CHECKING:
    from refattn.conformance.contract import Maker

__all__ = ["ROTARY_FAMILIES", "ROTARY_SCENARIOS", "SCALINGS", "make_rotary", "positions_of"]

ROTARY_FAMILIES = ("normal", "uniform", "tied", "large", "cancelling", "tiny")

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 4.0},
    "ntk": {"type": "ntk", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 2.0, "original_max": 64},
    "yarn": {"type": "yarn", "factor": 4.0, "original_max": 64},
    "llama3": {
        "type": "llama3", "factor": 8.0, "original_max": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    },
    "longrope": {
        "type": "longrope",
        "factor": 4.0,
        "original_max": 64,
        "short_factor": (1.0, 1.0, 1.1, 1.2, 1.3, 1.5, 1.5, 1.6),
        "long_factor": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
    },
}  # fmt: skip


def positions_of(rule: str, batch: int, length: int, start: int = 0) -> np.ndarray:
    """Return integer positions.

    Parameters
    ----------
    rule : {"count", "restart", "ragged"}
        From ``start`` on; the same with a second sequence beginning at 0 half-way; another start for every batch entry.
    batch, length : int
        Sizes.
    start : int
        Of the first sequence.
    """
    count = start + np.arange(length)
    if rule == "restart":
        half = length // 2
        return np.concatenate([count[:half], np.arange(length - half)])
    return count + 7 * np.arange(batch)[:, None, None] if rule == "ragged" else count


def make_rotary(
    family: str,
    dtype: str,
    seed: int,
    *,
    name: str,
    shape: tuple[int, int, int, int] = (2, 3, 11, 16),
    rule: str = "count",
    start: int = 0,
    **options: Any,
) -> Case:
    """Return one case of `rotary_embedding`.

    Parameters
    ----------
    family : str
        Of `refattn.conformance.cases.FAMILIES`.
    dtype, seed
        Of a maker.
    name : str
        Of the scenario.
    shape : tuple of int
        (B, H, S, d).
    rule, start
        See `positions_of`.
    **options
        Of the case.
    """
    rng = generator(seed, name, family)
    arrays = {"x": fill(rng, shape, family), "positions": positions_of(rule, shape[0], shape[2], start)}
    return Case("rotary_embedding", rounded(arrays, dtype), options, dtype, f"{name}/{family}")


_TABLE: dict[str, dict[str, Any]] = {
    "half": {},
    "yarn": {"scaling": SCALINGS["yarn"], "start": 150},
    "interleaved": {"interleaved": True},
    "partial": {"rotary_dim": 8},
    "partial_interleaved": {"rotary_dim": 6, "interleaved": True},
    "cache": {"shape": (1, 2, 5, 32), "start": 133},
    "packed": {"rule": "restart", "start": 40},
    "ragged": {"shape": (3, 2, 6, 8), "rule": "ragged", "start": 3},
    "decode": {"shape": (3, 4, 1, 16), "rule": "ragged", "start": 77},
    "narrow": {"shape": (1, 1, 9, 2), "start": 1},
    "long_base": {"shape": (1, 2, 17, 64), "theta": 500000.0, "start": 1000},
    "far": {"shape": (1, 2, 3, 32), "start": 100000},
    "inverse": {"inverse": True, "start": 5},
    "linear": {"scaling": SCALINGS["linear"], "start": 30},
    "ntk": {"scaling": SCALINGS["ntk"], "start": 30},
    "dynamic_long": {"scaling": SCALINGS["dynamic"], "length": 160, "start": 140},
    "dynamic_short": {"scaling": SCALINGS["dynamic"], "length": 48, "start": 30},
    "llama3": {"scaling": SCALINGS["llama3"], "start": 200},
    "longrope_long": {"scaling": SCALINGS["longrope"], "length": 200, "start": 180},
    "longrope_short": {"scaling": SCALINGS["longrope"], "length": 50, "start": 30},
}
ROTARY_SCENARIOS: dict[str, Maker] = {name: partial(make_rotary, name=name, **kw) for name, kw in _TABLE.items()}
