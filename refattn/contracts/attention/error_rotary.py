"""How far rounding may move a rotary embedding: the error of the angle, of the tables and of two products.

Equation source: the attention sheet, section 2.8, 'RoPE'; the statistical scale is [our definition]: every term of the
bound as an independent rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.budget import Budget, row_norm
from refattn.conformance.precision import Precision, precision_class, round_to
from refattn.contracts.attention.error_steps import scale_of
from refattn.primitives.rotary import rope_angles, rope_frequencies
from refattn.primitives.rotary_embedding import rotary_embedding

if TYPE_CHECKING:
    from refattn.conformance.contract import Case

__all__ = ["rope_budget"]


def rope_budget(case: Case, precision: Precision | str | None = None) -> dict[str, Budget]:
    """Return the budget of a case of `rotary_embedding`.

    Parameters
    ----------
    case : Case
        Arrays x and positions; options of `refattn.primitives.rotary_embedding.rotary_embedding`.
    precision : Precision or str, optional
        The declared class, or its name.

    Returns
    -------
    dict of str to Budget
        Tables are those of float32 (of float64 in float64). Channels that pass have bound 0: they must be bit-equal.
    """
    u = precision if isinstance(precision, Precision) else precision_class(precision, case.dtype)
    x, options = case.arrays["x"], dict(case.options)
    width = options.get("rotary_dim") or x.shape[-1]
    given = {name: options[name] for name in ("theta", "scaling", "length") if name in options}
    freqs, factor = rope_frequencies(width, **given)
    angles = rope_angles(case.arrays["positions"], freqs)
    y = rotary_embedding(x, case.arrays["positions"], **options)
    interleaved = bool(options.get("interleaved"))
    a, b = _pairs(x[..., :width], interleaved=interleaved)
    cos, sin = np.abs(factor * np.cos(angles)), np.abs(factor * np.sin(angles))
    bound, variance = _errors(np.abs(a), np.abs(b), cos, sin, angles, factor, u)
    low = _twin(a, b, angles * (-1.0 if options.get("inverse") else 1.0), factor, u)

    def placed(first: np.ndarray, second: np.ndarray, rest: np.ndarray) -> np.ndarray:
        return _joined(first, second, np.broadcast_to(rest, (*y.shape[:-1], x.shape[-1] - width)), interleaved)

    zeros = np.zeros(1)
    sigma = placed(scale_of(variance[0], u), scale_of(variance[1], u), zeros)
    distance = np.nan_to_num(placed(*low, y[..., width:]) - y)
    lines = (
        f"class {u.name} of {u.dtype}; bound = (|a| + |b|)(f delta + u f) + 3 u (|a|(|c| + e) + |b|(|s| + e)) + "
        f"{u.eta_o:.3g}\nu = {u.u_o:.3g}; delta = 8 u_t |angle| + 2 u_t, the angle error of tables with u_t = "
        f"{_table(u):.3g}; f = {factor:.4g}; e = f (delta + u); channels that pass are exact"
    )
    return {
        "out": Budget(
            y, placed(*bound, zeros), sigma * (np.sqrt(2.0) if u.dtype == "float64" else 1.0), row_norm(distance),
            flush=u.flush_floor(2), terms=2, precision=u, derivation=lines,
        )
    }  # fmt: skip


def _table(u: Precision) -> float:
    """Return the unit roundoff of the tables of angles: float32 unless everything is float64."""
    return 2.0**-53 if u.dtype == "float64" else 2.0**-24


def _errors(
    a: np.ndarray, b: np.ndarray, cos: np.ndarray, sin: np.ndarray, angles: np.ndarray, factor: float, u: Precision
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the bounds and the variances × 3 of both members of each pair."""
    f, table = abs(factor), _table(u)
    delta = np.minimum(8 * table * np.abs(angles), 2.0) + 2 * table
    e = f * (delta + u.u_o)
    common = (a + b) * (f * delta + u.u_o * f)
    first = common + 3 * u.u_o * (a * (cos + e) + b * (sin + e)) + u.eta_o
    second = common + 3 * u.u_o * (a * (sin + e) + b * (cos + e)) + u.eta_o
    own = 2.0**-53 * 8 * (a + b) * f * (1 + np.abs(angles))
    turned = (f * delta) ** 2 * (a**2 + b**2) + u.u_o**2 * f**2 * (a**2 + b**2)
    v_first = turned + 3 * u.u_o**2 * ((a * cos) ** 2 + (b * sin) ** 2) + u.u_o**2 * (a * cos + b * sin) ** 2
    v_second = turned + 3 * u.u_o**2 * ((a * sin) ** 2 + (b * cos) ** 2) + u.u_o**2 * (a * sin + b * cos) ** 2
    return (first + own, second + own), (v_first, v_second)


def _twin(
    a: np.ndarray, b: np.ndarray, angles: np.ndarray, factor: float, u: Precision
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate with every table, product and sum rounded to the dtype."""

    def to(x: Any) -> np.ndarray:
        return round_to(x, u.dtype)

    turned = angles if u.dtype == "float64" else round_to(angles, "float32")
    cos, sin = to(factor * np.cos(turned)), to(factor * np.sin(turned))
    return to(to(a * cos) - to(b * sin)), to(to(a * sin) + to(b * cos))


def _pairs(x: np.ndarray, *, interleaved: bool) -> tuple[np.ndarray, np.ndarray]:
    half = x.shape[-1] // 2
    return (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])


def _joined(first: np.ndarray, second: np.ndarray, rest: np.ndarray, interleaved: bool) -> np.ndarray:
    if not interleaved:
        return np.concatenate([first, second, rest], axis=-1)
    pairs = np.stack([first, second], axis=-1)
    return np.concatenate([pairs.reshape(*pairs.shape[:-2], -1), rest], axis=-1)
