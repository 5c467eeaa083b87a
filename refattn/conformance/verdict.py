"""Right, wrong, or only rounded: judge an output against a budget derived from its own case.

Equation source: the attention sheet, section 2.8, Step E. A budget says, for every element of an output, how far
rounding may move it at worst (the bound) and typically (sigma). Seven rules turn the two into a verdict:

1. shape, dtype, and NaN and infinities exactly where the reference has them; nothing matches NaN but NaN
2. empty rows equal to the declared policy, exactly
3. element: ``|o - y| <= B``
4. row: ``||o - y|| <= T = max(1.5 (||sigma|| + t max sigma), 4 ||twin - y||)``, ``t = sqrt(2 ln(N / 1e-6))``;
   where a budget says that elements of a row err together, their common scale takes the place of max sigma if larger
5. pooled: the root mean square over closed rows of ``||o - y|| / max(||sigma||, ||twin - y||)`` is at most 2, or what
   a budget says where rows err together, or what N rows reach by chance, ``1 + sqrt(2 ln(1e6) / N)``, where that is
   more [our definition]: it is below 28 rows
6. open rows, which the declared precision cannot certify, are left out of 4 and 5; more than half open is inconclusive
7. what fails 3 to 5 but passes once subnormals may be flushed to zero is acceptable
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.conformance.budget import CASE_ALARM, Budget, Rows, in_rows, limits_of, row_limits, row_norm
from refattn.conformance.precision import Precision, overflow_threshold

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Budget", "Verdict", "candidates", "degenerate", "judge", "row_limits", "self_check", "with_double_error"]

OPEN_SHARE = 0.5  # more than this share of open rows leaves a case inconclusive
EFFECTIVE = 16.0  # in units of u: how far a candidate must lie from the reference before it has to be rejected

RULES = {
    "shape": "1 shape: the output has not the shape of the reference",
    "dtype": "1 dtype: the output has not the dtype of the case",
    "finite": "1 non-finite: NaN or infinity is not exactly where the reference has it",
    "empty": "2 empty rows: a row that sees nothing differs from the declared policy",
    "exact": "3 exact: an integer or boolean output differs from the reference",
    "element": "3 element: an error exceeds the bound B",
    "row": "4 row: the error of a row exceeds its limit T",
    "pooled": "5 pooled: the errors of all rows together are larger than rounding makes them",
    "open": "6 open rows: the declared precision cannot certify more than half of the rows",
    "flush": "7 flushed subnormals: the errors are those of a device that flushes subnormal numbers to zero",
}


class Verdict(NamedTuple):
    """What the seven rules say about one output.

    Attributes
    ----------
    status : str
        ``pass``, ``fail``, ``acceptable`` or ``inconclusive``.
    rule : str
        The rule that decided, in words; empty for a pass.
    measured, limit : float
        The number that decided and what it may be.
    where : tuple of int
        Index of the deciding element or row.
    report : dict
        ``element`` (worst error over bound), ``row`` (worst row error over limit), ``pooled``, ``relative_l2`` and
        ``cosine`` (worst row), ``correlation``, ``open`` (share of rows), ``terms``, ``precision``, ``dtype``.
    """

    status: str
    rule: str = ""
    measured: float = 0.0
    limit: float = 0.0
    where: tuple[int, ...] = ()
    report: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default; verdicts are never written to

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        if not self.rule:
            return self.status
        return (
            f"{self.status}: rule {self.rule} (measured {self.measured:.3g}, limit {self.limit:.3g}, at {self.where})"
        )


def _ratio(measured: Any, limit: Any) -> np.ndarray:
    """``measured / limit`` where 0 / 0 is 0 and anything else over 0 is infinite."""
    measured, limit = np.broadcast_arrays(np.asarray(measured, np.float64), np.asarray(limit, np.float64))
    bare = np.where(measured > 0, np.inf, 0.0)
    fair = (limit > 0) & np.isfinite(limit) & np.isfinite(measured)
    return np.asarray(np.divide(measured, limit, out=bare, where=fair))


@np.errstate(all="ignore")  # outputs on trial may hold anything
def judge(actual: Any, budget: Budget, *, dtype: str | None = None) -> Verdict:
    """Judge one output by the seven rules.

    Parameters
    ----------
    actual : array_like
        The backend's output, in any dtype that converts to float64.
    budget : Budget
        What it should be.
    dtype : str, optional
        The dtype that the backend returned, if the array handed over no longer shows it. It must be the case's.

    Returns
    -------
    Verdict
    """
    o, y = np.asarray(actual), np.asarray(budget.expected)
    if o.shape != y.shape:
        return Verdict("fail", f"{RULES['shape']}: {o.shape} for {y.shape}", report=_identity(budget))
    if dtype is not None and not _same_dtype(dtype, y, budget.precision):
        return Verdict("fail", f"{RULES['dtype']}: {dtype} for {_dtype_of(y, budget)}", report=_identity(budget))
    if y.dtype.kind in "biu":
        return _judge_exact(o, budget)
    if o.dtype.kind == "c" or o.dtype == object:
        return Verdict("fail", f"{RULES['dtype']}: {o.dtype}", report=_identity(budget))
    rows = in_rows(budget)
    return _judge_rows(o.astype(np.float64).reshape(rows.y.shape), rows, budget)


def _dtype_of(y: np.ndarray, budget: Budget) -> str:
    return {"b": "bool", "i": "an integer", "u": "an integer"}.get(y.dtype.kind, budget.precision.dtype)


def _same_dtype(dtype: str, y: np.ndarray, precision: Precision) -> bool:
    if y.dtype.kind in "iu":
        return dtype.startswith(("int", "uint"))
    return dtype == ("bool" if y.dtype.kind == "b" else precision.dtype)


def _identity(budget: Budget) -> dict[str, Any]:
    return {"terms": budget.terms, "precision": budget.precision.name, "dtype": budget.precision.dtype}


def _judge_exact(o: np.ndarray, budget: Budget) -> Verdict:
    rows = in_rows(budget)
    differs = (o.reshape(rows.y.shape) != np.asarray(budget.expected).reshape(rows.y.shape)) & ~rows.open[:, None]
    share = float(np.mean(rows.open)) if rows.open.size else 0.0
    report = {**_identity(budget), "differing": int(differs.sum()), "open": share}
    if differs.any():
        return Verdict("fail", RULES["exact"], float(differs.sum()), 0.0, _where(differs, o.shape), report)
    if share > OPEN_SHARE:
        return Verdict("inconclusive", RULES["open"], share, OPEN_SHARE, (), report)
    return Verdict("pass", report=report)


def _where(measure: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Index of the largest entry, in the output's own shape."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(measure)), shape)) if measure.size and shape else ()


def _judge_rows(o: np.ndarray, rows: Rows, budget: Budget) -> Verdict:
    full = np.shape(budget.expected)
    report = _identity(budget)
    judged = ~rows.empty[:, None] & np.isfinite(rows.bound)
    misplaced = _misplaced(o, rows, budget.precision) & judged
    if misplaced.any():
        report["misplaced"] = int(misplaced.sum())
        return Verdict("fail", RULES["finite"], float(misplaced.sum()), 0.0, _where(misplaced, full), report)
    broken = rows.empty[:, None] & ~((o == rows.y) | (np.isnan(o) & np.isnan(rows.y)))
    if broken.any():
        report["broken"] = int(broken.sum())
        return Verdict("fail", RULES["empty"], float(broken.sum()), 0.0, _where(broken, full), report)

    error = np.zeros_like(o)
    np.subtract(o, rows.y, out=error, where=judged & np.isfinite(o) & np.isfinite(rows.y))
    failure = _measure(error, rows, full, report, floor=False)
    _describe(o, error, rows, report)
    if failure is not None:
        if not np.any(rows.flush > 0) or _measure(error, rows, full, {}, floor=True) is not None:
            return failure
        failure = failure._replace(status="acceptable", rule=RULES["flush"])
    if report["open"] > OPEN_SHARE:
        return Verdict("inconclusive", RULES["open"], report["open"], OPEN_SHARE, (), report)
    return failure or Verdict("pass", report=report)


def _misplaced(o: np.ndarray, rows: Rows, precision: Precision) -> np.ndarray:
    """Rule 1: entries whose NaN or infinity is not the reference's, but for overflow of the dtype itself."""
    same = (np.isnan(o) == np.isnan(rows.y)) & (np.isposinf(o) == np.isposinf(rows.y))
    same &= np.isneginf(o) == np.isneginf(rows.y)
    finite = np.isfinite(rows.y)
    magnitude = np.abs(np.where(finite, rows.y, 0.0))
    overflow = finite & (magnitude + rows.bound >= overflow_threshold(precision.dtype)) & np.isinf(o)
    misplaced: np.ndarray = ~same & ~(overflow & (np.sign(o) == np.sign(rows.y)))
    return misplaced


def _measure(
    error: np.ndarray, rows: Rows, full: tuple[int, ...], report: dict[str, Any], *, floor: bool
) -> Verdict | None:
    """Rules 3 to 5, with or without the floor of rule 7; writes what it measures into ``report``."""
    flush = rows.flush if floor else np.zeros_like(rows.flush)
    closed = ~rows.open & ~rows.empty
    size, norm, slack = np.abs(error), row_norm(error), row_norm(flush)
    limit = limits_of(rows) + slack
    scale = np.maximum(row_norm(rows.sigma), rows.twin)
    element = _ratio(size, rows.bound + flush)
    row = np.where(closed, _ratio(norm, limit), 0.0)
    share = np.where(closed, _ratio(np.maximum(norm - slack, 0.0), scale), 0.0)
    pooled = float(np.sqrt(np.mean(share[closed] ** 2))) if closed.any() else 0.0
    report["element"] = float(np.max(element, initial=0.0))
    report["row"] = float(np.max(row, initial=0.0))
    report["pooled"] = pooled
    report["open"] = float(np.mean(rows.open[~rows.empty])) if (~rows.empty).any() else 0.0
    if report["element"] > 1.0:
        at = int(np.argmax(element))
        worst, allowed = float(size.flat[at]), float((rows.bound + flush).flat[at])
        return Verdict("fail", RULES["element"], worst, allowed, _where(element, full), report)
    if report["row"] > 1.0:
        at = int(np.argmax(row))
        return Verdict("fail", RULES["row"], float(norm[at]), float(limit[at]), _where(row, rows.shape), report)
    most = max(rows.pooled_limit, _reach(int(closed.sum())))
    if pooled > most:
        return Verdict("fail", RULES["pooled"], pooled, most, _where(share, rows.shape), report)
    return None


def _reach(rows: int) -> float:
    """How far the root mean square of so few independent rows strays by chance: below 28 rows, further than 2."""
    return 1.0 + float(np.sqrt(2.0 * np.log(1.0 / CASE_ALARM) / max(rows, 1)))


def _describe(o: np.ndarray, error: np.ndarray, rows: Rows, report: dict[str, Any]) -> None:
    """Relative L2 and cosine of the worst row, and the correlation of everything: reported, never judged."""
    fair = np.isfinite(o) & np.isfinite(rows.y) & ~rows.empty[:, None]
    a, b = np.where(fair, o, 0.0), np.where(fair, rows.y, 0.0)
    norm_a, norm_b = row_norm(a), row_norm(b)
    unit_a = np.divide(a, norm_a[:, None], out=np.zeros_like(a), where=norm_a[:, None] > 0)
    unit_b = np.divide(b, norm_b[:, None], out=np.zeros_like(b), where=norm_b[:, None] > 0)
    cosine = np.where((norm_a == 0) & (norm_b == 0), 1.0, np.sum(unit_a * unit_b, axis=1))
    report["relative_l2"] = float(np.max(_ratio(row_norm(error), norm_b), initial=0.0))
    report["cosine"] = float(np.min(cosine, initial=1.0))
    report["correlation"] = _correlation(a[fair], b[fair])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if not a.size:
        return 1.0
    largest = max(float(np.max(np.abs(a))), float(np.max(np.abs(b)))) or 1.0
    a, b = a / largest, b / largest
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / spread if spread > 0 else float(np.array_equal(a, b))


@np.errstate(all="ignore")
def with_double_error(actual: Any, budget: Budget) -> np.ndarray:
    """Return y + 2 (o − y), twice as far from the reference; what is not finite, or no float, stays as it is."""
    o, y = np.asarray(actual), np.asarray(budget.expected)
    if o.shape != y.shape or o.dtype.kind != "f" or y.dtype.kind != "f":
        return o
    o = o.astype(np.float64)
    return np.where(np.isfinite(o) & np.isfinite(y), 2.0 * o - y, o)


def candidates(expected: np.ndarray) -> dict[str, np.ndarray]:
    """Return outputs of functions that do no work, which a sound case must reject.

    ``zeros``; ``mean``, every row the mean of its neighbours along the second-to-last axis; ``reversed``, the axis
    before that (heads, or batch entries) in reverse order.
    """
    found = {"zeros": np.zeros_like(expected)}
    if expected.ndim > 1 and expected.shape[-2] > 1:
        mean = np.mean(expected, axis=-2, keepdims=True, dtype=np.float64)
        found["mean"] = np.broadcast_to(mean, expected.shape)
    if expected.ndim > 2 and expected.shape[-3] > 1:
        found["reversed"] = np.flip(expected, axis=-3)
    return found


def degenerate(budget: Budget) -> bool:
    """Whether the case can show nothing: a reference that is nowhere finite, or zero in every row that is not empty."""
    y = np.asarray(budget.expected)
    if y.dtype.kind in "biu" or not y.size:
        return False
    rows = in_rows(budget)
    values = rows.y[~rows.empty]
    return bool(values.size) and not np.any(np.isfinite(values) & (values != 0))


@np.errstate(all="ignore")
def self_check(budget: Budget, wrong: Mapping[str, np.ndarray] | None = None) -> tuple[str, ...]:
    """Return why a case proves nothing: the reasons to refuse it, none for a sound case.

    Parameters
    ----------
    budget : Budget
        The budget of one output of the case.
    wrong : mapping of str to ndarray, optional
        Outputs that must be rejected; `candidates` of the expected output if not given. A candidate that lies within
        16 u of the reference in relative L2 is not effective and need not be rejected.

    Returns
    -------
    tuple of str
        One sentence a reason.
    """
    y = np.asarray(budget.expected)
    if degenerate(budget):
        return ("the reference is nowhere finite and different from zero",)
    if y.dtype.kind in "biu" or not y.size:
        return ()
    rows = in_rows(budget)
    keep = np.isfinite(rows.y) & ~rows.empty[:, None]
    size = row_norm(np.where(keep, rows.y, 0.0).reshape(1, -1))[0]
    reasons = []
    for name, output in (candidates(y) if wrong is None else wrong).items():
        values = np.asarray(output, np.float64).reshape(rows.y.shape)
        values = np.where(keep, values, rows.y)
        difference = np.subtract(values, rows.y, out=np.zeros_like(values), where=keep & np.isfinite(values))
        distance = row_norm(difference.reshape(1, -1))[0]
        effective = distance > EFFECTIVE * budget.precision.u_o * size
        if effective and judge(values.reshape(y.shape), budget).status == "pass":
            reasons.append(f"the output '{name}' passes although it is off by {distance / size:.2g} in relative L2")
    return tuple(reasons)
