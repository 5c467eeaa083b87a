"""The low-precision twins of the gradients of attention: the plain backward pass, rounded as a precision class rounds.

Equation source: the attention sheet, section 2.8, 'Gradient twin'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.contracts.attention.error_twins import Machine, Run, attend_on, machines, worse
from refattn.primitives.attention_gradients import Gradients
from refattn.primitives.attention_pipeline import key_distances

if TYPE_CHECKING:
    from refattn.conformance.precision import Precision
    from refattn.contracts.attention.error_gradients import Backward
    from refattn.contracts.attention.error_steps import Exact
    from refattn.primitives.attention_arguments import AttentionCall

__all__ = ["gradient_twin"]


def _rows(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


def _grouped(call: AttentionCall, x: np.ndarray) -> np.ndarray:
    """Sum over the query heads that share a kv head: (B, Hq, ...) to (B, Hkv, ...)."""
    kv_heads = call.k.shape[1]
    return np.asarray(x.reshape(x.shape[0], kv_heads, call.group, *x.shape[2:]).sum(axis=2)) if kv_heads else x


@np.errstate(all="ignore")
def gradient_twin(x: Exact, b: Backward, exact: Gradients, u: Precision) -> Gradients:
    """Return the gradients of the plain algorithm in the precision class, row-wise those of the worst twin."""
    first, *others = (_pull_back(x, b, attend_on(x.call, x.forward, machine), machine) for machine in machines(u))
    for other in others:
        first = Gradients(*(_row_wise(p, q, y) for p, q, y in zip(first, other, exact, strict=True)))
    return first


def _row_wise(first: np.ndarray | None, second: np.ndarray | None, exact: np.ndarray | None) -> Any:
    if first is None or second is None or exact is None:
        return None
    return worse(first.reshape(exact.shape), second.reshape(exact.shape), exact)


def _pull_back(x: Exact, b: Backward, run: Run, machine: Machine) -> Gradients:
    """Run the backward pass on one machine: P and dS stored, Δ from the stored output, every product as it rounds."""
    call, to, store = x.call, machine.output, machine.output if machine.normalised else lambda a: a
    P = np.where(x.visible, np.nan_to_num(run.weights), 0.0)
    seen = np.where(x.forward.visible, P, 0.0)
    G = machine.score(machine.product(b.dO, _rows(x.v)))
    Delta = machine.softmax(machine.total(b.dO * np.nan_to_num(run.out)))
    dZ = machine.score(seen * machine.score(G - Delta + b.dL[..., None]))
    cap = call.softcap
    slope = 1.0 if cap is None else machine.score(1.0 - machine.score((run.softcapped / cap) ** 2))
    dS = machine.weight(machine.score(dZ * slope))
    dq = to(call.scale * machine.product(dS, b.k))
    dk = to(_grouped(call, store(call.scale * machine.product(_rows(dS), b.q))))
    dv = to(_grouped(call, store(machine.product(_rows(P), b.dO))))
    dbias = None if call.bias is None else to(_sum_to(dZ, call.bias.shape))
    dslopes = (
        None
        if call.slopes is None
        else to(-np.sum(_sum_to(dZ * key_distances(call), (*call.slopes.shape, 1, 1)), (2, 3)))
    )
    dscale = to(np.sum(dS * machine.product(b.q, _rows(b.k))))
    if call.sinks is None:
        return Gradients(dq, dk, dv, dbias, None, dslopes, dscale)
    share = np.where(
        x.forward.sink_weights > 0, machine.softmax(np.exp(call.sinks[:, None, None] - run.lse[..., None])), 0.0
    )
    return Gradients(dq, dk, dv, dbias, to(np.sum(share * (b.dL[..., None] - Delta), axis=(0, 2, 3))), dslopes, dscale)


def _sum_to(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    axes = tuple(axis for axis, (n, full) in enumerate(zip(shape, x.shape, strict=True)) if n != full)
    return np.asarray(np.sum(x, axis=axes, keepdims=True))
