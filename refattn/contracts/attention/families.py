"""Value families: nine ways to fill queries, keys and values, each made to show a kind of mistake.

Equation source: the attention sheet, section 5.2. Random normal numbers alone let a kernel pass that forgets the row
maximum; these do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAMILIES", "Projections", "project", "with_component"]

# 2 to this power times a normal number is subnormal in the dtype, yet some steps above zero
_SUBNORMAL_EXPONENT = {"float64": -1028, "float32": -132, "float16": -17, "bfloat16": -129}


class Projections(NamedTuple):
    """Queries (B, Hq, Sq, d), keys (B, Hkv, Sk, d) and values (B, Hkv, Sk, dv) of one case."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray


def with_component(x: np.ndarray, component: np.ndarray | float) -> np.ndarray:
    """Return the rows of ``x`` with their component along û = (1, …, 1)/√d replaced.

    Parameters
    ----------
    x : ndarray, shape (..., S, d)
        Rows to change.
    component : ndarray, shape (S,), or float
        The new component of each row.

    Returns
    -------
    ndarray, shape (..., S, d)
    """
    unit = 1.0 / np.sqrt(x.shape[-1])  # every entry of û
    missing = np.asarray(component) - x.sum(axis=-1) * unit  # (..., S)
    return np.asarray(x + missing[..., None] * unit)


def _normal(x: Projections, _rng: np.random.Generator, _dtype: str) -> Projections:
    """Everything N(0, 1)."""
    return x


def _uniform(x: Projections, rng: np.random.Generator, _dtype: str) -> Projections:
    """Everything in [0, 1): the negative control; no sign is ever tested."""
    return Projections(*(rng.random(part.shape) for part in x))


def _peaky(x: Projections, _rng: np.random.Generator, _dtype: str) -> Projections:
    """Large scores, so that one key takes most of a row."""
    return x._replace(q=2.5 * x.q, k=2.5 * x.k)


def _tied(x: Projections, rng: np.random.Generator, _dtype: str) -> Projections:
    """Three different keys only, in half-integers: equal scores everywhere."""
    three = np.round(2.0 * rng.standard_normal((*x.k.shape[:2], 3, x.k.shape[-1]))) / 2.0
    choice = rng.integers(0, 3, x.k.shape[-2])
    return x._replace(q=np.round(2.0 * x.q) / 2.0, k=three[:, :, choice])


def _rowshift(x: Projections, _rng: np.random.Generator, dtype: str) -> Projections:
    """All scores of a row moved together by −a, 0 or +a: softmax ignores it, exponentials without a maximum do not."""
    a, d = (1500.0 if dtype == "float64" else 250.0), x.q.shape[-1]
    size = np.sqrt(a * np.sqrt(d))
    turns = np.arange(x.q.shape[-2]) % 3 - 1.0
    return x._replace(q=with_component(x.q, size * turns), k=with_component(x.k, size))


def _cancel(x: Projections, rng: np.random.Generator, _dtype: str) -> Projections:
    """Large terms, small sums: the second half of the keys repeats the first with nearly opposite values."""
    half = x.k.shape[-2] // 2
    first, second = np.s_[:, :, :half], np.s_[:, :, half : 2 * half]
    k, v = x.k.copy(), 30.0 * x.v
    k[second] = k[first]
    v[second] = -v[first] + 0.03 * rng.standard_normal(v[first].shape)
    return x._replace(k=k, v=v)


def _spiky(x: Projections, rng: np.random.Generator, _dtype: str) -> Projections:
    """Values whose size differs by three orders of magnitude between keys."""
    return x._replace(v=x.v * 10.0 ** rng.uniform(-1.5, 1.5, (*x.v.shape[:-1], 1)))


def _ramp(x: Projections, _rng: np.random.Generator, _dtype: str) -> Projections:
    """Later keys are better matches and hold larger values: whatever leaks from them is loud."""
    ramp = np.linspace(-1.0, 1.0, x.k.shape[-2])
    v = x.v * (1.0 + 8.0 * (ramp[:, None] + 1.0))
    return Projections(with_component(x.q, 4.0), with_component(x.k, 4.0 * ramp), v)


def _subnormal(x: Projections, _rng: np.random.Generator, dtype: str) -> Projections:
    """Values below the smallest normal number: the test of flushing to zero, and of nothing else."""
    return x._replace(v=np.ldexp(x.v, _SUBNORMAL_EXPONENT[dtype]))


FAMILIES: dict[str, Callable[[Projections, np.random.Generator, str], Projections]] = {
    "normal": _normal,
    "uniform": _uniform,
    "peaky": _peaky,
    "tied": _tied,
    "rowshift": _rowshift,
    "cancel": _cancel,
    "spiky": _spiky,
    "ramp": _ramp,
    "subnormal": _subnormal,
}


def project(
    rng: np.random.Generator,
    family: str,
    dtype: str,
    *,
    q: tuple[int, int, int, int],
    k: tuple[int, int, int, int],
    dv: int,
) -> Projections:
    """Draw queries, keys and values of one family.

    Parameters
    ----------
    rng : Generator
        The only source of randomness.
    family : str
        A key of `FAMILIES`.
    dtype : str
        Dtype of the case; some families depend on its range. The numbers are not rounded to it yet.
    q, k : tuple of int
        Shapes (B, Hq, Sq, d) and (B, Hkv, Sk, d).
    dv : int
        Width of the values.

    Returns
    -------
    Projections
    """
    plain = Projections(rng.standard_normal(q), rng.standard_normal(k), rng.standard_normal((*k[:-1], dv)))
    return FAMILIES[family](plain, rng, dtype)
