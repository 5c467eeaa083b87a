"""The gradients of attention as a chain of replaceable float64 steps: the carrier of the planted gradient bugs.

Equation source: the attention sheet, R30 to R35. The forward pass is `pipeline`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refattn.contracts.attention.call import Call, each, heads_first
from refattn.contracts.attention.carriers import direct
from refattn.contracts.attention.pipeline import Steps, assigned, logits_of
from refattn.primitives.attention_gradients import Gradients

__all__ = ["GradientSteps", "Saved", "run_gradient"]

Step = Callable[..., Any]


class Saved(NamedTuple):
    """What the forward pass hands to the backward one: s and t, z, who is visible, P, L and o."""

    s: np.ndarray
    t: np.ndarray
    z: np.ndarray
    see: np.ndarray
    P: np.ndarray
    L: np.ndarray
    o: np.ndarray

    @property
    def none(self) -> np.ndarray:
        """Rows that see nothing, (B, Hq, Sq, 1)."""
        return np.isneginf(self.L)[..., None]


def recompute(_c: Call, saved: Saved) -> np.ndarray:
    """Return the weights of the backward pass."""
    return saved.P


def delta(dO: np.ndarray, saved: Saved) -> np.ndarray:
    """Return Δ_i = Σ_c dO_ic o_ic."""
    return np.asarray(np.sum(dO * saved.o, axis=-1, keepdims=True))


def softcap_slope(c: Call, saved: Saved) -> Any:
    """Return dt/ds = 1 − (t/cap)²."""
    return 1.0 - (saved.t / c.softcap) ** 2 if c.softcap else 1.0


def dq(c: Call, dS: np.ndarray) -> np.ndarray:
    """Return dQ = τ dS K."""
    return np.asarray(c.tau * (dS @ c.k))


def dk(c: Call, dS: np.ndarray) -> np.ndarray:
    """Return dK = τ dSᵀ Q of every query head."""
    return np.asarray(c.tau * (dS.swapaxes(-1, -2) @ c.q))


def dv(_c: Call, P: np.ndarray, dO: np.ndarray, _saved: Saved) -> np.ndarray:
    """Return dV = Pᵀ dO of every query head."""
    return np.asarray(P.swapaxes(-1, -2) @ dO)


def reduce_group(x: np.ndarray) -> np.ndarray:
    """Sum the query heads of a group: (B, Hkv, G, Sk, ·) to (B, Hkv, Sk, ·)."""
    return np.asarray(x.sum(axis=2))


def finish(grads: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dQ, dK and dV."""
    return grads


@dataclass(frozen=True)
class GradientSteps:
    """The steps of the backward pass in their order."""

    recompute: Step = recompute
    delta: Step = delta
    softcap_slope: Step = softcap_slope
    dq: Step = dq
    dk: Step = dk
    dv: Step = dv
    reduce_dk: Step = reduce_group
    reduce_dv: Step = reduce_group
    finish: Step = finish


def run_gradient(
    steps: GradientSteps,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    dout: np.ndarray,
    *,
    dlse: np.ndarray | None = None,
    layout: str = "bhsd",
    **options: Any,
) -> Gradients:
    """Compute the gradients of attention by ``steps``; arguments and results are those of the reference.

    Parameters
    ----------
    steps : GradientSteps
        `GradientSteps()` is right.
    q, k, v, dout, dlse, layout, **options
        As for `refattn.primitives.attention_gradients.attention_vjp`; float64.

    Returns
    -------
    Gradients
    """
    q, k, v, dO = (heads_first(x, layout) for x in (q, k, v, dout))
    with np.errstate(all="ignore"):
        c = assigned(Steps(), Call.of(q, k, v, **options))
        saved = _forward(c)
        P = steps.recompute(c, saved)
        # R31
        shift = steps.delta(dO, saved) - (0.0 if dlse is None else dlse[..., None])
        dZ = P * (dO @ c.v.swapaxes(-1, -2) - shift)
        dS = dZ * steps.softcap_slope(c, saved)  # R32
        raw = (
            steps.dq(c, dS),
            steps.reduce_dk(_grouped(steps.dk(c, dS), k.shape[1])),
            steps.reduce_dv(_grouped(steps.dv(c, _filled(c, P, saved), dO, saved), k.shape[1])),
        )
        dQ, dK, dV = (heads_first(x, layout) for x in steps.finish(raw))
    return Gradients(dQ, dK, dV, _to_shape(dZ, options.get("bias")), *_others(c, saved, dZ, dS, shift))


def _forward(c: Call) -> Saved:
    s, t, z, see = logits_of(Steps(), c)
    o, P, L = direct(Steps(), c, z, see)
    return Saved(s, t, z, see & ~np.isneginf(z), P, L, o)


def _filled(c: Call, P: np.ndarray, saved: Saved) -> np.ndarray:
    """Give empty rows of the policy ``uniform`` their weights."""
    if c.empty != "uniform":
        return P
    return np.where(saved.none & (c.i < each(c.q_lengths)), 1.0 / max(P.shape[-1], 1), P)


def _grouped(x: np.ndarray, hkv: int) -> np.ndarray:
    return x.reshape(x.shape[0], hkv, x.shape[1] // max(hkv, 1), *x.shape[2:])


def _to_shape(x: np.ndarray, given: np.ndarray | None) -> np.ndarray | None:
    """Sum over the axes along which an array was broadcast."""
    if given is None:
        return None
    full = (1,) * (x.ndim - given.ndim) + given.shape
    axes = tuple(axis for axis, n in enumerate(full) if n == 1)
    return np.asarray(x.sum(axis=axes, keepdims=True).reshape(given.shape))


def _others(
    c: Call, saved: Saved, dZ: np.ndarray, dS: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray]:
    """Return the gradients of sinks, slopes and scale."""
    dscale = np.sum(dS * (c.q @ c.k.swapaxes(-1, -2)))
    dslopes = dsinks = None
    if c.slopes is not None:
        dslopes = _to_shape(-np.sum(dZ * np.abs(c.p - c.j), axis=(2, 3)), c.slopes)
    if c.sinks is not None:  # R35
        dsinks = np.sum(np.exp(c.sinks[:, None, None] - saved.L[..., None]) * -shift, axis=(0, 2, 3))
    return dsinks, dslopes, np.asarray(dscale)
