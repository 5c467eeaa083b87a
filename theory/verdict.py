"""Measured beside predicted: one line for each prediction, with the bound that the difference must keep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Check", "above", "below", "between", "close", "within_noise"]


@dataclass(frozen=True)
class Check:
    """One prediction, what was measured, and whether the two agree.

    Attributes
    ----------
    name : str
        What is predicted, with the parameters that matter.
    measured, predicted : float
        The two numbers; for a range ``predicted`` is its middle.
    stderr : float
        Standard error of the measurement; NaN where nothing was sampled.
    distance : float
        How far the two are apart, in the unit that ``bound`` is in.
    bound : float
        The largest distance that agrees.
    unit : str
        ``"z"``, ``"relative"``, ``"absolute"``, ``"range"``, ``"above"`` or ``"below"``.
    """

    name: str
    measured: float
    predicted: float
    stderr: float
    distance: float
    bound: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the distance keeps the bound; a NaN anywhere does not."""
        return bool(self.distance <= self.bound)

    @property
    def verdict(self) -> str:
        """``holds`` or ``FAILS``."""
        return "holds" if self.holds else "FAILS"


def within_noise(name: str, measured: float, predicted: float, stderr: float, *, z: float = 4.0) -> Check:
    """Predict a mean: measured and predicted differ by at most ``z`` standard errors."""
    distance = _ratio(abs(measured - predicted), stderr)
    return Check(name, float(measured), float(predicted), float(stderr), float(distance), z, "z")


def close(
    name: str,
    measured: float,
    predicted: float,
    *,
    relative: float | None = None,
    absolute: float | None = None,
    stderr: float = np.nan,
) -> Check:
    """Predict a number up to a relative or an absolute bound, one of the two.

    Raises
    ------
    ValueError
        If not exactly one of ``relative`` and ``absolute`` is given.
    """
    if (relative is None) == (absolute is None):
        raise ValueError(f"relative={relative!r} and absolute={absolute!r}: give exactly one")
    difference = abs(measured - predicted)
    if absolute is not None:
        return Check(name, float(measured), float(predicted), stderr, float(difference), absolute, "absolute")
    assert relative is not None
    distance = _ratio(difference, abs(predicted))
    return Check(name, float(measured), float(predicted), stderr, distance, relative, "relative")


def between(name: str, measured: float, low: float, high: float, *, stderr: float = np.nan) -> Check:
    """Predict a range, its ends included."""
    middle, half = (low + high) / 2, (high - low) / 2
    outside = max(low - measured, measured - high, 0.0) if np.isfinite(measured) else np.nan
    return Check(name, float(measured), middle, stderr, outside + half, half, "range")


def above(name: str, measured: float, limit: float) -> Check:
    """Predict that a number is at least ``limit``."""
    return Check(name, float(measured), float(limit), np.nan, float(limit - measured), 0.0, "above")


def below(name: str, measured: float, limit: float) -> Check:
    """Predict that a number is at most ``limit``."""
    return Check(name, float(measured), float(limit), np.nan, float(measured - limit), 0.0, "below")


def _ratio(difference: float, unit: float) -> float:
    """Return a difference in units; a unit of nothing makes every difference infinite, and no difference zero."""
    if unit == 0:
        return np.inf if difference > 0 else float(difference)
    return float(difference / unit)
