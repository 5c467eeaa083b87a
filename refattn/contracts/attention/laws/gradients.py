"""Laws of the vector-Jacobian product: sums that vanish, identities between gradients, rows that stay quiet.

Equation source: the attention sheet, section 4, property 13, and the invariances of the forward pass, differentiated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Claim, Law
from refattn.conformance.precision import unit_roundoff
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.pipeline import sees
from refattn.contracts.attention.surgery import group_heads, has, take, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Case, Outputs, Probe

__all__ = ["GRADIENT_LAWS"]


def _norms(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.sum(x * x, axis=-1)))


def _key_gradients_cancel(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    total = probe(case)["dk"].sum(axis=2)  # (B, Hkv, d)
    yield Claim(total, np.zeros_like(total), probe.slack(case)["dk"].sum(axis=2))


def _value_gradients_sum(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    seen = sees(case).any(axis=-1, keepdims=True)
    given = group_heads(case, np.where(seen, case.arrays["dout"], 0.0)).sum(axis=(2, 3))
    yield Claim(probe(case)["dv"].sum(axis=2), given, probe.slack(case)["dv"].sum(axis=2))


def _inner(case: Case, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sum of products per kv head, of arrays with query heads or kv heads: (B, Hkv, 1)."""
    rows = np.sum(left * right, axis=(-1, -2))
    rows = group_heads(case, rows).sum(axis=2) if rows.shape[1] == sizes(case).hq else rows
    return np.asarray(rows)[..., None]


def _spread(case: Case, size: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """Bound of the error of `_inner` from row norms and row errors: (B, Hkv)."""
    rows = np.sum(_norms(size) * slack, axis=-1)
    return np.asarray(group_heads(case, rows).sum(axis=2)) if rows.shape[1] == sizes(case).hq else rows


def _adjoint_of_values(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    forward = replace(case.without("dout"), entry="attention")
    out, dv, dout, v = probe(forward)["out"], probe(case)["dv"], case.arrays["dout"], case.arrays["v"]
    slack = _spread(case, dout, probe.slack(forward)["out"]) + _spread(case, v, probe.slack(case)["dv"])
    yield Claim(_inner(case, dout, out), _inner(case, dv, v), slack)


def _queries_against_keys(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    grads, slacks = probe(case), probe.slack(case)
    q, k = case.arrays["q"], case.arrays["k"]
    slack = _spread(case, q, slacks["dq"]) + _spread(case, k, slacks["dk"])
    yield Claim(_inner(case, grads["dq"], q), _inner(case, grads["dk"], k), slack)


def _quiet_rows(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    quiet = rng.random(sizes(case).sq) < 0.5
    case = case.having(dout=np.where(quiet[:, None], 0.0, case.arrays["dout"]))
    dq, slack = probe(case)["dq"][:, :, quiet], probe.slack(case)["dq"][:, :, quiet]
    yield Claim(dq, np.zeros_like(dq), slack)


def _hidden_keys_quiet(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    hidden = ~np.any(sees(case), axis=(1, 2))[:, None, :]  # (B, 1, Sk)
    grads, slacks = probe(case), probe.slack(case)
    for name in ("dk", "dv"):
        found = np.where(hidden[..., None], grads[name], 0.0)
        yield Claim(found, np.zeros_like(found), np.where(hidden, slacks[name], 0.0), name)


def _repeated_heads_add(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    s = sizes(case)
    wide = take(case, "Hkv", np.repeat(np.arange(s.hkv), s.hq // s.hkv))
    grads, apart = probe(case), probe(wide)
    first, second = probe.slack(case), probe.slack(wide)
    yield Claim(grads["dq"], apart["dq"], first["dq"] + second["dq"], "dq")
    for name in ("dk", "dv"):
        slack = first[name] + group_heads(case, second[name]).sum(axis=2)
        yield Claim(grads[name], group_heads(case, apart[name]).sum(axis=2), slack, name)


def _bias_gradients_cancel(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    grads: Outputs = probe(case)
    if "dbias" in grads:
        dbias, hidden = grads["dbias"], np.isneginf(case.arrays["bias"])
        largest = np.abs(case.arrays["v"]).max(initial=0.0) * np.abs(case.arrays["dout"]).sum(axis=(0, 1, 3)).max()
        slack = 64.0 * unit_roundoff(case.dtype) * (largest + np.abs(dbias).sum(axis=-1))
        total = dbias.sum(axis=-1, keepdims=True)
        yield Claim(total, np.zeros_like(total), slack)
        yield Claim(np.where(hidden, dbias, 0.0), np.zeros_like(dbias), 0.0, "gradient of a bias of −∞")


def _balanced(case: Case) -> bool:
    """Whether the weights of every row sum to a constant."""
    return whole(case) and not has(case, "sinks", "dlse") and case.options.get("empty", "zero") == "zero"


def _no_lse(case: Case) -> bool:
    return whole(case) and not has(case, "dlse")


GRADIENT_LAWS = (
    Law(
        "key_gradients_cancel",
        "The gradients of all keys of a head sum to 0, for a shift of all keys changes nothing.",
        _key_gradients_cancel,
        lambda case: _balanced(case) and not case.options.get("softcap"),
        witness="g_no_delta",
    ),
    Law(
        "value_gradients_sum",
        "The gradients of all values sum to the cotangents of all rows that see something.",
        _value_gradients_sum,
        _balanced,
        witness="g_dv_group_mean",
    ),
    Law(
        "adjoint_of_values",
        "Σ dO·o = Σ dV·v in every kv head, for the output is linear in the values.",
        _adjoint_of_values,
        _no_lse,
        needs=("attention",),
        witness="g_dv_unnormalised",
    ),
    Law(
        "queries_against_keys",
        "Σ dQ·q = Σ dK·k in every kv head, for both are Σ dS·s.",
        _queries_against_keys,
        whole,
        witness="g_dq_noscale",
    ),
    Law(
        "quiet_rows",
        "A query whose output has no cotangent has no gradient.",
        _quiet_rows,
        lambda case: _no_lse(case) and sizes(case).sq > 1,
        witness="g_delta_from_rounded_half",
    ),
    Law(
        "hidden_keys_quiet",
        "A key that no query sees has no gradient, nor has its value.",
        _hidden_keys_quiet,
        lambda case: whole(case) and case.options.get("empty", "zero") == "zero",
        witness="g_recompute_unmasked",
    ),
    Law(
        "repeated_heads_add",
        "The gradient of a shared kv head is the sum over copies of it, one for each query head.",
        _repeated_heads_add,
        lambda case: whole(case) and sizes(case).hq > sizes(case).hkv > 0,
        witness="g_dk_group_first",
    ),
    Law(
        "bias_gradients_cancel",
        "The gradients of a row of biases sum to 0, and a bias of −∞ has none.",
        _bias_gradients_cancel,
        lambda case: _balanced(case) and has(case, "bias"),
        witness="g_no_delta",
    ),
)
