"""Operations on cases that laws are made of: pick, repeat or append along a named axis, replace what is hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.precision import round_to
from refattn.contracts.attention.call import Call, sizes

if TYPE_CHECKING:
    from refattn.conformance.contract import Case, Probe

__all__ = [
    "AXES",
    "allowed",
    "append_keys",
    "group_heads",
    "has",
    "on_grid",
    "order_free_keys",
    "order_free_queries",
    "positional",
    "positions",
    "take",
    "whole",
]

_SCORES = ("B", "Hq", "Sq", "Sk")
AXES: dict[str, tuple[str, ...]] = {
    "q": ("B", "Hq", "Sq", "d"),
    "k": ("B", "Hkv", "Sk", "d"),
    "v": ("B", "Hkv", "Sk", "dv"),
    "dout": ("B", "Hq", "Sq", "dv"),
    "dlse": ("B", "Hq", "Sq"),
    "mask": _SCORES,
    "bias": _SCORES,
    "kv_lengths": ("B",),
    "q_lengths": ("B",),
    "doc_q": ("B", "Sq"),
    "doc_k": ("B", "Sk"),
    "alibi_slopes": ("B", "Hq"),
    "sinks": ("Hq",),
}


def has(case: Case, *names: str) -> bool:
    """Return whether the case has one of these arrays or options, set to anything but off."""
    given = {**case.arrays, **case.options}
    return any(given.get(name) is not None and given.get(name) is not False for name in names)


def positional(case: Case) -> bool:
    """Return whether positions matter to the case."""
    window = case.options.get("window", (None, None))
    return has(case, "causal", "alibi_slopes", "chunk") or any(side is not None for side in window)


def whole(case: Case) -> bool:
    """Return whether the case has its heads first, so that axes can be named."""
    return bool(case.options.get("layout", "bhsd") == "bhsd")


def order_free_keys(case: Case) -> bool:
    """Return whether the keys may be permuted, repeated and split."""
    return whole(case) and not positional(case) and not has(case, "kv_lengths")


def order_free_queries(case: Case) -> bool:
    """Return whether the queries may be permuted."""
    return whole(case) and not positional(case) and not has(case, "q_lengths")


def _full(case: Case) -> dict[str, int]:
    s = sizes(case)
    return {"B": s.batch, "Hq": s.hq, "Hkv": s.hkv, "Sq": s.sq, "Sk": s.sk, "d": s.d, "dv": s.dv}


def take(case: Case, axis: str, index: Any) -> Case:
    """Return the case with the given entries of one axis, in every array that has it.

    Parameters
    ----------
    case : Case
        Of `attention` or `attention_vjp`, heads first.
    axis : str
        Name of an axis in `AXES`.
    index : array_like of int
        Which entries; repetition is allowed.
    """
    full, changed = _full(case)[axis], {}
    for name, x in case.arrays.items():
        names = AXES.get(name, ())[-x.ndim :] if x.ndim else ()
        if axis in names and x.shape[names.index(axis)] == full:
            changed[name] = np.take(x, index, axis=names.index(axis))
    return case.having(**changed)


def append_keys(case: Case, rng: np.random.Generator, count: int) -> Case:
    """Return the case with loud keys at the end that no mask lets through; lengths stay as they are."""
    sk = sizes(case).sk
    longer = take(case, "Sk", np.resize(np.arange(sk), sk + count))
    k, v = longer.arrays["k"].copy(), longer.arrays["v"].copy()
    k[:, :, sk:] = round_to(10.0 * rng.standard_normal(k[:, :, sk:].shape), case.dtype)
    v[:, :, sk:] = round_to(100.0 * rng.standard_normal(v[:, :, sk:].shape), case.dtype)
    changed = {"k": k, "v": v}
    if has(case, "mask"):
        changed["mask"] = longer.arrays["mask"].copy()
        changed["mask"][..., sk:] = False
    return longer.having(**changed)


def positions(case: Case) -> np.ndarray:
    """Return the position of every query among the keys: (B, Sq)."""
    names = ("align", "kv_lengths", "q_lengths")
    given = {name: x for name, x in {**case.arrays, **case.options}.items() if name in names}
    p = Call.of(case.arrays["q"], case.arrays["k"], case.arrays["v"], **given).p[:, 0, :, 0]
    return np.broadcast_to(p, (sizes(case).batch, p.shape[-1]))


def group_heads(case: Case, x: np.ndarray) -> np.ndarray:
    """Lay query heads out by kv head: (B, Hq, ...) to (B, Hkv, G, ...)."""
    hkv = sizes(case).hkv
    return x.reshape(x.shape[0], hkv, x.shape[1] // hkv, *x.shape[2:])


def on_grid(x: np.ndarray) -> np.ndarray:
    """Return the numbers as multiples of 1/8 within ±4, of which any dtype holds sums of two exactly; −∞ stays."""
    return np.where(np.isneginf(x), x, np.round(8.0 * np.clip(x, -4.0, 4.0)) / 8.0)


def allowed(probe: Probe, *cases: Case) -> Any:
    """Return the row-wise error that rounding may cause in the outputs of these cases together."""
    return sum(probe.slack(case)["out"] for case in cases)
