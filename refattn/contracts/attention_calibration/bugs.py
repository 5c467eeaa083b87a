"""Mistakes that people make when they calibrate attention, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.attention_calibration.plain import (
    acting,
    calibrating,
    calibrating_rows,
    detecting,
    protecting,
    receiving,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["ACT_BUGS", "DETECT_BUGS", "MAP_BUGS", "PROTECTED_BUGS", "RECEIVED_BUGS", "ROW_BUGS"]


def tokens(case: Case) -> int:
    """Return the number of keys, none if the batch is empty."""
    array = next(iter(case.arrays.values()))
    return int(array.shape[-1]) if array.size else 0


def least(T: int) -> Callable[[Case], bool]:
    """Whether a case has so many keys."""
    return lambda case: tokens(case) >= T


def having(option: str, value: Any, T: int = 2) -> Callable[[Case], bool]:
    """Whether an option has this value."""
    return lambda case: tokens(case) >= T and case.options.get(option) == value


def divides_by_all_tokens(A: np.ndarray, j: int) -> Any:
    """Return the mean attention that column j receives."""
    return A[..., :, j].mean(axis=-1)


def divides_by_earlier_tokens(A: np.ndarray, j: int) -> Any:
    """Return the mean attention that column j receives."""
    return A[..., j:, j].sum(axis=-1) / (j + 1)


def leaves_out_the_diagonal(A: np.ndarray, j: int) -> Any:
    """Return the mean attention that column j receives."""
    return A[..., j + 1 :, j].sum(axis=-1) / max(A.shape[-1] - j - 1, 1)


def averages_rows(A: np.ndarray, j: int) -> Any:
    """Return the mean attention that column j receives."""
    return A[..., j, : j + 1].mean(axis=-1)


def takes_the_largest(A: np.ndarray, j: int) -> Any:
    """Return the mean attention that column j receives."""
    return A[..., j:, j].max(axis=-1)


def sees_everything(A: np.ndarray, _i: int) -> np.ndarray:
    """Return the tokens from which row i is decided."""
    return A


def sees_one_less(A: np.ndarray, i: int) -> np.ndarray:
    """Return the tokens from which row i is decided."""
    return A[..., :i, :i]


def alpha_as_it_is(alpha: float, _T: int) -> float:
    """Return the threshold for T tokens."""
    return alpha


def share_over_alpha(alpha: float, T: int) -> float:
    """Return the threshold for T tokens."""
    return 1 / (alpha * T)


def detects_ties(a: np.ndarray, threshold: float) -> Any:
    """Return which columns are sinks."""
    return a >= threshold


def detects_the_quiet(a: np.ndarray, threshold: float) -> Any:
    """Return which columns are sinks."""
    return a < threshold


def spares_none(S: np.ndarray) -> Any:
    """Return the sinks that are calibrated."""
    return S


def spares_the_last(S: np.ndarray) -> Any:
    """Return the sinks that are calibrated."""
    return S & (np.cumsum(S[..., ::-1], axis=-1)[..., ::-1] > 1)


def spares_all_but_the_first(S: np.ndarray) -> Any:
    """Return the sinks that are calibrated."""
    return S & (np.cumsum(S, axis=-1) == 1)


def spares_first_found(S: np.ndarray) -> Any:
    """Return the sinks that are calibrated."""
    return S & (np.cumsum(S, axis=-1) > 1)


def spares_column_zero(S: np.ndarray) -> Any:
    """Return the sinks that are calibrated."""
    return S & (np.arange(S.shape[-1]) > 0)


def renormalises(A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows."""
    scaled = np.where(S, beta, 1.0) * A
    total = scaled.sum(-1, keepdims=True)
    return scaled / np.where(total > 0, total, 1.0)


def loses_the_mass(A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows."""
    return np.where(S, beta * A, A)


def removes_beta(A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows."""
    kept, mass = A * ~S, (A * S).sum(-1, keepdims=True)
    base = kept.sum(-1, keepdims=True)
    return (1 - beta) * A * S + kept + beta * mass * kept / np.where(base > 0, base, 1.0)


def gives_what_stays(A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows."""
    kept, mass = A * ~S, (A * S).sum(-1, keepdims=True)
    base = kept.sum(-1, keepdims=True)
    return beta * A * S + kept + beta * mass * kept / np.where(base > 0, base, 1.0)


def shares_equally(A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows."""
    open_columns = (A > 0) & ~S
    freed = (1 - beta) * (A * S).sum(-1, keepdims=True)
    return np.where(S, beta * A, A + open_columns * freed / np.maximum(open_columns.sum(-1, keepdims=True), 1))


def fills_the_first(A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows."""
    out = np.where(S, beta * A, A)
    out[..., :1] += (1 - beta) * (A * S).sum(-1, keepdims=True)
    return out


def shares_by_weight(A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows."""
    mass = (A * S).sum(-1, keepdims=True)
    return np.where(S, beta * A, A * (1 + (1 - beta) * mass))


def changes_without_sinks(A: np.ndarray, S: np.ndarray, beta: float) -> Any:
    """Return the calibrated rows."""
    kept, mass = A * ~S, (A * S).sum(-1, keepdims=True)
    shares = np.exp(kept) * (kept > 0)
    total = shares.sum(-1, keepdims=True)
    return beta * A * S + (A.sum(-1, keepdims=True) - beta * mass) * shares / np.where(total > 0, total, 1.0)


def divides_by_nothing(_A: np.ndarray, calibrated: np.ndarray, S: np.ndarray) -> Any:
    """Return the rows; those whose sinks hold everything need care."""
    return np.where(S.all(-1, keepdims=True), np.nan, calibrated)


def empties_full_rows(_A: np.ndarray, calibrated: np.ndarray, _S: np.ndarray) -> Any:
    """Return the rows; those whose sinks hold everything need care."""
    return calibrated


def sinks_of_the_first_sequence(S: np.ndarray) -> np.ndarray:
    """Return the sinks of each map."""
    return np.broadcast_to(S[:1], S.shape) if S.size else S


def sinks_of_any_head(S: np.ndarray) -> np.ndarray:
    """Return the sinks of each map."""
    return np.broadcast_to(S.any(axis=1, keepdims=True), S.shape)


def calibrates_all(_h: int, _heads: list[int]) -> bool:
    """Say whether head h is calibrated."""
    return True


def counts_from_one(h: int, heads: list[int]) -> bool:
    """Say whether head h is calibrated."""
    return h + 1 in heads


def calibrates_the_others(h: int, heads: list[int]) -> bool:
    """Say whether head h is calibrated."""
    return h not in heads


def _causal(case: Case) -> bool:
    return tokens(case) >= 3 and bool(case.options.get("causal", False))


def _relative(case: Case) -> bool:
    return tokens(case) >= 2 and case.options.get("alpha") is not None


_MEANS = (
    Mistake(
        "column_mean",
        divides_by_all_tokens,
        "The sum of a column is divided by T.",
        "Column j is seen by T − j queries: divide by those.",
        least(2),
    ),
    Mistake(
        "column_mean",
        divides_by_earlier_tokens,
        "The sum of column j is divided by j + 1.",
        "Column j is seen by the queries j … T − 1: divide by T − j.",
        least(2),
    ),
    Mistake(
        "column_mean",
        leaves_out_the_diagonal,
        "What a token gives to itself is left out.",
        "The queries that see column j begin with j itself.",
        least(1),
    ),
    Mistake(
        "column_mean",
        averages_rows,
        "Rows are averaged, which only says how many keys a query has.",
        "A sink is a column: average over queries.",
        least(2),
    ),
    Mistake(
        "column_mean",
        takes_the_largest,
        "One query that looks at a column is enough.",
        "Average over the queries.",
        least(2),
    ),
)
_VIEWS = (
    Mistake(
        "view",
        sees_everything,
        "The sinks of a row are found with later queries.",
        "Row i knows the queries up to i.",
        _causal,
    ),
    Mistake(
        "view",
        sees_one_less,
        "A row is decided without its own query.",
        "The mean over the queries j … i has i in it.",
        _causal,
    ),
)
_LIMITS = (
    Mistake(
        "limit",
        alpha_as_it_is,
        "α itself is the threshold.",
        "α counts equal shares: the threshold is α/T.",
        _relative,
    ),
    Mistake(
        "limit",
        share_over_alpha,
        "The equal share is divided by α.",
        "A sink receives α times the equal share: α/T.",
        _relative,
    ),
)
_SPARED = (
    Mistake(
        "spared",
        spares_none,
        "The first sink is calibrated too.",
        "Leave out the first: the model needs one place for mass that means nothing.",
        least(2),
    ),
    Mistake(
        "spared",
        spares_the_last,
        "The last sink is spared.",
        "Leave out the first sink.",
        least(3),
    ),
    Mistake(
        "spared",
        spares_all_but_the_first,
        "Only the first sink is calibrated.",
        "Calibrate all but the first.",
        least(2),
    ),
    Mistake(
        "spared",
        spares_column_zero,
        "Column 0 is spared, detected or not.",
        "The first detected column is spared; where token 0 is no sink, that is a later one.",
        least(3),
    ),
)
_SCALED = (
    Mistake(
        "scaled",
        renormalises,
        "Sinks are scaled and the whole row is normalised again, which gives the sinks part of their mass back.",
        "The freed mass goes to the kept columns only: a sink ends at β times what it had.",
        least(2),
    ),
    Mistake(
        "scaled",
        loses_the_mass,
        "What is taken from the sinks is lost: rows no longer sum to 1.",
        "Share (1 − β) mass among the kept columns.",
        least(2),
    ),
    Mistake(
        "scaled",
        removes_beta,
        "β is what is taken.",
        "β is what stays.",
        least(2),
    ),
    Mistake(
        "scaled",
        gives_what_stays,
        "The kept columns are given β mass.",
        "The sinks keep β mass; (1 − β) mass is shared.",
        least(2),
    ),
    Mistake(
        "scaled",
        shares_equally,
        "Every kept column is given the same.",
        "Share in proportion to what the kept columns have.",
        least(3),
    ),
    Mistake(
        "scaled",
        fills_the_first,
        "The freed mass goes to token 0.",
        "Share it among all kept columns.",
        least(3),
    ),
    Mistake(
        "scaled",
        shares_by_weight,
        "Shares are the weights themselves, which sum to less than 1.",
        "Divide by the sum of the kept weights.",
        least(2),
    ),
)
_SOFTENED = Mistake(
    "scaled",
    changes_without_sinks,
    "The kept columns are put through a softmax once more.",
    "Weights are probabilities already: divide them by their sum.",
    least(3),
)
_UNABLE = (
    Mistake(
        "unable",
        divides_by_nothing,
        "Rows whose columns are all sinks are 0/0.",
        "Where nothing is kept, leave the row unchanged.",
        lambda case: tokens(case) >= 1 and bool(case.arrays["sinks"].all(-1).any()),
    ),
    Mistake(
        "unable",
        empties_full_rows,
        "Rows whose sinks hold everything lose the freed mass.",
        "Where nothing is kept, leave the row unchanged.",
        least(1),
    ),
)

RECEIVED_BUGS = tuple(m.planted(receiving) for m in (*_MEANS, *_VIEWS))
DETECT_BUGS = (
    *(m.planted(detecting, "detection_") for m in (*_MEANS, _VIEWS[0], *_LIMITS)),
    Mistake(
        "above",
        detects_ties,
        "A column at the threshold is a sink.",
        "More than the threshold: the comparison is strict.",
        least(1),
    ).planted(detecting),
    Mistake(
        "above",
        detects_the_quiet,
        "Columns below the threshold are sinks.",
        "A sink receives more than the threshold.",
        least(1),
    ).planted(detecting),
)
PROTECTED_BUGS = (
    *(m.planted(protecting) for m in _SPARED),
    Mistake(
        "spared_start",
        spares_first_found,
        "The first detected column is spared whatever is asked for.",
        "With ``token0`` a first sink further on is calibrated.",
        having("protect", "token0"),
    ).planted(protecting),
)
MAP_BUGS = tuple(m.planted(calibrating) for m in (*_SCALED, *_UNABLE))
ROW_BUGS = tuple(m.planted(calibrating_rows, "row_") for m in (*_SCALED, *_UNABLE))


def _batch(case: Case) -> bool:
    return tokens(case) >= 3 and case.arrays["weights"].shape[0] > 1


def _several_heads(case: Case) -> bool:
    return tokens(case) >= 3 and case.arrays["weights"].shape[1] > 1


def _selective(case: Case) -> bool:
    return tokens(case) >= 3 and case.options.get("heads") is not None


ACT_BUGS = (
    *(m.planted(acting, "act_") for m in (*_MEANS[:2], *_VIEWS, *_LIMITS, *_SPARED, *_SCALED[:3])),
    _SOFTENED.planted(acting),
    Mistake(
        "by_map",
        sinks_of_the_first_sequence,
        "All sequences of a batch are calibrated at the sinks of the first.",
        "Each batch element has its own sinks.",
        _batch,
    ).planted(acting),
    Mistake(
        "by_map",
        sinks_of_any_head,
        "A sink of any head is calibrated in all.",
        "Each head has its own sinks.",
        _several_heads,
    ).planted(acting),
    Mistake(
        "is_chosen",
        calibrates_all,
        "Every head is calibrated.",
        "Calibrate the chosen heads; the others come back as they are.",
        _selective,
    ).planted(acting),
    Mistake(
        "is_chosen",
        counts_from_one,
        "Heads are counted from 1.",
        "Heads are counted from 0.",
        _selective,
    ).planted(acting),
    Mistake(
        "is_chosen",
        calibrates_the_others,
        "The chosen heads are spared.",
        "The chosen heads are those that are calibrated.",
        _selective,
    ).planted(acting),
)
