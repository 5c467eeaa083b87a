"""The contract of attention calibration: what columns receive, which are sinks, and what becomes of them.

Directional derivatives are not asked for: weights that are moved by themselves no longer sum to 1, and detection is a
step. Everything can be traced, for the sinks are masks; ``heads`` is static. The search for heads and the hook are
functions of a model and are not part of it.
"""

from __future__ import annotations

import numpy as np

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Case, Contract, Entry, Outputs
from refattn.contracts.attention_calibration import bugs, cases, laws
from refattn.interventions.attention_calibration import (
    act,
    calibrate_attention,
    calibrate_row,
    calibrated_sinks,
    detect_sinks,
    received_attention,
)

__all__ = ["CONTRACT"]

_WEIGHTS = {"weights": ("B", "H", "T", "T")}
_HALVES = np.array([[[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.25, 0.25, 0], [0.5, 0, 0.25, 0.25]]]])


def _halved(dtype: str) -> tuple[Case, Outputs]:
    """Halve a sink that stands beside equal company: every number is a power of two."""
    arrays = {"weights": np.array([[[1.0, 0.0], [0.5, 0.5]]])[None]}
    options = {"threshold": 0.125, "beta": 0.5}
    return Case("act", arrays, options, dtype, "exact/halved"), {"out": np.array([[[[1.0, 0.0], [0.75, 0.25]]]])}


def _tie(dtype: str) -> tuple[Case, Outputs]:
    """Receive exactly the threshold: not a sink."""
    case = Case("detect_sinks", {"weights": _HALVES}, {"threshold": 0.25}, dtype, "exact/tie")
    return case, {"out": np.array([[[True, False, False, False]]])}


def _means(dtype: str) -> tuple[Case, Outputs]:
    """Average columns whose sums are powers of two times their queries."""
    case = Case("received_attention", {"weights": _HALVES}, {}, dtype, "exact/means")
    return case, {"out": np.array([[[0.625, 0.25, 0.25, 0.25]]])}


_ACT = Entry(
    "act",
    act,
    ("weights",),
    cases.ACT.scenarios(cases.ACT_SCENARIOS),
    cases.FAMILIES,
    cases.ACT.cases(cases.act_sizes()),
    smoke=smoke("paper", "code", "some_heads", "first_head", "token0", "causal", families=("normal", "late")),
    laws=laws.ACT_LAWS,
    bugs=bugs.ACT_BUGS,
    exact={"halved": _halved},
    axes=_WEIGHTS,
)
_RECEIVED = Entry(
    "received_attention",
    received_attention,
    ("weights",),
    cases.RECEIVED.scenarios(cases.RECEIVED_SCENARIOS),
    cases.FEW,
    cases.RECEIVED.cases(cases.received_sizes),
    smoke=smoke("plain", "causal"),
    laws=laws.RECEIVED_LAWS,
    bugs=bugs.RECEIVED_BUGS,
    exact={"means": _means},
    axes=_WEIGHTS,
)
_DETECT = Entry(
    "detect_sinks",
    detect_sinks,
    ("weights",),
    cases.DETECT.scenarios(cases.DETECT_SCENARIOS),
    cases.FAMILIES,
    cases.DETECT.cases(cases.detect_sizes),
    smoke=smoke("paper", "code", "attended_at_all", "causal", families=("normal", "late")),
    laws=laws.DETECT_LAWS,
    bugs=bugs.DETECT_BUGS,
    exact={"tie": _tie},
    axes=_WEIGHTS,
)
_PROTECTED = Entry(
    "calibrated_sinks",
    calibrated_sinks,
    ("is_sink",),
    cases.PROTECTED.scenarios(cases.PROTECTED_SCENARIOS),
    cases.FAMILIES[:1],
    cases.PROTECTED.cases(cases.protected_sizes),
    laws=laws.PROTECTED_LAWS,
    bugs=bugs.PROTECTED_BUGS,
    axes={"is_sink": ("B", "T")},
)
_MAP = Entry(
    "calibrate_attention",
    calibrate_attention,
    ("weights", "sinks"),
    cases.MAP.scenarios(cases.MAP_SCENARIOS),
    cases.FEW,
    cases.MAP.cases(cases.map_sizes),
    smoke=smoke("default", "quarter", "first_column_too", "every_column"),
    laws=laws.MAP_LAWS,
    bugs=bugs.MAP_BUGS,
    axes={"weights": ("B", "H", "T", "T"), "sinks": ("B", "H", "T")},
)
_ROW = Entry(
    "calibrate_row",
    calibrate_row,
    ("row", "sinks"),
    cases.ROW.scenarios(cases.ROW_SCENARIOS),
    cases.FEW,
    cases.ROW.cases(cases.row_sizes),
    smoke=smoke("default", "three_quarters", "nothing_but_sinks"),
    laws=laws.ROW_LAWS,
    bugs=bugs.ROW_BUGS,
    axes={"row": ("B", "T"), "sinks": ("B", "T")},
)

CONTRACT = Contract(
    "attention_calibration",
    "Attention calibration",
    "2406.15765",
    "interventions",
    (_ACT, _RECEIVED, _DETECT, _PROTECTED, _MAP, _ROW),
)
